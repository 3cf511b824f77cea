//! A mesh as the files that say the same: for reading, for `identun explain`, and as food for the loader.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use identun::{
    policy::{
        Mode, Question, Resources,
        document::{
            Action, AuthorizationPolicy, Clause, ClientMode, ClientTls, DestinationRule, Labels,
            PortSelector, StringMatch, Target, Test,
        },
    },
    registry::{
        ResourceName,
        service::{Endpoints, ExportTo, Location, Resolution, ServiceEntry, Workload},
    },
};

use super::generate::Mesh;

const SECURITY: &str = "security.istio.io/v1";
const NETWORKING: &str = "networking.istio.io/v1";
const ALPHA: &str = "authentication.istio.io/v1alpha1";

/// Everything about a mesh and one question to it.
pub(crate) fn story(mesh: &Mesh, question: &Question) -> String {
    let &Question {
        source,
        destination,
        protocol,
        port,
    } = question;
    let port = port.map_or_else(|| "none".to_owned(), |port| port.to_string());
    let settings = &mesh.mesh;
    let list = |items: Vec<String>| items.join(", ");
    let facts = &mesh.facts;
    format!(
        "{}\n# settings: root_namespace {}, default_mode {}, auto_mtls {}, unknown_destination {:?}, unknown_source {:?}, aliases [{}]\n\
         # host: addresses [{}], keys of [{}], exempt {:?}\n\
         # flow: {source} -> {destination}, protocol {protocol}, port {port}\n",
        yaml(&mesh.resources),
        settings.root_namespace,
        settings.default_mode,
        settings.auto_mtls,
        settings.unknown_destination,
        settings.unknown_source,
        list(
            settings
                .trust_domain_aliases
                .iter()
                .map(ToString::to_string)
                .collect()
        ),
        list(facts.underlay.iter().map(ToString::to_string).collect()),
        list(facts.identities.iter().map(ToString::to_string).collect()),
        facts.exempt,
    )
}

/// The resources as one file; creation times keep their order.
pub(crate) fn yaml(all: &Resources) -> String {
    let mut text = String::new();
    if let Some(policy) = &all.mesh_policy {
        let spec = peers(policy.mode.value);
        let _ = write!(
            text,
            "apiVersion: {ALPHA}\nkind: MeshPolicy\nmetadata: {{name: default}}\nspec: {{{spec}}}\n---\n"
        );
    }
    for (age, policy) in all.policies.iter().enumerate() {
        let mut spec = peers(policy.mode.value);
        if !policy.targets.is_empty() {
            let targets = policy.targets.iter().map(target);
            let _ = write!(spec, ", targets: [{}]", join(targets));
        }
        document(&mut text, ALPHA, &policy.resource, age, "", &spec);
    }
    for (age, policy) in all.peer_authentications.iter().enumerate() {
        let mut parts = selector(policy.selector.as_ref());
        let mode =
            |mode: Option<Mode>| mode.map_or_else(|| "UNSET".into(), |mode| mode.to_string());
        parts.push(format!("mtls: {{mode: {}}}", mode(policy.mode.value)));
        if !policy.ports.is_empty() {
            let ports = policy.ports.iter();
            let ports =
                ports.map(|(port, entry)| format!("{port}: {{mode: {}}}", mode(entry.value)));
            parts.push(format!("portLevelMtls: {{{}}}", join(ports)));
        }
        let spec = join(parts);
        document(&mut text, SECURITY, &policy.resource, age, "", &spec);
    }
    for (age, policy) in all.authorization_policies.iter().enumerate() {
        authorization(&mut text, age, policy);
    }
    for (age, rule) in all.destination_rules.iter().enumerate() {
        let spec = destination_rule(rule);
        document(&mut text, NETWORKING, &rule.resource, age, "", &spec);
    }
    for (age, entry) in all.service_entries.iter().enumerate() {
        let spec = service_entry(entry);
        document(&mut text, NETWORKING, &entry.resource, age, "", &spec);
    }
    for (age, workload) in all.workloads.iter().enumerate() {
        let gateway = workload
            .gateway
            .map(|gateway| format!(", annotations: {{identun.io/gateway: \"{gateway}\"}}"));
        let spec = join(workload_parts(workload));
        let more = gateway.unwrap_or_default();
        document(&mut text, NETWORKING, &workload.resource, age, &more, &spec);
    }
    text
}

fn document(
    text: &mut String,
    version: &str,
    name: &ResourceName,
    age: usize,
    metadata: &str,
    spec: &str,
) {
    let ResourceName {
        kind,
        namespace,
        name,
    } = name;
    let _ = write!(
        text,
        "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
         creationTimestamp: \"2019-03-15T00:00:{age:02}Z\"{metadata}}}\nspec: {{{spec}}}\n---\n"
    );
}

fn join(parts: impl IntoIterator<Item = String>) -> String {
    parts.into_iter().collect::<Vec<_>>().join(", ")
}

fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items = items.into_iter();
    join(items.map(|item| format!("{:?}", item.as_ref())))
}

fn labels(labels: &Labels) -> String {
    let pairs = labels.iter();
    join(pairs.map(|(key, value)| format!("{key}: {value}")))
}

fn selector(wanted: Option<&Labels>) -> Vec<String> {
    let wanted = wanted.into_iter();
    wanted
        .map(|wanted| format!("selector: {{matchLabels: {{{}}}}}", labels(wanted)))
        .collect()
}

fn peers(mode: Mode) -> String {
    match mode {
        Mode::Disable => "peers: []".into(),
        Mode::Permissive | Mode::Strict => format!("peers: [{{mtls: {{mode: {mode}}}}}]"),
    }
}

fn target(target: &Target) -> String {
    let name = target.host.value.split('.').next().unwrap_or_default();
    let ports = target.ports.iter().map(|port| match &port.value {
        PortSelector::Name(name) => format!("{{name: {name}}}"),
        PortSelector::Number(number) => format!("{{number: {number}}}"),
    });
    match target.ports.is_empty() {
        true => format!("{{name: {name}}}"),
        false => format!("{{name: {name}, ports: [{}]}}", join(ports)),
    }
}

fn authorization(text: &mut String, age: usize, policy: &AuthorizationPolicy) {
    let mut parts = selector(policy.selector.as_ref());
    let action = match policy.action {
        Action::Allow => "ALLOW",
        Action::Audit => "AUDIT",
        Action::Deny => "DENY",
    };
    parts.push(format!("action: {action}"));
    if !policy.rules.is_empty() {
        let rules = policy.rules.iter().map(|rule| {
            let mut parts = Vec::new();
            if !rule.from.is_empty() {
                let sources = rule.from.iter();
                let sources = sources.map(|all| format!("{{source: {{{}}}}}", clauses(all)));
                parts.push(format!("from: [{}]", join(sources)));
            }
            if !rule.to.is_empty() {
                let operations = rule.to.iter();
                let operations =
                    operations.map(|all| format!("{{operation: {{{}}}}}", clauses(all)));
                parts.push(format!("to: [{}]", join(operations)));
            }
            if !rule.when.is_empty() {
                parts.push(format!("when: [{}]", join(rule.when.iter().map(condition))));
            }
            format!("{{{}}}", join(parts))
        });
        parts.push(format!("rules: [{}]", join(rules)));
    }
    let dry_run = match policy.dry_run {
        true => ", annotations: {istio.io/dry-run: \"true\"}",
        false => "",
    };
    document(text, SECURITY, &policy.resource, age, dry_run, &join(parts));
}

/// In the order of their names: a file gives none.
fn clauses(clauses: &[Clause]) -> String {
    let clauses = clauses.iter().map(|clause| {
        let names = match &clause.test {
            Test::DestinationPort(_) => ["ports", "notPorts"],
            Test::SourceIp(_) => ["ipBlocks", "notIpBlocks"],
            Test::SourceNamespace(_) => ["namespaces", "notNamespaces"],
            Test::SourcePrincipal(_) => ["principals", "notPrincipals"],
            Test::SourceServiceAccount(_) => ["serviceAccounts", "notServiceAccounts"],
            Test::SourceTrustDomain(_) => ["trustDomains", "notTrustDomains"],
            Test::DestinationIp(_) => ["destinationIp", "notDestinationIp"],
        };
        let name = names[usize::from(clause.negated)];
        format!("{name}: [{}]", quoted(values(&clause.test)))
    });
    let mut clauses: Vec<_> = clauses.collect();
    clauses.sort();
    join(clauses)
}

fn condition(clause: &Clause) -> String {
    let key = match &clause.test {
        Test::DestinationIp(_) => "destination.ip",
        Test::DestinationPort(_) => "destination.port",
        Test::SourceIp(_) => "source.ip",
        Test::SourceNamespace(_) => "source.namespace",
        Test::SourcePrincipal(_) => "source.principal",
        Test::SourceServiceAccount(_) => "source.serviceAccount",
        Test::SourceTrustDomain(_) => "source.trustDomain",
    };
    let values = quoted(values(&clause.test));
    let list = if clause.negated {
        "notValues"
    } else {
        "values"
    };
    format!("{{key: {key}, {list}: [{values}]}}")
}

fn values(test: &Test) -> Vec<String> {
    let texts = |values: &[StringMatch]| {
        let values = values.iter();
        values
            .map(|value| match value {
                StringMatch::Exact(text) => text.to_string(),
                StringMatch::Prefix(text) => format!("{text}*"),
                StringMatch::Present => "*".into(),
                StringMatch::Suffix(text) => format!("*{text}"),
            })
            .collect()
    };
    match test {
        Test::DestinationIp(values) | Test::SourceIp(values) => {
            values.iter().map(ToString::to_string).collect()
        }
        Test::DestinationPort(values) => values.iter().map(ToString::to_string).collect(),
        Test::SourceNamespace(values)
        | Test::SourcePrincipal(values)
        | Test::SourceTrustDomain(values) => texts(values),
        Test::SourceServiceAccount(values) => {
            let values = values.iter();
            values
                .map(|(namespace, account)| format!("{namespace}/{account}"))
                .collect()
        }
    }
}

