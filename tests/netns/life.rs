//! What a daemon leaves behind, and what survives it.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::{
    capture::{Capture, MARKER},
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, in_namespace, in_namespaces},
    traffic::{Echo, control, tcp_echo},
};

#[test]
fn down_removes_exactly_what_was_added_twice_in_a_row_too() {
    in_namespaces(
        "life::down_removes_exactly_what_was_added_twice_in_a_row_too",
        |rig| {
            rig.standard(STRICT);
            // A host has rules of its own; they are nobody else's business.
            rig.on("client", &["nft", "add", "table", "inet", "foreign"]);
            rig.on(
                "client",
                &[
                    "ip",
                    "rule",
                    "add",
                    "pref",
                    "250",
                    "fwmark",
                    "0x4000/0xff0000",
                    "lookup",
                    "42",
                ],
            );
            let before = rig.host_state("client");
            let down = || rig.identun("client", &["down", "--config", &rig.settings("client")]);
            for round in 0..2 {
                let client = rig.start("client");
                let running = rig.host_state("client");
                assert_ne!(
                    running, before,
                    "the daemon changes something, or this test shows nothing"
                );
                if round == 0 {
                    client.terminate()
                } else {
                    client.kill_9()
                }
                assert_eq!(
                    rig.host_state("client"),
                    running,
                    "an ending daemon removes nothing"
                );
                assert!(down().contains("identun0"));
                assert_eq!(rig.host_state("client"), before);
                down();
                assert_eq!(rig.host_state("client"), before);
            }
        },
    );
}

#[test]
fn down_stops_a_running_daemon_first() {
    in_namespaces("life::down_stops_a_running_daemon_first", |rig| {
        rig.standard(STRICT);
        let before = rig.host_state("client");
        let _client = rig.start("client");
        rig.identun("client", &["down", "--config", &rig.settings("client")]);
        assert_eq!(rig.host_state("client"), before);
        assert!(rig.status("client").is_none());
    });
}

#[test]
fn an_established_connection_survives_kill_9_of_either_daemon() {
    in_namespaces(
        "life::an_established_connection_survives_kill_9_of_either_daemon",
        |rig| {
            rig.standard(STRICT);
            let (mut server, mut client) = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            for to in [SERVER_4, SERVER_6] {
                let mut ends = connect(to);
                exchange(&mut ends, Both);
                client.kill_9();
                client = rig.start("client");
                exchange(&mut ends, Both);
                server.kill_9();
                server = rig.start("server");
                exchange(&mut ends, Both);
                // Only the far end has something to send: the restarted one must be found by it, or find it.
                client.kill_9();
                client = rig.start("client");
                exchange(&mut ends, OnlyServer);
                server.kill_9();
                server = rig.start("server");
                exchange(&mut ends, OnlyClient);
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop((server, client));
        },
    );
}

#[test]
fn an_established_connection_survives_an_orderly_restart_of_either_daemon() {
    in_namespaces(
        "life::an_established_connection_survives_an_orderly_restart_of_either_daemon",
        |rig| {
            rig.standard(STRICT);
            let (mut server, mut client) = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            for to in [SERVER_4, SERVER_6] {
                let mut ends = connect(to);
                exchange(&mut ends, Both);
                server.terminate();
                server = rig.start("server");
                exchange(&mut ends, Both);
                client.terminate();
                client = rig.start("client");
                exchange(&mut ends, OnlyServer);
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop((server, client));
        },
    );
}

#[test]
fn flows_survive_a_change_of_the_address_and_port_that_a_nat_gives() {
    in_namespaces(
        "life::flows_survive_a_change_of_the_address_and_port_that_a_nat_gives",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let mut ends = connect(SERVER_4);
            exchange(&mut ends, Both);
            let remote = || {
                let status = rig.status("server").unwrap();
                status["tunnels"][0]["remote"].as_str().unwrap().to_owned()
            };
            assert!(remote().contains(&format!("{CLIENT_4}:15008")));
            let handshakes = rig.status("client").unwrap()["tunnels"][0]["handshakes"].clone();
            rig.on("wire", &["nft", "add", "table", "ip", "nat"]);
            rig.on(
                "wire",
                &[
                    "nft",
                    "add chain ip nat out { type nat hook postrouting priority 100; }",
                ],
            );
            for port in [20_001, 20_002] {
                let rule = format!(
                    "add rule ip nat out oifname server udp dport 15008 snat to 198.18.2.1:{port}"
                );
                rig.on("wire", &["nft", "flush", "chain", "ip", "nat", "out"]);
                rig.on("wire", &["nft", &rule]);
                rig.on("wire", &["conntrack", "-F"]);
                exchange(&mut ends, Both);
                assert!(
                    remote().contains(&format!("198.18.2.1:{port}")),
                    "{}",
                    remote()
                );
            }
            assert_eq!(
                rig.status("client").unwrap()["tunnels"][0]["handshakes"],
                handshakes,
                "the session itself went on"
            );
            drop(daemons);
        },
    );
}

/// Who speaks.
pub(crate) enum Who {
    Both,
    OnlyClient,
    OnlyServer,
}
use Who::{Both, OnlyClient, OnlyServer};

/// A connection of the client to the server: both ends in the hands of the test.
pub(crate) fn connect(to: &str) -> (TcpStream, TcpStream) {
    connect_to(to, PORT)
}

/// The same to any port that is free.
pub(crate) fn connect_to(to: &str, port: u16) -> (TcpStream, TcpStream) {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let listener = in_namespace("server", || TcpListener::bind(to).unwrap());
    let client = in_namespace("client", || {
        TcpStream::connect_timeout(&to, PATIENCE).unwrap()
    });
    let server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_nodelay(true).unwrap();
    }
    (client, server)
}

