//! One peer that is sent far more than its share, alive and dead (steering.md D6).

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use crate::{
    capture::force_buffer,
    mesh::{CLIENT_4, NAKED_4, PORT, STRICT, registry, service, workload},
    rig::{Rig, in_namespace, in_namespaces, wait_for},
};

/// A host of the rig with a third workload.
const IMPOSTOR_4: &str = "198.18.4.2";
/// Who gets a datagram now and then, beside the greedy one.
const OTHERS: [(&str, &str); 2] = [("naked", NAKED_4), ("impostor", IMPOSTOR_4)];
const GREEDY: (&str, &str) = ("client", CLIENT_4);
/// Datagrams for each of the others, and how many of them are enough.
const COUNT: u64 = 500;
const ENOUGH: u64 = COUNT * 95 / 100;
/// So many go to the greedy one for one to each of the others: more than the line carries, which has room for the others.
const GREED: u64 = 10;
const PACE: Duration = Duration::from_millis(4);
/// What does not fit waits in the daemon, not in the line.
const LINE: &str = "rate 10mbit burst 16kb limit 4mb";

#[test]
fn who_is_sent_ten_times_as_much_takes_nothing_from_the_others() {
    in_namespaces(
        "hostile::greedy::who_is_sent_ten_times_as_much_takes_nothing_from_the_others",
        |rig| {
            rig.standard(STRICT);
            let registry = [
                registry(),
                workload("naked-4", NAKED_4, "naked", None),
                workload("impostor-4", IMPOSTOR_4, "impostor", None),
                service("naked", &[PORT]),
                service("impostor", &[PORT]),
            ];
            rig.write("policies/registry.yaml", &registry.join("---\n"));
            for (host, _) in OTHERS {
                rig.configure(host, &[host], "");
            }
            let daemons = ["server", "client", "naked", "impostor"].map(|host| rig.start(host));
            let others = OTHERS.map(Sink::start);
            let greedy = Sink::start(GREEDY);
            let sender = in_namespace("server", || UdpSocket::bind(("0.0.0.0", 0)).unwrap());
            for (sink, (_, to)) in others.iter().zip(OTHERS).chain([(&greedy, GREEDY)]) {
                wait_for("the tunnel", || {
                    sender.send_to(&[0; 1_000], (to, PORT)).unwrap();
                    sink.received() > 0
                });
            }
            let shape = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf"];
            let line: Vec<_> = LINE.split(' ').collect();
            rig.on("server", &[&shape[..], &line].concat());
            wait_for("quiet", || is_quiet(&others));

            let before = greedy.received();
            others_get_theirs(&sender, &others);
            let got = greedy.received() - before;
            println!("the greedy one: {got} of {}", GREED * COUNT);
            assert!(
                got < GREED * COUNT * 3 / 4,
                "the line had room for all of it"
            );
            assert!(queue_losses(&rig) > 0, "nothing waited in the daemon");

            // and when its queue stands still
            rig.on("wire", &["ip", "link", "set", GREEDY.0, "down"]);
            others_get_theirs(&sender, &others);
            drop(daemons);
        },
    );
}

/// Nothing is under way to them any more.
fn is_quiet(sinks: &[Sink; 2]) -> bool {
    let received = || [0, 1].map(|index| sinks[index].received());
    let before = received();
    thread::sleep(25 * PACE);
    received() == before
}

/// Sends to all, and waits for what must arrive.
fn others_get_theirs(sender: &UdpSocket, others: &[Sink; 2]) {
    let before = [0, 1].map(|index| others[index].received());
    for _ in 0..COUNT {
        for _ in 0..GREED {
            sender.send_to(&[1; 1_000], (GREEDY.1, PORT)).unwrap();
        }
        for (_, to) in OTHERS {
            sender.send_to(&[2; 1_000], (to, PORT)).unwrap();
        }
        thread::sleep(PACE);
    }
    wait_for("quiet", || is_quiet(others));
    for (index, (host, _)) in OTHERS.into_iter().enumerate() {
        let arrived = others[index].received() - before[index];
        println!("{host}: {arrived} of {COUNT}");
        assert!(arrived >= ENOUGH, "{host}: {arrived} of {COUNT}");
    }
}

/// Packets that the server's daemon lost because too many waited.
fn queue_losses(rig: &Rig) -> u64 {
    let status = rig.status("server").unwrap();
    let count = |reason: &str| status["drops"][reason].as_u64().unwrap_or_default();
    count("queue_full") + count("queue_delay")
}

/// Counts what arrives; lives as long as the test.
struct Sink(Arc<AtomicU64>);

impl Sink {
    fn start((host, address): (&'static str, &'static str)) -> Self {
        let socket = in_namespace(host, || UdpSocket::bind((address, PORT)).unwrap());
        force_buffer(&socket, 16 << 20);
        let count = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&count);
        thread::spawn(move || {
            while socket.recv(&mut [0; 2_048]).is_ok() {
                counted.fetch_add(1, Relaxed);
            }
        });
        Self(count)
    }

    fn received(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
