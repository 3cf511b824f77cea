//! What the application sees of a refusal (wire.md T15), and loops (T16).

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    capture::{Capture, MARKER},
    mesh::{CLIENT_4, PORT, SERVER_4, SERVER_6, STRICT, service, workload},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{control, tcp_echo, udp_echo},
};

/// The host `impostor`.
const NOBODY_4: &str = "198.18.4.2";
const NOBODY_6: &str = "fd00:4::2";

/// How often a daemon dropped a packet for `reason`.
fn drops(rig: &Rig, host: &str, reason: &str) -> u64 {
    rig.status(host).unwrap()["drops"][reason]
        .as_u64()
        .unwrap_or(0)
}

/// A service of the mesh at `impostor`, which has no identity: policy demands mutual TLS, so the client must refuse it.
fn nobody_may_answer(rig: &Rig) {
    rig.standard(STRICT);
    let nobody = |name, address| {
        workload(name, address, "nobody", None).replace("  serviceAccount: nobody\n", "")
    };
    let registry = [
        nobody("nobody-4", NOBODY_4),
        nobody("nobody-6", NOBODY_6),
        service("nobody", &[PORT]),
    ];
    rig.write("policies/nobody.yaml", &registry.join("---\n"));
}

#[test]
fn applications_see_a_refusal_at_once() {
    in_namespaces("refusals::applications_see_a_refusal_at_once", |rig| {
        nobody_may_answer(&rig);
        let daemons = (rig.start("server"), rig.start("client"));
        let capture = Capture::start();
        // Administratively prohibited: ICMP 3/13 is EHOSTUNREACH to Linux, ICMPv6 1/1 is EACCES.
        for (to, udp) in [
            (NOBODY_4, ErrorKind::HostUnreachable),
            (NOBODY_6, ErrorKind::PermissionDenied),
        ] {
            let started = Instant::now();
            assert_eq!(
                tcp_echo("client", (to, PORT), PATIENCE),
                Err(ErrorKind::ConnectionRefused)
            );
            // A SYN that nobody answers is sent again after a second.
            assert!(
                started.elapsed() < Duration::from_millis(900),
                "TCP learnt it after {:?}",
                started.elapsed()
            );
            assert_eq!(udp_echo("client", (to, PORT), MARKER, PATIENCE), Err(udp));
        }
        assert!(drops(&rig, "client", "not_in_mesh") >= 4);
        // A closed port of the server: its kernel's own answers come back through the tunnel.
        for to in [SERVER_4, SERVER_6] {
            assert_eq!(
                tcp_echo("client", (to, PORT), PATIENCE),
                Err(ErrorKind::ConnectionRefused)
            );
            assert_eq!(
                udp_echo("client", (to, PORT), MARKER, PATIENCE),
                Err(ErrorKind::ConnectionRefused)
            );
        }
        control("client");
        capture.stop().assert_no_plaintext();
        drop(daemons);
    });
}

