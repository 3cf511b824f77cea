//! Hostile input in bulk (steering.md §2.2, §2.4): on the segment, through a tunnel, in words, and what it costs.

#[path = "hostile/cost.rs"]
mod cost;
#[path = "hostile/greedy.rs"]
mod greedy;
#[path = "hostile/kinds.rs"]
mod kinds;
#[path = "hostile/raw.rs"]
mod raw;
#[path = "hostile/segment.rs"]
mod segment;
#[path = "hostile/tunnel.rs"]
mod tunnel;
#[path = "hostile/words.rs"]
mod words;
