//! Workloads and services as the declarations make them (policy.md 4.1 to 4.3).

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use identun::{
    policy::{HostFacts, MeshSettings, Resources, document::Labels},
    registry::service::{Endpoints, ServiceEntry, Workload},
};
use ipnetwork::IpNetwork;

const TUNNEL_PORT: u16 = 15_008;

/// What all declarations of one address say together.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) address: IpAddr,
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) account: Option<Arc<str>>,
    pub(crate) gateway: SocketAddr,
    pub(crate) in_mesh: bool,
    /// This host has the key of its identity.
    pub(crate) is_held: bool,
    pub(crate) is_local: bool,
}

/// One host name of a ServiceEntry.
#[derive(Clone, Debug)]
pub(crate) struct Service<'r> {
    pub(crate) host: &'r str,
    pub(crate) entry: &'r ServiceEntry,
    /// Each address once, in the order of declaration.
    pub(crate) endpoints: Vec<&'r Workload>,
}

/// Everything the resources declare.
#[derive(Debug)]
pub(crate) struct Known<'r> {
    pub(crate) resources: &'r Resources,
    pub(crate) mesh: &'r MeshSettings,
    pub(crate) facts: &'r HostFacts,
    pub(crate) hosts: Vec<Host>,
    pub(crate) services: Vec<Service<'r>>,
}

impl Host {
    /// TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    pub(crate) fn principal(&self, trust_domain: &str) -> Option<String> {
        let account = self.account.as_ref()?;
        Some(format!("{trust_domain}/ns/{}/sa/{account}", self.namespace))
    }
}

impl<'r> Known<'r> {
    pub(crate) fn new(
        resources: &'r Resources,
        mesh: &'r MeshSettings,
        facts: &'r HostFacts,
    ) -> Self {
        let mut known = Self {
            resources,
            mesh,
            facts,
            hosts: Vec::new(),
            services: services(resources),
        };
        let inline = resources.service_entries.iter().flat_map(inline);
        let declarations: Vec<_> = resources.workloads.iter().chain(inline).collect();
        for (index, first) in declarations.iter().enumerate() {
            let earlier = &declarations[..index];
            if earlier.iter().all(|other| other.address != first.address) {
                let same: Vec<_> = declarations
                    .iter()
                    .copied()
                    .filter(|other| other.address == first.address)
                    .collect();
                let host = known.joined(&same);
                known.hosts.push(host);
            }
        }
        known
    }

    /// Identity, namespace and labels are those of the first declaration with an account, else of the first one; the
    /// gateway is the first that is written; one declaration that says so makes it mesh-capable.
    fn joined(&self, same: &[&Workload]) -> Host {
        let address = same[0].address;
        let own = SocketAddr::new(address, TUNNEL_PORT);
        let with_account = same.iter().find(|one| one.service_account.is_some());
        let main = with_account.unwrap_or(&same[0]);
        let written = same.iter().filter_map(|one| one.gateway);
        let mut host = Host {
            address,
            namespace: Arc::clone(&main.namespace),
            labels: main.labels.clone(),
            account: main.service_account.clone(),
            gateway: written.clone().find(|one| *one != own).unwrap_or(own),
            in_mesh: same.iter().any(|one| one.mesh_capable),
            is_held: false,
            is_local: false,
        };
        host.is_held = host
            .principal(self.mesh.trust_domain.as_str())
            .is_some_and(|name| {
                let held = self.facts.identities.iter();
                held.map(ToString::to_string)
                    .any(|id| id == format!("spiffe://{name}"))
            });
        let here = |address| self.facts.underlay.contains(&address);
        host.is_local = host.is_held && (here(host.gateway.ip()) || here(host.address));
        host
    }

    pub(crate) fn host(&self, address: IpAddr) -> Option<&Host> {
        self.hosts.iter().find(|host| host.address == address)
    }

    /// The local workload that has the address: its own, or that of a service whose endpoint it is where this host has
    /// the address and no workload does.
    pub(crate) fn local(&self, address: IpAddr) -> Option<&Host> {
        if let Some(host) = self.host(address) {
            return host.is_local.then_some(host);
        }
        if !self.facts.underlay.contains(&address) {
            return None;
        }
        let services = self.services.iter();
        services
            .filter(|service| service.has_single(address))
            .flat_map(|service| &service.endpoints)
            .filter_map(|endpoint| self.host(endpoint.address))
            .find(|host| host.is_local)
    }

