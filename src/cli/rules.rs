//! `identun rules`: what is installed in the kernel, in the words of nft and ip, as a script that would do the same.

use std::io::Write;

use crate::{
    cli::{ConfigPath, Exit, Failure},
    daemon::{clock::unix_now, configuration::Configuration, user},
    host::{guard::Guard, routes},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun rules --print                        of the usual configuration
  identun rules --print --config daemon.yaml   needs no root and no daemon")]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigPath,
    /// Print a shell script; nothing is changed on this host
    #[arg(long, required = true)]
    print: bool,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let path = &arguments.config.config;
    let configuration = Configuration::load(path, None, 1, unix_now()).map_err(Failure::from)?;
    let guard = guard(&configuration)?;
    let settings = &configuration.settings;
    let host = settings.host(user::uid(settings)?);
    writeln!(out, "#!/bin/sh -e")?;
    writeln!(out, "nft -f - <<'END'\n{}END", guard.ruleset())?;
    for line in routes::commands(&host) {
        writeln!(out, "{line}")?;
    }
    Ok(Exit::Ok)
}

/// What the files say, as the kernel's rules.
pub(super) fn guard(configuration: &Configuration) -> anyhow::Result<Guard> {
    let settings = &configuration.settings;
    let host = settings.host(user::uid(settings)?);
    let steering = configuration.compiled.steering();
    Ok(Guard::new(&host, settings.own_nft_table, steering)?)
}
