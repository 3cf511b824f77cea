//! What authenticated peers that mean ill cost the daemon's memory (steering.md D5).

use std::{fs, net::SocketAddr};

use identun::{identity::sni, spiffe::SpiffeId, wire::fragment};

use super::raw::Raw;
use crate::{
    foreign::credentials,
    forge::{UDP, fragments, ip, udp},
    mesh::{CLIENT_4, PORT, SERVER_4, STRICT, workload},
    peer::Credentials,
    rig::{Daemon, Rig, in_namespaces, wait_for},
};

/// What a peer may cost, in KiB.
const EACH: u64 = 2 * 1_024;

fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

/// `count` identities with an address each, all on the host `client`.
fn crowd(rig: &Rig, count: usize) -> Vec<(String, Credentials)> {
    let names: Vec<_> = (0..count).map(|n| format!("hostile-{n}")).collect();
    rig.standard(STRICT);
    let entries: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(n, name)| workload(name, &address(n), name, Some(CLIENT_4)))
        .collect();
    rig.write("policies/crowd.yaml", &entries.join("---\n"));
    let accounts: Vec<_> = names.iter().map(String::as_str).collect();
    rig.configure("client", &accounts, "");
    let credentials = names.iter().map(|name| credentials(rig, "client", name));
    names.iter().cloned().zip(credentials).collect()
}

fn address(n: usize) -> String {
    format!("10.1.{}.{}", n / 200, 1 + n % 200)
}

fn dial(credentials: &Credentials) -> Raw {
    let to = SocketAddr::new(SERVER_4.parse().unwrap(), 15_008);
    Raw::dial("client", to, &sni::server_name(&id("server")), credentials)
}

/// Memory of a process in KiB, by its name in `status`.
fn memory(daemon: &Daemon, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    let number = line.split_whitespace().nth(1).unwrap();
    number.parse().unwrap()
}

/// From here on the most memory is counted anew.
fn forget_most(daemon: &Daemon) -> u64 {
    fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
    memory(daemon, "VmHWM")
}

#[test]
fn datagrams_before_hello_are_held_for_nobody() {
    const PEERS: usize = 8;
    const DATAGRAMS: usize = 20_000;
    in_namespaces(
        "hostile::cost::datagrams_before_hello_are_held_for_nobody",
        |rig| {
            let crowd = crowd(&rig, PEERS);
            let server = rig.start("server");
            // What the first session costs is the daemon's own.
            dial(&crowd[0].1).greet(&id(&crowd[0].0), &id("server"));
            let before = forget_most(&server);
            for (name, credentials) in &crowd {
                let mut peer = dial(credentials);
                for n in 0..DATAGRAMS {
                    peer.datagram(b"x");
                    peer.flush(false);
                    if n % 1_000 == 0 {
                        // Not faster than the daemon reads.
                        assert!(!peer.is_closed(), "{name}");
                    }
                }
            }
            let grown = memory(&server, "VmHWM") - before;
            println!(
                "{PEERS} peers, {DATAGRAMS} datagrams each before HELLO: {grown} KiB more at most"
            );
            assert!(grown <= EACH, "{grown} KiB");
            drop(server);
        },
    );
}

#[test]
fn a_hundred_hostile_peers_cost_two_mebibytes_each_at_most() {
    const PEERS: usize = 100;
    in_namespaces(
        "hostile::cost::a_hundred_hostile_peers_cost_two_mebibytes_each_at_most",
        |rig| {
            let crowd = crowd(&rig, PEERS);
            let server = rig.start("server");
            dial(&crowd[0].1).greet(&id(&crowd[0].0), &id("server"));
            let before = forget_most(&server);
            let mut peers = Vec::new();
            for (n, (name, credentials)) in crowd.iter().enumerate() {
                let mut peer = dial(credentials);
                peer.greet(&id(name), &id("server"));
                assert_eq!(peer.open_more(), 0, "streams beyond the control stream");
                ill_will(&mut peer, &address(n));
                peers.push(peer);
            }
            let grown = memory(&server, "VmHWM") - before;
            let now = memory(&server, "VmRSS") - before;
            let each = grown / PEERS as u64;
            println!(
                "{PEERS} hostile peers: {grown} KiB more at most, {now} KiB now: {each} KiB each"
            );
            assert!(each <= EACH, "{each} KiB");
            drop(server);
        },
    );
}

