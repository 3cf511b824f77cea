//! Cuts super-packets into tunnel datagrams and joins received packets into super-packets.

mod cut;
mod join;
mod split;

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

pub use cut::{complete_checksum, cut, cut_parsed};
pub use join::Joiner;
pub use split::split;

/// What one tunnel datagram may carry at this moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CutLimits {
    /// The largest IP packet that fits one datagram (QUIC max_datagram_size - 2), in bytes.
    pub inner: usize,
    /// The peer takes FRAGMENT datagrams.
    pub fragment: bool,
    /// The peer takes PARTIAL CHECKSUM datagrams.
    pub partial_checksum: bool,
}

/// The packet does not fit, not even in pieces.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the packet does not fit the tunnel")]
pub struct TooBig;

/// Bytes of one buffer: what most super-packets become, and less than what the allocator fetches from the kernel and gives
/// back each time.
const BUFFER: usize = 120 * 1024;
/// Buffers that wait for their datagrams to be sent and are used again then.
const MAX_SPARE: usize = 48;

/// Datagrams, prefix `00 context` included, one after the other in one buffer.
///
/// Buffers are used again once every datagram of theirs is gone, so that nothing is allocated in the long run.
#[derive(Debug)]
pub struct DatagramBatch {
    buffer: BytesMut,
    /// Where each datagram ends.
    ends: Vec<usize>,
    /// Buffers that are full, oldest first.
    spare: VecDeque<BytesMut>,
}

impl Default for DatagramBatch {
    fn default() -> Self {
        Self {
            buffer: BytesMut::with_capacity(BUFFER),
            ends: Vec::new(),
            spare: VecDeque::new(),
        }
    }
}

impl DatagramBatch {
    /// Takes every datagram out, in order; each is a slice of one shared allocation.
    pub fn drain(&mut self) -> impl Iterator<Item = Bytes> + '_ {
        let whole = self.buffer.split().freeze();
        let mut start = 0;
        self.ends.drain(..).map(move |end| {
            let datagram = whole.slice(start..end);
            start = end;
            datagram
        })
    }

    /// How many datagrams wait.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No datagram waits.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Makes room for `bytes` more, so that what follows does not allocate.
    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() - self.buffer.len() >= bytes {
            return;
        }
        if bytes > BUFFER || !self.buffer.is_empty() {
            return self.buffer.reserve(bytes);
        }
        let mut next = match self.spare.pop_front() {
            Some(oldest) => oldest,
            None => BytesMut::with_capacity(BUFFER),
        };
        if !next.try_reclaim(BUFFER) {
            let oldest = std::mem::replace(&mut next, BytesMut::with_capacity(BUFFER));
            // A slow peer's datagrams hold it: others are asked first. Beyond the bound its memory goes with them.
            if self.spare.len() + 1 < MAX_SPARE {
                self.spare.push_back(oldest);
            }
        }
        let full = std::mem::replace(&mut self.buffer, next);
        self.spare.push_back(full);
    }

    /// Appends one datagram and returns it without its prefix.
    fn push(&mut self, prefix: &[u8], head: &[u8], payload: &[u8]) -> &mut [u8] {
        let start = self.buffer.len() + prefix.len();
        for part in [prefix, head, payload] {
            self.buffer.extend_from_slice(part);
        }
        self.ends.push(self.buffer.len());
        self.buffer.get_mut(start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
