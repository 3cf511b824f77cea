//! One host: its daemon's shard, its kernel's part, its clock, and what it believes of the mesh.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use identun::{
    engine::{EngineLimits, PendingLimits},
    identity::{Identities, Identity, TrustBundles, WallClock},
    policy::{Compiled, HostFacts, MeshSettings, SourceFile, load::load},
    shard::{Shard, ShardSettings},
    tunnel::{Congestion, TunnelSettings},
    wire::FiveTuple,
};

use crate::{
    authority::{Authority, domain},
    model::{TUNNEL_PORT, View, id, underlay},
};

/// The wall clock at the start: 2026-01-01.
pub(crate) const START: u64 = 1_767_225_600;
/// Small, so that they are reached.
pub(crate) const PENDING: PendingLimits = PendingLimits {
    packets: 12,
    bytes: 16_000,
    wait: Duration::from_secs(1),
    total_bytes: 24_000,
    tunnels: 3,
};
/// How long a session without inner packets stays.
const IDLE_CLOSE: Duration = Duration::from_secs(50);
/// Frames that the kernel keeps for a daemon that does not read.
const TUN_QUEUE: usize = 500;
/// How long conntrack remembers.
const TRACKED: Duration = Duration::from_secs(180);

/// A certificate that a host holds.
#[derive(Clone)]
pub(crate) struct Certificate {
    pub(crate) identity: Arc<Identity>,
    pub(crate) not_after: u64,
    pub(crate) ca: usize,
}

/// A certificate that was in use since then.
#[derive(Clone, Copy)]
pub(crate) struct Issued {
    pub(crate) since: Duration,
    pub(crate) account: usize,
    pub(crate) not_after: u64,
    pub(crate) ca: usize,
}

/// A session that the daemon said is up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    pub(crate) local: usize,
    pub(crate) peer: usize,
    pub(crate) dialled: bool,
    pub(crate) up: Duration,
    pub(crate) peer_not_after: u64,
}

/// See the module.
pub(crate) struct Host {
    pub(crate) index: usize,
    /// None while the TUN is lost.
    pub(crate) shard: Option<Shard>,
    pub(crate) policy: Arc<Compiled>,
    generation: u64,
    pub(crate) view: View,
    /// What it believed before, and since when.
    pub(crate) views: Vec<(Duration, View)>,
    pub(crate) own: BTreeMap<usize, Certificate>,
    pub(crate) issued: Vec<Issued>,
    pub(crate) trust: [bool; 2],
    clock: WallClock,
    offset: i64,
    pub(crate) jumped: Option<Duration>,
    /// The outer address that it has in place of its own, and whether its own still leads to it.
    pub(crate) alias: Option<(IpAddr, bool)>,
    /// Frames in the TUN.
    pub(crate) tun: VecDeque<Vec<u8>>,
    /// Source and destination of what went into the TUN.
    pub(crate) spoken: BTreeSet<(IpAddr, IpAddr)>,
    /// Flows of the tunnel in their original direction, and when they were last seen.
    tracked: BTreeMap<FiveTuple, Duration>,
    pub(crate) sessions: Vec<Session>,
    /// Drops that daemons before this one counted.
    pub(crate) drops_before: u64,
    births: u8,
    /// When its daemon began.
    pub(crate) born: Duration,
    /// What was sent to or by this host until then may be lost with a session.
    pub(crate) at_risk: Duration,
}

impl Host {
    /// A host whose daemon does not run yet.
    pub(crate) fn new(index: usize, own: BTreeMap<usize, Certificate>) -> Self {
        let view = View::default();
        let issued = own.iter().map(|(&account, certificate)| Issued {
            since: Duration::ZERO,
            account,
            not_after: certificate.not_after,
            ca: certificate.ca,
        });
        Self {
            index,
            shard: None,
            policy: Arc::new(compile(index, &view, &own, 0)),
            generation: 0,
            views: vec![(Duration::ZERO, view.clone())],
            view,
            issued: issued.collect(),
            own,
            trust: [true, true],
            clock: WallClock::default(),
            offset: 0,
            jumped: None,
            alias: None,
            tun: VecDeque::new(),
            spoken: BTreeSet::new(),
            tracked: BTreeMap::new(),
            sessions: Vec::new(),
            drops_before: 0,
            births: 0,
            born: Duration::ZERO,
            at_risk: Duration::ZERO,
        }
    }

    /// The accounts whose certificates it holds.
    pub(crate) fn held(&self) -> BTreeSet<usize> {
        self.own.keys().copied().collect()
    }

    /// Its wall clock.
    pub(crate) fn wall(&self) -> u64 {
        self.clock.unix_seconds()
    }

    pub(crate) fn tick(&mut self, elapsed: Duration) {
        let wall = (START + elapsed.as_secs()).checked_add_signed(self.offset);
        self.clock.set(wall.unwrap());
    }

    pub(crate) fn jump(&mut self, by: i64, elapsed: Duration) {
        self.offset += by;
        self.jumped = Some(elapsed);
        self.tick(elapsed);
    }

