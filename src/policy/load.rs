//! Text to resources: every document of every file is parsed and validated, and what is wrong has its place.
//!
//! Owns the rules of policy.md 0.2 and 0.3 (order, kinds, duplicates). Reads text only; files are the store's.

mod authorization_policy;
mod authorization_rule;
mod destination_rule;
mod head;
mod mesh_policy;
mod names;
mod owner;
mod peer_authentication;
mod peers;
mod policy;
mod read;
mod report;
mod selector;
mod service_entry;
mod settings;
mod suggest;
mod traffic_policy;
pub(super) mod tree;
mod values;
mod workload_entry;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use hashbrown::HashMap;

use self::{
    head::{Head, KINDS, Kind},
    read::Map,
    report::Report,
    suggest::{Quoted, closest},
    tree::Node,
};
use crate::{
    policy::{
        Diagnostic, MeshSettings, Resources, SourceFile,
        diagnostic::codes,
        document::{AuthorizationPolicy, DestinationRule, MeshPolicy, PeerAuthentication, Policy},
    },
    registry::{
        Place, ResourceName,
        service::{ServiceEntry, Workload},
    },
};
pub use names::resolve_host;
pub use owner::{Owner, Owners};
pub use settings::parse_settings;

/// Parses and validates every document of every file. The diagnostics hold errors, warnings and infos, in the order of the
/// files and of their text; with any error the resources are absent. Never panics, bounded in time and memory whatever the text.
pub fn load(
    files: &[Arc<SourceFile>],
    mesh: &MeshSettings,
) -> (Option<Resources>, Vec<Diagnostic>) {
    let mut loader = Loader {
        mesh,
        seen: HashMap::new(),
        foreign: BTreeSet::new(),
        loaded: Loaded::default(),
    };
    let mut findings = Vec::new();
    for file in files {
        let mut report = Report::new(&file.name);
        let documents = tree::parse(&file.text, &mut report);
        for document in &documents {
            loader.document(document, &mut report);
        }
        findings.extend(report.into_findings());
    }
    let resources = loader.loaded.into_resources();
    let outranked = peer_authentication::outranked(&resources.peer_authentications);
    if !outranked.is_empty() {
        findings.extend(outranked);
        sort(&mut findings, files);
    }
    let refused = findings.iter().any(Diagnostic::is_error);
    ((!refused).then_some(resources), findings)
}

/// Brings `findings` into the order of the files and of their text.
fn sort(findings: &mut [Diagnostic], files: &[Arc<SourceFile>]) {
    let numbers: BTreeMap<&Arc<str>, usize> =
        files.iter().map(|file| &file.name).zip(0..).collect();
    findings.sort_by_cached_key(|found| {
        let place = found.place.as_ref();
        place.map(|place| (numbers.get(&place.file).copied(), place.line, place.column))
    });
}

const ROOT: &[&str] = &["apiVersion", "kind", "metadata", "spec", "status"];
const LIST: &[&str] = &["apiVersion", "kind", "metadata", "items"];

struct Loader<'m> {
    mesh: &'m MeshSettings,
    /// Every resource so far, and where its name stands. The version does not tell resources apart, and a kind has one group.
    seen: HashMap<ResourceName, Place>,
    /// Foreign kinds already mentioned.
    foreign: BTreeSet<String>,
    loaded: Loaded,
}

