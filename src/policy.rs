//! Policy: files in, decisions out. Pure.
