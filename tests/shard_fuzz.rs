//! Whole shards under random and mutated frames, datagrams and time: no panic, bounded queues, timers that end, and an
//! honest transfer afterwards.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    dead_code,
    reason = "the simulation serves other tests too, and not all of it is needed here"
)]

#[path = "sim/host.rs"]
mod host;
#[path = "sim/world.rs"]
mod world;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::BytesMut;
use identun::{engine::PendingLimits, tunnel::UnderlayDatagram, wire::virtio::VIRTIO_HEADER_LEN};
use proptest::{collection::vec, prelude::*, sample::Index};
use world::World;

const A: &str = "10.0.0.1";
const B: &str = "10.0.0.2";
const PORT: u16 = 8_080;
const SECOND: Duration = Duration::from_secs(1);
/// The shard's own bounds on frames for the device (256 answers and what it joined) and on datagrams of one instant,
/// with room for what one input may make of itself.
const MAX_FRAMES: usize = 1_024;
const MAX_DATAGRAMS: usize = 16_384;

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

/// Alice and Bob, strangers yet.
fn pair(seed: u64) -> World {
    let mut text = POLICY.to_owned();
    for (account, address, gateway) in [("a", A, "192.0.2.1"), ("b", B, "192.0.2.2")] {
        text.push_str(&format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: {account}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: \"{address}\", serviceAccount: {account}, labels: {{ app: {account} }} }}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}]\n  workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        ));
    }
    let mut world = World::new(&text, seed);
    world.add(&["a"], "192.0.2.1", &[A]);
    world.add(&["b"], "192.0.2.2", &[B]);
    world
}

/// Bob's application hears from Alice's, over one connection.
fn transfers(world: &mut World, local_port: u16, limit: Duration) -> bool {
    let address = |text: &str| -> IpAddr { text.parse().unwrap() };
    let server = world.nodes[1].stack.listen(PORT);
    let client = world.nodes[0]
        .stack
        .connect((address(A), local_port), (address(B), PORT));
    let data = [0x5a; 20_000];
    let (mut sent, mut received) = (0, 0);
    world
        .run_until(limit, |world| {
            let sender = world.nodes[0].stack.tcp(client);
            if sender.can_send() && sent < data.len() {
                sent += sender.send_slice(&data[sent..]).unwrap();
            }
            let receiver = world.nodes[1].stack.tcp(server);
            while receiver.can_recv() {
                received += receiver.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
            }
            received >= data.len()
        })
        .is_some()
}

/// A flaw put into bytes.
#[derive(Clone, Debug)]
enum Flaw {
    Byte(Index, u8),
    Cut(Index),
    Extend(Vec<u8>),
}

impl Flaw {
    fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Byte(at, value) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] = *value;
            }
            Self::Byte(..) => {}
            Self::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Self::Extend(more) => bytes.extend(more),
        }
    }
}

fn flaws() -> impl Strategy<Value = Vec<Flaw>> {
    let flaw = prop_oneof![
        6 => (any::<Index>(), any::<u8>()).prop_map(|(at, value)| Flaw::Byte(at, value)),
        1 => any::<Index>().prop_map(Flaw::Cut),
        1 => vec(any::<u8>(), 1..64).prop_map(Flaw::Extend),
    ];
    vec(flaw, 0..4)
}

/// Something that happens to one node.
#[derive(Clone, Debug)]
enum Input {
    /// Any bytes from the device.
    Noise(Vec<u8>),
    /// A packet between the two hosts, or with flaws, behind some virtio-net header.
    Packet {
        header: [u8; VIRTIO_HEADER_LEN],
        protocol: u8,
        fragment: u16,
        body: Vec<u8>,
        flaws: Vec<Flaw>,
    },
    /// A datagram of any bytes.
    Garbage(Vec<u8>),
    /// A datagram that crossed the underlay before, or with flaws.
    Replay(Index, Vec<Flaw>, bool),
    /// Time goes on.
    Wait(u64),
}

fn device() -> BoxedStrategy<Input> {
    let plain = Just([0; VIRTIO_HEADER_LEN]);
    // Checksum to complete, some way of segmentation.
    let offload = (0..2_u8, 0..6_u8, any::<[u8; 8]>()).prop_map(|(flags, kind, rest)| {
        let mut header = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..].copy_from_slice(&rest);
        header
    });
    let likely = (0..2_u8, prop_oneof![Just(1_u8), Just(5)], 1..1_500_u16).prop_map(
        |(flags, kind, size)| {
            let [low, high] = size.to_le_bytes();
            let offset = if kind == 1 { 16 } else { 6 };
            [flags, kind, 40, 0, low, high, 20, 0, offset, 0]
        },
    );
    let packet = (
        prop_oneof![plain, offload, likely],
        prop_oneof![Just(6_u8), Just(17), Just(1), any::<u8>()],
        prop_oneof![4 => Just(0_u16), 1 => any::<u16>()],
        prop_oneof![3 => vec(any::<u8>(), 0..200), 1 => vec(any::<u8>(), 0..4_000)],
        flaws(),
    )
        .prop_map(|(header, protocol, fragment, body, flaws)| Input::Packet {
            header,
            protocol,
            fragment,
            body,
            flaws,
        });
    prop_oneof![1 => vec(any::<u8>(), 0..200).prop_map(Input::Noise), 3 => packet].boxed()
}

