//! Ring 2: shards on a virtual clock, real TLS handshakes, smoltcp hosts, and an eavesdropper that keeps every byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    dead_code,
    reason = "the simulation serves other tests too, and not all of it is needed here"
)]

#[path = "sim/host.rs"]
mod host;
#[path = "sim/lanes.rs"]
mod lanes;
#[path = "sim/world.rs"]
mod world;

use std::{net::IpAddr, time::Duration};

use identun::{
    engine::EngineEvent,
    shard::Event,
    tunnel::{DialError, TunnelEvent},
    wire::{DropReason, FiveTuple, protocol},
};
use smoltcp::iface::SocketHandle;
use world::{Link, World, id};

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const A6: &str = "fd00::1";
const B6: &str = "fd00::2";
const PORT: u16 = 8_080;
const MARKER: &[u8] = b"PLAINTEXT-MARKER";
const SECOND: Duration = Duration::from_secs(1);

const POLICY: &str = r#"apiVersion: authentication.istio.io/v1alpha1
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
    let entry = |name: &str, address: &str, account: &str, gateway: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: {name}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n"
        )
    };
    let service = |account: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}]\n  workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        )
    };
    [
        POLICY.to_owned(),
        entry("a", A, "a", "192.0.2.1"),
        entry("a6", A6, "a", "192.0.2.1"),
        entry("b", B, "b", "192.0.2.2"),
        entry("b6", B6, "b", "192.0.2.2"),
        service("a"),
        service("b"),
    ]
    .concat()
}

/// Alice and Bob.
fn pair(seed: u64) -> World {
    let mut world = World::new(&mesh(), seed);
    world.add(&["a"], "192.0.2.1", &[A, A6]);
    world.add(&["b"], "192.0.2.2", &[B, B6]);
    world
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Alice connects to Bob.
fn connect(
    world: &mut World,
    from: &str,
    to: &str,
    local_port: u16,
) -> (SocketHandle, SocketHandle) {
    let server = world.nodes[1].stack.listen(PORT);
    let client = world.nodes[0]
        .stack
        .connect((address(from), local_port), (address(to), PORT));
    (client, server)
}

/// Sends `data` over an established connection and takes it out at the other end.
fn transfer(
    world: &mut World,
    from: (usize, SocketHandle),
    to: (usize, SocketHandle),
    data: &[u8],
    limit: Duration,
) -> Vec<u8> {
    let (mut sent, mut received) = (0, Vec::new());
    world.run_until(limit, |world| {
        let sender = world.nodes[from.0].stack.tcp(from.1);
        if sender.can_send() && sent < data.len() {
            sent += sender.send_slice(&data[sent..]).unwrap();
        }
        let receiver = world.nodes[to.0].stack.tcp(to.1);
        while receiver.can_recv() {
            receiver
                .recv(|bytes| (bytes.len(), received.extend_from_slice(bytes)))
                .unwrap();
        }
        received.len() >= data.len()
    });
    received
}

fn payload(len: usize) -> Vec<u8> {
    MARKER
        .iter()
        .copied()
        .cycle()
        .zip(0..len)
        .map(|(byte, index)| byte ^ u8::try_from(index % 251 / 200).unwrap())
        .collect()
}

fn dropped(world: &mut World, node: usize, reason: DropReason) -> u64 {
    world.nodes[node]
        .shard
        .snapshot()
        .drops
        .get(&reason)
        .copied()
        .unwrap_or_default()
}

#[test]
fn tcp_crosses_both_ways_and_the_wire_shows_nothing_of_it() {
    for (from, to) in [(A, B), (A6, B6)] {
        let mut world = pair(1);
        let (client, server) = connect(&mut world, from, to, 40_000);
        let data = payload(300_000);
        assert_eq!(
            transfer(&mut world, (0, client), (1, server), &data, SECOND * 20),
            data
        );
        assert_eq!(
            transfer(&mut world, (1, server), (0, client), &data, SECOND * 20),
            data
        );
        let shown = world.overheard.iter().any(|datagram| {
            datagram
                .windows(MARKER.len())
                .any(|window| window == MARKER)
        });
        assert!(!shown, "the wire shows the marker");
        for node in &mut world.nodes {
            let snapshot = node.shard.snapshot();
            assert!(snapshot.drops.is_empty(), "{:?}", snapshot.drops);
            assert!(
                snapshot.flows[0].bytes_sent > 300_000
                    && snapshot.flows[0].bytes_received > 300_000
            );
        }
    }
}

#[test]
fn the_first_packet_waits_for_the_tunnel_and_is_not_lost() {
    let mut world = pair(2);
    let (client, _) = connect(&mut world, A, B, 40_000);
    let done = world.run_until(SECOND, |world| world.nodes[0].stack.tcp(client).may_send());
    // One round trip for the handshake, one for HELLO and READY, one for SYN and SYN-ACK; no retransmitted SYN (1 s).
    assert!(done.unwrap() < Duration::from_millis(100), "{done:?}");
    let up = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Up { .. }));
    assert!(world.nodes.iter().all(|node| node.events.iter().any(up)));
}

