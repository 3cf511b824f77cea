//! The one value that the admin API, the signals and the event thread share: what runs, and how to ask and change it.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::ErrorKind,
    net::IpAddr,
    path::PathBuf,
    process,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use arc_swap::ArcSwap;
use tokio::sync::Notify;

use crate::{
    daemon::{
        addresses::Addresses,
        clock::{monotonic_now, unix_now},
        configuration::{Configuration, Rejected, Running, chained},
        events::{EventLog, escape},
        flowlog::{FlowLog, feed, view::FlowLogView},
        health::{configuration_health, identity_health, loop_health, tunnel_health},
        kept::{keep_guard, note_in_force},
        status::{
            API_VERSION, FlowStatus, Health, HealthLevel, IdentityStatus, ShardStatus, Status,
        },
        tighten,
        watch::{Contents, Wanted},
    },
    host::{self, HostSettings, Rules, SteeringCounters, handover::Handover},
    io::{Command, Shards},
    metrics::Metrics,
    shard::ShardSnapshot,
};

/// How long the shard may take to answer before the daemon counts as stuck.
const ANSWER: Duration = Duration::from_secs(2);
/// How many flows a status shows.
const FLOWS_IN_STATUS: usize = 100;

/// See the module.
pub struct Control {
    /// The configuration file.
    pub path: PathBuf,
    /// What the host's rules are named; fixed at the start.
    pub host: HostSettings,
    /// The nft table.
    pub rules: Rules,
    /// What a successor takes over.
    pub kept: Handover,
    /// The program file, and that it is to be started in this one's place.
    pub program: PathBuf,
    /// See [`Self::program`].
    pub upgrade: Notify,
    /// Somebody has taken away something that we installed.
    pub taken: Notify,
    /// The configuration in force.
    pub active: ArcSwap<Configuration>,
    /// The data plane.
    pub shards: Shards,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What happened lately.
    pub events: Arc<EventLog>,
    /// Who spoke to whom, and how.
    pub flow_log: FlowLog,
    /// Asks the main task to end.
    pub stop: Notify,
    /// When the daemon began.
    pub started: Instant,
    /// Tells this run of the daemon from others.
    pub run: String,
    /// Why the files on disk are not in force.
    pub config_error: Mutex<Option<String>>,
    /// What is missing of rules and routes and could not be installed again.
    pub damage: Mutex<Vec<String>>,
    /// One change of the host at a time. Holds what the files said when they were read last, in force or not.
    pub reloading: Mutex<Contents>,
    /// Says that the files were read, and others may be named from here on.
    pub reloaded: Notify,
    /// This host's addresses.
    pub addresses: Mutex<Addresses>,
}

impl Control {
    /// Asks the shards how they are, and answers as if they were one. Blocks, for a bounded time.
    ///
    /// # Errors
    /// When one of them has ended or does not answer.
    pub fn snapshot(&self) -> anyhow::Result<ShardSnapshot> {
        let snapshots = self.shards.snapshots(ANSWER).map_err(|error| {
            match error.kind() == ErrorKind::TimedOut {
                true => anyhow!("the data plane does not answer"),
                false => anyhow::Error::new(error).context("the data plane has ended"),
            }
        })?;
        ShardSnapshot::merge(snapshots).context("the data plane has no shards")
    }

    /// The Prometheus exposition of this moment. Blocks, for a bounded time.
    pub fn exposition(&self) -> String {
        if let Ok(snapshot) = self.snapshot() {
            self.metrics.set_snapshot(&snapshot);
        }
        if let Ok(counters) = host::counters(&self.host) {
            self.metrics.set_steering(named(&counters));
        }
        self.metrics.encode()
    }

    /// Flows, more of them than a status shows.
    ///
    /// # Errors
    /// As [`Self::snapshot`].
    pub fn flows(&self) -> anyhow::Result<Vec<FlowStatus>> {
        Ok(ShardStatus::from(self.snapshot()?).flows)
    }

    /// Who spoke to whom until this moment. Blocks, for as long as reading conntrack takes.
    pub fn flow_log(&self) -> FlowLogView {
        if let Err(error) = feed::look(self) {
            tracing::debug!(error = %chained(error), "cannot read conntrack");
        }
        FlowLogView::new(&self.flow_log, &self.active.load())
    }

