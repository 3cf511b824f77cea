//! What a loop had to give up, counted for the metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// What the loop of a shard could not do, since its start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, serde::Serialize)]
pub struct LoopCounts {
    /// Frames dropped because the device took none and the backlog was full.
    pub backlog_dropped: u64,
    /// Frames that the device refused (malformed to the kernel, an interface that is down).
    pub device_refused: u64,
    /// Events that the control plane did not take in time.
    pub events_lost: u64,
    /// Batches that the kernel would not segment; they were sent again datagram by datagram.
    pub gso_refused: u64,
    /// Frames whose offloads the device refused; their packets were written one by one.
    pub offload_refused: u64,
    /// Receive calls on the UDP socket that failed.
    pub receive_failed: u64,
    /// Sends to the underlay that failed (no route, refused by a filter); MTU probes are not counted.
    pub send_failed: u64,
}

/// The loop's side of [`LoopCounts`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) backlog_dropped: AtomicU64,
    pub(super) device_refused: AtomicU64,
    pub(super) events_lost: AtomicU64,
    pub(super) gso_refused: AtomicU64,
    pub(super) offload_refused: AtomicU64,
    pub(super) receive_failed: AtomicU64,
    pub(super) send_failed: AtomicU64,
}

impl Counters {
    pub(super) fn read(&self) -> LoopCounts {
        LoopCounts {
            backlog_dropped: self.backlog_dropped.load(Ordering::Relaxed),
            device_refused: self.device_refused.load(Ordering::Relaxed),
            events_lost: self.events_lost.load(Ordering::Relaxed),
            gso_refused: self.gso_refused.load(Ordering::Relaxed),
            offload_refused: self.offload_refused.load(Ordering::Relaxed),
            receive_failed: self.receive_failed.load(Ordering::Relaxed),
            send_failed: self.send_failed.load(Ordering::Relaxed),
        }
    }
}

/// Counts one.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
