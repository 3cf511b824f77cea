//! The verifier of both sides: who may be at the other end (policy.md §7.6).
//!
//! Never consults a pooled root store: the trust domain in the presented SPIFFE ID chooses the only bundle that counts.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::WebPkiSupportedAlgorithms,
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::{EndEntityCert, KeyUsage};

use crate::{
    identity::{
        VerifyReport,
        bundle::TrustBundles,
        certificate::{IssuerError, check_issuer, date, has_name_constraints},
        svid::{SvidError, X509Svid},
    },
    spiffe::{SpiffeId, TrustDomain},
};

/// The part that the *presented* certificate plays.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PeerRole {
    /// It authenticates a client.
    Client,
    /// It authenticates a server.
    Server,
}

impl TrustBundles {
    /// Checks a presented SVID's path at `now` (Unix seconds) against the bundle of its own trust domain: steps 4 and 5 of
    /// policy.md §7.6. Also the way to check a live peer again after a change of bundles.
    ///
    /// # Errors
    /// The rule that the path breaks.
    pub fn verify(&self, svid: &X509Svid, role: PeerRole, now: u64) -> Result<(), VerifyError> {
        let domain = svid.id.trust_domain();
        let roots = self
            .roots_of(&domain)
            .ok_or(VerifyError::UnknownTrustDomain { domain })?;
        let (leaf, issuers) = svid
            .chain
            .split_first()
            .ok_or(VerifyError::Svid(SvidError::EmptyChain))?;
        for (index, issuer) in issuers.iter().enumerate() {
            check_issuer(issuer).map_err(|error| VerifyError::Issuer {
                position: index + 1,
                error,
            })?;
        }
        verify_path(leaf, issuers, roots, role, now)
    }
}

/// Step 5: RFC 5280 path validation.
fn verify_path(
    leaf: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    role: PeerRole,
    now: u64,
) -> Result<(), VerifyError> {
    let anchors: Vec<TrustAnchor<'_>> = roots
        .iter()
        .filter(|root| check_issuer(root).is_ok())
        .filter_map(|root| webpki::anchor_from_trusted_cert(root).ok())
        .collect();
    let usage = match role {
        PeerRole::Client => KeyUsage::client_auth(),
        PeerRole::Server => KeyUsage::server_auth(),
    };
    let constrained = || {
        issuers
            .iter()
            .chain(roots)
            .any(|der| has_name_constraints(der))
    };
    // CRLs: the sixth argument (step 6 of policy.md §7.6) is where they go.
    EndEntityCert::try_from(leaf)
        .and_then(|leaf| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(now));
            let algorithms = algorithms().all;
            leaf.verify_for_usage(algorithms, &anchors, issuers, time, usage, None, None)
                .map(|_path| ())
        })
        .map_err(|error| path_error(error, constrained))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "webpki's enum is non-exhaustive; what has no meaning of its own keeps webpki's words"
)]
fn path_error(error: webpki::Error, constrained: impl Fn() -> bool) -> VerifyError {
    use webpki::Error as E;
    match error {
        E::CertExpired { time, not_after } => VerifyError::Expired {
            now: time.as_secs(),
            not_after: not_after.as_secs(),
        },
        E::CertNotValidYet { time, not_before } => VerifyError::NotYetValid {
            now: time.as_secs(),
            not_before: not_before.as_secs(),
        },
        E::UnknownIssuer => VerifyError::UnknownIssuer,
        E::InvalidSignatureForPublicKey => VerifyError::BadSignature,
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => VerifyError::SignatureAlgorithm,
        E::PathLenConstraintViolated => VerifyError::PathLength,
        E::MaximumPathDepthExceeded => VerifyError::PathDepth,
        E::RequiredEkuNotFoundContext(_) => VerifyError::IssuerPurpose,
        E::NameConstraintViolation | E::MalformedNameConstraint | E::UnsupportedNameType
            if constrained() =>
        {
            VerifyError::NameConstraints
        }
        other => VerifyError::Path(other.to_string()),
    }
}

