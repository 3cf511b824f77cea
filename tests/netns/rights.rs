//! The daemon as its own user with one capability, as the unit file starts it, and what that is good for.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, process::Command};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    capture::{Capture, MARKER},
    mesh::{CLIENT_4, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces},
    traffic::{Blaster, Echo, control, tcp_echo},
};

/// No account has this number.
const USER: &str = "7731";
/// What config/systemd/identun.service says of rights, in setpriv's words.
const AS_ITS_USER: [&str; 8] = [
    "setpriv",
    "--reuid=7731",
    "--regid=7731",
    "--clear-groups",
    "--inh-caps=-all,+net_admin",
    "--ambient-caps=-all,+net_admin",
    "--bounding-set=-all,+net_admin",
    "--no-new-privs",
];
/// The bypass mark of the usual settings, and the tunnels' port.
const BYPASS: u32 = 0x2000_0000;
const TUNNEL_PORT: u16 = 15_008;

/// Everything below the test's folder belongs to the daemon's user, as an installation gives it its files.
fn give_files(rig: &Rig) {
    rig.on("client", &["chown", "-R", "7731:7731", &rig.path("")]);
    let mode = fs::metadata("/dev/net/tun").unwrap().permissions().mode();
    if mode & 0o006 != 0o006 {
        give_device();
    }
}

/// udev lets everybody open the TUN driver's device; on a machine without udev this test's mounts do.
fn give_device() {
    let script = "mknod -m 666 /run/tun c 10 200; mount --bind /run/tun /dev/net/tun";
    let made = Command::new("sh").args(["-ec", script]).status();
    assert!(made.unwrap().success(), "cannot make a device for all");
}

/// The process is its user's and has one capability, with no way to more.
#[track_caller]
fn assert_its_user(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(field("Uid:"), [USER; 4].join(" "));
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000001000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
}

#[test]
fn one_capability_is_enough_for_a_whole_life() {
    in_namespaces("rights::one_capability_is_enough_for_a_whole_life", |rig| {
        rig.standard(STRICT);
        give_files(&rig);
        let _server = rig.start_by("server", &AS_ITS_USER);
        let client = rig.start_by("client", &AS_ITS_USER);
        assert_its_user(client.pid());

        let _echo = Echo::start("server", PORT);
        let capture = Capture::start();
        let blaster = Blaster::start("client", [SERVER_4, SERVER_6], PORT);
        for to in [SERVER_4, SERVER_6] {
            tcp_echo("client", (to, PORT), PATIENCE).unwrap();
        }
        let generation = || {
            rig.status("client").unwrap()["generation"]
                .as_u64()
                .unwrap()
        };
        let before = generation();
        client.reload();
        crate::rig::wait_for("the reload", || generation() > before);
        client.kill_9();
        blaster.offer(1_000);
        let client = rig.start_by("client", &AS_ITS_USER);
        for to in [SERVER_4, SERVER_6] {
            tcp_echo("client", (to, PORT), PATIENCE).unwrap();
        }
        assert_eq!(rig.status("client").unwrap()["healthy"], true);
        control("client");
        blaster.stop();
        capture.stop().assert_no_plaintext();
        assert_eq!(
            rig.log("client").matches("WARN").count(),
            0,
            "{}",
            rig.log("client")
        );
        client.terminate();
        rig.identun("client", &["down", "--config", &rig.settings("client")]);
        assert!(!rig.host_state("client").contains("identun"));
    });
}

/// Sends datagrams that look like the daemon's own, from a process that is root but not the daemon's user. Returns how many
/// the kernel took.
fn wear_the_mark() -> usize {
    in_namespace("client", || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
        socket.set_mark(BYPASS).unwrap();
        socket
            .bind(&SocketAddr::new(CLIENT_4.parse().unwrap(), 0).into())
            .unwrap();
        let mut datagram = Vec::new();
        datagram.extend(TUNNEL_PORT.to_be_bytes());
        datagram.extend(PORT.to_be_bytes());
        datagram.extend((8 + MARKER.len() as u16).to_be_bytes());
        datagram.extend([0; 2]);
        datagram.extend(MARKER);
        let to = SocketAddr::new(SERVER_4.parse().unwrap(), 0).into();
        (0..50)
            .filter(|_| socket.send_to(&datagram, &to).is_ok())
            .count()
    })
}

