//! Device to tunnel: a super-packet becomes datagrams that fit.

use super::{CutLimits, DatagramBatch, TooBig};
use crate::wire::{
    checksum,
    datagram::{self, PREFIX_LEN},
    field::{get16, get32, put16, put32},
    fragment::{self, MAX_FRAGMENTS},
    packet::{Packet, PacketError, TcpFlags, address_bytes, put_ip_len, version},
    protocol,
    virtio::SuperPacket,
};

/// Appends the datagrams of one packet to `batch`.
///
/// TCP that is a super-packet or does not fit is re-cut into valid segments, UDP super-packets into their datagrams.
/// What does not fit then becomes FRAGMENTs, its checksum complete; their packet id is taken from `fragment_id`, which
/// goes up by one a packet. A partial checksum stays partial (context 4) where the limits allow that, else it is
/// completed. The MSS is not this function's business.
///
/// # Errors
/// When some of it does not fit and cannot be fragmented, or the bytes are no IP packet; then nothing was appended.
pub fn cut(
    packet: &SuperPacket<'_>,
    limits: &CutLimits,
    fragment_id: &mut u16,
    batch: &mut DatagramBatch,
) -> Result<(), TooBig> {
    let parsed = Packet::new_checked(packet.bytes).map_err(|_| TooBig)?;
    cut_parsed(packet, parsed, limits, fragment_id, batch)
}

/// As [`cut`], for a super-packet whose bytes are those of `parsed`.
///
/// # Errors
/// As those of [`cut`].
pub fn cut_parsed(
    packet: &SuperPacket<'_>,
    parsed: Packet<'_>,
    limits: &CutLimits,
    fragment_id: &mut u16,
    batch: &mut DatagramBatch,
) -> Result<(), TooBig> {
    let partial = packet.partial_checksum;
    Cut {
        packet: parsed,
        partial,
        limits,
        fragment_id,
        batch,
    }
    .run(packet)
}

/// Completes the TCP or UDP checksum of a packet whose field holds only the pseudo-header sum.
///
/// # Errors
/// When the bytes are no IP packet.
pub fn complete_checksum(packet: &mut [u8]) -> Result<(), PacketError> {
    let parsed = Packet::new_checked(packet)?;
    if parsed.can_offload() {
        let (transport, protocol) = (parsed.transport_offset(), parsed.protocol());
        put_checksum(packet, transport, protocol, false);
    }
    Ok(())
}

struct Cut<'a> {
    packet: Packet<'a>,
    /// The packet's checksum field holds only the pseudo-header sum.
    partial: bool,
    limits: &'a CutLimits,
    fragment_id: &'a mut u16,
    batch: &'a mut DatagramBatch,
}

impl Cut<'_> {
    fn run(self, packet: &SuperPacket<'_>) -> Result<(), TooBig> {
        let fits = self.packet.bytes().len() <= self.limits.inner;
        let payload = self
            .packet
            .bytes()
            .len()
            .saturating_sub(self.packet.payload_offset());
        let size = packet.gso.map(|gso| usize::from(gso.size));
        let is_super = size.is_some_and(|size| size < payload);
        match self.packet.protocol() {
            _ if self.packet.fragment().is_some() => self.whole(),
            protocol::TCP if is_super || (!fits && self.may_cut()) => {
                self.segments(size.unwrap_or(usize::MAX))
            }
            protocol::UDP if is_super => self.datagrams(size.unwrap_or(usize::MAX)),
            _ => self.whole(),
        }
    }

    /// A segment whose complete checksum is wrong must not get a right one.
    fn may_cut(&self) -> bool {
        let ip = self.packet.bytes().get(..self.packet.transport_offset());
        let is_header_right = || self.packet.is_ipv6() || ip.is_some_and(checksum::is_ipv4_header);
        self.partial
            || checksum::is_complete(
                self.packet.transport(),
                self.packet.address_bytes(),
                self.packet.protocol(),
            ) && is_header_right()
    }

    fn context(&self) -> (bool, [u8; PREFIX_LEN]) {
        let partial = self.partial && self.limits.partial_checksum;
        (
            partial,
            datagram::prefix(if partial {
                datagram::PARTIAL_CHECKSUM
            } else {
                datagram::PACKET
            }),
        )
    }

    /// TCP: segments of at most `size` bytes of payload that fit.
    fn segments(self, size: usize) -> Result<(), TooBig> {
        let (headers, payload) = self
            .packet
            .bytes()
            .split_at_checked(self.packet.payload_offset())
            .ok_or(TooBig)?;
        let size = size.min(self.limits.inner.saturating_sub(headers.len()));
        if size == 0 || payload.is_empty() {
            return Err(TooBig);
        }
        let (partial, prefix) = self.context();
        let transport = self.packet.transport_offset();
        let count = payload.len().div_ceil(size);
        self.batch
            .reserve(count * (PREFIX_LEN + headers.len()) + payload.len());
        for (index, chunk) in payload.chunks(size).enumerate() {
            let segment = self.batch.push(&prefix, headers, chunk);
            put_ip(segment, index);
            if let Some(tcp) = segment.get_mut(transport..) {
                put_tcp(tcp, index * size, index + 1 == count);
            }
            put_checksum(segment, transport, protocol::TCP, partial);
        }
        Ok(())
    }

    /// UDP: datagrams of `size` bytes of payload, which are what the sender wrote. None is larger than the first: it is
    /// the first that fails, if any does.
    fn datagrams(self, size: usize) -> Result<(), TooBig> {
        let (headers, payload) = self
            .packet
            .bytes()
            .split_at_checked(self.packet.payload_offset())
            .ok_or(TooBig)?;
        let fits = headers.len() + size <= self.limits.inner;
        let (partial, prefix) = self.context();
        let transport = self.packet.transport_offset();
        let count = payload.len().div_ceil(size);
        self.batch
            .reserve(count * (PREFIX_LEN + headers.len()) + payload.len());
        for (index, chunk) in payload.chunks(size).enumerate() {
            let mut large = Vec::new();
            let datagram = if fits {
                self.batch.push(&prefix, headers, chunk)
            } else {
                large.extend_from_slice(headers);
                large.extend_from_slice(chunk);
                large.as_mut_slice()
            };
            put_ip(datagram, index);
            if let Some(udp) = datagram.get_mut(transport..) {
                put16(udp, 4, u16::try_from(udp.len()).unwrap_or_default());
            }
            put_checksum(datagram, transport, protocol::UDP, partial && fits);
            if !fits {
                send_whole_or_fragments(&large, self.limits, self.fragment_id, self.batch)?;
            }
        }
        Ok(())
    }

    /// The packet as it is, or FRAGMENTs of it.
    fn whole(self) -> Result<(), TooBig> {
        let bytes = self.packet.bytes();
        let (partial, prefix) = self.context();
        let (transport, protocol) = (self.packet.transport_offset(), self.packet.protocol());
        let completes = self.partial && self.packet.can_offload();
        if bytes.len() <= self.limits.inner {
            self.batch.reserve(PREFIX_LEN + bytes.len());
            let copy = self.batch.push(&prefix, bytes, &[]);
            if completes && !partial {
                put_checksum(copy, transport, protocol, false);
            }
            return Ok(());
        }
        if !completes {
            return send_whole_or_fragments(bytes, self.limits, self.fragment_id, self.batch);
        }
        let mut complete = bytes.to_vec();
        put_checksum(&mut complete, transport, protocol, false);
        send_whole_or_fragments(&complete, self.limits, self.fragment_id, self.batch)
    }
}

