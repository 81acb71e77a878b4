//! The MTA-STS policies that are known, each from its fetch to its end (RFC 8461 §3.3, §5.1, §10.2).
//!
//! Takes: the name of a policy domain. Gives: its policy from memory, and flights that find out what is not known.
//! A policy serves until its `max_age` has run out, whatever DNS and HTTPS do in between; a record that is gone does
//! not end it, a document with `mode: none` does. The record is asked again when its TTL has run out, in the
//! background; a changed id fetches; a policy in use is fetched anew once a day. It is kept in the store, written
//! behind within [`BEHIND`].
//! Limits: of a document that is no policy, 8 KiB; `[policy] max_domains` domains, the least recently used out first and unexpired enforced policies last;
//! [`MAX_FETCHES`] fetches at once.
//! When it fails: a fetch is tried again after [`FIRST_RETRY`], doubling up to [`LAST_RETRY`]; a new id is tried at once.
//! Not here: DANE and the answer (`policy`).

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, watch};

use super::document::{self, Document, MAX_AGE};
use super::fetch::{self, FetchFault};
use super::record;
use crate::clock::Clock;
use crate::dns::{DnsError, Resolver};
use crate::https::Client;
use crate::metrics::Metrics;
use crate::policy::flight::{Flight, Flights};
use crate::policy::throttle::Throttle;
use crate::shutdown::stopped;
use crate::store::{Batch, Family, Store, StoreError};
use crate::tlsrpt::{Mode, Policy, PolicyType, ResultType};

/// How long after a change it is in the store, at the latest, while the disk keeps up.
pub const BEHIND: Duration = Duration::from_millis(50);

/// Fetches under way at once: each holds a socket for a minute at most.
pub const MAX_FETCHES: usize = 512;

/// Seconds until a failed fetch is tried again, the first time.
pub const FIRST_RETRY: i64 = 300;

/// Seconds until a failed fetch is tried again, at most.
pub const LAST_RETRY: i64 = 3600;

/// The shortest and longest that a record holds, in seconds, whatever its TTL.
const RECORD_TTL: (i64, i64) = (60, 86_400);

/// Seconds until a record whose query failed is asked again.
const RECORD_RETRY: i64 = 60;

/// Seconds between two fetches of a policy in use (RFC 8461 §3.3: at least daily is common practice).
const REFRESH: i64 = 86_400;

/// The shortest that a policy serves, in seconds: a `max_age` of 0 must not mean a fetch per message.
const MIN_AGE: i64 = 60;

/// How much of a document that is no policy is kept for the report, in octets, [`LINE`] more for each line: its author
/// knows it by that, and a hundred thousand of them fit into memory.
const FAULTY: usize = 8 * 1024;

/// What a line takes besides its text, in octets.
const LINE: usize = 48;

/// Time between two looks at what is due without being asked.
const SWEEP: Duration = Duration::from_secs(30);

/// A policy as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cached {
    /// The `id` of the record that led to it.
    pub id: String,
    /// What it asks of senders.
    pub mode: Mode,
    /// Its lines and patterns, as reports show them.
    pub policy: Arc<Policy>,
    /// When it was fetched, in seconds since 1970-01-01T00:00:00Z.
    pub fetched: i64,
    /// When it ends, likewise.
    pub expires: i64,
    /// When it is to be fetched anew, likewise.
    pub refresh: i64,
}

/// A document that could not be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyFailure {
    /// The `id` of the record that led to it.
    pub id: String,
    /// The RFC 8460 result.
    pub result_type: ResultType,
    /// Its `failure-reason-code`.
    pub reason: String,
    /// The cause, for people.
    pub text: String,
    /// The lines that were served, if any.
    pub lines: Vec<String>,
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub at: i64,
    /// When it is tried again, likewise.
    pub retry: i64,
}

/// What is known of a domain's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Record {
    /// It has one.
    Id {
        /// Its `id`.
        id: String,
    },
    /// It has none, or none that counts.
    None {
        /// Why.
        reason: String,
    },
    /// It could not be asked.
    Failed {
        /// Why.
        cause: String,
    },
}

