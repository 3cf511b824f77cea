//! Tunnel to device: is the inner source the peer's, is the inner destination ours, may they speak to it.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{Engine, EngineEvent, Flow, Ingress, Opener},
    policy::{EgressDecision, IngressDecision, Why},
    registry::{KeyTable, TunnelId, TunnelKey},
    wire::{
        DropReason, FiveTuple,
        address::is_martian,
        capsule::{FlowRefused, FlowRefusedCode},
        ip_fragments::FragmentVerdict,
        packet::Packet,
    },
};

impl Engine {
    /// Decides on a packet that the session of `tunnel` brought. Nothing reaches the device without passing here.
    pub fn handle_ingress(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        now: Instant,
        keys: &KeyTable,
    ) -> Ingress {
        let Some(key) = keys.key(tunnel) else {
            return self.drop_ingress(packet.five_tuple(), DropReason::ForeignSource, None, now);
        };
        if is_martian(packet.source()) || is_martian(packet.destination()) {
            return self.drop_ingress(packet.five_tuple(), DropReason::Martian, None, now);
        }
        if self.policy.local_identity(packet.destination()) != Some(&key.local) {
            let code = FlowRefusedCode::UnknownDestination;
            return self.drop_ingress(
                packet.five_tuple(),
                DropReason::ForeignDestination,
                Some((code, None)),
                now,
            );
        }
        if self.is_error_of_flow(tunnel, packet) {
            return Ingress::Deliver;
        }
        if !self.policy.peer_owns(&key.peer, packet.source())
            || self.policy.is_local(packet.source())
        {
            let code = FlowRefusedCode::UnknownSource;
            return self.drop_ingress(
                packet.five_tuple(),
                DropReason::ForeignSource,
                Some((code, None)),
                now,
            );
        }
        let tuple = match self.ingress_tuple(packet, now) {
            Ok(tuple) => tuple,
            Err(verdict) => return verdict,
        };
        let generation = self.policy.generation();
        if let Some(flow) = self.flows.find(&tuple.reversed())
            && flow.generation == generation
            && flow.tunnel == tunnel
        {
            flow.last_seen = now;
            flow.counts.bytes_received += packet.bytes().len() as u64;
            flow.note_flags(packet.tcp_flags());
            flow.opening = None;
            flow.refused_until = None;
            return Ingress::Deliver;
        }
        self.open_ingress(tunnel, key, packet, tuple, now, keys)
    }

    /// Packets that were held for the first fragment that just came, ready to be handled again.
    pub fn poll_released_ingress(&mut self) -> Option<Vec<u8>> {
        self.ingress_fragments.poll_released()
    }

    fn ingress_tuple(&mut self, packet: &Packet<'_>, now: Instant) -> Result<FiveTuple, Ingress> {
        if packet.fragment().is_none() {
            return Ok(packet.five_tuple());
        }
        match self.ingress_fragments.push(packet, now) {
            FragmentVerdict::Tuple(tuple) => Ok(tuple),
            FragmentVerdict::Held => Err(Ingress::Held),
            FragmentVerdict::Drop(reason) => {
                Err(self.drop_ingress(packet.five_tuple(), reason, None, now))
            }
        }
    }

    /// An ICMP error is accepted from any source when the packet it quotes went out through this tunnel.
    fn is_error_of_flow(&mut self, tunnel: TunnelId, packet: &Packet<'_>) -> bool {
        let quoted = packet.icmp_quote();
        quoted
            .and_then(|quoted| self.flows.find(&quoted))
            .is_some_and(|flow| flow.tunnel == tunnel)
            && !self.policy.is_local(packet.source())
    }

