//! `identun explain`: what happens to a flow, decided from the files.

use std::{
    io::Write,
    net::{IpAddr, SocketAddr},
};

use clap::ValueEnum;
use serde_json::json;

use crate::{
    cli::{ConfigPath, Exit, Failure, Format, table::wrap},
    daemon::{clock::unix_now, configuration::Configuration, status::API_VERSION},
    policy::{
        Explanation, RuleRef,
        compiled::outcome::{Intent, Outcome},
        explain::WorkloadView,
    },
    wire::flow::protocol,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun explain 10.0.0.1 10.0.0.2:80
  identun explain fd00::1 '[fd00::2]:53' --protocol udp
  identun explain 10.0.0.1 10.0.0.2 --protocol icmp --config daemon.yaml")]
pub(super) struct Arguments {
    /// Source address
    source: IpAddr,
    /// Destination address, with its port where there is one: 10.0.0.2:80, `[fd00::2]:80`
    #[arg(value_parser = destination)]
    destination: Destination,
    /// Protocol of the packets; tcp where a port is given, else icmp
    #[arg(long, short, value_enum)]
    protocol: Option<Protocol>,
    #[command(flatten)]
    config: ConfigPath,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Destination {
    address: IpAddr,
    port: Option<u16>,
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
    let Destination { address, port } = arguments.destination;
    let usual = match port {
        Some(_) => Protocol::Tcp,
        None => Protocol::Icmp,
    };
    let protocol = arguments.protocol.unwrap_or(usual);
    if address.is_ipv6() != arguments.source.is_ipv6() {
        anyhow::bail!(
            "{} and {address} are of different address families",
            arguments.source
        );
    }
    if port.is_some() && protocol == Protocol::Icmp {
        anyhow::bail!("icmp has no ports; leave :{} out", port.unwrap_or_default());
    }
    let configuration = Configuration::load(&arguments.config.config, None, 1, unix_now())
        .map_err(Failure::from)?;
    let explanation = configuration.compiled.explain(
        arguments.source,
        address,
        protocol.number(address.is_ipv6()),
        port,
    );
    match arguments.output {
        Format::Table => print(&explanation, out)?,
        Format::Json => {
            let value = json!({"apiVersion": API_VERSION, "kind": "Explanation", "explanation": explanation});
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(match explanation.outcome {
        Outcome::Mtls | Outcome::Plaintext => Exit::Ok,
        Outcome::RefusedByClient | Outcome::RefusedByServer => Exit::No,
    })
}

fn print(explanation: &Explanation, out: &mut dyn Write) -> std::io::Result<()> {
    let Explanation {
        source,
        destination,
        protocol,
        port,
        ..
    } = explanation;
    let target = match port {
        Some(port) => SocketAddr::new(*destination, *port).to_string(),
        None => destination.to_string(),
    };
    let mut line =
        |name: &str, value: &str| writeln!(out, "{name:<INDENT$}{}", wrap(value, INDENT));
    line(
        "flow",
        &format!("{} {source} -> {target}", protocol_name(*protocol)),
    )?;
    line("outcome", outcome_text(explanation))?;
    line("because", &explanation.reason)?;
    line("captured", captured(explanation))?;
    line(
        "encrypted",
        if explanation.encrypted { "yes" } else { "no" },
    )?;
    for (name, workload) in [
        ("source", &explanation.source_workload),
        ("endpoint", &explanation.endpoint),
    ] {
        line(name, &identity(workload.as_ref()))?;
        if let Some(workload) = workload {
            line("", &format!("{} ({})", workload.resource, workload.place))?;
        }
    }
    line("service", explanation.service.as_deref().unwrap_or("none"))?;
    for (index, id) in explanation.accepted.iter().enumerate() {
        line(if index == 0 { "may answer" } else { "" }, id)?;
    }
    if let Some(peer) = explanation
        .peer
        .as_ref()
        .filter(|_| explanation.accepted.len() > 1)
    {
        line("dialled", peer.as_str())?;
    }
    if let Some(gateway) = &explanation.gateway {
        line("gateway", &gateway.to_string())?;
    }
    line("client", client(explanation))?;
    if explanation.client != Some(Intent::NotInMesh) {
        line(
            "",
            &rule(
                explanation.client_rule.as_ref(),
                "no DestinationRule decides",
            ),
        )?;
    }
    match explanation.server_mode {
        None => line("server", "not in the mesh: takes plaintext")?,
        Some(mode) => {
            line("server", &word(&mode))?;
            line(
                "",
                &rule(
                    explanation.server_rule.as_ref(),
                    "no MeshPolicy: `default_mode`",
                ),
            )?;
        }
    }
    if explanation.exempt {
        line("exempt", "this port accepts plaintext whatever policy says")?;
    }
    if let Some(reason) = explanation.drop_reason {
        line("counted as", reason.as_str())?;
    }
    Ok(())
}

/// Where the values begin, in columns.
const INDENT: usize = 12;

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

fn outcome_text(explanation: &Explanation) -> &'static str {
    match explanation.outcome {
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

/// The value's name in JSON: the words of the policy files.
fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
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

/// `10.0.0.2`, `10.0.0.2:80`, `fd00::2`, `[fd00::2]:80`.
fn destination(text: &str) -> Result<Destination, String> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(Destination {
            address,
            port: None,
        });
    }
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() != 0 => Ok(Destination {
            address: socket.ip(),
            port: Some(socket.port()),
        }),
        _ => Err("expected an address, or one with its port: 10.0.0.2:80 or [fd00::2]:80".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_addresses_with_or_without_port() {
        let parsed = |text: &str| {
            destination(text)
                .map(|d| (d.address.to_string(), d.port))
                .ok()
        };
        assert_eq!(parsed("10.0.0.2"), Some(("10.0.0.2".into(), None)));
        assert_eq!(parsed("10.0.0.2:80"), Some(("10.0.0.2".into(), Some(80))));
        assert_eq!(parsed("fd00::2"), Some(("fd00::2".into(), None)));
        assert_eq!(parsed("[fd00::2]"), Some(("fd00::2".into(), None)));
        assert_eq!(parsed("[fd00::2]:53"), Some(("fd00::2".into(), Some(53))));
        for bad in [
            "",
            "web",
            "10.0.0.2:",
            "10.0.0.2:0",
            "10.0.0.2:70000",
            "10.0.0.0/8",
        ] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }
}
