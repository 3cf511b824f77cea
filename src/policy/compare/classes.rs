//! Workloads that no rule can tell apart are asked about once: classes of clients and of destinations, each with one
//! address that stands for all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        Compiled,
        compare::{name_of, whole::Mentioned},
        document::Labels,
    },
    registry::index::{RegisteredWorkload, Service},
    spiffe::SpiffeId,
    wire::flow::protocol::{TCP, UDP},
};

/// Addresses of a network that are tried before it counts as full.
const TRIES: usize = 1_024;
/// Networks of nobody, for examples (RFC 5737).
const NOWHERE_4: [[u8; 3]; 3] = [[192, 0, 2], [198, 51, 100], [203, 0, 113]];

/// Clients that are decided alike.
pub(super) struct ClientClass {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
}

/// Destinations that are decided alike.
pub(super) struct ServerClass {
    pub(super) name: String,
    pub(super) addresses: Vec<IpAddr>,
    /// (protocol, port) that a service names there.
    pub(super) ports: BTreeSet<(u8, u16)>,
}

/// What rules may know of a workload.
type Traits = Option<(Arc<str>, Labels, Option<SpiffeId>, bool)>;
/// What is known of a workload in both policies, but for its address.
type Both = (Traits, Traits);
/// A service by its policy (`true`: the newer), its number there, and the ports it has at an address.
type Serving = BTreeSet<(bool, usize, Vec<(u8, u16)>)>;

/// Both policies, and what every class asks of them.
pub(super) struct Classes<'a> {
    old: &'a Compiled,
    new: &'a Compiled,
    mentioned: &'a Mentioned,
    /// How many kinds of workloads have a name.
    kinds: BTreeMap<String, BTreeSet<Both>>,
}

impl<'a> Classes<'a> {
    pub(super) fn new(old: &'a Compiled, new: &'a Compiled, mentioned: &'a Mentioned) -> Self {
        let mut classes = Self {
            old,
            new,
            mentioned,
            kinds: BTreeMap::new(),
        };
        for address in classes.workload_addresses() {
            if let Some(workload) = classes.workload(address) {
                let kind = classes.both(address);
                let kinds = classes.kinds.entry(name_of(workload)).or_default();
                kinds.insert(kind);
            }
        }
        classes
    }

    /// Every workload, and strangers: one from nowhere in particular, and one from each network that a rule names.
    pub(super) fn clients(&self) -> Vec<ClientClass> {
        let mut classes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for address in self.workload_addresses() {
            let key = (self.both(address), self.blocks(address), address.is_ipv6());
            classes.entry(key).or_default().push(address);
        }
        let known = classes.into_values().map(|addresses| ClientClass {
            name: self.name(&addresses),
            addresses,
        });
        self.strangers().into_iter().chain(known).collect()
    }

    /// Every workload, service address and service network.
    pub(super) fn servers(&self) -> Vec<ServerClass> {
        let mut classes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (address, serving) in self.serving() {
            let key = (
                self.both(address),
                serving,
                self.blocks(address),
                address.is_ipv6(),
            );
            classes.entry(key).or_default().push(address);
        }
        let class = |((_, serving, ..), addresses): ((_, Serving, _, _), Vec<_>)| ServerClass {
            name: self.server_name(&addresses, &serving),
            addresses,
            ports: serving
                .iter()
                .flat_map(|(_, _, ports)| ports)
                .copied()
                .collect(),
        };
        classes.into_iter().map(class).collect()
    }

    fn workload_addresses(&self) -> BTreeSet<IpAddr> {
        let workloads = |policy: &'a Compiled| policy.registry().workloads().iter();
        workloads(self.old)
            .chain(workloads(self.new))
            .map(|workload| workload.address)
            .collect()
    }

