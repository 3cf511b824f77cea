//! What crosses wires, as values that cannot be wrong.

pub mod flow;
pub mod reason;

pub use flow::{FiveTuple, protocol};
pub use reason::{DropCounts, DropReason};
