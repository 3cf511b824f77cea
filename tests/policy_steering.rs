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
        Compiled, EgressDecision, MeshSettings, Mode, Question, ReasonCode, Resources,
        compiled::outcome::{Intent, Outcome},
        document::{
            Action, AuthorizationPolicy, AuthorizationRule, Clause, ClientMode, DestinationRule,
            PeerAuthentication, Placed, Policy, PortSelector, StringMatch, Target, Test,
        },
        settings::{UnknownDestination, UnknownSource},
    },
    registry::service::{Endpoints, Location, Resolution, ServiceEntry, Workload},
    wire::{DropReason, FiveTuple},
};
use mesh::{
    export, host, ip, map, mesh_policy, place, resource, rule, service, tcp, with_names, with_port,
    workload,
};
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

/// Addresses that no workload has.
const OUTSIDERS: [&str; 6] = [
    "10.0.0.13",
    "10.0.0.200",
    "172.16.5.1",
    "172.16.5.200",
    "198.51.100.7",
    "203.0.113.1",
];
/// Networks around some of them.
const BLOCKS: [&str; 7] = [
    "0.0.0.0/1",
    "10.0.0.0/24",
    "172.16.0.0/12",
    "172.16.5.0/25",
    "198.51.100.7/32",
    "10.0.0.1/32",
    "fd00::/8",
];

/// The account of an address; some have none.
fn declared(namespace: &str, index: u8) -> Workload {
    let account = if index.is_multiple_of(4) {
        String::new()
    } else {
        format!("w{index}")
    };
    let mut workload = workload(namespace, &account, &address(index));
    workload.mesh_capable = !index.is_multiple_of(8);
    if !index.is_multiple_of(3) {
        workload.labels = map(&[("app", "web")]);
    }
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

fn placed<T>(value: T) -> Placed<T> {
    Placed {
        value,
        place: place(40),
    }
}

fn a_selector() -> impl Strategy<Value = Option<identun::policy::document::Labels>> {
    select(vec![
        None,
        None,
        Some(map(&[("app", "web")])),
        Some(map(&[("app", "db")])),
    ])
}

fn an_unset_mode() -> impl Strategy<Value = Option<Mode>> {
    select(vec![
        None,
        Some(Mode::Disable),
        Some(Mode::Permissive),
        Some(Mode::Strict),
    ])
}

prop_compose! {
    fn a_peer_authentication()(
        index in 0..100_u8,
        namespace in select(vec!["ns", "other", "istio-system"]),
        selector in a_selector(),
        mode in an_unset_mode(),
        ports in vec((select(PORTS.to_vec()), an_unset_mode()), 0..3),
    ) -> PeerAuthentication {
        let ports = if selector.is_some() { ports } else { Vec::new() };
        PeerAuthentication {
            resource: resource("PeerAuthentication", namespace, &format!("p{index}")),
            place: place(41),
            selector,
            mode: placed(mode),
            ports: ports.into_iter().map(|(port, mode)| (port, placed(mode))).collect(),
        }
    }
}

prop_compose! {
    fn a_policy()(
        index in 0..100_u8,
        namespace in select(vec!["ns", "other"]),
        targets in vec((0..4_u8, vec(select(PORTS.to_vec()), 0..2)), 0..2),
        mode in select(vec![Mode::Disable, Mode::Permissive, Mode::Strict]),
    ) -> Policy {
        let name = if targets.is_empty() { "default".to_owned() } else { format!("p{index}") };
        let target = |(service, ports): (u8, Vec<u16>)| Target {
            host: placed(format!("s{service}.local").into()),
            ports: ports.into_iter().map(PortSelector::Number).map(placed).collect(),
        };
        Policy {
            resource: resource("Policy", namespace, &name),
            place: place(42),
            targets: targets.into_iter().map(target).collect(),
            mode: placed(mode),
        }
    }
}

fn a_test() -> impl Strategy<Value = Test> {
    let blocks = || {
        let block = select(BLOCKS.to_vec()).prop_map(|block| block.parse().unwrap());
        vec(block, 1..3)
    };
    let names = || {
        select(vec![
            vec![StringMatch::Present],
            vec![StringMatch::Exact("ns".into())],
            vec![StringMatch::Prefix("cluster".into())],
        ])
    };
    prop_oneof![
        4 => blocks().prop_map(Test::SourceIp),
        4 => vec(select(PORTS.to_vec()), 1..3)
            .prop_map(|ports| Test::DestinationPort(ports.into_iter().collect())),
        1 => blocks().prop_map(Test::DestinationIp),
        1 => names().prop_map(Test::SourcePrincipal),
        1 => names().prop_map(Test::SourceNamespace),
        1 => names().prop_map(Test::SourceTrustDomain),
    ]
}

fn some_clauses() -> impl Strategy<Value = Vec<Clause>> {
    let clause = (prop::bool::weighted(0.3), a_test());
    vec(
        clause.prop_map(|(negated, test)| Clause { negated, test }),
        0..3,
    )
}

prop_compose! {
    fn an_authorization()(
        index in 0..100_u8,
        namespace in select(vec!["ns", "other", "istio-system"]),
        selector in a_selector(),
        action in select(vec![Action::Allow, Action::Allow, Action::Deny, Action::Deny, Action::Audit]),
        dry_run in prop::bool::weighted(0.1),
        rules in vec((vec(some_clauses(), 0..3), vec(some_clauses(), 0..2), some_clauses()), 0..3),
    ) -> AuthorizationPolicy {
        let rules = rules.into_iter().enumerate().map(|(index, (from, to, when))| AuthorizationRule {
            place: place(43),
            number: index + 1,
            from,
            to,
            when,
        });
        AuthorizationPolicy {
            resource: resource("AuthorizationPolicy", namespace, &format!("a{index}")),
            place: place(43),
            selector,
            action,
            dry_run,
            rules: rules.collect(),
        }
    }
}

/// What servers demand; often the older kinds only, which the newer ones would hide.
fn a_server_side() -> impl Strategy<Value = Resources> {
    let newer = prop_oneof![Just(0), 1..4_usize];
    let newer = newer.prop_flat_map(|count| vec(a_peer_authentication(), count));
    let all = (newer, vec(a_policy(), 0..4), vec(an_authorization(), 0..3));
    all.prop_map(
        |(peer_authentications, policies, authorization_policies)| Resources {
            peer_authentications,
            policies,
            authorization_policies,
            ..Resources::default()
        },
    )
}

prop_compose! {
    fn a_mesh()(
        server_side in a_server_side(),
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
            ..server_side
        };
        let unknown_destination = if drop { UnknownDestination::Drop } else { UnknownDestination::Pass };
        (resources, MeshSettings { auto_mtls, unknown_destination, ..MeshSettings::default() })
    }
}

