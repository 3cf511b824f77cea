//! Tunnel to device: consecutive segments of a flow become one super-packet.

use std::{collections::VecDeque, mem};

use crate::wire::{
    FiveTuple, checksum,
    field::{get16, get32, put16},
    packet::{IPV4_HEADER, IPV6_HEADER, Packet, TcpFlags, address_bytes, put_ip_len},
    protocol,
    virtio::{Gso, GsoKind, PLAIN_HEADER, VIRTIO_HEADER_LEN, offload_header},
};

/// Flows that may have an open super-packet at once.
const MAX_OPEN: usize = 16;
/// Segments of one super-packet (`UDP_MAX_SEGMENTS` of Linux before 6.9).
const MAX_SEGMENTS: usize = 64;
/// Bytes of one super-packet.
const MAX_PACKET: usize = 65_535;
/// Buffers that wait to be used again.
const MAX_POOL: usize = 64;

/// Joins consecutive TCP (and UDP with USO) packets of a flow into super-packets with a virtio-net header built here.
///
/// Frames come out in the order in which their first packets went in; packets of one flow never pass each other. Every
/// packet pushed comes out, alone or joined, after [`Joiner::flush`].
#[derive(Debug)]
pub struct Joiner {
    /// What the device takes super-packets of.
    kinds: Vec<GsoKind>,
    /// Frames in order; those that [`Open`] points at still grow.
    slots: VecDeque<Vec<u8>>,
    /// The number of the first slot: slots are numbered as they begin.
    first: usize,
    /// Oldest first.
    open: Vec<Open>,
    pool: Vec<Vec<u8>>,
}

/// A super-packet that may grow.
#[derive(Debug)]
struct Open {
    slot: usize,
    tuple: FiveTuple,
    /// Payload bytes of each segment but the last.
    size: usize,
    segments: usize,
    /// TCP: the sequence number of the next segment.
    sequence: u32,
}

/// A packet that may be joined with others of its flow.
#[derive(Clone, Copy)]
struct Segment<'a> {
    packet: Packet<'a>,
    payload: &'a [u8],
    /// TCP: sequence number.
    sequence: u32,
    /// FIN or PSH: nothing is joined after it.
    ends: bool,
}

impl Joiner {
    /// A joiner that holds nothing. `udp_offload`: the device takes UDP super-packets (USO).
    pub fn new(udp_offload: bool) -> Self {
        let mut kinds = vec![GsoKind::Tcp4, GsoKind::Tcp6];
        kinds.extend(udp_offload.then_some(GsoKind::Udp));
        Self {
            kinds,
            slots: VecDeque::new(),
            first: 0,
            open: Vec::new(),
            pool: Vec::new(),
        }
    }

    /// Takes one checked IP packet; what is none is not taken.
    ///
    /// A complete checksum is verified before the packet is joined; a packet whose checksum is wrong passes alone and
    /// unchanged, for the kernel to drop and count. `partial_checksum` of a packet that is neither TCP nor UDP, or a
    /// fragment, is ignored.
    pub fn push(&mut self, packet: &[u8], partial_checksum: bool) {
        if let Ok(packet) = Packet::new_checked(packet) {
            self.push_parsed(packet, partial_checksum);
        }
    }

    /// As [`Self::push`], for a packet that is parsed already.
    pub fn push_parsed(&mut self, packet: Packet<'_>, partial_checksum: bool) {
        let partial = partial_checksum && packet.can_offload();
        if !self.joins(&packet) {
            return self.start(&packet, partial);
        }
        let segment = Segment::of(&packet, partial);
        let tuple = packet.five_tuple();
        if let Some(at) = self.open.iter().position(|open| open.tuple == tuple) {
            match segment.and_then(|segment| self.append(at, &segment)) {
                Some(Growth::Goes) => return,
                Some(Growth::Ends) => return self.close(at),
                None => self.close(at),
            }
        }
        self.start(&packet, partial);
        match segment {
            Some(segment) if !segment.ends => self.open(&segment, tuple),
            _ => {}
        }
    }

