//! Live flows under another policy: each is decided again, and what may no longer be is cut on both ends at once.
//!
//! A bounded number of flows is looked at in each call, so that a full table stops nobody's packets; a packet that comes
//! first has its flow decided before it passes. Cutting is: the local application's connection is reset, the peer is told,
//! and the flow is remembered for a while so that nothing revives it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use hashbrown::HashMap;

use crate::{
    engine::{
        AnswerKind, Egress, Engine, EngineEvent, Flow, Opener, cuts::CutFlow, egress::REFUSED_FOR,
        flows::Cursor,
    },
    policy::{EgressDecision, IngressDecision, Why},
    registry::{KeyTable, TunnelId, TunnelKey},
    wire::{
        DropReason, FiveTuple,
        capsule::{FlowRefused, FlowRefusedCode},
        icmp,
        packet::Packet,
        protocol,
    },
};

/// Flows that are looked at in one call.
const BATCH: usize = 1_024;
/// Resets that wait for the device, and revocations that wait for the tunnels: looking at flows stops until there is room
/// for those of a whole batch.
const MAX_WAITING: usize = 4 * BATCH;

/// Decisions that are remembered while flows are looked at: most flows differ from others in their opener's port alone,
/// which no rule looks at.
const MAX_MEMORY: usize = 4_096;

/// Why a flow may not be.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// What its packets are dropped for.
    pub(super) reason: DropReason,
    /// What a peer that opened it is told.
    pub(super) code: FlowRefusedCode,
    /// The rule.
    pub(super) why: Arc<Why>,
}

/// What becomes of a flow that may be.
enum Judged {
    /// It stays where it is.
    Stays(Arc<Why>),
    /// The same two, by another gateway.
    Moves(TunnelKey, Arc<Why>),
}

/// Who cut a flow, and why.
struct Cause {
    reason: DropReason,
    why: Option<Arc<Why>>,
    /// The words of the peer, or of what ended the session.
    said: Option<Arc<str>>,
    /// The peer does not know yet.
    tell_peer: bool,
}

/// What was begun and is not done; see the module.
#[derive(Debug, Default)]
pub(super) struct Revisits {
    /// Flows of older policies are looked for since then, from the cursor on.
    policy: Option<(Instant, Option<Cursor>)>,
    /// The same for flows of sessions that were revoked.
    sessions: Option<(Instant, Option<Cursor>)>,
    revoked: BTreeMap<TunnelId, (DropReason, Arc<str>)>,
    /// Decisions by the policy in force: on flows without their opener's port.
    memory: HashMap<(Opener, TunnelId, FiveTuple), Result<Arc<Why>, Refusal>>,
    /// For the device.
    resets: VecDeque<Vec<u8>>,
    /// For the peers.
    revocations: VecDeque<(TunnelId, FlowRefused)>,
}

impl Revisits {
    /// Every flow is to be looked at from `now` on.
    pub(super) fn begin(&mut self, now: Instant) {
        self.policy = Some((now, None));
        self.memory.clear();
    }

    /// When there is something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let due = |state: &Option<(Instant, Option<Cursor>)>| state.map(|(since, _)| since);
        due(&self.policy)
            .into_iter()
            .chain(due(&self.sessions))
            .min()
    }

    fn has_room(&self) -> bool {
        self.resets.len().max(self.revocations.len()) + BATCH <= MAX_WAITING
    }
}

impl Engine {
    /// The next reset of a cut flow for its local end.
    pub fn poll_reset(&mut self) -> Option<Vec<u8>> {
        self.revisits.resets.pop_front()
    }

    /// The next cut flow that a peer is to be told of, and the tunnel to it.
    pub fn poll_revocation(&mut self) -> Option<(TunnelId, FlowRefused)> {
        self.revisits.revocations.pop_front()
    }

    /// The session of `tunnel` ended because one end no longer allows it, as `said`: so do its established flows.
    pub fn handle_session_revoked(
        &mut self,
        tunnel: TunnelId,
        by_peer: bool,
        said: &str,
        now: Instant,
    ) {
        let reason = if by_peer {
            DropReason::PeerRefusedSession
        } else {
            DropReason::WrongIdentity
        };
        self.revisits.revoked.insert(tunnel, (reason, said.into()));
        self.revisits.sessions = Some((now, None));
    }

