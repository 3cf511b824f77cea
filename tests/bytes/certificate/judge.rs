//! What may be accepted (X509-SVID.md, RFC 5280 §4.2 and §6): read by a few loops of its own, and asked of what the
//! verifier accepted.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519, UnparsedPublicKey,
    VerificationAlgorithm,
};

use super::{der::element, is_spiffe_id};

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const BASIC: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
const EXTENDED_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

const DIGITAL_SIGNATURE: u8 = 0x80;
const KEY_CERT_SIGN: u8 = 0x04;
const CRL_SIGN: u8 = 0x02;

/// Certificate, or why it is none.
type Read<T> = Result<T, &'static str>;

/// The SPIFFE ID that a chain proves at `now`, or the first rule that it breaks.
pub(crate) fn judge(chain: &[Vec<u8>], roots: &[(&str, Vec<u8>)], now: u64) -> Read<String> {
    if chain.len() > 10 || chain.iter().map(Vec::len).sum::<usize>() > 65_536 {
        return Err("the chain is too long");
    }
    let (leaf, issuers) = chain.split_first().ok_or("no certificate")?;
    let leaf = Seen::read(leaf)?;
    let id = leaf.check_leaf(now)?;
    let domain = id.split('/').nth(2).unwrap_or_default();
    let roots: Vec<_> = roots
        .iter()
        .filter(|(of, _)| *of == domain)
        .map(|(_, root)| Seen::read(root).unwrap())
        .collect();
    let issuers: Vec<_> = issuers
        .iter()
        .filter_map(|der| Seen::read(der).ok())
        .filter(|issuer| issuer.is_valid(now) && issuer.may_issue())
        .collect();
    match leads_to_root(&leaf, &issuers, &roots, 0) {
        true => Ok(id),
        false => Err("no path to a root of the trust domain"),
    }
}

/// Whether somebody who may has signed it, with so many issuers between it and the leaf.
fn leads_to_root(below: &Seen<'_>, issuers: &[Seen<'_>], roots: &[Seen<'_>], depth: usize) -> bool {
    let signed = |issuer: &&Seen<'_>| issuer.subject == below.issuer && issuer.signed(below);
    roots.iter().any(|root| signed(&root))
        || (depth < issuers.len()
            && issuers
                .iter()
                .filter(|issuer| issuer.path_len.is_none_or(|len| depth <= len))
                .filter(signed)
                .any(|issuer| leads_to_root(issuer, issuers, roots, depth + 1)))
}

/// Object identifier, critical, content.
type Extension<'a> = (&'a [u8], bool, &'a [u8]);

/// What stands in a certificate.
struct Seen<'a> {
    /// The part that is signed, as it is.
    body: &'a [u8],
    algorithm: &'a [u8],
    signature: &'a [u8],
    issuer: &'a [u8],
    subject: &'a [u8],
    not_before: u64,
    not_after: u64,
    key_algorithm: &'a [u8],
    key: &'a [u8],
    extensions: Vec<Extension<'a>>,
    is_ca: bool,
    path_len: Option<usize>,
}

impl<'a> Seen<'a> {
    fn read(der: &'a [u8]) -> Read<Self> {
        let parts = only(0x30, der)?;
        let (body, after) = split(0x30, parts)?;
        let signed = &parts[..parts.len() - after.len()];
        let (algorithm, rest) = split(0x30, after)?;
        let signature = only(0x03, rest)?;
        let mut seen = Self::read_body(body)?;
        if seen.algorithm != algorithm {
            return Err("two signature algorithms");
        }
        seen.body = signed;
        seen.signature = signature.split_first().ok_or("no signature")?.1;
        Ok(seen)
    }