    /// Ends every open super-packet.
    pub fn flush(&mut self) {
        while !self.open.is_empty() {
            self.close(0);
        }
    }

    /// The next frame (virtio-net header and IP packet) replaces what is in `buf`; false when none is ready.
    ///
    /// A frame that may still grow holds back those behind it until [`Joiner::flush`]. The buffer of `buf` is kept for
    /// a later frame.
    pub fn poll(&mut self, buf: &mut Vec<u8>) -> bool {
        if self.open.iter().any(|open| open.slot == self.first) {
            return false;
        }
        let Some(frame) = self.slots.pop_front() else {
            return false;
        };
        self.first = self.first.wrapping_add(1);
        let used = mem::replace(buf, frame);
        if self.pool.len() < MAX_POOL && used.capacity() > 0 {
            self.pool.push(used);
        }
        true
    }

    /// Joins no packets of `kind` from here on: the device refused a super-packet of it. Open ones end.
    pub fn stop(&mut self, kind: GsoKind) {
        self.flush();
        self.kinds.retain(|taken| *taken != kind);
    }

    /// Fragments count as what they are pieces of: they end the super-packet of their flow.
    fn joins(&self, packet: &Packet<'_>) -> bool {
        let kind = match packet.protocol() {
            protocol::TCP if packet.is_ipv6() => GsoKind::Tcp6,
            protocol::TCP => GsoKind::Tcp4,
            protocol::UDP => GsoKind::Udp,
            _ => return false,
        };
        self.kinds.contains(&kind)
    }

    /// Begins a frame with one packet, complete as it is.
    fn start(&mut self, packet: &Packet<'_>, partial: bool) {
        let mut frame = self.pool.pop().unwrap_or_default();
        frame.clear();
        frame.extend_from_slice(&if partial {
            offload_header(packet, None)
        } else {
            PLAIN_HEADER
        });
        frame.extend_from_slice(packet.bytes());
        if partial
            && let Some(segment) = frame.get_mut(VIRTIO_HEADER_LEN + packet.transport_offset()..)
        {
            checksum::put_partial(segment, packet.address_bytes(), packet.protocol());
        }
        self.slots.push_back(frame);
    }

    /// Lets the newest frame grow.
    fn open(&mut self, segment: &Segment<'_>, tuple: FiveTuple) {
        if self.open.len() >= MAX_OPEN {
            self.close(0);
        }
        let size = segment.payload.len();
        self.open.push(Open {
            slot: self.first.wrapping_add(self.slots.len()).wrapping_sub(1),
            tuple,
            size,
            segments: 1,
            sequence: segment.next_sequence(),
        });
    }

    /// Adds a segment to an open super-packet; `None` when it does not belong there.
    fn append(&mut self, at: usize, segment: &Segment<'_>) -> Option<Growth> {
        let open = self.open.get_mut(at)?;
        let frame = self.slots.get_mut(open.slot.wrapping_sub(self.first))?;
        let joined = frame.get(VIRTIO_HEADER_LEN..)?;
        let has_room =
            open.segments < MAX_SEGMENTS && joined.len() + segment.payload.len() <= MAX_PACKET;
        let is_next =
            segment.packet.protocol() == protocol::UDP || segment.sequence == open.sequence;
        if !has_room
            || !is_next
            || segment.payload.len() > open.size
            || !segment.has_headers_of(joined)
        {
            return None;
        }
        frame.extend_from_slice(segment.payload);
        if let Some(flags) = segment.packet.tcp_flags()
            && let Some(field) =
                frame.get_mut(VIRTIO_HEADER_LEN + segment.packet.transport_offset() + 13)
        {
            *field |= flags.bits();
        }
        open.segments += 1;
        open.sequence = segment.next_sequence();
        let ends = segment.ends || segment.payload.len() < open.size;
        Some(if ends { Growth::Ends } else { Growth::Goes })
    }

