//! What a peer's datagrams bring (wire.md §3.3): each is read, joined to a packet, asked about and joined to frames as a
//! shard does it, and every step is held against plain loops of its own.

mod mesh;
mod pieces;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use identun::{
    engine::{Egress, Engine, EngineLimits, Ingress},
    registry::{KeyTable, TunnelId},
    wire::{
        DropReason,
        capsule::PeerFlags,
        datagram::{Datagram, congestion_experienced, decode},
        fragment::Reassembler,
        mss::clamp_mss,
        packet::Packet,
        segment::Joiner,
    },
};

use super::segment::{
    choices::Choices,
    join,
    make::{Flow, accident},
    read::{TCP, UDP, be16, is_right, put_len, put_right, set16, sight, sum},
};
use mesh::{DENIED_PORT, Mesh, is_local, is_of_peer, is_unroutable};
use pieces::Piles;

/// The inner size that openings are clamped to.
const INNER: usize = 1_400;
/// How long the pieces of an IP packet may take.
const WAIT: Duration = Duration::from_secs(1);

/// What a scene did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Datagrams that were read.
    pub(crate) datagrams: usize,
    /// Packets that came whole out of pieces.
    pub(crate) joined: usize,
    /// Packets that the engine lets pass.
    pub(crate) delivered: usize,
    /// Packets that it does not.
    pub(crate) refused: usize,
}

/// An IP packet's pieces that were delivered.
struct Delivered {
    since: Duration,
    ranges: Vec<(usize, usize)>,
}

/// Source, destination, protocol (0 in IPv6), identification.
type Whole = (IpAddr, IpAddr, u8, u32);
/// Protocol, local address and port, the other's.
type Local = (u8, IpAddr, u16, IpAddr, u16);

struct Scene {
    mesh: &'static Mesh,
    engine: Engine,
    keys: KeyTable,
    tunnel: TunnelId,
    flags: PeerFlags,
    now: Duration,
    reassembler: Reassembler,
    piles: Piles,
    joiner: Joiner,
    /// What was given to the joiner.
    joined: Vec<(Vec<u8>, bool)>,
    flows: BTreeSet<Local>,
    /// Flows that a local workload began.
    begun: BTreeSet<Local>,
    wholes: BTreeMap<Whole, Delivered>,
    tally: Tally,
}

/// Plays one scene; panics where something is not as it has to be.
pub(crate) fn play(choices: &mut Choices<'_>) -> Tally {
    let mesh = mesh::mesh();
    let mut keys = KeyTable::default();
    let tunnel = keys.id(&mesh.key);
    let udp_offload = choices.chance(70);
    let mut scene = Scene {
        mesh,
        engine: Engine::new(mesh.compiled.clone(), EngineLimits::default()),
        keys,
        tunnel,
        flags: PeerFlags::from_bits(3 - choices.below(4) as u64),
        now: Duration::ZERO,
        reassembler: Reassembler::default(),
        piles: Piles::default(),
        joiner: Joiner::new(udp_offload),
        joined: Vec::new(),
        flows: BTreeSet::new(),
        begun: BTreeSet::new(),
        wholes: BTreeMap::new(),
        tally: Tally::default(),
    };
    let mut flows: Vec<_> = (0..3).map(|number| Flow::new(choices, number)).collect();
    for _ in 0..=choices.below(24) {
        scene.step(choices, &mut flows);
    }
    let (mut frames, mut frame) = (Vec::new(), Vec::new());
    scene.joiner.flush();
    while scene.joiner.poll(&mut frame) {
        frames.push(frame.clone());
    }
    join::check(&scene.joined, &frames, udp_offload);
    scene.tally
}

impl Scene {
    fn step(&mut self, choices: &mut Choices<'_>, flows: &mut [Flow]) {
        match choices.below(10) {
            0 => {
                let len = choices.below(64);
                let mut datagram = vec![0, choices.below(8) as u8];
                datagram.extend((0..len).map(|_| choices.below(256) as u8));
                datagram.rotate_left(choices.below(4).saturating_sub(2));
                self.receive(&datagram);
            }
            1 => {
                self.now += Duration::from_millis(choices.below(256) as u64 * 5);
                let now = self.instant();
                self.engine.handle_timeout(now, &mut self.keys);
                let given_up = self.reassembler.expire(now);
                assert_eq!(given_up, self.piles.expire(self.now), "packets given up");
                self.check_pieces();
            }
            2 => {
                let mut packet = self.mesh.outgoing(choices);
                accident(choices, &mut packet);
                self.send(&packet);
            }
            3 => {
                let packet = self.mesh.error(choices);
                self.receive(&[&[0, 0], &packet[..]].concat());
            }
            4 => {
                for (id, index, count, len) in pieces::lone(choices) {
                    let bytes = vec![id as u8; len];
                    self.receive(&pieces::datagram(id, index, count, &bytes));
                }
            }
            _ => self.packet(choices, flows),
        }
    }

