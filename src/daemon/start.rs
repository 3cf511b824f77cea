//! The order of birth. Everything that can fail without touching the host comes first; what was changed is undone when
//! a later step fails, unless it stood there before: then it holds back plaintext, and stays.

use std::{
    net::{SocketAddr, TcpListener},
    num::NonZero,
    path::Path,
    sync::{Arc, Mutex, mpsc::Receiver},
};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::{net::UnixListener, sync::Notify};

use crate::{
    daemon::{
        addresses::Addresses,
        admin,
        clock::{monotonic_now, unix_millis, unix_now},
        configuration::{Configuration, Rejected, load_settings},
        control::Control,
        events::EventLog,
        flowlog::FlowLog,
        inherit,
        kept::{keep_guard, note_in_force},
        settings::Settings,
        user,
        watch::{Contents, Wanted},
    },
    device::tun::{Tun, TunSettings},
    engine::FlowDirectory,
    host::{
        self, HostSettings, Rules,
        conntrack::{self, TunnelFlows},
        handover::Handover,
        rights::{self, RightsError},
    },
    identity::WallClock,
    io::{self, Shards, Underlay, UnderlaySettings},
    metrics::Metrics,
    shard::{Event, Shard, ShardSettings},
    store::{self, InstanceLock, TunnelSecrets},
    tunnel::TunnelSettings,
};

/// Socket buffers of the underlay, bytes. Sending: what waits here waits in no fair queue, so that it is little. Receiving:
/// what several peers have on the way to us (see `tunnel::congestion`).
const SEND_BUFFER: usize = 1 << 20;
const RECEIVE_BUFFER: usize = 8 << 20;
/// The default bound of bytes in flight of a session (performance.md §3, rule 8).
const MAX_IN_FLIGHT: u64 = 16 << 20;
/// IPv4 and UDP header: what the underlay's MTU loses at least.
const SMALLEST_OUTER: u16 = 20 + 8;

/// Why a daemon did not start. Nothing stays changed on the host that was not there before.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The files are wrong.
    #[error(transparent)]
    Configuration(Rejected),
    /// A right is missing.
    #[error("missing right")]
    Rights(#[source] RightsError),
    /// Something of the host is in the way.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

/// A daemon that runs, and what must live as long as it does.
pub struct Started {
    /// What the rest of the control plane shares.
    pub control: Arc<Control>,
    /// Events of the shard; the end of the channel is the end of the shard.
    pub events: Receiver<Event>,
    /// The admin socket.
    pub admin: UnixListener,
    /// The metrics socket.
    pub metrics: Option<tokio::net::TcpListener>,
    /// Held while this runs.
    pub lock: InstanceLock,
}

/// What is ready before the host is touched.
struct Prepared {
    lock: InstanceLock,
    secrets: TunnelSecrets,
    underlays: Vec<Underlay>,
    admin: UnixListener,
    metrics: Option<TcpListener>,
    host: HostSettings,
    rules: Rules,
    mtu: u16,
}

/// The host that is changed.
#[derive(Clone, Copy)]
struct Host<'a> {
    settings: &'a HostSettings,
    rules: &'a Rules,
}

/// The ways in and out, and what a predecessor left of them.
struct Devices {
    underlays: Vec<Underlay>,
    mtu: u16,
    left: Handover,
}

/// What of the host was not there before this start; nothing else is undone.
#[derive(Default)]
struct Added {
    /// The table. Routes and rules follow it.
    rules: bool,
    /// The TUN is open, so it is no other program's.
    tun: bool,
}

/// Goes on as the user that `daemon.yaml` at `path` names, if it names one and this is root. To be called before there is
/// another thread.
///
/// # Errors
/// [`StartError::Configuration`] when the file cannot be read, [`StartError::Failed`] when that user cannot be.
pub fn assume_user(path: &Path) -> Result<(), StartError> {
    let settings = load_settings(path).map_err(StartError::Configuration)?;
    user::assume(&settings).map_err(StartError::Failed)
}

/// Reads the configuration for a start. `path` is `daemon.yaml`.
///
/// # Errors
/// [`StartError::Configuration`].
pub fn load(path: &Path) -> Result<Configuration, StartError> {
    let contents = Contents::read(&Wanted::new(path, &Settings::default()));
    let configuration =
        Configuration::load(path, None, 1, unix_now()).map_err(StartError::Configuration)?;
    Ok(Configuration {
        contents,
        ..configuration
    })
}

