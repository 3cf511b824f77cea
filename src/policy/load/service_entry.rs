//! ServiceEntry: hosts, addresses, ports and endpoints of a service (policy.md 4.1, 4.5).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    head::{Head, SERVICE_ENTRY},
    names::network,
    read::Map,
    report::Report,
    suggest::{Quoted, closest, did_you_mean},
    tree::{Mark, Node, Value},
    workload_entry::{bad_port_name, endpoint},
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
const OTHER_PROTOCOLS: &[&str] = &["TCP", "UDP", "MONGO", "MYSQL", "REDIS"];

/// Reads the spec of a ServiceEntry.
pub(super) fn read(
    node: &Node<'_>,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<ServiceEntry> {
    let spec = report.map(node, SERVICE_ENTRY.spec, SPEC)?;
    let hosts = report
        .required(&spec, "hosts")
        .map(|node| hosts(node, report))
        .unwrap_or_default();
    let addresses = spec
        .get("addresses")
        .map(|node| addresses(node, report))
        .unwrap_or_default();
    let ports = spec
        .get("ports")
        .map(|node| ports(node, report))
        .unwrap_or_default();
    let locations = [
        ("MESH_EXTERNAL", Location::MeshExternal),
        ("MESH_INTERNAL", Location::MeshInternal),
    ];
    let location = match spec.get("location") {
        Some(node) => report.choice(node, "location", &locations),
        None => Some(Location::MeshExternal),
    };
    let resolution = match spec.get("resolution") {
        Some(node) => resolution(node, report),
        None => Some(Resolution::None),
    };
    let endpoints = endpoints(&spec, &ports, head, mesh, report);
    let export_to = report.export_to(spec.get("exportTo"), &head.resource.namespace, true);
    let subject_alt_names = spec
        .get("subjectAltNames")
        .map(|node| report.subject_alt_names(node));
    let entry = ServiceEntry {
        resource: head.resource.clone(),
        place: report.place(head.name_mark),
        hosts,
        addresses,
        ports,
        location: location?,
        resolution: resolution?,
        endpoints,
        export_to,
        subject_alt_names: subject_alt_names.unwrap_or_default(),
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
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for node in nodes {
        let Some(host) = report.host(node) else {
            continue;
        };
        if host == "*" {
            let found = Diagnostic::new(
                &codes::BAD_HOST,
                "the host `*` of a ServiceEntry would be every host",
            );
            report.add(
                node.mark,
                found.with_label("expected a DNS name or `*.domain`"),
            );
        } else if host.starts_with('*') && !host.starts_with("*.") {
            let message = format!("the wildcard {} replaces part of a label", Quoted(&host));
            let found = Diagnostic::new(&codes::PARTIAL_WILDCARD, message);
            report.add(
                node.mark,
                found.with_help("a wildcard is a plain suffix; `*.domain` is the usual form"),
            );
        }
        if hosts.iter().any(|known| **known == *host) {
            let found = Diagnostic::new(
                &codes::DUPLICATE_ENTRY,
                format!("the host {} stands twice", Quoted(&host)),
            );
            report.add(node.mark, found);
        }
        hosts.push(host.into());
    }
    hosts
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
        let Some(fields) = report.map(node, "a port", PORT) else {
            continue;
        };
        let number_node = report.required(&fields, "number");
        let number = number_node.and_then(|node| report.port(node, "port"));
        let name_node = report.required(&fields, "name");
        let name = name_node.and_then(|node| report.filled_text(node, "port name"));
        let protocol = fields
            .get("protocol")
            .and_then(|node| protocol(node, report))
            .unwrap_or_default();
        let target_port = fields
            .get("targetPort")
            .and_then(|node| report.port(node, "targetPort"));
        let (Some(number), Some(number_node), Some(name), Some(name_node)) =
            (number, number_node, name, name_node)
        else {
            continue;
        };
        bad_port_name(name, name_node.mark, report);
        twice(
            numbers.insert(number),
            "port number",
            &number.to_string(),
            number_node.mark,
            report,
        );
        twice(
            names.insert(name),
            "port name",
            name,
            name_node.mark,
            report,
        );
        ports.push(ServicePort {
            number,
            name: name.into(),
            protocol: protocol.into(),
            target_port,
        });
    }
    ports
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
    let mut workloads: Vec<Workload> = Vec::new();
    for node in nodes {
        check_port_names(node, ports, report);
        workloads.extend(endpoint(node, "an endpoint", head, mesh, report));
    }
    Endpoints::Inline(workloads)
}

/// Every port that an endpoint names must be one of the service.
fn check_port_names(endpoint: &Node<'_>, ports: &[ServicePort], report: &mut Report<'_>) {
    let names: Vec<&str> = ports.iter().map(|port| &*port.name).collect();
    let Value::Map(fields) = &endpoint.value else {
        return;
    };
    let Some(Value::Map(entries)) = fields
        .iter()
        .find(|entry| entry.key == "ports")
        .map(|entry| &entry.node.value)
    else {
        return;
    };
    for entry in entries
        .iter()
        .filter(|entry| !names.contains(&entry.key.as_ref()))
    {
        let message = format!("the service has no port named {}", Quoted(&entry.key));
        let mut found = Diagnostic::new(&codes::UNKNOWN_PORT_NAME, message);
        found.help = closest(&entry.key, &names).map(|name| format!("did you mean `{name}`?"));
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
    let resolution = spec.get("resolution").map_or(spec.mark, |node| node.mark);
    if entry.resolution == Resolution::None {
        if spec
            .get("addresses")
            .is_none_or(|node| matches!(&node.value, Value::Seq(list) if list.is_empty()))
        {
            let message = "resolution NONE without addresses would take every address";
            let found = Diagnostic::new(&codes::CONTRADICTION, message)
                .with_label("expected `addresses` as well");
            report.add(
                resolution,
                found.with_help("name the addresses, or use STATIC with endpoints"),
            );
        }
        if matches!(entry.endpoints, Endpoints::Inline(_)) {
            report.on_key(spec, "endpoints", || {
                let found =
                    Diagnostic::new(&codes::CONTRADICTION, "resolution NONE has no endpoints");
                found.with_label("expected `resolution: STATIC` with these")
            });
        }
        report.on_key(spec, "workloadSelector", || {
            Diagnostic::new(
                &codes::NOT_ENFORCED,
                "`workloadSelector` has no effect with resolution NONE",
            )
        });
    }
    let has_nameless = |port: &&ServicePort| !NAMED_PROTOCOLS.contains(&&*port.protocol);
    if entry.hosts.len() > 1
        && entry.resolution != Resolution::None
        && let Some(port) = entry.ports.iter().find(has_nameless)
    {
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
