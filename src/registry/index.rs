//! The registry as tables: address to workload, service, endpoint, identity and gateway. Built once from the declared
//! values and never changed; every lookup by address is hashed and allocates nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use ipnetwork::IpNetwork;
use prefix_trie::joint::map::JointPrefixMap;

use crate::spiffe::SpiffeId;

mod build;
mod by_port;
mod entry;

pub use build::{LocalHost, RegistryError};
use by_port::{AtEndpoint, ByPort};
pub use entry::{Endpoint, RegisteredWorkload, Service};

/// What a destination is, seen by a client of one namespace (policy.md 4.3).
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A port of a service, by its number, at one of the service's endpoints.
    Endpoint(&'a Service, u16, &'a RegisteredWorkload),
    /// A port of a service, by its number, at one of its own addresses.
    Service(&'a Service, u16),
    /// An address of the registry, without a port or with one that no visible service names.
    Address,
    /// Not in the registry, or in no part of it that this client sees.
    Unknown,
}

/// Every workload and service, by address.
#[derive(Debug, Default)]
pub struct Registry {
    workloads: Vec<RegisteredWorkload>,
    services: Vec<Service>,
    by_address: HashMap<IpAddr, usize>,
    /// Services by their single addresses; these are most, and one look finds them.
    by_service_address: HashMap<IpAddr, Vec<usize>>,
    /// Services by their networks that are not one address.
    by_service_network: JointPrefixMap<IpNetwork, Vec<usize>>,
    by_endpoint: HashMap<IpAddr, Vec<usize>>,
    /// Services by endpoint and its own port, oldest first.
    by_endpoint_port: ByPort,
    by_host: HashMap<Arc<str>, Vec<usize>>,
    local: HashMap<IpAddr, usize>,
    local_by_identity: HashMap<SpiffeId, Vec<usize>>,
    owners: HashMap<IpAddr, Vec<SpiffeId>>,
    gateways: HashMap<SpiffeId, Vec<SocketAddr>>,
    gateway_addresses: HashSet<IpAddr>,
}

impl Registry {
    /// The workload at `address`.
    pub fn workload(&self, address: IpAddr) -> Option<&RegisteredWorkload> {
        let index = self.by_address.get(&address)?;
        self.workloads.get(*index)
    }

    /// Every workload, in the order of declaration.
    pub fn workloads(&self) -> &[RegisteredWorkload] {
        &self.workloads
    }

    /// Every service, oldest first.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The local workload that speaks from and answers on `address`: its own, or a service address that this host has.
    pub fn local_workload(&self, address: IpAddr) -> Option<&RegisteredWorkload> {
        let index = self.local.get(&address)?;
        self.workloads.get(*index)
    }

    /// Addresses with a local workload.
    pub fn local_addresses(&self) -> BTreeSet<IpAddr> {
        self.local.keys().copied().collect()
    }

    /// A workload with this identity owns `address`, or answers for the service that has it.
    pub fn owns(&self, identity: &SpiffeId, address: IpAddr) -> bool {
        self.owners
            .get(&address)
            .is_some_and(|owners| owners.contains(identity))
    }

    /// The identities that may speak from `address`.
    pub fn owners(&self, address: IpAddr) -> &[SpiffeId] {
        self.owners.get(&address).map_or(&[], Vec::as_slice)
    }

    /// Some workload has this identity.
    pub fn knows(&self, identity: &SpiffeId) -> bool {
        self.gateways.contains_key(identity)
    }

    /// Some local workload has this identity.
    pub fn has_local(&self, identity: &SpiffeId) -> bool {
        self.local_by_identity.contains_key(identity)
    }

