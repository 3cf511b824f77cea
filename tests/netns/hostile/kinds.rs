//! What somebody on the segment can send: plaintext in every form, packets of other people's flows, forged errors.

use std::net::{IpAddr, SocketAddr};

use crate::{
    forge::{
        ACK, EXPERIMENT, Extension, FIN, IP6_IN_IP, IPIP, RST, SCTP, SYN, TCP, UDP, behind, echo,
        fragments, icmp, icmp_of, ip, ip4, ip6, payload, tcp, udp,
    },
    mesh::PORT,
};

/// The honest flows of one family that forged packets are put into.
pub(super) struct Scene {
    pub(super) client: IpAddr,
    pub(super) server: IpAddr,
    /// The next router of the client.
    pub(super) router: IpAddr,
    pub(super) tcp: SocketAddr,
    pub(super) udp: SocketAddr,
    /// Where the TCP flow stands: what the client sends next, and what it wants next.
    pub(super) places: (u32, u32),
}

impl Scene {
    /// Some address outside the mesh, and some port.
    fn stranger(&self, n: u16) -> SocketAddr {
        let host = 3 + n % 250;
        let address = if self.client.is_ipv4() {
            format!("198.18.3.{host}")
        } else {
            format!("fd00:3::{host:x}")
        };
        SocketAddr::new(address.parse().unwrap(), 1_024 + n)
    }

    fn service(&self) -> SocketAddr {
        SocketAddr::new(self.server, PORT)
    }

    /// A packet of `protocol` from a stranger to the server.
    fn plain(&self, protocol: u8, n: u16, body: &[u8]) -> Vec<u8> {
        ip(self.stranger(n).ip(), self.server, protocol, n, body)
    }

    fn datagram(&self, kind: u8, n: u16) -> Vec<u8> {
        udp(self.stranger(n), self.service(), &payload(kind))
    }

    fn syn(&self, kind: u8, n: u16) -> Vec<u8> {
        let source = self.stranger(n);
        tcp(source, self.service(), SYN, (n.into(), 0), &[], kind)
    }

    /// A segment of the TCP flow between the two, to the server or back.
    fn in_tcp(&self, to_server: bool, flags: u8, kind: u8, n: u16, body: &[u8]) -> Vec<Vec<u8>> {
        let (mut from, mut to) = (self.tcp, self.service());
        if !to_server {
            (from, to) = (to, from);
        }
        // At the very place where the connection stands, though who sits on the segment does not see it.
        let (sent, wanted) = self.places;
        let numbers = if to_server {
            (sent, wanted)
        } else {
            (wanted, sent)
        };
        let segment = tcp(from, to, flags, numbers, body, kind);
        vec![ip(from.ip(), to.ip(), TCP, n, &segment)]
    }

    /// A datagram of the UDP flow between the two, to the server or back.
    fn in_udp(&self, to_server: bool) -> (SocketAddr, SocketAddr) {
        if to_server {
            (self.udp, self.service())
        } else {
            (self.service(), self.udp)
        }
    }

    /// An ICMP error to the client about what it sent to the server.
    fn error(&self, v4: (u8, u8), v6: (u8, u8), mtu: u16, about: u8, kind: u8) -> Vec<Vec<u8>> {
        let quoted = if about == TCP {
            tcp(self.tcp, self.service(), ACK, (1, 1), &payload(kind), kind)
        } else {
            udp(self.udp, self.service(), &payload(kind))
        };
        let quoted = ip(self.client, self.server, about, 1, &quoted);
        let code = if self.client.is_ipv4() { v4 } else { v6 };
        let [high, low] = mtu.to_be_bytes();
        let message = icmp(self.router, self.client, code, [0, 0, high, low], &quoted);
        vec![ip(
            self.router,
            self.client,
            icmp_of(self.client),
            1,
            &message,
        )]
    }
}

/// Which families a kind has.
#[derive(Clone, Copy, PartialEq)]
enum Families {
    Both,
    V4,
    V6,
}

/// What an attacker on the segment sends; the number and how many there were before make each another one.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) at: &'static str,
    families: Families,
    pub(super) forge: fn(&Scene, u8, u16) -> Vec<Vec<u8>>,
}

const fn kind(
    name: &'static str,
    at: &'static str,
    families: Families,
    forge: fn(&Scene, u8, u16) -> Vec<Vec<u8>>,
) -> Kind {
    Kind {
        name,
        at,
        families,
        forge,
    }
}

