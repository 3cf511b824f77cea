//! Resources as written, parsed into values that cannot be wrong.
//!
//! Owns the shape of what [`load`](crate::policy::load::load) returns; the compiler reads it and never looks at text again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnetwork::IpNetwork;

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

/// Labels of workloads.
pub type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A Policy of authentication.istio.io/v1alpha1: the mode of services, or of a whole namespace (policy.md 1.3).
#[derive(Clone, Debug)]
pub struct Policy {
    /// The resource itself.
    pub resource: ResourceName,
    /// Where its `metadata.name` stands.
    pub place: Place,
    /// Empty: the whole namespace, and then its name is `default`.
    pub targets: Vec<Target>,
    /// As that of a [`MeshPolicy`].
    pub mode: Placed<Mode>,
}

/// One target of a [`Policy`].
#[derive(Clone, Debug)]
pub struct Target {
    /// The service's full name, NAME.NAMESPACE.svc.DOMAIN, at the place of `name`.
    pub host: Placed<Arc<str>>,
    /// Service ports; empty: all.
    pub ports: Vec<Placed<PortSelector>>,
}

/// A service port, by number or by name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PortSelector {
    /// The port's name.
    Name(Arc<str>),
    /// The port's number.
    Number(u16),
}

/// A PeerAuthentication of security.istio.io: the mode of workloads (policy.md 2).
#[derive(Clone, Debug)]
pub struct PeerAuthentication {
    /// The resource itself.
    pub resource: ResourceName,
    /// Where its `metadata.name` stands.
    pub place: Place,
    /// Never empty; None: no selector, so the namespace, or in the root namespace the mesh.
    pub selector: Option<Labels>,
    /// None: UNSET. The place is that of the mode where one is written, else of `mtls`, else of the name.
    pub mode: Placed<Option<Mode>>,
    /// portLevelMtls, by workload port; None: UNSET. Empty without a selector.
    pub ports: BTreeMap<u16, Placed<Option<Mode>>>,
}

/// What an AuthorizationPolicy does with what it matches.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// It is allowed, and what no ALLOW policy matches is not.
    Allow,
    /// It is told, never enforced.
    Audit,
    /// It is refused, whatever else allows it.
    Deny,
}

/// An AuthorizationPolicy of security.istio.io, at layers 3 and 4 (policy.md 5).
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    /// The resource itself.
    pub resource: ResourceName,
    /// Where its `metadata.name` stands.
    pub place: Place,
    /// Never empty; None: every workload of the namespace, or of the mesh where that is the root namespace.
    pub selector: Option<Labels>,
    /// What it does.
    pub action: Action,
    /// `istio.io/dry-run: "true"`: its matches are told, not enforced.
    pub dry_run: bool,
    /// Any of them matches. An ALLOW policy without rules allows nothing.
    pub rules: Vec<AuthorizationRule>,
}

/// One rule: `from`, `to` and every condition of `when` match.
#[derive(Clone, Debug)]
pub struct AuthorizationRule {
    /// Where its entry of `rules` begins.
    pub place: Place,
    /// Its number in the file, from 1. With `l7: strict-drop` rules may be missing between.
    pub number: usize,
    /// Any of these sources; each matches if all its clauses do, and one without clauses always. Empty: any source.
    pub from: Vec<Vec<Clause>>,
    /// Any of these operations, likewise.
    pub to: Vec<Vec<Clause>>,
    /// All of these.
    pub when: Vec<Clause>,
}

/// One attribute of a connection, and what it must or must not be.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Clause {
    /// A `not` form: none of the values may match.
    pub negated: bool,
    /// The attribute and its values; any of them matches.
    pub test: Test,
}

/// The values of one attribute. Never empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Test {
    /// `when: destination.ip`.
    DestinationIp(Vec<IpNetwork>),
    /// `ports`, `when: destination.port`: of the workload.
    DestinationPort(BTreeSet<u16>),
    /// `namespaces`, `when: source.namespace`: of the peer's identity.
    SourceNamespace(Vec<StringMatch>),
    /// `ipBlocks`, `when: source.ip`.
    SourceIp(Vec<IpNetwork>),
    /// `principals`, `when: source.principal`: TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT.
    SourcePrincipal(Vec<StringMatch>),
    /// `serviceAccounts`, `when: source.serviceAccount`: (namespace, account), in any trust domain.
    SourceServiceAccount(BTreeSet<(Arc<str>, Arc<str>)>),
    /// `trustDomains`, `when: source.trustDomain`.
    SourceTrustDomain(Vec<StringMatch>),
}

/// How a value of a text attribute is compared (policy.md 5.4). Case counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum StringMatch {
    /// Byte for byte.
    Exact(Arc<str>),
    /// `text*`.
    Prefix(Arc<str>),
    /// `*`: there, and not empty.
    Present,
    /// `*text`.
    Suffix(Arc<str>),
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
    pub policies: Vec<Policy>,
    /// Oldest first, then by name and namespace.
    pub peer_authentications: Vec<PeerAuthentication>,
    /// Oldest first, then by name and namespace.
    pub authorization_policies: Vec<AuthorizationPolicy>,
    /// Oldest first, then by name and namespace.
    pub destination_rules: Vec<DestinationRule>,
    /// Oldest first, then by name and namespace.
    pub service_entries: Vec<ServiceEntry>,
    /// WorkloadEntries only; inline endpoints stay in their ServiceEntry.
    pub workloads: Vec<Workload>,
}

impl Resources {
    /// Something says more than who is where.
    pub fn has_policy(&self) -> bool {
        self.mesh_policy.is_some()
            || !self.policies.is_empty()
            || !self.peer_authentications.is_empty()
            || !self.authorization_policies.is_empty()
            || !self.destination_rules.is_empty()
    }
}
