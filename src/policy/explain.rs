//! `explain`: everything that is decided about one flow, and which rule decided it.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::{
    policy::{
        Compiled, Considered, Decision, Mode, Question, ReasonCode, RuleRef,
        compiled::{
            RuleAt,
            authorize::{Call, Refusal},
            decide::{Decided, To, Verdict},
            outcome::{Intent, Outcome},
            server::ServerMode,
            trace::{Chain, Silent, Trace},
        },
    },
    registry::index::RegisteredWorkload,
    spiffe::SpiffeId,
    wire::DropReason,
};

/// A workload, as far as an operator wants to see it here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct WorkloadView {
    /// Kind, namespace and name of its declaration.
    pub resource: String,
    /// Where the declaration's address stands.
    pub place: String,
    /// Its identity, where one is declared.
    pub identity: Option<SpiffeId>,
    /// Its host runs a daemon.
    pub in_mesh: bool,
    /// It is served by this host's daemon.
    pub is_local: bool,
}

/// What becomes of a flow, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Explanation {
    /// The flow's source address.
    pub source: IpAddr,
    /// The flow's destination address.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port; `None` for a protocol without ports, or for the destination as a whole.
    pub port: Option<u16>,
    /// Who sends; `None` where the registry does not know the address.
    pub source_workload: Option<WorkloadView>,
    /// The host name of the service that the destination was taken for.
    pub service: Option<String>,
    /// Who answers: the workload at the destination, or the endpoint chosen for a service address.
    pub endpoint: Option<WorkloadView>,
    /// The address of that workload.
    pub endpoint_address: Option<IpAddr>,
    /// This host's kernel sends the packets to the daemon.
    pub captured: bool,
    /// The packets cross the network in a tunnel.
    pub encrypted: bool,
    /// How the flow ends up.
    pub outcome: Outcome,
    /// Why, as a code.
    pub code: ReasonCode,
    /// One sentence: the decision.
    pub reason: String,
    /// Every rule that was considered, in the order of the steps.
    pub considered: Vec<Considered>,
    /// The name under which dropped packets are counted, where the client's host refuses.
    pub drop_reason: Option<DropReason>,
    /// The identities that may answer.
    pub accepted: Vec<String>,
    /// The identity that is dialled.
    pub peer: Option<SpiffeId>,
    /// Where its daemon is reached.
    pub gateway: Option<SocketAddr>,
    /// What the client's side decides; `None` within one host, where nothing is decided.
    pub client: Option<Intent>,
    /// The DestinationRule behind that; `None`: no rule matches.
    pub client_rule: Option<RuleRef>,
    /// The destination's mode; `None` where it is not in the mesh.
    pub server_mode: Option<Mode>,
    /// The rule behind that; `None`: the setting `default_mode`, or nothing but inheritance.
    pub server_rule: Option<RuleRef>,
    /// The AuthorizationPolicy that allowed or denied; where none of those that allow matches, the first of them.
    pub authorization: Option<RuleRef>,
    /// The destination takes this flow in the clear, too.
    pub plaintext_accepted: bool,
    /// The destination is local and its port accepts plaintext whatever policy says.
    pub exempt: bool,
}

impl Compiled {
    /// How a flow between any two addresses ends up, and why: [`Self::explain`] without the story.
    pub fn decide(&self, question: &Question) -> Decision {
        self.judge(question, &mut Silent).code.into()
    }

