//! What waits in front of quinn: datagrams by inner flow, fair among them, each flow kept from standing (RFC 8290).
//!
//! A flow that sends now and then goes before those that always have something waiting, which take turns by bytes. So a
//! ping, a new connection or a request waits for none of the bulk that the session carries beside it. A queue that stands
//! loses packets by CoDel, or has them marked where the inner packet can be (ECN, RFC 3168).

mod codel;

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;

use crate::wire::datagram::congestion_experienced;
use codel::Codel;

/// Flows are told apart by their hash modulo 256. Buckets come in groups of so many, the first time that one is needed: most
/// sessions have few flows.
const GROUP: usize = 8;
const GROUPS: usize = 256 / GROUP;
/// What a flow may send in its turn, in bytes: a few datagrams, so that the receiver finds something to join.
const QUANTUM: i64 = 6_000;
/// A queue of no more than this does not stand: two datagrams of a usual path, in bytes.
const SHORT: usize = 3_000;
/// How many datagrams the longest queue loses at once when there is no room (RFC 8290 §4.1.3), at most half of it.
const LOST_AT_ONCE: usize = 64;
/// The end of a list of nodes.
const NONE: u32 = u32::MAX;

/// What a queue could not deliver, or delivered with a mark.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Losses {
    /// There was no room.
    pub(super) full: u64,
    /// It waited too long.
    pub(super) late: u64,
    /// The path became narrower while it waited.
    pub(super) too_big: u64,
    /// The session ended.
    pub(super) ended: u64,
    /// Marked in place of being lost.
    pub(super) marked: u64,
}

impl Losses {
    /// None.
    pub(super) const NONE: Self = Self {
        full: 0,
        late: 0,
        too_big: 0,
        ended: 0,
        marked: 0,
    };

    /// Everything so far; what follows counts from nothing.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// How many are lost.
    pub(super) const fn sum(&self) -> u64 {
        self.full + self.late + self.too_big + self.ended
    }