    fn open_ingress(
        &mut self,
        tunnel: TunnelId,
        key: &TunnelKey,
        packet: &Packet<'_>,
        tuple: FiveTuple,
        now: Instant,
        keys: &KeyTable,
    ) -> Ingress {
        let local = tuple.reversed();
        let known = self
            .flows
            .find(&local)
            .map(|flow| (flow.opener, flow.tunnel));
        let same_pair = |other: TunnelId| {
            keys.key(other)
                .is_some_and(|other| other.local == key.local && other.peer == key.peer)
        };
        let is_reply = matches!(known, Some((Opener::Local, other)) if same_pair(other));
        let (opener, why) = if is_reply {
            match self.decide_as_reply(key, &local) {
                Some(why) => (Opener::Local, why),
                None => return self.refuse_ingress(key, packet, tuple, now),
            }
        } else {
            match self.policy.decide_ingress(&key.local, &key.peer, &tuple) {
                IngressDecision::Accept { why } => (Opener::Peer, why),
                IngressDecision::Refuse { reason, code, why } => {
                    // The daemon may have forgotten a flow that a local workload opened: only a packet that cannot
                    // open a TCP connection is taken for a reply.
                    let segment = packet.tcp_flags().is_some_and(|flags| !flags.is_syn_only());
                    match segment.then(|| self.decide_as_reply(key, &local)).flatten() {
                        Some(why) => (Opener::Local, why),
                        None => {
                            self.flows.remove(&local);
                            return self.drop_ingress(tuple, reason, Some((code, Some(why))), now);
                        }
                    }
                }
            }
        };
        let mut flow = Flow::new(
            tunnel,
            opener,
            self.policy.generation(),
            Arc::clone(&why),
            now,
        );
        flow.counts.bytes_received = packet.bytes().len() as u64;
        flow.note_flags(packet.tcp_flags());
        if let Err(reason) = self.flows.insert(local, flow) {
            return self.drop_ingress(tuple, reason, None, now);
        }
        if known.is_none() {
            self.push_event(EngineEvent::FlowOpened {
                tuple: local,
                opener,
                tunnel,
                why,
            });
        }
        Ingress::Deliver
    }

    /// Would a local workload's flow `local` be carried to this very peer?
    fn decide_as_reply(&self, key: &TunnelKey, local: &FiveTuple) -> Option<Arc<Why>> {
        match self.policy.decide_egress(local) {
            EgressDecision::Tunnel { key: wanted, why }
                if wanted.local == key.local && wanted.peer == key.peer =>
            {
                Some(why)
            }
            EgressDecision::Tunnel { .. }
            | EgressDecision::Plaintext { .. }
            | EgressDecision::Refuse { .. } => None,
        }
    }

    fn refuse_ingress(
        &mut self,
        key: &TunnelKey,
        packet: &Packet<'_>,
        tuple: FiveTuple,
        now: Instant,
    ) -> Ingress {
        self.flows.remove(&tuple.reversed());
        match self
            .policy
            .decide_ingress(&key.local, &key.peer, &packet.five_tuple())
        {
            IngressDecision::Refuse { reason, code, why } => {
                self.drop_ingress(tuple, reason, Some((code, Some(why))), now)
            }
            IngressDecision::Accept { .. } => {
                self.drop_ingress(tuple, DropReason::ForeignSource, None, now)
            }
        }
    }

    fn drop_ingress(
        &mut self,
        tuple: FiveTuple,
        reason: DropReason,
        refusal: Option<(FlowRefusedCode, Option<Arc<Why>>)>,
        now: Instant,
    ) -> Ingress {
        self.drops.add(reason);
        if !self.refusals.allow(now) {
            return Ingress::Drop {
                reason,
                refused: None,
            };
        }
        let (code, why) = refusal.map_or((None, None), |(code, why)| (Some(code), why));
        let text = why
            .as_ref()
            .map_or_else(|| reason.to_string(), |why| why.text.clone());
        self.push_event(EngineEvent::Dropped { tuple, reason, why });
        let refused = code.map(|code| FlowRefused {
            code,
            tuple,
            reason: text,
        });
        Ingress::Drop { reason, refused }
    }
}
