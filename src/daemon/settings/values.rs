//! The values within `daemon.yaml` that have rules of their own: what parses obeys them.

use std::{fmt, str::FromStr};

use serde::Deserialize;

use crate::wire::flow::protocol;

/// A port that can be listened at.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "u16")]
pub struct Port(pub(super) u16);

impl Port {
    /// Its number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Port {
    type Error = &'static str;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        if number == 0 {
            Err("port 0 cannot be listened at, expected 1 to 65535")
        } else {
            Ok(Self(number))
        }
    }
}

/// A time that is not zero.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "u16")]
pub struct Seconds(pub(super) u16);

impl TryFrom<u16> for Seconds {
    type Error = &'static str;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        if number == 0 {
            Err("0 seconds are no time, expected 1 to 65535")
        } else {
            Ok(Self(number))
        }
    }
}

/// How many shards a daemon has.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "u16")]
pub struct ShardCount(pub(super) u8);

impl ShardCount {
    /// More would be more threads than any host's network card has queues for.
    const MAX: u16 = 64;

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u16> for ShardCount {
    type Error = String;

    fn try_from(number: u16) -> Result<Self, Self::Error> {
        match u8::try_from(number) {
            Ok(small) if (1..=Self::MAX).contains(&number) => Ok(Self(small)),
            Ok(_) | Err(_) => Err(format!("{number} shards, expected 1 to {}", Self::MAX)),
        }
    }
}

/// Bits of the packet mark.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "RawMarks")]
pub struct Marks {
    /// The bits that are ours.
    pub mask: u32,
    /// Packets and connections that belong in a tunnel.
    pub tunnel: u32,
    /// The daemon's own packets.
    pub bypass: u32,
}

impl Default for Marks {
    fn default() -> Self {
        Self {
            mask: 0x3000_0000,
            tunnel: 0x1000_0000,
            bypass: 0x2000_0000,
        }
    }
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawMarks {
    mask: u32,
    tunnel: u32,
    bypass: u32,
}

impl Default for RawMarks {
    fn default() -> Self {
        let Marks {
            mask,
            tunnel,
            bypass,
        } = Marks::default();
        Self {
            mask,
            tunnel,
            bypass,
        }
    }
}

impl TryFrom<RawMarks> for Marks {
    type Error = String;

    fn try_from(
        RawMarks {
            mask,
            tunnel,
            bypass,
        }: RawMarks,
    ) -> Result<Self, Self::Error> {
        let inside = |mark: u32| mark != 0 && mark & !mask == 0;
        match inside(tunnel) && inside(bypass) && tunnel != bypass {
            true => Ok(Self {
                mask,
                tunnel,
                bypass,
            }),
            false => Err(format!(
                "marks tunnel {tunnel:#x} and bypass {bypass:#x} must differ, be other than 0 and lie within mask {mask:#x}"
            )),
        }
    }
}

/// A local port that accepts plaintext whatever policy says: `tcp/22`.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(try_from = "String")]
pub struct Exempt {
    /// Protocol number.
    pub protocol: u8,
    /// Destination port.
    pub port: u16,
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = PORT_PROTOCOLS
            .iter()
            .find(|(_, number)| *number == self.protocol);
        write!(
            f,
            "{}/{}",
            protocol.map_or("?", |(name, _)| name),
            self.port
        )
    }
}

/// The protocols with ports by name.
const PORT_PROTOCOLS: [(&str, u8); 3] = [
    ("tcp", protocol::TCP),
    ("udp", protocol::UDP),
    ("sctp", protocol::SCTP),
];

impl FromStr for Exempt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once('/').and_then(|(name, port)| {
            let (_, protocol) = PORT_PROTOCOLS.iter().find(|(known, _)| *known == name)?;
            let port = port.parse().ok().filter(|&port| port != 0)?;
            Some(Self {
                protocol: *protocol,
                port,
            })
        });
        parsed.ok_or_else(|| {
            format!("`{text}` is not an exempt port, expected `tcp/22`, `udp/53` or `sctp/5000`")
        })
    }
}

impl TryFrom<String> for Exempt {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// The MTU of the TUN, at least what IPv6 needs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "u16")]
pub struct Mtu(u16);

impl Mtu {
    /// Bytes.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Mtu {
    type Error = String;

    fn try_from(bytes: u16) -> Result<Self, Self::Error> {
        match bytes {
            1_280.. => Ok(Self(bytes)),
            _ => Err(format!(
                "an MTU of {bytes} bytes is below 1280, the least that IPv6 works with"
            )),
        }
    }
}

/// The name of a network interface, safe within the text of a rule.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct InterfaceName(pub(super) String);

impl InterfaceName {
    /// Borrows the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for InterfaceName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'@');
        let well_formed = (1..=15).contains(&name.len())
            && name.bytes().all(allowed)
            && name != "."
            && name != "..";
        match well_formed {
            true => Ok(Self(name)),
            false => Err(format!(
                "`{name}` is not an interface name: 1 to 15 letters, digits, `-`, `_`, `.` or `@`"
            )),
        }
    }
}

/// The name of an nft table.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(try_from = "String")]
pub struct TableName(pub(super) String);

impl TryFrom<String> for TableName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        let begins = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphabetic());
        let well_formed = begins
            && name.len() <= 32
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        match well_formed {
            true => Ok(Self(name)),
            false => Err(format!(
                "`{name}` is not a table name: a letter, then letters, digits or `_`, 32 at most"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exempt_ports_round_trip_and_bad_ones_say_what_is_expected() {
        for text in ["tcp/22", "udp/53", "sctp/5000"] {
            assert_eq!(text.parse::<Exempt>().unwrap().to_string(), text);
        }
        for text in [
            "tcp",
            "tcp/0",
            "tcp/65536",
            "icmp/1",
            "22",
            "TCP/22",
            "tcp/22/1",
            "",
        ] {
            assert!(
                text.parse::<Exempt>()
                    .unwrap_err()
                    .contains("expected `tcp/22`"),
                "{text}"
            );
        }
    }

    #[test]
    fn marks_lie_within_their_mask_and_differ() {
        let marks = |mask, tunnel, bypass| {
            Marks::try_from(RawMarks {
                mask,
                tunnel,
                bypass,
            })
            .is_ok()
        };
        assert!(marks(0x3000_0000, 0x1000_0000, 0x2000_0000));
        assert!(!marks(0x3000_0000, 0x1000_0000, 0x1000_0000));
        assert!(!marks(0x3000_0000, 0, 0x2000_0000));
        assert!(!marks(0x1000_0000, 0x1000_0000, 0x2000_0000));
    }

    #[test]
    fn names_cannot_carry_rule_text() {
        for name in ["", "a b", "eth0;", "a\"", "a23456789012345678", ".."] {
            assert!(InterfaceName::try_from(name.to_owned()).is_err(), "{name}");
        }
        assert!(InterfaceName::try_from("veth-a.1".to_owned()).is_ok());
        for name in ["", "1a", "a-b", "a}"] {
            assert!(TableName::try_from(name.to_owned()).is_err(), "{name}");
        }
    }
}
