//! Policy that changes while daemons run: by a change of the files alone, all or nothing.

use std::{fs, io::ErrorKind};

use crate::{
    mesh::{PORT, SERVER_4, SERVER_6, STRICT, permissive},
    rig::{PATIENCE, Rig, in_namespaces, wait_for},
    traffic::{Echo, tcp_echo},
};

/// The number of the configuration that is in force.
pub(crate) fn generation(rig: &Rig, host: &str) -> u64 {
    rig.status(host).unwrap()["generation"].as_u64().unwrap()
}

/// The kernel's rules, without counters and without what the packet path has put into sets.
fn rules(rig: &Rig, host: &str) -> String {
    let table = rig.on(host, &["nft", "-s", "list", "table", "inet", "identun"]);
    let mut skipping = false;
    let mut lines = Vec::new();
    for line in table.lines() {
        let of_packets = ["own4", "own6", "tf4", "tf6"].map(|set| format!("\tset {set} {{"));
        skipping |= of_packets.iter().any(|set| set == line);
        if !skipping {
            lines.push(line);
        }
        skipping &= line != "\t}";
    }
    lines.join("\n")
}

#[test]
fn a_changed_file_is_enforced_without_a_signal() {
    in_namespaces(
        "reload::a_changed_file_is_enforced_without_a_signal",
        |rig| {
            rig.standard(&permissive());
            let _server = rig.start("server");
            let _echo = Echo::start("server", PORT);
            let all = [SERVER_4, SERVER_6];
            for to in all {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
            }
            // in place, as an editor does it, and as another file
            let policy = rig.path("policies/policy.yaml");
            rig.write("policies/policy.yaml", STRICT);
            wait_for("STRICT", || generation(&rig, "server") == 2);
            for to in all {
                let refused = tcp_echo("naked", (to, PORT), PATIENCE);
                assert_eq!(refused, Err(ErrorKind::ConnectionRefused));
            }
            fs::rename(rig.write("policies/.policy.swp", &permissive()), &policy).unwrap();
            wait_for("PERMISSIVE", || generation(&rig, "server") == 3);
            for to in all {
                tcp_echo("naked", (to, PORT), PATIENCE).unwrap();
            }
        },
    );
}

#[test]
fn an_invalid_file_changes_nothing_and_is_told_once() {
    in_namespaces(
        "reload::an_invalid_file_changes_nothing_and_is_told_once",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let mut ends = crate::life::connect(SERVER_4);
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            let rules = rules(&rig, "client");
            let refused = || {
                let status = rig.status("client").unwrap();
                (status["config_valid"] == false).then(|| status["config_error"].to_string())
            };
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTICT"));
            wait_for("the refusal", || refused().is_some());
            assert!(refused().unwrap().contains("SRTICT"), "{:?}", refused());
            assert_eq!(generation(&rig, "client"), 1);
            let status = rig.status("client").unwrap();
            assert_eq!(status["healthy"], false);
            // The same text again, and a file that has nothing to do with it: nothing is said twice.
            let told = || rig.log("client").matches("reload refused").count();
            assert_eq!(told(), 1);
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTICT"));
            rig.write("policies/notes.txt", "nobody's");
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            assert_eq!(self::rules(&rig, "client"), rules);
            rig.write("policies/policy.yaml", &STRICT.replace("STRICT", "SRTIKT"));
            wait_for("another refusal", || {
                refused().is_some_and(|why| why.contains("SRTIKT"))
            });
            assert_eq!(told(), 2);
            rig.write("policies/policy.yaml", STRICT);
            wait_for("the correction", || refused().is_none());
            crate::life::exchange(&mut ends, crate::life::Who::Both);
            drop(daemons);
        },
    );
}
