//! `explain`: everything that is decided about one flow, and which rule decided it.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::{
    policy::{
        Compiled, Considered, Decision, Mode, Question, ReasonCode, RuleRef,
        compiled::{
            decide::{Decided, Verdict},
            outcome::{Intent, Outcome},
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
    /// The MeshPolicy behind that; `None`: the setting `default_mode`.
    pub server_rule: Option<RuleRef>,
    /// The destination takes this flow in the clear, too.
    pub plaintext_accepted: bool,
    /// The destination is local and its port accepts plaintext whatever policy says.
    pub exempt: bool,
}

impl Compiled {
    /// Explains a flow between any two addresses: opened here, coming here, or between others as this host's files see
    /// it. `protocol` is the IP protocol number.
    pub fn explain(
        &self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        port: Option<u16>,
    ) -> Explanation {
        let registry = self.registry();
        let sender = registry
            .workload(source)
            .or_else(|| registry.local_workload(source));
        let same_host = self.is_local(source) && self.is_local(destination);
        let in_mesh =
            sender.filter(|sender| !same_host && (sender.mesh_capable || sender.is_local));
        let decided = in_mesh.map(|client| self.decider.decide(client.into(), destination, port));
        let decided = decided.as_ref();
        let endpoint = decided
            .and_then(|decided| decided.endpoint)
            .or_else(|| registry.local_workload(destination))
            .or_else(|| registry.workload(destination));
        let server_mode = self.decider.mode_of(endpoint).filter(|_| !same_host);
        let exempt = self.is_local(destination)
            && port.is_some_and(|port| self.host().exempt.contains(&(protocol, port)));
        let code = self.conclude(decided, server_mode, same_host, exempt);
        let not_in_mesh = (!same_host).then_some(Intent::NotInMesh);
        let mut explanation = Explanation::new((source, destination, protocol, port), code);
        explanation.source_workload = sender.map(view);
        explanation.endpoint = endpoint.map(view);
        explanation.endpoint_address = endpoint.map(|endpoint| endpoint.address);
        explanation.client = decided.map(|decided| decided.intent).or(not_in_mesh);
        explanation.server_mode = server_mode;
        explanation.server_rule = server_mode.and_then(|_| self.decider.mode_rule.clone());
        explanation.plaintext_accepted = exempt || server_mode != Some(Mode::Strict);
        explanation.exempt = exempt;
        if let Some(decided) = decided {
            explanation.captured = self.is_local(source) && decided.verdict.is_captured();
            explanation.take(decided);
        }
        explanation
    }

    /// How a flow between any two addresses ends up, and why: [`Self::explain`] without the story.
    pub fn decide(&self, question: &Question) -> Decision {
        let &Question {
            source,
            destination,
            protocol,
            port,
        } = question;
        self.explain(source, destination, protocol, port)
            .code
            .into()
    }

    fn conclude(
        &self,
        decided: Option<&Decided<'_>>,
        server: Option<Mode>,
        same_host: bool,
        exempt: bool,
    ) -> ReasonCode {
        if same_host {
            return ReasonCode::SameHost;
        }
        let code = decided.map_or(ReasonCode::ClientNotInMesh, |decided| decided.code);
        let is_refused = code.outcome() == Outcome::Plaintext && server == Some(Mode::Strict);
        match is_refused {
            true if exempt => ReasonCode::ExemptPort,
            true => ReasonCode::ModeStrict,
            false => code,
        }
    }
}

impl Explanation {
    /// The flow and its end; nothing of what led there.
    fn new(
        (source, destination, protocol, port): (IpAddr, IpAddr, u8, Option<u16>),
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
            plaintext_accepted: false,
            exempt: false,
        }
    }

    /// Takes over what the client's side decided.
    fn take(&mut self, decided: &Decided<'_>) {
        self.service = decided.service.map(|service| service.host.to_string());
        self.accepted = decided.accepted.iter().cloned().collect();
        self.client_rule = decided.choice.map(|choice| choice.rule_ref());
        match &decided.verdict {
            Verdict::Plaintext => {}
            Verdict::Refuse(reason) => self.drop_reason = Some(*reason),
            Verdict::Tunnel { peer, gateway } => {
                self.peer = Some(peer.clone());
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
