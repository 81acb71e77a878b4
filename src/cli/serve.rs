//! `tlswarden serve`: logging to standard error, then the daemon until it is told to end.

use std::io::IsTerminal;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::{CONFIG, ConfigFile, Fault, IO, NO_INPUT, SOFTWARE, UNAVAILABLE};
use crate::daemon::services::StoreError;
use crate::daemon::{self, DaemonError};

#[derive(Args)]
pub struct Options {
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

pub fn serve(options: &Options) -> Result<(), Fault> {
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

impl From<DaemonError> for Fault {
    fn from(error: DaemonError) -> Fault {
        Fault::new(status(&error), error.to_string())
    }
}

fn status(error: &DaemonError) -> u8 {
    match error {
        DaemonError::Config(_) | DaemonError::Named(_) => CONFIG,
        DaemonError::Input(_) => NO_INPUT,
        DaemonError::Store(StoreError::Locked(_)) => UNAVAILABLE,
        DaemonError::Store(StoreError::Unusable(_)) => CONFIG,
        DaemonError::Store(StoreError::Io(_) | StoreError::Corrupt(_)) | DaemonError::Socket(_) => IO,
        DaemonError::System(_) | DaemonError::Task(_) => SOFTWARE,
    }
}
