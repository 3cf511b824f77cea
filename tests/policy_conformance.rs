//! What policy and registry decide, case by case. P numbers are the conformance cases of policy.md 8; the hosts are `a`,
//! `b` (in the mesh) and `naked` (outside of it).

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]

#[path = "policy/mesh.rs"]
mod mesh;
#[path = "policy/text.rs"]
mod text;

use identun::{
    policy::{
        Compiled, EgressDecision, HostFacts, IngressDecision, MeshSettings, Mode, Resources,
        Severity, compiled::outcome::Outcome, settings::UnknownDestination,
    },
    registry::service::Location,
    wire::{
        DropReason, FiveTuple,
        capsule::{FlowRefusedCode, RefusedCode},
    },
};
use mesh::*;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const NAKED: &str = "10.0.0.3";
const ID_A: &str = "spiffe://cluster.local/ns/ns/sa/a";
const ID_B: &str = "spiffe://cluster.local/ns/ns/sa/b";

/// Hosts a, b and naked, each with a service of its own on ports 80 and 90.
fn hosts() -> Resources {
    let one = |name: &str, account: &str, address: &str| {
        let mut entry = service(
            "ns",
            &format!("{name}.ns.svc.cluster.local"),
            &["80", "90"],
            vec![workload("ns", account, address)],
        );
        entry.addresses = vec![address.parse().unwrap()];
        entry
    };
    Resources {
        service_entries: vec![one("a", "a", A), one("b", "b", B), one("naked", "", NAKED)],
        ..Resources::default()
    }
}

fn with_rules(
    mode: Option<Mode>,
    rules: Vec<identun::policy::document::DestinationRule>,
) -> Resources {
    Resources {
        mesh_policy: mode.map(mesh_policy),
        destination_rules: rules,
        ..hosts()
    }
}

fn global(
    mode: Option<identun::policy::document::ClientMode>,
) -> identun::policy::document::DestinationRule {
    rule("istio-system", "default", "*.local", mode)
}

fn on_a(resources: &Resources, mesh: &MeshSettings) -> Compiled {
    compile(resources, mesh, host(&[A], &[ID_A])).0
}

fn outcome(compiled: &Compiled, source: &str, destination: &str, port: u16) -> Outcome {
    compiled
        .explain(ip(source), ip(destination), 6, Some(port))
        .outcome
}

/// The reason for which a refuses a flow, `None` where it tunnels it.
fn refusal(compiled: &Compiled, tuple: &FiveTuple) -> Option<DropReason> {
    match compiled.decide_egress(tuple) {
        EgressDecision::Refuse { reason, .. } => Some(reason),
        EgressDecision::Tunnel { .. } => None,
        EgressDecision::Plaintext { why } => panic!("plaintext: {}", why.text),
    }
}

fn is_plaintext(compiled: &Compiled, tuple: &FiveTuple) -> bool {
    matches!(
        compiled.decide_egress(tuple),
        EgressDecision::Plaintext { .. }
    )
}

fn expect_flows(resources: &Resources, flows: &[(&str, &str, Outcome)]) {
    let compiled = on_a(resources, &alpha());
    for (source, destination, expected) in flows {
        assert_eq!(
            outcome(&compiled, source, destination, 80),
            *expected,
            "{source} -> {destination}"
        );
    }
}

#[test]
fn p06_an_empty_mesh_policy_makes_everything_plaintext() {
    let all = [(A, B), (NAKED, B), (A, NAKED), (NAKED, A), (NAKED, NAKED)]
        .map(|(from, to)| (from, to, Outcome::Plaintext));
    expect_flows(&with_rules(Some(Mode::Disable), vec![]), &all);
}

#[test]
fn p11_the_pair_of_the_introduction() {
    expect_flows(
        &with_rules(Some(Mode::Strict), vec![global(IM)]),
        &[
            (A, B, Outcome::Mtls),
            (NAKED, B, Outcome::RefusedByServer),
            (A, NAKED, Outcome::RefusedByClient),
            (NAKED, NAKED, Outcome::Plaintext),
        ],
    );
}

#[test]
fn p12_permissive_servers_take_both() {
    expect_flows(
        &with_rules(Some(Mode::Permissive), vec![global(IM)]),
        &[(A, B, Outcome::Mtls), (NAKED, B, Outcome::Plaintext)],
    );
}

#[test]
fn p13_mtls_off_on_both_sides() {
    let all = [(A, B), (NAKED, B), (A, NAKED), (NAKED, NAKED)]
        .map(|(from, to)| (from, to, Outcome::Plaintext));
    expect_flows(
        &with_rules(Some(Mode::Disable), vec![global(DISABLE)]),
        &all,
    );
}

