//! Sessions from Postfix's lines.
//!
//! Takes: events in the order of the log. Gives: outcomes, once a line tells the recipient domain.
//! One smtp(8) process handles one delivery at a time, so lines are joined by (host, syslog name, process, PID); each new
//! connection is an [`Attempt`], closed by `QID: reason` or by the first `to=` line, which also tells the domain.
//! tlsproxy(8) logs a session a second time and knows no delivery: of it only verification failures are kept, by peer.
//! Limits: the constants below. Not here: the wording of a line (`parsers`).

mod attempt;

use serde::{Deserialize, Serialize};
use tlswarden_parsers::event::{
    Event, EventKind, ExclusionReason, Peer, Process, TlsFeature, TlsFeatureStatus, TlsReason, VerificationError,
};

use self::attempt::{
    Attempt, SMTP_PORT, UnloggedSession, host_key, instance_key, join_key, message_key, peer_key, process_key,
};
use crate::base::domain_name;
use crate::base::tlsrpt::{ResultType, SessionOutcome, SessionResult, Trust};
use crate::counting::digest::digest;
use crate::counting::session::handshake::{connection_code, openssl_code};
use crate::counting::session::reason::{
    HANDSHAKE_FAILURE, MX_MISMATCH, TLSA_UNUSABLE, tlsrpt_verdict, verification_failure,
};
use crate::counting::session::text::{lossy, lower_case};
use crate::counting::session::tracked_map::{RecordChange, TrackedMap};
use crate::counting::session::{OwnReport, SESSION_TIMEOUT, Uncounted};

/// smtp(8) processes that have a delivery under way. Postfix's default_process_limit is 100.
const MAX_PROCESSES: usize = 100_000;

/// Connections of one delivery before its `to=` line: smtp_mx_session_limit is 2, addresses and retries come on top.
const MAX_ATTEMPTS: usize = 64;

/// Delivery requests of one message that are known as counted: at 50 recipients each (destination_recipient_limit), a
/// list of 50,000 in one domain.
const MAX_COUNTED_REQUESTS: usize = 1000;

/// Peers whose last verification failure is stored.
const MAX_FAILED_PEERS: usize = 100_000;

/// How long a verification failure explains a later one of the same peer that has no line of its own, in seconds:
/// smtp_tls_session_cache_timeout, for a resumed session is not verified again.
const VERIFICATION_FAILURE_TTL: i64 = 3600;

/// Destinations that Postfix reports on by itself; beyond, those that mail went to longest ago count from the log.
const MAX_DESTINATIONS: usize = 100_000;

/// How long a destination is known as one that Postfix reports on, in seconds: it looks for the TLSRPT record at each
/// delivery, and a domain that has removed the record gets no report of the day either.
const REPORTED_DESTINATION_TTL: i64 = 86_400;

/// Messages that are known by their queue id, as our own reports or as answered.
const MAX_MESSAGES: usize = 100_000;

/// How long a queue id is stored after its last line, in seconds: maximal_queue_lifetime, five days.
const QUEUE_ID_TTL: i64 = 5 * 86_400;

/// How long our own report's queue id is stored after `removed`, in seconds: lines can be out of order.
const REMOVED_QUEUE_ID_TTL: i64 = 60;

/// Instances (`syslog_name`) of which something is remembered: each is a line in main.cf or master.cf.
const MAX_INSTANCES: usize = 1000;

/// Hosts that are known to have TLS; beyond, those that were seen longest ago can be taken for hosts without.
const MAX_HOSTS_WITH_TLS: usize = 100_000;

/// How long a host that has made TLS is not taken for one without it, in seconds: the deliveries that were under way then.
/// A host that stops offering STARTTLS is noticed after that.
const HOST_WITH_TLS_TTL: i64 = 600;

/// How long lines are missed after a syslog daemon has lost some, in seconds: deliveries that were under way then.
const GAP_TTL: i64 = 600;

/// Deliveries in a row without a line about TLS after which the log level may hide TLS: more than nine of ten hosts have it. A
/// level that is changed without a reload is that of new processes alone.
const MAX_SILENT_DELIVERIES: u32 = 10;

/// How often the time of a host that makes TLS is stored anew, in seconds: each is a record. After a restart a host may be
/// forgotten by so much earlier.
const HOST_WITH_TLS_RENEWAL: i64 = 300;

/// The sessions of one input.
#[derive(Debug)]
pub struct PostfixSessions {
    deliveries: TrackedMap<OpenDelivery>,
    verification_failures: TrackedMap<(ResultType, Option<String>)>,
    own_reports: TrackedMap<OwnReport>,
    /// Messages with a null sender, by host and queue id.
    null_senders: TrackedMap<()>,
    /// Delivery requests that are counted, by host and queue id: a digest of each.
    counted_requests: TrackedMap<Vec<u64>>,
    reported_destinations: TrackedMap<()>,
    proxied_sessions: TrackedMap<u32>,
    last_reported_peer: TrackedMap<Vec<u8>>,
    instances: TrackedMap<Instance>,
    /// The value is the time that the store has.
    hosts_with_tls: TrackedMap<i64>,
    /// Lines before the next one are missing.
    lines_missing: bool,
    swept_at: i64,
    uncounted: Uncounted,
}

