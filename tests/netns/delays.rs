//! The lab's delay relay (`examples/delay-relay.rs`) between two hosts: the link is as good and as bad as asked for.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    mesh::{CLIENT_4, PORT, SERVER_4, SERVER_6},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, spawn_in, wait_for},
};

// The relay runs on a thread, from its source: what is tested is never an older build.
#[path = "../../examples/delay-relay/relay.rs"]
mod relay;

pub(crate) use relay::line::Impairment;
use relay::{
    Order, Orders, Relay, Report,
    line::{ETHERNET, Rate},
};

const MS: Duration = Duration::from_millis(1);
/// Bytes of a datagram of the tests, and of the packet that carries it in IPv4.
const DATAGRAM: usize = 1_000;
const PACKET: usize = DATAGRAM + 28;
/// So many datagrams are under way at most: a socket takes about ninety of them while nobody reads.
const WINDOW: u32 = 50;

#[test]
fn a_round_trip_takes_the_delay_twice_and_tcp_arrives_intact_in_whole_super_packets() {
    in_namespaces(
        "delays::a_round_trip_takes_the_delay_twice_and_tcp_arrives_intact_in_whole_super_packets",
        |rig| {
            let link = Link::up(
                &rig,
                Impairment {
                    delay: 5 * MS,
                    jitter: MS,
                    ..Impairment::default()
                },
            );
            for to in [SERVER_4, SERVER_6] {
                let fastest = fastest_ping(&rig, to);
                assert!(fastest >= 10.0, "{to}: {fastest} ms");
                tcp_arrives_intact(to, 32 << 20);
            }
            let report = link.down(&rig);
            println!("{report}");
            assert_eq!((report.refused, report.line.ignored.min(1)), (0, 1));
            assert_eq!(report.line.frames, report.line.packets);
            let mean = report.line.bytes / report.line.frames;
            assert!(mean > 1_500, "frames have {mean} bytes on average");
        },
    );
}

#[test]
fn packets_are_lost_and_doubled_as_often_as_asked_and_jitter_keeps_their_order() {
    in_namespaces(
        "delays::packets_are_lost_and_doubled_as_often_as_asked_and_jitter_keeps_their_order",
        |rig| {
            let asked = Impairment {
                delay: MS,
                jitter: MS,
                loss: 0.1,
                duplicate: 0.05,
                seed: 1,
                ..Impairment::default()
            };
            let first = lost_and_doubled(&rig, asked);
            // Which packets it hits is the seed's choice alone.
            assert_eq!(lost_and_doubled(&rig, asked), first);
        },
    );
}

/// The numbers of those of 5,000 packets that arrived.
fn lost_and_doubled(rig: &Rig, asked: Impairment) -> Vec<u32> {
    const SENT: u32 = 5_000;
    let link = Link::up(rig, asked);
    let received = link.pass(SENT);
    let report = link.down(rig);
    println!("{report}");
    assert_near(report.line.lost, SENT, 0.1);
    assert_near(report.line.duplicated, SENT, 0.9 * 0.05);
    assert!(received.is_sorted(), "jitter changed the order");
    let doubles = received.windows(2).filter(|two| two[0] == two[1]).count();
    assert_eq!(u64::try_from(doubles).unwrap(), report.line.duplicated);
    received
}

#[test]
fn packets_are_overtaken_when_asked_and_tcp_arrives_intact_on_the_worst_link() {
    in_namespaces(
        "delays::packets_are_overtaken_when_asked_and_tcp_arrives_intact_on_the_worst_link",
        |rig| {
            const SENT: u32 = 1_000;
            let asked = Impairment {
                delay: 100 * MS,
                reorder: 0.05,
                ..Impairment::default()
            };
            let link = Link::up(&rig, asked);
            let mut received = link.pass(SENT);
            let report = link.down(&rig);
            assert_near(report.line.reordered, SENT, 0.05);
            assert!(!received.is_sorted());
            received.sort_unstable();
            assert!(received.into_iter().eq(0..SENT));

            let worst = Impairment {
                delay: MS,
                jitter: MS,
                loss: 0.01,
                reorder: 0.01,
                duplicate: 0.01,
                ..asked
            };
            let link = Link::up(&rig, worst);
            for to in [SERVER_4, SERVER_6] {
                tcp_arrives_intact(to, 4 << 20);
            }
            let report = link.down(&rig);
            println!("{report}");
            assert_eq!(report.refused, 0);
            assert!(
                report.line.packets > report.line.frames,
                "super-packets are cut"
            );
            let line = report.line;
            assert!(line.lost > 0 && line.reordered > 0 && line.duplicated > 0);
        },
    );
}

