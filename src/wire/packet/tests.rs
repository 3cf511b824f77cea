use proptest::prelude::*;
use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

use super::*;
use crate::wire::sample::{self, Tcp};

fn parses(bytes: &[u8]) -> bool {
    Packet::new_checked(bytes).is_ok()
}

/// An IPv6 packet with a chain of extension headers: each as (its type, its bytes without the first one).
fn chain(headers: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, (_, header)) in headers.iter().enumerate() {
        bytes.push(headers.get(index + 1).map_or(protocol, |next| next.0));
        bytes.extend_from_slice(header);
    }
    bytes.extend_from_slice(payload);
    sample::ip(
        true,
        headers.first().map_or(protocol, |first| first.0),
        &bytes,
    )
}

fn udp_header(ports: [u16; 2], len: u16) -> Vec<u8> {
    [ports[0], ports[1], len, 0]
        .into_iter()
        .flat_map(u16::to_be_bytes)
        .collect()
}

const PADDING: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

fn fragment_header(offset: u16, more: bool, id: u32) -> Vec<u8> {
    let mut header = vec![0];
    header.extend((offset | u16::from(more)).to_be_bytes());
    header.extend(id.to_be_bytes());
    header
}

/// An IPv4 packet with the fragment word (flags and offset in units of 8 bytes).
fn ipv4_fragment(protocol: u8, word: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = sample::ip(false, protocol, payload);
    packet[6..8].copy_from_slice(&word.to_be_bytes());
    packet
}

#[test]
fn one_pass_finds_every_fact() {
    let bytes = Tcp {
        flags: 0x12,
        options: vec![1; 4],
        payload: vec![9; 3],
        ..Tcp::default()
    }
    .build();
    let packet = Packet::new_checked(&bytes).unwrap();
    assert_eq!(
        packet.five_tuple().to_string(),
        "tcp 10.0.0.1:1000 -> 10.0.0.2:80"
    );
    assert_eq!(
        (packet.transport_offset(), packet.payload_offset()),
        (20, 44)
    );
    assert!(packet.dont_fragment() && !packet.is_ipv6() && packet.can_offload());
    let flags = packet.tcp_flags().unwrap();
    assert!(
        flags.is_syn()
            && flags.is_ack()
            && !flags.is_syn_only()
            && !flags.is_fin()
            && !flags.is_rst()
    );
    assert_eq!((packet.fragment(), packet.icmp_quote()), (None, None));
    assert_eq!(packet.transport(), &bytes[20..]);
}

#[test]
fn lengths_must_be_those_of_the_bytes() {
    for is_ipv6 in [false, true] {
        let bytes = sample::udp(is_ipv6, [1, 2], &[0; 4]);
        assert!(parses(&bytes));
        for len in 0..bytes.len() {
            assert!(!parses(&bytes[..len]), "{len}");
        }
        assert!(!parses(&[&bytes[..], &[0]].concat()));
    }
    let largest = sample::ip(true, 99, &[0; 65_535]);
    assert!(parses(&largest));
}

#[test]
fn header_lengths_must_be_possible() {
    let good = Tcp {
        payload: vec![0; 40],
        ..Tcp::default()
    }
    .build();
    for (at, value) in [
        (0, 0x44),
        (0, 0x40),
        (0, 0x4f),
        (0, 0x55),
        (0, 0x65),
        (32, 0x40),
        (32, 0xf0),
        (32, 0x00),
    ] {
        let mut bytes = good.clone();
        bytes[at] = value;
        // A longer IP header over zeros ends its options at once: only then it is one.
        let is_possible = (at, value) == (32, 0xf0);
        assert_eq!(parses(&bytes), is_possible, "{at} {value:#x}");
    }
    for len in [0, 7, 13] {
        assert!(
            !parses(&sample::ip(
                false,
                17,
                &[udp_header([1, 2], len), vec![0; 4]].concat()
            )),
            "{len}"
        );
    }
    for (protocol, len) in [(6, 19), (17, 7), (132, 11)] {
        assert!(!parses(&sample::ip(false, protocol, &vec![0x50; len])));
        assert!(!parses(&sample::ip(true, protocol, &vec![0x50; len])));
    }
    assert!(parses(&sample::ip(false, 132, &[0; 12])));
}

