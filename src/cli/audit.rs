//! `identun audit`: who still speaks plaintext to whom, why, and what STRICT would do to it.

use std::{collections::BTreeMap, io::Write};

use serde::Serialize;
use serde_json::json;

use crate::{
    cli::{
        Context, Exit, Format,
        flows::{FlowSource, InForce, gaps, seconds_ago},
        outcomes::{Stories, outcome, word},
        table::{age, table, wrap},
    },
    daemon::{
        flowlog::{
            Way,
            view::{DecisionView, Direction, FlowLogView, FlowView},
        },
        render::plural,
        status::API_VERSION,
    },
    policy::{
        Compiled,
        compare::{Side, is_refused, make_strict},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun audit                        who still speaks plaintext?
  identun audit --since 1h -o json
  identun audit --flows saved.json     offline, from `GET /v1/flowlog`")]
pub(super) struct Arguments {
    /// Only what was seen in this time: 90s, 30m, 1h, 2d
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    since: Option<u64>,
    #[command(flatten)]
    source: FlowSource,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Flows in the clear between two workloads on one port.
#[derive(Debug, Serialize)]
struct Pair {
    source: String,
    destination: String,
    port: String,
    direction: Direction,
    forwarded: bool,
    connections: u64,
    last_seen_seconds: u64,
    /// What policy in force says.
    decision: DecisionView,
    /// What it would say if every mode were STRICT; absent where that cannot be told.
    strict: Option<DecisionView>,
    breaks_under_strict: bool,
}

/// Everything that the command tells.
struct Report {
    pairs: Vec<Pair>,
    breaking: usize,
    /// Why nothing is known of STRICT.
    unknown: Option<String>,
    gaps: Vec<String>,
}

/// Exit code 1: somebody speaks plaintext.
pub(super) fn run(
    arguments: &Arguments,
    context: &Context,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let log = arguments.source.read(context)?;
    let report = report(&log, arguments.since);
    match arguments.output {
        Format::Table => print(&report, out)?,
        Format::Json => print_json(&report, arguments.since, out)?,
    }
    Ok(if report.pairs.is_empty() {
        Exit::Ok
    } else {
        Exit::No
    })
}

fn report(log: &FlowLogView, since: Option<u64>) -> Report {
    let strict = strict(log);
    let mut pairs: BTreeMap<_, Pair> = BTreeMap::new();
    for flow in &log.flows {
        let is_late = since.is_some_and(|since| seconds_ago(log, flow) > since);
        if flow.way == Way::Plaintext && !is_late {
            let pair = pair(log, flow, strict.as_ref().ok());
            let key = (
                pair.source.clone(),
                pair.destination.clone(),
                pair.port.clone(),
                (pair.decision.clone(), pair.strict.clone()),
            );
            pairs
                .entry(key)
                .and_modify(|known| {
                    known.connections += pair.connections;
                    known.last_seen_seconds = known.last_seen_seconds.min(pair.last_seen_seconds);
                })
                .or_insert(pair);
        }
    }
    let mut pairs: Vec<_> = pairs.into_values().collect();
    pairs.sort_by_key(|pair| (!pair.breaks_under_strict, pair.last_seen_seconds));
    Report {
        breaking: pairs.iter().filter(|pair| pair.breaks_under_strict).count(),
        pairs,
        unknown: strict.err().map(|error| format!("{error:#}")),
        gaps: gaps(log),
    }
}

/// The policy in force with every mode STRICT, from the files that the daemon names.
fn strict(log: &FlowLogView) -> anyhow::Result<Compiled> {
    let mut in_force = InForce::new(log, None)?;
    let mut set = in_force.load()?;
    make_strict(&mut set.resources, &mut in_force.mesh);
    Ok(set.compile(&in_force.mesh, log.host.clone().into())?)
}

fn pair(log: &FlowLogView, flow: &FlowView, strict: Option<&Compiled>) -> Pair {
    let strict = strict.map(|strict| DecisionView::from(Side::of(strict, &flow.question())));
    let breaks = |strict: &DecisionView| {
        let is_allowed = outcome(&flow.decision).is_some_and(|outcome| !is_refused(outcome));
        is_allowed && outcome(strict).is_some_and(is_refused)
    };
    Pair {
        source: flow.source.name(),
        destination: flow.destination.name(),
        port: flow.port_name(),
        direction: flow.direction,
        forwarded: flow.forwarded,
        connections: flow.connections,
        last_seen_seconds: seconds_ago(log, flow),
        decision: flow.decision.clone(),
        breaks_under_strict: strict.as_ref().is_some_and(breaks),
        strict,
    }
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let mut stories = Stories::default();
    let rows: Vec<_> = report
        .pairs
        .iter()
        .map(|pair| row(pair, &mut stories))
        .collect();
    if !rows.is_empty() {
        let header = [
            "FROM", "TO", "PORT", "SEEN AS", "CONNS", "LAST", "STRICT", "WHY",
        ];
        writeln!(out, "{}", table(&header, rows))?;
        stories.print(out)?;
        writeln!(out)?;
    }
    for gap in &report.gaps {
        writeln!(out, "note: {}", wrap(gap, 6))?;
    }
    if let Some(why) = &report.unknown {
        writeln!(out, "note: what STRICT would do cannot be told:\n{why}")?;
    }
    let count = plural(report.pairs.len(), "pair");
    match (report.pairs.len(), &report.unknown) {
        (0, _) => writeln!(out, "nobody speaks plaintext"),
        (1, None) => writeln!(
            out,
            "{count} still speaks plaintext; {} would break under STRICT",
            report.breaking
        ),
        (_, None) => writeln!(
            out,
            "{count} still speak plaintext; {} would break under STRICT",
            report.breaking
        ),
        (1, Some(_)) => writeln!(out, "{count} still speaks plaintext"),
        (_, Some(_)) => writeln!(out, "{count} still speak plaintext"),
    }
}

fn row(pair: &Pair, stories: &mut Stories) -> Vec<String> {
    let mut story = vec![("now", pair.decision.clone())];
    story.extend(pair.strict.clone().map(|strict| ("STRICT", strict)));
    let strict = match &pair.strict {
        None => "?".into(),
        Some(_) if pair.breaks_under_strict => "breaks".into(),
        Some(strict) => word(strict),
    };
    vec![
        pair.source.clone(),
        pair.destination.clone(),
        pair.port.clone(),
        pair.direction.as_str().into(),
        pair.connections.to_string(),
        age(pair.last_seen_seconds),
        strict,
        stories.mark(story),
    ]
}

fn print_json(report: &Report, since: Option<u64>, out: &mut dyn Write) -> std::io::Result<()> {
    let value = json!({
        "apiVersion": API_VERSION,
        "kind": "Audit",
        "since_seconds": since,
        "pairs": report.pairs,
        "plaintext_pairs": report.pairs.len(),
        "break_under_strict": report.breaking,
        "strict_unknown": report.unknown,
        "gaps": report.gaps,
    });
    writeln!(out, "{value:#}")
}

/// `90s`, `30m`, `1h`, `2d`, as seconds.
fn seconds(text: &str) -> Result<u64, String> {
    let wanted = || "expected a number and s, m, h or d: 90s, 30m, 1h, 2d".to_owned();
    let unit = text.chars().next_back().ok_or_else(wanted)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wanted()),
    };
    let number = text.strip_suffix(unit).unwrap_or_default();
    let number: u64 = number.parse().map_err(|_| wanted())?;
    number.checked_mul(factor).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let cases = [("90s", 90), ("30m", 1_800), ("1h", 3_600), ("2d", 172_800)];
        for (text, wanted) in cases {
            assert_eq!(seconds(text), Ok(wanted));
        }
        for bad in [
            "",
            "h",
            "1",
            "1w",
            "-1h",
            "1.5h",
            "99999999999999999999s",
            "ä",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
