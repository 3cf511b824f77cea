//! An authenticated peer, on the stock `quinn` crate, whose datagrams are broken (wire.md T6).

use std::{collections::BTreeMap, net::UdpSocket};

use identun::wire::fragment;

use crate::{
    foreign::{arrived, credentials, session, udp},
    mesh::{CLIENT_4, CLIENT_6, PORT, SERVER_4, SERVER_6, STRICT},
    rig::{in_namespace, in_namespaces, wait_for},
    traffic::Echo,
};

/// The datagrams made of one honest packet.
type Datagrams = fn(&[u8]) -> Vec<Vec<u8>>;

/// What is wrong, what is sent, and under which reasons it must be counted.
type Broken = (&'static str, Datagrams, &'static [&'static str]);

const BROKEN: &[Broken] = &[
    ("empty", |_| vec![vec![]], &["bad_datagram"]),
    (
        "other quarter stream id",
        |packet| vec![[&[1, 0], packet].concat()],
        &["bad_datagram"],
    ),
    ("no context", |_| vec![vec![0]], &["bad_datagram"]),
    ("half a context", |_| vec![vec![0, 0x40]], &["bad_datagram"]),
    ("no packet", |_| vec![vec![0, 0]], &["bad_datagram"]),
    (
        "unknown context",
        |packet| vec![[&[0, 6], packet].concat()],
        &["unknown_context"],
    ),
    (
        "unknown context in eight bytes",
        |packet| vec![[&[0, 0xc0, 0, 0, 0, 0, 0, 1, 0], packet].concat()],
        &["unknown_context"],
    ),
    (
        "half a header",
        |packet| vec![[&[0, 0], &packet[..12]].concat()],
        &["length_mismatch"],
    ),
    (
        "truncated",
        |packet| vec![[&[0, 0], &packet[..packet.len() - 1]].concat()],
        &["length_mismatch"],
    ),
    (
        "a byte too many",
        |packet| vec![[&[0, 4], packet, &[0]].concat()],
        &["length_mismatch"],
    ),
    (
        "IP version 5",
        |packet| vec![[&[0, 0, 0x55], &packet[1..]].concat()],
        &["malformed"],
    ),
    (
        "IP version 15, partial checksum",
        |packet| vec![[&[0, 4, 0xff], &packet[1..]].concat()],
        &["malformed"],
    ),
    (
        "half a fragment header",
        |_| vec![vec![0, 2, 0, 1]],
        &["bad_fragment"],
    ),
    (
        "fragment beyond its count",
        |packet| vec![piece(1, 2, 2, packet)],
        &["bad_fragment"],
    ),
    (
        "fragment of one",
        |packet| vec![piece(2, 0, 1, packet)],
        &["bad_fragment"],
    ),
    (
        "empty fragment",
        |_| vec![piece(3, 0, 2, &[])],
        &["bad_fragment"],
    ),
    (
        // The last piece comes too late for its packet, and waits in vain for another.
        "overlap",
        |packet| {
            let (first, second) = packet.split_at(20);
            vec![
                piece(4, 0, 2, first),
                piece(4, 0, 2, first),
                piece(4, 1, 2, second),
            ]
        },
        &["bad_fragment", "fragment_timeout"],
    ),
    (
        "disagreement about the number",
        |packet| {
            let (first, second) = packet.split_at(20);
            vec![piece(5, 0, 2, first), piece(5, 1, 3, second)]
        },
        &["bad_fragment"],
    ),
    (
        "first fragment missing",
        |packet| vec![piece(6, 1, 2, &packet[20..])],
        &["fragment_timeout"],
    ),
    (
        "last fragment missing",
        |packet| {
            let (first, second) = packet.split_at(20);
            vec![piece(7, 0, 3, first), piece(7, 1, 3, second)]
        },
        &["fragment_timeout"],
    ),
    (
        "fragments of a truncated packet",
        |packet| {
            let (first, second) = packet.split_at(20);
            vec![
                piece(8, 0, 2, first),
                piece(8, 1, 2, &second[..second.len() - 1]),
            ]
        },
        &["malformed"],
    ),
];

/// The honest twins: all of them arrive.
const HONEST: &[Datagrams] = &[
    |packet| vec![[&[0, 0], packet].concat()],
    |packet| vec![[&[0, 0x40, 0], packet].concat()],
    |packet| {
        let (first, second) = packet.split_at(20);
        vec![piece(100, 0, 2, first), piece(100, 1, 2, second)]
    },
    |packet| {
        let ((first, rest), last) = (packet.split_at(20), packet.len() - 21);
        let (second, third) = rest.split_at(last);
        vec![
            piece(101, 2, 3, third),
            piece(101, 0, 3, first),
            piece(101, 1, 3, second),
        ]
    },
];

fn piece(id: u16, index: u8, count: u8, bytes: &[u8]) -> Vec<u8> {
    [&fragment::header(id, index, count), bytes].concat()
}

#[test]
fn broken_datagrams_are_counted_by_reason_and_their_session_goes_on() {
    in_namespaces(
        "datagrams::broken_datagrams_are_counted_by_reason_and_their_session_goes_on",
        |rig| {
            rig.standard(STRICT);
            let server = rig.start("server");
            let echo = Echo::start("server", PORT);
            let credentials = credentials(&rig, "client", "client");
            let socket = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let packets = [(CLIENT_4, SERVER_4), (CLIENT_6, SERVER_6)]
                .map(|(from, to)| udp(from.parse().unwrap(), to.parse().unwrap()));
            let (connection, _control) = runtime.block_on(session(socket, &credentials));
            let send = |datagrams: Vec<Vec<u8>>| {
                for datagram in datagrams {
                    connection.send_datagram(datagram.into()).unwrap();
                }
            };
            let mut arrivals = 0;
            let mut expected = BTreeMap::new();
            for packet in &packets {
                for (_, broken, reasons) in BROKEN {
                    send(broken(packet));
                    for reason in *reasons {
                        *expected.entry(*reason).or_insert(0) += 1;
                    }
                    // The session is up, and what was sent before has been handled.
                    send(HONEST[0](packet));
                    arrivals += 1;
                    runtime.block_on(arrived(&echo, arrivals));
                }
                for honest in HONEST {
                    send(honest(packet));
                    arrivals += 1;
                    runtime.block_on(arrived(&echo, arrivals));
                }
            }
            let counted = |reason: &str| {
                let status = rig.status("server").unwrap();
                status["drops"][reason].as_u64().unwrap_or(0)
            };
            wait_for("incomplete packets to be given up", || {
                counted("fragment_timeout") >= expected["fragment_timeout"]
            });
            for (reason, count) in &expected {
                assert_eq!(counted(reason), *count, "{reason}");
            }
            send(HONEST[0](&packets[0]));
            runtime.block_on(arrived(&echo, arrivals + 1));
            let status = rig.status("server").unwrap();
            assert_eq!(echo.datagrams(), arrivals + 1, "nothing broken arrives");
            assert_eq!(connection.close_reason(), None);
            assert_eq!(
                status["tunnels"][0]["handshakes"], 1,
                "it is still the first session"
            );
            println!(
                "{} broken datagrams, twice: {}",
                BROKEN.len(),
                status["drops"]
            );
            drop(server);
        },
    );
}
