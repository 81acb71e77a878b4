//! Which TLS policy is in force for a next hop: DANE before MTA-STS before none.
//!
//! Takes: a next hop as the MTA writes it. Gives: a [`Decision`], from memory where one stands ([`Policies::cached`]),
//! else within `[policy] answer_budget` ([`Policies::decide`]); what takes longer goes on behind it.
//! Never weaker than published: an unexpired enforced MTA-STS policy holds whatever fails, a failing DANE look-up is
//! never overridden by it, and where nothing is known the answer is "ask again". A failing `_mta-sts` record or policy
//! host never defers mail.
//! Limits: `[policy] max_domains` decisions, the least recently asked out first (`decisions_evicted`).
//! When it fails: [`Level::Temp`], with the cause.
//! Not here: how an answer is worded (`socketmap/wording.rs`), sockets.

pub mod dane;
mod decision;
pub mod explain;
pub mod flight;
pub mod history;
mod hop;
pub mod ledger;
pub mod overrides;
mod shelf;
pub mod sts;
mod throttle;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::config::{Config, Level as DefaultLevel, PostfixVersion};
use crate::dns::Resolver;
use crate::https::Client;
use crate::metrics::Metrics;
use crate::shutdown::stopped;
use crate::store::{Store, StoreError};
use crate::tlsrpt::{InForce, Mode, mx_matches};
use dane::{Coverage, Verdict};
use decision::combine;
pub use decision::{Decision, Level};
use flight::{Flight, Flights};
use history::{History, Period};
pub use hop::NextHop;
use overrides::{Overrides, Rule};
use shelf::Shelf;
use sts::cache::{Cache, Cached, Domain, Known};
use sts::fetch;
use throttle::Throttle;

/// How long an answer stands that was given before all was known, in seconds.
const PROVISIONAL: i64 = 1;

/// How long "ask again" stands, in seconds: a broken resolver is not asked for every message.
const TEMP: i64 = 5;

/// How soon a failed DANE look-up is tried again while an earlier verdict serves, in seconds.
const RETRY: i64 = 30;

/// How long a DANE verdict serves past its TTL while the resolver fails, in seconds.
const STALE: i64 = 86_400;

/// How long before its end a "no policy" is asked again for domains in use, in seconds.
const AHEAD: i64 = 15;

/// How often a failing delivery makes a record be asked again at most, in seconds.
const HINT: i64 = 60;

/// Time between two looks for verdicts that may serve no longer.
const SWEEP: Duration = Duration::from_secs(600);

/// How many parts the decisions are kept in.
const SHARDS: usize = 64;

/// How many wordings of a decision are kept beside it.
const WORDINGS: usize = 2;

/// All decisions, shared by everyone who asks.
pub struct Policies {
    entries: [Shard; SHARDS],
    limit: usize,
    budget: Duration,
    resolver: Resolver,
    /// Whether DANE is looked at: the resolver validates and the MTA uses DNSSEC.
    dane: bool,
    /// Whether the MTA, told `dane`, falls back to `may` where the MX records are not signed.
    insecure_mx_is_may: bool,
    overrides: Overrides,
    shelf: Shelf,
    sts: Arc<Cache>,
    history: Arc<History>,
    clock: Clock,
    metrics: Metrics,
    throttle: Throttle,
    decisions: Flights<Arc<Decision>>,
    verdicts: Flights<Arc<Verdict>>,
    /// For what is no domain name.
    nothing: Entry,
}

/// A part of all entries, so that those who ask meet seldom.
type Shard = RwLock<HashMap<Box<[u8]>, Arc<Entry>>>;

/// A decision and how long it stands.
struct Entry {
    decision: Arc<Decision>,
    /// It stands before this second.
    until: i64,
    /// From this second on it is made anew behind the answer.
    refresh: i64,
    refreshing: AtomicBool,
    asked: AtomicI64,
    domain: Arc<Domain>,
    /// Of `domain`, when it was made.
    version: u64,
    held: Option<Arc<Held>>,
    /// None for "ask again", under which there are no sessions.
    period: Option<Arc<Period>>,
    worded: [OnceLock<Box<[u8]>>; WORDINGS],
}

/// The last DANE verdict that was no failure.
#[derive(Debug)]
struct Held {
    verdict: Arc<Verdict>,
    until: i64,
    refresh: i64,
}

