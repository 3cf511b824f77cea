//! The life of a started daemon: signals, the admin API, the shard's events, and death in order.

use std::{
    ffi::OsString,
    io, iter,
    path::PathBuf,
    sync::{Arc, mpsc::Receiver},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::{JoinSet, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval, timeout},
};

use crate::{
    daemon::{
        admin::{admin_router, metrics_router},
        clock::{monotonic_now, unix_millis},
        control::Control,
        flowlog::feed,
        inherit,
        serve::{serve_tcp, serve_unix},
        start::Started,
        upkeep,
        watch::Watch,
    },
    host::{
        handover::{Handover, Part},
        memory::Memory,
    },
    io::Command,
    shard::Event,
    store::InstanceLock,
};

/// How long events gather before they are taken: the shard wakes this thread once for all of them, not for each.
const EVENT_PAUSE: Duration = Duration::from_millis(5);
/// How long the shard may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// Why a daemon ends that goes on as another program.
const UPGRADE: &str = "upgrade";

/// Runs until SIGTERM, SIGINT or a stop through the admin API. Rules, routes and TUN stay: a stopped daemon lets
/// nothing out in plaintext.
///
/// # Errors
/// When the data plane ends by itself.
pub async fn run(started: Started) -> anyhow::Result<Option<Successor>> {
    let Started {
        control,
        events,
        admin,
        metrics,
        lock,
    } = started;
    let ended = watch_events(Arc::clone(&control), events)?;
    feed::spawn(&control).context("cannot start the thread of the flow log")?;
    upkeep::spawn(&control).context("cannot start the thread that hears of changes")?;
    let mut servers = JoinSet::new();
    servers.spawn(serve_unix(admin, admin_router(Arc::clone(&control))));
    if let Some(listener) = metrics {
        servers.spawn(serve_tcp(listener, metrics_router(Arc::clone(&control))));
    }
    tracing::info!(
        config = %control.path.display(),
        generation = control.active.load().compiled.generation(),
        identities = control.active.load().identities.own.len(),
        "ready"
    );
    notify(&[NotifyState::Ready]);
    inherit::store(&control.kept);
    let ending = live(&control, ended).await;
    if !matches!(ending, Ok(Ending::Upgrade)) {
        notify(&[NotifyState::Stopping]);
    }
    servers.shutdown().await;
    let _ = std::fs::remove_file(&control.active.load().settings.admin_socket);
    match ending? {
        Ending::Stop => Ok(None),
        Ending::Upgrade => Ok(Some(Successor::of(&control, &lock)?)),
    }
}

/// How a life ends.
enum Ending {
    Stop,
    /// Another program goes on in this process.
    Upgrade,
}

/// The program that goes on, and what it takes over.
pub struct Successor {
    program: PathBuf,
    left: Handover,
}

impl Successor {
    fn of(control: &Control, lock: &InstanceLock) -> anyhow::Result<Self> {
        let mut left = Handover::default();
        let keep = || -> io::Result<Handover> {
            left.keep_all(&control.kept)?;
            left.keep(Part::Lock, lock)?;
            Ok(left)
        };
        Ok(Self {
            program: control.program.clone(),
            left: keep().context("cannot hand the descriptors over")?,
        })
    }

    /// Becomes the program, with these arguments. Returns only to say why that was not possible.
    pub fn go_on(self, arguments: &[OsString]) -> anyhow::Error {
        let program = self.program.clone();
        let error = self.left.exec(&self.program, arguments);
        anyhow::Error::new(error).context(format!("cannot go on as {}", program.display()))
    }
}

/// The allocator may be busy for some milliseconds.
async fn settled_memory(mut memory: Memory) -> Memory {
    let work = move || {
        memory.settle(monotonic_now());
        memory
    };
    spawn_blocking(work).await.unwrap_or_default()
}

