//! An outcome and the policy that was in force: which count goes up.
//!
//! Takes: a [`SessionOutcome`], and what our responder had decided for its domain. Gives: [`TallyResult`]s under a policy.
//! Pure. RFC 8460 §4.2 to §4.4 for the words; RFC 8461 §4.1 for the patterns; RFC 7672 §2 for what DANE covers.
//! Not here: how a session was put together (`session`), where decisions are kept (`policy::history`).

use std::sync::Arc;

use crate::base::tlsrpt::{
    Day, Failure, Mode, Policy, PolicyInForce, PolicyType, ResultType, SessionOutcome, SessionResult, TallyKey,
    TallyResult, Trust, mx_matches, row_of,
};
use crate::counting::session::datagram::ReportedSession;
use crate::counting::session::reason::{DANE_NO_MATCH, HANDSHAKE_FAILURE, HOST_EXCLUDED, MX_MISMATCH, TLSA_UNUSABLE};

/// The tallies that a session is counted in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SessionTallies {
    /// The counts to add one to.
    pub(crate) tallies: Vec<TallyKey>,
    /// The line contradicts the decision, so no policy can have been in force.
    pub(crate) contradicted: bool,
    /// Not counted, because the MTA has not shown that it has trust anchors.
    pub(crate) without_trust_anchors: bool,
    /// The certificate was verified against trust anchors, as MTA-STS requires; under DANE it may need none.
    pub(crate) shows_trust_anchors: bool,
}

/// Tallies one session under the policy in force; `None` means that the MTA did not ask about the destination.
pub(crate) fn tally_session(outcome: &SessionOutcome, in_force: Option<&PolicyInForce>) -> SessionTallies {
    let none = || Arc::new(Policy::none(&outcome.domain));
    let excluded = in_force.zip(outcome.mx.as_deref()).and_then(|(policy, mx)| policy.excluded(mx));
    let excluded = excluded.filter(|_| reported_or_observed(outcome).is_some_and(|verdict| is_mismatch(&verdict)));
    // What remains of it is the MTA-STS policy.
    let in_force = match in_force {
        Some(PolicyInForce::PerHost { others, .. }) if excluded.is_none() => Some(&**others),
        same => same,
    };
    if outcome.deferred {
        return tally_deferral(outcome, in_force);
    }
    let (policy, verdict, contradicted) = match in_force {
        None | Some(PolicyInForce::None) => (none(), reported_or_observed(outcome), false),
        Some(PolicyInForce::Sts { mode: Mode::None, failure: None, .. }) => {
            (none(), reported_or_observed(outcome), false)
        }
        Some(PolicyInForce::Sts { mode: Mode::None, policy, .. }) => {
            (Arc::clone(policy), reported_or_observed(outcome), false)
        }
        Some(PolicyInForce::Sts { mode: Mode::Enforce, policy, .. }) => match verdict_under_enforce(outcome, policy) {
            Some(verdict) => (Arc::clone(policy), Some(verdict), false),
            None => (none(), reported_or_observed(outcome), true),
        },
        Some(PolicyInForce::Sts { mode: Mode::Testing, policy, .. }) => {
            (Arc::clone(policy), verdict_under_testing(outcome, policy), false)
        }
        Some(PolicyInForce::Deferred { policy, failure }) => match reported_or_observed(outcome) {
            // Exim asks for TLSA records by itself, and finds the same.
            Some(SessionResult::Failure(result, None)) if result == failure.result_type => {
                (Arc::clone(policy), Some(SessionResult::Failure(result, failure.failure_reason_code.clone())), false)
            }
            verdict => (none(), verdict, false),
        },
        Some(PolicyInForce::PerHost { .. }) => {
            let failure = SessionResult::Failure(ResultType::DnssecInvalid, Some(HOST_EXCLUDED.to_owned()));
            (excluded.unwrap_or_else(none), Some(failure), false)
        }
        Some(PolicyInForce::UnusableTlsa { hosts }) => match outcome.mx.as_deref().and_then(|mx| row_of(hosts, mx)) {
            Some(policy) => (Arc::clone(policy), reported_or_observed(outcome).map(as_tlsa_invalid), false),
            None => (none(), reported_or_observed(outcome), false),
        },
        Some(PolicyInForce::Dane { hosts, unsigned_mx }) => {
            match outcome.mx.as_deref().and_then(|mx| row_of(hosts, mx)) {
                Some(_) if skipped_dane_check(outcome, *unsigned_mx) => (none(), reported_or_observed(outcome), true),
                Some(policy) => (
                    Arc::clone(policy),
                    reported_or_observed(outcome).map(|verdict| as_dane_ee_mismatch(verdict, policy)),
                    false,
                ),
                None => (none(), reported_or_observed(outcome), false),
            }
        }
    };
    let tally = |counted| TallyKey {
        day: Day::of(outcome.ended),
        domain: Arc::clone(&outcome.domain),
        policy: Arc::clone(&policy),
        result: counted,
    };
    let without_anchors = verdict.is_none() && outcome.observed.is_some();
    let mut tallies = match verdict {
        None => Vec::new(),
        Some(SessionResult::Success) => vec![tally(TallyResult::Success)],
        Some(SessionResult::Failure(result_type, failure_reason_code)) => {
            let detail = Failure {
                receiving_mx_hostname: outcome.mx.clone(),
                receiving_ip: outcome.ip,
                failure_reason_code,
                ..Failure::new(result_type, None)
            };
            vec![tally(TallyResult::Failure), tally(TallyResult::Detail(detail))]
        }
    };
    // The policy's own failure is told once a session, and changes no summary.
    if let Some(PolicyInForce::Sts { failure: Some(failure), .. }) = in_force
        && !contradicted
        && !tallies.is_empty()
    {
        tallies.push(tally(TallyResult::Detail(Failure::clone(failure))));
    }
    if outcome.null_sender && !tallies.is_empty() {
        tallies.push(tally(TallyResult::NullSender));
    }
    let enforced = matches!(in_force, Some(PolicyInForce::Sts { mode: Mode::Enforce, .. }));
    let anchored = enforced && !contradicted && outcome.trust == Some(Trust::Verified);
    SessionTallies { tallies, contradicted, without_trust_anchors: without_anchors, shows_trust_anchors: anchored }
}