/// Appends a packet whose checksums are complete: whole where it fits, else in 2 to 15 pieces of about one size.
fn send_whole_or_fragments(
    bytes: &[u8],
    limits: &CutLimits,
    id: &mut u16,
    batch: &mut DatagramBatch,
) -> Result<(), TooBig> {
    if bytes.len() <= limits.inner {
        batch.push(&datagram::prefix(datagram::PACKET), bytes, &[]);
        return Ok(());
    }
    let room = (limits.inner + PREFIX_LEN)
        .checked_sub(fragment::HEADER_LEN)
        .filter(|room| *room > 0)
        .ok_or(TooBig)?;
    let pieces = bytes.len().div_ceil(room);
    if !limits.fragment || pieces > usize::from(MAX_FRAGMENTS) {
        return Err(TooBig);
    }
    let size = bytes.len().div_ceil(pieces);
    let count = u8::try_from(bytes.len().div_ceil(size)).map_err(|_| TooBig)?;
    batch.reserve(bytes.len() + usize::from(count) * fragment::HEADER_LEN);
    for (index, piece) in (0..count).zip(bytes.chunks(size)) {
        batch.push(&fragment::header(*id, index, count), piece, &[]);
    }
    *id = id.wrapping_add(1);
    Ok(())
}

/// Length, IPv4 identification (one more for each segment) and IPv4 header checksum of the segment with `index`.
fn put_ip(segment: &mut [u8], index: usize) {
    if version(segment) == Some(4) {
        let id = get16(segment, 4)
            .unwrap_or_default()
            .wrapping_add(u16::try_from(index).unwrap_or_default());
        put16(segment, 4, id);
    }
    put_ip_len(segment);
}

/// Sequence number, flags and urgent pointer of the segment whose payload begins `offset` bytes after the first one's:
/// SYN and CWR belong to the first, FIN, PSH and RST to the last, URG to those that the pointer reaches into. A pointer without
/// URG means nothing (RFC 9293 §3.1) and stays what it is.
fn put_tcp(tcp: &mut [u8], offset: usize, is_last: bool) {
    let (Some(sequence), Some(urgent)) = (get32(tcp, 4), get16(tcp, 18)) else {
        return;
    };
    let Some(flags) = tcp.get_mut(13) else { return };
    if !is_last {
        *flags &= !(TcpFlags::FIN | TcpFlags::PSH | TcpFlags::RST);
    }
    if offset == 0 {
        return;
    }
    // A SYN takes the first sequence number, in front of the payload.
    let syn = u32::from(*flags & TcpFlags::SYN != 0);
    *flags &= !(TcpFlags::SYN | TcpFlags::CWR);
    if *flags & TcpFlags::URG != 0 {
        let left = usize::from(urgent).saturating_sub(offset);
        if left == 0 {
            *flags &= !TcpFlags::URG;
        }
        put16(tcp, 18, u16::try_from(left).unwrap_or_default());
    }
    put32(
        tcp,
        4,
        sequence
            .wrapping_add(u32::try_from(offset).unwrap_or_default())
            .wrapping_add(syn),
    );
}

/// The TCP or UDP checksum: the pseudo-header sum only when `partial`.
fn put_checksum(packet: &mut [u8], transport: usize, protocol: u8, partial: bool) {
    let Some((ip, segment)) = packet.split_at_mut_checked(transport) else {
        return;
    };
    let addresses = address_bytes(ip);
    if partial {
        checksum::put_partial(segment, addresses, protocol);
    } else {
        checksum::put_complete(segment, addresses, protocol);
    }
}
