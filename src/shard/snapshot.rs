//! What `status` shows of a shard.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    engine::{Flow, Opener},
    shard::{Books, Shard},
    tunnel::{TunnelSnapshot, TunnelState},
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
    /// Frames from the device that went to a session whole.
    pub carried_packets: u64,
    /// Frames that another shard gave to this one.
    pub handed_in: u64,
    /// Frames that this shard gave to another.
    pub handed_out: u64,
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
    /// What became of all that the device gave.
    pub books: Books,
    /// What each shard has of it, in the order of their numbers.
    pub shards: Vec<ShardCounts>,
}

/// The part of one shard.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ShardCounts {
    /// Flows.
    pub flows: usize,
    /// Tunnels with a session.
    pub tunnels_up: usize,
    /// Packets and bytes.
    pub packets: PacketCounts,
}

impl ShardSnapshot {
    /// Several shards as one, in the order of their numbers; `None` of none.
    pub fn merge(all: Vec<Self>) -> Option<Self> {
        all.into_iter().reduce(Self::and)
    }

    fn and(mut self, mut other: Self) -> Self {
        self.generation = self.generation.min(other.generation);
        self.tunnels.append(&mut other.tunnels);
        self.flows.append(&mut other.flows);
        self.flow_count += other.flow_count;
        for (reason, count) in other.drops {
            *self.drops.entry(reason).or_default() += count;
        }
        self.packets.add(other.packets);
        self.pending_bytes += other.pending_bytes;
        self.books.add(other.books);
        self.shards.append(&mut other.shards);
        self
    }
}

impl PacketCounts {
    const fn add(&mut self, other: Self) {
        self.device_packets += other.device_packets;
        self.device_bytes += other.device_bytes;
        self.tunnel_packets += other.tunnel_packets;
        self.tunnel_bytes += other.tunnel_bytes;
        self.carried_packets += other.carried_packets;
        self.handed_in += other.handed_in;
        self.handed_out += other.handed_out;
    }
}

const FLOWS_SHOWN: usize = 1_000;

impl Shard {
    /// Copies what `status` shows.
    pub fn snapshot(&mut self) -> ShardSnapshot {
        if let Some(now) = self.now {
            self.settle(now);
        }
        let tunnels = self.tunnels.snapshot(&self.keys);
        let is_up = |tunnel: &&TunnelSnapshot| matches!(tunnel.state, TunnelState::Up);
        let tunnels_up = tunnels.iter().filter(is_up).count();
        let flows = self.engine.flows();
        let counts = ShardCounts {
            flows: flows.len(),
            tunnels_up,
            packets: self.counts,
        };
        ShardSnapshot {
            generation: self.engine.policy().generation(),
            tunnels,
            flows: flows
                .iter()
                .take(FLOWS_SHOWN)
                .map(|(tuple, flow)| self.flow_snapshot(tuple, flow))
                .collect(),
            flow_count: flows.len(),
            drops: self.engine.drops().iter().collect(),
            packets: self.counts,
            pending_bytes: self.engine.pending_mut().bytes(),
            books: self.books(),
            shards: vec![counts],
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
