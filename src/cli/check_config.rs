//! `tlswarden check-config`: would the daemon start with this configuration? Prints it as it was understood.

use std::path::Path;

use crate::cli::{CliError, print_stdout};
use crate::daemon;

pub(crate) fn check_config(path: &Path) -> Result<(), CliError> {
    let (config, found) = daemon::check_config(path)?;
    let found: String = found.iter().map(|line| format!("# {line}\n")).collect();
    print_stdout(&(found + &config.to_toml()))
}
