//! Which DestinationRule a client follows towards a service, and what it says (policy.md 3.2 to 3.6).

use identun::{
    policy::document::{ClientTls, DestinationRule},
    registry::{ResourceName, service::ExportTo},
};

use super::registry::{Host, Known, Service, selects};

impl Known<'_> {
    /// The rule that a client follows towards a service, and its tls settings for one port, or without a port for the
    /// service as a whole; None: unset.
    pub(crate) fn client_tls(
        &self,
        client: &Host,
        service: &Service<'_>,
        port: Option<u16>,
    ) -> (Option<&ResourceName>, Option<&ClientTls>) {
        let Some(rule) = self.rule(client, service) else {
            return (None, None);
        };
        let policy = rule.traffic_policy.as_ref();
        let mut ports = policy.iter().flat_map(|policy| &policy.ports);
        let tls = match ports.find(|entry| Some(entry.port) == port) {
            Some(entry) => entry.tls.as_ref(),
            None => policy.and_then(|policy| policy.tls.as_ref()),
        };
        (Some(&rule.resource), tls)
    }

    /// Client namespace, service namespace, root namespace: the first pool with a match ends the search.
    fn rule(&self, client: &Host, service: &Service<'_>) -> Option<&DestinationRule> {
        let root = &*self.mesh.root_namespace;
        let own = self.best(client, service.host, &client.namespace, |rule| {
            if &*client.namespace == root {
                is_private(rule)
            } else {
                rule.export_to.includes(&client.namespace)
            }
        });
        if own.is_some() {
            return own;
        }
        for namespace in [service.namespace(), root] {
            let exported = self.best(client, service.host, namespace, |rule| !is_private(rule));
            if let Some(rule) = exported
                && rule.export_to.includes(&client.namespace)
            {
                return exported;
            }
        }
        None
    }

    fn best(
        &self,
        client: &Host,
        host: &str,
        namespace: &str,
        is_member: impl Fn(&DestinationRule) -> bool,
    ) -> Option<&DestinationRule> {
        let mut best: Option<&DestinationRule> = None;
        for rule in &self.resources.destination_rules {
            let is_candidate = &*rule.resource.namespace == namespace
                && is_member(rule)
                && covers(&rule.host.value, host)
                && is_for(rule, client);
            if is_candidate
                && best.is_none_or(|best| preference(rule, client) > preference(best, client))
            {
                best = Some(rule);
            }
        }
        let best = best?;
        if best.traffic_policy.is_some() {
            return Some(best);
        }
        let lender = self.resources.destination_rules.iter().find(|rule| {
            rule.resource.namespace == best.resource.namespace
                && rule.host.value == best.host.value
                && rule.export_to == best.export_to
                && rule.workload_selector == best.workload_selector
                && rule.traffic_policy.is_some()
        });
        lender.or(Some(best))
    }
}

/// More specific hosts first, then rules for this very workload, then those that the client sees; among equals the
/// oldest, which is the first that comes.
fn preference(rule: &DestinationRule, client: &Host) -> (bool, usize, bool, bool) {
    (
        !rule.host.value.starts_with('*'),
        rule.host.value.len(),
        rule.workload_selector.is_some(),
        rule.export_to.includes(&client.namespace),
    )
}

/// `*` and a suffix cover every longer name with the suffix, and wildcard hosts that are narrower or equal.
fn covers(pattern: &str, host: &str) -> bool {
    match (pattern.strip_prefix('*'), host.strip_prefix('*')) {
        (None, _) => pattern == host,
        (Some(suffix), None) => host.ends_with(suffix),
        (Some(suffix), Some(rest)) => rest.ends_with(suffix),
    }
}

fn is_private(rule: &DestinationRule) -> bool {
    if rule.workload_selector.is_some() {
        return true;
    }
    match &rule.export_to {
        ExportTo::Namespaces(names) => names.len() == 1 && names.contains(&rule.resource.namespace),
        ExportTo::All | ExportTo::Nobody => false,
    }
}

fn is_for(rule: &DestinationRule, client: &Host) -> bool {
    match &rule.workload_selector {
        Some(wanted) => {
            rule.resource.namespace == client.namespace && selects(wanted, &client.labels)
        }
        None => true,
    }
}
