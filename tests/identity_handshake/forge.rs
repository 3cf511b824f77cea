//! Certificates to order, right and wrong: every extension is written from a [`Spec`], nothing is checked.

use std::sync::{Arc, OnceLock};

use identun::{
    identity::{Identities, TrustBundles},
    spiffe::TrustDomain,
};
use rcgen::{
    CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, KeyPair,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ECDSA_P521_SHA512, PKCS_ED25519,
    PKCS_RSA_SHA256, PublicKeyData, RsaKeySize, SerialNumber, SignatureAlgorithm,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};
use time::OffsetDateTime;

/// The time of every test, in Unix seconds.
pub(crate) const NOW: u64 = 1_800_000_000;
/// The SPIFFE ID of a [`Spec`] that nobody changed.
pub(crate) const ID: &str = "spiffe://a.example/ns/web/sa/front";

pub(crate) const DIGITAL_SIGNATURE: u8 = 0x80;
pub(crate) const KEY_ENCIPHERMENT: u8 = 0x20;
pub(crate) const KEY_CERT_SIGN: u8 = 0x04;
pub(crate) const CRL_SIGN: u8 = 0x02;
/// The last arcs of 1.3.6.1.5.5.7.3.
pub(crate) const SERVER_AUTH: u8 = 1;
pub(crate) const CLIENT_AUTH: u8 = 2;

/// Who signs.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Signer {
    /// The root in the bundle of a.example.
    A,
    /// The root in the bundle of b.example.
    B,
    /// The RSA root in the bundle of a.example.
    RsaA,
    /// A root in no bundle, with the name of A's.
    FalseA,
    /// Its own key.
    Oneself,
}

/// What key it certifies.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Key {
    Ed25519,
    P256,
    P384,
    P521,
    Rsa1024,
    Rsa2048,
}

/// What basicConstraints say.
#[derive(Clone, Copy)]
pub(crate) enum Basic {
    Absent,
    Ca,
    CaPathLen(u8),
    NotCa,
}

/// One certificate.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) subject: &'static str,
    pub(crate) uris: Vec<Vec<u8>>,
    pub(crate) dns: Vec<&'static str>,
    pub(crate) san_critical: bool,
    pub(crate) key_usage: Option<u8>,
    pub(crate) key_usage_critical: bool,
    pub(crate) extended: Option<Vec<u8>>,
    pub(crate) basic: Basic,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    /// Last arcs of the OID (2.5.29.x or 1.3.6.1.4.1.99999.x), critical, content.
    pub(crate) more: Vec<(&'static [u64], bool, Vec<u8>)>,
    pub(crate) key: Key,
}

/// A chain: leaf, issuers below the root (the one next to the root first), the root.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) leaf: Certificate,
    pub(crate) intermediates: Vec<Certificate>,
    pub(crate) signer: Signer,
    /// Certificates sent, in place of all but the root.
    pub(crate) edit: fn(&mut Vec<Vec<u8>>),
    /// The key belongs to another certificate.
    pub(crate) other_key: bool,
}

pub(crate) fn spec() -> Spec {
    Spec {
        leaf: Certificate {
            subject: "front",
            uris: vec![ID.into()],
            dns: Vec::new(),
            san_critical: false,
            key_usage: Some(DIGITAL_SIGNATURE),
            key_usage_critical: true,
            extended: Some(vec![SERVER_AUTH, CLIENT_AUTH]),
            basic: Basic::NotCa,
            not_before: NOW - 60,
            not_after: NOW + 3600,
            more: Vec::new(),
            key: Key::P256,
        },
        intermediates: Vec::new(),
        signer: Signer::A,
        edit: |_| {},
        other_key: false,
    }
}

pub(crate) fn intermediate() -> Certificate {
    Certificate {
        subject: "intermediate",
        uris: Vec::new(),
        key_usage: Some(KEY_CERT_SIGN | CRL_SIGN),
        extended: None,
        basic: Basic::Ca,
        not_after: NOW + 86_400,
        ..spec().leaf
    }
}

