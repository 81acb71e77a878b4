//! Reads the log lines of a mail transfer agent: bytes in, borrowed events out.
//!
//! Pure: no clock, no I/O, no allocation. In the order of the data: [`syslog`] takes the prefix off,
//! [`postfix`] reads the text behind it, [`event`] has the words for what it says.

pub mod event;

pub use event::Event;

/// Whose lines to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Postfix 3.4 and later, through its own `maillog_file`, rsyslog or any RFC 3339 prefix.
    Postfix,
}