    /// Explains a flow between any two addresses: opened here, coming here, or between others as this host's files see
    /// it. `protocol` is the IP protocol number.
    pub fn explain(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> Explanation {
        let question = Question {
            source,
            destination,
            protocol,
            port,
        };
        let mut chain = Chain::default();
        let judged = self.judge(&question, &mut chain);
        let mut explanation = Explanation::new(&question, judged.code);
        explanation.considered = chain.considered;
        explanation.source_workload = judged.sender.map(view);
        explanation.endpoint = judged.endpoint.map(view);
        explanation.endpoint_address = judged.endpoint.map(|endpoint| endpoint.address);
        explanation.client = judged.intent();
        explanation.authorization = judged.authorization.map(RuleAt::rule_ref);
        explanation.exempt = judged.exempt;
        let mode = judged.server.map(|server| server.mode);
        explanation.server_mode = mode;
        explanation.server_rule = judged
            .server
            .and_then(|server| server.rule)
            .map(RuleAt::rule_ref);
        explanation.plaintext_accepted = judged.exempt
            || judged
                .endpoint
                .filter(|_| mode.is_some())
                .is_none_or(|endpoint| {
                    let refusal =
                        self.decider
                            .refuses_plaintext(endpoint, destination, source, port);
                    refusal.is_none()
                });
        if judged.code == ReasonCode::UnknownSource {
            explanation.captured = true;
            explanation.drop_reason = Some(DropReason::UnknownSource);
        }
        if let Some(decided) = &judged.decided {
            explanation.captured = self.is_local(source) && decided.verdict.is_captured();
            explanation.accepted = self.decider.accepted(decided).into_iter().collect();
            explanation.take(decided);
        }
        explanation
    }

    /// The one way from a question to a code: the client's side, the server's mode, the server's authorization.
    fn judge<T: Trace>(&self, question: &Question, trace: &mut T) -> Judged<'_> {
        let &Question {
            source,
            destination: address,
            protocol,
            port,
        } = question;
        let registry = self.registry();
        let sender = registry
            .workload(source)
            .or_else(|| registry.local_workload(source));
        let mut judged = Judged::new(sender);
        if self.is_local(source) && self.is_local(address) {
            judged.endpoint = self.endpoint_at(address);
            return judged;
        }
        if self.is_stray(question) {
            judged.endpoint = self.endpoint_at(address);
            judged.code = ReasonCode::UnknownSource;
            return judged;
        }
        judged.exempt = self.is_local(address)
            && port.is_some_and(|port| self.host().exempt.contains(&(protocol, port)));
        judged.code = ReasonCode::ClientNotInMesh;
        if let Some(client) = sender.filter(|sender| sender.mesh_capable || sender.is_local) {
            let decided = self.decider.decide(client.into(), address, port, trace);
            judged.code = decided.code;
            judged.endpoint = decided.endpoint;
            judged.server = decided.server;
            judged.decided = Some(decided);
        }
        judged.endpoint = judged.endpoint.or_else(|| self.endpoint_at(address));
        let Some(endpoint) = judged.endpoint else {
            return judged;
        };
        if judged.server.is_none() {
            let to = To { address, port };
            judged.server = self.decider.server_of(endpoint, to, trace);
        }
        let identity = sender.and_then(|sender| sender.identity.as_ref());
        match judged.code.outcome() {
            Outcome::Mtls if identity.is_none() => {
                judged.code = ReasonCode::ClientWithoutIdentity;
            }
            Outcome::Mtls => self.authorize(&mut judged, identity, question, trace),
            Outcome::Plaintext => self.take_plaintext(&mut judged, question, trace),
            Outcome::RefusedByClient | Outcome::RefusedByServer => {}
        }
        judged
    }

    /// A flow that the host may not begin from that address, which is its own and no workload's.
    fn is_stray(&self, question: &Question) -> bool {
        let &Question {
            source,
            destination,
            protocol,
            port,
        } = question;
        let steering = self.steering();
        self.host().underlay.contains(&source)
            && !steering.speakers.contains(&source)
            && !self.is_local(destination)
            && steering.captures_stray(destination, protocol, port)
    }

    /// Who answers at an address where no client of the mesh asks.
    fn endpoint_at(&self, address: IpAddr) -> Option<&RegisteredWorkload> {
        let registry = self.registry();
        registry
            .local_workload(address)
            .or_else(|| registry.workload(address))
            .or_else(|| {
                let services = registry.every_service_at(address, address);
                let mut endpoints = services
                    .into_iter()
                    .filter_map(|service| self.decider.endpoint(service, address));
                endpoints.next()
            })
    }

