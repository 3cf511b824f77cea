//! Sections 1 and 2: MeshPolicy, Policy and PeerAuthentication.

use identun::policy::{Mode, document::PortSelector};

use crate::{check, loaded, resource, row, valid};

fn mesh_policy(metadata: &str, spec: &str) -> String {
    resource(
        "authentication.istio.io/v1alpha1",
        "MeshPolicy",
        metadata,
        spec,
    )
}

fn policy(metadata: &str, spec: &str) -> String {
    resource(
        "authentication.istio.io/v1alpha1",
        "Policy",
        &format!("{metadata}, namespace: shop"),
        spec,
    )
}

/// A Policy with these entries of `peers`, and what else its spec says.
fn peers(peers: &str, more: &str) -> String {
    policy("name: default", &format!("{{peers: [{peers}]{more}}}"))
}

/// A Policy with this target.
fn target(fields: &str) -> String {
    policy(
        "name: web",
        &format!("{{targets: [{fields}], peers: [{{mtls: ~}}]}}"),
    )
}

fn peer_authentication(metadata: &str, spec: &str) -> String {
    resource("security.istio.io/v1", "PeerAuthentication", metadata, spec)
}

/// A PeerAuthentication with a selector.
fn selecting(fields: &str) -> String {
    peer_authentication(
        "name: default, namespace: shop",
        &format!("{{selector: {{matchLabels: {{app: web}}}}, {fields}}}"),
    )
}

const STRICT: &str = "{peers: [{mtls: {}}]}";

#[test]
fn section_1_1_fields_of_policies() {
    check(vec![
        row(
            "targets[].labels: error",
            "error IDT0413",
            target("{name: web, ¦labels: {app: web}}"),
        ),
        valid(
            "targets[].ports: number or name",
            target("{name: web, ports: [{number: 80}, {name: http}]}"),
        ),
        row(
            "peers[].jwt: error",
            "error IDT0403",
            peers("{¦jwt: {issuer: x}}", ""),
        ),
        row(
            "origins: error",
            "error IDT0403",
            peers("{mtls: ~}", ", ¦origins: [{jwt: {issuer: x}}]"),
        ),
        row(
            "originIsOptional: warn",
            "warning IDT0452",
            peers("{mtls: ~}", ", originIsOptional: ¦true"),
        ),
        row(
            "originIsOptional with origins: error",
            "error IDT0403, warning IDT0452",
            peers(
                "{mtls: ~}",
                ", ¦origins: [{jwt: {}}], originIsOptional: ¦true",
            ),
        ),
        valid(
            "principalBinding USE_PEER: accept",
            peers("{mtls: ~}", ", principalBinding: USE_PEER"),
        ),
        row(
            "USE_ORIGIN without origins: warn",
            "warning IDT0452",
            peers("{mtls: ~}", ", principalBinding: ¦USE_ORIGIN"),
        ),
        row(
            "USE_ORIGIN: error",
            "error IDT0403, error IDT0403",
            peers(
                "{mtls: ~}",
                ", ¦origins: [{jwt: {}}], principalBinding: ¦USE_ORIGIN",
            ),
        ),
    ]);
}

#[test]
fn section_1_2_effective_mode() {
    check(vec![
        row(
            "later mtls entries: warn",
            "warning IDT0451",
            peers("{mtls: ~}, {mtls: {mode: ¦PERMISSIVE}}", ""),
        ),
        row(
            "no mtls entry: plaintext only, said aloud",
            "warning IDT0453",
            policy("name: default", "{¦peers: []}"),
        ),
        row(
            "mode DISABLE is none of alpha1",
            "error IDT0203",
            peers("{mtls: {mode: ¦DISABLE}}", ""),
        ),
        row(
            "mode UNSET is none of alpha1",
            "error IDT0203",
            peers("{mtls: {mode: ¦UNSET}}", ""),
        ),
        row(
            "an entry without method",
            "error IDT0404, error IDT0404",
            peers("¦{}, ¦~", ""),
        ),
    ]);
}

#[test]
fn section_1_4_nothing_weakens() {
    check(vec![
        row(
            "allowTls: true: warn",
            "warning IDT0452",
            peers("{mtls: {allowTls: ¦true}}", ""),
        ),
        valid(
            "allowTls: false: accept",
            peers("{mtls: {allowTls: false}}", ""),
        ),
        row(
            "peerIsOptional: true: warn",
            "warning IDT0452",
            peers("{mtls: ~}", ", peerIsOptional: ¦true"),
        ),
        valid(
            "peerIsOptional: false: accept",
            peers("{mtls: ~}", ", peerIsOptional: false"),
        ),
    ]);
    let weak = loaded(&peers("{mtls: {allowTls: true}}", ", peerIsOptional: true"));
    assert_eq!(weak.policies[0].mode.value, Mode::Strict);
}

