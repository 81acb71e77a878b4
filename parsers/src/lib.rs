//! Reads the log lines of a mail transfer agent: bytes in, borrowed events out.
//!
//! Pure: no clock, no I/O, no allocation; the crate is `no_std` without `alloc`, so the compiler holds it to that.
//! In the order of the data: `syslog` takes the prefix off, `postfix` and `exim` read the text behind it,
//! [`event`] has the words for what it says.
//!
//! Every line is hostile input: fields stand at fixed positions of the grammar and are read there, never searched
//! for, and what a stranger wrote (a reply, an issuer's name, an address) is never read as grammar.

#![cfg_attr(not(test), no_std)]

mod delivery_status;
mod envelope;
pub mod event;
mod exim;
mod family;
mod gap;
mod ip_address;
mod number;
mod postfix;
mod syslog;
mod timestamp;
mod unrecognized;

pub use delivery_status::{DeliveryResult, DeliveryStatus};
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
    syslog::split_plain(line).is_some() || envelope::open(line).time.is_some()
}

/// Whether a line is one of the MTA's at all, of those that are not counted too: of any daemon of Postfix, or about any
/// message of Exim.
#[must_use]
pub fn is_mta_line(dialect: Dialect, line: &[u8]) -> bool {
    match dialect {
        Dialect::Postfix => postfix::is_postfix_line(line),
        Dialect::Exim => exim::is_exim_line(line),
    }
}

/// An entry of a log that keeps the parts of a line apart, as the systemd journal does.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// When it was written or collected.
    pub timestamp: Option<event::LogTimestamp>,
    /// The host that it is of; empty where that is not known.
    pub host: &'a [u8],
    /// The program, such as `postfix/smtp`; empty where the text is a whole line.
    pub ident: &'a [u8],
    /// Its process id, 0 where that is not known.
    pub pid: u32,
    /// The text: of the program, or a line of another one where the program is a container.
    pub text: &'a [u8],
}

/// Reads one entry.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_entry<'a>(dialect: Dialect, entry: &Entry<'a>) -> Result<Option<Event<'a>>, MalformedLine> {
    match dialect {
        Dialect::Postfix => postfix::parse_entry(entry).map_err(|family| MalformedLine { family }),
        Dialect::Exim => exim::parse_entry(entry).map_err(|family| MalformedLine { family }),
    }
}

/// Reads what became of a recipient from a line of any delivery agent; most lines say nothing of that.
#[must_use]
pub fn parse_delivery_status(dialect: Dialect, line: &[u8]) -> Option<DeliveryStatus<'_>> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match dialect {
        Dialect::Postfix => postfix::parse_status(line),
        Dialect::Exim => exim::status::parse(line),
    }
}

/// The same from an entry.
#[must_use]
pub fn parse_entry_delivery_status<'a>(dialect: Dialect, entry: &Entry<'a>) -> Option<DeliveryStatus<'a>> {
    match dialect {
        Dialect::Postfix => postfix::parse_entry_status(entry),
        Dialect::Exim => exim::status::parse_entry(entry),
    }
}

/// Reads a time by itself, in any of the forms that a line may begin with.
#[must_use]
pub fn parse_timestamp(text: &[u8]) -> Option<event::LogTimestamp> {
    timestamp::split(text).and_then(|(timestamp, rest)| rest.is_empty().then_some(timestamp))
}