impl Loader<'_> {
    fn document(&mut self, node: &Node<'_>, report: &mut Report<'_>) {
        if node.is_null() || report.is_full() {
            return;
        }
        let Some(root) = Map::unchecked(node, "a resource") else {
            let message = "a document must be a map that describes a resource";
            let found = Diagnostic::new(&codes::NOT_A_RESOURCE, message);
            report.add(
                node.mark,
                found.with_label("expected `apiVersion`, `kind`, `metadata` and `spec`"),
            );
            return;
        };
        let version = report.required(&root, "apiVersion");
        let kind = report.required(&root, "kind");
        let (Some(version_node), Some(kind_node)) = (version, kind) else {
            return;
        };
        let version = report.filled_text(version_node, "apiVersion");
        let kind = report.filled_text(kind_node, "kind");
        let (Some(version), Some(kind)) = (version, kind) else {
            return;
        };
        if is_list(kind) {
            self.list(node, report);
        } else if let Some(kind) = find_kind(kind, version) {
            self.resource(node, kind, (version, version_node), report);
        } else {
            self.stranger(kind, version, kind_node, report);
        }
    }

    fn list(&mut self, node: &Node<'_>, report: &mut Report<'_>) {
        let Some(list) = report.map(node, "a List", LIST) else {
            return;
        };
        let Some(items) = list.get("items") else {
            return;
        };
        for item in report.list(items, "items") {
            self.document(item, report);
        }
    }

    /// A kind that is not ours: ignored with a word, unless it is probably one of ours, misspelt.
    fn stranger(&mut self, kind: &str, version: &str, node: &Node<'_>, report: &mut Report<'_>) {
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        if let Some(meant) = closest(kind, &names).filter(|meant| *meant != "Policy") {
            let message = format!("unknown kind {}", Quoted(kind));
            let found = Diagnostic::new(&codes::UNKNOWN_KIND, message)
                .with_label(format!("expected `{meant}`"));
            report.add(
                node.mark,
                found.with_help(format!("did you mean `{meant}`?")),
            );
        } else if self.foreign.insert(kind.into()) {
            let message = format!(
                "the kind {} of {} is no policy and is ignored",
                Quoted(kind),
                Quoted(version)
            );
            report.add(node.mark, Diagnostic::new(&codes::FOREIGN_KIND, message));
        }
    }

    fn resource(
        &mut self,
        node: &Node<'_>,
        kind: &'static Kind,
        version: (&str, &Node<'_>),
        report: &mut Report<'_>,
    ) {
        let paired = head::check_api_version(kind, version.0, version.1, report);
        let Some(root) = report.map(node, "a resource", ROOT) else {
            return;
        };
        let Some(head) = head::read(&root, kind, self.mesh, report) else {
            return;
        };
        if paired {
            self.note(&head, report);
        }
        self.spec(kind, &root, &head, report);
    }

    fn note(&mut self, head: &Head<'_, '_>, report: &mut Report<'_>) {
        let place = report.place(head.name_mark);
        if let Some(first) = self.seen.get(&head.resource) {
            let message = format!("{} is declared twice", Quoted(&head.resource.to_string()));
            let found = Diagnostic::new(&codes::DUPLICATE_RESOURCE, message)
                .with_label(format!("first at {first}"));
            report.add(
                head.name_mark,
                found.with_help("remove one of them, or give it another name"),
            );
        } else {
            self.seen.insert(head.resource.clone(), place);
        }
    }

    /// Reads the spec. Only the kinds that are a registry need one: with the others an absent one is an empty one.
    fn spec(
        &mut self,
        kind: &'static Kind,
        root: &Map<'_, '_>,
        head: &Head<'_, '_>,
        report: &mut Report<'_>,
    ) {
        let (mesh, loaded) = (self.mesh, &mut self.loaded);
        if kind.name == head::MESH_POLICY.name {
            loaded.mesh_policies.extend(mesh_policy::read(head, report));
        } else if kind.name == head::POLICY.name {
            let read = policy::read(head, mesh, report);
            loaded.policies.extend(Aged::some(head, read));
        } else if kind.name == head::PEER_AUTHENTICATION.name {
            let read = peer_authentication::read(head, mesh, report);
            loaded.peer_authentications.extend(Aged::some(head, read));
        } else if kind.name == head::AUTHORIZATION_POLICY.name {
            let read = authorization_policy::read(head, mesh, report);
            loaded.authorization_policies.extend(Aged::some(head, read));
        } else if let Some(node) = report.required(root, "spec") {
            self.required_spec(kind, node, head, report);
        }
    }

    fn required_spec(
        &mut self,
        kind: &'static Kind,
        node: &Node<'_>,
        head: &Head<'_, '_>,
        report: &mut Report<'_>,
    ) {
        let (mesh, loaded) = (self.mesh, &mut self.loaded);
        if kind.name == head::DESTINATION_RULE.name {
            let read = destination_rule::read(node, head, mesh, report);
            loaded.destination_rules.extend(Aged::some(head, read));
        } else if kind.name == head::SERVICE_ENTRY.name {
            let read = service_entry::read(node, head, mesh, report);
            loaded.service_entries.extend(Aged::some(head, read));
        } else {
            let read = workload_entry::read(node, head, mesh, report);
            loaded.workloads.extend(Aged::some(head, read));
        }
    }
}

