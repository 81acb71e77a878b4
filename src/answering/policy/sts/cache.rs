//! The MTA-STS policies of all domains that were asked about.
//!
//! Takes: the name of a policy domain. Gives: what is known of it, from memory, and flights that find out what is due.
//! It is kept in the store, written behind within [`BEHIND`]; what has expired and is not asked about is let go.
//! Limits: `[policy] max_domains` domains and [`OCTETS_EACH`] octets of text for each, the least recently used out first
//! and unexpired enforced policies last (`sts_domains_evicted`); [`MAX_FETCHES`] fetches at once; [`MAX_LOOKS`] domains
//! looked at at once, [`MAX_BEHIND`] while their policy serves (`sts_looks_postponed`).
//! When it fails: one line a cause and minute; what could not be written is tried again with the next change or sweep.
//! Not here: how long a policy serves and when it is tried again (`domain`), DANE and the answer (`policy`).

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};

use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::single_flight::{Flight, Flights};
use crate::answering::policy::sts::domain_state::Domain;
use crate::answering::policy::sts::fetch;
use crate::answering::policy::sts::policy::{Cached, PolicyFailure, REFRESH};
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::Clock;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::{Mode, ResultType};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::HttpsClient;
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long after a change it is in the store, at the latest, while the disk keeps up.
pub const BEHIND: Duration = Duration::from_millis(50);

/// Fetches under way at once: each holds a socket for a minute at most.
pub const MAX_FETCHES: usize = 512;

/// Octets of text for each domain of the limit, packed, on average: a common policy takes 40, the longest 65,536.
pub const OCTETS_EACH: usize = 1024;

/// Domains that are looked at at once: as many as may be waited for by the clients that descriptors allow. Beyond,
/// nothing is known of a domain, and it is looked at when it is asked about again.
pub const MAX_LOOKS: usize = 10_240;

/// Domains that are looked at at once while their policy serves: nobody waits, and each takes some 10 kB.
pub const MAX_BEHIND: usize = 256;

/// Time between two looks at what is due without being asked.
const SWEEP: Duration = Duration::from_secs(30);

/// All of them.
pub struct Cache {
    domains: RwLock<Domains>,
    limit: usize,
    /// What the texts take, in octets.
    size: AtomicUsize,
    resolver: Resolver,
    client: HttpsClient,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
    flights: Flights<()>,
    fetches: Arc<Semaphore>,
    dirty: Mutex<HashSet<Arc<str>>>,
    wake: Notify,
}

type Domains = HashSet<ByName>;

/// A domain that is found by its name.
struct ByName(Arc<Domain>);

