use std::ops::Range;

use proptest::prelude::*;
use smoltcp::wire::{TcpPacket, UdpPacket};

use super::*;
use crate::wire::{
    capsule::PeerFlags,
    datagram::{self, Datagram},
    packet::{Packet, TcpFlags},
    sample::{self, Tcp},
    virtio::{Gso, GsoKind, SuperPacket, VIRTIO_HEADER_LEN},
};

const LIMITS: CutLimits = CutLimits {
    inner: 1432,
    fragment: true,
    partial_checksum: true,
};

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

fn super_packet(bytes: &[u8], partial_checksum: bool, size: Option<u16>) -> SuperPacket<'_> {
    let kind = GsoKind::of(&Packet::new_checked(bytes).unwrap());
    SuperPacket {
        bytes,
        partial_checksum,
        gso: size.and_then(|size| Some(Gso { kind: kind?, size })),
    }
}

/// What comes out of a cut: packets and whether their checksum is partial; fragments are put together.
fn cut_packets(
    packet: &SuperPacket<'_>,
    limits: &CutLimits,
) -> Result<Vec<(Vec<u8>, bool)>, TooBig> {
    let (mut batch, mut id) = (DatagramBatch::default(), 9);
    cut(packet, limits, &mut id, &mut batch)?;
    #[expect(
        clippy::disallowed_methods,
        reason = "a test needs some instant to count from"
    )]
    let now = std::time::Instant::now();
    let mut reassembler = crate::wire::fragment::Reassembler::default();
    let mut packets = Vec::new();
    for datagram in batch.drain() {
        assert!(
            datagram.len() <= limits.inner + 2,
            "a datagram of {} bytes",
            datagram.len()
        );
        match datagram::decode(&datagram, PeerFlags::ALL).unwrap() {
            Datagram::Packet {
                packet,
                partial_checksum,
            } => packets.push((packet.to_vec(), partial_checksum)),
            Datagram::Fragment(fragment) => {
                assert!(limits.fragment);
                packets.extend(
                    reassembler
                        .push(fragment, now)
                        .unwrap()
                        .map(|packet| (packet, false)),
                );
            }
        }
    }
    assert_eq!(reassembler.poll_timeout(), None);
    Ok(packets)
}

/// Joined frames as packets with their offload facts, read as the kernel's end would.
fn join(packets: &[(Vec<u8>, bool)], udp_offload: bool) -> Vec<Vec<u8>> {
    let mut joiner = Joiner::new(udp_offload);
    for (packet, partial) in packets {
        joiner.push(packet, *partial);
    }
    joiner.flush();
    let mut buf = vec![1, 2, 3];
    let mut frames = Vec::new();
    while joiner.poll(&mut buf) {
        frames.push(buf.clone());
    }
    frames
}

/// A frame's packet, whole, after its checksum offload was done.
fn complete_frame(frame: &[u8]) -> Vec<u8> {
    let packet = SuperPacket::decode(frame).unwrap();
    let mut bytes = packet.bytes.to_vec();
    if packet.partial_checksum {
        assert_eq!(
            sample::partial(bytes.clone()),
            bytes,
            "the field holds the pseudo-header sum"
        );
        complete_checksum(&mut bytes).unwrap();
    }
    sample::assert_checksums(&bytes);
    bytes
}

/// Sequence range, payload and flags of a TCP packet.
fn tcp_of(packet: &[u8]) -> (u32, Vec<u8>, u8) {
    let packet = Packet::new_checked(packet).unwrap();
    let tcp = TcpPacket::new_checked(packet.transport()).unwrap();
    (
        tcp.seq_number().0 as u32,
        tcp.payload().to_vec(),
        packet.tcp_flags().unwrap().bits(),
    )
}

#[test]
fn a_super_packet_is_cut_at_its_segment_size() {
    let packet = Tcp {
        payload: bytes(3000),
        ..Tcp::default()
    }
    .build();
    let cut = cut_packets(
        &super_packet(&sample::partial(packet), true, Some(1000)),
        &LIMITS,
    )
    .unwrap();
    assert_eq!(
        cut.iter()
            .map(|(packet, _)| packet.len())
            .collect::<Vec<_>>(),
        [1040; 3]
    );
    for (index, (packet, partial)) in cut.iter().enumerate() {
        assert!(partial);
        assert_eq!(*packet, sample::partial(packet.clone()));
        assert_eq!(
            packet[4..6],
            (7 + index as u16).to_be_bytes(),
            "identification"
        );
        assert_eq!(tcp_of(packet).0, 100 + 1000 * index as u32);
    }
}

