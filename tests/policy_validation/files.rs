//! Section 0.2 to 0.5: files, kinds, order and defaults.

use identun::policy::{MeshSettings, Mode, document::Action};

use crate::{check, load_text, loaded, resource, row, valid};

const WORKLOAD: &str = "{address: 10.0.0.1}";

fn workload(metadata: &str, spec: &str) -> String {
    resource("networking.istio.io/v1", "WorkloadEntry", metadata, spec)
}

/// Kind, its apiVersions, whether it has a namespace, and a spec that is valid.
const KINDS: [(&str, &[&str], bool, &str); 7] = [
    (
        "MeshPolicy",
        &["authentication.istio.io/v1alpha1"],
        false,
        "{peers: [{mtls: ~}]}",
    ),
    (
        "Policy",
        &["authentication.istio.io/v1alpha1"],
        true,
        "{peers: [{mtls: ~}]}",
    ),
    (
        "PeerAuthentication",
        &["security.istio.io/v1beta1", "security.istio.io/v1"],
        true,
        "{}",
    ),
    (
        "AuthorizationPolicy",
        &["security.istio.io/v1beta1", "security.istio.io/v1"],
        true,
        "{rules: [{}]}",
    ),
    ("DestinationRule", NETWORKING, true, "{host: web}"),
    (
        "ServiceEntry",
        NETWORKING,
        true,
        "{hosts: [a.b], addresses: [10.0.0.1]}",
    ),
    ("WorkloadEntry", NETWORKING, true, WORKLOAD),
];
const NETWORKING: &[&str] = &[
    "networking.istio.io/v1alpha3",
    "networking.istio.io/v1beta1",
    "networking.istio.io/v1",
];

#[test]
fn section_0_3_kinds_and_versions_pair() {
    for (kind, versions, is_namespaced, spec) in KINDS {
        for version in versions {
            check(vec![valid(
                kind,
                resource(version, kind, "name: default", spec),
            )]);
        }
        for version in [
            "security.istio.io/v1alpha1",
            "authentication.istio.io/v1",
            "networking.istio.io/v2",
            "v1",
        ] {
            let text = resource(&format!("¦{version}"), kind, "name: default", spec);
            // Another program's Policy has a group of its own; one without a group is probably meant as ours.
            check(vec![row(kind, "error IDT0302", text)]);
        }
        let text = resource(versions[0], kind, "name: default, namespace: a", spec);
        let found = load_text(&MeshSettings::default(), &text).0.is_some();
        assert_eq!(found, is_namespaced, "{kind}");
    }
}

#[test]
fn section_0_3_documents() {
    check(vec![
        row(
            "duplicate mapping keys",
            "error IDT0102",
            workload("name: x", "{address: 10.0.0.1, ¦address: 10.0.0.2}"),
        ),
        row(
            "unknown fields",
            "error IDT0201",
            workload("name: x", "{address: 10.0.0.1, ¦adress: 10.0.0.2}"),
        ),
        row(
            "kinds that are not ours: one info",
            "info IDT0306",
            "apiVersion: v1\nkind: ¦Service\n---\napiVersion: v1\nkind: Service\n",
        ),
        row(
            "a kind that is misspelt",
            "error IDT0303",
            "apiVersion: security.istio.io/v1\nkind: ¦PeerAuthentication1\n",
        ),
        row(
            "equal group, kind, namespace and name, whatever the version",
            "error IDT0305",
            [
                resource(
                    "security.istio.io/v1",
                    "PeerAuthentication",
                    "name: x, namespace: default",
                    "{selector: {matchLabels: {a: b}}}",
                ),
                resource(
                    "security.istio.io/v1beta1",
                    "PeerAuthentication",
                    "name: ¦x",
                    "{selector: {matchLabels: {a: b}}}",
                ),
            ]
            .join("---\n"),
        ),
        valid(
            "equal names of different kinds",
            [
                workload("name: x", WORKLOAD),
                resource(
                    "security.istio.io/v1",
                    "PeerAuthentication",
                    "name: x",
                    "{}",
                ),
            ]
            .join("---\n"),
        ),
        valid(
            "empty documents",
            format!("---\n---\n{}---\n", workload("name: x", WORKLOAD)),
        ),
        valid(
            "lists",
            "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: x}}\n",
        ),
        valid(
            "lists of one kind",
            "apiVersion: v1\nkind: AuthorizationPolicyList\nitems: []\n",
        ),
    ]);
}

#[test]
fn section_0_2_the_oldest_comes_first_and_names_break_ties() {
    let kinds = [
        (
            "authentication.istio.io/v1alpha1",
            "Policy",
            "{targets: [{name: a}], peers: [{mtls: ~}]}",
        ),
        (
            "security.istio.io/v1",
            "PeerAuthentication",
            "{selector: {matchLabels: {a: b}}}",
        ),
        (
            "security.istio.io/v1",
            "AuthorizationPolicy",
            "{rules: [{}]}",
        ),
    ];
    for (version, kind, spec) in kinds {
        let texts = [
            "name: young, namespace: a, creationTimestamp: 2024-01-01T00:00:01Z",
            "name: b, namespace: b",
            "name: old, namespace: z, creationTimestamp: 2024-01-01T00:00:00Z",
            "name: b, namespace: a",
            "name: a, namespace: z",
        ]
        .map(|metadata| resource(version, kind, metadata, spec));
        let resources = loaded(&texts.join("---\n"));
        let policies = resources.policies.into_iter().map(|policy| policy.resource);
        let peers = resources
            .peer_authentications
            .into_iter()
            .map(|policy| policy.resource);
        let authorizations = resources
            .authorization_policies
            .into_iter()
            .map(|policy| policy.resource);
        let names: Vec<_> = policies
            .chain(peers)
            .chain(authorizations)
            .map(|name| name.to_string().replace(kind, ""))
            .collect();
        assert_eq!(
            names,
            [" z/a", " a/b", " b/b", " z/old", " a/young"],
            "{kind}"
        );
    }
}

/// An enum that is left out takes its zero value.
#[test]
fn section_0_5_defaults() {
    let alpha = |kind: &str| {
        resource(
            "authentication.istio.io/v1alpha1",
            kind,
            "name: default",
            "{peers: [{mtls: {}}]}",
        )
    };
    let resources = loaded(&[alpha("MeshPolicy"), alpha("Policy")].join("---\n"));
    assert_eq!(resources.mesh_policy.unwrap().mode.value, Mode::Strict);
    assert_eq!(resources.policies[0].mode.value, Mode::Strict);
    let text = resource(
        "security.istio.io/v1",
        "PeerAuthentication",
        "name: x",
        "{mtls: {}}",
    );
    assert_eq!(loaded(&text).peer_authentications[0].mode.value, None);
    let text = resource(
        "security.istio.io/v1",
        "AuthorizationPolicy",
        "name: x",
        "{}",
    );
    let policy = loaded(&text).authorization_policies.remove(0);
    assert_eq!(policy.action, Action::Allow);
    assert_eq!(policy.resource.to_string(), "AuthorizationPolicy default/x");
}

#[test]
fn every_example_loads_without_a_remark() {
    for text in [
        include_str!("../../config/example/example-mesh.yaml"),
        include_str!("../../config/policies/authorization.yaml"),
        include_str!("../../config/policies/per-port.yaml"),
        include_str!("../../config/policies/permissive.yaml"),
        include_str!("../../config/policies/strict.yaml"),
    ] {
        check(vec![valid("an example", text)]);
    }
}
