//! Policy that is tightened while plaintext connections live (steering.md L11): they end at once, on both ends, without
//! another byte in plaintext; what may stay plaintext and what is in a tunnel notices nothing.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::{
    capture::{Capture, MARKER},
    life::{Who::Both, connect, exchange},
    mesh::{
        CLIENT_4, NAKED_4, PORT, SERVER_4, SERVER_6, STRICT, permissive, registry, service,
        workload,
    },
    reload::generation,
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::control,
};

/// How long an application may wait for its error.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Both ends of a connection between two hosts, in the hands of the test.
struct Connection {
    ends: (TcpStream, TcpStream),
}

impl Connection {
    fn open(from: &str, (host, address, port): (&str, &str, u16)) -> Self {
        let to = SocketAddr::new(address.parse().unwrap(), port);
        let listener = in_namespace(host, || TcpListener::bind(to).unwrap());
        let opener = in_namespace(from, || TcpStream::connect_timeout(&to, PATIENCE).unwrap());
        let ends = (opener, listener.accept().unwrap().0);
        for end in [&ends.0, &ends.1] {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            end.set_nodelay(true).unwrap();
        }
        let mut connection = Self { ends };
        connection.works();
        connection
    }

    fn works(&mut self) {
        exchange(&mut self.ends, Both);
    }

    /// Waits for both ends to see an error; tells which, the opener's first.
    fn ended(mut self) -> [ErrorKind; 2] {
        let started = Instant::now();
        let errors = [&mut self.ends.0, &mut self.ends.1].map(|end| {
            end.read(&mut [0; 64])
                .expect_err("no end of the connection, but an error")
                .kind()
        });
        let waited = started.elapsed();
        assert!(waited < AT_ONCE, "the error came after {waited:?}");
        errors
    }
}

#[test]
fn strict_ends_plaintext_connections_at_once_and_no_others() {
    in_namespaces(
        "tighten::strict_ends_plaintext_connections_at_once_and_no_others",
        |rig| {
            rig.standard(&permissive());
            let daemons = (rig.start("server"), rig.start("client"));
            let forbidden = [SERVER_4, SERVER_6]
                .map(|address| Connection::open("naked", ("server", address, PORT)));
            let mut exempt = Connection::open("naked", ("server", SERVER_4, 22));
            let mut own = Connection::open("server", ("naked", NAKED_4, 80));
            let mut tunnel = connect(SERVER_4);
            exchange(&mut tunnel, Both);
            let handshakes = || rig.status("client").unwrap()["tunnels"][0]["handshakes"].clone();
            let before = handshakes();

            rig.write("policies/policy.yaml", STRICT);
            for host in ["server", "client"] {
                wait_for("STRICT", || generation(&rig, host) == 2);
            }
            for connection in forbidden {
                let errors = connection.ended();
                assert_eq!(
                    errors,
                    [ErrorKind::ConnectionReset, ErrorKind::ConnectionAborted]
                );
            }
            for connection in [&mut exempt, &mut own] {
                connection.works();
            }
            exchange(&mut tunnel, Both);
            assert_eq!(handshakes(), before);
            let log = rig.log("server");
            assert!(
                log.contains("ended plaintext flows that policy no longer allows")
                    && log.contains("connections=2"),
                "{log}"
            );
            drop(daemons);
        },
    );
}

/// Clients speak plaintext.
fn plaintext() -> String {
    permissive().replace("ISTIO_MUTUAL", "DISABLE")
}

/// Gives each of the two hosts a policy of its own.
fn separate(rig: &Rig, registry: &str) {
    for host in ["client", "server"] {
        let settings = std::fs::read_to_string(rig.settings(host)).unwrap();
        let (shared, own) = (rig.path("policies"), rig.path(&format!("{host}/policies")));
        rig.write(&format!("{host}/policies/policy.yaml"), &plaintext());
        rig.write(&format!("{host}/policies/registry.yaml"), registry);
        rig.write(
            &format!("{host}/daemon.yaml"),
            &settings.replace(&shared, &own),
        );
    }
}

