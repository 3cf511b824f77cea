//! The control plane: reads the files, starts the data plane in the right order, feeds it and answers for it.
//!
//! It never stands in a packet's way: the shard has its own thread and is told things through a bounded channel.

pub mod addresses;
pub mod admin;
pub mod clock;
pub mod configuration;
pub mod control;
pub mod events;
pub mod flowlog;
mod health;
mod inherit;
pub mod kept;
pub mod log;
pub mod render;
pub mod repeats;
pub mod run;
pub mod serve;
pub mod settings;
pub mod start;
pub mod status;
pub mod tighten;
pub mod upkeep;
pub mod user;
pub mod watch;
