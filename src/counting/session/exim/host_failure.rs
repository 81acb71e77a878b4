//! A host that failed for a message, as Exim logs it, without a domain, or as its event action reports it, with one.
//!
//! Takes: the fields of the line or of the report. Gives: the failure, with its kind.
//! Limits: those of the parsers.
//! Not here: which domain the host was tried for (`message`, `assignment`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::exim::HostProblem;

use crate::counting::session::FailureCause;

/// A host that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct HostFailure {
    pub(super) began: i64,
    pub(super) host: String,
    pub(super) ip: Option<IpAddr>,
    /// The process that tried it; 0 where the log does not tell.
    pub(super) pid: u32,
    pub(super) cause: FailureCause,
    pub(super) kind: HostFailureKind,
    /// The recipient domain, in lower case, where it is known.
    pub(super) domain: Option<String>,
    /// The log has it; otherwise only the event action does.
    pub(super) logged: bool,
    /// How many recipients' lines of the delivery attempt came before it.
    pub(super) lines_before: u32,
}

impl HostFailure {
    pub(super) fn is_at(&self, host: &str, ip: Option<IpAddr>) -> bool {
        self.host == host && self.ip == ip
    }
}

/// The kinds of host failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum HostFailureKind {
    /// A session that failed.
    Session,
    /// The same, and then the mail was offered to that host in clear text.
    ThenClearText,
    /// Policy excluded the host before any session.
    Excluded,
    /// The TLSA look-up failed. Counted only if no other host accepted the mail, because Exim silently tries the next host.
    TlsaLookupFailed,
}

impl HostFailureKind {
    pub(super) fn of(problem: HostProblem<'_>, clear_text_follows: bool) -> HostFailureKind {
        match problem {
            HostProblem::TlsaLookup => HostFailureKind::TlsaLookupFailed,
            problem if problem.excludes_host() => HostFailureKind::Excluded,
            _ if clear_text_follows => HostFailureKind::ThenClearText,
            _ => HostFailureKind::Session,
        }
    }

    /// Whether there was a session.
    pub(super) fn is_session(self) -> bool {
        matches!(self, HostFailureKind::Session | HostFailureKind::ThenClearText)
    }
}
