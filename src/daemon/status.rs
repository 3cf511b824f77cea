//! What `GET /v1/status` answers: the stable form of a daemon's state, read by the command line and by scripts.
//! Fields are only ever added.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    shard::{Books, FlowSnapshot, PacketCounts, ShardCounts, ShardSnapshot},
    spiffe::SpiffeId,
    tunnel::{TunnelSnapshot, TunnelState},
    wire::FiveTuple,
};

/// The value of `apiVersion` everywhere.
pub const API_VERSION: &str = "identun.io/v1";

/// A daemon at one moment.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Status {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// `Status`.
    pub kind: String,
    /// No health line is an error.
    pub healthy: bool,
    /// What a person should know first.
    pub health: Vec<Health>,
    /// Of the program.
    pub version: String,
    /// Process number.
    pub pid: u32,
    /// Tells this run of the daemon from the next, which may have the same process number.
    pub run: String,
    /// Since the start.
    pub uptime_seconds: u64,
    /// The configuration file.
    pub config: String,
    /// Counts configurations that came into force.
    pub generation: u64,
    /// The files on disk are what is in force, as far as the last reload knows.
    pub config_valid: bool,
    /// What the last reload found wrong.
    pub config_error: Option<String>,
    /// Local identities.
    pub identities: Vec<IdentityStatus>,
    /// Tunnels.
    pub tunnels: Vec<TunnelStatus>,
    /// Flows in all.
    pub flow_count: usize,
    /// Some of the flows; `GET /v1/flows` has more.
    pub flows: Vec<FlowStatus>,
    /// Packets not delivered, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Packets that the kernel's rules stopped.
    pub steering: BTreeMap<String, u64>,
    /// Ports that accept plaintext whatever policy says.
    pub exempt: Vec<String>,
    /// Packets and bytes through both doors.
    pub packets: PacketStatus,
    /// Bytes that wait for tunnels.
    pub pending_bytes: usize,
    /// What became of every packet from the device since the start.
    #[serde(default)]
    pub books: Books,
    /// What each shard has of it.
    #[serde(default)]
    pub shards: Vec<ShardPart>,
}

/// What one shard has of a daemon's flows, tunnels and packets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ShardPart {
    /// Flows.
    pub flows: usize,
    /// Tunnels that carry packets.
    pub tunnels_up: usize,
    /// Packets and bytes through its doors.
    pub packets: PacketStatus,
}

impl From<ShardCounts> for ShardPart {
    fn from(counts: ShardCounts) -> Self {
        Self {
            flows: counts.flows,
            tunnels_up: counts.tunnels_up,
            packets: counts.packets.into(),
        }
    }
}

/// One line of health.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Health {
    /// How bad it is.
    pub level: HealthLevel,
    /// One sentence.
    pub text: String,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthLevel {
    /// Worth knowing.
    Info,
    /// Will be an error, or is one for some.
    Warning,
    /// The daemon does not do its work.
    Error,
}

impl HealthLevel {
    /// As `status` prints it.
    pub const fn mark(self) -> &'static str {
        match self {
            Self::Info => "INFO",
            Self::Warning => "WARN",
            Self::Error => "FAIL",
        }
    }
}

/// A workload identity of this host.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct IdentityStatus {
    /// SPIFFE ID.
    pub id: SpiffeId,
    /// The certificate's file.
    pub certificate: String,
    /// Unix seconds.
    pub not_after: u64,
    /// Until then; negative when it is over.
    pub expires_in_seconds: i64,
    /// Who signed it.
    pub issuer: String,
    /// Serial number, hexadecimal.
    pub serial: String,
}

/// A tunnel.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct TunnelStatus {
    /// The local identity.
    pub local: SpiffeId,
    /// The identity at the other end.
    pub peer: SpiffeId,
    /// Where its daemon is dialled.
    pub gateway: SocketAddr,
    /// Which of several tunnels between the two: the number of the shard that dials it.
    #[serde(default)]
    pub lane: u8,
    /// Where packets go at present.
    pub remote: Option<SocketAddr>,
    /// `idle`, `dialing`, `up`, `draining`, `backoff` or `refused`.
    pub state: String,
    /// This host dialled.
    pub dialled: Option<bool>,
    /// Since the handshake.
    pub up_seconds: Option<u64>,
    /// TLS cipher suite.
    pub cipher: Option<String>,
    /// Key exchange group.
    pub group: Option<String>,
    /// Round trip, microseconds.
    pub rtt_us: Option<u64>,
    /// The largest inner packet in one datagram, bytes.
    pub inner_mtu: Option<usize>,
    /// Inner bytes.
    pub bytes_sent: u64,
    /// Inner bytes.
    pub bytes_received: u64,
    /// Inner packets.
    pub packets_sent: u64,
    /// Inner packets.
    pub packets_received: u64,
    /// Handshakes that succeeded.
    pub handshakes: u64,
    /// Why the last session or dial failed.
    pub last_error: Option<String>,
    /// When the peer's certificate ends, Unix seconds.
    pub peer_not_after: Option<u64>,
}

