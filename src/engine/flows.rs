//! The flow table: each flow's tunnel and state, by the five-tuple seen from the local end.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use serde::Serialize;

use crate::{
    policy::Why,
    registry::TunnelId,
    wire::{
        DropReason, FiveTuple,
        packet::{Packet, TcpFlags},
        protocol,
    },
};

/// Bounds and time-outs of a [`FlowTable`].
#[derive(Clone, Copy, Debug)]
pub struct FlowLimits {
    /// Flows in all.
    pub total: usize,
    /// Flows of one tunnel.
    pub per_tunnel: usize,
    /// Flows of one tunnel that its peer opened: what it is remembered by. Others of its own make room for more.
    pub by_peer: usize,
    /// A TCP flow without packets, once both ends have sent.
    pub tcp_idle: Duration,
    /// A TCP flow after FIN or RST.
    pub tcp_closing: Duration,
    /// Every other flow without packets: a TCP connection that was never answered, too.
    pub other_idle: Duration,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self {
            total: 262_144,
            per_tunnel: 65_536,
            by_peer: 2_048,
            tcp_idle: Duration::from_secs(7_200),
            tcp_closing: Duration::from_secs(60),
            other_idle: Duration::from_secs(180),
        }
    }
}

/// Who sent the first packet of a flow.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Opener {
    /// A workload of this host.
    Local,
    /// The peer's workload.
    Peer,
}

/// Bytes and packets of a flow, counted as IP packets (a super-packet is one).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
pub struct FlowSummary {
    /// Bytes from the device to the tunnel.
    pub bytes_sent: u64,
    /// Bytes from the tunnel to the device.
    pub bytes_received: u64,
}

/// One flow.
#[derive(Debug)]
pub struct Flow {
    /// The tunnel that carries both directions.
    pub tunnel: TunnelId,
    /// Who opened it.
    pub opener: Opener,
    /// The policy generation that decided it last.
    pub generation: u64,
    /// The decision.
    pub why: Arc<Why>,
    /// The last packet in either direction.
    pub last_seen: Instant,
    /// What it carried.
    pub counts: FlowSummary,
    /// Until when the peer's refusal holds.
    pub refused_until: Option<Instant>,
    /// The local opener's first packet, kept until the peer answers, so that a refusal can be passed on at once.
    pub opening: Option<Box<[u8]>>,
    /// TCP: the sequence number that the local end expects next, so that the connection can be reset at any moment.
    pub next_sequence: Option<u32>,
    closing: bool,
    /// Its entry in [`Share::order`], where the peer opened it.
    number: u32,
    /// Where it stands in [`FlowTable::looks`].
    look: Instant,
}

impl Flow {
    /// A flow whose first packet is seen at `now`.
    pub const fn new(
        tunnel: TunnelId,
        opener: Opener,
        generation: u64,
        why: Arc<Why>,
        now: Instant,
    ) -> Self {
        Self {
            tunnel,
            opener,
            generation,
            why,
            last_seen: now,
            counts: FlowSummary {
                bytes_sent: 0,
                bytes_received: 0,
            },
            refused_until: None,
            opening: None,
            next_sequence: None,
            closing: false,
            number: 0,
            look: now,
        }
    }

    /// It saw FIN or RST: whoever has its ports next may have its place.
    pub const fn is_closing(&self) -> bool {
        self.closing
    }

    /// What it carried so far.
    pub const fn summary(&self) -> FlowSummary {
        self.counts
    }

    /// Both ends take part, as far as this end saw.
    pub const fn is_established(&self) -> bool {
        match self.opener {
            Opener::Local => self.counts.bytes_received > 0,
            Opener::Peer => true,
        }
    }

    /// Notes a packet to the local end.
    pub fn note_received(&mut self, packet: &Packet<'_>, now: Instant) {
        self.last_seen = now;
        self.counts.bytes_received += packet.bytes().len() as u64;
        self.opening = None;
        self.refused_until = None;
        let Some((end, begins)) = packet.tcp_end() else {
            return;
        };
        // What was sent again, and what came too late, moves nothing back.
        let advances = |known: u32| end.wrapping_sub(known) < 1 << 31;
        if begins || self.next_sequence.is_none_or(advances) {
            self.next_sequence = Some(end);
        }
    }

