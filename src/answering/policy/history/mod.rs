//! Which policy was in force for a destination at a time in the past: what sessions in a log were held to.
//!
//! Takes: a note of each decision that was answered. Gives: the decision that stood at a moment.
//! One decision that is asked about again and again is one [`Period`], from its first to its last asking; a pause of
//! [`ANSWER_LIFETIME`] or another decision begins a new one. Kept in the store: a new period within [`WRITE_DELAY`],
//! its last asking within [`MAX_STORED_LAG`] seconds. Forgotten two days after every input has been read past it, once
//! the clock has run evenly for hours.
//! Limits: [`MAX_PERIODS`], [`MAX_TEXT_BYTES`] of text; beyond, the longest past go first and are counted
//! (`decisions_dropped`).
//! When it fails: what cannot be written stays in memory and is written with the next attempt.
//! Not here: deciding (`policy`), reading logs.

pub mod compact;
mod known_mx_hosts;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use tokio::sync::{Notify, watch};

use crate::answering::policy::history::compact::StoredPolicy;
use crate::answering::policy::history::known_mx_hosts::KnownMxHosts;
use crate::answering::policy::sts::text::PolicyText;
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::{Clock, CompactTime, SharedCompactTime, SteadyClock};
use crate::base::next_hop::NextHop;
use crate::base::policy_at::{HostEvidence, OtherNextHops, PolicyAt};
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::PolicyInForce;
use crate::config::PostfixLevel;
use crate::metrics::Metrics;
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long an answer counts as the policy in force after it was last asked for, in seconds: Postfix keeps a connection
/// for less.
pub const ANSWER_LIFETIME: i64 = 20 * 60;

/// How soon a new period is in the store, while the disk keeps up.
pub const WRITE_DELAY: Duration = Duration::from_millis(20);

/// How far the stored time of the last request may lag behind, in seconds.
pub const MAX_STORED_LAG: i64 = 60;

/// How many periods are kept: 24 changes a day for 20,000 destinations. About 150 octets each, and their text.
pub const MAX_PERIODS: usize = 500_000;

/// How much text the periods hold, in octets, each counted as if no other had the same: a domain that changes the
/// longest of policies every minute fills it in a day.
pub const MAX_TEXT_BYTES: usize = 128 * 1024 * 1024;

/// How many recently used policies are cached in the form of reports: sessions come in bursts to a few domains.
const MAX_RENDERED: usize = 256;

/// How often the write queue is checked.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// How often periods that no log line can refer to any more are removed, in seconds.
const PRUNE_INTERVAL: i64 = 3600;

/// How long a period is kept beyond the last line of every input, in seconds: sessions take hours, and a clock may be
/// off.
const RETENTION: i64 = 2 * 86_400;

/// One decision, as long as it was asked about without a pause.
#[derive(Debug)]
pub struct Period {
    /// The next hop in its one form.
    hop: Arc<str>,
    /// The own level of the services that asked, where it is not that of main.cf and makes a difference.
    level: Option<PostfixLevel>,
    policy: StoredPolicy,
    from: CompactTime,
    last_asked: SharedCompactTime,
    /// The last asking as it is in the store.
    stored_last_asked: SharedCompactTime,
    /// Whether it waits to be written.
    dirty: AtomicBool,
}

/// The policy in force at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLookup {
    /// The policy in force.
    pub in_force: PolicyInForce,
    /// Whether the destination had been asked about; where not, the policy is [`PolicyInForce::None`].
    pub asked: bool,
}

/// By domain. Most have one.
type Periods = HashMap<Arc<str>, SmallVec<[Arc<Period>; 1]>>;

/// All periods.
pub struct PolicyHistory {
    periods: RwLock<Periods>,
    totals: Mutex<HistoryTotals>,
    /// Periods to write, or to look at whether to.
    write_queue: Mutex<Vec<Arc<Period>>>,
    /// Keys to remove from the store.
    removed_keys: Mutex<Vec<Vec<u8>>>,
    /// By the address of their period, which is stored with them so that the address stays taken.
    rendered: Mutex<HashMap<usize, (Arc<Period>, PolicyInForce)>>,
    mx_hosts: KnownMxHosts,
    wake: Notify,
    clock: Clock,
    steady: SteadyClock,
    metrics: Metrics,
    throttle: Throttle,
}

