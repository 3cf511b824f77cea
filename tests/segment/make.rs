//! Frames of a TUN and packets of a peer, made of a row of choices.

use super::{
    choices::Choices,
    read::{TCP, UDP, put_len, put_pseudo, put_right, set16, sight},
};

/// One sender's packets, until something else is chosen for them.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    v6: bool,
    protocol: u8,
    ports: [u16; 2],
    sequence: u32,
    id: u16,
    traffic_class: u8,
    ip_options: Vec<u8>,
    tcp_options: Vec<u8>,
}

/// IPv4 options: nothing; an end and a no-operation; router alert; a time stamp to be filled.
const IP_OPTIONS: [&[u8]; 4] = [
    &[],
    &[1, 1, 1, 0],
    &[148, 4, 0, 0],
    &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
];
/// Chains of IPv6 extension headers, as (kind, bytes after the next-header byte).
const EXTENSIONS: [&[(u8, &[u8])]; 5] = [
    &[],
    &[(0, &[0, 5, 2, 0, 0, 1, 0])],
    &[(60, &[0, 1, 4, 0, 0, 0, 0])],
    &[
        (0, &[0, 1, 4, 0, 0, 0, 0]),
        (43, &[0, 4, 0, 0, 0, 0, 0]),
        (60, &[0, 1, 4, 0, 0, 0, 0]),
    ],
    // An atomic fragment is a whole packet.
    &[(44, &[0, 0, 0, 1, 2, 3, 4])],
];
const TCP_OPTIONS: [&[u8]; 5] = [
    &[],
    &[1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 0, 9],
    &[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 9],
    &[
        2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 1, 3, 3, 7,
    ],
    &[1; 40],
];
/// ACK, and all that comes with it.
const FLAGS: [u8; 16] = [
    0x10, 0x10, 0x10, 0x18, 0x10, 0x11, 0x19, 0x90, 0x50, 0x30, 0x38, 0x14, 0x02, 0x12, 0xd8, 0xff,
];
const SIZES: [usize; 8] = [0, 1, 7, 536, 1_000, 1_399, 1_448, 9_000];

impl Flow {
    pub(crate) fn new(choices: &mut Choices<'_>, number: u16) -> Self {
        let v6 = choices.chance(50);
        let options: Vec<u8> = if v6 {
            vec![choices.below(EXTENSIONS.len()) as u8]
        } else {
            choices.pick(&IP_OPTIONS).to_vec()
        };
        // Most packets have none, and only those are joined.
        let none = if v6 { vec![0] } else { Vec::new() };
        Self {
            v6,
            protocol: *choices.pick(&[TCP, UDP, TCP, UDP, 1, 58, 132, 47]),
            ports: [1_000 + number / 2, 80],
            sequence: *choices.pick(&[1, u32::MAX - 3_000, 0x7fff_ff00]),
            id: *choices.pick(&[0, 7, u16::MAX - 2]),
            traffic_class: *choices.pick(&[0, 1, 2, 3, 0xb8, 0xff]),
            ip_options: if choices.chance(25) { options } else { none },
            tcp_options: choices.pick(&TCP_OPTIONS).to_vec(),
        }
    }

    /// A flow without anything in its headers that a host could object to.
    pub(crate) fn plain(choices: &mut Choices<'_>, number: u16) -> Self {
        let v6 = number.is_multiple_of(2);
        Self {
            v6,
            protocol: if number < 6 { UDP } else { TCP },
            ports: [1_000 + number, 80],
            ip_options: if v6 { vec![0] } else { Vec::new() },
            tcp_options: Vec::new(),
            ..Self::new(choices, number)
        }
    }

    /// A packet with `len` bytes of payload, its checksums right.
    pub(crate) fn packet(&mut self, choices: &mut Choices<'_>, len: usize) -> Vec<u8> {
        let mut packet = self.ip();
        let transport = packet.len();
        match self.protocol {
            TCP => self.tcp(choices, len, &mut packet),
            UDP => {
                packet.extend(self.ports.map(u16::to_be_bytes).concat());
                packet.extend([0; 4]);
                set16(&mut packet, transport + 4, 8 + len);
            }
            132 => packet.extend([3; 12]),
            _ => packet.extend([8, 0, 0, 0, 0, 1, 0, 2]),
        }
        let first = choices.below(256);
        packet.extend((0..len).map(|at| (first + at * 7 + at / 251) as u8));
        if packet.len() > 65_535 {
            packet.truncate(65_535);
            if self.protocol == UDP {
                set16(&mut packet, transport + 4, 65_535 - transport);
            }
        }
        put_len(&mut packet);
        let seen = sight(&packet);
        if seen.has_checksum() {
            put_right(&mut packet, &seen);
        }
        packet
    }

