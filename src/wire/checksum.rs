//! The internet checksum (RFC 1071): of bytes, with the pseudo-header, and its incremental update (RFC 1624).
//!
//! A *sum* is the folded ones' complement sum of big-endian 16-bit words, not yet complemented. A transport header that
//! waits for a checksum offload holds the sum of its pseudo-header; a complete one holds the complement of the sum over
//! pseudo-header and segment.

use std::net::IpAddr;

use crate::wire::{
    field::{get16, put16},
    protocol,
};

/// The sum of `bytes`, padded with a zero byte when their number is odd.
///
/// Eight bytes a step in the machine's own byte order: RFC 1071 §2 (B) and (C) say why that is right.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut total = words.iter().fold(0_u64, |total, word| {
        let word = u64::from_ne_bytes(*word);
        total + (word & 0xffff_ffff) + (word >> 32)
    });
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    let last = u64::from_ne_bytes(last);
    total += (last & 0xffff_ffff) + (last >> 32);
    fold(total).to_be()
}

/// The sum of two sums, the second one over bytes that begin at an even distance from the first ones.
#[inline]
pub const fn combine(first: u16, second: u16) -> u16 {
    let (total, carry) = first.overflowing_add(second);
    total + carry as u16
}

/// The sum of the pseudo-header of IPv4 (RFC 9293 §3.1) or IPv6 (RFC 8200 §8.1) in front of `len` bytes of upper layer.
///
/// `addresses` are source and destination as they stand in the IP header, one after the other.
#[inline]
pub fn pseudo_header(addresses: &[u8], protocol: u8, len: usize) -> u16 {
    let len = len as u64;
    combine(sum(addresses), fold(len + u64::from(protocol)))
}

/// [`pseudo_header`] of addresses as values.
pub fn pseudo_header_of(source: IpAddr, destination: IpAddr, protocol: u8, len: usize) -> u16 {
    let addresses = [source, destination].map(|address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    });
    combine(
        combine(addresses[0], addresses[1]),
        pseudo_header(&[], protocol, len),
    )
}

/// The checksum field after one 16-bit word under it changed: RFC 1624 §3, equation 3.
///
/// A word at an odd distance is to be given with its bytes swapped, before and after.
#[inline]
pub const fn update(checksum: u16, before: u16, after: u16) -> u16 {
    !combine(combine(!checksum, !before), after)
}

/// Where the checksum field stands in the header of TCP or UDP; `None` for protocols without an offload.
#[inline]
pub const fn field_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    }
}

/// Puts the sum of the pseudo-header into the checksum field of `segment` (TCP or UDP header and payload).
pub fn put_partial(segment: &mut [u8], addresses: &[u8], protocol: u8) {
    if let Some(offset) = field_offset(protocol) {
        let sum = pseudo_header(addresses, protocol, segment.len());
        put16(segment, offset, sum);
    }
}

/// Puts the complete checksum into `segment` (TCP or UDP header and payload), whatever its field held.
pub fn put_complete(segment: &mut [u8], addresses: &[u8], protocol: u8) {
    if let Some(offset) = field_offset(protocol) {
        put_partial(segment, addresses, protocol);
        let checksum = !sum(segment);
        // Zero says "no checksum" in UDP (RFC 768).
        let checksum = if checksum == 0 && protocol == protocol::UDP {
            0xffff
        } else {
            checksum
        };
        put16(segment, offset, checksum);
    }
}

/// Tells whether the complete checksum of `segment` (TCP or UDP header and payload) is right. A UDP checksum of zero,
/// "none", is not.
pub fn is_complete(segment: &[u8], addresses: &[u8], protocol: u8) -> bool {
    let Some(field) = field_offset(protocol).and_then(|offset| get16(segment, offset)) else {
        return false;
    };
    let none = protocol == protocol::UDP && field == 0;
    !none
        && combine(
            pseudo_header(addresses, protocol, segment.len()),
            sum(segment),
        ) == 0xffff
}

/// Tells whether the header checksum of an IPv4 header is right.
#[inline]
pub fn is_ipv4_header(header: &[u8]) -> bool {
    sum(header) == 0xffff
}

