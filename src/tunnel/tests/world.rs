//! Hosts with real certificates, joined by a link with delay, loss, reordering and an MTU.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use crate::{
    identity::{Ca, Identities, Identity, TrustBundles, WallClock},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    registry::{KeyTable, TunnelId, TunnelKey},
    spiffe::SpiffeId,
    tunnel::{
        Congestion, TunnelEvent, TunnelSettings, TunnelState, Tunnels, UnderlayDatagram,
        random::Random, session::Session,
    },
    wire::capsule::PeerFlags,
};

/// Unix seconds at which every world begins.
pub(super) const EPOCH: u64 = 1_800_000_000;
pub(super) const ALICE: usize = 0;
pub(super) const BOB: usize = 1;

pub(super) fn id(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/default/sa/{name}")
        .parse()
        .unwrap()
}

pub(super) fn address(host: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(host).unwrap() + 1], 15008))
}

const NAMES: [&str; 2] = ["alice", "bob"];

/// What lies between the hosts.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// One way.
    pub(super) delay: Duration,
    /// Added at random, so that packets overtake each other.
    pub(super) jitter: Duration,
    /// Of 100 packets.
    pub(super) loss: u8,
    /// UDP payload.
    pub(super) mtu: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::from_millis(50),
            jitter: Duration::ZERO,
            loss: 0,
            mtu: 1_472,
        }
    }
}

pub(super) struct Host {
    pub(super) tunnels: Tunnels,
    pub(super) keys: KeyTable,
    /// Where its packets come from: a NAT may change it.
    pub(super) source: SocketAddr,
    pub(super) events: Vec<(Duration, TunnelEvent)>,
    pub(super) received: Vec<(TunnelId, PeerFlags, Bytes)>,
}

pub(super) struct World {
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) clock: WallClock,
    pub(super) link: Link,
    pub(super) hosts: Vec<Host>,
    pub(super) ca: Ca,
    /// UDP payload bytes that each host put on the wire.
    pub(super) sent: [usize; 2],
    flying: BTreeMap<(Instant, u64), (usize, SocketAddr, Vec<u8>)>,
    count: u64,
    random: Random,
    seed: u8,
    restarts: u8,
}

impl World {
    pub(super) fn new(seed: u8) -> Self {
        Self::with(seed, |_, _| {})
    }

