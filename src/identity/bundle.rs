//! Trust bundles: the CA certificates of each trust domain, never pooled (policy.md §7.4).

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;

use crate::{
    identity::{
        certificate::{IssuerError, check_issuer},
        pem::{self, PemError},
    },
    spiffe::TrustDomain,
};

/// CA certificates by trust domain; never pooled: a root of one domain vouches for no other.
#[derive(Clone, Debug, Default)]
pub struct TrustBundles {
    /// DER. [`Self::add`] lets in only certificates that [`check_issuer`] accepts; the verifier ignores others.
    pub roots: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}

impl TrustBundles {
    /// The bundles of one trust domain, from PEM text.
    ///
    /// # Errors
    /// As [`Self::add_pem`].
    pub fn from_pem(domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let mut bundles = Self::default();
        bundles.add_pem(domain, text)?;
        Ok(bundles)
    }

    /// Adds the CA certificates of a PEM text to a trust domain's bundle.
    ///
    /// # Errors
    /// When the text has no certificates, or one of them is not a CA with keyCertSign; nothing is added then.
    pub fn add_pem(&mut self, domain: TrustDomain, text: &str) -> Result<(), BundleError> {
        let certificates = pem::certificates(text).map_err(BundleError::Pem)?;
        self.add(domain, certificates)
    }

    /// Adds CA certificates (DER) to a trust domain's bundle.
    ///
    /// # Errors
    /// When there are none, or one of them is not a CA with keyCertSign; nothing is added then.
    pub fn add(
        &mut self,
        domain: TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<(), BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty);
        }
        for (index, certificate) in certificates.iter().enumerate() {
            check_issuer(certificate).map_err(|error| BundleError::Issuer {
                position: index + 1,
                error,
            })?;
        }
        let bundle = self.roots.entry(domain).or_default();
        for certificate in certificates {
            if !bundle.contains(&certificate) {
                bundle.push(certificate);
            }
        }
        Ok(())
    }

    /// The roots of one trust domain; None when the domain is not trusted.
    pub fn roots_of(&self, domain: &TrustDomain) -> Option<&[CertificateDer<'static>]> {
        self.roots.get(domain).map(Vec::as_slice)
    }
}

/// Why a text is not a bundle.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BundleError {
    /// No certificate at all.
    #[error("the trust bundle is empty")]
    Empty,
    /// A certificate that may not issue others.
    #[error("certificate {position} cannot be a trust root")]
    Issuer {
        /// 1 is the first in the text.
        position: usize,
        /// The rule that it breaks.
        #[source]
        error: IssuerError,
    },
    /// The text is not PEM certificates.
    #[error("the trust bundle is not readable")]
    Pem(#[source] PemError),
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::Ca;

    fn ca(domain: &str) -> Ca {
        Ca::new(&domain.parse().unwrap(), 1000, Duration::from_secs(100)).unwrap()
    }

    #[test]
    fn each_domain_has_its_own_roots_once() {
        let (a, b, domain) = (ca("a"), ca("b"), "a".parse::<TrustDomain>().unwrap());
        let text = a.to_pem().certificate;
        let mut bundles = TrustBundles::from_pem(domain.clone(), &text.repeat(2)).unwrap();
        assert_eq!(bundles.roots_of(&domain).map(<[_]>::len), Some(1));
        bundles
            .add_pem("b".parse().unwrap(), &b.to_pem().certificate)
            .unwrap();
        assert_eq!(
            bundles.roots_of(&domain).unwrap(),
            [a.certificate().clone()]
        );
        assert!(bundles.roots_of(&"c".parse().unwrap()).is_none());
    }

    #[test]
    fn what_cannot_issue_is_no_root() {
        let ca = ca("a");
        let id = "spiffe://a/x".parse().unwrap();
        let leaf = ca.issue(&id, 1000, Duration::from_secs(50)).unwrap();
        let text = ca.to_pem().certificate + &leaf.certificate;
        let mut bundles = TrustBundles::default();
        let domain: TrustDomain = "a".parse().unwrap();
        let refusal = bundles.add_pem(domain.clone(), &text).err();
        let error = IssuerError::NotCa;
        assert_eq!(refusal, Some(BundleError::Issuer { position: 2, error }));
        assert!(bundles.roots.is_empty());
        let refusal = bundles.add_pem(domain.clone(), &leaf.key).err();
        assert_eq!(refusal, Some(BundleError::Pem(PemError::NoCertificate)));
        let refusal = bundles.add(domain, Vec::new()).err();
        assert_eq!(refusal, Some(BundleError::Empty));
    }
}
