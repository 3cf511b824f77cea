//! The packets that applications send, and how one is known again when it comes out elsewhere.

use std::net::IpAddr;

use identun::wire::{
    checksum,
    protocol::{ICMP, ICMPV6, TCP, UDP},
};

/// What every payload begins with: it must never be seen on the wire.
pub(crate) const MAGIC: &[u8; 8] = b"IN-CLEAR";
/// MAGIC and the packet's number.
pub(crate) const HEAD: usize = 12;
pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
/// Of a super-packet's segments.
const SEGMENT: usize = 1_100;

/// Addresses and ports.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Ends {
    pub(crate) from: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) ports: [u16; 2],
}

impl Ends {
    pub(crate) const fn reversed(self) -> Self {
        let [from, to] = self.ports;
        Self {
            from: self.to,
            to: self.from,
            ports: [to, from],
        }
    }
}

/// A payload of so many bytes that names packet `number` and is unlike every other one.
pub(crate) fn payload(number: u32, len: usize) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(number.to_be_bytes());
    let mut state = number;
    bytes.resize_with(len.max(HEAD), || {
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        state.to_be_bytes()[0]
    });
    bytes
}

/// The number that a payload names.
pub(crate) fn number(payload: &[u8]) -> Option<u32> {
    let rest = payload.strip_prefix(MAGIC)?;
    Some(u32::from_be_bytes(rest.get(..4)?.try_into().ok()?))
}

pub(crate) fn udp(ends: Ends, payload: &[u8]) -> Vec<u8> {
    let mut datagram = [ends.ports[0].to_be_bytes(), ends.ports[1].to_be_bytes()].concat();
    let len = u16::try_from(8 + payload.len()).unwrap();
    datagram.extend(len.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(payload);
    ip(ends, UDP, &datagram)
}

pub(crate) fn tcp(ends: Ends, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = [ends.ports[0].to_be_bytes(), ends.ports[1].to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend([0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(payload);
    ip(ends, TCP, &segment)
}

pub(crate) fn echo(ends: Ends, is_reply: bool, payload: &[u8]) -> Vec<u8> {
    let (protocol, kind) = match (ends.from.is_ipv6(), is_reply) {
        (false, false) => (ICMP, 8),
        (false, true) => (ICMP, 0),
        (true, false) => (ICMPV6, 128),
        (true, true) => (ICMPV6, 129),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(ends.ports[0].to_be_bytes());
    message.extend([0, 1]);
    message.extend_from_slice(payload);
    ip(ends, protocol, &message)
}

/// A frame of the TUN: virtio-net header and packet. A TCP segment larger than one is a super-packet.
pub(crate) fn frame(packet: &[u8], is_super: bool) -> Vec<u8> {
    let mut frame = vec![0; 10];
    if is_super {
        let (v6, ip) = if packet[0] >> 4 == 6 {
            (true, 40)
        } else {
            (false, 20)
        };
        frame[0] = 1; // the checksum is to be completed
        frame[1] = if v6 { 4 } else { 1 };
        frame[2..4].copy_from_slice(&u16::to_le_bytes(ip + 20));
        frame[4..6].copy_from_slice(&u16::try_from(SEGMENT).unwrap().to_le_bytes());
        frame[6..8].copy_from_slice(&u16::to_le_bytes(ip));
        frame[8..10].copy_from_slice(&16_u16.to_le_bytes());
        frame.extend_from_slice(packet);
        let (head, segment) = frame[10..].split_at_mut(usize::from(ip));
        checksum::put_partial(segment, addresses(head), TCP);
        return frame;
    }
    frame.extend_from_slice(packet);
    frame
}

fn ip(ends: Ends, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let [high, low] = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 7, 0x40, 0, 64, protocol, 0, 0];
            header.extend(from.octets());
            header.extend(to.octets());
            checksum::put_ipv4_header(&mut header);
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let [high, low] = u16::try_from(body.len()).unwrap().to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol, 64];
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        (_, _) => unreachable!("both ends have one family"),
    };
    let at = packet.len();
    packet.extend_from_slice(body);
    let (head, body) = packet.split_at_mut(at);
    match protocol {
        TCP | UDP => checksum::put_complete(body, addresses(head), protocol),
        ICMPV6 => {
            let pseudo = checksum::pseudo_header(addresses(head), protocol, body.len());
            let sum = checksum::combine(pseudo, checksum::sum(body));
            body[2..4].copy_from_slice(&(!sum).to_be_bytes());
        }
        _ => {
            let sum = !checksum::sum(body);
            body[2..4].copy_from_slice(&sum.to_be_bytes());
        }
    }
    packet
}

/// Both addresses of a header without extensions.
fn addresses(header: &[u8]) -> &[u8] {
    match header.len() {
        20 => &header[12..20],
        _ => &header[8..40],
    }
}
