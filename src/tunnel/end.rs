//! How sessions and dials end, and what follows: events, backoff, another dial.

use std::{error::Error, time::Instant};

use quinn_proto::{ConnectionError, ConnectionHandle};

use crate::{
    registry::TunnelId,
    tunnel::{
        DialError, TunnelEvent, Tunnels, close_code,
        control::Violation,
        session::{Session, Stage},
    },
    wire::capsule::RefusedCode,
};

/// An end that we decide.
pub(super) struct Ending {
    code: u32,
    reason: String,
    error: Option<DialError>,
}

impl Ending {
    pub(super) fn new(code: u32, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
            error: None,
        }
    }

    /// What a dial that ends so is said to have failed by.
    pub(super) fn because(self, error: DialError) -> Self {
        Self {
            error: Some(error),
            ..self
        }
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
    Revoked,
}

impl Tunnels {
    /// Ends a session with CONNECTION_CLOSE.
    pub(super) fn end(&mut self, handle: ConnectionHandle, ending: Ending, now: Instant) {
        let Some(session) = self.links.session_mut(handle) else {
            return;
        };
        let before = session.stage;
        if before == Stage::Closed {
            return;
        }
        let Ending {
            code,
            reason,
            error,
        } = ending;
        session.close(code, &reason, now);
        self.links.mark(handle);
        let next = match code {
            close_code::REVOKED => Next::Revoked,
            close_code::DONE | close_code::SUPERSEDED => Next::Ordered,
            _ => Next::Lost,
        };
        let error = error.unwrap_or_else(|| DialError::unreachable(&reason));
        self.handle_ended(handle, before, &reason, error, next, now);
        self.links.refresh(handle);
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
        let reason = match error {
            ConnectionError::ApplicationClosed(close) => {
                let said = String::from_utf8_lossy(&close.reason).into_owned();
                format!(
                    "the peer closed it: {said:?} ({:#x})",
                    close.error_code.into_inner()
                )
            }
            ConnectionError::TimedOut => "nothing heard from the peer for 30 s".into(),
            ConnectionError::Reset => "the peer restarted (stateless reset)".into(),
            ConnectionError::ConnectionClosed(_)
            | ConnectionError::TransportError(_)
            | ConnectionError::VersionMismatch
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => explain(error),
        };
        let revoked = matches!(error, ConnectionError::ApplicationClosed(close)
            if close.error_code.into_inner() == u64::from(close_code::REVOKED));
        let next = if revoked { Next::Revoked } else { Next::Lost };
        self.handle_ended(handle, before, &reason, dial_error, next, now);
    }

    fn handle_ended(
        &mut self,
        handle: ConnectionHandle,
        before: Stage,
        reason: &str,
        error: DialError,
        next: Next,
        now: Instant,
    ) {
        self.incoming.remove(&handle);
        let Some(session) = self.links.session(handle) else {
            return;
        };
        match (before, session.tunnel) {
            (Stage::Up | Stage::Draining, Some(id)) => {
                self.handle_down(handle, id, reason, next, now);
            }
            (Stage::Handshaking | Stage::Greeting, Some(id)) if session.dialled => {
                self.handle_dial_failed(id, error, now);
            }
            (Stage::Handshaking | Stage::Greeting, _) => self.report_incoming(handle, reason),
            (Stage::Closed | Stage::Refusing | Stage::Up | Stage::Draining, _) => {}
        }
    }

    /// A handshake that somebody began came to nothing. Silent when he showed nothing of himself.
    fn report_incoming(&mut self, handle: ConnectionHandle, reason: &str) {
        let Some(session) = self.links.session(handle) else {
            return;
        };
        let report = session.report.to_report();
        if report.presented.is_none() && report.error.is_none() {
            return;
        }
        let event = TunnelEvent::IncomingRefused {
            remote: session.remote(),
            presented: report.presented.map(|svid| svid.id.to_string()),
            error: report
                .error
                .map_or_else(|| reason.to_owned(), |error| explain(&error)),
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
                Next::Revoked => {
                    let code = RefusedCode::NotAllowed;
                    tunnel
                        .backoff
                        .handle_refused(code, reason, now, &mut self.random);
                }
            }
        }
        self.arm(id);
        self.choose(id);
        if last {
            self.event(TunnelEvent::Down {
                id,
                reason: reason.to_owned(),
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

    /// Dials without a packet asking for it, where flows live.
    pub(super) fn redial(&mut self, id: TunnelId, now: Instant) {
        let wanted = |tunnel: &&crate::tunnel::Tunnel| tunnel.live && tunnel.may_dial();
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
