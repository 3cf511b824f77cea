//! What every resource begins with: apiVersion, kind and metadata.

use std::{collections::BTreeMap, sync::Arc};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    names::{is_dns_label, is_dns_name, is_label_key},
    read::Map,
    report::Report,
    suggest::{Quoted, did_you_mean, one_of},
    tree::{Entry, Mark, Node},
};
use crate::{
    policy::{
        MeshSettings,
        diagnostic::{Diagnostic, codes},
    },
    registry::ResourceName,
};

/// The annotation of a WorkloadEntry that says where the daemon of its host is reached.
pub(super) const GATEWAY: &str = "identun.io/gateway";
/// The annotation of an AuthorizationPolicy by which it is told, not enforced.
pub(super) const DRY_RUN: &str = "istio.io/dry-run";
const OWN_PREFIX: &str = "identun.io/";
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// A kind of resource.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) group: &'static str,
    pub(super) versions: &'static [&'static str],
    /// What `spec` is called in messages.
    pub(super) spec: &'static str,
    pub(super) is_namespaced: bool,
}

const fn kind(
    name: &'static str,
    group: &'static str,
    versions: &'static [&'static str],
    spec: &'static str,
) -> Kind {
    Kind {
        name,
        group,
        versions,
        spec,
        is_namespaced: true,
    }
}

const AUTHENTICATION: &str = "authentication.istio.io";
const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";

pub(super) static MESH_POLICY: Kind = Kind {
    is_namespaced: false,
    ..kind(
        "MeshPolicy",
        AUTHENTICATION,
        &["v1alpha1"],
        "the spec of a MeshPolicy",
    )
};
pub(super) static DESTINATION_RULE: Kind = kind(
    "DestinationRule",
    NETWORKING,
    &["v1alpha3", "v1beta1", "v1"],
    "the spec of a DestinationRule",
);
pub(super) static SERVICE_ENTRY: Kind = kind(
    "ServiceEntry",
    NETWORKING,
    &["v1alpha3", "v1beta1", "v1"],
    "the spec of a ServiceEntry",
);
pub(super) static WORKLOAD_ENTRY: Kind = kind(
    "WorkloadEntry",
    NETWORKING,
    &["v1alpha3", "v1beta1", "v1"],
    "the spec of a WorkloadEntry",
);
pub(super) static POLICY: Kind = kind(
    "Policy",
    AUTHENTICATION,
    &["v1alpha1"],
    "the spec of a Policy",
);
pub(super) static PEER_AUTHENTICATION: Kind = kind(
    "PeerAuthentication",
    SECURITY,
    &["v1beta1", "v1"],
    "the spec of a PeerAuthentication",
);
pub(super) static AUTHORIZATION_POLICY: Kind = kind(
    "AuthorizationPolicy",
    SECURITY,
    &["v1beta1", "v1"],
    "the spec of an AuthorizationPolicy",
);

/// Every kind that is ours.
pub(super) static KINDS: &[&Kind] = &[
    &MESH_POLICY,
    &DESTINATION_RULE,
    &SERVICE_ENTRY,
    &WORKLOAD_ENTRY,
    &POLICY,
    &PEER_AUTHENTICATION,
    &AUTHORIZATION_POLICY,
];

impl Kind {
    /// Every apiVersion of the kind.
    pub(super) fn api_versions(&self) -> Vec<String> {
        self.versions
            .iter()
            .map(|version| format!("{}/{version}", self.group))
            .collect()
    }
}

