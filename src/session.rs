//! Puts events together: one [`Outcome`](crate::tlsrpt::Outcome) for each attempt at TLS on a new connection.
//!
//! Takes: events of one input, in order, with their times. Gives: outcomes, and what must be kept over a restart.
//! Pure: no clock, no I/O. Limits: every table has its own; what had to give way is counted in [`Losses`].
//! Not here: which policy was in force, and what an outcome counts as (`tally`).

pub mod datagram;
pub mod kept;
pub mod postfix;

use serde::{Deserialize, Serialize};

/// How long a session may stay open by the time in the lines, or by the clock once its input is at the end, in seconds.
/// A transfer may take smtp_data_xfer_timeout (180 s) a buffer; an hour has room for a large message on a slow line.
pub const SESSION_TIMEOUT: i64 = 3600;

/// What was seen and could not be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Sessions whose domain no line ever told.
    pub without_domain: u64,
    /// Sessions that a delivery to another host followed: lines are missing between.
    pub unmatched: u64,
    /// Entries of a full table that gave way to newer ones.
    pub crowded_out: u64,
    /// Sessions that carried our own reports: not lost, left out.
    pub own_reports: u64,
}
