//! QUIC sessions by tunnel key, sans-IO, on quinn-proto (wire.md §3–5).
//!
//! Dials, accepts, greets, carries datagrams, and closes what policy, trust or time no longer allow. Never looks into an
//! inner packet: who may send what is the engine's business. Every input carries `now`; after any input poll until each
//! `poll_` method has nothing left. The same seed and inputs give the same decisions.

mod accept;
mod api;
mod config;
mod congestion;
mod connection_id;
mod control;
mod dial;
mod end;
mod error;
mod gate;
mod greeting;
mod hold;
mod links;
mod pool;
mod queue;
mod random;
mod session;
mod snapshot;
#[cfg(test)]
mod tests;
mod upkeep;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use quinn_proto::{ConnectionHandle, Event, StreamEvent};

use crate::{
    identity::Identities,
    policy::Compiled,
    registry::{KeyTable, TunnelId, TunnelKey},
    spiffe::SpiffeId,
    tunnel::{
        config::Configs,
        control::Violation,
        gate::Gate,
        links::{Links, Routed},
        pool::Tunnel,
        random::Random,
        session::Session,
    },
    wire::{
        DropReason,
        capsule::{Capsule, FlowRefused, PeerFlags},
        segment::CutLimits,
    },
};

pub use api::{
    DatagramBook, Revoker, Transmit, TunnelEvent, TunnelSettings, TunnelSnapshot, TunnelState,
    UnderlayDatagram,
};
pub use congestion::Congestion;
pub use connection_id::{CONNECTION_ID_LEN, LONG_HEADER, LONG_ID_AT, SHORT_ID_AT, shard_octet};
pub use error::{DialError, TunnelSetupError, close_code};

/// Events that wait to be polled.
const MAX_EVENTS: usize = 4096;
/// Received datagrams that wait to be polled, in bytes; more wait in quinn's own bounded buffers.
const MAX_RECEIVED: usize = 4 << 20;
/// What a datagram spends on our own framing: quarter stream id and context (wire.md §3.3).
const FRAMING: usize = 2;

/// Every session of a shard; see the module.
pub struct Tunnels {
    settings: TunnelSettings,
    identities: Arc<Identities>,
    policy: Arc<Compiled>,
    /// Counts configurations.
    generation: u64,
    configs: Configs,
    links: Links,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    /// When tunnels may dial again.
    backoffs: BTreeSet<(Instant, TunnelId)>,
    /// Accepted sessions that are not up yet.
    incoming: BTreeSet<ConnectionHandle>,
    gate: Gate,
    received: VecDeque<(TunnelId, PeerFlags, Bytes)>,
    received_bytes: usize,
    events: VecDeque<TunnelEvent>,
    random: Random,
    /// The last time anybody told.
    now: Option<Instant>,
    /// We are going away: why.
    draining: Option<String>,
    /// A successor of ours takes over in a moment.
    holding: bool,
    /// A peer of the own trust domain is told which policy refuses its session.
    reveal_reasons: bool,
    ecn_marked: u64,
}

impl Tunnels {
    /// Tunnels without a session.
    ///
    /// # Errors
    /// When the TLS library refuses what every accept and every dial would need.
    pub fn new(
        settings: TunnelSettings,
        identities: Arc<Identities>,
        policy: Arc<Compiled>,
    ) -> Result<Self, TunnelSetupError> {
        let configs = Configs::new(&settings);
        let server = accept::server_config(&configs, &identities, &settings)?.0;
        dial::check(&configs, &identities, &settings)?;
        Ok(Self {
            links: Links::new(Arc::clone(&configs.endpoint), server, settings.congestion),
            configs,
            generation: 0,
            tunnels: BTreeMap::new(),
            backoffs: BTreeSet::new(),
            incoming: BTreeSet::new(),
            gate: Gate::new(),
            received: VecDeque::new(),
            received_bytes: 0,
            events: VecDeque::new(),
            random: Random::new(&settings.rng_seed, "tunnel"),
            now: None,
            draining: None,
            holding: false,
            reveal_reasons: true,
            ecn_marked: 0,
            settings,
            identities,
            policy,
        })
    }

    /// Whether peers of the own trust domain are told which policy refuses their sessions; they are unless this says no.
    #[must_use]
    pub fn with_reveal_reasons(self, reveal_reasons: bool) -> Self {
        Self {
            reveal_reasons,
            ..self
        }
    }

    /// Takes one datagram from the underlay. Ask [`Self::settle_input`] for what it brought, once for a whole batch: most
    /// of what a session does with a datagram it need not do for each.
    pub fn handle_underlay(
        &mut self,
        now: Instant,
        datagram: UnderlayDatagram,
        keys: &mut KeyTable,
    ) {
        self.now = Some(now);
        if self.is_crowded(datagram.remote) && self.turns_away(&datagram, now) {
            return;
        }
        match self.links.handle(datagram, now) {
            Some(Routed::Connection) | None => {}
            Some(Routed::Incoming(incoming)) => self.accept(*incoming, now, keys),
        }
    }