#[test]
fn ipv4_options_are_read_and_source_routes_refused() {
    let with_options = |options: [u8; 8]| {
        let mut bytes = sample::udp(false, [1, 2], &[]);
        bytes[0] = 0x47;
        bytes.splice(20..20, options);
        put_ip_len(&mut bytes);
        bytes
    };
    let record_route = with_options([7, 7, 4, 0, 0, 0, 0, 1]);
    assert_eq!(
        Packet::new_checked(&record_route)
            .unwrap()
            .five_tuple()
            .destination_port,
        2
    );
    assert!(
        parses(&with_options([1, 1, 0, 131, 0, 0, 0, 0])),
        "nothing counts after the end"
    );
    for bad in [
        [131, 7, 4, 10, 0, 0, 9, 0],
        [1, 137, 7, 4, 10, 0, 0, 9],
        [7, 1, 0, 0, 0, 0, 0, 0],
        [7, 9, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 7],
    ] {
        assert!(!parses(&with_options(bad)), "{bad:?}");
    }
}

#[test]
fn the_upper_layer_is_found_behind_extension_headers() {
    let options: &[u8] = &PADDING;
    let routed = [0, 2, 0, 0, 0, 0, 0].as_slice();
    let authentication = [1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1].as_slice();
    let atomic = fragment_header(0, false, 7);
    let headers = [
        (0, options),
        (60, options),
        (43, routed),
        (44, &atomic),
        (51, authentication),
        (60, options),
    ];
    let bytes = chain(&headers, 17, &udp_header([5, 53], 8));
    let packet = Packet::new_checked(&bytes).unwrap();
    assert_eq!(
        (packet.protocol(), packet.five_tuple().service_port()),
        (17, Some(53))
    );
    assert_eq!(
        packet.fragment(),
        None,
        "an atomic fragment is a whole packet"
    );
    assert_eq!(packet.transport_offset(), 40 + 5 * 8 + 12);
}

#[test]
fn extension_headers_are_bounded() {
    let options: &[u8] = &PADDING;
    assert!(parses(&chain(
        &[(60, options); 8],
        17,
        &udp_header([1, 2], 8)
    )));
    assert!(!parses(&chain(
        &[(60, options); 9],
        17,
        &udp_header([1, 2], 8)
    )));
}

