//! Keeps the log readable while the same thing fails again and again: the first time is told at once, later ones are
//! counted and told together.

use std::collections::HashMap;

/// How long the same thing is only counted after it was told, in milliseconds.
const QUIET_MS: u64 = 60_000;
/// How often a changing text is told in that time: a peer can make up reasons as well.
const MAX_CHANGES: u32 = 5;
/// How many different things are remembered. A peer can make up addresses, so the memory has a bound.
const MAX_SUBJECTS: usize = 4_096;

/// What was told, by subject.
#[derive(Debug, Default)]
pub struct Repeats {
    told: HashMap<String, Told>,
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
        }
        Some(0)
    }

    /// `subject` is well: its next failure is told at once.
    pub fn forget(&mut self, subject: &str) {
        self.told.remove(subject);
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
        for number in 0..2 * MAX_SUBJECTS {
            assert_eq!(repeats.note(&number.to_string(), "x", 0), Some(0));
        }
        assert_eq!(repeats.told.len(), MAX_SUBJECTS);
        assert_eq!(repeats.note("late", "x", QUIET_MS), Some(0));
        assert_eq!(repeats.told.len(), 1);
    }
}
