//! Whatever the registry and the rules: the kernel's sets say what the engine says, nothing is dialled that may not
//! answer, and who is dialled may answer.

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]

#[path = "policy/mesh.rs"]
#[expect(dead_code, reason = "a part of the builders is for other tests")]
mod mesh;

use std::net::{IpAddr, Ipv4Addr};

use identun::{
    policy::{
        Compiled, EgressDecision, MeshSettings, Mode, Resources,
        compiled::outcome::{Intent, Outcome},
        document::{ClientMode, DestinationRule},
        settings::UnknownDestination,
    },
    registry::service::{Endpoints, Location, Resolution, ServiceEntry, Workload},
    wire::FiveTuple,
};
use mesh::{export, host, mesh_policy, rule, service, tcp, with_names, with_port, workload};
use proptest::{collection::vec, prelude::*, sample::select};

const HOSTS: u8 = 10;
const PORTS: [u16; 3] = [53, 80, 443];
const NETWORKS: [&str; 7] = [
    "10.0.0.0/24",
    "10.0.0.0/29",
    "10.0.0.4/30",
    "10.0.0.8/31",
    "10.0.0.3/32",
    "10.0.0.9/32",
    "10.0.0.11/32",
];

fn address(index: u8) -> String {
    format!("10.0.0.{index}")
}

/// The account of an address; some have none.
fn declared(namespace: &str, index: u8) -> Workload {
    let account = if index.is_multiple_of(4) {
        String::new()
    } else {
        format!("w{index}")
    };
    let mut workload = workload(namespace, &account, &address(index));
    workload.mesh_capable = !index.is_multiple_of(8);
    if index == 2 {
        workload.gateway = Some("10.0.0.1:15008".parse().unwrap());
    }
    workload
}

/// Namespaces of addresses are fixed, so that declarations never contradict each other.
fn registered(index: u8) -> Workload {
    declared(if index == 2 { "other" } else { "ns" }, index)
}

prop_compose! {
    fn a_service()(
        index in 0..4_u8,
        namespace in select(vec!["ns", "other"]),
        ports in vec(select(PORTS.to_vec()), 1..3),
        networks in vec(select(NETWORKS.to_vec()), 0..3),
        endpoints in vec(1..=HOSTS, 0..4),
        external in prop::bool::weighted(0.2),
        audience in select(vec![vec![], vec![], vec!["ns"], vec!["other"], vec!["~"]]),
        named in prop::bool::weighted(0.3),
    ) -> ServiceEntry {
        let mut ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
        ports.sort();
        ports.dedup();
        let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        let mut entry = service(namespace, &format!("s{index}.local"), &ports, vec![]);
        entry.addresses = networks.iter().map(|network| network.parse().unwrap()).collect();
        if !endpoints.is_empty() {
            entry.endpoints = Endpoints::Inline(endpoints.into_iter().map(registered).collect());
            entry.resolution = Resolution::Static;
        }
        if external {
            entry.location = Location::MeshExternal;
        }
        entry.export_to = export(&audience);
        if named {
            entry.subject_alt_names = vec!["spiffe://cluster.local/ns/ns/sa/w3".into()];
        }
        entry
    }
}

fn a_mode() -> impl Strategy<Value = Option<ClientMode>> {
    select(vec![
        None,
        Some(ClientMode::Disable),
        Some(ClientMode::IstioMutual),
    ])
}

prop_compose! {
    fn a_rule()(
        index in 0..100_u8,
        namespace in select(vec!["ns", "other", "istio-system"]),
        pattern in select(vec!["*", "*.local", "s0.local", "s1.local", "s2.local"]),
        mode in a_mode(),
        port in prop::option::of((select(PORTS.to_vec()), a_mode())),
        audience in select(vec![vec![], vec![], vec!["ns"], vec!["other"], vec!["istio-system"]]),
        named in prop::bool::weighted(0.2),
    ) -> DestinationRule {
        let mut rule = rule(namespace, &format!("r{index}"), pattern, mode);
        if let (true, Some(ClientMode::IstioMutual)) = (named, mode) {
            rule = with_names(rule, &["spiffe://cluster.local/ns/ns/sa/w3", "nobody"]);
        }
        if let Some((port, mode)) = port {
            rule = with_port(rule, port, mode);
        }
        rule.export_to = export(&audience);
        rule
    }
}

