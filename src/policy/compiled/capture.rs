//! Steering from decisions: every local source and every destination that the registry names is asked once, through the
//! same door as a packet, so that the kernel captures exactly what is carried or refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    policy::{
        HostFacts, Steering,
        compiled::{
            decide::{Decider, Verdict},
            rules::Client,
            trace::Silent,
        },
        settings::UnknownSource,
        steering::{ANY, PortRule},
    },
    registry::index::RegisteredWorkload,
    spiffe::SpiffeId,
    wire::protocol::{SCTP, TCP, UDP},
};

mod networks;
mod screen;
mod tiles;

use networks::Networks;
use screen::Screen;

const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];

/// A client's namespace and labels.
type Kind = (Arc<str>, BTreeMap<Arc<str>, Arc<str>>);

/// Local sources that are decided alike: lookup knows a client by namespace and labels only.
struct Class {
    /// One; for sources that no workload has, all whose workloads are the host itself: the strictest has the say.
    clients: BTreeSet<Kind>,
    sources: Vec<IpAddr>,
}

impl Class {
    fn clients(&self) -> impl Iterator<Item = Client<'_>> {
        let clients = self.clients.iter();
        clients.map(|(namespace, labels)| Client { namespace, labels })
    }

    /// The sources that can send to an address like this one.
    fn sources_like(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> {
        let is_ipv4 = address.is_ipv4();
        let sources = self.sources.iter().copied();
        sources.filter(move |source| source.is_ipv4() == is_ipv4)
    }
}

/// Builds the sets. An endpoint without service account that a decision dials by its one accepted identity is given to
/// that identity on the way, so that its answers are accepted.
pub(crate) fn steering(decider: &mut Decider, host: &HostFacts) -> Steering {
    let local = decider.registry.local_addresses();
    // What could be local is kept as one that is: where the host's addresses are missing for a while, it fails closed.
    let workloads = decider.registry.workloads().iter();
    let held = workloads.filter(|workload| workload.is_held);
    let held: BTreeSet<_> = held.map(|workload| workload.address).collect();
    let captured: BTreeSet<_> = local.union(&held).copied().collect();
    let mut steering = Steering {
        exempt: host.exempt.clone(),
        ..Steering::default()
    };
    for &address in &captured {
        screen(decider, address, &mut steering);
    }
    // Local ones too: the rules ask about what leaves this host, and a workload may have moved before we know of it.
    let workloads = decider.registry.workloads().iter();
    steering.peers = workloads
        .filter(|workload| workload.mesh_capable)
        .map(|workload| workload.address)
        .collect();
    let networks = decider.registry.networks();
    let addresses = decider.registry.addresses();
    let mut unnamed = Vec::new();
    let mut classes = classes(decider, &captured);
    classes.extend(strays(decider, host, &captured));
    for class in classes {
        let networks = Networks::new(decider, &class, &networks);
        networks.steer(&class, &mut steering);
        let mut toward = Toward::new(decider, &class, &networks, &mut steering);
        for &address in &addresses {
            toward.steer(address);
        }
        unnamed.append(&mut toward.unnamed);
    }
    for (peer, address, gateway) in unnamed {
        decider.registry.add_owner(&peer, address, gateway);
    }
    steering.local = local;
    steering.speakers = captured;
    steering
}

/// Sources that are the host's own and no workload's, where the host itself is a workload.
fn strays(decider: &Decider, host: &HostFacts, captured: &BTreeSet<IpAddr>) -> Option<Class> {
    if decider.mesh.unknown_source == UnknownSource::Pass {
        return None;
    }
    let own = |address: &&IpAddr| {
        let workload = decider.registry.workload(**address);
        let is_gateway = workload.is_some_and(|workload| workload.gateway.ip() == workload.address);
        !host.forwards || is_gateway || host.underlay.contains(*address)
    };
    let workloads = captured.iter().filter(own);
    let workloads = workloads.filter_map(|address| captured_workload(decider, *address));
    let clients: BTreeSet<Kind> = workloads
        .map(|workload| (Arc::clone(&workload.namespace), workload.labels.clone()))
        .collect();
    (!clients.is_empty()).then(|| Class {
        clients,
        sources: ANY.to_vec(),
    })
}

/// The server's side of one local address.
fn screen(decider: &Decider, address: IpAddr, steering: &mut Steering) {
    let Some(workload) = captured_workload(decider, address) else {
        return;
    };
    Screen {
        address,
        ports: decider.ports_told_apart(workload, address),
        networks: decider.networks_told_apart(workload),
        refuses: |source, port| {
            let reason = decider.refuses_plaintext(workload, address, source, port);
            reason.is_some()
        },
    }
    .steer(steering);
}

