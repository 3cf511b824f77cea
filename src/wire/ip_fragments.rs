//! Tracks inner IP fragments (wire.md §6): what is decided for the first one holds for all of its packet.
//!
//! Fragments that come before their first are held. Overlap, which is how a second packet hides behind the checked
//! first one, drops everything of the packet that is still to come (RFC 5722), so that it never becomes whole.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    mem,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::wire::{DropReason, FiveTuple, packet::Packet};

/// How long the fragments of one packet may take to come.
const WAIT: Duration = Duration::from_secs(1);
/// Bytes of fragments that are held.
const MAX_HELD: usize = 64 * 1024;
/// Packets that are tracked.
const MAX_PACKETS: usize = 1_024;
/// Fragments of one packet: a packet of 64 KiB over the smallest link of IPv4 that matters, 576 bytes, has 119.
const MAX_FRAGMENTS: usize = 256;

/// What becomes of a fragment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FragmentVerdict {
    /// It is dropped.
    Drop(DropReason),
    /// It is kept until the first fragment comes.
    Held,
    /// It belongs to this flow.
    Tuple(FiveTuple),
}

/// Which packet a fragment is of: RFC 791 §3.2 with the protocol, RFC 8200 §4.5 without.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u32,
}

#[derive(Debug)]
struct Tracked {
    since: Instant,
    /// Known once the first fragment came.
    tuple: Option<FiveTuple>,
    /// Where the packet's payload ends, known once the last fragment came.
    end: Option<usize>,
    /// What came, `from..to`, in no order.
    ranges: Vec<(usize, usize)>,
    held: Vec<Vec<u8>>,
    overlaps: bool,
}

/// The tracker of one direction.
#[derive(Debug, Default)]
pub struct IpFragments {
    packets: BTreeMap<Key, Tracked>,
    /// The same packets, the oldest first.
    ages: BTreeSet<(Instant, Key)>,
    released: VecDeque<Vec<u8>>,
    /// Bytes in `held` of all packets and in `released`.
    held_bytes: usize,
    /// Held fragments that were given up and not yet reported.
    given_up: usize,
}

impl IpFragments {
    /// Tracks nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a packet that is a fragment; any other has its own tuple.
    ///
    /// After the first fragment of a packet, take what was held with [`Self::poll_released`] and push it again.
    pub fn push(&mut self, packet: &Packet<'_>, now: Instant) -> FragmentVerdict {
        let tuple = packet.five_tuple();
        let Some(fragment) = packet.fragment() else {
            return FragmentVerdict::Tuple(tuple);
        };
        let key = Key {
            source: tuple.source,
            destination: tuple.destination,
            protocol: if packet.is_ipv6() { 0 } else { tuple.protocol },
            id: fragment.id,
        };
        self.forget_old(now);
        self.make_room(&key);
        let ages = &mut self.ages;
        let tracked = self.packets.entry(key).or_insert_with(|| {
            ages.insert((now, key));
            Tracked::new(now)
        });
        if tracked.tuple.is_none() && fragment.offset > 0 && !tracked.overlaps {
            return self.hold(key, packet.bytes());
        }
        let from = usize::from(fragment.offset);
        if !tracked.take(from, from + packet.transport().len(), fragment.more) {
            tracked.overlaps = true;
            self.drop_held(key);
            return FragmentVerdict::Drop(DropReason::FragmentOverlap);
        }
        let flow = *tracked.tuple.get_or_insert(tuple);
        self.released.extend(mem::take(&mut tracked.held));
        if tracked.is_whole() {
            self.forget(key);
        }
        FragmentVerdict::Tuple(flow)
    }

    /// The next fragment that was held and whose first has come: a whole IP packet, to be pushed again.
    pub fn poll_released(&mut self) -> Option<Vec<u8>> {
        let released = self.released.pop_front()?;
        self.held_bytes -= released.len();
        Some(released)
    }

