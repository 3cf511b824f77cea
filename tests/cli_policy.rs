//! The commands about policy as a person calls them: `analyze`, `explain`, `schema`, `tls-check`. No root, no daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;

/// A DestinationRule whose host no service has.
const LOST: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
    metadata: {name: lost, namespace: shop}\nspec: {host: nowhere, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n";

/// What a command said, and how it ended.
struct Said {
    code: i32,
    text: String,
    errors: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    #[track_caller]
    fn has(&self, wanted: &str) {
        assert!(
            self.text.contains(wanted),
            "{wanted} is not in\n{}{}",
            self.text,
            self.errors
        );
    }
}

fn identun(dir: &Path, arguments: &[&str], stdin: &str) -> Said {
    let mut child = Command::new(env!("CARGO_BIN_EXE_identun"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    Said {
        code: output.status.code().unwrap(),
        text: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A folder with the files given by name and text, and a `daemon.yaml` that means all of them.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("policies.d")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join("policies.d").join(name), text).unwrap();
    }
    let daemon = "policies: [policies.d]\nhost_addresses: [10.0.0.1]\n";
    fs::write(dir.path().join("daemon.yaml"), daemon).unwrap();
    dir
}

fn analyze(dir: &Path, arguments: &[&str]) -> Said {
    identun(dir, &[&["analyze"], arguments].concat(), "")
}

#[test]
fn the_failure_threshold_decides_the_exit_code_in_every_format() {
    let dir = folder(&[("lost.yaml", LOST)]);
    for format in ["table", "log", "json"] {
        for (threshold, code) in [("error", 0), ("Warning", 1), ("INFO", 1)] {
            let arguments = [
                "--failure-threshold",
                threshold,
                "-o",
                format,
                "-c",
                "daemon.yaml",
            ];
            let said = analyze(dir.path(), &arguments);
            assert_eq!(said.code, code, "{format} {threshold}: {}", said.text);
            said.has("IDT0551");
        }
    }
    let broken = LOST.replace("ISTIO_MUTUAL", "ISTIO_MUTAL");
    fs::write(dir.path().join("policies.d/lost.yaml"), broken).unwrap();
    for format in ["table", "log", "json"] {
        let said = analyze(dir.path(), &["-c", "daemon.yaml", "-o", format]);
        assert_eq!(said.code, 1, "{format}: {}", said.text);
        said.has("IDT0203");
    }
}

#[test]
fn the_output_threshold_hides_and_changes_no_exit_code() {
    let dir = folder(&[("lost.yaml", LOST)]);
    let arguments = [
        "--output-threshold",
        "error",
        "--failure-threshold",
        "warning",
    ];
    let said = analyze(dir.path(), &[&arguments[..], &["policies.d"]].concat());
    assert_eq!(said.code, 1);
    assert_eq!(said.text, "OK: no validation issues found in 1 file\n");
}

#[test]
fn a_clean_set_has_no_validation_issues() {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let said = analyze(
        &config,
        &[
            "--output-threshold",
            "warning",
            "policies/strict.yaml",
            "example",
        ],
    );
    assert_eq!(
        (said.code, &*said.text),
        (0, "OK: no validation issues found in 2 files\n")
    );
}

#[test]
fn a_dash_is_stdin() {
    let dir = tempfile::tempdir().unwrap();
    let said = identun(dir.path(), &["analyze", "-o", "log", "-"], LOST);
    assert_eq!(said.code, 0);
    said.has("Warning [IDT0551] (DestinationRule lost.shop -:4:14) no service has a host");
    let said = identun(dir.path(), &["analyze", "-"], "kind: [\n");
    assert_eq!(said.code, 1, "{}", said.text);
    said.has("--> -:");
    assert_eq!(identun(dir.path(), &["check", "-"], LOST).code, 0);
    assert_eq!(identun(dir.path(), &["check", "-"], "kind: [\n").code, 6);
}

#[test]
fn suppressed_findings_are_counted_and_do_not_fail() {
    let dir = folder(&[("lost.yaml", LOST)]);
    let run = |suppress: &str| {
        let threshold = ["--failure-threshold", "warning", "-o", "json", "-S"];
        analyze(
            dir.path(),
            &[&threshold[..], &[suppress, "policies.d"]].concat(),
        )
    };
    for covering in [
        "IDT0551=DestinationRule lost.shop",
        "IDT0551=DestinationRule *.shop",
        "idt0551=* lost.*",
        "IDT0551=*",
        "IDT0551",
    ] {
        let said = run(covering);
        assert_eq!(said.code, 0, "{covering}: {}", said.text);
        assert_eq!(said.json()["suppressed"], 1, "{covering}");
    }
    for other in ["IDT0551=DestinationRule lost.other", "IDT0552=*"] {
        assert_eq!(run(other).code, 1, "{other}");
    }
    let said = run("IDT0550=*");
    assert_eq!(said.code, 2);
    assert!(
        said.errors.contains("there is no code `IDT0550`"),
        "{}",
        said.errors
    );
}

#[test]
fn an_unreadable_file_is_never_a_success() {
    let dir = folder(&[]);
    for more in [&[][..], &["-S", "IDT0601"]] {
        let said = analyze(dir.path(), &[more, &["missing.yaml"]].concat());
        assert_eq!(said.code, 6, "{}", said.text);
        said.has("error[IDT0601]: cannot open missing.yaml");
    }
}

#[test]
fn analyze_and_check_find_the_same() {
    let dir = folder(&[("lost.yaml", LOST)]);
    let sources: [&[&str]; 2] = [&["-c", "daemon.yaml"], &["policies.d"]];
    for source in sources {
        let findings = |command: &str| {
            let said = identun(dir.path(), &[&[command, "-o", "json"], source].concat(), "");
            let diagnostics = said.json()["diagnostics"].as_array().unwrap().clone();
            let key = |value: &Value| (value["code"].to_string(), value["message"].to_string());
            diagnostics
                .iter()
                .map(key)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert!(!findings("check").is_empty());
        assert_eq!(findings("check"), findings("analyze"));
    }
}

#[test]
fn every_code_is_listed_and_every_code_in_the_sources_is_in_the_table() {
    let dir = tempfile::tempdir().unwrap();
    let said = analyze(dir.path(), &["-L"]);
    assert_eq!(said.code, 0);
    for line in said.text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
    let listed = analyze(dir.path(), &["-L", "-o", "json"]).json();
    let listed = listed["codes"].as_array().unwrap();
    assert_eq!(listed.len(), identun::policy::diagnostic::codes::ALL.len());
    let configuration = include_str!("../src/daemon/configuration.rs");
    let used: Vec<_> = configuration.match_indices("\"IDT").collect();
    assert!(used.len() > 5);
    for (at, _) in used {
        let code = &configuration[at + 1..at + 8];
        assert!(listed.iter().any(|known| known["code"] == code), "{code}");
    }
}

/// Two services of one short name, one of them with two endpoints at a port of their own; clients at 10.0.0.1.
const SHOP: &str = "\
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client, namespace: default}
spec: {address: 10.0.0.1, serviceAccount: client}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: client6, namespace: default}
spec: {address: 'fd00::1', serviceAccount: client6}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: shop}
spec:
  hosts: [web.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]
  endpoints:
  - {address: 10.0.0.2, serviceAccount: web}
  - {address: 10.0.0.3, serviceAccount: web}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web, namespace: test}
