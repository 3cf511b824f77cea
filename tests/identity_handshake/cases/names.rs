//! Which workload a certificate names.

use identun::{
    identity::{SvidError, certificate::ExtensionError},
    spiffe::SpiffeIdError,
};

use super::{Case, case, svid};
use crate::forge::{ID, Spec, tlv};

pub(super) fn names() -> Vec<Case> {
    vec![
        case(
            "two URIs",
            |s| s.set_uris(&["spiffe://a.example/x", "spiffe://a.example/y"]),
            |s| s.leaf.dns = vec!["front.example"],
            svid(SvidError::SeveralUris { uris: 2 }),
        ),
        case(
            "a SPIFFE ID and a web address",
            |s| s.set_uris(&["https://a.example/", "spiffe://a.example/y", "urn:x"]),
            |s| s.set_uris(&["spiffe://a.example/y"]),
            svid(SvidError::SeveralUris { uris: 3 }),
        ),
        case(
            "DNS names only",
            |s| {
                s.set_uris(&[]);
                s.leaf.dns = vec!["front.example"];
            },
            |s| s.leaf.dns = vec!["front.example"],
            svid(SvidError::NoUri),
        ),
        case(
            "no SAN",
            |s| s.set_uris(&[]),
            |_| {},
            svid(SvidError::NoUri),
        ),
        case(
            "empty subject, SAN not critical",
            |s| s.leaf.subject = "",
            |s| {
                s.leaf.subject = "";
                s.leaf.san_critical = true;
            },
            svid(SvidError::EmptySubject),
        ),
        case(
            "two SAN extensions",
            |s| {
                let names = tlv(0x30, &tlv(0x86, b"spiffe://a.example/other"));
                s.leaf.more = vec![(&[17], false, names)];
            },
            |_| {},
            svid(SvidError::Extension(ExtensionError::Duplicate(
                "2.5.29.17".into(),
            ))),
        ),
        case(
            "SAN that is no sequence",
            |s| {
                s.set_uris(&[]);
                s.leaf.more = vec![(&[17], false, tlv(4, b"spiffe://a.example/x"))];
            },
            |_| {},
            svid(SvidError::Extension(ExtensionError::Malformed(
                "2.5.29.17".into(),
            ))),
        ),
        case(
            "something after the SAN",
            |s| {
                s.set_uris(&[]);
                let names = |id: &[u8]| tlv(0x30, &tlv(0x86, id));
                let two = [names(ID.as_bytes()), names(b"spiffe://a.example/other")];
                s.leaf.more = vec![(&[17], false, two.concat())];
            },
            |s| {
                s.set_uris(&[]);
                let names = tlv(0x30, &tlv(0x86, ID.as_bytes()));
                s.leaf.more = vec![(&[17], false, names)];
            },
            svid(SvidError::Extension(ExtensionError::Malformed(
                "2.5.29.17".into(),
            ))),
        ),
        case(
            "URI that is not ASCII",
            |s| s.leaf.uris = vec!["spiffe://a.example/fr\u{f6}nt".into()],
            |_| {},
            svid(SvidError::UriEncoding),
        ),
        case(
            "URI that is not text",
            |s| s.leaf.uris = vec![b"spiffe://a.example/\xff\xfe".to_vec()],
            |_| {},
            svid(SvidError::UriEncoding),
        ),
    ]
}

