//! Building the registry: declarations joined by address, endpoints selected, tables filled.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use ipnetwork::IpNetwork;

use super::{
    AtEndpoint, Endpoint, RegisteredWorkload, Registry, Service, is_subset, push_unique,
    single_address,
};
use crate::{
    registry::{
        Place,
        key::TUNNEL_PORT,
        service::{Endpoints, ExportTo, ServiceEntry, ServicePort, Workload},
    },
    spiffe::{SpiffeId, SpiffeIdError, TrustDomain},
};

/// What makes a workload a local one: its identity's key is here, and so is its gateway or the workload itself.
pub trait LocalHost {
    /// This host holds the identity's key.
    fn holds(&self, identity: &SpiffeId) -> bool;
    /// The address is one of this host's.
    fn has_address(&self, address: IpAddr) -> bool;
}

/// Why the registry cannot be built.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RegistryError {
    /// Two identities claim one address.
    AddressClaimedTwice {
        /// The address.
        address: IpAddr,
        /// The identity that was declared first, and where.
        first: (SpiffeId, Place),
        /// The other identity, and where.
        second: (SpiffeId, Place),
    },
    /// Namespace and service account make no SPIFFE ID.
    BadIdentity {
        /// Where the workload's address stands.
        place: Place,
        /// What is wrong.
        reason: SpiffeIdError,
    },
}

