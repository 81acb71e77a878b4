//! The MTA-STS policies of all domains that were asked about.
//!
//! Takes: the name of a policy domain. Gives: what is known of it, from memory, and flights that find out what is due.
//! It is kept in the store, written behind within [`WRITE_DELAY`]; what has expired and is not asked about is let go,
//! once the clock has run evenly for hours.
//! Limits: `[policy] max_domains` domains, the least recently used out first and unexpired enforced policies last; and
//! [`TEXT_BYTES_PER_DOMAIN`] bytes of text for each, beyond which those go that take more than that
//! (`sts_domains_evicted`); [`MAX_FETCHES`] fetches at once, [`MAX_REFRESH_FETCHES`] of them for policies that serve;
//! [`MAX_LOOKUPS`] domains looked at at once, and besides [`MAX_BACKGROUND_LOOKUPS`] whose policy serves
//! (`sts_looks_postponed`). Three quarters of fetches and look-ups for one client.
//! When it fails: one line a cause and minute; one for each enforced policy that is not renewed; what could not be written
//! is tried again with the next change or sweep.
//! Not here: how long a policy serves and when it is tried again (`domain_state`), DANE and the answer (`decide`).

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, watch};

use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::single_flight::{Flight, SingleFlight};
use crate::answering::policy::sts::domain_state::{DomainState, FailureReport, FetchFailure};
use crate::answering::policy::sts::fetch::{self, FetchError};
use crate::answering::policy::sts::policy::{REFRESH_INTERVAL, StsPolicy};
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::{Clock, SteadyClock};
use crate::base::requester::{FairSlots, Requester};
use crate::base::shutdown::wait_for_shutdown;
use crate::base::tlsrpt::{Day, Mode, ResultType};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::{HttpsClient, HttpsError};
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long after a change it is in the store, at the latest, while the disk keeps up.
pub const WRITE_DELAY: Duration = Duration::from_millis(50);

/// Fetches under way at once: each holds a socket for a minute at most.
pub const MAX_FETCHES: usize = 512;

/// How many of these are for policies that serve: slow hosts of new domains must not keep them from being refreshed.
pub const MAX_REFRESH_FETCHES: usize = 128;

/// Octets of text for each domain of the limit, packed, on average: a common policy takes 40, the longest 65,536.
pub const TEXT_BYTES_PER_DOMAIN: usize = 1024;

/// Domains that are looked at at once: as many as may be waited for by the clients that descriptors allow. Beyond,
/// nothing is known of a domain, and it is looked at when it is asked about again.
pub const MAX_LOOKUPS: usize = 10_240;

/// Domains that are looked at at once while their policy serves, whatever else is looked at: nobody waits, and each takes
/// some 10 kB.
pub const MAX_BACKGROUND_LOOKUPS: usize = 256;

/// Time between two looks at what is due without being asked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The MTA-STS state of every policy domain that was asked for.
pub struct StsCache {
    known: Arc<KnownDomains>,
    limit: usize,
    resolver: Resolver,
    client: HttpsClient,
    store: Arc<dyn Store>,
    clock: Clock,
    steady: SteadyClock,
    metrics: Metrics,
    throttle: Throttle,
    flights: SingleFlight<()>,
    fetches: FairSlots,
    refresh_fetches: Semaphore,
}

/// What outlives a reload of the configuration: a cache and its successor share it.
#[derive(Default)]
struct KnownDomains {
    domains: RwLock<Domains>,
    /// The size of all texts, in bytes.
    text_bytes: AtomicUsize,
    /// The domains that wait to be written.
    dirty: Mutex<HashSet<Arc<str>>>,
    /// One write at a time: of two at once the older values could land last.
    writing: tokio::sync::Mutex<()>,
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
    /// A cache that knows nothing yet.
    pub fn new(
        limit: usize,
        resolver: Resolver,
        client: HttpsClient,
        store: Arc<dyn Store>,
        clock: Clock,
        metrics: Metrics,
    ) -> StsCache {
        StsCache {
            known: Arc::default(),
            limit: limit.max(1),
            resolver,
            client,
            store,
            clock,
            steady: SteadyClock::new(clock),
            metrics,
            throttle: Throttle::default(),
            flights: SingleFlight::new(MAX_LOOKUPS, MAX_BACKGROUND_LOOKUPS),
            fetches: FairSlots::new(MAX_FETCHES - MAX_REFRESH_FETCHES),
            refresh_fetches: Semaphore::new(MAX_REFRESH_FETCHES),
        }
    }

