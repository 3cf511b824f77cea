//! What local senders learn of packets that were not delivered.

use std::time::Instant;

use crate::{
    engine::Egress,
    registry::TunnelId,
    shard::Shard,
    wire::{DropReason, packet::Packet, virtio::VIRTIO_HEADER_LEN},
};

/// Answers that wait for the device.
const MAX_ANSWERS: usize = 256;

impl Shard {
    /// Drops a frame that had a tunnel, and tells its sender where that is due.
    pub(super) fn drop_frame(
        &mut self,
        tunnel: TunnelId,
        frame: &[u8],
        reason: DropReason,
        now: Instant,
    ) {
        let Some(packet) = frame
            .get(VIRTIO_HEADER_LEN..)
            .and_then(|bytes| Packet::new_checked(bytes).ok())
        else {
            return self.engine.count_egress_drop(DropReason::Malformed);
        };
        let key = self.keys.key(tunnel);
        if let Egress::Drop {
            answer: Some(answer),
            ..
        } = self.engine.drop_egress(&packet, reason, key, None, now)
        {
            self.answer(answer);
        }
    }

    pub(super) fn answer(&mut self, packet: Vec<u8>) {
        if self.answers.len() < MAX_ANSWERS {
            self.answers.push_back(packet);
        }
    }
}
