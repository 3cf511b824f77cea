//! docs/policy.md tells the truth: its files are written, its commands typed, their outputs compared, and its table of
//! codes is the one of the program. `IDENTUN_UPDATE_DOCS=1 cargo test --test docs` writes what the program says.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use identun::policy::ReasonCode;

#[test]
fn the_commands_of_the_policy_guide_print_what_it_shows() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/policy.md");
    let text = fs::read_to_string(&path).unwrap();
    let told = retold(&text);
    if std::env::var_os("IDENTUN_UPDATE_DOCS").is_some() {
        fs::write(&path, &told).unwrap();
        return;
    }
    for (shown, real) in text.lines().zip(told.lines()) {
        assert_eq!(
            shown, real,
            "IDENTUN_UPDATE_DOCS=1 cargo test --test docs writes it"
        );
    }
    assert_eq!(text.lines().count(), told.lines().count());
}

/// The page with the outputs of today's program.
fn retold(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    // What a daemon told of this mesh; tests/netns/audit.rs made it.
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    fs::copy(docs.join("flows.json"), dir.path().join("flows.json")).unwrap();
    let mut told = String::new();
    let mut commands = 0;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        told += &format!("{line}\n");
        match line {
            "```yaml" => {
                let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
                write(dir.path(), &block);
                told += &format!("{}\n```\n", block.join("\n"));
            }
            "```console" => {
                let block = lines.by_ref().take_while(|line| *line != "```");
                for command in block.filter_map(|line| line.strip_prefix("$ ")) {
                    told += &format!("$ {command}\n{}", typed(dir.path(), command));
                    commands += 1;
                }
                told += "```\n";
            }
            "<!-- codes -->" => {
                let _ = lines
                    .by_ref()
                    .find(|line| *line == "<!-- /codes -->")
                    .unwrap();
                told += &format!("{}<!-- /codes -->\n", codes());
            }
            _ => {}
        }
    }
    assert!(commands > 10, "{commands}");
    told
}

/// Writes a file that a block shows; its first line names it.
fn write(dir: &Path, block: &[&str]) {
    let name = block
        .first()
        .and_then(|line| line.strip_prefix("# "))
        .unwrap();
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, block.join("\n") + "\n").unwrap();
}

/// What a command says, and its exit code if that is not 0.
fn typed(dir: &Path, command: &str) -> String {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_identun"));
    let path = format!("{}:/usr/bin:/bin", program.parent().unwrap().display());
    let output = Command::new("bash")
        .args(["-c", &format!("{command} 2>&1")])
        .current_dir(dir)
        .env_clear()
        .env("PATH", path)
        .env("IDENTUN_CONFIG", "daemon.yaml")
        .output()
        .unwrap();
    let mut text = String::from_utf8(output.stdout).unwrap();
    if !output.status.success() {
        text += &format!("(exit code {})\n", output.status.code().unwrap());
    }
    // A page has no spaces at the ends of lines.
    text.lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

fn codes() -> String {
    let row = |code: &ReasonCode| {
        let outcome = serde_json::to_value(code.outcome()).unwrap();
        let outcome = outcome.as_str().unwrap();
        format!("| {code} | {outcome} | {} |\n", code.text())
    };
    ReasonCode::ALL.iter().map(row).collect()
}
