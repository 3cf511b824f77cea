//! The matcher against the judge: one mesh, some questions, every door.

use identun::{
    policy::{
        Compiled, EgressDecision, Explanation, IngressDecision, Question, ReasonCode,
        compiled::outcome::Outcome,
    },
    wire::{DropReason, FiveTuple, capsule::FlowRefusedCode},
};

use super::{
    generate::Mesh,
    judge::Judged,
    registry::{Host, Known},
    shrink::shrink,
    text,
};

/// Compiles what the loader would let through; the registry must not contradict itself.
pub(crate) fn compile(mesh: &Mesh) -> Option<Compiled> {
    Compiled::new(&mesh.resources, &mesh.mesh, mesh.facts.clone(), 1).0
}

/// How the judge decides it, or how matcher and judge disagree.
pub(crate) fn compare(
    compiled: &Compiled,
    known: &Known<'_>,
    question: &Question,
) -> Result<ReasonCode, String> {
    let judged = known.judge(question);
    let decision = compiled.decide(question);
    if decision.code != judged.code || decision.outcome != judged.code.outcome() {
        return Err(format!(
            "decide() says {}, the judge says {}",
            decision.code, judged.code
        ));
    }
    let &Question {
        source,
        destination,
        protocol,
        port,
    } = question;
    explained(
        &compiled.explain(source, destination, protocol, port),
        &judged,
    )?;
    let tuple = FiveTuple {
        protocol,
        source,
        source_port: if port.is_some() { 40_000 } else { 0 },
        destination,
        destination_port: port.unwrap_or(0),
    };
    egress(compiled, known, &judged, &tuple)?;
    ingress(compiled, known, &judged, question, &tuple)?;
    Ok(judged.code)
}

/// The story has the same end, and blames whom the judge blames.
fn explained(explanation: &Explanation, judged: &Judged<'_>) -> Result<(), String> {
    if explanation.code != judged.code {
        return Err(format!(
            "explain() says {}, decide() says {}",
            explanation.code, judged.code
        ));
    }
    let rule = explanation.client_rule.as_ref().map(|rule| &rule.resource);
    if rule != judged.rule {
        return Err(format!(
            "explain() says that the client follows {rule:?}, the judge says {:?}",
            judged.rule
        ));
    }
    let rule = explanation.server_rule.as_ref().map(|rule| &rule.resource);
    let mode = explanation.server_mode.map(|mode| (mode, rule));
    if mode != judged.mode {
        return Err(format!(
            "explain() says that the server's mode is {mode:?}, the judge says {:?}",
            judged.mode
        ));
    }
    let rule = explanation.authorization.as_ref();
    let rule = rule.map(|rule| &rule.resource);
    if rule != judged.authorization {
        return Err(format!(
            "explain() says that {rule:?} authorizes, the judge says {:?}",
            judged.authorization
        ));
    }
    Ok(())
}

/// The smallest mesh in which it goes wrong, and what is said about it.
pub(crate) fn told(mesh: Mesh, question: &Question) -> String {
    let wrong = |mesh: &Mesh| {
        let known = Known::new(&mesh.resources, &mesh.mesh, &mesh.facts);
        compare(&compile(mesh)?, &known, question).err()
    };
    let mesh = shrink(mesh, |mesh| wrong(mesh).is_some());
    let compiled = compile(&mesh).unwrap();
    let explained = compiled.explain(
        question.source,
        question.destination,
        question.protocol,
        question.port,
    );
    let considered: String = explained
        .considered
        .iter()
        .map(|one| {
            format!(
                "# {:?} {} won={}: {}\n",
                one.step, one.rule, one.won, one.why
            )
        })
        .collect();
    format!(
        "{}# considered:\n{considered}# {}",
        text::story(&mesh, question),
        wrong(&mesh).unwrap()
    )
}

