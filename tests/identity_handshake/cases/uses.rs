//! What a leaf may be used for, its key and its encoding.

use identun::identity::{
    IssuerError, SvidError, VerifyError,
    certificate::{ExtensionError, KeyError},
};

use super::{Case, case, issuer, svid};
use crate::forge::{
    Basic, CLIENT_AUTH, CRL_SIGN, DIGITAL_SIGNATURE, KEY_CERT_SIGN, KEY_ENCIPHERMENT, Key,
    SERVER_AUTH, Signer, tlv,
};

pub(super) fn usages() -> Vec<Case> {
    let unknown = || ExtensionError::UnknownCritical("1.3.6.1.4.1.99999.7.1".into());
    vec![
        case(
            "CA as leaf",
            |s| s.leaf.basic = Basic::Ca,
            |s| s.leaf.basic = Basic::Absent,
            svid(SvidError::IsCa),
        ),
        case(
            "no key usage",
            |s| s.leaf.key_usage = None,
            |_| {},
            svid(SvidError::NoKeyUsage),
        ),
        case(
            "no digitalSignature",
            |s| s.leaf.key_usage = Some(KEY_ENCIPHERMENT),
            |s| s.leaf.key_usage = Some(DIGITAL_SIGNATURE | KEY_ENCIPHERMENT),
            svid(SvidError::NoDigitalSignature),
        ),
        case(
            "keyCertSign",
            |s| s.leaf.key_usage = Some(DIGITAL_SIGNATURE | KEY_CERT_SIGN),
            |_| {},
            svid(SvidError::KeyUsageKeyCertSign),
        ),
        case(
            "cRLSign",
            |s| s.leaf.key_usage = Some(DIGITAL_SIGNATURE | CRL_SIGN),
            |_| {},
            svid(SvidError::KeyUsageCrlSign),
        ),
        case(
            "key usage not critical",
            |s| s.leaf.key_usage_critical = false,
            |_| {},
            svid(SvidError::KeyUsageNotCritical),
        ),
        case(
            "serverAuth only",
            |s| s.leaf.extended = Some(vec![SERVER_AUTH]),
            |s| s.leaf.extended = None,
            svid(SvidError::NoClientAuth),
        ),
        case(
            "clientAuth only",
            |s| s.leaf.extended = Some(vec![CLIENT_AUTH]),
            |s| s.leaf.extended = Some(vec![CLIENT_AUTH, SERVER_AUTH, 3]),
            svid(SvidError::NoServerAuth),
        ),
        case(
            "unknown critical extension",
            |s| s.leaf.more = vec![(&[7, 1], true, tlv(5, &[]))],
            |s| s.leaf.more = vec![(&[7, 1], false, tlv(5, &[]))],
            svid(SvidError::Extension(unknown())),
        ),
        case(
            "unknown critical extension of an intermediate",
            |s| {
                s.add_intermediates(1);
                s.intermediates[0].more = vec![(&[7, 1], true, tlv(5, &[]))];
            },
            |s| {
                s.add_intermediates(1);
                s.intermediates[0].more = vec![(&[7, 1], false, tlv(5, &[]))];
            },
            issuer(IssuerError::Extension(unknown())),
        ),
    ]
}

pub(super) fn keys_and_encodings() -> Vec<Case> {
    vec![
        case(
            "RSA of 1024 bits",
            |s| s.leaf.key = Key::Rsa1024,
            |s| s.leaf.key = Key::Rsa2048,
            svid(SvidError::Key(KeyError::WeakRsa { bits: 1024 })),
        ),
        case(
            "P-521",
            |s| s.leaf.key = Key::P521,
            |s| s.leaf.key = Key::P384,
            svid(SvidError::Key(KeyError::Unsupported)),
        ),
        case(
            "signed with SHA-1",
            |s| {
                s.signer = Signer::RsaA;
                s.edit = |chain| sign_with_sha1(chain);
            },
            |s| s.signer = Signer::RsaA,
            svid(SvidError::WeakSignature),
        ),
        case(
            "bytes after the leaf",
            |s| s.edit = |chain| chain[0].push(0),
            |s| s.leaf.key = Key::Ed25519,
            svid(SvidError::Der),
        ),
        case(
            "leaf cut short",
            |s| s.edit = |chain| chain[0].truncate(200),
            |_| {},
            svid(SvidError::Der),
        ),
        case(
            "bytes after an intermediate",
            |s| {
                s.add_intermediates(1);
                s.edit = |chain| chain[1].extend(b"garbage");
            },
            |s| s.add_intermediates(1),
            svid(SvidError::ChainDer { position: 1 }),
        ),
        case(
            "eleven certificates",
            |s| {
                s.add_intermediates(1);
                s.edit = |chain| chain.resize(11, chain[1].clone());
            },
            |s| {
                s.add_intermediates(1);
                s.edit = |chain| chain.resize(10, chain[1].clone());
            },
            svid(SvidError::ChainLength { certificates: 11 }),
        ),
        case(
            "flipped bit in the signature",
            |s| s.edit = |chain| *chain[0].last_mut().unwrap() ^= 1,
            |_| {},
            VerifyError::BadSignature,
        ),
        case(
            "flipped bit in the SPIFFE ID",
            |s| s.edit = |chain| flip_id(chain),
            |_| {},
            VerifyError::BadSignature,
        ),
    ]
}

/// sha256WithRSAEncryption becomes sha1WithRSAEncryption, inside and outside of what is signed.
fn sign_with_sha1(chain: &mut [Vec<u8>]) {
    let algorithm = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
    let leaf = &mut chain[0];
    for at in 0..leaf.len() - algorithm.len() {
        if leaf[at..].starts_with(&algorithm) {
            leaf[at + 8] = 0x05;
        }
    }
}

/// `/sa/front` becomes `/sa/frons`.
fn flip_id(chain: &mut [Vec<u8>]) {
    let leaf = &mut chain[0];
    let at = leaf
        .windows(9)
        .position(|window| window == b"/sa/front")
        .unwrap();
    leaf[at + 8] = b's';
}
