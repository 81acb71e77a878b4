//! `tlswarden reload`: has the daemon take the configuration on disk, and exits with its verdict.
//!
//! Takes: the configuration file, which says where the daemon is asked. Gives: one line, or the reason of a refusal.
//! When it fails: exit 78 where the configuration is refused and the old one stays in use; 1 where it is in use and parts
//! are off because of it; 69 where no daemon runs.

use std::path::Path;

use super::control::query_daemon;
use super::{CliError, EX_CONFIG, EX_UNAVAILABLE, EXIT_WARNINGS, print_stdout};
use crate::config::Config;
use crate::daemon::control::{ControlRequest, ReloadVerdict};
use crate::daemon::control_client::RequestError;

pub(crate) fn reload(file: &Path) -> Result<(), CliError> {
    // The daemon reads the file itself: what is wrong with it is the daemon's verdict.
    let control = Config::control_section_of(file);
    match query_daemon(&control, &ControlRequest::Reload) {
        Ok(ReloadVerdict::Taken(off)) if off.is_empty() => {
            print_stdout("reloaded: the configuration on disk is in use\n")
        }
        Ok(ReloadVerdict::Taken(off)) => {
            let line = format!("reload: the configuration on disk is in use, but {}", off.join("; "));
            Err(CliError::new(EXIT_WARNINGS, line))
        }
        Ok(ReloadVerdict::Refused(reason)) => {
            let line = format!("reload: the configuration was not taken: {reason}; going on with the old one");
            Err(CliError::new(EX_CONFIG, line))
        }
        Err(RequestError::NotRunning) => {
            let line = format!("reload: no daemon answers at {}; nothing was reloaded", control.socket.display());
            Err(CliError::new(EX_UNAVAILABLE, line))
        }
        Err(RequestError::Failed(line)) => Err(CliError::new(EX_UNAVAILABLE, line)),
    }
}
