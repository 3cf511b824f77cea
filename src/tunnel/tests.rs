//! Two or more hosts' tunnels on a virtual clock, with real certificates and a simulated link.

mod control;
mod dialling;
mod hold;
mod life;
mod roaming;
mod world;
