//! Small meshes in which everything can happen: few names, few addresses, few ports, so that rules meet.

mod authorization;
mod modes;
mod rules;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use identun::{
    policy::{
        HostFacts, MeshSettings, Mode, Question, Resources,
        document::Labels,
        settings::{UnknownDestination, UnknownSource},
    },
    registry::{
        Place, ResourceName,
        service::{Endpoints, ExportTo, Location, Resolution, ServiceEntry, ServicePort, Workload},
    },
    wire::flow::protocol::{ICMP, TCP, UDP, has_ports},
};

use super::choices::Choices;

/// What one host decides with.
#[derive(Clone, Debug)]
pub(crate) struct Mesh {
    pub(crate) resources: Resources,
    pub(crate) mesh: MeshSettings,
    pub(crate) facts: HostFacts,
}

pub(super) const ROOT: &str = "root";
pub(super) const NAMESPACES: &[&str] = &["a", "b", ROOT];
pub(super) const ACCOUNTS: &[&str] = &["s", "t"];
pub(super) const PORTS: &[u16] = &[80, 90, 8_080, 7_080];
pub(super) const PORT_NAMES: &[&str] = &["http", "tcp", "web"];
pub(super) const ALIASES: &[&str] = &["old", "older"];
const WORKLOADS: &[&str] = &["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2"];
const SERVICE_ADDRESSES: &[&str] = &["10.9.0.1", "10.9.0.2", "fd09::1"];
const NETWORKS: &[&str] = &[
    "10.9.0.0/24",
    "10.0.0.0/24",
    "10.0.0.0/8",
    "fd00::/64",
    "fd09::/64",
];
const ELSEWHERE: &[&str] = &["192.0.2.77", "10.9.0.77", "fd09::77"];
const OURS: &str = "192.0.2.1";
const THEIRS: &str = "192.0.2.2";
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// A mesh and some questions about it.
pub(crate) fn mesh(choices: &mut Choices<'_>, questions: usize) -> (Mesh, Vec<Question>) {
    let hosts = hosts(choices);
    let mut resources = Resources::default();
    for host in &hosts {
        if choices.chance(94) {
            resources.workloads.push(entry(choices, host));
        }
    }
    for index in 0..1 + choices.below(3) {
        let service = service(choices, index, &hosts);
        resources.service_entries.push(service);
    }
    rules::add(choices, &mut resources);
    modes::add(choices, &mut resources);
    authorization::add(choices, &mut resources);
    let mesh = Mesh {
        facts: facts(choices, &hosts, &resources),
        mesh: settings(choices),
        resources,
    };
    let asked = (0..questions)
        .map(|_| question(choices, &mesh, &hosts))
        .collect();
    (mesh, asked)
}

/// A workload as it is, whatever of it is declared where.
#[derive(Clone, Debug)]
struct Host {
    address: IpAddr,
    namespace: Arc<str>,
    account: Option<Arc<str>>,
    labels: Labels,
    gateway: Option<&'static str>,
    is_ours: bool,
}

fn hosts(choices: &mut Choices<'_>) -> Vec<Host> {
    let mut hosts = Vec::new();
    for (index, address) in WORKLOADS.iter().enumerate() {
        if index >= 2 && !choices.chance(45) {
            continue;
        }
        let mut labels = labels(choices);
        let account = choices.chance(85).then(|| choices.name(ACCOUNTS));
        let is_odd = choices.chance(if account.is_some() { 12 } else { 60 });
        if is_odd {
            let value = if account.is_some() {
                "disabled"
            } else {
                "istio"
            };
            labels.insert(TLS_MODE.into(), value.into());
        }
        let is_ours = index < 2 && choices.chance(if index == 0 { 80 } else { 30 });
        hosts.push(Host {
            address: address.parse().unwrap(),
            namespace: choices.name(&["a", "a", "b", "b", ROOT]),
            account,
            labels,
            gateway: match choices.below(3) {
                _ if is_ours => Some(OURS),
                0 => None,
                _ => Some(THEIRS),
            },
            is_ours,
        });
    }
    hosts
}

/// Some labels; the same pairs again and again.
fn labels(choices: &mut Choices<'_>) -> Labels {
    let mut labels = Labels::new();
    for key in ["app", "tier"] {
        if choices.chance(75) {
            labels.insert(key.into(), choices.name(&["x", "x", "y"]));
        }
    }
    labels
}

/// What a selector asks for.
pub(super) fn selector(choices: &mut Choices<'_>) -> Labels {
    let key = choices.name(&["app", "app", "tier"]);
    let mut labels = Labels::from([(key, choices.name(&["x", "x", "y"]))]);
    if choices.chance(15) {
        labels.insert("tier".into(), choices.name(&["x", "y"]));
    }
    labels
}

fn entry(choices: &mut Choices<'_>, host: &Host) -> Workload {
    let name = host.address.to_string().replace(['.', ':'], "-");
    let resource = resource("WorkloadEntry", &host.namespace, format!("w{name}"));
    declaration(choices, host, resource, host.account.clone())
}

