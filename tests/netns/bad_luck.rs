//! Bad configuration and bad luck at the start: one clear error, the promised exit code, nothing changed on the host.

use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::PermissionsExt,
    process::Output,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use identun::identity::Ca;

use crate::{
    mesh::STRICT,
    rig::{Rig, identun, in_namespace, in_namespaces},
};

/// Starts a daemon that cannot run: the exit code, words of the error, and a host that stays as it was.
#[track_caller]
fn refuses(rig: &Rig, prefix: &[&str], code: i32, words: &[&str]) {
    let before = rig.host_state("client");
    let program = identun();
    let settings = rig.settings("client");
    let arguments = [prefix, &[program.as_str(), "daemon", "--config", &settings]].concat();
    let Output { status, stderr, .. } = rig.try_on("client", &arguments);
    let told = String::from_utf8(stderr).unwrap();
    println!("{told}");
    assert_eq!(status.code(), Some(code), "{told}");
    for word in words {
        assert!(told.contains(word), "no `{word}` in: {told}");
    }
    assert_eq!(rig.host_state("client"), before, "something was changed");
}

#[test]
fn a_daemon_that_cannot_run_says_why_and_changes_nothing() {
    in_namespaces(
        "bad_luck::a_daemon_that_cannot_run_says_why_and_changes_nothing",
        |rig| {
            rig.standard(STRICT);
            let policy = rig.write(
                "policies/policy.yaml",
                &STRICT.replace("mode: STRICT", "mode: STRIKT"),
            );
            refuses(&rig, &[], 6, &["STRIKT", &format!("{policy}:8:13")]);
            rig.write("policies/policy.yaml", STRICT);

            // No right to administer the network.
            refuses(
                &rig,
                &[
                    "setpriv",
                    "--bounding-set=-net_admin",
                    "--inh-caps=-net_admin",
                ],
                4,
                &["CAP_NET_ADMIN"],
            );

            let taken = in_namespace("client", || UdpSocket::bind("[::]:15008").unwrap());
            refuses(&rig, &[], 1, &["15008"]);
            drop(taken);

            rig.on(
                "client",
                &["ip", "tuntap", "add", "dev", "identun0", "mode", "tun"],
            );
            refuses(&rig, &[], 1, &["identun0"]);
            rig.on(
                "client",
                &["ip", "tuntap", "del", "dev", "identun0", "mode", "tun"],
            );

            // The twin: with all that mended it starts.
            drop(rig.start("client"));
        },
    );
}

#[test]
fn a_daemon_without_nft_or_without_good_keys_says_which() {
    in_namespaces(
        "bad_luck::a_daemon_without_nft_or_without_good_keys_says_which",
        |rig| {
            rig.standard(STRICT);
            // Programs on a host have mounts of their own: only this daemon finds something else in nft's place.
            let hide =
                "for at in $(which -a nft); do mount --bind /dev/null \"$at\"; done; exec \"$@\"";
            refuses(
                &rig,
                &["sh", "-c", hide, "sh"],
                4,
                &["nft is not installed"],
            );

            let (certificate, key) = (
                rig.path("client/client/client.pem"),
                rig.path("client/client/client.key"),
            );
            let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
            mode(0o640);
            refuses(&rig, &[], 6, &[&key, "0640"]);
            fs::remove_file(&key).unwrap();
            refuses(&rig, &[], 6, &[&key]);
            fs::create_dir(&key).unwrap();
            refuses(&rig, &[], 6, &[&key]);
            fs::remove_dir(&key).unwrap();
            fs::write(&key, "no key").unwrap();
            mode(0o600);
            refuses(&rig, &[], 6, &[&key]);

            let id = "spiffe://cluster.local/ns/default/sa/client"
                .parse()
                .unwrap();
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs();
            let year = Duration::from_secs(365 * 24 * 3_600);
            let ca = Ca::new(&"cluster.local".parse().unwrap(), now - 7_200, year).unwrap();
            fs::write(
                rig.path("client/client/bundle.pem"),
                ca.to_pem().certificate,
            )
            .unwrap();
            let hour = Duration::from_secs(3_600);
            for (issued, word) in [(now - 7_200, "expired"), (now + 7_200, "not valid")] {
                let pem = ca.issue(&id, issued, hour).unwrap();
                fs::write(&certificate, pem.certificate).unwrap();
                fs::write(&key, pem.key).unwrap();
                refuses(&rig, &[], 6, &[&certificate, word, "20"]);
            }
            let pem = ca.issue(&id, now, hour).unwrap();
            fs::write(&certificate, pem.certificate).unwrap();
            fs::write(&key, pem.key).unwrap();
            drop(rig.start("client"));
        },
    );
}

#[test]
fn a_failed_reload_changes_nothing_and_shows() {
    in_namespaces(
        "bad_luck::a_failed_reload_changes_nothing_and_shows",
        |rig| {
            rig.standard(STRICT);
            let client = rig.start("client");
            let before = rig.host_state("client");
            let generation = rig.status("client").unwrap()["generation"].clone();
            let reload = || {
                let pid =
                    rustix::process::Pid::from_raw(i32::try_from(client.pid()).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
            };
            rig.write("policies/policy.yaml", "kind: MeshPolicy\nnonsense: [");
            reload();
            crate::rig::wait_for("the error to show", || {
                rig.status("client").unwrap()["config_valid"] == false
            });
            assert_eq!(rig.host_state("client"), before);
            assert_eq!(rig.status("client").unwrap()["generation"], generation);
            // The twin: a good one is taken.
            rig.write("policies/policy.yaml", &crate::mesh::permissive());
            reload();
            crate::rig::wait_for("the reload", || {
                rig.status("client").unwrap()["config_valid"] == true
            });
            assert_ne!(rig.host_state("client"), before);
        },
    );
}
