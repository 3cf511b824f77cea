//! The table as the property of a netlink socket: nobody else can change or flush it while the socket is open
//! (NFT_TABLE_F_OWNER, Linux 5.12), and it stays when the socket closes (NFT_TABLE_F_PERSIST, Linux 6.9). From then on
//! it is an orphan, which anybody with the rights may remove and the next owner takes over.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, recv,
        sockopt::{
            set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, socket_domain,
            socket_protocol,
        },
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::{netlink, nftables::encode::Finished};

/// NFT_TABLE_F_OWNER | NFT_TABLE_F_PERSIST
pub(in crate::host) const OWNED: u32 = 2 | 4;
/// NETLINK_NETFILTER
const NETFILTER: i32 = 12;
/// Of the socket, bytes: the kernel answers once for each message that it refuses.
const RECEIVE_BUFFER: usize = 4 << 20;
const DATAGRAM: usize = 64 * 1024;
/// NLMSG_ERROR
const ERROR: u16 = 2;
/// What the kernel needs of a send buffer besides the message.
const SLACK: usize = 64 * 1024;

/// The socket to which the table belongs.
#[derive(Debug)]
pub(in crate::host) struct Owner {
    socket: Socket,
}

/// The kernel's no to a transaction, of which nothing took effect then.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused {about}")]
pub(in crate::host) struct Refusal {
    /// The first thing that was refused.
    pub(in crate::host) about: String,
    /// Of the table itself.
    pub(in crate::host) is_table: bool,
    /// The kernel's reason.
    #[source]
    pub(in crate::host) source: io::Error,
}

impl Owner {
    pub(in crate::host) fn open() -> io::Result<Self> {
        let domain = Domain::from(libc::AF_NETLINK);
        let protocol = Some(Protocol::from(NETFILTER));
        let socket = Socket::new(domain, Type::RAW.cloexec(), protocol)?;
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER)?;
        Ok(Self { socket })
    }

    /// The socket of a predecessor, to which the table belongs already.
    pub(in crate::host) fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let is_netlink = socket_domain(&socket)? == AddressFamily::NETLINK
            && socket_protocol(&socket)?
                .is_some_and(|protocol| i32::try_from(protocol.as_raw().get()) == Ok(NETFILTER));
        if !is_netlink {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let socket = Socket::from(socket);
        // answers to a predecessor's last words
        let mut buffer = [0; 1];
        while recv(&socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT).is_ok() {}
        Ok(Self { socket })
    }

    /// Sends a transaction: all of it takes effect, or nothing. The kernel works on it before the call returns, so that
    /// its answers are there then.
    pub(in crate::host) fn apply(&self, batch: &Finished) -> Result<(), Refusal> {
        let failed = |source| Refusal {
            about: "the transaction".to_owned(),
            is_table: false,
            source,
        };
        // one datagram, whatever its size
        set_socket_send_buffer_size_force(&self.socket, batch.bytes.len().saturating_add(SLACK))
            .map_err(|error| failed(error.into()))?;
        self.socket.send(&batch.bytes).map_err(failed)?;
        let mut answered = false;
        let mut refusal = None;
        let mut buffer = vec![0_u8; DATAGRAM];
        loop {
            let mut rest = match recv(&self.socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((_, length)) => buffer.get(..length).unwrap_or_default(),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(failed(error.into())),
            };
            while let Some((message, after)) = netlink::split(rest) {
                rest = after;
                match answer(message) {
                    Some((_, 0)) => answered = true,
                    Some((sequence, code)) => {
                        refusal.get_or_insert_with(|| Refusal {
                            about: batch.about(sequence).to_owned(),
                            is_table: sequence == 1,
                            source: io::Error::from_raw_os_error(code),
                        });
                    }
                    None => {}
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if answered => Ok(()),
            None => Err(failed(io::Error::other("no answer"))),
        }
    }
}

impl AsFd for Owner {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sequence number and error of an answer: `nlmsghdr` (length, type, flags, sequence, port), then a negative number.
fn answer(message: &[u8]) -> Option<(u32, i32)> {
    let field = |from: usize| message.get(from..)?.first_chunk::<4>().copied();
    let kind = u16::from_ne_bytes(*message.get(4..)?.first_chunk()?);
    let sequence = u32::from_ne_bytes(field(8)?);
    let code = i32::from_ne_bytes(field(16)?);
    (kind == ERROR).then_some((sequence, code.saturating_neg()))
}
