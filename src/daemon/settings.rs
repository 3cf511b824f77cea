//! `daemon.yaml` as a value: every setting with its default. What parses is usable; files and host come later.

mod account;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    engine::{EngineLimits, FlowLimits},
    host::HostSettings,
    policy::{
        MeshSettings, Mode,
        settings::{L7, UnknownDestination, UnknownSource},
    },
    registry::key::TUNNEL_PORT,
    spiffe::TrustDomain,
    tunnel::Congestion,
    wire::flow::protocol,
};

pub use account::Account;
pub use values::{Exempt, InterfaceName, Marks, Mtu, Port, Seconds, ShardCount, TableName};

/// Everything that `daemon.yaml` may say. Relative paths are relative to the file's folder.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The mesh's own trust domain.
    pub trust_domain: TrustDomain,
    /// Further names of it.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// Suffix of short service names.
    pub domain: String,
    /// The namespace whose rules hold for all.
    pub root_namespace: String,
    /// The namespace of resources that name none.
    pub default_namespace: String,
    /// What a server accepts where no policy says it.
    pub default_mode: Mode,
    /// Clients encrypt to mesh workloads where no rule says otherwise.
    pub auto_mtls: bool,
    /// Packets for addresses of mesh hosts that no service explains.
    pub unknown_destination: UnknownDestination,
    /// Packets that this host sends from an address that no workload has.
    pub unknown_source: UnknownSource,
    /// AuthorizationPolicies that speak of requests.
    pub l7: L7,
    /// A peer of the own trust domain is told which policy and rule refuse its flow.
    pub reveal_reasons: bool,
    /// How tunnel packets share the path with others.
    pub congestion: Congestion,
    /// Policy files and folders.
    pub policies: Vec<PathBuf>,
    /// Changed files are put in force without being asked to.
    pub watch: bool,
    /// The workload identities that this host holds.
    pub identities: Vec<IdentityFiles>,
    /// CA certificates by trust domain.
    pub trust_bundles: BTreeMap<TrustDomain, PathBuf>,
    /// Threads that carry packets; absent: one for two processors.
    pub shards: Option<ShardCount>,
    /// Where tunnels arrive.
    pub listen: Listen,
    /// The TUN device.
    pub tun: TunDevice,
    /// Local ports that accept plaintext whatever policy says.
    pub exempt: BTreeSet<Exempt>,
    /// Interfaces behind which forwarded workloads live.
    pub workload_interfaces: Vec<InterfaceName>,
    /// The host's underlay addresses; absent: those of its interfaces.
    pub host_addresses: Option<BTreeSet<IpAddr>>,
    /// Bits of the packet mark that identun uses.
    pub marks: Marks,
    /// Numbers in the kernel's routing policy.
    pub routing: Routing,
    /// The nft table (family inet).
    pub nft_table: TableName,
    /// The table is the daemon's property, which no other program can change or flush, where the kernel can do that
    /// (Linux 6.9).
    pub own_nft_table: bool,
    /// What a daemon that is started as root goes on as, with the right to change the network and no other; absent: as root.
    pub user: Option<Account>,
    /// Its group; absent: the user's own.
    pub group: Option<Account>,
    /// Secrets of the tunnels and the lock; 0700.
    pub state_dir: PathBuf,
    /// Where `identun status` and its like ask.
    pub admin_socket: PathBuf,
    /// Prometheus; `null` switches it off.
    pub metrics: Option<MetricsListen>,
    /// The log on stderr.
    pub log: Log,
    /// Bounds of memory.
    pub limits: Limits,
}

impl Default for Settings {
    fn default() -> Self {
        // A literal that the type's own test parses.
        let trust_domain = "cluster.local".parse().expect("a trust domain");
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            domain: "cluster.local".into(),
            root_namespace: "istio-system".into(),
            default_namespace: "default".into(),
            default_mode: Mode::Permissive,
            auto_mtls: true,
            unknown_destination: UnknownDestination::Drop,
            unknown_source: UnknownSource::Drop,
            l7: L7::Reject,
            reveal_reasons: true,
            congestion: Congestion::Bounded,
            policies: Vec::new(),
            watch: true,
            identities: Vec::new(),
            trust_bundles: BTreeMap::new(),
            shards: None,
            listen: Listen::default(),
            tun: TunDevice::default(),
            exempt: [Exempt {
                protocol: protocol::TCP,
                port: 22,
            }]
            .into(),
            workload_interfaces: Vec::new(),
            host_addresses: None,
            marks: Marks::default(),
            routing: Routing::default(),
            nft_table: TableName("identun".into()),
            own_nft_table: true,
            user: None,
            group: None,
            state_dir: "/var/lib/identun".into(),
            admin_socket: DEFAULT_SOCKET.into(),
            metrics: Some(MetricsListen::default()),
            log: Log::default(),
            limits: Limits::default(),
        }
    }
}

