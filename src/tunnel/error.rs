//! Why a tunnel cannot be set up or dialled, and what closes one (wire.md §3.2).

use quinn_proto::ConnectionError;

use crate::{
    identity::VerifyError,
    wire::{DropReason, capsule::RefusedCode},
};

/// QUIC application error codes of CONNECTION_CLOSE.
pub mod close_code {
    /// Done, idle or rotated.
    pub const DONE: u32 = 0x100;
    /// The control stream broke the protocol.
    pub const PROTOCOL: u32 = 0x101;
    /// Something failed on our side.
    pub const INTERNAL: u32 = 0x102;
    /// More capsules than a peer may send.
    pub const EXCESSIVE_LOAD: u32 = 0x107;
    /// Policy, identities or trust no longer allow the session.
    pub const REVOKED: u32 = 0x10c;
    /// A newer session of the same tunnel carries its packets.
    pub const SUPERSEDED: u32 = 0x110;
}

/// Settings, identities or policy with which no session could ever be made.
#[derive(Debug, thiserror::Error)]
pub enum TunnelSetupError {
    /// The TLS library refuses an identity or the trust bundles.
    #[error("the TLS configuration of {role} is refused")]
    Tls {
        /// `accepting tunnels`, or `dialling as ID`.
        role: String,
        /// What the TLS library says.
        #[source]
        source: rustls::Error,
    },
    /// The crypto provider lacks the cipher suite that QUIC's first packets need.
    #[error("the crypto provider has no TLS13_AES_128_GCM_SHA256")]
    InitialCipherSuite,
}

/// Why a dial failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DialError {
    /// No such local identity.
    #[error("this host does not hold the local identity")]
    NoIdentity,
    /// Handshake time-out, connection lost, reset.
    #[error("the peer's daemon cannot be reached: {detail}")]
    Unreachable {
        /// What happened.
        detail: String,
    },
    /// We did not accept the peer's certificate.
    #[error(
        "the peer's certificate is refused ({})",
        certificate(error, presented.as_deref(), issuer.as_deref())
    )]
    Verify {
        /// The rule that the certificate broke.
        #[source]
        error: VerifyError,
        /// The SPIFFE ID in it, if it parses that far.
        presented: Option<String>,
        /// Its issuer, if it parses that far.
        issuer: Option<String>,
    },
    /// The peer closed during the handshake (it did not accept our certificate, does not hold the identity, ALPN).
    #[error("{detail} (QUIC error {code:#x})")]
    PeerClosed {
        /// QUIC error code; TLS alerts are 0x100 + alert.
        code: u64,
        /// What the code means, and what the peer said.
        detail: String,
    },
    /// REFUSED.
    #[error("the peer refuses the session: {reason}")]
    Refused {
        /// Its code.
        code: RefusedCode,
        /// The peer's words.
        reason: String,
    },
}

impl DialError {
    /// Why packets that waited for the dial are dropped: `WrongIdentity`, `PeerRefusedSession` or `TunnelDown`.
    pub const fn drop_reason(&self) -> DropReason {
        match self {
            Self::Verify { .. } => DropReason::WrongIdentity,
            Self::PeerClosed { code, .. } if *code == ACCESS_DENIED => DropReason::WrongIdentity,
            Self::Refused { .. } => DropReason::PeerRefusedSession,
            Self::NoIdentity | Self::PeerClosed { .. } | Self::Unreachable { .. } => {
                DropReason::TunnelDown
            }
        }
    }

    /// The peer says that no policy can allow it.
    pub const fn is_final(&self) -> bool {
        match self {
            Self::Refused { code, .. } => matches!(code, RefusedCode::NotAllowed),
            Self::NoIdentity
            | Self::PeerClosed { .. }
            | Self::Unreachable { .. }
            | Self::Verify { .. } => false,
        }
    }

