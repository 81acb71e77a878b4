//! Makes a decision: what DANE and MTA-STS say now, within the budget, put together.
//!
//! Takes: a next hop, and why it is asked for. Gives: a [`Decision`], kept with how long it stands and noted in the history.
//! Limits: `[policy] answer_budget`; what takes longer goes on behind it.
//! When it fails: TEMP with the cause, or what was known before.
//! Not here: the order of the policies (`decision`), what stands already (`policy`).

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use tokio::time::Instant;

use crate::answering::policy::dane::cached_verdict::CachedVerdict;
use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::dane::lookup::{self, DaneVerdict, NARROWED_TTL};
use crate::answering::policy::decision::{Answer, Basis, DatalessTlsa, Decision, Facts, Published, facts};
use crate::answering::policy::decision_cache::{CachedDecision, MAX_DECISION_TTL};
use crate::answering::policy::held_to::HeldTo;
use crate::answering::policy::history::compact::{DestinationFault, StoredPolicy};
use crate::answering::policy::not_asked;
use crate::answering::policy::overrides::{AppliedSources, OverrideRule};
use crate::answering::policy::policies::{Policies, Trigger};
use crate::answering::policy::single_flight::Publisher;
use crate::answering::policy::sts::domain_state::{DomainSnapshot, DomainState, RecordState};
use crate::answering::policy::sts::fetch;
use crate::answering::policy::sts::policy::StsPolicy;
use crate::base::clock::{CompactTime, SharedCompactTime};
use crate::base::next_hop::NextHop;
use crate::base::requester::Requester;
use crate::base::tlsrpt::{Mode, mx_matches};
use crate::net::hosts_file::HostsFile;

/// How long a decision is current that was made before every look-up had finished, in seconds.
const PROVISIONAL_TTL: i64 = 1;

/// How long a TEMP answer is current, in seconds: a broken resolver is not asked for every message.
const TEMP_TTL: i64 = 5;

/// How soon a failed DANE look-up is tried again while an earlier verdict serves, in seconds.
const DANE_RETRY: i64 = 30;

/// How long a decision is current that knows nothing of DANE because the resolver is not believed, in seconds: resolv.conf
/// may name one that is.
const UNTRUSTED_TTL: i64 = 300;

/// How long before its end a "no policy" is looked up again for domains in use, in seconds.
const REFRESH_AHEAD: i64 = 15;

impl Trigger {
    /// Whether it serves mail: the MTA asked, now or a little before.
    fn serves_mail(self) -> bool {
        matches!(self, Trigger::Lookup(_) | Trigger::Refresh)
    }

    fn is_lookup(self) -> bool {
        matches!(self, Trigger::Lookup(_))
    }
}

/// The DANE verdict that a decision follows from.
struct DaneResult {
    coverage: Coverage,
    dataless: DatalessTlsa,
    /// The cause of what is not known.
    cause: String,
    /// What is broken at the destination itself.
    fault: Option<Arc<DestinationFault>>,
    verdict: Option<CachedVerdict>,
    /// Whether an earlier verdict serves past its end, because the look-up fails.
    stale: bool,
    /// Whether the look-up goes on.
    incomplete: bool,
    expires: i64,
    refresh_at: i64,
}

/// A decision that is not in the cache yet.
struct Resolved {
    basis: Basis,
    sts: Option<Arc<StsPolicy>>,
    /// What the sessions are counted under.
    policy: StoredPolicy,
    /// Why the mail waits, where that is the destination's fault.
    fault: Option<Arc<DestinationFault>>,
    expires: i64,
    refresh_at: i64,
}