/// This host's own flows do what the client's side of the judge says.
fn egress(
    compiled: &Compiled,
    known: &Known<'_>,
    judged: &Judged<'_>,
    tuple: &FiveTuple,
) -> Result<(), String> {
    let Some(source) = known.local(tuple.source) else {
        return Ok(());
    };
    let wanted = match (judged.client, &judged.dialled) {
        // asked about all the same: the packet was about to leave the host
        (None, _) => format!("refused {:?}", Some(DropReason::LeavesHost)),
        (Some(code), Some((peer, gateway))) if code.outcome() == Outcome::Mtls => {
            format!("tunnel {} to {peer} at {gateway}", id(known, source))
        }
        (Some(code), _) => match code.outcome() {
            Outcome::Mtls => return Err(format!("the judge dials nobody for {code}")),
            Outcome::Plaintext => "plaintext".to_owned(),
            Outcome::RefusedByClient | Outcome::RefusedByServer => {
                format!("refused {:?}", drop_reason(code))
            }
        },
    };
    let got = match compiled.decide_egress(tuple) {
        EgressDecision::Plaintext { .. } => "plaintext".to_owned(),
        EgressDecision::Refuse { reason, .. } => format!("refused {:?}", Some(reason)),
        EgressDecision::Tunnel { key, .. } => {
            format!("tunnel {} to {} at {}", key.local, key.peer, key.gateway)
        }
    };
    if got == wanted {
        return Ok(());
    }
    Err(format!(
        "decide_egress() says {got}, the judge says {wanted}"
    ))
}

/// What a peer opens towards this host is taken exactly when the judge takes it.
fn ingress(
    compiled: &Compiled,
    known: &Known<'_>,
    judged: &Judged<'_>,
    question: &Question,
    tuple: &FiveTuple,
) -> Result<(), String> {
    let peer = known.host(question.source);
    let (Some(local), Some(peer)) = (known.local(question.destination), peer) else {
        return Ok(());
    };
    if !local.in_mesh || peer.is_local || peer.account.is_none() {
        return Ok(());
    }
    let wanted = known.ingress(peer, question);
    let parsed = |host| id(known, host).parse().map_err(|error| format!("{error}"));
    let got = match compiled.decide_ingress(&parsed(local)?, &parsed(peer)?, tuple) {
        IngressDecision::Accept { .. } => None,
        IngressDecision::Refuse { reason, code, .. } => Some((reason, code)),
    };
    if got != wanted.and_then(refusal) {
        return Err(format!(
            "decide_ingress() says {got:?}, the judge says {wanted:?}"
        ));
    }
    let is_tunnelled = judged
        .client
        .is_some_and(|code| code.outcome() == Outcome::Mtls);
    if is_tunnelled && (judged.code.outcome() == Outcome::Mtls) != got.is_none() {
        return Err(format!(
            "decide() says {}, decide_ingress() says {got:?}",
            judged.code
        ));
    }
    Ok(())
}

fn id(known: &Known<'_>, host: &Host) -> String {
    let name = host.principal(known.mesh.trust_domain.as_str());
    format!("spiffe://{}", name.unwrap_or_default())
}

/// The name under which the client's host counts what it refuses.
fn drop_reason(code: ReasonCode) -> Option<DropReason> {
    let reasons = [
        (ReasonCode::ClientWithoutIdentity, DropReason::UnknownSource),
        (ReasonCode::DestinationOutsideMesh, DropReason::NotInMesh),
        (
            ReasonCode::IdentityNotAccepted,
            DropReason::IdentityNotAccepted,
        ),
        (ReasonCode::ModeDisable, DropReason::ModeDisable),
        (
            ReasonCode::NoAuthorizedIdentity,
            DropReason::NoAuthorizedIdentity,
        ),
        (
            ReasonCode::UnknownDestination,
            DropReason::UnknownDestination,
        ),
    ];
    let mut reasons = reasons.into_iter();
    reasons
        .find(|(known, _)| *known == code)
        .map(|(_, reason)| reason)
}

/// How the server's host counts what it refuses, and what it tells the peer.
fn refusal(code: ReasonCode) -> Option<(DropReason, FlowRefusedCode)> {
    let refusals = [
        (
            ReasonCode::DeniedByPolicy,
            (DropReason::DeniedByPolicy, FlowRefusedCode::DeniedByPolicy),
        ),
        (
            ReasonCode::ModeDisable,
            (DropReason::ModeDisable, FlowRefusedCode::ModeDisable),
        ),
        (
            ReasonCode::NoMatchingAllow,
            (
                DropReason::NoMatchingAllow,
                FlowRefusedCode::NoMatchingAllow,
            ),
        ),
    ];
    let mut refusals = refusals.into_iter();
    refusals
        .find(|(known, _)| *known == code)
        .map(|(_, refusal)| refusal)
}
