//! Names (steering.md L16): a resolver that policy wants in the tunnel is a destination like any other, for short answers
//! by UDP and for those that are cut and asked for again by TCP. Asked by the system's own resolver.

use std::{
    io::{Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use crate::{
    capture::Capture,
    mesh::{BULK_PORT, PORT, SERVER_4, SERVER_6, STRICT, registry, service},
    rig::{Rig, in_namespace, in_namespaces},
    traffic::control,
};

const DNS: u16 = 53;
/// Addresses that the long name has: some kilobytes, more than fits into any datagram.
const MANY: u16 = 200;

#[test]
fn what_a_resolver_in_the_mesh_is_asked_crosses_in_the_tunnel_or_not_at_all() {
    in_namespaces(
        "names::what_a_resolver_in_the_mesh_is_asked_crosses_in_the_tunnel_or_not_at_all",
        |rig| {
            rig.standard(STRICT);
            let registry = registry().replace(
                &service("server", &[PORT, BULK_PORT]),
                &service("server", &[PORT, DNS]),
            );
            assert!(registry.contains("number: 53"));
            rig.write("policies/registry.yaml", &registry);
            let (server, client) = (rig.start("server"), rig.start("client"));
            let resolver = Resolver::start();
            let capture = Capture::start();
            for address in [SERVER_4, SERVER_6] {
                ask_only(&rig, address);
                let (by_udp, by_tcp) = resolver.asked();
                assert_eq!(look_up(&rig, "short.test"), 1, "{address}");
                assert_eq!(look_up(&rig, "long.test"), usize::from(MANY), "{address}");
                let (udp, tcp) = resolver.asked();
                assert!(udp >= by_udp + 2 && tcp > by_tcp, "{udp} {tcp}");
            }
            let asked = resolver.asked();
            // the resolver itself listens on: what keeps names from it in plaintext is policy alone
            server.kill_9();
            for address in [SERVER_4, SERVER_6] {
                ask_only(&rig, address);
                assert_eq!(look_up(&rig, "short.test"), 0, "{address}");
            }
            client.kill_9();
            for address in [SERVER_4, SERVER_6] {
                ask_only(&rig, address);
                assert_eq!(look_up(&rig, "short.test"), 0, "{address}");
            }
            assert_eq!(resolver.asked(), asked);
            let daemons = (rig.start("server"), rig.start("client"));
            assert_eq!(look_up(&rig, "short.test"), 1);
            control("client");
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

/// The system's resolver asks `address`, once, and nobody else. The mount ends with the test.
fn ask_only(rig: &Rig, address: &str) {
    let text = format!("nameserver {address}\noptions timeout:1 attempts:1\n");
    let file = rig.write("resolv.conf", &text);
    let is_mounted = || std::fs::read_to_string("/etc/resolv.conf").is_ok_and(|now| now == text);
    if !is_mounted() {
        let mut mount = Command::new("mount");
        mount.args(["--bind", &file, "/etc/resolv.conf"]);
        assert!(mount.status().unwrap().success() && is_mounted());
    }
}

/// How many addresses the name has, as an application on the client is told.
fn look_up(rig: &Rig, name: &str) -> usize {
    let output = rig.try_on("client", &["getent", "ahostsv4", name]);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| line.contains("STREAM")).count()
}

/// A name server that knows `short.test` and, by TCP only, `long.test`.
struct Resolver {
    by_udp: Arc<AtomicU64>,
    by_tcp: Arc<AtomicU64>,
}

impl Resolver {
    fn start() -> Self {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, DNS));
        let (udp, tcp) = in_namespace("server", || {
            (
                UdpSocket::bind(any).unwrap(),
                TcpListener::bind(any).unwrap(),
            )
        });
        let (by_udp, by_tcp) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let count = Arc::clone(&by_udp);
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((len, from)) = udp.recv_from(&mut query) {
                count.fetch_add(1, Relaxed);
                let _ = udp.send_to(&answer(&query[..len], 1), from);
            }
        });
        let count = Arc::clone(&by_tcp);
        thread::spawn(move || {
            for mut stream in tcp.incoming().map_while(Result::ok) {
                let mut len = [0; 2];
                if stream.read_exact(&mut len).is_err() {
                    continue;
                }
                let mut query = vec![0; usize::from(u16::from_be_bytes(len))];
                if stream.read_exact(&mut query).is_err() {
                    continue;
                }
                count.fetch_add(1, Relaxed);
                let answer = answer(&query, MANY);
                let len = u16::try_from(answer.len()).unwrap().to_be_bytes();
                let _ = stream.write_all(&[&len, &answer[..]].concat());
            }
        });
        Self { by_udp, by_tcp }
    }

    /// Questions by UDP and by TCP.
    fn asked(&self) -> (u64, u64) {
        (self.by_udp.load(Relaxed), self.by_tcp.load(Relaxed))
    }
}

/// The answer to a question (RFC 1035 §4): one address for `short`; for another name `room` of [`MANY`], cut when that is
/// too few.
fn answer(query: &[u8], room: u16) -> Vec<u8> {
    const RESPONSE: u16 = 0x8180;
    const TRUNCATED: u16 = 0x0200;
    let name = 12 + query[12..].iter().position(|byte| *byte == 0).unwrap();
    let is_short = query[13..].starts_with(b"short");
    let (count, flags) = match (is_short, room) {
        (true, _) => (1, RESPONSE),
        (false, MANY) => (MANY, RESPONSE),
        (false, _) => (0, RESPONSE | TRUNCATED),
    };
    let mut answer = query[..2].to_vec();
    for field in [flags, 1, count, 0, 0] {
        answer.extend(field.to_be_bytes());
    }
    answer.extend(&query[12..=name + 4]);
    for index in 0..count {
        // the name above, A, IN, a minute, four bytes
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18]);
        answer.extend((0x0900 + index).to_be_bytes());
    }
    answer
}
