//! A checked IP packet: one pass over its headers finds what every later step asks for.
//!
//! Refused here, once for all: lengths that disagree with the bytes, source routes in either IP version (the address that
//! was checked would not be the one it reaches), jumbograms, first fragments without their whole transport header.

mod extension;

use std::net::IpAddr;

use crate::wire::{
    FiveTuple, checksum,
    field::{get16, get32, put16},
    protocol,
};

/// The flags byte of a TCP header (RFC 9293 §3.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TcpFlags(u8);

impl TcpFlags {
    /// FIN: no more data from the sender.
    pub const FIN: u8 = 0x01;
    /// SYN: synchronises sequence numbers.
    pub const SYN: u8 = 0x02;
    /// RST: resets the connection.
    pub const RST: u8 = 0x04;
    /// PSH: hands data to the receiver at once.
    pub const PSH: u8 = 0x08;
    /// ACK: the acknowledgment number counts.
    pub const ACK: u8 = 0x10;
    /// URG: the urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// ECE: echo of congestion experienced (RFC 3168).
    pub const ECE: u8 = 0x40;
    /// CWR: congestion window reduced (RFC 3168).
    pub const CWR: u8 = 0x80;

    /// The byte as it stands in the header.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// FIN is set.
    pub const fn is_fin(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// SYN is set.
    pub const fn is_syn(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// RST is set.
    pub const fn is_rst(self) -> bool {
        self.0 & Self::RST != 0
    }

    /// ACK is set.
    pub const fn is_ack(self) -> bool {
        self.0 & Self::ACK != 0
    }

    /// SYN without ACK, RST, FIN: opens a connection.
    pub const fn is_syn_only(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// The fragment facts of a packet that is an IP fragment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FragmentInfo {
    /// Identification: 16 bits in IPv4, 32 bits in IPv6.
    pub id: u32,
    /// Where its payload stands in the whole one, in bytes.
    pub offset: u16,
    /// Other fragments follow.
    pub more: bool,
}

/// The bytes are not one well-formed IP packet that may cross a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a well-formed IP packet")]
pub struct PacketError;

/// An IPv4 or IPv6 packet of at most 65,575 bytes whose headers were walked.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    bytes: &'a [u8],
    transport: usize,
    payload: usize,
    ports: [u16; 2],
    protocol: u8,
    is_ipv6: bool,
    dont_fragment: bool,
    tcp_flags: Option<TcpFlags>,
    fragment: Option<FragmentInfo>,
}

/// Bytes of an IPv4 header without options.
pub(crate) const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub(crate) const IPV6_HEADER: usize = 40;
/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;
/// Bytes of a UDP header.
pub(crate) const UDP_HEADER: usize = 8;
/// Bytes of the common header of SCTP.
const SCTP_HEADER: usize = 12;
/// Bytes in front of the quoted packet of an ICMP error, both versions.
pub(crate) const ICMP_HEADER: usize = 8;
/// The longest whole payload that fragments can make.
const MAX_PAYLOAD: usize = 65_535;

/// What the IP header and its extensions say.
struct Network {
    transport: usize,
    protocol: u8,
    dont_fragment: bool,
    fragment: Option<FragmentInfo>,
}

impl<'a> Packet<'a> {
    /// Parses; the length of `bytes` must be exactly the IP total length (super-packets included).
    ///
    /// The checksum of the IPv4 header is not looked at: the kernel does so on the way out of the device.
    ///
    /// # Errors
    /// When the bytes are not one packet as the module says.
    #[inline]
    pub fn new_checked(bytes: &'a [u8]) -> Result<Self, PacketError> {
        Self::parse(bytes).ok_or(PacketError)
    }

    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let is_ipv6 = version(bytes)? == 6;
        if total_len(bytes)? != bytes.len() {
            return None;
        }
        let network = if is_ipv6 {
            extension::walk(bytes)?
        } else {
            ipv4(bytes)?
        };
        let Network {
            transport,
            protocol,
            dont_fragment,
            fragment,
        } = network;
        let segment = bytes.get(transport..)?;
        let mut packet = Self {
            bytes,
            transport,
            payload: transport,
            ports: [0; 2],
            protocol,
            is_ipv6,
            dont_fragment,
            tcp_flags: None,
            fragment,
        };
        match fragment {
            Some(fragment) if !is_possible(fragment, segment.len(), protocol) => return None,
            Some(FragmentInfo { offset: 1.., .. }) => {}
            _ => packet.parse_transport(segment)?,
        }
        Some(packet)
    }

    fn parse_transport(&mut self, segment: &[u8]) -> Option<()> {
        let header = match self.protocol {
            protocol::TCP => {
                let &[offset, flags] = segment.get(12..14)?.first_chunk()?;
                self.tcp_flags = Some(TcpFlags(flags));
                let header = usize::from(offset >> 4) * 4;
                (header >= TCP_HEADER).then_some(header)?
            }
            protocol::UDP => {
                let len = usize::from(get16(segment, 4)?);
                let is_whole = self.fragment.is_some() || len <= segment.len();
                (len >= UDP_HEADER && is_whole).then_some(UDP_HEADER)?
            }
            protocol::SCTP => SCTP_HEADER,
            _ => return Some(()),
        };
        if segment.len() < header {
            return None;
        }
        self.ports = [get16(segment, 0)?, get16(segment, 2)?];
        self.payload = self.transport + header;
        Some(())
    }

    /// The whole packet.
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// It is IPv6.
    pub const fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    /// Source address of the IP header.
    #[inline]
    pub fn source(&self) -> IpAddr {
        addresses_of(self.bytes).0
    }

    /// Destination address of the IP header.
    #[inline]
    pub fn destination(&self) -> IpAddr {
        addresses_of(self.bytes).1
    }

    /// Source and destination address as they stand in the IP header: what a pseudo-header begins with.
    #[inline]
    pub fn address_bytes(&self) -> &'a [u8] {
        address_bytes(self.bytes)
    }

