//! An explanation as text: what becomes of the flow, who it is between, then every rule that was considered.

use std::{io::Write, net::SocketAddr};

use crate::{
    cli::table::wrap,
    policy::{
        Considered, Decision, Explanation, Question, ReasonCode, RuleRef, Step,
        compiled::outcome::{Intent, Outcome},
        explain::WorkloadView,
    },
    wire::flow::protocol,
};

/// Where the values begin, in columns.
const INDENT: usize = 12;
/// Where the reasons of considered rules begin.
const DEEPER: usize = INDENT + 6;

pub(super) fn print(
    explanation: &Explanation,
    others: &[(Question, Decision)],
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let mut page = Page(out);
    page.flow(explanation, others)?;
    page.ends(explanation)?;
    page.client(explanation)?;
    page.server(explanation)?;
    page.considered(&explanation.considered)
}

/// Lines of a name and a value.
struct Page<'o>(&'o mut dyn Write);

impl Page<'_> {
    fn line(&mut self, name: &str, value: &str) -> std::io::Result<()> {
        writeln!(self.0, "{name:<INDENT$}{}", wrap(value, INDENT))
    }

    fn flow(
        &mut self,
        explanation: &Explanation,
        others: &[(Question, Decision)],
    ) -> std::io::Result<()> {
        let target = target(explanation.destination, explanation.port);
        let protocol = protocol_name(explanation.protocol);
        self.line(
            "flow",
            &format!("{protocol} {} -> {target}", explanation.source),
        )?;
        self.line("outcome", outcome_text(explanation.outcome))?;
        self.line("because", &explanation.reason)?;
        self.line("code", explanation.code.as_str())?;
        self.line("captured", captured(explanation))?;
        let encrypted = if explanation.encrypted { "yes" } else { "no" };
        self.line("encrypted", encrypted)?;
        if explanation.exempt {
            self.line("exempt", "this port accepts plaintext whatever policy says")?;
        }
        if let Some(reason) = explanation.drop_reason {
            self.line("counted as", reason.as_str())?;
        }
        for (index, (question, decision)) in others.iter().enumerate() {
            let target = self::target(question.destination, question.port);
            let end = outcome_text(decision.outcome);
            let name = if index == 0 { "endpoints" } else { "" };
            self.line(name, &format!("{target}: {end}, {}", decision.code))?;
        }
        Ok(())
    }

    fn ends(&mut self, explanation: &Explanation) -> std::io::Result<()> {
        for (name, workload) in [
            ("source", &explanation.source_workload),
            ("endpoint", &explanation.endpoint),
        ] {
            self.line(name, &identity(workload.as_ref()))?;
            if let Some(workload) = workload {
                self.line("", &format!("{} ({})", workload.resource, workload.place))?;
            }
        }
        self.line("service", explanation.service.as_deref().unwrap_or("none"))?;
        for (index, id) in explanation.accepted.iter().enumerate() {
            self.line(if index == 0 { "may answer" } else { "" }, id)?;
        }
        let several = explanation.accepted.len() > 1;
        if let Some(peer) = explanation.peer.as_ref().filter(|_| several) {
            self.line("dialled", peer.as_str())?;
        }
        if let Some(gateway) = &explanation.gateway {
            self.line("gateway", &gateway.to_string())?;
        }
        Ok(())
    }

    fn client(&mut self, explanation: &Explanation) -> std::io::Result<()> {
        self.line("client", client(explanation))?;
        if matches!(explanation.client, None | Some(Intent::NotInMesh)) {
            return Ok(());
        }
        self.line(
            "",
            &rule(
                explanation.client_rule.as_ref(),
                "no DestinationRule decides",
            ),
        )
    }

    fn server(&mut self, explanation: &Explanation) -> std::io::Result<()> {
        let Some(mode) = explanation.server_mode else {
            let text = match explanation.client {
                None => "not asked: within one host",
                Some(_) => "not in the mesh: takes plaintext",
            };
            return self.line("server", text);
        };
        self.line("server", &mode.to_string())?;
        let of = |step| explanation.considered.iter().any(|rule| rule.step == step);
        let none = match of(Step::ServerMode) {
            true => "no policy gives a mode",
            false => "no policy: `default_mode`",
        };
        self.line("", &rule(explanation.server_rule.as_ref(), none))?;
        self.line("authorized", &authorized(explanation))
    }

    /// The chain: step by step every rule, where it stands, and why it won or lost.
    fn considered(&mut self, chain: &[Considered]) -> std::io::Result<()> {
        let mut step = None;
        for rule in chain {
            if step != Some(rule.step) {
                let name = if step.is_none() { "considered" } else { "" };
                self.line(name, step_text(rule.step))?;
                step = Some(rule.step);
            }
            let word = if rule.won { "won" } else { "lost" };
            let text = wrap(&rule.rule.to_string(), DEEPER);
            writeln!(self.0, "{:INDENT$}{word:<6}{text}", "")?;
            writeln!(self.0, "{:DEEPER$}{}", "", wrap(&rule.why, DEEPER))?;
        }
        Ok(())
    }
}

