//! What peers say: strings that would be lines of a log, commands of a terminal, or read from right to left (steering.md D11).

use std::{
    io::{Read, Write},
    net::UdpSocket,
    os::unix::net::UnixStream,
    time::Duration,
};

use identun::wire::{
    FiveTuple,
    capsule::{Capsule, FlowRefused, FlowRefusedCode, PeerFlags, RefusedCode},
};

use crate::{
    foreign::{credentials, session},
    mesh::{CLIENT_4, PORT, SERVER_4, STRICT},
    peer::{self, Control},
    rig::{Rig, in_namespace, in_namespaces, wait_for},
    traffic::udp_echo,
};

/// How a hostile string begins, and what must stand nowhere without that.
const SORRY: &str = "sorry";
const INJECTED: &str = "INJECTED";

fn hostile(which: &str) -> String {
    format!(
        "{SORRY} {which}\r\n2026-01-01T00:00:00Z ERROR {INJECTED}\u{1b}[2J\u{202e}\u{2028}\u{7f}\0end"
    )
}

/// The texts of a host that peers had a part in: its log, what its commands print, and its events.
fn texts(rig: &Rig, host: &str) -> [String; 3] {
    let socket = rig.path(&format!("{host}/admin.sock"));
    let status = rig.identun(host, &["status", "--socket", &socket]);
    let mut events = String::new();
    let mut stream = UnixStream::connect(socket).unwrap();
    let ask = b"GET /v1/events HTTP/1.1\r\nhost: identun\r\nconnection: close\r\n\r\n";
    stream.write_all(ask).unwrap();
    stream.read_to_string(&mut events).unwrap();
    let (head, events) = events.split_once("\r\n\r\n").unwrap();
    assert!(head.contains("200") && events.contains(SORRY), "{head}");
    [rig.log(host), status, events.to_owned()]
}

#[track_caller]
fn assert_harmless(text: &str) {
    let hidden = |character: char| {
        character.is_control() && character != '\n'
            || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
    };
    assert!(!text.contains(hidden), "{text:?}");
    // A table may break a long text, but then indents it.
    for line in text.lines().filter(|line| line.contains(INJECTED)) {
        let is_own = line.contains(SORRY) || line.starts_with("  ");
        assert!(is_own, "a peer wrote a line: {line:?}");
    }
}

#[test]
fn what_a_peer_says_is_one_line_of_harmless_characters() {
    in_namespaces(
        "hostile::words::what_a_peer_says_is_one_line_of_harmless_characters",
        |rig| {
            rig.standard(STRICT);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            // The host of `server` is hostile: its certificate is good, its words are not.
            let own = credentials(&rig, "server", "server");
            let socket = in_namespace("server", || UdpSocket::bind("[::]:15008").unwrap());
            runtime.spawn(async move {
                let endpoint = peer::server(socket, &own);
                let mut visits = 0;
                while let Some(incoming) = endpoint.accept().await {
                    if let Ok(connection) = incoming.await {
                        visits += 1;
                        answer(&connection, visits).await;
                    }
                }
            });
            let client = rig.start("client");
            let moment = Duration::from_millis(20);
            let words = ["flow", "close", "refused"];
            wait_for("all words to be told", || {
                let _ = udp_echo("client", (SERVER_4, PORT), b"hello", moment);
                let log = rig.log("client");
                words
                    .iter()
                    .all(|word| log.contains(&format!("{SORRY} {word}")))
            });
            texts(&rig, "client")
                .iter()
                .for_each(|text| assert_harmless(text));
            client.terminate();
            rig.identun("client", &["down", "--config", &rig.settings("client")]);

            // And the other way round: a hostile client.
            drop(runtime);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let server = rig.start("server");
            let own = credentials(&rig, "client", "client");
            let socket = in_namespace("client", || UdpSocket::bind((CLIENT_4, 0)).unwrap());
            runtime.block_on(async {
                let (connection, _control) = session(socket, &own).await;
                connection.close(0x100u32.into(), hostile("client").as_bytes());
                wait_for("the close to be told", || {
                    rig.log("server").contains(&format!("{SORRY} client"))
                });
            });
            texts(&rig, "server")
                .iter()
                .for_each(|text| assert_harmless(text));
            drop(server);
        },
    );
}

/// Up, with all that may be said there, or refused at once.
async fn answer(connection: &quinn::Connection, visit: u32) {
    let Ok(mut control) = Control::accept(connection).await else {
        return;
    };
    if visit > 1 {
        let refused = Capsule::Refused {
            code: RefusedCode::NotAllowed,
            reason: hostile("refused"),
        };
        control.say(&refused).await;
        return drop(connection.closed().await);
    }
    let flags = PeerFlags::ALL;
    control.say(&Capsule::Ready { version: 1, flags }).await;
    let Ok(first) = connection.read_datagram().await else {
        return;
    };
    let source_port = u16::from_be_bytes([first[22], first[23]]);
    let tuple = FiveTuple {
        protocol: 17,
        source: CLIENT_4.parse().unwrap(),
        source_port,
        destination: SERVER_4.parse().unwrap(),
        destination_port: PORT,
    };
    let code = FlowRefusedCode::DeniedByPolicy;
    let reason = hostile("flow");
    let refused = FlowRefused {
        code,
        tuple,
        reason,
    };
    control.say(&Capsule::FlowRefused(refused)).await;
    let reason = hostile("drain");
    control.say(&Capsule::Drain { reason }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    connection.close(0x10fu32.into(), hostile("close").as_bytes());
}
