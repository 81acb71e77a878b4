//! The counting river: lines become events, sessions, tallies, and one commit.
//!
//! Takes: blocks of lines from the inputs. Gives: commits to the store: the counts, the marks of the lines that they came
//! from, and the open state, in one batch. What is committed is counted, what is not is read again: nothing twice.
//! Limits: a commit at most `COMMIT` after its first line, or as soon as an input is at its end.
//! When it fails: a store that does not write is tried again, and reading waits; the log file is the queue.
//! Not here: reading (`input`), what the store does with a batch (`store`).

mod failing;

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;
use jiff::tz::TimeZone;
use memchr::memchr;
use tlswarden_parsers::event::{Stamp, What};
use tlswarden_parsers::{Dialect, Event, Malformed, parse};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::civil::Calendar;
use crate::clock::Clock;
use crate::config::Tlsrpt;
use crate::count::Rules;
use crate::input::datagram::{Queue, Taken};
use crate::input::{Block, Mark, journald as journal};
use crate::metrics::{Metrics, Progress};
use crate::policy::history::History;
use crate::session::datagram::{self, Reported};
use crate::session::exim::Told;
use crate::session::kept::Change;
use crate::session::{Losses, SESSION_TIMEOUT, Sessions};
use crate::shutdown::stopped;
use crate::store::{Batch, Family, Record, Store, StoreError};
use crate::tally;
use crate::tlsrpt::{Counted, Day, InForce, Mode, Outcome, PolicyType, Tally};
use failing::Failing;

/// How long a line may wait for its commit: few enough commits for a disk, soon enough for a report.
const COMMIT: Duration = Duration::from_millis(250);

/// How long to wait before a commit that failed is tried again; twice as long each time, up to the second figure.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_AT_MOST: Duration = Duration::from_secs(60);

/// The least time between two samples of a family of lines that cannot be read, in seconds.
const SAMPLE_EVERY: i64 = 60;

/// How often a trouble with an input as a whole is said, in seconds.
const SAY_AGAIN: i64 = 3600;

/// How far a line may be ahead of the clock, in seconds, before that is said: clocks of two hosts differ by less.
const FUTURE: i64 = 600;

/// How old a line may be at most for its failure to be a hint, in seconds: what a log says of yesterday is no news.
const NEWS: i64 = 3600;

/// Deliveries in a row without TLS after which the log is thought to leave TLS out: more than nine of ten servers have it.
const BARE: u32 = 20;

/// The same once the log has shown a session: a run of servers without TLS, or a change of the level.
const BARE_AFTER_TLS: u32 = 500;

/// Deliveries that are compared with other inputs, a block.
const MAX_DELIVERED: usize = 1024;

/// Names that servers of one domain may call themselves in a day's reports.
const MAX_HELOS: usize = 16;