#[test]
fn the_client_column_of_the_table_against_each_server() {
    use Outcome::{Mtls as M, Plaintext as P, RefusedByClient as C, RefusedByServer as S};
    // rule, auto_mtls, then outcomes for: not in mesh, DISABLE, PERMISSIVE, STRICT
    let rows = [
        (DISABLE, true, [P, P, P, S]),
        (IM, true, [C, S, M, M]),
        (UNSET, true, [P, P, M, M]),
        (UNSET, false, [P, P, P, S]),
    ];
    for (mode, auto_mtls, expected) in rows {
        let settings = MeshSettings {
            auto_mtls,
            ..alpha()
        };
        let modes = [Mode::Strict, Mode::Disable, Mode::Permissive, Mode::Strict];
        for (index, (server, outcome_wanted)) in modes.into_iter().zip(expected).enumerate() {
            let destination = if index == 0 { NAKED } else { B };
            let compiled = on_a(&with_rules(Some(server), vec![global(mode)]), &settings);
            assert_eq!(
                outcome(&compiled, A, destination, 80),
                outcome_wanted,
                "{mode:?} {auto_mtls} {server} {destination}"
            );
            let not_in_mesh = if index == 3 { S } else { P };
            assert_eq!(
                outcome(&compiled, "192.0.2.9", destination, 80),
                not_in_mesh,
                "outside -> {destination} {server}"
            );
        }
    }
}

#[test]
fn p25_a_wildcard_of_more_labels_wins_over_one_of_fewer() {
    let mut resources = with_rules(
        Some(Mode::Strict),
        vec![
            rule("istio-system", "a", "*.com", DISABLE),
            rule("istio-system", "b", "*.foo.com", IM),
        ],
    );
    for (at, host) in [(1, "bar.foo.com"), (2, "foo.com")] {
        resources.service_entries[at].hosts = vec![host.into()];
    }
    let compiled = on_a(&resources, &alpha());
    let chosen = |address: &str| {
        let explained = compiled.explain(ip(A), ip(address), 6, Some(80));
        explained.client_rule.unwrap().to_string()
    };
    for (address, expected) in [(B, "istio-system/b "), (NAKED, "istio-system/a ")] {
        assert!(chosen(address).contains(expected), "{}", chosen(address));
    }
}

#[test]
fn p25_the_longest_matching_host_wins() {
    let rules = vec![
        rule("istio-system", "a", "*.local", DISABLE),
        rule("istio-system", "b", "*.ns.svc.cluster.local", IM),
        rule("istio-system", "c", "b.ns.svc.cluster.local", DISABLE),
        rule("istio-system", "d", "*", DISABLE),
        rule("istio-system", "e", "*ocal", DISABLE),
    ];
    let compiled = on_a(&with_rules(Some(Mode::Strict), rules), &alpha());
    assert_eq!(
        refusal(&compiled, &tcp(A, NAKED, 80)),
        Some(DropReason::NotInMesh),
        "*.ns.svc.cluster.local"
    );
    assert!(is_plaintext(&compiled, &tcp(A, B, 80)), "the exact host");
}

#[test]
fn a_wildcard_suffix_is_a_string_and_not_the_bare_name() {
    for (host_pattern, service_host, matches) in [
        ("*.foo.com", "bar.foo.com", true),
        ("*.com", "foo.com", true),
        ("*.foo.com", "foo.com", false),
        ("*.local", "local", false),
        ("*ar.com", "bar.com", true),
        ("*", "anything", true),
        ("*.com", "*.foo.com", true),
        ("*.foo.com", "*.com", false),
        ("bar.foo.com", "*.foo.com", false),
    ] {
        let mut resources = with_rules(
            Some(Mode::Strict),
            vec![rule("istio-system", "r", host_pattern, IM)],
        );
        resources.service_entries[1].hosts = vec![service_host.into()];
        let compiled = on_a(&resources, &alpha());
        let captured = compiled.explain(ip(A), ip(B), 6, Some(80)).captured;
        assert_eq!(captured, matches, "{host_pattern} {service_host}");
    }
}

/// The rules of P26 and P27, told apart by a port of each.
fn httpbin(client: &str, service_namespace: &str) -> Option<String> {
    let mut rules = vec![
        rule("istio-system", "root", "httpbin.org", DISABLE),
        rule("test1", "test1", "httpbin.org", DISABLE),
        rule("test2", "test2", "httpbin.org", DISABLE),
    ];
    rules[1].export_to = export(&["test1", "ns1"]);
    rules[2].export_to = export(&["test2", "ns1", "test1", "newNS"]);
    let resources = Resources {
        destination_rules: rules,
        service_entries: vec![service(
            service_namespace,
            "httpbin.org",
            &["80"],
            vec![workload("x", "b", B)],
        )],
        workloads: vec![workload(client, "a", A)],
        ..Resources::default()
    };
    let compiled = compile(
        &resources,
        &alpha(),
        host(&[A], &[&format!("spiffe://cluster.local/ns/{client}/sa/a")]),
    )
    .0;
    let EgressDecision::Plaintext { why } = compiled.decide_egress(&tcp(A, B, 80)) else {
        panic!()
    };
    why.rule
        .as_ref()
        .map(|rule| rule.resource.namespace.to_string())
}

#[test]
fn p26_p27_pools_are_client_then_service_then_root() {
    for (client, service_namespace, expected) in [
        ("test1", "test2", "test1"),
        ("test2", "test1", "test2"),
        ("newNS", "test2", "test2"),
        ("ns1", "random", "istio-system"),
        ("other", "test1", "istio-system"),
    ] {
        assert_eq!(
            httpbin(client, service_namespace).as_deref(),
            Some(expected),
            "{client} {service_namespace}"
        );
    }
}