    /// Ends one open super-packet: its headers become those of the whole.
    fn close(&mut self, at: usize) {
        if at >= self.open.len() {
            return;
        }
        let open = self.open.remove(at);
        if open.segments > 1
            && let Some(frame) = self.slots.get_mut(open.slot.wrapping_sub(self.first))
        {
            finish(frame, &open);
        }
    }
}

enum Growth {
    Goes,
    Ends,
}

impl<'a> Segment<'a> {
    /// TCP with nothing but ACK, PSH and FIN, or UDP; with payload; without IP options or extensions; with a checksum
    /// that is partial or right, and one of the IPv4 header that is right.
    fn of(packet: &Packet<'a>, partial: bool) -> Option<Self> {
        let ip_header = if packet.is_ipv6() {
            IPV6_HEADER
        } else {
            IPV4_HEADER
        };
        if packet.transport_offset() != ip_header || packet.fragment().is_some() {
            return None;
        }
        // The header of a super-packet is written anew: a wrong checksum would become a right one.
        if !packet.is_ipv6() && !checksum::is_ipv4_header(packet.bytes().get(..ip_header)?) {
            return None;
        }
        let segment = packet.transport();
        let payload = packet
            .bytes()
            .get(packet.payload_offset()..)
            .filter(|payload| !payload.is_empty())?;
        let (sequence, ends) = match packet.tcp_flags() {
            Some(flags) => {
                let ending = TcpFlags::PSH | TcpFlags::FIN;
                (flags.bits() & !ending == TcpFlags::ACK).then_some(())?;
                (get32(segment, 4)?, flags.bits() & ending != 0)
            }
            None => {
                let len = get16(segment, 4)?;
                (usize::from(len) == segment.len()).then_some((0, false))?
            }
        };
        let is_right =
            partial || checksum::is_complete(segment, packet.address_bytes(), packet.protocol());
        is_right.then_some(Self {
            packet: *packet,
            payload,
            sequence,
            ends,
        })
    }

    fn next_sequence(&self) -> u32 {
        self.sequence
            .wrapping_add(u32::try_from(self.payload.len()).unwrap_or_default())
    }

    /// Everything that one super-packet can say only once is equal: traffic class, flow label, DF, hop limit,
    /// acknowledgment, window, urgent pointer, TCP options (time stamps too).
    fn has_headers_of(&self, joined: &[u8]) -> bool {
        let bytes = self.packet.bytes();
        let is_equal = |from: usize, to: usize| bytes.get(from..to) == joined.get(from..to);
        let ip = if self.packet.is_ipv6() {
            is_equal(0, 4) && is_equal(6, 8)
        } else {
            is_equal(0, 2) && is_equal(6, 10)
        };
        let tcp = self.packet.transport_offset();
        ip && (self.packet.protocol() == protocol::UDP
            || (is_equal(tcp + 8, tcp + 13)
                && is_equal(tcp + 14, tcp + 16)
                && is_equal(tcp + 18, self.packet.payload_offset())))
    }
}

/// Rebuilds lengths, IPv4 header checksum and pseudo-header sum of a joined packet, then its virtio-net header from it.
fn finish(frame: &mut [u8], open: &Open) {
    let Some((header, bytes)) = frame.split_first_chunk_mut::<VIRTIO_HEADER_LEN>() else {
        return;
    };
    let ip_header = put_ip_len(bytes);
    let Some((ip, segment)) = bytes.split_at_mut_checked(ip_header) else {
        return;
    };
    let protocol = open.tuple.protocol;
    if protocol == protocol::UDP {
        put16(segment, 4, u16::try_from(segment.len()).unwrap_or_default());
    }
    checksum::put_partial(segment, address_bytes(ip), protocol);
    let (Ok(size), Ok(packet)) = (u16::try_from(open.size), Packet::new_checked(bytes)) else {
        return;
    };
    let gso = GsoKind::of(&packet).map(|kind| Gso { kind, size });
    *header = offload_header(&packet, gso);
}