/// What is known of a domain at a moment.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Its policy, unexpired, of any mode.
    pub policy: Option<Arc<Cached>>,
    /// Its record, and until when that holds.
    pub record: Option<(Record, i64)>,
    /// When the record was last asked, in seconds since 1970-01-01T00:00:00Z.
    pub checked: Option<i64>,
    /// Why the document that the record names is not the policy.
    pub failure: Option<Arc<PolicyFailure>>,
    /// When something is to be asked again; a past moment where something is to be asked now.
    pub due: i64,
}

/// A domain that has been asked about.
pub struct Domain {
    /// Its name in the one form.
    pub name: Arc<str>,
    /// Counts the changes of what is known.
    version: AtomicU64,
    /// When it was last asked about, in seconds since 1970-01-01T00:00:00Z.
    used: AtomicI64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    policy: Option<Arc<Cached>>,
    record: Option<(Record, i64)>,
    checked: Option<i64>,
    failure: Option<Arc<PolicyFailure>>,
    /// The document is to be fetched, whatever the times say.
    told: bool,
}

/// All of them.
pub struct Cache {
    domains: RwLock<HashMap<Arc<str>, Arc<Domain>>>,
    limit: usize,
    resolver: Resolver,
    client: Client,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
    flights: Flights<()>,
    fetches: Arc<Semaphore>,
    dirty: Mutex<HashSet<Arc<str>>>,
    wake: Notify,
}

/// The form in the store.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Stored {
    id: String,
    fetched: i64,
    used: i64,
    #[serde(default)]
    checked: Option<i64>,
    lines: Vec<String>,
}

