//! Makes a mesh smaller as long as what is wrong with it stays wrong.

use identun::{
    policy::{
        HostFacts, MeshSettings, Resources,
        document::{AuthorizationRule, Clause, Test},
    },
    registry::service::{Endpoints, ExportTo, ServiceEntry},
};

use super::generate::{Mesh, ROOT};

/// The smallest mesh that steps of one removal find.
pub(crate) fn shrink(mesh: Mesh, is_wrong: impl Fn(&Mesh) -> bool) -> Mesh {
    let mut smallest = mesh;
    loop {
        let smaller = steps(&smallest).into_iter().find(|step| is_wrong(step));
        match smaller {
            Some(smaller) => smallest = smaller,
            None => return smallest,
        }
    }
}

/// Every mesh with one thing less.
fn steps(mesh: &Mesh) -> Vec<Mesh> {
    let mut steps = Vec::new();
    let mut offer = |change: &dyn Fn(&mut Resources)| {
        let mut step = mesh.clone();
        change(&mut step.resources);
        steps.push(step);
    };
    let all = &mesh.resources;
    offer(&|all| all.mesh_policy = None);
    each(&mut offer, all.authorization_policies.len(), |all| {
        &mut all.authorization_policies
    });
    each(&mut offer, all.destination_rules.len(), |all| {
        &mut all.destination_rules
    });
    each(&mut offer, all.peer_authentications.len(), |all| {
        &mut all.peer_authentications
    });
    each(&mut offer, all.policies.len(), |all| &mut all.policies);
    each(&mut offer, all.service_entries.len(), |all| {
        &mut all.service_entries
    });
    each(&mut offer, all.workloads.len(), |all| &mut all.workloads);
    within(&mut offer, all);
    let is_smaller = |step: &Mesh| weight(step) < weight(mesh);
    steps.retain(is_smaller);
    steps.extend(settings(mesh));
    steps
}

type Offer<'o> = dyn FnMut(&dyn Fn(&mut Resources)) + 'o;

/// One item of a list less.
fn each<T>(offer: &mut Offer<'_>, len: usize, list: impl Fn(&mut Resources) -> &mut Vec<T>) {
    for index in 0..len {
        offer(&|all| drop(list(all).remove(index)));
    }
}

/// One part of a resource less.
fn within(offer: &mut Offer<'_>, all: &Resources) {
    for (index, policy) in all.authorization_policies.iter().enumerate() {
        offer(&|all| all.authorization_policies[index].selector = None);
        offer(&|all| all.authorization_policies[index].dry_run = false);
        each(offer, policy.rules.len(), |all| {
            &mut all.authorization_policies[index].rules
        });
        for (number, rule) in policy.rules.iter().enumerate() {
            within_rule(offer, rule, |all| {
                &mut all.authorization_policies[index].rules[number]
            });
        }
    }
    for (index, rule) in all.destination_rules.iter().enumerate() {
        offer(&|all| all.destination_rules[index].workload_selector = None);
        offer(&|all| all.destination_rules[index].export_to = ExportTo::All);
        let Some(policy) = &rule.traffic_policy else {
            continue;
        };
        each(offer, policy.ports.len(), |all| {
            let policy = all.destination_rules[index].traffic_policy.as_mut();
            &mut policy.unwrap().ports
        });
        offer(&|all| {
            let policy = all.destination_rules[index].traffic_policy.as_mut();
            if let Some(tls) = &mut policy.unwrap().tls {
                tls.subject_alt_names = None;
            }
        });
    }
    for (index, policy) in all.peer_authentications.iter().enumerate() {
        for port in policy.ports.keys() {
            offer(&|all| drop(all.peer_authentications[index].ports.remove(port)));
        }
    }
    for (index, policy) in all.policies.iter().enumerate() {
        if policy.targets.len() > 1 {
            each(offer, policy.targets.len(), |all| {
                &mut all.policies[index].targets
            });
        }
        for (number, target) in policy.targets.iter().enumerate() {
            each(offer, target.ports.len(), |all| {
                &mut all.policies[index].targets[number].ports
            });
        }
    }
    for (index, entry) in all.service_entries.iter().enumerate() {
        within_service(offer, entry, |all| &mut all.service_entries[index]);
    }
    for (index, workload) in all.workloads.iter().enumerate() {
        offer(&|all| all.workloads[index].ports.clear());
        let removable = workload.labels.keys().filter(|key| !key.contains('/'));
        for key in removable {
            offer(&|all| drop(all.workloads[index].labels.remove(key)));
        }
    }
}