spec:
  hosts: [web.test.svc.cluster.local]
  addresses: [10.1.0.1, 'fd00::101']
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 10.0.0.4, serviceAccount: test}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: alone, namespace: shop}
spec:
  hosts: [alone.shop.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http}]
  endpoints: [{address: 10.0.0.5}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: alone, namespace: shop}
spec: {host: alone, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}
";

fn explain(dir: &Path, arguments: &[&str]) -> Said {
    identun(
        dir,
        &[&["explain", "-c", "daemon.yaml"], arguments].concat(),
        "",
    )
}

#[test]
fn ends_are_named_by_workload_service_and_port_name() {
    let dir = folder(&[("shop.yaml", SHOP)]);
    let flow = |source: &str, destination: &str| {
        let said = explain(dir.path(), &[source, destination]);
        let line = said.text.lines().next().unwrap_or(&said.errors).to_owned();
        line.trim_start_matches("flow").trim().to_owned()
    };
    for (source, destination, expected) in [
        ("client", "10.0.0.2:80", "tcp 10.0.0.1 -> 10.0.0.2:80"),
        (
            "default/client",
            "web.shop:80",
            "tcp 10.0.0.1 -> 10.0.0.2:8080",
        ),
        ("client", "web.shop:http", "tcp 10.0.0.1 -> 10.0.0.2:8080"),
        ("client", "web.shop:8080", "tcp 10.0.0.1 -> 10.0.0.2:8080"),
        (
            "client",
            "web.shop.svc.cluster.local",
            "icmp 10.0.0.1 -> 10.0.0.2",
        ),
        ("client", "web.test:80", "tcp 10.0.0.1 -> 10.1.0.1:80"),
        ("client6", "web.test:80", "tcp fd00::1 -> [fd00::101]:80"),
        (
            "spiffe://cluster.local/ns/default/sa/client",
            "alone:http",
            "tcp 10.0.0.1 -> 10.0.0.5:80",
        ),
        ("alone", "client:22", "tcp 10.0.0.5 -> 10.0.0.1:22"),
    ] {
        assert_eq!(flow(source, destination), expected);
    }
}