/// How many periods there are and how much text they hold.
#[derive(Clone, Copy, Default)]
struct HistoryTotals {
    periods: usize,
    bytes: usize,
}

impl PolicyHistory {
    /// The periods that the store has.
    pub fn open(store: &dyn Store, clock: Clock, metrics: Metrics) -> Result<PolicyHistory, StoreError> {
        let history = PolicyHistory::new(clock, metrics);
        history.load(store)?;
        Ok(history)
    }

    /// No periods yet: [`PolicyHistory::load`] adds those that the store has.
    pub fn new(clock: Clock, metrics: Metrics) -> PolicyHistory {
        PolicyHistory {
            periods: RwLock::default(),
            totals: Mutex::default(),
            write_queue: Mutex::default(),
            removed_keys: Mutex::default(),
            rendered: Mutex::default(),
            mx_hosts: KnownMxHosts::default(),
            wake: Notify::new(),
            clock,
            steady: SteadyClock::new(clock),
            metrics,
            throttle: Throttle::default(),
        }
    }

    /// Adds the periods that the store has and that are not known yet. A record that cannot be read is left out.
    pub fn load(&self, store: &dyn Store) -> Result<(), StoreError> {
        let mut stored = Periods::new();
        let mut totals = HistoryTotals::default();
        let mut before: Option<(Arc<str>, Arc<Period>)> = None;
        store.visit(Table::Decision, b"", &mut |key, value| {
            let Some((domain, mut period)) = decode_record(key, value, before.as_ref().map(|(name, _)| name)) else {
                self.metrics.add("decisions_unreadable", 1);
                return;
            };
            // Most periods of a domain are of one decision: keep its text once.
            if let Some((_, before)) = before.as_ref().filter(|(name, _)| *name == domain) {
                period.policy.share_text_with(&before.policy);
            }
            totals.periods += 1;
            totals.bytes += period.policy.size();
            let period = Arc::new(period);
            before = Some((Arc::clone(&domain), Arc::clone(&period)));
            stored.entry(domain).or_default().push(period);
        })?;
        let mut periods = self.periods.write();
        if periods.is_empty() {
            stored.shrink_to_fit();
            (*periods, *self.totals.lock()) = (stored, totals);
        } else {
            self.add_stored(&mut periods, stored);
        }
        Ok(())
    }

    /// Adds periods of the store to those that have begun without it.
    fn add_stored(&self, periods: &mut Periods, stored: Periods) {
        let mut totals = self.totals.lock();
        let removed: HashSet<Vec<u8>> = self.removed_keys.lock().iter().cloned().collect();
        for (domain, list) in stored {
            let known = periods.entry(domain).or_default();
            for period in list {
                let same = |other: &Arc<Period>| {
                    other.from == period.from && other.hop == period.hop && other.level == period.level
                };
                if !known.iter().any(same) && !removed.contains(&period.stored_key()) {
                    totals.periods += 1;
                    totals.bytes += period.policy.size();
                    known.push(period);
                }
            }
            known.sort_by_key(|period| period.from);
        }
    }

    /// Has every period written anew, because the store has lost some.
    pub fn write_again(&self) {
        for period in self.periods.read().values().flatten() {
            period.stored_last_asked.set(0);
            if !period.dirty.swap(true, Ordering::Relaxed) {
                self.write_queue.lock().push(Arc::clone(period));
            }
        }
        self.wake.notify_one();
    }

    /// The name as it is kept here if it is, so that it is kept once; makes a text that is kept here the same piece.
    pub fn share_text(&self, domain: &str, text: &mut PolicyText) -> Arc<str> {
        let periods = self.periods.read();
        let Some((name, list)) = periods.get_key_value(domain) else { return domain.into() };
        for period in list.iter().rev() {
            if let StoredPolicy::Sts { text: ours, .. } = &period.policy
                && text.share_with(ours)
            {
                break;
            }
        }
        Arc::clone(name)
    }

    /// The name as it is kept here, if it is.
    pub fn interned_name(&self, domain: &str) -> Option<Arc<str>> {
        self.periods.read().get_key_value(domain).map(|(name, _)| Arc::clone(name))
    }

