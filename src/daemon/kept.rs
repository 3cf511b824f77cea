//! What the state folder and the metrics say about the configuration in force.

use crate::{
    daemon::configuration::Configuration,
    host::{HostSettings, guard::Guard},
    metrics::Metrics,
    store,
};

/// Sets what metrics and the state folder say about the configuration in force.
pub fn note_in_force(configuration: &Configuration, metrics: &Metrics) {
    metrics.set_configuration(configuration.compiled.generation(), true);
    let own = configuration.identities.own.iter();
    metrics.set_identities(own.map(|(id, identity)| (id, identity.svid.not_after)));
    // The copy is for people who look for what changed; the daemon works without it.
    if let Err(error) = keep_copy(configuration) {
        tracing::warn!(error = %error, "cannot keep a copy of the policy in force");
    }
}

/// What `identun guard` installs at the next boot, in the state folder.
pub const GUARD: &str = "guard.nft";

/// Keeps what holds plaintext back before the next daemon runs.
pub fn keep_guard(configuration: &Configuration, host: &HostSettings) {
    let settings = &configuration.settings;
    let steering = configuration.compiled.steering();
    let kept = Guard::new(host, settings.own_nft_table, steering)
        .map_err(anyhow::Error::new)
        .and_then(|guard| {
            let path = settings.state_dir.join(GUARD);
            Ok(store::write_private(&path, guard.text().as_bytes())?)
        });
    if let Err(error) = kept {
        tracing::error!(
            error = %format!("{error:#}"),
            "cannot keep what `identun guard` installs at the next boot"
        );
    }
}

/// Writes the files in force to `last-good.yaml` of the state folder.
fn keep_copy(configuration: &Configuration) -> Result<(), store::FileError> {
    let mut text = String::new();
    for file in &configuration.files {
        text.extend(["---\n# ", &file.name, "\n", &file.text, "\n"]);
    }
    store::write_private(
        &configuration.settings.state_dir.join("last-good.yaml"),
        text.as_bytes(),
    )
}