    /// Services that a client of `namespace` sees at an address of theirs, longest network first, then oldest.
    pub(crate) fn services_at(&self, namespace: &str, address: IpAddr) -> Vec<&Service<'r>> {
        let mut found = Vec::new();
        for length in (0..=128).rev() {
            for service in &self.services {
                let networks = service.entry.addresses.iter();
                let mut networks = networks.filter(|network| network.prefix() == length);
                if service.is_seen_by(namespace)
                    && networks.any(|network| network.contains(address))
                {
                    found.push(service);
                }
            }
        }
        found
    }

    /// Services that a client of `namespace` sees and that have an endpoint at the address, oldest first.
    pub(crate) fn services_behind(&self, namespace: &str, address: IpAddr) -> Vec<&Service<'r>> {
        let services = self.services.iter();
        services
            .filter(|service| service.is_seen_by(namespace))
            .filter(|service| service.endpoint(address).is_some())
            .collect()
    }
}

impl<'r> Service<'r> {
    pub(crate) fn namespace(&self) -> &'r Arc<str> {
        &self.entry.resource.namespace
    }

    pub(crate) fn is_seen_by(&self, namespace: &str) -> bool {
        self.entry.export_to.includes(namespace)
    }

    pub(crate) fn endpoint(&self, address: IpAddr) -> Option<&'r Workload> {
        let endpoints = self.endpoints.iter();
        endpoints
            .copied()
            .find(|endpoint| endpoint.address == address)
    }

    /// The address is one of its single addresses, not only inside a network.
    pub(crate) fn has_single(&self, address: IpAddr) -> bool {
        let addresses = self.entry.addresses.iter();
        addresses
            .copied()
            .any(|network| network == IpNetwork::from(address))
    }

    /// The address is one of its addresses or inside one of its networks.
    pub(crate) fn covers(&self, address: IpAddr) -> bool {
        let addresses = self.entry.addresses.iter();
        addresses.clone().any(|network| network.contains(address))
    }

    /// Service ports with this number.
    pub(crate) fn numbered(&self, number: u16) -> Vec<(u16, &'r str)> {
        let ports = self.entry.ports.iter();
        ports
            .filter(|port| port.number == number)
            .map(|port| (port.number, &*port.name))
            .collect()
    }

    /// Service ports behind the endpoint's own port: the endpoint's by name, else the target port, else the number.
    pub(crate) fn behind(&self, endpoint: &Workload, own: u16) -> Vec<(u16, &'r str)> {
        let ports = self.entry.ports.iter();
        ports
            .filter(|port| {
                let named = endpoint.ports.get(&port.name).copied();
                named.or(port.target_port).unwrap_or(port.number) == own
            })
            .map(|port| (port.number, &*port.name))
            .collect()
    }
}

/// Every label of `wanted` is there, with the same value.
pub(crate) fn selects(
    wanted: &BTreeMap<Arc<str>, Arc<str>>,
    labels: &BTreeMap<Arc<str>, Arc<str>>,
) -> bool {
    wanted
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

fn services(resources: &Resources) -> Vec<Service<'_>> {
    let mut services = Vec::new();
    for entry in &resources.service_entries {
        let declared: Vec<_> = match &entry.endpoints {
            Endpoints::Inline(endpoints) => endpoints.iter().collect(),
            Endpoints::Selector(wanted) => {
                let workloads = resources.workloads.iter();
                workloads
                    .filter(|one| one.namespace == entry.resource.namespace)
                    .filter(|one| selects(wanted, &one.labels))
                    .collect()
            }
            Endpoints::None => Vec::new(),
        };
        let mut endpoints: Vec<&Workload> = Vec::new();
        for one in declared {
            if endpoints.iter().all(|known| known.address != one.address) {
                endpoints.push(one);
            }
        }
        for host in &entry.hosts {
            services.push(Service {
                host,
                entry,
                endpoints: endpoints.clone(),
            });
        }
    }
    services
}

fn inline(entry: &ServiceEntry) -> &[Workload] {
    match &entry.endpoints {
        Endpoints::Inline(endpoints) => endpoints,
        Endpoints::Selector(_) | Endpoints::None => &[],
    }
}
