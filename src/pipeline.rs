//! The counting river: lines become events, sessions, tallies, and one commit.
//!
//! Takes: blocks of lines from the inputs. Gives: commits to the store: the counts, the marks of the lines that they came
//! from, and the open state, in one batch. What is committed is counted, what is not is read again: nothing twice.
//! Limits: a commit at most `COMMIT` after its first line, or as soon as an input is at its end.
//! When it fails: a store that does not write is tried again, and reading waits; the log file is the queue.
//! Not here: reading (`input`), what the store does with a batch (`store`).

mod failing;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use tlswarden_parsers::{Dialect, parse};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::civil::Calendar;
use crate::clock::Clock;
use crate::input::{Block, Mark};
use crate::metrics::Metrics;
use crate::policy::history::History;
use crate::session::exim::Told;
use crate::session::kept::Change;
use crate::session::{Losses, SESSION_TIMEOUT, Sessions};
use crate::shutdown::stopped;
use crate::store::{Batch, Family, Record, Store, StoreError};
use crate::tally;
use crate::tlsrpt::{Counted, InForce, Mode, Outcome, Tally};
use failing::Failing;

/// How long a line may wait for its commit: few enough commits for a disk, soon enough for a report.
const COMMIT: Duration = Duration::from_millis(250);

/// How long to wait before a commit that failed is tried again; twice as long each time, up to the second figure.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(60);

/// The least time between two samples of a family of lines that cannot be read, in seconds.
const SAMPLE_EVERY: i64 = 60;

/// How old a line may be at most for its failure to be a hint, in seconds: what a log says of yesterday is no news.
const NEWS: i64 = 3600;

/// Hints that wait between two blocks; more of them are dropped, for a hint is no more than that.
const HINTS: usize = 256;

/// The policy that was in force, by recipient domain and time.
pub trait PolicyAt {
    /// The decision that our responder had given at `seconds`; `None` where it was not asked.
    fn at(&self, domain: &str, seconds: i64) -> Option<InForce>;
}

impl PolicyAt for Arc<History> {
    fn at(&self, domain: &str, seconds: i64) -> Option<InForce> {
        let found = History::at(self, domain, seconds);
        found.asked.then_some(found.in_force)
    }
}

/// Tells our own reports by their Message-ID.
pub type OwnReports = Arc<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// Counts the lines of one input.
pub struct Counter {
    dialect: Dialect,
    calendar: Calendar,
    sessions: Sessions,
    own: OwnReports,
    counts: HashMap<Tally, u64>,
    outcomes: Vec<Outcome>,
    failed: Vec<Arc<str>>,
    seen: Seen,
    newest_stored: Option<i64>,
    sampled: HashMap<&'static str, i64>,
}

/// What came of the lines so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Lines read.
    pub read: u64,
    /// Lines that said something.
    pub used: u64,
    /// Lines that looked ours and could not be read.
    pub malformed: u64,
    /// Sessions whose destination our responder was not asked about.
    pub not_asked: u64,
    /// Sessions that contradict the decision.
    pub contradicted: u64,
    /// Sessions of which nothing is known, for the MTA has not shown that it has trust anchors.
    pub without_anchors: u64,
}

/// The record of the calendar among the open state; those of the sessions begin with other letters.
const CALENDAR: &[u8] = b"c";

impl Counter {
    /// A counter for lines of an MTA, with time stamps of a zone.
    pub fn new(mta: Dialect, zone: TimeZone, own: OwnReports) -> Counter {
        Counter {
            dialect: mta,
            calendar: Calendar::new(zone, None),
            sessions: Sessions::new(mta),
            own,
            counts: HashMap::new(),
            outcomes: Vec::new(),
            failed: Vec::new(),
            seen: Seen::default(),
            newest_stored: None,
            sampled: HashMap::new(),
        }
    }

    /// Says in which year the first line was written.
    pub fn with_first_year(mut self, year: Option<i16>) -> Counter {
        self.calendar = self.calendar.with_first_year(year);
        self
    }

