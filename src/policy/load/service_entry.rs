//! ServiceEntry: hosts, addresses, ports and endpoints of a service (policy.md 4.1, 4.5).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    head::{Head, SERVICE_ENTRY},
    names::{is_dns_label, network},
    read::Map,
    report::Report,
    suggest::{Quoted, did_you_mean},
    tree::{Mark, Node, Value},
    workload_entry::endpoint,
};
use crate::{
    policy::{
        MeshSettings,
        diagnostic::{Diagnostic, codes},
    },
    registry::service::{Endpoints, Location, Resolution, ServiceEntry, ServicePort, Workload},
};

const SPEC: &[&str] = &[
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
];
/// How many port names a misspelt one is compared with.
const MAX_CANDIDATES: usize = 16;
const PORT: &[&str] = &["number", "name", "protocol", "targetPort"];
/// Protocols of Istio, in its capitals. The first ones carry a name on which a proxy can tell hosts apart.
const NAMED_PROTOCOLS: &[&str] = &[
    "HTTP",
    "HTTP2",
    "HTTP_PROXY",
    "GRPC",
    "GRPC-WEB",
    "HTTPS",
    "TLS",
];
const LOCATIONS: &[(&str, Location)] = &[
    ("MESH_EXTERNAL", Location::MeshExternal),
    ("MESH_INTERNAL", Location::MeshInternal),
];
const OTHER_PROTOCOLS: &[&str] = &["TCP", "UDP", "MONGO", "MYSQL", "REDIS"];

/// Reads the spec of a ServiceEntry.
pub(super) fn read(
    node: &Node<'_>,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<ServiceEntry> {
    let spec = report.map(node, SERVICE_ENTRY.spec, SPEC)?;
    let named = report.required(&spec, "hosts");
    let hosts = named.map(|node| hosts(node, report));
    let addresses = spec.get("addresses").map(|node| addresses(node, report));
    let ports = spec
        .get("ports")
        .map(|node| ports(node, report))
        .unwrap_or_default();
    let location = match spec.get("location") {
        Some(node) => report.choice(node, "location", LOCATIONS),
        None => Some(Location::MeshExternal),
    };
    let resolution = match spec.get("resolution") {
        Some(node) => resolution(node, report),
        None => Some(Resolution::None),
    };
    let endpoints = endpoints(&spec, &ports, head, mesh, report);
    let export_to = report.export_to(spec.get("exportTo"), &head.resource.namespace, true);
    let names = spec.get("subjectAltNames");
    let names = names.map(|node| report.subject_alt_names(node));
    let entry = ServiceEntry {
        resource: head.resource.clone(),
        place: report.place(head.name_mark),
        hosts: hosts.unwrap_or_default(),
        addresses: addresses.unwrap_or_default(),
        ports,
        location: location?,
        resolution: resolution?,
        endpoints,
        export_to,
        subject_alt_names: names.unwrap_or_default(),
    };
    check_fields_together(&entry, &spec, report);
    Some(entry)
}

fn hosts(node: &Node<'_>, report: &mut Report<'_>) -> Vec<Arc<str>> {
    let nodes = report.list(node, "hosts");
    if nodes.is_empty() {
        report.add(
            node.mark,
            Diagnostic::new(&codes::EMPTY, "a ServiceEntry needs at least one host"),
        );
    }
    let mut seen = BTreeSet::new();
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for node in nodes {
        if let Some(host) = report.host(node) {
            check_wildcard(&host, node, report);
            let fresh = seen.insert(host.clone());
            twice(fresh, "host", &host, node.mark, report);
            hosts.push(host.into());
        }
    }
    hosts
}

fn check_wildcard(host: &str, node: &Node<'_>, report: &mut Report<'_>) {
    if host == "*" {
        let message = "the host `*` of a ServiceEntry would be every host";
        let found = Diagnostic::new(&codes::BAD_HOST, message);
        report.add(
            node.mark,
            found.with_label("expected a DNS name or `*.domain`"),
        );
    } else if host.starts_with('*') && !host.starts_with("*.") {
        let message = format!("the wildcard {} replaces part of a label", Quoted(host));
        let found = Diagnostic::new(&codes::PARTIAL_WILDCARD, message);
        report.add(
            node.mark,
            found.with_help("a wildcard is a plain suffix; `*.domain` is the usual form"),
        );
    }
}

