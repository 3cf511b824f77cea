use std::sync::Arc;

use super::*;
use crate::policy::{HostFacts, SourceFile, load::load};

const REGISTRY: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: client, namespace: default }
spec: { address: 10.0.0.1, serviceAccount: client, labels: { app: client } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: twin, namespace: default }
spec: { address: 10.0.0.11, serviceAccount: client, labels: { app: client } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: server, namespace: default }
spec: { address: 10.0.0.2, serviceAccount: server, labels: { app: server } }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: server, namespace: default }
spec:
  hosts: [server.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - { number: 80, name: http, protocol: TCP }
  - { number: 53, name: dns, protocol: UDP }
  workloadSelector: { labels: { app: server } }
";

fn mesh_policy(mode: &str) -> String {
    format!(
        "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {{ name: default }}\n\
         spec: {{ peers: [ {{ mtls: {{ mode: {mode} }} }} ] }}\n"
    )
}

fn rule(name: &str, mode: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\n\
         metadata: {{ name: {name}, namespace: default }}\n\
         spec: {{ host: server, trafficPolicy: {{ tls: {{ mode: {mode} }} }} }}\n"
    )
}

fn resources(texts: &[&str]) -> Resources {
    let file = |(number, text): (usize, &&str)| {
        Arc::new(SourceFile {
            name: format!("{number}.yaml").into(),
            text: (*text).into(),
        })
    };
    let files: Vec<_> = texts.iter().enumerate().map(file).collect();
    let (resources, findings) = load(&files, &MeshSettings::default());
    resources.unwrap_or_else(|| panic!("{findings:#?}"))
}

fn compiled(resources: &Resources, mesh: &MeshSettings) -> Compiled {
    let (compiled, findings) = Compiled::new(resources, mesh, HostFacts::default(), 1);
    compiled.unwrap_or_else(|| panic!("{findings:#?}"))
}

fn compared(old: &[&str], new: &[&str], limit: usize) -> Comparison {
    let (old, new) = (resources(old), resources(new));
    let mut mentioned = Mentioned::default();
    mentioned.add(&old);
    mentioned.add(&new);
    let mesh = MeshSettings::default();
    compare(
        &compiled(&old, &mesh),
        &compiled(&new, &mesh),
        &mentioned,
        limit,
    )
}

fn told(comparison: &Comparison) -> Vec<String> {
    let row = |row: &Row| {
        let Row {
            client,
            server,
            ports,
            ..
        } = row;
        let (old, new) = (row.old.code, row.new.code);
        format!(
            "{client} -> {server} {}: {old} -> {new}, {}",
            ports.join(" "),
            row.effect.text()
        )
    };
    comparison.changes.iter().map(row).collect()
}

#[test]
fn the_same_files_have_no_differences() {
    let text = mesh_policy("PERMISSIVE");
    let comparison = compared(&[REGISTRY, &text], &[REGISTRY, &text], 10_000);
    assert!(comparison.is_empty(), "{comparison:?}");
    assert_eq!(comparison.asked, comparison.questions);
    assert!(comparison.asked > 10);
}

#[test]
fn strict_refuses_strangers_and_nobody_else() {
    let (old, new) = (mesh_policy("PERMISSIVE"), mesh_policy("STRICT"));
    let comparison = compared(&[REGISTRY, &old], &[REGISTRY, &new], 10_000);
    assert_eq!(
        told(&comparison),
        [
            "outside the mesh -> default/client every port: client_not_in_mesh -> mode_strict, newly refused",
            "outside the mesh -> default/server every port: client_not_in_mesh -> mode_strict, newly refused",
        ]
    );
    let rules: Vec<_> = comparison.changes[0]
        .new
        .rules
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        rules[0].starts_with("MeshPolicy default (1.yaml:4:"),
        "{rules:?}"
    );
    let modes: Vec<_> = comparison
        .modes
        .iter()
        .map(|mode| (&*mode.workload, mode.old, mode.new))
        .collect();
    let (old, new) = (Some(Mode::Permissive), Some(Mode::Strict));
    assert_eq!(
        modes,
        [("default/client", old, new), ("default/server", old, new)]
    );
}

#[test]
fn a_rule_changes_the_ports_of_its_service_and_no_other() {
    let text = mesh_policy("PERMISSIVE");
    let rule = rule("plain", "DISABLE");
    let comparison = compared(&[REGISTRY, &text], &[REGISTRY, &text, &rule], 10_000);
    let told = told(&comparison);
    assert!(
        told.contains(
            &"default/client -> default/server every port: mutual_auto -> rule_disable, newly plaintext"
                .to_owned()
        ),
        "{told:?}"
    );
    assert!(
        !told.iter().any(|row| row.starts_with("outside")),
        "{told:?}"
    );
    assert!(comparison.modes.is_empty());
}

