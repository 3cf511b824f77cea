//! The virtio-net header in front of packets from and to the TUN (`struct virtio_net_hdr` without `num_buffers`).
//!
//! ```text
//! 0 flags(8)  1 gso_type(8)  2 hdr_len(16)  4 gso_size(16)  6 csum_start(16)  8 csum_offset(16)
//! ```
//!
//! A TUN uses the byte order of the machine unless told otherwise; it is read and written as little endian, the order of
//! every machine that identun is built for.

use std::fmt;

use crate::wire::{
    checksum,
    packet::{Packet, PacketError},
    protocol,
};

/// Bytes of the header.
pub const VIRTIO_HEADER_LEN: usize = 10;

/// flags: the checksum field holds the pseudo-header sum only. The other flag, 2 (`DATA_VALID`), is not needed.
const NEEDS_CSUM: u8 = 1;
/// `gso_type`: set with a TCP type when CWR is set.
const GSO_ECN: u8 = 0x80;
const GSO_NONE: u8 = 0;
/// The smallest segment that Linux sends (`tcp_min_snd_mss`) bounds how many a packet of 64 KiB can have.
const MIN_SEGMENT: usize = 48;
const MAX_SEGMENTS: usize = 65_535 / MIN_SEGMENT;

/// What a super-packet is cut into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GsoKind {
    /// TCP segments in IPv4.
    Tcp4,
    /// TCP segments in IPv6.
    Tcp6,
    /// UDP datagrams in either (USO).
    Udp,
}

impl fmt::Display for GsoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp4 => "TCP over IPv4",
            Self::Tcp6 => "TCP over IPv6",
            Self::Udp => "UDP",
        })
    }
}

impl GsoKind {
    const fn from_type(gso_type: u8) -> Option<Self> {
        match gso_type {
            1 => Some(Self::Tcp4),
            4 => Some(Self::Tcp6),
            5 => Some(Self::Udp),
            _ => None,
        }
    }

    const fn to_type(self) -> u8 {
        match self {
            Self::Tcp4 => 1,
            Self::Tcp6 => 4,
            Self::Udp => 5,
        }
    }

    /// The kind that segments of `packet` have; `None` for other protocols and for fragments.
    pub(crate) const fn of(packet: &Packet<'_>) -> Option<Self> {
        match (packet.protocol(), packet.is_ipv6()) {
            _ if packet.fragment().is_some() => None,
            (protocol::TCP, false) => Some(Self::Tcp4),
            (protocol::TCP, true) => Some(Self::Tcp6),
            (protocol::UDP, _) => Some(Self::Udp),
            _ => None,
        }
    }
}

/// Segmentation that is still to be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gso {
    /// What is cut.
    pub kind: GsoKind,
    /// Payload bytes of one segment.
    pub size: u16,
}

/// A packet of up to 64 KiB with its offload facts.
#[derive(Clone, Copy, Debug)]
pub struct SuperPacket<'a> {
    /// The IP packet.
    pub bytes: &'a [u8],
    /// The TCP/UDP checksum field holds only the pseudo-header sum (NEEDS_CSUM).
    pub partial_checksum: bool,
    /// Segmentation that is still to be done.
    pub gso: Option<Gso>,
}

/// Why a frame from the device is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum VirtioError {
    /// `csum_start` and `csum_offset` are not those of the packet's TCP or UDP checksum.
    #[error("the virtio-net header asks for a checksum that the packet does not have")]
    Checksum,
    /// A segmentation that does not fit the packet, of size 0 or into too many segments.
    #[error("the virtio-net header asks for a segmentation that does not fit the packet")]
    Gso,
    /// `hdr_len` is beyond the packet.
    #[error("the virtio-net header gives the headers more bytes than the packet has")]
    HeaderLen,
    /// What follows the header is not an IP packet.
    #[error("no IP packet follows the virtio-net header")]
    Packet(#[source] PacketError),
    /// No whole header.
    #[error("the frame is shorter than a virtio-net header")]
    Truncated,
}

impl<'a> SuperPacket<'a> {
    /// Reads `frame`, header and packet, and checks one against the other.
    ///
    /// A checksum offload of anything but the outermost TCP or UDP header is refused: it could not be carried.
    ///
    /// # Errors
    /// When the header does not fit the packet.
    pub fn decode(frame: &'a [u8]) -> Result<Self, VirtioError> {
        Self::parse(frame).map(|(super_packet, _)| super_packet)
    }

