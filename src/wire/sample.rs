//! Packets for tests, and what smoltcp says of them.

use smoltcp::wire::{IpProtocol, IpVersion, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use crate::wire::{
    checksum,
    packet::{Packet, TcpFlags, address_bytes, put_ip_len},
    protocol,
};

/// An IP packet from `10.0.0.1` or `2001:db8::1` to `.2` or `::2`.
pub(crate) fn ip(is_ipv6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = if is_ipv6 {
        let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 63];
        packet.extend([address(1), address(2)].concat());
        packet
    } else {
        vec![
            0x45, 0, 0, 0, 0, 7, 0x40, 0, 63, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        ]
    };
    packet.extend_from_slice(payload);
    put_ip_len(&mut packet);
    packet
}

/// A TCP segment, complete.
#[derive(Clone, Debug)]
pub(crate) struct Tcp {
    pub(crate) is_ipv6: bool,
    pub(crate) ports: [u16; 2],
    pub(crate) sequence: u32,
    pub(crate) acknowledgment: u32,
    pub(crate) flags: u8,
    pub(crate) urgent: u16,
    pub(crate) options: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Default for Tcp {
    fn default() -> Self {
        Self {
            is_ipv6: false,
            ports: [1000, 80],
            sequence: 100,
            acknowledgment: 7,
            flags: TcpFlags::ACK,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }
}

impl Tcp {
    /// The whole IP packet.
    pub(crate) fn build(&self) -> Vec<u8> {
        let mut segment = [self.ports[0].to_be_bytes(), self.ports[1].to_be_bytes()].concat();
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.acknowledgment.to_be_bytes());
        let header = 20 + self.options.len().next_multiple_of(4);
        segment.extend([(header as u8 / 4) << 4, self.flags, 0x12, 0x34, 0, 0]);
        segment.extend(self.urgent.to_be_bytes());
        segment.extend(&self.options);
        segment.resize(header, 0);
        segment.extend(&self.payload);
        complete(ip(self.is_ipv6, protocol::TCP, &segment))
    }
}

/// A UDP datagram, complete, as a whole IP packet.
pub(crate) fn udp(is_ipv6: bool, ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let mut datagram = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend_from_slice(payload);
    complete(ip(is_ipv6, protocol::UDP, &datagram))
}

/// With its TCP or UDP checksum complete.
pub(crate) fn complete(mut packet: Vec<u8>) -> Vec<u8> {
    crate::wire::segment::complete_checksum(&mut packet).unwrap();
    packet
}

/// With the pseudo-header sum only.
pub(crate) fn partial(mut packet: Vec<u8>) -> Vec<u8> {
    let parsed = Packet::new_checked(&packet).unwrap();
    let (at, protocol) = (parsed.transport_offset(), parsed.protocol());
    let (ip, segment) = packet.split_at_mut(at);
    checksum::put_partial(segment, address_bytes(ip), protocol);
    packet
}

/// Panics unless smoltcp finds lengths and every checksum of a packet without extension headers right.
pub(crate) fn assert_checksums(packet: &[u8]) {
    let (source, destination, protocol, payload) = match IpVersion::of_packet(packet).unwrap() {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!(usize::from(ip.total_len()), packet.len());
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                ip.payload(),
            )
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).unwrap();
            assert_eq!(ip.total_len(), packet.len());
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                ip.payload(),
            )
        }
    };
    if protocol == IpProtocol::Tcp {
        assert!(
            TcpPacket::new_checked(payload)
                .unwrap()
                .verify_checksum(&source, &destination)
        );
    } else if protocol == IpProtocol::Udp {
        let udp = UdpPacket::new_checked(payload).unwrap();
        assert!(udp.verify_checksum(&source, &destination));
        assert_eq!(usize::from(udp.len()), payload.len());
    }
}
