//! Bytes become frames of some flows that are cut, cross a bad network and are joined (`tests/segment_oracle.rs`).

#![no_main]
#![expect(dead_code, reason = "the judge serves the tests too, and not all of it is needed here")]

#[path = "../../tests/segment/all.rs"]
mod segment;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    segment::scene::play(&mut segment::choices::Choices::Bytes(bytes));
});