    /// Notes a packet of the local end.
    pub fn note_sent(&mut self, packet: &Packet<'_>, now: Instant) {
        self.last_seen = now;
        self.counts.bytes_sent += packet.bytes().len() as u64;
        if self.next_sequence.is_none() {
            self.next_sequence = packet.tcp_acknowledgment();
        }
    }

    /// Notes a packet's TCP flags: after FIN or RST the flow is short-lived, a new SYN revives it.
    pub const fn note_flags(&mut self, flags: Option<TcpFlags>) {
        if let Some(flags) = flags {
            if flags.is_fin() || flags.is_rst() {
                self.closing = true;
            } else if flags.is_syn_only() {
                self.closing = false;
            }
        }
    }
}

/// How far a survey of all flows came.
#[derive(Clone, Copy, Debug)]
pub struct Cursor((Instant, FiveTuple));

/// Flows by five-tuple, local end first.
#[derive(Debug)]
pub struct FlowTable {
    limits: FlowLimits,
    flows: HashMap<FiveTuple, Flow>,
    /// When to look at a flow next. A look finds the true deadline, so that packets need not touch this.
    /// INVARIANT: one entry for each flow, so that opening and closing flows quickly does not make it grow.
    looks: BTreeSet<(Instant, FiveTuple)>,
    shares: BTreeMap<TunnelId, Share>,
    /// The number of the next flow.
    number: u32,
    live_changes: VecDeque<(TunnelId, bool)>,
    /// INVARIANT: at most one for each insertion since the last poll.
    evicted: VecDeque<(FiveTuple, FlowSummary)>,
}

/// What one tunnel has of the table.
#[derive(Debug, Default)]
struct Share {
    flows: usize,
    by_peer: usize,
    /// Flows that the peer opened, by number, in the order in which they are asked to make room. Entries of flows that
    /// are gone stay until they are met.
    /// INVARIANT: at most twice as many as there are such flows, and [`EVICTION_SEARCH`].
    order: VecDeque<(u32, FiveTuple)>,
}

/// How many flows are asked whether they are over when there is no room.
const EVICTION_SEARCH: usize = 64;
/// How many of a peer's flows are asked; those that end by the thousand are the first.
const ASKED: usize = 8;

impl FlowTable {
    /// An empty table.
    pub fn new(limits: FlowLimits) -> Self {
        Self {
            limits,
            flows: HashMap::new(),
            looks: BTreeSet::new(),
            shares: BTreeMap::new(),
            number: 0,
            live_changes: VecDeque::new(),
            evicted: VecDeque::new(),
        }
    }

    /// How many flows there are.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Tells whether there are none.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// Flows in the order of their next look, which the same inputs always make the same.
    pub fn iter(&self) -> impl Iterator<Item = (&FiveTuple, &Flow)> {
        self.looks
            .iter()
            .filter_map(|(_, tuple)| self.flows.get_key_value(tuple))
    }

    /// Entries of every tunnel's order.
    #[cfg(test)]
    pub(crate) fn entries(&self) -> usize {
        self.shares.values().map(|share| share.order.len()).sum()
    }

    /// How many looks are planned.
    #[cfg(test)]
    pub(crate) fn looks(&self) -> usize {
        self.looks.len()
    }

    /// The flow of `tuple`.
    pub fn find(&mut self, tuple: &FiveTuple) -> Option<&mut Flow> {
        self.flows.get_mut(tuple)
    }

    /// Adds a flow, replacing one of the same tuple.
    ///
    /// # Errors
    /// [`DropReason::FlowTableFull`] when the table or the tunnel's share of it is full.
    pub fn insert(&mut self, tuple: FiveTuple, mut flow: Flow) -> Result<&mut Flow, DropReason> {
        self.remove(&tuple);
        if !self.has_room(flow.tunnel, flow.opener) {
            self.evict(flow.tunnel, flow.opener);
            if !self.has_room(flow.tunnel, flow.opener) {
                return Err(DropReason::FlowTableFull);
            }
        }
        flow.number = self.enter(flow.tunnel, flow.opener, tuple);
        flow.look = deadline(&self.limits, &tuple, &flow);
        self.looks.insert((flow.look, tuple));
        Ok(self.flows.entry(tuple).insert(flow).into_mut())
    }

