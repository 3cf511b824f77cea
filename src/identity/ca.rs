//! A small CA for beginnings: one self-signed root a trust domain, P-256, which signs leaves itself (rcgen).
//!
//! Texts in and out; who may read the key is the business of whoever stores it.

use std::{fmt, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::{crypto::aws_lc_rs, pki_types::CertificateDer};
use time::OffsetDateTime;
use zeroize::{Zeroize, Zeroizing};

use crate::{
    identity::{
        certificate::{self, Extensions, IssuerError, check_issuer, date, unix_seconds},
        pem::{self, PemError},
    },
    spiffe::{SpiffeId, TrustDomain},
};

/// PEM texts of a certificate and its key. The key's text is wiped when dropped.
pub struct Pem {
    /// Leaf first, then intermediates.
    pub certificate: String,
    /// PKCS#8.
    pub key: Zeroizing<String>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out.
        f.debug_struct("Pem")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// A CA: a certificate with URI SAN `spiffe://TD` and its key.
pub struct Ca {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    domain: TrustDomain,
    issuer: Issuer<'static, KeyPair>,
    not_before: u64,
    not_after: u64,
}

impl Ca {
    /// Makes a key and a self-signed certificate, valid from a minute before `now` (Unix seconds) for `valid_for` from
    /// `now`. It signs leaves only (pathLenConstraint 0).
    ///
    /// # Errors
    /// When the validity is empty or out of range, or the random source fails.
    pub fn new(domain: &TrustDomain, now: u64, valid_for: Duration) -> Result<Self, CaError> {
        let mut params = params(now, valid_for)?;
        params.distinguished_name = common_name(&format!("identun CA for {domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = false;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let certificate = params.self_signed(&key).map_err(CaError::Make)?;
        let key = Zeroizing::new(key.serialize_pem());
        let certificate = certificate.pem();
        Self::from_pem(&Pem { certificate, key })
    }

    /// Reads a CA back. The certificate must be one that may issue, with a SPIFFE ID that names its trust domain.
    ///
    /// # Errors
    /// Which of that is not so, or that the key belongs to another certificate.
    pub fn from_pem(pem: &Pem) -> Result<Self, CaError> {
        let certificates = pem::certificates(&pem.certificate).map_err(CaError::Certificate)?;
        let [certificate] = <[CertificateDer<'static>; 1]>::try_from(certificates)
            .map_err(|_| CaError::SeveralCertificates)?;
        check_issuer(&certificate).map_err(CaError::Issuer)?;
        let parsed = certificate::parse(&certificate).ok_or(CaError::Issuer(IssuerError::Der))?;
        let domain = domain_of(&parsed)?;
        let mut der = pem::private_key(&pem.key).map_err(CaError::Key)?;
        let key = KeyPair::try_from(&der);
        der.zeroize();
        let key = key.map_err(|_| CaError::UnsupportedKey)?;
        if key.public_key_raw() != parsed.public_key().subject_public_key.data.as_ref() {
            return Err(CaError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Make)?;
        Ok(Self {
            not_before: unix_seconds(parsed.validity().not_before),
            not_after: unix_seconds(parsed.validity().not_after),
            certificate_pem: pem.certificate.clone(),
            certificate: certificate.clone(),
            domain,
            issuer,
        })
    }

    /// Certificate and key as text.
    pub fn to_pem(&self) -> Pem {
        Pem {
            certificate: self.certificate_pem.clone(),
            key: Zeroizing::new(self.issuer.key().serialize_pem()),
        }
    }

    /// The certificate in DER.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The trust domain that it vouches for.
    pub fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// End of the CA's validity, in Unix seconds.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// Makes a key and an X.509-SVID for `id`, valid from a minute before `now` (Unix seconds) for `valid_for` from
    /// `now`. The text holds the leaf only; the CA's certificate belongs in trust bundles.
    ///
    /// # Errors
    /// When the ID lies outside the CA's trust domain or has no path, or the leaf would outlive the CA.
    pub fn issue(&self, id: &SpiffeId, now: u64, valid_for: Duration) -> Result<Pem, CaError> {
        if id.trust_domain() != self.domain {
            return Err(CaError::OtherTrustDomain {
                id: id.clone(),
                domain: self.domain.clone(),
            });
        }
        if id.path().is_empty() {
            return Err(CaError::NoPath(id.clone()));
        }
        let end = now.saturating_add(valid_for.as_secs());
        if now < self.not_before || end > self.not_after {
            return Err(CaError::OutlivesCa {
                not_after: end,
                ca_not_after: self.not_after,
            });
        }
        let mut params = params(now, valid_for)?;
        params.subject_alt_names = vec![uri(id.as_str())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Make)?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(CaError::Make)?;
        Ok(Pem {
            certificate: certificate.pem(),
            key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is left out.
        f.debug_struct("Ca")
            .field("domain", &self.domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why a CA cannot be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The certificate's text is not PEM.
    #[error("the CA certificate is not readable")]
    Certificate(#[source] PemError),
    /// The certificate may not issue others.
    #[error("the certificate is not that of a CA")]
    Issuer(#[source] IssuerError),
    /// The key's text is not PEM.
    #[error("the CA key is not readable")]
    Key(#[source] PemError),
    /// The key belongs to another certificate.
    #[error("the CA key does not belong to the CA certificate")]
    KeyMismatch,
    /// rcgen or the random source failed.
    #[error("the certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// A SPIFFE ID without path names a trust domain, not a workload.
    #[error(
        "{0} has no path, so it names no workload; give an ID like {0}/ns/NAMESPACE/sa/ACCOUNT"
    )]
    NoPath(SpiffeId),
    /// The CA certificate does not say which trust domain it is for.
    #[error("the CA certificate has no SPIFFE ID of a trust domain (a single URI spiffe://DOMAIN)")]
    NoTrustDomain,
    /// The secure random source failed.
    #[error("the random source failed")]
    Random,
    /// The ID belongs to another trust domain.
    #[error("{id} is outside the CA's trust domain {domain}")]
    OtherTrustDomain {
        /// Asked for.
        id: SpiffeId,
        /// The CA's.
        domain: TrustDomain,
    },
    /// The leaf would be valid while the CA is not.
    #[error("the certificate would end at {}, the CA ends at {}", date(*not_after), date(*ca_not_after))]
    OutlivesCa {
        /// Of the leaf, in Unix seconds.
        not_after: u64,
        /// Of the CA, in Unix seconds.
        ca_not_after: u64,
    },
    /// More than one certificate.
    #[error("the text has more than one CA certificate")]
    SeveralCertificates,
    /// A key that rcgen cannot sign with.
    #[error("the CA key is damaged or of an unsupported kind")]
    UnsupportedKey,
    /// No validity, or dates that certificates cannot hold.
    #[error("the validity is empty or out of range")]
    Validity,
}

/// What every certificate has: serial, dates, an empty subject.
fn params(now: u64, valid_for: Duration) -> Result<CertificateParams, CaError> {
    let end = now
        .checked_add(valid_for.as_secs())
        .filter(|end| *end > now)
        .ok_or(CaError::Validity)?;
    let mut params = CertificateParams::default();
    params.serial_number = Some(serial()?);
    params.not_before = offset(now.saturating_sub(BACKDATE_SECONDS))?;
    params.not_after = offset(end)?;
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 random bits, positive and never zero (RFC 5280 §4.1.2.2).
fn serial() -> Result<SerialNumber, CaError> {
    let mut random = [0; 16];
    aws_lc_rs::default_provider()
        .secure_random
        .fill(&mut random)
        .map_err(|_| CaError::Random)?;
    // A leading 0x01 keeps the number positive and its length fixed.
    Ok(SerialNumber::from([&[1], random.as_slice()].concat()))
}

fn offset(unix_seconds: u64) -> Result<OffsetDateTime, CaError> {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .ok_or(CaError::Validity)
}

/// A common name, cut to the 64 bytes that RFC 5280 allows. Trust domains are ASCII.
fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    let name: String = name.chars().take(64).collect();
    subject.push(DnType::CommonName, name);
    subject
}

fn uri(text: &str) -> Result<SanType, CaError> {
    Ok(SanType::URI(text.try_into().map_err(CaError::Make)?))
}

/// The trust domain that the only URI of a CA certificate names.
fn domain_of(
    certificate: &x509_parser::certificate::X509Certificate<'_>,
) -> Result<TrustDomain, CaError> {
    let extensions = Extensions::new(certificate)
        .map_err(|error| CaError::Issuer(IssuerError::Extension(error)))?;
    let mut uris = certificate::uris(&extensions).filter_map(|uri| uri.parse::<SpiffeId>().ok());
    match (uris.next(), uris.next()) {
        (Some(id), None) if id.path().is_empty() => Ok(id.trust_domain()),
        _ => Err(CaError::NoTrustDomain),
    }
}

/// How far certificates are backdated, so that peers with slow clocks accept them (steering.md C3).
const BACKDATE_SECONDS: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{
        Identity, TrustBundles, describe::describe, svid::X509Svid, verifier::PeerRole,
    };

    const NOW: u64 = 1_800_000_000;
    const HOUR: Duration = Duration::from_secs(3600);

    fn ca() -> Ca {
        Ca::new(&"td.example".parse().unwrap(), NOW, HOUR * 24).unwrap()
    }

    fn id(text: &str) -> SpiffeId {
        text.parse().unwrap()
    }

    #[test]
    fn what_it_issues_passes_every_rule_in_both_roles() {
        let ca = ca();
        let pem = ca.issue(&id("spiffe://td.example/a"), NOW, HOUR).unwrap();
        let identity = Identity::from_pem(&pem.certificate, &pem.key).unwrap();
        let bundles = TrustBundles::from_pem(ca.domain().clone(), &ca.to_pem().certificate);
        let bundles = bundles.unwrap();
        for role in [PeerRole::Client, PeerRole::Server] {
            for now in [NOW - 60, NOW, NOW + 3600] {
                assert_eq!(bundles.verify(&identity.svid, role, now), Ok(()));
            }
        }
    }

    #[test]
    fn a_ca_read_back_issues_for_the_same_roots() {
        let ca = ca();
        let again = Ca::from_pem(&ca.to_pem()).unwrap();
        assert_eq!(again.domain(), ca.domain());
        assert_eq!(again.certificate(), ca.certificate());
        assert_eq!(again.not_after(), NOW + 24 * 3600);
        let pem = again.issue(&id("spiffe://td.example/a"), NOW, HOUR);
        let chain = pem::certificates(&pem.unwrap().certificate).unwrap();
        let svid = X509Svid::new(chain).unwrap();
        let bundles = TrustBundles::from_pem(ca.domain().clone(), &ca.to_pem().certificate);
        let verified = bundles.unwrap().verify(&svid, PeerRole::Server, NOW);
        assert_eq!(verified, Ok(()));
    }

    #[test]
    fn it_refuses_what_it_may_not_issue() {
        let ca = ca();
        let issue = |text: &str, now, valid_for| ca.issue(&id(text), now, valid_for).err();
        assert!(issue("spiffe://td.example/a", NOW, HOUR * 24).is_none());
        assert!(matches!(
            issue("spiffe://other/a", NOW, HOUR),
            Some(CaError::OtherTrustDomain { .. })
        ));
        assert!(matches!(
            issue("spiffe://td.example", NOW, HOUR),
            Some(CaError::NoPath(_))
        ));
        let second = Duration::from_secs(1);
        assert!(matches!(
            issue("spiffe://td.example/a", NOW, HOUR * 24 + second),
            Some(CaError::OutlivesCa { .. })
        ));
        assert!(matches!(
            issue("spiffe://td.example/a", NOW - 61, HOUR),
            Some(CaError::OutlivesCa { .. })
        ));
        assert!(matches!(
            issue("spiffe://td.example/a", NOW, Duration::ZERO),
            Some(CaError::Validity)
        ));
    }

    #[test]
    fn it_reads_only_a_ca_of_a_trust_domain_with_its_own_key() {
        let ca = ca();
        let leaf = ca.issue(&id("spiffe://td.example/a"), NOW, HOUR).unwrap();
        let from = |certificate: &str, key: &str| {
            let key = Zeroizing::new(key.to_owned());
            let certificate = certificate.to_owned();
            Ca::from_pem(&Pem { certificate, key }).err()
        };
        let pem = ca.to_pem();
        assert!(from(&pem.certificate, &pem.key).is_none());
        assert!(matches!(
            from(&leaf.certificate, &leaf.key),
            Some(CaError::Issuer(IssuerError::NotCa))
        ));
        assert!(matches!(
            from(&pem.certificate, &leaf.key),
            Some(CaError::KeyMismatch)
        ));
        assert!(matches!(
            from(&pem.certificate.repeat(2), &pem.key),
            Some(CaError::SeveralCertificates)
        ));
        assert!(matches!(
            from("", &pem.key),
            Some(CaError::Certificate(PemError::NoCertificate))
        ));
        assert!(matches!(
            from(&pem.certificate, ""),
            Some(CaError::Key(PemError::NoKey))
        ));
        let (certificate, key) = ca_without_domain();
        assert!(matches!(
            from(&certificate, &key),
            Some(CaError::NoTrustDomain)
        ));
    }

    /// A CA as others make it, without SPIFFE ID.
    fn ca_without_domain() -> (String, String) {
        let mut params = params(NOW, HOUR).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn certificates_say_what_they_should() {
        let ca = ca();
        let leaf = ca.issue(&id("spiffe://td.example/a"), NOW, HOUR).unwrap();
        let text = leaf.certificate + &ca.to_pem().certificate;
        let [leaf, root] = describe(&text).unwrap().try_into().unwrap();
        assert_eq!(root.subject, "CN=identun CA for td.example");
        assert_eq!(root.uris, ["spiffe://td.example"]);
        assert_eq!((root.is_ca, root.path_len), (true, Some(0)));
        assert_eq!(root.usages, ["keyCertSign", "cRLSign"]);
        assert_eq!(root.not_before, NOW - 60);
        assert_eq!((leaf.subject.as_str(), leaf.is_ca), ("", false));
        assert_eq!(leaf.issuer, root.subject);
        assert_eq!(leaf.uris, ["spiffe://td.example/a"]);
        assert_eq!(
            leaf.usages,
            ["digitalSignature", "serverAuth", "clientAuth"]
        );
        assert_eq!((leaf.key.as_str(), leaf.not_after), ("P-256", NOW + 3600));
        assert_ne!(leaf.serial, root.serial);
    }

    #[test]
    fn long_trust_domains_fit() {
        let domain: TrustDomain = "d".repeat(255).parse().unwrap();
        let ca = Ca::new(&domain, NOW, HOUR).unwrap();
        assert_eq!(Ca::from_pem(&ca.to_pem()).unwrap().domain(), &domain);
    }

    #[test]
    fn impossible_dates_are_refused() {
        let domain: TrustDomain = "td".parse().unwrap();
        for (now, valid_for) in [
            (NOW, Duration::ZERO),
            (NOW, Duration::MAX),
            (u64::MAX, HOUR),
            (u64::MAX / 2, HOUR),
        ] {
            let refusal = Ca::new(&domain, now, valid_for).err();
            assert!(matches!(refusal, Some(CaError::Validity)), "{now}");
        }
    }
}
