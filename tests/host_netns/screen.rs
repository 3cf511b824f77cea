//! What a real kernel takes of the plaintext that others send, for whole policies: as the compiled sets say, and as the
//! policy means it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use identun::{
    host::{self, Rules},
    policy::{
        MeshSettings, Mode, Resources, Steering,
        document::{
            Action, AuthorizationPolicy, AuthorizationRule, Clause, PeerAuthentication, Placed,
            Test,
        },
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    mesh,
    steering::{HOSTS, OUTSIDERS, PATIENCE, PEERS, Wire, exchange},
    support::{TUN, block_on, in_namespace, ip, run, settings, tun},
};

const PORTS: [u16; 3] = [80, 443, 9000];
/// An exempt port: what is sent there arrives, and by then so has what was sent before.
const EXEMPT: u16 = 2222;

/// One kind of packet: the protocol, and the port where there is one.
type Kind = (u8, Option<u16>);

/// The host's sockets, of one family.
struct Host {
    address: IpAddr,
    _listeners: Vec<TcpListener>,
    sockets: Vec<UdpSocket>,
    exempt: UdpSocket,
    raw: UdpSocket,
}

impl Host {
    fn new(address: IpAddr) -> Self {
        let domain = Domain::for_address((address, 0).into());
        let socket = |port: &u16| {
            let socket = UdpSocket::bind((address, *port)).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        };
        let raw = Socket::new(domain, Type::RAW, Some(icmp(address))).unwrap();
        raw.set_nonblocking(true).unwrap();
        let exempt = UdpSocket::bind((address, EXEMPT)).unwrap();
        exempt.set_read_timeout(Some(PATIENCE)).unwrap();
        let listen = |port: &u16| TcpListener::bind((address, *port)).unwrap();
        Self {
            address,
            _listeners: PORTS.iter().map(listen).collect(),
            sockets: PORTS.iter().map(socket).collect(),
            exempt,
            // a socket with addresses is all that is needed of it
            raw: raw.into(),
        }
    }

    /// Plaintext of one kind from `source` arrives.
    fn takes(&self, wire: &Wire, source: IpAddr, (protocol, port): Kind) -> bool {
        match (protocol, port) {
            (6, Some(port)) => self.takes_connection(wire, source, port),
            (17, Some(port)) => {
                // a small one and one in fragments
                let taken = [8, 4000].map(|size| self.takes_datagram(wire, source, port, size));
                assert_eq!(taken[0], taken[1], "{source} port {port}: fragments");
                taken[0]
            }
            _ => self.takes_echo(wire, source),
        }
    }

    fn takes_connection(&self, wire: &Wire, source: IpAddr, port: u16) -> bool {
        let to = SocketAddr::new(self.address, port);
        let dialled = wire.enter(move || {
            let stream = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
            stream.bind(&SocketAddr::new(source, 0).into()).unwrap();
            stream.connect_timeout(&to.into(), PATIENCE)
        });
        if let Err(error) = &dialled {
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{source} {to}");
        }
        dialled.is_ok()
    }

    fn takes_datagram(&self, wire: &Wire, source: IpAddr, port: u16, size: usize) -> bool {
        let to = SocketAddr::new(self.address, port);
        self.after(wire, source, || {
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(&vec![7; size], to).unwrap();
        });
        let index = PORTS.iter().position(|known| *known == port).unwrap();
        let mut buffer = [0; 8192];
        match self.sockets[index].recv_from(&mut buffer) {
            Ok((length, from)) => {
                assert_eq!((length, from.ip()), (size, source));
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                false
            }
        }
    }

