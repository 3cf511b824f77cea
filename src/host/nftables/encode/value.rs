//! Values in nft's notation and what they are for the kernel: their type, length and byte order.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// Bytes of an interface's name, padded with NUL (IFNAMSIZ).
const NAME: usize = 16;
/// A register holds four bytes; a part of a concatenation begins at a multiple of that.
pub(super) const REGISTER: usize = 4;

/// The type of a value, numbered as by nft (libnftables' datatypes), which shows a set by these numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Type {
    Family,
    Protocol,
    Port,
    Ipv4,
    Ipv6,
    InterfaceName,
    InterfaceIndex,
    Mark,
    User,
    State,
    Direction,
    RouteKind,
    Icmp,
    Icmpv6,
    TcpFlags,
    /// In the machine's byte order, four bytes.
    Length,
    /// In network byte order, so many bytes.
    Integer(u8),
}

/// How the bytes of a number lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Order {
    Host,
    Network,
}

impl Type {
    /// The type of a part of a set's key.
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "ipv4_addr" => Self::Ipv4,
            "ipv6_addr" => Self::Ipv6,
            "inet_proto" => Self::Protocol,
            "inet_service" => Self::Port,
            "ifname" => Self::InterfaceName,
            "iface_index" => Self::InterfaceIndex,
            _ => return None,
        })
    }

    /// nft's number of the type.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Family => 2,
            Self::Length | Self::Integer(_) => 4,
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Icmp => 14,
            Self::TcpFlags => 15,
            Self::Mark => 19,
            Self::InterfaceIndex => 20,
            Self::User => 24,
            Self::State => 26,
            Self::Direction => 27,
            Self::Icmpv6 => 29,
            Self::RouteKind => 38,
            Self::InterfaceName => 41,
        }
    }

    /// Bytes of a value.
    pub(super) fn length(self) -> usize {
        match self {
            Self::Family
            | Self::Protocol
            | Self::Direction
            | Self::Icmp
            | Self::Icmpv6
            | Self::TcpFlags => 1,
            Self::Port => 2,
            Self::Ipv4
            | Self::InterfaceIndex
            | Self::Mark
            | Self::User
            | Self::State
            | Self::RouteKind
            | Self::Length => 4,
            Self::Ipv6 => 16,
            Self::InterfaceName => NAME,
            Self::Integer(length) => usize::from(length),
        }
    }

    pub(super) fn order(self) -> Order {
        match self {
            Self::Port | Self::Ipv4 | Self::Ipv6 | Self::Integer(_) => Order::Network,
            Self::Family
            | Self::Protocol
            | Self::InterfaceName
            | Self::InterfaceIndex
            | Self::Mark
            | Self::User
            | Self::State
            | Self::Direction
            | Self::RouteKind
            | Self::Icmp
            | Self::Icmpv6
            | Self::TcpFlags
            | Self::Length => Order::Host,
        }
    }

    /// A value in nft's notation as the kernel has it; `None` if it is not one of this type.
    pub(super) fn value(self, text: &str) -> Option<Vec<u8>> {
        if matches!(self, Self::Ipv4 | Self::Ipv6 | Self::InterfaceName) {
            return self.special(text);
        }
        let number = constant(self, text).or_else(|| number(text))?;
        let length = self.length();
        if length < 4 && number >> (8 * length) != 0 {
            return None;
        }
        Some(match self.order() {
            Order::Network => number
                .to_be_bytes()
                .get(4_usize.checked_sub(length)?..)?
                .to_vec(),
            Order::Host => number.to_ne_bytes().get(..length)?.to_vec(),
        })
    }

    /// Values that are no numbers: addresses and names.
    fn special(self, text: &str) -> Option<Vec<u8>> {
        if self != Self::InterfaceName {
            return self.address(text.parse().ok()?);
        }
        let mut name = quoted(text)?.as_bytes().to_vec();
        // the last byte is NUL
        if name.len() >= NAME {
            return None;
        }
        name.resize(NAME, 0);
        Some(name)
    }

    fn address(self, address: IpAddr) -> Option<Vec<u8>> {
        match address {
            IpAddr::V4(address) => (self == Self::Ipv4).then(|| address.octets().to_vec()),
            IpAddr::V6(address) => (self == Self::Ipv6).then(|| address.octets().to_vec()),
        }
    }

    /// First and last value of a single value, a range `a-b` or a network `a/n`.
    pub(super) fn interval(self, text: &str) -> Option<(Vec<u8>, Vec<u8>)> {
        if let Some((first, last)) = text.split_once('-') {
            return Some((self.value(first)?, self.value(last)?));
        }
        if text.contains('/') {
            let network: IpNetwork = text.parse().ok()?;
            let (first, last) = (network.network(), network.broadcast());
            return Some((self.address(first)?, self.address(last)?));
        }
        let value = self.value(text)?;
        Some((value.clone(), value))
    }
}

