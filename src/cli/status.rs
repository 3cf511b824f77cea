//! `identun status`: health first, then tunnels, flows, identities, drops by reason, steering counters, exempt ports.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::time::sleep;

use crate::{
    cli::{
        Context, Exit, Failure, Format,
        client::{Client, block_on},
        table::{age, bytes, table, wrap},
    },
    daemon::status::{FlowStatus, IdentityStatus, Status, TunnelStatus},
    spiffe::SpiffeId,
};

#[derive(Debug, Default, clap::Args)]
#[command(after_help = "\
Examples:
  identun status
  identun status --wait --timeout 30          until the daemon is healthy
  identun status -o json | jq .drops")]
pub(super) struct Arguments {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    /// Wait until the daemon is reachable and healthy
    #[arg(long)]
    wait: bool,
    /// How many seconds to wait
    #[arg(long, default_value_t = 60, requires = "wait")]
    timeout: u64,
}

/// Flows shown in the table; JSON has more.
const FLOWS: usize = 10;
/// How often a waiting command asks.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Exit code 1: unhealthy.
pub(super) fn run(
    arguments: &Arguments,
    context: &Context,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let client = Client::new(&context.socket);
    // JSON passes through as it came: a newer daemon may know more fields than this program.
    let answer: Value = block_on(async {
        match arguments.wait {
            true => wait(&client, Duration::from_secs(arguments.timeout)).await,
            false => client.get("/v1/status").await,
        }
    })?;
    let healthy = is_healthy(&answer);
    match arguments.output {
        Format::Json => writeln!(out, "{answer:#}")?,
        Format::Table => print(&serde_json::from_value(answer)?, out)?,
    }
    Ok(if healthy { Exit::Ok } else { Exit::No })
}

fn is_healthy(answer: &Value) -> bool {
    answer
        .get("healthy")
        .and_then(Value::as_bool)
        .unwrap_or(false)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a command that waits must know the time"
)]
async fn wait(client: &Client, patience: Duration) -> anyhow::Result<Value> {
    let begin = Instant::now();
    loop {
        let answer = client.get("/v1/status").await;
        if answer.as_ref().is_ok_and(is_healthy) {
            return answer;
        }
        if begin.elapsed() >= patience {
            let state = match answer {
                Ok(_) => "it is not healthy".into(),
                Err(error) => format!("{error:#}"),
            };
            let message = format!(
                "the daemon is not ready after {}: {state}",
                age(patience.as_secs())
            );
            return Err(Failure::new(Exit::Timeout, message, "identun status").into());
        }
        sleep(ASK_EVERY).await;
    }
}

fn print(status: &Status, out: &mut dyn Write) -> anyhow::Result<()> {
    for line in &status.health {
        let text = wrap(&line.text, "# WARN: ".len());
        writeln!(out, "# {}: {text}", line.level.mark())?;
    }
    let word = if status.healthy {
        "healthy"
    } else {
        "unhealthy"
    };
    writeln!(
        out,
        "identun {} is {word}, up {}, configuration {} of {}",
        status.version,
        age(status.uptime_seconds),
        status.generation,
        status.config
    )?;
    if let Some(error) = &status.config_error {
        writeln!(out, "\n{}", error.trim_end())?;
    }
    section(
        out,
        "TUNNELS",
        &[
            "LOCAL", "PEER", "GATEWAY", "STATE", "AGE", "SENT", "RECEIVED",
        ],
        tunnel_rows(&status.tunnels),
    )?;
    section(
        out,
        &flows_title(status),
        &["PROTO", "LOCAL", "REMOTE", "OPENER", "SENT", "RECEIVED"],
        flow_rows(&status.flows),
    )?;
    section(
        out,
        "IDENTITIES",
        &["ID", "EXPIRES IN"],
        identity_rows(&status.identities),
    )?;
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| vec![name.clone(), count.to_string()])
            .collect()
    };
    section(out, "DROPS", &["REASON", "PACKETS"], counts(&status.drops))?;
    section(
        out,
        "STOPPED BY THE KERNEL'S RULES",
        &["COUNTER", "PACKETS"],
        counts(&status.steering),
    )?;
    let packets = &status.packets;
    writeln!(
        out,
        "\nPACKETS: egress {} ({}), ingress {} ({})",
        packets.egress_packets,
        bytes(packets.egress_bytes),
        packets.ingress_packets,
        bytes(packets.ingress_bytes)
    )?;
    if status.shards.len() > 1 {
        let flows: Vec<_> = status
            .shards
            .iter()
            .map(|shard| shard.flows.to_string())
            .collect();
        writeln!(
            out,
            "\nSHARDS: {}, with {} flows",
            status.shards.len(),
            flows.join(" + ")
        )?;
    }
    match status.exempt.is_empty() {
        true => writeln!(out, "\nEXEMPT: none")?,
        false => writeln!(
            out,
            "\nEXEMPT: {} (plaintext whatever policy says)",
            status.exempt.join(", ")
        )?,
    }
    Ok(())
}

