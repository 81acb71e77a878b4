//! What is known of every next hop, for an administrator: listed, looked at again, forgotten, written as a table.
//!
//! Takes: nothing, or a next hop. Gives: [`PolicyStatus`] entries from memory, without a question to DNS or a policy
//! host but in [`Policies::refresh`].
//! Limits: as many entries as `[policy] max_domains` next hops.
//! When it fails: the store that cannot be written, by its cause; memory is changed all the same.
//! Not here: how an entry is shown (`cli/policies.rs`), why an answer is given (`explain`).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answering::policy::dane::cached_verdict::MAX_STALE;
use crate::answering::policy::decide::{policy_covers, published};
use crate::answering::policy::decision::{Answer, Basis, Decision, Published};
use crate::answering::policy::decision_cache::CachedDecision;
use crate::answering::policy::overrides::{AppliedSources, OverrideRule};
use crate::answering::policy::policies::Policies;
use crate::answering::policy::policies::Trigger;
use crate::answering::policy::sts::domain_state::{DomainSnapshot, RecordState};
use crate::answering::policy::sts::policy::PolicyFailure;
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::Mode;

/// The status of one next hop. Times are seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyStatus {
    /// In its one form.
    pub next_hop: String,
    /// What is answered at the level of main.cf: `dane-only`, `dane`, `encrypt`, `secure`, `default` (no policy, or the own
    /// level is the stronger one), `fixed` (by the configuration), `temp` (not known).
    pub answer: String,
    /// The DANE verdict, if there is one.
    pub dane: Option<DaneStatus>,
    /// The MTA-STS policy, if there is an unexpired one.
    pub sts: Option<StsStatus>,
    /// Its record, if it was asked.
    pub record: Option<RecordState>,
    /// When the record was last asked.
    pub checked: Option<i64>,
    /// When the next hop was last asked about.
    pub used: i64,
    /// Why the document that the record names could not be had.
    pub failure: Option<PolicyFailure>,
}

/// A DANE verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DaneStatus {
    /// The verdict in words.
    pub found: String,
    /// Until when it holds.
    pub until: i64,
}

/// An MTA-STS policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct StsStatus {
    /// The `id` of the record that led to it.
    pub id: String,
    /// What it asks of senders.
    pub mode: Mode,
    /// Its patterns.
    pub mx: Vec<String>,
    /// When it was fetched.
    pub fetched: i64,
    /// When it ends.
    pub expires: i64,
    /// When it is to be fetched anew.
    pub refresh: i64,
    /// The document as served; left out in lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub document: Vec<String>,
}

impl PolicyStatus {
    /// Whether anything is published or failed: a list shows these unless it is asked for all.
    pub fn is_notable(&self) -> bool {
        self.sts.is_some() || self.failure.is_some() || self.answer != "default"
    }
}

impl Policies {
    /// Everything that is known, sorted by next hop, without the documents.
    pub fn list(&self) -> Vec<PolicyStatus> {
        let mut all: Vec<PolicyStatus> =
            self.known_next_hops().iter().filter_map(|hop| self.policy_status(hop)).collect();
        for listed in &mut all {
            listed.sts.iter_mut().for_each(|policy| policy.document.clear());
        }
        all
    }

    /// The status of a next hop; `None` if it was never asked for.
    pub fn policy_status(&self, hop: &NextHop) -> Option<PolicyStatus> {
        let now = self.clock.seconds();
        let entry = self.cache.get(&hop.key());
        let domain = self.sts.get(&hop.domain);
        if entry.is_none() && domain.is_none() {
            return None;
        }
        let known = domain.as_ref().map(|d| d.snapshot(now)).unwrap_or_default();
        let decision = self.decide_from_memory(hop, entry.as_deref(), &known, now);
        let asked = entry.as_ref().map_or(0, |entry| entry.last_asked.seconds());
        let verdict = entry.as_ref().and_then(|entry| entry.verdict.as_ref());
        Some(PolicyStatus {
            next_hop: hop.key(),
            answer: self.answer_name(&decision).to_owned(),
            dane: verdict.map(|verdict| DaneStatus {
                found: crate::answering::policy::admin::explain::describe_coverage(verdict.coverage).to_owned(),
                until: verdict.expires(),
            }),
            sts: known.policy.map(|policy| {
                let document = policy.document(&hop.domain);
                StsStatus {
                    id: policy.id.to_string(),
                    mode: policy.mode,
                    mx: document.mx,
                    fetched: policy.fetched(),
                    expires: policy.expires(),
                    refresh: policy.refresh_at(),
                    document: document.lines,
                }
            }),
            record: known.record.map(|(record, _)| record),
            checked: known.checked,
            used: asked.max(domain.map_or(0, |d| d.last_used())),
            failure: known.failure.as_deref().cloned(),
        })
    }