fn underlay() -> BoxedStrategy<Input> {
    let replay = (any::<Index>(), flaws(), any::<bool>())
        .prop_map(|(index, flaws, stranger)| Input::Replay(index, flaws, stranger));
    prop_oneof![1 => vec(any::<u8>(), 0..1_500).prop_map(Input::Garbage), 4 => replay].boxed()
}

fn mixture() -> BoxedStrategy<Input> {
    let wait = prop_oneof![3 => 0..100_000_u64, 1 => 0..3_000_000_u64].prop_map(Input::Wait);
    prop_oneof![3 => device(), 3 => underlay(), 1 => wait].boxed()
}

/// An IPv4 packet with any transport part; well-formed as far as its header goes.
fn ipv4(protocol: u8, fragment: u16, body: &[u8], from: &str, to: &str) -> Vec<u8> {
    let octets = |text: &str| text.parse::<std::net::Ipv4Addr>().unwrap().octets();
    let total = u16::try_from(20 + body.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, total[0], total[1], 0, 7];
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(octets(from));
    packet.extend(octets(to));
    let sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap();
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet.extend(body);
    packet
}

fn apply(world: &mut World, node: usize, input: &Input, recorded: &[Vec<u8>]) {
    let (addresses, now) = ([A, B], world.now());
    match input {
        Input::Noise(bytes) => world.nodes[node].shard.handle_device(bytes, now),
        Input::Packet {
            header,
            protocol,
            fragment,
            body,
            flaws,
        } => {
            let mut frame = header.to_vec();
            frame.extend(ipv4(
                *protocol,
                *fragment,
                body,
                addresses[node],
                addresses[1 - node],
            ));
            flaws.iter().for_each(|flaw| flaw.put(&mut frame));
            world.nodes[node].shard.handle_device(&frame, now);
        }
        Input::Garbage(bytes) => datagram(world, node, bytes, false),
        Input::Replay(index, flaws, stranger) => {
            let mut bytes = index.get(recorded).clone();
            flaws.iter().for_each(|flaw| flaw.put(&mut bytes));
            datagram(world, node, &bytes, *stranger);
        }
        Input::Wait(micros) => world.run_for(Duration::from_micros(*micros)),
    }
}

fn datagram(world: &mut World, node: usize, bytes: &[u8], stranger: bool) {
    let peer = world.nodes[1 - node].underlay;
    let remote = if stranger {
        ([198, 51, 100, 7], 4_433).into()
    } else {
        SocketAddr::new(peer, 15_008)
    };
    let (now, local) = (world.now(), Some(world.nodes[node].underlay));
    let datagram = UnderlayDatagram {
        remote,
        local,
        ecn: 0,
        data: BytesMut::from(bytes),
    };
    world.nodes[node].shard.handle_underlay(datagram, now);
}

/// Polls a node dry at this instant: what comes out is bounded, and no timer is left that is due.
fn check(world: &mut World, node: usize) -> Result<(), TestCaseError> {
    let now = world.now();
    let shard = &mut world.nodes[node].shard;
    prop_assert!(shard.snapshot().pending_bytes <= PendingLimits::default().total_bytes);
    let (mut frames, mut datagrams, mut buffer) = (0, 0, Vec::new());
    for turn in 0.. {
        prop_assert!(turn < 8, "a timer is due for ever");
        while shard.poll_device(&mut buffer) {
            frames += 1;
            prop_assert!(frames <= MAX_FRAMES);
        }
        while let Some(transmit) = shard.poll_transmit(now, 10, &mut buffer) {
            datagrams += transmit
                .size
                .div_ceil(transmit.segment_size.unwrap_or(transmit.size).max(1));
            prop_assert!(datagrams <= MAX_DATAGRAMS);
        }
        while shard.poll_event().is_some() {}
        if shard.poll_timeout().is_none_or(|due| due > now) {
            break;
        }
        shard.handle_timeout(now);
    }
    Ok(())
}

/// The story of one case: a session or none yet, the inputs, and an honest connection at last. What an input makes either
/// crosses to the other host or is lost.
fn survives(acquainted: bool, inputs: &[(usize, Input, bool)]) -> Result<(), TestCaseError> {
    let mut world = pair(7);
    // What is replayed into strangers is of the same hosts under other keys.
    let mut other = pair(8);
    prop_assert!(transfers(&mut other, 40_000, SECOND * 10));
    let mut recorded = other.overheard;
    if acquainted {
        prop_assert!(transfers(&mut world, 40_000, SECOND * 10));
        recorded = std::mem::take(&mut world.overheard);
    }
    for (node, input, crosses) in inputs {
        apply(&mut world, *node, input, &recorded);
        if *crosses {
            world.run_for(Duration::from_millis(20));
        }
        check(&mut world, *node)?;
    }
    world.run_for(SECOND);
    for node in 0..2 {
        check(&mut world, node)?;
    }
    prop_assert!(transfers(&mut world, 40_001, SECOND * 60));
    Ok(())
}

fn inputs(input: BoxedStrategy<Input>) -> impl Strategy<Value = Vec<(usize, Input, bool)>> {
    vec((0..2_usize, input, any::<bool>()), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn frames_of_any_form_leave_a_shard_working(acquainted: bool, inputs in inputs(device())) {
        survives(acquainted, &inputs)?;
    }

    #[test]
    fn datagrams_of_any_form_leave_a_shard_working(acquainted: bool, inputs in inputs(underlay())) {
        survives(acquainted, &inputs)?;
    }

    #[test]
    fn all_of_it_with_time_going_on_leaves_a_shard_working(acquainted: bool, inputs in inputs(mixture())) {
        survives(acquainted, &inputs)?;
    }
}
