//! Findings about modes and authorization: policies that apply to nothing, hide one another or overlap.

use std::collections::{BTreeMap, BTreeSet};

use super::at;
use crate::{
    policy::{
        Diagnostic,
        compiled::decide::Decider,
        diagnostic::codes,
        document::{Labels, Policy, PortSelector, Target},
    },
    registry::{
        Place, ResourceName,
        index::{RegisteredWorkload, Service},
    },
};

pub(super) fn findings(decider: &Decider) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for policy in decider.modes.policies() {
        for target in &policy.targets {
            found.extend(target_without_service(decider, policy, target));
            found.extend(target_without_port(decider, policy, target));
        }
    }
    for service in decider.registry.services() {
        found.extend(policies_that_overlap(decider, service));
    }
    found.extend(selecting_nothing(decider));
    found.extend(of_workloads(decider));
    found
}

fn services<'a>(
    decider: &'a Decider,
    policy: &'a Policy,
    target: &'a Target,
) -> impl Iterator<Item = &'a Service> {
    let namespace = &policy.resource.namespace;
    let services = decider.registry.services_of_host(&target.host.value);
    services.filter(move |service| service.namespace() == namespace)
}

fn target_without_service(
    decider: &Decider,
    policy: &Policy,
    target: &Target,
) -> Option<Diagnostic> {
    if services(decider, policy, target).next().is_some() {
        return None;
    }
    let message = format!(
        "no service of the namespace has the host `{}`, so {} is not enforced there",
        target.host.value, policy.resource
    );
    let finding = at(&codes::TARGET_WITHOUT_SERVICE, message, &target.host.place);
    Some(finding.with_help("a target is the short name of a service in the Policy's own namespace"))
}

fn target_without_port(decider: &Decider, policy: &Policy, target: &Target) -> Vec<Diagnostic> {
    let is_known = |wanted: &PortSelector| {
        services(decider, policy, target).any(|service| {
            service.ports.iter().any(|port| match wanted {
                PortSelector::Name(name) => *name == port.name,
                PortSelector::Number(number) => *number == port.number,
            })
        })
    };
    if services(decider, policy, target).next().is_none() {
        return Vec::new();
    }
    let unknown = target.ports.iter().filter(|port| !is_known(&port.value));
    let finding = |port: &crate::policy::document::Placed<PortSelector>| {
        let name = match &port.value {
            PortSelector::Name(name) => format!("no port named `{name}`"),
            PortSelector::Number(number) => format!("no port {number}"),
        };
        let message = format!("the service `{}` has {name}", target.host.value);
        at(&codes::TARGET_WITHOUT_PORT, message, &port.place)
            .with_help("ports of a target are service ports, not those of the workload")
    };
    unknown.map(finding).collect()
}

fn policies_that_overlap(decider: &Decider, service: &Service) -> Vec<Diagnostic> {
    let mut first: BTreeMap<Option<&PortSelector>, &Policy> = BTreeMap::new();
    let mut found = Vec::new();
    for policy in decider.modes.targeting(service) {
        let targets = policy.targets.iter();
        for target in targets.filter(|target| target.host.value == service.host) {
            let ports: Vec<_> = target.ports.iter().map(|port| Some(&port.value)).collect();
            let ports = if ports.is_empty() { vec![None] } else { ports };
            let older = ports
                .iter()
                .find_map(|port| first.get(port).copied())
                .filter(|older| older.resource != policy.resource);
            if let Some(older) = older {
                let message = format!(
                    "{} names the same port of `{}` and comes first",
                    older.resource, service.host
                );
                found.push(
                    at(&codes::POLICIES_OVERLAP, message, &target.host.place)
                        .with_label(format!("also named at {}", older.place)),
                );
            }
            for port in ports {
                first.entry(port).or_insert(policy);
            }
        }
    }
    found
}

/// Selectors without a workload: most often a misspelt label.
fn selecting_nothing(decider: &Decider) -> Vec<Diagnostic> {
    let mut selecting = BTreeSet::new();
    for workload in decider.registry.workloads() {
        let authentications = decider.modes.selecting_all(workload);
        selecting.extend(authentications.map(|known| &known.resource));
        let authorizations = decider.authorizations.applying_to(workload);
        selecting.extend(authorizations.map(|known| &known.resource));
    }
    let root = &decider.mesh.root_namespace;
    let authentications = decider.modes.authentications().iter();
    let authentications = authentications
        // in the root namespace a selector is ignored anyway, which the loader has said
        .filter(|known| known.resource.namespace != *root)
        .map(|known| (&known.resource, &known.place, known.selector.as_ref()));
    let authorizations = decider.authorizations.policies().iter();
    let authorizations =
        authorizations.map(|known| (&known.resource, &known.place, known.selector.as_ref()));
    authentications
        .chain(authorizations)
        .filter(|(resource, _, _)| !selecting.contains(resource))
        .filter_map(|(resource, place, selector)| Some(selects_nothing(resource, place, selector?)))
        .collect()
}

fn selects_nothing(resource: &ResourceName, place: &Place, selector: &Labels) -> Diagnostic {
    let labels: Vec<_> = selector
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let message = format!(
        "no workload has the labels {} that {resource} selects",
        labels.join(", ")
    );
    at(&codes::SELECTS_NOTHING, message, place)
}

/// What several policies say about one workload.
fn of_workloads(decider: &Decider) -> Vec<Diagnostic> {
    let mut told = BTreeSet::new();
    let mut found = Vec::new();
    for workload in decider.registry.workloads() {
        found.extend(both_generations(decider, workload, &mut told));
        let mut selecting = decider.modes.selecting_all(workload);
        let Some(first) = selecting.next() else {
            continue;
        };
        for later in selecting {
            if told.insert((later.resource.clone(), first.resource.clone())) {
                let message = format!(
                    "{} selects the workload at `{}` too and is older, so only it counts there",
                    first.resource, workload.address
                );
                found.push(
                    at(&codes::AUTHENTICATIONS_OVERLAP, message, &later.place)
                        .with_label(format!("the older one is at {}", first.place)),
                );
            }
        }
    }
    found
}

fn both_generations(
    decider: &Decider,
    workload: &RegisteredWorkload,
    told: &mut BTreeSet<(ResourceName, ResourceName)>,
) -> Vec<Diagnostic> {
    let Some(known) = decider.modes.narrowest(workload) else {
        return Vec::new();
    };
    let replaced = decider
        .modes
        .replaced(&decider.registry, workload, workload.address);
    let mut found = Vec::new();
    for rule in replaced {
        if told.insert((rule.resource.clone(), known.resource.clone())) {
            let message = format!(
                "{} is ignored for the workload at `{}`: {} applies to it",
                rule.resource, workload.address, known.resource
            );
            found.push(
                at(&codes::BOTH_GENERATIONS, message, rule.place)
                    .with_label(format!("replaced at {}", known.place))
                    .with_help("a PeerAuthentication replaces the older kinds where it applies"),
            );
        }
    }
    found
}
