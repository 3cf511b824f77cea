//! What this host holds: its workload identities with their keys, and whom it trusts.

use std::{collections::BTreeMap, fmt, sync::Arc};

use rustls::{
    crypto::aws_lc_rs::sign,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use zeroize::Zeroize;

use crate::{
    identity::{
        bundle::TrustBundles,
        pem::{self, PemError},
        sni,
        svid::{SvidError, X509Svid},
    },
    spiffe::SpiffeId,
};

/// A workload identity of this host: SVID and key.
pub struct Identity {
    /// What is presented.
    pub svid: X509Svid,
    /// Chain and key as rustls wants them.
    pub key: Arc<CertifiedKey>,
    server_name: String,
}

impl Identity {
    /// Joins a chain (leaf first) and the private key of its leaf. The given key is
    /// wiped; aws-lc keeps its own form.
    ///
    /// # Errors
    /// When the chain is not an SVID, or the key is unreadable or belongs to another certificate.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        mut key: PrivateKeyDer<'static>,
    ) -> Result<Self, IdentityError> {
        let svid = X509Svid::new(chain).map_err(IdentityError::Svid)?;
        let signing_key = sign::any_supported_type(&key);
        key.zeroize();
        let signing_key = signing_key.map_err(|_| IdentityError::Key)?;
        let key = CertifiedKey::new(svid.chain.clone(), signing_key);
        key.keys_match().map_err(|_| IdentityError::KeyMismatch)?;
        Ok(Self {
            server_name: sni::server_name(&svid.id),
            key: Arc::new(key),
            svid,
        })
    }

    /// [`Self::new`] from PEM texts; both may be the same text.
    ///
    /// # Errors
    /// As [`Self::new`], or when a text is not PEM.
    pub fn from_pem(chain: &str, key: &str) -> Result<Self, IdentityError> {
        let chain = pem::certificates(chain).map_err(IdentityError::ChainPem)?;
        let key = pem::private_key(key).map_err(IdentityError::KeyPem)?;
        Self::new(chain, key)
    }

    /// The SPIFFE ID.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// The SNI under which dialers ask for this identity.
    pub fn server_name(&self) -> &str {
        &self.server_name
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out.
        f.debug_struct("Identity")
            .field("svid", &self.svid.to_string())
            .finish_non_exhaustive()
    }
}

/// Why a key and certificate do not make an identity.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IdentityError {
    /// The chain's text is not PEM certificates.
    #[error("the certificate is not readable")]
    ChainPem(#[source] PemError),
    /// The key is damaged or of a kind that cannot sign in TLS 1.3.
    #[error("the private key is damaged or of an unsupported kind")]
    Key,
    /// The key belongs to another certificate.
    #[error("the private key does not belong to the certificate")]
    KeyMismatch,
    /// The key's text is not one PEM key.
    #[error("the private key is not readable")]
    KeyPem(#[source] PemError),
    /// The chain breaks a rule of SVIDs.
    #[error("the certificate is not an X.509-SVID")]
    Svid(#[source] SvidError),
}

/// What this host holds: its identities by SPIFFE ID, and whom it trusts.
#[derive(Debug, Default)]
pub struct Identities {
    /// Identities whose keys this host holds.
    pub own: BTreeMap<SpiffeId, Arc<Identity>>,
    /// Trust domains accepted from peers (own, aliases, federated) are the keys.
    pub bundles: TrustBundles,
    /// Grows with every reload.
    pub generation: u64,
}

impl Identities {
    /// Adds an identity in place of one with the same SPIFFE ID.
    pub fn insert(&mut self, identity: Identity) {
        self.own.insert(identity.id().clone(), Arc::new(identity));
    }

    /// The identity with this SPIFFE ID.
    pub fn by_id(&self, id: &SpiffeId) -> Option<&Arc<Identity>> {
        self.own.get(id)
    }

    /// The identity with this SNI (`<handle>.identun.alt`, lower case).
    pub fn by_server_name(&self, name: &str) -> Option<&Arc<Identity>> {
        self.own
            .values()
            .find(|identity| identity.server_name == name)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject};

    use super::*;
    use crate::identity::{Ca, ca::Pem};

    fn issued(id: &str) -> Pem {
        let ca = Ca::new(&"td".parse().unwrap(), 1000, Duration::from_secs(100)).unwrap();
        ca.issue(&id.parse().unwrap(), 1000, Duration::from_secs(50))
            .unwrap()
    }

    #[test]
    fn certificate_and_key_that_belong_together_are_an_identity() {
        let pem = issued("spiffe://td/a");
        let identity = Identity::from_pem(&pem.certificate, &pem.key).unwrap();
        assert_eq!(identity.id().as_str(), "spiffe://td/a");
        let both = format!("{}{}", *pem.key, pem.certificate);
        assert!(Identity::from_pem(&both, &both).is_ok());
    }

    #[test]
    fn each_broken_pair_has_its_own_reason() {
        let (pem, other) = (issued("spiffe://td/a"), issued("spiffe://td/a"));
        let reason = |chain: &str, key: &str| Identity::from_pem(chain, key).err();
        assert_eq!(
            reason(&pem.certificate, &other.key),
            Some(IdentityError::KeyMismatch)
        );
        assert_eq!(
            reason("", &pem.key),
            Some(IdentityError::ChainPem(PemError::NoCertificate))
        );
        assert_eq!(
            reason(&pem.certificate, ""),
            Some(IdentityError::KeyPem(PemError::NoKey))
        );
        let ca = Ca::new(&"td".parse().unwrap(), 1000, Duration::from_secs(100)).unwrap();
        let ca = ca.to_pem();
        assert_eq!(
            reason(&ca.certificate, &ca.key),
            Some(IdentityError::Svid(SvidError::IsCa))
        );
        let key = PrivatePkcs8KeyDer::from_pem_slice(pem.key.as_bytes()).unwrap();
        let damaged = key.secret_pkcs8_der()[..40].to_vec();
        let chain = pem::certificates(&pem.certificate).unwrap();
        let damaged = PrivatePkcs8KeyDer::from(damaged).into();
        let refusal = Identity::new(chain, damaged).err();
        assert_eq!(refusal, Some(IdentityError::Key));
    }

    #[test]
    fn identities_are_found_by_id_and_by_server_name() {
        let mut identities = Identities::default();
        for id in ["spiffe://td/a", "spiffe://td/b", "spiffe://td/b"] {
            let pem = issued(id);
            identities.insert(Identity::from_pem(&pem.certificate, &pem.key).unwrap());
        }
        assert_eq!(identities.own.len(), 2);
        let id: SpiffeId = "spiffe://td/b".parse().unwrap();
        let found = identities.by_server_name(&sni::server_name(&id)).unwrap();
        assert!(Arc::ptr_eq(found, identities.by_id(&id).unwrap()));
        assert!(identities.by_server_name("x.identun.alt").is_none());
        assert!(
            identities
                .by_id(&"spiffe://td/c".parse().unwrap())
                .is_none()
        );
    }

    #[test]
    fn debug_output_has_no_key() {
        let pem = issued("spiffe://td/a");
        let identity = Identity::from_pem(&pem.certificate, &pem.key).unwrap();
        assert!(!format!("{pem:?}").contains("PRIVATE"));
        assert!(format!("{identity:?}").contains("spiffe://td/a"));
    }
}
