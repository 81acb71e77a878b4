//! The open state of one message of Exim's: the hosts that failed for it, and the recipients of its delivery attempt.
//!
//! Takes: the lines about the message, in the order of the log. Gives: sessions that have ended, each with its domain.
//! A recipient's line settles the failure at exactly its host and address, one for each batch of recipients, and only where
//! the line shows no TLS: with TLS, the connection is another one. Each further failure waits until the delivery attempt is
//! over (a recipient comes again, `Completed`, the timeout) and goes to the closest domain (`assignment`) then. Failures
//! behind the last recipient's line belong to the next attempt.
//! Exim's event action can report a failure as it happens, with its domain: the log leaves out a host where required TLS
//! failed and the next host took the mail. Such a report and the log's line about the same host are one session, whichever
//! comes first.
//! Limits: the constants below. Not here: which messages are open, and for how long (`EximSessions`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::Peer;
use tlswarden_parsers::event::exim::{CertificateCheck, EventAction, HostProblem, RecipientLine, RecipientStatus};

use super::assignment::assign_domains;
use super::batch::{DeliveryBatch, Recipient, SessionEnd};
use super::cause::{CertificateErrors, failure_cause};
use super::host_failure::{HostFailure, HostFailureKind};
use crate::base::tlsrpt::{SessionResult, Trust};
use crate::counting::session::FailureCause;
use crate::counting::session::text::lower_case;

/// Hosts that failed for one message and wait for a recipient: hosts_max_try_hardlimit is 50 for each of its domains.
const MAX_HOST_FAILURES: usize = 256;

/// Hosts of one delivery attempt whose session is known: as many as it has batches of recipients.
const MAX_BATCHES: usize = 256;

/// How far a line may be from what was reported of the same connection, in seconds: Exim writes a line as soon as it knows.
const EVENT_SLACK: i64 = 1;

/// The open state of one message.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct OpenMessage {
    host_failures: Vec<HostFailure>,
    batches: Vec<DeliveryBatch>,
    excluded_domains: Vec<ExcludedDomain>,
    certificate_errors: CertificateErrors,
    /// `No usable TLSA records` was logged, and not yet the host that it is about.
    no_usable_tlsa: bool,
    /// The message is known to have a null sender.
    null_sender: bool,
    /// Recipients' lines of the delivery attempt.
    lines: u32,
    /// When the last of them was written.
    last_line_at: i64,
}

/// A domain whose recipients wait because policy excluded its hosts, in a line that names none of them.
#[derive(Debug, Serialize, Deserialize)]
struct ExcludedDomain {
    domain: String,
    began: i64,
    cause: FailureCause,
    kind: HostFailureKind,
}

/// A session that has ended.
#[derive(Debug, Default)]
pub(super) struct EndedSession {
    /// The recipient domain; empty where it is not known.
    pub(super) domain: String,
    pub(super) began: i64,
    pub(super) host: Option<String>,
    pub(super) ip: Option<IpAddr>,
    pub(super) trust: Option<Trust>,
    pub(super) dane: Option<bool>,
    pub(super) observed: Option<SessionResult>,
    pub(super) cause: Option<FailureCause>,
    pub(super) deferred: bool,
    pub(super) clear_text: bool,
}

impl OpenMessage {
    /// A message of which nothing is open.
    pub(super) fn new(null_sender: bool) -> OpenMessage {
        OpenMessage { null_sender, ..OpenMessage::default() }
    }

    /// It turns out to have a null sender.
    pub(super) fn set_null_sender(&mut self) {
        self.null_sender = true;
    }

    /// Whether it is known to have a null sender.
    pub(super) fn has_null_sender(&self) -> bool {
        self.null_sender
    }

    /// A line about a host that failed; gives how many failures were evicted for it.
    pub(super) fn add_host_failure(
        &mut self,
        peer: Peer<'_>,
        problem: HostProblem<'_>,
        clear_text_follows: bool,
        pid: u32,
        time: i64,
    ) -> u64 {
        let cause = self.take_cause(problem, peer.ip);
        let (host, kind) = (lower_case(peer.host), HostFailureKind::of(problem, clear_text_follows));
        let reported = |known: &&mut HostFailure| {
            !known.logged
                && known.kind.is_session() == kind.is_session()
                && known.is_at(&host, peer.ip)
                && known.began <= time + EVENT_SLACK
        };
        if let Some(known) = self.host_failures.iter_mut().find(reported) {
            (known.logged, known.kind, known.pid) = (true, kind, pid);
            return 0;
        }
        let (ip, lines_before) = (peer.ip, self.lines);
        let domain = match problem {
            HostProblem::StsMxMismatch(domain) => Some(lower_case(domain)),
            _ => None,
        };
        self.push(HostFailure { began: time, host, ip, pid, cause, kind, domain, logged: true, lines_before })
    }

