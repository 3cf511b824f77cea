//! What comes in by the admin socket: whatever the bytes, at most one thing is asked of the daemon, and it is what the
//! first line says; what changes something only by POST and by whom may. Each answer is one, and whole.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Extension, Json,
    extract::Request,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
};
use identun::daemon::{
    admin::{Desk, Question, admin_router},
    serve::{Peer, serve},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    runtime::{Builder, Runtime},
};

use super::choices::Choices;

const PATHS: [(Question, &str, bool); 8] = [
    (Question::Events, "/v1/events", false),
    (Question::FlowLog, "/v1/flowlog", false),
    (Question::Flows, "/v1/flows", false),
    (Question::Metrics, "/metrics", false),
    (Question::Reload, "/v1/reload", true),
    (Question::Status, "/v1/status", false),
    (Question::Stop, "/v1/stop", true),
    (Question::Upgrade, "/v1/upgrade", true),
];
const METHODS: [&str; 12] = [
    "GET", "POST", "GET", "POST", "GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "get",
    "XYZZY",
];
const HEADERS: [&str; 12] = [
    "host: x",
    "content-length: 5",
    "content-length: 99999999999999999999",
    "content-length: -1",
    "transfer-encoding: chunked",
    "transfer-encoding: chunked, identity",
    "connection: keep-alive",
    "connection: upgrade",
    "upgrade: websocket",
    "expect: 100-continue",
    "x-method-override: POST",
    "x: \u{e9}\u{7f}",
];
/// The largest header that is taken.
const MAX_HEADER: usize = 16 * 1_024;
/// Turns after which the server has read all that was written.
const PATIENCE: usize = 16;
/// More than any answer of ours here.
const MAX_ANSWER: usize = 4_096;

/// What was seen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    /// Requests that asked something.
    pub(crate) asked: usize,
    /// Requests that were refused.
    pub(crate) refused: usize,
    /// Those that asked for a change.
    pub(crate) changes: usize,
}

/// Writes down what it is asked.
#[derive(Default)]
struct Clerk {
    asked: Mutex<Vec<Question>>,
}

impl Desk for Clerk {
    fn answer(&self, question: Question) -> Response {
        self.asked.lock().unwrap().push(question);
        Json("answer").into_response()
    }
}

/// Plays one connection; panics where something is not as it has to be.
pub(crate) fn play(choices: &mut Choices<'_>) -> Tally {
    let pieces: Vec<_> = (0..3)
        .map(|_| *choices.pick(&[65_536, 1, 7, 100]))
        .collect();
    let peer = Peer {
        uid: *choices.pick(&[0, 1_000_000]),
    };
    let (meant, request) = match choices.below(3) {
        0 => (None, noise(choices)),
        _ => composed(choices),
    };
    let clerk = Arc::new(Clerk::default());
    let answer = runtime().block_on(exchange(&clerk, peer, &pieces, &request));
    let asked = std::mem::take(&mut *clerk.asked.lock().unwrap());
    let shown = || String::from_utf8_lossy(&request).into_owned();
    assert!(asked.len() <= 1, "{asked:?} by {:?}", shown());
    if let Some(question) = asked.first() {
        let (method, changes) = promised(&request, *question);
        assert!(!changes || peer.may_change(), "{:?}", shown());
        let taken: &[&str] = if changes { &["POST"] } else { &["GET", "HEAD"] };
        assert!(taken.contains(&method.as_str()), "{:?}", shown());
        assert!(!request.starts_with(b" ") && head_len(&request).is_some());
    }
    if let Some((question, method)) = meant {
        let changes = PATHS.iter().any(|path| path.0 == question && path.2);
        let fits = match method {
            "GET" | "HEAD" => !changes,
            "POST" => changes && peer.may_change(),
            _ => false,
        };
        let expected = Some(question).filter(|_| fits);
        assert_eq!(asked.first().copied(), expected, "{:?}", shown());
    }
    let status = check_answer(&request, &answer);
    assert_eq!(status == Some(200), !asked.is_empty(), "{:?}", shown());
    Tally {
        asked: asked.len(),
        refused: usize::from(asked.is_empty()),
        changes: usize::from(
            asked
                .first()
                .is_some_and(|question| PATHS.iter().any(|path| path.0 == *question && path.2)),
        ),
    }
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Builder::new_current_thread().enable_time().build().unwrap())
}

/// Everything is written, whatever becomes of it, and everything is read.
async fn exchange(clerk: &Arc<Clerk>, peer: Peer, pieces: &[usize], request: &[u8]) -> Vec<u8> {
    let (client, server) = duplex(1 << 20);
    let reached = Arc::new(AtomicBool::new(false));
    let noting = Arc::clone(&reached);
    let router = admin_router(Arc::clone(clerk))
        .layer(Extension(peer))
        .layer(from_fn(move |request: Request, next: Next| {
            noting.store(true, Ordering::Relaxed);
            next.run(request)
        }));
    let (mut from, mut to) = tokio::io::split(client);
    let serving = serve(server, router);
    let talking = async {
        let mut rest = request;
        for len in pieces.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*len).min(rest.len()));
            rest = later;
            // The server may have answered and gone.
            if to.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Whoever hangs up takes back what is being answered; whoever does not waits where the header has no end.
        for _ in 0..PATIENCE {
            tokio::task::yield_now().await;
        }
        if !reached.load(Ordering::Relaxed) {
            let _ = to.shutdown().await;
        }
        let mut answer = Vec::new();
        let _ = from.read_to_end(&mut answer).await;
        answer
    };
    let serving: Pin<Box<dyn Future<Output = ()>>> = Box::pin(serving);
    tokio::join!(serving, talking).1
}

