//! `identun check`: files alone; needs no root, no daemon and changes nothing.

use std::{io::Write, path::PathBuf, sync::Arc};

use serde_json::json;

use crate::{
    cli::{Exit, Format},
    daemon::{
        clock::unix_now,
        configuration::{Configuration, Rejected, timestamp},
        render::{count, has_errors, plural, render, summary},
        settings::DEFAULT_CONFIG,
        status::API_VERSION,
    },
    policy::{Diagnostic, MeshSettings, Severity, SourceFile},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun check --config daemon.yaml               all that it names, findings
  identun check policies/strict.yaml mesh.yaml     policy files by themselves")]
pub(super) struct Arguments {
    #[command(flatten)]
    input: Input,
    /// Show what is only worth knowing, too
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// The files that are looked at.
#[derive(Debug, clap::Args)]
pub(super) struct Input {
    /// The daemon's configuration, with everything it names [env: IDENTUN_CONFIG]
    #[arg(long, short, value_name = "FILE", conflicts_with = "files")]
    config: Option<PathBuf>,
    /// Policy files or folders, with default settings; - is stdin
    #[arg(value_name = "POLICY")]
    files: Vec<PathBuf>,
}

/// What was found, and in which files.
pub(super) struct Report {
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) files: Vec<Arc<SourceFile>>,
    /// The namespace of resources that name none.
    pub(super) default_namespace: Arc<str>,
    facts: Vec<String>,
}

impl Input {
    /// Loads and compiles the files, and returns everything there is to say about them.
    pub(super) fn report(&self) -> Report {
        let result = if self.files.is_empty() {
            // Not by clap: a variable that is set must not conflict with files that are named.
            let usual = || std::env::var_os("IDENTUN_CONFIG").map(PathBuf::from);
            let path = self.config.clone().or_else(usual);
            let path = path.unwrap_or_else(|| DEFAULT_CONFIG.into());
            Configuration::load(&path, None, 1, unix_now()).map(report_configuration)
        } else {
            let checked = Configuration::check_policies(&self.files);
            checked.map(|(diagnostics, files)| bare_report(diagnostics, files))
        };
        result.unwrap_or_else(|Rejected { diagnostics, files }| bare_report(diagnostics, files))
    }
}

fn bare_report(diagnostics: Vec<Diagnostic>, files: Vec<Arc<SourceFile>>) -> Report {
    Report {
        diagnostics,
        files,
        default_namespace: MeshSettings::default().default_namespace,
        facts: Vec::new(),
    }
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let report = arguments.input.report();
    match arguments.output {
        Format::Table => print(&report, arguments.verbose, out)?,
        Format::Json => print_json(&report, out)?,
    }
    Ok(if has_errors(&report.diagnostics) {
        Exit::Configuration
    } else {
        Exit::Ok
    })
}

fn report_configuration(configuration: Configuration) -> Report {
    let mut facts = Vec::new();
    if !configuration.has_policy {
        let mode = configuration.settings.default_mode;
        facts.push(format!("policy    none: `default_mode` counts, {mode:?}"));
    }
    for (id, identity) in &configuration.identities.own {
        facts.push(format!(
            "identity  {id}, until {}",
            timestamp(identity.svid.not_after)
        ));
    }
    for (domain, roots) in &configuration.identities.bundles.roots {
        facts.push(format!(
            "bundle    {domain}, {}",
            plural(roots.len(), "certificate")
        ));
    }
    for exempt in &configuration.settings.exempt {
        facts.push(format!(
            "exempt    {exempt} accepts plaintext whatever policy says"
        ));
    }
    Report {
        diagnostics: configuration.diagnostics,
        files: configuration.files,
        default_namespace: configuration.settings.default_namespace.into(),
        facts,
    }
}

fn print(report: &Report, verbose: bool, out: &mut dyn Write) -> anyhow::Result<()> {
    let least = if verbose {
        Severity::Info
    } else {
        Severity::Warning
    };
    write!(out, "{}", render(&report.diagnostics, &report.files, least))?;
    for fact in &report.facts {
        writeln!(out, "{fact}")?;
    }
    let notes = count(&report.diagnostics, Severity::Info);
    let more = match notes {
        0 => String::new(),
        _ if verbose => format!(", {}", plural(notes, "note")),
        _ => format!(", {} (--verbose shows them)", plural(notes, "note")),
    };
    writeln!(
        out,
        "{} checked: {}{more}",
        plural(report.files.len(), "file"),
        summary(&report.diagnostics)
    )?;
    Ok(())
}

fn print_json(report: &Report, out: &mut dyn Write) -> anyhow::Result<()> {
    let names: Vec<_> = report.files.iter().map(|file| &*file.name).collect();
    let value = json!({
        "apiVersion": API_VERSION,
        "kind": "Check",
        "valid": !has_errors(&report.diagnostics),
        "files": names,
        "diagnostics": report.diagnostics,
    });
    writeln!(out, "{value:#}")?;
    Ok(())
}
