//! Why a next hop gets the answer that it gets, step by step: what `tlswarden policy explain DOMAIN` shows.
//!
//! Takes: a next hop. Gives: an [`Explanation`]: the answer that stands (made now if none does), and what DNS and the
//! cache say at this moment. A fetch that backs off is not begun for it. It is no asking: the history does not know of it,
//! and a policy is not in use by it.
//! Limits: those of `dns` and `dane`; every text of strangers is escaped and cut to [`MAX_TEXT_CHARS`] characters.
//! When it fails: a step that could not be done says so.
//! Not here: deciding (`policy`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answering::policy::dane::coverage::Coverage;
use crate::answering::policy::dane::lookup::{self, DaneVerdict, HostTlsa, MxStatus};
use crate::answering::policy::dane::service_port::port_number;
use crate::answering::policy::decision::{Answer, Basis, Decision, PostfixTraits};
use crate::answering::policy::overrides::OverrideRule;
use crate::answering::policy::policies::Policies;
use crate::answering::policy::sts::domain_state::{DomainSnapshot, RecordState};
use crate::answering::policy::sts::record;
use crate::base::domain_name;
use crate::base::next_hop::{NextHop, Port};
use crate::base::tlsrpt::{Day, Mode, mx_matches};
use crate::net::dns::{DnsError, Resolver};

/// The longest text from DNS or HTTPS that is shown, in characters.
pub const MAX_TEXT_CHARS: usize = 300;

/// The answer and its reasons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// What was asked.
    pub key: String,
    /// The reply of each map, by its name.
    pub answers: BTreeMap<String, String>,
    /// The reason in one sentence.
    pub because: String,
    /// What was found, in the order in which it is looked for.
    pub steps: Vec<ExplainStep>,
}

/// One step of an explanation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ExplainStep {
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub found: String,
    /// Whether DNSSEC proves it; nothing where that is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<bool>,
    /// The parts of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<String>,
}

impl Policies {
    /// Explains a next hop as the MTA would write it. `answers` words a decision for each map.
    pub async fn explain(
        self: &Arc<Self>,
        key: &str,
        answers: impl FnOnce(&Decision) -> BTreeMap<String, String>,
    ) -> Explanation {
        let hop = NextHop::parse(key.as_bytes());
        let decision = match &hop {
            Some(hop) => self.explain_decision(hop).await,
            None => self.no_policy.decision(),
        };
        let mut steps = Vec::new();
        let mut verdict = None;
        let mut known = DomainSnapshot::default();
        let resolver = self.resolver.noting_failures();
        if let Some(hop) = &hop {
            let rule = self.overrides.rule_for(&hop.domain);
            if let Some(rule) = rule {
                let effect = match rule {
                    OverrideRule::FixedAnswer(answer) => {
                        format!("a fixed answer: {answer}; what follows is not looked at")
                    }
                    OverrideRule::NoPolicy => "no policy; what follows is not looked at".to_owned(),
                    OverrideRule::SkipDane => "DANE is not looked at".to_owned(),
                    OverrideRule::SkipSts => "MTA-STS is not looked at".to_owned(),
                };
                steps.push(ExplainStep::new("[[policy.override]]", effect));
            }
            if self.dane_enabled() {
                verdict = Some(self.explain_dane(&resolver, hop, &mut steps).await);
            } else {
                let why = "no validating resolver, or Postfix asks for no DNSSEC ([postfix] dnssec)";
                steps.push(ExplainStep::new("DANE", format!("not looked at: {why}")));
            }
            known = self.sts.get_or_insert(&hop.domain).snapshot(self.clock.seconds());
            self.explain_sts(&resolver, hop, &known, &mut steps).await;
            if let (Some(policy), Some(verdict)) = (&known.policy, &verdict) {
                steps.extend(mx_pattern_steps(&policy.document(&hop.domain).mx, verdict));
            }
            steps.extend(resolver.failed_queries().into_iter().map(|failed| ExplainStep {
                details: vec![format!("to repeat it: {}", failed.command)],
                ..ExplainStep::new(format!("failed query: {}", failed.query), escape(&failed.cause))
            }));
        }
        Explanation {
            key: escape(key),
            answers: answers(&decision),
            because: match hop.as_ref().and_then(|hop| self.overrides.rule_for(&hop.domain)) {
                Some(OverrideRule::FixedAnswer(_) | OverrideRule::NoPolicy) => {
                    "the configuration says so ([[policy.override]])".into()
                }
                Some(OverrideRule::SkipDane | OverrideRule::SkipSts) | None => {
                    explain_answer(&decision, hop.is_none().then_some(key), self.postfix, &known)
                }
            },
            steps,
        }
    }

