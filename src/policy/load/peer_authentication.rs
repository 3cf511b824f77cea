//! PeerAuthentication: selector, mode, and modes of single ports (policy.md 2.1, 2.4).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    head::{Head, PEER_AUTHENTICATION},
    read::Map,
    report::{MAX_FINDINGS, Report},
    selector,
    suggest::Quoted,
    tree::{Entry, Mark, Value},
};
use crate::policy::{
    MeshSettings, Mode,
    diagnostic::{Diagnostic, Severity, codes},
    document::{PeerAuthentication, Placed},
};

const SPEC: &[&str] = &["selector", "mtls", "portLevelMtls"];
const MODES: &[(&str, Option<Mode>)] = &[
    ("UNSET", None),
    ("DISABLE", Some(Mode::Disable)),
    ("PERMISSIVE", Some(Mode::Permissive)),
    ("STRICT", Some(Mode::Strict)),
];

/// Reads the resource. An absent spec is an empty one: UNSET.
pub(super) fn read(
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<PeerAuthentication> {
    let what = PEER_AUTHENTICATION.spec;
    let spec = match head.spec {
        Some(entry) => report.map(&entry.node, what, SPEC)?,
        None => Map::absent(head.name_mark, what),
    };
    let selector = selector::read(&spec, report);
    if selector.is_some() && head.resource.namespace == mesh.root_namespace {
        report.on_key(&spec, "selector", || in_root(&mesh.root_namespace));
    }
    let mode = match spec.entry("mtls") {
        Some(entry) => mode(entry, "`mtls`", entry.key_mark, report),
        None => Some(placed((None, head.name_mark), report)),
    };
    Some(PeerAuthentication {
        resource: head.resource.clone(),
        place: report.place(head.name_mark),
        ports: ports(&spec, selector.is_some(), report),
        selector,
        mode: mode?,
    })
}

fn in_root(root: &str) -> Diagnostic {
    let message = format!(
        "a policy with a selector is ignored in the root namespace {}",
        Quoted(root)
    );
    Diagnostic::new(&codes::ROOT_SELECTOR, message)
        .with_label("holds for no workload")
        .with_help("put it into the namespace of the workloads, or remove the selector")
}

/// The `mode` in `entry`, UNSET where there is none. `bare` is the place of one that is not written.
fn mode(
    entry: &Entry<'_>,
    what: &'static str,
    bare: Mark,
    report: &mut Report<'_>,
) -> Option<Placed<Option<Mode>>> {
    if entry.node.is_null() {
        return Some(placed((None, bare), report));
    }
    let fields = report.map(&entry.node, what, &["mode"])?;
    let mode = match fields.get("mode") {
        Some(node) => (report.choice(node, "mTLS mode", MODES)?, node.mark),
        None => (None, bare),
    };
    Some(placed(mode, report))
}

fn placed(mode: (Option<Mode>, Mark), report: &Report<'_>) -> Placed<Option<Mode>> {
    Placed {
        value: mode.0,
        place: report.place(mode.1),
    }
}

fn ports(
    spec: &Map<'_, '_>,
    selects: bool,
    report: &mut Report<'_>,
) -> BTreeMap<u16, Placed<Option<Mode>>> {
    let mut ports = BTreeMap::new();
    let Some(node) = spec.get("portLevelMtls") else {
        return ports;
    };
    let Value::Map(entries) = &node.value else {
        report.wrong_type(node, "portLevelMtls", "a map of ports");
        return ports;
    };
    if entries.is_empty() {
        let found = Diagnostic::new(&codes::EMPTY, "portLevelMtls names no port");
        report.add(node.mark, found.with_label("expected a port"));
    } else if !selects {
        report.on_key(spec, "portLevelMtls", || {
            let message = "portLevelMtls needs a selector with labels";
            Diagnostic::new(&codes::PORTS_WITHOUT_SELECTOR, message)
                .with_label("expected `selector` as well")
                .with_help("ports are those of workloads, so name the workloads")
        });
    }
    for entry in entries {
        let port = port(entry, report);
        let mode = mode(entry, "an entry of portLevelMtls", entry.key_mark, report);
        if let (Some(port), Some(mode)) = (port, mode) {
            ports.insert(port, mode);
        }
    }
    ports
}

/// A port number that is a key, and so is text in any case.
fn port(entry: &Entry<'_>, report: &mut Report<'_>) -> Option<u16> {
    let port = super::values::port(&entry.key);
    if port.is_none() {
        let message = format!("{} is not a port of a workload", Quoted(&entry.key));
        let found = Diagnostic::new(&codes::OUT_OF_RANGE, message);
        report.add(entry.key_mark, found.with_label("expected 1 to 65535"));
    }
    port
}

/// Without a selector only the oldest of a namespace counts. `policies` are in the order of policy.md 0.2.
pub(super) fn outranked(policies: &[PeerAuthentication]) -> Vec<Diagnostic> {
    let mut oldest: BTreeMap<&Arc<str>, &PeerAuthentication> = BTreeMap::new();
    let mut findings = Vec::new();
    for policy in policies.iter().filter(|policy| policy.selector.is_none()) {
        let first = *oldest.entry(&policy.resource.namespace).or_insert(policy);
        if std::ptr::eq(first, policy) {
            continue;
        }
        let mut found = if findings.len() < MAX_FINDINGS {
            younger(policy, first)
        } else {
            let message = format!("more than {MAX_FINDINGS} PeerAuthentications never count");
            Diagnostic {
                severity: Severity::Warning,
                ..Diagnostic::new(&codes::TOO_MANY_FINDINGS, message)
            }
        };
        found = found.at(policy.place.clone(), policy.resource.name.len());
        findings.push(found);
        if findings.len() > MAX_FINDINGS {
            break;
        }
    }
    findings
}

fn younger(policy: &PeerAuthentication, first: &PeerAuthentication) -> Diagnostic {
    let message = format!(
        "{} never counts: {} comes first",
        Quoted(&policy.resource.to_string()),
        Quoted(&first.resource.name)
    );
    Diagnostic::new(&codes::SECOND_PEER_AUTHENTICATION, message)
        .with_label(format!("the first is at {}", first.place))
        .with_help(
            "without a selector only the oldest of a namespace counts, then the first by name",
        )
}
