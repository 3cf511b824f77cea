//! Who may call: P33 to P37, and more of ztunnel's and Istio's tests at layer 4.

use identun::policy::{
    MeshSettings,
    ReasonCode::{DeniedByPolicy, MutualAuto, NoMatchingAllow},
    compiled::outcome::Outcome,
};

use super::world::*;

/// Whether each source may call `b` in the namespace `ns`; `naked` calls in the clear.
fn may_call<const N: usize>(text: &str, sources: [&str; N]) -> [bool; N] {
    let hosts = [
        "ns/b@b",
        "foo/foo@x",
        "foobar/foobar@x",
        "barfoo/barfoo@y",
        "ns/a@a",
        "foo/naked",
    ];
    let world = World::new(beta(), &hosts, text);
    sources.map(|source| {
        let (source, port) = source.split_once(':').unwrap_or((source, "80"));
        let outcome = world.outcome(source, &format!("b:{port}"));
        matches!(outcome, Outcome::Mtls | Outcome::Plaintext)
    })
}

/// An ALLOW policy with one source.
fn allow(source: &str) -> String {
    authorization(
        "ns/p",
        &format!("{{rules: [{{from: [{{source: {source}}}]}}]}}"),
    )
}

#[test]
fn p33_allow_without_rules_allows_nothing_and_with_an_empty_rule_everything() {
    let allowed = |spec: &str| may_call(&authorization("ns/p", spec), ["a", "naked"]);
    assert_eq!(allowed("{}"), [false; 2], "P33");
    assert_eq!(allowed("{action: ALLOW, rules: []}"), [false; 2], "P33");
    assert_eq!(allowed("{rules: [{}]}"), [true; 2], "P33");
    assert_eq!(allowed("{action: DENY, rules: [{}]}"), [false; 2], "P33");
}

#[test]
fn p34_deny_then_allow_then_closed() {
    let text = [
        authorization(
            "ns1/allow",
            "{rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/defaultacct]}}]}]}",
        ),
        authorization(
            "ns1/deny",
            "{action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/denyacct]}}]}]}",
        ),
    ];
    let hosts = [
        "ns1/one@one",
        "ns2/two@two",
        "default/known@defaultacct",
        "default/other@other",
        "default/denied@denyacct",
    ];
    let world = World::new(beta(), &hosts, &text.concat());
    for (source, destination, code) in [
        ("known", "one:80", MutualAuto),
        ("other", "one:80", NoMatchingAllow),
        ("denied", "one:80", DeniedByPolicy),
        ("other", "two:80", MutualAuto),
    ] {
        assert_eq!(
            world.code(source, destination),
            code,
            "P34 {source} -> {destination}"
        );
    }
}

#[test]
fn p35_a_namespace_is_that_of_the_identity() {
    let sources = ["naked", "foo", "barfoo"];
    assert_eq!(
        may_call(&allow("{namespaces: [foo]}"), sources),
        [false, true, false],
        "P35"
    );
    assert_eq!(
        may_call(&allow("{notNamespaces: [foo]}"), sources),
        [true, false, true],
        "P35"
    );
}

#[test]
fn p36_source_and_operation_both_match() {
    let text = authorization(
        "ns/p",
        "{rules: [{from: [{source: {namespaces: [foo]}}, {source: {namespaces: [barfoo]}}], \
         to: [{operation: {ports: [\"80\"]}}]}]}",
    );
    assert_eq!(
        may_call(&text, ["foo:80", "barfoo:80", "a:80", "barfoo:90"]),
        [true, true, false, false],
        "P36"
    );
}

#[test]
fn p37_exact_prefix_suffix_and_presence() {
    let sources = ["foo", "foobar", "barfoo", "naked"];
    for (value, expected) in [
        ("foo", [true, false, false, false]),
        ("foo*", [true, true, false, false]),
        ("*foo", [true, false, true, false]),
        ("*", [true, true, true, false]),
    ] {
        let text = allow(&format!("{{namespaces: [\"{value}\"]}}"));
        assert_eq!(may_call(&text, sources), expected, "P37 {value}");
        let text = allow(&format!("{{notNamespaces: [\"{value}\"]}}"));
        assert_eq!(
            may_call(&text, sources),
            expected.map(|one| !one),
            "P37 not {value}"
        );
    }
}

/// ZT src/rbac.rs, every attribute at layer 4.
#[test]
fn every_attribute_and_its_negation() {
    let sources = ["foo", "barfoo", "naked"];
    let source = |name: &str, values: &str| allow(&format!("{{{name}: [{values}]}}"));
    let when = |key: &str, list: &str, values: &str| {
        let when = format!("{{key: {key}, {list}: [{values}]}}");
        authorization("ns/p", &format!("{{rules: [{{when: [{when}]}}]}}"))
    };
    let foo = [true, false, false];
    let not_foo = [false, true, true];
    let id = "cluster.local/ns/foo/sa/x";
    for (text, expected) in [
        (source("principals", id), foo),
        (source("notPrincipals", id), not_foo),
        (source("principals", "\"*/sa/x\""), foo),
        (source("principals", "\"cluster.local/ns/foo/*\""), foo),
        (source("principals", "\"*\""), [true, true, false]),
        (source("notPrincipals", "\"*\""), [false, false, true]),
        (source("serviceAccounts", "foo/x"), foo),
        (source("notServiceAccounts", "foo/x"), not_foo),
        (source("serviceAccounts", "x"), [false; 3]),
        (source("ipBlocks", "10.0.0.2"), foo),
        (source("notIpBlocks", "10.0.0.2/32"), not_foo),
        (source("ipBlocks", "\"::/0\""), [false; 3]),
        (when("source.principal", "values", id), foo),
        (when("source.principal", "notValues", id), not_foo),
        (when("source.namespace", "values", "foo"), foo),
        (when("source.ip", "values", "10.0.0.2"), foo),
        (when("destination.ip", "values", "10.0.0.1"), [true; 3]),
        (when("destination.ip", "notValues", "10.0.0.1"), [false; 3]),
        (when("destination.port", "values", "\"80\""), [true; 3]),
        (when("destination.port", "notValues", "\"80\""), [false; 3]),
    ] {
        assert_eq!(may_call(&text, sources), expected, "{text}");
    }
}

