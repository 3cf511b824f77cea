//! The compiled policy: one door from question to decision. A pure value, built once per change of files or host facts.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;

use crate::{
    policy::{Diagnostic, HostFacts, MeshSettings, Mode, Resources, Steering, analyze},
    registry::{
        Place, Registry, ResourceName, TunnelKey,
        index::{LocalHost, RegisteredWorkload},
    },
    spiffe::SpiffeId,
    wire::{
        DropReason, FiveTuple,
        capsule::{FlowRefusedCode, RefusedCode},
    },
};

pub(crate) mod authorize;
mod capture;
pub(crate) mod decide;
pub mod outcome;
pub mod question;
pub mod reason;
pub(crate) mod rules;
mod secure_naming;
mod select;
mod serve;
pub(crate) mod server;
pub(crate) mod trace;

use authorize::{Authorization, Call, Refusal};
use decide::{Decider, Verdict};
pub use question::{Considered, Decision, Question, Step};
pub use reason::ReasonCode;
use server::ServerMode;
use trace::Silent;

/// The rule that decided and where it stands.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct RuleRef {
    /// The rule.
    pub resource: ResourceName,
    /// The setting that decided.
    pub place: Place,
}

/// A [`RuleRef`] that is only looked at: most decisions end without anybody who asks for the rule.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct RuleAt<'a> {
    pub(crate) resource: &'a ResourceName,
    pub(crate) place: &'a Place,
}

impl RuleAt<'_> {
    pub(crate) fn rule_ref(self) -> RuleRef {
        RuleRef {
            resource: self.resource.clone(),
            place: self.place.clone(),
        }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.resource, self.place)
    }
}

/// Why a decision is what it is.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Why {
    /// The reason as a code, where the flow was decided as a whole.
    pub code: Option<ReasonCode>,
    /// One sentence for an operator.
    pub text: Cow<'static, str>,
    /// The client's rule (DestinationRule), if one won.
    pub rule: Option<RuleRef>,
    /// The server's rule (PeerAuthentication, Policy, MeshPolicy), if one won.
    pub mode_rule: Option<RuleRef>,
    /// The AuthorizationPolicy that allowed or denied, at its rule.
    pub authorization: Option<RuleRef>,
    /// The service host, where one was found.
    pub service: Option<String>,
    /// The secure-naming set: identities that may answer.
    pub accepted: Vec<String>,
}

/// What becomes of a packet that a local workload sends.
#[derive(Clone, Debug)]
pub enum EgressDecision {
    /// It belongs on the wire as it is.
    Plaintext {
        /// Why.
        why: Arc<Why>,
    },
    /// It goes nowhere.
    Refuse {
        /// The reason's name.
        reason: DropReason,
        /// Why.
        why: Arc<Why>,
    },
    /// It goes through this tunnel.
    Tunnel {
        /// Between whom, and where to.
        key: TunnelKey,
        /// Why.
        why: Arc<Why>,
    },
}

/// What becomes of a flow that a peer opens.
#[derive(Clone, Debug)]
pub enum IngressDecision {
    /// Its packets are delivered.
    Accept {
        /// Why.
        why: Arc<Why>,
    },
    /// Its packets are not delivered.
    Refuse {
        /// The reason's name.
        reason: DropReason,
        /// What the peer is told.
        code: FlowRefusedCode,
        /// Why.
        why: Arc<Why>,
    },
}

/// Policy, registry and the facts of this host, ready to answer.
#[derive(Debug)]
pub struct Compiled {
    generation: u64,
    host: HostFacts,
    pub(crate) decider: Decider,
    steering: Steering,
}

impl LocalHost for HostFacts {
    fn holds(&self, identity: &SpiffeId) -> bool {
        self.identities.contains(identity)
    }

    fn has_address(&self, address: IpAddr) -> bool {
        self.underlay.contains(&address)
    }
}

impl Compiled {
    /// Compiles. The diagnostics are findings about the set as a whole; with an error among them there is no value.
    /// `generation` is the caller's number for this version of files and host facts.
    pub fn new(
        resources: &Resources,
        mesh: &MeshSettings,
        host: HostFacts,
        generation: u64,
    ) -> (Option<Self>, Vec<Diagnostic>) {
        let registry = Registry::new(
            &resources.service_entries,
            &resources.workloads,
            &mesh.trust_domain,
            &host,
        );
        let registry = match registry {
            Ok(registry) => registry,
            Err(errors) => return (None, errors.iter().map(analyze::registry_error).collect()),
        };
        let mut decider = Decider::new(resources, mesh, registry);
        let steering = capture::steering(&mut decider, &host);
        let findings = analyze::findings(&decider, &host);
        (
            Some(Self {
                generation,
                host,
                decider,
                steering,
            }),
            findings,
        )
    }

