//! Every shard of a host: one loop each, told and asked as one. When one ends, all do.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::{Duration, Instant},
};

use crate::{
    device::PacketDevice,
    identity::WallClock,
    io::{
        Command, LoopCounts, MAX_EVENTS, ShardHandle, Underlay, connect, neighbours::Neighbours,
        poller, run::Runner,
    },
    shard::{Event, Shard, ShardSnapshot},
    wire::FiveTuple,
};

/// The running shards of a host, in the order of their numbers. Dropping it stops them.
pub struct Shards(Vec<ShardHandle>);

/// What a loop that ended by itself is said to have ended by, when another one ended first.
const STOPPED: &str = "stopped";

impl Shards {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells every shard the same.
    ///
    /// # Errors
    /// As [`ShardHandle::send`], of the first that did not take it; the others were told all the same.
    pub fn send_all(&self, command: impl Fn() -> Command) -> io::Result<()> {
        let sent: Vec<_> = self.0.iter().map(|shard| shard.send(command())).collect();
        sent.into_iter().collect()
    }

    /// Spreads flows that a predecessor left over the shards. Which of them gets the packets is not known before there is
    /// one; it then takes the flow.
    ///
    /// # Errors
    /// As [`Self::send_all`].
    pub fn seed(&self, flows: Vec<FiveTuple>) -> io::Result<()> {
        let mut shares = vec![Vec::new(); self.0.len()];
        let count = u64::try_from(shares.len().max(1)).unwrap_or(1);
        for flow in flows {
            let mut hasher = DefaultHasher::new();
            flow.hash(&mut hasher);
            let share = usize::try_from(hasher.finish() % count).ok();
            if let Some(share) = share.and_then(|share| shares.get_mut(share)) {
                share.push(flow);
            }
        }
        let shares = self
            .0
            .iter()
            .zip(shares)
            .filter(|(_, share)| !share.is_empty());
        let sent: Vec<_> = shares
            .map(|(shard, share)| shard.send(Command::Seed(share)))
            .collect();
        sent.into_iter().collect()
    }

    /// Asks every shard how it is, all at once, and waits up to `patience` for the last answer.
    ///
    /// # Errors
    /// `BrokenPipe` when one has ended, `WouldBlock` when one takes no commands, `TimedOut` when one does not answer.
    pub fn snapshots(&self, patience: Duration) -> io::Result<Vec<ShardSnapshot>> {
        let asked: Vec<_> = self
            .0
            .iter()
            .map(|shard| {
                let (sender, receiver) = sync_channel(1);
                shard.send(Command::Snapshot(sender)).map(|()| receiver)
            })
            .collect::<io::Result<_>>()?;
        let until = now() + patience;
        let answers = asked.into_iter().map(|receiver| {
            let left = until.saturating_duration_since(now());
            receiver
                .recv_timeout(left)
                .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))
        });
        answers.collect()
    }

    /// Waits for the end of all and says why the one that began it ended, as [`ShardHandle::wait`].
    pub fn wait(&self) -> String {
        let many = self.0.len() > 1;
        let mut ends = self.0.iter().enumerate().map(|(number, shard)| {
            let why = shard.wait();
            match many && why != STOPPED {
                true => format!("shard {number}: {why}"),
                false => why,
            }
        });
        let first = ends.find(|why| why != STOPPED);
        first.unwrap_or_else(|| STOPPED.to_owned())
    }

    /// What the loops had to give up so far.
    pub fn counts(&self) -> impl Iterator<Item = LoopCounts> {
        self.0.iter().map(ShardHandle::counts)
    }
}

/// Starts a loop for each shard, in the order of their numbers; otherwise as [`crate::io::spawn`].
///
/// # Errors
/// As [`crate::io::spawn`]; then none of them runs.
pub fn spawn_all<D: PacketDevice + Send + 'static>(
    parts: Vec<(Shard, D, Underlay)>,
    clock: &WallClock,
) -> io::Result<(Shards, Receiver<Event>)> {
    let (event_queue, events) = sync_channel(MAX_EVENTS);
    let wakes = parts
        .iter()
        .map(|_| Ok(Arc::new(poller::eventfd()?)))
        .collect::<io::Result<Vec<_>>>()?;
    let mut neighbours = match parts.len() {
        0 | 1 => Vec::new(),
        _ => Neighbours::among(&wakes),
    }
    .into_iter();
    let mut handles = Vec::new();
    let mut runners = Vec::new();
    for ((shard, device, underlay), wake) in parts.into_iter().zip(wakes) {
        let (handle, mut channels) = connect(event_queue.clone(), Some(wake))?;
        channels.neighbours = neighbours.next();
        runners.push(Runner::new(
            shard,
            device,
            underlay,
            clock.clone(),
            channels,
        )?);
        handles.push(handle);
    }
    let shards = Shards(handles);
    let all: Arc<[_]> = shards
        .0
        .iter()
        .map(|shard| (shard.commands.clone(), Arc::clone(&shard.wake)))
        .collect();
    for (number, (shard, runner)) in shards.0.iter().zip(runners).enumerate() {
        let end = EndOfAll(Arc::clone(&all));
        let body = move || {
            let _end = end;
            runner.run()
        };
        shard.start(&format!("shard-{number}"), body)?;
    }
    Ok((shards, events))
}

/// Stops every loop when one has ended, a panic included: a host without one of its shards loses what belongs to it.
struct EndOfAll(Arc<[(SyncSender<Command>, Arc<OwnedFd>)]>);

impl Drop for EndOfAll {
    fn drop(&mut self) {
        for (commands, wake) in self.0.iter() {
            // What does not take it has ended, or is full of commands and about to be stopped by its handle.
            let _ = commands.try_send(Command::Stop);
            let _ = poller::wake(wake);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the control plane waits on the clock of the system"
)]
fn now() -> Instant {
    Instant::now()
}