#[test]
fn a_segment_that_does_not_fit_is_cut_again() {
    for is_ipv6 in [false, true] {
        let packet = Tcp {
            is_ipv6,
            payload: bytes(1460),
            flags: 0x18,
            ..Tcp::default()
        }
        .build();
        let limits = CutLimits {
            fragment: false,
            partial_checksum: false,
            ..LIMITS
        };
        let cut = cut_packets(&super_packet(&packet, false, None), &limits).unwrap();
        assert_eq!(cut.len(), 2);
        for (packet, partial) in &cut {
            assert!(!partial);
            sample::assert_checksums(packet);
        }
        assert_eq!([tcp_of(&cut[0].0).2, tcp_of(&cut[1].0).2], [0x10, 0x18]);
    }
}

#[test]
fn flags_go_where_they_belong() {
    let flags = !TcpFlags::RST;
    let packet = Tcp {
        flags,
        urgent: 1500,
        payload: bytes(3000),
        ..Tcp::default()
    }
    .build();
    let cut = cut_packets(&super_packet(&packet, true, Some(1000)), &LIMITS).unwrap();
    let flags: Vec<_> = cut.iter().map(|(packet, _)| tcp_of(packet).2).collect();
    let common = TcpFlags::ACK | TcpFlags::ECE;
    assert_eq!(
        flags,
        [
            common | TcpFlags::URG | TcpFlags::SYN | TcpFlags::CWR,
            common | TcpFlags::URG,
            common | TcpFlags::FIN | TcpFlags::PSH,
        ]
    );
    // The SYN takes sequence number 100.
    assert_eq!(
        cut.iter()
            .map(|(packet, _)| tcp_of(packet).0)
            .collect::<Vec<_>>(),
        [100, 1101, 2101]
    );
    let urgent = |at: usize| u16::from_be_bytes([cut[at].0[38], cut[at].0[39]]);
    assert_eq!([urgent(0), urgent(1), urgent(2)], [1500, 500, 0]);
}

#[test]
fn an_urgent_pointer_without_its_flag_stays_what_it_is() {
    let packet = Tcp {
        urgent: 256,
        payload: bytes(3000),
        ..Tcp::default()
    }
    .build();
    let cut = cut_packets(&super_packet(&packet, true, Some(1000)), &LIMITS).unwrap();
    let urgent: Vec<_> = cut
        .iter()
        .map(|(packet, _)| packet[38..40].to_vec())
        .collect();
    assert_eq!(urgent, [[1, 0]; 3]);
}

#[test]
fn a_wrong_checksum_is_never_made_right() {
    let mut packet = Tcp {
        payload: bytes(1460),
        ..Tcp::default()
    }
    .build();
    packet[100] ^= 1;
    let cut = cut_packets(&super_packet(&packet, false, None), &LIMITS).unwrap();
    assert_eq!(cut, [(packet.clone(), false)]);
    let limits = CutLimits {
        fragment: false,
        ..LIMITS
    };
    assert_eq!(
        cut_packets(&super_packet(&packet, false, None), &limits),
        Err(TooBig)
    );
}

#[test]
fn partial_checksums_are_completed_where_the_peer_does_not_take_them() {
    let packet = Tcp {
        payload: bytes(10),
        ..Tcp::default()
    }
    .build();
    let partial = sample::partial(packet.clone());
    let limits = CutLimits {
        partial_checksum: false,
        ..LIMITS
    };
    assert_eq!(
        cut_packets(&super_packet(&partial, true, None), &limits).unwrap(),
        [(packet, false)]
    );
    assert_eq!(
        cut_packets(&super_packet(&partial, true, None), &LIMITS).unwrap(),
        [(partial, true)]
    );
}