    /// A successor with another configuration, which shares what is known.
    pub fn reopen(&self, limit: usize, resolver: Resolver, client: HttpsClient) -> StsCache {
        let (store, metrics) = (Arc::clone(&self.store), self.metrics.clone());
        let known = Arc::clone(&self.known);
        StsCache { known, ..StsCache::new(limit, resolver, client, store, self.clock, metrics) }
    }

    /// Adds the policies that the store has and that are not known yet, expired or not: the clock may be wrong at start.
    /// Those that cannot be read any more are left out. Names and texts that `history` has are shared with it.
    pub fn load(&self, history: &PolicyHistory) -> Result<(), StoreError> {
        self.store.visit(Table::Sts, b"", &mut |key, value| {
            let Ok(name) = std::str::from_utf8(key) else { return };
            // What waits to be written is newer.
            if self.known.dirty.lock().contains(name) {
                return;
            }
            match StsPolicy::decode(value) {
                Some(mut restored) => {
                    let name = history.share_text(name, &mut restored.policy.text);
                    let mut domains = self.known.domains.write();
                    match domains.get(&*name) {
                        Some(domain) => domain.0.adopt(restored),
                        None => drop(domains.insert(ByName(Arc::new(DomainState::restored(name, restored))))),
                    }
                }
                None => drop(self.known.dirty.lock().insert(name.into())),
            }
        })?;
        self.known.domains.write().shrink_to_fit();
        self.sum_text(&self.domains());
        Ok(())
    }