fn within_rule(
    offer: &mut Offer<'_>,
    rule: &AuthorizationRule,
    place: impl Fn(&mut Resources) -> &mut AuthorizationRule,
) {
    each(offer, rule.from.len(), |all| &mut place(all).from);
    each(offer, rule.to.len(), |all| &mut place(all).to);
    each(offer, rule.when.len(), |all| &mut place(all).when);
    for (index, clauses) in rule.from.iter().enumerate() {
        if clauses.len() > 1 {
            each(offer, clauses.len(), |all| &mut place(all).from[index]);
        }
        for (number, clause) in clauses.iter().enumerate() {
            if values(&clause.test) > 1 {
                offer(&|all| halve(&mut place(all).from[index][number], true));
                offer(&|all| halve(&mut place(all).from[index][number], false));
            }
        }
    }
}

fn within_service(
    offer: &mut Offer<'_>,
    entry: &ServiceEntry,
    place: impl Fn(&mut Resources) -> &mut ServiceEntry,
) {
    if entry.hosts.len() > 1 {
        each(offer, entry.hosts.len(), |all| &mut place(all).hosts);
    }
    if entry.ports.len() > 1 {
        each(offer, entry.ports.len(), |all| &mut place(all).ports);
    }
    each(offer, entry.addresses.len(), |all| {
        &mut place(all).addresses
    });
    each(offer, entry.subject_alt_names.len(), |all| {
        &mut place(all).subject_alt_names
    });
    offer(&|all| place(all).export_to = ExportTo::All);
    if let Endpoints::Inline(endpoints) = &entry.endpoints {
        for index in 0..endpoints.len() {
            offer(&|all| {
                if let Endpoints::Inline(endpoints) = &mut place(all).endpoints {
                    endpoints.remove(index);
                }
            });
        }
    }
}

/// The first or the other half of the values.
fn halve(clause: &mut Clause, first: bool) {
    fn keep<T>(values: &mut Vec<T>, first: bool) {
        let rest = values.split_off(values.len() / 2);
        if !first {
            *values = rest;
        }
    }
    match &mut clause.test {
        Test::DestinationIp(values) | Test::SourceIp(values) => keep(values, first),
        Test::SourceNamespace(values)
        | Test::SourcePrincipal(values)
        | Test::SourceTrustDomain(values) => keep(values, first),
        Test::DestinationPort(_) | Test::SourceServiceAccount(_) => {}
    }
}

fn values(test: &Test) -> usize {
    match test {
        Test::DestinationIp(values) | Test::SourceIp(values) => values.len(),
        Test::SourceNamespace(values)
        | Test::SourcePrincipal(values)
        | Test::SourceTrustDomain(values) => values.len(),
        Test::DestinationPort(values) => values.len(),
        Test::SourceServiceAccount(values) => values.len(),
    }
}

/// The length of everything that was written: a step must shorten it.
fn weight(mesh: &Mesh) -> usize {
    format!("{:?}", mesh.resources).len()
}

/// Settings and facts nearer to the default.
fn settings(mesh: &Mesh) -> Vec<Mesh> {
    let plain = MeshSettings {
        root_namespace: ROOT.into(),
        ..MeshSettings::default()
    };
    let mut steps = Vec::new();
    let mut offer = |change: &dyn Fn(&mut MeshSettings, &mut HostFacts)| {
        let mut step = mesh.clone();
        change(&mut step.mesh, &mut step.facts);
        steps.push(step);
    };
    if mesh.mesh.default_mode != plain.default_mode {
        offer(&|settings, _| settings.default_mode = plain.default_mode);
    }
    if mesh.mesh.auto_mtls != plain.auto_mtls {
        offer(&|settings, _| settings.auto_mtls = plain.auto_mtls);
    }
    if mesh.mesh.unknown_destination != plain.unknown_destination {
        offer(&|settings, _| settings.unknown_destination = plain.unknown_destination);
    }
    if mesh.mesh.unknown_source != plain.unknown_source {
        offer(&|settings, _| settings.unknown_source = plain.unknown_source);
    }
    if !mesh.mesh.trust_domain_aliases.is_empty() {
        offer(&|settings, _| drop(settings.trust_domain_aliases.pop()));
    }
    for address in &mesh.facts.underlay {
        offer(&|_, facts| {
            facts.underlay.remove(address);
        });
    }
    for identity in &mesh.facts.identities {
        offer(&|_, facts| {
            facts.identities.remove(identity);
        });
    }
    for exempt in &mesh.facts.exempt {
        offer(&|_, facts| {
            facts.exempt.remove(exempt);
        });
    }
    steps
}