    /// A packet of a flow, or some pieces of it.
    fn packet(&mut self, choices: &mut Choices<'_>, flows: &mut [Flow]) {
        let flow = choices.below(flows.len());
        let len = *choices.pick(&[0, 8, 100, 1_000, 1_001, 5_000, 60_000]);
        let mut packet = flows[flow].packet(choices, len);
        mesh::readdress(choices, &mut packet);
        accident(choices, &mut packet);
        let partial = choices.chance(30);
        let is_packet = Packet::new_checked(&packet).is_ok();
        let mut all = match choices.below(4) {
            1 if is_packet => mesh::ip_fragments(choices, &packet),
            _ => vec![packet],
        };
        if choices.chance(30) {
            all.reverse();
        }
        for packet in all {
            if choices.chance(30) {
                for datagram in pieces::cut(choices, &packet) {
                    self.receive(&datagram);
                }
            } else {
                let context = if partial { 4 } else { 0 };
                self.receive(&[&[0, context], &packet[..]].concat());
            }
        }
    }

    /// As the shard takes a datagram of a session.
    fn receive(&mut self, datagram: &[u8]) {
        self.tally.datagrams += 1;
        let read = decode(datagram, self.flags);
        let expected = pieces::read(datagram, self.flags.bits());
        check_mark(datagram);
        match (read, expected) {
            (
                Ok(Datagram::Packet {
                    packet,
                    partial_checksum,
                }),
                Ok((context @ (0 | 4), bytes)),
            ) => {
                assert_eq!((packet, partial_checksum), (bytes, context == 4));
                self.deliver(packet, partial_checksum);
            }
            (Ok(Datagram::Fragment(fragment)), Ok((2, bytes))) => {
                let (id, place) = (be16(bytes, 0), bytes[2]);
                let seen = (fragment.id, fragment.index, fragment.count, fragment.bytes);
                assert_eq!(seen, (id, place >> 4, place & 15, &bytes[3..]));
                let joined = self.reassembler.push(fragment, self.instant());
                let expected = self.piles.push(bytes, self.now);
                assert_eq!(joined, expected);
                self.check_pieces();
                if let Ok(Some(packet)) = joined {
                    self.tally.joined += 1;
                    self.deliver(&packet, false);
                }
            }
            (Err(reason), Err(expected)) => assert_eq!(reason, expected, "{datagram:x?}"),
            (read, expected) => panic!("{read:?} is not {expected:?}: {datagram:x?}"),
        }
    }

    fn check_pieces(&self) {
        assert_eq!(self.reassembler.bytes(), self.piles.bytes());
        assert!(self.reassembler.bytes() <= 256 * 1_024);
    }

    fn deliver(&mut self, packet: &[u8], partial: bool) {
        self.deliver_one(packet, partial);
        while let Some(released) = self.engine.poll_released_ingress(self.tunnel) {
            self.deliver_one(&released, false);
        }
        assert!(self.engine.fragment_bytes() <= 64 * 1_024);
    }

    fn deliver_one(&mut self, bytes: &[u8], partial: bool) {
        let Ok(packet) = Packet::new_checked(bytes) else {
            return;
        };
        let now = self.instant();
        let verdict = self
            .engine
            .handle_ingress(self.tunnel, &packet, now, &mut self.keys);
        match verdict {
            Ingress::Deliver => {
                self.tally.delivered += 1;
                self.judge(bytes);
                let mut taken = bytes.to_vec();
                if packet.tcp_flags().is_some_and(|flags| flags.is_syn()) {
                    clamp_mss(&mut taken, INNER, partial);
                    check_clamp(bytes, &taken, partial);
                }
                self.joiner.push(&taken, partial);
                self.joined.push((taken, partial));
            }
            Ingress::Drop { reason, refused } => {
                self.tally.refused += 1;
                assert!(refused.is_none_or(
                    |refused| refused.tuple.protocol != 0 || reason != DropReason::Malformed
                ));
            }
            Ingress::Held => assert!(sight(bytes).fragment),
        }
        while self.engine.poll_event().is_some() {}
    }

