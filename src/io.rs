//! Runs a shard: one thread, one poll loop over a device, a UDP socket, a timer and commands.
//!
//! The shard decides everything; this room only moves bytes between it and the kernel, in batches that end when nothing
//! is ready, and tells it the time. The control plane talks to it by [`ShardHandle`] and never stands in a packet's way.

mod backlog;
mod counts;
mod ending;
mod neighbours;
mod outgoing;
mod poller;
mod receive;
mod reuseport;
mod run;
mod shards;
mod underlay;
mod write;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

use crate::{
    device::PacketDevice,
    identity::{Identities, WallClock},
    policy::Compiled,
    shard::{Event, Shard, ShardSnapshot},
    wire::FiveTuple,
};

use counts::Counters;
use run::Runner;

pub use counts::LoopCounts;
pub use receive::ReceivePool;
pub use shards::{Shards, spawn_all};
pub use underlay::{Underlay, UnderlaySettings};

/// Commands that wait for the loop.
const MAX_COMMANDS: usize = 64;
/// Events that wait for the control plane; more are counted and forgotten.
const MAX_EVENTS: usize = 4096;

/// What the control plane tells a running shard.
pub enum Command {
    /// Plaintext TCP connections that policy no longer allows, local end first.
    Cut(Vec<FiveTuple>),
    /// Identities and policy to use from here on.
    Config {
        /// The identities of this host's workloads.
        identities: Arc<Identities>,
        /// The compiled policy.
        policy: Arc<Compiled>,
    },
    /// DRAIN to every peer.
    Drain {
        /// What the peers are told.
        reason: String,
    },
    /// As [`Self::Stop`], but peers first keep back what they would send: a successor takes over in a moment.
    HandOver,
    /// Conntrack entries of tunnel flows (original direction).
    Seed(Vec<FiveTuple>),
    /// A copy of what `status` shows, to be sent there; dropped when the channel is full.
    Snapshot(SyncSender<ShardSnapshot>),
    /// The loop ends after what is queued was sent.
    Stop,
}

/// A running shard. Dropping it stops the loop and joins the thread.
pub struct ShardHandle {
    commands: SyncSender<Command>,
    wake: Arc<OwnedFd>,
    thread: Mutex<Thread>,
    counters: Arc<Counters>,
}

enum Thread {
    Running(JoinHandle<String>),
    Joining,
    Ended(String),
}

impl ShardHandle {
    /// Passes a command to the loop and wakes it. Never blocks.
    ///
    /// # Errors
    /// `BrokenPipe` when the loop has ended (see [`Self::ended`]), `WouldBlock` when 64 commands wait already.
    pub fn send(&self, command: Command) -> io::Result<()> {
        self.commands
            .try_send(command)
            .map_err(|error| match error {
                TrySendError::Full(_) => io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "the data plane takes no commands",
                ),
                TrySendError::Disconnected(_) => {
                    io::Error::new(io::ErrorKind::BrokenPipe, "the data plane has ended")
                }
            })?;
        Ok(poller::wake(&self.wake)?)
    }

    /// `None` while the loop runs, else why it ended: `stopped`, the error, or the message of a panic.
    pub fn ended(&self) -> Option<String> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        match &*thread {
            Thread::Running(handle) if !handle.is_finished() => return None,
            Thread::Running(_) | Thread::Joining => thread.join(),
            Thread::Ended(_) => {}
        }
        match &*thread {
            Thread::Ended(why) => Some(why.clone()),
            Thread::Running(_) | Thread::Joining => None,
        }
    }

    /// Waits for the end and says why it came, as [`Self::ended`]. For whoever knows that it is near, because the
    /// events have ended: the thread itself ends a moment later.
    pub fn wait(&self) -> String {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.join();
        match &*thread {
            Thread::Ended(why) => why.clone(),
            Thread::Running(_) | Thread::Joining => String::new(),
        }
    }

    /// What the loop had to give up so far.
    pub fn counts(&self) -> LoopCounts {
        self.counters.read()
    }
}

impl ShardHandle {
    fn start(&self, name: &str, body: impl FnOnce() -> String + Send + 'static) -> io::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Thread::Running(thread);
        Ok(())
    }
}

impl Drop for ShardHandle {
    fn drop(&mut self) {
        // When the loop has ended both fail, and there is nothing to stop.
        let _ = self.send(Command::Stop);
        self.thread
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .join();
    }
}

