//! The hot paths, each as a round that can be repeated for ever: what it takes is made by `prepare`, what is measured is
//! `run`.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use identun::{
    engine::{Egress, Engine, EngineLimits, Ingress},
    registry::{KeyTable, TunnelId},
    wire::{
        packet::Packet,
        segment::{CutLimits, DatagramBatch, Joiner, cut},
        virtio::{Gso, GsoKind, SuperPacket, VIRTIO_HEADER_LEN},
    },
};

use crate::{
    packets::{ACK, SYN, TCP_HEADERS, Way, advance, frame, tcp, udp},
    world::{Pair, Setup},
};

/// One hot path.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Packets of one round.
    pub(crate) packets: u32,
    /// Makes the state that rounds work on.
    pub(crate) make: fn() -> Box<dyn Round>,
}

/// What is repeated.
pub(crate) trait Round {
    /// Makes what the next run takes.
    fn prepare(&mut self) {}

    /// One round.
    fn run(&mut self);

    /// Panics unless the rounds did what they are for.
    fn check(&mut self) {}
}

/// Flows that packets go round in.
const FLOWS: u16 = 64;
/// Segments of a super-packet.
const SEGMENTS: u16 = 45;
/// The largest inner packet where no session says it.
const INNER: usize = 1_432;
/// Frames that the daemon reads before it sends.
const BURST: u16 = 16;
/// Super-packets of a bulk round.
const SUPER_PACKETS: u16 = 4;
/// Small packets of a round.
const SMALL: u16 = 64;

/// Every hot path, in the order of a packet's life.
pub(crate) const CASES: &[Case] = &[
    case("parse", FLOWS, || Box::new(Parse::new())),
    case("flow-hit-egress", FLOWS, || {
        Box::new(Decide::new(Way::Request, false))
    }),
    case("flow-hit-ingress", FLOWS, || {
        Box::new(Decide::new(Way::Reply, false))
    }),
    case("flow-miss-egress", FLOWS, || {
        Box::new(Decide::new(Way::Request, true))
    }),
    case("flow-miss-ingress", FLOWS, || {
        Box::new(Decide::new(Way::Reply, true))
    }),
    case("cut-45-partial", SEGMENTS, || Box::new(Cut::new(true))),
    case("cut-45-complete", SEGMENTS, || Box::new(Cut::new(false))),
    case("join-45-partial", SEGMENTS, || {
        Box::new(Join::new(1, SEGMENTS, true))
    }),
    case("join-45-complete", SEGMENTS, || {
        Box::new(Join::new(1, SEGMENTS, false))
    }),
    case("join-64-of-16-flows", 64, || {
        Box::new(Join::new(16, 4, true))
    }),
    case("seal-bulk", SEGMENTS * SUPER_PACKETS, || {
        Box::new(Tunnel::new(Load::Bulk, Side::Seal))
    }),
    case("open-bulk", SEGMENTS * SUPER_PACKETS, || {
        Box::new(Tunnel::new(Load::Bulk, Side::Open))
    }),
    case("seal-udp-64", SMALL, || {
        Box::new(Tunnel::new(Load::Small, Side::Seal))
    }),
    case("open-udp-64", SMALL, || {
        Box::new(Tunnel::new(Load::Small, Side::Open))
    }),
];

const fn case(name: &'static str, packets: u16, make: fn() -> Box<dyn Round>) -> Case {
    Case {
        name,
        packets: packets as u32,
        make,
    }
}

/// A packet of each flow is parsed.
struct Parse(Vec<Vec<u8>>);

impl Parse {
    fn new() -> Self {
        let packet = |flow| tcp(Way::Request, flow, 1, ACK, INNER - TCP_HEADERS);
        Self((0..FLOWS).map(packet).collect())
    }
}

impl Round for Parse {
    fn run(&mut self) {
        for packet in &self.0 {
            let parsed = Packet::new_checked(black_box(packet)).map(|packet| packet.five_tuple());
            assert!(black_box(parsed).is_ok());
        }
    }
}

/// The engine decides on a packet of each flow: flows that it knows, or new ones.
struct Decide {
    engine: Engine,
    keys: KeyTable,
    tunnel: TunnelId,
    /// Packets of the kind that is decided.
    packets: Vec<Vec<u8>>,
    /// The first packet's flow.
    first: u16,
    way: Way,
    forgets: bool,
    now: Instant,
}

