//! The same decisions from files as a user writes them.

use std::sync::Arc;

use identun::policy::{
    Compiled, MeshSettings, Severity, SourceFile, compiled::outcome::Outcome, load::load,
};

use crate::mesh::{alpha, host, ip};

const REGISTRY: &str = r#"
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {name: a, namespace: ns}
spec: {address: 10.0.0.1, serviceAccount: a, labels: {app: a}}
---
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata:
  name: b
  namespace: ns
  annotations: {identun.io/gateway: "192.0.2.2"}
spec: {address: 10.0.0.2, serviceAccount: b, labels: {app: b}, ports: {http: 8080}}
---
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {name: naked, namespace: ns}
spec: {address: 10.0.0.3, labels: {app: naked}}
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: b, namespace: ns}
spec:
  hosts: [b.ns.svc.cluster.local]
  ports: [{number: 80, name: http, protocol: HTTP}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: b}}
---
apiVersion: networking.istio.io/v1beta1
kind: ServiceEntry
metadata: {name: naked, namespace: ns}
spec:
  hosts: [naked.ns.svc.cluster.local]
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: naked}}
"#;

const INTRODUCTION: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata:
  name: default
spec:
  peers:
  - mtls:
      mode: STRICT
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: default
  namespace: istio-system
spec:
  host: "*.local"
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
"#;

fn compile(policy: &str, mesh: &MeshSettings) -> Compiled {
    let file = |name: &str, text: &str| {
        Arc::new(SourceFile {
            name: name.into(),
            text: text.into(),
        })
    };
    let files = [file("registry.yaml", REGISTRY), file("policy.yaml", policy)];
    let (resources, diagnostics) = load(&files, mesh);
    let resources = resources.unwrap_or_else(|| panic!("{diagnostics:?}"));
    let facts = host(&["10.0.0.1"], &["spiffe://cluster.local/ns/ns/sa/a"]);
    crate::mesh::compile(&resources, mesh, facts).0
}

fn mesh_policy(spec: &str) -> String {
    format!(
        "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {{name: default}}\nspec: {spec}\n"
    )
}

fn rule(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\n\
         metadata: {{name: default, namespace: istio-system}}\nspec: {spec}\n"
    )
}

/// a -> b, outside -> b, a -> naked.
fn flows(policy: &str, mesh: &MeshSettings) -> [Outcome; 3] {
    let compiled = compile(policy, mesh);
    [
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.3", "10.0.0.2"),
        ("10.0.0.1", "10.0.0.3"),
    ]
    .map(|(source, destination)| {
        compiled
            .explain(ip(source), ip(destination), 6, Some(8080))
            .outcome
    })
}

#[test]
fn files_decide_as_the_conformance_cases_say() {
    use Outcome::{Mtls as M, Plaintext as P, RefusedByClient as C, RefusedByServer as S};
    let off = mesh_policy("{}");
    let permissive = mesh_policy("{peers: [{mtls: {mode: PERMISSIVE}}]}");
    let strict = mesh_policy("{peers: [{mtls: }]}");
    let mutual = rule("{host: '*.local', trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}");
    let disable = rule("{host: '*.local', trafficPolicy: {tls: {mode: DISABLE}}}");
    let names = |names: &str| {
        rule(&format!(
            "{{host: '*.local', trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL, subjectAltNames: [{names}]}}}}}}"
        ))
    };
    let (a, b) = (
        "spiffe://cluster.local/ns/ns/sa/a",
        "spiffe://cluster.local/ns/ns/sa/b",
    );
    for (case, policy, expected) in [
        ("P06", off.clone(), [P, P, P]),
        ("P11", INTRODUCTION.to_owned(), [M, S, C]),
        ("P11, mtls: null", format!("{strict}{mutual}"), [M, S, C]),
        ("P12", format!("{permissive}{mutual}"), [M, P, C]),
        ("P13", format!("{off}{disable}"), [P, P, P]),
        (
            "P30 default",
            format!(
                "{strict}{}",
                names("spiffe://cluster.local/ns/ns/sa/default")
            ),
            [C, S, C],
        ),
        ("P30 b", format!("{strict}{}", names(b)), [M, S, C]),
        (
            "P30 nobody",
            format!("{strict}{}", names("I-do-not-exist")),
            [C, S, C],
        ),
        (
            "P30 several",
            format!("{strict}{}", names(&format!("{a}, {b}, I-do-not-exist"))),
            [M, S, C],
        ),
        (
            "an exact host",
            format!(
                "{strict}{}",
                rule("{host: b.ns.svc.cluster.local, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}")
            ),
            [M, S, P],
        ),
        (
            "a port",
            format!(
                "{permissive}{}",
                rule(
                    "{host: '*', trafficPolicy: {portLevelSettings: [{port: {number: 80}, tls: {mode: ISTIO_MUTUAL}}]}}"
                )
            ),
            [M, P, C],
        ),
    ] {
        assert_eq!(flows(&policy, &alpha()), expected, "{case}");
    }
    assert_eq!(flows("", &MeshSettings::default()), [M, P, P], "as shipped");
}

#[test]
fn an_explanation_points_into_the_files() {
    let compiled = compile(INTRODUCTION, &alpha());
    let explanation = compiled.explain(ip("10.0.0.1"), ip("10.0.0.2"), 6, Some(8080));
    let rule = explanation.client_rule.unwrap().to_string();
    assert_eq!(
        rule,
        "DestinationRule istio-system/default (policy.yaml:19:13)"
    );
    let rule = explanation.server_rule.unwrap().place.to_string();
    assert_eq!(rule, "policy.yaml:8:13");
    assert_eq!(
        explanation.gateway,
        Some("192.0.2.2:15008".parse().unwrap())
    );
    assert_eq!(explanation.accepted, ["spiffe://cluster.local/ns/ns/sa/b"]);
    assert_eq!(
        explanation.service.as_deref(),
        Some("b.ns.svc.cluster.local")
    );
    assert_eq!(explanation.endpoint.unwrap().place, "registry.yaml:13:17");
}

#[test]
fn an_address_of_two_identities_names_both_places() {
    let twice = REGISTRY.replace("address: 10.0.0.2", "address: 10.0.0.1");
    let file = Arc::new(SourceFile {
        name: "registry.yaml".into(),
        text: twice,
    });
    let (resources, _) = load(&[file], &alpha());
    let (compiled, findings) =
        Compiled::new(&resources.unwrap(), &alpha(), host(&["10.0.0.1"], &[]), 1);
    assert!(compiled.is_none());
    let [finding] = &*findings else {
        panic!("{findings:?}")
    };
    assert_eq!(
        (finding.severity, finding.code),
        (Severity::Error, "IDT0501")
    );
    assert_eq!(
        finding.place.as_ref().unwrap().to_string(),
        "registry.yaml:13:17"
    );
    assert_eq!(
        finding.label.as_deref(),
        Some("also declared at registry.yaml:5:17")
    );
}
