//! Instructions per packet of the hot paths, counted by callgrind, against the committed ones: `make bench-gate`.
//!
//! Instructions do not depend on what else the machine does, and show changes of a per cent. Only the rounds themselves
//! are counted, in a process for each hot path; the handshake and what warms up is not.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a program of its own that talks, and whose cases end when they cannot begin"
)]

#[path = "dataplane/cases.rs"]
mod cases;
#[path = "gate/committed.rs"]
mod committed;
#[path = "dataplane/packets.rs"]
mod packets;
#[path = "dataplane/world.rs"]
mod world;

use std::{
    env,
    process::{Command, ExitCode},
};

use cases::{CASES, Case, Round};
use committed::{Committed, Facts};

/// Packets until every pool has its size, and packets that are counted.
const WARM: u32 = 4_000;
const COUNTED: u32 = 10_000;
/// How far a figure may be from the committed one, in per cent.
const TOLERANCE: f64 = 3.0;

const ACCEPT: &str = "make bench-gate ACCEPT=1";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    let done = match *words {
        ["--facts"] => {
            println!("{}", committed::features());
            Ok(true)
        }
        ["--case", name] => {
            repeat(CASES.iter().find(|case| case.name == name).unwrap());
            Ok(true)
        }
        ["compare", ref words @ ..] => compare(words),
        ["accept"] => accept(),
        // `cargo bench` runs every bench.
        _ => {
            println!("instruction counts: `make bench-gate`");
            Ok(true)
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench-gate: {error}");
            ExitCode::from(2)
        }
    }
}

/// What callgrind runs.
fn repeat(case: &Case) {
    let mut round = (case.make)();
    for _ in 0..WARM.div_ceil(case.packets) {
        round.prepare();
        round.run();
    }
    for _ in 0..COUNTED.div_ceil(case.packets) {
        round.prepare();
        counted(round.as_mut());
    }
    round.check();
}

/// callgrind counts from here to the return; it knows this function by its name.
#[inline(never)]
fn counted(round: &mut dyn Round) {
    round.run();
}

/// Tells how today's figures differ from the committed ones; `false` when they do.
fn compare(words: &[&str]) -> Result<bool, String> {
    let committed = committed::read()?;
    let facts = facts()?;
    let is_chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let now = count(is_chosen)?;
    let changed = tell(&committed, &facts, &now);
    let is_gone = |name: &&String| is_chosen(name) && !now.iter().any(|(now, _)| now == name);
    let gone: Vec<_> = committed.figures.keys().filter(is_gone).collect();
    gone.iter().for_each(|name| println!("{name:22}  gone"));
    committed.facts.tell_differences(&facts);
    let changed = changed + gone.len();
    if changed > 0 {
        println!(
            "\n{changed} of {} hot paths are not within {TOLERANCE} % of benches/instructions.txt.\n\
             Not intended: docs/performance.md says how to see where they went.\n\
             Intended, or cheaper: `{ACCEPT}` writes today's figures; commit\n\
             them with the change and say in its message why.",
            now.len() + gone.len()
        );
    }
    Ok(changed == 0)
}

/// Makes today's figures the committed ones.
fn accept() -> Result<bool, String> {
    committed::write(&facts()?, &count(|_| true)?)?;
    println!("Written. Commit benches/instructions.txt with the change that explains it.");
    Ok(true)
}

fn facts() -> Result<Facts, String> {
    let (features, _) = under_valgrind(&["--tool=none"], &["--facts"])?;
    Ok(Facts::here(&features))
}

fn count(is_chosen: impl Fn(&str) -> bool) -> Result<Vec<(&'static str, f64)>, String> {
    let mut now = Vec::new();
    for case in CASES.iter().filter(|case| is_chosen(case.name)) {
        eprintln!("bench-gate: {} ...", case.name);
        now.push((case.name, instructions(case)?));
    }
    Ok(now)
}

/// Prints the table; how many figures are not as they should be.
fn tell(committed: &Committed, facts: &Facts, now: &[(&str, f64)]) -> usize {
    println!(
        "{:22}{:>10}{:>10}{:>10}  verdict",
        "instructions/packet", "committed", "now", "change"
    );
    let same_cpu = committed.facts.features == facts.features;
    let mut changed = 0;
    for &(name, now) in now {
        let known = committed.figures.get(name).copied();
        // Rounded, and with it no minus in front of zero.
        let change = known.map(|known| ((now / known - 1.0) * 1000.0).round() / 10.0 + 0.0);
        let (verdict, is_fine) = match change {
            _ if is_crypto(name) && !same_cpu => ("not compared: another CPU", true),
            None => ("new", false),
            Some(change) if change > TOLERANCE => ("DEARER", false),
            Some(change) if change < -TOLERANCE => ("CHEAPER", false),
            Some(_) => ("ok", true),
        };
        changed += usize::from(!is_fine);
        let known = known.map(|known| format!("{known:.1}")).unwrap_or_default();
        let change = change
            .map(|change| format!("{change:+.1} %"))
            .unwrap_or_default();
        println!("{name:22}{known:>10}{now:>10.1}{change:>10}  {verdict}");
    }
    changed
}

/// Sealing and opening run other code on other CPUs.
fn is_crypto(name: &str) -> bool {
    name.starts_with("seal") || name.starts_with("open")
}

fn instructions(case: &Case) -> Result<f64, String> {
    let options = [
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--collect-atstart=no",
        "--toggle-collect=*gate*counted*",
    ];
    let (_, said) = under_valgrind(&options, &["--case", case.name])?;
    let count = said.lines().find_map(|line| {
        let (_, count) = line.split_once("Collected : ")?;
        count.trim().parse::<u64>().ok()
    });
    let count = count.filter(|count| *count > 0);
    let count =
        count.ok_or_else(|| format!("callgrind counted nothing of {}:\n{said}", case.name))?;
    let packets = COUNTED.div_ceil(case.packets) * case.packets;
    Ok(count as f64 / f64::from(packets))
}

/// Runs this program under valgrind, which shows it a CPU of its own: AES-NI and AVX2 at most, never AVX-512 or VAES. What
/// it wrote to standard output and to standard error.
fn under_valgrind(options: &[&str], arguments: &[&str]) -> Result<(String, String), String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let output = Command::new("valgrind")
        .args(options)
        .arg(program)
        .args(arguments)
        // Neither code nor layout may depend on who runs it.
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap_or_default())
        .output()
        .map_err(|error| format!("cannot run valgrind: {error} (Debian: valgrind)"))?;
    let [out, err] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() {
        Ok((out, err))
    } else {
        Err(format!(
            "{} under valgrind: {}\n{err}",
            arguments.join(" "),
            output.status
        ))
    }
}