    fn takes_echo(&self, wire: &Wire, source: IpAddr) -> bool {
        let to = SocketAddr::new(self.address, 0);
        self.after(wire, source, || {
            let raw = Socket::new(Domain::for_address(to), Type::RAW, Some(icmp(source))).unwrap();
            raw.bind(&SocketAddr::new(source, 0).into()).unwrap();
            let request = match source {
                IpAddr::V4(_) => [8, 0, 0xf7, 0xff, 0, 0, 0, 0],
                IpAddr::V6(_) => [128, 0, 0, 0, 0, 0, 0, 0],
            };
            raw.send_to(&request, &to.into()).unwrap();
        });
        let (request, at) = match source {
            IpAddr::V4(_) => (8, 20),
            IpAddr::V6(_) => (128, 0),
        };
        let mut taken = false;
        let mut buffer = [0; 256];
        while let Ok((_, from)) = self.raw.recv_from(&mut buffer) {
            // neighbour discovery comes here, too
            taken |= from.ip() == source && buffer[at] == request;
        }
        taken
    }

    /// Sends something and then a datagram to the exempt port, and waits for that.
    fn after(&self, wire: &Wire, source: IpAddr, send: impl FnOnce() + Send) {
        let last = SocketAddr::new(self.address, EXEMPT);
        wire.enter(move || {
            send();
            let socket = UdpSocket::bind((source, 0)).unwrap();
            socket.send_to(b"last", last).unwrap();
        });
        let (_, from) = self.exempt.recv_from(&mut [0; 8]).unwrap();
        assert_eq!(from.ip(), source);
    }
}

fn icmp(address: IpAddr) -> Protocol {
    match address {
        IpAddr::V4(_) => Protocol::ICMPV4,
        IpAddr::V6(_) => Protocol::ICMPV6,
    }
}

/// The sets for one host with one workload, under these rules.
fn compile(
    mode: Mode,
    peer: Option<PeerAuthentication>,
    rules: Vec<AuthorizationPolicy>,
) -> Steering {
    let workload = |address: &&str| {
        let mut workload = mesh::workload("ns", "host", address);
        workload.labels = mesh::map(&[("app", "host")]);
        workload
    };
    let resources = Resources {
        mesh_policy: Some(mesh::mesh_policy(mode)),
        peer_authentications: peer.into_iter().collect(),
        authorization_policies: rules,
        workloads: HOSTS.iter().map(workload).collect(),
        ..Resources::default()
    };
    let mut facts = mesh::host(&HOSTS, &["spiffe://cluster.local/ns/ns/sa/host"]);
    facts.exempt.insert((17, EXEMPT));
    let (compiled, _) = mesh::compile(&resources, &MeshSettings::default(), facts);
    compiled.steering().clone()
}

fn placed<T>(value: T) -> Placed<T> {
    Placed {
        value,
        place: mesh::place(3),
    }
}

fn authorization(action: Action, from: &[Test], to: &[Test]) -> AuthorizationPolicy {
    let one = |test: &Test| Clause {
        negated: false,
        test: test.clone(),
    };
    let all = |tests: &[Test]| match tests {
        [] => Vec::new(),
        tests => vec![tests.iter().map(one).collect()],
    };
    AuthorizationPolicy {
        resource: mesh::resource("AuthorizationPolicy", "ns", &format!("{action:?}")),
        place: mesh::place(4),
        selector: None,
        action,
        dry_run: false,
        rules: vec![AuthorizationRule {
            place: mesh::place(5),
            number: 1,
            from: all(from),
            to: all(to),
            when: Vec::new(),
        }],
    }
}

