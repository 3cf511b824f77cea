//! Who may call: AuthorizationPolicies at layers 3 and 4 (policy.md 5).

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        MeshSettings, ReasonCode, Resources, RuleRef,
        compiled::{question::Step, select::Selectors, trace::Trace},
        document::{Action, AuthorizationPolicy, AuthorizationRule, Clause, StringMatch, Test},
    },
    registry::{Registry, index::RegisteredWorkload},
    spiffe::SpiffeId,
};

/// A connection as the server sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a> {
    /// Who calls; `None` for plaintext.
    pub(crate) identity: Option<&'a SpiffeId>,
    /// The packet's source address.
    pub(crate) source: IpAddr,
    /// The packet's destination address.
    pub(crate) destination: IpAddr,
    /// The packet's destination port; `None` for a packet without ports.
    pub(crate) port: Option<u16>,
}

/// What the policies of a workload say to a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Authorization {
    /// `None`: allowed.
    pub(crate) refusal: Option<Refusal>,
    /// The rule that allowed or denied; where no ALLOW policy matched, the first of them.
    pub(crate) rule: Option<RuleRef>,
}

/// Why a call is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// A DENY policy matches.
    Denied,
    /// No ALLOW policy of those that apply matches.
    NotAllowed,
}

impl Refusal {
    /// As the code of a decision.
    pub(crate) const fn code(self) -> ReasonCode {
        match self {
            Self::Denied => ReasonCode::DeniedByPolicy,
            Self::NotAllowed => ReasonCode::NoMatchingAllow,
        }
    }
}

/// Every AuthorizationPolicy, and for each workload which of them apply.
#[derive(Debug)]
pub(crate) struct Authorizations {
    policies: Vec<AuthorizationPolicy>,
    by_workload: Vec<Applying>,
    /// The mesh's own trust domain and its aliases, which are one to every rule.
    domains: Vec<Arc<str>>,
}

/// Numbers of the policies that apply to a workload, in their order.
#[derive(Clone, Debug, Default)]
struct Applying {
    deny: Vec<usize>,
    allow: Vec<usize>,
    /// Dry runs and AUDIT: told, never enforced.
    told: Vec<usize>,
}

