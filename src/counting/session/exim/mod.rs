//! Sessions from Exim's lines.
//!
//! Takes: events in the order of the log. Gives: outcomes, once the recipient domain is known.
//! A process of its own connects to the hosts of one group of recipients, in turn, and logs which failed: a
//! [`host_failure`], without a recipient. Then the message's delivery process logs what became of each recipient, and the
//! last host: lines about one host and domain are a [`batch`], one session. A [`message`] joins the two.
//! Limits: the constants below. When it fails: a failure whose domain is not known is counted as without a domain.
//! Not here: the wording of a line (`parsers`).

mod assignment;
mod batch;
mod cause;
mod host_failure;
mod message;

use tlswarden_parsers::event::exim::{
    CertificateCheck, EventAction, EximLine, LineKind, RecipientLine, RecipientStatus,
};
use tlswarden_parsers::event::{Event, EventKind};

use self::message::{EndedSession, OpenMessage};
use crate::base::domain_name;
use crate::base::tlsrpt::SessionOutcome;
use crate::counting::session::reason::verification_failure;
use crate::counting::session::text::lower_case;
use crate::counting::session::tracked_map::{RecordChange, TrackedMap};
use crate::counting::session::{OwnReport, SESSION_TIMEOUT, Uncounted};

/// Messages of which something is open. Exim's deliver_queue_load_max and queue_run_max keep deliveries to far fewer.
const MAX_MESSAGES: usize = 100_000;

/// How long the id of our own report, or of a message with a null sender, is remembered, in seconds: Exim gives up after
/// four days (its default retry rule), and a host that is down for a day more is no reason to forget.
const MESSAGE_TTL: i64 = 5 * 86_400;

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
    own_reports: TrackedMap<OwnReport>,
    /// Messages with a null sender.
    null_senders: TrackedMap<()>,
    log_features: TrackedMap<()>,
    swept_at: i64,
    uncounted: Uncounted,
}

impl EximSessions {
    /// No sessions.
    pub fn new() -> EximSessions {
        EximSessions {
            messages: TrackedMap::new(MAX_MESSAGES),
            own_reports: TrackedMap::new(MAX_MESSAGES),
            null_senders: TrackedMap::new(MAX_MESSAGES),
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
            Some((b'b', key)) => self.null_senders.load(key, value),
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
        add(b'b', self.null_senders.take_changes());
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
            LineKind::Arrived { message_id, null_sender } => {
                if is_own_report(message_id) {
                    let (report, _) = self.own_reports.upsert(id, time + MESSAGE_TTL, OwnReport::default);
                    *report = OwnReport::with_message_id(message_id);
                }
                if *null_sender {
                    self.uncounted.evicted += self.null_senders.upsert(id, time + MESSAGE_TTL, || ()).1;
                    // The event action may have told of it before.
                    if self.messages.contains(id) {
                        self.open_message(id, time).set_null_sender();
                    }
                }
            }
            LineKind::Host { peer, problem, clear_text_follows } => {
                let message = self.open_message(id, time);
                let pid = event.process.pid;
                self.uncounted.evicted += message.add_host_failure(*peer, *problem, *clear_text_follows, pid, time);
            }
            LineKind::VerifyError { ip, cause } => {
                self.open_message(id, time).add_certificate_error(*ip, verification_failure(*cause), time);
            }
            LineKind::NoUsableTlsa => self.open_message(id, time).set_no_usable_tlsa(),
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

    /// An id that Exim gave one of our reports at `time`.
    pub(crate) fn carries_own(&mut self, id: &[u8], time: i64) {
        let (_, evicted) = self.own_reports.upsert(id, time + MESSAGE_TTL, OwnReport::default);
        self.uncounted.evicted += evicted;
    }

    /// Our reports that are on their way, by id.
    pub(crate) fn own_reports(&self) -> &TrackedMap<OwnReport> {
        &self.own_reports
    }

    /// Takes a failed session that Exim reports by its event action, outside the log.
    pub fn handle_event_action(&mut self, event: &EventAction<'_>) {
        if event.problem.is_session_failure() {
            let evicted = self.open_message(event.id.as_bytes(), event.time).add_reported_failure(event);
            self.uncounted.evicted += evicted;
        }
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
            let failed = message.map_or(0, |message| message.waiting());
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
        let logs_cipher = self.log_features.contains(LOGS_CIPHER);
        let mut ended = Vec::new();
        let domain = lower_case(line.domain);
        let message = self.open_message(id, time);
        message.handle_recipient(line, &domain, pid, time, logs_cipher, &mut ended);
        let null_sender = message.has_null_sender();
        self.emit(ended, null_sender, time, out);
    }

    fn handle_completed(&mut self, id: &[u8], time: i64, out: &mut Vec<SessionOutcome>) {
        if self.own_reports.contains(id) {
            self.own_reports.upsert(id, time + COMPLETED_TTL, OwnReport::default);
        }
        if self.null_senders.contains(id) {
            self.null_senders.upsert(id, time + COMPLETED_TTL, || ());
        }
        if let Some(message) = self.messages.remove(id) {
            self.abandon(message, time, out);
        }
    }

    /// Ends a message: nothing more is expected of it.
    fn abandon(&mut self, message: OpenMessage, time: i64, out: &mut Vec<SessionOutcome>) {
        let (null_sender, mut ended) = (message.has_null_sender(), Vec::new());
        message.end(&mut ended);
        self.emit(ended, null_sender, time, out);
    }

    /// Hands out sessions; each counts on the day on which its domain became known, so that no day that is closed grows.
    fn emit(&mut self, sessions: Vec<EndedSession>, null_sender: bool, ended: i64, out: &mut Vec<SessionOutcome>) {
        let anchors = self.log_features.contains(HAS_TRUST_ANCHORS);
        for session in sessions {
            let Some(name) = domain_name::normalize(&session.domain) else {
                self.uncounted.without_domain += u64::from(session.observed.is_some());
                continue;
            };
            out.push(SessionOutcome {
                began: session.began,
                ended,
                domain: name.into(),
                mx: session.host,
                ip: session.ip,
                port: None,
                trust: session.trust,
                dane: session.dane,
                observed: session.observed,
                native: None,
                cause: session.cause,
                deferred: session.deferred,
                clear_text: session.clear_text,
                anchors,
                next_hop_named: false,
                null_sender,
                reported: None,
                anchors_shown_by: None,
            });
        }
    }

    fn note_log_feature(&mut self, what: &[u8], time: i64) {
        if !self.log_features.contains(what) {
            self.log_features.upsert(what, time, || ());
        }
    }

    fn open_message(&mut self, id: &[u8], time: i64) -> &mut OpenMessage {
        let null_sender = self.null_senders.contains(id);
        let (message, evicted) = self.messages.upsert(id, time, || OpenMessage::new(null_sender));
        self.uncounted.evicted += evicted;
        message
    }

    fn sweep(&mut self, time: i64, out: &mut Vec<SessionOutcome>) {
        for message in self.messages.remove_before(time - SESSION_TIMEOUT) {
            self.abandon(message, time, out);
        }
        // The time of these entries is when they may go.
        self.own_reports.remove_before(time);
        self.null_senders.remove_before(time);
    }
}

impl Default for EximSessions {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
