//! What a person calls the ends of a flow: addresses, workloads, services.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use crate::{
    cli::{Exit, Failure},
    policy::tls_check::means_host,
    registry::{
        Registry,
        index::{RegisteredWorkload, Service, single_address},
        service::ServicePort,
    },
};

/// How many known names an error lists at most.
const MAX_LISTED: usize = 8;

/// One end of a flow, as it was written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct End {
    pub(super) name: Name,
    pub(super) port: Option<Port>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Name {
    Address(IpAddr),
    /// Of a workload, a service or an identity.
    Text(String),
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Port {
    Number(u16),
    /// Of a service's port.
    Text(String),
}

/// An address and port that an [`End`] means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Spot {
    pub(super) address: IpAddr,
    pub(super) port: Option<u16>,
}

impl End {
    /// `10.0.0.2`, `10.0.0.2:80`, `fd00::2`, `[fd00::2]:80`, `default/web`, `web:80`, `web.shop:http`, `spiffe://...`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Ok(address) = bare.unwrap_or(text).parse() {
            return Ok(Self::address(address, None));
        }
        if let Ok(socket) = text.parse::<SocketAddr>() {
            let port = port(&socket.port().to_string())?;
            return Ok(Self::address(socket.ip(), Some(port)));
        }
        let is_identity = text.starts_with("spiffe://");
        let (name, written) = match text.rsplit_once(':').filter(|_| !is_identity) {
            Some((name, written)) => (name, Some(port(written)?)),
            None => (text, None),
        };
        let inside = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_' | '/');
        let is_name = !name.is_empty() && (is_identity || name.chars().all(inside));
        let has_letter = name.chars().any(char::is_alphabetic);
        if !is_name || !has_letter {
            return Err("expected an address, or the name of a workload or service".into());
        }
        Ok(Self {
            name: Name::Text(name.into()),
            port: written,
        })
    }

    const fn address(address: IpAddr, port: Option<Port>) -> Self {
        Self {
            name: Name::Address(address),
            port,
        }
    }

    /// Every place that is meant, in the order of the registry.
    pub(super) fn spots(&self, registry: &Registry, domain: &str) -> Result<Vec<Spot>, Failure> {
        let text = match &self.name {
            Name::Address(address) => {
                let port = plain_port(self.port.as_ref(), &address.to_string())?;
                return Ok(vec![Spot {
                    address: *address,
                    port,
                }]);
            }
            Name::Text(text) => text,
        };
        let found = meanings(registry, domain, text);
        match &found[..] {
            [] => Err(unknown(registry, text)),
            [Meaning::Workload(workload)] => Ok(vec![Spot {
                address: workload.address,
                port: plain_port(self.port.as_ref(), text)?,
            }]),
            [Meaning::Service(service)] => spots_of(service, self.port.as_ref()),
            several => Err(ambiguous(text, several)),
        }
    }
}

/// What a name may mean.
#[derive(Clone, Copy)]
enum Meaning<'r> {
    Service(&'r Service),
    Workload(&'r RegisteredWorkload),
}

impl Meaning<'_> {
    fn describe(self) -> String {
        match self {
            Self::Service(service) => format!("service {} ({})", service.host, service.place),
            Self::Workload(workload) => format!(
                "{} at {} ({})",
                workload.resource, workload.address, workload.place
            ),
        }
    }
}

fn meanings<'r>(registry: &'r Registry, domain: &str, name: &str) -> Vec<Meaning<'r>> {
    let services = registry.services().iter();
    let services: Vec<_> = services
        .filter(|service| means_host(name, &service.host, domain))
        .collect();
    // A service with one endpoint of the same name is the same place, and knows its ports.
    let behind = |workload: &&RegisteredWorkload| {
        services.iter().any(
            |service| matches!(&service.endpoints[..], [only] if only.address == workload.address),
        )
    };
    let workloads = registry.workloads().iter();
    let workloads = workloads
        .filter(|workload| is_workload(workload, name))
        .filter(|workload| !behind(workload));
    let workloads: Vec<_> = workloads.map(Meaning::Workload).collect();
    let services = services.into_iter().map(Meaning::Service);
    services.chain(workloads).collect()
}

/// NAMESPACE/NAME or NAME of its WorkloadEntry, or its identity.
fn is_workload(workload: &RegisteredWorkload, name: &str) -> bool {
    let resource = &workload.resource;
    let is_own = resource.kind == "WorkloadEntry";
    match name.split_once('/') {
        Some(_) if name.starts_with("spiffe://") => {
            let identity = workload.identity.as_ref();
            identity.is_some_and(|identity| identity.as_str() == name)
        }
        Some((space, name)) => is_own && *resource.namespace == *space && *resource.name == *name,
        None => is_own && *resource.name == *name,
    }
}

