//! Both sides of a service port next to each other: P15 to P17.

use std::sync::Arc;

use identun::policy::MeshSettings;

use super::world::*;

/// SERVER, CLIENT, STATUS, AUTHN POLICY and DESTINATION RULE of foo:8080 for clients of the namespace `default`.
fn row(mesh: MeshSettings, host: &str, text: &str) -> [String; 5] {
    let world = World::new(mesh, &[host], text);
    let checked = world.compiled.tls_check(&Arc::from("default"));
    let [row] = &checked.rows[..] else {
        panic!("{checked:#?}")
    };
    let name = |rule: &Option<identun::policy::RuleRef>| {
        let rule = rule.as_ref().map(|rule| &rule.resource);
        rule.map_or_else(
            || "-".into(),
            |rule| format!("{}/{}", rule.namespace, rule.name),
        )
    };
    let text = |value: serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    [
        row.server.to_string(),
        text(serde_json::to_value(row.client).unwrap()),
        text(serde_json::to_value(row.status).unwrap()),
        name(&row.authn_policy),
        name(&row.destination_rule),
    ]
}

fn some_rule(policy: &str) -> String {
    let spec = format!("{{host: foo.bar.svc.cluster.local, trafficPolicy: {policy}}}");
    rule("default/some-rule", &spec)
}

fn strict() -> String {
    policy("bar/foo", "{targets: [{name: foo}], peers: [{mtls: }]}")
}

#[test]
fn p15_nothing_is_said() {
    let auto = MeshSettings {
        auto_mtls: true,
        ..alpha()
    };
    let host = "default/foo@a 8080:http";
    assert_eq!(
        row(alpha(), host, ""),
        ["DISABLE", "-", "OK", "-", "-"],
        "P15"
    );
    assert_eq!(
        row(auto, host, ""),
        ["DISABLE", "-", "AUTO", "-", "-"],
        "P15"
    );
}

#[test]
fn p16_plaintext_to_a_strict_server_is_a_conflict() {
    let text = strict() + &some_rule("{tls: {mode: DISABLE}}");
    assert_eq!(
        row(alpha(), "bar/foo@a 8080:http", &text),
        [
            "STRICT",
            "DISABLE",
            "CONFLICT",
            "bar/foo",
            "default/some-rule"
        ],
        "P16"
    );
}

#[test]
fn p17_the_ports_own_settings_count() {
    let ports = "portLevelSettings: [{port: {number: 8080}, tls: {mode: ISTIO_MUTUAL}}]";
    let text = strict() + &some_rule(&format!("{{tls: {{mode: DISABLE}}, {ports}}}"));
    assert_eq!(
        row(alpha(), "bar/foo@a 8080:http", &text),
        [
            "STRICT",
            "ISTIO_MUTUAL",
            "OK",
            "bar/foo",
            "default/some-rule"
        ],
        "P17"
    );
}
