//! X.509-SVIDs: a certificate chain whose leaf obeys X509-SVID.md (policy.md §7.5, steps 1–3 of §7.6).
//!
//! A value of [`X509Svid`] says nothing about who signed it; that is the verifier's part.

use std::fmt;

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use crate::{
    identity::certificate::{
        self, ExtensionError, Extensions, KeyError, KeyKind, date, has_weak_signature, hex,
        key_kind, printable, unix_seconds,
    },
    spiffe::{SpiffeId, SpiffeIdError},
};

/// The most certificates in a chain, leaf included.
pub const MAX_CHAIN_LEN: usize = 10;
/// The most bytes of DER in a chain.
pub const MAX_CHAIN_BYTES: usize = 64 * 1024;

/// A certificate chain whose leaf obeys the leaf rules of X509-SVID.md.
#[derive(Clone, Debug)]
pub struct X509Svid {
    /// The one SPIFFE ID of the leaf; it has a path.
    pub id: SpiffeId,
    /// DER, leaf first, each certified by its successor.
    pub chain: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity, in Unix seconds.
    pub not_before: u64,
    /// End of the leaf's validity, in Unix seconds, inclusive.
    pub not_after: u64,
    /// The leaf's serial number in hexadecimal.
    pub serial: String,
    /// The leaf's issuer as a distinguished name, safe to print.
    pub issuer: String,
    /// The kind of the leaf's public key.
    pub key_kind: KeyKind,
}

impl X509Svid {
    /// Applies steps 1–3 of policy.md §7.6 to a chain, leaf first.
    ///
    /// # Errors
    /// The first rule that the chain or its leaf breaks.
    pub fn new(chain: Vec<CertificateDer<'static>>) -> Result<Self, SvidError> {
        check_size(&chain)?;
        let (leaf, issuers) = chain.split_first().ok_or(SvidError::EmptyChain)?;
        for (index, issuer) in issuers.iter().enumerate() {
            certificate::parse(issuer).ok_or(SvidError::ChainDer {
                position: index + 1,
            })?;
        }
        let certificate = certificate::parse(leaf).ok_or(SvidError::Der)?;
        let extensions = Extensions::new(&certificate).map_err(SvidError::Extension)?;
        check_leaf(&extensions)?;
        let id = spiffe_id(&certificate, &extensions)?;
        if has_weak_signature(&certificate) {
            return Err(SvidError::WeakSignature);
        }
        let key_kind = key_kind(&certificate).map_err(SvidError::Key)?;
        Ok(Self {
            id,
            not_before: unix_seconds(certificate.validity().not_before),
            not_after: unix_seconds(certificate.validity().not_after),
            serial: hex(certificate.raw_serial()),
            issuer: printable(certificate.issuer()),
            key_kind,
            chain,
        })
    }

    /// The leaf in DER.
    pub fn leaf(&self) -> Option<&CertificateDer<'static>> {
        self.chain.first()
    }
}

impl fmt::Display for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (serial {}, issued by {}, valid {} to {}, {} in chain)",
            self.id,
            self.serial,
            self.issuer,
            date(self.not_before),
            date(self.not_after),
            self.chain.len()
        )
    }
}

