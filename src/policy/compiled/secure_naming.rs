//! Secure naming in a decision: which identity is dialled, and may it answer (policy.md 7.1).

use std::{borrow::Cow, collections::BTreeSet, sync::Arc};

use crate::{
    policy::{
        ReasonCode,
        compiled::{
            decide::{Decided, Decider, Verdict},
            outcome::Intent,
        },
    },
    registry::{index::RegisteredWorkload, naming},
    spiffe::SpiffeId,
    wire::DropReason,
};

impl Decider {
    /// Secure naming: the identity of the endpoint must be among those that may answer (policy.md 7.1).
    pub(super) fn name(&self, decided: &mut Decided<'_>) {
        let Some(endpoint) = decided.endpoint else {
            return decided.refuse(DropReason::NotInMesh, ReasonCode::DestinationOutsideMesh);
        };
        decided.is_named = true;
        let peer = match &endpoint.identity {
            Some(identity) => self
                .may_answer(decided, endpoint, identity)
                .then_some(Cow::Borrowed(identity)),
            None => self.only_name(decided, endpoint).map(Cow::Owned),
        };
        let Some(peer) = peer else {
            let (reason, code) = if self.accepted(decided).is_empty() {
                (
                    DropReason::NoAuthorizedIdentity,
                    ReasonCode::NoAuthorizedIdentity,
                )
            } else {
                (
                    DropReason::IdentityNotAccepted,
                    ReasonCode::IdentityNotAccepted,
                )
            };
            return decided.refuse(reason, code);
        };
        decided.verdict = Verdict::Tunnel {
            peer,
            gateway: endpoint.gateway,
        };
        decided.code = if decided.intent == Intent::IstioMutual {
            ReasonCode::MutualByRule
        } else {
            ReasonCode::MutualAuto
        };
    }

    /// An identity is among [`Self::accepted`]; the usual one is known to be without making the set.
    fn may_answer(
        &self,
        decided: &Decided<'_>,
        endpoint: &RegisteredWorkload,
        identity: &SpiffeId,
    ) -> bool {
        match given(decided) {
            Some(names) => names.contains(identity.as_str()),
            None => decided.speaks(endpoint) || self.accepted(decided).contains(identity.as_str()),
        }
    }

    /// The one identity there is, before trust domain aliases, if there is exactly one.
    fn only_name(&self, decided: &Decided<'_>, endpoint: &RegisteredWorkload) -> Option<SpiffeId> {
        match given(decided) {
            Some(names) => sole(names.iter().map(|name| &**name)),
            None => sole(registered(decided, endpoint).into_iter()),
        }
    }

    /// The identities that may answer; none where the question did not come up. A DestinationRule's subjectAltNames
    /// replace the registry's set, and are not expanded.
    pub(crate) fn accepted(&self, decided: &Decided<'_>) -> BTreeSet<String> {
        let Some(endpoint) = decided.endpoint.filter(|_| decided.is_named) else {
            return BTreeSet::new();
        };
        match given(decided) {
            Some(names) => names.iter().map(|name| name.to_string()).collect(),
            None => naming::expand(
                registered(decided, endpoint),
                &self.mesh.trust_domain_aliases,
            ),
        }
    }
}

impl Decided<'_> {
    /// The endpoint speaks for the service; where the registry named it as the service's, that is known.
    fn speaks(&self, endpoint: &RegisteredWorkload) -> bool {
        self.is_own_endpoint || naming::speaks(self.service, endpoint)
    }
}

fn registered<'a>(decided: &Decided<'a>, endpoint: &'a RegisteredWorkload) -> BTreeSet<&'a str> {
    naming::registered(decided.service, endpoint, decided.speaks(endpoint))
}

/// The subjectAltNames of the rule that won.
fn given<'a>(decided: &Decided<'a>) -> Option<&'a BTreeSet<Arc<str>>> {
    decided.choice?.names()
}

/// The one identity of a set with exactly one member.
fn sole<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<SpiffeId> {
    let first = names.next()?;
    names.next().is_none().then(|| first.parse().ok()).flatten()
}
