//! The command line: one file a command; a command is a function of its arguments, a context and a writer.
//!
//! stdout is data, stderr is talk. Exit codes: 0 done, 1 the answer is no, 2 usage, 3 the daemon is not reachable,
//! 4 a right is missing, 5 timed out, 6 invalid configuration.

mod analyze;
mod audit;
mod ca;
mod check;
mod client;
mod daemon;
mod demo;
mod diff;
mod down;
mod explain;
mod flows;
mod guard;
mod outcomes;
mod policies;
mod reload;
mod rules;
mod schema;
mod status;
mod table;
mod tls_check;
mod upgrade;
mod version;
mod what_if;

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::daemon::settings::{DEFAULT_CONFIG, DEFAULT_SOCKET};

/// How a command ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done; the answer is yes.
    Ok = 0,
    /// Done; the answer is no, or something failed.
    No = 1,
    /// The arguments contradict each other or the files.
    Usage = 2,
    /// The daemon does not answer.
    Unreachable = 3,
    /// A right is missing.
    Permission = 4,
    /// It took too long.
    Timeout = 5,
    /// The files are wrong.
    Configuration = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error that knows its exit code and what to try next.
#[derive(Debug)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// What failed.
    pub message: String,
    /// The next command to try.
    pub help: Option<String>,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            help: Some(help.into()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Mutual TLS between workloads, for unmodified applications and every IP protocol.
#[derive(Debug, Parser)]
#[command(
    name = "identun",
    version,
    max_term_width = 80,
    after_help = "\
Examples:
  identun                                 health, tunnels, flows, identities
  identun check --config daemon.yaml      are the files right?
  identun explain 10.0.0.1 10.0.0.2:80    captured? encrypted? who may answer?"
)]
struct Arguments {
    /// Admin socket of the daemon
    #[arg(long, global = true, env = "IDENTUN_SOCKET", default_value = DEFAULT_SOCKET, value_name = "PATH")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look for mistakes in policy, with thresholds and suppressions for CI
    ///
    /// Exit code 1: findings of the failure threshold or worse; 6: a file cannot be read; in every output format.
    Analyze(analyze::Arguments),
    /// Tell who still speaks plaintext, and what STRICT would do to it
    Audit(audit::Arguments),
    /// A small certificate authority for beginnings
    Ca(ca::Arguments),
    /// Validate files; needs no root and no daemon
    Check(check::Arguments),
    /// Run the daemon in the foreground
    Daemon(daemon::Arguments),
    /// Play the whole story on hosts in network namespaces, every claim checked
    Demo(demo::Arguments),
    /// Tell which flows end differently under other files; needs no daemon
    Diff(diff::Arguments),
    /// Stop the daemon and remove everything it added to this host
    Down(down::Arguments),
    /// Tell what happens to a flow, and which rule says so
    Explain(explain::Arguments),
    /// Hold plaintext back until the daemon runs: what the boot starts first
    Guard(guard::Arguments),
    /// Read the configuration again, all or nothing
    Reload(reload::Arguments),
    /// Show the kernel's rules and routes as nft and ip would be told
    Rules(rules::Arguments),
    /// Show the fields of a kind of policy, or its JSON Schema
    Schema(schema::Arguments),
    /// Show health, tunnels, flows, identities and drops
    Status(status::Arguments),
    /// Compare what servers accept with what clients send, service by service
    TlsCheck(tls_check::Arguments),
    /// Go on as the program that is installed now; connections stay
    Upgrade(upgrade::Arguments),
    /// Show the version
    Version(version::Arguments),
    /// Tell what other policy would do to the flows that were seen
    WhatIf(what_if::Arguments),
}

/// Output format.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
enum Format {
    /// For people
    #[default]
    Table,
    /// For programs; fields are only ever added
    Json,
}

/// What every command may need.
struct Context {
    socket: PathBuf,
}

/// The whole program: parses the arguments, runs the command, prints an error once.
pub fn main() -> ExitCode {
    run(std::env::args_os(), &mut io::stdout(), &mut io::stderr())
}

/// [`main`] with its three outsides as arguments.
pub fn run(
    arguments: impl IntoIterator<Item = OsString>,
    out: &mut dyn Write,
    talk: &mut dyn Write,
) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are answers and go to stdout; a closed pipe there is no failure.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(arguments, out).and_then(|exit| Ok(out.flush().map(|()| exit)?)) {
        Ok(exit) => exit.into(),
        Err(error) if is_broken_pipe(&error) => Exit::Ok.into(),
        Err(error) => report(&error, talk).into(),
    }
}