impl Cache {
    /// The policies that the store has; those that have expired, or cannot be read any more, are left out.
    pub fn open(
        limit: usize,
        resolver: Resolver,
        client: Client,
        store: Arc<dyn Store>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Cache, StoreError> {
        let now = clock.seconds();
        let mut domains = HashMap::new();
        let mut dirty = HashSet::new();
        for (key, value) in store.scan(Family::Sts, b"")? {
            let Ok(name) = String::from_utf8(key) else { continue };
            let name: Arc<str> = name.into();
            let stored: Option<Stored> = serde_json::from_slice(&value).ok();
            let found = stored.and_then(|stored| Some((stored.used, stored.checked, restore(&name, stored)?)));
            match found {
                Some((used, checked, policy)) if policy.expires > now => {
                    let domain = Domain::new(Arc::clone(&name), used);
                    *domain.state.lock() = State { policy: Some(Arc::new(policy)), checked, ..State::default() };
                    domains.insert(name, Arc::new(domain));
                }
                _ => drop(dirty.insert(name)),
            }
        }
        Ok(Cache {
            domains: RwLock::new(domains),
            limit: limit.max(1),
            resolver,
            client,
            store,
            clock,
            metrics,
            throttle: Throttle::default(),
            flights: Flights::new(),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            dirty: Mutex::new(dirty),
            wake: Notify::new(),
        })
    }

    /// The domain of that name, which is in the one form.
    pub fn domain(&self, name: &str) -> Arc<Domain> {
        if let Some(domain) = self.domains.read().get(name) {
            return Arc::clone(domain);
        }
        let now = self.clock.seconds();
        let mut domains = self.domains.write();
        let name: Arc<str> = name.into();
        let domain = domains.entry(Arc::clone(&name)).or_insert_with(|| Arc::new(Domain::new(name, now)));
        let domain = Arc::clone(domain);
        if domains.len() > self.limit {
            self.evict(&mut domains, &domain.name, now);
        }
        domain
    }

    /// The domain of that name, if it has been asked about.
    pub fn known(&self, name: &str) -> Option<Arc<Domain>> {
        self.domains.read().get(name).map(Arc::clone)
    }

    /// All domains that have been asked about.
    pub fn all(&self) -> Vec<Arc<Domain>> {
        self.domains.read().values().map(Arc::clone).collect()
    }

    /// Forgets what is known of a domain; whether there was anything. The store forgets it with the next write.
    pub fn forget(&self, domain: &Domain) -> bool {
        let state = std::mem::take(&mut *domain.state.lock());
        domain.version.fetch_add(1, Ordering::Release);
        self.changed(&domain.name);
        state.policy.is_some() || state.record.is_some() || state.failure.is_some()
    }

    /// How many domains are known, and how many of them have an unexpired policy.
    pub fn len(&self) -> (usize, usize) {
        let now = self.clock.seconds();
        let domains = self.domains.read();
        (domains.len(), domains.values().filter(|d| d.known(now).policy.is_some()).count())
    }

    /// Begins to find out what is due of a domain at `at`, if anything is and it has not begun yet.
    pub fn look(self: &Arc<Self>, domain: &Arc<Domain>, at: i64) -> Option<Flight<()>> {
        let due = domain.state.lock().due(at);
        (due <= at).then(|| {
            self.flights.join(&domain.name, || {
                let (cache, domain) = (Arc::clone(self), Arc::clone(domain));
                async move { cache.find_out(&domain, at).await }
            })
        })
    }

    /// Writes behind, and keeps policies in use fresh, until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    tokio::time::sleep(BEHIND / 2).await;
                    let _ = self.write().await;
                }
                _ = sweep.tick() => {
                    self.sweep();
                    let _ = self.write().await;
                }
                () = stopped(&mut shutdown) => break,
            }
        }
        self.flights.abort();
        let _ = self.write().await;
    }

    async fn find_out(&self, domain: &Arc<Domain>, at: i64) {
        let name = &domain.name;
        if domain.state.lock().record_due(at) {
            let found = self.resolver.txt(&format!("_mta-sts.{name}")).await;
            self.metrics.add("sts_records_asked", 1);
            domain.learn_record(found, self.clock.seconds());
        }
        let Some(id) = domain.state.lock().fetch_due(at.max(self.clock.seconds())) else { return };
        // The semaphore is never closed.
        let Ok(_permit) = self.fetches.acquire().await else { return };
        self.metrics.add("sts_fetches", 1);
        match fetch::fetch(&self.client, name).await {
            Ok(document) => {
                domain.learn_policy(id, document, self.clock.seconds());
                self.changed(name);
            }
            Err(fault) => {
                self.metrics.add("sts_fetches_failed", 1);
                let (failure, cached) = domain.learn_failure(id, fault, self.clock.seconds());
                self.complain(name, &failure, cached.as_deref());
            }
        }
    }

    fn complain(&self, name: &str, failure: &PolicyFailure, cached: Option<&Cached>) {
        let now = self.clock.seconds();
        let cause = match failure.result_type {
            ResultType::StsPolicyInvalid => "invalid",
            ResultType::StsWebpkiInvalid => "webpki",
            _ => "fetch",
        };
        if !self.throttle.permits(cause, now) {
            return;
        }
        let minutes = (failure.retry - now) / 60;
        let consequence = match cached {
            Some(old) => format!("the policy fetched before serves for {} min more", (old.expires - now) / 60),
            None => "no MTA-STS policy is enforced".to_owned(),
        };
        let line = format!(
            "MTA-STS of {name}: the policy cannot be had: {}; {consequence}, next try in {minutes} min",
            failure.text
        );
        self.metrics.error(self.clock, line);
    }

    fn changed(&self, name: &Arc<str>) {
        self.dirty.lock().insert(Arc::clone(name));
        self.wake.notify_one();
    }

    /// Fetches policies in use anew, and lets go of what has expired and is not asked about.
    fn sweep(self: &Arc<Self>) {
        let now = self.clock.seconds();
        let domains: Vec<Arc<Domain>> = self.domains.read().values().map(Arc::clone).collect();
        for domain in domains {
            let known = domain.known(now);
            let used = domain.used.load(Ordering::Relaxed);
            match &known.policy {
                Some(policy) if used > policy.fetched && known.due <= now => drop(self.look(&domain, now)),
                Some(_) => {}
                None if now - used > REFRESH => {
                    self.domains.write().remove(&domain.name);
                    self.changed(&domain.name);
                }
                None => {}
            }
        }
    }

    /// Lets go of a twentieth, the least recently used first, unexpired enforced policies last.
    fn evict(&self, domains: &mut HashMap<Arc<str>, Arc<Domain>>, spare: &Arc<str>, now: i64) {
        let rank = |domain: &Domain| {
            let enforced = domain.known(now).policy.is_some_and(|p| p.mode == Mode::Enforce);
            (enforced, domain.used.load(Ordering::Relaxed))
        };
        let mut all: Vec<_> =
            domains.values().filter(|d| d.name != *spare).map(|d| (rank(d), d.name.clone())).collect();
        let surplus = (domains.len() - self.limit + self.limit / 20).min(all.len());
        if surplus == 0 {
            return;
        }
        all.select_nth_unstable(surplus - 1);
        for (_, name) in all.into_iter().take(surplus) {
            let gone = domains.remove(&name);
            if gone.is_some_and(|domain| domain.state.lock().policy.is_some()) {
                self.changed(&name);
            }
        }
        self.metrics.add("sts_domains_evicted", surplus as u64);
    }

    /// Writes what has changed; what could not be written is tried again with the next change or sweep. Fails with
    /// the cause.
    pub async fn write(&self) -> Result<(), String> {
        let names: Vec<Arc<str>> = std::mem::take(&mut *self.dirty.lock()).into_iter().collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::default();
        for name in &names {
            let domain = self.domains.read().get(name).map(Arc::clone);
            let value = domain.and_then(|domain| domain.stored());
            batch.set.push((Family::Sts, name.as_bytes().to_vec(), value));
        }
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || store.write(batch)).await;
        let error = match written {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.dirty.lock().extend(names);
        if self.throttle.permits("store", self.clock.seconds()) {
            let line = format!("store: cannot write MTA-STS policies: {error}; they serve from memory until it can");
            self.metrics.error(self.clock, line);
        }
        Err(error)
    }
}

