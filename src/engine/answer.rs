//! What the sender of a refused packet is told, and how often: RST for TCP, an ICMP error for the rest.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    policy::{ReasonCode, Why},
    registry::TunnelId,
    wire::{DropReason, capsule::FlowRefusedCode, icmp, packet::Packet, protocol},
};

/// A token bucket: 100 answers a second, 50 at once (wire.md §6).
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    tokens: u32,
    refilled: Option<Instant>,
}

const BURST: u32 = 50;
const INTERVAL: Duration = Duration::from_millis(10);

impl Default for Answers {
    fn default() -> Self {
        Self {
            tokens: BURST,
            refilled: None,
        }
    }
}

impl Answers {
    /// Takes a token if there is one.
    pub fn allow(&mut self, now: Instant) -> bool {
        self.refill(now);
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }

    fn refill(&mut self, now: Instant) {
        let refilled = *self.refilled.get_or_insert(now);
        let gained = now.saturating_duration_since(refilled).as_millis() / INTERVAL.as_millis();
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        if gained > 0 {
            self.tokens = self.tokens.saturating_add(gained).min(BURST);
            self.refilled = Some(if self.tokens == BURST {
                now
            } else {
                refilled + INTERVAL * gained
            });
        }
    }
}

/// A bucket of [`Answers`] for each tunnel: a peer that sends what is refused silences itself alone.
#[derive(Debug, Default)]
pub struct AnswersByTunnel {
    buckets: BTreeMap<TunnelId, Answers>,
}

/// Tunnels with a bucket that is not full; a peer beyond them gets no answers.
const MAX_BUCKETS: usize = 1_024;

impl AnswersByTunnel {
    /// Takes a token of `tunnel` if there is one.
    pub fn allow(&mut self, tunnel: TunnelId, now: Instant) -> bool {
        if self.buckets.len() >= MAX_BUCKETS && !self.buckets.contains_key(&tunnel) {
            self.forget_full(now);
            if self.buckets.len() >= MAX_BUCKETS {
                return false;
            }
        }
        self.buckets.entry(tunnel).or_default().allow(now)
    }

    /// Forgets full buckets: without one a tunnel begins with a full one.
    pub fn forget_full(&mut self, now: Instant) {
        self.buckets.retain(|_, answers| {
            answers.refill(now);
            answers.tokens < BURST
        });
    }

    /// Buckets that are kept.
    pub fn len(&self) -> usize {
        self.buckets.len()
    }

    /// Whether no bucket is kept.
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }
}

/// How final the answer is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AnswerKind {
    /// Policy or identity said no: TCP is reset, others get "administratively prohibited".
    Prohibited,
    /// The peer cannot be reached now: new connections and others get "host unreachable", established TCP waits.
    Unreachable,
    /// Nobody is told.
    Silent,
}

impl AnswerKind {
    /// What a sender learns of a packet dropped for `reason`.
    pub const fn of(reason: DropReason) -> Self {
        match reason {
            DropReason::BeganInPlaintext
            | DropReason::DeniedByPolicy
            | DropReason::FlowTableFull
            | DropReason::IdentityNotAccepted
            | DropReason::ModeDisable
            | DropReason::NoAuthorizedIdentity
            | DropReason::NoMatchingAllow
            | DropReason::NotInMesh
            | DropReason::PeerRefusedFlow
            | DropReason::PeerRefusedSession
            | DropReason::PolicyPlaintext
            | DropReason::UnknownDestination
            | DropReason::UnknownSource
            | DropReason::WrongIdentity => Self::Prohibited,
            DropReason::TunnelDown => Self::Unreachable,
            DropReason::BadDatagram
            | DropReason::BadFragment
            | DropReason::ForeignDestination
            | DropReason::ForeignSource
            | DropReason::FragmentOverlap
            | DropReason::FragmentTimeout
            | DropReason::LeavesHost // the host's address may be back in a moment
            | DropReason::LengthMismatch
            | DropReason::Loop
            | DropReason::Malformed
            | DropReason::Martian
            | DropReason::PendingFull
            | DropReason::PendingTimeout
            | DropReason::QueueDelay
            | DropReason::HandoverFull
            | DropReason::QueueFull
            | DropReason::TooBig
            | DropReason::UnknownContext => Self::Silent,
        }
    }