/// Why a decision is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Urge {
    /// It was asked for, and none stands.
    Asked,
    /// What ends soon is asked again now, behind the answers.
    Ahead,
    /// An administrator wants everything looked at again.
    Told,
    /// An administrator wants to know what would be answered: no mail is held to it, so that it is noted nowhere.
    Explained,
}

impl Urge {
    /// Whether mail is behind it: the MTA asked, now or a little before.
    fn is_mail(self) -> bool {
        matches!(self, Urge::Asked | Urge::Ahead)
    }
}

/// What is known of DANE now.
struct DaneNow {
    coverage: Coverage,
    /// The cause of what is not known.
    cause: String,
    held: Option<Arc<Held>>,
    /// How long that stands.
    until: i64,
    refresh: i64,
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
    /// Periods of the history.
    pub periods: usize,
}

impl Policies {
    /// Everything that the store has, and nothing asked yet. Call it within the tokio runtime.
    pub fn open(
        config: &Config,
        resolver: Resolver,
        client: Client,
        store: Arc<dyn Store>,
        history: Arc<History>,
        clock: Clock,
        metrics: Metrics,
    ) -> Result<Arc<Policies>, StoreError> {
        let limit = config.policy.max_domains;
        let shelf = Shelf::new(Arc::clone(&store));
        let sts = Cache::open(limit, resolver.clone(), client, store, clock, metrics.clone())?;
        let version = config.postfix.version();
        let between =
            |a, b| (PostfixVersion { major: 3, minor: a }..=PostfixVersion { major: 3, minor: b }).contains(&version);
        let why_no_dane = match (config.postfix.dnssec(), resolver.validating()) {
            (false, _) => Some("[postfix] dnssec is false"),
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
            entries: std::array::from_fn(|_| Shard::default()),
            limit: limit.max(1),
            budget: config.policy.answer_budget.0,
            dane: why_no_dane.is_none(),
            insecure_mx_is_may: between(6, 9) && config.postfix.default_level() != DefaultLevel::Dane,
            overrides: Overrides::new(&config.policy.overrides),
            resolver,
            sts: Arc::new(sts),
            history,
            clock,
            metrics,
            throttle: Throttle::default(),
            decisions: Flights::new(),
            verdicts: Flights::new(),
            nothing: Entry::nothing(),
            shelf,
        };
        for (key, held) in held {
            let entry = Entry::before(Domain::new(key.as_str().into(), 0), held);
            policies.shard(key.as_bytes()).write().insert(key.into_bytes().into(), Arc::new(entry));
        }
        Ok(Arc::new(policies))
    }

    /// The decision that stands for a next hop as the MTA writes it; none where one must be made ([`Policies::decide`]).
    pub fn cached(self: &Arc<Self>, key: &[u8]) -> Option<Arc<Decision>> {
        self.with_entry(key, |entry| Arc::clone(&entry.decision))
    }

    /// Appends the answer that stands for a next hop as the MTA writes it, in the words of `word`, which are kept:
    /// `wording` tells them apart. False where an answer must be made ([`Policies::decide`]). What is no domain name
    /// (address literals, paths, dot-keys) has the answer "no policy" at once. A microsecond or less.
    pub fn say(
        self: &Arc<Self>,
        key: &[u8],
        wording: usize,
        word: impl Fn(&Decision) -> Box<[u8]>,
        out: &mut Vec<u8>,
    ) -> bool {
        let said = self.with_entry(key, |entry| match entry.worded.get(wording) {
            Some(slot) => out.extend_from_slice(slot.get_or_init(|| word(&entry.decision))),
            None => out.extend_from_slice(&word(&entry.decision)),
        });
        said.is_some()
    }

    /// Does something with the entry of a next hop, if its decision stands. `then` must not wait.
    fn with_entry<R>(self: &Arc<Self>, key: &[u8], then: impl FnOnce(&Entry) -> R) -> Option<R> {
        let entries = self.shard(key).read();
        if let Some(entry) = entries.get(key) {
            return self.stands(key, entry).then(|| then(entry));
        }
        drop(entries);
        let Some(hop) = NextHop::parse(key) else { return Some(then(&self.nothing)) };
        let key = hop.key().into_bytes();
        let entries = self.shard(&key).read();
        let entry = entries.get(key.as_slice())?;
        self.stands(&key, entry).then(|| then(entry))
    }

