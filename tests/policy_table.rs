//! The conformance table of the policy semantics, case by case (P01 to P40), and more cases of the same sources: text in,
//! question, answer. Every answer is that of the matcher and of the independent judge.
//!
//! P40, certificates, is in `tests/identity_handshake/main.rs`: it needs real handshakes.

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]
#![expect(
    dead_code,
    reason = "the judge serves the random test too, and not all of it is needed here"
)]

#[path = "oracle/all.rs"]
mod oracle;
#[path = "table/all.rs"]
mod table;
