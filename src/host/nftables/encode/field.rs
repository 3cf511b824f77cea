//! What a rule can ask of a packet, and how it is loaded into a register.

use super::{message::Attributes, value::Type};

/// Something of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Field {
    load: Load,
    pub(super) kind: Type,
    /// What has to be so for the field to be there at all: the packet's family, its protocol.
    pub(super) family: Option<u8>,
    pub(super) protocol: Option<u8>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Load {
    /// NFT_META_*
    Meta(u32),
    /// NFT_CT_*
    Conntrack(u32),
    /// NFT_FIB_RESULT_* of the destination.
    Destination(u32),
    /// NFT_FIB_RESULT_ADDRTYPE of the source.
    SourceKind,
    /// Of the network header (1) or of the transport header (2), from this byte on.
    Payload(u32, u32),
}

const IPV4: u8 = 2;
const IPV6: u8 = 10;
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

pub(super) const FAMILY: Field = Field::of(Load::Meta(15), Type::Family);
pub(super) const PROTOCOL: Field = Field::of(Load::Meta(16), Type::Protocol);

impl Field {
    const fn of(load: Load, kind: Type) -> Self {
        Self {
            load,
            kind,
            family: None,
            protocol: None,
        }
    }

    const fn in_header(base: u32, offset: u32, kind: Type) -> Self {
        Self::of(Load::Payload(base, offset), kind)
    }

    const fn only(self, family: Option<u8>, protocol: Option<u8>) -> Self {
        Self {
            family,
            protocol,
            ..self
        }
    }

    /// The field named by the first words, and how many they are.
    pub(super) fn parse(words: &[&str]) -> Option<(Self, usize)> {
        let first = *words.first()?;
        let one = match first {
            "iifname" => Some(Self::of(Load::Meta(6), Type::InterfaceName)),
            "oifname" => Some(Self::of(Load::Meta(7), Type::InterfaceName)),
            _ if first.starts_with("@th,") => Some(raw(first)?),
            _ => None,
        };
        if let Some(field) = one {
            return Some((field, 1));
        }
        let second = *words.get(1)?;
        if let ("fib", "daddr") = (first, second) {
            let result = match *words.get(2)? {
                "oif" => Self::of(Load::Destination(1), Type::InterfaceIndex),
                "type" => Self::of(Load::Destination(3), Type::RouteKind),
                _ => return None,
            };
            return Some((result, 3));
        }
        if let ["fib", "saddr", "type", ..] = *words {
            return Some((Self::of(Load::SourceKind, Type::RouteKind), 3));
        }
        Some((two_words(first, second)?, 2))
    }

    /// Appends the expression that loads the field into a register.
    pub(super) fn load(self, register: u32, expressions: &mut Attributes<'_>) {
        let (name, first, second) = match self.load {
            Load::Meta(key) => ("meta", (2, key), None),
            Load::Conntrack(key) => ("ct", (2, key), None),
            // of the destination: NFTA_FIB_F_DADDR
            Load::Destination(result) => ("fib", (2, result), Some((3, 2))),
            // of the source: NFTA_FIB_F_SADDR
            Load::SourceKind => ("fib", (2, 3), Some((3, 1))),
            Load::Payload(base, offset) => ("payload", (2, base), Some((3, offset))),
        };
        expression(expressions, name, |data| {
            data.number(1, register);
            data.number(first.0, first.1);
            if let Some((kind, value)) = second {
                data.number(kind, value);
            }
            if let Load::Payload(..) = self.load {
                data.number(4, u32::try_from(self.kind.length()).unwrap_or(u32::MAX));
            }
        });
    }

    /// Appends the expression that writes a register into the field; tells whether the field can be written.
    pub(super) fn store(self, register: u32, expressions: &mut Attributes<'_>) -> bool {
        let (name, key, source) = match self.load {
            Load::Meta(key) => ("meta", key, 3),
            Load::Conntrack(key) => ("ct", key, 4),
            Load::Destination(_) | Load::SourceKind | Load::Payload(..) => return false,
        };
        expression(expressions, name, |data| {
            data.number(2, key);
            data.number(source, register);
        });
        true
    }
}

/// Appends an expression: its name and what it is told.
pub(super) fn expression(
    expressions: &mut Attributes<'_>,
    name: &str,
    data: impl FnOnce(&mut Attributes<'_>),
) {
    expressions.nested(1, |expression| {
        expression.text(1, name);
        expression.nested(2, data);
    });
}

fn two_words(first: &str, second: &str) -> Option<Field> {
    let address = |base_v4, base_v6| match first {
        "ip" => Field::in_header(1, base_v4, Type::Ipv4).only(Some(IPV4), None),
        _ => Field::in_header(1, base_v6, Type::Ipv6).only(Some(IPV6), None),
    };
    let port = |protocol| match second {
        "sport" => Some(Field::in_header(2, 0, Type::Port).only(None, protocol)),
        "dport" => Some(Field::in_header(2, 2, Type::Port).only(None, protocol)),
        _ => None,
    };
    Some(match (first, second) {
        ("meta", "length") => Field::of(Load::Meta(0), Type::Length),
        ("meta", "mark") => Field::of(Load::Meta(3), Type::Mark),
        ("meta", "skuid") => Field::of(Load::Meta(10), Type::User),
        ("meta", "nfproto") => FAMILY,
        ("meta", "l4proto") => PROTOCOL,
        ("ct", "state") => Field::of(Load::Conntrack(0), Type::State),
        ("ct", "direction") => Field::of(Load::Conntrack(1), Type::Direction),
        ("ct", "mark") => Field::of(Load::Conntrack(3), Type::Mark),
        ("ip" | "ip6", "saddr") => address(12, 8),
        ("ip" | "ip6", "daddr") => address(16, 24),
        ("ip6", "hoplimit") => Field::in_header(1, 7, Type::Integer(1)).only(Some(IPV6), None),
        ("icmp", "type") => Field::in_header(2, 0, Type::Icmp).only(Some(IPV4), Some(ICMP)),
        ("icmpv6", "type") => Field::in_header(2, 0, Type::Icmpv6).only(Some(IPV6), Some(ICMPV6)),
        ("tcp", "flags") => Field::in_header(2, 13, Type::TcpFlags).only(None, Some(TCP)),
        ("udp", _) => port(Some(UDP))?,
        ("th", _) => port(None)?,
        _ => return None,
    })
}

/// `@th,136,8`: so many bits of the transport header from this bit on, both whole bytes.
fn raw(word: &str) -> Option<Field> {
    let (offset, length) = word.strip_prefix("@th,")?.split_once(',')?;
    let (offset, length): (u32, u8) = (offset.parse().ok()?, length.parse().ok()?);
    let whole = offset.is_multiple_of(8) && length.is_multiple_of(8) && (8..=32).contains(&length);
    whole.then(|| Field::in_header(2, offset / 8, Type::Integer(length / 8)))
}