/// The text between quotes.
pub(super) fn quoted(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"')
}

/// A number, decimal or after `0x`.
pub(super) fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Names of numbers, several of them after `,` or in `(a|b)`: bits of one value.
fn constant(kind: Type, text: &str) -> Option<u32> {
    let inner = text
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'));
    let several = matches!(kind, Type::State | Type::TcpFlags);
    if !several {
        return one(kind, text);
    }
    inner
        .unwrap_or(text)
        .split([',', '|'])
        .try_fold(0, |bits, name| Some(bits | one(kind, name)?))
}

fn one(kind: Type, name: &str) -> Option<u32> {
    Some(match (kind, name) {
        // NFPROTO_*
        (Type::Family, "ipv4") => 2,
        (Type::Family, "ipv6") => 10,
        // IPPROTO_*
        (Type::Protocol, "icmp") => 1,
        (Type::Protocol, "tcp") => 6,
        (Type::Protocol, "udp") => 17,
        (Type::Protocol, "icmpv6") => 58,
        (Type::Protocol, "sctp") => 132,
        // NF_CT_STATE_BIT of IP_CT_*
        (Type::State, "invalid") => 1,
        (Type::State, "established") => 2,
        (Type::State, "related") => 4,
        (Type::State, "new") => 8,
        (Type::State, "untracked") => 64,
        // IP_CT_DIR_*
        (Type::Direction, "original") => 0,
        (Type::Direction, "reply") => 1,
        // RTN_*
        (Type::RouteKind, "local") => 2,
        (Type::RouteKind, "broadcast") => 3,
        (Type::RouteKind, "multicast") => 5,
        // RFC 9293, 3.1
        (Type::TcpFlags, "fin") => 1,
        (Type::TcpFlags, "syn") => 2,
        (Type::TcpFlags, "rst") => 4,
        (Type::TcpFlags, "ack") => 16,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_their_length_and_byte_order() {
        let mark = 0x1000_0000_u32.to_ne_bytes().to_vec();
        for (kind, text, expected) in [
            (Type::Port, "443", Some(vec![1, 187])),
            (Type::Port, "65536", None),
            (Type::Protocol, "sctp", Some(vec![132])),
            (Type::Protocol, "256", None),
            (Type::Mark, "0x10000000", Some(mark)),
            (Type::Ipv4, "10.0.0.1", Some(vec![10, 0, 0, 1])),
            (Type::Ipv4, "::1", None),
            (
                Type::State,
                "new,invalid,untracked",
                Some(0x49_u32.to_ne_bytes().to_vec()),
            ),
            (Type::TcpFlags, "(fin|syn|rst)", Some(vec![7])),
            (Type::TcpFlags, "(fin|urgent)", None),
            (Type::Integer(2), "15008", Some(vec![0x3a, 0xa0])),
            (Type::InterfaceName, "\"0123456789abcdef\"", None),
            (Type::InterfaceName, "lo", None),
        ] {
            assert_eq!(kind.value(text), expected, "{kind:?} {text}");
        }
    }

    #[test]
    fn intervals_include_both_ends() {
        let ends = |kind: Type, text| kind.interval(text).unwrap();
        assert_eq!(
            ends(Type::Ipv4, "10.2.0.0/15"),
            (vec![10, 2, 0, 0], vec![10, 3, 255, 255])
        );
        assert_eq!(ends(Type::Port, "81-65535"), (vec![0, 81], vec![255, 255]));
        assert_eq!(ends(Type::Protocol, "tcp"), (vec![6], vec![6]));
        assert_eq!(Type::Ipv4.interval("fd00::/8"), None);
    }
}