    /// A session of `tunnel` is up: flows that are left belong to it.
    pub fn handle_session_up(&mut self, tunnel: TunnelId) {
        self.revisits.revoked.remove(&tunnel);
    }

    /// Takes a peer's refusal of a flow. What was established is cut; what was not is refused for a while, and its opener
    /// learns of it at once.
    pub fn handle_flow_refused(
        &mut self,
        tunnel: TunnelId,
        refused: &FlowRefused,
        now: Instant,
        keys: &KeyTable,
    ) {
        let tuple = refused.tuple;
        let Some(flow) = self.flows.find(&tuple) else {
            return;
        };
        // A peer has a say in what it carries itself, and in nothing else.
        if flow.tunnel != tunnel {
            return;
        }
        let is_revoked = refused.code == FlowRefusedCode::Revoked;
        if is_revoked || (tuple.protocol == protocol::TCP && flow.is_established()) {
            let cause = Cause {
                reason: DropReason::PeerRefusedFlow,
                why: None,
                said: Some(refused.reason.as_str().into()),
                tell_peer: false,
            };
            return self.cut(&tuple, cause, now, keys);
        }
        flow.refused_until = Some(now + REFUSED_FOR);
        let opening = flow.opening.take();
        // The packet that was refused is among the peer's drops.
        if let Some(opening) = opening
            && let Ok(packet) = Packet::new_checked(&opening)
            && self.answers.allow(now)
            && let Some(answer) = AnswerKind::Prohibited.build(&packet)
        {
            self.push_reset(answer);
        }
    }

    /// Decides a flow of an older policy again; `false` when there is none any more.
    pub(super) fn revisit(&mut self, tuple: &FiveTuple, now: Instant, keys: &mut KeyTable) -> bool {
        let generation = self.policy.generation();
        let Some(flow) = self.flows.find(tuple) else {
            return false;
        };
        if flow.generation == generation {
            return true;
        }
        let (opener, tunnel) = (flow.opener, flow.tunnel);
        let why = match self.recall(tuple, opener, tunnel, keys) {
            Ok(Judged::Stays(why)) => why,
            Ok(Judged::Moves(key, why)) => {
                self.flows.rehome(tuple, keys.id(&key));
                why
            }
            Err(refusal) => {
                self.cut(tuple, refusal.into(), now, keys);
                return false;
            }
        };
        if let Some(flow) = self.flows.find(tuple) {
            (flow.generation, flow.why) = (generation, why);
        }
        true
    }

    /// Decides again on a packet that waited for its tunnel: the answer for its sender, if any, where its flow was cut.
    pub fn refuse_waiting(
        &mut self,
        packet: &Packet<'_>,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Option<Option<Vec<u8>>> {
        let tuple = packet.five_tuple();
        if self.revisit(&tuple, now, keys) {
            return None;
        }
        let reason = self.cuts.find(&tuple)?.reason;
        match self.refuse_cut(packet, &tuple, now) {
            Some(Egress::Drop { answer, .. }) => Some(answer),
            // It might begin the flow anew, but by another tunnel than the one that it waited for.
            Some(Egress::Elsewhere(_) | Egress::Held | Egress::Tunnel(_)) | None => {
                self.count_egress_drop(reason);
                Some(None)
            }
        }
    }