#[test]
fn udp_of_every_size_arrives_whole() {
    let mut world = pair(3);
    let (client, server) = (
        world.nodes[0].stack.bind_udp(5_000),
        world.nodes[1].stack.bind_udp(PORT),
    );
    for len in [
        1, 2, 100, 1_160, 1_161, 1_200, 1_400, 1_404, 1_405, 1_432, 1_472, 1_473, 2_000, 4_000,
    ] {
        let data = payload(len);
        world.nodes[0]
            .stack
            .udp_send(client, (address(B), PORT), &data);
        let mut received = Vec::new();
        world.run_until(SECOND * 3, |world| {
            if let Ok((bytes, _)) = world.nodes[1].stack.udp(server).recv() {
                received = bytes.to_vec();
            }
            !received.is_empty()
        });
        assert_eq!(received, data, "{len} bytes");
    }
}

#[test]
fn loss_and_reordering_corrupt_nothing() {
    let mut world = pair(4);
    world.link = Link {
        loss: 50,
        jitter: Duration::from_millis(8),
        ..Link::default()
    };
    let (client, server) = connect(&mut world, A, B, 40_000);
    let data = payload(100_000);
    assert_eq!(
        transfer(&mut world, (0, client), (1, server), &data, SECOND * 120),
        data
    );
}

#[test]
fn a_path_that_shrinks_in_mid_flow_does_not_stop_tcp() {
    for max_payload in [1_252, 1_320, 1_372] {
        let mut world = pair(5);
        let (client, server) = connect(&mut world, A, B, 40_000);
        let data = payload(200_000);
        assert_eq!(
            transfer(&mut world, (0, client), (1, server), &data, SECOND * 20),
            data
        );
        world.run_for(SECOND);
        world.link.max_payload = max_payload;
        assert_eq!(
            transfer(&mut world, (0, client), (1, server), &data, SECOND * 20),
            data,
            "{max_payload}"
        );
    }
}

#[test]
fn two_lost_segments_are_enough_to_go_on_after_a_path_shrank() {
    let mut world = pair(16);
    let (client, server) = connect(&mut world, A, B, 40_000);
    let data = payload(200_000);
    let received = transfer(&mut world, (0, client), (1, server), &data, SECOND * 20);
    assert_eq!(received, data);
    world.run_for(SECOND);
    world.link.max_payload = 1_252;
    // One segment at a time: each loss costs the connection a time-out of its own, and quinn one burst of four.
    let shrunk = world.elapsed;
    let received = transfer(
        &mut world,
        (0, client),
        (1, server),
        &data[..1_400],
        SECOND * 20,
    );
    assert_eq!(received, data[..1_400]);
    let stalled = world.elapsed - shrunk;
    // smoltcp's time-outs are 1 and 2 s, a kernel's 0.2 and 0.4 s. After four losses it would be 15 s.
    assert!(stalled < SECOND * 4, "{stalled:?}");
    // The path's size is found anew at once, and a path that carries large packets again gets them again.
    let inner = |world: &mut World| {
        world.nodes[0].shard.snapshot().tunnels[0]
            .inner_mtu
            .unwrap()
    };
    world.run_for(SECOND);
    assert!(
        (1_160..=1_252 - 40).contains(&inner(&mut world)),
        "{}",
        inner(&mut world)
    );
}

#[test]
fn an_established_connection_survives_the_death_of_either_daemon() {
    for dead in [0, 1] {
        for sender in [0, 1] {
            let mut world = pair(6);
            let (client, server) = connect(&mut world, A, B, 40_000);
            let ends = [(0, client), (1, server)];
            let data = payload(20_000);
            assert_eq!(
                transfer(&mut world, ends[0], ends[1], &data, SECOND * 5),
                data
            );
            world.restart(dead);
            let now = world.now();
            world.nodes[dead].shard.handle_seed(&[conntrack()], now);
            let received = transfer(
                &mut world,
                ends[sender],
                ends[1 - sender],
                &data,
                SECOND * 5,
            );
            assert_eq!(received, data, "daemon {dead} died, {sender} sends");
        }
    }
}