    /// Adds others.
    pub(super) const fn add(&mut self, other: Self) {
        self.full += other.full;
        self.late += other.late;
        self.too_big += other.too_big;
        self.ended += other.ended;
        self.marked += other.marked;
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct FairQueue {
    bound: usize,
    bytes: usize,
    buckets: Buckets,
    /// Buckets that had nothing waiting until lately; they go first.
    fresh: VecDeque<u8>,
    /// Buckets that take turns.
    turns: VecDeque<u8>,
    /// Every datagram, in lists that begin at a bucket or at `free`.
    nodes: Vec<Node>,
    free: u32,
    losses: Losses,
}

#[derive(Clone, Debug)]
struct Bucket {
    first: u32,
    last: u32,
    len: usize,
    bytes: usize,
    credit: i64,
    waits: bool,
    codel: Codel,
}

/// The 256 buckets, as far as they were ever needed; nothing before the first datagram, as idle sessions are many.
#[derive(Debug, Default)]
struct Buckets(Vec<Option<Box<[Bucket; GROUP]>>>);

#[derive(Debug)]
struct Node {
    datagram: Bytes,
    since: Instant,
    next: u32,
}

impl Bucket {
    const EMPTY: Self = Self {
        first: NONE,
        last: NONE,
        len: 0,
        bytes: 0,
        credit: 0,
        waits: false,
        codel: Codel::NEW,
    };
}

impl Buckets {
    const NONE: Self = Self(Vec::new());

    /// A bucket that was needed before.
    fn get_mut(&mut self, index: u8) -> Option<&mut Bucket> {
        let group = self.0.get_mut(usize::from(index) / GROUP)?.as_deref_mut()?;
        group.get_mut(usize::from(index) % GROUP)
    }

    /// Any bucket.
    fn make(&mut self, index: u8) -> Option<&mut Bucket> {
        if self.0.is_empty() {
            self.0.resize_with(GROUPS, || None);
        }
        let group = self.0.get_mut(usize::from(index) / GROUP)?;
        group
            .get_or_insert_with(|| Box::new([Bucket::EMPTY; GROUP]))
            .get_mut(usize::from(index) % GROUP)
    }

    /// Those that were ever needed, with their numbers.
    fn iter(&self) -> impl Iterator<Item = (u8, &Bucket)> {
        let firsts = (0..=u8::MAX).step_by(GROUP);
        firsts.zip(&self.0).flat_map(|(first, group)| {
            (first..=u8::MAX).zip(group.as_deref().into_iter().flatten())
        })
    }
}

impl FairQueue {
    /// An empty queue for at most `bound` bytes of datagrams.
    pub(super) const fn new(bound: usize) -> Self {
        Self {
            bound,
            bytes: 0,
            buckets: Buckets::NONE,
            fresh: VecDeque::new(),
            turns: VecDeque::new(),
            nodes: Vec::new(),
            free: NONE,
            losses: Losses::NONE,
        }
    }

    /// Bytes that wait.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Datagrams that wait.
    pub(super) fn len(&self) -> usize {
        self.buckets.iter().map(|(_, bucket)| bucket.len).sum()
    }

    /// Nothing waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What was lost since the last call of [`Losses::take`].
    pub(super) const fn losses_mut(&mut self) -> &mut Losses {
        &mut self.losses
    }

    /// Gives up what waits, and all memory.
    pub(super) fn clear(&mut self) {
        let waiting = self.len();
        let losses = self.losses;
        *self = Self::new(self.bound);
        self.losses = losses;
        self.losses.ended += waiting as u64;
    }

    /// Adds a datagram of the flow with this hash. Where there is no room, the longest queue loses its oldest.
    pub(super) fn push(&mut self, flow: u32, datagram: Bytes, now: Instant) {
        if datagram.is_empty() || datagram.len() > self.bound {
            self.losses.full += 1;
            return;
        }
        while self.bytes + datagram.len() > self.bound {
            self.lose_of_the_longest();
        }
        let len = datagram.len();
        let node = self.node(datagram, now);
        let [_, _, _, index] = flow.to_be_bytes();
        let Some(bucket) = self.buckets.make(index) else {
            return;
        };
        match self.nodes.get_mut(bucket.last as usize) {
            Some(last) => last.next = node,
            None => bucket.first = node,
        }
        bucket.last = node;
        bucket.len += 1;
        bucket.bytes += len;
        self.bytes += len;
        if !bucket.waits {
            bucket.waits = true;
            bucket.credit = QUANTUM;
            self.fresh.push_back(index);
        }
    }

    /// The next datagram, unless CoDel takes it and all others.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Bytes> {
        loop {
            let (index, is_fresh) = match (self.fresh.front(), self.turns.front()) {
                (Some(&index), _) => (index, true),
                (None, Some(&index)) => (index, false),
                (None, None) => return None,
            };
            let bucket = self.buckets.get_mut(index)?;
            if bucket.credit <= 0 {
                bucket.credit += QUANTUM;
                self.leave(is_fresh);
                self.turns.push_back(index);
                continue;
            }
            match self.take(index, now) {
                Some(datagram) => {
                    if let Some(bucket) = self.buckets.get_mut(index) {
                        bucket.credit -= i64::try_from(datagram.len()).unwrap_or(QUANTUM);
                    }
                    return Some(datagram);
                }
                // A flow that was fresh waits for one more turn, or sending one packet at a time it would always go
                // first (RFC 8290 §4.2).
                None => {
                    self.leave(is_fresh);
                    if is_fresh && !self.turns.is_empty() {
                        self.turns.push_back(index);
                    } else if let Some(bucket) = self.buckets.get_mut(index) {
                        bucket.waits = false;
                    }
                }
            }
        }
    }

    fn leave(&mut self, is_fresh: bool) {
        let list = if is_fresh {
            &mut self.fresh
        } else {
            &mut self.turns
        };
        list.pop_front();
    }

    /// The oldest datagram of a bucket that may stay.
    fn take(&mut self, index: u8, now: Instant) -> Option<Bytes> {
        loop {
            let (datagram, since) = self.unlink(index)?;
            let bucket = self.buckets.get_mut(index)?;
            let delay = now.saturating_duration_since(since);
            if !bucket.codel.must_drop(delay, bucket.bytes < SHORT, now) {
                return Some(datagram);
            }
            match congestion_experienced(&datagram) {
                Some(marked) => {
                    self.losses.marked += 1;
                    return Some(marked);
                }
                None => self.losses.late += 1,
            }
        }
    }

    fn unlink(&mut self, index: u8) -> Option<(Bytes, Instant)> {
        let bucket = self.buckets.get_mut(index)?;
        let number = bucket.first;
        let node = self.nodes.get_mut(number as usize)?;
        let datagram = std::mem::take(&mut node.datagram);
        let since = node.since;
        bucket.first = std::mem::replace(&mut node.next, self.free);
        self.free = number;
        if bucket.first == NONE {
            bucket.last = NONE;
        }
        bucket.len -= 1;
        bucket.bytes -= datagram.len();
        self.bytes -= datagram.len();
        Some((datagram, since))
    }

    fn node(&mut self, datagram: Bytes, since: Instant) -> u32 {
        let node = Node {
            datagram,
            since,
            next: NONE,
        };
        if let Some(slot) = self.nodes.get_mut(self.free as usize) {
            let number = self.free;
            self.free = slot.next;
            *slot = node;
            return number;
        }
        self.nodes.push(node);
        // INVARIANT: each node holds at least one byte, so their number is far below the bound in bytes.
        u32::try_from(self.nodes.len() - 1).unwrap_or(NONE)
    }

    fn lose_of_the_longest(&mut self) {
        let longest = self.buckets.iter().max_by_key(|(_, bucket)| bucket.bytes);
        let Some((index, len)) = longest.map(|(index, bucket)| (index, bucket.len)) else {
            return;
        };
        for _ in 0..len.div_ceil(2).min(LOST_AT_ONCE) {
            if self.unlink(index).is_some() {
                self.losses.full += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const BOUND: usize = 1 << 20;

    fn start() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    /// A datagram with its flow and number in front.
    fn datagram(flow: u8, number: u32, len: usize) -> Bytes {
        let mut bytes = vec![flow; len.max(5)];
        bytes[1..5].copy_from_slice(&number.to_be_bytes());
        Bytes::from(bytes)
    }

    fn number(datagram: &[u8]) -> (u8, u32) {
        (
            datagram[0],
            u32::from_be_bytes(datagram[1..5].try_into().unwrap()),
        )
    }

    fn fill(queue: &mut FairQueue, flow: u8, count: u32, len: usize, now: Instant) {
        for at in 0..count {
            queue.push(flow.into(), datagram(flow, at, len), now);
        }
    }

    #[test]
    fn a_flow_keeps_its_order_and_everything_comes_out() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        for flow in 1..=9 {
            fill(&mut queue, flow, 30, 200 * usize::from(flow), now);
        }
        let mut next = [0_u32; 10];
        while let Some(datagram) = queue.pop(now) {
            let (flow, number) = number(&datagram);
            assert_eq!(next[usize::from(flow)], number);
            next[usize::from(flow)] += 1;
        }
        assert_eq!(next[1..], [30; 9]);
        assert!(queue.is_empty());
        assert_eq!(*queue.losses_mut(), Losses::NONE);
    }

    #[test]
    fn bulk_flows_share_by_bytes_whatever_the_size_of_their_packets() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        fill(&mut queue, 1, 400, 1_400, now);
        fill(&mut queue, 2, 4_000, 100, now);
        let mut bytes = [0; 3];
        while bytes[1] + bytes[2] < 300_000 {
            let datagram = queue.pop(now).unwrap();
            bytes[usize::from(number(&datagram).0)] += datagram.len();
        }
        let gap = bytes[1].abs_diff(bytes[2]);
        assert!(gap <= 2 * 6_000 + 1_400, "{bytes:?}");
    }

    #[test]
    fn what_comes_now_and_then_waits_for_no_bulk() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        for flow in 1..=4 {
            fill(&mut queue, flow, 100, 1_400, now);
        }
        for _ in 0..20 {
            queue.pop(now);
        }
        for at in 0..10 {
            queue.push(9, datagram(9, at, 64), now);
            assert_eq!(number(&queue.pop(now).unwrap()), (9, at));
            // less than one packet a round
            for _ in 0..30 {
                queue.pop(now);
            }
        }
    }

    #[test]
    fn a_flow_that_sends_one_packet_after_the_other_is_no_sparse_flow() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        fill(&mut queue, 1, 500, 1_400, now);
        let mut bulk = 0;
        for at in 0..500 {
            if queue.bytes() < 1_400 * 501 {
                queue.push(2, datagram(2, at, 1_400), now);
            }
            bulk += u32::from(number(&queue.pop(now).unwrap()).0 == 1);
        }
        assert!((200..=300).contains(&bulk), "{bulk} of 500");
    }