/// Tallies an attempt to deliver that ended before any connection, because the policy was not known: a failure where that
/// was through a fault of the destination.
fn tally_deferral(outcome: &SessionOutcome, in_force: Option<&PolicyInForce>) -> SessionTallies {
    let tallies = match in_force {
        Some(PolicyInForce::Deferred { policy, failure }) => {
            let detail = TallyResult::Detail(Failure::clone(failure));
            let tally = |result| TallyKey {
                day: Day::of(outcome.ended),
                domain: Arc::clone(&outcome.domain),
                policy: Arc::clone(policy),
                result,
            };
            let null_sender = outcome.null_sender.then_some(TallyResult::NullSender);
            [TallyResult::Failure, detail].into_iter().chain(null_sender).map(tally).collect()
        }
        _ => Vec::new(),
    };
    SessionTallies { tallies, contradicted: false, without_trust_anchors: false, shows_trust_anchors: false }
}

/// Tallies one result of Postfix's libtlsrpt, received at `at`; nothing where its policy is in testing mode and
/// `testing_is_counted_elsewhere`: Postfix reports what it required, not what the policy would have.
///
/// The policy is the one in the datagram; our own decision stands in where Postfix was not told what it had come from, and
/// adds the policy failure, which Postfix does not report.
pub(crate) fn tally_reported_session(
    session: &ReportedSession,
    at: i64,
    in_force: Option<&PolicyInForce>,
    testing_is_counted_elsewhere: bool,
) -> Vec<TallyKey> {
    if let Some(tallies) = tally_reported_dane_failure(session, at, in_force) {
        return tallies;
    }
    let ours = match in_force.map(|policy| match policy {
        PolicyInForce::PerHost { others, .. } => &**others,
        same => same,
    }) {
        Some(PolicyInForce::Sts { mode, policy, failure }) if session.policy.policy_type != PolicyType::Tlsa => {
            let unmet = *mode == Mode::None && failure.is_none();
            (!unmet).then_some((*mode, policy, failure))
        }
        _ => None,
    };
    let testing = session.testing || matches!(ours, Some((Mode::Testing, ..)));
    if testing && testing_is_counted_elsewhere {
        return Vec::new();
    }
    let policy = match ours {
        Some((_, policy, _)) => Arc::clone(policy),
        None => Arc::clone(&session.policy),
    };
    let tally = |counted| TallyKey {
        day: Day::of(at),
        domain: Arc::clone(&session.domain),
        policy: Arc::clone(&policy),
        result: counted,
    };
    let mut tallies = vec![tally(if session.failed { TallyResult::Failure } else { TallyResult::Success })];
    tallies.extend(session.failures.iter().map(|failure| tally(TallyResult::Detail(failure.clone()))));
    if let Some((_, _, Some(failure))) = ours
        && !session.failures.iter().any(|told| told.result_type == failure.result_type)
    {
        tallies.push(tally(TallyResult::Detail(Failure::clone(failure))));
    }
    tallies
}

