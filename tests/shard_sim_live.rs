//! Ring 2: policy that changes under live flows, between two shards with real TLS handshakes and smoltcp applications.

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

use identun::{
    engine::EngineEvent,
    shard::Event,
    tunnel::TunnelEvent,
    wire::{DropReason, capsule::FlowRefusedCode},
};
use smoltcp::iface::SocketHandle;
use world::{World, id};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
/// The port that is denied, and its neighbour.
const PORT: u16 = 8_080;
const NEIGHBOUR: u16 = 9_090;
const SECOND: Duration = Duration::from_secs(1);
/// The policy's change, its news on the way, a reset, with room for an acknowledgment that is awaited.
const AT_ONCE: Duration = Duration::from_millis(100);

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

/// Bob no longer serves Alice on the port.
const DENY: &str = r#"---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: not-alice }
spec:
  selector: { matchLabels: { app: b } }
  action: DENY
  rules:
  - from: [{ source: { principals: ["cluster.local/ns/default/sa/a"] } }]
    to: [{ operation: { ports: ["8080"] } }]
"#;

/// Alice no longer uses mutual TLS for the port.
const CLIENT_DISABLE: &str = r#"---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata: { name: plain }
spec:
  host: b.default.svc.cluster.local
  trafficPolicy:
    tls: { mode: ISTIO_MUTUAL }
    portLevelSettings: [{ port: { number: 8080 }, tls: { mode: DISABLE } }]
"#;

fn mesh(policy: &str) -> String {
    let mut text = STRICT.to_owned() + policy;
    for (account, address, gateway) in [("a", A, "192.0.2.1"), ("b", B, "192.0.2.2")] {
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: {account}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}, {{ number: {NEIGHBOUR}, name: tcp-2, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        ));
    }
    text
}