#[test]
fn dangerous_extension_headers_are_refused() {
    let options: &[u8] = &PADDING;
    let atomic = fragment_header(0, false, 7);
    let udp = udp_header([1, 2], 8);
    let refused: [&[(u8, &[u8])]; 8] = [
        // Routing type 0; any type with segments left.
        &[(43, &[0, 0, 0, 0, 0, 0, 0])],
        &[(
            43,
            &[
                2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        )],
        &[(
            43,
            &[
                2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        )],
        // Jumbo payload, an option that reaches beyond its header.
        &[(0, &[0, 0xc2, 4, 0, 1, 0, 0])],
        &[(0, &[0, 1, 5, 0, 0, 0, 0])],
        &[(60, options), (0, options)],
        &[(44, &atomic), (44, &atomic)],
        // Longer than the packet.
        &[(60, &[200, 1, 4, 0, 0, 0, 0])],
    ];
    for headers in refused {
        assert!(!parses(&chain(headers, 17, &udp)), "{headers:?}");
    }
    assert!(parses(&chain(&[(43, &[0, 2, 0, 0, 0, 0, 0])], 17, &udp)));
}

#[test]
fn fragments_are_told_from_whole_packets() {
    let first = ipv4_fragment(17, 0x2000, &[udp_header([5, 6], 100), vec![0; 8]].concat());
    let first = Packet::new_checked(&first).unwrap();
    assert_eq!(
        first.fragment(),
        Some(FragmentInfo {
            id: 7,
            offset: 0,
            more: true
        })
    );
    assert_eq!(first.five_tuple().destination_port, 6);
    assert!(!first.can_offload() && !first.dont_fragment());
    let last = ipv4_fragment(17, 0x0002, &[0xff; 84]);
    let last = Packet::new_checked(&last).unwrap();
    assert_eq!(
        last.fragment(),
        Some(FragmentInfo {
            id: 7,
            offset: 16,
            more: false
        })
    );
    assert_eq!(last.five_tuple().destination_port, 0);
    let header = fragment_header(16, true, 0x0102_0304);
    let bytes = chain(&[(60, &PADDING), (44, &header)], 17, &[0xff; 16]);
    let middle = Packet::new_checked(&bytes).unwrap();
    assert_eq!(
        middle.fragment(),
        Some(FragmentInfo {
            id: 0x0102_0304,
            offset: 16,
            more: true
        })
    );
    assert_eq!(
        (
            middle.protocol(),
            middle.five_tuple().source_port,
            middle.tcp_flags()
        ),
        (17, 0, None)
    );
    assert_eq!(middle.transport(), [0xff; 16]);
}

#[test]
fn impossible_fragments_are_refused() {
    let tcp = Tcp {
        payload: vec![0; 20],
        ..Tcp::default()
    }
    .build()[20..]
        .to_vec();
    assert!(parses(&ipv4_fragment(6, 0x2000, &tcp)));
    // The first without its whole transport header.
    assert!(!parses(&ipv4_fragment(6, 0x2000, &tcp[..16])));
    assert!(!parses(&ipv4_fragment(17, 0x2000, &[])));
    assert!(!parses(&chain(
        &[(44, &fragment_header(0, true, 1))],
        6,
        &tcp[..16]
    )));
    // The rest of that header.
    assert!(!parses(&ipv4_fragment(6, 0x0001, &[0; 24])));
    assert!(!parses(&ipv4_fragment(6, 0x2002, &[0; 24])));
    assert!(parses(&ipv4_fragment(6, 0x0003, &[0; 24])));
    // Not a multiple of eight bytes, empty, beyond the largest packet.
    assert!(!parses(&ipv4_fragment(17, 0x2004, &[0; 9])));
    assert!(!parses(&ipv4_fragment(17, 0x2004, &[])));
    assert!(parses(&ipv4_fragment(17, 0x0004, &[0; 9])));
    assert!(!parses(&ipv4_fragment(17, 0x1fff, &[0; 9])));
}

fn icmp_error(is_ipv6: bool, kind: u8, quote: &[u8]) -> Vec<u8> {
    let message = [&[kind, 0, 0, 0, 0, 0, 0, 0], quote].concat();
    sample::ip(
        is_ipv6,
        if is_ipv6 {
            protocol::ICMPV6
        } else {
            protocol::ICMP
        },
        &message,
    )
}

#[test]
fn the_quote_of_an_icmp_error_is_read_though_cut_off() {
    for (is_ipv6, kinds) in [(false, &[3_u8, 11, 12][..]), (true, &[1, 2, 3, 4])] {
        let quoted = Tcp {
            is_ipv6,
            payload: vec![0; 1000],
            ..Tcp::default()
        }
        .build();
        let header = if is_ipv6 { 40 } else { 20 };
        for kind in kinds {
            let bytes = icmp_error(is_ipv6, *kind, &quoted[..header + 8]);
            let packet = Packet::new_checked(&bytes).unwrap();
            assert_eq!(
                packet.icmp_quote(),
                Some(Packet::new_checked(&quoted).unwrap().five_tuple())
            );
            assert!(packet.is_icmp_error());
        }
        for len in [0, 1, header - 1, header, header + 3] {
            let bytes = icmp_error(is_ipv6, kinds[0], &quoted[..len]);
            assert_eq!(Packet::new_checked(&bytes).unwrap().icmp_quote(), None);
        }
    }
}

#[test]
fn only_errors_about_flows_have_a_quote() {
    let quoted = [
        sample::udp(false, [1, 2], &[]),
        sample::udp(true, [1, 2], &[]),
    ];
    let quote_of = |bytes: &[u8]| Packet::new_checked(bytes).unwrap().icmp_quote();
    for kind in [0, 4, 5, 8, 13] {
        assert_eq!(quote_of(&icmp_error(false, kind, &quoted[0])), None);
    }
    for kind in [0, 5, 128, 129, 137] {
        assert_eq!(quote_of(&icmp_error(true, kind, &quoted[1])), None);
    }
    assert_eq!(
        quote_of(&icmp_error(false, 3, &quoted[1])),
        None,
        "IPv6 in ICMP"
    );
    assert_eq!(
        quote_of(&icmp_error(true, 1, &quoted[0])),
        None,
        "IPv4 in ICMPv6"
    );
    let later = ipv4_fragment(
        protocol::ICMP,
        0x0003,
        &icmp_error(false, 3, &quoted[0])[20..],
    );
    assert_eq!(quote_of(&later), None, "a later fragment");
    let wrong_protocol = sample::ip(
        false,
        protocol::ICMPV6,
        &icmp_error(true, 1, &quoted[1])[40..],
    );
    assert_eq!(quote_of(&wrong_protocol), None);
}

#[test]
fn a_quoted_later_fragment_has_no_ports() {
    let quoted = ipv4_fragment(17, 0x0003, &[0xff; 8]);
    let bytes = icmp_error(false, 3, &quoted);
    assert_eq!(
        Packet::new_checked(&bytes)
            .unwrap()
            .icmp_quote()
            .unwrap()
            .destination_port,
        0
    );
}

/// What smoltcp reads as the five-tuple of a whole packet without extension headers.
fn oracle(bytes: &[u8]) -> Option<FiveTuple> {
    let (source, destination, protocol, payload) = match bytes.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(bytes).ok()?;
            let payload = bytes.get(usize::from(ip.header_len())..usize::from(ip.total_len()))?;
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                payload,
            )
        }
        _ => {
            let ip = Ipv6Packet::new_checked(bytes).ok()?;
            (
                ip.src_addr().into(),
                ip.dst_addr().into(),
                ip.next_header(),
                bytes.get(40..ip.total_len())?,
            )
        }
    };
    let (source_port, destination_port) = if protocol == IpProtocol::Tcp {
        TcpPacket::new_checked(payload)
            .map(|tcp| (tcp.src_port(), tcp.dst_port()))
            .ok()?
    } else if protocol == IpProtocol::Udp {
        UdpPacket::new_checked(payload)
            .map(|udp| (udp.src_port(), udp.dst_port()))
            .ok()?
    } else {
        (0, 0)
    };
    Some(FiveTuple {
        protocol: protocol.into(),
        source,
        source_port,
        destination,
        destination_port,
    })
}

