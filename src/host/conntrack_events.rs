//! What the kernel's connection tracking knows of flows outside tunnels: their beginnings as they happen, and all there
//! are at one moment. The daemon never sees these packets.
#![expect(unsafe_code, reason = "a socket filter is set with setsockopt")]

use std::{
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd as _},
    time::{Duration, Instant},
};

use netlink_packet_core::{DefaultNla, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, ProtoInfo, ProtoInfoTCP, Tuple},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{RecvFlags, bind, netlink::SocketAddrNetlink, recv},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    host::{
        HostError, HostSettings,
        conntrack::{CTA_MARK_MASK, five_tuple},
        netlink,
    },
    wire::FiveTuple,
};

/// The group that is told of new entries, as a bit (NFNLGRP_CONNTRACK_NEW, linux/netfilter/nfnetlink_compat.h).
const GROUP_NEW: u32 = 1;
/// Of the socket, bytes: some ten thousand beginnings while the reader is busy.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The largest datagram of events.
const DATAGRAM: usize = 64 * 1024;
/// Conntrack's states of a TCP connection that is over (linux/netfilter/nf_conntrack_tcp.h: TIME_WAIT, CLOSE).
const OVER: [u8; 2] = [7, 8];
/// Bytes of a netlink and an nfnetlink header (linux/netlink.h, linux/netfilter/nfnetlink.h).
const HEADERS: u32 = 16 + 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: u32 = 4;
/// The attribute with an entry's mark (linux/netfilter/nfnetlink_conntrack.h).
const CTA_MARK: u32 = 8;
/// The load that gives the offset of attribute X from offset A on, or 0: SKF_AD_OFF + SKF_AD_NLATTR (linux/filter.h).
const FIND_ATTRIBUTE: u32 = 0_u32.wrapping_sub(0x1000) + 12;
/// Whether the kernel tells at all: 0 no, 1 yes, 2 while somebody listens.
const EVENTS: &str = "/proc/sys/net/netfilter/nf_conntrack_events";

/// A flow outside tunnels.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Connection {
    /// The first packet, as its sender made it.
    pub original: FiveTuple,
    /// Who answers: the destination, or another one where the host translates addresses.
    pub answers: (IpAddr, u16),
    /// Both ends of a TCP connection have said goodbye.
    pub over: bool,
}

/// What a wait for beginnings brought.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Heard {
    /// Some, or none.
    All,
    /// The kernel had more to tell than the socket could hold: some are lost.
    SomeLost,
}

/// Beginnings of flows, told by the kernel.
pub struct NewConnections {
    socket: Socket,
    buffer: Vec<u8>,
    marks: Marks,
}

#[derive(Clone, Copy)]
struct Marks {
    mask: u32,
    tunnel: u32,
}

impl From<&HostSettings> for Marks {
    fn from(settings: &HostSettings) -> Self {
        Self {
            mask: settings.mark_mask,
            tunnel: settings.tunnel_mark,
        }
    }
}

