//! The loop: sleep, take what is ready, let the shard work, send what it has.

use std::{
    error::Error,
    io, iter, mem,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TryRecvError},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    device::{MAX_FRAME, PacketDevice},
    engine::EngineEvent,
    identity::WallClock,
    io::{
        Command, ReceivePool, Underlay,
        backlog::Backlog,
        counts::{Counters, count},
        ending::Ending,
        neighbours::{Neighbours, Parcel},
        outgoing::Outgoing,
        poller::{Poller, Ready},
        write::{Written, write_frame},
    },
    shard::{Event, Handover, Shard},
    wire::{
        DropReason,
        virtio::{GsoKind, gso_kind},
    },
};

/// What is read from the device in one turn: small packets by the hundred, as each turn has a price of its own, but no more
/// bytes than are sent in a millisecond.
const DEVICE_BATCH: usize = 256;
const DEVICE_BATCH_BYTES: usize = 1 << 20;
/// Batches that are taken from the socket at its end: more than its buffer holds.
const LAST_BATCHES: usize = 16;
/// How often a shard that wants no packets from the device is asked again when nothing else happens.
const RECHECK_DEVICE: Duration = Duration::from_millis(100);
/// Own tunnel packets that come back out of the device within [`LOOP_WINDOW`] before the loop gives up. Each is proof:
/// only our own socket sends from this address and port. A dial repeats its first packets after one second.
const LOOP_LIMIT: u32 = 4;
const LOOP_WINDOW: Duration = Duration::from_secs(10);

/// What the loop and its handle share.
pub(super) struct Channels {
    pub(super) commands: Receiver<Command>,
    pub(super) events: SyncSender<Event>,
    pub(super) wake: Arc<OwnedFd>,
    pub(super) counters: Arc<Counters>,
    /// The loops of the host's other shards, where there are any.
    pub(super) neighbours: Option<Neighbours>,
}

/// Why a loop ended by itself.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot read the device")]
    Device(#[source] io::Error),
    #[error(
        "self-capture loop: our own tunnel packets come back out of the device; the steering rules do not let packets \
         with the bypass mark pass"
    )]
    Loop,
    #[error("cannot wait for input")]
    Poll(#[source] io::Error),
}

/// A shard with its devices; see the module.
pub(super) struct Runner<D> {
    shard: Shard,
    device: D,
    underlay: Underlay,
    clock: WallClock,
    channels: Channels,
    poller: Poller,
    pool: ReceivePool,
    /// The frame read from the device.
    frame: Vec<u8>,
    /// The frame to be written to the device.
    delivery: Vec<u8>,
    backlog: Backlog,
    outgoing: Outgoing,
    loops: LoopGuard,
    ending: Ending,
    /// That the device refuses offloads was logged.
    told_refusal: bool,
}

