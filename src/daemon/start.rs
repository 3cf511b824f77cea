//! The order of birth. Everything that can fail without touching the host comes first; what was changed is undone when
//! a later step fails, unless it stood there before: then it holds back plaintext, and stays.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{Arc, Mutex, mpsc::Receiver},
    time::Instant,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::{net::UnixListener, sync::Notify};

use crate::{
    daemon::{
        admin,
        clock::unix_now,
        configuration::{Configuration, Rejected},
        control::{Control, note_in_force},
        events::EventLog,
        flowlog::FlowLog,
        settings::Settings,
        watch::{Contents, Wanted},
    },
    device::tun::{Tun, TunSettings},
    host::{
        self, HostSettings,
        conntrack::{self, TunnelFlows},
        rights::{self, RightsError},
    },
    identity::WallClock,
    io::{self, Command, ShardHandle, Underlay, UnderlaySettings},
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
    underlay: Underlay,
    admin: UnixListener,
    metrics: Option<TcpListener>,
    host: HostSettings,
    mtu: u16,
}

/// What of the host was not there before this start; nothing else is undone.
#[derive(Default)]
struct Added {
    /// The table. Routes and rules follow it.
    rules: bool,
    /// The TUN is open, so it is no other program's.
    tun: bool,
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
pub async fn start(path: &Path, configuration: Configuration) -> Result<Started, StartError> {
    let started = start_time();
    rights::check().map_err(StartError::Rights)?;
    harden().map_err(StartError::Failed)?;
    let prepared = prepare(&configuration).map_err(StartError::Failed)?;
    let Prepared {
        lock,
        secrets,
        underlay,
        admin,
        metrics: metrics_listener,
        host,
        mtu,
    } = prepared;
    let mut added = Added::default();
    let running = establish(&configuration, &host, secrets, underlay, mtu, &mut added).await;
    let (shard, events) = match running {
        Ok(running) => running,
        Err(error) => {
            if added.rules {
                undo(&host, added.tun).await;
            }
            let _ = std::fs::remove_file(&configuration.settings.admin_socket);
            return Err(StartError::Failed(error));
        }
    };
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    note_in_force(&configuration, &metrics);
    let contents = configuration.contents.clone();
    let control = Arc::new(Control {
        path: path.into(),
        host,
        active: ArcSwap::from_pointee(configuration),
        shard,
        events: Arc::new(EventLog::new(Arc::clone(&metrics))),
        flow_log: FlowLog::default(),
        metrics,
        stop: Notify::new(),
        started,
        config_error: Mutex::default(),
        damage: Mutex::default(),
        reloading: Mutex::new(contents),
        reloaded: Notify::new(),
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
fn prepare(configuration: &Configuration) -> anyhow::Result<Prepared> {
    let settings = &configuration.settings;
    store::private_dir(&settings.state_dir).context("cannot use the state folder")?;
    let lock = InstanceLock::acquire(&settings.state_dir)?;
    let secrets = TunnelSecrets::load_or_create(&settings.state_dir)
        .context("cannot keep the tunnels' secrets")?;
    let host = settings.host(rustix::process::geteuid().as_raw());
    let mtu = host::underlay_mtu(&host.tun_name).context("cannot read the MTU of the underlay")?;
    let listen = settings.listen.socket_address();
    let underlay = Underlay::bind(&UnderlaySettings {
        listen,
        mark: host.bypass_mark,
        send_buffer: SEND_BUFFER,
        receive_buffer: RECEIVE_BUFFER,
    })
    .with_context(|| format!("cannot listen at UDP {listen}"))?;
    let metrics = settings
        .metrics
        .as_ref()
        .map(|metrics| listen_tcp(metrics.listen))
        .transpose()?;
    let admin = admin::bind(&settings.admin_socket)?;
    Ok(Prepared {
        lock,
        secrets,
        underlay,
        admin,
        metrics,
        host,
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

/// Changes the host and starts the shard: rules, device, routes, in this order, so that at no moment a packet that must
/// be encrypted finds a way out.
async fn establish(
    configuration: &Configuration,
    host: &HostSettings,
    secrets: TunnelSecrets,
    underlay: Underlay,
    underlay_mtu: u16,
    added: &mut Added,
) -> anyhow::Result<(ShardHandle, Receiver<Event>)> {
    let settings = &configuration.settings;
    let stood = host::install_rules(host, configuration.compiled.steering())
        .context("cannot install the kernel's rules")?;
    added.rules = !stood;
    let tun = Tun::open(&TunSettings {
        name: host.tun_name.clone(),
        mtu: settings.tun.mtu.map_or(underlay_mtu, |mtu| mtu.get()),
        queue_length: settings.tun.queue_length,
    })
    .with_context(|| format!("cannot open the TUN {}", host.tun_name))?;
    added.tun = true;
    if !tun.udp_offload() {
        tracing::info!(
            "this kernel's TUN takes no UDP super-packets (USO, Linux 6.2); UDP is not joined, which costs more CPU"
        );
    }
    host::install_routes(host)
        .await
        .context("cannot install routes")?;
    let clock = WallClock::default();
    clock.set(unix_now());
    let shard_settings = ShardSettings {
        tunnel: TunnelSettings {
            rng_seed: store::secrets::random()?,
            connection_id_key: secrets.connection_id_key,
            reset_key: secrets.reset_key,
            token_key: secrets.token_key,
            clock: clock.clone(),
            max_udp_payload: underlay_mtu.saturating_sub(SMALLEST_OUTER),
            lane: 0,
            max_incoming: settings.limits.incoming_handshakes,
            retry_above: settings.limits.retry_above,
            congestion: settings.congestion,
            max_in_flight: MAX_IN_FLIGHT,
            idle_close: settings.limits.idle_close(),
        },
        engine: settings.engine(),
        underlay_mtu,
        udp_offload: tun.udp_offload(),
    };
    let identities = Arc::clone(&configuration.identities);
    let shard = Shard::new(
        shard_settings,
        identities,
        Arc::clone(&configuration.compiled),
    )
    .context("cannot set up TLS and QUIC")?;
    let (handle, events) =
        io::spawn(shard, tun, underlay, clock).context("cannot start the data plane")?;
    seed(&handle, host);
    Ok((handle, events))
}

/// Flows that a predecessor left in conntrack go on. Without the list they go on as well, once their own end sends.
fn seed(shard: &ShardHandle, host: &HostSettings) {
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
            if let Err(error) = shard.send(Command::Seed(flows)) {
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

#[expect(
    clippy::disallowed_methods,
    reason = "the control plane is where the clock is asked"
)]
fn start_time() -> Instant {
    Instant::now()
}