impl Spec {
    pub(crate) fn set_uris(&mut self, uris: &[&str]) {
        self.leaf.uris = uris.iter().map(|uri| uri.as_bytes().to_vec()).collect();
    }

    /// `count` proper intermediates.
    pub(crate) fn add_intermediates(&mut self, count: usize) {
        self.intermediates = vec![intermediate(); count];
    }

    /// Signs everything: the chain to send, leaf first, and the leaf's key in PKCS#8.
    pub(crate) fn make(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let mut issuer = self.root();
        let mut chain = Vec::new();
        for (index, certificate) in self.intermediates.iter().enumerate() {
            let key = certificate.key.generate();
            let mut params = certificate.params(100 + u8::try_from(index).unwrap());
            let name = format!("{} {index}", certificate.subject);
            params.distinguished_name = common_name(&name);
            chain.insert(0, params.signed_by(&key, &issuer).unwrap().der().to_vec());
            issuer = Issuer::new(params, key);
        }
        let key = self.leaf.key.generate();
        let params = self.leaf.params(7);
        let leaf = match (self.signer, self.leaf.key) {
            (Signer::Oneself, _) => params.self_signed(&key),
            (_, Key::Rsa1024) => params.signed_by(&WeakRsa, &issuer),
            _ => params.signed_by(&key, &issuer),
        };
        chain.insert(0, leaf.unwrap().der().to_vec());
        (self.edit)(&mut chain);
        let key = match self.other_key {
            true => Key::P256.generate(),
            false => key,
        };
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        (chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
    }

    /// What a peer without scruples presents.
    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        let (chain, key) = self.make();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let key = provider.key_provider.load_private_key(key).unwrap();
        Arc::new(CertifiedKey::new(chain, key))
    }

    fn root(&self) -> Issuer<'static, KeyPair> {
        let (key, subject) = match self.signer {
            Signer::A | Signer::Oneself => (&roots().a, "root a"),
            Signer::B => (&roots().b, "root b"),
            Signer::RsaA => (&roots().rsa_a, "rsa root a"),
            Signer::FalseA => (&roots().false_a, "root a"),
        };
        let params = root_certificate().params(1);
        issuer(params, subject, key)
    }
}

/// Whom honest ends trust: a.example by two roots, b.example by one.
pub(crate) fn bundles() -> TrustBundles {
    let mut bundles = TrustBundles::default();
    for (domain, subject, key) in [
        ("a.example", "root a", &roots().a),
        ("a.example", "rsa root a", &roots().rsa_a),
        ("b.example", "root b", &roots().b),
    ] {
        let domain: TrustDomain = domain.parse().unwrap();
        let mut params = root_certificate().params(1);
        params.distinguished_name = common_name(subject);
        let root = params.self_signed(&read(key)).unwrap();
        bundles.add(domain, vec![root.der().clone()]).unwrap();
    }
    bundles
}

/// Honest ends without identities.
pub(crate) fn trusting() -> Identities {
    Identities {
        bundles: bundles(),
        ..Identities::default()
    }
}

/// A DER element.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let len = content.len();
    let mut out = vec![tag];
    match u8::try_from(len) {
        Ok(short @ 0..0x80) => out.push(short),
        Ok(byte) => out.extend([0x81, byte]),
        Err(_) => out.extend([0x82, u8::try_from(len >> 8).unwrap(), (len & 0xff) as u8]),
    }
    out.extend(content);
    out
}

fn root_certificate() -> Certificate {
    Certificate {
        subject: "root",
        ..intermediate()
    }
}

