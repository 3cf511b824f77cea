//! TCP connections whose every byte is looked at.

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

use crate::{life::connect_to, mesh::BULK_PORT};

/// What is written at once: by who sends all the time, and by who is idle.
const CHUNK: usize = 8_192;
pub(crate) const WORD: usize = 64;

/// A connection of which one end sends all the time, or every end says a word now and then.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Download,
    Upload,
    Idle,
}

/// A connection, and how long its receiver waited at worst since somebody asked.
pub(crate) struct Connection {
    pub(crate) name: &'static str,
    /// No two connections carry the same bytes.
    salt: u64,
    stop: Arc<AtomicBool>,
    arrived: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
    threads: Vec<JoinHandle<usize>>,
}

impl Connection {
    /// Opens it from `client` to `to` on `server`.
    pub(crate) fn open(name: &'static str, to: &'static str, used: Use, clock: Instant) -> Self {
        let (client, server) = connect_to(to, BULK_PORT);
        let salted = salt(client.local_addr().unwrap());
        let (from, into) = match used {
            Use::Download => (server, client),
            Use::Upload | Use::Idle => (client, server),
        };
        let mut connection = Self {
            name,
            salt: salted,
            stop: Arc::default(),
            arrived: Arc::default(),
            longest: Arc::default(),
            last: Arc::default(),
            threads: Vec::new(),
        };
        connection.threads = vec![connection.write(from, used), connection.read(into, clock)];
        connection
    }

    /// Returns how much was sent.
    fn write(&self, mut stream: TcpStream, used: Use) -> JoinHandle<usize> {
        let (name, salt, stop) = (self.name, self.salt, Arc::clone(&self.stop));
        let (len, pause) = match used {
            Use::Idle => (WORD, Duration::from_millis(20)),
            Use::Download | Use::Upload => (CHUNK, Duration::from_millis(2)),
        };
        thread::spawn(move || {
            let mut at = 0;
            while !stop.load(Relaxed) {
                let chunk: Vec<u8> = (at..at + len).map(|at| content(salt, at)).collect();
                let sent = stream.write_all(&chunk);
                sent.unwrap_or_else(|error| panic!("{name}: after {at} bytes: {error}"));
                at += len;
                thread::sleep(pause);
            }
            at
        })
    }

    /// Returns how much has arrived at the end.
    fn read(&self, mut stream: TcpStream, clock: Instant) -> JoinHandle<usize> {
        let (name, salt, arrived) = (self.name, self.salt, Arc::clone(&self.arrived));
        let (longest, last) = (Arc::clone(&self.longest), Arc::clone(&self.last));
        // while a daemon is away there is nothing to read for as long as it takes
        stream.set_read_timeout(None).unwrap();
        thread::spawn(move || {
            let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
            loop {
                let len = match stream.read(&mut buffer) {
                    Ok(0) => return at,
                    Ok(len) => len,
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) => panic!("{name}: after {at} bytes: {error}"),
                };
                let is_right = buffer[..len]
                    .iter()
                    .copied()
                    .eq((at..at + len).map(|at| content(salt, at)));
                assert!(is_right, "{name}: wrong bytes after {at}");
                at += len;
                arrived.store(at as u64, Relaxed);
                let now = clock.elapsed().as_micros() as u64;
                longest.fetch_max(now - last.swap(now, Relaxed).min(now), Relaxed);
            }
        })
    }

    /// The longest wait since this was called last.
    pub(crate) fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Relaxed))
    }

    /// Bytes that arrived.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived.load(Relaxed)
    }

    /// Ends it; all that was sent has arrived then.
    pub(crate) fn stop(self) {
        self.stop.store(true, Relaxed);
        let ends = self.threads.into_iter().map(|one| one.join().unwrap());
        let ends: Vec<_> = ends.collect();
        assert_eq!(ends[0], ends[1], "{}: sent and arrived", self.name);
    }
}

/// What makes a stream's bytes its own.
pub(crate) fn salt(of: impl std::hash::Hash) -> u64 {
    use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(of)
}

/// The byte at a place of a stream.
pub(crate) fn content(salt: u64, at: usize) -> u8 {
    let word = (at as u64 / 8)
        .wrapping_add(salt)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word.to_le_bytes()[3 + at % 5] ^ at as u8
}