/// What is taken of the peer, and of the outsider.
type Expected = [&'static [Kind]; 2];

/// Policies, and every kind of packet that they let in.
fn rows() -> Vec<(&'static str, Steering, Expected)> {
    const ALL: &[Kind] = &[
        (6, Some(80)),
        (17, Some(80)),
        (6, Some(443)),
        (17, Some(443)),
        (1, None),
    ];
    const WEB: &[Kind] = &[(6, Some(80)), (17, Some(80))];
    const NOT_WEB: &[Kind] = &[(6, Some(443)), (17, Some(443)), (1, None)];
    let outsiders = || Test::SourceIp(OUTSIDERS.iter().map(|one| ip(one).into()).collect());
    let peers = || Test::SourceIp(PEERS.iter().map(|one| ip(one).into()).collect());
    let web = || Test::DestinationPort([80].into());
    let port_level = PeerAuthentication {
        resource: mesh::resource("PeerAuthentication", "ns", "p"),
        place: mesh::place(3),
        selector: Some(mesh::map(&[("app", "host")])),
        mode: placed(Some(Mode::Strict)),
        ports: [(80, placed(Some(Mode::Permissive)))].into(),
    };
    let open = |rules| compile(Mode::Permissive, None, rules);
    let allow = |from: &[Test], to: &[Test]| open(vec![authorization(Action::Allow, from, to)]);
    let deny = |from: &[Test], to: &[Test]| open(vec![authorization(Action::Deny, from, to)]);
    vec![
        ("PERMISSIVE", open(vec![]), [ALL, ALL]),
        ("STRICT", compile(Mode::Strict, None, vec![]), [&[], &[]]),
        (
            "a PERMISSIVE port under STRICT",
            compile(Mode::Permissive, Some(port_level), vec![]),
            [WEB, WEB],
        ),
        ("DENY ipBlocks", deny(&[outsiders()], &[]), [ALL, &[]]),
        ("DENY ports", deny(&[], &[web()]), [NOT_WEB, NOT_WEB]),
        (
            "DENY ipBlocks and ports",
            deny(&[outsiders()], &[web()]),
            [ALL, NOT_WEB],
        ),
        ("ALLOW ports", allow(&[], &[web()]), [WEB, WEB]),
        ("ALLOW ipBlocks", allow(&[peers()], &[]), [ALL, &[]]),
        (
            "ALLOW ipBlocks and ports",
            allow(&[peers()], &[web()]),
            [WEB, &[]],
        ),
    ]
}

/// A UDP question and a TCP connection from the host, to which the other side goes on talking after a loss of conntrack's
/// memory.
fn download(wire: &Wire, host: IpAddr, there: SocketAddr) {
    let answerer = wire.enter(|| UdpSocket::bind(there).unwrap());
    let listener = wire.enter(|| TcpListener::bind(there).unwrap());
    let asker = UdpSocket::bind((host, 0)).unwrap();
    let mut stream = TcpStream::connect_timeout(&there, PATIENCE).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    for socket in [&answerer, &asker] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 16];
    asker.send_to(b"question", there).unwrap();
    let (_, from) = answerer.recv_from(&mut buffer).unwrap();
    for _ in 0..2 {
        run("conntrack -F");
        answerer.send_to(b"answer", from).unwrap();
        asker.recv(&mut buffer).unwrap();
        served.write_all(b"answer..").unwrap();
        stream.read_exact(&mut buffer[..8]).unwrap();
    }
}

