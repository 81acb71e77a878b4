//! `tlswarden check-config`: would the daemon start with this configuration? Prints it as it was understood.

use std::path::Path;

use crate::cli::{Fault, print};
use crate::daemon;

pub fn check(path: &Path) -> Result<(), Fault> {
    let (config, found) = daemon::check_config(path)?;
    let found: String = found.iter().map(|line| format!("# {line}\n")).collect();
    print(&(found + &config.to_toml()))
}
