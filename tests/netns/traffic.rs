//! Traffic of the tests' own making: echo services, and a blaster of packets that carry the marker.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    capture::{CONTROL_PORT, MARKER},
    mesh::{NAKED_4, NAKED_6},
    rig::{PATIENCE, in_namespace, spawn_in, wait_for},
};

/// A TCP and UDP echo on one port of a host, IPv4 and IPv6. Lives as long as the test.
pub(crate) struct Echo {
    datagrams: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Echo {
    pub(crate) fn start(host: &'static str, port: u16) -> Self {
        let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (tcp, udp) = in_namespace(host, || {
            (
                TcpListener::bind(address).unwrap(),
                UdpSocket::bind(address).unwrap(),
            )
        });
        let echo = Self {
            datagrams: Arc::default(),
            connections: Arc::default(),
        };
        let (datagrams, connections) = (Arc::clone(&echo.datagrams), Arc::clone(&echo.connections));
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                datagrams.fetch_add(1, Ordering::Relaxed);
                // A reply that policy stops is no reason to end.
                let _ = udp.send_to(&buffer[..len], from);
            }
        });
        thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                connections.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || echo_stream(stream));
            }
        });
        echo
    }

    /// Datagrams that arrived.
    pub(crate) fn datagrams(&self) -> u64 {
        self.datagrams.load(Ordering::Relaxed)
    }

    /// Connections that were accepted.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn echo_stream(mut stream: TcpStream) {
    let mut buffer = [0; 1 << 16];
    while let Ok(len @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
}

/// Sends the marker to a TCP echo and takes it back. `Err` names what the application saw.
pub(crate) fn tcp_echo(host: &str, to: (&str, u16), timeout: Duration) -> Result<(), ErrorKind> {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    in_namespace(host, || {
        let mut stream = TcpStream::connect_timeout(&to, timeout).map_err(|error| error.kind())?;
        stream.set_read_timeout(Some(timeout)).unwrap();
        stream.write_all(MARKER).map_err(|error| error.kind())?;
        let mut answer = [0; MARKER.len()];
        stream
            .read_exact(&mut answer)
            .map_err(|error| error.kind())?;
        assert_eq!(answer, MARKER);
        Ok(())
    })
}

/// Sends one datagram to a UDP echo and takes it back.
pub(crate) fn udp_echo(
    host: &str,
    to: (&str, u16),
    payload: &[u8],
    timeout: Duration,
) -> Result<(), ErrorKind> {
    let to = SocketAddr::new(to.0.parse().unwrap(), to.1);
    in_namespace(host, || {
        let socket = connected(to);
        socket.set_read_timeout(Some(timeout)).unwrap();
        socket.send(payload).map_err(|error| error.kind())?;
        let mut answer = vec![0; 1 << 16];
        let len = socket.recv(&mut answer).map_err(|error| error.kind())?;
        assert_eq!(&answer[..len], payload);
        Ok(())
    })
}

/// One ping; true when it was answered.
pub(crate) fn ping(host: &str, to: &str) -> bool {
    in_namespace(host, || {
        let status = std::process::Command::new("ping")
            .args(["-c1", "-W2", "-p", "504c41494e", to])
            .output();
        status.unwrap().status.success()
    })
}

/// The positive control: cleartext from `host` to `naked`, both families, which policy allows, on the port that captures
/// know. It arrives; where a link was down, perhaps at the second attempt.
pub(crate) fn control(host: &str) {
    let sink = in_namespace("naked", || {
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, CONTROL_PORT)).unwrap()
    });
    let moment = Duration::from_millis(500);
    sink.set_read_timeout(Some(moment)).unwrap();
    for to in [NAKED_4, NAKED_6] {
        let to = SocketAddr::new(to.parse().unwrap(), CONTROL_PORT);
        wait_for("the positive control", || {
            in_namespace(host, || connected(to).send(MARKER).unwrap());
            let mut received = [0; MARKER.len()];
            sink.recv(&mut received)
                .is_ok_and(|len| len == MARKER.len())
        });
    }
}

