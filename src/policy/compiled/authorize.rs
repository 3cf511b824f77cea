//! Who may call: AuthorizationPolicies at layers 3 and 4 (policy.md 5).

mod program;
mod story;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use self::program::{Asked, Program, Rule, RulesAt};
use crate::{
    policy::{
        MeshSettings, ReasonCode, Resources,
        compiled::{RuleAt, select::Selectors, trace::Trace},
        document::{Action, AuthorizationPolicy, Labels},
    },
    registry::{Place, Registry, ResourceName, index::RegisteredWorkload},
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authorization<'a> {
    /// `None`: allowed.
    pub(crate) refusal: Option<Refusal>,
    /// The rule that allowed or denied; where no ALLOW policy matched, the first of them.
    pub(crate) rule: Option<RuleAt<'a>>,
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

/// A policy, less what its rules test, which is in the program.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) resource: ResourceName,
    /// Where its name stands.
    pub(crate) place: Place,
    pub(crate) selector: Option<Labels>,
    action: Action,
    dry_run: bool,
}

#[derive(Debug)]
struct KnownRule {
    place: Place,
    /// In the file, from 1.
    number: usize,
}

/// Every AuthorizationPolicy, and for each workload which of them apply.
#[derive(Debug)]
pub(crate) struct Authorizations {
    policies: Vec<Known>,
    /// Those of a policy follow one another.
    rules: Vec<KnownRule>,
    program: Program,
    /// Policies that apply to a workload, by kind and each kind in its order; those of a workload follow one another.
    applied: Vec<Applied>,
    /// Where in `applied` those of each workload begin; they end where the next workload's begin.
    by_workload: Vec<u32>,
}

/// A policy that applies, and where its rules are: all that a call needs that does not match, and to name the rule
/// that does.
#[derive(Clone, Copy, Debug)]
struct Applied {
    policy: u32,
    kind: Kind,
    /// The first of its [`KnownRule`]s.
    rule: u32,
    /// Their tests.
    tests: RulesAt,
}

/// What a policy is applied as, in the order of asking.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    Deny,
    Allow,
    /// A dry run or AUDIT: told, never enforced.
    Told,
}

impl Kind {
    const fn of(policy: &AuthorizationPolicy) -> Self {
        match policy.action {
            _ if policy.dry_run => Self::Told,
            Action::Allow => Self::Allow,
            Action::Audit => Self::Told,
            Action::Deny => Self::Deny,
        }
    }
}

