//! Hears of what others take away of that which we installed, as the kernel tells it: tables and chains of nf_tables,
//! routing rules, routes and the TUN; and of addresses that come and go. Other things that only add are not heard, our
//! own repairs among them.

use std::{io, os::fd::AsFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{RecvFlags, bind, netlink::SocketAddrNetlink, recv},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::host::{HostError, HostSettings, netlink, routes};

/// NFNLGRP_NFTABLES as a bit (linux/netfilter/nfnetlink.h).
const NFTABLES: u32 = 1 << 6;
/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE and _IPV6_RULE as bits
/// (linux/rtnetlink.h).
const ROUTING: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;
/// Of each socket, bytes. What does not fit counts as a change.
const RECEIVE_BUFFER: usize = 1 << 20;
const DATAGRAM: usize = 64 * 1024;
/// nf_tables' messages that take a table or a chain away: NFNL_SUBSYS_NFTABLES with NFT_MSG_DELTABLE, _DELCHAIN.
const GONE: [u16; 2] = [10 << 8 | 2, 10 << 8 | 5];
/// Bytes of a netlink and an nfnetlink header, behind which the attributes begin.
const HEADERS: usize = 16 + 4;

/// Listens for what is taken away.
#[derive(Debug)]
pub struct Changes {
    nftables: Socket,
    routing: Socket,
    settings: HostSettings,
    buffer: Vec<u8>,
}

impl Changes {
    /// Begins to listen. Needs CAP_NET_ADMIN.
    pub fn subscribe(settings: &HostSettings) -> Result<Self, HostError> {
        let listen = |protocol, groups| {
            listen(protocol, groups).map_err(|source| HostError::Netlink {
                operation: "listen for changes of rules and routes",
                source,
            })
        };
        Ok(Self {
            nftables: listen(libc::NETLINK_NETFILTER, NFTABLES)?,
            routing: listen(libc::NETLINK_ROUTE, ROUTING)?,
            settings: settings.clone(),
            buffer: vec![0; DATAGRAM],
        })
    }

    /// Waits until something of ours was, or may have been, taken away.
    pub fn wait(&mut self) -> Result<(), HostError> {
        self.heard().map_err(|source| HostError::Netlink {
            operation: "hear of changes of rules and routes",
            source,
        })
    }

    fn heard(&mut self) -> io::Result<()> {
        loop {
            let ready = |socket| PollFd::from_borrowed_fd(socket, PollFlags::IN);
            let mut both = [ready(self.nftables.as_fd()), ready(self.routing.as_fd())];
            match poll(&mut both, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let (mut concerned, settings) = (false, &self.settings);
            concerned |= drain(&self.nftables, &mut self.buffer, |message| {
                is_table_gone(message, &settings.table)
            })?;
            concerned |= drain(&self.routing, &mut self.buffer, |message| {
                is_route_gone(message, settings)
            })?;
            if concerned {
                return Ok(());
            }
        }
    }
}

fn listen(protocol: i32, groups: u32) -> io::Result<Socket> {
    let domain = Domain::from(libc::AF_NETLINK);
    let socket = Socket::new(domain, Type::RAW.cloexec(), Some(Protocol::from(protocol)))?;
    // without the right to exceed the system's bound the socket holds less, and losses are told
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    bind(&socket, &SocketAddrNetlink::new(0, groups))?;
    Ok(socket)
}

/// Reads what is there; tells whether some of it concerns us, or some of it was lost.
fn drain(
    socket: &Socket,
    buffer: &mut [u8],
    mut concerns: impl FnMut(&[u8]) -> bool,
) -> io::Result<bool> {
    let mut concerned = false;
    loop {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((_, length)) => {
                let mut rest = buffer.get(..length).unwrap_or_default();
                while let Some((message, after)) = netlink::split(rest) {
                    rest = after;
                    concerned |= concerns(message);
                }
            }
            Err(Errno::NOBUFS) => concerned = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(concerned),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A table or chain of this table is gone. The first attribute names the table in both messages.
fn is_table_gone(message: &[u8], table: &str) -> bool {
    let kind = message
        .get(4..)
        .and_then(<[u8]>::first_chunk)
        .map(|kind| u16::from_ne_bytes(*kind));
    let name = || {
        let attribute = message.get(HEADERS..)?;
        let length = usize::from(u16::from_ne_bytes(*attribute.first_chunk()?));
        attribute.get(4..length)?.strip_suffix(&[0])
    };
    kind.is_some_and(|kind| GONE.contains(&kind)) && name() == Some(table.as_bytes())
}

fn is_route_gone(message: &[u8], settings: &HostSettings) -> bool {
    let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
    let Ok(NetlinkPayload::InnerMessage(inner)) = decoded.map(|message| message.payload) else {
        return false;
    };
    let is_tun = |link: &LinkMessage| {
        link.attributes
            .iter()
            .any(|one| matches!(one, LinkAttribute::IfName(name) if *name == settings.tun_name))
    };
    if let RouteNetlinkMessage::DelRoute(route) = &inner {
        routes::table(route) == settings.routing_table
    } else if let RouteNetlinkMessage::NewLink(link) = &inner {
        is_tun(link) && !link.header.flags.contains(LinkFlags::Up)
    } else if let RouteNetlinkMessage::DelLink(link) = &inner {
        is_tun(link)
    } else {
        // few enough to be looked after whoever's they are
        matches!(
            inner,
            RouteNetlinkMessage::DelRule(_)
                | RouteNetlinkMessage::DelAddress(_)
                | RouteNetlinkMessage::NewAddress(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `nlmsghdr`, `nfgenmsg` and one attribute with a text.
    fn told(kind: u16, name: &[u8]) -> Vec<u8> {
        let mut message = vec![0; HEADERS];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message.extend(u16::try_from(name.len() + 4).unwrap().to_ne_bytes());
        message.extend([1, 0]);
        message.extend(name);
        message
    }

    #[test]
    fn only_our_table_and_only_what_goes_counts() {
        for (kind, name, expected) in [
            (GONE[0], b"identun\0".as_slice(), true),
            (GONE[1], b"identun\0", true),
            (GONE[0], b"identun2\0", false),
            (GONE[0], b"identun", false),
            (GONE[0], b"", false),
            (10 << 8, b"identun\0", false),
            (10 << 8 | 8, b"identun\0", false),
        ] {
            assert_eq!(is_table_gone(&told(kind, name), "identun"), expected);
        }
        assert!(!is_table_gone(&[0; 20], "identun"));
        assert!(!is_table_gone(&[], "identun"));
    }
}
