//! What the administrator has said about single domains (`[[policy.override]]`).
//!
//! Takes: the configuration, checked. Gives: the rule of a domain: its own, else that of the longest `.suffix`.
//! Not here: whether a fixed answer is one that Postfix takes (`config`), what a rule changes (`policy`).

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::domain_name;
use crate::config::{OverrideSection, OverrideSkip};

/// The administrator's rule for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OverrideRule {
    /// This answer, whatever is published.
    FixedAnswer(Arc<str>),
    /// No policy, whatever is published.
    NoPolicy,
    /// DANE is not looked at.
    SkipDane,
    /// MTA-STS is not looked at.
    SkipSts,
}

/// Which of the two sources of policies a rule leaves in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppliedSources {
    /// TLSA records are looked up and followed.
    pub dane: bool,
    /// MTA-STS policies are looked up and followed.
    pub sts: bool,
}

impl AppliedSources {
    /// Those under the rule of a domain; both where there is none.
    pub fn under(rule: Option<&OverrideRule>) -> AppliedSources {
        match rule {
            None => AppliedSources { dane: true, sts: true },
            Some(OverrideRule::SkipDane) => AppliedSources { dane: false, sts: true },
            Some(OverrideRule::SkipSts) => AppliedSources { dane: true, sts: false },
            Some(OverrideRule::FixedAnswer(_) | OverrideRule::NoPolicy) => AppliedSources { dane: false, sts: false },
        }
    }
}

/// All rules.
#[derive(Debug, Default)]
pub struct Overrides(HashMap<String, OverrideRule>);

impl Overrides {
    /// The rules of a configuration that has passed its checks; a suffix keeps its dot.
    pub fn new(sections: &[OverrideSection]) -> Overrides {
        let rule = |section: &OverrideSection| {
            let name = match section.domain.strip_prefix('.') {
                Some(parent) => format!(".{}", domain_name::normalize(parent)?),
                None => domain_name::normalize(&section.domain)?,
            };
            let rule = match (&section.answer, section.skip) {
                (Some(answer), _) => OverrideRule::FixedAnswer(answer.as_str().into()),
                (None, Some(OverrideSkip::Dane)) => OverrideRule::SkipDane,
                (None, Some(OverrideSkip::Sts)) => OverrideRule::SkipSts,
                (None, None) => OverrideRule::NoPolicy,
            };
            Some((name, rule))
        };
        Overrides(sections.iter().filter_map(rule).collect())
    }

    /// The rule for a domain (in canonical form).
    pub fn rule_for(&self, domain: &str) -> Option<&OverrideRule> {
        if self.0.is_empty() {
            return None;
        }
        let suffixes = domain.match_indices('.').map(|(at, _)| &domain[at..]);
        std::iter::once(domain).chain(suffixes).find_map(|name| self.0.get(name))
    }

    /// The fixed answers, by domain or `.suffix`.
    pub fn fixed_answers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter_map(|(name, rule)| match rule {
            OverrideRule::FixedAnswer(answer) => Some((name.as_str(), &**answer)),
            OverrideRule::NoPolicy | OverrideRule::SkipDane | OverrideRule::SkipSts => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_rule_counts() {
        let section = |domain: &str, answer: Option<&str>, skip| OverrideSection {
            domain: domain.into(),
            answer: answer.map(str::to_owned),
            skip,
            none: answer.is_none() && skip.is_none(),
        };
        let rules = Overrides::new(&[
            section("Example.com", None, None),
            section(".example.com", Some("encrypt"), None),
            section(".deep.example.com.", None, Some(OverrideSkip::Dane)),
            section("bücher.example", None, Some(OverrideSkip::Sts)),
        ]);
        for (domain, want) in [
            ("example.com", Some(OverrideRule::NoPolicy)),
            ("a.example.com", Some(OverrideRule::FixedAnswer("encrypt".into()))),
            ("deep.example.com", Some(OverrideRule::FixedAnswer("encrypt".into()))),
            ("a.deep.example.com", Some(OverrideRule::SkipDane)),
            ("xn--bcher-kva.example", Some(OverrideRule::SkipSts)),
            ("aexample.com", None),
            ("com", None),
        ] {
            assert_eq!(rules.rule_for(domain), want.as_ref(), "{domain}");
        }
        for (domain, dane, sts) in [
            ("com", true, true),
            ("a.deep.example.com", false, true),
            ("xn--bcher-kva.example", true, false),
            ("example.com", false, false),
            ("a.example.com", false, false),
        ] {
            assert_eq!(AppliedSources::under(rules.rule_for(domain)), AppliedSources { dane, sts }, "{domain}");
        }
        assert_eq!(rules.fixed_answers().collect::<Vec<_>>(), [(".example.com", "encrypt")]);
    }
}
