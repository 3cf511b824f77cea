//! What the engine answers for a packet, and what it tells the control plane.

use std::sync::Arc;

use crate::{
    engine::flows::{FlowSummary, Opener},
    policy::Why,
    registry::{TunnelId, TunnelKey},
    spiffe::SpiffeId,
    wire::{DropReason, FiveTuple, capsule::FlowRefused},
};

/// The verdict on a packet that came from the device.
#[derive(Debug)]
pub enum Egress {
    /// Not delivered; `answer` is the RST or ICMP error for its sender, where one is due.
    Drop {
        /// Why.
        reason: DropReason,
        /// The packet to write back to the device.
        answer: Option<Vec<u8>>,
    },
    /// Another shard has its flow.
    Elsewhere(u8),
    /// Kept until the first fragment of its datagram comes.
    Held,
    /// To be carried by this tunnel.
    Tunnel(TunnelId),
}

/// The verdict on a packet that came out of a tunnel.
#[derive(Debug)]
pub enum Ingress {
    /// To be written to the device with addresses unchanged.
    Deliver,
    /// Not delivered; `refused` goes back to the peer, where it should learn of it.
    Drop {
        /// Why.
        reason: DropReason,
        /// The capsule for the peer.
        refused: Option<FlowRefused>,
    },
    /// Kept until the first fragment of its datagram comes.
    Held,
}

/// Where a packet came from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the device.
    Egress,
    /// Out of a tunnel.
    Ingress,
}

/// What the control plane may want to log or count.
#[derive(Clone, Debug)]
pub enum EngineEvent {
    /// A packet was refused: policy, identity or the peer said no. Rate-limited.
    Dropped {
        /// Of the packet, in the direction it travelled.
        tuple: FiveTuple,
        /// That direction.
        direction: Direction,
        /// The identity of the workload on this host, where there is one.
        local: Option<SpiffeId>,
        /// The identity at the other end, where it is known.
        peer: Option<SpiffeId>,
        /// Why.
        reason: DropReason,
        /// The rule behind it, where policy decided.
        why: Option<Arc<Why>>,
    },
    /// A flow ended.
    FlowClosed {
        /// Local end first.
        tuple: FiveTuple,
        /// What it carried.
        summary: FlowSummary,
    },
    /// A flow was ended, on both ends, because it may no longer be.
    FlowCut {
        /// Local end first.
        tuple: FiveTuple,
        /// Who had opened it.
        opener: Opener,
        /// The two identities, and the gateway.
        key: Option<TunnelKey>,
        /// Why.
        reason: DropReason,
        /// The rule behind it, where our policy decided.
        why: Option<Arc<Why>>,
        /// The words of the peer, where it decided.
        said: Option<Arc<str>>,
        /// What it carried.
        summary: FlowSummary,
    },
    /// A flow began.
    FlowOpened {
        /// Local end first.
        tuple: FiveTuple,
        /// Who opened it.
        opener: Opener,
        /// Its tunnel.
        tunnel: TunnelId,
        /// The decision.
        why: Arc<Why>,
    },
}
