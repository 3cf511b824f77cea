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
        let mut place = at.unwrap_or(self.packets.len());
        while self.packets.len() >= MAX_PACKETS || self.bytes + packet.bytes > MAX_BYTES {
            let oldest = self
                .packets
                .pop_front()
                .ok_or(DropReason::FragmentTimeout)?;
            self.bytes -= oldest.bytes;
            self.given_up += 1;
            place = place.saturating_sub(1);
        }
        self.bytes += packet.bytes;
        self.packets.insert(place, packet);
        Ok(None)
    }

    /// Gives up what stayed incomplete for too long; returns how many packets were given up since the last call, for
    /// want of space too.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.forget_old(now);
        mem::take(&mut self.given_up)
    }

    /// Bytes of incomplete packets.
    pub const fn bytes(&self) -> usize {
        self.bytes
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn base() -> Instant {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        Instant::now()
    }

    fn piece(id: u16, index: u8, count: u8, bytes: &[u8]) -> Fragment<'_> {
        Fragment {
            id,
            index,
            count,
            bytes,
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = header(0x1234, 14, 15);
        assert_eq!(bytes, [0, 2, 0x12, 0x34, 0xef]);
        let fragment = [&bytes[2..], b"x"].concat();
        let fragment = Fragment::decode(&fragment).unwrap();
        assert_eq!(
            (fragment.id, fragment.index, fragment.count, fragment.bytes),
            (0x1234, 14, 15, &b"x"[..])
        );
    }

    #[test]
    fn pieces_make_a_packet_in_any_order() {
        let now = base();
        let mut reassembler = Reassembler::default();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let pieces = [b"one", b"two", b"six"];
            let results = order.map(|at| {
                reassembler
                    .push(piece(1, at, 3, pieces[usize::from(at)]), now)
                    .unwrap()
            });
            assert_eq!(results, [None, None, Some(b"onetwosix".to_vec())]);
        }
        assert_eq!(
            (
                reassembler.bytes,
                reassembler.poll_timeout(),
                reassembler.expire(now + WAIT)
            ),
            (0, None, 0)
        );
    }

    #[test]
    fn packets_may_be_interleaved() {
        let now = base();
        let mut reassembler = Reassembler::default();
        assert_eq!(reassembler.push(piece(1, 0, 2, b"a"), now), Ok(None));
        assert_eq!(reassembler.push(piece(2, 1, 2, b"d"), now), Ok(None));
        assert_eq!(
            reassembler.push(piece(1, 1, 2, b"b"), now),
            Ok(Some(b"ab".to_vec()))
        );
        assert_eq!(
            reassembler.push(piece(2, 0, 2, b"c"), now),
            Ok(Some(b"cd".to_vec()))
        );
    }

    #[test]
    fn what_is_missing_is_given_up_in_time() {
        let now = base();
        let mut reassembler = Reassembler::default();
        reassembler.push(piece(1, 0, 2, b"a"), now).unwrap();
        reassembler
            .push(piece(2, 0, 2, b"a"), now + Duration::from_millis(10))
            .unwrap();
        assert_eq!(reassembler.poll_timeout(), Some(now + WAIT));
        assert_eq!(reassembler.expire(now + WAIT - Duration::from_nanos(1)), 0);
        assert_eq!(reassembler.expire(now + WAIT), 1);
        // Too late: the piece waits for a first one that never comes again.
        assert_eq!(reassembler.push(piece(1, 1, 2, b"b"), now + WAIT), Ok(None));
        assert_eq!(reassembler.expire(now + WAIT * 3), 2);
        assert_eq!((reassembler.bytes, reassembler.poll_timeout()), (0, None));
    }

    #[test]
    fn a_later_piece_does_not_prolong_the_wait() {
        let now = base();
        let mut reassembler = Reassembler::default();
        reassembler.push(piece(1, 0, 3, b"a"), now).unwrap();
        reassembler
            .push(piece(1, 1, 3, b"b"), now + Duration::from_millis(99))
            .unwrap();
        assert_eq!(reassembler.poll_timeout(), Some(now + WAIT));
        assert_eq!(reassembler.push(piece(1, 2, 3, b"c"), now + WAIT), Ok(None));
    }

    #[test]
    fn duplicates_and_disagreement_drop_the_packet() {
        let now = base();
        for second in [
            piece(1, 0, 3, b"a"),
            piece(1, 0, 3, b"x"),
            piece(1, 1, 2, b"b"),
            piece(1, 1, 4, b"b"),
        ] {
            let mut reassembler = Reassembler::default();
            reassembler.push(piece(1, 0, 3, b"a"), now).unwrap();
            assert_eq!(reassembler.push(second, now), Err(DropReason::BadFragment));
            assert_eq!(reassembler.bytes, 0);
            assert_eq!(reassembler.push(piece(1, 1, 3, b"b"), now), Ok(None));
            assert_eq!(
                reassembler.push(piece(1, 2, 3, b"c"), now),
                Ok(None),
                "the first piece is gone"
            );
        }
    }

    #[test]
    fn a_packet_longer_than_ip_allows_is_dropped() {
        let (now, half) = (base(), vec![0; 40_000]);
        let mut reassembler = Reassembler::default();
        reassembler.push(piece(1, 0, 2, &half), now).unwrap();
        assert_eq!(
            reassembler.push(piece(1, 1, 2, &half), now),
            Err(DropReason::BadFragment)
        );
        assert_eq!(reassembler.bytes, 0);
    }

    #[test]
    fn the_oldest_gives_way_when_there_is_no_room() {
        let (now, large) = (base(), vec![0; 60_000]);
        let mut reassembler = Reassembler::default();
        for id in 0..5 {
            assert_eq!(reassembler.push(piece(id, 0, 2, &large), now), Ok(None));
            assert!(reassembler.bytes <= MAX_BYTES);
        }
        assert_eq!(reassembler.expire(now), 1);
        assert_eq!(
            reassembler
                .push(piece(4, 1, 2, b"b"), now)
                .map(|packet| packet.map(|packet| packet.len())),
            Ok(Some(60_001))
        );
        let mut reassembler = Reassembler::default();
        for id in 0..300 {
            assert_eq!(reassembler.push(piece(id, 0, 2, b"a"), now), Ok(None));
        }
        assert_eq!(
            (reassembler.packets.len(), reassembler.expire(now)),
            (MAX_PACKETS, 44)
        );
    }

    proptest! {
        #[test]
        fn bounds_and_sums_hold_whatever_comes(
            pieces in prop::collection::vec((0..20_u16, 0..15_u8, 2..16_u8, 0..40_000_usize, 0..30_u64), 0..200),
        ) {
            let mut reassembler = Reassembler::default();
            let mut now = base();
            for (id, index, count, len, wait) in pieces {
                now += Duration::from_millis(wait);
                let bytes = vec![0; len];
                let result = reassembler.push(piece(id, index % count, count, &bytes), now);
                if let Ok(Some(packet)) = result {
                    prop_assert!(packet.len() <= MAX_PACKET);
                }
                let sum: usize = reassembler.packets.iter().map(|packet| packet.bytes).sum();
                prop_assert_eq!(reassembler.bytes, sum);
                prop_assert!(sum <= MAX_BYTES && reassembler.packets.len() <= MAX_PACKETS);
                prop_assert!(reassembler.poll_timeout().is_none_or(|timeout| timeout > now));
                prop_assert!(reassembler.packets.iter().is_sorted_by_key(|packet| packet.since));
            }
        }
    }
}
