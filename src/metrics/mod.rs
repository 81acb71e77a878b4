//! What the daemon knows about itself: how far each input is, and how often what happened.
//!
//! Takes: a note from any task. Gives: a snapshot to whoever asks. Never waits.
//! Not here: how it is shown (`status`).

pub mod answers;
pub mod catalogue;
pub(crate) mod line_counts;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use answers::AnswerMetrics;
use line_counts::{FamilyCounts, LineCounts};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::clock::Clock;
use crate::base::tlsrpt::{Day, PolicyType, ResultType, TallyKey, TallyResult};

/// How long an input must have been at its end before the day behind it may close, in seconds.
pub(crate) const CLOSING_IDLE_TIME: i64 = 300;

/// How far an input must be read past a day's end, in seconds: lines of different processes may be out of order.
pub(crate) const OUT_OF_ORDER_TIME: i64 = 10;

/// How many of the last errors are kept for `status`.
const MAX_RECENT_ERRORS: usize = 16;

/// The one instance, shared by all tasks.
#[derive(Clone, Default)]
pub struct Metrics(Arc<MetricsInner>);

#[derive(Default)]
struct MetricsInner {
    counters: Mutex<BTreeMap<&'static str, Arc<AtomicU64>>>,
    sessions: Mutex<BTreeMap<SessionSeries, u64>>,
    answers: [Arc<AnswerMetrics>; MtaProtocol::ALL.len()],
    inputs: Mutex<BTreeMap<String, InputProgress>>,
    errors: Mutex<Vec<(i64, String)>>,
    /// When each monitored task last reported progress, and how long it may take.
    heartbeats: Mutex<BTreeMap<String, (Instant, Duration)>>,
}

/// The protocol that an MTA asks over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MtaProtocol {
    /// Postfix's socketmap.
    Socketmap,
    /// Exim's readsocket.
    Readsocket,
}

impl MtaProtocol {
    /// Both, with their labels, in their order.
    pub const ALL: [(MtaProtocol, &'static str); 2] =
        [(MtaProtocol::Socketmap, "socketmap"), (MtaProtocol::Readsocket, "readsocket")];
}

/// The labels under which sessions are shown; all come from fixed sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SessionSeries {
    /// Sessions, whether they succeeded.
    Sessions(PolicyType, bool),
    /// Entries of `failure-details`: those of the policies themselves among them.
    Failures(PolicyType, ResultType),
}

/// How far an input has been read and counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct InputProgress {
    /// The time of the newest line counted, in seconds since 1970-01-01T00:00:00Z.
    pub newest: Option<i64>,
    /// Since when the input has been at its end with nothing to read; `None` while it is behind.
    pub at_end_since: Option<i64>,
    /// Octets known to be unread.
    pub behind: u64,
    /// Lines read.
    pub lines: u64,
    /// Lines that said something about a session.
    pub used: u64,
    /// Lines that looked ours and could not be read.
    pub malformed: u64,
    /// Lines that look like the MTA's and match no known wording.
    #[serde(default)]
    pub unrecognized: u64,
    /// Lines that a syslog daemon left out, at least.
    pub lost: u64,
    /// The three before by family of lines.
    pub families: BTreeMap<String, FamilyCounts>,
    /// Lines over the limit, left out.
    pub skipped: u64,
    /// The last trouble with it, if it still stands.
    pub trouble: Option<String>,
}

impl InputProgress {
    /// Adds the counts of lines.
    pub(crate) fn add_lines(&mut self, families: &LineCounts) {
        for (family, lines) in families.iter() {
            let known = match self.families.get_mut(family) {
                Some(known) => known,
                None => self.families.entry(family.to_owned()).or_default(),
            };
            known.used += lines.used;
            known.malformed += lines.malformed;
            known.unrecognized += lines.unrecognized;
            self.used += lines.used;
            self.malformed += lines.malformed;
            self.unrecognized += lines.unrecognized;
        }
    }
}

impl Metrics {
    /// Adds to a counter, by its documented name.
    pub fn add(&self, name: &'static str, n: u64) {
        self.counter(name).fetch_add(n, Ordering::Relaxed);
    }

