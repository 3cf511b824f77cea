//! Flows and verdicts: for each packet, which tunnel carries it, or why it is not delivered.
//!
//! Owns the flow table, the packets that wait for a tunnel, the trackers of inner IP fragments and the compiled
//! policy. Knows tunnels only by number; never does IO, never asks the time, never sends anything itself.

pub mod answer;
pub mod flows;
pub mod pending;
pub mod verdict;

mod egress;
mod ingress;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use crate::{
    policy::Compiled,
    registry::{KeyTable, TunnelId},
    wire::{DropCounts, DropReason, FiveTuple, ip_fragments::IpFragments},
};

pub use answer::{AnswerKind, Answers, AnswersByTunnel};
pub use flows::{Flow, FlowLimits, FlowTable, Opener};
pub use pending::{Pending, PendingLimits};
pub use verdict::{Egress, EngineEvent, Ingress};

/// Bounds and time-outs of an [`Engine`].
#[derive(Clone, Copy, Debug, Default)]
pub struct EngineLimits {
    /// Of the flow table.
    pub flows: FlowLimits,
    /// Of the packets that wait for a tunnel.
    pub pending: PendingLimits,
}

/// Decides for each packet; see the module.
#[derive(Debug)]
pub struct Engine {
    policy: Arc<Compiled>,
    flows: FlowTable,
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
            pending: Pending::new(limits.pending),
            egress_fragments: IpFragments::new(),
            ingress_fragments: BTreeMap::new(),
            answers: Answers::default(),
            refusals: AnswersByTunnel::default(),
            drops: DropCounts::default(),
            events: VecDeque::new(),
        }
    }

    /// Replaces the policy. Each flow is decided again at its next packet.
    pub fn handle_policy(&mut self, policy: Arc<Compiled>) {
        self.policy = policy;
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

    /// Packets not delivered so far, by reason.
    pub const fn drops(&self) -> &DropCounts {
        &self.drops
    }

    /// Rebuilds the flow of a conntrack entry after a restart and returns the tunnel it belongs to.
    ///
    /// `original` is the entry's original direction. `None` when policy no longer wants it in a tunnel.
    pub fn handle_seed(
        &mut self,
        original: &FiveTuple,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Option<TunnelId> {
        let (tuple, opener, decision) = if self.policy.is_local(original.source) {
            (
                *original,
                Opener::Local,
                self.policy.decide_egress(original),
            )
        } else {
            let reply = original.reversed();
            (reply, Opener::Peer, self.policy.decide_reply(&reply))
        };
        let crate::policy::EgressDecision::Tunnel { key, why } = decision else {
            return None;
        };
        let tunnel = keys.id(&key);
        let flow = Flow::new(tunnel, opener, self.policy.generation(), why, now);
        self.flows.insert(tuple, flow).ok()?;
        Some(tunnel)
    }

    /// Expires flows, waiting packets and fragments.
    pub fn handle_timeout(&mut self, now: Instant) {
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
        self.events.pop_front()
    }

    /// The next tunnel that gained its first flow (`true`) or lost its last (`false`).
    pub fn poll_live(&mut self) -> Option<(TunnelId, bool)> {
        self.flows.poll_live()
    }

    fn push_event(&mut self, event: EngineEvent) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }
}
