//! Where received datagrams lie: 64 KiB buffers that `recvmmsg` fills and that sessions hold slices of.
//!
//! A buffer is used again once every slice of it is gone, which is at once for inner packets. A session that keeps a
//! slice (a piece of a capsule out of order) keeps its buffer; the pool replaces that one. So that a peer cannot have us keep
//! much for little, a lone packet is copied into a small buffer, which is used again in the same way, and a few that were
//! joined into memory of their own.
#![expect(unsafe_code, reason = "a reclaimed buffer is not zeroed again")]

use std::{array, io::IoSliceMut, mem};

use bytes::BytesMut;
use quinn_udp::{BATCH_SIZE, RecvMeta};

/// The largest UDP payload, and more than a GRO batch can hold: nothing is ever truncated.
const BUFFER_LEN: usize = 1 << 16;
/// Small buffers for lone packets: a slice keeps at most eight times its length, or the least of these.
const SMALL: [usize; 2] = [256, 2_048];
/// The largest batch of several that is copied.
const FEW: usize = BUFFER_LEN / 4;

/// Buffers for one receive call.
#[derive(Debug)]
pub struct ReceivePool {
    buffers: [BytesMut; BATCH_SIZE],
    /// By the lengths of [`SMALL`]; empty until they are needed.
    small: [[BytesMut; SMALL.len()]; BATCH_SIZE],
    metas: [RecvMeta; BATCH_SIZE],
    /// How many buffers the last call used.
    used: usize,
}

impl Default for ReceivePool {
    fn default() -> Self {
        Self {
            buffers: array::from_fn(|_| BytesMut::zeroed(BUFFER_LEN)),
            small: array::from_fn(|_| array::from_fn(|_| BytesMut::new())),
            metas: [RecvMeta::default(); BATCH_SIZE],
            used: 0,
        }
    }
}

