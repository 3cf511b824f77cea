//! Two shards with a real TLS session between them, on a virtual clock and a wire in memory.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use identun::{
    engine::EngineLimits,
    identity::{Ca, Identities, Identity, TrustBundles, WallClock},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    registry::TunnelKey,
    shard::{Shard, ShardSettings},
    spiffe::SpiffeId,
    tunnel::{Congestion, Transmit, TunnelSettings, TunnelState, UnderlayDatagram},
};

use crate::packets::{A, ACK, B, PORT, SYN, Way, frame, tcp, udp};

/// Wall clock: 2026-01-01.
const START: u64 = 1_767_225_600;
const DAY: Duration = Duration::from_secs(86_400);
const TUNNEL_PORT: u16 = 15_008;
/// UDP payload of an outer packet at an MTU of 1500.
const UDP_PAYLOAD: u16 = 1_472;
/// As many as a GSO batch may have.
const MAX_DATAGRAMS: usize = 44;
/// Bytes of a receive buffer, as the daemon has them.
const BUFFER: usize = 1 << 16;
/// Outer packets take so long, either way.
const DELAY: Duration = Duration::from_micros(50);
/// Virtual steps of a millisecond until the session is up and has found its path's MTU.
const SETTLE: usize = 1_000;

/// What one GSO batch was.
struct Batch {
    bytes: Vec<u8>,
    transmit: Option<Transmit>,
}

/// One shard, what it sent and what waits for it.
pub(crate) struct End {
    shard: Shard,
    address: SocketAddr,
    sent: Vec<Batch>,
    /// How many of `sent` hold something.
    used: usize,
    /// As the daemon receives: datagrams are slices of buffers that are used again.
    buffers: Vec<BytesMut>,
    inbox: Vec<UnderlayDatagram>,
    delivery: Vec<u8>,
    /// Frames given to the device.
    pub(crate) delivered: usize,
}

impl End {
    fn new(shard: Shard, address: SocketAddr) -> Self {
        Self {
            shard,
            address,
            sent: Vec::new(),
            used: 0,
            buffers: Vec::new(),
            inbox: Vec::new(),
            delivery: Vec::new(),
            delivered: 0,
        }
    }

    /// One turn of the daemon's loop: what came is taken and delivered, frames are read, and all of it is sent.
    pub(crate) fn turn(&mut self, frames: &mut [Vec<u8>], now: Instant) {
        for datagram in self.inbox.drain(..) {
            self.shard.handle_underlay(datagram, now);
        }
        if self.shard.poll_timeout().is_some_and(|due| due <= now) {
            self.shard.handle_timeout(now);
        }
        for frame in frames {
            if !self.shard.wants_device() {
                self.send(now);
            }
            self.shard.handle_device(frame, now);
        }
        while self.shard.poll_device(&mut self.delivery) {
            self.delivered += 1;
        }
        self.send(now);
        while self.shard.poll_event().is_some() {}
    }

    fn send(&mut self, now: Instant) {
        // The shard works once more when it has nothing left to send: only the second time in a row is it done.
        let mut done = false;
        loop {
            if self.used == self.sent.len() {
                self.sent.push(Batch {
                    bytes: Vec::with_capacity(BUFFER),
                    transmit: None,
                });
            }
            let batch = &mut self.sent[self.used];
            batch.transmit = self
                .shard
                .poll_transmit(now, MAX_DATAGRAMS, &mut batch.bytes);
            match batch.transmit {
                Some(_) => {
                    self.used += 1;
                    done = false;
                }
                None if done => return,
                None => done = true,
            }
        }
    }

    /// Receives what `other` sent since the last time.
    pub(crate) fn receive(&mut self, other: &mut Self) {
        for (index, batch) in other.sent.iter().take(other.used).enumerate() {
            let Some(transmit) = batch.transmit else {
                continue;
            };
            if index == self.buffers.len() {
                self.buffers.push(BytesMut::with_capacity(BUFFER));
            }
            let buffer = &mut self.buffers[index];
            buffer.clear();
            if !buffer.try_reclaim(BUFFER) {
                *buffer = BytesMut::with_capacity(BUFFER);
            }
            buffer.extend_from_slice(&batch.bytes[..transmit.size]);
            let mut data = buffer.split();
            let size = transmit.segment_size.unwrap_or(transmit.size);
            while !data.is_empty() {
                self.inbox.push(UnderlayDatagram {
                    remote: other.address,
                    local: Some(self.address.ip()),
                    ecn: transmit.ecn,
                    data: data.split_to(size.min(data.len())),
                });
            }
        }
        other.used = 0;
    }
}

/// Two workloads, and a flow of each kind open between them.
pub(crate) struct Pair {
    pub(crate) a: End,
    pub(crate) b: End,
    pub(crate) now: Instant,
}

