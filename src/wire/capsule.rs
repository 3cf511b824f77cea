//! Capsules on the control stream (wire.md §3.2, RFC 9297 §3.2).
//!
//! ```text
//! Capsule = type(i) length(i) value[length]
//! 0x1d00 HELLO         version(i) flags(i) len(i) [source SPIFFE ID] len(i) [destination SPIFFE ID]
//! 0x1d01 READY         version(i) flags(i)
//! 0x1d02 REFUSED       code(i) len(i) [reason]
//! 0x1d03 FLOW_REFUSED  code(i) version(8) proto(8) src[4|16] dst[4|16] sport(16) dport(16) len(i) [reason]
//! 0x1d04 DRAIN         len(i) [reason]
//! 0x1d05 HOLD
//! 0x1d06 HELD
//! ```
//!
//! Reasons are UTF-8 of at most 256 bytes. What a peer wrote is made safe to print when it is read.

mod decode;
mod encode;
mod reader;

use crate::{
    spiffe::{SpiffeId, SpiffeIdError},
    wire::FiveTuple,
};

pub use reader::CapsuleReader;

/// The version of the protocol that this program speaks.
pub const VERSION: u64 = 1;
/// The longest value of a capsule, in bytes.
pub const MAX_VALUE: usize = 16 * 1024;
/// The longest reason, in bytes.
pub const MAX_REASON: usize = 256;

const HELLO: u64 = 0x1d00;
const READY: u64 = 0x1d01;
const REFUSED: u64 = 0x1d02;
const FLOW_REFUSED: u64 = 0x1d03;
const DRAIN: u64 = 0x1d04;
const HOLD: u64 = 0x1d05;
const HELD: u64 = 0x1d06;

/// HELLO / READY flags: 0x1 FRAGMENT, 0x2 PARTIAL_CHECKSUM, bits 8..16 the sender's lane; others ignored.
///
/// A host of several cores has several sessions with one peer, one for each of its shards. The lane is the number of
/// the shard that speaks: the dialler's in HELLO, the acceptor's in READY. Whoever does not know lanes ignores the bits
/// and sends 0, which is the lane of a host with one shard.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PeerFlags(u64);

impl PeerFlags {
    const FRAGMENT: u64 = 1;
    const PARTIAL_CHECKSUM: u64 = 2;
    const LANE_SHIFT: u32 = 8;
    const LANE: u64 = 0xff << Self::LANE_SHIFT;

    /// Everything this version can do.
    pub const ALL: Self = Self(Self::FRAGMENT | Self::PARTIAL_CHECKSUM);

    /// The known ones of `bits`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits & (Self::ALL.0 | Self::LANE))
    }

    /// The same, said by shard `lane`.
    #[must_use]
    pub const fn with_lane(self, lane: u8) -> Self {
        Self((self.0 & !Self::LANE) | ((lane as u64) << Self::LANE_SHIFT))
    }

    /// Which of the sender's shards speaks.
    pub const fn lane(self) -> u8 {
        let [_, lane, ..] = self.0.to_le_bytes();
        lane
    }

    /// As they are written.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// What both can do, of no lane.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0 & Self::ALL.0)
    }

    /// FRAGMENT datagrams (context 2) are taken.
    pub const fn fragment(self) -> bool {
        self.0 & Self::FRAGMENT != 0
    }

    /// PARTIAL CHECKSUM datagrams (context 4) are taken.
    pub const fn partial_checksum(self) -> bool {
        self.0 & Self::PARTIAL_CHECKSUM != 0
    }
}

/// Why a peer refuses a session.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum RefusedCode {
    /// It does not speak the version of the HELLO.
    BadVersion = 1,
    /// The HELLO did not parse or did not come first.
    BadHello = 2,
    /// The SPIFFE IDs of the HELLO are not those of the certificates.
    BadIdentity = 3,
    /// The destination identity has no workload on the peer's host.
    NotHere = 4,
    /// No policy can ever allow this identity, or the destination takes no tunnels.
    NotAllowed = 5,
    /// Too many sessions of this identity or host.
    Limited = 6,
    /// The peer is going away.
    Draining = 7,
}

