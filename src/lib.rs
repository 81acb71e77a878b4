//! tlswarden: tells the MTA which TLS policy a destination published, counts how sessions ended, reports the counts.
//!
//! The modules, in the order the data meets them.

pub mod answering;
pub mod base;
pub mod checking;
pub mod config;
pub mod counting;
pub mod metrics;
pub mod net;
pub mod reporting;
pub mod store;

pub mod status;
pub mod watchdog;

pub mod cli;
pub mod control;
pub mod daemon;
