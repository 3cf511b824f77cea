//! What a loop sleeps on: an epoll over the device, the UDP socket, a timer and an eventfd that wakes it.
//!
//! Level-triggered. Interest in a descriptor is withdrawn while the loop would not act on it, so that a device which
//! waits for back-pressure to end, or a socket with nothing to send, never wakes it.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::{
    event::{
        EventfdFlags,
        epoll::{self, CreateFlags, EventData, EventFlags},
        eventfd as create_eventfd,
    },
    io::Errno,
    time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
        timerfd_settime,
    },
};

/// A timer that is due already, or nearly, still sleeps this long: no input can make the loop spin.
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);
/// A sleep without a deadline ends after this long all the same, which keeps the wall clock true.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);

/// A descriptor the loop sleeps on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Device,
    Socket,
    Timer,
    Wake,
}

impl Source {
    const ALL: [Self; 4] = [Self::Device, Self::Socket, Self::Timer, Self::Wake];

    fn data(self) -> EventData {
        EventData::new_u64(self as u64)
    }
}

/// What the last sleep found ready. An error on a descriptor counts as ready: reading tells what it is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Ready {
    pub(super) device: bool,
    /// The device is gone, which wakes even a loop that asked for nothing.
    pub(super) device_error: bool,
    pub(super) socket: bool,
    pub(super) wake: bool,
}

/// See the module.
pub(super) struct Poller {
    epoll: OwnedFd,
    timer: OwnedFd,
    wake: Arc<OwnedFd>,
    armed: Option<Instant>,
    device_interest: EventFlags,
    socket_interest: EventFlags,
}

impl Poller {
    /// Sleeps on these descriptors, for reading until told otherwise.
    pub(super) fn new(
        device: BorrowedFd<'_>,
        socket: BorrowedFd<'_>,
        wake: Arc<OwnedFd>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        epoll::add(&epoll, device, Source::Device.data(), EventFlags::IN)?;
        epoll::add(&epoll, socket, Source::Socket.data(), EventFlags::IN)?;
        epoll::add(&epoll, &timer, Source::Timer.data(), EventFlags::IN)?;
        epoll::add(&epoll, wake.as_fd(), Source::Wake.data(), EventFlags::IN)?;
        Ok(Self {
            epoll,
            timer,
            wake,
            armed: None,
            device_interest: EventFlags::IN,
            socket_interest: EventFlags::IN,
        })
    }

    /// Says what to wake for at the device.
    pub(super) fn device_interest(
        &mut self,
        fd: BorrowedFd<'_>,
        read: bool,
        write: bool,
    ) -> io::Result<()> {
        update(
            &self.epoll,
            fd,
            Source::Device,
            &mut self.device_interest,
            interest(read, write),
        )
    }

    /// Says what to wake for at the socket, which is always read.
    pub(super) fn socket_interest(&mut self, fd: BorrowedFd<'_>, write: bool) -> io::Result<()> {
        update(
            &self.epoll,
            fd,
            Source::Socket,
            &mut self.socket_interest,
            interest(true, write),
        )
    }

    /// Sleeps until something is ready or `deadline` has come.
    pub(super) fn wait(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<Ready> {
        self.arm(deadline, now)?;
        let mut events = [MaybeUninit::uninit(); Source::ALL.len()];
        let events = match epoll::wait(&self.epoll, &mut events, None) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(error) => return Err(error.into()),
        };
        let mut ready = Ready::default();
        for event in events {
            let data = event.data.u64();
            match Source::ALL
                .into_iter()
                .find(|&source| source as u64 == data)
            {
                Some(Source::Device) => {
                    ready.device = true;
                    let flags = event.flags;
                    ready.device_error = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                }
                Some(Source::Socket) => ready.socket = true,
                Some(Source::Timer) => {
                    clear(&self.timer);
                    self.armed = None;
                }
                Some(Source::Wake) => {
                    clear(&self.wake);
                    ready.wake = true;
                }
                None => {}
            }
        }
        Ok(ready)
    }

