//! The story of a decision: the same steps that decide a packet note, where somebody listens, which rules they saw.

use std::borrow::Cow;

use crate::policy::{
    RuleRef,
    compiled::question::{Considered, Step},
};

/// Listens to the steps of a decision. For packets nobody does: [`Silent`].
pub(crate) trait Trace {
    /// Somebody listens. What is only said to a listener costs nothing where this is `false`.
    const ON: bool;

    /// A rule was considered.
    fn note(&mut self, step: Step, rule: RuleRef, won: bool, why: Cow<'static, str>);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Silent;

impl Trace for Silent {
    const ON: bool = false;

    fn note(&mut self, _: Step, _: RuleRef, _: bool, _: Cow<'static, str>) {}
}

/// Keeps everything, each rule once a step: as the winner where it won, else with the first reason why it lost.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// In the order of the steps.
    pub(crate) considered: Vec<Considered>,
}

impl Trace for Chain {
    const ON: bool = true;

    fn note(&mut self, step: Step, rule: RuleRef, won: bool, why: Cow<'static, str>) {
        let considered = Considered {
            step,
            rule,
            won,
            why: why.into_owned(),
        };
        let mut known = self
            .considered
            .iter_mut()
            .filter(|known| known.step == step && known.rule.resource == considered.rule.resource);
        match known.next() {
            Some(known) if won && !known.won => *known = considered,
            Some(_) => {}
            None => self.considered.push(considered),
        }
    }
}