impl Policies {
    pub(super) async fn run_resolution(self: Arc<Self>, hop: NextHop, trigger: Trigger) -> Decision {
        let key = hop.key();
        let began = Instant::now();
        let old = self.cache.get(&key);
        let cached_verdict = old.as_ref().and_then(|entry| entry.verdict.clone());
        let rule = self.overrides.rule_for(&hop.domain);
        let applies = AppliedSources::under(rule);
        let domain = match applies.sts {
            true => self.sts.get_or_insert(&hop.domain),
            // It is not looked at.
            false => Arc::new(DomainState::new(self.intern_name(&hop.domain), 0)),
        };
        if trigger.serves_mail() {
            domain.touch(self.clock.seconds());
        }
        if old.as_ref().is_some_and(|old| self.is_temp(old.facts())) {
            // DNS failed as a whole: the deferred mail must not go out as if there were no record.
            domain.forget_failed_record();
        }
        let dane = async {
            match applies.dane {
                true => self.look_up_dane(&hop, cached_verdict, began, trigger).await,
                false => DaneResult::skipped(),
            }
        };
        let sts = async {
            if applies.sts {
                self.await_sts(&domain, began, trigger).await;
                // It may have been evicted before the look-up began, which is then about another.
                return self.sts.get(&domain.name).unwrap_or_else(|| Arc::clone(&domain));
            }
            Arc::clone(&domain)
        };
        let (dane, domain) = tokio::join!(dane, sts);
        let now = self.clock.seconds();
        let version = domain.version();
        let known = match applies.sts {
            true => domain.snapshot(now),
            false => DomainSnapshot { due: i64::MAX, ..DomainSnapshot::default() },
        };
        let (verdict, incomplete) = (dane.verdict.clone(), dane.incomplete);
        let failure = known.failure.clone();
        let not_asked = if applies.sts { not_asked::cause(&known, self.resolver.outage(), now) } else { None };
        let in_hosts_file = (not_asked.is_some() || dane.coverage.is_host_unknown()) && is_in_hosts_file(&hop).await;
        let mut resolved = self.assemble(&hop, dane, known, not_asked, in_hosts_file, now);
        if let Some(OverrideRule::FixedAnswer(answer)) = rule {
            resolved.basis = Basis::Override(Arc::clone(answer));
        }
        let unknown = match &resolved.basis {
            Basis::Published(published) if self.is_temp(facts(&resolved.basis, resolved.sts.as_deref())) => {
                Some(published.cause())
            }
            Basis::Published(_) | Basis::Override(_) => None,
        };
        if let Some(cause) = unknown {
            self.metrics.add("answers_temp", u64::from(trigger.serves_mail()));
            if trigger.serves_mail() && self.throttle.permits("temp", now) {
                let line = format!("policy of {key}: not known: {cause}; mail to it is deferred until it is");
                self.metrics.log_error(self.clock, line);
            }
        }
        let period = match &resolved.policy {
            // Nothing was in force, and no attempt to deliver is the destination's failure.
            StoredPolicy::None if unknown.is_some() => None,
            // A refresh is no asking: the history notes what was answered.
            _ if !trigger.is_lookup() => old
                .as_ref()
                .and_then(|old| old.period.as_ref())
                .filter(|period| period.policy() == &resolved.policy)
                .map(Arc::clone),
            _ => Some(self.history.record_answer(&hop, &domain.name, now, resolved.policy)),
        };
        // A refresh that changed what is in force is noted when it is first answered: it must not answer from memory.
        let until = if !trigger.is_lookup() && period.is_none() { now } else { resolved.expires };
        let asked = if trigger.serves_mail() { now } else { old.map_or(0, |old| old.last_asked.seconds()) };
        let entry = CachedDecision {
            hop: if *key == *domain.name { Arc::clone(&domain.name) } else { key.into() },
            basis: resolved.basis,
            sts: resolved.sts,
            failure,
            domain,
            verdict,
            fault: resolved.fault,
            period,
            expires: CompactTime::from_seconds(until),
            refresh_at: CompactTime::from_seconds(resolved.refresh_at.max(now + 1)),
            last_asked: SharedCompactTime::from_seconds(asked),
            domain_version: version,
            refreshing: AtomicBool::new(false),
            packed_reply: OnceLock::new(),
        };
        let decision = entry.decision();
        tracing::debug!(next_hop = %entry.hop, ?trigger, basis = ?decision.basis, sts = ?decision.sts.as_ref().map(|sts| sts.mode),
            failure = decision.failure.as_ref().map(|failure| failure.text.as_str()), "policy decided");
        self.insert(entry, incomplete);
        decision
    }

