//! Findings about DestinationRules, and about what clients decide by them.

use std::{collections::BTreeMap, sync::Arc};

use super::{at, clients::Clients};
use crate::{
    policy::{
        Diagnostic, Mode,
        compiled::{
            decide::{Decided, Decider, To, Verdict},
            outcome::Intent,
            rules::{Client, shadowed},
            trace::Silent,
        },
        diagnostic::{Code, codes},
        document::{ClientMode, DestinationRule, Labels},
    },
    registry::{
        ResourceName,
        index::{Service, single_address},
        service::ServicePort,
    },
    wire::DropReason,
};

/// How many decisions are asked for. A set of this size has had its typical mistakes shown.
const BUDGET: usize = 400_000;

pub(super) fn findings(decider: &Decider) -> Vec<Diagnostic> {
    let mut found: Vec<_> = without_service(decider).collect();
    found.extend(hidden(decider));
    let mut hiding = BTreeMap::new();
    let mut conflicts = BTreeMap::new();
    let clients = Clients::new(decider);
    let mut budget = BUDGET;
    for service in decider.registry.services() {
        for namespace in clients.of(service) {
            let client = Client {
                namespace,
                labels: &NO_LABELS,
            };
            if let Some((rule, finding)) = hides_mutual_tls(decider, client, service) {
                hiding.entry(rule).or_insert(finding);
            }
            for (key, finding) in conflicts_of(decider, client, service, &mut budget) {
                conflicts.entry(key).or_insert(finding);
            }
        }
    }
    found.extend(hiding.into_values());
    found.extend(conflicts.into_values());
    if budget == 0 {
        let text = format!("after {BUDGET} decisions the rest was not looked at for conflicts");
        found.push(Diagnostic::new(&codes::TOO_LARGE_TO_LOOK_AT, text));
    }
    found
}

/// Clients that no `workloadSelector` names.
static NO_LABELS: Labels = Labels::new();

fn without_service(decider: &Decider) -> impl Iterator<Item = Diagnostic> {
    // Backwards, so that hosts with one ending stand together.
    let mut backwards: Vec<String> = decider
        .registry
        .services()
        .iter()
        .map(|service| reversed(service.host.strip_prefix('*').unwrap_or(&service.host)))
        .collect();
    backwards.sort_unstable();
    let matches = move |rule: &DestinationRule| match rule.host.value.strip_prefix('*') {
        None => decider
            .registry
            .services_of_host(&rule.host.value)
            .next()
            .is_some(),
        Some(suffix) => {
            let wanted = reversed(suffix);
            let first = backwards.partition_point(|host| **host < *wanted);
            backwards
                .get(first)
                .is_some_and(|host| host.starts_with(&wanted))
        }
    };
    decider
        .rules
        .iter()
        .filter(move |rule| !matches(rule))
        .map(|rule| {
            let host = &rule.host.value;
            let message =
                format!("no service has a host that `{host}` matches, so the rule has no effect");
            at_host(&codes::RULE_WITHOUT_SERVICE, message, rule)
                .with_help("hosts are those of ServiceEntries: write a short name or the full one")
        })
}

fn reversed(text: &str) -> String {
    text.chars().rev().collect()
}

fn hidden(decider: &Decider) -> impl Iterator<Item = Diagnostic> {
    shadowed(&decider.rules).into_iter().map(|(older, rule)| {
        let message = format!(
            "{} never decides: {} has the same host and comes first",
            rule.resource, older.resource
        );
        at_host(&codes::RULE_HIDDEN, message, rule)
            .with_label(format!("hidden by {}", older.host.place))
    })
}

/// A rule without tls settings ends the search before a rule of a later pool that demands mutual TLS.
fn hides_mutual_tls(
    decider: &Decider,
    client: Client<'_>,
    service: &Service,
) -> Option<(ResourceName, Diagnostic)> {
    let winners = decider.rules.winners(client, service);
    let mut winners = winners.into_iter().flatten();
    let first = winners.next().filter(|rule| mode_of(rule).is_none())?;
    let hidden = winners.find(|rule| mode_of(rule) == Some(ClientMode::IstioMutual))?;
    let message = format!(
        "{} says nothing about tls and hides {}, which demands ISTIO_MUTUAL for `{}`",
        first.resource, hidden.resource, service.host
    );
    let finding = at_host(&codes::RULE_HIDES_MUTUAL_TLS, message, first)
        .with_help("nothing is inherited between rules: repeat `trafficPolicy.tls` here");
    Some((first.resource.clone(), finding))
}