    /// Whether an entry's decision still stands; notes that it was asked about.
    fn stands(self: &Arc<Self>, key: &[u8], entry: &Entry) -> bool {
        let now = self.clock.seconds();
        if now >= entry.until || entry.version != entry.domain.version() {
            return false;
        }
        if entry.asked.load(Ordering::Relaxed) != now {
            if let Some(period) = &entry.period
                && !self.history.touch(period, now)
            {
                return false;
            }
            entry.asked.store(now, Ordering::Relaxed);
            entry.domain.touch(now);
            if now >= entry.refresh && !entry.refreshing.swap(true, Ordering::Relaxed) {
                self.refresh(key);
            }
        }
        true
    }

    fn shard(&self, key: &[u8]) -> &Shard {
        // FNV-1a over the beginning of the name, where names differ most, and its length: it only spreads.
        let mix = |hash: u32, octet: &u8| (hash ^ u32::from(*octet)).wrapping_mul(0x0100_0193);
        let hash = key.iter().take(24).fold(0x811c_9dc5 ^ key.len() as u32, mix);
        &self.entries[(hash >> 16) as usize % SHARDS]
    }

    fn entry(&self, key: &str) -> Option<Arc<Entry>> {
        self.shard(key.as_bytes()).read().get(key.as_bytes()).map(Arc::clone)
    }

    /// The decision for a next hop, made now if none stands: within the budget, once however many ask.
    pub async fn decide(self: &Arc<Self>, key: &[u8]) -> Arc<Decision> {
        if let Some(decision) = self.cached(key) {
            return decision;
        }
        // `cached` has answered for what is none.
        let Some(hop) = NextHop::parse(key) else { return Arc::clone(&self.nothing.decision) };
        self.fly(hop, Urge::Asked).await
    }

    /// What [`Policies::decide`] would give, noted nowhere: no session is held to it.
    async fn peek(self: &Arc<Self>, hop: &NextHop) -> Arc<Decision> {
        let now = self.clock.seconds();
        match self.entry(&hop.key()) {
            Some(entry) if now < entry.until && entry.version == entry.domain.version() => Arc::clone(&entry.decision),
            _ => self.fly(hop.clone(), Urge::Explained).await,
        }
    }

    async fn fly(self: &Arc<Self>, hop: NextHop, urge: Urge) -> Arc<Decision> {
        let flight = self.begin(hop, urge);
        // The work keeps the budget itself; the second is for a busy host.
        let patience = Instant::now() + self.budget + Duration::from_secs(1);
        flight.landed(patience).await.unwrap_or_else(|| Arc::new(Decision::temp("no answer in time".into())))
    }

    /// Who asks does not share the work of who does not: that would be an answer which is not noted.
    fn begin(self: &Arc<Self>, hop: NextHop, urge: Urge) -> Flight<Arc<Decision>> {
        let key = match urge {
            Urge::Asked => hop.key(),
            Urge::Ahead | Urge::Told | Urge::Explained => format!("{urge:?} {}", hop.key()),
        };
        self.decisions.join(&key, || {
            let policies = Arc::clone(self);
            async move { policies.make(hop, urge).await }
        })
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
        let Some(domain) = self.sts.known(domain) else { return };
        let known = domain.known(now);
        if known.policy.is_none() || known.checked.is_some_and(|checked| (0..HINT).contains(&(now - checked))) {
            return;
        }
        self.metrics.add("sts_records_hinted", 1);
        domain.look_again(now, false);
        drop(self.sts.look(&domain, now));
    }