#[test]
fn a_kernel_takes_the_plaintext_that_policy_lets_in() {
    in_namespace(
        "screen::a_kernel_takes_the_plaintext_that_policy_lets_in",
        || {
            let wire = Wire::new();
            let settings = settings();
            let mut installed = Steering::default();
            Rules::shared(&settings).install(&installed).unwrap();
            tun();
            block_on(host::install_routes(&settings)).unwrap();
            let hosts = HOSTS.map(|host| Host::new(ip(host)));
            for (name, steering, expected) in rows() {
                Rules::shared(&settings)
                    .update(&installed, &steering)
                    .unwrap();
                installed = steering;
                for (family, here) in hosts.iter().enumerate() {
                    for (source, expected) in [PEERS, OUTSIDERS].into_iter().zip(expected) {
                        let source = ip(source[family]);
                        for kind in [
                            (6, Some(80)),
                            (6, Some(443)),
                            (17, Some(80)),
                            (17, Some(443)),
                            (1, None),
                        ] {
                            let taken = here.takes(&wire, source, kind);
                            assert_eq!(
                                taken,
                                expected.contains(&kind),
                                "{name}: {kind:?} from {source}"
                            );
                            let said =
                                installed.accepts_plaintext(source, here.address, kind.0, kind.1);
                            assert_eq!(taken, said, "{name}: {kind:?} from {source}");
                        }
                    }
                    // what the host opens itself goes on, also when conntrack forgets it, and with whom it refuses
                    let there = SocketAddr::new(ip(OUTSIDERS[family]), 123);
                    exchange(&wire, here.address, there);
                    download(&wire, here.address, there);
                }
            }
            Rules::shared(&settings)
                .update(&installed, &Steering::default())
                .unwrap();
            for set in [
                "strict_all",
                "strict_port",
                "permissive_port",
                "refuse_port",
                "refuse_portless",
                "refuse_at",
            ] {
                for family in ["4", "6"] {
                    let listing = run(&format!("nft list set inet idt-host {set}{family}"));
                    assert!(!listing.contains("elements"), "left: {listing}");
                }
            }
            block_on(host::down(&settings)).unwrap();
            run(&format!("ip link del {TUN}"));
        },
    );
}

/// A workload in a namespace of its own, behind the host.
const WORKLOADS: [&str; 2] = ["10.78.0.2", "fd78::2"];

fn workload(wire: &Wire) -> Wire {
    let inside = Wire::apart();
    run(&format!(
        "ip link add idt-host-w0 type veth peer name idt-host-w1 netns {}",
        inside.pid()
    ));
    run("ip addr add 10.78.0.1/24 dev idt-host-w0; ip addr add fd78::1/64 dev idt-host-w0 nodad");
    run("ip link set idt-host-w0 up");
    run("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    inside.enter(|| {
        run("ip link set lo up; ip link set idt-host-w1 up; ip addr add 10.78.0.2/24 dev idt-host-w1");
        run("ip addr add fd78::2/64 dev idt-host-w1 nodad");
        run("ip route add default via 10.78.0.1; ip -6 route add default via fd78::1");
    });
    wire.enter(|| {
        run("ip route add 10.78.0.0/24 via 10.77.0.1; ip -6 route add fd78::/64 via fd77::1");
    });
    inside
}

#[test]
fn a_forwarded_workload_is_screened_like_the_host() {
    in_namespace(
        "screen::a_forwarded_workload_is_screened_like_the_host",
        || {
            let wire = Wire::new();
            let inside = workload(&wire);
            let mut settings = settings();
            settings.workload_interfaces = vec!["idt-host-w0".into()];
            let mut steering = Steering::default();
            steering.exempt.insert((17, EXEMPT));
            for (workload, outsider) in WORKLOADS.map(ip).into_iter().zip(OUTSIDERS.map(ip)) {
                steering
                    .refuse_port
                    .insert((outsider.into(), workload, 80, 443));
                steering.refuse_portless.insert((outsider.into(), workload));
                for protocol in [6, 17, 132] {
                    steering.strict_port.insert((workload, protocol, 443));
                }
            }
            Rules::shared(&settings).install(&steering).unwrap();
            tun();
            block_on(host::install_routes(&settings)).unwrap();
            for (family, address) in WORKLOADS.map(ip).into_iter().enumerate() {
                let here = inside.enter(|| Host::new(address));
                for source in [ip(PEERS[family]), ip(OUTSIDERS[family])] {
                    for kind in [
                        (6, Some(80)),
                        (17, Some(80)),
                        (6, Some(443)),
                        (6, Some(9000)),
                        (1, None),
                    ] {
                        let taken = here.takes(&wire, source, kind);
                        let said = steering.accepts_plaintext(source, address, kind.0, kind.1);
                        assert_eq!(taken, said, "{kind:?} from {source} to {address}");
                    }
                }
            }
        },
    );
}
