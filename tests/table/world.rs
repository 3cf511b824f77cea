//! A mesh from text, and the questions that the table asks.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use identun::policy::{
    Compiled, HostFacts, MeshSettings, Mode, Question, ReasonCode, Resources, Severity, SourceFile,
    compiled::outcome::Outcome, load::load,
};

use crate::oracle::{judge, registry::Known};

/// The settings of the v1alpha1 cases.
pub(super) fn alpha() -> MeshSettings {
    MeshSettings {
        default_mode: Mode::Disable,
        auto_mtls: false,
        ..MeshSettings::default()
    }
}

/// The settings of the PeerAuthentication cases.
pub(super) fn beta() -> MeshSettings {
    MeshSettings::default()
}

/// A resource of one line. `name` is NAMESPACE/NAME, or NAME alone for one of the whole cluster.
pub(super) fn resource(kind: &str, name: &str, spec: &str) -> String {
    aged(kind, name, 0, spec)
}

/// A resource that is `age` seconds younger than the oldest.
pub(super) fn aged(kind: &str, name: &str, age: u32, spec: &str) -> String {
    let version = match kind {
        "MeshPolicy" | "Policy" => "authentication.istio.io/v1alpha1",
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
        _ => "networking.istio.io/v1",
    };
    let name = match name.split_once('/') {
        Some((namespace, name)) => format!("name: {name}, namespace: {namespace}"),
        None => format!("name: {name}"),
    };
    format!(
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{{name}, \
         creationTimestamp: \"2019-03-15T00:00:{age:02}Z\"}}\nspec: {spec}\n---\n"
    )
}

pub(super) fn mesh_policy(spec: &str) -> String {
    resource("MeshPolicy", "default", spec)
}

pub(super) fn policy(name: &str, spec: &str) -> String {
    resource("Policy", name, spec)
}

pub(super) fn peer(name: &str, spec: &str) -> String {
    resource("PeerAuthentication", name, spec)
}

pub(super) fn rule(name: &str, spec: &str) -> String {
    resource("DestinationRule", name, spec)
}

pub(super) fn authorization(name: &str, spec: &str) -> String {
    resource("AuthorizationPolicy", name, spec)
}

/// `*.local` in the root namespace, as in the introduction of Istio's mutual TLS.
pub(super) fn everywhere(mode: &str) -> String {
    let spec = format!("{{host: \"*.local\", trafficPolicy: {{tls: {{mode: {mode}}}}}}}");
    rule("istio-system/default", &spec)
}

/// Whether the loader takes the text, and what it says.
pub(super) fn validate(mesh: &MeshSettings, text: &str) -> (bool, Vec<(Severity, &'static str)>) {
    let (resources, findings) = load(&[file("policy.yaml", text)], mesh);
    let said = findings.iter().map(|found| (found.severity, found.code));
    (resources.is_some(), said.collect())
}

pub(super) fn is_valid(text: &str) -> bool {
    validate(&beta(), text).0
}

fn file(name: &str, text: &str) -> Arc<SourceFile> {
    Arc::new(SourceFile {
        name: name.into(),
        text: text.into(),
    })
}

/// Hosts, services and policy.
pub(super) struct World {
    pub(super) resources: Resources,
    mesh: MeshSettings,
    facts: HostFacts,
    pub(super) compiled: Compiled,
    addresses: BTreeMap<String, IpAddr>,
}

impl World {
    /// Hosts are `NAMESPACE/NAME@ACCOUNT NUMBER:PORT-NAME ...`; without an account they are outside the mesh, without
    /// ports they have 80 (http) and 90 (tcp). Each is labelled `app: NAME` and is the one endpoint of the service
    /// NAME.NAMESPACE.svc.cluster.local.
    pub(super) fn new(mesh: MeshSettings, hosts: &[&str], text: &str) -> Self {
        let mut registry = String::new();
        let mut addresses = BTreeMap::new();
        for (index, host) in hosts.iter().enumerate() {
            let address = format!("10.0.0.{}", index + 1);
            registry.push_str(&declared(host, &address));
            let (name, _) = host.split_once(' ').unwrap_or((host, ""));
            let (_, name) = name.split_once('/').unwrap();
            let (name, _) = name.split_once('@').unwrap_or((name, ""));
            addresses.insert(name.to_owned(), address.parse().unwrap());
        }
        let files = [file("registry.yaml", &registry), file("policy.yaml", text)];
        let (resources, findings) = load(&files, &mesh);
        let resources = resources.unwrap_or_else(|| panic!("{text}\n{findings:#?}"));
        let facts = HostFacts::default();
        let (compiled, findings) = Compiled::new(&resources, &mesh, facts.clone(), 1);
        Self {
            compiled: compiled.unwrap_or_else(|| panic!("{findings:#?}")),
            resources,
            mesh,
            facts,
            addresses,
        }
    }

    /// Why the flow from one host to another's port (`b:80`; `b` for a packet without port) ends as it does.
    pub(super) fn code(&self, source: &str, destination: &str) -> ReasonCode {
        let question = self.question(source, destination);
        let judged = judge::decide(&self.resources, &self.mesh, &self.facts, &question);
        let decided = self.compiled.decide(&question).code;
        assert_eq!(
            decided, judged,
            "the judge is right: {source} -> {destination}"
        );
        decided
    }

    pub(super) fn outcome(&self, source: &str, destination: &str) -> Outcome {
        self.code(source, destination).outcome()
    }

    /// `a->b:80` and so on, each with its outcome.
    pub(super) fn flows<const N: usize>(&self, flows: [&str; N]) -> [Outcome; N] {
        flows.map(|flow| {
            let (source, destination) = flow.split_once("->").unwrap();
            self.outcome(source, destination)
        })
    }

    /// The destination's mode, and NAMESPACE/NAME of the resource that gives it; `/default` is the MeshPolicy.
    pub(super) fn mode(&self, destination: &str) -> (Mode, String) {
        let question = self.question(destination.split(':').next().unwrap(), destination);
        let question = Question {
            source: "192.0.2.99".parse().unwrap(),
            ..question
        };
        let known = Known::new(&self.resources, &self.mesh, &self.facts);
        let host = known.host(question.destination).unwrap();
        let judged = known.mode(host, question.destination, question.port);
        let (mode, rule) = judged.unwrap();
        let explained = self.explain(&question);
        let explained_rule = explained.server_rule.map(|rule| rule.resource);
        assert_eq!(explained.server_mode, Some(mode), "the judge is right");
        assert_eq!(explained_rule.as_ref(), rule, "the judge is right");
        let rule = rule.map(|rule| format!("{}/{}", rule.namespace, rule.name));
        (mode, rule.unwrap_or_else(|| "-".into()))
    }

    /// The DestinationRule that a client follows.
    pub(super) fn client_rule(&self, source: &str, destination: &str) -> Option<String> {
        let question = self.question(source, destination);
        let rule = self.explain(&question).client_rule?.resource;
        Some(format!("{}/{}", rule.namespace, rule.name))
    }

    fn explain(&self, question: &Question) -> identun::policy::Explanation {
        self.compiled.explain(
            question.source,
            question.destination,
            question.protocol,
            question.port,
        )
    }

    fn question(&self, source: &str, destination: &str) -> Question {
        let (host, port) = match destination.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().unwrap())),
            None => (destination, None),
        };
        Question {
            source: self.addresses[source],
            destination: self.addresses[host],
            protocol: if port.is_some() { 6 } else { 1 },
            port,
        }
    }
}

/// One host with its service, as resources.
fn declared(host: &str, address: &str) -> String {
    let (name, ports) = host.split_once(' ').unwrap_or((host, "80:http 90:tcp"));
    let (namespace, name) = name.split_once('/').unwrap();
    let (name, account) = name.split_once('@').unwrap_or((name, ""));
    let account = match account {
        "" => String::new(),
        account => format!(", serviceAccount: {account}"),
    };
    let ports: Vec<_> = ports
        .split(' ')
        .map(|port| {
            let (number, name) = port.split_once(':').unwrap();
            format!("{{number: {number}, name: {name}, protocol: TCP}}")
        })
        .collect();
    let entry = format!("{{address: {address}, labels: {{app: {name}}}{account}}}");
    let service = format!(
        "{{hosts: [{}], ports: [{}], location: MESH_INTERNAL, resolution: STATIC, \
         workloadSelector: {{labels: {{app: {name}}}}}}}",
        match name.contains('.') {
            true => name.to_owned(),
            false => format!("{name}.{namespace}.svc.cluster.local"),
        },
        ports.join(", ")
    );
    let name = format!("{namespace}/{}", name.replace('.', "-"));
    resource("WorkloadEntry", &name, &entry) + &resource("ServiceEntry", &name, &service)
}