fn declaration(
    choices: &mut Choices<'_>,
    host: &Host,
    resource: ResourceName,
    account: Option<Arc<str>>,
) -> Workload {
    let mut ports = BTreeMap::new();
    if choices.chance(20) {
        ports.insert(Arc::from("http"), *choices.pick(PORTS));
    }
    let mode = host.labels.get(TLS_MODE);
    Workload {
        namespace: Arc::clone(&resource.namespace),
        resource,
        place: place(1),
        address: host.address,
        ports,
        labels: host.labels.clone(),
        mesh_capable: match mode {
            Some(mode) => &**mode == "istio",
            None => account.is_some(),
        },
        service_account: account,
        gateway: host
            .gateway
            .map(|gateway| (gateway.parse::<IpAddr>().unwrap(), 15_008).into()),
    }
}

fn service(choices: &mut Choices<'_>, index: usize, hosts: &[Host]) -> ServiceEntry {
    let namespace = choices.name(&["a", "a", "b", "b", ROOT]);
    let name = format!("s{index}");
    let full = format!("{name}.{namespace}.svc.cluster.local");
    let resource = resource("ServiceEntry", &namespace, name);
    let mut names: Vec<Arc<str>> = vec![match choices.below(8) {
        6 => format!("s{index}.example").into(),
        7 => format!("*.s{index}.example").into(),
        _ => full.into(),
    }];
    if choices.chance(15) {
        names.push(format!("second{index}.{namespace}.svc.cluster.local").into());
    }
    let endpoints = endpoints(choices, &resource, hosts);
    let ports = ports(choices, &endpoints);
    let mut addresses: Vec<&str> = Vec::new();
    if matches!(endpoints, Endpoints::None) || choices.chance(55) {
        addresses = match choices.below(10) {
            0..4 => choices.some(SERVICE_ADDRESSES),
            4..7 => choices.some(WORKLOADS),
            7..9 => choices.some(NETWORKS),
            _ => vec![*choices.pick(SERVICE_ADDRESSES), *choices.pick(NETWORKS)],
        };
    }
    ServiceEntry {
        resource,
        place: place(2),
        hosts: names,
        addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ports,
        location: if choices.chance(20) {
            Location::MeshExternal
        } else {
            Location::MeshInternal
        },
        resolution: if matches!(endpoints, Endpoints::None) {
            Resolution::None
        } else {
            Resolution::Static
        },
        endpoints,
        export_to: match choices.below(12) {
            11 => ExportTo::Nobody,
            10 => export(choices),
            _ => ExportTo::All,
        },
        subject_alt_names: if choices.chance(20) {
            choices.some(&names_of_servers())
        } else {
            Vec::new()
        },
    }
}

fn endpoints(choices: &mut Choices<'_>, service: &ResourceName, hosts: &[Host]) -> Endpoints {
    match choices.below(8) {
        0..4 => Endpoints::Selector(selector(choices)),
        4..7 => {
            let mut inline = Vec::new();
            for host in choices.some(hosts) {
                let is_own = host.namespace == service.namespace && choices.chance(60);
                let account = host.account.clone().filter(|_| is_own);
                inline.push(declaration(choices, &host, service.clone(), account));
            }
            for endpoint in &mut inline {
                endpoint.ports.retain(|name, _| &**name == "http");
            }
            Endpoints::Inline(inline)
        }
        _ => Endpoints::None,
    }
}

fn ports(choices: &mut Choices<'_>, endpoints: &Endpoints) -> Vec<ServicePort> {
    let numbers = choices.some(&PORTS[..3]);
    let mut ports: Vec<_> = numbers
        .iter()
        .zip(PORT_NAMES)
        .map(|(number, name)| ServicePort {
            number: *number,
            name: Arc::from(*name),
            protocol: "HTTP".into(),
            target_port: None,
        })
        .collect();
    for port in &mut ports {
        if !matches!(endpoints, Endpoints::None) && choices.chance(25) {
            port.target_port = Some(*choices.pick(PORTS));
        }
    }
    ports
}

