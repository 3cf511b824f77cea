//! Flows and verdicts: for each packet, which tunnel carries it, or why it is not delivered.
//!
//! Owns the flow table, the packets that wait for a tunnel, the trackers of inner IP fragments and the compiled
//! policy. Knows tunnels only by number; never does IO, never asks the time, never sends anything itself.

pub mod answer;
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
    wire::{DropCounts, DropReason, capsule::FlowRefusedCode, ip_fragments::IpFragments},
};

pub use answer::{AnswerKind, Answers, AnswersByTunnel};
pub use flows::{Flow, FlowLimits, FlowTable, Opener};
pub use pending::{Pending, PendingLimits};
pub use verdict::{Direction, Egress, EngineEvent, Ingress};

use cuts::CutFlows;
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
    events: VecDeque<EngineEvent>,
}

/// How many events wait for the control plane; more are forgotten, the counters stay true.
const MAX_EVENTS: usize = 4096;

impl Engine {
    /// An engine without flows that decides by `policy`.
    pub fn new(policy: Arc<Compiled>, limits: EngineLimits) -> Self {
        Self {
            policy,
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
            events: VecDeque::new(),
        }
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

    /// Counts a packet that was not delivered.
    pub fn count_drop(&mut self, reason: DropReason) {
        self.drops.add(reason);
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
            self.push_event(EngineEvent::FlowClosed {
                tuple,
                summary: flow.summary(),
            });
        }
        for _ in 0..self.pending.expire(now) {
            self.drops.add(DropReason::PendingTimeout);
        }
        let mut expired = self.egress_fragments.expire(now);
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
            return Some(EngineEvent::FlowClosed { tuple, summary });
        }
        self.events.pop_front()
    }

    /// The next tunnel that gained its first flow (`true`) or lost its last (`false`).
    pub fn poll_live(&mut self) -> Option<(TunnelId, bool)> {
        self.flows.poll_live()
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
