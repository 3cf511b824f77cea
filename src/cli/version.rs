//! `identun version`.

use std::io::Write;

use serde_json::json;

use crate::{
    cli::{Exit, Format},
    daemon::status::API_VERSION,
    identity::tls::ALPN,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  identun version\n  identun version -o json")]
pub(super) struct Arguments {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let version = env!("CARGO_PKG_VERSION");
    let protocol = String::from_utf8_lossy(ALPN);
    match arguments.output {
        Format::Table => writeln!(out, "identun {version} (protocol {protocol})")?,
        Format::Json => {
            let value = json!({
                "apiVersion": API_VERSION, "kind": "Version", "version": version, "protocol": protocol,
            });
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(Exit::Ok)
}
