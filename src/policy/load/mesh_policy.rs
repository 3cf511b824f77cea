//! MeshPolicy: its name, and that it has no targets (policy.md 1.5).

use super::{
    head::{Head, MESH_POLICY},
    peers::Spec,
    report::Report,
    suggest::Quoted,
};
use crate::policy::{
    diagnostic::{Diagnostic, codes},
    document::MeshPolicy,
};

/// Reads the resource. An absent spec is an empty one: plaintext only.
pub(super) fn read(head: &Head<'_, '_>, report: &mut Report<'_>) -> Option<MeshPolicy> {
    if &*head.resource.name != "default" {
        let message = format!(
            "a MeshPolicy must be named `default`, not {}",
            Quoted(&head.resource.name)
        );
        let found =
            Diagnostic::new(&codes::MESH_POLICY_NAME, message).with_label("expected `default`");
        report.add(
            head.name_mark,
            found.with_help("Istio never uses a MeshPolicy with another name"),
        );
    }
    let spec = Spec::read(head, MESH_POLICY.spec, report)?;
    let (targets, mark) = spec.targets(report);
    if !targets.is_empty() {
        let message = "a MeshPolicy has no targets: it holds for the whole mesh";
        let found = Diagnostic::new(&codes::MESH_POLICY_TARGETS, message);
        report.add(mark, found.with_label("remove it"));
    }
    Some(MeshPolicy {
        resource: head.resource.clone(),
        mode: spec.mode("the whole mesh", report)?,
    })
}
