//! The two sides of `netns/flood.sh`: an attacker who sends first packets of QUIC connections, each good and each another
//! one, under the addresses of a /16; and an honest peer who connects while that goes on.
//!
//! Usage: initial-flood flood TARGET SPIFFE-ID RATE SECONDS   from 198.19.0.0/16, which this host must have; prints what it sent
//!        initial-flood dial TARGET SPIFFE-ID RATE SECONDS OWN-SPIFFE-ID CERTIFICATE.pem KEY.pem   prints how long READY took

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "an example talks, and measures by the clock"
)]
#![expect(clippy::unwrap_used, reason = "a rig that cannot go on ends here")]

#[path = "../tests/hostile/peer.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod peer;

use std::{
    env, fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use identun::{identity::sni, spiffe::SpiffeId, wire::capsule::Capsule};
use peer::{Control, Credentials};
use quinn_proto::{ClientConfig, Endpoint, EndpointConfig};
use quinn_udp::{Transmit, UdpSockRef, UdpSocketState};
use rustls::crypto::aws_lc_rs;

/// Different first packets: more than are held anywhere, so that each that is sent begins another connection.
const POOL: usize = 1 << 16;
/// How long an honest peer waits.
const GIVE_UP: Duration = Duration::from_secs(5);

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["flood", to, id, rate, seconds] => flood(
            to.parse().unwrap(),
            &id.parse().unwrap(),
            rate.parse().unwrap(),
            Duration::from_secs(seconds.parse().unwrap()),
        ),
        ["dial", to, id, rate, seconds, own, certificate, key] => {
            let credentials =
                Credentials::from_pem(&fs::read(certificate).unwrap(), &fs::read(key).unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(dial_often(
                to.parse().unwrap(),
                [own, id].map(|id| id.parse().unwrap()),
                rate.parse().unwrap(),
                Duration::from_secs(seconds.parse().unwrap()),
                Arc::new(credentials),
            ));
        }
        _ => println!("usage: initial-flood flood|dial TARGET SPIFFE-ID RATE SECONDS ..."),
    }
}

/// Sends `rate` packets a second, each millisecond its share.
fn flood(to: SocketAddr, id: &SpiffeId, rate: u32, time: Duration) {
    let pool = first_packets(&sni::server_name(id));
    println!("ready");
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let state = UdpSocketState::new(UdpSockRef::from(&socket)).unwrap();
    let started = Instant::now();
    let (mut sent, mut refused) = (0u64, 0u64);
    while started.elapsed() < time {
        let due = (started.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        // What the machine could not send in time is not made up for: the rate is a bound.
        for _ in 0..(due - sent).min(u64::from(rate) / 100) {
            let [.., high, low] = (sent as u32).wrapping_mul(40_503).to_be_bytes();
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: &pool[sent as usize % pool.len()],
                segment_size: None,
                src_ip: Some(IpAddr::V4(Ipv4Addr::new(198, 19, high, low))),
            };
            refused += u64::from(
                state
                    .try_send(UdpSockRef::from(&socket), &transmit)
                    .is_err(),
            );
            sent += 1;
        }
        thread::sleep(Duration::from_millis(1));
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{} {refused} {seconds:.1}", sent - refused);
}

/// First packets of as many connections for `name`. The cheapest key exchange: these never become one.
fn first_packets(name: &str) -> Vec<Vec<u8>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let tls = peer::client_tls(Arc::new(provider), None);
    let tls = quinn_proto::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let config = ClientConfig::new(Arc::new(tls));
    let (now, to) = (Instant::now(), SocketAddr::from(([192, 0, 2, 1], 1)));
    let mut packets = Vec::with_capacity(POOL);
    while packets.len() < POOL {
        let mut endpoint = Endpoint::new(Arc::new(EndpointConfig::default()), None, true, None);
        for _ in 0..1_024 {
            let connect = endpoint.connect(now, config.clone(), to, name);
            let (_, mut connection) = connect.unwrap();
            let mut packet = Vec::new();
            let transmit = connection.poll_transmit(now, 1, &mut packet);
            packet.truncate(transmit.unwrap().size);
            packets.push(packet);
        }
    }
    packets
}

/// Begins `rate` sessions a second and tells how long each took to READY.
async fn dial_often(
    to: SocketAddr,
    ids: [SpiffeId; 2],
    rate: u32,
    time: Duration,
    credentials: Arc<Credentials>,
) {
    let started = tokio::time::Instant::now();
    let mut dials = Vec::new();
    while started.elapsed() < time {
        let (ids, credentials) = (ids.clone(), Arc::clone(&credentials));
        dials.push(tokio::spawn(async move {
            let begun = Instant::now();
            let session = tokio::time::timeout(GIVE_UP, session(to, &ids, &credentials));
            let is_up = session.await.unwrap_or(false);
            is_up.then(|| begun.elapsed())
        }));
        tokio::time::sleep_until(started + Duration::from_secs(dials.len() as u64) / rate).await;
    }
    let mut took = Vec::new();
    let mut failed = 0;
    for dial in dials {
        match dial.await.unwrap() {
            Some(time) => took.push(time),
            None => failed += 1,
        }
    }
    took.extend(std::iter::repeat_n(GIVE_UP, failed));
    took.sort_unstable();
    let at = |percent: usize| took[(took.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let (count, p50, p99, max) = (took.len(), at(50), at(99), at(100));
    println!("{count} {failed} {p50:.1} {p99:.1} {max:.1}");
}

async fn session(to: SocketAddr, [own, wanted]: &[SpiffeId; 2], credentials: &Credentials) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let name = sni::server_name(wanted);
    let Ok(connection) = peer::dial(socket, to, &name, Some(credentials)).await else {
        return false;
    };
    let mut control = Control::hello(&connection, own, wanted).await;
    let is_ready = matches!(control.hear().await, Some(Capsule::Ready { .. }));
    connection.close(0x100u32.into(), b"");
    is_ready
}
