//! Packets between two workloads as a kernel writes them to its TUN.

use std::ops::Range;

use identun::wire::{
    checksum::{put_ipv4_header, put_partial},
    packet::Packet,
    protocol,
    segment::complete_checksum,
    virtio::{Gso, VIRTIO_HEADER_LEN, offload_header},
};

/// Address of the workload behind the first shard.
pub(crate) const A: [u8; 4] = [10, 0, 0, 1];
/// Address of the workload behind the second shard.
pub(crate) const B: [u8; 4] = [10, 0, 0, 2];
/// Where the second workload is called.
pub(crate) const PORT: u16 = 8_080;
/// Bytes of IPv4 header and of TCP header with time stamps.
pub(crate) const TCP_HEADERS: usize = 20 + 32;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// Where a frame of an IPv4 packet without options has its TCP sequence number.
const SEQUENCE: Range<usize> = VIRTIO_HEADER_LEN + 24..VIRTIO_HEADER_LEN + 28;
/// Ports of the callers begin here.
const FIRST_PORT: u16 = 20_000;

/// Which way a packet travels.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    Request,
    Reply,
}

/// A TCP packet of a flow, its checksum complete.
pub(crate) fn tcp(way: Way, flow: u16, sequence: u32, flags: u8, payload: usize) -> Vec<u8> {
    let mut packet = ip(way, protocol::TCP, flow);
    packet.extend(sequence.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0x80, flags, 0x12, 0x34, 0, 0, 0, 0]);
    packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    finish(packet, payload)
}

/// A UDP packet of a flow, its checksum complete.
pub(crate) fn udp(way: Way, flow: u16, payload: usize) -> Vec<u8> {
    let mut packet = ip(way, protocol::UDP, flow);
    packet.extend(u16::try_from(payload + 8).unwrap().to_be_bytes());
    packet.extend([0, 0]);
    finish(packet, payload)
}

/// The frame of a packet, its checksum left to the device as the kernel leaves it; cut later if there is a `gso`.
pub(crate) fn frame(mut packet: Vec<u8>, gso: Option<Gso>) -> Vec<u8> {
    let (header, transport, protocol) = {
        let parsed = Packet::new_checked(&packet).unwrap();
        let header = offload_header(&parsed, gso);
        (header, parsed.transport_offset(), parsed.protocol())
    };
    put_partial(&mut packet[transport..], &[A, B].concat(), protocol);
    [&header, packet.as_slice()].concat()
}

/// Moves the TCP packet of a frame on in its stream.
pub(crate) fn advance(frame: &mut [u8], by: usize) {
    let field = &mut frame[SEQUENCE];
    let sequence = u32::from_be_bytes((&*field).try_into().unwrap());
    let next = sequence.wrapping_add(u32::try_from(by).unwrap());
    field.copy_from_slice(&next.to_be_bytes());
}

/// IPv4 header and ports.
fn ip(way: Way, protocol: u8, flow: u16) -> Vec<u8> {
    let caller = (A, FIRST_PORT + flow);
    let [from, to] = match way {
        Way::Request => [caller, (B, PORT)],
        Way::Reply => [(B, PORT), caller],
    };
    let mut packet = vec![0x45, 0, 0, 0, 0, 7, 0x40, 0, 63, protocol, 0, 0];
    packet.extend([from.0, to.0].concat());
    packet.extend([from.1.to_be_bytes(), to.1.to_be_bytes()].concat());
    packet
}

/// Payload, length and checksums.
fn finish(mut packet: Vec<u8>, payload: usize) -> Vec<u8> {
    packet.extend((0..payload).map(|at| at.to_le_bytes()[0]));
    let len = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    put_ipv4_header(&mut packet[..20]);
    complete_checksum(&mut packet).unwrap();
    packet
}
