//! What one certificate says, read strictly, and the rules that leaves and issuers share.
//!
//! rustls-webpki builds and checks paths but ignores key usage (it says so); those rules live here and in `svid`.

use std::fmt;

use x509_parser::{
    asn1_rs::Any,
    certificate::X509Certificate,
    extensions::{
        BasicConstraints, ExtendedKeyUsage, GeneralName, KeyUsage, ParsedExtension,
        SubjectAlternativeName, X509Extension,
    },
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_PKCS1_MD5WITHRSAENC,
        OID_PKCS1_RSAENCRYPTION, OID_PKCS1_SHA1WITHRSA, OID_SIG_ED25519, Oid,
    },
    prelude::FromDer,
    public_key::PublicKey,
};

/// The kinds of keys that certificates may carry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyKind {
    /// Edwards curve 25519.
    Ed25519,
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// RSA with this many bits, at least 2048.
    Rsa(usize),
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ed25519 => f.write_str("Ed25519"),
            Self::P256 => f.write_str("P-256"),
            Self::P384 => f.write_str("P-384"),
            Self::Rsa(bits) => write!(f, "RSA-{bits}"),
        }
    }
}

/// Why a public key is not accepted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum KeyError {
    /// Neither RSA, ECDSA nor Ed25519, or another curve.
    #[error("the key type is not supported; use P-256, P-384, Ed25519 or RSA of 2048 bits or more")]
    Unsupported,
    /// RSA under 2048 bits.
    #[error("the RSA key has {bits} bits; 2048 are the least")]
    WeakRsa {
        /// Length of the modulus.
        bits: usize,
    },
}

/// Why the extensions of a certificate are not accepted, with the object identifier of the extension.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ExtensionError {
    /// Twice the same extension (RFC 5280 §4.2 forbids it).
    #[error("the extension {0} occurs twice")]
    Duplicate(String),
    /// An extension that matters here and does not parse.
    #[error("the extension {0} is malformed")]
    Malformed(String),
    /// Critical, and with no meaning here (RFC 5280 §4.2: must be rejected).
    #[error("the critical extension {0} is unknown")]
    UnknownCritical(String),
}

/// Why a certificate may not issue others (X509-SVID.md §3–4, RFC 5280 §4.2.1.3 and §4.2.1.9).
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum IssuerError {
    /// Not one complete certificate.
    #[error("it is not one DER certificate")]
    Der,
    /// Extensions are broken.
    #[error(transparent)]
    Extension(ExtensionError),
    /// Weak or unsupported public key.
    #[error(transparent)]
    Key(KeyError),
    /// Key usage without the critical flag.
    #[error("its key usage is not critical")]
    KeyUsageNotCritical,
    /// No keyCertSign.
    #[error("its key usage lacks keyCertSign")]
    NoKeyCertSign,
    /// No key usage.
    #[error("it has no key usage")]
    NoKeyUsage,
    /// basicConstraints absent or cA false.
    #[error("it is not a CA (basic constraints)")]
    NotCa,
}

impl IssuerError {
    /// The reason as a metric label.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Der => "issuer_der",
            Self::Extension(_) => "issuer_extension",
            Self::Key(_) => "issuer_key",
            Self::KeyUsageNotCritical => "issuer_key_usage_not_critical",
            Self::NoKeyCertSign => "issuer_no_key_cert_sign",
            Self::NoKeyUsage => "issuer_no_key_usage",
            Self::NotCa => "issuer_not_ca",
        }
    }
}

/// Checks that a certificate may issue others: a root of a bundle, or an intermediate.
///
/// # Errors
/// The first rule that it breaks.
pub fn check_issuer(der: &[u8]) -> Result<(), IssuerError> {
    let certificate = parse(der).ok_or(IssuerError::Der)?;
    let extensions = Extensions::new(&certificate).map_err(IssuerError::Extension)?;
    if !extensions.is_ca() {
        return Err(IssuerError::NotCa);
    }
    let (critical, usage) = extensions.key_usage.ok_or(IssuerError::NoKeyUsage)?;
    if !critical {
        return Err(IssuerError::KeyUsageNotCritical);
    }
    if !usage.key_cert_sign() {
        return Err(IssuerError::NoKeyCertSign);
    }
    key_kind(&certificate).map_err(IssuerError::Key)?;
    Ok(())
}

