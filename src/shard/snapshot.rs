//! What `status` shows of a shard.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    engine::{Flow, Opener},
    shard::Shard,
    tunnel::TunnelSnapshot,
    wire::{DropReason, FiveTuple},
};

/// Packets and bytes that passed the shard's two doors.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PacketCounts {
    /// Frames read from the device (a super-packet is one).
    pub device_packets: u64,
    /// Their bytes, without virtio-net headers.
    pub device_bytes: u64,
    /// Inner datagrams that came out of tunnels.
    pub tunnel_packets: u64,
    /// Their bytes.
    pub tunnel_bytes: u64,
}

/// One flow.
#[derive(Clone, Debug, Serialize)]
pub struct FlowSnapshot {
    /// Local end first.
    #[serde(serialize_with = "serialize_tuple")]
    pub tuple: FiveTuple,
    /// The tunnel: both identities and the gateway.
    pub tunnel: String,
    /// Who opened it.
    pub opener: Opener,
    /// Bytes into the tunnel.
    pub bytes_sent: u64,
    /// Bytes out of the tunnel.
    pub bytes_received: u64,
    /// The rule that decided, with its place.
    pub rule: Option<String>,
    /// The identities that may answer.
    pub accepted: Vec<String>,
}

/// A shard at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct ShardSnapshot {
    /// The policy generation in force.
    pub generation: u64,
    /// Every tunnel.
    pub tunnels: Vec<TunnelSnapshot>,
    /// The first flows, at most `FLOWS_SHOWN`.
    pub flows: Vec<FlowSnapshot>,
    /// Flows in all.
    pub flow_count: usize,
    /// Packets not delivered, by reason.
    pub drops: BTreeMap<DropReason, u64>,
    /// Packets and bytes.
    pub packets: PacketCounts,
    /// Bytes that wait for tunnels.
    pub pending_bytes: usize,
}

const FLOWS_SHOWN: usize = 1_000;

impl Shard {
    /// Copies what `status` shows.
    pub fn snapshot(&mut self) -> ShardSnapshot {
        if let Some(now) = self.now {
            self.settle(now);
        }
        let flows = self.engine.flows();
        ShardSnapshot {
            generation: self.engine.policy().generation(),
            tunnels: self.tunnels.snapshot(&self.keys),
            flows: flows
                .iter()
                .take(FLOWS_SHOWN)
                .map(|(tuple, flow)| self.flow_snapshot(tuple, flow))
                .collect(),
            flow_count: flows.len(),
            drops: self.engine.drops().iter().collect(),
            packets: self.counts,
            pending_bytes: self.engine.pending_mut().bytes(),
        }
    }

    fn flow_snapshot(&self, tuple: &FiveTuple, flow: &Flow) -> FlowSnapshot {
        FlowSnapshot {
            tuple: *tuple,
            tunnel: self
                .keys
                .key(flow.tunnel)
                .map(ToString::to_string)
                .unwrap_or_default(),
            opener: flow.opener,
            bytes_sent: flow.counts.bytes_sent,
            bytes_received: flow.counts.bytes_received,
            rule: flow
                .why
                .rule
                .as_ref()
                .or(flow.why.mode_rule.as_ref())
                .map(ToString::to_string),
            accepted: flow.why.accepted.clone(),
        }
    }
}

#[derive(Serialize)]
struct Tuple {
    protocol: u8,
    source: std::net::IpAddr,
    source_port: u16,
    destination: std::net::IpAddr,
    destination_port: u16,
}

fn serialize_tuple<S: serde::Serializer>(
    tuple: &FiveTuple,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let &FiveTuple {
        protocol,
        source,
        source_port,
        destination,
        destination_port,
    } = tuple;
    Tuple {
        protocol,
        source,
        source_port,
        destination,
        destination_port,
    }
    .serialize(serializer)
}
