//! An authenticated peer that lies about inner addresses, and a server that is not who it should be: both on the stock
//! `quinn` crate.

use std::{
    fs,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use identun::{
    identity::sni,
    wire::capsule::{Capsule, PeerFlags},
};
use quinn::Connection;

use crate::{
    capture::{CONTROL_PORT, Capture, MARKER},
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT},
    peer::{self, Control, Credentials},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, control, tcp_echo},
};

/// Inner source and destination of each lie, and the reason under which it must be counted.
const LIES: &[(&str, &str, &str)] = &[
    ("198.18.3.2", SERVER_4, "foreign_source"), // a host outside the mesh
    (SERVER_4, SERVER_4, "foreign_source"),     // the server itself
    ("198.18.4.2", SERVER_4, "foreign_source"), // another workload of the mesh
    ("10.99.9.9", SERVER_4, "foreign_source"),
    ("127.0.0.1", SERVER_4, "martian"),
    ("0.0.0.0", SERVER_4, "martian"),
    ("224.0.0.1", SERVER_4, "martian"),
    ("240.0.0.1", SERVER_4, "martian"),
    ("255.255.255.255", SERVER_4, "martian"),
    ("::1", SERVER_6, "martian"),
    ("::", SERVER_6, "martian"),
    ("fe80::1", SERVER_6, "martian"),
    ("ff02::1", SERVER_6, "martian"),
    ("::ffff:198.18.1.2", SERVER_6, "martian"),
    ("fd00:dead::1", SERVER_6, "foreign_source"),
    (CLIENT_4, NAKED_4, "foreign_destination"), // the server as a router
    (CLIENT_6, NAKED_6, "foreign_destination"),
    (CLIENT_4, "198.18.4.2", "foreign_destination"),
    (CLIENT_4, "127.0.0.1", "martian"),
    (CLIENT_4, "224.0.0.1", "martian"),
    (CLIENT_4, "255.255.255.255", "martian"),
    (CLIENT_6, "ff02::1", "martian"),
    (CLIENT_6, "fe80::2", "martian"),
];

#[test]
fn an_authenticated_peer_that_lies_about_inner_addresses_delivers_nothing() {
    in_namespaces(
        "foreign::an_authenticated_peer_that_lies_about_inner_addresses_delivers_nothing",
        |rig| {
            rig.standard(STRICT);
            rig.write(
                "policies/impostor.yaml",
                &crate::mesh::workload("impostor", "198.18.4.2", "impostor", None),
            );
            let server = rig.start("server");
            // The kernel would forward what the daemon lets pass.
            rig.on(
                "server",
                &[
                    "sysctl",
                    "-qw",
                    "net.ipv4.ip_forward=1",
                    "net.ipv6.conf.all.forwarding=1",
                ],
            );
            let echoes = ["server", "naked", "impostor"].map(|host| Echo::start(host, PORT));
            let capture = Capture::start();
            let credentials = credentials(&rig, "client", "client");
            let socket = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(lie(socket, &credentials, &echoes[0]));
            let drops = &rig.status("server").unwrap()["drops"];
            for reason in ["foreign_source", "foreign_destination", "martian"] {
                let told = LIES.iter().filter(|lie| lie.2 == reason).count() as u64;
                let counted = drops[reason].as_u64().unwrap_or(0);
                // The kernel's own multicast reports on the device are martians too.
                let holds = if reason == "martian" {
                    counted >= told
                } else {
                    counted == told
                };
                assert!(holds, "{reason}: {drops}");
            }
            assert_eq!(
                echoes[0].datagrams(),
                2,
                "only the two honest packets arrive"
            );
            assert_eq!(echoes[1].datagrams() + echoes[2].datagrams(), 0);
            control("client");
            capture.stop().assert_no_plaintext();
            println!("{} lies, none delivered: {drops}", LIES.len());
            drop(server);
        },
    );
}

/// A session of the client's identity with the server's daemon, up.
pub(crate) async fn session(socket: UdpSocket, credentials: &Credentials) -> (Connection, Control) {
    let id = |account: &str| {
        format!("spiffe://cluster.local/ns/default/sa/{account}")
            .parse()
            .unwrap()
    };
    let to = SocketAddr::new(SERVER_4.parse().unwrap(), 15_008);
    let name = sni::server_name(&id("server"));
    let connection = peer::dial(socket, to, &name, Some(credentials))
        .await
        .unwrap();
    let mut control = Control::hello(&connection, &id("client"), &id("server")).await;
    assert!(matches!(control.hear().await, Some(Capsule::Ready { .. })));
    (connection, control)
}

