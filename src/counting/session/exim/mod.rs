//! Sessions from Exim's lines.
//!
//! Takes: events in the order of the log. Gives: outcomes, once a line tells the recipient domain.
//! A process of its own connects to the hosts of one recipient domain, in turn, and says which failed: a [`HostFailure`], that
//! has no recipient. Then the message's delivery process says what became of each recipient, and of the last host: lines
//! about one host and domain are a [`DeliveryBatch`], one session. `=>` begins a transaction, and without `*` a connection; `->` is
//! of the same one. A recipient that comes again is of the next delivery attempt.
//! Exim can be made to report a failure as it happens ([`EventAction`]), with its domain: the log leaves out a host where required TLS
//! failed and the next one took the mail. It is one more host failure then, and whatever the log says of the same host of the
//! same message is the same session, be it before or after: the log counts, what is told fills in. So nothing hangs on who
//! comes first, on a daemon that was down (the log is what it was), or on lines that are read late.
//! The host of a failure tells whose it is, where it is the recipient's, or a neighbour of the recipient's; else the
//! first recipient that follows does, once the message is done with or nothing was logged of it for [`SESSION_TIMEOUT`].
//! Limits: the constants below. Not here: the wording of a line (`parsers`).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::exim::{
    CertificateCheck, EventAction, EximLine, HostProblem, LineKind, RecipientLine, RecipientStatus,
};
use tlswarden_parsers::event::{Event, EventKind, Peer};

use crate::base::domain_name;
use crate::base::tlsrpt::{ResultType, SessionOutcome, SessionResult, Trust};
use crate::counting::session::reason::{HANDSHAKE_FAILURE, MX_MISMATCH, to_reason_code, verification_failure};
use crate::counting::session::text::{lossy, lower_case};
use crate::counting::session::tracked_map::{RecordChange, TrackedMap};
use crate::counting::session::{FailureCause, SESSION_TIMEOUT, Uncounted};

/// Messages of which something is open. Exim's deliver_queue_load_max and queue_run_max keep deliveries to far fewer.
const MAX_MESSAGES: usize = 100_000;

/// Hosts that failed for one message and wait for a recipient: hosts_max_try_hardlimit is 50 for each of its domains.
const MAX_HOST_FAILURES: usize = 256;

/// Hosts of one message whose session is known: as many as it has batches of recipients.
const MAX_BATCHES: usize = 256;

/// Recipients of one session that are remembered, to know them again: max_rcpt is 100 unless told otherwise.
const MAX_RECIPIENTS: usize = 128;

/// Servers whose verification error is remembered for one message.
const MAX_VERIFICATION_ERRORS: usize = 64;

/// How far apart the lines of one session's recipients may be, in seconds: Exim writes them at once.
const BATCH_WINDOW: i64 = 60;

/// How far a line may be from what was told of the same attempt, in seconds: Exim writes a line as soon as it knows.
const EVENT_SLACK: i64 = 1;

/// How far apart the errors of one certificate may be, in seconds: all are logged in one handshake.
const VERIFICATION_WINDOW: i64 = 1;

/// How long our own report's id is remembered after its last line, in seconds: Exim gives up after four days (its
/// default retry rule), and a host that is down for a day more is no reason to forget.
const OWN_REPORT_TTL: i64 = 5 * 86_400;

/// How long it is remembered after `Completed`, in seconds: lines can be out of order.
const COMPLETED_TTL: i64 = 60;

/// The key that is set once a certificate was verified by its chain, so that Exim has trust anchors.
const HAS_TRUST_ANCHORS: &[u8] = b"anchors";

/// The key that is set once the log shows `X=`, so that a line without it means clear text.
const LOGS_CIPHER: &[u8] = b"cipher";

/// The sessions of one input.
#[derive(Debug)]
pub struct EximSessions {
    messages: TrackedMap<OpenMessage>,
    own_reports: TrackedMap<()>,
    log_features: TrackedMap<()>,
    swept_at: i64,
    uncounted: Uncounted,
}

/// The open state of one message.
#[derive(Debug, Default, Serialize, Deserialize)]
struct OpenMessage {
    host_failures: Vec<HostFailure>,
    batches: Vec<DeliveryBatch>,
    verification_errors: Vec<CertificateError>,
    /// `No usable TLSA records` was logged, and not yet the host that it is about.
    no_usable_tlsa: bool,
}

/// What the TLS library found wrong with a server's certificate on one connection.
#[derive(Debug, Serialize, Deserialize)]
struct CertificateError {
    time: i64,
    ip: IpAddr,
    cause: FailureCause,
    /// A recipient's line was about that server: what is logged of it now belongs to another attempt.
    settled: bool,
}

