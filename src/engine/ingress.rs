//! Tunnel to device: is the inner source the peer's, is the inner destination ours, may they speak to it.

use std::{sync::Arc, time::Instant};

use crate::{
    engine::{
        Direction, Engine, EngineEvent, Flow, Ingress, Opener,
        directory::{Owner, Pair},
        revisit::Refusal,
    },
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

/// Opens a TCP connection. Whoever sends it opens the flow, and needs to be let: it is never a reply, whatever the flow was.
fn is_opening(packet: &Packet<'_>) -> bool {
    packet.tcp_flags().is_some_and(|flags| flags.is_syn_only())
}

/// A packet that is not delivered.
struct Refused {
    reason: DropReason,
    /// What the peer is told, where it should learn of it.
    code: Option<FlowRefusedCode>,
    why: Option<Arc<Why>>,
}

impl Refused {
    const fn silently(reason: DropReason) -> Self {
        Self {
            reason,
            code: None,
            why: None,
        }
    }

    const fn telling(reason: DropReason, code: FlowRefusedCode) -> Self {
        Self {
            reason,
            code: Some(code),
            why: None,
        }
    }
}

impl Engine {
    /// Decides on a packet that the session of `tunnel` brought. Nothing reaches the device without passing here.
    pub fn handle_ingress(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        now: Instant,
        keys: &mut KeyTable,
    ) -> Ingress {
        let whole = packet.five_tuple();
        // Addresses, policy and tunnel of a flow that the policy in force decided are those that were checked then.
        if packet.fragment().is_none() && self.deliver_known(tunnel, &whole.reversed(), packet, now)
        {
            return Ingress::Deliver;
        }
        let Some(key) = keys.key(tunnel) else {
            let refused = Refused::silently(DropReason::ForeignSource);
            return self.drop_ingress(tunnel, None, whole, refused, now);
        };
        if let Err(refused) = self.check_ends(key, packet) {
            return self.drop_ingress(tunnel, Some(key), whole, refused, now);
        }
        let source = self.check_source(key, packet);
        if self.is_error_of_flow(tunnel, packet, now, keys) {
            return Ingress::Deliver;
        }
        if let Err(refused) = source {
            return self.drop_ingress(tunnel, keys.key(tunnel), whole, refused, now);
        }
        let tuple = match self.ingress_tuple(tunnel, keys.key(tunnel), packet, now) {
            Ok(tuple) => tuple,
            Err(verdict) => return verdict,
        };
        let local = tuple.reversed();
        if self.deliver_known(tunnel, &local, packet, now)
            || (self.revisit(&local, now, keys) && self.deliver_known(tunnel, &local, packet, now))
        {
            return Ingress::Deliver;
        }
        if let Some(verdict) = self.refuse_cut_ingress(tunnel, packet, &local, now, keys) {
            return verdict;
        }
        self.open_ingress(tunnel, packet, tuple, now, keys)
    }

    /// Addresses that never cross a tunnel, and those that are not of the identity that the session speaks for.
    fn check_ends(&self, key: &TunnelKey, packet: &Packet<'_>) -> Result<(), Refused> {
        if is_martian(packet.source()) || is_martian(packet.destination()) {
            return Err(Refused::silently(DropReason::Martian));
        }
        if self.policy.local_identity(packet.destination()) != Some(&key.local) {
            let code = FlowRefusedCode::UnknownDestination;
            return Err(Refused::telling(DropReason::ForeignDestination, code));
        }
        Ok(())
    }

    fn check_source(&self, key: &TunnelKey, packet: &Packet<'_>) -> Result<(), Refused> {
        if !self.policy.peer_owns(&key.peer, packet.source())
            || self.policy.is_local(packet.source())
        {
            let code = FlowRefusedCode::UnknownSource;
            return Err(Refused::telling(DropReason::ForeignSource, code));
        }
        Ok(())
    }

    /// A packet of a flow of this tunnel that the policy in force decided.
    fn deliver_known(
        &mut self,
        tunnel: TunnelId,
        local: &FiveTuple,
        packet: &Packet<'_>,
        now: Instant,
    ) -> bool {
        let generation = self.policy.generation();
        let Some(flow) = self.flows.find(local) else {
            return false;
        };
        let begins_anew = flow.opener == Opener::Local && is_opening(packet);
        if flow.generation != generation || flow.tunnel != tunnel || begins_anew {
            return false;
        }
        flow.note_received(packet, now);
        self.flows.note_flags(local, packet.tcp_flags());
        true
    }

    /// A packet of a flow that was cut a while ago, unless it begins another one.
    fn refuse_cut_ingress(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        local: &FiveTuple,
        now: Instant,
        keys: &KeyTable,
    ) -> Option<Ingress> {
        let cut = self.cuts.find(local)?;
        if cut.reopens(packet, Opener::Peer, now) {
            self.cuts.forget(local);
            return None;
        }
        cut.note_packet(now);
        let (reason, why) = (cut.reason, cut.why.clone());
        self.drops.add(reason);
        // A peer that cut it itself knows.
        let may_tell = why.is_some() && self.refusals.allow(tunnel, now);
        let code = FlowRefusedCode::Revoked;
        let refused = may_tell.then(|| FlowRefused {
            code,
            tuple: local.reversed(),
            reason: self.told(keys.key(tunnel), code, why.as_deref()),
        });
        Some(Ingress::Drop { reason, refused })
    }

    /// Packets that were held for the first fragment that just came, ready to be handled again.
    pub fn poll_released_ingress(&mut self, tunnel: TunnelId) -> Option<Vec<u8>> {
        self.ingress_fragments.get_mut(&tunnel)?.poll_released()
    }

    fn ingress_tuple(
        &mut self,
        tunnel: TunnelId,
        key: Option<&TunnelKey>,
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
                let refused = Refused::silently(reason);
                Err(self.drop_ingress(tunnel, key, packet.five_tuple(), refused, now))
            }
        }
    }

    /// An ICMP error is accepted from any source when the packet it quotes went out through this tunnel, under the policy
    /// in force, from the address that the error goes to.
    ///
    /// Not as a fragment: under a source that is not the peer's it would join another peer's packet in the kernel.
    fn is_error_of_flow(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        now: Instant,
        keys: &mut KeyTable,
    ) -> bool {
        if packet.fragment().is_some() || self.policy.is_local(packet.source()) {
            return false;
        }
        let quoted = packet.icmp_quote();
        let Some(quoted) = quoted.filter(|quoted| quoted.source == packet.destination()) else {
            return false;
        };
        self.revisit(&quoted, now, keys)
            && self
                .flows
                .find(&quoted)
                .is_some_and(|flow| flow.tunnel == tunnel)
    }

    fn open_ingress(
        &mut self,
        tunnel: TunnelId,
        packet: &Packet<'_>,
        tuple: FiveTuple,
        now: Instant,
        keys: &KeyTable,
    ) -> Ingress {
        let Some(key) = keys.key(tunnel) else {
            let refused = Refused::silently(DropReason::ForeignSource);
            return self.drop_ingress(tunnel, None, tuple, refused, now);
        };
        let local = tuple.reversed();
        let known = self
            .flows
            .find(&local)
            .map(|flow| (flow.opener, flow.tunnel));
        let same_pair = |other: TunnelId| {
            keys.key(other)
                .is_some_and(|other| other.local == key.local && other.peer == key.peer)
        };
        let elsewhere = known.map_or_else(|| self.owner_elsewhere(&local), |_| None);
        if elsewhere.is_some_and(|owner| owner.pair != Pair::of(key)) {
            let code = FlowRefusedCode::UnknownSource;
            let refused = Refused::telling(DropReason::ForeignSource, code);
            return self.drop_ingress(tunnel, Some(key), tuple, refused, now);
        }
        if let Some((opener, other)) = known
            && !same_pair(other)
            && self.still_belongs(opener, keys.key(other), &local)
        {
            let code = FlowRefusedCode::UnknownSource;
            let refused = Refused::telling(DropReason::ForeignSource, code);
            return self.drop_ingress(tunnel, Some(key), tuple, refused, now);
        }
        let is_own = matches!(known, Some((Opener::Local, other)) if same_pair(other));
        let is_reply = !is_opening(packet)
            && (is_own || elsewhere.is_some_and(|owner| owner.opener == Opener::Local));
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
                if !is_own {
                    self.flows.remove(&local);
                    self.leave(&local);
                }
                let refused = Refused {
                    reason,
                    code: Some(code),
                    why: Some(why),
                };
                return self.drop_ingress(tunnel, Some(key), tuple, refused, now);
            }
        };
        let mut flow = Flow::new(
            tunnel,
            opener,
            self.policy.generation(),
            Arc::clone(&why),
            now,
        );
        flow.note_received(packet, now);
        flow.note_flags(packet.tcp_flags());
        if let Err(reason) = self.flows.insert(local, flow) {
            self.leave(&local);
            let refused = Refused::silently(reason);
            return self.drop_ingress(tunnel, Some(key), tuple, refused, now);
        }
        self.enter(local, opener, key, false);
        if known.is_none() && elsewhere.is_none() {
            self.push_event(EngineEvent::FlowOpened {
                tuple: local,
                opener,
                tunnel,
                why,
            });
        }
        Ingress::Deliver
    }

    /// The other shard that has a flow. It keeps a flow of other identities from this tunnel's, and gives up one of the
    /// same: the peer sends by another of its own shards, and whoever brings a flow to the kernel gets its replies.
    fn owner_elsewhere(&self, local: &FiveTuple) -> Option<Owner> {
        self.seat.as_ref()?.elsewhere(local)
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
        key: Option<&TunnelKey>,
        tuple: FiveTuple,
        refused: Refused,
        now: Instant,
    ) -> Ingress {
        let Refused { reason, code, why } = refused;
        self.drops.add(reason);
        if !self.refusals.allow(tunnel, now) {
            return Ingress::Drop {
                reason,
                refused: None,
            };
        }
        let refused = code.map(|code| FlowRefused {
            code,
            tuple,
            reason: self.told(key, code, why.as_deref()),
        });
        self.push_event(EngineEvent::Dropped {
            tuple,
            direction: Direction::Ingress,
            local: key.map(|key| key.local.clone()),
            peer: key.map(|key| key.peer.clone()),
            reason,
            why,
        });
        Ingress::Drop { reason, refused }
    }
}
