//! Which policy was in force for a destination at a time in the past: what sessions in a log were held to.
//!
//! Takes: a note of each decision that was answered. Gives: the decision that stood at a moment.
//! One decision that is asked about again and again is one [`Period`], from its first to its last asking; a pause of
//! [`ASKED`] or another decision begins a new one. Kept in the store: a new period within [`BEHIND`], its last asking
//! within [`STEP`] seconds.
//! Forgotten two days after every input has been read past it.
//! Limits: [`MAX_PERIODS`]; beyond, the longest past go first and are counted (`decisions_dropped`).
//! When it fails: what cannot be written stays in memory and is written with the next attempt.
//! Not here: deciding (`policy`), reading logs.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::NextHop;
use super::throttle::Throttle;
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::shutdown::stopped;
use crate::store::{Batch, Family, Store, StoreError};
use crate::tlsrpt::InForce;

/// How long after the last asking a decision still stands, in seconds: Postfix keeps a connection for less.
pub const ASKED: i64 = 20 * 60;

/// How soon a new period is in the store, while the disk keeps up.
pub const BEHIND: Duration = Duration::from_millis(20);

/// How far the stored last asking may lag behind, in seconds.
pub const STEP: i64 = 10;

/// How many periods are kept: 24 changes a day for 20,000 destinations. About 200 octets each.
pub const MAX_PERIODS: usize = 500_000;

/// How often last askings are looked through.
const TICK: Duration = Duration::from_secs(1);

/// How often periods that no line can be about any more are looked for, in seconds.
const PRUNE: i64 = 3600;

/// How long a period is kept beyond the last line of every input, in seconds: sessions take hours, and a clock may be off.
const KEPT: i64 = 2 * 86_400;

/// One decision, as long as it was asked about without a pause.
#[derive(Debug)]
pub struct Period {
    domain: Arc<str>,
    /// The next hop in its one form.
    hop: Arc<str>,
    from: i64,
    last: AtomicI64,
    /// Whether it waits to be written.
    dirty: AtomicBool,
    /// The last asking as it is in the store.
    written: AtomicI64,
    in_force: Arc<InForce>,
}

/// What stood at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The policy in force.
    pub in_force: InForce,
    /// Whether the destination had been asked about; where not, the policy is [`InForce::None`].
    pub asked: bool,
}

type Periods = HashMap<Arc<str>, Vec<Arc<Period>>>;

/// All periods.
pub struct History {
    periods: RwLock<Periods>,
    count: Mutex<usize>,
    /// Periods to write, or to look at whether to.
    queue: Mutex<Vec<Arc<Period>>>,
    /// Keys to remove from the store.
    removed: Mutex<Vec<Vec<u8>>>,
    wake: Notify,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
}

/// The form in the store; the key is `DOMAIN NUL FROM NUL HOP`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Stored {
    last: i64,
    in_force: InForce,
}

impl History {
    /// The periods that the store has. A record that cannot be read is left out.
    pub fn open(store: &dyn Store, clock: Clock, metrics: Metrics) -> Result<History, StoreError> {
        let mut periods = Periods::new();
        let mut count = 0;
        let mut before: Option<Arc<InForce>> = None;
        for (key, value) in store.scan(Family::Decision, b"")? {
            let Some(mut period) = restore(&key, &value) else {
                metrics.add("decisions_unreadable", 1);
                continue;
            };
            // Most periods of a domain are of one decision: keep it once.
            if let Some(same) = before.filter(|b| **b == *period.in_force) {
                period.in_force = same;
            }
            before = Some(Arc::clone(&period.in_force));
            periods.entry(Arc::clone(&period.domain)).or_default().push(Arc::new(period));
            count += 1;
        }
        Ok(History {
            periods: RwLock::new(periods),
            count: Mutex::new(count),
            queue: Mutex::default(),
            removed: Mutex::default(),
            wake: Notify::new(),
            clock,
            metrics,
            throttle: Throttle::default(),
        })
    }

