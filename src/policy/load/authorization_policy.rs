//! AuthorizationPolicy: whom it holds for, its action and its rules (policy.md 5.1 to 5.3, 5.6).

use super::{
    authorization_rule::RuleReader,
    head::{AUTHORIZATION_POLICY, DRY_RUN, Head},
    read::Map,
    report::Report,
    selector,
    suggest::Quoted,
    tree::{Mark, Value},
};
use crate::policy::{
    MeshSettings,
    diagnostic::{Diagnostic, codes},
    document::{Action, AuthorizationPolicy, AuthorizationRule},
};

const SPEC: &[&str] = &[
    "selector",
    "targetRef",
    "targetRefs",
    "action",
    "rules",
    "provider",
];
const ACTIONS: &[(&str, Option<Action>)] = &[
    ("ALLOW", Some(Action::Allow)),
    ("DENY", Some(Action::Deny)),
    ("AUDIT", Some(Action::Audit)),
    ("CUSTOM", None),
];

/// Reads the resource. An absent spec is an empty one: an ALLOW policy that allows nothing.
pub(super) fn read(
    head: &Head<'_, '_>,
    mesh: &MeshSettings,
    report: &mut Report<'_>,
) -> Option<AuthorizationPolicy> {
    let what = AUTHORIZATION_POLICY.spec;
    let spec = match head.spec {
        Some(entry) => report.map(&entry.node, what, SPEC)?,
        None => Map::absent(head.name_mark, what),
    };
    refuse_target_refs(&spec, report);
    let dry_run = dry_run(head, report);
    let selector = selector::read(&spec, report);
    let action = action(&spec, report)?;
    let reader = RuleReader {
        action,
        l7: mesh.l7,
        namespace: &head.resource.namespace,
    };
    Some(AuthorizationPolicy {
        resource: head.resource.clone(),
        place: report.place(head.name_mark),
        selector,
        action,
        dry_run,
        rules: rules(&spec, &reader, head.name_mark, report),
    })
}

fn refuse_target_refs(spec: &Map<'_, '_>, report: &mut Report<'_>) {
    for key in ["targetRef", "targetRefs"] {
        let is_empty = |value: &Value<'_>| matches!(value, Value::Seq(list) if list.is_empty());
        if spec.get(key).is_some_and(|node| !is_empty(&node.value)) {
            report.on_key(spec, key, || {
                let message =
                    format!("`{key}` names a gateway or a waypoint, which no host here is");
                Diagnostic::new(&codes::TARGET_REF, message)
                    .with_label("cannot be enforced")
                    .with_help("choose workloads by `selector`")
            });
        }
    }
}

/// The values are those that Istio takes for truth values.
fn dry_run(head: &Head<'_, '_>, report: &mut Report<'_>) -> bool {
    let Some((text, node)) = head.dry_run else {
        return false;
    };
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
        _ => {
            let message = format!("{DRY_RUN} is neither true nor false, but {}", Quoted(text));
            let found = Diagnostic::new(&codes::BAD_ANNOTATION, message);
            report.add(
                node.mark,
                found.with_label("expected \"true\" or \"false\""),
            );
            false
        }
    }
}

/// The action, ALLOW where there is none; nothing for one that cannot be enforced.
fn action(spec: &Map<'_, '_>, report: &mut Report<'_>) -> Option<Action> {
    let action = match spec.get("action") {
        None => Some(Action::Allow),
        Some(node) => {
            let action = report.choice(node, "action", ACTIONS)?;
            match action {
                None => report.add(node.mark, custom("the action CUSTOM is not supported")),
                Some(Action::Audit) => {
                    let message = "the action AUDIT is never enforced: it refuses nothing";
                    let found = Diagnostic::new(&codes::AUDIT, message);
                    report.add(node.mark, found.with_label("only told"));
                }
                Some(Action::Allow | Action::Deny) => {}
            }
            action
        }
    };
    if action.is_some() {
        report.on_key(spec, "provider", || {
            custom("`provider` belongs to the action CUSTOM, which is not supported")
        });
    }
    action
}

fn custom(message: &str) -> Diagnostic {
    Diagnostic::new(&codes::CUSTOM, message)
        .with_label("cannot be enforced")
        .with_help("remove it; to ignore it would leave open what it closes")
}

fn rules(
    spec: &Map<'_, '_>,
    reader: &RuleReader<'_>,
    name: Mark,
    report: &mut Report<'_>,
) -> Vec<AuthorizationRule> {
    let node = spec.get("rules");
    let nodes = node.map_or(&[][..], |node| report.list(node, "rules"));
    let is_list = node.is_none_or(|node| matches!(node.value, Value::Seq(_)));
    if nodes.is_empty() && is_list {
        let mark = spec.entry("rules").map_or(name, |entry| entry.key_mark);
        if let Some(found) = without_rules(reader.action) {
            report.add(mark, found);
        }
    }
    let numbered = nodes.iter().zip(1..);
    numbered
        .filter_map(|(node, number)| reader.read(node, number, report))
        .collect()
}

fn without_rules(action: Action) -> Option<Diagnostic> {
    match action {
        Action::Allow => {
            let message = "an ALLOW policy without rules allows nothing: it closes its workloads";
            Some(Diagnostic::new(&codes::ALLOWS_NOTHING, message))
        }
        Action::Audit => None,
        Action::Deny => {
            let message = "a DENY policy without rules never refuses anything";
            let found = Diagnostic::new(&codes::NEVER_TRIGGERED, message);
            Some(
                found
                    .with_label("expected rules")
                    .with_help("to refuse everything write `rules: [{}]`"),
            )
        }
    }
}