/// Where packets for a service go: to its own addresses where it has some, else to its endpoints, each at its own port.
fn spots_of(service: &Service, port: Option<&Port>) -> Result<Vec<Spot>, Failure> {
    let named = named_port(service, port)?;
    let number = match port {
        Some(Port::Number(number)) => Some(*number),
        Some(Port::Text(_)) | None => None,
    };
    let own = service
        .addresses
        .iter()
        .filter_map(|network| single_address(*network));
    let own: BTreeSet<_> = own.collect();
    let spots: Vec<_> = if own.is_empty() {
        let at_endpoint = |ports: &[u16]| {
            let all = service.ports.iter().zip(ports);
            let same = |port: &ServicePort| named.is_some_and(|named| named.number == port.number);
            let mut own = all.filter(|(port, _)| same(port)).map(|(_, own)| *own);
            own.next().or(number)
        };
        let endpoints = service.endpoints.iter();
        endpoints
            .map(|endpoint| Spot {
                address: endpoint.address,
                port: at_endpoint(&endpoint.ports),
            })
            .collect()
    } else {
        let port = named.map(|port| port.number).or(number);
        own.into_iter()
            .map(|address| Spot { address, port })
            .collect()
    };
    if spots.is_empty() {
        let message = format!(
            "the service `{}` has no address and no endpoint",
            service.host
        );
        return Err(usage(message, "write the address itself"));
    }
    Ok(spots)
}

/// The service port that is meant. A number that the service does not name may still be an endpoint's own.
fn named_port<'s>(
    service: &'s Service,
    port: Option<&Port>,
) -> Result<Option<&'s ServicePort>, Failure> {
    let text = match port {
        None => return Ok(None),
        Some(Port::Number(number)) => return Ok(service.port(*number)),
        Some(Port::Text(text)) => text,
    };
    let found = service.ports.iter().find(|port| *port.name == **text);
    if found.is_some() {
        return Ok(found);
    }
    let known: Vec<_> = service
        .ports
        .iter()
        .map(|port| format!("{} ({})", port.name, port.number))
        .collect();
    let message = format!("the service `{}` has no port named `{text}`", service.host);
    Err(usage(message, format!("its ports: {}", known.join(", "))))
}

fn plain_port(port: Option<&Port>, of: &str) -> Result<Option<u16>, Failure> {
    match port {
        None => Ok(None),
        Some(Port::Number(number)) => Ok(Some(*number)),
        Some(Port::Text(text)) => {
            let message = format!("`{text}` is the name of a port, and `{of}` is no service");
            Err(usage(message, "write the port's number"))
        }
    }
}

/// A number from 1, or a name.
fn port(text: &str) -> Result<Port, String> {
    let is_name = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && text.chars().any(|c| c.is_ascii_alphabetic());
    match text.parse::<u16>() {
        Ok(number) if number != 0 => Ok(Port::Number(number)),
        Err(_) if is_name => Ok(Port::Text(text.into())),
        Ok(_) | Err(_) => Err("expected a port of 1 to 65535, or its name in the service".into()),
    }
}

fn unknown(registry: &Registry, name: &str) -> Failure {
    let services = registry
        .services()
        .iter()
        .map(|service| service.host.to_string());
    let workloads = registry
        .workloads()
        .iter()
        .filter(|workload| workload.resource.kind == "WorkloadEntry")
        .map(|workload| format!("{}/{}", workload.resource.namespace, workload.resource.name));
    let known: BTreeSet<_> = services.chain(workloads).collect();
    let help = if known.len() <= MAX_LISTED && !known.is_empty() {
        let known: Vec<_> = known.into_iter().collect();
        format!("known are {}", known.join(", "))
    } else {
        "write an address, NAMESPACE/NAME of a WorkloadEntry, or the host of a service".into()
    };
    usage(
        format!("no workload and no service is named `{name}`"),
        help,
    )
}

fn ambiguous(name: &str, meanings: &[Meaning<'_>]) -> Failure {
    let mut message = format!("`{name}` is ambiguous:");
    for meaning in meanings.iter().take(MAX_LISTED) {
        message.push_str("\n  ");
        message.push_str(&meaning.describe());
    }
    if let Some(more) = meanings
        .len()
        .checked_sub(MAX_LISTED)
        .filter(|more| *more > 0)
    {
        message.push_str(&format!("\n  and {more} more"));
    }
    usage(
        message,
        "write the address, NAMESPACE/NAME of a workload, or the full host of a service",
    )
}

pub(super) fn usage(message: impl Into<String>, help: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message, help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_addresses_or_names_with_or_without_port() {
        let parsed = |text: &str| match End::parse(text) {
            Ok(End { name, port }) => {
                let name = match name {
                    Name::Address(address) => format!("address {address}"),
                    Name::Text(text) => text,
                };
                let port = port.map(|port| match port {
                    Port::Number(number) => number.to_string(),
                    Port::Text(text) => text,
                });
                format!("{name} {}", port.unwrap_or_else(|| "-".into()))
            }
            Err(_) => "error".into(),
        };
        for (text, expected) in [
            ("10.0.0.2", "address 10.0.0.2 -"),
            ("10.0.0.2:80", "address 10.0.0.2 80"),
            ("fd00::2", "address fd00::2 -"),
            ("[fd00::2]", "address fd00::2 -"),
            ("[fd00::2]:53", "address fd00::2 53"),
            ("default/web", "default/web -"),
            ("default/web:80", "default/web 80"),
            (
                "web.shop.svc.cluster.local:http",
                "web.shop.svc.cluster.local http",
            ),
            (
                "spiffe://cluster.local/ns/a/sa/b",
                "spiffe://cluster.local/ns/a/sa/b -",
            ),
        ] {
            assert_eq!(parsed(text), expected);
        }
        for bad in [
            "",
            "10.0.0.2:",
            "10.0.0.2:0",
            "10.0.0.2:70000",
            "10.0.0.0/8",
            "web:0",
            "web:",
            "we b",
            ":80",
        ] {
            assert_eq!(parsed(bad), "error", "{bad}");
        }
    }
}
