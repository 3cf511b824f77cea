//! A hundred deaths: nothing leaks, and every connection goes on.

use std::time::{Duration, Instant};

use crate::{
    capture::Capture,
    manager::{Manager, unit_setting},
    mesh::{CLIENT_4, CLIENT_6, SERVER_4, SERVER_6, STRICT},
    rig::{Rig, in_namespaces, wait_for},
    streams::{Connection, Use, WORD},
    traffic::{Blaster, control},
};

/// Kills unless `IDENTUN_KILLS` says otherwise (`make kills`: a hundred), and must packets that are offered in each at least.
const DEFAULT: u64 = 10;
const PACKETS_A_KILL: u64 = 1_000;
/// Where blasters aim; nobody listens there.
const BLASTED: u16 = 8_081;

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
            let goal = connection.arrived() + 10 * WORD as u64;
            wait_for(&format!("{} {what}", connection.name), || {
                connection.arrived() > goal
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
