//! `tlswarden check`: the configuration as it was understood.

use std::path::Path;

use super::{Fault, print};
use crate::daemon;

/// Prints the configuration if the daemon would start with it; what is printed reads back equal.
pub fn check(path: &Path) -> Result<(), Fault> {
    print(&daemon::check(path)?.to_toml())
}
