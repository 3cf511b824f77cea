//! Secure naming in a decision: which identity is dialled, and may it answer (policy.md 7.1).

use std::collections::BTreeSet;

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
        let (only, accepted) = self.accepted(decided, endpoint);
        let peer = match &endpoint.identity {
            Some(identity) => accepted
                .contains(identity.as_str())
                .then(|| identity.clone()),
            None => only,
        };
        let is_empty = accepted.is_empty();
        decided.accepted = accepted;
        let Some(peer) = peer else {
            let (reason, code) = if is_empty {
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

    /// The identities that may answer, and the one there is if there is exactly one before trust domain aliases. A
    /// DestinationRule's subjectAltNames replace the registry's set, and are not expanded.
    fn accepted(
        &self,
        decided: &Decided<'_>,
        endpoint: &RegisteredWorkload,
    ) -> (Option<SpiffeId>, BTreeSet<String>) {
        let given = decided
            .choice
            .and_then(|choice| choice.tls?.subject_alt_names.as_ref());
        if let Some(names) = given {
            let accepted = names.iter().map(|name| name.to_string()).collect();
            return (sole(names.iter().map(|name| &**name)), accepted);
        }
        let registered = naming::registered(decided.service, endpoint);
        let only = sole(registered.iter().copied());
        (
            only,
            naming::expand(registered, &self.mesh.trust_domain_aliases),
        )
    }
}

/// The one identity of a set with exactly one member.
fn sole<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<SpiffeId> {
    let first = names.next()?;
    names.next().is_none().then(|| first.parse().ok()).flatten()
}