    /// Takes back the open state; returns how many records could not be read.
    pub fn load(mut self, zone: TimeZone, records: &[Record]) -> (Counter, u64) {
        let mut unread = 0;
        for (key, value) in records {
            if key == CALENDAR {
                let newest = serde_json::from_slice(value).ok();
                unread += u64::from(newest.is_none());
                self.newest_stored = newest;
                self.calendar = Calendar::new(zone.clone(), newest);
            } else {
                unread += u64::from(!self.sessions.load(key, value));
            }
        }
        (self, unread)
    }

    /// Counts whole lines that are read at `now`.
    pub fn lines(&mut self, lines: &[u8], now: i64, policies: &dyn PolicyAt) {
        for line in lines.split_inclusive(|b| *b == b'\n') {
            self.seen.read += 1;
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let event = match parse(self.dialect, line) {
                Ok(None) => continue,
                Ok(Some(event)) => event,
                Err(malformed) => {
                    self.malformed(malformed.family.name(), line, now);
                    continue;
                }
            };
            let Some(time) = self.calendar.resolve(event.stamp, now) else {
                self.malformed("time stamp", line, now);
                continue;
            };
            self.seen.used += 1;
            self.sessions.event(&event, time, &*self.own, &mut self.outcomes);
            self.tally(policies, now);
        }
    }

    /// Takes a failed session that Exim told outside the log.
    pub fn told(&mut self, told: &Told) {
        self.sessions.told(told);
    }

    /// Whose lines it counts.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Ends the sessions that are open at `now`: there will be no more lines.
    pub fn end(&mut self, now: i64, policies: &dyn PolicyAt) {
        self.sessions.end_all(now, &mut self.outcomes);
        // What ends by waiting is no news.
        self.tally(policies, i64::MAX);
    }

    /// Whether no session is open.
    pub fn is_idle(&self) -> bool {
        self.sessions.is_idle()
    }

    /// The time of the newest line.
    pub fn newest(&self) -> Option<i64> {
        self.calendar.newest()
    }

    /// What came of the lines since the last call.
    pub fn seen(&mut self) -> (Seen, Losses) {
        (std::mem::take(&mut self.seen), self.sessions.losses())
    }

    /// The counts since the last call.
    pub fn counts(&mut self) -> impl Iterator<Item = (Tally, u64)> {
        std::mem::take(&mut self.counts).into_iter()
    }

    /// The changed part of the open state since the last call.
    pub fn changes(&mut self) -> Vec<Change> {
        let mut changes = self.sessions.changes();
        let newest = self.calendar.newest();
        if newest != self.newest_stored {
            self.newest_stored = newest;
            changes.push((CALENDAR.to_vec(), newest.map(|t| t.to_string().into_bytes())));
        }
        changes
    }

    /// The domains to which a session failed under an MTA-STS policy within the last hour, since the last call.
    pub fn failed(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.failed)
    }

    fn tally(&mut self, policies: &dyn PolicyAt, now: i64) {
        for outcome in self.outcomes.drain(..) {
            let in_force = policies.at(&outcome.domain, outcome.began);
            let counts = tally::count(&outcome, in_force.as_ref());
            if counts.anchored
                && let Some(instance) = &outcome.shows_anchors
            {
                self.sessions.has_anchors(instance, outcome.ended);
            }
            if outcome.clear_text && counts.tallies.is_empty() {
                continue;
            }
            self.seen.not_asked += u64::from(in_force.is_none());
            self.seen.contradicted += u64::from(counts.contradicted);
            self.seen.without_anchors += u64::from(counts.without_anchors);
            let under_sts = matches!(&in_force, Some(InForce::Sts { mode: Mode::Enforce | Mode::Testing, .. }));
            if under_sts
                && now.saturating_sub(outcome.ended) <= NEWS
                && self.failed.len() < HINTS
                && counts.tallies.iter().any(|tally| tally.counted == Counted::Failure)
                && !self.failed.contains(&outcome.domain)
            {
                self.failed.push(Arc::clone(&outcome.domain));
            }
            for tally in counts.tallies {
                *self.counts.entry(tally).or_default() += 1;
            }
        }
    }

    /// A line that looks ours and cannot be read may be a new version's wording: one sample a minute is shown.
    fn malformed(&mut self, family: &'static str, line: &[u8], now: i64) {
        self.seen.malformed += 1;
        let last = self.sampled.entry(family).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= SAMPLE_EVERY {
            *last = now;
            let line = line.get(..300).unwrap_or(line).escape_ascii();
            tracing::warn!("log line: cannot be read: {family}: \"{line}\"; not counted");
        }
    }
}