impl Borrow<str> for ByName {
    fn borrow(&self) -> &str {
        &self.0.name
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

impl Cache {
    /// The policies that the store has; those that have expired, or cannot be read any more, are left out. Names and
    /// texts that `history` has are shared with it.
    pub fn open(
        limit: usize,
        resolver: Resolver,
        client: HttpsClient,
        store: Arc<dyn Store>,
        history: &PolicyHistory,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Cache, StoreError> {
        let now = clock.seconds();
        let (mut domains, mut dirty, mut size) = (Domains::new(), HashSet::new(), 0);
        store.visit(Table::Sts, b"", &mut |key, value| {
            let Ok(name) = std::str::from_utf8(key) else { return };
            match Cached::decode(value).filter(|restored| restored.policy.expires() > now) {
                Some(mut restored) => {
                    let name = history.share_text(name, &mut restored.policy.text);
                    size += restored.policy.size();
                    domains.insert(ByName(Arc::new(Domain::restored(name, restored))));
                }
                None => drop(dirty.insert(name.into())),
            }
        })?;
        domains.shrink_to_fit();
        Ok(Cache {
            domains: RwLock::new(domains),
            limit: limit.max(1),
            size: AtomicUsize::new(size),
            resolver,
            client,
            store,
            clock,
            metrics,
            throttle: Throttle::default(),
            flights: Flights::new(MAX_LOOKS),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            dirty: Mutex::new(dirty),
            wake: Notify::new(),
        })
    }

    /// The domain of that name, which is in the one form.
    pub fn domain(&self, name: &str) -> Arc<Domain> {
        if let Some(domain) = self.known(name) {
            return domain;
        }
        let now = self.clock.seconds();
        let mut domains = self.domains.write();
        if let Some(domain) = domains.get(name) {
            return Arc::clone(&domain.0);
        }
        let domain = Arc::new(Domain::new(name.into(), now));
        domains.insert(ByName(Arc::clone(&domain)));
        self.evict(&mut domains, &domain, now);
        domain
    }

    /// The domain of that name, if it has been asked about.
    pub fn known(&self, name: &str) -> Option<Arc<Domain>> {
        self.domains.read().get(name).map(|domain| Arc::clone(&domain.0))
    }

    /// All domains that have been asked about.
    pub fn all(&self) -> Vec<Arc<Domain>> {
        self.domains.read().iter().map(|domain| Arc::clone(&domain.0)).collect()
    }

    /// Forgets what is known of a domain; whether there was anything. The store forgets it with the next write.
    pub fn forget(&self, domain: &Domain) -> bool {
        self.shrunk(domain.size());
        let known = domain.forget();
        self.changed(&domain.name);
        known
    }

    /// How many domains are known, and how many of them have an unexpired policy.
    pub fn len(&self) -> (usize, usize) {
        let now = self.clock.seconds();
        let domains = self.domains.read();
        (domains.len(), domains.iter().filter(|domain| domain.0.policy(now).is_some()).count())
    }

    /// Octets that the texts of all policies, and of documents that are none, take.
    pub fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }

    /// Begins to find out what is due of a domain at `at`, if anything is and it has not begun yet. Nothing where too
    /// many are looked at; where a policy serves meanwhile that is so sooner.
    pub fn look(self: &Arc<Self>, domain: &Arc<Domain>, at: i64) -> Option<Flight<()>> {
        if domain.due(at) > at {
            return None;
        }
        let serves = self.flights.len() >= MAX_BEHIND && domain.policy(self.clock.seconds()).is_some();
        let flight = (!serves).then(|| {
            self.flights.join(&domain.name, || {
                let (cache, domain) = (Arc::clone(self), Arc::clone(domain));
                async move { cache.find_out(&domain, at).await }
            })
        });
        let flight = flight.flatten();
        self.metrics.add("sts_looks_postponed", u64::from(flight.is_none()));
        flight
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
                () = wait_for_shutdown(&mut shutdown) => break,
            }
        }
        self.flights.abort();
        let _ = self.write().await;
    }

    async fn find_out(&self, domain: &Arc<Domain>, at: i64) {
        let name = &domain.name;
        if domain.record_due(at) {
            let found = self.resolver.txt(&format!("_mta-sts.{name}")).await;
            self.metrics.add("sts_records_asked", 1);
            domain.learn_record(found, self.clock.seconds());
        }
        let Some(id) = domain.fetch_due(at.max(self.clock.seconds())) else { return };
        // The semaphore is never closed.
        let Ok(_permit) = self.fetches.acquire().await else { return };
        self.metrics.add("sts_fetches", 1);
        let fetched = fetch::fetch(&self.client, name).await;
        self.shrunk(domain.size());
        match fetched {
            Ok(document) => {
                domain.learn_policy(&id, &document, self.clock.seconds());
                self.changed(name);
            }
            Err(fault) => {
                self.metrics.add("sts_fetches_failed", 1);
                let (failure, cached) = domain.learn_failure(&id, fault, self.clock.seconds());
                self.complain(name, &failure, cached.as_deref());
                if domain.has_policy() {
                    self.changed(name);
                }
            }
        }
        let size = domain.size();
        if self.size.fetch_add(size, Ordering::Relaxed) + size > self.limit * OCTETS_EACH {
            self.evict(&mut self.domains.write(), domain, self.clock.seconds());
        }
    }

