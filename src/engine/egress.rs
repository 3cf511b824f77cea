//! Device to tunnel: who sends, where to, which identities may answer, which tunnel.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{AnswerKind, Egress, Engine, EngineEvent, Flow, Opener},
    policy::{EgressDecision, Why},
    registry::{KeyTable, TunnelId},
    wire::{
        DropReason, FiveTuple, address::is_martian, capsule::FlowRefused,
        ip_fragments::FragmentVerdict, packet::Packet, protocol,
    },
};

/// How long a peer's FLOW_REFUSED holds before the flow is tried again.
const REFUSED_FOR: std::time::Duration = std::time::Duration::from_secs(5);
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
        if is_martian(packet.destination()) || is_martian(packet.source()) {
            return self.drop_egress(packet, DropReason::Martian, None, now);
        }
        if self.is_own_outer(packet) {
            return self.drop_egress(packet, DropReason::Loop, None, now);
        }
        let tuple = match self.egress_tuple(packet, now) {
            Ok(tuple) => tuple,
            Err(verdict) => return verdict,
        };
        if let Some(tunnel) = self.error_flow(packet) {
            return Egress::Tunnel(tunnel);
        }
        let generation = self.policy.generation();
        if let Some(flow) = self.flows.find(&tuple)
            && flow.generation == generation
        {
            if flow.refused_until.is_none_or(|until| until <= now) {
                flow.last_seen = now;
                flow.counts.bytes_sent += packet.bytes().len() as u64;
                let tunnel = flow.tunnel;
                self.flows.note_flags(&tuple, packet.tcp_flags());
                return Egress::Tunnel(tunnel);
            }
            let why = Arc::clone(&flow.why);
            return self.drop_egress(packet, DropReason::PeerRefusedFlow, Some(why), now);
        }
        self.open_egress(packet, tuple, now, keys)
    }

    /// Takes a peer's refusal of a flow and returns the answer for the local opener, if one is due.
    pub fn handle_flow_refused(
        &mut self,
        tunnel: TunnelId,
        refused: &FlowRefused,
        now: Instant,
    ) -> Option<Vec<u8>> {
        let flow = self
            .flows
            .find(&refused.tuple)
            .filter(|flow| flow.tunnel == tunnel)?;
        flow.refused_until = Some(now + REFUSED_FOR);
        let (opening, why) = (flow.opening.take(), Arc::clone(&flow.why));
        self.drops.add(DropReason::PeerRefusedFlow);
        let tuple = refused.tuple;
        self.push_event(EngineEvent::Dropped {
            tuple,
            reason: DropReason::PeerRefusedFlow,
            why: Some(why),
        });
        let opening = opening?;
        let packet = Packet::new_checked(&opening).ok()?;
        self.answers
            .allow(now)
            .then(|| AnswerKind::Prohibited.build(&packet))
            .flatten()
    }

    /// Drops a packet from the device: counts it, logs it within limits and builds the answer for its sender.
    pub fn drop_egress(
        &mut self,
        packet: &Packet<'_>,
        reason: DropReason,
        why: Option<Arc<Why>>,
        now: Instant,
    ) -> Egress {
        self.drops.add(reason);
        let kind = AnswerKind::of(reason);
        let may_tell = self.answers.allow(now);
        if may_tell {
            self.push_event(EngineEvent::Dropped {
                tuple: packet.five_tuple(),
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
            FragmentVerdict::Drop(reason) => Err(self.drop_egress(packet, reason, None, now)),
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
        let known = self
            .flows
            .find(&tuple)
            .map(|flow| (flow.opener, flow.tunnel));
        let (opener, decision) = self.decide_open(packet, &tuple, known.map(|(opener, _)| opener));
        let (key, why) = match decision {
            EgressDecision::Tunnel { key, why } => (key, why),
            EgressDecision::Plaintext { why } => {
                self.flows.remove(&tuple);
                return self.drop_egress(packet, DropReason::PolicyPlaintext, Some(why), now);
            }
            EgressDecision::Refuse { reason, why } => {
                self.flows.remove(&tuple);
                return self.drop_egress(packet, reason, Some(why), now);
            }
        };
        // A flow that the peer opened stays on the tunnel it came through while that is still between the same two.
        let tunnel = match known
            .and_then(|(_, tunnel)| keys.key(tunnel).map(|known| (tunnel, known)))
        {
            Some((tunnel, known))
                if opener == Opener::Peer && known.local == key.local && known.peer == key.peer =>
            {
                tunnel
            }
            _ => keys.id(&key),
        };
        let mut flow = Flow::new(
            tunnel,
            opener,
            self.policy.generation(),
            Arc::clone(&why),
            now,
        );
        flow.counts.bytes_sent = packet.bytes().len() as u64;
        flow.note_flags(packet.tcp_flags());
        if opener == Opener::Local && packet.bytes().len() <= MAX_OPENING {
            flow.opening = Some(packet.bytes().into());
        }
        if let Err(reason) = self.flows.insert(tuple, flow) {
            return self.drop_egress(packet, reason, Some(why), now);
        }
        if known.is_none() {
            self.push_event(EngineEvent::FlowOpened {
                tuple,
                opener,
                tunnel,
                why,
            });
        }
        Egress::Tunnel(tunnel)
    }

    /// A packet of no known flow is decided as the opening of one; what cannot open a flow may be a reply of a local
    /// service whose flow was forgotten (wire.md §4).
    fn decide_open(
        &self,
        packet: &Packet<'_>,
        tuple: &FiveTuple,
        known: Option<Opener>,
    ) -> (Opener, EgressDecision) {
        if known == Some(Opener::Peer) {
            return (Opener::Peer, self.policy.decide_reply(tuple));
        }
        let decision = self.policy.decide_egress(tuple);
        // Without flags anything opens a flow, and a refusal is final; what policy leaves in the clear comes here only as
        // a reply.
        let may_reply = match (packet.tcp_flags(), &decision) {
            (_, EgressDecision::Tunnel { .. }) => false,
            (Some(flags), _) => !flags.is_syn_only(),
            (None, EgressDecision::Plaintext { .. }) => true,
            (None, EgressDecision::Refuse { .. }) => false,
        };
        if known.is_none() && may_reply {
            let reply = self.policy.decide_reply(tuple);
            if matches!(reply, EgressDecision::Tunnel { .. }) {
                return (Opener::Peer, reply);
            }
        }
        (Opener::Local, decision)
    }
}