prop_compose! {
    fn a_mesh()(
        service_entries in vec(a_service(), 0..6),
        destination_rules in vec(a_rule(), 0..6),
        workloads in vec(3..=HOSTS, 0..4),
        mode in select(vec![Mode::Disable, Mode::Permissive, Mode::Strict]),
        auto_mtls in any::<bool>(),
        drop in any::<bool>(),
    ) -> (Resources, MeshSettings) {
        let resources = Resources {
            mesh_policy: Some(mesh_policy(mode)),
            destination_rules,
            service_entries,
            // the local ones are always there
            workloads: [1, 2].into_iter().chain(workloads).map(registered).collect(),
            ..Resources::default()
        };
        let unknown_destination = if drop { UnknownDestination::Drop } else { UnknownDestination::Pass };
        (resources, MeshSettings { auto_mtls, unknown_destination, ..MeshSettings::default() })
    }
}

const LOCAL: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

fn compile((resources, settings): &(Resources, MeshSettings)) -> Compiled {
    let ids = [
        "spiffe://cluster.local/ns/ns/sa/w1",
        "spiffe://cluster.local/ns/other/sa/w2",
    ];
    mesh::compile(resources, settings, host(&["10.0.0.1"], &ids)).0
}

/// Every kind of packet from every local workload to every address of the registry and some others.
fn packets() -> impl Iterator<Item = FiveTuple> {
    let destinations = (0..=12).map(|last| IpAddr::from(Ipv4Addr::new(10, 0, 0, last)));
    let kinds = [(1, 0), (6, 53), (17, 80), (132, 443), (6, 9)];
    destinations.flat_map(move |destination| {
        kinds
            .into_iter()
            .flat_map(move |(protocol, destination_port)| {
                LOCAL.map(|source| FiveTuple {
                    protocol,
                    destination,
                    destination_port,
                    ..tcp(source, "10.0.0.1", 0)
                })
            })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn kernel_and_engine_agree(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        let steering = compiled.steering();
        for tuple in packets().filter(|tuple| !compiled.is_local(tuple.destination)) {
            let wanted = !matches!(compiled.decide_egress(&tuple), EgressDecision::Plaintext { .. });
            let FiveTuple { source, destination, protocol, .. } = tuple;
            let captured = steering.captures(source, destination, protocol, tuple.service_port());
            prop_assert_eq!(captured, wanted, "{}", tuple);
        }
    }

    #[test]
    fn who_is_dialled_is_accepted_and_may_answer(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        for tuple in packets() {
            if let EgressDecision::Tunnel { key, why } = compiled.decide_egress(&tuple) {
                prop_assert!(why.accepted.contains(&key.peer.to_string()), "{} {:?}", tuple, why);
                prop_assert!(compiled.peer_owns(&key.peer, tuple.destination), "{}", tuple);
                prop_assert!(compiled.gateways(&key.peer).contains(&key.gateway), "{}", tuple);
                prop_assert_eq!(Some(&key.local), compiled.local_identity(tuple.source));
                prop_assert!(compiled.mode() != Mode::Disable, "{}", tuple);
            }
        }
    }

    #[test]
    fn explain_says_what_the_engine_does(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        for tuple in packets() {
            let told = compiled.explain(tuple.source, tuple.destination, tuple.protocol, tuple.service_port());
            match compiled.decide_egress(&tuple) {
                EgressDecision::Tunnel { key, why } => {
                    prop_assert_eq!((told.outcome, told.peer), (Outcome::Mtls, Some(key.peer)));
                    prop_assert_eq!(told.accepted, why.accepted.clone());
                }
                EgressDecision::Refuse { reason, .. } => {
                    prop_assert!(matches!(told.outcome, Outcome::RefusedByClient | Outcome::RefusedByServer));
                    prop_assert_eq!((told.drop_reason, told.captured), (Some(reason), true));
                }
                EgressDecision::Plaintext { .. } => {
                    prop_assert!(matches!(told.outcome, Outcome::Plaintext | Outcome::RefusedByServer));
                    prop_assert!(!told.captured && told.client != Some(Intent::IstioMutual), "{}", tuple);
                }
            }
        }
    }

    #[test]
    fn network_elements_are_disjoint(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        let steering = compiled.steering();
        let ports: Vec<_> = steering.must_net.iter().chain(&steering.plain_net).collect();
        for (index, left) in ports.iter().enumerate() {
            for right in ports.iter().skip(index + 1) {
                let same = (left.0, left.2, left.3) == (right.0, right.2, right.3);
                let overlap = left.1.contains(right.1.ip()) || right.1.contains(left.1.ip());
                prop_assert!(!(same && overlap), "{:?} {:?}", left, right);
            }
        }
    }
}