/// One input of the river.
pub struct Source {
    /// Its name, under which its mark and open state are stored.
    pub name: String,
    /// Its counter.
    pub counter: Counter,
}

/// A failed session that Exim told, and whom to say when it is committed: Exim waits until then, so that `kill -9` loses
/// none that was answered.
pub type Telling = (Told, oneshot::Sender<()>);

/// What the river writes to, and looks up.
pub struct River {
    /// Where commits go.
    pub store: Arc<dyn Store>,
    /// Which policy was in force.
    pub policies: Box<dyn PolicyAt + Send>,
    /// Where the domains go to which a session failed under an MTA-STS policy: perhaps a newer one is published
    /// (RFC 8461 §5.1). Never waited for: what does not fit is left out.
    pub hints: mpsc::Sender<Arc<str>>,
    /// Where progress is shown.
    pub metrics: Metrics,
    /// The time of reading.
    pub clock: Clock,
}

/// What is waiting for its commit.
#[derive(Default)]
struct Pending {
    since: Option<Instant>,
    marks: HashMap<usize, Mark>,
    failing: Failing,
    told: Vec<oneshot::Sender<()>>,
}

impl River {
    /// Counts blocks, each with the number of its source, until the inputs have ended or `shutdown` turns true; what
    /// was taken by then is committed. Blocks the thread that it runs on.
    pub fn run(
        self,
        runtime: &Handle,
        mut sources: Vec<Source>,
        mut blocks: mpsc::Receiver<(usize, Block)>,
        mut tellings: mpsc::Receiver<Telling>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut pending = Pending::default();
        loop {
            self.metrics.alive("counting");
            let wait = pending.since.map_or(COMMIT, |since| COMMIT.saturating_sub(since.elapsed()));
            let next = runtime.block_on(async {
                tokio::select! {
                    next = tokio::time::timeout(wait, blocks.recv()) => Ok(next),
                    Some(telling) = tellings.recv() => Err(telling),
                }
            });
            let next = match next {
                Ok(next) => next,
                Err(telling) => {
                    self.told(&mut sources, telling, &mut pending);
                    continue;
                }
            };
            let ended = matches!(next, Ok(None));
            let mut due = ended || *shutdown.borrow();
            if let Ok(Some((number, block))) = next {
                due |= block.at_end;
                self.block(&mut sources[number], block, number, &mut pending);
            } else {
                self.idle(&mut sources, &mut pending);
            }
            due |= pending.since.is_some_and(|since| since.elapsed() >= COMMIT);
            if due && pending.since.is_some() {
                self.commit(runtime, &mut sources, &mut pending, &mut shutdown)?;
            }
            if ended || *shutdown.borrow() {
                return Ok(());
            }
        }
    }

    /// Hands what Exim told to the sessions of its log, where it is kept and held against the lines.
    fn told(&self, sources: &mut [Source], (told, committed): Telling, pending: &mut Pending) {
        let mut exim = sources.iter_mut().filter(|source| source.counter.dialect() == Dialect::Exim);
        match (exim.next(), exim.next()) {
            (Some(source), None) => {
                source.counter.told(&told);
                pending.told.push(committed);
                pending.since.get_or_insert_with(Instant::now);
            }
            // Without its log nothing is known of the same message, and of two logs not which is its own.
            // It is said to be lost where it came in.
            _ => drop(committed),
        }
    }