    async fn explain_dane(&self, resolver: &Resolver, hop: &NextHop, steps: &mut Vec<ExplainStep>) -> DaneVerdict {
        if hop.mx {
            let subject = format!("MX of {}", hop.domain);
            steps.push(match resolver.mx(&hop.domain).await {
                Ok(answer) => ExplainStep {
                    subject,
                    found: format!("{} records, for {} s", answer.records.len(), answer.ttl.as_secs()),
                    signed: Some(answer.secure),
                    details: answer
                        .records
                        .iter()
                        .take(lookup::MAX_HOSTS)
                        .map(|(p, host)| format!("{p} {host}"))
                        .collect(),
                },
                Err(error) => ExplainStep::new(subject, describe_dns_error(&error)),
            });
        }
        let verdict = lookup::look_up(resolver, hop).await;
        for host in &verdict.hosts {
            let subject = format!("TLSA of {}", host.name);
            steps.push(match &host.tlsa {
                HostTlsa::None { reason } => ExplainStep::new(subject, format!("none: {reason}")),
                HostTlsa::Failed { cause } => ExplainStep::new(subject, format!("not known: {}", escape(cause))),
                HostTlsa::Records { base, usable, .. } => ExplainStep {
                    subject,
                    found: format!("at _{}._tcp.{base}, {}", hop.port, if *usable { "usable" } else { "none usable" }),
                    signed: Some(true),
                    details: tlsa_records(resolver, &hop.port, base).await,
                },
            });
        }
        for (name, cause) in &verdict.unreachable {
            let found = format!("left out: its address is not known: {}", escape(cause));
            steps.push(ExplainStep::new(format!("MX host {name}"), found));
        }
        let found = match &verdict.mx {
            MxStatus::Null => "a null MX: the domain takes no mail".to_owned(),
            MxStatus::NoHost => "neither MX records nor an address".to_owned(),
            MxStatus::Failed(cause) => format!("not known: {}", escape(cause)),
            MxStatus::Signed | MxStatus::Unsigned => describe_coverage(verdict.coverage()).to_owned(),
        };
        steps.push(ExplainStep::new("DANE", found));
        verdict
    }

    async fn explain_sts(
        &self,
        resolver: &Resolver,
        hop: &NextHop,
        known: &DomainSnapshot,
        steps: &mut Vec<ExplainStep>,
    ) {
        let name = format!("_mta-sts.{}", hop.domain);
        let subject = format!("TXT of {name}");
        steps.push(match resolver.txt(&name).await {
            Ok(answer) => ExplainStep {
                subject,
                found: match record::parse_id(&answer.records) {
                    Ok(id) => format!("a policy with id {id}"),
                    Err(reason) => format!("no policy: {reason}"),
                },
                signed: Some(answer.secure),
                details: answer.records.iter().take(8).map(|text| escape(text)).collect(),
            },
            Err(error) => ExplainStep::new(subject, describe_dns_error(&error)),
        });
        let now = self.clock.seconds();
        let subject = "record in the cache";
        steps.push(match &known.record {
            None => ExplainStep::new(subject, "not yet asked"),
            Some((record, until)) => {
                let what = match record {
                    RecordState::Id { id } => format!("id {id}"),
                    RecordState::None { reason, .. } => format!("none: {reason}"),
                    RecordState::Failed { cause, .. } => format!("not known: {}", escape(cause)),
                };
                ExplainStep::new(subject, format!("{what}, for {} s more", (until - now).max(0)))
            }
        });
        if let Some(failure) = &known.failure {
            steps.push(ExplainStep {
                subject: format!("https://mta-sts.{}/.well-known/mta-sts.txt", hop.domain),
                found: format!(
                    "could not be had {} s ago: {}; next try in {} s",
                    now - failure.at,
                    escape(&failure.text),
                    (failure.retry - now).max(0)
                ),
                signed: None,
                details: failure.lines.iter().take(32).map(|line| escape(line)).collect(),
            });
        }
        let subject = "policy in the cache";
        steps.push(match &known.policy {
            None => ExplainStep::new(subject, "none"),
            Some(policy) => ExplainStep {
                subject: subject.into(),
                found: {
                    let (age, left) = (now - policy.fetched(), policy.expires() - now);
                    let fetched = match age < 0 {
                        true => "fetched by a clock that was ahead".to_owned(),
                        false => format!("fetched {age} s ago"),
                    };
                    format!(
                        "id {}, {fetched}, serves for {left} s more, until {} (UTC)",
                        policy.id,
                        Day::of(policy.expires())
                    )
                },
                signed: None,
                details: policy.document(&hop.domain).lines.iter().take(64).map(|line| escape(line)).collect(),
            },
        });
    }
}

