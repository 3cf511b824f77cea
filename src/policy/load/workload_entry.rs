//! WorkloadEntry, and the inline endpoints of a ServiceEntry, which have the same fields (policy.md 4.2, 4.5).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    head::{GATEWAY, Head, WORKLOAD_ENTRY},
    names::{gateway, host_address, is_dns_label},
    read::Map,
    report::Report,
    suggest::Quoted,
    tree::{Node, Value},
};
use crate::{
    policy::{
        MeshSettings,
        diagnostic::{Diagnostic, codes},
    },
    registry::service::Workload,
    spiffe::SpiffeId,
};

const SPEC: &[&str] = &[
    "address",
    "ports",
    "labels",
    "network",
    "locality",
    "weight",
    "serviceAccount",
];
/// The label by which a workload says whether it speaks mutual TLS.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// Reads a WorkloadEntry. Its labels are those of metadata over those of spec.
pub(super) fn read(
    node: &Node<'_>,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Workload> {
    let gateway = head.gateway.map(|(text, node)| {
        let gateway = gateway(text);
        if gateway.is_none() {
            let message = format!("{} is not a gateway", Quoted(text));
            let found = Diagnostic::new(&codes::BAD_GATEWAY, message)
                .with_label("expected IP, IP:port or [IPv6]:port");
            report.add(
                node.mark,
                found.with_help(format!(
                    "{GATEWAY} is where the daemon of the workload's host is reached"
                )),
            );
        }
        gateway
    });
    let mut workload = endpoint(node, WORKLOAD_ENTRY.spec, head, mesh, report)?;
    workload.gateway = gateway.flatten();
    workload.labels.extend(head.labels.clone());
    workload.mesh_capable = is_mesh_capable(&workload);
    Some(workload)
}

/// Reads the fields that both have; the namespace is that of the resource.
pub(super) fn endpoint(
    node: &Node<'_>,
    what: &'static str,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Workload> {
    let fields = report.map(node, what, SPEC)?;
    let address = report.required(&fields, "address");
    let ports = fields.get("ports").map(|node| ports(node, report));
    let labels = fields
        .get("labels")
        .map(|node| report.labels(node, "labels"));
    check_unused(&fields, report);
    let account = fields.get("serviceAccount");
    let service_account = account.and_then(|node| service_account(node, head, mesh, report));
    let address = address?;
    let mut workload = Workload {
        resource: head.resource.clone(),
        place: report.place(address.mark),
        address: ip(address, report)?,
        ports: ports.unwrap_or_default(),
        labels: labels.unwrap_or_default(),
        namespace: head.resource.namespace.clone(),
        service_account,
        gateway: None,
        mesh_capable: false,
    };
    workload.mesh_capable = is_mesh_capable(&workload);
    Some(workload)
}

/// Fields that mean nothing between two hosts, but must be of their type.
fn check_unused(fields: &Map<'_, '_>, report: &mut Report<'_>) {
    for key in ["network", "locality"] {
        if let Some(node) = fields.get(key) {
            report.text(node, key);
        }
    }
    if let Some(node) = fields.get("weight") {
        report.integer(node, "weight", 0, u32::MAX);
    }
}

fn ip(node: &Node<'_>, report: &mut Report<'_>) -> Option<IpAddr> {
    let text = report.filled_text(node, "address")?;
    match host_address(text) {
        Ok(address) => Some(address),
        Err(expected) => {
            let found = Diagnostic::new(
                &codes::BAD_ADDRESS,
                format!("{} is not the address of a workload", Quoted(text)),
            );
            let mut found = found.with_label(expected);
            found.help = text
                .starts_with("unix:")
                .then(|| "unix sockets do not cross a network".into());
            report.add(node.mark, found);
            None
        }
    }
}

fn ports(node: &Node<'_>, report: &mut Report<'_>) -> BTreeMap<Arc<str>, u16> {
    let mut ports = BTreeMap::new();
    let Value::Map(entries) = &node.value else {
        report.wrong_type(node, "ports", "a map of port names to numbers");
        return ports;
    };
    for entry in entries {
        if !is_dns_label(&entry.key) {
            report.bad_name(&entry.key, "port name", entry.key_mark);
        }
        if let Some(number) = report.port(&entry.node, "port") {
            ports.insert(entry.key.as_ref().into(), number);
        }
    }
    ports
}

/// An account that makes a SPIFFE ID together with namespace and trust domain. Empty is absent.
fn service_account(
    node: &Node<'_>,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Arc<str>> {
    let text = report
        .text(node, "serviceAccount")
        .filter(|text| !text.is_empty())?;
    if let Err(error) =
        SpiffeId::for_service_account(&mesh.trust_domain, &head.resource.namespace, text)
    {
        let message = format!(
            "the service account {} makes no SPIFFE ID: {error}",
            Quoted(text)
        );
        report.add(
            node.mark,
            Diagnostic::new(&codes::BAD_NAME, message).with_label("expected one path segment"),
        );
        return None;
    }
    Some(text.into())
}

fn is_mesh_capable(workload: &Workload) -> bool {
    match workload.labels.get(TLS_MODE_LABEL) {
        Some(mode) => &**mode == "istio",
        None => workload.service_account.is_some(),
    }
}
