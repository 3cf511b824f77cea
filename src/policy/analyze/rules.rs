//! Findings about DestinationRules, and about what clients decide by them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::at;
use crate::{
    policy::{
        Diagnostic, Mode,
        compiled::{
            decide::{Decided, Decider, Verdict},
            outcome::Intent,
            rules::{Client, host_matches, shadowed},
        },
        diagnostic::{Code, codes},
        document::{ClientMode, DestinationRule},
    },
    registry::{
        ResourceName,
        index::{Service, single_address},
    },
    wire::DropReason,
};

pub(super) fn findings(decider: &Decider) -> Vec<Diagnostic> {
    let mut found: Vec<_> = without_service(decider).collect();
    found.extend(hidden(decider));
    let mut hiding = BTreeMap::new();
    let mut conflicts = BTreeMap::new();
    for_each_client_and_service(decider, |client, service| {
        if let Some((rule, finding)) = hides_mutual_tls(decider, client, service) {
            hiding.entry(rule).or_insert(finding);
        }
        for (key, finding) in conflicts_of(decider, client, service) {
            conflicts.entry(key).or_insert(finding);
        }
    });
    found.extend(hiding.into_values());
    found.extend(conflicts.into_values());
    found
}

fn without_service(decider: &Decider) -> impl Iterator<Item = Diagnostic> {
    let services = decider.registry.services();
    let matches = |rule: &DestinationRule| {
        services
            .iter()
            .any(|service| host_matches(&rule.host.value, &service.host))
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
    let winners = decider
        .rules
        .winners(client, &service.host, service.namespace());
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
) -> BTreeMap<ConflictKey, Diagnostic> {
    let endpoints = service.endpoints.iter().map(|endpoint| endpoint.address);
    let own = service
        .addresses
        .iter()
        .filter_map(|network| single_address(*network));
    let addresses: BTreeSet<IpAddr> = endpoints.chain(own).collect();
    let mut found = BTreeMap::new();
    for address in addresses {
        for port in &service.ports {
            let decided = decider.decide_service(client, service, Some(port), address);
            let Some(code) = conflict(&decided, decider.mode) else {
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
                let (host, number) = (&service.host, port.number);
                let message = format!("`{host}` port {number} at {address}: {}{by}", what(code));
                at(
                    code,
                    message,
                    rule.as_ref().map_or(&service.place, |rule| &rule.place),
                )
            });
        }
    }
    found
}

fn conflict(decided: &Decided<'_>, mode: Mode) -> Option<&'static Code> {
    let in_mesh = decided
        .endpoint
        .is_some_and(|endpoint| endpoint.mesh_capable);
    match (&decided.verdict, decided.intent) {
        (Verdict::Refuse(DropReason::NotInMesh), _) => Some(&codes::NOT_IN_MESH),
        (Verdict::Refuse(DropReason::ModeDisable), _) => Some(&codes::MODE_DISABLE),
        (Verdict::Refuse(DropReason::IdentityNotAccepted), _) => {
            Some(&codes::IDENTITY_NOT_ACCEPTED)
        }
        (Verdict::Refuse(_), _) => Some(&codes::NO_IDENTITY),
        (Verdict::Plaintext, Intent::Disable | Intent::Unset)
            if mode == Mode::Strict && in_mesh =>
        {
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

/// Clients of every namespace that has a workload, without labels: those that no `workloadSelector` names.
fn for_each_client_and_service(decider: &Decider, mut visit: impl FnMut(Client<'_>, &Service)) {
    let labels = BTreeMap::new();
    let workloads = decider.registry.workloads().iter();
    let namespaces: BTreeSet<_> = workloads.map(|workload| &workload.namespace).collect();
    for namespace in namespaces {
        for service in decider.registry.services() {
            if service.is_visible_to(namespace) {
                visit(
                    Client {
                        namespace,
                        labels: &labels,
                    },
                    service,
                );
            }
        }
    }
}

fn at_host(code: &'static Code, message: String, rule: &DestinationRule) -> Diagnostic {
    Diagnostic::new(code, message).at(rule.host.place.clone(), rule.host.value.len())
}