    /// Rebuilds the flow of a conntrack entry after a restart and returns the tunnel it belongs to.
    ///
    /// `original` is the entry's original direction. `None` when policy no longer wants it in a tunnel; one that it no
    /// longer allows is cut.
    pub fn handle_seed(
        &mut self,
        original: &FiveTuple,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Option<TunnelId> {
        let (tuple, opener, decision) = if self.policy.is_local(original.source) {
            let decision = self.policy.decide_egress(original);
            (*original, Opener::Local, decision)
        } else {
            let reply = original.reversed();
            (reply, Opener::Peer, self.policy.decide_reply(&reply))
        };
        let EgressDecision::Tunnel { key, why } = decision else {
            return None;
        };
        let refusal = self.judge(&tuple, opener, &key).err();
        let key = key.with_lane(self.lane);
        let tunnel = keys.id(&key);
        let flow = Flow::new(tunnel, opener, self.policy.generation(), why, now);
        self.flows.insert(tuple, flow).ok()?;
        self.enter(tuple, opener, &key, true);
        if let Some(refusal) = refusal {
            self.cut(&tuple, refusal.into(), now, keys);
            return None;
        }
        Some(tunnel)
    }

    /// Looks at the next flows, if any are to be looked at.
    pub(super) fn advance_revisits(&mut self, now: Instant, keys: &mut KeyTable) {
        if let Some((since, mut cursor)) = self.revisits.policy
            && self.revisits.has_room()
        {
            let generation = self.policy.generation();
            let is_stale = |flow: &Flow| flow.generation != generation;
            for tuple in self.flows.survey(&mut cursor, BATCH, is_stale) {
                self.revisit(&tuple, now, keys);
            }
            self.revisits.policy = cursor.map(|cursor| (since, Some(cursor)));
            if cursor.is_none() {
                self.revisits.memory = HashMap::new();
            }
        }
        if let Some((since, mut cursor)) = self.revisits.sessions
            && self.revisits.has_room()
        {
            let revoked = &self.revisits.revoked;
            let is_concerned =
                |flow: &Flow| flow.is_established() && revoked.contains_key(&flow.tunnel);
            for tuple in self.flows.survey(&mut cursor, BATCH, is_concerned) {
                self.end_with_session(&tuple, now, keys);
            }
            self.revisits.sessions = cursor.map(|cursor| (since, Some(cursor)));
            if cursor.is_none() {
                self.revisits.revoked.clear();
            }
        }
    }

    /// Cuts a flow whose session may no longer be, by a rule of its own where there is one.
    fn end_with_session(&mut self, tuple: &FiveTuple, now: Instant, keys: &mut KeyTable) {
        if !self.revisit(tuple, now, keys) {
            return;
        }
        let tunnel = self.flows.find(tuple).map(|flow| flow.tunnel);
        let revoked = tunnel.and_then(|tunnel| self.revisits.revoked.get(&tunnel));
        if let Some((reason, said)) = revoked {
            let cause = Cause {
                reason: *reason,
                why: None,
                said: Some(Arc::clone(said)),
                tell_peer: false,
            };
            self.cut(tuple, cause, now, keys);
        }
    }

    /// [`Self::judge`], or what it said of a flow like this one.
    fn recall(
        &mut self,
        tuple: &FiveTuple,
        opener: Opener,
        tunnel: TunnelId,
        keys: &KeyTable,
    ) -> Result<Judged, Refusal> {
        let mut like = *tuple;
        match opener {
            Opener::Local => like.source_port = 0,
            Opener::Peer => like.destination_port = 0,
        }
        if let Some(known) = self.revisits.memory.get(&(opener, tunnel, like)) {
            return known.clone().map(Judged::Stays);
        }
        let Some(key) = keys.key(tunnel) else {
            let text = "its tunnel is unknown".into();
            return Err(Refusal::new(DropReason::TunnelDown, text, &Why::default()));
        };
        let judged = self.judge(tuple, opener, key);
        let known = match &judged {
            Ok(Judged::Stays(why)) => Ok(Arc::clone(why)),
            Ok(Judged::Moves(..)) => return judged,
            Err(refusal) => Err(refusal.clone()),
        };
        if self.revisits.memory.len() >= MAX_MEMORY {
            self.revisits.memory.clear();
        }
        self.revisits.memory.insert((opener, tunnel, like), known);
        judged
    }

    /// May a flow between the two of `key` still be?
    fn judge(&self, tuple: &FiveTuple, opener: Opener, key: &TunnelKey) -> Result<Judged, Refusal> {
        if opener == Opener::Peer {
            return self.judge_opened_by_peer(tuple, key).map(Judged::Stays);
        }
        match self.policy.decide_egress(tuple) {
            EgressDecision::Tunnel { key: wanted, why }
                if wanted.local == key.local
                    && wanted.peer == key.peer
                    && wanted.gateway == key.gateway =>
            {
                Ok(Judged::Stays(why))
            }
            EgressDecision::Tunnel { key: wanted, why }
                if wanted.local == key.local && wanted.peer == key.peer =>
            {
                Ok(Judged::Moves(wanted.with_lane(self.lane), why))
            }
            EgressDecision::Tunnel { key: wanted, why } => {
                let text = format!("it is now between {} and {}", wanted.local, wanted.peer);
                Err(Refusal::new(DropReason::WrongIdentity, text, &why))
            }
            EgressDecision::Plaintext { why } => Err(Refusal {
                reason: DropReason::PolicyPlaintext,
                code: FlowRefusedCode::Revoked,
                why,
            }),
            EgressDecision::Refuse { reason, why } => Err(Refusal {
                reason,
                code: FlowRefusedCode::Revoked,
                why,
            }),
        }
    }

    /// The same questions that ingress asks of each packet and of each new flow, and whether replies still go this way.
    pub(super) fn judge_opened_by_peer(
        &self,
        tuple: &FiveTuple,
        key: &TunnelKey,
    ) -> Result<Arc<Why>, Refusal> {
        let nobody = Why::default();
        if self.policy.local_identity(tuple.source) != Some(&key.local) {
            let text = format!("{} no longer belongs to {}", tuple.source, key.local);
            return Err(Refusal::new(DropReason::ForeignDestination, text, &nobody));
        }
        if !self.policy.peer_owns(&key.peer, tuple.destination)
            || self.policy.is_local(tuple.destination)
        {
            let text = format!("{} no longer belongs to {}", tuple.destination, key.peer);
            return Err(Refusal::new(DropReason::ForeignSource, text, &nobody));
        }
        let opening = tuple.reversed();
        let why = match self.policy.decide_ingress(&key.local, &key.peer, &opening) {
            IngressDecision::Accept { why } => why,
            IngressDecision::Refuse { reason, code, why } => {
                return Err(Refusal { reason, code, why });
            }
        };
        let code = FlowRefusedCode::Revoked;
        match self.policy.decide_reply(tuple) {
            EgressDecision::Tunnel { .. } => Ok(why),
            EgressDecision::Plaintext { why } => Err(Refusal {
                reason: DropReason::PolicyPlaintext,
                code,
                why,
            }),
            EgressDecision::Refuse { reason, why } => Err(Refusal { reason, code, why }),
        }
    }

    fn cut(&mut self, tuple: &FiveTuple, cause: Cause, now: Instant, keys: &KeyTable) {
        let Some(flow) = self.flows.remove(tuple) else {
            return;
        };
        self.leave(tuple);
        if let Some(reset) = reset_of(tuple, &flow) {
            self.push_reset(reset);
        }
        let Cause {
            reason, why, said, ..
        } = cause;
        let is_believed_for_a_while = reason == DropReason::PeerRefusedFlow;
        let again_from = match is_believed_for_a_while {
            true => now + REFUSED_FOR,
            false => now,
        };
        let cut = CutFlow::new(flow.opener, reason, why.clone(), again_from, now);
        self.cuts.insert(*tuple, cut);
        let key = keys.key(flow.tunnel);
        if cause.tell_peer && self.revisits.revocations.len() < MAX_WAITING {
            let refused = FlowRefused {
                code: FlowRefusedCode::Revoked,
                tuple: tuple.reversed(),
                reason: self.told(key, FlowRefusedCode::Revoked, why.as_deref()),
            };
            self.revisits.revocations.push_back((flow.tunnel, refused));
        }
        self.push_event(EngineEvent::FlowCut {
            tuple: *tuple,
            opener: flow.opener,
            key: key.cloned(),
            reason,
            why,
            said,
            summary: flow.summary(),
        });
    }

    fn push_reset(&mut self, reset: Vec<u8>) {
        if self.revisits.resets.len() < MAX_WAITING {
            self.revisits.resets.push_back(reset);
        }
    }
}

impl Refusal {
    fn new(reason: DropReason, text: String, why: &Why) -> Self {
        Self {
            reason,
            code: FlowRefusedCode::Revoked,
            why: Arc::new(Why {
                text: text.into(),
                ..why.clone()
            }),
        }
    }
}

impl From<Refusal> for Cause {
    fn from(refusal: Refusal) -> Self {
        Self {
            reason: refusal.reason,
            why: Some(refusal.why),
            said: None,
            tell_peer: true,
        }
    }
}

/// The RST for the local end of a TCP connection, as far as its numbers are known.
fn reset_of(tuple: &FiveTuple, flow: &Flow) -> Option<Vec<u8>> {
    if tuple.protocol != protocol::TCP {
        return None;
    }
    match (&flow.opening, flow.next_sequence) {
        (Some(opening), _) => AnswerKind::Prohibited.build(&Packet::new_checked(opening).ok()?),
        (None, Some(next)) => icmp::reset_established(&tuple.reversed(), next),
        (None, None) => None,
    }
}
