//! Which policy was in force for a destination at a time in the past: what sessions in a log were held to.
//!
//! Takes: a note of each decision that was answered. Gives: the decision that stood at a moment.
//! One decision that is asked about again and again is one [`Period`], from its first to its last asking; a pause of
//! [`ASKED`] or another decision begins a new one. Kept in the store: a new period within [`BEHIND`], its last asking
//! within [`STEP`] seconds.
//! Forgotten two days after every input has been read past it.
//! Limits: [`MAX_PERIODS`], [`MAX_OCTETS`] of text; beyond, the longest past go first and are counted
//! (`decisions_dropped`).
//! When it fails: what cannot be written stays in memory and is written with the next attempt.
//! Not here: deciding (`policy`), reading logs.

pub mod compact;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use crate::answering::policy::history::compact::Under;
use crate::answering::policy::sts::text::Text;
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::{Clock, CompactTime, SharedCompactTime};
use crate::base::next_hop::NextHop;
use crate::base::policy_at::PolicyAt;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::PolicyInForce;
use crate::metrics::Metrics;
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long after the last asking a decision still stands, in seconds: Postfix keeps a connection for less.
pub const ASKED: i64 = 20 * 60;

/// How soon a new period is in the store, while the disk keeps up.
pub const BEHIND: Duration = Duration::from_millis(20);

/// How far the stored last asking may lag behind, in seconds.
pub const STEP: i64 = 60;

/// How many periods are kept: 24 changes a day for 20,000 destinations. About 150 octets each, and their text.
pub const MAX_PERIODS: usize = 500_000;

/// How much text the periods hold, in octets, each counted as if no other had the same: a domain that changes the
/// longest of policies every minute fills it in a day.
pub const MAX_OCTETS: usize = 128 * 1024 * 1024;

/// Decisions that were looked up lately and are kept in the words of reports: sessions come in bursts to a few domains.
const SHOWN: usize = 256;

/// How often last askings are looked through.
const TICK: Duration = Duration::from_secs(1);

/// How often periods that no line can be about any more are looked for, in seconds.
const PRUNE: i64 = 3600;

/// How long a period is kept beyond the last line of every input, in seconds: sessions take hours, and a clock may be off.
const KEPT: i64 = 2 * 86_400;

/// One decision, as long as it was asked about without a pause.
#[derive(Debug)]
pub struct Period {
    /// The next hop in its one form.
    hop: Arc<str>,
    under: Under,
    from: CompactTime,
    last: SharedCompactTime,
    /// The last asking as it is in the store.
    written: SharedCompactTime,
    /// Whether it waits to be written.
    dirty: AtomicBool,
}

/// What stood at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The policy in force.
    pub in_force: PolicyInForce,
    /// Whether the destination had been asked about; where not, the policy is [`PolicyInForce::None`].
    pub asked: bool,
}

/// By domain. Most have one.
type Periods = HashMap<Arc<str>, SmallVec<[Arc<Period>; 1]>>;

/// All periods.
pub struct History {
    periods: RwLock<Periods>,
    held: Mutex<Held>,
    /// Periods to write, or to look at whether to.
    queue: Mutex<Vec<Arc<Period>>>,
    /// Keys to remove from the store.
    removed: Mutex<Vec<Vec<u8>>>,
    /// By the place of their period, which is kept beside them.
    shown: Mutex<HashMap<usize, (Arc<Period>, PolicyInForce)>>,
    wake: Notify,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
}

/// How much there is.
#[derive(Clone, Copy, Default)]
struct Held {
    periods: usize,
    octets: usize,
}