    /// Less text is kept. An overlap of two changes is set right by the next sweep.
    fn shrunk(&self, octets: usize) {
        let less = |size: usize| Some(size.saturating_sub(octets));
        let _ = self.size.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
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
            Some(old) => format!("the policy fetched before serves for {} min more", (old.expires() - now) / 60),
            None => "no MTA-STS policy is enforced".to_owned(),
        };
        let line = format!(
            "MTA-STS of {name}: the policy cannot be had: {}; {consequence}, next try in {minutes} min",
            failure.text
        );
        self.metrics.log_error(self.clock, line);
    }

    fn changed(&self, name: &Arc<str>) {
        self.dirty.lock().insert(Arc::clone(name));
        self.wake.notify_one();
    }

    /// Fetches policies in use anew, and lets go of what has expired and is not asked about.
    fn sweep(self: &Arc<Self>) {
        let now = self.clock.seconds();
        let domains = self.all();
        self.size.store(domains.iter().map(|domain| domain.size()).sum(), Ordering::Relaxed);
        for domain in domains {
            let used = domain.used();
            match domain.policy(now) {
                Some(policy) if used > policy.fetched() && domain.due(now) <= now => drop(self.look(&domain, now)),
                Some(_) => {}
                None if now - used > REFRESH => {
                    self.shrunk(domain.size());
                    self.domains.write().remove(&*domain.name);
                    self.changed(&domain.name);
                }
                None => {}
            }
        }
    }

    /// Where there is too much, lets go of a twentieth, the least recently used first, unexpired enforced policies last.
    #[allow(clippy::mutable_key_type)] // Names alone are compared, and they do not change.
    fn evict(&self, domains: &mut Domains, spare: &Arc<Domain>, now: i64) {
        let most = self.limit * OCTETS_EACH;
        let (full, heavy) = (domains.len() > self.limit, self.size() > most);
        if !full && !heavy {
            return;
        }
        let count = if full { self.limit - self.limit / 20 } else { self.limit };
        let size = if heavy { most - most / 20 } else { most };
        let rank = |domain: &Domain| {
            let enforced = domain.policy(now).is_some_and(|policy| policy.mode == Mode::Enforce);
            (enforced, domain.used())
        };
        let others = domains.iter().filter(|domain| !Arc::ptr_eq(&domain.0, spare));
        let mut all: Vec<_> = others.map(|domain| (rank(&domain.0), Arc::clone(&domain.0))).collect();
        all.sort_unstable_by_key(|(rank, _)| *rank);
        let mut gone = 0;
        for (_, domain) in all {
            if domains.len() <= count && self.size() <= size {
                break;
            }
            gone += 1;
            domains.remove(&*domain.name);
            self.shrunk(domain.size());
            if domain.has_policy() {
                self.changed(&domain.name);
            }
        }
        self.metrics.add("sts_domains_evicted", gone);
    }

    /// Writes what has changed; what could not be written is tried again with the next change or sweep. Fails with
    /// the cause.
    pub async fn write(&self) -> Result<(), String> {
        let mut names: Vec<Arc<str>> = std::mem::take(&mut *self.dirty.lock()).into_iter().collect();
        while !names.is_empty() {
            let rest = names.split_off(names.len().min(MAX_BATCH_RECORDS));
            let mut batch = Batch::default();
            for name in &names {
                let value = self.known(name).and_then(|domain| domain.stored());
                batch.set.push((Table::Sts, name.as_bytes().to_vec(), value));
            }
            let store = Arc::clone(&self.store);
            let error = match tokio::task::spawn_blocking(move || store.write(batch)).await {
                Ok(Ok(())) => {
                    names = rest;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.dirty.lock().extend(names.into_iter().chain(rest));
            if self.throttle.permits("store", self.clock.seconds()) {
                let line =
                    format!("store: cannot write MTA-STS policies: {error}; they serve from memory until it can");
                self.metrics.log_error(self.clock, line);
            }
            return Err(error);
        }
        Ok(())
    }
}