#[test]
fn names_that_mean_nothing_or_several_things_are_usage_errors() {
    let dir = folder(&[("shop.yaml", SHOP)]);
    for (source, destination, wanted) in [
        (
            "client",
            "web:80",
            "`web` is ambiguous:\n  service web.shop.svc.cluster.local (policies.d/shop.yaml:13:18)\n  \
             service web.test.svc.cluster.local",
        ),
        (
            "client",
            "wob:80",
            "no workload and no service is named `wob`",
        ),
        ("client", "wob:80", "help: known are alone.shop.svc"),
        ("client", "web.shop:https", "its ports: http (80)"),
        ("client", "client:http", "write the port's number"),
        (
            "web.shop",
            "client:80",
            "several addresses: 10.0.0.2, 10.0.0.3",
        ),
        (
            "client:80",
            "web.shop:80",
            "only the destination has a port",
        ),
        ("client", "client6", "are of different address families"),
        ("10.0.0.1", "fd00::1", "are of different address families"),
        ("10.0.0.1", "10.0.0.2:0", "expected a port of 1 to 65535"),
    ] {
        let said = explain(dir.path(), &[source, destination]);
        assert_eq!(said.code, 2, "{source} {destination}: {}", said.errors);
        assert!(said.errors.contains(wanted), "{wanted}\n{}", said.errors);
        assert_eq!(said.text, "");
    }
}

#[test]
fn explain_tells_of_every_endpoint_of_a_service() {
    let dir = folder(&[("shop.yaml", SHOP)]);
    let said = explain(dir.path(), &["client", "web.shop:80"]);
    assert_eq!(said.code, 0);
    said.has("\ncode        mutual_auto\n");
    said.has("\nendpoints   10.0.0.3:8080: mutual TLS in a tunnel, mutual_auto\n");
    let said = explain(dir.path(), &["client", "web.shop:80", "-o", "json"]);
    let json = said.json();
    assert_eq!(json["asked"]["destination"], "web.shop:80");
    assert_eq!(json["others"][0]["code"], "mutual_auto");
    assert_eq!(json["explanation"]["outcome"], "MTLS");
    assert!(json["explanation"]["considered"].is_array());
    let said = explain(dir.path(), &["client", "alone:80"]);
    assert_eq!(said.code, 1);
    said.has("outcome     refused by the client's host");
    said.has("code        not_in_mesh");
    for line in said.text.lines() {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn explain_knows_every_code_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    for name in identun::policy::help::Topic::names() {
        let said = identun(dir.path(), &["explain", name], "");
        assert_eq!(said.code, 0, "{name}: {}", said.errors);
        said.has(name);
        said.has("\nFix: ");
        for line in said.text.lines().filter(|line| !line.starts_with("    ")) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
    let said = identun(dir.path(), &["explain", "IDT0551", "-o", "json"], "");
    assert_eq!(said.json()["severity"], "warning");
    let said = identun(dir.path(), &["explain", "IDT9999"], "");
    assert_eq!(said.code, 2);
    assert!(
        said.errors.contains("`IDT9999` is no code and no reason"),
        "{}",
        said.errors
    );
}

/// A service `foo` of the namespace `bar` with one endpoint in the mesh.
const FOO: &str = "\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: foo, namespace: bar}
spec:
  hosts: [foo.bar.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 8080, name: http}, {number: 443, name: tls, targetPort: 8443}]
  endpoints: [{address: 10.0.0.2, serviceAccount: foo}]
";
const FOO_STRICT: &str = "\
apiVersion: authentication.istio.io/v1alpha1
kind: Policy
metadata: {name: foo, namespace: bar}
spec: {targets: [{name: foo}], peers: [{mtls: {}}]}
";

fn some_rule(traffic_policy: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: some-rule, namespace: default}}\n\
         spec: {{host: foo.bar.svc.cluster.local, trafficPolicy: {traffic_policy}}}\n"
    )
}