    fn block(&self, source: &mut Source, block: Block, number: usize, pending: &mut Pending) {
        let now = self.clock.seconds();
        source.counter.lines(&block.lines, now, &*self.policies);
        for domain in source.counter.failed() {
            if self.hints.try_send(domain).is_err() {
                self.metrics.add("hints-dropped", 1);
            }
        }
        let (seen, losses) = source.counter.seen();
        let newest = source.counter.newest();
        self.metrics.input(&source.name, |p| {
            p.newest = newest;
            p.at_end_since = block.at_end.then_some(now);
            p.behind = block.behind;
            p.lines += seen.read;
            p.used += seen.used;
            p.malformed += seen.malformed;
            p.skipped += block.skipped;
            p.trouble = None;
        });
        self.count_losses(seen, losses);
        pending.marks.insert(number, block.mark);
        pending.since.get_or_insert_with(Instant::now);
    }

    /// Ends the sessions of inputs that have been at their end for long.
    fn idle(&self, sources: &mut [Source], pending: &mut Pending) {
        let now = self.clock.seconds();
        let inputs = self.metrics.inputs();
        for source in sources.iter_mut().filter(|s| !s.counter.is_idle()) {
            let since = inputs.get(&source.name).and_then(|p| p.at_end_since);
            if since.is_some_and(|since| now - since >= SESSION_TIMEOUT) {
                source.counter.end(now, &*self.policies);
                let (seen, losses) = source.counter.seen();
                self.count_losses(seen, losses);
                pending.since.get_or_insert_with(Instant::now);
            }
        }
    }

    fn commit(
        &self,
        runtime: &Handle,
        sources: &mut [Source],
        pending: &mut Pending,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (number, source) in sources.iter_mut().enumerate() {
            batch.add.extend(source.counter.counts());
            for (key, value) in source.counter.changes() {
                batch.set.push((Family::Open, open_key(&source.name, &key), value));
            }
            if let Some(mark) = pending.marks.remove(&number) {
                let mark = serde_json::to_vec(&mark).expect("plain structures always serialise");
                batch.set.push((Family::Mark, source.name.clone().into_bytes(), Some(mark)));
            }
        }
        pending.since = None;
        for line in pending.failing.lines(&batch.add, self.clock.seconds()) {
            tracing::warn!("{line}");
        }
        let mut wait = RETRY;
        loop {
            self.metrics.alive("counting");
            let Err(error) = self.store.write(batch.clone()) else {
                self.metrics.add("commits", 1);
                self.metrics.counted(&batch.add);
                for committed in pending.told.drain(..) {
                    // Who asked may have gone.
                    let _ = committed.send(());
                }
                return Ok(());
            };
            if *shutdown.borrow() {
                return Err(error);
            }
            self.metrics.error(self.clock, format!("store: cannot write counts: {error}; reading waits, trying again"));
            let _ = runtime.block_on(async { tokio::time::timeout(wait, stopped(shutdown)).await });
            wait = (wait * 2).min(RETRY_AT_MOST);
        }
    }

    fn count_losses(&self, seen: Seen, losses: Losses) {
        self.metrics.add("sessions-not-asked", seen.not_asked);
        self.metrics.add("sessions-contradicting", seen.contradicted);
        self.metrics.add("sessions-without-trust-anchors", seen.without_anchors);
        self.metrics.add("sessions-without-domain", losses.without_domain);
        self.metrics.add("sessions-unmatched", losses.unmatched);
        self.metrics.add("sessions-crowded-out", losses.crowded_out);
        self.metrics.add("sessions-of-own-reports", losses.own_reports);
    }
}

/// What a store keeps of an input: its mark, and the open state that belongs to it.
pub fn restore(store: &dyn Store, name: &str) -> Result<(Option<Mark>, Vec<Record>), StoreError> {
    let mark = match store.read(Family::Mark, name.as_bytes())? {
        None => None,
        Some(bytes) => Some(
            serde_json::from_slice(&bytes)
                .map_err(|e| StoreError::Corrupt(format!("store: the mark of {name} cannot be read: {e}")))?,
        ),
    };
    let prefix = open_key(name, b"");
    let open = store.scan(Family::Open, &prefix)?;
    Ok((mark, open.into_iter().map(|(key, value)| (key[prefix.len()..].to_vec(), value)).collect()))
}

