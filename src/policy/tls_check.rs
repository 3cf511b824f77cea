//! `tls-check`: for every port of every service what its server accepts next to what clients send, as istioctl showed it
//! (policy.md 6.2).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use serde::{Serialize, Serializer};

use crate::{
    policy::{
        Compiled, Mode, RuleRef,
        compiled::{
            RuleAt,
            rules::{Choice, Client},
            trace::Silent,
        },
        document::{ClientMode, Labels},
    },
    registry::{
        index::{Service, single_address},
        service::{Location, ServicePort},
    },
};

/// Whether the two sides go together.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    /// Mutual TLS where the server takes it: no rule decides and `auto_mtls` is on.
    Auto,
    /// What clients send is refused.
    Conflict,
    /// What clients send is accepted.
    Ok,
}

/// What a server accepts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Server {
    /// By its policy.
    Mode(Mode),
    /// It has no daemon: it takes plaintext, whatever its policy says.
    OutsideMesh,
    /// Nobody is known to answer.
    Unknown,
}

impl Server {
    /// Strictest first.
    const fn rank(self) -> u8 {
        match self {
            Self::Mode(Mode::Strict) => 0,
            Self::Mode(Mode::Permissive) => 1,
            Self::Mode(Mode::Disable) => 2,
            Self::OutsideMesh => 3,
            Self::Unknown => 4,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(mode) => mode.fmt(f),
            Self::OutsideMesh => f.write_str("NONE"),
            Self::Unknown => f.write_str("UNKNOWN"),
        }
    }
}

impl Serialize for Server {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One port of a service; one row for each way its endpoints are guarded.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The service's host.
    pub host: Arc<str>,
    /// The service port.
    pub port: u16,
    /// Whether the two sides go together.
    pub status: Status,
    /// What the server accepts.
    pub server: Server,
    /// What clients must use; `None`: no rule says it.
    pub client: Option<ClientMode>,
    /// The PeerAuthentication, Policy or MeshPolicy behind the server's side.
    pub authn_policy: Option<RuleRef>,
    /// The DestinationRule behind the client's side.
    pub destination_rule: Option<RuleRef>,
    /// Whom the row is about.
    pub endpoints: Vec<IpAddr>,
}

/// Every row, as clients of one namespace see it.
#[derive(Clone, Debug, Serialize)]
pub struct TlsCheck {
    /// The clients' namespace.
    pub namespace: Arc<str>,
    /// By host, then port; of one port the strictest first.
    pub rows: Vec<Row>,
    /// Services that are not in the mesh: nothing is decided about them.
    pub external: usize,
}

impl Compiled {
    /// Compares both sides for clients of `namespace` that no `workloadSelector` names.
    pub fn tls_check(&self, namespace: &Arc<str>) -> TlsCheck {
        let services = self.registry().services().iter();
        let visible = services.filter(|service| service.is_visible_to(namespace));
        let (internal, external): (Vec<_>, Vec<_>) =
            visible.partition(|service| service.location == Location::MeshInternal);
        let mut rows: Vec<_> = internal
            .into_iter()
            .flat_map(|service| {
                let ports = service.ports.iter().enumerate();
                ports.flat_map(|(index, port)| self.rows_of(namespace, service, index, port))
            })
            .collect();
        rows.sort_by(|a, b| {
            let key = |row: &Row| (row.port, row.server.rank());
            a.host.cmp(&b.host).then_with(|| key(a).cmp(&key(b)))
        });
        TlsCheck {
            namespace: Arc::clone(namespace),
            rows,
            external: external.len(),
        }
    }

    fn rows_of(
        &self,
        namespace: &Arc<str>,
        service: &Service,
        index: usize,
        port: &ServicePort,
    ) -> Vec<Row> {
        let client = Client {
            namespace,
            labels: &Labels::new(),
        };
        let rules = &self.decider.rules;
        let number = Some(port.number);
        let choice = rules.find(client, service, number, &mut Silent);
        let mode = choice.and_then(|choice| choice.mode);
        let mut sides: BTreeMap<_, Vec<IpAddr>> = BTreeMap::new();
        let mut answers = Vec::new();
        for (address, port) in places(service, index, port) {
            let (server, policy) = self.server_at(address, port);
            let key = policy.as_ref().map(|policy| policy.resource.clone());
            let key = (server.rank(), key);
            if !sides.contains_key(&key) {
                answers.push((key.clone(), server, policy));
            }
            sides.entry(key).or_default().push(address);
        }
        if answers.is_empty() {
            answers.push(((Server::Unknown.rank(), None), Server::Unknown, None));
        }
        let row = |(key, server, authn_policy)| Row {
            host: Arc::clone(&service.host),
            port: port.number,
            status: status(mode, server, self.decider.mesh.auto_mtls),
            server,
            client: mode,
            authn_policy,
            destination_rule: choice.as_ref().map(Choice::rule_ref),
            endpoints: sides.remove(&key).unwrap_or_default(),
        };
        answers.into_iter().map(row).collect()
    }

