//! The gate in front of quinn for first packets, closed a little while too many handshakes are on their way.
//!
//! Even to refuse or to retry costs quinn the keys of the packet and us an answer: some ten thousand a second take all of
//! a core. Senders' addresses prove nothing, but a flood from anywhere comes from few of the addresses that the registry
//! gives to hosts, so these have a bucket of their own, which honest peers do not empty. Whoever comes back with a token
//! waits behind nobody without one.
//!
//! Who answers from an address can still begin handshake after handshake, and each costs us thirty times a first packet: so
//! those of strangers have a bucket too, however few are on their way at once.

use std::time::{Duration, Instant};

use crate::tunnel::connection_id::{LONG_HEADER, LONG_ID_AT};

/// Packets a second, and at once, from addresses of the registry: more than a core can answer. These are of two packets a
/// dial, and a host that comes back dials thousands of sessions.
const KNOWN: (u32, u32) = (20_000, 2_000);
/// From other addresses, with a token: two packets of each handshake that a core can do.
const RETURNING: (u32, u32) = (2_000, 200);
/// From other addresses, without one.
const STRANGERS: (u32, u32) = (1_000, 100);
/// Handshakes of other addresses: a seventh of a core.
pub(super) const HANDSHAKES: (u32, u32) = (250, 500);
/// How often those that were turned away are told of.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The type bits of an Initial packet of QUIC version 1 (RFC 9000 §17.2), and where its version stands.
const TYPE: u8 = 0x30;
const INITIAL: u8 = 0x00;
const VERSION: [u8; 4] = 1u32.to_be_bytes();

/// Lets first packets pass, and counts the others.
#[derive(Debug)]
pub(super) struct Gate {
    known: Bucket,
    returning: Bucket,
    strangers: Bucket,
    handshakes: Bucket,
    turned_away: u64,
    told: Option<Instant>,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self {
            known: Bucket::new(KNOWN),
            returning: Bucket::new(RETURNING),
            strangers: Bucket::new(STRANGERS),
            handshakes: Bucket::new(HANDSHAKES),
            turned_away: 0,
            told: None,
        }
    }

    /// Whether a datagram may pass whose sender has an address of the registry or not.
    pub(super) fn admits(&mut self, payload: &[u8], is_known: bool, now: Instant) -> bool {
        let Some(has_token) = initial_with_token(payload) else {
            return true;
        };
        let bucket = match (is_known, has_token) {
            (true, _) => &mut self.known,
            (false, true) => &mut self.returning,
            (false, false) => &mut self.strangers,
        };
        let admitted = bucket.take(now);
        self.turned_away += u64::from(!admitted);
        admitted
    }

    /// Whether a handshake may begin of somebody whose address is not of the registry.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let begins = self.handshakes.take(now);
        self.turned_away += u64::from(!begins);
        begins
    }

    /// The last handshake that asked was the last one that may, or one too many.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.handshakes.left == 0
    }

    /// How many were turned away since this was last told, when it is to be told.
    pub(super) fn poll_report(&mut self, now: Instant) -> Option<u64> {
        let is_due = self.told.is_none_or(|told| told + TELL_EVERY <= now);
        if self.turned_away == 0 || !is_due {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.turned_away))
    }
}

/// Tokens that come back with time.
#[derive(Debug)]
struct Bucket {
    each_second: u32,
    most: u32,
    left: u32,
    since: Option<Instant>,
}

