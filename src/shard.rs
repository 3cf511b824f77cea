//! The data plane as one state machine: the engine decides, the tunnels carry, the shard introduces them.
//!
//! Every input carries `now`, every output is polled; the same seed and inputs give the same decisions and events.
//! After any input, poll until each `poll_` method has nothing left.
//!
//! INVARIANT: the only way from a session to the device is `Shard::deliver`, behind [`Engine::handle_ingress`].

mod books;
mod busy;
mod carry;
mod deliver;
mod handover;
mod plain;
mod refuse;
mod settings;
mod snapshot;
mod waiting;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use crate::{
    engine::{AnswerKind, Egress, Engine, EngineEvent},
    identity::Identities,
    policy::Compiled,
    registry::{KeyTable, TunnelId},
    tunnel::{
        Revoker, Transmit, TunnelEvent, TunnelSetupError, TunnelState, Tunnels, UnderlayDatagram,
    },
    wire::{
        DropReason, FiveTuple,
        fragment::Reassembler,
        segment::{DatagramBatch, Joiner},
        virtio::{GsoKind, SuperPacket, VIRTIO_HEADER_LEN},
    },
};

use busy::Busy;
use plain::PlainConnections;

pub use books::{Books, FrameBook};
pub use handover::Handover;
pub use settings::ShardSettings;
pub use snapshot::{FlowSnapshot, PacketCounts, ShardCounts, ShardSnapshot};
pub use waiting::Waiting;

/// What the control plane learns from a shard.
#[derive(Debug)]
pub enum Event {
    /// From the engine: flows and refusals.
    Engine(EngineEvent),
    /// From the tunnels: sessions up, down, refused.
    Tunnel(TunnelEvent),
}

/// The data plane of one TUN queue and one UDP socket; see the module.
pub struct Shard {
    settings: ShardSettings,
    engine: Engine,
    tunnels: Tunnels,
    keys: KeyTable,
    joiner: Joiner,
    batch: DatagramBatch,
    /// Of the next packet that goes in pieces.
    fragment_id: u16,
    /// An opening segment whose MSS is lowered.
    opening: Vec<u8>,
    reassemblers: BTreeMap<TunnelId, Reassembler>,
    /// Connections that began in plaintext and may not go on.
    plain: PlainConnections,
    /// RSTs and ICMP errors for local senders.
    answers: VecDeque<Vec<u8>>,
    events: VecDeque<Event>,
    /// Frames for other shards, and their bytes.
    handovers: VecDeque<(u8, Vec<u8>)>,
    handover_bytes: usize,
    busy: Busy,
    now: Option<Instant>,
    /// Datagrams came that were not worked on yet.
    unsettled: bool,
    counts: PacketCounts,
}

/// Events that wait for the control plane.
const MAX_EVENTS: usize = 4096;

impl Shard {
    /// A shard without flows and tunnels.
    ///
    /// # Errors
    /// When the TLS or QUIC settings cannot work.
    pub fn new(
        settings: ShardSettings,
        identities: Arc<Identities>,
        policy: Arc<Compiled>,
    ) -> Result<Self, TunnelSetupError> {
        let tunnels = Tunnels::new(settings.tunnel.clone(), identities, Arc::clone(&policy))?
            .with_reveal_reasons(settings.engine.reveal_reasons);
        Ok(Self {
            engine: Engine::new(policy, settings.engine).with_seat(settings.tunnel.lane, None),
            tunnels,
            keys: KeyTable::default(),
            joiner: Joiner::new(settings.udp_offload),
            batch: DatagramBatch::default(),
            fragment_id: 0,
            opening: Vec::new(),
            reassemblers: BTreeMap::new(),
            plain: PlainConnections::default(),
            answers: VecDeque::new(),
            events: VecDeque::new(),
            handovers: VecDeque::new(),
            handover_bytes: 0,
            busy: Busy::default(),
            now: None,
            unsettled: false,
            counts: PacketCounts::default(),
            settings,
        })
    }

    /// Takes one frame from the device: virtio-net header and IP packet.
    pub fn handle_device(&mut self, frame: &[u8], now: Instant) {
        self.now = Some(now);
        self.settle(now);
        self.counts.device_packets += 1;
        self.counts.device_bytes += frame.len().saturating_sub(VIRTIO_HEADER_LEN) as u64;
        self.device_frame(frame, true, now);
        self.pump(now);
    }

    /// Takes one datagram from the underlay. What it brings is worked on with the next other input or poll, so that a batch
    /// of them costs little more than one.
    pub fn handle_underlay(&mut self, datagram: UnderlayDatagram, now: Instant) {
        self.now = Some(now);
        self.tunnels.handle_underlay(now, datagram, &mut self.keys);
        self.unsettled = true;
    }

