//! What the clients of one class do toward networks: toward those of their addresses that the registry does not name
//! one by one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use prefix_trie::joint::map::JointPrefixMap;

use super::{
    Class, PROTOCOLS,
    tiles::{is_inside, tiles},
};
use crate::policy::{
    Steering,
    compiled::{decide::Decider, rules::Client},
};

/// Answers by network. Those of a network hold for the ones inside too, where these do not answer themselves.
pub(super) struct Networks(JointPrefixMap<IpNetwork, Answers>);

/// What is captured in one network.
#[derive(Default)]
struct Answers {
    whole: bool,
    ports: BTreeMap<u16, bool>,
}

/// The set that a piece of a network needs an element in.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Needs {
    Must,
    Nothing,
    Plain,
}

impl Networks {
    pub(super) fn new(decider: &Decider, class: &Class, networks: &BTreeSet<IpNetwork>) -> Self {
        let mut answers = JointPrefixMap::new();
        for &network in networks {
            answers.insert(network, Answers::new(decider, class, network));
        }
        Self(answers)
    }

    /// A packet to `address` is captured there if no element names the address: one without port, or to a port that
    /// nobody names.
    pub(super) fn captures_whole(&self, address: IpAddr) -> bool {
        self.around(address).is_some_and(|answers| answers.whole)
    }

    /// A packet to `address` and `port` is captured if no element names both; `all` tells whether one in `must_all`
    /// names the address.
    pub(super) fn captures(&self, address: IpAddr, port: u16, all: bool) -> bool {
        let Some(answers) = self.around(address) else {
            return all;
        };
        match answers.needs(port) {
            Needs::Must => true,
            Needs::Plain => false,
            Needs::Nothing => all || answers.whole,
        }
    }

    /// Adds the elements of one class of sources.
    pub(super) fn steer(&self, class: &Class, steering: &mut Steering) {
        let networks: Vec<_> = self.0.keys().collect();
        let mut rest = networks.as_slice();
        while let Some((outermost, after)) = rest.split_first() {
            let count = after
                .iter()
                .take_while(|inner| is_inside(**inner, *outermost))
                .count();
            let (inside, others) = after.split_at(count);
            self.steer_ports(class, *outermost, inside, steering);
            rest = others;
        }
        let mut captured: Option<IpNetwork> = None;
        for network in networks {
            let is_whole = self.0.get(&network).is_some_and(|answers| answers.whole);
            if is_whole && !captured.is_some_and(|wider| is_inside(network, wider)) {
                captured = Some(network);
                let sources = class.sources_like(network.network());
                let elements = sources.map(|source| (source, network));
                steering.must_all_net.extend(elements);
            }
        }
    }

    fn steer_ports(
        &self,
        class: &Class,
        outermost: IpNetwork,
        inside: &[IpNetwork],
        steering: &mut Steering,
    ) {
        let answers = |network: &IpNetwork| self.0.get(network);
        let all = std::iter::once(&outermost).chain(inside);
        let ports: BTreeSet<u16> = all
            .filter_map(answers)
            .flat_map(|answers| answers.ports.keys().copied())
            .collect();
        for port in ports {
            let needs = |innermost, _| {
                answers(&innermost).map_or(Needs::Nothing, |answers| answers.needs(port))
            };
            for (piece, needs) in tiles(outermost, inside, needs) {
                let set = match needs {
                    Needs::Must => &mut steering.must_net,
                    Needs::Plain => &mut steering.plain_net,
                    Needs::Nothing => continue,
                };
                for source in class.sources_like(piece.network()) {
                    set.extend(PROTOCOLS.map(|protocol| (source, piece, protocol, port)));
                }
            }
        }
    }

    /// The answers of the innermost network around `address`.
    fn around(&self, address: IpAddr) -> Option<&Answers> {
        let (_, answers) = self.0.get_lpm(&IpNetwork::from(address))?;
        Some(answers)
    }
}

impl Answers {
    fn new(decider: &Decider, class: &Class, network: IpNetwork) -> Self {
        let answers = class
            .clients()
            .map(|client| Self::of(decider, client, network));
        answers.reduce(Self::or).unwrap_or_default()
    }

    fn of(decider: &Decider, client: Client<'_>, network: IpNetwork) -> Self {
        let services: Vec<_> = decider
            .registry
            .services_in(client.namespace, network)
            .collect();
        let mut answers = Self {
            whole: services
                .iter()
                .any(|service| decider.decide_network(client, service, None).is_captured()),
            ports: BTreeMap::new(),
        };
        // narrower networks first: they have the say for a port that both name
        for service in services {
            for port in &service.ports {
                answers.ports.entry(port.number).or_insert_with(|| {
                    decider
                        .decide_network(client, service, Some(port.number))
                        .is_captured()
                });
            }
        }
        answers
    }

    /// Captured where either captures. A port that only one of them names is decided by the other's whole.
    fn or(self, other: Self) -> Self {
        let ports: BTreeSet<u16> = self
            .ports
            .keys()
            .chain(other.ports.keys())
            .copied()
            .collect();
        let of = |answers: &Self, port: u16| *answers.ports.get(&port).unwrap_or(&answers.whole);
        Self {
            whole: self.whole || other.whole,
            ports: ports
                .into_iter()
                .map(|port| (port, of(&self, port) || of(&other, port)))
                .collect(),
        }
    }

    /// A port needs an element where it is not decided as the whole is.
    fn needs(&self, port: u16) -> Needs {
        match (self.ports.get(&port), self.whole) {
            (Some(true), false) => Needs::Must,
            (Some(false), true) => Needs::Plain,
            (Some(true), true) | (Some(false), false) | (None, _) => Needs::Nothing,
        }
    }
}