    /// Upper-layer protocol after extension headers. Of a non-first IPv6 fragment: what its fragment header says.
    pub const fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Ports 0 for non-first fragments and port-less protocols.
    #[inline]
    pub fn five_tuple(&self) -> FiveTuple {
        let (source, destination) = addresses_of(self.bytes);
        let [source_port, destination_port] = self.ports;
        FiveTuple {
            protocol: self.protocol,
            source,
            source_port,
            destination,
            destination_port,
        }
    }

    /// A number that packets of one flow share and those of others mostly do not, for sharing a queue fairly. Whoever finds
    /// flows with equal numbers makes them share, and harms nobody else's.
    pub fn flow_hash(&self) -> u32 {
        const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
        let [source, destination] = self.ports;
        let ports = (u64::from(source) << 16) | u64::from(destination);
        let (words, tail) = self.address_bytes().as_chunks::<8>();
        let tail = tail
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte));
        let start = (ports << 8 | u64::from(self.protocol)) ^ tail;
        let words = words.iter().map(|word| u64::from_ne_bytes(*word));
        let mixed = words.fold(start.wrapping_mul(FACTOR), |mixed, word| {
            (mixed ^ word).wrapping_mul(FACTOR).rotate_left(29)
        });
        let mixed = mixed.wrapping_mul(FACTOR) >> 32;
        u32::try_from(mixed).unwrap_or_default()
    }

    /// `None` unless the packet is a fragment (offset is not 0, or others follow).
    pub const fn fragment(&self) -> Option<FragmentInfo> {
        self.fragment
    }

    /// `None` unless TCP with its header: not of a non-first fragment.
    pub const fn tcp_flags(&self) -> Option<TcpFlags> {
        self.tcp_flags
    }

    /// TCP: the sequence number after this segment, and whether it begins a stream (SYN). `None` of a fragment: what the
    /// whole segment takes of sequence space cannot be told from it.
    pub fn tcp_end(&self) -> Option<(u32, bool)> {
        let flags = self.tcp_flags.filter(|_| self.fragment.is_none())?;
        let payload = u32::try_from(self.bytes.len().checked_sub(self.payload)?).ok()?;
        let taken = payload + u32::from(flags.is_syn()) + u32::from(flags.is_fin());
        let start = get32(self.transport(), 4)?;
        Some((start.wrapping_add(taken), flags.is_syn()))
    }

    /// TCP: the acknowledgment number, where it counts.
    pub fn tcp_acknowledgment(&self) -> Option<u32> {
        self.tcp_flags.filter(|flags| flags.is_ack())?;
        get32(self.transport(), 8)
    }

    /// The upper-layer header and payload.
    #[inline]
    pub fn transport(&self) -> &'a [u8] {
        self.bytes.get(self.transport..).unwrap_or_default()
    }

    /// Where the upper-layer header begins.
    pub const fn transport_offset(&self) -> usize {
        self.transport
    }

    /// Where the payload of TCP, UDP or SCTP begins; of others, and of non-first fragments, the same as
    /// [`Self::transport_offset`].
    pub const fn payload_offset(&self) -> usize {
        self.payload
    }

    /// IPv4 DF bit; always true for IPv6.
    pub const fn dont_fragment(&self) -> bool {
        self.dont_fragment
    }

    /// It is TCP or UDP and not a fragment: what a checksum offload can be about.
    pub const fn can_offload(&self) -> bool {
        matches!(self.protocol, protocol::TCP | protocol::UDP) && self.fragment.is_none()
    }

    /// It is an ICMP error, or an ICMP packet too short to tell (RFC 1122 §3.2.2, RFC 4443 §2.1; a redirect of either
    /// version is one for this purpose).
    pub fn is_icmp_error(&self) -> bool {
        let kind = self.transport().first();
        match (self.protocol, self.is_ipv6) {
            (protocol::ICMP, false) => kind.is_none_or(|kind| matches!(kind, 3 | 4 | 5 | 11 | 12)),
            (protocol::ICMPV6, true) => kind.is_none_or(|&kind| kind < 128 || kind == 137),
            _ => false,
        }
    }

    /// For an ICMP error: the five-tuple of the quoted packet, in the direction that packet travelled.
    ///
    /// Taken are destination unreachable, packet too big, time exceeded and parameter problem; not redirects, which say
    /// nothing about a flow. The quote may be cut off after the ports (RFC 792 promises 8 bytes of the upper layer).
    pub fn icmp_quote(&self) -> Option<FiveTuple> {
        if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
            return None;
        }
        let (&[kind, ..], quote) = self.transport().split_first_chunk::<ICMP_HEADER>()?;
        match (self.protocol, self.is_ipv6, kind) {
            (protocol::ICMP, false, 3 | 11 | 12) => quoted(quote, 4),
            (protocol::ICMPV6, true, 1..=4) => quoted(quote, 6),
            _ => None,
        }
    }
}

