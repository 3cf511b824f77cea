//! Packets of any form, made by hand: their builders, a gun that puts them on a host's link, and a scale behind all
//! rules of a host that weighs what came through.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::net::netdevice::name_to_index;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    capture::force_buffer,
    foreign::checksum,
    rig::{Rig, in_namespace},
};

pub(crate) const ICMP: u8 = 1;
pub(crate) const IPIP: u8 = 4;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const IP6_IN_IP: u8 = 41;
pub(crate) const ICMP6: u8 = 58;
pub(crate) const SCTP: u8 = 132;
pub(crate) const EXPERIMENT: u8 = 253;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// What a forged packet carries, so that the scale knows it; its number follows.
const SIGN: &[u8] = b"FORGED-PACKET";
/// Segments without a payload have it in the urgent pointer, which nobody reads without the URG flag.
const SIGN_OF_SEGMENTS: u8 = 0xb6;
/// How many kinds of packets a scale tells apart.
const KINDS: usize = 128;

/// A payload that the scale counts for `kind`.
pub(crate) fn payload(kind: u8) -> Vec<u8> {
    [SIGN, &[kind]].concat()
}

/// An ICMP of either family is told by one number here.
pub(crate) fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMP6 }
}

/// A whole IP packet.
pub(crate) fn ip(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u16,
    body: &[u8],
) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            ip4(source, destination, protocol, &[], (id, 0x4000), body)
        }
        _ => ip6(source, destination, protocol, body),
    }
}

/// IPv4 with `options` (a multiple of four bytes) and the fragment word that follows the ID.
pub(crate) fn ip4(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    options: &[u8],
    (id, fragment): (u16, u16),
    body: &[u8],
) -> Vec<u8> {
    let len = 20 + options.len();
    let words = u8::try_from(len / 4).unwrap();
    let total = u16::try_from(len + body.len()).unwrap();
    let mut header = vec![0x40 | words, 0];
    for field in [total, id, fragment] {
        header.extend(field.to_be_bytes());
    }
    header.extend([64, protocol, 0, 0]);
    header.extend(octets(source));
    header.extend(octets(destination));
    header.extend(options);
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    [header, body.to_vec()].concat()
}

/// IPv6 with `next` right behind its header.
pub(crate) fn ip6(source: IpAddr, destination: IpAddr, next: u8, body: &[u8]) -> Vec<u8> {
    let len = u16::try_from(body.len()).unwrap().to_be_bytes();
    let mut header = vec![0x60, 0, 0, 0, len[0], len[1], next, 64];
    for address in [source, destination] {
        header.extend(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        });
    }
    [header, body.to_vec()].concat()
}

/// `body` of protocol `next` behind one IPv6 extension header; gives its number and itself.
pub(crate) fn behind(header: Extension, next: u8, body: &[u8]) -> (u8, Vec<u8>) {
    let (number, rest) = match header {
        // Six octets of padding (PadN).
        Extension::HopByHop => (HOP_BY_HOP, [1, 4, 0, 0, 0, 0]),
        Extension::DestinationOptions => (DESTINATION_OPTIONS, [1, 4, 0, 0, 0, 0]),
        // Type 0 with no segment left, which a host has to skip (RFC 5095 §3).
        Extension::Routing => (ROUTING, [0, 0, 0, 0, 0, 0]),
    };
    (number, [&[next, 0], &rest[..], body].concat())
}

#[derive(Clone, Copy)]
pub(crate) enum Extension {
    HopByHop,
    DestinationOptions,
    Routing,
}

/// A packet's payload in two fragments, the first of `first` bytes (a multiple of eight).
pub(crate) fn fragments(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    id: u16,
    body: &[u8],
    first: usize,
) -> Vec<Vec<u8>> {
    let (head, tail) = body.split_at(first);
    let units = u16::try_from(first / 8).unwrap();
    if source.is_ipv4() {
        return vec![
            ip4(source, destination, protocol, &[], (id, 0x2000), head),
            ip4(source, destination, protocol, &[], (id, units), tail),
        ];
    }
    let piece = |word: u16, body: &[u8]| {
        let [high, low] = word.to_be_bytes();
        let [id_high, id_low] = id.to_be_bytes();
        let header = [protocol, 0, high, low, 0, 0, id_high, id_low];
        ip6(source, destination, FRAGMENT, &[&header, body].concat())
    };
    vec![piece(1, head), piece(units << 3, tail)]
}