    /// The local workloads with this identity.
    pub fn local_with<'a>(
        &'a self,
        identity: &SpiffeId,
    ) -> impl Iterator<Item = &'a RegisteredWorkload> {
        let indices = self.local_by_identity.get(identity).into_iter().flatten();
        indices.filter_map(|index| self.workloads.get(*index))
    }

    /// Services with exactly this host, oldest first.
    pub fn services_of_host(&self, host: &str) -> impl Iterator<Item = &Service> {
        let indices = self.by_host.get(host).into_iter().flatten();
        indices.filter_map(|index| self.services.get(*index))
    }

    /// Services with `address` among their addresses or an endpoint at `endpoint`, whoever may see them: oldest first,
    /// each once.
    pub fn every_service_at(&self, address: IpAddr, endpoint: IpAddr) -> Vec<&Service> {
        let mut indices: Vec<usize> = self
            .indices_of(IpNetwork::from(address))
            .chain(self.by_endpoint.get(&endpoint).into_iter().flatten())
            .copied()
            .collect();
        indices.sort_unstable();
        indices.dedup();
        indices
            .into_iter()
            .filter_map(|index| self.services.get(index))
            .collect()
    }

    /// Gateways of the remote workloads with this identity, in the order of declaration.
    pub fn gateways(&self, identity: &SpiffeId) -> &[SocketAddr] {
        self.gateways.get(identity).map_or(&[], Vec::as_slice)
    }

    /// Some remote workload's host has this underlay address.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateway_addresses.contains(&address)
    }

    /// Lets an identity speak from an address whose declarations name none.
    pub fn add_owner(&mut self, identity: &SpiffeId, address: IpAddr, gateway: SocketAddr) {
        push_unique(self.owners.entry(address).or_default(), identity.clone());
        push_unique(self.gateways.entry(identity.clone()).or_default(), gateway);
        self.gateway_addresses.insert(gateway.ip());
    }

    /// What `address` and `port` are for a client of `namespace`: longest service prefix that has the port, then
    /// endpoint and endpoint port. Of several services the oldest wins (policy.md 4.3).
    pub fn classify(&self, namespace: &str, address: IpAddr, port: Option<u16>) -> Destination<'_> {
        if let Some(number) = port {
            for service in self.services_at(namespace, address) {
                if service.port(number).is_some() {
                    return Destination::Service(service, number);
                }
            }
            for found in self.by_endpoint_port.at(address, number) {
                if let Some((service, workload)) = self.at_endpoint(namespace, found) {
                    return Destination::Endpoint(service, found.port, workload);
                }
            }
        }
        let is_known = self.by_address.contains_key(&address)
            || self.services_at(namespace, address).next().is_some();
        if is_known {
            Destination::Address
        } else {
            Destination::Unknown
        }
    }

    /// A service that `namespace` sees, and its endpoint.
    fn at_endpoint(
        &self,
        namespace: &str,
        found: &AtEndpoint,
    ) -> Option<(&Service, &RegisteredWorkload)> {
        let service = self.services.get(usize::try_from(found.service).ok()?)?;
        let workload = self.workloads.get(usize::try_from(found.workload).ok()?)?;
        let is_visible = found.is_for_all || service.is_visible_to(namespace);
        is_visible.then_some((service, workload))
    }

    /// Services visible to `namespace` that have `address` among their addresses: longest prefix first, then oldest.
    pub fn services_at<'a>(
        &'a self,
        namespace: &str,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Service> {
        self.services_in(namespace, IpNetwork::from(address))
    }

    /// Services visible to `namespace` among whose networks is exactly `network`, then those with wider ones.
    pub fn services_in<'a>(
        &'a self,
        namespace: &str,
        network: IpNetwork,
    ) -> impl Iterator<Item = &'a Service> {
        self.visible(namespace, self.indices_of(network))
    }

    /// Services by `network` itself, then by wider ones, the narrowest first.
    fn indices_of(&self, network: IpNetwork) -> impl Iterator<Item = &usize> {
        let exact = single_address(network)
            .and_then(|address| self.by_service_address.get(&address))
            .into_iter()
            .flatten();
        let covering = if self.by_service_network.is_empty() {
            Vec::new()
        } else {
            self.by_service_network.cover(&network).collect()
        };
        exact.chain(covering.into_iter().rev().flat_map(|(_, indices)| indices))
    }

    /// Services visible to `namespace` that have an endpoint at `address`, oldest first.
    pub fn services_behind<'a>(
        &'a self,
        namespace: &str,
        address: IpAddr,
    ) -> impl Iterator<Item = &'a Service> {
        self.visible(
            namespace,
            self.by_endpoint.get(&address).into_iter().flatten(),
        )
    }

    /// Every port that a service visible to `namespace` names at `address`.
    pub fn ports_at(&self, namespace: &str, address: IpAddr) -> BTreeSet<u16> {
        let named = self.services_at(namespace, address);
        let behind = self.services_behind(namespace, address);
        let endpoints = behind.filter_map(|service| service.endpoint(address));
        named
            .flat_map(|service| service.ports.iter().map(|port| port.number))
            .chain(endpoints.flat_map(|endpoint| endpoint.ports.iter().copied()))
            .collect()
    }

    /// Every single address of a workload or service.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let services = self.services.iter().flat_map(|service| &service.addresses);
        let single = services.copied().filter_map(single_address);
        self.by_address.keys().copied().chain(single).collect()
    }

    /// Every service network that is not a single address.
    pub fn networks(&self) -> BTreeSet<IpNetwork> {
        let services = self.services.iter().flat_map(|service| &service.addresses);
        services
            .copied()
            .filter(|network| single_address(*network).is_none())
            .collect()
    }

    fn visible<'a>(
        &'a self,
        namespace: &str,
        indices: impl Iterator<Item = &'a usize>,
    ) -> impl Iterator<Item = &'a Service> {
        indices
            .filter_map(|index| self.services.get(*index))
            .filter(move |service| service.is_visible_to(namespace))
    }
}

