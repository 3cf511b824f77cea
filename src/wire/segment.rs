//! Cuts super-packets into tunnel datagrams and joins received packets into super-packets.

mod cut;
mod join;

use bytes::{Bytes, BytesMut};

pub use cut::{complete_checksum, cut};
pub use join::Joiner;

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

/// Datagrams, prefix `00 context` included, one after the other in one buffer.
///
/// The buffer is taken again once the datagrams of earlier batches are gone.
#[derive(Debug, Default)]
pub struct DatagramBatch {
    buffer: BytesMut,
    /// Where each datagram ends.
    ends: Vec<usize>,
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
        self.buffer.reserve(bytes);
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