impl Thread {
    /// Waits for the thread, if it was not waited for yet.
    fn join(&mut self) {
        let before = std::mem::replace(self, Self::Joining);
        *self = match before {
            Self::Running(handle) => Self::Ended(handle.join().unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("no message");
                format!("panicked: {text}")
            })),
            Self::Joining => Self::Ended(String::from("lost")),
            Self::Ended(why) => Self::Ended(why),
        };
    }
}

/// Starts the loop on its own thread. It sets `clock` from the system's wall clock at every turn.
///
/// The receiver gives the shard's events; it ends when the loop has.
///
/// # Errors
/// When the device has nothing to poll, or a descriptor or thread cannot be made.
pub fn spawn<D: PacketDevice + Send + 'static>(
    shard: Shard,
    device: D,
    underlay: Underlay,
    clock: WallClock,
) -> io::Result<(ShardHandle, Receiver<Event>)> {
    let (event_queue, events) = sync_channel(MAX_EVENTS);
    let (handle, channels) = connect(event_queue, None)?;
    let runner = Runner::new(shard, device, underlay, clock, channels)?;
    handle.start("shard", move || runner.run())?;
    Ok((handle, events))
}

/// The two ends of what a loop and the control plane say to each other. The thread is yet to be started.
fn connect(
    events: SyncSender<Event>,
    wake: Option<Arc<OwnedFd>>,
) -> io::Result<(ShardHandle, run::Channels)> {
    let (commands, command_queue) = sync_channel(MAX_COMMANDS);
    let wake = match wake {
        Some(wake) => wake,
        None => Arc::new(poller::eventfd()?),
    };
    let counters = Arc::new(Counters::default());
    let channels = run::Channels {
        commands: command_queue,
        events,
        wake: Arc::clone(&wake),
        counters: Arc::clone(&counters),
        neighbours: None,
    };
    let handle = ShardHandle {
        commands,
        wake,
        thread: Mutex::new(Thread::Joining),
        counters,
    };
    Ok((handle, channels))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handle to a thread that runs `body` in place of a loop.
    fn handle(body: impl FnOnce(&Receiver<Command>) -> String + Send + 'static) -> ShardHandle {
        let (commands, queue) = sync_channel(MAX_COMMANDS);
        ShardHandle {
            commands,
            wake: Arc::new(poller::eventfd().unwrap()),
            thread: Mutex::new(Thread::Running(thread::spawn(move || body(&queue)))),
            counters: Arc::default(),
        }
    }

    fn wait(handle: &ShardHandle) -> String {
        loop {
            match handle.ended() {
                Some(why) => return why,
                None => thread::yield_now(),
            }
        }
    }

    #[test]
    fn why_a_loop_ended_is_told_as_often_as_asked() {
        let handle = handle(|_| String::from("stopped"));
        assert_eq!(wait(&handle), "stopped");
        assert_eq!(handle.ended().as_deref(), Some("stopped"));
    }

    #[test]
    fn who_waits_for_the_end_learns_why_although_the_events_end_first() {
        let (events, receiver) = sync_channel::<()>(1);
        let running = handle(move |_| {
            drop(events);
            thread::yield_now();
            String::from("boom")
        });
        assert!(receiver.recv().is_err());
        assert_eq!(running.wait(), "boom");
        assert_eq!(running.ended().as_deref(), Some("boom"));
    }

    #[test]
    fn a_panic_of_the_loop_shows_as_its_end() {
        let handle = handle(|_| panic!("the {} is gone", "sky"));
        assert_eq!(wait(&handle), "panicked: the sky is gone");
    }

    #[test]
    fn commands_are_bounded_and_fail_when_the_loop_has_ended() {
        let (release, released) = sync_channel::<()>(1);
        let handle = handle(move |_| {
            released.recv().unwrap();
            String::new()
        });
        for _ in 0..MAX_COMMANDS {
            handle.send(Command::Seed(Vec::new())).unwrap();
        }
        let full = handle.send(Command::Stop).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        release.send(()).unwrap();
        wait(&handle);
        assert_eq!(
            handle.send(Command::Stop).unwrap_err().kind(),
            io::ErrorKind::BrokenPipe
        );
    }

    #[test]
    fn dropping_the_handle_stops_the_loop_and_waits_for_it() {
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let seen = Arc::clone(&done);
        drop(handle(move |commands| {
            while !matches!(commands.recv(), Ok(Command::Stop)) {}
            seen.store(true, std::sync::atomic::Ordering::SeqCst);
            String::new()
        }));
        assert!(done.load(std::sync::atomic::Ordering::SeqCst));
    }
}
