//! Honest ends against hostile ones, and what must be seen of each handshake.

use std::sync::Arc;

use identun::{
    identity::{
        Identities, Identity, Report, VerifyError, VerifyReport, WallClock, observe, sni, tls,
    },
    spiffe::SpiffeId,
};
use quinn_proto::crypto;

use crate::{
    forge::{self, ID, NOW, Spec, spec},
    hostile,
    pair::{End, handshake},
};

/// The identity of honest ends.
pub(crate) const HONEST: &str = "spiffe://a.example/honest";

/// What makes a [`Spec`] another one.
pub(crate) type Change = fn(&mut Spec);

pub(crate) fn changed(change: Change) -> Spec {
    let mut spec = spec();
    change(&mut spec);
    spec
}

/// A client presents `spec` to an honest server: client, server, the server's report.
pub(crate) fn present_to_server(spec: &Spec) -> (End, End, Report) {
    let (server, report) = honest_server(&honest());
    let client = quic_client(hostile::client(Some(spec.certified())));
    let (client, server) = handshake(client, server, &honest_name());
    (client, server, report.take())
}

/// A server presents `spec` to an honest client that dials the ID in it: client, server, the client's report.
pub(crate) fn present_to_client(spec: &Spec) -> (End, End, Report) {
    let uri = spec
        .leaf
        .uris
        .first()
        .map(|uri| String::from_utf8_lossy(uri));
    let expected = uri.and_then(|uri| uri.parse().ok());
    dial(&expected.unwrap_or_else(|| ID.parse().unwrap()), spec)
}

pub(crate) fn dial(expected: &SpiffeId, spec: &Spec) -> (End, End, Report) {
    let (client, report) = honest_client(&honest(), expected);
    let server = quic_server(hostile::server(spec.certified()));
    let (client, server) = handshake(client, server, &sni::server_name(expected));
    (client, server, report.take())
}

pub(crate) fn refused(
    reason: &VerifyError,
    presenting: &End,
    honest: &End,
    report: &Report,
    name: &str,
) {
    assert_eq!(report.error.as_ref(), Some(reason), "{name}");
    assert!(!honest.connected, "{name}");
    assert!(honest.lost.is_some(), "{name}");
    assert_eq!(presenting.alert_from_peer(), Some(alert(reason)), "{name}");
}

pub(crate) fn accepted(presenting: &End, honest: &End, report: &Report, name: &str) {
    assert_eq!(report.error, None, "{name}");
    assert!(report.presented.is_some(), "{name}");
    for end in [presenting, honest] {
        assert!(end.connected && end.lost.is_none(), "{name}: {end:?}");
    }
}

/// The TLS alert that says a reason (RFC 8446 §6.2).
pub(crate) fn alert(reason: &VerifyError) -> u64 {
    match reason {
        VerifyError::Svid(_) | VerifyError::Issuer { .. } => 42,
        VerifyError::Expired { .. } | VerifyError::NotYetValid { .. } => 45,
        VerifyError::UnknownIssuer | VerifyError::UnknownTrustDomain { .. } => 48,
        VerifyError::BadSignature => 51,
        VerifyError::IssuerPurpose
        | VerifyError::NameConstraints
        | VerifyError::Path(_)
        | VerifyError::PathDepth
        | VerifyError::PathLength
        | VerifyError::SignatureAlgorithm
        | VerifyError::WrongIdentity { .. } => 46,
        VerifyError::UnknownServerName { .. } => 49,
    }
}

pub(crate) fn identity(id: &str) -> Identity {
    let mut spec = spec();
    spec.set_uris(&[id]);
    let (chain, key) = spec.make();
    Identity::new(chain, key).unwrap()
}

pub(crate) fn honest_identities() -> Identities {
    let mut identities = forge::trusting();
    identities.insert(identity(HONEST));
    identities
}

pub(crate) fn honest() -> Arc<Identities> {
    Arc::new(honest_identities())
}

pub(crate) fn honest_name() -> String {
    sni::server_name(&HONEST.parse().unwrap())
}

pub(crate) fn honest_server(
    identities: &Arc<Identities>,
) -> (Arc<dyn crypto::ServerConfig>, VerifyReport) {
    let (config, report) = tls::server_config(identities, &clock()).unwrap();
    (observe::quic_server(config, &report).unwrap(), report)
}

pub(crate) fn honest_client(
    identities: &Identities,
    peer: &SpiffeId,
) -> (Arc<dyn crypto::ClientConfig>, VerifyReport) {
    let own = identities.by_id(&HONEST.parse().unwrap()).unwrap();
    let (config, report) = tls::client_config(identities, own, peer, &clock()).unwrap();
    (observe::quic_client(config, &report).unwrap(), report)
}

pub(crate) fn quic_client(config: rustls::ClientConfig) -> Arc<dyn crypto::ClientConfig> {
    Arc::new(crypto::rustls::QuicClientConfig::try_from(config).unwrap())
}

pub(crate) fn quic_server(config: rustls::ServerConfig) -> Arc<dyn crypto::ServerConfig> {
    Arc::new(crypto::rustls::QuicServerConfig::try_from(config).unwrap())
}

pub(crate) fn clock() -> WallClock {
    let clock = WallClock::default();
    clock.set(NOW);
    clock
}