    fn server_at(&self, address: IpAddr, port: u16) -> (Server, Option<RuleRef>) {
        let Some(workload) = self.registry().workload(address) else {
            return (Server::Unknown, None);
        };
        if !workload.mesh_capable {
            return (Server::OutsideMesh, None);
        }
        let found = self.decider.server_mode(workload, address, Some(port));
        (Server::Mode(found.mode), found.rule.map(RuleAt::rule_ref))
    }
}

/// Where packets for a service port go: to each endpoint at its own port; without endpoints to the service's addresses.
fn places(service: &Service, index: usize, port: &ServicePort) -> Vec<(IpAddr, u16)> {
    if !service.endpoints.is_empty() {
        let endpoints = service.endpoints.iter();
        return endpoints
            .map(|endpoint| {
                let own = endpoint.ports.get(index).copied();
                (endpoint.address, own.unwrap_or(port.number))
            })
            .collect();
    }
    let addresses = service.addresses.iter();
    addresses
        .filter_map(|network| single_address(*network))
        .map(|address| (address, port.number))
        .collect()
}

/// Istio 1.4's table, but plaintext by nobody's decision against STRICT is the conflict that Istio 1.1 called it.
const fn status(client: Option<ClientMode>, server: Server, auto_mtls: bool) -> Status {
    match (client, server) {
        (None, _) if auto_mtls => Status::Auto,
        (None | Some(ClientMode::Disable), Server::Mode(Mode::Strict)) => Status::Conflict,
        (None | Some(ClientMode::Disable), _) => Status::Ok,
        (Some(ClientMode::IstioMutual), Server::Mode(Mode::Strict | Mode::Permissive)) => {
            Status::Ok
        }
        (Some(ClientMode::IstioMutual), _) => Status::Conflict,
    }
}

/// `name` means `host`: it is the whole host, or what is left without `.svc.DOMAIN`, or without the namespace too.
pub fn means_host(name: &str, host: &str, domain: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let short = host
        .strip_suffix(domain)
        .and_then(|host| host.strip_suffix(".svc."));
    let service = short.and_then(|short| short.split_once('.'));
    host == name
        || short == Some(&name)
        || service.is_some_and(|(service, space)| service == name && !space.contains('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_istio_s_but_for_plaintext_that_nobody_decided() {
        use Status::{Auto, Conflict, Ok};
        let servers = [
            Server::Mode(Mode::Disable),
            Server::Mode(Mode::Permissive),
            Server::Mode(Mode::Strict),
            Server::OutsideMesh,
            Server::Unknown,
        ];
        let none = None;
        let disable = Some(ClientMode::Disable);
        let mutual = Some(ClientMode::IstioMutual);
        for (client, auto, expected) in [
            (none, true, [Auto, Auto, Auto, Auto, Auto]),
            (none, false, [Ok, Ok, Conflict, Ok, Ok]),
            (disable, true, [Ok, Ok, Conflict, Ok, Ok]),
            (disable, false, [Ok, Ok, Conflict, Ok, Ok]),
            (mutual, true, [Conflict, Ok, Ok, Conflict, Conflict]),
            (mutual, false, [Conflict, Ok, Ok, Conflict, Conflict]),
        ] {
            let found = servers.map(|server| status(client, server, auto));
            assert_eq!(found, expected, "{client:?} {auto}");
        }
    }

    #[test]
    fn hosts_are_found_by_their_short_names() {
        let host = "web.shop.svc.cluster.local";
        for (name, expected) in [
            ("web", true),
            ("Web", true),
            ("web.shop", true),
            (host, true),
            ("web.other", false),
            ("shop", false),
            ("we", false),
        ] {
            assert_eq!(means_host(name, host, "cluster.local"), expected, "{name}");
        }
        let other = "web.example.com";
        assert!(means_host(other, other, "cluster.local"));
        assert!(!means_host("web", other, "cluster.local"));
    }
}
