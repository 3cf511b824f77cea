//! Shards on a virtual clock, with hosts behind their devices and a simulated underlay between them.

#[path = "authority.rs"]
mod authority;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use identun::{
    engine::{EngineLimits, FlowDirectory},
    identity::{Identities, TrustBundles, WallClock},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    shard::{Event, Shard, ShardSettings},
    spiffe::SpiffeId,
    tunnel::{Congestion, TunnelSettings, UnderlayDatagram, shard_octet},
    wire::virtio::VIRTIO_HEADER_LEN,
};

use crate::host::Host;
use authority::{Authority, domain};

/// Wall clock at the start: 2026-01-01.
pub(crate) const START: u64 = 1_767_225_600;
const PORT: u16 = 15_008;
/// When certificates are valid.
const LIFE: Range<u64> = START - 60..START + 86_400;

/// What the underlay does to a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    /// One way.
    pub(crate) delay: Duration,
    /// Up to so much more, at random: datagrams overtake each other.
    pub(crate) jitter: Duration,
    /// Lost datagrams of a thousand.
    pub(crate) loss: u32,
    /// The largest UDP payload; larger ones vanish.
    pub(crate) max_payload: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(5),
            jitter: Duration::ZERO,
            loss: 0,
            max_payload: 1472,
        }
    }
}

/// One host: its applications' stack, its shard, its underlay address.
pub(crate) struct Node {
    pub(crate) stack: Host,
    pub(crate) shard: Shard,
    pub(crate) underlay: IpAddr,
    /// What the shard told the control plane.
    pub(crate) events: Vec<Event>,
    identities: Arc<Identities>,
    seed: u8,
    /// The number of the shard on its host.
    lane: u8,
    held: Vec<Vec<u8>>,
}

struct Flying {
    at: Duration,
    order: u64,
    from: SocketAddr,
    to: SocketAddr,
    data: Vec<u8>,
}

/// Everything; time stands still between calls.
pub(crate) struct World {
    base: Instant,
    pub(crate) elapsed: Duration,
    pub(crate) link: Link,
    pub(crate) nodes: Vec<Node>,
    /// Every byte that crossed the underlay: the eavesdropper's record.
    pub(crate) overheard: Vec<Vec<u8>>,
    /// The underlay leads this address elsewhere.
    pub(crate) reroutes: BTreeMap<IpAddr, IpAddr>,
    /// The frames of this node's applications are read by the shard of another node.
    pub(crate) strays: BTreeMap<usize, usize>,
    /// What this node's shard delivers goes to the applications of another node.
    pub(crate) deliveries: BTreeMap<usize, usize>,
    /// Nodes without a process, and what waits in their sockets.
    paused: BTreeMap<usize, Vec<UnderlayDatagram>>,
    /// Underlay addresses that nothing reaches and nothing leaves.
    pub(crate) cut: Vec<IpAddr>,
    /// How many datagrams a millisecond a node's link takes; more wait in its shard.
    pub(crate) uplinks: BTreeMap<usize, usize>,
    /// Which millisecond, and what the node sent in it.
    sent: BTreeMap<usize, (u128, usize)>,
    clock: WallClock,
    ca: Authority,
    policy: Vec<Arc<SourceFile>>,
    flying: BinaryHeap<Reverse<Flying>>,
    order: u64,
    random: u64,
}

/// The SPIFFE ID of an account of namespace `default`.
pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{account}")
        .parse()
        .unwrap()
}

