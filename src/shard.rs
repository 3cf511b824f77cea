//! The data plane as one state machine.