    /// Forgets packets whose fragments took too long; returns how many held fragments were given up since the last
    /// call, for want of space too.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.forget_old(now);
        mem::take(&mut self.given_up)
    }

    /// Bytes of fragments that are held.
    pub const fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Fragments that are held, or were given up and not yet told by [`Self::expire`].
    pub fn waiting(&self) -> usize {
        let held: usize = self.packets.values().map(|packet| packet.held.len()).sum();
        held + self.released.len() + self.given_up
    }

    /// When the oldest packet is to be forgotten.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ages.first().map(|&(since, _)| since + WAIT)
    }

    fn hold(&mut self, key: Key, bytes: &[u8]) -> FragmentVerdict {
        let has_room = self.held_bytes + bytes.len() <= MAX_HELD;
        match self.packets.get_mut(&key) {
            Some(tracked) if has_room && tracked.held.len() < MAX_FRAGMENTS => {
                tracked.held.push(bytes.to_vec());
                self.held_bytes += bytes.len();
                FragmentVerdict::Held
            }
            _ => FragmentVerdict::Drop(DropReason::FragmentTimeout),
        }
    }

    fn make_room(&mut self, key: &Key) {
        if self.packets.len() < MAX_PACKETS || self.packets.contains_key(key) {
            return;
        }
        if let Some(&(_, oldest)) = self.ages.first() {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, key: Key) {
        self.drop_held(key);
        if let Some(tracked) = self.packets.remove(&key) {
            self.ages.remove(&(tracked.since, key));
        }
    }

    fn drop_held(&mut self, key: Key) {
        if let Some(tracked) = self.packets.get_mut(&key) {
            let held = mem::take(&mut tracked.held);
            self.held_bytes -= held.iter().map(Vec::len).sum::<usize>();
            self.given_up += held.len();
        }
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(&(since, key)) = self.ages.first()
            && since + WAIT <= now
        {
            self.forget(key);
        }
    }
}

impl Tracked {
    const fn new(since: Instant) -> Self {
        Self {
            since,
            tuple: None,
            end: None,
            ranges: Vec::new(),
            held: Vec::new(),
            overlaps: false,
        }
    }

    /// Takes a range unless it touches another, reaches beyond the end, or the packet had such a one.
    fn take(&mut self, from: usize, to: usize, more: bool) -> bool {
        let is_last = !more;
        let touches = self
            .ranges
            .iter()
            .any(|&(other_from, other_to)| from < other_to && other_from < to);
        let beyond = self.end.is_some_and(|end| to > end || is_last)
            || (is_last && self.ranges.iter().any(|&(_, other)| other > to));
        if self.overlaps || touches || beyond || from == to || self.ranges.len() >= MAX_FRAGMENTS {
            return false;
        }
        self.ranges.push((from, to));
        if is_last {
            self.end = Some(to);
        }
        true
    }

    /// Ranges do not overlap, so the packet is whole when they add up to its end.
    fn is_whole(&self) -> bool {
        let sum = self
            .ranges
            .iter()
            .map(|(from, to)| to - from)
            .sum::<usize>();
        self.held.is_empty() && self.end == Some(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{packet::put_ip_len, protocol, sample};

    fn base() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    /// A fragment of a UDP datagram with the ports 5 and 6; offset in bytes.
    fn fragment(is_ipv6: bool, id: u16, offset: u16, len: usize, more: bool) -> Vec<u8> {
        let mut payload = vec![0; len];
        if offset == 0 {
            payload[..8].copy_from_slice(&[0, 5, 0, 6, 0, 100, 0, 0]);
        }
        if is_ipv6 {
            let mut header = vec![protocol::UDP, 0];
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend([0, 1]);
            header.extend(id.to_be_bytes());
            return sample::ip(true, 44, &[header, payload].concat());
        }
        let mut packet = sample::ip(false, protocol::UDP, &payload);
        packet[4..6].copy_from_slice(&id.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) | (u16::from(more) << 13)).to_be_bytes());
        put_ip_len(&mut packet);
        packet
    }

    fn push(fragments: &mut IpFragments, bytes: &[u8], now: Instant) -> FragmentVerdict {
        fragments.push(&Packet::new_checked(bytes).unwrap(), now)
    }

    fn flow(is_ipv6: bool) -> FragmentVerdict {
        let first = fragment(is_ipv6, 0, 0, 8, true);
        let tuple = Packet::new_checked(&first).unwrap().five_tuple();
        assert_eq!((tuple.source_port, tuple.destination_port), (5, 6));
        FragmentVerdict::Tuple(tuple)
    }

    const OVERLAP: FragmentVerdict = FragmentVerdict::Drop(DropReason::FragmentOverlap);

