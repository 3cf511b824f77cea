//! What the engine answers for a packet, and what it tells the control plane.

use std::sync::Arc;

use crate::{
    engine::flows::{FlowSummary, Opener},
    policy::Why,
    registry::TunnelId,
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

/// What the control plane may want to log or count.
#[derive(Clone, Debug)]
pub enum EngineEvent {
    /// A packet was refused: policy, identity or the peer said no. Rate-limited.
    Dropped {
        /// Of the packet, in the direction it travelled.
        tuple: FiveTuple,
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