fn authorized(explanation: &Explanation) -> String {
    let decisive = explanation.authorization.as_ref();
    match (explanation.code, explanation.code.outcome()) {
        (ReasonCode::DeniedByPolicy | ReasonCode::NoMatchingAllow, _) => {
            format!("no: {}", rule(decisive, "by policy"))
        }
        (_, Outcome::RefusedByClient | Outcome::RefusedByServer) => {
            "not asked: refused before".into()
        }
        (ReasonCode::ExemptPort, _) => "yes: the port is exempt".into(),
        (_, Outcome::Mtls | Outcome::Plaintext) => {
            format!("yes: {}", rule(decisive, "no AuthorizationPolicy decides"))
        }
    }
}

const fn step_text(step: Step) -> &'static str {
    match step {
        Step::ClientRule => "what the client must use:",
        Step::ServerMode => "what the server accepts:",
        Step::Authorization => "who may call:",
    }
}

fn target(address: std::net::IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    }
}

fn captured(explanation: &Explanation) -> &'static str {
    let here = explanation
        .source_workload
        .as_ref()
        .is_some_and(|source| source.is_local);
    match (explanation.captured, here) {
        (true, _) => "yes",
        (false, true) => "no",
        (false, false) => "no: the source is not on this host",
    }
}

fn client(explanation: &Explanation) -> &'static str {
    match explanation.client {
        None => "not asked: within one host",
        Some(Intent::Auto) => "AUTO: mutual TLS where the server takes it",
        Some(Intent::Disable) => "DISABLE: plaintext",
        Some(Intent::IstioMutual) => "ISTIO_MUTUAL",
        Some(Intent::NotInMesh) => "not in the mesh: sends plaintext",
        Some(Intent::Unset) => "UNSET: plaintext",
    }
}

pub(super) const fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Mtls => "mutual TLS in a tunnel",
        Outcome::Plaintext => "plaintext",
        Outcome::RefusedByClient => "refused by the client's host",
        Outcome::RefusedByServer => "refused by the server's host",
    }
}

fn identity(workload: Option<&WorkloadView>) -> String {
    let Some(workload) = workload else {
        return "not in the registry".into();
    };
    let identity = workload
        .identity
        .as_ref()
        .map_or_else(|| "no identity".into(), ToString::to_string);
    let place = if workload.is_local {
        ", on this host"
    } else {
        ""
    };
    format!("{identity}{place}")
}

fn rule(rule: Option<&RuleRef>, none: &str) -> String {
    rule.map_or_else(|| none.into(), ToString::to_string)
}

fn protocol_name(number: u8) -> &'static str {
    match number {
        protocol::TCP => "tcp",
        protocol::UDP => "udp",
        protocol::SCTP => "sctp",
        protocol::ICMP => "icmp",
        _ => "icmpv6",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Place, ResourceName};

    #[test]
    fn the_chain_names_each_rule_with_its_place_and_why_it_lost() {
        let rule = |step, name: &str, won, why: &str| Considered {
            step,
            rule: RuleRef {
                resource: ResourceName {
                    kind: "DestinationRule",
                    namespace: "shop".into(),
                    name: name.into(),
                },
                place: Place {
                    file: "policies.d/a.yaml".into(),
                    line: 3,
                    column: 9,
                },
            },
            won,
            why: why.into(),
        };
        let long =
            "another rule of the same namespace has a host that is more specific than this one";
        let chain = [
            rule(Step::ClientRule, "a", true, "the most specific host"),
            rule(Step::ClientRule, "b", false, long),
            rule(Step::ServerMode, "c", true, "it is the only one"),
        ];
        let mut out = Vec::new();
        Page(&mut out).considered(&chain).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "\
considered  what the client must use:
            won   DestinationRule shop/a (policies.d/a.yaml:3:9)
                  the most specific host
            lost  DestinationRule shop/b (policies.d/a.yaml:3:9)
                  another rule of the same namespace has a host that is more
                  specific than this one
            what the server accepts:
            won   DestinationRule shop/c (policies.d/a.yaml:3:9)
                  it is the only one
"
        );
    }
}
