//! When an SVID ends and when it should be renewed (steering.md C2).

use std::time::Duration;

use crate::identity::X509Svid;

impl X509Svid {
    /// How long the leaf stays valid from `now` (Unix seconds); zero once it has expired.
    pub fn expires_in(&self, now: u64) -> Duration {
        Duration::from_secs(self.not_after.saturating_sub(now))
    }

    /// Whether `now` (Unix seconds) lies within the leaf's validity, ends included.
    pub fn is_valid_at(&self, now: u64) -> bool {
        (self.not_before..=self.not_after).contains(&now)
    }

    /// When to renew, in Unix seconds: half of the life, give or take a tenth of that half, so that hosts that started
    /// together do not renew together. The same seed gives the same moment.
    pub fn renew_at(&self, seed: u64) -> u64 {
        let half = self.not_after.saturating_sub(self.not_before) / 2;
        let spread = half / 5;
        let jitter = mix(seed ^ self.not_before) % spread.saturating_add(1);
        self.not_before
            .saturating_add(half - spread / 2)
            .saturating_add(jitter)
    }
}

/// The output function of SplitMix64: spreads neighbouring seeds over all values.
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Ca, pem};

    fn svid(valid_for: u64) -> X509Svid {
        let domain = "td".parse().unwrap();
        let ca = Ca::new(&domain, 1_000, Duration::from_secs(1_000_000)).unwrap();
        let id = "spiffe://td/a".parse().unwrap();
        let issued = ca.issue(&id, 10_000, Duration::from_secs(valid_for));
        X509Svid::new(pem::certificates(&issued.unwrap().certificate).unwrap()).unwrap()
    }

    #[test]
    fn the_rest_of_a_life_counts_down_to_zero() {
        let svid = svid(3600);
        assert_eq!(svid.expires_in(10_000), Duration::from_secs(3600));
        assert_eq!(svid.expires_in(13_600), Duration::ZERO);
        assert_eq!(svid.expires_in(u64::MAX), Duration::ZERO);
        let valid = [9_939, 9_940, 13_600, 13_601].map(|now| svid.is_valid_at(now));
        assert_eq!(valid, [false, true, true, false]);
    }

    #[test]
    fn renewal_falls_around_the_middle_and_not_at_once() {
        // 4000 s of life with the backdating: the middle is 2000 s after 9940, give or take 200 s.
        let svid = svid(3940);
        let moments: Vec<u64> = (0..1000).map(|seed| svid.renew_at(seed)).collect();
        assert!(moments.iter().all(|at| (11_740..=12_140).contains(at)));
        let spread = moments.iter().max().unwrap() - moments.iter().min().unwrap();
        assert!(spread > 350, "{spread}");
        assert_eq!(svid.renew_at(7), svid.renew_at(7));
    }
}
