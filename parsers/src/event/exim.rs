//! The kinds of Exim's log lines.
//!
//! Takes: nothing. Gives: types that borrow from the line; no allocation.
//! Almost every line names its message. Names, addresses and replies in it are a stranger's.

use core::net::IpAddr;

use super::peer::{Peer, VerificationError};

/// A line about one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EximLine<'a> {
    /// The message, such as `1xUwZB-0006OQ-0w`, or from 4.97 on `1xUwgo-000000005mC-2Ih7`.
    pub id: &'a [u8],
    /// Its kind, with the fields of the line.
    pub kind: LineKind<'a>,
}

/// The kinds of lines about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind<'a> {
    /// `<= … id=…` and `<= <> …`: it was taken in.
    Arrived {
        /// Its Message-ID, without angle brackets; empty where the line has none.
        message_id: &'a [u8],
        /// It has a null sender: it is a bounce or another notification (RFC 5321 §4.5.5).
        null_sender: bool,
    },
    /// `=>`, `->`, `>>`, `==`, `**`: what became of one recipient in one delivery attempt.
    Recipient(RecipientLine<'a>),
    /// `H=HOST [IP]: …`, `DANE attempt failed; TLS connection to HOST [IP]: …`,
    /// `TLS session: …: delivering unencrypted to H=HOST [IP] …`: one host, told when it failed.
    Host {
        /// The server.
        peer: Peer<'a>,
        /// Why.
        problem: HostProblem<'a>,
        /// `delivering unencrypted`: the mail is offered to the same host in clear text next.
        clear_text_follows: bool,
    },
    /// `[IP] SSL verify error: …` (OpenSSL): told also where a certificate need not pass.
    VerifyError {
        /// The server's address.
        ip: IpAddr,
        /// Why it does not pass.
        cause: VerificationError<'a>,
    },
    /// `DANE error: No usable TLSA records` (OpenSSL): about the host whose failure follows.
    NoUsableTlsa,
    /// `Completed`: nothing more is to be done for it.
    Completed,
}

/// A line about one recipient in one delivery attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipientLine<'a> {
    /// The status that the arrow stands for.
    pub status: RecipientStatus,
    /// The address, as it is logged.
    pub address: &'a [u8],
    /// What stands after its last `@`; empty for a local delivery.
    pub domain: &'a [u8],
    /// The server; `None` where none was connected to.
    pub peer: Option<Peer<'a>>,
    /// `*` behind the address of the server: the connection of an earlier message or transaction was continued.
    pub continued_connection: bool,
    /// `X=` and what `CV=` says of the certificate; `None` where the line has no `X=`: `==` never has one.
    pub tls: Option<CertificateCheck>,
    /// Why it was not delivered.
    pub problem: HostProblem<'a>,
    /// Not where the reason may concern TLS and has unknown words.
    pub recognized: bool,
}

/// The status of a recipient: the meaning of the arrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecipientStatus {
    /// `=>` or `>>`: delivered; the first of its transaction.
    Delivered,
    /// `->`: delivered in the same transaction.
    DeliveredInSameTransaction,
    /// `==`: deferred.
    Deferred,
    /// `**`: bounced.
    Failed,
}

/// `CV=`: whether the certificate was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertificateCheck {
    /// `CV=dane`: by a TLSA record.
    Dane,
    /// `CV=yes`: by its chain, and by its name where that was asked for.
    Pkix,
    /// `CV=no`.
    No,
    /// The selector `tls_certificate_verified` is off.
    NotLogged,
}

/// Why a host was given up, as far as TLS is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostProblem<'a> {
    /// `a TLS session is required, but the server did not offer TLS support`.
    StarttlsNotOffered,
    /// `a TLS session is required, but an attempt to start TLS failed`, or a reply to STARTTLS itself.
    StarttlsRefused,
    /// The TLS handshake failed, in the library's words.
    Handshake(&'a [u8]),
    /// `certificate invalid` (GnuTLS): its chain, or its dates.
    CertificateInvalid,
    /// `(certificate verification failed)` and no more (GnuTLS): its name.
    CertificateName,
    /// `certificate revoked`.
    CertificateRevoked,
    /// `certificate not supplied`.
    CertificateMissing,
    /// `certificate verify failed` (OpenSSL): why stands in a line of its own, [`LineKind::VerifyError`].
    CertificateRejected,
    /// The certificate matches no TLSA record (GnuTLS, libdane's words).
    DaneMismatch(&'a [u8]),
    /// No TLSA record can be used.
    TlsaUnusable,
    /// `DANE error: tlsa lookup DEFER`: it could not be looked up.
    TlsaLookup,
    /// `DANE error: tlsa lookup FAIL`, `DANE error: HOST lookup not DNSSEC`: DANE was required.
    DaneRequired,
    /// The event action of `packaging/exim.example`: the MTA-STS policy of this domain does not name the host.
    StsMxMismatch(&'a [u8]),
    /// The router of `packaging/exim.example`: the TLS policy of the recipient domain is not known, so that the mail waits.
    PolicyUnknown,
    /// A fault of this host's: no TLS was tried.
    Local,
    /// Anything else, or nothing.
    Other,
}

impl HostProblem<'_> {
    /// Whether policy excluded the host before any TLS handshake.
    #[must_use]
    pub const fn excludes_host(&self) -> bool {
        matches!(self, HostProblem::TlsaLookup | HostProblem::DaneRequired | HostProblem::StsMxMismatch(_))
    }

    /// Whether a TLS session was attempted, or could not be attempted for lack of STARTTLS, and failed.
    #[must_use]
    pub const fn is_session_failure(&self) -> bool {
        !self.excludes_host() && !matches!(self, HostProblem::PolicyUnknown | HostProblem::Local | HostProblem::Other)
    }
}

/// An attempt that failed at one host, as Exim's event action tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventAction<'a> {
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub time: i64,
    /// The message.
    pub id: &'a str,
    /// The MX host.
    pub host: &'a str,
    /// Its address.
    pub ip: IpAddr,
    /// The recipient domain.
    pub domain: &'a str,
    /// What went wrong.
    pub problem: HostProblem<'a>,
}
