//! Which TLS policy is in force for a next hop: DANE before MTA-STS before none.
//!
//! Takes: a next hop as the MTA writes it. Gives: a [`Decision`], from memory where one stands ([`Policies::cached`]),
//! else within `[policy] answer_budget` ([`Policies::decide`]); what takes longer goes on behind it.
//! Never weaker than published: an unexpired enforced MTA-STS policy holds whatever fails, a failing DANE look-up is
//! never overridden by it, and where nothing is known the answer is "ask again". A failing `_mta-sts` record or policy
//! host never defers mail.
//! Limits: `[policy] max_domains` decisions, the least recently asked out first (`decisions_evicted`); [`MAX_LOOKUPS`]
//! look-ups at once, three quarters of them for one client (`decisions_refused`, `dane_lookups_refused`), and besides
//! [`MAX_BACKGROUND_LOOKUPS`] that nobody waits for (`refreshes_postponed`).
//! When it fails: the answer TEMP, with the cause.
//! Not here: how an answer is worded (`socketmap/reply.rs`), sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::answering::policy::dane::cached_verdict::{CachedVerdict, MAX_STALE};
use crate::answering::policy::dane::store::{self, VerdictStore};
use crate::answering::policy::decision::{Answer, Basis, Decision, Facts, PostfixTraits};
use crate::answering::policy::decision_cache::{CachedDecision, DecisionCache};
use crate::answering::policy::held_to::HeldTo;
use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::history::compact::StoredPolicy;
use crate::answering::policy::overrides::Overrides;
use crate::answering::policy::single_flight::{Flight, SingleFlight};
use crate::answering::policy::sts::cache::{MAX_BACKGROUND_LOOKUPS, MAX_LOOKUPS, StsCache};
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::{Clock, SharedCompactTime, SteadyClock};
use crate::base::next_hop::NextHop;
use crate::base::requester::Requester;
use crate::base::shutdown::wait_for_shutdown;
use crate::config::{Config, PostfixLevel, WithoutDnssec};
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::HttpsClient;
use crate::store::{Store, StoreError};

/// The shortest time between two queries for a record because of failed sessions, in seconds.
const RECHECK_INTERVAL: i64 = 60;

/// Time between two searches for verdicts that have ended for good.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);

/// Why a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trigger {
    /// An MTA asked, and no decision is current.
    Lookup(Requester),
    /// A decision ends soon and is refreshed in the background.
    Refresh,
    /// An administrator wants every look-up repeated.
    AdminRefresh,
    /// An administrator wants an explanation: no mail is held to it, so it is not recorded.
    Explain,
}

impl Trigger {
    /// Who the look-ups are made for.
    pub(super) fn requester(self) -> Requester {
        match self {
            Trigger::Lookup(requester) => requester,
            Trigger::Refresh => Requester::Daemon,
            Trigger::AdminRefresh | Trigger::Explain => Requester::Administrator,
        }
    }
}

/// All decisions, shared by everyone who asks.
pub struct Policies {
    pub(super) cache: DecisionCache,
    pub(super) budget: Duration,
    pub(super) resolver: Resolver,
    /// Whether the MTA uses DNSSEC.
    pub(super) uses_dnssec: bool,
    /// Whether mail waits where no resolver validates (`[policy] without_dnssec`).
    pub(super) wants_dnssec: bool,
    /// What is known of the Postfix that asks.
    pub(super) postfix: PostfixTraits,
    pub(super) overrides: Overrides,
    pub(super) verdict_store: Arc<VerdictStore>,
    pub(super) sts: Arc<StsCache>,
    pub(super) history: Arc<PolicyHistory>,
    pub(super) clock: Clock,
    steady: SteadyClock,
    pub(super) metrics: Metrics,
    pub(super) throttle: Throttle,
    decision_flights: SingleFlight<Decision>,
    pub(super) verdict_flights: SingleFlight<CachedVerdict>,
    /// For what is no domain name.
    pub(super) no_policy: CachedDecision,
    levels: LevelSet,
}

/// A set of levels.
#[derive(Debug, Default)]
struct LevelSet(AtomicU16);

impl LevelSet {
    fn insert(&self, level: PostfixLevel) {
        let bit = 1 << level as u16;
        // Most of the time it is there.
        if self.0.load(Ordering::Relaxed) & bit == 0 {
            self.0.fetch_or(bit, Ordering::Relaxed);
        }
    }

