//! What crosses wires, as values that cannot be wrong.

pub mod address;
pub mod capsule;
pub mod checksum;
pub mod datagram;
pub(crate) mod field;
pub mod flow;
pub mod fragment;
pub mod icmp;
pub mod ip_fragments;
pub mod mss;
pub mod packet;
pub mod reason;
#[cfg(test)]
pub(crate) mod sample;
pub mod segment;
pub mod varint;
pub mod virtio;

pub use flow::{FiveTuple, protocol};
pub use reason::{DropCounts, DropReason};