/// The marker a thousand times, whole and in order.
pub(crate) fn exchange((client, server): &mut (TcpStream, TcpStream), who: Who) {
    let speak = |from: &mut TcpStream, to: &mut TcpStream| {
        let started = std::time::Instant::now();
        let message = MARKER.repeat(1_000);
        let mut heard = vec![0; message.len()];
        std::thread::scope(|scope| {
            scope.spawn(|| from.write_all(&message).unwrap());
            to.read_exact(&mut heard).unwrap();
        });
        assert_eq!(heard, message);
        println!("went on after {:?}", started.elapsed());
    };
    if !matches!(who, OnlyServer) {
        speak(client, server);
    }
    if !matches!(who, OnlyClient) {
        speak(server, client);
    }
}

#[test]
fn the_hosts_own_plaintext_business_goes_on_under_strict() {
    in_namespaces(
        "life::the_hosts_own_plaintext_business_goes_on_under_strict",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            // A resolver and a download server outside the mesh.
            let _dns = Echo::start("naked", 53);
            let _web = Echo::start("naked", 80);
            for to in [NAKED_4, NAKED_6] {
                for host in ["client", "server"] {
                    crate::traffic::udp_echo(host, (to, 53), b"a query", PATIENCE).unwrap();
                    tcp_echo(host, (to, 80), PATIENCE).unwrap();
                    assert!(crate::traffic::ping(host, to), "{host} pings {to}");
                }
            }
            // A download that is under way outlives a restart and the loss of conntrack.
            let to = SocketAddr::new(NAKED_4.parse::<IpAddr>().unwrap(), 80);
            let mut stream = in_namespace("client", || {
                TcpStream::connect_timeout(&to, PATIENCE).unwrap()
            });
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            rig.on("client", &["conntrack", "-F"]);
            let (server, client) = daemons;
            client.kill_9();
            let client = rig.start("client");
            stream.write_all(MARKER).unwrap();
            let mut answer = [0; MARKER.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, MARKER);
            drop((server, client));
        },
    );
}

#[test]
fn a_forwarded_workload_gets_all_of_this_too() {
    in_namespaces("life::a_forwarded_workload_gets_all_of_this_too", |rig| {
        let behind = ["198.18.12.2", "fd00:12::2"];
        rig.workload("server");
        let registry = [
            crate::mesh::workload("client-4", CLIENT_4, "client", None),
            crate::mesh::workload("client-6", CLIENT_6, "client", None),
            crate::mesh::workload("inner-4", behind[0], "inner", Some(SERVER_4)),
            crate::mesh::workload("inner-6", behind[1], "inner", Some(SERVER_6)),
            crate::mesh::service("inner", &[PORT]),
            crate::mesh::service("client", &[PORT]),
        ]
        .join("---\n");
        rig.write("policies/policy.yaml", STRICT);
        rig.write("policies/registry.yaml", &registry);
        rig.configure("client", &["client"], "");
        rig.configure("server", &["inner"], "workload_interfaces: [workload]");
        let (server, client) = (rig.start("server"), rig.start("client"));
        let echo = Echo::start("server-workload", PORT);
        let _back = Echo::start("client", PORT);
        let _outside = Echo::start("naked", 80);
        let capture = Capture::start();
        for to in behind {
            tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            crate::traffic::udp_echo("client", (to, PORT), &[7; 4_000], PATIENCE).unwrap();
            assert!(crate::traffic::ping("client", to));
        }
        for to in [CLIENT_4, CLIENT_6] {
            tcp_echo("server-workload", (to, PORT), PATIENCE).unwrap();
        }
        control("client");
        capture.stop().assert_no_plaintext();
        // The workload may speak plaintext to the outside, which may not speak to it, also while the daemon is dead.
        tcp_echo("server-workload", (NAKED_4, 80), PATIENCE).unwrap();
        let connections = echo.connections();
        let refused = || {
            for to in behind {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap_err();
                crate::traffic::udp_echo("naked", (to, PORT), MARKER, Duration::from_millis(300))
                    .unwrap_err();
            }
        };
        refused();
        server.kill_9();
        refused();
        assert_eq!(echo.connections(), connections);
        drop(client);
    });
}
