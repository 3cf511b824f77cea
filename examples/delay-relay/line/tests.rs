use super::*;

const FROM: [u8; 4] = [192, 0, 2, 1];
const TO: [u8; 4] = [192, 0, 2, 2];
const MS: Duration = Duration::from_millis(1);

/// A frame of `len` bytes of IPv4 of an unknown protocol, the number in front of its payload.
fn frame(number: u16, len: u16, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0; usize::from(len)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet[8..10].copy_from_slice(&[64, 253]);
    packet[12..16].copy_from_slice(&from);
    packet[16..20].copy_from_slice(&to);
    packet[20..22].copy_from_slice(&number.to_be_bytes());
    [&PLAIN_HEADER[..], &packet].concat()
}

fn number(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[30], frame[31]])
}

fn start() -> Instant {
    Instant::now()
}

/// Puts `count` packets in, a tenth of a millisecond apart, and takes out what comes: when, after the first, and which.
fn pass(impairment: Impairment, count: u16) -> (Vec<(Duration, u16)>, Counters) {
    let (mut line, start) = (Line::new(impairment), start());
    let mut out = Vec::new();
    for index in 0..count {
        let now = start + MS / 10 * u32::from(index);
        while let Some(due) = line.next_due().filter(|due| *due <= now) {
            out.push((due - start, number(&line.poll_due(due).unwrap())));
        }
        line.handle_frame(&frame(index, 1_000, FROM, TO), now);
    }
    while let Some(due) = line.next_due() {
        assert!(line.poll_due(due - Duration::from_nanos(1)).is_none());
        out.push((due - start, number(&line.poll_due(due).unwrap())));
    }
    assert_eq!((line.held(), line.held_bytes), (0, 0));
    (out, line.counters)
}

#[test]
fn every_packet_takes_the_delay_and_no_more() {
    let (out, counters) = pass(
        Impairment {
            delay: 5 * MS,
            ..Impairment::default()
        },
        100,
    );
    let expected = (0..100).map(|index| (5 * MS + MS / 10 * u32::from(index), index));
    assert!(out.into_iter().eq(expected));
    assert_eq!((counters.frames, counters.bytes), (100, 100_000));
}

#[test]
fn jitter_spreads_the_times_and_keeps_the_order() {
    let (out, _) = pass(
        Impairment {
            delay: 5 * MS,
            jitter: 3 * MS,
            ..Impairment::default()
        },
        1_000,
    );
    assert!(out.iter().map(|(_, number)| *number).eq(0..1_000));
    let added = |(at, number): &(Duration, u16)| *at - MS / 10 * u32::from(*number);
    assert!(out.iter().all(|out| (5 * MS..8 * MS).contains(&added(out))));
    assert!(out.iter().any(|out| added(out) > 7 * MS));
    assert!(out.iter().any(|out| added(out) < 7 * MS));
}

#[test]
fn chances_are_as_asked_and_a_seed_repeats_them() {
    let asked = Impairment {
        delay: 5 * MS,
        loss: 0.1,
        reorder: 0.05,
        duplicate: 0.02,
        seed: 7,
        ..Impairment::default()
    };
    let (out, counters) = pass(asked, 10_000);
    let near = |seen: u64, expected: f64| {
        let sigma = expected.sqrt();
        assert!(
            (seen as f64 - expected).abs() < 4.0 * sigma,
            "{seen} of {expected}"
        );
    };
    near(counters.lost, 1_000.0);
    near(counters.duplicated, 180.0);
    near(counters.reordered, 450.0);
    let sent = 10_000 - counters.lost + counters.duplicated;
    assert_eq!(out.len() as u64, sent);
    let overtaken = out.windows(2).filter(|two| two[1].1 < two[0].1).count() as u64;
    assert!(overtaken > 0 && overtaken <= counters.reordered + counters.duplicated);
    assert_eq!(pass(asked, 10_000), (out.clone(), counters));
    assert_ne!(pass(Impairment { seed: 8, ..asked }, 10_000).0, out);
}

#[test]
fn one_chance_does_not_move_another() {
    let asked = Impairment {
        loss: 0.1,
        ..Impairment::default()
    };
    let more = Impairment {
        duplicate: 0.5,
        jitter: MS,
        ..asked
    };
    let arrived = |asked| {
        let mut numbers: Vec<_> = pass(asked, 1_000).0.into_iter().map(|out| out.1).collect();
        numbers.dedup();
        numbers
    };
    assert_eq!(arrived(asked), arrived(more));
}

