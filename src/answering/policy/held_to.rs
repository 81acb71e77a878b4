//! What the sessions of a service are held to, and counted under, by its own level.
//!
//! Takes: what is published for a next hop, with its TLSA records and its MTA-STS policy; the own level of the service that
//! asks. Gives: a [`StoredPolicy`]. Pure.
//! Not here: the answer itself (`decision`), who notes it (`decide`, `policies`).

use std::sync::Arc;

use crate::answering::policy::dane::cached_verdict::CachedVerdict;
use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::decision::{Answer, PostfixTraits, Published};
use crate::answering::policy::decision_cache::CachedDecision;
use crate::answering::policy::history::compact::{DestinationFault, PerHostPolicy, StoredPolicy};
use crate::answering::policy::sts::policy::{PolicyFailure, StsPolicy};
use crate::base::tlsrpt::Mode;
use crate::config::PostfixLevel;

/// What a session may be held to.
pub(super) struct HeldTo<'a> {
    pub(super) verdict: Option<&'a CachedVerdict>,
    /// The MTA-STS policy in force.
    pub(super) sts: Option<&'a Arc<StsPolicy>>,
    /// Why a newer document could not be had.
    pub(super) failure: Option<&'a PolicyFailure>,
    /// What was served of a policy that could not be had at all.
    pub(super) failed: Option<StoredPolicy>,
    /// Why the mail waits, where that is the destination's fault.
    pub(super) fault: Option<Arc<DestinationFault>>,
}

impl HeldTo<'_> {
    /// That of a decision that is cached.
    pub(super) fn of_entry(entry: &CachedDecision, now: i64) -> HeldTo<'_> {
        let failure = entry.failure.as_deref();
        let failed = failure.filter(|_| entry.sts.is_none() && entry.domain.policy(now).is_none());
        HeldTo {
            verdict: entry.verdict.as_ref(),
            sts: entry.sts.as_ref(),
            failure,
            failed: failed.map(|failure| failure.stored_policy(&entry.domain.name)),
            fault: entry.fault.clone(),
        }
    }

    /// What sessions are counted under, of a service with this own level.
    pub(super) fn stored_policy(
        &self,
        published: &Published,
        level: PostfixLevel,
        postfix: PostfixTraits,
    ) -> StoredPolicy {
        let facts = published.facts(self.sts.map(|policy| policy.mode));
        let answer = facts.for_postfix(level, postfix);
        // Postfix follows TLSA records by itself at the levels dane and dane-only.
        let follows_tlsa = facts.follows_tlsa(answer, level, postfix);
        let all_tlsa_hosts = self.verdict.and_then(CachedVerdict::tlsa_hosts);
        let tlsa_hosts = all_tlsa_hosts.clone().filter(|_| follows_tlsa);
        let enforced = matches!(answer, Answer::Secure | Answer::SecureNarrowed);
        let sts_policy = match self.sts {
            Some(policy) if enforced || policy.mode == Mode::Testing => Some(policy.stored_policy(self.failure)),
            Some(_) => None,
            None => self.failed.clone(),
        };
        let is_dane = match answer {
            Answer::Dane => true,
            answer => answer == Answer::OwnLevel && level == PostfixLevel::Dane,
        };
        let per_host =
            |dane, others, narrowed| StoredPolicy::PerHost(Arc::new(PerHostPolicy { dane, others, narrowed }));
        let policy = match (answer, tlsa_hosts, sts_policy) {
            (Answer::Temp, ..) => self.fault.clone().map(StoredPolicy::Deferred),
            (Answer::Encrypt, ..) => all_tlsa_hosts.map(StoredPolicy::UnusableTlsa),
            (Answer::SecureNarrowed, _, Some(others)) => {
                let narrowed = published.narrowed().iter().map(|host| host.as_str().into()).collect();
                Some(per_host(all_tlsa_hosts, others, Some(narrowed)))
            }
            // The other hosts get what they get without DANE.
            (_, Some(hosts), Some(others)) if is_dane && published.coverage != Coverage::AllHosts => {
                Some(per_host(Some(hosts), others, None))
            }
            (_, Some(hosts), _) if matches!(published.coverage, Coverage::UnsignedMx | Coverage::UnsignedFailed) => {
                Some(StoredPolicy::DaneUnsignedMx(hosts))
            }
            (_, Some(hosts), _) => Some(StoredPolicy::Dane(Some(hosts))),
            (_, None, others) => others,
        };
        policy.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answering::policy::decision::Basis;
    use crate::base::tlsrpt::ResultType;

    #[test]
    fn a_service_with_its_own_level_waits_for_the_same_fault() {
        let fault = Arc::new(DestinationFault {
            result_type: ResultType::DnssecInvalid,
            reason: "extended-dns-error-7-signature-expired".into(),
            host: None,
        });
        let published = Published::unknown("SERVFAIL");
        let postfix = PostfixTraits::of(&Default::default());
        let stored = |fault| {
            // The last verdict that was no failure has no fault; the decision has.
            let basis = Basis::Published(published.clone());
            let entry = CachedDecision { basis, fault, ..CachedDecision::no_policy() };
            HeldTo::of_entry(&entry, 1000).stored_policy(&published, PostfixLevel::Dane, postfix)
        };
        assert_eq!(stored(Some(Arc::clone(&fault))), StoredPolicy::Deferred(fault));
        assert_eq!(stored(None), StoredPolicy::None);
    }
}
