//! The MTA-STS policies of all domains that were asked about.
//!
//! Takes: the name of a policy domain. Gives: what is known of it, from memory, and flights that find out what is due.
//! It is kept in the store, written behind within [`WRITE_DELAY`]; what has expired and is not asked about is let go.
//! Limits: `[policy] max_domains` domains and [`TEXT_BYTES_PER_DOMAIN`] octets of text for each, the least recently
//! used out first and unexpired enforced policies last (`sts_domains_evicted`); [`MAX_FETCHES`] fetches at once;
//! [`MAX_LOOKUPS`] domains looked at at once, [`MAX_BACKGROUND_LOOKUPS`] while their policy serves
//! (`sts_looks_postponed`).
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
use crate::answering::policy::single_flight::{Flight, SingleFlight};
use crate::answering::policy::sts::domain_state::DomainState;
use crate::answering::policy::sts::fetch::{self, FetchError};
use crate::answering::policy::sts::policy::{PolicyFailure, REFRESH_INTERVAL, StsPolicy};
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::Clock;
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::{Mode, ResultType};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::{HttpsClient, HttpsError};
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long after a change it is in the store, at the latest, while the disk keeps up.
pub const WRITE_DELAY: Duration = Duration::from_millis(50);

/// Fetches under way at once: each holds a socket for a minute at most.
pub const MAX_FETCHES: usize = 512;

/// Octets of text for each domain of the limit, packed, on average: a common policy takes 40, the longest 65,536.
pub const TEXT_BYTES_PER_DOMAIN: usize = 1024;

/// Domains that are looked at at once: as many as may be waited for by the clients that descriptors allow. Beyond,
/// nothing is known of a domain, and it is looked at when it is asked about again.
pub const MAX_LOOKUPS: usize = 10_240;

/// Domains that are looked at at once while their policy serves: nobody waits, and each takes some 10 kB.
pub const MAX_BACKGROUND_LOOKUPS: usize = 256;

/// Time between two looks at what is due without being asked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The MTA-STS state of every policy domain that was asked for.
pub struct StsCache {
    domains: RwLock<Domains>,
    limit: usize,
    /// The size of all texts, in bytes.
    text_bytes: AtomicUsize,
    resolver: Resolver,
    client: HttpsClient,
    store: Arc<dyn Store>,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
    flights: SingleFlight<()>,
    fetches: Arc<Semaphore>,
    dirty: Mutex<HashSet<Arc<str>>>,
    wake: Notify,
}

type Domains = HashSet<ByName>;

/// A domain that is found by its name.
struct ByName(Arc<DomainState>);

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