    /// Notes that a decision was answered for a next hop at `now` (seconds); `name` is that of its domain. The period
    /// is for [`PolicyHistory::touch`].
    pub fn record_answer(&self, hop: &NextHop, name: &Arc<str>, now: i64, policy: StoredPolicy) -> Arc<Period> {
        self.record_at(None, hop, name, now, policy)
    }

    /// The same for services whose own level is not that of main.cf, and whose sessions are held to another policy for it.
    /// Costs little when called again within the second.
    pub fn record_answer_at(
        &self,
        level: PostfixLevel,
        hop: &NextHop,
        name: &Arc<str>,
        now: i64,
        policy: StoredPolicy,
    ) {
        let latest = latest_period(&self.periods.read(), Some(level), &hop.key(), name);
        if !latest.is_some_and(|latest| latest.policy == policy && self.touch(&latest, now)) {
            self.record_at(Some(level), hop, name, now, policy);
        }
    }

    fn record_at(
        &self,
        level: Option<PostfixLevel>,
        hop: &NextHop,
        name: &Arc<str>,
        now: i64,
        policy: StoredPolicy,
    ) -> Arc<Period> {
        let key = hop.key();
        let mut periods = self.periods.write();
        let latest = latest_period(&periods, level, &key, name);
        let mut policy = policy;
        if let Some(latest) = latest.filter(|latest| latest.policy == policy) {
            if self.touch(&latest, now) {
                return latest;
            }
            policy = latest.policy.clone();
        }
        let hop = if *key == **name { Arc::clone(name) } else { key.into() };
        let period = Arc::new(Period {
            hop,
            level,
            from: CompactTime::from_seconds(now),
            last_asked: SharedCompactTime::from_seconds(now),
            dirty: AtomicBool::new(true),
            stored_last_asked: SharedCompactTime::from_seconds(0),
            policy,
        });
        periods.entry(Arc::clone(name)).or_default().push(Arc::clone(&period));
        let mut totals = self.totals.lock();
        totals.periods += 1;
        totals.bytes += period.policy.size();
        if totals.periods > MAX_PERIODS || totals.bytes > MAX_TEXT_BYTES {
            let cutoff = nth_last_asked(&periods, totals.periods / 20);
            let dropped = self.remove_where(&mut totals, &mut periods, |p| {
                p.last_asked.seconds() <= cutoff && !Arc::ptr_eq(p, &period)
            });
            self.metrics.add("decisions_dropped", dropped as u64);
        }
        drop(totals);
        drop(periods);
        self.write_queue.lock().push(Arc::clone(&period));
        self.wake.notify_one();
        period
    }

    /// Notes that the decision of a period was answered again. False where the pause was too long: the decision is to
    /// be noted anew. Costs no more than a comparison when called again within the second.
    pub fn touch(&self, period: &Arc<Period>, now: i64) -> bool {
        let last = period.last_asked.seconds();
        if now <= last {
            // A clock that was set back: the period stands as it is.
            return last - now < ANSWER_LIFETIME;
        }
        if now - last >= ANSWER_LIFETIME {
            return false;
        }
        period.last_asked.advance_to(now);
        if !period.dirty.swap(true, Ordering::Relaxed) {
            self.write_queue.lock().push(Arc::clone(period));
        }
        true
    }

    /// The policy in force for a destination at a moment (seconds): the latest decision that had been asked about at
    /// most [`ANSWER_LIFETIME`] before. Decisions for the domain itself go before those for it with a port or in
    /// brackets. Of services with different levels it is the one that asked last: the MTA asks just before a session.
    pub fn policy_at(&self, domain: &str, seconds: i64) -> PolicyLookup {
        let periods = self.periods.read();
        let found = periods
            .get(domain)
            .and_then(|list| {
                let asked = |p: &Arc<Period>| p.last_asked.seconds().min(seconds);
                let stands = list.iter().filter(|period| period.stands_at(seconds));
                stands.max_by_key(|p| (*p.hop == *domain, asked(p), p.level.is_some(), p.from))
            })
            .map(Arc::clone);
        drop(periods);
        match found {
            Some(period) => PolicyLookup { in_force: self.render(domain, period), asked: true },
            None => PolicyLookup { in_force: PolicyInForce::None, asked: false },
        }
    }

