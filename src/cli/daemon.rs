//! `identun daemon`.

use anyhow::Context;

use crate::{
    cli::{ConfigPath, Exit, Failure},
    daemon::{log, run, start, start::StartError},
    host::handover::Handover,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun daemon --config /etc/identun/daemon.yaml
  identun daemon --config daemon.yaml --log info,access=debug")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigPath,
    /// Log levels that stand above the settings: `info,access=debug`
    #[arg(long, env = "IDENTUN_LOG", value_name = "FILTER")]
    log: Option<String>,
}

/// Threads of the control plane. The data plane has its own.
const WORKERS: usize = 2;

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<Exit> {
    let left = Handover::take();
    let path = &arguments.config.config;
    start::assume_user(path).map_err(failure)?;
    let configuration = start::load(path).map_err(failure)?;
    log::init(&configuration.settings.log, arguments.log.as_deref())
        .context("cannot start the log")?;
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the control plane")?;
    let successor = runtime.block_on(async {
        let started = start::start(path, configuration, left)
            .await
            .map_err(failure)?;
        run::run(started).await
    })?;
    // threads that wait for something are not waited for
    runtime.shutdown_background();
    match successor {
        Some(successor) => {
            let arguments: Vec<_> = std::env::args_os().skip(1).collect();
            Err(successor.go_on(&arguments))
        }
        None => Ok(Exit::Ok),
    }
}

/// What a failed start says, and with which exit code.
fn failure(error: StartError) -> anyhow::Error {
    match error {
        StartError::Configuration(rejected) => {
            let mut failure = Failure::from(rejected);
            failure
                .message
                .push_str("; nothing was changed on this host");
            failure.into()
        }
        StartError::Rights(right) => {
            let message = format!("missing right: {:#}", anyhow::Error::new(right));
            Failure::new(
                Exit::Permission,
                message,
                "run as root, or start it with `systemctl start identun`",
            )
            .into()
        }
        StartError::Failed(error) => error,
    }
}
