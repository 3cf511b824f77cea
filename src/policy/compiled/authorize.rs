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
    id: RuleId,
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
}

/// Numbers of the policies that apply to a workload, in their order.
#[derive(Clone, Debug, Default)]
struct Applying {
    deny: Box<[u32]>,
    allow: Box<[u32]>,
    /// Dry runs and AUDIT: told, never enforced.
    told: Box<[u32]>,
}

impl Authorizations {
    /// Finds for each workload of `registry` the policies that apply to it.
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: &Registry) -> Self {
        let mut program = Program::new(mesh);
        let policies: Vec<_> = resources
            .authorization_policies
            .iter()
            .map(|policy| known(policy, &mut program))
            .collect();
        let selectors = Selectors::new(
            policies
                .iter()
                .map(|policy| (&policy.resource.namespace, policy.selector.as_ref())),
        );
        let mut authorizations = Self {
            policies,
            program,
            by_workload: Vec::new(),
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
        let (mut deny, mut allow, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for number in numbers {
            let Some(policy) = self.policies.get(number) else {
                continue;
            };
            let list = match policy.action {
                _ if policy.dry_run => &mut told,
                Action::Audit => &mut told,
                Action::Allow => &mut allow,
                Action::Deny => &mut deny,
            };
            list.extend(u32::try_from(number));
        }
        Applying {
            deny: deny.into(),
            allow: allow.into(),
            told: told.into(),
        }
    }

    /// DENY before ALLOW; without an ALLOW policy everything else is allowed (policy.md 5.2).
    pub(crate) fn authorize<T: Trace>(
        &self,
        workload: &RegisteredWorkload,
        call: &Call<'_>,
        trace: &mut T,
    ) -> Authorization<'_> {
        let Some(applying) = self.by_workload.get(workload.number) else {
            return ALLOWED;
        };
        let asked = Asked::new(call);
        if T::ON {
            self.tell_unenforced(applying, &asked, trace);
        }
        for policy in self.of(&applying.deny) {
            if let Some(rule) = self.matching(policy, &asked, trace) {
                return refused(Refusal::Denied, rule_at(policy, Some(rule)));
            }
        }
        let mut allow = self.of(&applying.allow);
        for policy in allow.clone() {
            if let Some(rule) = self.matching(policy, &asked, trace) {
                return Authorization {
                    refusal: None,
                    rule: Some(rule_at(policy, Some(rule))),
                };
            }
        }
        match allow.next() {
            Some(first) => refused(Refusal::NotAllowed, rule_at(first, None)),
            None => ALLOWED,
        }
    }

    /// Ports that some enforced rule for the workload tells apart.
    pub(crate) fn ports(&self, workload: &RegisteredWorkload) -> BTreeSet<u16> {
        let rules = self.enforced(workload);
        rules.flat_map(|rule| self.program.ports(rule.id)).collect()
    }

    /// Source networks that some enforced rule for the workload tells apart.
    pub(crate) fn networks(&self, workload: &RegisteredWorkload) -> BTreeSet<IpNetwork> {
        let rules = self.enforced(workload);
        rules
            .flat_map(|rule| self.program.source_networks(rule.id))
            .collect()
    }

    /// The policies that apply to a workload, enforced or told.
    pub(crate) fn applying_to(
        &self,
        workload: &RegisteredWorkload,
    ) -> impl Iterator<Item = &Known> {
        let applying = self.by_workload.get(workload.number).into_iter();
        applying.flat_map(|applying| {
            self.of(&applying.deny)
                .chain(self.of(&applying.allow))
                .chain(self.of(&applying.told))
        })
    }

    /// Every policy.
    pub(crate) fn policies(&self) -> &[Known] {
        &self.policies
    }

    fn of<'a>(&'a self, numbers: &'a [u32]) -> impl Iterator<Item = &'a Known> + Clone {
        numbers
            .iter()
            .filter_map(|number| self.policies.get(usize::try_from(*number).ok()?))
    }

    /// The enforced rules of a workload.
    fn enforced(&self, workload: &RegisteredWorkload) -> impl Iterator<Item = &KnownRule> {
        let applying = self.by_workload.get(workload.number).into_iter();
        let policies =
            applying.flat_map(|applying| self.of(&applying.deny).chain(self.of(&applying.allow)));
        policies.flat_map(|policy| &policy.rules)
    }

    /// The first rule of a policy that matches.
    fn matching<'a, T: Trace>(
        &self,
        policy: &'a Known,
        asked: &Asked<'_>,
        trace: &mut T,
    ) -> Option<&'a KnownRule> {
        let found = policy
            .rules
            .iter()
            .find(|rule| self.program.matches(rule.id, policy.action, asked));
        if T::ON {
            self.tell(policy, found, asked, trace);
        }
        found
    }
}

const ALLOWED: Authorization<'static> = Authorization {
    refusal: None,
    rule: None,
};

fn known(policy: &AuthorizationPolicy, program: &mut Program) -> Known {
    let rules = policy.rules.iter().map(|rule| KnownRule {
        id: program.add(rule),
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
