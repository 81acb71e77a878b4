//! Counts one input: lines and datagrams become events, sessions, tallies.
//!
//! Takes: whole lines, or datagrams, in order, and the policy that was in force. Gives: counts, and the changed part of the
//! open state, for the next commit.
//! Limits: the constants below; what is left out is counted in [`CounterStats`] and [`Uncounted`].
//! When it fails: a line that looks like the MTA's and cannot be read is counted, and shown once a minute.
//! Not here: when a commit is made (`pipeline`), how lines become a session (`session`).

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use foldhash::fast::FixedState;
use foldhash::quality::RandomState;
use indexmap::IndexMap;
use jiff::tz::TimeZone;
use memchr::memchr;
use serde::Serialize;
use tlswarden_parsers::event::exim::EventAction;
use tlswarden_parsers::event::exim::{EximLine, LineKind, RecipientStatus};
use tlswarden_parsers::event::{EventKind, LogTimestamp};
use tlswarden_parsers::{
    DeliveryStatus, Dialect, Event, LineFamily, MalformedLine, is_log_line, parse, parse_delivery_status,
};

use crate::base::own_reports::{MAX_QUEUE_IDS, OwnReportStatus};
use crate::base::policy_at::PolicyAt;
use crate::base::tlsrpt::{Day, Mode, PolicyInForce, PolicyType, SessionOutcome, TallyKey, TallyResult};
use crate::config::NativeTlsrpt;
use crate::counting::attribution;
use crate::counting::counted_before::CountedBefore;
use crate::counting::input::json_entry;
use crate::counting::rules::CountingRules;
use crate::counting::session::datagram::{self, ReportedSession};
use crate::counting::session::tracked_map::RecordChange;
use crate::counting::session::{Sessions, Uncounted};
use crate::counting::tally;
use crate::counting::timestamps::TimestampResolver;
use crate::counting::unrecognized::UnrecognizedLines;
use crate::counting::whole_lines::{LineJoiner, WholeLine};
use crate::metrics::line_counts::LineCounts;
use crate::store::StoredRecord;

/// The least time between two samples of a family of lines that cannot be read, in seconds.
const SAMPLE_INTERVAL: i64 = 60;

/// The same if the name of the program is missing. One warning a day is enough: the remedy does not change.
const PROGRAM_NAME_SAMPLE_INTERVAL: i64 = 86_400;

/// The least time between two warnings of sessions by a next hop that is not known, in seconds.
const RELAY_SAMPLE_INTERVAL: i64 = 86_400;

/// What to do where lines have `postfix` in the place of `postfix/smtp`.
pub(crate) const PROGRAM_NAME_ADVICE: &str = "the program name is cut at the slash (`postfix` instead of `postfix/smtp`): \
     rsyslog needs `global(parser.permitSlashInProgramName=\"on\")` in rsyslog.conf, in old syntax \
     `$PermitSlashInProgramname on`; for journalctl, use an output format other than `with-unit`";

/// The greatest age of a line whose failure is a hint, in seconds: a newer policy is not looked for because of an old log.
const HINT_MAX_AGE: i64 = 3600;

/// Deliveries in a row without TLS after which the log is assumed to hide TLS: more than nine of ten servers have it.
const MAX_PLAINTEXT_RUN: u32 = 20;

/// The same once the log has shown a session: a run of servers without TLS, or a change of the level.
const MAX_PLAINTEXT_RUN_AFTER_TLS: u32 = 500;

/// Lines without a timestamp, before any line with one, after which the input is reported not to be a log.
const MAX_UNRECOGNIZED_LINES: u64 = 100;

/// Of deliveries: the same for each input, which it makes comparable.
const FINGERPRINT_HASHER: FixedState = FixedState::with_seed(0);

/// The most deliveries of a block that are compared with other inputs.
const MAX_DELIVERY_FINGERPRINTS: usize = 1024;

/// Names that servers of one domain may call themselves in a day's reports.
const MAX_HELOS: usize = 16;

/// Domains whose servers' names are known; when full, all are forgotten.
const MAX_HELO_DOMAINS: usize = 10_000;

/// The most hints between two blocks; more are dropped, because nothing depends on a hint.
const MAX_HINTS: usize = 256;

/// The most lines about our own reports between two blocks; a report that is still under way has another line later.
const MAX_OWN_REPORT_STATUSES: usize = MAX_QUEUE_IDS;

/// The longest sample of a line, in bytes.
const MAX_SAMPLE: usize = 300;

/// A line that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LineSample {
    /// The family that it begins like.
    pub(crate) family: &'static str,
    /// Its first bytes, printable.
    pub(crate) line: String,
}

/// Whether a Message-ID belongs to one of our own reports.
pub(crate) type OwnReportCheck = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Counts the lines of one input.
pub struct Counter {
    dialect: Dialect,
    timestamps: TimestampResolver,
    sessions: Sessions,
    is_own_report: OwnReportCheck,
    counts: IndexMap<TallyKey, u64, RandomState>,
    outcomes: Vec<SessionOutcome>,
    failed_domains: Vec<Arc<str>>,
    stats: CounterStats,
    newest_stored: Option<i64>,
    counted_before: CountedBefore,
    last_sampled: HashMap<&'static str, i64>,
    unrecognized: UnrecognizedLines,
    rules: Arc<CountingRules>,
    plaintext_run: u32,
    shows_tls: bool,
    hides_tls: bool,
    /// Lines so far without a timestamp; `None` once a line had one.
    unrecognized_lines: Option<u64>,
    delivery_fingerprints: Vec<u64>,
    helos: HashMap<Arc<str>, Vec<String>>,
    joiner: LineJoiner,
    /// The first line of each family that was left out, if they are wanted.
    samples: Option<Vec<LineSample>>,
    /// Whether the last line was the MTA's, and read or malformed.
    last_line_is_mta: bool,
    own_report_statuses: Vec<OwnReportStatus>,
}