#[test]
fn a_datagram_that_does_not_fit_crosses_in_pieces() {
    for is_ipv6 in [false, true] {
        let packet = sample::udp(is_ipv6, [5, 6], &bytes(9000));
        for (bytes, partial) in [
            (packet.clone(), false),
            (sample::partial(packet.clone()), true),
        ] {
            let cut = cut_packets(&super_packet(&bytes, partial, None), &LIMITS).unwrap();
            assert_eq!(cut, [(packet.clone(), false)]);
        }
        let limits = CutLimits {
            fragment: false,
            ..LIMITS
        };
        assert_eq!(
            cut_packets(&super_packet(&packet, false, None), &limits),
            Err(TooBig)
        );
    }
}

#[test]
fn fifteen_pieces_are_the_most() {
    let room = LIMITS.inner - 3;
    for (len, fits) in [(15 * room, true), (15 * room + 1, false)] {
        let packet = sample::udp(false, [5, 6], &bytes(len - 28));
        assert_eq!(
            cut_packets(&super_packet(&packet, false, None), &LIMITS).is_ok(),
            fits
        );
    }
}

#[test]
fn a_failed_cut_leaves_the_batch_as_it_was() {
    let (mut batch, mut id) = (DatagramBatch::default(), 0);
    let small = sample::udp(false, [5, 6], &bytes(10));
    cut(
        &super_packet(&small, false, None),
        &LIMITS,
        &mut id,
        &mut batch,
    )
    .unwrap();
    // One of 900 fits into 15 pieces of 97, one of 1,500 does not.
    let limits = CutLimits {
        inner: 100,
        ..LIMITS
    };
    let large = sample::udp(false, [5, 6], &bytes(3000));
    assert_eq!(
        cut(
            &super_packet(&large, true, Some(1500)),
            &limits,
            &mut id,
            &mut batch
        ),
        Err(TooBig)
    );
    assert_eq!(
        cut(
            &SuperPacket {
                bytes: &[1, 2],
                partial_checksum: false,
                gso: None
            },
            &LIMITS,
            &mut id,
            &mut batch
        ),
        Err(TooBig)
    );
    let datagrams: Vec<_> = batch.drain().collect();
    assert_eq!(datagrams, [[&[0, 0][..], &small].concat()]);
    assert!(batch.is_empty());
}

#[test]
fn an_ip_fragment_of_tcp_is_not_cut() {
    let mut packet = Tcp {
        payload: bytes(1484),
        ..Tcp::default()
    }
    .build();
    packet[6] = 0x20;
    crate::wire::packet::put_ip_len(&mut packet);
    assert_eq!(
        cut_packets(&super_packet(&packet, false, None), &LIMITS).unwrap(),
        [(packet, false)]
    );
}

#[test]
fn no_room_for_a_byte_of_payload_is_too_big() {
    let packet = Tcp {
        payload: bytes(100),
        ..Tcp::default()
    }
    .build();
    for inner in 0..=40 {
        let limits = CutLimits { inner, ..LIMITS };
        assert_eq!(
            cut_packets(&super_packet(&packet, true, None), &limits),
            Err(TooBig),
            "{inner}"
        );
    }
    assert_eq!(
        cut_packets(
            &super_packet(&packet, true, None),
            &CutLimits {
                inner: 41,
                ..LIMITS
            }
        )
        .unwrap()
        .len(),
        100
    );
}

#[test]
fn datagrams_share_one_allocation() {
    let packet = Tcp {
        payload: bytes(60_000),
        ..Tcp::default()
    }
    .build();
    let (mut batch, mut id) = (DatagramBatch::default(), 0);
    cut(
        &super_packet(&packet, true, Some(1392)),
        &LIMITS,
        &mut id,
        &mut batch,
    )
    .unwrap();
    assert_eq!(batch.len(), 44);
    let datagrams: Vec<_> = batch.drain().collect();
    for pair in datagrams.windows(2) {
        assert_eq!(pair[0].as_ptr_range().end, pair[1].as_ptr());
    }
}

fn segments(count: usize, flags_of_last: u8) -> Vec<(Vec<u8>, bool)> {
    let segment = |index: usize| Tcp {
        sequence: 100_u32.wrapping_add(10 * index as u32),
        flags: if index + 1 == count {
            flags_of_last
        } else {
            TcpFlags::ACK
        },
        payload: bytes(10),
        ..Tcp::default()
    };
    (0..count)
        .map(|index| (segment(index).build(), false))
        .collect()
}

