//! An authenticated peer that lies about inner addresses, many thousand times and in every form; and one that speaks into
//! plaintext flows.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use crate::{
    capture::MARKER,
    foreign::{credentials, session},
    forge::{
        ACK, RST, SYN, Scale, TCP, UDP, echo, fragments, icmp, icmp_of, ip, payload, places, tcp,
        udp,
    },
    mesh::{
        CLIENT_4, CLIENT_6, NAKED_4, NAKED_6, PORT, SERVER_4, SERVER_6, STRICT, permissive,
        workload,
    },
    rig::{PATIENCE, Rig, in_namespace, in_namespaces},
    traffic::Echo,
};

/// How often all lies are told.
const ROUNDS: u16 = 440;
/// Log lines about all of them.
const LINES: usize = 8;
/// The sign of lies, and that of the honest packets.
const LIE: u8 = 0;
const HONEST: u8 = 1;

/// Other workloads: of the client's host, of the server's, and of a third one.
const SIDEKICK: [&str; 2] = ["198.18.1.3", "fd00:1::3"];
const OTHER: [&str; 2] = ["198.18.2.3", "fd00:2::3"];
const THIRD: [&str; 2] = ["198.18.4.2", "fd00:4::2"];

/// Inner source and destination of each lie, and the reason under which it is counted.
const LIES: &[(&str, &str, &str)] = &[
    (NAKED_4, SERVER_4, "foreign_source"),
    (SERVER_4, SERVER_4, "foreign_source"),
    (OTHER[0], SERVER_4, "foreign_source"),
    (SIDEKICK[0], SERVER_4, "foreign_source"),
    (THIRD[0], SERVER_4, "foreign_source"),
    ("198.18.1.255", SERVER_4, "foreign_source"),
    ("10.99.9.9", SERVER_4, "foreign_source"),
    ("127.0.0.1", SERVER_4, "martian"),
    ("0.0.0.0", SERVER_4, "martian"),
    ("169.254.1.1", SERVER_4, "martian"),
    ("224.0.0.1", SERVER_4, "martian"),
    ("240.0.0.1", SERVER_4, "martian"),
    ("255.255.255.255", SERVER_4, "martian"),
    (CLIENT_4, NAKED_4, "foreign_destination"),
    (CLIENT_4, OTHER[0], "foreign_destination"),
    (CLIENT_4, THIRD[0], "foreign_destination"),
    (CLIENT_4, "198.18.2.255", "foreign_destination"),
    (CLIENT_4, "169.254.1.1", "martian"),
    (CLIENT_4, "127.0.0.1", "martian"),
    (CLIENT_4, "224.0.0.1", "martian"),
    (CLIENT_4, "255.255.255.255", "martian"),
    (NAKED_6, SERVER_6, "foreign_source"),
    (SERVER_6, SERVER_6, "foreign_source"),
    (OTHER[1], SERVER_6, "foreign_source"),
    (SIDEKICK[1], SERVER_6, "foreign_source"),
    (THIRD[1], SERVER_6, "foreign_source"),
    ("fd00:dead::1", SERVER_6, "foreign_source"),
    ("::1", SERVER_6, "martian"),
    ("::", SERVER_6, "martian"),
    ("fe80::1", SERVER_6, "martian"),
    ("ff02::1", SERVER_6, "martian"),
    ("::ffff:198.18.1.2", SERVER_6, "martian"),
    (CLIENT_6, NAKED_6, "foreign_destination"),
    (CLIENT_6, OTHER[1], "foreign_destination"),
    (CLIENT_6, THIRD[1], "foreign_destination"),
    (CLIENT_6, "fe80::2", "martian"),
    (CLIENT_6, "ff02::1", "martian"),
    (CLIENT_6, "::1", "martian"),
];

/// The forms of a packet from one address to another: a datagram, a SYN, a ping, and a datagram in two fragments.
fn forms(source: IpAddr, destination: IpAddr, sign: u8, n: u16) -> Vec<Vec<u8>> {
    let (from, to) = (
        SocketAddr::new(source, 1_024 + n),
        SocketAddr::new(destination, PORT),
    );
    // Nobody listens there, so nobody waits for the rest of the handshake either.
    let closed = SocketAddr::new(destination, PORT + 1);
    let datagram = udp(from, to, &payload(sign));
    let syn = tcp(from, closed, SYN, (n.into(), 0), &[], sign);
    let ping = echo(source, destination, n, &payload(sign));
    let mut forms = vec![
        ip(source, destination, UDP, n, &datagram),
        ip(source, destination, TCP, n, &syn),
        ip(source, destination, icmp_of(source), n, &ping),
    ];
    let pieces = udp(from, to, &payload(sign));
    forms.extend(fragments(source, destination, UDP, n, &pieces, 8));
    forms
}