#[test]
fn a_rate_sends_one_packet_after_the_other_and_drops_what_the_queue_cannot_hold() {
    // 1,038 bytes on the wire at 8.304 Mbit/s: a packet a millisecond. Ten are in the queue, with the one that is sent.
    let rate = Rate {
        bits_per_second: 8_304_000,
        queue: 10_380,
    };
    let (out, counters) = pass(
        Impairment {
            rate: Some(rate),
            ..Impairment::default()
        },
        1_000,
    );
    for (index, (at, _)) in out.iter().enumerate() {
        assert_eq!(*at, MS * u32::try_from(index + 1).unwrap());
    }
    // When the last came, after 99.9 ms, 99 had left.
    assert_eq!(out.len(), 99 + 10);
    assert_eq!(counters.queue_full, 1_000 - 99 - 10);
}

#[test]
fn the_two_directions_share_neither_rate_nor_chance() {
    let asked = Impairment {
        loss: 0.3,
        rate: Some(Rate {
            bits_per_second: 8_304_000,
            queue: 1 << 20,
        }),
        ..Impairment::default()
    };
    let start = start();
    let there_alone = {
        let mut line = Line::new(asked);
        (0..100).for_each(|index| line.handle_frame(&frame(index, 1_000, FROM, TO), start));
        drain(&mut line)
    };
    let mut line = Line::new(asked);
    for index in 0..100 {
        line.handle_frame(&frame(index, 1_000, FROM, TO), start);
        line.handle_frame(&frame(1_000 + index, 1_000, TO, FROM), start);
    }
    let (there, back): (Vec<_>, Vec<_>) =
        drain(&mut line).into_iter().partition(|out| out.1 < 1_000);
    assert_eq!(there, there_alone);
    assert!(
        !there
            .iter()
            .map(|out| out.1)
            .eq(back.iter().map(|out| out.1 - 1_000))
    );
}

fn drain(line: &mut Line) -> Vec<(Instant, u16)> {
    let mut out = Vec::new();
    while let Some(due) = line.next_due() {
        out.push((due, number(&line.poll_due(due).unwrap())));
    }
    out
}

#[test]
fn a_super_packet_is_cut_only_where_single_packets_matter() {
    // UDP of 3,000 bytes to be cut at 1,000 (USO), its checksum partial.
    let mut packet = frame(0, 3_028, FROM, TO).split_off(VIRTIO_HEADER_LEN);
    packet[9] = 17;
    packet[20..28].copy_from_slice(&[0, 1, 0, 2, 0x0b, 0xc0, 0, 0]);
    let header = [1, 5, 28, 0, 0xe8, 3, 20, 0, 6, 0];
    let super_packet = [&header[..], &packet].concat();
    let pass = |asked| {
        let (mut line, now) = (Line::new(asked), start());
        line.handle_frame(&super_packet, now);
        let mut frames = Vec::new();
        while let Some(due) = line.next_due() {
            frames.push(line.poll_due(due).unwrap());
        }
        (frames, line.counters.packets)
    };
    assert_eq!(pass(Impairment::default()), (vec![super_packet.clone()], 1));
    let (frames, packets) = pass(Impairment {
        rate: Some(Rate {
            bits_per_second: 1_000_000_000,
            queue: 1 << 20,
        }),
        ..Impairment::default()
    });
    assert_eq!((frames.len(), packets), (3, 3));
    for frame in frames {
        let packet = SuperPacket::decode(&frame).unwrap();
        assert_eq!((packet.bytes.len(), packet.partial_checksum), (1_028, true));
        assert!(packet.gso.is_none());
    }
}

#[test]
fn the_tuns_own_announcements_stay_where_they_are() {
    let mut line = Line::new(Impairment::default());
    line.handle_frame(&frame(0, 100, FROM, [224, 0, 0, 22]), start());
    let mut report = vec![0; 76];
    report[0] = 0x60;
    report[24..26].copy_from_slice(&[0xff, 2]);
    line.handle_frame(&[&PLAIN_HEADER[..], &report].concat(), start());
    assert_eq!((line.held(), line.counters.ignored), (0, 2));
}

#[test]
fn what_is_no_packet_goes_through_as_it_is() {
    for bytes in [&[][..], &[0; 9], &[0; 10], &[0xff; 60]] {
        let mut line = Line::new(Impairment {
            loss: 0.0,
            duplicate: 1.0,
            ..Impairment::default()
        });
        line.handle_frame(bytes, start());
        assert_eq!(line.held(), 2);
    }
}