impl RefusedCode {
    /// Reads a code. One that is not known counts as [`Self::NotAllowed`]: flows are refused, and it is asked again only
    /// after a while.
    pub const fn from_code(code: u64) -> Self {
        match code {
            1 => Self::BadVersion,
            2 => Self::BadHello,
            3 => Self::BadIdentity,
            4 => Self::NotHere,
            6 => Self::Limited,
            7 => Self::Draining,
            _ => Self::NotAllowed,
        }
    }
}

/// Why a peer refuses a flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum FlowRefusedCode {
    /// A rule denies it.
    DeniedByPolicy = 1,
    /// There are rules that allow, none of which matches.
    NoMatchingAllow = 2,
    /// The destination's mode is DISABLE.
    ModeDisable = 3,
    /// The source address does not belong to the session's identity.
    UnknownSource = 4,
    /// The destination address belongs to no workload there.
    UnknownDestination = 5,
    /// It was allowed and is no longer.
    Revoked = 6,
}

impl FlowRefusedCode {
    /// Reads a code. One that is not known counts as [`Self::DeniedByPolicy`].
    pub const fn from_code(code: u64) -> Self {
        match code {
            2 => Self::NoMatchingAllow,
            3 => Self::ModeDisable,
            4 => Self::UnknownSource,
            5 => Self::UnknownDestination,
            6 => Self::Revoked,
            _ => Self::DeniedByPolicy,
        }
    }
}

/// One flow that is refused while the session goes on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FlowRefused {
    /// Why.
    pub code: FlowRefusedCode,
    /// In the direction the refused packet travelled.
    pub tuple: FiveTuple,
    /// For a human; at most [`MAX_REASON`] bytes of it are written.
    pub reason: String,
}

/// The first capsule of the dialler: who speaks to whom.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hello {
    /// [`VERSION`], or what the peer speaks.
    pub version: u64,
    /// What the dialler can do.
    pub flags: PeerFlags,
    /// The ID of the dialler's certificate.
    pub source: SpiffeId,
    /// The ID of the certificate that the acceptor presented.
    pub destination: SpiffeId,
}

/// One message on the control stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Capsule {
    /// No new flows here; dial a replacement.
    Drain {
        /// For a human.
        reason: String,
    },
    /// A flow is refused.
    FlowRefused(FlowRefused),
    /// Answers HOLD: no inner packet follows on this session.
    Held,
    /// First and once, from the dialler.
    Hello(Hello),
    /// A successor takes over in a moment: keep inner packets back until it answers. Whoever does not know this goes on
    /// sending, and what is on its way when the session closes is lost.
    Hold,
    /// First and once, from the acceptor: the tunnel is up.
    Ready {
        /// [`VERSION`], or what the peer speaks.
        version: u64,
        /// What both can do.
        flags: PeerFlags,
    },
    /// Instead of READY; the connection closes after it.
    Refused {
        /// Why.
        code: RefusedCode,
        /// For a human.
        reason: String,
    },
    /// Skipped and counted; also 0x01-0x03. Written with an empty value.
    Unknown {
        /// Its type.
        kind: u64,
    },
}

/// Why the bytes of the control stream are no capsules.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CapsuleError {
    /// Neither 4 nor 6 in FLOW_REFUSED.
    #[error("the refused flow has the IP version {version}")]
    AddressVersion {
        /// What stands there.
        version: u8,
    },
    /// More stream bytes than [`CapsuleReader`] holds came without being read.
    #[error("more capsules came at once than are held")]
    Flooded,
    /// Not a SPIFFE ID in HELLO.
    #[error("a SPIFFE ID of the capsule is wrong")]
    SpiffeId(#[source] SpiffeIdError),
    /// Not UTF-8.
    #[error("a text of the capsule is not UTF-8")]
    Text,
    /// Over [`MAX_REASON`].
    #[error("the reason is {len} bytes long; {MAX_REASON} are allowed")]
    ReasonTooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// Bytes after the last field.
    #[error("the capsule {kind:#x} is longer than its fields")]
    Trailing {
        /// Its type.
        kind: u64,
    },
    /// The value ends inside a field.
    #[error("the capsule {kind:#x} is shorter than its fields")]
    Truncated {
        /// Its type.
        kind: u64,
    },
    /// Over [`MAX_VALUE`].
    #[error("the capsule {kind:#x} is {len} bytes long; {MAX_VALUE} are allowed")]
    ValueTooLong {
        /// Its type.
        kind: u64,
        /// Its length in bytes.
        len: u64,
    },
}

#[cfg(test)]
mod tests;
