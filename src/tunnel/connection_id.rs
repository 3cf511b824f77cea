//! Our connection IDs: recognised again by the next process that holds the same key.
//!
//! ```text
//! octet  0      1..5     5..8
//!        shard  random   check = HMAC-SHA256(key, shard random)[..3]
//! ```
//! The shard octet lets a packet filter hand packets to the right socket (performance.md §3, rule 11). The check keeps
//! us from answering arbitrary UDP with stateless resets, also right after a restart.

use std::time::Duration;

use aws_lc_rs::{constant_time, hmac};
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

use crate::tunnel::random::Random;

/// Length of every connection ID that we issue, in bytes.
pub const CONNECTION_ID_LEN: usize = 8;
/// The header form bit (RFC 8999 §5).
pub const LONG_HEADER: u8 = 0x80;
/// Where the destination connection ID of a short header begins (RFC 8999 §5.2).
pub const SHORT_ID_AT: usize = 1;
/// Where that of a long header begins, behind its length (RFC 8999 §5.1).
pub const LONG_ID_AT: usize = 6;
const NONCE_LEN: usize = 5;
const CHECK_LEN: usize = CONNECTION_ID_LEN - NONCE_LEN;

/// Generates and recognises connection IDs.
pub(super) struct CheckedConnectionIds {
    shard: u8,
    key: hmac::Key,
    random: Random,
}

impl CheckedConnectionIds {
    /// `key` outlives the process; `seed` should not, or IDs repeat.
    pub(super) fn new(shard: u8, key: &[u8; 32], seed: &[u8; 32]) -> Self {
        Self {
            shard,
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            random: Random::new(seed, "connection-id"),
        }
    }

    fn check(&self, nonce: &[u8; NONCE_LEN]) -> [u8; CHECK_LEN] {
        let mut check = [0; CHECK_LEN];
        for (byte, from) in check.iter_mut().zip(hmac::sign(&self.key, nonce).as_ref()) {
            *byte = *from;
        }
        check
    }
}

/// Which shard a UDP payload is for: the octet that stands where our connection IDs have the shard's number. `None` where
/// none of ours can stand.
///
/// A dialler's first packets have a connection ID of its own choice, whose first octet is the lane (wire.md §3.2) when it
/// is one of us and random when it is not: either spreads dials over the shards, and all packets of one dial alike.
/// The octet may be any number, also that of a shard that a predecessor had; who uses it takes it modulo what there is.
pub fn shard_octet(payload: &[u8]) -> Option<u8> {
    let long = payload.first()? & LONG_HEADER != 0;
    if !long {
        return payload.get(SHORT_ID_AT).copied();
    }
    let len = payload.get(LONG_ID_AT - 1)?;
    let octet = payload.get(LONG_ID_AT)?;
    (usize::from(*len) >= CONNECTION_ID_LEN).then_some(*octet)
}

impl ConnectionIdGenerator for CheckedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let [a, b, c, d] = self.random.bytes();
        let nonce = [self.shard, a, b, c, d];
        let mut id = Vec::from(nonce);
        id.extend_from_slice(&self.check(&nonce));
        ConnectionId::new(&id)
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        let (nonce, check) = id.split_first_chunk::<NONCE_LEN>().ok_or(InvalidCid)?;
        constant_time::verify_slices_are_equal(&self.check(nonce), check).map_err(|_| InvalidCid)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_recognised_by_the_next_process_with_the_same_key() {
        let mut before = CheckedConnectionIds::new(0, &[1; 32], &[2; 32]);
        let mut after = CheckedConnectionIds::new(3, &[1; 32], &[3; 32]);
        let foreign = CheckedConnectionIds::new(0, &[4; 32], &[2; 32]);
        let id = before.generate_cid();
        assert_eq!(id.len(), CONNECTION_ID_LEN);
        assert!(after.validate(&id).is_ok());
        assert!(foreign.validate(&id).is_err());
        assert!(after.validate(&ConnectionId::new(&id[..7])).is_err());
        assert_ne!(before.generate_cid(), id);
        assert_eq!((id[0], after.generate_cid()[0]), (0, 3));
    }

    #[test]
    fn the_octet_is_found_in_either_header_and_nowhere_else() {
        assert_eq!(shard_octet(&[0x40, 7, 1, 2]), Some(7));
        let long = |len| [0xc0, 0, 0, 0, 1, len, 9, 1, 2, 3];
        for (len, octet) in [(8, Some(9)), (20, Some(9)), (7, None), (0, None)] {
            assert_eq!(shard_octet(&long(len)), octet, "{len}");
        }
        for short in [&[][..], &[0x40], &[0xc0, 0, 0, 0, 1, 8]] {
            assert_eq!(shard_octet(short), None);
        }
    }
}
