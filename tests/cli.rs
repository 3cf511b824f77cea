//! The program as a person calls it: files in, words and exit codes out. Needs no root and no daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const REGISTRY: &str = include_str!("../config/example/example-mesh.yaml");
const STRICT: &str = include_str!("../config/policies/strict.yaml");

fn identun(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_identun"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A folder as the README has it: a CA, the client's identity, policy, registry and `daemon.yaml`.
fn mesh() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [
        &[
            "ca",
            "init",
            "--trust-domain",
            "cluster.local",
            "--dir",
            "ca",
        ][..],
        &[
            "ca",
            "issue",
            "spiffe://cluster.local/ns/default/sa/client",
            "--dir",
            "ca",
            "--out",
            "client",
        ],
        &[
            "ca",
            "issue",
            "spiffe://cluster.local/ns/default/sa/server",
            "--dir",
            "ca",
            "--out",
            "server",
        ],
    ] {
        let output = identun(dir.path(), arguments);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    fs::create_dir(dir.path().join("policies.d")).unwrap();
    fs::write(dir.path().join("policies.d/mesh.yaml"), REGISTRY).unwrap();
    fs::write(dir.path().join("policies.d/strict.yaml"), STRICT).unwrap();
    write_daemon(dir.path(), "");
    dir
}

fn write_daemon(dir: &Path, more: &str) {
    let text = format!(
        "policies: [policies.d]\nidentities:\n- certificate: client/client.pem\n  key: client/client.key\n\
         trust_bundles:\n  cluster.local: client/bundle.pem\nhost_addresses: [10.0.0.1]\n{more}"
    );
    fs::write(dir.join("daemon.yaml"), text).unwrap();
}

#[test]
fn the_readme_s_files_pass_check() {
    let dir = mesh();
    let output = identun(dir.path(), &["check", "--config", "daemon.yaml"]);
    let text = stdout(&output);
    assert_eq!(code(&output), 0, "{text}{}", stderr(&output));
    assert!(
        text.contains("identity  spiffe://cluster.local/ns/default/sa/client, until "),
        "{text}"
    );
    assert!(text.contains("exempt    tcp/22"), "{text}");
    assert!(text.contains("3 files checked: 0 errors"), "{text}");
    assert!(
        !text.contains("info[") && text.contains("notes (--verbose shows them)"),
        "{text}"
    );
    let output = identun(
        dir.path(),
        &["check", "--verbose", "--config", "daemon.yaml"],
    );
    assert!(
        stdout(&output).contains("info[IDT0462]: a MeshPolicy belongs"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn check_lists_local_addresses_that_belong_to_no_workload() {
    let dir = mesh();
    let check = |addresses: &str| {
        write_daemon(dir.path(), "");
        let file = dir.path().join("daemon.yaml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, text.replace("[10.0.0.1]", addresses)).unwrap();
        let output = identun(dir.path(), &["check", "--config", "daemon.yaml"]);
        assert_eq!(code(&output), 0, "{}", stdout(&output));
        stdout(&output)
    };
    let bare = |address: &str| format!("the local address `{address}` belongs to no workload");
    let text = check("[10.0.0.1, 198.51.100.7, 'fd00::7']");
    for address in ["198.51.100.7", "fd00::7"] {
        assert!(
            text.contains("warning[IDT0562]") && text.contains(&bare(address)),
            "{text}"
        );
    }
    assert!(!text.contains(&bare("10.0.0.1")), "{text}");
    assert!(!check("[10.0.0.1]").contains("IDT0562"));
}

/// What the README tells a newcomer to type, typed.
#[test]
fn the_readme_s_commands_make_files_that_pass_check() {
    let readme = include_str!("../README.md");
    let (_, block) = readme.split_once("\nA=10.0.0.1").unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    std::os::unix::fs::symlink(config, dir.path().join("config")).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_identun")).parent().unwrap();
    let path = format!("{}:/usr/bin:/bin", program.display());
    let output = Command::new("bash")
        .args(["-euc", &format!("A=10.0.0.1{block}")])
        .current_dir(dir.path())
        .env("PATH", path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for host in ["client", "server"] {
        let output = identun(
            &dir.path().join(host),
            &["check", "--config", "daemon.yaml"],
        );
        assert_eq!(code(&output), 0, "{}", stdout(&output));
    }
}

#[test]
fn shipped_configuration_is_the_defaults() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/daemon.yaml");
    let file = identun::store::read_config(&shipped).unwrap();
    let settings: identun::daemon::settings::Settings =
        identun::policy::load::parse_settings(&file).unwrap();
    assert_eq!(settings, identun::daemon::settings::Settings::default());
}

/// The names of the settings in `section` (empty: of the whole file), as the parser itself lists them.
fn settings_of(section: &str) -> Vec<String> {
    let text = match section {
        "" => r#"{"?": 0}"#.to_owned(),
        section => format!(r#"{{"{section}": {{"?": 0}}}}"#),
    };
    let error = serde_json::from_str::<identun::daemon::settings::Settings>(&text).unwrap_err();
    let error = error.to_string();
    let (_, names) = error.split_once("expected ").unwrap();
    let names = names.split('`').skip(1).step_by(2);
    names.map(ToOwned::to_owned).collect()
}

#[test]
fn shipped_configuration_has_every_setting() {
    let shipped = include_str!("../config/daemon.yaml");
    let lines: Vec<_> = shipped.lines().collect();
    let sections = [
        "", "listen", "tun", "marks", "routing", "metrics", "log", "limits",
    ];
    for section in sections {
        let names = settings_of(section);
        assert!(names.len() > usize::from(section != "metrics"), "{section}");
        let (start, indent) = match section {
            "" => (0, ""),
            section => {
                let head = format!("{section}:");
                (
                    lines.iter().position(|line| *line == head).unwrap() + 1,
                    "  ",
                )
            }
        };
        for name in names {
            let setting = format!("{indent}{name}:");
            let here = lines[start..]
                .iter()
                .take_while(|line| section.is_empty() || line.starts_with(' '));
            assert!(
                here.clone().any(|line| line.starts_with(&setting)),
                "config/daemon.yaml does not name {section} {name}"
            );
        }
    }
}

#[test]
fn shipped_policies_pass_check_together_with_the_example() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for policy in ["policies/strict.yaml", "policies/permissive.yaml"] {
        let output = identun(&config, &["check", policy, "example/example-mesh.yaml"]);
        assert_eq!(code(&output), 0, "{policy}: {}", stdout(&output));
    }
}

/// Each case: what stands in `daemon.yaml`, its place, and a word of the error.
#[test]
fn bad_settings_are_named_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let cases = [
        ("policy: []\n", "daemon.yaml:1:1", "policy"),
        ("default_mode: STRIKT\n", "daemon.yaml:1:15", "STRIKT"),
        ("auto_mtls: 1.5\n", "daemon.yaml:1:12", "1.5"),
        (
            "trust_domain: Cluster.Local\n",
            "daemon.yaml:1:15",
            "Cluster.Local",
        ),
        ("exempt: [tcp/22, icmp/1]\n", "daemon.yaml:1:18", "icmp/1"),
        ("listen:\n  port: 0\n", "daemon.yaml:2:", "port 0"),
        (
            "listen:\n  address: nowhere\n",
            "daemon.yaml:2:12",
            "nowhere",
        ),
        ("tun:\n  name: 'a b'\n", "daemon.yaml:2:9", "a b"),
        ("tun:\n  mtu: 100\n", "daemon.yaml:2:8", "1280"),
        ("marks:\n  tunnel: 1\n", "daemon.yaml:2:3", "mask"),
        ("nft_table: a;b\n", "daemon.yaml:1:12", "a;b"),
        (
            "identities:\n- certificate: a.pem\n",
            "daemon.yaml:2:3",
            "key",
        ),
        ("log: {level: loud}\n", "daemon.yaml:1:14", "loud"),
        ("domain: a\ndomain: b\n", "daemon.yaml:2:1", "domain"),
        ("domain: &a x\n", "daemon.yaml:1:9", ""),
        ("metrics: [\n", "daemon.yaml:", ""),
    ];
    for (text, place, word) in cases {
        fs::write(dir.path().join("daemon.yaml"), text).unwrap();
        let output = identun(dir.path(), &["check", "--config", "daemon.yaml"]);
        let found = stdout(&output);
        assert_eq!(code(&output), 6, "{text}: {found}");
        assert!(
            found.contains(place) && found.contains(word),
            "{text}: {found}"
        );
        assert!(found.starts_with("error[IDT"), "{text}: {found}");
    }
}

#[test]
fn bad_policy_is_an_error_in_every_format() {
    let dir = mesh();
    fs::write(
        dir.path().join("policies.d/strict.yaml"),
        STRICT.replace("mode: STRICT", "mode: STRIKT"),
    )
    .unwrap();
    for format in ["table", "json"] {
        let output = identun(
            dir.path(),
            &["check", "--config", "daemon.yaml", "-o", format],
        );
        assert_eq!(code(&output), 6);
        assert!(stdout(&output).contains("STRIKT"), "{}", stdout(&output));
    }
}

#[test]
fn a_daemon_with_bad_files_does_not_start() {
    let dir = mesh();
    write_daemon(dir.path(), "nonsense: 1\n");
    let output = identun(dir.path(), &["daemon", "--config", "daemon.yaml"]);
    assert_eq!(code(&output), 6);
    let text = stderr(&output);
    assert!(
        text.contains("daemon.yaml:8:1") && text.contains("nothing was changed on this host"),
        "{text}"
    );
    assert_eq!(
        text.matches("error: invalid configuration").count(),
        1,
        "{text}"
    );
}

#[test]
fn keys_that_others_may_read_and_expired_certificates_are_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = mesh();
    let key = dir.path().join("client/client.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let output = identun(dir.path(), &["check", "--config", "daemon.yaml"]);
    assert_eq!(code(&output), 6);
    assert!(
        stdout(&output).contains("client/client.key has mode 0644"),
        "{}",
        stdout(&output)
    );

    fs::copy(dir.path().join("server/server.key"), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let output = identun(dir.path(), &["check", "--config", "daemon.yaml"]);
    assert_eq!(code(&output), 6);
    assert!(
        stdout(&output).contains("client/client.pem with client/client.key"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn explain_tells_rule_and_place() {
    let dir = mesh();
    let explain = |arguments: &[&str]| {
        let arguments = [&["explain", "--config", "daemon.yaml"], arguments].concat();
        let output = identun(dir.path(), &arguments);
        (code(&output), stdout(&output) + &stderr(&output))
    };
    let (code, text) = explain(&["10.0.0.1", "10.0.0.2:80"]);
    assert_eq!(code, 0, "{text}");
    for wanted in [
        "flow        tcp 10.0.0.1 -> 10.0.0.2:80",
        "outcome     mutual TLS in a tunnel",
        "captured    yes",
        "may answer  spiffe://cluster.local/ns/default/sa/server",
        "gateway     10.0.0.2:15008",
        "DestinationRule istio-system/default (policies.d/strict.yaml:",
        "server      STRICT\n            MeshPolicy default (policies.d/strict.yaml:",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    assert_eq!(explain(&["10.0.0.1", "[fd00::1]:80"]).0, 2);
    assert_eq!(
        explain(&["10.0.0.1", "10.0.0.2:80", "--protocol", "icmp"]).0,
        2
    );
    assert_eq!(explain(&["10.0.0.1", "nonsense"]).0, 2);
    // The reverse direction is decided by the other host, as far as these files tell.
    let (code, text) = explain(&["10.0.0.2", "10.0.0.1:80"]);
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains("captured    no: the source is not on this host"),
        "{text}"
    );
    assert!(text.contains("encrypted   yes"), "{text}");
    // A stranger is refused, and a refusal is the answer no.
    let (code, text) = explain(&["192.0.2.9", "10.0.0.1:80"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("source      not in the registry"), "{text}");
    assert!(
        text.contains("outcome     refused by the server's host"),
        "{text}"
    );
    assert!(
        text.contains("client      not in the mesh: sends plaintext"),
        "{text}"
    );
    let (code, text) = explain(&["10.0.0.9", "10.0.0.1:22"]);
    assert!(code == 0 && text.contains("exempt "), "{text}");
}

#[test]
fn an_absent_daemon_is_exit_code_3_and_says_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    for command in [&["status"][..], &[], &["reload"]] {
        let arguments = [command, &["--socket", "admin.sock"]].concat();
        let output = identun(dir.path(), &arguments);
        assert_eq!(code(&output), 3);
        let wanted = "error: cannot reach the daemon at admin.sock (no such socket); try: systemctl status identun\n";
        assert_eq!(stderr(&output), wanted);
    }
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).unwrap());
    let output = identun(dir.path(), &["status", "--socket", "admin.sock"]);
    assert!(
        stderr(&output).contains("(connection refused)"),
        "{}",
        stderr(&output)
    );
    let output = identun(
        dir.path(),
        &[
            "status",
            "--socket",
            "admin.sock",
            "--wait",
            "--timeout",
            "0",
        ],
    );
    assert_eq!(code(&output), 5, "{}", stderr(&output));
}

#[test]
fn usage_errors_are_exit_code_2_and_help_is_0() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(code(&identun(dir.path(), &["nonsense"])), 2);
    assert_eq!(
        code(&identun(
            dir.path(),
            &["ca", "issue", "spiffe://a/b", "--dir", "x"]
        )),
        2
    );
    assert_eq!(
        code(&identun(
            dir.path(),
            &["ca", "issue", "not-an-id", "--dir", "x", "--out", "y"]
        )),
        2
    );
    let commands =
        "|ca|ca init|ca issue|ca show|check|daemon|demo|down|explain|reload|status|version";
    for command in commands.split('|') {
        let arguments: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let help = identun(dir.path(), &arguments);
        assert_eq!(code(&help), 0);
        let text = stdout(&help);
        assert!(text.contains("Examples:"), "{command}: {text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{command}: {line}");
        }
    }
    let version = identun(dir.path(), &["version", "-o", "json"]);
    assert!(
        stdout(&version).contains("\"apiVersion\": \"identun.io/v1\""),
        "{}",
        stdout(&version)
    );
}