    fn to_vec(&self) -> Vec<PostfixLevel> {
        let bits = self.0.load(Ordering::Relaxed);
        let levels = PostfixLevel::ALL.map(|(level, _)| level).into_iter();
        levels.filter(|level| bits & 1 << *level as u16 != 0).collect()
    }
}

/// How many policies and decisions there are, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyCounts {
    /// Next hops with a decision in memory.
    pub decisions: usize,
    /// Domains whose MTA-STS record is known.
    pub domains: usize,
    /// Unexpired MTA-STS policies.
    pub policies: usize,
    /// Octets that the texts of MTA-STS policies take, and of documents that are none.
    pub sts_octets: usize,
    /// Periods of the history.
    pub periods: usize,
}

impl Policies {
    /// Nothing known yet: [`Policies::load`] adds what the store has. Call it within the tokio runtime.
    pub fn new(
        config: &Config,
        resolver: Resolver,
        client: HttpsClient,
        store: Arc<dyn Store>,
        history: Arc<PolicyHistory>,
        clock: Clock,
        metrics: Metrics,
    ) -> Arc<Policies> {
        let limit = config.policy.max_domains;
        let verdict_store = Arc::new(VerdictStore::new(Arc::clone(&store), limit));
        let sts = StsCache::new(limit, resolver.clone(), client, store, clock, metrics.clone());
        Arc::new(Policies::with_caches(config, resolver, sts, verdict_store, history, clock, metrics))
    }

    /// A successor with another configuration, which knows everything that this one knows. Nothing is read from the store,
    /// unless DANE is new.
    pub fn reopen(&self, config: &Config, resolver: Resolver, client: HttpsClient) -> Arc<Policies> {
        let sts = self.sts.reopen(config.policy.max_domains, resolver.clone(), client);
        let (verdict_store, history) = (Arc::clone(&self.verdict_store), Arc::clone(&self.history));
        let policies =
            Policies::with_caches(config, resolver, sts, verdict_store, history, self.clock, self.metrics.clone());
        for hop in self.cache.next_hops() {
            if let Some(entry) = self.cache.get(&hop)
                && let Some(verdict) = entry.verdict.clone()
            {
                policies.restore(hop, verdict);
            }
        }
        if policies.dane_enabled()
            && !self.dane_enabled()
            && let Err(error) = policies.load_verdicts()
        {
            let line = format!("store: cannot read DANE verdicts: {error}; they are looked up anew");
            self.metrics.log_error(self.clock, line);
        }
        Arc::new(policies)
    }

    fn with_caches(
        config: &Config,
        resolver: Resolver,
        sts: StsCache,
        verdict_store: Arc<VerdictStore>,
        history: Arc<PolicyHistory>,
        clock: Clock,
        metrics: Metrics,
    ) -> Policies {
        let wants_dnssec = config.postfix.dnssec() && config.policy.without_dnssec == WithoutDnssec::Temp;
        let uses_dnssec = config.postfix.dnssec();
        if !uses_dnssec {
            tracing::info!(
                "policy: no DANE: Postfix asks for no DNSSEC (smtp_dns_support_level, or [postfix] dnssec); MTA-STS alone \
                 is answered"
            );
        }
        Policies {
            cache: DecisionCache::new(config.policy.max_domains),
            budget: config.policy.answer_budget.0,
            uses_dnssec,
            wants_dnssec,
            postfix: PostfixTraits::of(&config.postfix),
            overrides: Overrides::new(&config.policy.overrides),
            resolver,
            sts: Arc::new(sts),
            history,
            clock,
            steady: SteadyClock::new(clock),
            metrics,
            throttle: Throttle::default(),
            decision_flights: SingleFlight::new(MAX_LOOKUPS, MAX_BACKGROUND_LOOKUPS),
            verdict_flights: SingleFlight::new(MAX_LOOKUPS, MAX_BACKGROUND_LOOKUPS),
            no_policy: CachedDecision::no_policy(),
            levels: LevelSet::default(),
            verdict_store,
        }
    }

    /// Whether DANE is looked at: the MTA uses DNSSEC, and the resolver is believed about it. The nameservers may change.
    pub(super) fn dane_enabled(&self) -> bool {
        self.uses_dnssec && self.resolver.is_trusted()
    }

    /// Adds what the store has and what is not known yet.
    pub fn load(&self) -> Result<(), StoreError> {
        self.sts.load(&self.history)?;
        if self.dane_enabled() { self.load_verdicts() } else { Ok(()) }
    }

