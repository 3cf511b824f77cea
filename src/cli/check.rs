//! `identun check`: files alone; needs no root, no daemon and changes nothing.

use std::{io::Write, path::PathBuf, sync::Arc};

use serde_json::json;

use crate::{
    cli::{Exit, Format},
    daemon::{
        clock::unix_now,
        configuration::{Configuration, Rejected, timestamp},
        render::{has_errors, render, summary},
        settings::DEFAULT_CONFIG,
        status::API_VERSION,
    },
    policy::{Diagnostic, SourceFile},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  identun check --config /etc/identun/daemon.yaml     settings, certificates, policy, findings
  identun check policies/strict.yaml mesh.yaml        policy files by themselves")]
pub(super) struct Arguments {
    /// The daemon's configuration, with everything it names
    #[arg(
        long,
        short,
        env = "IDENTUN_CONFIG",
        value_name = "FILE",
        conflicts_with = "files"
    )]
    config: Option<PathBuf>,
    /// Policy files or folders, checked with default settings
    #[arg(value_name = "POLICY")]
    files: Vec<PathBuf>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// What a check found, and what it looked at.
struct Report {
    diagnostics: Vec<Diagnostic>,
    files: Vec<Arc<SourceFile>>,
    facts: Vec<String>,
}

pub(super) fn run(arguments: &Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let result = if arguments.files.is_empty() {
        let path = arguments
            .config
            .clone()
            .unwrap_or_else(|| DEFAULT_CONFIG.into());
        Configuration::load(&path, None, 1, unix_now()).map(report_configuration)
    } else {
        let checked = Configuration::check_policies(&arguments.files);
        checked.map(|(diagnostics, files)| Report {
            diagnostics,
            files,
            facts: Vec::new(),
        })
    };
    let report = result.unwrap_or_else(|Rejected { diagnostics, files }| Report {
        diagnostics,
        files,
        facts: Vec::new(),
    });
    print(&report, arguments.output, out)?;
    Ok(if has_errors(&report.diagnostics) {
        Exit::Configuration
    } else {
        Exit::Ok
    })
}

fn report_configuration(configuration: Configuration) -> Report {
    let mut facts = Vec::new();
    for (id, identity) in &configuration.identities.own {
        facts.push(format!(
            "identity  {id}, until {}",
            timestamp(identity.svid.not_after)
        ));
    }
    for (domain, roots) in &configuration.identities.bundles.roots {
        facts.push(format!("bundle    {domain}, {} certificates", roots.len()));
    }
    for exempt in &configuration.settings.exempt {
        facts.push(format!(
            "exempt    {exempt} accepts plaintext whatever policy says"
        ));
    }
    Report {
        diagnostics: configuration.diagnostics,
        files: configuration.files,
        facts,
    }
}

fn print(report: &Report, format: Format, out: &mut dyn Write) -> anyhow::Result<()> {
    let names: Vec<_> = report.files.iter().map(|file| &*file.name).collect();
    match format {
        Format::Table => {
            write!(out, "{}", render(&report.diagnostics, &report.files))?;
            for fact in &report.facts {
                writeln!(out, "{fact}")?;
            }
            let plural = if names.len() == 1 { "" } else { "s" };
            writeln!(
                out,
                "{} file{plural} checked: {}",
                names.len(),
                summary(&report.diagnostics)
            )?;
        }
        Format::Json => {
            let value = json!({
                "apiVersion": API_VERSION,
                "kind": "Check",
                "valid": !has_errors(&report.diagnostics),
                "files": names,
                "diagnostics": report.diagnostics,
            });
            writeln!(out, "{value:#}")?;
        }
    }
    Ok(())
}