    #[test]
    fn the_longest_queue_makes_room() {
        let (mut queue, now) = (FairQueue::new(100_000), start());
        fill(&mut queue, 1, 10, 1_000, now);
        fill(&mut queue, 2, 500, 1_000, now);
        assert!(queue.bytes() <= 100_000);
        let losses = queue.losses_mut().take();
        assert!(losses.full >= 410);
        let left: Vec<_> = std::iter::from_fn(|| queue.pop(now)).collect();
        let of_one = left.iter().filter(|datagram| number(datagram).0 == 1);
        assert_eq!(of_one.count(), 10);
        assert_eq!(left.len() as u64 + losses.full, 510);
        assert_eq!(number(left.last().unwrap()), (2, 499));
    }

    #[test]
    fn only_the_flow_that_stands_loses_packets_and_those_of_ecn_are_marked() {
        let mut now = start();
        let mut queue = FairQueue::new(BOUND);
        let mut ecn = vec![0; 1_402];
        ecn[2] = 0x45;
        ecn[3] = 0b10;
        let ecn = Bytes::from(ecn);
        let mut marks = 0;
        for _ in 0..2_000 {
            now += Duration::from_millis(1);
            queue.push(1, datagram(1, 0, 1_400), now);
            queue.push(1, datagram(1, 0, 1_400), now);
            queue.push(2, ecn.clone(), now);
            queue.push(2, ecn.clone(), now);
            queue.push(3, datagram(3, 0, 64), now);
            for _ in 0..3 {
                let out = queue.pop(now).unwrap();
                marks += u64::from(out[0] == 0 && out[3] & 0b11 == 0b11);
            }
        }
        let losses = queue.losses_mut().take();
        assert!(losses.late > 20, "{losses:?}");
        assert!(losses.marked > 20 && marks == losses.marked, "{losses:?}");
        let left = std::iter::from_fn(|| queue.pop(now));
        assert!(left.filter(|datagram| datagram[0] == 3).count() <= 1);
    }

