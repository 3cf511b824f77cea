//! Identities over real TLS 1.3 handshakes inside QUIC, both ends in memory: at least 40 bad certificates, each refused
//! in both roles for its own reason, each with a twin that is accepted.

#![expect(clippy::unwrap_used, reason = "a test that cannot unwrap has failed")]

mod cases;
mod ends;
mod forge;
mod hostile;
mod pair;

use std::{collections::BTreeSet, sync::Arc};

use ends::*;
use forge::{NOW, spec};
use identun::{
    identity::{PeerRole, SvidError, VerifyError, X509Svid, observe, sni, tls},
    spiffe::SpiffeId,
};
use pair::handshake;
use rustls::{CipherSuite, NamedGroup, crypto::aws_lc_rs};

#[test]
fn bad_certificates_are_refused_by_servers_and_their_twins_are_not() {
    for case in cases::all() {
        let (client, server, report) = present_to_server(&changed(case.spoil));
        refused(&case.reason, &client, &server, &report, case.name);
        let (client, server, report) = present_to_server(&changed(case.twin));
        accepted(&client, &server, &report, case.name);
    }
}

#[test]
fn bad_certificates_are_refused_by_clients_and_their_twins_are_not() {
    for case in cases::all() {
        let (client, server, report) = present_to_client(&changed(case.spoil));
        refused(&case.reason, &server, &client, &report, case.name);
        assert!(!server.connected, "{}", case.name);
        let (client, server, report) = present_to_client(&changed(case.twin));
        accepted(&server, &client, &report, case.name);
    }
}

#[test]
fn the_table_is_long_and_its_reasons_differ() {
    let cases = cases::all();
    assert!(cases.len() >= 60, "{}", cases.len());
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    let reasons: BTreeSet<String> = cases.iter().map(|c| format!("{:?}", c.reason)).collect();
    assert!(reasons.len() >= 45, "{}", reasons.len());
    let labels: BTreeSet<&str> = cases.iter().map(|case| case.reason.as_str()).collect();
    assert!(labels.len() >= 33, "{}: {labels:?}", labels.len());
    println!(
        "{} bad certificates, each over QUIC in both roles: {} reasons with their values, {} labels",
        cases.len(),
        reasons.len(),
        labels.len()
    );
}

/// policy.md P40.
#[test]
fn one_spiffe_id_of_the_expected_bundle_is_what_authenticates() {
    let cases: [(&str, Change, Option<&str>); 8] = [
        ("one URI", |_| {}, None),
        (
            "one URI and a DNS name",
            |s| s.leaf.dns = vec!["front.example"],
            None,
        ),
        (
            "no path",
            |s| s.set_uris(&["spiffe://a.example"]),
            Some("no_path"),
        ),
        (
            "two URIs",
            |s| s.set_uris(&["spiffe://a.example/x", "spiffe://a.example/y"]),
            Some("several_uris"),
        ),
        (
            "keyCertSign",
            |s| s.leaf.key_usage = Some(0x84),
            Some("leaf_key_cert_sign"),
        ),
        (
            "CA",
            |s| s.leaf.basic = forge::Basic::Ca,
            Some("leaf_is_ca"),
        ),
        (
            "trailing slash",
            |s| s.set_uris(&["spiffe://a.example/x/"]),
            Some("not_a_spiffe_id"),
        ),
        (
            "other bundle",
            |s| s.signer = forge::Signer::B,
            Some("unknown_issuer"),
        ),
    ];
    for (name, change, label) in cases {
        let (_, _, report) = present_to_server(&changed(change));
        assert_eq!(report.error.map(|error| error.as_str()), label, "{name}");
    }
}

#[test]
fn a_valid_certificate_of_somebody_else_is_refused_without_naming_whom_the_dial_was_for() {
    let expected: SpiffeId = "spiffe://a.example/wanted".parse().unwrap();
    let presented: SpiffeId = forge::ID.parse().unwrap();
    let (client, server, report) = dial(&expected, &spec());
    let reason = VerifyError::WrongIdentity {
        expected: expected.clone(),
        presented: presented.clone(),
    };
    assert_eq!(
        reason.to_string(),
        format!("expected {expected}, but the peer presented {presented}")
    );
    refused(&reason, &server, &client, &report, "somebody else");
    assert_eq!(server.alert_from_peer(), Some(46));
    assert!(!server.words_from_peer().contains("wanted"));
    assert_eq!(report.expected, Some(expected));
    assert_eq!(
        report.presented.map(|svid| svid.id),
        Some(presented.clone())
    );
    let (client, server, report) = dial(&presented, &spec());
    accepted(&server, &client, &report, "the right one");
}