/// A host that failed and whose recipient domain is not known yet.
#[derive(Debug, Serialize, Deserialize)]
struct HostFailure {
    began: i64,
    host: String,
    ip: Option<IpAddr>,
    cause: FailureCause,
    kind: HostFailureKind,
    /// The recipient domain, where Exim told it.
    domain: Option<String>,
    /// The domain of the first recipient that followed.
    next_recipient_domain: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum HostFailureKind {
    /// A session that failed.
    Session,
    /// Policy excluded the host before any session.
    Excluded,
    /// The TLSA look-up failed. Counted only if no other host accepted the mail, because Exim silently tries the next host.
    TlsaLookupFailed,
}

/// The recipients of one delivery attempt at one host: one session.
#[derive(Debug, Serialize, Deserialize)]
struct DeliveryBatch {
    last_line: i64,
    pid: u32,
    host: String,
    ip: Option<IpAddr>,
    domain: String,
    recipients: Vec<u64>,
    /// `=>` was there.
    delivered: bool,
    /// Its session has been counted, or is known not to count.
    counted: bool,
}

impl EximSessions {
    /// No sessions.
    pub fn new() -> EximSessions {
        EximSessions {
            messages: TrackedMap::new(MAX_MESSAGES),
            own_reports: TrackedMap::new(MAX_MESSAGES),
            log_features: TrackedMap::new(2),
            swept_at: 0,
            uncounted: Uncounted::default(),
        }
    }

