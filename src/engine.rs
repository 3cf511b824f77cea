//! Flows and verdicts.
