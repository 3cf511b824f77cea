//! The table's rooms.

mod authorization;
mod flows;
mod loading;
mod modes;
mod names;
mod rules;
mod tls_check;
mod world;