    /// Takes out of the sessions what the datagrams since the last call brought. An accepted session gets its number from
    /// `keys`.
    pub fn settle_input(&mut self, now: Instant, keys: &mut KeyTable) {
        while let Some(handle) = self.links.next_touched() {
            self.settle(handle, now, Some(keys));
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        while let Some(handle) = self.links.next_due(now) {
            self.handle_wake(handle, now);
            self.settle(handle, now, None);
        }
        while let Some(&(at, id)) = self.backoffs.first() {
            if at > now {
                break;
            }
            self.backoffs.pop_first();
            self.handle_backoff_end(id, now);
        }
    }

    /// Dials unless a session is up, dialling or backing off.
    pub fn open(&mut self, id: TunnelId, key: &TunnelKey, now: Instant) {
        self.now = Some(now);
        let tunnel = self
            .tunnels
            .entry(id)
            .or_insert_with(|| Tunnel::new(key.clone()));
        if tunnel.may_dial() {
            self.dial(id, now);
        }
    }

    /// DRAIN to every peer; no new dials, and incoming sessions are refused.
    pub fn drain(&mut self, reason: &str, now: Instant) {
        self.now = Some(now);
        self.draining = Some(reason.to_owned());
        let handles: Vec<_> = self
            .tunnels
            .values()
            .flat_map(|tunnel| tunnel.up.clone())
            .collect();
        for handle in handles {
            self.send_drain(handle, reason, now);
            self.settle(handle, now, None);
        }
    }

    /// What a tunnel can do for a packet.
    pub fn state(&self, id: TunnelId) -> TunnelState {
        self.tunnels
            .get(&id)
            .map_or(TunnelState::Idle, Tunnel::state)
    }

    /// A session carries the tunnel's packets and takes new flows.
    pub fn is_up(&self, id: TunnelId) -> bool {
        self.tunnels
            .get(&id)
            .is_some_and(|tunnel| tunnel.current_is_up)
    }

    /// Another super-packet (64 KiB) need not wait outside: the session's queue takes it without dropping, or the peer is
    /// silent and its queue is to drop rather than to stop everybody's device (performance.md §3, rule 5).
    pub fn has_room(&self, id: TunnelId) -> bool {
        let session = self
            .current(id)
            .and_then(|handle| self.links.session(handle));
        session.is_some_and(|session| {
            session.has_room() || self.now.is_some_and(|now| session.is_silent(now))
        })
    }

    /// What a datagram may carry; `None` unless Up (or Draining with a session).
    pub fn limits(&self, id: TunnelId) -> Option<CutLimits> {
        let session = self.links.session(self.current(id)?)?;
        Some(CutLimits {
            inner: session.max_datagram?.checked_sub(FRAMING)?,
            fragment: session.flags.fragment(),
            partial_checksum: session.flags.partial_checksum(),
        })
    }

    /// Queues datagrams (made by `cut`) of one inner flow on the session that carries the tunnel's packets. `flow` is the
    /// flow's hash: flows share the session fairly.
    ///
    /// What is lost, all of it where there is no session, is told by [`Self::take_losses`].
    pub fn send(
        &mut self,
        id: TunnelId,
        flow: u32,
        datagrams: impl Iterator<Item = Bytes>,
        now: Instant,
    ) {
        self.now = Some(now);
        let (mut packets, mut bytes) = (0, 0);
        let sent = datagrams.inspect(|datagram| {
            packets += 1;
            bytes += datagram.len().saturating_sub(FRAMING) as u64;
        });
        let mut tunnel = self.tunnels.get_mut(&id);
        let current = tunnel.as_ref().and_then(|tunnel| tunnel.current);
        if self.links.send(current, flow, sent, now)
            && let Some(tunnel) = &mut tunnel
        {
            tunnel.counts.packets_sent += packets;
            tunnel.counts.bytes_sent += bytes;
        }
        self.links.book.queued += packets;
    }

    /// Datagrams that the queues of all sessions lost since the last call.
    pub fn take_losses(&mut self) -> impl Iterator<Item = (DropReason, u64)> + use<> {
        let losses = self.links.losses.take();
        self.ecn_marked += losses.marked;
        self.links.book.dropped += losses.sum();
        [
            (DropReason::QueueFull, losses.full),
            (DropReason::QueueDelay, losses.late),
            (DropReason::TooBig, losses.too_big),
            (DropReason::TunnelDown, losses.ended),
        ]
        .into_iter()
        .filter(|&(_, packets)| packets > 0)
    }

    /// What became of every datagram so far; what [`Self::take_losses`] has not told yet is missing.
    pub fn book(&self) -> DatagramBook {
        self.links.book()
    }

    /// Inner packets that were marked with CE, in all.
    pub const fn ecn_marked(&self) -> u64 {
        self.ecn_marked
    }

    /// Bytes that wait in the queues of all sessions.
    pub const fn queued_bytes(&self) -> usize {
        self.links.queued
    }

    /// Tells the peer that a packet of its flow was refused; silently not, when there were too many lately.
    pub fn send_flow_refused(&mut self, id: TunnelId, refused: FlowRefused) {
        let (Some(handle), Some(now)) = (self.current(id), self.now) else {
            return;
        };
        if let Some(session) = self.links.session_mut(handle) {
            session
                .control
                .send_refusal(&Capsule::FlowRefused(refused), now);
            self.links.refresh(handle, now);
        }
    }

    /// Tells the peer that a flow of its own was cut. All of them get through, in order, as fast as the peer takes them;
    /// without a session nobody is told.
    pub fn send_revocation(&mut self, id: TunnelId, revoked: FlowRefused) {
        let (Some(handle), Some(now)) = (self.current(id), self.now) else {
            return;
        };
        if let Some(session) = self.links.session_mut(handle) {
            session.control.queue_revocation(revoked);
            self.links.refresh(handle, now);
        }
    }

    /// While flows live, sessions are kept alive, and a lost one is dialled again without a packet asking for it.
    pub fn set_live_flows(&mut self, id: TunnelId, live: bool) {
        let (Some(tunnel), Some(now)) = (self.tunnels.get_mut(&id), self.now) else {
            return;
        };
        tunnel.live = live;
        for handle in tunnel.up.clone() {
            if let Some(session) = self.links.session_mut(handle) {
                session.wake = Some(now);
                self.links.refresh(handle, now);
            }
        }
    }

    /// One datagram that a session in UP brought, and what both ends can do.
    pub fn poll_received(&mut self) -> Option<(TunnelId, PeerFlags, Bytes)> {
        let received = self.received.pop_front()?;
        self.received_bytes -= received.2.len();
        Some(received)
    }

    /// At most `max_datagrams` of one size to one address into `buf` (cleared first).
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.now = Some(now);
        buf.clear();
        if let Some(transmit) = self.links.poll_response(buf) {
            return Some(transmit);
        }
        while let Some(handle) = self.links.next_dirty() {
            let transmit = self.links.poll_connection(handle, max_datagrams, buf, now);
            if transmit.is_some() {
                return transmit;
            }
            self.settle(handle, now, None);
        }
        None
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        let backoff = self.backoffs.first().map(|&(at, _)| at);
        [self.links.poll_timeout(), backoff]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    /// Takes out of a connection whatever an input left in it.
    ///
    /// Without `keys` a HELLO stays unread: only [`Self::settle_input`], which finds every HELLO, has them.
    fn settle(&mut self, handle: ConnectionHandle, now: Instant, keys: Option<&mut KeyTable>) {
        while let Some(event) = self.links.poll(handle) {
            match event {
                Event::Connected => self.handle_connected(handle, now),
                Event::ConnectionLost { reason } => {
                    // What came before the end, though in the same batch, is still good.
                    self.receive(handle, now);
                    self.handle_lost(handle, &reason, now);
                }
                Event::Stream(StreamEvent::Opened { dir }) => self.handle_stream(handle, dir, now),
                Event::Stream(StreamEvent::Stopped { .. }) => {
                    let violation = Violation::protocol("the control stream was stopped");
                    self.end(handle, violation.into(), now);
                }
                Event::Stream(
                    StreamEvent::Available { .. }
                    | StreamEvent::Finished { .. }
                    | StreamEvent::Readable { .. }
                    | StreamEvent::Writable { .. },
                )
                | Event::DatagramReceived
                | Event::DatagramsUnblocked
                | Event::HandshakeDataReady => {}
            }
        }
        self.read_control(handle, now, keys);
        self.receive(handle, now);
        self.links.refresh(handle, now);
    }

    /// Takes every inner datagram out: quinn drops the oldest when its buffer is full.
    fn receive(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        if !session.carries() {
            return session.hold_early();
        }
        let Some(id) = session.tunnel else { return };
        let (mut packets, mut bytes) = (0, 0);
        while self.received_bytes < MAX_RECEIVED
            && let Some(datagram) = session.receive()
        {
            packets += 1;
            self.received_bytes += datagram.len();
            bytes += datagram.len().saturating_sub(FRAMING) as u64;
            session.last_inner = now;
            self.received.push_back((id, session.flags, datagram));
        }
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.counts.packets_received += packets;
            tunnel.counts.bytes_received += bytes;
        }
    }

    /// The peer of a session may learn which policy refuses it.
    fn reveals(&self, session: &Session) -> bool {
        let domain = |id: &SpiffeId| id.trust_domain_str().to_owned();
        let own = session.local.as_ref().map(domain);
        self.reveal_reasons && own == session.peer_id().map(domain)
    }

    fn current(&self, id: TunnelId) -> Option<ConnectionHandle> {
        self.tunnels.get(&id)?.current
    }

    fn event(&mut self, event: TunnelEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }
}
