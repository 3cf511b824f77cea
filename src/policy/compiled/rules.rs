//! DestinationRule lookup: which rule a client follows towards a service (policy.md 3.2 to 3.6).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    policy::{
        compiled::RuleRef,
        document::{ClientTls, DestinationRule, TrafficPolicy},
    },
    registry::{
        index::{RegisteredWorkload, is_subset},
        service::ExportTo,
    },
};

/// Who asks: lookup depends on the client's namespace and labels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client<'a> {
    /// The client workload's namespace.
    pub(crate) namespace: &'a Arc<str>,
    /// Its labels.
    pub(crate) labels: &'a BTreeMap<Arc<str>, Arc<str>>,
}

impl<'a> From<&'a RegisteredWorkload> for Client<'a> {
    fn from(workload: &'a RegisteredWorkload) -> Self {
        Self {
            namespace: &workload.namespace,
            labels: &workload.labels,
        }
    }
}

/// The rule that won, and the tls settings it gives for the port asked about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice<'a> {
    /// The rule whose traffic policy counts.
    pub(crate) rule: &'a DestinationRule,
    /// `None`: unset.
    pub(crate) tls: Option<&'a ClientTls>,
}

impl Choice<'_> {
    /// The rule, at the setting that decided.
    pub(crate) fn rule_ref(&self) -> RuleRef {
        let place = self.tls.map_or(&self.rule.host.place, |tls| &tls.place);
        RuleRef {
            resource: self.rule.resource.clone(),
            place: place.clone(),
        }
    }
}

/// Every DestinationRule, by namespace, oldest first.
#[derive(Debug)]
pub(crate) struct Rules {
    by_namespace: BTreeMap<Arc<str>, Vec<DestinationRule>>,
    root: Arc<str>,
}

impl Rules {
    pub(crate) fn new(rules: &[DestinationRule], root: &Arc<str>) -> Self {
        let mut by_namespace: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule in rules {
            let namespace = Arc::clone(&rule.resource.namespace);
            by_namespace
                .entry(namespace)
                .or_default()
                .push(rule.clone());
        }
        Self {
            by_namespace,
            root: Arc::clone(root),
        }
    }

    /// What `client` is told for `port` of a service; `port` is the service's port number, `None` asks for the service
    /// as a whole. Pools are asked in order and the first with a match ends the search, also when its rule says
    /// nothing about tls (policy.md 3.3).
    pub(crate) fn find(
        &self,
        client: Client<'_>,
        host: &str,
        namespace: &str,
        port: Option<u16>,
    ) -> Option<Choice<'_>> {
        let found = self
            .client_pool(client, host)
            .or_else(|| self.exported_pool(namespace, client, host))
            .or_else(|| self.exported_pool(&self.root, client, host))?;
        let tls = found
            .traffic_policy
            .as_ref()
            .and_then(|policy| tls_of(policy, port));
        Some(Choice { rule: found, tls })
    }

    /// The pools in which `find` looks, each with its winner; for findings about rules that hide others.
    pub(crate) fn winners(
        &self,
        client: Client<'_>,
        host: &str,
        namespace: &str,
    ) -> [Option<&DestinationRule>; 3] {
        [
            self.client_pool(client, host),
            self.exported_pool(namespace, client, host),
            self.exported_pool(&self.root, client, host),
        ]
    }

    /// Every rule with its namespace's rules in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &DestinationRule> {
        self.by_namespace.values().flatten()
    }

    /// Rules of the client's own namespace that it sees; for clients of the root namespace only that namespace's
    /// private rules, so that mesh-wide rules stay the last resort for them too.
    fn client_pool(&self, client: Client<'_>, host: &str) -> Option<&DestinationRule> {
        let is_member = |rule: &DestinationRule| {
            if *client.namespace == self.root {
                is_private(rule)
            } else {
                rule.export_to.includes(client.namespace)
            }
        };
        self.pool(client.namespace, client, host, is_member)
    }

    fn exported_pool(
        &self,
        namespace: &str,
        client: Client<'_>,
        host: &str,
    ) -> Option<&DestinationRule> {
        let found = self.pool(namespace, client, host, |rule| !is_private(rule))?;
        found.export_to.includes(client.namespace).then_some(found)
    }

    /// The winner among the members: most specific host, then a rule for this very client, then visible ones, then the
    /// oldest. A rule without traffic policy takes the next one's of the same host, audience and selector.
    fn pool(
        &self,
        namespace: &str,
        client: Client<'_>,
        host: &str,
        is_member: impl Fn(&DestinationRule) -> bool,
    ) -> Option<&DestinationRule> {
        let members = || {
            let rules = self.by_namespace.get(namespace).into_iter().flatten();
            rules.filter(|rule| {
                is_member(rule) && selects(rule, client) && host_matches(&rule.host.value, host)
            })
        };
        let best = members().map(|rule| specificity(&rule.host.value)).max()?;
        let ranked = members().filter(|rule| specificity(&rule.host.value) == best);
        let first = ranked.clone().min_by_key(|rule| {
            (
                rule.workload_selector.is_none(),
                !rule.export_to.includes(client.namespace),
            )
        })?;
        let merged = ranked.filter(|rule| {
            rule.export_to == first.export_to && rule.workload_selector == first.workload_selector
        });
        merged
            .into_iter()
            .find(|rule| rule.traffic_policy.is_some())
            .or(Some(first))
    }
}