impl Domain {
    /// A domain of which nothing is known.
    pub fn new(name: Arc<str>, used: i64) -> Domain {
        Domain { name, version: AtomicU64::new(0), used: AtomicI64::new(used), state: Mutex::default() }
    }

    /// Changes with what is known.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Notes that it was asked about.
    pub fn touch(&self, now: i64) {
        if self.used.load(Ordering::Relaxed) != now {
            self.used.store(now, Ordering::Relaxed);
        }
    }

    /// When it was last asked about, in seconds since 1970-01-01T00:00:00Z.
    pub fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Makes the record due at `now`, as if its TTL had run out; with `fetch` also the document, whatever failed before.
    pub fn look_again(&self, now: i64, fetch: bool) {
        let mut state = self.state.lock();
        if let Some((_, until)) = &mut state.record {
            *until = now.min(*until);
        }
        state.told |= fetch;
    }

    /// What is known at a moment.
    pub fn known(&self, now: i64) -> Known {
        let state = self.state.lock();
        let failure = match (&state.record, &state.failure) {
            (Some((Record::Id { id }, _)), Some(failure)) if failure.id == *id => Some(Arc::clone(failure)),
            _ => None,
        };
        Known {
            policy: state.unexpired(now).map(Arc::clone),
            record: state.record.clone(),
            checked: state.checked,
            failure,
            due: state.due(now),
        }
    }

    /// A record that could not be asked is asked at the next look, not only when its time has come.
    pub fn forget_failed_record(&self) {
        let mut state = self.state.lock();
        if matches!(state.record, Some((Record::Failed { .. }, _))) {
            state.record = None;
        }
    }

