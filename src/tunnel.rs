//! QUIC sessions.