/// How many there are, where not all are shown.
fn flows_title(status: &Status) -> String {
    if status.flow_count > FLOWS {
        format!("FLOWS ({FLOWS} of {})", status.flow_count)
    } else {
        "FLOWS".into()
    }
}

/// A headed table, or one word where there is nothing.
fn section(
    out: &mut dyn Write,
    title: &str,
    header: &[&str],
    rows: Vec<Vec<String>>,
) -> anyhow::Result<()> {
    match rows.is_empty() {
        true => writeln!(out, "\n{title}: none")?,
        false => writeln!(out, "\n{title}\n{}", table(header, rows))?,
    }
    Ok(())
}

fn tunnel_rows(tunnels: &[TunnelStatus]) -> Vec<Vec<String>> {
    tunnels
        .iter()
        .map(|tunnel| {
            vec![
                short(&tunnel.local),
                short(&tunnel.peer),
                tunnel.gateway.to_string(),
                tunnel.state.clone(),
                tunnel.up_seconds.map_or_else(|| "-".into(), age),
                bytes(tunnel.bytes_sent),
                bytes(tunnel.bytes_received),
            ]
        })
        .collect()
}

fn flow_rows(flows: &[FlowStatus]) -> Vec<Vec<String>> {
    flows
        .iter()
        .take(FLOWS)
        .map(|flow| {
            vec![
                flow.protocol.clone(),
                flow.local.clone(),
                flow.remote.clone(),
                flow.opener.clone(),
                bytes(flow.bytes_sent),
                bytes(flow.bytes_received),
            ]
        })
        .collect()
}

fn identity_rows(identities: &[IdentityStatus]) -> Vec<Vec<String>> {
    identities
        .iter()
        .map(|identity| {
            let left = match u64::try_from(identity.expires_in_seconds) {
                Ok(seconds) => age(seconds),
                Err(_) => format!(
                    "expired {} ago",
                    age(identity.expires_in_seconds.unsigned_abs())
                ),
            };
            vec![identity.id.to_string(), left]
        })
        .collect()
}

