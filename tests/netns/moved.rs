//! A workload that leaves its host: what its neighbours there send to it does not follow it in plaintext, from the first
//! packet on, and their connections outlive a moment without its address.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use crate::{
    capture::{Capture, MARKER},
    life::{Who::Both, connect, exchange},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, STRICT, registry, service, workload},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, spawn_in, wait_for},
    traffic::{Echo, control},
};

/// The workload's addresses, beside those of its host.
const MOVER: [&str; 2] = ["198.18.5.2", "fd00:5::2"];
/// Its neighbour on the host it leaves.
const NEIGHBOUR: [&str; 2] = [CLIENT_4, CLIENT_6];
/// How the wire leads to `client` and to `naked`.
const TO_CLIENT: [&str; 2] = ["198.18.1.2", "fd00:1::2"];
const TO_NAKED: [&str; 2] = ["198.18.3.2", "fd00:3::2"];

#[test]
fn what_neighbours_send_to_a_workload_that_has_left_stays_on_the_host() {
    in_namespaces(
        "moved::what_neighbours_send_to_a_workload_that_has_left_stays_on_the_host",
        |rig| {
            rig.standard(STRICT);
            rig.write("policies/registry.yaml", &with_mover());
            rig.configure("client", &["client", "mover"], "");
            give(&rig, "client", TO_CLIENT);
            let daemons = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("client", PORT);
            let mut tunnel = connect(SERVER_4);
            exchange(&mut tunnel, Both);
            let mut connections = [0, 1].map(neighbours_connection);
            connections.iter_mut().for_each(works);

            let capture = Capture::start();
            let sender = Sender::start();
            wait_for("datagrams between neighbours", || echo.datagrams() > 100);
            assert_eq!(dropped(&rig), 0);
            let arrived = Echo::start("naked", PORT);
            take(&rig, "client");
            give(&rig, "naked", TO_NAKED);
            for connection in &mut connections {
                connection.write_all(MARKER).unwrap();
            }
            sender.offer(2_000);
            wait_for("packets that were about to leave", || dropped(&rig) > 1_000);
            assert_eq!((arrived.datagrams(), arrived.connections()), (0, 0));

            take(&rig, "naked");
            give(&rig, "client", TO_CLIENT);
            for connection in &mut connections {
                read_marker(connection);
                works(connection);
            }
            let before = echo.datagrams();
            wait_for("datagrams between neighbours", || echo.datagrams() > before);
            control("client");
            exchange(&mut tunnel, Both);
            sender.stop();
            capture.stop().assert_no_plaintext();
            drop(daemons);
        },
    );
}

fn with_mover() -> String {
    [
        registry(),
        workload("mover-4", MOVER[0], "mover", None),
        workload("mover-6", MOVER[1], "mover", None),
        service("mover", &[PORT]),
    ]
    .join("---\n")
}

/// `host` has the workload's addresses, and the wire leads there.
fn give(rig: &Rig, host: &str, gateways: [&str; 2]) {
    for (address, gateway) in MOVER.into_iter().zip(gateways) {
        rig.on(host, &["ip", "addr", "add", address, "dev", "eth0"]);
        rig.on("wire", &["ip", "route", "replace", address, "via", gateway]);
    }
}

fn take(rig: &Rig, host: &str) {
    for (address, bits) in MOVER.into_iter().zip([32, 128]) {
        let address = format!("{address}/{bits}");
        rig.on(host, &["ip", "addr", "del", &address, "dev", "eth0"]);
    }
}

/// Packets that were about to leave, by the daemon's own count.
fn dropped(rig: &Rig) -> u64 {
    let status = rig.status("client").unwrap();
    status["drops"]["leaves_host"].as_u64().unwrap_or_default()
}

/// From the neighbour to the workload, within the host.
fn neighbours_connection(family: usize) -> TcpStream {
    let from = SocketAddr::new(NEIGHBOUR[family].parse().unwrap(), 0);
    let to = SocketAddr::new(MOVER[family].parse().unwrap(), PORT);
    in_namespace("client", || {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
        socket.bind(&from.into()).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    })
}

fn works(connection: &mut TcpStream) {
    connection.write_all(MARKER).unwrap();
    read_marker(connection);
}

fn read_marker(connection: &mut TcpStream) {
    let mut answer = [0; MARKER.len()];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(answer, MARKER);
}

/// Sends datagrams from the neighbour to the workload, IPv4 and IPv6, wherever that is.
struct Sender {
    offered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sender {
    fn start() -> Self {
        let (offered, stop) = (
            Arc::<AtomicU64>::default(),
            Arc::new(AtomicBool::new(false)),
        );
        let (counted, stopped) = (Arc::clone(&offered), Arc::clone(&stop));
        let thread = spawn_in("client", move || {
            let sockets = NEIGHBOUR.map(|from| UdpSocket::bind((from, 0)).unwrap());
            while !stopped.load(Ordering::Relaxed) {
                for (socket, to) in sockets.iter().zip(MOVER) {
                    // what has no way out for a moment was offered as well
                    let _ = socket.send_to(MARKER, (to, PORT));
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self {
            offered,
            stop,
            thread,
        }
    }

    /// Waits until that many more were offered.
    fn offer(&self, count: u64) {
        let end = self.offered.load(Ordering::Relaxed) + count;
        wait_for("the generator", || {
            self.offered.load(Ordering::Relaxed) >= end
        });
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}
