//! The client's decision: what becomes of a packet from one workload to one address and port. Egress, steering, findings
//! and `explain` all ask here, so that kernel and engine cannot disagree.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        Resources,
        compiled::{
            ReasonCode, RuleAt, Why,
            authorize::Authorizations,
            outcome::{Intent, Outcome, outcome},
            rules::{Choice, Client, Rules},
            server::{Modes, ServerMode},
            trace::{Silent, Trace},
        },
        document::ClientMode,
        settings::{MeshSettings, UnknownDestination},
    },
    registry::{
        Registry,
        index::{Destination, RegisteredWorkload, Service},
        service::Location,
    },
    spiffe::SpiffeId,
    wire::DropReason,
};

/// What the client's host does with a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict<'a> {
    Plaintext,
    Refuse(DropReason),
    Tunnel {
        peer: Cow<'a, SpiffeId>,
        gateway: SocketAddr,
    },
}

impl Verdict<'_> {
    /// The kernel has to send the packet to the daemon: also what is refused, or else it would leave in the clear.
    pub(crate) const fn is_captured(&self) -> bool {
        !matches!(self, Self::Plaintext)
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct To {
    pub(crate) address: IpAddr,
    /// `None` for a packet without ports.
    pub(crate) port: Option<u16>,
}

/// Who answers there.
#[derive(Clone, Copy, Debug)]
struct Found<'a> {
    workload: &'a RegisteredWorkload,
    to: To,
    /// It was found as an endpoint of the service.
    is_own: bool,
}

/// A verdict with everything that led to it.
#[derive(Clone, Debug)]
pub(crate) struct Decided<'a> {
    pub(crate) verdict: Verdict<'a>,
    pub(crate) code: ReasonCode,
    pub(crate) intent: Intent,
    pub(crate) choice: Option<Choice<'a>>,
    pub(crate) service: Option<&'a Service>,
    pub(crate) endpoint: Option<&'a RegisteredWorkload>,
    /// The registry has named the endpoint as one of the service's.
    pub(crate) is_own_endpoint: bool,
    /// Secure naming was asked, so that there is a set of identities that may answer.
    pub(crate) is_named: bool,
    /// The destination's; `None` where it is not in the mesh.
    pub(crate) server: Option<ServerMode<'a>>,
}

/// The policy of the mesh: settings, rules and registry.
#[derive(Debug)]
pub(crate) struct Decider {
    pub(crate) mesh: MeshSettings,
    pub(crate) rules: Rules,
    pub(crate) modes: Modes,
    pub(crate) authorizations: Authorizations,
    pub(crate) registry: Registry,
}

