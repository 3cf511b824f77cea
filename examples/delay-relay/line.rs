//! A line between two sides, without IO and without a clock: what goes in comes out after its delay, or never, or twice.
//!
//! Every direction has a line of its own. It is told by which of a packet's two addresses is the larger: both directions
//! come through one TUN, and what goes there and what comes back differ in nothing else. Chances are drawn from a
//! direction's own generator, four for each wire packet whatever is asked, so that the same packets in one direction
//! meet the same fate for a seed, however the two directions mix and whatever else is switched on.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    fmt,
    time::{Duration, Instant},
};

use identun::wire::{
    datagram::{PARTIAL_CHECKSUM, PREFIX_LEN},
    packet::Packet,
    segment::{CutLimits, DatagramBatch, cut},
    virtio::{PLAIN_HEADER, SuperPacket, VIRTIO_HEADER_LEN, offload_header},
};

/// What Ethernet puts around an IP packet on a wire: preamble, header, checksum and gap.
pub(crate) const ETHERNET: usize = 38;
/// What the line may hold in all. A full line is a named drop: the relay's memory is bounded whatever the delay.
const MAX_HELD: usize = 256 << 20;
/// A reordered packet stays behind for its delay once more, and at least this.
const LEAST_HOLD_BACK: Duration = Duration::from_millis(1);
/// Nothing is cut because it is too large, only because it is a super-packet.
const NO_LIMITS: CutLimits = CutLimits {
    inner: usize::MAX >> 1,
    fragment: false,
    partial_checksum: true,
};

/// What the line does to packets, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Impairment {
    /// Added to every packet.
    pub(crate) delay: Duration,
    /// At most this is added on top, evenly spread; the order stays.
    pub(crate) jitter: Duration,
    /// Chance of a wire packet to be lost, 0 to 1.
    pub(crate) loss: f64,
    /// Chance of a wire packet to be overtaken.
    pub(crate) reorder: f64,
    /// Chance of a wire packet to arrive twice.
    pub(crate) duplicate: f64,
    /// The speed, and what may wait for the line.
    pub(crate) rate: Option<Rate>,
    /// Where all chance begins.
    pub(crate) seed: u64,
}

/// A line that takes one wire packet after the other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Rate {
    /// Bits a second on the wire, [`ETHERNET`] included.
    pub(crate) bits_per_second: u64,
    /// Bytes that may wait; what comes on top is dropped.
    pub(crate) queue: usize,
}

/// What happened to packets. A super-packet that is kept whole counts as one.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Counters {
    /// Frames taken from the device.
    pub(crate) frames: u64,
    /// Bytes of these, without their virtio-net headers.
    pub(crate) bytes: u64,
    /// Wire packets these were; equal to `frames` unless super-packets are cut.
    pub(crate) packets: u64,
    /// Packets lost by chance.
    pub(crate) lost: u64,
    /// Packets that came twice by chance.
    pub(crate) duplicated: u64,
    /// Packets held back by chance.
    pub(crate) reordered: u64,
    /// Packets that found the queue before the line full.
    pub(crate) queue_full: u64,
    /// Packets that found the relay's memory full.
    pub(crate) memory_full: u64,
    /// Multicast, which routers do not forward: the TUN's own announcements.
    pub(crate) ignored: u64,
}

/// See the module.
pub(crate) struct Line {
    impairment: Impairment,
    /// What is asked for concerns single packets.
    cuts: bool,
    directions: [Direction; 2],
    held: BinaryHeap<Reverse<Held>>,
    held_bytes: usize,
    next_number: u64,
    batch: DatagramBatch,
    counters: Counters,
}

impl Line {
    /// An empty line.
    pub(crate) fn new(impairment: Impairment) -> Self {
        let chance = impairment.loss + impairment.reorder + impairment.duplicate;
        let direction = |number| Direction {
            chance: Chance(impairment.seed.wrapping_mul(2).wrapping_add(number)),
            free_at: None,
            last_due: None,
        };
        Self {
            impairment,
            cuts: chance > 0.0 || impairment.rate.is_some(),
            directions: [direction(0), direction(1)],
            held: BinaryHeap::new(),
            held_bytes: 0,
            next_number: 0,
            batch: DatagramBatch::default(),
            counters: Counters::default(),
        }
    }

    /// Takes one frame, virtio-net header and packet, that the device gave at `now`.
    pub(crate) fn handle_frame(&mut self, frame: &[u8], now: Instant) {
        let bytes = frame.get(VIRTIO_HEADER_LEN..).unwrap_or_default();
        if is_multicast(bytes) {
            self.counters.ignored += 1;
            return;
        }
        self.counters.frames += 1;
        self.counters.bytes += u64::try_from(bytes.len()).unwrap_or_default();
        let direction = direction_of(bytes);
        if !self.cuts || !self.cut(frame) {
            return self.handle_packet(frame.to_vec(), direction, now);
        }
        let mut batch = std::mem::take(&mut self.batch);
        for datagram in batch.drain() {
            self.handle_packet(wire_packet(&datagram), direction, now);
        }
        self.batch = batch;
    }