/// Alice and Bob.
fn pair(seed: u64) -> World {
    let mut world = World::new(&mesh(""), seed);
    world.add(&["a"], "192.0.2.1", &[A]);
    world.add(&["b"], "192.0.2.2", &[B]);
    world
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A connection between Alice's application and Bob's.
#[derive(Clone, Copy)]
struct Connection {
    client: SocketHandle,
    server: SocketHandle,
}

impl Connection {
    fn open(world: &mut World, local_port: u16, port: u16) -> Self {
        let server = world.nodes[1].stack.listen(port);
        let client = world.nodes[0]
            .stack
            .connect((address(A), local_port), (address(B), port));
        Self { client, server }
    }

    fn is_up(self, world: &mut World) -> bool {
        world.nodes[0].stack.tcp(self.client).may_send()
            && world.nodes[1].stack.tcp(self.server).may_send()
    }

    /// Both applications were told.
    fn is_reset(self, world: &mut World) -> bool {
        !world.nodes[0].stack.tcp(self.client).is_open()
            && !world.nodes[1].stack.tcp(self.server).is_open()
    }

    /// Lets both ends send what they can and take what came; returns how much came.
    fn exchange(self, world: &mut World) -> usize {
        let mut received = 0;
        for (node, handle) in [(0, self.client), (1, self.server)] {
            let socket = world.nodes[node].stack.tcp(handle);
            if socket.can_send() {
                socket.send_slice(&[7; 10_000]).unwrap();
            }
            while socket.can_recv() {
                received += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
            }
        }
        received
    }
}

fn connected(world: &mut World, local_port: u16, port: u16) -> Connection {
    let connection = Connection::open(world, local_port, port);
    let up = world.run_until(SECOND, |world| connection.is_up(world));
    assert!(up.is_some(), "no connection");
    connection
}

/// Runs until both ends of every connection are reset; how long that took.
fn until_reset(world: &mut World, connections: &[Connection], limit: Duration) -> Duration {
    let since = world.elapsed;
    let reset = world.run_until(limit, |world| {
        connections
            .iter()
            .all(|connection| connection.is_reset(world))
    });
    reset.expect("an application was not told") - since
}

fn cuts(world: &World, node: usize) -> Vec<DropReason> {
    let mut reasons = Vec::new();
    for event in &world.nodes[node].events {
        if let Event::Engine(EngineEvent::FlowCut { reason, key, .. }) = event {
            let key = key.as_ref().unwrap();
            let ends = [id("a"), id("b")];
            assert_eq!((&key.local, &key.peer), (&ends[node], &ends[1 - node]));
            reasons.push(*reason);
        }
    }
    reasons
}

/// What Bob's daemon told Alice's.
fn told(world: &World, node: usize) -> Vec<(FlowRefusedCode, String)> {
    let mut told = Vec::new();
    for event in &world.nodes[node].events {
        if let Event::Tunnel(TunnelEvent::FlowRefused { refused, .. }) = event {
            told.push((refused.code, refused.reason.clone()));
        }
    }
    told
}

#[test]
fn a_deny_in_mid_transfer_resets_both_applications_and_leaves_the_neighbour_alone() {
    let mut world = pair(1);
    let denied = connected(&mut world, 40_000, PORT);
    let neighbour = connected(&mut world, 40_001, NEIGHBOUR);
    let mut received = 0;
    world.run_until(SECOND / 2, |world| {
        received += denied.exchange(world);
        neighbour.exchange(world);
        false
    });
    assert!(received > 100_000, "{received}");
    world.configure(1, &mesh(DENY), 2);
    let since = world.elapsed;
    let reset = world.run_until(SECOND, |world| {
        denied.exchange(world);
        neighbour.exchange(world);
        denied.is_reset(world)
    });
    let took = reset.expect("an application was not told") - since;
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(cuts(&world, 1), [DropReason::DeniedByPolicy]);
    assert_eq!(cuts(&world, 0), [DropReason::PeerRefusedFlow]);
    let (code, reason) = told(&world, 0).remove(0);
    assert_eq!(code, FlowRefusedCode::Revoked);
    assert!(
        reason.starts_with(
            "no longer allowed: denied by AuthorizationPolicy default/not-alice (mesh.yaml:"
        ),
        "{reason}"
    );
    let mut received = 0;
    world.run_until(SECOND, |world| {
        received += neighbour.exchange(world);
        false
    });
    assert!(received > 100_000 && neighbour.is_up(&mut world));
    // A new connection is refused within a round trip.
    let again = Connection::open(&mut world, 40_002, PORT);
    let since = world.elapsed;
    let refused = world.run_until(SECOND, |world| {
        !world.nodes[0].stack.tcp(again.client).is_open()
    });
    assert!(refused.unwrap() - since < AT_ONCE);
    let (code, reason) = told(&world, 0).pop().unwrap();
    assert_eq!(code, FlowRefusedCode::DeniedByPolicy);
    assert!(
        reason.starts_with("denied by AuthorizationPolicy"),
        "{reason}"
    );
}

#[test]
fn an_idle_connection_is_reset_too_whichever_end_turns_against_it() {
    for (node, policy) in [(1, DENY), (0, CLIENT_DISABLE)] {
        let mut world = pair(2);
        let idle = connected(&mut world, 40_000, PORT);
        let neighbour = connected(&mut world, 40_001, NEIGHBOUR);
        world.run_for(SECOND * 10);
        world.configure(node, &mesh(policy), 2);
        let took = until_reset(&mut world, &[idle], SECOND);
        assert!(took < AT_ONCE, "{took:?}");
        world.run_for(SECOND);
        assert!(neighbour.is_up(&mut world));
        assert_eq!(cuts(&world, node).len(), 1);
        assert_eq!(cuts(&world, 1 - node), [DropReason::PeerRefusedFlow]);
    }
}

#[test]
fn a_thousand_connections_are_reset_at_once_on_both_ends() {
    const COUNT: u16 = 1_000;
    let mut world = pair(3);
    let mut connections = vec![connected(&mut world, 40_000, PORT)];
    for batch in 0..COUNT / 100 {
        let first = 41_000 + batch * 100;
        let opened: Vec<_> = (first..first + 100)
            .map(|port| Connection::open(&mut world, port, PORT))
            .collect();
        let up = world.run_until(SECOND * 5, |world| {
            opened.iter().all(|connection| connection.is_up(world))
        });
        assert!(up.is_some());
        connections.extend(opened);
    }
    world.configure(1, &mesh(DENY), 2);
    let took = until_reset(&mut world, &connections, SECOND * 2);
    assert!(took < SECOND / 2, "{took:?}");
    assert_eq!(cuts(&world, 1).len(), connections.len());
    assert_eq!(cuts(&world, 0).len(), connections.len());
    let down = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Down { .. }));
    assert!(
        !world.nodes.iter().any(|node| node.events.iter().any(down)),
        "the session bears it"
    );
}

