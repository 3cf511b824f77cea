//! Why a packet was not delivered: one name a reason, used as log field, metric label and word of `status`.

use std::fmt;

use serde::{Serialize, Serializer};

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Why a packet was not delivered. Every undelivered packet has exactly one.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub enum DropReason { $($(#[$doc])* $variant,)* }

        impl DropReason {
            /// Every reason, in the order of the declaration: the index of a counter.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The reason's one name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

drop_reasons! {
    /// A tunnel datagram that is empty, has another quarter stream id, or is shorter than its context says.
    BadDatagram = "bad_datagram",
    /// A segment of a connection that began in plaintext, before policy wanted it in a tunnel.
    BeganInPlaintext = "began_in_plaintext",
    /// A FRAGMENT datagram with an impossible index, count or size.
    BadFragment = "bad_fragment",
    /// An AuthorizationPolicy with action DENY matches the flow.
    DeniedByPolicy = "denied_by_policy",
    /// A packet whose destination address belongs to no local workload this session speaks for.
    ForeignDestination = "foreign_destination",
    /// A packet whose source address does not belong to the peer's identity.
    ForeignSource = "foreign_source",
    /// The flow table or one peer's share of it is full.
    FlowTableFull = "flow_table_full",
    /// An IP fragment whose first fragment never came, or fragments that overlap.
    FragmentOverlap = "fragment_overlap",
    /// Fragments that did not complete in time or space.
    FragmentTimeout = "fragment_timeout",
    /// Too many packets waited to be handed over to the shard that has their flows.
    HandoverFull = "handover_full",
    /// The identity of the chosen endpoint is not in the accepted set (secure naming).
    IdentityNotAccepted = "identity_not_accepted",
    /// Traffic between two workloads of this host that was about to leave it: the host's address is gone or the workload
    /// has moved, a route is wrong, or an interface is missing in `workload_interfaces`.
    LeavesHost = "leaves_host",
    /// A datagram whose length is not that of the IP packet in it.
    LengthMismatch = "length_mismatch",
    /// Our own tunnel packet came back out of the TUN.
    Loop = "loop",
    /// Not a well-formed IP packet.
    Malformed = "malformed",
    /// Link-local, multicast, broadcast, loopback or another address that never crosses a tunnel.
    Martian = "martian",
    /// The destination's mode is DISABLE: it accepts no tunnel.
    ModeDisable = "mode_disable",
    /// No identity may answer for the destination (empty secure-naming set).
    NoAuthorizedIdentity = "no_authorized_identity",
    /// ALLOW policies apply to the destination, and none of them matches the flow.
    NoMatchingAllow = "no_matching_allow",
    /// The endpoint is not in the mesh but policy demands mutual TLS.
    NotInMesh = "not_in_mesh",
    /// The peer refused this flow with FLOW_REFUSED.
    PeerRefusedFlow = "peer_refused_flow",
    /// The peer refused the session with REFUSED.
    PeerRefusedSession = "peer_refused_session",
    /// The queue of packets that wait for a tunnel was full; the oldest was dropped.
    PendingFull = "pending_full",
    /// A packet waited too long for its tunnel.
    PendingTimeout = "pending_timeout",
    /// Policy says plaintext, so the packet should not have been captured.
    PolicyPlaintext = "policy_plaintext",
    /// A packet waited too long in a session's send queue, and its flow keeps the queue standing (CoDel).
    QueueDelay = "queue_delay",
    /// The send queue of a session, or that of all of them, was full.
    QueueFull = "queue_full",
    /// The packet does not fit and may not be fragmented.
    TooBig = "too_big",
    /// The tunnel is down and waits before it is dialled again.
    TunnelDown = "tunnel_down",
    /// A datagram of an unknown or un-negotiated context.
    UnknownContext = "unknown_context",
    /// No service or endpoint of the registry has this destination.
    UnknownDestination = "unknown_destination",
    /// The source address belongs to no local workload.
    UnknownSource = "unknown_source",
    /// The peer's certificate does not name the expected identity.
    WrongIdentity = "wrong_identity",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for DropReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A count for each [`DropReason`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DropCounts(Vec<u64>);

impl DropCounts {
    /// Counts one packet.
    pub fn add(&mut self, reason: DropReason) {
        self.add_many(reason, 1);
    }

    /// Counts several packets.
    pub fn add_many(&mut self, reason: DropReason, packets: u64) {
        self.0.resize(DropReason::ALL.len(), 0);
        if let Some(count) = self.0.get_mut(reason as usize) {
            *count += packets;
        }
    }

    /// How many packets were dropped for `reason`.
    pub fn of(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or_default()
    }

    /// Reasons that were counted at least once, in order.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|&reason| (reason, self.of(reason)))
            .filter(|&(_, count)| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_its_own_index() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<_> = DropReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        assert_eq!(names.len(), DropReason::ALL.len());
    }
}
