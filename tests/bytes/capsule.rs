//! What a peer's control stream says (wire.md §3.2), read by plain loops of its own: however the stream is cut, the same
//! capsules come and the same mistake ends it, and each capsule is what it was after being written and read once more.

use std::net::IpAddr;

use identun::{
    spiffe::SpiffeId,
    wire::{
        FiveTuple,
        capsule::{
            Capsule, CapsuleError, CapsuleReader, FlowRefused, FlowRefusedCode, Hello, PeerFlags,
            RefusedCode,
        },
    },
};

use super::choices::Choices;

const KINDS: [u64; 8] = [0x1d00, 0x1d01, 0x1d02, 0x1d03, 0x1d04, 0x1d05, 0x1d06, 0x02];
/// Bits of HELLO and READY with a meaning: two abilities and the lane.
const KNOWN_FLAGS: u64 = 0xff03;
const LONGEST_VALUE: u64 = 16_384;
const LONGEST_REASON: u64 = 256;

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Capsules that were read.
    pub(crate) capsules: usize,
    /// The stream ended with a mistake.
    pub(crate) mistakes: usize,
}

/// Why a stream is no capsules.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mistake {
    AddressVersion,
    SpiffeId,
    Text,
    ReasonTooLong,
    Trailing,
    Truncated,
    ValueTooLong,
}

/// Plays one stream; panics where something is not as it has to be.
pub(crate) fn play(choices: &mut Choices<'_>) -> Tally {
    let pieces: Vec<_> = (0..3)
        .map(|_| *choices.pick(&[4_096, 1, 2, 3, 7, 64]))
        .collect();
    let (meant, stream) = match choices.below(4) {
        0 => (None, noise(choices)),
        _ => composed(choices),
    };
    let expected = read(&stream);
    let heard = hear(&pieces, &stream);
    assert_eq!(heard, expected, "stream {stream:x?}");
    if let Some(meant) = meant {
        assert_eq!(heard, (meant, None), "stream {stream:x?}");
    }
    for capsule in &heard.0 {
        written_and_read(capsule);
    }
    Tally {
        capsules: heard.0.len(),
        mistakes: usize::from(heard.1.is_some()),
    }
}

/// The reader's view of a stream that comes in pieces of these lengths, one after the other and again.
fn hear(pieces: &[usize], stream: &[u8]) -> (Vec<Capsule>, Option<Mistake>) {
    let mut reader = CapsuleReader::default();
    let mut heard = Vec::new();
    let mut rest = stream;
    for &len in pieces.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, later) = rest.split_at(len.min(rest.len()));
        rest = later;
        reader.push(piece);
        loop {
            match reader.poll() {
                Ok(Some(capsule)) => heard.push(capsule),
                Ok(None) => break,
                Err(error) => {
                    reader.push(later);
                    assert_eq!(reader.poll(), Err(error.clone()), "a mistake is final");
                    return (heard, Some(mistake(&error)));
                }
            }
        }
    }
    (heard, None)
}

fn mistake(error: &CapsuleError) -> Mistake {
    assert!(error.to_string().chars().all(|char| !char.is_control()));
    match error {
        CapsuleError::AddressVersion { .. } => Mistake::AddressVersion,
        CapsuleError::Flooded => panic!("everything was read that could be"),
        CapsuleError::SpiffeId(_) => Mistake::SpiffeId,
        CapsuleError::Text => Mistake::Text,
        CapsuleError::ReasonTooLong { .. } => Mistake::ReasonTooLong,
        CapsuleError::Trailing { .. } => Mistake::Trailing,
        CapsuleError::Truncated { .. } => Mistake::Truncated,
        CapsuleError::ValueTooLong { .. } => Mistake::ValueTooLong,
    }
}

/// What is written is what it says, and is read as it was; reasons end at 256 bytes.
fn written_and_read(capsule: &Capsule) {
    let mut written = Vec::new();
    capsule.encode(&mut written);
    assert_eq!(written, write(capsule, 0), "{capsule:?}");
    let mut shortened = capsule.clone();
    match &mut shortened {
        Capsule::Drain { reason }
        | Capsule::Refused { reason, .. }
        | Capsule::FlowRefused(FlowRefused { reason, .. }) => {
            assert!(reason.chars().all(is_harmless), "{reason:?}");
            *reason = within_bounds(reason);
        }
        Capsule::Held
        | Capsule::Hello(_)
        | Capsule::Hold
        | Capsule::Ready { .. }
        | Capsule::Unknown { .. } => {}
    }
    assert_eq!(read(&written), (vec![shortened], None));
}

