//! The matcher against an independent judge on many small random meshes: the same reason for every flow, at every door.
//!
//! `IDENTUN_ORACLE_CASES` says how many meshes, `IDENTUN_ORACLE_SEED` with which seed (printed; a failure is found again
//! with the seed it names).
//!
//! That it can fail is tried by breaking the matcher by hand. Each of these is found within some thousand meshes: an
//! ALLOW policy in dry run closes its workload (`authorize.rs`, by action before `dry_run`); `notPorts` of an ALLOW rule
//! matches a packet without port; a client of the root namespace asks that namespace's public rules first (`rules.rs`);
//! of several services the laxest mode counts (`server.rs`); principals are not expanded by a sole trust domain alias.

#![expect(
    clippy::unwrap_used,
    reason = "a test input that does not parse ends the test"
)]
#![expect(clippy::print_stdout, reason = "a test's output is its log")]

#[path = "oracle/all.rs"]
mod oracle;

use std::{collections::BTreeMap, env, sync::Arc, thread};

use identun::policy::{ReasonCode, SourceFile, load::load};
use oracle::{
    check::{compare, compile, told},
    choices::Choices,
    generate,
    judge::decide,
    mutate::mutated,
    promise,
    registry::Known,
    text::yaml,
};

/// Questions per mesh.
const QUESTIONS: usize = 6;
const CASES: u64 = 100_000;
const SEED: u64 = 20_190_315;
const THREADS: u64 = 2;
/// Meshes as files.
const FILES: u64 = 2_000;
/// Files with accidents.
const ACCIDENTS: usize = 5_000;
/// Meshes from bytes.
const BYTES: usize = 5_000;

type Counts = BTreeMap<&'static str, u64>;

#[test]
fn the_matcher_decides_as_the_judge_does() {
    let setting = |name, default| {
        let text = env::var(name).ok();
        text.map_or(default, |text| text.parse().unwrap())
    };
    let cases = setting("IDENTUN_ORACLE_CASES", CASES);
    let seed = setting("IDENTUN_ORACLE_SEED", SEED);
    let counts = thread::scope(|scope| {
        let part = |first| move || run((first..cases).step_by(THREADS as usize), seed);
        let parts: Vec<_> = (0..THREADS).map(|first| scope.spawn(part(first))).collect();
        let mut counts = Counts::new();
        for part in parts {
            for (code, count) in part.join().unwrap() {
                *counts.entry(code).or_default() += count;
            }
        }
        counts
    });
    report(&counts, cases, seed);
}

/// The same meshes as a fuzzer finds them (`make fuzz`), for as long as a test may take.
#[test]
fn bytes_of_a_fuzzer_are_decided_alike() {
    let mut seed = Choices::Seed(SEED);
    for _ in 0..BYTES {
        let len = 64 + seed.below(1_024);
        let bytes: Vec<u8> = (0..len).map(|_| seed.below(256) as u8).collect();
        let (mesh, questions) = generate::mesh(&mut Choices::Bytes(&bytes), 2);
        let compiled = compile(&mesh).unwrap();
        for question in &questions {
            let judged = decide(&mesh.resources, &mesh.mesh, &mesh.facts, question);
            if compiled.decide(question).code != judged {
                panic!("{}", told(mesh, question));
            }
        }
    }
}

/// What the judge prints can be loaded and says the same, so the loader reads every kind as the matcher gets it.
#[test]
fn a_mesh_written_as_a_file_is_the_same_mesh() {
    for case in 0..FILES {
        let (mesh, _) = generate::mesh(&mut Choices::Seed(case), 0);
        let written = yaml(&mesh.resources);
        let file = Arc::new(SourceFile {
            name: "mesh.yaml".into(),
            text: written.clone(),
        });
        let (resources, findings) = load(&[file], &mesh.mesh);
        let resources = resources.unwrap_or_else(|| panic!("{written}{findings:#?}"));
        for (read, written) in yaml(&resources).lines().zip(written.lines()) {
            assert_eq!(read, written);
        }
        assert_eq!(yaml(&resources), written);
    }
}

/// `make fuzz` does the same for longer.
#[test]
fn files_with_accidents_are_taken_or_refused_with_a_place() {
    let mut choices = Choices::Seed(SEED);
    let mut seeds = vec![
        include_str!("../config/example/example-mesh.yaml").to_owned(),
        include_str!("../config/policies/permissive.yaml").to_owned(),
        include_str!("../config/policies/strict.yaml").to_owned(),
    ];
    for seed in 0..20 {
        seeds.push(yaml(
            &generate::mesh(&mut Choices::Seed(seed), 0).0.resources,
        ));
    }
    for _ in 0..ACCIDENTS {
        promise::keep(&mutated(&mut choices, &seeds));
    }
}

/// Every code and every outcome is met often enough to be believed.
fn report(counts: &Counts, cases: u64, seed: u64) {
    let total: u64 = counts.values().sum();
    println!("{cases} meshes, {total} flows, seed {seed}");
    let mut rare = Vec::new();
    for code in ReasonCode::ALL {
        let count = counts.get(code.as_str()).copied().unwrap_or(0);
        let share = count as f64 * 100.0 / total as f64;
        println!("{share:6.2} %  {:?} {code}", code.outcome());
        if count * 100 < total {
            rare.push(code.as_str());
        }
    }
    assert!(cases < 10_000 || rare.is_empty(), "less than 1 %: {rare:?}");
}

/// Judges every mesh of the row; ends the test at the first disagreement.
fn run(cases: impl Iterator<Item = u64>, seed: u64) -> Counts {
    let mut counts = Counts::new();
    for case in cases {
        let mut choices =
            Choices::Seed(seed.wrapping_add(case.wrapping_mul(0x5851_f42d_4c95_7f2d)));
        let (mesh, questions) = generate::mesh(&mut choices, QUESTIONS);
        let compiled = compile(&mesh).unwrap();
        let known = Known::new(&mesh.resources, &mesh.mesh, &mesh.facts);
        for question in &questions {
            match compare(&compiled, &known, question) {
                Ok(code) => *counts.entry(code.as_str()).or_default() += 1,
                Err(_) => panic!("case {case} of seed {seed}:\n{}", told(mesh, question)),
            }
        }
    }
    counts
}
