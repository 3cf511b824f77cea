//! Tracks inner IP fragments (wire.md §6): what is decided for the first one holds for all of its packet.
//!
//! Fragments that come before their first are held. Overlap, which is how a second packet hides behind the checked
//! first one, drops everything of the packet that is still to come (RFC 5722), so that it never becomes whole.

use std::{
    collections::{BTreeMap, VecDeque},
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
        let tracked = self.packets.entry(key).or_insert_with(|| Tracked::new(now));
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
            self.packets.remove(&key);
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

    /// When the oldest packet is to be forgotten.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.packets
            .values()
            .map(|tracked| tracked.since + WAIT)
            .min()
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
        let oldest = self
            .packets
            .iter()
            .min_by_key(|(_, tracked)| tracked.since)
            .map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            self.drop_held(oldest);
            self.packets.remove(&oldest);
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
        let Self {
            packets,
            held_bytes,
            given_up,
            ..
        } = self;
        packets.retain(|_, tracked| {
            let stays = tracked.since + WAIT > now;
            if !stays {
                *held_bytes -= tracked.held.iter().map(Vec::len).sum::<usize>();
                *given_up += tracked.held.len();
            }
            stays
        });
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
