//! `identun upgrade`: the running daemon becomes the program that was installed in its place.

use std::{io::Write, time::Duration};

use serde_json::Value;
use tokio::time::sleep;

use crate::cli::{
    Context, Exit, Failure,
    client::{Client, block_on},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun upgrade         after a new program took the old one's place
  identun upgrade --socket /run/identun/admin.sock")]
pub(super) struct Arguments {}

/// How long the new program may take until it answers, in steps of [`STEP`].
const STEPS: u32 = 1_000;
const STEP: Duration = Duration::from_millis(20);

#[derive(serde::Deserialize)]
struct Accepted {
    version: String,
}

/// What tells one run of a daemon from the next: its number of the process stays.
#[derive(serde::Deserialize)]
struct Run {
    version: String,
    run: String,
}

pub(super) fn run(context: &Context, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let client = Client::new(&context.socket);
    let (before, after) = block_on(async {
        let before: Run = client.get("/v1/status").await?;
        let accepted: Accepted = client.post("/v1/upgrade").await?;
        for _ in 0..STEPS {
            // between two programs nobody answers
            if let Ok(after) = client.get::<Run>("/v1/status").await
                && after.run != before.run
            {
                return Ok((before, after));
            }
            sleep(STEP).await;
        }
        let message = format!("{} does not answer", accepted.version);
        Err(Failure::new(Exit::Timeout, message, "journalctl -u identun").into())
    })?;
    writeln!(out, "was {}, is {}", before.version, after.version)?;
    let status: Value = block_on(async { client.get("/v1/status").await })?;
    match status.get("healthy").and_then(Value::as_bool) {
        Some(true) => Ok(Exit::Ok),
        _ => {
            writeln!(out, "it is not healthy: identun status")?;
            Ok(Exit::No)
        }
    }
}
