//! `identun explain`: what happens to a flow, decided from the files; and what a code or reason means.

mod names;
mod print;

use std::{io::Write, net::IpAddr};

use clap::ValueEnum;
use serde_json::json;

use self::names::{End, Spot, usage};
use crate::{
    cli::{ConfigPath, Exit, Failure, Format, table::wrap},
    daemon::{clock::unix_now, configuration::Configuration, status::API_VERSION},
    policy::{
        Compiled, Decision, Explanation, Question, Severity, compiled::outcome::Outcome,
        help::Topic,
    },
    wire::flow::protocol,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun explain 10.0.0.1 10.0.0.2:80
  identun explain default/client web.default:80 --config daemon.yaml
  identun explain IDT0551")]
pub(super) struct Arguments {
    /// Source: address, workload (namespace/name), service; or one code or reason alone
    source: String,
    /// Destination likewise, with its port where there is one: 10.0.0.2:80, `[fd00::2]:80`, web:http
    destination: Option<String>,
    /// Protocol of the packets; tcp where a port is given, else icmp
    #[arg(long, short, value_enum)]
    protocol: Option<Protocol>,
    #[command(flatten)]
    config: ConfigPath,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
    Icmp,
}

impl Protocol {
    const fn number(self, ipv6: bool) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
            Self::Icmp if ipv6 => protocol::ICMPV6,
            Self::Icmp => protocol::ICMP,
        }
    }
}

/// Exit code 1: the flow is refused.
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let Some(destination) = &arguments.destination else {
        return explain_topic(&arguments.source, arguments.output, out);
    };
    let source = end(&arguments.source, "source")?;
    let destination = end(destination, "destination")?;
    if source.port.is_some() {
        let help = "only the destination has a port: the source's is any";
        return Err(usage(
            format!("the source `{}` has a port", arguments.source),
            help,
        )
        .into());
    }
    let configuration = Configuration::load(&arguments.config.config, None, 1, unix_now())
        .map_err(Failure::from)?;
    let compiled = &configuration.compiled;
    let domain = &configuration.settings.domain;
    let sources = source.spots(compiled.registry(), domain)?;
    let destinations = destination.spots(compiled.registry(), domain)?;
    let (source, destinations) = choose(arguments, &sources, &destinations)?;
    let mut questions = Vec::new();
    for spot in destinations {
        questions.push(arguments.question(source, spot)?);
    }
    answer(arguments, compiled, &questions, out)
}

impl Arguments {
    fn question(&self, source: IpAddr, Spot { address, port }: Spot) -> Result<Question, Failure> {
        let usual = match port {
            Some(_) => Protocol::Tcp,
            None => Protocol::Icmp,
        };
        let protocol = self.protocol.unwrap_or(usual);
        if let Some(port) = port.filter(|_| protocol == Protocol::Icmp) {
            let help = "choose another protocol, or leave the port out";
            return Err(usage(
                format!("icmp has no ports, but {port} is given"),
                help,
            ));
        }
        Ok(Question {
            source,
            destination: address,
            protocol: protocol.number(address.is_ipv6()),
            port,
        })
    }
}

fn end(text: &str, what: &str) -> Result<End, Failure> {
    End::parse(text).map_err(|expected| {
        usage(
            format!("`{text}` is no {what}: {expected}"),
            "for example 10.0.0.2:80, [fd00::2]:80, default/web or web.default:http",
        )
    })
}