/// Starts the daemon; see the module.
///
/// # Errors
/// [`StartError`]; nothing stays behind.
pub async fn start(
    path: &Path,
    configuration: Configuration,
    mut left: Handover,
) -> Result<Started, StartError> {
    let started = monotonic_now();
    user::warn_of_another(&configuration.settings);
    rights::check().map_err(StartError::Rights)?;
    harden().map_err(StartError::Failed)?;
    let prepared = prepare(&configuration, &mut left).map_err(StartError::Failed)?;
    let program = std::env::current_exe()
        .context("cannot tell which program this is")
        .map_err(StartError::Failed)?;
    let Prepared {
        lock,
        secrets,
        underlays,
        admin,
        metrics: metrics_listener,
        host,
        rules,
        mtu,
    } = prepared;
    let mut added = Added::default();
    let on = Host {
        settings: &host,
        rules: &rules,
    };
    let devices = Devices {
        underlays,
        mtu,
        left,
    };
    let running = establish(&configuration, on, &secrets, devices, &mut added).await;
    let (shards, events, kept) = match running {
        Ok(running) => running,
        Err(error) => {
            // whoever owns the table has let go of it then
            drop(rules);
            if added.rules {
                undo(&host, added.tun).await;
            }
            let _ = std::fs::remove_file(&configuration.settings.admin_socket);
            return Err(StartError::Failed(error));
        }
    };
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    note_in_force(&configuration, &metrics);
    keep_guard(&configuration, &host);
    let contents = configuration.contents.clone();
    let mut addresses = Addresses::default();
    addresses.note(&configuration.compiled.host().underlay, started);
    let control = Arc::new(Control {
        path: path.into(),
        host,
        rules,
        kept,
        program,
        upgrade: Notify::new(),
        taken: Notify::new(),
        active: ArcSwap::from_pointee(configuration),
        shards,
        events: Arc::new(EventLog::new(Arc::clone(&metrics))),
        flow_log: FlowLog::default(),
        metrics,
        stop: Notify::new(),
        started,
        run: format!("{:x}", unix_millis()),
        config_error: Mutex::default(),
        damage: Mutex::default(),
        reloading: Mutex::new(contents),
        reloaded: Notify::new(),
        addresses: Mutex::new(addresses),
    });
    let metrics = metrics_listener
        .map(tokio::net::TcpListener::from_std)
        .transpose();
    let metrics = metrics.map_err(|error| StartError::Failed(error.into()))?;
    Ok(Started {
        control,
        events,
        admin,
        metrics,
        lock,
    })
}

/// No core dumps and no reading of our memory: it holds keys (steering.md L19).
fn harden() -> anyhow::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )
    .context("cannot switch off core dumps")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot close the process's memory to others")
}

/// Everything that others may hold: the lock, the ports, the sockets.
fn prepare(configuration: &Configuration, left: &mut Handover) -> anyhow::Result<Prepared> {
    let settings = &configuration.settings;
    store::private_dir(&settings.state_dir).context("cannot use the state folder")?;
    let lock = inherit::lock(&settings.state_dir, left)?;
    let secrets = TunnelSecrets::load_or_create(&settings.state_dir)
        .context("cannot keep the tunnels' secrets")?;
    let host = settings.host(rustix::process::geteuid().as_raw());
    let rules = inherit::rules(&host, settings.own_nft_table, left)?;
    let mtu = host::underlay_mtu(&host.tun_name).context("cannot read the MTU of the underlay")?;
    let listen = settings.listen.socket_address();
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let shards = settings.shard_count(processors);
    let underlay = UnderlaySettings {
        listen,
        mark: host.bypass_mark,
        send_buffer: SEND_BUFFER,
        receive_buffer: RECEIVE_BUFFER,
    };
    let underlays = inherit::underlays(&underlay, shards, left)?;
    let metrics = settings
        .metrics
        .as_ref()
        .map(|metrics| listen_tcp(metrics.listen))
        .transpose()?;
    let admin = admin::bind(&settings.admin_socket)?;
    Ok(Prepared {
        lock,
        secrets,
        underlays,
        admin,
        metrics,
        host,
        rules,
        mtu,
    })
}