/// What the lines of one instance (`syslog_name`) have shown since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Instance {
    /// It has trust anchors: some certificate was found trusted.
    has_trust_anchors: bool,
    /// When its log was last known to have lost lines: for a while nothing follows from a line that is missing.
    #[serde(default)]
    lost_lines_at: Option<i64>,
    /// It has sessions made by tlsproxy(8). Of those smtp(8) logs every one, whatever the log level is.
    uses_tlsproxy: bool,
    /// Its log level shows every session.
    logs_all_sessions: bool,
    /// Deliveries since the last line about TLS that must have been in clear text, if it does.
    #[serde(default)]
    silent_deliveries: u32,
}

/// The delivery that one smtp(8) process has under way.
#[derive(Debug, Default, Serialize, Deserialize)]
struct OpenDelivery {
    attempts: Vec<Attempt>,
    /// Attempts that were evicted by newer ones.
    evicted: u64,
}

/// The fields of a delivery line that concern its connection.
struct DeliveryLine<'a> {
    relay: Option<Peer<'a>>,
    /// The connection is not a cached one.
    new_connection: bool,
    delays: &'a [u8],
    tls: Option<TlsFeature<'a>>,
    sent: bool,
    reason: TlsReason<'a>,
}

/// The mail that a session was for.
#[derive(Clone, Copy)]
struct DeliveredMail<'a> {
    recipient_domain: &'a str,
    /// Its sender is known to be null.
    null_sender: bool,
}

impl PostfixSessions {
    /// No sessions.
    pub fn new() -> PostfixSessions {
        PostfixSessions {
            deliveries: TrackedMap::new(MAX_PROCESSES),
            verification_failures: TrackedMap::new(MAX_FAILED_PEERS),
            own_reports: TrackedMap::new(MAX_MESSAGES),
            null_senders: TrackedMap::new(MAX_MESSAGES),
            counted_requests: TrackedMap::new(MAX_MESSAGES),
            reported_destinations: TrackedMap::new(MAX_DESTINATIONS),
            proxied_sessions: TrackedMap::new(MAX_FAILED_PEERS),
            last_reported_peer: TrackedMap::new(MAX_PROCESSES),
            instances: TrackedMap::new(MAX_INSTANCES),
            hosts_with_tls: TrackedMap::new(MAX_HOSTS_WITH_TLS),
            lines_missing: false,
            swept_at: 0,
            uncounted: Uncounted::default(),
        }
    }

    /// Takes back one record of [`take_changes`](Self::take_changes); `false` if it does not read.
    pub fn load(&mut self, key: &[u8], value: &[u8]) -> bool {
        match key.split_first() {
            Some((b'd', key)) => self.deliveries.load(key, value),
            Some((b'f', key)) => self.verification_failures.load(key, value),
            Some((b'o', key)) => self.own_reports.load(key, value),
            Some((b'b', key)) => self.null_senders.load(key, value),
            Some((b'a', key)) => self.counted_requests.load(key, value),
            Some((b'n', key)) => self.reported_destinations.load(key, value),
            Some((b'q', key)) => self.proxied_sessions.load(key, value),
            Some((b'p', key)) => self.last_reported_peer.load(key, value),
            Some((b't', key)) => self.instances.load(key, value),
            Some((b'h', key)) => self.hosts_with_tls.load(key, value),
            _ => false,
        }
    }