#[test]
fn datagrams_stop_on_both_ends_and_the_sender_is_told() {
    let mut world = pair(4);
    let client = world.nodes[0].stack.bind_udp(5_000);
    let server = world.nodes[1].stack.bind_udp(PORT);
    let received = |world: &mut World, node: usize, handle| {
        world.run_for(SECOND / 5);
        let mut count = 0;
        while world.nodes[node].stack.udp(handle).recv().is_ok() {
            count += 1;
        }
        count
    };
    let ask = |world: &mut World| {
        let socket = &mut world.nodes[0].stack;
        socket.udp_send(client, (address(B), PORT), b"question");
        received(world, 1, server)
    };
    let answer = |world: &mut World| {
        let socket = &mut world.nodes[1].stack;
        socket.udp_send(server, (address(A), 5_000), b"answer");
        received(world, 0, client)
    };
    assert_eq!((ask(&mut world), answer(&mut world)), (1, 1));
    world.configure(1, &mesh(DENY), 2);
    assert_eq!((ask(&mut world), answer(&mut world)), (0, 0));
    assert_eq!(cuts(&world, 1), [DropReason::DeniedByPolicy]);
    assert_eq!(cuts(&world, 0), [DropReason::PeerRefusedFlow]);
    world.configure(1, &mesh(""), 3);
    world.run_for(SECOND * 5);
    assert_eq!((ask(&mut world), answer(&mut world)), (1, 1));
}

#[test]
fn a_reload_that_allows_everything_loses_no_packet() {
    let mut world = pair(5);
    let connection = connected(&mut world, 40_000, PORT);
    let (mut received, mut opened) = (0, Vec::new());
    for generation in 2..50 {
        world.configure(0, &mesh(""), generation);
        world.configure(1, &mesh(""), generation);
        let limit = Duration::from_millis(10);
        world.run_until(limit, |world| {
            received += connection.exchange(world);
            false
        });
    }
    assert!(received > 100_000 && connection.is_up(&mut world));
    for node in &mut world.nodes {
        let snapshot = node.shard.snapshot();
        assert!(snapshot.drops.is_empty(), "{:?}", snapshot.drops);
        let events = node.events.iter();
        opened.push(
            events
                .filter(|event| matches!(event, Event::Engine(_)))
                .count(),
        );
    }
    assert_eq!(opened, [1, 1], "one opening, and nothing after it");
}

#[test]
fn connections_end_with_a_session_that_may_no_longer_be() {
    let mut world = pair(6);
    let idle = connected(&mut world, 40_000, PORT);
    world.run_for(SECOND * 5);
    let plaintext = mesh("").replace("peers: [{ mtls: { mode: STRICT } }]", "");
    world.configure(1, &plaintext, 2);
    let took = until_reset(&mut world, &[idle], SECOND);
    assert!(took < AT_ONCE, "{took:?}");
    assert_eq!(cuts(&world, 1), [DropReason::ModeDisable]);
    assert_eq!(cuts(&world, 0), [DropReason::PeerRefusedSession]);
}
