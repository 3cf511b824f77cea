//! Authorization on live traffic: a DENY that comes while a download runs.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    mesh::{BULK_PORT, PORT, SERVER_4, STRICT},
    rig::{PATIENCE, Rig, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, udp_echo},
};

/// The bound of the promise: from the reload to the error, on both ends.
const AT_ONCE: Duration = Duration::from_secs(1);

const DENY: &str = r#"apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: { name: no-client, namespace: default }
spec:
  selector: { matchLabels: { app: server } }
  action: DENY
  rules:
  - from:
    - source: { principals: ["cluster.local/ns/default/sa/client"] }
    to:
    - operation: { ports: ["8080"] }
"#;

/// A download: the server's application writes until it may no longer, the client's reads.
struct Download {
    read: Arc<AtomicU64>,
    ends: [thread::JoinHandle<(ErrorKind, Instant)>; 2],
}

impl Download {
    fn start(port: u16) -> Self {
        let to = SocketAddr::new(SERVER_4.parse().unwrap(), port);
        let listener = in_namespace("server", || TcpListener::bind(to).unwrap());
        let reader = in_namespace("client", || {
            TcpStream::connect_timeout(&to, PATIENCE).unwrap()
        });
        let writer = listener.accept().unwrap().0;
        let read = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&read);
        let ends = [
            thread::spawn(move || last_read(reader, &count)),
            thread::spawn(move || last_write(writer)),
        ];
        let download = Self { read, ends };
        wait_for("a part of the download", || download.bytes() > 1 << 20);
        download
    }

    fn bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    fn has_ended(&self) -> bool {
        self.ends.iter().any(thread::JoinHandle::is_finished)
    }
}

fn last_read(mut stream: TcpStream, count: &AtomicU64) -> (ErrorKind, Instant) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return (ErrorKind::UnexpectedEof, Instant::now()),
            Ok(len) => drop(count.fetch_add(len as u64, Ordering::Relaxed)),
            Err(error) => return (error.kind(), Instant::now()),
        }
    }
}

fn last_write(mut stream: TcpStream) -> (ErrorKind, Instant) {
    let buffer = vec![7; 1 << 16];
    loop {
        if let Err(error) = stream.write_all(&buffer) {
            return (error.kind(), Instant::now());
        }
    }
}

fn reload(rig: &Rig, host: &str) {
    let socket = rig.path(&format!("{host}/admin.sock"));
    rig.identun(host, &["reload", "--socket", &socket]);
}

#[test]
fn a_deny_cuts_a_running_download_on_both_ends_and_leaves_its_neighbours_alone() {
    in_namespaces(
        "denied::a_deny_cuts_a_running_download_on_both_ends_and_leaves_its_neighbours_alone",
        |rig| {
            rig.standard(STRICT);
            for host in ["client", "server"] {
                rig.configure(host, &[host], "watch: false");
            }
            let daemons = (rig.start("server"), rig.start("client"));
            let denied = Download::start(PORT);
            let neighbour = Download::start(BULK_PORT);

            rig.write("policies/deny.yaml", DENY);
            // The server alone: who may call is its word, and the client learns it through the tunnel.
            let begun = Instant::now();
            reload(&rig, "server");
            for (end, name) in denied.ends.into_iter().zip(["client", "server"]) {
                let (error, when) = end.join().unwrap();
                assert_eq!(error, ErrorKind::ConnectionReset, "at the {name}");
                let waited = when.saturating_duration_since(begun);
                println!("the {name}'s application learnt it after {waited:?}");
                assert!(waited < AT_ONCE, "at the {name} after {waited:?}");
            }
            let read = neighbour.bytes();
            wait_for("the neighbour to go on", || {
                neighbour.bytes() > read + (8 << 20)
            });
            assert!(!neighbour.has_ended());

            for host in ["server", "client"] {
                let told = || {
                    let log = rig.log(host);
                    log.lines().any(|line| {
                        line.contains("AuthorizationPolicy default/no-client")
                            && line.contains("sa/client")
                            && line.contains("sa/server")
                    })
                };
                wait_for(&format!("{host}'s word about it"), told);
            }
            // What comes later is refused too, and what is not denied still passes.
            let to = SocketAddr::new(SERVER_4.parse().unwrap(), PORT);
            let _listener = in_namespace("server", || TcpListener::bind(to).unwrap());
            let later = in_namespace("client", || TcpStream::connect_timeout(&to, PATIENCE));
            assert_eq!(later.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let echo = Echo::start("server", 5_002);
            udp_echo("client", (SERVER_4, 5_002), b"still", PATIENCE).unwrap();
            assert_eq!(echo.datagrams(), 1);
            drop(daemons);
        },
    );
}
