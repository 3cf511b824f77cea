//! Device to tunnel: who sends, where to, which identities may answer, which tunnel.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{AnswerKind, Direction, Egress, Engine, EngineEvent, Flow, Opener, revisit::Refusal},
    policy::{EgressDecision, Why},
    registry::{KeyTable, TunnelId, TunnelKey},
    wire::{
        DropReason, FiveTuple, address::is_martian, ip_fragments::FragmentVerdict, packet::Packet,
        protocol,
    },
};

/// How long a peer's FLOW_REFUSED holds before the flow is tried again.
pub(super) const REFUSED_FOR: std::time::Duration = std::time::Duration::from_secs(5);
/// The largest opening packet that is kept to answer a refusal.
const MAX_OPENING: usize = 256;

impl Engine {
    /// Decides on a packet that the kernel sent into the device.
    pub fn handle_egress(
        &mut self,
        packet: &Packet<'_>,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Egress {
        self.egress(packet, true, now, keys)
    }

    /// Decides on a packet that another shard's device brought. It stays here: whatever two shards believe of each
    /// other, no packet goes to and fro between them.
    pub fn handle_handed_over(
        &mut self,
        packet: &Packet<'_>,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Egress {
        self.egress(packet, false, now, keys)
    }

    fn egress(
        &mut self,
        packet: &Packet<'_>,
        may_hand_over: bool,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Egress {
        // What follows was found good when the flow was decided.
        if packet.fragment().is_none()
            && let Some(verdict) = self.carry_known(packet, &packet.five_tuple(), now, keys)
        {
            return verdict;
        }
        if is_martian(packet.destination()) || is_martian(packet.source()) {
            return self.drop_egress(packet, DropReason::Martian, None, None, now);
        }
        if self.is_own_outer(packet) {
            return self.drop_egress(packet, DropReason::Loop, None, None, now);
        }
        let tuple = match self.egress_tuple(packet, now) {
            Ok(tuple) => tuple,
            Err(verdict) => return verdict,
        };
        if let Some(tunnel) = self.error_flow(packet) {
            return Egress::Tunnel(tunnel);
        }
        if let Some(verdict) = self.carry_known(packet, &tuple, now, keys) {
            return verdict;
        }
        if self.revisit(&tuple, now, keys)
            && let Some(verdict) = self.carry_known(packet, &tuple, now, keys)
        {
            return verdict;
        }
        if may_hand_over && let Some(shard) = self.flow_elsewhere(packet, &tuple) {
            return Egress::Elsewhere(shard);
        }
        match self.refuse_cut(packet, &tuple, now) {
            Some(verdict) => verdict,
            None => self.open_egress(packet, tuple, now, keys),
        }
    }

    /// A packet of a flow that the policy in force decided.
    fn carry_known(
        &mut self,
        packet: &Packet<'_>,
        tuple: &FiveTuple,
        now: Instant,
        keys: &KeyTable,
    ) -> Option<Egress> {
        let generation = self.policy.generation();
        let flow = self.flows.find(tuple)?;
        if flow.generation != generation {
            return None;
        }
        let tunnel = flow.tunnel;
        if flow.refused_until.is_none_or(|until| until <= now) {
            flow.note_sent(packet, now);
            self.flows.note_flags(tuple, packet.tcp_flags());
            return Some(Egress::Tunnel(tunnel));
        }
        let (key, why) = (keys.key(tunnel), Arc::clone(&flow.why));
        Some(self.drop_egress(packet, DropReason::PeerRefusedFlow, key, Some(why), now))
    }

    /// A packet of a flow that was cut a while ago, unless it begins another one.
    pub(super) fn refuse_cut(
        &mut self,
        packet: &Packet<'_>,
        tuple: &FiveTuple,
        now: Instant,
    ) -> Option<Egress> {
        let cut = self.cuts.find(tuple)?;
        if cut.reopens(packet, Opener::Local, now) {
            self.cuts.forget(tuple);
            return None;
        }
        cut.note_packet(now);
        let reason = cut.reason;
        let may_tell =
            (tuple.protocol == protocol::TCP && cut.take_reset()) || self.answers.allow(now);
        self.count_egress_drop(reason);
        let answer = may_tell.then(|| AnswerKind::Prohibited.build(packet));
        Some(Egress::Drop {
            reason,
            answer: answer.flatten(),
        })
    }

    /// Drops a packet from the device: counts it, logs it within limits and builds the answer for its sender. `key` is of
    /// the tunnel that would have carried it.
    pub fn drop_egress(
        &mut self,
        packet: &Packet<'_>,
        reason: DropReason,
        key: Option<&TunnelKey>,
        why: Option<Arc<Why>>,
        now: Instant,
    ) -> Egress {
        self.count_egress_drop(reason);
        let kind = AnswerKind::of(reason);
        let may_tell = self.answers.allow(now);
        if may_tell {
            let local = key.map(|key| &key.local);
            let local = local.or_else(|| self.policy.local_identity(packet.source()));
            self.push_event(EngineEvent::Dropped {
                tuple: packet.five_tuple(),
                direction: Direction::Egress,
                local: local.cloned(),
                peer: key.map(|key| key.peer.clone()),
                reason,
                why,
            });
        }
        Egress::Drop {
            reason,
            answer: may_tell.then(|| kind.build(packet)).flatten(),
        }
    }

    /// The flow's five-tuple; fragments other than the first take it from their first.
    fn egress_tuple(&mut self, packet: &Packet<'_>, now: Instant) -> Result<FiveTuple, Egress> {
        if packet.fragment().is_none() {
            return Ok(packet.five_tuple());
        }
        match self.egress_fragments.push(packet, now) {
            FragmentVerdict::Tuple(tuple) => Ok(tuple),
            FragmentVerdict::Held => Err(Egress::Held),
            FragmentVerdict::Drop(reason) => Err(self.drop_egress(packet, reason, None, None, now)),
        }
    }

    /// Packets that were held for the first fragment that just came, ready to be handled again.
    pub fn poll_released_egress(&mut self) -> Option<Vec<u8>> {
        self.egress_fragments.poll_released()
    }

    /// An ICMP error about a packet that a tunnel delivered goes back through that tunnel.
    fn error_flow(&mut self, packet: &Packet<'_>) -> Option<TunnelId> {
        let quoted = packet.icmp_quote()?;
        self.flows.find(&quoted.reversed()).map(|flow| flow.tunnel)
    }

    /// The shard that has the packet's flow, or the flow that its ICMP error is about.
    fn flow_elsewhere(&self, packet: &Packet<'_>, tuple: &FiveTuple) -> Option<u8> {
        self.seat.as_ref()?;
        let quoted = || packet.icmp_quote().map(|quoted| quoted.reversed());
        self.elsewhere(tuple).or_else(|| self.elsewhere(&quoted()?))
    }

    /// Our own tunnel packets must never come out of the device: that is a routing loop.
    fn is_own_outer(&self, packet: &Packet<'_>) -> bool {
        let tuple = packet.five_tuple();
        let host = self.policy.host();
        tuple.protocol == protocol::UDP
            && tuple.source_port == host.port
            && tuple.destination_port == host.port
            && host.underlay.contains(&tuple.source)
    }

    fn open_egress(
        &mut self,
        packet: &Packet<'_>,
        tuple: FiveTuple,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Egress {
        let (opener, decision) = self.decide_open(packet, &tuple);
        let (key, why) = match decision {
            EgressDecision::Tunnel { key, why } => (key.with_lane(self.lane), why),
            EgressDecision::Plaintext { why } => {
                let reason = DropReason::PolicyPlaintext;
                return self.drop_egress(packet, reason, None, Some(why), now);
            }
            EgressDecision::Refuse { reason, why } => {
                return self.drop_egress(packet, reason, None, Some(why), now);
            }
        };
        let tunnel = keys.id(&key);
        let mut flow = Flow::new(
            tunnel,
            opener,
            self.policy.generation(),
            Arc::clone(&why),
            now,
        );
        flow.note_sent(packet, now);
        flow.note_flags(packet.tcp_flags());
        if opener == Opener::Local && packet.bytes().len() <= MAX_OPENING {
            flow.opening = Some(packet.bytes().into());
        }
        if let Err(reason) = self.flows.insert(tuple, flow) {
            self.leave(&tuple);
            return self.drop_egress(packet, reason, Some(&key), Some(why), now);
        }
        self.enter(tuple, opener, &key, false);
        self.push_event(EngineEvent::FlowOpened {
            tuple,
            opener,
            tunnel,
            why,
        });
        Egress::Tunnel(tunnel)
    }

    /// A packet of no known flow is decided as the opening of one; what cannot open a flow may be a reply of a local
    /// service whose flow was forgotten (wire.md §4).
    fn decide_open(&self, packet: &Packet<'_>, tuple: &FiveTuple) -> (Opener, EgressDecision) {
        let decision = self.policy.decide_egress(tuple);
        // Without flags anything opens a flow, and a refusal is final; what policy leaves in the clear comes here only as
        // a reply.
        let may_reply = match (packet.tcp_flags(), &decision) {
            (_, EgressDecision::Tunnel { .. }) => false,
            (Some(flags), _) => !flags.is_syn_only(),
            (None, EgressDecision::Plaintext { .. }) => true,
            (None, EgressDecision::Refuse { .. }) => false,
        };
        if may_reply && let EgressDecision::Tunnel { key, .. } = self.policy.decide_reply(tuple) {
            let decision = match self.judge_opened_by_peer(tuple, &key) {
                Ok(why) => EgressDecision::Tunnel { key, why },
                Err(Refusal { reason, why, .. }) => EgressDecision::Refuse { reason, why },
            };
            return (Opener::Peer, decision);
        }
        (Opener::Local, decision)
    }
}