/// Tells whether a rule's host (`*`, `*suffix` or a name) covers a service's. The suffix is a plain string, not labels; a
/// service host with a wildcard is covered by equal or wider wildcards only (policy.md 3.1, 3.2).
pub(crate) fn host_matches(rule: &str, host: &str) -> bool {
    match (rule.strip_prefix('*'), host.strip_prefix('*')) {
        (Some(rule), Some(host)) => host.ends_with(rule),
        (Some(rule), None) => host.ends_with(rule),
        (None, _) => rule == host,
    }
}

/// Rules that can never decide because an older rule of the same host, audience and selector has a traffic policy.
pub(crate) fn shadowed(rules: &Rules) -> Vec<(&DestinationRule, &DestinationRule)> {
    let mut first: BTreeMap<_, &DestinationRule> = BTreeMap::new();
    let mut shadowed = Vec::new();
    for rule in rules.iter().filter(|rule| rule.traffic_policy.is_some()) {
        let audience = match &rule.export_to {
            ExportTo::All => None,
            ExportTo::Namespaces(names) => Some(names.clone()),
            ExportTo::Nobody => Some(BTreeSet::new()),
        };
        let key = (
            &rule.resource.namespace,
            &rule.host.value,
            audience,
            &rule.workload_selector,
        );
        match first.get(&key) {
            Some(older) => shadowed.push((*older, rule)),
            None => drop(first.insert(key, rule)),
        }
    }
    shadowed
}

/// A port's entry replaces the rule's settings as a block: without tls there it is unset (policy.md 3.6).
fn tls_of(policy: &TrafficPolicy, port: Option<u16>) -> Option<&ClientTls> {
    let entry = port.and_then(|port| policy.ports.iter().find(|entry| entry.port == port));
    entry.map_or(policy.tls.as_ref(), |entry| entry.tls.as_ref())
}

/// An exact host beats every wildcard; a longer wildcard beats a shorter one.
fn specificity(host: &str) -> (bool, usize) {
    (!host.starts_with('*'), host.len())
}

/// Exported to its own namespace alone; a workload selector forces that (policy.md 3.4).
fn is_private(rule: &DestinationRule) -> bool {
    let exported_to_own = match &rule.export_to {
        ExportTo::Namespaces(names) => names.len() == 1 && names.contains(&rule.resource.namespace),
        ExportTo::All | ExportTo::Nobody => false,
    };
    exported_to_own || rule.workload_selector.is_some()
}

/// A rule whose selector does not name this client does not exist for it.
fn selects(rule: &DestinationRule, client: Client<'_>) -> bool {
    rule.workload_selector.as_ref().is_none_or(|wanted| {
        rule.resource.namespace == *client.namespace && is_subset(wanted, client.labels)
    })
}
