use proptest::prelude::*;

use super::*;
use crate::wire::varint;

fn read(bytes: &[u8]) -> Result<Vec<Capsule>, CapsuleError> {
    let mut reader = CapsuleReader::default();
    reader.push(bytes);
    let mut capsules = Vec::new();
    while let Some(capsule) = reader.poll()? {
        capsules.push(capsule);
    }
    Ok(capsules)
}

fn raw(kind: u64, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint::encode(kind, &mut bytes);
    varint::encode(value.len() as u64, &mut bytes);
    bytes.extend_from_slice(value);
    bytes
}

fn encoded(capsule: &Capsule) -> Vec<u8> {
    let mut bytes = Vec::new();
    capsule.encode(&mut bytes);
    bytes
}

fn flow_refused(source: &str, destination: &str) -> Capsule {
    let tuple = FiveTuple {
        protocol: 6,
        source: source.parse().unwrap(),
        source_port: 40_000,
        destination: destination.parse().unwrap(),
        destination_port: 80,
    };
    let code = FlowRefusedCode::NoMatchingAllow;
    Capsule::FlowRefused(FlowRefused {
        code,
        tuple,
        reason: "no rule allows it".into(),
    })
}

fn hello(version: u64) -> Capsule {
    let [source, destination] =
        ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/c/sa/d"].map(|id| id.parse().unwrap());
    Capsule::Hello(Hello {
        version,
        flags: PeerFlags::ALL,
        source,
        destination,
    })
}

fn every_kind() -> Vec<Capsule> {
    vec![
        hello(VERSION),
        Capsule::Ready {
            version: VERSION,
            flags: PeerFlags::from_bits(1),
        },
        Capsule::Refused {
            code: RefusedCode::NotHere,
            reason: "no such workload".into(),
        },
        flow_refused("10.0.0.1", "10.0.0.2"),
        flow_refused("2001:db8::1", "2001:db8::2"),
        Capsule::Drain {
            reason: String::new(),
        },
        Capsule::Hold,
        Capsule::Held,
        Capsule::Unknown { kind: 0x02 },
    ]
}

#[test]
fn every_capsule_is_read_as_it_was_written() {
    let bytes: Vec<u8> = every_kind().iter().flat_map(encoded).collect();
    assert_eq!(read(&bytes), Ok(every_kind()));
}

#[test]
fn a_stream_may_be_cut_anywhere() {
    let bytes: Vec<u8> = every_kind().iter().flat_map(encoded).collect();
    let mut reader = CapsuleReader::default();
    let mut capsules = Vec::new();
    for byte in bytes {
        reader.push(&[byte]);
        while let Some(capsule) = reader.poll().unwrap() {
            capsules.push(capsule);
        }
    }
    assert_eq!(capsules, every_kind());
}

#[test]
fn the_layout_is_that_of_the_standard() {
    assert_eq!(
        encoded(&Capsule::Ready {
            version: 1,
            flags: PeerFlags::ALL
        }),
        [0x5d, 0x01, 2, 1, 3],
    );
    let Capsule::FlowRefused(mut refused) = flow_refused("10.0.0.1", "10.0.0.2") else {
        unreachable!()
    };
    refused.reason = "x".into();
    let layout = [
        0x5d, 0x03, 17, 2, 4, 6, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c, 0x40, 0, 80, 1, b'x',
    ];
    assert_eq!(encoded(&Capsule::FlowRefused(refused)), layout);
}

#[test]
fn unknown_capsules_are_skipped() {
    let bytes = [
        raw(0x01, &[1; 30]),
        raw(0x1d07, &[]),
        raw(varint::MAX, &[0; MAX_VALUE]),
        encoded(&hello(1)),
    ]
    .concat();
    let unknown = |kind| Capsule::Unknown { kind };
    assert_eq!(
        read(&bytes),
        Ok(vec![
            unknown(1),
            unknown(0x1d07),
            unknown(varint::MAX),
            hello(1)
        ])
    );
}

#[test]
fn an_oversized_capsule_is_refused_before_its_value_comes() {
    for kind in [HELLO, 0x77] {
        let bytes = raw(kind, &[0; MAX_VALUE + 1]);
        let error = CapsuleError::ValueTooLong {
            kind,
            len: MAX_VALUE as u64 + 1,
        };
        assert_eq!(read(&bytes[..8]), Err(error));
    }
}

#[test]
fn malformed_capsules_have_an_error_each() {
    let (id, text) = (b"\x0bspiffe://td", b"\x02ok");
    let cases: [(u64, Vec<u8>, CapsuleError); 18] = [
        (READY, vec![], CapsuleError::Truncated { kind: READY }),
        (READY, vec![1], CapsuleError::Truncated { kind: READY }),
        (
            READY,
            vec![1, 0x40],
            CapsuleError::Truncated { kind: READY },
        ),
        (READY, vec![1, 0, 0], CapsuleError::Trailing { kind: READY }),
        (DRAIN, vec![], CapsuleError::Truncated { kind: DRAIN }),
        (
            DRAIN,
            vec![3, b'o', b'k'],
            CapsuleError::Truncated { kind: DRAIN },
        ),
        (
            DRAIN,
            vec![1, b'o', b'k'],
            CapsuleError::Trailing { kind: DRAIN },
        ),
        (DRAIN, vec![2, 0xc3, 0x28], CapsuleError::Text),
        (HOLD, vec![0], CapsuleError::Trailing { kind: HOLD }),
        (HELD, vec![0], CapsuleError::Trailing { kind: HELD }),
        (
            DRAIN,
            [vec![0x41, 0x01], vec![b'x'; 257]].concat(),
            CapsuleError::ReasonTooLong { len: 257 },
        ),
        (
            DRAIN,
            vec![0xff; 8],
            CapsuleError::ReasonTooLong { len: varint::MAX },
        ),
        (
            REFUSED,
            [&[5][..], text, &[0]].concat(),
            CapsuleError::Trailing { kind: REFUSED },
        ),
        (
            HELLO,
            [&[1, 0][..], id].concat(),
            CapsuleError::Truncated { kind: HELLO },
        ),
        (
            HELLO,
            [&[1, 0][..], id, text].concat(),
            CapsuleError::SpiffeId(SpiffeIdError::Scheme),
        ),
        (
            HELLO,
            [&[1, 0][..], id, id, &[0]].concat(),
            CapsuleError::Trailing { kind: HELLO },
        ),
        (
            FLOW_REFUSED,
            vec![1, 5, 6],
            CapsuleError::AddressVersion { version: 5 },
        ),
        (
            FLOW_REFUSED,
            [&[1, 6, 6][..], &[0; 30]].concat(),
            CapsuleError::Truncated { kind: FLOW_REFUSED },
        ),
    ];
    for (kind, value, error) in cases {
        assert_eq!(read(&raw(kind, &value)), Err(error), "{value:?}");
    }
}

