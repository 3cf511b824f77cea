//! Where the generator's choices come from: a seed, or the bytes of a fuzzer.

use std::sync::Arc;

/// A row of choices. Equal sources make equal rows.
#[derive(Clone, Debug)]
pub(crate) enum Choices<'b> {
    /// The rest of the bytes; when they are used up every choice is the first.
    Bytes(&'b [u8]),
    /// The state of a SplitMix64.
    Seed(u64),
}

impl Choices<'_> {
    /// One of 0..count.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        match self {
            Self::Bytes(bytes) => {
                let Some((first, rest)) = bytes.split_first() else {
                    return 0;
                };
                *bytes = rest;
                usize::from(*first) % count
            }
            Self::Seed(state) => {
                *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut word = *state;
                word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                word ^= word >> 31;
                usize::try_from(word % u64::try_from(count).unwrap_or(1)).unwrap_or(0)
            }
        }
    }

    /// True in `percent` of a hundred cases; false where the bytes are used up.
    pub(crate) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) >= 100 - percent
    }

    /// One of the list.
    pub(crate) fn pick<'t, T>(&mut self, list: &'t [T]) -> &'t T {
        &list[self.below(list.len())]
    }

    /// One of the names.
    pub(crate) fn name(&mut self, list: &[&str]) -> Arc<str> {
        Arc::from(*self.pick(list))
    }

    /// Some of the list, in its order, at least one.
    pub(crate) fn some<T: Clone>(&mut self, list: &[T]) -> Vec<T> {
        let first = self.below(list.len());
        let mut chosen = Vec::new();
        for (index, item) in list.iter().enumerate() {
            if index == first || self.chance(25) {
                chosen.push(item.clone());
            }
        }
        chosen
    }
}
