//! `identun analyze`: the findings of `check` as a gate for CI, with thresholds, suppressions and stdin.

use std::{io::Write, sync::Arc};

use clap::ValueEnum;
use serde_json::json;

use crate::{
    cli::{
        Exit,
        check::{Input, Report},
        table::table,
    },
    daemon::{
        render::{count, plural, render},
        status::API_VERSION,
    },
    policy::{
        Diagnostic, Severity, SourceFile,
        diagnostic::codes,
        load::{Owner, Owners},
        suppress::Suppression,
    },
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun analyze --config daemon.yaml
  identun analyze -S 'IDT0551=DestinationRule *.shop' policies.d
  identun analyze --failure-threshold warning -o log - < strict.yaml")]
pub(super) struct Arguments {
    #[command(flatten)]
    input: Input,
    /// The least severity that makes the exit code 1
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Error)]
    failure_threshold: Level,
    /// The least severity that is shown
    #[arg(long, value_enum, ignore_case = true, default_value_t = Level::Info)]
    output_threshold: Level,
    /// Leave out findings of CODE about a resource; * is any text
    #[arg(short = 'S', long, value_name = "CODE=Kind name.namespace")]
    suppress: Vec<Suppression>,
    /// List every code with its meaning, and look at no file
    #[arg(short = 'L', long)]
    list_analyzers: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Level {
    Info,
    Warning,
    Error,
}

impl From<Level> for Severity {
    fn from(level: Level) -> Self {
        match level {
            Level::Info => Self::Info,
            Level::Warning => Self::Warning,
            Level::Error => Self::Error,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people: each finding with its line and what to do
    #[default]
    Table,
    /// One line a finding
    Log,
    /// For programs; fields are only ever added
    Json,
}

/// Exit code 1: there are findings of the failure threshold or worse.
pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    if arguments.list_analyzers {
        return list(arguments.output, out);
    }
    let report = arguments.input.report();
    let analysis = Analysis::new(&report, arguments);
    match arguments.output {
        Format::Table => analysis.print(out)?,
        Format::Log => analysis.print_log(out)?,
        Format::Json => analysis.print_json(out)?,
    }
    Ok(analysis.exit())
}

/// A finding, and the resource that it is about.
struct Finding {
    diagnostic: Diagnostic,
    owner: Option<Owner>,
}

struct Analysis<'r> {
    files: &'r [Arc<SourceFile>],
    /// Those not suppressed, worst first.
    findings: Vec<Finding>,
    suppressed: usize,
    failure_threshold: Severity,
    output_threshold: Severity,
}

impl<'r> Analysis<'r> {
    fn new(report: &'r Report, arguments: &Arguments) -> Self {
        let owners: Vec<_> = report
            .files
            .iter()
            .map(|file| Owners::new(file, &report.default_namespace))
            .collect();
        let owner_of = |finding: &Diagnostic| {
            let place = finding.place.as_ref()?;
            owners.iter().find_map(|owners| owners.at(place)).cloned()
        };
        let found = report.diagnostics.iter().map(|diagnostic| Finding {
            diagnostic: diagnostic.clone(),
            owner: owner_of(diagnostic),
        });
        let (suppressed, mut findings): (Vec<_>, Vec<_>) = found.partition(|finding| {
            let covers = |suppression: &Suppression| {
                suppression.covers(&finding.diagnostic, finding.owner.as_ref())
            };
            !is_unreadable(&finding.diagnostic) && arguments.suppress.iter().any(covers)
        });
        findings.sort_by_key(|finding| finding.diagnostic.severity);
        Self {
            files: &report.files,
            findings,
            suppressed: suppressed.len(),
            failure_threshold: arguments.failure_threshold.into(),
            output_threshold: arguments.output_threshold.into(),
        }
    }

    /// What could not be read was not analyzed: no threshold makes that a success.
    fn exit(&self) -> Exit {
        let diagnostics = || self.findings.iter().map(|finding| &finding.diagnostic);
        if diagnostics().any(is_unreadable) {
            return Exit::Configuration;
        }
        match diagnostics().any(|finding| finding.severity <= self.failure_threshold) {
            true => Exit::No,
            false => Exit::Ok,
        }
    }

