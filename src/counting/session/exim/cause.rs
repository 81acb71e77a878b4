//! Why a session of Exim's failed, in RFC 8460 §4.3's words.
//!
//! Takes: the problem that a line names, and what the TLS library has logged about the server before. Gives: result type
//! and reason code.
//! Limits: [`MAX_CERTIFICATE_ERRORS`], [`CONNECTION_WINDOW`].
//! Not here: the codes that Postfix and Exim share (`session::reason`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::exim::HostProblem;

use crate::base::tlsrpt::ResultType;
use crate::counting::session::FailureCause;
use crate::counting::session::handshake::exim_code;
use crate::counting::session::reason::{DANE_NO_MATCH, HANDSHAKE_FAILURE, MX_MISMATCH, TLSA_UNUSABLE, to_reason_code};

/// Servers whose verification error is remembered for one message.
const MAX_CERTIFICATE_ERRORS: usize = 64;

/// How far apart the errors of one certificate may be, in seconds: all are logged in one handshake.
const CONNECTION_WINDOW: i64 = 1;

/// What the TLS library found wrong with certificates (OpenSSL logs it in lines of their own), by server.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct CertificateErrors(Vec<CertificateError>);

#[derive(Debug, Serialize, Deserialize)]
struct CertificateError {
    time: i64,
    ip: IpAddr,
    cause: FailureCause,
    /// A recipient's line was about that server: what is logged of it now belongs to another attempt.
    settled: bool,
}

impl CertificateErrors {
    pub(super) fn add(&mut self, ip: IpAddr, cause: FailureCause, time: i64) {
        let new = CertificateError { time, ip, cause, settled: false };
        match self.0.iter_mut().find(|known| known.ip == ip) {
            // A chain can fail at several depths; the name counts only where nothing else is wrong.
            Some(known) if !known.settled && time - known.time <= CONNECTION_WINDOW => {
                if known.cause.0 == ResultType::CertificateHostMismatch {
                    known.cause = new.cause;
                }
            }
            Some(known) => *known = new,
            None => {
                if self.0.len() >= MAX_CERTIFICATE_ERRORS {
                    self.0.remove(0);
                }
                self.0.push(new);
            }
        }
    }

    pub(super) fn of(&self, ip: Option<IpAddr>) -> Option<FailureCause> {
        self.0.iter().find(|known| Some(known.ip) == ip).map(|known| known.cause.clone())
    }

    /// A recipient's line was about a server.
    pub(super) fn settle(&mut self, ip: Option<IpAddr>) {
        self.0.iter_mut().filter(|known| Some(known.ip) == ip).for_each(|known| known.settled = true);
    }

    /// Forgets what belongs to a delivery attempt that is over.
    pub(super) fn forget_settled(&mut self) {
        self.0.retain(|known| !known.settled);
    }
}

/// RFC 8460 §4.3's words for a problem; `certificate`: what the TLS library said of that server's certificate.
pub(super) fn failure_cause(
    problem: HostProblem<'_>,
    certificate: Option<FailureCause>,
    no_usable_tlsa: bool,
) -> FailureCause {
    use ResultType::{
        CertificateHostMismatch, CertificateNotTrusted, DaneRequired, DnssecInvalid, StarttlsNotSupported, TlsaInvalid,
        ValidationFailure,
    };
    let with = |result: ResultType, code: &str| (result, Some(code.to_owned()));
    let tlsa_invalid = || with(TlsaInvalid, TLSA_UNUSABLE);
    match problem {
        HostProblem::StarttlsNotOffered | HostProblem::StarttlsRefused => (StarttlsNotSupported, None),
        HostProblem::Handshake(_) | HostProblem::CertificateRejected if no_usable_tlsa => tlsa_invalid(),
        HostProblem::Handshake(words) => {
            (ValidationFailure, exim_code(words).or_else(|| Some(HANDSHAKE_FAILURE.to_owned())))
        }
        HostProblem::PolicyUnknown | HostProblem::Local | HostProblem::Other => {
            with(ValidationFailure, HANDSHAKE_FAILURE)
        }
        HostProblem::CertificateRejected | HostProblem::CertificateInvalid => {
            certificate.unwrap_or((CertificateNotTrusted, None))
        }
        HostProblem::CertificateName => (CertificateHostMismatch, None),
        // As OpenSSL words it in a line of its own.
        HostProblem::CertificateRevoked => with(CertificateNotTrusted, "certificate_revoked"),
        HostProblem::CertificateMissing => with(ValidationFailure, "certificate-not-supplied"),
        HostProblem::DaneMismatch(words) => (CertificateNotTrusted, Some(dane_mismatch_code(words))),
        HostProblem::TlsaUnusable => tlsa_invalid(),
        HostProblem::TlsaLookup => (DnssecInvalid, None),
        HostProblem::DaneRequired => (DaneRequired, None),
        HostProblem::StsMxMismatch(_) => with(ValidationFailure, MX_MISMATCH),
    }
}

/// libdane's words, `Verification failed. The certificate differs. `, as a reason code.
fn dane_mismatch_code(words: &[u8]) -> String {
    let words = words.strip_prefix(b"Verification failed. ").unwrap_or(words).trim_ascii();
    match words.strip_suffix(b".").unwrap_or(words) {
        b"The certificate differs" => DANE_NO_MATCH.to_owned(),
        words => to_reason_code(words),
    }
}