    fn read_body(body: &'a [u8]) -> Read<Self> {
        let rest = match body.first() {
            Some(0xa0) => split(0xa0, body)?.1,
            _ => body,
        };
        let (_, rest) = split(0x02, rest)?;
        let (algorithm, rest) = split(0x30, rest)?;
        let (issuer, rest) = split(0x30, rest)?;
        let (validity, rest) = split(0x30, rest)?;
        let (subject, rest) = split(0x30, rest)?;
        let (key_info, rest) = split(0x30, rest)?;
        let (key_algorithm, key) = split(0x30, key_info)?;
        let (from, after) = time(validity)?;
        let (to, _) = time(after)?;
        let mut seen = Self {
            body: &[],
            algorithm,
            signature: &[],
            issuer,
            subject,
            not_before: from,
            not_after: to,
            key_algorithm,
            // What follows the key nobody reads; who proves to have it must be rid of it (webpki).
            key: split(0x03, key)?.0.split_first().ok_or("no key")?.1,
            extensions: extensions(rest)?,
            is_ca: false,
            path_len: None,
        };
        if let Some((_, basic)) = seen.extension(BASIC) {
            let basic = only(0x30, basic)?;
            if let Some((0x01, [value], rest)) = element(basic) {
                seen.is_ca = *value != 0;
                if let Some((0x02, len, _)) = element(rest) {
                    let len = len.iter().fold(0_usize, |sum, &byte| {
                        sum.saturating_mul(256) + usize::from(byte)
                    });
                    seen.path_len = Some(len);
                }
            }
        }
        Ok(seen)
    }

    fn extension(&self, oid: &[u8]) -> Option<(bool, &'a [u8])> {
        let found = self.extensions.iter().find(|extension| extension.0 == oid);
        found.map(|&(_, critical, content)| (critical, content))
    }

    fn is_valid(&self, now: u64) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Critical, and the octet of the usages that matter here.
    fn key_usage(&self) -> Option<(bool, u8)> {
        let (critical, content) = self.extension(KEY_USAGE)?;
        let bits = only(0x03, content).ok()?;
        Some((critical, bits.get(1).copied().unwrap_or(0)))
    }

    fn may_issue(&self) -> bool {
        let usage = self.key_usage();
        let names = self.extension(NAME_CONSTRAINTS);
        // Constraints on URIs are not understood, so nobody passes them.
        let constrains_uris = names.is_some_and(|(_, content)| holds(content, 0x86));
        self.is_ca
            && usage.is_some_and(|(critical, bits)| critical && bits & KEY_CERT_SIGN != 0)
            && !constrains_uris
    }

    fn check_leaf(&self, now: u64) -> Read<String> {
        let mut oids: Vec<_> = self
            .extensions
            .iter()
            .map(|extension| extension.0)
            .collect();
        oids.sort_unstable();
        if oids.windows(2).any(|two| two[0] == two[1]) {
            return Err("an extension twice");
        }
        let known = [KEY_USAGE, NAMES, BASIC, NAME_CONSTRAINTS, EXTENDED_USAGE];
        let unknown = |&(oid, critical, _): &Extension<'_>| critical && !known.contains(&oid);
        if self.extensions.iter().any(unknown) {
            return Err("a critical extension that is unknown");
        }
        if self.is_ca {
            return Err("a CA as leaf");
        }
        let (critical, usage) = self.key_usage().ok_or("no key usage")?;
        if !critical || usage & DIGITAL_SIGNATURE == 0 || usage & (KEY_CERT_SIGN | CRL_SIGN) != 0 {
            return Err("a wrong key usage");
        }
        if let Some((_, content)) = self.extension(EXTENDED_USAGE) {
            let purposes = elements(only(0x30, content)?)?;
            // The parser takes object identifiers under any tag; whose they are does not change.
            let has = |oid| purposes.iter().any(|(_, found)| *found == oid);
            if !has(SERVER_AUTH) || !has(CLIENT_AUTH) {
                return Err("a wrong extended key usage");
            }
        }
        if !self.is_valid(now) {
            return Err("not valid at this time");
        }
        let keys: [&[u8]; 4] = [
            &[0x2b, 0x65, 0x70],
            &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7],
            &[0x2b, 0x81, 4, 0, 0x22],
            &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1],
        ];
        let of_key = elements(self.key_algorithm)?;
        if !of_key.iter().any(|(_, oid)| keys.contains(oid)) {
            return Err("a key of an unknown kind");
        }
        self.only_id()
    }

    fn only_id(&self) -> Read<String> {
        let (critical, content) = self.extension(NAMES).ok_or("no names")?;
        if self.subject.is_empty() && !critical {
            return Err("nothing but names, and they are not critical");
        }
        let names = elements(only(0x30, content)?)?;
        let mut uris = names.iter().filter(|(tag, _)| tag & 0x1f == 6);
        let (Some((_, uri)), None) = (uris.next(), uris.next()) else {
            return Err("not one URI");
        };
        let uri = str::from_utf8(uri).map_err(|_| "no text")?;
        match is_spiffe_id(uri) && uri.matches('/').count() > 2 {
            true => Ok(uri.to_owned()),
            false => Err("not the SPIFFE ID of a workload"),
        }
    }

    /// Whether its key has signed the other.
    fn signed(&self, other: &Seen<'_>) -> bool {
        let Some((0x06, oid, _)) = element(other.algorithm) else {
            return false;
        };
        let algorithm: &'static dyn VerificationAlgorithm = match oid {
            [0x2b, 0x65, 0x70] => &ED25519,
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2] => &ECDSA_P256_SHA256_ASN1,
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3] => &ECDSA_P384_SHA384_ASN1,
            _ => return false,
        };
        UnparsedPublicKey::new(algorithm, self.key)
            .verify(other.body, other.signature)
            .is_ok()
    }
}