    /// Waits for what MTA-STS is to know before an answer: nothing where a policy is there.
    async fn await_sts(&self, domain: &Arc<DomainState>, began: Instant, trigger: Trigger) {
        let now = self.clock.seconds();
        let at = if trigger == Trigger::Refresh { now + REFRESH_AHEAD } else { now };
        let Some(flight) = self.sts.start_lookup(domain, at, trigger.requester()) else { return };
        let behind = matches!(trigger, Trigger::Lookup(_) | Trigger::Explain) && domain.policy(now).is_some();
        if !behind {
            // Who comes when it has been tried for the whole budget does not wait for it again.
            let deadline = match trigger {
                Trigger::AdminRefresh => began + self.budget + fetch::FETCH_TIMEOUT,
                Trigger::Lookup(_) | Trigger::Refresh | Trigger::Explain => began.min(flight.began) + self.budget,
            };
            let _ = flight.wait(deadline).await;
        }
    }

    async fn look_up_dane(
        self: &Arc<Self>,
        hop: &NextHop,
        known: Option<CachedVerdict>,
        began: Instant,
        trigger: Trigger,
    ) -> DaneResult {
        let now = self.clock.seconds();
        if !self.dane_enabled() && !self.wants_dnssec {
            let expires = if self.uses_dnssec { now + UNTRUSTED_TTL } else { i64::MAX };
            return DaneResult { expires, refresh_at: expires.saturating_sub(REFRESH_AHEAD), ..DaneResult::skipped() };
        }
        let is_fresh = |verdict: &&CachedVerdict| match trigger {
            Trigger::Lookup(_) | Trigger::Explain => verdict.holds(now),
            Trigger::Refresh => verdict.holds(now) && now < verdict.refresh_at(),
            Trigger::AdminRefresh => false,
        };
        if let Some(fresh) = known.as_ref().filter(is_fresh) {
            return DaneResult::from_cached(fresh.clone());
        }
        if self.wants_dnssec && !self.resolver.validates().await {
            let cause =
                format!("the resolver {} does not validate ([policy] without_dnssec)", self.resolver.server_names());
            return DaneResult::unknown(cause, now + DANE_RETRY);
        }
        let flight = self.verdict_flights.join_publishing(&hop.key(), trigger.requester(), |publisher| {
            let (policies, hop) = (Arc::clone(self), hop.clone());
            async move { policies.run_dane_lookup(hop, trigger.requester(), publisher).await }
        });
        let found = match flight {
            Some(flight) => {
                let deadline = began.min(flight.began) + self.budget;
                flight
                    .wait(deadline)
                    .await
                    .ok_or_else(|| format!("DNS: no answer within {} s", self.budget.as_secs_f64()))
            }
            None => {
                self.metrics.add("dane_lookups_refused", 1);
                Err("too many look-ups under way".to_owned())
            }
        };
        let now = self.clock.seconds();
        // The look-up of a flight whose result is there may go on, for the hosts that change no answer.
        let incomplete = found.is_err() || self.verdict_flights.is_under_way(&hop.key());
        let found = found.unwrap_or_else(|cause| CachedVerdict::new(&DaneVerdict::failed(cause), now));
        let known = known.map(|known| known.into_last_known(now));
        let result = match CachedVerdict::choose(known.as_ref(), &found, now) {
            None => {
                let (expires, refresh_at) = (now + DANE_RETRY, i64::MAX);
                DaneResult { verdict: None, expires, refresh_at, ..DaneResult::from_cached(found) }
            }
            Some(chosen) if *chosen == found => DaneResult::from_cached(found),
            Some(known) => {
                let stale = now >= known.expires();
                // Not yet at its end: nothing is lost.
                let expires = if stale { now + DANE_RETRY } else { known.expires() };
                DaneResult { stale, expires, refresh_at: now + DANE_RETRY, ..DaneResult::from_cached(known.clone()) }
            }
        };
        DaneResult { incomplete, ..result }
    }