/// What a subjectAltName may say.
pub(super) fn names_of_servers() -> Vec<Arc<str>> {
    let mut names: Vec<Arc<str>> = Vec::new();
    for namespace in &NAMESPACES[..2] {
        for account in ACCOUNTS {
            names.push(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").into());
        }
    }
    names.push("spiffe://old/ns/a/sa/s".into());
    names.push("spiffe://cluster.local/custom".into());
    names.push("server.example".into());
    names
}

/// Some namespaces, not all.
pub(super) fn export(choices: &mut Choices<'_>) -> ExportTo {
    let names = choices.some(NAMESPACES);
    ExportTo::Namespaces(names.into_iter().map(Arc::from).collect())
}

fn facts(choices: &mut Choices<'_>, hosts: &[Host], resources: &Resources) -> HostFacts {
    let mut underlay = BTreeSet::from([OURS.parse().unwrap()]);
    for entry in &resources.service_entries {
        for network in &entry.addresses {
            if network.prefix() == 32 && choices.chance(40) {
                underlay.insert(network.ip());
            }
        }
    }
    let mut identities = BTreeSet::new();
    for host in hosts.iter().filter(|host| host.is_ours) {
        if choices.chance(60) {
            underlay.insert(host.address);
        }
        if let Some(account) = &host.account {
            let id = format!("spiffe://cluster.local/ns/{}/sa/{account}", host.namespace);
            identities.insert(id.parse().unwrap());
        }
    }
    let mut exempt = BTreeSet::new();
    if choices.chance(75) {
        exempt.extend(choices.some(PORTS).into_iter().map(|port| (TCP, port)));
    }
    HostFacts {
        underlay,
        port: 15_008,
        identities,
        exempt,
        forwards: choices.chance(50),
    }
}

fn settings(choices: &mut Choices<'_>) -> MeshSettings {
    let mut settings = MeshSettings {
        root_namespace: ROOT.into(),
        default_mode: *choices.pick(&[Mode::Permissive, Mode::Strict, Mode::Disable]),
        auto_mtls: !choices.chance(25),
        ..MeshSettings::default()
    };
    if choices.chance(50) {
        settings.unknown_destination = UnknownDestination::Pass;
    }
    if choices.chance(25) {
        settings.unknown_source = UnknownSource::Pass;
    }
    if choices.chance(60) {
        let aliases = choices.some(ALIASES);
        settings.trust_domain_aliases = aliases.iter().map(|name| name.parse().unwrap()).collect();
    }
    settings
}

fn question(choices: &mut Choices<'_>, mesh: &Mesh, hosts: &[Host]) -> Question {
    let is_from_outside = choices.chance(25);
    let source = match choices.below(20) {
        0..13 => among(choices, hosts, |host| {
            (host.account.is_some() || host.labels.contains_key(TLS_MODE))
                && !(is_from_outside && host.is_ours)
        }),
        13..14 => among(choices, hosts, |host| !is_from_outside || !host.is_ours),
        14..17 if !is_from_outside => parse(&OURS),
        14..17 => among(choices, hosts, |host| !host.is_ours),
        17..19 => parse(choices.pick(ELSEWHERE)),
        _ => parse(choices.pick(SERVICE_ADDRESSES)),
    };
    let mut destination = source;
    for _ in 0..3 {
        destination = match is_from_outside {
            true => among(choices, hosts, |host| host.is_ours),
            false => self::destination(choices, mesh, hosts),
        };
        if destination.is_ipv4() == source.is_ipv4() {
            break;
        }
    }
    let protocol = *choices.pick(&[TCP, TCP, TCP, TCP, UDP, ICMP]);
    let exempt = mesh.facts.exempt.first();
    let number = match exempt {
        Some((_, port)) if is_from_outside && choices.chance(40) => *port,
        Some(_) | None => port(choices, mesh),
    };
    Question {
        source,
        destination,
        protocol,
        port: (has_ports(protocol) && !choices.chance(5)).then_some(number),
    }
}

fn destination(choices: &mut Choices<'_>, mesh: &Mesh, hosts: &[Host]) -> IpAddr {
    match choices.below(20) {
        0..13 => among(choices, hosts, |_| true),
        13..17 => {
            let entry = choices.pick(&mesh.resources.service_entries);
            let declared = entry.addresses.first().map(|network| network.ip());
            declared.unwrap_or_else(|| parse(choices.pick(SERVICE_ADDRESSES)))
        }
        17..19 => parse(choices.pick(SERVICE_ADDRESSES)),
        _ => parse(choices.pick(ELSEWHERE)),
    }
}

/// Mostly a service's.
fn port(choices: &mut Choices<'_>, mesh: &Mesh) -> u16 {
    match choices.below(10) {
        0..7 => {
            let entry = choices.pick(&mesh.resources.service_entries);
            choices.pick(&entry.ports).number
        }
        7..9 => *choices.pick(PORTS),
        _ => 22,
    }
}

/// A host that is wanted, if there is one.
fn among(choices: &mut Choices<'_>, hosts: &[Host], is_wanted: impl Fn(&Host) -> bool) -> IpAddr {
    let wanted: Vec<_> = hosts.iter().filter(|host| is_wanted(host)).collect();
    match wanted.is_empty() {
        true => choices.pick(hosts).address,
        false => choices.pick(&wanted).address,
    }
}

fn parse(text: &&str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn resource(
    kind: &'static str,
    namespace: &str,
    name: impl Into<Arc<str>>,
) -> ResourceName {
    ResourceName {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

/// A place for what has none.
pub(super) fn place(line: u32) -> Place {
    Place {
        file: "mesh.yaml".into(),
        line,
        column: 1,
    }
}
