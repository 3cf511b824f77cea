//! Nothing leaks between the boot of a host and the start of its daemon: the guard.

use std::fs;

use crate::{
    capture::Capture,
    mesh::{PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespaces},
    traffic::{Blaster, Echo, control, tcp_echo},
};

/// Takes away what no boot leaves: everything that a daemon put into the kernel.
fn reboot(rig: &Rig, host: &str) {
    rig.on(
        host,
        &[
            "sh",
            "-ec",
            "nft delete table inet identun; ip link del identun0; conntrack -F 2>/dev/null
             for f in -4 -6; do
               ip $f rule del pref 300; ip $f rule del pref 301; ip $f route flush table 7700
             done",
        ],
    );
}

fn guard(rig: &Rig, host: &str) -> String {
    rig.identun(host, &["guard", "--config", &rig.settings(host)])
}

#[test]
fn nothing_leaks_between_boot_and_start_while_the_guard_stands() {
    in_namespaces(
        "boot::nothing_leaks_between_boot_and_start_while_the_guard_stands",
        |rig| {
            rig.standard(STRICT);
            let server = rig.start("server");
            let echo = Echo::start("server", PORT);
            rig.start("client").kill_9();
            reboot(&rig, "client");
            let nothing = rig.host_state("client");

            // without the guard the same capture sees the same packets
            let capture = Capture::start();
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            blaster.offer(500);
            blaster.stop();
            let unguarded = capture.stop();
            assert!(unguarded.plaintext > 100, "{}", unguarded.plaintext);

            let told = guard(&rig, "client");
            for line in [
                "added nft table inet identun\n",
                "added ipv4 route unreachable default in table 7700\n",
                "added ipv6 rule 300: fwmark 0x10000000/0x30000000 lookup 7700\n",
                "plaintext is held back until the daemon runs\n",
            ] {
                assert!(told.contains(line), "{line:?} is not in {told}");
            }
            let (before, capture) = (echo.datagrams(), Capture::start());
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            blaster.offer(5_000);
            // again, as a unit that is restarted
            assert!(guard(&rig, "client").contains("the table of an earlier run stands and stays"));
            blaster.offer(1_000);
            assert_eq!(echo.datagrams(), before);
            let client = rig.start("client");
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            }
            blaster.offer(1_000);
            control("client");
            println!(
                "{} must packets offered from the guard on",
                blaster.offered()
            );
            blaster.stop();
            capture.stop().assert_no_plaintext();
            assert!(echo.datagrams() > before);

            // while a daemon runs there is nothing to guard
            assert!(guard(&rig, "client").contains("a daemon runs"));
            client.terminate();
            rig.identun("client", &["down", "--config", &rig.settings("client")]);
            assert_eq!(rig.host_state("client"), nothing);
            drop(server);
        },
    );
}

#[test]
fn a_strict_server_is_closed_from_the_guard_on() {
    in_namespaces("boot::a_strict_server_is_closed_from_the_guard_on", |rig| {
        rig.standard(STRICT);
        rig.start("server").kill_9();
        reboot(&rig, "server");
        let echo = Echo::start("server", PORT);
        // the client has no daemon: what it sends is plaintext
        tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
        guard(&rig, "server");
        let before = echo.connections();
        for to in [SERVER_4, SERVER_6] {
            tcp_echo("client", (to, PORT), PATIENCE).unwrap_err();
        }
        assert_eq!(echo.connections(), before);
    });
}

#[test]
fn files_that_do_not_load_at_boot_do_not_open_the_host() {
    in_namespaces(
        "boot::files_that_do_not_load_at_boot_do_not_open_the_host",
        |rig| {
            rig.standard(STRICT);
            // no daemon ran here yet: the files as they are
            assert!(guard(&rig, "client").contains("no daemon ran here yet"));
            rig.identun("client", &["down", "--config", &rig.settings("client")]);

            rig.start("client").kill_9();
            reboot(&rig, "client");
            rig.write("policies/policy.yaml", "kind: Nonsense\n");
            let capture = Capture::start();
            let told = guard(&rig, "client");
            assert!(told.contains("added nft table inet identun"), "{told}");
            let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
            blaster.offer(500);
            control("client");
            blaster.stop();
            let seen = capture.stop();
            assert!(seen.plaintext == 0 && seen.control > 0, "{seen:?}");

            // neither the files nor what a daemon left: said, and nothing is there
            reboot_guard(&rig);
            let kept = rig.path("client/state/guard.nft");
            fs::write(&kept, "# something else\n").unwrap();
            let output = rig.try_on(
                "client",
                &[
                    &crate::rig::identun(),
                    "guard",
                    "--config",
                    &rig.settings("client"),
                ],
            );
            assert_eq!(output.status.code(), Some(6));
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(said.contains("plaintext is not held back"), "{said}");
            assert!(said.contains("policy.yaml:1:"), "{said}");
        },
    );
}

/// As [`reboot`] where only a guard was.
fn reboot_guard(rig: &Rig) {
    rig.identun("client", &["down", "--config", &rig.settings("client")]);
}

/// What a daemon changes, without counters and the words for the owner of a table, which nft's language does not have. A
/// device has another number the next time, and no route of its own for multicast while nobody reads it.
fn lasting(rig: &Rig) -> String {
    let text = rig.host_state("client");
    let lines = text.lines().filter(|line| {
        let left_out = ["packets ", "flags owner", "multicast ff00::/8 dev identun0"];
        !line.is_empty() && !left_out.iter().any(|part| line.contains(part))
    });
    let number = |c: char| c.is_ascii_digit() || c == ':';
    lines
        .map(|line| line.split(" # ").next().unwrap_or_default())
        .map(|line| format!("{}\n", line.trim_start_matches(number)))
        .collect()
}

#[test]
fn the_printed_rules_are_what_a_daemon_installs() {
    in_namespaces(
        "boot::the_printed_rules_are_what_a_daemon_installs",
        |rig| {
            rig.standard(STRICT);
            let daemon = rig.start("client");
            let settings = rig.settings("client");
            let script = rig.identun("client", &["rules", "--print", "--config", &settings]);
            let installed = lasting(&rig);
            daemon.terminate();
            rig.identun("client", &["down", "--config", &settings]);
            let device = "ip tuntap add dev identun0 mode tun multi_queue vnet_hdr";
            rig.on("client", &["sh", "-c", &format!("{device}\n{script}")]);
            let by_hand = lasting(&rig);
            let only_in = |one: &str, other: &str| -> Vec<String> {
                let lines = one
                    .lines()
                    .filter(|line| !other.lines().any(|same| same == *line));
                lines.map(str::to_owned).collect()
            };
            assert_eq!(only_in(&installed, &by_hand), Vec::<String>::new());
            assert_eq!(only_in(&by_hand, &installed), Vec::<String>::new());
            assert!(installed == by_hand, "the order differs");
        },
    );
}