    /// Takes back one record of [`take_changes`](Self::take_changes); `false` if it does not read.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        match key.split_first() {
            Some((b'm', key)) => self.messages.load(key, value),
            Some((b'o', key)) => self.own_reports.load(key, value),
            Some((b't', key)) => self.log_features.load(key, value),
            _ => false,
        }
    }

    /// Takes the records that have changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut all = Vec::new();
        let mut add = |table: u8, changes: Vec<RecordChange>| {
            all.extend(changes.into_iter().map(|(key, value)| ([&[table], &key[..]].concat(), value)));
        };
        add(b'm', self.messages.take_changes());
        add(b'o', self.own_reports.take_changes());
        add(b't', self.log_features.take_changes());
        all
    }

    /// Takes the sessions that were not counted since the last call.
    pub(crate) fn take_uncounted(&mut self) -> Uncounted {
        std::mem::take(&mut self.uncounted)
    }

    /// Takes one event at its time; `is_own_report` tells whether a Message-ID is one of our reports. Outcomes go to `out`.
    pub fn handle_event(
        &mut self,
        event: &Event<'_>,
        time: i64,
        is_own_report: impl Fn(&[u8]) -> bool,
        out: &mut Vec<SessionOutcome>,
    ) {
        if time >= self.swept_at + 60 {
            self.swept_at = time;
            self.sweep(time, out);
        }
        let EventKind::Exim(EximLine { id, kind: says }) = &event.kind else { return };
        match says {
            LineKind::Arrived { message_id } => {
                if is_own_report(message_id) {
                    self.own_reports.upsert(id, time + OWN_REPORT_TTL, || ());
                }
            }
            LineKind::Host { peer, problem } => self.handle_host_failure(id, *peer, *problem, time),
            LineKind::VerifyError { ip, cause } => {
                let found = verification_failure(*cause);
                let message = self.open_message(id, time);
                let new = CertificateError { time, ip: *ip, cause: found, settled: false };
                match message.verification_errors.iter_mut().find(|known| known.ip == *ip) {
                    // A chain can fail at several depths; the name counts only where nothing else is wrong.
                    Some(known) if known.is_of_connection(time) => {
                        if known.cause.0 == ResultType::CertificateHostMismatch {
                            known.cause = new.cause;
                        }
                    }
                    Some(known) => *known = new,
                    None => push_bounded(&mut message.verification_errors, MAX_VERIFICATION_ERRORS, new),
                }
            }
            LineKind::NoUsableTlsa => self.open_message(id, time).no_usable_tlsa = true,
            LineKind::Recipient(recipient) => self.handle_recipient(id, recipient, event.process.pid, time, out),
            LineKind::Completed => self.handle_completed(id, time, out),
        }
    }

    /// Ends what is open at `now`: the input has been at its end for [`SESSION_TIMEOUT`].
    pub fn end_all(&mut self, now: i64, out: &mut Vec<SessionOutcome>) {
        for message in self.messages.remove_before(i64::MAX) {
            self.abandon(message, now, out);
        }
    }

    /// Whether anything is open.
    pub fn is_idle(&self) -> bool {
        self.messages.is_empty()
    }

    fn handle_host_failure(&mut self, id: &[u8], peer: Peer<'_>, problem: HostProblem<'_>, time: i64) {
        let message = self.open_message(id, time);
        let cause = message.take_failure_cause(problem, peer.ip);
        let host = lower_case(peer.host);
        let kind = match problem {
            HostProblem::TlsaLookup => HostFailureKind::TlsaLookupFailed,
            problem if problem.excludes_host() => HostFailureKind::Excluded,
            _ => HostFailureKind::Session,
        };
        // DANE's line, and then that it is tried in clear text: the same session.
        let known = |t: &&mut HostFailure| {
            t.kind == kind && t.next_recipient_domain.is_none() && t.host == host && t.ip == peer.ip
        };
        if message.host_failures.iter_mut().rfind(known).is_some() {
            return;
        }
        let failure =
            HostFailure { began: time, host, ip: peer.ip, cause, kind, domain: None, next_recipient_domain: None };
        self.add_host_failure(id, failure);
    }

    /// An id that Exim gave one of our reports at `time`.
    pub(crate) fn carries_own(&mut self, id: &[u8], time: i64) {
        let (_, evicted) = self.own_reports.upsert(id, time + OWN_REPORT_TTL, || ());
        self.uncounted.evicted += evicted;
    }

    /// Takes a failed session that Exim reports by its event action, outside the log.
    pub fn handle_event_action(&mut self, event: &EventAction<'_>) {
        if !event.problem.is_session_failure() {
            return;
        }
        let cause = failure_cause(event.problem, None, false);
        let host = event.host.to_ascii_lowercase();
        let id = event.id.as_bytes();
        let message = self.open_message(id, event.time);
        let domain = Some(event.domain.to_owned());
        // The log may have been read further already: what it says of that host is the same session.
        let same =
            |t: &&mut HostFailure| t.kind == HostFailureKind::Session && (&t.host, t.ip) == (&host, Some(event.ip));
        if let Some(known) = message.host_failures.iter_mut().rfind(same).filter(|t| t.domain.is_none()) {
            known.domain = domain;
            return;
        }
        let recent = |g: &DeliveryBatch| (0..=EVENT_SLACK).contains(&(g.last_line - event.time)) && g.counted;
        if message.batches.iter().any(|g| recent(g) && (&g.host, g.ip) == (&host, Some(event.ip))) {
            return;
        }
        let ip = Some(event.ip);
        self.add_host_failure(
            id,
            HostFailure {
                began: event.time,
                host,
                ip,
                cause,
                kind: HostFailureKind::Session,
                domain,
                next_recipient_domain: None,
            },
        );
    }

    fn add_host_failure(&mut self, id: &[u8], failure: HostFailure) {
        let message = self.open_message(id, failure.began);
        if message.host_failures.len() >= MAX_HOST_FAILURES {
            message.host_failures.remove(0);
            self.uncounted.evicted += 1;
        }
        self.open_message(id, failure.began).host_failures.push(failure);
    }

    fn handle_recipient(
        &mut self,
        id: &[u8],
        line: &RecipientLine<'_>,
        pid: u32,
        time: i64,
        out: &mut Vec<SessionOutcome>,
    ) {
        if self.own_reports.contains(id) {
            let message = self.messages.remove(id);
            let failed = message.map_or(0, |m| m.host_failures.len() as u64);
            self.uncounted.own_reports +=
                failed + u64::from(line.tls.is_some() && line.status != RecipientStatus::DeliveredInSameTransaction);
            return;
        }
        if line.tls.is_some() {
            self.note_log_feature(LOGS_CIPHER, time);
        }
        if line.tls == Some(CertificateCheck::Pkix) {
            self.note_log_feature(HAS_TRUST_ANCHORS, time);
        }
        let (anchors, shows_tls) =
            (self.log_features.contains(HAS_TRUST_ANCHORS), self.log_features.contains(LOGS_CIPHER));
        let domain = lossy(line.domain);
        let mut found = Vec::new();
        let message = self.open_message(id, time);
        message.match_host_failures(line, &domain, time, &mut found);
        message.forget_earlier_attempt(line);
        let batch = message.batch_for(line, &domain, pid, time);
        if !batch.counted {
            let began = time;
            let ended = |observed, trust, dane| EndedSession {
                began,
                host: line.peer.map(|peer| lower_case(peer.host)),
                ip: line.peer.and_then(|peer| peer.ip),
                trust,
                dane,
                observed,
                cause: None,
                clear_text: false,
            };
            if line.continued_connection {
                batch.counted = true;
            } else if let Some(checked) = line.tls {
                batch.counted = true;
                let (trust, dane) = match checked {
                    CertificateCheck::Dane => (Some(Trust::Verified), Some(true)),
                    CertificateCheck::Pkix => (Some(Trust::Verified), Some(false)),
                    CertificateCheck::No => (Some(Trust::Untrusted), Some(false)),
                    CertificateCheck::NotLogged => (None, None),
                };
                let cause = line.peer.and_then(|peer| message.verification_error(peer.ip));
                found.push(EndedSession { cause, ..ended(Some(SessionResult::Success), trust, dane) });
            } else if line.problem.is_session_failure() && line.peer.is_some() {
                batch.counted = true;
                // It may have been told by the process that made the connection.
                let already_found =
                    found.iter().any(|f| f.ip == line.peer.and_then(|peer| peer.ip) && f.observed.is_some());
                if !already_found {
                    let (result, code) = message.take_failure_cause(line.problem, line.peer.and_then(|peer| peer.ip));
                    found.push(ended(Some(SessionResult::Failure(result, code)), None, None));
                }
            } else if line.problem.excludes_host() {
                batch.counted = true;
                // The hosts are told one by one where a version does so; else this is all there is.
                if !found.iter().any(|f| f.observed.is_some()) {
                    let (result, code) = message.take_failure_cause(line.problem, None);
                    found.push(ended(Some(SessionResult::Failure(result, code)), None, None));
                }
            } else if line.peer.is_some() && found.iter().any(|f| f.ip == line.peer.and_then(|peer| peer.ip)) {
                // In clear text after TLS failed at that host: the session is counted, whatever becomes of the recipients.
                batch.counted = true;
            } else if matches!(line.status, RecipientStatus::Delivered | RecipientStatus::DeliveredInSameTransaction)
                && line.peer.is_some()
            {
                batch.counted = true;
                if shows_tls {
                    found.push(EndedSession { clear_text: true, ..ended(None, None, None) });
                }
            }
        }
        message
            .verification_errors
            .iter_mut()
            .for_each(|known| known.settled |= line.peer.and_then(|p| p.ip) == Some(known.ip));
        for found in found {
            self.emit(found, &domain, time, anchors, out);
        }
    }

    fn handle_completed(&mut self, id: &[u8], time: i64, out: &mut Vec<SessionOutcome>) {
        if self.own_reports.contains(id) {
            self.own_reports.upsert(id, time + COMPLETED_TTL, || ());
        }
        if let Some(message) = self.messages.remove(id) {
            self.abandon(message, time, out);
        }
    }

    /// Ends a message: its host failures belong to the first recipient after them.
    fn abandon(&mut self, message: OpenMessage, ended: i64, out: &mut Vec<SessionOutcome>) {
        let anchors = self.log_features.contains(HAS_TRUST_ANCHORS);
        for failure in message.host_failures {
            // A look-up that failed on the way to a host that took the mail.
            if failure.kind == HostFailureKind::TlsaLookupFailed {
                continue;
            }
            let domain = failure.domain.clone().or_else(|| failure.next_recipient_domain.clone()).unwrap_or_default();
            self.emit(failure.into_ended_session(), &domain, ended, anchors, out);
        }
    }

    fn emit(&mut self, found: EndedSession, domain: &str, ended: i64, anchors: bool, out: &mut Vec<SessionOutcome>) {
        let Some(name) = domain_name::normalize(domain) else {
            self.uncounted.without_domain += u64::from(found.observed.is_some());
            return;
        };
        out.push(SessionOutcome {
            began: found.began,
            ended,
            domain: name.into(),
            mx: found.host,
            ip: found.ip,
            trust: found.trust,
            dane: found.dane,
            observed: found.observed,
            native: None,
            cause: found.cause,
            clear_text: found.clear_text,
            anchors,
            next_hop_named: false,
            reported: None,
            anchors_shown_by: None,
        });
    }

    fn note_log_feature(&mut self, what: &[u8], time: i64) {
        if !self.log_features.contains(what) {
            self.log_features.upsert(what, time, || ());
        }
    }

    fn open_message(&mut self, id: &[u8], time: i64) -> &mut OpenMessage {
        let (message, evicted) = self.messages.upsert(id, time, OpenMessage::default);
        self.uncounted.evicted += evicted;
        message
    }

    fn sweep(&mut self, time: i64, out: &mut Vec<SessionOutcome>) {
        for message in self.messages.remove_before(time - SESSION_TIMEOUT) {
            self.abandon(message, time, out);
        }
        // The time of an own report's entry is when it may go.
        self.own_reports.remove_before(time);
    }
}

