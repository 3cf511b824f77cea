//! The registry: address to service to endpoint to identity to gateway.

pub mod key;

pub use key::{KeyTable, TunnelId, TunnelKey};