#[test]
fn ids_that_differ_in_case_or_length_are_somebody_else() {
    let mut spec = spec();
    spec.set_uris(&["spiffe://a.example/x"]);
    for other in [
        "spiffe://a.example/X",
        "spiffe://a.example/x/y",
        "spiffe://a.example/xy",
        "spiffe://b.example/x",
    ] {
        let (client, _, report) = dial(&other.parse().unwrap(), &spec);
        assert!(!client.connected);
        let error = report.error.unwrap();
        assert!(
            matches!(error, VerifyError::WrongIdentity { .. }),
            "{other}: {error}"
        );
    }
}

#[test]
fn a_certificate_without_its_key_does_not_authenticate() {
    let spec = changed(|spec| spec.other_key = true);
    let (client, server, report) = present_to_server(&spec);
    assert!(!server.connected);
    assert_eq!((client.alert_from_peer(), report.error), (Some(51), None));
    let (client, server, report) = present_to_client(&spec);
    assert!(!client.connected && !server.connected);
    assert_eq!((server.alert_from_peer(), report.error), (Some(51), None));
}

#[test]
fn a_client_without_certificate_is_told_that_one_is_required() {
    let honest = honest();
    let (config, report) = honest_server(&honest);
    let (client, server) = handshake(quic_client(hostile::client(None)), config, &honest_name());
    assert!(!server.connected);
    assert_eq!(client.alert_from_peer(), Some(116));
    assert!(report.take().presented.is_none());
}

#[test]
fn unknown_and_absent_server_names_get_no_certificate() {
    let honest = honest();
    let other = sni::server_name(&"spiffe://a.example/other".parse().unwrap());
    for (name, seen) in [(other.as_str(), Some(other.as_str())), ("192.0.2.1", None)] {
        let (config, report) = honest_server(&honest);
        let client = quic_client(hostile::client(Some(spec().certified())));
        let (client, server) = handshake(client, config, name);
        assert!(!client.connected && !server.connected);
        assert_eq!(client.alert_from_peer(), Some(49));
        let name = seen.map(ToOwned::to_owned);
        assert_eq!(
            report.take().error,
            Some(VerifyError::UnknownServerName { name })
        );
    }
    let (config, report) = honest_server(&honest);
    let client = quic_client(hostile::client(Some(spec().certified())));
    let (client, server) = handshake(client, config, &honest_name().to_ascii_uppercase());
    accepted(
        &client,
        &server,
        &report.take(),
        "names are compared without case",
    );
}

#[test]
fn a_host_presents_the_identity_that_the_name_selects() {
    let mut identities = honest_identities();
    identities.insert(identity("spiffe://a.example/second"));
    let identities = Arc::new(identities);
    for id in [HONEST, "spiffe://a.example/second"] {
        let id: SpiffeId = id.parse().unwrap();
        let own = identities.by_id(&id).unwrap();
        let (client, client_report) = tls::client_config(&identities, own, &id, &clock()).unwrap();
        let (server, server_report) = tls::server_config(&identities, &clock()).unwrap();
        let (client, server) = handshake(
            observe::quic_client(client, &client_report).unwrap(),
            observe::quic_server(server, &server_report).unwrap(),
            &sni::server_name(&id),
        );
        accepted(&client, &server, &server_report.to_report(), id.as_str());
        accepted(&server, &client, &client_report.to_report(), id.as_str());
        assert_eq!(server_report.take().local, Some(id.clone()));
        assert_eq!(client_report.take().presented.map(|svid| svid.id), Some(id));
    }
}

#[test]
fn other_protocols_are_refused_by_both_ends() {
    for protocols in [
        vec![],
        vec![b"h3".to_vec()],
        vec![b"identun/2".to_vec(), b"h3".to_vec()],
    ] {
        let mut config = hostile::client(Some(spec().certified()));
        config.alpn_protocols.clone_from(&protocols);
        let (server, report) = honest_server(&honest());
        let (client, server) = handshake(quic_client(config), server, &honest_name());
        assert!(!client.connected && !server.connected, "{protocols:?}");
        assert_eq!(client.alert_from_peer(), Some(120), "{protocols:?}");
        assert!(report.take().presented.is_none());

        let mut config = hostile::server(spec().certified());
        config.alpn_protocols.clone_from(&protocols);
        let (client, _) = honest_client(&honest(), &forge::ID.parse().unwrap());
        let (client, server) = handshake(client, quic_server(config), "x.identun.alt");
        assert!(!client.connected && !server.connected, "{protocols:?}");
        assert!(client.lost.is_some(), "{protocols:?}");
    }
}

