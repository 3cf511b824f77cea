//! Who issued it, and when.

use identun::identity::{IssuerError, VerifyError, certificate::KeyError};

use super::{Case, case, issuer};
use crate::forge::{
    Basic, CLIENT_AUTH, CRL_SIGN, KEY_CERT_SIGN, Key, NOW, SERVER_AUTH, Signer, tlv,
};

pub(super) fn issuers() -> Vec<Case> {
    macro_rules! intermediate {
        ($name:literal, $error:expr, |$i:ident| $spoil:expr) => {
            intermediate!($name, $error, |$i| $spoil, |_unchanged| ())
        };
        ($name:literal, $error:expr, |$i:ident| $spoil:expr, |$j:ident| $twin:expr) => {
            case(
                $name,
                |s| {
                    s.add_intermediates(1);
                    let $i = &mut s.intermediates[0];
                    $spoil
                },
                |s| {
                    s.add_intermediates(1);
                    let $j = &mut s.intermediates[0];
                    $twin
                },
                $error,
            )
        };
    }
    vec![
        intermediate!("intermediate not CA", issuer(IssuerError::NotCa), |i| i
            .basic =
            Basic::NotCa),
        intermediate!(
            "intermediate without constraints",
            issuer(IssuerError::NotCa),
            |i| i.basic = Basic::Absent
        ),
        intermediate!(
            "intermediate without key usage",
            issuer(IssuerError::NoKeyUsage),
            |i| i.key_usage = None
        ),
        intermediate!(
            "intermediate without keyCertSign",
            issuer(IssuerError::NoKeyCertSign),
            |i| i.key_usage = Some(CRL_SIGN),
            |i| i.key_usage = Some(KEY_CERT_SIGN)
        ),
        intermediate!(
            "intermediate's key usage not critical",
            issuer(IssuerError::KeyUsageNotCritical),
            |i| i.key_usage_critical = false
        ),
        intermediate!(
            "intermediate of P-521",
            issuer(IssuerError::Key(KeyError::Unsupported)),
            |i| i.key = Key::P521,
            |i| i.key = Key::P384
        ),
        intermediate!(
            "intermediate for other uses",
            VerifyError::IssuerPurpose,
            |i| i.extended = Some(vec![3]),
            |i| i.extended = Some(vec![SERVER_AUTH, CLIENT_AUTH])
        ),
        intermediate!(
            "expired intermediate",
            VerifyError::Expired {
                now: NOW,
                not_after: NOW - 1
            },
            |i| i.not_after = NOW - 1,
            |i| i.not_after = NOW
        ),
        intermediate!(
            "intermediate constrained to URIs of another host",
            VerifyError::NameConstraints,
            |i| i.more = vec![(&[30], true, permitted(0x86, b"b.example"))],
            |i| i.more = vec![(&[30], true, permitted(0x82, b"b.example"))]
        ),
        intermediate!(
            "intermediate constrained to URIs of the right host, which cannot be checked",
            VerifyError::NameConstraints,
            |i| i.more = vec![(&[30], true, permitted(0x86, b"a.example"))]
        ),
    ]
}

/// NameConstraints with one permitted subtree.
fn permitted(tag: u8, name: &[u8]) -> Vec<u8> {
    tlv(0x30, &tlv(0xa0, &tlv(0x30, &tlv(tag, name))))
}

pub(super) fn paths() -> Vec<Case> {
    vec![
        case(
            "self-signed",
            |s| s.signer = Signer::Oneself,
            |_| {},
            VerifyError::UnknownIssuer,
        ),
        case(
            "signed by a root of the right name with another key",
            |s| s.signer = Signer::FalseA,
            |_| {},
            VerifyError::BadSignature,
        ),
        case(
            "trust domain A signed by B",
            |s| s.signer = Signer::B,
            |s| {
                s.signer = Signer::B;
                s.set_uris(&["spiffe://b.example/ns/web/sa/front"]);
            },
            VerifyError::UnknownIssuer,
        ),
        case(
            "trust domain B signed by A",
            |s| s.set_uris(&["spiffe://b.example/x"]),
            |s| s.set_uris(&["spiffe://a.example/x"]),
            VerifyError::UnknownIssuer,
        ),
        case(
            "unknown trust domain",
            |s| s.set_uris(&["spiffe://c.example/x"]),
            |_| {},
            VerifyError::UnknownTrustDomain {
                domain: "c.example".parse().unwrap(),
            },
        ),
        case(
            "subdomain of the trust domain",
            |s| s.set_uris(&["spiffe://x.a.example/x"]),
            |_| {},
            VerifyError::UnknownTrustDomain {
                domain: "x.a.example".parse().unwrap(),
            },
        ),
        case(
            "expired",
            |s| s.leaf.not_after = NOW - 1,
            |s| s.leaf.not_after = NOW,
            VerifyError::Expired {
                now: NOW,
                not_after: NOW - 1,
            },
        ),
        case(
            "not yet valid",
            |s| s.leaf.not_before = NOW + 1,
            |s| s.leaf.not_before = NOW,
            VerifyError::NotYetValid {
                now: NOW,
                not_before: NOW + 1,
            },
        ),
        case(
            "intermediate not sent",
            |s| {
                s.add_intermediates(1);
                s.edit = |chain| chain.truncate(1);
            },
            |s| s.add_intermediates(1),
            VerifyError::UnknownIssuer,
        ),
        case(
            "path longer than pathLenConstraint",
            |s| {
                s.add_intermediates(2);
                s.intermediates[0].basic = Basic::CaPathLen(0);
            },
            |s| {
                s.add_intermediates(2);
                s.intermediates[0].basic = Basic::CaPathLen(1);
            },
            VerifyError::PathLength,
        ),
        case(
            "eight intermediates",
            |s| s.add_intermediates(8),
            |s| s.add_intermediates(4),
            VerifyError::PathDepth,
        ),
        case(
            "leaf issued by a leaf",
            |s| {
                s.intermediates = vec![s.leaf.clone()];
                s.intermediates[0].subject = "front that issues";
            },
            |s| s.add_intermediates(1),
            issuer(IssuerError::NotCa),
        ),
    ]
}