/// Where the command line looks for a daemon.
pub const DEFAULT_SOCKET: &str = "/run/identun/admin.sock";
/// Where the daemon and the command line look for settings.
pub const DEFAULT_CONFIG: &str = "/etc/identun/daemon.yaml";

impl Settings {
    /// What policy needs to know of the mesh.
    pub fn mesh(&self) -> MeshSettings {
        MeshSettings {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            domain: self.domain.as_str().into(),
            root_namespace: self.root_namespace.as_str().into(),
            default_namespace: self.default_namespace.as_str().into(),
            default_mode: self.default_mode,
            auto_mtls: self.auto_mtls,
            unknown_destination: self.unknown_destination,
            unknown_source: self.unknown_source,
            l7: self.l7,
        }
    }

    /// What the host's rules, routes and device are named; `uid` is that of the daemon.
    pub fn host(&self, uid: u32) -> HostSettings {
        HostSettings {
            table: self.nft_table.0.clone(),
            tun_name: self.tun.name.0.clone(),
            tun_address: self.tun.address,
            mark_mask: self.marks.mask,
            tunnel_mark: self.marks.tunnel,
            bypass_mark: self.marks.bypass,
            routing_table: self.routing.table,
            rule_priority: self.routing.priority,
            port: self.listen.port.get(),
            daemon_uid: uid,
            workload_interfaces: self
                .workload_interfaces
                .iter()
                .map(|name| name.0.clone())
                .collect(),
        }
    }

    /// How many shards to run on a host with so many processors.
    pub fn shard_count(&self, processors: usize) -> u8 {
        let default = u8::try_from(processors / 2).unwrap_or(u8::MAX).clamp(1, 64);
        self.shards.map_or(default, |shards| shards.get())
    }

    /// Bounds of the engine of one of so many shards: each has its part of what the daemon may have.
    pub fn engine(&self, shards: u8) -> EngineLimits {
        let mut limits = EngineLimits::default();
        let flows: &mut FlowLimits = &mut limits.flows;
        flows.total = self.limits.flows.div_ceil(usize::from(shards.max(1)));
        flows.per_tunnel = self.limits.flows_per_tunnel.min(flows.total);
        flows.by_peer = self.limits.flows_by_peer.min(flows.per_tunnel);
        limits.reveal_reasons = self.reveal_reasons;
        limits
    }

    /// Takes from `running` what a running daemon cannot change; returns the names of settings that differed.
    pub fn keep_fixed(&mut self, running: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        keep("listen", &mut self.listen, &running.listen, &mut kept);
        keep("shards", &mut self.shards, &running.shards, &mut kept);
        keep("tun", &mut self.tun, &running.tun, &mut kept);
        keep(
            "workload_interfaces",
            &mut self.workload_interfaces,
            &running.workload_interfaces,
            &mut kept,
        );
        keep("marks", &mut self.marks, &running.marks, &mut kept);
        keep("routing", &mut self.routing, &running.routing, &mut kept);
        keep(
            "nft_table",
            &mut self.nft_table,
            &running.nft_table,
            &mut kept,
        );
        keep(
            "own_nft_table",
            &mut self.own_nft_table,
            &running.own_nft_table,
            &mut kept,
        );
        keep("user", &mut self.user, &running.user, &mut kept);
        keep("group", &mut self.group, &running.group, &mut kept);
        keep(
            "state_dir",
            &mut self.state_dir,
            &running.state_dir,
            &mut kept,
        );
        keep(
            "admin_socket",
            &mut self.admin_socket,
            &running.admin_socket,
            &mut kept,
        );
        keep("metrics", &mut self.metrics, &running.metrics, &mut kept);
        keep("log", &mut self.log, &running.log, &mut kept);
        keep(
            "reveal_reasons",
            &mut self.reveal_reasons,
            &running.reveal_reasons,
            &mut kept,
        );
        keep(
            "congestion",
            &mut self.congestion,
            &running.congestion,
            &mut kept,
        );
        keep("limits", &mut self.limits, &running.limits, &mut kept);
        kept
    }
}

fn keep<T: Clone + PartialEq>(
    name: &'static str,
    wanted: &mut T,
    running: &T,
    kept: &mut Vec<&'static str>,
) {
    if wanted != running {
        wanted.clone_from(running);
        kept.push(name);
    }
}

/// One workload identity on disk.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct IdentityFiles {
    /// PEM: leaf, then intermediates.
    pub certificate: PathBuf,
    /// PEM: PKCS#8 key, mode 0600.
    pub key: PathBuf,
}

/// Where tunnels arrive.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// `::` takes IPv4 too.
    pub address: IpAddr,
    /// UDP.
    pub port: Port,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: Ipv6Addr::UNSPECIFIED.into(),
            port: Port(TUNNEL_PORT),
        }
    }
}

