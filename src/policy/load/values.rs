//! Values that an AuthorizationPolicy compares connections with (policy.md 5.4).

use std::{collections::BTreeSet, sync::Arc};

use ipnetwork::IpNetwork;

use super::{
    names::{compared_network, is_dns_label},
    report::Report,
    suggest::Quoted,
    tree::{Mark, Node},
};
use crate::{
    policy::{
        diagnostic::{Diagnostic, codes},
        document::{StringMatch, Test},
    },
    spiffe::{SpiffeId, TrustDomain},
};

/// The longest service account, its namespace included, in bytes.
const MAX_ACCOUNT: usize = 320;
const SCHEME: &str = "spiffe://";

/// What a value is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attribute {
    DestinationIp,
    DestinationPort,
    Namespace,
    Principal,
    /// Layer 7: of a request, or what a proxy learned.
    Request,
    ServiceAccount,
    SourceIp,
    TrustDomain,
}

/// The values of `key`, as a test. Nothing for a request's, and where all of them are wrong.
pub(super) fn test(
    attribute: Attribute,
    node: &Node<'_>,
    key: &str,
    namespace: &Arc<str>,
    report: &mut Report<'_>,
) -> Option<Test> {
    let values = report.texts(node, key);
    let mut values = Values {
        values: &values,
        report,
    };
    Some(match attribute {
        Attribute::DestinationIp => Test::DestinationIp(values.networks()?),
        Attribute::DestinationPort => Test::DestinationPort(values.ports()?),
        Attribute::Namespace => Test::SourceNamespace(values.matches(namespace_problem)?),
        Attribute::Principal => Test::SourcePrincipal(values.matches(principal_problem)?),
        Attribute::Request => return None,
        Attribute::ServiceAccount => Test::SourceServiceAccount(values.accounts(namespace)?),
        Attribute::SourceIp => Test::SourceIp(values.networks()?),
        Attribute::TrustDomain => Test::SourceTrustDomain(values.matches(domain_problem)?),
    })
}

/// Decimal, without sign and leading zero, 1 to 65535.
pub(super) fn port(text: &str) -> Option<u16> {
    let is_plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

struct Values<'v, 't, 's, 'r, 'm> {
    values: &'v [(&'t str, &'t Node<'s>)],
    report: &'r mut Report<'m>,
}

impl Values<'_, '_, '_, '_, '_> {
    fn matches(&mut self, problem: fn(&str) -> Option<String>) -> Option<Vec<StringMatch>> {
        let mut matches = Vec::new();
        for (text, node) in self.values {
            let Some(found) = string_match(text, node.mark, self.report) else {
                continue;
            };
            if let StringMatch::Exact(text) = &found
                && let Some(problem) = problem(text)
            {
                let message = format!("no identity can match {}: {problem}", Quoted(text));
                let never = Diagnostic::new(&codes::NEVER_MATCHES, message);
                self.report.add(node.mark, never);
            }
            matches.push(found);
        }
        filled(matches, Vec::is_empty)
    }

    fn networks(&mut self) -> Option<Vec<IpNetwork>> {
        let mut networks = Vec::new();
        for (text, node) in self.values {
            match compared_network(text) {
                Ok(network) => networks.push(network),
                Err(expected) => {
                    let message = format!("{} is not an IP address or network", Quoted(text));
                    let found = Diagnostic::new(&codes::BAD_ADDRESS, message);
                    self.report.add(node.mark, found.with_label(expected));
                }
            }
        }
        filled(networks, Vec::is_empty)
    }

    fn ports(&mut self) -> Option<BTreeSet<u16>> {
        let mut ports = BTreeSet::new();
        for (text, node) in self.values {
            ports.extend(port(text));
            if port(text).is_none() {
                let message = format!("{} is not a port", Quoted(text));
                let found = Diagnostic::new(&codes::OUT_OF_RANGE, message);
                self.report
                    .add(node.mark, found.with_label("expected 1 to 65535"));
            }
        }
        filled(ports, BTreeSet::is_empty)
    }

    fn accounts(&mut self, own: &Arc<str>) -> Option<BTreeSet<(Arc<str>, Arc<str>)>> {
        let mut accounts = BTreeSet::new();
        for (text, node) in self.values {
            match account(text, own) {
                Ok(account) => {
                    accounts.insert(account);
                }
                Err(expected) => {
                    let message = format!("{} is not a service account", Quoted(text));
                    let found = Diagnostic::new(&codes::BAD_NAME, message);
                    self.report.add(node.mark, found.with_label(expected));
                }
            }
        }
        filled(accounts, BTreeSet::is_empty)
    }
}

fn filled<T>(values: T, is_empty: fn(&T) -> bool) -> Option<T> {
    Some(values).filter(|values| !is_empty(values))
}

/// `*` alone, at the beginning or at the end is a wildcard; elsewhere it would be taken literally, so it is refused.
fn string_match(text: &str, mark: Mark, report: &mut Report<'_>) -> Option<StringMatch> {
    if text == "*" {
        return Some(StringMatch::Present);
    }
    let refuse = |message: String, label: &str, report: &mut Report<'_>| {
        let found = Diagnostic::new(&codes::BAD_MATCH, message);
        report.add(mark, found.with_label(label));
    };
    if let Some(rest) = text.strip_prefix(SCHEME) {
        let message = format!("{} never matches: the scheme is left out", Quoted(text));
        let label = if rest.len() < 24 {
            format!("expected `{rest}`")
        } else {
            "remove `spiffe://`".to_owned()
        };
        refuse(message, &label, report);
        return None;
    }
    let (rest, found): (&str, fn(Arc<str>) -> StringMatch) =
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(rest), _) => (rest, StringMatch::Suffix),
            (None, Some(rest)) => (rest, StringMatch::Prefix),
            (None, None) => (text, StringMatch::Exact),
        };
    if rest.contains('*') {
        let message = format!("{} has `*` elsewhere than at one end", Quoted(text));
        refuse(message, "expected `*`, `text*` or `*text`", report);
        return None;
    }
    Some(found(rest.into()))
}

/// Why no SPIFFE ID is this principal.
fn principal_problem(text: &str) -> Option<String> {
    let id = format!("{SCHEME}{text}").parse::<SpiffeId>();
    match id {
        Ok(id) if id.path().is_empty() => Some("a workload's SPIFFE ID has a path".into()),
        Ok(_) => None,
        Err(error) => Some(error.to_string()),
    }
}

/// Why no SPIFFE ID has this namespace: it is one segment of its path.
fn namespace_problem(text: &str) -> Option<String> {
    principal_problem(&format!("a/ns/{text}/sa/a")).or_else(|| {
        text.contains('/')
            .then(|| "a namespace has no slash".into())
    })
}

fn domain_problem(text: &str) -> Option<String> {
    text.parse::<TrustDomain>()
        .err()
        .map(|error| error.to_string())
}

/// Namespace and account of `namespace/account`, or of `account` in the namespace of the policy.
fn account(text: &str, own: &Arc<str>) -> Result<(Arc<str>, Arc<str>), &'static str> {
    let expected = "expected `namespace/account` or `account`";
    if text.len() > MAX_ACCOUNT {
        return Err("longer than 320 characters");
    }
    if text.contains('*') {
        return Err("expected no `*`: accounts are compared as a whole");
    }
    let (namespace, account) = match text.split_once('/') {
        Some((namespace, account)) => (Arc::from(namespace), account),
        None => (own.clone(), text),
    };
    if !is_dns_label(&namespace) || namespace_problem(account).is_some() {
        return Err(expected);
    }
    Ok((namespace, account.into()))
}