    fn ip(&mut self) -> Vec<u8> {
        if !self.v6 {
            let words = 5 + self.ip_options.len() as u8 / 4;
            let [high, low] = self.id.to_be_bytes();
            self.id = self.id.wrapping_add(1);
            let mut packet = vec![
                0x40 | words,
                self.traffic_class,
                0,
                0,
                high,
                low,
                0x40,
                0,
                63,
            ];
            packet.extend([self.protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            packet.extend_from_slice(&self.ip_options);
            return packet;
        }
        let chain = EXTENSIONS[usize::from(self.ip_options[0])];
        let first = chain.first().map_or(self.protocol, |(kind, _)| *kind);
        let class = self.traffic_class;
        let mut packet = vec![0x60 | (class >> 4), (class << 4) | 5, 6, 7, 0, 0, first, 63];
        for last in [1, 2] {
            packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        for (at, (_, bytes)) in chain.iter().enumerate() {
            packet.push(chain.get(at + 1).map_or(self.protocol, |(kind, _)| *kind));
            packet.extend_from_slice(bytes);
        }
        packet
    }

    fn tcp(&mut self, choices: &mut Choices<'_>, len: usize, packet: &mut Vec<u8>) {
        let flags = if choices.chance(40) {
            *choices.pick(&FLAGS)
        } else {
            0x10
        };
        let urgent = if flags & 0x20 == 0 {
            // which means nothing then
            *choices.pick(&[0, 0, 0, 0, 0, 0, 0, 256])
        } else {
            *choices.pick(&[0, 1, 1_399, 1_400, 3_000, u16::MAX])
        };
        // Reserved bits, and what was NS once.
        let more = *choices.pick(&[0, 0, 0, 0, 0, 1, 0x0e]);
        packet.extend(self.ports.map(u16::to_be_bytes).concat());
        packet.extend(self.sequence.to_be_bytes());
        packet.extend([0, 0, 0, 7]);
        let words = 5 + self.tcp_options.len() as u8 / 4;
        packet.extend([(words << 4) | more, flags, 0x12, 0x34, 0, 0]);
        packet.extend(urgent.to_be_bytes());
        packet.extend_from_slice(&self.tcp_options);
        self.sequence = self.sequence.wrapping_add(len as u32);
    }

    /// Bytes of payload, most often many or of a usual size.
    fn len(choices: &mut Choices<'_>) -> usize {
        match choices.below(4) {
            0 => *choices.pick(&SIZES),
            1 => choices.below(256) * 256 + choices.below(256),
            _ => *choices.pick(&SIZES) * (1 + choices.below(44)) + choices.below(16),
        }
    }

    /// A frame as the kernel writes it, virtio-net header first.
    pub(crate) fn frame(&mut self, choices: &mut Choices<'_>) -> Vec<u8> {
        let len = Self::len(choices).min(65_400);
        let mut packet = self.packet(choices, len);
        let seen = sight(&packet);
        let mut header = [0; 10];
        if seen.has_checksum() && choices.chance(70) {
            put_pseudo(&mut packet, &seen);
            header[0] = 1;
            header[6..8].copy_from_slice(&(seen.transport as u16).to_le_bytes());
            let at = (seen.checksum_at() - seen.transport) as u16;
            header[8..10].copy_from_slice(&at.to_le_bytes());
            if choices.chance(70) {
                let size = match choices.below(3) {
                    0 => 48 + choices.below(256),
                    1 => *choices.pick(&SIZES),
                    _ => 1_300 + choices.below(256),
                };
                header[1] = match (seen.protocol, seen.v6) {
                    (TCP, false) => 1,
                    (TCP, true) => 4,
                    _ => 5,
                };
                header[4..6].copy_from_slice(&(size as u16).to_le_bytes());
                header[2..4].copy_from_slice(&(seen.payload as u16).to_le_bytes());
            }
        } else {
            accident(choices, &mut packet);
        }
        if choices.chance(5) {
            header[choices.below(10)] = choices.below(256) as u8;
        }
        [&header[..], &packet].concat()
    }
}

/// What may be wrong, or only unusual, with a packet on its way: nothing, most often.
pub(crate) fn accident(choices: &mut Choices<'_>, packet: &mut [u8]) {
    let seen = sight(packet);
    match choices.below(24) {
        // A byte of anything.
        1 => {
            let at = (choices.below(256) * 256 + choices.below(256)) % packet.len();
            packet[at] ^= 1 << choices.below(8);
        }
        // A byte of the headers.
        2 => {
            let at = choices.below(seen.payload.min(255) + 1) % packet.len();
            packet[at] ^= choices.below(256) as u8;
        }
        // No checksum, as UDP over IPv4 may.
        3 if seen.has_checksum() && seen.protocol == UDP => set16(packet, seen.checksum_at(), 0),
        // A piece of something larger: the first, the middle, the last.
        4 if !seen.v6 => {
            let field = *choices.pick(&[0x2000, 0x2004, 0x0009]);
            set16(packet, 6, field);
            put_len(packet);
        }
        // One hop further, DF gone, another traffic class, another flow label.
        5 if !seen.v6 => {
            let (at, bit) = *choices.pick(&[(8, 1), (6, 0x40), (1, 1)]);
            packet[at] ^= bit;
            put_len(packet);
        }
        6 if seen.v6 => packet[choices.below(4)] ^= 1,
        7 if seen.v6 => packet[7] ^= 1,
        // Another acknowledgment, another window, other options.
        8 if seen.has_checksum() && seen.protocol == TCP => {
            let span = seen.payload - seen.transport - 8;
            let at = seen.transport + 8 + choices.below(span.max(1));
            packet[at] ^= 1;
            if sight(packet).payload <= packet.len() {
                put_right(packet, &seen);
            }
        }
        // The header checksum.
        9 if !seen.v6 => packet[10] ^= 1,
        _ => {}
    }
}