impl Registry {
    /// Builds the tables. `workloads` are the WorkloadEntries; endpoints that stand in a ServiceEntry are found there.
    ///
    /// # Errors
    /// Everything that makes the registry ambiguous, in the order of the declarations.
    pub fn new(
        services: &[ServiceEntry],
        workloads: &[Workload],
        trust_domain: &TrustDomain,
        host: &impl LocalHost,
    ) -> Result<Self, Vec<RegistryError>> {
        let mut registry = Self::default();
        let mut errors = Vec::new();
        let inline = services.iter().flat_map(inline_endpoints);
        for workload in workloads.iter().chain(inline) {
            if let Err(error) = registry.add_workload(workload, trust_domain) {
                errors.push(error);
            }
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        for workload in &mut registry.workloads {
            let is_here = |address| host.has_address(address);
            workload.is_held = workload.identity.as_ref().is_some_and(|id| host.holds(id));
            workload.is_local =
                workload.is_held && (is_here(workload.gateway.ip()) || is_here(workload.address));
        }
        let selection = Selection::new(workloads);
        for entry in services {
            registry.add_service(entry, &selection);
        }
        registry.index_workloads();
        registry.index_service_addresses(host);
        Ok(registry)
    }

    fn add_workload(
        &mut self,
        workload: &Workload,
        trust_domain: &TrustDomain,
    ) -> Result<(), RegistryError> {
        let place = workload.place.clone();
        let account = workload.service_account.as_ref();
        let identity = account
            .map(|account| {
                SpiffeId::for_service_account(trust_domain, &workload.namespace, account)
            })
            .transpose()
            .map_err(|reason| RegistryError::BadIdentity { place, reason })?;
        let registered = RegisteredWorkload {
            number: self.workloads.len(),
            address: workload.address,
            namespace: Arc::clone(&workload.namespace),
            identity,
            labels: workload.labels.clone(),
            gateway: workload
                .gateway
                .unwrap_or_else(|| SocketAddr::new(workload.address, TUNNEL_PORT)),
            mesh_capable: workload.mesh_capable,
            is_held: false,
            is_local: false,
            resource: workload.resource.clone(),
            place: workload.place.clone(),
        };
        match self
            .by_address
            .get(&workload.address)
            .and_then(|index| self.workloads.get_mut(*index))
        {
            Some(known) => merge(known, registered, workload.gateway),
            None => {
                self.by_address
                    .insert(workload.address, self.workloads.len());
                self.workloads.push(registered);
                Ok(())
            }
        }
    }

    fn add_service(&mut self, entry: &ServiceEntry, selection: &Selection<'_>) {
        let endpoints = endpoints_of(entry, selection);
        for host in &entry.hosts {
            let index = self.services.len();
            let addresses: BTreeSet<_> = entry.addresses.iter().copied().map(masked).collect();
            for network in &addresses {
                self.index_network(*network, index);
            }
            push_unique(self.by_host.entry(Arc::clone(host)).or_default(), index);
            for endpoint in &endpoints {
                push_unique(self.by_endpoint.entry(endpoint.address).or_default(), index);
                self.index_endpoint(endpoint, index, entry);
            }
            self.services.push(Service {
                number: index,
                host: Arc::clone(host),
                resource: entry.resource.clone(),
                place: entry.place.clone(),
                addresses: addresses.into_iter().collect(),
                ports: entry.ports.clone(),
                location: entry.location,
                resolution: entry.resolution,
                export_to: entry.export_to.clone(),
                subject_alt_names: entry
                    .subject_alt_names
                    .iter()
                    .filter_map(|name| name.parse().ok())
                    .collect(),
                endpoints: endpoints.clone(),
            });
        }
    }

    fn index_endpoint(&mut self, endpoint: &Endpoint, service: usize, entry: &ServiceEntry) {
        let workload = self.by_address.get(&endpoint.address).copied();
        let workload = workload.and_then(|index| u32::try_from(index).ok());
        let (Some(workload), Ok(service)) = (workload, u32::try_from(service)) else {
            return;
        };
        for (port, own) in entry.ports.iter().zip(&endpoint.ports) {
            let found = AtEndpoint {
                service,
                workload,
                port: port.number,
                is_for_all: entry.export_to == ExportTo::All,
            };
            self.by_endpoint_port.add(endpoint.address, *own, found);
        }
    }

    fn index_network(&mut self, network: IpNetwork, index: usize) {
        if let Some(address) = single_address(network) {
            self.by_service_address
                .entry(address)
                .or_default()
                .push(index);
            return;
        }
        match self.by_service_network.get_mut(&network) {
            Some(indices) => indices.push(index),
            None => drop(self.by_service_network.insert(network, vec![index])),
        }
    }

    fn index_workloads(&mut self) {
        let mut seen = HashSet::new();
        for (index, workload) in self.workloads.iter().enumerate() {
            let Some(identity) = &workload.identity else {
                continue;
            };
            push_unique(
                self.owners.entry(workload.address).or_default(),
                identity.clone(),
            );
            let gateways = self.gateways.entry(identity.clone()).or_default();
            if workload.is_local {
                self.local.insert(workload.address, index);
                self.local_by_identity
                    .entry(identity.clone())
                    .or_default()
                    .push(index);
            } else if seen.insert((identity, workload.gateway)) {
                gateways.push(workload.gateway);
                self.gateway_addresses.insert(workload.gateway.ip());
            }
        }
    }

    /// A service address that no workload owns is answered by each endpoint of the service. On the endpoint's own
    /// host it is an address of the endpoint's workload, if the host has it.
    fn index_service_addresses(&mut self, host: &impl LocalHost) {
        for service in &self.services {
            let endpoints: Vec<_> = service
                .endpoints
                .iter()
                .filter_map(|endpoint| self.by_address.get(&endpoint.address))
                .filter_map(|index| Some((*index, self.workloads.get(*index)?)))
                .collect();
            for address in service.addresses.iter().copied().filter_map(single_address) {
                if self.by_address.contains_key(&address) {
                    continue;
                }
                for (index, workload) in &endpoints {
                    if let Some(identity) = &workload.identity {
                        push_unique(self.owners.entry(address).or_default(), identity.clone());
                    }
                    if workload.is_local && host.has_address(address) {
                        self.local.entry(address).or_insert(*index);
                    }
                }
            }
        }
    }
}

/// The network without host bits.
fn masked(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

fn inline_endpoints(entry: &ServiceEntry) -> &[Workload] {
    match &entry.endpoints {
        Endpoints::Inline(workloads) => workloads,
        Endpoints::Selector(_) | Endpoints::None => &[],
    }
}

/// WorkloadEntries by namespace and label, so that many selectors over many workloads stay cheap.
struct Selection<'a> {
    by_namespace: HashMap<&'a str, Vec<&'a Workload>>,
    by_label: HashMap<(&'a str, &'a str, &'a str), Vec<&'a Workload>>,
}

impl<'a> Selection<'a> {
    fn new(workloads: &'a [Workload]) -> Self {
        let mut selection = Self {
            by_namespace: HashMap::new(),
            by_label: HashMap::new(),
        };
        for workload in workloads {
            let namespace = &*workload.namespace;
            selection
                .by_namespace
                .entry(namespace)
                .or_default()
                .push(workload);
            for (key, value) in &workload.labels {
                selection
                    .by_label
                    .entry((namespace, key, value))
                    .or_default()
                    .push(workload);
            }
        }
        selection
    }

    /// The workloads of `namespace` with all of `labels`, in the order of their declaration.
    fn select(&self, namespace: &str, labels: &BTreeMap<Arc<str>, Arc<str>>) -> Vec<&'a Workload> {
        let rarest = labels
            .iter()
            .map(|(key, value)| {
                let with_label = self.by_label.get(&(namespace, &**key, &**value));
                with_label.map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|workloads| workloads.len());
        let candidates = rarest
            .or_else(|| self.by_namespace.get(namespace).map(Vec::as_slice))
            .unwrap_or_default();
        candidates
            .iter()
            .copied()
            .filter(|workload| is_subset(labels, &workload.labels))
            .collect()
    }
}

fn endpoints_of(entry: &ServiceEntry, selection: &Selection<'_>) -> Vec<Endpoint> {
    let selected: Vec<_> = match &entry.endpoints {
        Endpoints::Inline(inline) => inline.iter().collect(),
        Endpoints::Selector(labels) => selection.select(&entry.resource.namespace, labels),
        Endpoints::None => Vec::new(),
    };
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut seen = HashSet::new();
    for workload in selected {
        if seen.insert(workload.address) {
            let ports = entry
                .ports
                .iter()
                .map(|port| endpoint_port(port, workload))
                .collect();
            endpoints.push(Endpoint {
                address: workload.address,
                ports,
            });
        }
    }
    endpoints
}

/// An endpoint's own port by name, else the target port, else the service port (policy.md 4.1).
fn endpoint_port(port: &ServicePort, workload: &Workload) -> u16 {
    let named = workload.ports.get(&port.name).copied();
    named.or(port.target_port).unwrap_or(port.number)
}

/// Joins a further declaration of an address: what it adds is taken, what it repeats is fine, another identity is not.
fn merge(
    known: &mut RegisteredWorkload,
    other: RegisteredWorkload,
    gateway: Option<SocketAddr>,
) -> Result<(), RegistryError> {
    if let (Some(first), Some(second)) = (&known.identity, &other.identity)
        && first != second
    {
        return Err(RegistryError::AddressClaimedTwice {
            address: known.address,
            first: (first.clone(), known.place.clone()),
            second: (second.clone(), other.place),
        });
    }
    let has_own_gateway = known.gateway != SocketAddr::new(known.address, TUNNEL_PORT);
    let gateway = if has_own_gateway {
        known.gateway
    } else {
        gateway.unwrap_or(known.gateway)
    };
    let mesh_capable = known.mesh_capable || other.mesh_capable;
    if known.identity.is_none() && other.identity.is_some() {
        *known = RegisteredWorkload {
            number: known.number,
            ..other
        };
    }
    known.gateway = gateway;
    known.mesh_capable = mesh_capable;
    Ok(())
}
