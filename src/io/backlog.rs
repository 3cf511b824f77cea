//! What was to be delivered while the device took nothing.

use std::collections::VecDeque;

/// Bytes of frames that wait for the device to take more.
const MAX_BACKLOG: usize = 4 << 20;

/// Frames that wait for the device, at most [`MAX_BACKLOG`] bytes.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn first(&self) -> Option<&[u8]> {
        self.frames.front().map(Vec::as_slice)
    }

    pub(super) fn remove_first(&mut self) {
        if let Some(frame) = self.frames.pop_front() {
            self.bytes -= frame.len();
        }
    }

    /// Puts the packets of one frame before all others. They are about as long as the frame was.
    pub(super) fn put_first(&mut self, frames: Vec<Vec<u8>>) {
        for frame in frames.into_iter().rev() {
            self.bytes += frame.len();
            self.frames.push_front(frame);
        }
    }

    /// `false` when it is full and the frame was not taken.
    pub(super) fn push(&mut self, frame: &[u8]) -> bool {
        let fits = self.bytes + frame.len() <= MAX_BACKLOG;
        if fits {
            self.bytes += frame.len();
            self.frames.push_back(frame.to_vec());
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MAX_FRAME;

    #[test]
    fn the_backlog_is_bounded_in_bytes_and_keeps_the_order() {
        let mut backlog = Backlog::default();
        let mut taken = 0_u8;
        while backlog.push(&vec![taken; MAX_FRAME]) {
            taken += 1;
        }
        assert_eq!(usize::from(taken), MAX_BACKLOG / MAX_FRAME);
        for number in 0..taken {
            assert_eq!(backlog.first().map(|frame| frame[0]), Some(number));
            backlog.remove_first();
        }
        assert!(backlog.is_empty());
        assert_eq!(backlog.bytes, 0);
        backlog.push(b"later");
        backlog.put_first(vec![b"first".to_vec(), b"then".to_vec()]);
        for expected in ["first", "then", "later"] {
            assert_eq!(backlog.first(), Some(expected.as_bytes()));
            backlog.remove_first();
        }
        assert_eq!(backlog.bytes, 0);
    }
}
