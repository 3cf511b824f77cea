//! TCP MSS clamp.

use crate::wire::{
    checksum,
    field::{get16, put16},
    packet::{IPV4_HEADER, IPV6_HEADER, Packet, TCP_HEADER},
};

/// TCP option kinds (RFC 9293 §3.2).
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MAXIMUM_SEGMENT_SIZE: u8 = 2;
/// Where the checksum field stands in a TCP header.
const CHECKSUM: usize = 16;

/// Lowers the MSS option of a SYN or SYN-ACK so that a full segment fits an IP packet of `inner` bytes.
///
/// A complete checksum is updated incrementally (RFC 1624). With `partial_checksum` the field holds the sum of the
/// pseudo-header, which the option is not part of: it stays. Anything else, an option that is low enough included, is
/// untouched.
pub fn clamp_mss(packet: &mut [u8], inner: usize, partial_checksum: bool) {
    let Some((at, tcp, target)) = find(packet, inner) else {
        return;
    };
    let Some(before) = get16(packet, at).filter(|mss| *mss > target) else {
        return;
    };
    put16(packet, at, target);
    if partial_checksum {
        return;
    }
    // At an odd distance the bytes of the option belong to two words of the sum.
    let swap = |word: u16| {
        if (at - tcp).is_multiple_of(2) {
            word
        } else {
            word.swap_bytes()
        }
    };
    if let Some(field) = get16(packet, tcp + CHECKSUM) {
        put16(
            packet,
            tcp + CHECKSUM,
            checksum::update(field, swap(before), swap(target)),
        );
    }
}

/// Where the MSS value and the TCP header stand in a packet with SYN, and what the value may be.
fn find(bytes: &[u8], inner: usize) -> Option<(usize, usize, u16)> {
    let packet = Packet::new_checked(bytes).ok()?;
    if !packet.tcp_flags()?.is_syn() {
        return None;
    }
    let ip_header = if packet.is_ipv6() {
        IPV6_HEADER
    } else {
        IPV4_HEADER
    };
    let target = inner
        .checked_sub(ip_header + TCP_HEADER)
        .filter(|target| *target > 0)?;
    let target = u16::try_from(target).ok()?;
    let mut at = packet.transport_offset() + TCP_HEADER;
    let options = bytes.get(..packet.payload_offset())?;
    loop {
        match options.get(at..)? {
            [] | [END, ..] => return None,
            [NO_OPERATION, ..] => at += 1,
            [MAXIMUM_SEGMENT_SIZE, 4, _, _, ..] => {
                return Some((at + 2, packet.transport_offset(), target));
            }
            [_, len, ..] if *len >= 2 => at += usize::from(*len),
            [_, ..] => return None,
        }
    }
}