#[test]
fn a_client_in_the_root_namespace_follows_mesh_wide_rules_last() {
    let private = |mut rule: identun::policy::document::DestinationRule| {
        rule.export_to = export(&["istio-system"]);
        rule
    };
    for (root_rule, expected) in [(global(IM), "ns"), (private(global(IM)), "istio-system")] {
        let mut resources = with_rules(
            None,
            vec![
                root_rule,
                rule("ns", "own", "b.ns.svc.cluster.local", DISABLE),
            ],
        );
        resources.workloads = vec![workload("istio-system", "root", "10.0.0.9")];
        let compiled = on_a(&resources, &alpha());
        let explanation = compiled.explain(ip("10.0.0.9"), ip(B), 6, Some(80));
        assert_eq!(
            &*explanation.client_rule.unwrap().resource.namespace,
            expected
        );
    }
}

#[test]
fn a_rule_without_tls_in_an_earlier_pool_hides_the_mesh_wide_one() {
    let resources = with_rules(
        Some(Mode::Strict),
        vec![global(IM), rule("ns", "timeouts", "*", UNSET)],
    );
    let (compiled, findings) = compile(&resources, &alpha(), host(&[A], &[ID_A]));
    assert!(is_plaintext(&compiled, &tcp(A, B, 80)));
    assert!(codes(&findings).contains(&"IDT0553"), "{findings:?}");
}

#[test]
fn rules_of_one_host_are_merged_by_age_and_not_by_field() {
    let mut first = rule("ns", "a", "b.ns.svc.cluster.local", IM);
    first.traffic_policy = None;
    let second = rule("ns", "b", "b.ns.svc.cluster.local", IM);
    let third = rule("ns", "c", "b.ns.svc.cluster.local", DISABLE);
    let (compiled, findings) = compile(
        &with_rules(Some(Mode::Strict), vec![first, second, third]),
        &alpha(),
        host(&[A], &[ID_A]),
    );
    assert_eq!(refusal(&compiled, &tcp(A, B, 80)), None);
    let hidden: Vec<_> = findings
        .iter()
        .filter(|finding| finding.code == "IDT0552")
        .collect();
    assert!(
        hidden.len() == 1 && hidden[0].message.contains("ns/c"),
        "{findings:?}"
    );
}

#[test]
fn a_workload_selector_beats_the_rule_for_all_and_is_for_its_own_clients() {
    let mut selected = rule("ns", "z", "b.ns.svc.cluster.local", DISABLE);
    selected.workload_selector = Some(map(&[("app", "a")]));
    for (labels, plaintext) in [
        (map(&[("app", "a"), ("x", "y")]), true),
        (map(&[("app", "c")]), false),
    ] {
        let rules = vec![
            rule("ns", "a", "b.ns.svc.cluster.local", IM),
            selected.clone(),
        ];
        let mut resources = with_rules(Some(Mode::Permissive), rules);
        let mut client = workload("ns", "a", A);
        client.labels = labels;
        resources.workloads = vec![client];
        assert_eq!(
            is_plaintext(&on_a(&resources, &alpha()), &tcp(A, B, 80)),
            plaintext
        );
    }
}

#[test]
fn a_port_entry_replaces_the_settings_as_a_block() {
    let global_rule = with_port(with_port(global(IM), 80, UNSET), 90, DISABLE);
    let compiled = on_a(
        &with_rules(Some(Mode::Permissive), vec![global_rule.clone()]),
        &alpha(),
    );
    assert!(
        is_plaintext(&compiled, &tcp(A, B, 80)),
        "unset there is not inherited"
    );
    assert!(is_plaintext(&compiled, &tcp(A, B, 90)));
    assert_eq!(
        refusal(&compiled, &tcp(A, B, 7)),
        None,
        "other ports follow the rule"
    );
    let auto = on_a(
        &with_rules(Some(Mode::Permissive), vec![global_rule]),
        &MeshSettings::default(),
    );
    assert_eq!(refusal(&auto, &tcp(A, B, 80)), None, "unset with auto_mtls");
    assert!(is_plaintext(&auto, &tcp(A, B, 90)));
}

#[test]
fn p30_names_in_a_rule_replace_the_registry() {
    let default = "spiffe://cluster.local/ns/ns/sa/default";
    for (names, expected) in [
        (vec![default], Some(DropReason::IdentityNotAccepted)),
        (vec![ID_B], None),
        (
            vec!["I-do-not-exist"],
            Some(DropReason::IdentityNotAccepted),
        ),
        (vec![ID_A, ID_B, default, "I-do-not-exist"], None),
    ] {
        let compiled = on_a(
            &with_rules(Some(Mode::Strict), vec![with_names(global(IM), &names)]),
            &alpha(),
        );
        assert_eq!(refusal(&compiled, &tcp(A, B, 80)), expected, "{names:?}");
        let expected = if expected.is_some() {
            Outcome::RefusedByClient
        } else {
            Outcome::Mtls
        };
        assert_eq!(outcome(&compiled, A, B, 80), expected, "{names:?}");
    }
}

