//! The quinn-proto configurations of both roles (dependencies.md §5.1).
//!
//! Everything random comes from [`TunnelSettings`]: quinn's defaults would draw keys and IDs that a restarted process
//! does not know and a simulation cannot repeat.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig,
    NoneTokenLog, NoneTokenStore, ServerConfig, TransportConfig, ValidationTokenConfig, VarInt,
    crypto::rustls::NoInitialCipherSuite,
};

use crate::{
    identity::{
        VerifyReport, WallClock,
        observe::{quic_client, quic_server},
    },
    tunnel::{
        TunnelSettings,
        congestion::{Congestion, ControllerConfig, LargePackets},
        connection_id::CheckedConnectionIds,
    },
};

/// RFC 9000; drafts are not spoken.
const QUIC_V1: u32 = 1;
/// What QUIC promises every path can carry, in bytes of UDP payload (RFC 9000 §14).
pub(super) const MIN_UDP_PAYLOAD: u16 = 1_200;
/// The largest UDP payload that QUIC can name.
const MAX_UDP_PAYLOAD: u16 = 65_527;
/// Silence after which a session is dead (wire.md §4).
const MAX_IDLE_MS: u32 = 30_000;
/// Window of the control stream, in bytes: a few of the largest capsules.
const CONTROL_WINDOW: u32 = 64 * 1024;
/// Datagrams received and not yet taken out, in bytes: more than one receive call brings (2 MiB), for beyond this quinn drops
/// the oldest without a word.
const DATAGRAM_RECEIVE_BUFFER: usize = 4 << 20;
/// Datagrams handed to quinn and not yet sent, in bytes: small, our own queue holds the rest.
pub(super) const DATAGRAM_SEND_BUFFER: usize = 128 * 1024;
/// First packets not yet accepted or refused; we decide each at once, and the settings bound what is accepted.
const MAX_UNDECIDED: usize = 64;
/// Packets of one handshake kept while it waits to be accepted, and of all of them, in bytes.
const INCOMING_BUFFER: u64 = 64 * 1024;
const INCOMING_BUFFER_TOTAL: u64 = 16 << 20;

/// What every connection of a shard shares.
pub(super) struct Configs {
    pub(super) endpoint: Arc<EndpointConfig>,
    udp_payload: u16,
    max_in_flight: u64,
    congestion: Congestion,
    token_key: Arc<hkdf::Prk>,
    validation: ValidationTokenConfig,
    clock: Arc<WallClock>,
}

impl Configs {
    pub(super) fn new(settings: &TunnelSettings) -> Self {
        let mut validation = ValidationTokenConfig::default();
        validation.sent(0).log(Arc::new(NoneTokenLog));
        Self {
            validation,
            endpoint: Arc::new(endpoint(settings)),
            udp_payload: udp_payload(settings),
            max_in_flight: settings.max_in_flight,
            congestion: settings.congestion,
            token_key: Arc::new(
                hkdf::Salt::new(hkdf::HKDF_SHA256, b"identun retry token")
                    .extract(&settings.token_key),
            ),
            clock: Arc::new(settings.clock.clone()),
        }
    }

    /// For one accept, or for the endpoint itself.
    pub(super) fn server(
        &self,
        tls: rustls::ServerConfig,
        report: &VerifyReport,
        large: &LargePackets,
    ) -> Result<Arc<ServerConfig>, NoInitialCipherSuite> {
        let crypto = quic_server(tls, report)?;
        let mut server = ServerConfig::new(crypto, Arc::clone(&self.token_key) as _);
        server
            .transport_config(Arc::new(self.transport(1, large)))
            .validation_token_config(self.validation.clone())
            .time_source(Arc::clone(&self.clock) as _)
            .migration(true)
            .max_incoming(MAX_UNDECIDED)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
        Ok(Arc::new(server))
    }

    /// For one dial; `first_id` is the destination connection ID of its first packet (RFC 9000 §7.2).
    pub(super) fn client(
        &self,
        tls: rustls::ClientConfig,
        report: &VerifyReport,
        large: &LargePackets,
        first_id: [u8; 16],
    ) -> Result<ClientConfig, NoInitialCipherSuite> {
        let mut client = ClientConfig::new(quic_client(tls, report)?);
        client
            .transport_config(Arc::new(self.transport(0, large)))
            .token_store(Arc::new(NoneTokenStore))
            .initial_dst_cid_provider(Arc::new(move || ConnectionId::new(&first_id)));
        Ok(client)
    }

    /// A connection's own, as its controller reports to its session.
    fn transport(&self, peer_streams: u32, large: &LargePackets) -> TransportConfig {
        let mut discovery = MtuDiscoveryConfig::default();
        discovery
            .upper_bound(self.udp_payload)
            .interval(Duration::from_secs(600))
            .black_hole_cooldown(Duration::from_secs(60));
        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(peer_streams))
            .max_concurrent_uni_streams(VarInt::from_u32(0))
            .stream_receive_window(VarInt::from_u32(CONTROL_WINDOW))
            .receive_window(VarInt::from_u32(CONTROL_WINDOW))
            .send_window(u64::from(CONTROL_WINDOW))
            .max_idle_timeout(Some(VarInt::from_u32(MAX_IDLE_MS).into()))
            .initial_rtt(Duration::from_millis(100))
            .min_mtu(MIN_UDP_PAYLOAD)
            .mtu_discovery_config(Some(discovery))
            .datagram_receive_buffer_size(Some(DATAGRAM_RECEIVE_BUFFER))
            .datagram_send_buffer_size(DATAGRAM_SEND_BUFFER)
            .congestion_controller_factory(Arc::new(ControllerConfig {
                congestion: self.congestion,
                bound: self.max_in_flight,
                large: large.clone(),
            }));
        transport
    }
}

fn endpoint(settings: &TunnelSettings) -> EndpointConfig {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &settings.reset_key);
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    let (lane, key, seed) = (settings.lane, settings.connection_id_key, settings.rng_seed);
    endpoint
        .cid_generator(move || -> Box<dyn ConnectionIdGenerator> {
            Box::new(CheckedConnectionIds::new(lane, &key, &seed))
        })
        .rng_seed(Some(settings.rng_seed))
        .supported_versions(vec![QUIC_V1])
        // Every peer of a restarted daemon needs its reset at once; the checked connection IDs keep strangers out.
        .min_reset_interval(Duration::from_micros(100));
    // INVARIANT: clamped to the range that quinn accepts, so this cannot fail.
    let _ = endpoint.max_udp_payload_size(udp_payload(settings));
    endpoint
}

fn udp_payload(settings: &TunnelSettings) -> u16 {
    settings
        .max_udp_payload
        .clamp(MIN_UDP_PAYLOAD, MAX_UDP_PAYLOAD)
}
