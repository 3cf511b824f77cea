//! What one handshake saw, carried out of TLS callbacks that can only say yes or no.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    identity::{Negotiated, VerifyError, X509Svid},
    spiffe::SpiffeId,
};

/// What one handshake saw, for the error a person reads. Clones share the content; one per handshake.
#[derive(Clone, Debug, Default)]
pub struct VerifyReport(Arc<Mutex<Report>>);

/// The content of a [`VerifyReport`].
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The SVID presented, if it parses that far, even when refused.
    pub presented: Option<X509Svid>,
    /// Client role: whom the dial is for.
    pub expected: Option<SpiffeId>,
    /// Server role: the identity that the SNI selected.
    pub local: Option<SpiffeId>,
    /// Why this side refused.
    pub error: Option<VerifyError>,
    /// What TLS negotiated, once the ServerHello was seen (see `observe`).
    pub negotiated: Option<Negotiated>,
}

impl VerifyReport {
    /// Takes the content out; the report is empty afterwards.
    pub fn take(&self) -> Report {
        self.with(std::mem::take)
    }

    /// A copy of the content.
    pub fn to_report(&self) -> Report {
        self.with(|report| report.clone())
    }

    pub(super) fn for_client(expected: &SpiffeId) -> Self {
        Self(Arc::new(Mutex::new(Report {
            expected: Some(expected.clone()),
            ..Report::default()
        })))
    }

    pub(super) fn note_error(&self, error: VerifyError) {
        self.with(|report| report.error = Some(error));
    }

    pub(super) fn note_local(&self, id: &SpiffeId) {
        self.with(|report| report.local = Some(id.clone()));
    }

    pub(super) fn note_negotiated(&self, negotiated: Negotiated) {
        self.with(|report| report.negotiated = Some(negotiated));
    }

    pub(super) fn note_presented(&self, svid: &X509Svid) {
        self.with(|report| report.presented = Some(svid.clone()));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Report) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