/// policy.md 5.4: how ambient says STRICT.
#[test]
fn deny_to_everybody_without_a_principal_refuses_plaintext() {
    let text = authorization(
        "ns/p",
        "{action: DENY, rules: [{from: [{source: {notPrincipals: [\"*\"]}}]}]}",
    );
    assert_eq!(may_call(&text, ["a", "naked"]), [true, false]);
}

/// I1.31 tests/integration/security/authz_test.go: mesh-wide, selected, selected from the root namespace.
#[test]
fn the_scope_is_selector_and_namespace_and_root_selects_everywhere() {
    let deny = |name: &str, selector: &str| {
        authorization(name, &format!("{{{selector}action: DENY, rules: [{{}}]}}"))
    };
    let b = "selector: {matchLabels: {app: b}}, ";
    for (text, expected) in [
        (deny("istio-system/p", ""), [false, false]),
        (deny("ns/p", ""), [false, true]),
        (deny("ns/p", b), [false, true]),
        (deny("istio-system/p", b), [false, true]),
        (deny("ns2/p", b), [true, true]),
        (deny("ns2/p", ""), [true, false]),
    ] {
        let hosts = ["ns/b@b", "ns2/c@c", "ns/a@a"];
        let world = World::new(beta(), &hosts, &text);
        let open = world
            .flows(["a->b:80", "a->c:80"])
            .map(|end| end == Outcome::Mtls);
        assert_eq!(open, expected, "{text}");
    }
}

/// I1.31 tests/integration/security/authz_test.go TestAuthz_DryRun, and AUDIT.
#[test]
fn what_is_only_told_neither_denies_nor_closes() {
    let dry = |spec: &str| {
        authorization("ns/p", spec).replace(
            "namespace: ns",
            "namespace: ns, annotations: {istio.io/dry-run: \"true\"}",
        )
    };
    for text in [
        dry("{action: DENY, rules: [{}]}"),
        dry("{}"),
        authorization("ns/p", "{action: AUDIT, rules: [{}]}"),
    ] {
        assert_eq!(may_call(&text, ["a", "naked"]), [true; 2], "{text}");
    }
}

/// I1.31 tests/integration/security TestAuthz_TrustDomainAlias.
#[test]
fn the_aliases_of_a_trust_domain_are_its_own_name() {
    let source = |source: &str| allow(&format!("{{{source}}}"));
    for (text, expected) in [
        (source("principals: [old/ns/ns/sa/a]"), true),
        (source("principals: [cluster.local/ns/ns/sa/a]"), true),
        (source("principals: [other/ns/ns/sa/a]"), false),
        (source("principals: [\"old/*\"]"), true),
        (source("notPrincipals: [old/ns/ns/sa/a]"), false),
        (source("trustDomains: [old]"), true),
        (source("notTrustDomains: [old]"), false),
        (source("trustDomains: [other]"), false),
    ] {
        let mesh = MeshSettings {
            trust_domain_aliases: vec!["old".parse().unwrap()],
            ..beta()
        };
        let world = World::new(mesh, &["ns/a@a", "ns/b@b"], &text);
        let is_open = world.outcome("a", "b:80") == Outcome::Mtls;
        assert_eq!(is_open, expected, "{text}");
    }
}

/// policy.md 0.6: what has no port matches no port, and what is closed stays closed.
#[test]
fn a_packet_without_a_port_fails_closed() {
    let operation = |action: &str, operation: &str| {
        let rules = format!("[{{to: [{{operation: {{{operation}}}}}]}}]");
        authorization("ns/p", &format!("{{action: {action}, rules: {rules}}}"))
    };
    for (text, expected) in [
        (operation("ALLOW", "ports: [\"80\"]"), false),
        (operation("ALLOW", "notPorts: [\"80\"]"), false),
        (operation("DENY", "ports: [\"80\"]"), true),
        (operation("DENY", "notPorts: [\"80\"]"), false),
    ] {
        let world = World::new(beta(), &["ns/a@a", "ns/b@b"], &text);
        let is_open = world.outcome("a", "b") == Outcome::Mtls;
        assert_eq!(is_open, expected, "{text}");
    }
}

/// Outside the mesh nobody enforces.
#[test]
fn a_host_outside_the_mesh_refuses_nobody() {
    let text = authorization("istio-system/p", "{action: DENY, rules: [{}]}");
    let world = World::new(beta(), &["ns/a@a", "ns/naked"], &text);
    assert_eq!(world.outcome("a", "naked:80"), Outcome::Plaintext);
}