#[test]
fn a_line_is_no_faster_than_its_rate_and_drops_what_its_queue_cannot_hold() {
    in_namespaces(
        "delays::a_line_is_no_faster_than_its_rate_and_drops_what_its_queue_cannot_hold",
        |rig| {
            const SENT: u32 = 300;
            let rate = |queue| Impairment {
                rate: Some(Rate {
                    bits_per_second: 8_000_000,
                    queue,
                }),
                ..Impairment::default()
            };
            // Ten packets may wait, and they come faster than they go.
            let link = Link::up(&rig, rate(10 * (PACKET + ETHERNET)));
            let received = link.pass(SENT);
            let report = link.down(&rig);
            println!("{report}");
            assert!(report.line.queue_full > 0);
            assert!(received.len() >= 10 && received.is_sorted());

            let link = Link::up(&rig, rate(1 << 20));
            let started = Instant::now();
            assert!(link.pass(SENT).into_iter().eq(0..SENT));
            let took = started.elapsed();
            // 8 Mbit/s are a byte a microsecond.
            let bytes = u64::from(SENT) * u64::try_from(PACKET + ETHERNET).unwrap();
            assert!(took >= Duration::from_micros(bytes), "{took:?}");
            // Two megabytes of TCP, their super-packets cut.
            let started = Instant::now();
            tcp_arrives_intact(SERVER_4, 2_000_000);
            assert!(started.elapsed() >= 2_000 * MS);
            let report = link.down(&rig);
            assert_eq!((report.line.queue_full, report.refused), (0, 0));
        },
    );
}

/// A relay between `client` and `server` on `wire`.
pub(crate) struct Link {
    orders: Arc<Orders>,
    reports: Receiver<Report>,
    relay: JoinHandle<()>,
}

impl Link {
    fn up(rig: &Rig, impairment: Impairment) -> Self {
        // Neighbours are known before: what waits for an answer of ARP may be dropped by the kernel.
        for to in [SERVER_4, SERVER_6] {
            rig.on("client", &["ping", "-q", "-c1", to]);
        }
        Self::insert(rig, impairment)
    }

    /// The same whatever the hosts know of each other.
    pub(crate) fn insert(rig: &Rig, impairment: Impairment) -> Self {
        let mut relay = in_namespace("wire", || Relay::open("relay0", impairment).unwrap());
        rig.on("wire", &["ip", "link", "set", "relay0", "up"]);
        for family in ["-4", "-6"] {
            let route = ["ip", family, "route", "add", "default", "dev", "relay0"];
            rig.on("wire", &[&route[..], &["table", "100"]].concat());
            Self::rules(rig, family, "add");
        }
        let orders = Arc::new(Orders::new().unwrap());
        let (told, reports) = sync_channel(1);
        let given = Arc::clone(&orders);
        let relay = spawn_in("wire", move || {
            loop {
                let order = relay.run(&given).unwrap();
                told.send(relay.report()).unwrap();
                if order == Order::Stop {
                    return relay.close().unwrap();
                }
            }
        });
        Self {
            orders,
            reports,
            relay,
        }
    }

    fn rules(rig: &Rig, family: &str, what: &str) {
        for port in ["client", "server"] {
            let rule = ["ip", family, "rule", what, "iif", port, "lookup", "100"];
            rig.on("wire", &rule);
        }
    }

