//! One QUIC connection of a tunnel: its stage, its control stream and the queue in front of its datagrams.
//!
//! ```text
//!                     TLS done, both certificates accepted     HELLO -> READY
//! (dial|accept) ──► Handshaking ─────────────────────► Greeting ─────────► Up ──DRAIN──► Draining ──► Closed
//!                        └── 5 s ──► Closed                └── 2 s | REFUSED ──► (Refusing) ──► Closed
//! ```
//! INVARIANT: inner datagrams are taken from quinn and given to it only in Up and Draining.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{Connection, SendDatagramError, VarInt};

use crate::{
    identity::{VerifyReport, X509Svid},
    registry::TunnelId,
    spiffe::SpiffeId,
    tunnel::{
        config::DATAGRAM_SEND_BUFFER, congestion::LargePackets, control::Control, queue::FairQueue,
    },
    wire::capsule::{Capsule, PeerFlags},
};

/// From the first packet to the end of the TLS handshake.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From there to READY.
pub(super) const GREETING_TIMEOUT: Duration = Duration::from_secs(2);
/// Datagrams that wait for quinn's buffer, in bytes: a few milliseconds at the speed of the fastest paths, so that CoDel sees
/// what stands before the device is held.
const QUEUE_BOUND: usize = 4 << 20;
/// A super-packet cut into datagrams, headers included, in bytes.
const SUPER_PACKET: usize = 72 * 1024;

/// Datagrams that came before READY, in bytes: a first flight, which READY may have been lost from.
const EARLY_BOUND: usize = 16 * 1024;
/// What each of them costs beside its own bytes.
const EARLY_OVERHEAD: usize = 64;

/// A peer that was sent data and says nothing for so long, and so many round trips, is silent: its acknowledgements would
/// come within one round trip and the 25 ms that it may hold them back.
const SILENT: Duration = Duration::from_millis(200);
const SILENT_ROUND_TRIPS: u32 = 4;

/// How far a session has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    Handshaking,
    Greeting,
    /// REFUSED is on its way; the dialler closes.
    Refusing,
    Up,
    /// One end said DRAIN.
    Draining,
    /// CONNECTION_CLOSE was sent or received; quinn still answers stray packets.
    Closed,
}

/// Whether inner packets are kept back, because a successor of the peer's is about to take over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hold {
    No,
    /// The peer said HOLD; what is queued still leaves.
    Asked,
    /// The peer knows that nothing more comes.
    Answered,
}

/// A close that is due later.
#[derive(Clone, Debug)]
pub(super) struct PlannedClose {
    pub(super) at: Instant,
    pub(super) code: u32,
    pub(super) reason: &'static str,
}

/// One QUIC connection.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) dialled: bool,
    pub(super) stage: Stage,
    /// Known from the start for the dialler, from HELLO on for the acceptor.
    pub(super) tunnel: Option<TunnelId>,
    /// Whose certificate we present; from the handshake on for the acceptor.
    pub(super) local: Option<SpiffeId>,
    /// What the peer presented, once TLS accepted it.
    pub(super) peer: Option<X509Svid>,
    pub(super) report: VerifyReport,
    /// The identities it was made with are those of this configuration.
    pub(super) generation: u64,
    /// When our certificate expires, in Unix seconds.
    pub(super) own_not_after: u64,
    pub(super) control: Control,
    /// What both ends can do.
    pub(super) flags: PeerFlags,
    /// The shard of the peer that it leads to.
    pub(super) remote_lane: u8,
    pub(super) born: Instant,
    pub(super) up_at: Option<Instant>,
    /// Last inner packet, either way.
    pub(super) last_inner: Instant,
    pub(super) last_ping: Instant,
    /// Last datagram of the peer, whatever was in it.
    pub(super) last_heard: Instant,
    /// When the session itself, apart from quinn, has something to do.
    pub(super) wake: Option<Instant>,
    pub(super) planned_close: Option<PlannedClose>,
    /// Datagrams that went to quinn since somebody counted.
    pub(super) fed: u64,
    pub(super) hold: Hold,
    /// The peer answered our HOLD.
    pub(super) peer_holds: bool,
    /// The largest datagram that fits; it moves both ways with the path MTU.
    pub(super) max_datagram: Option<usize>,
    large: LargePackets,
    /// Waits in the queue of connections with something to send.
    pub(super) dirty: bool,
    /// Datagrams came since it was settled.
    pub(super) touched: bool,
    /// As the timer set has it.
    pub(super) timer: Option<Instant>,
    pub(super) drained: bool,
    /// Capsules wait in quinn: how many STREAM frames had left when they came.
    control_waits: Option<u64>,
    pub(super) queue: FairQueue,
    /// What the acceptor sent before its READY came, and its bytes.
    early: VecDeque<Bytes>,
    early_bytes: usize,
    /// Bytes of the queue that the sum over all sessions has.
    pub(super) accounted: usize,
}

