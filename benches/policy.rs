//! The policy at 10, 1,000 and 100,000 services with ten rules each: a decision about a new flow, and compiling it all.
//!
//! Each service has a DestinationRule, a PeerAuthentication and an AuthorizationPolicy with eight rules, in one of a
//! hundred namespaces.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench that cannot begin ends, and tells figures that criterion has no place for"
)]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use identun::{
    policy::{
        Compiled, HostFacts, MeshSettings, Mode, Question, Resources,
        document::{
            Action, AuthorizationPolicy, AuthorizationRule, Clause, ClientMode, ClientTls,
            DestinationRule, PeerAuthentication, Placed, StringMatch, Test, TrafficPolicy,
        },
    },
    registry::{
        Place, ResourceName,
        service::{Endpoints, ExportTo, Location, Resolution, ServiceEntry, ServicePort, Workload},
    },
    wire::FiveTuple,
};

const SIZES: [u32; 3] = [10, 1_000, 100_000];
const NAMESPACES: u32 = 100;
const RULES: usize = 8;

fn place(line: u32) -> Place {
    Place {
        file: "mesh.yaml".into(),
        line,
        column: 1,
    }
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 + number).into()
}

fn resource(kind: &'static str, number: u32) -> ResourceName {
    ResourceName {
        kind,
        namespace: namespace(number),
        name: format!("s{number}").into(),
    }
}

fn namespace(number: u32) -> Arc<str> {
    format!("ns{}", number % NAMESPACES).into()
}

fn workload(number: u32) -> Workload {
    Workload {
        resource: resource("WorkloadEntry", number),
        place: place(1),
        address: address(number),
        ports: Default::default(),
        labels: [("app".into(), format!("s{number}").into())].into(),
        namespace: namespace(number),
        service_account: Some(format!("s{number}").into()),
        gateway: None,
        mesh_capable: true,
    }
}

fn service(number: u32) -> ServiceEntry {
    ServiceEntry {
        resource: resource("ServiceEntry", number),
        place: place(2),
        hosts: vec![host(number)],
        addresses: Vec::new(),
        ports: vec![ServicePort {
            number: 80,
            name: "http".into(),
            protocol: "TCP".into(),
            target_port: Some(8_080),
        }],
        location: Location::MeshInternal,
        resolution: Resolution::Static,
        endpoints: Endpoints::Selector([("app".into(), format!("s{number}").into())].into()),
        export_to: ExportTo::All,
        subject_alt_names: Vec::new(),
    }
}

fn host(number: u32) -> Arc<str> {
    format!("s{number}.ns{}.svc.cluster.local", number % NAMESPACES).into()
}

fn rule(number: u32) -> DestinationRule {
    DestinationRule {
        resource: resource("DestinationRule", number),
        host: Placed {
            value: host(number),
            place: place(3),
        },
        export_to: ExportTo::All,
        workload_selector: None,
        traffic_policy: Some(TrafficPolicy {
            tls: Some(ClientTls {
                mode: ClientMode::IstioMutual,
                subject_alt_names: None,
                place: place(4),
            }),
            ports: Vec::new(),
        }),
    }
}

fn authentication(number: u32) -> PeerAuthentication {
    PeerAuthentication {
        resource: resource("PeerAuthentication", number),
        place: place(5),
        selector: Some([("app".into(), format!("s{number}").into())].into()),
        mode: Placed {
            value: Some(Mode::Strict),
            place: place(6),
        },
        ports: Default::default(),
    }
}

/// Eight callers may call; the last of them is the one that asks in the bench.
fn authorization(number: u32) -> AuthorizationPolicy {
    let clause = |test| Clause {
        negated: false,
        test,
    };
    let rule = |index: usize| AuthorizationRule {
        place: place(8),
        number: index + 1,
        from: vec![vec![clause(Test::SourcePrincipal(vec![
            StringMatch::Exact(
                format!("cluster.local/ns/ns{}/sa/s{}", index % 7, 7 - index).into(),
            ),
        ]))]],
        to: vec![vec![clause(Test::DestinationPort([8_080].into()))]],
        when: Vec::new(),
    };
    AuthorizationPolicy {
        resource: resource("AuthorizationPolicy", number),
        place: place(7),
        selector: Some([("app".into(), format!("s{number}").into())].into()),
        action: Action::Allow,
        dry_run: false,
        rules: (0..RULES).map(rule).collect(),
    }
}

fn resources(size: u32) -> Resources {
    Resources {
        workloads: (0..size).map(workload).collect(),
        service_entries: (0..size).map(service).collect(),
        destination_rules: (0..size).map(rule).collect(),
        peer_authentications: (0..size).map(authentication).collect(),
        authorization_policies: (0..size).map(authorization).collect(),
        ..Resources::default()
    }
}

/// This host has the first workload.
fn facts() -> HostFacts {
    HostFacts {
        underlay: [address(0)].into(),
        port: 15_008,
        identities: ["spiffe://cluster.local/ns/ns0/sa/s0".parse().unwrap()].into(),
        exempt: Default::default(),
        forwards: false,
    }
}

fn compile(resources: &Resources) -> Compiled {
    let (compiled, findings) = Compiled::new(resources, &MeshSettings::default(), facts(), 1);
    compiled.unwrap_or_else(|| panic!("{findings:?}"))
}

/// Numbers of services, in an order that no cache guesses.
fn targets(size: u32) -> impl Iterator<Item = u32> {
    let mut state = 1_u32;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        1 + (state >> 8) % (size - 1)
    })
}

fn decisions(criterion: &mut Criterion) {
    for size in SIZES {
        let before = resident();
        let resources = resources(size);
        let written = resident();
        let begun = Instant::now();
        let compiled = compile(&resources);
        println!(
            "policy/{size} services: compiled in {} ms; resident {} MiB as resources, {} MiB more compiled",
            begun.elapsed().as_millis(),
            written.saturating_sub(before) >> 10,
            resident().saturating_sub(written) >> 10,
        );
        drop(resources);
        let mut group = criterion.benchmark_group("policy");
        let mut next = targets(size);
        group.bench_function(BenchmarkId::new("decide", size), |bencher| {
            bencher.iter(|| {
                let question = Question {
                    source: address(0),
                    destination: address(next.next().unwrap()),
                    protocol: 6,
                    port: Some(8_080),
                };
                black_box(compiled.decide(&question))
            });
        });
        let mut next = targets(size);
        group.bench_function(BenchmarkId::new("decide_egress", size), |bencher| {
            bencher.iter(|| {
                let tuple = FiveTuple {
                    protocol: 6,
                    source: address(0),
                    source_port: 40_000,
                    destination: address(next.next().unwrap()),
                    destination_port: 8_080,
                };
                black_box(compiled.decide_egress(&tuple))
            });
        });
        let peer = "spiffe://cluster.local/ns/ns0/sa/s7".parse().unwrap();
        let local = "spiffe://cluster.local/ns/ns0/sa/s0".parse().unwrap();
        let tuple = FiveTuple {
            protocol: 6,
            source: address(7),
            source_port: 40_000,
            destination: address(0),
            destination_port: 8_080,
        };
        group.bench_function(BenchmarkId::new("decide_ingress", size), |bencher| {
            bencher.iter(|| black_box(compiled.decide_ingress(&local, &peer, &tuple)));
        });
        group.finish();
    }
}

fn compilation(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy/compile");
    group
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_secs(5));
    for size in [1_000, 10_000, 100_000] {
        let resources = resources(size);
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| black_box(compile(&resources)));
        });
    }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

criterion_group!(benches, decisions, compilation);
criterion_main!(benches);
