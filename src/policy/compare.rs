//! What a change of policy would do: one question to two compiled policies, and the flows whose end differs.
//!
//! Owns no judgement of its own: every outcome is [`Compiled::explain`]'s.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    policy::{
        Compiled, Explanation, MeshSettings, Mode, Question, ReasonCode, Resources, RuleRef,
        compiled::outcome::Outcome,
    },
    registry::{ResourceName, index::RegisteredWorkload},
};

mod classes;
mod whole;

pub use whole::{Comparison, Mentioned, ModeChange, Row, compare};

/// How a flow ends under one policy, and by which rules.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Side {
    /// How.
    pub outcome: Outcome,
    /// Why, as a code.
    pub code: ReasonCode,
    /// Why, as a sentence without a full stop.
    pub reason: String,
    /// The rules that decided, each at the setting that counts.
    pub rules: Vec<RuleRef>,
}

impl Side {
    /// Asks `policy`.
    pub fn of(policy: &Compiled, question: &Question) -> Self {
        let &Question {
            source,
            destination,
            protocol,
            port,
        } = question;
        policy.explain(source, destination, protocol, port).into()
    }

    /// The flow does not come about.
    pub const fn is_refused(&self) -> bool {
        is_refused(self.outcome)
    }
}

impl From<Explanation> for Side {
    fn from(explanation: Explanation) -> Self {
        let rules = [
            explanation.client_rule,
            explanation.server_rule,
            explanation.authorization,
        ];
        Self {
            outcome: explanation.outcome,
            code: explanation.code,
            reason: explanation.reason,
            rules: rules.into_iter().flatten().collect(),
        }
    }
}

/// A flow that ends differently.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Change {
    /// Before.
    pub old: Side,
    /// After.
    pub new: Side,
}

impl Change {
    /// The change of one flow; `None` where its outcome stays.
    pub fn of(old: &Compiled, new: &Compiled, question: &Question) -> Option<Self> {
        let stays = old.decide(question).outcome == new.decide(question).outcome;
        (!stays).then(|| Self {
            old: Side::of(old, question),
            new: Side::of(new, question),
        })
    }
}

/// What a change means to the two ends of a flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It worked, and would not.
    NewlyRefused,
    /// It was encrypted, and would not be.
    NewlyPlaintext,
    /// It was plaintext, and would not be.
    NewlyEncrypted,
    /// It did not work, and would.
    NewlyAllowed,
    /// Nothing that the two ends see.
    Unchanged,
}

impl Effect {
    /// Of one outcome after another.
    pub const fn of(old: Outcome, new: Outcome) -> Self {
        match (is_refused(old), is_refused(new)) {
            (false, true) => Self::NewlyRefused,
            (true, false) => Self::NewlyAllowed,
            (true, true) => Self::Unchanged,
            (false, false) => match (old, new) {
                (Outcome::Mtls, Outcome::Plaintext) => Self::NewlyPlaintext,
                (Outcome::Plaintext, Outcome::Mtls) => Self::NewlyEncrypted,
                _ => Self::Unchanged,
            },
        }
    }

    /// Its words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NewlyRefused => "newly refused",
            Self::NewlyPlaintext => "newly plaintext",
            Self::NewlyEncrypted => "newly encrypted",
            Self::NewlyAllowed => "newly allowed",
            Self::Unchanged => "unchanged",
        }
    }
}

/// The outcome of a flow that does not come about.
pub const fn is_refused(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Mtls | Outcome::Plaintext => false,
        Outcome::RefusedByClient | Outcome::RefusedByServer => true,
    }
}

/// Every mode that is written, and the default, becomes STRICT.
pub fn make_strict(resources: &mut Resources, mesh: &mut MeshSettings) {
    mesh.default_mode = Mode::Strict;
    if let Some(policy) = &mut resources.mesh_policy {
        policy.mode.value = Mode::Strict;
    }
    for policy in &mut resources.policies {
        policy.mode.value = Mode::Strict;
    }
    for policy in &mut resources.peer_authentications {
        let modes = std::iter::once(&mut policy.mode).chain(policy.ports.values_mut());
        for mode in modes.filter(|mode| mode.value.is_some()) {
            mode.value = Some(Mode::Strict);
        }
    }
}

/// `base` with `added` applied: a resource of the same kind, namespace and name is replaced where it stands, as its age
/// stays; others are the youngest.
pub fn apply(base: &mut Resources, added: Resources) {
    if added.mesh_policy.is_some() {
        base.mesh_policy = added.mesh_policy;
    }
    merge(&mut base.policies, added.policies, |one| &one.resource);
    merge(
        &mut base.peer_authentications,
        added.peer_authentications,
        |one| &one.resource,
    );
    merge(
        &mut base.authorization_policies,
        added.authorization_policies,
        |one| &one.resource,
    );
    merge(
        &mut base.destination_rules,
        added.destination_rules,
        |one| &one.resource,
    );
    merge(&mut base.service_entries, added.service_entries, |one| {
        &one.resource
    });
    merge(&mut base.workloads, added.workloads, |one| &one.resource);
}

fn merge<T>(base: &mut Vec<T>, added: Vec<T>, name: fn(&T) -> &ResourceName) {
    let mut added: BTreeMap<_, _> = added
        .into_iter()
        .enumerate()
        .map(|(age, one)| (name(&one).clone(), (age, one)))
        .collect();
    for one in base.iter_mut() {
        if let Some((_, newer)) = added.remove(name(one)) {
            *one = newer;
        }
    }
    let mut rest: Vec<_> = added.into_values().collect();
    rest.sort_by_key(|(age, _)| *age);
    base.extend(rest.into_iter().map(|(_, one)| one));
}

/// A workload as people call it: `namespace/account`, or its declaration where it has no account.
pub fn name_of(workload: &RegisteredWorkload) -> String {
    let identity = workload.identity.as_ref();
    match identity.and_then(|identity| identity.service_account()) {
        Some((namespace, account)) => format!("{namespace}/{account}"),
        None => workload.resource.to_string(),
    }
}

#[cfg(test)]
mod tests;