    /// A counter to hold on to, for paths where a look-up by name would show.
    pub fn counter(&self, name: &'static str) -> Arc<AtomicU64> {
        debug_assert!(catalogue::is_known(name), "{name} is not in the catalogue");
        Arc::clone(self.0.counters.lock().entry(name).or_default())
    }

    /// All counters.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.0.counters.lock().iter().map(|(k, v)| (*k, v.load(Ordering::Relaxed))).collect()
    }

    /// The answers given over a protocol.
    pub fn answers(&self, protocol: MtaProtocol) -> Arc<AnswerMetrics> {
        Arc::clone(&self.0.answers[protocol as usize])
    }

    /// Adds the committed counts to the counts of sessions.
    pub(crate) fn add_sessions<'a>(&self, counts: impl IntoIterator<Item = &'a (TallyKey, u64)>) {
        let mut sessions = self.0.sessions.lock();
        for (tally, n) in counts {
            let policy = tally.policy.policy_type;
            let under = match &tally.result {
                TallyResult::Success => SessionSeries::Sessions(policy, true),
                TallyResult::Failure => SessionSeries::Sessions(policy, false),
                TallyResult::Detail(failure) => SessionSeries::Failures(policy, failure.result_type),
                TallyResult::NullSender => continue,
            };
            *sessions.entry(under).or_default() += n;
        }
    }

    /// The counts of sessions since the daemon started.
    pub(crate) fn session_counts(&self) -> BTreeMap<SessionSeries, u64> {
        self.0.sessions.lock().clone()
    }

    /// Updates the progress of an input; creates its entry if there is none.
    pub(crate) fn update_input(&self, name: &str, change: impl FnOnce(&mut InputProgress)) {
        let mut inputs = self.0.inputs.lock();
        match inputs.get_mut(name) {
            Some(progress) => change(progress),
            None => change(inputs.entry(name.to_owned()).or_default()),
        }
    }

    /// Sets the list of inputs, each with the time of its newest line if known; all others are removed.
    pub(crate) fn set_inputs<'a>(&self, inputs: impl Iterator<Item = (&'a str, Option<i64>)>) {
        let mut known = self.0.inputs.lock();
        let entry = |(name, newest): (&str, Option<i64>)| {
            let progress = known.remove(name).unwrap_or_default();
            (name.to_owned(), InputProgress { newest, at_end_since: None, trouble: None, ..progress })
        };
        let inputs = inputs.map(entry).collect();
        *known = inputs;
    }

    /// All inputs, by name.
    pub fn inputs(&self) -> BTreeMap<String, InputProgress> {
        self.0.inputs.lock().clone()
    }

    /// The names of the inputs that have been at their end since `time` or longer.
    pub(crate) fn inputs_at_end_since(&self, time: i64) -> BTreeSet<String> {
        let inputs = self.0.inputs.lock();
        let at_end = inputs.iter().filter(|(_, input)| input.at_end_since.is_some_and(|since| since <= time));
        at_end.map(|(name, _)| name.clone()).collect()
    }

    /// The time up to which every input has been read, at most `now`; `None` while the progress of an input is not
    /// known.
    pub fn read_until(&self, now: i64) -> Option<i64> {
        let inputs = self.0.inputs.lock();
        let read = |p: &InputProgress| p.newest.max(p.at_end_since);
        inputs.values().map(read).try_fold(now, |least, read| read.map(|read| least.min(read)))
    }

    /// Sets which tasks are monitored, and how long each may go without progress.
    pub(crate) fn expect_heartbeats(&self, tasks: impl IntoIterator<Item = (String, Duration)>) {
        let now = Instant::now();
        *self.0.heartbeats.lock() = tasks.into_iter().map(|(name, limit)| (name, (now, limit))).collect();
    }

    /// Adds a task that is monitored from now on.
    pub fn expect_heartbeat(&self, task: &str, limit: Duration) {
        self.0.heartbeats.lock().insert(task.to_owned(), (Instant::now(), limit));
    }

    /// Removes a task that is not monitored any more.
    pub(crate) fn forget_heartbeat(&self, task: &str) {
        self.0.heartbeats.lock().remove(task);
    }

    /// Records that a task made progress; ignored for tasks that are not monitored.
    pub(crate) fn heartbeat(&self, task: &str) {
        if let Some((at, _)) = self.0.heartbeats.lock().get_mut(task) {
            *at = Instant::now();
        }
    }

    /// The tasks that made no progress for longer than they may, at `now`.
    pub(crate) fn stalled_tasks(&self, now: Instant) -> Vec<String> {
        let alive = self.0.heartbeats.lock();
        let over = |(at, limit): &(Instant, Duration)| now.saturating_duration_since(*at) > *limit;
        alive.iter().filter(|(_, beat)| over(beat)).map(|(name, _)| name.clone()).collect()
    }

    /// Logs one line `subject: problem: cause; consequence` and keeps it for `status`.
    pub(crate) fn log_error(&self, clock: Clock, line: String) {
        tracing::warn!("{line}");
        self.keep_error(clock, line);
    }

    /// Keeps a line for `status` that has been logged already.
    pub(crate) fn keep_error(&self, clock: Clock, line: String) {
        let mut errors = self.0.errors.lock();
        if errors.len() == MAX_RECENT_ERRORS {
            errors.remove(0);
        }
        errors.push((clock.seconds(), line));
    }

    /// The last errors, oldest first: (seconds since 1970-01-01T00:00:00Z, line).
    pub(crate) fn recent_errors(&self) -> Vec<(i64, String)> {
        self.0.errors.lock().clone()
    }

    /// The inputs that keep a day open: neither read past its end, nor at their end and idle for [`CLOSING_IDLE_TIME`].
    pub(crate) fn lagging_inputs(&self, day: Day, now: i64) -> Vec<String> {
        let closed = |p: &InputProgress| {
            p.newest.is_some_and(|t| t >= day.end() + OUT_OF_ORDER_TIME)
                || p.at_end_since.is_some_and(|t| now - t.max(day.end()) >= CLOSING_IDLE_TIME)
        };
        self.0.inputs.lock().iter().filter(|(_, p)| !closed(p)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_waits_for_every_input() {
        let metrics = Metrics::default();
        let day = Day(100);
        metrics.update_input("read past", |p| p.newest = Some(day.end() + OUT_OF_ORDER_TIME));
        metrics.update_input("idle", |p| p.at_end_since = Some(day.end() - 7));
        assert_eq!(metrics.lagging_inputs(day, day.end() + CLOSING_IDLE_TIME - 1), ["idle"]);
        assert!(metrics.lagging_inputs(day, day.end() + CLOSING_IDLE_TIME).is_empty());
        metrics.update_input("behind", |p| p.newest = Some(day.end() + OUT_OF_ORDER_TIME - 1));
        assert_eq!(metrics.lagging_inputs(day, day.end() + CLOSING_IDLE_TIME), ["behind"]);
    }

    #[test]
    fn all_is_read_until_where_the_last_input_is() {
        let metrics = Metrics::default();
        assert_eq!(metrics.read_until(500), Some(500));
        metrics.update_input("behind", |p| p.newest = Some(100));
        metrics.update_input("at its end", |p| (p.newest, p.at_end_since) = (Some(50), Some(400)));
        assert_eq!(metrics.read_until(500), Some(100));
        metrics.update_input("missing", |_| {});
        assert_eq!(metrics.read_until(500), None);
    }
    #[test]
    fn who_stands_still_is_named() {
        let (metrics, second) = (Metrics::default(), Duration::from_secs(1));
        metrics.expect_heartbeats([("quick".to_owned(), second), ("slow".to_owned(), 1000 * second)]);
        let later = Instant::now() + 10 * second;
        assert_eq!(metrics.stalled_tasks(later), ["quick"]);
        assert_eq!(metrics.stalled_tasks(later + 2000 * second), ["quick", "slow"]);
        assert!(metrics.stalled_tasks(Instant::now()).is_empty());
        metrics.heartbeat("unknown");
        metrics.expect_heartbeats([]);
        assert!(metrics.stalled_tasks(later).is_empty());
    }
}
