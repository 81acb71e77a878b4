//! Which TLS policy is in force for a next hop: DANE before MTA-STS before none.
//!
//! Takes: a next hop as the MTA writes it. Gives: a [`Decision`], from memory where one stands ([`Policies::cached`]),
//! else within `[policy] answer_budget` ([`Policies::decide`]); what takes longer goes on behind it.
//! Never weaker than published: an unexpired enforced MTA-STS policy holds whatever fails, a failing DANE look-up is
//! never overridden by it, and where nothing is known the answer is "ask again". A failing `_mta-sts` record or policy
//! host never defers mail.
//! Limits: `[policy] max_domains` decisions, the least recently asked out first (`decisions_evicted`); [`MAX_LOOKUPS`]
//! look-ups at once (`decisions_refused`, `dane_lookups_refused`), [`MAX_BACKGROUND_LOOKUPS`] that nobody waits for
//! (`refreshes_postponed`).
//! When it fails: [`Level::Temp`], with the cause.
//! Not here: how an answer is worded (`socketmap/wording.rs`), sockets.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::answering::policy::dane::cached_verdict::MAX_STALE;
use crate::answering::policy::dane::lookup::DaneVerdict;
use crate::answering::policy::dane::store::{self, Shelf};
use crate::answering::policy::decision::{Decision, Facts, PostfixTraits};
use crate::answering::policy::decision_cache::{Entries, Entry};
use crate::answering::policy::history::PolicyHistory;
use crate::answering::policy::overrides::Overrides;
use crate::answering::policy::single_flight::{Flight, Flights};
use crate::answering::policy::sts::cache::{MAX_BACKGROUND_LOOKUPS, MAX_LOOKUPS, StsCache};
use crate::answering::policy::throttle::Throttle;
use crate::base::clock::Clock;
use crate::base::next_hop::NextHop;
use crate::base::shutdown::wait_for_shutdown;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::net::dns::Resolver;
use crate::net::https::HttpsClient;
use crate::store::{Store, StoreError};

/// How often a failing delivery makes a record be asked again at most, in seconds.
const HINT: i64 = 60;

/// Time between two looks for verdicts that may serve no longer.
const SWEEP: Duration = Duration::from_secs(600);

/// Why a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urge {
    /// It was asked for, and none stands.
    Asked,
    /// What ends soon is asked again now, behind the answers.
    Ahead,
    /// An administrator wants everything looked at again.
    Told,
    /// An administrator wants to know what would be answered: no mail is held to it, so that it is noted nowhere.
    Explained,
}

/// All decisions, shared by everyone who asks.
pub struct Policies {
    pub(super) entries: Entries,
    pub(super) budget: Duration,
    pub(super) resolver: Resolver,
    /// Whether DANE is looked at: the resolver validates and the MTA uses DNSSEC.
    pub(super) dane: bool,
    /// What is known of the Postfix that asks.
    pub(super) postfix: PostfixTraits,
    pub(super) overrides: Overrides,
    pub(super) shelf: Shelf,
    pub(super) sts: Arc<StsCache>,
    pub(super) history: Arc<PolicyHistory>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    pub(super) throttle: Throttle,
    decisions: Flights<Decision>,
    pub(super) verdicts: Flights<Arc<DaneVerdict>>,
    /// For what is no domain name.
    pub(super) nothing: Entry,
}

