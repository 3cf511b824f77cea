//! What `GET /v1/flowlog` answers: the flow log with names, what policy in force says of each flow, and the settings that
//! another policy would meet. Fields are only ever added.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    daemon::{
        clock::unix_millis,
        configuration::Configuration,
        flowlog::{Contents, Entry, FlowLog, Key, Source, Way},
        status::API_VERSION,
    },
    policy::{
        Compiled, HostFacts, MeshSettings, Mode, Question,
        compare::{Side, name_of},
        settings::{L7, UnknownDestination, UnknownSource},
    },
    spiffe::{SpiffeId, TrustDomain},
    wire::flow::protocol,
};

/// The flow log at one moment.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FlowLogView {
    /// [`API_VERSION`].
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    /// `FlowLog`.
    pub kind: String,
    /// Unix milliseconds.
    pub now_ms: u64,
    /// Counts configurations that came into force.
    pub generation: u64,
    /// Entries at most.
    pub capacity: usize,
    /// Entries that made room for later ones.
    pub evicted: u64,
    /// How often the kernel had more to tell of plaintext than could be heard; counts are then at least what was.
    pub losses: u64,
    /// How plaintext becomes known: `events`, `dumps` or `none`.
    pub source: Source,
    /// Why not by events.
    pub trouble: Option<String>,
    /// The policy files in force.
    pub files: Vec<PathBuf>,
    /// Settings of the mesh.
    pub mesh: MeshView,
    /// Facts of the host.
    pub host: HostView,
    /// The latest seen first.
    pub flows: Vec<FlowView>,
}

/// One entry.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct FlowView {
    /// Who opened it.
    pub source: EndView,
    /// Whom it goes to.
    pub destination: EndView,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; absent for protocols without ports.
    pub port: Option<u16>,
    /// How it crossed the network.
    pub way: Way,
    /// `outbound`: opened by a workload of this host; `inbound`: opened to one.
    pub direction: Direction,
    /// That workload is behind this host, not on it.
    pub forwarded: bool,
    /// Why it took its way, when it was decided last.
    pub code: Option<String>,
    /// Unix milliseconds.
    pub first_seen_ms: u64,
    /// Unix milliseconds.
    pub last_seen_ms: u64,
    /// Flows.
    pub connections: u64,
    /// Bytes from source to destination, of flows in tunnels that ended.
    pub bytes_forth: u64,
    /// Bytes back, likewise.
    pub bytes_back: u64,
    /// What policy in force says.
    pub decision: DecisionView,
}

/// Which end of a flow is a workload of this host.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The destination.
    Inbound,
    /// The source.
    Outbound,
}

impl Direction {
    /// Its word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// One end of a flow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EndView {
    /// Its address.
    pub address: IpAddr,
    /// `namespace/account`, the declaration of a workload without account, or a service's host; absent for a stranger.
    pub workload: Option<String>,
    /// Its identity, where the registry gives one.
    pub identity: Option<SpiffeId>,
}

impl EndView {
    /// Its name, or its address.
    pub fn name(&self) -> String {
        let name = self.workload.clone();
        name.unwrap_or_else(|| self.address.to_string())
    }
}

/// How a flow ends.
#[derive(Clone, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct DecisionView {
    /// `MTLS`, `PLAINTEXT`, `REFUSED_BY_CLIENT` or `REFUSED_BY_SERVER`.
    pub outcome: String,
    /// Why, as a code.
    pub code: String,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// The rules that decided, each with its place.
    pub rules: Vec<String>,
}

