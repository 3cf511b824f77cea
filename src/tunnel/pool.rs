//! A tunnel: the sessions of one key, which of them carries packets, and when to dial again.

use std::time::{Duration, Instant};

use quinn_proto::ConnectionHandle;

use crate::{
    registry::TunnelKey,
    tunnel::{TunnelState, random::Random},
    wire::capsule::RefusedCode,
};

/// The first delay after a failed dial; each further one doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// The longest delay.
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A peer that breaks the protocol is asked again after this.
const BROKEN_PEER: Duration = Duration::from_secs(60);
/// How long "not allowed" is believed: first, and at most.
const NOT_ALLOWED: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(60)];
/// A peer that goes away may be back after this.
const PEER_DRAINS: Duration = Duration::from_secs(1);

/// The sessions of one key.
pub(super) struct Tunnel {
    pub(super) key: TunnelKey,
    /// Sessions in Up or Draining, oldest first.
    pub(super) up: Vec<ConnectionHandle>,
    /// The one of them that packets go to.
    pub(super) current: Option<ConnectionHandle>,
    /// `current` may take new flows: it is not draining.
    pub(super) current_is_up: bool,
    /// Sessions stand, but the peer asked to be sent nothing: its successor is to be waited for.
    pub(super) is_held: bool,
    pub(super) dialling: Option<ConnectionHandle>,
    pub(super) backoff: Backoff,
    /// The end of the backoff, as the timer set has it.
    pub(super) armed: Option<Instant>,
    /// Flows live: keep sessions alive, and dial again by ourselves.
    pub(super) live: bool,
    pub(super) counts: Counts,
    pub(super) last_error: Option<String>,
}

/// Inner packets and sessions of a tunnel since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) bytes_sent: u64,
    pub(super) bytes_received: u64,
    pub(super) packets_sent: u64,
    pub(super) packets_received: u64,
    pub(super) handshakes: u64,
}

impl Tunnel {
    pub(super) fn new(key: TunnelKey) -> Self {
        Self {
            key,
            up: Vec::new(),
            current: None,
            current_is_up: false,
            is_held: false,
            dialling: None,
            backoff: Backoff::default(),
            armed: None,
            live: false,
            counts: Counts::default(),
            last_error: None,
        }
    }

    pub(super) fn state(&self) -> TunnelState {
        if self.current_is_up {
            TunnelState::Up
        } else if self.dialling.is_some() {
            TunnelState::Dialing
        } else if self.current.is_some() || self.is_held {
            TunnelState::Draining
        } else {
            self.backoff.state()
        }
    }

    /// A dial would be of use and nothing speaks against it.
    pub(super) const fn may_dial(&self) -> bool {
        !self.current_is_up
            && !self.is_held
            && self.dialling.is_none()
            && self.backoff.until.is_none()
    }
}

/// When to dial again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    /// No dial before.
    pub(super) until: Option<Instant>,
    /// Asking again would not help: what the peer said.
    refused: Option<(RefusedCode, String)>,
    failures: u32,
    /// NOT_HERE was already answered by one dial at once.
    asked_again: bool,
}

impl Backoff {
    /// A session came up.
    pub(super) fn handle_up(&mut self) {
        let failures = self.failures;
        *self = Self {
            failures,
            ..Self::default()
        };
    }

    /// A session that had been up for `lasted` ended; the first time the dial follows at once, so that a peer's restart
    /// costs one round trip, and a session that keeps breaking still backs off.
    pub(super) fn handle_lost(&mut self, lasted: Duration, now: Instant, random: &mut Random) {
        if lasted >= LAST_BACKOFF {
            self.failures = 0;
        }
        if self.failures == 0 {
            self.failures = 1;
            self.until = None;
        } else {
            self.handle_failure(now, random);
        }
    }

    /// A dial failed.
    pub(super) fn handle_failure(&mut self, now: Instant, random: &mut Random) {
        let limit = FIRST_BACKOFF
            .saturating_mul(1 << self.failures.min(10))
            .min(LAST_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + random.up_to(limit));
        self.refused = None;
    }