/// Statistics of the lines that were counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CounterStats {
    /// Lines read.
    pub(crate) lines_read: u64,
    /// Lines that a syslog daemon left out, at least.
    pub(crate) lines_lost: u64,
    /// Lines that were too long once their parts were joined.
    pub(crate) lines_too_long: u64,
    /// By family: the lines that were used, and those that were malformed or not recognized.
    pub lines: LineCounts,
    /// Sessions whose destination our responder was not asked about.
    pub(crate) not_asked: u64,
    /// Sessions that contradict the decision.
    pub(crate) contradicted: u64,
    /// Sessions of which nothing is known, for the MTA has not shown that it has trust anchors.
    pub(crate) without_anchors: u64,
    /// Sessions to hosts of local networks.
    pub local: u64,
    /// Sessions with hosts that are not the recipient domain's, by a next hop that is not known.
    pub relayed: u64,
    /// Sessions in the log that Postfix's own datagrams count.
    pub(crate) left_to_datagrams: u64,
    /// Datagrams that did not count, for their policy is in testing mode: the log counts those sessions.
    pub(crate) left_to_log: u64,
}

/// The family of datagrams, beside those of lines.
const DATAGRAM_FAMILY: &str = "TLSRPT datagram";

/// The key of the newest line's time in the open state; keys of sessions begin with other letters.
pub(super) const NEWEST_LINE_KEY: &[u8] = b"c";

impl Counter {
    /// A counter for lines of an MTA, with time stamps of a zone.
    pub fn new(mta: Dialect, zone: TimeZone, own: OwnReportCheck) -> Counter {
        Counter {
            dialect: mta,
            timestamps: TimestampResolver::new(zone, None),
            sessions: Sessions::new(mta),
            is_own_report: own,
            counts: IndexMap::default(),
            outcomes: Vec::new(),
            failed_domains: Vec::new(),
            stats: CounterStats::default(),
            newest_stored: None,
            counted_before: CountedBefore::default(),
            last_sampled: HashMap::new(),
            unrecognized: UnrecognizedLines::default(),
            rules: Arc::default(),
            plaintext_run: 0,
            shows_tls: false,
            hides_tls: false,
            unrecognized_lines: Some(0),
            delivery_fingerprints: Vec::new(),
            helos: HashMap::new(),
            joiner: LineJoiner::default(),
            samples: None,
            last_line_is_mta: false,
            own_report_statuses: Vec::new(),
        }
    }

    /// Sets the counting rules of the configuration.
    pub fn with_rules(mut self, rules: Arc<CountingRules>) -> Counter {
        self.rules = rules;
        self
    }

    /// Keeps the first line of each family that is left out.
    pub(crate) fn with_samples(mut self) -> Counter {
        self.samples = Some(Vec::new());
        self
    }

    /// Takes the lines that were kept.
    pub(crate) fn take_samples(&mut self) -> Vec<LineSample> {
        self.samples.take().unwrap_or_default()
    }

    fn keep_sample(&mut self, family: &'static str, line: &[u8]) {
        if let Some(samples) = &mut self.samples
            && samples.iter().all(|sample| sample.family != family)
        {
            let line = line.get(..MAX_SAMPLE).unwrap_or(line).escape_ascii().to_string();
            samples.push(LineSample { family, line });
        }
    }

    /// Sets the year of the first line.
    pub(crate) fn with_first_year(mut self, year: Option<i16>) -> Counter {
        self.timestamps = self.timestamps.with_first_year(year);
        self
    }

    /// Restores the open state; returns how many records could not be read.
    pub(crate) fn with_open_state(mut self, zone: TimeZone, records: &[StoredRecord]) -> (Counter, u64) {
        let mut unread = 0;
        for (key, value) in records {
            if key == NEWEST_LINE_KEY {
                let newest = serde_json::from_slice(value).ok();
                unread += u64::from(newest.is_none());
                self.newest_stored = newest;
                self.timestamps = TimestampResolver::new(zone.clone(), newest);
            } else if key == CountedBefore::KEY {
                unread += u64::from(!self.counted_before.load(value));
            } else {
                unread += u64::from(!self.sessions.load(key, value));
            }
        }
        (self, unread)
    }

    /// Counts whole lines that are read at `now`: of a log file, or entries as `journalctl -o json` prints them.
    pub fn count_lines(&mut self, lines: &[u8], now: i64, policies: &dyn PolicyAt) {
        let mut rest = lines;
        while !rest.is_empty() {
            self.stats.lines_read += 1;
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            match self.joiner.take(line) {
                WholeLine::Same(line) => self.count_whole_line(line, now, policies),
                WholeLine::Changed(lines) => lines.iter().for_each(|line| self.count_whole_line(line, now, policies)),
            }
        }
        self.stats.lines_too_long += self.joiner.take_too_long();
    }

    fn count_whole_line(&mut self, line: &[u8], now: i64, policies: &dyn PolicyAt) {
        if let Some(unrecognized) = &mut self.unrecognized_lines {
            self.unrecognized_lines = (!is_log_line(line)).then_some(*unrecognized + 1);
        }
        if !is_journal_entry(line) {
            self.count_line(line, parse(self.dialect, line), now, policies);
            return self.note_own_report(|dialect| parse_delivery_status(dialect, line));
        }
        match json_entry::decode_entry(line) {
            Ok(None) => {}
            Ok(Some(entry)) => {
                self.unrecognized_lines = None;
                let read = entry.parse_text(self.dialect);
                self.count_line(&entry.text, read, now, policies);
                self.note_own_report(|dialect| entry.parse_delivery_status(dialect));
            }
            Err(family) => self.sample_malformed_line(family, line, now),
        }
    }