fn destination_rule(rule: &DestinationRule) -> String {
    let mut parts = vec![format!("host: {:?}", rule.host.value)];
    parts.extend(export(&rule.export_to));
    if let Some(wanted) = &rule.workload_selector {
        parts.extend(
            selector(Some(wanted))
                .iter()
                .map(|text| text.replacen("selector", "workloadSelector", 1)),
        );
    }
    if let Some(policy) = &rule.traffic_policy {
        let balance = || "loadBalancer: {simple: RANDOM}".to_owned();
        let block = |tls: Option<&ClientTls>| tls.map_or_else(balance, client_tls);
        let mut inner = vec![block(policy.tls.as_ref())];
        if !policy.ports.is_empty() {
            let ports = policy.ports.iter().map(|entry| {
                let port = entry.port;
                format!(
                    "{{port: {{number: {port}}}, {}}}",
                    block(entry.tls.as_ref())
                )
            });
            inner.push(format!("portLevelSettings: [{}]", join(ports)));
        }
        parts.push(format!("trafficPolicy: {{{}}}", join(inner)));
    }
    join(parts)
}

fn client_tls(tls: &ClientTls) -> String {
    let mode = match tls.mode {
        ClientMode::Disable => "DISABLE",
        ClientMode::IstioMutual => "ISTIO_MUTUAL",
    };
    match &tls.subject_alt_names {
        Some(names) => {
            format!(
                "tls: {{mode: {mode}, subjectAltNames: [{}]}}",
                quoted(names)
            )
        }
        None => format!("tls: {{mode: {mode}}}"),
    }
}

fn export(export_to: &ExportTo) -> Option<String> {
    match export_to {
        ExportTo::All => None,
        ExportTo::Namespaces(names) => Some(format!("exportTo: [{}]", quoted(names))),
        ExportTo::Nobody => Some("exportTo: [\"~\"]".into()),
    }
}

fn service_entry(entry: &ServiceEntry) -> String {
    let mut parts = vec![format!("hosts: [{}]", quoted(&entry.hosts))];
    if !entry.addresses.is_empty() {
        let addresses = entry.addresses.iter().map(ToString::to_string);
        parts.push(format!("addresses: [{}]", quoted(addresses)));
    }
    let ports = entry.ports.iter().map(|port| {
        let target = port.target_port.map(|port| format!(", targetPort: {port}"));
        let (number, name, protocol) = (port.number, &port.name, &port.protocol);
        let target = target.unwrap_or_default();
        format!("{{number: {number}, name: {name}, protocol: {protocol}{target}}}")
    });
    parts.push(format!("ports: [{}]", join(ports)));
    parts.push(
        match entry.location {
            Location::MeshExternal => "location: MESH_EXTERNAL",
            Location::MeshInternal => "location: MESH_INTERNAL",
        }
        .into(),
    );
    parts.push(
        match entry.resolution {
            Resolution::None => "resolution: NONE",
            Resolution::Static => "resolution: STATIC",
        }
        .into(),
    );
    match &entry.endpoints {
        Endpoints::Inline(endpoints) => {
            let endpoints = endpoints.iter();
            let endpoints = endpoints.map(|one| format!("{{{}}}", join(workload_parts(one))));
            parts.push(format!("endpoints: [{}]", join(endpoints)));
        }
        Endpoints::Selector(wanted) => {
            parts.push(format!(
                "workloadSelector: {{labels: {{{}}}}}",
                labels(wanted)
            ));
        }
        Endpoints::None => {}
    }
    parts.extend(export(&entry.export_to));
    if !entry.subject_alt_names.is_empty() {
        let names = quoted(&entry.subject_alt_names);
        parts.push(format!("subjectAltNames: [{names}]"));
    }
    join(parts)
}

fn workload_parts(workload: &Workload) -> Vec<String> {
    let mut parts = vec![format!("address: \"{}\"", workload.address)];
    if let Some(account) = &workload.service_account {
        parts.push(format!("serviceAccount: {account}"));
    }
    if !workload.labels.is_empty() {
        parts.push(format!("labels: {{{}}}", labels(&workload.labels)));
    }
    let ports: &BTreeMap<Arc<str>, u16> = &workload.ports;
    if !ports.is_empty() {
        let ports = ports.iter().map(|(name, port)| format!("{name}: {port}"));
        parts.push(format!("ports: {{{}}}", join(ports)));
    }
    parts
}