    /// Notes the MX hosts of a domain as a look-up at `now` (seconds) has found them.
    pub fn note_mx_hosts<'a>(&self, domain: &Arc<str>, hosts: impl Iterator<Item = &'a str>, now: i64) {
        self.mx_hosts.note(domain, hosts, now);
    }

    /// What is known at a moment (seconds) of the next hop by which mail for a domain came to a host.
    fn evidence_at(&self, domain: &str, host: &str, seconds: i64) -> HostEvidence {
        let candidates = self.mx_hosts.next_hops(host);
        let periods = self.periods.read();
        let asked = |name: &str, is_wanted: &dyn Fn(&Period) -> bool| {
            let stands = |p: &&Arc<Period>| p.stands_at(seconds) && is_wanted(p);
            periods.get(name).is_some_and(|list| list.iter().any(|period| stands(&period)))
        };
        // Any of those that are not known by name may have been asked.
        let mut others = if candidates.more > 0 { OtherNextHops::Several } else { OtherNextHops::None };
        for candidate in candidates.known.into_iter().filter(|name| **name != *domain && asked(name, &|_| true)) {
            others = match others {
                OtherNextHops::None => OtherNextHops::One(candidate),
                OtherNextHops::One(_) | OtherNextHops::Several => OtherNextHops::Several,
            };
        }
        HostEvidence {
            domain_asked: asked(domain, &|_| true),
            is_mx_host: self.mx_hosts.contains(domain, host, seconds),
            // The host as a domain of its own is no sign: its MX hosts are.
            host_asked: host != domain && asked(host, &|period| *period.hop != *host),
            others,
        }
    }

    /// The policy of a period in the form of reports.
    fn render(&self, domain: &str, period: Arc<Period>) -> PolicyInForce {
        let place = Arc::as_ptr(&period).addr();
        let mut shown = self.rendered.lock();
        if let Some((_, in_force)) = shown.get(&place) {
            return in_force.clone();
        }
        let in_force = period.policy.in_force(domain);
        if shown.len() >= MAX_RENDERED {
            shown.clear();
        }
        shown.insert(place, (period, in_force.clone()));
        in_force
    }

    /// Forgets what ended before a moment (seconds) that every input has been read past.
    fn prune_before(&self, seconds: i64) {
        let mut periods = self.periods.write();
        let past = |p: &Arc<Period>| p.last_asked.seconds() + ANSWER_LIFETIME < seconds;
        let removed = self.remove_where(&mut self.totals.lock(), &mut periods, past);
        // What waits to be written would come back.
        self.write_queue.lock().retain(|period| !past(period));
        drop(periods);
        if removed > 0 {
            self.wake.notify_one();
        }
    }

    /// How many periods are kept.
    pub fn len(&self) -> usize {
        self.totals.lock().periods
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes behind until `shutdown` turns true, and then what is left.
    pub async fn run(self: Arc<Self>, store: Arc<dyn Store>, mut shutdown: watch::Receiver<bool>) {
        let mut tick = tokio::time::interval(WRITE_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pruned = None;
        loop {
            tokio::select! {
                () = self.wake.notified() => tokio::time::sleep(WRITE_DELAY).await,
                _ = tick.tick() => {}
                () = wait_for_shutdown(&mut shutdown) => break,
            }
            let now = self.clock.seconds();
            let recently = |pruned: i64| (0..PRUNE_INTERVAL).contains(&(now - pruned));
            if self.steady.permits_expiry() && !pruned.is_some_and(recently) {
                pruned = Some(now);
                if let Some(read) = self.metrics.read_until(now) {
                    self.prune_before(read - RETENTION);
                }
            }
            self.write(&store, MAX_STORED_LAG).await;
        }
        self.write(&store, 1).await;
    }

    /// Writes what is new, what was asked about `step` seconds or more after what is stored, and what was last asked
    /// about so long ago.
    async fn write(&self, store: &Arc<dyn Store>, step: i64) {
        let now = self.clock.seconds();
        let mut removed = std::mem::take(&mut *self.removed_keys.lock());
        let mut queue = std::mem::take(&mut *self.write_queue.lock());
        // One that is asked about often waits for its step. One that is not any more is written and leaves the queue.
        queue.retain(|period| {
            let (last, written) = (period.last_asked.seconds(), period.stored_last_asked.seconds());
            let waits = last < written.saturating_add(step) && now < last.saturating_add(step);
            if waits {
                self.write_queue.lock().push(Arc::clone(period));
            }
            !waits
        });
        while !queue.is_empty() || !removed.is_empty() {
            let gone = removed.split_off(removed.len().saturating_sub(MAX_BATCH_RECORDS));
            let (mut batch, mut writing) = (Batch::default(), Vec::new());
            batch.set.extend(gone.iter().map(|key| (Table::Decision, key.clone(), None)));
            for period in queue.split_off(queue.len().saturating_sub(MAX_BATCH_RECORDS)) {
                period.dirty.store(false, Ordering::Relaxed);
                let last = period.last_asked.seconds();
                batch.set.push((Table::Decision, period.stored_key(), Some(period.encode(last))));
                writing.push((period, last));
            }
            let to = Arc::clone(store);
            let error = match tokio::task::spawn_blocking(move || to.write(batch)).await {
                Ok(Ok(())) => {
                    writing.iter().for_each(|(period, last)| period.stored_last_asked.set(*last));
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.removed_keys.lock().extend(gone.into_iter().chain(removed));
            let again = writing.into_iter().map(|(period, _)| period);
            let again = again.filter(|period| !period.dirty.swap(true, Ordering::Relaxed)).chain(queue);
            self.write_queue.lock().extend(again);
            if self.throttle.permits("store", self.clock.seconds()) {
                let line =
                    format!("store: cannot write the history of decisions: {error}; it is kept in memory until it can");
                self.metrics.log_error(self.clock, line);
            }
            return;
        }
    }

    fn remove_where(
        &self,
        totals: &mut HistoryTotals,
        periods: &mut Periods,
        gone: impl Fn(&Arc<Period>) -> bool,
    ) -> usize {
        let mut removed = self.removed_keys.lock();
        let before = removed.len();
        periods.retain(|_, list| {
            list.retain(|period| {
                let goes = gone(period);
                if goes {
                    removed.push(period.stored_key());
                    totals.bytes = totals.bytes.saturating_sub(period.policy.size());
                }
                !goes
            });
            !list.is_empty()
        });
        let gone = removed.len() - before;
        totals.periods -= gone;
        gone
    }
}

impl PolicyAt for Arc<PolicyHistory> {
    fn at(&self, domain: &str, seconds: i64) -> Option<PolicyInForce> {
        let found = PolicyHistory::policy_at(self, domain, seconds);
        found.asked.then_some(found.in_force)
    }

    fn host_evidence(&self, domain: &str, host: &str, seconds: i64) -> HostEvidence {
        self.evidence_at(domain, host, seconds)
    }
}

impl Period {
    /// The policy in force during the period.
    pub fn policy(&self) -> &StoredPolicy {
        &self.policy
    }

    /// Whether its decision stands at a moment (seconds).
    fn stands_at(&self, seconds: i64) -> bool {
        self.from.seconds() <= seconds && seconds <= self.last_asked.seconds() + ANSWER_LIFETIME
    }

    /// `DOMAIN NUL FROM HOP`, the moment in four octets; the hop is left out where it is the domain. Behind it is `@LEVEL` of
    /// services with a level of their own.
    fn stored_key(&self) -> Vec<u8> {
        let domain = NextHop::parse(self.hop.as_bytes()).map_or_else(|| self.hop.to_string(), |hop| hop.domain);
        let from = u32::try_from(self.from.seconds()).unwrap_or(u32::MAX).to_be_bytes();
        let hop = if *self.hop == *domain { "" } else { &self.hop };
        let level = self.level.map_or_else(String::new, |level| format!("@{}", level.name()));
        [domain.as_bytes(), &[0], &from, hop.as_bytes(), level.as_bytes()].concat()
    }

    /// The last asking, in four octets, and what stood.
    fn encode(&self, last: i64) -> Vec<u8> {
        let last = u32::try_from(last.max(0)).unwrap_or(u32::MAX).to_be_bytes();
        self.policy.encode(last.to_vec())
    }
}

/// The period that began last, for a next hop of a domain and services of this level.
fn latest_period(periods: &Periods, level: Option<PostfixLevel>, hop: &str, domain: &str) -> Option<Arc<Period>> {
    let list = periods.get(domain)?;
    list.iter().rev().find(|period| period.level == level && *period.hop == *hop).map(Arc::clone)
}

/// The domain and a period. `before` is the name of the record before, which is mostly the same.
fn decode_record(key: &[u8], value: &[u8], before: Option<&Arc<str>>) -> Option<(Arc<str>, Period)> {
    let end = key.iter().position(|octet| *octet == 0)?;
    let (domain, rest) = (std::str::from_utf8(&key[..end]).ok()?, &key[end + 1..]);
    let domain = before.filter(|before| ***before == *domain).map_or_else(|| domain.into(), Arc::clone);
    let (from, hop) = rest.split_first_chunk()?;
    let (last, policy) = value.split_first_chunk()?;
    let seconds = |bytes: &[u8; 4]| i64::from(u32::from_be_bytes(*bytes));
    let hop = std::str::from_utf8(hop).ok()?;
    let (hop, level) = hop.split_once('@').map_or((hop, None), |(hop, level)| (hop, Some(level)));
    let period = Period {
        level: level.map(|level| PostfixLevel::from_name(level).unwrap_or(PostfixLevel::Unknown)),
        hop: if hop.is_empty() { Arc::clone(&domain) } else { hop.into() },
        policy: StoredPolicy::decode(policy)?,
        from: CompactTime::from_seconds(seconds(from)),
        last_asked: SharedCompactTime::from_seconds(seconds(last)),
        stored_last_asked: SharedCompactTime::from_seconds(seconds(last)),
        dirty: AtomicBool::new(false),
    };
    Some((domain, period))
}

/// The last asking of the `nth` period from the past.
fn nth_last_asked(periods: &Periods, nth: usize) -> i64 {
    let mut last: Vec<i64> = periods.values().flatten().map(|p| p.last_asked.seconds()).collect();
    let nth = nth.min(last.len().saturating_sub(1));
    *last.select_nth_unstable(nth).1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::Mode;
    use crate::store::embedded::EmbeddedStore;

    fn sts(mode: Mode) -> StoredPolicy {
        let word = if mode == Mode::Enforce { "mode: enforce" } else { "mode: testing" };
        let lines = ["version: STSv1", word, "mx: mx.example.com", "max_age: 86400"];
        StoredPolicy::Sts { mode, text: PolicyText::new("example.com", &lines), failure: None }
    }

    fn record(history: &PolicyHistory, key: &str, now: i64, policy: &StoredPolicy) -> Arc<Period> {
        let hop = NextHop::parse(key.as_bytes()).unwrap();
        let name = hop.domain.as_str().into();
        history.record_answer(&hop, &name, now, policy.clone())
    }

    fn store() -> (tempfile::TempDir, Arc<dyn Store>) {
        let folder = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store;
        (folder, Arc::new(store))
    }

    fn empty() -> PolicyHistory {
        PolicyHistory::open(&*store().1, Clock::default(), Metrics::default()).unwrap()
    }

    #[test]
    fn periods_grow_end_and_follow_each_other() {
        let history = empty();
        let (old, new) = (sts(Mode::Testing), sts(Mode::Enforce));
        assert!(!history.policy_at("example.com", 1000).asked);
        let first = record(&history, "example.com", 1000, &old);
        assert!(Arc::ptr_eq(&first, &record(&history, "example.com", 1000 + ANSWER_LIFETIME - 1, &old)));
        record(&history, "example.com", 2500, &new);
        let at = |t| history.policy_at("example.com", t);
        assert!(!at(999).asked);
        assert_eq!(at(1000), PolicyLookup { in_force: old.in_force("example.com"), asked: true });
        assert_eq!(at(2499).in_force, old.in_force("example.com"));
        assert_eq!(at(2500).in_force, new.in_force("example.com"));
        assert!(at(2500 + ANSWER_LIFETIME).asked);
        assert!(!at(2500 + ANSWER_LIFETIME + 1).asked);
        // The same decision again after a pause is a period of its own.
        assert!(!history.touch(&first, 9000));
        record(&history, "example.com", 9000, &new);
        assert!(!at(8999).asked && at(9000).asked);
        assert_eq!(history.len(), 3);
    }

    #[test]
    fn the_domain_itself_goes_before_its_other_next_hops() {
        let history = empty();
        record(&history, "example.com", 1000, &sts(Mode::Enforce));
        record(&history, "example.com:587", 1001, &StoredPolicy::None);
        assert_eq!(history.policy_at("example.com", 1002).in_force, sts(Mode::Enforce).in_force("example.com"));
        let history = empty();
        record(&history, "[example.com]:587", 1001, &sts(Mode::Testing));
        assert_eq!(history.policy_at("example.com", 1002).in_force, sts(Mode::Testing).in_force("example.com"));
    }

    #[test]
    fn a_host_of_more_next_hops_than_are_known_points_to_none_of_them() {
        let others = |domains: usize| {
            let history = empty();
            for n in 0..domains {
                history.note_mx_hosts(&format!("d{n}.example").into(), ["mx.provider.example"].into_iter(), 1000);
            }
            record(&history, "d1.example", 1000, &StoredPolicy::None);
            history.evidence_at("example.com", "mx.provider.example", 1000).others
        };
        assert_eq!(others(8), OtherNextHops::One("d1.example".into()));
        assert_eq!(others(9), OtherNextHops::Several);
    }

    #[test]
    fn of_services_with_different_levels_the_one_that_asked_last_counts() {
        let history = empty();
        let hop = NextHop::parse(b"example.com").unwrap();
        let name = hop.domain.as_str().into();
        let at_encrypt = |now| {
            history.record_answer_at(PostfixLevel::Encrypt, &hop, &name, now, StoredPolicy::None);
        };
        let main = record(&history, "example.com", 1000, &sts(Mode::Testing));
        at_encrypt(1000);
        at_encrypt(1100);
        assert!(history.touch(&main, 1200));
        at_encrypt(1300);
        let at = |t| history.policy_at("example.com", t).in_force;
        assert_eq!(history.len(), 2);
        assert_eq!(at(1299), at(1200));
        assert_eq!((at(1300), at(1400)), (PolicyInForce::None, PolicyInForce::None));
        assert!(history.touch(&main, 1500));
        assert_eq!(at(1500), sts(Mode::Testing).in_force("example.com"));
        // Both asked within a second: the order in which their decisions began says nothing.
        record(&history, "example.com", 1550, &sts(Mode::Enforce));
        at_encrypt(1550);
        assert_eq!(at(1550), PolicyInForce::None);
        // A service with another level of its own.
        history.record_answer_at(PostfixLevel::Secure, &hop, &name, 1600, sts(Mode::Enforce));
        assert_eq!(at(1600), sts(Mode::Enforce).in_force("example.com"));
        assert_eq!(history.len(), 4);
    }

    #[tokio::test]
    async fn the_level_of_a_service_is_kept_in_the_store() {
        let (_folder, store) = store();
        let clock = Clock::starting_at(2000);
        let history = PolicyHistory::open(&*store, clock, Metrics::default()).unwrap();
        let main = record(&history, "[example.com]:587", 1000, &sts(Mode::Testing));
        let hop = NextHop::parse(b"[example.com]:587").unwrap();
        let name = hop.domain.as_str().into();
        history.record_answer_at(PostfixLevel::DaneOnly, &hop, &name, 1000, StoredPolicy::None);
        assert!(history.touch(&main, 1001));
        history.write(&store, 1).await;
        let again = PolicyHistory::open(&*store, clock, Metrics::default()).unwrap();
        assert_eq!(again.len(), 2);
        for t in [1000, 1001, 1100] {
            assert_eq!(again.policy_at("example.com", t), history.policy_at("example.com", t), "{t}");
        }
        let latest = latest_period(&again.periods.read(), Some(PostfixLevel::DaneOnly), "[example.com]:587", &name);
        assert_eq!(latest.unwrap().policy, StoredPolicy::None);
    }

    #[test]
    fn a_change_within_a_second_is_the_later_one() {
        let history = empty();
        record(&history, "example.com", 1000, &sts(Mode::Testing));
        record(&history, "example.com", 1000, &sts(Mode::Enforce));
        assert_eq!(history.policy_at("example.com", 1000).in_force, sts(Mode::Enforce).in_force("example.com"));
    }

    #[tokio::test]
    async fn it_is_kept_and_pruned_in_the_store() {
        let (_folder, store) = store();
        let clock = Clock::starting_at(2000);
        let open = || Arc::new(PolicyHistory::open(&*store, clock, Metrics::default()).unwrap());
        let history = open();
        record(&history, "example.com", 1000, &sts(Mode::Testing));
        let period = record(&history, "example.com", 2000, &sts(Mode::Enforce));
        record(&history, "[example.net]", 3000, &StoredPolicy::None);
        history.write(&store, MAX_STORED_LAG).await;
        assert!(history.touch(&period, 2000 + MAX_STORED_LAG - 1));
        history.write(&store, MAX_STORED_LAG).await;
        assert!(
            !PolicyHistory::policy_at(&open(), "example.com", 2000 + MAX_STORED_LAG - 1 + ANSWER_LIFETIME).asked,
            "not worth a write yet"
        );
        assert!(history.touch(&period, 2000 + MAX_STORED_LAG));
        history.write(&store, MAX_STORED_LAG).await;
        let again = open();
        assert_eq!(again.len(), 3);
        for t in [999, 1000, 1999, 2000, 2000 + MAX_STORED_LAG + ANSWER_LIFETIME, 3500] {
            assert_eq!(again.at("example.com", t), history.at("example.com", t), "{t}");
            assert_eq!(again.at("example.net", t), history.at("example.net", t), "{t}");
        }
        again.prune_before(2000 + MAX_STORED_LAG + ANSWER_LIFETIME);
        again.write(&store, MAX_STORED_LAG).await;
        assert_eq!((again.len(), open().len()), (2, 2));
    }

    #[tokio::test]
    async fn a_last_asking_is_written_once_nobody_asks_any_more() {
        let (_folder, store) = store();
        let mut history = PolicyHistory::open(&*store, Clock::starting_at(1000), Metrics::default()).unwrap();
        let period = record(&history, "example.com", 1000, &sts(Mode::Testing));
        history.write(&store, MAX_STORED_LAG).await;
        history.touch(&period, 1003);
        let stored = || PolicyHistory::open(&*store, Clock::default(), Metrics::default()).unwrap();
        for (seconds, left, kept) in
            [(1003, 1, false), (1003 + MAX_STORED_LAG - 2, 1, false), (1003 + MAX_STORED_LAG, 0, true)]
        {
            history.clock = Clock::starting_at(seconds);
            history.write(&store, MAX_STORED_LAG).await;
            assert_eq!(history.write_queue.lock().len(), left, "{seconds}");
            assert_eq!(stored().policy_at("example.com", 1003 + ANSWER_LIFETIME).asked, kept, "{seconds}");
        }
    }

    #[tokio::test]
    async fn the_task_forgets_what_every_input_is_past() {
        let end = 2000 + ANSWER_LIFETIME + RETENTION;
        for (newest, steady, kept) in [(end, true, 1), (end + 1, true, 0), (end + 1, false, 1)] {
            let (_folder, store) = store();
            let (metrics, clock) = (Metrics::default(), Clock::starting_at(2000 + 2 * RETENTION));
            metrics.update_input("maillog", |input| input.newest = Some(newest));
            let mut history = PolicyHistory::open(&*store, clock, metrics).unwrap();
            if steady {
                history.steady = SteadyClock::long_steady(clock);
            }
            let history = Arc::new(history);
            record(&history, "example.com", 2000, &sts(Mode::Testing));
            let (stop, stopped) = watch::channel(false);
            let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
            tokio::time::sleep(WRITE_DELAY * 10).await;
            stop.send(true).unwrap();
            task.await.unwrap();
            assert_eq!(history.len(), kept);
            assert_eq!(store.scan(Table::Decision, b"").unwrap().len(), kept);
        }
    }

    #[tokio::test]
    async fn the_task_writes_at_once_and_at_the_end() {
        let (_folder, store) = store();
        let history = Arc::new(PolicyHistory::open(&*store, Clock::starting_at(1000), Metrics::default()).unwrap());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(Arc::clone(&history).run(Arc::clone(&store), stopped));
        let period = record(&history, "example.com", 1000, &sts(Mode::Testing));
        while store.scan(Table::Decision, b"").unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        history.touch(&period, 1002);
        stop.send(true).unwrap();
        task.await.unwrap();
        let again = PolicyHistory::open(&*store, Clock::default(), Metrics::default()).unwrap();
        assert!(again.policy_at("example.com", 1002 + ANSWER_LIFETIME).asked);
    }
}