/// Why a leaf or chain is not an SVID: one variant a reason.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SvidError {
    /// Over [`MAX_CHAIN_BYTES`].
    #[error("the chain is {bytes} bytes long; {MAX_CHAIN_BYTES} are allowed")]
    ChainBytes {
        /// Sum of all certificates.
        bytes: usize,
    },
    /// A certificate after the leaf does not parse, or bytes follow it.
    #[error("certificate {position} of the chain is not one DER certificate")]
    ChainDer {
        /// 1 is the first after the leaf.
        position: usize,
    },
    /// Over [`MAX_CHAIN_LEN`].
    #[error("the chain has {certificates} certificates; {MAX_CHAIN_LEN} are allowed")]
    ChainLength {
        /// Leaf included.
        certificates: usize,
    },
    /// The leaf does not parse, or bytes follow it.
    #[error("the leaf is not one DER certificate")]
    Der,
    /// No certificate at all.
    #[error("the chain is empty")]
    EmptyChain,
    /// Subject empty and the SAN extension not critical (RFC 5280 §4.1.2.6).
    #[error("the subject is empty, so the subject alternative name must be critical")]
    EmptySubject,
    /// The extensions are broken.
    #[error(transparent)]
    Extension(ExtensionError),
    /// The SAN URI is not a SPIFFE ID.
    #[error("the URI {uri:?} is not a SPIFFE ID")]
    Id {
        /// What stands in the certificate.
        uri: String,
        /// What is wrong with it.
        #[source]
        error: SpiffeIdError,
    },
    /// The leaf is a CA.
    #[error("the leaf is a CA")]
    IsCa,
    /// A weak or unsupported public key.
    #[error(transparent)]
    Key(KeyError),
    /// Key usage has cRLSign.
    #[error("the leaf's key usage has cRLSign")]
    KeyUsageCrlSign,
    /// Key usage has keyCertSign.
    #[error("the leaf's key usage has keyCertSign")]
    KeyUsageKeyCertSign,
    /// Key usage without the critical flag.
    #[error("the leaf's key usage is not critical")]
    KeyUsageNotCritical,
    /// Extended key usage is present and lacks clientAuth.
    #[error("the leaf's extended key usage lacks clientAuth")]
    NoClientAuth,
    /// Key usage lacks digitalSignature.
    #[error("the leaf's key usage lacks digitalSignature")]
    NoDigitalSignature,
    /// No key usage.
    #[error("the leaf has no key usage")]
    NoKeyUsage,
    /// A SPIFFE ID that names only a trust domain.
    #[error("the SPIFFE ID {0} has no path, so it names no workload")]
    NoPath(SpiffeId),
    /// Extended key usage is present and lacks serverAuth.
    #[error("the leaf's extended key usage lacks serverAuth")]
    NoServerAuth,
    /// Neither SAN extension nor URI in it.
    #[error("the leaf has no URI among its subject alternative names")]
    NoUri,
    /// More than one URI.
    #[error("the leaf has {uris} URIs among its subject alternative names; exactly one is allowed")]
    SeveralUris {
        /// How many.
        uris: usize,
    },
    /// A URI that is not ASCII.
    #[error("the URI subject alternative name is not ASCII")]
    UriEncoding,
    /// Signed over SHA-1 or MD5.
    #[error("the leaf is signed with SHA-1 or MD5")]
    WeakSignature,
}

impl SvidError {
    /// The reason as a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ChainBytes { .. } => "chain_bytes",
            Self::ChainDer { .. } => "chain_der",
            Self::ChainLength { .. } => "chain_length",
            Self::Der => "leaf_der",
            Self::EmptyChain => "empty_chain",
            Self::EmptySubject => "empty_subject",
            Self::Extension(_) => "leaf_extension",
            Self::Id { .. } => "not_a_spiffe_id",
            Self::IsCa => "leaf_is_ca",
            Self::Key(_) => "leaf_key",
            Self::KeyUsageCrlSign => "leaf_crl_sign",
            Self::KeyUsageKeyCertSign => "leaf_key_cert_sign",
            Self::KeyUsageNotCritical => "leaf_key_usage_not_critical",
            Self::NoClientAuth => "no_client_auth",
            Self::NoDigitalSignature => "no_digital_signature",
            Self::NoKeyUsage => "no_key_usage",
            Self::NoPath(_) => "no_path",
            Self::NoServerAuth => "no_server_auth",
            Self::NoUri => "no_uri",
            Self::SeveralUris { .. } => "several_uris",
            Self::UriEncoding => "uri_encoding",
            Self::WeakSignature => "weak_signature",
        }
    }
}

