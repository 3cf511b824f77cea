//! `identun guard`: before the daemon runs, what its last run left behind to hold plaintext back.

use std::{io, io::Write, path::Path};

use anyhow::Context;

use crate::{
    cli::{ConfigPath, Exit, Failure, client::block_on},
    daemon::{
        clock::unix_now,
        configuration::{Configuration, load_settings},
        kept::GUARD,
        settings::Settings,
        user,
    },
    host::{guard::Guard, rights},
    store::{self, FileError, InstanceLock, LockError},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun guard                           as identun-guard.service does
  identun guard --config daemon.yaml      of the daemon with these settings")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigPath,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    rights::check_rules().map_err(|right| {
        let message = format!("missing right: {:#}", anyhow::Error::new(right));
        Failure::new(Exit::Permission, message, "run it as root")
    })?;
    let path = &arguments.config.config;
    // At a boot, files that do not load are no reason to let plaintext out.
    let settings = match load_settings(path) {
        Ok(settings) => settings,
        Err(rejected) => {
            writeln!(out, "{rejected}; the usual state folder is taken")?;
            Settings::default()
        }
    };
    user::assume(&settings)?;
    store::private_dir(&settings.state_dir).context("cannot use the state folder")?;
    let _lock = match InstanceLock::acquire(&settings.state_dir) {
        Ok(lock) => lock,
        Err(LockError::Held { .. }) => {
            writeln!(out, "a daemon runs and holds plaintext back itself")?;
            return Ok(Exit::Ok);
        }
        Err(error) => return Err(error.into()),
    };
    let guard = match kept(&settings.state_dir, out)? {
        Some(guard) => guard,
        None => from_files(path)?,
    };
    let done = block_on(async { Ok(guard.install().await?) })
        .context("cannot install the guard: plaintext is not held back")?;
    if done.stood {
        writeln!(out, "the table of an earlier run stands and stays")?;
    }
    for thing in &done.added {
        writeln!(out, "added {thing}")?;
    }
    writeln!(out, "plaintext is held back until the daemon runs")?;
    Ok(Exit::Ok)
}

/// What the last daemon left behind; `None` where none ever ran, or of another version.
fn kept(state_dir: &Path, out: &mut dyn Write) -> anyhow::Result<Option<Guard>> {
    let path = state_dir.join(GUARD);
    let text = match store::read_state(&path) {
        Ok(text) => text,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            writeln!(
                out,
                "no daemon ran here yet; the files as they are now are taken"
            )?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    match Guard::parse(&text) {
        Ok(guard) => Ok(Some(guard)),
        Err(error) => {
            let path = path.display();
            writeln!(out, "{path}: {error}; the files as they are now are taken")?;
            Ok(None)
        }
    }
}

fn from_files(path: &Path) -> anyhow::Result<Guard> {
    let configuration = Configuration::load(path, None, 1, unix_now()).map_err(|rejected| {
        let mut failure = Failure::from(rejected);
        failure.message.push_str("; plaintext is not held back");
        failure
    })?;
    super::rules::guard(&configuration)
}
