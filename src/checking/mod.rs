//! Checks for administrators: [`host`] is `tlswarden doctor`, [`domain`] is `tlswarden check-domain`.
//!
//! Each gives [`finding`]s: a severity, the problem, its impact, and how to fix it.

pub mod domain;
pub mod finding;
pub mod host;