impl Listen {
    /// As the socket takes it.
    pub const fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port.get())
    }
}

/// The TUN device.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct TunDevice {
    /// Its name.
    pub name: InterfaceName,
    /// Its address; a device without one loses packets to rp_filter.
    pub address: Ipv4Addr,
    /// Absent: that of the underlay, so that the kernel learns no false path MTU of a peer.
    pub mtu: Option<Mtu>,
    /// Its transmit queue, packets.
    pub queue_length: u32,
}

impl Default for TunDevice {
    fn default() -> Self {
        Self {
            name: InterfaceName("identun0".into()),
            address: Ipv4Addr::new(192, 0, 0, 8),
            mtu: None,
            queue_length: 4_000,
        }
    }
}

/// Numbers in the kernel's routing policy.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Routing {
    /// The routing table of tunnel traffic.
    pub table: u32,
    /// Priority of the rule that leads there; the next number is the unreachable rule.
    pub priority: u32,
}

impl Default for Routing {
    fn default() -> Self {
        Self {
            table: 7_700,
            priority: 300,
        }
    }
}

/// Where Prometheus asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsListen {
    /// Loopback by default: the exposition names identities.
    pub listen: SocketAddr,
}

impl Default for MetricsListen {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 15_020)),
        }
    }
}

/// The log on stderr.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// Lines for people or for programs.
    pub format: LogFormat,
    /// The least important level that is written.
    pub level: LogLevel,
}

/// Lines for people or for programs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Time, level, fields.
    #[default]
    Text,
}

/// Importance of a log line.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Refusals.
    Warn,
    /// State changes.
    #[default]
    Info,
    /// Each flow.
    Debug,
    /// Everything.
    Trace,
}

/// Bounds of memory.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Flows in all.
    pub flows: usize,
    /// Flows of one tunnel, so that one peer cannot take all.
    pub flows_per_tunnel: usize,
    /// Flows of one tunnel that its peer opened; the one that was silent for longest makes room for the next.
    pub flows_by_peer: usize,
    /// Handshakes from outside that are held at once.
    pub incoming_handshakes: usize,
    /// Of those, how many may be unproven before newcomers must prove their address (Retry).
    pub retry_above: usize,
    /// A tunnel without packets closes after so many seconds.
    pub idle_close_seconds: Seconds,
}

impl Default for Limits {
    fn default() -> Self {
        let flows = FlowLimits::default();
        Self {
            flows: flows.total,
            flows_per_tunnel: flows.per_tunnel,
            flows_by_peer: flows.by_peer,
            incoming_handshakes: 1_024,
            retry_above: 64,
            idle_close_seconds: Seconds(300),
        }
    }
}

impl Limits {
    /// `idle_close_seconds` as a duration.
    pub fn idle_close(&self) -> Duration {
        Duration::from_secs(self.idle_close_seconds.0.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_change_at_run_time_is_named() {
        let running = Settings::default();
        let mut wanted = running.clone();
        wanted.auto_mtls = false;
        assert!(wanted.keep_fixed(&running).is_empty());
        assert!(!wanted.auto_mtls);
        wanted.routing.table = 1;
        wanted.metrics = None;
        assert_eq!(wanted.keep_fixed(&running), ["routing", "metrics"]);
        assert_eq!(wanted.routing, running.routing);
    }

    #[test]
    fn defaults_are_those_of_the_documents() {
        let settings = Settings::default();
        assert_eq!(settings.listen.socket_address().to_string(), "[::]:15008");
        assert_eq!(settings.limits.idle_close(), Duration::from_secs(300));
        assert_eq!(
            settings.metrics.unwrap().listen.to_string(),
            "127.0.0.1:15020"
        );
    }

    #[test]
    fn shards_are_one_for_two_processors_or_what_the_file_says_and_share_the_bounds() {
        let count = |shards: Option<u16>, processors| {
            let shards = shards.map(|number| ShardCount::try_from(number).unwrap());
            let settings = Settings {
                shards,
                ..Settings::default()
            };
            settings.shard_count(processors)
        };
        for (processors, shards) in [(1, 1), (2, 1), (3, 1), (4, 2), (16, 8), (1_000, 64)] {
            assert_eq!(count(None, processors), shards, "{processors}");
        }
        assert_eq!(count(Some(3), 2), 3);
        for wrong in [0, 65, 300] {
            assert!(ShardCount::try_from(wrong).is_err(), "{wrong}");
        }
        let settings = Settings::default();
        let (one, three) = (settings.engine(1).flows, settings.engine(3).flows);
        assert_eq!((one.total, one.per_tunnel), (262_144, 65_536));
        assert_eq!((three.total, three.per_tunnel), (87_382, 65_536));
        assert_eq!((one.by_peer, three.by_peer), (2_048, 2_048));
    }
}