/// `namespace/account` where the identity has that form.
fn short(id: &SpiffeId) -> String {
    match id.service_account() {
        Some((namespace, account)) => format!("{namespace}/{account}"),
        None => id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::status::{Health, HealthLevel, PacketStatus};

    fn id(name: &str) -> SpiffeId {
        format!("spiffe://cluster.local/ns/default/sa/{name}")
            .parse()
            .unwrap()
    }

    fn status() -> Status {
        Status {
            api_version: "identun.io/v1".into(),
            kind: "Status".into(),
            healthy: true,
            health: vec![Health {
                level: HealthLevel::Info,
                text: "no policy: plaintext is accepted".into(),
            }],
            version: "0.1.0".into(),
            pid: 7,
            run: "1".into(),
            uptime_seconds: 133,
            config: "/etc/identun/daemon.yaml".into(),
            generation: 2,
            config_valid: true,
            config_error: None,
            identities: vec![IdentityStatus {
                id: id("client"),
                certificate: "client.pem".into(),
                not_after: 0,
                expires_in_seconds: 90_000,
                issuer: String::new(),
                serial: String::new(),
            }],
            tunnels: vec![TunnelStatus {
                local: id("client"),
                peer: id("server"),
                gateway: "192.0.2.2:15008".parse().unwrap(),
                lane: 0,
                remote: None,
                state: "up".into(),
                dialled: Some(true),
                up_seconds: Some(61),
                cipher: None,
                group: None,
                rtt_us: None,
                inner_mtu: None,
                bytes_sent: 2_048,
                bytes_received: 3 << 20,
                packets_sent: 0,
                packets_received: 0,
                handshakes: 1,
                last_error: None,
                peer_not_after: None,
            }],
            flow_count: 1,
            flows: vec![FlowStatus {
                protocol: "tcp".into(),
                local: "192.0.2.1:40000".into(),
                remote: "192.0.2.2:80".into(),
                opener: "local".into(),
                tunnel: String::new(),
                bytes_sent: 100,
                bytes_received: 3 << 20,
                rule: None,
                accepted: Vec::new(),
            }],
            drops: [("foreign_source".into(), 3)].into(),
            steering: [("guard".into(), 0)].into(),
            exempt: vec!["tcp/22".into()],
            packets: PacketStatus {
                egress_packets: 5,
                egress_bytes: 2_048,
                ingress_packets: 9,
                ingress_bytes: 1,
            },
            pending_bytes: 0,
            books: Default::default(),
            shards: Vec::new(),
        }
    }

    fn printed(status: &Status) -> String {
        let mut out = Vec::new();
        print(status, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn status_reads_as_agreed() {
        let wanted = "\
# INFO: no policy: plaintext is accepted
identun 0.1.0 is healthy, up 2m13s, configuration 2 of /etc/identun/daemon.yaml

TUNNELS
LOCAL           PEER            GATEWAY          STATE  AGE   SENT     RECEIVED
default/client  default/server  192.0.2.2:15008  up     1m1s  2.0 KiB  3.0 MiB

FLOWS
PROTO  LOCAL            REMOTE        OPENER  SENT   RECEIVED
tcp    192.0.2.1:40000  192.0.2.2:80  local   100 B  3.0 MiB

IDENTITIES
ID                                           EXPIRES IN
spiffe://cluster.local/ns/default/sa/client  1d1h

DROPS
REASON          PACKETS
foreign_source  3

STOPPED BY THE KERNEL'S RULES: none

PACKETS: egress 5 (2.0 KiB), ingress 9 (1 B)

EXEMPT: tcp/22 (plaintext whatever policy says)
";
        assert_eq!(printed(&status()), wanted);
    }

    #[test]
    fn long_health_is_wrapped_and_hidden_flows_are_counted() {
        let mut status = status();
        status.health[0].text = ["because"; 30].join(" ");
        status.flow_count = 1_234;
        let text = printed(&status);
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        assert!(text.contains("\n        because"), "{text}");
        assert!(text.contains("\nFLOWS (10 of 1234)\n"), "{text}");
    }

    #[test]
    fn tables_keep_to_80_columns() {
        let mut status = status();
        status.flows[0].local = "[2001:db8:1111:2222:3333:4444:5555:6666]:40000".into();
        status.flows[0].remote = "[2001:db8:1111:2222:3333:4444:5555:7777]:40000".into();
        status.tunnels[0].gateway = "[2001:db8:1111:2222:3333:4444:5555:7777]:15008"
            .parse()
            .unwrap();
        status.tunnels[0].local = id(&"x".repeat(80));
        let text = printed(&status);
        assert!(
            text.lines().all(|line| line.chars().count() <= 80),
            "{text}"
        );
    }

    #[test]
    fn errors_come_before_everything() {
        let mut status = status();
        status.healthy = false;
        status.config_error = Some("error[IDT0203]: unknown mode\n".into());
        status.health.insert(
            0,
            Health {
                level: HealthLevel::Error,
                text: "the last reload was refused".into(),
            },
        );
        status.flows.clear();
        status.flow_count = 0;
        let text = printed(&status);
        assert!(
            text.starts_with("# FAIL: the last reload was refused\n"),
            "{text}"
        );
        assert!(
            text.contains("is unhealthy") && text.contains("\nerror[IDT0203]: unknown mode\n"),
            "{text}"
        );
        assert!(text.contains("\nFLOWS: none\n"), "{text}");
        status.exempt.clear();
        assert!(printed(&status).ends_with("\nEXEMPT: none\n"));
    }

    #[test]
    fn a_status_survives_json() {
        let text = serde_json::to_string(&status()).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status());
    }
}
