//! `tlswarden check`: the configuration as it was understood.

use super::{Fault, print};
use crate::config::Config;

/// Prints a configuration that has passed its checks; what is printed reads back equal.
pub fn check(config: &Config) -> Result<(), Fault> {
    print(&config.to_toml())
}