    /// The peer said REFUSED (wire.md §3.2).
    pub(super) fn handle_refused(
        &mut self,
        code: RefusedCode,
        reason: &str,
        now: Instant,
        random: &mut Random,
    ) {
        match code {
            RefusedCode::BadVersion | RefusedCode::BadHello | RefusedCode::BadIdentity => {
                self.believe(BROKEN_PEER, code, reason, now);
            }
            RefusedCode::NotAllowed => {
                let [first, last] = NOT_ALLOWED;
                let pause = first.saturating_mul(1 << self.failures.min(10)).min(last);
                self.failures = self.failures.saturating_add(1);
                self.believe(pause, code, reason, now);
            }
            RefusedCode::NotHere if !self.asked_again => {
                self.asked_again = true;
                self.until = None;
            }
            RefusedCode::NotHere | RefusedCode::Limited => self.handle_failure(now, random),
            RefusedCode::Draining => self.until = Some(now + PEER_DRAINS),
        }
    }

    /// Time or another configuration makes asking worth while.
    pub(super) fn clear(&mut self) {
        self.until = None;
        self.refused = None;
    }

    fn believe(&mut self, pause: Duration, code: RefusedCode, reason: &str, now: Instant) {
        self.until = Some(now + pause);
        self.refused = Some((code, reason.to_owned()));
    }

    fn state(&self) -> TunnelState {
        match (self.until, &self.refused) {
            (None, _) => TunnelState::Idle,
            (Some(until), None) => TunnelState::Backoff { until },
            (Some(until), Some((code, reason))) => TunnelState::Refused {
                until,
                code: *code,
                reason: reason.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    fn delays(seed: u8) -> Vec<Duration> {
        let (now, mut backoff) = (start(), Backoff::default());
        let mut random = Random::new(&[seed; 32], "test");
        (0..12)
            .map(|_| {
                backoff.handle_failure(now, &mut random);
                backoff.until.unwrap() - now
            })
            .collect()
    }

    #[test]
    fn a_seed_repeats_its_delays_and_they_stay_under_the_doubling_limit() {
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
        for (failures, delay) in delays(1).into_iter().enumerate() {
            let limit = (FIRST_BACKOFF * (1 << failures)).min(LAST_BACKOFF);
            assert!(delay <= limit, "{failures}: {delay:?}");
        }
    }

    #[test]
    fn the_first_dial_after_a_lost_session_waits_for_nothing() {
        let (now, mut random) = (start(), Random::new(&[1; 32], "test"));
        let mut backoff = Backoff::default();
        backoff.handle_lost(Duration::from_secs(60), now, &mut random);
        assert_eq!(backoff.state(), TunnelState::Idle);
        backoff.handle_up();
        backoff.handle_lost(Duration::from_secs(1), now, &mut random);
        assert!(matches!(backoff.state(), TunnelState::Backoff { .. }));
        backoff.handle_up();
        backoff.handle_lost(Duration::from_secs(60), now, &mut random);
        assert_eq!(backoff.state(), TunnelState::Idle);
    }

    #[test]
    fn each_refusal_has_its_pause() {
        use RefusedCode as R;
        let now = start();
        let pause = |backoff: &mut Backoff, code| {
            backoff.handle_refused(code, "because", now, &mut Random::new(&[1; 32], "test"));
            (
                backoff.until.map(|until| until - now),
                backoff.refused.is_some(),
            )
        };
        let first = |code| pause(&mut Backoff::default(), code);
        for code in [R::BadVersion, R::BadHello, R::BadIdentity] {
            assert_eq!(first(code), (Some(Duration::from_secs(60)), true));
        }
        assert_eq!(first(R::NotAllowed), (Some(Duration::from_secs(5)), true));
        assert_eq!(first(R::Draining), (Some(Duration::from_secs(1)), false));
        assert_eq!(first(R::NotHere), (None, false));
        assert!(first(R::Limited).0.unwrap() <= FIRST_BACKOFF);

        let mut backoff = Backoff::default();
        for seconds in [5, 10, 20, 40, 60, 60] {
            let expected = (Some(Duration::from_secs(seconds)), true);
            assert_eq!(pause(&mut backoff, R::NotAllowed), expected);
        }
        let mut backoff = Backoff::default();
        assert_eq!(pause(&mut backoff, R::NotHere).0, None);
        assert!(pause(&mut backoff, R::NotHere).0.is_some());
    }
}