    /// The caller's number of this version.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The facts that it was compiled for.
    pub const fn host(&self) -> &HostFacts {
        &self.host
    }

    /// The server-side mode where no policy narrower than the mesh gives another.
    pub fn mode(&self) -> Mode {
        self.decider.modes.mesh_mode().mode
    }

    /// Services, workloads, identities and gateways.
    pub const fn registry(&self) -> &Registry {
        &self.decider.registry
    }

    /// The address belongs to a workload of this host.
    pub fn is_local(&self, address: IpAddr) -> bool {
        self.registry().local_workload(address).is_some()
    }

    /// The identity of the local workload with this address.
    pub fn local_identity(&self, address: IpAddr) -> Option<&SpiffeId> {
        self.registry().local_workload(address)?.identity.as_ref()
    }

    /// The registry gives this address to a workload with this identity, or to a service that it answers for.
    pub fn peer_owns(&self, peer: &SpiffeId, address: IpAddr) -> bool {
        self.registry().owns(peer, address)
    }

    /// Where daemons of other hosts are reached that serve workloads of this identity, in the order of declaration;
    /// empty for an unknown one.
    pub fn gateways(&self, peer: &SpiffeId) -> &[SocketAddr] {
        self.registry().gateways(peer)
    }

    /// Some remote workload's host has this underlay address.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.registry().is_gateway(address)
    }

    /// A flow that a local workload opens.
    ///
    /// A packet without port, or to a port that no service names, is decided for the destination address: if any
    /// service there goes through a tunnel so does the packet, else if any is refused so is the packet. A mesh workload
    /// that no service names gets a tunnel where `auto_mtls` and its mode allow, else what `unknown_destination` says.
    /// What the registry does not know is plaintext. Traffic within this host is nobody's business; what is asked about
    /// was captured on its way out of the host, and is refused.
    pub fn decide_egress(&self, tuple: &FiveTuple) -> EgressDecision {
        let Some(source) = self.registry().local_workload(tuple.source) else {
            return refuse(
                DropReason::UnknownSource,
                "the source address belongs to no workload of this host (setting `unknown_source`)",
            );
        };
        if self.is_local(tuple.destination) {
            return leaves_host();
        }
        let decided = self.decider.decide(
            source.into(),
            tuple.destination,
            tuple.service_port(),
            &mut Silent,
        );
        let why = self.decider.why(&decided);
        match (decided.verdict, &source.identity) {
            (Verdict::Plaintext, _) => EgressDecision::Plaintext { why },
            (Verdict::Refuse(reason), _) => EgressDecision::Refuse { reason, why },
            (Verdict::Tunnel { peer, gateway }, Some(local)) => EgressDecision::Tunnel {
                key: TunnelKey {
                    local: local.clone(),
                    peer: peer.into_owned(),
                    gateway,
                    lane: 0,
                },
                why,
            },
            (Verdict::Tunnel { .. }, None) => EgressDecision::Refuse {
                reason: DropReason::UnknownSource,
                why,
            },
        }
    }

    /// A reply of a local workload's service to a remote workload: source local, destination remote. Whose tunnel it
    /// is follows from the registry alone, as it was the remote client that chose mutual TLS.
    pub fn decide_reply(&self, tuple: &FiveTuple) -> EgressDecision {
        let Some(workload) = self.registry().local_workload(tuple.source) else {
            return refuse(
                DropReason::UnknownSource,
                "the source address belongs to no local workload",
            );
        };
        if self.is_local(tuple.destination) {
            return leaves_host();
        }
        let request = tuple.reversed();
        let server = self
            .decider
            .server_mode(workload, tuple.source, request.service_port());
        if server.mode == Mode::Disable {
            return EgressDecision::Plaintext {
                why: mode_why(server, "the mode is DISABLE: replies are plaintext"),
            };
        }
        let remote = self.registry().workload(tuple.destination);
        let peer = self.registry().owners(tuple.destination).first();
        let gateway = remote.map(|remote| remote.gateway);
        let gateway = gateway.or_else(|| self.gateways(peer?).first().copied());
        let (Some(local), Some(peer), Some(gateway)) = (&workload.identity, peer, gateway) else {
            return pass("the destination is no workload of the mesh");
        };
        EgressDecision::Tunnel {
            key: TunnelKey {
                local: local.clone(),
                peer: peer.clone(),
                gateway,
                lane: 0,
            },
            why: mode_why(server, "a reply to a workload of the mesh"),
        }
    }

    /// A flow that a peer opens: the tuple as the packet travels, destination local.
    pub fn decide_ingress(
        &self,
        _local: &SpiffeId,
        peer: &SpiffeId,
        tuple: &FiveTuple,
    ) -> IngressDecision {
        let port = tuple.service_port();
        let Some(workload) = self.registry().local_workload(tuple.destination) else {
            return IngressDecision::Refuse {
                reason: DropReason::ForeignDestination,
                code: FlowRefusedCode::UnknownDestination,
                why: Arc::new(Why {
                    text: "the destination address belongs to no local workload".into(),
                    ..Why::default()
                }),
            };
        };
        let server = self.decider.server_mode(workload, tuple.destination, port);
        if server.mode == Mode::Disable {
            return IngressDecision::Refuse {
                reason: DropReason::ModeDisable,
                code: FlowRefusedCode::ModeDisable,
                why: mode_why(server, "the mode is DISABLE: tunnels are not accepted"),
            };
        }
        let call = Call {
            identity: Some(peer),
            source: tuple.source,
            destination: tuple.destination,
            port,
        };
        let authorizations = &self.decider.authorizations;
        authorized(
            server,
            authorizations.authorize(workload, &call, &mut Silent),
        )
    }

    /// May a session between these exist at all (wire.md 3.2)?
    ///
    /// # Errors
    /// `NotHere` where no local workload has the identity `local`, `NotAllowed` where each of them has the mode DISABLE
    /// at every port or the registry knows no workload of `peer`; each with a sentence for the peer's operator.
    pub fn decide_session(
        &self,
        local: &SpiffeId,
        peer: &SpiffeId,
    ) -> Result<(), (RefusedCode, String)> {
        let mut workloads = self.registry().local_with(local).peekable();
        let Some(&first) = workloads.peek() else {
            return Err((
                RefusedCode::NotHere,
                format!("no workload of {local} is on this host"),
            ));
        };
        if !workloads.any(|workload| self.takes_tunnels(workload)) {
            let rule = self.decider.server_mode(first, first.address, None).rule;
            let rule = rule.map_or_else(
                || "`default_mode`".to_owned(),
                |rule| rule.resource.to_string(),
            );
            return Err((
                RefusedCode::NotAllowed,
                format!("the mode is DISABLE by {rule}"),
            ));
        }
        if !self.registry().knows(peer) {
            return Err((
                RefusedCode::NotAllowed,
                format!("the registry knows no workload of {peer}"),
            ));
        }
        Ok(())
    }

    /// At some port the workload's mode is not DISABLE.
    fn takes_tunnels(&self, workload: &RegisteredWorkload) -> bool {
        let ports = self.decider.ports_told_apart(workload, workload.address);
        let mut asked = std::iter::once(None).chain(ports.into_iter().map(Some));
        asked.any(|port| {
            let server = self.decider.server_mode(workload, workload.address, port);
            server.mode != Mode::Disable
        })
    }

    /// What the kernel must do so that exactly the packets that need a decision come to the daemon.
    pub const fn steering(&self) -> &Steering {
        &self.steering
    }
}

