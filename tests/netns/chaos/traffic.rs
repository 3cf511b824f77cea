//! Applications that notice a wrong byte.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    mesh::PORT,
    rig::{in_namespace, spawn_in},
    streams::{content, salt},
    traffic::tcp_echo,
};

/// A port for the datagrams.
const DATAGRAMS: u16 = 8_082;
/// The largest: some go in fragments.
const LARGEST: usize = 4_000;

/// Numbered datagrams of all sizes from one host to another, all day long.
pub(super) struct Datagrams {
    name: String,
    stop: Arc<AtomicBool>,
    sent: JoinHandle<u64>,
    received: JoinHandle<u64>,
}

impl Datagrams {
    pub(super) fn start(from: &'static str, into: &'static str, to: &'static str) -> Self {
        let to = SocketAddr::new(to.parse().unwrap(), DATAGRAMS);
        let stop = Arc::<AtomicBool>::default();
        let sink = in_namespace(into, || UdpSocket::bind(to).unwrap());
        sink.set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let salt = salt((from, to));
        let (stopped, name) = (Arc::clone(&stop), format!("{from} to {to}"));
        let received = thread::spawn(move || receive(&sink, salt, &stopped));
        let stopped = Arc::clone(&stop);
        let sent = spawn_in(from, move || send(to, salt, &stopped));
        Self {
            name,
            stop,
            sent,
            received,
        }
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Relaxed);
        let (sent, received) = (self.sent.join().unwrap(), self.received.join().unwrap());
        println!(
            "datagrams {}: {received} of {sent} arrived, all as sent",
            self.name
        );
        assert!(received > 0, "{}", self.name);
    }
}

fn send(to: SocketAddr, salt: u64, stop: &AtomicBool) -> u64 {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        [0_u16; 8].into()
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    let mut number = 0_u64;
    while !stop.load(Relaxed) {
        // an unreachable rule may answer, and the network may be gone
        let _ = socket.send_to(&datagram(salt, number), to);
        number += 1;
        thread::sleep(Duration::from_millis(3));
    }
    number
}

fn receive(sink: &UdpSocket, salt: u64, stop: &AtomicBool) -> u64 {
    let (mut received, mut buffer) = (0, vec![0; 2 * LARGEST]);
    loop {
        match sink.recv(&mut buffer) {
            Ok(len) => {
                let number = u64::from_be_bytes(buffer[..8].try_into().unwrap());
                assert!(
                    buffer[..len] == datagram(salt, number),
                    "a wrong datagram {number}"
                );
                received += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock && stop.load(Relaxed) => {
                return received;
            }
            Err(_) => {}
        }
    }
}

fn datagram(salt: u64, number: u64) -> Vec<u8> {
    let len = 8 + usize::try_from(number.wrapping_mul(331) % (LARGEST as u64 - 8)).unwrap();
    let start = usize::try_from(number % 10_007).unwrap();
    let rest = (start..start + len - 8).map(|at| content(salt, at));
    number.to_be_bytes().into_iter().chain(rest).collect()
}

/// Connections that open, ask, are answered and close, one after the other.
pub(super) struct Calls {
    to: &'static str,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, BTreeMap<String, u64>)>,
}

impl Calls {
    pub(super) fn start(to: &'static str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let (mut answered, mut failed) = (0, BTreeMap::new());
            while !stopped.load(Relaxed) {
                match tcp_echo("client", (to, PORT), Duration::from_secs(3)) {
                    Ok(()) => answered += 1,
                    Err(error) => *failed.entry(format!("{error:?}")).or_default() += 1,
                }
                thread::sleep(Duration::from_millis(20));
            }
            (answered, failed)
        });
        Self { to, stop, thread }
    }

    pub(super) fn stop(self) {
        self.stop.store(true, Relaxed);
        let (answered, failed) = self.thread.join().unwrap();
        println!(
            "calls to {}: {answered} answered, failed: {failed:?}",
            self.to
        );
        assert!(answered > 0);
    }
}
