//! What is not known because nothing can be asked, which is not the domain's fault.
//!
//! Takes: what is known of a domain's MTA-STS, whether the resolver answers at all. Gives: the cause of TEMP, or nothing.
//! Pure.
//! One `_mta-sts` record that cannot be asked never gives TEMP (RFC 8461 §3.3): it must be this host that cannot ask, or
//! a resolver that answers nothing.
//! Not here: when a resolver answers nothing (`net::dns`), what follows for an answer (`decide`).

use crate::answering::policy::sts::domain_state::{DomainSnapshot, RecordState};

/// The cause of TEMP where a policy cannot be fetched through our own fault; the log says which.
const CANNOT_FETCH: &str = "the MTA-STS policy cannot be fetched: this host has no root certificates or no descriptors";

/// Why it is not known whether a domain enforces an MTA-STS policy, where that is not the domain's fault. `outage`: why
/// the resolver answers nothing.
pub(super) fn cause(known: &DomainSnapshot, outage: Option<String>, now: i64) -> Option<String> {
    if known.policy.is_some() {
        return None;
    }
    if known.not_asked {
        return Some(CANNOT_FETCH.to_owned());
    }
    match &known.record {
        Some((RecordState::Failed { cause, local: true }, _)) => Some(format!("the MTA-STS record: {cause}")),
        // It has none: that was asked.
        Some((RecordState::None { .. }, until)) if *until > now => None,
        _ => outage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_fault_of_ours_or_an_outage_makes_a_record_unknown() {
        let failed = |local| Some((RecordState::Failed { cause: "SERVFAIL".into(), local }, 60));
        let none = |until| Some((RecordState::None { reason: "no such records".into(), invalid: false }, until));
        let id = Some((RecordState::Id { id: "1".into() }, 60));
        let outage = || Some("silence".to_owned());
        for (record, outage, want) in [
            // One record that cannot be asked.
            (failed(false), None, None),
            (failed(true), None, Some("the MTA-STS record: SERVFAIL")),
            (failed(false), outage(), Some("silence")),
            (None, outage(), Some("silence")),
            (id.clone(), outage(), Some("silence")),
            (id, None, None),
            (none(60), outage(), None),
            (none(10), outage(), Some("silence")),
        ] {
            let known = DomainSnapshot { record, ..DomainSnapshot::default() };
            assert_eq!(cause(&known, outage, 10).as_deref(), want, "{known:?}");
        }
        let not_asked = DomainSnapshot { not_asked: true, ..DomainSnapshot::default() };
        assert_eq!(cause(&not_asked, None, 10).as_deref(), Some(CANNOT_FETCH));
    }
}
