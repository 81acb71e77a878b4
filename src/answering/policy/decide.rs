//! Makes a decision: what DANE and MTA-STS say now, within the budget, put together.
//!
//! Takes: a next hop, and why it is asked for. Gives: a [`Decision`], kept with how long it stands and noted in the history.
//! Limits: `[policy] answer_budget`; what takes longer goes on behind it.
//! When it fails: [`Level::Temp`] with the cause, or what was known before.
//! Not here: the order of the policies (`decision`), what stands already (`policy`).

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use tokio::time::Instant;

use crate::answering::policy::dane::cached_verdict::Held;
use crate::answering::policy::dane::lookup::{self, Coverage};
use crate::answering::policy::decision::combine;
use crate::answering::policy::decision::{Decision, Level};
use crate::answering::policy::decision_cache::Entry;
use crate::answering::policy::history::compact::StoredPolicy;
use crate::answering::policy::overrides::Rule;
use crate::answering::policy::policies::{Policies, Urge};
use crate::answering::policy::sts::domain_state::{Domain, Known};
use crate::answering::policy::sts::fetch;
use crate::answering::policy::sts::policy::Cached;
use crate::base::clock::{CompactTime, SharedCompactTime};
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::{Mode, mx_matches};

/// How long an answer stands that was given before all was known, in seconds.
const PROVISIONAL: i64 = 1;

/// How long "ask again" stands, in seconds: a broken resolver is not asked for every message.
const TEMP: i64 = 5;

/// How soon a failed DANE look-up is tried again while an earlier verdict serves, in seconds.
const RETRY: i64 = 30;

/// How long before its end a "no policy" is asked again for domains in use, in seconds.
const AHEAD: i64 = 15;

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
    held: Option<Held>,
    /// How long that stands.
    until: i64,
    refresh: i64,
}

/// A decision, not kept yet.
struct Settled {
    level: Level,
    sts: Option<Arc<Cached>>,
    under: StoredPolicy,
    until: i64,
    refresh: i64,
}

