//! What a destination accepts: P06 to P10, P18 to P22, P39, and more of TestComposePeerAuthentication.

use std::slice;

use identun::policy::Mode::{Disable, Permissive, Strict};

use super::world::*;

/// I1.4 pilot/pkg/model/push_context_test.go TestAuthNPolicies.
fn push_context() -> String {
    let target = |name: &str, port: &str, mtls: &str| {
        format!("{{targets: [{{name: {name}, ports: [{port}]}}], peers: [{{mtls: {mtls}}}]}}")
    };
    [
        mesh_policy("{peers: [{mtls: {mode: PERMISSIVE}}]}"),
        policy("test-namespace/default", "{}"),
        policy(
            "test-namespace/p1",
            &target(
                "mtls-permissive-svc-port",
                "{number: 80}",
                "{mode: PERMISSIVE}",
            ),
        ),
        policy(
            "test-namespace/p2",
            "{targets: [{name: mtls-strict-svc-port}], peers: [{mtls: null}]}",
        ),
        policy(
            "test-namespace/p3",
            &target("mtls-strict-svc-named-port", "{name: http}", "null"),
        ),
    ]
    .concat()
}

#[test]
fn p07_p08_p09_a_narrower_policy_replaces_the_wider_one() {
    let hosts = [
        "test-namespace/mtls-permissive-svc-port@a",
        "test-namespace/mtls-strict-svc-port@b",
        "test-namespace/mtls-strict-svc-named-port@c 8123:http 9000:tcp",
    ];
    let world = World::new(alpha(), &hosts, &push_context());
    let named = |mode, name: &str| (mode, name.to_owned());
    let inherited = named(Disable, "test-namespace/default");
    for (case, destination, expected) in [
        (
            "P07",
            "mtls-permissive-svc-port:80",
            named(Permissive, "test-namespace/p1"),
        ),
        ("P07", "mtls-permissive-svc-port:90", inherited.clone()),
        (
            "P08",
            "mtls-strict-svc-port:80",
            named(Strict, "test-namespace/p2"),
        ),
        (
            "P09",
            "mtls-strict-svc-named-port:8123",
            named(Strict, "test-namespace/p3"),
        ),
        ("P09", "mtls-strict-svc-named-port:9000", inherited),
    ] {
        assert_eq!(world.mode(destination), expected, "{case} {destination}");
    }
    let elsewhere = ["another-namespace/mtls-strict-svc-port@b"];
    let world = World::new(alpha(), &elsewhere, &push_context());
    let mesh = named(Permissive, "/default");
    assert_eq!(world.mode("mtls-strict-svc-port:80"), mesh, "P08");
}

#[test]
fn p10_the_first_mtls_entry_wins_with_a_warning() {
    let text = policy(
        "my-namespace/p",
        "{targets: [{name: foobar, ports: [{number: 8080}]}], peers: [{mtls: {mode: PERMISSIVE}}, {mtls: }]}",
    );
    let world = World::new(alpha(), &["my-namespace/foobar@a 8080:http"], &text);
    assert_eq!(world.mode("foobar:8080").0, Permissive, "P10");
    let (_, said) = validate(&alpha(), &text);
    assert!(
        said.iter().any(|(_, code)| *code == "IDT0451"),
        "P10 {said:?}"
    );
}

/// One workload app=foo in my-ns, asked for some ports.
fn composed<const N: usize>(policies: &[String], ports: [u16; N]) -> [identun::policy::Mode; N] {
    let world = World::new(beta(), &["my-ns/foo@a"], &policies.concat());
    ports.map(|port| world.mode(&format!("foo:{port}")).0)
}

const FOO: &str = "selector: {matchLabels: {app: foo}}";

#[test]
fn p18_a_selector_in_the_root_namespace_is_ignored() {
    assert_eq!(composed(&[], [80]), [Permissive], "P18");
    let selected = peer(
        "istio-system/p",
        &format!("{{{FOO}, mtls: {{mode: STRICT}}}}"),
    );
    assert_eq!(
        composed(slice::from_ref(&selected), [80]),
        [Permissive],
        "P18"
    );
    let world = World::new(beta(), &["istio-system/foo@a"], &selected);
    assert_eq!(
        world.mode("foo:80").0,
        Permissive,
        "P18 within the root namespace"
    );
}

#[test]
fn p19_the_namespace_beats_the_mesh() {
    let mesh = peer(
        "istio-system/m",
        "{selector: {matchLabels: {}}, mtls: {mode: STRICT}}",
    );
    assert_eq!(
        composed(slice::from_ref(&mesh), [80]),
        [Strict],
        "mesh only"
    );
    let namespace = peer("my-ns/n", "{mtls: {mode: PERMISSIVE}}");
    assert_eq!(composed(&[mesh, namespace], [80]), [Permissive], "P19");
}

#[test]
fn p20_ports_inherit_what_they_do_not_say() {
    let mesh = peer("istio-system/m", "{mtls: {mode: STRICT}}");
    let ports = "{80: {mode: DISABLE}, 90: {mode: UNSET}, 100: {}}";
    let workload = peer("my-ns/w", &format!("{{{FOO}, portLevelMtls: {ports}}}"));
    assert_eq!(
        composed(&[mesh, workload], [80, 90, 100, 7]),
        [Disable, Strict, Strict, Strict],
        "P20"
    );
}