    /// The error of a connection that ended before the peer said READY and whose certificate we had not refused.
    pub(super) fn of_connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::ConnectionClosed(close) => {
                let code = u64::from(close.error_code);
                Self::peer_closed(code, alert_meaning(code), &close.reason)
            }
            ConnectionError::ApplicationClosed(close) => {
                let code = close.error_code.into_inner();
                Self::peer_closed(code, "the peer closed the session", &close.reason)
            }
            ConnectionError::TimedOut => Self::unreachable("no answer from its address"),
            ConnectionError::Reset
            | ConnectionError::VersionMismatch
            | ConnectionError::TransportError(_)
            | ConnectionError::LocallyClosed
            | ConnectionError::CidsExhausted => Self::unreachable(&error.to_string()),
        }
    }

    /// Builds [`Self::Unreachable`].
    pub(super) fn unreachable(detail: &str) -> Self {
        Self::Unreachable {
            detail: detail.to_owned(),
        }
    }

    fn peer_closed(code: u64, meaning: &str, said: &[u8]) -> Self {
        let detail = match said.is_empty() {
            true => meaning.to_owned(),
            false => format!("{meaning}; it says {}", quote(said)),
        };
        Self::PeerClosed { code, detail }
    }
}

const ACCESS_DENIED: u64 = 0x131;

/// What a QUIC transport error code of a handshake means to an operator (RFC 9001 §4.8, RFC 8446 §6.2).
fn alert_meaning(code: u64) -> &'static str {
    match code {
        0x2 => "the peer's daemon takes no more sessions",
        0x12a => "the peer finds our certificate malformed",
        0x12c => "the peer says that our certificate is revoked",
        0x12d => "the peer says that our certificate has expired",
        0x12e => "the peer refuses our certificate",
        0x130 => "the peer does not trust the issuer of our certificate",
        ACCESS_DENIED => "the peer does not hold the expected identity",
        0x133 => "the peer could not verify our signature",
        0x146 => "the peer speaks another TLS version",
        0x174 => "the peer misses our certificate",
        0x178 => "the peer does not speak identun/1",
        _ => "the peer aborted the handshake",
    }
}

/// What a peer said, on one line, escaped and not too long.
pub(super) fn quote(said: &[u8]) -> String {
    let said: String = String::from_utf8_lossy(said)
        .chars()
        .take(MAX_QUOTE)
        .collect();
    format!("{said:?}")
}

const MAX_QUOTE: usize = 256;

/// What was presented, unless the error itself says it, and who issued it.
fn certificate(error: &VerifyError, presented: Option<&str>, issuer: Option<&str>) -> String {
    const NOTHING: &str = "nothing that can be read";
    let issued = format!("issued by {}", issuer.unwrap_or(NOTHING));
    match matches!(error, VerifyError::WrongIdentity { .. }) {
        true => issued,
        false => format!("presented {}, {issued}", presented.unwrap_or(NOTHING)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_identity_is_told_from_an_untrusted_certificate() {
        let closed = |code| DialError::peer_closed(code, alert_meaning(code), b"");
        assert_eq!(closed(0x131).drop_reason(), DropReason::WrongIdentity);
        assert_eq!(closed(0x130).drop_reason(), DropReason::TunnelDown);
        assert_eq!(
            closed(0x131).to_string(),
            "the peer does not hold the expected identity (QUIC error 0x131)"
        );
        assert_eq!(
            DialError::unreachable("x").drop_reason(),
            DropReason::TunnelDown
        );
    }

    #[test]
    fn a_refused_certificate_is_described_once() {
        let refused = |error| DialError::Verify {
            error,
            presented: Some("spiffe://td/b".into()),
            issuer: Some("CN=ca".into()),
        };
        let wrong = refused(VerifyError::WrongIdentity {
            expected: "spiffe://td/a".parse().unwrap(),
            presented: "spiffe://td/b".parse().unwrap(),
        });
        assert_eq!(
            super::super::end::explain(&wrong),
            "the peer's certificate is refused (issued by CN=ca): expected spiffe://td/a, but the peer presented \
             spiffe://td/b"
        );
        assert_eq!(
            refused(VerifyError::BadSignature).to_string(),
            "the peer's certificate is refused (presented spiffe://td/b, issued by CN=ca)"
        );
    }

    #[test]
    fn what_the_peer_says_is_escaped() {
        let error = DialError::peer_closed(0x1, "m", b"a\nb\x1b[0m");
        assert!(!error.to_string().contains('\n'), "{error}");
        assert!(!error.to_string().contains('\x1b'), "{error}");
    }
}
