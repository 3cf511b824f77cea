//! How sessions and dials end, and what follows: events, backoff, another dial.

use std::{error::Error, time::Instant};

use quinn_proto::{ConnectionError, ConnectionHandle};

use crate::{
    registry::TunnelId,
    tunnel::{
        DialError, Revoker, TunnelEvent, Tunnels, close_code,
        control::Violation,
        error::quote,
        pool::Tunnel,
        session::{Session, Stage},
    },
    wire::capsule::RefusedCode,
};

/// An end that we decide.
pub(super) struct Ending {
    code: u32,
    reason: String,
    /// What the peer is told instead of the reason.
    told: Option<&'static str>,
    error: Option<DialError>,
    next: Next,
}

impl Ending {
    pub(super) fn new(code: u32, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            told: None,
            error: None,
            next: match code {
                close_code::REVOKED => Next::Revoked(Revoker::Us),
                close_code::DONE | close_code::SUPERSEDED => Next::Ordered,
                _ => Next::Lost,
            },
        }
    }

    /// What a dial that ends so is said to have failed by.
    pub(super) fn because(self, error: DialError) -> Self {
        let error = Some(error);
        Self { error, ..self }
    }

    /// The session was still wanted.
    pub(super) fn though_wanted(self) -> Self {
        let next = Next::Lost;
        Self { next, ..self }
    }
}

impl From<Violation> for Ending {
    fn from(violation: Violation) -> Self {
        Self::new(violation.code, violation.reason)
    }
}

/// What an end means for the tunnel's next dial.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// We ended it in good order.
    Ordered,
    /// It broke.
    Lost,
    /// The peer's policy or ours no longer allows it.
    Revoked(Revoker),
}

/// A session's end, whoever decided it.
struct Ended {
    before: Stage,
    reason: String,
    /// If it was a dial.
    error: DialError,
    next: Next,
    /// If it was an accept: it failed in a way that its dialler or we should see to.
    worth_telling: bool,
}

impl Tunnels {
    /// Ends a session that may no longer be.
    pub(super) fn revoke(&mut self, handle: ConnectionHandle, reason: String, now: Instant) {
        let session = self.links.session(handle);
        let reveals = session.is_some_and(|session| self.reveals(session));
        let ending = Ending {
            told: (!reveals).then_some("no longer allowed"),
            ..Ending::new(close_code::REVOKED, reason)
        };
        self.end(handle, ending, now);
    }

    /// Ends a session with CONNECTION_CLOSE.
    pub(super) fn end(&mut self, handle: ConnectionHandle, ending: Ending, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        let before = session.stage;
        if before == Stage::Closed {
            return;
        }
        session.close(ending.code, ending.told.unwrap_or(&ending.reason), now);
        self.links.mark(handle);
        let error = ending.error;
        let ended = Ended {
            before,
            error: error.unwrap_or_else(|| DialError::unreachable(&ending.reason)),
            reason: ending.reason,
            next: ending.next,
            worth_telling: ending.code != close_code::DONE,
        };
        self.handle_ended(handle, ended, now);
        self.links.refresh(handle, now);
    }

