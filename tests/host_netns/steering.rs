//! Real packets between this namespace (the host) and a second one that stands for the wire and everybody on it.
//!
//! Nobody reads the TUN. What must not leave is looked for by a packet socket at the far end of the cable; every look
//! ends with plaintext that policy allows, sent last and seen by the same socket, so that a blind socket fails.

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command},
    thread,
    time::Duration,
};

use identun::{
    host::{self, HostSettings, Rules},
    policy::Steering,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{TUN, block_on, in_namespace, ip, run, settings, tun};

pub(crate) const HOSTS: [&str; 2] = ["10.77.0.1", "fd77::1"];
pub(crate) const PEERS: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// Addresses on the far side that belong to nobody's mesh.
pub(crate) const OUTSIDERS: [&str; 2] = ["10.77.0.3", "fd77::3"];
/// Only against hanging; nothing is decided by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// The plaintext exception at the peers, and the port that is captured.
const PLAIN: u16 = 53;
const MUST: u16 = 8080;

/// A second network namespace, joined by a cable; it goes with its process.
pub(crate) struct Wire(Child);

impl Wire {
    pub(crate) fn new() -> Self {
        let wire = Self::apart();
        let pid = wire.pid();
        run(&format!(
            "ip link add idt-host-a type veth peer name idt-host-b netns {pid}"
        ));
        run("ip addr add 10.77.0.1/24 dev idt-host-a; ip addr add fd77::1/64 dev idt-host-a nodad");
        run("ip link set idt-host-a up");
        wire.enter(|| {
            run("ip link set lo up; ip link set idt-host-b up");
            for address in ["10.77.0.2/24", "10.77.0.3/24", "fd77::2/64", "fd77::3/64"] {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                run(&format!("ip addr add {address} dev idt-host-b {nodad}"));
            }
        });
        wire
    }

    /// A namespace that nothing leads to.
    pub(crate) fn apart() -> Self {
        let child = Command::new("unshare")
            .args(["-n", "sleep", "600"])
            .spawn()
            .unwrap();
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
        let pid = child.id().to_string();
        while namespace(&pid) == namespace("self") {
            thread::yield_now();
        }
        Self(child)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Runs something over there; sockets it makes stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(namespace.as_fd(), kind).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Protocol, destination, destination port (0 without) of one packet from the host.
type Seen = (u8, IpAddr, u16);

/// A packet socket on the far side of the cable.
struct Tap(Socket);

impl Tap {
    fn new(wire: &Wire) -> Self {
        // ETH_P_ALL, in network byte order; SOCK_DGRAM: without the Ethernet header
        let all = Protocol::from(i32::from(3_u16.to_be()));
        let socket = wire.enter(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// Everything from the host up to and without the packet that `is_last` names.
    fn until(&self, is_last: Seen) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            let length = match (&self.0).read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                length => length.expect("the tap sees the last packet"),
            };
            match from_host(&buffer[..length]) {
                Some(packet) if packet == is_last => return seen,
                Some(packet) => seen.push(packet),
                None => {}
            }
        }
    }
}

/// Neighbour discovery, listener reports (behind an extension header) and ARP are no concern of ours.
fn from_host(packet: &[u8]) -> Option<Seen> {
    let address = |range: std::ops::Range<usize>| -> IpAddr {
        match <[u8; 4]>::try_from(&packet[range.clone()]) {
            Ok(four) => four.into(),
            Err(_) => <[u8; 16]>::try_from(&packet[range]).unwrap().into(),
        }
    };
    let (protocol, source, destination, header) = match packet.first()? >> 4 {
        4 if packet.len() >= 24 => (packet[9], address(12..16), address(16..20), 20),
        6 if packet.len() >= 44 => (packet[6], address(8..24), address(24..40), 40),
        _ => return None,
    };
    let discovery = protocol == 58 && (133..=137).contains(&packet[header]);
    if !HOSTS.map(ip).contains(&source) || discovery || protocol == 0 {
        return None;
    }
    let port = match protocol {
        6 | 17 => u16::from_be_bytes([packet[header + 2], packet[header + 3]]),
        _ => 0,
    };
    Some((protocol, destination, port))
}

/// Sends from the host, always the same flows: fresh ones would fill conntrack's table.
struct Sender {
    must: [UdpSocket; 2],
    allowed: [UdpSocket; 2],
    raw: [Socket; 2],
}

impl Sender {
    fn new() -> Self {
        let raw = |domain, protocol| Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
        Self {
            must: HOSTS.map(|host| UdpSocket::bind((host, 0)).unwrap()),
            allowed: HOSTS.map(|host| UdpSocket::bind((host, 0)).unwrap()),
            raw: [
                raw(Domain::IPV4, Protocol::ICMPV4),
                raw(Domain::IPV6, Protocol::ICMPV6),
            ],
        }
    }

    /// UDP, a TCP SYN and an echo request to the peer; what the kernel says to that is of no interest.
    fn offer(&self, family: usize) {
        let peer = SocketAddr::new(ip(PEERS[family]), MUST);
        let _ = self.must[family].send_to(b"PLAINTEXT-MARKER", peer);
        let stream = Socket::new(Domain::for_address(peer), Type::STREAM, None).unwrap();
        stream.set_nonblocking(true).unwrap();
        // the one before it may live on in a process that is just being started
        stream.set_reuse_port(true).unwrap();
        stream
            .bind(&SocketAddr::new(ip(HOSTS[family]), 40_000).into())
            .unwrap();
        let _ = stream.connect(&peer.into());
        let echo = [[8, 0, 0xf7, 0xff, 0, 0, 0, 0], [128, 0, 0, 0, 0, 0, 0, 0]];
        let to = SocketAddr::new(peer.ip(), 0);
        let _ = self.raw[family].send_to(&echo[family], &to.into());
    }

    /// Offers must packets of both families and tells which of them, or of anything but the allowed, crossed the
    /// cable.
    fn leaks(&self, tap: &Tap, rounds: usize) -> Vec<Seen> {
        let mut seen = Vec::new();
        for _ in 0..rounds {
            for family in [0, 1] {
                self.offer(family);
                let peer = ip(PEERS[family]);
                self.allowed[family]
                    .send_to(b"allowed", (peer, PLAIN))
                    .unwrap();
                seen.extend(tap.until((17, peer, PLAIN)));
            }
        }
        seen
    }
}

/// STRICT hosts that must reach their peers in the tunnel, except for one plaintext port.
fn policy() -> Steering {
    let mut steering = Steering::default();
    for (host, peer) in HOSTS.map(ip).into_iter().zip(PEERS.map(ip)) {
        steering.must_all.insert((host, peer));
        for protocol in [6, 17] {
            steering.plain.insert((host, peer, protocol, PLAIN));
            steering.permissive_port.insert((host, protocol, 9091));
        }
        steering.strict_all.insert(host);
        steering.peers.insert(peer);
    }
    steering.exempt.insert((6, 2222));
    steering
}

fn install() -> HostSettings {
    let settings = settings();
    Rules::shared(&settings).install(&policy()).unwrap();
    tun();
    block_on(host::install_routes(&settings)).unwrap();
    settings
}

#[test]
fn no_must_packet_leaves_whatever_is_taken_away() {
    in_namespace(
        "steering::no_must_packet_leaves_whatever_is_taken_away",
        || {
            let wire = Wire::new();
            // somebody who answers neither takes part in the tap's picture nor refuses the allowed packet
            let _sinks = PEERS.map(|peer| wire.enter(|| UdpSocket::bind((peer, PLAIN)).unwrap()));
            let (tap, sender) = (Tap::new(&wire), Sender::new());
            let open = sender.leaks(&tap, 2);
            for family in [0, 1] {
                let (peer, icmp) = (ip(PEERS[family]), [1, 58][family]);
                for packet in [(17, peer, MUST), (6, peer, MUST), (icmp, peer, 0)] {
                    assert!(
                        open.contains(&packet),
                        "the tap does not see {packet:?} without rules: {open:?}"
                    );
                }
            }
            let settings = install();
            let guarded = || host::counters(&settings).unwrap().guard;
            assert_eq!(sender.leaks(&tap, 20), []);
            run("ip rule del pref 300; ip -6 rule del pref 300");
            assert_eq!(sender.leaks(&tap, 20), [], "rule 300 gone");
            assert_eq!(guarded(), 0);
            run("ip rule del pref 301; ip -6 rule del pref 301");
            assert_eq!(sender.leaks(&tap, 20), [], "both rules gone");
            assert!(guarded() >= 120, "the guard has stopped {}", guarded());
            block_on(host::install_routes(&settings)).unwrap();
            run(&format!("ip link set {TUN} down"));
            assert_eq!(sender.leaks(&tap, 20), [], "the TUN is down");
            run(&format!("ip link del {TUN}"));
            assert_eq!(sender.leaks(&tap, 20), [], "the TUN is gone");
            run("conntrack -F; ip route flush table 7700; ip -6 route flush table 7700");
            assert_eq!(sender.leaks(&tap, 20), [], "the routes are gone");
            tun();
            block_on(host::install_routes(&settings)).unwrap();
            assert_eq!(sender.leaks(&tap, 20), [], "installed again");
        },
    );
}

#[test]
fn no_must_packet_leaves_while_the_rules_change() {
    in_namespace(
        "steering::no_must_packet_leaves_while_the_rules_change",
        || {
            let wire = Wire::new();
            let _sinks = PEERS.map(|peer| wire.enter(|| UdpSocket::bind((peer, PLAIN)).unwrap()));
            let settings = install();
            let (tap, sender) = (Tap::new(&wire), Sender::new());
            let mut other = policy();
            other
                .must
                .extend((1000..1200_u16).map(|port| (ip(HOSTS[0]), ip(PEERS[0]), 17, port)));
            thread::scope(|scope| {
                let changes = scope.spawn(|| {
                    for _ in 0..10 {
                        Rules::shared(&settings).update(&policy(), &other).unwrap();
                        Rules::shared(&settings).install(&other).unwrap();
                        Rules::shared(&settings).update(&other, &policy()).unwrap();
                        Rules::shared(&settings).install(&policy()).unwrap();
                    }
                });
                while !changes.is_finished() {
                    assert_eq!(sender.leaks(&tap, 10), []);
                }
            });
        },
    );
}

#[test]
fn strict_refuses_plaintext_and_lets_the_hosts_own_out() {
    in_namespace(
        "steering::strict_refuses_plaintext_and_lets_the_hosts_own_out",
        || {
            let wire = Wire::new();
            for family in [0, 1] {
                let [host, peer, outsider] =
                    [ip(HOSTS[family]), ip(PEERS[family]), ip(OUTSIDERS[family])];
                let listeners =
                    [9090, 9091, 2222].map(|port| TcpListener::bind((host, port)).unwrap());
                let dial = |port| {
                    wire.enter(move || TcpStream::connect_timeout(&(host, port).into(), PATIENCE))
                };
                let sockets = [9090, 9091].map(|port| UdpSocket::bind((host, port)).unwrap());
                dial(9090).expect("open without rules");
                let settings = settings();
                Rules::shared(&settings).install(&policy()).unwrap();
                tun();
                block_on(host::install_routes(&settings)).unwrap();

                assert_eq!(dial(9090).unwrap_err().kind(), ErrorKind::ConnectionRefused);
                dial(9091).expect("a permissive port takes plaintext");
                dial(2222).expect("an exempt port takes plaintext");
                // the second datagram has arrived, so the first would have
                wire.enter(|| {
                    let socket = UdpSocket::bind((outsider, 0)).unwrap();
                    socket.send_to(b"refused", (host, 9090)).unwrap();
                    socket.send_to(b"taken", (host, 9091)).unwrap();
                });
                let [strict, permissive] = &sockets;
                permissive.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(permissive.recv(&mut [0; 16]).unwrap(), 5);
                strict.set_nonblocking(true).unwrap();
                assert_eq!(
                    strict.recv(&mut [0; 16]).unwrap_err().kind(),
                    ErrorKind::WouldBlock
                );
                assert!(host::counters(&settings).unwrap().strict >= 2);

                // the host's own plaintext: to the exception at its peer and to somebody outside, also after a flush
                for there in [SocketAddr::new(peer, PLAIN), SocketAddr::new(outsider, 123)] {
                    exchange(&wire, host, there);
                }
                drop(listeners);
                block_on(host::down(&settings)).unwrap();
                run(&format!("ip link del {TUN}"));
            }
        },
    );
}

/// A UDP question and a TCP conversation, both answered.
pub(crate) fn exchange(wire: &Wire, host: IpAddr, there: SocketAddr) {
    let answerer = wire.enter(|| UdpSocket::bind(there).unwrap());
    let listener = wire.enter(|| TcpListener::bind(there).unwrap());
    let asker = UdpSocket::bind((host, 0)).unwrap();
    let mut stream = TcpStream::connect_timeout(&there, PATIENCE).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    for socket in [&answerer, &asker] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for socket in [&stream, &served] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let mut buffer = [0; 16];
    for _ in 0..2 {
        asker.send_to(b"question", there).unwrap();
        let (_, from) = answerer.recv_from(&mut buffer).unwrap();
        answerer.send_to(b"answer", from).unwrap();
        asker.recv(&mut buffer).unwrap();
        stream.write_all(b"question").unwrap();
        served.read_exact(&mut buffer[..8]).unwrap();
        served.write_all(b"answer..").unwrap();
        stream.read_exact(&mut buffer[..8]).unwrap();
        run("conntrack -F");
    }
}

/// Networks around the peers with a port that must be captured, a port that is plaintext by policy, and exceptions at
/// single addresses in both directions.
fn networks() -> Steering {
    let mut steering = Steering::default();
    for (host, net, near) in [
        ("10.77.0.1", "10.78.0.0/16", "10.78.5.0/24"),
        ("fd77::1", "fd78::/32", "fd78:0:5::/48"),
    ] {
        let host = ip(host);
        let (net, near) = (net.parse().unwrap(), near.parse().unwrap());
        let [one, two, three] = targets(host.is_ipv4(), [2, 3, 4]);
        for protocol in [6, 17] {
            steering.must_net.insert((host, net, protocol, 80));
            steering.plain_net.insert((host, near, protocol, 53));
            // an address wins over a network, in both directions
            steering.plain.insert((host, one, protocol, 80));
            steering.must.insert((host, one, protocol, 53));
            // `must` wins over `plain`
            steering.must.insert((host, two, protocol, 99));
            steering.plain.insert((host, two, protocol, 99));
            steering.plain.insert((host, three, protocol, 70));
        }
        steering.must_all_net.insert((host, near));
        // `plain` and `plain_net` win over `must_all`
        steering.must_all.insert((host, three));
    }
    steering
}

/// Addresses of the inner network that [`networks`] speaks of.
fn targets<const N: usize>(ipv4: bool, last: [u8; N]) -> [IpAddr; N] {
    last.map(|last| match ipv4 {
        true => ip(&format!("10.78.5.{last}")),
        false => ip(&format!("fd78:0:5::{last}")),
    })
}

#[test]
fn the_kernel_decides_as_the_compiled_policy_does() {
    in_namespace(
        "steering::the_kernel_decides_as_the_compiled_policy_does",
        || {
            let wire = Wire::new();
            run("ip route add 10.78.0.0/16 via 10.77.0.2; ip -6 route add fd78::/32 via fd77::2");
            // whoever answers an unreachable destination takes no part in the tap's picture
            wire.enter(|| run("nft add table inet quiet; nft add chain inet quiet in '{ type filter hook prerouting priority -500; }'; \
                               nft add rule inet quiet in meta l4proto { tcp, udp } drop"));
            let settings = settings();
            let policy = networks();
            Rules::shared(&settings).install(&policy).unwrap();
            tun();
            block_on(host::install_routes(&settings)).unwrap();
            let tap = Tap::new(&wire);
            let (mut captured, mut plaintext) = (0, 0);
            for family in [0, 1] {
                let host = ip(HOSTS[family]);
                let near = targets(family == 0, [2, 3, 4, 9]);
                let far = ip(["10.78.6.2", "fd78:0:6::2"][family]);
                let socket = UdpSocket::bind((host, 0)).unwrap();
                for destination in near.into_iter().chain([far]) {
                    for port in [53, 70, 80, 99] {
                        let _ = socket.send_to(b"PLAINTEXT-MARKER", (destination, port));
                        let stream =
                            Socket::new(Domain::for_address((host, 0).into()), Type::STREAM, None)
                                .unwrap();
                        stream.set_nonblocking(true).unwrap();
                        stream.bind(&SocketAddr::new(host, 0).into()).unwrap();
                        let _ = stream.connect(&SocketAddr::new(destination, port).into());
                        // nothing is said of this one: it is plaintext, and the last to be seen
                        socket.send_to(b"last", (ip(PEERS[family]), PLAIN)).unwrap();
                        let seen = tap.until((17, ip(PEERS[family]), PLAIN));
                        for protocol in [6, 17] {
                            let wanted = policy.captures(host, destination, protocol, Some(port));
                            let left = seen.contains(&(protocol, destination, port));
                            assert_eq!(
                                left, !wanted,
                                "protocol {protocol} to {destination} port {port}: {seen:?}"
                            );
                            *if wanted {
                                &mut captured
                            } else {
                                &mut plaintext
                            } += 1;
                        }
                    }
                }
            }
            assert!(
                captured >= 20 && plaintext >= 20,
                "{captured} and {plaintext}"
            );
        },
    );
}

#[test]
fn a_plain_exception_in_a_captured_network_stays_plaintext_and_its_neighbours_do_not() {
    in_namespace(
        "steering::a_plain_exception_in_a_captured_network_stays_plaintext_and_its_neighbours_do_not",
        || {
            let wire = Wire::new();
            let mut steering = Steering::default();
            for (host, net) in HOSTS.map(ip).into_iter().zip(["10.77.0.0/24", "fd77::/64"]) {
                steering.must_all_net.insert((host, net.parse().unwrap()));
                for protocol in [6, 17] {
                    let exception = (host, net.parse().unwrap(), protocol, PLAIN);
                    steering.plain_net.insert(exception);
                }
                // a STRICT source and a registered peer: the exception holds there too
                steering.strict_all.insert(host);
            }
            steering.peers.extend(PEERS.map(ip));
            let settings = settings();
            Rules::shared(&settings).install(&steering).unwrap();
            tun();
            block_on(host::install_routes(&settings)).unwrap();
            let sinks = PEERS.map(|peer| wire.enter(|| UdpSocket::bind((peer, PLAIN)).unwrap()));
            let (tap, sender) = (Tap::new(&wire), Sender::new());
            assert_eq!(sender.leaks(&tap, 20), [], "neighbours of the exception");
            drop((tap, sinks));
            for family in [0, 1] {
                for there in [PEERS[family], OUTSIDERS[family]] {
                    exchange(&wire, ip(HOSTS[family]), (ip(there), PLAIN).into());
                }
            }
        },
    );
}