impl Session {
    pub(super) fn new(
        connection: Connection,
        dialled: bool,
        report: VerifyReport,
        large: LargePackets,
        generation: u64,
        now: Instant,
    ) -> Self {
        Self {
            connection,
            dialled,
            stage: Stage::Handshaking,
            tunnel: None,
            local: None,
            peer: None,
            report,
            generation,
            own_not_after: u64::MAX,
            control: Control::new(now),
            flags: PeerFlags::default(),
            remote_lane: 0,
            born: now,
            up_at: None,
            last_inner: now,
            fed: 0,
            last_ping: now,
            last_heard: now,
            wake: Some(now + HANDSHAKE_TIMEOUT),
            planned_close: None,
            hold: Hold::No,
            peer_holds: false,
            max_datagram: None,
            large,
            dirty: false,
            touched: false,
            timer: None,
            drained: false,
            control_waits: None,
            queue: FairQueue::new(QUEUE_BOUND),
            early: VecDeque::new(),
            early_bytes: 0,
            accounted: 0,
        }
    }

    /// Inner datagrams may pass.
    pub(super) const fn carries(&self) -> bool {
        matches!(self.stage, Stage::Up | Stage::Draining)
    }

    /// The peer's underlay address.
    pub(super) fn remote(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    /// The peer's identity, once TLS accepted it.
    pub(super) fn peer_id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().map(|svid| &svid.id)
    }

    /// When the first of both certificates expires, in Unix seconds.
    pub(super) fn not_after(&self) -> u64 {
        let peer = self.peer.as_ref().map_or(u64::MAX, |svid| svid.not_after);
        peer.min(self.own_not_after)
    }

    /// Sends CONNECTION_CLOSE, from then on nothing else.
    pub(super) fn close(&mut self, code: u32, reason: &str, now: Instant) {
        let reason = Bytes::copy_from_slice(reason.as_bytes());
        self.connection.close(now, VarInt::from_u32(code), reason);
        self.end();
    }

    /// Forgets what can no longer be sent.
    pub(super) fn end(&mut self) {
        self.stage = Stage::Closed;
        self.wake = None;
        self.planned_close = None;
        self.queue.clear();
        self.early = VecDeque::new();
    }

    /// A planned close only ever moves nearer.
    pub(super) fn plan_close(
        &mut self,
        after: Duration,
        code: u32,
        reason: &'static str,
        now: Instant,
    ) {
        let at = now + after;
        if self.planned_close.as_ref().is_none_or(|plan| at < plan.at) {
            self.planned_close = Some(PlannedClose { at, code, reason });
            self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
        }
    }

    /// Samples what a datagram may carry. Where large packets get lost, the path's size is found anew, from what every path
    /// carries; what waits in quinn and is larger is lost, as on any link.
    pub(super) fn sample_max_datagram(&mut self, now: Instant) {
        if self.carries() && self.large.are_lost() {
            self.large.forget();
            self.connection.path_changed(now);
        }
        self.max_datagram = self.connection.datagrams().max_size();
    }

