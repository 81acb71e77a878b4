//! The families of log lines that are read, and the error for a line of a family that cannot be read.
//!
//! Takes: nothing. Gives: [`Family`] for messages and counters, [`Malformed`], and [`Found`], the result of every reader.
//! Limits: none; plain values without allocation.
//! When it fails: never.
//! Not here: which line belongs to which family (`postfix`, `exim`).

use core::{error, fmt};

/// What the reader of one line family found: `Ok(None)` for a line that is not counted, an event, or the family of a line
/// that it should have understood.
pub(crate) type Found<T> = Result<Option<T>, Family>;

/// A line that begins like one of ours and cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Malformed {
    /// What it would have been.
    pub family: Family,
}

/// The families of lines that we read, as named in [`Malformed`] and by [`event::What::family`](crate::event::What::family).
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
