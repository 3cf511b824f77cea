//! Runs a shard over its devices: one thread, one poll loop.
