//! How a flow ends (policy.md 3.6, 4.3, 4.4, 6.1, 7.1).

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use identun::{
    policy::{
        HostFacts, MeshSettings, Mode, Question, ReasonCode, Resources,
        compiled::outcome::Outcome,
        document::{ClientMode, ClientTls},
        settings::{UnknownDestination, UnknownSource},
    },
    registry::{ResourceName, service::Location},
    spiffe::SpiffeId,
};

use super::{
    authorization::Connection,
    mode::Given,
    registry::{Host, Known, Service},
};

/// How the flow ends as these files and this host see it.
pub(crate) fn decide(
    resources: &Resources,
    mesh: &MeshSettings,
    host: &HostFacts,
    question: &Question,
) -> ReasonCode {
    Known::new(resources, mesh, host).judge(question).code
}

/// A flow's end, and what its two ends say on the way.
#[derive(Clone, Debug)]
pub(crate) struct Judged<'k> {
    pub(crate) code: ReasonCode,
    /// What the client's host says alone; None where no client of the mesh opens the flow.
    pub(crate) client: Option<ReasonCode>,
    /// Whom the client dials and where, if its host lets it.
    pub(crate) dialled: Option<(String, SocketAddr)>,
    /// The DestinationRule that the client follows.
    pub(crate) rule: Option<&'k ResourceName>,
    /// What the destination accepts; None where it is not in the mesh.
    pub(crate) mode: Option<Given<'k>>,
    /// The AuthorizationPolicy that decides.
    pub(crate) authorization: Option<&'k ResourceName>,
}

/// The client's side.
#[derive(Clone, Debug)]
struct Side<'k> {
    code: ReasonCode,
    server: Option<&'k Host>,
    dialled: Option<(String, SocketAddr)>,
    rule: Option<&'k ResourceName>,
}

impl Side<'_> {
    fn new(code: ReasonCode) -> Self {
        Self {
            code,
            server: None,
            dialled: None,
            rule: None,
        }
    }
}

