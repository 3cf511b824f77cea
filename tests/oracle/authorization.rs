//! Who may call: AuthorizationPolicy at layers 3 and 4 (policy.md 5).

use std::net::IpAddr;

use identun::{
    policy::{
        ReasonCode,
        document::{Action, AuthorizationPolicy, AuthorizationRule, Clause, StringMatch, Test},
    },
    registry::ResourceName,
};

use super::registry::{Host, Known, selects};

/// One connection as its destination sees it. `peer` is there with mutual TLS only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection<'a> {
    pub(crate) peer: Option<&'a Host>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: Option<u16>,
}

/// Why not, and who says so.
pub(crate) type Said<'k> = (Option<ReasonCode>, Option<&'k ResourceName>);

impl Known<'_> {
    /// What AuthorizationPolicies say: why the workload `server` does not take the connection, None where it does, and
    /// the policy that decides; where none of those that allow matches it is the first of them.
    pub(crate) fn authorize(&self, server: &Host, connection: Connection<'_>) -> Said<'_> {
        let all = self.resources.authorization_policies.iter();
        let enforced: Vec<_> = all
            .filter(|policy| !policy.dry_run && self.applies(policy, server))
            .collect();
        let matching = |action| {
            enforced.iter().find(|policy| {
                let mut rules = policy.rules.iter();
                policy.action == action
                    && rules.any(|rule| self.matches(rule, policy.action, connection))
            })
        };
        if let Some(policy) = matching(Action::Deny) {
            return (Some(ReasonCode::DeniedByPolicy), Some(&policy.resource));
        }
        if let Some(policy) = matching(Action::Allow) {
            return (None, Some(&policy.resource));
        }
        match enforced
            .iter()
            .find(|policy| policy.action == Action::Allow)
        {
            Some(policy) => (Some(ReasonCode::NoMatchingAllow), Some(&policy.resource)),
            None => (None, None),
        }
    }

    fn applies(&self, policy: &AuthorizationPolicy, server: &Host) -> bool {
        let own = &policy.resource.namespace;
        let is_near = *own == server.namespace || *own == self.mesh.root_namespace;
        let selector = policy.selector.as_ref();
        is_near && selector.is_none_or(|wanted| selects(wanted, &server.labels))
    }

    fn matches(
        &self,
        rule: &AuthorizationRule,
        action: Action,
        connection: Connection<'_>,
    ) -> bool {
        let holds = |clause: &Clause| self.holds(clause, action, connection);
        let any = |list: &[Vec<Clause>]| {
            list.is_empty() || list.iter().any(|clauses| clauses.iter().all(holds))
        };
        any(&rule.from) && any(&rule.to) && rule.when.iter().all(holds)
    }

    fn holds(&self, clause: &Clause, action: Action, connection: Connection<'_>) -> bool {
        match self.test(&clause.test, connection) {
            Some(found) => found != clause.negated,
            // a packet without a port: what is closed stays closed
            None => clause.negated && action == Action::Deny,
        }
    }

    /// One of the values matches; None where a port is asked for and there is none.
    fn test(&self, test: &Test, connection: Connection<'_>) -> Option<bool> {
        let peer = connection
            .peer
            .and_then(|peer| Some((peer, peer.account.clone()?)));
        let found = match test {
            Test::DestinationIp(networks) => networks
                .iter()
                .any(|network| network.contains(connection.destination)),
            Test::SourceIp(networks) => networks
                .iter()
                .any(|network| network.contains(connection.source)),
            Test::DestinationPort(ports) => {
                return connection.port.map(|port| ports.contains(&port));
            }
            Test::SourceNamespace(values) => {
                peer.is_some_and(|(peer, _)| fits(values, &peer.namespace))
            }
            Test::SourceServiceAccount(pairs) => peer.is_some_and(|(peer, account)| {
                let mut pairs = pairs.iter();
                pairs.any(|(namespace, name)| *namespace == peer.namespace && *name == account)
            }),
            Test::SourcePrincipal(values) => peer.is_some_and(|(peer, _)| {
                let names = self.trust_domains().into_iter();
                names
                    .filter_map(|trust_domain| peer.principal(trust_domain))
                    .any(|principal| fits(values, &principal))
            }),
            Test::SourceTrustDomain(values) => {
                let mut names = self.trust_domains().into_iter();
                peer.is_some() && names.any(|trust_domain| fits(values, trust_domain))
            }
        };
        Some(found)
    }

    /// The mesh's own name and its aliases: every peer is of the mesh, so each of them is its trust domain.
    pub(crate) fn trust_domains(&self) -> Vec<&str> {
        let aliases = self.mesh.trust_domain_aliases.iter();
        let own = std::iter::once(&self.mesh.trust_domain);
        own.chain(aliases).map(|name| name.as_str()).collect()
    }
}

fn fits(values: &[StringMatch], text: &str) -> bool {
    values.iter().any(|value| match value {
        StringMatch::Exact(value) => text == &**value,
        StringMatch::Prefix(value) => text.starts_with(&**value),
        StringMatch::Present => !text.is_empty(),
        StringMatch::Suffix(value) => text.ends_with(&**value),
    })
}
