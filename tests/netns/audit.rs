//! What was really spoken: the kernel tells the daemon of plaintext that it never sees.

use std::{collections::BTreeSet, env, fs, path::Path};

use serde_json::Value;

use crate::{
    mesh::{CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT, permissive},
    rig::{PATIENCE, Rig, identun, in_namespaces},
    traffic::{Echo, ping, tcp_echo, udp_echo},
};

/// Exit code, standard output, standard error.
fn ask(rig: &Rig, host: &str, arguments: &[&str]) -> (i32, String, String) {
    let socket = rig.path(&format!("{host}/admin.sock"));
    let program = identun();
    let all = [&[&*program], arguments, &["--socket", &socket]].concat();
    let output = rig.try_on(host, &all);
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// `source destination port` of each object in `list`.
fn flows(list: &Value) -> BTreeSet<String> {
    let word = |one: &Value, name: &str| one[name].as_str().unwrap().to_owned();
    let list = list.as_array().unwrap().iter();
    list.map(|one| {
        let words = ["source", "destination", "port"].map(|name| word(one, name));
        words.join(" ")
    })
    .collect()
}

#[test]
fn audit_names_the_plaintext_pair_and_what_if_says_that_strict_breaks_it() {
    in_namespaces(
        "audit::audit_names_the_plaintext_pair_and_what_if_says_that_strict_breaks_it",
        |rig| {
            rig.standard(&permissive());
            let (_server, _client) = (rig.start("server"), rig.start("client"));
            let _echo = Echo::start("server", PORT);
            let (code, text, error) = ask(&rig, "server", &["audit"]);
            assert_eq!((code, &*text), (0, "nobody speaks plaintext\n"), "{error}");
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
                udp_echo("naked", (to, PORT), &[7; 100], PATIENCE).unwrap();
                assert!(ping("naked", to));
            }
            let wanted: BTreeSet<String> = [
                format!("{NAKED_4} default/server icmp"),
                format!("{NAKED_4} default/server tcp/{PORT}"),
                format!("{NAKED_4} default/server udp/{PORT}"),
                format!("{NAKED_6} default/server icmpv6"),
                format!("{NAKED_6} default/server tcp/{PORT}"),
                format!("{NAKED_6} default/server udp/{PORT}"),
            ]
            .into();

            let (code, text, error) = ask(&rig, "server", &["audit", "-o", "json"]);
            assert_eq!(code, 1, "{text}{error}");
            let audit = json(&text);
            assert_eq!(flows(&audit["pairs"]), wanted, "{text}");
            assert_eq!(
                (&audit["kind"], &audit["apiVersion"]),
                (&"Audit".into(), &"identun.io/v1".into())
            );
            assert_eq!(audit["break_under_strict"], 6, "{text}");
            assert_eq!(audit["gaps"], Value::Array(Vec::new()), "{text}");
            for pair in audit["pairs"].as_array().unwrap() {
                assert_eq!(pair["direction"], "inbound");
                assert_eq!(pair["forwarded"], false);
                assert_eq!(pair["decision"]["code"], "client_not_in_mesh");
                assert_eq!(pair["strict"]["code"], "mode_strict");
                if pair["port"].as_str().unwrap().starts_with("tcp") {
                    assert_eq!(pair["connections"], 2, "{text}");
                }
            }

            let (code, text, _) = ask(&rig, "server", &["audit", "--since", "1h"]);
            assert_eq!(code, 1);
            assert!(
                text.ends_with("6 pairs still speak plaintext; 6 would break under STRICT\n"),
                "{text}"
            );
            assert!(text.contains("MeshPolicy default ("), "{text}");
            assert!(
                text.lines().all(|line| line.chars().count() <= 80),
                "{text}"
            );

            // The client speaks through the tunnel only, and its own daemon says so.
            let (code, text, error) = ask(&rig, "client", &["audit"]);
            assert_eq!((code, &*text), (0, "nobody speaks plaintext\n"), "{error}");

            let strict = rig.write("strict.yaml", STRICT);
            let (code, text, error) = ask(&rig, "server", &["what-if", &strict, "-o", "json"]);
            assert_eq!(code, 1, "{text}{error}");
            let answer = json(&text);
            assert_eq!(flows(&answer["changes"]), wanted, "{text}");
            assert_eq!(answer["summary"]["newly_refused"], 6, "{text}");
            assert_eq!(answer["summary"]["unchanged"], 2, "{text}");
            let (code, text, error) = ask(&rig, "server", &["what-if", "--add", &strict]);
            assert_eq!(code, 1, "{text}{error}");
            assert!(
                text.contains("8 pairs seen: 6 newly refused, 2 unchanged"),
                "{text}"
            );
            assert!(
                text.contains(&format!("MeshPolicy default ({strict}:8:13)")),
                "{text}"
            );
            // What is in force changes nothing.
            let (code, text, error) = ask(&rig, "server", &["what-if", &rig.path("policies")]);
            assert_eq!(
                (code, &*text),
                (0, "8 pairs seen: 8 unchanged\n"),
                "{error}"
            );

            // What was said is what happens.
            rig.write("policies/policy.yaml", STRICT);
            let (code, text, error) = ask(&rig, "server", &["reload"]);
            assert_eq!(code, 0, "{text}{error}");
            tcp_echo("naked", (SERVER_4, PORT), PATIENCE).unwrap_err();
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
        },
    );
}