impl Known<'_> {
    pub(crate) fn judge(&self, question: &Question) -> Judged<'_> {
        let here = |address| self.local(address).is_some();
        if here(question.source) && here(question.destination) {
            return Judged {
                code: ReasonCode::SameHost,
                client: None,
                dialled: None,
                rule: None,
                mode: None,
                authorization: None,
            };
        }
        if self.is_stray(question) {
            return Judged {
                code: ReasonCode::UnknownSource,
                client: None,
                dialled: None,
                rule: None,
                mode: None,
                authorization: None,
            };
        }
        let sender = self
            .host(question.source)
            .or_else(|| self.local(question.source));
        let client = sender.filter(|sender| sender.in_mesh || sender.is_local);
        let mut side = client.map_or_else(
            || Side::new(ReasonCode::ClientNotInMesh),
            |client| self.client(client, question),
        );
        let dialled = side.dialled.clone();
        if side.code.outcome() == Outcome::Mtls && client.is_some_and(|one| one.account.is_none()) {
            side.code = ReasonCode::ClientWithoutIdentity;
        }
        let server = side.server.or_else(|| self.at(question.destination));
        let server = server.filter(|server| server.in_mesh);
        let (code, authorization) = match server {
            Some(server) => self.server(&side, client, server, question),
            None => (side.code, None),
        };
        Judged {
            code,
            authorization,
            client: client.map(|_| side.code),
            dialled,
            rule: side.rule,
            mode: server.and_then(|server| self.mode(server, question.destination, question.port)),
        }
    }

    /// The host itself speaks, from an address that none of its workloads has, and to where one of those that are the
    /// host itself would encrypt or be refused.
    fn is_stray(&self, question: &Question) -> bool {
        let own = |address| self.facts.underlay.contains(&address);
        let is_speaker = self.host(question.source).is_some_and(|host| host.is_held)
            || self.local(question.source).is_some();
        if self.mesh.unknown_source == UnknownSource::Pass
            || !own(question.source)
            || is_speaker
            || self.local(question.destination).is_some()
        {
            return false;
        }
        let addresses = self.hosts.iter().map(|host| host.address);
        let addresses = addresses.chain(self.facts.underlay.iter().copied());
        let mut clients = addresses.filter_map(|address| {
            let held = self.host(address).filter(|host| host.is_held);
            let client = held.or_else(|| self.local(address))?;
            let is_own =
                own(address) || client.address == address && client.gateway.ip() == address;
            (is_own || !self.facts.forwards).then_some(client)
        });
        clients.any(|client| {
            let outcome = self.client(client, question).code.outcome();
            outcome != Outcome::Plaintext
        })
    }

    /// What the destination's host makes of it.
    fn server(
        &self,
        side: &Side<'_>,
        client: Option<&Host>,
        server: &Host,
        question: &Question,
    ) -> (ReasonCode, Option<&ResourceName>) {
        let &Question {
            source,
            destination,
            port,
            ..
        } = question;
        let connection = |peer| Connection {
            peer,
            source,
            destination,
            port,
        };
        let (refusal, policy) = match side.code.outcome() {
            Outcome::Mtls => self.authorize(server, connection(client)),
            Outcome::Plaintext => match self.mode(server, destination, port) {
                Some((Mode::Strict, _)) => (Some(ReasonCode::ModeStrict), None),
                Some(_) | None => self.authorize(server, connection(None)),
            },
            Outcome::RefusedByClient | Outcome::RefusedByServer => (None, None),
        };
        let is_plaintext = side.code.outcome() == Outcome::Plaintext;
        match refusal {
            Some(_) if is_plaintext && self.is_exempt(question) => (ReasonCode::ExemptPort, policy),
            Some(code) => (code, policy),
            None => (side.code, policy),
        }
    }

    fn is_exempt(&self, question: &Question) -> bool {
        let port = question.port.map(|port| (question.protocol, port));
        self.local(question.destination).is_some()
            && port.is_some_and(|port| self.facts.exempt.contains(&port))
    }

    /// Whether a workload of this host takes a tunnel's flow; None where it does.
    pub(crate) fn ingress(&self, peer: &Host, question: &Question) -> Option<ReasonCode> {
        let &Question {
            source,
            destination,
            port,
            ..
        } = question;
        let server = self.local(destination)?;
        if let Some((Mode::Disable, _)) = self.mode(server, destination, port) {
            return Some(ReasonCode::ModeDisable);
        }
        let connection = Connection {
            peer: Some(peer),
            source,
            destination,
            port,
        };
        self.authorize(server, connection).0
    }

    fn client(&self, client: &Host, question: &Question) -> Side<'_> {
        let (address, port) = (question.destination, question.port);
        let at = self.services_at(&client.namespace, address);
        let behind = self.services_behind(&client.namespace, address);
        if let Some(number) = port {
            for service in &at {
                if !service.numbered(number).is_empty() {
                    return self.to_service(client, service, Some(number), question);
                }
            }
            for service in &behind {
                let endpoint = service.endpoint(address);
                let ports = endpoint.map(|endpoint| service.behind(endpoint, number));
                if let Some((number, _)) = ports.iter().flatten().next() {
                    return self.to_service(client, service, Some(*number), question);
                }
            }
        }
        let mut sides = Vec::new();
        for service in at.into_iter().chain(behind) {
            sides.push(self.to_service(client, service, None, question));
        }
        for wanted in [
            &[Outcome::Mtls][..],
            &[Outcome::RefusedByClient, Outcome::RefusedByServer],
            &[Outcome::Plaintext],
        ] {
            if let Some(side) = sides
                .iter()
                .find(|side| wanted.contains(&side.code.outcome()))
            {
                return side.clone();
            }
        }
        self.to_workload(question)
    }

    /// Towards one port of a service, or the service as a whole.
    fn to_service(
        &self,
        client: &Host,
        service: &Service<'_>,
        port: Option<u16>,
        question: &Question,
    ) -> Side<'_> {
        let server = self.answerer(service, question.destination);
        let mode = server.and_then(|server| self.mode(server, question.destination, question.port));
        let mode = mode.map(|(mode, _)| mode);
        let (rule, tls) = self.client_tls(client, service, port);
        let is_internal = service.entry.location == Location::MeshInternal;
        let code = match (tls.map(|tls| tls.mode), mode) {
            (Some(ClientMode::Disable), _) => ReasonCode::RuleDisable,
            (Some(ClientMode::IstioMutual), None) => ReasonCode::DestinationOutsideMesh,
            (Some(ClientMode::IstioMutual), Some(Mode::Disable)) => ReasonCode::ModeDisable,
            (Some(ClientMode::IstioMutual), Some(Mode::Permissive | Mode::Strict)) => {
                ReasonCode::MutualByRule
            }
            (None, _) if !self.mesh.auto_mtls || !is_internal => ReasonCode::NoRule,
            (None, None) => ReasonCode::DestinationNotInMesh,
            (None, Some(Mode::Disable)) => ReasonCode::DestinationModeDisable,
            (None, Some(Mode::Permissive | Mode::Strict)) => ReasonCode::MutualAuto,
        };
        let mut side = Side {
            server,
            rule,
            ..Side::new(code)
        };
        self.name(&mut side, Some(service), tls);
        side
    }

    /// A workload that no service names.
    fn to_workload(&self, question: &Question) -> Side<'_> {
        let Some(server) = self.host(question.destination) else {
            return Side::new(ReasonCode::DestinationUnknown);
        };
        let code = match self.mode(server, question.destination, question.port) {
            None => ReasonCode::DestinationNotInMesh,
            Some((Mode::Permissive | Mode::Strict, _)) if self.mesh.auto_mtls => {
                ReasonCode::MutualAuto
            }
            Some(_) => match self.mesh.unknown_destination {
                UnknownDestination::Drop => ReasonCode::UnknownDestination,
                UnknownDestination::Pass => ReasonCode::UnnamedPort,
            },
        };
        let mut side = Side {
            server: Some(server),
            ..Side::new(code)
        };
        self.name(&mut side, None, None);
        side
    }

    /// Who answers: the workload that has the address; for a service's address that this host has, its own workload; for
    /// another address of a service the first endpoint elsewhere that is in the mesh, else the first elsewhere.
    fn answerer(&self, service: &Service<'_>, address: IpAddr) -> Option<&Host> {
        let owner = self.host(address).or_else(|| self.local(address));
        if owner.is_some() || !service.has_single(address) {
            return owner;
        }
        let endpoints = || {
            let hosts = service
                .endpoints
                .iter()
                .filter_map(|one| self.host(one.address));
            hosts.filter(|host| !host.is_local)
        };
        endpoints()
            .find(|host| host.in_mesh)
            .or_else(|| endpoints().next())
    }

    /// Who answers at an address of which the client knows no endpoint: whoever any service has there, the oldest first.
    fn at(&self, address: IpAddr) -> Option<&Host> {
        let mut services = self.services.iter();
        self.host(address)
            .or_else(|| self.local(address))
            .or_else(|| services.find_map(|service| self.answerer(service, address)))
    }

    /// Secure naming: where mutual TLS is wanted, the endpoint's identity has to be one that may answer.
    fn name(&self, side: &mut Side<'_>, service: Option<&Service<'_>>, tls: Option<&ClientTls>) {
        let Some(server) = side.server else { return };
        if side.code.outcome() != Outcome::Mtls {
            return;
        }
        let given = tls.and_then(|tls| tls.subject_alt_names.as_ref());
        let (declared, accepted) = match given {
            Some(names) => {
                let names: BTreeSet<String> = names.iter().map(|name| name.to_string()).collect();
                (names.clone(), names)
            }
            None => {
                let names = self.registered(server, service);
                let expanded = names.iter().flat_map(|name| self.expanded(name)).collect();
                (names, expanded)
            }
        };
        let own = self.mesh.trust_domain.as_str();
        let identity = server.principal(own).map(|name| format!("spiffe://{name}"));
        let only = declared
            .first()
            .filter(|name| declared.len() == 1 && name.parse::<SpiffeId>().is_ok());
        let peer = match identity {
            Some(identity) => accepted.contains(&identity).then_some(identity),
            None => only.cloned(),
        };
        match peer {
            Some(peer) => side.dialled = Some((peer, server.gateway)),
            None if accepted.is_empty() => side.code = ReasonCode::NoAuthorizedIdentity,
            None => side.code = ReasonCode::IdentityNotAccepted,
        }
    }

    /// The endpoint's identity where it is an endpoint of the service, and the service's names that are SPIFFE IDs.
    fn registered(&self, server: &Host, service: Option<&Service<'_>>) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        if service.is_none_or(|service| service.endpoint(server.address).is_some()) {
            let own = self.mesh.trust_domain.as_str();
            names.extend(server.principal(own).map(|name| format!("spiffe://{name}")));
        }
        for name in service
            .iter()
            .flat_map(|service| &service.entry.subject_alt_names)
        {
            if name.parse::<SpiffeId>().is_ok() {
                names.insert(name.to_string());
            }
        }
        names
    }

    /// The name, and if it is a service account's the same of every alias.
    fn expanded(&self, name: &str) -> Vec<String> {
        let mut names = vec![name.to_owned()];
        let id: Option<SpiffeId> = name.parse().ok();
        if let Some((namespace, account)) = id.as_ref().and_then(SpiffeId::service_account) {
            for alias in &self.mesh.trust_domain_aliases {
                names.push(format!("spiffe://{alias}/ns/{namespace}/sa/{account}"));
            }
        }
        names
    }
}