impl Default for EximSessions {
    fn default() -> Self {
        Self::new()
    }
}

/// A session that has ended, without its domain.
struct EndedSession {
    began: i64,
    host: Option<String>,
    ip: Option<IpAddr>,
    trust: Option<Trust>,
    dane: Option<bool>,
    observed: Option<SessionResult>,
    cause: Option<FailureCause>,
    clear_text: bool,
}

impl HostFailure {
    fn into_ended_session(self) -> EndedSession {
        let (result, code) = self.cause;
        EndedSession {
            began: self.began,
            host: Some(self.host),
            ip: self.ip,
            trust: None,
            dane: None,
            observed: Some(SessionResult::Failure(result, code)),
            cause: None,
            clear_text: false,
        }
    }

    /// Whether a recipient's line is about this host, or about one beside it.
    fn belongs_to(&self, line: &RecipientLine<'_>, domain: &str) -> bool {
        if let Some(known) = &self.domain {
            return known.eq_ignore_ascii_case(domain);
        }
        let Some(peer) = line.peer else {
            return is_below(&self.host, domain);
        };
        let host = lower_case(peer.host);
        let neighbours =
            |a: &str, b: &str| a.split_once('.').is_some_and(|(_, parent)| parent.contains('.') && is_below(b, parent));
        (self.ip == peer.ip && self.host == host)
            || is_below(&self.host, domain)
            || neighbours(&self.host, &host)
            || neighbours(&host, &self.host)
    }
}

impl CertificateError {
    /// Whether an error that is logged at `time` is of the same connection.
    fn is_of_connection(&self, time: i64) -> bool {
        !self.settled && time - self.time <= VERIFICATION_WINDOW
    }
}

