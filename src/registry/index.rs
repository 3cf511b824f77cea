//! The registry as tables: address to workload, service, endpoint, identity and gateway. Built once from the declared
//! values and never changed; every lookup by address is hashed and allocates nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hashbrown::HashMap;
use ipnetwork::IpNetwork;
use prefix_trie::joint::map::JointPrefixMap;

use crate::{registry::service::ServicePort, spiffe::SpiffeId};

mod build;
mod entry;

pub use build::{LocalHost, RegistryError};
pub use entry::{Endpoint, RegisteredWorkload, Service};

/// What a destination is, seen by a client of one namespace (policy.md 4.3).
#[derive(Clone, Copy, Debug)]
pub enum Destination<'a> {
    /// A port of a service.
    Service(&'a Service, &'a ServicePort),
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
    by_service_address: JointPrefixMap<IpNetwork, Vec<usize>>,
    by_endpoint: HashMap<IpAddr, Vec<usize>>,
    local: HashMap<IpAddr, usize>,
    owners: HashMap<IpAddr, Vec<SpiffeId>>,
    gateways: HashMap<SpiffeId, Vec<SocketAddr>>,
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
        self.workloads
            .iter()
            .any(|workload| workload.is_local && workload.identity.as_ref() == Some(identity))
    }

    /// Gateways of the remote workloads with this identity, in the order of declaration.
    pub fn gateways(&self, identity: &SpiffeId) -> &[SocketAddr] {
        self.gateways.get(identity).map_or(&[], Vec::as_slice)
    }

    /// Lets an identity speak from an address whose declarations name none.
    pub fn add_owner(&mut self, identity: &SpiffeId, address: IpAddr, gateway: SocketAddr) {
        push_unique(self.owners.entry(address).or_default(), identity.clone());
        push_unique(self.gateways.entry(identity.clone()).or_default(), gateway);
    }

    /// What `address` and `port` are for a client of `namespace`: longest service prefix that has the port, then
    /// endpoint and endpoint port. Of several services the oldest wins (policy.md 4.3).
    pub fn classify(&self, namespace: &str, address: IpAddr, port: Option<u16>) -> Destination<'_> {
        if let Some(number) = port {
            for service in self.services_at(namespace, address) {
                if let Some(port) = service.port(number) {
                    return Destination::Service(service, port);
                }
            }
            for service in self.services_behind(namespace, address) {
                if let Some(port) = service.port_of_endpoint(address, number) {
                    return Destination::Service(service, port);
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
        let covering: Vec<_> = self.by_service_address.cover(&network).collect();
        let indices = covering.into_iter().rev().flat_map(|(_, indices)| indices);
        self.visible(namespace, indices)
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
