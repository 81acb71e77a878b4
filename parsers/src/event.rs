//! The vocabulary: what one log line says, before anything is put together.
//!
//! Takes: nothing. Gives: types that borrow from the line; no allocation.
//! Every text field is a stranger's until proved otherwise: names and replies come from remote servers.
//! Not here: what a line means for a count (`session`), or which year it was written in (`civil`).

pub mod exim;
mod peer;

pub use self::peer::{Peer, Trust, VerificationError};
use crate::family::LineFamily;

/// One line that concerns outbound TLS, a delivery, or the life of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The time in the line.
    pub timestamp: LogTimestamp,
    /// Who wrote it.
    pub process: Process<'a>,
    /// Its kind, with the fields of the line.
    pub kind: EventKind<'a>,
}

/// The time in a line, with a year and a zone only where the line has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogTimestamp {
    /// `Nov 22 01:39:01`: no year, no zone, no fraction.
    Civil {
        /// 1 to 12.
        month: u8,
        /// 1 to 31.
        day: u8,
        /// 0 to 23.
        hour: u8,
        /// 0 to 59.
        minute: u8,
        /// 0 to 60.
        second: u8,
    },
    /// `2026-11-22T01:46:13.565141+00:00`: seconds since 1970-01-01T00:00:00Z; the fraction is dropped.
    Utc(i64),
    /// Exim's `2026-11-22 01:40:29`, without a zone: what `Utc` would be if the zone were UTC.
    Local(i64),
}

/// The writer of a line: `postfix/relay/smtp[1234]` is instance `postfix/relay`, name `smtp`, pid 1234.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Process<'a> {
    /// The host that it runs on, as the log names it; empty where it does not.
    pub host: &'a [u8],
    /// The `syslog_name`, all before the last slash.
    pub instance: &'a [u8],
    /// The program, after the last slash.
    pub name: &'a [u8],
    /// The process id.
    pub pid: u32,
}