/// Waits until the echo had `count` datagrams in all.
pub(crate) async fn arrived(echo: &Echo, count: u64) {
    let arrived = tokio::time::timeout(PATIENCE, async {
        while echo.datagrams() < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    arrived.await.expect("the honest packet arrives");
}

async fn lie(socket: UdpSocket, credentials: &Credentials, echo: &Echo) {
    let (connection, _control) = session(socket, credentials).await;
    let send = |source: &str, destination: &str| {
        let mut datagram = vec![0, 0];
        datagram.extend(udp(source.parse().unwrap(), destination.parse().unwrap()));
        connection.send_datagram(datagram.into()).unwrap();
    };
    let honest = async |count| {
        send(CLIENT_4, SERVER_4);
        arrived(echo, count).await;
    };
    honest(1).await;
    for (source, destination, _) in LIES {
        send(source, destination);
    }
    // Datagrams keep their order here: what follows the lies has passed them all.
    honest(2).await;
    connection.close(0x100u32.into(), b"");
}

#[test]
fn a_client_refuses_whoever_cannot_prove_the_wanted_identity() {
    in_namespaces(
        "foreign::a_client_refuses_whoever_cannot_prove_the_wanted_identity",
        |rig| {
            rig.standard(STRICT);
            rig.configure("impostor", &["impostor"], "");
            let credentials = credentials(&rig, "impostor", "impostor");
            rig.reroute("server", "impostor");
            let client = rig.start("client");
            let capture = Capture::start();
            let socket = in_namespace("impostor", || UdpSocket::bind("[::]:15008").unwrap());
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let (report, inner) = std::sync::mpsc::sync_channel(8);
            runtime.spawn(async move {
                let endpoint = peer::server(socket, &credentials);
                while let Some(incoming) = endpoint.accept().await {
                    let Ok(connection) = incoming.await else {
                        continue;
                    };
                    let Ok(mut control) = Control::accept(&connection).await else {
                        continue;
                    };
                    control
                        .say(&Capsule::Ready {
                            version: 1,
                            flags: PeerFlags::ALL,
                        })
                        .await;
                    while let Ok(datagram) = connection.read_datagram().await {
                        report.send(datagram).unwrap();
                    }
                }
            });
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap_err();
            }
            let both_ids = || {
                let log = rig.log("client");
                log.contains("spiffe://cluster.local/ns/default/sa/server")
                    && log.contains("spiffe://cluster.local/ns/default/sa/impostor")
            };
            wait_for("the log to name both identities", both_ids);
            assert!(inner.try_recv().is_err(), "an inner packet was sent");
            control("client");
            capture.stop().assert_no_plaintext();
            drop(client);
        },
    );
}

pub(crate) fn credentials(rig: &Rig, host: &str, account: &str) -> Credentials {
    let read =
        |end: &str| fs::read(rig.path(&format!("{host}/{account}/{account}.{end}"))).unwrap();
    Credentials::from_pem(&read("pem"), &read("key"))
}

/// A UDP packet from [`CONTROL_PORT`] to [`PORT`] with the marker and all its checksums.
pub(crate) fn udp(source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let len = u16::try_from(8 + MARKER.len()).unwrap();
    let mut segment = [CONTROL_PORT + 1, PORT, len, 0]
        .map(u16::to_be_bytes)
        .concat();
    segment.extend_from_slice(MARKER);
    let (header, pseudo) = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total = (20 + len).to_be_bytes();
            let mut header = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 17, 0, 0];
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            (header, [source.octets(), destination.octets()].concat())
        }
        (source, destination) => {
            let [source, destination] = [source, destination].map(|address| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            });
            let mut header = vec![0x60, 0, 0, 0, 0, len.to_be_bytes()[1], 17, 64];
            header.extend(source);
            header.extend(destination);
            (header, [source, destination].concat())
        }
    };
    let pseudo = [
        pseudo,
        vec![0, 17],
        len.to_be_bytes().to_vec(),
        segment.clone(),
    ]
    .concat();
    let sum = checksum(&pseudo);
    segment[6..8].copy_from_slice(&sum);
    [header, segment].concat()
}

/// The Internet checksum of `bytes`.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}
