//! `identun demo`: the story of `make demo`, from a source tree.

use std::{io::Write, path::PathBuf, process::Command};

use anyhow::Context;

use crate::cli::{Exit, Failure};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun demo                      in the source tree
  identun demo --source ~/identun")]
pub(super) struct Arguments {
    /// The source tree: the demo's other actors (an impostor, a hostile server) are built from it
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
}

/// Exit code 1: a claim of the demo is false, or it could not run.
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    if !arguments.source.join("netns/demo.sh").is_file() {
        let message = format!(
            "{} is not identun's source tree",
            arguments.source.display()
        );
        return Err(Failure::new(
            Exit::No,
            message,
            "identun demo --source DIR, or `make demo` there",
        )
        .into());
    }
    out.flush()?;
    let mut make = Command::new("make");
    let status = make
        .arg("-C")
        .arg(&arguments.source)
        .arg("demo")
        .status()
        .context("cannot run make")?;
    Ok(if status.success() { Exit::Ok } else { Exit::No })
}