#[test]
fn a_restarted_daemon_redials_for_the_flows_of_conntrack_before_anybody_sends() {
    for dead in [0, 1] {
        let mut world = pair(14);
        let (client, server) = connect(&mut world, A, B, 40_000);
        let data = payload(2_000);
        let received = transfer(&mut world, (0, client), (1, server), &data, SECOND * 5);
        assert_eq!(received, data);
        world.run_for(SECOND);
        world.restart(dead);
        world.nodes[dead].events.clear();
        let now = world.now();
        world.nodes[dead].shard.handle_seed(&[conntrack()], now);
        let is_up = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Up { .. }));
        let redialled = world.run_until(SECOND, |world| world.nodes[dead].events.iter().any(is_up));
        assert!(redialled.is_some(), "daemon {dead} waits for a packet");
        assert_eq!(world.nodes[dead].shard.snapshot().flow_count, 1);
    }
}

/// What the kernel remembers of the flow of [`connect`].
fn conntrack() -> FiveTuple {
    FiveTuple {
        protocol: protocol::TCP,
        source: address(A),
        source_port: 40_000,
        destination: address(B),
        destination_port: PORT,
    }
}

#[test]
fn an_impostor_gets_no_inner_byte_and_both_ids_are_told() {
    let mut world = pair(7);
    let eve = world.add(&["a"], "192.0.2.66", &["10.0.0.66"]);
    world
        .reroutes
        .insert(address("192.0.2.2"), address("192.0.2.66"));
    let (client, _) = connect(&mut world, A, B, 40_000);
    let ended = world.run_until(SECOND * 5, |world| {
        !world.nodes[0].stack.tcp(client).is_open()
    });
    assert!(ended.is_some(), "the application was not told");
    let failed = world.nodes[0].events.iter().find_map(|event| match event {
        Event::Tunnel(TunnelEvent::DialFailed { key, error, .. }) => {
            Some((key.clone(), error.clone()))
        }
        Event::Engine(_) | Event::Tunnel(_) => None,
    });
    let (key, error) = failed.expect("the dial fails");
    assert_eq!(key.peer, id("b"));
    assert!(
        matches!(error, DialError::PeerClosed { code: 0x131, .. }),
        "{error:?}"
    );
    assert_eq!(world.nodes[eve].shard.snapshot().packets.tunnel_packets, 0);
}

#[test]
fn a_refused_connection_is_reset_and_other_protocols_are_told_by_icmp() {
    let mut world = pair(8);
    // 10.9.9.9 is no workload of this host: a packet from it has no identity to speak for.
    for (protocol, answer) in [
        (protocol::TCP, protocol::TCP),
        (protocol::UDP, protocol::ICMP),
    ] {
        let packet = ipv4(protocol, [10, 9, 9, 9], [10, 0, 0, 2]);
        world.inject(0, &packet);
        let mut frame = Vec::new();
        assert!(world.nodes[0].shard.poll_device(&mut frame));
        assert_eq!(frame[10 + 9], answer);
        assert_eq!(frame[10 + 16..10 + 20], [10, 9, 9, 9], "to whoever sent it");
    }
    assert_eq!(dropped(&mut world, 0, DropReason::UnknownSource), 2);
}

#[test]
fn answers_to_refused_packets_are_limited() {
    let mut world = pair(9);
    for _ in 0..1_000 {
        world.inject(0, &ipv4(protocol::UDP, [10, 9, 9, 9], [10, 0, 0, 2]));
    }
    let mut answers = 0;
    while world.nodes[0].shard.poll_device(&mut Vec::new()) {
        answers += 1;
    }
    assert_eq!(answers, 50);
    assert_eq!(dropped(&mut world, 0, DropReason::UnknownSource), 1_000);
}

#[test]
fn our_own_tunnel_packets_out_of_the_device_are_a_loop() {
    let mut world = pair(10);
    let mut packet = ipv4(protocol::UDP, [192, 0, 2, 1], [192, 0, 2, 2]);
    packet[20..24].copy_from_slice(&[0x3a, 0xa0, 0x3a, 0xa0]); // both ports 15008
    world.inject(0, &packet);
    assert_eq!(dropped(&mut world, 0, DropReason::Loop), 1);
    assert!(world.overheard.is_empty());
}

#[test]
fn packets_of_a_dead_peer_wait_within_bounds_and_the_sender_is_told() {
    let mut world = pair(11);
    world.cut.push(address("192.0.2.2"));
    let client = world.nodes[0].stack.bind_udp(5_000);
    for _ in 0..400 {
        world.nodes[0]
            .stack
            .udp_send(client, (address(B), PORT), &[7; 1_000]);
        world.run_for(Duration::from_millis(1));
    }
    let snapshot = world.nodes[0].shard.snapshot();
    assert!(
        snapshot.pending_bytes <= 256 * 1_024,
        "{}",
        snapshot.pending_bytes
    );
    assert!(dropped(&mut world, 0, DropReason::PendingFull) > 0);
    world.run_for(SECOND * 10);
    assert_eq!(world.nodes[0].shard.snapshot().pending_bytes, 0);
    assert!(dropped(&mut world, 0, DropReason::PendingTimeout) > 0);
}