    #[test]
    fn later_fragments_have_the_tuple_of_their_first() {
        for is_ipv6 in [false, true] {
            let (mut fragments, now) = (IpFragments::new(), base());
            for (offset, more) in [(0, true), (32, false), (16, true)] {
                let bytes = fragment(is_ipv6, 1, offset, 16, more);
                assert_eq!(push(&mut fragments, &bytes, now), flow(is_ipv6));
            }
            assert!(fragments.packets.is_empty(), "a whole packet is forgotten");
        }
    }

    #[test]
    fn early_fragments_are_held_and_released_by_their_first() {
        let (mut fragments, now) = (IpFragments::new(), base());
        let early = [
            fragment(false, 1, 32, 16, false),
            fragment(false, 1, 16, 16, true),
        ];
        for bytes in &early {
            assert_eq!(push(&mut fragments, bytes, now), FragmentVerdict::Held);
            assert_eq!(fragments.poll_released(), None);
        }
        assert_eq!(
            push(&mut fragments, &fragment(false, 1, 0, 16, true), now),
            flow(false)
        );
        for bytes in early {
            assert_eq!(fragments.poll_released(), Some(bytes.clone()));
            assert_eq!(push(&mut fragments, &bytes, now), flow(false));
        }
        assert_eq!((fragments.poll_released(), fragments.held_bytes), (None, 0));
        assert!(fragments.packets.is_empty());
    }

    #[test]
    fn a_packet_that_is_no_fragment_has_its_own_tuple() {
        let bytes = sample::udp(false, [5, 6], &[0; 8]);
        assert_eq!(push(&mut IpFragments::new(), &bytes, base()), flow(false));
    }

    #[test]
    fn packets_are_told_apart() {
        let (mut fragments, now) = (IpFragments::new(), base());
        assert_eq!(
            push(&mut fragments, &fragment(false, 1, 0, 16, true), now),
            flow(false)
        );
        let mut others = [
            fragment(false, 2, 16, 16, true),
            fragment(false, 1, 16, 16, true),
            fragment(false, 1, 16, 16, true),
        ];
        others[1][9] = 99;
        others[2][15] = 99;
        for bytes in others {
            assert_eq!(push(&mut fragments, &bytes, now), FragmentVerdict::Held);
        }
        // In IPv6 the fragments of a packet may name different headers (RFC 8200 §4.5).
        assert_eq!(
            push(&mut fragments, &fragment(true, 1, 0, 16, true), now),
            flow(true)
        );
        let mut later = fragment(true, 1, 16, 16, true);
        later[40] = 60;
        assert_eq!(push(&mut fragments, &later, now), flow(true));
    }

    #[test]
    fn overlap_drops_the_rest_of_the_packet() {
        let overlapping = [
            (0, 16, true),
            (16, 16, true),
            (24, 16, true),
            (16, 24, true),
            (48, 16, true),
            (48, 8, false),
        ];
        for (offset, len, more) in overlapping {
            let (mut fragments, now) = (IpFragments::new(), base());
            for (offset, more) in [(0, true), (16, true), (32, true)] {
                push(&mut fragments, &fragment(false, 1, offset, 16, more), now);
            }
            let beyond = offset == 48;
            if beyond {
                assert_eq!(
                    push(&mut fragments, &fragment(false, 1, 56, 8, false), now),
                    flow(false)
                );
            }
            assert_eq!(
                push(&mut fragments, &fragment(false, 1, offset, len, more), now),
                OVERLAP,
                "{offset}"
            );
            let rest = fragment(false, 1, 48, 8, true);
            assert_eq!(push(&mut fragments, &rest, now), OVERLAP, "{offset}");
            assert_eq!(
                push(&mut fragments, &rest, now + WAIT),
                FragmentVerdict::Held,
                "all is forgotten"
            );
        }
    }

    #[test]
    fn an_end_before_what_came_is_an_overlap() {
        let (mut fragments, now) = (IpFragments::new(), base());
        push(&mut fragments, &fragment(false, 1, 0, 16, true), now);
        assert_eq!(
            push(&mut fragments, &fragment(false, 1, 64, 16, true), now),
            flow(false)
        );
        assert_eq!(
            push(&mut fragments, &fragment(false, 1, 16, 16, false), now),
            OVERLAP
        );
    }

