//! Resources as written, parsed into values that cannot be wrong.
//!
//! Owns the shape of what [`load`](crate::policy::load::load) returns; the compiler reads it and never looks at text again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    policy::Mode,
    registry::{
        Place, ResourceName,
        service::{ExportTo, ServiceEntry, Workload},
    },
};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct Placed<T> {
    /// What was written.
    pub value: T,
    /// Where.
    pub place: Place,
}

/// The MeshPolicy named `default`: the effective mode of its peers (policy.md 1.2).
#[derive(Clone, Debug)]
pub struct MeshPolicy {
    /// The resource itself.
    pub resource: ResourceName,
    /// The place is that of the mode where one is written, else of `mtls`, `peers`, `spec` or the name: the innermost there is.
    pub mode: Placed<Mode>,
}

/// The tls block of a trafficPolicy.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// What the client must do.
    pub mode: ClientMode,
    /// Identities that may answer, instead of those of the registry. None: absent, or an empty list.
    pub subject_alt_names: Option<BTreeSet<Arc<str>>>,
    /// Of `mode`, or of `tls` where the mode is absent.
    pub place: Place,
}

/// The TLS modes of a DestinationRule that packets can follow.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientMode {
    /// Plaintext; never silently upgraded.
    Disable,
    /// Mutual TLS with the workload's identity; never silently downgraded.
    IstioMutual,
}

/// One portLevelSettings entry.
#[derive(Clone, Debug)]
pub struct PortPolicy {
    /// The service port.
    pub port: u16,
    /// None means unset, not inherited from the rule (policy.md 3.6).
    pub tls: Option<ClientTls>,
}

/// The trafficPolicy of a DestinationRule.
#[derive(Clone, Debug)]
pub struct TrafficPolicy {
    /// None: unset.
    pub tls: Option<ClientTls>,
    /// In the order of the text, each port once.
    pub ports: Vec<PortPolicy>,
}

/// What clients must use toward a host.
#[derive(Clone, Debug)]
pub struct DestinationRule {
    /// The resource itself.
    pub resource: ResourceName,
    /// Resolved to a full name (policy.md 3.1), lower case; `*`, `*` with a suffix, IP address or FQDN.
    pub host: Placed<Arc<str>>,
    /// Clients of which namespaces see it. With a workload selector: the own one only.
    pub export_to: ExportTo,
    /// Labels of client workloads; None: all.
    pub workload_selector: Option<BTreeMap<Arc<str>, Arc<str>>>,
    /// None: absent.
    pub traffic_policy: Option<TrafficPolicy>,
}

/// Everything the files declare, each kind in the order of policy.md 0.2.
#[derive(Clone, Debug, Default)]
pub struct Resources {
    /// At most one, since its name is fixed.
    pub mesh_policy: Option<MeshPolicy>,
    /// Oldest first, then by name and namespace.
    pub destination_rules: Vec<DestinationRule>,
    /// Oldest first, then by name and namespace.
    pub service_entries: Vec<ServiceEntry>,
    /// WorkloadEntries only; inline endpoints stay in their ServiceEntry.
    pub workloads: Vec<Workload>,
}
