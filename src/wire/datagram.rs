//! What crosses the tunnel in QUIC datagrams (wire.md §3.3).
//!
//! ```text
//! 00 | context(i) | ...
//! context 0  PACKET            an IP packet, every checksum complete
//! context 4  PARTIAL CHECKSUM  an IP packet whose TCP or UDP checksum field holds the pseudo-header sum
//! context 2  FRAGMENT          a piece of an IP packet, see [`crate::wire::fragment`]
//! ```
//!
//! The first byte is the quarter stream id that an HTTP datagram of stream 0 has (RFC 9297 §2.1).

use bytes::{Bytes, BytesMut};

use crate::wire::{
    DropReason,
    capsule::PeerFlags,
    checksum,
    field::{get16, put16},
    fragment::Fragment,
    packet::{total_len, version},
    varint,
};

/// Context of a packet whose checksums are complete.
pub const PACKET: u8 = 0;
/// Context of a piece of a packet.
pub const FRAGMENT: u8 = 2;
/// Context of a packet whose TCP or UDP checksum field holds the pseudo-header sum.
pub const PARTIAL_CHECKSUM: u8 = 4;
/// Bytes in front of the packet: quarter stream id and context.
pub const PREFIX_LEN: usize = 2;

/// What a datagram of `context` (below 64) begins with.
pub const fn prefix(context: u8) -> [u8; PREFIX_LEN] {
    [0, context]
}

/// One datagram, read but not believed.
#[derive(Clone, Copy, Debug)]
pub enum Datagram<'a> {
    /// Contexts 0 and 4.
    Packet {
        /// The IP packet; its length is the one its header says.
        packet: &'a [u8],
        /// Context 4.
        partial_checksum: bool,
    },
    /// Context 2.
    Fragment(Fragment<'a>),
}

/// Reads one datagram. `flags` are those both sides agreed on.
///
/// # Errors
/// * [`DropReason::BadDatagram`]: another quarter stream id, or too short for its context
/// * [`DropReason::UnknownContext`]: a context that is not known or that `flags` exclude
/// * [`DropReason::Malformed`]: no IP version that is known
/// * [`DropReason::LengthMismatch`]: not the length that the IP header says
/// * [`DropReason::BadFragment`]: an impossible index, count or size
#[inline]
pub fn decode(bytes: &[u8], flags: PeerFlags) -> Result<Datagram<'_>, DropReason> {
    let rest = bytes.strip_prefix(&[0]).ok_or(DropReason::BadDatagram)?;
    let (context, rest) = varint::decode(rest).ok_or(DropReason::BadDatagram)?;
    match u8::try_from(context) {
        Ok(PACKET) => packet(rest, false),
        Ok(PARTIAL_CHECKSUM) if flags.partial_checksum() => packet(rest, true),
        Ok(FRAGMENT) if flags.fragment() => Fragment::decode(rest).map(Datagram::Fragment),
        _ => Err(DropReason::UnknownContext),
    }
}

fn packet(packet: &[u8], partial_checksum: bool) -> Result<Datagram<'_>, DropReason> {
    match version(packet) {
        None => return Err(DropReason::BadDatagram),
        Some(4 | 6) => {}
        Some(_) => return Err(DropReason::Malformed),
    }
    match total_len(packet) {
        Some(len) if len == packet.len() => Ok(Datagram::Packet {
            packet,
            partial_checksum,
        }),
        _ => Err(DropReason::LengthMismatch),
    }
}

