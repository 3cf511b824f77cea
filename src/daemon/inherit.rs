//! Takes over what a predecessor held, where it fits the settings, and lets systemd keep it for a successor.

use std::{os::fd::OwnedFd, path::Path, thread, time::Duration};

use anyhow::Context;
use sd_notify::NotifyState;

use crate::{
    device::{
        PacketDevice,
        tun::{Tun, TunError, TunSettings},
    },
    host::{
        HostSettings, Rules,
        handover::{Handover, Part},
    },
    io::{Underlay, UnderlaySettings},
    store::{InstanceLock, LockError},
};

/// How long systemd may take to close a queue that it was told to forget, in steps of [`STEP`].
const STEPS: u32 = 40;
const STEP: Duration = Duration::from_millis(50);

/// The lock of the state folder.
pub(super) fn lock(state_dir: &Path, left: &mut Handover) -> Result<InstanceLock, LockError> {
    match left.all(Part::Lock).pop() {
        Some(held) => InstanceLock::adopt(state_dir, held),
        None => InstanceLock::acquire(state_dir),
    }
}

/// The nft table; `owned`: as our property.
pub(super) fn rules(
    host: &HostSettings,
    owned: bool,
    left: &mut Handover,
) -> anyhow::Result<Rules> {
    let socket = left.all(Part::Rules).pop();
    match (owned, socket) {
        (false, None) => Ok(Rules::shared(host)),
        (false, Some(socket)) => {
            // the table is nobody's as soon as nobody holds its socket
            drop(socket);
            forget(Part::Rules);
            Ok(Rules::shared(host))
        }
        (true, Some(socket)) => {
            Rules::inherited(host, socket).context("cannot take over the nft table")
        }
        (true, None) => Rules::owned(host).context("cannot program nf_tables"),
    }
}

/// One socket for each shard.
pub(super) fn underlays(
    settings: &UnderlaySettings,
    shards: u8,
    left: &mut Handover,
) -> anyhow::Result<Vec<Underlay>> {
    let sockets = left.all(Part::Underlay);
    if fits(&sockets, shards) {
        match Underlay::adopt_group(settings, sockets) {
            Ok(underlays) => return Ok(underlays),
            Err(error) => tracing::warn!(%error, "the predecessor's UDP sockets do not fit"),
        }
    } else if !sockets.is_empty() {
        drop(sockets);
    }
    let listen = settings.listen;
    again(
        Part::Underlay,
        left,
        || Underlay::bind_group(settings, shards),
        |error| error.kind() == std::io::ErrorKind::AddrInUse,
    )
    .with_context(|| format!("cannot listen at UDP {listen}"))
}

/// One queue of the TUN for each shard.
pub(super) fn tuns(
    settings: &TunSettings,
    shards: u8,
    left: &mut Handover,
) -> anyhow::Result<Vec<Tun>> {
    let queues = left.all(Part::Tun);
    if fits(&queues, shards) {
        match Tun::adopt_queues(settings, queues) {
            Ok(tuns) => return Ok(tuns),
            Err(error) => tracing::warn!(%error, "the predecessor's TUN does not fit"),
        }
    } else if !queues.is_empty() {
        drop(queues);
    }
    again(
        Part::Tun,
        left,
        || Tun::open_queues(settings, shards),
        |error| matches!(error, TunError::Busy { .. } | TunError::NotTun { .. }),
    )
    .with_context(|| format!("cannot open the TUN {}", settings.name))
}

/// Keeps another name for everything that a successor takes over.
pub(super) fn keep(
    tuns: &[Tun],
    underlays: &[Underlay],
    rules: &Rules,
) -> anyhow::Result<Handover> {
    let mut kept = Handover::default();
    let keep = || -> std::io::Result<Handover> {
        for tun in tuns.iter().filter_map(PacketDevice::fd) {
            kept.keep(Part::Tun, tun)?;
        }
        for underlay in underlays {
            kept.keep(Part::Underlay, underlay)?;
        }
        if let Some(owner) = rules.owner()? {
            kept.keep(Part::Rules, owner)?;
        }
        Ok(kept)
    };
    keep().context("cannot keep the descriptors for a successor")
}

/// Lets systemd keep them. What it has already it recognises. FDPOLL=0: it would give a socket up that once heard of an
/// unreachable peer.
pub(super) fn store(kept: &Handover) {
    for (name, fd) in kept.lasting() {
        let state = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        if let Err(error) = sd_notify::notify_with_fds(&state, &[fd]) {
            tracing::debug!(%error, "the service manager keeps no descriptors");
        }
    }
}

/// Lets systemd forget all of them, before somebody takes away what they stand for.
pub(super) fn forget_all() {
    for part in [Part::Tun, Part::Underlay, Part::Rules] {
        forget(part);
    }
}

fn forget(part: Part) {
    let state = [NotifyState::FdStoreRemove, NotifyState::FdName(part.name())];
    if let Err(error) = sd_notify::notify(&state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// Some, and as many as there are shards.
fn fits(left: &[OwnedFd], shards: u8) -> bool {
    !left.is_empty() && left.len() == usize::from(shards)
}

/// Tries as long as systemd may still hold what does not fit. Without it the first answer counts.
fn again<T, E>(
    part: Part,
    left: &Handover,
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    if !left.came_from_systemd() {
        return attempt();
    }
    forget(part);
    for _ in 1..STEPS {
        match attempt() {
            Err(error) if is_held(&error) => thread::sleep(STEP),
            result => return result,
        }
    }
    attempt()
}