fn noise(choices: &mut Choices<'_>) -> Vec<u8> {
    if let Choices::Bytes(rest) = choices {
        return rest.to_vec();
    }
    let parts = [
        "GET",
        "POST",
        " ",
        "/v1/stop",
        "/v1/status",
        " HTTP/1.1",
        "\r\n",
        "\n",
        "\0",
        ":",
        "x",
    ];
    (0..choices.below(20))
        .flat_map(|_| choices.pick(&parts).bytes())
        .collect()
}

/// A request, and what it asks by which method where nothing is wrong with it.
fn composed(choices: &mut Choices<'_>) -> (Option<(Question, &'static str)>, Vec<u8>) {
    let (question, path, _) = *choices.pick(&PATHS);
    let method = *choices.pick(&METHODS);
    let mut is_plain = true;
    let path = match choices.below(12) {
        1 => format!("{path}?a=b&a={}", "c".repeat(choices.below(100))),
        2 => format!("http://daemon{path}"),
        3 => {
            is_plain = false;
            let odd = [
                "/",
                "//",
                "/v1//stop",
                "/v1/stop/",
                "/V1/STOP",
                "/v1/%73top",
                "/v1/../v1/stop",
                "*",
                "x:1",
                "",
            ];
            (*choices.pick(&odd)).to_owned()
        }
        _ => path.to_owned(),
    };
    let version = *choices.pick(&[
        "HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9",
    ]);
    is_plain &= matches!(version, "HTTP/1.1" | "HTTP/1.0") && method.to_uppercase() == method;
    is_plain &= method != "CONNECT";
    let mut request = format!("{method} {path} {version}\r\n").into_bytes();
    for _ in 0..choices.below(6).saturating_sub(2) {
        let header = *choices.pick(&HEADERS);
        is_plain &= header.starts_with("host");
        request.extend(header.bytes());
        request.extend(b"\r\n");
    }
    if choices.chance(5) {
        is_plain = false;
        let len = MAX_HEADER - 500 + choices.below(256) * 8;
        request.extend([&b"x: "[..], &vec![b'a'; len], b"\r\n"].concat());
    }
    request.extend(b"\r\n");
    for _ in 0..choices.below(3) {
        let more: [&[u8]; 4] = [
            b"hello",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"POST /v1/stop HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\0\0\0\0",
        ];
        request.extend(*choices.pick(&more));
    }
    for _ in 0..choices.below(4).saturating_sub(1) {
        is_plain = false;
        let at = (choices.below(256) * 256 + choices.below(256)) % request.len().min(200);
        match choices.below(3) {
            0 => request[at] = choices.below(256) as u8,
            1 => drop(request.remove(at)),
            _ => request.insert(at, choices.below(256) as u8),
        }
    }
    (is_plain.then_some((question, method)), request)
}

/// By which method the first line asks this, and whether it changes something; panics where it asks for anything else.
fn promised(request: &[u8], question: Question) -> (String, bool) {
    let (_, path, changes) = *PATHS.iter().find(|path| path.0 == question).unwrap();
    let text = String::from_utf8_lossy(request);
    let line = text
        .trim_start_matches(['\r', '\n'])
        .lines()
        .next()
        .unwrap_or_default();
    let mut words = line.split(' ').filter(|word| !word.is_empty());
    let (method, target) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let target = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => {
            &rest[rest.find('/').unwrap_or(rest.len())..]
        }
        _ => target,
    };
    let asked = target.split(['?', '#']).next();
    assert_eq!(asked, Some(path), "{line:?}");
    (method.to_owned(), changes)
}

/// Where the header ends, if it does.
fn head_len(request: &[u8]) -> Option<usize> {
    let blank = |at: &usize| {
        let rest = &request[*at..];
        rest.starts_with(b"\n\n") || rest.starts_with(b"\n\r\n")
    };
    (0..request.len()).find(blank)
}

/// One answer as HTTP/1.1 has it, and nothing after it; its status.
fn check_answer(request: &[u8], answer: &[u8]) -> Option<u16> {
    if answer.is_empty() {
        return None;
    }
    let mut text = String::from_utf8(answer.to_vec()).unwrap();
    assert!(text.len() < MAX_ANSWER, "{text}");
    if let Some(rest) = text.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
        text = rest.to_owned();
    }
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{text:?}"));
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .or_else(|| first.strip_prefix("HTTP/1.0 "));
    let status: u16 = status
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .unwrap_or_else(|| panic!("{text:?}"));
    let len = lines.find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let is_head = request.starts_with(b"HEAD ") || body.is_empty();
    assert!(is_head || len == Some(body.len()), "{text:?}");
    assert!(
        request.len() <= MAX_HEADER
            || head_len(request).is_some_and(|len| len <= MAX_HEADER)
            || status != 200
    );
    Some(status)
}
