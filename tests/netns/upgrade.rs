//! The daemon becomes another program, or is started again by a service manager that keeps its descriptors, under
//! connections that notice nothing.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    capture::{Capture, MARKER},
    manager::Manager,
    mesh::{PORT, SERVER_4, SERVER_6, STRICT},
    rig::{PATIENCE, Rig, identun, in_namespace, in_namespaces, wait_for},
    traffic::{Echo, control, tcp_echo},
};

/// Connections that ask and are answered all the time, each answer compared.
struct Talks {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    /// The longest time that an answer took since it was asked for last, microseconds.
    longest: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Talks {
    fn start(count: usize) -> Self {
        let (stop, answers) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let connect = |number: usize| {
            let to = [SERVER_4, SERVER_6][number % 2];
            let to = SocketAddr::new(to.parse().unwrap(), PORT);
            in_namespace("client", || TcpStream::connect_timeout(&to, PATIENCE)).unwrap()
        };
        let streams: Vec<_> = (0..count).map(connect).collect();
        let longest: Vec<_> = (0..count).map(|_| Arc::<AtomicU64>::default()).collect();
        let talk = |(number, mut stream): (usize, TcpStream)| {
            let (stop, answers) = (Arc::clone(&stop), Arc::clone(&answers));
            let longest = Arc::clone(&longest[number]);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.set_nodelay(true).unwrap();
            thread::spawn(move || {
                let mut turn = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    let mut question = MARKER.to_vec();
                    question.extend((number as u64).to_be_bytes());
                    question.extend(turn.to_be_bytes());
                    let begin = Instant::now();
                    stream.write_all(&question).unwrap();
                    let mut answer = vec![0; question.len()];
                    stream.read_exact(&mut answer).unwrap();
                    assert_eq!(answer, question, "connection {number}, turn {turn}");
                    let took = begin.elapsed().as_micros() as u64;
                    longest.fetch_max(took, Ordering::Relaxed);
                    answers.fetch_add(1, Ordering::Relaxed);
                    turn += 1;
                    thread::sleep(Duration::from_millis(5));
                }
            })
        };
        let threads = streams.into_iter().enumerate().map(talk).collect();
        Self {
            stop,
            answers,
            longest,
            threads,
        }
    }

    /// Waits until every connection has had its turn so many times more, on the average.
    fn go_on(&self, turns: u64) {
        let goal = self.answers.load(Ordering::Relaxed) + turns * self.threads.len() as u64;
        wait_for("the conversations", || {
            self.answers.load(Ordering::Relaxed) > goal
        });
    }

    /// Prints how long answers took at worst since this was called last.
    fn tell(&self, what: &str) {
        let taken = self
            .longest
            .iter()
            .map(|one| one.swap(0, Ordering::Relaxed));
        let mut taken: Vec<_> = taken.map(|micros| micros / 1_000).collect();
        taken.sort_unstable();
        let count = taken.len();
        let (half, most, last) = (taken[count / 2], taken[count * 95 / 100], taken[count - 1]);
        println!(
            "{what}: {count} connections, longest wait: median {half} ms, p95 {most} ms, {last} ms"
        );
    }

