//! WorkloadEntry, and the inline endpoints of a ServiceEntry, which have the same fields (policy.md 4.2, 4.5).

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::{
    head::{GATEWAY, Head, WORKLOAD_ENTRY},
    names::{gateway, host_address, is_dns_label},
    report::Report,
    suggest::Quoted,
    tree::{Mark, Node},
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
    let ports = fields
        .get("ports")
        .map(|node| ports(node, report))
        .unwrap_or_default();
    let labels = fields
        .get("labels")
        .map(|node| report.labels(node, "labels"))
        .unwrap_or_default();
    for key in ["network", "locality"] {
        if let Some(node) = fields.get(key) {
            report.text(node, key);
        }
    }
    if let Some(node) = fields.get("weight") {
        report.integer(node, "weight", 0, u32::MAX);
    }
    let account = fields.get("serviceAccount");
    let service_account = account.and_then(|node| service_account(node, head, mesh, report));
    let address = address?;
    let mut workload = Workload {
        resource: head.resource.clone(),
        place: report.place(address.mark),
        address: ip(address, report)?,
        ports,
        labels,
        namespace: head.resource.namespace.clone(),
        service_account,
        gateway: None,
        mesh_capable: false,
    };
    workload.mesh_capable = is_mesh_capable(&workload);
    Some(workload)
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
    let super::tree::Value::Map(entries) = &node.value else {
        report.wrong_type(node, "ports", "a map of port names to numbers");
        return ports;
    };
    for entry in entries {
        bad_port_name(&entry.key, entry.key_mark, report);
        if let Some(number) = report.port(&entry.node, "port") {
            ports.insert(entry.key.as_ref().into(), number);
        }
    }
    ports
}

/// Reports a port name that is no DNS label.
pub(super) fn bad_port_name(name: &str, mark: Mark, report: &mut Report<'_>) {
    if !is_dns_label(name) {
        let found = Diagnostic::new(
            &codes::BAD_NAME,
            format!("{} is not a valid port name", Quoted(name)),
        );
        report.add(
            mark,
            found.with_label("expected a-z, 0-9 and `-`, a letter or digit at both ends"),
        );
    }
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
