//! Any text as a policy file: it is taken or refused with a place, and what is taken is decided as the judge decides it
//! (`tests/oracle/promise.rs`).

#![no_main]
#![expect(clippy::unwrap_used, reason = "what is not as promised ends the run")]
#![expect(dead_code, reason = "the judge serves the tests too, and not all of it is needed here")]

#[path = "../../tests/oracle/all.rs"]
mod oracle;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        oracle::promise::keep(text);
    }
});
