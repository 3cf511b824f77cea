//! Findings about services, workloads and this host.

use std::{collections::BTreeMap, net::IpAddr};

use super::at;
use crate::{
    policy::{
        Diagnostic, HostFacts, compiled::decide::Decider, diagnostic::codes,
        settings::UnknownSource,
    },
    registry::{
        index::{RegisteredWorkload, Service, single_address},
        service::Location,
    },
    wire::protocol,
};

pub(super) fn findings(decider: &Decider, host: &HostFacts) -> Vec<Diagnostic> {
    let mut found = service_addresses(decider);
    found.extend(services_that_overlap(decider));
    found.extend(protocols_that_differ(decider));
    found.extend(identities_without_workload(decider, host));
    found.extend(addresses_without_workload(decider, host));
    for workload in decider.registry.workloads() {
        if workload.mesh_capable && !workload.is_local {
            found.extend(key_not_here(workload, host));
            found.extend(gateway_unreachable(workload, host));
        }
    }
    found.extend(exempt_ports(host));
    found
}

/// Packets keep their addresses, so a service address works only where the endpoint's host has it.
fn service_addresses(decider: &Decider) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for service in decider.registry.services() {
        if service.location != Location::MeshInternal || service.endpoints.is_empty() {
            continue;
        }
        let addresses = service
            .addresses
            .iter()
            .filter_map(|network| single_address(*network));
        for address in addresses.filter(|address| decider.registry.workload(*address).is_none()) {
            let mut message = format!(
                "`{address}` of `{}` is no endpoint's address: it works only where each endpoint's host has it too",
                service.host
            );
            if service.endpoints.len() > 1 {
                message.push_str(", and only the first endpoint in the mesh is used");
            }
            let finding = at(&codes::SERVICE_ADDRESS, message, &service.place);
            found.push(
                finding.with_help("addresses are not translated: use those of the endpoints"),
            );
        }
    }
    found
}

fn services_that_overlap(decider: &Decider) -> Vec<Diagnostic> {
    let mut first: BTreeMap<_, &Service> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for service in decider.registry.services() {
        let ports = || service.ports.iter().map(|port| port.number);
        for (network, port) in service
            .addresses
            .iter()
            .flat_map(|network| ports().map(move |port| (network, port)))
        {
            let older = *first.entry((*network, port)).or_insert(service);
            if older.resource != service.resource {
                found.entry((&older.resource, &service.resource)).or_insert_with(|| {
                    let message = format!(
                        "{network} port {port} belongs to `{}` and to `{}`: where both are visible the first counts",
                        older.host, service.host
                    );
                    at(&codes::SERVICES_OVERLAP, message, &service.place)
                        .with_label(format!("also declared at {}", older.place))
                });
            }
        }
    }
    found.into_values().collect()
}

/// Proxies read requests by a port's protocol; here it says nothing, but two words for one port are a mistake anywhere.
fn protocols_that_differ(decider: &Decider) -> Vec<Diagnostic> {
    let mut first: BTreeMap<_, (&Service, &str)> = BTreeMap::new();
    let mut found = BTreeMap::new();
    for service in decider.registry.services() {
        let named = service
            .ports
            .iter()
            .filter(|port| !port.protocol.is_empty());
        for port in named {
            let key = (&service.host, port.number);
            let (older, protocol) = *first.entry(key).or_insert((service, &port.protocol));
            if protocol != &*port.protocol {
                found.entry((key, &service.resource)).or_insert_with(|| {
                    let message = format!(
                        "port {} of `{}` is {} here and {protocol} in {}",
                        port.number, service.host, port.protocol, older.resource
                    );
                    at(&codes::PROTOCOLS_DIFFER, message, &service.place)
                        .with_label(format!("also declared at {}", older.place))
                });
            }
        }
    }
    found.into_values().collect()
}

fn identities_without_workload(decider: &Decider, host: &HostFacts) -> Vec<Diagnostic> {
    let missing = host
        .identities
        .iter()
        .filter(|identity| !decider.registry.has_local(identity));
    let finding = |identity| {
        let message = format!("this host holds `{identity}`, but no workload of this host has it");
        Diagnostic::new(&codes::IDENTITY_WITHOUT_WORKLOAD, message).with_help(
            "declare a WorkloadEntry with its service account and an address of this host, \
             or with `identun.io/gateway` naming one",
        )
    };
    missing.map(finding).collect()
}

/// Policy protects workloads; an address of the host that none has is outside of it.
fn addresses_without_workload(decider: &Decider, host: &HostFacts) -> Vec<Diagnostic> {
    let local = decider.registry.local_addresses();
    let is_own = |address: &IpAddr| !host.forwards || host.underlay.contains(address);
    let is_host_asked = local.iter().any(is_own);
    let sends = match decider.mesh.unknown_source {
        UnknownSource::Drop if is_host_asked => {
            "it accepts plaintext, and may not begin what the host's workloads must encrypt"
        }
        UnknownSource::Drop | UnknownSource::Pass => "it speaks and accepts plaintext",
    };
    let bare = |address: &&IpAddr| {
        !is_host_only(**address) && decider.registry.local_workload(**address).is_none()
    };
    let finding = |address| {
        let message = format!("the local address `{address}` belongs to no workload: {sends}");
        Diagnostic::new(&codes::ADDRESS_WITHOUT_WORKLOAD, message)
    };
    host.underlay.iter().filter(bare).map(finding).collect()
}

fn key_not_here(workload: &RegisteredWorkload, host: &HostFacts) -> Option<Diagnostic> {
    let gateway = workload.gateway;
    if !host.underlay.contains(&gateway.ip()) || gateway.port() != host.port {
        return None;
    }
    let key = match &workload.identity {
        Some(identity) => format!("the key of `{identity}` is not"),
        None => "it has no service account".to_owned(),
    };
    let message = format!(
        "the workload at `{}` is to be reached at this host, but {key}",
        workload.address
    );
    Some(at(&codes::KEY_NOT_HERE, message, &workload.place))
}

fn gateway_unreachable(workload: &RegisteredWorkload, host: &HostFacts) -> Option<Diagnostic> {
    let gateway = workload.gateway;
    let reaches = |address: &IpAddr| {
        *address == gateway.ip()
            || address.is_ipv4() == gateway.is_ipv4() && !is_host_only(*address)
    };
    if host.underlay.is_empty() || host.underlay.iter().any(reaches) {
        return None;
    }
    let message = format!(
        "the gateway `{gateway}` of the workload at `{}` cannot be reached: this host has no address of its family",
        workload.address
    );
    Some(at(&codes::GATEWAY_UNREACHABLE, message, &workload.place))
}

/// A hole in STRICT, and a wanted one: it keeps an operator from locking himself out.
fn exempt_ports(host: &HostFacts) -> Vec<Diagnostic> {
    let finding = |&(number, port): &(u8, u16)| {
        let name = match number {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            other => format!("proto-{other}"),
        };
        let message =
            format!("{name}/{port} accepts plaintext whatever policy says, as `exempt` names it");
        Diagnostic::new(&codes::EXEMPT, message)
    };
    host.exempt.iter().map(finding).collect()
}

/// Loopback and link-local addresses never cross a tunnel.
fn is_host_only(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}