/// As many characters as fit.
fn within_bounds(reason: &str) -> String {
    let mut all = String::new();
    for char in reason.chars() {
        if all.len() + char.len_utf8() > 256 {
            break;
        }
        all.push(char);
    }
    all
}

/// Whatever bytes the fuzzer has.
fn noise(choices: &mut Choices<'_>) -> Vec<u8> {
    if let Choices::Bytes(rest) = choices {
        return rest.to_vec();
    }
    let len = choices.below(200);
    (0..len).map(|_| choices.below(256) as u8).collect()
}

/// Capsules of our own writing; `None` in their place where flaws were put into the bytes.
fn composed(choices: &mut Choices<'_>) -> (Option<Vec<Capsule>>, Vec<u8>) {
    let (mut meant, mut stream) = (Vec::new(), Vec::new());
    for _ in 0..=choices.below(6) {
        let capsule = capsule(choices);
        stream.extend(write(&capsule, choices.below(4)));
        meant.push(match capsule {
            Capsule::Drain { reason } => Capsule::Drain {
                reason: harmless(&within_bounds(&reason)),
            },
            Capsule::Refused { code, reason } => Capsule::Refused {
                code,
                reason: harmless(&within_bounds(&reason)),
            },
            Capsule::FlowRefused(refused) => Capsule::FlowRefused(FlowRefused {
                reason: harmless(&within_bounds(&refused.reason)),
                ..refused
            }),
            other @ (Capsule::Held
            | Capsule::Hello(_)
            | Capsule::Hold
            | Capsule::Ready { .. }
            | Capsule::Unknown { .. }) => other,
        });
    }
    let flaws = choices.below(4);
    for _ in 0..flaws {
        let at = choices.below(256) * 7 % stream.len();
        match choices.below(4) {
            0 => stream[at] = choices.below(256) as u8,
            1 => stream[at] ^= 1 << choices.below(8),
            2 => drop(stream.remove(at)),
            _ => stream.insert(at, choices.below(256) as u8),
        }
        if stream.is_empty() {
            break;
        }
    }
    ((flaws == 0).then_some(meant), stream)
}

fn capsule(choices: &mut Choices<'_>) -> Capsule {
    match choices.below(8) {
        0 => Capsule::Hello(Hello {
            version: [1, 1, 1, 0, 2, 1 << 40][choices.below(6)],
            flags: flags(choices),
            source: id(choices),
            destination: id(choices),
        }),
        1 => Capsule::Ready {
            version: [1, 1, 1, 0, 2, 1 << 40][choices.below(6)],
            flags: flags(choices),
        },
        2 => Capsule::Refused {
            code: RefusedCode::from_code(choices.below(9) as u64),
            reason: reason(choices),
        },
        3 => Capsule::FlowRefused(FlowRefused {
            code: FlowRefusedCode::from_code(choices.below(8) as u64),
            tuple: tuple(choices),
            reason: reason(choices),
        }),
        4 => Capsule::Drain {
            reason: reason(choices),
        },
        5 => Capsule::Hold,
        6 => Capsule::Held,
        _ => Capsule::Unknown {
            kind: [1, 2, 3, 0x1d07, 0x3fff, 1 << 50][choices.below(6)],
        },
    }
}

fn flags(choices: &mut Choices<'_>) -> PeerFlags {
    PeerFlags::from_bits(choices.below(4) as u64).with_lane(choices.below(256) as u8)
}

fn id(choices: &mut Choices<'_>) -> SpiffeId {
    let path = "/x".repeat(choices.below(256) * 4 % 1_000);
    let text = format!("spiffe://a{}.b{path}", choices.below(10));
    text.parse().unwrap()
}

fn tuple(choices: &mut Choices<'_>) -> FiveTuple {
    let v6 = choices.chance(50);
    let mut address = || match v6 {
        false => IpAddr::from([10, 0, choices.below(256) as u8, 1]),
        true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, choices.below(256) as u16]),
    };
    FiveTuple {
        source: address(),
        destination: address(),
        protocol: choices.below(256) as u8,
        source_port: choices.below(256) as u16 * 257,
        destination_port: choices.below(256) as u16,
    }
}