/// Four bytes of padding and an end (RFC 791 §3.1).
const OPTIONS: [u8; 4] = [1, 1, 1, 0];

const KINDS: &[Kind] = {
    use Families::{Both, V4, V6};
    &[
        kind("tcp syn", "server", Both, |s, k, n| {
            vec![s.plain(TCP, n, &s.syn(k, n))]
        }),
        kind("tcp syn with data", "server", Both, |s, k, n| {
            let segment = tcp(s.stranger(n), s.service(), SYN, (1, 0), &payload(k), k);
            vec![s.plain(TCP, n, &segment)]
        }),
        kind("tcp data out of nowhere", "server", Both, |s, k, n| {
            let segment = tcp(s.stranger(n), s.service(), ACK, (1, 1), &payload(k), k);
            vec![s.plain(TCP, n, &segment)]
        }),
        kind("udp", "server", Both, |s, k, n| {
            vec![s.plain(UDP, n, &s.datagram(k, n))]
        }),
        kind("udp in fragments", "server", Both, |s, k, n| {
            let body = [payload(k), vec![0; 1_600]].concat();
            let datagram = udp(s.stranger(n), s.service(), &body);
            fragments(s.stranger(n).ip(), s.server, UDP, n, &datagram, 1_200)
        }),
        kind(
            "udp, first fragment with its ports only",
            "server",
            Both,
            |s, k, n| fragments(s.stranger(n).ip(), s.server, UDP, n, &s.datagram(k, n), 8),
        ),
        kind(
            "tcp syn, first fragment with its ports only",
            "server",
            V4,
            |s, k, n| fragments(s.stranger(n).ip(), s.server, TCP, n, &s.syn(k, n), 8),
        ),
        kind("udp behind IPv4 options", "server", V4, |s, k, n| {
            let source = s.stranger(n).ip();
            vec![ip4(
                source,
                s.server,
                UDP,
                &OPTIONS,
                (n, 0x4000),
                &s.datagram(k, n),
            )]
        }),
        kind("tcp syn behind IPv4 options", "server", V4, |s, k, n| {
            let source = s.stranger(n).ip();
            vec![ip4(
                source,
                s.server,
                TCP,
                &OPTIONS,
                (n, 0x4000),
                &s.syn(k, n),
            )]
        }),
        kind("udp behind hop-by-hop options", "server", V6, |s, k, n| {
            let (next, body) = behind(Extension::HopByHop, UDP, &s.datagram(k, n));
            vec![ip6(s.stranger(n).ip(), s.server, next, &body)]
        }),
        kind("udp behind destination options", "server", V6, |s, k, n| {
            let (next, body) = behind(Extension::DestinationOptions, UDP, &s.datagram(k, n));
            vec![ip6(s.stranger(n).ip(), s.server, next, &body)]
        }),
        kind("udp behind a routing header", "server", V6, |s, k, n| {
            let (next, body) = behind(Extension::Routing, UDP, &s.datagram(k, n));
            vec![ip6(s.stranger(n).ip(), s.server, next, &body)]
        }),
        kind("tcp syn behind three headers", "server", V6, |s, k, n| {
            let (next, body) = behind(Extension::Routing, TCP, &s.syn(k, n));
            let (next, body) = behind(Extension::DestinationOptions, next, &body);
            let (next, body) = behind(Extension::HopByHop, next, &body);
            vec![ip6(s.stranger(n).ip(), s.server, next, &body)]
        }),
        kind("sctp", "server", Both, |s, k, n| {
            let ports = [s.stranger(n).port(), PORT].map(u16::to_be_bytes).concat();
            vec![s.plain(SCTP, n, &[&ports, &[0; 8][..], &payload(k)].concat())]
        }),
        kind("protocol 253", "server", Both, |s, k, n| {
            vec![s.plain(EXPERIMENT, n, &payload(k))]
        }),
        kind("ip in ip", "server", Both, |s, k, n| {
            let inner = ip(
                s.client,
                s.server,
                UDP,
                n,
                &udp(s.udp, s.service(), &payload(k)),
            );
            let protocol = if s.client.is_ipv4() { IPIP } else { IP6_IN_IP };
            vec![s.plain(protocol, n, &inner)]
        }),
        kind("ping", "server", Both, |s, k, n| {
            let message = echo(s.stranger(n).ip(), s.server, n, &payload(k));
            vec![s.plain(icmp_of(s.server), n, &message)]
        }),
        kind("udp from port 53", "server", Both, |s, k, n| {
            let source = SocketAddr::new(s.stranger(n).ip(), 53);
            vec![s.plain(UDP, n, &udp(source, s.service(), &payload(k)))]
        }),
        kind(
            "udp from the tunnels' port of a mesh host",
            "server",
            Both,
            |s, k, n| {
                let source = SocketAddr::new(s.client, 15_008);
                let datagram = udp(source, s.service(), &payload(k));
                vec![ip(s.client, s.server, UDP, n, &datagram)]
            },
        ),
        kind("udp from a mesh host", "server", Both, |s, k, n| {
            let source = SocketAddr::new(s.client, 1_024 + n);
            let datagram = udp(source, s.service(), &payload(k));
            vec![ip(s.client, s.server, UDP, n, &datagram)]
        }),
        kind("tcp syn from a mesh host", "server", Both, |s, k, n| {
            let source = SocketAddr::new(s.client, 1_024 + n);
            let segment = tcp(source, s.service(), SYN, (1, 0), &[], k);
            vec![ip(s.client, s.server, TCP, n, &segment)]
        }),
        kind(
            "data into a tcp flow, to the server",
            "server",
            Both,
            |s, k, n| s.in_tcp(true, ACK, k, n, &payload(k)),
        ),
        kind(
            "reset of a tcp flow, to the server",
            "server",
            Both,
            |s, k, n| s.in_tcp(true, RST | ACK, k, n, &[]),
        ),
        kind(
            "syn into a tcp flow, to the server",
            "server",
            Both,
            |s, k, n| s.in_tcp(true, SYN, k, n, &[]),
        ),
        kind(
            "data into a tcp flow, to the client",
            "client",
            Both,
            |s, k, n| s.in_tcp(false, ACK, k, n, &payload(k)),
        ),
        kind(
            "reset of a tcp flow, to the client",
            "client",
            Both,
            |s, k, n| s.in_tcp(false, RST, k, n, &[]),
        ),
        kind(
            "end of a tcp flow, to the client",
            "client",
            Both,
            |s, k, n| s.in_tcp(false, FIN | ACK, k, n, &[]),
        ),
        kind(
            "datagram into a udp flow, to the server",
            "server",
            Both,
            |s, k, n| {
                let (from, to) = s.in_udp(true);
                vec![ip(from.ip(), to.ip(), UDP, n, &udp(from, to, &payload(k)))]
            },
        ),
        kind(
            "datagram into a udp flow, to the client",
            "client",
            Both,
            |s, k, n| {
                let (from, to) = s.in_udp(false);
                vec![ip(from.ip(), to.ip(), UDP, n, &udp(from, to, &payload(k)))]
            },
        ),
        kind(
            "fragments into a udp flow, to the client",
            "client",
            Both,
            |s, k, n| {
                let (from, to) = s.in_udp(false);
                let datagram = udp(from, to, &payload(k));
                fragments(from.ip(), to.ip(), UDP, n, &datagram, 8)
            },
        ),
        kind("too big, about a tcp flow", "client", Both, |s, k, _| {
            s.error((3, 4), (2, 0), 1_280, TCP, k)
        }),
        kind("too big, about a udp flow", "client", Both, |s, k, _| {
            s.error((3, 4), (2, 0), 1_280, UDP, k)
        }),
        kind(
            "port unreachable, about a udp flow",
            "client",
            Both,
            |s, k, _| s.error((3, 3), (1, 4), 0, UDP, k),
        ),
        kind(
            "host unreachable, about a tcp flow",
            "client",
            Both,
            |s, k, _| s.error((3, 1), (1, 3), 0, TCP, k),
        ),
        kind("prohibited, about a tcp flow", "client", Both, |s, k, _| {
            s.error((3, 13), (1, 1), 0, TCP, k)
        }),
        kind(
            "time exceeded, about a udp flow",
            "client",
            Both,
            |s, k, _| s.error((11, 0), (3, 0), 0, UDP, k),
        ),
    ]
};

/// Every kind in each of its families, with the number that its packets carry.
pub(super) fn kinds() -> impl Iterator<Item = (&'static Kind, usize, u8)> {
    KINDS.iter().zip(0u8..).flat_map(|(kind, index)| {
        [0, 1]
            .into_iter()
            .filter(move |family| match kind.families {
                Families::Both => true,
                Families::V4 => *family == 0,
                Families::V6 => *family == 1,
            })
            .map(move |family| (kind, family, index * 2 + u8::try_from(family).unwrap()))
    })
}