/// Tallies a result of Postfix's libtlsrpt that is a failure of DANE by our own decision, of which Postfix was told another
/// level: TLSA records of which none is usable, and hosts that it was told not to use. Nothing where it is none.
fn tally_reported_dane_failure(
    session: &ReportedSession,
    at: i64,
    in_force: Option<&PolicyInForce>,
) -> Option<Vec<TallyKey>> {
    let mx_of = |failure: &Failure| failure.receiving_mx_hostname.clone();
    let (policy, details) = match in_force? {
        PolicyInForce::UnusableTlsa { hosts } if session.policy.policy_type == PolicyType::NoPolicyFound => {
            let mx = session.failures.iter().find_map(mx_of);
            let named = mx.as_deref().and_then(|mx| row_of(hosts, mx));
            let policy = named.or_else(|| hosts.first().map(|(_, policy)| policy))?;
            let invalid = Failure::new(ResultType::TlsaInvalid, Some(TLSA_UNUSABLE));
            let details = if session.failed { session.failures.clone() } else { vec![invalid] };
            (Arc::clone(policy), details)
        }
        narrowed @ PolicyInForce::PerHost { .. } if session.failed => {
            let is_ours = |failure: &&Failure| {
                is_mismatch(&SessionResult::Failure(failure.result_type, failure.failure_reason_code.clone()))
            };
            let failure = session.failures.iter().find(is_ours)?;
            let policy = narrowed.excluded(&mx_of(failure)?)?;
            let detail = Failure {
                result_type: ResultType::DnssecInvalid,
                failure_reason_code: Some(HOST_EXCLUDED.to_owned()),
                ..failure.clone()
            };
            (policy, vec![detail])
        }
        _ => return None,
    };
    let tally = |result| TallyKey {
        day: Day::of(at),
        domain: Arc::clone(&session.domain),
        policy: Arc::clone(&policy),
        result,
    };
    Some([TallyResult::Failure].into_iter().chain(details.into_iter().map(TallyResult::Detail)).map(tally).collect())
}

/// Whether a host was refused because of its name: that of its certificate, or its own.
fn is_mismatch(result: &SessionResult) -> bool {
    match result {
        SessionResult::Failure(ResultType::CertificateHostMismatch, _) => true,
        SessionResult::Failure(ResultType::ValidationFailure, reason) => reason.as_deref() == Some(MX_MISMATCH),
        SessionResult::Failure(..) | SessionResult::Success => false,
    }
}

/// TLS without a usable TLSA record: the session that succeeded shows what is wrong with the records.
fn as_tlsa_invalid(result: SessionResult) -> SessionResult {
    match result {
        SessionResult::Success => SessionResult::Failure(ResultType::TlsaInvalid, Some(TLSA_UNUSABLE.to_owned())),
        failure => failure,
    }
}

/// The result that the MTA itself reports, else the one observed in its lines. Of the same result, the lines may say more.
fn reported_or_observed(outcome: &SessionOutcome) -> Option<SessionResult> {
    match (&outcome.native, &outcome.observed) {
        (Some(SessionResult::Failure(reported, code)), Some(SessionResult::Failure(observed, Some(_))))
            if reported == observed && matches!(code.as_deref(), None | Some(HANDSHAKE_FAILURE)) =>
        {
            outcome.observed.clone()
        }
        (Some(reported), _) => Some(reported.clone()),
        (None, observed) => observed.clone(),
    }
}

/// The result under an enforced MTA-STS policy; `None` if the session shows that the policy was not applied.
fn verdict_under_enforce(outcome: &SessionOutcome, policy: &Policy) -> Option<SessionResult> {
    if outcome.observed == Some(SessionResult::Success) && outcome.trust != Some(Trust::Verified) {
        return None;
    }
    match reported_or_observed(outcome)? {
        verdict if mx_is_allowed(outcome, policy) => Some(verdict),
        _ => Some(mx_mismatch()),
    }
}

