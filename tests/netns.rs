//! Ring 4: real TUNs, real kernels and captures of the wire, on hosts-in-namespaces. See `netns/topology.sh`.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "tests of real hosts wait for them, talk, and fail by panicking"
)]

#[path = "netns/audit.rs"]
mod audit;
#[path = "netns/bad_luck.rs"]
mod bad_luck;
#[path = "netns/boot.rs"]
mod boot;
#[path = "netns/capture.rs"]
mod capture;
#[path = "netns/chaos.rs"]
mod chaos;
#[path = "netns/cuts.rs"]
mod cuts;
#[path = "netns/datagrams.rs"]
mod datagrams;
#[path = "netns/delays.rs"]
mod delays;
#[path = "netns/denied.rs"]
mod denied;
#[path = "netns/foreign.rs"]
mod foreign;
#[path = "netns/forge.rs"]
mod forge;
#[path = "netns/hostile.rs"]
mod hostile;
#[path = "netns/identities.rs"]
mod identities;
#[path = "netns/kills.rs"]
mod kills;
#[path = "netns/leaks.rs"]
mod leaks;
#[path = "netns/life.rs"]
mod life;
#[path = "netns/manager.rs"]
mod manager;
#[path = "netns/mesh.rs"]
mod mesh;
#[path = "netns/mishaps.rs"]
mod mishaps;
#[path = "netns/moved.rs"]
mod moved;
#[path = "netns/names.rs"]
mod names;
#[path = "netns/offloads.rs"]
mod offloads;
#[path = "netns/outcomes.rs"]
mod outcomes;
#[path = "hostile/peer.rs"]
mod peer;
#[path = "netns/refusals.rs"]
mod refusals;
#[path = "netns/reload.rs"]
mod reload;
#[path = "netns/repair.rs"]
mod repair;
#[path = "netns/rig.rs"]
mod rig;
#[path = "netns/rights.rs"]
mod rights;
#[path = "segment/all.rs"]
#[expect(
    dead_code,
    reason = "the judge of cut and join has tests of its own, and not all of it is needed here"
)]
mod segment;
#[path = "netns/shards.rs"]
mod shards;
#[path = "netns/streams.rs"]
mod streams;
#[path = "netns/tighten.rs"]
mod tighten;
#[path = "netns/traffic.rs"]
mod traffic;
#[path = "netns/transfers.rs"]
mod transfers;
#[path = "netns/upgrade.rs"]
mod upgrade;
