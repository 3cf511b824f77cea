//! Several workload identities on one host, each with addresses of its own.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    capture::{Capture, MARKER},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, STRICT, service, workload},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, control, ping, tcp_echo, udp_echo},
};

/// A second and a third address of the host `server`.
const SECOND: &str = "198.18.2.3";
const THIRD: &str = "198.18.2.4";

/// `server` is the home of the identities `one` and `two`. The registry gives the third address to `three`, whose
/// certificate the host does not have.
fn two_identities(rig: &Rig) {
    let registry = [
        workload("client-4", CLIENT_4, "client", None),
        workload("client-6", CLIENT_6, "client", None),
        workload("one", SERVER_4, "one", None),
        workload("two", SECOND, "two", Some(SERVER_4)),
        workload("three", THIRD, "three", Some(SERVER_4)),
        service("client", &[PORT]),
        service("one", &[PORT]),
        service("two", &[PORT]),
        service("three", &[PORT]),
    ];
    rig.write("policies/policy.yaml", STRICT);
    rig.write("policies/registry.yaml", &registry.join("---\n"));
    for address in [SECOND, THIRD] {
        let address = format!("{address}/24");
        rig.on("server", &["ip", "addr", "add", &address, "dev", "eth0"]);
    }
    rig.configure("client", &["client"], "");
    rig.configure("server", &["one", "two"], "");
}

fn id(account: &str) -> String {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
}

/// The tunnels of a host that are up: local and peer identity, and inner packets there and back.
fn tunnels(rig: &Rig, host: &str) -> Vec<(String, String, u64, u64)> {
    let status = rig.status(host).unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let mut found: Vec<_> = status["tunnels"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|tunnel| tunnel["state"] == "up")
        .map(|tunnel| {
            let count = |name: &str| tunnel[name].as_u64().unwrap();
            (
                text(&tunnel["local"]),
                text(&tunnel["peer"]),
                count("packets_sent"),
                count("packets_received"),
            )
        })
        .collect();
    found.sort();
    found
}

#[test]
fn each_address_of_a_host_speaks_as_its_own_identity() {
    in_namespaces(
        "identities::each_address_of_a_host_speaks_as_its_own_identity",
        |rig| {
            two_identities(&rig);
            let daemons = (rig.start("server"), rig.start("client"));
            let _echo = Echo::start("server", PORT);
            let back = Echo::start("client", PORT);
            let capture = Capture::start();
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
            assert!(ping("client", SERVER_4));
            let first = tunnels(&rig, "client");
            assert_eq!(first.len(), 1, "{first:?}");
            assert_eq!((&first[0].0, &first[0].1), (&id("client"), &id("one")));

            tcp_echo("client", (SECOND, PORT), PATIENCE).unwrap();
            assert!(ping("client", SECOND));
            let ends = |host| -> Vec<_> {
                let up = tunnels(&rig, host).into_iter();
                up.map(|(local, peer, ..)| (local, peer)).collect()
            };
            assert_eq!(
                ends("client"),
                [(id("client"), id("one")), (id("client"), id("two"))]
            );
            assert_eq!(
                ends("server"),
                [(id("one"), id("client")), (id("two"), id("client"))]
            );

            // A process that is bound to the second address speaks as the second identity.
            let before = tunnels(&rig, "server");
            let heard = back.datagrams();
            let to: SocketAddr = format!("{CLIENT_4}:{PORT}").parse().unwrap();
            let socket = in_namespace("server", || UdpSocket::bind((SECOND, 0)).unwrap());
            for _ in 0..5 {
                socket.send_to(MARKER, to).unwrap();
            }
            wait_for("the datagrams at the client", || {
                back.datagrams() == heard + 5
            });
            let after = tunnels(&rig, "server");
            assert_eq!(after[0].2, before[0].2, "`one` said something");
            assert_eq!(after[1].2, before[1].2 + 5);
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

#[test]
fn an_address_whose_identity_its_host_does_not_have_is_refused() {
    in_namespaces(
        "identities::an_address_whose_identity_its_host_does_not_have_is_refused",
        |rig| {
            two_identities(&rig);
            let (server, client) = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let capture = Capture::start();
            // An identity of this host answers for its own addresses and for no other.
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
            let before = (echo.connections(), echo.datagrams());
            tcp_echo("client", (THIRD, PORT), Duration::from_secs(5)).unwrap_err();
            udp_echo("client", (THIRD, PORT), MARKER, Duration::from_secs(2)).unwrap_err();
            wait_for("the log to name the identity", || {
                rig.log("client").contains(&id("three"))
            });
            assert_eq!((echo.connections(), echo.datagrams()), before);
            let three = |tunnel: &(String, String, u64, u64)| tunnel.1 == id("three");
            assert!(!tunnels(&rig, "client").iter().any(three));
            control("client");
            capture.stop().assert_no_plaintext();
            // From there no word goes out either: the host has no identity to speak as.
            let from = in_namespace("server", || UdpSocket::bind((THIRD, 0)).unwrap());
            let back = Echo::start("client", PORT);
            from.send_to(MARKER, (CLIENT_4, PORT)).unwrap();
            from.set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            let answer = from.recv(&mut [0; 64]).map_err(|error| error.kind());
            assert_eq!(answer, Err(ErrorKind::WouldBlock));
            assert_eq!(back.datagrams(), 0);
            drop((server, client));
        },
    );
}