/// The cells of the one row of `tls-check SERVICE` behind its host and port, and the exit code.
fn checked(files: &[(&str, &str)], settings: &str, arguments: &[&str]) -> (i32, Vec<String>) {
    let dir = folder(files);
    let file = dir.path().join("daemon.yaml");
    let daemon = fs::read_to_string(&file).unwrap();
    fs::write(&file, daemon + settings).unwrap();
    let said = identun(
        dir.path(),
        &[&["tls-check", "-c", "daemon.yaml"], arguments].concat(),
        "",
    );
    let mut lines = said.text.lines();
    let header = lines.next().unwrap_or_else(|| panic!("{}", said.errors));
    let words: Vec<_> = header
        .split("  ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    let names = [
        "HOST:PORT",
        "STATUS",
        "SERVER",
        "CLIENT",
        "AUTHN POLICY",
        "DESTINATION RULE",
    ];
    assert_eq!(words, names, "{}", said.text);
    let row = lines.next().unwrap().split_whitespace().skip(1);
    let row = row.map(ToOwned::to_owned).collect();
    assert_eq!(lines.next(), None, "{}", said.text);
    (said.code, row)
}

const ALPHA: &str = "default_mode: DISABLE\nauto_mtls: false\n";

#[test]
fn p15_without_policy_and_rule_tls_check_says_ok_or_auto() {
    let files = [("foo.yaml", FOO)];
    let off = checked(&files, ALPHA, &["foo:8080"]);
    assert_eq!(
        off,
        (0, ["OK", "DISABLE", "-", "-", "-"].map(Into::into).into())
    );
    let on = checked(&files, "default_mode: DISABLE\n", &["foo:8080"]);
    assert_eq!(
        on,
        (0, ["AUTO", "DISABLE", "-", "-", "-"].map(Into::into).into())
    );
}

#[test]
fn p16_a_strict_policy_and_a_rule_that_disables_are_a_conflict() {
    let rule = some_rule("{tls: {mode: DISABLE}}");
    let files = [
        ("foo.yaml", FOO),
        ("strict.yaml", FOO_STRICT),
        ("rule.yaml", &rule),
    ];
    let expected = [
        "CONFLICT",
        "STRICT",
        "DISABLE",
        "bar/foo",
        "default/some-rule",
    ];
    let found = checked(&files, ALPHA, &["foo.bar"]);
    assert_eq!(found, (1, expected.map(Into::into).into()));
    // What nobody decides fails just as well, though Istio 1.4 said OK.
    let found = checked(&files[..2], ALPHA, &["foo.bar"]);
    let expected = ["CONFLICT", "STRICT", "-", "bar/foo", "-"];
    assert_eq!(found, (1, expected.map(Into::into).into()));
}

#[test]
fn p17_the_rule_s_settings_of_a_port_count_for_it() {
    let rule = some_rule(
        "{tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 8080}, tls: {mode: ISTIO_MUTUAL}}]}",
    );
    let files = [
        ("foo.yaml", FOO),
        ("strict.yaml", FOO_STRICT),
        ("rule.yaml", &rule),
    ];
    let expected = [
        "OK",
        "STRICT",
        "ISTIO_MUTUAL",
        "bar/foo",
        "default/some-rule",
    ];
    let found = checked(&files, ALPHA, &["foo.bar.svc.cluster.local:8080"]);
    assert_eq!(found, (0, expected.map(Into::into).into()));
    let expected = [
        "CONFLICT",
        "STRICT",
        "DISABLE",
        "bar/foo",
        "default/some-rule",
    ];
    let found = checked(&files, ALPHA, &["foo:443"]);
    assert_eq!(found, (1, expected.map(Into::into).into()));
    // Without a port the first row of the service, by number.
    let found = checked(&files, ALPHA, &["foo"]);
    assert_eq!(found, (1, expected.map(Into::into).into()));
    // Clients of another namespace do not follow a rule of `default`.
    let expected = ["CONFLICT", "STRICT", "-", "bar/foo", "-"];
    let found = checked(&files, ALPHA, &["foo:8080", "--namespace", "other"]);
    assert_eq!(found, (1, expected.map(Into::into).into()));
}