#[test]
fn plaintext_of_a_forwarded_workload_and_before_the_start_is_told_too() {
    in_namespaces(
        "audit::plaintext_of_a_forwarded_workload_and_before_the_start_is_told_too",
        |rig| {
            let behind = "198.18.12.2";
            rig.workload("server");
            let registry = [
                crate::mesh::workload("client-4", CLIENT_4, "client", None),
                crate::mesh::workload("client-6", CLIENT_6, "client", None),
                crate::mesh::workload("inner-4", behind, "inner", Some(SERVER_4)),
                crate::mesh::service("inner", &[PORT]),
            ]
            .join("---\n");
            rig.write("policies/policy.yaml", &permissive());
            rig.write("policies/registry.yaml", &registry);
            rig.configure("server", &["inner"], "workload_interfaces: [workload]");
            // Connection tracking of this host begins with somebody who asks for it.
            rig.on(
                "server",
                &["nft", "add table inet other; add chain inet other c { type filter hook forward priority 0; }; \
                          add rule inet other c ct state new counter"],
            );
            let _echo = Echo::start("server-workload", PORT);
            let _outside = Echo::start("naked", 80);
            tcp_echo("naked", (behind, PORT), PATIENCE).unwrap();
            let _server = rig.start("server");
            tcp_echo("server-workload", (NAKED_4, 80), PATIENCE).unwrap();
            let (code, text, error) = ask(&rig, "server", &["audit", "-o", "json"]);
            assert_eq!(code, 1, "{text}{error}");
            let audit = json(&text);
            let wanted = [
                format!("default/inner {NAKED_4} tcp/80"),
                format!("{NAKED_4} default/inner tcp/{PORT}"),
            ];
            assert_eq!(flows(&audit["pairs"]), wanted.into(), "{text}");
            for pair in audit["pairs"].as_array().unwrap() {
                assert_eq!(pair["forwarded"], true);
            }
            // The outside may be called, but may not call.
            assert_eq!(audit["break_under_strict"], 1, "{text}");
        },
    );
}