    fn load_verdicts(&self) -> Result<(), StoreError> {
        for (key, verdict) in self.verdict_store.load(self.cache.limit())? {
            if self.cache.get(&key).is_none_or(|entry| entry.verdict.is_none()) {
                self.restore(self.intern_name(&key), verdict);
            }
        }
        Ok(())
    }

    /// Adds a verdict from which a decision is made when it is asked for.
    fn restore(&self, hop: Arc<str>, verdict: CachedVerdict) {
        self.cache.insert(CachedDecision::restored(hop, Arc::clone(&self.no_policy.domain), verdict));
    }

    /// Has what waits to be written tried again at once.
    pub fn write_pending(&self) {
        self.sts.write_pending();
        self.verdict_store.wake.notify_one();
    }

    /// Has everything written anew, because the store has lost some.
    pub fn write_again(&self) {
        self.sts.write_again();
        for hop in self.cache.next_hops() {
            if let Some(verdict) = self.cache.get(&hop).and_then(|entry| entry.verdict.clone()) {
                self.verdict_store.insert(hop.to_string(), verdict);
            }
        }
    }

    /// What is known of the Postfix that asks.
    pub fn postfix(&self) -> PostfixTraits {
        self.postfix
    }

    /// The clock that all of it goes by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The copy of a name that is already in memory, if there is one, so that it is stored once.
    pub(super) fn intern_name(&self, name: &str) -> Arc<str> {
        let known = self.sts.get(name).map(|domain| Arc::clone(&domain.name));
        known.or_else(|| self.history.interned_name(name)).unwrap_or_else(|| name.into())
    }

    /// The decision that stands for a next hop as the MTA writes it; none where one must be made ([`Policies::decide`]).
    pub fn cached(self: &Arc<Self>, key: &[u8]) -> Option<Decision> {
        self.with_entry(key, None, CachedDecision::decision)
    }

    /// Appends the answer that stands for a next hop as the MTA writes it, in the words of `render`, which are kept:
    /// `wording` tells them apart; gives what it follows from. None where an answer must be made ([`Policies::decide`]).
    /// What is not a domain name (address literals, paths, dot-keys) has the answer "no policy" at once. A microsecond or less.
    /// `level`: the own level of the service that asks, where it is not that of main.cf.
    pub fn write_reply(
        self: &Arc<Self>,
        key: &[u8],
        level: Option<PostfixLevel>,
        wording: u8,
        render: impl FnOnce(&Decision) -> Box<[u8]>,
        out: &mut Vec<u8>,
    ) -> Option<Option<Facts>> {
        self.with_entry(key, level, |entry| {
            self.cache.write_reply(entry, wording, render, out);
            entry.facts()
        })
    }

    /// Does something with the entry of a next hop, if its decision stands. `then` must not wait.
    fn with_entry<R>(
        self: &Arc<Self>,
        key: &[u8],
        level: Option<PostfixLevel>,
        then: impl FnOnce(&CachedDecision) -> R,
    ) -> Option<R> {
        let mut then = Some(then);
        let mut is_current = |key: &[u8], entry: &CachedDecision| match self.is_current(key, level, entry) {
            // It is taken once: the second look is for another key.
            true => then.take().map(|then| then(entry)),
            false => None,
        };
        if let Some(found) = self.cache.with(key, |entry| is_current(key, entry)) {
            return found;
        }
        let Some(hop) = NextHop::parse(key) else { return is_current(key, &self.no_policy) };
        let key = hop.key().into_bytes();
        self.cache.with(&key, |entry| is_current(&key, entry)).flatten()
    }

    /// Whether an entry's decision still stands; notes that it was asked about.
    fn is_current(self: &Arc<Self>, key: &[u8], level: Option<PostfixLevel>, entry: &CachedDecision) -> bool {
        let now = self.clock.seconds();
        if !entry.holds(now) {
            return false;
        }
        let counts_as_main = level.is_none_or(|level| self.note_level(key, level, entry, now));
        if entry.last_asked.seconds() != now {
            if let Some(period) = &entry.period
                && counts_as_main
                && !self.history.touch(period, now)
            {
                return false;
            }
            entry.last_asked.set(now);
            entry.domain.touch(now);
            if now >= entry.refresh_at.seconds() && !entry.refreshing.swap(true, Ordering::Relaxed) {
                self.refresh_in_background(key, entry);
            }
        }
        true
    }

