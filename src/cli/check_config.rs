//! `tlswarden check-config`: would the daemon start with this configuration?
//!
//! Takes: the configuration file, and what it names. Gives: what was detected on the host, warnings, and a line that ends
//! in `OK`; or the configuration in force as TOML, which reads back equal.
//! When it fails: one line with file, line and option; nothing on standard output.

use std::path::Path;

use crate::checking::finding::Severity;
use crate::checking::host;
use crate::cli::{CliError, print_stdout};
use crate::config::ConfigError;
use crate::daemon::{self, CheckedConfig};

/// Checks the file; with `print` shows it as TOML, defaults and detected settings included.
pub(crate) fn check_config(path: &Path, print: bool) -> Result<(), CliError> {
    let CheckedConfig { config, detected, mut warnings } = daemon::check_config(path)?;
    // What the daemon's own user cannot read, others may.
    let findings = host::check_logs(&config).findings.into_iter().filter(|finding| finding.severity != Severity::Note);
    let logs = findings.map(|finding| {
        let subject =
            if finding.subject.starts_with('/') { format!(" file: {}", finding.subject) } else { String::new() };
        let problem = format!("[[input]]{subject}: {}", finding.problem);
        ConfigError::locate(path, &problem).to_string()
    });
    warnings.extend(logs);
    let lines = detected.into_iter().chain(warnings.iter().map(|line| format!("warning: {line}")));
    if print {
        let lines: String = lines.map(|line| format!("# {line}\n")).collect();
        return print_stdout(&(lines + &config.to_toml()));
    }
    let lines: String = lines.map(|line| format!("{line}\n")).collect();
    let verdict = match warnings.len() {
        0 => "OK".to_owned(),
        1 => "OK, 1 warning".to_owned(),
        number => format!("OK, {number} warnings"),
    };
    print_stdout(&format!("{lines}{}: {verdict}\n", path.display()))
}
