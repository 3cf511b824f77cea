//! `identun diff`: which flows end differently under other files. Needs no daemon and no root.

use std::{
    convert::Infallible,
    io::Write,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::json;

use crate::{
    cli::{
        Exit, Failure, Format,
        outcomes::{Stories, word},
        policies::PolicySet,
        table::{table, wrap},
    },
    daemon::{
        configuration::load_settings, flowlog::view::DecisionView, render::plural,
        settings::Settings, status::API_VERSION,
    },
    policy::{
        HostFacts, MeshSettings, Mode,
        compare::{Comparison, Effect, Mentioned, ModeChange, Row, compare},
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun diff policies.d policies.new
  identun diff mesh.yaml,permissive.yaml strict.yaml
  identun diff --old mesh.yaml a.yaml --new mesh.yaml b.yaml -o json")]
pub(super) struct Arguments {
    /// Files or folders, several with commas between
    #[arg(value_name = "OLD", required_unless_present = "old_files")]
    old: Option<Paths>,
    /// The same for the other side
    #[arg(value_name = "NEW", required_unless_present = "new_files")]
    new: Option<Paths>,
    /// Files or folders of the old side
    #[arg(long = "old", value_name = "PATH", num_args = 1.., requires = "new_files", conflicts_with = "old")]
    old_files: Vec<PathBuf>,
    /// Files or folders of the new side
    #[arg(long = "new", value_name = "PATH", num_args = 1.., requires = "old_files")]
    new_files: Vec<PathBuf>,
    /// Settings of the mesh (trust domain, default mode ...), for both sides
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How many flows are compared at most
    #[arg(long, value_name = "COUNT", default_value_t = 500_000)]
    limit: usize,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// One argument that names several.
#[derive(Clone, Debug)]
struct Paths(Vec<PathBuf>);

impl FromStr for Paths {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.split(',').map(PathBuf::from).collect()))
    }
}

/// Exit code 1: something differs.
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let mesh = mesh(arguments.config.as_deref())?;
    let side = |plain: Option<&Paths>, named: &[PathBuf]| {
        let paths = plain.map_or(named, |paths| &paths.0);
        PolicySet::load(Path::new(""), paths, &mesh)
    };
    let mut old = side(arguments.old.as_ref(), &arguments.old_files)?;
    let mut new = side(arguments.new.as_ref(), &arguments.new_files)?;
    let borrowed = share_registry(&mut old, &mut new);
    let mut mentioned = Mentioned::default();
    mentioned.add(&old.resources);
    mentioned.add(&new.resources);
    let compile = |set: &PolicySet| set.compile(&mesh, HostFacts::default());
    let comparison = compare(
        &compile(&old)?,
        &compile(&new)?,
        &mentioned,
        arguments.limit,
    );
    match arguments.output {
        Format::Table => print(&comparison, borrowed, out)?,
        Format::Json => {
            let mut value = json!({
                "apiVersion": API_VERSION,
                "kind": "Difference",
                "complete": comparison.asked == comparison.questions,
            });
            let found = serde_json::to_value(&comparison)?;
            if let (Some(value), Some(found)) = (value.as_object_mut(), found.as_object()) {
                value.extend(found.clone());
            }
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(if comparison.is_empty() {
        Exit::Ok
    } else {
        Exit::No
    })
}

fn mesh(config: Option<&Path>) -> Result<MeshSettings, Failure> {
    let settings = config.map_or_else(|| Ok(Settings::default()), load_settings)?;
    Ok(settings.mesh())
}

/// Policies alone are compared over the other side's workloads and services. Tells which side lent them.
fn share_registry(old: &mut PolicySet, new: &mut PolicySet) -> Option<&'static str> {
    match (old.has_no_registry(), new.has_no_registry()) {
        (true, false) => {
            old.borrow_registry(new);
            Some("NEW")
        }
        (false, true) => {
            new.borrow_registry(old);
            Some("OLD")
        }
        (true, true) | (false, false) => None,
    }
}

fn print(
    comparison: &Comparison,
    borrowed: Option<&str>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    print_changes(&comparison.changes, out)?;
    print_modes(&comparison.modes, out)?;
    if let Some(lender) = borrowed {
        writeln!(
            out,
            "note: the workloads and services of {lender} count for both sides"
        )?;
    }
    if comparison.asked < comparison.questions {
        let text = format!(
            "only {} of {} flows were compared: `--limit` raises that",
            comparison.asked, comparison.questions
        );
        writeln!(out, "note: {}", wrap(&text, 6))?;
    }
    writeln!(out, "{}", summary(comparison))
}

fn print_changes(changes: &[Row], out: &mut dyn Write) -> std::io::Result<()> {
    let mut stories = Stories::default();
    let mut rows = Vec::new();
    for change in changes {
        let (old, new) = (
            DecisionView::from(change.old.clone()),
            DecisionView::from(change.new.clone()),
        );
        rows.push(vec![
            change.client.clone(),
            change.server.clone(),
            change.ports.join(", "),
            word(&old),
            word(&new),
            stories.mark(vec![("before", old), ("after", new)]),
        ]);
    }
    if rows.is_empty() {
        return Ok(());
    }
    let header = ["FROM", "TO", "PORTS", "BEFORE", "AFTER", "WHY"];
    writeln!(out, "{}", table(&header, rows))?;
    stories.print(out)?;
    writeln!(out)
}

fn print_modes(modes: &[ModeChange], out: &mut dyn Write) -> std::io::Result<()> {
    let word = |mode: Option<Mode>| {
        mode.map_or_else(|| "not in the mesh".to_owned(), |mode| mode.to_string())
    };
    let rows: Vec<_> = modes
        .iter()
        .map(|change| {
            let rule = change.new_rule.as_ref().or(change.old_rule.as_ref());
            vec![
                change.workload.clone(),
                word(change.old),
                word(change.new),
                rule.map(ToString::to_string).unwrap_or_default(),
            ]
        })
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    let header = ["WORKLOAD", "MODE BEFORE", "MODE AFTER", "BY"];
    writeln!(out, "{}\n", table(&header, rows))
}

fn summary(comparison: &Comparison) -> String {
    if comparison.is_empty() {
        return format!(
            "no differences ({} compared)",
            plural(comparison.asked, "flow")
        );
    }
    let effects = [
        Effect::NewlyRefused,
        Effect::NewlyPlaintext,
        Effect::NewlyEncrypted,
        Effect::NewlyAllowed,
    ];
    let mut words = Vec::new();
    for effect in effects {
        let changes = comparison.changes.iter();
        let count = changes.filter(|change| change.effect == effect).count();
        if count > 0 {
            words.push(format!("{count} {}", effect.text()));
        }
    }
    let mut text = plural(comparison.changes.len(), "difference");
    if !words.is_empty() {
        text = format!("{text}: {}", words.join(", "));
    }
    match comparison.modes.len() {
        0 => text,
        1 => format!("{text}; 1 workload has another mode"),
        count => format!("{text}; {count} workloads have another mode"),
    }
}