#[test]
fn aliases_widen_the_registry_but_not_a_rule() {
    let mesh = MeshSettings {
        trust_domain_aliases: vec!["old".parse().unwrap()],
        ..alpha()
    };
    let why = |rules| match on_a(&with_rules(Some(Mode::Strict), rules), &mesh)
        .decide_egress(&tcp(A, B, 80))
    {
        EgressDecision::Tunnel { why, key } => (why.accepted.clone(), key.peer.to_string()),
        other @ (EgressDecision::Plaintext { .. } | EgressDecision::Refuse { .. }) => {
            panic!("{other:?}")
        }
    };
    let both = vec![ID_B.to_owned(), "spiffe://old/ns/ns/sa/b".to_owned()];
    assert_eq!(why(vec![global(IM)]), (both, ID_B.to_owned()));
    assert_eq!(
        why(vec![with_names(global(IM), &[ID_B])]),
        (vec![ID_B.to_owned()], ID_B.to_owned())
    );
}

#[test]
fn an_endpoint_without_account_is_dialled_only_by_the_one_name_there_is() {
    let (first, second) = (
        "spiffe://cluster.local/ns/ns/sa/x",
        "spiffe://cluster.local/ns/ns/sa/y",
    );
    for (names, expected) in [
        (vec![], Some(DropReason::NoAuthorizedIdentity)),
        (
            vec!["not-an-identity"],
            Some(DropReason::NoAuthorizedIdentity),
        ),
        (vec![first], None),
        (vec![first, second], Some(DropReason::IdentityNotAccepted)),
    ] {
        let mut resources = with_rules(Some(Mode::Strict), vec![global(IM)]);
        let mut endpoint = workload("ns", "", B);
        endpoint.mesh_capable = true;
        let mut entry = service("ns", "b.ns.svc.cluster.local", &["80"], vec![endpoint]);
        entry.subject_alt_names = names.iter().map(|name| (*name).into()).collect();
        resources.service_entries[1] = entry;
        let compiled = on_a(&resources, &alpha());
        assert_eq!(refusal(&compiled, &tcp(A, B, 80)), expected, "{names:?}");
        let owns = |id: &str| compiled.peer_owns(&id.parse().unwrap(), ip(B));
        assert_eq!(owns(first), expected.is_none(), "who is dialled may answer");
        assert!(!owns(second));
    }
}

#[test]
fn an_endpoint_of_another_service_does_not_answer_for_this_one() {
    let mut resources = with_rules(Some(Mode::Strict), vec![global(IM)]);
    let mut range = service("ns", "range.ns.svc.cluster.local", &["443"], vec![]);
    range.addresses = vec!["10.0.0.0/24".parse().unwrap()];
    resources.service_entries.push(range.clone());
    let compiled = on_a(&resources, &alpha());
    assert_eq!(
        refusal(&compiled, &tcp(A, B, 443)),
        Some(DropReason::NoAuthorizedIdentity)
    );
    assert_eq!(
        refusal(&compiled, &tcp(A, "10.0.0.77", 443)),
        Some(DropReason::NotInMesh)
    );
    range.subject_alt_names = vec![ID_B.into()];
    *resources.service_entries.last_mut().unwrap() = range;
    assert_eq!(refusal(&on_a(&resources, &alpha()), &tcp(A, B, 443)), None);
}

#[test]
fn a_destination_is_classified_by_prefix_then_port_then_endpoint() {
    let mut resources = with_rules(Some(Mode::Permissive), vec![]);
    let mut wide = service("ns", "wide.local", &["80", "443"], vec![]);
    wide.addresses = vec!["10.0.0.0/8".parse().unwrap()];
    let mut narrow = service("ns", "narrow.local", &["80"], vec![]);
    narrow.addresses = vec!["10.0.7.0/24".parse().unwrap()];
    let mut hidden = service("other", "hidden.local", &["80"], vec![]);
    hidden.addresses = vec!["10.0.7.7/32".parse().unwrap()];
    hidden.export_to = export(&["other"]);
    let target = service(
        "ns",
        "target.local",
        &["81:8081"],
        vec![workload("ns", "t", "172.16.0.1")],
    );
    resources
        .service_entries
        .extend([wide, narrow, hidden, target]);
    let compiled = on_a(&resources, &alpha());
    for (destination, port, expected) in [
        ("10.0.7.7", 80, Some("narrow.local")),
        ("10.0.7.7", 443, Some("wide.local")),
        ("10.9.9.9", 80, Some("wide.local")),
        (B, 80, Some("b.ns.svc.cluster.local")),
        (B, 443, Some("wide.local")),
        ("172.16.0.1", 8081, Some("target.local")),
        ("172.16.0.2", 8081, None),
    ] {
        let explanation = compiled.explain(ip(A), ip(destination), 6, Some(port));
        assert_eq!(
            explanation.service.as_deref(),
            expected,
            "{destination}:{port}"
        );
    }
}

