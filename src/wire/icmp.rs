//! Resets and ICMP errors that answer a packet which goes nowhere.
//!
//! An answer's source is the packet's destination, so that it passes reverse-path filters. There is none about ICMP
//! errors, non-first fragments, and packets from or to anything but one host (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).

use std::net::IpAddr;

use crate::wire::{
    checksum,
    field::{get32, put16, put32},
    packet::{
        ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, Packet, TCP_HEADER, TcpFlags, address_bytes,
        put_ip_len,
    },
    protocol,
};

/// The longest ICMP error (RFC 1812 §4.3.2.3).
const MAX_ICMPV4: usize = 576;
/// The longest ICMPv6 error: the minimum MTU (RFC 4443 §2.4 (c)).
const MAX_ICMPV6: usize = 1_280;
const HOP_LIMIT: u8 = 64;

/// The RST that answers a TCP segment (RFC 9293 §3.10.7.1); `None` for a RST, for what is not TCP, and where the
/// module says so.
pub fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let flags = packet.tcp_flags()?;
    if flags.is_rst() || !is_between_hosts(packet) {
        return None;
    }
    let segment = packet.transport();
    let (sequence, acknowledgment, bits) = if flags.is_ack() {
        (get32(segment, 8)?, 0, TcpFlags::RST)
    } else {
        // What the whole segment took of sequence space cannot be told from a fragment of it.
        packet.fragment().is_none().then_some(())?;
        let payload = packet.bytes().len().checked_sub(packet.payload_offset())?;
        let taken =
            u32::try_from(payload).ok()? + u32::from(flags.is_syn()) + u32::from(flags.is_fin());
        (
            0,
            get32(segment, 4)?.wrapping_add(taken),
            TcpFlags::RST | TcpFlags::ACK,
        )
    };
    let tuple = packet.five_tuple();
    let mut tcp = [0; TCP_HEADER];
    put16(&mut tcp, 0, tuple.destination_port);
    put16(&mut tcp, 2, tuple.source_port);
    put32(&mut tcp, 4, sequence);
    put32(&mut tcp, 8, acknowledgment);
    // Five words of header, then the flags.
    put16(&mut tcp, 12, 0x5000 | u16::from(bits));
    let mut answer = answer_to(packet, protocol::TCP, &[&tcp]);
    let ip_header = answer.len() - TCP_HEADER;
    let (ip, segment) = answer.split_at_mut_checked(ip_header)?;
    checksum::put_complete(segment, address_bytes(ip), protocol::TCP);
    Some(answer)
}

/// Administratively prohibited: ICMP 3/13 or ICMPv6 1/1. `None` where no error may be sent.
pub fn prohibited(packet: &Packet<'_>) -> Option<Vec<u8>> {
    error(packet, [(3, 13), (1, 1)], 0)
}

/// Host or address unreachable: ICMP 3/1 or ICMPv6 1/3. `None` where no error may be sent.
pub fn unreachable_host(packet: &Packet<'_>) -> Option<Vec<u8>> {
    error(packet, [(3, 1), (1, 3)], 0)
}

/// Fragmentation needed, ICMP 3/4, or packet too big, ICMPv6 2/0, with the `mtu` in bytes. `None` where no error may be
/// sent.
pub fn too_big(packet: &Packet<'_>, mtu: u16) -> Option<Vec<u8>> {
    // Both put it into the low half of the word after the checksum (RFC 1191 §4, RFC 4443 §3.2).
    error(packet, [(3, 4), (2, 0)], u32::from(mtu))
}

/// `kinds`: type and code in ICMP and in ICMPv6.
fn error(packet: &Packet<'_>, kinds: [(u8, u8); 2], word: u32) -> Option<Vec<u8>> {
    let is_first = packet
        .fragment()
        .is_none_or(|fragment| fragment.offset == 0);
    if packet.is_icmp_error() || !is_first || !is_between_hosts(packet) {
        return None;
    }
    let [icmpv4, icmpv6] = kinds;
    let (protocol, (kind, code), room) = if packet.is_ipv6() {
        (
            protocol::ICMPV6,
            icmpv6,
            MAX_ICMPV6 - IPV6_HEADER - ICMP_HEADER,
        )
    } else {
        (
            protocol::ICMP,
            icmpv4,
            MAX_ICMPV4 - IPV4_HEADER - ICMP_HEADER,
        )
    };
    let quote = packet.bytes().get(..room).unwrap_or(packet.bytes());
    let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
    put32(&mut header, 4, word);
    let mut answer = answer_to(packet, protocol, &[&header, quote]);
    let at = answer.len() - ICMP_HEADER - quote.len();
    let (ip, message) = answer.split_at_mut_checked(at)?;
    let pseudo = if packet.is_ipv6() {
        checksum::pseudo_header(address_bytes(ip), protocol, message.len())
    } else {
        0
    };
    let sum = checksum::combine(pseudo, checksum::sum(message));
    put16(message, 2, !sum);
    Some(answer)
}

/// Tells whether source and destination are one host each, as far as the addresses say.
fn is_between_hosts(packet: &Packet<'_>) -> bool {
    [packet.source(), packet.destination()]
        .into_iter()
        .all(|address| match address {
            IpAddr::V4(address) => {
                let [first, ..] = address.octets();
                first != 0 && !address.is_multicast() && !address.is_broadcast()
            }
            IpAddr::V6(address) => !address.is_unspecified() && !address.is_multicast(),
        })
}

/// An IP packet from the packet's destination to its source.
fn answer_to(packet: &Packet<'_>, protocol: u8, parts: &[&[u8]]) -> Vec<u8> {
    let payload: usize = parts.iter().map(|part| part.len()).sum();
    let mut answer = Vec::with_capacity(IPV6_HEADER + payload);
    match (packet.destination(), packet.source()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // Length and checksum follow; DF, as Linux sets it on its own answers.
            answer.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            answer.extend_from_slice(&source.octets());
            answer.extend_from_slice(&destination.octets());
        }
        (source, destination) => {
            answer.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, HOP_LIMIT]);
            for address in [source, destination] {
                if let IpAddr::V6(address) = address {
                    answer.extend_from_slice(&address.octets());
                }
            }
        }
    }
    for part in parts {
        answer.extend_from_slice(part);
    }
    put_ip_len(&mut answer);
    answer
}
