//! What a cut has to make of a super-packet, and whether it did.

use identun::wire::{
    segment::{CutLimits, DatagramBatch, cut},
    virtio::SuperPacket,
};

use super::read::{TCP, UDP, is_header_right, is_right, put_right, segments, sight};

/// A packet on its way, and whether its checksum is partial.
pub(crate) type Crossing = (Vec<u8>, bool);

/// Cuts, compares with what it has to be, and returns the packets that cross; `None` when nothing may.
pub(crate) fn check(given: &SuperPacket<'_>, limits: &CutLimits, id: u16) -> Option<Vec<Crossing>> {
    let (mut batch, mut next) = (DatagramBatch::default(), id);
    let result = cut(given, limits, &mut next, &mut batch);
    let expected = expected(given, limits);
    assert_eq!(result.is_ok(), expected.is_some(), "fits: {limits:?}");
    let Some(expected) = expected else {
        assert!(
            batch.is_empty() && next == id,
            "something of what cannot go"
        );
        return None;
    };
    let datagrams: Vec<_> = batch.drain().collect();
    let (packets, used) = assembled(&datagrams, limits, id);
    assert_eq!(next, id.wrapping_add(used), "packet ids");
    assert_eq!(packets.len(), expected.len(), "how many");
    for (at, (packet, expected)) in packets.iter().zip(&expected).enumerate() {
        let head = |(bytes, partial): &Crossing| {
            format!(
                "{} bytes, partial {partial}: {:x?}",
                bytes.len(),
                &bytes[..bytes.len().min(80)]
            )
        };
        let (is, must) = (head(packet), head(expected));
        assert!(
            packet == expected,
            "packet {at} of {}:\n{is}\n{must}",
            packets.len()
        );
    }
    Some(packets)
}

/// The packets that have to cross, in order.
fn expected(given: &SuperPacket<'_>, limits: &CutLimits) -> Option<Vec<Crossing>> {
    let bytes = given.bytes;
    let seen = sight(bytes);
    let payload = bytes.len() - seen.payload;
    let size = given.gso.map(|gso| usize::from(gso.size));
    let is_super = !seen.fragment && size.is_some_and(|size| size < payload);
    let partial = given.partial_checksum && seen.has_checksum();
    let fits = bytes.len() <= limits.inner;
    // Who cannot tell that a packet is right must not make it so.
    let may_cut =
        partial || (seen.has_checksum() && is_right(bytes, &seen) && is_header_right(bytes));
    let whole = if seen.protocol == TCP && (is_super || (!fits && !seen.fragment && may_cut)) {
        let room = limits
            .inner
            .checked_sub(seen.payload)
            .filter(|room| *room > 0)?;
        if payload == 0 {
            return None;
        }
        segments(bytes, size.unwrap_or(room).min(room))
    } else if seen.protocol == UDP && is_super {
        segments(bytes, size?)
    } else {
        let mut whole = bytes.to_vec();
        if partial {
            put_right(&mut whole, &seen);
        }
        vec![whole]
    };
    let carried = |complete: Vec<u8>| -> Option<Crossing> {
        if complete.len() <= limits.inner {
            if partial && limits.partial_checksum && whole_or_super_fits(given, limits, is_super) {
                let mut packet = complete;
                super::read::put_pseudo(&mut packet, &seen);
                return Some((packet, true));
            }
            return Some((complete, false));
        }
        let room = (limits.inner + 2).checked_sub(5).filter(|room| *room > 0)?;
        let pieces = complete.len().div_ceil(room);
        (limits.fragment && pieces <= 15).then_some((complete, false))
    };
    whole.into_iter().map(carried).collect()
}

/// The checksums of UDP super-packets whose first datagram does not fit are complete, the last one's too.
fn whole_or_super_fits(given: &SuperPacket<'_>, limits: &CutLimits, is_super: bool) -> bool {
    let seen = sight(given.bytes);
    let size = given.gso.map_or(0, |gso| usize::from(gso.size));
    !(is_super && seen.protocol == UDP) || seen.payload + size <= limits.inner
}

/// Takes the datagrams apart as a peer does; returns the packets and how many crossed in pieces.
fn assembled(datagrams: &[impl AsRef<[u8]>], limits: &CutLimits, id: u16) -> (Vec<Crossing>, u16) {
    let (mut packets, mut pieces, mut used) = (Vec::new(), Vec::new(), 0_u16);
    let mut next = 0;
    for datagram in datagrams {
        let datagram = datagram.as_ref();
        assert!(
            datagram.len() <= limits.inner + 2,
            "{} bytes",
            datagram.len()
        );
        assert_eq!(datagram[0], 0);
        match datagram[1] {
            context @ (0 | 4) => {
                assert!(context == 0 || limits.partial_checksum);
                assert!(pieces.is_empty(), "a packet between pieces");
                packets.push((datagram[2..].to_vec(), context == 4));
            }
            2 => {
                assert!(limits.fragment);
                let (index, count) = (datagram[4] >> 4, datagram[4] & 15);
                assert_eq!(datagram[2..4], id.wrapping_add(used).to_be_bytes());
                assert!(index == next && (2..=15).contains(&count) && datagram.len() > 5);
                pieces.extend_from_slice(&datagram[5..]);
                next += 1;
                if next == count {
                    packets.push((std::mem::take(&mut pieces), false));
                    next = 0;
                    used += 1;
                }
            }
            other => panic!("context {other}"),
        }
    }
    assert!(pieces.is_empty(), "pieces of a packet are missing");
    (packets, used)
}