fn counts(frames: &[Vec<u8>]) -> Vec<usize> {
    let payload = |frame: &Vec<u8>| frame.len() - VIRTIO_HEADER_LEN - 40;
    frames.iter().map(payload).collect()
}

#[test]
fn segments_in_order_are_joined() {
    let frames = join(&segments(5, TcpFlags::ACK | TcpFlags::PSH), false);
    assert_eq!(counts(&frames), [50]);
    let packet = SuperPacket::decode(&frames[0]).unwrap();
    assert_eq!(
        packet.gso,
        Some(Gso {
            kind: GsoKind::Tcp4,
            size: 10
        })
    );
    let whole = complete_frame(&frames[0]);
    assert_eq!(tcp_of(&whole), (100, bytes(10).repeat(5), 0x18));
}

#[test]
fn a_packet_alone_keeps_its_checksum() {
    let packet = segments(1, TcpFlags::ACK).remove(0).0;
    let frames = join(
        &[
            (packet.clone(), false),
            (sample::partial(packet.clone()), true),
        ],
        false,
    );
    assert_eq!(frames[0], [&[0; 10][..], &packet].concat());
    assert_eq!(SuperPacket::decode(&frames[1]).unwrap().gso, None);
    assert_eq!(complete_frame(&frames[1]), packet);
}

#[test]
fn a_wrong_checksum_passes_alone_and_unchanged() {
    let mut packets = segments(3, TcpFlags::ACK);
    packets[1].0[45] ^= 1;
    let frames = join(&packets, false);
    assert_eq!(counts(&frames), [10, 10, 10]);
    assert_eq!(frames[1], [&[0; 10][..], &packets[1].0].concat());
}

#[test]
fn a_wrong_header_checksum_is_never_made_right() {
    let mut packets = segments(3, TcpFlags::ACK);
    for spoilt in [0, 1] {
        packets[spoilt].0[10] ^= 1;
        let frames = join(&packets, false);
        assert_eq!(frames[spoilt], [&[0; 10][..], &packets[spoilt].0].concat());
        packets[spoilt].0[10] ^= 1;
    }
    let mut packet = Tcp {
        payload: bytes(1460),
        ..Tcp::default()
    }
    .build();
    packet[10] ^= 1;
    assert_eq!(
        cut_packets(&super_packet(&packet, false, None), &LIMITS).unwrap(),
        [(packet, false)]
    );
}

#[test]
fn a_gap_or_another_header_ends_a_super_packet() {
    let changes: [fn(&mut Tcp); 9] = [
        |tcp| tcp.urgent = 1,
        |tcp| tcp.sequence += 1,
        |tcp| tcp.sequence -= 10,
        |tcp| tcp.acknowledgment += 1,
        |tcp| tcp.options = vec![1, 1, 1, 1],
        |tcp| tcp.flags |= TcpFlags::ECE,
        |tcp| tcp.flags |= TcpFlags::CWR,
        |tcp| tcp.payload.clear(),
        |tcp| tcp.payload.push(0),
    ];
    for change in changes {
        let mut packets = segments(2, TcpFlags::ACK);
        let mut third = Tcp {
            sequence: 120,
            payload: bytes(10),
            ..Tcp::default()
        };
        change(&mut third);
        packets.push((third.build(), false));
        let frames = join(&packets, false);
        assert_eq!(counts(&frames)[0], 20, "{third:?}");
        assert_eq!(frames.len(), 2, "{third:?}");
    }
    // Traffic class, hop limit, DF.
    for (at, bit) in [(1, 2), (8, 1), (6, 0x40)] {
        let mut packets = segments(3, TcpFlags::ACK);
        packets[2].0[at] ^= bit;
        assert_eq!(counts(&join(&packets, false)), [20, 10]);
    }
}

#[test]
fn time_stamps_of_one_super_packet_are_equal() {
    let segment = |index: u32, stamp: u8| {
        let options = vec![1, 1, 8, 10, 0, 0, 0, stamp, 0, 0, 0, 2];
        let tcp = Tcp {
            sequence: index * 10,
            options,
            payload: bytes(10),
            ..Tcp::default()
        };
        (tcp.build(), false)
    };
    let frames = join(
        &[segment(0, 1), segment(1, 1), segment(2, 2), segment(3, 2)],
        false,
    );
    let lens: Vec<_> = frames
        .iter()
        .map(|frame| complete_frame(frame).len())
        .collect();
    assert_eq!(lens, [72, 72]);
}

