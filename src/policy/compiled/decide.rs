//! The client's decision: what becomes of a packet from one workload to one address and port. Egress, steering, findings
//! and `explain` all ask here, so that kernel and engine cannot disagree.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    policy::{
        Mode, Resources,
        compiled::{
            ReasonCode, RuleRef, Why,
            outcome::{Intent, Outcome, outcome},
            rules::{Choice, Client, Rules},
        },
        document::ClientMode,
        settings::{MeshSettings, UnknownDestination},
    },
    registry::{
        Registry,
        index::{Destination, RegisteredWorkload, Service},
        naming,
        service::{Location, ServicePort},
    },
    spiffe::SpiffeId,
    wire::DropReason,
};

/// What the client's host does with a packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    Plaintext,
    Refuse(DropReason),
    Tunnel { peer: SpiffeId, gateway: SocketAddr },
}

impl Verdict {
    /// The kernel has to send the packet to the daemon: also what is refused, or else it would leave in the clear.
    pub(crate) const fn is_captured(&self) -> bool {
        !matches!(self, Self::Plaintext)
    }
}

/// A verdict with everything that led to it.
#[derive(Clone, Debug)]
pub(crate) struct Decided<'a> {
    pub(crate) verdict: Verdict,
    pub(crate) code: ReasonCode,
    pub(crate) intent: Intent,
    pub(crate) choice: Option<Choice<'a>>,
    pub(crate) service: Option<&'a Service>,
    pub(crate) endpoint: Option<&'a RegisteredWorkload>,
    pub(crate) accepted: BTreeSet<String>,
}

/// The policy of the mesh: settings, rules and registry.
#[derive(Debug)]
pub(crate) struct Decider {
    pub(crate) mesh: MeshSettings,
    pub(crate) mode: Mode,
    pub(crate) mode_rule: Option<RuleRef>,
    pub(crate) rules: Rules,
    pub(crate) registry: Registry,
}

impl Decider {
    pub(crate) fn new(resources: &Resources, mesh: &MeshSettings, registry: Registry) -> Self {
        let policy = resources.mesh_policy.as_ref();
        Self {
            mesh: mesh.clone(),
            mode: policy.map_or(mesh.default_mode, |policy| policy.mode.value),
            mode_rule: policy.map(|policy| RuleRef {
                resource: policy.resource.clone(),
                place: policy.mode.place.clone(),
            }),
            rules: Rules::new(&resources.destination_rules, &mesh.root_namespace),
            registry,
        }
    }

