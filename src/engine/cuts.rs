//! Flows that were cut a while ago: what their ends still send is refused, whatever it would be as a flow of its own.
//!
//! Without this memory a segment of a cut connection would be taken for one of a flow that was forgotten, and be decided
//! in the direction it happens to travel.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use crate::{
    engine::Opener,
    policy::Why,
    wire::{DropReason, FiveTuple, packet::Packet, protocol},
};

/// How long a cut flow is remembered after its last packet.
const LIFETIME: Duration = Duration::from_secs(30);
/// Cut flows that are remembered; the oldest are forgotten for newer ones.
const MAX_CUTS: usize = 65_536;
/// Resets for one of them beyond the limit on answers: the kernel's acknowledgment of a reset that was not exact
/// (RFC 5961) and a few retransmissions, whatever else is refused at the time.
const RESETS: u8 = 8;

/// One flow that was cut.
#[derive(Debug)]
pub(super) struct CutFlow {
    /// Who had opened it.
    pub(super) opener: Opener,
    /// Why its packets are dropped.
    pub(super) reason: DropReason,
    /// The rule behind it, where our policy cut it.
    pub(super) why: Option<Arc<Why>>,
    /// From when on a packet of its opener may begin the flow anew, where the protocol has no sign of beginning.
    pub(super) again_from: Instant,
    resets: u8,
    until: Instant,
    /// Where it stands in [`CutFlows::order`].
    look: Instant,
}

impl CutFlow {
    /// A flow that is cut at `now`.
    pub(super) fn new(
        opener: Opener,
        reason: DropReason,
        why: Option<Arc<Why>>,
        again_from: Instant,
        now: Instant,
    ) -> Self {
        let until = now + LIFETIME;
        Self {
            opener,
            reason,
            why,
            again_from,
            resets: RESETS,
            until,
            look: until,
        }
    }

    /// Whether `packet`, sent by that end, begins the flow anew.
    pub(super) fn reopens(&self, packet: &Packet<'_>, sender: Opener, now: Instant) -> bool {
        match packet.tcp_flags() {
            Some(flags) => flags.is_syn_only(),
            None => {
                packet.protocol() != protocol::TCP
                    && sender == self.opener
                    && self.again_from <= now
            }
        }
    }

    /// Takes one of the resets that it may have whatever else is refused, and stays remembered.
    pub(super) const fn take_reset(&mut self) -> bool {
        let allowed = self.resets > 0;
        self.resets = self.resets.saturating_sub(1);
        allowed
    }

    /// A packet of it was refused: it is remembered for longer.
    pub(super) fn note_packet(&mut self, now: Instant) {
        self.until = now + LIFETIME;
    }
}

/// Cut flows by five-tuple, local end first.
#[derive(Debug, Default)]
pub(super) struct CutFlows {
    flows: HashMap<FiveTuple, CutFlow>,
    /// When to look at a flow next; an entry that is not where its flow stands is of an earlier one.
    order: VecDeque<(Instant, FiveTuple)>,
}

impl CutFlows {
    /// Remembers a flow.
    pub(super) fn insert(&mut self, tuple: FiveTuple, cut: CutFlow) {
        while self.order.len() >= MAX_CUTS
            && let Some((look, oldest)) = self.order.pop_front()
        {
            if self.flows.get(&oldest).is_some_and(|cut| cut.look == look) {
                self.flows.remove(&oldest);
            }
        }
        self.order.push_back((cut.look, tuple));
        self.flows.insert(tuple, cut);
    }

    /// The cut flow of `tuple`.
    pub(super) fn find(&mut self, tuple: &FiveTuple) -> Option<&mut CutFlow> {
        if self.flows.is_empty() {
            return None;
        }
        self.flows.get_mut(tuple)
    }

    /// Another flow takes its ports.
    pub(super) fn forget(&mut self, tuple: &FiveTuple) {
        self.flows.remove(tuple);
    }

    /// Forgets flows that were silent for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(look, tuple)) = self.order.front()
            && look <= now
        {
            self.order.pop_front();
            let Some(cut) = self.flows.get_mut(&tuple).filter(|cut| cut.look == look) else {
                continue;
            };
            if cut.until <= now {
                self.flows.remove(&tuple);
            } else {
                cut.look = cut.until;
                self.order.push_back((cut.look, tuple));
            }
        }
    }

    /// When [`Self::expire`] is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.order.front().map(|&(look, _)| look)
    }

    /// How many are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.flows.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(number: u32) -> FiveTuple {
        FiveTuple {
            protocol: protocol::TCP,
            source: std::net::Ipv4Addr::from_bits(number).into(),
            source_port: 1,
            destination: [10, 0, 0, 2].into(),
            destination_port: 80,
        }
    }

    fn cut(now: Instant) -> CutFlow {
        CutFlow::new(Opener::Local, DropReason::DeniedByPolicy, None, now, now)
    }

    #[test]
    fn cut_flows_are_bounded_and_the_oldest_goes_first() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let now = Instant::now();
        let mut cuts = CutFlows::default();
        let max = u32::try_from(MAX_CUTS).unwrap();
        for number in 0..=max {
            cuts.insert(tuple(number), cut(now));
        }
        assert_eq!(cuts.len(), MAX_CUTS);
        assert!(cuts.find(&tuple(0)).is_none());
        // The same ports again and again take no more room.
        for turn in 0..3 * max {
            cuts.insert(tuple(max), cut(now + Duration::from_nanos(turn.into())));
        }
        assert!(cuts.order.len() <= MAX_CUTS);
        assert!(cuts.find(&tuple(max)).is_some());
        cuts.expire(now + LIFETIME + Duration::from_secs(1));
        assert_eq!((cuts.len(), cuts.poll_timeout()), (0, None));
    }

    #[test]
    fn a_cut_flow_is_remembered_for_as_long_as_its_packets_come() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let now = Instant::now();
        let mut cuts = CutFlows::default();
        cuts.insert(tuple(1), cut(now));
        cuts.find(&tuple(1))
            .unwrap()
            .note_packet(now + LIFETIME / 2);
        cuts.expire(now + LIFETIME);
        assert_eq!(cuts.poll_timeout(), Some(now + LIFETIME / 2 + LIFETIME));
        cuts.expire(now + LIFETIME / 2 + LIFETIME);
        assert_eq!((cuts.len(), cuts.poll_timeout()), (0, None));
    }
}