    fn report(&self, order: Order) -> Report {
        self.orders.give(order);
        self.reports.recv_timeout(PATIENCE).unwrap()
    }

    /// Ends the relay; its TUN and routes are gone.
    pub(crate) fn down(self, rig: &Rig) -> Report {
        let report = self.report(Order::Stop);
        self.relay.join().unwrap();
        for family in ["-4", "-6"] {
            Self::rules(rig, family, "del");
        }
        report
    }

    /// Sends datagrams with numbers from `client` to `server`; the numbers in the order in which they arrived. Waits for
    /// each that the relay did not drop.
    fn pass(&self, count: u32) -> Vec<u32> {
        let server = in_namespace("server", || UdpSocket::bind((SERVER_4, PORT)).unwrap());
        let client = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
        client.connect((SERVER_4, PORT)).unwrap();
        server.set_nonblocking(true).unwrap();
        let before = self.report(Order::Report).line;
        let mut received = Vec::new();
        for number in 0..count {
            client.send(&datagram(number)).unwrap();
            if (number + 1) % WINDOW == 0 || number + 1 == count {
                wait_for("what was sent to be on the line", || {
                    self.report(Order::Report).line.packets - before.packets
                        == u64::from(number + 1)
                });
                let line = self.report(Order::Report).line;
                let dropped = line.lost + line.queue_full + line.memory_full;
                let arriving = u64::from(number + 1) - dropped + line.duplicated;
                wait_for("what was not dropped to arrive", || {
                    receive(&server, &mut received);
                    u64::try_from(received.len()).unwrap() >= arriving
                });
            }
        }
        received
    }
}

fn datagram(number: u32) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); DATAGRAM];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The numbers of the datagrams that are there; each is intact.
fn receive(socket: &UdpSocket, numbers: &mut Vec<u32>) {
    let mut bytes = [0; 2 * DATAGRAM];
    loop {
        let len = match socket.recv(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            len => len.unwrap(),
        };
        let number = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert!(bytes[..len] == datagram(number));
        numbers.push(number);
    }
}

/// Within four standard deviations of what `chance` makes of `count`.
#[track_caller]
fn assert_near(seen: u64, count: u32, chance: f64) {
    let expected = f64::from(count) * chance;
    let sigma = (expected * (1.0 - chance)).sqrt();
    let seen = f64::from(u32::try_from(seen).unwrap());
    assert!(
        (seen - expected).abs() <= 4.0 * sigma,
        "{seen} of {count}, not {expected}"
    );
}

/// The shortest round trip of some, in milliseconds.
fn fastest_ping(rig: &Rig, to: &str) -> f64 {
    let said = rig.on("client", &["ping", "-q", "-c5", "-i0.05", to]);
    let times = said
        .lines()
        .find_map(|line| line.strip_prefix("rtt min/avg/max/mdev = "));
    let fastest = times.and_then(|times| times.split('/').next());
    fastest.unwrap_or_else(|| panic!("{said}")).parse().unwrap()
}

/// Bytes that repeat nowhere near go from `server` to `client`, and are what was sent.
fn tcp_arrives_intact(to: &str, len: usize) {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let listener = in_namespace("server", || TcpListener::bind(address).unwrap());
    let serving = spawn_in("server", move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&content(len)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // The other end says that it has all.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    });
    let to = SocketAddr::new(to.parse::<IpAddr>().unwrap(), PORT);
    let mut received = Vec::new();
    in_namespace("client", || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let (started, mut buffer) = (Instant::now(), vec![0; 1 << 16]);
        while let len @ 1.. = stream.read(&mut buffer).unwrap() {
            received.extend_from_slice(&buffer[..len]);
            // A link that only crawls is broken too.
            assert!(started.elapsed() < 3 * PATIENCE, "{} bytes", received.len());
        }
    });
    assert!(
        received == content(len),
        "{} of {len} bytes",
        received.len()
    );
    serving.join().unwrap();
}

fn content(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(len).collect()
}
