//! `identun demo`: the story of `make demo`, from the program alone. It carries the scripts that play it.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::{Exit, Failure, client::block_on};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun demo                as root, or as who may make user namespaces
  identun demo > story.txt    the same without colours

It makes hosts in network namespaces of its own and leaves nothing behind.
A hostile server joins where `examples/hostile-server` is beside the program.")]
pub(super) struct Arguments {}

/// The scripts, under the names by which they call each other.
const SCRIPTS: [(&str, &str); 3] = [
    ("demo.sh", include_str!("../../netns/demo.sh")),
    ("topology.sh", include_str!("../../netns/topology.sh")),
    ("wire.py", include_str!("../../netns/wire.py")),
];
/// Exit code of the scripts: namespaces cannot be made.
const MISSING_RIGHT: i32 = 4;

/// Exit code 1: a claim of the demo is false, or it could not run; 4: namespaces cannot be made.
pub(super) fn run(_: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let own = env::current_exe().context("cannot find the running program")?;
    let folder = tempfile::Builder::new()
        .prefix("identun-demo-")
        .permissions(fs::Permissions::from_mode(0o700))
        .tempdir()
        .context("cannot make a private folder")?;
    unpack(folder.path(), &own).context("cannot unpack the demo")?;
    out.flush()?;
    let mut demo = Command::new("bash");
    demo.arg(folder.path().join("demo.sh")).arg(folder.path());
    let status = block_on(async {
        // Ctrl-C ends the demo, which is in our process group; this program stays to remove the folder.
        let _interrupt = signal(SignalKind::interrupt())?;
        demo.status().context("cannot run bash")
    })?;
    match status.code() {
        Some(0) => Ok(Exit::Ok),
        Some(MISSING_RIGHT) => Err(Failure::new(
            Exit::Permission,
            "missing right: to make network namespaces",
            "sudo identun demo",
        )
        .into()),
        _ => Ok(Exit::No),
    }
}

/// Writes the scripts to `folder`, and links the program and the demo's other actor beside them.
fn unpack(folder: &Path, own: &Path) -> std::io::Result<()> {
    for (name, text) in SCRIPTS {
        fs::write(folder.join(name), text)?;
    }
    symlink(own, folder.join("identun"))?;
    let examples = own.with_file_name(OsStr::new("examples"));
    if examples.is_dir() {
        symlink(examples, folder.join("examples"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scripts_lie_beside_the_program_under_the_names_they_use() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("program");
        fs::write(&own, "x").unwrap();
        let unpacked = tempfile::tempdir().unwrap();
        unpack(unpacked.path(), &own).unwrap();
        assert_eq!(
            fs::read_to_string(unpacked.path().join("identun")).unwrap(),
            "x"
        );
        assert!(!unpacked.path().join("examples").exists());
        let demo = fs::read_to_string(unpacked.path().join("demo.sh")).unwrap();
        for (name, _) in SCRIPTS {
            assert!(unpacked.path().join(name).is_file());
            assert!(demo.contains(&format!("$here/{name}")), "{name}");
        }
    }
}