    /// Takes new identities and policy. Sessions and flows that they no longer allow end.
    pub fn handle_config(
        &mut self,
        identities: Arc<Identities>,
        policy: Arc<Compiled>,
        now: Instant,
    ) {
        self.now = Some(now);
        self.settle(now);
        self.engine.handle_policy(Arc::clone(&policy), now);
        self.tunnels.handle_config(identities, policy, now);
        self.pump(now);
    }

    /// Rebuilds flows from conntrack entries (their original direction) and redials their tunnels: after a restart
    /// established connections go on whichever end has something to send.
    pub fn handle_seed(&mut self, originals: &[FiveTuple], now: Instant) {
        self.now = Some(now);
        self.settle(now);
        for original in originals {
            if let Some(tunnel) = self.engine.handle_seed(original, now, &mut self.keys)
                && let Some(key) = self.keys.key(tunnel)
            {
                self.tunnels.open(tunnel, key, now);
            }
        }
        self.pump(now);
    }

    /// Takes TCP connections, local end first, that began in plaintext and that policy forbids meanwhile. Their packets
    /// are in the middle of what no tunnel has seen the beginning of: they are answered by a reset and not carried.
    pub fn handle_cut(&mut self, connections: &[FiveTuple]) {
        connections
            .iter()
            .for_each(|tuple| self.plain.insert(*tuple));
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = Some(now);
        self.settle(now);
        self.engine.handle_timeout(now, &mut self.keys);
        self.tunnels.handle_timeout(now);
        for reassembler in self.reassemblers.values_mut() {
            for _ in 0..reassembler.expire(now) {
                self.engine.count_drop(DropReason::FragmentTimeout);
            }
        }
        self.pump(now);
    }

    /// Asks every peer for no new flows; sessions close as they empty.
    pub fn handle_drain(&mut self, reason: &str, now: Instant) {
        self.now = Some(now);
        self.settle(now);
        self.tunnels.drain(reason, now);
        self.pump(now);
    }

    /// Asks every peer to keep back what it would send, because a successor takes over. [`Self::handle_close`] follows when
    /// [`Self::is_held`], or after a short time: a peer may not know how.
    pub fn handle_hold(&mut self, now: Instant) {
        self.now = Some(now);
        self.settle(now);
        self.tunnels.hold(now);
        self.pump(now);
    }

    /// Peers that were asked send no more, and nothing waits to be sent to them.
    pub fn is_held(&mut self) -> bool {
        self.tunnels.is_held()
    }

    /// Closes every session: the last thing before the process ends. What was received is delivered still, what comes from
    /// here on is lost, and peers hold back what they send until a successor answers.
    pub fn handle_close(&mut self, reason: &str, now: Instant) {
        self.now = Some(now);
        self.settle(now);
        self.tunnels.close(reason, now);
        self.pump(now);
    }

