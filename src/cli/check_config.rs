//! `tlswarden check-config`: would the daemon start with this configuration?
//!
//! Takes: the configuration file, and what it names. Gives: what was detected on the host, and a line that ends in `OK`; or
//! the configuration in force as TOML, which reads back equal.
//! When it fails: one line with file, line and option; nothing on standard output.

use std::path::Path;

use crate::cli::{CliError, print_stdout};
use crate::daemon;

/// Checks the file; with `print` shows it as TOML, defaults and detected settings included.
pub(crate) fn check_config(path: &Path, print: bool) -> Result<(), CliError> {
    let (config, detected) = daemon::check_config(path)?;
    if print {
        let detected: String = detected.iter().map(|line| format!("# {line}\n")).collect();
        return print_stdout(&(detected + &config.to_toml()));
    }
    let detected: String = detected.iter().map(|line| format!("{line}\n")).collect();
    print_stdout(&format!("{detected}{}: OK\n", path.display()))
}