impl OpenMessage {
    /// Matches host failures with a recipient's line; the others take its domain if they have none.
    fn match_host_failures(
        &mut self,
        line: &RecipientLine<'_>,
        domain: &str,
        time: i64,
        found: &mut Vec<EndedSession>,
    ) {
        let mut waiting = Vec::new();
        // Look-ups that failed for hosts of another recipient domain are left to it.
        let own_tlsa = |f: &HostFailure| f.kind == HostFailureKind::TlsaLookupFailed && f.belongs_to(line, domain);
        let has_own_tlsa = self.host_failures.iter().any(own_tlsa);
        for mut failure in std::mem::take(&mut self.host_failures) {
            // Told of a later attempt than the line is of: the log is being read up.
            if failure.began > time + EVENT_SLACK {
                waiting.push(failure);
                continue;
            }
            let belongs = failure.belongs_to(line, domain);
            match failure.kind {
                HostFailureKind::TlsaLookupFailed
                    if line.problem == HostProblem::TlsaLookup && (belongs || !has_own_tlsa) =>
                {
                    found.push(failure.into_ended_session())
                }
                // Another host took the mail, or did not want it.
                HostFailureKind::TlsaLookupFailed if belongs => {}
                HostFailureKind::Session | HostFailureKind::Excluded if belongs => {
                    found.push(failure.into_ended_session())
                }
                _ => {
                    if failure.domain.is_none() {
                        failure.next_recipient_domain.get_or_insert_with(|| domain.to_owned());
                    }
                    waiting.push(failure);
                }
            }
        }
        self.host_failures = waiting;
    }

    /// Forgets what was found at a server in an earlier attempt: a recipient that comes again is of another one.
    fn forget_earlier_attempt(&mut self, line: &RecipientLine<'_>) {
        let recipient = hash(line.address);
        if self.batches.iter().any(|batch| batch.recipients.contains(&recipient)) {
            self.verification_errors.retain(|known| !known.settled);
        }
    }

    /// The session that a recipient's line is about: one that is known, or a new one.
    fn batch_for(&mut self, line: &RecipientLine<'_>, domain: &str, pid: u32, time: i64) -> &mut DeliveryBatch {
        let host = line.peer.map(|peer| lower_case(peer.host)).unwrap_or_default();
        let ip = line.peer.and_then(|peer| peer.ip);
        let recipient = hash(line.address);
        let same = |batch: &DeliveryBatch| {
            batch.host == host
                && batch.ip == ip
                && (batch.pid == 0 || pid == 0 || batch.pid == pid)
                && time - batch.last_line <= BATCH_WINDOW
                && !batch.recipients.contains(&recipient)
                && match line.status {
                    RecipientStatus::DeliveredInSameTransaction => batch.delivered || batch.domain == domain,
                    RecipientStatus::Delivered => !batch.delivered && batch.domain == domain,
                    RecipientStatus::Deferred | RecipientStatus::Failed => batch.domain == domain,
                }
        };
        let at = match self.batches.iter().rposition(same) {
            Some(at) => at,
            None => {
                // The same recipient again: what was known of it is of an attempt that is over.
                self.batches
                    .retain(|batch| time - batch.last_line <= BATCH_WINDOW && !batch.recipients.contains(&recipient));
                let batch = DeliveryBatch {
                    last_line: time,
                    pid,
                    host,
                    ip,
                    domain: domain.to_owned(),
                    recipients: Vec::new(),
                    delivered: false,
                    counted: false,
                };
                push_bounded(&mut self.batches, MAX_BATCHES, batch);
                self.batches.len() - 1
            }
        };
        let batch = &mut self.batches[at];
        batch.last_line = time;
        batch.delivered |= line.status == RecipientStatus::Delivered;
        if batch.recipients.len() < MAX_RECIPIENTS {
            batch.recipients.push(recipient);
        }
        batch
    }

    /// The verification error that the TLS library logged for a server.
    fn verification_error(&self, ip: Option<IpAddr>) -> Option<FailureCause> {
        self.verification_errors.iter().find(|known| Some(known.ip) == ip).map(|known| known.cause.clone())
    }

    /// Why a host failed. `No usable TLSA records` is about the first session that fails after it, and no other.
    fn take_failure_cause(&mut self, problem: HostProblem<'_>, ip: Option<IpAddr>) -> FailureCause {
        let unusable = problem.is_session_failure() && std::mem::take(&mut self.no_usable_tlsa);
        failure_cause(problem, self.verification_error(ip), unusable)
    }
}

/// RFC 8460 §4.3's words for a problem; `cause`: what the TLS library said of that server's certificate.
fn failure_cause(problem: HostProblem<'_>, cause: Option<FailureCause>, no_usable_tlsa: bool) -> FailureCause {
    use ResultType::{
        CertificateHostMismatch, CertificateNotTrusted, DaneRequired, DnssecInvalid, StarttlsNotSupported, TlsaInvalid,
        ValidationFailure,
    };
    let with = |result: ResultType, code: &str| (result, Some(code.to_owned()));
    let tlsa_invalid = || with(TlsaInvalid, "all-TLSA-records-unusable");
    match problem {
        HostProblem::StarttlsNotOffered | HostProblem::StarttlsRefused => (StarttlsNotSupported, None),
        HostProblem::Handshake(_) | HostProblem::CertificateRejected if no_usable_tlsa => tlsa_invalid(),
        HostProblem::Handshake(_) | HostProblem::Local | HostProblem::Other => {
            with(ValidationFailure, HANDSHAKE_FAILURE)
        }
        HostProblem::CertificateRejected | HostProblem::CertificateInvalid => {
            cause.unwrap_or((CertificateNotTrusted, None))
        }
        HostProblem::CertificateName => (CertificateHostMismatch, None),
        HostProblem::CertificateRevoked => with(ValidationFailure, "certificate-revoked"),
        HostProblem::CertificateMissing => with(ValidationFailure, "certificate-not-supplied"),
        HostProblem::DaneMismatch(words) => (CertificateNotTrusted, Some(dane_mismatch_code(words))),
        HostProblem::TlsaUnusable => tlsa_invalid(),
        HostProblem::TlsaLookup => (DnssecInvalid, None),
        HostProblem::DaneRequired => (DaneRequired, None),
        HostProblem::StsMxMismatch => with(ValidationFailure, MX_MISMATCH),
    }
}