/// The kinds of lines that are counted, each with the fields that are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind<'a> {
    /// `Trusted TLS connection established to HOST[IP]:PORT: …`; with `reused`, a cached connection and no handshake.
    Established {
        /// The server.
        peer: Peer<'a>,
        /// What Postfix made of its certificate.
        trust: Trust,
        /// `reused` instead of `established`.
        reused: bool,
    },
    /// `certificate verification failed for HOST[IP]:PORT: …`.
    VerificationFailed {
        /// The server.
        peer: Peer<'a>,
        /// Why.
        cause: VerificationError<'a>,
    },
    /// `SSL_connect error to HOST[IP]:PORT: …`.
    HandshakeFailed {
        /// The server.
        peer: Peer<'a>,
        /// `lost connection`, an errno text, or a number.
        cause: &'a [u8],
    },
    /// `warning: TLS library problem: …`: the detail of the handshake failure before it.
    LibraryProblem {
        /// The text of the TLS library.
        text: &'a [u8],
    },
    /// `HOST[IP]:PORT: re-using session with untrusted …, look for details earlier in the log`.
    ResumedUntrusted {
        /// The server.
        peer: Peer<'a>,
    },
    /// `HOST[IP]:PORT: all TLSA records unusable[, fallback to unauthenticated TLS]`.
    TlsaUnusable {
        /// The server.
        peer: Peer<'a>,
    },
    /// A host that policy excluded before any connection.
    HostExcluded {
        /// The next-hop destination, as in the line.
        next_hop: &'a [u8],
        /// The MX host.
        host: &'a [u8],
        /// Why.
        reason: ExclusionReason,
    },
    /// `TLSRPT: status=…`: the result that Postfix itself reports for a session (3.10 and later).
    TlsrptResult {
        /// The TLSRPT policy domain.
        domain: &'a [u8],
        /// The server, without a port.
        peer: Peer<'a>,
        /// `None` is success.
        failure: Option<TlsrptFailure<'a>>,
    },
    /// `warning: Could not report TLS handshake result to tlsrpt library: …`: the datagram behind the last `TLSRPT:`
    /// line was not sent.
    TlsrptNotSent,
    /// `QID: reason`: Postfix gave up a host that was not the last one.
    HostGivenUp {
        /// The message.
        queue_id: &'a [u8],
        /// Why.
        reason: TlsReason<'a>,
        /// Not where the reason may concern TLS and has unknown words.
        recognized: bool,
    },
    /// `QID: to=<…>, relay=…, status=… (…)`: what became of one recipient.
    Delivery {
        /// The message.
        queue_id: &'a [u8],
        /// What stands after the last `@` of the recipient address; empty where there is none.
        recipient_domain: &'a [u8],
        /// The server; `None` for `relay=none` and other words that are no host.
        relay: Option<Peer<'a>>,
        /// `conn_use=` is there and 2 or more: a cached connection.
        cached_connection: bool,
        /// `A/B/C` of `delays=A/B/C/D`, up to the end of the connection set-up: equal for all recipients of one delivery
        /// request on one connection.
        delays: &'a [u8],
        /// `tls=` (3.11, `smtp_log_tls_feature_status`).
        tls: Option<TlsFeature<'a>>,
        /// `status=sent`.
        sent: bool,
        /// The text in parentheses.
        reason: TlsReason<'a>,
        /// Not where the reason may concern TLS and has unknown words, or a field or a level is unknown.
        recognized: bool,
    },
    /// `QID: message-id=<…>` or `QID: resent-message-id=<…>` of cleanup(8).
    MessageId {
        /// The message.
        queue_id: &'a [u8],
        /// Without the angle brackets.
        message_id: &'a [u8],
    },
    /// `QID: from=<…>, size=…, nrcpt=… (queue active)` of qmgr(8).
    QueueActive {
        /// The message.
        queue_id: &'a [u8],
        /// It has a null sender: it is a bounce or another notification (RFC 5321 §4.5.5).
        null_sender: bool,
    },
    /// `QID: removed` of qmgr(8), or of cleanup(8) for a message that never was.
    QueueRemoved {
        /// The message.
        queue_id: &'a [u8],
    },
    /// `daemon started -- version …` of master(8).
    DaemonStarted {
        /// For example `3.7.11`.
        version: &'a [u8],
    },
    /// A line of Exim's.
    Exim(exim::EximLine<'a>),
    /// `reload -- version …` of master(8): from here on another configuration may be in force.
    DaemonReloaded,
    /// A syslog daemon has left lines out, because there were too many.
    LinesLost {
        /// How many, at least; those of other programs may be among them.
        number: u32,
    },
    /// `last message repeated N times` of a syslog daemon, which stands for lines like the one before it.
    LastLineRepeated {
        /// How many more of them there were.
        times: u32,
    },
    /// `CONNECT to [IP]:PORT` of tlsproxy(8): smtp(8) will log the session whatever its log level is.
    TlsproxyConnect,
}

