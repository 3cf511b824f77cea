//! The registry: address to service to endpoint to identity to gateway.

pub mod index;
pub mod key;
pub mod naming;
pub mod place;
pub mod service;

pub use index::Registry;
pub use key::{KeyTable, TunnelId, TunnelKey};
pub use place::{Place, ResourceName};