#[test]
fn what_no_service_names_is_decided_for_the_address() {
    let icmp = |destination| FiveTuple {
        protocol: 1,
        source_port: 0,
        destination_port: 0,
        ..tcp(A, destination, 0)
    };
    let strict = on_a(&with_rules(Some(Mode::Strict), vec![global(IM)]), &alpha());
    assert_eq!(refusal(&strict, &icmp(B)), None);
    assert_eq!(refusal(&strict, &tcp(A, B, 7)), None);
    assert_eq!(refusal(&strict, &icmp(NAKED)), Some(DropReason::NotInMesh));
    assert!(
        is_plaintext(&strict, &icmp("192.0.2.1")),
        "not in the registry"
    );
    // a workload without service
    let lone = |settings: &MeshSettings, account| {
        let mut resources = with_rules(None, vec![global(IM)]);
        resources.workloads = vec![workload("ns", account, "10.0.0.8")];
        on_a(&resources, settings)
    };
    let to_lone = tcp(A, "10.0.0.8", 7);
    assert_eq!(
        refusal(&lone(&MeshSettings::default(), "lone"), &to_lone),
        None
    );
    assert_eq!(
        refusal(&lone(&alpha(), "lone"), &to_lone),
        Some(DropReason::UnknownDestination)
    );
    let pass = MeshSettings {
        unknown_destination: UnknownDestination::Pass,
        ..alpha()
    };
    assert!(is_plaintext(&lone(&pass, "lone"), &to_lone));
    assert!(
        is_plaintext(&lone(&alpha(), ""), &to_lone),
        "a workload outside the mesh"
    );
}

#[test]
fn an_external_service_is_passed_through_unless_a_rule_says_otherwise() {
    let external = |mode| {
        let mut resources = with_rules(Some(Mode::Permissive), vec![global(mode)]);
        resources.service_entries[1].location = Location::MeshExternal;
        on_a(&resources, &MeshSettings::default())
    };
    assert!(is_plaintext(&external(UNSET), &tcp(A, B, 80)));
    assert_eq!(refusal(&external(IM), &tcp(A, B, 80)), None);
}

#[test]
fn only_local_workloads_send_and_this_host_is_not_tunnelled() {
    let (compiled, _) = compile(
        &with_rules(Some(Mode::Strict), vec![global(IM)]),
        &alpha(),
        host(&[A, B], &[ID_A, ID_B]),
    );
    assert_eq!(
        refusal(&compiled, &tcp(NAKED, B, 80)),
        Some(DropReason::UnknownSource)
    );
    // the rules look only at what leaves the host, and so is this packet about to
    assert!(compiled.steering().captures(ip(A), ip(B), 6, Some(80)));
    assert_eq!(
        refusal(&compiled, &tcp(A, B, 80)),
        Some(DropReason::LeavesHost)
    );
}

#[test]
fn a_workload_is_local_by_its_key_and_its_gateway() {
    let mut behind = workload("ns", "c", "10.1.0.1");
    behind.gateway = Some("10.0.0.1:15008".parse().unwrap());
    let resources = Resources {
        workloads: vec![behind],
        ..hosts()
    };
    let id_c = "spiffe://cluster.local/ns/ns/sa/c";
    let local = |addresses: &[&str], ids: &[&str]| {
        let compiled = compile(&resources, &alpha(), host(addresses, ids)).0;
        [A, B, "10.1.0.1"].map(|address| compiled.is_local(ip(address)))
    };
    assert_eq!(local(&[A], &[ID_A, id_c]), [true, false, true]);
    assert_eq!(local(&[A], &[ID_A]), [true, false, false], "no key");
    assert_eq!(
        local(&[B], &[ID_A, ID_B, id_c]),
        [false, true, false],
        "not this gateway"
    );
    let compiled = compile(&resources, &alpha(), host(&[B], &[ID_B])).0;
    assert_eq!(
        compiled.gateways(&id_c.parse().unwrap()),
        ["10.0.0.1:15008".parse().unwrap()]
    );
    assert_eq!(
        compiled.gateways(&ID_B.parse().unwrap()),
        [],
        "of other hosts only"
    );
}

#[test]
fn an_address_belongs_to_one_identity() {
    let mut resources = hosts();
    resources.workloads = vec![workload("ns", "a", A)];
    assert!(
        Compiled::new(&resources, &alpha(), HostFacts::default(), 1)
            .0
            .is_some(),
        "said twice is fine"
    );
    resources.workloads.push(workload("ns", "impostor", B));
    let (compiled, findings) = Compiled::new(&resources, &alpha(), HostFacts::default(), 1);
    assert!(compiled.is_none());
    assert_eq!(
        (findings[0].code, findings[0].severity),
        ("IDT0501", Severity::Error)
    );
    assert!(
        findings[0]
            .label
            .as_deref()
            .unwrap()
            .contains("mesh.yaml:1:1"),
        "{findings:?}"
    );
    let compiled = on_a(&hosts(), &alpha());
    let owns = |id: &str, address| compiled.peer_owns(&id.parse().unwrap(), ip(address));
    assert!(owns(ID_B, B));
    assert!(!owns(ID_B, A) && !owns(ID_A, B) && !owns(ID_B, NAKED) && !owns(ID_B, "192.0.2.1"));
}

#[test]
fn sessions_are_between_a_local_and_a_known_identity() {
    let unknown = "spiffe://cluster.local/ns/ns/sa/unknown";
    let ask = |mode, local: &str, peer: &str| {
        let compiled = on_a(&with_rules(Some(mode), vec![]), &alpha());
        compiled
            .decide_session(&local.parse().unwrap(), &peer.parse().unwrap())
            .map_err(|(code, _)| code)
    };
    assert_eq!(ask(Mode::Strict, ID_A, ID_B), Ok(()));
    assert_eq!(ask(Mode::Permissive, ID_A, ID_B), Ok(()));
    assert_eq!(ask(Mode::Disable, ID_A, ID_B), Err(RefusedCode::NotAllowed));
    assert_eq!(ask(Mode::Strict, ID_B, ID_A), Err(RefusedCode::NotHere));
    assert_eq!(
        ask(Mode::Strict, ID_A, unknown),
        Err(RefusedCode::NotAllowed)
    );
}

