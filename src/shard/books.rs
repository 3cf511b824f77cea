//! What became of every packet that the device gave: the books, which are even at every moment.
//!
//! Two pages. Frames: read from the device, then carried, dropped, or waiting. Datagrams: each carried frame is cut into
//! one or more, which wait in a session's queue, go to QUIC, or are lost there.

use serde::{Deserialize, Serialize};

use crate::{shard::Shard, tunnel::DatagramBook};

/// See the module. Counts since the start, but for what waits.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Books {
    /// Frames.
    pub frames: FrameBook,
    /// Datagrams.
    pub datagrams: DatagramBook,
}

/// What became of frames (a super-packet is one).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct FrameBook {
    /// From the device.
    pub read: u64,
    /// From other shards of the host.
    pub handed_in: u64,
    /// To other shards.
    pub handed_out: u64,
    /// Cut for a session.
    pub carried: u64,
    /// Not carried; the reason is counted.
    pub dropped: u64,
    /// For a tunnel, for another shard or for the first fragment of their packet.
    pub waiting: u64,
}

impl Books {
    /// Frames and datagrams of which nobody knows what became: none, or the daemon loses packets in silence.
    pub const fn missing(&self) -> (i64, i64) {
        let FrameBook {
            read,
            handed_in,
            handed_out,
            carried,
            dropped,
            waiting,
        } = self.frames;
        let frames = difference(read + handed_in, carried + dropped + waiting + handed_out);
        let book = self.datagrams;
        let datagrams = difference(book.queued, book.sent + book.dropped + book.waiting);
        (frames, datagrams)
    }

    pub(super) const fn add(&mut self, other: Self) {
        let (frames, datagrams) = (other.frames, other.datagrams);
        self.frames.read += frames.read;
        self.frames.handed_in += frames.handed_in;
        self.frames.handed_out += frames.handed_out;
        self.frames.carried += frames.carried;
        self.frames.dropped += frames.dropped;
        self.frames.waiting += frames.waiting;
        self.datagrams.queued += datagrams.queued;
        self.datagrams.sent += datagrams.sent;
        self.datagrams.dropped += datagrams.dropped;
        self.datagrams.waiting += datagrams.waiting;
    }
}

const fn difference(came: u64, went: u64) -> i64 {
    came.wrapping_sub(went).cast_signed()
}

impl Shard {
    /// What became of every packet so far.
    pub fn books(&mut self) -> Books {
        if let Some(now) = self.now {
            self.settle(now);
            self.pump(now);
        }
        let waiting = self.engine.egress_waiting() + self.handovers.len() as u64;
        Books {
            frames: FrameBook {
                read: self.counts.device_packets,
                handed_in: self.counts.handed_in,
                handed_out: self.counts.handed_out,
                carried: self.counts.carried_packets,
                dropped: self.engine.egress_drops(),
                waiting,
            },
            datagrams: self.tunnels.book(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_on_either_page() {
        let mut books = Books::default();
        assert_eq!(books.missing(), (0, 0));
        books.frames.read = 3;
        books.frames.carried = 1;
        books.frames.waiting = 1;
        books.datagrams.queued = 5;
        books.datagrams.sent = 4;
        books.datagrams.dropped = 2;
        assert_eq!(books.missing(), (1, -1));
        let mut sum = books;
        sum.add(books);
        assert_eq!(sum.missing(), (2, -2));
    }
}
