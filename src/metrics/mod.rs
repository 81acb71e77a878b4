//! What the daemon knows about itself: how far each input is, and how often what happened.
//!
//! Takes: a note from any task. Gives: a snapshot to whoever asks. Never waits.
//! Not here: how it is shown (`status`).

pub mod answers;
pub mod catalogue;
pub mod line_counts;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use answers::Answers;
use line_counts::{Families, OfFamily};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::clock::Clock;
use crate::base::tlsrpt::{Day, PolicyType, ResultType, TallyKey, TallyResult};

/// How long an input must have been at its end before the day behind it may close, in seconds.
pub const IDLE: i64 = 300;

/// How far an input must be read past a day's end, in seconds: lines of different processes may be out of order.
pub const OUT_OF_ORDER: i64 = 10;

/// The last errors that are kept for `status`.
const LAST_ERRORS: usize = 16;

/// The one instance, shared by all tasks.
#[derive(Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Default)]
struct Inner {
    counters: Mutex<BTreeMap<&'static str, Arc<AtomicU64>>>,
    sessions: Mutex<BTreeMap<Counting, u64>>,
    answers: [Arc<Answers>; Protocol::ALL.len()],
    inputs: Mutex<BTreeMap<String, Progress>>,
    errors: Mutex<Vec<(i64, String)>>,
    /// When each task that must not stand still got on last, and how long it may take.
    alive: Mutex<BTreeMap<String, (Instant, Duration)>>,
}

/// How an MTA asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Postfix's socketmap.
    Socketmap,
    /// Exim's readsocket.
    Readsocket,
}

impl Protocol {
    /// Both, with their labels, in their order.
    pub const ALL: [(Protocol, &'static str); 2] =
        [(Protocol::Socketmap, "socketmap"), (Protocol::Readsocket, "readsocket")];
}

/// What sessions are shown under: all labels are of fixed sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counting {
    /// Sessions, whether they succeeded.
    Sessions(PolicyType, bool),
    /// Entries of `failure-details`: those of the policies themselves among them.
    Failures(PolicyType, ResultType),
}

/// How far an input has been read and counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Progress {
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
    /// The last two by family of lines.
    pub families: BTreeMap<String, OfFamily>,
    /// Lines over the limit, left out.
    pub skipped: u64,
    /// The last trouble with it, if it still stands.
    pub trouble: Option<String>,
}

impl Progress {
    /// Adds what came of lines.
    pub fn add(&mut self, families: &Families) {
        for (family, lines) in families.iter() {
            let known = match self.families.get_mut(family) {
                Some(known) => known,
                None => self.families.entry(family.to_owned()).or_default(),
            };
            known.used += lines.used;
            known.malformed += lines.malformed;
            self.used += lines.used;
            self.malformed += lines.malformed;
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
        debug_assert!(catalogue::known(name), "{name} is not in the catalogue");
        Arc::clone(self.0.counters.lock().entry(name).or_default())
    }

    /// All counters.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        self.0.counters.lock().iter().map(|(k, v)| (*k, v.load(Ordering::Relaxed))).collect()
    }

    /// The answers given over a protocol.
    pub fn answers(&self, protocol: Protocol) -> Arc<Answers> {
        Arc::clone(&self.0.answers[protocol as usize])
    }