/// Step 1: bounds.
fn check_size(chain: &[CertificateDer<'_>]) -> Result<(), SvidError> {
    let certificates = chain.len();
    if certificates > MAX_CHAIN_LEN {
        return Err(SvidError::ChainLength { certificates });
    }
    let bytes = chain.iter().map(|certificate| certificate.len()).sum();
    if bytes > MAX_CHAIN_BYTES {
        return Err(SvidError::ChainBytes { bytes });
    }
    Ok(())
}

/// Step 2: not a CA, key usage, extended key usage.
fn check_leaf(extensions: &Extensions<'_>) -> Result<(), SvidError> {
    if extensions.is_ca() {
        return Err(SvidError::IsCa);
    }
    let (critical, usage) = extensions.key_usage.ok_or(SvidError::NoKeyUsage)?;
    if !critical {
        return Err(SvidError::KeyUsageNotCritical);
    }
    if usage.key_cert_sign() {
        return Err(SvidError::KeyUsageKeyCertSign);
    }
    if usage.crl_sign() {
        return Err(SvidError::KeyUsageCrlSign);
    }
    if !usage.digital_signature() {
        return Err(SvidError::NoDigitalSignature);
    }
    if let Some(extended) = extensions.extended_key_usage {
        if !extended.server_auth {
            return Err(SvidError::NoServerAuth);
        }
        if !extended.client_auth {
            return Err(SvidError::NoClientAuth);
        }
    }
    Ok(())
}

/// Step 3: exactly one URI, and it is a SPIFFE ID with a path. Names of other types are ignored.
fn spiffe_id(
    certificate: &X509Certificate<'_>,
    extensions: &Extensions<'_>,
) -> Result<SpiffeId, SvidError> {
    let (critical, names) = extensions.names.ok_or(SvidError::NoUri)?;
    if !critical && certificate.subject().iter_attributes().next().is_none() {
        return Err(SvidError::EmptySubject);
    }
    let is_broken =
        |name: &GeneralName<'_>| matches!(name, GeneralName::Invalid(tag, _) if tag.0 == URI_TAG);
    if names.general_names.iter().any(is_broken) {
        return Err(SvidError::UriEncoding);
    }
    let uris: Vec<&str> = certificate::uris(extensions).collect();
    let uri = match uris.as_slice() {
        [] => return Err(SvidError::NoUri),
        [uri] => *uri,
        _ => return Err(SvidError::SeveralUris { uris: uris.len() }),
    };
    // An IA5String; x509-parser lets UTF-8 through.
    if !uri.is_ascii() {
        return Err(SvidError::UriEncoding);
    }
    let id: SpiffeId = uri.parse().map_err(|error| SvidError::Id {
        uri: uri.chars().take(MAX_QUOTED).collect(),
        error,
    })?;
    match id.path() {
        "" => Err(SvidError::NoPath(id)),
        _ => Ok(id),
    }
}

/// GeneralName's `[6] uniformResourceIdentifier` (RFC 5280 §4.2.1.6).
const URI_TAG: u32 = 6;
/// Characters of a broken URI that an error repeats.
const MAX_QUOTED: usize = 256;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{Ca, pem};

    fn leaf() -> CertificateDer<'static> {
        let ca = Ca::new(&"td".parse().unwrap(), 1000, Duration::from_secs(100)).unwrap();
        let id = "spiffe://td/a".parse().unwrap();
        let issued = ca.issue(&id, 1000, Duration::from_secs(50)).unwrap();
        pem::certificates(&issued.certificate).unwrap().remove(0)
    }

    fn reason(chain: Vec<CertificateDer<'static>>) -> Option<SvidError> {
        X509Svid::new(chain).err()
    }

    #[test]
    fn an_issued_leaf_is_an_svid() {
        let svid = X509Svid::new(vec![leaf()]).unwrap();
        assert_eq!(svid.id.as_str(), "spiffe://td/a");
        assert_eq!((svid.not_before, svid.not_after), (940, 1050));
        assert_eq!(svid.key_kind, KeyKind::P256);
        assert_eq!(svid.issuer, "CN=identun CA for td");
        assert_eq!(svid.serial.len(), 34);
        assert_eq!(svid.leaf(), svid.chain.first());
    }

    #[test]
    fn chains_are_bounded() {
        let leaf = leaf();
        assert_eq!(reason(vec![]), Some(SvidError::EmptyChain));
        assert_eq!(reason(vec![leaf.clone(); MAX_CHAIN_LEN]), None);
        assert_eq!(
            reason(vec![leaf.clone(); MAX_CHAIN_LEN + 1]),
            Some(SvidError::ChainLength { certificates: 11 })
        );
        let room = MAX_CHAIN_BYTES - leaf.len();
        let filled = |len| vec![leaf.clone(), CertificateDer::from(vec![0x30; len])];
        // What fits is read, and is no certificate.
        let unread = SvidError::ChainDer { position: 1 };
        assert_eq!(reason(filled(room)), Some(unread));
        let bytes = MAX_CHAIN_BYTES + 1;
        assert_eq!(
            reason(filled(room + 1)),
            Some(SvidError::ChainBytes { bytes })
        );
    }

    #[test]
    fn no_cut_or_flipped_leaf_panics() {
        let leaf = leaf();
        for at in 0..leaf.len() {
            assert!(reason(vec![CertificateDer::from(leaf[..at].to_vec())]).is_some());
            let mut flipped = leaf.to_vec();
            flipped[at] ^= 0x41;
            // Many flips are harmless to the syntax; none may panic.
            let _ = reason(vec![CertificateDer::from(flipped)]);
        }
    }
}