    #[test]
    fn overlap_among_held_fragments_is_found_when_they_are_released() {
        let (mut fragments, now) = (IpFragments::new(), base());
        for _ in 0..2 {
            assert_eq!(
                push(&mut fragments, &fragment(false, 1, 16, 16, true), now),
                FragmentVerdict::Held
            );
        }
        push(&mut fragments, &fragment(false, 1, 0, 16, true), now);
        let released: Vec<_> = std::iter::from_fn(|| fragments.poll_released()).collect();
        let verdicts: Vec<_> = released
            .iter()
            .map(|bytes| push(&mut fragments, bytes, now))
            .collect();
        assert_eq!(verdicts, [flow(false), OVERLAP]);
    }

    #[test]
    fn held_fragments_are_bounded_in_time() {
        let (mut fragments, now) = (IpFragments::new(), base());
        push(&mut fragments, &fragment(false, 1, 16, 16, true), now);
        push(
            &mut fragments,
            &fragment(false, 2, 16, 16, true),
            now + WAIT / 2,
        );
        assert_eq!(fragments.poll_timeout(), Some(now + WAIT));
        assert_eq!(fragments.expire(now + WAIT), 1);
        assert_eq!(
            push(&mut fragments, &fragment(false, 1, 0, 16, true), now + WAIT),
            flow(false)
        );
        assert_eq!(fragments.poll_released(), None);
        assert_eq!(fragments.expire(now + WAIT * 3), 1);
        assert_eq!((fragments.held_bytes, fragments.poll_timeout()), (0, None));
    }

    #[test]
    fn held_fragments_are_bounded_in_bytes() {
        let (mut fragments, now) = (IpFragments::new(), base());
        let verdicts: Vec<_> = (0..5)
            .map(|id| push(&mut fragments, &fragment(false, id, 16, 16_000, true), now))
            .collect();
        assert_eq!(verdicts[3], FragmentVerdict::Held);
        assert_eq!(
            verdicts[4],
            FragmentVerdict::Drop(DropReason::FragmentTimeout)
        );
        assert_eq!(fragments.held_bytes, 4 * 16_020);
    }

    #[test]
    fn tracked_packets_are_bounded() {
        let (mut fragments, now) = (IpFragments::new(), base());
        for id in 0..1_100 {
            push(
                &mut fragments,
                &fragment(false, id, 16, 8, true),
                now + Duration::from_micros(id.into()),
            );
        }
        assert_eq!(fragments.packets.len(), MAX_PACKETS);
        assert_eq!(fragments.expire(now), 1_100 - MAX_PACKETS);
        assert_eq!(fragments.held_bytes, MAX_PACKETS * 28);
    }

    proptest! {
        #[test]
        fn in_any_order_each_fragment_passes_once(order in Just((0..6_u16).collect::<Vec<_>>()).prop_shuffle(), is_ipv6: bool) {
            let (mut fragments, now) = (IpFragments::new(), base());
            let mut passed = 0;
            for index in order {
                let bytes = fragment(is_ipv6, 1, index * 16, 16, index < 5);
                let mut next = Some(bytes);
                while let Some(bytes) = next {
                    let verdict = push(&mut fragments, &bytes, now);
                    if verdict != FragmentVerdict::Held {
                        prop_assert_eq!(verdict, flow(is_ipv6));
                        passed += 1;
                    }
                    next = fragments.poll_released();
                }
            }
            prop_assert_eq!((passed, fragments.held_bytes, fragments.packets.len()), (6, 0, 0));
        }

        #[test]
        fn what_passes_never_overlaps_and_bounds_hold(
            pieces in prop::collection::vec((0..3_u16, 0..12_u16, 1..5_usize, any::<bool>(), 0..300_u64), 0..100),
        ) {
            let (mut fragments, mut now) = (IpFragments::new(), base());
            for (id, offset, len, more, wait) in pieces {
                now += Duration::from_millis(wait);
                let mut next = Some(fragment(false, id, offset * 8, len * 8, more || offset == 0));
                while let Some(bytes) = next {
                    push(&mut fragments, &bytes, now);
                    next = fragments.poll_released();
                }
                let held: usize = fragments.packets.values().flat_map(|tracked| &tracked.held).map(Vec::len).sum();
                prop_assert_eq!(held, fragments.held_bytes);
                let mut ages: Vec<_> = fragments.packets.iter().map(|(key, tracked)| (tracked.since, *key)).collect();
                ages.sort_unstable();
                prop_assert_eq!(ages, fragments.ages.iter().copied().collect::<Vec<_>>());
                for tracked in fragments.packets.values() {
                    let mut ranges = tracked.ranges.clone();
                    ranges.sort_unstable();
                    prop_assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
                }
            }
        }
    }
}
