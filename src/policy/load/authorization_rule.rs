//! One rule of an AuthorizationPolicy: sources, operations, conditions, and what becomes of layer 7 (policy.md 5.3 to 5.6).

use std::sync::Arc;

use super::{
    read::Map,
    report::Report,
    suggest::{Quoted, did_you_mean},
    tree::{Entry, Mark, Node, Value},
    values::{self, Attribute},
};
use crate::policy::{
    diagnostic::{Diagnostic, codes},
    document::{Action, AuthorizationRule, Clause, Test},
    settings::L7,
};

const SOURCE: Part = Part {
    list: "from",
    entry: "an entry of `from`",
    key: "source",
    what: "`source`",
    attributes: &[
        ("principals", false, Attribute::Principal),
        ("notPrincipals", true, Attribute::Principal),
        ("namespaces", false, Attribute::Namespace),
        ("notNamespaces", true, Attribute::Namespace),
        ("serviceAccounts", false, Attribute::ServiceAccount),
        ("notServiceAccounts", true, Attribute::ServiceAccount),
        ("trustDomains", false, Attribute::TrustDomain),
        ("notTrustDomains", true, Attribute::TrustDomain),
        ("ipBlocks", false, Attribute::SourceIp),
        ("notIpBlocks", true, Attribute::SourceIp),
        ("remoteIpBlocks", false, Attribute::Request),
        ("notRemoteIpBlocks", true, Attribute::Request),
        ("requestPrincipals", false, Attribute::Request),
        ("notRequestPrincipals", true, Attribute::Request),
    ],
};
const OPERATION: Part = Part {
    list: "to",
    entry: "an entry of `to`",
    key: "operation",
    what: "`operation`",
    attributes: &[
        ("ports", false, Attribute::DestinationPort),
        ("notPorts", true, Attribute::DestinationPort),
        ("hosts", false, Attribute::Request),
        ("notHosts", true, Attribute::Request),
        ("methods", false, Attribute::Request),
        ("notMethods", true, Attribute::Request),
        ("paths", false, Attribute::Request),
        ("notPaths", true, Attribute::Request),
    ],
};
const CONDITION: &[&str] = &["key", "values", "notValues"];
const CONDITIONS: &[(&str, Attribute)] = &[
    ("source.ip", Attribute::SourceIp),
    ("source.namespace", Attribute::Namespace),
    ("source.principal", Attribute::Principal),
    ("source.serviceAccount", Attribute::ServiceAccount),
    ("source.trustDomain", Attribute::TrustDomain),
    ("destination.ip", Attribute::DestinationIp),
    ("destination.port", Attribute::DestinationPort),
    ("remote.ip", Attribute::Request),
    ("connection.sni", Attribute::Request),
    ("request.auth.principal", Attribute::Request),
    ("request.auth.audiences", Attribute::Request),
    ("request.auth.presenter", Attribute::Request),
];
/// Keys of requests that go on after this.
const REQUEST_PREFIXES: &[&str] = &["request.headers[", "request.auth.claims[", "experimental."];
/// Keys that Istio once had.
const REMOVED: &[&str] = &[
    "destination.labels",
    "destination.namespace",
    "destination.name",
    "destination.user",
];
/// How many service accounts one list may name.
const MAX_ACCOUNTS: usize = 16;

/// `from` or `to`.
struct Part {
    list: &'static str,
    entry: &'static str,
    key: &'static str,
    what: &'static str,
    /// Name, whether it is a `not` form, and what it is about.
    attributes: &'static [(&'static str, bool, Attribute)],
}

/// What the rules of one policy have in common.
#[derive(Debug)]
pub(super) struct RuleReader<'p> {
    pub(super) action: Action,
    pub(super) l7: L7,
    pub(super) namespace: &'p Arc<str>,
}

/// A clause, and the key or name by which it was written.
struct Written<'t> {
    name: &'t str,
    mark: Mark,
    clause: Clause,
}

/// Something of layer 7 in a rule.
struct Request<'t> {
    name: &'t str,
    mark: Mark,
    /// Nothing else stands in its source or operation.
    alone: Option<&'static str>,
}

