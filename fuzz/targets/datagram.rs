//! Bytes become a peer's datagrams, in pieces and with flaws, on their way to the device (`tests/bytes/datagram/scene.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "what is not as it has to be ends the run")]
#![expect(dead_code, reason = "the choices serve other targets too, and not all of them are needed here")]

#[path = "../../tests/bytes/datagram/scene.rs"]
mod datagram;
#[path = "../../tests/segment/all.rs"]
mod segment;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    datagram::play(&mut segment::choices::Choices::Bytes(bytes));
});