fn mode_of(rule: &DestinationRule) -> Option<ClientMode> {
    rule.traffic_policy
        .as_ref()?
        .tls
        .as_ref()
        .map(|tls| tls.mode)
}

/// One finding for a class, service and rule is enough, whatever the number of endpoints and clients.
type ConflictKey = (&'static str, Arc<str>, Option<ResourceName>);

/// What clients of a namespace decide for each port and address of a service, where that cannot work.
fn conflicts_of(
    decider: &Decider,
    client: Client<'_>,
    service: &Service,
    budget: &mut usize,
) -> BTreeMap<ConflictKey, Diagnostic> {
    let mut found = BTreeMap::new();
    for (port, to) in questions(service) {
        let Some(rest) = budget.checked_sub(1) else {
            break;
        };
        *budget = rest;
        let decided = decider.decide_service(client, service, Some(port.number), to, &mut Silent);
        let Some(code) = conflict(&decided) else {
            continue;
        };
        let rule = decided.choice.map(|choice| choice.rule_ref());
        let key = (
            code.id,
            Arc::clone(&service.host),
            rule.as_ref().map(|rule| rule.resource.clone()),
        );
        found.entry(key).or_insert_with(|| {
            let by = rule
                .as_ref()
                .map_or_else(String::new, |rule| format!("; the rule is {rule}"));
            let (host, number, address) = (&service.host, port.number, to.address);
            let message = format!("`{host}` port {number} at {address}: {}{by}", what(code));
            at(
                code,
                message,
                rule.as_ref().map_or(&service.place, |rule| &rule.place),
            )
        });
    }
    found
}

/// Each port of a service, and where packets for it go: to each endpoint, and to each address of its own.
fn questions(service: &Service) -> impl Iterator<Item = (&ServicePort, To)> {
    let at_endpoints = service.endpoints.iter().flat_map(|endpoint| {
        let ports = service.ports.iter().zip(&endpoint.ports);
        ports.map(|(port, number)| (port, endpoint.address, *number))
    });
    let own = service
        .addresses
        .iter()
        .filter_map(|network| single_address(*network))
        .filter(|address| service.endpoint(*address).is_none());
    let at_own = own.flat_map(|address| {
        let ports = service.ports.iter();
        ports.map(move |port| (port, address, port.number))
    });
    at_endpoints.chain(at_own).map(|(port, address, number)| {
        let port_of_packet = Some(number);
        let to = To {
            address,
            port: port_of_packet,
        };
        (port, to)
    })
}

fn conflict(decided: &Decided<'_>) -> Option<&'static Code> {
    let is_strict = decided
        .server
        .as_ref()
        .is_some_and(|server| server.mode == Mode::Strict);
    match (&decided.verdict, decided.intent) {
        (Verdict::Refuse(DropReason::NotInMesh), _) => Some(&codes::NOT_IN_MESH),
        (Verdict::Refuse(DropReason::ModeDisable), _) => Some(&codes::MODE_DISABLE),
        (Verdict::Refuse(DropReason::IdentityNotAccepted), _) => {
            Some(&codes::IDENTITY_NOT_ACCEPTED)
        }
        (Verdict::Refuse(_), _) => Some(&codes::NO_IDENTITY),
        (Verdict::Plaintext, Intent::Disable | Intent::Unset) if is_strict => {
            Some(&codes::PLAINTEXT_TO_STRICT)
        }
        (Verdict::Plaintext | Verdict::Tunnel { .. }, _) => None,
    }
}

/// The code's meaning as a part of a sentence.
fn what(code: &Code) -> String {
    let text = code.meaning.trim_end_matches('.');
    let mut characters = text.chars();
    let first = characters.next().map(|first| first.to_ascii_lowercase());
    first.into_iter().chain(characters).collect()
}

fn at_host(code: &'static Code, message: String, rule: &DestinationRule) -> Diagnostic {
    Diagnostic::new(code, message).at(rule.host.place.clone(), rule.host.value.len())
}
