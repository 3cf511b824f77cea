//! The addresses of this host as they come and go: which of them the policy counts with.
//!
//! A new one counts at once. One that is gone counts for a while longer: a link that flaps takes its addresses away for
//! that moment, and its workloads' connections should outlive it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

/// How long an address counts that the host no longer has. Until then a workload behind it counts as local; longer than
/// a flap or a lease takes, shorter than it takes to move a workload to another host.
const GRACE: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug, Default)]
pub struct Addresses {
    /// When each was there last.
    seen: BTreeMap<IpAddr, Instant>,
    /// Those that a configuration was last made for, in force or not.
    tried: BTreeSet<IpAddr>,
}

impl Addresses {
    /// Takes note of what the host has at `now`.
    pub fn note(&mut self, current: &BTreeSet<IpAddr>, now: Instant) {
        self.seen
            .extend(current.iter().map(|address| (*address, now)));
        self.seen.retain(|_, seen| *seen + GRACE > now);
    }

    /// Whether no configuration was made for those that count now; from here on one was. Files that are refused are not
    /// read again for the same addresses.
    pub fn is_news(&mut self) -> bool {
        let own = self.own();
        let is_news = !own.is_empty() && own != self.tried;
        self.tried = own;
        is_news
    }

    /// Those that count.
    pub fn own(&self) -> BTreeSet<IpAddr> {
        self.seen.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_new_address_counts_at_once_and_a_lost_one_for_a_while() {
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant")]
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut addresses = Addresses::default();
        addresses.note(&set(&["10.0.0.1", "fd00::1"]), at(0));
        addresses.note(&set(&["10.0.0.1"]), at(10));
        assert_eq!(addresses.own(), set(&["10.0.0.1", "fd00::1"]));
        addresses.note(&set(&["10.0.0.2"]), at(14));
        assert_eq!(addresses.own(), set(&["10.0.0.1", "10.0.0.2", "fd00::1"]));
        addresses.note(&set(&["10.0.0.2"]), at(15));
        assert_eq!(addresses.own(), set(&["10.0.0.1", "10.0.0.2"]));
        addresses.note(&set(&["10.0.0.1", "fd00::1"]), at(29));
        assert_eq!(addresses.own(), set(&["10.0.0.1", "10.0.0.2", "fd00::1"]));
        addresses.note(&set(&[]), at(60));
        assert!(addresses.own().is_empty());
    }

    #[test]
    fn the_same_addresses_are_news_once() {
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant")]
        let now = Instant::now();
        let mut addresses = Addresses::default();
        assert!(!addresses.is_news());
        addresses.note(&set(&["10.0.0.1"]), now);
        assert!(addresses.is_news() && !addresses.is_news());
        addresses.note(&set(&["10.0.0.2"]), now);
        assert!(addresses.is_news() && !addresses.is_news());
        // a host without addresses keeps what it has
        addresses.note(&set(&[]), now + 2 * GRACE);
        assert!(!addresses.is_news());
    }
}