impl RuleReader<'_> {
    /// Reads one rule. Nothing for one that is dropped, or wrong.
    pub(super) fn read(
        &self,
        node: &Node<'_>,
        number: usize,
        report: &mut Report<'_>,
    ) -> Option<AuthorizationRule> {
        let rule = report.map(node, "a rule", &["from", "to", "when"])?;
        let mut requests = Vec::new();
        let from = self.part(&rule, &SOURCE, &mut requests, report);
        let to = self.part(&rule, &OPERATION, &mut requests, report);
        let when = self.conditions(&rule, &mut requests, report);
        if from.is_empty() && to.is_empty() && when.is_empty() {
            let all = requests.iter_mut();
            all.for_each(|request| request.alone = Some("rule"));
        }
        if self.is_dropped(number, &requests, report) {
            return None;
        }
        if self.action == Action::Allow {
            warn_of_plaintext(&from, &when, report);
        }
        Some(AuthorizationRule {
            place: report.place(rule.mark),
            number,
            from: from.into_iter().map(clauses).collect(),
            to: to.into_iter().map(clauses).collect(),
            when: clauses(when),
        })
    }

    /// The sources or operations of a rule.
    fn part<'t>(
        &self,
        rule: &Map<'t, '_>,
        part: &Part,
        requests: &mut Vec<Request<'t>>,
        report: &mut Report<'_>,
    ) -> Vec<Vec<Written<'t>>> {
        let Some(list) = rule.entry(part.list) else {
            return Vec::new();
        };
        if is_nothing(&list.node) {
            let message = format!("`{}` is empty: left out it means any", part.list);
            let found = Diagnostic::new(&codes::EMPTY, message);
            report.add(
                list.key_mark,
                found.with_label(format!("expected `{}`", part.key)),
            );
            return Vec::new();
        }
        let nodes = report.list(&list.node, part.list);
        nodes
            .iter()
            .filter_map(|node| self.one(node, part, requests, report))
            .collect()
    }

    fn one<'t>(
        &self,
        node: &'t Node<'_>,
        part: &Part,
        requests: &mut Vec<Request<'t>>,
        report: &mut Report<'_>,
    ) -> Option<Vec<Written<'t>>> {
        let entry = report.map(node, part.entry, &[part.key])?;
        let node = report.required(&entry, part.key)?;
        let known: Vec<&str> = part.attributes.iter().map(|(name, ..)| *name).collect();
        let fields = report.map(node, part.what, &known)?;
        if fields.is_empty() {
            let message = format!("{} is empty: left out it means any", part.what);
            let found = Diagnostic::new(&codes::EMPTY, message);
            report.add(node.mark, found.with_label("expected an attribute"));
            return None;
        }
        check_accounts(&fields, report);
        let mut clauses = Vec::new();
        let first = requests.len();
        for &(name, negated, attribute) in part.attributes {
            let entry = fields.entry(name).filter(|entry| !entry.node.is_null());
            if let Some(entry) = entry {
                let clause = self.clause(attribute, negated, &entry.node, name, report);
                clauses.extend(clause.map(|clause| written(entry, clause)));
                if attribute == Attribute::Request {
                    requests.push(request(entry));
                }
            }
        }
        if clauses.is_empty() {
            let new = requests.iter_mut().skip(first);
            new.for_each(|request| request.alone = Some(part.key));
        }
        Some(clauses)
    }

    fn clause(
        &self,
        attribute: Attribute,
        negated: bool,
        node: &Node<'_>,
        name: &str,
        report: &mut Report<'_>,
    ) -> Option<Clause> {
        if is_nothing(node) {
            let message = format!("`{name}` is an empty list: left out it means any");
            let found = Diagnostic::new(&codes::EMPTY, message);
            report.add(node.mark, found.with_label("expected at least one value"));
            return None;
        }
        let test = values::test(attribute, node, name, self.namespace, report)?;
        Some(Clause { negated, test })
    }

    fn conditions<'t>(
        &self,
        rule: &Map<'t, '_>,
        requests: &mut Vec<Request<'t>>,
        report: &mut Report<'_>,
    ) -> Vec<Written<'t>> {
        let nodes = rule
            .get("when")
            .map_or(&[][..], |node| report.list(node, "when"));
        let mut conditions = Vec::new();
        for node in nodes {
            self.condition(node, &mut conditions, requests, report);
        }
        conditions
    }

    fn condition<'t>(
        &self,
        node: &'t Node<'_>,
        conditions: &mut Vec<Written<'t>>,
        requests: &mut Vec<Request<'t>>,
        report: &mut Report<'_>,
    ) -> Option<()> {
        let condition = report.map(node, "a condition of `when`", CONDITION)?;
        let node = report.required(&condition, "key")?;
        let name = report.filled_text(node, "key of a condition")?;
        let attribute = attribute(name, node.mark, report)?;
        let values = [("values", false), ("notValues", true)]
            .map(|(key, negated)| (key, negated, condition.get(key)));
        if values.iter().all(|(.., values)| values.is_none()) {
            let message = format!("the condition {} has no values", Quoted(name));
            let found = Diagnostic::new(&codes::EMPTY, message);
            report.add(
                condition.mark,
                found.with_label("expected `values` or `notValues`"),
            );
            return None;
        }
        for (key, negated, values) in values {
            let clause = values.and_then(|node| self.clause(attribute, negated, node, key, report));
            let mark = node.mark;
            conditions.extend(clause.map(|clause| Written { name, mark, clause }));
        }
        if attribute == Attribute::Request {
            let alone = None;
            let mark = node.mark;
            requests.push(Request { name, mark, alone });
        }
        Some(())
    }

    /// What layer 7 in a rule leads to: an error, a dropped rule, or a rule that matches more.
    fn is_dropped(&self, number: usize, requests: &[Request<'_>], report: &mut Report<'_>) -> bool {
        match (self.l7, self.action) {
            (L7::Reject, action) => {
                for request in requests {
                    report.add(request.mark, refused(request, action));
                }
                false
            }
            (L7::StrictDrop, Action::Allow) => {
                if let Some(request) = requests.first() {
                    let message = format!(
                        "rule {number} is dropped and allows nothing: {} speaks of requests",
                        Quoted(request.name)
                    );
                    report.add(request.mark, Diagnostic::new(&codes::DROPPED, message));
                }
                !requests.is_empty()
            }
            (L7::StrictDrop, Action::Audit | Action::Deny) => {
                for request in requests {
                    report.add(request.mark, widened(request));
                }
                false
            }
        }
    }
}

