//! The Linux TUN device with virtio-net header and offloads.
//!
//! Frames are a 10-byte little-endian `struct virtio_net_hdr` and an IP packet, TCP and UDP in super-packets of up to
//! 64 KiB. The device is persistent: it stays, and keeps what it captures, when the daemon is gone. What the `tun` crate
//! does not do (adopting a persistent device, offloads, telling whose a device is) is done on the descriptor before the
//! crate takes it over.
#![expect(unsafe_code, reason = "the TUN driver is configured by ioctl")]

use std::{
    fmt, io,
    os::fd::{AsRawFd as _, BorrowedFd, IntoRawFd as _, OwnedFd},
};

use libc::{c_int, c_short};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    ioctl::{IntegerSetter, Opcode, Setter, Updater, ioctl, opcode},
};
use tun::{AbstractDevice as _, Configuration};

use crate::device::{
    PacketDevice,
    link::{self, Link, LinkSettings},
};

/// How to open a [`Tun`].
#[derive(Clone, Debug)]
pub struct TunSettings {
    /// The interface's name, at most 15 bytes.
    pub name: String,
    /// Bytes of the largest IP packet.
    pub mtu: u16,
    /// Packets that may wait to be read (txqueuelen).
    pub queue_length: u32,
}

/// Why a TUN could not be opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The `tun` crate did not take the descriptor.
    #[error("cannot take over the device {name}")]
    Adopt {
        /// The interface.
        name: String,
        /// What the crate says.
        #[source]
        source: tun::Error,
    },
    /// A device of ours that another process reads, most likely a second daemon.
    #[error("another process is attached to the device {name}: is a daemon running already?")]
    Busy {
        /// The interface.
        name: String,
    },
    /// The driver refused a setting.
    #[error("cannot {operation} of the device {name}")]
    Configure {
        /// The interface.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// The driver's error.
        #[source]
        source: io::Error,
    },
    /// There is no TUN driver (module `tun`).
    #[error("cannot open /dev/net/tun")]
    Driver(#[source] io::Error),
    /// A TUN or TAP that another program made.
    #[error(
        "the interface {name} belongs to another program (it does not carry the alias \"identun\")"
    )]
    Foreign {
        /// The interface.
        name: String,
    },
    /// The kernel did not tell about, or did not take settings for, the interface.
    #[error("cannot {operation} of the interface {name}")]
    Link {
        /// The interface.
        name: String,
        /// What was tried.
        operation: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The name cannot be an interface's.
    #[error("{0:?} is not an interface name: 1 to 15 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// The interface exists and is something else.
    #[error("the interface {name} is {what}, not a TUN device")]
    NotTun {
        /// The interface.
        name: String,
        /// What it is.
        what: String,
    },
    /// The process may not do this.
    #[error("not allowed to attach to the device {name} (needs CAP_NET_ADMIN)")]
    Permission {
        /// The interface.
        name: String,
    },
}

/// A queue of a persistent TUN (IFF_TUN|IFF_NO_PI|IFF_VNET_HDR), non-blocking. Dropping it leaves the interface.
pub struct Tun {
    device: tun::Device,
    udp_offload: bool,
}

/// Whether a device has one queue, to which nobody else can attach, or may have several.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Queues {
    One,
    Several,
}

impl Queues {
    const fn other(self) -> Self {
        match self {
            Self::One => Self::Several,
            Self::Several => Self::One,
        }
    }
}

/// Bytes of the header that the driver puts before each packet.
const HEADER_LEN: c_int = 10;
const MAX_NAME: usize = libc::IFNAMSIZ - 1;

const TUNSETIFF: Opcode = opcode::write::<c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<c_int>(b'T', 203);
const TUNSETOFFLOAD: Opcode = opcode::write::<libc::c_uint>(b'T', 208);
const TUNGETIFF: Opcode = opcode::read::<libc::c_uint>(b'T', 210);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<c_int>(b'T', 216);
const TUNSETVNETLE: Opcode = opcode::write::<c_int>(b'T', 220);

/// `TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6` of linux/if_tun.h.
const OFFLOAD: usize = 0x01 | 0x02 | 0x04;
/// `TUN_F_USO4 | TUN_F_USO6`, Linux 6.2.
const UDP_OFFLOAD: usize = 0x20 | 0x40;

impl Tun {
    /// Creates the interface, or attaches to the one we left behind. It is left down, without addresses.
    ///
    /// # Errors
    /// Named: the interface is another program's or no TUN, another process is attached to it, a right is missing.
    pub fn open(settings: &TunSettings) -> Result<Self, TunError> {
        Self::open_first(settings, Queues::One)
    }

