//! Our tunnels against the stock `quinn` crate over loopback: honest and hostile, as client and as server.
//!
//! The other end shares no code with ours above rustls but the capsule encoder.

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test fails by panicking"
)]

mod ours;

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use identun::{
    identity::{Identities, VerifyError, sni, tls},
    tunnel::{DialError, TunnelEvent},
    wire::{
        FiveTuple,
        capsule::{
            Capsule, CapsuleReader, FlowRefused, FlowRefusedCode, Hello, PeerFlags, RefusedCode,
        },
    },
};
use ours::{Mesh, Ours, Out, clock, id};
use quinn::{
    Connection, ConnectionError, Endpoint, RecvStream, SendStream, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
};
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

type Stream = (SendStream, RecvStream);

/// Presents the same certificate whatever is asked for, or none.
#[derive(Debug)]
struct Stubborn(Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for Stubborn {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

impl ResolvesServerCert for Stubborn {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }
}

/// A TLS client configuration of bob for alice.
fn client_tls(identities: &Identities) -> rustls::ClientConfig {
    let own = identities.own.values().next().unwrap();
    tls::client_config(identities, own, &id("alice"), &clock())
        .unwrap()
        .0
}

async fn connect(
    tls: rustls::ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<Connection, ConnectionError> {
    let mut endpoint = Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    endpoint.connect(address, name).unwrap().await
}

/// How a connection that our side refuses ends, seen from outside: never with a capsule for us.
async fn refusal(tls: rustls::ClientConfig, ours: &Ours, name: &str) -> u64 {
    let error = match connect(tls, ours.address, name).await {
        Ok(connection) => connection.closed().await,
        Err(error) => error,
    };
    match error {
        ConnectionError::ConnectionClosed(close) => close.error_code.into(),
        other => panic!("{other:?}"),
    }
}

fn hello(source: &str, destination: &str) -> Capsule {
    Capsule::Hello(Hello {
        version: 1,
        flags: PeerFlags::ALL,
        source: id(source),
        destination: id(destination),
    })
}

fn encode(capsules: &[Capsule]) -> Vec<u8> {
    let mut bytes = Vec::new();
    capsules
        .iter()
        .for_each(|capsule| capsule.encode(&mut bytes));
    bytes
}

async fn next_capsule(stream: &mut RecvStream) -> Capsule {
    let mut reader = CapsuleReader::default();
    loop {
        let chunk = stream.read_chunk(1_024, true).await.unwrap().unwrap();
        reader.push(&chunk.bytes);
        if let Some(capsule) = reader.poll().unwrap() {
            return capsule;
        }
    }
}

/// Bob, connected to our alice as the certificates demand; nothing said yet.
async fn bob() -> (Ours, Connection, Stream) {
    let mesh = Mesh::new();
    let ours = Ours::start(mesh.identities("alice", &mesh));
    let tls = client_tls(&mesh.identities("bob", &mesh));
    let connection = connect(tls, ours.address, &sni::server_name(&id("alice")))
        .await
        .unwrap();
    let stream = connection.open_bi().await.unwrap();
    (ours, connection, stream)
}

async fn application_close(connection: &Connection) -> VarInt {
    match connection.closed().await {
        ConnectionError::ApplicationClosed(close) => close.error_code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_honest_client_gets_up_and_datagrams_pass_both_ways() {
    let (ours, connection, (mut send, mut recv)) = bob().await;
    send.write_all(&encode(&[hello("bob", "alice")]))
        .await
        .unwrap();
    let ready = Capsule::Ready {
        version: 1,
        flags: PeerFlags::ALL,
    };
    assert_eq!(next_capsule(&mut recv).await, ready);
    let up = ours.next_event();
    let TunnelEvent::Up {
        key,
        dialled: false,
        group,
        ..
    } = up
    else {
        panic!("{up:?}")
    };
    assert_eq!((key.local, key.peer), (id("alice"), id("bob")));
    assert_eq!(key.gateway, SocketAddr::from(([10, 0, 0, 2], 15008)));
    assert!(!group.is_empty());
    connection
        .send_datagram(Bytes::from_static(b"\0\0ping"))
        .unwrap();
    let Out::Datagram(datagram) = ours.next() else {
        panic!()
    };
    assert_eq!(datagram, "\0\0ping");
    ours.send(b"\0\0pong");
    assert_eq!(connection.read_datagram().await.unwrap(), "\0\0pong");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_before_hello_reach_nobody() {
    let (ours, connection, (mut send, mut recv)) = bob().await;
    connection
        .send_datagram(Bytes::from_static(b"\0\0early"))
        .unwrap();
    send.write_all(&encode(&[hello("carol", "alice")]))
        .await
        .unwrap();
    let capsule = next_capsule(&mut recv).await;
    assert!(
        matches!(
            capsule,
            Capsule::Refused {
                code: RefusedCode::BadIdentity,
                ..
            }
        ),
        "{capsule:?}"
    );
    let event = ours.next_event();
    let TunnelEvent::IncomingRefused { presented, .. } = event else {
        panic!("{event:?}")
    };
    assert_eq!(presented, Some(id("bob").to_string()));
    application_close(&connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_for_a_destination_that_was_not_dialled_is_refused() {
    let (ours, connection, (mut send, mut recv)) = bob().await;
    send.write_all(&encode(&[hello("bob", "carol")]))
        .await
        .unwrap();
    let capsule = next_capsule(&mut recv).await;
    assert!(
        matches!(
            capsule,
            Capsule::Refused {
                code: RefusedCode::BadIdentity,
                ..
            }
        ),
        "{capsule:?}"
    );
    let event = ours.next_event();
    assert!(
        matches!(event, TunnelEvent::IncomingRefused { .. }),
        "{event:?}"
    );
    application_close(&connection).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_capsules_are_skipped_and_the_session_stays_up() {
    let (ours, connection, (mut send, mut recv)) = bob().await;
    let strange = [0x01, 0x02, 0x03, 0x1d77].map(|kind| Capsule::Unknown { kind });
    // The last of them has a value, and of a length in two bytes.
    let long = [&[0x5d, 0x78, 0x40, 0x80][..], &[0x1d; 128]].concat();
    for bytes in [
        encode(&[hello("bob", "alice")]),
        encode(&strange),
        long,
        encode(&strange),
    ] {
        send.write_all(&bytes).await.unwrap();
    }
    assert!(matches!(
        next_capsule(&mut recv).await,
        Capsule::Ready { .. }
    ));
    assert!(matches!(ours.next_event(), TunnelEvent::Up { .. }));
    // What follows them on the stream is understood: they have been read, and no byte too many.
    let refused = FlowRefused {
        code: FlowRefusedCode::NoMatchingAllow,
        tuple: FiveTuple {
            protocol: 6,
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            source_port: 40_000,
            destination_port: 80,
        },
        reason: "after the strange ones".into(),
    };
    send.write_all(&encode(&[Capsule::FlowRefused(refused.clone())]))
        .await
        .unwrap();
    let event = ours.next_event();
    assert!(
        matches!(&event, TunnelEvent::FlowRefused { refused: told, .. } if *told == refused),
        "{event:?}"
    );
    connection
        .send_datagram(Bytes::from_static(b"\0\0still up"))
        .unwrap();
    let Out::Datagram(datagram) = ours.next() else {
        panic!()
    };
    assert_eq!(datagram, "\0\0still up");
    assert_eq!(connection.close_reason(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_break_the_capsule_rules_are_closed() {
    let greeting = || hello("bob", "alice");
    let drain = || Capsule::Drain {
        reason: String::new(),
    };
    let oversized = [0x9d, 0, 0x1d, 0x77, 0x80, 0x01, 0, 0];
    let unknown = vec![Capsule::Unknown { kind: 0x1d77 }; 300];
    let cases: [(&str, Vec<u8>, u32); 6] = [
        ("second hello", encode(&[greeting(), greeting()]), 0x101),
        ("capsule before hello", encode(&[drain()]), 0x101),
        (
            "ready from the dialler",
            encode(&[Capsule::Ready {
                version: 1,
                flags: PeerFlags::ALL,
            }]),
            0x101,
        ),
        (
            "flood",
            [encode(&[greeting()]), encode(&unknown)].concat(),
            0x107,
        ),
        (
            "oversized",
            [encode(&[greeting()]), oversized.to_vec()].concat(),
            0x101,
        ),
        ("malformed hello", vec![0x5d, 0, 1, 0xff], 0x101),
    ];
    for (name, bytes, code) in cases {
        let (_ours, connection, (mut send, _recv)) = bob().await;
        send.write_all(&bytes).await.unwrap();
        let closed = application_close(&connection).await;
        assert_eq!(closed, VarInt::from_u32(code), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_tls_refuses_see_the_alert_and_we_name_them() {
    let (mesh, other) = (Mesh::new(), Mesh::new());
    let ours = Ours::start(mesh.identities("alice", &mesh));
    let name = sni::server_name(&id("alice"));
    let honest = || client_tls(&mesh.identities("bob", &mesh));
    let refused = || {
        let event = ours.next_event();
        match event {
            TunnelEvent::IncomingRefused { presented, .. } => presented,
            event => panic!("{event:?}"),
        }
    };

    let mut no_certificate = honest();
    no_certificate.client_auth_cert_resolver = Arc::new(Stubborn(None));
    assert_eq!(refusal(no_certificate, &ours, &name).await, 0x174);
    assert_eq!(refused(), None);

    let untrusted = client_tls(&other.identities("bob", &mesh));
    let code = refusal(untrusted, &ours, &name).await;
    assert!((0x100..0x200).contains(&code), "{code:#x}");
    assert_eq!(refused(), Some(id("bob").to_string()));

    assert_eq!(
        refusal(honest(), &ours, &sni::server_name(&id("carol"))).await,
        0x131
    );
    assert_eq!(refused(), None);

    let mut no_name = honest();
    no_name.enable_sni = false;
    assert_eq!(refusal(no_name, &ours, &name).await, 0x131);
    assert_eq!(refused(), None);

    let mut other_protocol = honest();
    other_protocol.alpn_protocols = vec![b"h3".to_vec()];
    assert_eq!(refusal(other_protocol, &ours, &name).await, 0x178);
    assert_eq!(refused(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_open_one_stream_and_no_other() {
    let (_ours, connection, (mut send, mut recv)) = bob().await;
    send.write_all(&encode(&[hello("bob", "alice")]))
        .await
        .unwrap();
    next_capsule(&mut recv).await;
    let opened = tokio::select! {
        biased;
        _ = connection.open_bi() => true,
        _ = connection.open_uni() => true,
        () = std::future::ready(()) => false,
    };
    assert!(!opened);
}

/// A stock server that ignores the wanted name and presents `name`.
fn server(mesh: &Mesh, name: &str) -> (Endpoint, SocketAddr) {
    let identities = Arc::new(mesh.identities(name, mesh));
    let key = Arc::clone(&identities.own.values().next().unwrap().key);
    let (mut tls, _) = tls::server_config(&identities, &clock()).unwrap();
    tls.cert_resolver = Arc::new(Stubborn(Some(key)));
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let endpoint = Endpoint::server(config, SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = endpoint.local_addr().unwrap();
    (endpoint, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_another_identity_gets_nothing_and_both_are_named() {
    let mesh = Mesh::new();
    let ours = Ours::start(mesh.identities("alice", &mesh));
    let (endpoint, address) = server(&mesh, "impostor");
    ours.open("bob", address);
    let accepted = endpoint.accept().await.unwrap().accept().unwrap().await;
    let Err(ConnectionError::ConnectionClosed(close)) = accepted else {
        panic!("{accepted:?}")
    };
    assert!((0x100..0x200).contains(&u64::from(close.error_code)));
    let event = ours.next_event();
    let TunnelEvent::DialFailed { error, .. } = event else {
        panic!("{event:?}")
    };
    let DialError::Verify {
        error,
        presented,
        issuer,
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(
        matches!(error, VerifyError::WrongIdentity { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.contains(id("bob").as_str()), "{text}");
    assert_eq!(presented, Some(id("impostor").to_string()));
    assert!(issuer.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_may_open_no_stream_and_their_session_stays_up() {
    let mesh = Mesh::new();
    let ours = Ours::start(mesh.identities("alice", &mesh));
    let (endpoint, address) = server(&mesh, "bob");
    ours.open("bob", address);
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    assert_eq!(next_capsule(&mut recv).await, hello("alice", "bob"));
    let ready = Capsule::Ready {
        version: 1,
        flags: PeerFlags::ALL,
    };
    send.write_all(&encode(&[ready])).await.unwrap();
    assert!(matches!(ours.next_event(), TunnelEvent::Up { .. }));
    ours.send(b"\0\0ping");
    assert_eq!(connection.read_datagram().await.unwrap(), "\0\0ping");
    // The other end has no credit for a stream, and gets none.
    let opened = tokio::select! {
        biased;
        _ = connection.open_bi() => true,
        _ = connection.open_uni() => true,
        () = std::future::ready(()) => false,
    };
    assert!(!opened);
    ours.send(b"\0\0pong");
    assert_eq!(connection.read_datagram().await.unwrap(), "\0\0pong");
}

/// A server that holds the identity and answers HELLO with these bytes; why our dial failed.
async fn dial_error(answer: Vec<u8>) -> DialError {
    let mesh = Mesh::new();
    let ours = Ours::start(mesh.identities("alice", &mesh));
    let (endpoint, address) = server(&mesh, "bob");
    ours.open("bob", address);
    let connection = endpoint.accept().await.unwrap().await.unwrap();
    connection
        .send_datagram(Bytes::from_static(b"\0\0before ready"))
        .unwrap();
    let (mut send, mut recv) = connection.accept_bi().await.unwrap();
    assert_eq!(next_capsule(&mut recv).await, hello("alice", "bob"));
    send.write_all(&answer).await.unwrap();
    let event = ours.next_event();
    match event {
        TunnelEvent::DialFailed { error, .. } => error,
        event => panic!("{event:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_say_ready_gets_no_packets() {
    let refused = Capsule::Refused {
        code: RefusedCode::Limited,
        reason: "too many".into(),
    };
    let error = DialError::Refused {
        code: RefusedCode::Limited,
        reason: "too many".into(),
    };
    assert_eq!(dial_error(encode(&[refused])).await, error);
    let bad_version = encode(&[Capsule::Ready {
        version: 2,
        flags: PeerFlags::ALL,
    }]);
    for answer in [bad_version, encode(&[hello("bob", "alice")]), Vec::new()] {
        let error = dial_error(answer).await;
        assert!(matches!(error, DialError::Unreachable { .. }), "{error:?}");
    }
}