    #[test]
    fn few_flows_take_little_and_all_of_them_no_more_than_there_are_buckets() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        let groups = |queue: &FairQueue| queue.buckets.0.iter().flatten().count();
        assert_eq!(queue.buckets.0.capacity(), 0);
        for _ in 0..100 {
            fill(&mut queue, 200, 3, 100, now);
            while queue.pop(now).is_some() {}
        }
        assert_eq!(groups(&queue), 1);
        assert!(size_of::<Bucket>() * GROUP <= 1_024);
        for flow in 0..=u8::MAX {
            fill(&mut queue, flow, 1, 100, now);
        }
        assert_eq!(groups(&queue), GROUPS);
        let numbers = queue.buckets.iter().map(|(number, _)| number);
        assert!(numbers.eq(0..=u8::MAX));
        assert!(queue.buckets.iter().all(|(_, bucket)| bucket.len == 1));
    }

    #[test]
    fn memory_is_bounded_and_given_back() {
        let (mut queue, now) = (FairQueue::new(BOUND), start());
        for round in 0..50 {
            fill(&mut queue, round, 2_000, 1_000, now);
            while queue.pop(now).is_some() {}
        }
        assert!(queue.nodes.len() <= BOUND / 1_000 + 1);
        fill(&mut queue, 1, 3, 100, now);
        queue.clear();
        assert_eq!(queue.losses_mut().ended, 3);
        assert_eq!((queue.nodes.capacity(), queue.buckets.0.capacity()), (0, 0));
    }
}
