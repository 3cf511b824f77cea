//! Ring 2: a daemon becomes another one under traffic; nothing that its peers send is lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    dead_code,
    reason = "the simulation serves other tests too, and not all of it is needed here"
)]

#[path = "sim/host.rs"]
mod host;
#[path = "sim/world.rs"]
mod world;

use std::{net::IpAddr, time::Duration};

use identun::wire::FiveTuple;
use smoltcp::iface::SocketHandle;
use world::World;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const PORT: u16 = 8_080;
const CLIENT_PORT: u16 = 5_000;
const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Between two packets.
const EVERY: Duration = Duration::from_millis(2);
/// From a predecessor's last packet to its successor's first.
const GAP: Duration = Duration::from_millis(80);

const MESH: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: { name: default, namespace: istio-system }
spec: { host: "*.local", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: a, annotations: { identun.io/gateway: "192.0.2.1" } }
spec: { address: "10.0.0.1", serviceAccount: a }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: b, annotations: { identun.io/gateway: "192.0.2.2" } }
spec: { address: "10.0.0.2", serviceAccount: b }
"#;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Bob's application sends to Alice's, as it answers her first question.
struct Stream {
    client: SocketHandle,
    server: SocketHandle,
    sent: u32,
    received: Vec<u32>,
}

impl Stream {
    fn start(world: &mut World) -> Self {
        let client = world.nodes[0].stack.bind_udp(CLIENT_PORT);
        let server = world.nodes[1].stack.bind_udp(PORT);
        world.nodes[0]
            .stack
            .udp_send(client, (address(B), PORT), b"go on");
        let asked = world.run_until(SECOND, |world| {
            world.nodes[1].stack.udp(server).recv().is_ok()
        });
        assert!(asked.is_some(), "no question came");
        Self {
            client,
            server,
            sent: 0,
            received: Vec::new(),
        }
    }

    /// Sends one packet, and lets some time pass.
    fn go_on(&mut self, world: &mut World) {
        let number = self.sent.to_be_bytes();
        world.nodes[1]
            .stack
            .udp_send(self.server, (address(A), CLIENT_PORT), &number);
        self.sent += 1;
        self.pass(world, EVERY);
    }

    fn pass(&mut self, world: &mut World, time: Duration) {
        world.run_for(time);
        while let Ok((bytes, _)) = world.nodes[0].stack.udp(self.client).recv() {
            self.received
                .push(u32::from_be_bytes(bytes.try_into().unwrap()));
        }
    }
}

/// Alice's daemon becomes another one while Bob's application sends packets. How many of how many were lost.
fn lost_in_an_upgrade(seed: u64, delay: Duration, hold: bool) -> (usize, u32) {
    let mut world = World::new(MESH, seed);
    world.link.delay = delay;
    world.add(&["a"], "192.0.2.1", &[A]);
    world.add(&["b"], "192.0.2.2", &[B]);
    let mut stream = Stream::start(&mut world);
    (0..50).for_each(|_| stream.go_on(&mut world));
    let now = world.now();
    if hold {
        world.nodes[0].shard.handle_hold(now);
        for _ in 0..25 {
            if world.nodes[0].shard.is_held() {
                break;
            }
            stream.go_on(&mut world);
        }
    }
    let now = world.now();
    world.nodes[0].shard.handle_close("stopped", now);
    world.run_for(Duration::ZERO);
    // The predecessor reads nothing any more.
    let until = world.elapsed + GAP;
    world.pause(0);
    while world.elapsed < until {
        stream.go_on(&mut world);
    }
    world.restart(0);
    let now = world.now();
    let flow = FiveTuple {
        protocol: 17,
        source: address(A),
        source_port: CLIENT_PORT,
        destination: address(B),
        destination_port: PORT,
    };
    world.nodes[0].shard.handle_seed(&[flow], now);
    world.resume(0);
    (0..50).for_each(|_| stream.go_on(&mut world));
    stream.pass(&mut world, SECOND);
    let mut received = stream.received.clone();
    received.sort_unstable();
    received.dedup();
    assert_eq!(received.len(), stream.received.len(), "a packet came twice");
    (stream.sent as usize - received.len(), stream.sent)
}

#[test]
fn an_upgrade_loses_nothing_that_peers_send() {
    for (seed, delay) in [(1, 1), (2, 5), (3, 20)] {
        let (lost, sent) = lost_in_an_upgrade(seed, delay * MILLISECOND, true);
        assert_eq!(lost, 0, "of {sent}, {delay} ms away");
    }
}

#[test]
fn without_asking_peers_to_hold_back_what_is_on_its_way_is_lost() {
    let (lost, _) = lost_in_an_upgrade(2, 5 * MILLISECOND, false);
    // A round trip's packets: those in flight when the close leaves, and those sent until it arrives.
    assert!((4..=6).contains(&lost), "{lost}");
}
