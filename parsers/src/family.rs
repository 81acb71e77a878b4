//! The families of log lines that are read, and the error for a line of a family that cannot be read.
//!
//! Takes: nothing. Gives: [`LineFamily`] for messages and counters, [`MalformedLine`], and [`ParseResult`], the result of every reader.
//! Limits: none; plain values without allocation.
//! When it fails: never.
//! Not here: which line belongs to which family (`postfix`, `exim`).

use core::{error, fmt};

/// The result of a reader: `Ok(None)` for a line that is not counted, an event, or the family of a malformed line.
pub(crate) type ParseResult<T> = Result<Option<T>, LineFamily>;

/// A line that begins like one that is counted, but cannot be read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MalformedLine {
    /// The family that it begins like.
    pub family: LineFamily,
}

/// The families of lines that are read, as named in [`MalformedLine`] and by [`event::EventKind::family`](crate::event::EventKind::family).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LineFamily {
    /// The time at the front of a line that would have been used.
    Timestamp,
    /// What stands before the text of a line of ours: a process id that is missing, a name that is too long.
    Prefix,
    /// The name of the program is missing: `postfix` instead of `postfix/smtp`.
    ProgramName,
    /// A queue id that is longer than any.
    QueueId,
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
    /// A host that policy excluded before any connection.
    HostExcluded,
    /// `QID: reason`: Postfix gave up a host that was not the last one.
    HostGivenUp,
    /// `QID: message-id=<…>`.
    MessageId,
    /// `QID: removed`.
    QueueRemoved,
    /// tlsproxy(8)'s `CONNECT to [IP]:PORT`.
    TlsproxyConnect,
    /// Exim's `<=` and `Completed`.
    EximMessage,
    /// A syslog daemon's line about lines that it left out.
    LinesLost,
    /// A line of smtp(8) that may concern TLS, in unknown words.
    UnknownText,
    /// A line of smtp(8) whose reason may concern TLS, in unknown words.
    UnknownReason,
    /// A line of Exim's that may concern TLS, in unknown words.
    UnknownEximText,
    /// A line of Exim's about a recipient whose reason may concern TLS, in unknown words.
    UnknownEximReason,
}

impl LineFamily {
    /// The name of this family in messages and counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LineFamily::Timestamp => "time stamp",
            LineFamily::Prefix => "prefix",
            LineFamily::ProgramName => "program name",
            LineFamily::QueueId => "queue id",
            LineFamily::TlsSummary => "TLS summary",
            LineFamily::CertificateVerification => "certificate verification",
            LineFamily::TlsHandshake => "TLS handshake",
            LineFamily::TlsrptStatus => "TLSRPT status",
            LineFamily::Delivery => "delivery",
            LineFamily::QueueActive => "queue active",
            LineFamily::DaemonStarted => "daemon started",
            LineFamily::EximRecipient => "Exim recipient",
            LineFamily::EximHost => "Exim host",
            LineFamily::EximVerification => "Exim certificate verification",
            LineFamily::LibraryProblem => "TLS library problem",
            LineFamily::TlsResumed => "TLS session resumed",
            LineFamily::TlsaUnusable => "TLSA unusable",
            LineFamily::HostExcluded => "host ruled out",
            LineFamily::HostGivenUp => "host left",
            LineFamily::MessageId => "Message-ID",
            LineFamily::QueueRemoved => "queue removed",
            LineFamily::TlsproxyConnect => "tlsproxy connection",
            LineFamily::EximMessage => "Exim message",
            LineFamily::LinesLost => "lines lost",
            LineFamily::UnknownText => "unknown smtp text",
            LineFamily::UnknownReason => "unknown delivery reason",
            LineFamily::UnknownEximText => "unknown Exim text",
            LineFamily::UnknownEximReason => "unknown Exim reason",
        }
    }

    /// Whether its lines match no known wording, though they look like the MTA's; those of all other families begin like
    /// known ones.
    #[must_use]
    pub const fn is_unrecognized(self) -> bool {
        matches!(
            self,
            LineFamily::UnknownText
                | LineFamily::UnknownReason
                | LineFamily::UnknownEximText
                | LineFamily::UnknownEximReason
        )
    }
}

impl fmt::Display for LineFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for MalformedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unreadable {} line", self.family)
    }
}

impl error::Error for MalformedLine {}