    /// Decides for a client's packet to `address`; `port` is `None` for a packet without one.
    pub(crate) fn decide(
        &self,
        client: Client<'_>,
        address: IpAddr,
        port: Option<u16>,
    ) -> Decided<'_> {
        match self.registry.classify(client.namespace, address, port) {
            Destination::Service(service, port) => {
                self.decide_service(client, service, Some(port), address)
            }
            Destination::Address => self.decide_address(client, address),
            Destination::Unknown => plaintext(ReasonCode::DestinationUnknown),
        }
    }

    /// Decides for one port of a service, or for the service as a whole.
    pub(crate) fn decide_service<'a>(
        &'a self,
        client: Client<'_>,
        service: &'a Service,
        port: Option<&ServicePort>,
        address: IpAddr,
    ) -> Decided<'a> {
        self.decide_endpoint(client, service, port, self.endpoint(service, address))
    }

    fn decide_endpoint<'a>(
        &'a self,
        client: Client<'_>,
        service: &'a Service,
        port: Option<&ServicePort>,
        endpoint: Option<&'a RegisteredWorkload>,
    ) -> Decided<'a> {
        let number = port.map(|port| port.number);
        let choice = self
            .rules
            .find(client, &service.host, service.namespace(), number);
        let intent = self.intent(choice, service);
        let mut decided = Decided {
            intent,
            choice,
            service: Some(service),
            endpoint,
            ..plaintext(plaintext_code(
                intent,
                endpoint.is_some_and(|endpoint| endpoint.mesh_capable),
            ))
        };
        match outcome(intent, self.mode_of(endpoint)) {
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
        match choice.and_then(|choice| choice.tls).map(|tls| tls.mode) {
            Some(ClientMode::Disable) => Intent::Disable,
            Some(ClientMode::IstioMutual) => Intent::IstioMutual,
            None if self.mesh.auto_mtls && service.location == Location::MeshInternal => {
                Intent::Auto
            }
            None => Intent::Unset,
        }
    }

    /// Decides for those addresses of a service's network that no workload has: there is no endpoint to dial.
    pub(crate) fn decide_network(
        &self,
        client: Client<'_>,
        service: &Service,
        port: Option<&ServicePort>,
    ) -> Verdict {
        self.decide_endpoint(client, service, port, None).verdict
    }

    /// A destination's mode; `None` where it is not in the mesh.
    pub(crate) fn mode_of(&self, endpoint: Option<&RegisteredWorkload>) -> Option<Mode> {
        endpoint
            .filter(|endpoint| endpoint.mesh_capable)
            .map(|_| self.mode)
    }

    /// A packet without port, or to a port that no service names, is decided for the address: if any service there
    /// goes through a tunnel so does this, else if any is refused so is this, else it is plaintext like they are.
    fn decide_address(&self, client: Client<'_>, address: IpAddr) -> Decided<'_> {
        let at = self.registry.services_at(client.namespace, address);
        let behind = self.registry.services_behind(client.namespace, address);
        let decided: Vec<_> = at
            .chain(behind)
            .map(|service| self.decide_service(client, service, None, address))
            .collect();
        let rank = |decided: &&Decided<'_>| match decided.verdict {
            Verdict::Tunnel { .. } => 0,
            Verdict::Refuse(_) => 1,
            Verdict::Plaintext => 2,
        };
        let first = decided.iter().min_by_key(rank).cloned();
        first.unwrap_or_else(|| self.decide_workload(address))
    }

    /// A workload that no visible service names.
    fn decide_workload(&self, address: IpAddr) -> Decided<'_> {
        let Some(endpoint) = self.registry.workload(address) else {
            return plaintext(ReasonCode::DestinationUnknown);
        };
        let intent = if self.mesh.auto_mtls {
            Intent::Auto
        } else {
            Intent::Unset
        };
        let mut decided = Decided {
            intent,
            endpoint: Some(endpoint),
            ..plaintext(ReasonCode::DestinationNotInMesh)
        };
        match outcome(intent, self.mode_of(Some(endpoint))) {
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
    /// by the first remote endpoint that is in the mesh, as packets keep their address and each endpoint's host may have
    /// it. In a network each address stands for itself.
    fn endpoint<'a>(
        &'a self,
        service: &'a Service,
        address: IpAddr,
    ) -> Option<&'a RegisteredWorkload> {
        self.registry.workload(address).or_else(|| {
            let is_service_address = service.addresses.contains(&IpNetwork::from(address));
            let workloads = service.endpoints.iter();
            workloads
                .filter(|_| is_service_address)
                .filter_map(|endpoint| self.registry.workload(endpoint.address))
                .filter(|workload| !workload.is_local)
                .min_by_key(|workload| !workload.mesh_capable)
        })
    }

    /// Secure naming: the identity of the endpoint must be among those that may answer (policy.md 7.1).
    fn name(&self, decided: &mut Decided<'_>) {
        let Some(endpoint) = decided.endpoint else {
            return decided.refuse(DropReason::NotInMesh, ReasonCode::DestinationOutsideMesh);
        };
        let (only, accepted) = self.accepted(decided, endpoint);
        let peer = match &endpoint.identity {
            Some(identity) => accepted
                .contains(identity.as_str())
                .then(|| identity.clone()),
            None => only,
        };
        let is_empty = accepted.is_empty();
        decided.accepted = accepted;
        let Some(peer) = peer else {
            let (reason, code) = if is_empty {
                (
                    DropReason::NoAuthorizedIdentity,
                    ReasonCode::NoAuthorizedIdentity,
                )
            } else {
                (
                    DropReason::IdentityNotAccepted,
                    ReasonCode::IdentityNotAccepted,
                )
            };
            return decided.refuse(reason, code);
        };
        decided.verdict = Verdict::Tunnel {
            peer,
            gateway: endpoint.gateway,
        };
        decided.code = if decided.intent == Intent::IstioMutual {
            ReasonCode::MutualByRule
        } else {
            ReasonCode::MutualAuto
        };
    }

    /// The identities that may answer, and the one there is if there is exactly one before trust domain aliases. A
    /// DestinationRule's subjectAltNames replace the registry's set, and are not expanded.
    fn accepted(
        &self,
        decided: &Decided<'_>,
        endpoint: &RegisteredWorkload,
    ) -> (Option<SpiffeId>, BTreeSet<String>) {
        let given = decided
            .choice
            .and_then(|choice| choice.tls?.subject_alt_names.as_ref());
        if let Some(names) = given {
            let accepted = names.iter().map(|name| name.to_string()).collect();
            return (sole(names.iter().map(|name| &**name)), accepted);
        }
        let registered = naming::registered(decided.service, endpoint);
        let only = sole(registered.iter().copied());
        (
            only,
            naming::expand(registered, &self.mesh.trust_domain_aliases),
        )
    }
}

impl Decided<'_> {
    /// The reasons, for whoever asks about a flow.
    pub(crate) fn why(&self, mode_rule: Option<&RuleRef>) -> Arc<Why> {
        Arc::new(Why {
            code: Some(self.code),
            text: self.code.text().into(),
            authorization: None,
            rule: self.choice.map(|choice| choice.rule_ref()),
            mode_rule: mode_rule.cloned(),
            service: self.service.map(|service| service.host.to_string()),
            accepted: self.accepted.iter().cloned().collect(),
        })
    }

    fn refuse(&mut self, reason: DropReason, code: ReasonCode) {
        self.verdict = Verdict::Refuse(reason);
        self.code = code;
    }
}

/// The one identity of a set with exactly one member.
fn sole<'a>(mut names: impl Iterator<Item = &'a str>) -> Option<SpiffeId> {
    let first = names.next()?;
    names.next().is_none().then(|| first.parse().ok()).flatten()
}

fn plaintext(code: ReasonCode) -> Decided<'static> {
    Decided {
        verdict: Verdict::Plaintext,
        code,
        intent: Intent::Unset,
        choice: None,
        service: None,
        endpoint: None,
        accepted: BTreeSet::new(),
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