fn clauses(written: Vec<Written<'_>>) -> Vec<Clause> {
    written.into_iter().map(|one| one.clause).collect()
}

/// An explicit null or an empty list.
fn is_nothing(node: &Node<'_>) -> bool {
    node.is_null() || matches!(&node.value, Value::Seq(list) if list.is_empty())
}

fn written<'t>(entry: &'t Entry<'_>, clause: Clause) -> Written<'t> {
    Written {
        name: &entry.key,
        mark: entry.key_mark,
        clause,
    }
}

fn request<'t>(entry: &'t Entry<'_>) -> Request<'t> {
    Request {
        name: &entry.key,
        mark: entry.key_mark,
        alone: None,
    }
}

/// Service accounts stand without principals and namespaces, and are few.
fn check_accounts(source: &Map<'_, '_>, report: &mut Report<'_>) {
    let others = ["principals", "notPrincipals", "namespaces", "notNamespaces"];
    let other = others.iter().find(|key| source.get(key).is_some());
    for key in ["serviceAccounts", "notServiceAccounts"] {
        let Some(node) = source.get(key) else {
            continue;
        };
        if let Some(other) = other {
            report.on_key(source, key, || {
                let message = format!("`{key}` and `{other}` exclude each other");
                Diagnostic::new(&codes::CONTRADICTION, message).with_label("remove one of the two")
            });
        }
        if let Value::Seq(list) = &node.value
            && list.len() > MAX_ACCOUNTS
        {
            report.on_key(source, key, || {
                let message = format!("`{key}` names {} accounts", list.len());
                Diagnostic::new(&codes::OUT_OF_RANGE, message)
                    .with_label(format!("expected at most {MAX_ACCOUNTS}"))
                    .with_help("write a second source, or use `namespaces`")
            });
        }
    }
}

