//! Valid chains, changed somewhere and signed again, against what X509-SVID.md lets pass.

mod chains;
mod der;
mod judge;

use std::error::Error;

use identun::identity::{PeerRole, SvidError, VerifyError, X509Svid};
use rcgen::SigningKey as _;
use rustls::pki_types::CertificateDer;

use super::{capsule::is_spiffe_id, choices::Choices};
use chains::{Authorities, NOW, authorities};
use der::{Body, Node};
use judge::judge;

/// Tags that stand in certificates, or nearly.
const TAGS: [u8; 18] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0c, 0x13, 0x16, 0x17, 0x18, 0x30, 0x31, 0x82, 0x86, 0xa0,
    0xa3, 0xa4,
];
/// Contents that mean something somewhere.
const CONTENTS: [&[u8]; 24] = [
    b"",
    b"\x00",
    b"\x01",
    b"\xff",
    b"\x07\x80",
    b"\x00\x84",
    b"\x01\x06",
    b"\x05\xa0",
    b"spiffe://a.example",
    b"spiffe://a.example/",
    b"spiffe://a.example/other",
    b"spiffe://b.example/other",
    b"spiffe://c.example/other",
    b"SPIFFE://a.example/other",
    b"spiffe://A.example/other",
    b"spiffe://a.example/x/../y",
    b"spiffe://a.example/x\0",
    b"spiffe://a.example/\xc3\xa9",
    b"https://a.example/other",
    b"270115080000Z",
    b"270115080001Z",
    b"20270115080000Z",
    b"99991231235959Z",
    b"\x1b[2J\n",
];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const POLICY_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x24];
const NOBODYS: &[u8] = &[0x2b, 6, 1, 4, 1, 0x86, 0x8d, 0x1f, 1];
/// Extensions: which, and what they say.
const EXTENSIONS: [(&[u8], &[u8]); 18] = [
    (KEY_USAGE, &[3, 2, 7, 0x80]),
    (KEY_USAGE, &[3, 2, 1, 0x82]),
    (KEY_USAGE, &[3, 2, 2, 0x84]),
    (KEY_USAGE, &[3, 2, 1, 0x06]),
    (KEY_USAGE, &[3, 2, 5, 0x20]),
    (BASIC, &[0x30, 0]),
    (BASIC, &[0x30, 3, 1, 1, 0xff]),
    (BASIC, &[0x30, 6, 1, 1, 0xff, 2, 1, 0]),
    (BASIC, &[0x30, 3, 1, 1, 0]),
    (NAMES, b"\x30\x1a\x86\x18spiffe://a.example/other"),
    (NAMES, b"\x30\x1a\x86\x18spiffe://b.example/other"),
    (
        NAMES,
        b"\x30\x34\x86\x18spiffe://a.example/other\x86\x18spiffe://a.example/third",
    ),
    (
        NAME_CONSTRAINTS,
        b"\x30\x11\xa0\x0f\x30\x0d\x86\x0b.a.example.",
    ),
    (
        NAME_CONSTRAINTS,
        b"\x30\x0f\xa1\x0d\x30\x0b\x82\x09a.example",
    ),
    (EXTENDED_USAGE, &[0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1]),
    (EXTENDED_USAGE, &[0x30, 10, 6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2]),
    (POLICY_CONSTRAINTS, &[0x30, 3, 0x80, 1, 0]),
    (NOBODYS, &[5, 0]),
];

/// What a scene did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) accepted: usize,
    pub(crate) refused: usize,
    /// Accepted although something was changed.
    pub(crate) changed: usize,
}

/// Plays one chain; panics where something is not as it has to be.
pub(crate) fn play(choices: &mut Choices<'_>) -> Tally {
    let all = authorities();
    let which = choices.below(all.chains.len());
    let mut chain = all.chains[which].certificates.clone();
    let flaws = choices.below(4);
    for _ in 0..flaws {
        flaw(choices, all, which, &mut chain);
    }
    if choices.chance(15) {
        rearrange(choices, all, &mut chain);
    }
    let role = *choices.pick(&[PeerRole::Server, PeerRole::Client]);
    let is_valid = chain == all.chains[which].certificates;
    match verify(all, &chain, role) {
        Ok(svid) => {
            let proven = judge(&chain, &all.roots, NOW);
            let shown = chain
                .iter()
                .map(|der| {
                    format!(
                        "\n{}",
                        der.iter()
                            .map(|byte| format!("{byte:02x}"))
                            .collect::<String>()
                    )
                })
                .collect::<String>();
            assert_eq!(proven.as_deref(), Ok(svid.id.as_str()), "{shown}");
            assert!(svid.not_before <= NOW && NOW <= svid.not_after);
            Tally {
                accepted: 1,
                changed: usize::from(!is_valid),
                refused: 0,
            }
        }
        Err(error) => {
            assert!(!is_valid, "{error:?}");
            check_reason(&error);
            Tally {
                refused: 1,
                ..Tally::default()
            }
        }
    }
}

/// As a handshake does it.
fn verify(all: &Authorities, chain: &[Vec<u8>], role: PeerRole) -> Result<X509Svid, VerifyError> {
    let chain = chain.iter().cloned().map(CertificateDer::from).collect();
    let svid = X509Svid::new(chain).map_err(VerifyError::Svid)?;
    check_words(&svid.to_string());
    all.bundles.verify(&svid, role, NOW)?;
    Ok(svid)
}

/// A refusal has a label for metrics and words for the log, whatever stands in the certificate.
fn check_reason(error: &VerifyError) {
    let label = error.as_str();
    let is_label = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    assert!(!label.is_empty() && label.bytes().all(is_label), "{label}");
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        check_words(&error.to_string());
        cause = error.source();
    }
    assert_ne!(*error, VerifyError::Svid(SvidError::EmptyChain));
}