#[test]
fn tls_check_names_policies_of_every_kind() {
    let authentication = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: own, namespace: bar}\nspec: {mtls: {mode: PERMISSIVE}}\n";
    let mesh = include_str!("../config/policies/strict.yaml");
    let files = [("foo.yaml", FOO), ("strict.yaml", mesh)];
    let expected = [
        "OK",
        "STRICT",
        "ISTIO_MUTUAL",
        "/default",
        "istio-system/default",
    ];
    assert_eq!(
        checked(&files, ALPHA, &["foo"]),
        (0, expected.map(Into::into).into())
    );
    let files = [
        ("foo.yaml", FOO),
        ("strict.yaml", mesh),
        ("own.yaml", authentication),
    ];
    let expected = [
        "OK",
        "PERMISSIVE",
        "ISTIO_MUTUAL",
        "bar/own",
        "istio-system/default",
    ];
    assert_eq!(
        checked(&files, ALPHA, &["foo"]),
        (0, expected.map(Into::into).into())
    );
}

#[test]
fn tls_check_lists_every_port_and_tells_endpoints_apart() {
    let two = FOO.replace(
        "endpoints: [",
        "endpoints: [{address: 10.0.0.3, serviceAccount: foo, labels: {old: 'yes'}}, ",
    );
    let own = "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
        metadata: {name: old, namespace: bar}\n\
        spec: {selector: {matchLabels: {old: 'yes'}}, mtls: {mode: STRICT}, portLevelMtls: {8443: {mode: DISABLE}}}\n\
        ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: out, namespace: bar}\n\
        spec: {hosts: [out.example.com], addresses: [192.0.2.1], ports: [{number: 1, name: x}]}\n";
    let rule = "---\n".to_owned() + &some_rule("{tls: {mode: ISTIO_MUTUAL}}");
    let dir = folder(&[("foo.yaml", &(two + own + &rule))]);
    let said = identun(dir.path(), &["tls-check", "-c", "daemon.yaml"], "");
    assert_eq!(said.code, 1);
    let rows: Vec<Vec<_>> = said
        .text
        .lines()
        .skip(1)
        .take_while(|line| !line.is_empty())
        .map(|line| line.split_whitespace().take(5).collect())
        .collect();
    let (low, high) = (
        "foo.bar.svc.cluster.local:443",
        "foo.bar.svc.cluster.local:8080",
    );
    assert_eq!(
        rows,
        [
            [low, "OK", "PERMISSIVE", "ISTIO_MUTUAL", "-"],
            [low, "CONFLICT", "DISABLE", "ISTIO_MUTUAL", "bar/old"],
            [high, "OK", "STRICT", "ISTIO_MUTUAL", "bar/old"],
            [high, "OK", "PERMISSIVE", "ISTIO_MUTUAL", "-"],
        ]
    );
    said.has("note: endpoints of foo.bar.svc.cluster.local:443 differ:\n  PERMISSIVE at 10.0.0.2\n  DISABLE at 10.0.0.3\n");
    said.has("note: 1 external service left out");
    let said = identun(
        dir.path(),
        &["tls-check", "-o", "json", "-c", "daemon.yaml"],
        "",
    );
    let json = said.json();
    assert_eq!(json["tlsCheck"]["rows"][1]["endpoints"][0], "10.0.0.3");
    assert_eq!(
        json["tlsCheck"]["rows"][1]["authn_policy"]["resource"]["kind"],
        "PeerAuthentication"
    );
    let said = identun(dir.path(), &["tls-check", "wob", "-c", "daemon.yaml"], "");
    assert_eq!((said.code, &*said.text), (1, ""));
    assert!(
        said.errors
            .contains("see no service of the mesh named `wob`"),
        "{}",
        said.errors
    );
}

#[test]
fn schema_lists_kinds_describes_fields_and_prints_json_schema() {
    let dir = tempfile::tempdir().unwrap();
    let schema = |arguments: &[&str]| identun(dir.path(), &[&["schema"], arguments].concat(), "");
    let list = schema(&[]);
    for kind in identun::policy::schema::KINDS {
        list.has(kind.name);
        let said = schema(&[kind.name]);
        assert_eq!(said.code, 0);
        for line in said.text.lines().chain(list.text.lines()) {
            assert!(line.chars().count() <= 80, "{}: {line}", kind.name);
        }
        let json = schema(&[&kind.name.to_lowercase(), "-o", "json"]).json();
        assert_eq!(json["title"], kind.name);
        assert_eq!(json["additionalProperties"], false);
    }
    schema(&["PeerAuthentication"]).has("mode <UNSET | DISABLE | PERMISSIVE | STRICT>");
    let all = schema(&["--all"]).json();
    assert_eq!(
        all["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert_eq!(all["$defs"].as_object().unwrap().len(), 7);
    let said = schema(&["Polcy"]);
    assert_eq!(said.code, 2);
    assert!(
        said.errors.contains("there is no kind `Polcy`"),
        "{}",
        said.errors
    );
}
