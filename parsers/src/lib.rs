//! Reads the log lines of a mail transfer agent: bytes in, borrowed events out.
//!
//! Pure: no clock, no I/O, no allocation; the crate is `no_std` without `alloc`, so the compiler holds it to that.
//! In the order of the data: `syslog` takes the prefix off, `postfix` and `exim` read the text behind it,
//! [`event`] has the words for what it says.
//!
//! Every line is hostile input: fields stand at fixed positions of the grammar and are read there, never searched
//! for, and what a stranger wrote (a reply, an issuer's name, an address) is never read as grammar.

#![cfg_attr(not(test), no_std)]

pub mod event;
mod exim;
mod family;
mod ip_address;
mod postfix;
mod syslog;
mod timestamp;

pub use event::Event;
pub use exim::parse_event_action;
pub use family::{LineFamily, MalformedLine};

/// The MTA whose log lines are read.
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Postfix 3.4 and later, through its own `maillog_file`, rsyslog or any RFC 3339 prefix.
    #[default]
    Postfix,
    /// Exim 4.94 and later: its `mainlog`, or the same text through syslog.
    Exim,
}

/// Reads one line, given without its line feed; a carriage return at its end is let pass.
///
/// `Ok(None)` is a line that says nothing we count: most of a mail log.
///
/// # Errors
///
/// [`MalformedLine`] where the line begins like one that we count, but cannot be read to its end.
pub fn parse<'a>(dialect: Dialect, line: &'a [u8]) -> Result<Option<Event<'a>>, MalformedLine> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match dialect {
        Dialect::Postfix => postfix::parse(line).map_err(|family| MalformedLine { family }),
        Dialect::Exim => exim::parse(line).map_err(|family| MalformedLine { family }),
    }
}

/// Whether a line begins as those of a log do, with a time: any program's, in any of the forms that [`parse`] knows.
#[must_use]
pub fn is_log_line(line: &[u8]) -> bool {
    syslog::starts_with_timestamp(line) || exim::starts_with_timestamp(line)
}

/// Reads one entry of a log that keeps the parts of a line apart, as the systemd journal does: when it was written, by
/// which program (`postfix/smtp`) under which process id, and the text.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_entry<'a>(
    dialect: Dialect,
    timestamp: event::LogTimestamp,
    ident: &'a [u8],
    pid: u32,
    text: &'a [u8],
) -> Result<Option<Event<'a>>, MalformedLine> {
    match dialect {
        Dialect::Postfix => {
            postfix::parse_entry(timestamp, ident, pid, text).map_err(|family| MalformedLine { family })
        }
        Dialect::Exim => exim::parse_entry(timestamp, ident, pid, text).map_err(|family| MalformedLine { family }),
    }
}