/// Waits for signals and requests, and ends the shard in order.
async fn live(control: &Arc<Control>, mut ended: oneshot::Receiver<()>) -> anyhow::Result<Ending> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut watchdog = watchdog();
    let mut upkeep = interval(upkeep::PERIOD);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // the first is over at once, and everything was installed just before
    upkeep.reset();
    let mut memory = Memory::default();
    let mut watch = watch(control);
    let reason = loop {
        tokio::select! {
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
            () = control.stop.notified() => {
                // whoever asks removes what the descriptors stand for
                inherit::forget_all();
                break "asked to stop";
            }
            () = control.upgrade.notified() => break UPGRADE,
            _ = hangup.recv() => reload(control).await,
            _ = &mut ended => {
                let why = control.shards.wait();
                bail!("the data plane has ended: {why}; rules, routes and TUN stay, so nothing leaves in plaintext");
            }
            () = settled(watch.as_mut()) => reload_if_changed(control, watch.as_mut()).await,
            () = control.reloaded.notified() => {
                if let Some(watch) = &mut watch {
                    watch.watch(&control.wanted());
                }
            }
            _ = upkeep.tick() => {
                memory = settled_memory(memory).await;
                upkeep::look(control).await;
            }
            () = control.taken.notified() => upkeep::look(control).await,
            () = tick(watchdog.as_mut()) => answer_watchdog(control).await,
        }
    };
    tracing::info!(reason, "stopping");
    let drain = || Command::Drain {
        reason: reason.into(),
    };
    let told = match reason {
        // a successor is there in a moment: nobody needs to look for another way
        UPGRADE => control.shards.send_all(|| Command::HandOver),
        _ => control
            .shards
            .send_all(drain)
            .and_then(|()| control.shards.send_all(|| Command::Stop)),
    };
    if told.is_ok() && timeout(GOODBYE, ended).await.is_err() {
        tracing::warn!("the data plane did not end in time");
    }
    if reason == UPGRADE {
        return Ok(Ending::Upgrade);
    }
    tracing::info!(
        tun = control.host.tun_name,
        table = control.host.table,
        "stopped; rules, routes and TUN stay, so nothing leaves in plaintext: `identun down` removes them"
    );
    Ok(Ending::Stop)
}

/// Hands the shard's events to the log on a thread of their own. The receiver learns when the shard has ended.
fn watch_events(
    control: Arc<Control>,
    events: Receiver<Event>,
) -> anyhow::Result<oneshot::Receiver<()>> {
    let (sender, ended) = oneshot::channel();
    let work = move || {
        while let Ok(event) = events.recv() {
            {
                let active = control.active.load();
                for event in iter::once(event).chain(events.try_iter()) {
                    control
                        .flow_log
                        .handle(&event, &active.compiled, unix_millis());
                    control.events.handle(&event, &active.compiled);
                }
            }
            thread::sleep(EVENT_PAUSE);
        }
        let _ = sender.send(());
    };
    thread::Builder::new()
        .name("identun-events".into())
        .spawn(work)
        .context("cannot start the event thread")?;
    Ok(ended)
}

/// The outcome is logged and kept for `status`; whoever sent the signal cannot be answered.
async fn reload(control: &Arc<Control>) {
    notify(&[NotifyState::Reloading]);
    let control = Arc::clone(control);
    let _ = spawn_blocking(move || control.reload()).await;
    notify(&[NotifyState::Ready]);
}

/// Watches the files of the configuration, where the kernel lets us.
fn watch(control: &Control) -> Option<Watch> {
    match Watch::new() {
        Ok(mut watch) => {
            watch.watch(&control.wanted());
            Some(watch)
        }
        Err(error) => {
            tracing::warn!(error = %error, "cannot watch files; after changes, run `identun reload`");
            None
        }
    }
}

async fn settled(watch: Option<&mut Watch>) {
    match watch {
        Some(watch) => watch.settled().await,
        None => std::future::pending().await,
    }
}

/// What is there now is watched before it is read, so that no change falls in between.
async fn reload_if_changed(control: &Arc<Control>, watch: Option<&mut Watch>) {
    if let Some(watch) = watch {
        watch.watch(&control.wanted());
    }
    let control = Arc::clone(control);
    let _ = spawn_blocking(move || control.reload_if_changed()).await;
}

/// systemd's watchdog hears from us while the shard answers, and not otherwise.
async fn answer_watchdog(control: &Arc<Control>) {
    let control = Arc::clone(control);
    match spawn_blocking(move || control.snapshot().map(drop)).await {
        Ok(Ok(())) => notify(&[NotifyState::Watchdog]),
        Ok(Err(error)) => tracing::error!(error = %format!("{error:#}"), "the data plane is stuck"),
        Err(error) => tracing::error!(error = %error, "the watchdog's question failed"),
    }
}

fn watchdog() -> Option<Interval> {
    let mut interval = interval(sd_notify::watchdog_enabled()? / 2);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    Some(interval)
}

async fn tick(interval: Option<&mut Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Without systemd there is nobody to tell.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(error = %error, "cannot notify the service manager");
    }
}