    /// Adds what was committed to the counts of sessions.
    pub fn counted<'a>(&self, counts: impl IntoIterator<Item = &'a (TallyKey, u64)>) {
        let mut sessions = self.0.sessions.lock();
        for (tally, n) in counts {
            let policy = tally.policy.policy_type;
            let under = match &tally.result {
                TallyResult::Success => Counting::Sessions(policy, true),
                TallyResult::Failure => Counting::Sessions(policy, false),
                TallyResult::Detail(failure) => Counting::Failures(policy, failure.result_type),
            };
            *sessions.entry(under).or_default() += n;
        }
    }

    /// The counts of sessions since the daemon started.
    pub fn sessions(&self) -> BTreeMap<Counting, u64> {
        self.0.sessions.lock().clone()
    }

    /// Changes what is known of an input, making its entry if there is none.
    pub fn input(&self, name: &str, change: impl FnOnce(&mut Progress)) {
        let mut inputs = self.0.inputs.lock();
        match inputs.get_mut(name) {
            Some(progress) => change(progress),
            None => change(inputs.entry(name.to_owned()).or_default()),
        }
    }

    /// Says which inputs there are, each with its newest line as far as it is known; the others are forgotten.
    pub fn only_inputs<'a>(&self, inputs: impl Iterator<Item = (&'a str, Option<i64>)>) {
        let mut known = self.0.inputs.lock();
        let entry = |(name, newest): (&str, Option<i64>)| {
            let progress = known.remove(name).unwrap_or_default();
            (name.to_owned(), Progress { newest, at_end_since: None, trouble: None, ..progress })
        };
        let inputs = inputs.map(entry).collect();
        *known = inputs;
    }

    /// All inputs, by name.
    pub fn inputs(&self) -> BTreeMap<String, Progress> {
        self.0.inputs.lock().clone()
    }

    /// Until when every input has been read, at most `now`; nothing while one has not said where it is.
    pub fn read_until(&self, now: i64) -> Option<i64> {
        let inputs = self.0.inputs.lock();
        let read = |p: &Progress| p.newest.max(p.at_end_since);
        inputs.values().map(read).try_fold(now, |least, read| read.map(|read| least.min(read)))
    }

    /// Says which tasks must not stand still, and for how long each may; from now on they are held to it.
    pub fn expect_alive(&self, tasks: impl IntoIterator<Item = (String, Duration)>) {
        let now = Instant::now();
        *self.0.alive.lock() = tasks.into_iter().map(|(name, limit)| (name, (now, limit))).collect();
    }

    /// A task says that it got on; those that nobody expects may as well.
    pub fn alive(&self, task: &str) {
        if let Some((at, _)) = self.0.alive.lock().get_mut(task) {
            *at = Instant::now();
        }
    }

    /// The tasks that stand still for longer than they may at `now`.
    pub fn stuck(&self, now: Instant) -> Vec<String> {
        let alive = self.0.alive.lock();
        let over = |(at, limit): &(Instant, Duration)| now.saturating_duration_since(*at) > *limit;
        alive.iter().filter(|(_, beat)| over(beat)).map(|(name, _)| name.clone()).collect()
    }

    /// Logs one line `subject: problem: cause; consequence` and keeps it for `status`.
    pub fn error(&self, clock: Clock, line: String) {
        tracing::warn!("{line}");
        let mut errors = self.0.errors.lock();
        if errors.len() == LAST_ERRORS {
            errors.remove(0);
        }
        errors.push((clock.seconds(), line));
    }

    /// The last errors, oldest first: (seconds since 1970-01-01T00:00:00Z, line).
    pub fn errors(&self) -> Vec<(i64, String)> {
        self.0.errors.lock().clone()
    }

    /// The inputs that keep a day open: neither read past its end, nor at their end and idle for [`IDLE`].
    pub fn lagging(&self, day: Day, now: i64) -> Vec<String> {
        let closed = |p: &Progress| {
            p.newest.is_some_and(|t| t >= day.end() + OUT_OF_ORDER)
                || p.at_end_since.is_some_and(|t| now - t.max(day.end()) >= IDLE)
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
        metrics.input("read past", |p| p.newest = Some(day.end() + OUT_OF_ORDER));
        metrics.input("idle", |p| p.at_end_since = Some(day.end() - 7));
        assert_eq!(metrics.lagging(day, day.end() + IDLE - 1), ["idle"]);
        assert!(metrics.lagging(day, day.end() + IDLE).is_empty());
        metrics.input("behind", |p| p.newest = Some(day.end() + OUT_OF_ORDER - 1));
        assert_eq!(metrics.lagging(day, day.end() + IDLE), ["behind"]);
    }

    #[test]
    fn all_is_read_until_where_the_last_input_is() {
        let metrics = Metrics::default();
        assert_eq!(metrics.read_until(500), Some(500));
        metrics.input("behind", |p| p.newest = Some(100));
        metrics.input("at its end", |p| (p.newest, p.at_end_since) = (Some(50), Some(400)));
        assert_eq!(metrics.read_until(500), Some(100));
        metrics.input("missing", |_| {});
        assert_eq!(metrics.read_until(500), None);
    }
    #[test]
    fn who_stands_still_is_named() {
        let (metrics, second) = (Metrics::default(), Duration::from_secs(1));
        metrics.expect_alive([("quick".to_owned(), second), ("slow".to_owned(), 1000 * second)]);
        let later = Instant::now() + 10 * second;
        assert_eq!(metrics.stuck(later), ["quick"]);
        assert_eq!(metrics.stuck(later + 2000 * second), ["quick", "slow"]);
        assert!(metrics.stuck(Instant::now()).is_empty());
        metrics.alive("unknown");
        metrics.expect_alive([]);
        assert!(metrics.stuck(later).is_empty());
    }
}
