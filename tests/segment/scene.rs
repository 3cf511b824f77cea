//! Frames of some flows are cut, cross a network that loses, doubles, reorders and spoils, and are joined.

use identun::wire::{
    packet::Packet,
    segment::{CutLimits, Joiner},
    virtio::SuperPacket,
};

use super::{
    choices::Choices,
    cut::{self, Crossing},
    join,
    make::{Flow, accident},
};

/// What a scene did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Frames that were cut.
    pub(crate) cut: usize,
    /// Frames that do not fit or are none.
    pub(crate) refused: usize,
    /// Packets that crossed.
    pub(crate) crossed: usize,
    /// Packets that came out as part of an earlier one's super-packet.
    pub(crate) joined: usize,
}

/// Packets that crossed, and the frames they were joined to.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    pub(crate) packets: Vec<Crossing>,
    pub(crate) frames: Vec<Vec<u8>>,
    udp_offload: bool,
    tally: Tally,
}

/// Plays one scene; panics where something is not as it has to be.
pub(crate) fn play(choices: &mut Choices<'_>) -> Tally {
    let mut staged = wild(choices);
    staged.tally.joined = join::check(&staged.packets, &staged.frames, staged.udp_offload);
    staged.tally
}

/// A scene with everything that may go wrong. The cut is checked, the join is not.
pub(crate) fn wild(choices: &mut Choices<'_>) -> Staged {
    let mut tally = Tally::default();
    let limits = limits(choices);
    let mut flows: Vec<_> = (0..=choices.below(3))
        .map(|number| Flow::new(choices, number as u16))
        .collect();
    let mut crossing: Vec<Crossing> = Vec::new();
    for _ in 0..=choices.below(6) {
        let at = choices.below(flows.len());
        let mut frames = vec![flows[at].frame(choices)];
        // Packets of a sender without offloads, one after the other.
        if choices.chance(40) {
            let len = *choices.pick(&[0, 1, 536, 1_000, 1_001]);
            for _ in 0..=choices.below(80) {
                let mut packet = flows[at].packet(choices, len);
                accident(choices, &mut packet);
                frames.push([&[0; 10][..], &packet].concat());
            }
        }
        for frame in frames {
            let given = SuperPacket::decode(&frame).ok();
            match given.map(|given| cut::check(&given, &limits, 0xfffe)) {
                Some(Some(mut packets)) => {
                    tally.cut += 1;
                    crossing.append(&mut packets);
                }
                _ => tally.refused += 1,
            }
        }
    }
    let packets = network(choices, crossing);
    tally.crossed = packets.len();
    let udp_offload = choices.chance(70);
    let frames = joined(choices, &packets, udp_offload);
    Staged {
        packets,
        frames,
        udp_offload,
        tally,
    }
}

/// Flows whose packets are all well and come in order, interleaved.
pub(crate) fn calm(choices: &mut Choices<'_>, udp_offload: bool) -> Staged {
    let mut flows: Vec<_> = (0..8).map(|number| Flow::plain(choices, number)).collect();
    let mut packets = Vec::new();
    for _ in 0..400 {
        let flow = choices.below(flows.len());
        // Of one size, most often; the shorter one ends a super-packet.
        let len = [1_200, 1_200, 1_200, 1_200, 1_199, 1, 1_201][choices.below(7)];
        let packet = flows[flow].packet(choices, len);
        packets.push((packet, false));
    }
    let frames = joined(choices, &packets, udp_offload);
    Staged {
        packets,
        frames,
        udp_offload,
        tally: Tally::default(),
    }
}

fn limits(choices: &mut Choices<'_>) -> CutLimits {
    let inner = match choices.below(4) {
        0 => choices.below(256),
        1 => choices.below(256) * 256 + choices.below(256),
        _ => 1_200 + choices.below(256),
    };
    let flags = choices.below(4);
    CutLimits {
        inner,
        fragment: flags & 1 == 0,
        partial_checksum: flags & 2 == 0,
    }
}

/// What arrives of `packets`, whatever the network did: only what is a packet, as the engine takes no other.
fn network(choices: &mut Choices<'_>, packets: Vec<Crossing>) -> Vec<Crossing> {
    let mut arrived: Vec<Crossing> = Vec::new();
    let calm = choices.chance(40);
    for (mut packet, mut partial) in packets {
        if !calm {
            match choices.below(64) {
                1 => continue,
                2 => arrived.push((packet.clone(), partial)),
                3 => accident(choices, &mut packet),
                4 => partial = !partial,
                5 => {
                    let to = arrived.len().saturating_sub(choices.below(4));
                    arrived.insert(to, (packet, partial));
                    continue;
                }
                _ => {}
            }
        }
        arrived.push((packet, partial));
    }
    arrived.retain(|(packet, _)| Packet::new_checked(packet).is_ok());
    arrived
}

/// Joins in some batches, as datagrams come.
fn joined(choices: &mut Choices<'_>, packets: &[Crossing], udp_offload: bool) -> Vec<Vec<u8>> {
    let mut joiner = Joiner::new(udp_offload);
    let (mut frames, mut frame) = (Vec::new(), Vec::new());
    let batch = 1 + choices.below(256);
    for packets in packets.chunks(batch) {
        for (packet, partial) in packets {
            joiner.push(packet, *partial);
        }
        if choices.chance(50) {
            joiner.flush();
        }
        while joiner.poll(&mut frame) {
            frames.push(frame.clone());
        }
    }
    joiner.flush();
    while joiner.poll(&mut frame) {
        frames.push(frame.clone());
    }
    frames
}