pub(super) fn ids() -> Vec<Case> {
    use SpiffeIdError as E;
    fn id(
        name: &'static str,
        uri: &str,
        spoil: fn(&mut Spec),
        twin: fn(&mut Spec),
        error: E,
    ) -> Case {
        let uri = uri.chars().take(256).collect();
        case(name, spoil, twin, svid(SvidError::Id { uri, error }))
    }
    macro_rules! id {
        ($name:literal, $bad:literal, $good:literal, $error:expr) => {
            id(
                $name,
                $bad,
                |s| s.set_uris(&[$bad]),
                |s| s.set_uris(&[$good]),
                $error,
            )
        };
    }
    let mut cases = vec![
        id!(
            "upper-case trust domain",
            "spiffe://A.example/x",
            "spiffe://a.example/X",
            E::TrustDomainCharacter('A')
        ),
        id!(
            "upper-case scheme",
            "SPIFFE://a.example/x",
            "spiffe://a.example/x",
            E::Scheme
        ),
        id!(
            "web address",
            "https://a.example/x",
            "spiffe://a.example/x",
            E::Scheme
        ),
        id!(
            "no scheme",
            "a.example/x",
            "spiffe://a.example/x",
            E::Scheme
        ),
        id!(
            "user information",
            "spiffe://me@a.example/x",
            "spiffe://a.example/me",
            E::TrustDomainCharacter('@')
        ),
        id!(
            "port",
            "spiffe://a.example:1/x",
            "spiffe://a.example/x1",
            E::TrustDomainCharacter(':')
        ),
        id!(
            "query",
            "spiffe://a.example/x?y",
            "spiffe://a.example/x/y",
            E::SegmentCharacter('?')
        ),
        id!(
            "query without path",
            "spiffe://a.example?y",
            "spiffe://a.example/y",
            E::TrustDomainCharacter('?')
        ),
        id!(
            "fragment",
            "spiffe://a.example/x#y",
            "spiffe://a.example/x-y",
            E::SegmentCharacter('#')
        ),
        id!(
            "percent-encoded path",
            "spiffe://a.example/%78",
            "spiffe://a.example/x78",
            E::SegmentCharacter('%')
        ),
        id!(
            "percent-encoded trust domain",
            "spiffe://%61.example/x",
            "spiffe://a.example/x",
            E::TrustDomainCharacter('%')
        ),
        id!(
            "wildcard",
            "spiffe://a.example/*",
            "spiffe://a.example/_",
            E::SegmentCharacter('*')
        ),
        id!(
            "NUL in the path",
            "spiffe://a.example/x\0",
            "spiffe://a.example/x0",
            E::SegmentCharacter('\0')
        ),
        id!(
            "trailing slash",
            "spiffe://a.example/x/",
            "spiffe://a.example/x",
            E::EmptySegment
        ),
        id!(
            "root path",
            "spiffe://a.example/",
            "spiffe://a.example/x",
            E::EmptySegment
        ),
        id!(
            "doubled slash",
            "spiffe://a.example/x//y",
            "spiffe://a.example/x/y",
            E::EmptySegment
        ),
        id!(
            "empty namespace and account",
            "spiffe://a.example/ns//sa/",
            "spiffe://a.example/ns/n/sa/a",
            E::EmptySegment
        ),
        id!(
            "dot segment",
            "spiffe://a.example/./x",
            "spiffe://a.example/.x",
            E::RelativeSegment(".".into())
        ),
        id!(
            "dot-dot segment",
            "spiffe://a.example/y/..",
            "spiffe://a.example/y/...",
            E::RelativeSegment("..".into())
        ),
        id!(
            "empty trust domain",
            "spiffe:///x",
            "spiffe://a.example/x",
            E::EmptyTrustDomain
        ),
        id!("empty URI", "", "spiffe://a.example/x", E::Scheme),
        case(
            "no path",
            |s| s.set_uris(&["spiffe://a.example"]),
            |s| s.set_uris(&["spiffe://a.example/x"]),
            svid(SvidError::NoPath("spiffe://a.example".parse().unwrap())),
        ),
    ];
    cases.push(id(
        "2049 bytes",
        &id_of_len(2049),
        |s| s.set_uris(&[&id_of_len(2049)]),
        |s| s.set_uris(&[&id_of_len(2048)]),
        E::TooLong { len: 2049 },
    ));
    cases.push(id(
        "trust domain of 256 bytes",
        &long_domain(),
        |s| s.set_uris(&[&long_domain()]),
        |_| {},
        E::TrustDomainTooLong { len: 256 },
    ));
    cases
}

fn id_of_len(len: usize) -> String {
    let start = "spiffe://a.example/";
    format!("{start}{}", "x".repeat(len - start.len()))
}

fn long_domain() -> String {
    format!("spiffe://{}/x", "a".repeat(256))
}
