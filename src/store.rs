//! Files in and out: settings, policy, certificates, keys, secrets of the tunnels, the lock of the one instance.
//!
//! Everything read is checked after it was opened (kind, owner, mode, size), so that nobody swaps it in between.
//! Everything written appears whole or not at all.

pub mod files;
pub mod lock;
pub mod policies;
pub mod secrets;

pub use files::{
    FileError, private_dir, read_config, read_key, read_key_of, read_public, read_secret,
    read_state, read_stdin, write_new, write_private,
};
pub use lock::{InstanceLock, LockError};
pub use policies::{is_policy_name, policy_files};
pub use secrets::TunnelSecrets;
