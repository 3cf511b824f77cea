//! SPIFFE IDs and trust domains as values that cannot be wrong.
//!
//! Owns the syntax of SPIFFE-ID.md §2 (one place knows it); never touches certificates or files.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The longest SPIFFE ID accepted, in bytes. SPIFFE-ID.md §2.3 requires support for 2048; longer is refused.
pub const MAX_SPIFFE_ID_LEN: usize = 2048;
/// The longest trust domain name, in bytes. SPIFFE-ID.md §2.1.
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;
const SCHEME: &str = "spiffe://";

/// A trust domain name: 1 to 255 bytes of `[a-z0-9._-]`. SPIFFE-ID.md §2.1.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Borrows the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().into()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID, `spiffe://trust-domain[/path]`. Compared byte for byte; cloning is cheap.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Builds `spiffe://TD/ns/NAMESPACE/sa/ACCOUNT`, Istio's convention.
    ///
    /// # Errors
    /// When namespace or account is not one valid path segment, or the whole is too long.
    pub fn for_service_account(
        trust_domain: &TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, SpiffeIdError> {
        for segment in [namespace, account] {
            check_segment(segment)?;
        }
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// The whole ID, scheme included.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The ID without `spiffe://`, the form that AuthorizationPolicy principals use.
    pub fn as_principal(&self) -> &str {
        self.0.get(SCHEME.len()..).unwrap_or_default()
    }

    /// The authority part.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// The authority part, borrowed.
    pub fn trust_domain_str(&self) -> &str {
        self.as_principal().split('/').next().unwrap_or_default()
    }

    /// The path with its leading slash; empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.as_principal()
            .get(self.trust_domain_str().len()..)
            .unwrap_or_default()
    }

    /// Namespace and service account when the path is exactly `/ns/N/sa/A`.
    pub fn service_account(&self) -> Option<(&str, &str)> {
        let mut segments = self.path().strip_prefix('/')?.split('/');
        match (
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
            segments.next(),
        ) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Some((namespace, account))
            }
            _ => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_SPIFFE_ID_LEN {
            return Err(SpiffeIdError::TooLong { len: text.len() });
        }
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let (domain, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        check_trust_domain(domain)?;
        if let Some(path) = path.strip_prefix('/') {
            for segment in path.split('/') {
                check_segment(segment)?;
            }
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.0.as_ref().into()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a string is not a SPIFFE ID or trust domain.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SpiffeIdError {
    /// An empty segment, which is also what a trailing slash makes.
    #[error("the path has an empty segment (a trailing or doubled slash)")]
    EmptySegment,
    /// No trust domain.
    #[error("the trust domain is empty")]
    EmptyTrustDomain,
    /// `.` or `..`.
    #[error("the path has the relative segment `{0}`")]
    RelativeSegment(String),
    /// Not exactly `spiffe://` in lower case.
    #[error("it does not begin with `spiffe://` in lower case")]
    Scheme,
    /// A character outside `[a-zA-Z0-9._-]`.
    #[error("the path has the character {0:?}; allowed are letters, digits, `.`, `_` and `-`")]
    SegmentCharacter(char),
    /// Over [`MAX_SPIFFE_ID_LEN`].
    #[error("it is {len} bytes long; {MAX_SPIFFE_ID_LEN} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A character outside `[a-z0-9._-]`.
    #[error("the trust domain has the character {0:?}; allowed are a-z, 0-9, `.`, `_` and `-`")]
    TrustDomainCharacter(char),
    /// Over [`MAX_TRUST_DOMAIN_LEN`].
    #[error("the trust domain is {len} bytes long; {MAX_TRUST_DOMAIN_LEN} are allowed")]
    TrustDomainTooLong {
        /// Its length in bytes.
        len: usize,
    },
}

fn check_trust_domain(text: &str) -> Result<(), SpiffeIdError> {
    if text.is_empty() {
        return Err(SpiffeIdError::EmptyTrustDomain);
    }
    if text.len() > MAX_TRUST_DOMAIN_LEN {
        return Err(SpiffeIdError::TrustDomainTooLong { len: text.len() });
    }
    let allowed = |c: &char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '-');
    text.chars()
        .find(|c| !allowed(c))
        .map_or(Ok(()), |c| Err(SpiffeIdError::TrustDomainCharacter(c)))
}

fn check_segment(text: &str) -> Result<(), SpiffeIdError> {
    if text.is_empty() {
        return Err(SpiffeIdError::EmptySegment);
    }
    if matches!(text, "." | "..") {
        return Err(SpiffeIdError::RelativeSegment(text.into()));
    }
    let allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    text.chars()
        .find(|c| !allowed(c))
        .map_or(Ok(()), |c| Err(SpiffeIdError::SegmentCharacter(c)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SpiffeId, SpiffeIdError> {
        text.parse()
    }

    #[test]
    fn valid_ids_round_trip() {
        let longest = format!("spiffe://td/{}", "a".repeat(MAX_SPIFFE_ID_LEN - 12));
        for text in [
            "spiffe://td",
            "spiffe://cluster.local/ns/a/sa/b",
            "spiffe://t_d-1.x/A.b_c-9",
            &longest,
        ] {
            assert_eq!(parse(text).map(|id| id.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn each_broken_id_has_its_own_reason() {
        use SpiffeIdError as E;
        let long_domain = "a".repeat(256);
        let cases = [
            ("td/ns/a/sa/b", E::Scheme),
            ("SPIFFE://td/a", E::Scheme),
            ("https://td/a", E::Scheme),
            ("spiffe://", E::EmptyTrustDomain),
            ("spiffe:///a", E::EmptyTrustDomain),
            ("spiffe://TD/a", E::TrustDomainCharacter('T')),
            ("spiffe://td:8080/a", E::TrustDomainCharacter(':')),
            ("spiffe://user@td/a", E::TrustDomainCharacter('@')),
            ("spiffe://t%64/a", E::TrustDomainCharacter('%')),
            ("spiffe://td?x", E::TrustDomainCharacter('?')),
            ("spiffe://td/", E::EmptySegment),
            ("spiffe://td/a/", E::EmptySegment),
            ("spiffe://td/a//b", E::EmptySegment),
            ("spiffe://td/ns//sa/", E::EmptySegment),
            ("spiffe://td/./a", E::RelativeSegment(".".into())),
            ("spiffe://td/a/..", E::RelativeSegment("..".into())),
            ("spiffe://td/a%20b", E::SegmentCharacter('%')),
            ("spiffe://td/a?q", E::SegmentCharacter('?')),
            ("spiffe://td/a#f", E::SegmentCharacter('#')),
            ("spiffe://td/ä", E::SegmentCharacter('ä')),
        ];
        for (text, reason) in cases {
            assert_eq!(parse(text), Err(reason), "{text}");
        }
        let long_id = format!("spiffe://td/{}", "a".repeat(2037));
        assert_eq!(parse(&long_id), Err(E::TooLong { len: 2049 }));
        assert_eq!(
            parse(&format!("spiffe://{long_domain}/a")),
            Err(E::TrustDomainTooLong { len: 256 })
        );
    }

    #[test]
    fn parts_are_found() {
        let id = parse("spiffe://td.x/ns/web/sa/front").unwrap();
        assert_eq!(
            (id.trust_domain_str(), id.path()),
            ("td.x", "/ns/web/sa/front")
        );
        assert_eq!(id.service_account(), Some(("web", "front")));
        assert_eq!(id.as_principal(), "td.x/ns/web/sa/front");
        for other in [
            "spiffe://td",
            "spiffe://td/ns/a/sa",
            "spiffe://td/ns/a/sa/b/c",
            "spiffe://td/foobar/ns/a/sa/b",
        ] {
            assert_eq!(parse(other).unwrap().service_account(), None, "{other}");
        }
    }
}
