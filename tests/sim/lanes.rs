//! A host with two shards and a peer with one.

use std::{net::IpAddr, time::Duration};

use identun::tunnel::TunnelState;
use smoltcp::iface::SocketHandle;

use crate::world::World;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const PORT: u16 = 8_080;
const SECOND: Duration = Duration::from_secs(1);

const STRICT: &str = r#"apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: { name: default, namespace: istio-system }
spec: { host: "*.local", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }
"#;

fn mesh() -> String {
    let mut text = STRICT.to_owned();
    for (account, address, gateway) in [("a", A, "192.0.2.1"), ("b", B, "192.0.2.2")] {
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: {account}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        ));
    }
    text
}

/// Alice with two shards, nodes 0 and 2, and Bob, node 1.
fn three(seed: u64) -> World {
    let mut world = World::new(&mesh(), seed);
    world.add(&["a"], "192.0.2.1", &[A]);
    world.add(&["b"], "192.0.2.2", &[B]);
    world.add_shard(0, &[address(A)]);
    world
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Alice's application of a shard connects to Bob.
fn connect(world: &mut World, node: usize, port: u16) -> (SocketHandle, SocketHandle) {
    let server = world.nodes[1].stack.listen(PORT);
    let client = world.nodes[node]
        .stack
        .connect((address(A), port), (address(B), PORT));
    let up = world.run_until(5 * SECOND, |world| {
        world.nodes[node].stack.tcp(client).may_send()
            && world.nodes[1].stack.tcp(server).may_send()
    });
    up.unwrap();
    (client, server)
}

/// Sends some text from one end of a connection to the other.
fn speak(world: &mut World, from: (usize, SocketHandle), to: (usize, SocketHandle)) {
    let text: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let (mut sent, mut heard) = (0, Vec::new());
    let done = world.run_until(10 * SECOND, |world| {
        let sender = world.nodes[from.0].stack.tcp(from.1);
        if sender.can_send() && sent < text.len() {
            sent += sender.send_slice(&text[sent..]).unwrap();
        }
        let receiver = world.nodes[to.0].stack.tcp(to.1);
        while receiver.can_recv() {
            receiver
                .recv(|bytes| (bytes.len(), heard.extend_from_slice(bytes)))
                .unwrap();
        }
        heard.len() >= text.len()
    });
    assert!(done.is_some(), "heard {} bytes", heard.len());
    assert_eq!(heard, text);
}

/// Lane, state and handshakes of each tunnel.
fn tunnels(world: &mut World, node: usize) -> Vec<(u8, bool, u64)> {
    let snapshot = world.nodes[node].shard.snapshot();
    let tunnels = snapshot.tunnels.iter();
    tunnels
        .map(|tunnel| {
            let up = matches!(tunnel.state, TunnelState::Up);
            (tunnel.lane, up, tunnel.handshakes)
        })
        .collect()
}

fn flows(world: &mut World, node: usize) -> usize {
    world.nodes[node].shard.snapshot().flow_count
}

#[test]
fn two_lanes_of_one_peer_live_side_by_side_on_one_shard() {
    let mut world = three(1);
    let (first, first_end) = connect(&mut world, 0, 40_000);
    let (second, second_end) = connect(&mut world, 2, 40_001);
    // Longer than any superseded session would linger, and any redial would wait.
    for _ in 0..4 {
        speak(&mut world, (0, first), (1, first_end));
        speak(&mut world, (1, second_end), (2, second));
        world.run_for(8 * SECOND);
    }
    assert_eq!(tunnels(&mut world, 1), [(0, true, 1), (1, true, 1)]);
    assert_eq!(tunnels(&mut world, 0), [(0, true, 1)]);
    assert_eq!(tunnels(&mut world, 2), [(1, true, 1)]);
    assert_eq!((flows(&mut world, 0), flows(&mut world, 2)), (1, 1));
}

#[test]
fn a_packet_that_comes_to_another_shard_is_handed_to_the_one_that_has_its_flow() {
    let mut world = three(2);
    let (client, server) = connect(&mut world, 0, 40_000);
    world.strays.insert(0, 2);
    speak(&mut world, (0, client), (1, server));
    speak(&mut world, (1, server), (0, client));
    assert_eq!((flows(&mut world, 0), flows(&mut world, 2)), (1, 0));
    assert_eq!(tunnels(&mut world, 2), []);
}

#[test]
fn a_lane_of_a_peer_that_went_away_is_not_dialled_but_its_flows_go_on() {
    let mut world = three(3);
    let (client, server) = connect(&mut world, 2, 40_001);
    speak(&mut world, (2, client), (1, server));
    let reason = "the session of this lane is asked to end";
    let now = world.now();
    world.nodes[2].shard.handle_drain(reason, now);
    world.run_for(2 * SECOND);
    // Bob has something to say: by his own lane, to whichever shard of Alice gets it.
    world.strays.insert(2, 0);
    world.deliveries.insert(0, 2);
    speak(&mut world, (1, server), (2, client));
    assert!(tunnels(&mut world, 1).contains(&(0, true, 1)));
    assert_eq!((flows(&mut world, 0), flows(&mut world, 2)), (1, 0));
}
