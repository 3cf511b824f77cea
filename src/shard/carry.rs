//! Device to tunnel, once the engine has named the tunnel: wait for it, clamp, cut, queue.

use std::time::Instant;

use crate::{
    registry::TunnelId,
    shard::Shard,
    tunnel::TunnelState,
    wire::{DropReason, mss::clamp_mss, packet::Packet, segment::cut_parsed, virtio::SuperPacket},
};

impl Shard {
    /// Sends a frame through its tunnel, or lets it wait until the tunnel is up.
    pub(super) fn carry(
        &mut self,
        tunnel: TunnelId,
        frame: &[u8],
        super_packet: &SuperPacket<'_>,
        packet: Packet<'_>,
        now: Instant,
    ) {
        let tunnel = self.own_lane(tunnel, &packet, now);
        self.busy.note(tunnel, now);
        match self.tunnels.state(tunnel) {
            TunnelState::Up => self.send(tunnel, super_packet, packet, now),
            TunnelState::Idle | TunnelState::Dialing | TunnelState::Draining => {
                if let Some(key) = self.keys.key(tunnel) {
                    self.tunnels.open(tunnel, key, now);
                }
                // A session that drains carries its flows until the replacement is up.
                if self.tunnels.limits(tunnel).is_some() {
                    return self.send(tunnel, super_packet, packet, now);
                }
                let dropped = self.engine.pending_mut().push(tunnel, frame, now);
                (0..dropped).for_each(|_| self.engine.count_egress_drop(DropReason::PendingFull));
            }
            TunnelState::Backoff { .. } => {
                self.drop_frame(tunnel, frame, DropReason::TunnelDown, now);
            }
            TunnelState::Refused { .. } => {
                self.drop_frame(tunnel, frame, DropReason::PeerRefusedSession, now);
            }
        }
    }

    fn send(
        &mut self,
        tunnel: TunnelId,
        super_packet: &SuperPacket<'_>,
        packet: Packet<'_>,
        now: Instant,
    ) {
        if packet.tcp_flags().is_some_and(|flags| flags.is_syn()) {
            return self.send_opening(tunnel, super_packet, now);
        }
        self.send_cut(tunnel, super_packet, packet, now);
    }

    /// Sends a segment with SYN, its MSS lowered to what the path will carry.
    fn send_opening(&mut self, tunnel: TunnelId, super_packet: &SuperPacket<'_>, now: Instant) {
        let mut opening = std::mem::take(&mut self.opening);
        opening.clear();
        opening.extend_from_slice(super_packet.bytes);
        let partial = super_packet.partial_checksum;
        clamp_mss(&mut opening, self.expected_inner(tunnel), partial);
        match Packet::new_checked(&opening) {
            Ok(packet) => {
                let clamped = SuperPacket {
                    bytes: &opening,
                    ..*super_packet
                };
                self.send_cut(tunnel, &clamped, packet, now);
            }
            Err(_) => self.engine.count_egress_drop(DropReason::Malformed),
        }
        self.opening = opening;
    }

    fn send_cut(
        &mut self,
        tunnel: TunnelId,
        super_packet: &SuperPacket<'_>,
        packet: Packet<'_>,
        now: Instant,
    ) {
        let Some(limits) = self.tunnels.limits(tunnel) else {
            return self.engine.count_egress_drop(DropReason::TunnelDown);
        };
        let (id, batch) = (&mut self.fragment_id, &mut self.batch);
        if cut_parsed(super_packet, packet, &limits, id, batch).is_err() {
            return self.engine.count_egress_drop(DropReason::TooBig);
        }
        self.counts.carried_packets += 1;
        self.tunnels
            .send(tunnel, packet.flow_hash(), batch.drain(), now);
    }

    /// What an inner packet may be once the path MTU is found: TCP is clamped to this, not to the first guess.
    pub(super) fn expected_inner(&self, tunnel: TunnelId) -> usize {
        let ipv6 = self
            .keys
            .key(tunnel)
            .is_some_and(|key| key.gateway.is_ipv6());
        usize::from(self.settings.expected_inner(ipv6))
    }

    /// Sends a frame that waited, unless its flow was cut meanwhile.
    pub(super) fn release(&mut self, tunnel: TunnelId, frame: &[u8], now: Instant) {
        let Ok((super_packet, packet)) = SuperPacket::parse(frame) else {
            return self.engine.count_egress_drop(DropReason::Malformed);
        };
        match self.engine.refuse_waiting(&packet, now, &mut self.keys) {
            Some(answer) => answer.into_iter().for_each(|answer| self.answer(answer)),
            None => self.send(tunnel, &super_packet, packet, now),
        }
    }
}
