//! What a shard is told once, at its start.

use crate::{engine::EngineLimits, tunnel::TunnelSettings};

/// Bytes of IP and UDP header in front of a tunnel packet over IPv4 and IPv6.
const OUTER_HEADERS: [u16; 2] = [20 + 8, 40 + 8];
/// What QUIC and our own framing take of a UDP payload (wire.md §3.4).
const TUNNEL_OVERHEAD: u16 = 40;

/// Settings of a [`crate::shard::Shard`].
#[derive(Clone)]
pub struct ShardSettings {
    /// Of the tunnels.
    pub tunnel: TunnelSettings,
    /// Of the engine.
    pub engine: EngineLimits,
    /// The MTU of the interface that tunnels leave by, in bytes.
    pub underlay_mtu: u16,
    /// The device takes UDP super-packets (USO).
    pub udp_offload: bool,
}

impl ShardSettings {
    /// The largest inner IP packet of one datagram once the path MTU is found, in bytes.
    pub fn expected_inner(&self, ipv6: bool) -> u16 {
        let outer = if ipv6 {
            OUTER_HEADERS[1]
        } else {
            OUTER_HEADERS[0]
        };
        self.underlay_mtu.saturating_sub(outer + TUNNEL_OVERHEAD)
    }
}