    /// As [`Self::decode`], with the packet as it was parsed.
    ///
    /// # Errors
    /// When the header does not fit the packet.
    pub fn parse(frame: &'a [u8]) -> Result<(Self, Packet<'a>), VirtioError> {
        let (header, bytes) = frame
            .split_first_chunk::<VIRTIO_HEADER_LEN>()
            .ok_or(VirtioError::Truncated)?;
        let packet = Packet::new_checked(bytes).map_err(VirtioError::Packet)?;
        let &[flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1] = header;
        let field = |low, high| u16::from_le_bytes([low, high]);
        if usize::from(field(h0, h1)) > bytes.len() {
            return Err(VirtioError::HeaderLen);
        }
        let partial_checksum = flags & NEEDS_CSUM != 0;
        if partial_checksum {
            let expected = packet
                .can_offload()
                .then(|| checksum::field_offset(packet.protocol()))
                .flatten();
            let is_at = usize::from(field(c0, c1)) == packet.transport_offset();
            if !is_at || expected != Some(usize::from(field(o0, o1))) {
                return Err(VirtioError::Checksum);
            }
        }
        let gso = match gso_type & !GSO_ECN {
            GSO_NONE => None,
            kind => Some(check_gso(&packet, kind, field(s0, s1))?),
        };
        let super_packet = Self {
            bytes,
            partial_checksum,
            gso,
        };
        Ok((super_packet, packet))
    }
}

/// What the header of `frame` says is to be cut; not whether that can be.
pub fn gso_kind(frame: &[u8]) -> Option<GsoKind> {
    frame
        .get(1)
        .and_then(|gso_type| GsoKind::from_type(gso_type & !GSO_ECN))
}

/// Tells whether the header of `frame` says that the checksum is partial; not whether that can be.
pub fn has_partial_checksum(frame: &[u8]) -> bool {
    frame.first().is_some_and(|flags| flags & NEEDS_CSUM != 0)
}

fn check_gso(packet: &Packet<'_>, gso_type: u8, size: u16) -> Result<Gso, VirtioError> {
    let kind = GsoKind::from_type(gso_type).filter(|kind| GsoKind::of(packet) == Some(*kind));
    let payload = packet.bytes().len().saturating_sub(packet.payload_offset());
    match kind {
        Some(kind) if size > 0 && payload.div_ceil(usize::from(size)) <= MAX_SEGMENTS => {
            Ok(Gso { kind, size })
        }
        _ => Err(VirtioError::Gso),
    }
}

/// The header of a packet whose checksum is complete and that is not cut: all zero.
pub const PLAIN_HEADER: [u8; VIRTIO_HEADER_LEN] = [0; VIRTIO_HEADER_LEN];

