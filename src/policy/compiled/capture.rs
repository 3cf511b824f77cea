//! Steering from decisions: every local source and every destination that the registry names is asked once, through the
//! same door as a packet, so that the kernel captures exactly what is carried or refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        HostFacts, Mode, Steering,
        compiled::{
            decide::{Decider, Verdict},
            rules::Client,
            trace::Silent,
        },
    },
    wire::protocol::{SCTP, TCP, UDP},
};

const PROTOCOLS: [u8; 3] = [TCP, UDP, SCTP];

/// Local sources that are decided alike: lookup knows a client by namespace and labels only.
struct Class {
    namespace: Arc<str>,
    labels: BTreeMap<Arc<str>, Arc<str>>,
    sources: Vec<IpAddr>,
}

impl Class {
    const fn client(&self) -> Client<'_> {
        Client {
            namespace: &self.namespace,
            labels: &self.labels,
        }
    }
}

/// Builds the sets. An endpoint without service account that a decision dials by its one accepted identity is given to
/// that identity on the way, so that its answers are accepted.
pub(crate) fn steering(decider: &mut Decider, host: &HostFacts) -> Steering {
    let local = decider.registry.local_addresses();
    let mut steering = Steering {
        exempt: host.exempt.clone(),
        ..Steering::default()
    };
    let is_strict = |address: &&IpAddr| {
        let workload = decider.registry.local_workload(**address);
        workload.is_some_and(|workload| {
            decider.server_mode(workload, **address, None).mode == Mode::Strict
        })
    };
    steering.strict_all = local.iter().filter(is_strict).copied().collect();
    let workloads = decider.registry.workloads().iter();
    steering.peers = workloads
        .filter(|workload| workload.mesh_capable && !workload.is_local)
        .map(|workload| workload.address)
        .collect();
    let networks = decider.registry.networks();
    let addresses: Vec<_> = decider
        .registry
        .addresses()
        .difference(&local)
        .copied()
        .collect();
    let mut unnamed = Vec::new();
    for class in classes(decider, &local) {
        for &address in &addresses {
            steer_address(
                decider,
                &class,
                address,
                &networks,
                &mut steering,
                &mut unnamed,
            );
        }
        steer_networks(decider, &class, &networks, &mut steering);
    }
    for (peer, address, gateway) in unnamed {
        decider.registry.add_owner(&peer, address, gateway);
    }
    steering.local = local;
    steering
}

fn classes(decider: &Decider, local: &BTreeSet<IpAddr>) -> Vec<Class> {
    let mut classes: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
    for &source in local {
        if let Some(workload) = decider.registry.local_workload(source) {
            let key = (Arc::clone(&workload.namespace), workload.labels.clone());
            classes.entry(key).or_default().push(source);
        }
    }
    let class = |((namespace, labels), sources)| Class {
        namespace,
        labels,
        sources,
    };
    classes.into_iter().map(class).collect()
}

type Unnamed = (crate::spiffe::SpiffeId, IpAddr, std::net::SocketAddr);

fn steer_address(
    decider: &Decider,
    class: &Class,
    address: IpAddr,
    networks: &BTreeSet<IpNetwork>,
    steering: &mut Steering,
    unnamed: &mut Vec<Unnamed>,
) {
    let client = class.client();
    let mut ask = |port| {
        let decided = decider.decide(client, address, port, &mut Silent);
        if let (Verdict::Tunnel { peer, gateway }, Some(endpoint)) =
            (&decided.verdict, decided.endpoint)
            && endpoint.identity.is_none()
        {
            unnamed.push((peer.clone(), address, *gateway));
        }
        decided.verdict.is_captured()
    };
    let sources = || {
        class
            .sources
            .iter()
            .filter(|source| source.is_ipv4() == address.is_ipv4())
    };
    let all = ask(None);
    if all {
        steering
            .must_all
            .extend(sources().map(|source| (*source, address)));
    }
    // Plaintext needs an element where something wider would capture it: the address, a network, or the rule that holds
    // replies of a STRICT address to a peer in the tunnel.
    let is_wider = all
        || networks.iter().any(|network| network.contains(address))
        || !steering.strict_all.is_empty() && steering.peers.contains(&address);
    for port in decider.registry.ports_at(client.namespace, address) {
        let is_captured = ask(Some(port));
        if !is_captured && !is_wider {
            continue;
        }
        let set = if is_captured {
            &mut steering.must
        } else {
            &mut steering.plain
        };
        for source in sources() {
            set.extend(PROTOCOLS.map(|protocol| (*source, address, protocol, port)));
        }
    }
}

