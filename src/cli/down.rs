//! `identun down`: stops the daemon where one runs, and removes everything that identun added to this host.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use serde_json::Value;
use tokio::time::sleep;

use crate::{
    cli::{Exit, Failure, client::Client, client::block_on},
    daemon::{
        configuration::load_settings,
        settings::{DEFAULT_CONFIG, Settings},
        start::remove_all,
    },
    host::rights,
    store::{InstanceLock, LockError},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun down
  identun down --config daemon.yaml     names and numbers from its settings")]
pub(super) struct Arguments {
    /// The daemon's configuration: names of what is to be removed
    #[arg(long, short, env = "IDENTUN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How long a daemon may take to stop, in steps of [`STEP`].
const STEPS: u32 = 150;
const STEP: Duration = Duration::from_millis(100);

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let settings = settings(arguments.config.as_deref())?;
    rights::check().map_err(|right| {
        let message = format!("missing right: {:#}", anyhow::Error::new(right));
        Failure::new(Exit::Permission, message, "run it as root")
    })?;
    let host = settings.host(rustix::process::geteuid().as_raw());
    let mut removed = Vec::new();
    let result = block_on(async {
        let _lock = stop(&settings).await?;
        remove_all(&host, &mut removed).await
    });
    for thing in &removed {
        writeln!(out, "removed {thing}")?;
    }
    result?;
    if removed.is_empty() {
        writeln!(out, "nothing to remove")?;
    }
    Ok(Exit::Ok)
}

/// The file that was named, else the usual one where it exists, else the defaults.
fn settings(config: Option<&Path>) -> anyhow::Result<Settings> {
    let path = config.unwrap_or_else(|| Path::new(DEFAULT_CONFIG));
    if config.is_none() && !path.exists() {
        return Ok(Settings::default());
    }
    Ok(load_settings(path).map_err(Failure::from)?)
}

/// Ends a running daemon, and holds its lock so that none starts while its things are removed.
async fn stop(settings: &Settings) -> anyhow::Result<Option<InstanceLock>> {
    if !settings.state_dir.exists() {
        return Ok(None);
    }
    let mut asked = false;
    for _ in 0..STEPS {
        match InstanceLock::acquire(&settings.state_dir) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::Held { .. }) if !asked => {
                asked = true;
                let client = Client::new(&settings.admin_socket);
                client
                    .post::<Value>("/v1/stop")
                    .await
                    .context("a daemon runs and cannot be asked to stop")?;
            }
            Err(LockError::Held { .. }) => sleep(STEP).await,
            Err(error) => return Err(error.into()),
        }
    }
    let message = "the daemon does not stop; nothing was removed";
    Err(Failure::new(Exit::Timeout, message, "systemctl kill identun, then again").into())
}