    /// Sets the timer, unless it fires soon enough as it is: deadlines mostly move away, and one needless waking is
    /// cheaper than a system call for each of them.
    fn arm(&mut self, deadline: Option<Instant>, now: Instant) -> io::Result<()> {
        let latest = now + LONGEST_SLEEP;
        let deadline = deadline.map_or(latest, |deadline| {
            deadline.clamp(now + SHORTEST_SLEEP, latest)
        });
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        let sleep = deadline.saturating_duration_since(now);
        let it_value = Timespec {
            tv_sec: i64::try_from(sleep.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(sleep.subsec_nanos()),
        };
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.armed = Some(deadline);
        Ok(())
    }
}

/// An eventfd for [`wake`].
pub(super) fn eventfd() -> io::Result<OwnedFd> {
    Ok(create_eventfd(
        0,
        EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
    )?)
}

/// Wakes the loop that sleeps on `eventfd`.
pub(super) fn wake(eventfd: &OwnedFd) -> Result<(), Errno> {
    match rustix::io::write(eventfd, &1_u64.to_ne_bytes()) {
        // A full counter wakes as well.
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes the count out of a timer or eventfd; what it was does not matter.
fn clear(fd: &OwnedFd) {
    let _ = rustix::io::read(fd, &mut [0; 8]);
}

fn interest(read: bool, write: bool) -> EventFlags {
    let mut flags = EventFlags::empty();
    flags.set(EventFlags::IN, read);
    flags.set(EventFlags::OUT, write);
    flags
}

fn update(
    epoll: &OwnedFd,
    fd: BorrowedFd<'_>,
    source: Source,
    current: &mut EventFlags,
    wanted: EventFlags,
) -> io::Result<()> {
    if *current != wanted {
        epoll::modify(epoll, fd, source.data(), wanted)?;
        *current = wanted;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MAX_FRAME, PacketDevice as _, memory::MemoryDevice};

    #[expect(
        clippy::disallowed_methods,
        reason = "a timer of the kernel runs on its clock"
    )]
    fn now() -> Instant {
        Instant::now()
    }

    struct Rig {
        poller: Poller,
        wake: Arc<OwnedFd>,
        device: MemoryDevice,
        far_device: MemoryDevice,
        socket: MemoryDevice,
        far_socket: MemoryDevice,
    }

    fn rig() -> Rig {
        let (device, far_device) = MemoryDevice::pair().unwrap();
        let (socket, far_socket) = MemoryDevice::pair().unwrap();
        let wake = Arc::new(eventfd().unwrap());
        let poller = Poller::new(
            device.fd().unwrap(),
            socket.fd().unwrap(),
            Arc::clone(&wake),
        )
        .unwrap();
        Rig {
            poller,
            wake,
            device,
            far_device,
            socket,
            far_socket,
        }
    }

    impl Rig {
        fn wait(&mut self) -> Ready {
            let now = now();
            self.poller.wait(Some(now), now).unwrap()
        }
    }

    #[test]
    fn each_source_wakes_by_its_name() {
        let mut rig = rig();
        assert_eq!(rig.wait(), Ready::default());
        rig.far_device.write(&[0]).unwrap();
        assert_eq!(
            rig.wait(),
            Ready {
                device: true,
                ..Ready::default()
            }
        );
        rig.device.read(&mut [0; 9]).unwrap();
        rig.far_socket.write(&[0]).unwrap();
        assert_eq!(
            rig.wait(),
            Ready {
                socket: true,
                ..Ready::default()
            }
        );
        rig.socket.read(&mut [0; 9]).unwrap();
        wake(&rig.wake).unwrap();
        assert_eq!(
            rig.wait(),
            Ready {
                wake: true,
                ..Ready::default()
            }
        );
        assert_eq!(rig.wait(), Ready::default());
    }

    #[test]
    fn a_device_under_back_pressure_wakes_nobody_until_it_is_wanted() {
        let mut rig = rig();
        rig.far_device.write(&[0]).unwrap();
        rig.poller
            .device_interest(rig.device.fd().unwrap(), false, false)
            .unwrap();
        assert_eq!(rig.wait(), Ready::default());
        rig.poller
            .device_interest(rig.device.fd().unwrap(), true, false)
            .unwrap();
        assert_eq!(
            rig.wait(),
            Ready {
                device: true,
                ..Ready::default()
            }
        );
    }

    #[test]
    fn a_full_device_wakes_only_when_it_takes_frames_again() {
        let mut rig = rig();
        while rig.device.write(&vec![0; MAX_FRAME]).is_ok() {}
        rig.poller
            .device_interest(rig.device.fd().unwrap(), false, true)
            .unwrap();
        assert_eq!(rig.wait(), Ready::default());
        while rig.far_device.read(&mut vec![0; MAX_FRAME]).is_ok() {}
        assert_eq!(
            rig.wait(),
            Ready {
                device: true,
                ..Ready::default()
            }
        );
    }

    #[test]
    fn a_deadline_that_moves_away_sets_no_timer_and_one_that_comes_nearer_does() {
        let mut rig = rig();
        let start = now();
        let arm = |rig: &mut Rig, after: u64| {
            rig.poller
                .arm(Some(start + Duration::from_millis(after)), start)
                .unwrap();
            rig.poller.armed.map(|armed| armed - start)
        };
        assert_eq!(arm(&mut rig, 400), Some(Duration::from_millis(400)));
        assert_eq!(arm(&mut rig, 500), Some(Duration::from_millis(400)));
        assert_eq!(arm(&mut rig, 300), Some(Duration::from_millis(300)));
        assert_eq!(arm(&mut rig, 0), Some(SHORTEST_SLEEP));
    }

    #[test]
    fn a_sleep_ends_at_its_deadline() {
        let mut rig = rig();
        let start = now();
        let deadline = start + Duration::from_millis(30);
        while now() < deadline {
            assert_eq!(
                rig.poller.wait(Some(deadline), now()).unwrap(),
                Ready::default()
            );
        }
    }
}