    fn workload(&self, address: IpAddr) -> Option<&'a RegisteredWorkload> {
        let newer = self.new.registry().workload(address);
        newer.or_else(|| self.old.registry().workload(address))
    }

    fn both(&self, address: IpAddr) -> Both {
        let traits = |policy: &Compiled| {
            policy.registry().workload(address).map(|workload| {
                (
                    Arc::clone(&workload.namespace),
                    workload.labels.clone(),
                    workload.identity.clone(),
                    workload.mesh_capable,
                )
            })
        };
        (traits(self.old), traits(self.new))
    }

    /// Which of the networks that rules name the address is in.
    fn blocks(&self, address: IpAddr) -> BTreeSet<IpNetwork> {
        let blocks = self.mentioned.blocks.iter().copied();
        blocks.filter(|block| block.contains(address)).collect()
    }

    /// The workload's name, with its declaration where other workloads are called the same.
    fn name(&self, addresses: &[IpAddr]) -> String {
        let first = addresses.first().copied();
        let Some(workload) = first.and_then(|address| self.workload(address)) else {
            return first.map(|address| address.to_string()).unwrap_or_default();
        };
        let name = name_of(workload);
        match self.kinds.get(&name) {
            Some(kinds) if kinds.len() > 1 => format!("{name} ({})", workload.resource.name),
            Some(_) | None => name,
        }
    }

    fn server_name(&self, addresses: &[IpAddr], serving: &Serving) -> String {
        let is_workload = addresses
            .first()
            .is_some_and(|address| self.workload(*address).is_some());
        let service = serving.iter().next_back().and_then(|(newer, number, _)| {
            let policy = if *newer { self.new } else { self.old };
            policy.registry().services().get(*number)
        });
        match service {
            Some(service) if !is_workload => service.host.to_string(),
            Some(_) | None => self.name(addresses),
        }
    }

    fn strangers(&self) -> Vec<ClientClass> {
        let taken = self.workload_addresses();
        let free = |address: &IpAddr| !taken.contains(address) && self.blocks(*address).is_empty();
        let v4 = NOWHERE_4.map(|[a, b, c]| IpAddr::from([a, b, c, 0]));
        let v6 = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0));
        let network = |address, prefix| IpNetwork::new(address, prefix).ok();
        let of_4 = v4.into_iter().filter_map(|address| network(address, 24));
        let of_4 = of_4.into_iter().find_map(|network| pick(network, free));
        let of_6 = network(v6, 32).and_then(|network| pick(network, free));
        let outside = |address| ClientClass {
            name: "outside the mesh".into(),
            addresses: vec![address],
        };
        let mut strangers: Vec<_> = of_4.into_iter().chain(of_6).map(outside).collect();
        for &block in &self.mentioned.blocks {
            let own = |address: &IpAddr| {
                let blocks = self.blocks(*address);
                let narrowest = blocks.iter().max_by_key(|block| block.prefix());
                !taken.contains(address) && narrowest == Some(&block)
            };
            strangers.extend(pick(block, own).map(|address| ClientClass {
                name: format!("outside the mesh, {block}"),
                addresses: vec![address],
            }));
        }
        strangers
    }

    /// Every address that stands for a destination, with the services there.
    fn serving(&self) -> BTreeMap<IpAddr, Serving> {
        let mut serving: BTreeMap<IpAddr, Serving> = self
            .workload_addresses()
            .into_iter()
            .map(|address| (address, Serving::new()))
            .collect();
        let mut networks = BTreeSet::new();
        for (newer, policy) in [(false, self.old), (true, self.new)] {
            for (number, service) in policy.registry().services().iter().enumerate() {
                for endpoint in &service.endpoints {
                    let ports = service.ports.iter().zip(&endpoint.ports);
                    let ports = ports.map(|(port, own)| (protocol_of(&port.protocol), *own));
                    let there = serving.entry(endpoint.address).or_default();
                    there.insert((newer, number, ports.collect()));
                }
                for network in &service.addresses {
                    let whole = if network.is_ipv4() { 32 } else { 128 };
                    if network.prefix() == whole {
                        let there = serving.entry(network.ip()).or_default();
                        there.insert((newer, number, own_ports(service)));
                    } else {
                        networks.insert((*network, newer, number));
                    }
                }
            }
        }
        self.add_networks(&mut serving, &networks);
        serving
    }

    /// Gives each service network an address of its own, and every address in it that service.
    fn add_networks(
        &self,
        serving: &mut BTreeMap<IpAddr, Serving>,
        networks: &BTreeSet<(IpNetwork, bool, usize)>,
    ) {
        for (network, ..) in networks {
            let others = || networks.iter().map(|(other, ..)| other);
            let own = |address: &IpAddr| {
                let narrower = |other: &&IpNetwork| other.prefix() > network.prefix();
                !serving.contains_key(address)
                    && !others()
                        .filter(narrower)
                        .any(|other| other.contains(*address))
            };
            if let Some(address) = pick(*network, own) {
                serving.entry(address).or_default();
            }
        }
        for (address, there) in serving.iter_mut() {
            let covering = networks
                .iter()
                .filter(|(network, ..)| network.contains(*address));
            for (_, newer, number) in covering {
                let policy = if *newer { self.new } else { self.old };
                let service = policy.registry().services().get(*number);
                there.extend(service.map(|service| (*newer, *number, own_ports(service))));
            }
        }
    }
}

/// The first address of a network that will do.
fn pick(network: IpNetwork, will_do: impl Fn(&IpAddr) -> bool) -> Option<IpAddr> {
    // The first address of a wider network is its name, and no host's.
    let skip = usize::from(network.prefix() < if network.is_ipv4() { 31 } else { 127 });
    network.iter().skip(skip).take(TRIES).find(will_do)
}

fn own_ports(service: &Service) -> Vec<(u8, u16)> {
    let ports = service.ports.iter();
    ports
        .map(|port| (protocol_of(&port.protocol), port.number))
        .collect()
}

fn protocol_of(name: &str) -> u8 {
    if name == "UDP" { UDP } else { TCP }
}