    /// Ends them; every one must have gone on to the end.
    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

fn upgrade(rig: &Rig, host: &str) -> String {
    rig.identun(
        host,
        &[
            "upgrade",
            "--socket",
            &rig.path(&format!("{host}/admin.sock")),
        ],
    )
}

#[test]
fn two_hundred_connections_notice_no_upgrade() {
    in_namespaces(
        "upgrade::two_hundred_connections_notice_no_upgrade",
        |rig| {
            rig.standard(STRICT);
            let (server, client) = (rig.start("server"), rig.start("client"));
            let echo = Echo::start("server", PORT);
            let run = |host: &str| {
                rig.status(host).unwrap()["run"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            };
            let (pids, runs) = ((client.pid(), server.pid()), (run("client"), run("server")));
            let capture = Capture::start();
            let talks = Talks::start(200);
            talks.go_on(10);
            talks.tell("before");
            for host in ["client", "server", "client", "server"] {
                let told = upgrade(&rig, host);
                assert_eq!(told, "was 0.1.0, is 0.1.0\n");
                // the table never was without its owner
                rig.on(host, &["nft", "flush", "ruleset"]);
                talks.go_on(10);
                talks.tell(host);
            }
            assert_eq!(echo.connections(), 200);
            talks.stop();
            control("client");
            capture.stop().assert_no_plaintext();
            // the same processes, other runs
            let status = |host| rig.status(host).unwrap();
            assert_eq!(status("client")["pid"], pids.0);
            assert_eq!(status("server")["pid"], pids.1);
            assert!(run("client") != runs.0 && run("server") != runs.1);
            assert_eq!(status("client")["healthy"], true);
            for host in ["client", "server"] {
                assert!(
                    !rig.log(host).contains("installed again"),
                    "{}",
                    rig.log(host)
                );
            }
            let descriptors = |pid: u32| {
                std::fs::read_dir(format!("/proc/{pid}/fd"))
                    .unwrap()
                    .count()
            };
            let before = descriptors(pids.0);
            upgrade(&rig, "client");
            upgrade(&rig, "client");
            // one may be open for a moment; those that pile up stay
            wait_for("as many descriptors as before", || {
                descriptors(pids.0) <= before
            });
            drop((server, client));
        },
    );
}

#[test]
fn a_program_that_does_not_take_the_configuration_does_not_get_it() {
    in_namespaces(
        "upgrade::a_program_that_does_not_take_the_configuration_does_not_get_it",
        |rig| {
            rig.standard(STRICT);
            let client = rig.start("client");
            let run = rig.status("client").unwrap()["run"].clone();
            rig.write("policies/policy.yaml", "kind: Nonsense\n");
            let socket = rig.path("client/admin.sock");
            let output = rig.try_on("client", &[&identun(), "upgrade", "--socket", &socket]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(6), "{said}");
            assert!(said.contains("does not take the configuration"), "{said}");
            assert!(said.contains("policy.yaml:1:"), "{said}");
            assert_eq!(rig.status("client").unwrap()["run"], run);
            drop(client);
        },
    );
}

#[test]
fn what_a_service_manager_keeps_is_nobody_s_to_flush_and_loses_no_packet() {
    in_namespaces(
        "upgrade::what_a_service_manager_keeps_is_nobody_s_to_flush_and_loses_no_packet",
        |rig| {
            rig.standard(STRICT);
            let server = rig.start("server");
            let echo = Echo::start("server", PORT);
            let mut manager = Manager::new(&rig, "client", "no");
            assert_eq!(manager.tell("start"), "ready");
            let capture = Capture::start();
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            }
            let talks = Talks::start(20);
            talks.go_on(5);
            let good = rig.host_state("client").contains("chain guard");
            assert!(good);
            for how in ["kill", "term", "kill"] {
                assert_eq!(manager.tell(how), "ended tun udp nft", "{how}");
                // no daemon runs, and still nobody else can change the table
                rig.on(
                    "client",
                    &[
                        "sh",
                        "-ec",
                        "nft flush ruleset; ! nft delete table inet identun",
                    ],
                );
                assert!(rig.host_state("client").contains("chain guard"));
                // what applications send meanwhile waits in the TUN
                let before = echo.datagrams();
                let sent = in_namespace("client", || {
                    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
                    (0..100)
                        .filter(|_| socket.send_to(MARKER, (SERVER_4, PORT)).is_ok())
                        .count() as u64
                });
                assert_eq!(sent, 100);
                assert_eq!(manager.tell("start"), "ready");
                wait_for("the packets that waited", || {
                    echo.datagrams() >= before + sent
                });
                talks.go_on(5);
                talks.tell(how);
            }
            talks.stop();
            control("client");
            capture.stop().assert_no_plaintext();
            assert_eq!(rig.status("client").unwrap()["healthy"], true);

            // other settings, which the kept descriptors do not fit
            assert!(manager.tell("term").starts_with("ended"));
            rig.configure("client", &["client"], "shards: 2\nlisten: { port: 15008 }");
            assert_eq!(manager.tell("start"), "ready");
            for to in [SERVER_4, SERVER_6] {
                tcp_echo("client", (to, PORT), PATIENCE).unwrap();
            }
            assert_eq!(manager.tell("kill"), "ended nft tun tun udp udp");
            assert_eq!(manager.tell("start"), "ready");
            tcp_echo("client", (SERVER_4, PORT), PATIENCE).unwrap();

            // `down` through the daemon: nothing is kept, nothing is left
            rig.identun("client", &["down", "--config", &rig.settings("client")]);
            assert!(!rig.host_state("client").contains("identun"));
            drop((manager, server));
        },
    );
}