const LOCAL: [&str; 2] = ["10.0.0.1", "10.0.0.2"];

fn compile(mesh: &(Resources, MeshSettings)) -> Compiled {
    compile_at(mesh, &["10.0.0.1"])
}

/// The same on a host with these addresses.
fn compile_at((resources, settings): &(Resources, MeshSettings), addresses: &[&str]) -> Compiled {
    let ids = [
        "spiffe://cluster.local/ns/ns/sa/w1",
        "spiffe://cluster.local/ns/other/sa/w2",
    ];
    mesh::compile(resources, settings, host(addresses, &ids)).0
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
        // a local destination is captured where the same one elsewhere would be: tested by name below
        for tuple in packets().filter(|tuple| !compiled.is_local(tuple.destination)) {
            let wanted = !matches!(compiled.decide_egress(&tuple), EgressDecision::Plaintext { .. });
            let FiveTuple { source, destination, protocol, .. } = tuple;
            let captured = steering.captures(source, destination, protocol, tuple.service_port());
            prop_assert_eq!(captured, wanted, "{}", tuple);
        }
    }

    #[test]
    fn an_address_of_no_workload_begins_in_plaintext_what_every_workload_of_the_host_may(
        mesh in a_mesh(),
        passes in prop::bool::weighted(0.2),
    ) {
        let (resources, mut settings) = mesh;
        if passes {
            settings.unknown_source = UnknownSource::Pass;
        }
        let stray = "10.0.0.77";
        let compiled = compile_at(&(resources, settings), &["10.0.0.1", "10.0.0.2", stray]);
        let workloads = LOCAL.map(ip).into_iter().filter(|source| compiled.is_local(*source));
        let workloads: Vec<_> = workloads.collect();
        for tuple in packets().filter(|tuple| !compiled.is_local(tuple.destination)) {
            let FiveTuple { destination, protocol, .. } = tuple;
            let may = |source: &IpAddr| {
                let decision = compiled.decide_egress(&FiveTuple { source: *source, ..tuple });
                matches!(decision, EgressDecision::Plaintext { .. })
            };
            let wanted = !passes && !workloads.iter().all(may);
            let captured = compiled.steering().captures_stray(destination, protocol, tuple.service_port());
            prop_assert_eq!(captured, wanted, "{}", tuple);
            let told = compiled.explain(ip(stray), destination, protocol, tuple.service_port());
            prop_assert_eq!(told.code == ReasonCode::UnknownSource, wanted, "{}", tuple);
            prop_assert_eq!(told.captured, wanted);
            let decision = compiled.decide_egress(&FiveTuple { source: ip(stray), ..tuple });
            let is_refused = matches!(decision, EgressDecision::Refuse { reason: DropReason::UnknownSource, .. });
            prop_assert!(is_refused, "{:?}", decision);
        }
    }

    #[test]
    fn kernel_and_engine_agree_on_plaintext_that_comes_in(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        let kinds = [(1, None), (6, Some(22)), (6, Some(53)), (17, Some(80)), (132, Some(443)), (6, Some(9))];
        for (source, destination) in OUTSIDERS.iter().flat_map(|from| LOCAL.map(|to| (ip(from), ip(to)))) {
            for (protocol, port) in kinds {
                let question = Question { source, destination, protocol, port };
                let taken = compiled.steering().accepts_plaintext(source, destination, protocol, port);
                let decision = compiled.decide(&question);
                prop_assert_eq!(taken, decision.outcome == Outcome::Plaintext, "{:?} {:?}", question, decision);
            }
        }
        // workloads, too, whatever their own side decides
        for (source, destination) in (3..=HOSTS).flat_map(|from| LOCAL.map(|to| (ip(&address(from)), ip(to)))) {
            for (protocol, port) in kinds {
                let taken = compiled.steering().accepts_plaintext(source, destination, protocol, port);
                let told = compiled.explain(source, destination, protocol, port);
                prop_assert_eq!(taken, told.plaintext_accepted, "{} {} {:?}", source, destination, port);
            }
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
                    // the client's host leaves it to the server's whom that authorizes
                    let by_policy = matches!(told.code, ReasonCode::DeniedByPolicy | ReasonCode::NoMatchingAllow);
                    prop_assert!(told.outcome == Outcome::Mtls || by_policy, "{} {}", tuple, told.code);
                    prop_assert_eq!(told.peer, Some(key.peer));
                    prop_assert_eq!(told.accepted, why.accepted.clone());
                }
                EgressDecision::Refuse { reason: DropReason::LeavesHost, .. } => {
                    prop_assert_eq!((told.code, told.captured), (ReasonCode::SameHost, false));
                    prop_assert!(compiled.is_local(tuple.destination));
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

    #[test]
    fn refused_sources_are_disjoint(mesh in a_mesh()) {
        let compiled = compile(&mesh);
        let overlap = |one: &ipnetwork::IpNetwork, other: &ipnetwork::IpNetwork| {
            one.contains(other.ip()) || other.contains(one.ip())
        };
        let ports: Vec<_> = compiled.steering().refuse_port.iter().collect();
        for (index, left) in ports.iter().enumerate() {
            for right in ports.iter().skip(index + 1) {
                let same = left.1 == right.1 && left.2 <= right.3 && right.2 <= left.3;
                prop_assert!(!(same && overlap(&left.0, &right.0)), "{:?} {:?}", left, right);
            }
        }
        let portless: Vec<_> = compiled.steering().refuse_portless.iter().collect();
        for (index, left) in portless.iter().enumerate() {
            for right in portless.iter().skip(index + 1) {
                prop_assert!(!(left.1 == right.1 && overlap(&left.0, &right.0)), "{:?} {:?}", left, right);
            }
        }
    }
}

#[test]
fn a_service_that_is_captured_as_a_whole_needs_one_element() {
    let count = 2000_u32;
    let entry = |index: u32| {
        let address = Ipv4Addr::from(0x0b00_0000 + index).to_string();
        let endpoint = workload("ns", &format!("s{index}"), &address);
        service("ns", &format!("many{index}.local"), &["80"], vec![endpoint])
    };
    let mut resources = Resources {
        service_entries: (0..count).map(entry).collect(),
        workloads: vec![registered(1)],
        ..Resources::default()
    };
    let sizes = |resources: &Resources| {
        let compiled = compile(&(resources.clone(), MeshSettings::default()));
        let steering = compiled.steering();
        (
            steering.must_all.len(),
            steering.must.len(),
            steering.plain.len(),
        )
    };
    // one for the workload, and one for what else the host sends from, which may send to the workload no more than strangers
    assert_eq!(sizes(&resources), (2 * 2000 + 1, 0, 0));
    // one exception is one more, for each protocol
    let exception = with_port(
        rule("ns", "r", "many7.local", None),
        80,
        Some(ClientMode::Disable),
    );
    resources.destination_rules.push(exception);
    assert_eq!(sizes(&resources), (2 * 2000 + 1, 0, 2 * 3));
}

#[test]
fn while_a_hosts_addresses_are_missing_its_workloads_send_and_take_no_plaintext() {
    let mut client = workload("default", "client", "10.0.0.1");
    client.gateway = Some("192.0.2.1:15008".parse().unwrap());
    let mut server = workload("default", "server", "10.0.0.2");
    server.gateway = Some("192.0.2.2:15008".parse().unwrap());
    let listening = service("default", "server.local", &["80"], vec![server.clone()]);
    let resources = Resources {
        mesh_policy: Some(mesh_policy(Mode::Strict)),
        destination_rules: vec![rule(
            "default",
            "r",
            "*.local",
            Some(ClientMode::IstioMutual),
        )],
        service_entries: vec![listening],
        workloads: vec![client, server],
        ..Resources::default()
    };
    let id = "spiffe://cluster.local/ns/default/sa/client";
    let compiled = |addresses: &[&str]| {
        let facts = host(addresses, &[id]);
        mesh::compile(&resources, &MeshSettings::default(), facts).0
    };
    let (out, into) = (
        tcp("10.0.0.1", "10.0.0.2", 80),
        tcp("10.0.0.2", "10.0.0.1", 80),
    );
    for (addresses, is_local) in [
        (["192.0.2.1"].as_slice(), true),
        // a workload that is the host's own, whatever its gateway
        (&["10.0.0.1"], true),
        (&[], false),
        (&["192.0.2.9"], false),
    ] {
        let compiled = compiled(addresses);
        assert_eq!(compiled.is_local(out.source), is_local, "{addresses:?}");
        let steering = compiled.steering();
        let captured = steering.captures(out.source, out.destination, 6, Some(80));
        assert!(captured, "{addresses:?}");
        let decision = compiled.decide_egress(&out);
        let is_carried = matches!(decision, EgressDecision::Tunnel { .. });
        assert_eq!(is_carried, is_local, "{addresses:?}: {decision:?}");
        assert!(!matches!(decision, EgressDecision::Plaintext { .. }));
        let taken = steering.accepts_plaintext(into.source, into.destination, 6, Some(80));
        assert!(!taken, "{addresses:?}");
    }
}

/// Two workloads of one host: what one sends to the other has no business outside, unless policy leaves it in plaintext
/// wherever the other is.
#[test]
fn what_a_neighbour_is_sent_does_not_leave_the_host_where_a_stranger_would_get_it_in_a_tunnel() {
    let names = ["one", "two"];
    let neighbours = [1, 2].map(|n| workload("default", names[n - 1], &format!("10.0.0.{n}")));
    let ids = names.map(|name| format!("spiffe://cluster.local/ns/default/sa/{name}"));
    for (mode, is_captured) in [
        (ClientMode::IstioMutual, true),
        (ClientMode::Disable, false),
    ] {
        let listening = service("default", "two.local", &["80"], vec![neighbours[1].clone()]);
        let resources = Resources {
            mesh_policy: Some(mesh_policy(Mode::Strict)),
            destination_rules: vec![rule("default", "r", "*.local", Some(mode))],
            service_entries: vec![listening],
            workloads: neighbours.to_vec(),
            ..Resources::default()
        };
        let facts = host(&["10.0.0.1", "10.0.0.2"], &[&ids[0], &ids[1]]);
        let compiled = mesh::compile(&resources, &MeshSettings::default(), facts).0;
        let there = tcp("10.0.0.1", "10.0.0.2", 80);
        let back = there.reversed();
        let steering = compiled.steering();
        let captured = steering.captures(there.source, there.destination, 6, Some(80));
        assert_eq!(captured, is_captured, "{mode:?}");
        // a reply of a STRICT address whose connection was forgotten
        assert!(steering.peers.contains(&there.source));
        for decision in [compiled.decide_egress(&there), compiled.decide_reply(&back)] {
            let EgressDecision::Refuse { reason, .. } = decision else {
                panic!("{decision:?}")
            };
            assert_eq!(reason, DropReason::LeavesHost);
        }
    }
}
