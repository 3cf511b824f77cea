//! Who may call: AuthorizationPolicies at layers 3 and 4 (policy.md 5).

mod program;
mod story;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use ipnetwork::IpNetwork;

use self::program::{Asked, Program, RuleId};
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
    rules: Vec<KnownRule>,
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
    program: Program,
    by_workload: Vec<Applying>,
    /// What [`Applying`] counts.
    applying: Vec<Applied>,
}

/// A policy that applies, and its rules in the program, which follow one another: all that a call needs that does not
/// match.
#[derive(Clone, Copy, Debug)]
struct Applied {
    number: u32,
    first: RuleId,
    count: u32,
}

/// Policies that apply to a workload, each kind in its order: so many numbers from `begin` on.
#[derive(Clone, Copy, Debug, Default)]
struct Applying {
    begin: u32,
    deny: u32,
    allow: u32,
    /// Dry runs and AUDIT: told, never enforced.
    told: u32,
}

impl Applied {
    /// The policy's rules in the program, each with its index.
    fn rules(&self) -> impl Iterator<Item = (usize, RuleId)> + use<> {
        let first = self.first;
        let ids = (0..self.count).map(move |index| first.plus(index));
        ids.enumerate()
    }
}

impl Authorizations {
    /// Finds for each workload of `registry` the policies that apply to it.
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: &Registry) -> Self {
        let mut program = Program::new(mesh);
        let written = &resources.authorization_policies;
        let applied: Vec<_> = (0..)
            .zip(written)
            .map(|(number, policy)| applied(number, policy, &mut program))
            .collect();
        let mut authorizations = Self {
            policies: written.iter().map(known).collect(),
            program,
            by_workload: Vec::new(),
            applying: Vec::new(),
        };
        let selectors = Selectors::new(
            written
                .iter()
                .map(|policy| (&policy.resource.namespace, policy.selector.as_ref())),
        );
        for workload in registry.workloads() {
            let root = &mesh.root_namespace;
            let applying = authorizations.apply(&applied, &selectors, root, workload);
            authorizations.by_workload.push(applying);
        }
        authorizations
    }

    /// Policies of the workload's namespace and of the root namespace, without a selector or with one that selects it.
    fn apply(
        &mut self,
        applied: &[Applied],
        selectors: &Selectors,
        root: &Arc<str>,
        workload: &RegisteredWorkload,
    ) -> Applying {
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
        let kind_of = |policy: &Known| match policy.action {
            _ if policy.dry_run => 2,
            Action::Audit => 2,
            Action::Allow => 1,
            Action::Deny => 0,
        };
        let begin = self.applying.len();
        let mut counts = [0_u32; 3];
        for (kind, count) in counts.iter_mut().enumerate() {
            for number in &numbers {
                let policy = self.policies.get(*number);
                if policy.is_some_and(|policy| kind_of(policy) == kind) {
                    self.applying.extend(applied.get(*number));
                    *count += 1;
                }
            }
        }
        let [deny, allow, told] = counts;
        Applying {
            begin: u32::try_from(begin).unwrap_or(u32::MAX),
            deny,
            allow,
            told,
        }
    }

    /// DENY before ALLOW; without an ALLOW policy everything else is allowed (policy.md 5.2).
    pub(crate) fn authorize<T: Trace>(
        &self,
        workload: &RegisteredWorkload,
        call: &Call<'_>,
        trace: &mut T,
    ) -> Authorization<'_> {
        let Some(&applying) = self.by_workload.get(workload.number) else {
            return ALLOWED;
        };
        let asked = Asked::new(call);
        if T::ON {
            self.tell_unenforced(applying, &asked, trace);
        }
        for policy in self.denying(applying) {
            if let Some(rule) = self.matching(policy, Action::Deny, &asked, trace) {
                return refused(Refusal::Denied, rule);
            }
        }
        let allowing = self.allowing(applying);
        for policy in allowing {
            if let Some(rule) = self.matching(policy, Action::Allow, &asked, trace) {
                return Authorization {
                    refusal: None,
                    rule: Some(rule),
                };
            }
        }
        match allowing.first().and_then(|first| self.policy(first)) {
            Some(first) => refused(Refusal::NotAllowed, rule_at(first, None)),
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
        let applying = self.by_workload.get(workload.number);
        let applying = applying.copied().unwrap_or_default();
        let count = applying.deny + applying.allow + applying.told;
        let applied = self.applied(applying.begin, count);
        applied.iter().filter_map(|applied| self.policy(applied))
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> &[Known] {
        &self.policies
    }

    fn policy(&self, applied: &Applied) -> Option<&Known> {
        self.policies.get(usize::try_from(applied.number).ok()?)
    }

    fn applied(&self, begin: u32, count: u32) -> &[Applied] {
        let range = usize::try_from(begin).ok().zip(usize::try_from(count).ok());
        range
            .and_then(|(begin, count)| self.applying.get(begin..begin.checked_add(count)?))
            .unwrap_or_default()
    }

    fn denying(&self, applying: Applying) -> &[Applied] {
        self.applied(applying.begin, applying.deny)
    }

    fn allowing(&self, applying: Applying) -> &[Applied] {
        self.applied(applying.begin + applying.deny, applying.allow)
    }

    fn telling(&self, applying: Applying) -> &[Applied] {
        let begin = applying.begin + applying.deny + applying.allow;
        self.applied(begin, applying.told)
    }

    /// The enforced rules of a workload.
    fn enforced(&self, workload: &RegisteredWorkload) -> impl Iterator<Item = RuleId> {
        let applying = self.by_workload.get(workload.number);
        let applying = applying.copied().unwrap_or_default();
        let enforced = self.applied(applying.begin, applying.deny + applying.allow);
        let rules = enforced.iter().flat_map(Applied::rules);
        rules.map(|(_, rule)| rule)
    }

    /// The first rule of a policy that matches.
    fn matching<'a, T: Trace>(
        &'a self,
        applied: &Applied,
        action: Action,
        asked: &Asked<'_>,
        trace: &mut T,
    ) -> Option<RuleAt<'a>> {
        let mut rules = applied.rules();
        let found = rules.find(|(_, rule)| self.program.matches(*rule, action, asked));
        if !T::ON && found.is_none() {
            return None;
        }
        let policy = self.policy(applied)?;
        let rule = found.and_then(|(index, _)| policy.rules.get(index));
        if T::ON {
            self.tell(applied, rule, asked, trace);
        }
        rule.map(|rule| rule_at(policy, Some(rule)))
    }
}

const ALLOWED: Authorization<'static> = Authorization {
    refusal: None,
    rule: None,
};

fn applied(number: u32, policy: &AuthorizationPolicy, program: &mut Program) -> Applied {
    let first = program.next();
    for rule in &policy.rules {
        program.add(rule);
    }
    Applied {
        number,
        first,
        count: u32::try_from(policy.rules.len()).unwrap_or_default(),
    }
}

fn known(policy: &AuthorizationPolicy) -> Known {
    let rules = policy.rules.iter().map(|rule| KnownRule {
        place: rule.place.clone(),
        number: rule.number,
    });
    Known {
        resource: policy.resource.clone(),
        place: policy.place.clone(),
        selector: policy.selector.clone(),
        action: policy.action,
        dry_run: policy.dry_run,
        rules: rules.collect(),
    }
}

const fn refused(refusal: Refusal, rule: RuleAt<'_>) -> Authorization<'_> {
    Authorization {
        refusal: Some(refusal),
        rule: Some(rule),
    }
}

fn rule_at<'a>(policy: &'a Known, rule: Option<&'a KnownRule>) -> RuleAt<'a> {
    RuleAt {
        resource: &policy.resource,
        place: rule.map_or(&policy.place, |rule| &rule.place),
    }
}
