//! Asks a running daemon through its admin socket.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use crate::cli::{Exit, Failure};

/// The largest answer that is read, in bytes: a full flow log has some sixteen million.
const MAX_ANSWER: usize = 64 << 20;
/// How long an answer may take; a reload with many files included.
const PATIENCE: Duration = Duration::from_secs(30);

/// The admin API of one daemon.
pub(super) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(super) fn new(socket: &Path) -> Self {
        Self {
            socket: socket.into(),
        }
    }

    /// Reads `path` as JSON.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.request(Method::GET, path).await
    }

    /// Asks for a change.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.request(Method::POST, path).await
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str) -> anyhow::Result<T> {
        let answer = timeout(PATIENCE, self.exchange(method, path)).await;
        let (status, body) = answer.map_err(|_| {
            Failure::new(
                Exit::Timeout,
                "the daemon does not answer",
                "systemctl status identun",
            )
        })??;
        if !status.is_success() {
            return Err(refusal(status, &body).into());
        }
        serde_json::from_slice(&body)
            .context("the daemon's answer is not understood; are both of one version?")
    }

    async fn exchange(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| unreachable(&self.socket, &error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "identun")
            .body(Empty::<Bytes>::new())?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            let body =
                body.map_err(|error| anyhow::anyhow!("cannot read the daemon's answer: {error}"))?;
            anyhow::Ok((status, body.to_bytes()))
        };
        // The connection must be polled for the exchange to get on.
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => {
                ended?;
                exchange.await
            }
        }
    }
}

/// Runs a request to its end.
pub(super) fn block_on<T>(request: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(request)
}

fn unreachable(socket: &Path, error: &io::Error) -> Failure {
    let kind = error.kind();
    let why = if kind == io::ErrorKind::NotFound {
        "no such socket".into()
    } else {
        kind.to_string()
    };
    let message = format!("cannot reach the daemon at {} ({why})", socket.display());
    if kind == io::ErrorKind::PermissionDenied {
        let help = "root and members of the group `identun` may read it";
        return Failure::new(Exit::Permission, message, help);
    }
    Failure {
        exit: Exit::Unreachable,
        message: format!("{message}; try: systemctl status identun"),
        help: None,
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    #[derive(serde::Deserialize)]
    struct Refusal {
        error: String,
    }
    let message = serde_json::from_slice::<Refusal>(body)
        .map_or_else(|_| status.to_string(), |refusal| refusal.error);
    let exit = match status {
        StatusCode::FORBIDDEN => Exit::Permission,
        StatusCode::UNPROCESSABLE_ENTITY => Exit::Configuration,
        _ => Exit::No,
    };
    Failure {
        exit,
        message,
        help: None,
    }
}
