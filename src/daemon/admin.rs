//! The admin API: HTTP on a unix socket. Everybody whom the socket's mode lets in may read; root and the daemon's own
//! user may change.

use std::{
    fs::Permissions,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::UnixStream,
    },
    path::Path,
    sync::Arc,
};

use anyhow::{Context, bail};
use axum::{
    Extension, Json, Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, task::spawn_blocking};

use crate::{
    daemon::{
        control::{Control, describe},
        serve::Peer,
        status::API_VERSION,
    },
    host::account,
};

/// The group whose members may read.
const GROUP: &str = "identun";
/// What Prometheus expects of the exposition.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What may be asked of a daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// What happened lately.
    Events,
    /// Who spoke to whom, and how.
    FlowLog,
    /// The flows of this moment.
    Flows,
    /// The Prometheus exposition.
    Metrics,
    /// That the files be put in force.
    Reload,
    /// Everything that `status` shows.
    Status,
    /// That the daemon end.
    Stop,
    /// That the program which stands in this one's place now take over.
    Upgrade,
}

impl Question {
    /// Every one.
    pub const ALL: [Self; 8] = [
        Self::Events,
        Self::FlowLog,
        Self::Flows,
        Self::Metrics,
        Self::Reload,
        Self::Status,
        Self::Stop,
        Self::Upgrade,
    ];

    const fn path(self) -> &'static str {
        match self {
            Self::Events => "/v1/events",
            Self::FlowLog => "/v1/flowlog",
            Self::Flows => "/v1/flows",
            Self::Metrics => "/metrics",
            Self::Reload => "/v1/reload",
            Self::Status => "/v1/status",
            Self::Stop => "/v1/stop",
            Self::Upgrade => "/v1/upgrade",
        }
    }

    const fn changes(self) -> bool {
        matches!(self, Self::Reload | Self::Stop | Self::Upgrade)
    }

    /// INVARIANT: what changes something is asked by POST alone, and by whom [`Peer::may_change`] lets.
    fn route(self, desk: &Arc<dyn Desk>) -> MethodRouter {
        let desk = Arc::clone(desk);
        if !self.changes() {
            return get(move || ask(Arc::clone(&desk), self));
        }
        post(move |Extension(peer): Extension<Peer>| {
            let desk = Arc::clone(&desk);
            async move {
                match peer.may_change() {
                    true => ask(desk, self).await,
                    false => forbidden(),
                }
            }
        })
    }
}

/// Who answers: the daemon, or somebody in its place in tests.
pub trait Desk: Send + Sync + 'static {
    /// Answers, or does what is asked. May block.
    fn answer(&self, question: Question) -> Response;
}

/// Every route of the admin socket.
pub fn admin_router(desk: Arc<impl Desk>) -> Router {
    let desk: Arc<dyn Desk> = desk;
    let all = Question::ALL.into_iter();
    all.fold(Router::new(), |router, question| {
        router.route(question.path(), question.route(&desk))
    })
}

/// The one route of the metrics listener.
pub fn metrics_router(desk: Arc<impl Desk>) -> Router {
    let desk: Arc<dyn Desk> = desk;
    let metrics = Question::Metrics;
    Router::new().route(metrics.path(), metrics.route(&desk))
}

/// Listens at `path`, mode 0660, of group `identun` where that exists. Replaces the socket of a dead daemon.
///
/// # Errors
/// When another daemon answers there, or something else is in the way.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let place = || format!("cannot listen at {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(place)?;
    }
    if let Ok(metadata) = path.symlink_metadata() {
        if !metadata.file_type().is_socket() {
            bail!("{}: a file that is no socket is in the way", place());
        }
        if UnixStream::connect(path).is_ok() {
            bail!("{}: another daemon answers there", place());
        }
    }
    // Made aside and moved, so that nobody meets the socket before it has its mode.
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside).with_context(place)?;
    std::fs::set_permissions(&aside, Permissions::from_mode(0o660)).with_context(place)?;
    if let Some(group) = account::group(GROUP) {
        // Without the right to give it away the socket stays with our own group, which is narrower.
        let _ = chown(&aside, None, Some(group));
    }
    std::fs::rename(&aside, path).with_context(place)?;
    Ok(listener)
}

/// The shard, `nft` and files answer by blocking; the listener goes on meanwhile.
async fn ask(desk: Arc<dyn Desk>, question: Question) -> Response {
    let answered = spawn_blocking(move || desk.answer(question)).await;
    answered.unwrap_or_else(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
}

impl Desk for Control {
    fn answer(&self, question: Question) -> Response {
        match question {
            Question::Events => {
                let events = self.events.records();
                named("Events", &json!({"events": events}))
            }
            Question::FlowLog => Json(self.flow_log()).into_response(),
            Question::Flows => match self.flows() {
                Ok(flows) => named("Flows", &json!({"flows": flows})),
                Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")),
            },
            Question::Metrics => {
                ([(CONTENT_TYPE, OPEN_METRICS)], self.exposition()).into_response()
            }
            Question::Reload => self.answer_reload(),
            Question::Status => Json(self.status()).into_response(),
            Question::Stop => {
                self.stop.notify_one();
                named("Stop", &json!({"pid": std::process::id()}))
            }
            Question::Upgrade => self.answer_upgrade(),
        }
    }
}

impl Control {
    fn answer_reload(&self) -> Response {
        match self.reload() {
            Ok(generation) => {
                let kept = &self.active.load().kept;
                named("Reload", &json!({"generation": generation, "kept": kept}))
            }
            Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &describe(&error)),
        }
    }

    /// The program that stands in this one's place now is tried on the configuration first.
    fn answer_upgrade(&self) -> Response {
        match self.try_program() {
            Ok(version) => {
                self.upgrade.notify_one();
                let pid = std::process::id();
                named("Upgrade", &json!({"pid": pid, "version": version}))
            }
            Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")),
        }
    }
}

/// An answer of this kind, with these fields.
fn named(kind: &str, fields: &Value) -> Response {
    let mut answer = json!({"apiVersion": API_VERSION, "kind": kind});
    if let (Some(answer), Some(fields)) = (answer.as_object_mut(), fields.as_object()) {
        answer.extend(fields.clone());
    }
    Json(answer).into_response()
}

fn forbidden() -> Response {
    failure(
        StatusCode::FORBIDDEN,
        "only root and the daemon's own user may change things",
    )
}

fn failure(status: StatusCode, error: &str) -> Response {
    (
        status,
        Json(json!({"apiVersion": API_VERSION, "kind": "Error", "error": error})),
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_has_its_mode_and_a_dead_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/admin.sock");
        let first = bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(
            bind(&path)
                .unwrap_err()
                .to_string()
                .contains("another daemon answers")
        );
        drop(first);
        bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(
            bind(&path)
                .unwrap_err()
                .to_string()
                .contains("no socket is in the way")
        );
    }
}