    /// Notes that a service with this own level was answered from an entry. Returns whether its sessions are held to what
    /// those at the level of main.cf are held to, and noted with them.
    fn note_level(&self, key: &[u8], level: PostfixLevel, entry: &CachedDecision, now: i64) -> bool {
        self.levels.insert(level);
        let Basis::Published(published) = &entry.basis else { return true };
        let policy = HeldTo::of_entry(entry, now).stored_policy(published, level, self.postfix);
        if entry.period.as_ref().is_some_and(|period| *period.policy() == policy) {
            return true;
        }
        let waits = entry.facts().is_some_and(|facts| facts.for_postfix(level, self.postfix) == Answer::Temp);
        // Nothing is in force where the mail waits, unless that is the destination's fault.
        if !(waits && policy == StoredPolicy::None)
            && let Some(hop) = NextHop::parse(key)
        {
            self.history.record_answer_at(level, &hop, &entry.domain.name, now, policy);
        }
        false
    }

    /// The decision for a service with this own level, where it is not that of main.cf.
    pub async fn decide_at(
        self: &Arc<Self>,
        key: &[u8],
        level: Option<PostfixLevel>,
        requester: Requester,
    ) -> Decision {
        let decision = self.decide(key, requester).await;
        if let (Some(level), Some(hop)) = (level, NextHop::parse(key))
            && let Some(entry) = self.cache.get(&hop.key())
        {
            self.note_level(key, level, &entry, self.clock.seconds());
        }
        decision
    }

    /// The own levels of services that have asked, besides that of main.cf.
    pub fn levels(&self) -> Vec<PostfixLevel> {
        self.levels.to_vec()
    }

    /// The decision for a next hop, made now for `requester` if none stands: within the budget, once however many ask.
    pub async fn decide(self: &Arc<Self>, key: &[u8], requester: Requester) -> Decision {
        if let Some(decision) = self.cached(key) {
            return decision;
        }
        // `cached` has answered for what is none.
        let Some(hop) = NextHop::parse(key) else { return self.no_policy.decision() };
        self.resolve(hop, Trigger::Lookup(requester)).await
    }

    /// What [`Policies::decide`] would give, noted nowhere: no session is held to it.
    pub(super) async fn explain_decision(self: &Arc<Self>, hop: &NextHop) -> Decision {
        let now = self.clock.seconds();
        match self.cache.get(&hop.key()) {
            Some(entry) if entry.holds(now) => entry.decision(),
            _ => self.resolve(hop.clone(), Trigger::Explain).await,
        }
    }

    async fn resolve(self: &Arc<Self>, hop: NextHop, trigger: Trigger) -> Decision {
        let Some(flight) = self.start_resolution(hop, trigger) else {
            return Decision::temp("too many look-ups under way");
        };
        // The work keeps the budget itself; the second is for a busy host.
        let deadline = Instant::now() + self.budget + Duration::from_secs(1);
        flight.wait(deadline).await.unwrap_or_else(|| Decision::temp("no answer in time"))
    }

    /// Who asks does not share the work of who does not: that would be an answer which is not noted. Nothing where too
    /// many decisions are being made.
    pub(super) fn start_resolution(self: &Arc<Self>, hop: NextHop, trigger: Trigger) -> Option<Flight<Decision>> {
        let key = match trigger {
            Trigger::Lookup(_) => hop.key(),
            Trigger::Refresh | Trigger::AdminRefresh | Trigger::Explain => format!("{trigger:?} {}", hop.key()),
        };
        let flight = self.decision_flights.join(&key, trigger.requester(), || {
            let policies = Arc::clone(self);
            async move { policies.run_resolution(hop, trigger).await }
        });
        let counter = if trigger == Trigger::Refresh { "refreshes_postponed" } else { "decisions_refused" };
        self.metrics.add(counter, u64::from(flight.is_none()));
        flight
    }

