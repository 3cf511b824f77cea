//! The relay: reads what is routed into a TUN and writes it back when the line has brought it to the other end.
//!
//! One thread, and one sleep on the device, on the next packet's time and on orders. Frames go back as the kernel gave
//! them, header included, unless the line cuts them: what the kernel says of its packet it also takes.

pub(crate) mod line;

use std::{
    fmt, fs, io,
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use identun::device::{
    MAX_FRAME, PacketDevice as _,
    tun::{Tun, TunError, TunSettings},
};
use line::{Counters, Impairment, Line};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

/// Frames read or written in one go: neither side waits long for the other.
const BATCH: usize = 64;
/// What may wait while the relay writes. Drops here are drops that nobody asked for, so there is room.
const TUN_QUEUE: u32 = 10_000;
/// The links on both sides say how large a packet may be.
const TUN_MTU: u16 = 65_535;

/// Orders to a running relay, from a signal or another thread.
pub(crate) struct Orders {
    wake: OwnedFd,
    stop: AtomicBool,
}

/// What a relay came back for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Order {
    /// Say what happened, and go on.
    Report,
    /// Say what happened, and end.
    Stop,
}

/// See the module.
pub(crate) struct Relay {
    name: String,
    tun: Tun,
    line: Line,
    buffer: Vec<u8>,
    written: u64,
    refused: u64,
}

/// What happened so far; prints as one line of key=value.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    /// What happened on the line.
    pub(crate) line: Counters,
    /// Packets on the line now.
    pub(crate) held: usize,
    /// Frames that the kernel took back.
    pub(crate) written: u64,
    /// Frames that it did not take back.
    pub(crate) refused: u64,
    /// Packets that it dropped because they were not read in time.
    pub(crate) unread: u64,
}

impl Orders {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stop: AtomicBool::new(false),
        })
    }

    /// Gives an order.
    pub(crate) fn give(&self, order: Order) {
        if order == Order::Stop {
            self.stop.store(true, Ordering::Relaxed);
        }
        // Only a counter that is full, and so wakes as well, takes no more.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    fn take(&self) -> Order {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        if self.stop.load(Ordering::Relaxed) {
            Order::Stop
        } else {
            Order::Report
        }
    }
}

impl Relay {
    /// Makes the TUN, which is down and without routes.
    pub(crate) fn open(name: &str, impairment: Impairment) -> Result<Self, TunError> {
        let tun = Tun::open(&TunSettings {
            name: name.to_owned(),
            mtu: TUN_MTU,
            queue_length: TUN_QUEUE,
        })?;
        Ok(Self {
            name: name.to_owned(),
            tun,
            line: Line::new(impairment),
            buffer: vec![0; MAX_FRAME],
            written: 0,
            refused: 0,
        })
    }

    /// Relays until there is an order.
    pub(crate) fn run(&mut self, orders: &Orders) -> io::Result<Order> {
        loop {
            let is_more_due = self.write_due();
            let is_more_to_read = self.read()?;
            let sleep = match self.line.next_due() {
                _ if is_more_due || is_more_to_read => Some(Duration::ZERO),
                due => due.map(|due| due.saturating_duration_since(Instant::now())),
            };
            if self.sleep(orders, sleep)? {
                return Ok(orders.take());
            }
        }
    }

    /// What happened so far.
    pub(crate) fn report(&self) -> Report {
        Report {
            line: *self.line.counters(),
            held: self.line.held(),
            written: self.written,
            refused: self.refused,
            unread: self.unread(),
        }
    }

    /// Ends: the TUN goes, and with it what is on the line.
    pub(crate) fn close(self) -> Result<(), TunError> {
        let Self { name, tun, .. } = self;
        drop(tun);
        Tun::remove(&name).map(drop)
    }

    /// Writes what is due; true when some is left.
    fn write_due(&mut self) -> bool {
        let now = Instant::now();
        for _ in 0..BATCH {
            let Some(frame) = self.line.poll_due(now) else {
                return false;
            };
            match self.tun.write(&frame) {
                Ok(()) => self.written += 1,
                // The kernel does not want this one; the next is another matter.
                Err(_) => self.refused += 1,
            }
        }
        true
    }

    /// Reads what is there; true when there may be more.
    fn read(&mut self) -> io::Result<bool> {
        for _ in 0..BATCH {
            match self.tun.read(&mut self.buffer) {
                Ok(len) => {
                    let frame = self.buffer.get(..len).unwrap_or_default();
                    self.line.handle_frame(frame, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sleeps until the device has something, `sleep` is over or there is an order, which is told.
    fn sleep(&self, orders: &Orders, sleep: Option<Duration>) -> io::Result<bool> {
        let timeout = sleep.map(|sleep| Timespec {
            tv_sec: i64::try_from(sleep.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(sleep.subsec_nanos()),
        });
        let device = self.tun.fd().ok_or(io::ErrorKind::Unsupported)?;
        let mut fds = [
            PollFd::from_borrowed_fd(device, PollFlags::IN),
            PollFd::new(&orders.wake, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [_, wake] = fds;
        Ok(!wake.revents().is_empty())
    }

    fn unread(&self) -> u64 {
        let path = format!("/sys/class/net/{}/statistics/tx_dropped", self.name);
        let text = fs::read_to_string(path).unwrap_or_default();
        text.trim().parse().unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            line,
            held,
            written,
            refused,
            unread,
        } = self;
        write!(
            f,
            "{line} held={held} written={written} refused={refused} unread={unread}"
        )
    }
}
