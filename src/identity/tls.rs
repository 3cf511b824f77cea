//! rustls configurations: TLS 1.3 only, mutual, ALPN `identun/1`, no resumption, no 0-RTT, X25519MLKEM768 then X25519.
//!
//! One configuration a handshake, each with its own [`VerifyReport`]. Nothing here can be turned off by a setting.

use std::{fmt, sync::Arc};

use rustls::{
    ClientConfig, Error, ServerConfig, SignatureScheme,
    client::{ResolvesClientCert, Resumption},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{self, cipher_suite, kx_group},
    },
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use crate::{
    identity::{Identities, Identity, VerifyError, VerifyReport, WallClock, verifier::Verifier},
    spiffe::SpiffeId,
};

/// The only application protocol (wire.md §3).
pub const ALPN: &[u8] = b"identun/1";

/// For one dial: presents `own`, accepts exactly `peer`. The server name to dial is `sni::server_name(peer)`.
/// The report tells afterwards what was presented; it is empty but for `expected` until then.
///
/// # Errors
/// When the crypto provider lacks what TLS 1.3 needs.
pub fn client_config(
    identities: &Identities,
    own: &Arc<Identity>,
    peer: &SpiffeId,
    clock: &WallClock,
) -> Result<(ClientConfig, VerifyReport), Error> {
    let report = VerifyReport::for_client(peer);
    let verifier = Verifier {
        bundles: identities.bundles.clone(),
        expected: Some(peer.clone()),
        report: report.clone(),
    };
    let mut config =
        ClientConfig::builder_with_details(Arc::new(provider()), Arc::new(clock.clone()))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OwnCertificate(own.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.enable_early_data = false;
    config.enable_sni = true;
    // A resumed session would skip the verifier, and outlive expiry and policy.
    config.resumption = Resumption::disabled();
    Ok((config, report))
}

/// For one accept: presents the identity whose handle the client names, requires a client certificate.
///
/// # Errors
/// When the crypto provider lacks what TLS 1.3 needs.
pub fn server_config(
    identities: &Arc<Identities>,
    clock: &WallClock,
) -> Result<(ServerConfig, VerifyReport), Error> {
    let report = VerifyReport::default();
    let verifier = Verifier {
        bundles: identities.bundles.clone(),
        expected: None,
        report: report.clone(),
    };
    let resolver = ByServerName {
        identities: identities.clone(),
        report: report.clone(),
    };
    let mut config =
        ServerConfig::builder_with_details(Arc::new(provider()), Arc::new(clock.clone()))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((config, report))
}

/// aws-lc-rs, restricted: AES-128-GCM first for processors with AES (performance.md §3, rule 9).
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

/// The client's certificate: always the same, whatever the server hints.
struct OwnCertificate(Arc<Identity>);

impl ResolvesClientCert for OwnCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.key.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnCertificate").field(&self.0).finish()
    }
}

/// The server's certificate: the identity that the SNI names, or none, which rustls answers with access_denied.
struct ByServerName {
    identities: Arc<Identities>,
    report: VerifyReport,
}

impl ResolvesServerCert for ByServerName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let identity = name.and_then(|name| self.identities.by_server_name(name));
        if let Some(identity) = identity {
            self.report.note_local(identity.id());
        } else {
            let name = name.map(ToOwned::to_owned);
            self.report
                .note_error(VerifyError::UnknownServerName { name });
        }
        identity.map(|identity| identity.key.clone())
    }
}

impl fmt::Debug for ByServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByServerName").finish_non_exhaustive()
    }
}