    /// Writes verdicts behind, and lets go of those that may serve no longer.
    async fn keep_verdicts(&self, mut shutdown: watch::Receiver<bool>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shelf.wake.notified() => tokio::time::sleep(shelf::BEHIND).await,
                _ = sweep.tick() => self.sweep(self.clock.seconds()),
                () = stopped(&mut shutdown) => break,
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
            self.metrics.error(self.clock, line);
        }
    }

    fn sweep(&self, now: i64) {
        for shard in &self.entries {
            shard.write().retain(|key, entry| {
                let ended = entry.held.as_ref().is_some_and(|held| held.until.saturating_add(STALE) < now);
                let goes = ended && entry.asked.load(Ordering::Relaxed) + STALE < now;
                if goes && let Ok(key) = std::str::from_utf8(key) {
                    self.shelf.remove(key.to_owned());
                }
                !goes
            });
        }
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        let (domains, policies) = self.sts.len();
        Counts {
            decisions: self.entries.iter().map(|shard| shard.read().len()).sum(),
            domains,
            policies,
            periods: self.history.len(),
        }
    }

    /// Makes a decision anew, behind the answers.
    fn refresh(self: &Arc<Self>, key: &[u8]) {
        if let Some(hop) = NextHop::parse(key) {
            drop(self.begin(hop, Urge::Ahead));
        }
    }

    async fn make(self: Arc<Self>, hop: NextHop, urge: Urge) -> Arc<Decision> {
        let key = hop.key();
        let began = Instant::now();
        let old = self.entry(&key);
        let held = old.as_ref().and_then(|entry| entry.held.clone());
        let rule = self.overrides.of(&hop.domain);
        let domain = match rule {
            // It is not looked at.
            Some(Rule::Fixed(_) | Rule::None | Rule::SkipSts) => Arc::new(Domain::new(hop.domain.as_str().into(), 0)),
            Some(Rule::SkipDane) | None => self.sts.domain(&hop.domain),
        };
        if urge.is_mail() {
            domain.touch(self.clock.seconds());
        }
        if old.as_ref().is_some_and(|old| matches!(old.decision.level, Level::Temp(_))) {
            // DNS failed as a whole: the deferred mail must not go out as if there were no record.
            domain.forget_failed_record();
        }
        let dane = async {
            match rule {
                Some(Rule::Fixed(_) | Rule::None | Rule::SkipDane) => DaneNow::skipped(),
                Some(Rule::SkipSts) | None => self.dane(&hop, held, began, urge).await,
            }
        };
        let sts = async {
            if matches!(rule, Some(Rule::SkipDane) | None) {
                self.sts(&domain, began, urge).await;
            }
        };
        let (dane, ()) = tokio::join!(dane, sts);
        let now = self.clock.seconds();
        let version = domain.version();
        let known = match rule {
            Some(Rule::Fixed(_) | Rule::None | Rule::SkipSts) => Known { due: i64::MAX, ..Known::default() },
            Some(Rule::SkipDane) | None => domain.known(now),
        };
        let mut entry = self.settle(&hop, dane, known, now);
        if let Some(Rule::Fixed(answer)) = rule {
            entry.0.level = Level::Fixed(Arc::clone(answer));
        }
        let period = match &entry.0.level {
            Level::Temp(cause) => {
                self.metrics.add("answers_temp", u64::from(urge.is_mail()));
                if urge.is_mail() && self.throttle.permits("temp", now) {
                    let line = format!("policy of {key}: not known: {cause}; mail to it is deferred until it is");
                    self.metrics.error(self.clock, line);
                }
                None
            }
            // A refresh is no asking: the history notes what was answered.
            _ if urge != Urge::Asked => {
                let same = |old: &&Arc<Entry>| old.decision.in_force == entry.0.in_force;
                old.as_ref().filter(same).and_then(|old| old.period.clone())
            }
            _ => Some(self.history.note(&hop, now, &entry.0.in_force)),
        };
        let (decision, until, refresh, held) = entry;
        let decision = Arc::new(decision);
        // A refresh that changed what is in force is noted when it is first answered: it must not answer from memory.
        let until = if urge != Urge::Asked && period.is_none() { now } else { until };
        let asked = if urge.is_mail() { now } else { old.map_or(0, |old| old.asked.load(Ordering::Relaxed)) };
        self.keep(
            key,
            Entry {
                decision: Arc::clone(&decision),
                until,
                refresh: refresh.max(now + 1),
                refreshing: AtomicBool::new(false),
                asked: AtomicI64::new(asked),
                domain,
                version,
                held,
                period,
                worded: Default::default(),
            },
        );
        decision
    }

    /// Waits for what MTA-STS is to know before an answer: nothing where a policy is there.
    async fn sts(&self, domain: &Arc<Domain>, began: Instant, urge: Urge) {
        let now = self.clock.seconds();
        let at = if urge == Urge::Ahead { now + AHEAD } else { now };
        let Some(flight) = self.sts.look(domain, at) else { return };
        let behind = matches!(urge, Urge::Asked | Urge::Explained) && domain.known(now).policy.is_some();
        if !behind {
            // Who comes when it has been tried for the whole budget does not wait for it again.
            let deadline = match urge {
                Urge::Told => began + self.budget + fetch::FETCH_TIME,
                Urge::Asked | Urge::Ahead | Urge::Explained => began.min(flight.began) + self.budget,
            };
            let _ = flight.landed(deadline).await;
        }
    }

    async fn dane(&self, hop: &NextHop, held: Option<Arc<Held>>, began: Instant, urge: Urge) -> DaneNow {
        if !self.dane {
            return DaneNow::skipped();
        }
        let now = self.clock.seconds();
        let fresh = |h: &&Arc<Held>| match urge {
            Urge::Asked | Urge::Explained => now < h.until,
            Urge::Ahead => now < h.refresh,
            Urge::Told => false,
        };
        if let Some(fresh) = held.as_ref().filter(fresh) {
            return DaneNow::of(Arc::clone(fresh));
        }
        let flight = self.verdicts.join(&hop.key(), || {
            let (resolver, hop) = (self.resolver.clone(), hop.clone());
            async move { Arc::new(dane::look(&resolver, &hop).await) }
        });
        let deadline = began.min(flight.began) + self.budget;
        let verdict = flight.landed(deadline).await;
        self.metrics.add("dane_lookups", 1);
        let now = self.clock.seconds();
        let cause = match verdict {
            Some(verdict) if verdict.coverage() != Coverage::Unknown => {
                let ttl = i64::try_from(verdict.ttl.as_secs()).unwrap_or(i64::MAX / 4);
                let held = Arc::new(Held { verdict, until: now + ttl, refresh: now + ttl * 4 / 5 });
                self.shelf.put(hop.key(), &held);
                return DaneNow::of(held);
            }
            Some(verdict) => verdict.failure().unwrap_or("not known").to_owned(),
            None => format!("DNS: no answer within {} s", self.budget.as_secs()),
        };
        self.metrics.add("dane_lookups_failed", 1);
        match held {
            // Not yet at its end: nothing is lost.
            Some(h) if now < h.until => DaneNow { refresh: now + RETRY, ..DaneNow::of(h) },
            held => DaneNow { coverage: Coverage::Unknown, cause, held, until: now + RETRY, refresh: i64::MAX },
        }
    }

    /// Puts together what is known: decision, until, refresh, verdict.
    fn settle(&self, hop: &NextHop, dane: DaneNow, known: Known, now: i64) -> (Decision, i64, i64, Option<Arc<Held>>) {
        let policy = known.policy.filter(|policy| policy.mode != Mode::None);
        let sts_until = policy.as_ref().map_or(known.due.max(now + PROVISIONAL), |policy| policy.expires);
        let sts_refresh = if policy.is_some() { known.due } else { known.due.saturating_sub(AHEAD) };
        let enforced =
            policy.as_ref().filter(|policy| policy.mode == Mode::Enforce).filter(|p| self.applies(hop, p, now));
        let level = combine(dane.coverage, dane.held.as_deref(), enforced.is_some(), now, dane.cause);
        let stale = dane.coverage == Coverage::Unknown && !matches!(level, Level::Temp(_));
        if stale && self.throttle.permits("stale", now) {
            let line = format!("DANE of {}: the look-up fails; the verdict of before serves for up to 24 h", hop.key());
            self.metrics.error(self.clock, line);
        }
        let temp = matches!(level, Level::Temp(_));
        let verdict = dane.held.as_ref().map(|held| &held.verdict);
        let in_force = match &level {
            Level::Secure => enforced.map(|policy| policy.in_force(known.failure.as_deref())),
            Level::Dane | Level::DaneOnly => {
                verdict.filter(|v| !self.falls_back(v, &level)).map(|v| InForce::Dane { hosts: v.rows() })
            }
            Level::Default => match policy.as_ref().filter(|policy| policy.mode == Mode::Testing) {
                Some(policy) => Some(policy.in_force(known.failure.as_deref())),
                None => {
                    known.failure.as_ref().filter(|_| policy.is_none()).map(|failure| failure.in_force(&hop.domain))
                }
            },
            Level::Fixed(_) | Level::Temp(_) => None,
        };
        let sts = match &level {
            Level::Secure => enforced.map(Arc::clone),
            Level::Default => policy.filter(|policy| policy.mode == Mode::Testing),
            Level::Dane | Level::DaneOnly | Level::Fixed(_) | Level::Temp(_) => None,
        };
        let decision =
            Decision { level, in_force: Arc::new(in_force.unwrap_or(InForce::None)), sts, failure: known.failure };
        let until = if temp { now + TEMP } else { sts_until.min(dane.until) };
        (decision, until, sts_refresh.min(dane.refresh), dane.held)
    }

    /// RFC 8461 §3.4: a smart host is its own policy domain, and must itself be one of the hosts that its policy allows.
    fn applies(&self, hop: &NextHop, policy: &Cached, now: i64) -> bool {
        let applies = hop.mx || policy.policy.mx_host.iter().any(|pattern| mx_matches(pattern, &hop.domain));
        if !applies && self.throttle.permits("smart-host", now) {
            let line = format!(
                "policy of {}: its MTA-STS policy does not allow the host itself; it is not enforced",
                hop.key()
            );
            self.metrics.error(self.clock, line);
        }
        applies
    }

    /// Postfix 3.6 to 3.9 with another default than `dane` treats `dane` at unsigned MX records as `may`
    /// (`smtp_tls_dane_insecure_mx_policy`): there sessions are held to nothing.
    fn falls_back(&self, verdict: &Verdict, level: &Level) -> bool {
        self.insecure_mx_is_may && *level == Level::Dane && verdict.mx == dane::Mx::Unsigned
    }

    fn keep(&self, key: String, entry: Entry) {
        let mut entries = self.shard(key.as_bytes()).write();
        entries.insert(key.into_bytes().into(), Arc::new(entry));
        // Each shard has its part of the limit, and some room, for names do not spread evenly.
        let limit = (self.limit / SHARDS * 5 / 4).max(16);
        if entries.len() <= limit {
            return;
        }
        let mut asked: Vec<i64> = entries.values().map(|entry| entry.asked.load(Ordering::Relaxed)).collect();
        let surplus = (entries.len() - limit + limit / 20).clamp(1, asked.len());
        let cutoff = *asked.select_nth_unstable(surplus - 1).1;
        let mut left = surplus;
        entries.retain(|key, entry| {
            let goes = left > 0 && entry.asked.load(Ordering::Relaxed) <= cutoff;
            left -= usize::from(goes);
            if goes
                && entry.held.is_some()
                && let Ok(key) = std::str::from_utf8(key)
            {
                self.shelf.remove(key.to_owned());
            }
            !goes
        });
        self.metrics.add("decisions_evicted", (surplus - left) as u64);
    }
}