fn dispatch(arguments: Arguments, out: &mut dyn Write) -> anyhow::Result<Exit> {
    let context = Context {
        socket: arguments.socket,
    };
    match arguments
        .command
        .unwrap_or_else(|| Command::Status(status::Arguments::default()))
    {
        Command::Analyze(arguments) => analyze::run(&arguments, out),
        Command::Audit(arguments) => audit::run(&arguments, &context, out),
        Command::Ca(arguments) => ca::run(&arguments, out),
        Command::Check(arguments) => check::run(&arguments, out),
        Command::Daemon(arguments) => daemon::run(&arguments),
        Command::Demo(arguments) => demo::run(&arguments, out),
        Command::Diff(arguments) => diff::run(&arguments, out),
        Command::Down(arguments) => down::run(&arguments, out),
        Command::Explain(arguments) => explain::run(&arguments, out),
        Command::Guard(arguments) => guard::run(&arguments, out),
        Command::Reload(_) => reload::run(&context, out),
        Command::Rules(arguments) => rules::run(&arguments, out),
        Command::Schema(arguments) => schema::run(&arguments, out),
        Command::Status(arguments) => status::run(&arguments, &context, out),
        Command::TlsCheck(arguments) => tls_check::run(&arguments, out),
        Command::Upgrade(_) => upgrade::run(&context, out),
        Command::Version(arguments) => version::run(&arguments, out),
        Command::WhatIf(arguments) => what_if::run(&arguments, &context, out),
    }
}

/// Prints an error with its causes, and what to try next.
fn report(error: &anyhow::Error, talk: &mut dyn Write) -> Exit {
    let failure = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>());
    let text = format!("{error:#}");
    // stderr is the last resort: when it is gone the exit code still speaks.
    let _ = match text.contains("error[") {
        true => writeln!(talk, "{text}"),
        false => writeln!(talk, "error: {text}"),
    };
    if let Some(help) = failure.and_then(|failure| failure.help.as_deref()) {
        let _ = writeln!(talk, "help: {help}");
    }
    failure.map_or(Exit::No, |failure| failure.exit)
}

/// A reader that has seen enough is not a failure.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_error = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || cause
                .downcast_ref::<serde_json::Error>()
                .is_some_and(|error| error.io_error_kind() == Some(io::ErrorKind::BrokenPipe))
    };
    error.chain().any(io_error)
}

/// The configuration file of commands that need one.
#[derive(Clone, Debug, clap::Args)]
struct ConfigPath {
    /// The daemon's configuration
    #[arg(long, short, env = "IDENTUN_CONFIG", default_value = DEFAULT_CONFIG, value_name = "FILE")]
    config: PathBuf,
}

impl From<crate::daemon::configuration::Rejected> for Failure {
    fn from(rejected: crate::daemon::configuration::Rejected) -> Self {
        let message = format!("{}error: {rejected}", rejected.render());
        Self {
            exit: Exit::Configuration,
            message,
            help: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_command_ends_its_help_with_examples() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let examples = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            let lines = examples
                .lines()
                .filter(|line| line.starts_with("  identun"))
                .count();
            assert!(
                examples.starts_with("Examples:") && (2..=3).contains(&lines),
                "{path}: {examples}"
            );
            for line in examples.lines() {
                assert!(line.len() <= 80, "{path}: {line}");
            }
            command
                .get_subcommands()
                .for_each(|command| check(command, &path));
        }
        Arguments::command().debug_assert();
        check(&Arguments::command(), "");
    }

    #[test]
    fn a_closed_pipe_is_success() {
        let error =
            anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("cannot print");
        assert!(is_broken_pipe(&error));
        assert!(!is_broken_pipe(&anyhow::anyhow!("other")));
    }

    #[test]
    fn an_error_is_printed_once_with_its_help() {
        let mut talk = Vec::new();
        let error = anyhow::Error::from(Failure::new(
            Exit::Unreachable,
            "cannot reach it",
            "try: systemctl",
        ));
        assert_eq!(
            report(&error.context("status"), &mut talk),
            Exit::Unreachable
        );
        assert_eq!(
            String::from_utf8(talk).unwrap(),
            "error: status: cannot reach it\nhelp: try: systemctl\n"
        );
    }
}