/// An ICMP error about a packet that its destination never sent to this peer.
fn error(source: IpAddr, destination: IpAddr, n: u16) -> Vec<u8> {
    let ends = (
        SocketAddr::new(destination, PORT),
        SocketAddr::new(source, 1_024 + n),
    );
    let quoted = udp(ends.0, ends.1, &payload(LIE));
    let quoted = ip(destination, source, UDP, n, &quoted);
    let code = if source.is_ipv4() { (3, 3) } else { (1, 4) };
    let message = icmp(source, destination, code, [0; 4], &quoted);
    ip(source, destination, icmp_of(source), n, &message)
}

fn framed(packet: &[u8]) -> Vec<u8> {
    [&[0, 0], packet].concat()
}

/// Two workloads on either host, one on a third; the server's kernel would forward what its daemon lets pass.
fn crowded(rig: &Rig) {
    rig.standard(STRICT);
    let entry = |name: &str, family: usize, address: &str, gateway| {
        workload(&format!("{name}-{family}"), address, name, gateway)
    };
    let entries: Vec<_> = [0, 1]
        .iter()
        .flat_map(|&family| {
            [
                entry("sidekick", family, SIDEKICK[family], Some(CLIENT_4)),
                entry("other", family, OTHER[family], Some(SERVER_4)),
                entry("third", family, THIRD[family], None),
            ]
        })
        .collect();
    rig.write("policies/crowd.yaml", &entries.join("---\n"));
    rig.configure("server", &["server", "other"], "");
    rig.on(
        "server",
        &[
            "ip",
            "addr",
            "add",
            &format!("{}/24", OTHER[0]),
            "dev",
            "eth0",
        ],
    );
    rig.on(
        "server",
        &[
            "ip",
            "addr",
            "add",
            &format!("{}/64", OTHER[1]),
            "dev",
            "eth0",
            "nodad",
        ],
    );
    let forwarding = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];
    rig.on("server", &[&["sysctl", "-qw"], &forwarding[..]].concat());
}