#[test]
fn tls_1_2_is_refused_by_both_ends() {
    let version = rustls::quic::Version::V1;
    let (config, report) = tls::server_config(&honest(), &clock()).unwrap();
    let mut server = rustls::quic::ServerConnection::new(config.into(), version, vec![]).unwrap();
    let refusal = server.read_hs(&hello_of_tls_1_2(1, &[0, 2, 0xc0, 0x2b, 1, 0]));
    assert!(
        matches!(refusal, Err(rustls::Error::PeerIncompatible(_))),
        "{refusal:?}"
    );
    assert_eq!(
        server.alert(),
        Some(rustls::AlertDescription::ProtocolVersion)
    );
    assert!(report.take().presented.is_none());

    let honest = honest();
    let own = honest.by_id(&HONEST.parse().unwrap()).unwrap();
    let (config, report) = tls::client_config(&honest, own, own.id(), &clock()).unwrap();
    let name = honest_name().try_into().unwrap();
    let mut client =
        rustls::quic::ClientConnection::new(config.into(), version, name, vec![]).unwrap();
    client.write_hs(&mut Vec::new());
    let refusal = client.read_hs(&hello_of_tls_1_2(2, &[0xc0, 0x2b, 0]));
    assert!(
        matches!(refusal, Err(rustls::Error::PeerIncompatible(_))),
        "{refusal:?}"
    );
    assert_eq!(
        client.alert(),
        Some(rustls::AlertDescription::ProtocolVersion)
    );
    assert!(report.take().presented.is_none());
}