/// `List`, and the lists that a query by kind returns.
fn is_list(kind: &str) -> bool {
    kind.strip_suffix("List")
        .is_some_and(|item| item.is_empty() || KINDS.iter().any(|kind| kind.name == item))
}

/// Our kind of this name. `Policy` alone is a common word: it is ours only with a group of Istio or none.
fn find_kind(name: &str, version: &str) -> Option<&'static Kind> {
    let kind = KINDS.iter().find(|kind| kind.name == name)?;
    let is_foreign = version
        .split_once('/')
        .is_some_and(|(group, _)| !group.ends_with("istio.io"));
    (name != "Policy" || !is_foreign).then_some(kind)
}

/// A value with what policy.md 0.2 orders it by.
struct Aged<T> {
    created: i64,
    name: ResourceName,
    value: T,
}

impl<T> Aged<T> {
    fn some(head: &Head<'_, '_>, value: Option<T>) -> Option<Self> {
        Some(Self {
            created: head.created,
            name: head.resource.clone(),
            value: value?,
        })
    }
}

#[derive(Default)]
struct Loaded {
    mesh_policies: Vec<MeshPolicy>,
    policies: Vec<Aged<Policy>>,
    peer_authentications: Vec<Aged<PeerAuthentication>>,
    authorization_policies: Vec<Aged<AuthorizationPolicy>>,
    destination_rules: Vec<Aged<DestinationRule>>,
    service_entries: Vec<Aged<ServiceEntry>>,
    workloads: Vec<Aged<Workload>>,
}

impl Loaded {
    fn into_resources(self) -> Resources {
        Resources {
            mesh_policy: self.mesh_policies.into_iter().next(),
            policies: in_order(self.policies),
            peer_authentications: in_order(self.peer_authentications),
            authorization_policies: in_order(self.authorization_policies),
            destination_rules: in_order(self.destination_rules),
            service_entries: in_order(self.service_entries),
            workloads: in_order(self.workloads),
        }
    }
}