/// The time of the newest line that was counted of an input.
pub fn newest(store: &dyn Store, name: &str) -> Result<Option<i64>, StoreError> {
    let stored = store.read(Family::Open, &open_key(name, CALENDAR))?;
    Ok(stored.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

fn open_key(name: &str, key: &[u8]) -> Vec<u8> {
    [name.as_bytes(), b"\0", key].concat()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tlsrpt::{ResultType, rows};

    struct NotAsked;

    impl PolicyAt for NotAsked {
        fn at(&self, _: &str, _: i64) -> Option<InForce> {
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
        counter.lines(lines.as_bytes(), NOW, &NotAsked);
        rows(counter.counts()).into_iter().map(|row| (row.domain, row.successful, row.failed)).collect()
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
                whole.lines(&log, NOW, &NotAsked);
                let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
                let mut counts: HashMap<Tally, u64> = HashMap::new();
                for line in log.split_inclusive(|b| *b == b'\n') {
                    let records: Vec<_> = stored.clone().into_iter().collect();
                    let (mut counter, unread) = of(mta).load(TimeZone::UTC, &records);
                    assert_eq!(unread, 0);
                    counter.lines(line, NOW, &NotAsked);
                    for (tally, n) in counter.counts() {
                        *counts.entry(tally).or_default() += n;
                    }
                    for (key, value) in counter.changes() {
                        match value {
                            Some(value) => drop(stored.insert(key, value)),
                            None => drop(stored.remove(&key)),
                        }
                    }
                }
                assert_eq!(rows(counts), rows(whole.counts()), "{}", path.display());
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
        counter.lines(log.as_bytes(), NOW, &NotAsked);
        assert_eq!(counter.seen().1.unmatched, 1);
        assert_eq!(rows(counter.counts()).len(), 1);
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
        counter.lines(log.as_bytes(), NOW, &NotAsked);
        let rows = rows(counter.counts());
        let told: Vec<_> = rows[0].details.iter().map(|(failure, n)| (failure.result_type, *n)).collect();
        assert_eq!(told, [(ResultType::CertificateHostMismatch, 1), (ResultType::CertificateExpired, 1)]);
    }

    struct Always(InForce);

    impl PolicyAt for Always {
        fn at(&self, _: &str, _: i64) -> Option<InForce> {
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
            Arc::new(crate::tlsrpt::Policy {
                mx_host: vec!["mx.a.test".into()],
                ..crate::tlsrpt::Policy::none("a.test")
            })
        };
        let sts = |mode| Always(InForce::Sts { mode, policy: policy(), failure: None });
        let hints = |now: i64, lines: &str, policies: &dyn PolicyAt| {
            let mut counter = fresh();
            counter.lines(lines.as_bytes(), now, policies);
            counter.failed().iter().map(|d| d.to_string()).collect::<Vec<_>>()
        };
        let at = 1_795_309_201; // 2026-11-22T01:00:01Z
        let failed = log("a.test") + &log("b.test") + &log("a.test");
        assert_eq!(hints(at + 60, &failed, &sts(Mode::Enforce)), ["a.test", "b.test"]);
        assert_eq!(hints(at + 2 * NEWS, &failed, &sts(Mode::Enforce)), [""; 0]);
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
    fn a_session_whose_delivery_never_comes_is_lost_and_said() {
        let mut counter = fresh();
        counter.lines(format!("Nov 22 01:00:00 h postfix/smtp[2]: {TLS}\n").as_bytes(), NOW, &NotAsked);
        assert!(!counter.is_idle());
        let later = "Nov 22 03:00:00 h postfix/qmgr[3]: 4AB0CDEF12: removed\n";
        counter.lines(later.as_bytes(), NOW, &NotAsked);
        assert!(counter.is_idle());
        assert_eq!(counter.seen().1.without_domain, 1);
        assert_eq!(counter.counts().count(), 0);
    }
}