    /// Looks up what is published, to its end, and keeps it whoever still waits.
    async fn run_dane_lookup(
        self: Arc<Self>,
        hop: NextHop,
        requester: Requester,
        publisher: Publisher<CachedVerdict>,
    ) -> CachedVerdict {
        self.metrics.add("dane_lookups", 1);
        let mut published = false;
        let resolver = self.resolver.for_requester(requester);
        let found = lookup::look_up_in_parts(&resolver, &hop, |verdict| {
            // A record without data at a host that is not known yet would change the answer to a Postfix that it ends.
            if !self.postfix.ends_at_dataless_tlsa || verdict.coverage() == Coverage::UnsignedFailed {
                published = true;
                publisher.publish(CachedVerdict::new(&verdict, self.clock.seconds()));
            }
        });
        let found = found.await;
        if hop.mx {
            let hosts = found.mx_hosts();
            if !hosts.is_empty() {
                self.history.note_mx_hosts(&self.intern_name(&hop.domain), hosts.into_iter(), self.clock.seconds());
            }
        }
        let found = CachedVerdict::new(&found, self.clock.seconds());
        self.metrics.add("dane_lookups_failed", u64::from(found.coverage.is_failure()));
        let kept = self.keep_verdict(&hop, &found, published);
        // Without a kept verdict the decision would find the expired one, and look up again, and so on.
        if published && kept {
            // The sessions of the MTA are counted by the hosts that have TLSA records, the less preferred ones too.
            drop(self.start_resolution(hop, Trigger::Lookup(requester)));
        }
        found
    }

    /// Whether the MTA is to try again; by the own level of main.cf.
    fn is_temp(&self, facts: Option<Facts>) -> bool {
        facts.is_some_and(|facts| facts.for_postfix(self.postfix.own_level, self.postfix) == Answer::Temp)
    }

    /// Puts together what is known.
    fn assemble(
        &self,
        hop: &NextHop,
        dane: DaneResult,
        known: DomainSnapshot,
        not_asked: Option<String>,
        in_hosts_file: bool,
        now: i64,
    ) -> Resolved {
        // What keeps us from asking is no fault of the destination's.
        let fault = dane.fault.clone().filter(|_| not_asked.is_none());
        let record_failed = known.policy.is_none() && matches!(known.record, Some((RecordState::Failed { .. }, _)));
        let policy = known.policy.filter(|policy| policy.mode != Mode::None);
        let sts_expires = policy.as_ref().map_or(known.due.max(now + PROVISIONAL_TTL), |policy| policy.expires());
        let sts_refresh = if policy.is_some() { known.due } else { known.due.saturating_sub(REFRESH_AHEAD) };
        let failure = known.failure.as_deref();
        let failed = failure.filter(|_| policy.is_none());
        let in_force = |policy: &Arc<StsPolicy>| policy.mode != Mode::Enforce || self.enforces_for(hop, policy, now);
        let sts = policy.filter(in_force);
        let published = match (dane.published(hop, sts.as_deref()), not_asked) {
            // A policy may be enforced. Where DANE covers all hosts, the answer is the same with and without one.
            (published, Some(cause)) if published.coverage != Coverage::AllHosts => Published::unknown(&cause),
            (published, _) => published,
        };
        // The MTA delivers to it without DNS.
        let known_without_dns = in_hosts_file && published.coverage.is_host_unknown();
        let published = if known_without_dns { Published::NOTHING } else { published };
        let facts = published.facts(sts.as_ref().map(|policy| policy.mode));
        let answer = facts.for_postfix(self.postfix.own_level, self.postfix);
        if dane.stale && self.throttle.permits("stale", now) {
            let line =
                format!("DANE of {}: the look-up failed; the previous verdict is used for up to 24 h", hop.key());
            self.metrics.log_error(self.clock, line);
        }
        let avoids_dataless = facts.dataless != DatalessTlsa::Absent && self.postfix.ends_at_dataless_tlsa;
        self.metrics.add("tlsa_without_data", u64::from(avoids_dataless));
        if avoids_dataless && self.throttle.permits("dataless", now) {
            let line = format!(
                "DANE of {}: a TLSA record without data, which ends smtp(8) of this Postfix; it is given no answer that \
                 makes it look the record up",
                hop.key()
            );
            self.metrics.log_error(self.clock, line);
        }
        let held_to = HeldTo {
            verdict: dane.verdict.as_ref(),
            sts: sts.as_ref(),
            failure,
            failed: failed.map(|failure| failure.stored_policy(&hop.domain)),
            fault: fault.clone(),
        };
        let policy = held_to.stored_policy(&published, self.postfix.own_level, self.postfix);
        let mut expires = sts_expires.min(dane.expires).min(now + MAX_DECISION_TTL);
        if facts.sts == Some(Mode::Enforce) && facts.allows_host_without_tlsa {
            // A new MX host is not refused for longer.
            expires = expires.min(now + NARROWED_TTL.as_secs() as i64);
        }
        // Soon it may show that it is not this record alone that cannot be asked.
        if answer == Answer::Temp || record_failed {
            expires = expires.min(now + TEMP_TTL);
        }
        Resolved {
            basis: Basis::Published(published),
            sts,
            policy,
            fault,
            expires,
            refresh_at: sts_refresh.min(dane.refresh_at),
        }
    }

