//! What other programs, the kernel and the network do to a host that must not leak (steering.md §2.1): each with a storm of
//! packets that must be encrypted, or with the packets that the kernel makes by itself, IPv4 and IPv6.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use crate::{
    capture::{CONTROL_PORT, Capture, MARKER},
    life::{Who::Both, connect_to, exchange},
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Blaster, Echo, control, tcp_echo, udp_echo},
};

/// L7 and L9: routes that lead past the TUN (DHCP option 121, TunnelCrack's LocalNet and ServerIP), a rule before ours, a
/// link that flaps, and a second link that takes the default route.
#[test]
fn routes_rules_and_links_that_others_change_let_nothing_out() {
    const MOVES: [(&str, &str); 5] = [
        (
            "ip route add 198.18.2.2/32 via 198.18.1.1; ip -6 route add fd00:2::2/128 via fd00:1::1",
            "ip route del 198.18.2.2/32 via 198.18.1.1; ip -6 route del fd00:2::2/128 via fd00:1::1",
        ),
        (
            "ip route add 198.18.2.2/32 via 198.18.1.1 table 4242; ip rule add pref 100 lookup 4242
             ip -6 route add fd00:2::2/128 via fd00:1::1 table 4242; ip -6 rule add pref 100 lookup 4242",
            "ip rule del pref 100; ip -6 rule del pref 100; ip route flush table 4242; ip -6 route flush table 4242",
        ),
        (
            "ip addr add 198.18.2.9/24 dev eth0; ip -6 addr add fd00:2::9/64 dev eth0 nodad",
            "ip addr del 198.18.2.9/24 dev eth0; ip -6 addr del fd00:2::9/64 dev eth0",
        ),
        (
            "ip rule add pref 200 fwmark 0x10000000/0x30000000 lookup main
             ip -6 rule add pref 200 fwmark 0x10000000/0x30000000 lookup main",
            "ip rule del pref 200; ip -6 rule del pref 200",
        ),
        (
            "ip route replace default via 198.18.11.1; ip -6 route replace default via fd00:11::1",
            "ip route replace default via 198.18.1.1; ip -6 route replace default via fd00:1::1",
        ),
    ];
    in_namespaces(
        "mishaps::routes_rules_and_links_that_others_change_let_nothing_out",
        |rig| {
            rig.standard(STRICT);
            second_link(&rig);
            let daemons = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let capture = Capture::start();
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            delivered(&echo);
            for (change, undo) in MOVES {
                println!("{change}");
                rig.on("client", &["sh", "-ec", change]);
                blaster.offer(1_000);
                rig.on("client", &["sh", "-ec", undo]);
                delivered(&echo);
            }
            for _ in 0..3 {
                rig.on("client", &["ip", "link", "set", "eth0", "down"]);
                blaster.offer(300);
                rig.on("client", &["sh", "-ec", UP_AGAIN]);
                delivered(&echo);
            }
            control("client");
            println!("offered {} must packets", blaster.offered());
            blaster.stop();
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// What a network manager does when the link is back.
const UP_AGAIN: &str = "ip link set eth0 up
    ip -6 addr replace fd00:1::2/64 dev eth0 nodad
    ip route replace default via 198.18.1.1; ip -6 route replace default via fd00:1::1";

/// A second way from the client to the wire, that nothing uses yet.
fn second_link(rig: &Rig) {
    let here = "ip link add eth1 type veth peer name client1 netns wire
        ip addr add 198.18.11.2/24 dev eth1; ip -6 addr add fd00:11::2/64 dev eth1 nodad
        ip link set eth1 up";
    rig.on("client", &["sh", "-ec", here]);
    let there =
        "ip addr add 198.18.11.1/24 dev client1; ip -6 addr add fd00:11::1/64 dev client1 nodad
        ip link set client1 up";
    rig.on("wire", &["sh", "-ec", there]);
    wait_for("the second link", || {
        !rig.on("client", &["ip", "link", "show", "eth1"])
            .contains("NO-CARRIER")
    });
}

#[track_caller]
fn delivered(echo: &Echo) {
    let before = echo.datagrams();
    wait_for("datagrams at the server", || echo.datagrams() > before + 10);
}

/// What the host sends from an address that no workload has: no to what its workloads must encrypt, said at once, and nothing
/// else changes for it.
#[test]
fn an_address_of_no_workload_hears_no_at_once_and_may_do_everything_else() {
    const STRAYS: [&str; 2] = ["198.18.11.2", "fd00:11::2"];
    in_namespaces(
        "mishaps::an_address_of_no_workload_hears_no_at_once_and_may_do_everything_else",
        |rig| {
            rig.standard(STRICT);
            second_link(&rig);
            let daemons = (rig.start("server"), rig.start("client"));
            let _echoes = ["server", "naked", "client"].map(|host| Echo::start(host, CONTROL_PORT));
            let server = Echo::start("server", PORT);
            let capture = Capture::start();
            let open = |from: &str, to: &str, port: u16| {
                let [from, to] = [(from, 0), (to, port)]
                    .map(|(address, port)| SocketAddr::new(address.parse().unwrap(), port));
                in_namespace("client", || {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                    socket.bind(&from.into()).unwrap();
                    socket.connect_timeout(&to.into(), PATIENCE)
                })
            };
            for ((stray, own), (mesh, outside)) in STRAYS
                .into_iter()
                .zip([CLIENT_4, CLIENT_6])
                .zip([(SERVER_4, NAKED_4), (SERVER_6, NAKED_6)])
            {
                open(own, mesh, PORT).unwrap();
                let refused = open(stray, mesh, PORT).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{stray}");
                open(stray, outside, CONTROL_PORT).unwrap();
                // and what comes to it is answered
                tcp_echo("naked", (stray, CONTROL_PORT), PATIENCE).unwrap();
            }
            assert_eq!(server.connections(), 2);
            let log = rig.log("client");
            assert!(log.contains("unknown_source"), "{log}");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// A start while the link is down: nothing waits for a service manager to try again.
#[test]
fn a_daemon_that_starts_before_its_link_is_up_works_when_it_is() {
    in_namespaces(
        "mishaps::a_daemon_that_starts_before_its_link_is_up_works_when_it_is",
        |rig| {
            rig.standard(STRICT);
            let server = rig.start("server");
            let echo = Echo::start("server", PORT);
            rig.on("client", &["ip", "link", "set", "eth0", "down"]);
            let client = rig.start("client");
            rig.on("client", &["sh", "-ec", UP_AGAIN]);
            let capture = Capture::start();
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            delivered(&echo);
            blaster.offer(500);
            control("client");
            blaster.stop();
            capture.stop().assert_no_plaintext();
            drop((server, client));
        },
    );
}

/// L12: another program's rules keep the kernel from tracking anything.
#[test]
fn untracked_packets_are_steered_all_the_same() {
    const NOTRACK: &str = "table inet foreign {
        chain out { type filter hook output priority raw; policy accept; notrack
        }
        chain pre { type filter hook prerouting priority raw; policy accept; iifname != \"identun0\" notrack
        }
        }";
    in_namespaces(
        "mishaps::untracked_packets_are_steered_all_the_same",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let capture = Capture::start();
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            delivered(&echo);
            let rules = rig.write("notrack.nft", NOTRACK);
            for host in ["client", "server"] {
                rig.on(host, &["nft", "-f", &rules]);
                rig.on(host, &["conntrack", "-F"]);
            }
            blaster.offer(2_000);
            delivered(&echo);
            for host in ["client", "server"] {
                rig.on(host, &["nft", "delete", "table", "inet", "foreign"]);
            }
            delivered(&echo);
            control("client");
            blaster.stop();
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// L13: errors about a packet quote it, and the far host's kernel makes them.
#[test]
fn an_error_that_quotes_a_packet_comes_back_in_the_tunnel() {
    in_namespaces(
        "mishaps::an_error_that_quotes_a_packet_comes_back_in_the_tunnel",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            for (from, to) in [(CLIENT_4, SERVER_4), (CLIENT_6, SERVER_6)] {
                let from = SocketAddr::new(from.parse().unwrap(), 0);
                let to = SocketAddr::new(to.parse().unwrap(), PORT);
                let socket = in_namespace("client", || UdpSocket::bind(from).unwrap());
                socket.connect(to).unwrap();
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
                socket.send(MARKER).unwrap();
                let error = socket.recv(&mut [0; 64]).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}");
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// L14: what the kernel sends for connections whose application is silent or gone, with and without a daemon, with and
/// without conntrack's memory.
#[test]
fn what_the_kernel_sends_by_itself_is_in_the_tunnel_or_nowhere() {
    in_namespaces(
        "mishaps::what_the_kernel_sends_by_itself_is_in_the_tunnel_or_nowhere",
        |rig| {
            rig.standard(STRICT);
            let mut daemons = (rig.start("server"), rig.start("client"));
            let capture = Capture::start();
            let sent = |host| rig.status(host).unwrap()["books"]["datagrams"]["sent"].as_u64();
            for to in [SERVER_4, SERVER_6] {
                // probes of a connection that says nothing
                let quiet = connect_to(to, PORT);
                for end in [&quiet.0, &quiet.1] {
                    let every = Duration::from_secs(1);
                    let probes = TcpKeepalive::new().with_time(every).with_interval(every);
                    SockRef::from(end).set_tcp_keepalive(&probes).unwrap();
                }
                let before = ["client", "server"].map(sent);
                wait_for("probes", || {
                    ["client", "server"].map(sent) > before.map(|sent| Some(sent.unwrap() + 2))
                });
                // a reset for what nobody read
                let mut unread = connect_to(to, PORT + 10);
                exchange(&mut unread, Both);
                std::io::Write::write_all(&mut unread.0, MARKER).unwrap();
                wait_for("data that waits", || {
                    unread.1.peek(&mut [0; 8]).is_ok_and(|len| len == 8)
                });
                drop(unread.1);
                wait_for("the reset", || is_reset(&unread.0));
                // the last words of TIME_WAIT
                let (client, server) = connect_to(to, PORT + 11);
                drop(client);
                drop(server);
                // and of connections whose daemon is gone
                let orphans = [12, 13, 14, 15].map(|port| connect_to(to, PORT + port));
                daemons.0.kill_9();
                daemons.1.kill_9();
                let [orderly, abrupt, forgotten, forgotten_abrupt] = orphans;
                drop(orderly);
                abort(abrupt);
                for host in ["client", "server"] {
                    rig.on(host, &["conntrack", "-F"]);
                }
                drop(forgotten);
                abort(forgotten_abrupt);
                daemons = (rig.start("server"), rig.start("client"));
                let mut again = connect_to(to, PORT + 16);
                exchange(&mut again, Both);
                drop(quiet);
            }
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

fn is_reset(stream: &TcpStream) -> bool {
    stream
        .take_error()
        .unwrap()
        .is_some_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

/// Closes both ends with a reset.
fn abort(ends: (TcpStream, TcpStream)) {
    for end in [ends.0, ends.1] {
        SockRef::from(&end)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

/// L10: a host whose administrator has switched IPv6 off protects IPv4 as ever, and lets no IPv6 out when it comes back.
#[test]
fn a_host_without_ipv6_is_protected_and_stays_so_when_it_gets_some() {
    in_namespaces(
        "mishaps::a_host_without_ipv6_is_protected_and_stays_so_when_it_gets_some",
        |rig| {
            rig.standard(STRICT);
            let disable = |value: u8| {
                let of = |name: &str| format!("net.ipv6.conf.{name}.disable_ipv6={value}");
                rig.on("client", &["sysctl", "-qw", &of("all"), &of("default")]);
            };
            disable(1);
            let daemons = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let capture = Capture::start();
            let four = Blaster::start("client", [SERVER_4, SERVER_4], PORT);
            delivered(&echo);
            assert_eq!(rig.status("client").unwrap()["healthy"], true);
            four.stop();
            disable(0);
            rig.on("client", &["sh", "-ec", UP_AGAIN]);
            let both = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            wait_for("IPv6 in the tunnel", || {
                let moment = Duration::from_millis(300);
                udp_echo("client", (SERVER_6, PORT), b"well?", moment).is_ok()
            });
            both.offer(1_000);
            both.stop();
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}
