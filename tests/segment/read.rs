//! Packets read and mended byte by byte.

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// What the headers of a packet say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sight {
    pub(crate) v6: bool,
    pub(crate) protocol: u8,
    /// Where the upper layer begins.
    pub(crate) transport: usize,
    /// Where the payload of TCP and UDP begins.
    pub(crate) payload: usize,
    /// It is a piece of a packet.
    pub(crate) fragment: bool,
}

impl Sight {
    /// TCP or UDP with its header, whole.
    pub(crate) fn has_checksum(&self) -> bool {
        !self.fragment && matches!(self.protocol, TCP | UDP)
    }

    /// Where the checksum field of TCP or UDP stands.
    pub(crate) fn checksum_at(&self) -> usize {
        self.transport + if self.protocol == TCP { 16 } else { 6 }
    }
}

pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn set16(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at] = (value >> 8) as u8;
    bytes[at + 1] = value as u8;
}

/// Reads a packet that `Packet` took.
pub(crate) fn sight(packet: &[u8]) -> Sight {
    let v6 = packet[0] >> 4 == 6;
    let (mut transport, mut protocol, mut fragment, mut later) = (40, packet[6], false, false);
    if v6 {
        while let Some(&next) = packet.get(transport) {
            match protocol {
                0 | 43 | 60 => transport += 8 * (usize::from(packet[transport + 1]) + 1),
                51 => transport += 4 * (usize::from(packet[transport + 1]) + 2),
                44 => {
                    let field = be16(packet, transport + 2);
                    fragment = fragment || field & 0xfff9 != 0;
                    later = field & 0xfff8 != 0;
                    transport += 8;
                }
                _ => break,
            }
            protocol = next;
            if later {
                break;
            }
        }
    } else {
        transport = usize::from(packet[0] & 15) * 4;
        protocol = packet[9];
        fragment = be16(packet, 6) & 0x3fff != 0;
        later = be16(packet, 6) & 0x1fff != 0;
    }
    let payload = match protocol {
        _ if later => transport,
        TCP => transport + usize::from(packet[transport + 12] >> 4) * 4,
        UDP => transport + 8,
        _ => transport,
    };
    Sight {
        v6,
        protocol,
        transport,
        payload,
        fragment,
    }
}

/// The ones' complement sum of big-endian words, a byte at a time.
pub(crate) fn sum(start: u32, bytes: &[u8]) -> u32 {
    let mut total = start;
    for (at, byte) in bytes.iter().enumerate() {
        let shift = if at % 2 == 0 { 8 } else { 0 };
        total += u32::from(*byte) << shift;
        total = (total & 0xffff) + (total >> 16);
    }
    total
}

/// The sum over the pseudo-header.
pub(crate) fn pseudo(packet: &[u8], sight: &Sight) -> u32 {
    let addresses = if sight.v6 { 8..40 } else { 12..20 };
    let len = packet.len() - sight.transport;
    let words = [
        (len >> 24) as u8,
        (len >> 16) as u8,
        (len >> 8) as u8,
        len as u8,
        0,
        sight.protocol,
    ];
    sum(sum(0, &packet[addresses]), &words)
}

/// Tells whether the complete checksum of TCP or UDP is right. None at all is not.
pub(crate) fn is_right(packet: &[u8], sight: &Sight) -> bool {
    let field = be16(packet, sight.checksum_at());
    let none = sight.protocol == UDP && field == 0;
    !none && sum(pseudo(packet, sight), &packet[sight.transport..]) == 0xffff
}

/// Writes the checksum of TCP or UDP.
pub(crate) fn put_right(packet: &mut [u8], sight: &Sight) {
    set16(packet, sight.checksum_at(), 0);
    let total = sum(pseudo(packet, sight), &packet[sight.transport..]);
    let mut field = 0xffff - total as usize;
    if field == 0 && sight.protocol == UDP {
        field = 0xffff;
    }
    set16(packet, sight.checksum_at(), field);
}

/// Writes the sum of the pseudo-header into the checksum field.
pub(crate) fn put_pseudo(packet: &mut [u8], sight: &Sight) {
    let total = pseudo(packet, sight) as usize;
    set16(packet, sight.checksum_at(), total);
}

/// Writes the length into the IP header, and its checksum.
pub(crate) fn put_len(packet: &mut [u8]) {
    let len = packet.len();
    if packet[0] >> 4 == 6 {
        return set16(packet, 4, len - 40);
    }
    set16(packet, 2, len);
    set16(packet, 10, 0);
    let header = usize::from(packet[0] & 15) * 4;
    let total = sum(0, &packet[..header]) as usize;
    set16(packet, 10, 0xffff - total);
}

/// Tells whether the checksum of the IPv4 header is right; IPv6 has none.
pub(crate) fn is_header_right(packet: &[u8]) -> bool {
    packet[0] >> 4 == 6 || sum(0, &packet[..usize::from(packet[0] & 15) * 4]) == 0xffff
}

/// The segments that a packet with segmentation still to be done stands for, each with its checksum complete.
///
/// TCP: SYN and CWR belong to the first, FIN, PSH and RST to the last, the urgent pointer counts from each segment's
/// beginning where URG says that there is one (RFC 9293 §3.1); the IPv4 identification goes up by one a segment.
pub(crate) fn segments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let seen = sight(packet);
    let (headers, payload) = packet.split_at(seen.payload);
    let mut all = Vec::new();
    let mut offset = 0;
    while offset < payload.len() {
        let end = payload.len().min(offset + size);
        let mut segment = [headers, &payload[offset..end]].concat();
        if !seen.v6 {
            let id = usize::from(be16(&segment, 4)) + all.len();
            set16(&mut segment, 4, id & 0xffff);
        }
        put_len(&mut segment);
        if seen.protocol == TCP {
            place(&mut segment[seen.transport..], offset, end == payload.len());
        } else {
            let len = segment.len() - seen.transport;
            set16(&mut segment, seen.transport + 4, len);
        }
        put_right(&mut segment, &seen);
        all.push(segment);
        offset = end;
    }
    all
}

/// Sequence number, flags and urgent pointer of a segment that begins `offset` bytes into the payload.
fn place(tcp: &mut [u8], offset: usize, last: bool) {
    let mut sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    if !last {
        tcp[13] &= !(0x01 | 0x04 | 0x08);
    }
    if offset > 0 {
        // SYN takes a number of its own, in front of the data.
        sequence = sequence.wrapping_add(offset as u32 + u32::from(tcp[13] & 2 != 0));
        tcp[13] &= !(0x02 | 0x80);
        if tcp[13] & 0x20 != 0 {
            let urgent = usize::from(be16(tcp, 18));
            let left = urgent.saturating_sub(offset);
            if left == 0 {
                tcp[13] &= !0x20;
            }
            set16(tcp, 18, left);
        }
    }
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
}