/// The length that the IP header at the beginning of `bytes` gives the packet; `None` when there is no whole header of
/// IPv4 or IPv6.
pub(crate) fn total_len(bytes: &[u8]) -> Option<usize> {
    match version(bytes)? {
        4 if bytes.len() >= IPV4_HEADER => get16(bytes, 2).map(usize::from),
        6 if bytes.len() >= IPV6_HEADER => {
            get16(bytes, 4).map(|len| IPV6_HEADER + usize::from(len))
        }
        _ => None,
    }
}

/// The version nibble.
pub(crate) fn version(bytes: &[u8]) -> Option<u8> {
    bytes.first().map(|first| first >> 4)
}

/// Source and destination address of a packet whose IP header is whole, as they stand there.
pub(crate) fn address_bytes(packet: &[u8]) -> &[u8] {
    let range = if version(packet) == Some(6) {
        8..IPV6_HEADER
    } else {
        12..IPV4_HEADER
    };
    packet.get(range).unwrap_or_default()
}

/// Writes the IP length that `packet` has, and with it the IPv4 header checksum; returns the length of the IP header,
/// IPv6 extensions not counted.
pub(crate) fn put_ip_len(packet: &mut [u8]) -> usize {
    let len = packet.len();
    if version(packet) == Some(6) {
        put16(
            packet,
            4,
            u16::try_from(len.saturating_sub(IPV6_HEADER)).unwrap_or_default(),
        );
        return IPV6_HEADER;
    }
    put16(packet, 2, u16::try_from(len).unwrap_or_default());
    let header = packet
        .first()
        .map_or(0, |first| usize::from(first & 0x0f) * 4);
    if let Some(ip) = packet.get_mut(..header) {
        checksum::put_ipv4_header(ip);
    }
    header
}

