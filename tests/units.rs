//! The unit files, by systemd's own judgement.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "this is a test")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// With `systemd-analyze`, on copies of the units that name this program; `None` where it is not installed.
fn analyze(arguments: &[&str]) -> Option<Output> {
    let folder = tempfile::tempdir().unwrap();
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/systemd");
    let mut copies = Vec::new();
    for unit in fs::read_dir(units).unwrap() {
        let unit = unit.unwrap();
        let text = fs::read_to_string(unit.path()).unwrap();
        let text = text.replace("/usr/local/bin/identun", env!("CARGO_BIN_EXE_identun"));
        let copy = folder.path().join(unit.file_name());
        fs::write(&copy, text).unwrap();
        copies.push(copy);
    }
    assert_eq!(copies.len(), 2);
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .args(copies)
        .output();
    match output {
        Ok(output) => Some(output),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "systemd-analyze: {error}");
            println!("DID NOT RUN: no systemd-analyze here: {error}");
            None
        }
    }
}

fn passes(output: &Output) {
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{text}");
}

#[test]
fn systemd_understands_every_line() {
    if let Some(output) = analyze(&["--man=no", "verify"]) {
        passes(&output);
        // it warns of what it does not know, and succeeds
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn the_exposure_is_at_most_2() {
    // tenths of a point, of ten
    if let Some(output) = analyze(&["--offline=true", "--threshold=20", "--no-pager", "security"]) {
        passes(&output);
    }
}
