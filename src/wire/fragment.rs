//! FRAGMENT datagrams (wire.md §3.3): a packet in 2 to 15 pieces, reassembled within bounds.
//!
//! ```text
//! 00 02 | packet id(16) | index(4 bits) count(4 bits) | bytes
//! ```

use std::{
    collections::VecDeque,
    mem,
    time::{Duration, Instant},
};

use crate::wire::{DropReason, datagram};

/// Bytes in front of the piece, those of the datagram included.
pub const HEADER_LEN: usize = 5;
/// The most pieces of a packet.
pub const MAX_FRAGMENTS: u8 = 15;
/// The fewest.
const MIN_FRAGMENTS: u8 = 2;

/// Bytes that one session may have in incomplete packets.
const MAX_BYTES: usize = 256 * 1024;
/// Incomplete packets that one session may have.
const MAX_PACKETS: usize = 256;
/// How long a packet may stay incomplete.
const WAIT: Duration = Duration::from_millis(100);
/// The longest IP packet: an IPv6 header and its payload.
const MAX_PACKET: usize = 40 + 65_535;

/// One piece of a packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Which packet of the session.
    pub id: u16,
    /// Which piece, from 0.
    pub index: u8,
    /// How many pieces the packet has, 2 to 15.
    pub count: u8,
    /// The piece, not empty.
    pub bytes: &'a [u8],
}

impl<'a> Fragment<'a> {
    /// Reads what follows the context.
    ///
    /// # Errors
    /// [`DropReason::BadFragment`] for an impossible index, count or size.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, DropReason> {
        match bytes {
            &[high, low, place, ref bytes @ ..] => {
                let (index, count) = (place >> 4, place & 0x0f);
                let is_possible = (MIN_FRAGMENTS..=MAX_FRAGMENTS).contains(&count)
                    && index < count
                    && !bytes.is_empty();
                let id = u16::from_be_bytes([high, low]);
                is_possible
                    .then_some(Self {
                        id,
                        index,
                        count,
                        bytes,
                    })
                    .ok_or(DropReason::BadFragment)
            }
            _ => Err(DropReason::BadFragment),
        }
    }
}

/// What the datagram of piece `index` of `count` of packet `id` begins with.
pub const fn header(id: u16, index: u8, count: u8) -> [u8; HEADER_LEN] {
    let [zero, context] = datagram::prefix(datagram::FRAGMENT);
    let [high, low] = id.to_be_bytes();
    [zero, context, high, low, (index << 4) | (count & 0x0f)]
}

/// Puts the packets of one session together again: at most 256 KiB and 100 ms of incomplete ones, the oldest goes first.
#[derive(Debug, Default)]
pub struct Reassembler {
    /// Oldest first.
    packets: VecDeque<Incomplete>,
    bytes: usize,
    /// Packets that were given up and not yet reported.
    given_up: usize,
}

#[derive(Debug)]
struct Incomplete {
    id: u16,
    since: Instant,
    bytes: usize,
    pieces: Vec<Option<Box<[u8]>>>,
}

impl Reassembler {
    /// Takes one piece and returns the whole packet with the last one.
    ///
    /// # Errors
    /// [`DropReason::BadFragment`] when the piece is there already, disagrees about their number or makes the packet too
    /// long: the packet is dropped. [`DropReason::FragmentTimeout`] when there is no space.
    pub fn push(
        &mut self,
        fragment: Fragment<'_>,
        now: Instant,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        self.forget_old(now);
        let len = fragment.bytes.len();
        if len > MAX_BYTES {
            return Err(DropReason::BadFragment);
        }
        let at = self
            .packets
            .iter()
            .rposition(|packet| packet.id == fragment.id);
        let mut packet = match at.and_then(|at| self.packets.remove(at)) {
            Some(packet) => packet,
            None => Incomplete::new(&fragment, now),
        };
        self.bytes -= packet.bytes;
        packet.take(&fragment)?;
        if packet.pieces.iter().all(Option::is_some) {
            return Ok(Some(
                packet
                    .pieces
                    .into_iter()
                    .flatten()
                    .collect::<Vec<_>>()
                    .concat(),
            ));
        }
        while self.packets.len() >= MAX_PACKETS || self.bytes + packet.bytes > MAX_BYTES {
            let oldest = self
                .packets
                .pop_front()
                .ok_or(DropReason::FragmentTimeout)?;
            self.bytes -= oldest.bytes;
            self.given_up += 1;
        }
        self.bytes += packet.bytes;
        let place = at.map_or(self.packets.len(), |at| at.min(self.packets.len()));
        self.packets.insert(place, packet);
        Ok(None)
    }

    /// Gives up what stayed incomplete for too long; returns how many packets were given up since the last call, for
    /// want of space too.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.forget_old(now);
        mem::take(&mut self.given_up)
    }

    /// When the oldest incomplete packet is to be given up.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.packets.front().map(|oldest| oldest.since + WAIT)
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some(oldest) = self.packets.front()
            && oldest.since + WAIT <= now
        {
            self.bytes -= oldest.bytes;
            self.packets.pop_front();
            self.given_up += 1;
        }
    }
}

impl Incomplete {
    fn new(fragment: &Fragment<'_>, now: Instant) -> Self {
        let pieces = (0..fragment.count).map(|_| None).collect();
        Self {
            id: fragment.id,
            since: now,
            bytes: 0,
            pieces,
        }
    }

    fn take(&mut self, fragment: &Fragment<'_>) -> Result<(), DropReason> {
        let agrees = self.pieces.len() == usize::from(fragment.count);
        let place = self
            .pieces
            .get_mut(usize::from(fragment.index))
            .ok_or(DropReason::BadFragment)?;
        let bytes = self.bytes + fragment.bytes.len();
        if !agrees || place.is_some() || bytes > MAX_PACKET {
            return Err(DropReason::BadFragment);
        }
        *place = Some(fragment.bytes.into());
        self.bytes = bytes;
        Ok(())
    }
}
