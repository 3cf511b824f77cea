//! What a certificate says, for people (`identun ca show`).

use x509_parser::certificate::X509Certificate;

use crate::identity::{
    certificate::{self, Extensions, hex, key_kind, printable, unix_seconds},
    pem::{self, PemError},
};

/// The facts of one certificate. Nothing is judged: a broken SVID can be described.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub struct Description {
    /// Distinguished name; empty for most SVIDs.
    pub subject: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
    /// All URIs among the subject alternative names; an SVID has exactly one.
    pub uris: Vec<String>,
    /// In hexadecimal.
    pub serial: String,
    /// Start of validity, in Unix seconds.
    pub not_before: u64,
    /// End of validity, in Unix seconds, inclusive.
    pub not_after: u64,
    /// `P-256`, `RSA-2048`, or why the key is not accepted.
    pub key: String,
    /// Key usages and extended key usages by their X.509 names.
    pub usages: Vec<&'static str>,
    /// basicConstraints cA.
    pub is_ca: bool,
    /// basicConstraints pathLenConstraint.
    pub path_len: Option<u32>,
}

/// Describes every certificate of a PEM text, in its order.
///
/// # Errors
/// When the text has no certificates, or one does not parse.
pub fn describe(text: &str) -> Result<Vec<Description>, DescribeError> {
    let certificates = pem::certificates(text).map_err(DescribeError::Pem)?;
    certificates
        .iter()
        .enumerate()
        .map(|(index, der)| {
            certificate::parse(der)
                .map(|certificate| of(&certificate))
                .ok_or(DescribeError::Der {
                    position: index + 1,
                })
        })
        .collect()
}

/// Why a text cannot be described.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DescribeError {
    /// A section is not one certificate.
    #[error("certificate {position} is not one DER certificate")]
    Der {
        /// 1 is the first in the text.
        position: usize,
    },
    /// The text is not PEM certificates.
    #[error("the certificate is not readable")]
    Pem(#[source] PemError),
}

fn of(certificate: &X509Certificate<'_>) -> Description {
    let extensions = Extensions::new(certificate).ok();
    let basic = extensions.as_ref().and_then(|e| e.basic_constraints);
    let key = key_kind(certificate).map_or_else(|error| error.to_string(), |kind| kind.to_string());
    Description {
        subject: printable(certificate.subject()),
        issuer: printable(certificate.issuer()),
        uris: extensions
            .iter()
            .flat_map(certificate::uris)
            .map(|uri| printable(&uri))
            .collect(),
        serial: hex(certificate.raw_serial()),
        not_before: unix_seconds(certificate.validity().not_before),
        not_after: unix_seconds(certificate.validity().not_after),
        key,
        usages: extensions.as_ref().map(usages).unwrap_or_default(),
        is_ca: basic.is_some_and(|basic| basic.ca),
        path_len: basic.and_then(|basic| basic.path_len_constraint),
    }
}

fn usages(extensions: &Extensions<'_>) -> Vec<&'static str> {
    let key = extensions.key_usage.map(|(_, usage)| {
        [
            (usage.digital_signature(), "digitalSignature"),
            (usage.non_repudiation(), "nonRepudiation"),
            (usage.key_encipherment(), "keyEncipherment"),
            (usage.data_encipherment(), "dataEncipherment"),
            (usage.key_agreement(), "keyAgreement"),
            (usage.key_cert_sign(), "keyCertSign"),
            (usage.crl_sign(), "cRLSign"),
        ]
    });
    let extended = extensions.extended_key_usage.map(|usage| {
        [
            (usage.server_auth, "serverAuth"),
            (usage.client_auth, "clientAuth"),
            (usage.any, "anyExtendedKeyUsage"),
        ]
    });
    let key = key.iter().flatten();
    let named = key.chain(extended.iter().flatten());
    named
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect()
}