/// A ClientHello (1) or ServerHello (2) as TLS 1.2 has it: no supported_versions, ECDHE-ECDSA-AES128-GCM-SHA256.
fn hello_of_tls_1_2(kind: u8, suites_and_compression: &[u8]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.push(0);
    body.extend(suites_and_compression);
    let extensions: &[u8] = match kind {
        // supported_groups, ec_point_formats, signature_algorithms
        1 => &[
            0, 10, 0, 4, 0, 2, 0, 0x1d, 0, 11, 0, 2, 1, 0, 0, 13, 0, 4, 0, 2, 4, 3,
        ],
        _ => &[0, 11, 0, 2, 1, 0],
    };
    body.extend([0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let mut message = vec![kind, 0, 0, u8::try_from(body.len()).unwrap()];
    message.extend(body);
    message
}

#[test]
fn what_was_negotiated_is_reported_by_both_ends() {
    let suite = |suite| move |s: &rustls::SupportedCipherSuite| s.suite() == suite;
    let group = |group| move |g: &&'static dyn rustls::crypto::SupportedKxGroup| g.name() == group;
    for (cipher, kx) in [
        (
            CipherSuite::TLS13_AES_128_GCM_SHA256,
            NamedGroup::X25519MLKEM768,
        ),
        (CipherSuite::TLS13_AES_128_GCM_SHA256, NamedGroup::X25519),
        (CipherSuite::TLS13_AES_256_GCM_SHA384, NamedGroup::X25519),
        (
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
            NamedGroup::X25519MLKEM768,
        ),
    ] {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites.sort_by_key(|s| !suite(cipher)(s));
        provider.kx_groups.retain(group(kx));
        let client = hostile::client_with(provider.clone(), Some(spec().certified()));
        let (server, report) = honest_server(&honest());
        let (client, server) = handshake(quic_client(client), server, &honest_name());
        let report = report.take();
        accepted(&client, &server, &report, "restricted client");
        let seen = report.negotiated.map(|n| (n.cipher, n.group));
        assert_eq!(seen, Some((cipher, kx)));

        provider
            .cipher_suites
            .retain(|s| suite(cipher)(s) || s.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
        let mut config = hostile::server_with(provider, spec().certified());
        config.ignore_client_order = true;
        let (client, report) = honest_client(&honest(), &forge::ID.parse().unwrap());
        let (client, server) = handshake(client, quic_server(config), "x.identun.alt");
        let report = report.take();
        accepted(&server, &client, &report, "restricted server");
        let seen = report.negotiated.map(|n| (n.cipher, n.group));
        assert_eq!(seen, Some((cipher, kx)));
    }
}

#[test]
fn the_group_after_a_retry_is_the_one_reported() {
    // The client guesses secp256r1, which is refused, so the first ServerHello is a HelloRetryRequest.
    let mut provider = aws_lc_rs::default_provider();
    let named = |name| {
        let groups = provider.kx_groups.iter().copied();
        groups.clone().find(|group| group.name() == name).unwrap()
    };
    provider.kx_groups = vec![named(NamedGroup::secp256r1), named(NamedGroup::X25519)];
    let client = hostile::client_with(provider, Some(spec().certified()));
    let (server, report) = honest_server(&honest());
    let (client, server) = handshake(quic_client(client), server, &honest_name());
    let report = report.take();
    accepted(&client, &server, &report, "retry");
    let group = report.negotiated.map(|negotiated| negotiated.group);
    assert_eq!(group, Some(NamedGroup::X25519));
}

#[test]
fn a_root_that_is_no_ca_vouches_for_nobody() {
    let self_signed = changed(|spec| spec.signer = forge::Signer::Oneself);
    let svid = X509Svid::new(self_signed.make().0).unwrap();
    let mut bundles = forge::bundles();
    let roots = bundles.roots.get_mut(&svid.id.trust_domain()).unwrap();
    roots.push(svid.chain[0].clone());
    for role in [PeerRole::Client, PeerRole::Server] {
        let verified = bundles.verify(&svid, role, NOW);
        assert_eq!(verified, Err(VerifyError::UnknownIssuer));
    }
}

#[test]
fn groups_that_are_not_allowed_do_not_connect() {
    for name in [NamedGroup::secp256r1, NamedGroup::secp384r1] {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups.retain(|group| group.name() == name);
        let client = hostile::client_with(provider, Some(spec().certified()));
        let (server, _) = honest_server(&honest());
        let (client, server) = handshake(quic_client(client), server, &honest_name());
        assert!(!client.connected && !server.connected);
        assert_eq!(client.alert_from_peer(), Some(40));
    }
}

#[test]
fn every_handshake_of_a_client_that_wants_to_resume_is_a_full_one() {
    let mut config = hostile::client(Some(spec().certified()));
    config.enable_early_data = true;
    let config = quic_client(config);
    let (server, report) = honest_server(&honest());
    for round in 0..3 {
        let (client, server) = handshake(config.clone(), server.clone(), &honest_name());
        assert!(!client.early, "{round}");
        accepted(&client, &server, &report.take(), "wants to resume");
    }
}

#[test]
fn every_handshake_with_a_server_that_gives_tickets_is_a_full_one() {
    let mut config = hostile::server(spec().certified());
    config.max_early_data_size = u32::MAX;
    config.send_tls13_tickets = 4;
    config.session_storage = rustls::server::ServerSessionMemoryCache::new(32);
    let server = quic_server(config);

    // The tickets are real: a client that wants them resumes, and has keys for 0-RTT.
    let mut wants = hostile::client(Some(spec().certified()));
    wants.enable_early_data = true;
    let wants = quic_client(wants);
    let early = [0, 1].map(|_| {
        handshake(wants.clone(), server.clone(), "x.identun.alt")
            .0
            .early
    });
    assert_eq!(early, [false, true]);

    let (client, report) = honest_client(&honest(), &forge::ID.parse().unwrap());
    for round in 0..3 {
        let (client, server) = handshake(client.clone(), server.clone(), "x.identun.alt");
        assert!(!client.early, "{round}");
        accepted(&server, &client, &report.take(), "gives tickets");
    }
}

#[test]
fn reports_say_what_was_presented_even_when_it_was_refused() {
    let (_, _, report) = present_to_server(&changed(|spec| spec.leaf.not_after = NOW - 1));
    let svid = report.presented.unwrap();
    assert_eq!(svid.id.as_str(), forge::ID);
    assert_eq!(
        svid.to_string(),
        "spiffe://a.example/ns/web/sa/front (serial 07, issued by CN=root a, valid 2027-01-15T07:59:00Z to \
         2027-01-15T07:59:59Z, 1 in chain)"
    );
    assert_eq!(
        report.error.unwrap().to_string(),
        "the certificate expired at 2027-01-15T07:59:59Z; it is 2027-01-15T08:00:00Z"
    );
    let (_, _, report) = present_to_server(&changed(|spec| spec.set_uris(&[])));
    assert!(report.presented.is_none());
    assert_eq!(report.error, Some(VerifyError::Svid(SvidError::NoUri)));
}
