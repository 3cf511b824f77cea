//! What stands in the registry's tables: workloads and services, each once.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    registry::{
        Place, ResourceName,
        service::{ExportTo, Location, Resolution, ServicePort},
    },
    spiffe::SpiffeId,
};

/// The workload that an address belongs to: what all declarations of the address say together.
#[derive(Clone, Debug)]
#[repr(C, align(64))] // what decisions read stands in the first line of the cache
pub struct RegisteredWorkload {
    /// Its identity, `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`; `None` where no declaration names a service account.
    pub identity: Option<SpiffeId>,
    /// Where the daemon that serves it is reached.
    pub gateway: SocketAddr,
    /// Its place among [`Registry::workloads`](super::Registry::workloads), for tables beside the registry.
    pub number: usize,
    /// Its host runs a daemon.
    pub mesh_capable: bool,
    /// It is served by this host's daemon.
    pub is_local: bool,
    /// Its address; no other workload has it.
    pub address: IpAddr,
    /// The namespace of its identity.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// The first declaration.
    pub resource: ResourceName,
    /// Where the first declaration's address stands.
    pub place: Place,
    /// This host has the key of its identity. A workload elsewhere may share it, and one that is here is not local while
    /// the host's addresses are missing.
    pub is_held: bool,
}

/// One endpoint of a [`Service`].
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its address, which is also that of a [`RegisteredWorkload`].
    pub address: IpAddr,
    /// Its port for each port of the service, in the service's order.
    pub ports: Vec<u16>,
}

/// One host of a ServiceEntry.
#[derive(Clone, Debug)]
#[repr(C, align(64))] // as above
pub struct Service {
    /// Its place among [`Registry::services`](super::Registry::services).
    pub number: usize,
    /// Whether it takes part in mTLS inference.
    pub location: Location,
    /// How a destination address becomes an endpoint.
    pub resolution: Resolution,
    /// Host name, lower case; may begin with `*`.
    pub host: Arc<str>,
    /// Ports, as clients of a service address see them.
    pub ports: Vec<ServicePort>,
    /// Its endpoints, in the order of their declaration.
    pub endpoints: Vec<Endpoint>,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Virtual addresses and networks.
    pub addresses: Vec<IpNetwork>,
    /// Additional identities that may answer for it: the subjectAltNames that are SPIFFE IDs.
    pub subject_alt_names: Vec<SpiffeId>,
    /// The ServiceEntry.
    pub resource: ResourceName,
    /// Where its name stands.
    pub place: Place,
}

impl Service {
    /// The namespace of the ServiceEntry.
    pub const fn namespace(&self) -> &Arc<str> {
        &self.resource.namespace
    }

    /// A client of `namespace` may see it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.export_to.includes(namespace)
    }

    /// The port with this service port number.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// `address` is one of the service's own, or in one of its networks.
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses
            .iter()
            .any(|network| network.contains(address))
    }

    /// The endpoint at `address`.
    pub fn endpoint(&self, address: IpAddr) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.address == address)
    }

    /// The service port behind an endpoint's own port; of several the first.
    pub fn port_of_endpoint(&self, address: IpAddr, number: u16) -> Option<&ServicePort> {
        self.ports_of_endpoint(address, number).next()
    }

    /// Every service port behind an endpoint's own port.
    pub fn ports_of_endpoint(
        &self,
        address: IpAddr,
        number: u16,
    ) -> impl Iterator<Item = &ServicePort> {
        let endpoint = self.endpoint(address).into_iter();
        let ports = endpoint.flat_map(|endpoint| self.ports.iter().zip(&endpoint.ports));
        ports
            .filter(move |(_, own)| **own == number)
            .map(|(port, _)| port)
    }
}
