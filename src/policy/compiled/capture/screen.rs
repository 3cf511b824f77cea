//! What the kernel refuses before it reaches a local workload: plaintext that the server's mode or an authorization
//! does not take.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{
    PROTOCOLS,
    tiles::{family, tiles},
};
use crate::policy::Steering;

/// Sources whose plaintext is refused, as disjoint networks.
type Sources = Vec<IpNetwork>;

/// What tells plaintext packets to one local address apart.
pub(super) struct Screen<R> {
    /// The local address.
    pub(super) address: IpAddr,
    /// Ports that are not decided as all others are.
    pub(super) ports: BTreeSet<u16>,
    /// Networks whose sources are not decided as all others are.
    pub(super) networks: BTreeSet<IpNetwork>,
    /// The decision: plaintext from this source to this port, or without a port, is refused.
    pub(super) refuses: R,
}

impl<R: Fn(IpAddr, Option<u16>) -> bool> Screen<R> {
    /// Adds the elements of the address. What is refused whoever sends it goes where replies are steered too: nothing
    /// but a tunnel can have brought what they answer. The rest is looked up by source.
    pub(super) fn steer(self, steering: &mut Steering) {
        let address = self.address;
        let inside = self.inside();
        let everyone = [family(address)];
        let without_port = self.refused(&inside, None);
        let unnamed = (0..=u16::MAX).find(|port| !self.ports.contains(port));
        let mut other = unnamed.map_or_else(Vec::new, |port| self.refused(&inside, Some(port)));
        let is_strict = without_port == everyone && (unnamed.is_none() || other == everyone);
        if is_strict {
            steering.strict_all.insert(address);
            other.clear();
        } else {
            let elements = without_port.into_iter().map(|source| (source, address));
            steering.refuse_portless.extend(elements);
        }
        let mut by_port = BTreeMap::new();
        for &port in &self.ports {
            let mut refused = self.refused(&inside, Some(port));
            let elements = PROTOCOLS.map(|protocol| (address, protocol, port));
            match (is_strict, refused == everyone) {
                (true, true) => refused.clear(),
                (true, false) => steering.permissive_port.extend(elements),
                (false, true) => {
                    steering.strict_port.extend(elements);
                    refused.clear();
                }
                (false, false) => {}
            }
            by_port.insert(port, refused);
        }
        for (first, last, sources) in ranges(by_port, &other) {
            let elements = sources
                .into_iter()
                .map(|source| (source, address, first, last));
            steering.refuse_port.extend(elements);
        }
    }