    /// Notes what a line says of one of our own reports. Looks at lines only while one is on its way.
    fn note_own_report<'a>(&mut self, read: impl FnOnce(Dialect) -> Option<DeliveryStatus<'a>>) {
        if !self.sessions.has_own_reports() || self.own_report_statuses.len() >= MAX_OWN_REPORT_STATUSES {
            return;
        }
        let status = read(self.dialect).and_then(|status| self.sessions.own_report_status(&status));
        self.own_report_statuses.extend(status);
    }

    fn count_line(
        &mut self,
        line: &[u8],
        read: Result<Option<Event<'_>>, MalformedLine>,
        now: i64,
        policies: &dyn PolicyAt,
    ) {
        let follows_mta_line = std::mem::replace(&mut self.last_line_is_mta, !matches!(read, Ok(None)));
        let mut event = match read {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(MalformedLine { family }) if family.is_unrecognized() => {
                return self.count_unrecognized_line(family.name(), line, now);
            }
            Err(malformed) => return self.sample_malformed_line(malformed.family.name(), line, now),
        };
        if let EventKind::LastLineRepeated { times } = event.kind {
            self.last_line_is_mta = follows_mta_line;
            if !follows_mta_line {
                return;
            }
            // Which session they were of can no longer be told.
            event.kind = EventKind::LinesLost { number: times };
        }
        let Some(time) = self.timestamps.resolve(event.timestamp, now) else {
            return self.sample_malformed_line("time stamp", line, now);
        };
        if self.counted_before.includes(time) {
            return;
        }
        self.stats.lines.entry(event.kind.family().name()).used += 1;
        match &event.kind {
            EventKind::LinesLost { number } => self.stats.lines_lost += u64::from(*number),
            EventKind::Delivery { .. } | EventKind::Exim(EximLine { kind: LineKind::Recipient(_), .. }) => {
                self.unrecognized.add_recipient(now);
            }
            _ => {}
        }
        if let Some(family) = event.kind.unrecognized_family() {
            self.count_unrecognized_line(family.name(), line, now);
        }
        self.sessions.handle_event(&event, time, &*self.is_own_report, &mut self.outcomes);
        self.check_delivery(&event);
        self.tally_outcomes(policies, now);
    }

    /// Counts one datagram of Postfix's libtlsrpt, received at `at`; `None` is one that was too long.
    pub fn count_datagram(&mut self, bytes: Option<&[u8]>, at: i64, policies: &dyn PolicyAt) {
        self.stats.lines_read += 1;
        let day_before = self.timestamps.newest().map(Day::of);
        self.timestamps.resolve(LogTimestamp::Utc(at), at);
        if day_before != Some(Day::of(at)) {
            self.helos.clear();
        }
        let sessions = match bytes.map(datagram::decode) {
            Some(Ok(sessions)) => sessions,
            Some(Err(why)) => return self.sample_unreadable_datagram(why.cause(), bytes.unwrap_or_default(), at),
            None => return self.sample_unreadable_datagram("it is longer than any is", b"", at),
        };
        self.stats.lines.entry(DATAGRAM_FAMILY).used += 1;
        for mut session in sessions {
            self.limit_helo_names(&mut session);
            self.rules.record_reported(&session, at);
            let in_force = policies.at(&session.domain, at);
            let in_force = self.rules.policy_in_force(in_force, &session.domain, at);
            let in_force = in_force.map(PolicyInForce::at_some_host);
            let tallies = tally::tally_reported_session(&session, at, in_force.as_ref(), self.rules.has_log_input);
            self.stats.left_to_log += u64::from(tallies.is_empty());
            let under_sts = session.policy.policy_type == PolicyType::Sts;
            if under_sts
                && session.failed
                && self.failed_domains.len() < MAX_HINTS
                && !self.failed_domains.contains(&session.domain)
            {
                self.failed_domains.push(Arc::clone(&session.domain));
            }
            for tally in tallies {
                *self.counts.entry(tally).or_default() += 1;
            }
        }
    }

    /// Limits the HELO names in reports: a server may use another name each time, so a few a domain and day are reported.
    fn limit_helo_names(&mut self, session: &mut ReportedSession) {
        for failure in &mut session.failures {
            let Some(helo) = &failure.receiving_mx_helo else { continue };
            if self.helos.len() >= MAX_HELO_DOMAINS && !self.helos.contains_key(&session.domain) {
                self.helos.clear();
            }
            let known = self.helos.entry(Arc::clone(&session.domain)).or_default();
            if !known.contains(helo) {
                if known.len() < MAX_HELOS {
                    known.push(helo.clone());
                } else {
                    failure.receiving_mx_helo = None;
                }
            }
        }
    }

    fn sample_unreadable_datagram(&mut self, cause: &'static str, bytes: &[u8], now: i64) {
        self.stats.lines.entry(DATAGRAM_FAMILY).malformed += 1;
        let last = self.last_sampled.entry(cause).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= SAMPLE_INTERVAL {
            *last = now;
            let sample = bytes.get(..300).unwrap_or(bytes).escape_ascii();
            tracing::warn!("{DATAGRAM_FAMILY}: cannot be read: {cause}: \"{sample}\"; not counted");
        }
    }

    /// Checks a delivery for problems with the log as a whole; its sessions are in `outcomes`.
    fn check_delivery(&mut self, event: &Event<'_>) {
        let (fingerprint, shows_tls, new, peer) = match &event.kind {
            EventKind::Delivery { queue_id, recipient_domain, relay, cached_connection, sent, .. } => {
                let fingerprint = FINGERPRINT_HASHER.hash_one((event.process.pid, queue_id, recipient_domain));
                let shows = self.outcomes.iter().any(|outcome| outcome.trust.is_some() || outcome.observed.is_some());
                (fingerprint, shows, event.process.name == b"smtp" && *sent && !cached_connection, *relay)
            }
            // The process is not in every form of the line.
            EventKind::Exim(EximLine { id, kind: LineKind::Recipient(to) }) => {
                let fingerprint = FINGERPRINT_HASHER.hash_one((id, to.address));
                (
                    fingerprint,
                    to.tls.is_some(),
                    to.status == RecipientStatus::Delivered && !to.continued_connection,
                    to.peer,
                )
            }
            _ => return,
        };
        if self.delivery_fingerprints.len() < MAX_DELIVERY_FINGERPRINTS {
            self.delivery_fingerprints.push(fingerprint);
        }
        if shows_tls {
            (self.plaintext_run, self.shows_tls, self.hides_tls) = (0, true, false);
        } else if new && peer.and_then(|peer| peer.ip).is_some_and(|ip| !self.rules.is_local(ip)) {
            self.plaintext_run = self.plaintext_run.saturating_add(1);
            let limit = if self.shows_tls { MAX_PLAINTEXT_RUN_AFTER_TLS } else { MAX_PLAINTEXT_RUN };
            self.hides_tls |= self.plaintext_run >= limit;
        }
    }

    /// Advice if the log seems to hide TLS: many deliveries, and no session with TLS.
    pub(crate) fn missing_tls_advice(&self) -> Option<&'static str> {
        let advice = match self.dialect {
            Dialect::Postfix => {
                "smtp_tls_loglevel is 0, or no TLS is used; sessions that succeed are not counted from it: add \
                 `smtp_tls_loglevel = 1` to main.cf"
            }
            Dialect::Exim => {
                "no line has X=: log_selector is without tls_cipher, or no TLS is used; sessions that succeed are not \
                 counted from it: add `log_selector = +tls_cipher +tls_certificate_verified` to Exim's configuration"
            }
        };
        self.hides_tls.then_some(advice)
    }

    /// Whether no line so far begins with a timestamp.
    pub(crate) fn is_not_a_log(&self) -> bool {
        self.unrecognized_lines.is_some_and(|unrecognized| unrecognized >= MAX_UNRECOGNIZED_LINES)
    }

    /// Takes the fingerprints of the deliveries since the last call, by which the same lines in another input are recognized.
    pub(crate) fn take_delivery_fingerprints(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.delivery_fingerprints)
    }

    /// Adds a queue id that the MTA gave one of our reports at `time`.
    pub(crate) fn add_own_queue_id(&mut self, queue_id: &str, time: i64) {
        self.sessions.add_own_queue_id(queue_id, time);
    }

    /// Takes what the lines since the last call said of our own reports.
    pub(crate) fn take_own_report_statuses(&mut self) -> Vec<OwnReportStatus> {
        std::mem::take(&mut self.own_report_statuses)
    }

    /// Takes a failed session that Exim reports outside the log.
    pub fn handle_event_action(&mut self, event: &EventAction<'_>) {
        self.sessions.handle_event_action(event);
    }

    /// The MTA whose lines it counts.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Ends the sessions that are open at `now`: there will be no more lines.
    pub fn end_sessions(&mut self, now: i64, policies: &dyn PolicyAt) {
        self.joiner.finish().iter().for_each(|line| self.count_whole_line(line, now, policies));
        self.sessions.end_all(now, &mut self.outcomes);
        // What ends by waiting is no news.
        self.tally_outcomes(policies, i64::MAX);
    }

    /// Whether no session is open, and no line waits for its end.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_idle() && self.joiner.is_empty()
    }

    /// The time of the last line of the far future, and when it was read.
    pub(crate) fn future_line(&self) -> Option<(i64, i64)> {
        self.timestamps.future_line()
    }

    /// The time of the newest line.
    pub(crate) fn newest_line_time(&self) -> Option<i64> {
        self.timestamps.newest()
    }

    /// Lines before the next one are missing: they were lost with their file, or left the journal.
    pub(crate) fn note_missing_lines(&mut self) {
        self.sessions.note_missing_lines();
    }

    /// Leaves lines out that are not newer than the newest one so far: they may have been counted.
    pub(crate) fn leave_out_counted_lines(&mut self) {
        if let Some(newest) = self.timestamps.newest() {
            self.counted_before.extend_in_file(newest);
        }
    }

    /// Ends what [`leave_out_counted_lines`](Self::leave_out_counted_lines) began.
    pub(crate) fn expect_new_lines(&mut self) {
        self.counted_before.end_file();
    }

    /// Leaves lines out up to a time: another input had them, or they are not wanted.
    pub(crate) fn leave_out_until(&mut self, time: i64) {
        self.counted_before.extend_of_other_input(time);
    }

    /// Takes the statistics since the last call.
    pub fn take_stats(&mut self) -> (CounterStats, Uncounted) {
        (std::mem::take(&mut self.stats), self.sessions.take_uncounted())
    }

    /// How many lines of the MTA's were used since the last call of [`take_stats`](Self::take_stats); what a syslog daemon
    /// logs of lines that it lost is in the log of any MTA.
    pub(crate) fn used_mta_lines(&self) -> u64 {
        let of_mta = self.stats.lines.iter().filter(|(family, _)| *family != LineFamily::LinesLost.name());
        of_mta.map(|(_, lines)| lines.used).sum()
    }

    /// Takes the counts since the last call.
    pub fn take_counts(&mut self) -> impl Iterator<Item = (TallyKey, u64)> {
        std::mem::take(&mut self.counts).into_iter()
    }

    /// Takes the part of the open state that has changed since the last call.
    pub(crate) fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut changes = self.sessions.take_changes();
        let newest = self.timestamps.newest();
        changes.extend(self.counted_before.take_change(newest));
        if newest != self.newest_stored {
            self.newest_stored = newest;
            changes.push((NEWEST_LINE_KEY.to_vec(), newest.map(|t| t.to_string().into_bytes())));
        }
        changes
    }

    /// Takes the domains to which a session failed under an MTA-STS policy within the last hour, since the last call.
    pub(crate) fn take_failed_domains(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.failed_domains)
    }

    fn tally_outcomes(&mut self, policies: &dyn PolicyAt, now: i64) {
        for mut outcome in self.outcomes.drain(..) {
            if outcome.ip.is_some_and(|ip| self.rules.is_local(ip)) {
                self.stats.local += 1;
                continue;
            }
            let Some(domain) = attribution::policy_domain(&outcome, &self.rules, policies) else {
                if outcome.observed.is_some() {
                    self.stats.relayed += 1;
                    warn_of_relay(&mut self.last_sampled, &outcome, now);
                }
                continue;
            };
            outcome.domain = domain;
            let in_force = policies.at(&outcome.domain, outcome.began);
            let in_force = self.rules.policy_in_force(in_force, &outcome.domain, outcome.began);
            let in_force = in_force.map(|policy| policy.at_host(outcome.mx.as_deref()));
            let tested = matches!(in_force, Some(PolicyInForce::Sts { mode: Mode::Testing, .. }));
            match self.rules.tlsrpt {
                NativeTlsrpt::Off => outcome.native = None,
                NativeTlsrpt::Datagrams if !tested && self.rules.is_counted_by_datagrams(&outcome) => {
                    self.stats.left_to_datagrams += 1;
                    continue;
                }
                NativeTlsrpt::Log | NativeTlsrpt::Datagrams => {}
            }
            let counts = tally::tally_session(&outcome, in_force.as_ref());
            if counts.shows_trust_anchors
                && let Some(instance) = &outcome.anchors_shown_by
            {
                self.sessions.set_has_trust_anchors(instance, outcome.ended);
            }
            if (outcome.clear_text || outcome.deferred) && counts.tallies.is_empty() {
                continue;
            }
            self.stats.not_asked += u64::from(in_force.is_none());
            self.stats.contradicted += u64::from(counts.contradicted);
            self.stats.without_anchors += u64::from(counts.without_trust_anchors);
            let under_sts = matches!(
                &in_force,
                Some(PolicyInForce::Sts { mode: Mode::Enforce | Mode::Testing, .. } | PolicyInForce::PerHost { .. })
            );
            if under_sts
                && now.saturating_sub(outcome.ended) <= HINT_MAX_AGE
                && self.failed_domains.len() < MAX_HINTS
                && counts.tallies.iter().any(|tally| tally.result == TallyResult::Failure)
                && !self.failed_domains.contains(&outcome.domain)
            {
                self.failed_domains.push(Arc::clone(&outcome.domain));
            }
            for mut tally in counts.tallies {
                if let (TallyResult::Detail(failure), Some(ip)) = (&mut tally.result, outcome.ip)
                    && failure.receiving_ip == Some(ip)
                {
                    failure.sending_mta_ip = self.rules.sending_address(ip);
                }
                *self.counts.entry(tally).or_default() += 1;
            }
        }
    }

    /// A line that looks like the MTA's and matches no known wording.
    fn count_unrecognized_line(&mut self, family: &'static str, line: &[u8], now: i64) {
        self.stats.lines.entry(family).unrecognized += 1;
        self.keep_sample(family, line);
        self.unrecognized.add(family, line, now);
    }

    /// What to say where so many lines are not recognized that sessions must be missing.
    pub(crate) fn unrecognized_advice(&self) -> Option<String> {
        self.unrecognized.advice()
    }

    /// A line that looks ours and cannot be read may be a new version's wording: one sample a minute is shown.
    fn sample_malformed_line(&mut self, family: &'static str, line: &[u8], now: i64) {
        self.stats.lines.entry(family).malformed += 1;
        self.keep_sample(family, line);
        let nameless = family == LineFamily::ProgramName.name();
        let interval = if nameless { PROGRAM_NAME_SAMPLE_INTERVAL } else { SAMPLE_INTERVAL };
        let last = self.last_sampled.entry(family).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= interval {
            *last = now;
            let line = line.get(..MAX_SAMPLE).unwrap_or(line).escape_ascii();
            let cause = if nameless { PROGRAM_NAME_ADVICE } else { family };
            tracing::warn!("log line: cannot be read: {cause}: \"{line}\"; not counted");
        }
    }
}

