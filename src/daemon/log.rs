//! The log on stderr: events with fields, as text or JSON.

use tracing_subscriber::{
    EnvFilter, filter::LevelFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt,
};

use crate::daemon::settings::{Log, LogFormat, LogLevel};

/// Starts the log. `directives` (from `IDENTUN_LOG`, such as `info,access=debug`) stand above the settings.
///
/// # Errors
/// When the directives do not parse, or a log was started before.
pub fn init(settings: &Log, directives: Option<&str>) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().with_default_directive(level(settings.level).into());
    let filter = filter.parse(directives.unwrap_or_default())?;
    let writer = fmt::layer().with_writer(std::io::stderr);
    let registry = tracing_subscriber::registry().with(filter);
    match settings.format {
        LogFormat::Json => registry
            .with(writer.json().flatten_event(true))
            .try_init()?,
        LogFormat::Text => registry.with(writer.with_ansi(false)).try_init()?,
    }
    Ok(())
}

const fn level(level: LogLevel) -> LevelFilter {
    match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    }
}
