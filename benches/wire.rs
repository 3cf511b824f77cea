//! The hot path of `wire`: parse a packet, cut a super-packet, join segments.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use identun::wire::{
    packet::Packet,
    segment::{CutLimits, DatagramBatch, Joiner, complete_checksum, cut},
    virtio::{Gso, GsoKind, SuperPacket},
};

const LIMITS: CutLimits = CutLimits {
    inner: 1432,
    fragment: true,
    partial_checksum: true,
};
/// Payload of a segment: 1432 bytes less the headers with time stamps.
const SEGMENT: u16 = 1380;
const SEGMENTS: u16 = 45;

/// An IPv4 TCP packet with time stamps and a complete checksum.
fn tcp(sequence: u32, payload: usize) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 0, 0, 7, 0x40, 0, 63, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x80, 0, 0, 80,
    ];
    packet.extend(sequence.to_be_bytes());
    packet.extend([
        0, 0, 0, 1, 0x80, 0x10, 0x12, 0x34, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2,
    ]);
    packet.extend((0..payload).map(|at| at.to_le_bytes()[0]));
    let [high, low] = u16::try_from(packet.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    packet.splice(2..4, [high, low]);
    assert!(
        complete_checksum(&mut packet).is_ok(),
        "the packet is well-formed"
    );
    packet
}

fn parse(criterion: &mut Criterion) {
    let packet = tcp(1, usize::from(SEGMENT));
    criterion.bench_function("parse", |bencher| {
        bencher.iter(|| Packet::new_checked(black_box(&packet)).map(|packet| packet.five_tuple()));
    });
}

fn cut_super_packet(criterion: &mut Criterion) {
    let bytes = tcp(1, usize::from(SEGMENT * SEGMENTS));
    let gso = Some(Gso {
        kind: GsoKind::Tcp4,
        size: SEGMENT,
    });
    let packet = SuperPacket {
        bytes: &bytes,
        partial_checksum: true,
        gso,
    };
    let mut group = criterion.benchmark_group("cut 45 segments");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    for partial_checksum in [true, false] {
        let (mut batch, mut id) = (DatagramBatch::default(), 0);
        let limits = CutLimits {
            partial_checksum,
            ..LIMITS
        };
        group.bench_function(
            if partial_checksum {
                "partial"
            } else {
                "complete"
            },
            |bencher| {
                bencher.iter(|| {
                    assert!(
                        cut(black_box(&packet), &limits, &mut id, &mut batch).is_ok(),
                        "it fits"
                    );
                    batch.drain().map(|datagram| datagram.len()).sum::<usize>()
                });
            },
        );
    }
    group.finish();
}

fn join_segments(criterion: &mut Criterion) {
    let segment = |index: u16| tcp(u32::from(index) * u32::from(SEGMENT), usize::from(SEGMENT));
    let segments: Vec<_> = (0..SEGMENTS).map(segment).collect();
    let mut group = criterion.benchmark_group("join 45 segments");
    group.throughput(Throughput::Bytes(u64::from(SEGMENT) * u64::from(SEGMENTS)));
    for partial_checksum in [true, false] {
        let (mut joiner, mut frame) = (Joiner::new(true), Vec::new());
        group.bench_function(
            if partial_checksum {
                "partial"
            } else {
                "complete"
            },
            |bencher| {
                bencher.iter(|| {
                    for segment in &segments {
                        joiner.push(black_box(segment), partial_checksum);
                    }
                    joiner.flush();
                    let mut bytes = 0;
                    while joiner.poll(&mut frame) {
                        bytes += frame.len();
                    }
                    bytes
                });
            },
        );
    }
    group.finish();
}

criterion_group!(benches, parse, cut_super_packet, join_segments);
criterion_main!(benches);