    /// Takes the records that have changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut all = Vec::new();
        let mut add = |table: u8, changes: Vec<RecordChange>| {
            all.extend(changes.into_iter().map(|(key, value)| ([&[table], &key[..]].concat(), value)));
        };
        add(b'd', self.deliveries.take_changes());
        add(b'f', self.verification_failures.take_changes());
        add(b'o', self.own_reports.take_changes());
        add(b'b', self.null_senders.take_changes());
        add(b'a', self.counted_requests.take_changes());
        add(b'n', self.reported_destinations.take_changes());
        add(b'q', self.proxied_sessions.take_changes());
        add(b'p', self.last_reported_peer.take_changes());
        add(b't', self.instances.take_changes());
        add(b'h', self.hosts_with_tls.take_changes());
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
        if std::mem::take(&mut self.lines_missing) {
            self.note_gap(b"", time);
        }
        let process = &event.process;
        let delivers = process.name == b"smtp";
        match &event.kind {
            EventKind::VerificationFailed { peer, cause } => {
                self.handle_verification_failed(process, *peer, *cause, time)
            }
            EventKind::MessageId { queue_id, message_id } => {
                if is_own_report(message_id) {
                    let (report, _) = self.own_reports.upsert(queue_id, time + QUEUE_ID_TTL, OwnReport::default);
                    *report = OwnReport::with_message_id(message_id);
                } else {
                    // A queue id can come again.
                    self.own_reports.remove(queue_id);
                }
            }
            EventKind::QueueActive { queue_id, null_sender } => {
                let message = message_key(process, queue_id);
                self.counted_requests.remove(&message);
                if *null_sender {
                    self.uncounted.evicted += self.null_senders.upsert(&message, time + QUEUE_ID_TTL, || ()).1;
                } else {
                    // A queue id can come again.
                    self.null_senders.remove(&message);
                }
            }
            EventKind::QueueRemoved { queue_id } => {
                let message = message_key(process, queue_id);
                self.counted_requests.remove(&message);
                if self.own_reports.contains(queue_id) {
                    self.own_reports.upsert(queue_id, time + REMOVED_QUEUE_ID_TTL, OwnReport::default);
                }
                if self.null_senders.contains(&message) {
                    self.null_senders.upsert(&message, time + REMOVED_QUEUE_ID_TTL, || ());
                }
            }
            EventKind::DaemonStarted { .. } => {
                let master = instance_key(process);
                self.instances.remove_matching(|name| belongs_to_master(name, &master));
            }
            EventKind::DaemonReloaded => {
                let master = instance_key(process);
                let names: Vec<_> = self.instances.keys().filter(|n| belongs_to_master(n, &master)).cloned().collect();
                for name in names {
                    self.update_instance(&name, time, |i| (i.uses_tlsproxy, i.logs_all_sessions) = (false, false));
                }
            }
            EventKind::LinesLost { .. } | EventKind::LastLineRepeated { .. } => self.note_gap(process.host, time),
            EventKind::TlsproxyConnect => {
                self.update_instance(&instance_key(process), time, |i| i.uses_tlsproxy = true)
            }
            EventKind::Established { reused: false, .. } if process.name == b"tlsproxy" => {
                self.update_instance(&instance_key(process), time, |i| i.logs_all_sessions = true);
            }
            EventKind::TlsrptResult { domain, peer, .. } if !delivers => {
                self.note_reported_destination(domain, time);
                let peer = host_key(peer.host, peer.ip);
                *self.proxied_sessions.upsert(&peer, time, || 0).0 += 1;
                *self.last_reported_peer.upsert(&process_key(process), time, Vec::new).0 = peer.to_vec();
            }
            EventKind::TlsrptNotSent if !delivers => {
                if let Some(peer) = self.last_reported_peer.remove(&process_key(process)) {
                    self.take_proxied_session(&peer);
                }
            }
            // The rest says something only where a delivery is under way: tlsproxy(8) repeats what smtp(8) logs.
            _ if !delivers => {}
            EventKind::Established { reused: true, .. } => {}
            EventKind::Established { peer, trust, .. } => self.handle_established(process, *peer, *trust, time),
            EventKind::HandshakeFailed { peer, cause } => {
                let attempt = self.open_attempt(process, Some(*peer), time, |a| a.has_finished_handshake());
                attempt.handshake_failed = true;
                attempt.handshake_code = connection_code(cause);
            }
            EventKind::LibraryProblem { text } => self.handle_library_problem(process, text, time),
            EventKind::ResumedUntrusted { peer } => {
                self.open_attempt(process, Some(*peer), time, |a| a.has_finished_handshake()).resumed_untrusted = true;
            }
            EventKind::TlsaUnusable { peer } => {
                self.open_attempt(process, Some(*peer), time, |a| a.has_finished_handshake()).tlsa_unusable = true;
            }
            EventKind::HostExcluded { next_hop, host, reason: why } => {
                self.handle_host_excluded(process, next_hop, host, *why, time)
            }
            EventKind::TlsrptResult { domain, peer, failure } => {
                let verdict = match failure {
                    None => SessionResult::Success,
                    Some(f) => tlsrpt_verdict(f.failure_type, f.reason),
                };
                self.note_reported_destination(domain, time);
                let attempt = self.open_attempt(process, Some(*peer), time, |a| a.tlsrpt_result.is_some());
                attempt.tlsrpt_result = Some(verdict);
                attempt.next_hop = Some(lossy(domain));
            }
            EventKind::TlsrptNotSent => {
                let last = self.deliveries.peek(&process_key(process)).is_some_and(|(_, d)| !d.attempts.is_empty());
                if last && let Some(attempt) = self.open_delivery(process, time).attempts.last_mut() {
                    attempt.tlsrpt_not_sent = attempt.tlsrpt_result.is_some();
                }
            }
            EventKind::HostGivenUp { queue_id, reason, .. } => {
                self.handle_host_given_up(process, queue_id, *reason, time)
            }
            EventKind::Delivery {
                queue_id,
                recipient_domain,
                relay,
                cached_connection,
                delays,
                tls,
                sent,
                reason,
                ..
            } => {
                let end = DeliveryLine {
                    relay: *relay,
                    new_connection: !cached_connection,
                    delays,
                    tls: *tls,
                    sent: *sent,
                    reason: *reason,
                };
                self.handle_delivery(process, queue_id, recipient_domain, &end, time, out);
            }
            // Another MTA's line.
            EventKind::Exim(_) => {}
        }
    }

    /// Ends what is open at `now`: the input has been at its end for [`SESSION_TIMEOUT`].
    pub fn end_all(&mut self, now: i64, out: &mut Vec<SessionOutcome>) {
        for delivery in self.deliveries.remove_before(i64::MAX) {
            self.abandon(delivery, now, out);
        }
    }

    /// A queue id that Postfix gave one of our reports at `time`. What the log says of its Message-ID goes before it.
    pub(crate) fn carries_own(&mut self, queue_id: &[u8], time: i64) {
        let (_, evicted) = self.own_reports.upsert(queue_id, time + QUEUE_ID_TTL, OwnReport::default);
        self.uncounted.evicted += evicted;
    }

    /// Our reports that are on their way, by queue id.
    pub(crate) fn own_reports(&self) -> &TrackedMap<OwnReport> {
        &self.own_reports
    }

    /// An instance has found a certificate trusted, which a line alone could not tell.
    pub(crate) fn has_anchors(&mut self, instance: &[u8], time: i64) {
        self.update_instance(instance, time, |i| i.has_trust_anchors = true);
    }

    /// Whether anything is open.
    pub fn is_idle(&self) -> bool {
        self.deliveries.is_empty()
    }

    /// Notes that Postfix itself reports sessions to a destination: it has one TLSRPT record.
    fn note_reported_destination(&mut self, domain: &[u8], time: i64) {
        if let Some(name) = domain_name::normalize(&lossy(domain)) {
            let (_, evicted) = self.reported_destinations.upsert(name.as_bytes(), time, || ());
            self.uncounted.evicted += evicted;
        }
    }

    /// Lines before the next one are missing.
    pub(crate) fn note_missing_lines(&mut self) {
        self.lines_missing = true;
    }

    /// Lines of a host are missing: what was concluded from the completeness of its log ends.
    fn note_gap(&mut self, host: &[u8], time: i64) {
        // A key begins with the host and a zero byte (`instance_key`); a line without a host says nothing about which.
        let of_host = |key: &[u8]| {
            host.is_empty()
                || key.strip_prefix(host).is_some_and(|rest| rest.starts_with(b"\0"))
                || key.starts_with(b"\0")
        };
        let names: Vec<_> = self.instances.keys().filter(|key| of_host(key)).cloned().collect();
        for name in names {
            self.update_instance(&name, time, |i| (i.logs_all_sessions, i.lost_lines_at) = (false, Some(time)));
        }
    }

    /// Takes one session that tlsproxy(8) has reported with a peer and that no session of smtp(8) has been matched with.
    fn take_proxied_session(&mut self, peer: &[u8]) -> bool {
        let Some((time, left)) = self.proxied_sessions.peek(peer).map(|(time, left)| (time, *left)) else {
            return false;
        };
        if left > 1 {
            *self.proxied_sessions.upsert(peer, time, || 0).0 = left - 1;
        } else {
            self.proxied_sessions.remove(peer);
        }
        true
    }

    fn handle_established(&mut self, process: &Process<'_>, peer: Peer<'_>, trust: Trust, time: i64) {
        self.update_instance(&instance_key(process), time, |i| {
            i.has_trust_anchors |= trust == Trust::Trusted;
            i.logs_all_sessions |= !i.uses_tlsproxy;
            i.silent_deliveries = 0;
        });
        self.note_host_with_tls(peer, time);
        self.open_attempt(process, Some(peer), time, |a| a.has_finished_handshake()).trust = Some(trust);
    }

    /// Notes that a host has TLS: a later delivery to it without a line about TLS does not show that it has none.
    fn note_host_with_tls(&mut self, peer: Peer<'_>, time: i64) {
        let host = host_key(peer.host, peer.ip);
        let stored_at = self.hosts_with_tls.touch(&host, time);
        if stored_at.is_none_or(|stored| time - stored >= HOST_WITH_TLS_RENEWAL) {
            *self.hosts_with_tls.upsert(&host, time, || time).0 = time;
        }
    }

    fn handle_verification_failed(
        &mut self,
        process: &Process<'_>,
        peer: Peer<'_>,
        cause: VerificationError<'_>,
        time: i64,
    ) {
        let found = verification_failure(cause);
        self.verification_failures.upsert(&peer_key(peer), time, || found.clone()).0.clone_from(&found);
        if process.name == b"smtp" {
            let attempt = self.open_attempt(process, Some(peer), time, |a| a.has_finished_handshake());
            // A chain can fail at several depths; the name counts only where nothing else is wrong (tls_verify.c).
            let name_only =
                attempt.verification.as_ref().is_none_or(|(t, _)| *t == ResultType::CertificateHostMismatch);
            if name_only {
                attempt.verification = Some(found);
            }
        }
    }

    /// An error of the TLS library: the detail of the handshake failure that was logged before it.
    fn handle_library_problem(&mut self, process: &Process<'_>, text: &[u8], time: i64) {
        let is_unexplained = |a: &Attempt| a.is_open() && a.handshake_failed && a.handshake_code.is_none();
        let known = self.deliveries.peek(&process_key(process));
        if known.is_some_and(|(_, delivery)| delivery.attempts.last().is_some_and(is_unexplained))
            && let Some(attempt) = self.open_delivery(process, time).attempts.last_mut()
        {
            attempt.handshake_code = openssl_code(text);
        }
    }

    fn handle_host_excluded(
        &mut self,
        process: &Process<'_>,
        next_hop: &[u8],
        host: &[u8],
        why: ExclusionReason,
        time: i64,
    ) {
        let host = lower_case(host);
        let found = match why {
            ExclusionReason::TlsaLookupError => (ResultType::DnssecInvalid, None),
            ExclusionReason::TlsaUnusable => (ResultType::TlsaInvalid, Some(TLSA_UNUSABLE.to_owned())),
            ExclusionReason::NoTlsa | ExclusionReason::NotDnssec => (ResultType::DaneRequired, None),
            ExclusionReason::StsMxMismatch => (ResultType::ValidationFailure, Some(MX_MISMATCH.to_owned())),
            ExclusionReason::PolicyUnknown => return self.handle_policy_unknown(process, next_hop, time),
        };
        let delivery = self.open_delivery(process, time);
        // Each address of a host is looked up again, with the same warning.
        if delivery.attempts.iter().any(|a| a.excluded.is_some() && a.host.as_deref() == Some(&*host)) {
            return;
        }
        let mut attempt = Attempt::new(time, None);
        attempt.host = Some(host);
        attempt.excluded = Some(found);
        attempt.next_hop = Some(next_hop_host(next_hop));
        push_attempt(delivery, attempt);
    }

    /// The policy of a next hop could not be looked up: with as many warnings as it has hosts, it is one attempt to deliver.
    fn handle_policy_unknown(&mut self, process: &Process<'_>, next_hop: &[u8], time: i64) {
        let delivery = self.open_delivery(process, time);
        if delivery.attempts.iter().all(|attempt| !attempt.policy_unknown) {
            let next_hop = Some(next_hop_host(next_hop));
            push_attempt(delivery, Attempt { next_hop, policy_unknown: true, ..Attempt::new(time, None) });
        }
    }

    fn handle_host_given_up(&mut self, process: &Process<'_>, queue_id: &[u8], reason: TlsReason<'_>, time: i64) {
        let needs_one = match reason {
            TlsReason::Other | TlsReason::PolicyUnknown => None,
            // At log level 0 Postfix 3.4 and 3.5 say no more of a certificate than this.
            TlsReason::HandshakeFailure | TlsReason::NotVerified | TlsReason::NotTrusted => Some(None),
            TlsReason::StarttlsRefused(peer) | TlsReason::StarttlsNotOffered(peer) => Some(Some(peer)),
        };
        let delivery = self.open_delivery(process, time);
        if !delivery.attempts.last().is_some_and(Attempt::is_open) {
            let Some(peer) = needs_one else {
                self.drop_if_empty(process);
                return;
            };
            push_attempt(delivery, Attempt::new(time, peer));
        }
        let Some(mut attempt) = delivery.attempts.pop() else { return };
        let verdict = self.verdict(&attempt, reason, time);
        attempt.given_up = Some((lossy(queue_id), verdict));
        self.open_delivery(process, time).attempts.push(attempt);
    }

    fn handle_delivery(
        &mut self,
        process: &Process<'_>,
        queue_id: &[u8],
        recipient_domain: &[u8],
        end: &DeliveryLine<'_>,
        time: i64,
        out: &mut Vec<SessionOutcome>,
    ) {
        let &DeliveryLine { relay, reason, .. } = end;
        let (key, message) = (process_key(process), message_key(process, queue_id));
        let mut delivery = self.deliveries.remove(&key).unwrap_or_default();
        self.uncounted.evicted += delivery.evicted;
        if self.own_reports.contains(queue_id) {
            self.uncounted.own_reports += delivery.attempts.len() as u64;
            return;
        }
        let mut open = delivery.attempts.pop_if(|attempt| attempt.is_open());
        // Where no warning is there, the reason says it.
        let policy_unknown = relay.is_none()
            && matches!(reason, TlsReason::PolicyUnknown)
            && delivery.attempts.iter().all(|attempt| !attempt.policy_unknown);
        let unlogged = if open.is_some() { None } else { self.unlogged_session(process, end, &delivery, time) };
        if open.is_none() && delivery.attempts.is_empty() {
            self.check_for_missing_line(process, &message, end, time);
        }
        // The lines of the other recipients are alike, and without what was before them look like clear text.
        let told = open.is_some() || !delivery.attempts.is_empty();
        if !matches!(reason, TlsReason::Other) || unlogged.is_some() || told {
            let named = match reason {
                TlsReason::StarttlsRefused(peer) | TlsReason::StarttlsNotOffered(peer) => Some(peer),
                _ => None,
            };
            let peer = relay.or(named);
            // The other recipients of this delivery have the same line. Another delivery of the message by the same process
            // is to another host, or has waited longer: a message with many recipients is delivered in several requests.
            let request = request_digest(&key, peer, end);
            let (counted, evicted) = self.counted_requests.upsert(&message, time, Vec::new);
            self.uncounted.evicted += evicted;
            if !counted.contains(&request) && counted.len() < MAX_COUNTED_REQUESTS {
                counted.push(request);
                if unlogged == Some(UnloggedSession::ClearText) && end.tls.is_none() {
                    self.update_instance(&instance_key(process), time, |i| i.silent_deliveries += 1);
                }
                open = open.or_else(|| {
                    let mut attempt = Attempt::new(time, peer);
                    attempt.unlogged = unlogged;
                    attempt.policy_unknown = policy_unknown;
                    Some(attempt)
                });
            }
        }
        let null_sender = self.null_senders.contains(&message);
        let mail = DeliveredMail { recipient_domain: &lossy(recipient_domain), null_sender };
        let queue_id = lossy(queue_id);
        for mut attempt in delivery.attempts {
            match attempt.given_up.take() {
                Some((of, _)) if of != queue_id => self.uncounted.unmatched += 1,
                // Neither given up nor the last: the line that ended it is missing.
                None if !attempt.is_excluded() => self.uncounted.unmatched += 1,
                left => {
                    let verdict = left.and_then(|(_, verdict)| verdict);
                    self.finish(attempt, verdict, mail, time, process, out);
                }
            }
        }
        if let Some(attempt) = open {
            if relay.is_some_and(|relay| !attempt.is_to(relay)) {
                self.uncounted.unmatched += 1;
            } else {
                let verdict = self.verdict(&attempt, reason, time);
                self.finish(attempt, verdict, mail, time, process, out);
            }
        }
    }

    /// A new connection to a host that has just made TLS, without a line about TLS, although the log shows every session: lines
    /// are missing, or the process has another log level.
    fn check_for_missing_line(&mut self, process: &Process<'_>, message: &[u8], end: &DeliveryLine<'_>, time: i64) {
        let is_new = end.new_connection && end.sent && end.tls.is_none() && matches!(end.reason, TlsReason::Other);
        let Some(peer) = end.relay.filter(|peer| is_new && peer.port == Some(SMTP_PORT)) else { return };
        let instance = instance_key(process);
        if !self.hosts_with_tls.contains(&host_key(peer.host, peer.ip)) || !self.logs_all_sessions(&instance, time) {
            return;
        }
        // Unless it is another recipient of a session that had its line.
        let request = request_digest(&process_key(process), Some(peer), end);
        if !self.counted_requests.peek(message).is_some_and(|(_, counted)| counted.contains(&request)) {
            self.update_instance(&instance, time, |i| (i.logs_all_sessions, i.lost_lines_at) = (false, Some(time)));
        }
    }

    /// The session of a delivery line whose connection no other line shows.
    fn unlogged_session(
        &self,
        process: &Process<'_>,
        end: &DeliveryLine<'_>,
        delivery: &OpenDelivery,
        time: i64,
    ) -> Option<UnloggedSession> {
        let peer = end.relay.filter(|_| end.new_connection && matches!(end.reason, TlsReason::Other))?;
        // The connection that has TLS, or clear text after it broke or its handshake failed: the session is counted already.
        if delivery.attempts.iter().any(|a| a.had_tls_at(peer)) {
            return None;
        }
        let to_mx = peer.port == Some(SMTP_PORT);
        // A missing line proves nothing where the host has just made TLS. `tls=may:none` needs no such proof.
        let may_be_clear = to_mx && !self.hosts_with_tls.contains(&host_key(peer.host, peer.ip));
        let clear = may_be_clear.then_some(UnloggedSession::ClearText);
        match end.tls {
            Some(tls) if tls.status != TlsFeatureStatus::Met || tls.requested == b"none" => None,
            Some(TlsFeature { effective: b"none", .. }) => to_mx.then_some(UnloggedSession::ClearText),
            _ if self.logs_all_sessions(&instance_key(process), time) => {
                clear.filter(|_| end.sent && end.tls.is_none())
            }
            Some(TlsFeature { effective: b"may" | b"encrypt", .. }) => Some(UnloggedSession::Encrypted(None)),
            Some(TlsFeature { effective: b"halfdane", .. }) => Some(UnloggedSession::Encrypted(Some(Trust::Trusted))),
            Some(TlsFeature { effective: b"fingerprint" | b"dane" | b"dane-only" | b"verify" | b"secure", .. }) => {
                Some(UnloggedSession::Encrypted(Some(Trust::Verified)))
            }
            _ => None,
        }
    }

    /// What the lines of an attempt and the reason of its end come to; `None` where no TLS was tried.
    fn verdict(&self, attempt: &Attempt, reason: TlsReason<'_>, time: i64) -> Option<SessionResult> {
        let failure =
            |result: ResultType, code: Option<&str>| Some(SessionResult::Failure(result, code.map(str::to_owned)));
        match reason {
            TlsReason::StarttlsRefused(_) | TlsReason::StarttlsNotOffered(_) => {
                failure(ResultType::StarttlsNotSupported, None)
            }
            _ if attempt.handshake_failed => {
                let code = attempt.handshake_code.as_deref().unwrap_or(HANDSHAKE_FAILURE);
                failure(ResultType::ValidationFailure, Some(code))
            }
            TlsReason::HandshakeFailure => failure(ResultType::ValidationFailure, Some(HANDSHAKE_FAILURE)),
            _ if attempt.tlsa_unusable => failure(ResultType::TlsaInvalid, Some(TLSA_UNUSABLE)),
            TlsReason::NotVerified | TlsReason::NotTrusted => {
                let (result, code) = self.verification_cause(attempt, reason, time);
                Some(SessionResult::Failure(result, code))
            }
            TlsReason::Other | TlsReason::PolicyUnknown
                if matches!(attempt.unlogged, Some(UnloggedSession::Encrypted(_))) =>
            {
                Some(SessionResult::Success)
            }
            TlsReason::Other | TlsReason::PolicyUnknown => attempt.trust.map(|_| SessionResult::Success),
        }
    }

    /// The cause of `Server certificate not verified`: from its own line, else from the last one about that peer.
    fn verification_cause(&self, attempt: &Attempt, reason: TlsReason<'_>, time: i64) -> (ResultType, Option<String>) {
        if let Some(found) = &attempt.verification {
            return found.clone();
        }
        // Postfix 3.4 and 3.5 log no line for a name that does not match: the chain is trusted, and still it says this.
        if (reason, attempt.trust) == (TlsReason::NotVerified, Some(Trust::Trusted)) {
            return (ResultType::CertificateHostMismatch, None);
        }
        let remembered = self.verification_failures.peek(&attempt.peer_key());
        if let Some((then, found)) = remembered
            && (attempt.resumed_untrusted || time - then <= VERIFICATION_FAILURE_TTL)
        {
            return found.clone();
        }
        // At log level 0 they do not say so either; newer ones log the cause at every level.
        if (reason, attempt.trust, attempt.resumed_untrusted) == (TlsReason::NotVerified, None, false) {
            return (ResultType::CertificateHostMismatch, None);
        }
        (ResultType::CertificateNotTrusted, None)
    }

    fn finish(
        &mut self,
        attempt: Attempt,
        verdict: Option<SessionResult>,
        mail: DeliveredMail<'_>,
        time: i64,
        process: &Process<'_>,
        out: &mut Vec<SessionOutcome>,
    ) {
        let instance = instance_key(process);
        let anchors = self.instances.peek(&instance).is_some_and(|(_, i)| i.has_trust_anchors);
        self.emit(attempt, verdict, Some(mail), time, anchors, out);
        if let Some(verified) = out.last_mut().filter(|o| !anchors && o.trust == Some(Trust::Verified)) {
            verified.anchors_shown_by = Some(instance.to_vec().into());
        }
    }

    fn emit(
        &mut self,
        attempt: Attempt,
        verdict: Option<SessionResult>,
        mail: Option<DeliveredMail<'_>>,
        ended: i64,
        anchors: bool,
        out: &mut Vec<SessionOutcome>,
    ) {
        let (ruled_out, deferred) = (attempt.is_excluded(), attempt.policy_unknown);
        let observed = attempt.excluded.map(|(result, code)| SessionResult::Failure(result, code)).or(verdict);
        let clear_text = attempt.unlogged == Some(UnloggedSession::ClearText);
        if observed.is_none() && attempt.tlsrpt_result.is_none() && !clear_text && !deferred {
            return;
        }
        let recipient_domain = mail.map(|mail| mail.recipient_domain);
        let Some(name) = attempt.next_hop.as_deref().or(recipient_domain).and_then(domain_name::normalize) else {
            self.uncounted.without_domain += 1;
            return;
        };
        let reported = if ruled_out {
            // Postfix reports nothing of a host that it does not connect to.
            Some(false)
        } else if self.reported_destinations.contains(name.as_bytes()) {
            let told = attempt.tlsrpt_result.is_some() && !attempt.tlsrpt_not_sent;
            Some(
                told || attempt.tlsrpt_result.is_none()
                    && observed != Some(SessionResult::Success)
                    && self.take_proxied_session(&host_key(
                        attempt.host.as_deref().unwrap_or_default().as_bytes(),
                        attempt.ip,
                    )),
            )
        } else {
            None
        };
        out.push(SessionOutcome {
            began: attempt.began,
            ended,
            domain: name.into(),
            mx: attempt.host,
            ip: attempt.ip,
            port: attempt.port,
            trust: match attempt.unlogged {
                Some(UnloggedSession::Encrypted(trust)) => trust,
                _ => attempt.trust,
            },
            dane: None,
            observed,
            native: attempt.tlsrpt_result,
            cause: None,
            deferred,
            clear_text,
            anchors,
            next_hop_named: attempt.next_hop.is_some(),
            null_sender: mail.is_some_and(|mail| mail.null_sender),
            reported,
            anchors_shown_by: None,
        });
    }

    /// Ends a delivery whose `to=` line never came: what names its domain itself still counts.
    fn abandon(&mut self, delivery: OpenDelivery, ended: i64, out: &mut Vec<SessionOutcome>) {
        for mut attempt in delivery.attempts {
            let verdict = match attempt.given_up.take() {
                Some((_, verdict)) => verdict,
                None => self.verdict(&attempt, TlsReason::Other, attempt.began),
            };
            self.emit(attempt, verdict, None, ended, false, out);
        }
    }

    fn sweep(&mut self, time: i64, out: &mut Vec<SessionOutcome>) {
        for delivery in self.deliveries.remove_before(time - SESSION_TIMEOUT) {
            self.abandon(delivery, time, out);
        }
        self.verification_failures.remove_before(time - QUEUE_ID_TTL);
        // The recipients of one delivery are answered together; one that comes later is of another.
        self.counted_requests.remove_before(time - SESSION_TIMEOUT);
        self.reported_destinations.remove_before(time - REPORTED_DESTINATION_TTL);
        self.hosts_with_tls.remove_before(time - HOST_WITH_TLS_TTL);
        self.proxied_sessions.remove_before(time - SESSION_TIMEOUT);
        self.last_reported_peer.remove_before(time - SESSION_TIMEOUT);
        // The time of these entries is when they may go.
        self.own_reports.remove_before(time);
        self.null_senders.remove_before(time);
    }

    /// Updates what is known of an instance; writes nothing if that is not new.
    fn update_instance(&mut self, name: &[u8], time: i64, learn: impl Fn(&mut Instance)) {
        let known = self.instances.peek(name).map(|(_, instance)| *instance).unwrap_or_default();
        let mut now = known;
        learn(&mut now);
        if now != known {
            *self.instances.upsert(name, time, Instance::default).0 = now;
        }
    }

    fn logs_all_sessions(&self, instance: &[u8], time: i64) -> bool {
        let after_gap = |i: &Instance| i.lost_lines_at.is_none_or(|lost| time - lost > GAP_TTL);
        let shows = |i: &Instance| i.logs_all_sessions && i.silent_deliveries < MAX_SILENT_DELIVERIES && after_gap(i);
        self.instances.peek(instance).is_some_and(|(_, i)| shows(i))
    }

    fn open_delivery(&mut self, process: &Process<'_>, time: i64) -> &mut OpenDelivery {
        let (delivery, evicted) = self.deliveries.upsert(&process_key(process), time, OpenDelivery::default);
        self.uncounted.evicted += evicted;
        delivery
    }

    fn drop_if_empty(&mut self, process: &Process<'_>) {
        let key = process_key(process);
        if self.deliveries.peek(&key).is_some_and(|(_, d)| d.attempts.is_empty()) {
            self.deliveries.remove(&key);
        }
    }

    /// The attempt that a line about `peer` belongs to: the open one at that peer, unless `done` says that it is
    /// past such a line; else a new one.
    fn open_attempt(
        &mut self,
        process: &Process<'_>,
        peer: Option<Peer<'_>>,
        time: i64,
        done: impl Fn(&Attempt) -> bool,
    ) -> &mut Attempt {
        let delivery = self.open_delivery(process, time);
        let same = |a: &Attempt| a.is_open() && peer.is_none_or(|p| a.is_to(p)) && !done(a);
        if !delivery.attempts.last().is_some_and(same) {
            push_attempt(delivery, Attempt::new(time, peer));
        }
        let attempt = delivery.attempts.last_mut().expect("the last one matched, or one was pushed");
        if let Some(port) = peer.and_then(|p| p.port) {
            attempt.port = Some(port);
        }
        attempt
    }
}