/// The parser looks at a tag's number and not at its class where only one element can stand; no rule depends on it.
fn is_like(found: u8, tag: u8) -> bool {
    found == tag || (tag < 0x80 && found & 0x1f == tag & 0x1f)
}

/// The content of an element with this tag that is all there is.
fn only(tag: u8, der: &[u8]) -> Read<&[u8]> {
    match element(der) {
        Some((found, content, [])) if is_like(found, tag) => Ok(content),
        _ => Err("not the one element that has to be there"),
    }
}

/// The content of an element with this tag, and what follows it.
fn split(tag: u8, der: &[u8]) -> Read<(&[u8], &[u8])> {
    match element(der) {
        Some((found, content, rest)) if is_like(found, tag) => Ok((content, rest)),
        _ => Err("not the element that has to be there"),
    }
}

fn elements(mut der: &[u8]) -> Read<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (tag, content, rest) = element(der).ok_or("not elements")?;
        all.push((tag, content));
        der = rest;
    }
    Ok(all)
}

/// Whether an element with this tag stands anywhere in it.
fn holds(der: &[u8], tag: u8) -> bool {
    elements(der).is_ok_and(|all| {
        all.iter()
            .any(|&(found, content)| found == tag || (found & 0x20 != 0 && holds(content, tag)))
    })
}

fn extensions(rest: &[u8]) -> Read<Vec<Extension<'_>>> {
    let mut found = Vec::new();
    for (tag, content) in elements(rest)? {
        if tag != 0xa3 {
            continue;
        }
        for (_, extension) in elements(only(0x30, content)?)? {
            let (oid, rest) = split(0x06, extension)?;
            let (critical, rest) = match element(rest) {
                Some((0x01, value, rest)) => (value != [0], rest),
                _ => (false, rest),
            };
            found.push((oid, critical, only(0x04, rest)?));
        }
    }
    Ok(found)
}

/// UTCTime or GeneralizedTime in seconds since the epoch, and what follows it.
fn time(der: &[u8]) -> Read<(u64, &[u8])> {
    let (tag, text, rest) = element(der).ok_or("no time")?;
    let text = str::from_utf8(text).map_err(|_| "no time")?;
    let (year, text) = match tag {
        0x17 => {
            let year: u64 = text
                .get(..2)
                .and_then(|year| year.parse().ok())
                .ok_or("no time")?;
            (if year < 50 { 2_000 } else { 1_900 } + year, text.get(2..))
        }
        0x18 => {
            let year = text
                .get(..4)
                .and_then(|year| year.parse().ok())
                .ok_or("no time")?;
            (year, text.get(4..))
        }
        _ => return Err("no time"),
    };
    let text = text.ok_or("no time")?;
    let two = |at: usize| -> Read<u64> {
        let digits = text.get(at..at + 2).and_then(|digits| digits.parse().ok());
        digits.ok_or("no time")
    };
    let (month, day, hour, minute, second) = (two(0)?, two(2)?, two(4)?, two(6)?, two(8)?);
    if text.get(10..) != Some("Z") || !(1..=12).contains(&month) || year < 1_970 {
        return Err("no time");
    }
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let months = [
        31,
        if is_leap(year) { 29 } else { 28 },
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    let years: u64 = (1_970..year)
        .map(|year| if is_leap(year) { 366 } else { 365 })
        .sum();
    let days = years + months[..month as usize - 1].iter().sum::<u64>() + day.saturating_sub(1);
    Ok((((days * 24 + hour) * 60 + minute) * 60 + second, rest))
}