/// The address of a network that has exactly one.
pub fn single_address(network: IpNetwork) -> Option<IpAddr> {
    let longest = if network.is_ipv4() { 32 } else { 128 };
    (network.prefix() == longest).then(|| network.ip())
}

/// Every label of `wanted` is among `labels`, with the same value.
pub fn is_subset(
    wanted: &BTreeMap<Arc<str>, Arc<str>>,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn push_unique<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{
        Place, ResourceName,
        service::{Endpoints, ExportTo, Location, Resolution, ServiceEntry, ServicePort, Workload},
    };

    struct Nowhere;

    impl LocalHost for Nowhere {
        fn holds(&self, _: &SpiffeId) -> bool {
            false
        }

        fn has_address(&self, _: IpAddr) -> bool {
            false
        }
    }

    fn place(line: u32) -> Place {
        Place {
            file: "f".into(),
            line,
            column: 1,
        }
    }

    fn resource(name: &str) -> ResourceName {
        ResourceName {
            kind: "WorkloadEntry",
            namespace: "ns".into(),
            name: name.into(),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    fn workload(address: &str, account: Option<&str>) -> Workload {
        Workload {
            resource: resource(address),
            place: place(1),
            address: address.parse().unwrap(),
            ports: BTreeMap::new(),
            labels: labels(&[("app", "web")]),
            namespace: "ns".into(),
            service_account: account.map(Into::into),
            gateway: None,
            mesh_capable: account.is_some(),
        }
    }

    fn web(endpoints: Endpoints) -> ServiceEntry {
        let port = |number, name: &str, target_port| ServicePort {
            number,
            name: name.into(),
            protocol: "TCP".into(),
            target_port,
        };
        ServiceEntry {
            resource: resource("web"),
            place: place(9),
            hosts: vec!["web.local".into()],
            addresses: vec![],
            ports: vec![
                port(80, "http", None),
                port(443, "tls", Some(8443)),
                port(9, "x", Some(99)),
            ],
            location: Location::MeshInternal,
            resolution: Resolution::Static,
            endpoints,
            export_to: ExportTo::All,
            subject_alt_names: vec![],
        }
    }

    fn build(
        services: &[ServiceEntry],
        workloads: &[Workload],
    ) -> Result<Registry, Vec<RegistryError>> {
        Registry::new(services, workloads, &"td".parse().unwrap(), &Nowhere)
    }

    #[test]
    fn declarations_of_one_address_are_joined() {
        let mut entry = workload("10.0.0.1", Some("a"));
        entry.gateway = Some("192.0.2.1:99".parse().unwrap());
        let inline = workload("10.0.0.1", None);
        for workloads in [[entry.clone(), inline.clone()], [inline, entry.clone()]] {
            let registry = build(&[], &workloads).unwrap();
            let joined = registry.workload(entry.address).unwrap();
            assert_eq!(
                joined.identity,
                Some("spiffe://td/ns/ns/sa/a".parse().unwrap())
            );
            assert_eq!(
                (joined.gateway, joined.mesh_capable),
                (entry.gateway.unwrap(), true)
            );
            assert_eq!(registry.workloads().len(), 1);
        }
        let errors = build(&[], &[entry, workload("10.0.0.1", Some("b"))]).unwrap_err();
        assert!(
            matches!(&*errors, [RegistryError::AddressClaimedTwice { .. }]),
            "{errors:?}"
        );
        let errors = build(&[], &[workload("10.0.0.1", Some("a/b"))]).unwrap_err();
        assert!(
            matches!(&*errors, [RegistryError::BadIdentity { .. }]),
            "{errors:?}"
        );
    }

    #[test]
    fn an_endpoint_port_is_its_own_then_the_target_then_the_service_port() {
        let mut endpoint = workload("10.0.0.1", Some("a"));
        endpoint.ports = [("http".into(), 8080), ("x".into(), 7)].into();
        let registry = build(&[web(Endpoints::Inline(vec![endpoint.clone()]))], &[]).unwrap();
        let found = |port| match registry.classify("ns", endpoint.address, Some(port)) {
            Destination::Endpoint(_, port, _) | Destination::Service(_, port) => Some(port),
            Destination::Address | Destination::Unknown => None,
        };
        let ports = [8080, 8443, 7, 80, 443, 99];
        assert_eq!(
            ports.map(found),
            [Some(80), Some(443), Some(9), None, None, None]
        );
        assert_eq!(
            registry.ports_at("ns", endpoint.address),
            [7, 8080, 8443].into()
        );
    }

    #[test]
    fn a_selector_finds_workloads_of_its_own_namespace() {
        let mut other = workload("10.0.0.2", Some("b"));
        other.namespace = "other".into();
        let mut unlabelled = workload("10.0.0.3", Some("c"));
        unlabelled.labels = labels(&[("app", "db")]);
        let workloads = [workload("10.0.0.1", Some("a")), other, unlabelled];
        let registry = build(
            &[web(Endpoints::Selector(labels(&[("app", "web")])))],
            &workloads,
        )
        .unwrap();
        let endpoints: Vec<_> = registry.services()[0]
            .endpoints
            .iter()
            .map(|known| known.address)
            .collect();
        assert_eq!(endpoints, [workloads[0].address]);
    }

    #[test]
    fn a_service_exported_to_nobody_is_seen_by_nobody() {
        let mut entry = web(Endpoints::Inline(vec![workload("10.0.0.1", Some("a"))]));
        entry.export_to = ExportTo::Nobody;
        entry.addresses = vec!["10.9.0.0/16".parse().unwrap()];
        let registry = build(&[entry], &[]).unwrap();
        let classify = |address: &str| registry.classify("ns", address.parse().unwrap(), Some(80));
        assert!(matches!(classify("10.0.0.1"), Destination::Address));
        assert!(matches!(classify("10.9.0.1"), Destination::Unknown));
    }
}
