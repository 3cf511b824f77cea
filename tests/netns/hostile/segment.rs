//! Whoever sits on the segment: plaintext in every form to a STRICT host, packets put into flows of a tunnel, and forged
//! ICMP about them. None is delivered, and each kind has its twin that is.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
};

use crate::{
    capture::MARKER,
    forge::{Gun, Scale, places},
    hostile::kinds::{Scene, kinds},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, tcp_echo},
};

/// How many of each kind, and how many between two looks at the honest flows.
const EACH: u16 = 1_200;
const ROUND: u16 = 400;
/// How many of each kind must arrive where no rules are.
const TWINS: u16 = 3;

/// A TCP connection and a UDP flow of one family from the client to the server's echo, open all the time.
struct Honest {
    tcp: TcpStream,
    udp: UdpSocket,
}

impl Honest {
    fn open(to: &str) -> Self {
        let to = SocketAddr::new(to.parse().unwrap(), PORT);
        let any = SocketAddr::new(
            if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap(),
            0,
        );
        let (tcp, udp) = in_namespace("client", || {
            let udp = UdpSocket::bind(any).unwrap();
            udp.connect(to).unwrap();
            (TcpStream::connect_timeout(&to, PATIENCE).unwrap(), udp)
        });
        tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { tcp, udp }
    }

    /// Both work, and bring back what was sent and nothing else.
    #[track_caller]
    fn echo(&self) {
        let mut answer = [0; 2 * MARKER.len()];
        (&self.tcp).write_all(MARKER).unwrap();
        (&self.tcp).read_exact(&mut answer[..MARKER.len()]).unwrap();
        assert_eq!(&answer[..MARKER.len()], MARKER);
        self.udp.send(MARKER).unwrap();
        let len = self.udp.recv(&mut answer).unwrap();
        assert_eq!(&answer[..len], MARKER);
    }

    fn scene(&self, ends: [&str; 3]) -> Scene {
        let [client, server, router] = ends.map(|end| end.parse().unwrap());
        Scene {
            client,
            server,
            router,
            tcp: self.tcp.local_addr().unwrap(),
            udp: self.udp.local_addr().unwrap(),
            places: places(&self.tcp),
        }
    }
}

/// Packets that a host's link brought.
fn arrivals(rig: &Rig, host: &str) -> u64 {
    let text = rig.on(host, &["cat", "/sys/class/net/eth0/statistics/rx_packets"]);
    text.trim().parse().unwrap()
}

/// A smaller MTU that a host learned for a path.
fn path_mtus(rig: &Rig) -> String {
    let routes = [
        rig.on("client", &["ip", "route", "get", SERVER_4]),
        rig.on("client", &["ip", "-6", "route", "get", SERVER_6]),
    ];
    routes
        .concat()
        .lines()
        .filter(|line| line.contains("mtu"))
        .collect()
}

/// The attacker's guns by where they point.
struct Battery {
    server: Gun,
    client: Gun,
}

impl Battery {
    fn at(rig: &Rig) -> Self {
        let (server, client) = (Gun::at(rig, "server"), Gun::at(rig, "client"));
        Self { server, client }
    }

    /// Fires packets `from..to` of every kind; returns how many that were.
    fn fire(&self, scenes: &[Scene; 2], numbers: std::ops::Range<u16>) -> u64 {
        let mut fired = 0;
        for (kind, family, number) in kinds() {
            let gun = if kind.at == "server" {
                &self.server
            } else {
                &self.client
            };
            for n in numbers.clone() {
                for packet in (kind.forge)(&scenes[family], number, n) {
                    gun.fire(&packet);
                    fired += 1;
                }
            }
        }
        fired
    }
}

#[test]
fn nothing_that_is_forged_on_the_segment_reaches_an_application() {
    in_namespaces(
        "hostile::segment::nothing_that_is_forged_on_the_segment_reaches_an_application",
        |rig| {
            rig.standard(STRICT);
            let daemons = (rig.start("server"), rig.start("client"));
            let application = Echo::start("server", PORT);
            let honest = [Honest::open(SERVER_4), Honest::open(SERVER_6)];
            honest.iter().for_each(Honest::echo);
            let scenes = || {
                [
                    honest[0].scene([CLIENT_4, SERVER_4, "198.18.1.1"]),
                    honest[1].scene([CLIENT_6, SERVER_6, "fd00:1::1"]),
                ]
            };
            let battery = Battery::at(&rig);
            let arrived = || arrivals(&rig, "server") + arrivals(&rig, "client");

            let scales = [Scale::at("server"), Scale::at("client")];
            let (before, mut fired, mut looks) = (arrived(), 0, 1);
            for start in (0..EACH).step_by(ROUND.into()) {
                fired += battery.fire(&scenes(), start..start + ROUND);
                honest.iter().for_each(Honest::echo);
                looks += 1;
            }
            let through = scales.map(Scale::stop);
            println!(
                "{fired} packets of {} kinds, {through:?} delivered",
                kinds().count()
            );
            assert!(arrived() - before >= fired, "they did not even arrive");
            assert_eq!(through, [0, 0], "packets of an attacker were delivered");
            assert_eq!(application.connections(), 2, "only the honest connections");
            assert_eq!(
                application.datagrams(),
                2 * looks,
                "only the honest datagrams"
            );
            assert_eq!(path_mtus(&rig), "", "a forged error changed a path");

            // The twins: where no rules are, each of these kinds arrives.
            daemons.0.terminate();
            daemons.1.terminate();
            for host in ["server", "client"] {
                rig.identun(host, &["down", "--config", &rig.settings(host)]);
            }
            let scales = [Scale::at("server"), Scale::at("client")];
            battery.fire(&scenes(), EACH..EACH + TWINS);
            for (kind, family, number) in kinds() {
                let what = format!("{} (family {family}) where no rules are", kind.name);
                let scale = &scales[usize::from(kind.at == "client")];
                wait_for(&what, || scale.count(number) >= TWINS.into());
            }
            wait_for("a path to shrink", || path_mtus(&rig).contains("1280"));
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();
        },
    );
}
