//! What is answered for a next hop, and what its sessions are counted under.
//!
//! Takes: what DANE covers, the MTA-STS policy, what failed. Gives: a [`Level`] by the order DANE, MTA-STS, none, and the
//! policy in force. Pure. Not here: looking anything up, or for how long a decision stands (`policy`).

use std::sync::Arc;

use crate::answering::policy::dane::cached_verdict::Held;
use crate::answering::policy::dane::cached_verdict::STALE;
use crate::answering::policy::dane::lookup::Coverage;
use crate::answering::policy::history::compact::StoredPolicy;
use crate::answering::policy::sts::policy::{Cached, PolicyFailure};
use crate::answering::policy::sts::text::PolicyText;
use crate::base::tlsrpt::{Failure, Mode};
use crate::metrics::answers::AnswerKind;

/// What is answered, before it is put in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    /// What the host does without a policy. With a testing policy, which newer Postfixes are told.
    Default,
    /// The MTA-STS policy is enforced.
    Secure,
    /// DANE where a host has TLSA records.
    Dane,
    /// DANE on every host.
    DaneOnly,
    /// What the administrator has set, in the words of Postfix.
    Fixed(Arc<str>),
    /// Not known; the MTA is to try again.
    Temp(Arc<str>),
}

impl Level {
    /// The kind of answer that it is; `sts` says whether it rests on an MTA-STS policy.
    pub(super) fn kind(&self, sts: bool) -> AnswerKind {
        match self {
            Level::Default if sts => AnswerKind::Testing,
            Level::Default => AnswerKind::None,
            Level::Secure => AnswerKind::Enforce,
            Level::Dane => AnswerKind::Dane,
            Level::DaneOnly => AnswerKind::DaneOnly,
            Level::Fixed(_) => AnswerKind::Override,
            Level::Temp(_) => AnswerKind::Temp,
        }
    }
}

/// What was decided for a next hop.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The policy domain.
    pub domain: Arc<str>,
    /// What is answered.
    pub level: Level,
    /// The MTA-STS policy that the answer rests on: enforced at [`Level::Secure`], or a testing one at [`Level::Default`].
    pub sts: Option<Arc<Cached>>,
    /// The MTA-STS document could not be had, whatever the answer rests on.
    pub failure: Option<Arc<PolicyFailure>>,
}

/// The answer, from what DANE covers, the verdict of before, and whether an unexpired MTA-STS policy is enforced.
/// Where the MX records are not signed DANE cannot be asked for (`dane-only` would defer all mail): there an enforced
/// MTA-STS policy is the stronger one whatever the TLSA records are.
pub(super) fn combine(coverage: Coverage, held: Option<&Held>, enforced: bool, now: i64, cause: &str) -> Level {
    match (coverage, enforced) {
        (Coverage::Every, _) | (Coverage::Some, true) => Level::DaneOnly,
        (Coverage::Some, false) => Level::Dane,
        (Coverage::Unusable | Coverage::Unsigned, false) => Level::Dane,
        (Coverage::Unusable | Coverage::Unsigned | Coverage::Nothing, true) => Level::Secure,
        (Coverage::Nothing, false) => Level::Default,
        (Coverage::Partly { .. }, false) => Level::Dane,
        (Coverage::Partly { signed: false, .. }, true) => Level::Secure,
        (Coverage::Partly { signed: true, usable: true }, true) => Level::DaneOnly,
        (Coverage::Partly { signed: true, usable: false }, true) => Level::Temp(cause.into()),
        (Coverage::Unknown, enforced) => {
            let before = held.filter(|held| now < held.until() + STALE).map(|held| held.coverage);
            match before {
                None | Some(Coverage::Unknown) => Level::Temp(cause.into()),
                Some(Coverage::Nothing) if !enforced => Level::Temp(cause.into()),
                Some(before) => combine(before, None, enforced, now, cause),
            }
        }
    }
}