/// Why a peer was refused: one variant a reason; `as_str` is a metric label.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// A signature in the path does not verify.
    #[error("a signature in the certificate path is wrong")]
    BadSignature,
    /// After notAfter.
    #[error("the certificate expired at {}; it is {}", date(*not_after), date(*now))]
    Expired {
        /// Time of the check, in Unix seconds.
        now: u64,
        /// End of validity, in Unix seconds.
        not_after: u64,
    },
    /// A certificate between leaf and root may not issue others.
    #[error("certificate {position} of the chain cannot be an issuer")]
    Issuer {
        /// 1 is the first after the leaf.
        position: usize,
        /// The rule that it breaks.
        #[source]
        error: IssuerError,
    },
    /// Extended key usage of an issuer excludes the leaf's use.
    #[error("the extended key usage of an issuer does not allow this use")]
    IssuerPurpose,
    /// An issuer's name constraints exclude the leaf, or are of a kind that cannot be checked.
    #[error(
        "an issuer carries name constraints that exclude the certificate; constraints on URIs and directory names always \
         do, because they cannot be checked"
    )]
    NameConstraints,
    /// Before notBefore.
    #[error("the certificate is not valid before {}; it is {}", date(*not_before), date(*now))]
    NotYetValid {
        /// Time of the check, in Unix seconds.
        now: u64,
        /// Start of validity, in Unix seconds.
        not_before: u64,
    },
    /// Another rule of path validation.
    #[error("the certificate path is invalid: {0}")]
    Path(String),
    /// More intermediates than path validation follows.
    #[error("the certificate path has too many intermediates")]
    PathDepth,
    /// An issuer's pathLenConstraint forbids the path.
    #[error("the certificate path is longer than an issuer allows")]
    PathLength,
    /// Signed with an algorithm that is not accepted.
    #[error("a certificate of the path is signed with an unsupported algorithm")]
    SignatureAlgorithm,
    /// The leaf or chain breaks a rule of SVIDs.
    #[error("the certificate is not an X.509-SVID")]
    Svid(#[source] SvidError),
    /// No path to a root of the trust domain's bundle.
    #[error("the certificate was not issued by a CA of its trust domain's bundle")]
    UnknownIssuer,
    /// The client asked for a name that no identity of this host has.
    #[error("no identity of this host has the server name {}", name.as_deref().unwrap_or("(none)"))]
    UnknownServerName {
        /// The SNI; None when absent.
        name: Option<String>,
    },
    /// No bundle for the trust domain.
    #[error("the trust domain {domain} is not trusted here")]
    UnknownTrustDomain {
        /// Of the presented SPIFFE ID.
        domain: TrustDomain,
    },
    /// A valid certificate of somebody else.
    #[error("expected {expected}, but the peer presented {presented}")]
    WrongIdentity {
        /// Whom the dial was for.
        expected: SpiffeId,
        /// Who answered.
        presented: SpiffeId,
    },
}

impl VerifyError {
    /// The reason as a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::BadSignature => "bad_signature",
            Self::Expired { .. } => "expired",
            Self::Issuer { error, .. } => error.as_str(),
            Self::IssuerPurpose => "issuer_purpose",
            Self::NameConstraints => "name_constraints",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::Path(_) => "path",
            Self::PathDepth => "path_depth",
            Self::PathLength => "path_length",
            Self::SignatureAlgorithm => "signature_algorithm",
            Self::Svid(error) => error.as_str(),
            Self::UnknownIssuer => "unknown_issuer",
            Self::UnknownServerName { .. } => "unknown_server_name",
            Self::UnknownTrustDomain { .. } => "unknown_trust_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
        }
    }

    /// The error that makes rustls send a fitting alert (wire.md §3.2).
    ///
    /// The peer reads the text of the alert, so it holds the label and none of the values: an impostor does not learn
    /// whom the dial was for.
    fn to_tls(&self) -> Error {
        Error::InvalidCertificate(match self {
            Self::Expired { .. } => CertificateError::Expired,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::UnknownIssuer | Self::UnknownTrustDomain { .. } => {
                CertificateError::UnknownIssuer
            }
            Self::BadSignature => CertificateError::BadSignature,
            Self::Svid(_) | Self::Issuer { .. } => CertificateError::BadEncoding,
            Self::IssuerPurpose
            | Self::NameConstraints
            | Self::Path(_)
            | Self::PathDepth
            | Self::PathLength
            | Self::SignatureAlgorithm
            | Self::UnknownServerName { .. }
            | Self::WrongIdentity { .. } => {
                CertificateError::Other(rustls::OtherError(Arc::new(Label(self.as_str()))))
            }
        })
    }
}

/// What a peer may read of a refusal.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Label(&'static str);

/// The verifier of one handshake, as rustls wants it on either side.
pub(super) struct Verifier {
    pub(super) bundles: TrustBundles,
    /// Client role: the only identity accepted.
    pub(super) expected: Option<SpiffeId>,
    pub(super) report: VerifyReport,
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        role: PeerRole,
        now: UnixTime,
    ) -> Result<(), Error> {
        self.decide(leaf, issuers, role, now.as_secs())
            .map_err(|error| {
                let tls = error.to_tls();
                self.report.note_error(error);
                tls
            })
    }

    fn decide(
        &self,
        leaf: &CertificateDer<'_>,
        issuers: &[CertificateDer<'_>],
        role: PeerRole,
        now: u64,
    ) -> Result<(), VerifyError> {
        let chain = std::iter::once(leaf).chain(issuers);
        let chain = chain.map(|der| der.clone().into_owned()).collect();
        let svid = X509Svid::new(chain).map_err(VerifyError::Svid)?;
        self.report.note_presented(&svid);
        self.bundles.verify(&svid, role, now)?;
        match &self.expected {
            Some(expected) if *expected != svid.id => Err(VerifyError::WrongIdentity {
                expected: expected.clone(),
                presented: svid.id,
            }),
            Some(_) | None => Ok(()),
        }
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, PeerRole::Server, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: they would tell strangers whom this host trusts, and cost bytes of the first flight.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, PeerRole::Client, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms
}
