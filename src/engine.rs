//! Flows and verdicts: for each packet, which tunnel carries it, or why it is not delivered.
//!
//! Owns the flow table, the packets that wait for a tunnel, the trackers of inner IP fragments and the compiled
//! policy. Knows tunnels only by number; never does IO, never asks the time, never sends anything itself.

pub mod answer;
pub mod directory;
pub mod flows;
pub mod pending;
pub mod verdict;

mod cuts;
mod egress;
mod ingress;
mod revisit;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use crate::{
    policy::{Compiled, Why},
    registry::{KeyTable, TunnelId, TunnelKey},
    wire::{
        DropCounts, DropReason, FiveTuple, capsule::FlowRefusedCode, ip_fragments::IpFragments,
    },
};

pub use answer::{AnswerKind, Answers, AnswersByTunnel};
pub use directory::{FlowDirectory, Seat};
pub use flows::{Flow, FlowLimits, FlowTable, Opener};
pub use pending::{Pending, PendingLimits};
pub use verdict::{Direction, Egress, EngineEvent, Ingress};

use cuts::CutFlows;
use directory::Pair;
use revisit::Revisits;

/// Bounds and time-outs of an [`Engine`], and what it may tell.
#[derive(Clone, Copy, Debug)]
pub struct EngineLimits {
    /// Of the flow table.
    pub flows: FlowLimits,
    /// Of the packets that wait for a tunnel.
    pub pending: PendingLimits,
    /// A peer of the own trust domain is told which policy and rule refuse its flow, not only that one does.
    pub reveal_reasons: bool,
}

impl Default for EngineLimits {
    fn default() -> Self {
        Self {
            flows: FlowLimits::default(),
            pending: PendingLimits::default(),
            reveal_reasons: true,
        }
    }
}

/// Decides for each packet; see the module.
#[derive(Debug)]
pub struct Engine {
    policy: Arc<Compiled>,
    /// Which lane flows are sent by: the number of this shard.
    lane: u8,
    /// The flows of the host's other shards, where there are any.
    seat: Option<Seat>,
    /// Flows that this shard took over, and from which.
    releases: VecDeque<(u8, FiveTuple)>,
    flows: FlowTable,
    cuts: CutFlows,
    revisits: Revisits,
    reveal_reasons: bool,
    pending: Pending,
    egress_fragments: IpFragments,
    /// By tunnel: no peer fills, mixes with or releases another's.
    ingress_fragments: BTreeMap<TunnelId, IpFragments>,
    answers: Answers,
    refusals: AnswersByTunnel,
    drops: DropCounts,
    /// Those of them that came from the device and never reached a session.
    egress_drops: u64,
    events: VecDeque<EngineEvent>,
}

/// How many events wait for the control plane; more are forgotten, the counters stay true.
const MAX_EVENTS: usize = 4096;

impl Engine {
    /// An engine without flows that decides by `policy`.
    pub fn new(policy: Arc<Compiled>, limits: EngineLimits) -> Self {
        Self {
            policy,
            lane: 0,
            seat: None,
            releases: VecDeque::new(),
            flows: FlowTable::new(limits.flows),
            cuts: CutFlows::default(),
            revisits: Revisits::default(),
            reveal_reasons: limits.reveal_reasons,
            pending: Pending::new(limits.pending),
            egress_fragments: IpFragments::new(),
            ingress_fragments: BTreeMap::new(),
            answers: Answers::default(),
            refusals: AnswersByTunnel::default(),
            drops: DropCounts::default(),
            egress_drops: 0,
            events: VecDeque::new(),
        }
    }

    /// The engine of one of several shards.
    #[must_use]
    pub fn with_seat(self, lane: u8, seat: Option<Seat>) -> Self {
        Self { lane, seat, ..self }
    }

    /// Replaces the policy. Each flow is decided again at its next packet or in [`Self::handle_timeout`], whichever comes
    /// first.
    pub fn handle_policy(&mut self, policy: Arc<Compiled>, now: Instant) {
        self.policy = policy;
        self.revisits.begin(now);
    }

    /// The policy in force.
    pub const fn policy(&self) -> &Arc<Compiled> {
        &self.policy
    }

    /// The flow table, for reading.
    pub const fn flows(&self) -> &FlowTable {
        &self.flows
    }

    /// The packets that wait for tunnels.
    pub const fn pending_mut(&mut self) -> &mut Pending {
        &mut self.pending
    }

    /// Bytes of inner IP fragments that came before their first.
    pub fn fragment_bytes(&self) -> usize {
        let ingress = self.ingress_fragments.values();
        let ingress: usize = ingress.map(IpFragments::held_bytes).sum();
        self.egress_fragments.held_bytes() + ingress
    }

