//! A hundred deaths: nothing leaks, and every connection goes on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    capture::Capture,
    life::connect,
    manager::{Manager, unit_setting},
    mesh::{CLIENT_4, CLIENT_6, SERVER_4, SERVER_6, STRICT},
    rig::{Rig, in_namespaces, wait_for},
    traffic::{Blaster, control},
};

/// Kills unless `IDENTUN_KILLS` says otherwise (`make kills`: a hundred), and must packets that are offered in each at least.
const DEFAULT: u64 = 10;
const PACKETS_A_KILL: u64 = 1_000;
/// What is written at once: by who sends all the time, and by who is idle.
const CHUNK: usize = 8_192;
const WORD: usize = 64;
/// Where blasters aim; nobody listens there.
const BLASTED: u16 = 8_081;

/// A connection of which one end sends all the time, or every end says a word now and then.
#[derive(Clone, Copy, Debug)]
enum Use {
    Download,
    Upload,
    Idle,
}

/// A connection, and how long its receiver waited at worst since somebody asked.
struct Connection {
    name: &'static str,
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Connection {
    fn open(name: &'static str, to: &'static str, used: Use, clock: Instant) -> Self {
        let (client, server) = connect(to);
        let (from, into) = match used {
            Use::Download => (server, client),
            Use::Upload | Use::Idle => (client, server),
        };
        let mut connection = Self {
            name,
            stop: Arc::default(),
            arrived: Arc::default(),
            longest: Arc::default(),
            last: Arc::default(),
            threads: Vec::new(),
        };
        let pause = Duration::from_millis(if matches!(used, Use::Idle) { 20 } else { 2 });
        connection.threads = vec![connection.write(from, pause), connection.read(into, clock)];
        connection
    }

    fn write(&self, mut stream: TcpStream, pause: Duration) -> JoinHandle<()> {
        let stop = Arc::clone(&self.stop);
        let len = if pause > Duration::from_millis(10) {
            64
        } else {
            CHUNK
        };
        thread::spawn(move || {
            let mut at = 0;
            while !stop.load(Relaxed) {
                let chunk: Vec<u8> = (at..at + len).map(content).collect();
                stream.write_all(&chunk).unwrap();
                at += len;
                thread::sleep(pause);
            }
        })
    }

    fn read(&self, mut stream: TcpStream, clock: Instant) -> JoinHandle<()> {
        let (name, arrived) = (self.name, Arc::clone(&self.arrived));
        let (longest, last) = (Arc::clone(&self.longest), Arc::clone(&self.last));
        // while a daemon is away there is nothing to read for as long as it takes
        stream.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
            loop {
                let len = match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => panic!("{name}: after {at} bytes: {error}"),
                };
                let is_right = buffer[..len]
                    .iter()
                    .copied()
                    .eq((at..at + len).map(content));
                assert!(is_right, "{name}: wrong bytes after {at}");
                at += len;
                arrived.store(at as u64, Relaxed);
                let now = clock.elapsed().as_micros() as u64;
                longest.fetch_max(now - last.swap(now, Relaxed).min(now), Relaxed);
            }
        })
    }

    /// The longest wait since this was called last.
    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Relaxed))
    }

    fn stop(self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// The byte at this place of every stream.
fn content(at: usize) -> u8 {
    let word = (at as u64 / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    word.to_le_bytes()[at % 8 / 2] ^ at as u8
}

fn kills() -> u64 {
    std::env::var("IDENTUN_KILLS").map_or(DEFAULT, |count| count.parse().unwrap())
}

#[test]
fn every_connection_outlives_every_kill_and_nothing_leaks() {
    in_namespaces(
        "kills::every_connection_outlives_every_kill_and_nothing_leaks",
        |rig| {
            rig.standard(STRICT);
            let restart = unit_setting("RestartSec");
            let mut managers = ["client", "server"].map(|host| Manager::new(&rig, host, restart));
            managers.iter_mut().for_each(Manager::start);
            let capture = Capture::start();
            let blasters = [
                Blaster::start("client", [SERVER_4, SERVER_6], BLASTED),
                Blaster::start("server", [CLIENT_4, CLIENT_6], BLASTED),
            ];
            let clock = Instant::now();
            let mut waits = Vec::new();
            for turn in 0..kills() {
                waits.extend(one_kill(&rig, &mut managers, &blasters, turn, clock));
            }
            tell(&mut waits);
            control("client");
            let offered: u64 = blasters.iter().map(Blaster::offered).sum();
            blasters.into_iter().for_each(Blaster::stop);
            let seen = capture.stop();
            println!(
                "{} kills, {offered} must packets offered; wire: {} tunnel, {} control, {} other packets",
                kills(),
                seen.tunnel,
                seen.control,
                seen.plaintext + seen.resets
            );
            assert!(offered >= kills() * PACKETS_A_KILL, "{offered}");
            seen.assert_no_plaintext();
            let deaths: u64 = managers.iter_mut().map(Manager::deaths).sum();
            assert_eq!(deaths, kills());
        },
    );
}

/// One daemon dies under three connections, its host alternately the client and the server; how long each waited.
fn one_kill(
    rig: &Rig,
    managers: &mut [Manager; 2],
    blasters: &[Blaster; 2],
    turn: u64,
    clock: Instant,
) -> Vec<Duration> {
    let to = if (turn / 2).is_multiple_of(2) {
        SERVER_4
    } else {
        SERVER_6
    };
    let open = |name, used| Connection::open(name, to, used, clock);
    let connections = [
        open("download", Use::Download),
        open("upload", Use::Upload),
        open("idle", Use::Idle),
    ];
    let go_on = |what: &str| {
        for connection in &connections {
            let goal = connection.arrived.load(Relaxed) + 10 * WORD as u64;
            wait_for(&format!("{} {what}", connection.name), || {
                connection.arrived.load(Relaxed) > goal
            });
        }
    };
    go_on("before the kill");
    for connection in &connections {
        connection.take_longest();
    }
    let victim = (turn % 2) as usize;
    managers[victim].kill_9();
    blasters
        .iter()
        .for_each(|one| one.offer(PACKETS_A_KILL / 2));
    let host = ["client", "server"][victim];
    wait_for("the daemon", || rig.status(host).is_some());
    go_on("after the kill");
    let waits = connections.iter().map(Connection::take_longest).collect();
    connections.into_iter().for_each(Connection::stop);
    waits
}

fn tell(waits: &mut [Duration]) {
    waits.sort_unstable();
    let at = |percent: usize| waits[(waits.len() * percent / 100).min(waits.len() - 1)].as_millis();
    println!(
        "{} connections outlived a kill; longest wait of each: median {} ms, p95 {} ms, most {} ms",
        waits.len(),
        at(50),
        at(95),
        at(100)
    );
}
