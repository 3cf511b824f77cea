//! HTTP on a listener with bounds: connections at once, request size, time. Used by the admin socket and by metrics.

use std::{future::Future, io, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
/// From a connection's begin to the end of its request's header.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// The whole of a connection, a slow reader's included.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
/// The largest request header, in bytes.
const MAX_HEADER: usize = 16 * 1_024;

/// Who is at the other end of a unix socket, as the kernel says (SO_PEERCRED).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Peer {
    /// User.
    pub uid: u32,
}

impl Peer {
    /// Root and the daemon's own user may change things; whoever the socket's mode lets in may read.
    pub fn may_change(self) -> bool {
        self.uid == 0 || self.uid == rustix::process::geteuid().as_raw()
    }
}

/// Serves `router` on a unix socket until dropped; handlers find the [`Peer`] among the extensions.
pub async fn serve_unix(listener: UnixListener, router: Router) {
    accept(async || {
        let (stream, _) = listener.accept().await?;
        let peer = Peer {
            uid: stream.peer_cred()?.uid(),
        };
        Ok((stream, router.clone().layer(Extension(peer))))
    })
    .await;
}

/// Serves `router` on a TCP socket until dropped.
pub async fn serve_tcp(listener: TcpListener, router: Router) {
    accept(async || {
        let (stream, _) = listener.accept().await?;
        Ok((stream, router.clone()))
    })
    .await;
}

async fn accept<S, F>(next: impl Fn() -> F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<(S, Router)>>,
{
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match next().await {
            Ok((stream, router)) => {
                connections.spawn(async move {
                    let _slot = slot;
                    serve(stream, router).await;
                });
            }
            Err(error) => {
                // Out of descriptors, or the peer was gone already: trying again at once would spin.
                tracing::debug!(error = %error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Serves one request of one connection.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .max_buf_size(MAX_HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // A peer that misbehaves or leaves is its own affair.
    let _ = timeout(CONNECTION_TIME, connection).await;
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    async fn who(Extension(peer): Extension<Peer>) -> String {
        peer.uid.to_string()
    }

    async fn ask(request: &[u8]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let exchange = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            // The server may answer and close before it has read everything.
            let _ = stream.write_all(request).await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        tokio::select! {
            answer = exchange => answer,
            () = serve_unix(listener, Router::new().route("/", get(who))) => panic!("the server ended"),
        }
    }

    #[tokio::test]
    async fn a_handler_learns_who_asks_and_the_connection_closes() {
        let answer = ask(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let own = rustix::process::geteuid().as_raw();
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with(&format!("\r\n{own}")),
            "{answer}"
        );
        assert!(Peer { uid: own }.may_change() && Peer { uid: 0 }.may_change());
        assert!(!Peer { uid: own + 1 }.may_change());
    }

    #[tokio::test]
    async fn a_header_that_is_too_large_is_refused() {
        let mut request = b"GET / HTTP/1.1\r\nx: ".to_vec();
        request.extend(vec![b'a'; MAX_HEADER]);
        assert!(ask(&request).await.starts_with("HTTP/1.1 431"));
        assert!(ask(b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }
}
