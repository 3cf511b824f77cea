//! What time and new configurations do to sessions: time-outs, keep-alive, idle close, expiry, revocation.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use quinn_proto::ConnectionHandle;

use crate::{
    identity::{Identities, verifier::PeerRole},
    policy::Compiled,
    registry::TunnelId,
    tunnel::{
        DialError, Tunnels, accept, close_code,
        end::{Ending, explain},
        greeting::unknown,
        session::{Session, Stage},
    },
};

/// Silence after which a session with live flows is pinged; quinn gives up after three of them.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// So much longer the acceptor waits: where both ends have live flows the dialler pings, and its ping serves both.
const ACCEPTOR_WAITS: Duration = Duration::from_secs(2);
/// A draining session without flows ends after this silence.
const DRAINED: Duration = Duration::from_secs(1);
/// A session this close to a certificate's end is replaced, and so is one whose own certificate was rotated...
const RENEW_BEFORE: Duration = Duration::from_secs(30);
/// ...unless it is younger than this: the peer may not have rotated yet.
const SETTLED: Duration = Duration::from_secs(60);
/// How often the wall clock is asked about expiry: it may jump.
const CLOCK_CHECK: Duration = Duration::from_secs(60);

impl Tunnels {
    /// Takes new identities and policy. Sessions that they no longer allow close with 0x10c; the others go on.
    pub fn handle_config(
        &mut self,
        identities: Arc<Identities>,
        policy: Arc<Compiled>,
        now: Instant,
    ) {
        self.now = Some(now);
        (self.identities, self.policy) = (identities, policy);
        self.generation += 1;
        // The provider was found good at the start, so this cannot fail; if it did, accepts would refuse one by one.
        if let Ok((server, ..)) =
            accept::server_config(&self.configs, &self.identities, &self.settings)
        {
            self.links.set_server_config(server);
        }
        for handle in self.links.handles() {
            let session = self
                .links
                .session(handle)
                .filter(|session| session.carries());
            if let Some(Err(reason)) = session.map(|session| self.still_allowed(session)) {
                self.revoke(handle, reason, now);
            }
        }
        for handle in self.links.handles() {
            if let Some(session) = self
                .links
                .session_mut(handle)
                .filter(|session| session.carries())
            {
                session.wake = Some(now);
                self.links.refresh(handle, now);
            }
        }
        for id in self.tunnels.keys().copied().collect::<Vec<_>>() {
            self.handle_backoff_end(id, now);
        }
    }

    /// Whether the identities and policy in force would allow a session that is up.
    pub(super) fn still_allowed(&self, session: &Session) -> Result<(), String> {
        let (Some(local), Some(peer)) = (&session.local, &session.peer) else {
            return Err("the session has no identities".into());
        };
        if self.identities.by_id(local).is_none() {
            return Err(format!("this host no longer holds {local}"));
        }
        let role = match session.dialled {
            true => PeerRole::Server,
            false => PeerRole::Client,
        };
        let now = self.settings.clock.unix_seconds();
        let trusted = self.identities.bundles.verify(peer, role, now);
        trusted.map_err(|error| explain(&error))?;
        if self.policy.gateways(&peer.id).is_empty() {
            return Err(unknown(&peer.id).1);
        }
        if session.dialled {
            return Ok(());
        }
        let decision = self.policy.decide_session(local, &peer.id);
        decision.map_err(|(_, reason)| reason)
    }

    /// Closes every session at once: the last thing before the process ends. Peers with live flows dial again.
    pub fn close(&mut self, reason: &str, now: Instant) {
        self.now = Some(now);
        self.draining = Some(reason.to_owned());
        for handle in self.links.handles() {
            self.end(handle, Ending::new(close_code::DONE, reason), now);
        }
    }

    /// A session's timer is due.
    pub(super) fn handle_wake(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        if session.wake.is_none_or(|wake| wake > now) {
            return;
        }
        session.wake = None;
        match (session.stage, session.planned_close.clone()) {
            (_, Some(plan)) if plan.at <= now => {
                self.end(handle, Ending::new(plan.code, plan.reason), now);
            }
            (Stage::Handshaking, _) => self.time_out(handle, "no answer within 5 s", now),
            (Stage::Greeting, _) => {
                self.time_out(handle, "connected, but no READY within 2 s", now);
            }
            (Stage::Up | Stage::Draining, _) => self.look_after(handle, now),
            (Stage::Closed | Stage::Refusing, plan) => session.wake = plan.map(|plan| plan.at),
        }
    }

    fn time_out(&mut self, handle: ConnectionHandle, detail: &'static str, now: Instant) {
        let ending = Ending::new(close_code::DONE, "handshake timed out");
        self.end(handle, ending.because(DialError::unreachable(detail)), now);
    }

    /// Expiry, idle close, keep-alive of a session that is up, and when to look again.
    fn look_after(&mut self, handle: ConnectionHandle, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        let tunnel = session.tunnel.and_then(|id| self.tunnels.get(&id));
        let live = tunnel.is_some_and(|tunnel| tunnel.live);
        let kept = live && tunnel.is_some_and(|tunnel| tunnel.current == Some(handle));
        let wall = self.settings.clock.unix_seconds();
        // A certificate is good until the end of its last second (RFC 5280 §4.1.2.5).
        let end = session.not_after().saturating_add(1);
        let left = Duration::from_secs(end.saturating_sub(wall));
        let silence = match session.stage == Stage::Draining {
            true => DRAINED,
            false => self.settings.idle_close,
        };
        let idle = session.last_inner + silence;
        if left.is_zero() {
            let ending = Ending::new(close_code::DONE, "a certificate has expired");
            return self.end(handle, ending.though_wanted(), now);
        }
        let young = session.born + SETTLED > now;
        let own = session
            .local
            .as_ref()
            .and_then(|id| self.identities.by_id(id));
        let rotated = own.is_some_and(|own| own.svid.not_after > session.own_not_after);
        let renew = kept && session.dialled && !young && (rotated || left <= RENEW_BEFORE);
        if !live && idle <= now && session.is_empty() {
            return self.end(handle, Ending::new(close_code::DONE, "idle"), now);
        }
        if session.last_inner + KEEP_ALIVE <= now && session.queue.is_empty() {
            session.queue.clear();
        }
        let patience = match session.dialled {
            true => KEEP_ALIVE,
            false => KEEP_ALIVE + ACCEPTOR_WAITS,
        };
        let said = session.last_inner.max(session.last_heard);
        let mut ping = (said + patience).max(session.last_ping + KEEP_ALIVE);
        if kept && ping <= now {
            session.connection.ping();
            session.last_ping = now;
            ping = now + KEEP_ALIVE;
        }
        let due = [
            Some(now + left.min(CLOCK_CHECK)),
            session.planned_close.as_ref().map(|plan| plan.at),
            (!live).then(|| idle.max(now + DRAINED)),
            kept.then_some(ping),
            (left > RENEW_BEFORE).then(|| now + (left - RENEW_BEFORE)),
        ];
        session.wake = due.into_iter().flatten().min();
        let id = session.tunnel.filter(|_| renew);
        self.links.mark(handle);
        if let Some(id) = id {
            self.renew(id, now);
        }
    }

    /// Dials a replacement beside a session that is up; it takes over when it is up itself.
    fn renew(&mut self, id: TunnelId, now: Instant) {
        let tunnel = self.tunnels.get(&id);
        let free = tunnel
            .is_some_and(|tunnel| tunnel.dialling.is_none() && tunnel.backoff.until.is_none());
        if free {
            self.dial(id, now);
        }
    }
}
