//! What others have damaged while a daemon is dead, its start mends; while it runs, its upkeep does.

use crate::{
    capture::Capture,
    mesh::{PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespaces, wait_for},
    traffic::{Echo, control, tcp_echo},
};

/// Every piece that a daemon installs, taken away by an administrator or another program.
const DAMAGES: [&str; 13] = [
    "true",
    "ip link del identun0",
    "ip link set identun0 down",
    "ip addr flush dev identun0",
    "ip rule del pref 300; ip -6 rule del pref 300",
    "ip rule del pref 301; ip -6 rule del pref 301",
    "ip route flush table 7700; ip -6 route flush table 7700",
    "nft flush table inet identun",
    "nft delete table inet identun",
    "nft flush ruleset",
    "nft flush set inet identun must4; nft flush set inet identun strict_all6",
    "nft insert rule inet identun out accept; nft insert rule inet identun guard accept",
    "nft delete table inet identun; ip link del identun0; ip rule del pref 300; ip -6 rule del pref 301",
];

fn shell(rig: &Rig, command: &str) {
    rig.on("client", &["sh", "-ec", command]);
}

/// Everything that stands, without the number that the kernel gives a device.
fn state(rig: &Rig) -> String {
    let state = rig.host_state("client");
    let counted = |line: &str| {
        // counters, elements with a time limit and the device's number differ from run to run
        let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
        !line.contains("packets ") && !line.contains("expires ")
    };
    let lines = state.lines().filter(|line| counted(line));
    let lines = lines.map(|line| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':'));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_start_mends_whatever_was_damaged_while_the_daemon_was_dead() {
    in_namespaces(
        "repair::a_start_mends_whatever_was_damaged_while_the_daemon_was_dead",
        |rig| {
            rig.standard(STRICT);
            let _server = rig.start("server");
            let _echo = Echo::start("server", PORT);
            let mut client = rig.start("client");
            let good = state(&rig);
            for damage in DAMAGES {
                println!("{damage}");
                client.kill_9();
                shell(&rig, damage);
                client = rig.start("client");
                assert_eq!(state(&rig), good, "{damage}");
                // with the table gone nothing held plaintext back; from the start on it does
                let capture = Capture::start();
                for to in [SERVER_4, SERVER_6] {
                    tcp_echo("client", (to, PORT), PATIENCE).unwrap();
                }
                control("client");
                capture.stop().assert_no_plaintext();
            }
        },
    );
}

#[test]
fn down_removes_whatever_is_left() {
    in_namespaces("repair::down_removes_whatever_is_left", |rig| {
        rig.standard(STRICT);
        let before = state(&rig);
        for damage in DAMAGES {
            println!("{damage}");
            rig.start("client").kill_9();
            shell(&rig, damage);
            for _ in 0..2 {
                rig.identun("client", &["down", "--config", &rig.settings("client")]);
                assert_eq!(state(&rig), before, "{damage}");
            }
        }
    });
}

#[test]
fn a_running_daemon_installs_again_what_others_take_away_or_shows_that_it_cannot() {
    in_namespaces(
        "repair::a_running_daemon_installs_again_what_others_take_away_or_shows_that_it_cannot",
        |rig| {
            rig.standard(STRICT);
            // as on a kernel that knows no table with an owner
            rig.configure("client", &["client"], "own_nft_table: false\n");
            let _server = rig.start("server");
            let _echo = Echo::start("server", PORT);
            let _client = rig.start("client");
            let good = state(&rig);
            for damage in [
                "nft flush ruleset",
                "nft delete table inet identun",
                "ip rule del pref 300; ip -6 rule del pref 301; ip route flush table 7700",
                "ip link set identun0 down",
            ] {
                println!("{damage}");
                let repairs = rig.log("client").matches("installed again").count();
                shell(&rig, damage);
                wait_for("the repair", || {
                    rig.log("client").matches("installed again").count() > repairs
                        && state(&rig) == good
                });
                tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
            }
            assert_eq!(rig.status("client").unwrap()["healthy"], true);
            // what stands in the place of ours is not ours to remove
            shell(
                &rig,
                "ip rule del pref 300; ip rule add pref 300 from 10.1.1.1 lookup 5",
            );
            wait_for("the finding", || {
                let status = rig.status("client").unwrap();
                status["healthy"] == false
                    && status["health"].to_string().contains("ipv4 rule 300")
                    && status["health"]
                        .to_string()
                        .contains("foreign routing rule")
            });
            shell(&rig, "ip rule del pref 300");
            wait_for("health", || {
                rig.status("client").unwrap()["healthy"] == true
            });
            assert_eq!(state(&rig), good);
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            }
        },
    );
}

#[test]
fn no_other_program_takes_the_table_away_and_nothing_leaks_while_they_try() {
    in_namespaces(
        "repair::no_other_program_takes_the_table_away_and_nothing_leaks_while_they_try",
        |rig| {
            rig.standard(STRICT);
            let _server = rig.start("server");
            let _echo = Echo::start("server", PORT);
            let mut client = rig.start("client");
            let good = state(&rig);
            let capture = Capture::start();
            for round in 0..10 {
                for host in ["client", "server"] {
                    rig.on(
                        host,
                        &[
                            "sh",
                            "-ec",
                            "nft flush ruleset; ! nft delete table inet identun; ! nft flush table inet identun; \
                             ! nft insert rule inet identun guard accept; ! nft flush set inet identun must4",
                        ],
                    );
                }
                for to in [SERVER_4, SERVER_6] {
                    tcp_echo("client", (to, PORT), PATIENCE).unwrap();
                }
                // a flush while it restarts finds an orphan: that is mended, and the next owner is as safe
                if round == 5 {
                    client.kill_9();
                    client = rig.start("client");
                }
                assert_eq!(state(&rig), good, "{round}");
            }
            control("client");
            capture.stop().assert_no_plaintext();
            assert!(!rig.log("client").contains("installed again"));
            drop(client);
        },
    );
}
