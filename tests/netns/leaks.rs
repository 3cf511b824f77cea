//! No plaintext where policy says none: in normal running, while a daemon is dead, when its rules are torn down.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use crate::{
    capture::{CONTROL_PORT, Capture, MARKER},
    life::{
        Who::{Both, OnlyClient, OnlyServer},
        connect, exchange,
    },
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT, permissive},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Blaster, Echo, control, ping, tcp_echo, udp_echo},
};

#[test]
fn must_traffic_never_crosses_the_wire_in_plaintext() {
    in_namespaces(
        "leaks::must_traffic_never_crosses_the_wire_in_plaintext",
        |rig| {
            rig.standard(STRICT);
            let (mut server, mut client) = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let capture = Capture::start();
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);

            delivered(&echo);
            blaster.offer(5_000);
            let refused_before = blaster.refused();

            client.kill_9();
            blaster.offer(5_000);
            // The device goes too: the unreachable rule answers. Then the rules: the guard drops.
            rig.on("client", &["ip", "link", "set", "identun0", "down"]);
            blaster.offer(1_000);
            assert!(
                blaster.refused() > refused_before,
                "the unreachable rule answered nothing"
            );
            for family in ["-4", "-6"] {
                for priority in ["300", "301"] {
                    rig.on("client", &["ip", family, "rule", "del", "pref", priority]);
                }
            }
            blaster.offer(1_000);
            assert!(guarded(&rig, "client") > 0, "the guard dropped nothing");
            client = rig.start("client");
            delivered(&echo);

            server.kill_9();
            blaster.offer(5_000);
            server = rig.start("server");
            delivered(&echo);
            // a device that somebody deletes ends the daemon
            rig.on("client", &["ip", "link", "del", "identun0"]);
            blaster.offer(2_000);
            assert!(!client.ended().success());
            client = rig.start("client");
            delivered(&echo);
            blaster.offer(3_000);

            control("client");
            let offered = blaster.offered();
            blaster.stop();
            let seen = capture.stop();
            println!(
                "offered {offered} must packets; wire: {} tunnel, {} control packets",
                seen.tunnel, seen.control
            );
            assert!(offered >= 20_000);
            seen.assert_no_plaintext();
            drop((server, client));
        },
    );
}

#[test]
fn reloads_under_load_let_nothing_out() {
    in_namespaces("leaks::reloads_under_load_let_nothing_out", |rig| {
        rig.standard(STRICT);
        let (server, client) = (rig.start("server"), rig.start("client"));
        let echo = Echo::start("server", PORT);
        let capture = Capture::start();
        let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
        delivered(&echo);
        let generation = || {
            rig.status("client").unwrap()["generation"]
                .as_u64()
                .unwrap()
        };
        let reloads = std::env::var("IDENTUN_RELOADS");
        let reloads: u64 = reloads.map_or(20, |count| count.parse().unwrap());
        for round in 0..reloads {
            // The DestinationRule stays: what the client sends to the server must be encrypted under both.
            let policy = if round % 2 == 0 {
                permissive()
            } else {
                STRICT.into()
            };
            rig.write("policies/policy.yaml", &policy);
            let before = generation();
            client.reload();
            wait_for("the reload", || generation() > before);
            blaster.offer(200);
        }
        delivered(&echo);
        control("client");
        println!(
            "{reloads} reloads, {} must packets offered",
            blaster.offered()
        );
        blaster.stop();
        capture.stop().assert_no_plaintext();
        drop((server, client));
    });
}