/// How much there is of what, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counts {
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
    /// Everything that the store has, and nothing asked yet. Call it within the tokio runtime.
    pub fn open(
        config: &Config,
        resolver: Resolver,
        client: HttpsClient,
        store: Arc<dyn Store>,
        history: Arc<PolicyHistory>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Arc<Policies>, StoreError> {
        let limit = config.policy.max_domains;
        let shelf = Shelf::new(Arc::clone(&store));
        let sts = StsCache::open(limit, resolver.clone(), client, store, &history, clock, metrics.clone())?;
        let why_no_dane = match (config.postfix.dnssec(), resolver.is_trusted()) {
            (false, _) => Some("Postfix asks for no DNSSEC (smtp_dns_support_level, or [postfix] dnssec)"),
            (true, false) => Some(
                "no validating resolver on this host (resolv.conf names none on loopback, [resolver] address is not set)",
            ),
            (true, true) => None,
        };
        if let Some(cause) = why_no_dane {
            tracing::info!("policy: no DANE: {cause}; MTA-STS alone is answered");
        }
        let held = if why_no_dane.is_none() { shelf.load(clock.seconds(), limit)? } else { Vec::new() };
        let policies = Policies {
            entries: Entries::new(limit),
            budget: config.policy.answer_budget.0,
            dane: why_no_dane.is_none(),
            postfix: PostfixTraits::of(&config.postfix),
            overrides: Overrides::new(&config.policy.overrides),
            resolver,
            sts: Arc::new(sts),
            history,
            clock,
            metrics,
            throttle: Throttle::default(),
            decisions: Flights::new(MAX_LOOKUPS),
            verdicts: Flights::new(MAX_LOOKUPS),
            nothing: Entry::nothing(),
            shelf,
        };
        for (key, held) in held {
            let hop = policies.name(&key);
            policies.entries.put(Entry::before(hop, Arc::clone(&policies.nothing.domain), held));
        }
        Ok(Arc::new(policies))
    }

    /// What is known of the Postfix that asks.
    pub fn postfix(&self) -> PostfixTraits {
        self.postfix
    }

    /// The clock that all of it goes by.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// A name as it is kept already, if it is, so that it is kept once.
    pub(super) fn name(&self, name: &str) -> Arc<str> {
        let known = self.sts.get(name).map(|domain| Arc::clone(&domain.name));
        known.or_else(|| self.history.interned_name(name)).unwrap_or_else(|| name.into())
    }

    /// The decision that stands for a next hop as the MTA writes it; none where one must be made ([`Policies::decide`]).
    pub fn cached(self: &Arc<Self>, key: &[u8]) -> Option<Decision> {
        self.with_entry(key, Entry::decision)
    }

    /// Appends the answer that stands for a next hop as the MTA writes it, in the words of `word`, which are kept:
    /// `wording` tells them apart; gives what it follows from. None where an answer must be made ([`Policies::decide`]). What is no
    /// domain name (address literals, paths, dot-keys) has the answer "no policy" at once. A microsecond or less.
    pub fn say(
        self: &Arc<Self>,
        key: &[u8],
        wording: u8,
        word: impl FnOnce(&Decision) -> Box<[u8]>,
        out: &mut Vec<u8>,
    ) -> Option<Option<Facts>> {
        self.with_entry(key, |entry| {
            self.entries.say(entry, wording, word, out);
            entry.facts()
        })
    }

    /// Does something with the entry of a next hop, if its decision stands. `then` must not wait.
    fn with_entry<R>(self: &Arc<Self>, key: &[u8], then: impl FnOnce(&Entry) -> R) -> Option<R> {
        let mut then = Some(then);
        let mut stands = |key: &[u8], entry: &Entry| match self.stands(key, entry) {
            // It is taken once: the second look is for another key.
            true => then.take().map(|then| then(entry)),
            false => None,
        };
        if let Some(found) = self.entries.with(key, |entry| stands(key, entry)) {
            return found;
        }
        let Some(hop) = NextHop::parse(key) else { return stands(key, &self.nothing) };
        let key = hop.key().into_bytes();
        self.entries.with(&key, |entry| stands(&key, entry)).flatten()
    }

    /// Whether an entry's decision still stands; notes that it was asked about.
    fn stands(self: &Arc<Self>, key: &[u8], entry: &Entry) -> bool {
        let now = self.clock.seconds();
        if now >= entry.until.seconds() || entry.version != entry.domain.version() {
            return false;
        }
        if entry.asked.seconds() != now {
            if let Some(period) = &entry.period
                && !self.history.touch(period, now)
            {
                return false;
            }
            entry.asked.set(now);
            entry.domain.touch(now);
            if now >= entry.refresh.seconds() && !entry.refreshing.swap(true, Ordering::Relaxed) {
                self.refresh(key, entry);
            }
        }
        true
    }

    /// The decision for a next hop, made now if none stands: within the budget, once however many ask.
    pub async fn decide(self: &Arc<Self>, key: &[u8]) -> Decision {
        if let Some(decision) = self.cached(key) {
            return decision;
        }
        // `cached` has answered for what is none.
        let Some(hop) = NextHop::parse(key) else { return self.nothing.decision() };
        self.fly(hop, Urge::Asked).await
    }

    /// What [`Policies::decide`] would give, noted nowhere: no session is held to it.
    pub(super) async fn peek(self: &Arc<Self>, hop: &NextHop) -> Decision {
        let now = self.clock.seconds();
        match self.entries.of(&hop.key()) {
            Some(entry) if now < entry.until.seconds() && entry.version == entry.domain.version() => entry.decision(),
            _ => self.fly(hop.clone(), Urge::Explained).await,
        }
    }

    async fn fly(self: &Arc<Self>, hop: NextHop, urge: Urge) -> Decision {
        let Some(flight) = self.begin(hop, urge) else { return Decision::temp("too many look-ups under way") };
        // The work keeps the budget itself; the second is for a busy host.
        let patience = Instant::now() + self.budget + Duration::from_secs(1);
        flight.landed(patience).await.unwrap_or_else(|| Decision::temp("no answer in time"))
    }

    /// Who asks does not share the work of who does not: that would be an answer which is not noted. Nothing where too
    /// many decisions are being made.
    fn begin(self: &Arc<Self>, hop: NextHop, urge: Urge) -> Option<Flight<Decision>> {
        let key = match urge {
            Urge::Asked => hop.key(),
            Urge::Ahead | Urge::Told | Urge::Explained => format!("{urge:?} {}", hop.key()),
        };
        let flight = self.decisions.join(&key, || {
            let policies = Arc::clone(self);
            async move { policies.make(hop, urge).await }
        });
        self.metrics.add("decisions_refused", u64::from(flight.is_none()));
        flight
    }

    /// Keeps policies fresh and stored, until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, shutdown: watch::Receiver<bool>) {
        tokio::join!(Arc::clone(&self.sts).run(shutdown.clone()), self.keep_verdicts(shutdown));
        self.decisions.abort();
        self.verdicts.abort();
    }

    /// A session to a domain failed under its MTA-STS policy: looks at its record now, in the background, for perhaps a
    /// newer policy is published (RFC 8461 §5.1). At most once in [`HINT`] a domain, and only where a policy is cached.
    pub fn hint(&self, domain: &str) {
        let now = self.clock.seconds();
        let Some(domain) = self.sts.get(domain) else { return };
        let known = domain.snapshot(now);
        if known.policy.is_none() || known.checked.is_some_and(|checked| (0..HINT).contains(&(now - checked))) {
            return;
        }
        self.metrics.add("sts_records_hinted", 1);
        domain.request_refresh(now, false);
        drop(self.sts.start_lookup(&domain, now));
    }

    /// Writes verdicts behind, and lets go of those that may serve no longer.
    async fn keep_verdicts(&self, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shelf.wake.notified() => tokio::time::sleep(store::BEHIND).await,
                _ = sweep.tick() => self.sweep(self.clock.seconds()),
                () = wait_for_shutdown(&mut shutdown) => break,
            }
            self.write_verdicts().await;
        }
        self.write_verdicts().await;
    }

    async fn write_verdicts(&self) {
        if let Err(error) = self.shelf.write().await
            && self.throttle.permits("store", self.clock.seconds())
        {
            let line = format!("store: cannot write DANE verdicts: {error}; they serve from memory until it can");
            self.metrics.log_error(self.clock, line);
        }
    }

    fn sweep(&self, now: i64) {
        self.entries.retain(|entry| {
            let ended = entry.held.as_ref().is_some_and(|held| held.expires() + MAX_STALE < now);
            let goes = ended && entry.asked.seconds() + MAX_STALE < now;
            if goes {
                self.shelf.remove(entry.hop.to_string());
            }
            !goes
        });
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        let (domains, policies) = self.sts.counts();
        Counts {
            decisions: self.entries.len(),
            domains,
            policies,
            sts_octets: self.sts.text_bytes(),
            periods: self.history.len(),
        }
    }

    /// Makes a decision anew, behind the answers; later, where many are being made.
    fn refresh(self: &Arc<Self>, key: &[u8], entry: &Entry) {
        if self.decisions.len() >= MAX_BACKGROUND_LOOKUPS {
            self.metrics.add("refreshes_postponed", 1);
            entry.refreshing.store(false, Ordering::Relaxed);
        } else if let Some(hop) = NextHop::parse(key) {
            drop(self.begin(hop, Urge::Ahead));
        }
    }

    pub(super) fn keep(&self, entry: Entry) {
        let gone = self.entries.put(entry);
        for entry in gone.iter().filter(|entry| entry.held.is_some()) {
            self.shelf.remove(entry.hop.to_string());
        }
        self.metrics.add("decisions_evicted", gone.len() as u64);
    }
}
