//! Policy that turns against tunnelled connections while they are idle: real kernels believe the resets at both ends.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    capture::MARKER,
    mesh::{BULK_PORT, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::Echo,
};

const DENY: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: not-on-8080, namespace: default }
spec:
  action: DENY
  rules:
  - from: [{ source: { principals: [\"cluster.local/ns/default/sa/client\"] } }]
    to: [{ operation: { ports: [\"8080\"] } }]
";

/// A connection of the client with one echo behind it.
fn connection(to: &str, port: u16) -> TcpStream {
    let to = SocketAddr::new(to.parse().unwrap(), port);
    let stream = in_namespace("client", || TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    echo(&mut stream).unwrap();
    stream
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(MARKER)?;
    let mut answer = [0; MARKER.len()];
    stream.read_exact(&mut answer)
}

/// Connections of a port that the host's kernel holds.
fn established(rig: &Rig, host: &str, port: u16) -> usize {
    let port = format!("( sport = :{port} or dport = :{port} )");
    let list = rig.on(host, &["ss", "-Htn", "state", "established", &port]);
    list.lines().count()
}

#[test]
fn idle_connections_are_reset_on_both_hosts_and_the_neighbour_lives() {
    in_namespaces(
        "cuts::idle_connections_are_reset_on_both_hosts_and_the_neighbour_lives",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let _echoes = (
                Echo::start("server", PORT),
                Echo::start("server", BULK_PORT),
            );
            let mut idle: Vec<_> = (0..50)
                .flat_map(|_| [SERVER_4, SERVER_6])
                .map(|to| connection(to, PORT))
                .collect();
            let mut neighbour = connection(SERVER_4, BULK_PORT);
            assert_eq!(established(&rig, "server", PORT), idle.len());
            let since = Instant::now();
            rig.write("policies/deny.yaml", DENY);
            daemons.0.reload();
            for stream in &mut idle {
                let ended = stream.read(&mut [0]).map_err(|error| error.kind());
                assert_eq!(ended, Err(ErrorKind::ConnectionReset));
            }
            let took = since.elapsed();
            wait_for("the server's kernel", || {
                established(&rig, "server", PORT) == 0
            });
            assert!(took < Duration::from_secs(5), "{took:?}");
            echo(&mut neighbour).unwrap();
            let refused = connect_error(SERVER_4);
            assert_eq!(refused, Some(ErrorKind::ConnectionRefused));
            for (host, wanted) in [
                ("server", "connection cut"),
                ("server", "AuthorizationPolicy default/not-on-8080"),
                ("client", "the peer refused a flow"),
                ("client", "AuthorizationPolicy default/not-on-8080"),
            ] {
                assert!(rig.log(host).contains(wanted), "{}", rig.log(host));
            }
            drop(daemons);
        },
    );
}

fn connect_error(to: &str) -> Option<ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    in_namespace("client", || {
        let connected = TcpStream::connect_timeout(&to, PATIENCE);
        connected.err().map(|error| error.kind())
    })
}
