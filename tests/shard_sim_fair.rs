//! One greedy peer among many (steering.md D6): on a link that cannot carry it all, what the others ask for arrives, and a
//! peer that died stops nobody.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    dead_code,
    reason = "the simulation serves other tests too, and not all of it is needed here"
)]

#[path = "sim/host.rs"]
mod host;
#[path = "sim/world.rs"]
mod world;

use std::{collections::VecDeque, time::Duration};

use world::World;

const PORT: u16 = 8_080;
/// Besides the greedy one.
const OTHERS: usize = 4;
const GREEDY: usize = 1;
const MILLISECONDS: usize = 400;
/// After which everything has arrived that waited in a queue.
const REST: usize = 100;
/// Packets that a TUN holds until they are read (`txqueuelen`).
const TUN_QUEUE: usize = 500;
/// Bytes of a packet: one datagram each.
const LEN: u16 = 1_200;

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

/// A server, its greedy peer, and others.
fn crowd() -> World {
    let mut text = POLICY.to_owned();
    for n in 0..=GREEDY + OTHERS {
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: w{n}, annotations: {{ identun.io/gateway: \"192.0.2.{n}\" }} }}\n\
             spec: {{ address: \"10.0.0.{n}\", serviceAccount: w{n}, labels: {{ app: w{n} }} }}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: w{n} }}\n\
             spec:\n  hosts: [w{n}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}]\n  workloadSelector: {{ labels: {{ app: w{n} }} }}\n"
        ));
    }
    let mut world = World::new(&text, 7);
    for n in 0..=GREEDY + OTHERS {
        let (account, underlay) = (format!("w{n}"), format!("192.0.2.{n}"));
        let node = world.add(&[&account], &underlay, &[&format!("10.0.0.{n}")]);
        world.nodes[node].stack.bind_udp(PORT);
    }
    // Every tunnel is up, and has found out what its path carries.
    for n in GREEDY..=GREEDY + OTHERS {
        world.inject(0, &packet(0, n));
        world.inject(n, &packet(n, 0));
    }
    world.run_for(Duration::from_secs(2));
    world
}

/// A datagram of one host's application for another's.
fn packet(from: usize, to: usize) -> Vec<u8> {
    let [from, to] = [from, to].map(|n| u8::try_from(n).unwrap());
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 17, 0, 0];
    packet.extend([10, 0, 0, from, 10, 0, 0, to]);
    packet.extend([PORT.to_be_bytes(), PORT.to_be_bytes()].concat());
    packet.extend((LEN - 20).to_be_bytes());
    packet.resize(LEN.into(), 0);
    packet[2..4].copy_from_slice(&LEN.to_be_bytes());
    packet
}

/// Packets that came out of the tunnels of each host.
fn arrived(world: &mut World) -> Vec<usize> {
    let nodes = world.nodes.iter_mut();
    nodes
        .map(|node| usize::try_from(node.shard.snapshot().packets.tunnel_packets).unwrap())
        .collect()
}

/// Lets the server's applications send `of_greedy` packets a millisecond to the greedy peer and one to each other. Returns
/// how many arrived where.
fn serve(world: &mut World, of_greedy: usize) -> Vec<usize> {
    let before = arrived(world);
    let mut waiting = VecDeque::new();
    for millisecond in 0..MILLISECONDS {
        let mut sent = vec![GREEDY; of_greedy];
        sent.extend(GREEDY + 1..=GREEDY + OTHERS);
        // Whoever sends first, or last, is to have nothing of it.
        if millisecond % 2 == 1 {
            sent.reverse();
        }
        for to in sent {
            // What finds the device's queue full is lost to whomever it was for.
            if waiting.len() < TUN_QUEUE {
                waiting.push_back(to);
            }
        }
        while world.nodes[0].shard.wants_device()
            && let Some(to) = waiting.pop_front()
        {
            world.inject(0, &packet(0, to));
        }
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_millis(REST as u64));
    let after = arrived(world);
    after
        .iter()
        .zip(before)
        .map(|(after, before)| after - before)
        .collect()
}

/// What each of the others is to have at least: 95 of a hundred.
const ENOUGH: usize = MILLISECONDS * 95 / 100;

#[test]
fn a_peer_that_is_sent_ten_times_as_much_as_the_link_has_room_for_costs_the_others_nothing() {
    let mut world = crowd();
    let uplink = 8;
    world.uplinks.insert(0, uplink);
    let alone = serve(&mut world, 0);
    let among = serve(&mut world, 10);
    println!("without the greedy peer {alone:?}, with it {among:?}");
    for (alone, among) in alone.iter().zip(&among).skip(GREEDY + 1) {
        assert!(*alone >= ENOUGH, "the link carries what the others ask for");
        assert!(*among * 100 >= alone * 95, "{among} of {alone}");
    }
    // It has what is left, and its queue what is more.
    let left = uplink * (MILLISECONDS + REST) - OTHERS * MILLISECONDS;
    assert!(
        (left / 2..=left).contains(&among[GREEDY]),
        "{}",
        among[GREEDY]
    );
}

#[test]
fn a_peer_that_died_stops_nobody() {
    let mut world = crowd();
    world.uplinks.insert(0, 8);
    world.cut.push("192.0.2.1".parse().unwrap());
    let among = serve(&mut world, 10);
    println!("with a dead peer {among:?}");
    assert_eq!(among[GREEDY], 0);
    for among in &among[GREEDY + 1..] {
        assert!(*among >= ENOUGH, "{among}");
    }
}

#[test]
fn a_peer_that_sends_ten_times_as_much_costs_the_others_nothing() {
    let mut world = crowd();
    let before = arrived(&mut world)[0];
    for _ in 0..MILLISECONDS {
        for _ in 0..10 {
            world.inject(GREEDY, &packet(GREEDY, 0));
        }
        for other in GREEDY + 1..=GREEDY + OTHERS {
            world.inject(other, &packet(other, 0));
        }
        world.run_for(Duration::from_millis(1));
    }
    world.run_for(Duration::from_millis(REST as u64));
    let snapshot = world.nodes[0].shard.snapshot();
    let came = usize::try_from(snapshot.packets.tunnel_packets).unwrap() - before;
    let flows: Vec<_> = snapshot
        .flows
        .iter()
        .map(|flow| (flow.tuple.destination, flow.bytes_received))
        .collect();
    println!("{came} packets came; {flows:?}");
    assert!(snapshot.drops.is_empty(), "{:?}", snapshot.drops);
    for (from, bytes) in flows {
        let greedy = from == std::net::IpAddr::from([10, 0, 0, 1]);
        let packets = usize::try_from(bytes).unwrap() / usize::from(LEN);
        assert!(greedy || packets >= ENOUGH, "{packets} from {from}");
    }
}