proptest! {
    #[test]
    fn five_tuples_are_those_of_smoltcp(
        is_ipv6: bool, protocol in prop::sample::select(vec![6_u8, 17, 1, 58, 47]), addresses: [u8; 32],
        mut payload in prop::collection::vec(any::<u8>(), 0..60), header in 4..8_u8, fixes_len: bool,
    ) {
        if let (6, Some(offset)) = (protocol, payload.get_mut(12)) {
            *offset = header << 4;
        }
        if protocol == 17 && payload.len() >= 8 && fixes_len {
            let len = payload.len() as u16;
            payload[4..6].copy_from_slice(&len.to_be_bytes());
        }
        let mut bytes = sample::ip(is_ipv6, protocol, &payload);
        let (at, len) = if is_ipv6 { (8, 32) } else { (12, 8) };
        bytes[at..at + len].copy_from_slice(&addresses[..len]);
        prop_assert_eq!(Packet::new_checked(&bytes).ok().map(|packet| packet.five_tuple()), oracle(&bytes));
    }

    #[test]
    fn no_bytes_can_harm(
        mut bytes in prop::collection::vec(any::<u8>(), 0..120), is_ipv6: bool, fixes_len: bool,
        next in prop::sample::select(vec![0_u8, 6, 17, 43, 44, 51, 60, 1, 58, 132]),
    ) {
        if fixes_len && bytes.len() > 48 {
            bytes[0] = if is_ipv6 { 0x60 } else { 0x40 | (bytes[0] & 7) };
            bytes[if is_ipv6 { 6 } else { 9 }] = next;
            bytes[if is_ipv6 { 40 } else { 6 }] &= 0x3f;
            put_ip_len(&mut bytes);
        }
        if let Ok(packet) = Packet::new_checked(&bytes) {
            let tuple = packet.five_tuple();
            prop_assert_eq!((packet.source(), packet.destination()), (tuple.source, tuple.destination));
            prop_assert_eq!(packet.bytes().len(), bytes.len());
            prop_assert!(packet.payload_offset() <= bytes.len());
            prop_assert_eq!(packet.transport().len() + packet.transport_offset(), bytes.len());
            let _ = packet.icmp_quote();
        }
        let error = icmp_error(is_ipv6, if is_ipv6 { 1 } else { 3 }, &bytes);
        let _ = Packet::new_checked(&error).unwrap().icmp_quote();
    }
}