#[test]
fn section_1_5_validation_of_mesh_policies_and_policies() {
    check(vec![
        row(
            "MeshPolicy: name must be `default`",
            "error IDT0401",
            mesh_policy("name: ¦boo", STRICT),
        ),
        row(
            "MeshPolicy: no targets",
            "error IDT0402",
            mesh_policy(
                "name: default",
                "{¦targets: [{name: a}], peers: [{mtls: ~}]}",
            ),
        ),
        row(
            "Policy without targets must be named `default`",
            "error IDT0412",
            policy("name: ¦web", STRICT),
        ),
        row(
            "Policy named `default` must have no targets",
            "error IDT0412",
            policy(
                "name: default",
                "{¦targets: [{name: a}], peers: [{mtls: ~}]}",
            ),
        ),
        valid(
            "Policy named `default` with an empty list",
            policy("name: default", "{targets: [], peers: [{mtls: ~}]}"),
        ),
        row(
            "target name: no dots",
            "error IDT0206",
            target("{name: ¦web.shop}"),
        ),
        row(
            "target name: no capitals",
            "error IDT0206",
            target("{name: ¦Web}"),
        ),
        row(
            "target name: at least one character",
            "error IDT0210",
            target("{name: ¦\"\"}"),
        ),
        row(
            "target name: required",
            "error IDT0204",
            target("¦{ports: [{number: 80}]}"),
        ),
        row(
            "target name: at most 63 characters",
            "error IDT0206",
            target(&format!("{{name: ¦{}}}", "a".repeat(64))),
        ),
        valid(
            "target name: 63 characters",
            target(&format!("{{name: {}}}", "a".repeat(63))),
        ),
        row(
            "port selector: neither",
            "error IDT0204",
            target("{name: web, ports: [¦{}]}"),
        ),
        row(
            "port selector: both",
            "error IDT0410",
            target("{name: web, ports: [¦{number: 80, name: http}]}"),
        ),
        row(
            "port selector: 0",
            "error IDT0205",
            target("{name: web, ports: [{number: ¦0}]}"),
        ),
        row(
            "port selector: above 65535",
            "error IDT0205",
            target("{name: web, ports: [{number: ¦65536}]}"),
        ),
        row(
            "port selector: name is a DNS label",
            "error IDT0206",
            target("{name: web, ports: [{name: ¦Http}]}"),
        ),
        row(
            "jwt: an error anyway",
            "error IDT0403",
            peers("{mtls: ~}, {¦jwt: {issuer: \"\"}}", ""),
        ),
        row(
            "origins entry null or without jwt",
            "error IDT0403",
            peers("{mtls: ~}", ", ¦origins: [~, {}]"),
        ),
        row(
            "MeshPolicy with metadata.namespace",
            "error IDT0307",
            mesh_policy("name: default, ¦namespace: shop", STRICT),
        ),
        row(
            "v1alpha1 used at all: MeshPolicy",
            "info IDT0462",
            mesh_policy("name: ¦default", STRICT),
        ),
        row(
            "v1alpha1 used at all: Policy",
            "info IDT0462",
            policy("name: ¦default", STRICT),
        ),
    ]);
}

#[test]
fn targets_are_services_of_the_own_namespace() {
    let text = target("{name: web}, {name: db, ports: [{number: 5432}, {name: sql}]}");
    let policy = loaded(&text).policies.remove(0);
    let hosts: Vec<_> = policy
        .targets
        .iter()
        .map(|target| format!("{} {}", target.host.value, target.host.place))
        .collect();
    assert_eq!(
        hosts,
        [
            "web.shop.svc.cluster.local test.yaml:4:25",
            "db.shop.svc.cluster.local test.yaml:4:38"
        ]
    );
    let ports: Vec<_> = policy.targets[1]
        .ports
        .iter()
        .map(|port| &port.value)
        .collect();
    let named = PortSelector::Name("sql".into());
    assert_eq!(ports, [&PortSelector::Number(5432), &named]);
    assert!(policy.targets[0].ports.is_empty());
    assert_eq!(policy.resource.to_string(), "Policy shop/web");
    assert_eq!(policy.place.to_string(), "test.yaml:3:18");
}