/// Longer than any flow lives.
const AGES: Duration = Duration::from_secs(86_400);

impl Decide {
    /// Egress for `Way::Request`, ingress at the other end for `Way::Reply`.
    fn new(way: Way, forgets: bool) -> Self {
        let setup = Setup::new();
        let policy = match way {
            Way::Request => setup.compiled("a", 1),
            Way::Reply => setup.compiled("b", 2),
        };
        let packet = |flow| tcp(Way::Request, flow, 1, ACK, 0);
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to count from"
        )]
        let now = Instant::now();
        let mut engine = Engine::new(policy, EngineLimits::default());
        let mut keys = KeyTable::default();
        let key = setup.key(way);
        let tunnel = keys.id(&key);
        let packets: Vec<_> = (0..FLOWS).map(packet).collect();
        // Whether a flow is known or not: the tables have their size after this.
        for flow in 0..FLOWS {
            let syn = tcp(Way::Request, flow, 0, SYN, 0);
            let parsed = Packet::new_checked(&syn).unwrap();
            decide(way, &mut engine, &mut keys, tunnel, &parsed, now);
        }
        Self {
            engine,
            keys,
            tunnel,
            packets,
            first: 0,
            way,
            forgets,
            now,
        }
    }
}

impl Round for Decide {
    fn prepare(&mut self) {
        if self.forgets {
            self.now += AGES;
            self.engine.handle_timeout(self.now, &mut self.keys);
            // Other ports each time: where the hasher's seed puts some of them shall not be the figure.
            self.first = (self.first + FLOWS) % (FLOWS * 500);
            let packet = |flow| tcp(Way::Request, self.first + flow, 1, SYN, 0);
            self.packets = (0..FLOWS).map(packet).collect();
        }
        while self.engine.poll_event().is_some() || self.engine.poll_live().is_some() {}
    }

    fn run(&mut self) {
        for packet in &self.packets {
            let parsed = Packet::new_checked(black_box(packet)).unwrap();
            decide(
                self.way,
                &mut self.engine,
                &mut self.keys,
                self.tunnel,
                &parsed,
                self.now,
            );
        }
    }

    fn check(&mut self) {
        assert_eq!(self.engine.flows().len(), usize::from(FLOWS));
    }
}

/// Egress or ingress; everything passes.
fn decide(
    way: Way,
    engine: &mut Engine,
    keys: &mut KeyTable,
    tunnel: TunnelId,
    packet: &Packet<'_>,
    now: Instant,
) {
    let passes = match way {
        Way::Request => matches!(engine.handle_egress(packet, now, keys), Egress::Tunnel(_)),
        Way::Reply => matches!(
            engine.handle_ingress(tunnel, packet, now, keys),
            Ingress::Deliver
        ),
    };
    assert!(passes, "policy lets it pass");
}

/// One super-packet is cut.
struct Cut {
    bytes: Vec<u8>,
    limits: CutLimits,
    batch: DatagramBatch,
    id: u16,
}

impl Cut {
    fn new(partial_checksum: bool) -> Self {
        let payload = usize::from(SEGMENTS) * (INNER - TCP_HEADERS);
        Self {
            bytes: tcp(Way::Request, 0, 1, ACK, payload),
            limits: CutLimits {
                inner: INNER,
                fragment: true,
                partial_checksum,
            },
            batch: DatagramBatch::default(),
            id: 0,
        }
    }
}

impl Round for Cut {
    fn run(&mut self) {
        let packet = SuperPacket {
            bytes: black_box(&self.bytes),
            partial_checksum: true,
            gso: Some(gso(INNER)),
        };
        assert!(cut(&packet, &self.limits, &mut self.id, &mut self.batch).is_ok());
        let mut count = 0;
        for datagram in self.batch.drain() {
            black_box(&datagram);
            count += 1;
        }
        assert_eq!(count, SEGMENTS);
    }
}

/// Segments of some flows, taking turns, are joined to a super-packet each.
struct Join {
    segments: Vec<Vec<u8>>,
    partial: bool,
    flows: usize,
    joiner: Joiner,
    frame: Vec<u8>,
}

impl Join {
    fn new(flows: u16, each: u16, partial: bool) -> Self {
        let payload = INNER - TCP_HEADERS;
        let segment = |index: u16| {
            let sequence = u32::from(index / flows) * u32::try_from(payload).unwrap();
            tcp(Way::Request, index % flows, sequence, ACK, payload)
        };
        Self {
            segments: (0..flows * each).map(segment).collect(),
            partial,
            flows: usize::from(flows),
            joiner: Joiner::new(true),
            frame: Vec::new(),
        }
    }
}