impl StsCache {
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
    ) -> Result<StsCache, StoreError> {
        let now = clock.seconds();
        let (mut domains, mut dirty, mut size) = (Domains::new(), HashSet::new(), 0);
        store.visit(Table::Sts, b"", &mut |key, value| {
            let Ok(name) = std::str::from_utf8(key) else { return };
            match StsPolicy::decode(value).filter(|restored| restored.policy.expires() > now) {
                Some(mut restored) => {
                    let name = history.share_text(name, &mut restored.policy.text);
                    size += restored.policy.text_bytes();
                    domains.insert(ByName(Arc::new(DomainState::restored(name, restored))));
                }
                None => drop(dirty.insert(name.into())),
            }
        })?;
        domains.shrink_to_fit();
        Ok(StsCache {
            domains: RwLock::new(domains),
            limit: limit.max(1),
            text_bytes: AtomicUsize::new(size),
            resolver,
            client,
            store,
            clock,
            metrics,
            throttle: Throttle::default(),
            flights: SingleFlight::new(MAX_LOOKUPS),
            fetches: Arc::new(Semaphore::new(MAX_FETCHES)),
            dirty: Mutex::new(dirty),
            wake: Notify::new(),
        })
    }

    /// The domain of that name (in canonical form), added if it is not yet known.
    pub fn get_or_insert(&self, name: &str) -> Arc<DomainState> {
        if let Some(domain) = self.get(name) {
            return domain;
        }
        let now = self.clock.seconds();
        let mut domains = self.domains.write();
        if let Some(domain) = domains.get(name) {
            return Arc::clone(&domain.0);
        }
        let domain = Arc::new(DomainState::new(name.into(), now));
        domains.insert(ByName(Arc::clone(&domain)));
        self.evict(&mut domains, &domain, now);
        domain
    }

    /// The domain of that name, if it has been asked about.
    pub fn get(&self, name: &str) -> Option<Arc<DomainState>> {
        self.domains.read().get(name).map(|domain| Arc::clone(&domain.0))
    }

    /// All domains that have been asked about.
    pub fn domains(&self) -> Vec<Arc<DomainState>> {
        self.domains.read().iter().map(|domain| Arc::clone(&domain.0)).collect()
    }

    /// Forgets what is known of a domain; whether there was anything. The store forgets it with the next write.
    pub fn forget(&self, domain: &DomainState) -> bool {
        self.subtract_text(domain.text_bytes());
        let known = domain.clear();
        self.mark_dirty(&domain.name);
        known
    }

    /// How many domains are known, and how many of them have an unexpired policy.
    pub fn counts(&self) -> (usize, usize) {
        let now = self.clock.seconds();
        let domains = self.domains.read();
        (domains.len(), domains.iter().filter(|domain| domain.0.policy(now).is_some()).count())
    }

    /// The size of the texts of all policies and invalid documents, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.text_bytes.load(Ordering::Relaxed)
    }

    /// Starts the look-ups that are due for a domain at `at`, unless they are under way. `None` if nothing is due or
    /// too many are under way; the limit is lower while a policy is in force.
    pub fn start_lookup(self: &Arc<Self>, domain: &Arc<DomainState>, at: i64) -> Option<Flight<()>> {
        if domain.next_due(at) > at {
            return None;
        }
        let serves = self.flights.len() >= MAX_BACKGROUND_LOOKUPS && domain.policy(self.clock.seconds()).is_some();
        let flight = (!serves).then(|| {
            self.flights.join(&domain.name, || {
                let (cache, domain) = (Arc::clone(self), Arc::clone(domain));
                async move { cache.update_domain(&domain, at).await }
            })
        });
        let flight = flight.flatten();
        self.metrics.add("sts_looks_postponed", u64::from(flight.is_none()));
        flight
    }

    /// Writes behind, and keeps policies in use fresh, until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wake.notified() => {
                    tokio::time::sleep(WRITE_DELAY / 2).await;
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

    async fn update_domain(&self, domain: &Arc<DomainState>, at: i64) {
        let name = &domain.name;
        if domain.record_due(at) {
            let found = self.resolver.txt(&format!("_mta-sts.{name}")).await;
            self.metrics.add("sts_records_asked", 1);
            domain.apply_record(found, self.clock.seconds());
        }
        let Some(id) = domain.due_fetch(at.max(self.clock.seconds())) else { return };
        // The semaphore is never closed.
        let Ok(_permit) = self.fetches.acquire().await else { return };
        self.metrics.add("sts_fetches", 1);
        let fetched = fetch::fetch(&self.client, name).await;
        self.subtract_text(domain.text_bytes());
        match fetched {
            Ok(document) => {
                domain.apply_policy(&id, &document, self.clock.seconds());
                self.mark_dirty(name);
            }
            // Our own fault: the next look-up tries again.
            Err(FetchError::Https(HttpsError::NoRootCertificates)) => domain.apply_own_fault(),
            Err(fault) => {
                self.metrics.add("sts_fetches_failed", 1);
                let (failure, cached) = domain.apply_failure(&id, fault, self.clock.seconds());
                self.log_failure(name, &failure, cached.as_deref());
                if domain.has_policy() {
                    self.mark_dirty(name);
                }
            }
        }
        let size = domain.text_bytes();
        if self.text_bytes.fetch_add(size, Ordering::Relaxed) + size > self.limit * TEXT_BYTES_PER_DOMAIN {
            self.evict(&mut self.domains.write(), domain, self.clock.seconds());
        }
    }

    /// Subtracts from the size of all texts. The next sweep corrects what two overlapping changes got wrong.
    fn subtract_text(&self, bytes: usize) {
        let less = |size: usize| Some(size.saturating_sub(bytes));
        let _ = self.text_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn log_failure(&self, name: &str, failure: &PolicyFailure, cached: Option<&StsPolicy>) {
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

    fn mark_dirty(&self, name: &Arc<str>) {
        self.dirty.lock().insert(Arc::clone(name));
        self.wake.notify_one();
    }

    /// Fetches policies in use anew, and lets go of what has expired and is not asked about.
    fn sweep(self: &Arc<Self>) {
        let now = self.clock.seconds();
        let domains = self.domains();
        self.text_bytes.store(domains.iter().map(|domain| domain.text_bytes()).sum(), Ordering::Relaxed);
        for domain in domains {
            let used = domain.last_used();
            match domain.policy(now) {
                Some(policy) if used > policy.fetched() && domain.next_due(now) <= now => {
                    drop(self.start_lookup(&domain, now))
                }
                Some(_) => {}
                None if now - used > REFRESH_INTERVAL => {
                    self.subtract_text(domain.text_bytes());
                    self.domains.write().remove(&*domain.name);
                    self.mark_dirty(&domain.name);
                }
                None => {}
            }
        }
    }

    /// Where there is too much, lets go of a twentieth, the least recently used first, unexpired enforced policies last.
    #[allow(clippy::mutable_key_type)] // Names alone are compared, and they do not change.
    fn evict(&self, domains: &mut Domains, exempt: &Arc<DomainState>, now: i64) {
        let most = self.limit * TEXT_BYTES_PER_DOMAIN;
        let (full, heavy) = (domains.len() > self.limit, self.text_bytes() > most);
        if !full && !heavy {
            return;
        }
        let count = if full { self.limit - self.limit / 20 } else { self.limit };
        let size = if heavy { most - most / 20 } else { most };
        let rank = |domain: &DomainState| {
            let enforced = domain.policy(now).is_some_and(|policy| policy.mode == Mode::Enforce);
            (enforced, domain.last_used())
        };
        let others = domains.iter().filter(|domain| !Arc::ptr_eq(&domain.0, exempt));
        let mut all: Vec<_> = others.map(|domain| (rank(&domain.0), Arc::clone(&domain.0))).collect();
        all.sort_unstable_by_key(|(rank, _)| *rank);
        let mut evicted = 0;
        for (_, domain) in all {
            if domains.len() <= count && self.text_bytes() <= size {
                break;
            }
            evicted += 1;
            domains.remove(&*domain.name);
            self.subtract_text(domain.text_bytes());
            if domain.has_policy() {
                self.mark_dirty(&domain.name);
            }
        }
        self.metrics.add("sts_domains_evicted", evicted);
    }

    /// Writes what has changed; what could not be written is tried again with the next change or sweep. Fails with
    /// the cause.
    pub async fn write(&self) -> Result<(), String> {
        let mut names: Vec<Arc<str>> = std::mem::take(&mut *self.dirty.lock()).into_iter().collect();
        while !names.is_empty() {
            let remaining = names.split_off(names.len().min(MAX_BATCH_RECORDS));
            let mut batch = Batch::default();
            for name in &names {
                let value = self.get(name).and_then(|domain| domain.encode());
                batch.set.push((Table::Sts, name.as_bytes().to_vec(), value));
            }
            let store = Arc::clone(&self.store);
            let error = match tokio::task::spawn_blocking(move || store.write(batch)).await {
                Ok(Ok(())) => {
                    names = remaining;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.dirty.lock().extend(names.into_iter().chain(remaining));
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
