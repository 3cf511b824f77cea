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
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::json;
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

/// Every route of the admin socket.
pub fn admin_router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/flows", get(flows))
        .route("/v1/flowlog", get(flow_log))
        .route("/v1/events", get(events))
        .route("/v1/reload", post(reload))
        .route("/v1/stop", post(stop))
        .route("/v1/upgrade", post(upgrade))
        .with_state(Arc::clone(&control))
        .merge(metrics_router(control))
}

/// The one route of the metrics listener.
pub fn metrics_router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(control)
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

async fn status(State(control): State<Arc<Control>>) -> Response {
    blocking(move || Json(control.status()).into_response()).await
}

async fn flows(State(control): State<Arc<Control>>) -> Response {
    blocking(move || match control.flows() {
        Ok(flows) => Json(json!({"apiVersion": API_VERSION, "kind": "Flows", "flows": flows}))
            .into_response(),
        Err(error) => failure(StatusCode::SERVICE_UNAVAILABLE, &format!("{error:#}")),
    })
    .await
}

async fn flow_log(State(control): State<Arc<Control>>) -> Response {
    blocking(move || Json(control.flow_log()).into_response()).await
}

async fn events(State(control): State<Arc<Control>>) -> Response {
    let events = control.events.records();
    Json(json!({"apiVersion": API_VERSION, "kind": "Events", "events": events})).into_response()
}

async fn metrics(State(control): State<Arc<Control>>) -> Response {
    blocking(move || ([(CONTENT_TYPE, OPEN_METRICS)], control.exposition()).into_response()).await
}

async fn reload(State(control): State<Arc<Control>>, Extension(peer): Extension<Peer>) -> Response {
    if !peer.may_change() {
        return forbidden();
    }
    blocking(move || match control.reload() {
        Ok(generation) => {
            let kept = control.active.load().kept.clone();
            Json(json!({"apiVersion": API_VERSION, "kind": "Reload", "generation": generation, "kept": kept}))
                .into_response()
        }
        Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &describe(&error)),
    })
    .await
}

async fn stop(State(control): State<Arc<Control>>, Extension(peer): Extension<Peer>) -> Response {
    if !peer.may_change() {
        return forbidden();
    }
    control.stop.notify_one();
    Json(json!({"apiVersion": API_VERSION, "kind": "Stop", "pid": std::process::id()}))
        .into_response()
}

/// The program that stands in this one's place now is tried on the configuration first.
async fn upgrade(
    State(control): State<Arc<Control>>,
    Extension(peer): Extension<Peer>,
) -> Response {
    if !peer.may_change() {
        return forbidden();
    }
    blocking(move || match control.try_program() {
        Ok(version) => {
            control.upgrade.notify_one();
            let pid = std::process::id();
            Json(json!({
                "apiVersion": API_VERSION, "kind": "Upgrade", "pid": pid, "version": version,
            }))
            .into_response()
        }
        Err(error) => failure(StatusCode::UNPROCESSABLE_ENTITY, &format!("{error:#}")),
    })
    .await
}

/// The shard, `nft` and files answer by blocking; the listener goes on meanwhile.
async fn blocking(answer: impl FnOnce() -> Response + Send + 'static) -> Response {
    let answered = spawn_blocking(answer).await;
    answered.unwrap_or_else(|error| failure(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
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