impl Round for Join {
    fn run(&mut self) {
        for segment in &self.segments {
            self.joiner.push(black_box(segment), self.partial);
        }
        self.joiner.flush();
        let mut frames = 0;
        while self.joiner.poll(&mut self.frame) {
            black_box(&self.frame);
            frames += 1;
        }
        assert_eq!(frames, self.flows);
    }
}

/// What crosses the tunnel.
#[derive(Clone, Copy)]
enum Load {
    /// Super-packets of a TCP stream.
    Bulk,
    /// UDP packets of 64 bytes, one by one.
    Small,
}

/// Which end is measured.
#[derive(Clone, Copy)]
enum Side {
    /// Device to underlay; with it the acknowledgements of the round before.
    Seal,
    /// Underlay to device, and the acknowledgements.
    Open,
}

/// One end's part of carrying a load from A to B; the other end's is done in `prepare`.
struct Tunnel {
    pair: Pair,
    frames: Vec<Vec<u8>>,
    load: Load,
    side: Side,
    /// Before the first round.
    drops: u64,
    packets: u64,
    rounds: usize,
}

impl Tunnel {
    fn new(load: Load, side: Side) -> Self {
        let mut pair = Pair::new(FLOWS);
        let inner = pair.inner_mtu();
        let payload = usize::from(SEGMENTS) * (inner - TCP_HEADERS);
        let packet = |index: u16| match load {
            Load::Bulk => {
                let mut frame = frame(tcp(Way::Request, 0, 1, ACK, payload), Some(gso(inner)));
                advance(&mut frame, usize::from(index) * payload);
                frame
            }
            Load::Small => frame(udp(Way::Request, 0, 64), None),
        };
        let count = match load {
            Load::Bulk => SUPER_PACKETS,
            Load::Small => SMALL,
        };
        pair.b.delivered = 0;
        Self {
            drops: pair.drops(),
            packets: pair.packets(),
            pair,
            frames: (0..count).map(packet).collect(),
            load,
            side,
            rounds: 0,
        }
    }

    /// The frames as the daemon reads them: some at a time, and what they became is sent.
    fn seal(&mut self) {
        for burst in self.frames.chunks_mut(usize::from(BURST)) {
            self.pair.a.turn(burst, self.pair.now);
        }
    }

    fn round_packets(&self) -> usize {
        match self.load {
            Load::Bulk => self.frames.len() * usize::from(SEGMENTS),
            Load::Small => self.frames.len(),
        }
    }

    fn open(&mut self) {
        self.pair.b.turn(&mut [], self.pair.now);
    }
}

impl Round for Tunnel {
    fn prepare(&mut self) {
        self.rounds += 1;
        if matches!(self.load, Load::Bulk) {
            let by: usize = self.frames.iter().map(|frame| stream_bytes(frame)).sum();
            self.frames.iter_mut().for_each(|frame| advance(frame, by));
        }
        match self.side {
            Side::Seal => {
                self.pair.deliver_to_b();
                self.open();
                self.pair.deliver_to_a();
            }
            Side::Open => {
                self.pair.deliver_to_a();
                self.seal();
                self.pair.deliver_to_b();
            }
        }
    }

    fn run(&mut self) {
        match self.side {
            Side::Seal => self.seal(),
            Side::Open => self.open(),
        }
    }

    fn check(&mut self) {
        assert_eq!(self.pair.drops(), self.drops, "nothing was dropped");
        let packets = self.pair.packets() - self.packets;
        // The last round may still be on its way.
        let rounds = usize::try_from(packets).unwrap() / self.round_packets();
        let all = self.rounds;
        assert!((all - 1..=all).contains(&rounds), "{rounds} of {all}");
        let frames = self.pair.b.delivered;
        assert!(frames <= all * self.frames.len(), "what was cut is joined");
    }
}

/// Bytes that a frame takes of its TCP stream.
fn stream_bytes(frame: &[u8]) -> usize {
    frame.len() - VIRTIO_HEADER_LEN - TCP_HEADERS
}

/// TCP segments in packets of `inner` bytes.
fn gso(inner: usize) -> Gso {
    Gso {
        kind: GsoKind::Tcp4,
        size: u16::try_from(inner - TCP_HEADERS).unwrap(),
    }
}