impl World {
    /// A world without nodes in which `policy` holds.
    pub(crate) fn new(policy: &str, seed: u64) -> Self {
        let clock = WallClock::default();
        clock.set(START);
        #[expect(
            clippy::disallowed_methods,
            reason = "virtual time needs some instant to count from"
        )]
        let base = Instant::now();
        Self {
            base,
            elapsed: Duration::ZERO,
            link: Link::default(),
            nodes: Vec::new(),
            overheard: Vec::new(),
            reroutes: BTreeMap::new(),
            strays: BTreeMap::new(),
            deliveries: BTreeMap::new(),
            paused: BTreeMap::new(),
            cut: Vec::new(),
            uplinks: BTreeMap::new(),
            sent: BTreeMap::new(),
            clock,
            ca: Authority::new(LIFE),
            policy: vec![Arc::new(SourceFile {
                name: "mesh.yaml".into(),
                text: policy.to_owned(),
            })],
            flying: BinaryHeap::new(),
            order: 0,
            random: seed | 1,
        }
    }

    /// Adds a host that holds the identities of `accounts` and whose applications own `addresses`.
    pub(crate) fn add(&mut self, accounts: &[&str], underlay: &str, addresses: &[&str]) -> usize {
        let underlay: IpAddr = underlay.parse().unwrap();
        let mut own = BTreeMap::new();
        for account in accounts {
            own.insert(id(account), Arc::new(self.ca.issue(&id(account), LIFE)));
        }
        let bundles = TrustBundles::from_pem(domain(), &self.ca.certificate).unwrap();
        let identities = Arc::new(Identities {
            own,
            bundles,
            generation: 1,
        });
        let seed = u8::try_from(self.nodes.len() + 1).unwrap();
        let addresses: Vec<_> = addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let shard = self.shard(&identities, underlay, seed, 0);
        let stack = Host::new(&addresses);
        self.nodes.push(Node {
            stack,
            shard,
            underlay,
            events: Vec::new(),
            identities,
            seed,
            lane: 0,
            held: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// The node's daemon dies and another takes its place: same state folder, no memory of flows and sessions.
    pub(crate) fn restart(&mut self, node: usize) {
        let (identities, underlay) = (
            Arc::clone(&self.nodes[node].identities),
            self.nodes[node].underlay,
        );
        let (seed, lane) = (self.nodes[node].seed, self.nodes[node].lane);
        self.nodes[node].shard = self.shard(&identities, underlay, seed, lane);
    }

    /// The node's process ends. What its applications send waits in the device, and what comes for it in its socket.
    pub(crate) fn pause(&mut self, node: usize) {
        self.paused.insert(node, Vec::new());
    }

    /// Another process has taken the place of the one that ended.
    pub(crate) fn resume(&mut self, node: usize) {
        let now = self.now();
        for datagram in self.paused.remove(&node).unwrap_or_default() {
            self.nodes[node].shard.handle_underlay(datagram, now);
        }
    }

    /// A second shard on the host of `node`, for other applications with the same addresses. Neither has flows yet.
    pub(crate) fn add_shard(&mut self, node: usize, addresses: &[IpAddr]) -> usize {
        let directory = Arc::new(FlowDirectory::default());
        let (identities, underlay) = (
            Arc::clone(&self.nodes[node].identities),
            self.nodes[node].underlay,
        );
        let seed = self.nodes[node].seed;
        let first = self.shard(&identities, underlay, seed, 0);
        self.nodes[node].shard = first.with_directory(Arc::clone(&directory));
        let second = self.shard(&identities, underlay, seed, 1);
        self.nodes.push(Node {
            stack: Host::new(addresses),
            shard: second.with_directory(directory),
            underlay,
            events: Vec::new(),
            identities,
            seed,
            lane: 1,
            held: Vec::new(),
        });
        self.nodes.len() - 1
    }

    /// The policy changes on one host.
    pub(crate) fn configure(&mut self, node: usize, policy: &str, generation: u64) {
        self.policy = vec![Arc::new(SourceFile {
            name: "mesh.yaml".into(),
            text: policy.to_owned(),
        })];
        let (identities, underlay) = (
            Arc::clone(&self.nodes[node].identities),
            self.nodes[node].underlay,
        );
        let compiled = self.compile(&identities, underlay, generation);
        let now = self.now();
        self.nodes[node]
            .shard
            .handle_config(identities, compiled, now);
    }

    fn compile(&self, identities: &Identities, underlay: IpAddr, generation: u64) -> Arc<Compiled> {
        let mesh = MeshSettings::default();
        let (resources, found) = load(&self.policy, &mesh);
        let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
        let host = HostFacts {
            underlay: [underlay].into(),
            port: PORT,
            identities: identities.own.keys().cloned().collect(),
            exempt: [].into(),
            forwards: false,
        };
        let (compiled, found) = Compiled::new(&resources, &mesh, host, generation);
        Arc::new(compiled.unwrap_or_else(|| panic!("{found:#?}")))
    }

    fn shard(&self, identities: &Arc<Identities>, underlay: IpAddr, seed: u8, lane: u8) -> Shard {
        let compiled = self.compile(identities, underlay, 1);
        // A restarted daemon has the same keys and another seed.
        let mut rng_seed = [seed; 32];
        rng_seed[31] ^= lane;
        rng_seed[..16].copy_from_slice(&self.elapsed.as_nanos().to_le_bytes());
        let tunnel = TunnelSettings {
            rng_seed,
            connection_id_key: [seed; 32],
            reset_key: [seed; 64],
            token_key: [seed; 32],
            clock: self.clock.clone(),
            max_udp_payload: 1472,
            lane,
            max_incoming: 64,
            retry_above: 32,
            congestion: Congestion::default(),
            max_in_flight: 16 << 20,
            idle_close: Duration::from_secs(300),
        };
        let settings = ShardSettings {
            tunnel,
            engine: EngineLimits::default(),
            underlay_mtu: 1500,
            udp_offload: false,
        };
        Shard::new(settings, Arc::clone(identities), compiled).unwrap()
    }

    /// The virtual instant.
    pub(crate) fn now(&self) -> Instant {
        self.base + self.elapsed
    }

    /// Runs until `done`, at most `limit` of virtual time. Returns whether it was done, and when.
    pub(crate) fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let end = self.elapsed + limit;
        loop {
            self.settle();
            if done(self) {
                return Some(self.elapsed);
            }
            let next = self.next_event().filter(|next| *next <= end)?;
            self.elapsed = next.max(self.elapsed + Duration::from_micros(1));
            self.clock.set(START + self.elapsed.as_secs());
            self.arrive();
        }
    }

    /// Runs for so much virtual time.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.elapsed + time;
        self.run_until(time, |_| false);
        self.elapsed = end;
        self.clock.set(START + self.elapsed.as_secs());
    }

    /// Gives a frame to a node's device as if its kernel had sent it.
    pub(crate) fn inject(&mut self, node: usize, packet: &[u8]) {
        let mut frame = vec![0; VIRTIO_HEADER_LEN];
        frame.extend_from_slice(packet);
        let now = self.now();
        self.nodes[node].shard.handle_device(&frame, now);
    }

    /// Lets stacks and shards talk until nobody has anything left to say at this instant.
    fn settle(&mut self) {
        for index in 0..self.nodes.len() {
            for _ in 0..1_000 {
                if !self.turn(index) {
                    break;
                }
            }
        }
    }

    fn turn(&mut self, index: usize) -> bool {
        let (now, elapsed) = (self.now(), self.elapsed);
        let reader = self.strays.get(&index).copied().unwrap_or(index);
        let mut frames = self.nodes[index].stack.run(elapsed);
        self.nodes[reader].held.append(&mut frames);
        let mut moved = reader != index && !self.nodes[reader].held.is_empty();
        if self.paused.contains_key(&index) {
            return false;
        }
        let room = self.room(index);
        let node = &mut self.nodes[index];
        while !node.held.is_empty() && node.shard.wants_device() {
            let mut frame = vec![0; VIRTIO_HEADER_LEN];
            frame.append(&mut node.held.remove(0));
            node.shard.handle_device(&frame, now);
            moved = true;
        }
        if node.shard.poll_timeout().is_some_and(|due| due <= now) {
            node.shard.handle_timeout(now);
        }
        let mut buffer = Vec::new();
        let mut sent = Vec::new();
        while sent.len() < room
            && let Some(transmit) =
                node.shard
                    .poll_transmit(now, (room - sent.len()).min(10), &mut buffer)
        {
            let bytes = &buffer[..transmit.size];
            let size = transmit.segment_size.unwrap_or(transmit.size).max(1);
            // Who was dialled under another's address answers from it.
            let from = SocketAddr::new(transmit.local.unwrap_or(node.underlay), PORT);
            sent.extend(
                bytes
                    .chunks(size)
                    .map(|datagram| (from, transmit.remote, datagram.to_vec())),
            );
        }
        let mut delivered = Vec::new();
        while node.shard.poll_device(&mut buffer) {
            delivered.push(buffer[VIRTIO_HEADER_LEN..].to_vec());
            moved = true;
        }
        while let Some(event) = node.shard.poll_event() {
            node.events.push(event);
        }
        moved |= !sent.is_empty() | self.hand_over(index);
        if room != usize::MAX {
            self.sent.entry(index).or_default().1 += sent.len();
        }
        let receiver = self.deliveries.get(&index).copied().unwrap_or(index);
        for packet in delivered {
            self.nodes[receiver].stack.receive(&packet);
        }
        for (from, to, data) in sent {
            self.fly(from, to, data);
        }
        moved
    }

    /// How many datagrams a node may still send in this millisecond.
    fn room(&mut self, index: usize) -> usize {
        let Some(&uplink) = self.uplinks.get(&index) else {
            return usize::MAX;
        };
        let millisecond = self.elapsed.as_millis();
        let sent = self.sent.entry(index).or_default();
        if sent.0 != millisecond {
            *sent = (millisecond, 0);
        }
        uplink.saturating_sub(sent.1)
    }

    /// When a link that took all it can takes more.
    fn next_room(&self) -> Option<Duration> {
        let full = |(index, uplink): (&usize, &usize)| {
            self.sent.get(index).is_some_and(|sent| sent.1 >= *uplink)
        };
        let next = Duration::from_millis(u64::try_from(self.elapsed.as_millis()).ok()? + 1);
        self.uplinks.iter().any(full).then_some(next)
    }

    /// What a shard has for the others of its host.
    fn hand_over(&mut self, index: usize) -> bool {
        let (now, underlay) = (self.now(), self.nodes[index].underlay);
        let mut moved = false;
        while let Some((lane, handover)) = self.nodes[index].shard.poll_handover() {
            let mut nodes = self.nodes.iter_mut();
            let other = nodes.find(|node| node.underlay == underlay && node.lane == lane);
            other.unwrap().shard.handle_handover(handover, now);
            moved = true;
        }
        moved
    }

    fn fly(&mut self, from: SocketAddr, to: SocketAddr, data: Vec<u8>) {
        self.overheard.push(data.clone());
        if self.cut.contains(&from.ip()) || self.cut.contains(&to.ip()) {
            return;
        }
        let lost = self.chance(1_000) < u64::from(self.link.loss);
        let jitter = self.chance(self.link.jitter.as_micros().try_into().unwrap_or(1));
        if lost || data.len() > self.link.max_payload {
            return;
        }
        let at = self.elapsed + self.link.delay + Duration::from_micros(jitter);
        self.order += 1;
        self.flying.push(Reverse(Flying {
            at,
            order: self.order,
            from,
            to,
            data,
        }));
    }

    fn arrive(&mut self) {
        let now = self.now();
        while self
            .flying
            .peek()
            .is_some_and(|Reverse(next)| next.at <= self.elapsed)
        {
            let Some(Reverse(flying)) = self.flying.pop() else {
                return;
            };
            let ip = self
                .reroutes
                .get(&flying.to.ip())
                .copied()
                .unwrap_or_else(|| flying.to.ip());
            let shards = self.nodes.iter().filter(|node| node.underlay == ip).count();
            let lane = shard_octet(&flying.data).map_or(0, usize::from) % shards.max(1);
            let mut nodes = self.nodes.iter_mut().enumerate();
            if let Some((index, node)) =
                nodes.find(|(_, node)| node.underlay == ip && usize::from(node.lane) == lane)
            {
                let data = BytesMut::from(flying.data.as_slice());
                let datagram = UnderlayDatagram {
                    remote: flying.from,
                    local: Some(flying.to.ip()),
                    ecn: 0,
                    data,
                };
                match self.paused.get_mut(&index) {
                    Some(waiting) => waiting.push(datagram),
                    None => node.shard.handle_underlay(datagram, now),
                }
            }
        }
    }

    fn next_event(&mut self) -> Option<Duration> {
        let (base, elapsed) = (self.base, self.elapsed);
        let flying = self.flying.peek().map(|Reverse(next)| next.at);
        let room = self.next_room();
        let paused = &self.paused;
        let nodes = self.nodes.iter_mut().enumerate().flat_map(|(index, node)| {
            let runs = !paused.contains_key(&index);
            let due = runs.then(|| node.shard.poll_timeout()).flatten();
            let shard = due.map(|due| due.saturating_duration_since(base));
            [shard, node.stack.next_run(elapsed)]
        });
        nodes
            .flatten()
            .chain(flying)
            .chain(room)
            .min()
            .map(|next| next.max(elapsed))
    }

    /// A number below `bound`, from the world's seed (xorshift).
    fn chance(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound.max(1)
    }
}

impl PartialEq for Flying {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Flying {}

impl PartialOrd for Flying {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Flying {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