#[test]
fn ingress_follows_the_mode_and_names_its_rule() {
    let ask = |mode| {
        let compiled = on_a(&with_rules(Some(mode), vec![]), &alpha());
        compiled.decide_ingress(
            &ID_A.parse().unwrap(),
            &ID_B.parse().unwrap(),
            &tcp(B, A, 80),
        )
    };
    for mode in [Mode::Strict, Mode::Permissive] {
        let IngressDecision::Accept { why } = ask(mode) else {
            panic!("{mode}")
        };
        assert_eq!(
            why.mode_rule.as_ref().unwrap().to_string(),
            "MeshPolicy default (mesh.yaml:10:1)"
        );
    }
    let IngressDecision::Refuse { reason, code, .. } = ask(Mode::Disable) else {
        panic!()
    };
    assert_eq!(
        (reason, code),
        (DropReason::ModeDisable, FlowRefusedCode::ModeDisable)
    );
}

#[test]
fn replies_go_to_the_owner_of_the_address() {
    let reply = |mode, destination| {
        on_a(&with_rules(Some(mode), vec![]), &alpha()).decide_reply(&tcp(A, destination, 40_000))
    };
    let EgressDecision::Tunnel { key, .. } = reply(Mode::Permissive, B) else {
        panic!()
    };
    assert_eq!(
        (key.local.as_str(), key.peer.as_str(), key.gateway),
        (ID_A, ID_B, "10.0.0.2:15008".parse().unwrap())
    );
    for plain in [
        reply(Mode::Disable, B),
        reply(Mode::Strict, NAKED),
        reply(Mode::Strict, "192.0.2.1"),
    ] {
        assert!(matches!(plain, EgressDecision::Plaintext { .. }));
    }
}

#[test]
fn a_service_address_is_answered_by_the_endpoints_that_have_it() {
    let vip = "10.9.0.1";
    let mut resources = with_rules(Some(Mode::Strict), vec![global(IM)]);
    let endpoints = vec![workload("ns", "", NAKED), workload("ns", "b", B)];
    let mut entry = service("ns", "vip.ns.svc.cluster.local", &["80"], endpoints);
    entry.addresses = vec!["10.9.0.1/32".parse().unwrap()];
    resources.service_entries.push(entry);
    let (client, findings) = compile(&resources, &alpha(), host(&[A], &[ID_A]));
    let EgressDecision::Tunnel { key, .. } = client.decide_egress(&tcp(A, vip, 80)) else {
        panic!()
    };
    assert_eq!(
        (key.peer.as_str(), key.gateway),
        (ID_B, "10.0.0.2:15008".parse().unwrap())
    );
    assert!(client.peer_owns(&ID_B.parse().unwrap(), ip(vip)));
    assert!(!client.peer_owns(&ID_A.parse().unwrap(), ip(vip)));
    assert!(codes(&findings).contains(&"IDT0559"), "{findings:?}");
    let server = compile(&resources, &alpha(), host(&[B, vip], &[ID_B])).0;
    assert_eq!(
        server
            .local_identity(ip(vip))
            .map(ToString::to_string)
            .as_deref(),
        Some(ID_B)
    );
    assert!(server.steering().strict_all.contains(&ip(vip)));
    let elsewhere = compile(&resources, &alpha(), host(&[B], &[ID_B])).0;
    assert!(!elsewhere.is_local(ip(vip)));
}

#[test]
fn nothing_is_captured_without_registry_and_policy() {
    let facts = HostFacts {
        exempt: Default::default(),
        ..host(&[A], &[ID_A])
    };
    let compiled = compile(&Resources::default(), &MeshSettings::default(), facts).0;
    assert_eq!(*compiled.steering(), identun::policy::Steering::default());
}

#[test]
fn steering_names_local_and_remote_workloads() {
    let compiled = on_a(&with_rules(Some(Mode::Strict), vec![global(IM)]), &alpha());
    let steering = compiled.steering();
    assert_eq!(steering.local, [ip(A)].into());
    assert_eq!(steering.strict_all, [ip(A)].into());
    assert_eq!(steering.peers, [ip(A), ip(B)].into());
    assert_eq!(steering.exempt, [(6, 22)].into());
    assert!(steering.must_all.contains(&(ip(A), ip(B))));
    assert!(
        steering.must.is_empty(),
        "the address as a whole says it: {:?}",
        steering.must
    );
    assert!(
        steering.must_all.contains(&(ip(A), ip(NAKED))),
        "what is refused must be captured"
    );
    let permissive = on_a(
        &with_rules(Some(Mode::Permissive), vec![]),
        &MeshSettings::default(),
    );
    assert!(permissive.steering().strict_all.is_empty());
}

