//! The flow log as commands get it: from the daemon, or from a saved answer.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::{
    cli::{
        Context, Failure,
        client::{Client, block_on},
        policies::PolicySet,
    },
    daemon::{
        configuration::load_settings,
        flowlog::{
            Source,
            view::{FlowLogView, FlowView},
        },
    },
    policy::MeshSettings,
};

/// Where flows and settings come from.
#[derive(Debug, clap::Args)]
pub(super) struct FlowSource {
    /// A saved answer of `GET /v1/flowlog` instead of the daemon's
    #[arg(long, value_name = "FILE")]
    flows: Option<PathBuf>,
}

impl FlowSource {
    pub(super) fn read(&self, context: &Context) -> anyhow::Result<FlowLogView> {
        let Some(path) = &self.flows else {
            return block_on(async { Client::new(&context.socket).get("/v1/flowlog").await });
        };
        let place = || format!("cannot read the flow log in {}", path.display());
        let text = std::fs::read_to_string(path).with_context(place)?;
        serde_json::from_str(&text).with_context(place)
    }
}

/// The policy files that flows ran under, and the settings of their mesh.
pub(super) struct InForce {
    pub(super) mesh: MeshSettings,
    pub(super) files: Vec<PathBuf>,
}

impl InForce {
    /// As the daemon told, or as another configuration says.
    pub(super) fn new(log: &FlowLogView, config: Option<&Path>) -> Result<Self, Failure> {
        let Some(config) = config else {
            return Ok(Self {
                mesh: log.mesh.clone().into(),
                files: log.files.clone(),
            });
        };
        let settings = load_settings(config)?;
        let base = config.parent().unwrap_or_else(|| Path::new(""));
        let entries = settings.policies.iter().map(|entry| base.join(entry));
        Ok(Self {
            mesh: settings.mesh(),
            files: entries.collect(),
        })
    }

    pub(super) fn load(&self) -> Result<PolicySet, Failure> {
        PolicySet::load(Path::new(""), &self.files, &self.mesh)
    }
}

/// What makes the log say less than there was, one sentence each.
pub(super) fn gaps(log: &FlowLogView) -> Vec<String> {
    let mut gaps = Vec::new();
    let why = log.trouble.as_deref().unwrap_or("unknown reason");
    match log.source {
        Source::Events => {}
        Source::Dumps => gaps.push(format!(
            "conntrack is read every few seconds only, short flows may be missing ({why})"
        )),
        Source::None => gaps.push(format!("the daemon cannot see plaintext at all ({why})")),
    }
    if log.losses > 0 {
        gaps.push(format!(
            "{} times the kernel told more than could be heard: counts are at least",
            log.losses
        ));
    }
    if log.evicted > 0 {
        gaps.push(format!(
            "{} entries made room for later ones (there is room for {})",
            log.evicted, log.capacity
        ));
    }
    gaps
}

/// How long ago a flow was seen last, in seconds.
pub(super) const fn seconds_ago(log: &FlowLogView, flow: &FlowView) -> u64 {
    log.now_ms.saturating_sub(flow.last_seen_ms) / 1_000
}
