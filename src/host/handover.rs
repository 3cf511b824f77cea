//! What one process of the daemon hands to the next: the TUN's queues, the tunnels' sockets, the socket that owns the nft
//! table, the lock. They come from a predecessor that became this process (`exec`), or from systemd, which keeps them
//! while no daemon runs (sd_pid_notify_with_fds(3), `FDSTORE=1`).
#![expect(unsafe_code, reason = "descriptors come as numbers")]

use std::{
    env,
    ffi::OsString,
    io,
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::process::CommandExt as _,
    },
    path::Path,
    process::{self, Command},
};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};

/// Names the descriptors that a predecessor left open: `PID tun=5 tun=6 udp=7`.
const VARIABLE: &str = "IDENTUN_HANDOVER";
/// The variables by which systemd tells the same; what they say is of no use to a successor.
const OF_SYSTEMD: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// What a descriptor is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// A queue of the TUN.
    Tun,
    /// A shard's UDP socket.
    Underlay,
    /// The socket that owns the nft table.
    Rules,
    /// The lock of the one instance. Never kept by systemd: it says that a daemon runs.
    Lock,
}

const PARTS: [(Part, &str); 4] = [
    (Part::Tun, "tun"),
    (Part::Underlay, "udp"),
    (Part::Rules, "nft"),
    (Part::Lock, "lock"),
];

/// Descriptors and what they are, in the order of the shards.
#[derive(Debug, Default)]
pub struct Handover {
    parts: Vec<(Part, OwnedFd)>,
    from_systemd: bool,
}

impl Part {
    /// Its name between processes.
    #[must_use]
    pub fn name(self) -> &'static str {
        let named = PARTS.iter().find(|(other, _)| *other == self);
        named.map_or("", |(_, name)| name)
    }

    fn named(name: &str) -> Option<Self> {
        let named = PARTS.iter().find(|(_, other)| *other == name);
        named.map(|(part, _)| *part)
    }
}

impl Handover {
    /// Takes what was left for this process; to be called once, before anything else opens a descriptor.
    pub fn take() -> Self {
        let left = named(&env::var(VARIABLE).unwrap_or_default(), process::id());
        let (left, from_systemd) = match left.is_empty() {
            true => (of_systemd(), true),
            false => (left, false),
        };
        let mut handover = Self::default();
        for (part, number) in left {
            if handover.holds(number) {
                continue;
            }
            // SAFETY: the number is only looked at while the call lasts; a closed one is an error of the call.
            let open = fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok();
            if open {
                // SAFETY: it is open, was left for us by name, and nobody else in this process knows of it: this is
                // called once at the start, and no number is taken twice.
                let fd = unsafe { OwnedFd::from_raw_fd(number) };
                // our own programs have no business with it
                let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
                handover.parts.push((part, fd));
            }
        }
        handover.from_systemd = from_systemd && !handover.parts.is_empty();
        handover
    }

    fn holds(&self, number: RawFd) -> bool {
        use std::os::fd::AsRawFd as _;
        self.parts.iter().any(|(_, fd)| fd.as_raw_fd() == number)
    }

    /// Tells whether systemd kept it: then systemd has it still.
    pub const fn came_from_systemd(&self) -> bool {
        self.from_systemd
    }

    /// Adds another name for the same open file, so that it stays open when its user closes it.
    ///
    /// # Errors
    /// When the process may have no more descriptors.
    pub fn keep(&mut self, part: Part, fd: impl AsFd) -> io::Result<()> {
        self.parts.push((part, fd.as_fd().try_clone_to_owned()?));
        Ok(())
    }

    /// As [`Self::keep`], of all that another one holds.
    ///
    /// # Errors
    /// As [`Self::keep`].
    pub fn keep_all(&mut self, other: &Self) -> io::Result<()> {
        other
            .parts
            .iter()
            .try_for_each(|(part, fd)| self.keep(*part, fd))
    }

    /// Takes out all of this kind, in their order.
    pub fn all(&mut self, part: Part) -> Vec<OwnedFd> {
        let (taken, rest) = std::mem::take(&mut self.parts)
            .into_iter()
            .partition(|(other, _)| *other == part);
        self.parts = rest;
        let taken: Vec<_> = taken;
        taken.into_iter().map(|(_, fd)| fd).collect()
    }

    /// The descriptors that may outlive the process, with the names under which [`Self::take`] finds them.
    pub fn lasting(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let lasting = self.parts.iter().filter(|(part, _)| *part != Part::Lock);
        lasting.map(|(part, fd)| (part.name(), fd.as_fd()))
    }

    /// Becomes another program, which finds everything by [`Self::take`]. Returns only to say why that was not possible.
    pub fn exec(self, program: &Path, arguments: &[OsString]) -> io::Error {
        use std::os::fd::AsRawFd as _;
        let mut text = process::id().to_string();
        for (part, fd) in &self.parts {
            if let Err(error) = fcntl_setfd(fd, FdFlags::empty()) {
                return error.into();
            }
            text.push_str(&format!(" {}={}", part.name(), fd.as_raw_fd()));
        }
        let mut command = Command::new(program);
        command.args(arguments).env(VARIABLE, text);
        for variable in OF_SYSTEMD {
            command.env_remove(variable);
        }
        command.exec()
    }
}

/// What the variable says, if it was meant for this process and not for one from which it was inherited.
fn named(text: &str, pid: u32) -> Vec<(Part, RawFd)> {
    let mut words = text.split(' ');
    if words.next().and_then(|word| word.parse().ok()) != Some(pid) {
        return Vec::new();
    }
    let one = |word: &str| {
        let (name, number) = word.split_once('=')?;
        // the first three are everybody's
        let number = number.parse().ok().filter(|number| *number > 2)?;
        Some((Part::named(name)?, number))
    };
    words.filter_map(one).collect()
}

fn of_systemd() -> Vec<(Part, RawFd)> {
    let Ok(kept) = sd_notify::listen_fds_with_names() else {
        return Vec::new();
    };
    kept.filter_map(|(number, name)| Some((Part::named(&name)?, number)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn only_what_was_left_for_this_process_is_taken() {
        assert_eq!(
            named("7 tun=5 tun=6 udp=9 nft=10 lock=11", 7),
            [
                (Part::Tun, 5),
                (Part::Tun, 6),
                (Part::Underlay, 9),
                (Part::Rules, 10),
                (Part::Lock, 11)
            ]
        );
        for text in [
            "",
            "8 tun=5",
            "tun=5",
            "7",
            "7 tun=x other=5 tun tun=2 udp=-1",
        ] {
            assert!(named(text, 7).is_empty(), "{text}");
        }
    }

    #[test]
    fn what_is_kept_stays_open_and_comes_out_in_its_order() {
        let files: Vec<_> = (0..3).map(|_| tempfile::tempfile().unwrap()).collect();
        let mut handover = Handover::default();
        handover.keep(Part::Tun, &files[0]).unwrap();
        handover.keep(Part::Lock, &files[1]).unwrap();
        handover.keep(Part::Tun, &files[2]).unwrap();
        drop(files);
        let names: Vec<_> = handover.lasting().map(|(name, _)| name).collect();
        assert_eq!(names, ["tun", "tun"]);
        let numbers: Vec<_> = handover
            .parts
            .iter()
            .map(|(_, fd)| fd.as_raw_fd())
            .collect();
        let taken = handover.all(Part::Tun);
        assert_eq!(
            taken.iter().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>(),
            [numbers[0], numbers[2]]
        );
        assert!(handover.all(Part::Tun).is_empty());
        assert_eq!(handover.all(Part::Lock).len(), 1);
    }
}
