//! Cut and join against an independent judge on many random scenes: what is cut is what Linux would have sent, and what
//! is joined is what went in. `make fuzz` does the same guided by coverage.
//!
//! `IDENTUN_SEGMENT_CASES` says how many scenes; a failure names its seed, and `IDENTUN_SEGMENT_SEED` begins there.

#![expect(
    dead_code,
    reason = "the choices serve other tests too, and not all of them are needed here"
)]

#[path = "segment/all.rs"]
mod segment;

use std::env;

use segment::{
    choices::Choices,
    scene::{Tally, play},
};

const CASES: u64 = 3_000;
const SEED: u64 = 1_981;

#[test]
fn what_is_cut_and_joined_is_what_was_sent() {
    let setting = |name, default| {
        let text = env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let first = setting("IDENTUN_SEGMENT_SEED", SEED);
    let mut sum = Tally::default();
    for seed in first..first + setting("IDENTUN_SEGMENT_CASES", CASES) {
        let played = std::panic::catch_unwind(|| play(&mut Choices::Seed(seed)));
        let tally = played.unwrap_or_else(|_| panic!("again with IDENTUN_SEGMENT_SEED={seed}"));
        sum.cut += tally.cut;
        sum.refused += tally.refused;
        sum.crossed += tally.crossed;
        sum.joined += tally.joined;
    }
    println!("{sum:?}");
    // A judge that sees nothing finds nothing.
    assert!(
        sum.cut > sum.refused && sum.joined > sum.crossed / 10,
        "{sum:?}"
    );
}