/// libdane's words, `Verification failed. The certificate differs. `, as a reason code.
fn dane_mismatch_code(words: &[u8]) -> String {
    let words = words.strip_prefix(b"Verification failed. ").unwrap_or(words).trim_ascii();
    match words.strip_suffix(b".").unwrap_or(words) {
        b"The certificate differs" => "dane-no-match".to_owned(),
        words => to_reason_code(words),
    }
}

/// Whether a host is a domain, or a name below it.
fn is_below(host: &str, domain: &str) -> bool {
    let Some(front) = host.len().checked_sub(domain.len()) else { return false };
    let same = host.is_char_boundary(front) && host[front..].eq_ignore_ascii_case(domain);
    !domain.is_empty() && same && (front == 0 || host[..front].ends_with('.'))
}

fn hash(address: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    hasher.finish()
}

/// Appends; what was there first gives way where there is no room.
fn push_bounded<T>(list: &mut Vec<T>, limit: usize, item: T) {
    if list.len() >= limit {
        list.remove(0);
    }
    list.push(item);
}

#[cfg(test)]
mod tests {
    use tlswarden_parsers::event::LogTimestamp;
    use tlswarden_parsers::{Dialect, parse, parse_event_action};

    use super::*;

    const ID: &str = "1xUwYd-0005p2-2C";
    const TLS: &str = "X=TLS1.3:X:256 CV=yes C=\"250 ok\"";
    const BAD: &str = "TLS session: (certificate verification failed)";

    /// What lines come to: `domain ok`, `domain failed: …`, `domain clear`. Each is written `SECOND TEXT`, of the message
    /// [`ID`]; `!` begins what Exim tells.
    fn outcomes(lines: &[&str]) -> Vec<String> {
        let (mut sessions, mut out) = (EximSessions::new(), Vec::new());
        for line in lines {
            if let Some(text) = line.strip_prefix('!') {
                sessions.handle_event_action(&parse_event_action(text.as_bytes()).unwrap());
                continue;
            }
            let (second, text) = line.split_once(' ').unwrap();
            let line = format!(
                "1970-01-01 00:{:02}:{:02} {ID} {text}",
                second.parse::<u32>().unwrap() / 60,
                second.parse::<u32>().unwrap() % 60
            );
            let event = parse(Dialect::Exim, line.as_bytes()).unwrap().unwrap_or_else(|| panic!("{line}"));
            let LogTimestamp::Local(time) = event.timestamp else { panic!("{line}") };
            sessions.handle_event(&event, time, |id| id.starts_with(b"ours."), &mut out);
        }
        sessions.end_all(9999, &mut out);
        out.iter()
            .map(|o| match &o.observed {
                None => format!("{} clear", o.domain),
                Some(SessionResult::Success) => format!("{} ok", o.domain),
                Some(SessionResult::Failure(result, _)) => {
                    format!("{} failed at {}: {result}", o.domain, o.mx.as_deref().unwrap_or("-"))
                }
            })
            .collect()
    }

    fn sent(arrow: &str, to: &str, host: &str, rest: &str) -> String {
        format!("{arrow} {to} R=r T=t H={host} [192.0.2.1] {rest}")
    }

    fn deferred(to: &str, host: &str) -> String {
        format!("== {to} R=r T=t defer (-37) H={host} [192.0.2.1]: {BAD}")
    }

    #[test]
    fn several_recipients_are_one_session_and_another_transaction_without_an_asterisk_is_another() {
        let first = sent("1 =>", "u@a.test", "mx.a.test", TLS);
        let too = sent("1 ->", "v@a.test", "mx.a.test", TLS);
        assert_eq!(outcomes(&[&first, &too]), ["a.test ok"]);
        let again = sent("2 =>", "w@a.test", "mx.a.test", TLS);
        assert_eq!(outcomes(&[&first, &too, &again]), ["a.test ok", "a.test ok"]);
        let on = again.replace("[192.0.2.1]", "[192.0.2.1]*");
        assert_eq!(outcomes(&[&first, &too, &on]), ["a.test ok"]);
        // Of several domains in one transaction the first one counts it.
        assert_eq!(outcomes(&[&first, &sent("1 ->", "v@b.test", "mx.a.test", TLS)]), ["a.test ok"]);
        // A refused one before it, and one that is put off, are of the same session.
        let refused = "1 ** x@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes: SMTP error: 550 no";
        let put_off = "1 == y@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error: 450 no";
        assert_eq!(outcomes(&[refused, put_off, &first, &too]), ["a.test ok"]);
        assert_eq!(outcomes(&[put_off]), [""; 0]);
    }

