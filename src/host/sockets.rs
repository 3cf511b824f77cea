//! Local TCP connections by sock_diag: finds them by their five-tuple and ends them, so that their owners learn at once
//! what a dropped packet would tell them only after minutes.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};

use crate::{
    host::{HostError, netlink},
    wire::{FiveTuple, protocol},
};

/// Message types of linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bits of every TCP state but LISTEN, CLOSE and TIME_WAIT: what somebody still waits for.
const STATES: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// Length of `inet_diag_sockid`.
const NAME: usize = 48;
/// Length of `inet_diag_req_v2`: family, protocol, extensions, padding, states, name.
const REQUEST: usize = 8 + NAME;

/// What became of connections that were to end.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Destroyed {
    /// Those that did, local end first.
    pub connections: Vec<FiveTuple>,
    /// `false` when this kernel cannot do it.
    pub supported: bool,
}

/// Ends the connections that `is_wanted` names by their tuple, local end first: their owners see an error, the other
/// end a reset, and what was not sent is forgotten. Needs CAP_NET_ADMIN.
pub fn destroy(is_wanted: impl Fn(&FiveTuple) -> bool) -> Result<Destroyed, HostError> {
    let operation = "end TCP connections";
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::EPERM) => HostError::Permission { operation },
        _ => HostError::Netlink { operation, source },
    };
    let mut wanted = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let request = Diag::dump(u8::try_from(family).unwrap_or_default());
        let take = |socket: Diag| {
            if let Some(tuple) = socket.tuple().filter(&is_wanted) {
                wanted.push((tuple, socket));
            }
            true
        };
        netlink::dump(libc::NETLINK_SOCK_DIAG, request, take).map_err(failed)?;
    }
    let mut destroyed = Destroyed {
        connections: Vec::new(),
        supported: true,
    };
    if wanted.is_empty() {
        return Ok(destroyed);
    }
    let mut requests = netlink::Requests::new(libc::NETLINK_SOCK_DIAG).map_err(failed)?;
    for (tuple, socket) in wanted {
        match requests.act(socket.destroy()) {
            Ok(()) => destroyed.connections.push(tuple),
            // it has ended by itself
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                destroyed.supported = false;
                break;
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(destroyed)
}

/// One request or answer: a socket, and as answer nothing more than what names it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Diag {
    kind: u16,
    family: u8,
    states: u32,
    /// `inet_diag_sockid` as the kernel wrote it: ports and addresses, interface, cookie.
    name: [u8; NAME],
}

impl Diag {
    const fn dump(family: u8) -> Self {
        Self {
            kind: SOCK_DIAG_BY_FAMILY,
            family,
            states: STATES,
            name: [0; NAME],
        }
    }

    /// The cookie in the name sees to it that no other socket ends in its place.
    const fn destroy(self) -> Self {
        Self {
            kind: SOCK_DESTROY,
            states: u32::MAX,
            ..self
        }
    }

    /// Local end first; an IPv4 connection of an IPv6 socket as IPv4.
    fn tuple(&self) -> Option<FiveTuple> {
        let port = |at: usize| Some(u16::from_be_bytes(*self.name.get(at..)?.first_chunk()?));
        let address = |at: usize| -> Option<IpAddr> {
            let bytes = self.name.get(at..)?;
            if i32::from(self.family) == libc::AF_INET {
                Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into())
            } else {
                Some(IpAddr::from(Ipv6Addr::from(*bytes.first_chunk::<16>()?)).to_canonical())
            }
        };
        Some(FiveTuple {
            protocol: protocol::TCP,
            source: address(4)?,
            source_port: port(0)?,
            destination: address(20)?,
            destination_port: port(2)?,
        })
    }
}

impl NetlinkSerializable for Diag {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        REQUEST
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let mut request = vec![self.family, protocol::TCP, 0, 0];
        request.extend(self.states.to_ne_bytes());
        request.extend(self.name);
        buffer.copy_from_slice(&request);
    }
}

impl NetlinkDeserializable for Diag {
    type Error = Infallible;

    /// `inet_diag_msg`: family, state, timer, retransmissions, name; what follows is not looked at.
    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        let name = payload.get(4..).and_then(<[u8]>::first_chunk);
        Ok(Self {
            kind: header.message_type,
            family: payload.first().copied().unwrap_or_default(),
            states: 0,
            // ports of 0 are no connection's
            name: name.copied().unwrap_or([0; NAME]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_kernels_layout_and_an_answer_is_read_back() {
        let mut name = [0; NAME];
        name[..4].copy_from_slice(&[0x1f, 0x90, 0xc3, 0x50]);
        name[4..8].copy_from_slice(&[10, 0, 0, 1]);
        name[20..24].copy_from_slice(&[10, 0, 0, 2]);
        name[40..].copy_from_slice(&[7; 8]);
        let mut payload = vec![2, 1, 0, 0];
        payload.extend(name);
        payload.extend([9; 20]);
        let mut header = NetlinkHeader::default();
        header.message_type = SOCK_DIAG_BY_FAMILY;
        let Ok(read) = Diag::deserialize(&header, &payload);
        let tuple = read.tuple().unwrap();
        assert_eq!(tuple.to_string(), "tcp 10.0.0.1:8080 -> 10.0.0.2:50000");
        let mut request = [0; REQUEST];
        read.destroy().serialize(&mut request);
        assert_eq!(request[..8], [2, 6, 0, 0, 255, 255, 255, 255]);
        assert_eq!(request[8..], name);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address_that_packets_carry() {
        let mut name = [0; NAME];
        for at in [4, 20] {
            name[at + 10..at + 16].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        }
        let socket = Diag {
            name,
            ..Diag::dump(10)
        };
        assert_eq!(socket.tuple().unwrap().source, IpAddr::from([192, 0, 2, 1]));
    }

    #[test]
    fn an_answer_cut_short_is_nobody() {
        let Ok(read) = Diag::deserialize(&NetlinkHeader::default(), &[2, 1]);
        assert_eq!(read.tuple().unwrap().source_port, 0);
    }
}