/// The result under an MTA-STS policy in testing mode, which required nothing: a session that would have failed, failed.
/// What the MTA itself reports is of the level that it applied, not of the policy.
fn verdict_under_testing(outcome: &SessionOutcome, policy: &Policy) -> Option<SessionResult> {
    if !mx_is_allowed(outcome, policy) {
        return Some(mx_mismatch());
    }
    if outcome.clear_text {
        return Some(SessionResult::Failure(ResultType::StarttlsNotSupported, None));
    }
    match (outcome.observed.clone(), outcome.trust) {
        (Some(SessionResult::Success), Some(Trust::Untrusted | Trust::Anonymous)) => {
            // An MTA without trust anchors finds every certificate untrusted: then nothing is known.
            let (result, code) = outcome.cause.clone().unwrap_or((ResultType::CertificateNotTrusted, None));
            outcome.anchors.then_some(SessionResult::Failure(result, code))
        }
        // The log level hides what was made of the certificate.
        (Some(SessionResult::Success), None) => outcome.native.clone(),
        (Some(observed), _) => Some(observed),
        (None, _) => outcome.native.clone(),
    }
}

fn mx_is_allowed(outcome: &SessionOutcome, policy: &Policy) -> bool {
    // An MX that no line names cannot be held against the patterns.
    outcome.mx.as_deref().is_none_or(|mx| policy.mx_host.iter().any(|pattern| mx_matches(pattern, mx)))
}

/// Whether a session succeeded without the check that a DANE answer requires: the MTA was told another level, or the mail
/// asks for none (`TLS-Required: no`, RFC 8689 §4.2).
fn skipped_dane_check(outcome: &SessionOutcome, unsigned_mx: bool) -> bool {
    let unchecked = match (outcome.dane, outcome.trust) {
        (Some(dane), _) => !dane,
        (None, Some(Trust::Verified)) => false,
        // Half-dane has this word too.
        (None, Some(Trust::Trusted)) => !unsigned_mx,
        (None, None | Some(Trust::Untrusted | Trust::Anonymous)) => true,
    };
    outcome.observed == Some(SessionResult::Success) && unchecked
}

/// If all records are DANE-EE, no name is checked (RFC 7672 §3.1.1), so the key did not match. Postfix 3.4 and 3.5 log only
/// that the certificate was not verified.
fn as_dane_ee_mismatch(verdict: SessionResult, policy: &Policy) -> SessionResult {
    let keys_alone = || policy.policy_string.iter().all(|record| record.starts_with("3 "));
    match verdict {
        SessionResult::Failure(ResultType::CertificateHostMismatch, _) if keys_alone() => {
            SessionResult::Failure(ResultType::CertificateNotTrusted, Some(DANE_NO_MATCH.to_owned()))
        }
        verdict => verdict,
    }
}

