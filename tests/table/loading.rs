//! What the loader takes and what it refuses: P01 to P05, P23, P28, P29, P33, P38.

use identun::policy::{MeshSettings, Mode, Severity, settings::L7};

use super::world::*;

/// Each text with whether it is valid.
fn check(case: &str, texts: &[(String, bool)]) {
    for (text, valid) in texts {
        let (is_valid, said) = validate(&beta(), text);
        assert_eq!(is_valid, *valid, "{case}\n{text}{said:?}");
    }
}

const PERMISSIVE: &str = "{peers: [{mtls: {mode: PERMISSIVE}}]}";

#[test]
fn p01_a_mesh_policy_is_named_default() {
    check(
        "P01",
        &[
            (resource("MeshPolicy", "boo", PERMISSIVE), false),
            (mesh_policy(PERMISSIVE), true),
        ],
    );
}

#[test]
fn p02_a_mesh_policy_has_no_targets() {
    check("P02", &[(mesh_policy("{targets: [{name: foo}]}"), false)]);
}

#[test]
fn p03_a_policy_is_named_default_or_has_targets() {
    check(
        "P03",
        &[
            (policy("ns/some-name", "{}"), false),
            (policy("ns/default", "{targets: [{name: foo}]}"), false),
            (policy("ns/default", "{}"), true),
            (policy("ns/some-name", "{targets: [{name: foo}]}"), true),
        ],
    );
}

#[test]
fn p04_a_target_is_a_dns_label() {
    let target = |name: &str| policy("ns/p", &format!("{{targets: [{{name: {name}}}]}}"));
    check(
        "P04",
        &[
            (target("bad.target"), false),
            (target("good-target"), true),
            (target("Bad"), false),
            (target("-bad"), false),
            (target(&"a".repeat(63)), true),
            (target(&"a".repeat(64)), false),
        ],
    );
}

#[test]
fn p05_the_first_mtls_entry_gives_the_mode_and_none_means_plaintext() {
    for (peers, mode) in [
        ("[{mtls: null}]", Mode::Strict),
        ("[{mtls: {}}]", Mode::Strict),
        ("[{mtls: {mode: PERMISSIVE}}]", Mode::Permissive),
        ("[]", Mode::Disable),
    ] {
        let spec = format!("{{peers: {peers}}}");
        let texts = [
            mesh_policy(&spec),
            policy("ns/default", &spec),
            policy(
                "ns/p",
                &format!("{{targets: [{{name: b}}], peers: {peers}}}"),
            ),
        ];
        for text in texts {
            let world = World::new(alpha(), &["ns/b@b"], &text);
            assert_eq!(world.mode("b:80").0, mode, "P05 {peers}\n{text}");
        }
    }
    let jwt = mesh_policy("{peers: [{jwt: {issuer: testing@example.com}}]}");
    check(
        "P05",
        &[
            (jwt, false),
            (mesh_policy("{peers: [{mtls: {mode: DISABLE}}]}"), false),
        ],
    );
}

#[test]
fn p23_a_peer_authentication_with_ports_selects_workloads() {
    let ports = "portLevelMtls: {8080: {mode: STRICT}}";
    let selector = "selector: {matchLabels: {app: foo}}";
    check(
        "P23",
        &[
            (peer("ns/p", &format!("{{{ports}}}")), false),
            (peer("ns/p", "{selector: {}}"), true),
            (
                peer("ns/p", &format!("{{{selector}, portLevelMtls: {{}}}}")),
                false,
            ),
            (peer("ns/default", &format!("{{{selector}}}")), true),
            (
                peer("ns/default", &format!("{{{selector}, {ports}}}")),
                true,
            ),
        ],
    );
    let (_, said) = validate(&beta(), &peer("ns/p", "{selector: {}}"));
    let warns = said
        .iter()
        .any(|(severity, _)| *severity == Severity::Warning);
    assert!(warns, "P23 {said:?}");
}

#[test]
fn p23_ports_modes_and_labels_are_checked() {
    let spec = |ports: &str| {
        let spec = format!("{{selector: {{matchLabels: {{app: foo}}}}, portLevelMtls: {ports}}}");
        peer("ns/p", &spec)
    };
    let labels = |labels: &str| peer("ns/p", &format!("{{selector: {{matchLabels: {labels}}}}}"));
    check(
        "policy.md 2.4",
        &[
            (spec("{0: {mode: STRICT}}"), false),
            (spec("{65536: {mode: STRICT}}"), false),
            (spec("{http: {mode: STRICT}}"), false),
            (spec("{80: {mode: strict}}"), false),
            (spec("{80: {}}"), true),
            (spec("{80: {mode: UNSET}}"), true),
            (labels("{\"\": x}"), false),
            (labels("{app: \"*\"}"), false),
            (labels("{app: \"\"}"), true),
            (labels("{}"), true),
            (peer("ns/p", "{mtls: {mode: TLS}}"), false),
            (peer("ns/p", "{mtls: {}}"), true),
            (peer("ns/p", "{}"), true),
        ],
    );
}