/// Domains whose servers' names are known; when full, all are forgotten.
const MAX_HELO_DOMAINS: usize = 10_000;

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
    counts: HashMap<Tally, u64, RandomState>,
    outcomes: Vec<Outcome>,
    failed: Vec<Arc<str>>,
    seen: Seen,
    newest_stored: Option<i64>,
    sampled: HashMap<&'static str, i64>,
    rules: Arc<Rules>,
    bare: u32,
    shows_tls: bool,
    hides_tls: bool,
    delivered: Vec<u64>,
    helos: HashMap<Arc<str>, Vec<String>>,
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
    /// Sessions to hosts of local networks.
    pub local: u64,
    /// Sessions in the log that Postfix's own datagrams count.
    pub left_to_native: u64,
    /// Datagrams that did not count, for their policy is in testing mode: the log counts those sessions.
    pub left_to_log: u64,
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
            counts: HashMap::default(),
            outcomes: Vec::new(),
            failed: Vec::new(),
            seen: Seen::default(),
            newest_stored: None,
            sampled: HashMap::new(),
            rules: Arc::default(),
            bare: 0,
            shows_tls: false,
            hides_tls: false,
            delivered: Vec::new(),
            helos: HashMap::new(),
        }
    }

    /// Says what the configuration says of sessions.
    pub fn under(mut self, rules: Arc<Rules>) -> Counter {
        self.rules = rules;
        self
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

    /// Counts whole lines that are read at `now`: of a log file, or entries as `journalctl -o json` prints them.
    pub fn lines(&mut self, lines: &[u8], now: i64, policies: &dyn PolicyAt) {
        let mut rest = lines;
        while !rest.is_empty() {
            self.seen.read += 1;
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let line = &rest[..end];
            rest = rest.get(end + 1..).unwrap_or_default();
            if is_journal(line) {
                match journal::entry(line) {
                    Ok(None) => {}
                    Ok(Some(entry)) => {
                        let read = entry.parse(self.dialect);
                        self.line(&entry.text, read, now, policies);
                    }
                    Err(family) => self.malformed(family, line, now),
                }
            } else {
                self.line(line, parse(self.dialect, line), now, policies);
            }
        }
    }

    fn line(&mut self, line: &[u8], read: Result<Option<Event<'_>>, Malformed>, now: i64, policies: &dyn PolicyAt) {
        let event = match read {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(malformed) => return self.malformed(malformed.family.name(), line, now),
        };
        let Some(time) = self.calendar.resolve(event.stamp, now) else {
            return self.malformed("time stamp", line, now);
        };
        self.seen.used += 1;
        self.sessions.event(&event, time, &*self.own, &mut self.outcomes);
        if let What::Delivery { .. } = event.what {
            self.delivery(&event);
        }
        self.tally(policies, now);
    }

    /// Counts one datagram of Postfix's libtlsrpt, received at `at`; `None` is one that was too long.
    pub fn datagram(&mut self, octets: Option<&[u8]>, at: i64, policies: &dyn PolicyAt) {
        self.seen.read += 1;
        let day_before = self.calendar.newest().map(Day::of);
        self.calendar.resolve(Stamp::Utc(at), at);
        if day_before != Some(Day::of(at)) {
            self.helos.clear();
        }
        let sessions = match octets.map(datagram::decode) {
            Some(Ok(sessions)) => sessions,
            Some(Err(why)) => return self.unreadable(why.cause(), octets.unwrap_or_default(), at),
            None => return self.unreadable("it is longer than any is", b"", at),
        };
        self.seen.used += 1;
        for mut session in sessions {
            self.bound_helos(&mut session);
            self.rules.note_reported(&session, at);
            let in_force = policies.at(&session.domain, at);
            let in_force = self.rules.in_force(in_force, &session.domain, at);
            let tallies = tally::count_reported(&session, at, in_force.as_ref(), self.rules.logs);
            self.seen.left_to_log += u64::from(tallies.is_empty());
            let under_sts = session.policy.policy_type == PolicyType::Sts;
            if under_sts && session.failed && self.failed.len() < HINTS && !self.failed.contains(&session.domain) {
                self.failed.push(Arc::clone(&session.domain));
            }
            for tally in tallies {
                *self.counts.entry(tally).or_default() += 1;
            }
        }
    }

    /// What servers call themselves goes into reports, and could be another name each time: a few a domain and day are
    /// kept.
    fn bound_helos(&mut self, session: &mut Reported) {
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

    fn unreadable(&mut self, cause: &'static str, octets: &[u8], now: i64) {
        self.seen.malformed += 1;
        let last = self.sampled.entry(cause).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= SAMPLE_EVERY {
            *last = now;
            let sample = octets.get(..300).unwrap_or(octets).escape_ascii();
            tracing::warn!("TLSRPT datagram: cannot be read: {cause}: \"{sample}\"; not counted");
        }
    }

    /// Looks at a delivery for what is wrong with the log as a whole; its sessions are in `outcomes`.
    fn delivery(&mut self, event: &Event<'_>) {
        let What::Delivery { queue_id, recipient_domain, relay, cached_connection, sent, .. } = &event.what else {
            return;
        };
        if self.delivered.len() < MAX_DELIVERED {
            let mut hasher = DefaultHasher::new();
            (event.process.pid, queue_id, recipient_domain).hash(&mut hasher);
            self.delivered.push(hasher.finish());
        }
        if self.outcomes.iter().any(|outcome| outcome.trust.is_some() || outcome.observed.is_some()) {
            (self.bare, self.shows_tls, self.hides_tls) = (0, true, false);
            return;
        }
        let to_the_world = relay.and_then(|peer| peer.ip).is_some_and(|ip| !self.rules.is_local(ip));
        if event.process.name == b"smtp" && *sent && !cached_connection && to_the_world {
            self.bare = self.bare.saturating_add(1);
            let most = if self.shows_tls { BARE_AFTER_TLS } else { BARE };
            self.hides_tls |= self.bare >= most;
        }
    }

    /// Whether the log seems to leave TLS out: many deliveries, and no session with TLS.
    pub fn hides_tls(&self) -> bool {
        self.hides_tls
    }

    /// Marks of the deliveries since the last call, by which the same lines are known in another input.
    pub fn delivered(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.delivered)
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
        for mut outcome in self.outcomes.drain(..) {
            if outcome.ip.is_some_and(|ip| self.rules.is_local(ip)) {
                self.seen.local += 1;
                continue;
            }
            if !outcome.named
                && let Some(hop) = self.rules.next_hop(&outcome.domain)
            {
                outcome.domain = hop.into();
            }
            let in_force = policies.at(&outcome.domain, outcome.began);
            let in_force = self.rules.in_force(in_force, &outcome.domain, outcome.began);
            let tested = matches!(in_force, Some(InForce::Sts { mode: Mode::Testing, .. }));
            match self.rules.tlsrpt {
                Tlsrpt::Off => outcome.native = None,
                Tlsrpt::Datagrams if !tested && self.rules.is_native(&outcome) => {
                    self.seen.left_to_native += 1;
                    continue;
                }
                Tlsrpt::Log | Tlsrpt::Datagrams => {}
            }
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
            for mut tally in counts.tallies {
                if let (Counted::Detail(failure), Some(ip)) = (&mut tally.counted, outcome.ip)
                    && failure.receiving_ip == Some(ip)
                {
                    failure.sending_mta_ip = self.rules.sending_address(ip);
                }
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

/// Whether a line is an entry of a journal as `journalctl -o json` prints it: no other log's line begins so.
fn is_journal(line: &[u8]) -> bool {
    line.first() == Some(&b'{')
}

/// Whether a line says something in an MTA's words.
pub fn is_of(mta: Dialect, line: &[u8]) -> bool {
    if is_journal(line) {
        return journal::entry(line).is_ok_and(|found| found.is_some_and(|e| matches!(e.parse(mta), Ok(Some(_)))));
    }
    matches!(parse(mta, line), Ok(Some(_)))
}

/// One input of the river.
pub struct Source {
    /// Its name, under which its mark and open state are stored.
    pub name: String,
    /// Its counter.
    pub counter: Counter,
}

/// What inputs hand to the river; the number is the input's.
pub enum Fed {
    /// A new input, before its first block.
    Source(usize, Box<Source>),
    /// What it has read.
    Block(usize, Block),
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
    /// The datagrams that wait.
    pub datagrams: Arc<Queue>,
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

/// The inputs, and what has been noticed of them.
#[derive(Default)]
struct Inputs {
    sources: HashMap<usize, Source>,
    twice: Twice,
    /// When a trouble was last said, by input.
    said: HashMap<String, i64>,
}

struct Closing<'a>(&'a Queue);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl River {
    /// Counts blocks and datagrams until the inputs have ended or `shutdown` turns true; what was taken by then is
    /// committed. Blocks the thread that it runs on.
    pub fn run(
        self,
        runtime: &Handle,
        mut feed: mpsc::Receiver<Fed>,
        mut tellings: mpsc::Receiver<Telling>,
        mut shutdown: watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        enum Next {
            Fed(Option<Fed>),
            Told(Telling),
            Datagrams,
            Nothing,
        }
        // However this ends, the receivers end as well.
        let _closing = Closing(&self.datagrams);
        let mut pending = Pending::default();
        let mut inputs = Inputs::default();
        let mut taken = Taken::default();
        loop {
            self.metrics.alive("counting");
            let wait = pending.since.map_or(COMMIT, |since| COMMIT.saturating_sub(since.elapsed()));
            let next = runtime.block_on(async {
                tokio::select! {
                    () = self.datagrams.ready() => Next::Datagrams,
                    fed = feed.recv() => Next::Fed(fed),
                    Some(telling) = tellings.recv() => Next::Told(telling),
                    () = tokio::time::sleep(wait) => Next::Nothing,
                }
            });
            let ended = matches!(next, Next::Fed(None));
            let ending = ended || *shutdown.borrow();
            let mut due = ending;
            // First, for a datagram is sent before the log has the delivery.
            taken = self.datagrams.take(taken);
            self.received(&mut inputs, &taken, &mut pending);
            match next {
                Next::Fed(Some(fed)) => due |= self.fed(&mut inputs, fed, &mut pending),
                Next::Told(telling) => self.told(&mut inputs, telling, &mut pending),
                Next::Fed(None) | Next::Datagrams => {}
                Next::Nothing => self.idle(&mut inputs, &mut pending),
            }
            if ending {
                // What is on its way has left its source, and may be nowhere else.
                self.datagrams.close();
                taken = self.datagrams.take(taken);
                self.received(&mut inputs, &taken, &mut pending);
                feed.close();
                while let Some(fed) = runtime.block_on(feed.recv()) {
                    self.fed(&mut inputs, fed, &mut pending);
                }
            }
            due |= pending.since.is_some_and(|since| since.elapsed() >= COMMIT);
            if due && pending.since.is_some() {
                self.commit(runtime, &mut inputs.sources, &mut pending, &mut shutdown)?;
            }
            if ending {
                return Ok(());
            }
        }
    }

    /// Hands what Exim told to the sessions of its log, where it is kept and held against the lines.
    fn told(&self, inputs: &mut Inputs, (told, committed): Telling, pending: &mut Pending) {
        let mut exim = inputs.sources.values_mut().filter(|source| source.counter.dialect() == Dialect::Exim);
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

    /// Takes what an input hands on; whether it is at its end.
    fn fed(&self, inputs: &mut Inputs, fed: Fed, pending: &mut Pending) -> bool {
        match fed {
            Fed::Source(number, source) => {
                inputs.sources.insert(number, *source);
                false
            }
            Fed::Block(number, block) => {
                let at_end = block.at_end;
                self.block(inputs, block, number, pending);
                at_end
            }
        }
    }

    fn block(&self, inputs: &mut Inputs, block: Block, number: usize, pending: &mut Pending) {
        let now = self.clock.seconds();
        // Invariant: an input feeds its source before its first block.
        let source = inputs.sources.get_mut(&number).expect("an input is known before its blocks");
        source.counter.lines(&block.lines, now, &*self.policies);
        self.tell(source, block.skipped, now, |p| {
            p.at_end_since = block.at_end.then_some(now);
            p.behind = block.behind;
        });
        let hides_tls = source.counter.hides_tls();
        let name = source.name.clone();
        let delivered = source.counter.delivered();
        pending.marks.insert(number, block.mark);
        pending.since.get_or_insert_with(Instant::now);
        if hides_tls {
            let line = format!(
                "input {name}: many deliveries and no TLS session: smtp_tls_loglevel is 0, or no TLS is used; sessions \
                 that succeed are not counted from it: add `smtp_tls_loglevel = 1` to main.cf"
            );
            self.trouble(inputs, &name, "level", line, now);
        }
        if inputs.sources.len() > 1
            && let Some(other) = inputs.twice.note(number, &delivered)
            && let Some(other) = inputs.sources.get(&other).map(|source| source.name.clone())
        {
            let line = format!(
                "input {name}: it has the same lines as input {other}; every session in both is counted twice: remove \
                 one of the two"
            );
            self.trouble(inputs, &name, "twice", line, now);
        }
    }

    /// Counts datagrams that were taken from the queue.
    fn received(&self, inputs: &mut Inputs, taken: &Taken, pending: &mut Pending) {
        if taken.is_empty() {
            return;
        }
        let now = self.clock.seconds();
        let mut touched: Vec<usize> = Vec::new();
        for (number, at, octets) in taken.each() {
            let Some(source) = inputs.sources.get_mut(&number) else { continue };
            source.counter.datagram(octets, at, &*self.policies);
            if !touched.contains(&number) {
                touched.push(number);
            }
        }
        for (number, lost) in taken.lost() {
            self.metrics.add("datagrams-lost", *lost);
            if let Some(name) = inputs.sources.get(number).map(|source| source.name.clone()) {
                let line =
                    format!("input {name}: {lost} datagrams dropped: too many wait; those sessions are not counted");
                self.trouble(inputs, &name, "lost", line, now);
            }
        }
        for number in touched {
            let Some(source) = inputs.sources.get_mut(&number) else { continue };
            self.tell(source, 0, now, |p| p.at_end_since = Some(now));
            pending.since.get_or_insert_with(Instant::now);
        }
    }

    /// Shows what came of an input, and hands its hints on.
    fn tell(&self, source: &mut Source, skipped: u64, now: i64, more: impl FnOnce(&mut Progress)) {
        for domain in source.counter.failed() {
            if self.hints.try_send(domain).is_err() {
                self.metrics.add("hints-dropped", 1);
            }
        }
        let (seen, losses) = source.counter.seen();
        let newest = source.counter.newest();
        self.metrics.input(&source.name, |p| {
            p.newest = newest;
            p.lines += seen.read;
            p.used += seen.used;
            p.malformed += seen.malformed;
            p.skipped += skipped;
            p.trouble = None;
            more(p);
        });
        let ahead = newest.is_some_and(|newest| newest > now + FUTURE);
        if ahead {
            self.metrics.input(&source.name, |p| p.trouble = Some("its last line is of the future".to_owned()));
        }
        self.count_losses(seen, losses);
    }

    /// Says what is wrong with an input as a whole, once an hour for as long as it stands.
    fn trouble(&self, inputs: &mut Inputs, name: &str, what: &str, line: String, now: i64) {
        let last = inputs.said.entry(format!("{what} {name}")).or_insert(i64::MIN);
        if now.saturating_sub(*last) >= SAY_AGAIN {
            *last = now;
            self.metrics.error(self.clock, line.clone());
        }
        self.metrics.input(name, |p| p.trouble = Some(line));
    }

    /// Ends the sessions of inputs that have been at their end for long.
    fn idle(&self, inputs: &mut Inputs, pending: &mut Pending) {
        let now = self.clock.seconds();
        let progress = self.metrics.inputs();
        for source in inputs.sources.values_mut().filter(|s| !s.counter.is_idle()) {
            let since = progress.get(&source.name).and_then(|p| p.at_end_since);
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
        sources: &mut HashMap<usize, Source>,
        pending: &mut Pending,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (number, source) in sources {
            batch.add.extend(source.counter.counts());
            for (key, value) in source.counter.changes() {
                batch.set.push((Family::Open, open_key(&source.name, &key), value));
            }
            if let Some(mark) = pending.marks.remove(number).filter(|mark| *mark != Mark::Nowhere) {
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
        self.metrics.add("sessions-local", seen.local);
        self.metrics.add("sessions-left-to-datagrams", seen.left_to_native);
        self.metrics.add("datagrams-left-to-log", seen.left_to_log);
        self.metrics.add("sessions-without-domain", losses.without_domain);
        self.metrics.add("sessions-unmatched", losses.unmatched);
        self.metrics.add("sessions-crowded-out", losses.crowded_out);
        self.metrics.add("sessions-of-own-reports", losses.own_reports);
    }
}

/// Notices inputs that carry the same lines: rsyslog's file beside the journal.
#[derive(Default)]
struct Twice {
    seen: HashMap<u64, usize>,
    order: VecDeque<u64>,
    hits: HashMap<(usize, usize), u32>,
}

/// Deliveries that are remembered for comparison with other inputs.
const MAX_COMPARED: usize = 16_384;

/// Deliveries in two inputs after which it is no chance.
const SAME: u32 = 3;

impl Twice {
    /// Notes deliveries of an input; the other that has them too, if one has.
    fn note(&mut self, input: usize, delivered: &[u64]) -> Option<usize> {
        let mut found = None;
        for mark in delivered {
            match self.seen.get(mark) {
                Some(other) if *other != input => {
                    let hits = self.hits.entry((*other, input)).or_default();
                    *hits = hits.saturating_add(1);
                    if *hits >= SAME {
                        found = Some(*other);
                    }
                }
                Some(_) => {}
                None => {
                    if self.order.len() == MAX_COMPARED
                        && let Some(oldest) = self.order.pop_front()
                    {
                        self.seen.remove(&oldest);
                    }
                    self.order.push_back(*mark);
                    self.seen.insert(*mark, input);
                }
            }
        }
        found
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