    /// The networks of the address's family, sorted.
    fn inside(&self) -> Vec<IpNetwork> {
        let networks = self.networks.iter();
        let like = networks.filter(|network| network.is_ipv4() == self.address.is_ipv4());
        let masked = like.filter_map(|one| IpNetwork::new(one.network(), one.prefix()).ok());
        masked.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn refused(&self, inside: &[IpNetwork], port: Option<u16>) -> Sources {
        // all pieces of one network are decided alike: one of them is asked about
        let mut known = BTreeMap::new();
        let answer = |innermost, piece: IpNetwork| {
            *known
                .entry(innermost)
                .or_insert_with(|| (self.refuses)(piece.network(), port))
        };
        let tiles = tiles(family(self.address), inside, answer);
        let refused = tiles.into_iter().filter(|(_, is_refused)| *is_refused);
        refused.map(|(network, _)| network).collect()
    }
}

/// Every range of ports with the sources that are refused there, where there are any: those of single ports, and
/// between them `other`.
fn ranges(by_port: BTreeMap<u16, Sources>, other: &Sources) -> Vec<(u16, u16, Sources)> {
    let mut ranges: Vec<(u16, u16, Sources)> = Vec::new();
    let mut push = |first, last, sources: Sources| match ranges.last_mut() {
        Some((_, end, same)) if *same == sources => *end = last,
        _ => ranges.push((first, last, sources)),
    };
    let mut next = Some(0);
    for (port, sources) in by_port {
        if let Some(first) = next.filter(|first| *first < port) {
            push(first, port - 1, other.clone());
        }
        push(port, port, sources);
        next = port.checked_add(1);
    }
    if let Some(first) = next {
        push(first, u16::MAX, other.clone());
    }
    ranges.retain(|(_, _, sources)| !sources.is_empty());
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol::{TCP, UDP};

    const LOCAL: &str = "10.0.0.1";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn steer(
        ports: &[u16],
        networks: &[&str],
        refuses: impl Fn(IpAddr, Option<u16>) -> bool,
    ) -> Steering {
        let mut steering = Steering::default();
        Screen {
            address: ip(LOCAL),
            ports: ports.iter().copied().collect(),
            networks: networks.iter().map(|network| net(network)).collect(),
            refuses: &refuses,
        }
        .steer(&mut steering);
        for source in ["0.0.0.0", "9.9.9.9", "10.1.2.3", "10.1.9.9", "10.2.0.1"].map(ip) {
            for protocol in [TCP, UDP] {
                for port in [0, 1, 79, 80, 81, 443, 65_535] {
                    assert_eq!(
                        steering.accepts_plaintext(source, ip(LOCAL), protocol, Some(port)),
                        !refuses(source, Some(port)),
                        "{source} {protocol} {port}"
                    );
                }
            }
            assert_eq!(
                steering.accepts_plaintext(source, ip(LOCAL), 1, None),
                !refuses(source, None),
                "{source}"
            );
        }
        steering
    }

    #[test]
    fn what_does_not_depend_on_the_source_needs_no_look_at_it() {
        let ports = PROTOCOLS.map(|protocol| (ip(LOCAL), protocol, 80));
        let strict = steer(&[80, 443], &["10.1.0.0/16"], |_, port| port != Some(80));
        let expected = Steering {
            strict_all: [ip(LOCAL)].into(),
            permissive_port: ports.into(),
            ..Steering::default()
        };
        assert_eq!(strict, expected);
        let port = steer(&[80, 443], &[], |_, port| port == Some(80));
        let expected = Steering {
            strict_port: ports.into(),
            ..Steering::default()
        };
        assert_eq!(port, expected);
        assert_eq!(steer(&[], &[], |_, _| false), Steering::default());
    }

    #[test]
    fn sources_are_disjoint_and_ports_joined() {
        let inner = net("10.1.2.0/24");
        let denied = move |source| net("10.1.0.0/16").contains(source) && !inner.contains(source);
        // 81 is told apart for another reason
        let steering = steer(
            &[80, 81],
            &["10.1.2.7/24", "10.1.0.0/16"],
            move |source, port| port.is_some_and(|port| port != 80) && denied(source),
        );
        assert!(steering.strict_all.is_empty() && steering.refuse_portless.is_empty());
        let ranges: BTreeSet<_> = steering
            .refuse_port
            .iter()
            .map(|rule| (rule.2, rule.3))
            .collect();
        assert_eq!(ranges, [(0, 79), (81, 65_535)].into());
        let sources: Vec<_> = steering.refuse_port.iter().map(|rule| rule.0).collect();
        assert!(sources.contains(&net("10.1.128.0/17")) && !sources.contains(&inner));
        assert_eq!(sources.len(), 8 * 2);
    }

    #[test]
    fn ports_and_packets_without_one_are_told_apart() {
        // notPorts: 80 in an ALLOW policy
        let steering = steer(&[80], &[], |_, port| port.is_none_or(|port| port == 80));
        assert_eq!(
            steering.refuse_portless,
            [(net("0.0.0.0/0"), ip(LOCAL))].into()
        );
        assert_eq!(steering.strict_port.len(), 3);
        assert!(steering.refuse_port.is_empty());
        let steering = steer(&[80], &[], |_, port| port.is_some_and(|port| port != 80));
        assert_eq!(
            steering.refuse_port,
            [
                (net("0.0.0.0/0"), ip(LOCAL), 0, 79),
                (net("0.0.0.0/0"), ip(LOCAL), 81, 65_535)
            ]
            .into()
        );
    }

    #[test]
    fn an_open_port_of_a_strict_address_is_still_closed_to_some() {
        let steering = steer(&[80], &["10.1.0.0/16"], |source, port| {
            port != Some(80) || net("10.1.0.0/16").contains(source)
        });
        assert_eq!(steering.strict_all.len(), 1);
        assert_eq!(
            steering.refuse_port,
            [(net("10.1.0.0/16"), ip(LOCAL), 80, 80)].into()
        );
    }
}
