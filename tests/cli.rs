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
    for command in [
        &["status"][..],
        &[],
        &["reload"],
        &["audit"],
        &["what-if", "x"],
    ] {
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
    let commands = "|audit|ca|ca init|ca issue|ca show|check|daemon|demo|diff|down|explain|reload|status|version|what-if";
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

const PERMISSIVE: &str = include_str!("../config/policies/permissive.yaml");

/// A folder with the example's registry, and the two policies that it may have.
fn policies() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("mesh.yaml", REGISTRY),
        ("permissive.yaml", PERMISSIVE),
        ("strict.yaml", STRICT),
        ("bad.yaml", "kind: Nonsense\n"),
    ] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| {
        panic!("{error}: {}{}", stdout(output), stderr(output));
    })
}

#[test]
fn diff_tells_who_would_be_refused_and_by_which_rule() {
    let dir = policies();
    let diff = |arguments: &[&str]| identun(dir.path(), &[&["diff"], arguments].concat());
    let same = diff(&["mesh.yaml,permissive.yaml", "mesh.yaml,permissive.yaml"]);
    assert_eq!(code(&same), 0, "{}{}", stdout(&same), stderr(&same));
    assert!(
        stdout(&same).starts_with("no differences ("),
        "{}",
        stdout(&same)
    );

    let changed = diff(&["mesh.yaml,permissive.yaml", "strict.yaml"]);
    let text = stdout(&changed);
    assert_eq!(code(&changed), 1, "{text}{}", stderr(&changed));
    for wanted in [
        "FROM              TO              PORTS       BEFORE     AFTER    WHY\n\
         outside the mesh  default/client  every port  plaintext  refused  [1]\n",
        "[1] before  plaintext: the source is not in the mesh (client_not_in_mesh)\n            \
         MeshPolicy default (permissive.yaml:10:13)\n    after   refused by the server's host: ",
        "MeshPolicy default (strict.yaml:",
        "default/server  PERMISSIVE   STRICT",
        "note: the workloads and services of OLD count for both sides\n",
        "\n2 differences: 2 newly refused; 2 workloads have another mode\n",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let back = diff(&[
        "--old",
        "mesh.yaml",
        "strict.yaml",
        "--new",
        "mesh.yaml",
        "permissive.yaml",
    ]);
    assert_eq!(code(&back), 1);
    assert!(
        stdout(&back).contains("\n2 differences: 2 newly allowed; 2 workloads"),
        "{}",
        stdout(&back)
    );
}

#[test]
fn diff_s_json_keeps_its_keys_and_its_exit_code() {
    let dir = policies();
    let output = identun(
        dir.path(),
        &[
            "diff",
            "mesh.yaml,permissive.yaml",
            "strict.yaml",
            "-o",
            "json",
        ],
    );
    assert_eq!(code(&output), 1);
    let value = json(&output);
    assert_eq!(value["apiVersion"], "identun.io/v1");
    assert_eq!(value["kind"], "Difference");
    assert_eq!(value["complete"], true);
    assert_eq!(value["asked"], value["questions"]);
    let row = &value["changes"][0];
    assert_eq!(row["client"], "outside the mesh");
    assert_eq!(row["server"], "default/client");
    assert_eq!(row["effect"], "newly_refused");
    assert_eq!(row["ports"], serde_json::json!(["every port"]));
    for (side, outcome, code) in [
        ("old", "PLAINTEXT", "client_not_in_mesh"),
        ("new", "REFUSED_BY_SERVER", "mode_strict"),
    ] {
        assert_eq!(row[side]["outcome"], outcome);
        assert_eq!(row[side]["code"], code);
        let rule = &row[side]["rules"][0];
        assert_eq!(rule["resource"]["kind"], "MeshPolicy");
        assert!(rule["place"]["line"].is_number() && rule["place"]["file"].is_string());
    }
    let mode = &value["modes"][0];
    assert_eq!(mode["workload"], "default/client");
    assert_eq!(
        (&mode["old"], &mode["new"]),
        (&"PERMISSIVE".into(), &"STRICT".into())
    );
}

#[test]
fn diff_refuses_files_that_are_wrong_or_not_there_and_tells_where() {
    let dir = policies();
    for (new, word) in [
        ("bad.yaml", "bad.yaml:1:"),
        ("missing.yaml", "missing.yaml"),
    ] {
        let output = identun(dir.path(), &["diff", "mesh.yaml", new]);
        assert_eq!(code(&output), 6, "{}", stderr(&output));
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    for arguments in [
        &["diff"][..],
        &["diff", "mesh.yaml"],
        &["diff", "--old", "mesh.yaml"],
    ] {
        assert_eq!(code(&identun(dir.path(), arguments)), 2, "{arguments:?}");
    }
}

/// What a daemon of the example's server answered: the client came through a tunnel, a stranger in the clear, and the
/// server called a stranger.
fn saved_flows(dir: &Path, files: &[&str]) {
    let end = |address: &str, workload: Option<&str>| {
        let identity = workload.map(|name| {
            let account = name.trim_start_matches("default/");
            format!("spiffe://cluster.local/ns/default/sa/{account}")
        });
        serde_json::json!({"address": address, "workload": workload, "identity": identity})
    };
    let flow = |source, destination, way: &str, direction: &str, outcome: &str, code: &str| {
        serde_json::json!({
            "source": source, "destination": destination, "protocol": 6, "port": 80, "way": way,
            "direction": direction, "forwarded": false, "code": code, "first_seen_ms": 1_000,
            "last_seen_ms": 8_000, "connections": 3, "bytes_forth": 0, "bytes_back": 0,
            "decision": {"outcome": outcome, "code": code, "reason": "for a reason", "rules": ["MeshPolicy default (a.yaml:1:1)"]},
            "a_later_field": 1,
        })
    };
    let (client, server) = (
        end("10.0.0.1", Some("default/client")),
        end("10.0.0.2", Some("default/server")),
    );
    let stranger = end("192.0.2.7", None);
    let files: Vec<_> = files.iter().map(|file| dir.join(file)).collect();
    let saved = serde_json::json!({
        "apiVersion": "identun.io/v1", "kind": "FlowLog", "now_ms": 10_000, "generation": 1,
        "capacity": 16_384, "evicted": 0, "losses": 2, "source": "dumps", "trouble": "no events here",
        "files": files,
        "mesh": {
            "trust_domain": "cluster.local", "trust_domain_aliases": [], "domain": "cluster.local",
            "root_namespace": "istio-system", "default_namespace": "default", "default_mode": "PERMISSIVE",
            "auto_mtls": true, "unknown_destination": "drop", "l7": "reject",
        },
        "host": {
            "addresses": ["10.0.0.2"], "port": 15_008,
            "identities": ["spiffe://cluster.local/ns/default/sa/server"], "exempt": [[6, 22]],
        },
        "flows": [
            flow(&client, &server, "tunnel", "inbound", "MTLS", "mutual_by_rule"),
            flow(&stranger, &server, "plaintext", "inbound", "PLAINTEXT", "client_not_in_mesh"),
            flow(&server, &stranger, "plaintext", "outbound", "PLAINTEXT", "destination_unknown"),
        ],
    });
    fs::write(dir.join("flows.json"), saved.to_string()).unwrap();
}

#[test]
fn audit_tells_why_it_is_plaintext_and_what_strict_would_do() {
    let dir = policies();
    saved_flows(dir.path(), &["mesh.yaml", "permissive.yaml"]);
    let audit = |arguments: &[&str]| {
        let arguments = [&["audit", "--flows", "flows.json"], arguments].concat();
        identun(dir.path(), &arguments)
    };
    let output = audit(&[]);
    let text = stdout(&output);
    assert_eq!(code(&output), 1, "{text}{}", stderr(&output));
    let mut lines = text.lines();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        words(lines.next().unwrap()),
        "FROM TO PORT SEEN AS CONNS LAST STRICT WHY"
    );
    assert_eq!(
        words(lines.next().unwrap()),
        "192.0.2.7 default/server tcp/80 inbound 3 2s breaks [1]"
    );
    assert_eq!(
        words(lines.next().unwrap()),
        "default/server 192.0.2.7 tcp/80 outbound 3 2s plaintext [2]"
    );
    for wanted in [
        "[1] now     plaintext: for a reason (client_not_in_mesh)\n            MeshPolicy default (a.yaml:1:1)\n    STRICT  refused by the server's host",
        "note: conntrack is read every few seconds only",
        "note: 2 times the kernel told more",
        "\n2 pairs still speak plaintext; 1 would break under STRICT\n",
    ] {
        assert!(text.contains(wanted), "{wanted} is not in\n{text}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let value = json(&audit(&["-o", "json"]));
    assert_eq!(
        (&value["kind"], &value["apiVersion"]),
        (&"Audit".into(), &"identun.io/v1".into())
    );
    assert_eq!(value["plaintext_pairs"], 2);
    assert_eq!(value["break_under_strict"], 1);
    for key in [
        "source",
        "destination",
        "port",
        "direction",
        "forwarded",
        "connections",
        "last_seen_seconds",
        "decision",
        "strict",
        "breaks_under_strict",
    ] {
        assert!(value["pairs"][0].get(key).is_some(), "{key}: {value}");
    }
    // Nothing was seen in the last second: the answer is yes, nobody speaks plaintext.
    let output = audit(&["--since", "1s"]);
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).ends_with("nobody speaks plaintext\n"));
    assert_eq!(code(&audit(&["--since", "soon"])), 2);
    // Without the files what STRICT would do is not known, and that is said.
    fs::remove_file(dir.path().join("permissive.yaml")).unwrap();
    let output = audit(&[]);
    assert_eq!(code(&output), 1);
    assert!(
        stdout(&output).contains("what STRICT would do cannot be told")
            && stdout(&output).contains("permissive.yaml"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn what_if_tells_which_seen_flows_would_break() {
    let dir = policies();
    saved_flows(dir.path(), &["mesh.yaml", "permissive.yaml"]);
    let what_if = |arguments: &[&str]| {
        let arguments = [&["what-if", "--flows", "flows.json"], arguments].concat();
        identun(dir.path(), &arguments)
    };
    let output = what_if(&["strict.yaml"]);
    let text = stdout(&output);
    assert_eq!(code(&output), 1, "{text}{}", stderr(&output));
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let rows: Vec<_> = text.lines().take(3).map(words).collect();
    assert_eq!(
        rows,
        [
            "FROM TO PORT BEFORE AFTER CONNS WHY",
            "192.0.2.7 default/server tcp/80 plaintext refused 3 [1]",
            ""
        ]
    );
    assert!(
        text.contains("MeshPolicy default (strict.yaml:")
            && text.contains("note: the files name no workload and no service")
            && text.ends_with("3 pairs seen: 1 newly refused, 2 unchanged\n"),
        "{text}"
    );
    for line in text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    // As an addition it takes the place of its namesake.
    let output = what_if(&["--add", "strict.yaml", "-o", "json"]);
    assert_eq!(code(&output), 1, "{}", stderr(&output));
    let value = json(&output);
    assert_eq!(
        (&value["kind"], &value["apiVersion"]),
        (&"WhatIf".into(), &"identun.io/v1".into())
    );
    assert_eq!(
        value["summary"],
        serde_json::json!({"newly_refused": 1, "unchanged": 2})
    );
    let change = &value["changes"][0];
    assert_eq!(change["old"]["code"], "client_not_in_mesh");
    assert_eq!(change["new"]["code"], "mode_strict");
    assert_eq!(
        (&change["effect"], &change["connections"]),
        (&"newly_refused".into(), &3.into())
    );
    let output = what_if(&["mesh.yaml", "permissive.yaml"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stdout(&output).ends_with("3 pairs seen: 3 unchanged\n"),
        "{}",
        stdout(&output)
    );
    assert_eq!(code(&what_if(&["bad.yaml"])), 6);
    assert_eq!(code(&what_if(&[])), 2);
}
