//! What a packet costs in allocations once every pool has its size, each end of a tunnel apart: whole process and own
//! code. `cargo test --test allocations -- --nocapture` tells who allocates.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and these tell figures"
)]

#[path = "../benches/dataplane/cases.rs"]
mod cases;
#[path = "../benches/dataplane/count.rs"]
mod count;
#[path = "../benches/dataplane/packets.rs"]
mod packets;
#[path = "../benches/dataplane/world.rs"]
mod world;

use std::{collections::BTreeMap, sync::Arc};

use cases::{CASES, Round};
use identun::policy::{
    Compiled, HostFacts, MeshSettings, Question, ReasonCode, SourceFile, load::load,
};

/// Packets until every pool has its size, and packets that are counted.
const WARM: u32 = 20_000;
const COUNTED: u32 = 10_000;
/// Packets whose allocations are named.
const TRACED: u32 = 2_000;
const OWN: &str = "identun";

/// Allocations of a packet.
struct Each {
    whole: f64,
    own: f64,
    /// Who makes how many, for people.
    text: String,
}

fn rounds(case: &cases::Case, packets: u32) -> u32 {
    packets.div_ceil(case.packets)
}

fn allocations(name: &str) -> Each {
    let case = CASES.iter().find(|case| case.name == name).unwrap();
    let mut round = (case.make)();
    repeat(round.as_mut(), rounds(case, WARM), |round| round.run());
    let mut whole = 0;
    repeat(round.as_mut(), rounds(case, COUNTED), |round| {
        whole += count::counted(|| round.run()).allocations;
    });
    let mut sites = BTreeMap::new();
    repeat(round.as_mut(), rounds(case, TRACED), |round| {
        for (site, times) in count::traced(|| round.run()) {
            *sites.entry(site).or_insert(0) += times;
        }
    });
    round.check();
    let each =
        |sum: u64, packets: u32| sum as f64 / f64::from(rounds(case, packets) * case.packets);
    let is_own = |owner: &str| [OWN, count::UNKNOWN].contains(&owner);
    let own = sites.iter().filter(|((owner, _), _)| is_own(owner));
    let own: u64 = own.map(|(_, times)| times).sum();
    let (whole, own) = (each(whole, COUNTED), each(own, TRACED));
    let mut text = format!("{name}: {whole:.3} allocations a packet, {own:.3} by identun itself");
    for ((owner, function), times) in &sites {
        text += &format!("\n  {:.3} by {owner}: {function}", each(*times, TRACED));
    }
    Each { whole, own, text }
}

fn repeat(round: &mut dyn Round, times: u32, mut run: impl FnMut(&mut dyn Round)) {
    for _ in 0..times {
        round.prepare();
        run(round);
    }
}

/// The bound of the whole process: one a packet.
fn at_most_one(name: &str) {
    let each = allocations(name);
    println!("{}", each.text);
    assert!(each.whole <= 1.0, "{}", each.text);
}

fn none_of_our_own(name: &str) {
    let each = allocations(name);
    println!("{}", each.text);
    assert!(each.own == 0.0, "{}", each.text);
}

#[test]
fn sealing_a_bulk_stream_allocates_at_most_once_a_packet() {
    at_most_one("seal-bulk");
}

#[test]
fn opening_a_bulk_stream_allocates_at_most_once_a_packet() {
    at_most_one("open-bulk");
}

#[test]
fn opening_small_packets_allocates_at_most_once_a_packet() {
    at_most_one("open-udp-64");
}

#[test]
fn sealing_allocates_nothing_in_our_own_code() {
    none_of_our_own("seal-bulk");
    none_of_our_own("seal-udp-64");
}

#[test]
fn opening_allocates_nothing_in_our_own_code() {
    none_of_our_own("open-bulk");
    none_of_our_own("open-udp-64");
}

#[test]
fn known_flows_cuts_and_joins_allocate_nothing() {
    for name in [
        "parse",
        "flow-hit-egress",
        "flow-hit-ingress",
        "cut-45-partial",
        "cut-45-complete",
        "join-45-partial",
        "join-45-complete",
        "join-64-of-16-flows",
    ] {
        let each = allocations(name);
        assert!(each.whole == 0.0, "{}", each.text);
    }
}

/// Two workloads and every kind of rule between them.
const MESH: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: a, namespace: x}
spec: {address: 10.0.0.1, serviceAccount: a, labels: {app: a}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: b, namespace: y}
spec: {address: 10.0.0.2, serviceAccount: b, labels: {app: b}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: b, namespace: y}
spec:
  hosts: [b.y.svc.cluster.local]
  ports: [{number: 80, name: tcp, protocol: TCP, targetPort: 8080}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: b}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: b, namespace: y}
spec: {host: b.y.svc.cluster.local, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: b, namespace: y}
spec: {selector: {matchLabels: {app: b}}, mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: b, namespace: y}
spec:
  selector: {matchLabels: {app: b}}
  rules:
  - from: [{source: {namespaces: [z]}}]
  - from: [{source: {principals: [cluster.local/ns/x/sa/a]}}]
    to: [{operation: {ports: ['8080']}}]
";

#[test]
fn a_decision_allocates_nothing() {
    let mesh = MeshSettings::default();
    let file = SourceFile {
        name: "mesh.yaml".into(),
        text: MESH.into(),
    };
    let (resources, found) = load(&[Arc::new(file)], &mesh);
    let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
    let host = HostFacts {
        underlay: ["10.0.0.1".parse().unwrap()].into(),
        port: 15_008,
        identities: ["spiffe://cluster.local/ns/x/sa/a".parse().unwrap()].into(),
        exempt: [].into(),
        forwards: false,
    };
    let (compiled, found) = Compiled::new(&resources, &mesh, host, 1);
    let compiled = compiled.unwrap_or_else(|| panic!("{found:#?}"));
    for (source, code) in [
        ("10.0.0.1", ReasonCode::MutualByRule),
        ("10.0.0.9", ReasonCode::ModeStrict),
    ] {
        let question = Question {
            source: source.parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            protocol: 6,
            port: Some(8_080),
        };
        let mut decided = None;
        let count = count::counted(|| decided = Some(compiled.decide(&question).code));
        assert_eq!((decided, count.allocations), (Some(code), 0));
    }
}

#[test]
fn the_allocator_sees_what_it_counts_and_names() {
    let mut boxes = Vec::with_capacity(3);
    let count = count::counted(|| boxes.extend((0..3).map(Box::new)));
    assert_eq!((count.allocations, count.bytes), (3, 12));
    let sites = count::traced(|| drop("spiffe://td/a".parse::<identun::spiffe::SpiffeId>()));
    assert!(sites.keys().all(|(owner, _)| owner == OWN), "{sites:?}");
    assert!(!sites.is_empty());
}