#[test]
fn section_2_4_validation_of_peer_authentications() {
    let plain = |spec: &str| peer_authentication("name: x, namespace: shop", spec);
    check(vec![
        row(
            "portLevelMtls without a non-empty selector",
            "error IDT0414",
            plain("{¦portLevelMtls: {8080: {mode: STRICT}}}"),
        ),
        row(
            "portLevelMtls with an empty selector",
            "warning IDT0460, error IDT0414",
            plain("{selector: ¦{}, ¦portLevelMtls: {8080: {mode: STRICT}}}"),
        ),
        row(
            "portLevelMtls present but empty map",
            "error IDT0210",
            selecting("portLevelMtls: ¦{}"),
        ),
        valid(
            "portLevelMtls: null is absent",
            selecting("portLevelMtls: ~"),
        ),
        row(
            "port key 0",
            "error IDT0205",
            selecting("portLevelMtls: {¦0: {mode: STRICT}}"),
        ),
        row(
            "port key 65536",
            "error IDT0205",
            selecting("portLevelMtls: {¦65536: {mode: STRICT}}"),
        ),
        row(
            "port key not an integer",
            "error IDT0205",
            selecting("portLevelMtls: {¦http: {mode: STRICT}}"),
        ),
        valid(
            "port keys 1 and 65535",
            selecting("portLevelMtls: {1: {mode: STRICT}, \"65535\": {mode: DISABLE}}"),
        ),
        row(
            "the same port twice",
            "error IDT0102",
            selecting("portLevelMtls: {80: {}, ¦\"80\": {}}"),
        ),
        row(
            "mode: case counts",
            "error IDT0203",
            plain("{mtls: {mode: ¦strict}}"),
        ),
        row(
            "mode of a port",
            "error IDT0203",
            selecting("portLevelMtls: {80: {mode: ¦MUTUAL}}"),
        ),
        valid("mode: UNSET", plain("{mtls: {mode: UNSET}}")),
        valid("mode: DISABLE", plain("{mtls: {mode: DISABLE}}")),
        valid("mode: PERMISSIVE", plain("{mtls: {mode: PERMISSIVE}}")),
        valid("mode: STRICT", plain("{mtls: {mode: STRICT}}")),
        row(
            "selector: empty key",
            "error IDT0213",
            plain("{selector: {matchLabels: {¦\"\": a}}}"),
        ),
        row(
            "selector: `*` in a key",
            "error IDT0213",
            plain("{selector: {matchLabels: {¦a*: a}}}"),
        ),
        row(
            "selector: `*` in a value",
            "error IDT0213",
            plain("{selector: {matchLabels: {app: ¦a*}}}"),
        ),
        valid(
            "selector: empty value",
            plain("{selector: {matchLabels: {app: \"\"}}}"),
        ),
        row(
            "`selector: {}`",
            "warning IDT0460",
            plain("{selector: ¦{}}"),
        ),
        row(
            "`matchLabels: {}`",
            "warning IDT0460",
            plain("{selector: ¦{matchLabels: {}}}"),
        ),
        valid("`selector: ~` is no selector", plain("{selector: ~}")),
        valid("an absent spec is UNSET", plain("~")),
        row(
            "2.1: a selector in the root namespace is ignored",
            "warning IDT0463",
            peer_authentication(
                "name: x, namespace: istio-system",
                "{¦selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}",
            ),
        ),
    ]);
}

#[test]
fn section_2_4_the_second_policy_of_a_namespace() {
    let policy = |metadata: &str| peer_authentication(metadata, "{mtls: {mode: STRICT}}");
    let join = |policies: &[&str]| {
        policies
            .iter()
            .map(|one| policy(one))
            .collect::<Vec<_>>()
            .join("---\n")
    };
    check(vec![
        row(
            "second no-selector policy in one namespace: by name, whatever the order of the text",
            "warning IDT0464",
            join(&["name: ¦b, namespace: shop", "name: a, namespace: shop"]),
        ),
        row(
            "second no-selector policy in one namespace: by age",
            "warning IDT0464",
            join(&[
                "name: ¦a, namespace: shop, creationTimestamp: 2024-01-01T00:00:01Z",
                "name: b, namespace: shop, creationTimestamp: 2024-01-01T00:00:00Z",
            ]),
        ),
        row(
            "the root namespace, too",
            "warning IDT0464, warning IDT0464",
            join(&[
                "name: a, namespace: istio-system",
                "name: ¦b, namespace: istio-system",
                "name: ¦c, namespace: istio-system",
            ]),
        ),
        valid(
            "each namespace has its own",
            join(&[
                "name: a, namespace: shop",
                "name: a, namespace: istio-system",
            ]),
        ),
        valid(
            "one with a selector is another level",
            [
                policy("name: a, namespace: shop"),
                selecting("mtls: {mode: STRICT}"),
            ]
            .join("---\n"),
        ),
    ]);
    let text = join(&["name: b, namespace: shop", "name: a, namespace: shop"]);
    let (_, findings) = crate::load_text(&identun::policy::MeshSettings::default(), &text);
    assert!(
        findings[0].message.contains("`a` comes first"),
        "{findings:#?}"
    );
    assert_eq!(
        findings[0].label.as_deref(),
        Some("the first is at test.yaml:8:18")
    );
}

