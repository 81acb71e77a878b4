//! The vocabulary: what one log line says, before anything is put together.
//!
//! Takes: nothing. Gives: types that borrow from the line; no allocation.
//! Every text field is a stranger's until proved otherwise: names and replies come from remote servers.
//! Not here: what a line means for a count (`session`), or which year it was written in (`civil`).

pub mod exim;
mod peer;

pub use self::peer::{Peer, Trust, VerifyCause};
use crate::family::Family;

/// One line that concerns outbound TLS, a delivery, or the life of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// The time in the line.
    pub stamp: Stamp,
    /// Who wrote it.
    pub process: Process<'a>,
    /// What it says.
    pub what: What<'a>,
}

/// The time in a line, as far as the line knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
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
    /// The `syslog_name`, all before the last slash.
    pub instance: &'a [u8],
    /// The program, after the last slash.
    pub name: &'a [u8],
    /// The process id.
    pub pid: u32,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What<'a> {
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
        cause: VerifyCause<'a>,
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
    /// A host that policy ruled out before any connection.
    HostRuledOut {
        /// The next-hop destination, as in the line.
        next_hop: &'a [u8],
        /// The MX host.
        host: &'a [u8],
        /// Why.
        why: RuledOut,
    },
    /// `TLSRPT: status=…`: what Postfix itself reports of a session (3.10 and later).
    Native {
        /// The TLSRPT policy domain.
        domain: &'a [u8],
        /// The server, without a port.
        peer: Peer<'a>,
        /// `None` is success.
        failure: Option<NativeFailure<'a>>,
    },
    /// `warning: Could not report TLS handshake result to tlsrpt library: …`: the datagram behind the last `TLSRPT:`
    /// line was not sent.
    NativeUnsent,
    /// `QID: reason`: a host that was not the last one was given up.
    HostLeft {
        /// The message.
        queue_id: &'a [u8],
        /// Why.
        reason: Reason<'a>,
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
        /// `tls=` (3.11, `smtp_log_tls_feature_status`).
        tls: Option<TlsFeature<'a>>,
        /// `status=sent`.
        sent: bool,
        /// The text in parentheses.
        reason: Reason<'a>,
    },
    /// `QID: message-id=<…>` or `QID: resent-message-id=<…>` of cleanup(8).
    MessageId {
        /// The message.
        queue_id: &'a [u8],
        /// Without the angle brackets.
        message_id: &'a [u8],
    },
    /// `QID: from=<…>, size=…, nrcpt=… (queue active)` of qmgr(8).
    Active {
        /// The message.
        queue_id: &'a [u8],
    },
    /// `QID: removed` of qmgr(8), or of cleanup(8) for a message that never was.
    Removed {
        /// The message.
        queue_id: &'a [u8],
    },
    /// `daemon started -- version …` of master(8).
    Started {
        /// For example `3.7.11`.
        version: &'a [u8],
    },
    /// A line of Exim's.
    Exim(exim::Line<'a>),
    /// `reload -- version …` of master(8): from here on another configuration may be in force.
    Reloaded,
    /// `CONNECT to [IP]:PORT` of tlsproxy(8): smtp(8) will log the session whatever its log level is.
    Proxied,
}

impl What<'_> {
    /// The family of lines that it was read from.
    #[must_use]
    pub const fn family(&self) -> Family {
        match self {
            What::Established { .. } => Family::TlsSummary,
            What::VerificationFailed { .. } => Family::CertificateVerification,
            What::HandshakeFailed { .. } => Family::TlsHandshake,
            What::LibraryProblem { .. } => Family::LibraryProblem,
            What::ResumedUntrusted { .. } => Family::TlsResumed,
            What::TlsaUnusable { .. } => Family::TlsaUnusable,
            What::HostRuledOut { .. } => Family::HostRuledOut,
            What::Native { .. } | What::NativeUnsent => Family::TlsrptStatus,
            What::HostLeft { .. } => Family::HostLeft,
            What::Delivery { .. } => Family::Delivery,
            What::MessageId { .. } => Family::MessageId,
            What::Active { .. } => Family::QueueActive,
            What::Removed { .. } => Family::QueueRemoved,
            What::Started { .. } | What::Reloaded => Family::DaemonStarted,
            What::Exim(line) => match line.says {
                exim::Says::Arrived { .. } | exim::Says::Completed => Family::EximMessage,
                exim::Says::Recipient(_) => Family::EximRecipient,
                exim::Says::Host { .. } | exim::Says::NoUsableTlsa => Family::EximHost,
                exim::Says::VerifyError { .. } => Family::EximVerification,
            },
            What::Proxied => Family::Proxied,
        }
    }
}

/// The first part of `tls=`, which is about the security level; `may:none` was asked as `may` and came to `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsFeature<'a> {
    /// The level that was wanted of the destination: `may`, `dane-only`, …; `unknown` where the policy look-up failed.
    pub asked: &'a [u8],
    /// The level that came of it; the same where nothing was downgraded.
    pub reached: &'a [u8],
    /// Whether that was as the policy asks.
    pub state: TlsState,
}

/// The mark at a feature of `tls=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsState {
    /// No mark.
    Met,
    /// `!`: the policy was not met, and nothing was sent.
    Violated,
    /// `?`: not decided, for the connection was lost before or is a cached one.
    Undecided,
}

/// Why policy ruled a host out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuledOut {
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
}

/// What a `TLSRPT: status=failure` line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NativeFailure<'a> {
    /// For example `certificate_host_mismatch`, with underscores as Postfix prints it.
    pub failure_type: &'a [u8],
    /// For example `tls-handshake-failure`.
    pub reason: Option<&'a [u8]>,
}

/// Why a host was left or a recipient's delivery ended, as far as TLS is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
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
    /// Anything else: delivered, refused, or lost for a reason that is not TLS's.
    Other,
}