impl ExplainStep {
    fn new(subject: impl Into<String>, found: impl Into<String>) -> ExplainStep {
        ExplainStep { subject: subject.into(), found: found.into(), signed: None, details: Vec::new() }
    }
}

async fn tlsa_records(resolver: &Resolver, port: &Port, base: &str) -> Vec<String> {
    let port = match port_number(port).await {
        Ok(port) => port,
        Err(cause) => return vec![cause],
    };
    match resolver.tlsa(port, base).await {
        Ok(answer) => answer
            .records
            .iter()
            .map(|record| match lookup::check_usability(record) {
                Ok(()) => format!("{}: usable", truncate(&record.to_string())),
                Err(why) => format!("{}: unusable: {why}", truncate(&record.to_string())),
            })
            .collect(),
        Err(error) => vec![describe_dns_error(&error)],
    }
}

/// One step for each MX host: which pattern allows it.
fn mx_pattern_steps(patterns: &[String], verdict: &DaneVerdict) -> Vec<ExplainStep> {
    let allowed = |name: &str| match patterns.iter().find(|pattern| mx_matches(pattern, name)) {
        Some(pattern) => format!("allowed by mx: {pattern}"),
        None => "allowed by no mx pattern: an enforcing sender does not deliver to it".to_owned(),
    };
    verdict.hosts.iter().map(|host| ExplainStep::new(format!("MX host {}", host.name), allowed(&host.name))).collect()
}

/// `refused` is a key that is not a next hop.
fn explain_answer(
    decision: &Decision,
    refused: Option<&str>,
    postfix: PostfixTraits,
    known: &DomainSnapshot,
) -> String {
    if let Some(key) = refused {
        let bracketed = key.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, _) = bracketed.or_else(|| key.split_once(':')).unwrap_or((key, ""));
        return match domain_name::find_fault(host) {
            Some(fault) => format!(
                "not a domain name: {}; address literals, paths and keys that begin with a dot have no policy",
                escape(&fault.to_string())
            ),
            None => "neither a domain name nor one with a port; such a key has no policy".to_owned(),
        };
    }
    let (Some(facts), Basis::Published(published)) = (decision.facts(), &decision.basis) else {
        return "the configuration says so".into();
    };
    let found = describe_coverage(facts.coverage);
    match facts.for_postfix(postfix.own_level, postfix) {
        Answer::DaneOnly => format!("DANE comes first: {found}"),
        Answer::Dane | Answer::Encrypt => format!("DANE: {found}"),
        Answer::Secure => "an unexpired MTA-STS policy in mode enforce, and no DANE that is stronger".into(),
        Answer::SecureNarrowed => format!(
            "an unexpired MTA-STS policy in mode enforce, for the hosts without TLSA records that it allows ({}): {found}",
            published.narrowed().join(", ")
        ),
        Answer::Temp => {
            format!("not known, so that nothing weaker than published is answered: {}", escape(published.cause()))
        }
        Answer::OwnLevel if facts.coverage != Coverage::NoTlsa || facts.sts == Some(Mode::Enforce) => {
            let (name, level) = (found, postfix.own_level.name());
            format!("the own level ({level}) holds, for no answer is stronger or fits all hosts: {name}")
        }
        Answer::OwnLevel => match &decision.sts {
            Some(_) => "an MTA-STS policy in mode testing: delivered as without a policy, and counted".into(),
            None => match &decision.failure {
                Some(failure) => {
                    format!("no policy: the MTA-STS document could not be had: {}", escape(&failure.text))
                }
                None => explain_absence(known),
            },
        },
    }
}

/// Why there is no MTA-STS policy: what is not known and what cannot be read is not "none".
fn explain_absence(known: &DomainSnapshot) -> String {
    match &known.record {
        Some((RecordState::Failed { cause, .. }, _)) => {
            format!("no policy is known: the MTA-STS record could not be asked: {}", escape(cause))
        }
        Some((RecordState::None { reason, invalid: true }, _)) => {
            format!("no policy: the MTA-STS record is invalid: {reason}")
        }
        _ => "no policy is published".into(),
    }
}

