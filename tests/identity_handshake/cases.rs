//! The table of bad certificates: what is wrong, how little a good twin differs, and the reason that must be given.

mod names;
mod paths;
mod uses;

use identun::identity::{IssuerError, SvidError, VerifyError};

use crate::forge::Spec;

/// One bad certificate.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) spoil: fn(&mut Spec),
    /// What differs in one field and is accepted.
    pub(crate) twin: fn(&mut Spec),
    pub(crate) reason: VerifyError,
}

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    [
        names::names(),
        names::ids(),
        uses::usages(),
        uses::keys_and_encodings(),
        paths::issuers(),
        paths::paths(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn case(
    name: &'static str,
    spoil: fn(&mut Spec),
    twin: fn(&mut Spec),
    reason: VerifyError,
) -> Case {
    Case {
        name,
        spoil,
        twin,
        reason,
    }
}

fn svid(error: SvidError) -> VerifyError {
    VerifyError::Svid(error)
}

fn issuer(error: IssuerError) -> VerifyError {
    VerifyError::Issuer { position: 1, error }
}
