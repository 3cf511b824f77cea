//! Netlink over a blocking socket, without a runtime: dumps, and requests that the kernel acknowledges.

use std::{io, io::Read, time::Duration};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel puts at most 32 KiB into one datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers a dump while it is asked; a socket that stays silent is broken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks for a dump and hands every message to `take` until it says `false`. A message that the codec does not
/// understand is passed over.
pub(in crate::host) fn dump<T>(
    protocol: i32,
    request: T,
    mut take: impl FnMut(T) -> bool,
) -> io::Result<()>
where
    T: NetlinkSerializable + NetlinkDeserializable,
{
    let mut socket = open(protocol)?;
    send(&socket, request, NLM_F_REQUEST | NLM_F_DUMP, 0)?;
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let length = read(&mut socket, &mut buffer)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while let Some((message, after)) = split(rest) {
            rest = after;
            match NetlinkMessage::<T>::deserialize(message).map(|message| message.payload) {
                Ok(NetlinkPayload::Done(done)) if done.code < 0 => {
                    return Err(io::Error::from_raw_os_error(-done.code));
                }
                Ok(NetlinkPayload::Done(_)) => return Ok(()),
                Ok(NetlinkPayload::Error(error)) => return Err(error.to_io()),
                Ok(NetlinkPayload::InnerMessage(inner)) => {
                    if !take(inner) {
                        return Ok(());
                    }
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}

/// A socket for requests that the kernel acknowledges one by one.
pub(in crate::host) struct Requests {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Requests {
    pub(in crate::host) fn new(protocol: i32) -> io::Result<Self> {
        Ok(Self {
            socket: open(protocol)?,
            buffer: vec![0; DATAGRAM],
            sequence: 0,
        })
    }

    /// Asks for one change and waits for the kernel's yes or no.
    pub(in crate::host) fn act<T>(&mut self, request: T) -> io::Result<()>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        send(
            &self.socket,
            request,
            NLM_F_REQUEST | NLM_F_ACK,
            self.sequence,
        )?;
        loop {
            let length = read(&mut self.socket, &mut self.buffer)?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((message, after)) = split(rest) {
                rest = after;
                if let Ok(message) = NetlinkMessage::<T>::deserialize(message)
                    && message.header.sequence_number == self.sequence
                    && let NetlinkPayload::Error(answer) = message.payload
                {
                    return match answer.code {
                        None => Ok(()),
                        Some(_) => Err(answer.to_io()),
                    };
                }
            }
        }
    }
}

fn open(protocol: i32) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn send<T: NetlinkSerializable>(
    socket: &Socket,
    request: T,
    flags: u16,
    sequence: u32,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    // an unconnected netlink socket sends to the kernel
    socket.send(&buffer).map(drop)
}

fn read(socket: &mut Socket, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match socket.read(buffer) {
            // with a time limit set, a signal ends the call
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            length => return length,
        }
    }
}

/// The first message of a datagram and what follows it; messages begin at multiples of four bytes.
pub(in crate::host) fn split(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    /// Length of `nlmsghdr`, whose first field is the length of the message with it.
    const HEADER: usize = 16;
    let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
    let message = datagram.get(..length).filter(|_| length >= HEADER)?;
    let after = datagram
        .get(length.next_multiple_of(4)..)
        .unwrap_or_default();
    Some((message, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_at_their_length_and_alignment() {
        let mut datagram = vec![0; 20];
        datagram[..4].copy_from_slice(&17_u32.to_ne_bytes());
        datagram.extend(16_u32.to_ne_bytes());
        datagram.extend([7; 12]);
        let (first, rest) = split(&datagram).unwrap();
        assert_eq!(first.len(), 17);
        let (second, rest) = split(rest).unwrap();
        assert_eq!((second.len(), rest.len()), (16, 0));
    }

    #[test]
    fn a_length_that_cannot_be_is_the_end() {
        for length in [0_u32, 15, 21, u32::MAX] {
            let mut datagram = vec![0; 20];
            datagram[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(split(&datagram), None, "{length}");
        }
        assert_eq!(split(&[1, 2, 3]), None);
    }
}