/// What docs/policy.md shows of `audit` is printed by a real mesh of the page's own files, and the flow log that its
/// commands read is what a daemon told. `IDENTUN_UPDATE_DOCS=1` saves it again; then tests/docs.rs writes the page.
#[test]
fn the_policy_guide_shows_what_audit_prints_in_its_own_mesh() {
    in_namespaces(
        "audit::the_policy_guide_shows_what_audit_prints_in_its_own_mesh",
        |rig| {
            let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
            let page = fs::read_to_string(docs.join("policy.md")).unwrap();
            for name in ["registry", "mesh", "debug"] {
                let name = format!("policies.d/{name}.yaml");
                let text = block(&page, &format!("```yaml\n# {name}\n"), "```");
                rig.write(&name, &format!("# {name}\n{text}"));
            }
            // The page lets `a` call from the address of this rig's client, `b` is its server, `old` has no daemon.
            configure(&rig, "client", "front", "a");
            configure(&rig, "server", "shop", "b");
            let (_b, _a) = (rig.start("server"), rig.start("client"));
            let _web = [80, 9_090].map(|port| Echo::start("server", port));
            tcp_echo("client", (SERVER_4, 80), PATIENCE).unwrap();
            tcp_echo("naked", (SERVER_4, 80), PATIENCE).unwrap();
            for _ in 0..2 {
                tcp_echo("naked", (SERVER_4, 9_090), PATIENCE).unwrap();
            }

            let socket = rig.path("server/admin.sock");
            let url = "http://localhost/v1/flowlog";
            let log = rig.on("server", &["curl", "-sf", "--unix-socket", &socket, url]);
            let log = log.replace(&rig.path(""), "");
            let saved = docs.join("flows.json");
            if env::var_os("IDENTUN_UPDATE_DOCS").is_some() {
                fs::write(saved, format!("{:#}\n", json(&log))).unwrap();
                return;
            }
            let saved = fs::read_to_string(saved).unwrap();
            assert_eq!(timeless(&log), timeless(&saved), "{log}");

            let (code, text, error) = ask(&rig, "server", &["audit"]);
            assert_eq!(code, 1, "{text}{error}");
            let shown = block(
                &page,
                "$ identun audit --flows flows.json\n",
                "(exit code 1)",
            );
            assert_eq!(text.lines().next(), shown.lines().next());
            let text = text.replace(&rig.path(""), "");
            assert_eq!(words(&text), words(shown), "{text}");
        },
    );
}

/// What stands between `begin` and `end`.
fn block<'a>(page: &'a str, begin: &str, end: &str) -> &'a str {
    let (_, rest) = page.split_once(begin).unwrap_or_else(|| panic!("{begin}"));
    rest.split_once(end).unwrap().0
}

/// Settings of a host with one identity, over the page's files.
fn configure(rig: &Rig, host: &str, namespace: &str, account: &str) {
    let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
    let (ca, out) = (rig.path("ca"), rig.path(host));
    rig.identun(host, &["ca", "issue", &id, "--dir", &ca, "--out", &out]);
    let policies = rig.path("policies.d");
    let settings = format!(
        "policies: [{policies}]\nidentities:\n- {{ certificate: {account}.pem, key: {account}.key }}\n\
         trust_bundles: {{ cluster.local: bundle.pem }}\nstate_dir: {out}/state\n\
         admin_socket: {out}/admin.sock\nmetrics: null\n"
    );
    rig.write(&format!("{host}/daemon.yaml"), &settings);
}

/// A flow log without the moments of its flows, which also order it.
fn timeless(log: &str) -> (Value, BTreeSet<String>) {
    let mut log = json(log);
    log["now_ms"] = Value::Null;
    let mut flows = BTreeSet::new();
    for mut flow in log["flows"].take().as_array().unwrap().clone() {
        flow["first_seen_ms"] = Value::Null;
        flow["last_seen_ms"] = Value::Null;
        flows.insert(flow.to_string());
    }
    (log, flows)
}

/// The words of a report, without ages and without the order that ages make.
fn words(text: &str) -> Vec<&str> {
    let is_age = |word: &str| {
        let number = word.strip_suffix('s').unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut words: Vec<_> = text
        .split_whitespace()
        .filter(|word| !is_age(word))
        .collect();
    words.sort_unstable();
    words
}