impl History {
    /// The periods that the store has. A record that cannot be read is left out.
    pub fn open(store: &dyn Store, clock: Clock, metrics: Metrics) -> Result<History, StoreError> {
        let mut periods = Periods::new();
        let mut held = Held::default();
        let mut before: Option<(Arc<str>, Arc<Period>)> = None;
        store.visit(Table::Decision, b"", &mut |key, value| {
            let Some((domain, mut period)) = restore(key, value, before.as_ref().map(|(name, _)| name)) else {
                metrics.add("decisions_unreadable", 1);
                return;
            };
            // Most periods of a domain are of one decision: keep its text once.
            if let Some((_, before)) = before.as_ref().filter(|(name, _)| *name == domain) {
                period.under.share(&before.under);
            }
            held.periods += 1;
            held.octets += period.under.size();
            let period = Arc::new(period);
            before = Some((Arc::clone(&domain), Arc::clone(&period)));
            periods.entry(domain).or_default().push(period);
        })?;
        periods.shrink_to_fit();
        Ok(History {
            periods: RwLock::new(periods),
            held: Mutex::new(held),
            queue: Mutex::default(),
            removed: Mutex::default(),
            shown: Mutex::default(),
            wake: Notify::new(),
            clock,
            metrics,
            throttle: Throttle::default(),
        })
    }

    /// The name as it is kept here if it is, so that it is kept once; makes a text that is kept here the same piece.
    pub fn share(&self, domain: &str, text: &mut Text) -> Arc<str> {
        let periods = self.periods.read();
        let Some((name, list)) = periods.get_key_value(domain) else { return domain.into() };
        for period in list.iter().rev() {
            if let Under::Sts { text: ours, .. } = &period.under
                && text.share(ours)
            {
                break;
            }
        }
        Arc::clone(name)
    }

    /// The name as it is kept here, if it is.
    pub fn name(&self, domain: &str) -> Option<Arc<str>> {
        self.periods.read().get_key_value(domain).map(|(name, _)| Arc::clone(name))
    }

    /// Notes that a decision was answered for a next hop at `now` (seconds); `name` is that of its domain. The period is
    /// for [`History::touch`].
    pub fn note(&self, hop: &NextHop, name: &Arc<str>, now: i64, under: Under) -> Arc<Period> {
        let key = hop.key();
        let mut periods = self.periods.write();
        let known = periods.get(&**name);
        let latest = known.and_then(|list| list.iter().rev().find(|p| *p.hop == *key)).map(Arc::clone);
        let mut under = under;
        if let Some(latest) = latest.filter(|latest| latest.under == under) {
            if self.touch(&latest, now) {
                return latest;
            }
            under = latest.under.clone();
        }
        let hop = if *key == **name { Arc::clone(name) } else { key.into() };
        let period = Arc::new(Period {
            hop,
            from: CompactTime::from_seconds(now),
            last: SharedCompactTime::from_seconds(now),
            dirty: AtomicBool::new(true),
            written: SharedCompactTime::from_seconds(0),
            under,
        });
        periods.entry(Arc::clone(name)).or_default().push(Arc::clone(&period));
        let mut held = self.held.lock();
        held.periods += 1;
        held.octets += period.under.size();
        if held.periods > MAX_PERIODS || held.octets > MAX_OCTETS {
            let cutoff = oldest(&periods, held.periods / 20);
            let dropped =
                self.remove(&mut held, &mut periods, |p| p.last.seconds() <= cutoff && !Arc::ptr_eq(p, &period));
            self.metrics.add("decisions_dropped", dropped as u64);
        }
        drop(held);
        drop(periods);
        self.queue.lock().push(Arc::clone(&period));
        self.wake.notify_one();
        period
    }

    /// Notes that the decision of a period was answered again. False where the pause was too long: the decision is to
    /// be noted anew. Costs no more than a comparison when called again within the second.
    pub fn touch(&self, period: &Arc<Period>, now: i64) -> bool {
        let last = period.last.seconds();
        if now <= last {
            // A clock that was set back: the period stands as it is.
            return last - now < ASKED;
        }
        if now - last >= ASKED {
            return false;
        }
        period.last.advance_to(now);
        if !period.dirty.swap(true, Ordering::Relaxed) {
            self.queue.lock().push(Arc::clone(period));
        }
        true
    }

