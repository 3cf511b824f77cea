//! Resets and ICMP errors that answer a packet which goes nowhere, or end a connection; emitted by smoltcp.
//!
//! An answer's source is the packet's destination, so that it passes reverse-path filters. There is none about ICMP
//! errors, non-first fragments, and packets from or to anything but one host (RFC 1122 §3.2.2, RFC 4443 §2.4 (e)).

use std::net::IpAddr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable, Icmpv6Message,
        Icmpv6Packet, IpProtocol, IpRepr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
    },
};

use crate::wire::{
    FiveTuple,
    field::get32,
    packet::{ICMP_HEADER, IPV4_HEADER, IPV6_HEADER, Packet},
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
    let (sequence, acknowledgment) = if flags.is_ack() {
        (get32(segment, 8)?, None)
    } else {
        (0, Some(packet.tcp_end()?.0))
    };
    emit_reset(&packet.five_tuple().reversed(), sequence, acknowledgment)
}

/// The RST into an established connection: from the source of `tuple` to its destination, with the sequence number that
/// the destination expects next. With another one inside its window it answers with an acknowledgment, which [`reset`]
/// can answer exactly (RFC 5961 §3.2). `None` where the two addresses are of different versions.
pub fn reset_established(tuple: &FiveTuple, next_sequence: u32) -> Option<Vec<u8>> {
    (tuple.source.is_ipv4() == tuple.destination.is_ipv4()).then_some(())?;
    emit_reset(tuple, next_sequence, None)
}