fn connected(to: SocketAddr) -> UdpSocket {
    let any: IpAddr = if to.is_ipv4() {
        [0; 4].into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// Offers packets that must be encrypted without a pause: UDP whole and in fragments, TCP SYNs and ICMP echoes, to IPv4 and IPv6 in turn.
pub(crate) struct Blaster {
    offered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl Blaster {
    pub(crate) fn start(host: &'static str, to: [&'static str; 2], port: u16) -> Self {
        let (offered, refused, stop) = (
            Arc::default(),
            Arc::default(),
            Arc::new(AtomicBool::new(false)),
        );
        let mut sender = Sender {
            to: to.map(|to| SocketAddr::new(to.parse().unwrap(), port)),
            offered: Arc::clone(&offered),
            refused: Arc::clone(&refused),
            connecting: Vec::new(),
        };
        let stopped = Arc::clone(&stop);
        let thread = spawn_in(host, move || {
            let udp = sender.to.map(|to| {
                let socket = connected(to);
                socket.set_nonblocking(true).unwrap();
                socket
            });
            let icmp = [
                Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap(),
                Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap(),
            ];
            while !stopped.load(Ordering::Relaxed) {
                sender.round(&udp, &icmp);
                // Some thousand packets a second: more would only fill the queues of a stopped daemon.
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self {
            offered,
            refused,
            stop,
            thread,
        }
    }

    /// Packets that were offered to the kernel.
    pub(crate) fn offered(&self) -> u64 {
        self.offered.load(Ordering::Relaxed)
    }

    /// Those that the kernel refused at once.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Waits until that many more were offered.
    pub(crate) fn offer(&self, count: u64) {
        let end = self.offered() + count;
        let started = std::time::Instant::now();
        while self.offered() < end {
            assert!(
                started.elapsed() < PATIENCE * 3,
                "the generator stands still"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

struct Sender {
    to: [SocketAddr; 2],
    offered: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
    connecting: Vec<Socket>,
}

impl Sender {
    /// Four datagrams, one that the kernel cuts into fragments, and an echo to either address; each tenth round a
    /// connection is opened.
    fn round(&mut self, udp: &[UdpSocket; 2], icmp: &[Socket; 2]) {
        let (mut buffer, large) = ([0; 1 << 13], MARKER.repeat(4_000 / MARKER.len()));
        for ((udp, icmp), to) in udp.iter().zip(icmp).zip(self.to) {
            for _ in 0..4 {
                self.note(udp.send(MARKER).map(drop));
            }
            self.note(udp.send(&large).map(drop));
            while udp.recv(&mut buffer).is_ok() {}
            let to_host = SocketAddr::new(to.ip(), 0).into();
            self.note(
                icmp.send_to(&echo_request(to.is_ipv4()), &to_host)
                    .map(drop),
            );
            if self.offered.load(Ordering::Relaxed) % 100 < 10 {
                let stream = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                stream.set_nonblocking(true).unwrap();
                let result = match stream.connect(&to.into()) {
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
                    other => other,
                };
                self.note(result);
                self.connecting.push(stream);
                if self.connecting.len() > 64 {
                    self.connecting.remove(0);
                }
            }
        }
    }

    fn note(&self, result: std::io::Result<()>) {
        self.offered.fetch_add(1, Ordering::Relaxed);
        self.refused
            .fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
    }
}

/// ICMP echo request with the marker; the kernel completes ICMPv6 checksums itself.
fn echo_request(ipv4: bool) -> Vec<u8> {
    let mut packet = vec![if ipv4 { 8 } else { 128 }, 0, 0, 0, 0x1d, 0x1d, 0, 1];
    packet.extend_from_slice(MARKER);
    if ipv4 {
        let sum: u32 = packet
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}