#[test]
fn handshakes_that_stand_still_are_few_and_end() {
    const KNOCKS: usize = 3_000;
    /// All the daemon's: held at once are a thousand.
    const MOST: u64 = 64 * 1_024;
    in_namespaces(
        "hostile::cost::handshakes_that_stand_still_are_few_and_end",
        |rig| {
            let crowd = crowd(&rig, 1);
            let server = rig.start("server");
            let (name, own) = &crowd[0];
            dial(own).greet(&id(name), &id("server"));
            let before = forget_most(&server);
            let to = SocketAddr::new(SERVER_4.parse().unwrap(), 15_008);
            let server_name = sni::server_name(&id("server"));
            for _ in 0..KNOCKS {
                Raw::knock("client", to, &server_name, own);
            }
            let grown = memory(&server, "VmHWM") - before;
            println!("{KNOCKS} handshakes that stand still: {grown} KiB more at most");
            assert!(grown <= MOST, "{grown} KiB");
            // They end by themselves, and an honest peer gets in.
            let mut honest = None;
            wait_for("a session", || {
                honest = Raw::try_dial("client", to, &server_name, own);
                honest.is_some()
            });
            honest.unwrap().greet(&id(name), &id("server"));
            drop(server);
        },
    );
}

/// Flows that one peer may have open in a session; the setting `flows_by_peer`.
const FLOWS: u32 = 2_048;

#[test]
fn flows_of_a_peer_cost_two_mebibytes_however_many_it_opens() {
    const PEERS: usize = 9;
    in_namespaces(
        "hostile::cost::flows_of_a_peer_cost_two_mebibytes_however_many_it_opens",
        |rig| {
            let crowd = crowd(&rig, PEERS);
            let server = rig.start("server");
            let (mut peers, mut costs) = (Vec::new(), Vec::new());
            for (n, (name, credentials)) in crowd.iter().enumerate() {
                let mut peer = dial(credentials);
                peer.greet(&id(name), &id("server"));
                let all = FLOWS * u32::try_from(n + 1).unwrap();
                open_flows(&mut peer, &address(n), 0..8 * FLOWS);
                peer.until("as many flows as may be", |_| {
                    rig.status("server").unwrap()["flow_count"] == all
                });
                costs.push(memory(&server, "VmHWM"));
                peers.push(peer);
            }
            // What the first one costs is the daemon's own: buffers that all use.
            let each = (costs[PEERS - 1] - costs[0]) / (PEERS as u64 - 1);
            println!(
                "{} flows tried by each of {PEERS} peers: {each} KiB each; {costs:?}",
                8 * FLOWS
            );
            assert!(each <= EACH, "{each} KiB");
            let drops = &rig.status("server").unwrap()["drops"];
            assert!(drops.get("flow_table_full").is_none(), "{drops}");
            drop(server);
        },
    );
}

/// Opens a flow with each packet.
fn open_flows(peer: &mut Raw, own: &str, flows: std::ops::Range<u32>) {
    let (source, destination) = (own.parse().unwrap(), SERVER_4.parse().unwrap());
    for n in flows {
        let source_port = 1_024 + u16::try_from(n % 40_000).unwrap();
        let port = PORT + u16::try_from(n / 40_000).unwrap();
        let ends = [(source, source_port), (destination, port)];
        let [from, to] = ends.map(SocketAddr::from);
        let packet = ip(source, destination, UDP, 1, &udp(from, to, b"x"));
        peer.datagram(&[&[0, 0], &packet[..]].concat());
        if n % 20 == 0 {
            peer.flush(false);
        }
        if n % 2_000 == 0 {
            assert!(!peer.is_closed());
        }
    }
    peer.flush(false);
}

/// All that a peer may do to be remembered: a capsule that never ends, with gaps in its stream, first pieces and last ones
/// of packets in two kinds of fragments, datagrams by the thousand; and it never listens.
fn ill_will(peer: &mut Raw, own: &str) {
    // Type 0x7e, with a length of 16 KiB: one byte in each packet, every other packet lost.
    peer.write(&[0x40, 0x7e, 0x80, 0, 0x40, 0]);
    peer.flush(false);
    for n in 0..4_000 {
        peer.write(b"x");
        peer.flush(n % 2 == 0);
    }
    let (source, destination) = (own.parse().unwrap(), SERVER_4.parse().unwrap());
    let ends = [source, destination].map(|address| SocketAddr::new(address, PORT));
    let datagram = udp(ends[0], ends[1], &[7; 1_100]);
    for n in 0..1_000u16 {
        let [first, last] = fragments(source, destination, UDP, n, &datagram, 800)
            .try_into()
            .unwrap();
        let piece = if n % 2 == 0 { first } else { last };
        peer.datagram(&[&[0, 0], &piece[..]].concat());
        peer.datagram(&[&fragment::header(n, 0, 2), &[9; 1_000][..]].concat());
        peer.flush(false);
    }
}