/// The header of `packet` whose checksum field holds the pseudo-header sum: NEEDS_CSUM and, with `gso`, segmentation.
/// Packets that have no checksum to offload get [`PLAIN_HEADER`].
pub fn offload_header(packet: &Packet<'_>, gso: Option<Gso>) -> [u8; VIRTIO_HEADER_LEN] {
    let offset = packet
        .can_offload()
        .then(|| checksum::field_offset(packet.protocol()))
        .flatten();
    let Some(offset) = offset.and_then(|offset| u16::try_from(offset).ok()) else {
        return PLAIN_HEADER;
    };
    let (Ok(start), Ok(headers)) = (
        u16::try_from(packet.transport_offset()),
        u16::try_from(packet.payload_offset()),
    ) else {
        return PLAIN_HEADER;
    };
    let (gso_type, size) = gso.map_or((GSO_NONE, 0), |gso| (gso.kind.to_type(), gso.size));
    let [h0, h1] = headers.to_le_bytes();
    let [s0, s1] = size.to_le_bytes();
    let [c0, c1] = start.to_le_bytes();
    let [o0, o1] = offset.to_le_bytes();
    [NEEDS_CSUM, gso_type, h0, h1, s0, s1, c0, c1, o0, o1]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::sample::{self, Tcp};

    /// A header of little-endian fields.
    fn header(flags: u8, gso_type: u8, fields: [u16; 4]) -> Vec<u8> {
        let fields = fields.into_iter().flat_map(u16::to_le_bytes);
        [flags, gso_type].into_iter().chain(fields).collect()
    }

    fn decode(header: &[u8], packet: &[u8]) -> Result<(bool, Option<Gso>), VirtioError> {
        let frame = [header, packet].concat();
        SuperPacket::decode(&frame).map(|packet| (packet.partial_checksum, packet.gso))
    }

    fn tcp(is_ipv6: bool) -> Vec<u8> {
        Tcp {
            is_ipv6,
            payload: vec![0; 3000],
            ..Tcp::default()
        }
        .build()
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        let udp = sample::udp(false, [1, 2], &[0; 3000]);
        let gso = |kind| Some(Gso { kind, size: 1000 });
        assert_eq!(decode(&header(0, 0, [0; 4]), &udp), Ok((false, None)));
        assert_eq!(
            decode(&header(2, 0, [0; 4]), &udp),
            Ok((false, None)),
            "DATA_VALID"
        );
        assert_eq!(
            decode(&header(1, 0, [28, 0, 20, 6]), &udp),
            Ok((true, None))
        );
        assert_eq!(
            decode(&header(1, 5, [28, 1000, 20, 6]), &udp),
            Ok((true, gso(GsoKind::Udp)))
        );
        assert_eq!(
            decode(&header(1, 1, [40, 1000, 20, 16]), &tcp(false)),
            Ok((true, gso(GsoKind::Tcp4)))
        );
        assert_eq!(
            decode(&header(1, 0x81, [40, 1000, 20, 16]), &tcp(false)),
            Ok((true, gso(GsoKind::Tcp4)))
        );
        assert_eq!(
            decode(&header(1, 4, [60, 1000, 40, 16]), &tcp(true)),
            Ok((true, gso(GsoKind::Tcp6)))
        );
        assert_eq!(
            decode(&header(2, 4, [60, 1000, 0, 0]), &tcp(true)),
            Ok((false, gso(GsoKind::Tcp6)))
        );
    }

    #[test]
    fn a_header_that_does_not_fit_its_packet_is_refused() {
        let (v4, v6, icmp) = (tcp(false), tcp(true), sample::ip(false, 1, &[0; 100]));
        let gso_of_none = [
            (0x02, &v4),
            (3, &v4),
            (4, &v4),
            (5, &v4),
            (1, &v6),
            (5, &icmp),
            (0x7f, &v4),
        ];
        for (gso_type, packet) in gso_of_none {
            assert_eq!(
                decode(&header(0, gso_type, [40, 100, 0, 0]), packet),
                Err(VirtioError::Gso),
                "{gso_type}"
            );
        }
        for size in [0, 1, 2] {
            assert_eq!(
                decode(&header(0, 1, [40, size, 0, 0]), &v4),
                Err(VirtioError::Gso),
                "3000 segments"
            );
        }
        for (start, offset) in [
            (0, 16),
            (20, 0),
            (20, 6),
            (21, 16),
            (40, 16),
            (0xffff, 0xffff),
        ] {
            assert_eq!(
                decode(&header(1, 0, [0, 0, start, offset]), &v4),
                Err(VirtioError::Checksum)
            );
        }
        assert_eq!(
            decode(&header(1, 0, [0, 0, 20, 2]), &icmp),
            Err(VirtioError::Checksum)
        );
        assert_eq!(
            decode(&header(0, 0, [3041, 0, 0, 0]), &v4),
            Err(VirtioError::HeaderLen)
        );
        assert_eq!(
            decode(&header(0, 0, [0; 4])[..9], &[]),
            Err(VirtioError::Truncated)
        );
        assert_eq!(
            decode(&header(0, 0, [0; 4]), &v4[1..]),
            Err(VirtioError::Packet(PacketError))
        );
        let mut fragment = Tcp {
            payload: vec![0; 3004],
            ..Tcp::default()
        }
        .build();
        fragment[6] = 0x20;
        assert_eq!(
            decode(&header(1, 0, [0, 0, 20, 16]), &fragment),
            Err(VirtioError::Checksum)
        );
        assert_eq!(
            decode(&header(0, 1, [40, 100, 0, 0]), &fragment),
            Err(VirtioError::Gso)
        );
    }

    #[test]
    fn a_written_header_is_read_back() {
        for (is_ipv6, kind) in [(false, GsoKind::Tcp4), (true, GsoKind::Tcp6)] {
            let bytes = tcp(is_ipv6);
            let packet = Packet::new_checked(&bytes).unwrap();
            let gso = Some(Gso { kind, size: 1400 });
            let written = offload_header(&packet, gso);
            assert_eq!(decode(&written, &bytes), Ok((true, gso)));
            assert!(has_partial_checksum(&written));
        }
        let bytes = sample::ip(false, 1, &[0; 8]);
        assert_eq!(
            offload_header(&Packet::new_checked(&bytes).unwrap(), None),
            PLAIN_HEADER
        );
        assert!(!has_partial_checksum(&PLAIN_HEADER));
    }

    proptest! {
        #[test]
        fn no_bytes_can_harm(header: [u8; 10], bytes in prop::collection::vec(any::<u8>(), 0..80), is_ipv6: bool) {
            let _ = decode(&header, &bytes);
            let packet = tcp(is_ipv6);
            if let Ok((_, Some(gso))) = decode(&header, &packet) {
                prop_assert!(gso.size > 0);
            }
        }
    }
}