    fn learn_record(&self, found: Result<crate::dns::Answer<String>, DnsError>, now: i64) {
        let clamp =
            |ttl: Duration| i64::try_from(ttl.as_secs()).unwrap_or(RECORD_TTL.1).clamp(RECORD_TTL.0, RECORD_TTL.1);
        let mut state = self.state.lock();
        let (record, holds) = match found {
            Ok(answer) => match record::id(&answer.records) {
                Ok(id) => (Record::Id { id: id.to_owned() }, clamp(answer.ttl)),
                Err(reason) => (Record::None { reason: reason.to_string() }, clamp(answer.ttl)),
            },
            Err(DnsError::Failed(cause)) => match state.record.take() {
                // What was known stands while the resolver fails.
                Some((known @ Record::Id { .. }, _)) => (known, RECORD_RETRY),
                _ => (Record::Failed { cause }, RECORD_RETRY),
            },
            Err(none) => (Record::None { reason: none.to_string() }, clamp(none.negative_ttl().unwrap_or_default())),
        };
        state.record = Some((record, now + holds));
        state.checked = Some(now);
        drop(state);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn learn_policy(&self, id: String, document: Document, now: i64) {
        let policy = keep(&self.name, id, document, now);
        let mut state = self.state.lock();
        state.policy = Some(Arc::new(policy));
        state.failure = None;
        state.told = false;
        drop(state);
        self.version.fetch_add(1, Ordering::Release);
    }

    fn learn_failure(&self, id: String, fault: FetchFault, now: i64) -> (Arc<PolicyFailure>, Option<Arc<Cached>>) {
        let mut state = self.state.lock();
        let wait = match &state.failure {
            Some(before) if before.id == id => ((before.retry - before.at) * 2).clamp(FIRST_RETRY, LAST_RETRY),
            _ => FIRST_RETRY,
        };
        let text = fault.to_string();
        let (result_type, reason) = (fault.result_type(), fault.reason());
        let lines = match fault {
            FetchFault::Invalid(_, lines) => beginning(lines),
            _ => Vec::new(),
        };
        let failure = Arc::new(PolicyFailure { id, result_type, reason, text, lines, at: now, retry: now + wait });
        state.failure = Some(Arc::clone(&failure));
        state.told = false;
        let cached = state.unexpired(now).map(Arc::clone);
        drop(state);
        self.version.fetch_add(1, Ordering::Release);
        (failure, cached)
    }

    fn stored(&self) -> Option<Vec<u8>> {
        let (policy, checked) = {
            let state = self.state.lock();
            (state.policy.clone()?, state.checked)
        };
        let stored = Stored {
            id: policy.id.clone(),
            fetched: policy.fetched,
            used: self.used.load(Ordering::Relaxed),
            checked,
            lines: policy.policy.policy_string.clone(),
        };
        serde_json::to_vec(&stored).ok()
    }
}

impl State {
    fn unexpired(&self, now: i64) -> Option<&Arc<Cached>> {
        self.policy.as_ref().filter(|policy| policy.expires > now)
    }

    fn record_due(&self, at: i64) -> bool {
        self.record.as_ref().is_none_or(|(_, until)| *until <= at)
    }

    /// The id to fetch for, where a fetch is due.
    fn fetch_due(&self, at: i64) -> Option<String> {
        let Some((Record::Id { id }, _)) = &self.record else { return None };
        (self.fetch_at(id, at) <= at).then(|| id.clone())
    }

    /// When the document of `id` is to be fetched.
    fn fetch_at(&self, id: &str, now: i64) -> i64 {
        if self.told {
            return i64::MIN;
        }
        let wanted = match self.unexpired(now) {
            Some(policy) if policy.id == id => policy.refresh.min(policy.expires),
            _ => i64::MIN,
        };
        let held = self.failure.as_ref().filter(|failure| failure.id == id).map_or(i64::MIN, |failure| failure.retry);
        wanted.max(held)
    }