    fn take_plaintext<'a, T: Trace>(
        &'a self,
        judged: &mut Judged<'a>,
        question: &Question,
        trace: &mut T,
    ) {
        let Some(server) = &judged.server else { return };
        if server.mode == Mode::Strict {
            judged.code = ReasonCode::ModeStrict;
        } else {
            self.authorize(judged, None, question, trace);
        }
        if judged.exempt && judged.code.outcome() == Outcome::RefusedByServer {
            judged.code = ReasonCode::ExemptPort;
        }
    }

    fn authorize<'a, T: Trace>(
        &'a self,
        judged: &mut Judged<'a>,
        identity: Option<&SpiffeId>,
        question: &Question,
        trace: &mut T,
    ) {
        let Some(endpoint) = judged.endpoint else {
            return;
        };
        let call = Call {
            identity,
            source: question.source,
            destination: question.destination,
            port: question.port,
        };
        let authorization = self
            .decider
            .authorizations
            .authorize(endpoint, &call, trace);
        judged.code = authorization.refusal.map_or(judged.code, Refusal::code);
        judged.authorization = authorization.rule;
    }
}

/// A question on its way through the steps.
struct Judged<'a> {
    code: ReasonCode,
    sender: Option<&'a RegisteredWorkload>,
    decided: Option<Decided<'a>>,
    endpoint: Option<&'a RegisteredWorkload>,
    server: Option<ServerMode<'a>>,
    authorization: Option<RuleAt<'a>>,
    exempt: bool,
}

impl<'a> Judged<'a> {
    const fn new(sender: Option<&'a RegisteredWorkload>) -> Self {
        Self {
            code: ReasonCode::SameHost,
            sender,
            decided: None,
            endpoint: None,
            server: None,
            authorization: None,
            exempt: false,
        }
    }

    fn intent(&self) -> Option<Intent> {
        match (&self.decided, self.code) {
            (Some(decided), _) => Some(decided.intent),
            (None, ReasonCode::SameHost) => None,
            (None, _) => Some(Intent::NotInMesh),
        }
    }
}

impl Explanation {
    /// The flow and its end; nothing of what led there.
    fn new(
        &Question {
            source,
            destination,
            protocol,
            port,
        }: &Question,
        code: ReasonCode,
    ) -> Self {
        Self {
            source,
            destination,
            protocol,
            port,
            source_workload: None,
            service: None,
            endpoint: None,
            endpoint_address: None,
            captured: false,
            encrypted: matches!(code.outcome(), Outcome::Mtls),
            outcome: code.outcome(),
            code,
            reason: code.text().into(),
            considered: Vec::new(),
            drop_reason: None,
            accepted: Vec::new(),
            peer: None,
            gateway: None,
            client: None,
            client_rule: None,
            server_mode: None,
            server_rule: None,
            authorization: None,
            plaintext_accepted: false,
            exempt: false,
        }
    }

    /// Takes over what the client's side decided.
    fn take(&mut self, decided: &Decided<'_>) {
        self.service = decided.service.map(|service| service.host.to_string());
        self.client_rule = decided.choice.map(|choice| choice.rule_ref());
        match &decided.verdict {
            Verdict::Plaintext => {}
            Verdict::Refuse(reason) => self.drop_reason = Some(*reason),
            Verdict::Tunnel { peer, gateway } => {
                self.peer = Some(peer.clone().into_owned());
                self.gateway = Some(*gateway);
            }
        }
    }
}

fn view(workload: &RegisteredWorkload) -> WorkloadView {
    WorkloadView {
        resource: workload.resource.to_string(),
        place: workload.place.to_string(),
        identity: workload.identity.clone(),
        in_mesh: workload.mesh_capable,
        is_local: workload.is_local,
    }
}