fn listen_tcp(address: SocketAddr) -> anyhow::Result<TcpListener> {
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "metrics are readable from other hosts; they name identities");
    }
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot serve metrics at TCP {address}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Changes the host and starts the shards: rules, device, routes, in this order, so that at no moment a packet that must
/// be encrypted finds a way out.
async fn establish(
    configuration: &Configuration,
    Host {
        settings: host,
        rules,
    }: Host<'_>,
    secrets: &TunnelSecrets,
    Devices {
        underlays,
        mtu: underlay_mtu,
        mut left,
    }: Devices,
    added: &mut Added,
) -> anyhow::Result<(Shards, Receiver<Event>, Handover)> {
    let shards = u8::try_from(underlays.len())?;
    let settings = &configuration.settings;
    let stood = rules
        .install(configuration.compiled.steering())
        .context("cannot install the kernel's rules")?;
    added.rules = !stood;
    if configuration.settings.own_nft_table && !rules.are_owned() {
        tracing::warn!(
            table = host.table,
            "the nft table is nobody's property, another program can flush it: the kernel is older than Linux 6.9, or \
             the table was made without; in the second case `identun down` and a start give it an owner"
        );
    }
    let tun = TunSettings {
        name: host.tun_name.clone(),
        mtu: settings.tun.mtu.map_or(underlay_mtu, |mtu| mtu.get()),
        queue_length: settings.tun.queue_length,
    };
    let tuns = inherit::tuns(&tun, shards, &mut left)?;
    added.tun = true;
    if !tuns.iter().all(Tun::udp_offload) {
        tracing::info!(
            "this kernel's TUN takes no UDP super-packets (USO, Linux 6.2); UDP is not joined, which costs more CPU"
        );
    }
    host::install_routes(host)
        .await
        .context("cannot install routes")?;
    let kept = inherit::keep(&tuns, &underlays, rules)?;
    let clock = WallClock::default();
    clock.set(unix_now());
    let directory = Arc::new(FlowDirectory::default());
    let mut parts = Vec::new();
    for (lane, (tun, underlay)) in (0..shards).zip(tuns.into_iter().zip(underlays)) {
        let engine = settings.engine(shards);
        let tunnel = tunnel_settings(configuration, secrets, (lane, shards), underlay_mtu, &clock)?;
        let shard = Shard::new(
            ShardSettings {
                tunnel,
                engine,
                underlay_mtu,
                udp_offload: tun.udp_offload(),
            },
            Arc::clone(&configuration.identities),
            Arc::clone(&configuration.compiled),
        )
        .context("cannot set up TLS and QUIC")?;
        let shard = match shards {
            1 => shard,
            _ => shard.with_directory(Arc::clone(&directory)),
        };
        parts.push((shard, tun, underlay));
    }
    let (running, events) = io::spawn_all(parts, &clock).context("cannot start the data plane")?;
    seed(&running, host);
    Ok((running, events, kept))
}

/// The tunnels of shard `lane` of so many. The secrets are the same for all: what reaches the wrong one, because a
/// predecessor had more of them, is known to be ours.
fn tunnel_settings(
    configuration: &Configuration,
    secrets: &TunnelSecrets,
    (lane, shards): (u8, u8),
    underlay_mtu: u16,
    clock: &WallClock,
) -> anyhow::Result<TunnelSettings> {
    let settings = &configuration.settings;
    let share = |bound: usize| bound.div_ceil(usize::from(shards));
    Ok(TunnelSettings {
        rng_seed: store::secrets::random()?,
        connection_id_key: secrets.connection_id_key,
        reset_key: secrets.reset_key,
        token_key: secrets.token_key,
        clock: clock.clone(),
        max_udp_payload: underlay_mtu.saturating_sub(SMALLEST_OUTER),
        lane,
        max_incoming: share(settings.limits.incoming_handshakes),
        retry_above: share(settings.limits.retry_above),
        congestion: settings.congestion,
        max_in_flight: MAX_IN_FLIGHT,
        idle_close: settings.limits.idle_close(),
    })
}

/// Flows that a predecessor left in conntrack go on. Without the list they go on as well, once their own end sends.
fn seed(shards: &Shards, host: &HostSettings) {
    match conntrack::tunnel_flows(host) {
        Ok(found) if found.flows.is_empty() => {}
        Ok(TunnelFlows { flows, complete }) => {
            tracing::info!(flows = flows.len(), "flows found in conntrack");
            if !complete {
                tracing::warn!(
                    bound = conntrack::MAX_FLOWS,
                    "conntrack may hold more flows than are taken over; the others go on when their own end sends"
                );
            }
            if let Err(error) = shards.seed(flows) {
                tracing::warn!(error = %error, "cannot pass on the flows of conntrack");
            }
        }
        Err(error) => {
            tracing::warn!(error = %super::configuration::chained(error), "cannot read conntrack")
        }
    }
}

/// Removes what a failed start added.
async fn undo(host: &HostSettings, tun_is_ours: bool) {
    let mut removed = Vec::new();
    let result = match tun_is_ours {
        true => remove_all(host, &mut removed).await,
        false => remove_rules(host, &mut removed).await,
    };
    match result {
        Ok(()) => tracing::info!(removed = removed.join(", "), "start undone"),
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "cannot undo the start; run `identun down`");
        }
    }
}

/// Removes everything of ours from the host, and adds to `removed` what it was. The TUN goes last: while rules or
/// routes stand, it must hold the packets that they send to it.
///
/// # Errors
/// The first thing that could not be removed.
pub async fn remove_all(host: &HostSettings, removed: &mut Vec<String>) -> anyhow::Result<()> {
    remove_rules(host, removed).await?;
    let name = &host.tun_name;
    if Tun::remove(name).with_context(|| format!("cannot remove the TUN {name}"))? {
        removed.push(format!("TUN {name}"));
    }
    Ok(())
}

async fn remove_rules(host: &HostSettings, removed: &mut Vec<String>) -> anyhow::Result<()> {
    removed.append(
        &mut host::down(host)
            .await
            .context("cannot remove rules and routes")?,
    );
    Ok(())
}