    /// Queues one inner datagram of the flow with this hash.
    pub(super) fn send(&mut self, flow: u32, datagram: Bytes, now: Instant) {
        if self.max_datagram.is_some_and(|max| datagram.len() > max) {
            self.queue.losses_mut().too_big += 1;
            return;
        }
        self.queue.push(flow, datagram, now);
    }

    /// The queue takes another super-packet.
    pub(super) const fn has_room(&self) -> bool {
        self.queue.bytes() + SUPER_PACKET <= QUEUE_BOUND
    }

    /// The peer acknowledges nothing: what waits is not a slow path's backlog.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.last_heard + self.connection.rtt() * SILENT_ROUND_TRIPS + SILENT < now
    }

    /// Nothing waits, here or in quinn.
    pub(super) fn is_empty(&mut self) -> bool {
        self.queue.is_empty() && self.quinn_holds_nothing()
    }

    /// Answers the peer's HOLD once all that was queued before it has left: datagrams go before capsules.
    pub(super) fn answer_hold(&mut self) {
        if self.hold == Hold::Asked && self.is_empty() && self.control.send(&Capsule::Held) {
            self.hold = Hold::Answered;
        }
    }

    /// Writes capsules to the control stream; `true` when quinn took some.
    pub(super) fn flush_control(&mut self, now: Instant) -> bool {
        let written = self.control.flush(&mut self.connection, now);
        if written {
            self.control_waits = Some(self.stream_frames_sent());
        }
        written
    }

    /// Moves datagrams into quinn's small buffer while it has room.
    ///
    /// quinn writes DATAGRAM before STREAM frames, so a backlog would starve the control stream: while capsules wait,
    /// nothing follows them into the buffer.
    pub(super) fn feed(&mut self, now: Instant) {
        if let Some(before) = self.control_waits {
            if self.stream_frames_sent() == before {
                return;
            }
            self.control_waits = None;
        }
        let Some(max) = self.max_datagram.filter(|_| self.carries()) else {
            return;
        };
        while self.connection.datagrams().send_buffer_space() >= max
            && let Some(datagram) = self.queue.pop(now)
        {
            match self.connection.datagrams().send(datagram, false) {
                Ok(()) => self.fed += 1,
                // What no longer fits a shrunken path is lost as on any link; the next cut knows the limit.
                Err(
                    SendDatagramError::Blocked(_)
                    | SendDatagramError::TooLarge
                    | SendDatagramError::Disabled
                    | SendDatagramError::UnsupportedByPeer,
                ) => self.queue.losses_mut().too_big += 1,
            }
        }
    }

    /// Takes one inner datagram out.
    pub(super) fn receive(&mut self) -> Option<Bytes> {
        if !self.carries() {
            return None;
        }
        let early = self.early.pop_front();
        early.or_else(|| self.connection.datagrams().recv())
    }

    /// Takes what came too early out of quinn, which would keep megabytes of it: a few for the dialler, which waits for
    /// READY, and none for the acceptor, which nobody may send anything before.
    pub(super) fn hold_early(&mut self) {
        while let Some(datagram) = self.connection.datagrams().recv() {
            let waits = self.dialled && self.stage == Stage::Greeting;
            if waits && self.early_bytes + datagram.len() + EARLY_OVERHEAD <= EARLY_BOUND {
                self.early_bytes += datagram.len() + EARLY_OVERHEAD;
                // A copy: a slice would keep all that was received with it.
                self.early.push_back(Bytes::copy_from_slice(&datagram));
            }
        }
    }

    fn stream_frames_sent(&self) -> u64 {
        self.connection.stats().frame_tx.stream
    }

    fn quinn_holds_nothing(&mut self) -> bool {
        let overhead = size_of::<quinn_proto::Datagram>();
        self.connection.datagrams().send_buffer_space() + overhead >= DATAGRAM_SEND_BUFFER
    }
}