    /// Builds the answer to `packet`, if one may be sent at all (RFC 1122 §3.2.2, RFC 4443 §2.4).
    pub fn build(self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let is_tcp = packet.protocol() == protocol::TCP;
        match self {
            Self::Prohibited if is_tcp => icmp::reset(packet),
            Self::Prohibited => icmp::prohibited(packet),
            Self::Unreachable
                if !is_tcp || packet.tcp_flags().is_some_and(|flags| flags.is_syn_only()) =>
            {
                icmp::unreachable_host(packet)
            }
            Self::Unreachable | Self::Silent => None,
        }
    }
}

/// What a code says by itself.
pub(super) const fn words(code: FlowRefusedCode) -> &'static str {
    match code {
        FlowRefusedCode::DeniedByPolicy => "denied by policy",
        FlowRefusedCode::NoMatchingAllow => "no policy allows it",
        FlowRefusedCode::ModeDisable => "the destination accepts no tunnels",
        FlowRefusedCode::UnknownSource => "the source address is not that of the identity",
        FlowRefusedCode::UnknownDestination => {
            "the destination address is not that of the identity"
        }
        FlowRefusedCode::Revoked => "no longer allowed",
    }
}

/// Why, with the rule that decided and where it stands.
pub(super) fn reason(code: FlowRefusedCode, why: &Why) -> String {
    let server = why.authorization.as_ref().or(why.mode_rule.as_ref());
    let text = match (why.code, why.rule.as_ref().or(server)) {
        (Some(ReasonCode::DeniedByPolicy), Some(rule)) => format!("denied by {rule}"),
        (Some(ReasonCode::NoMatchingAllow), Some(rule)) => {
            format!("no ALLOW policy allows it, not {rule} either")
        }
        (_, Some(rule)) if why.text.is_empty() => rule.to_string(),
        (_, Some(rule)) => format!("{}: {rule}", why.text),
        (_, None) if why.text.is_empty() => return words(code).to_owned(),
        (_, None) => why.text.to_string(),
    };
    if code == FlowRefusedCode::Revoked {
        return format!("{}: {text}", words(code));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{KeyTable, TunnelKey};

    #[test]
    fn answers_are_limited_and_refill() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let start = Instant::now();
        let mut answers = Answers::default();
        assert_eq!((0..100).filter(|_| answers.allow(start)).count(), 50);
        assert!(!answers.allow(start + Duration::from_millis(9)));
        assert!(answers.allow(start + Duration::from_millis(10)));
        assert!(!answers.allow(start + Duration::from_millis(10)));
        let later = start + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| answers.allow(later)).count(), 50);
    }

    #[test]
    fn buckets_of_tunnels_are_bounded_and_make_room() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let now = Instant::now();
        let mut keys = KeyTable::default();
        let ids: Vec<_> = (0..=1_024)
            .map(|port| {
                keys.id(&TunnelKey {
                    local: "spiffe://td/a".parse().unwrap(),
                    peer: "spiffe://td/b".parse().unwrap(),
                    gateway: ([192, 0, 2, 1], port).into(),
                    lane: 0,
                })
            })
            .collect();
        let mut answers = AnswersByTunnel::default();
        let allowed = ids.iter().filter(|&&id| answers.allow(id, now)).count();
        assert_eq!((allowed, answers.len()), (MAX_BUCKETS, MAX_BUCKETS));
        assert!(answers.allow(ids[1_024], now + INTERVAL));
        assert_eq!(answers.len(), 1);
    }
}