    /// Its clock is right again.
    pub(crate) fn set_clock(&mut self, elapsed: Duration) {
        self.jump(-self.offset, elapsed);
    }

    /// Some session of its daemon is up.
    pub(crate) fn has_sessions(&mut self) -> bool {
        let tunnels = self.shard.as_mut().map(|shard| shard.snapshot().tunnels);
        tunnels.is_some_and(|tunnels| tunnels.iter().any(|tunnel| tunnel.remote.is_some()))
    }

    /// Sessions may end without a word for a while: what its peers send before they know is lost.
    pub(crate) fn shake(&mut self, until: Duration) {
        self.at_risk = self.at_risk.max(until);
    }

    /// It believes something else, holds other certificates, or trusts other CAs from here on.
    pub(crate) fn configure(&mut self, cas: &[Authority; 2], now: Instant, elapsed: Duration) {
        self.generation += 1;
        self.views.push((elapsed, self.view.clone()));
        self.policy = Arc::new(compile(self.index, &self.view, &self.own, self.generation));
        let identities = self.identities(cas);
        if let Some(shard) = &mut self.shard {
            shard.handle_config(identities, Arc::clone(&self.policy), now);
        }
    }

    fn identities(&self, cas: &[Authority; 2]) -> Arc<Identities> {
        let own = self.own.iter();
        let own = own.map(|(&account, held)| (id(account), Arc::clone(&held.identity)));
        let mut bundles = TrustBundles::default();
        for (ca, _) in cas.iter().zip(self.trust).filter(|(_, trusted)| *trusted) {
            bundles.add_pem(domain(), &ca.certificate).unwrap();
        }
        Arc::new(Identities {
            own: own.collect(),
            bundles,
            generation: self.generation,
        })
    }

    /// The daemon ends without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut shard) = self.shard.take() {
            self.drops_before += drops(&mut shard);
        }
        self.sessions.clear();
    }

    /// A daemon begins; `seeded` with what conntrack knows.
    pub(crate) fn start(
        &mut self,
        cas: &[Authority; 2],
        seeded: bool,
        now: Instant,
        elapsed: Duration,
    ) {
        self.kill();
        self.births += 1;
        self.born = elapsed;
        let settings = self.settings();
        let identities = self.identities(cas);
        let mut shard = Shard::new(settings, identities, Arc::clone(&self.policy)).unwrap();
        self.tracked.retain(|_, seen| *seen + TRACKED > elapsed);
        if seeded {
            let known: Vec<_> = self.tracked.keys().copied().collect();
            shard.handle_seed(&known, now);
        } else {
            self.tracked.clear();
        }
        self.shard = Some(shard);
    }

    fn settings(&self) -> ShardSettings {
        let index = u8::try_from(self.index).unwrap() + 1;
        let mut rng_seed = [index; 32];
        rng_seed[0] = self.births;
        let tunnel = TunnelSettings {
            rng_seed,
            connection_id_key: [index; 32],
            reset_key: [index; 64],
            token_key: [index; 32],
            clock: self.clock.clone(),
            max_udp_payload: 1_472,
            lane: 0,
            max_incoming: 64,
            retry_above: 4,
            congestion: Congestion::default(),
            max_in_flight: 16 << 20,
            idle_close: IDLE_CLOSE,
        };
        let engine = EngineLimits {
            pending: PENDING,
            ..EngineLimits::default()
        };
        ShardSettings {
            tunnel,
            engine,
            underlay_mtu: 1_500,
            udp_offload: false,
        }
    }

    /// The kernel saw a packet of a flow in or out of the TUN.
    pub(crate) fn track(&mut self, original: FiveTuple, elapsed: Duration) {
        self.tracked.insert(original, elapsed);
    }

    /// The kernel sends a frame into the TUN, if that takes it.
    pub(crate) fn send(&mut self, frame: Vec<u8>) -> bool {
        let takes = self.shard.is_some() && self.tun.len() < TUN_QUEUE;
        if takes {
            self.tun.push_back(frame);
        }
        takes
    }

    /// Drops that its daemons counted.
    pub(crate) fn drops(&mut self) -> u64 {
        self.drops_before + self.shard.as_mut().map_or(0, drops)
    }
}

fn drops(shard: &mut Shard) -> u64 {
    shard.snapshot().drops.values().sum()
}

fn compile(
    index: usize,
    view: &View,
    own: &BTreeMap<usize, Certificate>,
    generation: u64,
) -> Compiled {
    let file = Arc::new(SourceFile {
        name: "mesh.yaml".into(),
        text: view.yaml(),
    });
    let mesh = MeshSettings::default();
    let (resources, found) = load(&[file], &mesh);
    let resources = resources.unwrap_or_else(|| panic!("{found:#?}"));
    let host = HostFacts {
        underlay: [underlay(index)].into(),
        port: TUNNEL_PORT,
        identities: own.keys().map(|&account| id(account)).collect(),
        exempt: [].into(),
        forwards: false,
    };
    let (compiled, found) = Compiled::new(&resources, &mesh, host, generation);
    compiled.unwrap_or_else(|| panic!("{found:#?}\n{}", view.yaml()))
}
