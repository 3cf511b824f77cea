//! `identun what-if`: what other policy files would do to the flows that were really seen.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::bail;
use serde::Serialize;
use serde_json::json;

use crate::{
    cli::{
        Context, Exit, Format,
        flows::{FlowSource, InForce, gaps},
        outcomes::{Stories, outcome, word},
        policies::PolicySet,
        table::{table, wrap},
    },
    daemon::{
        flowlog::view::{DecisionView, FlowLogView, FlowView},
        render::plural,
        status::API_VERSION,
    },
    policy::{
        Compiled,
        compare::{Effect, Side},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun what-if strict.yaml             who would break under these policies?
  identun what-if --add deny-b.yaml       ... with one more, or in place of one
  identun what-if new.d --flows saved.json -o json")]
pub(super) struct Arguments {
    /// Policy files or folders, in place of those in force; without workloads and services, those in force stay
    #[arg(value_name = "FILES", required = true)]
    files: Vec<PathBuf>,
    /// Add FILES to those in force; a resource replaces its namesake
    #[arg(long)]
    add: bool,
    /// Take settings and policy files from here, not from the daemon
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    source: FlowSource,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Flows that would end differently.
#[derive(Debug, Serialize)]
struct Changed {
    source: String,
    destination: String,
    port: String,
    connections: u64,
    effect: Effect,
    old: DecisionView,
    new: DecisionView,
}

/// Everything that the command tells.
#[derive(Default)]
struct Report {
    changes: Vec<Changed>,
    /// Entries of the flow log by what becomes of them.
    effects: BTreeMap<Effect, usize>,
    gaps: Vec<String>,
    kept_registry: bool,
}

/// Exit code 1: something that works would be refused.
pub(super) fn run(
    arguments: &Arguments,
    context: &Context,
    out: &mut dyn Write,
) -> anyhow::Result<Exit> {
    let log = arguments.source.read(context)?;
    let in_force = InForce::new(&log, arguments.config.as_deref())?;
    let mut new = PolicySet::load(Path::new(""), &arguments.files, &in_force.mesh)?;
    let kept_registry = !arguments.add && new.has_no_registry();
    if arguments.add {
        new = in_force.load()?.with(new);
    } else if kept_registry {
        new.borrow_registry(&in_force.load()?);
    }
    let compiled = new.compile(&in_force.mesh, log.host.clone().into())?;
    let mut report = report(&log, &compiled)?;
    report.kept_registry = kept_registry;
    match arguments.output {
        Format::Table => print(&report, out)?,
        Format::Json => print_json(&report, out)?,
    }
    let breaks = report.effects.contains_key(&Effect::NewlyRefused);
    Ok(if breaks { Exit::No } else { Exit::Ok })
}

fn report(log: &FlowLogView, new: &Compiled) -> anyhow::Result<Report> {
    let mut report = Report {
        gaps: gaps(log),
        ..Report::default()
    };
    let mut changes: BTreeMap<_, Changed> = BTreeMap::new();
    for flow in &log.flows {
        let changed = changed(flow, new)?;
        *report.effects.entry(changed.effect).or_default() += 1;
        if changed.old.outcome == changed.new.outcome {
            continue;
        }
        let key = (
            (changed.effect, changed.source.clone()),
            (changed.destination.clone(), changed.port.clone()),
            (changed.old.clone(), changed.new.clone()),
        );
        changes
            .entry(key)
            .and_modify(|known| known.connections += changed.connections)
            .or_insert(changed);
    }
    report.changes = changes.into_values().collect();
    Ok(report)
}

fn changed(flow: &FlowView, policy: &Compiled) -> anyhow::Result<Changed> {
    let old = flow.decision.clone();
    let side = Side::of(policy, &flow.question());
    let Some(before) = outcome(&old) else {
        bail!(
            "the flow log knows an outcome `{}` that this program does not; are both of one version?",
            old.outcome
        );
    };
    Ok(Changed {
        source: flow.source.name(),
        destination: flow.destination.name(),
        port: flow.port_name(),
        connections: flow.connections,
        effect: Effect::of(before, side.outcome),
        old,
        new: side.into(),
    })
}

fn print(report: &Report, out: &mut dyn Write) -> std::io::Result<()> {
    let mut stories = Stories::default();
    let mut rows = Vec::new();
    for change in &report.changes {
        rows.push(vec![
            change.source.clone(),
            change.destination.clone(),
            change.port.clone(),
            word(&change.old),
            word(&change.new),
            change.connections.to_string(),
            stories.mark(vec![
                ("before", change.old.clone()),
                ("after", change.new.clone()),
            ]),
        ]);
    }
    if !rows.is_empty() {
        let header = ["FROM", "TO", "PORT", "BEFORE", "AFTER", "CONNS", "WHY"];
        writeln!(out, "{}", table(&header, rows))?;
        stories.print(out)?;
        writeln!(out)?;
    }
    for gap in &report.gaps {
        writeln!(out, "note: {}", wrap(gap, 6))?;
    }
    if report.kept_registry {
        writeln!(
            out,
            "note: the files name no workload and no service: those in force stay"
        )?;
    }
    let words: Vec<_> = report
        .effects
        .iter()
        .map(|(effect, count)| format!("{count} {}", effect.text()))
        .collect();
    let seen = plural(report.effects.values().sum(), "pair");
    match words.is_empty() {
        true => writeln!(out, "no flow was seen yet: nothing can be told"),
        false => writeln!(out, "{seen} seen: {}", words.join(", ")),
    }
}

fn print_json(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let value = json!({
        "apiVersion": API_VERSION,
        "kind": "WhatIf",
        "changes": report.changes,
        "summary": report.effects,
        "gaps": report.gaps,
        "kept_registry": report.kept_registry,
    });
    writeln!(out, "{value:#}")?;
    Ok(())
}