    /// The policy in force for a destination at a moment (seconds): the latest decision that had been asked about at
    /// most [`ASKED`] before. Decisions for the domain itself go before those for it with a port or in brackets.
    pub fn at(&self, domain: &str, seconds: i64) -> Lookup {
        let periods = self.periods.read();
        let stands = |p: &&Arc<Period>| p.from.seconds() <= seconds && seconds <= p.last.seconds() + ASKED;
        let found = periods
            .get(domain)
            .and_then(|list| list.iter().filter(stands).max_by_key(|p| (*p.hop == *domain, p.from)))
            .map(Arc::clone);
        drop(periods);
        match found {
            Some(period) => Lookup { in_force: self.show(domain, period), asked: true },
            None => Lookup { in_force: PolicyInForce::None, asked: false },
        }
    }

    /// What a period stands for, in the words of reports.
    fn show(&self, domain: &str, period: Arc<Period>) -> PolicyInForce {
        let place = Arc::as_ptr(&period).addr();
        let mut shown = self.shown.lock();
        if let Some((_, in_force)) = shown.get(&place) {
            return in_force.clone();
        }
        let in_force = period.under.in_force(domain);
        if shown.len() >= SHOWN {
            shown.clear();
        }
        shown.insert(place, (period, in_force.clone()));
        in_force
    }

    /// Forgets what ended before a moment (seconds) that every input has been read past.
    fn prune_before(&self, seconds: i64) {
        let mut periods = self.periods.write();
        let past = |p: &Arc<Period>| p.last.seconds() + ASKED < seconds;
        let removed = self.remove(&mut self.held.lock(), &mut periods, past);
        // What waits to be written would come back.
        self.queue.lock().retain(|period| !past(period));
        drop(periods);
        if removed > 0 {
            self.wake.notify_one();
        }
    }