impl EventKind<'_> {
    /// The family of unrecognized lines that it was read from, where the line has words that may concern TLS and that no
    /// reader knows.
    #[must_use]
    pub const fn unrecognized_family(&self) -> Option<LineFamily> {
        match self {
            EventKind::HostGivenUp { recognized: false, .. } | EventKind::Delivery { recognized: false, .. } => {
                Some(LineFamily::UnknownReason)
            }
            EventKind::Exim(exim::EximLine { kind: exim::LineKind::Recipient(recipient), .. })
                if !recipient.recognized =>
            {
                Some(LineFamily::UnknownEximReason)
            }
            _ => None,
        }
    }

    /// The family of lines that it was read from.
    #[must_use]
    pub const fn family(&self) -> LineFamily {
        match self {
            EventKind::Established { .. } => LineFamily::TlsSummary,
            EventKind::VerificationFailed { .. } => LineFamily::CertificateVerification,
            EventKind::HandshakeFailed { .. } => LineFamily::TlsHandshake,
            EventKind::LibraryProblem { .. } => LineFamily::LibraryProblem,
            EventKind::ResumedUntrusted { .. } => LineFamily::TlsResumed,
            EventKind::TlsaUnusable { .. } => LineFamily::TlsaUnusable,
            EventKind::HostExcluded { .. } => LineFamily::HostExcluded,
            EventKind::TlsrptResult { .. } | EventKind::TlsrptNotSent => LineFamily::TlsrptStatus,
            EventKind::HostGivenUp { .. } => LineFamily::HostGivenUp,
            EventKind::Delivery { .. } => LineFamily::Delivery,
            EventKind::MessageId { .. } => LineFamily::MessageId,
            EventKind::QueueActive { .. } => LineFamily::QueueActive,
            EventKind::QueueRemoved { .. } => LineFamily::QueueRemoved,
            EventKind::DaemonStarted { .. } | EventKind::DaemonReloaded => LineFamily::DaemonStarted,
            EventKind::Exim(line) => match line.kind {
                exim::LineKind::Arrived { .. } | exim::LineKind::Completed => LineFamily::EximMessage,
                exim::LineKind::Recipient(_) => LineFamily::EximRecipient,
                exim::LineKind::Host { .. } | exim::LineKind::NoUsableTlsa => LineFamily::EximHost,
                exim::LineKind::VerifyError { .. } => LineFamily::EximVerification,
            },
            EventKind::LinesLost { .. } | EventKind::LastLineRepeated { .. } => LineFamily::LinesLost,
            EventKind::TlsproxyConnect => LineFamily::TlsproxyConnect,
        }
    }
}

/// The first part of `tls=`: the security level. `may:none` means that `may` was requested and `none` was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFeature<'a> {
    /// The requested level: `may`, `dane-only`, …; `unknown` if the policy look-up failed.
    pub requested: &'a [u8],
    /// The level that was used; equal to `requested` unless it was downgraded.
    pub effective: &'a [u8],
    /// Whether the policy was met.
    pub status: TlsFeatureStatus,
}

/// The character before or after a feature of `tls=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFeatureStatus {
    /// No character.
    Met,
    /// `!`: the policy was not met, and nothing was sent.
    Violated,
    /// `?`: not decided, for the connection was lost before or is a cached one.
    Undecided,
}

/// Why policy excluded a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExclusionReason {
    /// `TLSA lookup error for …`.
    TlsaLookupError,
    /// `TLSA records unusable`.
    TlsaUnusable,
    /// `no TLSA records found`.
    NoTlsa,
    /// `non DNSSEC destination`.
    NotDnssec,
    /// `MX name '…' does not match STS MX pattern for '…'`.
    StsMxMismatch,
    /// `client TLS configuration problem`: the policy could not be looked up, or its text is wrong.
    PolicyUnknown,
}

/// The failure in a `TLSRPT: status=failure` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsrptFailure<'a> {
    /// For example `certificate_host_mismatch`, with underscores as Postfix prints it.
    pub failure_type: &'a [u8],
    /// For example `tls-handshake-failure`.
    pub reason: Option<&'a [u8]>,
}

/// The TLS reason why Postfix gave up a host or ended the delivery to a recipient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsReason<'a> {
    /// `TLS is required, but host HOST[IP] refused to start TLS: …`.
    StarttlsRefused(Peer<'a>),
    /// `TLS is required, but was not offered by host HOST[IP]`.
    StarttlsNotOffered(Peer<'a>),
    /// `Cannot start TLS: handshake failure`.
    HandshakeFailure,
    /// `Server certificate not verified`.
    NotVerified,
    /// `Server certificate not trusted` (3.4 and 3.5).
    NotTrusted,
    /// `client TLS configuration problem`: the policy of the last host could not be looked up, or its text is wrong.
    PolicyUnknown,
    /// Anything else: delivered, refused, or failed for a reason other than TLS.
    Other,
}