#[test]
fn an_error_is_final() {
    let mut reader = CapsuleReader::default();
    reader.push(&raw(READY, &[]));
    let error = CapsuleError::Truncated { kind: READY };
    assert_eq!(reader.poll(), Err(error.clone()));
    reader.push(&encoded(&hello(1)));
    assert_eq!(reader.poll(), Err(error));
}

#[test]
fn unread_bytes_are_bounded() {
    let mut reader = CapsuleReader::default();
    for _ in 0..100 {
        reader.push(&[0; 1000]);
    }
    assert_eq!(reader.poll(), Err(CapsuleError::Flooded));
    let mut reader = CapsuleReader::default();
    for _ in 0..100 {
        reader.push(&[0; 1000]);
        while reader.poll().unwrap().is_some() {}
    }
}

#[test]
fn another_version_may_have_more_fields() {
    assert_eq!(
        read(&raw(READY, &[2, 7, 9, 9])),
        Ok(vec![Capsule::Ready {
            version: 2,
            flags: PeerFlags::ALL
        }]),
    );
    let mut value = vec![2, 3];
    for id in ["spiffe://td/ns/a/sa/b", "spiffe://td/ns/c/sa/d"] {
        value.push(id.len() as u8);
        value.extend(id.as_bytes());
    }
    value.push(0xff);
    assert_eq!(read(&raw(HELLO, &value)), Ok(vec![hello(2)]));
}

#[test]
fn unknown_codes_are_the_cautious_ones() {
    for code in [0, 8, 63] {
        let refused = Capsule::Refused {
            code: RefusedCode::NotAllowed,
            reason: String::new(),
        };
        assert_eq!(read(&raw(REFUSED, &[code, 0])), Ok(vec![refused]));
        assert_eq!(
            FlowRefusedCode::from_code(code.into()),
            FlowRefusedCode::DeniedByPolicy
        );
    }
    for code in 1..=7 {
        assert_eq!(RefusedCode::from_code(code) as u64, code);
    }
    for code in 1..=6 {
        assert_eq!(FlowRefusedCode::from_code(code) as u64, code);
    }
}

#[test]
fn unknown_flags_are_ignored() {
    let known = PeerFlags::ALL.with_lane(0xff);
    assert_eq!(PeerFlags::from_bits(u64::MAX), known);
    assert_eq!(PeerFlags::ALL.and(PeerFlags::from_bits(2)).bits(), 2);
}

#[test]
fn the_lane_crosses_beside_the_flags_and_is_no_part_of_what_both_can_do() {
    for lane in [0, 1, 200, u8::MAX] {
        let flags = PeerFlags::ALL.with_lane(3).with_lane(lane);
        let capsule = Capsule::Ready {
            version: VERSION,
            flags,
        };
        assert_eq!(read(&encoded(&capsule)).unwrap(), [capsule]);
        assert_eq!((flags.lane(), flags.fragment()), (lane, true));
        assert_eq!(flags.and(PeerFlags::ALL), PeerFlags::ALL);
    }
}

#[test]
fn long_reasons_are_cut_off_at_a_character() {
    let reason = format!("{}é", "x".repeat(255));
    let capsules = read(&encoded(&Capsule::Drain { reason })).unwrap();
    assert_eq!(
        capsules,
        [Capsule::Drain {
            reason: "x".repeat(255)
        }]
    );
}

#[test]
fn reasons_are_safe_to_print() {
    let reason = "a\nb\x1b[31m\u{202e}c\u{85}\u{2028}\u{feff}é".to_owned();
    let capsules = read(&encoded(&Capsule::Drain { reason })).unwrap();
    let safe = "a\u{fffd}b\u{fffd}[31m\u{fffd}c\u{fffd}\u{fffd}\u{fffd}é".to_owned();
    assert_eq!(capsules, [Capsule::Drain { reason: safe }]);
}

proptest! {
    #[test]
    fn no_bytes_can_harm(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0x1d00_u64..0x1d06) {
        let _ = read(&bytes);
        let _ = read(&raw(kind, &bytes));
    }

    #[test]
    fn what_is_read_is_written_the_same(value in prop::collection::vec(any::<u8>(), 0..60), kind in 0x1d01_u64..0x1d05) {
        for capsule in read(&raw(kind, &value)).unwrap_or_default() {
            prop_assert_eq!(read(&encoded(&capsule)), Ok(vec![capsule]));
        }
    }
}
