//! Bytes become valid certificate chains with flaws, signed again (`tests/bytes/certificate/scene.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "what is not as it has to be ends the run")]
#![expect(dead_code, reason = "the choices serve other targets too, and not all of them are needed here")]

#[path = "../../tests/bytes/capsule.rs"]
mod capsule;
#[path = "../../tests/bytes/certificate/scene.rs"]
mod certificate;
#[path = "../../tests/oracle/choices.rs"]
mod choices;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    certificate::play(&mut choices::Choices::Bytes(bytes));
});