    /// Notes that a decision was answered for a next hop at `now` (seconds). The period is for [`History::touch`].
    pub fn note(&self, hop: &NextHop, now: i64, in_force: &Arc<InForce>) -> Arc<Period> {
        let key = hop.key();
        let mut periods = self.periods.write();
        let known = periods.get(hop.domain.as_str());
        let latest = known.and_then(|list| list.iter().rev().find(|p| *p.hop == *key)).map(Arc::clone);
        let mut in_force = Arc::clone(in_force);
        if let Some(latest) = latest.filter(|latest| *latest.in_force == *in_force) {
            if self.touch(&latest, now) {
                return latest;
            }
            in_force = Arc::clone(&latest.in_force);
        }
        let domain: Arc<str> = periods
            .get_key_value(hop.domain.as_str())
            .map_or_else(|| hop.domain.as_str().into(), |(k, _)| Arc::clone(k));
        let hop = if *key == *domain { Arc::clone(&domain) } else { key.into() };
        let period = Arc::new(Period {
            domain: Arc::clone(&domain),
            hop,
            from: now,
            last: AtomicI64::new(now),
            dirty: AtomicBool::new(true),
            written: AtomicI64::new(i64::MIN),
            in_force,
        });
        periods.entry(domain).or_default().push(Arc::clone(&period));
        let mut count = self.count.lock();
        *count += 1;
        if *count > MAX_PERIODS {
            let cutoff = oldest(&periods, MAX_PERIODS / 20);
            let dropped =
                self.remove(&mut periods, |p| p.last.load(Ordering::Relaxed) <= cutoff && !Arc::ptr_eq(p, &period));
            *count -= dropped;
            self.metrics.add("decisions_dropped", dropped as u64);
        }
        drop(count);
        drop(periods);
        self.queue.lock().push(Arc::clone(&period));
        self.wake.notify_one();
        period
    }

    /// Notes that the decision of a period was answered again. False where the pause was too long: the decision is to
    /// be noted anew. Costs no more than a comparison when called again within the second.
    pub fn touch(&self, period: &Arc<Period>, now: i64) -> bool {
        let last = period.last.load(Ordering::Relaxed);
        if now <= last {
            // A clock that was set back: the period stands as it is.
            return last - now < ASKED;
        }
        if now - last >= ASKED {
            return false;
        }
        period.last.fetch_max(now, Ordering::Relaxed);
        if !period.dirty.swap(true, Ordering::Relaxed) {
            self.queue.lock().push(Arc::clone(period));
        }
        true
    }

    /// The policy in force for a destination at a moment (seconds): the latest decision that had been asked about at
    /// most [`ASKED`] before. Decisions for the domain itself go before those for it with a port or in brackets.
    pub fn at(&self, domain: &str, seconds: i64) -> Lookup {
        let periods = self.periods.read();
        let stands = |p: &&Arc<Period>| p.from <= seconds && seconds <= p.last.load(Ordering::Relaxed) + ASKED;
        let found = periods
            .get(domain)
            .and_then(|list| list.iter().filter(stands).max_by_key(|p| (*p.hop == *p.domain, p.from)));
        match found {
            Some(period) => Lookup { in_force: (*period.in_force).clone(), asked: true },
            None => Lookup { in_force: InForce::None, asked: false },
        }
    }

    /// Forgets what ended before a moment (seconds) that every input has been read past.
    fn prune_before(&self, seconds: i64) {
        let mut periods = self.periods.write();
        let past = |p: &Arc<Period>| p.last.load(Ordering::Relaxed) + ASKED < seconds;
        let removed = self.remove(&mut periods, past);
        *self.count.lock() -= removed;
        // What waits to be written would come back.
        self.queue.lock().retain(|period| !past(period));
        drop(periods);
        if removed > 0 {
            self.wake.notify_one();
        }
    }

    /// How many periods are kept.
    pub fn len(&self) -> usize {
        *self.count.lock()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes behind until `shutdown` turns true, and then what is left.
    pub async fn run(self: Arc<Self>, store: Arc<dyn Store>, mut shutdown: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pruned = i64::MIN;
        loop {
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(BEHIND).await,
                _ = tick.tick() => {}
                () = stopped(&mut shutdown) => break,
            }
            let now = self.clock.seconds();
            if now >= pruned.saturating_add(PRUNE) {
                pruned = now;
                if let Some(read) = self.metrics.read_until(now) {
                    self.prune_before(read - KEPT);
                }
            }
            self.write(&store, STEP).await;
        }
        self.write(&store, 1).await;
    }