    #[test]
    fn the_same_recipient_again_is_another_attempt() {
        let failed = |second: u32| {
            [deferred("u@a.test", "mx.a.test"), deferred("v@a.test", "mx.a.test")].map(|l| format!("{second} {l}"))
        };
        let ([a, b], [c, d]) = (failed(1), failed(2));
        let once = "a.test failed at mx.a.test: certificate-host-mismatch";
        assert_eq!(outcomes(&[&a, &b]), [once]);
        assert_eq!(outcomes(&[&a, &b, &c, &d]), [once, once]);
        // Where the addresses are not tried again, neither is their session.
        let not_yet = "3 == u@a.test R=r T=t defer (-54): retry time not reached for any host for 'a.test'";
        assert_eq!(outcomes(&[&a, &b, not_yet]), [once]);
    }

    #[test]
    fn a_failed_session_and_then_clear_text_is_one_that_failed() {
        let failed = "1 TLS session: (gnutls_handshake): timed out: delivering unencrypted to H=mx.a.test [192.0.2.1] (not in hosts_require_tls)";
        let clear = sent("2 =>", "u@a.test", "mx.a.test", "C=\"250 ok\"");
        assert_eq!(outcomes(&[failed, &clear]), ["a.test failed at mx.a.test: validation-failure"]);
        // One recipient was refused in clear text, or put off, and another one accepted.
        let other = sent("1 =>", "u@b.test", "mx.b.test", TLS);
        for first in [
            "2 ** v@a.test R=r T=t H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<v@a.test>: 550 no",
            "2 == v@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<v@a.test>: 450 no",
        ] {
            let want = ["b.test ok", "a.test failed at mx.a.test: validation-failure"];
            assert_eq!(outcomes(&[&other, failed, first, &clear]), want, "{first}");
        }
        // Without `X=` anywhere before, the selector may be off.
        assert_eq!(outcomes(&[&clear]), [""; 0]);
        let other = sent("1 =>", "u@b.test", "mx.b.test", TLS);
        assert_eq!(outcomes(&[&other, &clear]), ["b.test ok", "a.test clear"]);
    }