    /// Notes the TCP flags of a flow's packet; a connection that ends is looked at again soon.
    pub fn note_flags(&mut self, tuple: &FiveTuple, flags: Option<TcpFlags>) {
        // Most segments only acknowledge: they cost no second look at the table.
        let Some(flags) = flags.filter(|flags| flags.is_syn() || flags.is_fin() || flags.is_rst())
        else {
            return;
        };
        let Some(flow) = self.flows.get_mut(tuple) else {
            return;
        };
        let was_closing = flow.closing;
        flow.note_flags(Some(flags));
        if flow.closing && !was_closing {
            let due = deadline(&self.limits, tuple, flow);
            let old = std::mem::replace(&mut flow.look, due);
            self.looks.remove(&(old, *tuple));
            self.looks.insert((due, *tuple));
        }
    }

    /// Moves a flow to another tunnel; it keeps its place even where that tunnel's share is full.
    pub fn rehome(&mut self, tuple: &FiveTuple, tunnel: TunnelId) {
        let Some(flow) = self.flows.get_mut(tuple) else {
            return;
        };
        let (old, opener) = (std::mem::replace(&mut flow.tunnel, tunnel), flow.opener);
        let number = self.enter(tunnel, opener, *tuple);
        if let Some(flow) = self.flows.get_mut(tuple) {
            flow.number = number;
        }
        self.leave(old, opener);
    }

    /// Looks at up to `limit` flows from `cursor` on, and gives those that are `wanted`; `cursor` is `None` before the
    /// first, and again behind the last. A flow that moves behind the cursor meanwhile had a packet.
    pub fn survey(
        &self,
        cursor: &mut Option<Cursor>,
        limit: usize,
        wanted: impl Fn(&Flow) -> bool,
    ) -> Vec<FiveTuple> {
        let from = cursor.map_or(Bound::Unbounded, |Cursor(at)| Bound::Excluded(at));
        *cursor = None;
        let mut found = Vec::new();
        for (seen, place) in self.looks.range((from, Bound::Unbounded)).enumerate() {
            if seen == limit {
                break;
            }
            if self.flows.get(&place.1).is_some_and(&wanted) {
                found.push(place.1);
            }
            *cursor = (seen + 1 == limit).then_some(Cursor(*place));
        }
        found
    }

    /// Removes a flow.
    pub fn remove(&mut self, tuple: &FiveTuple) -> Option<Flow> {
        let flow = self.flows.remove(tuple)?;
        self.looks.remove(&(flow.look, *tuple));
        self.leave(flow.tunnel, flow.opener);
        Some(flow)
    }

    /// Removes and returns the next flow whose time is over.
    pub fn expire(&mut self, now: Instant) -> Option<(FiveTuple, Flow)> {
        while let Some(&(look, tuple)) = self.looks.first() {
            if look > now {
                return None;
            }
            let Some(flow) = self.flows.get_mut(&tuple) else {
                self.looks.pop_first();
                continue;
            };
            let due = deadline(&self.limits, &tuple, flow);
            if due <= now {
                return self.remove(&tuple).map(|flow| (tuple, flow));
            }
            flow.look = due;
            self.looks.pop_first();
            self.looks.insert((due, tuple));
        }
        None
    }