    /// Counts a packet that was not delivered.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.drops.add(reason);
    }

    /// Counts a packet from the device that was not carried.
    pub fn count_egress_drop(&mut self, reason: DropReason) {
        self.drops.add(reason);
        self.egress_drops += 1;
    }

    /// Packets from the device that were not carried so far: frames, those that waited included.
    pub const fn egress_drops(&self) -> u64 {
        self.egress_drops
    }

    /// Packets from the device that wait: for a tunnel, or for the first fragment of their packet.
    pub fn egress_waiting(&self) -> u64 {
        (self.pending.frames() + self.egress_fragments.waiting()) as u64
    }

    /// Counts packets that were not delivered.
    pub fn count_drops(&mut self, reason: DropReason, packets: u64) {
        self.drops.add_many(reason, packets);
    }

    /// Packets not delivered so far, by reason.
    pub const fn drops(&self) -> &DropCounts {
        &self.drops
    }

    /// Decides flows of older policies again, some at a time; expires flows, waiting packets and fragments.
    pub fn handle_timeout(&mut self, now: Instant, keys: &mut KeyTable) {
        self.advance_revisits(now, keys);
        self.cuts.expire(now);
        while let Some((tuple, flow)) = self.flows.expire(now) {
            self.leave(&tuple);
            self.push_event(EngineEvent::FlowClosed {
                tuple,
                summary: flow.summary(),
            });
        }
        for _ in 0..self.pending.expire(now) {
            self.count_egress_drop(DropReason::PendingTimeout);
        }
        for _ in 0..self.egress_fragments.expire(now) {
            self.count_egress_drop(DropReason::FragmentTimeout);
        }
        let mut expired = 0;
        self.ingress_fragments.retain(|_, fragments| {
            expired += fragments.expire(now);
            fragments.poll_timeout().is_some()
        });
        for _ in 0..expired {
            self.drops.add(DropReason::FragmentTimeout);
        }
        self.refusals.forget_full(now);
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timers = [
            self.flows.poll_timeout(),
            self.cuts.poll_timeout(),
            self.revisits.poll_timeout(),
            self.pending.poll_timeout(),
            self.egress_fragments.poll_timeout(),
            self.ingress_fragments
                .values()
                .filter_map(IpFragments::poll_timeout)
                .min(),
        ];
        timers.into_iter().flatten().min()
    }

    /// The next event for the control plane.
    pub fn poll_event(&mut self) -> Option<EngineEvent> {
        if let Some((tuple, summary)) = self.flows.poll_evicted() {
            // A new connection may have taken the ports meanwhile.
            if self.flows.find(&tuple).is_none() {
                self.leave(&tuple);
            }
            return Some(EngineEvent::FlowClosed { tuple, summary });
        }
        self.events.pop_front()
    }

    /// The next tunnel that gained its first flow (`true`) or lost its last (`false`).
    pub fn poll_live(&mut self) -> Option<(TunnelId, bool)> {
        self.flows.poll_live()
    }

    /// The next flow that this shard took over, and the shard that may forget it.
    pub fn poll_release(&mut self) -> Option<(u8, FiveTuple)> {
        self.releases.pop_front()
    }

    /// Another shard took a flow over: there it goes on, here it is forgotten without a word.
    pub fn handle_release(&mut self, tuple: &FiveTuple) {
        if self.elsewhere(tuple).is_some() {
            self.flows.remove(tuple);
        }
    }

    /// The shard that a packet of the device belongs to whose flow this one does not know.
    pub fn elsewhere(&self, tuple: &FiveTuple) -> Option<u8> {
        let owner = self.seat.as_ref()?.elsewhere(tuple)?;
        (!owner.is_seed).then_some(owner.shard)
    }

    /// A flow goes on by another tunnel of the same two.
    pub fn rehome(&mut self, tuple: &FiveTuple, tunnel: TunnelId) {
        self.flows.rehome(tuple, tunnel);
    }

    /// A flow was put into the table.
    fn enter(&mut self, tuple: FiveTuple, opener: Opener, key: &TunnelKey, is_seed: bool) {
        if let Some(seat) = &self.seat
            && let Some(shard) = seat.enter(tuple, opener, Pair::of(key), is_seed)
            && self.releases.len() < MAX_EVENTS
        {
            self.releases.push_back((shard, tuple));
        }
    }

    /// A flow is no longer in the table.
    fn leave(&self, tuple: &FiveTuple) {
        if let Some(seat) = &self.seat {
            seat.leave(tuple);
        }
    }

    /// What a peer is told of a refusal: policy and rule where that may be, else what the code says.
    fn told(&self, key: Option<&TunnelKey>, code: FlowRefusedCode, why: Option<&Why>) -> String {
        let is_own_domain =
            |key: &TunnelKey| key.local.trust_domain_str() == key.peer.trust_domain_str();
        match why {
            Some(why) if self.reveal_reasons && key.is_some_and(is_own_domain) => {
                answer::reason(code, why)
            }
            _ => answer::words(code).to_owned(),
        }
    }

    fn push_event(&mut self, event: EngineEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }
}
