//! The device: where captured packets come from and delivered packets go. The TUN, its memory twin, and a tap around
//! either.

mod link;
pub mod memory;
pub mod tap;
pub mod tun;

use std::{io, os::fd::BorrowedFd};

/// Bytes of the largest frame: virtio-net header (10) and the largest IP packet.
pub const MAX_FRAME: usize = 10 + 65_535;

/// Frames in and out, one a call: a 10-byte virtio-net header and an IP packet of up to 64 KiB.
pub trait PacketDevice {
    /// Reads one frame into `buf` (at least [`MAX_FRAME`] bytes) and returns its length.
    ///
    /// # Errors
    /// `WouldBlock` when there is none; another error when the device is gone.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes one frame.
    ///
    /// # Errors
    /// `WouldBlock` when the device takes none at this moment; `InvalidInput` (EINVAL) for a frame that it does not
    /// take as it is, an offload among them; others when it is down or gone.
    fn write(&mut self, frame: &[u8]) -> io::Result<()>;

    /// What to wait for: readable when there is a frame, writable when one is taken.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}