    /// The next batch for the underlay, at most `max_datagrams` of one size to one address, written to `buf`.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max_datagrams: usize,
        buf: &mut Vec<u8>,
    ) -> Option<Transmit> {
        self.settle(now);
        let transmit = self.tunnels.poll_transmit(now, max_datagrams, buf);
        // What was sent made room, and may have ended a session: see to both before the loop sleeps.
        if transmit.is_none() {
            self.pump(now);
        }
        transmit
    }

    /// The next frame for the device, written to `buf`: virtio-net header and IP packet. `false` when none is left.
    ///
    /// A reset comes after what was delivered before it: it has the sequence number that follows.
    pub fn poll_device(&mut self, buf: &mut Vec<u8>) -> bool {
        if let Some(now) = self.now {
            self.settle(now);
        }
        self.joiner.flush();
        if self.joiner.poll(buf) {
            return true;
        }
        let answer = self.answers.pop_front();
        let Some(packet) = answer.or_else(|| self.engine.poll_reset()) else {
            return false;
        };
        buf.clear();
        buf.resize(VIRTIO_HEADER_LEN, 0);
        buf.extend_from_slice(&packet);
        true
    }

    /// Takes notice that the device refused a super-packet of `kind`: packets of that kind are joined no more.
    pub fn handle_refused_offload(&mut self, kind: GsoKind) {
        self.joiner.stop(kind);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&mut self) -> Option<Instant> {
        if let Some(now) = self.now {
            self.settle(now);
        }
        let fragments = self
            .reassemblers
            .values()
            .filter_map(Reassembler::poll_timeout)
            .min();
        [
            self.engine.poll_timeout(),
            self.tunnels.poll_timeout(),
            fragments,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The next event for the control plane.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(now) = self.now {
            self.settle(now);
        }
        self.events
            .pop_front()
            .or_else(|| self.engine.poll_event().map(Event::Engine))
    }

    /// Tells whether the loop should read the device. `false` is back-pressure: the kernel slows the sender.
    ///
    /// Only the backlog of a healthy tunnel that has the device to itself stops the device; among several busy
    /// tunnels a slow one fills and drops its own queue.
    pub fn wants_device(&self) -> bool {
        let only = self.now.and_then(|now| self.busy.only(now));
        only.is_none_or(|only| {
            !matches!(self.tunnels.state(only), TunnelState::Up) || self.tunnels.has_room(only)
        })
    }

    /// The policy in force.
    pub const fn policy(&self) -> &Arc<Compiled> {
        self.engine.policy()
    }

    /// Decides on a frame, and on those that waited for it.
    fn device_frame(&mut self, frame: &[u8], may_hand_over: bool, now: Instant) {
        self.egress(frame, may_hand_over, now);
        while let Some(mut released) = self.engine.poll_released_egress() {
            let mut frame = vec![0; VIRTIO_HEADER_LEN];
            frame.append(&mut released);
            self.egress(&frame, may_hand_over, now);
        }
    }

    fn egress(&mut self, frame: &[u8], may_hand_over: bool, now: Instant) {
        let Ok((super_packet, packet)) = SuperPacket::parse(frame) else {
            return self.engine.count_egress_drop(DropReason::Malformed);
        };
        if self.plain.hold(&packet) {
            // Other connections with the same ports began elsewhere meanwhile.
            if may_hand_over && let Some(shard) = self.engine.elsewhere(&packet.five_tuple()) {
                return self.hand_over(shard, frame);
            }
            let reason = DropReason::BeganInPlaintext;
            self.engine.count_egress_drop(reason);
            if let Some(answer) = AnswerKind::of(reason).build(&packet) {
                self.answer(answer);
            }
            return;
        }
        let verdict = match may_hand_over {
            true => self.engine.handle_egress(&packet, now, &mut self.keys),
            false => self.engine.handle_handed_over(&packet, now, &mut self.keys),
        };
        match verdict {
            Egress::Elsewhere(shard) => self.hand_over(shard, frame),
            Egress::Tunnel(tunnel) => self.carry(tunnel, frame, &super_packet, packet, now),
            Egress::Drop {
                answer: Some(answer),
                ..
            } => self.answer(answer),
            Egress::Drop { answer: None, .. } | Egress::Held => {}
        }
    }

    /// Works on the datagrams that came since the last time.
    fn settle(&mut self, now: Instant) {
        if std::mem::take(&mut self.unsettled) {
            self.tunnels.settle_input(now, &mut self.keys);
            self.pump(now);
        }
    }

    /// Passes on what the tunnels and the engine have for each other.
    fn pump(&mut self, now: Instant) {
        for (reason, packets) in self.tunnels.take_losses() {
            self.engine.count_drops(reason, packets);
        }
        while let Some((tunnel, live)) = self.engine.poll_live() {
            self.tunnels.set_live_flows(tunnel, live);
        }
        while let Some((tunnel, refused)) = self.engine.poll_revocation() {
            self.tunnels.send_revocation(tunnel, refused);
        }
        while let Some((tunnel, flags, datagram)) = self.tunnels.poll_received() {
            self.receive(tunnel, flags, &datagram, now);
        }
        while let Some(event) = self.tunnels.poll_event() {
            self.handle_tunnel_event(&event, now);
            if self.events.len() < MAX_EVENTS {
                self.events.push_back(Event::Tunnel(event));
            }
        }
    }

    fn handle_tunnel_event(&mut self, event: &TunnelEvent, now: Instant) {
        match event {
            TunnelEvent::Up { id, .. } => {
                self.engine.handle_session_up(*id);
                // It may be held already: then they wait for its successor.
                if self.tunnels.limits(*id).is_some() {
                    for frame in self.engine.pending_mut().take(*id) {
                        self.release(*id, &frame, now);
                    }
                }
            }
            TunnelEvent::DialFailed { id, error, .. } => {
                let reason = error.drop_reason();
                let frames: Vec<_> = self.engine.pending_mut().take(*id).collect();
                for frame in frames {
                    self.drop_frame(*id, &frame, reason, now);
                }
                if error.is_final() {
                    let said = error.to_string();
                    self.engine.handle_session_revoked(*id, true, &said, now);
                }
            }
            TunnelEvent::FlowRefused { id, refused, .. } => {
                self.engine
                    .handle_flow_refused(*id, refused, now, &self.keys);
            }
            TunnelEvent::Down {
                id,
                reason,
                revoked,
                ..
            } => {
                self.reassemblers.remove(id);
                if let Some(revoked) = revoked {
                    let by_peer = *revoked == Revoker::Peer;
                    self.engine
                        .handle_session_revoked(*id, by_peer, reason, now);
                }
            }
            _ => {}
        }
    }
}