impl Bucket {
    const fn new((each_second, most): (u32, u32)) -> Self {
        Self {
            each_second,
            most,
            left: most,
            since: None,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let each = Duration::from_secs(1) / self.each_second;
        let back = now.saturating_duration_since(since).as_nanos() / each.as_nanos().max(1);
        match u32::try_from(back) {
            Ok(0) => {}
            Ok(back) if self.left.saturating_add(back) < self.most => {
                self.left += back;
                // What is not a whole token yet stays for the next time.
                self.since = Some(since + each * back);
            }
            Ok(_) | Err(_) => {
                self.left = self.most;
                self.since = Some(now);
            }
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

/// Whether a datagram that begins with an Initial packet has a token; `None` for any other, and for those that quinn drops
/// before they cost anything.
fn initial_with_token(payload: &[u8]) -> Option<bool> {
    let first = *payload.first()?;
    if first & LONG_HEADER == 0 || first & TYPE != INITIAL || payload.get(1..5)? != VERSION {
        return None;
    }
    let destination_len = usize::from(*payload.get(LONG_ID_AT - 1)?);
    let source_len_at = LONG_ID_AT + destination_len;
    let source_len = usize::from(*payload.get(source_len_at)?);
    // The length of the token, which is none where its first byte is zero.
    let token_len = payload.get(source_len_at + 1 + source_len)?;
    Some(token_len & 0x3f != 0 || token_len & 0xc0 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(token: &[u8]) -> Vec<u8> {
        let len = u8::try_from(token.len()).unwrap();
        [
            &[0xc3, 0, 0, 0, 1, 8][..],
            &[7; 8],
            &[4],
            &[9; 4],
            &[len],
            token,
            &[0; 1_200],
        ]
        .concat()
    }

    fn start() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    fn admitted(gate: &mut Gate, packet: &[u8], is_known: bool, now: Instant) -> usize {
        (0..100_000)
            .filter(|_| gate.admits(packet, is_known, now))
            .count()
    }

    #[test]
    fn a_flood_of_strangers_leaves_room_for_known_hosts_and_for_those_who_come_back() {
        let (mut gate, now) = (Gate::new(), start());
        let count = |limit: (u32, u32)| limit.1 as usize;
        assert_eq!(
            admitted(&mut gate, &initial(&[]), false, now),
            count(STRANGERS)
        );
        assert_eq!(
            admitted(&mut gate, &initial(&[1; 60]), false, now),
            count(RETURNING)
        );
        assert_eq!(admitted(&mut gate, &initial(&[]), true, now), count(KNOWN));
    }

    #[test]
    fn what_is_admitted_in_a_second_is_the_rate_however_often_is_asked() {
        for step in [50, 777, 10_000, 100_000] {
            let (mut gate, mut now) = (Gate::new(), start());
            admitted(&mut gate, &initial(&[]), false, now);
            let (end, mut passed) = (now + Duration::from_secs(1), 0);
            while now < end {
                now += Duration::from_micros(step);
                let at_once = (0..500).filter(|_| gate.admits(&initial(&[]), false, now));
                passed += at_once.count();
            }
            assert!((990..=1_010).contains(&passed), "{step}: {passed}");
        }
    }

    #[test]
    fn handshakes_of_strangers_have_a_rate_of_their_own() {
        let (mut gate, now) = (Gate::new(), start());
        let begun = (0..10_000).filter(|_| gate.begins(now)).count();
        assert_eq!(begun, HANDSHAKES.1 as usize);
        assert!(gate.is_exhausted());
        let later = now + Duration::from_secs(1);
        let begun = (0..10_000).filter(|_| gate.begins(later)).count();
        assert_eq!(begun, HANDSHAKES.0 as usize);
    }

    #[test]
    fn only_first_packets_are_counted() {
        let (mut gate, now) = (Gate::new(), start());
        admitted(&mut gate, &initial(&[]), false, now);
        let mut handshake = initial(&[]);
        handshake[0] = 0xe3;
        let mut other_version = initial(&[]);
        other_version[4] = 2;
        let short = [&[0x43][..], &[0; 1_200]].concat();
        for other in [
            &handshake[..],
            &other_version,
            &short,
            &initial(&[])[..12],
            &[],
        ] {
            assert!(gate.admits(other, false, now), "{other:02x?}");
        }
        assert!(!gate.admits(&initial(&[]), false, now));
    }

    #[test]
    fn those_turned_away_are_told_of_now_and_then() {
        let (mut gate, now) = (Gate::new(), start());
        assert_eq!(gate.poll_report(now), None);
        admitted(&mut gate, &initial(&[]), false, now);
        assert_eq!(gate.poll_report(now), Some(99_900));
        admitted(&mut gate, &initial(&[]), false, now);
        assert_eq!(gate.poll_report(now + TELL_EVERY / 2), None);
        assert_eq!(gate.poll_report(now + TELL_EVERY), Some(100_000));
        assert_eq!(gate.poll_report(now + 2 * TELL_EVERY), None);
    }
}