    /// Everything that `status` shows. Blocks, for a bounded time.
    pub fn status(&self) -> Status {
        let active = self.active.load();
        let now = unix_now();
        let config_error = self
            .config_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let mut health = Vec::new();
        if config_error.is_some() {
            let text =
                "the files on disk are not in force: the last reload was refused (see below)";
            health.push(Health {
                level: HealthLevel::Error,
                text: text.into(),
            });
        }
        let shard = self.snapshot().map(ShardStatus::from);
        if let Err(error) = &shard {
            health.push(Health {
                level: HealthLevel::Error,
                text: format!("{error:#}"),
            });
        }
        let counters = host::counters(&self.host).unwrap_or_else(|error| {
            let text = format!("the kernel's rules cannot be read: {}", chained(error));
            health.push(Health {
                level: HealthLevel::Error,
                text,
            });
            SteeringCounters::default()
        });
        let damage = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        health.extend(damage.iter().map(|text| Health {
            level: HealthLevel::Error,
            text: text.clone(),
        }));
        drop(damage);
        health.extend(configuration_health(&active));
        health.extend(
            active
                .identities
                .own
                .values()
                .filter_map(|identity| identity_health(identity, now)),
        );
        let (shard, answered) = match shard {
            Ok(shard) => (shard, true),
            Err(_) => (ShardStatus::default(), false),
        };
        health.extend(loop_health(&shard));
        health.extend(shard.tunnels.iter().filter_map(tunnel_health));
        Status {
            api_version: API_VERSION.into(),
            kind: "Status".into(),
            healthy: answered && health.iter().all(|line| line.level != HealthLevel::Error),
            health,
            version: env!("CARGO_PKG_VERSION").into(),
            pid: process::id(),
            run: self.run.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.path.display().to_string(),
            generation: active.compiled.generation(),
            config_valid: config_error.is_none(),
            config_error,
            identities: identity_statuses(&active, now),
            tunnels: shard.tunnels,
            flow_count: shard.flow_count,
            flows: shard.flows.into_iter().take(FLOWS_IN_STATUS).collect(),
            drops: shard.drops,
            steering: named(&counters)
                .map(|(name, count)| (name.into(), count))
                .into(),
            exempt: active
                .settings
                .exempt
                .iter()
                .map(ToString::to_string)
                .collect(),
            packets: shard.packets,
            pending_bytes: shard.pending_bytes,
            books: shard.books,
            shards: shard.shards,
        }
    }

    /// Reads the files again and puts them in force, all or nothing. Blocks. Returns the generation in force.
    ///
    /// The kernel's rules change first: what must be encrypted from here on enters the TUN, where a shard that does not
    /// know of it yet drops it; the other order would let it pass in plaintext for that moment.
    ///
    /// # Errors
    /// The rendered reasons; what ran before goes on.
    pub fn reload(&self) -> anyhow::Result<u64> {
        let mut tried = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // before they are read for use: what changes in between is another change
        *tried = Contents::read(&self.wanted());
        self.reload_locked()
    }

    /// As [`Self::reload`], unless the files say what they said when they were read last: files that are refused are
    /// refused once. The outcome is logged and kept for `status`.
    pub fn reload_if_changed(&self) {
        let mut tried = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let contents = Contents::read(&self.wanted());
        if *tried != contents {
            *tried = contents;
            let _ = self.reload_locked();
        }
    }

    /// Looks at the addresses of this host, and reads the files again where the policy in force counts with others.
    /// Whatever is decided by where a workload is follows the host this way. Blocks.
    pub fn follow_addresses(&self, now: Instant) {
        let _one = self
            .reloading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let active = self.active.load_full();
        if active.settings.host_addresses.is_some() {
            return;
        }
        let own = self.own_addresses(now);
        let is_news = {
            let addresses = self.addresses.lock();
            addresses.unwrap_or_else(PoisonError::into_inner).is_news()
        };
        if !is_news || own == active.compiled.host().underlay {
            return;
        }
        let list = |addresses: &BTreeSet<IpAddr>| {
            let words: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            words.join(" ")
        };
        tracing::info!(
            was = list(&active.compiled.host().underlay),
            is = list(&own),
            "the addresses of this host have changed"
        );
        let _ = self.reload_locked();
    }

    /// Those that count at `now`; none when they cannot be read.
    fn own_addresses(&self, now: Instant) -> BTreeSet<IpAddr> {
        let mut addresses = self
            .addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match host::addresses(&self.host.tun_name) {
            Ok(current) => addresses.note(&current, now),
            Err(error) => {
                tracing::debug!(error = %chained(error), "cannot read the addresses of this host");
            }
        }
        addresses.own()
    }

    /// The files of the configuration on disk.
    pub fn wanted(&self) -> Wanted {
        Wanted::new(&self.path, &self.active.load().settings)
    }

