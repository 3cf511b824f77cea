//! CoDel (RFC 8289): tells when a queue that stands has to lose a packet.

use std::time::{Duration, Instant};

/// A queue may delay packets so long...
const TARGET: Duration = Duration::from_millis(5);
/// ...for so long, which is about the longest round trip of the senders (RFC 8289 §4.3).
const INTERVAL: Duration = Duration::from_millis(100);
/// How many intervals after it ended a spell of drops is taken up again where it was (RFC 8289 §5.5).
const MEMORY: u32 = 16;

/// The state of one queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codel {
    /// When the delay will have been above the target for an interval.
    above_until: Option<Instant>,
    /// When the next packet has to go, while packets have to.
    next: Option<Instant>,
    /// When the last one had to go by.
    last: Option<Instant>,
    /// Packets that had to go in this spell.
    count: u32,
    /// Those of the last spell.
    last_count: u32,
}

impl Codel {
    /// Of a queue that does not stand.
    pub(super) const NEW: Self = Self {
        above_until: None,
        next: None,
        last: None,
        count: 0,
        last_count: 0,
    };

    /// Takes the delay of the packet at the queue's head at `now`, and tells whether it must go (or be marked). `is_short`:
    /// hardly anything waits behind it.
    pub(super) fn must_drop(&mut self, delay: Duration, is_short: bool, now: Instant) -> bool {
        if delay < TARGET || is_short {
            self.above_until = None;
            self.next = None;
            return false;
        }
        let until = *self.above_until.get_or_insert(now + INTERVAL);
        match self.next {
            Some(next) if now < next => false,
            Some(next) => {
                self.count = self.count.saturating_add(1);
                self.plan(next);
                true
            }
            None if now < until => false,
            None => {
                self.begin(now);
                true
            }
        }
    }

    /// The first packet of a spell goes. Soon after another spell the pace of that one is the right one.
    fn begin(&mut self, now: Instant) {
        let gained = self.count.saturating_sub(self.last_count);
        let is_recent = self
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < INTERVAL * MEMORY);
        self.count = if gained > 1 && is_recent { gained } else { 1 };
        self.last_count = self.count;
        self.plan(now);
    }

    /// The control law: packets go at distances that shrink with the square root of their number.
    fn plan(&mut self, from: Instant) {
        let next = from + INTERVAL.div_f64(f64::from(self.count.max(1)).sqrt());
        self.next = Some(next);
        self.last = Some(next);
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

    /// When packets had to go, in milliseconds, with one packet a millisecond and the given delay.
    fn drops(codel: &mut Codel, from: Instant, millis: u64, delay: u64) -> Vec<u64> {
        (0..millis)
            .filter(|at| {
                let now = from + Duration::from_millis(*at);
                codel.must_drop(Duration::from_millis(delay), false, now)
            })
            .collect()
    }

    #[test]
    fn a_burst_and_a_short_delay_lose_nothing() {
        let (mut codel, now) = (Codel::NEW, start());
        assert_eq!(drops(&mut codel, now, 99, 50), [0_u64; 0]);
        assert_eq!(
            drops(&mut codel, now + Duration::from_millis(99), 1, 4),
            [0_u64; 0]
        );
        assert_eq!(
            drops(&mut codel, now + Duration::from_millis(100), 99, 50),
            [0_u64; 0]
        );
        let mut short = Codel::NEW;
        assert!((0..500).all(|at| {
            let now = now + Duration::from_millis(at);
            !short.must_drop(Duration::from_millis(50), true, now)
        }));
    }

    #[test]
    fn a_standing_queue_loses_packets_faster_and_faster() {
        let (mut codel, now) = (Codel::NEW, start());
        // 100, then 100/sqrt(1), 100/sqrt(2), 100/sqrt(3) ... later
        assert_eq!(
            drops(&mut codel, now, 430, 20),
            [100, 200, 271, 329, 379, 424]
        );
    }

    #[test]
    fn a_spell_soon_after_another_takes_up_its_pace_and_a_late_one_does_not() {
        let (mut codel, now) = (Codel::NEW, start());
        drops(&mut codel, now, 430, 20);
        let pause = now + Duration::from_millis(430);
        assert!(!codel.must_drop(Duration::ZERO, false, pause));
        let (mut soon, mut late) = (codel, codel);
        let gaps = |codel: &mut Codel, from| {
            let drops = drops(codel, from, 300, 20);
            drops[1] - drops[0]
        };
        assert!(gaps(&mut soon, pause + Duration::from_millis(1)) < 60);
        assert_eq!(gaps(&mut late, pause + Duration::from_secs(10)), 100);
    }
}
