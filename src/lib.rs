//! identun: mutual TLS between workloads, for unmodified applications and every IP protocol.
//!
//! One root daemon per host captures plaintext IP packets on a TUN device, carries them in QUIC/TLS 1.3 tunnels that
//! are mutually authenticated by SPIFFE identity, and reinjects them on the other host with addresses unchanged.
//!
//! The floors; imports go down only (`tests/floors.rs` says so):
//!
//! ```text
//!  3  main.rs  cli/                              words in, words out
//!  2  daemon/                                    control plane; starts and feeds shards
//!  1b io/                                        runs a shard over its devices
//!  1a device/  host/  store/  metrics            one outside thing each
//!  0d shard                                      the whole data plane as one state machine
//!  0c engine/  tunnel/                           flows and verdicts; QUIC sessions
//!  0b policy/  registry/  identity/              pure decisions
//!  0a wire/  spiffe                              pure values
//! ```

#![cfg_attr(
    test,
    allow(clippy::print_stdout, clippy::print_stderr, reason = "tests may talk")
)]

pub mod cli;
pub mod daemon;
pub mod device;
pub mod engine;
pub mod host;
pub mod identity;
pub mod io;
pub mod metrics;
pub mod policy;
pub mod registry;
pub mod shard;
pub mod spiffe;
pub mod store;
pub mod tunnel;
pub mod wire;
