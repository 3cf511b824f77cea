//! How far a loop's end has come.

use std::time::{Duration, Instant};

/// How long peers may take to keep back what they would send. One that knows how needs a round trip; for one that does not,
/// this adds to the time in which nothing passes, which is to stay below the 200 ms after which TCP sends again.
const HOLD_WITHIN: Duration = Duration::from_millis(50);
/// How long a stopping loop tries to send what is queued.
const STOP_WITHIN: Duration = Duration::from_millis(500);

/// A loop runs, then peers are asked to send no more, then everything is closed. It never goes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    Running,
    /// Peers were asked; at this time it is enough.
    Holding(Instant),
    /// All is closed; at this time the loop ends, whatever is queued.
    Closed(Instant),
}

impl Ending {
    pub(super) fn hold(&mut self, now: Instant) {
        if *self == Self::Running {
            *self = Self::Holding(now + HOLD_WITHIN);
        }
    }

    pub(super) fn close(&mut self, now: Instant) {
        if !self.is_closed() {
            *self = Self::Closed(now + STOP_WITHIN);
        }
    }

    /// What applications send from here on stays in the device, for a successor.
    pub(super) const fn has_begun(self) -> bool {
        !matches!(self, Self::Running)
    }

    pub(super) const fn is_holding(self) -> bool {
        matches!(self, Self::Holding(_))
    }

    pub(super) const fn is_closed(self) -> bool {
        matches!(self, Self::Closed(_))
    }

    /// The time for this part is over.
    pub(super) fn is_due(self, now: Instant) -> bool {
        self.deadline().is_some_and(|due| due <= now)
    }

    pub(super) const fn deadline(self) -> Option<Instant> {
        match self {
            Self::Running => None,
            Self::Holding(due) | Self::Closed(due) => Some(due),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_only_ever_comes_nearer() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let now = Instant::now();
        let mut ending = Ending::Running;
        assert!(!ending.has_begun() && !ending.is_due(now + STOP_WITHIN));
        ending.hold(now);
        ending.hold(now + HOLD_WITHIN);
        assert!(ending.is_holding() && ending.is_due(now + HOLD_WITHIN));
        ending.close(now);
        ending.close(now + STOP_WITHIN);
        ending.hold(now);
        assert!(ending.is_closed() && ending.has_begun());
        assert!(!ending.is_due(now) && ending.is_due(now + STOP_WITHIN));
    }
}