    fn shown(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.diagnostic.severity <= self.output_threshold)
    }

    fn print(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let shown: Vec<_> = self
            .shown()
            .map(|finding| finding.diagnostic.clone())
            .collect();
        write!(out, "{}", render(&shown, self.files, Severity::Info))?;
        self.print_summary(out)
    }

    fn print_log(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        for Finding { diagnostic, owner } in self.shown() {
            let Diagnostic { code, message, .. } = diagnostic;
            let severity = severity_name(diagnostic.severity);
            let place = diagnostic.place.as_ref().map(ToString::to_string);
            let about: Vec<_> = owner
                .as_ref()
                .map(ToString::to_string)
                .into_iter()
                .chain(place)
                .collect();
            match &about[..] {
                [] => writeln!(out, "{severity} [{code}] {message}")?,
                about => writeln!(out, "{severity} [{code}] ({}) {message}", about.join(" "))?,
            }
        }
        self.print_summary(out)
    }

    /// The last line: how much there is, or Istio's words that there is nothing.
    fn print_summary(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let files = plural(self.files.len(), "file");
        let suppressed = match self.suppressed {
            0 => String::new(),
            count => format!(" ({count} suppressed)"),
        };
        if self.shown().next().is_none() {
            writeln!(out, "OK: no validation issues found in {files}{suppressed}")?;
            return Ok(());
        }
        let all: Vec<_> = self
            .findings
            .iter()
            .map(|finding| finding.diagnostic.clone())
            .collect();
        let of = |severity, noun| plural(count(&all, severity), noun);
        writeln!(
            out,
            "{files} analyzed: {}, {}, {}{suppressed}",
            of(Severity::Error, "error"),
            of(Severity::Warning, "warning"),
            of(Severity::Info, "note"),
        )?;
        Ok(())
    }

    fn print_json(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        let names: Vec<_> = self.files.iter().map(|file| &*file.name).collect();
        let diagnostics = self.shown().map(|Finding { diagnostic, owner }| {
            let mut value = json!(diagnostic);
            if let Some(fields) = value.as_object_mut() {
                fields.insert("resource".into(), json!(owner));
            }
            value
        });
        let value = json!({
            "apiVersion": API_VERSION,
            "kind": "Analysis",
            "passed": self.exit() == Exit::Ok,
            "failureThreshold": self.failure_threshold,
            "files": names,
            "diagnostics": diagnostics.collect::<Vec<_>>(),
            "suppressed": self.suppressed,
        });
        writeln!(out, "{value:#}")?;
        Ok(())
    }
}

/// A file is missing from the analysis.
fn is_unreadable(finding: &Diagnostic) -> bool {
    [&codes::FILE_UNREADABLE, &codes::FILE_NOT_TRUSTED]
        .iter()
        .any(|code| code.id == finding.code)
}

fn list(format: Format, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let codes = codes::ALL.iter();
    match format {
        Format::Table | Format::Log => {
            let rows = codes.map(|code| {
                let severity = severity_name(code.severity).to_owned();
                vec![code.id.to_owned(), severity, code.meaning.to_owned()]
            });
            let header = ["CODE", "SEVERITY", "MEANING"];
            writeln!(out, "{}", table(&header, rows.collect()))?;
            writeln!(
                out,
                "\n`identun explain CODE` tells cause, example and cure."
            )?;
        }
        Format::Json => {
            let codes: Vec<_> = codes
                .map(|code| {
                    json!({"code": code.id, "severity": code.severity, "meaning": code.meaning})
                })
                .collect();
            let value = json!({"apiVersion": API_VERSION, "kind": "CodeList", "codes": codes});
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(Exit::Ok)
}

const fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Error => "Error",
        Severity::Warning => "Warning",
        Severity::Info => "Info",
    }
}
