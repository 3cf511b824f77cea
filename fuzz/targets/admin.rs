//! Bytes on the admin socket (`tests/bytes/admin.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "what is not as it has to be ends the run")]
#![expect(dead_code, reason = "the choices serve other targets too, and not all of them are needed here")]

#[path = "../../tests/bytes/admin.rs"]
mod admin;
#[path = "../../tests/oracle/choices.rs"]
mod choices;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    admin::play(&mut choices::Choices::Bytes(bytes));
});