#[test]
fn a_short_segment_and_push_end_a_super_packet() {
    let mut packets = segments(4, TcpFlags::ACK);
    packets[1].0 = Tcp {
        sequence: 110,
        payload: bytes(9),
        ..Tcp::default()
    }
    .build();
    assert_eq!(counts(&join(&packets, false)), [19, 20]);
    let mut packets = segments(4, TcpFlags::ACK);
    packets[1].0 = Tcp {
        sequence: 110,
        payload: bytes(10),
        flags: 0x18,
        ..Tcp::default()
    }
    .build();
    assert_eq!(counts(&join(&packets, false)), [20, 20]);
}

#[test]
fn sequence_numbers_wrap() {
    let segment = |sequence| {
        (
            Tcp {
                sequence,
                payload: bytes(10),
                ..Tcp::default()
            }
            .build(),
            false,
        )
    };
    assert_eq!(
        counts(&join(&[segment(u32::MAX - 9), segment(0)], false)),
        [20]
    );
}

#[test]
fn sixty_four_segments_and_64_kib_are_the_most() {
    assert_eq!(
        counts(&join(&segments(70, TcpFlags::ACK), false)),
        [640, 60]
    );
    let segment = |index: u32| Tcp {
        sequence: 100 + index * 9000,
        payload: bytes(9000),
        ..Tcp::default()
    };
    let packets: Vec<_> = (0..8)
        .map(|index| (segment(index).build(), false))
        .collect();
    assert_eq!(counts(&join(&packets, false)), [63_000, 9000]);
}

#[test]
fn flows_are_joined_side_by_side_and_the_oldest_gives_way() {
    let segment = |flow: u16, index: u32| {
        let tcp = Tcp {
            ports: [flow, 80],
            sequence: index * 10,
            payload: bytes(10),
            ..Tcp::default()
        };
        (tcp.build(), false)
    };
    let both: Vec<_> = (0..3)
        .flat_map(|index| [segment(1, index), segment(2, index)])
        .collect();
    assert_eq!(counts(&join(&both, false)), [30, 30]);
    let seventeen: Vec<_> = (0..2)
        .flat_map(|index| (1..=17).map(move |flow| segment(flow, index)))
        .collect();
    assert_eq!(counts(&join(&seventeen, false)), [10; 34]);
    let sixteen: Vec<_> = (0..2)
        .flat_map(|index| (1..=16).map(move |flow| segment(flow, index)))
        .collect();
    assert_eq!(counts(&join(&sixteen, false)), [20; 16]);
}

#[test]
fn other_packets_keep_their_place() {
    let icmp = sample::ip(false, 1, &[8, 0, 0, 0, 0, 0, 0, 0]);
    let mut packets = segments(3, TcpFlags::ACK);
    packets.insert(1, (icmp.clone(), true));
    let frames = join(&packets, false);
    assert_eq!(frames.len(), 2);
    assert_eq!(
        frames[1],
        [&[0; 10][..], &icmp].concat(),
        "a partial checksum of ICMP is ignored"
    );
}

#[test]
fn a_frame_that_may_grow_is_not_given_out() {
    let mut joiner = Joiner::new(false);
    let mut buf = Vec::new();
    joiner.push(&segments(1, TcpFlags::ACK)[0].0, false);
    assert!(!joiner.poll(&mut buf));
    joiner.flush();
    assert!(joiner.poll(&mut buf));
    assert!(!joiner.poll(&mut buf));
}

#[test]
fn udp_is_joined_only_for_a_device_that_takes_it() {
    for is_ipv6 in [false, true] {
        let datagram = |len| (sample::udp(is_ipv6, [5, 6], &bytes(len)), false);
        let packets = [
            datagram(10),
            datagram(10),
            datagram(4),
            datagram(10),
            datagram(11),
        ];
        assert_eq!(join(&packets, false).len(), 5);
        let frames = join(&packets, true);
        assert_eq!(frames.len(), 3);
        let first = SuperPacket::decode(&frames[0]).unwrap();
        assert_eq!(
            first.gso,
            Some(Gso {
                kind: GsoKind::Udp,
                size: 10
            })
        );
        let whole = complete_frame(&frames[0]);
        let packet = Packet::new_checked(&whole).unwrap();
        let payload = [bytes(10), bytes(10), bytes(4)].concat();
        assert_eq!(
            UdpPacket::new_checked(packet.transport())
                .unwrap()
                .payload(),
            payload
        );
    }
}