impl From<Side> for DecisionView {
    fn from(side: Side) -> Self {
        let outcome = serde_json::to_value(side.outcome).unwrap_or_default();
        Self {
            outcome: outcome.as_str().unwrap_or_default().into(),
            code: side.code.as_str().into(),
            reason: side.reason,
            rules: side.rules.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Settings that every host of the mesh has alike.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct MeshView {
    trust_domain: TrustDomain,
    trust_domain_aliases: Vec<TrustDomain>,
    domain: String,
    root_namespace: String,
    default_namespace: String,
    default_mode: Mode,
    auto_mtls: bool,
    unknown_destination: UnknownDestination,
    #[serde(default)]
    unknown_source: UnknownSource,
    l7: L7,
}

impl From<&MeshSettings> for MeshView {
    fn from(mesh: &MeshSettings) -> Self {
        Self {
            trust_domain: mesh.trust_domain.clone(),
            trust_domain_aliases: mesh.trust_domain_aliases.clone(),
            domain: mesh.domain.to_string(),
            root_namespace: mesh.root_namespace.to_string(),
            default_namespace: mesh.default_namespace.to_string(),
            default_mode: mesh.default_mode,
            auto_mtls: mesh.auto_mtls,
            unknown_destination: mesh.unknown_destination,
            unknown_source: mesh.unknown_source,
            l7: mesh.l7,
        }
    }
}

impl From<MeshView> for MeshSettings {
    fn from(view: MeshView) -> Self {
        Self {
            trust_domain: view.trust_domain,
            trust_domain_aliases: view.trust_domain_aliases,
            domain: view.domain.into(),
            root_namespace: view.root_namespace.into(),
            default_namespace: view.default_namespace.into(),
            default_mode: view.default_mode,
            auto_mtls: view.auto_mtls,
            unknown_destination: view.unknown_destination,
            unknown_source: view.unknown_source,
            l7: view.l7,
        }
    }
}

/// What is true of the host.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HostView {
    addresses: BTreeSet<IpAddr>,
    port: u16,
    identities: BTreeSet<SpiffeId>,
    exempt: BTreeSet<(u8, u16)>,
    #[serde(default)]
    forwards: bool,
}

impl From<&HostFacts> for HostView {
    fn from(facts: &HostFacts) -> Self {
        Self {
            addresses: facts.underlay.clone(),
            port: facts.port,
            identities: facts.identities.clone(),
            exempt: facts.exempt.clone(),
            forwards: facts.forwards,
        }
    }
}

impl From<HostView> for HostFacts {
    fn from(view: HostView) -> Self {
        Self {
            underlay: view.addresses,
            port: view.port,
            identities: view.identities,
            exempt: view.exempt,
            forwards: view.forwards,
        }
    }
}

impl FlowLogView {
    /// The log as it is, under the configuration in force.
    pub fn new(log: &FlowLog, active: &Configuration) -> Self {
        let Contents {
            entries,
            evicted,
            losses,
            source,
            trouble,
        } = log.contents();
        let policy = &*active.compiled;
        let flows = entries.iter().map(|(key, entry)| flow(key, entry, policy));
        // The first file is the settings.
        let files = active.files.iter().skip(1).map(|file| absolute(&file.name));
        Self {
            api_version: API_VERSION.into(),
            kind: "FlowLog".into(),
            now_ms: unix_millis(),
            generation: policy.generation(),
            capacity: log.capacity,
            evicted,
            losses,
            source,
            trouble,
            files: files.collect(),
            mesh: MeshView::from(&active.settings.mesh()),
            host: policy.host().into(),
            flows: flows.collect(),
        }
    }
}

impl FlowView {
    /// What policy is asked.
    pub const fn question(&self) -> Question {
        Question {
            source: self.source.address,
            destination: self.destination.address,
            protocol: self.protocol,
            port: self.port,
        }
    }

    /// `tcp/80`, `icmp`.
    pub fn port_name(&self) -> String {
        let name = match self.protocol {
            protocol::TCP => "tcp".into(),
            protocol::UDP => "udp".into(),
            protocol::SCTP => "sctp".into(),
            protocol::ICMP => "icmp".into(),
            protocol::ICMPV6 => "icmpv6".into(),
            number => format!("proto-{number}"),
        };
        match self.port {
            Some(port) => format!("{name}/{port}"),
            None => name,
        }
    }
}

fn flow(key: &Key, entry: &Entry, policy: &Compiled) -> FlowView {
    let question = key.question;
    let outbound = policy.is_local(question.source);
    let (direction, own) = match outbound {
        true => (Direction::Outbound, question.source),
        false => (Direction::Inbound, question.destination),
    };
    FlowView {
        source: end(question.source, policy),
        destination: end(question.destination, policy),
        protocol: question.protocol,
        port: question.port,
        way: key.way,
        direction,
        forwarded: !policy.host().underlay.contains(&own),
        code: entry.code.map(Into::into),
        first_seen_ms: entry.first_seen,
        last_seen_ms: entry.last_seen,
        connections: entry.connections,
        bytes_forth: entry.bytes_forth,
        bytes_back: entry.bytes_back,
        decision: Side::of(policy, &question).into(),
    }
}

fn end(address: IpAddr, policy: &Compiled) -> EndView {
    let registry = policy.registry();
    let workload = registry
        .workload(address)
        .or_else(|| registry.local_workload(address));
    EndView {
        address,
        workload: workload.map(name_of),
        identity: workload.and_then(|workload| workload.identity.clone()),
    }
}

/// Whoever asks may stand elsewhere than the daemon.
fn absolute(name: &str) -> PathBuf {
    std::path::absolute(name).unwrap_or_else(|_| Path::new(name).into())
}
