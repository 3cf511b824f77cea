//! Everything at once: whatever happens to two hosts, nothing leaks, no byte is wrong, and they get up again.

#[path = "chaos/faults.rs"]
mod faults;
#[path = "chaos/traffic.rs"]
mod traffic;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    capture::Capture,
    manager::{Manager, unit_setting},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT, service, workload},
    rig::{PATIENCE, Rig, in_namespaces, wait_for},
    streams::{Connection, Use},
    traffic::{Blaster, Echo, control, tcp_echo, udp_echo},
};
use faults::{ALL, Fault};
use traffic::{Calls, Datagrams};

/// How long it goes on unless `IDENTUN_CHAOS_SECONDS` says otherwise, and which chances are taken.
const DEFAULT_SECONDS: u64 = 20;
const DEFAULT_SEED: u64 = 1;
/// Where blasters aim; nobody listens there.
const BLASTED: u16 = 8_081;
/// Memory that a daemon may have more of at the end than at the beginning, KiB: where daemons die and start again, and
/// where each lives from the first second to the last.
const GROWTH: u64 = 16 * 1024;
const GROWTH_OF_A_LIFE: u64 = 6 * 1024;
/// Memory that no daemon ever has more of, KiB: that of one without work, the flows of this storm, and full queues.
const MOST: u64 = 96 * 1024;

/// Numbers that look like chance (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Two hosts with a service manager each, whose workloads have addresses of their own on the loopback: those stay whatever
/// becomes of the link.
struct Chaos {
    rig: Rig,
    managers: [Manager; 2],
    chance: Chance,
    /// What may happen.
    faults: Vec<Fault>,
    happened: BTreeMap<(Fault, usize), u64>,
    /// Memory in KiB and descriptors of each daemon, whenever both were well.
    sizes: [Vec<(u64, u64)>; 2],
}

impl Chaos {
    const HOSTS: [&str; 2] = ["client", "server"];
    const WORKLOADS: [[&str; 2]; 2] = [
        ["198.18.101.2", "fd00:101::2"],
        ["198.18.102.2", "fd00:102::2"],
    ];

    fn up(rig: Rig, seed: u64) -> Self {
        rig.standard(STRICT);
        let [client, server] = Self::WORKLOADS;
        let registry = [
            workload("client-4", client[0], "client", Some(CLIENT_4)),
            workload("client-6", client[1], "client", Some(CLIENT_6)),
            workload("server-4", server[0], "server", Some(SERVER_4)),
            workload("server-6", server[1], "server", Some(SERVER_6)),
            service("client", &[PORT, BLASTED]),
            service("server", &[PORT, BLASTED]),
        ];
        rig.write("policies/registry.yaml", &registry.join("---\n"));
        let restart = unit_setting("RestartSec");
        let managers = Self::HOSTS.map(|host| Manager::new(&rig, host, restart));
        let chaos = Self {
            rig,
            managers,
            chance: Chance(seed),
            faults: ALL
                .into_iter()
                .filter(|fault| !is_life() || !fault.ends_a_daemon())
                .collect(),
            happened: BTreeMap::new(),
            sizes: [Vec::new(), Vec::new()],
        };
        for host in 0..2 {
            let name = Self::HOSTS[host];
            let [four, six] = Self::WORKLOADS[host];
            let script = format!(
                "sysctl -qw net.ipv4.conf.all.promote_secondaries=1 net.ipv4.conf.eth0.promote_secondaries=1\n\
                 ip addr add {four}/32 dev lo; ip -6 addr add {six}/128 dev lo nodad"
            );
            chaos.rig.on(name, &["sh", "-ec", &script]);
            chaos.connect_host(host, 2);
            chaos.connect_wire(host);
        }
        chaos
    }

    /// Everything on a host that a daemon could leave behind.
    fn state(&self, host: usize) -> String {
        let name = Self::HOSTS[host];
        let rig = &self.rig;
        // what counts or is drawn by lot is nobody's setting
        let sysctls = "sysctl -a 2>/dev/null | grep ^net | grep -v 'nf_conntrack_count\\|fastopen_key\\|stable_secret'";
        [rig.host_state(name), rig.on(name, &["sh", "-c", sysctls])].concat()
    }

