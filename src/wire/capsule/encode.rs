//! Capsules to bytes.

use std::net::IpAddr;

use super::{
    Capsule, DRAIN, FLOW_REFUSED, FlowRefused, HELD, HELLO, HOLD, Hello, MAX_REASON, READY, REFUSED,
};
use crate::wire::varint;

impl Capsule {
    /// Appends the capsule to `out`. Reasons are cut off at a character within their 256 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut value = Vec::new();
        match self {
            Self::Drain { reason } => put_reason(reason, &mut value),
            Self::FlowRefused(refused) => put_flow_refused(refused, &mut value),
            Self::Hello(hello) => put_hello(hello, &mut value),
            Self::Ready { version, flags } => {
                varint::encode(*version, &mut value);
                varint::encode(flags.bits(), &mut value);
            }
            Self::Refused { code, reason } => {
                varint::encode(*code as u64, &mut value);
                put_reason(reason, &mut value);
            }
            Self::Held | Self::Hold | Self::Unknown { .. } => {}
        }
        varint::encode(self.kind(), out);
        put_bytes(&value, out);
    }

    const fn kind(&self) -> u64 {
        match self {
            Self::Drain { .. } => DRAIN,
            Self::FlowRefused(_) => FLOW_REFUSED,
            Self::Held => HELD,
            Self::Hello(_) => HELLO,
            Self::Hold => HOLD,
            Self::Ready { .. } => READY,
            Self::Refused { .. } => REFUSED,
            Self::Unknown { kind } => *kind,
        }
    }
}

fn put_hello(hello: &Hello, out: &mut Vec<u8>) {
    varint::encode(hello.version, out);
    varint::encode(hello.flags.bits(), out);
    for id in [&hello.source, &hello.destination] {
        put_bytes(id.as_str().as_bytes(), out);
    }
}

/// Addresses of two versions, which no packet has, are written as IPv6.
fn put_flow_refused(refused: &FlowRefused, out: &mut Vec<u8>) {
    let tuple = refused.tuple;
    varint::encode(refused.code as u64, out);
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (tuple.source, tuple.destination) {
        out.extend_from_slice(&[4, tuple.protocol]);
        out.extend_from_slice(&source.octets());
        out.extend_from_slice(&destination.octets());
    } else {
        out.extend_from_slice(&[6, tuple.protocol]);
        for address in [tuple.source, tuple.destination] {
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            out.extend_from_slice(&address.octets());
        }
    }
    out.extend_from_slice(&tuple.source_port.to_be_bytes());
    out.extend_from_slice(&tuple.destination_port.to_be_bytes());
    put_reason(&refused.reason, out);
}

fn put_reason(reason: &str, out: &mut Vec<u8>) {
    let reason = reason
        .get(..reason.floor_char_boundary(MAX_REASON))
        .unwrap_or_default();
    put_bytes(reason.as_bytes(), out);
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    varint::encode(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
