//! Every validation row of policy.md and every remark that belongs to loading, as tables that read like those of the page.
//!
//! A row is what the rule says, what must be found, and the text. `¦` in the text stands before each thing that is found, in the
//! same order. What must be found is all that is found, but for the info that v1alpha1 is old (§1.5 has that one itself).

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]

#[path = "policy_validation/authentication.rs"]
mod authentication;
#[path = "policy_validation/authorization.rs"]
mod authorization;
#[path = "policy_validation/destination_rules.rs"]
mod destination_rules;
#[path = "policy_validation/files.rs"]
mod files;
#[path = "policy_validation/registry.rs"]
mod registry;

use std::sync::Arc;

use identun::policy::{
    Diagnostic, MeshSettings, Resources, Severity, SourceFile, load::load, settings::L7,
};

const OLD_API: &str = "info IDT0462";

/// One row of a table.
struct Row {
    rule: &'static str,
    found: Vec<&'static str>,
    text: String,
}

/// A row for which something is found: `error IDT0101`, several with `, ` between.
fn row(rule: &'static str, found: &'static str, text: impl Into<String>) -> Row {
    Row {
        rule,
        found: found.split(", ").collect(),
        text: text.into(),
    }
}

/// A row of what is allowed.
fn valid(rule: &'static str, text: impl Into<String>) -> Row {
    Row {
        rule,
        found: Vec::new(),
        text: text.into(),
    }
}

fn check(rows: Vec<Row>) {
    check_with(&MeshSettings::default(), rows);
}

/// Every row of the table, and all that fail at once.
fn check_with(mesh: &MeshSettings, rows: Vec<Row>) {
    let mut failures = Vec::new();
    for row in rows {
        let places = places(&row.text);
        assert_eq!(places.len(), row.found.len(), "marks of: {}", row.rule);
        let expected = row.found.iter().zip(&places);
        let expected: Vec<_> = expected
            .map(|(found, place)| format!("{found} {place}"))
            .collect();
        let text = row.text.replace('¦', "");
        let (resources, findings) = load_text(mesh, &text);
        let found = listed(&findings, row.found.contains(&OLD_API));
        let refused = row.found.iter().any(|found| found.starts_with("error"));
        if found != expected || resources.is_some() == refused {
            failures.push(format!(
                "{}\nexpected {expected:?}\n     got {found:?}\n{text}\n{findings:#?}",
                row.rule
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

fn load_text(mesh: &MeshSettings, text: &str) -> (Option<Resources>, Vec<Diagnostic>) {
    let file = SourceFile {
        name: "test.yaml".into(),
        text: text.into(),
    };
    load(&[Arc::new(file)], mesh)
}

/// The resources of a text that is valid.
fn loaded(text: &str) -> Resources {
    let (resources, findings) = load_text(&MeshSettings::default(), text);
    resources.unwrap_or_else(|| panic!("{text}\n{findings:#?}"))
}

fn strict_drop() -> MeshSettings {
    MeshSettings {
        l7: L7::StrictDrop,
        ..MeshSettings::default()
    }
}

/// Severity, code, line and column of each finding.
fn listed(findings: &[Diagnostic], with_old_api: bool) -> Vec<String> {
    let line = |found: &Diagnostic| {
        let severity = match found.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        let place = found.place.as_ref().unwrap();
        format!("{severity} {} {}:{}", found.code, place.line, place.column)
    };
    let lines = findings.iter().map(line);
    lines
        .filter(|line| with_old_api || !line.starts_with(OLD_API))
        .collect()
}

/// Line and column of every `¦`, counted without the marks before it.
fn places(marked: &str) -> Vec<String> {
    let mut places = Vec::new();
    let (mut line, mut column) = (1, 1);
    for character in marked.chars() {
        match character {
            '¦' => places.push(format!("{line}:{column}")),
            '\n' => (line, column) = (line + 1, 1),
            _ => column += 1,
        }
    }
    places
}

fn resource(version: &str, kind: &str, metadata: &str, spec: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {spec}\n")
}

fn networking(kind: &str, spec: &str) -> String {
    let metadata = "name: x, namespace: shop";
    resource(
        "networking.istio.io/v1",
        kind,
        metadata,
        &format!("{{{spec}}}"),
    )
}
