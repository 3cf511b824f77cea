//! No plaintext where policy says none: in normal running, while a daemon is dead, when its rules are torn down.

use std::{io::ErrorKind, time::Duration};

use crate::{
    capture::{CONTROL_PORT, Capture, MARKER},
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT, permissive},
    rig::{PATIENCE, Rig, in_namespaces, wait_for},
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