impl Pair {
    /// A session that is up and has found its path's MTU, and `flows` flows over TCP and UDP with a packet each way.
    pub(crate) fn new(flows: u16) -> Self {
        let setup = Setup::new();
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to count from"
        )]
        let now = Instant::now();
        let mut pair = Self {
            a: setup.end("a", 1),
            b: setup.end("b", 2),
            now,
        };
        let mut first = frame(tcp(Way::Request, 0, 0, SYN, 0), None);
        pair.a.turn(std::slice::from_mut(&mut first), pair.now);
        for _ in 0..SETTLE {
            pair.exchange();
            pair.now += Duration::from_millis(1);
        }
        for flow in 0..flows {
            for way in [Way::Request, Way::Reply] {
                let flags = match way {
                    Way::Request => SYN,
                    Way::Reply => SYN | ACK,
                };
                let mut frames = [tcp(way, flow, 0, flags, 0), udp(way, flow, 64)]
                    .map(|packet| frame(packet, None));
                let from = match way {
                    Way::Request => &mut pair.a,
                    Way::Reply => &mut pair.b,
                };
                from.turn(&mut frames, pair.now);
                pair.exchange();
            }
        }
        let snapshot = pair.b.shard.snapshot();
        assert_eq!(
            snapshot.flow_count,
            2 * usize::from(flows),
            "every flow is open"
        );
        pair
    }

    /// The largest inner packet.
    pub(crate) fn inner_mtu(&mut self) -> usize {
        let snapshot = self.a.shard.snapshot();
        let up = |tunnel: &&identun::tunnel::TunnelSnapshot| tunnel.state == TunnelState::Up;
        let tunnel = snapshot.tunnels.iter().find(up);
        tunnel.and_then(|tunnel| tunnel.inner_mtu).unwrap()
    }

    /// Packets that either shard dropped.
    pub(crate) fn drops(&mut self) -> u64 {
        let ends = [&mut self.a, &mut self.b];
        let drops = ends.map(|end| end.shard.snapshot().drops.values().sum::<u64>());
        drops.iter().sum()
    }

    /// Inner packets that reached B.
    pub(crate) fn packets(&mut self) -> u64 {
        self.b.shard.snapshot().packets.tunnel_packets
    }

    /// What A sent reaches B, half a round trip later.
    pub(crate) fn deliver_to_b(&mut self) {
        self.now += DELAY;
        self.b.receive(&mut self.a);
    }

    /// What B sent reaches A.
    pub(crate) fn deliver_to_a(&mut self) {
        self.now += DELAY;
        self.a.receive(&mut self.b);
    }

    fn exchange(&mut self) {
        self.deliver_to_b();
        self.b.turn(&mut [], self.now);
        self.deliver_to_a();
        self.a.turn(&mut [], self.now);
    }
}

/// What both hosts are given.
pub(crate) struct Setup {
    ca: Ca,
    clock: WallClock,
    policy: Arc<SourceFile>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let clock = WallClock::default();
        clock.set(START);
        let policy = Arc::new(SourceFile {
            name: "mesh.yaml".into(),
            text: mesh(),
        });
        Self {
            ca: Ca::new(&"cluster.local".parse().unwrap(), START, 2 * DAY).unwrap(),
            clock,
            policy,
        }
    }

    /// The policy as the host of `account` sees it.
    pub(crate) fn compiled(&self, account: &str, number: u8) -> Arc<Compiled> {
        let mesh = MeshSettings::default();
        let (resources, found) = load(&[Arc::clone(&self.policy)], &mesh);
        let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
        let host = HostFacts {
            underlay: [underlay(number).ip()].into(),
            port: TUNNEL_PORT,
            identities: [id(account)].into(),
            exempt: [].into(),
            forwards: false,
        };
        let (compiled, found) = Compiled::new(&resources, &mesh, host, 1);
        Arc::new(compiled.unwrap_or_else(|| panic!("{found:#?}")))
    }

    /// The tunnel at the end that sees packets going this way, named by both ends.
    pub(crate) fn key(&self, way: Way) -> TunnelKey {
        let (local, peer, number) = match way {
            Way::Request => ("a", "b", 2),
            Way::Reply => ("b", "a", 1),
        };
        TunnelKey {
            local: id(local),
            peer: id(peer),
            gateway: underlay(number),
            lane: 0,
        }
    }

    fn end(&self, account: &str, number: u8) -> End {
        let svid = self.ca.issue(&id(account), START, DAY).unwrap();
        let domain = "cluster.local".parse().unwrap();
        let mut identities = Identities {
            bundles: TrustBundles::from_pem(domain, &self.ca.to_pem().certificate).unwrap(),
            generation: 1,
            ..Identities::default()
        };
        identities.insert(Identity::from_pem(&svid.certificate, &svid.key).unwrap());
        let tunnel = TunnelSettings {
            rng_seed: [number; 32],
            connection_id_key: [number; 32],
            reset_key: [number; 64],
            token_key: [number; 32],
            clock: self.clock.clone(),
            max_udp_payload: UDP_PAYLOAD,
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
            udp_offload: true,
        };
        let compiled = self.compiled(account, number);
        let shard = Shard::new(settings, Arc::new(identities), compiled).unwrap();
        End::new(shard, underlay(number))
    }
}

/// The SPIFFE ID of an account.
fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

fn underlay(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], TUNNEL_PORT))
}

/// STRICT everywhere, and a service of each workload.
fn mesh() -> String {
    let mut text = "apiVersion: authentication.istio.io/v1alpha1\nkind: MeshPolicy\n\
        metadata: { name: default }\nspec: { peers: [{ mtls: { mode: STRICT } }] }\n---\n\
        apiVersion: networking.istio.io/v1alpha3\nkind: DestinationRule\n\
        metadata: { name: default, namespace: istio-system }\n\
        spec: { host: \"*.local\", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }\n"
        .to_owned();
    for (account, address, number) in [("a", A, 1), ("b", B, 2)] {
        let (address, gateway) = (Ipv4Addr::from(address), underlay(number).ip());
        text += &format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{ name: {account}, \
             annotations: {{ identun.io/gateway: \"{gateway}\" }} }}\nspec: {{ address: \"{address}\", \
             serviceAccount: {account}, labels: {{ app: {account} }} }}\n---\n\
             apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{ name: {account} }}\nspec:\n  \
             hosts: [{account}.default.svc.cluster.local]\n  location: MESH_INTERNAL\n  resolution: STATIC\n  \
             ports: [{{ number: {PORT}, name: tcp, protocol: TCP }}]\n  \
             workloadSelector: {{ labels: {{ app: {account} }} }}\n"
        );
    }
    text
}
