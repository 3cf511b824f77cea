//! Policy of authentication.istio.io: its name and its targets (policy.md 1.3, 1.5).

use std::sync::Arc;

use super::{
    head::{Head, POLICY},
    names::{is_dns_label, resolve_host},
    peers::Spec,
    report::Report,
    suggest::Quoted,
    tree::{Mark, Node},
};
use crate::policy::{
    MeshSettings,
    diagnostic::{Diagnostic, codes},
    document::{Placed, Policy, PortSelector, Target},
};

const TARGET: &[&str] = &["name", "labels", "ports"];
const PORT: &[&str] = &["number", "name"];

/// Reads the resource. An absent spec is an empty one: plaintext only.
pub(super) fn read(
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Policy> {
    let spec = Spec::read(head, POLICY.spec, report)?;
    let (nodes, mark) = spec.targets(report);
    check_name(head, (!nodes.is_empty()).then_some(mark), report);
    let targets = nodes
        .iter()
        .filter_map(|node| target(node, &head.resource.namespace, mesh, report));
    let targets = targets.collect();
    let loss = if nodes.is_empty() {
        "its whole namespace"
    } else {
        "its targets"
    };
    Some(Policy {
        resource: head.resource.clone(),
        place: report.place(head.name_mark),
        targets,
        mode: spec.mode(loss, report)?,
    })
}

/// `default` is the Policy of the namespace, and no other one can be.
fn check_name(head: &Head<'_, '_>, targets: Option<Mark>, report: &mut Report<'_>) {
    let name = &*head.resource.name;
    match targets {
        None if name != "default" => {
            let message = format!(
                "a Policy without targets must be named `default`, not {}",
                Quoted(name)
            );
            let found =
                Diagnostic::new(&codes::POLICY_NAME, message).with_label("expected `default`");
            report.add(
                head.name_mark,
                found.with_help("`default` holds for the whole namespace; else name `targets`"),
            );
        }
        Some(mark) if name == "default" => {
            let message = "the Policy `default` has no targets: it holds for its whole namespace";
            let found = Diagnostic::new(&codes::POLICY_NAME, message).with_label("remove it");
            report.add(
                mark,
                found.with_help("to keep the targets, give the Policy another name"),
            );
        }
        None | Some(_) => {}
    }
}

fn target(
    node: &Node<'_>,
    namespace: &str,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Target> {
    let target = report.map(node, "a target", TARGET)?;
    report.on_key(&target, "labels", || {
        let message = "`labels` of a target were never implemented in Istio";
        Diagnostic::new(&codes::TARGET_LABELS, message)
            .with_label("cannot be enforced")
            .with_help("name the service, or use a PeerAuthentication with a selector")
    });
    let ports = target
        .get("ports")
        .map_or(&[][..], |node| report.list(node, "ports of a target"));
    let ports = ports.iter().filter_map(|node| port(node, report)).collect();
    let node = report.required(&target, "name")?;
    let name = service_name(node, namespace, report)?;
    let host = resolve_host(name, namespace, &mesh.domain);
    Some(Target {
        host: Placed {
            value: Arc::from(host.to_ascii_lowercase()),
            place: report.place(node.mark),
        },
        ports,
    })
}

fn service_name<'t>(
    node: &'t Node<'_>,
    namespace: &str,
    report: &mut Report<'_>,
) -> Option<&'t str> {
    let text = report.filled_text(node, "name of a target")?;
    if is_dns_label(text) {
        return Some(text);
    }
    if !text.contains('.') {
        report.bad_name(text, "name of a service", node.mark);
        return None;
    }
    let message = format!("{} is not the short name of a service", Quoted(text));
    let found = Diagnostic::new(&codes::BAD_NAME, message).with_label("expected no dots");
    report.add(
        node.mark,
        found.with_help(format!(
            "a target is a service of the Policy's own namespace, `{namespace}`"
        )),
    );
    None
}

fn port(node: &Node<'_>, report: &mut Report<'_>) -> Option<Placed<PortSelector>> {
    let port = report.map(node, "a port of a target", PORT)?;
    let (node, value) = match (port.get("number"), port.get("name")) {
        (Some(node), None) => (node, PortSelector::Number(report.port(node, "port")?)),
        (None, Some(node)) => {
            let name = report.name(node, "port name", is_dns_label)?;
            (node, PortSelector::Name(name.into()))
        }
        (Some(_), Some(_)) => {
            let message = "a port of a target has a number or a name, not both";
            let found = Diagnostic::new(&codes::CONTRADICTION, message);
            report.add(port.mark, found.with_label("remove one of the two"));
            return None;
        }
        (None, None) => {
            let message = "a port of a target needs `number` or `name`";
            let found = Diagnostic::new(&codes::MISSING_FIELD, message);
            report.add(port.mark, found.with_label("expected `number` or `name`"));
            return None;
        }
    };
    Some(Placed {
        value,
        place: report.place(node.mark),
    })
}