/// ICMP destination-unreachable messages that the host received.
fn unreachables(rig: &Rig, host: &str) -> u64 {
    let table = rig.on(host, &["cat", "/proc/net/snmp"]);
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Icmp:"));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names
        .split_whitespace()
        .position(|name| name == "InDestUnreachs")
        .unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

#[test]
fn answers_are_limited_and_no_icmp_error_is_answered() {
    const BURST: u64 = 50;
    const OFFERED: u64 = 2_000;
    in_namespaces(
        "refusals::answers_are_limited_and_no_icmp_error_is_answered",
        |rig| {
            nobody_may_answer(&rig);
            let client = rig.start("client");
            let dropped = || drops(&rig, "client", "not_in_mesh");
            let to: SocketAddr = (NOBODY_4.parse::<Ipv4Addr>().unwrap(), PORT).into();

            // An ICMP error is dropped without a word; the echo after it is answered.
            let before = (dropped(), unreachables(&rig, "client"));
            let send_icmp = |message: &[u8]| {
                in_namespace("client", || {
                    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
                    raw.unwrap().send_to(message, &to.into()).unwrap();
                });
            };
            for _ in 0..20 {
                send_icmp(&host_unreachable());
            }
            wait_for("the errors to be dropped", || dropped() == before.0 + 20);
            assert_eq!(unreachables(&rig, "client"), before.1);
            send_icmp(&[8, 0, 0xf7, 0xfd, 0, 1, 0, 1]);
            wait_for("the echo to be refused", || {
                unreachables(&rig, "client") == before.1 + 1
            });

            let before = (dropped(), unreachables(&rig, "client"));
            let started = Instant::now();
            in_namespace("client", || {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                for sent in 1..=OFFERED {
                    socket.send_to(MARKER, to).unwrap();
                    if sent % 100 == 0 {
                        // No faster than the daemon reads: its device holds a thousand packets.
                        wait_for("the datagrams to be dropped", || {
                            dropped() >= before.0 + sent
                        });
                    }
                }
            });
            let most = BURST + started.elapsed().as_millis() as u64 / 10 + 1;
            let told = unreachables(&rig, "client") - before.1;
            println!("{told} of {OFFERED} refused datagrams were answered, at most {most} may be");
            assert!(
                (BURST - 1..=most).contains(&told) && told < OFFERED,
                "{told}, at most {most}"
            );
            drop(client);
        },
    );
}

/// ICMP "host unreachable" about a datagram that nobody sent.
fn host_unreachable() -> Vec<u8> {
    let mut packet = vec![3, 1, 0, 0, 0, 0, 0, 0];
    packet.extend([0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend([198, 18, 4, 2, 198, 18, 1, 2]);
    packet.extend([0x1f, 0x90, 0x1f, 0x91, 0, 8, 0, 0]);
    let sum = crate::foreign::checksum(&packet);
    packet[2..4].copy_from_slice(&sum);
    packet
}

#[test]
fn a_self_capture_loop_ends_the_daemon_with_an_error() {
    in_namespaces(
        "refusals::a_self_capture_loop_ends_the_daemon_with_an_error",
        |rig| {
            rig.standard(STRICT);
            let (server, mut client) = (rig.start("server"), rig.start("client"));
            let installed = rig.host_state("client");
            // Another program gives the daemon's own packets the mark that leads to the device.
            let remark = "table inet other {\n chain out {\n type route hook output priority 0\n \
                          udp sport 15008 meta mark set 0x10000000\n }\n}\n";
            let rules = rig.write("other.nft", remark);
            rig.on("client", &["nft", "-f", &rules]);
            let capture = Capture::start();
            let status = {
                // What asks for a tunnel; its own fate is no matter.
                let _ = tcp_echo("client", (SERVER_4, PORT), Duration::from_secs(5));
                client.ended()
            };
            assert_eq!(status.code(), Some(1), "{}", rig.log("client"));
            let log = rig.log("client");
            assert!(
                log.contains("self-capture loop") && log.contains("15008"),
                "{log}"
            );
            // Rules stay: it fails closed.
            rig.on("client", &["nft", "delete", "table", "inet", "other"]);
            assert!(
                rig.host_state("client") == installed,
                "an ending daemon removes nothing"
            );
            control("client");
            let seen = capture.stop();
            assert_eq!(
                (seen.tunnel, seen.plaintext),
                (0, 0),
                "{:#?}",
                seen.examples
            );
            let statistics = "/sys/class/net/identun0/statistics/tx_packets";
            let through = rig.on("client", &["cat", statistics]);
            let through: u64 = through.trim().parse().unwrap();
            println!("the loop ended after {through} packets through the device");
            assert!(through < 100);
            // Without the other program it starts and works.
            let _echo = crate::traffic::Echo::start("server", PORT);
            let client = rig.start("client");
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
            drop((server, client));
        },
    );
}

#[test]
fn two_daemons_that_lead_to_each_other_drop_what_belongs_to_neither() {
    const NOBODY: &str = "198.18.9.9";
    in_namespaces(
        "refusals::two_daemons_that_lead_to_each_other_drop_what_belongs_to_neither",
        |rig| {
            rig.standard(STRICT);
            // Either host's registry says that the address lies behind the other.
            for (host, account, gateway) in [
                ("client", "server", SERVER_4),
                ("server", "client", CLIENT_4),
            ] {
                let there = workload("nobody", NOBODY, account, Some(gateway));
                let file = rig.write(&format!("{host}/nobody.yaml"), &there);
                let settings = std::fs::read_to_string(rig.settings(host)).unwrap();
                let policies = format!("policies: [{}", rig.path("policies"));
                let both = settings.replace(&policies, &format!("{policies}, {file}"));
                rig.write(&format!("{host}/daemon.yaml"), &both);
            }
            let daemons = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            for (from, to) in [("client", "server"), ("server", "client")] {
                let socket = in_namespace(from, || UdpSocket::bind("0.0.0.0:0").unwrap());
                for _ in 0..10 {
                    socket.send_to(MARKER, (NOBODY, PORT)).unwrap();
                }
                // The far end tells that it refuses the flow; what is sent after that does not even leave.
                wait_for("the packets to be dropped", || {
                    let there = drops(&rig, to, "foreign_destination");
                    there > 0 && there + drops(&rig, from, "peer_refused_flow") >= 10
                });
            }
            for host in ["client", "server"] {
                assert!(drops(&rig, host, "foreign_destination") <= 10);
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}
