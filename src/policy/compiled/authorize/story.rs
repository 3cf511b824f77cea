//! What an authorization tells a listener: which policies it asked, and which part of their rules did not match.

use super::{
    Applied, Applying, Authorizations, Known, KnownRule,
    program::{Asked, Part},
    rule_at,
};
use crate::policy::compiled::{question::Step, trace::Trace};

/// Rules of one policy that are told one by one.
const MAX_TOLD: usize = 8;

impl Authorizations {
    pub(super) fn tell<T: Trace>(
        &self,
        applied: &Applied,
        found: Option<&KnownRule>,
        asked: &Asked<'_>,
        trace: &mut T,
    ) {
        let Some(policy) = self.policy(applied) else {
            return;
        };
        let why = match found {
            Some(rule) => format!("its rule {} matches", rule.number),
            None => self.mismatch(applied, policy, asked),
        };
        let rule = rule_at(policy, found).rule_ref();
        trace.note(Step::Authorization, rule, found.is_some(), why.into());
    }

    pub(super) fn tell_unenforced<T: Trace>(
        &self,
        applying: Applying,
        asked: &Asked<'_>,
        trace: &mut T,
    ) {
        for applied in self.telling(applying) {
            let Some(policy) = self.policy(applied) else {
                continue;
            };
            let mut rules = applied.rules();
            let found = rules.find(|(_, rule)| self.program.matches(*rule, policy.action, asked));
            let found = found.and_then(|(index, _)| policy.rules.get(index));
            let kind = if policy.dry_run { "dry run" } else { "AUDIT" };
            let why = match found {
                Some(rule) => format!("{kind}: its rule {} matches, not enforced", rule.number),
                None => format!("{kind}: no rule matches"),
            };
            let rule = rule_at(policy, found).rule_ref();
            trace.note(Step::Authorization, rule, false, why.into());
        }
    }

    /// Why no rule of a policy matches: for each the first part that does not.
    fn mismatch(&self, applied: &Applied, policy: &Known, asked: &Asked<'_>) -> String {
        if policy.rules.is_empty() {
            return "it has no rules, so it allows nothing".into();
        }
        let rules = applied.rules().zip(&policy.rules).take(MAX_TOLD);
        let told = rules.map(|((_, id), rule)| {
            let mut parts = Part::ALL.into_iter();
            let part =
                parts.find(|part| !self.program.part_matches(id, *part, policy.action, asked));
            let part = part.map_or("nothing", Part::as_str);
            format!("rule {}: `{part}` does not match", rule.number)
        });
        let mut told = told.collect::<Vec<_>>().join(", ");
        if policy.rules.len() > MAX_TOLD {
            told.push_str(", ...");
        }
        told
    }
}
