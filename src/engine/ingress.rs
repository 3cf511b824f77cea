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

/// Why a peer may not open a flow, and what it is told.
struct Refusal {
    reason: DropReason,
    code: FlowRefusedCode,
    why: Arc<Why>,
}

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
            return self.drop_ingress(
                tunnel,
                packet.five_tuple(),
                DropReason::ForeignSource,
                None,
                now,
            );
        };
        if is_martian(packet.source()) || is_martian(packet.destination()) {
            return self.drop_ingress(tunnel, packet.five_tuple(), DropReason::Martian, None, now);
        }
        if self.policy.local_identity(packet.destination()) != Some(&key.local) {
            let code = FlowRefusedCode::UnknownDestination;
            return self.drop_ingress(
                tunnel,
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
                tunnel,
                packet.five_tuple(),
                DropReason::ForeignSource,
                Some((code, None)),
                now,
            );
        }
        let tuple = match self.ingress_tuple(tunnel, packet, now) {
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
            flow.opening = None;
            flow.refused_until = None;
            self.flows.note_flags(&tuple.reversed(), packet.tcp_flags());
            return Ingress::Deliver;
        }
        self.open_ingress(tunnel, key, packet, tuple, now, keys)
    }

    /// Packets that were held for the first fragment that just came, ready to be handled again.
    pub fn poll_released_ingress(&mut self, tunnel: TunnelId) -> Option<Vec<u8>> {
        self.ingress_fragments.get_mut(&tunnel)?.poll_released()
    }

    fn ingress_tuple(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        now: Instant,
    ) -> Result<FiveTuple, Ingress> {
        if packet.fragment().is_none() {
            return Ok(packet.five_tuple());
        }
        let fragments = self.ingress_fragments.entry(tunnel).or_default();
        match fragments.push(packet, now) {
            FragmentVerdict::Tuple(tuple) => Ok(tuple),
            FragmentVerdict::Held => Err(Ingress::Held),
            FragmentVerdict::Drop(reason) => {
                Err(self.drop_ingress(tunnel, packet.five_tuple(), reason, None, now))
            }
        }
    }

    /// An ICMP error is accepted from any source when the packet it quotes went out through this tunnel, under the policy
    /// in force, from the address that the error goes to.
    ///
    /// Not as a fragment: under a source that is not the peer's it would join another peer's packet in the kernel.
    fn is_error_of_flow(&mut self, tunnel: TunnelId, packet: &Packet<'_>) -> bool {
        let generation = self.policy.generation();
        packet.fragment().is_none()
            && !self.policy.is_local(packet.source())
            && packet
                .icmp_quote()
                .filter(|quoted| quoted.source == packet.destination())
                .and_then(|quoted| self.flows.find(&quoted))
                .is_some_and(|flow| flow.tunnel == tunnel && flow.generation == generation)
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
        if let Some((opener, other)) = known
            && !same_pair(other)
            && self.still_belongs(opener, keys.key(other), &local)
        {
            let code = FlowRefusedCode::UnknownSource;
            let refusal = Some((code, None));
            return self.drop_ingress(tunnel, tuple, DropReason::ForeignSource, refusal, now);
        }
        let is_reply = matches!(known, Some((Opener::Local, other)) if same_pair(other));
        let as_reply = is_reply
            .then(|| self.decide_as_reply(key, &local))
            .flatten();
        let opened = match as_reply {
            Some(why) => Ok((Opener::Local, why)),
            None => self.decide_opening(key, packet, &tuple),
        };
        let (opener, why) = match opened {
            Ok(opened) => opened,
            Err(Refusal { reason, code, why }) => {
                self.flows.remove(&local);
                return self.drop_ingress(tunnel, tuple, reason, Some((code, Some(why))), now);
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
            return self.drop_ingress(tunnel, tuple, reason, None, now);
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

    /// May this peer open the flow of `tuple`, or is `packet` of one whose opening was forgotten?
    fn decide_opening(
        &self,
        key: &TunnelKey,
        packet: &Packet<'_>,
        tuple: &FiveTuple,
    ) -> Result<(Opener, Arc<Why>), Refusal> {
        match self.policy.decide_ingress(&key.local, &key.peer, tuple) {
            IngressDecision::Accept { why } => Ok((Opener::Peer, why)),
            IngressDecision::Refuse { reason, code, why } => {
                // The daemon may have forgotten a flow that a local workload opened: only a packet that cannot open a
                // TCP connection is taken for a reply.
                let segment = packet.tcp_flags().is_some_and(|flags| !flags.is_syn_only());
                let reply = segment.then(|| self.decide_as_reply(key, &tuple.reversed()));
                match reply.flatten() {
                    Some(why) => Ok((Opener::Local, why)),
                    None => Err(Refusal { reason, code, why }),
                }
            }
        }
    }

    /// Addresses of services have several owners: none of them takes over a flow that another one of them has.
    fn still_belongs(
        &mut self,
        opener: Opener,
        owner: Option<&TunnelKey>,
        local: &FiveTuple,
    ) -> bool {
        let Some(owner) = owner else { return false };
        if self.flows.find(local).is_none_or(|flow| flow.is_closing()) {
            return false;
        }
        match opener {
            Opener::Local => self.decide_as_reply(owner, local).is_some(),
            Opener::Peer => self.policy.peer_owns(&owner.peer, local.destination),
        }
    }

    fn drop_ingress(
        &mut self,
        tunnel: TunnelId,
        tuple: FiveTuple,
        reason: DropReason,
        refusal: Option<(FlowRefusedCode, Option<Arc<Why>>)>,
        now: Instant,
    ) -> Ingress {
        self.drops.add(reason);
        if !self.refusals.allow(tunnel, now) {
            return Ingress::Drop {
                reason,
                refused: None,
            };
        }
        let (code, why) = refusal.map_or((None, None), |(code, why)| (Some(code), why));
        let text = why
            .as_ref()
            .map_or_else(|| reason.to_string(), |why| why.text.to_string());
        self.push_event(EngineEvent::Dropped { tuple, reason, why });
        let refused = code.map(|code| FlowRefused {
            code,
            tuple,
            reason: text,
        });
        Ingress::Drop { reason, refused }
    }
}