#[test]
fn peer_authentications_have_modes_with_places() {
    let text = selecting(
        "mtls: {mode: STRICT}, portLevelMtls: {80: {mode: DISABLE}, 90: {mode: UNSET}, 100: {}, 110: ~}",
    );
    let policy = loaded(&text).peer_authentications.remove(0);
    let place = |column: usize| format!("test.yaml:4:{column}");
    assert_eq!(
        (policy.mode.value, policy.mode.place.to_string()),
        (Some(Mode::Strict), place(58))
    );
    let ports: Vec<_> = policy
        .ports
        .iter()
        .map(|(port, mode)| (*port, mode.value, mode.place.to_string()))
        .collect();
    assert_eq!(
        ports,
        [
            (80, Some(Mode::Disable), place(94)),
            (90, None, place(115)),
            (100, None, place(123)),
            (110, None, place(132)),
        ]
    );
    let labels = policy.selector.unwrap();
    assert_eq!(labels.get("app").map(|value| &**value), Some("web"));

    for (spec, place) in [
        ("{mtls: {}}", "4:8"),
        ("{mtls: ~}", "4:8"),
        ("{}", "3:18"),
        ("~", "3:18"),
    ] {
        let text = peer_authentication("name: default, namespace: shop", spec);
        let mode = loaded(&text).peer_authentications.remove(0).mode;
        assert_eq!(
            (mode.value, mode.place.to_string()),
            (None, format!("test.yaml:{place}")),
            "{spec}"
        );
    }
    let kept = loaded(&selecting("mtls: ~").replace("shop", "istio-system"));
    assert!(
        kept.peer_authentications[0].selector.is_some(),
        "explain says that it lost"
    );
}

#[test]
fn p01_a_mesh_policy_is_named_default() {
    let permissive = "{peers: [{mtls: {mode: PERMISSIVE}}]}";
    check(vec![
        row(
            "boo",
            "error IDT0401",
            mesh_policy("name: ¦boo", permissive),
        ),
        valid("default", mesh_policy("name: default", permissive)),
    ]);
}

#[test]
fn p02_a_mesh_policy_has_no_targets() {
    let spec = "{¦targets: [{name: foo}], peers: [{mtls: ~}]}";
    check(vec![row(
        "targets",
        "error IDT0402",
        mesh_policy("name: default", spec),
    )]);
}

#[test]
fn p03_a_policy_has_targets_or_is_named_default() {
    check(vec![
        // Istio's case has a capital in the name, which is an error of its own.
        row(
            "another name, no targets",
            "error IDT0412, warning IDT0453",
            policy("name: ¦some-name", "{}").replace("spec", "¦spec"),
        ),
        row(
            "default, targets",
            "warning IDT0453, error IDT0412",
            policy("name: default", "{¦targets: [{name: foo}]}").replace("spec", "¦spec"),
        ),
        row(
            "default, no targets",
            "warning IDT0453",
            policy("name: default", "{}").replace("spec", "¦spec"),
        ),
        row(
            "another name, targets",
            "warning IDT0453",
            policy("name: some-name", "{targets: [{name: foo}]}").replace("spec", "¦spec"),
        ),
    ]);
}

#[test]
fn p04_a_target_is_a_short_name() {
    check(vec![
        row("dots", "error IDT0206", target("{name: ¦bad.target}")),
        valid("short", target("{name: good-target}")),
    ]);
}

#[test]
fn p05_effective_modes_of_peers() {
    for (entries, mode) in [
        ("{mtls: null}", Mode::Strict),
        ("{mtls: {}}", Mode::Strict),
        ("{mtls: {mode: PERMISSIVE}}", Mode::Permissive),
        ("", Mode::Disable),
    ] {
        let policy = loaded(&peers(entries, "")).policies.remove(0);
        assert_eq!(policy.mode.value, mode, "{entries}");
        let spec = format!("{{peers: [{entries}]}}");
        let mesh = loaded(&mesh_policy("name: default", &spec)).mesh_policy;
        assert_eq!(mesh.unwrap().mode.value, mode, "{entries}");
    }
    check(vec![row(
        "jwt only",
        "error IDT0403",
        peers("{¦jwt: {issuer: x}}", ""),
    )]);
}

#[test]
fn p23_peer_authentications() {
    let plain = |spec: &str| peer_authentication("name: x, namespace: shop", spec);
    check(vec![
        row(
            "no selector + ports",
            "error IDT0414",
            plain("{¦portLevelMtls: {8080: {mode: STRICT}}}"),
        ),
        row("selector: {}", "warning IDT0460", plain("{selector: ¦{}}")),
        row(
            "selector + ports {}",
            "error IDT0210",
            selecting("portLevelMtls: ¦{}"),
        ),
        valid(
            "named default with selector",
            selecting("mtls: {mode: STRICT}"),
        ),
    ]);
}
