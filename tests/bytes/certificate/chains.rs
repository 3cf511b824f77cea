//! Valid chains of several kinds, and who may sign them again.

use std::{sync::OnceLock, time::Duration};

use aws_lc_rs::signature::Ed25519KeyPair;
use identun::{
    identity::{Ca, TrustBundles},
    spiffe::TrustDomain,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;

/// The time of every check, in Unix seconds.
pub(crate) const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3_600;

/// Certificates in DER, leaf first, and the key that signed each.
pub(crate) struct Chain {
    pub(crate) certificates: Vec<Vec<u8>>,
    pub(crate) signers: Vec<usize>,
}

/// What every scene shares.
pub(crate) struct Authorities {
    pub(crate) chains: Vec<Chain>,
    pub(crate) keys: Vec<KeyPair>,
    pub(crate) bundles: TrustBundles,
    /// Trust domain and root in DER.
    pub(crate) roots: Vec<(&'static str, Vec<u8>)>,
}

pub(crate) fn authorities() -> &'static Authorities {
    static ALL: OnceLock<Authorities> = OnceLock::new();
    ALL.get_or_init(Authorities::new)
}

impl Authorities {
    fn new() -> Self {
        // Our own CA's key comes first, then those of two roots, three issuers and a leaf.
        let domain: TrustDomain = "a.example".parse().unwrap();
        let ca = Ca::new(&domain, NOW, Duration::from_secs(24 * HOUR)).unwrap();
        let mut keys = vec![KeyPair::from_pem(&ca.to_pem().key).unwrap()];
        keys.extend((1..8).map(key));
        let root_a = root("root a", &keys[1]);
        let root_b = root("root b", &keys[2]);
        let id = "spiffe://a.example/ns/web/sa/front".parse().unwrap();
        let own = ca.issue(&id, NOW, Duration::from_secs(HOUR)).unwrap();
        let mut chains = vec![Chain {
            certificates: vec![
                CertificateDer::from_pem_slice(own.certificate.as_bytes())
                    .unwrap()
                    .to_vec(),
            ],
            signers: vec![0],
        }];
        chains.push(chain("spiffe://a.example/front", "root a", &[1, 7], &keys));
        chains.push(chain("spiffe://b.example/front", "root b", &[2, 7], &keys));
        chains.push(chain(
            "spiffe://a.example/ns/x/sa/y",
            "root a",
            &[1, 3, 7],
            &keys,
        ));
        chains.push(chain(
            "spiffe://a.example/deep",
            "root a",
            &[1, 3, 4, 5, 7],
            &keys,
        ));
        let roots = vec![
            ("a.example", ca.certificate().to_vec()),
            ("a.example", root_a),
            ("b.example", root_b),
        ];
        let mut bundles = TrustBundles::default();
        for (domain, root) in &roots {
            let root = vec![CertificateDer::from(root.clone())];
            bundles.add(domain.parse().unwrap(), root).unwrap();
        }
        Self {
            chains,
            keys,
            bundles,
            roots,
        }
    }
}

/// The same key in each run, so that what was found once is found again.
fn key(seed: u8) -> KeyPair {
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    KeyPair::try_from(key.to_pkcs8().unwrap().as_ref()).unwrap()
}

/// A chain below the root of `keys[0]`: each key but the last is an issuer's.
fn chain(id: &str, root: &str, numbers: &[usize], keys: &[KeyPair]) -> Chain {
    let mut chain = Chain {
        certificates: Vec::new(),
        signers: Vec::new(),
    };
    let mut issuer = Issuer::new(authority(root), &keys[numbers[0]]);
    for (at, &number) in numbers.iter().enumerate().skip(1) {
        let is_leaf = at + 1 == numbers.len();
        let params = match is_leaf {
            true => leaf(id),
            false => authority(&format!("issuer {number}")),
        };
        let made = params.signed_by(&keys[number], &issuer).unwrap();
        chain.certificates.insert(0, made.der().to_vec());
        chain.signers.insert(0, numbers[at - 1]);
        issuer = Issuer::new(params, &keys[number]);
    }
    chain
}

fn root(name: &str, key: &KeyPair) -> Vec<u8> {
    authority(name).self_signed(key).unwrap().der().to_vec()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = params(name, 24 * HOUR);
    params.is_ca = IsCa::Ca(match name {
        "issuer 5" => BasicConstraints::Constrained(0),
        _ => BasicConstraints::Unconstrained,
    });
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn leaf(id: &str) -> CertificateParams {
    let mut params = params("front", HOUR);
    params.subject_alt_names = vec![
        SanType::DnsName("front.example".try_into().unwrap()),
        SanType::URI(id.try_into().unwrap()),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params
}

fn params(name: &str, valid_for: u64) -> CertificateParams {
    let at = |seconds: u64| OffsetDateTime::from_unix_timestamp(seconds as i64).unwrap();
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&[7; 4]));
    params.not_before = at(NOW - 60);
    params.not_after = at(NOW + valid_for);
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params
}