impl From<TunnelSnapshot> for TunnelStatus {
    fn from(tunnel: TunnelSnapshot) -> Self {
        let refusal = if let TunnelState::Refused { reason, .. } = &tunnel.state {
            Some(reason.clone())
        } else {
            None
        };
        Self {
            state: state_name(&tunnel.state).into(),
            local: tunnel.local,
            peer: tunnel.peer,
            gateway: tunnel.gateway,
            lane: tunnel.lane,
            remote: tunnel.remote,
            dialled: tunnel.dialled,
            up_seconds: tunnel.up_seconds,
            cipher: tunnel.cipher,
            group: tunnel.group,
            rtt_us: tunnel.rtt_us,
            inner_mtu: tunnel.inner_mtu,
            bytes_sent: tunnel.bytes_sent,
            bytes_received: tunnel.bytes_received,
            packets_sent: tunnel.packets_sent,
            packets_received: tunnel.packets_received,
            handshakes: tunnel.handshakes,
            last_error: tunnel.last_error.or(refusal),
            peer_not_after: tunnel.peer_not_after,
        }
    }
}

/// The word for a tunnel's state.
pub const fn state_name(state: &TunnelState) -> &'static str {
    match state {
        TunnelState::Idle => "idle",
        TunnelState::Dialing => "dialing",
        TunnelState::Up => "up",
        TunnelState::Draining => "draining",
        TunnelState::Backoff { .. } => "backoff",
        TunnelState::Refused { .. } => "refused",
    }
}

/// A flow.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct FlowStatus {
    /// `tcp`, `udp`, `icmp` ... or a number.
    pub protocol: String,
    /// Local address, with port where the protocol has ports.
    pub local: String,
    /// Remote address, likewise.
    pub remote: String,
    /// `local` or `peer`.
    pub opener: String,
    /// Its tunnel.
    pub tunnel: String,
    /// Bytes into the tunnel.
    pub bytes_sent: u64,
    /// Bytes out of the tunnel.
    pub bytes_received: u64,
    /// The rule that decided, with its place.
    pub rule: Option<String>,
    /// The identities that may answer.
    pub accepted: Vec<String>,
}

impl From<FlowSnapshot> for FlowStatus {
    fn from(flow: FlowSnapshot) -> Self {
        let (protocol, local, remote) = tuple_words(&flow.tuple);
        let opener = match flow.opener {
            crate::engine::Opener::Local => "local",
            crate::engine::Opener::Peer => "peer",
        };
        Self {
            protocol,
            local,
            remote,
            opener: opener.into(),
            tunnel: flow.tunnel,
            bytes_sent: flow.bytes_sent,
            bytes_received: flow.bytes_received,
            rule: flow.rule,
            accepted: flow.accepted,
        }
    }
}

/// The words of a tuple's own text: protocol, source, destination.
fn tuple_words(tuple: &FiveTuple) -> (String, String, String) {
    let text = tuple.to_string();
    let mut words = text
        .split(' ')
        .filter(|word| *word != "->")
        .map(ToOwned::to_owned);
    (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    )
}

/// Packets and bytes through both doors of the shard.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct PacketStatus {
    /// From the device, super-packets counted once.
    pub egress_packets: u64,
    /// Their bytes.
    pub egress_bytes: u64,
    /// Out of the tunnels.
    pub ingress_packets: u64,
    /// Their bytes.
    pub ingress_bytes: u64,
}

impl From<PacketCounts> for PacketStatus {
    fn from(counts: PacketCounts) -> Self {
        Self {
            egress_packets: counts.device_packets,
            egress_bytes: counts.device_bytes,
            ingress_packets: counts.tunnel_packets,
            ingress_bytes: counts.tunnel_bytes,
        }
    }
}

/// The part of a status that a shard knows.
#[derive(Default)]
pub(super) struct ShardStatus {
    pub(super) tunnels: Vec<TunnelStatus>,
    pub(super) flow_count: usize,
    pub(super) flows: Vec<FlowStatus>,
    pub(super) drops: BTreeMap<String, u64>,
    pub(super) packets: PacketStatus,
    pub(super) pending_bytes: usize,
    pub(super) books: Books,
    pub(super) shards: Vec<ShardPart>,
}

impl From<ShardSnapshot> for ShardStatus {
    fn from(snapshot: ShardSnapshot) -> Self {
        Self {
            tunnels: snapshot.tunnels.into_iter().map(Into::into).collect(),
            flow_count: snapshot.flow_count,
            flows: snapshot.flows.into_iter().map(Into::into).collect(),
            drops: snapshot
                .drops
                .iter()
                .map(|(reason, count)| (reason.as_str().into(), *count))
                .collect(),
            packets: snapshot.packets.into(),
            pending_bytes: snapshot.pending_bytes,
            books: snapshot.books,
            shards: snapshot.shards.into_iter().map(Into::into).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tuple_is_told_in_words() {
        let tuple = FiveTuple {
            protocol: 6,
            source: "2001:db8::1".parse().unwrap(),
            source_port: 4_000,
            destination: "2001:db8::2".parse().unwrap(),
            destination_port: 80,
        };
        let words = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            tuple_words(&tuple),
            words("tcp", "[2001:db8::1]:4000", "[2001:db8::2]:80")
        );
        let ping = FiveTuple {
            protocol: 58,
            ..tuple
        };
        assert_eq!(
            tuple_words(&ping),
            words("icmpv6", "2001:db8::1", "2001:db8::2")
        );
    }
}
