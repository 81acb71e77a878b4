//! An outcome and the policy that was in force: which count goes up.
//!
//! Takes: a [`SessionOutcome`], and what our responder had decided for its domain. Gives: [`TallyResult`]s under a policy.
//! Pure. RFC 8460 §4.2 to §4.4 for the words; RFC 8461 §4.1 for the patterns; RFC 7672 §2 for what DANE covers.
//! Not here: how a session was put together (`session`), where decisions are kept (`policy::history`).

use std::sync::Arc;

use crate::base::tlsrpt::{
    Day, Failure, Mode, Policy, PolicyInForce, PolicyType, ResultType, SessionOutcome, SessionResult, TallyKey,
    TallyResult, Trust, mx_matches,
};
use crate::counting::session::datagram::ReportedSession;
use crate::counting::session::reason::{DANE_NO_MATCH, MX_MISMATCH};

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
        Some(PolicyInForce::Dane { hosts }) => {
            let covers = |host: &str| hosts.iter().find(|(name, _)| name.eq_ignore_ascii_case(host));
            match outcome.mx.as_deref().and_then(covers) {
                Some(_) if skipped_dane_check(outcome) => (none(), reported_or_observed(outcome), true),
                Some((_, policy)) => (
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
    let enforced = matches!(in_force, Some(PolicyInForce::Sts { mode: Mode::Enforce, .. }));
    let anchored = enforced && !contradicted && outcome.trust == Some(Trust::Verified);
    SessionTallies { tallies, contradicted, without_trust_anchors: without_anchors, shows_trust_anchors: anchored }
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
    let ours = match in_force {
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

/// The result that the MTA itself reports, else the one observed in its lines.
fn reported_or_observed(outcome: &SessionOutcome) -> Option<SessionResult> {
    outcome.native.clone().or_else(|| outcome.observed.clone())
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

/// Whether a session succeeded without the check that a DANE answer requires. `Trusted` can be half-dane.
fn skipped_dane_check(outcome: &SessionOutcome) -> bool {
    let unchecked = match outcome.dane {
        Some(dane) => !dane,
        None => matches!(outcome.trust, None | Some(Trust::Untrusted | Trust::Anonymous)),
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
            trust,
            observed: Some(observed),
            dane: None,
            native: None,
            cause: None,
            clear_text: false,
            anchors: true,
            next_hop_named: false,
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
        let dane = |host: &str| PolicyInForce::Dane { hosts: vec![(host.into(), Arc::new(policy.clone()))] };
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
        // Verified by its chain, where the MTA says that no TLSA record did.
        let by_chain = SessionOutcome { dane: Some(false), ..verified };
        let counts = tally_session(&by_chain, Some(&dane("mx.a.example")));
        assert_eq!((summarize(&counts), counts.contradicted), ((PolicyType::NoPolicyFound, None), true));
    }

    #[test]
    fn what_the_mta_reports_passes_as_it_is() {
        let mut both = session(Some(Trust::Trusted), expired());
        both.native = Some(SessionResult::Success);
        assert_eq!(summarize(&tally_session(&both, None)), (PolicyType::NoPolicyFound, None));
    }
}
