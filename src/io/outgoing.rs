//! The batch that is on its way to the UDP socket, and waits for it where it must.

use std::time::Instant;

use crate::{
    device::MAX_FRAME,
    io::{Underlay, counts::Counters},
    tunnel::Transmit,
};

/// The batch on its way to the socket.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) contents: Vec<u8>,
    /// What of `contents` waits for the socket to become writable, from which byte on.
    pub(super) waiting: Option<(Transmit, usize)>,
    /// The segment size of the last batch: how many of them fit one is known before the next is made.
    pub(super) segment: usize,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            contents: Vec::with_capacity(MAX_FRAME),
            waiting: None,
            segment: 1_472,
        }
    }
}

impl Outgoing {
    /// Sends what waits. `false` when the socket still takes none.
    pub(super) fn resume(
        &mut self,
        underlay: &mut Underlay,
        now: Instant,
        counters: &Counters,
    ) -> bool {
        match self.waiting.take() {
            Some((transmit, offset)) => self.send_from(offset, transmit, underlay, now, counters),
            None => true,
        }
    }

    /// Sends `contents`. `false` when the socket takes no more and the rest waits.
    pub(super) fn send(
        &mut self,
        transmit: Transmit,
        underlay: &mut Underlay,
        now: Instant,
        counters: &Counters,
    ) -> bool {
        self.segment = transmit.segment_size.unwrap_or(self.segment);
        self.send_from(0, transmit, underlay, now, counters)
    }

    fn send_from(
        &mut self,
        offset: usize,
        transmit: Transmit,
        underlay: &mut Underlay,
        now: Instant,
        counters: &Counters,
    ) -> bool {
        let rest = self.contents.get(offset..transmit.size).unwrap_or_default();
        self.waiting = underlay
            .send(&transmit, rest, now, counters)
            .err()
            .map(|sent| (transmit, offset + sent));
        self.waiting.is_none()
    }
}
