//! A mesh in a few lines: resources built from values, and one host's view of them.

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use identun::{
    policy::{
        Compiled, Diagnostic, HostFacts, MeshSettings, Mode, Resources,
        document::{
            ClientMode, ClientTls, DestinationRule, MeshPolicy, Placed, PortPolicy, TrafficPolicy,
        },
    },
    registry::{
        Place, ResourceName,
        service::{Endpoints, ExportTo, Location, Resolution, ServiceEntry, ServicePort, Workload},
    },
    wire::FiveTuple,
};

pub(crate) const IM: Option<ClientMode> = Some(ClientMode::IstioMutual);
pub(crate) const DISABLE: Option<ClientMode> = Some(ClientMode::Disable);
pub(crate) const UNSET: Option<ClientMode> = None;

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(crate) fn place(line: u32) -> Place {
    Place {
        file: "mesh.yaml".into(),
        line,
        column: 1,
    }
}

pub(crate) fn resource(kind: &'static str, namespace: &str, name: &str) -> ResourceName {
    ResourceName {
        kind,
        namespace: namespace.into(),
        name: name.into(),
    }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect()
}

pub(crate) fn export(names: &[&str]) -> ExportTo {
    match names {
        [] => ExportTo::All,
        ["~"] => ExportTo::Nobody,
        _ => ExportTo::Namespaces(names.iter().map(|name| (*name).into()).collect()),
    }
}

pub(crate) fn workload(namespace: &str, account: &str, address: &str) -> Workload {
    Workload {
        resource: resource("WorkloadEntry", namespace, address),
        place: place(1),
        address: ip(address),
        ports: BTreeMap::new(),
        labels: BTreeMap::new(),
        namespace: namespace.into(),
        service_account: (!account.is_empty()).then(|| account.into()),
        gateway: None,
        mesh_capable: !account.is_empty(),
    }
}

/// Ports are `8080` or `80:8080` (service port and target port).
pub(crate) fn service(
    namespace: &str,
    host: &str,
    ports: &[&str],
    endpoints: Vec<Workload>,
) -> ServiceEntry {
    let port = |text: &&str| {
        let (number, target) = text
            .split_once(':')
            .map_or((*text, None), |(number, target)| (number, Some(target)));
        ServicePort {
            number: number.parse().unwrap(),
            name: format!("p{number}").into(),
            protocol: "TCP".into(),
            target_port: target.map(|target| target.parse().unwrap()),
        }
    };
    ServiceEntry {
        resource: resource("ServiceEntry", namespace, host),
        place: place(2),
        hosts: vec![host.into()],
        addresses: Vec::new(),
        ports: ports.iter().map(port).collect(),
        location: Location::MeshInternal,
        resolution: if endpoints.is_empty() {
            Resolution::None
        } else {
            Resolution::Static
        },
        endpoints: if endpoints.is_empty() {
            Endpoints::None
        } else {
            Endpoints::Inline(endpoints)
        },
        export_to: ExportTo::All,
        subject_alt_names: Vec::new(),
    }
}

pub(crate) fn tls(mode: ClientMode) -> ClientTls {
    ClientTls {
        mode,
        subject_alt_names: None,
        place: place(30),
    }
}

pub(crate) fn rule(
    namespace: &str,
    name: &str,
    host: &str,
    mode: Option<ClientMode>,
) -> DestinationRule {
    DestinationRule {
        resource: resource("DestinationRule", namespace, name),
        host: Placed {
            value: host.into(),
            place: place(20),
        },
        export_to: ExportTo::All,
        workload_selector: None,
        traffic_policy: Some(TrafficPolicy {
            tls: mode.map(tls),
            ports: Vec::new(),
        }),
    }
}

pub(crate) fn with_port(
    mut rule: DestinationRule,
    port: u16,
    mode: Option<ClientMode>,
) -> DestinationRule {
    let policy = rule.traffic_policy.get_or_insert(TrafficPolicy {
        tls: None,
        ports: Vec::new(),
    });
    policy.ports.push(PortPolicy {
        port,
        tls: mode.map(tls),
    });
    rule
}

pub(crate) fn with_names(mut rule: DestinationRule, names: &[&str]) -> DestinationRule {
    let tls = rule.traffic_policy.as_mut().unwrap().tls.as_mut().unwrap();
    tls.subject_alt_names = Some(names.iter().map(|name| (*name).into()).collect());
    rule
}

pub(crate) fn mesh_policy(mode: Mode) -> MeshPolicy {
    MeshPolicy {
        resource: resource("MeshPolicy", "", "default"),
        mode: Placed {
            value: mode,
            place: place(10),
        },
    }
}

/// The settings of the v1alpha1 cases: nothing is encrypted unless a resource says so.
pub(crate) fn alpha() -> MeshSettings {
    MeshSettings {
        default_mode: Mode::Disable,
        auto_mtls: false,
        ..MeshSettings::default()
    }
}

pub(crate) fn host(addresses: &[&str], identities: &[&str]) -> HostFacts {
    HostFacts {
        underlay: addresses.iter().map(|address| ip(address)).collect(),
        port: 15008,
        identities: identities.iter().map(|id| id.parse().unwrap()).collect(),
        exempt: [(6, 22)].into(),
        forwards: false,
    }
}

pub(crate) fn compile(
    resources: &Resources,
    mesh: &MeshSettings,
    host: HostFacts,
) -> (Compiled, Vec<Diagnostic>) {
    let (compiled, findings) = Compiled::new(resources, mesh, host, 1);
    (compiled.unwrap_or_else(|| panic!("{findings:?}")), findings)
}

pub(crate) fn tcp(source: &str, destination: &str, port: u16) -> FiveTuple {
    FiveTuple {
        protocol: 6,
        source: ip(source),
        source_port: 40_000,
        destination: ip(destination),
        destination_port: port,
    }
}

pub(crate) fn codes(findings: &[Diagnostic]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.code).collect()
}