/// The workload that speaks from `address`, if this host may speak for it.
fn captured_workload(decider: &Decider, address: IpAddr) -> Option<&RegisteredWorkload> {
    let registry = &decider.registry;
    let local = registry.local_workload(address);
    local.or_else(|| registry.workload(address).filter(|found| found.is_held))
}

fn classes(decider: &Decider, captured: &BTreeSet<IpAddr>) -> Vec<Class> {
    let mut classes: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for &source in captured {
        if let Some(workload) = captured_workload(decider, source) {
            let key = (Arc::clone(&workload.namespace), workload.labels.clone());
            classes.entry(key).or_default().push(source);
        }
    }
    let class = |(client, sources)| Class {
        clients: [client].into(),
        sources,
    };
    classes.into_iter().map(class).collect()
}

/// An identity that answers for an address whose declarations name none, and where it is dialled.
type Unnamed = (SpiffeId, IpAddr, SocketAddr);

/// What the clients of one class do toward addresses of the registry.
struct Toward<'a> {
    decider: &'a Decider,
    class: &'a Class,
    networks: &'a Networks,
    steering: &'a mut Steering,
    /// Sources of the class that have a port, or all, in the tunnel only.
    strict: BTreeSet<IpAddr>,
    unnamed: Vec<Unnamed>,
}

impl<'a> Toward<'a> {
    fn new(
        decider: &'a Decider,
        class: &'a Class,
        networks: &'a Networks,
        steering: &'a mut Steering,
    ) -> Self {
        let ports = steering.strict_port.iter().map(|(address, ..)| *address);
        let strict = steering.strict_all.iter().copied().chain(ports).collect();
        Self {
            decider,
            class,
            networks,
            steering,
            strict,
            unnamed: Vec::new(),
        }
    }

    /// Adds the elements of one address: those that what is looked up later does not make superfluous.
    fn steer(&mut self, address: IpAddr) {
        let all = self.ask(address, None);
        if all && !self.networks.captures_whole(address) {
            let sources = self.sources(address);
            self.steering
                .must_all
                .extend(sources.map(|source| (source, address)));
        }
        for port in self.ports(address) {
            let is_captured = self.ask(address, Some(port));
            let is_else = self.networks.captures(address, port, all);
            if is_captured && !is_else {
                let sources = self.sources(address);
                self.steering
                    .must
                    .extend(sources.flat_map(|source| elements(source, address, port)));
            } else if !is_captured {
                self.except(address, port, is_else);
            }
        }
    }

    /// Who may send to `address`. Nobody's packets to itself leave the host.
    fn sources(&self, address: IpAddr) -> impl Iterator<Item = IpAddr> + use<'a> {
        let sources = self.class.sources_like(address);
        sources.filter(move |source| *source != address)
    }

    /// Ports that are not decided as the address: those that a service names, and those that have a mode of their own.
    fn ports(&self, address: IpAddr) -> BTreeSet<u16> {
        let Decider {
            registry, modes, ..
        } = self.decider;
        let mut ports = BTreeSet::new();
        for Client { namespace, .. } in self.class.clients() {
            ports.append(&mut registry.ports_at(namespace, address));
            let services = registry.services_at(namespace, address);
            let endpoints = services.filter_map(|service| self.decider.endpoint(service, address));
            let own = registry.workload(address).into_iter();
            for endpoint in own
                .chain(endpoints)
                .filter(|endpoint| endpoint.mesh_capable)
            {
                ports.append(&mut modes.ports(registry, endpoint, address));
            }
        }
        ports
    }

    /// Plaintext needs an element where something wider would capture it: the address, a network, or the rule that
    /// holds replies of a STRICT address to a peer in the tunnel.
    fn except(&mut self, address: IpAddr, port: u16, is_captured: bool) {
        let is_peer = self.steering.peers.contains(&address);
        let strict = &self.strict;
        let sources = self.sources(address);
        let held = sources.filter(|source| is_captured || is_peer && strict.contains(source));
        self.steering
            .plain
            .extend(held.flat_map(|source| elements(source, address, port)));
    }

    fn ask(&mut self, address: IpAddr, port: Option<u16>) -> bool {
        let mut is_captured = false;
        for client in self.class.clients() {
            let decided = self.decider.decide(client, address, port, &mut Silent);
            if let (Verdict::Tunnel { peer, gateway }, Some(endpoint)) =
                (&decided.verdict, decided.endpoint)
                && endpoint.identity.is_none()
            {
                self.unnamed
                    .push((peer.clone().into_owned(), address, *gateway));
            }
            is_captured |= decided.verdict.is_captured();
        }
        is_captured
    }
}

fn elements(source: IpAddr, destination: IpAddr, port: u16) -> [PortRule; 3] {
    PROTOCOLS.map(|protocol| (source, destination, protocol, port))
}