/// Networks are decided for their addresses that the registry does not name one by one.
fn steer_networks(
    decider: &Decider,
    class: &Class,
    networks: &BTreeSet<IpNetwork>,
    steering: &mut Steering,
) {
    let client = class.client();
    let visible = |network: IpNetwork| {
        let services = decider.registry.services_in(client.namespace, network);
        services.collect::<Vec<_>>()
    };
    let mut captured_whole = Vec::new();
    let mut by_port: BTreeMap<u16, Vec<(IpNetwork, bool)>> = BTreeMap::new();
    for &network in networks {
        let services = visible(network);
        let whole = |service| decider.decide_network(client, service, None).is_captured();
        if services.iter().copied().any(whole) {
            captured_whole.push(network);
        }
        let ports: BTreeSet<_> = services
            .iter()
            .flat_map(|service| &service.ports)
            .map(|port| port.number)
            .collect();
        for number in ports {
            let named = services
                .iter()
                .find_map(|service| Some((*service, service.port(number)?)));
            let Some((service, port)) = named else {
                continue;
            };
            let is_captured = decider
                .decide_network(client, service, Some(port))
                .is_captured();
            by_port
                .entry(number)
                .or_default()
                .push((network, is_captured));
        }
    }
    for &network in &captured_whole {
        if !captured_whole
            .iter()
            .any(|wider| is_inside(network, *wider))
        {
            let sources = class
                .sources
                .iter()
                .filter(|source| source.is_ipv4() == network.is_ipv4());
            steering
                .must_all_net
                .extend(sources.map(|source| (*source, network)));
        }
    }
    for (port, decisions) in by_port {
        for (network, is_captured) in &decisions {
            let inner: Vec<_> = decisions
                .iter()
                .map(|(other, _)| *other)
                .filter(|other| is_inside(*other, *network))
                .collect();
            let set = if *is_captured {
                &mut steering.must_net
            } else {
                &mut steering.plain_net
            };
            for piece in without(*network, &inner) {
                for source in class
                    .sources
                    .iter()
                    .filter(|source| source.is_ipv4() == piece.is_ipv4())
                {
                    set.extend(PROTOCOLS.map(|protocol| (*source, piece, protocol, port)));
                }
            }
        }
    }
}

/// `inner` is a proper part of `outer`.
fn is_inside(inner: IpNetwork, outer: IpNetwork) -> bool {
    inner.prefix() > outer.prefix()
        && inner.is_ipv4() == outer.is_ipv4()
        && outer.contains(inner.network())
}

/// `network` less the networks in `holes`, as few disjoint networks.
fn without(network: IpNetwork, holes: &[IpNetwork]) -> Vec<IpNetwork> {
    if holes.contains(&network) {
        return Vec::new();
    }
    if !holes.iter().any(|hole| is_inside(*hole, network)) {
        return vec![network];
    }
    halves(network)
        .into_iter()
        .flatten()
        .flat_map(|half| without(half, holes))
        .collect()
}

fn halves(network: IpNetwork) -> [Option<IpNetwork>; 2] {
    let prefix = network.prefix() + 1;
    let upper = match network.network() {
        IpAddr::V4(first) => 1_u32
            .checked_shl(32_u32.saturating_sub(prefix.into()))
            .map(|bit| IpAddr::from((u32::from(first) | bit).to_be_bytes())),
        IpAddr::V6(first) => 1_u128
            .checked_shl(128_u32.saturating_sub(prefix.into()))
            .map(|bit| IpAddr::from((u128::from(first) | bit).to_be_bytes())),
    };
    [
        IpNetwork::new(network.network(), prefix).ok(),
        upper.and_then(|upper| IpNetwork::new(upper, prefix).ok()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNetwork> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_network_with_holes_is_cut_into_the_rest() {
        let whole = "10.0.0.0/8".parse().unwrap();
        assert_eq!(without(whole, &[]), [whole]);
        assert_eq!(without(whole, &[whole]), []);
        assert_eq!(
            without(whole, &nets(&["10.64.0.0/10", "10.0.0.0/10"])),
            nets(&["10.128.0.0/9"])
        );
        assert_eq!(
            without("fd00::/126".parse().unwrap(), &nets(&["fd00::2/128"])),
            nets(&["fd00::/127", "fd00::3/128"])
        );
    }
}