/// What the key of a condition is about.
fn attribute(key: &str, mark: Mark, report: &mut Report<'_>) -> Option<Attribute> {
    let known = CONDITIONS.iter().find(|(name, _)| *name == key);
    if let Some((_, attribute)) = known {
        return Some(*attribute);
    }
    if REQUEST_PREFIXES
        .iter()
        .any(|prefix| key.starts_with(prefix))
    {
        return Some(Attribute::Request);
    }
    let names: Vec<&str> = CONDITIONS.iter().map(|(name, _)| *name).collect();
    let is_removed = REMOVED.iter().any(|name| {
        let rest = key.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('['))
    });
    let found = if is_removed {
        let message = format!("the condition {} was removed from Istio", Quoted(key));
        Diagnostic::new(&codes::UNKNOWN_VALUE, message)
            .with_label("remove it")
            .with_help("`selector` and `metadata.namespace` choose the workloads")
    } else {
        let message = format!("unknown condition {}", Quoted(key));
        let mut found = Diagnostic::new(&codes::UNKNOWN_VALUE, message);
        found.label = Some("expected an attribute like `source.ip`".into());
        found.help = did_you_mean(key, &names);
        found
    };
    report.add(mark, found);
    None
}

fn refused(request: &Request<'_>, action: Action) -> Diagnostic {
    let message = format!(
        "{} speaks of requests, which packets do not show",
        Quoted(request.name)
    );
    let help = match action {
        Action::Allow => "remove it, or set `l7: strict-drop`, which drops such ALLOW rules",
        Action::Audit | Action::Deny => {
            "remove it, or set `l7: strict-drop`, with which the rest of the rule matches"
        }
    };
    Diagnostic::new(&codes::LAYER_7, message)
        .with_label("cannot be enforced")
        .with_help(help)
}

fn widened(request: &Request<'_>) -> Diagnostic {
    let name = Quoted(request.name);
    let message = match request.alone {
        None => format!("{name} speaks of requests and is dropped: the rule matches more"),
        Some(what) => format!("{name} speaks of requests: this {what} now matches everything"),
    };
    Diagnostic::new(&codes::DROPPED, message)
}

/// Negated tests of the identity match a peer that has none.
fn warn_of_plaintext(from: &[Vec<Written<'_>>], when: &[Written<'_>], report: &mut Report<'_>) {
    if demands_identity(when) {
        return;
    }
    let mut rest = from.is_empty();
    for source in from.iter().filter(|source| !demands_identity(source)) {
        match only_negated(source) {
            Some(written) => report.add(written.mark, lets_plaintext_in(written)),
            None => rest = true,
        }
    }
    if let Some(written) = only_negated(when).filter(|_| rest) {
        report.add(written.mark, lets_plaintext_in(written));
    }
}

fn demands_identity(clauses: &[Written<'_>]) -> bool {
    clauses
        .iter()
        .any(|written| !written.clause.negated && is_about_identity(&written.clause.test))
}

fn only_negated<'w, 't>(clauses: &'w [Written<'t>]) -> Option<&'w Written<'t>> {
    clauses
        .iter()
        .find(|written| written.clause.negated && is_about_identity(&written.clause.test))
}

const fn is_about_identity(test: &Test) -> bool {
    match test {
        Test::SourceNamespace(_)
        | Test::SourcePrincipal(_)
        | Test::SourceServiceAccount(_)
        | Test::SourceTrustDomain(_) => true,
        Test::DestinationIp(_) | Test::DestinationPort(_) | Test::SourceIp(_) => false,
    }
}

fn lets_plaintext_in(written: &Written<'_>) -> Diagnostic {
    let message = format!(
        "{} is true of plaintext too, so the rule lets it in",
        Quoted(written.name)
    );
    let is_alone = matches!(written.clause.test, Test::SourceServiceAccount(_));
    let help = if is_alone || written.name.contains('.') {
        "to demand an identity add the condition `source.principal` with the value `*`"
    } else {
        "to demand an identity add `principals: [\"*\"]`"
    };
    Diagnostic::new(&codes::LETS_PLAINTEXT_IN, message)
        .with_label("plaintext has no identity")
        .with_help(help)
}
