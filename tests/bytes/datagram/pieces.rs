//! Datagrams and their pieces, made and read in plain loops.

use std::{collections::BTreeMap, time::Duration};

use identun::wire::DropReason;

use crate::segment::choices::Choices;

const WAIT: Duration = Duration::from_millis(100);
const MAX_BYTES: usize = 256 * 1_024;
const MAX_PILES: usize = 256;
const MAX_PACKET: usize = 65_575;

/// A datagram's context and what follows it, where it is what it says.
pub(crate) fn read(datagram: &[u8], flags: u64) -> Result<(u64, &[u8]), DropReason> {
    let [0, first, ..] = *datagram else {
        return Err(DropReason::BadDatagram);
    };
    let len = [1, 2, 4, 8][usize::from(first >> 6)];
    if datagram.len() < 1 + len {
        return Err(DropReason::BadDatagram);
    }
    let mut context = u64::from(first & 0x3f);
    for byte in &datagram[2..1 + len] {
        context = context << 8 | u64::from(*byte);
    }
    let rest = &datagram[1 + len..];
    let known = match context {
        0 => true,
        2 => flags & 1 != 0,
        4 => flags & 2 != 0,
        _ => false,
    };
    if !known {
        return Err(DropReason::UnknownContext);
    }
    if context == 2 {
        let possible = rest.len() > 3 && {
            let (index, count) = (rest[2] >> 4, rest[2] & 15);
            count >= 2 && index < count
        };
        return possible.then_some((2, rest)).ok_or(DropReason::BadFragment);
    }
    let version = rest.first().ok_or(DropReason::BadDatagram)? >> 4;
    let word = |at: usize| {
        let bytes = rest.get(at..at + 2);
        bytes.map(|bytes| usize::from(bytes[0]) * 256 + usize::from(bytes[1]))
    };
    let len = match version {
        4 if rest.len() >= 20 => word(2),
        6 if rest.len() >= 40 => word(4).map(|len| len + 40),
        4 | 6 => None,
        _ => return Err(DropReason::Malformed),
    };
    match len == Some(rest.len()) {
        true => Ok((context, rest)),
        false => Err(DropReason::LengthMismatch),
    }
}

/// The datagram of one piece.
pub(crate) fn datagram(id: u16, index: u8, count: u8, bytes: &[u8]) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    [&[0, 2, high, low, index << 4 | count], bytes].concat()
}

/// A packet in pieces, most often all of them once.
pub(crate) fn cut(choices: &mut Choices<'_>, packet: &[u8]) -> Vec<Vec<u8>> {
    let count = 2 + choices.below(14);
    let id = choices.below(4) as u16;
    let room = packet.len().div_ceil(count).max(1);
    let mut all: Vec<_> = packet
        .chunks(room)
        .zip(0..)
        .map(|(bytes, index)| (index, bytes))
        .collect();
    let count = all.len() as u8;
    match choices.below(8) {
        1 => all.reverse(),
        2 => drop(all.pop()),
        3 => all.push(all[0]),
        4 => all.rotate_left(1),
        _ => {}
    }
    let more = u8::from(choices.chance(5));
    let pieces = all.into_iter();
    pieces
        .map(|(index, bytes)| datagram(id, index, count + more, bytes))
        .collect()
}

/// Pieces of packets that never come whole, one or a crowd: id, index, count, length.
pub(crate) fn lone(choices: &mut Choices<'_>) -> Vec<(u16, u8, u8, usize)> {
    let len = *choices.pick(&[1, 100, 1_400, 30_000, 65_000]);
    let crowd = *choices.pick(&[1, 1, 3, 300]);
    let first = choices.below(8) as u16;
    let index = choices.below(3) as u8;
    (0..crowd).map(|at| (first + at, index, 3, len)).collect()
}

#[derive(Debug)]
struct Pile {
    id: u16,
    since: Duration,
    count: u8,
    pieces: BTreeMap<u8, Vec<u8>>,
}

impl Pile {
    fn bytes(&self) -> usize {
        self.pieces.values().map(Vec::len).sum()
    }
}

/// What waits for its other pieces, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Piles {
    all: Vec<Pile>,
    given_up: usize,
}

impl Piles {
    /// What follows the context of a piece.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        now: Duration,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        self.forget(now);
        let id = u16::from_be_bytes([bytes[0], bytes[1]]);
        let (index, count) = (bytes[2] >> 4, bytes[2] & 15);
        let at = self.all.iter().rposition(|pile| pile.id == id);
        let (mut place, mut pile) = match at {
            Some(at) => (at, self.all.remove(at)),
            None => {
                let pile = Pile {
                    id,
                    since: now,
                    count,
                    pieces: BTreeMap::new(),
                };
                (self.all.len(), pile)
            }
        };
        let clashes = pile.count != count || pile.pieces.contains_key(&index);
        pile.pieces.insert(index, bytes[3..].to_vec());
        if clashes || pile.bytes() > MAX_PACKET {
            return Err(DropReason::BadFragment);
        }
        if pile.pieces.len() == usize::from(count) {
            return Ok(Some(pile.pieces.into_values().flatten().collect()));
        }
        while self.all.len() >= MAX_PILES || self.bytes() + pile.bytes() > MAX_BYTES {
            self.all.remove(0);
            self.given_up += 1;
            place = place.saturating_sub(1);
        }
        self.all.insert(place, pile);
        Ok(None)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.all.iter().map(Pile::bytes).sum()
    }

    /// Packets that were given up since the last call.
    pub(crate) fn expire(&mut self, now: Duration) -> usize {
        self.forget(now);
        std::mem::take(&mut self.given_up)
    }

    fn forget(&mut self, now: Duration) {
        let before = self.all.len();
        self.all.retain(|pile| now < pile.since + WAIT);
        self.given_up += before - self.all.len();
    }
}
