//! Ring 2: workloads of one host that want what belongs to another of them, and a daemon that lies for them (steering.md
//! S9). A table of who wants what; nothing of it is delivered, each case beside an honest packet that is.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    dead_code,
    reason = "the simulation serves other tests too, and not all of it is needed here"
)]

#[path = "sim/host.rs"]
mod host;
#[path = "sim/world.rs"]
mod world;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use identun::tunnel::TunnelState;
use smoltcp::iface::SocketHandle;
use world::{World, id};

/// The host whose workloads mean ill: `one`, `two` and `three`.
const CROWD: usize = 0;
/// The hosts of `p` and `q`, and of `r`.
const SERVERS: [usize; 2] = [1, 2];
const ONE: &str = "10.0.0.1";
const TWO: &str = "10.0.0.2";
const THREE: &str = "10.0.0.3";
const P: &str = "10.0.1.1";
const Q: &str = "10.0.1.2";
const R: &str = "10.0.2.1";
const NOBODY: &str = "10.9.9.9";
const PORT: u16 = 8_080;
const OTHER_PORT: u16 = 9_090;

const GATEWAYS: [&str; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.3"];
/// Who has which address, and on which host.
const WORKLOADS: [(&str, &str, usize); 6] = [
    ("one", ONE, 0),
    ("two", TWO, 0),
    ("three", THREE, 0),
    ("p", P, 1),
    ("q", Q, 1),
    ("r", R, 2),
];
/// Who may call whom, on `PORT` alone.
const RIGHTS: [(&str, &str); 4] = [("one", "p"), ("two", "q"), ("p", "r"), ("r", "p")];

const STRICT: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: { name: default, namespace: istio-system }
spec: { host: "*.local", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }
"#;

/// The mesh as `workloads` tell it: account, address, host.
fn mesh(workloads: &[(&str, &str, usize)]) -> String {
    let mut text = STRICT.to_owned();
    let mut accounts = BTreeMap::new();
    for (number, (account, address, host)) in workloads.iter().enumerate() {
        accounts.insert(*account, ());
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: w{number}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n",
            gateway = GATEWAYS[*host],
        );
    }
    for account in accounts.keys() {
        let callers = RIGHTS.iter().filter(|(_, to)| to == account);
        let callers: Vec<_> = callers
            .map(|(from, _)| format!("\"cluster.local/ns/default/sa/{from}\""))
            .collect();
        let rules = if callers.is_empty() {
            "{}".to_owned()
        } else {
            format!(
                "{{ selector: {{ matchLabels: {{ app: {account} }} }}, action: ALLOW, rules: [{{ from: [{{ source: {{ principals: \
                 [{}] }} }}], to: [{{ operation: {{ ports: [\"{PORT}\"] }} }}] }}] }}",
                callers.join(", ")
            )
        };
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}, {{ number: {OTHER_PORT}, name: tcp-2, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        );
        if !callers.is_empty() {
            text += &format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {account} }}\nspec: {rules}\n"
            );
        }
    }
    text
}