impl Policies {
    pub(super) async fn make(self: Arc<Self>, hop: NextHop, urge: Urge) -> Decision {
        let key = hop.key();
        let began = Instant::now();
        let old = self.entries.of(&key);
        let held = old.as_ref().and_then(|entry| entry.held.clone());
        let rule = self.overrides.of(&hop.domain);
        let domain = match rule {
            // It is not looked at.
            Some(Rule::Fixed(_) | Rule::None | Rule::SkipSts) => Arc::new(Domain::new(self.name(&hop.domain), 0)),
            Some(Rule::SkipDane) | None => self.sts.domain(&hop.domain),
        };
        if urge.is_mail() {
            domain.touch(self.clock.seconds());
        }
        if old.as_ref().is_some_and(|old| matches!(old.level, Level::Temp(_))) {
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
        let held = dane.held.clone();
        let failure = known.failure.clone();
        let mut settled = self.settle(&hop, dane, known, now);
        if let Some(Rule::Fixed(answer)) = rule {
            settled.level = Level::Fixed(Arc::clone(answer));
        }
        let period = match &settled.level {
            Level::Temp(cause) => {
                self.metrics.add("answers_temp", u64::from(urge.is_mail()));
                if urge.is_mail() && self.throttle.permits("temp", now) {
                    let line = format!("policy of {key}: not known: {cause}; mail to it is deferred until it is");
                    self.metrics.log_error(self.clock, line);
                }
                None
            }
            // A refresh is no asking: the history notes what was answered.
            _ if urge != Urge::Asked => old
                .as_ref()
                .and_then(|old| old.period.as_ref())
                .filter(|period| period.policy() == &settled.under)
                .map(Arc::clone),
            _ => Some(self.history.record_answer(&hop, &domain.name, now, settled.under)),
        };
        // A refresh that changed what is in force is noted when it is first answered: it must not answer from memory.
        let until = if urge != Urge::Asked && period.is_none() { now } else { settled.until };
        let asked = if urge.is_mail() { now } else { old.map_or(0, |old| old.asked.seconds()) };
        let entry = Entry {
            hop: if *key == *domain.name { Arc::clone(&domain.name) } else { key.into() },
            level: settled.level,
            sts: settled.sts,
            failure,
            domain,
            held,
            period,
            until: CompactTime::from_seconds(until),
            refresh: CompactTime::from_seconds(settled.refresh.max(now + 1)),
            asked: SharedCompactTime::from_seconds(asked),
            version,
            refreshing: AtomicBool::new(false),
            worded: OnceLock::new(),
        };
        let decision = entry.decision();
        self.keep(entry);
        decision
    }

    /// Waits for what MTA-STS is to know before an answer: nothing where a policy is there.
    async fn sts(&self, domain: &Arc<Domain>, began: Instant, urge: Urge) {
        let now = self.clock.seconds();
        let at = if urge == Urge::Ahead { now + AHEAD } else { now };
        let Some(flight) = self.sts.look(domain, at) else { return };
        let behind = matches!(urge, Urge::Asked | Urge::Explained) && domain.policy(now).is_some();
        if !behind {
            // Who comes when it has been tried for the whole budget does not wait for it again.
            let deadline = match urge {
                Urge::Told => began + self.budget + fetch::FETCH_TIME,
                Urge::Asked | Urge::Ahead | Urge::Explained => began.min(flight.began) + self.budget,
            };
            let _ = flight.landed(deadline).await;
        }
    }

    async fn dane(&self, hop: &NextHop, held: Option<Held>, began: Instant, urge: Urge) -> DaneNow {
        if !self.dane {
            return DaneNow::skipped();
        }
        let now = self.clock.seconds();
        let fresh = |h: &&Held| match urge {
            Urge::Asked | Urge::Explained => now < h.until(),
            Urge::Ahead => now < h.refresh(),
            Urge::Told => false,
        };
        if let Some(fresh) = held.as_ref().filter(fresh) {
            return DaneNow::of(fresh.clone());
        }
        let flight = self.verdicts.join(&hop.key(), || {
            let (resolver, hop) = (self.resolver.clone(), hop.clone());
            async move { Arc::new(lookup::look(&resolver, &hop).await) }
        });
        let verdict = match flight {
            Some(flight) => {
                let deadline = began.min(flight.began) + self.budget;
                flight
                    .landed(deadline)
                    .await
                    .ok_or_else(|| format!("DNS: no answer within {} s", self.budget.as_secs()))
            }
            None => {
                self.metrics.add("dane_lookups_refused", 1);
                Err("too many look-ups under way".to_owned())
            }
        };
        self.metrics.add("dane_lookups", 1);
        let now = self.clock.seconds();
        let cause = match verdict {
            Ok(verdict) if verdict.coverage() != Coverage::Unknown => {
                let ttl = i64::try_from(verdict.ttl.as_secs()).unwrap_or(i64::MAX / 4);
                let held = Held::of(&verdict, now + ttl, now + ttl * 4 / 5);
                self.shelf.put(hop.key(), held.clone());
                return DaneNow::of(held);
            }
            Ok(verdict) => verdict.failure().unwrap_or("not known").to_owned(),
            Err(cause) => cause,
        };
        self.metrics.add("dane_lookups_failed", 1);
        match held {
            // Not yet at its end: nothing is lost.
            Some(h) if now < h.until() => DaneNow { refresh: now + RETRY, ..DaneNow::of(h) },
            held => DaneNow { coverage: Coverage::Unknown, cause, held, until: now + RETRY, refresh: i64::MAX },
        }
    }

    /// Puts together what is known.
    fn settle(&self, hop: &NextHop, dane: DaneNow, known: Known, now: i64) -> Settled {
        let policy = known.policy.filter(|policy| policy.mode != Mode::None);
        let sts_until = policy.as_ref().map_or(known.due.max(now + PROVISIONAL), |policy| policy.expires());
        let sts_refresh = if policy.is_some() { known.due } else { known.due.saturating_sub(AHEAD) };
        let enforced =
            policy.as_ref().filter(|policy| policy.mode == Mode::Enforce).filter(|p| self.applies(hop, p, now));
        let level = combine(dane.coverage, dane.held.as_ref(), enforced.is_some(), now, &dane.cause);
        let stale = dane.coverage == Coverage::Unknown && !matches!(level, Level::Temp(_));
        if stale && self.throttle.permits("stale", now) {
            let line = format!("DANE of {}: the look-up fails; the verdict of before serves for up to 24 h", hop.key());
            self.metrics.log_error(self.clock, line);
        }
        let temp = matches!(level, Level::Temp(_));
        let failure = known.failure.as_deref();
        let testing = policy.as_ref().filter(|policy| policy.mode == Mode::Testing);
        let under = match &level {
            Level::Secure => enforced.map(|policy| policy.under(failure)),
            Level::Dane | Level::DaneOnly => {
                let held = dane.held.as_ref().filter(|held| !self.falls_back(held, &level));
                held.map(|held| StoredPolicy::Dane(held.rows()))
            }
            Level::Default => match (testing, &policy) {
                (Some(policy), _) => Some(policy.under(failure)),
                (None, None) => failure.map(|failure| failure.under(&hop.domain)),
                (None, Some(_)) => None,
            },
            Level::Fixed(_) | Level::Temp(_) => None,
        };
        let sts = match &level {
            Level::Secure => enforced.map(Arc::clone),
            Level::Default => testing.map(Arc::clone),
            Level::Dane | Level::DaneOnly | Level::Fixed(_) | Level::Temp(_) => None,
        };
        let until = if temp { now + TEMP } else { sts_until.min(dane.until) };
        Settled { level, sts, under: under.unwrap_or_default(), until, refresh: sts_refresh.min(dane.refresh) }
    }

    /// RFC 8461 §3.4: a smart host is its own policy domain, and must itself be one of the hosts that its policy allows.
    fn applies(&self, hop: &NextHop, policy: &Cached, now: i64) -> bool {
        let applies = allows(hop, policy);
        if !applies && self.throttle.permits("smart-host", now) {
            let line = format!(
                "policy of {}: its MTA-STS policy does not allow the host itself; it is not enforced",
                hop.key()
            );
            self.metrics.log_error(self.clock, line);
        }
        applies
    }

    /// Postfix 3.6 to 3.9 with another default than `dane` treats `dane` at unsigned MX records as `may`
    /// (`smtp_tls_dane_insecure_mx_policy`): there sessions are held to nothing.
    fn falls_back(&self, held: &Held, level: &Level) -> bool {
        self.insecure_mx_is_may && *level == Level::Dane && held.unsigned
    }
}

/// Whether a policy says anything about a next hop: one in brackets must be one of the hosts that it allows.
pub(super) fn allows(hop: &NextHop, policy: &Cached) -> bool {
    hop.mx || policy.document(&hop.domain).mx.iter().any(|pattern| mx_matches(pattern, &hop.domain))
}

impl DaneNow {
    /// DANE is not looked at.
    fn skipped() -> DaneNow {
        let (coverage, cause) = (Coverage::Nothing, String::new());
        DaneNow { coverage, cause, held: None, until: i64::MAX, refresh: i64::MAX }
    }

    fn of(held: Held) -> DaneNow {
        let (until, refresh) = (held.until(), held.refresh());
        DaneNow { coverage: held.coverage, cause: held.cause().to_owned(), held: Some(held), until, refresh }
    }
}