    /// Asks DNS and the policy host again, whatever is cached and whatever failed before; takes up to a minute more
    /// than an answer. What cannot be had anew stays as it was. Fails where the store cannot be written.
    pub async fn refresh(self: &Arc<Self>, hop: &NextHop) -> Result<Option<PolicyStatus>, String> {
        if AppliedSources::under(self.overrides.rule_for(&hop.domain)).sts {
            self.sts.get_or_insert(&hop.domain).request_refresh(self.clock.seconds(), true);
        }
        Arc::clone(self).run_resolution(hop.clone(), Trigger::AdminRefresh).await;
        self.flush().await?;
        Ok(self.policy_status(hop))
    }

    /// Forgets a domain with all its next hops, or all domains; returns how many there were. Until they are asked about
    /// again nothing is known of them. Fails where the store cannot be written.
    pub async fn purge(&self, domain: Option<&str>) -> Result<usize, String> {
        let mut purged = BTreeSet::new();
        let domains = match domain {
            Some(name) => self.sts.get(name).into_iter().collect(),
            None => self.sts.domains(),
        };
        for known in domains {
            if self.sts.forget(&known) {
                purged.insert(known.name.to_string());
            }
        }
        self.cache.retain(|entry| {
            let hop = NextHop::parse(entry.hop.as_bytes());
            let goes = domain.is_none_or(|name| hop.as_ref().is_some_and(|hop| hop.domain == name));
            if goes {
                self.verdict_store.remove(entry.hop.to_string());
            }
            purged.extend(hop.filter(|_| goes).map(|hop| hop.domain));
            !goes
        });
        self.flush().await?;
        Ok(purged.len())
    }

    /// Every next hop that has a policy, with what `render` makes of the decision. From memory: what was never asked about
    /// is not in it.
    pub fn export_table(&self, render: impl Fn(&Decision) -> Option<String>) -> Vec<(String, String)> {
        let now = self.clock.seconds();
        let line = |hop: &NextHop| {
            let known = self.sts.get(&hop.domain).map(|domain| domain.snapshot(now)).unwrap_or_default();
            let decision = self.decide_from_memory(hop, self.cache.get(&hop.key()).as_deref(), &known, now);
            Some((hop.key(), render(&decision)?))
        };
        let mut lines: BTreeMap<String, String> = self.known_next_hops().iter().filter_map(line).collect();
        for (name, answer) in self.overrides.fixed_answers() {
            lines.insert(name.to_owned(), answer.to_owned());
        }
        lines.into_iter().collect()
    }

    /// Writes what has changed.
    async fn flush(&self) -> Result<(), String> {
        self.sts.write().await?;
        self.verdict_store.write().await
    }

    fn known_next_hops(&self) -> Vec<NextHop> {
        let mut keys: BTreeSet<Arc<str>> = self.sts.domains().iter().map(|domain| Arc::clone(&domain.name)).collect();
        keys.extend(self.cache.next_hops());
        keys.iter().filter_map(|key| NextHop::parse(key.as_bytes())).collect()
    }

    /// The decision that follows from memory, without a query.
    fn decide_from_memory(
        &self,
        hop: &NextHop,
        entry: Option<&CachedDecision>,
        known: &DomainSnapshot,
        now: i64,
    ) -> Decision {
        let rule = self.overrides.rule_for(&hop.domain);
        match rule {
            Some(OverrideRule::FixedAnswer(answer)) => {
                return Decision::from_basis(Basis::Override(Arc::clone(answer)));
            }
            Some(OverrideRule::NoPolicy) => return Decision::no_policy(),
            Some(OverrideRule::SkipDane | OverrideRule::SkipSts) | None => {}
        }
        let applies = AppliedSources::under(rule);
        let policy = known.policy.as_ref().filter(|policy| applies.sts && policy.mode != Mode::None);
        let sts = policy.filter(|policy| policy.mode != Mode::Enforce || policy_covers(hop, policy)).map(Arc::clone);
        // Past its TTL it is asked again with the next mail, and serves if that fails: it is what is known.
        let verdict = entry
            .and_then(|entry| entry.verdict.as_ref())
            .filter(|verdict| applies.dane && now < verdict.expires() + MAX_STALE);
        let basis = match (verdict, entry.map(|entry| &entry.basis)) {
            (Some(verdict), _) => Basis::Published(published(verdict, hop, sts.as_deref())),
            (None, Some(Basis::Published(unknown))) if unknown.coverage.is_failure() => {
                Basis::Published(unknown.clone())
            }
            // DANE is not looked at, or was not yet: what the policy says stands.
            (None, _) => Basis::Published(Published::NOTHING),
        };
        Decision { domain: hop.domain.as_str().into(), basis, sts, failure: known.failure.clone() }
    }

    /// The word that lists show.
    fn answer_name(&self, decision: &Decision) -> &'static str {
        let Some(facts) = decision.facts() else { return "fixed" };
        match facts.for_postfix(self.postfix.own_level, self.postfix) {
            Answer::OwnLevel => "default",
            Answer::Encrypt => "encrypt",
            Answer::Dane => "dane",
            Answer::DaneOnly => "dane-only",
            Answer::Secure | Answer::SecureNarrowed => "secure",
            Answer::Temp => "temp",
        }
    }
}
