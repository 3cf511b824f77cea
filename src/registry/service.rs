//! Services, endpoints and workloads as ServiceEntry and WorkloadEntry declare them: values that the loader has
//! validated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::registry::{Place, ResourceName};

/// One WorkloadEntry or one inline endpoint of a ServiceEntry.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The WorkloadEntry, or the ServiceEntry for an inline endpoint.
    pub resource: ResourceName,
    /// Where its `address` stands.
    pub place: Place,
    /// Its address.
    pub address: IpAddr,
    /// Port name to number, where it differs from the service's.
    pub ports: BTreeMap<Arc<str>, u16>,
    /// Its labels.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// The namespace of its identity.
    pub namespace: Arc<str>,
    /// The account of its identity.
    pub service_account: Option<Arc<str>>,
    /// Annotation `identun.io/gateway`: IP or IP:port of the daemon that serves the workload. None: its own address.
    pub gateway: Option<SocketAddr>,
    /// The label `security.istio.io/tlsMode` decides, else: has a service account (policy.md 4.2).
    pub mesh_capable: bool,
}

/// Whether a service takes part in mTLS inference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Location {
    /// It does not: without a rule it is passed through.
    MeshExternal,
    /// It does.
    MeshInternal,
}

/// How a destination address becomes an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resolution {
    /// The original destination is the endpoint.
    None,
    /// The endpoints are those declared.
    Static,
}

/// One port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// The port that clients of a service address use.
    pub number: u16,
    /// Its name, unique within the service.
    pub name: Arc<str>,
    /// Upper case; empty if absent.
    pub protocol: Arc<str>,
    /// The endpoints' port, where it differs.
    pub target_port: Option<u16>,
}

/// Who may see something (`exportTo`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ExportTo {
    /// Absent, empty or `*`.
    All,
    /// These namespaces; `.` is already replaced by the own one.
    Namespaces(BTreeSet<Arc<str>>),
    /// `~`.
    Nobody,
}

impl ExportTo {
    /// Clients of `namespace` may see it.
    pub fn includes(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(names) => names.contains(namespace),
            Self::Nobody => false,
        }
    }
}

/// Endpoints of a ServiceEntry.
#[derive(Clone, Debug)]
pub enum Endpoints {
    /// They stand in the ServiceEntry.
    Inline(Vec<Workload>),
    /// Labels select WorkloadEntries of the same namespace.
    Selector(BTreeMap<Arc<str>, Arc<str>>),
    /// It has none.
    None,
}

/// One ServiceEntry.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    /// Its name.
    pub resource: ResourceName,
    /// Where its `metadata.name` stands.
    pub place: Place,
    /// Host names, lower case; each is a service of its own.
    pub hosts: Vec<Arc<str>>,
    /// Virtual addresses and networks.
    pub addresses: Vec<IpNetwork>,
    /// Ports, with unique names and numbers.
    pub ports: Vec<ServicePort>,
    /// Whether it takes part in mTLS inference.
    pub location: Location,
    /// How a destination address becomes an endpoint.
    pub resolution: Resolution,
    /// Its endpoints.
    pub endpoints: Endpoints,
    /// Who sees it.
    pub export_to: ExportTo,
    /// Additional identities, verbatim.
    pub subject_alt_names: Vec<Arc<str>>,
}