/// Whether a certificate constrains the names that it may issue.
pub(super) fn has_name_constraints(der: &[u8]) -> bool {
    parse(der).is_some_and(|certificate| {
        Extensions::new(&certificate).is_ok_and(|extensions| extensions.has_name_constraints)
    })
}

/// One certificate and nothing after it.
pub(super) fn parse(der: &[u8]) -> Option<X509Certificate<'_>> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    rest.is_empty().then_some(certificate)
}

/// The extensions that have a meaning here, each at most once; flags say whether critical.
pub(super) struct Extensions<'a> {
    pub(super) basic_constraints: Option<&'a BasicConstraints>,
    pub(super) extended_key_usage: Option<&'a ExtendedKeyUsage<'a>>,
    pub(super) has_name_constraints: bool,
    pub(super) key_usage: Option<(bool, &'a KeyUsage)>,
    pub(super) names: Option<(bool, &'a SubjectAlternativeName<'a>)>,
}

impl<'a> Extensions<'a> {
    pub(super) fn new(certificate: &'a X509Certificate<'a>) -> Result<Self, ExtensionError> {
        let mut found = Self {
            basic_constraints: None,
            extended_key_usage: None,
            has_name_constraints: false,
            key_usage: None,
            names: None,
        };
        let mut seen: Vec<&Oid<'_>> = Vec::new();
        for extension in certificate.extensions() {
            if seen.contains(&&extension.oid) {
                return Err(ExtensionError::Duplicate(extension.oid.to_id_string()));
            }
            seen.push(&extension.oid);
            found.note(extension)?;
        }
        Ok(found)
    }

