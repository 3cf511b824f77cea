//! Which clients a finding about a service has to ask for: one of each kind that rules tell apart, not all.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    policy::compiled::decide::Decider,
    registry::{index::Service, service::ExportTo},
};

/// Namespaces that have workloads, and those of them that have rules of their own.
pub(super) struct Clients<'a> {
    decider: &'a Decider,
    namespaces: BTreeSet<&'a Arc<str>>,
    /// Namespaces by the exact hosts, or by the wildcards' suffixes, of their rules.
    by_host: BTreeMap<&'a str, BTreeSet<&'a Arc<str>>>,
    by_suffix: BTreeMap<&'a str, BTreeSet<&'a Arc<str>>>,
    lengths: BTreeSet<usize>,
}

impl<'a> Clients<'a> {
    pub(super) fn new(decider: &'a Decider) -> Self {
        let workloads = decider.registry.workloads().iter();
        let namespaces: BTreeSet<_> = workloads.map(|workload| &workload.namespace).collect();
        let mut clients = Self {
            decider,
            namespaces,
            by_host: BTreeMap::new(),
            by_suffix: BTreeMap::new(),
            lengths: BTreeSet::new(),
        };
        for rule in decider.rules.iter() {
            let namespace = &rule.resource.namespace;
            if !clients.namespaces.contains(namespace) {
                continue;
            }
            let list = match rule.host.value.strip_prefix('*') {
                Some(suffix) => {
                    clients.lengths.insert(suffix.len());
                    clients.by_suffix.entry(suffix).or_default()
                }
                None => clients.by_host.entry(&rule.host.value).or_default(),
            };
            list.insert(namespace);
        }
        clients
    }

    /// Namespaces whose clients may decide differently for a service: those with a rule for it, those that an exported
    /// rule names, and one for all others.
    pub(super) fn of(&self, service: &'a Service) -> BTreeSet<&'a Arc<str>> {
        let mut told_apart: BTreeSet<&Arc<str>> = BTreeSet::new();
        let tail = service.host.strip_prefix('*').unwrap_or(&service.host);
        told_apart.extend(self.by_host.get(&*service.host).into_iter().flatten());
        for length in self.lengths.range(..=tail.len()) {
            let start = tail.len().saturating_sub(*length);
            let suffix = tail.get(start..).unwrap_or_default();
            told_apart.extend(self.by_suffix.get(suffix).into_iter().flatten());
        }
        for rule in self.decider.rules.exportable(service) {
            if let ExportTo::Namespaces(names) = &rule.export_to {
                told_apart.extend(names.iter().filter_map(|name| self.namespaces.get(name)));
            }
        }
        told_apart.retain(|namespace| service.is_visible_to(namespace));
        let others = || {
            let all = self.namespaces.iter();
            all.filter(|namespace| service.is_visible_to(namespace))
        };
        if let Some(other) = others().find(|namespace| !told_apart.contains(*namespace)) {
            told_apart.insert(other);
        }
        told_apart
    }
}