/// Writes the header checksum of an IPv4 header.
pub fn put_ipv4_header(header: &mut [u8]) {
    put16(header, 10, 0);
    let checksum = !sum(header);
    put16(header, 10, checksum);
}

#[inline]
const fn fold(total: u64) -> u16 {
    let total = (total >> 32) + (total & 0xffff_ffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    let total = (total >> 16) + (total & 0xffff);
    total as u16
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;
    use smoltcp::wire::{IpProtocol, checksum as oracle};

    use super::*;

    #[test]
    fn the_example_of_rfc_1071_has_its_sum() {
        assert_eq!(
            sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0xddf2
        );
    }

    #[test]
    fn the_example_of_rfc_1624_is_updated() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn a_udp_checksum_is_never_written_as_none() {
        // The sum of everything else is 0xffff, so that the complement would be 0.
        let mut datagram = [0, 0, 0, 0, 0, 8, 0, 0];
        let rest = combine(pseudo_header(&[], protocol::UDP, 8), sum(&datagram));
        put16(&mut datagram, 0, !rest);
        put_complete(&mut datagram, &[], protocol::UDP);
        assert_eq!(get16(&datagram, 6), Some(0xffff));
        assert!(is_complete(&datagram, &[], protocol::UDP));
        put16(&mut datagram, 6, 0);
        assert!(!is_complete(&datagram, &[], protocol::UDP));
    }

    proptest! {
        #[test]
        fn sums_are_those_of_smoltcp(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..300_usize) {
            prop_assert_eq!(sum(&bytes), oracle::data(&bytes));
            let (first, second) = bytes.split_at(at.min(bytes.len()) & !1);
            prop_assert_eq!(combine(sum(first), sum(second)), sum(&bytes));
        }

        #[test]
        fn large_sums_of_ones_fold(len in 65_000..65_536_usize) {
            let bytes = vec![0xff; len];
            prop_assert_eq!(sum(&bytes), oracle::data(&bytes));
        }

        #[test]
        fn pseudo_headers_are_those_of_smoltcp(a: u32, b: u32, c: u128, d: u128, len in 0..65_536_usize) {
            let (a, b, c, d) = (Ipv4Addr::from(a), Ipv4Addr::from(b), Ipv6Addr::from(c), Ipv6Addr::from(d));
            let expected = oracle::pseudo_header(&a.into(), &b.into(), IpProtocol::Tcp, len as u32);
            prop_assert_eq!(pseudo_header(&[a.octets(), b.octets()].concat(), 6, len), expected);
            prop_assert_eq!(pseudo_header_of(a.into(), b.into(), 6, len), expected);
            let expected = oracle::pseudo_header(&c.into(), &d.into(), IpProtocol::Udp, len as u32);
            prop_assert_eq!(pseudo_header(&[c.octets(), d.octets()].concat(), 17, len), expected);
            prop_assert_eq!(pseudo_header_of(c.into(), d.into(), 17, len), expected);
        }

        #[test]
        fn an_update_is_a_new_sum(mut bytes in prop::collection::vec(any::<u8>(), 4..64), at in 0..62_usize, new: u16) {
            let at = at % (bytes.len() - 1);
            bytes[0] |= 1;
            let at = at.max(1);
            let checksum = !sum(&bytes);
            let swap = |word: u16| if at % 2 == 1 { word.swap_bytes() } else { word };
            let before = get16(&bytes, at).unwrap();
            put16(&mut bytes, at, new);
            prop_assert_eq!(update(checksum, swap(before), swap(new)), !sum(&bytes));
        }

        #[test]
        fn what_is_completed_is_complete(
            mut segment in prop::collection::vec(any::<u8>(), 20..100), addresses: u64, tcp: bool, at in 0..100_usize,
        ) {
            let (addresses, protocol) = (addresses.to_be_bytes(), if tcp { protocol::TCP } else { protocol::UDP });
            put_complete(&mut segment, &addresses, protocol);
            prop_assert!(is_complete(&segment, &addresses, protocol));
            let at = at % segment.len();
            segment[at] ^= 0x10;
            prop_assert!(!is_complete(&segment, &addresses, protocol));
        }
    }
}