    /// RFC 8461 §3.4: a smart host is its own policy domain, and must itself be one of the hosts that its policy allows.
    fn enforces_for(&self, hop: &NextHop, policy: &StsPolicy, now: i64) -> bool {
        let applies = policy_covers(hop, policy);
        if !applies && self.throttle.permits("smart-host", now) {
            let line = format!(
                "policy of {}: its MTA-STS policy does not allow the host itself; it is not enforced",
                hop.key()
            );
            self.metrics.log_error(self.clock, line);
        }
        applies
    }
}

/// Whether a smart host is found by the hosts file.
async fn is_in_hosts_file(hop: &NextHop) -> bool {
    let host = hop.domain.clone();
    // A reader that panicked found nothing.
    !hop.mx && tokio::task::spawn_blocking(move || HostsFile::read().has(&host)).await.unwrap_or(false)
}

/// Whether a policy says anything about a next hop: one in brackets must be one of the hosts that it allows.
pub(super) fn policy_covers(hop: &NextHop, policy: &StsPolicy) -> bool {
    hop.mx || policy.document(&hop.domain).mx.iter().any(|pattern| mx_matches(pattern, &hop.domain))
}

impl DaneResult {
    /// DANE is not looked at.
    fn skipped() -> DaneResult {
        DaneResult {
            coverage: Coverage::NoTlsa,
            dataless: DatalessTlsa::Absent,
            cause: String::new(),
            fault: None,
            verdict: None,
            stale: false,
            incomplete: false,
            expires: i64::MAX,
            refresh_at: i64::MAX,
        }
    }

    /// Nothing is known, for this cause, until a moment.
    fn unknown(cause: String, expires: i64) -> DaneResult {
        DaneResult { coverage: Coverage::MxFailed, cause, expires, ..DaneResult::skipped() }
    }

    fn from_cached(verdict: CachedVerdict) -> DaneResult {
        DaneResult {
            coverage: verdict.coverage,
            dataless: verdict.dataless,
            cause: verdict.cause().to_owned(),
            fault: verdict.destination_fault(),
            expires: verdict.expires(),
            refresh_at: verdict.refresh_at(),
            verdict: Some(verdict),
            stale: false,
            incomplete: false,
        }
    }

    fn published(&self, hop: &NextHop, sts: Option<&StsPolicy>) -> Published {
        match &self.verdict {
            Some(verdict) => published(verdict, hop, sts),
            None => Published::new(self.coverage, self.dataless, &self.cause, Vec::new()),
        }
    }
}

/// What is published for a next hop, from its DANE verdict and its MTA-STS policy.
pub(super) fn published(verdict: &CachedVerdict, hop: &NextHop, sts: Option<&StsPolicy>) -> Published {
    let enforced = sts.filter(|policy| policy.mode == Mode::Enforce);
    let narrowed = enforced.map_or_else(Vec::new, |policy| {
        let mut hosts = verdict.without_tlsa().peekable();
        let patterns = if hosts.peek().is_some() { policy.document(&hop.domain).mx } else { Vec::new() };
        let allowed = |host: &&str| patterns.iter().any(|pattern| mx_matches(pattern, host));
        hosts.filter(allowed).map(str::to_owned).collect()
    });
    Published::new(verdict.coverage, verdict.dataless, verdict.cause(), narrowed)
}