/// A mesh with every kind of destination: networks in networks, ports that differ from their service, service addresses.
fn motley() -> Resources {
    let mut wide = service("ns", "wide.local", &["80", "443", "53"], vec![]);
    wide.addresses = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/16".parse().unwrap()];
    let mut narrow = service("ns", "narrow.org", &["80", "443"], vec![]);
    narrow.addresses = vec!["10.0.0.0/24".parse().unwrap()];
    let mut vip = service(
        "ns",
        "vip.local",
        &["80", "70"],
        vec![
            workload("ns", "v", "10.0.0.40"),
            workload("ns", "w", "10.0.0.41"),
        ],
    );
    vip.addresses = vec!["10.9.0.1/32".parse().unwrap()];
    let mut six = service(
        "ns",
        "six.local",
        &["80"],
        vec![workload("ns", "six", "fd00::2")],
    );
    six.export_to = export(&["ns"]);
    let mut apart = service("ns", "apart.org", &["80", "53"], vec![]);
    apart.addresses = vec!["172.20.0.0/16".parse().unwrap()];
    let rules = vec![
        with_port(global(IM), 53, DISABLE),
        rule("istio-system", "narrow", "narrow.org", DISABLE),
        with_port(rule("ns", "apart", "apart.org", DISABLE), 80, IM),
        with_port(rule("ns", "vip", "vip.local", DISABLE), 70, IM),
        with_port(rule("ns", "b", "b.ns.svc.cluster.local", IM), 90, DISABLE),
    ];
    let mut resources = with_rules(Some(Mode::Permissive), rules);
    resources
        .service_entries
        .extend([wide, narrow, apart, vip, six]);
    let mut labelled = workload("ns", "a", "fd00::1");
    labelled.labels = map(&[("app", "six")]);
    let mut other = workload("other", "o", "10.0.0.50");
    other.gateway = Some("10.0.0.1:15008".parse().unwrap());
    labelled.gateway = other.gateway;
    resources.workloads = vec![
        labelled,
        other,
        workload("ns", "lone", "10.0.0.60"),
        workload("ns", "", "172.16.0.1"),
    ];
    resources
}

#[test]
fn kernel_and_engine_agree_on_every_packet() {
    let destinations = [
        A,
        B,
        NAKED,
        "10.0.0.40",
        "10.0.0.41",
        "10.0.0.50",
        "10.0.0.60",
        "10.0.0.99",
        "10.9.0.1",
        "10.9.0.2",
        "172.16.0.1",
        "172.16.0.2",
        "172.20.0.1",
        "fd00::1",
        "fd00::2",
        "fd00::99",
        "fd01::1",
    ];
    let (mut captured, mut passed) = (0, 0);
    for auto_mtls in [false, true] {
        for mode in [Mode::Disable, Mode::Permissive, Mode::Strict] {
            for unknown_destination in [UnknownDestination::Drop, UnknownDestination::Pass] {
                let mesh = MeshSettings {
                    auto_mtls,
                    unknown_destination,
                    ..alpha()
                };
                let resources = Resources {
                    mesh_policy: Some(mesh_policy(mode)),
                    ..motley()
                };
                let ids = [ID_A, "spiffe://cluster.local/ns/other/sa/o"];
                let compiled = compile(&resources, &mesh, host(&[A], &ids)).0;
                for source in [A, "10.0.0.50", "fd00::1"] {
                    for destination in destinations
                        .iter()
                        .filter(|to| ip(to).is_ipv4() == ip(source).is_ipv4())
                        .filter(|to| !compiled.is_local(ip(to)))
                    {
                        for (protocol, port) in [
                            (1, 0),
                            (6, 80),
                            (17, 80),
                            (132, 443),
                            (6, 53),
                            (17, 53),
                            (6, 70),
                            (6, 90),
                            (6, 7),
                        ] {
                            let tuple = FiveTuple {
                                protocol,
                                destination_port: port,
                                ..tcp(source, destination, 0)
                            };
                            let wanted = !is_plaintext(&compiled, &tuple);
                            let steered = compiled.steering().captures(
                                ip(source),
                                ip(destination),
                                protocol,
                                tuple.service_port(),
                            );
                            assert_eq!(
                                steered, wanted,
                                "{tuple} auto {auto_mtls} {mode} {unknown_destination:?}"
                            );
                            if wanted { captured += 1 } else { passed += 1 }
                        }
                    }
                }
            }
        }
    }
    assert!(captured > 500 && passed > 500, "{captured} {passed}");
}

#[test]
fn network_elements_do_not_overlap() {
    let compiled = on_a(&motley(), &alpha());
    let steering = compiled.steering();
    let elements: Vec<_> = steering
        .must_net
        .iter()
        .chain(&steering.plain_net)
        .collect();
    assert!(!steering.must_net.is_empty() && !steering.plain_net.is_empty());
    for (index, left) in elements.iter().enumerate() {
        for right in elements
            .iter()
            .skip(index + 1)
            .filter(|right| (left.0, left.2, left.3) == (right.0, right.2, right.3))
        {
            assert!(
                !left.1.contains(right.1.network()) && !right.1.contains(left.1.network()),
                "{left:?} {right:?}"
            );
        }
    }
}