#[test]
fn nobody_but_the_daemon_s_user_wears_the_bypass_mark() {
    in_namespaces(
        "rights::nobody_but_the_daemon_s_user_wears_the_bypass_mark",
        |rig| {
            rig.standard(STRICT);
            let _server = rig.start("server");
            let echo = Echo::start("server", PORT);
            // The contrast: a daemon that runs as root shares its user with every process of root. The capture takes
            // whatever has the tunnels' port for a tunnel packet, so it is the marker in one that tells.
            let client = rig.start("client");
            let capture = Capture::start();
            assert_eq!(wear_the_mark(), 50);
            control("client");
            assert!(capture.stop().marker_in_tunnel);
            client.terminate();
            rig.identun("client", &["down", "--config", &rig.settings("client")]);

            give_files(&rig);
            let _client = rig.start_by("client", &AS_ITS_USER);
            let (capture, before) = (Capture::start(), echo.datagrams());
            wear_the_mark();
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
            control("client");
            capture.stop().assert_no_plaintext();
            // they went into the tunnel, as everything that this host sends there
            println!("{} arrived by the tunnel", echo.datagrams() - before);
        },
    );
}

#[test]
fn a_daemon_that_root_starts_goes_on_as_the_user_of_its_settings_through_upgrade_and_restart() {
    in_namespaces(
        "rights::a_daemon_that_root_starts_goes_on_as_the_user_of_its_settings_through_upgrade_and_restart",
        |rig| {
            rig.standard(STRICT);
            for host in ["client", "server"] {
                rig.configure(host, &[host], "user: 7731");
            }
            give_files(&rig);
            let (_server, client) = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let talk = || {
                for to in [SERVER_4, SERVER_6] {
                    tcp_echo("client", (to, PORT), PATIENCE).unwrap();
                }
            };
            assert_its_user(client.pid());
            assert!(rig.host_state("client").contains("skuid 7731"));
            talk();

            // root looks at what the daemon reads, and sees what it installs
            let settings = rig.settings("client");
            rig.identun("client", &["check", "--config", &settings]);
            let rules = rig.identun("client", &["rules", "--print", "--config", &settings]);
            assert!(rules.contains("skuid 7731"), "{rules}");

            let socket = rig.path("client/admin.sock");
            rig.identun("client", &["upgrade", "--socket", &socket]);
            assert_its_user(client.pid());
            talk();
            client.kill_9();
            let client = rig.start("client");
            assert_its_user(client.pid());
            talk();
            assert_eq!(rig.status("client").unwrap()["healthy"], true);

            // the folder that it did not have was made for it
            let owner = rig.on(
                "client",
                &["stat", "-c", "%u:%g %a", &rig.path("client/state")],
            );
            assert_eq!(owner.trim(), "7731:7731 700");
            let (capture, before) = (Capture::start(), echo.datagrams());
            wear_the_mark();
            talk();
            control("client");
            capture.stop().assert_no_plaintext();
            println!("{} arrived by the tunnel", echo.datagrams() - before);

            // `down` leaves nothing that the next start of the daemon could not use
            client.terminate();
            rig.identun("client", &["down", "--config", &settings]);
            assert!(!rig.host_state("client").contains("identun"));
            rig.on("client", &["rm", &rig.path("client/state/lock")]);
            rig.identun("client", &["down", "--config", &settings]);
            // and neither does the guard
            rig.identun("client", &["guard", "--config", &settings]);
            assert!(rig.host_state("client").contains("skuid 7731"));
            let client = rig.start("client");
            assert_its_user(client.pid());
            talk();
            assert!(!rig.log("client").contains("WARN"), "{}", rig.log("client"));
        },
    );
}