    /// When something is to be asked again.
    fn due(&self, now: i64) -> i64 {
        match &self.record {
            None => i64::MIN,
            Some((Record::Id { id }, until)) => (*until).min(self.fetch_at(id, now)),
            Some((_, until)) => *until,
        }
    }
}

/// The first lines, as much as is kept of a document that is no policy.
fn beginning(lines: Vec<String>) -> Vec<String> {
    let mut left = FAULTY;
    let mut kept = Vec::new();
    for mut line in lines {
        let Some(room) = left.checked_sub(LINE).filter(|room| *room > 0) else { break };
        line.truncate(line.floor_char_boundary(room));
        line.shrink_to_fit();
        left = room - line.len();
        kept.push(line);
    }
    kept.shrink_to_fit();
    kept
}

fn keep(name: &str, id: String, document: Document, fetched: i64) -> Cached {
    let age = i64::try_from(document.max_age.min(MAX_AGE)).unwrap_or(i64::MAX).max(MIN_AGE);
    // Spread over a tenth, by name, so that policies fetched together are not fetched together again.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    let spread = i64::try_from(hasher.finish() % 100).unwrap_or(0) * (REFRESH / 1000);
    Cached {
        id,
        mode: document.mode,
        policy: Arc::new(Policy {
            policy_type: PolicyType::Sts,
            policy_string: document.lines,
            policy_domain: name.to_owned(),
            mx_host: document.mx,
        }),
        fetched,
        expires: fetched + age,
        refresh: fetched + (REFRESH - spread).min(age / 2),
    }
}

fn restore(name: &str, stored: Stored) -> Option<Cached> {
    let document = document::parse(stored.lines.join("\n").as_bytes()).ok()?;
    Some(keep(name, stored.id, document, stored.fetched))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::Answer;

    const DAY: i64 = 86_400;

    fn domain() -> Domain {
        Domain::new("example.com".into(), 0)
    }

    fn record(text: &str, ttl: u64) -> Result<Answer<String>, DnsError> {
        Ok(Answer { name: "x".into(), records: vec![text.into()], secure: false, ttl: Duration::from_secs(ttl) })
    }

    fn document(mode: &str, max_age: i64) -> Document {
        let text = format!("version: STSv1\nmode: {mode}\nmx: mx.example.com\nmax_age: {max_age}\n");
        document::parse(text.as_bytes()).unwrap()
    }

    fn due(domain: &Domain, at: i64) -> (bool, Option<String>) {
        let state = domain.state.lock();
        (state.record_due(at), state.fetch_due(at))
    }

    #[test]
    fn a_policy_lives_and_ends() {
        let d = domain();
        assert_eq!(due(&d, 0), (true, None));
        d.learn_record(record("v=STSv1; id=1", 300), 1000);
        assert_eq!(due(&d, 1000), (false, Some("1".into())));
        d.learn_policy("1".into(), document("enforce", 10 * DAY), 1000);
        assert_eq!(due(&d, 1299), (false, None));
        assert_eq!(d.known(1299).due, 1300);
        assert_eq!(due(&d, 1300), (true, None));
        // The record is gone: the policy stays to its end.
        d.learn_record(Err(DnsError::NoSuchDomain { ttl: Duration::from_secs(60) }), 1300);
        assert_eq!(due(&d, 1300 + DAY), (true, None));
        assert!(d.known(1000 + 10 * DAY - 1).policy.is_some());
        assert!(d.known(1000 + 10 * DAY).policy.is_none());
    }

    #[test]
    fn a_changed_id_fetches_while_the_old_policy_serves() {
        let d = domain();
        d.learn_record(record("v=STSv1; id=1", 60), 0);
        d.learn_policy("1".into(), document("enforce", 10 * DAY), 0);
        d.learn_record(record("v=STSv1; id=2", 60), 60);
        assert_eq!(due(&d, 60), (false, Some("2".into())));
        assert_eq!(d.known(60).policy.unwrap().id, "1");
        d.learn_policy("2".into(), document("none", DAY), 61);
        assert_eq!(d.known(62).policy.unwrap().mode, Mode::None);
    }

    #[test]
    fn a_failed_fetch_backs_off_per_id() {
        let d = domain();
        d.learn_record(record("v=STSv1; id=1", 86_400), 0);
        let mut at = 0;
        for wait in [300, 600, 1200, 2400, 3600, 3600] {
            let (failure, _) = d.learn_failure("1".into(), FetchFault::Status(500), at);
            assert_eq!(failure.retry, at + wait);
            assert_eq!(due(&d, at + wait - 1).1, None);
            at += wait;
            assert_eq!(due(&d, at).1.as_deref(), Some("1"));
        }
        assert_eq!(d.known(at).failure.unwrap().result_type, ResultType::StsPolicyFetchError);
        d.learn_record(record("v=STSv1; id=2", 86_400), at);
        assert_eq!(due(&d, at).1.as_deref(), Some("2"), "a new id is tried at once");
        assert!(d.known(at).failure.is_none());
        assert_eq!(d.learn_failure("2".into(), FetchFault::Status(500), at).0.retry, at + 300);
    }

    #[test]
    fn of_a_document_that_is_no_policy_the_beginning_is_kept() {
        let page = |lines: Vec<String>| {
            let fault = FetchFault::Invalid(document::Invalid::Line(1), lines);
            domain().learn_failure("1".into(), fault, 0).0.lines.clone()
        };
        let short: Vec<String> = vec!["<html>".into(), "<body>\u{fc}</body>".into()];
        assert_eq!(page(short.clone()), short);
        let one = page(vec!["\u{fc}".repeat(30_000)]);
        assert!(one.len() == 1 && (FAULTY - LINE - 1..=FAULTY).contains(&one[0].len()), "{}", one[0].len());
        let many = page(vec!["x".into(); 32_000]);
        assert!((150..=FAULTY / LINE).contains(&many.len()), "{}", many.len());
        assert!(many.iter().map(|line| line.capacity() + LINE).sum::<usize>() <= FAULTY);
    }

    #[test]
    fn a_policy_that_cannot_be_refreshed_serves_on() {
        let d = domain();
        d.learn_record(record("v=STSv1; id=1", 86_400), 0);
        d.learn_policy("1".into(), document("enforce", 10 * DAY), 0);
        let refresh = d.known(0).policy.unwrap().refresh;
        assert!((DAY * 9 / 10..=DAY).contains(&refresh));
        assert_eq!(due(&d, refresh).1.as_deref(), Some("1"));
        let (_, cached) = d.learn_failure("1".into(), FetchFault::Status(500), refresh);
        assert!(cached.is_some() && d.known(refresh).policy.is_some());
        assert_eq!(due(&d, refresh + 1).1, None);
    }

    #[test]
    fn a_failing_resolver_changes_nothing_that_is_known() {
        let d = domain();
        d.learn_record(record("v=STSv1; id=1", 60), 0);
        d.learn_record(Err(DnsError::Failed("SERVFAIL".into())), 60);
        assert_eq!(d.known(61).record.unwrap(), (Record::Id { id: "1".into() }, 120));
        let d = domain();
        d.learn_record(Err(DnsError::Failed("SERVFAIL".into())), 0);
        assert_eq!(due(&d, 59), (false, None));
    }

    #[test]
    fn ttls_and_ages_have_bounds() {
        let d = domain();
        d.learn_record(record("v=STSv1; id=1", 0), 0);
        assert_eq!(d.known(0).record.unwrap().1, 60);
        d.learn_record(record("v=STSv1; id=1", 10_000_000), 0);
        assert_eq!(d.known(0).record.unwrap().1, DAY);
        d.learn_policy("1".into(), document("enforce", 0), 0);
        assert_eq!(d.known(0).policy.unwrap().expires, 60);
    }

    #[test]
    fn the_stored_form_reads_back() {
        let d = domain();
        d.learn_policy("1".into(), document("testing", DAY), 5);
        let stored: Stored = serde_json::from_slice(&d.stored().unwrap()).unwrap();
        assert_eq!(restore("example.com", stored).unwrap(), *d.known(5).policy.unwrap());
    }
}
