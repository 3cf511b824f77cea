//! PEM text to DER values (RFC 7468). Sections of other kinds are passed over, so that one file may hold chain and key.

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{Error, PemObject},
};

/// The certificates of a text, in its order; at least one.
///
/// # Errors
/// When a section is broken, or none holds a certificate.
pub fn certificates(text: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| malformed(&error))?;
    if found.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(found)
}

/// The private key of a text: PKCS#8, SEC1 or PKCS#1, exactly one.
///
/// # Errors
/// When a section is broken, or none or several hold a key, or it is encrypted.
pub fn private_key(text: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let mut keys = PrivateKeyDer::pem_slice_iter(text.as_bytes());
    let Some(key) = keys.next() else {
        // rustls-pki-types passes over this section kind, as over any that it does not know.
        let encrypted = text.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----");
        return Err(match encrypted {
            true => PemError::EncryptedKey,
            false => PemError::NoKey,
        });
    };
    let key = key.map_err(|error| malformed(&error))?;
    if keys.next().is_some() {
        return Err(PemError::SeveralKeys);
    }
    Ok(key)
}

/// Why a text holds no certificate or key.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PemError {
    /// A key under a passphrase, which a daemon cannot ask for.
    #[error("the private key is encrypted; store it without a passphrase, readable by root only")]
    EncryptedKey,
    /// A section without end, or with broken base64.
    #[error("the PEM text is malformed: {0}")]
    Malformed(String),
    /// No `BEGIN CERTIFICATE`.
    #[error("no `BEGIN CERTIFICATE` section")]
    NoCertificate,
    /// No key section.
    #[error("no `BEGIN PRIVATE KEY` section (nor `EC` or `RSA PRIVATE KEY`)")]
    NoKey,
    /// More than one key section.
    #[error("more than one private key")]
    SeveralKeys,
}

/// The error without the text of a line that could belong to a key.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is non-exhaustive; files and sections of other kinds do not come here"
)]
fn malformed(error: &Error) -> PemError {
    let what = match error {
        Error::MissingSectionEnd { .. } => "a section has no END line",
        Error::IllegalSectionStart { .. } => "a BEGIN line is broken",
        Error::Base64Decode(_) => "a section is not base64",
        _ => "unreadable",
    };
    PemError::Malformed(what.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";

    #[test]
    fn a_text_with_chain_and_key_gives_both() {
        let text = format!("subject=/CN=x\n{CERTIFICATE}{KEY}{CERTIFICATE}");
        assert_eq!(certificates(&text).unwrap().len(), 2);
        assert!(private_key(&text).is_ok());
    }

    #[test]
    fn each_broken_text_has_its_own_reason() {
        let unended = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        let garbage = CERTIFICATE.replace("AAAA", "A!AA");
        let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
        assert_eq!(certificates(""), Err(PemError::NoCertificate));
        assert_eq!(certificates(KEY), Err(PemError::NoCertificate));
        assert!(matches!(certificates(unended), Err(PemError::Malformed(_))));
        assert!(matches!(
            certificates(&garbage),
            Err(PemError::Malformed(_))
        ));
        let refused = |text: &str| private_key(text).err();
        assert_eq!(refused(CERTIFICATE), Some(PemError::NoKey));
        assert_eq!(refused(&encrypted), Some(PemError::EncryptedKey));
        assert_eq!(refused(&KEY.repeat(2)), Some(PemError::SeveralKeys));
    }
}