fn check_words(words: &str) {
    assert!(
        !words.is_empty() && !words.chars().any(char::is_control),
        "{words:?}"
    );
}

/// Changes one certificate, which whoever may signs again, or nobody does.
fn flaw(choices: &mut Choices<'_>, all: &Authorities, which: usize, chain: &mut [Vec<u8>]) {
    let at = choices.below(chain.len());
    let Some(mut certificate) = Node::parse(&chain[at]) else {
        return;
    };
    let extensions = extensions(&mut certificate);
    match extensions {
        Some(extensions) if choices.chance(35) => change_extensions(choices, extensions),
        _ => change(choices, &mut certificate),
    }
    let signer = match choices.below(10) {
        8 => None,
        9 => Some(choices.below(all.keys.len())),
        _ => all.chains[which].signers.get(at).copied(),
    };
    if let Some(signer) = signer
        && let Body::Nodes(parts) = &mut certificate.body
        && let [body, .., signature] = parts.as_mut_slice()
    {
        let signed = all.keys[signer].sign(&body.write()).unwrap();
        signature.body = Body::Bytes([vec![0], signed].concat());
    }
    chain[at] = certificate.write();
}

fn extensions(certificate: &mut Node) -> Option<&mut Vec<Node>> {
    let Body::Nodes(parts) = &mut certificate.body else {
        return None;
    };
    let Body::Nodes(body) = &mut parts.first_mut()?.body else {
        return None;
    };
    let Body::Nodes(list) = &mut body.iter_mut().find(|node| node.tag == 0xa3)?.body else {
        return None;
    };
    match &mut list.first_mut()?.body {
        Body::Nodes(extensions) => Some(extensions),
        Body::Bytes(_) => None,
    }
}

/// A change in what extensions there are: another in the place of one of its kind, one more, one less.
fn change_extensions(choices: &mut Choices<'_>, extensions: &mut Vec<Node>) {
    let (oid, value) = *choices.pick(&EXTENSIONS);
    let mut parts = vec![Node::new(0x06, oid)];
    match choices.below(4) {
        0 => {}
        1 => parts.push(Node::new(0x01, &[0])),
        _ => parts.push(Node::new(0x01, &[0xff])),
    }
    parts.push(Node::new(0x04, value));
    let made = Node {
        tag: 0x30,
        long: false,
        body: Body::Nodes(parts),
    };
    let is_same = |node: &Node| match &node.body {
        Body::Nodes(parts) => parts.first().is_some_and(|first| first.is(oid)),
        Body::Bytes(_) => false,
    };
    let same = extensions.iter().position(is_same);
    match (choices.below(8), same) {
        (0, _) => extensions.push(made),
        (1, Some(at)) => drop(extensions.remove(at)),
        (_, Some(at)) => extensions[at] = made,
        (_, None) => extensions.push(made),
    }
}

/// A change of any element.
fn change(choices: &mut Choices<'_>, certificate: &mut Node) {
    let count = certificate.count();
    let pick = |choices: &mut Choices<'_>| 1 + choices.below(256) % (count - 1).max(1);
    let (number, other) = (pick(choices), pick(choices));
    let donor = certificate
        .holder(other)
        .map(|(nodes, at)| nodes[at].clone());
    let Some((nodes, at)) = certificate.holder(number) else {
        return;
    };
    match choices.below(10) {
        0 => nodes[at].tag = *choices.pick(&TAGS),
        1 => nodes[at].tag ^= 1 << choices.below(8),
        2 => drop(nodes.remove(at)),
        3 => nodes.insert(at, nodes[at].clone()),
        4 => nodes[at] = donor.unwrap_or_else(|| Node::new(0x05, &[])),
        5 => nodes.insert(at, donor.unwrap_or_else(|| Node::new(0x05, &[]))),
        6 => nodes[at].long = true,
        7 => nodes[at].body = Body::Bytes(choices.pick(&CONTENTS).to_vec()),
        8 => {
            let last = nodes.len() - 1;
            nodes.swap(at, last);
        }
        _ => change_bytes(choices, &mut nodes[at]),
    }
}

fn change_bytes(choices: &mut Choices<'_>, node: &mut Node) {
    let mut bytes = match &node.body {
        Body::Bytes(bytes) => bytes.clone(),
        Body::Nodes(nodes) => nodes.iter().flat_map(Node::write).collect(),
    };
    let at = choices.below(256) % bytes.len().max(1);
    let value = choices.below(256) as u8;
    match choices.below(4) {
        0 => bytes.insert(at.min(bytes.len()), value),
        1 if !bytes.is_empty() => drop(bytes.remove(at)),
        2 if !bytes.is_empty() => bytes[at] = value,
        _ if !bytes.is_empty() => bytes[at] ^= 1 << (value % 8),
        _ => {}
    }
    node.body = Body::Bytes(bytes);
}

/// A change in which certificates there are, and in what order.
fn rearrange(choices: &mut Choices<'_>, all: &Authorities, chain: &mut Vec<Vec<u8>>) {
    let at = choices.below(chain.len());
    match choices.below(7) {
        0 => drop(chain.remove(at)),
        1 => chain.push(chain[at].clone()),
        2 => chain.reverse(),
        3 => chain.push(choices.pick(&all.roots).1.clone()),
        4 => {
            let other = &choices.pick(&all.chains).certificates;
            chain.extend(other.iter().skip(1).cloned());
        }
        5 => chain[at].push(0),
        _ => {
            let copies = 1 + choices.below(12);
            chain.extend(vec![chain[at].clone(); copies]);
        }
    }
    if chain.is_empty() {
        chain.push(Vec::new());
    }
}
