//! How flows end: P06, P11 to P14, P30, P39, and more of Istio's reachability tests.

use identun::policy::{
    ReasonCode,
    compiled::outcome::Outcome::{
        self, Mtls as M, Plaintext as P, RefusedByClient as C, RefusedByServer as S,
    },
};

use super::world::*;

const HOSTS: &[&str] = &["ns/a@a", "ns/b@b", "ns/naked"];

/// a->b, naked->b, a->naked, naked->naked.
fn reach(mesh: identun::policy::MeshSettings, policies: &[String]) -> [Outcome; 4] {
    let world = World::new(mesh, HOSTS, &policies.concat());
    world.flows(["a->b:80", "naked->b:80", "a->naked:80", "naked->naked:80"])
}

fn strict() -> String {
    mesh_policy("{peers: [{mtls: {mode: STRICT}}]}")
}

fn permissive() -> String {
    mesh_policy("{peers: [{mtls: {mode: PERMISSIVE}}]}")
}

#[test]
fn p06_plaintext_everywhere() {
    assert_eq!(reach(alpha(), &[mesh_policy("{}")]), [P; 4], "P06");
}

#[test]
fn p11_the_introduction() {
    let both = [strict(), everywhere("ISTIO_MUTUAL")];
    assert_eq!(reach(alpha(), &both), [M, S, C, P], "P11 global-mtls-on");
}

#[test]
fn p12_permissive_with_mutual_clients() {
    let both = [permissive(), everywhere("ISTIO_MUTUAL")];
    assert_eq!(
        reach(alpha(), &both)[..2],
        [M, P],
        "P12 global-mtls-permissive"
    );
}

#[test]
fn p13_off() {
    let both = [mesh_policy("{}"), everywhere("DISABLE")];
    assert_eq!(reach(alpha(), &both), [P; 4], "P13 global-mtls-off");
}

#[test]
fn p14_strict_on_one_port() {
    let text = [
        policy(
            "ns/p",
            "{targets: [{name: b, ports: [{name: http}]}], peers: [{mtls: }]}",
        ),
        rule(
            "ns/d",
            "{host: \"*.local\", trafficPolicy: {tls: {mode: DISABLE}}}",
        ),
    ];
    let world = World::new(alpha(), HOSTS, &text.concat());
    assert_eq!(
        world.flows(["a->b:80", "a->b:90", "naked->b:80"]),
        [S, P, S],
        "P14 single-port-mtls-on"
    );
}

/// I1.4 and I1.5 tests/integration/security/reachability_test.go, cases beyond the table.
#[test]
fn reachability_of_the_older_generation() {
    let auto = || identun::policy::MeshSettings {
        auto_mtls: true,
        ..alpha()
    };
    for (case, mesh, policies, expected) in [
        (
            "global-mtls-on-no-dr",
            alpha(),
            vec![strict()],
            [S, S, P, P],
        ),
        (
            "global-mtls-on with auto mTLS",
            auto(),
            vec![strict()],
            [M, S, P, P],
        ),
        (
            "permissive with auto mTLS",
            auto(),
            vec![permissive()],
            [M, P, P, P],
        ),
        ("nothing with auto mTLS", auto(), vec![], [P; 4]),
        (
            "mutual clients, plaintext servers",
            alpha(),
            vec![everywhere("ISTIO_MUTUAL")],
            [S, P, C, P],
        ),
        (
            "plaintext clients, strict servers",
            alpha(),
            vec![strict(), everywhere("DISABLE")],
            [S, S, P, P],
        ),
    ] {
        assert_eq!(reach(mesh, &policies), expected, "{case}");
    }
}