#[test]
fn explain_tells_the_whole_story() {
    let compiled = on_a(&with_rules(Some(Mode::Strict), vec![global(IM)]), &alpha());
    let json = serde_json::to_value(compiled.explain(ip(A), ip(B), 6, Some(80))).unwrap();
    for (pointer, expected) in [
        ("/captured", "true"),
        ("/encrypted", "true"),
        ("/outcome", "\"MTLS\""),
        ("/service", "\"b.ns.svc.cluster.local\""),
        ("/peer", "\"spiffe://cluster.local/ns/ns/sa/b\""),
        ("/gateway", "\"10.0.0.2:15008\""),
        ("/accepted/0", "\"spiffe://cluster.local/ns/ns/sa/b\""),
        ("/client", "\"ISTIO_MUTUAL\""),
        ("/client_rule/place/line", "30"),
        ("/server_mode", "\"STRICT\""),
        ("/server_rule/place/line", "10"),
        (
            "/source_workload/identity",
            "\"spiffe://cluster.local/ns/ns/sa/a\"",
        ),
    ] {
        assert_eq!(
            json.pointer(pointer).unwrap().to_string(),
            expected,
            "{pointer}"
        );
    }
    let incoming = compiled.explain(ip("192.0.2.1"), ip(A), 6, Some(80));
    assert_eq!(
        (
            incoming.outcome,
            incoming.captured,
            incoming.plaintext_accepted
        ),
        (Outcome::RefusedByServer, false, false)
    );
    let ssh = compiled.explain(ip("192.0.2.1"), ip(A), 6, Some(22));
    assert_eq!(
        (ssh.outcome, ssh.exempt, ssh.plaintext_accepted),
        (Outcome::Plaintext, true, true)
    );
    let from_peer = compiled.explain(ip(B), ip(A), 6, Some(80));
    assert_eq!(
        (from_peer.outcome, from_peer.captured, from_peer.encrypted),
        (Outcome::Mtls, false, true)
    );
}

#[test]
fn findings_name_what_does_not_fit_together() {
    let codes_of = |resources: &Resources, mesh: &MeshSettings, facts| {
        codes(&compile(resources, mesh, facts).1)
    };
    let has = |found: &[&str], code| found.contains(&code);
    let on_a = || host(&[A], &[ID_A]);
    let sound = codes_of(
        &with_rules(Some(Mode::Permissive), vec![]),
        &MeshSettings::default(),
        on_a(),
    );
    assert_eq!(sound, ["IDT0565"], "the exempt port alone");
    let strict_off = codes_of(&with_rules(Some(Mode::Strict), vec![]), &alpha(), on_a());
    assert!(
        has(&strict_off, "IDT0558") && has(&strict_off, "IDT0565"),
        "{strict_off:?}"
    );
    let mutual = codes_of(
        &with_rules(Some(Mode::Strict), vec![global(IM)]),
        &alpha(),
        on_a(),
    );
    assert!(
        has(&mutual, "IDT0554") && !has(&mutual, "IDT0558"),
        "{mutual:?}"
    );
    let disabled = codes_of(
        &with_rules(Some(Mode::Disable), vec![global(IM)]),
        &alpha(),
        on_a(),
    );
    assert!(has(&disabled, "IDT0555"), "{disabled:?}");
    let nobody = codes_of(
        &with_rules(None, vec![rule("ns", "r", "nobody.local", IM)]),
        &alpha(),
        on_a(),
    );
    assert!(
        has(&nobody, "IDT0551") && has(&nobody, "IDT0566"),
        "{nobody:?}"
    );
    let names = codes_of(
        &with_rules(
            Some(Mode::Strict),
            vec![with_names(global(IM), &["spiffe://x/y"])],
        ),
        &alpha(),
        on_a(),
    );
    assert!(has(&names, "IDT0556"), "{names:?}");
    let facts = host(
        &[A, "198.51.100.1", "127.0.0.1", "fe80::1"],
        &[ID_A, "spiffe://cluster.local/ns/ns/sa/none"],
    );
    let foreign = codes_of(
        &with_rules(Some(Mode::Permissive), vec![]),
        &MeshSettings::default(),
        facts,
    );
    assert_eq!(foreign, ["IDT0561", "IDT0562", "IDT0565"]);
    let without_key = codes_of(
        &with_rules(Some(Mode::Permissive), vec![]),
        &MeshSettings::default(),
        host(&[A, B], &[ID_A]),
    );
    assert!(has(&without_key, "IDT0563"), "{without_key:?}");
    let mut six = with_rules(Some(Mode::Permissive), vec![]);
    six.workloads = vec![workload("ns", "six", "fd00::6")];
    assert!(has(
        &codes_of(&six, &MeshSettings::default(), on_a()),
        "IDT0564"
    ));
    let mut twice = with_rules(Some(Mode::Permissive), vec![]);
    twice.service_entries.push(service(
        "ns",
        "z.local",
        &["80"],
        vec![workload("ns", "b", B)],
    ));
    twice.service_entries[3].addresses = vec![B.parse().unwrap()];
    assert!(has(
        &codes_of(&twice, &MeshSettings::default(), on_a()),
        "IDT0560"
    ));
}

#[test]
fn p32_identities_of_istio_have_exactly_one_form() {
    for (text, expected) in [
        ("spiffe://td/ns/ns/sa/sa", true),
        ("td/ns/ns/sa/sa", false),
        ("spiffe://td/ns/ns/sa", false),
        ("spiffe://td/ns/ns/sa/sa/", false),
        ("spiffe://td/foobar/ns/sa/sa", false),
    ] {
        let id = text.parse::<identun::spiffe::SpiffeId>().ok();
        let account = id
            .as_ref()
            .and_then(identun::spiffe::SpiffeId::service_account);
        assert_eq!(account.is_some(), expected, "{text}");
    }
}
