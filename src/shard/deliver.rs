//! Tunnel to device: decode, reassemble, check, join.

use std::time::Instant;

use bytes::Bytes;

use crate::{
    engine::Ingress,
    registry::TunnelId,
    shard::Shard,
    wire::{
        DropReason,
        capsule::PeerFlags,
        datagram::{self, Datagram},
        mss::clamp_mss,
        packet::Packet,
    },
};

impl Shard {
    /// Takes one inner datagram of a session.
    pub(super) fn receive(
        &mut self,
        tunnel: TunnelId,
        flags: PeerFlags,
        bytes: &Bytes,
        now: Instant,
    ) {
        self.counts.tunnel_packets += 1;
        self.counts.tunnel_bytes += bytes.len() as u64;
        match datagram::decode(bytes, flags) {
            Ok(Datagram::Packet {
                packet,
                partial_checksum,
            }) => self.deliver(tunnel, packet, partial_checksum, now),
            Ok(Datagram::Fragment(fragment)) => {
                let reassembler = self.reassemblers.entry(tunnel).or_default();
                match reassembler.push(fragment, now) {
                    Ok(Some(packet)) => self.deliver(tunnel, &packet, false, now),
                    Ok(None) => {}
                    Err(reason) => self.engine.count_drop(reason),
                }
            }
            Err(reason) => self.engine.count_drop(reason),
        }
    }

    /// Delivers a packet and the fragments that waited for it.
    fn deliver(&mut self, tunnel: TunnelId, bytes: &[u8], partial_checksum: bool, now: Instant) {
        self.deliver_one(tunnel, bytes, partial_checksum, now);
        while let Some(released) = self.engine.poll_released_ingress(tunnel) {
            self.deliver_one(tunnel, &released, false, now);
        }
    }

    /// Writes a packet to the device if the engine lets it pass. The only way from a session to the device.
    fn deliver_one(
        &mut self,
        tunnel: TunnelId,
        bytes: &[u8],
        partial_checksum: bool,
        now: Instant,
    ) {
        let Ok(packet) = Packet::new_checked(bytes) else {
            return self.engine.count_drop(DropReason::Malformed);
        };
        match self
            .engine
            .handle_ingress(tunnel, &packet, now, &mut self.keys)
        {
            Ingress::Deliver => self.join(tunnel, packet, partial_checksum),
            Ingress::Drop {
                refused: Some(refused),
                ..
            } => self.tunnels.send_flow_refused(tunnel, refused),
            Ingress::Drop { refused: None, .. } | Ingress::Held => {}
        }
    }

    fn join(&mut self, tunnel: TunnelId, packet: Packet<'_>, partial_checksum: bool) {
        if packet.tcp_flags().is_some_and(|flags| flags.is_syn()) {
            let mut opening = packet.bytes().to_vec();
            clamp_mss(&mut opening, self.expected_inner(tunnel), partial_checksum);
            self.joiner.push(&opening, partial_checksum);
        } else {
            self.joiner.push_parsed(packet, partial_checksum);
        }
    }
}
