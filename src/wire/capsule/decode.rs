//! The value of a capsule to a [`Capsule`].

use std::net::IpAddr;

use super::{
    Capsule, CapsuleError, DRAIN, FLOW_REFUSED, FlowRefused, FlowRefusedCode, HELD, HELLO, HOLD,
    Hello, MAX_REASON, PeerFlags, READY, REFUSED, RefusedCode, VERSION,
};
use crate::{
    spiffe::SpiffeId,
    wire::{FiveTuple, varint},
};

/// Reads a capsule of type `kind` from its whole value.
///
/// A HELLO or READY of another version may have more fields: its caller is to look at the version first.
pub(super) fn decode(kind: u64, value: &[u8]) -> Result<Capsule, CapsuleError> {
    let mut fields = Fields { kind, rest: value };
    let capsule = match kind {
        DRAIN => Capsule::Drain {
            reason: fields.reason()?,
        },
        FLOW_REFUSED => Capsule::FlowRefused(fields.flow_refused()?),
        HELD => Capsule::Held,
        HELLO => Capsule::Hello(fields.hello()?),
        HOLD => Capsule::Hold,
        READY => Capsule::Ready {
            version: fields.varint()?,
            flags: PeerFlags::from_bits(fields.varint()?),
        },
        REFUSED => Capsule::Refused {
            code: RefusedCode::from_code(fields.varint()?),
            reason: fields.reason()?,
        },
        _ => return Ok(Capsule::Unknown { kind }),
    };
    let is_other_version = matches!(&capsule, Capsule::Hello(Hello { version, .. }) | Capsule::Ready { version, .. } if *version != VERSION);
    if fields.rest.is_empty() || is_other_version {
        Ok(capsule)
    } else {
        Err(CapsuleError::Trailing { kind })
    }
}

struct Fields<'a> {
    kind: u64,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    const fn truncated(&self) -> CapsuleError {
        CapsuleError::Truncated { kind: self.kind }
    }

    fn varint(&mut self) -> Result<u64, CapsuleError> {
        let (value, rest) = varint::decode(self.rest).ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(value)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CapsuleError> {
        let (field, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.truncated())?;
        self.rest = rest;
        Ok(*field)
    }

    fn text(&mut self, len: u64) -> Result<&'a str, CapsuleError> {
        let split = usize::try_from(len)
            .ok()
            .and_then(|len| self.rest.split_at_checked(len));
        let (field, rest) = split.ok_or_else(|| self.truncated())?;
        self.rest = rest;
        str::from_utf8(field).map_err(|_| CapsuleError::Text)
    }

    fn reason(&mut self) -> Result<String, CapsuleError> {
        let len = self.varint()?;
        if len > MAX_REASON as u64 {
            return Err(CapsuleError::ReasonTooLong { len });
        }
        self.text(len).map(printable)
    }

    fn spiffe_id(&mut self) -> Result<SpiffeId, CapsuleError> {
        let len = self.varint()?;
        self.text(len)?.parse().map_err(CapsuleError::SpiffeId)
    }

    fn hello(&mut self) -> Result<Hello, CapsuleError> {
        Ok(Hello {
            version: self.varint()?,
            flags: PeerFlags::from_bits(self.varint()?),
            source: self.spiffe_id()?,
            destination: self.spiffe_id()?,
        })
    }

    fn flow_refused(&mut self) -> Result<FlowRefused, CapsuleError> {
        let code = FlowRefusedCode::from_code(self.varint()?);
        let [version, protocol] = self.array()?;
        let [source, destination] = match version {
            4 => [
                IpAddr::from(self.array::<4>()?),
                IpAddr::from(self.array::<4>()?),
            ],
            6 => [
                IpAddr::from(self.array::<16>()?),
                IpAddr::from(self.array::<16>()?),
            ],
            version => return Err(CapsuleError::AddressVersion { version }),
        };
        let (source_port, destination_port) = (
            u16::from_be_bytes(self.array()?),
            u16::from_be_bytes(self.array()?),
        );
        let tuple = FiveTuple {
            protocol,
            source,
            source_port,
            destination,
            destination_port,
        };
        Ok(FlowRefused {
            code,
            tuple,
            reason: self.reason()?,
        })
    }
}

/// Replaces what could break a log line or a terminal, or turn the direction of writing, by U+FFFD.
fn printable(text: &str) -> String {
    let is_safe = |char: char| {
        !char.is_control()
            && !matches!(char, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .map(|char| {
            if is_safe(char) {
                char
            } else {
                char::REPLACEMENT_CHARACTER
            }
        })
        .collect()
}