impl<D: PacketDevice> Runner<D> {
    pub(super) fn new(
        shard: Shard,
        device: D,
        underlay: Underlay,
        clock: WallClock,
        channels: Channels,
    ) -> io::Result<Self> {
        let device_fd = device.fd().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the device has no descriptor to wait for",
            )
        })?;
        let poller = Poller::new(device_fd, underlay.as_fd(), Arc::clone(&channels.wake))?;
        let (_, unix_seconds) = system_clocks();
        clock.set(unix_seconds);
        Ok(Self {
            shard,
            device,
            underlay,
            clock,
            channels,
            poller,
            pool: ReceivePool::default(),
            frame: vec![0; MAX_FRAME],
            delivery: Vec::with_capacity(MAX_FRAME),
            backlog: Backlog::default(),
            outgoing: Outgoing::default(),
            loops: LoopGuard::default(),
            ending: Ending::Running,
            told_refusal: false,
        })
    }

    /// Runs until told to stop or unable to go on, and says why it ended.
    pub(super) fn run(mut self) -> String {
        match self.turns() {
            Ok(()) => String::from("stopped"),
            Err(error) => with_causes(&error),
        }
    }

    fn turns(&mut self) -> Result<(), RunError> {
        // What the control plane said before the first packet comes first.
        let mut ready = Ready {
            wake: true,
            ..Ready::default()
        };
        loop {
            let now = self.tick();
            if ready.wake {
                self.take_commands(now);
                self.take_parcels(now);
            }
            if ready.socket {
                self.read_underlay(now);
            }
            if ready.device && !self.ending.has_begun() {
                self.read_device(ready.device_error, now)?;
            }
            self.pass_on();
            // After the input: what has come in time must not time out because the loop was late.
            if self.shard.poll_timeout().is_some_and(|due| due <= now) {
                self.shard.handle_timeout(now);
            }
            self.write_device();
            self.write_underlay(now);
            self.close_if_held(now);
            // Sending may have let the shard deliver more.
            self.write_device();
            self.report(now)?;
            if self.may_stop(now) {
                return Ok(());
            }
            ready = self.sleep(now).map_err(RunError::Poll)?;
        }
    }

    /// The time of this turn; the wall clock is passed on.
    fn tick(&self) -> Instant {
        let (now, unix_seconds) = system_clocks();
        self.clock.set(unix_seconds);
        now
    }

    fn take_commands(&mut self, now: Instant) {
        loop {
            match self.channels.commands.try_recv() {
                Ok(Command::Config { identities, policy }) => {
                    self.shard.handle_config(identities, policy, now)
                }
                Ok(Command::Cut(connections)) => self.shard.handle_cut(&connections),
                Ok(Command::Drain { reason }) => self.shard.handle_drain(&reason, now),
                Ok(Command::HandOver) => {
                    self.shard.handle_hold(now);
                    self.ending.hold(now);
                }
                Ok(Command::Seed(tuples)) => self.shard.handle_seed(&tuples, now),
                // Whoever asked may have gone.
                Ok(Command::Snapshot(reply)) => drop(reply.try_send(self.shard.snapshot())),
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    // A neighbour that has ended before is no reason to hurry.
                    if !self.ending.is_holding() {
                        self.close(now);
                    }
                    return;
                }
                Err(TryRecvError::Empty) => return,
            }
        }
    }

    /// Reads frames while the shard wants them. A device that reports an error is read all the same, to learn which.
    fn read_device(&mut self, failed: bool, now: Instant) -> Result<(), RunError> {
        let mut bytes = 0;
        for _ in 0..DEVICE_BATCH {
            if bytes >= DEVICE_BATCH_BYTES {
                return Ok(());
            }
            if !self.shard.wants_device() {
                // Sending makes room, if anything does.
                self.write_underlay(now);
                if !self.shard.wants_device() && !failed {
                    return Ok(());
                }
            }
            match self.device.read(&mut self.frame) {
                Ok(length) => {
                    bytes += length;
                    if let Some(frame) = self.frame.get_mut(..length) {
                        self.shard.handle_device(frame, now);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(RunError::Device(error)),
            }
        }
        Ok(())
    }

    /// Takes a batch of what has arrived; `false` when nothing had.
    fn read_underlay(&mut self, now: Instant) -> bool {
        let shard = &mut self.shard;
        let neighbours = &mut self.channels.neighbours;
        let received = self.underlay.receive(&mut self.pool, |datagram| {
            if let Some(neighbours) = neighbours
                && let Some(owner) = neighbours.owner_of(&datagram.data)
            {
                if !neighbours.send_datagram(owner, datagram) {
                    shard.count_handover_full();
                }
                return;
            }
            shard.handle_underlay(datagram, now);
        });
        if received.is_err() {
            count(&self.channels.counters.receive_failed);
        }
        received.is_ok_and(|datagrams| datagrams > 0)
    }

    /// Takes what the other loops have for this one.
    fn take_parcels(&mut self, now: Instant) {
        let parcels = self.channels.neighbours.as_mut().map(Neighbours::take);
        for parcel in parcels.into_iter().flatten() {
            match parcel {
                Parcel::Handover(handover) => self.shard.handle_handover(handover, now),
                Parcel::Datagram(datagram) => self.shard.handle_underlay(datagram, now),
            }
        }
    }

    /// Gives the other loops what is theirs.
    fn pass_on(&mut self) {
        let Some(neighbours) = &mut self.channels.neighbours else {
            return;
        };
        while let Some((shard, handover)) = self.shard.poll_handover() {
            let is_frame = matches!(handover, Handover::Frame(_));
            if !neighbours.send(shard, Parcel::Handover(handover)) && is_frame {
                self.shard.count_frame_not_handed_over();
            }
        }
        neighbours.flush();
    }

    /// Writes what the shard delivers; the frames that wait go first.
    fn write_device(&mut self) {
        self.write_backlog();
        while self.shard.poll_device(&mut self.delivery) {
            let counters = &self.channels.counters;
            let written = if self.backlog.is_empty() {
                write_frame(&mut self.device, &self.delivery, counters)
            } else {
                Written::Waits
            };
            match written {
                Written::Done => {}
                Written::Waits if self.backlog.push(&self.delivery) => {}
                Written::Waits => count(&counters.backlog_dropped),
                Written::Split(packets) => {
                    self.backlog.put_first(packets);
                    self.refused(gso_kind(&self.delivery));
                    self.write_backlog();
                }
            }
        }
    }

    fn write_backlog(&mut self) {
        while let Some(frame) = self.backlog.first() {
            match write_frame(&mut self.device, frame, &self.channels.counters) {
                Written::Done => self.backlog.remove_first(),
                Written::Waits => return,
                Written::Split(packets) => {
                    let kind = gso_kind(frame);
                    self.backlog.remove_first();
                    self.backlog.put_first(packets);
                    self.refused(kind);
                }
            }
        }
    }

    /// The device refused the offloads of a frame: no more of that kind are made.
    fn refused(&mut self, kind: Option<GsoKind>) {
        if let Some(kind) = kind {
            self.shard.handle_refused_offload(kind);
        }
        if !mem::replace(&mut self.told_refusal, true) {
            tracing::warn!(
                kind = kind.map(tracing::field::display),
                "the TUN refused an offload that it had granted; its packets are written one by one from here on, which \
                 costs more CPU"
            );
        }
    }

    /// Sends what the tunnels have, until there is nothing left or the socket takes no more.
    fn write_underlay(&mut self, now: Instant) {
        let counters = &self.channels.counters;
        if !self.outgoing.resume(&mut self.underlay, now, counters) {
            return;
        }
        // The shard works once more when it has nothing left to send: only the second time in a row is it done.
        let mut done = false;
        loop {
            let segments = self.underlay.max_segments(self.outgoing.segment, now);
            match self
                .shard
                .poll_transmit(now, segments, &mut self.outgoing.contents)
            {
                Some(transmit) => {
                    done = false;
                    if !self
                        .outgoing
                        .send(transmit, &mut self.underlay, now, counters)
                    {
                        return;
                    }
                }
                None if done => return,
                None => done = true,
            }
        }
    }

    /// Passes events to the control plane, and ends a self-capture loop.
    fn report(&mut self, now: Instant) -> Result<(), RunError> {
        while let Some(event) = self.shard.poll_event() {
            if matches!(
                &event,
                Event::Engine(EngineEvent::Dropped {
                    reason: DropReason::Loop,
                    ..
                })
            ) {
                self.loops.note(now);
            }
            if self.channels.events.try_send(event).is_err() {
                count(&self.channels.counters.events_lost);
            }
        }
        if self.loops.is_proven() {
            Err(RunError::Loop)
        } else {
            Ok(())
        }
    }

    /// Closes every session. What has arrived is delivered before peers are told to send no more.
    fn close(&mut self, now: Instant) {
        if self.ending.is_closed() {
            return;
        }
        self.ending.close(now);
        let _ = (0..LAST_BATCHES).all(|_| self.read_underlay(now));
        self.shard.handle_close("stopped", now);
        self.write_device();
        self.write_underlay(now);
    }

    /// Peers were asked to send no more, and obey, or have had their time.
    fn close_if_held(&mut self, now: Instant) {
        if self.ending.is_holding() && (self.ending.is_due(now) || self.shard.is_held()) {
            self.close(now);
        }
    }

    fn may_stop(&self, now: Instant) -> bool {
        let empty = self.backlog.is_empty() && self.outgoing.waiting.is_none();
        self.ending.is_closed() && (empty || self.ending.is_due(now))
    }

    fn sleep(&mut self, now: Instant) -> io::Result<Ready> {
        let reads = !self.ending.has_begun() && self.shard.wants_device();
        if let Some(fd) = self.device.fd() {
            self.poller
                .device_interest(fd, reads, !self.backlog.is_empty())?;
        }
        self.poller
            .socket_interest(self.underlay.as_fd(), self.outgoing.waiting.is_some())?;
        let recheck = (!reads).then_some(now + RECHECK_DEVICE);
        let deadline = [self.shard.poll_timeout(), recheck, self.ending.deadline()]
            .into_iter()
            .flatten()
            .min();
        self.poller.wait(deadline, now)
    }
}

/// An error and its causes in one line.
fn with_causes(error: &dyn Error) -> String {
    let causes = iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Counts our own tunnel packets that come out of the device.
#[derive(Debug, Default)]
struct LoopGuard {
    since: Option<Instant>,
    seen: u32,
}

impl LoopGuard {
    fn note(&mut self, now: Instant) {
        if self.since.is_none_or(|since| since + LOOP_WINDOW < now) {
            self.since = Some(now);
            self.seen = 0;
        }
        self.seen += 1;
    }

    fn is_proven(&self) -> bool {
        self.seen >= LOOP_LIMIT
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the one place where a running shard is told the time"
)]
fn system_clocks() -> (Instant, u64) {
    let unix_seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    (Instant::now(), unix_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_own_packets_at_once_prove_a_loop_and_far_between_they_do_not() {
        let (start, _) = system_clocks();
        let (mut dense, mut sparse) = (LoopGuard::default(), LoopGuard::default());
        for number in 0..LOOP_LIMIT {
            assert!(!dense.is_proven());
            dense.note(start + number * LOOP_WINDOW / LOOP_LIMIT);
        }
        assert!(dense.is_proven());
        for number in 0..100 {
            sparse.note(start + number * (LOOP_WINDOW / 2));
            assert!(!sparse.is_proven());
        }
    }
}
