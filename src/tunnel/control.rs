//! The control stream of a session: capsules in and out (wire.md §3.2), rate-limited both ways.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_proto::{Connection, ReadError, StreamId};

use crate::{
    tunnel::error::close_code,
    wire::capsule::{Capsule, CapsuleReader, FlowRefused},
};

/// Bytes of capsules that wait for the stream's window.
const MAX_OUTGOING: usize = 64 * 1024;
/// Bytes of capsules beyond which revocations wait for those before them to leave.
const ENOUGH_OUTGOING: usize = MAX_OUTGOING / 2;
/// Revocations that wait: flows of one tunnel, unless somebody changed that bound.
const MAX_REVOCATIONS: usize = 65_536;
/// How often revocations leave, while there are more than may leave at once.
const PACE: Duration = Duration::from_millis(5);
/// Bytes taken from the stream at once.
const READ_CHUNK: usize = 4 * 1024;

/// Why the peer's control stream ends its session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Violation {
    /// The application error code to close with.
    pub(super) code: u32,
    pub(super) reason: &'static str,
}

impl Violation {
    pub(super) const fn protocol(reason: &'static str) -> Self {
        Self {
            code: close_code::PROTOCOL,
            reason,
        }
    }
}

/// Both directions of the control stream.
#[derive(Debug)]
pub(super) struct Control {
    stream: Option<StreamId>,
    reader: CapsuleReader,
    outgoing: Vec<u8>,
    received: Allowance,
    /// Refusals cost no more than a datagram, and a peer whose policy changed may have many to tell at once.
    received_refusals: Allowance,
    refusals: Allowance,
    /// Cut flows that the peer is to be told of.
    revocations: VecDeque<FlowRefused>,
    /// Half of what a peer takes.
    paced: Allowance,
    /// Capsules of unknown type.
    pub(super) unknown: u64,
}

impl Control {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stream: None,
            reader: CapsuleReader::default(),
            outgoing: Vec::new(),
            received: Allowance::new(100, 200, now),
            received_refusals: Allowance::new(16_000, 16_000, now),
            refusals: Allowance::new(20, 20, now),
            revocations: VecDeque::new(),
            paced: Allowance::new(8_000, 4_000, now),
            unknown: 0,
        }
    }

    /// The dialler's stream; the only one of a session.
    pub(super) fn start(&mut self, stream: StreamId) {
        self.stream = Some(stream);
    }

    /// The next capsule of the peer.
    pub(super) fn poll(
        &mut self,
        connection: &mut Connection,
        now: Instant,
    ) -> Result<Option<Capsule>, Violation> {
        loop {
            let capsule = self
                .reader
                .poll()
                .map_err(|_| Violation::protocol("malformed capsule"))?;
            if let Some(capsule) = capsule {
                let allowance = match capsule {
                    Capsule::FlowRefused(_) => &mut self.received_refusals,
                    Capsule::Drain { .. }
                    | Capsule::Held
                    | Capsule::Hello(_)
                    | Capsule::Hold
                    | Capsule::Ready { .. }
                    | Capsule::Refused { .. }
                    | Capsule::Unknown { .. } => &mut self.received,
                };
                if !allowance.take(now) {
                    return Err(Violation {
                        code: close_code::EXCESSIVE_LOAD,
                        reason: "too many capsules",
                    });
                }
                return Ok(Some(capsule));
            }
            match self.read(connection)? {
                Some(bytes) => self.reader.push(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// Queues a capsule; `false` when the peer does not read what waits already.
    pub(super) fn send(&mut self, capsule: &Capsule) -> bool {
        if self.outgoing.len() > MAX_OUTGOING {
            return false;
        }
        capsule.encode(&mut self.outgoing);
        true
    }

    /// Queues a FLOW_REFUSED unless there were too many lately.
    pub(super) fn send_refusal(&mut self, capsule: &Capsule, now: Instant) -> bool {
        self.refusals.take(now) && self.send(capsule)
    }

    /// Queues a FLOW_REFUSED that must get through.
    pub(super) fn queue_revocation(&mut self, revoked: FlowRefused) {
        if self.revocations.len() < MAX_REVOCATIONS {
            self.revocations.push_back(revoked);
        }
    }

    /// When more revocations may leave; `None` when none waits for time.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let waits_for_time = !self.revocations.is_empty() && self.outgoing.len() < ENOUGH_OUTGOING;
        waits_for_time.then(|| self.paced.filled + PACE)
    }

    /// Writes what the stream takes; `true` when it took something.
    pub(super) fn flush(&mut self, connection: &mut Connection, now: Instant) -> bool {
        let Some(stream) = self.stream else {
            return false;
        };
        while self.outgoing.len() < ENOUGH_OUTGOING
            && !self.revocations.is_empty()
            && self.paced.take(now)
            && let Some(revoked) = self.revocations.pop_front()
        {
            Capsule::FlowRefused(revoked).encode(&mut self.outgoing);
        }
        if self.outgoing.is_empty() {
            return false;
        }
        let written = connection
            .send_stream(stream)
            .write(&self.outgoing)
            .unwrap_or(0);
        self.outgoing.drain(..written);
        written > 0
    }

    fn read(&self, connection: &mut Connection) -> Result<Option<Bytes>, Violation> {
        let Some(stream) = self.stream else {
            return Ok(None);
        };
        let mut stream = connection.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else {
            return Err(Violation::protocol("the control stream ended"));
        };
        let chunk = chunks.next(READ_CHUNK);
        // Window updates leave with the next packet; the caller polls for it after every input.
        let _ = chunks.finalize();
        match chunk {
            Ok(Some(chunk)) => Ok(Some(chunk.bytes)),
            Err(ReadError::Blocked) => Ok(None),
            Ok(None) | Err(ReadError::Reset(_)) => {
                Err(Violation::protocol("the control stream ended"))
            }
        }
    }
}

/// A token bucket.
#[derive(Debug)]
struct Allowance {
    interval: Duration,
    burst: u32,
    tokens: u32,
    filled: Instant,
}

impl Allowance {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            interval: Duration::from_secs(1) / per_second,
            burst,
            tokens: burst,
            filled: now,
        }
    }

    fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        let intervals =
            u32::try_from(elapsed.as_nanos() / self.interval.as_nanos()).unwrap_or(u32::MAX);
        if intervals >= self.burst {
            (self.tokens, self.filled) = (self.burst, now);
        } else {
            self.tokens = self.burst.min(self.tokens + intervals);
            self.filled += self.interval * intervals;
        }
        let allowed = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allowance_gives_its_burst_and_then_its_rate() {
        #[expect(
            clippy::disallowed_methods,
            reason = "a test needs some instant to count from"
        )]
        let start = Instant::now();
        let mut allowance = Allowance::new(100, 200, start);
        let taken =
            |allowance: &mut Allowance, now| (0..1_000).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(&mut allowance, start), 200);
        assert_eq!(taken(&mut allowance, start + Duration::from_secs(1)), 100);
        assert_eq!(
            taken(&mut allowance, start + Duration::from_millis(1_015)),
            1
        );
        assert_eq!(
            taken(&mut allowance, start + Duration::from_millis(1_020)),
            1
        );
        assert_eq!(taken(&mut allowance, start + Duration::from_secs(60)), 200);
    }
}
