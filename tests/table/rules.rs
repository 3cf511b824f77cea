//! Which DestinationRule a client follows: P24 to P27, and more.

use identun::policy::{compiled::outcome::Outcome, load::resolve_host};

use super::world::*;

#[test]
fn p24_short_names_are_of_the_namespace_of_their_rule() {
    let domain = "cluster.local";
    for (host, namespace, expected) in [
        ("foo", "default", "foo.default.svc.cluster.local"),
        ("foo.bar", "default", "foo.bar"),
        ("*", "default", "*"),
        ("42.185.131.210", "default", "42.185.131.210"),
        ("2a00:4000::614", "default", "2a00:4000::614"),
        ("foo", "", "foo.svc.cluster.local"),
    ] {
        assert_eq!(
            resolve_host(host, namespace, domain),
            expected,
            "P24 {host}"
        );
    }
}

#[test]
fn p25_the_longest_wildcard_is_the_most_specific() {
    let disable = |name: &str, host: &str| {
        rule(
            name,
            &format!("{{host: \"{host}\", trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"),
        )
    };
    let text = disable("ns/long", "*.foo.com") + &disable("ns/short", "*.com");
    let hosts = [
        "ns/a@a",
        "ns/bar.foo.com@b",
        "ns/foo.com@c",
        "ns/x.example@d",
    ];
    let world = World::new(beta(), &hosts, &text);
    for (host, expected) in [
        ("bar.foo.com:80", Some("ns/long")),
        ("foo.com:80", Some("ns/short")),
        ("x.example:80", None),
    ] {
        assert_eq!(
            world.client_rule("a", host).as_deref(),
            expected,
            "P25 {host}"
        );
    }
}

/// I1.31 pilot/pkg/model/push_context_test.go TestSetDestinationRuleWithExportTo.
fn exported() -> String {
    let rule = |name: &str, export: &str| {
        rule(
            name,
            &format!("{{host: httpbin.org{export}, trafficPolicy: {{tls: {{mode: DISABLE}}}}}}"),
        )
    };
    [
        rule("test1/r", ", exportTo: [\".\", ns1]"),
        rule("test2/r", ", exportTo: [test2, ns1, test1, newns]"),
        rule("istio-system/r", ""),
    ]
    .concat()
}

#[test]
fn p26_p27_client_namespace_then_service_namespace_then_root() {
    for (case, client, service, expected) in [
        ("P26", "test1", "test2", "test1/r"),
        ("P26", "test2", "test1", "test2/r"),
        ("P27", "newns", "test2", "test2/r"),
        ("P27", "ns1", "random", "istio-system/r"),
        (
            "exported from the service's namespace",
            "ns1",
            "test1",
            "test1/r",
        ),
        (
            "not exported: nothing, then root",
            "alien",
            "test2",
            "istio-system/r",
        ),
    ] {
        let hosts = [format!("{client}/a@a"), format!("{service}/httpbin.org@b")];
        let hosts = [&*hosts[0], &*hosts[1]];
        let world = World::new(beta(), &hosts, &exported());
        let found = world.client_rule("a", "httpbin.org:80");
        assert_eq!(
            found.as_deref(),
            Some(expected),
            "{case}: {client} -> {service}"
        );
    }
}

/// policy.md 3.3: namespace order beats specificity, and nothing is inherited between pools.
#[test]
fn a_rule_of_the_clients_namespace_hides_all_others() {
    let text = [
        rule(
            "ns/wide",
            "{host: \"*\", trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
        ),
        everywhere("DISABLE"),
    ];
    let world = World::new(beta(), &["ns/a@a", "ns/b@b"], &text.concat());
    assert_eq!(world.client_rule("a", "b:80").as_deref(), Some("ns/wide"));
    assert_eq!(
        world.outcome("a", "b:80"),
        Outcome::Mtls,
        "auto mTLS: the rule says nothing"
    );
}

/// policy.md 3.5: the oldest keeps its trafficPolicy, else it takes the next one's.
#[test]
fn rules_of_one_host_are_merged_oldest_first() {
    let tls = |mode: &str| format!("{{host: b, trafficPolicy: {{tls: {{mode: {mode}}}}}}}");
    for (rules, expected) in [
        (
            vec![tls("DISABLE"), tls("ISTIO_MUTUAL")],
            Outcome::Plaintext,
        ),
        (vec!["{host: b}".into(), tls("DISABLE")], Outcome::Plaintext),
        (vec![tls("ISTIO_MUTUAL"), tls("DISABLE")], Outcome::Mtls),
    ] {
        let texts = rules.iter().zip(["one", "two"]).zip(0..);
        let text: String = texts
            .map(|((spec, name), age)| aged("DestinationRule", &format!("ns/{name}"), age, spec))
            .collect();
        let world = World::new(beta(), &["ns/a@a", "ns/b@b"], &text);
        assert_eq!(world.outcome("a", "b:80"), expected, "{text}");
    }
}

/// policy.md 3.6: a port's entry replaces the block, and without tls there it is unset.
#[test]
fn a_ports_settings_replace_those_of_the_rule() {
    let text = rule(
        "ns/d",
        "{host: b, trafficPolicy: {tls: {mode: DISABLE}, portLevelSettings: \
         [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}, {port: {number: 90}, loadBalancer: {simple: RANDOM}}]}}",
    );
    let hosts = ["ns/a@a", "ns/b@b 80:http 90:tcp 100:other"];
    let world = World::new(beta(), &hosts, &text);
    assert_eq!(
        world.flows(["a->b:80", "a->b:90", "a->b:100"]),
        [Outcome::Mtls, Outcome::Mtls, Outcome::Plaintext]
    );
}

/// I1.31 pilot/pkg/model/push_context_test.go TestSetDestinationRuleWithWorkloadSelector.
#[test]
fn a_rule_for_some_clients_beats_the_one_for_all() {
    let tls = |mode: &str| format!("trafficPolicy: {{tls: {{mode: {mode}}}}}");
    let text = [
        rule("ns/all", &format!("{{host: b, {}}}", tls("DISABLE"))),
        rule(
            "ns/some",
            &format!(
                "{{host: b, workloadSelector: {{matchLabels: {{app: a}}}}, {}}}",
                tls("ISTIO_MUTUAL")
            ),
        ),
    ];
    let world = World::new(beta(), &["ns/a@a", "ns/b@b", "ns/c@c"], &text.concat());
    assert_eq!(
        world.flows(["a->b:80", "c->b:80"]),
        [Outcome::Mtls, Outcome::Plaintext]
    );
}