    /// Whether basicConstraints says cA; absent counts as false.
    pub(super) fn is_ca(&self) -> bool {
        self.basic_constraints.is_some_and(|basic| basic.ca)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "x509-parser knows many extensions; those without a meaning here are alike"
    )]
    fn note(&mut self, extension: &'a X509Extension<'a>) -> Result<(), ExtensionError> {
        let critical = extension.critical;
        if is_ours(&extension.oid) && !is_one_element(extension.value) {
            return Err(ExtensionError::Malformed(extension.oid.to_id_string()));
        }
        match extension.parsed_extension() {
            ParsedExtension::BasicConstraints(basic) => self.basic_constraints = Some(basic),
            ParsedExtension::ExtendedKeyUsage(usage) => self.extended_key_usage = Some(usage),
            ParsedExtension::KeyUsage(usage) => self.key_usage = Some((critical, usage)),
            ParsedExtension::NameConstraints(_) => self.has_name_constraints = true,
            ParsedExtension::SubjectAlternativeName(names) => self.names = Some((critical, names)),
            ParsedExtension::ParseError { .. } if critical || is_ours(&extension.oid) => {
                return Err(ExtensionError::Malformed(extension.oid.to_id_string()));
            }
            _ if critical => {
                return Err(ExtensionError::UnknownCritical(
                    extension.oid.to_id_string(),
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

/// The kind of the public key.
pub(super) fn key_kind(certificate: &X509Certificate<'_>) -> Result<KeyKind, KeyError> {
    let spki = certificate.public_key();
    let algorithm = &spki.algorithm.algorithm;
    if *algorithm == OID_SIG_ED25519 {
        return Ok(KeyKind::Ed25519);
    }
    if *algorithm == OID_PKCS1_RSAENCRYPTION {
        let Ok(PublicKey::RSA(key)) = spki.parsed() else {
            return Err(KeyError::Unsupported);
        };
        let bits = bit_length(key.modulus);
        return match bits {
            2048.. => Ok(KeyKind::Rsa(bits)),
            _ => Err(KeyError::WeakRsa { bits }),
        };
    }
    if *algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(KeyError::Unsupported);
    }
    let curve = spki.algorithm.parameters.as_ref().map(|any| any.as_oid());
    match curve {
        Some(Ok(curve)) if curve == OID_EC_P256 => Ok(KeyKind::P256),
        Some(Ok(curve)) if curve == OID_NIST_EC_P384 => Ok(KeyKind::P384),
        _ => Err(KeyError::Unsupported),
    }
}

/// Whether the certificate is signed over SHA-1 or MD5.
pub(super) fn has_weak_signature(certificate: &X509Certificate<'_>) -> bool {
    let algorithm = &certificate.signature_algorithm.algorithm;
    [OID_PKCS1_SHA1WITHRSA, OID_PKCS1_MD5WITHRSAENC].contains(algorithm)
        || algorithm.to_id_string() == ECDSA_WITH_SHA1
}

/// What a certificate says in words, safe to print: a stranger may have written it. Control characters, line ends and
/// direction marks become `\u{..}`.
pub(super) fn printable(words: &impl fmt::Display) -> String {
    let mut safe = String::new();
    for char in words.to_string().chars() {
        match char {
            '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' => safe.extend(char.escape_unicode()),
            _ if char.is_control() => safe.extend(char.escape_unicode()),
            _ => safe.push(char),
        }
    }
    safe
}

/// The two-digit bytes of a serial number or the like, without separators.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since the epoch as people read them; the number itself when it is out of range.
pub(super) fn date(unix_seconds: u64) -> String {
    i64::try_from(unix_seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|date| {
            date.format(&time::format_description::well_known::Rfc3339)
                .ok()
        })
        .unwrap_or_else(|| unix_seconds.to_string())
}

/// Seconds since the epoch; dates before it are 0.
pub(super) fn unix_seconds(time: x509_parser::time::ASN1Time) -> u64 {
    u64::try_from(time.timestamp()).unwrap_or(0)
}

/// Extensions that the rules of SVIDs depend on, by the last arc of 2.5.29.
fn is_ours(oid: &Oid<'_>) -> bool {
    [
        "2.5.29.15",
        "2.5.29.17",
        "2.5.29.19",
        "2.5.29.30",
        "2.5.29.37",
    ]
    .contains(&oid.to_id_string().as_str())
}

/// Whether nothing follows the value, where parsers may or may not look.
fn is_one_element(value: &[u8]) -> bool {
    Any::from_der(value).is_ok_and(|(rest, _)| rest.is_empty())
}

/// The URIs among a certificate's subject alternative names.
pub(super) fn uris<'a>(extensions: &Extensions<'a>) -> impl Iterator<Item = &'a str> {
    let names = extensions.names.into_iter();
    names
        .flat_map(|(_, names)| &names.general_names)
        .filter_map(|name| {
            if let GeneralName::URI(uri) = name {
                Some(*uri)
            } else {
                None
            }
        })
}

/// Bits of an unsigned big-endian number.
fn bit_length(number: &[u8]) -> usize {
    let mut digits = number.iter().skip_while(|digit| **digit == 0);
    digits.next().map_or(0, |first| {
        let first_bits = u8::BITS - first.leading_zeros();
        digits.count() * 8 + usize::try_from(first_bits).unwrap_or(0)
    })
}

const ECDSA_WITH_SHA1: &str = "1.2.840.10045.4.1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_counted_without_leading_zeros() {
        for (number, bits) in [
            (&[][..], 0),
            (&[0, 0], 0),
            (&[0, 1], 1),
            (&[0, 0x80, 0], 16),
            (&[0x7f, 0, 0], 23),
        ] {
            assert_eq!(bit_length(number), bits, "{number:?}");
        }
    }

    #[test]
    fn what_a_stranger_wrote_moves_no_terminal() {
        let words = "CN=\u{1b}[2Jroot\n\u{202e}é";
        let safe = "CN=\\u{1b}[2Jroot\\u{a}\\u{202e}é";
        assert_eq!(printable(&words), safe);
    }

    #[test]
    fn dates_are_for_people() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(u64::MAX), u64::MAX.to_string());
    }

    #[test]
    fn garbage_is_no_issuer() {
        assert_eq!(check_issuer(b""), Err(IssuerError::Der));
        assert_eq!(check_issuer(b"\x30\x03\x02\x01\x01"), Err(IssuerError::Der));
    }
}
