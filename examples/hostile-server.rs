//! The demo's impostor: a tunnel endpoint on the stock `quinn` crate that ignores which identity the client wants, presents
//! its own valid certificate, and says READY to whoever lets it. Prints one line for each connection.
//!
//! Usage: hostile-server CERTIFICATE.pem KEY.pem

#![expect(clippy::print_stdout, reason = "an example talks")]
#![expect(clippy::unwrap_used, reason = "a demo that cannot go on ends here")]

#[path = "../tests/hostile/peer.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod peer;

use std::{env, fs, net::UdpSocket};

use identun::wire::capsule::{Capsule, PeerFlags};
use peer::{Control, Credentials};

#[tokio::main]
async fn main() {
    let mut arguments = env::args().skip(1);
    let (Some(certificate), Some(key)) = (arguments.next(), arguments.next()) else {
        return println!("usage: hostile-server CERTIFICATE.pem KEY.pem");
    };
    let credentials =
        Credentials::from_pem(&fs::read(certificate).unwrap(), &fs::read(key).unwrap());
    let endpoint = peer::server(UdpSocket::bind("[::]:15008").unwrap(), &credentials);
    println!("listening");
    while let Some(incoming) = endpoint.accept().await {
        match incoming.await {
            Err(error) => println!("refused: {error}"),
            Ok(connection) => println!("inner packets: {}", receive(&connection).await),
        }
    }
}

/// Says READY and counts what the client then sends until the connection ends.
async fn receive(connection: &quinn::Connection) -> usize {
    let Ok(mut control) = Control::accept(connection).await else {
        return 0;
    };
    control
        .say(&Capsule::Ready {
            version: 1,
            flags: PeerFlags::ALL,
        })
        .await;
    let mut packets = 0;
    while connection.read_datagram().await.is_ok() {
        packets += 1;
    }
    packets
}
