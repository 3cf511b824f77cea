//! The independent judge of cut and join: what RFC 9293, RFC 768 and Linux' segmentation say, in plain loops over bytes.
//! It shares no code with `wire/segment`; slow on purpose.

#[path = "../oracle/choices.rs"]
pub(crate) mod choices;
pub(crate) mod cut;
pub(crate) mod join;
pub(crate) mod make;
pub(crate) mod read;
pub(crate) mod scene;
