//! The reporting pipeline: a day's tallies become reports (RFC 8460), each sent at most once to each destination.
//!
//! [`schedule`] plans what is due, [`report`] finds the recipients and builds the message, [`dkim`] signs it, and
//! [`transport`] hands it over.

pub mod dkim;
pub(crate) mod report;
pub mod schedule;
pub mod transport;