/// Which registry the crowd's daemon reads.
#[derive(Clone, Copy, PartialEq)]
enum Daemon {
    /// That of everybody.
    Honest,
    /// One in which `two` owns this address as well.
    Source(&'static str),
    /// One in which `q` answers at this address, on its host.
    Destination(&'static str),
    /// One in which this identity, whose key the host does not have, has this address here.
    Identity(&'static str, &'static str),
}

impl Daemon {
    fn registry(self) -> String {
        let mut workloads = WORKLOADS.to_vec();
        let mut claim = |account, address, host| {
            workloads.retain(|(_, other, _)| *other != address);
            workloads.push((account, address, host));
        };
        match self {
            Self::Honest => {}
            Self::Source(address) => claim("two", address, CROWD),
            Self::Destination(address) => claim("q", address, SERVERS[0]),
            Self::Identity(account, address) => claim(account, address, CROWD),
        }
        mesh(&workloads)
    }
}

/// One attempt.
struct Case {
    who: &'static str,
    wants: String,
    daemon: Daemon,
    from: (&'static str, u16),
    to: (&'static str, u16),
}

impl Case {
    fn new(
        who: &'static str,
        wants: impl Into<String>,
        daemon: Daemon,
        from: (&'static str, u16),
        to: (&'static str, u16),
    ) -> Self {
        Self {
            who,
            wants: wants.into(),
            daemon,
            from,
            to,
        }
    }
}

/// Every workload asks for every service that it has no right to, on both ports, as itself.
fn rights_of_others() -> Vec<Case> {
    let mut cases = Vec::new();
    for (who, own, _) in &WORKLOADS[..3] {
        for (whom, address, _) in &WORKLOADS[3..] {
            for port in [PORT, OTHER_PORT] {
                if port == PORT && RIGHTS.contains(&(*who, *whom)) {
                    continue;
                }
                let wants = format!("to call {whom}:{port}, as itself");
                let from = (*own, 4_000);
                cases.push(Case::new(who, wants, Daemon::Honest, from, (address, port)));
            }
        }
    }
    cases
}

/// Sources of other hosts and of nobody, under an honest daemon.
fn sources_of_others() -> Vec<Case> {
    let mut cases = Vec::new();
    for source in [P, Q, R, NOBODY] {
        for destination in [P, Q, R].into_iter().filter(|other| *other != source) {
            let wants = format!("to send from {source} to {destination}");
            let (from, to) = ((source, 4_000), (destination, PORT));
            cases.push(Case::new("anybody", wants, Daemon::Honest, from, to));
        }
    }
    cases
}

/// The same, where the daemon lies for `two`: through its own tunnel to `q`, and as somebody else.
fn lies() -> Vec<Case> {
    let mut cases = Vec::new();
    for source in [ONE, THREE, P, R, NOBODY] {
        let wants = format!("its tunnel to take {source} for its own");
        let daemon = Daemon::Source(source);
        cases.push(Case::new("two", wants, daemon, (source, 4_000), (Q, PORT)));
        // What looks like the reply of a flow that q opened to that address.
        let wants = format!("to answer q for {source}");
        cases.push(Case::new("two", wants, daemon, (source, PORT), (Q, 4_000)));
    }
    for destination in [P, R, NOBODY] {
        for port in [PORT, OTHER_PORT] {
            let wants = format!("{destination}:{port} through its tunnel to q");
            let (daemon, from) = (Daemon::Destination(destination), (TWO, 4_000));
            cases.push(Case::new("two", wants, daemon, from, (destination, port)));
        }
    }
    for (account, destination) in [("p", R), ("r", P)] {
        let wants = format!("to be {account}, whose key is on another host");
        let daemon = Daemon::Identity(account, THREE);
        let to = (destination, PORT);
        cases.push(Case::new("three", wants, daemon, (THREE, 4_000), to));
    }
    cases
}

/// A UDP packet without a checksum, which IPv4 allows.
fn datagram(from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let total = (20 + len).to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 17, 0, 0];
    for address in [from.0, to.0] {
        packet.extend(address.parse::<Ipv4Addr>().unwrap().octets());
    }
    let words = packet
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for field in [from.1, to.1, len, 0] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// The three hosts, and applications that take datagrams on every port that is asked for.
struct Scene {
    world: World,
    listeners: Vec<(usize, SocketHandle)>,
}

impl Scene {
    fn new(daemon: Daemon) -> Self {
        let mut world = World::new(&mesh(&WORKLOADS), 7);
        for (host, gateway) in GATEWAYS.iter().enumerate() {
            let own = WORKLOADS.iter().filter(|(.., on)| *on == host);
            let (accounts, addresses): (Vec<_>, Vec<_>) = own
                .map(|(account, address, _)| (*account, *address))
                .unzip();
            world.add(&accounts, gateway, &addresses);
        }
        if daemon != Daemon::Honest {
            world.configure(CROWD, &daemon.registry(), 2);
        }
        let mut listeners = Vec::new();
        for host in SERVERS {
            for port in [PORT, OTHER_PORT, 4_000] {
                listeners.push((host, world.nodes[host].stack.bind_udp(port)));
            }
        }
        Self { world, listeners }
    }

    /// Sends a packet until its tunnel, if it gets any, must be up; returns how many came anywhere.
    fn send(&mut self, from: (&str, u16), to: (&str, u16)) -> usize {
        for _ in 0..3 {
            self.world.inject(CROWD, &datagram(from, to, b"mine"));
            self.world.run_for(Duration::from_millis(300));
        }
        let mut heard = 0;
        for (host, listener) in &self.listeners {
            let socket = self.world.nodes[*host].stack.udp(*listener);
            while socket.recv().is_ok() {
                heard += 1;
            }
        }
        heard
    }

    /// Why packets were dropped, and where.
    fn drops(&mut self) -> String {
        let mut text = Vec::new();
        for (host, name) in [
            (CROWD, "here"),
            (SERVERS[0], "there"),
            (SERVERS[1], "there"),
        ] {
            let drops = self.world.nodes[host].shard.snapshot().drops;
            let reasons = drops.iter().filter(|(_, count)| **count > 0);
            text.extend(reasons.map(|(reason, _)| format!("{} {name}", reason.as_str())));
        }
        text.join(", ")
    }
}

#[test]
fn no_workload_gets_what_belongs_to_another_one() {
    let cases = [rights_of_others(), sources_of_others(), lies()];
    let cases: Vec<_> = cases.into_iter().flatten().collect();
    for case in &cases {
        let mut scene = Scene::new(case.daemon);
        let passed = scene.send(case.from, case.to);
        let drops = scene.drops();
        println!("{:<8} wants {:<48} {drops}", case.who, case.wants);
        assert_eq!(passed, 0, "{} got {}", case.who, case.wants);
        assert!(
            !drops.is_empty(),
            "{} {}: lost for no reason",
            case.who,
            case.wants
        );
        // The honest twin of the very same host: its daemon, its tunnels and the applications work.
        assert_eq!(scene.send((TWO, 4_001), (Q, PORT)), 3, "{}", case.wants);
    }
    println!("{} cases, none passed", cases.len());
    assert!(cases.len() >= 40);
}

/// What version 1 does not promise (SECURITY.md): a process of a host that sends from another workload's address of the same
/// host is that workload, for all that its daemon can tell. Stated here so that a change of it is seen.
#[test]
fn an_address_of_the_own_host_is_an_identity_whoever_sends_from_it() {
    for (source, destination) in [(ONE, P), (TWO, Q)] {
        let mut scene = Scene::new(Daemon::Honest);
        assert_eq!(scene.send((source, 4_000), (destination, PORT)), 3);
        println!("not promised: a process of three that sends from {source} reaches {destination}");
    }
}

#[test]
fn a_tunnel_of_one_workload_carries_nothing_of_another() {
    let mut scene = Scene::new(Daemon::Honest);
    assert_eq!(scene.send((ONE, 4_000), (P, PORT)), 3);
    let carried = |scene: &mut Scene| {
        let tunnels = scene.world.nodes[CROWD].shard.snapshot().tunnels;
        let up = tunnels
            .into_iter()
            .filter(|tunnel| matches!(tunnel.state, TunnelState::Up));
        up.map(|tunnel| (tunnel.local, tunnel.packets_sent))
            .collect::<Vec<_>>()
    };
    let before = carried(&mut scene);
    assert_eq!(before, [(id("one"), 3)]);
    for source in [TWO, THREE] {
        // The same ports, so that nothing but the address tells the flows apart.
        assert_eq!(scene.send((source, 4_000), (P, PORT)), 0);
    }
    let after = carried(&mut scene);
    assert_eq!(
        after[..1],
        before,
        "one's tunnel carried something of another"
    );
    assert_eq!(after[1..], [(id("two"), 1), (id("three"), 1)]);
}
