//! What a decision about a mode tells a listener: which policies it saw, and why they lost.

use std::net::IpAddr;

use super::{Levels, Modes, ServerMode, policy_ref, rule_ref};
use crate::{
    policy::compiled::{question::Step, trace::Trace},
    registry::{
        Registry,
        index::{RegisteredWorkload, Service},
    },
};

impl Modes {
    pub(super) fn tell_authentications<T: Trace>(
        &self,
        workload: &RegisteredWorkload,
        levels: Levels,
        won: &ServerMode<'_>,
        trace: &mut T,
    ) {
        if won.rule.is_some() {
            tell_won(won, "the narrowest that gives a mode", trace);
        }
        let is_root = workload.namespace == self.root;
        let own = if is_root {
            &[][..]
        } else {
            self.selectors.whole(&workload.namespace)
        };
        let selecting = self.selecting(workload);
        for (numbers, first) in [
            (self.selectors.whole(&self.root), levels.mesh),
            (own, levels.namespace),
            (&selecting, levels.workload),
        ] {
            for known in numbers
                .iter()
                .filter_map(|number| self.authentications.get(*number))
            {
                let first = self.authentication(first);
                let why = match first {
                    None => "a selector in the root namespace is ignored".into(),
                    Some(first) if first.resource != known.resource => {
                        format!("{} is older, and one counts a level", first.resource).into()
                    }
                    Some(_) if known.mode.value.is_none() => "its mode is UNSET: inherited".into(),
                    Some(_) => "a narrower one gives the mode".into(),
                };
                let rule = rule_ref(&known.resource, &known.mode.place);
                trace.note(Step::ServerMode, rule.rule_ref(), false, why);
            }
        }
        let in_root = self
            .selectors
            .selecting(&self.root, &workload.labels, |number| {
                self.authentications.get(number)?.selector.as_ref()
            });
        for known in in_root
            .iter()
            .filter_map(|number| self.authentications.get(*number))
        {
            let why = "a selector in the root namespace is ignored";
            let rule = rule_ref(&known.resource, &known.mode.place);
            trace.note(Step::ServerMode, rule.rule_ref(), false, why.into());
        }
    }

    /// The first generation where the second applies.
    pub(super) fn tell_replaced<T: Trace>(
        &self,
        registry: &Registry,
        workload: &RegisteredWorkload,
        address: IpAddr,
        trace: &mut T,
    ) {
        let why = "a PeerAuthentication applies to the workload, so v1alpha1 is ignored for it";
        for rule in self.replaced(registry, workload, address) {
            trace.note(Step::ServerMode, rule.rule_ref(), false, why.into());
        }
    }

    pub(super) fn tell_lost<T: Trace>(&self, services: &[&Service], trace: &mut T) {
        for service in services {
            for policy in self.targeting(service) {
                let why = "another policy comes first or is stricter";
                trace.note(
                    Step::ServerMode,
                    policy_ref(policy).rule_ref(),
                    false,
                    why.into(),
                );
            }
            let wider = self.namespace_level(service.namespace());
            for rule in [wider.rule, self.mesh_level().rule].into_iter().flatten() {
                let why = "a narrower policy replaces it";
                trace.note(Step::ServerMode, rule.rule_ref(), false, why.into());
            }
        }
    }
}

pub(super) fn tell_won<T: Trace>(mode: &ServerMode<'_>, why: &'static str, trace: &mut T) {
    if let Some(rule) = &mode.rule {
        trace.note(Step::ServerMode, rule.rule_ref(), true, why.into());
    }
}
