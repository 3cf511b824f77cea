//! From "connected" to "authorised": HELLO, READY, REFUSED, and the capsules after them (wire.md §3.2, §4).
//!
//! INVARIANT: a session is Up only through [`Tunnels::handle_up`], after TLS accepted both certificates and the acceptor
//! said READY. The dialler's "connected" alone comes before the acceptor looked at its certificate.

use std::time::{Duration, Instant};

use quinn_proto::{ConnectionHandle, Dir};
use rustls::pki_types::CertificateDer;

use crate::{
    identity::X509Svid,
    registry::{KeyTable, TunnelId, TunnelKey},
    spiffe::SpiffeId,
    tunnel::{
        DialError, TunnelEvent, Tunnels, close_code,
        control::Violation,
        end::Ending,
        pool::Tunnel,
        session::{GREETING_TIMEOUT, Hold, Session, Stage},
    },
    wire::capsule::{Capsule, Hello, PeerFlags, RefusedCode},
};

/// The version of our capsules.
const VERSION: u64 = 1;
/// How long the dialler may take to close after REFUSED.
const REFUSED_LINGER: Duration = Duration::from_secs(1);
/// How long a superseded session still takes what is on its way.
const SUPERSEDED_LINGER: Duration = Duration::from_secs(2);
/// Sessions of one tunnel; further superseded ones close at once.
const MAX_SESSIONS: usize = 4;
/// How long a draining session lives on.
pub(super) const DRAIN_TIME: Duration = Duration::from_secs(30);

impl Tunnels {
    /// TLS is done on our side.
    pub(super) fn handle_connected(&mut self, handle: ConnectionHandle, now: Instant) {
        let greeted = self.greet(handle, now);
        if let Err(reason) = greeted {
            self.end(handle, Ending::new(close_code::INTERNAL, reason), now);
        }
    }

