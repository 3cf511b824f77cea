//! A tap around any device: writes what passes to a pcap file, and loses frames on purpose.

use std::{
    io::{self, Write},
    num::NonZeroU64,
    os::fd::BorrowedFd,
    time::{SystemTime, UNIX_EPOCH},
};

use crate::device::PacketDevice;

/// Bytes of the virtio-net header, which is not part of the packet in the file.
const VIRTIO_HEADER: usize = 10;
/// LINKTYPE_RAW: each packet begins with its IPv4 or IPv6 header.
const LINKTYPE_RAW: u32 = 101;
const SNAP_LEN: u32 = 65_535;

/// Frames to lose: every n-th, counted from the first; `None` for none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Of the frames read from the device.
    pub drop_read: Option<NonZeroU64>,
    /// Of the frames written to the device.
    pub drop_write: Option<NonZeroU64>,
}

/// A device, its capture and its faults.
#[derive(Debug)]
pub struct Tap<D, W> {
    device: D,
    capture: Option<Capture<W>>,
    faults: Faults,
    read: u64,
    written: u64,
}

/// A bounded pcap file (LINKTYPE_RAW, microseconds, little endian). Super-packets are written whole.
#[derive(Debug)]
pub struct Capture<W> {
    file: W,
    left: u64,
}

impl<D: PacketDevice, W: Write> Tap<D, W> {
    /// Wraps `device`.
    pub const fn new(device: D, capture: Option<Capture<W>>, faults: Faults) -> Self {
        Self {
            device,
            capture,
            faults,
            read: 0,
            written: 0,
        }
    }

    /// A capture must not disturb what it looks at: one that fails or is full ends.
    fn record(&mut self, frame: &[u8]) {
        if let Some(capture) = &mut self.capture
            && capture.record(frame).is_err()
        {
            self.capture = None;
        }
    }
}

impl<D: PacketDevice, W: Write> PacketDevice for Tap<D, W> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = self.device.read(buf)?;
            self.read += 1;
            if !is_due(self.faults.drop_read, self.read) {
                self.record(buf.get(..length).unwrap_or_default());
                return Ok(length);
            }
        }
    }

    fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        if is_due(self.faults.drop_write, self.written + 1) {
            self.written += 1;
            return Ok(());
        }
        self.device.write(frame)?;
        self.written += 1;
        self.record(frame);
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.device.fd()
    }
}

impl<W: Write> Capture<W> {
    /// Begins a capture that ends before it is larger than `limit` bytes.
    ///
    /// # Errors
    /// When the file header cannot be written.
    pub fn new(mut file: W, limit: u64) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend_from_slice(&0xa1b2_c3d4_u32.to_le_bytes());
        header.extend_from_slice(&[2, 0, 4, 0]);
        header.extend_from_slice(&[0; 8]);
        header.extend_from_slice(&SNAP_LEN.to_le_bytes());
        header.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
        file.write_all(&header)?;
        Ok(Self {
            file,
            left: limit.saturating_sub(24),
        })
    }

    fn record(&mut self, frame: &[u8]) -> io::Result<()> {
        let packet = frame.get(VIRTIO_HEADER..).unwrap_or_default();
        let length = u32::try_from(packet.len()).map_err(io::Error::other)?;
        let left = self.left.checked_sub(16 + u64::from(length));
        self.left = left.ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        let (seconds, micros) = timestamp();
        let mut record = Vec::with_capacity(16 + packet.len());
        for word in [seconds, micros, length, length] {
            record.extend_from_slice(&word.to_le_bytes());
        }
        record.extend_from_slice(packet);
        self.file.write_all(&record)?;
        self.file.flush()
    }
}

fn is_due(every: Option<NonZeroU64>, count: u64) -> bool {
    every.is_some_and(|every| count.is_multiple_of(every.get()))
}

/// Seconds, of which a pcap file keeps 32 bits, and microseconds.
#[expect(
    clippy::disallowed_methods,
    reason = "a capture says when a packet passed; nothing depends on it"
)]
fn timestamp() -> (u32, u32) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (
        u32::try_from(now.as_secs()).unwrap_or(u32::MAX),
        now.subsec_micros(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MAX_FRAME, memory::MemoryDevice};

    fn frame(packet: &[u8]) -> Vec<u8> {
        [&[0; VIRTIO_HEADER], packet].concat()
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn both_directions_are_in_the_file_without_their_virtio_headers() {
        let (near, mut far) = MemoryDevice::pair().unwrap();
        let mut file = Vec::new();
        let capture = Capture::new(&mut file, 1_000).unwrap();
        let mut tap = Tap::new(near, Some(capture), Faults::default());
        tap.write(&frame(b"out")).unwrap();
        far.write(&frame(b"back")).unwrap();
        tap.read(&mut vec![0; MAX_FRAME]).unwrap();
        drop(tap);
        assert_eq!(
            (word(&file, 0), word(&file, 20)),
            (0xa1b2_c3d4, LINKTYPE_RAW)
        );
        assert_eq!((word(&file, 24 + 8), &file[40..43]), (3, &b"out"[..]));
        assert_eq!((word(&file, 43 + 12), &file[59..]), (4, &b"back"[..]));
    }

    #[test]
    fn a_full_capture_ends_and_packets_still_pass() {
        let (near, mut far) = MemoryDevice::pair().unwrap();
        let mut file = Vec::new();
        let capture = Capture::new(&mut file, 24 + 16 + 5).unwrap();
        let mut tap = Tap::new(near, Some(capture), Faults::default());
        for packet in [b"fits.", b"over.", b"over."] {
            tap.write(&frame(packet)).unwrap();
        }
        drop(tap);
        assert_eq!(file.len(), 24 + 16 + 5);
        let mut buf = vec![0; MAX_FRAME];
        assert_eq!((0..3).filter(|_| far.read(&mut buf).is_ok()).count(), 3);
    }

    #[test]
    fn every_third_frame_is_lost() {
        let (near, mut far) = MemoryDevice::pair().unwrap();
        let faults = Faults {
            drop_read: NonZeroU64::new(3),
            drop_write: NonZeroU64::new(3),
        };
        let mut tap = Tap::new(near, None::<Capture<Vec<u8>>>, faults);
        let mut buf = vec![0; MAX_FRAME];
        for number in 1..=6 {
            tap.write(&frame(&[number])).unwrap();
            far.write(&frame(&[number])).unwrap();
        }
        let mut left = Vec::new();
        while let Ok(length) = far.read(&mut buf) {
            left.push(buf[length - 1]);
        }
        assert_eq!(left, [1, 2, 4, 5]);
        let mut left = Vec::new();
        while let Ok(length) = tap.read(&mut buf) {
            left.push(buf[length - 1]);
        }
        assert_eq!(left, [1, 2, 4, 5]);
    }
}