/// Warns of a session that counts under no domain, once a day.
fn warn_of_relay(last_sampled: &mut HashMap<&'static str, i64>, outcome: &SessionOutcome, now: i64) {
    let last = last_sampled.entry("relayed").or_insert(i64::MIN);
    // What ends by waiting has no time.
    if now == i64::MAX || now.saturating_sub(*last) < RELAY_SAMPLE_INTERVAL {
        return;
    }
    *last = now;
    let host = outcome.mx.as_deref().unwrap_or("-");
    tracing::warn!(domain = %outcome.domain, relay = %host, "session with a relay host: the next hop is not known; not \
        counted, for it is not one of the domain's MX hosts: add [[nexthop]] with `relay` and `nexthop` to count it");
}

/// Whether a line is an entry of a journal as `journalctl -o json` prints it: no other log's line begins so.
fn is_journal_entry(line: &[u8]) -> bool {
    line.first() == Some(&b'{')
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use tlswarden_parsers::DeliveryResult;

    use crate::base::own_reports::OwnReportResult;
    use crate::base::tlsrpt::{ResultType, sum_tallies};

    struct NotAsked;

    impl PolicyAt for NotAsked {
        fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
            None
        }
    }

    const NOW: i64 = 1_795_400_000;

    fn fresh() -> Counter {
        of(Dialect::Postfix)
    }

    fn of(mta: Dialect) -> Counter {
        Counter::new(mta, TimeZone::UTC, Arc::new(|id: &[u8]| id.starts_with(b"ours.")))
    }

    fn counted(lines: &str) -> Vec<(String, u64, u64)> {
        let mut counter = fresh();
        counter.count_lines(lines.as_bytes(), NOW, &NotAsked);
        sum_tallies(counter.take_counts()).into_iter().map(|row| (row.domain, row.successful, row.failed)).collect()
    }

    /// A restart after any line of any real log: what was open is taken back from what was stored, and nothing changes.
    #[test]
    fn a_restart_after_every_line_changes_nothing() {
        for folder in
            ["postfix-3.5.25", "postfix-3.7.11", "postfix-3.10.13", "postfix-3.11.7", "exim-4.96", "exim-4.98.2"]
        {
            let mta = if folder.starts_with("exim") { Dialect::Exim } else { Dialect::Postfix };
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|e| e != "log") {
                    continue;
                }
                let log = std::fs::read(&path).unwrap();
                let mut whole = of(mta);
                whole.count_lines(&log, NOW, &NotAsked);
                let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
                let mut counts: HashMap<TallyKey, u64> = HashMap::new();
                for line in log.split_inclusive(|b| *b == b'\n') {
                    let records: Vec<_> = stored.clone().into_iter().collect();
                    let (mut counter, unread) = of(mta).with_open_state(TimeZone::UTC, &records);
                    assert_eq!(unread, 0);
                    counter.count_lines(line, NOW, &NotAsked);
                    for (tally, n) in counter.take_counts() {
                        *counts.entry(tally).or_default() += n;
                    }
                    for (key, value) in counter.take_changes() {
                        match value {
                            Some(value) => drop(stored.insert(key, value)),
                            None => drop(stored.remove(&key)),
                        }
                    }
                }
                assert_eq!(sum_tallies(counts), sum_tallies(whole.take_counts()), "{}", path.display());
            }
        }
    }

    const TLS: &str =
        "Trusted TLS connection established to mx.a.test[192.0.2.1]:25: TLSv1.3 with cipher X (256/256 bits)";
    const TO: &str = "relay=mx.a.test[192.0.2.1]:25, delay=1, delays=0/0/0/1";

    #[test]
    fn our_own_report_is_not_counted_even_if_it_is_removed_first() {
        let log = |id: &str| {
            format!(
                "Nov 22 01:00:00 h postfix/cleanup[1]: 4AB0CDEF12: message-id=<{id}>\n\
                 Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\n\
                 Nov 22 01:00:01 h postfix/qmgr[3]: 4AB0CDEF12: removed\n\
                 Nov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, {TO}, dsn=2.0.0, status=sent (250 ok)\n"
            )
        };
        assert_eq!(counted(&log("theirs.1@h")), [("a.test".to_owned(), 1, 0)]);
        assert_eq!(counted(&log("ours.1@h")), []);
    }

    #[test]
    fn several_recipients_without_tls_are_one_session_and_a_retry_is_another() {
        let refused = |second: u32| {
            let to = |name: &str| {
                format!(
                    "Nov 22 01:00:{second:02} h postfix/smtp[2]: 4AB0CDEF12: to=<{name}@a.test>, {TO}, dsn=4.7.4, \
                     status=deferred (TLS is required, but was not offered by host mx.a.test[192.0.2.1])\n"
                )
            };
            format!(
                "Nov 22 01:00:{second:02} h postfix/qmgr[3]: 4AB0CDEF12: from=<s@h>, size=1, nrcpt=2 (queue active)\n{}{}",
                to("one"),
                to("two")
            )
        };
        assert_eq!(counted(&refused(1)), [("a.test".to_owned(), 0, 1)]);
        assert_eq!(counted(&(refused(1) + &refused(2))), [("a.test".to_owned(), 0, 2)]);
    }

    #[test]
    fn another_delivery_of_the_message_by_the_same_process_is_to_another_host() {
        let refused = |domain: &str, ip: &str| {
            format!(
                "Nov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: to=<r@{domain}>, relay=mx.{domain}[{ip}]:25, delay=1, \
                 delays=0/0/0/1, dsn=4.7.4, status=deferred (TLS is required, but was not offered by host mx.{domain}[{ip}])\n"
            )
        };
        let log = refused("a.test", "192.0.2.1") + &refused("a.test", "192.0.2.1") + &refused("b.test", "192.0.2.2");
        assert_eq!(counted(&log), [("a.test".to_owned(), 0, 1), ("b.test".to_owned(), 0, 1)]);
    }

    #[test]
    fn a_session_whose_end_is_missing_is_said_to_be_lost() {
        let mut counter = fresh();
        let other = TLS.replace("mx.a.test[192.0.2.1]", "mx.b.test[192.0.2.2]");
        let log = format!(
            "Nov 22 01:00:00 h postfix/smtp[2]: {other}\nNov 22 01:00:01 h postfix/smtp[2]: {TLS}\n\
             Nov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, {TO}, dsn=2.0.0, status=sent (250 ok)\n"
        );
        counter.count_lines(log.as_bytes(), NOW, &NotAsked);
        assert_eq!(counter.take_stats().1.unmatched, 1);
        assert_eq!(sum_tallies(counter.take_counts()).len(), 1);
    }

    /// Of any delivery in any real log the status is read too, and says the same.
    #[test]
    fn the_status_of_each_delivery_in_real_logs_is_read() {
        for folder in
            ["postfix-3.5.25", "postfix-3.7.11", "postfix-3.10.13", "postfix-3.11.7", "exim-4.96", "exim-4.98.2"]
        {
            let mta = if folder.starts_with("exim") { Dialect::Exim } else { Dialect::Postfix };
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(folder);
            let mut read = HashMap::<_, u64>::new();
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_none_or(|e| e != "log") {
                    continue;
                }
                for line in std::fs::read(&path).unwrap().split(|b| *b == b'\n') {
                    let event = parse(mta, line).ok().flatten().map(|event| event.kind);
                    let status = parse_delivery_status(mta, line);
                    let (of_event, delivered) = match &event {
                        Some(EventKind::Delivery { queue_id, sent, .. }) => (*queue_id, *sent),
                        Some(EventKind::Exim(EximLine { id, kind: LineKind::Recipient(to) })) => {
                            let failed = matches!(to.status, RecipientStatus::Deferred | RecipientStatus::Failed);
                            (*id, !failed)
                        }
                        _ => continue,
                    };
                    let shown = line.escape_ascii();
                    let Some(status) = status else { panic!("{}: {shown}", path.display()) };
                    assert_eq!(status.queue_id, of_event, "{shown}");
                    assert_eq!(status.result == DeliveryResult::Delivered, delivered, "{shown}");
                    *read.entry(status.result).or_default() += 1;
                }
            }
            assert!(read.contains_key(&DeliveryResult::Delivered) && read.contains_key(&DeliveryResult::Deferred));
        }
    }

    /// Lines of Postfix 3.7.11, of one report that is deferred, suspended, delivered to a content filter and bounced behind it.
    #[test]
    fn the_log_says_what_became_of_our_own_reports() {
        let log = "Nov 23 00:05:00 h postfix/cleanup[1]: 4AB0CDEF12: message-id=<ours.1@h>\n\
            Nov 23 00:05:00 h postfix/cleanup[1]: 4AB0CDEF13: message-id=<theirs.1@h>\n\
            Nov 23 00:05:30 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, \
            status=deferred (connect to mx.a.test[192.0.2.1]:25: Connection timed out)\n\
            Nov 23 00:05:30 h postfix/smtp[2]: 4AB0CDEF13: to=<r@a.test>, relay=none, delay=30, delays=0/0/30/0, dsn=4.4.1, \
            status=deferred (connect to mx.a.test[192.0.2.1]:25: Connection timed out)\n\
            Nov 23 00:10:30 h postfix/error[3]: 4AB0CDEF12: to=<r@a.test>, relay=none, delay=330, delays=330/0/0/0, dsn=4.4.1, \
            status=deferred (delivery temporarily suspended: connect to mx.a.test[192.0.2.1]:25: Connection timed out)\n\
            Nov 23 00:15:30 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, relay=127.0.0.1[127.0.0.1]:10024, delay=1, \
            delays=0/0/0/1, dsn=2.0.0, status=sent (250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 5AB0CDEF12)\n\
            Nov 23 00:15:30 h postfix/cleanup[1]: 5AB0CDEF12: message-id=<ours.1@h>\n\
            Nov 23 00:15:31 h postfix/smtp[2]: 5AB0CDEF12: to=<r@a.test>, relay=mx.a.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, \
            dsn=5.1.1, status=bounced (host mx.a.test[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO command))\n";
        let mut counter = fresh();
        counter.count_lines(log.as_bytes(), NOW, &NotAsked);
        let statuses: Vec<_> = counter.take_own_report_statuses();
        let said: Vec<_> = statuses
            .iter()
            .map(|s| (s.queue_id.as_str(), s.message_id.as_deref(), s.result, s.reason.as_str()))
            .collect();
        let suspended = "delivery temporarily suspended: connect to mx.a.test[192.0.2.1]:25: Connection timed out";
        let filtered = "250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 5AB0CDEF12";
        let refused = "host mx.a.test[192.0.2.1] said: 550 5.1.1 no such user (in reply to RCPT TO command)";
        let id = Some("ours.1@h");
        assert_eq!(
            said,
            [
                (
                    "4AB0CDEF12",
                    id,
                    OwnReportResult::Deferred,
                    "connect to mx.a.test[192.0.2.1]:25: Connection timed out"
                ),
                ("4AB0CDEF12", id, OwnReportResult::Deferred, suspended),
                ("4AB0CDEF12", id, OwnReportResult::Delivered, filtered),
                ("5AB0CDEF12", id, OwnReportResult::Bounced, refused),
            ]
        );

        // Where the log has no Message-ID, the queue id of the reply tells; after a restart too.
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("cleanup")).collect();
        let mut before = fresh();
        before.add_own_queue_id("4AB0CDEF12", NOW);
        let stored: Vec<_> = before.take_changes().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let (mut counter, unread) = fresh().with_open_state(TimeZone::UTC, &stored);
        assert_eq!(unread, 0);
        counter.count_lines(lines.join("\n").as_bytes(), NOW, &NotAsked);
        let statuses = counter.take_own_report_statuses();
        assert_eq!(statuses.len(), 3);
        assert!(statuses.iter().all(|s| s.queue_id == "4AB0CDEF12" && s.message_id.is_none()), "{statuses:?}");
    }

    /// Lines of Exim 4.96.
    #[test]
    fn exims_log_says_what_became_of_our_own_reports() {
        let log = "2026-11-23 00:05:00 1xUwZB-0006OQ-0w <= b@h U=u P=esmtp S=9 id=ours.1@h\n\
            2026-11-23 00:05:01 1xUwZB-0006OQ-0w == r@a.test R=dnslookup T=remote_smtp defer (-44) H=mx.a.test [192.0.2.1]: SMTP \
            error from remote mail server after RCPT TO:<r@a.test>: 450 4.2.0 busy\n\
            2026-11-23 00:35:01 1xUwZB-0006OQ-0w ** r@a.test R=dnslookup T=remote_smtp H=mx.a.test [192.0.2.1]: SMTP error from \
            remote mail server after RCPT TO:<r@a.test>: 550 no such user\n\
            2026-11-23 00:35:01 1xUwZB-0006OQ-0w Completed\n";
        let mut counter = of(Dialect::Exim);
        counter.count_lines(log.as_bytes(), NOW, &NotAsked);
        let statuses = counter.take_own_report_statuses();
        let said: Vec<_> = statuses.iter().map(|s| (s.message_id.as_deref(), s.result)).collect();
        let id = Some("ours.1@h");
        assert_eq!(said, [(id, OwnReportResult::Deferred), (id, OwnReportResult::Bounced)]);
        assert!(statuses[1].reason.ends_with("550 no such user"), "{statuses:?}");
    }

    /// The log does not show the Message-ID: the reply to the report's final dot has told the queue id.
    #[test]
    fn what_carries_our_report_by_its_queue_id_is_not_counted() {
        let sent = format!(
            "Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\nNov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: \
             to=<r@a.test>, {TO}, dsn=2.0.0, status=sent (250 ok)\n"
        );
        let at = 1_795_309_200; // 2026-11-22T01:00:00Z
        let mut before = fresh();
        before.add_own_queue_id("4AB0CDEF12", at);
        let stored: Vec<_> = before.take_changes().into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        let (mut counter, unread) = fresh().with_open_state(TimeZone::UTC, &stored);
        assert_eq!(unread, 0);
        counter.count_lines(sent.as_bytes(), NOW, &NotAsked);
        assert_eq!((counter.take_counts().count(), counter.take_stats().1.own_reports), (0, 1), "after a restart");
        // Another message under the same id.
        let other = "Nov 22 02:00:00 h postfix/cleanup[4]: 4AB0CDEF12: message-id=<theirs.1@a.test>\n";
        counter.count_lines(format!("{other}{}", sent.replace("01:00", "02:00")).as_bytes(), NOW, &NotAsked);
        assert_eq!(sum_tallies(counter.take_counts()).len(), 1);

        let mut exim = of(Dialect::Exim);
        exim.add_own_queue_id("1vNxyZ-00000003Abc-1aBC", at);
        let sent = "2026-11-22 01:00:02 1vNxyZ-00000003Abc-1aBC => u@a.test R=r T=t H=mx.a.test [192.0.2.1] \
                    X=TLS1.3:X:256 CV=yes C=\"250 ok\"\n";
        exim.count_lines(sent.as_bytes(), NOW, &NotAsked);
        assert_eq!((exim.take_counts().count(), exim.take_stats().1.own_reports), (0, 1));
    }

    #[test]
    fn postfix_3_5_logs_no_line_for_a_name_that_does_not_match() {
        let mut counter = fresh();
        let log = format!(
            "Nov 22 00:59:00 h postfix/smtp[2]: server certificate verification failed for mx.a.test[192.0.2.1]:25: \
             certificate has expired\nNov 22 00:59:01 h postfix/smtp[2]: 4AB0CDEF11: to=<r@a.test>, {TO}, dsn=4.7.5, \
             status=deferred (Server certificate not verified)\n\
             Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\n\
             Nov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, {TO}, dsn=4.7.5, \
             status=deferred (Server certificate not verified)\n"
        );
        counter.count_lines(log.as_bytes(), NOW, &NotAsked);
        let rows = sum_tallies(counter.take_counts());
        let details: Vec<_> = rows[0].details.iter().map(|(failure, n)| (failure.result_type, *n)).collect();
        assert_eq!(details, [(ResultType::CertificateHostMismatch, 1), (ResultType::CertificateExpired, 1)]);
    }

    struct Always(PolicyInForce);

    impl PolicyAt for Always {
        fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
            Some(self.0.clone())
        }
    }

    #[test]
    fn a_fresh_failure_under_an_mta_sts_policy_is_a_hint() {
        let log = |domain: &str| {
            format!(
                "Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\nNov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: \
                 to=<r@{domain}>, {TO}, dsn=4.7.5, status=deferred (Server certificate not verified)\n"
            )
        };
        let policy = || {
            Arc::new(crate::base::tlsrpt::Policy {
                mx_host: vec!["mx.a.test".into()],
                ..crate::base::tlsrpt::Policy::none("a.test")
            })
        };
        let sts = |mode| Always(PolicyInForce::Sts { mode, policy: policy(), failure: None });
        let hints = |now: i64, lines: &str, policies: &dyn PolicyAt| {
            let mut counter = fresh();
            counter.count_lines(lines.as_bytes(), now, policies);
            counter.take_failed_domains().iter().map(|d| d.to_string()).collect::<Vec<_>>()
        };
        let at = 1_795_309_201; // 2026-11-22T01:00:01Z
        let failed = log("a.test") + &log("b.test") + &log("a.test");
        assert_eq!(hints(at + 60, &failed, &sts(Mode::Enforce)), ["a.test", "b.test"]);
        assert_eq!(hints(at + 2 * HINT_MAX_AGE, &failed, &sts(Mode::Enforce)), [""; 0]);
        assert_eq!(hints(at + 60, &failed, &sts(Mode::None)), [""; 0]);
        assert_eq!(hints(at + 60, &failed, &NotAsked), [""; 0]);
        let sent = format!(
            "Nov 22 01:00:00 h postfix/smtp[2]: {}\nNov 22 01:00:01 h postfix/smtp[2]: 4AB0CDEF12: to=<r@a.test>, {TO}, \
             dsn=2.0.0, status=sent (250 ok)\n",
            TLS.replace("Trusted", "Verified")
        );
        assert_eq!(hints(at + 60, &sent, &sts(Mode::Enforce)), [""; 0]);
    }

    #[test]
    fn what_is_no_log_is_noticed() {
        let mut counter = fresh();
        counter.count_lines(
            "\x00\u{fe}binary\n".repeat(MAX_UNRECOGNIZED_LINES as usize - 1).as_bytes(),
            NOW,
            &NotAsked,
        );
        assert!(!counter.is_not_a_log());
        counter.count_lines(b"more\n", NOW, &NotAsked);
        assert!(counter.is_not_a_log());
        for line in [
            "Nov 22 01:00:00 h dovecot: imap-login: Login",
            "<22>1 2026-11-22T01:00:00Z h dovecot - - - x",
            "2026-11-22 01:00:00 Start queue run: pid=1",
            r#"{"__REALTIME_TIMESTAMP":"1795312226645918","SYSLOG_IDENTIFIER":"dovecot","MESSAGE":"x"}"#,
        ] {
            let mut counter = fresh();
            counter.count_lines(
                format!("{}{line}\n", "x\n".repeat(MAX_UNRECOGNIZED_LINES as usize)).as_bytes(),
                NOW,
                &NotAsked,
            );
            assert!(!counter.is_not_a_log(), "{line}");
        }
    }

    #[test]
    fn a_log_of_exim_without_tls_cipher_is_noticed() {
        let line = |n: u32, host: &str, tls: &str| {
            format!("2026-11-22 01:40:29 1xUwZB-0006OQ-{n:02} => u@a.test R=r T=t H={host}{tls} C=\"250 ok\"\n")
        };
        let mut counter = of(Dialect::Exim);
        let world = "mx.a.test [203.0.113.9]";
        (0..MAX_PLAINTEXT_RUN - 1).for_each(|n| counter.count_lines(line(n, world, "").as_bytes(), NOW, &NotAsked));
        counter.count_lines(line(50, "mx.a.test [203.0.113.9]*", "").as_bytes(), NOW, &NotAsked);
        assert_eq!(counter.missing_tls_advice(), None);
        counter.count_lines(line(60, world, "").as_bytes(), NOW, &NotAsked);
        assert!(
            counter.missing_tls_advice().unwrap().contains("log_selector = +tls_cipher"),
            "{:?}",
            counter.missing_tls_advice()
        );
        counter.count_lines(line(61, world, " X=TLS1.3:X:256 CV=no").as_bytes(), NOW, &NotAsked);
        assert_eq!(counter.missing_tls_advice(), None);
    }

    /// Only the next entry tells whether the last one of Docker's log is a whole line; there may be none.
    #[test]
    fn the_last_entry_without_a_line_feed_is_counted_at_the_end() {
        let mut counter = fresh();
        let entry = serde_json::json!({ "log": format!("Nov 22 01:00:00 h postfix/smtp[2]: {TLS}") }).to_string();
        let entry = entry.replace('}', "") + ",\"stream\":\"stdout\",\"time\":\"2026-11-22T01:00:00.1Z\"}\n";
        counter.count_lines(entry.as_bytes(), NOW, &NotAsked);
        assert!(!counter.is_idle());
        counter.end_sessions(NOW, &NotAsked);
        assert!(counter.is_idle());
        assert_eq!(counter.take_stats().1.without_domain, 1);
    }

    #[test]
    fn a_session_whose_delivery_never_comes_is_lost_and_said() {
        let mut counter = fresh();
        counter.count_lines(format!("Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\n").as_bytes(), NOW, &NotAsked);
        assert!(!counter.is_idle());
        let later = "Nov 22 03:00:00 h postfix/qmgr[3]: 4AB0CDEF12: removed\n";
        counter.count_lines(later.as_bytes(), NOW, &NotAsked);
        assert!(counter.is_idle());
        assert_eq!(counter.take_stats().1.without_domain, 1);
        assert_eq!(counter.take_counts().count(), 0);
    }
}