/// Tightens `first` and then the other, under connections that write as fast as they can.
fn tighten(rig: &Rig, policy: &str, order: [&'static str; 2]) {
    rig.standard(&plaintext());
    separate(rig, &registry());
    let daemons = (rig.start("server"), rig.start("client"));
    let quiet =
        [SERVER_4, SERVER_6].map(|address| Connection::open("client", ("server", address, PORT)));
    let busy =
        [SERVER_4, SERVER_6].map(|address| Connection::open("client", ("server", address, PORT)));
    let writers: Vec<_> = busy
        .into_iter()
        .flat_map(|connection| [connection.ends.0, connection.ends.1])
        .map(|end| thread::spawn(move || write_until_error(end)))
        .collect();
    let mut other = Connection::open("naked", ("client", CLIENT_4, 81));
    let strict = |host: &str| {
        rig.write(&format!("{host}/policies/policy.yaml"), policy);
        wait_for("the tighter policy", || generation(rig, host) == 2);
    };
    strict(order[0]);
    let started = Instant::now();
    for connection in quiet {
        connection.ended();
    }
    for writer in writers {
        writer.join().unwrap();
    }
    let waited = started.elapsed();
    assert!(waited < PATIENCE / 2, "a writer learnt it after {waited:?}");
    strict(order[1]);
    let capture = Capture::start();
    for address in [SERVER_4, SERVER_6] {
        Connection::open("client", ("server", address, PORT)).works();
    }
    control("client");
    capture.stop().assert_no_plaintext_but_resets();
    if policy != STRICT {
        other.works();
    }
    drop(daemons);
}

fn write_until_error(mut end: TcpStream) {
    let mut heard = end.try_clone().unwrap();
    let reader =
        thread::spawn(move || while heard.read(&mut [0; 1 << 16]).is_ok_and(|len| len > 0) {});
    while end.write_all(&MARKER.repeat(100)).is_ok() {}
    reader.join().unwrap();
}

#[test]
fn a_client_that_must_encrypt_from_here_on_ends_its_plaintext_connections() {
    in_namespaces(
        "tighten::a_client_that_must_encrypt_from_here_on_ends_its_plaintext_connections",
        |rig| tighten(&rig, &permissive(), ["client", "server"]),
    );
}

#[test]
fn strict_everywhere_client_first() {
    in_namespaces("tighten::strict_everywhere_client_first", |rig| {
        tighten(&rig, STRICT, ["client", "server"]);
    });
}

#[test]
fn strict_everywhere_server_first() {
    in_namespaces("tighten::strict_everywhere_server_first", |rig| {
        tighten(&rig, STRICT, ["server", "client"]);
    });
}

#[test]
fn a_forwarded_workload_is_told_by_a_reset_when_it_next_sends() {
    in_namespaces(
        "tighten::a_forwarded_workload_is_told_by_a_reset_when_it_next_sends",
        |rig| {
            let behind = "198.18.12.2";
            rig.workload("server");
            let registry = [
                workload("client-4", CLIENT_4, "client", None),
                workload("inner-4", behind, "inner", Some(SERVER_4)),
                service("inner", &[PORT]),
            ];
            rig.configure("client", &["client"], "");
            rig.configure("server", &["inner"], "workload_interfaces: [workload]");
            separate(&rig, &registry.join("---\n"));
            let daemons = (rig.start("server"), rig.start("client"));
            let inner = ("server-workload", behind, PORT);
            let mut ends = Connection::open("client", inner).ends;
            let capture = Capture::start();
            for (host, generation_after) in [("server", 2), ("client", 2)] {
                rig.write(&format!("{host}/policies/policy.yaml"), STRICT);
                wait_for("STRICT", || generation(&rig, host) == generation_after);
                if host == "server" {
                    let started = Instant::now();
                    ends.1.write_all(MARKER).unwrap();
                    let error = ends.1.read(&mut [0; 64]).unwrap_err().kind();
                    assert_eq!(error, ErrorKind::ConnectionReset);
                    assert!(started.elapsed() < AT_ONCE, "{:?}", started.elapsed());
                }
            }
            let dropped = rig.status("server").unwrap()["drops"]["began_in_plaintext"].clone();
            assert!(dropped.as_u64() > Some(0), "{dropped}");
            assert_eq!(
                ends.0.read(&mut [0; 64]).unwrap_err().kind(),
                ErrorKind::ConnectionAborted
            );
            Connection::open("client", inner).works();
            control("client");
            capture.stop().assert_no_plaintext_but_resets();
            drop(daemons);
        },
    );
}
