//! What the kernel's connection tracking knows of flows outside tunnels: their beginnings as they happen, and all there
//! are at one moment. The daemon never sees these packets.

use std::{
    fs, io,
    net::IpAddr,
    os::fd::AsFd,
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
        let socket = listen().map_err(|source| HostError::Netlink { operation, source })?;
        let told = fs::read_to_string(EVENTS).is_ok_and(|text| text.trim() != "0");
        if !told {
            let source = io::Error::other("net.netfilter.nf_conntrack_events is 0 or not there");
            return Err(HostError::Netlink { operation, source });
        }
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
            marks: settings.into(),
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

fn listen() -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let protocol = Protocol::from(libc::NETLINK_NETFILTER);
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    // Without the right to exceed the system's bound the socket holds less, and losses are told.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    bind(&socket, &SocketAddrNetlink::new(0, GROUP_NEW))?;
    Ok(socket)
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