impl NewConnections {
    /// Begins to listen. Needs CAP_NET_ADMIN.
    ///
    /// # Errors
    /// Without the right, or where the kernel tells nothing: built without events, or told by
    /// `net.netfilter.nf_conntrack_events` to be silent.
    pub fn subscribe(settings: &HostSettings) -> Result<Self, HostError> {
        let operation = "listen to conntrack events";
        let marks = Marks::from(settings);
        let socket = listen(marks).map_err(|source| HostError::Netlink { operation, source })?;
        let told = fs::read_to_string(EVENTS).is_ok_and(|text| text.trim() != "0");
        if !told {
            let source = io::Error::other("net.netfilter.nf_conntrack_events is 0 or not there");
            return Err(HostError::Netlink { operation, source });
        }
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
            marks,
        })
    }

    /// Hands beginnings to `take` as they come, until `patience` is over or some were lost.
    ///
    /// # Errors
    /// When the socket is broken.
    #[expect(
        clippy::disallowed_methods,
        reason = "a wait with an end needs the clock"
    )]
    pub fn wait(
        &mut self,
        patience: Duration,
        mut take: impl FnMut(Connection),
    ) -> Result<Heard, HostError> {
        let begin = Instant::now();
        let broken = |error: rustix::io::Errno| HostError::Netlink {
            operation: "read conntrack events",
            source: error.into(),
        };
        loop {
            let left = patience.saturating_sub(begin.elapsed());
            let mut readable = [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)];
            match poll(&mut readable, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => return Ok(Heard::All),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
            match recv(&self.socket, &mut *self.buffer, RecvFlags::DONTWAIT) {
                Ok((length, _)) => {
                    let datagram = self.buffer.get(..length).unwrap_or_default();
                    connections(datagram, self.marks, &mut take);
                }
                Err(rustix::io::Errno::NOBUFS) => return Ok(Heard::SomeLost),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

/// Hands every flow outside tunnels that conntrack holds to `take`, until it says `false`; one may come twice when the
/// table grows meanwhile. Needs CAP_NET_ADMIN.
///
/// # Errors
/// When the kernel refuses.
pub fn connections_outside_tunnels(
    settings: &HostSettings,
    mut take: impl FnMut(Connection) -> bool,
) -> Result<(), HostError> {
    let marks = Marks::from(settings);
    let request = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        ConntrackMessage::Get(vec![
            ConntrackAttribute::CtaMark(0),
            ConntrackAttribute::Other(DefaultNla::new(
                CTA_MARK_MASK,
                marks.mask.to_be_bytes().to_vec(),
            )),
        ]),
    );
    let take = |message: NetfilterMessage| connection(&message, marks).is_none_or(&mut take);
    let operation = "read the conntrack entries";
    netlink::dump(libc::NETLINK_NETFILTER, request, take).map_err(|source| {
        if source.raw_os_error() == Some(libc::EPERM) {
            HostError::Permission { operation }
        } else {
            HostError::Netlink { operation, source }
        }
    })
}

fn listen(marks: Marks) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Protocol::from(libc::NETLINK_NETFILTER);
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // Without the right to exceed the system's bound the socket holds less, and losses are told.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    ignore_tunnels(&socket, marks)?;
    bind(&socket, &SocketAddrNetlink::new(0, GROUP_NEW))?;
    Ok(socket)
}

/// Lets the kernel keep the entries of tunnels to itself: each new connection in a tunnel makes one, and waking for it only
/// to find its mark costs more than all the rest of the connection does in the daemon.
fn ignore_tunnels(socket: &Socket, marks: Marks) -> io::Result<()> {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_AND, BPF_IMM, BPF_IND, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_LDX,
        BPF_MISC, BPF_RET, BPF_TAX, BPF_W,
    };
    const KEEP: u32 = u32::MAX;
    let step = |code: u32, jump_true, jump_false, k| libc::sock_filter {
        // every code of classic BPF is below 256
        code: u16::try_from(code).unwrap_or(0),
        jt: jump_true,
        jf: jump_false,
        k,
    };
    // Finds the attribute CTA_MARK behind the headers of netlink and nfnetlink; an entry without a mark has none.
    let mut program = [
        step(BPF_LD | BPF_IMM, 0, 0, HEADERS),
        step(BPF_LDX | BPF_IMM, 0, 0, CTA_MARK),
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0, FIND_ATTRIBUTE),
        step(BPF_JMP | BPF_JEQ | BPF_K, 4, 0, 0),
        step(BPF_MISC | BPF_TAX, 0, 0, 0),
        step(BPF_LD | BPF_W | BPF_IND, 0, 0, ATTRIBUTE_HEADER),
        step(BPF_ALU | BPF_AND | BPF_K, 0, 0, marks.mask),
        step(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, marks.tunnel),
        step(BPF_RET | BPF_K, 0, 0, KEEP),
        step(BPF_RET | BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: SO_ATTACH_FILTER reads one `struct sock_fprog` and the `len` instructions that it points at; both live
    // until the call returns, and the kernel keeps a copy.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The flows of one datagram of events.
fn connections(mut datagram: &[u8], marks: Marks, take: &mut impl FnMut(Connection)) {
    while let Some((message, rest)) = netlink::split(datagram) {
        datagram = rest;
        let decoded = NetlinkMessage::<NetfilterMessage>::deserialize(message);
        if let Ok(NetlinkPayload::InnerMessage(inner)) = decoded.map(|message| message.payload)
            && let Some(connection) = connection(&inner, marks)
        {
            take(connection);
        }
    }
}

/// The entry that a message tells of, unless it is a tunnel's.
fn connection(message: &NetfilterMessage, marks: Marks) -> Option<Connection> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else {
        return None;
    };
    let (mut mark, mut original, mut reply) = (0, None, None);
    for attribute in attributes {
        if let ConntrackAttribute::CtaMark(value) = attribute {
            mark = *value;
        } else if let ConntrackAttribute::CtaTupleOrig(tuple) = attribute {
            original = five_tuple(tuple);
        } else if let ConntrackAttribute::CtaTupleReply(tuple) = attribute {
            reply = answers(tuple);
        }
    }
    let original = original.filter(|_| mark & marks.mask != marks.tunnel)?;
    Some(Connection {
        original,
        answers: reply.unwrap_or((original.destination, original.destination_port)),
        over: is_over(attributes),
    })
}

/// Conntrack takes the TCP connection for over.
fn is_over(attributes: &[ConntrackAttribute]) -> bool {
    for attribute in attributes {
        if let ConntrackAttribute::CtaProtoInfo(parts) = attribute {
            for part in parts {
                if let ProtoInfo::TCP(parts) = part {
                    return parts.iter().any(
                        |part| matches!(part, ProtoInfoTCP::State(state) if OVER.contains(state)),
                    );
                }
            }
        }
    }
    false
}

fn answers(reply: &[Tuple]) -> Option<(IpAddr, u16)> {
    five_tuple(reply).map(|reply| (reply.source, reply.source_port))
}
