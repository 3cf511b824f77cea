//! What to do with a frame whose offloads a device refuses: the same packets without any.

use super::{CutLimits, DatagramBatch, cut};
use crate::wire::{
    datagram::PREFIX_LEN,
    virtio::{PLAIN_HEADER, SuperPacket},
};

/// Whatever its length, a packet passes.
const NO_LIMITS: CutLimits = CutLimits {
    inner: usize::MAX,
    fragment: false,
    partial_checksum: false,
};

/// The frames that `frame` (virtio-net header and IP packet) stands for, each one packet with its checksum complete and
/// without offloads; none when `frame` has no offload that could be taken from it.
pub fn split(frame: &[u8]) -> Vec<Vec<u8>> {
    let Ok(packet) = SuperPacket::decode(frame) else {
        return Vec::new();
    };
    let (mut batch, mut id) = (DatagramBatch::default(), 0);
    let has_offload = packet.partial_checksum || packet.gso.is_some();
    if !has_offload || cut(&packet, &NO_LIMITS, &mut id, &mut batch).is_err() {
        return Vec::new();
    }
    let packets = batch.drain();
    let whole = |datagram: bytes::Bytes| {
        [
            &PLAIN_HEADER[..],
            datagram.get(PREFIX_LEN..).unwrap_or_default(),
        ]
        .concat()
    };
    packets.map(whole).collect()
}