/// A UDP datagram with its checksum.
pub(crate) fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = [source.port(), destination.port(), len, 0]
        .map(u16::to_be_bytes)
        .concat();
    datagram.extend(payload);
    let sum = transport_sum(source.ip(), destination.ip(), UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum);
    datagram
}

/// A TCP segment with its checksum, and the sign of `kind` in its urgent pointer.
pub(crate) fn tcp(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    (sequence, acknowledged): (u32, u32),
    payload: &[u8],
    kind: u8,
) -> Vec<u8> {
    let mut segment = [source.port(), destination.port()]
        .map(u16::to_be_bytes)
        .concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledged.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, SIGN_OF_SEGMENTS, kind]);
    segment.extend(payload);
    let sum = transport_sum(source.ip(), destination.ip(), TCP, &segment);
    segment[16..18].copy_from_slice(&sum);
    segment
}

/// An ICMP or ICMPv6 message with its checksum; `rest` is the word behind the checksum.
pub(crate) fn icmp(
    source: IpAddr,
    destination: IpAddr,
    (kind, code): (u8, u8),
    rest: [u8; 4],
    body: &[u8],
) -> Vec<u8> {
    let mut message = [&[kind, code, 0, 0], &rest[..], body].concat();
    let sum = if source.is_ipv4() {
        checksum(&message)
    } else {
        transport_sum(source, destination, ICMP6, &message)
    };
    message[2..4].copy_from_slice(&sum);
    message
}

/// An ICMP echo request.
pub(crate) fn echo(source: IpAddr, destination: IpAddr, n: u16, payload: &[u8]) -> Vec<u8> {
    let kind = if source.is_ipv4() { 8 } else { 128 };
    let [high, low] = n.to_be_bytes();
    icmp(
        source,
        destination,
        (kind, 0),
        [0x1d, 0x1d, high, low],
        payload,
    )
}

fn transport_sum(source: IpAddr, destination: IpAddr, protocol: u8, body: &[u8]) -> [u8; 2] {
    let len = u32::try_from(body.len()).unwrap().to_be_bytes();
    let pseudo = [
        octets(source),
        octets(destination),
        len.to_vec(),
        vec![0, 0, 0, protocol],
        body.to_vec(),
    ];
    checksum(&pseudo.concat())
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Where a connection stands: what it sends next, and what it wants next.
pub(crate) fn places(connection: &TcpStream) -> (u32, u32) {
    const RECEIVE_QUEUE: i32 = 1;
    const SEND_QUEUE: i32 = 2;
    const OFF_WITHOUT_PROBE: i32 = -1;
    set_tcp(connection, libc::TCP_REPAIR, 1);
    let place = |queue| {
        set_tcp(connection, libc::TCP_REPAIR_QUEUE, queue);
        tcp_queue_seq(connection)
    };
    let places = (place(SEND_QUEUE), place(RECEIVE_QUEUE));
    set_tcp(connection, libc::TCP_REPAIR, OFF_WITHOUT_PROBE);
    places
}

#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
fn set_tcp(connection: &TcpStream, option: i32, value: i32) {
    let (at, len) = (
        std::ptr::from_ref(&value).cast(),
        size_of::<i32>() as libc::socklen_t,
    );
    // SAFETY: the pointer and length are those of a live i32.
    let result =
        unsafe { libc::setsockopt(connection.as_raw_fd(), libc::IPPROTO_TCP, option, at, len) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
fn tcp_queue_seq(connection: &TcpStream) -> u32 {
    let mut value = 0u32;
    let mut len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the pointer and length are those of a live u32.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_QUEUE_SEQ,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    value
}

/// Puts packets on the link of one host, from the wire's side: whatever they say, they arrive there.
pub(crate) struct Gun {
    socket: Socket,
    macs: Vec<u8>,
}

impl Gun {
    /// The wire has a port of its own for each host, called like the host.
    pub(crate) fn at(rig: &Rig, host: &'static str) -> Self {
        let mac = |namespace: &str, link: &str| -> Vec<u8> {
            let text = rig.on(
                namespace,
                &["cat", &format!("/sys/class/net/{link}/address")],
            );
            let octets = text.trim().split(':');
            octets
                .map(|octet| u8::from_str_radix(octet, 16).unwrap())
                .collect()
        };
        Self {
            socket: in_namespace("wire", || packet_socket(host)),
            macs: [mac(host, "eth0"), mac("wire", host)].concat(),
        }
    }

    pub(crate) fn fire(&self, packet: &[u8]) {
        let ethertype = if packet[0] >> 4 == 4 {
            [8, 0]
        } else {
            [0x86, 0xdd]
        };
        let frame = [&self.macs, &ethertype[..], packet].concat();
        self.socket.send(&frame).unwrap();
    }
}

#[expect(unsafe_code, reason = "socket2 knows no addresses of links")]
fn packet_socket(link: &str) -> Socket {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
    let index = name_to_index(&socket, link).unwrap();
    // SAFETY: a sockaddr_ll is written where it fits, with its family and its length.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, len| {
            let address = (*storage).view_as::<libc::sockaddr_ll>();
            address.sll_family = libc::AF_PACKET.try_into().unwrap();
            address.sll_ifindex = index.try_into().unwrap();
            *len = size_of::<libc::sockaddr_ll>().try_into().unwrap();
            Ok(())
        })
    }
    .unwrap();
    socket.bind(&address).unwrap();
    socket
}