    /// As [`Self::open`], with `queues` queues, each a device of its own; the kernel keeps a flow on the queue that its
    /// packets were last written to.
    ///
    /// A device that stands from before and has one queue where several are asked for, or the other way round, is
    /// replaced by another: the kernel changes neither into the other. The caller's rules hold back what would be sent to
    /// it meanwhile.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_queues(settings: &TunSettings, queues: u8) -> Result<Vec<Self>, TunError> {
        if queues <= 1 {
            return Ok(vec![Self::open(settings)?]);
        }
        let mut all = vec![Self::open_first(settings, Queues::Several)?];
        for _ in 1..queues {
            let fd = attach(&settings.name, false, Queues::Several)?;
            all.push(Self::configure(settings, fd)?);
        }
        match link::queues(&settings.name) {
            Ok(Some(attached)) if attached > u32::from(queues) => Err(TunError::Busy {
                name: settings.name.clone(),
            }),
            _ => Ok(all),
        }
    }

    /// Takes over the queues that a predecessor held, with the packets that wait in them.
    ///
    /// # Errors
    /// As [`Self::open`], also when they are not this device's queues.
    pub fn adopt_queues(
        settings: &TunSettings,
        queues: Vec<OwnedFd>,
    ) -> Result<Vec<Self>, TunError> {
        check_name(&settings.name)?;
        for queue in &queues {
            if attached_to(queue).as_deref() != Some(settings.name.as_str()) {
                let (name, what) = (settings.name.clone(), String::from("another device"));
                return Err(TunError::NotTun { name, what });
            }
        }
        let adopt = |queue| Self::configure(settings, queue);
        queues.into_iter().map(adopt).collect()
    }

    fn open_first(settings: &TunSettings, queues: Queues) -> Result<Self, TunError> {
        let name = settings.name.as_str();
        check_name(name)?;
        let exists = find_ours(name)?;
        let fd = match attach(name, !exists, queues) {
            Err(TunError::NotTun { .. }) if exists && Self::remove_mode(name, queues.other())? => {
                attach(name, true, queues)?
            }
            other => other?,
        };
        Self::configure(settings, fd)
    }

    fn configure(settings: &TunSettings, fd: OwnedFd) -> Result<Self, TunError> {
        let name = settings.name.as_str();
        let configure = |operation| {
            move |source: Errno| TunError::Configure {
                name: name.to_owned(),
                operation,
                source: source.into(),
            }
        };
        set_pointed::<TUNSETVNETHDRSZ>(&fd, HEADER_LEN)
            .map_err(configure("set the virtio-net header"))?;
        set_pointed::<TUNSETVNETLE>(&fd, 1).map_err(configure("set the byte order"))?;
        // The mask belongs to the interface, not to the descriptor: whoever had it before may have left another.
        let udp_offload = set_integer::<TUNSETOFFLOAD>(&fd, OFFLOAD | UDP_OFFLOAD).is_ok();
        if !udp_offload {
            set_integer::<TUNSETOFFLOAD>(&fd, OFFLOAD).map_err(configure("set the offloads"))?;
        }
        let link = LinkSettings {
            mtu: settings.mtu,
            queue_length: settings.queue_length,
        };
        link::configure(name, link).map_err(link_error(name, "set alias, MTU and queue length"))?;
        let mut device = adopt(name, settings.mtu, fd)?;
        device.persist().map_err(|source| TunError::Adopt {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            device,
            udp_offload,
        })
    }

    /// Tells whether UDP super-packets (USO) were granted.
    pub const fn udp_offload(&self) -> bool {
        self.udp_offload
    }

    /// Removes the interface, for `down`. `Ok(false)` when there is none.
    ///
    /// # Errors
    /// As [`Self::open`]: only an interface of ours is removed, and only when no process is attached to it.
    pub fn remove(name: &str) -> Result<bool, TunError> {
        check_name(name)?;
        if !find_ours(name)? {
            return Ok(false);
        }
        match Self::remove_mode(name, Queues::One) {
            Err(TunError::NotTun { .. }) => Self::remove_mode(name, Queues::Several),
            other => other,
        }
    }

    /// Removes an interface of ours that has queues of this kind.
    fn remove_mode(name: &str, queues: Queues) -> Result<bool, TunError> {
        let fd = attach(name, false, queues)?;
        // The kernel lets any number attach to a device of several queues.
        if let (Queues::Several, Ok(Some(2..))) = (queues, link::queues(name)) {
            let name = name.to_owned();
            return Err(TunError::Busy { name });
        }
        set_integer::<TUNSETPERSIST>(&fd, 0).map_err(|source| TunError::Configure {
            name: name.to_owned(),
            operation: "end the persistence",
            source: source.into(),
        })?;
        Ok(true)
    }
}

impl PacketDevice for Tun {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.device.recv(buf)
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.device.send(frame).map(drop)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor belongs to `self.device`, which closes it only when it is dropped, and the borrow ends
        // before that: it holds on to `self`.
        Some(unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) })
    }
}

