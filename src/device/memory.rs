//! The TUN's memory twin: a pair of devices, where each reads what the other writes.
//!
//! A pair of datagram sockets keeps the frames, bounded in bytes by the kernel's socket buffer, and its descriptors
//! become readable and writable as a TUN's do. No rights are needed, and the loop is the same.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixDatagram,
    },
};

use crate::device::{MAX_FRAME, PacketDevice};

/// One end of the pair.
#[derive(Debug)]
pub struct MemoryDevice(UnixDatagram);

impl MemoryDevice {
    /// Two ends, both non-blocking.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (left, right) = UnixDatagram::pair()?;
        left.set_nonblocking(true)?;
        right.set_nonblocking(true)?;
        Ok((Self(left), Self(right)))
    }
}

impl PacketDevice for MemoryDevice {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buf)
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if frame.is_empty() || frame.len() > MAX_FRAME {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.send(frame).map(drop)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_keep_their_bounds_and_order_both_ways() {
        let (mut left, mut right) = MemoryDevice::pair().unwrap();
        let mut buf = vec![0; MAX_FRAME];
        left.write(&[1; 20]).unwrap();
        left.write(&vec![2; MAX_FRAME]).unwrap();
        right.write(&[3]).unwrap();
        assert_eq!(right.read(&mut buf).unwrap(), 20);
        assert_eq!(right.read(&mut buf).unwrap(), MAX_FRAME);
        assert!(buf.iter().all(|&byte| byte == 2));
        assert_eq!(left.read(&mut buf).unwrap(), 1);
    }

    #[test]
    fn an_empty_device_would_block() {
        let (mut left, _right) = MemoryDevice::pair().unwrap();
        assert_eq!(
            left.read(&mut [0; 10]).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
    }

    #[test]
    fn a_full_device_would_block_and_takes_more_after_a_read() {
        let (mut left, mut right) = MemoryDevice::pair().unwrap();
        let frame = vec![9; MAX_FRAME];
        let full = (0..1_000).find_map(|_| left.write(&frame).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut buf = vec![0; MAX_FRAME];
        while right.read(&mut buf).is_ok() {}
        left.write(&frame).unwrap();
    }

    #[test]
    fn nothing_larger_than_a_frame_and_nothing_empty_is_taken() {
        let (mut left, _right) = MemoryDevice::pair().unwrap();
        for frame in [vec![], vec![0; MAX_FRAME + 1]] {
            assert_eq!(
                left.write(&frame).unwrap_err().kind(),
                io::ErrorKind::InvalidInput
            );
        }
    }
}