impl ReceivePool {
    /// Makes every buffer whole and lets `receive` fill them; it says how many it used.
    pub(super) fn fill<E>(
        &mut self,
        receive: impl FnOnce(&mut [IoSliceMut<'_>], &mut [RecvMeta]) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.buffers.iter_mut().take(self.used).for_each(restore);
        self.used = 0;
        let mut slices = self
            .buffers
            .each_mut()
            .map(|buffer| IoSliceMut::new(buffer));
        self.used = receive(&mut slices, &mut self.metas)?;
        Ok(())
    }

    /// Takes the received datagrams out, each a slice of its buffer.
    pub(super) fn drain(&mut self, mut take: impl FnMut(&RecvMeta, BytesMut)) {
        let buffers = self.buffers.iter_mut().zip(&mut self.small);
        for ((buffer, small), meta) in buffers.zip(&self.metas).take(self.used) {
            let len = meta.len.min(buffer.len());
            let is_lone = meta.stride >= len;
            let fitting = small.iter_mut().zip(SMALL).find(|(_, most)| len <= *most);
            let bytes = buffer.get(..len).unwrap_or_default();
            let mut batch = match fitting.filter(|_| is_lone) {
                Some((small, most)) => copied(bytes, small, most),
                None if len <= FEW => BytesMut::from(bytes),
                None => buffer.split_to(len),
            };
            while !batch.is_empty() {
                let datagram = if meta.stride < batch.len() {
                    batch.split_to(meta.stride.max(1))
                } else {
                    mem::take(&mut batch)
                };
                take(meta, datagram);
            }
        }
    }
}

/// The bytes in a small buffer of this length: the one there is, where no slice of it is left.
fn copied(bytes: &[u8], small: &mut BytesMut, most: usize) -> BytesMut {
    small.clear();
    if !small.try_reclaim(most) {
        *small = BytesMut::with_capacity(most);
    }
    small.extend_from_slice(bytes);
    small.split()
}

/// Gives a buffer its full length back, in its old memory where no slice of it is left.
fn restore(buffer: &mut BytesMut) {
    buffer.clear();
    if buffer.try_reclaim(BUFFER_LEN) && buffer.capacity() == BUFFER_LEN {
        // SAFETY: the buffer's memory is one allocation of exactly BUFFER_LEN bytes, all of them set when `zeroed` made
        // it. A capacity of BUFFER_LEN means that the buffer begins at its first byte, so the new length covers bytes
        // that are within the allocation and initialised.
        unsafe { buffer.set_len(BUFFER_LEN) };
    } else {
        *buffer = BytesMut::zeroed(BUFFER_LEN);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Fills the first buffer with `len` bytes of `value` in datagrams of `stride`.
    fn fill(pool: &mut ReceivePool, len: usize, stride: usize, value: u8) -> *const u8 {
        let mut start = std::ptr::null();
        pool.fill(|slices, metas| {
            assert!(slices.iter().all(|slice| slice.len() == BUFFER_LEN));
            slices[0][..len].fill(value);
            start = slices[0].as_ptr();
            metas[0] = RecvMeta {
                len,
                stride,
                ..RecvMeta::default()
            };
            Ok::<_, Infallible>(1)
        })
        .unwrap();
        start
    }

    fn drain(pool: &mut ReceivePool) -> Vec<BytesMut> {
        let mut out = Vec::new();
        pool.drain(|_, data| out.push(data));
        out
    }

    #[test]
    fn a_batch_is_split_by_its_stride_and_the_last_may_be_short() {
        let mut pool = ReceivePool::default();
        fill(&mut pool, 2_500, 1_200, 7);
        let lengths: Vec<_> = drain(&mut pool).iter().map(|data| data.len()).collect();
        assert_eq!(lengths, [1_200, 1_200, 100]);
    }

    #[test]
    fn an_empty_datagram_is_nothing() {
        let mut pool = ReceivePool::default();
        fill(&mut pool, 0, 0, 0);
        assert_eq!(drain(&mut pool).len(), 0);
        fill(&mut pool, 10, 10, 0);
        assert_eq!(drain(&mut pool).len(), 1);
    }

    #[test]
    fn a_buffer_without_slices_is_used_again() {
        let mut pool = ReceivePool::default();
        let first = fill(&mut pool, 60_000, 1_400, 1);
        drop(drain(&mut pool));
        assert_eq!(fill(&mut pool, 60_000, 1_400, 2), first);
    }

    #[test]
    fn a_slice_that_is_kept_keeps_no_large_buffer_for_a_small_batch() {
        let [least, lone] = SMALL;
        for (len, stride, most) in [
            (1, 1, least),
            (least + 1, 1_400, lone),
            (lone, lone, lone),
            (lone + 1, 9_000, lone + 1),
            (200, 100, 200),
            (FEW, 1_024, FEW),
            (FEW + 1, 1_024, BUFFER_LEN),
        ] {
            let mut pool = ReceivePool::default();
            let first = fill(&mut pool, len, stride, 1);
            let mut kept = drain(&mut pool).swap_remove(0);
            assert!(kept.iter().all(|&byte| byte == 1));
            let is_used_again = fill(&mut pool, len, stride, 2) == first;
            assert_eq!(is_used_again, most < BUFFER_LEN, "{len}");
            drop(pool);
            // alone with its memory it can have all of it
            assert!(
                kept.try_reclaim(most - kept.len()) && !kept.try_reclaim(most),
                "{len}"
            );
        }
    }

    #[test]
    fn a_small_buffer_is_used_again_when_its_slices_are_gone() {
        let mut pool = ReceivePool::default();
        let (mut at, mut kept) = (Vec::new(), Vec::new());
        for value in 1..4 {
            fill(&mut pool, 1_000, 1_000, value);
            let slices = drain(&mut pool);
            at.push(slices[0].as_ptr());
            if value == 1 {
                kept = slices;
            }
        }
        // one that is kept is not written over
        assert!(kept.iter().flatten().all(|&byte| byte == 1));
        assert_ne!(at[0], at[1]);
        assert_eq!(at[1], at[2]);
    }

    #[test]
    fn a_slice_that_is_kept_keeps_its_bytes() {
        let mut pool = ReceivePool::default();
        fill(&mut pool, 40_000, 1_000, 1);
        let kept = drain(&mut pool).swap_remove(2);
        fill(&mut pool, BUFFER_LEN, 1_000, 2);
        assert!(kept.iter().all(|&byte| byte == 1));
        assert_eq!(drain(&mut pool).len(), BUFFER_LEN.div_ceil(1_000));
    }
}