impl fmt::Debug for Tun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tun")
            .field("name", &self.device.tun_name().ok())
            .field("udp_offload", &self.udp_offload)
            .finish_non_exhaustive()
    }
}

/// Only what needs no quoting anywhere: rules and logs show it, and the driver takes `%` for a template.
fn check_name(name: &str) -> Result<(), TunError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let is_dots = matches!(name, "." | "..");
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(is_plain) || is_dots {
        return Err(TunError::Name(name.to_owned()));
    }
    Ok(())
}

/// Tells whether there is such an interface; one that is not ours is an error.
fn find_ours(name: &str) -> Result<bool, TunError> {
    match link::find(name).map_err(link_error(name, "look up the kind"))? {
        None => Ok(false),
        Some(Link { is_ours: true, .. }) => Ok(true),
        Some(link) if link.is_tun() => Err(TunError::Foreign {
            name: name.to_owned(),
        }),
        Some(link) => Err(TunError::NotTun {
            name: name.to_owned(),
            what: link.to_string(),
        }),
    }
}

fn link_error(name: &str, operation: &'static str) -> impl FnOnce(io::Error) -> TunError {
    move |source| TunError::Link {
        name: name.to_owned(),
        operation,
        source,
    }
}

/// Opens the driver and attaches to the interface, which `create` makes; it then must not exist.
fn attach(name: &str, create: bool, queues: Queues) -> Result<OwnedFd, TunError> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())
        .map_err(|error| TunError::Driver(error.into()))?;
    let exclusive = if create { libc::IFF_TUN_EXCL } else { 0 };
    let several = match queues {
        Queues::One => 0,
        Queues::Several => libc::IFF_MULTI_QUEUE,
    };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | exclusive | several;
    // SAFETY: `ifreq` is a plain C struct of integers and a union of such; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(MAX_NAME).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // The kernel's field is 16 bits wide and IFF_TUN_EXCL its highest: the bits matter, not the number.
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, which is what `request` is.
    let attached = unsafe { ioctl(&fd, Updater::<TUNSETIFF, _>::new(&mut request)) };
    let name = name.to_owned();
    match attached {
        Ok(()) => Ok(fd),
        Err(Errno::BUSY) => Err(TunError::Busy { name }),
        Err(Errno::INVAL) => Err(TunError::NotTun {
            name,
            what: String::from("a device of another mode"),
        }),
        Err(Errno::PERM) => Err(TunError::Permission { name }),
        Err(error) => Err(TunError::Configure {
            name,
            operation: "attach to the queue",
            source: error.into(),
        }),
    }
}

/// The interface to which a queue is attached; `None` when it is no queue, or of an interface that is gone.
fn attached_to(queue: &OwnedFd) -> Option<String> {
    // SAFETY: `ifreq` is a plain C struct of integers and a union of such; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `struct ifreq`, which is what `request` is; another driver does not know the number.
    unsafe { ioctl(queue, Updater::<TUNGETIFF, _>::new(&mut request)) }.ok()?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    String::from_utf8(name.map(|byte| byte.to_ne_bytes()[0]).collect()).ok()
}

fn adopt(name: &str, mtu: u16, fd: OwnedFd) -> Result<tun::Device, TunError> {
    let mut configuration = Configuration::default();
    configuration
        .tun_name(name)
        .mtu(mtu)
        .raw_fd(fd.into_raw_fd());
    tun::create(&configuration).map_err(|source| TunError::Adopt {
        name: name.to_owned(),
        source,
    })
}

/// An ioctl that reads an `int` behind a pointer.
fn set_pointed<const OPCODE: Opcode>(fd: &OwnedFd, value: c_int) -> Result<(), Errno> {
    // SAFETY: each opcode used with this function takes a pointer to an `int` that the driver only reads.
    unsafe { ioctl(fd, Setter::<OPCODE, c_int>::new(value)) }
}

/// An ioctl that takes an integer as its argument.
fn set_integer<const OPCODE: Opcode>(fd: &OwnedFd, value: usize) -> Result<(), Errno> {
    // SAFETY: each opcode used with this function takes its argument by value and no pointer.
    unsafe { ioctl(fd, IntegerSetter::<OPCODE>::new_usize(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_rules_or_the_driver_would_misread_are_refused() {
        for name in [
            "",
            "a b",
            "tun%d",
            "a/b",
            "a:b",
            ".",
            "..",
            "sixteen-letters-",
            "a\"b",
            "a\nb",
            "é",
        ] {
            assert!(
                matches!(check_name(name), Err(TunError::Name(_))),
                "{name:?}"
            );
        }
        for name in ["identun0", "a", "fifteen-letters", "x.1_2-3"] {
            check_name(name).unwrap();
        }
    }
}