    fn greet(&mut self, handle: ConnectionHandle, now: Instant) -> Result<(), &'static str> {
        let session = self.links.session_mut(handle).ok_or("no such session")?;
        let peer = presented(session).ok_or("the peer's certificate cannot be read again")?;
        session.stage = Stage::Greeting;
        session.wake = Some(now + GREETING_TIMEOUT);
        if !session.dialled {
            let local = session.report.to_report().local;
            let own = local.and_then(|id| self.identities.by_id(&id));
            let own = own.ok_or("the identity asked for is gone")?;
            session.local = Some(own.id().clone());
            session.own_not_after = own.svid.not_after;
            session.peer = Some(peer);
            return Ok(());
        }
        let tunnel = session.tunnel.and_then(|id| self.tunnels.get(&id));
        let key = &tunnel.ok_or("no such tunnel")?.key;
        // The verifier has compared already; whatever happens to it, no packet leaves for another identity.
        if peer.id != key.peer {
            return Err("the peer's certificate is not that of the identity dialled");
        }
        let hello = Capsule::Hello(Hello {
            version: VERSION,
            flags: PeerFlags::ALL.with_lane(self.settings.lane),
            source: key.local.clone(),
            destination: key.peer.clone(),
        });
        session.peer = Some(peer);
        let stream = session.connection.streams().open(Dir::Bi);
        session
            .control
            .start(stream.ok_or("the peer allows no control stream")?);
        session.control.send(&hello);
        Ok(())
    }

    /// The peer opened a stream: the dialler may open exactly one.
    pub(super) fn handle_stream(&mut self, handle: ConnectionHandle, dir: Dir, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        while let Some(stream) = session.connection.streams().accept(dir) {
            if dir == Dir::Uni || stream.index() != 0 {
                let violation = Violation::protocol("a stream that is not the control stream");
                return self.end(handle, violation.into(), now);
            }
            session.control.start(stream);
        }
    }

    /// Reads every capsule that is there.
    pub(super) fn read_control(
        &mut self,
        handle: ConnectionHandle,
        now: Instant,
        mut keys: Option<&mut KeyTable>,
    ) {
        loop {
            let Some(session) = self.links.session_mut(handle) else {
                return;
            };
            let awaits_hello = !session.dialled && session.stage == Stage::Greeting;
            let reads = session.carries() || session.stage == Stage::Greeting;
            if !reads || (awaits_hello && keys.is_none()) {
                return;
            }
            match session.control.poll(&mut session.connection, now) {
                Ok(Some(capsule)) => {
                    self.handle_capsule(handle, capsule, now, keys.as_deref_mut());
                }
                Ok(None) => return,
                Err(violation) => return self.end(handle, violation.into(), now),
            }
        }
    }

    fn handle_capsule(
        &mut self,
        handle: ConnectionHandle,
        capsule: Capsule,
        now: Instant,
        keys: Option<&mut KeyTable>,
    ) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        match (session.stage, session.dialled, capsule, session.tunnel) {
            (_, _, Capsule::Unknown { .. }, _) => session.control.unknown += 1,
            (Stage::Greeting, false, Capsule::Hello(hello), _) => {
                self.handle_hello(handle, &hello, now, keys);
            }
            (Stage::Greeting, true, Capsule::Ready { version, flags }, Some(id))
                if version == VERSION =>
            {
                session.flags = flags.and(PeerFlags::ALL);
                session.remote_lane = flags.lane();
                self.handle_up(handle, id, now);
            }
            (Stage::Greeting, true, Capsule::Refused { code, reason }, _) => {
                let error = DialError::Refused { code, reason };
                self.end(
                    handle,
                    Ending::new(close_code::DONE, "refused").because(error),
                    now,
                );
            }
            (Stage::Up | Stage::Draining, _, Capsule::FlowRefused(refused), Some(id)) => {
                if let Some(key) = self.tunnels.get(&id).map(|tunnel| tunnel.key.clone()) {
                    self.event(TunnelEvent::FlowRefused { id, key, refused });
                }
            }
            (Stage::Up | Stage::Draining, _, Capsule::Drain { .. }, Some(id)) => {
                session.stage = Stage::Draining;
                session.plan_close(DRAIN_TIME, close_code::DONE, "drained", now);
                self.choose(id);
                self.redial(id, now);
            }
            (Stage::Up | Stage::Draining, _, Capsule::Hold, Some(id)) => {
                self.handle_hold(handle, id, now);
            }
            (Stage::Up | Stage::Draining, _, Capsule::Held, _) if self.holding => {
                session.peer_holds = true;
            }
            (_, _, _, _) => {
                let violation = Violation::protocol("a capsule out of turn");
                self.end(handle, violation.into(), now);
            }
        }
    }

    fn handle_hello(
        &mut self,
        handle: ConnectionHandle,
        hello: &Hello,
        now: Instant,
        keys: Option<&mut KeyTable>,
    ) {
        let (Some(session), Some(keys)) = (self.links.session(handle), keys) else {
            return;
        };
        let judged = self.judge(session, hello);
        let reveals = self.reveals(session);
        let lane = self.settings.lane;
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        match judged {
            Ok(key) => {
                let id = keys.id(&key);
                session.tunnel = Some(id);
                session.flags = hello.flags.and(PeerFlags::ALL);
                session.remote_lane = hello.flags.lane();
                session.control.send(&Capsule::Ready {
                    version: VERSION,
                    flags: session.flags.with_lane(lane),
                });
                self.tunnels.entry(id).or_insert_with(|| Tunnel::new(key));
                self.handle_up(handle, id, now);
            }
            Err((code, reason)) => {
                session.stage = Stage::Refusing;
                session.wake = None;
                session.plan_close(REFUSED_LINGER, close_code::DONE, "refused", now);
                let (remote, presented) =
                    (session.remote(), session.peer_id().map(ToString::to_string));
                let told = match (reveals, code) {
                    (false, RefusedCode::NotAllowed) => "not allowed".to_owned(),
                    _ => reason.clone(),
                };
                session
                    .control
                    .send(&Capsule::Refused { code, reason: told });
                self.event(TunnelEvent::IncomingRefused {
                    remote,
                    presented,
                    error: reason,
                });
            }
        }
    }

    /// May this session be? The key that it belongs to, or the refusal.
    fn judge(&self, session: &Session, hello: &Hello) -> Result<TunnelKey, (RefusedCode, String)> {
        if hello.version != VERSION {
            let reason = format!("version {} is not spoken here", hello.version);
            return Err((RefusedCode::BadVersion, reason));
        }
        let (Some(local), Some(peer)) = (&session.local, session.peer_id()) else {
            return Err((RefusedCode::BadHello, "no identity".into()));
        };
        if hello.source != *peer || hello.destination != *local {
            let reason = "the identities in HELLO are not those of the certificates";
            return Err((RefusedCode::BadIdentity, reason.into()));
        }
        if let Some(reason) = &self.draining {
            return Err((RefusedCode::Draining, reason.clone()));
        }
        self.policy.decide_session(local, peer)?;
        let gateways = self.policy.gateways(peer);
        let remote = session.remote().ip().to_canonical();
        let gateway = gateways
            .iter()
            .find(|gateway| gateway.ip() == remote)
            .or_else(|| gateways.first());
        let gateway = *gateway.ok_or_else(|| unknown(peer))?;
        Ok(TunnelKey {
            local: local.clone(),
            peer: peer.clone(),
            gateway,
            lane: hello.flags.lane(),
        })
    }

    /// READY was sent or received.
    fn handle_up(&mut self, handle: ConnectionHandle, id: TunnelId, now: Instant) {
        self.incoming.remove(&handle);
        let stale = self
            .links
            .session(handle)
            .filter(|session| session.generation != self.generation);
        if let Some(Err(reason)) = stale.map(|session| self.still_allowed(session)) {
            return self.revoke(handle, reason, now);
        }
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        session.stage = Stage::Up;
        session.up_at = Some(now);
        session.last_inner = now;
        session.wake = Some(now);
        self.supersede(handle, id, now);
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        tunnel.up.push(handle);
        tunnel.counts.handshakes += 1;
        tunnel.dialling = tunnel.dialling.filter(|&dialling| dialling != handle);
        tunnel.backoff.handle_up();
        self.arm(id);
        self.choose(id);
        self.announce(handle, id);
        // Dialled before the drain began: the peer has not heard of it.
        if let Some(reason) = self.draining.clone() {
            self.send_drain(handle, &reason, now);
        }
        if self.holding {
            self.send_hold(handle, now);
        }
    }

    /// A newer session takes over one with the same shard of the peer. Simultaneous dials, which go in opposite directions
    /// and began before either was up, both stay until one is idle.
    fn supersede(&mut self, newer: ConnectionHandle, id: TunnelId, now: Instant) {
        let (Some(tunnel), Some(session)) = (self.tunnels.get(&id), self.links.session(newer))
        else {
            return;
        };
        let (born, dialled, remote_lane) = (session.born, session.dialled, session.remote_lane);
        let older = tunnel.up.clone();
        let crowd = older.len().saturating_sub(MAX_SESSIONS - 1);
        for (index, &handle) in older.iter().enumerate() {
            let Some(session) = self.links.session_mut(handle) else {
                continue;
            };
            let simultaneous =
                session.dialled != dialled && session.up_at.is_some_and(|up_at| born < up_at);
            let (code, reason) = (close_code::SUPERSEDED, "superseded by a newer session");
            if index < crowd {
                self.end(handle, Ending::new(code, reason), now);
            } else if !simultaneous && session.remote_lane == remote_lane {
                session.plan_close(SUPERSEDED_LINGER, code, reason, now);
                self.links.refresh(handle, now);
            }
        }
    }

    /// Decides which session carries the tunnel's packets: the newest, or of simultaneous dials the one dialled by the
    /// smaller SPIFFE ID, so that both ends decide alike.
    pub(super) fn choose(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        let ours = tunnel.key.local < tunnel.key.peer;
        let takes = |handle: &ConnectionHandle| {
            let session = self.links.session(*handle);
            session.is_some_and(|session| session.hold == Hold::No)
        };
        let newest_first = || tunnel.up.iter().rev().copied().filter(takes);
        let fresh = |handle: &ConnectionHandle| {
            self.links.session(*handle).is_some_and(|session| {
                session.stage == Stage::Up && session.planned_close.is_none()
            })
        };
        let preferred = newest_first().filter(fresh).find(|&handle| {
            let dialled = self
                .links
                .session(handle)
                .is_some_and(|session| session.dialled);
            dialled == ours && tunnel.key.local != tunnel.key.peer
        });
        let fresh = preferred.or_else(|| newest_first().find(fresh));
        let any = newest_first().next();
        tunnel.current_is_up = fresh.is_some();
        tunnel.current = fresh.or(any);
        tunnel.is_held = tunnel.current.is_none() && !tunnel.up.is_empty();
        if let Some(session) = tunnel
            .current
            .and_then(|handle| self.links.session_mut(handle))
        {
            session.wake = self.now;
        }
        if let (Some(current), Some(now)) = (tunnel.current, self.now) {
            self.links.refresh(current, now);
        }
    }

    /// Asks the peer for no new flows on a session.
    pub(super) fn send_drain(&mut self, handle: ConnectionHandle, reason: &str, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        session.control.send(&Capsule::Drain {
            reason: reason.to_owned(),
        });
        session.stage = Stage::Draining;
        session.plan_close(DRAIN_TIME, close_code::DONE, "drained", now);
        let id = session.tunnel;
        if let Some(id) = id {
            self.choose(id);
        }
    }

    fn announce(&mut self, handle: ConnectionHandle, id: TunnelId) {
        let (Some(tunnel), Some(session)) = (self.tunnels.get(&id), self.links.session(handle))
        else {
            return;
        };
        let negotiated = session.report.to_report().negotiated;
        let event = TunnelEvent::Up {
            id,
            key: tunnel.key.clone(),
            dialled: session.dialled,
            remote: session.remote(),
            version: crate::identity::Negotiated::VERSION,
            cipher: negotiated.map(|tls| tls.cipher_name()).unwrap_or_default(),
            group: negotiated.map(|tls| tls.group_name()).unwrap_or_default(),
            peer_not_after: session.peer.as_ref().map_or(0, |svid| svid.not_after),
        };
        self.event(event);
    }
}

/// The refusal of a peer without a place in the registry.
pub(super) fn unknown(peer: &SpiffeId) -> (RefusedCode, String) {
    let reason = format!("no workload of the registry has the identity {peer}");
    (RefusedCode::NotAllowed, reason)
}

/// The certificate that TLS accepted from the peer.
fn presented(session: &Session) -> Option<X509Svid> {
    let identity = session.connection.crypto_session().peer_identity()?;
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    X509Svid::new(*chain).ok()
}