/// I1.5 to I1.31 reachability tests with PeerAuthentication ("beta-...").
#[test]
fn reachability_of_the_newer_generation() {
    let mesh = |mode: &str| {
        peer(
            "istio-system/default",
            &format!("{{mtls: {{mode: {mode}}}}}"),
        )
    };
    for (case, policies, expected) in [
        (
            "beta-mtls-on",
            vec![mesh("STRICT"), everywhere("ISTIO_MUTUAL")],
            [M, S, C, P],
        ),
        (
            "beta-mtls-permissive",
            vec![mesh("PERMISSIVE"), everywhere("ISTIO_MUTUAL")],
            [M, P, C, P],
        ),
        (
            "beta-mtls-off",
            vec![mesh("DISABLE"), everywhere("DISABLE")],
            [P; 4],
        ),
        ("beta-mtls-automtls", vec![mesh("STRICT")], [M, S, P, P]),
        (
            "beta-mtls-partial-automtls",
            vec![mesh("PERMISSIVE")],
            [M, P, P, P],
        ),
        (
            "plaintext-to-permissive",
            vec![mesh("PERMISSIVE"), everywhere("DISABLE")],
            [P; 4],
        ),
        (
            "dr-plaintext to strict",
            vec![mesh("STRICT"), everywhere("DISABLE")],
            [S, S, P, P],
        ),
        ("auto mTLS to DISABLE", vec![mesh("DISABLE")], [P; 4]),
        (
            "mutual clients to DISABLE",
            vec![mesh("DISABLE"), everywhere("ISTIO_MUTUAL")],
            [S, P, C, P],
        ),
        ("no peer authentication", vec![], [M, P, P, P]),
    ] {
        assert_eq!(reach(beta(), &policies), expected, "{case}");
    }
}

/// I1.31 tests/integration/security/reachability_test.go, "beta-per-port-mtls" and its kin.
#[test]
fn reachability_of_single_ports() {
    let ports = |mode: &str, port: &str| {
        let selector = "selector: {matchLabels: {app: b}}";
        peer(
            "ns/b",
            &format!(
                "{{{selector}, mtls: {{mode: {mode}}}, portLevelMtls: {{80: {{mode: {port}}}}}}}"
            ),
        )
    };
    for (text, expected) in [
        (ports("DISABLE", "STRICT"), [M, S, P, P]),
        (ports("STRICT", "DISABLE"), [P, P, M, S]),
        (ports("PERMISSIVE", "STRICT"), [M, S, M, P]),
    ] {
        let world = World::new(beta(), HOSTS, &text);
        let flows = ["a->b:80", "naked->b:80", "a->b:90", "naked->b:90"];
        assert_eq!(world.flows(flows), expected, "{text}");
    }
}

#[test]
fn p30_only_who_may_answer_answers() {
    let id = |account: &str| format!("spiffe://cluster.local/ns/ns/sa/{account}");
    for (names, expected) in [
        (vec![id("default")], C),
        (vec![id("b")], M),
        (vec!["I-do-not-exist".into()], C),
        (
            vec![id("a"), id("b"), "other".into(), "I-do-not-exist".into()],
            M,
        ),
    ] {
        let tls = format!(
            "{{mode: ISTIO_MUTUAL, subjectAltNames: [{}]}}",
            names.join(", ")
        );
        let text = rule(
            "ns/d",
            &format!("{{host: b, trafficPolicy: {{tls: {tls}}}}}"),
        );
        let world = World::new(beta(), HOSTS, &(strict() + &text));
        assert_eq!(world.outcome("a", "b:80"), expected, "P30 {names:?}");
        let refused = world.code("a", "b:80") == ReasonCode::IdentityNotAccepted;
        assert_eq!(refused, expected == C, "P30 {names:?}");
    }
}

#[test]
fn p39_ports_that_are_open_in_a_strict_workload() {
    let text = peer(
        "ns/p",
        "{selector: {matchLabels: {app: dst}}, mtls: {mode: STRICT}, \
         portLevelMtls: {18080: {mode: PERMISSIVE}, 19090: {mode: PERMISSIVE}}}",
    );
    let hosts = ["ns/mesh@a", "ns/dst@b 8080:http 18080:open", "ns/naked"];
    let world = World::new(beta(), &hosts, &text);
    assert_eq!(
        world.flows([
            "naked->dst:18080",
            "naked->dst:8080",
            "mesh->dst:8080",
            "mesh->dst:18080"
        ]),
        [P, S, M, M],
        "P39"
    );
}
