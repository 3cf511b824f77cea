//! How much waits in a shard: every queue of packets, in bytes.

use crate::{shard::Shard, wire::fragment::Reassembler};

/// Bytes of packets that wait in a shard at one moment, by queue. Each of them is bounded.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Waiting {
    /// RSTs and ICMP errors for local senders.
    pub answers: usize,
    /// Inner IP fragments that came before their first.
    pub fragments: usize,
    /// Frames for other shards of the host.
    pub handovers: usize,
    /// Frames whose tunnel is not up yet.
    pub pending: usize,
    /// Pieces of packets that are not whole yet.
    pub pieces: usize,
    /// Datagrams in the queues of all sessions.
    pub sessions: usize,
}

impl Waiting {
    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Shard {
    /// What waits, as far as it is worked on.
    pub fn waiting(&mut self) -> Waiting {
        if let Some(now) = self.now {
            self.settle(now);
        }
        Waiting {
            answers: self.answers.iter().map(Vec::len).sum(),
            fragments: self.engine.fragment_bytes(),
            handovers: self.handover_bytes,
            pending: self.engine.pending_mut().bytes(),
            pieces: self.reassemblers.values().map(Reassembler::bytes).sum(),
            sessions: self.tunnels.queued_bytes(),
        }
    }
}