    /// Sums up the texts that are kept.
    fn sum_text(&self, domains: &[Arc<DomainState>]) {
        let bytes = domains.iter().map(|domain| domain.text_bytes()).sum();
        self.known.text_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Has what waits to be written tried again at once.
    pub fn write_pending(&self) {
        self.known.wake.notify_one();
    }

    /// Has every policy written anew, because the store has lost some.
    pub fn write_again(&self) {
        for domain in self.domains().iter().filter(|domain| domain.has_policy()) {
            self.mark_dirty(&domain.name);
        }
    }

    /// The domain of that name (in canonical form), added if it is not yet known.
    pub fn get_or_insert(&self, name: &str) -> Arc<DomainState> {
        if let Some(domain) = self.get(name) {
            return domain;
        }
        let now = self.clock.seconds();
        let mut domains = self.known.domains.write();
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
        self.known.domains.read().get(name).map(|domain| Arc::clone(&domain.0))
    }

    /// All domains that have been asked about.
    pub fn domains(&self) -> Vec<Arc<DomainState>> {
        self.known.domains.read().iter().map(|domain| Arc::clone(&domain.0)).collect()
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
        let domains = self.known.domains.read();
        (domains.len(), domains.iter().filter(|domain| domain.0.policy(now).is_some()).count())
    }

    /// The size of the texts of all policies and invalid documents, in bytes.
    pub fn text_bytes(&self) -> usize {
        self.known.text_bytes.load(Ordering::Relaxed)
    }

    /// Starts the look-ups that are due for a domain at `at`, unless they are under way, for who asks. `None` if nothing is
    /// due or too many are under way; domains whose policy is in force have a limit of their own, for nobody waits.
    pub fn start_lookup(
        self: &Arc<Self>,
        domain: &Arc<DomainState>,
        at: i64,
        requester: Requester,
    ) -> Option<Flight<()>> {
        if domain.next_due(at) > at {
            return None;
        }
        let in_force = domain.policy(self.clock.seconds()).is_some();
        let requester = if in_force { Requester::Daemon } else { requester };
        let flight = self.flights.join(&domain.name, requester, || {
            // It may have been evicted since it was taken from here; from now on it is not.
            let (cache, domain) = (Arc::clone(self), self.get_or_insert(&domain.name));
            async move { cache.update_domain(&domain, at, requester).await }
        });
        self.metrics.add("sts_looks_postponed", u64::from(flight.is_none()));
        flight
    }

    /// Writes behind, and keeps policies in use fresh, until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.known.wake.notified() => {
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

    async fn update_domain(&self, domain: &Arc<DomainState>, at: i64, requester: Requester) {
        let name = &domain.name;
        if domain.record_due(at) {
            let found = self.resolver.for_requester(requester).txt(&format!("_mta-sts.{name}")).await;
            self.metrics.add("sts_records_asked", 1);
            domain.apply_record(found, self.clock.seconds());
            self.log_lost_record(domain);
        }
        let now = self.clock.seconds();
        let Some(id) = domain.due_fetch(at.max(now)) else { return };
        let (_refresh, _first) = match domain.policy(now) {
            Some(_) => (Some(self.refresh_fetches.acquire().await), None),
            None => (None, Some(self.fetches.acquire(requester).await)),
        };
        self.metrics.add("sts_fetches", 1);
        let fetched = fetch::fetch(&self.client.for_requester(requester), name).await;
        let failure = fetched.as_ref().err().map(ToString::to_string);
        tracing::debug!(domain = %name, id = %id, failure, "MTA-STS policy fetched");
        self.subtract_text(domain.text_bytes());
        match fetched {
            Ok(document) => {
                domain.apply_policy(&id, &document, self.clock.seconds());
                self.mark_dirty(name);
            }
            // Our own fault: the next look-up tries again.
            Err(FetchError::Https(fault)) if fault.is_own_fault() => {
                domain.apply_own_fault();
                self.log_own_fault(name, &fault);
            }
            Err(fault) => {
                self.metrics.add("sts_fetches_failed", 1);
                self.log_failure(name, &domain.apply_failure(&id, fault, self.clock.seconds()));
                if domain.has_policy() {
                    self.mark_dirty(name);
                }
            }
        }
        let size = domain.text_bytes();
        if self.known.text_bytes.fetch_add(size, Ordering::Relaxed) + size > self.limit * TEXT_BYTES_PER_DOMAIN {
            self.evict(&mut self.known.domains.write(), domain, self.clock.seconds());
        }
    }

    /// Subtracts from the size of all texts. The next sweep corrects what two overlapping changes got wrong.
    fn subtract_text(&self, bytes: usize) {
        let less = |size: usize| Some(size.saturating_sub(bytes));
        let _ = self.known.text_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    fn log_lost_record(&self, domain: &DomainState) {
        if let Some((reason, policy)) = domain.take_lost_record(self.clock.seconds()) {
            let line = format!(
                "MTA-STS of {}: the record has vanished: {reason}; the enforced policy is refreshed all the same, and ends \
                 on {} unless a refresh succeeds",
                domain.name,
                Day::of(policy.expires())
            );
            self.metrics.log_error(self.clock, line);
        }
    }

    /// Missing root certificates are in the list of parts; other faults of this host are logged here.
    fn log_own_fault(&self, name: &str, fault: &HttpsError) {
        if *fault != HttpsError::NoRootCertificates && self.throttle.permits("own-fault", self.clock.seconds()) {
            let line =
                format!("MTA-STS of {name}: the policy cannot be fetched: {fault}; the next look-up tries again");
            self.metrics.log_error(self.clock, line);
        }
    }

    fn log_failure(&self, name: &str, failed: &FetchFailure) {
        let (now, failure) = (self.clock.seconds(), &failed.failure);
        let minutes = (failure.retry - now) / 60;
        let line = match (failed.report, &failed.cached) {
            (FailureReport::Silent, _) => return,
            (FailureReport::KeepsFailing, Some(policy)) => format!(
                "MTA-STS of {name}: the refresh of the enforced policy keeps failing: {}; the policy ends on {} unless a \
                 refresh succeeds, next try in {minutes} min",
                failure.text,
                Day::of(policy.expires())
            ),
            (FailureReport::Ordinary | FailureReport::KeepsFailing, cached) => {
                let cause = match failure.result_type {
                    ResultType::StsPolicyInvalid => "invalid",
                    ResultType::StsWebpkiInvalid => "webpki",
                    _ => "fetch",
                };
                if !self.throttle.permits(cause, now) {
                    return;
                }
                let consequence = match cached {
                    Some(old) => format!("the policy fetched before serves until {}", Day::of(old.expires())),
                    None => "no MTA-STS policy is enforced".to_owned(),
                };
                format!(
                    "MTA-STS of {name}: the policy cannot be had: {}; {consequence}, next try in {minutes} min",
                    failure.text
                )
            }
        };
        self.metrics.log_error(self.clock, line);
    }

    fn mark_dirty(&self, name: &Arc<str>) {
        self.known.dirty.lock().insert(Arc::clone(name));
        self.known.wake.notify_one();
    }

    /// Fetches policies in use anew, those first whose document has been due for longest, and lets go of what has expired
    /// and is not asked about.
    fn sweep(self: &Arc<Self>) {
        let now = self.clock.seconds();
        let may_expire = self.steady.permits_expiry();
        let domains = self.domains();
        self.sum_text(&domains);
        let mut due = Vec::new();
        for domain in domains {
            if may_expire && domain.settle(now) {
                self.mark_dirty(&domain.name);
            }
            if domain.has_policy() {
                let at = domain.next_due(now);
                if at <= now && domain.is_in_use() {
                    due.push((domain.due_fetch(now).is_none(), at, domain));
                }
            } else if may_expire && now - domain.last_used() > REFRESH_INTERVAL {
                self.subtract_text(domain.text_bytes());
                self.known.domains.write().remove(&*domain.name);
            }
        }
        due.sort_unstable_by_key(|(record_alone, at, _)| (*record_alone, *at));
        due.iter().for_each(|(_, _, domain)| drop(self.start_lookup(domain, now, Requester::Daemon)));
    }

    /// Where there is too much, lets go of a twentieth. Of the domains: the least recently used first, unexpired enforced
    /// policies last. Of the text: from those that take more than their share alone, the longest first, enforced ones
    /// last; what the others take is within the limit. A domain that is looked at stays: it would lose the result.
    #[allow(clippy::mutable_key_type)] // Names alone are compared, and they do not change.
    fn evict(&self, domains: &mut Domains, exempt: &Arc<DomainState>, now: i64) {
        let most = self.limit * TEXT_BYTES_PER_DOMAIN;
        let (full, heavy) = (domains.len() > self.limit, self.text_bytes() > most);
        if !full && !heavy {
            return;
        }
        let others = domains.iter().map(|domain| &domain.0).filter(|domain| !Arc::ptr_eq(domain, exempt));
        let mut candidates: Vec<_> = others.map(|domain| EvictionCandidate::new(domain, now)).collect();
        let mut evicted = 0;
        let mut evict = |domains: &mut Domains, candidate: &EvictionCandidate| {
            let name = &candidate.domain.name;
            if self.flights.is_under_way(name) || !domains.remove(&**name) {
                return;
            }
            evicted += 1;
            self.subtract_text(candidate.domain.text_bytes());
            if candidate.domain.has_policy() {
                self.mark_dirty(name);
            }
        };
        if heavy {
            candidates.sort_unstable_by_key(EvictionCandidate::text_rank);
            for candidate in candidates.iter().filter(|candidate| candidate.bytes > TEXT_BYTES_PER_DOMAIN) {
                if self.text_bytes() <= most - most / 20 {
                    break;
                }
                evict(domains, candidate);
            }
        }
        if full {
            candidates.sort_unstable_by_key(EvictionCandidate::use_rank);
            for candidate in &candidates {
                if domains.len() <= self.limit - self.limit / 20 {
                    break;
                }
                evict(domains, candidate);
            }
        }
        self.metrics.add("sts_domains_evicted", evicted);
    }

    /// Writes what has changed; what could not be written is tried again with the next change or sweep. Fails with
    /// the cause.
    pub async fn write(&self) -> Result<(), String> {
        let _turn = self.known.writing.lock().await;
        loop {
            let names: Vec<Arc<str>> = self.known.dirty.lock().extract_if(|_| true).take(MAX_BATCH_RECORDS).collect();
            if names.is_empty() {
                return Ok(());
            }
            let mut batch = Batch::default();
            for name in &names {
                let value = self.get(name).and_then(|domain| domain.encode());
                batch.set.push((Table::Sts, name.as_bytes().to_vec(), value));
            }
            let store = Arc::clone(&self.store);
            let error = match tokio::task::spawn_blocking(move || store.write(batch)).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.known.dirty.lock().extend(names);
            if self.throttle.permits("store", self.clock.seconds()) {
                let line =
                    format!("store: cannot write MTA-STS policies: {error}; they serve from memory until it can");
                self.metrics.log_error(self.clock, line);
            }
            return Err(error);
        }
    }
}

/// A domain that may be evicted, with what decides about it as it was at one moment.
struct EvictionCandidate {
    enforced: bool,
    used: i64,
    bytes: usize,
    domain: Arc<DomainState>,
}

impl EvictionCandidate {
    fn new(domain: &Arc<DomainState>, now: i64) -> EvictionCandidate {
        EvictionCandidate {
            enforced: domain.policy(now).is_some_and(|policy| policy.mode == Mode::Enforce),
            used: domain.last_used(),
            bytes: domain.text_bytes(),
            domain: Arc::clone(domain),
        }
    }

    /// Who goes first where there is too much text: by size to a power of two, then by use.
    fn text_rank(&self) -> (bool, Reverse<u32>, i64) {
        (self.enforced, Reverse(self.bytes.checked_ilog2().unwrap_or(0)), self.used)
    }

    /// Who goes first where there are too many.
    fn use_rank(&self) -> (bool, i64) {
        (self.enforced, self.used)
    }
}