    /// How many periods are kept.
    pub fn len(&self) -> usize {
        self.held.lock().periods
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
                () = wait_for_shutdown(&mut shutdown) => break,
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
        let mut removed = std::mem::take(&mut *self.removed.lock());
        let mut queue = std::mem::take(&mut *self.queue.lock());
        // One that is asked about often waits for its step. One that is not any more is written and leaves the queue.
        queue.retain(|period| {
            let (last, written) = (period.last.seconds(), period.written.seconds());
            let waits = last < written.saturating_add(step) && now < last.saturating_add(step);
            if waits {
                self.queue.lock().push(Arc::clone(period));
            }
            !waits
        });
        while !queue.is_empty() || !removed.is_empty() {
            let gone = removed.split_off(removed.len().saturating_sub(MAX_BATCH_RECORDS));
            let (mut batch, mut writing) = (Batch::default(), Vec::new());
            batch.set.extend(gone.iter().map(|key| (Table::Decision, key.clone(), None)));
            for period in queue.split_off(queue.len().saturating_sub(MAX_BATCH_RECORDS)) {
                period.dirty.store(false, Ordering::Relaxed);
                let last = period.last.seconds();
                batch.set.push((Table::Decision, period.stored_key(), Some(period.stored(last))));
                writing.push((period, last));
            }
            let to = Arc::clone(store);
            let error = match tokio::task::spawn_blocking(move || to.write(batch)).await {
                Ok(Ok(())) => {
                    writing.iter().for_each(|(period, last)| period.written.set(*last));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.removed.lock().extend(gone.into_iter().chain(removed));
            let again = writing.into_iter().map(|(period, _)| period);
            let again = again.filter(|period| !period.dirty.swap(true, Ordering::Relaxed)).chain(queue);
            self.queue.lock().extend(again);
            if self.throttle.permits("store", self.clock.seconds()) {
                let line =
                    format!("store: cannot write the history of decisions: {error}; it is kept in memory until it can");
                self.metrics.log_error(self.clock, line);
            }
            return;
        }
    }

    fn remove(&self, held: &mut Held, periods: &mut Periods, gone: impl Fn(&Arc<Period>) -> bool) -> usize {
        let mut removed = self.removed.lock();
        let before = removed.len();
        periods.retain(|_, list| {
            list.retain(|period| {
                let goes = gone(period);
                if goes {
                    removed.push(period.stored_key());
                    held.octets = held.octets.saturating_sub(period.under.size());
                }
                !goes
            });
            !list.is_empty()
        });
        let gone = removed.len() - before;
        held.periods -= gone;
        gone
    }
}

impl PolicyAt for Arc<History> {
    fn at(&self, domain: &str, seconds: i64) -> Option<PolicyInForce> {
        let found = History::at(self, domain, seconds);
        found.asked.then_some(found.in_force)
    }
}

impl Period {
    /// What stood.
    pub fn under(&self) -> &Under {
        &self.under
    }

    /// `DOMAIN NUL FROM HOP`, the moment in four octets; the hop is left out where it is the domain.
    fn stored_key(&self) -> Vec<u8> {
        let domain = NextHop::parse(self.hop.as_bytes()).map_or_else(|| self.hop.to_string(), |hop| hop.domain);
        let from = u32::try_from(self.from.seconds()).unwrap_or(u32::MAX).to_be_bytes();
        let hop = if *self.hop == *domain { "" } else { &self.hop };
        [domain.as_bytes(), &[0], &from, hop.as_bytes()].concat()
    }

    /// The last asking, in four octets, and what stood.
    fn stored(&self, last: i64) -> Vec<u8> {
        let last = u32::try_from(last.max(0)).unwrap_or(u32::MAX).to_be_bytes();
        self.under.encode(last.to_vec())
    }
}

/// The domain and a period. `before` is the name of the record before, which is mostly the same.
fn restore(key: &[u8], value: &[u8], before: Option<&Arc<str>>) -> Option<(Arc<str>, Period)> {
    let end = key.iter().position(|octet| *octet == 0)?;
    let (domain, rest) = (std::str::from_utf8(&key[..end]).ok()?, &key[end + 1..]);
    let domain = before.filter(|before| ***before == *domain).map_or_else(|| domain.into(), Arc::clone);
    let (from, hop) = rest.split_first_chunk()?;
    let (last, under) = value.split_first_chunk()?;
    let seconds = |octets: &[u8; 4]| i64::from(u32::from_be_bytes(*octets));
    let hop = std::str::from_utf8(hop).ok()?;
    let period = Period {
        hop: if hop.is_empty() { Arc::clone(&domain) } else { hop.into() },
        under: Under::decode(under)?,
        from: CompactTime::from_seconds(seconds(from)),
        last: SharedCompactTime::from_seconds(seconds(last)),
        written: SharedCompactTime::from_seconds(seconds(last)),
        dirty: AtomicBool::new(false),
    };
    Some((domain, period))
}

/// The last asking of the `nth` period from the past.
fn oldest(periods: &Periods, nth: usize) -> i64 {
    let mut last: Vec<i64> = periods.values().flatten().map(|p| p.last.seconds()).collect();
    let nth = nth.min(last.len().saturating_sub(1));
    *last.select_nth_unstable(nth).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::Mode;
    use crate::store::embedded::EmbeddedStore;

    fn sts(mode: Mode) -> Under {
        let word = if mode == Mode::Enforce { "mode: enforce" } else { "mode: testing" };
        let lines = ["version: STSv1", word, "mx: mx.example.com", "max_age: 86400"];
        Under::Sts { mode, text: Text::of("example.com", &lines), failure: None }
    }

    fn note(history: &History, key: &str, now: i64, under: &Under) -> Arc<Period> {
        let hop = NextHop::parse(key.as_bytes()).unwrap();
        let name = hop.domain.as_str().into();
        history.note(&hop, &name, now, under.clone())
    }

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store;
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
        let first = note(&history, "example.com", 1000, &old);
        assert!(Arc::ptr_eq(&first, &note(&history, "example.com", 1000 + ASKED - 1, &old)));
        note(&history, "example.com", 2500, &new);
        let at = |t| history.at("example.com", t);
        assert!(!at(999).asked);
        assert_eq!(at(1000), Lookup { in_force: old.in_force("example.com"), asked: true });
        assert_eq!(at(2499).in_force, old.in_force("example.com"));
        assert_eq!(at(2500).in_force, new.in_force("example.com"));
        assert!(at(2500 + ASKED).asked);
        assert!(!at(2500 + ASKED + 1).asked);
        // The same decision again after a pause is a period of its own.
        assert!(!history.touch(&first, 9000));
        note(&history, "example.com", 9000, &new);
        assert!(!at(8999).asked && at(9000).asked);
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn the_domain_itself_goes_before_its_other_next_hops() {
        let history = empty();
        note(&history, "example.com", 1000, &sts(Mode::Enforce));
        note(&history, "example.com:587", 1001, &Under::None);
        assert_eq!(history.at("example.com", 1002).in_force, sts(Mode::Enforce).in_force("example.com"));
        let history = empty();
        note(&history, "[example.com]:587", 1001, &sts(Mode::Testing));
        assert_eq!(history.at("example.com", 1002).in_force, sts(Mode::Testing).in_force("example.com"));
    }

    #[test]
    fn a_change_within_a_second_is_the_later_one() {
        let history = empty();
        note(&history, "example.com", 1000, &sts(Mode::Testing));
        note(&history, "example.com", 1000, &sts(Mode::Enforce));
        assert_eq!(history.at("example.com", 1000).in_force, sts(Mode::Enforce).in_force("example.com"));
    }

    #[tokio::test]
    async fn it_is_kept_and_pruned_in_the_store() {
        let (_folder, store) = store();
        let clock = Clock::starting_at(2000);
        let open = || Arc::new(History::open(&*store, clock, Metrics::default()).unwrap());
        let history = open();
        note(&history, "example.com", 1000, &sts(Mode::Testing));
        let period = note(&history, "example.com", 2000, &sts(Mode::Enforce));
        note(&history, "[example.net]", 3000, &Under::None);
        history.write(&store, STEP).await;
        assert!(history.touch(&period, 2000 + STEP - 1));
        history.write(&store, STEP).await;
        assert!(!History::at(&open(), "example.com", 2000 + STEP - 1 + ASKED).asked, "not worth a write yet");
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
        let period = note(&history, "example.com", 1000, &sts(Mode::Testing));
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
            metrics.update_input("maillog", |input| input.newest = Some(newest));
            let history = Arc::new(History::open(&*store, clock, metrics).unwrap());
            note(&history, "example.com", 2000, &sts(Mode::Testing));
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
            tokio::time::sleep(BEHIND * 10).await;
            stop.send(true).unwrap();
            task.await.unwrap();
            assert_eq!(history.len(), kept);
            assert_eq!(store.scan(Table::Decision, b"").unwrap().len(), kept);
        }
    }

    #[tokio::test]
    async fn the_task_writes_at_once_and_at_the_end() {
        let (_folder, store) = store();
        let history = Arc::new(History::open(&*store, Clock::starting_at(1000), Metrics::default()).unwrap());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
        let period = note(&history, "example.com", 1000, &sts(Mode::Testing));
        while store.scan(Table::Decision, b"").unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        history.touch(&period, 1002);
        stop.send(true).unwrap();
        task.await.unwrap();
        let again = History::open(&*store, Clock::default(), Metrics::default()).unwrap();
        assert!(again.at("example.com", 1002 + ASKED).asked);
    }
}