#[test]
fn networks_and_ports_that_only_a_rule_names_tell_flows_apart() {
    let text = mesh_policy("PERMISSIVE");
    let deny = "\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: deny, namespace: default }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules:
  - from: [ { source: { ipBlocks: [10.7.0.0/16] } } ]
    to: [ { operation: { ports: [\"9090\"] } } ]
";
    let comparison = compared(&[REGISTRY, &text], &[REGISTRY, &text, deny], 10_000);
    assert_eq!(
        told(&comparison),
        [
            "outside the mesh, 10.7.0.0/16 -> default/server tcp/9090: client_not_in_mesh -> denied_by_policy, newly refused"
        ]
    );
    let row = &comparison.changes[0];
    assert_eq!(row.source, "10.7.0.1".parse::<std::net::IpAddr>().unwrap());
    let rules: Vec<_> = row.new.rules.iter().map(ToString::to_string).collect();
    assert!(
        rules
            .last()
            .unwrap()
            .starts_with("AuthorizationPolicy default/deny (2.yaml:8:"),
        "{rules:?}"
    );
}

#[test]
fn a_peer_authentication_is_told_with_its_ports() {
    let text = mesh_policy("PERMISSIVE");
    let strict = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: server, namespace: default }
spec:
  selector: { matchLabels: { app: server } }
  mtls: { mode: STRICT }
  portLevelMtls: { 80: { mode: PERMISSIVE } }
";
    let comparison = compared(&[REGISTRY, &text], &[REGISTRY, &text, strict], 10_000);
    assert_eq!(
        told(&comparison),
        [
            "outside the mesh -> default/server udp/53 other ports icmp: client_not_in_mesh -> mode_strict, newly refused"
        ]
    );
    assert_eq!(comparison.modes.len(), 1, "{:?}", comparison.modes);
}

#[test]
fn the_limit_bounds_what_is_asked_and_is_told() {
    let (old, new) = (mesh_policy("PERMISSIVE"), mesh_policy("STRICT"));
    let comparison = compared(&[REGISTRY, &old], &[REGISTRY, &new], 6);
    assert!(
        comparison.asked <= 6 && comparison.questions > 6,
        "{comparison:?}"
    );
}

#[test]
fn workloads_that_no_rule_tells_apart_are_asked_once() {
    let many: String = (20..120)
        .map(|number| {
            format!(
                "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
                 metadata: {{ name: w{number}, namespace: default }}\n\
                 spec: {{ address: 10.0.1.{number}, serviceAccount: client, labels: {{ app: client }} }}\n"
            )
        })
        .collect();
    let text = mesh_policy("PERMISSIVE");
    let more = format!("{REGISTRY}{many}");
    let few = compared(&[REGISTRY, &text], &[REGISTRY, &text], 10_000).questions;
    let same = compared(&[&more, &text], &[&more, &text], 10_000).questions;
    assert_eq!(few, same);
}

#[test]
fn a_workload_that_joins_the_mesh_is_a_change_of_mode() {
    let naked = REGISTRY.replace("serviceAccount: server, ", "");
    let text = mesh_policy("STRICT");
    let comparison = compared(&[&naked, &text], &[REGISTRY, &text], 10_000);
    let mode = &comparison.modes[0];
    assert_eq!(mode.workload, "default/server");
    assert_eq!((mode.old, mode.new), (None, Some(Mode::Strict)));
    assert!(
        told(&comparison)
            .iter()
            .any(|row| row.starts_with("default/client -> default/server")
                && row.ends_with("newly encrypted")),
        "{comparison:?}"
    );
}

#[test]
fn what_is_applied_replaces_its_namesake_and_joins_the_rest() {
    let old = (mesh_policy("PERMISSIVE"), rule("a", "DISABLE"));
    let mut base = resources(&[REGISTRY, &old.0, &old.1]);
    let (strict, a, b) = (
        mesh_policy("STRICT"),
        rule("a", "ISTIO_MUTUAL"),
        rule("b", "DISABLE"),
    );
    apply(&mut base, resources(&[&strict, &a, &b]));
    let mode = base.mesh_policy.as_ref().map(|policy| policy.mode.value);
    assert_eq!(mode, Some(Mode::Strict));
    let names: Vec<_> = base
        .destination_rules
        .iter()
        .map(|rule| &*rule.resource.name)
        .collect();
    assert_eq!(names, ["a", "b"]);
    let tls = base.destination_rules[0]
        .traffic_policy
        .as_ref()
        .and_then(|policy| policy.tls.as_ref());
    assert_eq!(
        tls.map(|tls| tls.mode),
        Some(crate::policy::document::ClientMode::IstioMutual)
    );
    assert_eq!(base.workloads.len(), 3);
}

#[test]
fn made_strict_a_mesh_refuses_plaintext_whatever_was_written() {
    let question = Question {
        source: "192.0.2.1".parse().unwrap(),
        destination: "10.0.0.2".parse().unwrap(),
        protocol: 6,
        port: Some(80),
    };
    for text in ["", &mesh_policy("PERMISSIVE")] {
        let mut resources = resources(&[REGISTRY, text]);
        let mut mesh = MeshSettings::default();
        let old = compiled(&resources, &mesh);
        make_strict(&mut resources, &mut mesh);
        let change = Change::of(&old, &compiled(&resources, &mesh), &question).unwrap();
        assert_eq!(change.new.code, ReasonCode::ModeStrict);
        assert!(change.new.is_refused() && !change.old.is_refused());
    }
}

#[test]
fn effects_are_what_the_two_ends_see() {
    use Outcome::{Mtls, Plaintext, RefusedByClient, RefusedByServer};
    for (old, new, effect) in [
        (Mtls, RefusedByServer, Effect::NewlyRefused),
        (Plaintext, RefusedByClient, Effect::NewlyRefused),
        (RefusedByClient, Plaintext, Effect::NewlyAllowed),
        (RefusedByClient, RefusedByServer, Effect::Unchanged),
        (Mtls, Plaintext, Effect::NewlyPlaintext),
        (Plaintext, Mtls, Effect::NewlyEncrypted),
        (Mtls, Mtls, Effect::Unchanged),
    ] {
        assert_eq!(Effect::of(old, new), effect, "{old:?} {new:?}");
    }
}
