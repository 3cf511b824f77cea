//! Bytes that nobody outside can guess and that a seed repeats: connection IDs, jitter.
//!
//! HMAC-SHA256 of a counter under the seed. TLS secrets never come from here.

use std::time::Duration;

use aws_lc_rs::hmac;

/// A stream of bytes given by a seed and a purpose.
#[derive(Debug)]
pub(super) struct Random {
    key: hmac::Key,
    counter: u64,
}

impl Random {
    /// Different purposes under one seed give unrelated streams.
    pub(super) fn new(seed: &[u8; 32], purpose: &str) -> Self {
        let outer = hmac::Key::new(hmac::HMAC_SHA256, seed);
        let inner = hmac::sign(&outer, purpose.as_bytes());
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, inner.as_ref()),
            counter: 0,
        }
    }

    /// The next `N` bytes of the stream, at most 32.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        const { assert!(N <= 32) };
        self.counter += 1;
        let tag = hmac::sign(&self.key, &self.counter.to_be_bytes());
        let mut bytes = [0; N];
        for (byte, from) in bytes.iter_mut().zip(tag.as_ref()) {
            *byte = *from;
        }
        bytes
    }

    /// A duration between zero and `limit`, every one as likely (full jitter).
    pub(super) fn up_to(&mut self, limit: Duration) -> Duration {
        limit.mul_f64(f64::from(u32::from_be_bytes(self.bytes())) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_stream_and_purposes_differ() {
        let stream = |seed, purpose| {
            let mut random = Random::new(&[seed; 32], purpose);
            [random.bytes::<16>(), random.bytes::<16>()]
        };
        assert_eq!(stream(1, "a"), stream(1, "a"));
        assert_ne!(stream(1, "a"), stream(1, "b"));
        assert_ne!(stream(1, "a"), stream(2, "a"));
        let [first, second] = stream(1, "a");
        assert_ne!(first, second);
    }

    #[test]
    fn jitter_stays_within_its_limit() {
        let mut random = Random::new(&[7; 32], "jitter");
        let limit = Duration::from_secs(1);
        let drawn: Vec<_> = (0..100).map(|_| random.up_to(limit)).collect();
        assert!(drawn.iter().all(|&delay| delay <= limit));
        assert!(drawn.iter().any(|&delay| delay < limit / 4));
        assert!(drawn.iter().any(|&delay| delay > limit / 4 * 3));
    }
}