/// Oldest first; ties by name, then namespace.
fn in_order<T>(mut aged: Vec<Aged<T>>) -> Vec<T> {
    aged.sort_by(|a, b| {
        let names = || (&a.name.name, &a.name.namespace).cmp(&(&b.name.name, &b.name.namespace));
        a.created.cmp(&b.created).then_with(names)
    });
    aged.into_iter().map(|aged| aged.value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::{Mode, document::ClientMode},
        registry::service::{Endpoints, ExportTo},
    };

    fn mesh() -> MeshSettings {
        MeshSettings::default()
    }

    fn load_files(texts: &[String]) -> (Option<Resources>, Vec<Diagnostic>) {
        let file = |(index, text): (usize, &String)| {
            Arc::new(SourceFile {
                name: format!("{index}.yaml").into(),
                text: text.clone(),
            })
        };
        let files: Vec<_> = texts.iter().enumerate().map(file).collect();
        load(&files, &mesh())
    }

    fn load_text(text: &str) -> Resources {
        let (resources, findings) = load_files(&[text.into()]);
        resources.unwrap_or_else(|| panic!("{findings:#?}"))
    }

    fn networking(kind: &str, metadata: &str, spec: &str) -> String {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: {kind}\nmetadata: {{{metadata}}}\nspec: {{{spec}}}\n"
        )
    }

    fn rule(spec: &str) -> DestinationRule {
        load_text(&networking(
            "DestinationRule",
            "name: x, namespace: shop",
            spec,
        ))
        .destination_rules
        .remove(0)
    }

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

    #[test]
    fn the_resources_of_the_introduction_load_verbatim() {
        for text in [
            INTRODUCTION.to_owned(),
            INTRODUCTION.replace('\n', "\r\n"),
            format!("\u{feff}{INTRODUCTION}"),
        ] {
            let resources = load_text(&text);
            let policy = resources.mesh_policy.unwrap();
            assert_eq!(
                (policy.mode.value, policy.mode.place.to_string()),
                (Mode::Strict, "0.yaml:8:13".into())
            );
            let [rule] = &resources.destination_rules[..] else {
                panic!()
            };
            assert_eq!(
                rule.resource.to_string(),
                "DestinationRule istio-system/default"
            );
            assert_eq!(
                (&*rule.host.value, rule.host.place.to_string()),
                ("*.local", "0.yaml:16:9".into())
            );
            let tls = rule.traffic_policy.clone().unwrap().tls.unwrap();
            assert_eq!(
                (tls.mode, tls.place.to_string()),
                (ClientMode::IstioMutual, "0.yaml:19:13".into())
            );
            assert_eq!(
                (&rule.export_to, tls.subject_alt_names),
                (&ExportTo::All, None)
            );
        }
    }

    /// policy.md P05 without jwt, and 1.2.
    #[test]
    fn the_first_mtls_entry_decides_and_none_means_plaintext() {
        for (spec, mode, place) in [
            ("{peers: [{mtls: null}]}", Mode::Strict, "4:17"),
            ("{peers: [{mtls: {}}]}", Mode::Strict, "4:17"),
            ("{peers: [{mtls: {mode: STRICT}}]}", Mode::Strict, "4:30"),
            (
                "{peers: [{mtls: {mode: PERMISSIVE}}]}",
                Mode::Permissive,
                "4:30",
            ),
            (
                "{peers: [{mtls: {mode: PERMISSIVE}}, {mtls: ~}]}",
                Mode::Permissive,
                "4:30",
            ),
            ("{peers: []}", Mode::Disable, "4:8"),
            ("{}", Mode::Disable, "4:1"),
            ("~", Mode::Disable, "3:18"),
            (
                "{peers: [{mtls: {allowTls: true}}], peerIsOptional: true}",
                Mode::Strict,
                "4:17",
            ),
        ] {
            let head = "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\nmetadata: {name: default}\n";
            let found = load_text(&format!("{head}spec: {spec}\n"))
                .mesh_policy
                .unwrap()
                .mode;
            assert_eq!(
                (found.value, found.place.to_string()),
                (mode, format!("0.yaml:{place}")),
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts_are_resolved_and_lowered() {
        for (host, expected) in [
            ("Web", "web.shop.svc.cluster.local"),
            ("web.Other.svc.cluster.local", "web.other.svc.cluster.local"),
            ("foo.bar", "foo.bar"),
            ("\"*\"", "*"),
            ("\"*.Local\"", "*.local"),
            ("\"*web\"", "*web"),
            ("10.0.0.1", "10.0.0.1"),
            ("\"2001:db8::1\"", "2001:db8::1"),
        ] {
            assert_eq!(&*rule(&format!("host: {host}")).host.value, expected);
        }
    }

    #[test]
    fn tls_that_is_null_is_unset_and_tls_that_is_empty_is_plaintext() {
        let tls = |fields: &str| {
            rule(&format!("host: a, trafficPolicy: {{{fields}}}"))
                .traffic_policy
                .unwrap()
                .tls
        };
        assert!(tls("tls: ~, outlierDetection: {}").is_none());
        assert_eq!(tls("tls: {}").unwrap().mode, ClientMode::Disable);
        assert_eq!(
            tls("tls: {mode: DISABLE}").unwrap().mode,
            ClientMode::Disable
        );
        assert!(
            tls("tls: {mode: ISTIO_MUTUAL, subjectAltNames: []}")
                .unwrap()
                .subject_alt_names
                .is_none()
        );
        let names = tls("tls: {mode: ISTIO_MUTUAL, sni: x, subjectAltNames: [b, a]}")
            .unwrap()
            .subject_alt_names
            .unwrap();
        assert_eq!(
            names.iter().map(|name| &**name).collect::<Vec<_>>(),
            ["a", "b"]
        );
    }

    #[test]
    fn a_port_without_tls_is_unset() {
        let ports = "portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}, {port: {number: 81}, loadBalancer: {}}]";
        let ports = rule(&format!(
            "host: a, trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}, {ports}}}"
        ))
        .traffic_policy
        .unwrap()
        .ports;
        let modes: Vec<_> = ports
            .iter()
            .map(|port| (port.port, port.tls.as_ref().map(|tls| tls.mode)))
            .collect();
        assert_eq!(modes, [(80, Some(ClientMode::Disable)), (81, None)]);
    }

    #[test]
    fn export_to_names_namespaces() {
        let export_to = |list: &str| rule(&format!("host: a, exportTo: {list}")).export_to;
        let names = |names: &[&str]| {
            ExportTo::Namespaces(names.iter().map(|name| Arc::from(*name)).collect())
        };
        assert_eq!(export_to("[]"), ExportTo::All);
        assert_eq!(export_to("[\"*\"]"), ExportTo::All);
        assert_eq!(export_to("[.]"), names(&["shop"]));
        assert_eq!(export_to("[b, .]"), names(&["b", "shop"]));
        let selecting = rule("host: a, workloadSelector: {matchLabels: {app: x}}");
        assert_eq!(selecting.export_to, names(&["shop"]));
        assert_eq!(selecting.workload_selector.unwrap().len(), 1);
    }

    #[test]
    fn a_service_entry_has_every_field() {
        let spec = "hosts: [Web.example], addresses: [10.1.2.3/24, 2001:db8::1], location: MESH_INTERNAL, resolution: STATIC, \
                    ports: [{number: 80, name: http, protocol: grpc-web, targetPort: 8080}], exportTo: [\"~\"], \
                    endpoints: [{address: 192.0.2.1, ports: {http: 81}, serviceAccount: web, labels: {a: b}}, {address: 192.0.2.2}], \
                    subjectAltNames: [\"spiffe://cluster.local/ns/shop/sa/web\"]";
        let text = networking("ServiceEntry", "name: web, namespace: shop", spec);
        let entry = load_text(&text).service_entries.remove(0);
        assert_eq!(
            (&*entry.hosts[0], &entry.export_to),
            ("web.example", &ExportTo::Nobody)
        );
        assert_eq!(
            entry
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
            ["10.1.2.0/24", "2001:db8::1/128"]
        );
        let port = &entry.ports[0];
        assert_eq!(
            (port.number, &*port.name, &*port.protocol, port.target_port),
            (80, "http", "GRPC-WEB", Some(8080))
        );
        let Endpoints::Inline(endpoints) = &entry.endpoints else {
            panic!()
        };
        assert_eq!(endpoints[0].ports.get("http"), Some(&81));
        assert_eq!(endpoints[0].service_account.as_deref(), Some("web"));
        let capable: Vec<_> = endpoints
            .iter()
            .map(|endpoint| (endpoint.mesh_capable, endpoint.gateway))
            .collect();
        assert_eq!(capable, [(true, None), (false, None)]);
        assert_eq!(&*endpoints[1].namespace, "shop");
        assert_eq!(entry.subject_alt_names.len(), 1);
    }

    #[test]
    fn a_service_entry_has_istios_defaults() {
        let text = networking(
            "ServiceEntry",
            "name: web",
            "hosts: [a.b], addresses: [10.0.0.1]",
        );
        let entry = load_text(&text).service_entries.remove(0);
        assert_eq!(
            (entry.location, entry.resolution),
            (
                crate::registry::service::Location::MeshExternal,
                crate::registry::service::Resolution::None
            )
        );
        assert!(matches!(
            (entry.endpoints, entry.export_to),
            (Endpoints::None, ExportTo::All)
        ));
        assert_eq!(&*entry.resource.namespace, "default");
        let text = networking(
            "ServiceEntry",
            "name: web",
            "hosts: [a.b], resolution: STATIC, workloadSelector: {labels: {app: x}}",
        );
        assert!(
            matches!(&load_text(&text).service_entries[0].endpoints, Endpoints::Selector(labels) if labels.len() == 1)
        );
    }

    #[test]
    fn a_workload_entry_is_capable_by_label_or_else_by_account() {
        let workload = |metadata: &str, spec: &str| {
            let text = networking(
                "WorkloadEntry",
                &format!("name: x{metadata}"),
                &format!("address: 10.0.0.1{spec}"),
            );
            load_text(&text).workloads.remove(0)
        };
        assert!(!workload("", "").mesh_capable);
        assert!(!workload("", ", serviceAccount: \"\"").mesh_capable);
        assert!(workload("", ", serviceAccount: a").mesh_capable);
        assert!(workload("", ", labels: {security.istio.io/tlsMode: istio}").mesh_capable);
        assert!(
            !workload(
                "",
                ", serviceAccount: a, labels: {security.istio.io/tlsMode: disabled}"
            )
            .mesh_capable
        );
        assert!(
            !workload(
                ", labels: {security.istio.io/tlsMode: off}",
                ", serviceAccount: a"
            )
            .mesh_capable
        );
        let both = workload(", labels: {a: metadata}", ", labels: {a: spec, b: spec}");
        assert_eq!(
            both.labels
                .values()
                .map(|value| &**value)
                .collect::<Vec<_>>(),
            ["metadata", "spec"]
        );
        let gateway = workload(
            ", annotations: {identun.io/gateway: \"[2001:db8::1]:99\", other: x}",
            "",
        )
        .gateway;
        assert_eq!(gateway.unwrap().to_string(), "[2001:db8::1]:99");
        let port = workload(", annotations: {identun.io/gateway: 192.0.2.1}", "")
            .gateway
            .unwrap()
            .port();
        assert_eq!(port, crate::registry::key::TUNNEL_PORT);
    }

    #[test]
    fn the_oldest_comes_first_whatever_the_order_of_files() {
        let entry = |metadata: &str| networking("WorkloadEntry", metadata, "address: 10.0.0.1");
        let texts = [
            entry("name: c, namespace: a, creationTimestamp: 2024-01-01T00:00:01Z"),
            entry("name: d, namespace: a, creationTimestamp: \"2024-01-01T01:00:00+01:00\""),
            entry("name: b, namespace: b"),
            entry("name: b, namespace: a, creationTimestamp: null"),
            entry("name: z, namespace: a"),
            entry("name: a, namespace: c, creationTimestamp: 2024-01-01T00:00:00.9Z"),
        ];
        for reversed in [false, true] {
            let mut texts = texts.to_vec();
            if reversed {
                texts.reverse();
            }
            let workloads = load_files(&texts).0.unwrap().workloads;
            let names: Vec<_> = workloads
                .iter()
                .map(|workload| {
                    format!("{}/{}", workload.resource.namespace, workload.resource.name)
                })
                .collect();
            assert_eq!(names, ["a/b", "b/b", "a/z", "c/a", "a/d", "a/c"]);
        }
    }

    #[test]
    fn lists_are_expanded_and_empty_documents_skipped() {
        let item = "- {apiVersion: networking.istio.io/v1alpha3, kind: WorkloadEntry, metadata: {name: N}, spec: {address: 10.0.0.1}, status: {x: y}}\n";
        let list = |kind: &str, name: &str| {
            format!(
                "apiVersion: v1\nkind: {kind}\nmetadata: {{resourceVersion: \"\"}}\nitems:\n{}",
                item.replace('N', name)
            )
        };
        let text = [
            "",
            &list("List", "a"),
            "# nothing\n",
            "~\n",
            &list("WorkloadEntryList", "b"),
            "",
            "",
        ]
        .join("---\n");
        assert_eq!(load_text(&text).workloads.len(), 2);
    }

    #[test]
    fn metadata_of_a_cluster_is_accepted() {
        let metadata = "name: x, namespace: a, uid: u, resourceVersion: \"1\", generation: 1, generateName: x-, labels: {a: b}, \
                        annotations: {kubectl.kubernetes.io/last-applied-configuration: \"{}\"}, managedFields: [{manager: m}], \
                        ownerReferences: [], finalizers: [], selfLink: /x";
        assert_eq!(
            load_text(&networking("WorkloadEntry", metadata, "address: 10.0.0.1"))
                .workloads
                .len(),
            1
        );
    }

    #[test]
    fn the_version_does_not_tell_resources_apart_but_the_kind_and_namespace_do() {
        let entry = networking("WorkloadEntry", "name: x", "address: 10.0.0.1");
        let rule = networking("DestinationRule", "name: x", "host: a");
        let elsewhere = entry.replace("name: x", "name: x, namespace: other");
        assert!(load_files(&[entry.clone(), rule, elsewhere]).0.is_some());
        let explicit = entry
            .replace("name: x", "name: x, namespace: default")
            .replace("/v1", "/v1beta1");
        let (resources, findings) = load_files(&[entry, explicit]);
        assert!(resources.is_none());
        assert_eq!(findings[0].label.as_deref(), Some("first at 0.yaml:3:18"));
    }
}