fn addresses(node: &Node<'_>, report: &mut Report<'_>) -> Vec<IpNetwork> {
    let mut networks = Vec::new();
    for (text, node) in report.texts(node, "addresses") {
        match network(text) {
            Ok(network) => networks.push(network),
            Err(expected) => {
                let found = Diagnostic::new(
                    &codes::BAD_ADDRESS,
                    format!("{} is not a usable address", Quoted(text)),
                );
                report.add(node.mark, found.with_label(expected));
            }
        }
    }
    networks
}

fn ports(node: &Node<'_>, report: &mut Report<'_>) -> Vec<ServicePort> {
    let mut numbers = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut ports = Vec::new();
    for node in report.list(node, "ports") {
        let Some((port, number, name)) = port(node, report) else {
            continue;
        };
        let fresh = numbers.insert(port.number);
        twice(
            fresh,
            "port number",
            &port.number.to_string(),
            number,
            report,
        );
        let fresh = names.insert(Arc::clone(&port.name));
        twice(fresh, "port name", &port.name, name, report);
        ports.push(port);
    }
    ports
}

/// A port, and where its number and name stand.
fn port(node: &Node<'_>, report: &mut Report<'_>) -> Option<(ServicePort, Mark, Mark)> {
    let fields = report.map(node, "a port", PORT)?;
    let number_node = report.required(&fields, "number");
    let number = number_node.and_then(|node| report.port(node, "port"));
    let name_node = report.required(&fields, "name");
    let name = name_node.and_then(|node| report.name(node, "port name", is_dns_label));
    let protocol = fields
        .get("protocol")
        .and_then(|node| protocol(node, report));
    let target_port = fields.get("targetPort");
    let target_port = target_port.and_then(|node| report.port(node, "targetPort"));
    let port = ServicePort {
        number: number?,
        name: name?.into(),
        protocol: protocol.unwrap_or_default().into(),
        target_port,
    };
    Some((port, number_node?.mark, name_node?.mark))
}

fn twice(fresh: bool, what: &str, text: &str, mark: Mark, report: &mut Report<'_>) {
    if !fresh {
        let message = format!("the {what} {} stands twice", Quoted(text));
        report.add(mark, Diagnostic::new(&codes::DUPLICATE_ENTRY, message));
    }
}

/// A protocol in Istio's capitals; an empty one is none.
fn protocol(node: &Node<'_>, report: &mut Report<'_>) -> Option<String> {
    let text = report.text(node, "protocol")?;
    let protocol = text.to_ascii_uppercase();
    let known: Vec<&str> = NAMED_PROTOCOLS
        .iter()
        .chain(OTHER_PROTOCOLS)
        .copied()
        .collect();
    if !text.is_empty() && !known.contains(&protocol.as_str()) {
        let mut found = Diagnostic::new(
            &codes::UNKNOWN_VALUE,
            format!("unknown protocol {}", Quoted(text)),
        )
        .with_label("expected TCP, UDP, TLS, HTTP or another of Istio");
        found.help = did_you_mean(text, &known);
        report.add(node.mark, found);
        return None;
    }
    Some(protocol)
}

fn resolution(node: &Node<'_>, report: &mut Report<'_>) -> Option<Resolution> {
    let resolutions = [
        ("NONE", Some(Resolution::None)),
        ("STATIC", Some(Resolution::Static)),
        ("DNS", None),
        ("DNS_ROUND_ROBIN", None),
        ("DYNAMIC_DNS", None),
    ];
    let resolution = report.choice(node, "resolution", &resolutions)?;
    if resolution.is_none() {
        let found = Diagnostic::new(&codes::RESOLUTION, "resolution by DNS is not supported")
            .with_label("expected STATIC or NONE");
        report.add(
            node.mark,
            found.with_help("name the addresses as endpoints and use STATIC"),
        );
    }
    resolution
}

