//! The control plane: starts shards and feeds them.
