//! Looks whether what was installed on the host still stands, and installs it again where somebody has taken it away:
//! when the kernel tells of it, and every few seconds. What cannot be mended makes the daemon unhealthy. Follows the
//! host's addresses in the same way.

use std::{
    io,
    sync::{Arc, PoisonError},
    thread,
    time::Duration,
};

use tokio::{runtime::Handle, task::spawn_blocking};

use crate::{
    daemon::{clock::monotonic_now, configuration::chained, control::Control},
    host::{self, HostError, changes::Changes},
};

/// Between two looks. One costs a run of nft and a few netlink dumps.
pub const PERIOD: Duration = Duration::from_secs(5);

/// After a look that the kernel asked for, so that a storm of changes cannot keep us busy.
const PAUSE: Duration = Duration::from_millis(20);

/// Starts the thread that hears of what others take away; it ends with the daemon.
///
/// # Errors
/// When there can be no thread.
pub fn spawn(control: &Arc<Control>) -> io::Result<()> {
    let control = Arc::clone(control);
    let work = move || {
        let heard = Changes::subscribe(&control.host).and_then(|mut changes| {
            loop {
                changes.wait()?;
                control.taken.notify_one();
                thread::sleep(PAUSE);
            }
        });
        if let Err::<(), _>(error) = heard {
            tracing::warn!(
                error = chained(error),
                seconds = PERIOD.as_secs(),
                "cannot hear of what others change on this host; it is looked at every few seconds instead"
            );
        }
    };
    thread::Builder::new()
        .name("identun-upkeep".into())
        .spawn(work)
        .map(drop)
}

/// Looks once, mends, and notes what is still wrong for `status` and the metrics. Ends when all of it is done, so that
/// nothing is installed behind the back of a daemon that stops.
pub async fn look(control: &Arc<Control>) {
    let control = Arc::clone(control);
    let runtime = Handle::current();
    // the lock that reloads take is held throughout, and nft is waited for
    let work = move || {
        look_blocking(&control, &runtime);
        control.follow_addresses(monotonic_now());
    };
    if let Err(error) = spawn_blocking(work).await {
        tracing::error!(error = %error, "cannot look after rules and routes");
    }
}

fn look_blocking(control: &Control, runtime: &Handle) {
    let _one = control
        .reloading
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let damage = match runtime.block_on(host::check(&control.host)) {
        Ok(missing) if missing.is_empty() => Vec::new(),
        Ok(missing) => {
            tracing::error!(
                missing = missing.join(", "),
                "somebody has changed what steers packets on this host; it is installed again"
            );
            mend(control, runtime, missing)
        }
        Err(error) => vec![format!(
            "rules and routes cannot be checked: {}",
            chained(error)
        )],
    };
    control.metrics.set_damage(damage.len());
    *control
        .damage
        .lock()
        .unwrap_or_else(PoisonError::into_inner) = damage;
}

/// Installs again; returns what is wrong after that.
fn mend(control: &Control, runtime: &Handle, missing: Vec<String>) -> Vec<String> {
    match runtime.block_on(install(control)) {
        Err(error) => {
            let error = chained(error);
            tracing::error!(error, "cannot install rules and routes again");
            let lines = missing.iter().map(|what| format!("missing: {what}"));
            lines
                .chain([format!("cannot be installed again: {error}")])
                .collect()
        }
        Ok(()) => {
            control.metrics.count_repair();
            match runtime.block_on(host::check(&control.host)) {
                Ok(left) => left.iter().map(|what| format!("missing: {what}")).collect(),
                Err(error) => vec![chained(error)],
            }
        }
    }
}

async fn install(control: &Control) -> Result<(), HostError> {
    control
        .rules
        .install(control.active.load().compiled.steering())?;
    host::install_routes(&control.host).await
}