    #[test]
    fn a_host_is_its_domain_s_whatever_comes_first() {
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed): Verification failed. The certificate differs. ";
        let (b, a) = (sent("2 =>", "u@b.test", "mx.b.test", TLS), sent("2 =>", "u@a.test", "mx2.a.test", TLS));
        let failed = "a.test failed at mx1.a.test: certificate-not-trusted";
        assert_eq!(outcomes(&[dane, &b, &a, "2 Completed"]), ["b.test ok", failed, "a.test ok"]);
        // Hosts of a provider, beside each other.
        let (dane, hosted) = (dane.replace("mx1.a.test", "mx1.mail.test"), a.replace("mx2.a.test", "mx2.mail.test"));
        let failed = "a.test failed at mx1.mail.test: certificate-not-trusted";
        assert_eq!(outcomes(&[&dane, &b, &hosted, "2 Completed"]), ["b.test ok", failed, "a.test ok"]);
        // Nothing tells: the first recipient's, at the end.
        let failed = "b.test failed at mx1.mail.test: certificate-not-trusted";
        assert_eq!(outcomes(&[&dane, &b, &a, "2 Completed"]), ["b.test ok", "a.test ok", failed]);
    }

    #[test]
    fn what_exim_tells_fills_in_what_its_log_leaves_out_and_nothing_else() {
        let event = |second: u32, host: &str, ip: &str| format!("!{second} {ID} {host} {ip} 25 a.test {BAD}");
        let first = event(1, "mx1.a.test", "192.0.2.7");
        let second = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
        let failed = |host: &str| format!("a.test failed at {host}: certificate-host-mismatch");
        assert_eq!(outcomes(&[&first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
        // The log says it of the last host: before, after, and of another recipient of the same.
        let (last, line) = (event(1, "mx2.a.test", "192.0.2.1"), format!("2 {}", deferred("u@a.test", "mx2.a.test")));
        let too = format!("2 {}", deferred("v@a.test", "mx2.a.test"));
        let both = [failed("mx1.a.test"), failed("mx2.a.test")];
        assert_eq!(outcomes(&[&first, &last, &line, &too]), both);
        let late = event(2, "mx2.a.test", "192.0.2.1");
        assert_eq!(outcomes(&[&first, &line, &late, &too]), both);
        // DANE's own line, and the one about clear text.
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)"
            .to_owned();
        let clear = format!("1 {BAD}: delivering unencrypted to H=mx1.a.test [192.0.2.7] (not in hosts_require_tls)");
        for line in [&dane, &clear] {
            assert_eq!(outcomes(&[line, &first, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
            assert_eq!(outcomes(&[&first, line, &second]), [failed("mx1.a.test"), "a.test ok".into()]);
        }
        // Lines of an earlier attempt, read late, take nothing of a later one.
        let later = event(600, "mx1.a.test", "192.0.2.7");
        let again = sent("601 =>", "u@a.test", "mx2.a.test", TLS);
        let all = [failed("mx2.a.test"), failed("mx1.a.test"), "a.test ok".into()];
        assert_eq!(outcomes(&[&later, &line, &again]), all);
        // Of a message that its log never names again.
        assert_eq!(outcomes(&[&first]), [failed("mx1.a.test")]);
    }

    #[test]
    fn a_certificate_error_explains_the_attempt_that_it_was_found_in() {
        let found = |second: u32, error: &str| {
            format!("{second} [192.0.2.1] SSL verify error: depth=0 error={error} cert=/CN=a")
        };
        let rejected = |second: u32, to: &str| {
            format!(
                "{second} == {to} R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): error:0A000086:SSL routines::certificate verify failed"
            )
        };
        let (expired, own) = (found(1, "certificate has expired"), found(600, "self-signed certificate"));
        let (first, second) = (rejected(1, "u@a.test"), rejected(600, "u@a.test"));
        let failed = |result: &str| format!("a.test failed at mx.a.test: {result}");
        let (is_expired, is_untrusted) = (failed("certificate-expired"), failed("certificate-not-trusted"));
        assert_eq!(outcomes(&[&expired, &first, &own, &second]), [&*is_expired, &is_untrusted]);
        // Nothing is logged of the later attempt's certificate.
        assert_eq!(outcomes(&[&expired, &first, &second]), [&*is_expired, &is_untrusted]);
        // Two recipients of one attempt, and two domains at the same server.
        assert_eq!(outcomes(&[&expired, &first, &rejected(1, "v@a.test")]), [&*is_expired]);
        assert_eq!(outcomes(&[&expired, &first, &rejected(1, "v@b.test")]).len(), 2);
        // The name, and then the chain, of one certificate; the chain of an attempt that no recipient's line is about.
        let name = "1 [192.0.2.1] SSL verify error: certificate name mismatch: DN=\"/CN=b\" H=\"mx.a.test\"";
        assert_eq!(outcomes(&[name, &expired, &first]), [&*is_expired]);
        assert_eq!(outcomes(&[&expired, name, &first]), [&*is_expired]);
        assert_eq!(outcomes(&[&expired, &own, &second]), [&*is_untrusted]);
    }

    #[test]
    fn unusable_tlsa_records_are_of_the_host_that_follows() {
        let unusable = "1 DANE error: No usable TLSA records";
        let dane = "1 DANE attempt failed; TLS connection to mx.a.test [192.0.2.1]: NULL";
        let first = "1 == u@a.test R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: NULL";
        let other = "2 == u@b.test R=r T=t defer (-37) H=mx.b.test [192.0.2.2]: TLS session: (SSL_connect): timed out";
        let later =
            "600 == u@a.test R=r T=t defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): timed out";
        let (a, b) = ("a.test failed at mx.a.test: tlsa-invalid", "b.test failed at mx.b.test: validation-failure");
        assert_eq!(outcomes(&[unusable, dane, first, other]), [a, b]);
        assert_eq!(outcomes(&[unusable, first, other]), [a, b]);
        assert_eq!(outcomes(&[unusable, dane, first, later]), [a, "a.test failed at mx.a.test: validation-failure"]);
    }

    #[test]
    fn our_own_report_is_not_counted() {
        let arrived = "1 <= s@h.test U=u P=local S=9 id=ours.1@h.test";
        let dane = "1 DANE attempt failed; TLS connection to mx1.a.test [192.0.2.7]: (certificate verification failed)";
        let sent = sent("2 =>", "u@a.test", "mx2.a.test", TLS);
        assert_eq!(outcomes(&[arrived, dane, &sent, "2 Completed"]), [""; 0]);
        assert_eq!(outcomes(&[&arrived.replace("ours", "theirs"), &sent]), ["a.test ok"]);
    }

    #[test]
    fn tlsa_records_that_cannot_be_looked_up_count_where_the_mail_waits() {
        let line = |host: &str, ip: &str| format!("1 H={host} [{ip}]: DANE error: tlsa lookup DEFER");
        let (one, two) = (line("mx1.a.test", "192.0.2.7"), line("mx2.a.test", "192.0.2.8"));
        let waits = "2 == u@a.test R=r T=t defer (-36): DANE error: tlsa lookup DEFER";
        let failed = |host: &str| format!("a.test failed at {host}: dnssec-invalid");
        assert_eq!(outcomes(&[&one, &two, waits]), [failed("mx1.a.test"), failed("mx2.a.test")]);
        assert_eq!(outcomes(&[waits]), [failed("-")]);
        // Each of two domains has its own.
        let of_b = "1 H=mx.b.test [192.0.2.9]: DANE error: tlsa lookup DEFER";
        let b_waits = "2 == u@b.test R=r T=t defer (-36): DANE error: tlsa lookup DEFER";
        let (a, b) = (failed("mx1.a.test"), "b.test failed at mx.b.test: dnssec-invalid");
        assert_eq!(outcomes(&[&one, of_b, waits, b_waits]), [&*a, b]);
        assert_eq!(outcomes(&[&one, of_b, b_waits, waits]), [b, &*a]);
        assert_eq!(outcomes(&[&one, &sent("2 =>", "u@a.test", "mx2.a.test", TLS), "3 Completed"]), ["a.test ok"]);
    }
}
