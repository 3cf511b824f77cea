//! A CA for simulations: Ed25519 certificates, whose signatures have one length, so that runs with one seed are alike.

use std::ops::Range;

use identun::{
    identity::Identity,
    spiffe::{SpiffeId, TrustDomain},
};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SanType,
};
use time::OffsetDateTime;

/// The CA of `cluster.local`, or one of several.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate, PEM.
    pub(crate) certificate: String,
}

impl Authority {
    /// A CA with a new key, valid for `life` in Unix seconds.
    pub(crate) fn new(life: Range<u64>) -> Self {
        let mut params = params("spiffe://cluster.local", life);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// A certificate with a key of its own, valid for `life` in Unix seconds.
    pub(crate) fn issue(&self, id: &SpiffeId, life: Range<u64>) -> Identity {
        let mut params = params(id.as_str(), life);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity::from_pem(&certificate, &key.serialize_pem()).unwrap()
    }
}

fn params(uri: &str, life: Range<u64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    let at = |seconds: u64| {
        OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
    };
    (params.not_before, params.not_after) = (at(life.start), at(life.end));
    params
}

/// The trust domain of simulations.
pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}
