//! Logging. `error` is for an action that somebody asked for and that did not happen, `warn` for
//! what is not normal but hindered nothing, `info` for rare changes of state, `debug` for the rest.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::cli::LogFormat;
use crate::error::{Error, Result};

/// Sends log lines to standard error.
///
/// # Errors
/// When the filter cannot be read.
pub fn start(filter: &str, format: LogFormat) -> Result<()> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|e| Error::invalid(format!("--log {filter:?} is not a log filter")).because(e))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let started = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    started.map_err(|e| Error::host("logging was started twice").because(e))
}
