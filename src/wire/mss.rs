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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::TcpPacket;

    use super::*;
    use crate::wire::{
        packet::TcpFlags,
        sample::{self, Tcp},
    };

    fn mss(mss: u16) -> Vec<u8> {
        let [high, low] = mss.to_be_bytes();
        vec![2, 4, high, low]
    }

    fn syn(is_ipv6: bool, flags: u8, options: Vec<u8>) -> Vec<u8> {
        Tcp {
            is_ipv6,
            flags,
            options,
            ..Tcp::default()
        }
        .build()
    }

    fn clamped(mut packet: Vec<u8>, inner: usize) -> Vec<u8> {
        clamp_mss(&mut packet, inner, false);
        sample::assert_checksums(&packet);
        packet
    }

    #[test]
    fn a_full_segment_fits_after_the_clamp() {
        for flags in [TcpFlags::SYN, TcpFlags::SYN | TcpFlags::ACK] {
            assert_eq!(
                clamped(syn(false, flags, mss(1460)), 1432),
                syn(false, flags, mss(1392))
            );
            assert_eq!(
                clamped(syn(true, flags, mss(1440)), 1412),
                syn(true, flags, mss(1352))
            );
        }
    }

    #[test]
    fn the_mss_is_never_raised() {
        let low = syn(false, TcpFlags::SYN, mss(536));
        assert_eq!(clamped(low.clone(), 1432), low);
        let equal = syn(false, TcpFlags::SYN, mss(1392));
        assert_eq!(clamped(equal.clone(), 1432), equal);
    }

    #[test]
    fn other_packets_stay_as_they_are() {
        let others = [
            syn(false, TcpFlags::ACK, mss(1460)),
            syn(false, TcpFlags::SYN, vec![]),
            syn(false, TcpFlags::SYN, vec![0, 2, 4, 5, 0xb4]),
            syn(false, TcpFlags::SYN, vec![2, 3, 5, 0xb4]),
            syn(false, TcpFlags::SYN, vec![3, 0, 2, 4, 5, 0xb4]),
            syn(false, TcpFlags::SYN, vec![1, 1, 2, 4]),
            sample::udp(false, [1, 2], &mss(1460)),
        ];
        for packet in others {
            assert_eq!(clamped(packet.clone(), 1432), packet);
        }
        for inner in [0, 39, 40] {
            let packet = syn(false, TcpFlags::SYN, mss(1460));
            assert_eq!(clamped(packet.clone(), inner), packet);
        }
    }

    #[test]
    fn a_partial_checksum_is_not_of_the_option() {
        let mut packet = sample::partial(syn(false, TcpFlags::SYN, mss(1460)));
        clamp_mss(&mut packet, 1432, true);
        assert_eq!(
            packet,
            sample::partial(syn(false, TcpFlags::SYN, mss(1392)))
        );
    }

    proptest! {
        #[test]
        fn the_checksum_stays_right_wherever_the_option_stands(
            is_ipv6: bool, before in 0..9_usize, value: u16, inner in 100..9000_usize, sequence: u32,
        ) {
            let options = [vec![1; before], mss(value), vec![4, 2]].concat();
            let tcp = Tcp { is_ipv6, flags: TcpFlags::SYN, options, sequence, ..Tcp::default() };
            let packet = clamped(tcp.build(), inner);
            let tcp = TcpPacket::new_checked(Packet::new_checked(&packet).unwrap().transport()).unwrap();
            let repr = smoltcp::wire::TcpOption::parse(&tcp.options()[before..]).unwrap().1;
            let limit = inner - if is_ipv6 { 60 } else { 40 };
            let expected = value.min(u16::try_from(limit).unwrap());
            prop_assert_eq!(repr, smoltcp::wire::TcpOption::MaxSegmentSize(expected));
        }

        #[test]
        fn no_bytes_can_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..40), inner: u16, partial: bool) {
            let mut packet = syn(false, TcpFlags::SYN, bytes.clone());
            clamp_mss(&mut packet, inner.into(), partial);
            clamp_mss(&mut bytes, inner.into(), partial);
        }
    }
}