fn reason(choices: &mut Choices<'_>) -> String {
    let pieces = [
        "denied",
        " ",
        "é",
        "\n",
        "\u{1b}[2J",
        "\u{202e}",
        "\u{feff}",
        "😀",
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    (0..choices.below(6))
        .map(|_| *choices.pick(&pieces))
        .collect()
}

/// A capsule in bytes, every number at least in the `form`th of its four lengths.
fn write(capsule: &Capsule, form: usize) -> Vec<u8> {
    let number = |value: u64| {
        let forms = [(1, 0_u64), (2, 0x40), (4, 0x80), (8, 0xc0)];
        let fits = |len: u32| value < 1 << (8 * len - 2);
        let (len, prefix) = *forms[form..].iter().find(|(len, _)| fits(*len)).unwrap();
        let word = value | prefix << (8 * (len - 1));
        word.to_be_bytes()[8 - len as usize..].to_vec()
    };
    let text = |text: &str| [number(text.len() as u64), text.as_bytes().to_vec()].concat();
    let reason = |reason: &str| text(&within_bounds(reason));
    let (kind, value) = match capsule {
        Capsule::Hello(hello) => (
            0x1d00,
            [
                number(hello.version),
                number(hello.flags.bits()),
                text(hello.source.as_str()),
                text(hello.destination.as_str()),
            ]
            .concat(),
        ),
        Capsule::Ready { version, flags } => {
            (0x1d01, [number(*version), number(flags.bits())].concat())
        }
        Capsule::Refused { code, reason: why } => {
            (0x1d02, [number(*code as u64), reason(why)].concat())
        }
        Capsule::FlowRefused(refused) => {
            let mut value = number(refused.code as u64);
            let tuple = refused.tuple;
            value.push(if tuple.source.is_ipv4() { 4 } else { 6 });
            value.push(tuple.protocol);
            for address in [tuple.source, tuple.destination] {
                match address {
                    IpAddr::V4(address) => value.extend(address.octets()),
                    IpAddr::V6(address) => value.extend(address.octets()),
                }
            }
            value.extend(tuple.source_port.to_be_bytes());
            value.extend(tuple.destination_port.to_be_bytes());
            value.extend(reason(&refused.reason));
            (0x1d03, value)
        }
        Capsule::Drain { reason: why } => (0x1d04, reason(why)),
        Capsule::Hold => (0x1d05, Vec::new()),
        Capsule::Held => (0x1d06, Vec::new()),
        Capsule::Unknown { kind } => (*kind, Vec::new()),
    };
    [number(kind), number(value.len() as u64), value].concat()
}

/// The whole capsules at the beginning of a stream, and what is wrong with the next one.
fn read(stream: &[u8]) -> (Vec<Capsule>, Option<Mistake>) {
    let (mut capsules, mut at) = (Vec::new(), Cursor { bytes: stream });
    while let Some((kind, len)) = at.number().zip(at.number()) {
        if len > LONGEST_VALUE {
            return (capsules, Some(Mistake::ValueTooLong));
        }
        let Some(value) = at.take(len as usize) else {
            break;
        };
        match read_value(kind, Cursor { bytes: value }) {
            Ok(capsule) => capsules.push(capsule),
            Err(mistake) => return (capsules, Some(mistake)),
        }
    }
    (capsules, None)
}

fn read_value(kind: u64, mut at: Cursor<'_>) -> Result<Capsule, Mistake> {
    let mut may_go_on = false;
    let capsule = match kind {
        0x1d00 => {
            let version = at.number().ok_or(Mistake::Truncated)?;
            may_go_on = version != 1;
            Capsule::Hello(Hello {
                version,
                flags: at.flags()?,
                source: at.id()?,
                destination: at.id()?,
            })
        }
        0x1d01 => {
            let version = at.number().ok_or(Mistake::Truncated)?;
            may_go_on = version != 1;
            Capsule::Ready {
                version,
                flags: at.flags()?,
            }
        }
        0x1d02 => {
            let codes = [
                RefusedCode::BadVersion,
                RefusedCode::BadHello,
                RefusedCode::BadIdentity,
                RefusedCode::NotHere,
                RefusedCode::NotAllowed,
                RefusedCode::Limited,
                RefusedCode::Draining,
            ];
            Capsule::Refused {
                code: at.code(&codes, RefusedCode::NotAllowed)?,
                reason: at.reason()?,
            }
        }
        0x1d03 => {
            let codes = [
                FlowRefusedCode::DeniedByPolicy,
                FlowRefusedCode::NoMatchingAllow,
                FlowRefusedCode::ModeDisable,
                FlowRefusedCode::UnknownSource,
                FlowRefusedCode::UnknownDestination,
                FlowRefusedCode::Revoked,
            ];
            Capsule::FlowRefused(FlowRefused {
                code: at.code(&codes, FlowRefusedCode::DeniedByPolicy)?,
                tuple: at.tuple()?,
                reason: at.reason()?,
            })
        }
        0x1d04 => Capsule::Drain {
            reason: at.reason()?,
        },
        0x1d05 => Capsule::Hold,
        0x1d06 => Capsule::Held,
        _ => return Ok(Capsule::Unknown { kind }),
    };
    assert!(KINDS.contains(&kind));
    match at.bytes.is_empty() || may_go_on {
        true => Ok(capsule),
        false => Err(Mistake::Trailing),
    }
}

struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        if len > self.bytes.len() {
            return None;
        }
        let (taken, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        let first = *self.bytes.first()?;
        let field = self.take([1, 2, 4, 8][usize::from(first / 64)])?;
        let mut value = u64::from(first % 64);
        for byte in &field[1..] {
            value = value * 256 + u64::from(*byte);
        }
        Some(value)
    }

    fn flags(&mut self) -> Result<PeerFlags, Mistake> {
        let bits = self.number().ok_or(Mistake::Truncated)?;
        let flags = PeerFlags::from_bits(bits);
        assert_eq!(flags.bits(), bits & KNOWN_FLAGS);
        assert_eq!(u64::from(flags.lane()), bits >> 8 & 0xff);
        Ok(flags)
    }

    fn code<T: Copy>(&mut self, known: &[T], other: T) -> Result<T, Mistake> {
        let code = self.number().ok_or(Mistake::Truncated)?;
        let index = usize::try_from(code)
            .ok()
            .and_then(|code| code.checked_sub(1));
        Ok(index
            .and_then(|index| known.get(index))
            .copied()
            .unwrap_or(other))
    }

    fn text(&mut self, len: u64) -> Result<&'a str, Mistake> {
        let len = usize::try_from(len).map_err(|_| Mistake::Truncated)?;
        let bytes = self.take(len).ok_or(Mistake::Truncated)?;
        std::str::from_utf8(bytes).map_err(|_| Mistake::Text)
    }

    fn id(&mut self) -> Result<SpiffeId, Mistake> {
        let len = self.number().ok_or(Mistake::Truncated)?;
        let text = self.text(len)?;
        let id = text.parse::<SpiffeId>();
        assert_eq!(id.is_ok(), is_spiffe_id(text), "{text:?}");
        id.map_err(|_| Mistake::SpiffeId)
    }

    fn reason(&mut self) -> Result<String, Mistake> {
        let len = self.number().ok_or(Mistake::Truncated)?;
        if len > LONGEST_REASON {
            return Err(Mistake::ReasonTooLong);
        }
        Ok(harmless(self.text(len)?))
    }

    fn tuple(&mut self) -> Result<FiveTuple, Mistake> {
        let head = self.take(2).ok_or(Mistake::Truncated)?;
        let len = match head[0] {
            4 => 4,
            6 => 16,
            _ => return Err(Mistake::AddressVersion),
        };
        let mut address = || {
            let bytes = self.take(len).ok_or(Mistake::Truncated)?;
            Ok(match <[u8; 4]>::try_from(bytes) {
                Ok(octets) => IpAddr::from(octets),
                Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
            })
        };
        let (source, destination) = (address()?, address()?);
        let mut port = || {
            let bytes = self.take(2).ok_or(Mistake::Truncated)?;
            Ok(u16::from(bytes[0]) * 256 + u16::from(bytes[1]))
        };
        Ok(FiveTuple {
            source,
            destination,
            protocol: head[1],
            source_port: port()?,
            destination_port: port()?,
        })
    }
}