impl Entry {
    /// What was known before a restart: a decision is made from it when it is asked for.
    fn before(domain: Domain, held: Arc<Held>) -> Entry {
        let asked = AtomicI64::new(held.refresh);
        Entry { until: i64::MIN, domain: Arc::new(domain), held: Some(held), asked, ..Entry::nothing() }
    }

    fn nothing() -> Entry {
        Entry {
            decision: Arc::new(Decision::none()),
            until: i64::MAX,
            refresh: i64::MAX,
            refreshing: AtomicBool::new(false),
            asked: AtomicI64::new(0),
            domain: Arc::new(Domain::new("".into(), 0)),
            version: 0,
            held: None,
            period: None,
            worded: Default::default(),
        }
    }
}

impl DaneNow {
    /// DANE is not looked at.
    fn skipped() -> DaneNow {
        let (coverage, cause) = (Coverage::Nothing, String::new());
        DaneNow { coverage, cause, held: None, until: i64::MAX, refresh: i64::MAX }
    }

    fn of(held: Arc<Held>) -> DaneNow {
        let cause = held.verdict.failure().unwrap_or_default().to_owned();
        let (until, refresh) = (held.until, held.refresh);
        DaneNow { coverage: held.verdict.coverage(), cause, held: Some(held), until, refresh }
    }
}
