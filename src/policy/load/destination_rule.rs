//! DestinationRule: host, exportTo, workloadSelector and subsets (policy.md 3.1, 3.4, 3.8).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    head::{DESTINATION_RULE, Head},
    names::{is_dns_label, resolve_host},
    report::Report,
    suggest::Quoted,
    traffic_policy,
    tree::Node,
};
use crate::{
    policy::{
        MeshSettings,
        diagnostic::{Diagnostic, codes},
        document::{DestinationRule, Placed},
    },
    registry::service::ExportTo,
};

const SPEC: &[&str] = &[
    "host",
    "trafficPolicy",
    "subsets",
    "exportTo",
    "workloadSelector",
];
const SUBSET: &[&str] = &["name", "labels", "trafficPolicy"];

/// Reads the spec of a DestinationRule.
pub(super) fn read(
    node: &Node<'_>,
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<DestinationRule> {
    let namespace = &head.resource.namespace;
    let spec = report.map(node, DESTINATION_RULE.spec, SPEC)?;
    let host = report
        .required(&spec, "host")
        .and_then(|node| host(node, namespace, mesh, report));
    let traffic_policy = spec
        .get("trafficPolicy")
        .map(|node| traffic_policy::read(node, report));
    if let Some(node) = spec.get("subsets") {
        subsets(node, report);
    }
    let export_to = report.export_to(spec.get("exportTo"), namespace, false);
    let workload_selector = spec
        .get("workloadSelector")
        .and_then(|node| selector(node, report));
    Some(DestinationRule {
        resource: head.resource.clone(),
        host: host?,
        export_to: private_if(
            workload_selector.is_some(),
            export_to,
            spec.get("exportTo"),
            namespace,
            report,
        ),
        workload_selector,
        traffic_policy: match traffic_policy {
            Some(policy) => Some(policy?),
            None => None,
        },
    })
}

fn host(
    node: &Node<'_>,
    namespace: &str,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Placed<Arc<str>>> {
    let host = report.host(node)?;
    let is_address = host.parse::<std::net::IpAddr>().is_ok();
    if let Some((service, space)) = host.split_once('.')
        && !host.starts_with('*')
        && !space.contains('.')
        && !is_address
    {
        let message = format!(
            "the host {} is taken as written, not as service.namespace",
            Quoted(&host)
        );
        let found = Diagnostic::new(&codes::SHORT_HOST, message);
        let full = resolve_host(service, space, &mesh.domain);
        report.add(
            node.mark,
            found.with_help(format!("for the service write `{full}`")),
        );
    }
    let full = if host.starts_with('*') {
        host
    } else {
        resolve_host(&host, namespace, &mesh.domain)
    };
    Some(Placed {
        value: full.to_ascii_lowercase().into(),
        place: report.place(node.mark),
    })
}

/// Labels of `workloadSelector`; nothing when it selects nothing in particular.
fn selector(node: &Node<'_>, report: &mut Report<'_>) -> Option<BTreeMap<Arc<str>, Arc<str>>> {
    let selector = report.map(node, "workloadSelector", &["matchLabels"])?;
    let labels = selector
        .get("matchLabels")
        .map(|node| report.labels(node, "matchLabels"))
        .unwrap_or_default();
    if labels.is_empty() {
        let found = Diagnostic::new(
            &codes::EMPTY_SELECTOR,
            "a workloadSelector without labels is ignored",
        );
        report.add(node.mark, found.with_label("expected `matchLabels`"));
        return None;
    }
    Some(labels)
}

/// A rule with a selector is private to its namespace.
fn private_if(
    selects: bool,
    export_to: ExportTo,
    node: Option<&Node<'_>>,
    namespace: &Arc<str>,
    report: &mut Report<'_>,
) -> ExportTo {
    if !selects {
        return export_to;
    }
    let own = ExportTo::Namespaces([namespace.clone()].into());
    if let Some(node) = node.filter(|node| {
        export_to != own && !matches!(&node.value, super::tree::Value::Seq(list) if list.is_empty())
    }) {
        let message = "a DestinationRule with a workloadSelector cannot be exported";
        let found = Diagnostic::new(&codes::CONTRADICTION, message).with_label("expected only `.`");
        report.add(node.mark, found);
    }
    own
}

fn subsets(node: &Node<'_>, report: &mut Report<'_>) {
    let mut names = BTreeSet::new();
    for node in report.list(node, "subsets") {
        let Some(subset) = report.map(node, "a subset", SUBSET) else {
            continue;
        };
        if let Some(node) = report.required(&subset, "name")
            && let Some(name) = report.name(node, "subset name", is_dns_label)
            && !names.insert(name)
        {
            let message = format!("the subset {} stands twice", Quoted(name));
            report.add(node.mark, Diagnostic::new(&codes::DUPLICATE_ENTRY, message));
        }
        if let Some(node) = subset.get("labels") {
            report.labels(node, "labels of a subset");
        }
        let policy = subset
            .get("trafficPolicy")
            .and_then(|node| traffic_policy::read(node, report));
        let tls = policy.and_then(|policy| {
            policy
                .tls
                .or_else(|| policy.ports.into_iter().find_map(|port| port.tls))
        });
        if tls.is_some() {
            let found = Diagnostic::new(
                &codes::SUBSET_TLS,
                "subsets are never selected, so their `tls` has no effect",
            );
            report.on_key(&subset, "trafficPolicy", || {
                found.with_help("write `tls` into the rule's own trafficPolicy")
            });
        }
    }
}