    /// Writes what is new, what was asked about `step` seconds or more after what is stored, and what was last asked about
    /// so long ago.
    async fn write(&self, store: &Arc<dyn Store>, step: i64) {
        let now = self.clock.seconds();
        let removed = std::mem::take(&mut *self.removed.lock());
        let queue = std::mem::take(&mut *self.queue.lock());
        let mut batch = Batch::default();
        batch.set.extend(removed.iter().map(|key| (Family::Decision, key.clone(), None)));
        let (mut writing, mut waiting) = (Vec::new(), Vec::new());
        for period in queue {
            let last = period.last.load(Ordering::Relaxed);
            let written = period.written.load(Ordering::Relaxed);
            // One that is asked about often waits for its step. One that is not any more is written and leaves the queue.
            if last < written.saturating_add(step) && now < last.saturating_add(step) {
                waiting.push(period);
                continue;
            }
            period.dirty.store(false, Ordering::Relaxed);
            let stored = Stored { last, in_force: (*period.in_force).clone() };
            // A decision is made of text and lists: it has a JSON form.
            let Ok(value) = serde_json::to_vec(&stored) else { continue };
            batch.set.push((Family::Decision, period.stored_key(), Some(value)));
            writing.push((period, last));
        }
        self.queue.lock().extend(waiting);
        if batch.set.is_empty() {
            return;
        }
        let store = Arc::clone(store);
        let written = tokio::task::spawn_blocking(move || store.write(batch)).await;
        let error = match written {
            Ok(Ok(())) => {
                writing.iter().for_each(|(period, last)| period.written.store(*last, Ordering::Relaxed));
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.removed.lock().extend(removed);
        let again = writing.into_iter().map(|(period, _)| period).filter(|p| !p.dirty.swap(true, Ordering::Relaxed));
        self.queue.lock().extend(again);
        if self.throttle.permits("store", self.clock.seconds()) {
            let line =
                format!("store: cannot write the history of decisions: {error}; it is kept in memory until it can");
            self.metrics.error(self.clock, line);
        }
    }

    fn remove(&self, periods: &mut Periods, gone: impl Fn(&Arc<Period>) -> bool) -> usize {
        let mut removed = self.removed.lock();
        let before = removed.len();
        periods.retain(|_, list| {
            list.retain(|period| {
                let goes = gone(period);
                if goes {
                    removed.push(period.stored_key());
                }
                !goes
            });
            !list.is_empty()
        });
        removed.len() - before
    }
}

impl Period {
    fn stored_key(&self) -> Vec<u8> {
        format!("{}\0{:020}\0{}", self.domain, self.from.max(0), self.hop).into_bytes()
    }
}

fn restore(key: &[u8], value: &[u8]) -> Option<Period> {
    let mut parts = std::str::from_utf8(key).ok()?.split('\0');
    let (domain, from, hop) = (parts.next()?, parts.next()?, parts.next()?);
    let stored: Stored = serde_json::from_slice(value).ok()?;
    let domain: Arc<str> = domain.into();
    let hop = if *hop == *domain { Arc::clone(&domain) } else { hop.into() };
    Some(Period {
        domain,
        hop,
        from: from.parse().ok()?,
        last: AtomicI64::new(stored.last),
        dirty: AtomicBool::new(false),
        written: AtomicI64::new(stored.last),
        in_force: Arc::new(stored.in_force),
    })
}

/// The last asking of the `nth` period from the past.
fn oldest(periods: &Periods, nth: usize) -> i64 {
    let mut last: Vec<i64> = periods.values().flatten().map(|p| p.last.load(Ordering::Relaxed)).collect();
    let nth = nth.min(last.len().saturating_sub(1));
    *last.select_nth_unstable(nth).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::Embedded;
    use crate::tlsrpt::{Mode, Policy};

    fn sts(mode: Mode) -> Arc<InForce> {
        Arc::new(InForce::Sts { mode, policy: Arc::new(Policy::none("example.com")), failure: None })
    }

    fn hop(key: &str) -> NextHop {
        NextHop::parse(key.as_bytes()).unwrap()
    }

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(folder.path(), Clock::default()).unwrap().store;
        (folder, Arc::new(store))
    }

    fn empty() -> History {
        History::open(&*store().1, Clock::default(), Metrics::default()).unwrap()
    }

    #[test]
    fn periods_grow_end_and_follow_each_other() {
        let history = empty();
        let (old, new) = (sts(Mode::Testing), sts(Mode::Enforce));
        assert!(!history.at("example.com", 1000).asked);
        let first = history.note(&hop("example.com"), 1000, &old);
        assert!(Arc::ptr_eq(&first, &history.note(&hop("example.com"), 1000 + ASKED - 1, &old)));
        history.note(&hop("example.com"), 2500, &new);
        let at = |t| history.at("example.com", t);
        assert!(!at(999).asked);
        assert_eq!(at(1000), Lookup { in_force: (*old).clone(), asked: true });
        assert_eq!(at(2499).in_force, *old);
        assert_eq!(at(2500).in_force, *new);
        assert!(at(2500 + ASKED).asked);
        assert!(!at(2500 + ASKED + 1).asked);
        // The same decision again after a pause is a period of its own.
        assert!(!history.touch(&first, 9000));
        history.note(&hop("example.com"), 9000, &new);
        assert!(!at(8999).asked && at(9000).asked);
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn the_domain_itself_goes_before_its_other_next_hops() {
        let history = empty();
        history.note(&hop("example.com"), 1000, &sts(Mode::Enforce));
        history.note(&hop("example.com:587"), 1001, &Arc::new(InForce::None));
        assert_eq!(history.at("example.com", 1002).in_force, *sts(Mode::Enforce));
        let history = empty();
        history.note(&hop("[example.com]:587"), 1001, &sts(Mode::Testing));
        assert_eq!(history.at("example.com", 1002).in_force, *sts(Mode::Testing));
    }

    #[test]
    fn a_change_within_a_second_is_the_later_one() {
        let history = empty();
        history.note(&hop("example.com"), 1000, &sts(Mode::Testing));
        history.note(&hop("example.com"), 1000, &sts(Mode::Enforce));
        assert_eq!(history.at("example.com", 1000).in_force, *sts(Mode::Enforce));
    }

    #[tokio::test]
    async fn it_is_kept_and_pruned_in_the_store() {
        let (_folder, store) = store();
        let clock = Clock::starting_at(2000);
        let open = || Arc::new(History::open(&*store, clock, Metrics::default()).unwrap());
        let history = open();
        history.note(&hop("example.com"), 1000, &sts(Mode::Testing));
        let period = history.note(&hop("example.com"), 2000, &sts(Mode::Enforce));
        history.note(&hop("[example.net]"), 3000, &Arc::new(InForce::None));
        history.write(&store, STEP).await;
        assert!(history.touch(&period, 2000 + STEP - 1));
        history.write(&store, STEP).await;
        assert!(!open().at("example.com", 2000 + STEP - 1 + ASKED).asked, "not worth a write yet");
        assert!(history.touch(&period, 2000 + STEP));
        history.write(&store, STEP).await;
        let again = open();
        assert_eq!(again.len(), 3);
        for t in [999, 1000, 1999, 2000, 2000 + STEP + ASKED, 3500] {
            assert_eq!(again.at("example.com", t), history.at("example.com", t), "{t}");
            assert_eq!(again.at("example.net", t), history.at("example.net", t), "{t}");
        }
        again.prune_before(2000 + STEP + ASKED);
        again.write(&store, STEP).await;
        assert_eq!((again.len(), open().len()), (2, 2));
    }

    #[tokio::test]
    async fn a_last_asking_is_written_once_nobody_asks_any_more() {
        let (_folder, store) = store();
        let mut history = History::open(&*store, Clock::starting_at(1000), Metrics::default()).unwrap();
        let period = history.note(&hop("example.com"), 1000, &sts(Mode::Testing));
        history.write(&store, STEP).await;
        history.touch(&period, 1003);
        let stored = || History::open(&*store, Clock::default(), Metrics::default()).unwrap();
        for (seconds, left, kept) in [(1003, 1, false), (1003 + STEP - 2, 1, false), (1003 + STEP, 0, true)] {
            history.clock = Clock::starting_at(seconds);
            history.write(&store, STEP).await;
            assert_eq!(history.queue.lock().len(), left, "{seconds}");
            assert_eq!(stored().at("example.com", 1003 + ASKED).asked, kept, "{seconds}");
        }
    }

    #[tokio::test]
    async fn the_task_forgets_what_every_input_is_past() {
        for (newest, kept) in [(2000 + ASKED + KEPT, 1), (2000 + ASKED + KEPT + 1, 0)] {
            let (_folder, store) = store();
            let (metrics, clock) = (Metrics::default(), Clock::starting_at(2000 + 2 * KEPT));
            metrics.input("maillog", |input| input.newest = Some(newest));
            let history = Arc::new(History::open(&*store, clock, metrics).unwrap());
            history.note(&hop("example.com"), 2000, &sts(Mode::Testing));
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
            tokio::time::sleep(BEHIND * 10).await;
            stop.send(true).unwrap();
            task.await.unwrap();
            assert_eq!(history.len(), kept);
            assert_eq!(store.scan(Family::Decision, b"").unwrap().len(), kept);
        }
    }

    #[tokio::test]
    async fn the_task_writes_at_once_and_at_the_end() {
        let (_folder, store) = store();
        let history = Arc::new(History::open(&*store, Clock::starting_at(1000), Metrics::default()).unwrap());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
        let period = history.note(&hop("example.com"), 1000, &sts(Mode::Testing));
        while store.scan(Family::Decision, b"").unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        history.touch(&period, 1002);
        stop.send(true).unwrap();
        task.await.unwrap();
        let again = History::open(&*store, Clock::default(), Metrics::default()).unwrap();
        assert!(again.at("example.com", 1002 + ASKED).asked);
    }
}
