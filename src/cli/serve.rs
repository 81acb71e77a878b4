//! `tlswarden serve`: logging to standard error, then the daemon until it is told to end.

use clap::Args;

use super::log::{self, LogFormat};
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

pub(crate) fn serve(options: &ServeOptions) -> Result<(), CliError> {
    log::start(options.log_format);
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
        DaemonError::Store(StoreError::Refused { .. }) | DaemonError::System(_) | DaemonError::Task(_) => EX_SOFTWARE,
    }
}