    /// Whether a packet may have been delivered; written down is what later ones may lean on.
    fn judge(&mut self, bytes: &[u8]) {
        let seen = sight(bytes);
        let (source, destination) = mesh::addresses(bytes);
        assert!(is_local(destination), "to {destination}");
        assert!(!is_local(source) && !is_unroutable(source), "from {source}");
        if let Some(quoted) = mesh::quoted(bytes) {
            let known = self.flows.contains(&quoted) && quoted.1 == destination;
            if known && !seen.fragment {
                return;
            }
        }
        assert!(is_of_peer(source), "from {source}");
        if seen.fragment {
            return self.judge_fragment(bytes);
        }
        let (from, to) = mesh::ports(bytes, &seen);
        let local = (seen.protocol, destination, to, source, from);
        let opens = seen.protocol == TCP && bytes[seen.transport + 13] & 0x12 == 0x02;
        if to == DENIED_PORT && matches!(seen.protocol, TCP | UDP) {
            assert!(!opens, "a connection that policy denies");
            let reply = seen.protocol == TCP || self.begun.contains(&local);
            assert!(reply, "a datagram that policy denies");
        }
        self.flows.insert(local);
    }

    /// Later pieces follow their first, and none covers what another has.
    fn judge_fragment(&mut self, bytes: &[u8]) {
        let (whole, offset, more) = mesh::piece(bytes);
        let seen = sight(bytes);
        let range = (offset, offset + bytes.len() - seen.transport);
        assert!(more || offset > 0);
        if offset == 0 {
            let ranges = vec![range];
            let since = self.now;
            let (from, to) = mesh::ports(bytes, &seen);
            let local = (seen.protocol, whole.1, to, whole.0, from);
            if matches!(seen.protocol, TCP | UDP) {
                let denied = to == DENIED_PORT && !self.begun.contains(&local);
                assert!(
                    !denied || seen.protocol == TCP,
                    "a piece that policy denies"
                );
            }
            self.flows.insert(local);
            self.wholes.insert(whole, Delivered { since, ranges });
            return;
        }
        let first = self.wholes.get_mut(&whole);
        let first = first.unwrap_or_else(|| panic!("a piece without its first: {whole:?}"));
        assert!(self.now < first.since + WAIT, "a piece that comes too late");
        for other in &first.ranges {
            assert!(range.1 <= other.0 || other.1 <= range.0, "pieces overlap");
        }
        first.ranges.push(range);
    }

    /// A packet of an application of this host.
    fn send(&mut self, bytes: &[u8]) {
        let Ok(packet) = Packet::new_checked(bytes) else {
            return;
        };
        let now = self.instant();
        let sent = self.engine.handle_egress(&packet, now, &mut self.keys);
        let (seen, (source, destination)) = (sight(bytes), mesh::addresses(bytes));
        if matches!(sent, Egress::Tunnel(tunnel) if tunnel == self.tunnel) {
            assert!(is_local(source) && is_of_peer(destination));
            if !seen.fragment || mesh::piece(bytes).1 == 0 {
                let (from, to) = mesh::ports(bytes, &seen);
                let local = (seen.protocol, source, from, destination, to);
                self.flows.insert(local);
                self.begun.insert(local);
            }
        }
        while self.engine.poll_event().is_some() {}
    }

    fn instant(&self) -> Instant {
        self.mesh.base + self.now
    }
}

/// A packet that is told of congestion is the same otherwise, and as right as it was.
fn check_mark(datagram: &[u8]) {
    let Some(marked) = congestion_experienced(datagram) else {
        return;
    };
    let (before, after) = (&datagram[2..], &marked[2..]);
    let v6 = before[0] >> 4 == 6;
    let mut undone = after.to_vec();
    let class = if v6 { 4 } else { 0 };
    assert_eq!(after[1] >> class & 3, 3);
    undone[1] = before[1];
    if !v6 {
        undone[10..12].copy_from_slice(&before[10..12]);
        let header = usize::from(before[0] & 15) * 4;
        if before.len() >= header.max(20) && header >= 20 {
            let right = |bytes: &[u8]| sum(0, &bytes[..header]) == 0xffff;
            assert!(!right(before) || right(after), "{before:x?}");
        }
    }
    assert_eq!(undone, before);
}

/// An opening's MSS fits the tunnel, nothing else of it is another, and it is as right as it was.
fn check_clamp(before: &[u8], after: &[u8], partial: bool) {
    let seen = sight(before);
    assert_eq!(before.len(), after.len());
    if !partial && !seen.fragment && is_right(before, &seen) {
        assert!(is_right(after, &seen), "{before:x?}");
    }
    let checksum = seen.checksum_at();
    let changed: Vec<_> = (0..before.len())
        .filter(|&at| before[at] != after[at] && at != checksum && at != checksum + 1)
        .collect();
    if let (Some(first), Some(last)) = (changed.first(), changed.last()) {
        assert!(last - first < 2, "more than one field changed: {changed:?}");
        let option = (seen.transport + 20..=*first)
            .rev()
            .take(4)
            .find(|&at| after[at..].starts_with(&[2, 4]));
        let mss = option.map(|at| usize::from(be16(after, at + 2)));
        let room = INNER - if seen.v6 { 60 } else { 40 };
        assert!(mss.is_some_and(|mss| mss <= room), "{after:x?}");
    }
}
