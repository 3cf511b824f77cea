//! The hot paths of the data plane, two shards with a real TLS session included: nanoseconds and allocations per packet.
//!
//! A round is many packets; figures are per packet. `cargo bench --bench dataplane -- seal` runs those with the word.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench that cannot begin ends, and tells figures that criterion has no place for"
)]

#[path = "dataplane/cases.rs"]
mod cases;
#[path = "dataplane/count.rs"]
mod count;
#[path = "dataplane/packets.rs"]
mod packets;
#[path = "dataplane/world.rs"]
mod world;

use std::time::{Duration, Instant};

use cases::{CASES, Case};
use criterion::{Criterion, criterion_group, criterion_main};

/// Packets after which every pool has its size, and packets that are counted.
const WARM: u32 = 20_000;
const COUNTED: u32 = 20_000;
/// Rounds whose allocations are named.
const TRACED: u32 = 4;

fn dataplane(criterion: &mut Criterion) {
    for case in CASES {
        let mut allocations = None;
        criterion.bench_function(case.name, |bencher| {
            let mut round = (case.make)();
            for _ in 0..WARM.div_ceil(case.packets) {
                round.prepare();
                round.run();
            }
            allocations.get_or_insert_with(|| count_allocations(case, round.as_mut()));
            bencher.iter_custom(|rounds| {
                let mut busy = Duration::ZERO;
                for _ in 0..rounds {
                    round.prepare();
                    let start = Instant::now();
                    round.run();
                    busy += start.elapsed();
                }
                round.check();
                busy / case.packets
            });
        });
        if let Some(allocations) = allocations {
            println!("{allocations}");
        }
    }
}

/// Allocations of a packet, and who makes them.
fn count_allocations(case: &Case, round: &mut dyn cases::Round) -> String {
    let rounds = COUNTED.div_ceil(case.packets);
    let (mut allocations, mut bytes) = (0, 0);
    for _ in 0..rounds {
        round.prepare();
        let count = count::counted(|| round.run());
        allocations += count.allocations;
        bytes += count.bytes;
    }
    let each = |sum: u64, rounds: u32| sum as f64 / f64::from(rounds * case.packets);
    let mut text = format!(
        "{:24}allocations: {:.3} per packet, {:.0} bytes",
        case.name,
        each(allocations, rounds),
        each(bytes, rounds)
    );
    for ((owner, function), times) in sites(round) {
        let times = each(times, TRACED);
        text += &format!("\n{:24}{times:.3} by {owner}: {function}", "");
    }
    text
}

/// Who allocates, most frequent first.
fn sites(round: &mut dyn cases::Round) -> Vec<((String, String), u64)> {
    let mut sites = std::collections::BTreeMap::new();
    for _ in 0..TRACED {
        round.prepare();
        for (site, times) in count::traced(|| round.run()) {
            *sites.entry(site).or_default() += times;
        }
    }
    let mut sites: Vec<_> = sites.into_iter().collect();
    sites.sort_by_key(|&(_, times)| std::cmp::Reverse(times));
    sites
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(20);
    targets = dataplane
}
criterion_main!(benches);