/// Counts what gets past every rule of a host: raw sockets, one for each protocol, which the kernel serves where it gives
/// packets to applications.
pub(crate) struct Scale {
    counts: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Scale {
    pub(crate) fn at(host: &'static str) -> Self {
        let counts: Arc<Vec<_>> = Arc::new((0..KINDS).map(|_| AtomicU64::new(0)).collect());
        let stop = Arc::new(AtomicBool::new(false));
        let protocols = [
            (
                Domain::IPV4,
                vec![ICMP, IPIP, TCP, UDP, IP6_IN_IP, SCTP, EXPERIMENT],
            ),
            (
                Domain::IPV6,
                vec![ICMP6, IP6_IN_IP, TCP, UDP, SCTP, EXPERIMENT],
            ),
        ];
        let protocols = protocols
            .iter()
            .flat_map(|(domain, protocols)| protocols.iter().map(|protocol| (*domain, *protocol)));
        let threads = protocols.map(|(domain, protocol)| {
            let socket = in_namespace(host, || {
                Socket::new(domain, Type::RAW, Some(i32::from(protocol).into())).unwrap()
            });
            force_buffer(&socket, 64 << 20);
            let moment = Some(Duration::from_millis(50));
            socket.set_read_timeout(moment).unwrap();
            let (counts, stop) = (Arc::clone(&counts), Arc::clone(&stop));
            let header = domain == Domain::IPV4;
            thread::spawn(move || weigh(socket, protocol, header, &counts, &stop))
        });
        let threads = threads.collect();
        Self {
            counts,
            stop,
            threads,
        }
    }

    /// Packets of `kind` that came through.
    pub(crate) fn count(&self, kind: u8) -> u64 {
        self.counts[usize::from(kind)].load(Ordering::Relaxed)
    }

    /// Packets of all kinds that came through, once everything that is queued was weighed.
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

fn weigh(
    mut socket: Socket,
    protocol: u8,
    has_header: bool,
    counts: &[AtomicU64],
    stop: &AtomicBool,
) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.read(&mut buffer) {
            Ok(len) => {
                let start = if has_header {
                    usize::from(buffer[0] & 15) * 4
                } else {
                    0
                };
                if let Some(kind) = kind_of(protocol, &buffer[start..len]) {
                    counts[usize::from(kind) % KINDS].fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(_) if stop.load(Ordering::Relaxed) => return,
            Err(_) => {}
        }
    }
}

fn kind_of(protocol: u8, body: &[u8]) -> Option<u8> {
    if protocol == TCP && body.len() >= 20 && body[18] == SIGN_OF_SEGMENTS {
        return Some(body[19]);
    }
    let at = body.windows(SIGN.len()).position(|window| window == SIGN)?;
    body.get(at + SIGN.len()).copied()
}