/// The beginning of one resource, and its spec.
#[derive(Debug)]
pub(super) struct Head<'t, 's> {
    pub(super) resource: ResourceName,
    /// Where the name stands.
    pub(super) name_mark: Mark,
    /// Seconds since 1970; the least number where metadata has no creationTimestamp (policy.md 0.2).
    pub(super) created: i64,
    pub(super) labels: BTreeMap<Arc<str>, Arc<str>>,
    /// Value and node of the gateway annotation.
    pub(super) gateway: Option<(&'t str, &'t Node<'s>)>,
    /// Value and node of the annotation [`DRY_RUN`].
    pub(super) dry_run: Option<(&'t str, &'t Node<'s>)>,
    /// The spec with its key; absent and null are the same.
    pub(super) spec: Option<&'t Entry<'s>>,
}

/// Reads metadata and finds the spec. Nothing when there is no usable name.
pub(super) fn read<'t, 's>(
    root: &Map<'t, 's>,
    kind: &'static Kind,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<Head<'t, 's>> {
    let metadata = report.required(root, "metadata")?;
    let metadata = report.map(metadata, "metadata", METADATA)?;
    let name_node = report.required(&metadata, "name");
    let namespace = namespace(&metadata, kind, mesh, report);
    let created = metadata
        .get("creationTimestamp")
        .and_then(|node| created(node, report));
    let labels = metadata
        .get("labels")
        .map(|node| report.labels(node, "metadata.labels"));
    let annotations = metadata
        .get("annotations")
        .map(|node| annotations(node, kind, report))
        .unwrap_or_default();
    let name_node = name_node?;
    let name = report.name(name_node, "name of a resource", is_dns_name)?;
    Some(Head {
        resource: ResourceName {
            kind: kind.name,
            namespace,
            name: name.into(),
        },
        name_mark: name_node.mark,
        created: created.unwrap_or(i64::MIN),
        labels: labels.unwrap_or_default(),
        gateway: annotations.gateway,
        dry_run: annotations.dry_run,
        spec: root.entry("spec").filter(|entry| !entry.node.is_null()),
    })
}

fn namespace(
    metadata: &Map<'_, '_>,
    kind: &Kind,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Arc<str> {
    let node = metadata.get("namespace");
    if !kind.is_namespaced {
        report.on_key(metadata, "namespace", || {
            let message = format!(
                "a {} has no namespace: it holds for the whole mesh",
                kind.name
            );
            Diagnostic::new(&codes::CLUSTER_SCOPE, message).with_label("remove the line")
        });
        return "".into();
    }
    node.and_then(|node| report.name(node, "namespace", is_dns_label))
        .map_or_else(|| mesh.default_namespace.clone(), Into::into)
}

fn created(node: &Node<'_>, report: &mut Report<'_>) -> Option<i64> {
    let text = report.text(node, "creationTimestamp")?;
    let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) else {
        let found = Diagnostic::new(&codes::BAD_TIME, format!("{} is not a time", Quoted(text)));
        report.add(
            node.mark,
            found.with_label("expected a time like 2024-01-31T12:00:00Z"),
        );
        return None;
    };
    Some(time.unix_timestamp())
}

/// The annotations that mean something here.
#[derive(Default)]
struct Annotations<'t, 's> {
    gateway: Option<(&'t str, &'t Node<'s>)>,
    dry_run: Option<(&'t str, &'t Node<'s>)>,
}

fn annotations<'t, 's>(
    node: &'t Node<'s>,
    kind: &Kind,
    report: &mut Report<'_>,
) -> Annotations<'t, 's> {
    let mut known = Annotations::default();
    for (entry, value) in report.text_map(node, "metadata.annotations") {
        let is_workload = kind.name == WORKLOAD_ENTRY.name;
        if entry.key == GATEWAY && is_workload {
            known.gateway = Some((value, &entry.node));
        } else if entry.key == DRY_RUN {
            known.dry_run = Some((value, &entry.node));
        } else if entry.key.starts_with(OWN_PREFIX) {
            let message = format!(
                "the annotation {} does not exist on a {}",
                Quoted(&entry.key),
                kind.name
            );
            let mut found = Diagnostic::new(&codes::UNKNOWN_ANNOTATION, message);
            found.help = if is_workload {
                did_you_mean(&entry.key, &[GATEWAY])
            } else {
                Some(format!("`{GATEWAY}` belongs on a WorkloadEntry"))
            };
            report.add(entry.key_mark, found);
        } else if !is_label_key(&entry.key) {
            let message = format!("{} is not an annotation key", Quoted(&entry.key));
            report.add(entry.key_mark, Diagnostic::new(&codes::BAD_LABEL, message));
        }
    }
    known
}

/// Whether apiVersion belongs to the kind; if not, says which one does.
pub(super) fn check_api_version(
    kind: &Kind,
    version: &str,
    node: &Node<'_>,
    report: &mut Report<'_>,
) -> bool {
    if let Some((group, version)) = version.split_once('/')
        && group == kind.group
        && kind.versions.contains(&version)
    {
        return true;
    }
    let known = kind.api_versions();
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let message = format!(
        "a {} does not have the apiVersion {}",
        kind.name,
        Quoted(version)
    );
    let mut found = Diagnostic::new(&codes::API_VERSION, message)
        .with_label(format!("expected {}", one_of(&known)));
    found.help = did_you_mean(version, &known);
    report.add(node.mark, found);
    false
}
