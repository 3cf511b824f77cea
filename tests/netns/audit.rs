//! What was really spoken: the kernel tells the daemon of plaintext that it never sees.

use std::collections::BTreeSet;

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