    /// To be called by whoever holds [`Self::reloading`].
    fn reload_locked(&self) -> anyhow::Result<u64> {
        let result = self.try_reload();
        let error = result.as_ref().err().map(describe);
        let generation = self.active.load().compiled.generation();
        self.metrics.set_configuration(generation, error.is_none());
        match &error {
            None => tracing::info!(generation, "configuration reloaded"),
            // A log line is one line; `status` has the whole text.
            Some(error) => tracing::error!(
                generation,
                error = %escape(error.lines().next().unwrap_or_default()),
                "reload refused, the old configuration stays"
            ),
        }
        *self
            .config_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = error;
        self.reloaded.notify_one();
        result
    }

    fn try_reload(&self) -> anyhow::Result<u64> {
        let old = self.active.load_full();
        let generation = old.compiled.generation() + 1;
        let running = Running {
            settings: &old.settings,
            addresses: &self.own_addresses(monotonic_now()),
        };
        let new = Configuration::load(&self.path, Some(running), generation, unix_now())?;
        if !new.kept.is_empty() {
            tracing::warn!(
                settings = new.kept.join(", "),
                "these settings change at the next start of the daemon"
            );
        }
        let (before, after) = (old.compiled.steering(), new.compiled.steering());
        if let Err(error) = self.rules.update(before, after) {
            // where somebody had changed the table, a part of it may stand
            if let Err(error) = self.rules.install(before) {
                tracing::error!(error = %chained(error), "cannot put the kernel's old rules back");
            }
            return Err(error).context("cannot change the kernel's rules");
        }
        if let Err(error) = self.tell(&new) {
            // What some shards have taken, all have to give up.
            let _ = self.tell(&old);
            let undone = self.rules.update(after, before);
            bail!(
                "the data plane has ended ({error}); rules put back: {}",
                undone.is_ok()
            );
        }
        let policy = Arc::clone(&new.compiled);
        self.put_in_force(new);
        tighten::cut(&self.host, &self.shards, &old.compiled, &policy);
        Ok(generation)
    }

    /// Tells the version of the program that an upgrade would start, after it has found the configuration good.
    ///
    /// # Errors
    /// What is wrong with the program, or what it says of the configuration.
    pub fn try_program(&self) -> anyhow::Result<String> {
        let run = |arguments: &[&OsStr]| {
            let program = self.program.display();
            let output = process::Command::new(&self.program)
                .args(arguments)
                .stdin(process::Stdio::null())
                .output()
                .with_context(|| format!("cannot run {program}"))?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
            if !output.status.success() {
                let (said, status) = (text(&output.stderr), output.status);
                bail!("{program}: {status}\n{}{said}", text(&output.stdout));
            }
            Ok(text(&output.stdout))
        };
        run(&["check".as_ref(), "--config".as_ref(), self.path.as_ref()])
            .context("the program at hand does not take the configuration; nothing was changed")?;
        run(&["--version".as_ref()])
    }

    /// Gives every shard a configuration.
    fn tell(&self, configuration: &Configuration) -> std::io::Result<()> {
        self.shards.send_all(|| Command::Config {
            identities: Arc::clone(&configuration.identities),
            policy: Arc::clone(&configuration.compiled),
        })
    }

    /// Notes that `configuration` is what runs.
    pub fn put_in_force(&self, configuration: Configuration) {
        note_in_force(&configuration, &self.metrics);
        if self.active.load().compiled.steering() != configuration.compiled.steering() {
            keep_guard(&configuration, &self.host);
        }
        self.active.store(Arc::new(configuration));
    }
}

/// An error as `status` shows it: diagnostics with their lines.
pub fn describe(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Rejected>() {
        Some(rejected) => rejected.render(),
        None => format!("{error:#}"),
    }
}

/// The kernel's counters by name.
const fn named(counters: &SteeringCounters) -> [(&'static str, u64); 4] {
    [
        ("cross_plain", counters.cross_plain),
        ("cross_tunnel", counters.cross_tunnel),
        ("guard", counters.guard),
        ("strict", counters.strict),
    ]
}

fn identity_statuses(active: &Configuration, now: u64) -> Vec<IdentityStatus> {
    let own = active.identities.own.iter();
    own.map(|(id, identity)| {
        let svid = &identity.svid;
        let seconds = i64::try_from(svid.not_after)
            .unwrap_or(i64::MAX)
            .saturating_sub_unsigned(now);
        IdentityStatus {
            id: id.clone(),
            certificate: active
                .certificates
                .get(id)
                .map(|path| path.display().to_string())
                .unwrap_or_default(),
            not_after: svid.not_after,
            expires_in_seconds: seconds,
            issuer: svid.issuer.clone(),
            serial: svid.serial.clone(),
        }
    })
    .collect()
}