impl Certificate {
    fn params(&self, serial: u8) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from_slice(&[serial]));
        params.not_before = date(self.not_before);
        params.not_after = date(self.not_after);
        params.distinguished_name = match self.subject {
            "" => DistinguishedName::new(),
            name => common_name(name),
        };
        params.custom_extensions = self.extensions();
        params
    }

    fn extensions(&self) -> Vec<CustomExtension> {
        let mut all = Vec::new();
        let dns = self.dns.iter().map(|name| tlv(0x82, name.as_bytes()));
        let uris = self.uris.iter().map(|uri| tlv(0x86, uri));
        let names: Vec<u8> = dns.chain(uris).flatten().collect();
        if !names.is_empty() {
            all.push(extension(&[17], self.san_critical, tlv(0x30, &names)));
        }
        if let Some(bits) = self.key_usage {
            let unused = u8::try_from(bits.trailing_zeros().min(7)).unwrap();
            let bits = tlv(3, &[unused, bits]);
            all.push(extension(&[15], self.key_usage_critical, bits));
        }
        if let Some(purposes) = &self.extended {
            let oid = |last: &u8| tlv(6, &[0x2b, 6, 1, 5, 5, 7, 3, *last]);
            let purposes: Vec<u8> = purposes.iter().flat_map(oid).collect();
            all.push(extension(&[37], false, tlv(0x30, &purposes)));
        }
        let basic = match self.basic {
            Basic::Absent => None,
            Basic::Ca => Some(tlv(1, &[0xff])),
            Basic::CaPathLen(len) => Some([tlv(1, &[0xff]), tlv(2, &[len])].concat()),
            Basic::NotCa => Some(Vec::new()),
        };
        all.extend(basic.map(|basic| extension(&[19], true, tlv(0x30, &basic))));
        let more = self.more.iter();
        all.extend(more.map(|(oid, critical, content)| extension(oid, *critical, content.clone())));
        all
    }
}

impl Key {
    fn generate(self) -> KeyPair {
        match self {
            Self::Ed25519 => KeyPair::generate_for(&PKCS_ED25519),
            Self::P256 | Self::Rsa1024 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::P384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            Self::P521 => KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512),
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        }
        .unwrap()
    }
}

/// A public key of 1024 bits, to which nobody has the private one.
struct WeakRsa;

impl PublicKeyData for WeakRsa {
    fn der_bytes(&self) -> &[u8] {
        static KEY: OnceLock<Vec<u8>> = OnceLock::new();
        KEY.get_or_init(|| {
            let modulus = [&[0_u8, 0xc5][..], &[0x5b; 127]].concat();
            tlv(0x30, &[tlv(2, &modulus), tlv(2, &[1, 0, 1])].concat())
        })
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

/// PKCS#8 of the roots' keys.
struct Roots {
    a: Vec<u8>,
    b: Vec<u8>,
    rsa_a: Vec<u8>,
    false_a: Vec<u8>,
}

fn roots() -> &'static Roots {
    static ROOTS: OnceLock<Roots> = OnceLock::new();
    ROOTS.get_or_init(|| Roots {
        a: Key::P256.generate().serialize_der(),
        b: Key::P256.generate().serialize_der(),
        rsa_a: Key::Rsa2048.generate().serialize_der(),
        false_a: Key::P256.generate().serialize_der(),
    })
}

fn read(key: &[u8]) -> KeyPair {
    KeyPair::try_from(key).unwrap()
}

fn issuer(mut params: CertificateParams, subject: &str, key: &[u8]) -> Issuer<'static, KeyPair> {
    params.distinguished_name = common_name(subject);
    Issuer::new(params, read(key))
}

/// 2.5.29.x for one arc, else 1.3.6.1.4.1.99999.x.
fn extension(arcs: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let prefix: &[u64] = match arcs {
        [_] => &[2, 5, 29],
        _ => &[1, 3, 6, 1, 4, 1, 99999],
    };
    let mut extension = CustomExtension::from_oid_content(&[prefix, arcs].concat(), content);
    extension.set_criticality(critical);
    extension
}

fn common_name(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    subject
}

fn date(unix_seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(unix_seconds).unwrap()).unwrap()
}
