//! What a shard and its neighbours on the same host have for each other: packets whose flow another one has.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{FlowDirectory, Seat},
    registry::TunnelId,
    shard::Shard,
    wire::{DropReason, FiveTuple, packet::Packet},
};

/// What one shard gives to another.
#[derive(Debug, PartialEq)]
pub enum Handover {
    /// A frame from the device whose flow the other shard has.
    Frame(Vec<u8>),
    /// A flow that the other shard had: it goes on here.
    Forget(FiveTuple),
}

/// Bytes of frames that wait to be passed on.
const MAX_WAITING: usize = 1 << 20;

impl Shard {
    /// One of several shards of a host, which know of each other's flows by `directory`.
    #[must_use]
    pub fn with_directory(mut self, directory: Arc<FlowDirectory>) -> Self {
        let lane = self.settings.tunnel.lane;
        let seat = Seat::new(directory, lane);
        self.engine = self.engine.with_seat(lane, Some(seat));
        self
    }

    /// The next thing for another shard, and its number.
    pub fn poll_handover(&mut self) -> Option<(u8, Handover)> {
        if let Some((shard, frame)) = self.handovers.pop_front() {
            self.handover_bytes -= frame.len();
            self.counts.handed_out += 1;
            return Some((shard, Handover::Frame(frame)));
        }
        let (shard, tuple) = self.engine.poll_release()?;
        Some((shard, Handover::Forget(tuple)))
    }

    /// Takes what another shard has for this one.
    pub fn handle_handover(&mut self, handover: Handover, now: Instant) {
        self.now = Some(now);
        match handover {
            Handover::Frame(frame) => {
                self.counts.handed_in += 1;
                self.settle(now);
                self.device_frame(&frame, false, now);
                self.pump(now);
            }
            Handover::Forget(tuple) => self.engine.handle_release(&tuple),
        }
    }

    /// A datagram of the underlay that is another shard's did not find room.
    pub fn count_handover_full(&mut self) {
        self.engine.count_drop(DropReason::HandoverFull);
    }

    /// A frame that [`Self::poll_handover`] gave out did not find room.
    pub fn count_frame_not_handed_over(&mut self) {
        self.counts.handed_out -= 1;
        self.engine.count_egress_drop(DropReason::HandoverFull);
    }

    pub(super) fn hand_over(&mut self, shard: u8, frame: &[u8]) {
        if self.handover_bytes + frame.len() > MAX_WAITING {
            return self.engine.count_egress_drop(DropReason::HandoverFull);
        }
        self.handover_bytes += frame.len();
        self.handovers.push_back((shard, frame.to_vec()));
    }

    /// The tunnel that carries a packet of a flow of `tunnel`. A lane of the peer's, without a session, is the peer's to
    /// dial: the flow moves to this shard's own.
    pub(super) fn own_lane(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        now: Instant,
    ) -> TunnelId {
        let own = self.settings.tunnel.lane;
        let Some(key) = self.keys.key(tunnel).filter(|key| key.lane != own) else {
            return tunnel;
        };
        if self.tunnels.is_up(tunnel) {
            return tunnel;
        }
        let key = key.clone().with_lane(own);
        let id = self.keys.id(&key);
        if !self.tunnels.is_up(id) && self.tunnels.limits(tunnel).is_some() {
            // What drains goes on until the replacement is up.
            self.tunnels.open(id, &key, now);
            return tunnel;
        }
        self.engine.rehome(&packet.five_tuple(), id);
        id
    }
}