#[test]
fn p28_a_traffic_policy_says_something() {
    let spec = |policy: &str| {
        rule(
            "ns/d",
            &format!("{{host: foo.bar.com, trafficPolicy: {policy}}}"),
        )
    };
    check(
        "P28",
        &[
            (spec("{}"), false),
            (spec("{portLevelSettings: [{tls: {mode: DISABLE}}]}"), false),
            (spec("{portLevelSettings: [{port: {number: 80}}]}"), false),
            (
                spec("{portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}"),
                true,
            ),
            (
                spec("{tls: {mode: MUTUAL, clientCertificate: /c.pem}}"),
                false,
            ),
        ],
    );
}

#[test]
fn p29_nobody_skips_verification() {
    let spec = |tls: &str| {
        rule(
            "ns/d",
            &format!("{{host: foo.bar.com, trafficPolicy: {{tls: {{{tls}}}}}}}"),
        )
    };
    check(
        "P29",
        &[
            (
                spec("mode: SIMPLE, insecureSkipVerify: true, subjectAltNames: [a]"),
                false,
            ),
            (spec("mode: ISTIO_MUTUAL, insecureSkipVerify: true"), false),
            (spec("mode: ISTIO_MUTUAL, insecureSkipVerify: false"), true),
        ],
    );
}

#[test]
fn p33_deny_without_rules_is_never_triggered() {
    check(
        "P33",
        &[
            (authorization("ns/p", "{action: DENY}"), false),
            (authorization("ns/p", "{action: DENY, rules: []}"), false),
            (authorization("ns/p", "{action: DENY, rules: [{}]}"), true),
            (authorization("ns/p", "{action: ALLOW}"), true),
            (authorization("ns/p", "{}"), true),
            (authorization("ns/p", "{rules: [{}]}"), true),
        ],
    );
}

/// I1.31 pkg/config/validation/validation_test.go TestValidateAuthorizationPolicy, its L4 part.
#[test]
fn p33_empty_clauses_and_bad_values_are_refused() {
    let rules = |rules: &str| authorization("ns/p", &format!("{{rules: [{rules}]}}"));
    let source = |source: &str| rules(&format!("{{from: [{{source: {source}}}]}}"));
    let operation = |operation: &str| rules(&format!("{{to: [{{operation: {operation}}}]}}"));
    let when = |when: &str| rules(&format!("{{when: [{when}]}}"));
    check(
        "policy.md 5.6",
        &[
            (rules("{from: []}"), false),
            (rules("{to: []}"), false),
            (source("{}"), false),
            (source("null"), false),
            (operation("{}"), false),
            (source("{principals: []}"), false),
            (source("{principals: [\"\"]}"), false),
            (source("{principals: [td/ns/a/sa/b]}"), true),
            (source("{principals: [\"spiffe://td/ns/a/sa/b\"]}"), false),
            (source("{principals: [\"td/*/sa\"]}"), false),
            (
                source("{ipBlocks: [10.0.0.0/8, \"fd00::/8\", 1.2.3.4]}"),
                true,
            ),
            (source("{ipBlocks: [10.0.0.0/33]}"), false),
            (source("{ipBlocks: [host.example]}"), false),
            (source("{serviceAccounts: [a, b/c]}"), true),
            (source("{serviceAccounts: [a], namespaces: [b]}"), false),
            (source("{serviceAccounts: [\"*\"]}"), false),
            (operation("{ports: [\"80\"]}"), true),
            (operation("{ports: [\"0\"]}"), false),
            (operation("{ports: [\"65536\"]}"), false),
            (operation("{ports: [http]}"), false),
            (when("{key: source.ip, values: [10.0.0.0/8]}"), true),
            (when("{key: source.ip, values: [localhost]}"), false),
            (when("{key: source.ip}"), false),
            (when("{values: [a]}"), false),
            (when("{key: destination.port, notValues: [\"80\"]}"), true),
            (when("{key: destination.user, values: [a]}"), false),
            (when("{key: nonsense, values: [a]}"), false),
            (
                authorization("ns/p", "{action: CUSTOM, rules: [{}]}"),
                false,
            ),
            (authorization("ns/p", "{action: AUDIT, rules: [{}]}"), true),
            (authorization("ns/p", "{action: allow, rules: [{}]}"), false),
            (
                authorization("ns/p", "{selector: {matchLabels: {app: \"*\"}}}"),
                false,
            ),
        ],
    );
}

#[test]
fn p38_rules_that_packets_cannot_show_are_refused_or_dropped_never_ignored() {
    let text = authorization(
        "ns/p",
        r#"
  rules:
  - from: [{source: {principals: [cluster.local/ns/ns/sa/a], requestPrincipals: ["*"]}}]
    to: [{operation: {ports: ["80"]}}]
  - from: [{source: {principals: [cluster.local/ns/ns/sa/a]}}]
    to: [{operation: {ports: ["80"], methods: [GET]}}]
  - from:
    - source: {principals: [only-l4-principals]}
    - source: {namespaces: [only-l4-ns]}
    to: [{operation: {ports: ["80"]}}]
"#,
    );
    assert!(!is_valid(&text), "P38: refused by default");
    let mesh = MeshSettings {
        l7: L7::StrictDrop,
        ..beta()
    };
    let world = World::new(mesh, &["ns/b@b"], &text);
    let [policy] = &world.resources.authorization_policies[..] else {
        panic!("P38")
    };
    let numbers: Vec<_> = policy.rules.iter().map(|rule| rule.number).collect();
    assert_eq!(numbers, [3], "P38");
}
