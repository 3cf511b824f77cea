//! `identun reload`.

use std::io::Write;

use crate::cli::{
    Context, Exit,
    client::{Client, block_on},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun check --config /etc/identun/daemon.yaml && identun reload
  identun reload --socket /run/identun/admin.sock")]
pub(super) struct Arguments {}

#[derive(serde::Deserialize)]
struct Reloaded {
    generation: u64,
    kept: Vec<String>,
}

pub(super) fn run(context: &Context, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let reloaded: Reloaded =
        block_on(async { Client::new(&context.socket).post("/v1/reload").await })?;
    writeln!(out, "configuration {} is in force", reloaded.generation)?;
    if !reloaded.kept.is_empty() {
        writeln!(
            out,
            "changed settings wait for a restart: {}",
            reloaded.kept.join(", ")
        )?;
    }
    Ok(Exit::Ok)
}
