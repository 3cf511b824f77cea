//! Keeps the log readable while the same thing fails again and again: the first time is told at once, later ones are
//! counted and told together.

use std::{
    collections::HashMap,
    mem,
    net::{IpAddr, Ipv6Addr},
};

/// How long the same thing is only counted after it was told, in milliseconds.
const QUIET_MS: u64 = 60_000;
/// How often a changing text is told in that time: a peer can make up reasons as well.
const MAX_CHANGES: u32 = 5;
/// How many different things are remembered. A peer can make up addresses, so the memory has a bound.
const MAX_SUBJECTS: usize = 4_096;

/// How often strangers are told of in that time, all together: they can have any number of addresses.
const MAX_STRANGERS: u32 = 60;
/// The part of an IPv6 address that a network gives to one host.
const HOST_PREFIX: u128 = !(u64::MAX as u128);

/// What was told, by subject.
#[derive(Debug, Default)]
pub struct Repeats {
    told: HashMap<String, Told>,
    /// Of all subjects that there was no memory for.
    others: Option<Told>,
    strangers: Strangers,
}

/// What was told of all strangers.
#[derive(Debug, Default)]
struct Strangers {
    since_ms: u64,
    told: u32,
    untold: u64,
}

#[derive(Debug)]
struct Told {
    text: String,
    since_ms: u64,
    changes: u32,
    untold: u64,
}

impl Repeats {
    /// Notes that `text` happened to `subject` at `now_ms`. Returns how many times it happened untold before, when it is to
    /// be told; a change of `text` is told at once, a few times.
    pub fn note(&mut self, subject: &str, text: &str, now_ms: u64) -> Option<u64> {
        if let Some(told) = self.told.get_mut(subject) {
            return told.note(text, now_ms);
        }
        if self.told.len() >= MAX_SUBJECTS {
            self.told.retain(|_, told| told.is_fresh(now_ms));
        }
        if self.told.len() < MAX_SUBJECTS {
            self.told
                .insert(subject.to_owned(), Told::new(text, now_ms));
            return Some(0);
        }
        match &mut self.others {
            Some(others) => others.note("", now_ms),
            None => {
                self.others = Some(Told::new("", now_ms));
                Some(0)
            }
        }
    }

    /// The same for somebody who proved nothing but an address, if that.
    pub fn note_stranger(&mut self, address: IpAddr, text: &str, now_ms: u64) -> Option<u64> {
        let host = match address.to_canonical() {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & HOST_PREFIX).to_string(),
        };
        let untold = self.note(&format!("stranger {host}"), text, now_ms)?;
        self.strangers.note(untold, now_ms)
    }

    /// `subject` is well: its next failure is told at once.
    pub fn forget(&mut self, subject: &str) {
        self.told.remove(subject);
    }
}

impl Strangers {
    fn note(&mut self, untold: u64, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.since_ms) >= QUIET_MS {
            (self.since_ms, self.told) = (now_ms, 0);
        }
        if self.told == MAX_STRANGERS {
            self.untold += untold + 1;
            return None;
        }
        self.told += 1;
        Some(untold + mem::take(&mut self.untold))
    }
}

impl Told {
    fn new(text: &str, now_ms: u64) -> Self {
        Self {
            text: text.to_owned(),
            since_ms: now_ms,
            changes: 0,
            untold: 0,
        }
    }

    const fn is_fresh(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) < QUIET_MS
    }

    fn note(&mut self, text: &str, now_ms: u64) -> Option<u64> {
        let untold = self.untold;
        if !self.is_fresh(now_ms) {
            *self = Self::new(text, now_ms);
        } else if self.text != text && self.changes < MAX_CHANGES {
            text.clone_into(&mut self.text);
            self.changes += 1;
            self.untold = 0;
        } else {
            self.untold += 1;
            return None;
        }
        Some(untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_is_told_once_a_minute_with_its_count() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.note("a", "no answer", 0), Some(0));
        assert_eq!(repeats.note("a", "no answer", 1_000), None);
        assert_eq!(repeats.note("a", "no answer", QUIET_MS - 1), None);
        assert_eq!(repeats.note("a", "no answer", QUIET_MS), Some(2));
        assert_eq!(repeats.note("a", "no answer", QUIET_MS + 1), None);
    }

    #[test]
    fn another_reason_another_subject_and_a_failure_after_success_are_told_at_once() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.note("a", "no answer", 0), Some(0));
        assert_eq!(repeats.note("b", "no answer", 0), Some(0));
        assert_eq!(repeats.note("a", "wrong identity", 1), Some(0));
        repeats.forget("a");
        assert_eq!(repeats.note("a", "wrong identity", 2), Some(0));
    }

    #[test]
    fn reasons_that_change_for_ever_are_counted_too() {
        let mut repeats = Repeats::default();
        let told = (0..1_000).filter(|n| repeats.note("a", &n.to_string(), 0).is_some());
        assert_eq!(told.count(), 6);
        assert_eq!(repeats.note("a", "x", QUIET_MS), Some(994));
    }

    #[test]
    fn memory_is_bounded_and_forgets_what_is_old() {
        let mut repeats = Repeats::default();
        for number in 0..MAX_SUBJECTS {
            assert_eq!(repeats.note(&number.to_string(), "x", 0), Some(0));
        }
        // The first of those that are too many is told, and the others with the next one of them.
        assert_eq!(repeats.note("one too many", "x", 0), Some(0));
        for number in MAX_SUBJECTS..2 * MAX_SUBJECTS {
            assert_eq!(repeats.note(&number.to_string(), "x", 0), None);
        }
        assert_eq!(repeats.told.len(), MAX_SUBJECTS);
        assert_eq!(repeats.note("late", "x", QUIET_MS), Some(0));
        assert_eq!(repeats.told.len(), 1);
    }

    #[test]
    fn strangers_of_any_number_get_few_lines_and_all_are_counted() {
        let mut repeats = Repeats::default();
        let mut told = 0;
        for number in 0..100_000u32 {
            let address = Ipv6Addr::from_bits((u128::from(number) << 64) | 1);
            let untold = repeats.note_stranger(address.into(), "no certificate", 1);
            told += u32::from(untold.is_some());
        }
        assert_eq!(told, MAX_STRANGERS);
        let later = repeats.note_stranger([192, 0, 2, 1].into(), "no certificate", 1 + QUIET_MS);
        assert!(later > Some(0), "{later:?}");
    }

    #[test]
    fn addresses_of_one_host_are_one_stranger() {
        let mut repeats = Repeats::default();
        let mut told = |address: &str| repeats.note_stranger(address.parse().unwrap(), "x", 0);
        assert_eq!(told("2001:db8:0:1::1"), Some(0));
        assert_eq!(told("2001:db8:0:1:ffff::9"), None);
        assert_eq!(told("2001:db8:0:2::1"), Some(0));
        assert_eq!(told("::ffff:192.0.2.1"), Some(0));
        assert_eq!(told("192.0.2.1"), None);
        assert_eq!(told("192.0.2.2"), Some(0));
    }
}
