//! What an authorization tells a listener: which policies it asked, and which part of their rules did not match.

use super::{
    Applied, Authorizations, Kind, Known, KnownRule,
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
        applied: &[Applied],
        asked: &Asked<'_>,
        trace: &mut T,
    ) {
        let told = applied.iter().filter(|applied| applied.kind == Kind::Told);
        for applied in told {
            let Some(policy) = self.policy(applied) else {
                continue;
            };
            let found = self
                .program
                .first_match(applied.tests, policy.action, asked);
            let found = found.and_then(|index| self.rule(applied, index));
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
        let mut rules = self.rules(applied).peekable();
        if rules.peek().is_none() {
            return "it has no rules, so it allows nothing".into();
        }
        let told = rules.by_ref().take(MAX_TOLD).map(|(known, rule)| {
            let part = self.program.mismatch(rule, policy.action, asked);
            let part = part.map_or("nothing", Part::as_str);
            format!("rule {}: `{part}` does not match", known.number)
        });
        let mut told = told.collect::<Vec<_>>().join(", ");
        if rules.peek().is_some() {
            told.push_str(", ...");
        }
        told
    }
}
