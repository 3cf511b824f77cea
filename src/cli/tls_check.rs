//! `identun tls-check`: what each service's server accepts next to what its clients send.

use std::{io::Write, iter::repeat_n};

use serde_json::json;

use crate::{
    cli::{ConfigPath, Exit, Failure, Format, table::WIDTH},
    daemon::{clock::unix_now, configuration::Configuration, render::plural, status::API_VERSION},
    policy::{
        RuleRef,
        document::ClientMode,
        tls_check::{Row, Status, TlsCheck, means_host},
    },
};

/// istioctl's padding, and what is left of it on a narrow terminal.
const PADDING: [usize; 2] = [5, 2];
const HEADER: [&str; 6] = [
    "HOST:PORT",
    "STATUS",
    "SERVER",
    "CLIENT",
    "AUTHN POLICY",
    "DESTINATION RULE",
];

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun tls-check --config daemon.yaml
  identun tls-check web.shop:80 --namespace frontend
  identun tls-check -o json")]
pub(super) struct Arguments {
    /// One service: its host, web, web.shop, or with a port; the first match is shown
    service: Option<String>,
    /// The namespace of the clients, whose rules count
    #[arg(long, short, default_value = "default", value_name = "NAME")]
    namespace: String,
    #[command(flatten)]
    config: ConfigPath,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Exit code 1: at least one row is a conflict.
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let configuration = Configuration::load(&arguments.config.config, None, 1, unix_now())
        .map_err(Failure::from)?;
    let mut check = configuration
        .compiled
        .tls_check(&arguments.namespace.as_str().into());
    if let Some(service) = &arguments.service {
        keep_first(&mut check, service, &configuration.settings.domain)?;
    }
    match arguments.output {
        Format::Table => print(&check, arguments.service.is_none(), out)?,
        Format::Json => {
            let value = json!({"apiVersion": API_VERSION, "kind": "TlsCheck", "tlsCheck": check});
            writeln!(out, "{value:#}")?;
        }
    }
    let is_conflict = |row: &Row| row.status == Status::Conflict;
    Ok(match check.rows.iter().any(is_conflict) {
        true => Exit::No,
        false => Exit::Ok,
    })
}

/// Keeps the rows of the first host and port that `service` means.
fn keep_first(check: &mut TlsCheck, service: &str, domain: &str) -> Result<(), Failure> {
    let (name, port) = match service.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (service, None),
    };
    let mut rows = check.rows.iter();
    let first = rows.find(|row| {
        means_host(name, &row.host, domain) && port.is_none_or(|port| port == row.port.to_string())
    });
    let Some((host, port)) = first.map(|row| (row.host.clone(), row.port)) else {
        let message = format!(
            "clients of the namespace `{}` see no service of the mesh named `{service}`",
            check.namespace
        );
        let help = "`identun tls-check` without a name lists all; `--namespace` names the clients";
        return Err(Failure::new(Exit::No, message, help));
    };
    check
        .rows
        .retain(|row| row.host == host && row.port == port);
    Ok(())
}

fn print(check: &TlsCheck, with_notes: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let rows: Vec<_> = check.rows.iter().map(cells).collect();
    write!(out, "{}", columns(&rows))?;
    let mut notes = Vec::new();
    for (row, next) in check.rows.iter().zip(check.rows.iter().skip(1)) {
        if (&row.host, row.port) == (&next.host, next.port) {
            notes.push(several(&check.rows, row));
        }
    }
    notes.dedup();
    if check.external > 0 && with_notes {
        let count = plural(check.external, "external service");
        notes.push(format!("{count} left out: nothing is decided there"));
    }
    if !notes.is_empty() {
        writeln!(out)?;
    }
    notes
        .iter()
        .try_for_each(|note| writeln!(out, "note: {note}"))
}

/// Endpoints of one port that are guarded differently.
fn several(rows: &[Row], first: &Row) -> String {
    let mut note = format!("endpoints of {}:{} differ:", first.host, first.port);
    let same = |row: &&Row| (&row.host, row.port) == (&first.host, first.port);
    for row in rows.iter().filter(same) {
        let endpoints: Vec<_> = row.endpoints.iter().map(ToString::to_string).collect();
        note.push_str(&format!("\n  {} at {}", row.server, endpoints.join(", ")));
    }
    note
}

fn cells(row: &Row) -> [String; 6] {
    let status = match row.status {
        Status::Auto => "AUTO",
        Status::Conflict => "CONFLICT",
        Status::Ok => "OK",
    };
    let client = match row.client {
        None => "-",
        Some(ClientMode::Disable) => "DISABLE",
        Some(ClientMode::IstioMutual) => "ISTIO_MUTUAL",
    };
    [
        format!("{}:{}", row.host, row.port),
        status.into(),
        row.server.to_string(),
        client.into(),
        name(row.authn_policy.as_ref()),
        name(row.destination_rule.as_ref()),
    ]
}

/// `namespace/name`, `/default` for the MeshPolicy, `-` for none: as Istio 1.4 writes it.
fn name(rule: Option<&RuleRef>) -> String {
    rule.map_or_else(
        || "-".into(),
        |rule| format!("{}/{}", rule.resource.namespace, rule.resource.name),
    )
}

/// One line a row whatever its length, so that it can be searched and cut; istioctl's padding where 80 columns have it.
fn columns(rows: &[[String; 6]]) -> String {
    let header = HEADER.map(ToOwned::to_owned);
    let all: Vec<_> = std::iter::once(&header).chain(rows).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        let cells = all.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    });
    let [wide, narrow] = PADDING;
    let total = widths.iter().sum::<usize>() + wide * (widths.len() - 1);
    let padding = if total <= usize::from(WIDTH) {
        wide
    } else {
        narrow
    };
    let mut text = String::new();
    for row in all {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(repeat_n(' ', width + padding - cell.chars().count()));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_istioctl_s_padding_where_the_terminal_has_room() {
        let row = |host: &str| [host, "OK", "STRICT", "-", "a/b", "c/d"].map(ToOwned::to_owned);
        let text = columns(&[row("a:1")]);
        let wanted = "\
HOST:PORT     STATUS     SERVER     CLIENT     AUTHN POLICY     DESTINATION RULE
a:1           OK         STRICT     -          a/b              c/d
";
        assert_eq!(text, wanted);
        let text = columns(&[row("web.default.svc.cluster.local:80")]);
        assert!(
            text.ends_with("local:80  OK      STRICT  -       a/b           c/d\n"),
            "{text}"
        );
    }
}