/// A copy of a datagram whose packet says that congestion was experienced (CE, RFC 3168 §5); `None` where the packet is not
/// of a sender that would understand, and of pieces of packets.
pub fn congestion_experienced(datagram: &[u8]) -> Option<Bytes> {
    const ECT_OR_CE: u8 = 0b11;
    let (&[_, context], packet) = datagram.split_first_chunk::<PREFIX_LEN>()?;
    if !matches!(context, PACKET | PARTIAL_CHECKSUM) {
        return None;
    }
    // The field ends the octet that is called the type of service, and the traffic class.
    let shift = match version(packet)? {
        4 => 0,
        6 => 4,
        _ => return None,
    };
    if packet.get(1)? & (ECT_OR_CE << shift) == 0 {
        return None;
    }
    let mut marked = BytesMut::from(datagram);
    let packet = marked.get_mut(PREFIX_LEN..)?;
    let before = get16(packet, 0)?;
    *packet.get_mut(1)? |= ECT_OR_CE << shift;
    if shift == 0 {
        let after = get16(packet, 0)?;
        let sum = get16(packet, 10)?;
        put16(packet, 10, checksum::update(sum, before, after));
    }
    Some(marked.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sample;

    #[test]
    fn packets_of_senders_that_know_ecn_are_marked_and_stay_valid() {
        for (v6, field) in [(false, 0b10), (false, 0b01), (true, 0b10), (false, 0b11)] {
            let mut packet = sample::udp(v6, [1, 2], b"x");
            packet[1] |= if v6 { field << 4 } else { field };
            if !v6 {
                checksum::put_ipv4_header(&mut packet[..20]);
            }
            let before = datagram(&[PACKET], &packet);
            let marked = congestion_experienced(&before).unwrap();
            let mut expected = packet.clone();
            expected[1] |= if v6 { 0b11 << 4 } else { 0b11 };
            if !v6 {
                checksum::put_ipv4_header(&mut expected[..20]);
            }
            assert_eq!(marked[PREFIX_LEN..], expected);
        }
    }

    #[test]
    fn other_senders_packets_and_pieces_are_not_marked() {
        for v6 in [false, true] {
            let packet = sample::udp(v6, [1, 2], b"x");
            assert_eq!(congestion_experienced(&datagram(&[PACKET], &packet)), None);
        }
        let mut ect = sample::udp(false, [1, 2], b"x");
        ect[1] |= 0b10;
        assert_eq!(congestion_experienced(&datagram(&[FRAGMENT], &ect)), None);
        assert_eq!(congestion_experienced(&[]), None);
    }

    const NOTHING: PeerFlags = PeerFlags::from_bits(0);

    fn ipv4(len: u16) -> Vec<u8> {
        let mut packet = vec![0; usize::from(len)];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet
    }

    fn datagram(context: &[u8], rest: &[u8]) -> Vec<u8> {
        [&[0], context, rest].concat()
    }

    fn refused(bytes: &[u8], flags: PeerFlags) -> DropReason {
        decode(bytes, flags).unwrap_err()
    }

    #[test]
    fn packets_come_with_their_checksum_fact() {
        for (context, partial) in [(PACKET, false), (PARTIAL_CHECKSUM, true)] {
            let bytes = datagram(&[context], &ipv4(28));
            let Ok(Datagram::Packet {
                packet,
                partial_checksum,
            }) = decode(&bytes, PeerFlags::ALL)
            else {
                panic!("{bytes:?}");
            };
            assert_eq!((packet, partial_checksum), (&ipv4(28)[..], partial));
        }
    }

    #[test]
    fn a_context_in_a_longer_form_is_the_same() {
        assert!(
            decode(
                &datagram(&[0x40, PARTIAL_CHECKSUM], &ipv4(28)),
                PeerFlags::ALL
            )
            .is_ok()
        );
    }

    #[test]
    fn ipv6_lengths_count_the_header() {
        let mut packet = vec![0; 44];
        packet[0] = 0x60;
        packet[5] = 4;
        assert!(decode(&datagram(&[PACKET], &packet), NOTHING).is_ok());
        packet.push(0);
        assert_eq!(
            refused(&datagram(&[PACKET], &packet), NOTHING),
            DropReason::LengthMismatch
        );
    }

    #[test]
    fn contexts_that_were_not_agreed_on_are_unknown() {
        let (partial, fragment) = (datagram(&[4], &ipv4(28)), datagram(&[2], &[0, 1, 0x02, 7]));
        assert_eq!(refused(&partial, NOTHING), DropReason::UnknownContext);
        assert_eq!(
            refused(&partial, PeerFlags::from_bits(1)),
            DropReason::UnknownContext
        );
        assert_eq!(refused(&fragment, NOTHING), DropReason::UnknownContext);
        assert_eq!(
            refused(&fragment, PeerFlags::from_bits(2)),
            DropReason::UnknownContext
        );
        assert!(decode(&fragment, PeerFlags::from_bits(1)).is_ok());
        for context in [
            &[1][..],
            &[3],
            &[5],
            &[6],
            &[0x41, 0x00],
            &[0xc0, 0, 0, 0, 0, 1, 0, 0],
        ] {
            assert_eq!(
                refused(&datagram(context, &ipv4(28)), PeerFlags::ALL),
                DropReason::UnknownContext
            );
        }
    }

    #[test]
    fn what_is_no_datagram_of_ours_is_named() {
        for bytes in [
            &[][..],
            &[0],
            &[1, 0, 0x45],
            &[0xff; 40],
            &[0, 0x40],
            &[0, PACKET],
            &[0, PARTIAL_CHECKSUM],
        ] {
            assert_eq!(
                refused(bytes, PeerFlags::ALL),
                DropReason::BadDatagram,
                "{bytes:?}"
            );
        }
        for first in [0x00, 0x15, 0x35, 0x55, 0x75, 0xf0] {
            let mut packet = ipv4(28);
            packet[0] = first;
            assert_eq!(
                refused(&datagram(&[PACKET], &packet), PeerFlags::ALL),
                DropReason::Malformed
            );
        }
        for packet in [
            &ipv4(28)[..27],
            &ipv4(28)[..1],
            &ipv4(19),
            &[ipv4(28), vec![0]].concat(),
        ] {
            assert_eq!(
                refused(&datagram(&[PACKET], packet), PeerFlags::ALL),
                DropReason::LengthMismatch
            );
        }
        for rest in [
            &[][..],
            &[0, 1],
            &[0, 1, 0x02],
            &[0, 1, 0x01, 9],
            &[0, 1, 0x22, 9],
            &[0, 1, 0x00, 9],
        ] {
            assert_eq!(
                refused(&datagram(&[FRAGMENT], rest), PeerFlags::ALL),
                DropReason::BadFragment,
                "{rest:?}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_can_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), flags: u64) {
            let mut bytes = bytes;
            let _ = decode(&bytes, PeerFlags::from_bits(flags));
            if let [first, ..] = bytes.as_mut_slice() {
                *first = 0;
            }
            let _ = decode(&bytes, PeerFlags::from_bits(flags));
        }
    }
}