#[test]
fn p21_unset_inherits_level_by_level() {
    let mesh = || peer("istio-system/m", "{mtls: {mode: STRICT}}");
    let namespace = |mode: &str| peer("my-ns/n", &format!("{{mtls: {{mode: {mode}}}}}"));
    let workload = |mode: &str| peer("my-ns/w", &format!("{{{FOO}, mtls: {{mode: {mode}}}}}"));
    let bare = peer("my-ns/w", &format!("{{{FOO}}}"));
    for (case, policies, mode) in [
        (
            "P21",
            vec![mesh(), namespace("UNSET"), bare.clone()],
            Strict,
        ),
        ("mesh to workload", vec![mesh(), bare.clone()], Strict),
        (
            "namespace to workload",
            vec![mesh(), namespace("DISABLE"), bare],
            Disable,
        ),
        (
            "workload over namespace",
            vec![namespace("STRICT"), workload("DISABLE")],
            Disable,
        ),
        (
            "workload over mesh",
            vec![mesh(), workload("PERMISSIVE")],
            Permissive,
        ),
        ("unset everywhere", vec![namespace("UNSET")], Permissive),
        ("unset mesh", vec![peer("istio-system/m", "{}")], Permissive),
    ] {
        assert_eq!(composed(&policies, [80]), [mode], "{case}");
    }
}

#[test]
fn p22_of_several_the_oldest_counts_whole() {
    let at = |name: &str, age, spec: &str| aged("PeerAuthentication", name, age, spec);
    let mesh = [
        at("istio-system/now", 1, "{mtls: {mode: DISABLE}}"),
        at("istio-system/second-ago", 0, "{mtls: {mode: PERMISSIVE}}"),
        at("istio-system/second-later", 0, "{mtls: {mode: STRICT}}"),
    ];
    assert_eq!(composed(&mesh, [80]), [Permissive], "P22");
    let namespace = [
        at("my-ns/now", 1, "{mtls: {mode: DISABLE}}"),
        at("my-ns/second-ago", 0, "{mtls: {mode: STRICT}}"),
    ];
    assert_eq!(
        composed(&namespace, [80]),
        [Strict],
        "multiple namespace policies"
    );
    let workload = [
        at(
            "my-ns/young",
            1,
            &format!("{{{FOO}, portLevelMtls: {{80: {{mode: STRICT}}}}}}"),
        ),
        at(
            "my-ns/old",
            0,
            &format!("{{{FOO}, mtls: {{mode: DISABLE}}}}"),
        ),
    ];
    assert_eq!(
        composed(&workload, [80]),
        [Disable],
        "no merging of port maps"
    );
}

/// Cases that I1.31's ambient conversion gets wrong (policy.md 2.5).
#[test]
fn an_exception_of_a_port_holds_in_both_directions() {
    let mesh = peer("istio-system/m", "{mtls: {mode: STRICT}}");
    let workload = |mode: &str, port: &str| {
        let mode = format!("mtls: {{mode: {mode}}}, portLevelMtls: {{80: {{mode: {port}}}}}");
        peer("my-ns/w", &format!("{{{FOO}, {mode}}}"))
    };
    for (workload, expected) in [
        (workload("PERMISSIVE", "STRICT"), [Strict, Permissive]),
        (workload("UNSET", "DISABLE"), [Disable, Strict]),
        (workload("DISABLE", "PERMISSIVE"), [Permissive, Disable]),
    ] {
        assert_eq!(composed(&[mesh.clone(), workload], [80, 90]), expected);
    }
}

#[test]
fn another_namespace_and_other_labels_do_not_concern_it() {
    let other = peer("other/n", "{mtls: {mode: STRICT}}");
    let label = peer(
        "my-ns/w",
        "{selector: {matchLabels: {app: bar}}, mtls: {mode: STRICT}}",
    );
    let both = "{selector: {matchLabels: {app: foo, tier: x}}, mtls: {mode: STRICT}}";
    let more = peer("my-ns/v", both);
    assert_eq!(composed(&[other, label, more], [80]), [Permissive]);
}

/// policy.md 1.6.
#[test]
fn one_peer_authentication_that_applies_switches_the_older_generation_off() {
    let older = mesh_policy("{peers: [{mtls: null}]}");
    let unset = peer("my-ns/n", "{}");
    let elsewhere = peer("other/n", "{mtls: {mode: DISABLE}}");
    for (later, mode) in [(unset, Permissive), (elsewhere, Strict)] {
        assert_eq!(composed(&[older.clone(), later], [80]), [mode]);
    }
}

/// policy.md 1.3.
#[test]
fn a_policy_for_a_port_beats_an_older_one_for_the_service() {
    let whole = "{targets: [{name: foo}], peers: [{mtls: }]}";
    let port =
        "{targets: [{name: foo, ports: [{number: 80}]}], peers: [{mtls: {mode: PERMISSIVE}}]}";
    let text = policy("my-ns/a", whole) + &policy("my-ns/b", port);
    let world = World::new(alpha(), &["my-ns/foo@a"], &text);
    let named = |mode, name: &str| (mode, name.to_owned());
    assert_eq!(world.mode("foo:80"), named(Permissive, "my-ns/b"));
    assert_eq!(world.mode("foo:90"), named(Strict, "my-ns/a"));
    assert_eq!(
        world.mode("foo"),
        named(Strict, "my-ns/a"),
        "without a port"
    );
}

/// policy.md 1.3: the root namespace is nothing special to a Policy.
#[test]
fn a_policy_of_the_root_namespace_is_for_that_namespace_only() {
    let text = policy("istio-system/default", "{peers: [{mtls: }]}");
    let hosts = ["my-ns/foo@a", "istio-system/bar@b"];
    let world = World::new(alpha(), &hosts, &text);
    assert_eq!(
        (world.mode("foo:80").0, world.mode("bar:80").0),
        (Disable, Strict)
    );
}