    /// Keeps policies fresh and stored, until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, shutdown: watch::Receiver<bool>) {
        tokio::join!(Arc::clone(&self.sts).run(shutdown.clone()), self.maintain_verdicts(shutdown));
        self.decision_flights.abort();
        self.verdict_flights.abort();
    }

    /// A session to a domain failed under its MTA-STS policy: queries its record now, in the background, for perhaps a
    /// newer policy is published (RFC 8461 §5.1). At most once in [`RECHECK_INTERVAL`] a domain, and only where a
    /// policy is cached.
    pub fn recheck_after_failure(&self, domain: &str) {
        let now = self.clock.seconds();
        let Some(domain) = self.sts.get(domain) else { return };
        let known = domain.snapshot(now);
        if known.policy.is_none()
            || known.checked.is_some_and(|checked| (0..RECHECK_INTERVAL).contains(&(now - checked)))
        {
            return;
        }
        self.metrics.add("sts_records_hinted", 1);
        domain.request_refresh(now, false);
        drop(self.sts.start_lookup(&domain, now, Requester::Daemon));
    }

    /// Writes new verdicts to the store, and removes those that have ended for good.
    async fn maintain_verdicts(&self, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.verdict_store.wake.notified() => tokio::time::sleep(store::WRITE_DELAY).await,
                _ = sweep.tick() => self.sweep(self.clock.seconds()),
                () = wait_for_shutdown(&mut shutdown) => break,
            }
            self.write_verdicts().await;
        }
        self.write_verdicts().await;
    }

    async fn write_verdicts(&self) {
        if let Err(error) = self.verdict_store.write().await
            && self.throttle.permits("store", self.clock.seconds())
        {
            let line = format!("store: cannot write DANE verdicts: {error}; they serve from memory until it can");
            self.metrics.log_error(self.clock, line);
        }
    }

    fn sweep(&self, now: i64) {
        let may_expire = self.steady.permits_expiry();
        self.cache.retain(|entry| {
            entry.settle(now);
            let ended = entry.verdict.as_ref().is_some_and(|verdict| verdict.expires() + MAX_STALE < now);
            let goes = may_expire && ended && entry.last_asked.seconds() + MAX_STALE < now;
            if goes {
                self.verdict_store.remove(entry.hop.to_string());
            }
            !goes
        });
    }

    /// How many policies and decisions there are.
    pub fn counts(&self) -> PolicyCounts {
        let (domains, policies) = self.sts.counts();
        PolicyCounts {
            decisions: self.cache.len(),
            domains,
            policies,
            sts_octets: self.sts.text_bytes(),
            periods: self.history.len(),
        }
    }

    /// Starts a new decision in the background; postpones it while many of that kind are under way.
    fn refresh_in_background(self: &Arc<Self>, key: &[u8], entry: &CachedDecision) {
        let Some(hop) = NextHop::parse(key) else { return };
        if self.start_resolution(hop, Trigger::Refresh).is_none() {
            entry.refreshing.store(false, Ordering::Relaxed);
        }
    }

    /// Caches a decision. One that was made without the end of a DANE look-up (`incomplete`) takes over a verdict that
    /// has come since, and is made anew from it.
    pub(super) fn insert(&self, entry: CachedDecision, incomplete: bool) {
        let (now, hop) = (self.clock.seconds(), Arc::clone(&entry.hop));
        let evicted = self.cache.update(&hop, |before| {
            let came = before.and_then(|before| before.verdict.as_ref()).filter(|came| came.holds(now));
            match came.filter(|came| incomplete && Some(*came) != entry.verdict.as_ref()) {
                Some(came) => Some(entry.with_verdict(came.clone(), false)),
                None => Some(entry),
            }
        });
        self.count_evicted(evicted);
    }

    /// Keeps the verdict of a look-up for who asks next, whoever has waited for it: a look-up may take longer than any
    /// answer. `published`: decisions have been made from a part of it. Returns whether it was kept: one that is poorer
    /// than the known one is not.
    pub(super) fn keep_verdict(&self, hop: &NextHop, found: &CachedVerdict, published: bool) -> bool {
        let (now, key) = (self.clock.seconds(), hop.key());
        let mut kept = false;
        let evicted = self.cache.update(&key, |before| {
            let known = before.and_then(|before| before.verdict.clone()).map(|known| known.into_last_known(now));
            kept = CachedVerdict::choose(known.as_ref(), found, now) == Some(found);
            if !kept {
                return None;
            }
            Some(match before {
                Some(before) => {
                    let stands = !published && known.is_some_and(|known| known.holds(now));
                    before.with_verdict(found.clone(), stands)
                }
                None => CachedDecision {
                    last_asked: SharedCompactTime::from_seconds(now),
                    ..CachedDecision::restored(
                        self.intern_name(&key),
                        Arc::clone(&self.no_policy.domain),
                        found.clone(),
                    )
                },
            })
        });
        self.count_evicted(evicted);
        if kept {
            self.verdict_store.insert(key, found.clone());
        }
        kept
    }

    fn count_evicted(&self, evicted: Vec<Arc<CachedDecision>>) {
        for entry in evicted.iter().filter(|entry| entry.verdict.is_some()) {
            self.verdict_store.remove(entry.hop.to_string());
        }
        self.metrics.add("decisions_evicted", evicted.len() as u64);
    }
}