pub(super) fn describe_coverage(coverage: Coverage) -> &'static str {
    match coverage {
        Coverage::AllHosts => "signed MX records, usable TLSA records at every host",
        Coverage::BestHosts => "signed MX records, usable TLSA records at a most preferred host, not at every host",
        Coverage::WorseHosts => "signed MX records, usable TLSA records at less preferred hosts only",
        Coverage::Unusable { every_host: true } => {
            "signed MX records, no usable TLSA record, unusable ones at every host"
        }
        Coverage::Unusable { every_host: false } => {
            "signed MX records, no usable TLSA record, unusable ones at some hosts"
        }
        Coverage::SomeFailed => "signed MX records, no usable TLSA record, and the look-up for some hosts failed",
        Coverage::AllFailed => "signed MX records, and the TLSA look-up for every host failed",
        Coverage::NoTlsa => "no TLSA record that counts",
        Coverage::UnsignedMx => "unsigned MX records, usable TLSA records at a signed host",
        Coverage::UnsignedFailed => "unsigned MX records, and the TLSA look-up for some hosts failed",
        Coverage::MxFailed => "the MX look-up failed",
        Coverage::NoAddress => "no MX host has an address that is known",
    }
}

fn describe_dns_error(error: &DnsError) -> String {
    match error {
        DnsError::NoSuchDomain { ttl } => format!("no such domain, for {} s", ttl.as_secs()),
        DnsError::NoRecords { ttl } => format!("none, for {} s", ttl.as_secs()),
        DnsError::Failed(cause) => format!("not known: {}", escape(&cause.to_string())),
    }
}

/// Escapes a text so that it is printable and on one line, and truncates it.
fn escape(text: &str) -> String {
    truncate(text)
        .chars()
        .flat_map(|c| if c == '"' || c == '\'' { vec![c] } else { c.escape_debug().collect() })
        .collect()
}

fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.key)?;
        let width = self.answers.keys().map(String::len).max().unwrap_or(0);
        for (map, answer) in &self.answers {
            writeln!(f, "  {map:width$}  {}", answer.trim_end())?;
        }
        writeln!(f, "because: {}", self.because)?;
        for step in &self.steps {
            let signed = match step.signed {
                None => "",
                Some(true) => " [signed]",
                Some(false) => " [not signed]",
            };
            writeln!(f, "- {}{signed}: {}", step.subject, step.found)?;
            for detail in &step.details {
                writeln!(f, "    {detail}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_well_and_back() {
        let explanation = Explanation {
            key: "example.com".into(),
            answers: [("policy".to_owned(), "NOTFOUND ".to_owned()), ("policy-tlsrpt".to_owned(), "OK may".to_owned())]
                .into(),
            because: "no policy is published".into(),
            steps: vec![
                ExplainStep {
                    signed: Some(true),
                    details: vec!["10 mx.example.com".into()],
                    ..ExplainStep::new("MX of example.com", "1 records")
                },
                ExplainStep::new("DANE", "no TLSA record that counts"),
            ],
        };
        assert_eq!(
            explanation.to_string(),
            "example.com\n  policy         NOTFOUND\n  policy-tlsrpt  OK may\nbecause: no policy is published\n\
             - MX of example.com [signed]: 1 records\n    10 mx.example.com\n- DANE: no TLSA record that counts\n"
        );
        let json = serde_json::to_string(&explanation).unwrap();
        assert_eq!(serde_json::from_str::<Explanation>(&json).unwrap(), explanation);
    }

    #[test]
    fn a_key_that_is_not_a_domain_name_is_explained() {
        let explained = |key: &str| {
            let decision = Decision::temp("not looked at");
            explain_answer(&decision, Some(key), PostfixTraits::of(&Default::default()), &DomainSnapshot::default())
        };
        for (key, want) in [
            ("mail-.example", "not a domain name: the label \"mail-\" begins or ends with a hyphen; "),
            ("[mail-.example]:587", "not a domain name: the label \"mail-\" begins or ends with a hyphen; "),
            ("[192.0.2.1]", "not a domain name: it is an IP address; "),
            ("[IPv6:2001:db8::1]:25", "not a domain name: it is an IP address; "),
            (".example.com", "not a domain name: it has an empty label; "),
            ("/var/run/lmtp", "not a domain name: it has the character '/'; "),
            ("example.com:0", "neither a domain name nor one with a port"),
            ("unix:/run/lmtp", "neither a domain name nor one with a port"),
        ] {
            assert!(explained(key).starts_with(want), "{key}: {}", explained(key));
        }
    }

    #[test]
    fn strangers_text_is_escaped_and_cut() {
        assert_eq!(escape("a\n\u{1b}[1m\"b\""), "a\\n\\u{1b}[1m\"b\"");
        assert_eq!(escape(&"\u{fc}".repeat(1000)).chars().count(), MAX_TEXT_CHARS + 1);
    }
}
