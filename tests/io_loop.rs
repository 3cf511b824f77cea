//! Ring 3: two shards in their real loops, over memory devices and UDP on loopback, with real TLS handshakes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use identun::{
    device::{MAX_FRAME, PacketDevice, memory::MemoryDevice},
    engine::{EngineEvent, EngineLimits},
    identity::{Ca, Identities, Identity, TrustBundles, WallClock},
    io::{Command, ShardHandle, Underlay, UnderlaySettings, spawn},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    shard::{Event, Shard, ShardSettings, ShardSnapshot},
    spiffe::{SpiffeId, TrustDomain},
    tunnel::{Congestion, TunnelEvent, TunnelSettings},
    wire::{DropReason, virtio::VIRTIO_HEADER_LEN},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    time::Timespec,
};

/// How long a packet may take before the test gives up; nothing waits this long when all is well.
const PATIENCE: Timespec = Timespec {
    tv_sec: 20,
    tv_nsec: 0,
};
const DAY: Duration = Duration::from_secs(86_400);
/// Who sends, and to whom.
const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Another address of each host's interfaces: tunnel packets from there must not come out of the device.
const UNDERLAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const ICMP: u8 = 1;
const UDP: u8 = 17;

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

/// One host: the kernel's side of its device, its loop, and what the loop tells.
struct End {
    kernel: MemoryDevice,
    port: u16,
    handle: ShardHandle,
    events: Receiver<Event>,
    /// What it told so far.
    told: Vec<Event>,
}

impl End {
    fn send(&mut self, packet: &[u8]) {
        self.kernel
            .write(&[&[0; VIRTIO_HEADER_LEN], packet].concat())
            .unwrap();
    }

    /// Waits for the next packet that the loop delivers; a tunnel that gives up first says why.
    fn receive(&mut self) -> Vec<u8> {
        let fd = self.kernel.fd().unwrap();
        let came = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&PATIENCE)).unwrap();
        self.told.extend(self.events.try_iter());
        assert_eq!(
            came,
            1,
            "{:#?} {:#?} {:?}",
            self.snapshot(),
            self.told,
            self.handle.ended()
        );
        let mut frame = vec![0; MAX_FRAME];
        let length = self.kernel.read(&mut frame).unwrap();
        frame[VIRTIO_HEADER_LEN..length].to_vec()
    }

    fn snapshot(&self) -> ShardSnapshot {
        let (reply, answer) = sync_channel(1);
        self.handle.send(Command::Snapshot(reply)).unwrap();
        answer.recv().unwrap()
    }

    fn wait_for_end(&self) -> String {
        loop {
            match self.handle.ended() {
                Some(why) => return why,
                None => thread::yield_now(),
            }
        }
    }
}

/// Two hosts whose tunnels run between sockets on `ip`.
fn pair(ip: IpAddr) -> (End, End) {
    let clock = WallClock::default();
    clock.set(unix_seconds());
    let ca = Ca::new(&domain(), clock.unix_seconds(), DAY * 2).unwrap();
    let settings = UnderlaySettings {
        listen: SocketAddr::new(ip, 0),
        mark: 0,
        send_buffer: 4 << 20,
        receive_buffer: 4 << 20,
    };
    let sockets = [
        Underlay::bind(&settings).unwrap(),
        Underlay::bind(&settings).unwrap(),
    ];
    let gateways: Vec<_> = sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap())
        .collect();
    let policy = mesh(gateways[0], gateways[1]);
    let [a, b] = sockets;
    (
        end("a", a, &policy, &ca, &clock),
        end("b", b, &policy, &ca, &clock),
    )
}

fn end(account: &str, underlay: Underlay, policy: &str, ca: &Ca, clock: &WallClock) -> End {
    let id: SpiffeId = format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap();
    let pem = ca.issue(&id, clock.unix_seconds(), DAY).unwrap();
    let identity = Identity::from_pem(&pem.certificate, &pem.key).unwrap();
    let mut bundles = TrustBundles::default();
    bundles
        .add(domain(), vec![ca.certificate().clone()])
        .unwrap();
    let own = BTreeMap::from([(id.clone(), Arc::new(identity))]);
    let identities = Arc::new(Identities {
        own,
        bundles,
        generation: 1,
    });
    let local = underlay.local_addr().unwrap();
    let port = local.port();
    let host = HostFacts {
        underlay: [local.ip(), UNDERLAY.into()].into(),
        port,
        identities: [id].into(),
        exempt: [].into(),
        forwards: false,
    };
    let seed = account.as_bytes()[0];
    let tunnel = TunnelSettings {
        rng_seed: [seed; 32],
        connection_id_key: [seed; 32],
        reset_key: [seed; 64],
        token_key: [seed; 32],
        clock: clock.clone(),
        max_udp_payload: 1_472,
        lane: 0,
        max_incoming: 64,
        retry_above: 32,
        congestion: Congestion::default(),
        max_in_flight: 16 << 20,
        idle_close: Duration::from_secs(300),
    };
    let settings = ShardSettings {
        tunnel,
        engine: EngineLimits::default(),
        underlay_mtu: 1_500,
        udp_offload: false,
    };
    let shard = Shard::new(settings, identities, compile(policy, host)).unwrap();
    let (kernel, device) = MemoryDevice::pair().unwrap();
    let (handle, events) = spawn(shard, device, underlay, clock.clone()).unwrap();
    End {
        kernel,
        port,
        handle,
        events,
        told: Vec::new(),
    }
}