    /// A failed session that the event action reports; gives how many failures were evicted for it.
    pub(super) fn add_reported_failure(&mut self, event: &EventAction<'_>) -> u64 {
        let cause = failure_cause(event.problem, None, false);
        let (host, ip) = (event.host.to_ascii_lowercase(), Some(event.ip));
        let domain = Some(event.domain.to_ascii_lowercase());
        // The log may have been read further already: what it says of that host is the same session.
        let same = |known: &&mut HostFailure| known.kind.is_session() && known.is_at(&host, ip);
        if let Some(known) = self.host_failures.iter_mut().rfind(same).filter(|known| known.domain.is_none()) {
            known.domain = domain;
            return 0;
        }
        let just_now = |batch: &DeliveryBatch| (0..=EVENT_SLACK).contains(&(batch.last_time() - event.time));
        if self.batches.iter().any(|batch| just_now(batch) && batch.had_session() && batch.is_at(&host, ip)) {
            return 0;
        }
        self.push(HostFailure {
            began: event.time,
            host,
            ip,
            pid: 0,
            cause,
            kind: HostFailureKind::Session,
            domain,
            logged: false,
            lines_before: self.lines,
        })
    }

    /// What the TLS library said of a server's certificate.
    pub(super) fn add_certificate_error(&mut self, ip: IpAddr, cause: FailureCause, time: i64) {
        self.certificate_errors.add(ip, cause, time);
    }

    /// `No usable TLSA records`: about the first session that fails after it, and no other.
    pub(super) fn set_no_usable_tlsa(&mut self) {
        self.no_usable_tlsa = true;
    }

    /// Sessions that are known to have failed and wait for their domain.
    pub(super) fn waiting(&self) -> u64 {
        self.host_failures.len() as u64
    }

    /// A recipient's line; `logs_cipher`: a line without `X=` is about clear text. Sessions that have ended go to `out`.
    pub(super) fn handle_recipient(
        &mut self,
        line: &RecipientLine<'_>,
        domain: &str,
        pid: u32,
        time: i64,
        logs_cipher: bool,
        out: &mut Vec<EndedSession>,
    ) {
        let recipient = Recipient::of(line);
        if self.batches.iter().any(|batch| batch.has(recipient)) {
            self.end_attempt(out);
        }
        self.lines += 1;
        self.last_line_at = time;
        let reported = self.take_reported(domain, time, out);
        let at = self.batch_for(line, domain, pid, time);
        if self.batches[at].end().is_none()
            && let Some(end) = self.session_end(line, domain, time, logs_cipher, reported, out)
        {
            self.batches[at].set_end(end);
        }
        self.certificate_errors.settle(line.peer.and_then(|peer| peer.ip));
    }

    /// The message is done with, or nothing was logged of it for long.
    pub(super) fn end(mut self, out: &mut Vec<EndedSession>) {
        self.end_attempt(out);
        // Behind the last recipient's line: only the event action knows whose they are.
        let no_lookups = |failure: &HostFailure| failure.kind != HostFailureKind::TlsaLookupFailed;
        out.extend(self.host_failures.into_iter().filter(no_lookups).map(failed_session));
    }