#[test]
fn flows_outlive_the_loss_of_conntrack_on_both_hosts() {
    in_namespaces(
        "leaks::flows_outlive_the_loss_of_conntrack_on_both_hosts",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            for to in [SERVER_4, SERVER_6] {
                let mut ends = connect(to);
                exchange(&mut ends, Both);
                for who in [Both, OnlyServer, OnlyClient] {
                    for host in ["client", "server"] {
                        rig.on(host, &["conntrack", "-F"]);
                    }
                    exchange(&mut ends, who);
                }
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

#[test]
fn replies_never_cross_in_plaintext_while_a_daemon_is_dead() {
    in_namespaces(
        "leaks::replies_never_cross_in_plaintext_while_a_daemon_is_dead",
        |rig| {
            // The server takes plaintext and has no rule for its clients: only the flow says how its replies travel.
            rig.standard(&permissive().replace("\"*.local\"", "server.default.svc.cluster.local"));
            let settings = ["client", "server"]
                .map(|host| (host, std::fs::read_to_string(rig.settings(host)).unwrap()));
            for (host, text) in settings {
                rig.write(
                    &format!("{host}/daemon.yaml"),
                    &format!("{text}auto_mtls: false\n"),
                );
            }
            let (mut server, mut client) = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            let sockets = [SERVER_4, SERVER_6].map(|to| {
                let to = SocketAddr::new(to.parse().unwrap(), PORT);
                let service = in_namespace("server", || UdpSocket::bind(to).unwrap());
                let asking = in_namespace("client", || {
                    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any).unwrap();
                    socket.connect(to).unwrap();
                    socket
                });
                for socket in [&service, &asking] {
                    socket.set_read_timeout(Some(PATIENCE)).unwrap();
                }
                asking.send(MARKER).unwrap();
                let from = service.recv_from(&mut [0; 64]).unwrap().1;
                (service, asking, from)
            });
            let answer = |count: u32| {
                for at in 0..count {
                    for (service, _, to) in &sockets {
                        // The unreachable rule may answer; that is no reason to end.
                        let _ =
                            service.send_to(&MARKER.repeat(if at % 8 == 0 { 200 } else { 1 }), to);
                    }
                }
            };
            let arrives = || {
                for (service, asking, to) in &sockets {
                    asking.set_nonblocking(true).unwrap();
                    while asking.recv(&mut [0; 1 << 13]).is_ok() {}
                    asking.set_nonblocking(false).unwrap();
                    wait_for("a reply at the client", || {
                        service.send_to(b"fresh", to).unwrap();
                        asking
                            .set_read_timeout(Some(Duration::from_millis(100)))
                            .unwrap();
                        let mut heard = [0; 1 << 13];
                        asking
                            .recv(&mut heard)
                            .is_ok_and(|len| &heard[..len] == b"fresh")
                    });
                }
            };
            arrives();
            client.kill_9();
            answer(1_000);
            client = rig.start("client");
            arrives();
            server.kill_9();
            answer(1_000);
            server = rig.start("server");
            arrives();
            control("client");
            capture.stop().assert_no_plaintext();
            drop((server, client));
        },
    );
}

/// Waits until both kinds arrive again at the far end.
#[track_caller]
fn delivered(echo: &Echo) {
    let (datagrams, connections) = (echo.datagrams(), echo.connections());
    wait_for("datagrams at the server", || {
        echo.datagrams() > datagrams + 10
    });
    wait_for("connections at the server", || {
        echo.connections() > connections
    });
}

/// Packets that the guard dropped.
fn guarded(rig: &Rig, host: &str) -> u64 {
    let counter = rig.on(
        host,
        &["nft", "list", "counter", "inet", "identun", "c_guard"],
    );
    let packets = counter
        .split("packets ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    packets.parse().unwrap()
}

#[test]
fn every_protocol_crosses_in_the_tunnel_both_families() {
    in_namespaces(
        "leaks::every_protocol_crosses_in_the_tunnel_both_families",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let _echo = Echo::start("server", PORT);
            let _back = Echo::start("client", PORT);
            let capture = Capture::start();
            for (from, to) in [
                ("client", SERVER_4),
                ("client", SERVER_6),
                ("server", CLIENT_4),
                ("server", CLIENT_6),
            ] {
                tcp_echo(from, (to, PORT), PATIENCE).unwrap();
                udp_echo(from, (to, PORT), MARKER, PATIENCE).unwrap();
                assert!(ping(from, to), "ping {from} -> {to}");
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

#[test]
fn strict_refuses_plaintext_also_while_its_daemon_is_dead() {
    in_namespaces(
        "leaks::strict_refuses_plaintext_also_while_its_daemon_is_dead",
        |rig| {
            rig.standard(STRICT);
            let server = rig.start("server");
            let echo = Echo::start("server", PORT);
            refuses_plaintext(&echo);
            server.kill_9();
            refuses_plaintext(&echo);
            let server = rig.start("server");
            refuses_plaintext(&echo);
            server.terminate();
            refuses_plaintext(&echo);
            // The twin: without the rules the same packets arrive, so the refusals above were ours.
            rig.identun("server", &["down", "--config", &rig.settings("server")]);
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
                udp_echo("naked", (to, PORT), &[7; 4_000], PATIENCE).unwrap();
                assert!(ping("naked", to));
            }
        },
    );
}

#[test]
fn permissive_takes_plaintext_from_outside_and_the_tunnel_from_the_mesh() {
    in_namespaces(
        "leaks::permissive_takes_plaintext_from_outside_and_the_tunnel_from_the_mesh",
        |rig| {
            rig.standard(&permissive());
            let daemons = (rig.start("server"), rig.start("client"));
            let _echo = Echo::start("server", PORT);
            let _plain = [
                Echo::start("naked", PORT),
                Echo::start("client", CONTROL_PORT),
            ];
            let capture = Capture::start();
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
                udp_echo("client", (to, PORT), MARKER, PATIENCE).unwrap();
            }
            // An unprotected destination stays plaintext both ways, and is the positive control.
            for to in [CLIENT_4, CLIENT_6] {
                tcp_echo("naked", (to, CONTROL_PORT), PATIENCE).unwrap();
            }
            capture.stop().assert_no_plaintext();
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
                udp_echo("naked", (to, PORT), MARKER, PATIENCE).unwrap();
            }
            for to in [NAKED_4, NAKED_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            }
            drop(daemons);
        },
    );
}

/// TCP is reset; UDP, fragments and pings from outside the mesh reach no application.
fn refuses_plaintext(echo: &Echo) {
    let moment = Duration::from_millis(300);
    let before = (echo.connections(), echo.datagrams());
    for to in [SERVER_4, SERVER_6] {
        assert_eq!(
            tcp_echo("naked", (to, PORT), PATIENCE),
            Err(ErrorKind::ConnectionRefused)
        );
        for size in [16, 4_000] {
            assert_eq!(
                udp_echo("naked", (to, PORT), &vec![7; size], moment),
                Err(ErrorKind::WouldBlock)
            );
        }
        assert!(!ping("naked", to));
    }
    assert_eq!((echo.connections(), echo.datagrams()), before);
}
