//! Bytes as a peer's control stream, cut anywhere (`tests/bytes/capsule.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "what is not as it has to be ends the run")]
#![expect(dead_code, reason = "the choices serve other targets too, and not all of them are needed here")]

#[path = "../../tests/bytes/capsule.rs"]
mod capsule;
#[path = "../../tests/oracle/choices.rs"]
mod choices;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    capsule::play(&mut choices::Choices::Bytes(bytes));
});