    /// How the session of a recipient's line ended, as far as the line tells; its failure goes to `out`, or its success.
    /// `reported`: the hosts that the event action has reported for the domain.
    fn session_end(
        &mut self,
        line: &RecipientLine<'_>,
        domain: &str,
        time: i64,
        logs_cipher: bool,
        reported: Vec<(String, Option<IpAddr>)>,
        out: &mut Vec<EndedSession>,
    ) -> Option<SessionEnd> {
        if line.continued_connection {
            return Some(SessionEnd::Continued);
        }
        let Some(peer) = line.peer else {
            if line.problem == HostProblem::PolicyUnknown {
                let domain = domain.to_owned();
                out.push(EndedSession { domain, began: time, deferred: true, ..EndedSession::default() });
                return Some(SessionEnd::Deferred);
            }
            if !line.problem.excludes_host() {
                return None;
            }
            let is_ours = |known: &mut HostFailure| !known.kind.is_session() && known.domain.as_deref() == Some(domain);
            let ours: Vec<HostFailure> = self.host_failures.extract_if(.., is_ours).collect();
            if !ours.is_empty() {
                out.extend(ours.into_iter().map(failed_session));
                return Some(SessionEnd::Excluded);
            }
            let cause = self.take_cause(line.problem, None);
            let kind = HostFailureKind::of(line.problem, false);
            let new = ExcludedDomain { domain: domain.to_owned(), began: time, cause, kind };
            // A process logs its hosts before the recipients: where none was excluded, this line is all there is.
            if self.host_failures.iter().all(|known| known.kind.is_session()) && self.excluded_domains.is_empty() {
                let told =
                    |batch: &DeliveryBatch| batch.domain() == domain && batch.end() == Some(SessionEnd::Excluded);
                if !self.batches.iter().any(told) {
                    out.push(new.into_ended_session());
                }
                return Some(SessionEnd::Excluded);
            }
            push_bounded(&mut self.excluded_domains, MAX_BATCHES, new);
            return None;
        };
        let host = lower_case(peer.host);
        let ended = EndedSession {
            domain: domain.to_owned(),
            began: time,
            host: Some(host.clone()),
            ip: peer.ip,
            ..EndedSession::default()
        };
        if let Some(check) = line.tls {
            let (trust, dane) = match check {
                CertificateCheck::Dane => (Some(Trust::Verified), Some(true)),
                CertificateCheck::Pkix => (Some(Trust::Verified), Some(false)),
                CertificateCheck::No => (Some(Trust::Untrusted), Some(false)),
                CertificateCheck::NotLogged => (None, None),
            };
            let cause = self.certificate_errors.of(peer.ip);
            out.push(EndedSession { trust, dane, observed: Some(SessionResult::Success), cause, ..ended });
            return Some(SessionEnd::Encrypted);
        }
        let (failed, excluded) = (line.problem.is_session_failure(), line.problem.excludes_host());
        let in_clear_text = !failed && !excluded;
        let fits = |kind: HostFailureKind| match kind {
            HostFailureKind::Session => failed,
            HostFailureKind::ThenClearText => in_clear_text,
            HostFailureKind::Excluded | HostFailureKind::TlsaLookupFailed => excluded,
        };
        let as_logged = if excluded { SessionEnd::Excluded } else { SessionEnd::FailedAsLogged { in_clear_text } };
        if reported.iter().any(|(name, ip)| *name == host && *ip == peer.ip) {
            return Some(if failed { SessionEnd::Failed } else { as_logged });
        }
        let here = |known: &HostFailure| {
            known.logged && known.domain.as_deref().is_none_or(|d| d == domain) && known.is_at(&host, peer.ip)
        };
        if let Some(at) = self.host_failures.iter().position(|known| here(known) && fits(known.kind)) {
            let known = self.host_failures.remove(at);
            self.assign_process(known.pid, domain);
            out.push(EndedSession { domain: domain.to_owned(), ..failed_session(known) });
            return Some(as_logged);
        }
        // The same connection, for the recipients of several domains: it is logged once.
        let shared = |batch: &DeliveryBatch| batch.is_at(&host, peer.ip) && batch.end() == Some(as_logged);
        if !excluded && self.batches.iter().any(shared) {
            return Some(as_logged);
        }
        if failed || excluded {
            let (result, code) = self.take_cause(line.problem, peer.ip);
            out.push(EndedSession { observed: Some(SessionResult::Failure(result, code)), ..ended });
            return Some(if failed { SessionEnd::Failed } else { SessionEnd::Excluded });
        }
        if !matches!(line.status, RecipientStatus::Delivered | RecipientStatus::DeliveredInSameTransaction) {
            return None;
        }
        if logs_cipher {
            out.push(EndedSession { clear_text: true, ..ended });
        }
        Some(SessionEnd::ClearText)
    }

    /// Takes the failures that the event action has reported for a domain; gives their hosts.
    fn take_reported(&mut self, domain: &str, time: i64, out: &mut Vec<EndedSession>) -> Vec<(String, Option<IpAddr>)> {
        // One of a later delivery attempt waits: the log is being read up.
        let is_ours = |known: &mut HostFailure| {
            known.domain.as_deref() == Some(domain) && known.kind.is_session() && known.began <= time + EVENT_SLACK
        };
        let taken: Vec<HostFailure> = self.host_failures.extract_if(.., is_ours).collect();
        let hosts = taken.iter().map(|known| (known.host.clone(), known.ip)).collect();
        out.extend(taken.into_iter().map(failed_session));
        hosts
    }