impl Authorizations {
    /// Finds for each workload of `registry` the policies that apply to it.
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: &Registry) -> Self {
        let policies = resources.authorization_policies.clone();
        let selectors = Selectors::new(
            policies
                .iter()
                .map(|policy| (&policy.resource.namespace, policy.selector.as_ref())),
        );
        let aliases = mesh.trust_domain_aliases.iter();
        let domains = std::iter::once(&mesh.trust_domain)
            .chain(aliases)
            .map(|domain| domain.as_str().into())
            .collect();
        let mut authorizations = Self {
            policies,
            by_workload: Vec::new(),
            domains,
        };
        let workloads = registry.workloads().iter();
        authorizations.by_workload = workloads
            .map(|workload| authorizations.applying(&selectors, &mesh.root_namespace, workload))
            .collect();
        authorizations
    }

    /// Policies of the workload's namespace and of the root namespace, without a selector or with one that selects it.
    fn applying(
        &self,
        selectors: &Selectors,
        root: &Arc<str>,
        workload: &RegisteredWorkload,
    ) -> Applying {
        let mut applying = Applying::default();
        let own = &workload.namespace;
        let namespaces = [Some(own), (root != own).then_some(root)];
        let mut numbers = Vec::new();
        for namespace in namespaces.into_iter().flatten() {
            numbers.extend_from_slice(selectors.whole(namespace));
            numbers.extend(selectors.selecting(namespace, &workload.labels, |number| {
                self.policies.get(number)?.selector.as_ref()
            }));
        }
        numbers.sort_unstable();
        for number in numbers {
            let Some(policy) = self.policies.get(number) else {
                continue;
            };
            let list = match policy.action {
                _ if policy.dry_run => &mut applying.told,
                Action::Audit => &mut applying.told,
                Action::Allow => &mut applying.allow,
                Action::Deny => &mut applying.deny,
            };
            list.push(number);
        }
        applying
    }

    /// DENY before ALLOW; without an ALLOW policy everything else is allowed (policy.md 5.2).
    pub(crate) fn authorize<T: Trace>(
        &self,
        workload: &RegisteredWorkload,
        call: &Call<'_>,
        trace: &mut T,
    ) -> Authorization {
        let Some(applying) = self.by_workload.get(workload.number) else {
            return ALLOWED;
        };
        if T::ON {
            self.tell_unenforced(applying, call, trace);
        }
        for policy in self.of(&applying.deny) {
            match self.matching(policy, call, trace) {
                Some(rule) => {
                    return refused(Refusal::Denied, rule_ref(policy, Some(rule)));
                }
                None => continue,
            }
        }
        let mut allow = self.of(&applying.allow);
        for policy in allow.clone() {
            if let Some(rule) = self.matching(policy, call, trace) {
                return Authorization {
                    refusal: None,
                    rule: Some(rule_ref(policy, Some(rule))),
                };
            }
        }
        match allow.next() {
            Some(first) => refused(Refusal::NotAllowed, rule_ref(first, None)),
            None => ALLOWED,
        }
    }

    /// Ports that some rule for the workload tells apart.
    pub(crate) fn ports(&self, workload: &RegisteredWorkload) -> BTreeSet<u16> {
        let mut ports = BTreeSet::new();
        for test in self.tests(workload) {
            if let Test::DestinationPort(values) = test {
                ports.extend(values);
            }
        }
        ports
    }

    /// Source networks that some rule for the workload tells apart.
    pub(crate) fn networks(&self, workload: &RegisteredWorkload) -> BTreeSet<IpNetwork> {
        let mut networks = BTreeSet::new();
        for test in self.tests(workload) {
            if let Test::SourceIp(values) = test {
                networks.extend(values);
            }
        }
        networks
    }

    /// The policies that apply to a workload, enforced or told.
    pub(crate) fn applying_to(
        &self,
        workload: &RegisteredWorkload,
    ) -> impl Iterator<Item = &AuthorizationPolicy> {
        let applying = self.by_workload.get(workload.number).into_iter();
        applying.flat_map(|applying| {
            self.of(&applying.deny)
                .chain(self.of(&applying.allow))
                .chain(self.of(&applying.told))
        })
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> &[AuthorizationPolicy] {
        &self.policies
    }

    fn of<'a>(
        &'a self,
        numbers: &'a [usize],
    ) -> impl Iterator<Item = &'a AuthorizationPolicy> + Clone {
        numbers
            .iter()
            .filter_map(|number| self.policies.get(*number))
    }

    /// What the enforced rules of a workload look at.
    fn tests(&self, workload: &RegisteredWorkload) -> impl Iterator<Item = &Test> {
        let applying = self.by_workload.get(workload.number);
        let numbers = applying
            .into_iter()
            .flat_map(|applying| applying.deny.iter().chain(&applying.allow));
        let rules = numbers
            .filter_map(|number| self.policies.get(*number))
            .flat_map(|policy| &policy.rules);
        rules
            .flat_map(|rule| rule.from.iter().chain(&rule.to).flatten().chain(&rule.when))
            .map(|clause| &clause.test)
    }

    /// The first rule of a policy that matches.
    fn matching<'a, T: Trace>(
        &self,
        policy: &'a AuthorizationPolicy,
        call: &Call<'_>,
        trace: &mut T,
    ) -> Option<&'a AuthorizationRule> {
        let found = policy
            .rules
            .iter()
            .find(|rule| self.rule_matches(policy.action, rule, call));
        if T::ON {
            let why = match found {
                Some(rule) => format!("its rule {} matches", rule.number),
                None => self.mismatch(policy, call),
            };
            let rule = rule_ref(policy, found);
            trace.note(Step::Authorization, rule, found.is_some(), why.into());
        }
        found
    }

    fn rule_matches(&self, action: Action, rule: &AuthorizationRule, call: &Call<'_>) -> bool {
        let all = |clauses: &Vec<Clause>| {
            clauses
                .iter()
                .all(|clause| self.clause_matches(action, clause, call))
        };
        (rule.from.is_empty() || rule.from.iter().any(all))
            && (rule.to.is_empty() || rule.to.iter().any(all))
            && all(&rule.when)
    }

    fn clause_matches(&self, action: Action, clause: &Clause, call: &Call<'_>) -> bool {
        // Without a port nothing can be said about it: the answer is the one that lets less through (policy.md 0.6).
        if matches!(clause.test, Test::DestinationPort(_)) && call.port.is_none() {
            return clause.negated && action == Action::Deny;
        }
        self.test_matches(&clause.test, call) != clause.negated
    }

    fn test_matches(&self, test: &Test, call: &Call<'_>) -> bool {
        let account = || call.identity?.service_account();
        match test {
            Test::DestinationIp(networks) => contains(networks, call.destination),
            Test::DestinationPort(ports) => call.port.is_some_and(|port| ports.contains(&port)),
            Test::SourceIp(networks) => contains(networks, call.source),
            Test::SourceNamespace(values) => {
                account().is_some_and(|(namespace, _)| any(values, namespace))
            }
            Test::SourceServiceAccount(values) => account().is_some_and(|(namespace, account)| {
                values
                    .iter()
                    .any(|known| (&*known.0, &*known.1) == (namespace, account))
            }),
            Test::SourcePrincipal(values) => call
                .identity
                .is_some_and(|identity| self.principal_matches(values, identity)),
            Test::SourceTrustDomain(values) => call.identity.is_some_and(|identity| {
                let domain = identity.trust_domain_str();
                match self.is_own(domain) {
                    true => self.domains.iter().any(|domain| any(values, domain)),
                    false => any(values, domain),
                }
            }),
        }
    }

    /// An identity of the mesh's own trust domain has that of each alias too.
    fn principal_matches(&self, values: &[StringMatch], identity: &SpiffeId) -> bool {
        if any(values, identity.as_principal()) {
            return true;
        }
        self.domains.len() > 1
            && self.is_own(identity.trust_domain_str())
            && self
                .domains
                .iter()
                .any(|domain| any(values, &format!("{domain}{}", identity.path())))
    }

    fn is_own(&self, domain: &str) -> bool {
        self.domains.iter().any(|own| **own == *domain)
    }

    fn tell_unenforced<T: Trace>(&self, applying: &Applying, call: &Call<'_>, trace: &mut T) {
        for policy in self.of(&applying.told) {
            let found = policy
                .rules
                .iter()
                .find(|rule| self.rule_matches(policy.action, rule, call));
            let kind = if policy.dry_run { "dry run" } else { "AUDIT" };
            let why = match found {
                Some(rule) => format!("{kind}: its rule {} matches, not enforced", rule.number),
                None => format!("{kind}: no rule matches"),
            };
            trace.note(
                Step::Authorization,
                rule_ref(policy, found),
                false,
                why.into(),
            );
        }
    }

    /// Why no rule of a policy matches: for each the first part that does not.
    fn mismatch(&self, policy: &AuthorizationPolicy, call: &Call<'_>) -> String {
        if policy.rules.is_empty() {
            return "it has no rules, so it allows nothing".into();
        }
        let rules = policy.rules.iter().take(MAX_TOLD).map(|rule| {
            let alone = |from, to, when| AuthorizationRule {
                from,
                to,
                when,
                place: rule.place.clone(),
                number: rule.number,
            };
            let matches = |part| self.rule_matches(policy.action, &part, call);
            let part = if !matches(alone(rule.from.clone(), Vec::new(), Vec::new())) {
                "from"
            } else if !matches(alone(Vec::new(), rule.to.clone(), Vec::new())) {
                "to"
            } else {
                "when"
            };
            format!("rule {}: `{part}` does not match", rule.number)
        });
        let mut told = rules.collect::<Vec<_>>().join(", ");
        if policy.rules.len() > MAX_TOLD {
            told.push_str(", ...");
        }
        told
    }
}

const MAX_TOLD: usize = 8;
const ALLOWED: Authorization = Authorization {
    refusal: None,
    rule: None,
};

const fn refused(refusal: Refusal, rule: RuleRef) -> Authorization {
    Authorization {
        refusal: Some(refusal),
        rule: Some(rule),
    }
}

fn rule_ref(policy: &AuthorizationPolicy, rule: Option<&AuthorizationRule>) -> RuleRef {
    let place = rule.map_or(&policy.place, |rule| &rule.place);
    RuleRef {
        resource: policy.resource.clone(),
        place: place.clone(),
    }
}

fn contains(networks: &[IpNetwork], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(address))
}

fn any(values: &[StringMatch], text: &str) -> bool {
    values.iter().any(|value| match value {
        StringMatch::Exact(wanted) => **wanted == *text,
        StringMatch::Prefix(wanted) => text.starts_with(&**wanted),
        StringMatch::Present => !text.is_empty(),
        StringMatch::Suffix(wanted) => text.ends_with(&**wanted),
    })
}
