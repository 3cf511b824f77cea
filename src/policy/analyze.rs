//! Findings: what the files say together that no single resource shows. None of them blocks but a registry that
//! contradicts itself.

use crate::{
    policy::{
        Diagnostic, HostFacts, Mode,
        compiled::decide::Decider,
        diagnostic::{Code, codes},
    },
    registry::{Place, index::RegistryError},
};

mod clients;
mod policies;
mod registry;
mod rules;

/// A registry that contradicts itself.
pub(crate) fn registry_error(error: &RegistryError) -> Diagnostic {
    match error {
        RegistryError::AddressClaimedTwice {
            address,
            first,
            second,
        } => {
            let message = format!(
                "`{address}` belongs to `{}` and cannot belong to `{}` too",
                first.0, second.0
            );
            Diagnostic::new(&codes::ADDRESS_CLAIMED_TWICE, message)
                .at(second.1.clone(), address.to_string().len())
                .with_label(format!("also declared at {}", first.1))
                .with_help(
                    "a workload owns its addresses: give each identity an address of its own",
                )
        }
        RegistryError::BadIdentity { place, reason } => {
            let message = format!("namespace and service account make no SPIFFE ID: {reason}");
            at(&codes::BAD_IDENTITY, message, place)
        }
    }
}

/// Everything worth telling about a set that compiles, warnings first.
pub(crate) fn findings(decider: &Decider, host: &HostFacts) -> Vec<Diagnostic> {
    let mut found = rules::findings(decider);
    found.extend(policies::findings(decider));
    found.extend(registry::findings(decider, host));
    found.extend(no_policy(decider));
    found.sort_by_key(|finding| finding.severity);
    found
}

fn no_policy(decider: &Decider) -> Option<Diagnostic> {
    let text = match decider.mesh.default_mode {
        Mode::Disable => {
            "no policy: plaintext is accepted, tunnels are not (`default_mode` is DISABLE)"
        }
        Mode::Permissive => "no policy: plaintext is accepted (`default_mode` is PERMISSIVE)",
        Mode::Strict => return None,
    };
    decider
        .modes
        .is_empty()
        .then(|| Diagnostic::new(&codes::NO_POLICY, text))
}

/// A finding whose place is known, but not how long the text there is.
fn at(code: &'static Code, message: String, place: &Place) -> Diagnostic {
    Diagnostic::new(code, message).at(place.clone(), 1)
}
