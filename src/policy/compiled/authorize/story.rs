//! What an authorization tells a listener: which policies it asked, and which part of their rules did not match.

use super::{
    Applying, Authorizations, Known, KnownRule,
    program::{Asked, Part},
    rule_at,
};
use crate::policy::compiled::{question::Step, trace::Trace};

/// Rules of one policy that are told one by one.
const MAX_TOLD: usize = 8;

impl Authorizations {
    pub(super) fn tell<T: Trace>(
        &self,
        policy: &Known,
        found: Option<&KnownRule>,
        asked: &Asked<'_>,
        trace: &mut T,
    ) {
        let why = match found {
            Some(rule) => format!("its rule {} matches", rule.number),
            None => self.mismatch(policy, asked),
        };
        let rule = rule_at(policy, found).rule_ref();
        trace.note(Step::Authorization, rule, found.is_some(), why.into());
    }

    pub(super) fn tell_unenforced<T: Trace>(
        &self,
        applying: &Applying,
        asked: &Asked<'_>,
        trace: &mut T,
    ) {
        for policy in self.of(&applying.told) {
            let mut rules = policy.rules.iter();
            let found = rules.find(|rule| self.program.matches(rule.id, policy.action, asked));
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
    fn mismatch(&self, policy: &Known, asked: &Asked<'_>) -> String {
        if policy.rules.is_empty() {
            return "it has no rules, so it allows nothing".into();
        }
        let rules = policy.rules.iter().take(MAX_TOLD).map(|rule| {
            let mut parts = Part::ALL.into_iter();
            let part = parts.find(|part| {
                !self
                    .program
                    .part_matches(rule.id, *part, policy.action, asked)
            });
            let part = part.map_or("nothing", Part::as_str);
            format!("rule {}: `{part}` does not match", rule.number)
        });
        let mut told = rules.collect::<Vec<_>>().join(", ");
        if policy.rules.len() > MAX_TOLD {
            told.push_str(", ...");
        }
        told
    }
}
