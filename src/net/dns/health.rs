//! Whether the resolver answers at all, and what it said when it was last asked for the root.
//!
//! Takes: how each query ended. Gives: the cause of an outage once nothing can be asked; counts; the last
//! [`ResolverProbe`].
//! One broken domain is no outage: every query must have failed for [`OUTAGE_AFTER`], [`OUTAGE_QUERIES`] or more of them,
//! and the one for the root's NS records among them, which no domain can make fail.
//! Limits: a few numbers, whatever happens.
//! Not here: asking (`Resolver`), when the root is asked (the daemon), what is answered meanwhile (`policy`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::net::dns::servers::QueryFailure;

/// For how long every query must have failed before nothing can be asked.
pub(crate) const OUTAGE_AFTER: Duration = Duration::from_secs(10);

/// How many queries must have failed.
const OUTAGE_QUERIES: u32 = 5;

/// What the resolver said when it was last asked for the NS records of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverProbe {
    /// When it was asked.
    pub asked: Instant,
    /// Whether it validates: the root is signed.
    pub validates: bool,
    /// Whether it answers queries with EDNS, which DNSSEC needs.
    pub edns: bool,
    /// Whether it refused a name whose signatures are broken on purpose; nothing where that was not asked or not said.
    pub refuses_bogus: Option<bool>,
    /// Why it did not answer.
    pub failure: Option<String>,
}

/// How the queries of a resolver end.
#[derive(Default)]
pub(crate) struct ResolverHealth {
    queries: AtomicU64,
    failed: AtomicU64,
    failing: Mutex<FailingSince>,
    probe: Mutex<Option<ResolverProbe>>,
    /// Notified when a query fails.
    pub(crate) failed_query: Notify,
}

/// What has failed since the last answer.
#[derive(Debug, Default)]
struct FailingSince {
    first: Option<Instant>,
    queries: u32,
    root: bool,
    cause: String,
    last_answer: Option<Instant>,
}

impl ResolverHealth {
    /// The resolver said something, whatever it was.
    pub(crate) fn note_answer(&self) {
        self.queries.fetch_add(1, Ordering::Relaxed);
        let mut failing = self.failing.lock();
        *failing = FailingSince { last_answer: Some(Instant::now()), ..FailingSince::default() };
    }

    /// A query failed; `root`: that for the root's NS records.
    pub(crate) fn note_failure(&self, failure: &QueryFailure, root: bool) {
        self.queries.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.failing.lock().note(failure, root, Instant::now());
        self.failed_query.notify_one();
    }

    /// Why nothing can be asked, if that is so.
    pub(crate) fn outage(&self) -> Option<String> {
        self.failing.lock().outage(Instant::now())
    }

    /// Whether the last query failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.lock().first.is_some()
    }

    /// When anything was last answered.
    pub(crate) fn last_answer(&self) -> Option<Instant> {
        self.failing.lock().last_answer
    }

    /// How many queries there were, and how many of them failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.queries.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The last probe.
    pub(crate) fn probe(&self) -> Option<ResolverProbe> {
        self.probe.lock().clone()
    }

    /// Other servers are asked from now on.
    pub(crate) fn forget(&self) {
        *self.failing.lock() = FailingSince::default();
        *self.probe.lock() = None;
    }

    pub(crate) fn set_probe(&self, probe: ResolverProbe) {
        *self.probe.lock() = Some(probe);
    }
}

impl FailingSince {
    fn note(&mut self, failure: &QueryFailure, root: bool, now: Instant) {
        self.first.get_or_insert(now);
        self.queries = self.queries.saturating_add(failure.queries.max(1));
        self.root |= root;
        self.cause.clone_from(&failure.cause);
    }

    fn outage(&self, now: Instant) -> Option<String> {
        let first = self.first?;
        let since = now.saturating_duration_since(first);
        let outage = self.root && self.queries >= OUTAGE_QUERIES && since >= OUTAGE_AFTER;
        outage.then(|| format!("every query has failed for {} s: {}", since.as_secs(), self.cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(queries: u32) -> QueryFailure {
        QueryFailure { cause: "silent".into(), local: false, queries, servfail: None }
    }

    #[test]
    fn an_outage_needs_time_queries_and_the_root() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        // Each failure as (seconds, queries, root), then the time at which it is looked at.
        let outage = |failures: &[(u64, u32, bool)], at: u64| {
            let mut failing = FailingSince::default();
            failures.iter().for_each(|(s, queries, root)| failing.note(&failure(*queries), *root, after(*s)));
            failing.outage(after(at))
        };
        let cause = |seconds: u64| Some(format!("every query has failed for {seconds} s: silent"));
        assert_eq!(outage(&[], 100), None);
        assert_eq!(outage(&[(0, 3, false), (2, 3, true)], 10), cause(10));
        assert_eq!(outage(&[(0, 3, false), (2, 3, true)], 9), None, "too soon");
        assert_eq!(outage(&[(0, 1, false), (2, 3, true)], 99), None, "too few queries");
        assert_eq!(outage(&[(0, 9, false), (9, 9, false)], 99), None, "the root was not asked");
    }

    #[test]
    fn any_answer_ends_it() {
        let health = ResolverHealth::default();
        (0..9).for_each(|_| health.note_failure(&failure(1), true));
        assert!(health.is_failing());
        health.note_answer();
        assert!(!health.is_failing() && health.outage().is_none() && health.last_answer().is_some());
        assert_eq!(health.counts(), (10, 9));
    }
}
