//! The clocks, asked in one place.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Unix time in seconds; 0 for a clock before 1970.
pub fn unix_now() -> u64 {
    since_epoch().as_secs()
}

/// Unix time in milliseconds.
pub fn unix_millis() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// A moment on the clock that never jumps.
#[expect(
    clippy::disallowed_methods,
    reason = "the control plane is where the clock is asked"
)]
pub fn monotonic_now() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the control plane is where the clock is asked"
)]
fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
