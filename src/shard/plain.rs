//! Connections that began in plaintext, were forbidden by a change of policy, and could not be ended where they live.

use std::collections::{BTreeSet, VecDeque};

use crate::wire::{FiveTuple, packet::Packet, protocol};

/// Connections that are known; the oldest are forgotten for newer ones.
const MAX: usize = 65_536;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct PlainConnections {
    tuples: BTreeSet<FiveTuple>,
    /// In the order they came. INVARIANT: holds every tuple, so that both are bounded.
    order: VecDeque<FiveTuple>,
}

impl PlainConnections {
    /// Takes one, local end first.
    pub(super) fn insert(&mut self, tuple: FiveTuple) {
        if !self.tuples.insert(tuple) {
            return;
        }
        self.order.push_back(tuple);
        if self.order.len() > MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.tuples.remove(&oldest);
        }
    }

    /// Tells whether a packet of the local end belongs to one of them. The first of another connection with the same
    /// ports does not, and makes the old one forgotten.
    pub(super) fn hold(&mut self, packet: &Packet<'_>) -> bool {
        if self.tuples.is_empty() || packet.protocol() != protocol::TCP {
            return false;
        }
        let tuple = packet.five_tuple();
        if packet.tcp_flags().is_some_and(|flags| flags.is_syn_only()) {
            if self.tuples.remove(&tuple) {
                self.order.retain(|other| *other != tuple);
            }
            return false;
        }
        self.tuples.contains(&tuple)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{packet::TcpFlags, sample};

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let mut plain = PlainConnections::default();
        let tuple = |number: u32| FiveTuple {
            protocol: protocol::TCP,
            source: std::net::Ipv4Addr::from_bits(number).into(),
            source_port: 80,
            destination: [192, 0, 2, 1].into(),
            destination_port: 40_000,
        };
        let max = u32::try_from(MAX).unwrap();
        for number in 0..=max {
            plain.insert(tuple(number));
            plain.insert(tuple(number));
        }
        assert_eq!((plain.tuples.len(), plain.order.len()), (MAX, MAX));
        assert!(!plain.tuples.contains(&tuple(0)) && plain.tuples.contains(&tuple(max)));
    }

    #[test]
    fn a_connection_is_held_until_its_ports_begin_another() {
        let build = |flags, ports| {
            let segment = sample::Tcp {
                flags,
                ports,
                ..sample::Tcp::default()
            };
            segment.build()
        };
        let mut plain = PlainConnections::default();
        let segment = build(TcpFlags::ACK, [1_000, 80]);
        let segment = Packet::new_checked(&segment).unwrap();
        assert!(!plain.hold(&segment));
        plain.insert(segment.five_tuple());
        assert!(plain.hold(&segment) && plain.hold(&segment));
        for other in [
            build(TcpFlags::ACK, [1_001, 80]),
            sample::udp(false, [1_000, 80], b"x"),
        ] {
            assert!(!plain.hold(&Packet::new_checked(&other).unwrap()));
        }
        let opening = build(TcpFlags::SYN, [1_000, 80]);
        assert!(!plain.hold(&Packet::new_checked(&opening).unwrap()));
        assert!(!plain.hold(&segment));
        assert!(plain.order.is_empty());
    }
}