fn mx_mismatch() -> SessionResult {
    SessionResult::Failure(ResultType::ValidationFailure, Some(MX_MISMATCH.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(trust: Option<Trust>, observed: SessionResult) -> SessionOutcome {
        SessionOutcome {
            began: 100,
            ended: 200,
            domain: "a.example".into(),
            mx: Some("mx.a.example".into()),
            ip: "192.0.2.1".parse().ok(),
            port: Some(25),
            trust,
            observed: Some(observed),
            dane: None,
            native: None,
            cause: None,
            clear_text: false,
            deferred: false,
            anchors: true,
            next_hop_named: false,
            null_sender: false,
            reported: None,
            anchors_shown_by: None,
        }
    }

    fn sts(mode: Mode, pattern: &str) -> PolicyInForce {
        let policy = Policy {
            policy_type: PolicyType::Sts,
            policy_string: vec!["version: STSv1".into()],
            policy_domain: "a.example".into(),
            mx_host: vec![pattern.into()],
        };
        PolicyInForce::Sts { mode, policy: Arc::new(policy), failure: None }
    }

    fn summarize(counts: &SessionTallies) -> (PolicyType, Option<(ResultType, Option<&str>)>) {
        let of = |t: &TallyKey| t.policy.policy_type;
        match &counts.tallies[..] {
            [one] if one.result == TallyResult::Success => (of(one), None),
            [failure, detail] if failure.result == TallyResult::Failure => match &detail.result {
                TallyResult::Detail(f) => (of(detail), Some((f.result_type, f.failure_reason_code.as_deref()))),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// The same, of results with reasons of any kind.
    fn summarize_keys(tallies: &[TallyKey]) -> (PolicyType, Option<(ResultType, Option<String>)>) {
        match tallies {
            [one] if one.result == TallyResult::Success => (one.policy.policy_type, None),
            [
                TallyKey { result: TallyResult::Failure, policy, .. },
                TallyKey { result: TallyResult::Detail(f), .. },
            ] => (policy.policy_type, Some((f.result_type, f.failure_reason_code.clone()))),
            other => panic!("{other:?}"),
        }
    }

    fn summarize_owned(counts: &SessionTallies) -> (PolicyType, Option<(ResultType, Option<String>)>) {
        summarize_keys(&counts.tallies)
    }

    fn expired() -> SessionResult {
        SessionResult::Failure(ResultType::CertificateExpired, None)
    }

    const MISMATCH_UNDER_STS: (PolicyType, Option<(ResultType, Option<&str>)>) = (PolicyType::Sts, Some(MISMATCH));
    const MISMATCH: (ResultType, Option<&str>) = (ResultType::ValidationFailure, Some(MX_MISMATCH));

    #[test]
    fn enforced_and_met_or_not() {
        let enforce = sts(Mode::Enforce, "mx.a.example");
        let met = tally_session(&session(Some(Trust::Verified), SessionResult::Success), Some(&enforce));
        assert_eq!((summarize(&met), met.shows_trust_anchors), ((PolicyType::Sts, None), true));
        let not = tally_session(&session(Some(Trust::Untrusted), expired()), Some(&enforce));
        assert_eq!(summarize(&not), (PolicyType::Sts, Some((ResultType::CertificateExpired, None))));
    }

    #[test]
    fn an_mx_outside_an_enforced_policy_fails_whatever_its_certificate() {
        let enforce = sts(Mode::Enforce, "*.b.example");
        for (trust, verdict) in [(Trust::Verified, SessionResult::Success), (Trust::Untrusted, expired())] {
            let counts = tally_session(&session(Some(trust), verdict), Some(&enforce));
            assert_eq!(summarize(&counts), (PolicyType::Sts, Some(MISMATCH)));
        }
    }

    #[test]
    fn delivery_over_an_untrusted_session_says_that_secure_was_not_applied() {
        let enforce = sts(Mode::Enforce, "mx.a.example");
        let counts = tally_session(&session(Some(Trust::Untrusted), SessionResult::Success), Some(&enforce));
        assert_eq!((summarize(&counts), counts.contradicted), ((PolicyType::NoPolicyFound, None), true));
    }

    #[test]
    fn testing_mode_fails_what_enforce_would_have_failed_and_ignores_native() {
        let testing = sts(Mode::Testing, "mx.a.example");
        let mut untrusted = session(Some(Trust::Untrusted), SessionResult::Success);
        untrusted.native = Some(SessionResult::Success);
        let failed = tally_session(&untrusted, Some(&testing));
        assert_eq!(summarize(&failed), (PolicyType::Sts, Some((ResultType::CertificateNotTrusted, None))));
        untrusted.anchors = false;
        let unknown = tally_session(&untrusted, Some(&testing));
        assert_eq!((unknown.tallies, unknown.without_trust_anchors), (vec![], true));
        let elsewhere = sts(Mode::Testing, "mx.b.example");
        let outside = tally_session(&session(Some(Trust::Trusted), SessionResult::Success), Some(&elsewhere));
        assert_eq!(summarize(&outside), (PolicyType::Sts, Some(MISMATCH)));
    }

    #[test]
    fn in_testing_mode_clear_text_fails_and_elsewhere_it_is_no_session() {
        let mut plain = session(None, SessionResult::Success);
        (plain.observed, plain.clear_text) = (None, true);
        let testing = sts(Mode::Testing, "mx.a.example");
        let missing = (PolicyType::Sts, Some((ResultType::StarttlsNotSupported, None)));
        assert_eq!(summarize(&tally_session(&plain, Some(&testing))), missing);
        let outside = sts(Mode::Testing, "mx.b.example");
        assert_eq!(summarize(&tally_session(&plain, Some(&outside))), MISMATCH_UNDER_STS);
        for in_force in [None, Some(PolicyInForce::None), Some(sts(Mode::Enforce, "mx.a.example"))] {
            assert_eq!(tally_session(&plain, in_force.as_ref()).tallies, []);
        }
    }

    #[test]
    fn a_session_of_which_only_the_level_is_known() {
        let hidden = session(None, SessionResult::Success);
        assert_eq!(summarize(&tally_session(&hidden, None)), (PolicyType::NoPolicyFound, None));
        let testing = tally_session(&hidden, Some(&sts(Mode::Testing, "mx.a.example")));
        assert_eq!((testing.tallies, testing.without_trust_anchors), (vec![], true));
        assert!(tally_session(&hidden, Some(&sts(Mode::Enforce, "mx.a.example"))).contradicted);
    }

    #[test]
    fn testing_mode_says_why_where_the_mta_does() {
        let testing = sts(Mode::Testing, "mx.a.example");
        let mut untrusted = session(Some(Trust::Untrusted), SessionResult::Success);
        untrusted.cause = Some((ResultType::CertificateExpired, None));
        let failed = tally_session(&untrusted, Some(&testing));
        assert_eq!(summarize(&failed), (PolicyType::Sts, Some((ResultType::CertificateExpired, None))));
    }

    #[test]
    fn a_policy_failure_is_one_more_detail_and_no_failed_session() {
        let failure = Failure::new(ResultType::StsPolicyFetchError, Some("status-404"));
        let policy = Policy { policy_type: PolicyType::Sts, ..Policy::none("a.example") };
        let unfetched = PolicyInForce::Sts {
            mode: Mode::None,
            policy: Arc::new(policy.clone()),
            failure: Some(Arc::new(failure.clone())),
        };
        let counts = tally_session(&session(Some(Trust::Untrusted), SessionResult::Success), Some(&unfetched));
        let counted: Vec<_> = counts.tallies.iter().map(|t| (t.policy.policy_type, t.result.clone())).collect();
        let want = [(PolicyType::Sts, TallyResult::Success), (PolicyType::Sts, TallyResult::Detail(failure))];
        assert_eq!(counted, want);
    }

    #[test]
    fn dane_is_of_the_hosts_that_have_records() {
        let policy = Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: vec!["3 1 1 AB".into()],
            policy_domain: "mx.a.example".into(),
            mx_host: vec![],
        };
        let dane = |host: &str| PolicyInForce::Dane {
            hosts: vec![(host.into(), Arc::new(policy.clone()))],
            unsigned_mx: false,
        };
        let verified = session(Some(Trust::Verified), SessionResult::Success);
        assert_eq!(summarize(&tally_session(&verified, Some(&dane("MX.a.example")))), (PolicyType::Tlsa, None));
        assert_eq!(
            summarize(&tally_session(&verified, Some(&dane("mx2.a.example")))),
            (PolicyType::NoPolicyFound, None)
        );
        let name = session(Some(Trust::Trusted), SessionResult::Failure(ResultType::CertificateHostMismatch, None));
        let key = (PolicyType::Tlsa, Some((ResultType::CertificateNotTrusted, Some(DANE_NO_MATCH))));
        assert_eq!(summarize(&tally_session(&name, Some(&dane("mx.a.example")))), key);
        let untrusted =
            tally_session(&session(Some(Trust::Untrusted), SessionResult::Success), Some(&dane("mx.a.example")));
        assert_eq!((summarize(&untrusted), untrusted.contradicted), ((PolicyType::NoPolicyFound, None), true));
        // At another level than DANE a certificate is trusted by its chain; so is that of half-dane.
        let trusted = session(Some(Trust::Trusted), SessionResult::Success);
        let counts = tally_session(&trusted, Some(&dane("mx.a.example")));
        assert_eq!((summarize(&counts), counts.contradicted), ((PolicyType::NoPolicyFound, None), true));
        let half =
            PolicyInForce::Dane { hosts: vec![("mx.a.example".into(), Arc::new(policy.clone()))], unsigned_mx: true };
        assert_eq!(summarize(&tally_session(&trusted, Some(&half))), (PolicyType::Tlsa, None));
        // Verified by its chain, where the MTA says that no TLSA record did.
        let by_chain = SessionOutcome { dane: Some(false), ..verified };
        let counts = tally_session(&by_chain, Some(&dane("mx.a.example")));
        assert_eq!((summarize(&counts), counts.contradicted), ((PolicyType::NoPolicyFound, None), true));
    }

    fn tlsa_row(host: &str) -> (String, Arc<Policy>) {
        let policy = Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: vec!["3 1 1 ab".into()],
            policy_domain: host.into(),
            mx_host: Vec::new(),
        };
        (host.to_owned(), Arc::new(policy))
    }

    #[test]
    fn a_session_without_a_usable_tlsa_record_is_a_failure_of_the_records() {
        let in_force = PolicyInForce::UnusableTlsa { hosts: vec![tlsa_row("mx.a.example")] };
        let count = |outcome: &SessionOutcome| summarize_owned(&tally_session(outcome, Some(&in_force)));
        let invalid = (PolicyType::Tlsa, Some((ResultType::TlsaInvalid, Some(TLSA_UNUSABLE.to_owned()))));
        let untrusted = session(Some(Trust::Untrusted), SessionResult::Success);
        assert_eq!(count(&untrusted), invalid);
        let native = SessionOutcome { native: Some(SessionResult::Success), ..untrusted.clone() };
        assert_eq!(count(&native), invalid);
        let missing = SessionResult::Failure(ResultType::StarttlsNotSupported, None);
        assert_eq!(count(&session(None, missing)), (PolicyType::Tlsa, Some((ResultType::StarttlsNotSupported, None))));
        let new_host = SessionOutcome { mx: Some("mx2.a.example".into()), ..untrusted };
        assert_eq!(count(&new_host), (PolicyType::NoPolicyFound, None));
        let reported = |failed, failures| ReportedSession {
            domain: "a.example".into(),
            policy: Arc::new(Policy::none("a.example")),
            testing: false,
            failed,
            failures,
        };
        let counts = tally_reported_session(&reported(false, Vec::new()), 1, Some(&in_force), true);
        assert_eq!(summarize_keys(&counts), invalid);
    }

    #[test]
    fn what_waits_through_a_fault_of_the_destination_is_its_failure() {
        let failure = Failure {
            receiving_mx_hostname: Some("mx.a.example".into()),
            ..Failure::new(ResultType::DnssecInvalid, Some("dnssec-bogus"))
        };
        let (_, policy) = tlsa_row("mx.a.example");
        let in_force = PolicyInForce::Deferred { policy, failure: Arc::new(failure.clone()) };
        let mut waits = session(None, SessionResult::Success);
        (waits.mx, waits.ip, waits.observed, waits.deferred) = (None, None, None, true);
        let counts = tally_session(&waits, Some(&in_force));
        assert!(counts.tallies.iter().all(|tally| tally.policy.policy_type == PolicyType::Tlsa));
        let results: Vec<_> = counts.tallies.into_iter().map(|tally| tally.result).collect();
        assert_eq!(results, [TallyResult::Failure, TallyResult::Detail(failure)]);
        for other in [None, Some(PolicyInForce::None), Some(sts(Mode::Enforce, "mx.a.example"))] {
            assert_eq!(tally_session(&waits, other.as_ref()).tallies, []);
        }
        // Exim looks TLSA records up by itself.
        let looked_up = session(None, SessionResult::Failure(ResultType::DnssecInvalid, None));
        let want = (PolicyType::Tlsa, Some((ResultType::DnssecInvalid, Some("dnssec-bogus".to_owned()))));
        assert_eq!(summarize_owned(&tally_session(&looked_up, Some(&in_force))), want);
        // And an MTA that does not ask us connects.
        let connected = session(Some(Trust::Trusted), SessionResult::Success);
        assert_eq!(summarize(&tally_session(&connected, Some(&in_force))), (PolicyType::NoPolicyFound, None));
    }

    #[test]
    fn a_mismatch_at_a_host_that_the_mta_was_told_not_to_use_is_a_failure_of_dane() {
        let in_force = PolicyInForce::PerHost {
            dane: vec![tlsa_row("mx2.a.example")],
            others: Box::new(sts(Mode::Enforce, "*.a.example")),
            narrowed: Some(vec!["mx.a.example".into()]),
        };
        let at = |mx: &str, trust, result| SessionOutcome { mx: Some(mx.into()), ..session(Some(trust), result) };
        let count = |outcome: &SessionOutcome| summarize_owned(&tally_session(outcome, Some(&in_force)));
        let name = || SessionResult::Failure(ResultType::CertificateHostMismatch, None);
        let pattern = || SessionResult::Failure(ResultType::ValidationFailure, Some(MX_MISMATCH.to_owned()));
        let ours = (PolicyType::Tlsa, Some((ResultType::DnssecInvalid, Some(HOST_EXCLUDED.to_owned()))));
        let sts_failure = |result, code: Option<&str>| (PolicyType::Sts, Some((result, code.map(str::to_owned))));
        // With TLSA records, and one whose look-up failed.
        for mx in ["mx2.a.example", "MX3.a.example"] {
            assert_eq!(count(&at(mx, Trust::Trusted, name())), ours, "{mx}");
            assert_eq!(count(&at(mx, Trust::Trusted, pattern())), ours, "{mx}");
            let expired = count(&at(mx, Trust::Untrusted, expired()));
            assert_eq!(expired, sts_failure(ResultType::CertificateExpired, None), "{mx}");
            assert_eq!(count(&at(mx, Trust::Verified, SessionResult::Success)), (PolicyType::Sts, None), "{mx}");
        }
        let told = count(&at("mx.a.example", Trust::Trusted, name()));
        assert_eq!(told, sts_failure(ResultType::CertificateHostMismatch, None));
        let outside = count(&at("mx.b.example", Trust::Trusted, pattern()));
        assert_eq!(outside, sts_failure(ResultType::ValidationFailure, Some(MX_MISMATCH)));
        let domain = tally_session(&at("mx2.a.example", Trust::Trusted, name()), Some(&in_force));
        assert_eq!(domain.tallies[0].policy.policy_domain, "mx2.a.example");

        let failure = |mx: &str| Failure {
            receiving_mx_hostname: Some(mx.into()),
            ..Failure::new(ResultType::ValidationFailure, Some(MX_MISMATCH))
        };
        let mut narrowed = Policy::none("a.example");
        narrowed.policy_type = PolicyType::Sts;
        for (mx, want) in
            [("mx2.a.example", ours), ("mx.b.example", sts_failure(ResultType::ValidationFailure, Some(MX_MISMATCH)))]
        {
            let reported = ReportedSession {
                domain: "a.example".into(),
                policy: Arc::new(narrowed.clone()),
                testing: false,
                failed: true,
                failures: vec![failure(mx)],
            };
            let counts = tally_reported_session(&reported, 1, Some(&in_force), true);
            assert_eq!(summarize_keys(&counts), want, "{mx}");
        }
    }

    #[test]
    fn dane_at_some_hosts_and_a_testing_policy_at_the_others() {
        let in_force = PolicyInForce::PerHost {
            dane: vec![tlsa_row("mx2.a.example")],
            others: Box::new(sts(Mode::Testing, "mx.a.example")),
            narrowed: None,
        };
        assert_eq!(in_force.clone().at_host(Some("mx.a.example")), sts(Mode::Testing, "mx.a.example"));
        assert_eq!(in_force.clone().at_host(None), sts(Mode::Testing, "mx.a.example"));
        let dane = PolicyInForce::Dane { hosts: vec![tlsa_row("mx2.a.example")], unsigned_mx: true };
        assert_eq!(in_force.clone().at_host(Some("MX2.a.example")), dane);
        assert_eq!(in_force.excluded("mx2.a.example"), None);
    }

    #[test]
    fn lines_that_say_more_than_the_mta_reports_are_heard() {
        let failure = |result, code: Option<&str>| SessionResult::Failure(result, code.map(str::to_owned));
        let (handshake, untrusted) = (ResultType::ValidationFailure, ResultType::CertificateNotTrusted);
        for (native, observed, want) in [
            (failure(handshake, Some(HANDSHAKE_FAILURE)), failure(handshake, Some("x")), (handshake, Some("x"))),
            (failure(untrusted, None), failure(untrusted, Some(DANE_NO_MATCH)), (untrusted, Some(DANE_NO_MATCH))),
            (failure(untrusted, Some("y")), failure(untrusted, Some("x")), (untrusted, Some("y"))),
            (failure(untrusted, None), failure(handshake, Some("x")), (untrusted, None)),
        ] {
            let both = SessionOutcome { native: Some(native), ..session(Some(Trust::Untrusted), observed) };
            assert_eq!(summarize(&tally_session(&both, None)), (PolicyType::NoPolicyFound, Some(want)));
        }
    }

    #[test]
    fn what_the_mta_reports_passes_as_it_is() {
        let mut both = session(Some(Trust::Trusted), expired());
        both.native = Some(SessionResult::Success);
        assert_eq!(summarize(&tally_session(&both, None)), (PolicyType::NoPolicyFound, None));
    }
}
