//! Writes frames to the device, and takes from them what it refuses.

use std::io;

use crate::{
    device::PacketDevice,
    io::counts::{Counters, count},
    wire::segment::split,
};

/// What became of a frame.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Written {
    /// The device has it, or refused it for good; then it is counted.
    Done,
    /// The device refused its offloads, which is counted. These are its packets, without any.
    Split(Vec<Vec<u8>>),
    /// The device takes none at this moment.
    Waits,
}

/// Writes one frame.
pub(super) fn write_frame(
    device: &mut impl PacketDevice,
    frame: &[u8],
    counters: &Counters,
) -> Written {
    loop {
        match device.write(frame) {
            Ok(()) => return Written::Done,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Written::Waits,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let packets = if error.kind() == io::ErrorKind::InvalidInput {
                    split(frame)
                } else {
                    Vec::new()
                };
                if packets.is_empty() {
                    count(&counters.device_refused);
                    return Written::Done;
                }
                count(&counters.offload_refused);
                return Written::Split(packets);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{MAX_FRAME, memory::MemoryDevice},
        wire::{sample, segment::Joiner},
    };

    #[test]
    fn a_frame_that_the_device_refuses_is_counted_and_a_full_device_is_waited_for() {
        let (mut near, _far) = MemoryDevice::pair().unwrap();
        let counters = Counters::default();
        let mut write = |frame: &[u8]| write_frame(&mut near, frame, &counters);
        assert_eq!(write(&vec![0; MAX_FRAME + 1]), Written::Done);
        assert_eq!(counters.read().device_refused, 1);
        let frame = vec![0; MAX_FRAME];
        assert!((0..1_000).any(|_| write(&frame) == Written::Waits));
        assert_eq!(counters.read().device_refused, 1);
    }

    /// A device that takes no offloads, as a kernel without them.
    struct Plain(Vec<Vec<u8>>);

    impl PacketDevice for Plain {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }

        fn write(&mut self, frame: &[u8]) -> io::Result<()> {
            if frame.iter().take(10).any(|byte| *byte != 0) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.0.push(frame.to_vec());
            Ok(())
        }

        fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn nothing_of_a_frame_whose_offloads_are_refused_is_lost() {
        let packets: Vec<_> = (0..3)
            .map(|index| sample::udp(false, [5, 6], &[index; 100]))
            .collect();
        let mut joiner = Joiner::new(true);
        for packet in &packets {
            joiner.push(packet, false);
        }
        joiner.flush();
        let mut frame = Vec::new();
        assert!(joiner.poll(&mut frame));
        let (mut device, counters) = (Plain(Vec::new()), Counters::default());
        let Written::Split(split) = write_frame(&mut device, &frame, &counters) else {
            panic!("the frame was not split");
        };
        for frame in &split {
            assert_eq!(write_frame(&mut device, frame, &counters), Written::Done);
        }
        let payload = |packet: &[u8]| packet[28..].to_vec();
        let written: Vec<_> = device.0.iter().map(|frame| payload(&frame[10..])).collect();
        assert_eq!(
            written,
            packets
                .iter()
                .map(|packet| payload(packet))
                .collect::<Vec<_>>()
        );
        let counts = counters.read();
        assert_eq!((counts.offload_refused, counts.device_refused), (1, 0));
    }
}