/// Packets that the daemon of the server wrote to its device.
fn written(rig: &Rig) -> u64 {
    let path = "/sys/class/net/identun0/statistics/rx_packets";
    rig.on("server", &["cat", path]).trim().parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn lies_about_inner_addresses_deliver_nothing_and_are_all_counted() {
    in_namespaces(
        "hostile::tunnel::lies_about_inner_addresses_deliver_nothing_and_are_all_counted",
        |rig| {
            crowded(&rig);
            let server = rig.start("server");
            let scales = ["server", "naked", "impostor"].map(Scale::at);
            let credentials = credentials(&rig, "client", "client");
            let socket = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
            let runtime = runtime();
            let (connection, _control) = runtime.block_on(session(socket, &credentials));
            let before = written(&rig);
            let send = |packet: &[u8]| connection.send_datagram(framed(packet).into()).unwrap();
            let parse = |text: &str| text.parse::<IpAddr>().unwrap();

            let (mut told, mut honest) = (BTreeMap::<&str, u64>::new(), 0);
            for n in 0..ROUNDS {
                for (source, destination, reason) in LIES {
                    let (source, destination) = (parse(source), parse(destination));
                    let mut packets = forms(source, destination, LIE, n);
                    packets.push(error(source, destination, n));
                    packets.iter().for_each(|packet| send(packet));
                    *told.entry(reason).or_default() += packets.len() as u64;
                }
                for (source, destination) in [(CLIENT_4, SERVER_4), (CLIENT_6, SERVER_6)] {
                    let packets = forms(parse(source), parse(destination), HONEST, n);
                    packets.iter().for_each(|packet| send(packet));
                    honest += packets.len() as u64;
                }
                // Each form of either family arrives, the fragments as one datagram; what was sent before has been handled.
                let whole = u64::from(n + 1) * 4 * 2;
                runtime.block_on(weighed(&scales[0], whole));
            }
            let drops = rig.status("server").unwrap()["drops"].clone();
            for (reason, count) in &told {
                let counted = drops[reason].as_u64().unwrap_or(0);
                // The kernel's own multicast reports on the device are martians too.
                let holds = counted == *count || *reason == "martian" && counted > *count;
                assert!(holds, "{reason}: {count} told, {drops}");
            }
            assert_eq!(
                written(&rig) - before,
                honest,
                "only the honest ones reach the device"
            );
            for scale in scales {
                assert_eq!(scale.count(LIE), 0, "a lie was delivered");
                scale.stop();
            }
            let log = rig.log("server");
            let lines = log
                .lines()
                .filter(|line| line.contains("packet refused"))
                .count();
            let total: u64 = told.values().sum();
            println!(
                "{total} lies, 0 of them and {honest} honest packets delivered: {told:?}; {lines} lines of log"
            );
            assert!(lines <= LINES, "{lines} lines of log:\n{log}");
            assert_eq!(connection.close_reason(), None);
            drop(server);
        },
    );
}

async fn weighed(scale: &Scale, count: u64) {
    let arrived = tokio::time::timeout(PATIENCE, async {
        while scale.count(HONEST) < count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    arrived.await.expect("the honest packets arrive");
}

/// Plaintext flows between the peer's own host and the server, which policy permits; the peer's host runs no daemon.
struct Plain {
    tcp: TcpStream,
    accepted: TcpStream,
    udp: UdpSocket,
}

impl Plain {
    fn open(listener: &TcpListener, from: &str, to: &str, port: u16) -> Self {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let (tcp, udp) = in_namespace("client", || {
            let udp = UdpSocket::bind((from.parse::<IpAddr>().unwrap(), 0)).unwrap();
            udp.connect(SocketAddr::new(to.ip(), PORT)).unwrap();
            (TcpStream::connect_timeout(&to, PATIENCE).unwrap(), udp)
        });
        let accepted = listener.accept().unwrap().0;
        for stream in [&tcp, &accepted] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { tcp, accepted, udp }
    }

    #[track_caller]
    fn works(&self) {
        let mut heard = [0; MARKER.len()];
        for (mut from, mut to) in [(&self.tcp, &self.accepted), (&self.accepted, &self.tcp)] {
            from.write_all(MARKER).unwrap();
            to.read_exact(&mut heard).unwrap();
            assert_eq!(heard, MARKER);
        }
        self.udp.send(MARKER).unwrap();
        assert_eq!(self.udp.recv(&mut heard).unwrap(), MARKER.len());
        assert_eq!(heard, MARKER);
    }

    /// What the peer puts into them through its tunnel, at the very place where the connection stands; the twin comes from
    /// other ports, and so is of flows of the tunnel.
    fn forged(&self, n: u16, sign: u8) -> Vec<Vec<u8>> {
        let (mut from, to) = (
            self.tcp.local_addr().unwrap(),
            self.tcp.peer_addr().unwrap(),
        );
        let mut datagram_from = self.udp.local_addr().unwrap();
        if sign == HONEST {
            for end in [&mut from, &mut datagram_from] {
                end.set_port(1_024 + n);
            }
        }
        let place = places(&self.tcp);
        let segment = |flags, body: &[u8]| tcp(from, to, flags, place, body, sign);
        let datagram_to = self.udp.peer_addr().unwrap();
        let datagram = udp(datagram_from, datagram_to, &payload(sign));
        [
            (TCP, segment(ACK, &payload(sign))),
            (TCP, segment(RST | ACK, &[])),
            (UDP, datagram),
        ]
        .iter()
        .map(|(protocol, body)| ip(from.ip(), to.ip(), *protocol, n, body))
        .collect()
    }
}

#[test]
fn a_peer_cannot_speak_into_plaintext_flows_through_its_tunnel() {
    const EACH: u16 = 500;
    const PLAIN: u16 = 9_100;
    in_namespaces(
        "hostile::tunnel::a_peer_cannot_speak_into_plaintext_flows_through_its_tunnel",
        |rig| {
            rig.standard(&permissive());
            let server = rig.start("server");
            let application = Echo::start("server", PORT);
            let listener = in_namespace("server", || TcpListener::bind(("::", PLAIN)).unwrap());
            let plain = [(CLIENT_4, SERVER_4), (CLIENT_6, SERVER_6)]
                .map(|(from, to)| Plain::open(&listener, from, to, PLAIN));
            plain.iter().for_each(Plain::works);
            let scale = Scale::at("server");
            let credentials = credentials(&rig, "client", "client");
            let socket = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
            let runtime = runtime();
            let (connection, _control) = runtime.block_on(session(socket, &credentials));
            let send = |packet: &[u8]| connection.send_datagram(framed(packet).into()).unwrap();

            let (mut forged, mut looks) = (0, 0);
            for n in 0..EACH {
                for packet in plain.iter().flat_map(|plain| plain.forged(n, LIE)) {
                    send(&packet);
                    forged += 1;
                }
                if n % 50 == 49 {
                    // The same from other ports: the peer's own flows come through the same tunnel.
                    let twins = plain.iter().flat_map(|plain| plain.forged(n, HONEST));
                    twins.for_each(|packet| send(&packet));
                    looks += 1;
                    runtime.block_on(weighed(&scale, looks * 6));
                    plain.iter().for_each(Plain::works);
                }
            }
            assert_eq!(
                scale.count(LIE),
                0,
                "a packet was put into a plaintext flow"
            );
            scale.stop();
            // The honest datagrams: before, and at each look two in plaintext and two through the tunnel.
            assert_eq!(application.datagrams(), 2 + 4 * looks);
            for stream in plain.iter().flat_map(|plain| [&plain.tcp, &plain.accepted]) {
                stream.set_nonblocking(true).unwrap();
                let more = (&*stream).read(&mut [0; 64]).map_err(|error| error.kind());
                assert_eq!(more, Err(ErrorKind::WouldBlock), "somebody else spoke");
            }
            println!("{forged} packets through the tunnel into plaintext flows, none delivered");
            drop(server);
        },
    );
}
