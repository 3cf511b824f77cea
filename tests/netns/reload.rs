//! Policy that changes while daemons run: by a change of the files alone, all or nothing.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    capture::{Capture, MARKER, force_buffer},
    mesh::{PORT, SERVER_4, SERVER_6, STRICT, permissive, service, workload},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, spawn_in, wait_for},
    traffic::{Echo, control, tcp_echo},
};

/// The number of the configuration that is in force.
pub(crate) fn generation(rig: &Rig, host: &str) -> u64 {
    rig.status(host).unwrap()["generation"].as_u64().unwrap()
}

/// The kernel's rules, without counters and without what the packet path has put into sets.
fn rules(rig: &Rig, host: &str) -> String {
    let table = rig.on(host, &["nft", "-s", "list", "table", "inet", "identun"]);
    let mut skipping = false;
    let mut lines = Vec::new();
    for line in table.lines() {
        let of_packets = ["own4", "own6", "tf4", "tf6"].map(|set| format!("\tset {set} {{"));
        skipping |= of_packets.iter().any(|set| set == line);
        if !skipping {
            lines.push(line);
        }
        skipping &= line != "\t}";
    }
    lines.join("\n")
}

#[test]
fn a_changed_file_is_enforced_without_a_signal() {
    in_namespaces(
        "reload::a_changed_file_is_enforced_without_a_signal",
        |rig| {
            rig.standard(&permissive());
            let _server = rig.start("server");
            let _echo = Echo::start("server", PORT);
            let all = [SERVER_4, SERVER_6];
            for to in all {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
            }
            // in place, as an editor does it, and as another file
            let policy = rig.path("policies/policy.yaml");
            rig.write("policies/policy.yaml", STRICT);
            wait_for("STRICT", || generation(&rig, "server") == 2);
            for to in all {
                let refused = tcp_echo("naked", (to, PORT), PATIENCE);
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
            }
            fs::rename(rig.write("policies/.policy.swp", &permissive()), &policy).unwrap();
            wait_for("PERMISSIVE", || generation(&rig, "server") == 3);
            for to in all {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
            }
        },
    );
}

#[test]
fn an_invalid_file_changes_nothing_and_is_told_once() {
    in_namespaces(
        "reload::an_invalid_file_changes_nothing_and_is_told_once",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let mut ends = crate::life::connect(SERVER_4);
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            let rules = rules(&rig, "client");
            let refused = || {
                let status = rig.status("client").unwrap();
                (status["config_valid"] == false).then(|| status["config_error"].to_string())
            };
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTICT"));
            wait_for("the refusal", || refused().is_some());
            assert!(refused().unwrap().contains("SRTICT"), "{:?}", refused());
            assert_eq!(generation(&rig, "client"), 1);
            let status = rig.status("client").unwrap();
            assert_eq!(status["healthy"], false);
            // The same text again, and a file that has nothing to do with it: nothing is said twice.
            let told = || rig.log("client").matches("reload refused").count();
            assert_eq!(told(), 1);
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTICT"));
            rig.write("policies/notes.txt", "nobody's");
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            assert_eq!(self::rules(&rig, "client"), rules);
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTIKT"));
            wait_for("another refusal", || {
                refused().is_some_and(|why| why.contains("SRTIKT"))
            });
            assert_eq!(told(), 2);
            rig.write("policies/policy.yaml", STRICT);
            wait_for("the correction", || refused().is_none());
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            drop(daemons);
        },
    );
}

/// Sends numbered datagrams to the server, a thousand a second, until told to stop. Returns how many.
fn numbered(stop: Arc<AtomicBool>) -> thread::JoinHandle<u64> {
    spawn_in("client", move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.connect((SERVER_4, PORT)).unwrap();
        let started = Instant::now();
        let mut count: u64 = 0;
        while !stop.load(Ordering::Relaxed) {
            let packet = [&count.to_be_bytes(), MARKER].concat();
            assert_eq!(socket.send(&packet).unwrap(), packet.len());
            count += 1;
            let due = started + Duration::from_millis(count);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        count
    })
}

/// Takes numbered datagrams at the server; the number is that of different ones so far.
fn receive() -> Arc<AtomicU64> {
    let to: SocketAddr = (SERVER_4.parse::<Ipv4Addr>().unwrap(), PORT).into();
    let sink = in_namespace("server", || UdpSocket::bind(to).unwrap());
    force_buffer(&sink, 64 << 20);
    let heard = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&heard);
    thread::spawn(move || {
        let (mut numbers, mut buffer) = (BTreeSet::new(), [0; 64]);
        while let Ok(8..) = sink.recv(&mut buffer) {
            numbers.insert(u64::from_be_bytes(buffer[..8].try_into().unwrap()));
            count.store(numbers.len() as u64, Ordering::Relaxed);
        }
    });
    heard
}

#[test]
fn sixty_reloads_lose_no_packet_of_others_and_let_none_out() {
    in_namespaces(
        "reload::sixty_reloads_lose_no_packet_of_others_and_let_none_out",
        |rig| {
            rig.standard(STRICT);
            let daemons = [
                ("server", rig.start("server")),
                ("client", rig.start("client")),
            ];
            let heard = receive();
            let stop = Arc::new(AtomicBool::new(false));
            let capture = Capture::start();
            let sender = numbered(Arc::clone(&stop));
            wait_for("the tunnel", || heard.load(Ordering::Relaxed) > 100);
            // The others: what a server takes from outside, and a workload that comes and goes.
            let other = [
                workload("other", "198.18.4.2", "other", None),
                service("other", &[PORT]),
            ]
            .join("---\n");
            for round in 0..60 {
                let (policy, registry) = match round % 2 {
                    0 => (permissive(), other.as_str()),
                    _ => (STRICT.to_owned(), ""),
                };
                rig.write("policies/policy.yaml", &policy);
                rig.write("policies/other.yaml", registry);
                for (host, daemon) in &daemons {
                    let before = generation(&rig, host);
                    daemon.reload();
                    wait_for("the reload", || generation(&rig, host) > before);
                }
            }
            stop.store(true, Ordering::Relaxed);
            let sent = sender.join().unwrap();
            wait_for("every packet", || heard.load(Ordering::Relaxed) == sent);
            control("client");
            capture.stop().assert_no_plaintext();
            println!("60 reloads, {sent} numbered packets, 0 lost");
            drop(daemons);
        },
    );
}