    /// A delivery attempt is over: what failed in it goes to the closest domain each.
    fn end_attempt(&mut self, out: &mut Vec<EndedSession>) {
        let (lines, last_line_at) = (self.lines, self.last_line_at);
        let is_past = |known: &mut HostFailure| {
            known.lines_before < lines && (known.logged || known.began <= last_line_at + EVENT_SLACK)
        };
        let mut past: Vec<HostFailure> = self.host_failures.extract_if(.., is_past).collect();
        assign_domains(&mut past, &self.batches);
        let waits = |failure: &HostFailure, of: &[ExcludedDomain]| {
            of.iter().any(|e| e.kind == failure.kind && Some(&e.domain) == failure.domain.as_ref())
        };
        // What is told host by host is not told again for the domain.
        let told = |e: &ExcludedDomain| {
            past.iter().any(|known| !known.kind.is_session() && known.domain.as_ref() == Some(&e.domain))
                || self.batches.iter().any(|b| b.domain() == e.domain && b.end() == Some(SessionEnd::Excluded))
        };
        let untold: Vec<bool> = self.excluded_domains.iter().map(|e| !told(e)).collect();
        for failure in past {
            // A look-up that failed on the way to a host that took the mail, or refused it, does not count.
            if failure.kind != HostFailureKind::TlsaLookupFailed || waits(&failure, &self.excluded_domains) {
                out.push(failed_session(failure));
            }
        }
        let mut seen: Vec<String> = Vec::new();
        for (excluded, untold) in std::mem::take(&mut self.excluded_domains).into_iter().zip(untold) {
            if untold && !seen.contains(&excluded.domain) {
                seen.push(excluded.domain.clone());
                out.push(excluded.into_ended_session());
            }
        }
        self.batches.clear();
        self.lines = 0;
        self.host_failures.iter_mut().for_each(|known| known.lines_before = 0);
        self.certificate_errors.forget_settled();
    }

    /// What else a process has logged concerns the same domain.
    fn assign_process(&mut self, pid: u32, domain: &str) {
        let same = |known: &&mut HostFailure| pid != 0 && known.pid == pid && known.domain.is_none();
        self.host_failures.iter_mut().filter(same).for_each(|known| known.domain = Some(domain.to_owned()));
    }

    /// The batch that a recipient's line belongs to: one that is known, or a new one.
    fn batch_for(&mut self, line: &RecipientLine<'_>, domain: &str, pid: u32, time: i64) -> usize {
        let at = self.batches.iter().rposition(|batch| batch.takes(line, domain, pid, time)).unwrap_or_else(|| {
            push_bounded(&mut self.batches, MAX_BATCHES, DeliveryBatch::new(line, domain, pid, time, self.lines));
            self.batches.len() - 1
        });
        self.batches[at].add(line, time, self.lines);
        at
    }

    /// Why a host failed.
    fn take_cause(&mut self, problem: HostProblem<'_>, ip: Option<IpAddr>) -> FailureCause {
        let unusable = problem.is_session_failure() && std::mem::take(&mut self.no_usable_tlsa);
        failure_cause(problem, self.certificate_errors.of(ip), unusable)
    }

    fn push(&mut self, failure: HostFailure) -> u64 {
        let full = self.host_failures.len() >= MAX_HOST_FAILURES;
        push_bounded(&mut self.host_failures, MAX_HOST_FAILURES, failure);
        u64::from(full)
    }
}

fn failed_session(failure: HostFailure) -> EndedSession {
    let HostFailure { domain, began, cause, host, ip, .. } = failure;
    ended_failure(domain.unwrap_or_default(), began, cause, Some(host), ip)
}

impl ExcludedDomain {
    fn into_ended_session(self) -> EndedSession {
        ended_failure(self.domain, self.began, self.cause, None, None)
    }
}

fn ended_failure(
    domain: String,
    began: i64,
    (result, code): FailureCause,
    host: Option<String>,
    ip: Option<IpAddr>,
) -> EndedSession {
    let observed = Some(SessionResult::Failure(result, code));
    EndedSession { domain, began, host, ip, observed, ..EndedSession::default() }
}

/// Appends; what was there first gives way where there is no room.
fn push_bounded<T>(list: &mut Vec<T>, limit: usize, item: T) {
    if list.len() >= limit {
        list.remove(0);
    }
    list.push(item);
}
