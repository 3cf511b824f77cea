//! What `status` shows of the tunnels.

use crate::{
    registry::KeyTable,
    tunnel::{FRAMING, TunnelSnapshot, Tunnels, pool::Tunnel},
};

impl Tunnels {
    /// Every tunnel that was ever dialled or accepted, in the order of `keys`.
    pub fn snapshot(&self, keys: &KeyTable) -> Vec<TunnelSnapshot> {
        keys.iter()
            .filter_map(|(id, _)| self.tunnels.get(&id))
            .map(|tunnel| self.snapshot_of(tunnel))
            .collect()
    }

    fn snapshot_of(&self, tunnel: &Tunnel) -> TunnelSnapshot {
        let session = tunnel.current.and_then(|handle| self.links.session(handle));
        let negotiated = session.and_then(|session| session.report.to_report().negotiated);
        let since = |at| {
            self.now
                .map(|now| now.saturating_duration_since(at).as_secs())
        };
        let counts = tunnel.counts;
        TunnelSnapshot {
            local: tunnel.key.local.clone(),
            peer: tunnel.key.peer.clone(),
            gateway: tunnel.key.gateway,
            lane: tunnel.key.lane,
            remote: session.map(|session| session.remote()),
            state: tunnel.state(),
            dialled: session.map(|session| session.dialled),
            up_seconds: session.and_then(|session| session.up_at).and_then(since),
            cipher: negotiated.map(|tls| tls.cipher_name()),
            group: negotiated.map(|tls| tls.group_name()),
            rtt_us: session
                .and_then(|session| u64::try_from(session.connection.rtt().as_micros()).ok()),
            inner_mtu: session
                .and_then(|session| session.max_datagram)
                .map(|max| max.saturating_sub(FRAMING)),
            bytes_sent: counts.bytes_sent,
            bytes_received: counts.bytes_received,
            packets_sent: counts.packets_sent,
            packets_received: counts.packets_received,
            handshakes: counts.handshakes,
            last_error: tunnel.last_error.clone(),
            peer_not_after: session
                .and_then(|session| session.peer.as_ref())
                .map(|svid| svid.not_after),
        }
    }
}