impl Authorizations {
    /// Finds for each workload of `registry` the policies that apply to it.
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: &Registry) -> Self {
        let written = &resources.authorization_policies;
        let mut authorizations = Self {
            policies: written.iter().map(known).collect(),
            rules: Vec::new(),
            program: Program::new(mesh),
            applied: Vec::new(),
            by_workload: vec![0],
        };
        let applied: Vec<_> = (0..)
            .zip(written)
            .map(|(number, policy)| authorizations.add(number, policy))
            .collect();
        let selectors = Selectors::new(
            written
                .iter()
                .map(|policy| (&policy.resource.namespace, policy.selector.as_ref())),
        );
        for workload in registry.workloads() {
            authorizations.apply(&applied, &selectors, &mesh.root_namespace, workload);
        }
        authorizations
    }

    fn add(&mut self, policy: u32, written: &AuthorizationPolicy) -> Applied {
        let rule = place_in(&self.rules);
        self.rules
            .extend(written.rules.iter().map(|rule| KnownRule {
                place: rule.place.clone(),
                number: rule.number,
            }));
        Applied {
            policy,
            kind: Kind::of(written),
            rule,
            tests: self.program.add(&written.rules),
        }
    }

    /// Policies of the workload's namespace and of the root namespace, without a selector or with one that selects it.
    fn apply(
        &mut self,
        applied: &[Applied],
        selectors: &Selectors,
        root: &Arc<str>,
        workload: &RegisteredWorkload,
    ) {
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
        let applying = numbers.iter().filter_map(|number| applied.get(*number));
        for kind in [Kind::Deny, Kind::Allow, Kind::Told] {
            let of_kind = applying.clone().filter(|applied| applied.kind == kind);
            self.applied.extend(of_kind);
        }
        self.by_workload.push(place_in(&self.applied));
    }

    /// DENY before ALLOW; without an ALLOW policy everything else is allowed (policy.md 5.2).
    pub(crate) fn authorize<T: Trace>(
        &self,
        workload: &RegisteredWorkload,
        call: &Call<'_>,
        trace: &mut T,
    ) -> Authorization<'_> {
        let applied = self.applied(workload);
        let asked = Asked::new(call);
        if T::ON {
            self.tell_unenforced(applied, &asked, trace);
        }
        let mut unmatched = None;
        for policy in applied {
            let action = match policy.kind {
                Kind::Deny => Action::Deny,
                Kind::Allow => Action::Allow,
                Kind::Told => break,
            };
            if let Some(rule) = self.matching(policy, action, &asked, trace) {
                let refusal = (policy.kind == Kind::Deny).then_some(Refusal::Denied);
                return Authorization {
                    refusal,
                    rule: Some(rule),
                };
            }
            if policy.kind == Kind::Allow {
                unmatched = unmatched.or(Some(policy));
            }
        }
        match unmatched.and_then(|first| self.policy(first)) {
            Some(first) => Authorization {
                refusal: Some(Refusal::NotAllowed),
                rule: Some(rule_at(first, None)),
            },
            None => ALLOWED,
        }
    }

    /// Ports that some enforced rule for the workload tells apart.
    pub(crate) fn ports(&self, workload: &RegisteredWorkload) -> BTreeSet<u16> {
        let rules = self.enforced(workload);
        rules.flat_map(|rule| self.program.ports(rule)).collect()
    }

    /// Source networks that some enforced rule for the workload tells apart.
    pub(crate) fn networks(&self, workload: &RegisteredWorkload) -> BTreeSet<IpNetwork> {
        let rules = self.enforced(workload);
        rules
            .flat_map(|rule| self.program.source_networks(rule))
            .collect()
    }

    /// The policies that apply to a workload, enforced or told.
    pub(crate) fn applying_to(
        &self,
        workload: &RegisteredWorkload,
    ) -> impl Iterator<Item = &Known> {
        let applied = self.applied(workload).iter();
        applied.filter_map(|applied| self.policy(applied))
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> &[Known] {
        &self.policies
    }

    fn policy(&self, applied: &Applied) -> Option<&Known> {
        self.policies.get(usize::try_from(applied.policy).ok()?)
    }

    /// The rule of a policy with this index.
    fn rule(&self, applied: &Applied, index: usize) -> Option<&KnownRule> {
        let first = usize::try_from(applied.rule).ok()?;
        self.rules.get(first.checked_add(index)?)
    }

    /// The rules of a policy as they are known, and what they test.
    fn rules(&self, applied: &Applied) -> impl Iterator<Item = (&KnownRule, Rule<'_>)> {
        let first = usize::try_from(applied.rule).ok();
        let known = first.and_then(|first| self.rules.get(first..));
        let known = known.unwrap_or_default().iter();
        known.zip(self.program.rules(applied.tests))
    }

    fn applied(&self, workload: &RegisteredWorkload) -> &[Applied] {
        let place = |workload: usize| {
            let place = self.by_workload.get(workload)?;
            usize::try_from(*place).ok()
        };
        let next = workload.number.checked_add(1);
        place(workload.number)
            .zip(next.and_then(place))
            .and_then(|(begin, end)| self.applied.get(begin..end))
            .unwrap_or_default()
    }

    /// The enforced rules of a workload.
    fn enforced(&self, workload: &RegisteredWorkload) -> impl Iterator<Item = Rule<'_>> {
        let applied = self.applied(workload).iter();
        let enforced = applied.filter(|applied| applied.kind != Kind::Told);
        enforced.flat_map(|applied| self.program.rules(applied.tests))
    }

    /// The first rule of a policy that matches.
    fn matching<'a, T: Trace>(
        &'a self,
        applied: &Applied,
        action: Action,
        asked: &Asked<'_>,
        trace: &mut T,
    ) -> Option<RuleAt<'a>> {
        let found = self.program.first_match(applied.tests, action, asked);
        let rule = found.and_then(|index| self.rule(applied, index));
        if T::ON {
            self.tell(applied, rule, asked, trace);
        }
        Some(rule_at(self.policy(applied)?, Some(rule?)))
    }
}

const ALLOWED: Authorization<'static> = Authorization {
    refusal: None,
    rule: None,
};

fn known(policy: &AuthorizationPolicy) -> Known {
    Known {
        resource: policy.resource.clone(),
        place: policy.place.clone(),
        selector: policy.selector.clone(),
        action: policy.action,
        dry_run: policy.dry_run,
    }
}

/// Where the next of a list stands. Lists are bounded far below the end of the number.
fn place_in<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn rule_at<'a>(policy: &'a Known, rule: Option<&'a KnownRule>) -> RuleAt<'a> {
    RuleAt {
        resource: &policy.resource,
        place: rule.map_or(&policy.place, |rule| &rule.place),
    }
}