#[test]
fn a_slow_peer_holds_the_device_back_and_a_dead_one_drops_its_own_queue() {
    let mut world = pair(15);
    let (client, _) = connect(&mut world, A, B, 40_000);
    world.run_until(SECOND, |world| world.nodes[0].stack.tcp(client).may_send());
    let mut packet = ipv4(protocol::UDP, [10, 0, 0, 1], [10, 0, 0, 2]);
    packet.resize(1_400, 0);
    packet[2..4].copy_from_slice(&1_400_u16.to_be_bytes());
    packet[24..26].copy_from_slice(&1_380_u16.to_be_bytes());
    // As fast as the device is read: the backlog of a path that answers stops the reading.
    let fill = |world: &mut World| {
        (0..40_000).any(|_| {
            world.inject(0, &packet);
            !world.nodes[0].shard.wants_device()
        })
    };
    assert!(fill(&mut world), "nothing holds the device back");
    assert_eq!(dropped(&mut world, 0, DropReason::QueueFull), 0);
    world.run_for(SECOND);
    assert!(world.nodes[0].shard.wants_device());
    // The path dies. Nobody else's packets may wait for it.
    world.cut.push(address("192.0.2.2"));
    fill(&mut world);
    world.run_for(SECOND);
    for _ in 0..20_000 {
        world.inject(0, &packet);
        assert!(
            world.nodes[0].shard.wants_device(),
            "a dead peer stops the device"
        );
    }
    assert!(dropped(&mut world, 0, DropReason::QueueFull) > 0);
}

#[test]
fn the_same_seed_gives_the_same_decisions_and_events() {
    let story = || {
        let mut world = pair(12);
        world.link = Link {
            loss: 30,
            jitter: Duration::from_millis(3),
            ..Link::default()
        };
        let (client, server) = connect(&mut world, A, B, 40_000);
        let data = payload(50_000);
        transfer(&mut world, (0, client), (1, server), &data, SECOND * 60);
        let sizes: Vec<_> = world.overheard.iter().map(Vec::len).collect();
        let events: Vec<_> = world
            .nodes
            .iter()
            .map(|node| node.events.iter().map(name).collect::<Vec<_>>())
            .collect();
        (world.elapsed, sizes, events)
    };
    assert_eq!(story(), story());
}

/// An event without what TLS makes up afresh.
fn name(event: &Event) -> String {
    match event {
        Event::Engine(EngineEvent::FlowOpened { tuple, .. }) => format!("opened {tuple}"),
        Event::Engine(EngineEvent::FlowClosed { tuple, .. }) => format!("closed {tuple}"),
        Event::Engine(EngineEvent::FlowCut { tuple, reason, .. }) => {
            format!("cut {tuple} {reason}")
        }
        Event::Engine(EngineEvent::Dropped { tuple, reason, .. }) => {
            format!("dropped {tuple} {reason}")
        }
        Event::Tunnel(TunnelEvent::Up { key, dialled, .. }) => format!("up {key} {dialled}"),
        Event::Tunnel(other) => format!("{other:?}"),
    }
}

/// An IPv4 packet with a 20-byte upper-layer header: enough for ports, and for a SYN.
fn ipv4(kind: u8, source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, kind, 0, 0];
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&destination);
    packet.extend_from_slice(&[0x9c, 0x40, 0x1f, 0x90]);
    match kind {
        protocol::TCP => {
            packet.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0])
        }
        _ => packet.extend_from_slice(&[0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    }
    packet
}

#[test]
fn a_policy_that_turns_against_a_live_flow_ends_it() {
    let mut world = pair(13);
    let (client, server) = connect(&mut world, A, B, 40_000);
    let data = payload(2_000);
    assert_eq!(
        transfer(&mut world, (0, client), (1, server), &data, SECOND * 5),
        data
    );
    // Bob's mesh policy becomes `{}`: plaintext only, so no tunnel may reach his workloads any more.
    let plaintext = mesh().replace("peers: [{ mtls: { mode: STRICT } }]", "");
    world.configure(1, &plaintext, 2);
    let ended = world.run_until(SECOND * 2, |world| {
        let down = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Down { .. }));
        world.nodes.iter().all(|node| node.events.iter().any(down))
    });
    assert!(ended.is_some(), "the session lives on");
    assert!(transfer(&mut world, (0, client), (1, server), &data, SECOND * 5).is_empty());
}
