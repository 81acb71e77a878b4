//! Reads the log lines of a mail transfer agent: bytes in, borrowed events out.
//!
//! Pure: no clock, no I/O, no allocation; the crate is `no_std` without `alloc`, so the compiler holds it to that.
//! In the order of the data: `syslog` takes the prefix off, `postfix` and `exim` read the text behind it,
//! [`event`] has the words for what it says.
//!
//! Every line is hostile input: fields stand at fixed positions of the grammar and are read there, never searched
//! for, and what a stranger wrote (a reply, an issuer's name, an address) is never read as grammar.

#![cfg_attr(not(test), no_std)]

use core::{error, fmt};

pub mod event;
mod exim;
mod postfix;
mod syslog;

pub use event::Event;

/// Whose lines to read.
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
/// [`Malformed`] where the line begins like one that we count, but cannot be read to its end.
pub fn parse<'a>(dialect: Dialect, line: &'a [u8]) -> Result<Option<Event<'a>>, Malformed> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    match dialect {
        Dialect::Postfix => postfix::parse(line).map_err(|family| Malformed { family }),
        Dialect::Exim => exim::parse(line).map_err(|family| Malformed { family }),
    }
}

/// Whether a line begins as those of a log do, with a time: any program's, in any of the forms that [`parse`] knows.
#[must_use]
pub fn is_log_line(line: &[u8]) -> bool {
    syslog::begins(line) || exim::begins(line)
}

/// Reads one entry of a log that keeps the parts of a line apart, as the systemd journal does: when it was written, by
/// which program (`postfix/smtp`) under which process id, and the text.
///
/// # Errors
///
/// As [`parse`].
pub fn parse_entry<'a>(
    dialect: Dialect,
    stamp: event::Stamp,
    ident: &'a [u8],
    pid: u32,
    text: &'a [u8],
) -> Result<Option<Event<'a>>, Malformed> {
    match dialect {
        Dialect::Postfix => postfix::parse_entry(stamp, ident, pid, text).map_err(|family| Malformed { family }),
        Dialect::Exim => exim::parse_entry(stamp, ident, pid, text).map_err(|family| Malformed { family }),
    }
}

/// A line that begins like one of ours and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Malformed {
    /// What it would have been.
    pub family: Family,
}

/// The families of lines that we read, as named in [`Malformed`] and by [`event::What::family`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// The time at the front of a line that we would have used.
    Stamp,
    /// `… TLS connection established to …`.
    TlsSummary,
    /// `… certificate verification failed for …`.
    CertificateVerification,
    /// `SSL_connect error to …`.
    TlsHandshake,
    /// `TLSRPT: status=…`.
    TlsrptStatus,
    /// `QID: to=<…>, relay=…, status=…`.
    Delivery,
    /// `QID: from=<…>, size=…, nrcpt=… (queue active)`.
    QueueActive,
    /// `daemon started -- version …`.
    DaemonStarted,
    /// Exim's `=>`, `->`, `>>`, `==` and `**`: what became of one recipient.
    EximRecipient,
    /// Exim's lines about one host: `H=… [IP]: …`, `DANE attempt failed; …`, `…: delivering unencrypted to …`.
    EximHost,
    /// Exim's `[IP] SSL verify error: …`.
    EximVerification,
    /// `warning: TLS library problem: …`.
    LibraryProblem,
    /// `…: re-using session with untrusted …`.
    TlsResumed,
    /// `…: all TLSA records unusable…`.
    TlsaUnusable,
    /// A host that policy ruled out before any connection.
    HostRuledOut,
    /// `QID: reason`: a host that was not the last one was given up.
    HostLeft,
    /// `QID: message-id=<…>`.
    MessageId,
    /// `QID: removed`.
    QueueRemoved,
    /// tlsproxy(8)'s `CONNECT to [IP]:PORT`.
    Proxied,
    /// Exim's `<=` and `Completed`.
    EximMessage,
}

impl Family {
    /// The name of this family in messages and counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::Stamp => "time stamp",
            Family::TlsSummary => "TLS summary",
            Family::CertificateVerification => "certificate verification",
            Family::TlsHandshake => "TLS handshake",
            Family::TlsrptStatus => "TLSRPT status",
            Family::Delivery => "delivery",
            Family::QueueActive => "queue active",
            Family::DaemonStarted => "daemon started",
            Family::EximRecipient => "Exim recipient",
            Family::EximHost => "Exim host",
            Family::EximVerification => "Exim certificate verification",
            Family::LibraryProblem => "TLS library problem",
            Family::TlsResumed => "TLS session resumed",
            Family::TlsaUnusable => "TLSA unusable",
            Family::HostRuledOut => "host ruled out",
            Family::HostLeft => "host left",
            Family::MessageId => "Message-ID",
            Family::QueueRemoved => "queue removed",
            Family::Proxied => "tlsproxy connection",
            Family::EximMessage => "Exim message",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreadable {} line", self.family)
    }
}

impl error::Error for Malformed {}
