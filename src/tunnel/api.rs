//! What goes into the tunnels and what comes out: settings, datagrams, states, events.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};

use crate::{
    identity::WallClock,
    registry::{TunnelId, TunnelKey},
    spiffe::SpiffeId,
    tunnel::{Congestion, DialError},
    wire::capsule::{FlowRefused, RefusedCode},
};

/// Secrets that outlive the process (state folder), and bounds.
#[derive(Clone)]
pub struct TunnelSettings {
    /// The number of this shard. It stands in its connection IDs, and is the lane of the tunnels that it dials.
    pub lane: u8,
    /// Seeds everything random that is not a secret of TLS; the same seed gives the same decisions. Each start of a
    /// daemon takes another one.
    pub rng_seed: [u8; 32],
    /// Key of our connection IDs: with it a restarted daemon recognises those of its predecessor.
    pub connection_id_key: [u8; 32],
    /// Key of stateless resets (RFC 9000 §10.3): with it a restarted daemon ends its predecessor's sessions.
    pub reset_key: [u8; 64],
    /// Key of Retry tokens.
    pub token_key: [u8; 32],
    /// Wall clock for certificates.
    pub clock: WallClock,
    /// Largest UDP payload to offer and to search for, in bytes: interface MTU less IP and UDP headers.
    pub max_udp_payload: u16,
    /// Incoming sessions that are not up yet; above it handshakes are refused.
    pub max_incoming: usize,
    /// Incoming sessions that are not up yet; above it an address must prove itself with a Retry.
    pub retry_above: usize,
    /// How outer packets are controlled.
    pub congestion: Congestion,
    /// Bound of the default controller: bytes in flight of a session.
    pub max_in_flight: u64,
    /// A session without inner packets for this long closes, unless flows live.
    pub idle_close: Duration,
}

/// One datagram from the UDP socket.
#[derive(Debug)]
pub struct UnderlayDatagram {
    /// Where it came from.
    pub remote: SocketAddr,
    /// The local address it was sent to, if the socket tells.
    pub local: Option<IpAddr>,
    /// Its ECN bits, 0..=3.
    pub ecn: u8,
    /// UDP payload.
    pub data: BytesMut,
}

/// One GSO batch in the caller's buffer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// Where to send it.
    pub remote: SocketAddr,
    /// Source address to send from, where it matters.
    pub local: Option<IpAddr>,
    /// ECN bits, 0..=3.
    pub ecn: u8,
    /// Bytes in the buffer.
    pub size: usize,
    /// Bytes of each datagram but the last; `None` for one datagram.
    pub segment_size: Option<usize>,
}

/// What a tunnel can do for a packet.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum TunnelState {
    /// No session, and nothing against dialling one.
    Idle,
    /// Dialling, or waiting for READY.
    Dialing,
    /// A session carries packets.
    Up,
    /// The peer asked for no new flows, and there is no other session.
    Draining,
    /// The last dial failed; no dial before `until`.
    Backoff {
        /// When the state becomes Idle.
        #[serde(skip)]
        until: Instant,
    },
    /// The peer said REFUSED, and asking again before `until` would not help.
    Refused {
        /// When the state becomes Idle.
        #[serde(skip)]
        until: Instant,
        /// The peer's code.
        code: RefusedCode,
        /// The peer's words.
        reason: String,
    },
}

/// Which end no longer allows a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Revoker {
    /// The peer.
    Peer,
    /// This host.
    Us,
}

/// What the tunnels tell.
#[derive(Clone, Debug)]
pub enum TunnelEvent {
    /// A dial did not reach UP; packets that wait are to be dropped.
    DialFailed {
        /// The tunnel.
        id: TunnelId,
        /// Its key.
        key: TunnelKey,
        /// Why.
        error: DialError,
    },
    /// The last session of the key ended.
    Down {
        /// The tunnel.
        id: TunnelId,
        /// Its key.
        key: TunnelKey,
        /// Why its session ended.
        reason: String,
        /// One end no longer allows it, and so none of its flows.
        revoked: Option<Revoker>,
    },
    /// FLOW_REFUSED came.
    FlowRefused {
        /// The tunnel it came by.
        id: TunnelId,
        /// Its key.
        key: TunnelKey,
        /// What it says; the tuple is as our packet travelled.
        refused: FlowRefused,
    },
    /// An incoming handshake or HELLO was refused.
    IncomingRefused {
        /// Where it came from.
        remote: SocketAddr,
        /// The SPIFFE ID presented, if a certificate parsed that far.
        presented: Option<String>,
        /// Why.
        error: String,
    },
    /// The key has a session that carries packets.
    Up {
        /// The tunnel.
        id: TunnelId,
        /// Its key.
        key: TunnelKey,
        /// We dialled it.
        dialled: bool,
        /// The peer's underlay address.
        remote: SocketAddr,
        /// Always `TLSv1.3`.
        version: &'static str,
        /// The negotiated cipher suite.
        cipher: String,
        /// The negotiated key-exchange group.
        group: String,
        /// When the peer's certificate expires, in Unix seconds.
        peer_not_after: u64,
    },
}

/// A tunnel at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct TunnelSnapshot {
    /// The identity on this host.
    pub local: SpiffeId,
    /// The identity at the other end.
    pub peer: SpiffeId,
    /// Where the peer's daemon is dialled.
    pub gateway: SocketAddr,
    /// The shard that dials it, here or there.
    pub lane: u8,
    /// Where packets go at this moment.
    pub remote: Option<SocketAddr>,
    /// What the tunnel can do for a packet.
    pub state: TunnelState,
    /// Whether we dialled the session that carries packets.
    pub dialled: Option<bool>,
    /// For how long that session has been up.
    pub up_seconds: Option<u64>,
    /// Its cipher suite.
    pub cipher: Option<String>,
    /// Its key-exchange group.
    pub group: Option<String>,
    /// Its smoothed round-trip time, in microseconds.
    pub rtt_us: Option<u64>,
    /// The largest inner packet that it takes in one datagram, in bytes.
    pub inner_mtu: Option<usize>,
    /// Inner bytes into the tunnel, over all its sessions.
    pub bytes_sent: u64,
    /// Inner bytes out of the tunnel.
    pub bytes_received: u64,
    /// Inner packets and fragments into the tunnel.
    pub packets_sent: u64,
    /// Inner packets and fragments out of the tunnel.
    pub packets_received: u64,
    /// Sessions that came up.
    pub handshakes: u64,
    /// Why the last dial failed or the last session ended.
    pub last_error: Option<String>,
    /// When the peer's certificate expires, in Unix seconds.
    pub peer_not_after: Option<u64>,
}

/// What became of datagrams, each of them an inner packet or a piece of one.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct DatagramBook {
    /// From the shard.
    pub queued: u64,
    /// Given to QUIC.
    pub sent: u64,
    /// Lost in a session's queue; the reason is counted.
    pub dropped: u64,
    /// In sessions' queues.
    pub waiting: u64,
}