impl Decider {
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: Registry) -> Self {
        Self {
            mesh: mesh.clone(),
            modes: Modes::new(resources, mesh, &registry),
            authorizations: Authorizations::new(resources, mesh, &registry),
            rules: Rules::new(
                &resources.destination_rules,
                &mesh.root_namespace,
                registry.services(),
            ),
            registry,
        }
    }

    /// Decides for a client's packet to `address`; `port` is `None` for a packet without one.
    pub(crate) fn decide<T: Trace>(
        &self,
        client: Client<'_>,
        address: IpAddr,
        port: Option<u16>,
        trace: &mut T,
    ) -> Decided<'_> {
        match self.registry.classify(client.namespace, address, port) {
            Destination::Endpoint(service, named, workload) => {
                let to = To { address, port };
                let endpoint = Found {
                    workload,
                    to,
                    is_own: true,
                };
                self.decide_endpoint(client, service, Some(named), Some(endpoint), trace)
            }
            Destination::Service(service, named) => {
                let to = To { address, port };
                self.decide_service(client, service, Some(named), to, trace)
            }
            Destination::Address => self.decide_address(client, To { address, port }, trace),
            Destination::Unknown => plaintext(ReasonCode::DestinationUnknown),
        }
    }

    /// Decides for one port of a service, or for the service as a whole.
    pub(crate) fn decide_service<'a, T: Trace>(
        &'a self,
        client: Client<'_>,
        service: &'a Service,
        port: Option<u16>,
        to: To,
        trace: &mut T,
    ) -> Decided<'a> {
        let endpoint = self.endpoint(service, to.address);
        let endpoint = endpoint.map(|workload| Found {
            workload,
            to,
            is_own: false,
        });
        self.decide_endpoint(client, service, port, endpoint, trace)
    }

    fn decide_endpoint<'a, T: Trace>(
        &'a self,
        client: Client<'_>,
        service: &'a Service,
        port: Option<u16>,
        endpoint: Option<Found<'a>>,
        trace: &mut T,
    ) -> Decided<'a> {
        let choice = self.rules.find(client, service, port, trace);
        let intent = self.intent(choice, service);
        let server = endpoint.and_then(|found| self.server_of(found.workload, found.to, trace));
        let mode = server.as_ref().map(|server| server.mode);
        let mut decided = Decided {
            intent,
            choice,
            service: Some(service),
            endpoint: endpoint.map(|found| found.workload),
            is_own_endpoint: endpoint.is_some_and(|found| found.is_own),
            server,
            ..plaintext(plaintext_code(intent, mode.is_some()))
        };
        match outcome(intent, mode) {
            Outcome::Plaintext | Outcome::RefusedByServer if intent != Intent::IstioMutual => {}
            Outcome::RefusedByServer | Outcome::Plaintext => {
                decided.refuse(DropReason::ModeDisable, ReasonCode::ModeDisable);
            }
            Outcome::RefusedByClient => {
                decided.refuse(DropReason::NotInMesh, ReasonCode::DestinationOutsideMesh);
            }
            Outcome::Mtls => self.name(&mut decided),
        }
        decided
    }

    /// What the rule says, or where none does, whether mutual TLS is inferred.
    fn intent(&self, choice: Option<Choice<'_>>, service: &Service) -> Intent {
        match choice.and_then(|choice| choice.mode) {
            Some(ClientMode::Disable) => Intent::Disable,
            Some(ClientMode::IstioMutual) => Intent::IstioMutual,
            None if self.mesh.auto_mtls && service.location == Location::MeshInternal => {
                Intent::Auto
            }
            None => Intent::Unset,
        }
    }

    /// Decides for those addresses of a service's network that no workload has: there is no endpoint to dial.
    pub(crate) fn decide_network<'a>(
        &'a self,
        client: Client<'_>,
        service: &'a Service,
        port: Option<u16>,
    ) -> Verdict<'a> {
        self.decide_endpoint(client, service, port, None, &mut Silent)
            .verdict
    }

    /// A packet without port, or to a port that no service names, is decided for the address: if any service there
    /// goes through a tunnel so does this, else if any is refused so is this, else it is plaintext like they are.
    fn decide_address<T: Trace>(&self, client: Client<'_>, to: To, trace: &mut T) -> Decided<'_> {
        let at = self.registry.services_at(client.namespace, to.address);
        let behind = self.registry.services_behind(client.namespace, to.address);
        let decided: Vec<_> = at
            .chain(behind)
            .map(|service| self.decide_service(client, service, None, to, &mut Silent))
            .collect();
        let rank = |decided: &&Decided<'_>| match decided.verdict {
            Verdict::Tunnel { .. } => 0,
            Verdict::Refuse(_) => 1,
            Verdict::Plaintext => 2,
        };
        let first = decided
            .iter()
            .min_by_key(rank)
            .and_then(|first| first.service);
        match first {
            Some(service) => self.decide_service(client, service, None, to, trace),
            None => self.decide_workload(to, trace),
        }
    }

    /// A workload that no visible service names.
    fn decide_workload<T: Trace>(&self, to: To, trace: &mut T) -> Decided<'_> {
        let Some(endpoint) = self.registry.workload(to.address) else {
            return plaintext(ReasonCode::DestinationUnknown);
        };
        let intent = if self.mesh.auto_mtls {
            Intent::Auto
        } else {
            Intent::Unset
        };
        let server = self.server_of(endpoint, to, trace);
        let mode = server.as_ref().map(|server| server.mode);
        let mut decided = Decided {
            intent,
            endpoint: Some(endpoint),
            server,
            ..plaintext(ReasonCode::DestinationNotInMesh)
        };
        match outcome(intent, mode) {
            Outcome::Mtls => self.name(&mut decided),
            Outcome::Plaintext | Outcome::RefusedByClient | Outcome::RefusedByServer
                if !endpoint.mesh_capable => {}
            Outcome::Plaintext | Outcome::RefusedByClient | Outcome::RefusedByServer => {
                match self.mesh.unknown_destination {
                    UnknownDestination::Drop => decided.refuse(
                        DropReason::UnknownDestination,
                        ReasonCode::UnknownDestination,
                    ),
                    UnknownDestination::Pass => decided.code = ReasonCode::UnnamedPort,
                }
            }
        }
        decided
    }

    /// The workload that answers for `address`: the one that has it. A service address that no workload has is answered
    /// by the local endpoint where this host has the address, else by the first remote endpoint that is in the mesh, as packets keep their address and each endpoint's host may have
    /// it. In a network each address stands for itself.
    pub(crate) fn endpoint<'a>(
        &'a self,
        service: &'a Service,
        address: IpAddr,
    ) -> Option<&'a RegisteredWorkload> {
        let own = self.registry.workload(address);
        let here = || self.registry.local_workload(address);
        own.or_else(here).or_else(|| {
            let is_service_address = service.addresses.contains(&IpNetwork::from(address));
            let workloads = service.endpoints.iter();
            workloads
                .filter(|_| is_service_address)
                .filter_map(|endpoint| self.registry.workload(endpoint.address))
                .filter(|workload| !workload.is_local)
                .min_by_key(|workload| !workload.mesh_capable)
        })
    }
}

impl Decider {
    /// The reasons, for whoever asks about a flow.
    pub(crate) fn why(&self, decided: &Decided<'_>) -> Arc<Why> {
        Arc::new(Why {
            code: Some(decided.code),
            text: decided.code.text().into(),
            authorization: None,
            rule: decided.choice.map(|choice| choice.rule_ref()),
            mode_rule: decided
                .server
                .and_then(|server| server.rule)
                .map(RuleAt::rule_ref),
            service: decided.service.map(|service| service.host.to_string()),
            accepted: self.accepted(decided).into_iter().collect(),
        })
    }
}

impl Decided<'_> {
    pub(super) fn refuse(&mut self, reason: DropReason, code: ReasonCode) {
        self.verdict = Verdict::Refuse(reason);
        self.code = code;
    }
}

fn plaintext(code: ReasonCode) -> Decided<'static> {
    Decided {
        verdict: Verdict::Plaintext,
        code,
        intent: Intent::Unset,
        choice: None,
        service: None,
        endpoint: None,
        is_own_endpoint: false,
        is_named: false,
        server: None,
    }
}

const fn plaintext_code(intent: Intent, in_mesh: bool) -> ReasonCode {
    match intent {
        Intent::Disable => ReasonCode::RuleDisable,
        Intent::Auto if in_mesh => ReasonCode::DestinationModeDisable,
        Intent::Auto => ReasonCode::DestinationNotInMesh,
        Intent::Unset | Intent::IstioMutual => ReasonCode::NoRule,
        Intent::NotInMesh => ReasonCode::ClientNotInMesh,
    }
}
