//! The five-tuple that names a flow.

use std::{fmt, net::IpAddr};

/// IP protocol numbers (IANA) that identun treats by name.
pub mod protocol {
    /// ICMP, RFC 792.
    pub const ICMP: u8 = 1;
    /// TCP, RFC 9293.
    pub const TCP: u8 = 6;
    /// UDP, RFC 768.
    pub const UDP: u8 = 17;
    /// ICMPv6, RFC 4443.
    pub const ICMPV6: u8 = 58;
    /// SCTP, RFC 9260.
    pub const SCTP: u8 = 132;

    /// Tells whether the protocol's header begins with source and destination port.
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }
}

/// Protocol, addresses and ports of one packet, in the direction it travels. Ports are 0 where there are none
/// (protocols without ports, non-first fragments).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FiveTuple {
    /// Upper-layer protocol number, after IPv6 extension headers.
    pub protocol: u8,
    /// Source address.
    pub source: IpAddr,
    /// Source port or 0.
    pub source_port: u16,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port or 0.
    pub destination_port: u16,
}

impl FiveTuple {
    /// The same flow seen from the other end.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            protocol: self.protocol,
            source: self.destination,
            source_port: self.destination_port,
            destination: self.source,
            destination_port: self.source_port,
        }
    }

    /// The destination port, or `None` for a packet without ports.
    pub fn service_port(&self) -> Option<u16> {
        (protocol::has_ports(self.protocol) && self.destination_port != 0)
            .then_some(self.destination_port)
    }
}

impl fmt::Display for FiveTuple {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            protocol::ICMP => f.write_str("icmp ")?,
            protocol::ICMPV6 => f.write_str("icmpv6 ")?,
            protocol::TCP => f.write_str("tcp ")?,
            protocol::UDP => f.write_str("udp ")?,
            protocol::SCTP => f.write_str("sctp ")?,
            other => write!(f, "proto-{other} ")?,
        }
        if protocol::has_ports(self.protocol) {
            let source = std::net::SocketAddr::new(self.source, self.source_port);
            let destination = std::net::SocketAddr::new(self.destination, self.destination_port);
            write!(f, "{source} -> {destination}")
        } else {
            write!(f, "{} -> {}", self.source, self.destination)
        }
    }
}