fn addresses_of(packet: &[u8]) -> (IpAddr, IpAddr) {
    let bytes = address_bytes(packet);
    if let Some((source, destination)) = bytes.split_first_chunk::<16>() {
        let destination = destination.first_chunk::<16>().copied().unwrap_or_default();
        return (IpAddr::from(*source), IpAddr::from(destination));
    }
    let source = bytes.first_chunk::<4>().copied().unwrap_or_default();
    let destination = bytes.last_chunk::<4>().copied().unwrap_or_default();
    (IpAddr::from(source), IpAddr::from(destination))
}

/// Walks an IPv4 header; the bytes may end anywhere after it.
fn ipv4(bytes: &[u8]) -> Option<Network> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    let options = bytes.get(IPV4_HEADER..header)?;
    if !options.is_empty() {
        check_ipv4_options(options)?;
    }
    let flags = get16(bytes, 6)?;
    let (offset, more) = ((flags & 0x1fff) << 3, flags & 0x2000 != 0);
    let id = u32::from(get16(bytes, 4)?);
    Some(Network {
        transport: header,
        protocol: *bytes.get(9)?,
        dont_fragment: flags & 0x4000 != 0,
        fragment: (offset > 0 || more).then_some(FragmentInfo { id, offset, more }),
    })
}

/// Refuses options that do not parse and source routes (RFC 7126 §4.3).
fn check_ipv4_options(mut options: &[u8]) -> Option<()> {
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    loop {
        options = match options {
            [] | [0, ..] => return Some(()),
            [1, rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return None,
            [_, len, ..] if *len >= 2 => options.get(usize::from(*len)..)?,
            [_, ..] => return None,
        };
    }
}

/// Fragment sizes that cannot be: all but the last carry multiples of 8 bytes, none reaches beyond the largest packet,
/// and none but the first touches the TCP header that a first one must hold whole (RFC 1858 §3, RFC 8200 §4.5).
fn is_possible(fragment: FragmentInfo, len: usize, protocol: u8) -> bool {
    let offset = usize::from(fragment.offset);
    let is_aligned = !fragment.more || (len > 0 && len.is_multiple_of(8));
    let splits_header = protocol == protocol::TCP && (1..TCP_HEADER).contains(&offset);
    is_aligned && !splits_header && offset + len <= MAX_PAYLOAD
}

/// The five-tuple of a quoted packet of the given version, which may be cut off after the ports.
fn quoted(quote: &[u8], expected: u8) -> Option<FiveTuple> {
    if version(quote)? != expected {
        return None;
    }
    total_len(quote)?;
    let network = if expected == 6 {
        extension::walk(quote)?
    } else {
        ipv4(quote)?
    };
    let is_first = network.fragment.is_none_or(|fragment| fragment.offset == 0);
    let ports = if is_first && protocol::has_ports(network.protocol) {
        get32(quote, network.transport)?
    } else {
        0
    };
    let [a, b, c, d] = ports.to_be_bytes();
    let (source, destination) = addresses_of(quote);
    Some(FiveTuple {
        protocol: network.protocol,
        source,
        source_port: u16::from_be_bytes([a, b]),
        destination,
        destination_port: u16::from_be_bytes([c, d]),
    })
}

#[cfg(test)]
mod tests;
