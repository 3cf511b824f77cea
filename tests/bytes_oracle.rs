//! What strangers and peers send, against independent judges, on many random inputs. `make fuzz` does the same guided by
//! coverage.
//!
//! `IDENTUN_BYTES_CASES` says how many of each kind; a failure names its seed, and `IDENTUN_BYTES_SEED` begins there.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it has to be fails the test"
)]
#![expect(
    dead_code,
    reason = "the choices serve other tests too, and not all of them are needed here"
)]

#[path = "bytes/admin.rs"]
mod admin;
#[path = "bytes/capsule.rs"]
mod capsule;
#[path = "bytes/certificate/scene.rs"]
mod certificate;
#[path = "bytes/datagram/scene.rs"]
mod datagram;
#[path = "segment/all.rs"]
mod segment;

use std::env;

use segment::choices::{self, Choices};

const SEED: u64 = 1_987;

/// Plays many cases, each told by its seed.
fn cases<T>(cases: u64, play: fn(&mut Choices<'_>) -> T) -> impl Iterator<Item = T> {
    let setting = |name, default| {
        let text = env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let first = setting("IDENTUN_BYTES_SEED", SEED);
    (first..first + setting("IDENTUN_BYTES_CASES", cases)).map(move |seed| {
        let played = std::panic::catch_unwind(|| play(&mut Choices::Seed(seed)));
        played.unwrap_or_else(|_| panic!("again with IDENTUN_BYTES_SEED={seed}"))
    })
}

#[test]
fn a_control_stream_says_the_same_however_it_is_cut() {
    let (mut capsules, mut mistakes) = (0, 0);
    for tally in cases(20_000, capsule::play) {
        capsules += tally.capsules;
        mistakes += tally.mistakes;
    }
    println!("{capsules} capsules, {mistakes} mistakes");
    assert!(capsules > 20_000 && mistakes > 2_000);
}

#[test]
fn datagrams_deliver_what_is_the_peers_to_send() {
    let mut sum = datagram::Tally::default();
    for tally in cases(3_000, datagram::play) {
        sum.datagrams += tally.datagrams;
        sum.joined += tally.joined;
        sum.delivered += tally.delivered;
        sum.refused += tally.refused;
    }
    println!("{sum:?}");
    assert!(sum.joined > 500 && sum.delivered > 5_000 && sum.refused > 1_000);
}

#[test]
fn what_is_accepted_of_changed_certificates_is_an_svid_of_its_trust_domain() {
    let mut sum = certificate::Tally::default();
    for tally in cases(20_000, certificate::play) {
        sum.accepted += tally.accepted;
        sum.refused += tally.refused;
        sum.changed += tally.changed;
    }
    println!("{sum:?}");
    assert!(sum.changed > 500 && sum.accepted > 3_000 && sum.refused > 5_000);
}

#[test]
fn the_admin_socket_asks_what_the_first_line_says_and_nothing_else() {
    let mut sum = admin::Tally::default();
    for tally in cases(4_000, admin::play) {
        sum.asked += tally.asked;
        sum.refused += tally.refused;
        sum.changes += tally.changes;
    }
    println!("{sum:?}");
    assert!(sum.asked > 100 && sum.refused > 1_000 && sum.changes > 20);
}
