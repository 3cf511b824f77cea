//! What may come out of a join: Linux' rules for super-packets, and every packet that went in.

use std::{collections::BTreeMap, fmt};

use super::{
    cut::Crossing,
    read::{TCP, UDP, be16, is_header_right, is_right, pseudo, put_right, segments, sight},
};

const HEADER: usize = 10;

/// One packet as the kernel sees it in the end.
#[derive(Clone, Eq, PartialEq)]
struct Arrived {
    bytes: Vec<u8>,
    /// The checksum is right; its field is blank then: two values may mean the same.
    right: bool,
    /// The IPv4 identification is blank: it was inside of a super-packet.
    blank: bool,
}

impl fmt::Debug for Arrived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = &self.bytes[..self.bytes.len().min(80)];
        let (len, right, blank) = (self.bytes.len(), self.right, self.blank);
        write!(f, "{len} bytes, right {right}, blank {blank}: {head:x?}")
    }
}

/// Whose packet it is: packets of one never pass each other.
type Whose = (Vec<u8>, u8, Vec<u8>);

/// Checks `frames`, which were made of `packets`; returns how many segments were joined.
pub(crate) fn check(packets: &[Crossing], frames: &[Vec<u8>], udp_offload: bool) -> usize {
    let mut sent: BTreeMap<Whose, Vec<Arrived>> = BTreeMap::new();
    for (packet, partial) in packets {
        let mut packet = packet.clone();
        let seen = sight(&packet);
        if *partial && seen.has_checksum() {
            put_right(&mut packet, &seen);
        }
        sent.entry(whose(&packet))
            .or_default()
            .push(arrived(packet, false));
    }
    let (mut came, mut joined) = (BTreeMap::new(), 0);
    for frame in frames {
        let made = segments_of(frame, udp_offload);
        joined += made.len() - 1;
        for (index, packet) in made.into_iter().enumerate() {
            let flow: &mut Vec<Arrived> = came.entry(whose(&packet)).or_default();
            flow.push(arrived(packet, index > 0));
        }
    }
    assert_eq!(
        sent.keys().collect::<Vec<_>>(),
        came.keys().collect::<Vec<_>>(),
        "flows"
    );
    for (flow, sent) in &sent {
        let came = &came[flow];
        assert_eq!(sent.len(), came.len(), "packets of {flow:?}");
        for (at, (sent, came)) in sent.iter().zip(came).enumerate() {
            let mut sent = sent.clone();
            if came.blank {
                assert!(
                    is_header_right(&sent.bytes),
                    "a wrong header checksum became right"
                );
                blank_id(&mut sent.bytes);
                sent.blank = true;
            }
            assert_eq!(&sent, came, "packet {at} of {flow:?}");
        }
    }
    joined
}

fn whose(packet: &[u8]) -> Whose {
    let seen = sight(packet);
    let addresses = if seen.v6 { 8..40 } else { 12..20 };
    let ports = if seen.payload > seen.transport {
        packet[seen.transport..seen.transport + 4].to_vec()
    } else {
        Vec::new()
    };
    (packet[addresses].to_vec(), seen.protocol, ports)
}

fn arrived(mut bytes: Vec<u8>, blank: bool) -> Arrived {
    let seen = sight(&bytes);
    let right = seen.has_checksum() && is_right(&bytes, &seen);
    if right {
        let at = seen.checksum_at();
        bytes[at..at + 2].fill(0);
    }
    if blank {
        blank_id(&mut bytes);
    }
    Arrived {
        bytes,
        right,
        blank,
    }
}

/// The identification, and the header checksum over it.
fn blank_id(bytes: &mut [u8]) {
    if bytes[0] >> 4 == 4 {
        bytes[4..6].fill(0);
        bytes[10..12].fill(0);
    }
}

/// Does what the kernel does with a frame, and asks what it asks (`virtio_net_hdr_to_skb`, `tcp_gso_segment`,
/// `__udp_gso_segment`).
fn segments_of(frame: &[u8], udp_offload: bool) -> Vec<Vec<u8>> {
    let (header, packet) = frame.split_at(HEADER);
    assert!(packet.len() <= 65_575);
    let seen = sight(packet);
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    if header[0] == 0 {
        assert_eq!(header, [0; HEADER]);
        return vec![packet.to_vec()];
    }
    assert_eq!(header[0], 1, "flags");
    assert!(seen.has_checksum());
    assert_eq!(field(2), seen.payload, "hdr_len");
    assert_eq!(field(6), seen.transport, "csum_start");
    assert_eq!(field(6) + field(8), seen.checksum_at(), "csum_offset");
    assert_eq!(
        u32::from(be16(packet, seen.checksum_at())),
        pseudo(packet, &seen)
    );
    if header[1] == 0 {
        assert_eq!(field(4), 0, "gso_size");
        let mut packet = packet.to_vec();
        put_right(&mut packet, &seen);
        return vec![packet];
    }
    let size = field(4);
    let count = (packet.len() - seen.payload).div_ceil(size);
    assert!((2..=64).contains(&count), "{count} segments");
    assert!(packet.len() <= 65_535);
    assert!(is_header_right(packet), "IPv4 header checksum");
    assert_eq!(seen.transport, if seen.v6 { 40 } else { 20 }, "options");
    let kind = match (seen.protocol, seen.v6) {
        (TCP, false) => 1,
        (TCP, true) => 4,
        _ => 5,
    };
    assert_eq!(header[1], kind, "gso_type");
    if seen.protocol == UDP {
        assert!(udp_offload);
        assert_eq!(
            usize::from(be16(packet, seen.transport + 4)),
            packet.len() - seen.transport
        );
    } else {
        assert_eq!(
            packet[seen.transport + 13] & !0x09,
            0x10,
            "flags of a super-packet"
        );
    }
    segments(packet, size)
}