    /// A connection ended by itself or by the peer.
    pub(super) fn handle_lost(
        &mut self,
        handle: ConnectionHandle,
        error: &ConnectionError,
        now: Instant,
    ) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        let before = session.stage;
        if before == Stage::Closed {
            return;
        }
        session.end();
        let dial_error = refused_by_us(session).unwrap_or_else(|| DialError::of_connection(error));
        let tunnel = session.tunnel.and_then(|id| self.tunnels.get(&id));
        let live = tunnel.is_some_and(|tunnel| tunnel.live);
        let (reason, next) = match error {
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                let reason = format!("the peer closed it: {} ({code:#x})", quote(&close.reason));
                let revoked = code == u64::from(close_code::REVOKED);
                (
                    reason,
                    if revoked {
                        Next::Revoked(Revoker::Peer)
                    } else {
                        Next::Lost
                    },
                )
            }
            ConnectionError::TimedOut if live => {
                ("nothing heard from the peer for 30 s".into(), Next::Lost)
            }
            ConnectionError::TimedOut => ("idle".into(), Next::Ordered),
            ConnectionError::Reset => ("the peer restarted (stateless reset)".into(), Next::Lost),
            ConnectionError::ConnectionClosed(_)
            | ConnectionError::TransportError(_)
            | ConnectionError::VersionMismatch
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => (explain(error), Next::Lost),
        };
        let worth_telling = matches!(
            error,
            ConnectionError::ConnectionClosed(_) | ConnectionError::TransportError(_)
        );
        let ended = Ended {
            before,
            reason,
            error: dial_error,
            next,
            worth_telling,
        };
        self.handle_ended(handle, ended, now);
    }

    fn handle_ended(&mut self, handle: ConnectionHandle, ended: Ended, now: Instant) {
        self.incoming.remove(&handle);
        let Some(session) = self.links.session(handle) else {
            return;
        };
        match (ended.before, session.tunnel) {
            (Stage::Up | Stage::Draining, Some(id)) => {
                self.handle_down(handle, id, &ended.reason, ended.next, now);
            }
            (Stage::Handshaking | Stage::Greeting, Some(id)) if session.dialled => {
                self.handle_dial_failed(id, ended.error, now);
            }
            (Stage::Handshaking | Stage::Greeting, _) if ended.worth_telling => {
                self.report_incoming(handle, ended.reason);
            }
            (_, _) => {}
        }
    }

    /// A handshake that somebody began came to nothing.
    fn report_incoming(&mut self, handle: ConnectionHandle, reason: String) {
        let Some(session) = self.links.session(handle) else {
            return;
        };
        let report = session.report.to_report();
        let event = TunnelEvent::IncomingRefused {
            remote: session.remote(),
            presented: report.presented.map(|svid| svid.id.to_string()),
            error: report.error.map_or(reason, |error| explain(&error)),
        };
        self.event(event);
    }

    fn handle_down(
        &mut self,
        handle: ConnectionHandle,
        id: TunnelId,
        reason: &str,
        next: Next,
        now: Instant,
    ) {
        let session = self.links.session(handle);
        let up_at = session.and_then(|session| session.up_at).unwrap_or(now);
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        tunnel.up.retain(|&other| other != handle);
        let last = tunnel.up.is_empty();
        if last {
            tunnel.last_error = Some(reason.to_owned());
            match next {
                Next::Ordered => {}
                Next::Lost => {
                    let lasted = now.saturating_duration_since(up_at);
                    tunnel.backoff.handle_lost(lasted, now, &mut self.random);
                }
                Next::Revoked(_) => {
                    let code = RefusedCode::NotAllowed;
                    tunnel
                        .backoff
                        .handle_refused(code, reason, now, &mut self.random);
                }
            }
        }
        let key = tunnel.key.clone();
        self.arm(id);
        self.choose(id);
        if last {
            self.event(TunnelEvent::Down {
                id,
                key,
                reason: reason.to_owned(),
                revoked: match next {
                    Next::Revoked(revoker) => Some(revoker),
                    Next::Lost | Next::Ordered => None,
                },
            });
        }
        self.redial(id, now);
    }

    /// A dial came to nothing.
    pub(super) fn handle_dial_failed(&mut self, id: TunnelId, error: DialError, now: Instant) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        tunnel.dialling = None;
        tunnel.last_error = Some(explain(&error));
        match &error {
            DialError::Refused { code, reason } => {
                tunnel
                    .backoff
                    .handle_refused(*code, reason, now, &mut self.random);
            }
            DialError::NoIdentity
            | DialError::PeerClosed { .. }
            | DialError::Unreachable { .. }
            | DialError::Verify { .. } => tunnel.backoff.handle_failure(now, &mut self.random),
        }
        let (again, alone) = (tunnel.may_dial(), tunnel.up.is_empty());
        let key = tunnel.key.clone();
        self.arm(id);
        if again {
            // NOT_HERE the first time: the registry may just have moved.
            self.dial(id, now);
        } else if alone {
            self.event(TunnelEvent::DialFailed { id, key, error });
        }
    }

    /// Dials without a packet asking for it, where flows live. Those of a peer that the registry no longer has are about to
    /// be cut.
    pub(super) fn redial(&mut self, id: TunnelId, now: Instant) {
        let is_known = |tunnel: &Tunnel| !self.policy.gateways(&tunnel.key.peer).is_empty();
        let wanted = |tunnel: &&Tunnel| tunnel.live && tunnel.may_dial() && is_known(tunnel);
        if self.tunnels.get(&id).filter(wanted).is_some() {
            self.dial(id, now);
        }
    }

    /// Brings the timer of a tunnel's backoff up to date.
    pub(super) fn arm(&mut self, id: TunnelId) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        if tunnel.armed != tunnel.backoff.until {
            if let Some(at) = tunnel.armed {
                self.backoffs.remove(&(at, id));
            }
            if let Some(at) = tunnel.backoff.until {
                self.backoffs.insert((at, id));
            }
            tunnel.armed = tunnel.backoff.until;
        }
    }

    /// The time to dial again has come.
    pub(super) fn handle_backoff_end(&mut self, id: TunnelId, now: Instant) {
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.backoff.clear();
            self.arm(id);
            self.redial(id, now);
        }
    }
}

/// The dial failed because *we* refused the certificate.
fn refused_by_us(session: &Session) -> Option<DialError> {
    let report = session.report.to_report();
    Some(DialError::Verify {
        error: report.error?,
        presented: report.presented.as_ref().map(|svid| svid.id.to_string()),
        issuer: report.presented.map(|svid| svid.issuer),
    })
}

/// An error with its causes.
pub(super) fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
