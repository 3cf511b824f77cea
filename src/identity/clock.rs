//! The wall clock as a value that others set: floor 0 never asks the time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

/// Seconds since the Unix epoch. Clones share the value; it starts at 0, at which no certificate is valid yet.
#[derive(Clone, Debug, Default)]
pub struct WallClock(Arc<AtomicU64>);

impl WallClock {
    /// Sets the time for every clone.
    pub fn set(&self, unix_seconds: u64) {
        self.0.store(unix_seconds, Ordering::Relaxed);
    }

    /// The time last set.
    pub fn unix_seconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(
            self.unix_seconds(),
        )))
    }
}

impl quinn_proto::TimeSource for WallClock {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(self.unix_seconds()))
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

#[cfg(test)]
mod tests {
    use quinn_proto::TimeSource;

    use super::*;

    #[test]
    fn clones_share_the_time_that_rustls_and_quinn_see() {
        let clock = WallClock::default();
        let seen = clock.clone();
        clock.set(1_700_000_000);
        let tls = seen.current_time().map(|time| time.as_secs());
        let quic = seen.now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!((tls, quic.as_secs()), (Some(1_700_000_000), 1_700_000_000));
        clock.set(u64::MAX);
        assert_eq!(seen.now(), SystemTime::UNIX_EPOCH);
    }
}