    /// The next frame whose time has come.
    pub(crate) fn poll_due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse(held) = self.held.pop()?;
        self.held_bytes -= held.frame.len();
        Some(held.frame)
    }

    /// When the next frame's time comes.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse(held)| held.due)
    }

    /// What happened so far.
    pub(crate) const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Packets on the line now.
    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Cuts a super-packet into the batch; false for what stays as it is.
    fn cut(&mut self, frame: &[u8]) -> bool {
        SuperPacket::decode(frame).is_ok_and(|packet| {
            packet.gso.is_some() && cut(&packet, &NO_LIMITS, &mut 0, &mut self.batch).is_ok()
        })
    }

    fn handle_packet(&mut self, frame: Vec<u8>, direction: usize, now: Instant) {
        self.counters.packets += 1;
        let asked = self.impairment;
        let Some(way) = self.directions.get_mut(direction) else {
            return;
        };
        let jitter = asked.jitter.mul_f64(way.chance.draw());
        let is_lost = way.chance.draw() < asked.loss;
        let is_duplicated = way.chance.draw() < asked.duplicate;
        let is_reordered = way.chance.draw() < asked.reorder;
        let Some(sent) = way.serialise(
            frame.len().saturating_sub(VIRTIO_HEADER_LEN),
            asked.rate,
            now,
        ) else {
            self.counters.queue_full += 1;
            return;
        };
        if is_lost {
            self.counters.lost += 1;
            return;
        }
        let mut due = way.in_order(sent + asked.delay + jitter);
        if is_reordered {
            self.counters.reordered += 1;
            due += asked.delay.max(LEAST_HOLD_BACK);
        }
        if is_duplicated {
            self.counters.duplicated += 1;
            self.hold(frame.clone(), due);
        }
        self.hold(frame, due);
    }

    fn hold(&mut self, frame: Vec<u8>, due: Instant) {
        if self.held_bytes + frame.len() > MAX_HELD {
            self.counters.memory_full += 1;
            return;
        }
        self.held_bytes += frame.len();
        self.held.push(Reverse(Held {
            due,
            number: self.next_number,
            frame,
        }));
        self.next_number += 1;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "frames={} bytes={} packets={} lost={} duplicated={} reordered={} queue_full={} memory_full={} ignored={}",
            self.frames,
            self.bytes,
            self.packets,
            self.lost,
            self.duplicated,
            self.reordered,
            self.queue_full,
            self.memory_full,
            self.ignored
        )
    }
}

/// One of the two ways.
struct Direction {
    chance: Chance,
    /// When the line has sent what was given to it.
    free_at: Option<Instant>,
    /// When the latest packet that kept its place arrives.
    last_due: Option<Instant>,
}

impl Direction {
    /// When the last bit of a packet has left; `None` when the queue has no room for it.
    fn serialise(&mut self, len: usize, rate: Option<Rate>, now: Instant) -> Option<Instant> {
        let Some(rate) = rate else { return Some(now) };
        let start = self.free_at.map_or(now, |free_at| free_at.max(now));
        let wire = len + ETHERNET;
        let room = time_of(rate.queue.saturating_sub(wire), rate.bits_per_second);
        // A packet that need not wait goes whatever the queue.
        if start > now && start.duration_since(now) > room {
            return None;
        }
        let end = start + time_of(wire, rate.bits_per_second);
        self.free_at = Some(end);
        Some(end)
    }

    /// Not before the packet in front.
    fn in_order(&mut self, due: Instant) -> Instant {
        let due = self.last_due.map_or(due, |last| last.max(due));
        self.last_due = Some(due);
        due
    }
}

/// How long a line is busy with `bytes`, rounded up: a line is never faster than it says.
fn time_of(bytes: usize, bits_per_second: u64) -> Duration {
    let bits = bytes as u128 * 8;
    let nanos = (bits * 1_000_000_000).div_ceil(u128::from(bits_per_second.max(1)));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// A generator of even chances: the state of splitmix64.
struct Chance(u64);

impl Chance {
    /// At least 0, less than 1.
    fn draw(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The 53 bits that such a number can hold.
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A frame on the line. The heap has the earliest on top, of two with one time the one that came first.
struct Held {
    due: Instant,
    number: u64,
    frame: Vec<u8>,
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

/// 0 or 1; see the module. What is no IP packet goes one way.
fn direction_of(packet: &[u8]) -> usize {
    let addresses = match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(12..20),
        Some(6) => packet.get(8..40),
        _ => None,
    };
    addresses
        .and_then(|both| both.split_at_checked(both.len() / 2))
        .map_or(0, |(source, destination)| usize::from(source > destination))
}

fn is_multicast(packet: &[u8]) -> bool {
    match packet.first().map(|first| first >> 4) {
        Some(4) => packet.get(16).is_some_and(|byte| byte >> 4 == 0xe),
        Some(6) => packet.get(24) == Some(&0xff),
        _ => false,
    }
}

/// The frame of a packet that was cut out of a super-packet.
fn wire_packet(datagram: &[u8]) -> Vec<u8> {
    let (prefix, packet) = datagram
        .split_at_checked(PREFIX_LEN)
        .unwrap_or((&[], datagram));
    let is_partial = prefix.last() == Some(&PARTIAL_CHECKSUM);
    let header = match Packet::new_checked(packet) {
        Ok(packet) if is_partial => offload_header(&packet, None),
        _ => PLAIN_HEADER,
    };
    [&header, packet].concat()
}

#[cfg(test)]
mod tests;