impl Cached {
    /// This policy, though a newer document could perhaps not be had.
    pub(super) fn under(&self, failure: Option<&PolicyFailure>) -> StoredPolicy {
        let told = |failure: &PolicyFailure| {
            let reason = format!("{}+fallback-to-cached-policy", failure.reason);
            Arc::new(Failure::new(failure.result_type, Some(&reason)))
        };
        StoredPolicy::Sts { mode: self.mode, text: self.text.clone(), failure: failure.map(told) }
    }
}

impl PolicyFailure {
    /// No policy, because the document could not be had: the sessions are counted under what was served of it.
    pub(super) fn under(&self, domain: &str) -> StoredPolicy {
        let failure = Arc::new(Failure::new(self.result_type, Some(&self.reason)));
        StoredPolicy::Sts { mode: Mode::None, text: PolicyText::new(domain, &self.lines), failure: Some(failure) }
    }
}

impl Decision {
    /// The kind of answer that it is.
    pub fn kind(&self) -> AnswerKind {
        self.level.kind(self.sts.is_some())
    }

    pub(super) fn none() -> Decision {
        Decision::bare(Level::Default)
    }

    pub(super) fn temp(cause: &str) -> Decision {
        Decision::bare(Level::Temp(cause.into()))
    }

    /// A decision as it would be made for such a policy.
    #[cfg(test)]
    pub(crate) fn for_tests(domain: &str, level: Level, sts: Option<Arc<Cached>>) -> Decision {
        Decision { domain: domain.into(), sts, ..Decision::bare(level) }
    }

    pub(super) fn bare(level: Level) -> Decision {
        Decision { domain: "".into(), level, sts: None, failure: None }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::answering::policy::dane::lookup::{self, Verdict};

    fn level(coverage: Coverage, enforced: bool) -> Level {
        combine(coverage, None, enforced, 0, "cause")
    }

    #[test]
    fn each_cell_of_the_table() {
        let temp = Level::Temp("cause".into());
        for (coverage, without, with) in [
            (Coverage::Every, Level::DaneOnly, Level::DaneOnly),
            (Coverage::Some, Level::Dane, Level::DaneOnly),
            (Coverage::Unusable, Level::Dane, Level::Secure),
            (Coverage::Unsigned, Level::Dane, Level::Secure),
            (Coverage::Nothing, Level::Default, Level::Secure),
            (Coverage::Partly { signed: true, usable: true }, Level::Dane, Level::DaneOnly),
            (Coverage::Partly { signed: true, usable: false }, Level::Dane, temp.clone()),
            (Coverage::Partly { signed: false, usable: true }, Level::Dane, Level::Secure),
            (Coverage::Unknown, temp.clone(), temp.clone()),
        ] {
            assert_eq!(level(coverage, false), without, "{coverage:?} without an enforced policy");
            assert_eq!(level(coverage, true), with, "{coverage:?} with an enforced policy");
        }
    }

    #[test]
    fn the_verdict_of_before_serves_for_a_day() {
        let held = |mx, hosts: Vec<lookup::Host>| Held::of(&Verdict { mx, hosts, ttl: Duration::ZERO }, 1000, 900);
        let usable = || lookup::Host {
            name: "mx.example".into(),
            tlsa: lookup::HostTlsa::Records {
                base: "mx.example".into(),
                records: Arc::new(crate::base::tlsrpt::Policy::none("mx.example")),
                usable: true,
            },
        };
        let dane = held(lookup::Mx::Signed, vec![usable()]);
        let none = held(lookup::Mx::Nowhere, Vec::new());
        let then = |held: &Held, enforced, now| combine(Coverage::Unknown, Some(held), enforced, now, "x");
        for enforced in [false, true] {
            assert_eq!(then(&dane, enforced, 1000 + STALE - 1), Level::DaneOnly);
            assert_eq!(then(&dane, enforced, 1000 + STALE), Level::Temp("x".into()));
        }
        assert_eq!(then(&none, true, 1000 + STALE - 1), Level::Secure);
        assert_eq!(then(&none, false, 1001), Level::Temp("x".into()));
    }
}