    /// Waits until both daemons say that they are well, packets of both families go both ways, and the books are even.
    fn recover(&mut self) {
        for name in Self::HOSTS {
            self.wait_for(&format!("{name}'s daemon to be well"), || {
                self.rig
                    .status(name)
                    .is_some_and(|status| status["healthy"] == true)
            });
        }
        for host in 0..2 {
            for to in Self::WORKLOADS[1 - host] {
                let moment = Duration::from_millis(300);
                self.wait_for(&format!("a datagram to {to} and back"), || {
                    udp_echo(Self::HOSTS[host], (to, PORT), b"well?", moment).is_ok()
                });
            }
        }
        for host in 0..2 {
            let status = self.rig.status(Self::HOSTS[host]).unwrap();
            assert_even(Self::HOSTS[host], &status);
            self.sizes[host].push(size(&status));
        }
    }

    /// Waits for something that must come; when it does not, tells all that is known of why.
    fn wait_for(&self, what: &str, mut happened: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !happened() {
            if begin.elapsed() > PATIENCE {
                for host in Self::HOSTS {
                    let log = self.rig.log(host);
                    let lines: Vec<_> = log.lines().collect();
                    println!("{host}:\n{}", self.rig.host_state(host));
                    println!("{}", lines[lines.len().saturating_sub(40)..].join("\n"));
                    println!("{:#}", self.rig.status(host).unwrap_or_default());
                }
                panic!("waited in vain for {what}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tell_counts(&self) {
        println!("what happened          client  server");
        for &fault in &self.faults {
            let count = |host| self.happened.get(&(fault, host)).copied().unwrap_or(0);
            println!("{:22} {:6}  {:6}", format!("{fault:?}"), count(0), count(1));
        }
    }

    /// What the daemons said of what went wrong.
    fn tell_errors(&self) {
        for host in Self::HOSTS {
            let log = self.rig.log(host);
            let lines = log
                .lines()
                .filter(|line| line.to_lowercase().contains("error"));
            lines.for_each(|line| println!("{host}: {line}"));
        }
    }

    fn count(&self, fault: Fault) -> u64 {
        let both = [0, 1].map(|host| self.happened.get(&(fault, host)).copied());
        both.into_iter().flatten().sum()
    }
}

/// Packets from the device: carried, dropped or waiting, and nothing else.
fn assert_even(host: &str, status: &Value) {
    let of = |page: &str, name: &str| status["books"][page][name].as_u64().unwrap();
    let frames = |name| of("frames", name);
    let datagrams = |name| of("datagrams", name);
    assert_eq!(
        frames("read"),
        frames("carried") + frames("dropped") + frames("waiting"),
        "{host}: {}",
        status["books"]
    );
    assert_eq!(
        datagrams("queued"),
        datagrams("sent") + datagrams("dropped") + datagrams("waiting"),
        "{host}: {}",
        status["books"]
    );
}

/// Resident memory in KiB and descriptors of the daemon that gave this status.
fn size(status: &Value) -> (u64, u64) {
    let pid = status["pid"].as_u64().unwrap();
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let rss = line.and_then(|line| line.split_whitespace().next());
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    (rss.map_or(0, |rss| rss.parse().unwrap()), fds as u64)
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Nothing happens that ends a daemon: what one life keeps shows only in a long one.
fn is_life() -> bool {
    setting("IDENTUN_CHAOS_LIFE", 0) > 0
}

#[test]
fn whatever_happens_nothing_leaks_and_no_byte_is_wrong() {
    in_namespaces(
        "chaos::whatever_happens_nothing_leaks_and_no_byte_is_wrong",
        |rig| {
            let seconds = setting("IDENTUN_CHAOS_SECONDS", DEFAULT_SECONDS);
            let seed = setting("IDENTUN_CHAOS_SEED", DEFAULT_SEED);
            let kind = if is_life() { ", and nobody dies" } else { "" };
            println!("chaos for {seconds} s, seed {seed}{kind}");
            let mut chaos = Chaos::up(rig, seed);
            let before = [0, 1].map(|host| chaos.state(host));
            chaos.managers.iter_mut().for_each(Manager::start);
            let _echoes = [Echo::start("server", PORT), Echo::start("client", PORT)];
            chaos.recover();
            let running = [0, 1].map(|host| chaos.rig.host_state(Chaos::HOSTS[host]));

            storm(&mut chaos, Duration::from_secs(seconds));

            chaos.tell_counts();
            accounts_with_the_kernel(&chaos);
            chaos.rig.write("policies/policy.yaml", STRICT);
            for (name, running) in Chaos::HOSTS.into_iter().zip(&running) {
                let socket = chaos.rig.path(&format!("{name}/admin.sock"));
                chaos.rig.identun(name, &["reload", "--socket", &socket]);
                chaos.wait_for("all that was installed, and no more", || {
                    without_counts(&chaos.rig.host_state(name)) == without_counts(running)
                });
                let log = chaos.rig.log(name);
                assert!(!log.contains("panicked"), "{name}: {log}");
            }
            assert_flat(&chaos);
            let deaths: u64 = chaos.managers.iter_mut().map(Manager::deaths).sum();
            let caused = chaos.count(Fault::Killed) + chaos.count(Fault::TunDeleted);
            println!("daemons died {deaths} times, {caused} times by us");
            if deaths > caused {
                chaos.tell_errors();
                panic!("daemons die by themselves");
            }
            for (host, before) in before.iter().enumerate() {
                let name = Chaos::HOSTS[host];
                let settings = chaos.rig.settings(name);
                chaos.rig.identun(name, &["down", "--config", &settings]);
                assert_eq!(chaos.state(host), *before, "{name} is not as it was");
            }
        },
    );
}

/// Traffic of all kinds, under one fault after the other.
fn storm(chaos: &mut Chaos, time: Duration) {
    let clock = Instant::now();
    let [client, server] = Chaos::WORKLOADS;
    let connections = [
        Connection::open("upload v4", server[0], Use::Upload, clock),
        Connection::open("upload v6", server[1], Use::Upload, clock),
        Connection::open("download v4", server[0], Use::Download, clock),
        Connection::open("download v6", server[1], Use::Download, clock),
        Connection::open("idle v4", server[0], Use::Idle, clock),
        Connection::open("idle v6", server[1], Use::Idle, clock),
    ];
    let datagrams = [
        Datagrams::start("client", "server", server[0]),
        Datagrams::start("client", "server", server[1]),
        Datagrams::start("server", "client", client[0]),
        Datagrams::start("server", "client", client[1]),
    ];
    let calls = [Calls::start(server[0]), Calls::start(server[1])];
    let blasters = [
        Blaster::start("client", server, BLASTED),
        Blaster::start("server", client, BLASTED),
    ];
    let mut deck = Vec::new();
    let mut capture = Capture::start();
    let (mut tunnel, mut controls, mut recoveries) = (0, 0, 0_u64);
    while clock.elapsed() < time || !deck.is_empty() && recoveries == 0 {
        if deck.is_empty() {
            // the next capture begins before this one ends
            let next = Capture::start();
            let seen = std::mem::replace(&mut capture, next).stop();
            if recoveries > 0 {
                seen.assert_no_plaintext();
            }
            (tunnel, controls) = (tunnel + seen.tunnel, controls + seen.control);
            let faults = chaos.faults.iter().copied();
            deck = faults.flat_map(|fault| [(fault, 0), (fault, 1)]).collect();
            chaos.chance.shuffle(&mut deck);
        }
        let Some((fault, host)) = deck.pop() else {
            continue;
        };
        let begin = clock.elapsed();
        let happened = chaos.strike(fault, host);
        let name = Chaos::HOSTS[host];
        let not = if happened { "" } else { " (did not happen)" };
        println!("{:7.2} s {fault:?} {name}{not}", begin.as_secs_f64());
        *chaos.happened.entry((fault, host)).or_default() += u64::from(happened);
        // every third time the next one comes before they got up from this one
        if chaos.chance.below(3) > 0 || deck.is_empty() {
            chaos.recover();
            control("client");
            recoveries += 1;
        }
    }
    chaos.recover();
    control("client");
    for connection in connections {
        let (longest, name) = (connection.take_longest(), connection.name);
        let arrived = connection.arrived();
        connection.stop();
        println!(
            "{name:12} {arrived:>11} bytes, longest wait {:.1} s",
            longest.as_secs_f64()
        );
    }
    for calls in calls {
        calls.stop();
    }
    for datagrams in datagrams {
        datagrams.stop();
    }
    let offered: u64 = blasters.iter().map(Blaster::offered).sum();
    blasters.into_iter().for_each(Blaster::stop);
    let seen = capture.stop();
    seen.assert_no_plaintext();
    println!(
        "{offered} must packets beside them; wire: {} tunnel, {} control, 0 other packets; {recoveries} recoveries",
        tunnel + seen.tunnel,
        controls + seen.control
    );
}

/// With nothing else going on, the kernel and the daemon count the same packets.
fn accounts_with_the_kernel(chaos: &Chaos) {
    let read = || {
        Chaos::HOSTS.map(|host| {
            let kernel = chaos.rig.on(
                host,
                &["cat", "/sys/class/net/identun0/statistics/tx_packets"],
            );
            let status = chaos.rig.status(host).unwrap();
            let own = status["books"]["frames"]["read"].as_u64().unwrap();
            let waiting = status["books"]["frames"]["waiting"].as_u64().unwrap();
            (kernel.trim().parse::<u64>().unwrap(), own, waiting)
        })
    };
    let quiet = || {
        let mut last = read();
        wait_for("silence", || {
            let now = read();
            let is_silent = now == last && now.iter().all(|host| host.2 == 0);
            last = now;
            is_silent
        });
        last
    };
    let first = quiet();
    for _ in 0..200 {
        for to in Chaos::WORKLOADS[1] {
            tcp_echo("client", (to, PORT), PATIENCE).unwrap();
        }
    }
    let last = quiet();
    for (host, (first, last)) in first.into_iter().zip(last).enumerate() {
        let (kernel, own) = (last.0 - first.0, last.1 - first.1);
        println!(
            "{}: the kernel gave {kernel} packets, {own} were counted",
            Chaos::HOSTS[host]
        );
        assert!(kernel >= 1_000);
        assert_eq!(kernel, own);
    }
}

/// Memory and descriptors stay what they are. Where daemons die, what they have in the middle of the last third is about
/// what they had in the middle of the first; where they live on, the least of the last third is about the least of the
/// second, in which the flow table is full. What queues and flows take for a while is bounded all the time.
fn assert_flat(chaos: &Chaos) {
    for (name, sizes) in Chaos::HOSTS.into_iter().zip(&chaos.sizes) {
        let thirds: Vec<_> = sizes.chunks(sizes.len().div_ceil(3)).map(look).collect();
        for (when, third) in ["first", "second", "last"].into_iter().zip(&thirds) {
            let [least, median, most] = third.memory.map(|kibibytes| kibibytes as f64 / 1_024.0);
            println!(
                "{name}, {when} third: {least:.1} MiB at least, {median:.1} usually, {most:.1} at most; {} descriptors",
                third.descriptors
            );
        }
        let (first, last) = (&thirds[0], &thirds[thirds.len() - 1]);
        if is_life() {
            let full = &thirds[thirds.len() / 2];
            let bound = full.memory[0] + GROWTH_OF_A_LIFE;
            assert!(last.memory[0] <= bound, "{name} grows: {sizes:?}");
        }
        let bound = first.memory[1] + GROWTH;
        assert!(
            is_life() || last.memory[1] <= bound,
            "{name} grows: {sizes:?}"
        );
        let is_bounded = thirds.iter().all(|third| third.memory[2] <= MOST);
        assert!(is_bounded, "{name} has too much: {sizes:?}");
        // a question or two at a time are under way in any of them
        assert!(
            last.descriptors <= first.descriptors + 4,
            "{name} keeps descriptors: {sizes:?}"
        );
    }
}

/// What a part of the samples has.
struct Third {
    /// KiB: the least, the median, the most.
    memory: [u64; 3],
    descriptors: u64,
}

fn look(part: &[(u64, u64)]) -> Third {
    let mut memory: Vec<_> = part.iter().map(|size| size.0).collect();
    memory.sort_unstable();
    let descriptors = part.iter().map(|size| size.1).max().unwrap();
    Third {
        memory: [
            memory[0],
            memory[memory.len() / 2],
            memory[memory.len() - 1],
        ],
        descriptors,
    }
}

/// A host's state without what counts, and without the numbers of devices that were made again.
fn without_counts(state: &str) -> String {
    let lines = state.lines().filter(|line| {
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
        !line.contains("packets ") && !line.contains("expires ")
    });
    let lines = lines.map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':'));
    let mut lines: Vec<_> = lines.collect();
    // routes that were made again stand in another order
    lines.sort_unstable();
    lines.join("\n")
}