    /// The next look, at which something may expire.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.looks.first().map(|&(look, _)| look)
    }

    /// The next tunnel that gained its first flow or lost its last.
    pub fn poll_live(&mut self) -> Option<(TunnelId, bool)> {
        self.live_changes.pop_front()
    }

    fn has_room(&self, tunnel: TunnelId, opener: Opener) -> bool {
        let (flows, by_peer) = match self.shares.get(&tunnel) {
            Some(share) => (share.flows, share.by_peer),
            None => (0, 0),
        };
        self.flows.len() < self.limits.total
            && flows < self.limits.per_tunnel
            && (opener == Opener::Local || by_peer < self.limits.by_peer)
    }

    /// Another flow of the tunnel makes room for a new one. What the peer opened gives way, also to what local workloads
    /// open; what they opened does so only when it is over.
    fn evict(&mut self, tunnel: TunnelId, opener: Opener) {
        let found = match opener {
            Opener::Local => self.ended(tunnel).or_else(|| self.dispensable(tunnel)),
            Opener::Peer => self.dispensable(tunnel).or_else(|| self.ended(tunnel)),
        };
        if let Some(tuple) = found
            && let Some(flow) = self.remove(&tuple)
        {
            self.evicted.push_back((tuple, flow.summary()));
        }
    }

    /// A TCP connection of the tunnel that saw its end: those that end by the thousand stay for a minute only to let the
    /// last segments pass. They are among the first to be looked at.
    fn ended(&self, tunnel: TunnelId) -> Option<FiveTuple> {
        let is_over = |tuple: &FiveTuple| {
            let flow = self.flows.get(tuple);
            flow.is_some_and(|flow| flow.closing && flow.tunnel == tunnel)
        };
        let first = self.looks.iter().take(EVICTION_SEARCH);
        first.map(|&(_, tuple)| tuple).find(is_over)
    }

    /// A flow that the tunnel's peer opened: one that saw its end, or of some that did not the one that has been silent for
    /// longest. Those that stay are asked again after all others. One that went too early is decided again at its next
    /// packet, as after a restart.
    fn dispensable(&mut self, tunnel: TunnelId) -> Option<FiveTuple> {
        let share = self.shares.get_mut(&tunnel)?;
        let mut silent: Option<(Instant, FiveTuple)> = None;
        let mut asked = 0;
        while asked < ASKED.min(share.by_peer)
            && let Some((number, tuple)) = share.order.pop_front()
        {
            let flow = self.flows.get(&tuple);
            let Some(flow) = flow.filter(|flow| is_entry(flow, number, tunnel)) else {
                continue;
            };
            share.order.push_back((number, tuple));
            asked += 1;
            if flow.closing {
                return Some(tuple);
            }
            if silent.is_none_or(|(last_seen, _)| flow.last_seen < last_seen) {
                silent = Some((flow.last_seen, tuple));
            }
        }
        silent.map(|(_, tuple)| tuple)
    }

    /// The next flow that made room for another.
    pub fn poll_evicted(&mut self) -> Option<(FiveTuple, FlowSummary)> {
        self.evicted.pop_front()
    }

    /// Counts a flow, and gives the number of its entry.
    fn enter(&mut self, tunnel: TunnelId, opener: Opener, tuple: FiveTuple) -> u32 {
        self.number = self.number.wrapping_add(1);
        let number = self.number;
        let share = self.shares.entry(tunnel).or_default();
        share.flows += 1;
        if share.flows == 1 {
            self.live_changes.push_back((tunnel, true));
        }
        if opener == Opener::Peer {
            share.by_peer += 1;
            if share.order.len() >= 2 * share.by_peer + EVICTION_SEARCH {
                let is_there = |(number, tuple): &(u32, FiveTuple)| {
                    let flow = self.flows.get(tuple);
                    flow.is_some_and(|flow| is_entry(flow, *number, tunnel))
                };
                share.order.retain(is_there);
            }
            share.order.push_back((number, tuple));
        }
        number
    }

    fn leave(&mut self, tunnel: TunnelId, opener: Opener) {
        let Some(share) = self.shares.get_mut(&tunnel) else {
            return;
        };
        share.flows = share.flows.saturating_sub(1);
        if opener == Opener::Peer {
            share.by_peer = share.by_peer.saturating_sub(1);
        }
        if share.flows == 0 {
            self.shares.remove(&tunnel);
            self.live_changes.push_back((tunnel, false));
        }
    }
}

/// Whether an entry of a tunnel's order is this flow's.
fn is_entry(flow: &Flow, number: u32, tunnel: TunnelId) -> bool {
    flow.number == number && flow.tunnel == tunnel
}

fn deadline(limits: &FlowLimits, tuple: &FiveTuple, flow: &Flow) -> Instant {
    let answered = flow.counts.bytes_sent > 0 && flow.counts.bytes_received > 0;
    let idle = match (tuple.protocol, flow.closing) {
        (protocol::TCP, true) => limits.tcp_closing,
        (protocol::TCP, false) if answered => limits.tcp_idle,
        _ => limits.other_idle,
    };
    flow.last_seen + idle
}