#[test]
fn a_udp_datagram_without_checksum_passes_alone() {
    let mut packet = sample::udp(false, [5, 6], &bytes(10));
    packet[26..28].fill(0);
    let frames = join(&[(packet.clone(), false), (packet.clone(), false)], true);
    assert_eq!(frames, vec![[&[0; 10][..], &packet].concat(); 2]);
}

#[test]
fn a_joined_frame_is_split_into_what_it_was_joined_of() {
    for is_ipv6 in [false, true] {
        let packets: Vec<_> = (0..3_u32)
            .map(|index| {
                let tcp = Tcp {
                    is_ipv6,
                    sequence: index * 10,
                    flags: if index == 2 { 0x18 } else { 0x10 },
                    payload: bytes(10),
                    ..Tcp::default()
                };
                (tcp.build(), false)
            })
            .collect();
        let [frame] = join(&packets, false).try_into().unwrap();
        let frames = split(&frame);
        assert_eq!(frames.len(), 3);
        for (frame, (packet, _)) in frames.iter().zip(&packets) {
            assert_eq!(frame[..10], [0; 10]);
            sample::assert_checksums(&frame[10..]);
            assert_eq!(tcp_of(&frame[10..]), tcp_of(packet));
        }
        assert_eq!(
            split(&frames[0]),
            Vec::<Vec<u8>>::new(),
            "nothing to take away"
        );
        let partial = join(&[(sample::partial(packets[0].0.clone()), true)], false);
        assert_eq!(split(&partial[0]), [[&[0; 10][..], &packets[0].0].concat()]);
    }
    assert_eq!(split(&[1; 9]), Vec::<Vec<u8>>::new());
}

#[test]
fn a_kind_that_the_device_refused_is_joined_no_more_and_others_are() {
    let mut joiner = Joiner::new(true);
    joiner.stop(GsoKind::Tcp4);
    for (packet, partial) in segments(3, TcpFlags::ACK) {
        joiner.push(&packet, partial);
    }
    for _ in 0..2 {
        joiner.push(&sample::udp(false, [5, 6], &bytes(10)), false);
    }
    joiner.flush();
    let (mut frame, mut kinds) = (Vec::new(), Vec::new());
    while joiner.poll(&mut frame) {
        kinds.push(crate::wire::virtio::gso_kind(&frame));
    }
    assert_eq!(kinds, [None, None, None, Some(GsoKind::Udp)]);
}

fn flags() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![
        0x10_u8, 0x18, 0x11, 0x19, 0x90, 0x50, 0x04, 0x02, 0x12, 0x98,
    ])
}

/// The sequence numbers that a segment takes, a SYN's and a FIN's included.
fn sequence_range((sequence, payload, flags): &(u32, Vec<u8>, u8)) -> Range<u64> {
    let start = u64::from(*sequence);
    let extra = u64::from(flags & TcpFlags::SYN != 0) + u64::from(flags & TcpFlags::FIN != 0);
    start..start + payload.len() as u64 + extra
}

