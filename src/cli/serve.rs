//! `tlswarden serve`: logging to standard error, then the daemon until it is told to end.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::{CliError, ConfigFile, EX_CONFIG, EX_IOERR, EX_NOINPUT, EX_SOFTWARE, EX_UNAVAILABLE};
use crate::daemon::services::StoreError;
use crate::daemon::{self, DaemonError};

#[derive(Args)]
pub(crate) struct ServeOptions {
    #[command(flatten)]
    config: ConfigFile,
    /// How the log on standard error is written.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line: timestamp, level, message.
    Json,
}

pub(crate) fn serve(options: &ServeOptions) -> Result<(), CliError> {
    // systemd's journal has the time of each line already.
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let filter = EnvFilter::try_from_env("TLSWARDEN_LOG").unwrap_or_else(|_| EnvFilter::new("info,sled=warn"));
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match options.log_format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text if in_journal => lines.without_time().init(),
        LogFormat::Text => lines.init(),
    }
    Ok(daemon::run(&options.config.config)?)
}

impl From<DaemonError> for CliError {
    fn from(error: DaemonError) -> CliError {
        CliError::new(exit_status(&error), error.to_string())
    }
}

fn exit_status(error: &DaemonError) -> u8 {
    match error {
        DaemonError::Config(_) | DaemonError::Named(_) => EX_CONFIG,
        DaemonError::Input(_) => EX_NOINPUT,
        DaemonError::Store(StoreError::Locked(_)) => EX_UNAVAILABLE,
        DaemonError::Store(StoreError::Unusable(_)) => EX_CONFIG,
        DaemonError::Store(StoreError::Io(_) | StoreError::Corrupt(_)) | DaemonError::Socket(_) => EX_IOERR,
        DaemonError::System(_) | DaemonError::Task(_) => EX_SOFTWARE,
    }
}