fn compile(policy: &str, host: HostFacts) -> Arc<Compiled> {
    let mesh = MeshSettings::default();
    let file = SourceFile {
        name: "mesh.yaml".into(),
        text: policy.to_owned(),
    };
    let (resources, found) = load(&[Arc::new(file)], &mesh);
    let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
    let (compiled, found) = Compiled::new(&resources, &mesh, host, 1);
    Arc::new(compiled.unwrap_or_else(|| panic!("{found:#?}")))
}

fn mesh(a: SocketAddr, b: SocketAddr) -> String {
    let workload = |account: &str, address: Ipv4Addr, gateway: SocketAddr| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
             metadata: {{ name: {account}, annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\n\
             spec: {{ address: {address}, serviceAccount: {account}, labels: {{ app: {account} }} }}\n\
             ---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\n\
             spec:\n  hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  \
             resolution: STATIC\n  ports: [{{ number: 8080, name: tcp, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        )
    };
    [POLICY.to_owned(), workload("a", A, a), workload("b", B, b)].concat()
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the loops take the system's time, and certificates must be valid then"
)]
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// The Internet checksum over a header or message (RFC 1071).
fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!u16::try_from(sum).unwrap()).to_be_bytes()
}

fn ipv4(protocol: u8, source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![
        0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0,
    ];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let checksum = internet_checksum(&packet);
    packet[10..12].copy_from_slice(&checksum);
    packet.extend(payload);
    packet
}

/// An echo request (8) or reply (0).
fn echo(
    kind: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    sequence: u16,
    length: usize,
) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x12, 0x34];
    message.extend(sequence.to_be_bytes());
    message.extend((0..length).map(|at| (at % 251) as u8));
    let checksum = internet_checksum(&message);
    message[2..4].copy_from_slice(&checksum);
    ipv4(ICMP, source, destination, &message)
}

fn loopbacks() -> [IpAddr; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

#[test]
fn pings_cross_both_ways_over_ipv4_and_ipv6() {
    for ip in loopbacks() {
        let (mut a, mut b) = pair(ip);
        for sequence in 0..100 {
            let request = echo(8, A, B, sequence, usize::from(sequence) * 10);
            a.send(&request);
            assert_eq!(b.receive(), request, "over {ip}");
            let reply = echo(0, B, A, sequence, usize::from(sequence) * 10);
            b.send(&reply);
            assert_eq!(a.receive(), reply, "over {ip}");
        }
        for end in [&a, &b] {
            let snapshot = end.snapshot();
            assert!(snapshot.drops.is_empty(), "{:?}", snapshot.drops);
            assert_eq!(
                (
                    snapshot.packets.device_packets,
                    snapshot.packets.tunnel_packets
                ),
                (100, 100)
            );
            let is_up = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Up { .. }));
            assert!(end.told.iter().any(is_up));
        }
    }
}

#[test]
fn a_burst_arrives_whole_and_in_order() {
    let (mut a, mut b) = pair(Ipv4Addr::LOCALHOST.into());
    // The tunnel is up before the burst: packets that wait for it are bounded.
    let ping = echo(8, A, B, 0, 8);
    a.send(&ping);
    assert_eq!(b.receive(), ping);
    let count = 2_000;
    let sender = thread::spawn(move || {
        for sequence in 1..=count {
            let packet = [&[0; VIRTIO_HEADER_LEN][..], &echo(8, A, B, sequence, 1_000)].concat();
            loop {
                match a.kernel.write(&packet) {
                    Ok(()) => break,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        let fd = a.kernel.fd().unwrap();
                        poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None).unwrap();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
        a
    });
    for sequence in 1..=count {
        assert_eq!(b.receive(), echo(8, A, B, sequence, 1_000));
    }
    let a = sender.join().unwrap();
    assert!(a.snapshot().drops.is_empty());
    assert_eq!(a.handle.counts(), identun::io::LoopCounts::default());
}

#[test]
fn a_stopped_loop_says_so_and_takes_no_commands() {
    for stop in [Command::Stop, Command::HandOver] {
        let (a, _b) = pair(Ipv4Addr::LOCALHOST.into());
        assert_eq!(a.handle.ended(), None);
        a.handle.send(stop).unwrap();
        assert_eq!(a.wait_for_end(), "stopped");
        let error = a.handle.send(Command::Seed(Vec::new())).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
        assert!(a.events.recv().is_err());
    }
}

#[test]
fn a_loop_that_hands_over_closes_its_sessions() {
    let (mut a, mut b) = pair(Ipv4Addr::LOCALHOST.into());
    let ping = echo(8, A, B, 0, 8);
    a.send(&ping);
    assert_eq!(b.receive(), ping);
    b.handle.send(Command::HandOver).unwrap();
    assert_eq!(b.wait_for_end(), "stopped");
    let is_down = |event: &Event| matches!(event, Event::Tunnel(TunnelEvent::Down { .. }));
    assert!(a.events.iter().any(|event| is_down(&event)));
}

#[test]
fn own_tunnel_packets_out_of_the_device_end_the_loop_with_the_reason() {
    let (mut a, _b) = pair(Ipv4Addr::LOCALHOST.into());
    let port = a.port.to_be_bytes();
    let mut udp = [port, port, 12_u16.to_be_bytes(), [0, 0]].concat();
    udp.extend(b"quic");
    for _ in 0..4 {
        a.send(&ipv4(UDP, UNDERLAY, Ipv4Addr::new(192, 0, 2, 2), &udp));
    }
    let why = a.wait_for_end();
    assert!(why.starts_with("self-capture loop"), "{why}");
    let is_loop = |event: &Event| {
        matches!(
            event,
            Event::Engine(EngineEvent::Dropped {
                reason: DropReason::Loop,
                ..
            })
        )
    };
    assert_eq!(a.events.iter().filter(is_loop).count(), 4);
}