fn endpoints(
    spec: &Map<'_, '_>,
    ports: &[ServicePort],
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Endpoints {
    if let Some(node) = spec.get("workloadSelector") {
        report.on_key(spec, "endpoints", || {
            let message = "`endpoints` and `workloadSelector` exclude each other";
            Diagnostic::new(&codes::CONTRADICTION, message).with_label("remove one of the two")
        });
        return selector(node, report);
    }
    let nodes = spec
        .get("endpoints")
        .map_or(&[][..], |node| report.list(node, "endpoints"));
    if nodes.is_empty() {
        return Endpoints::None;
    }
    let names: BTreeSet<&str> = ports.iter().map(|port| &*port.name).collect();
    let mut workloads: Vec<Workload> = Vec::new();
    for node in nodes {
        check_port_names(node, &names, report);
        workloads.extend(endpoint(node, "an endpoint", head, mesh, report));
    }
    Endpoints::Inline(workloads)
}

/// Every port that an endpoint names must be one of the service.
fn check_port_names(endpoint: &Node<'_>, names: &BTreeSet<&str>, report: &mut Report<'_>) {
    let Value::Map(fields) = &endpoint.value else {
        return;
    };
    let ports = fields.iter().find(|entry| entry.key == "ports");
    let Some(Value::Map(entries)) = ports.map(|entry| &entry.node.value) else {
        return;
    };
    let candidates: Vec<&str> = names.iter().copied().take(MAX_CANDIDATES).collect();
    for entry in entries
        .iter()
        .filter(|entry| !names.contains(entry.key.as_ref()))
    {
        let message = format!("the service has no port named {}", Quoted(&entry.key));
        let mut found = Diagnostic::new(&codes::UNKNOWN_PORT_NAME, message);
        found.help = did_you_mean(&entry.key, &candidates);
        report.add(entry.key_mark, found);
    }
}

fn selector(node: &Node<'_>, report: &mut Report<'_>) -> Endpoints {
    let Some(selector) = report.map(node, "workloadSelector", &["labels"]) else {
        return Endpoints::None;
    };
    let labels: BTreeMap<_, _> = selector
        .get("labels")
        .map(|node| report.labels(node, "labels"))
        .unwrap_or_default();
    if labels.is_empty() {
        let found = Diagnostic::new(
            &codes::EMPTY_SELECTOR,
            "a workloadSelector without labels selects nothing",
        );
        report.add(node.mark, found.with_label("expected `labels`"));
        return Endpoints::None;
    }
    Endpoints::Selector(labels)
}

fn check_fields_together(entry: &ServiceEntry, spec: &Map<'_, '_>, report: &mut Report<'_>) {
    if entry.resolution == Resolution::None {
        check_unresolved(entry, spec, report);
        return;
    }
    let has_nameless = |port: &&ServicePort| !NAMED_PROTOCOLS.contains(&&*port.protocol);
    let nameless = entry.ports.iter().find(has_nameless);
    if let Some(port) = nameless.filter(|_| entry.hosts.len() > 1) {
        let message = format!(
            "port {} of several hosts cannot be told apart by its protocol",
            port.number
        );
        let found = Diagnostic::new(&codes::CONTRADICTION, message).with_label("expected one host");
        report.on_key(spec, "hosts", || {
            found.with_help("write one ServiceEntry for each host")
        });
    }
}

/// With resolution NONE the addresses are all there is.
fn check_unresolved(entry: &ServiceEntry, spec: &Map<'_, '_>, report: &mut Report<'_>) {
    let addresses = spec.get("addresses");
    if addresses.is_none_or(|node| matches!(&node.value, Value::Seq(list) if list.is_empty())) {
        let message = "resolution NONE without addresses would take every address";
        let found = Diagnostic::new(&codes::CONTRADICTION, message)
            .with_label("expected `addresses` as well")
            .with_help("name the addresses, or use STATIC with endpoints");
        let mark = spec.get("resolution").map_or(spec.mark, |node| node.mark);
        report.add(mark, found);
    }
    if matches!(entry.endpoints, Endpoints::Inline(_)) {
        let found = Diagnostic::new(&codes::CONTRADICTION, "resolution NONE has no endpoints");
        report.on_key(spec, "endpoints", || {
            found.with_label("expected `resolution: STATIC` with these")
        });
    }
    let message = "`workloadSelector` has no effect with resolution NONE";
    report.on_key(spec, "workloadSelector", || {
        Diagnostic::new(&codes::NOT_ENFORCED, message)
    });
}