fn emit_reset(tuple: &FiveTuple, sequence: u32, acknowledgment: Option<u32>) -> Option<Vec<u8>> {
    let reset = TcpRepr {
        src_port: tuple.source_port,
        dst_port: tuple.destination_port,
        control: TcpControl::Rst,
        seq_number: sequence_number(sequence),
        ack_number: acknowledgment.map(sequence_number),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let ends = (tuple.source, tuple.destination);
    emit_packet(ends, IpProtocol::Tcp, reset.buffer_len(), |answer, ip| {
        let (source, destination) = (ip.src_addr(), ip.dst_addr());
        let mut segment = TcpPacket::new_unchecked(answer);
        reset.emit(
            &mut segment,
            &source,
            &destination,
            &ChecksumCapabilities::default(),
        );
    })
}

/// Administratively prohibited: ICMP 3/13 or ICMPv6 1/1. `None` where no error may be sent.
pub fn prohibited(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let icmpv4 = (
        Icmpv4Message::DstUnreachable,
        Icmpv4DstUnreachable::CommProhibited.into(),
    );
    let icmpv6 = (
        Icmpv6Message::DstUnreachable,
        Icmpv6DstUnreachable::AdminProhibit.into(),
    );
    error(packet, icmpv4, icmpv6, 0)
}

/// Host or address unreachable: ICMP 3/1 or ICMPv6 1/3. `None` where no error may be sent.
pub fn unreachable_host(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let icmpv4 = (
        Icmpv4Message::DstUnreachable,
        Icmpv4DstUnreachable::HostUnreachable.into(),
    );
    let icmpv6 = (
        Icmpv6Message::DstUnreachable,
        Icmpv6DstUnreachable::AddrUnreachable.into(),
    );
    error(packet, icmpv4, icmpv6, 0)
}

/// Fragmentation needed, ICMP 3/4, or packet too big, ICMPv6 2/0, with the `mtu` in bytes. `None` where no error may be
/// sent.
pub fn too_big(packet: &Packet<'_>, mtu: u16) -> Option<Vec<u8>> {
    let icmpv4 = (
        Icmpv4Message::DstUnreachable,
        Icmpv4DstUnreachable::FragRequired.into(),
    );
    error(packet, icmpv4, (Icmpv6Message::PktTooBig, 0), mtu)
}

/// An ICMP error with its type and code in either version. The `mtu` stands in the low half of the word after the
/// checksum in both (RFC 1191 §4, RFC 4443 §3.2), which is unused, 0, in the errors without one.
fn error(
    packet: &Packet<'_>,
    icmpv4: (Icmpv4Message, u8),
    icmpv6: (Icmpv6Message, u8),
    mtu: u16,
) -> Option<Vec<u8>> {
    let is_first = packet
        .fragment()
        .is_none_or(|fragment| fragment.offset == 0);
    if packet.is_icmp_error() || !is_first || !is_between_hosts(packet) {
        return None;
    }
    let (protocol, room) = if packet.is_ipv6() {
        (IpProtocol::Icmpv6, MAX_ICMPV6 - IPV6_HEADER - ICMP_HEADER)
    } else {
        (IpProtocol::Icmp, MAX_ICMPV4 - IPV4_HEADER - ICMP_HEADER)
    };
    let bytes = packet.bytes();
    let quote = bytes.get(..room).unwrap_or(bytes);
    let ends = (packet.destination(), packet.source());
    emit_packet(ends, protocol, ICMP_HEADER + quote.len(), |answer, ip| {
        if let Some((_, body)) = answer.split_at_mut_checked(ICMP_HEADER) {
            body.copy_from_slice(quote);
        }
        match ip {
            IpRepr::Ipv4(_) => {
                let mut message = Icmpv4Packet::new_unchecked(answer);
                message.set_msg_type(icmpv4.0);
                message.set_msg_code(icmpv4.1);
                message.set_echo_seq_no(mtu);
                message.fill_checksum();
            }
            IpRepr::Ipv6(ip) => {
                let mut message = Icmpv6Packet::new_unchecked(answer);
                message.set_msg_type(icmpv6.0);
                message.set_msg_code(icmpv6.1);
                message.set_pkt_too_big_mtu(mtu.into());
                message.fill_checksum(&ip.src_addr, &ip.dst_addr);
            }
        }
    })
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

/// An IP packet from the first address to the second, both of one version, with `len` bytes that `emit` fills.
fn emit_packet(
    (source, destination): (IpAddr, IpAddr),
    protocol: IpProtocol,
    len: usize,
    emit: impl FnOnce(&mut [u8], &IpRepr),
) -> Option<Vec<u8>> {
    let ip = IpRepr::new(source.into(), destination.into(), protocol, len, HOP_LIMIT);
    let mut answer = vec![0; ip.buffer_len()];
    ip.emit(&mut answer, &ChecksumCapabilities::default());
    emit(answer.get_mut(ip.header_len()..)?, &ip);
    Some(answer)
}

/// smoltcp's form of a sequence number: the same 32 bits, signed.
const fn sequence_number(number: u32) -> TcpSeqNumber {
    TcpSeqNumber(number.cast_signed())
}

#[cfg(test)]
mod tests {
    use smoltcp::{
        phy::ChecksumCapabilities,
        wire::{
            Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv6DstUnreachable, Icmpv6Packet,
            Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv6Packet, TcpControl, TcpPacket, TcpRepr,
        },
    };

    use super::*;
    use crate::wire::sample::{self, Tcp};
    use crate::wire::{packet::TcpFlags, protocol};

    type Build = fn(&Packet<'_>) -> Option<Vec<u8>>;
    const BUILDERS: [Build; 3] = [prohibited, unreachable_host, |packet| too_big(packet, 1280)];

    fn packet(bytes: &[u8]) -> Packet<'_> {
        Packet::new_checked(bytes).unwrap()
    }

    fn reset_repr(to: &Tcp) -> (Vec<u8>, i32, Option<i32>) {
        let bytes = to.build();
        let answer = reset(&packet(&bytes)).unwrap();
        sample::assert_checksums(&answer);
        let answered = packet(&answer);
        assert_eq!(
            answered.five_tuple(),
            packet(&bytes).five_tuple().reversed()
        );
        let segment = answered.transport();
        let (source, destination) = (answered.source().into(), answered.destination().into());
        let tcp = TcpPacket::new_checked(segment).unwrap();
        let repr = TcpRepr::parse(
            &tcp,
            &source,
            &destination,
            &ChecksumCapabilities::default(),
        )
        .unwrap();
        assert_eq!((repr.control, repr.payload), (TcpControl::Rst, &[][..]));
        (
            answer.clone(),
            repr.seq_number.0,
            repr.ack_number.map(|number| number.0),
        )
    }

    #[test]
    fn a_reset_takes_its_numbers_from_the_segment() {
        for is_ipv6 in [false, true] {
            let segment = |flags, payload| Tcp {
                is_ipv6,
                flags,
                payload: vec![0; payload],
                ..Tcp::default()
            };
            let numbers = |to: &Tcp| {
                let (_, sequence, acknowledgment) = reset_repr(to);
                (sequence, acknowledgment)
            };
            assert_eq!(numbers(&segment(TcpFlags::SYN, 0)), (0, Some(101)));
            assert_eq!(numbers(&segment(TcpFlags::SYN, 10)), (0, Some(111)));
            assert_eq!(numbers(&segment(TcpFlags::FIN, 10)), (0, Some(111)));
            assert_eq!(numbers(&segment(0, 10)), (0, Some(110)));
            assert_eq!(numbers(&segment(TcpFlags::ACK, 10)), (7, None));
            assert_eq!(
                numbers(&segment(TcpFlags::SYN | TcpFlags::ACK, 0)),
                (7, None)
            );
            assert_eq!(numbers(&segment(TcpFlags::ACK, 60_000)), (7, None));
        }
        let last = Tcp {
            sequence: u32::MAX,
            flags: TcpFlags::SYN,
            ..Tcp::default()
        };
        assert_eq!(reset_repr(&last).2, Some(0));
    }

    #[test]
    fn a_reset_into_a_connection_has_the_number_that_is_expected_there() {
        for is_ipv6 in [false, true] {
            let segment = Tcp {
                is_ipv6,
                ..Tcp::default()
            };
            let bytes = segment.build();
            let tuple = packet(&bytes).five_tuple();
            let reset = reset_established(&tuple, u32::MAX - 1).unwrap();
            sample::assert_checksums(&reset);
            let reset = packet(&reset);
            assert_eq!(reset.five_tuple(), tuple);
            assert_eq!(reset.tcp_flags().unwrap().bits(), TcpFlags::RST);
            assert_eq!(get32(reset.transport(), 4), Some(u32::MAX - 1));
        }
        let mixed = FiveTuple {
            protocol: protocol::TCP,
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: std::net::Ipv6Addr::LOCALHOST.into(),
            destination_port: 2,
        };
        assert_eq!(reset_established(&mixed, 0), None);
    }

    #[test]
    fn a_reset_is_never_answered() {
        for flags in [TcpFlags::RST, TcpFlags::RST | TcpFlags::ACK] {
            assert_eq!(
                reset(&packet(
                    &Tcp {
                        flags,
                        ..Tcp::default()
                    }
                    .build()
                )),
                None
            );
        }
        assert_eq!(reset(&packet(&sample::udp(false, [1, 2], &[]))), None);
    }

    #[test]
    fn errors_in_ipv4_say_what_they_mean() {
        let original = sample::udp(false, [1, 2], &[7; 1000]);
        let expected = [
            (Icmpv4DstUnreachable::CommProhibited, 0),
            (Icmpv4DstUnreachable::HostUnreachable, 0),
            (Icmpv4DstUnreachable::FragRequired, 1280),
        ];
        for (build, (reason, mtu)) in BUILDERS.into_iter().zip(expected) {
            let answer = build(&packet(&original)).unwrap();
            assert_eq!(answer.len(), 576);
            sample::assert_checksums(&answer);
            let ip = Ipv4Packet::new_checked(&answer[..]).unwrap();
            assert_eq!(
                (ip.src_addr(), ip.dst_addr()),
                ([10, 0, 0, 2].into(), [10, 0, 0, 1].into())
            );
            assert_eq!((ip.next_header(), ip.hop_limit()), (IpProtocol::Icmp, 64));
            let icmp = Icmpv4Packet::new_checked(ip.payload()).unwrap();
            assert!(icmp.verify_checksum());
            assert_eq!(icmp.msg_code(), u8::from(reason));
            assert_eq!(ip.payload()[4..8], u32::to_be_bytes(mtu));
            assert_eq!(ip.payload()[8..], original[..548]);
            assert_eq!(icmp.msg_type(), Icmpv4Message::DstUnreachable);
            assert_eq!(
                packet(&answer).icmp_quote(),
                Some(packet(&original).five_tuple())
            );
        }
    }

    #[test]
    fn errors_in_ipv6_say_what_they_mean() {
        let original = sample::udp(true, [1, 2], &[7; 2000]);
        for (index, build) in BUILDERS.into_iter().enumerate() {
            let answer = build(&packet(&original)).unwrap();
            assert_eq!(answer.len(), 1280);
            let ip = Ipv6Packet::new_checked(&answer[..]).unwrap();
            assert_eq!(ip.next_header(), IpProtocol::Icmpv6);
            let icmp = Icmpv6Packet::new_checked(ip.payload()).unwrap();
            let checksums = ChecksumCapabilities::default();
            let repr =
                Icmpv6Repr::parse(&ip.src_addr(), &ip.dst_addr(), &icmp, &checksums).unwrap();
            match (index, repr) {
                (0, Icmpv6Repr::DstUnreachable { reason, .. }) => {
                    assert_eq!(reason, Icmpv6DstUnreachable::AdminProhibit);
                }
                (1, Icmpv6Repr::DstUnreachable { reason, .. }) => {
                    assert_eq!(reason, Icmpv6DstUnreachable::AddrUnreachable);
                }
                (2, Icmpv6Repr::PktTooBig { mtu, .. }) => assert_eq!(mtu, 1280),
                (_, repr) => panic!("{repr:?}"),
            }
            assert_eq!(ip.payload()[8..], original[..1232]);
            assert_eq!(
                packet(&answer).icmp_quote(),
                Some(packet(&original).five_tuple())
            );
        }
    }

    #[test]
    fn small_packets_are_quoted_whole() {
        let original = sample::udp(false, [1, 2], &[]);
        assert_eq!(prohibited(&packet(&original)).unwrap()[28..], original);
    }

    fn answers(bytes: &[u8]) -> usize {
        BUILDERS
            .into_iter()
            .filter(|build| build(&packet(bytes)).is_some())
            .count()
    }

    #[test]
    fn there_is_no_error_about_an_icmp_error() {
        let message = |kind| [kind, 0, 0, 0, 0, 0, 0, 0];
        for (kind, count) in [
            (0, 3),
            (3, 0),
            (4, 0),
            (5, 0),
            (8, 3),
            (11, 0),
            (12, 0),
            (13, 3),
        ] {
            assert_eq!(
                answers(&sample::ip(false, protocol::ICMP, &message(kind))),
                count,
                "{kind}"
            );
        }
        for (kind, count) in [
            (1, 0),
            (2, 0),
            (3, 0),
            (4, 0),
            (100, 0),
            (127, 0),
            (128, 3),
            (129, 3),
            (137, 0),
        ] {
            assert_eq!(
                answers(&sample::ip(true, protocol::ICMPV6, &message(kind))),
                count,
                "{kind}"
            );
        }
        assert_eq!(answers(&sample::ip(false, protocol::ICMP, &[])), 0);
    }

    #[test]
    fn only_first_fragments_are_answered() {
        let mut bytes = sample::udp(false, [1, 2], &[0; 8]);
        bytes[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(answers(&bytes), 3);
        bytes[6..8].copy_from_slice(&[0x20, 2]);
        assert_eq!(answers(&bytes), 0);
        let mut tcp = Tcp {
            flags: TcpFlags::SYN,
            payload: vec![0; 12],
            ..Tcp::default()
        }
        .build();
        tcp[6..8].copy_from_slice(&[0x20, 0]);
        assert_eq!(reset(&packet(&tcp)), None, "its length is not known");
    }

    #[test]
    fn only_packets_between_two_hosts_are_answered() {
        for (at, address) in [
            (12, [0; 4]),
            (12, [224, 0, 0, 1]),
            (12, [255; 4]),
            (16, [239, 0, 0, 1]),
            (16, [255; 4]),
        ] {
            for mut bytes in [sample::udp(false, [1, 2], &[]), Tcp::default().build()] {
                bytes[at..at + 4].copy_from_slice(&address);
                assert_eq!(
                    (answers(&bytes), reset(&packet(&bytes))),
                    (0, None),
                    "{address:?}"
                );
            }
        }
        for (at, first) in [(8, 0xff), (24, 0xff), (8, 0)] {
            let mut bytes = sample::udp(true, [1, 2], &[]);
            bytes[at..at + 16].fill(0);
            bytes[at] = first;
            assert_eq!(answers(&bytes), 0);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_can_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..60), is_ipv6: bool, of: u8) {
            let protocol = [6, 17, 1, 58, 0, 44][usize::from(of) % 6];
            let bytes = sample::ip(is_ipv6, protocol, &bytes);
            if let Ok(packet) = Packet::new_checked(&bytes) {
                for answer in BUILDERS.into_iter().chain([reset as Build]).filter_map(|build| build(&packet)) {
                    sample::assert_checksums(&answer);
                    assert!(answer.len() <= 1280);
                }
            }
        }
    }
}
