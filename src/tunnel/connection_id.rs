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
pub(super) const CONNECTION_ID_LEN: usize = 8;
const NONCE_LEN: usize = 5;
const CHECK_LEN: usize = CONNECTION_ID_LEN - NONCE_LEN;
/// One process runs one shard.
const SHARD: u8 = 0;

/// Generates and recognises connection IDs.
pub(super) struct CheckedConnectionIds {
    key: hmac::Key,
    random: Random,
}

impl CheckedConnectionIds {
    /// `key` outlives the process; `seed` should not, or IDs repeat.
    pub(super) fn new(key: &[u8; 32], seed: &[u8; 32]) -> Self {
        Self {
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

impl ConnectionIdGenerator for CheckedConnectionIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let [a, b, c, d] = self.random.bytes();
        let nonce = [SHARD, a, b, c, d];
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
        let mut before = CheckedConnectionIds::new(&[1; 32], &[2; 32]);
        let after = CheckedConnectionIds::new(&[1; 32], &[3; 32]);
        let foreign = CheckedConnectionIds::new(&[4; 32], &[2; 32]);
        let id = before.generate_cid();
        assert_eq!(id.len(), CONNECTION_ID_LEN);
        assert!(after.validate(&id).is_ok());
        assert!(foreign.validate(&id).is_err());
        assert!(after.validate(&ConnectionId::new(&id[..7])).is_err());
        assert_ne!(before.generate_cid(), id);
    }
}