/// One source, and every destination of its address family; IPv4 where names have both.
fn choose(
    arguments: &Arguments,
    sources: &[Spot],
    destinations: &[Spot],
) -> Result<(IpAddr, Vec<Spot>), Failure> {
    let of = |spots: &[Spot], ipv6: bool| -> Vec<Spot> {
        let family = spots.iter().filter(|spot| spot.address.is_ipv6() == ipv6);
        family.copied().collect()
    };
    for ipv6 in [false, true] {
        let destinations = of(destinations, ipv6);
        if destinations.is_empty() {
            continue;
        }
        match &of(sources, ipv6)[..] {
            [] => {}
            [only] => return Ok((only.address, destinations)),
            several => {
                let addresses: Vec<_> = several
                    .iter()
                    .map(|spot| spot.address.to_string())
                    .collect();
                let message = format!(
                    "the source `{}` has several addresses: {}",
                    arguments.source,
                    addresses.join(", ")
                );
                return Err(usage(message, "write the one that is meant"));
            }
        }
    }
    let destination = arguments.destination.as_deref().unwrap_or_default();
    let message = format!(
        "`{}` and `{destination}` are of different address families",
        arguments.source
    );
    Err(usage(
        message,
        "a packet has either IPv4 or IPv6 addresses at both ends",
    ))
}

/// Explains the first question, and tells how those of further endpoints end.
fn answer(
    arguments: &Arguments,
    compiled: &Compiled,
    questions: &[Question],
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let Some((first, others)) = questions.split_first() else {
        return Ok(Exit::Ok);
    };
    let explanation = compiled.explain(first.source, first.destination, first.protocol, first.port);
    let others: Vec<_> = others
        .iter()
        .map(|question| (*question, compiled.decide(question)))
        .collect();
    match arguments.output {
        Format::Table => print::print(&explanation, &others, out)?,
        Format::Json => print_json(arguments, &explanation, &others, out)?,
    }
    let mut outcomes = others.iter().map(|(_, decision)| decision.outcome);
    let refused = is_refused(explanation.outcome) || outcomes.any(is_refused);
    Ok(if refused { Exit::No } else { Exit::Ok })
}

const fn is_refused(outcome: Outcome) -> bool {
    match outcome {
        Outcome::Mtls | Outcome::Plaintext => false,
        Outcome::RefusedByClient | Outcome::RefusedByServer => true,
    }
}

fn print_json(
    arguments: &Arguments,
    explanation: &Explanation,
    others: &[(Question, Decision)],
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let others: Vec<_> = others
        .iter()
        .map(|(question, decision)| {
            json!({
                "destination": question.destination,
                "port": question.port,
                "outcome": decision.outcome,
                "code": decision.code,
            })
        })
        .collect();
    let value = json!({
        "apiVersion": API_VERSION,
        "kind": "Explanation",
        "asked": {"source": arguments.source, "destination": arguments.destination},
        "explanation": explanation,
        "others": others,
    });
    writeln!(out, "{value:#}")?;
    Ok(())
}

fn explain_topic(name: &str, format: Format, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let Some(topic) = Topic::find(name) else {
        let message = format!("`{name}` is no code and no reason, and a flow has two ends");
        let help =
            "identun explain SOURCE DESTINATION[:PORT]; `identun analyze -L` lists the codes";
        return Err(usage(message, help).into());
    };
    let (head, summary, severity) = match topic {
        Topic::Code(code) => {
            let head = format!("{}[{}]", severity_word(code.severity), code.id);
            (head, Some(code.meaning), Some(code.severity))
        }
        Topic::Reason(Some(reason), _) => {
            let head = format!("{reason} ({})", print::outcome_text(reason.outcome()));
            (head, Some(reason.text()), None)
        }
        Topic::Reason(None, _) => (
            format!("{} (packets are dropped)", topic.name()),
            None,
            None,
        ),
    };
    match format {
        Format::Table => {
            match summary {
                Some(summary) => writeln!(out, "{}", wrap(&format!("{head}: {summary}"), 0))?,
                None => writeln!(out, "{head}")?,
            }
            writeln!(out, "\n{}", topic.page())?;
        }
        Format::Json => {
            let value = json!({
                "apiVersion": API_VERSION,
                "kind": "HelpPage",
                "name": topic.name(),
                "severity": severity,
                "summary": summary,
                "page": topic.page(),
            });
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(Exit::Ok)
}

const fn severity_word(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    }
}