/// SPIFFE-ID.md §2, said once more.
pub(crate) fn is_spiffe_id(text: &str) -> bool {
    let mut parts = text.split('/');
    let scheme = parts.next() == Some("spiffe:") && parts.next() == Some("");
    let domain = parts.next().unwrap_or_default();
    let in_domain = |char| matches!(char, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    let in_path = |char| in_domain(char) || char.is_ascii_uppercase();
    scheme
        && text.len() <= 2_048
        && (1..=255).contains(&domain.len())
        && domain.chars().all(in_domain)
        && parts.all(|part| !matches!(part, "" | "." | "..") && part.chars().all(in_path))
}

/// What a terminal and a log take as it is.
fn is_harmless(char: char) -> bool {
    let turns = [
        '\u{200b}', '\u{200c}', '\u{200d}', '\u{200e}', '\u{200f}', '\u{feff}',
    ];
    let code = u32::from(char);
    code >= 0x20
        && !(0x7f..0xa0).contains(&code)
        && !turns.contains(&char)
        && !(0x2028..=0x202e).contains(&code)
        && !(0x2060..=0x206f).contains(&code)
}

fn harmless(text: &str) -> String {
    text.chars()
        .map(|char| if is_harmless(char) { char } else { '\u{fffd}' })
        .collect()
}
