//! Memory that a burst took goes back to the kernel. The C library's allocator keeps what was freed below memory that is in
//! use, and what many flows and full queues took for a second would stay this process's for the rest of its life.

use std::{
    fs,
    time::{Duration, Instant},
};

/// Growth since memory was last given back that is worth the work, bytes.
const WORTH: usize = 4 << 20;
/// Between two times: looking through tens of mebibytes holds up whoever allocates for some milliseconds.
const PAUSE: Duration = Duration::from_secs(20);

/// When this process gives memory back.
#[derive(Debug, Default)]
pub struct Memory {
    /// The least that was resident since that was done last, and when it was done.
    last: Option<(usize, Instant)>,
}

impl Memory {
    /// Gives back what is free if the process has grown since it did so last. To be called every few seconds.
    pub fn settle(&mut self, now: Instant) {
        let Some(now_resident) = resident() else {
            return;
        };
        let (least, since) = self.last.unwrap_or((now_resident, now));
        let is_due = now.saturating_duration_since(since) >= PAUSE;
        self.last = if is_due && now_resident >= least + WORTH {
            give_back();
            resident().map(|resident| (resident, now))
        } else {
            Some((least.min(now_resident), since))
        };
    }
}

/// Resident bytes of this process.
fn resident() -> Option<usize> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: usize = line.split_whitespace().next()?.parse().ok()?;
    Some(kibibytes.saturating_mul(1 << 10))
}

#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library has no safe wrapper")]
fn give_back() {
    // SAFETY: malloc_trim has no conditions; it locks each arena while it works there.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
const fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_lies_free_between_what_is_used_goes_back() {
        const BLOCK: usize = 1 << 10;
        const BLOCKS: usize = 64 << 10;
        #[expect(clippy::disallowed_methods, reason = "a test needs some instant")]
        let begin = Instant::now();
        let mut memory = Memory::default();
        memory.settle(begin);
        let mut blocks: Vec<_> = (0..BLOCKS).map(|_| Some(vec![1_u8; BLOCK])).collect();
        for (index, block) in blocks.iter_mut().enumerate() {
            if !index.is_multiple_of(64) {
                *block = None;
            }
        }
        let kept = resident().unwrap();
        // too early
        memory.settle(begin + PAUSE / 2);
        assert!(resident().unwrap() > kept - BLOCK * BLOCKS / 2);
        memory.settle(begin + PAUSE);
        assert!(resident().unwrap() < kept - BLOCK * BLOCKS / 2);
        assert_eq!(blocks.iter().flatten().count(), BLOCKS / 64);
        // what is there now is what counts from here on
        assert!(memory.last.is_some_and(|(least, since)| {
            since == begin + PAUSE && least < kept - BLOCK * BLOCKS / 2
        }));
    }
}