proptest! {
    #[test]
    fn tcp_that_is_cut_and_joined_is_what_it_was(
        is_ipv6: bool, options in prop::collection::vec(1..2_u8, 0..40), payload in 0..40_000_usize, flags in flags(),
        partial: bool, size in prop::option::of(200..3000_u16), inner in 141..9000_usize, takes_partial: bool,
        sequence in 0..u32::MAX / 2,
    ) {
        let size = size.filter(|_| partial);
        let original = Tcp { is_ipv6, options, flags, sequence, payload: bytes(payload), ..Tcp::default() };
        let whole = original.build();
        let sent = if partial { sample::partial(whole.clone()) } else { whole.clone() };
        let limits = CutLimits { inner, fragment: false, partial_checksum: takes_partial };
        let cut = cut_packets(&super_packet(&sent, partial, size), &limits).unwrap();
        let mut segments = Vec::new();
        for (packet, is_partial) in &cut {
            prop_assert!(!is_partial || (partial && takes_partial));
            let complete = if *is_partial { sample::complete(packet.clone()) } else { packet.clone() };
            sample::assert_checksums(&complete);
            segments.push(tcp_of(&complete));
        }
        let frames: Vec<_> = join(&cut, false).iter().map(|frame| complete_frame(frame)).collect();
        for segments in [segments, frames.iter().map(|frame| tcp_of(frame)).collect()] {
            let expected = tcp_of(&whole);
            for pair in segments.windows(2) {
                prop_assert_eq!(sequence_range(&pair[0]).end, sequence_range(&pair[1]).start);
            }
            let first = sequence_range(&segments[0]).start;
            prop_assert_eq!(first..sequence_range(segments.last().unwrap()).end, sequence_range(&expected));
            prop_assert_eq!(segments.iter().fold(0, |all, segment| all | segment.2), expected.2);
            prop_assert_eq!(segments.into_iter().flat_map(|segment| segment.1).collect::<Vec<_>>(), expected.1);
        }
        // What a super-packet of plain data lost is only its cut.
        if flags == 0x10 && payload > 0 && cut.len() <= 64 && payload + 100 < 65_535 {
            prop_assert_eq!(frames.len(), 1);
        }
    }

    #[test]
    fn udp_that_is_cut_and_joined_is_what_it_was(
        is_ipv6: bool, payload in 1..30_000_usize, size in 500..2000_u16, inner in 1000..3000_usize, takes_partial: bool,
        offload: bool,
    ) {
        let size = size.max((payload / 60) as u16 + 1);
        let packet = sample::partial(sample::udp(is_ipv6, [5, 6], &bytes(payload)));
        let limits = CutLimits { inner, fragment: true, partial_checksum: takes_partial };
        let cut = cut_packets(&super_packet(&packet, true, Some(size)), &limits).unwrap();
        let payload_of = |packet: &[u8]| {
            let packet = Packet::new_checked(packet).unwrap();
            UdpPacket::new_checked(packet.transport()).unwrap().payload().to_vec()
        };
        let datagrams: Vec<_> = cut.iter().map(|(packet, _)| payload_of(packet)).collect();
        prop_assert_eq!(datagrams, bytes(payload).chunks(usize::from(size)).map(<[u8]>::to_vec).collect::<Vec<_>>());
        let frames: Vec<_> = join(&cut, offload).iter().map(|frame| complete_frame(frame)).collect();
        prop_assert_eq!(frames.len(), if offload { 1 } else { cut.len() });
        prop_assert_eq!(frames.iter().flat_map(|frame| payload_of(frame)).collect::<Vec<_>>(), bytes(payload));
    }

    #[test]
    fn no_bytes_can_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..200), is_ipv6: bool, partial: bool, size: u16,
        inner in 0..200_usize, protocol in prop::sample::select(vec![6_u8, 17, 1]),
    ) {
        if bytes.len() > 45 {
            let rest = bytes.split_off(40);
            bytes = sample::ip(is_ipv6, protocol, &rest);
        }
        let limits = CutLimits { inner, fragment: partial, partial_checksum: is_ipv6 };
        let kind = Packet::new_checked(&bytes).ok().and_then(|packet| GsoKind::of(&packet));
        let gso = kind.map(|kind| Gso { kind, size: size.max(1) });
        let (mut batch, mut id) = (DatagramBatch::default(), 0);
        let packet = SuperPacket { bytes: &bytes, partial_checksum: partial, gso };
        let result = cut(&packet, &limits, &mut id, &mut batch);
        prop_assert!(result.is_ok() != batch.is_empty());
        for datagram in batch.drain() {
            prop_assert!(datagram.len() <= inner + 2);
        }
        let mut joiner = Joiner::new(true);
        joiner.push(&bytes, partial);
        joiner.push(&bytes, !partial);
        joiner.flush();
        let mut buf = Vec::new();
        while joiner.poll(&mut buf) {
            prop_assert!(SuperPacket::decode(&buf).is_ok());
        }
    }
}