impl Default for PostfixSessions {
    fn default() -> Self {
        Self::new()
    }
}

/// What the recipients of one delivery request have in common: the process, the peer, the times up to the connection.
fn request_digest(process: &[u8], peer: Option<Peer<'_>>, end: &DeliveryLine<'_>) -> u64 {
    digest(&join_key(&[process, b"\0", &peer.map(peer_key).unwrap_or_default(), b"\0", end.delays]))
}

fn push_attempt(delivery: &mut OpenDelivery, attempt: Attempt) {
    if delivery.attempts.len() == MAX_ATTEMPTS {
        delivery.attempts.remove(0);
        delivery.evicted += 1;
    }
    delivery.attempts.push(attempt);
}

/// Whether an instance is master(8)'s own or a service of it with a name of its own (`-o syslog_name=postfix/relay`).
fn belongs_to_master(instance: &[u8], master: &[u8]) -> bool {
    instance.strip_prefix(master).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// The host of a next-hop destination: `[mx.example.com]:587` and `example.com:2525` without brackets and port.
fn next_hop_host(next_hop: &[u8]) -> String {
    let name = lossy(next_hop);
    match name.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest).to_owned(),
        None => name.split(':').next().unwrap_or(&name).to_owned(),
    }
}

#[cfg(test)]
mod tests;