    /// `adjust` sees the settings of each host.
    pub(super) fn with(seed: u8, adjust: impl Fn(usize, &mut TunnelSettings)) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "a world needs some instant to count from"
        )]
        let start = Instant::now();
        let clock = WallClock::default();
        clock.set(EPOCH);
        let domain = "cluster.local".parse().unwrap();
        let mut world = Self {
            start,
            now: start,
            clock,
            link: Link::default(),
            hosts: Vec::new(),
            ca: Ca::new(&domain, EPOCH, Duration::from_secs(1_000_000)).unwrap(),
            sent: [0; 2],
            flying: BTreeMap::new(),
            count: 0,
            random: Random::new(&[seed; 32], "world"),
            seed,
            restarts: 0,
        };
        for host in [ALICE, BOB] {
            let mut settings = world.settings(host);
            adjust(host, &mut settings);
            let identities = world.identities(NAMES[host]);
            let new = world.host(host, settings, identities);
            world.hosts.push(new);
        }
        world
    }

    pub(super) fn settings(&self, host: usize) -> TunnelSettings {
        let own = u8::try_from(host).unwrap();
        TunnelSettings {
            rng_seed: [self.seed ^ (own << 7) ^ (self.restarts << 4); 32],
            connection_id_key: [own; 32],
            reset_key: [own; 64],
            token_key: [own; 32],
            clock: self.clock.clone(),
            max_udp_payload: 1_472,
            lane: 0,
            max_incoming: 64,
            retry_above: 32,
            congestion: Congestion::default(),
            max_in_flight: 16 << 20,
            idle_close: Duration::from_secs(300),
        }
    }

    /// One identity of this world's CA, valid for an hour.
    pub(super) fn identities(&self, name: &str) -> Identities {
        self.identities_of(&self.ca, name, Duration::from_secs(3_600))
    }

    /// One identity of any CA; trusted is this world's.
    pub(super) fn identities_of(&self, ca: &Ca, name: &str, valid: Duration) -> Identities {
        let trusted = self.ca.to_pem().certificate;
        let domain = "cluster.local".parse().unwrap();
        let mut identities = Identities {
            bundles: TrustBundles::from_pem(domain, &trusted).unwrap(),
            ..Identities::default()
        };
        let pem = ca.issue(&id(name), EPOCH, valid).unwrap();
        identities.insert(Identity::from_pem(&pem.certificate, &pem.key).unwrap());
        identities
    }

    pub(super) fn host(
        &self,
        host: usize,
        settings: TunnelSettings,
        identities: Identities,
    ) -> Host {
        let policy = policy(host, &NAMES, "");
        Host {
            tunnels: Tunnels::new(settings, Arc::new(identities), policy).unwrap(),
            keys: KeyTable::default(),
            source: address(host),
            events: Vec::new(),
            received: Vec::new(),
        }
    }

    /// Kills a host's process and starts another with the same keys.
    pub(super) fn restart(&mut self, host: usize) {
        self.restarts += 1;
        let identities = self.identities(NAMES[host]);
        self.hosts[host] = self.host(host, self.settings(host), identities);
    }

    /// The other host's key at a host.
    pub(super) fn key(&self, host: usize) -> TunnelKey {
        let peer = 1 - host;
        TunnelKey {
            local: id(NAMES[host]),
            peer: id(NAMES[peer]),
            gateway: address(peer),
            lane: 0,
        }
    }

    pub(super) fn tunnel(&mut self, host: usize) -> TunnelId {
        let key = self.key(host);
        self.hosts[host].keys.id(&key)
    }

    /// Dials the other host.
    pub(super) fn open(&mut self, host: usize) -> TunnelId {
        let (key, id) = (self.key(host), self.tunnel(host));
        self.hosts[host].tunnels.open(id, &key, self.now);
        id
    }

    pub(super) fn live(&mut self, host: usize, live: bool) {
        let id = self.tunnel(host);
        self.hosts[host].tunnels.set_live_flows(id, live);
    }

    pub(super) fn state(&mut self, host: usize) -> TunnelState {
        let id = self.tunnel(host);
        self.hosts[host].tunnels.state(id)
    }

    pub(super) fn send(&mut self, host: usize, payload: &'static [u8]) {
        let id = self.tunnel(host);
        self.hosts[host].tunnels.send(
            id,
            1,
            std::iter::once(Bytes::from_static(payload)),
            self.now,
        );
    }

    /// What a host took out of its tunnel since the last time.
    pub(super) fn received(&mut self, host: usize) -> Vec<Bytes> {
        let expected = self.tunnel(host);
        let all = std::mem::take(&mut self.hosts[host].received);
        all.into_iter()
            .map(|(id, _, bytes)| {
                assert_eq!(id, expected);
                bytes
            })
            .collect()
    }

    /// The session that carries a host's packets.
    pub(super) fn session(&mut self, host: usize) -> &mut Session {
        let id = self.tunnel(host);
        let tunnels = &mut self.hosts[host].tunnels;
        let handle = tunnels.tunnels[&id].current.unwrap();
        tunnels.links.session_mut(handle).unwrap()
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.step(end) {}
        self.now = end;
        self.clock.set(EPOCH + self.elapsed().as_secs());
    }

    /// Runs until a host's tunnel is up; when that was.
    pub(super) fn run_until_up(&mut self, host: usize, limit: Duration) -> Duration {
        let end = self.now + limit;
        while self.state(host) != TunnelState::Up {
            assert!(
                self.step(end),
                "not up: {:?} {:?}",
                self.state(host),
                self.hosts[host].events
            );
        }
        self.elapsed()
    }

    /// Both up, nothing in flight.
    pub(super) fn connect(&mut self) {
        self.open(ALICE);
        self.run(Duration::from_secs(1));
        for host in [ALICE, BOB] {
            assert_eq!(
                self.state(host),
                TunnelState::Up,
                "{:?}",
                self.hosts[host].events
            );
        }
    }

    /// Lets everything due before `end` happen once; `false` when nothing was.
    fn step(&mut self, end: Instant) -> bool {
        for host in 0..self.hosts.len() {
            self.drain(host);
        }
        let arrival = self.flying.keys().next().map(|&(at, _)| at);
        let timers = self
            .hosts
            .iter_mut()
            .filter_map(|host| host.tunnels.poll_timeout());
        let Some(next) = timers.chain(arrival).min().filter(|&next| next <= end) else {
            return false;
        };
        self.now = self.now.max(next);
        self.clock.set(EPOCH + self.elapsed().as_secs());
        while let Some(entry) = self.flying.first_entry()
            && entry.key().0 <= self.now
        {
            let (host, remote, data) = entry.remove();
            let datagram = UnderlayDatagram {
                remote,
                local: Some(address(host).ip()),
                ecn: 0,
                data: BytesMut::from(data.as_slice()),
            };
            let Host { tunnels, keys, .. } = &mut self.hosts[host];
            tunnels.handle_underlay(self.now, datagram, keys);
            tunnels.settle_input(self.now, keys);
            self.drain(host);
        }
        for host in &mut self.hosts {
            host.tunnels.handle_timeout(self.now);
        }
        true
    }

    fn drain(&mut self, from: usize) {
        let mut buf = Vec::new();
        while let Some(transmit) = self.hosts[from]
            .tunnels
            .poll_transmit(self.now, 8, &mut buf)
        {
            assert_eq!(buf.len(), transmit.size);
            assert_eq!(transmit.ecn, 0);
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for datagram in buf.chunks(size) {
                self.fly(from, transmit.remote, datagram);
            }
        }
        let elapsed = self.elapsed();
        let host = &mut self.hosts[from];
        while let Some(event) = host.tunnels.poll_event() {
            host.events.push((elapsed, event));
        }
        while let Some(received) = host.tunnels.poll_received() {
            host.received.push(received);
        }
    }

    fn fly(&mut self, from: usize, to: SocketAddr, datagram: &[u8]) {
        self.sent[from] += datagram.len();
        let [lot] = self.random.bytes();
        let host = self.hosts.iter().position(|host| host.source == to);
        let Some(host) =
            host.filter(|_| datagram.len() <= self.link.mtu && lot % 100 >= self.link.loss)
        else {
            return;
        };
        let at = self.now + self.link.delay + self.random.up_to(self.link.jitter);
        self.count += 1;
        let source = self.hosts[from].source;
        self.flying
            .insert((at, self.count), (host, source, datagram.to_vec()));
    }
}

/// The policy of a host in a mesh of the named identities, each on the host of its number.
pub(super) fn policy(host: usize, names: &[&str], more: &str) -> Arc<Compiled> {
    let mut text = String::new();
    for (number, name) in names.iter().enumerate() {
        let ip = address(number).ip();
        text += &format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata:\n  name: {name}\n  namespace: default\n\
             spec:\n  address: {ip}\n  serviceAccount: {name}\n---\n"
        );
    }
    text += more;
    let file = Arc::new(SourceFile {
        name: "mesh.yaml".into(),
        text,
    });
    let mesh = MeshSettings::default();
    let (resources, diagnostics) = load(&[file], &mesh);
    let resources = resources.unwrap_or_else(|| panic!("{diagnostics:?}"));
    let underlay: IpAddr = address(host).ip();
    let facts = HostFacts {
        underlay: [underlay].into(),
        port: 15008,
        identities: [id(NAMES[host])].into(),
        ..HostFacts::default()
    };
    let (compiled, diagnostics) = Compiled::new(&resources, &mesh, facts, 1);
    Arc::new(compiled.unwrap_or_else(|| panic!("{diagnostics:?}")))
}
