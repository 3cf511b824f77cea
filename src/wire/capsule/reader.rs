//! The bytes of a control stream to capsules.

use super::{Capsule, CapsuleError, MAX_VALUE, decode::decode};
use crate::wire::varint;

/// Stream bytes that are held at most: four of the longest capsules.
const MAX_BUFFER: usize = 4 * (MAX_VALUE + 16);

/// Collects stream bytes and gives capsules.
///
/// Poll until there is none after each push: bytes that are not read add up, and more than about 64 KiB of them are an
/// error. How many capsules a peer may send in a second is not looked at here.
#[derive(Debug, Default)]
pub struct CapsuleReader {
    buffer: Vec<u8>,
    /// How much of the buffer was read.
    read: usize,
    error: Option<CapsuleError>,
}

impl CapsuleReader {
    /// Takes stream bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read.min(self.buffer.len()));
        self.read = 0;
        if self.buffer.len() + bytes.len() > MAX_BUFFER {
            self.error.get_or_insert(CapsuleError::Flooded);
        }
        if self.error.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole capsule.
    ///
    /// # Errors
    /// When the bytes are no capsule. That is final: the connection is to be closed with 0x101.
    pub fn poll(&mut self) -> Result<Option<Capsule>, CapsuleError> {
        if let Some(error) = &self.error {
            return Err(error.clone());
        }
        let next = self.next();
        if let Err(error) = &next {
            self.error = Some(error.clone());
            self.buffer = Vec::new();
        }
        next
    }

    fn next(&mut self) -> Result<Option<Capsule>, CapsuleError> {
        let unread = self.buffer.get(self.read..).unwrap_or_default();
        let Some((kind, rest)) = varint::decode(unread) else {
            return Ok(None);
        };
        let Some((len, rest)) = varint::decode(rest) else {
            return Ok(None);
        };
        let value_len = match usize::try_from(len) {
            Ok(value_len) if value_len <= MAX_VALUE => value_len,
            _ => return Err(CapsuleError::ValueTooLong { kind, len }),
        };
        let Some((value, rest)) = rest.split_at_checked(value_len) else {
            return Ok(None);
        };
        let capsule = decode(kind, value)?;
        self.read = self.buffer.len() - rest.len();
        Ok(Some(capsule))
    }
}