fn mode_why(server: ServerMode<'_>, text: &'static str) -> Arc<Why> {
    Arc::new(Why {
        text: text.into(),
        mode_rule: server.rule.map(RuleAt::rule_ref),
        ..Why::default()
    })
}

/// What a peer that passed the mode may do.
fn authorized(server: ServerMode<'_>, authorization: Authorization<'_>) -> IngressDecision {
    let strict = server.mode == Mode::Strict;
    let why = |code, text| {
        Arc::new(Why {
            code,
            text: Cow::Borrowed(text),
            mode_rule: server.rule.map(RuleAt::rule_ref),
            authorization: authorization.rule.map(RuleAt::rule_ref),
            ..Why::default()
        })
    };
    let Some(refusal) = authorization.refusal else {
        let text = match strict {
            true => "the mode is STRICT: only mutual TLS is accepted",
            false => "the mode is PERMISSIVE: mutual TLS and plaintext are accepted",
        };
        return IngressDecision::Accept {
            why: why(None, text),
        };
    };
    let (reason, wire) = match refusal {
        Refusal::Denied => (DropReason::DeniedByPolicy, FlowRefusedCode::DeniedByPolicy),
        Refusal::NotAllowed => (
            DropReason::NoMatchingAllow,
            FlowRefusedCode::NoMatchingAllow,
        ),
    };
    let code = refusal.code();
    IngressDecision::Refuse {
        reason,
        code: wire,
        why: why(Some(code), code.text()),
    }
}

fn leaves_host() -> EgressDecision {
    let text =
        "the destination is a workload of this host, but the packet was about to leave the host";
    refuse(DropReason::LeavesHost, text)
}

fn pass(text: &str) -> EgressDecision {
    EgressDecision::Plaintext {
        why: Arc::new(Why {
            text: text.to_owned().into(),
            ..Why::default()
        }),
    }
}

fn refuse(reason: DropReason, text: &str) -> EgressDecision {
    EgressDecision::Refuse {
        reason,
        why: Arc::new(Why {
            text: text.to_owned().into(),
            ..Why::default()
        }),
    }
}
