//! What the sessions of a next hop are held to, as it is kept: texts packed, and each once however many hold it.
//!
//! Takes: what was decided. Gives: [`Under`], small enough for half a million periods, the [`PolicyInForce`] that counting and
//! reports know, and a stored form.
//! Not here: deciding (`decision`), when what stood (`history`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answering::policy::sts::policy;
use crate::answering::policy::sts::text::Text;
use crate::base::tlsrpt::{Failure, Mode, Policy, PolicyInForce, PolicyType, ResultType};

/// A policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Under {
    /// Nothing was published.
    #[default]
    None,
    /// An MTA-STS policy, or what was served of one that could not be had (mode `none`).
    Sts {
        /// What was asked of the MTA.
        mode: Mode,
        /// The lines.
        text: Text,
        /// What went wrong with the document.
        failure: Option<Arc<Failure>>,
    },
    /// DANE.
    Dane(Option<Rows>),
}

/// The MX hosts that have TLSA records; none is no rows.
pub type Rows = Arc<[Row]>;

/// An MX host with TLSA records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub host: Box<str>,
    /// The TLSA base domain, where it is another one.
    pub base: Option<Box<str>>,
    /// All records, as in a zone file, a line each.
    pub records: Box<str>,
}

#[derive(Serialize, Deserialize)]
enum Stored<'a> {
    None,
    Sts { mode: Mode, text: &'a [u8], failure: Option<(ResultType, &'a str)> },
    Dane(Vec<Row>),
}

impl Row {
    /// A host and its records at a TLSA base domain.
    pub fn of(host: &str, base: &str, records: &[String]) -> Row {
        Row { host: host.into(), base: (base != host).then(|| base.into()), records: records.join("\n").into() }
    }

    fn policy(&self) -> Policy {
        Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: self.records.lines().map(str::to_owned).collect(),
            policy_domain: self.base.as_deref().unwrap_or(&self.host).to_owned(),
            mx_host: Vec::new(),
        }
    }
}

impl Under {
    /// As sessions are counted under it.
    pub fn in_force(&self, domain: &str) -> PolicyInForce {
        match self {
            Under::None => PolicyInForce::None,
            Under::Sts { mode, text, failure } => {
                let policy = match mode {
                    Mode::Enforce | Mode::Testing => policy::policy(text, domain),
                    Mode::None => Policy {
                        policy_type: PolicyType::Sts,
                        policy_string: text.lines(domain),
                        policy_domain: domain.to_owned(),
                        mx_host: Vec::new(),
                    },
                };
                PolicyInForce::Sts { mode: *mode, policy: Arc::new(policy), failure: failure.clone() }
            }
            Under::Dane(rows) => {
                let hosts = rows.iter().flat_map(|rows| rows.iter());
                PolicyInForce::Dane { hosts: hosts.map(|row| (row.host.to_string(), Arc::new(row.policy()))).collect() }
            }
        }
    }

    /// The same, from what counting and reports know.
    pub fn of(domain: &str, in_force: &PolicyInForce) -> Under {
        match in_force {
            PolicyInForce::None => Under::None,
            PolicyInForce::Sts { mode, policy, failure } => {
                Under::Sts { mode: *mode, text: Text::of(domain, &policy.policy_string), failure: failure.clone() }
            }
            PolicyInForce::Dane { hosts } => {
                let row = |(host, policy): &(String, Arc<Policy>)| {
                    Row::of(host, &policy.policy_domain, &policy.policy_string)
                };
                Under::Dane((!hosts.is_empty()).then(|| hosts.iter().map(row).collect()))
            }
        }
    }

    /// Holds the same piece of text as another, where both have the same.
    pub fn share(&mut self, other: &Under) {
        match (self, other) {
            (Under::Sts { text, .. }, Under::Sts { text: ours, .. }) => drop(text.share(ours)),
            (Under::Dane(rows), Under::Dane(ours)) if rows == ours => rows.clone_from(ours),
            _ => {}
        }
    }

    /// What it takes besides its place, in octets.
    pub fn size(&self) -> usize {
        match self {
            Under::None | Under::Dane(None) => 0,
            Under::Sts { text, .. } => text.octets().len(),
            Under::Dane(Some(rows)) => rows.iter().map(|row| row.host.len() + row.records.len() + 64).sum(),
        }
    }

    /// As it is stored, behind what is in `octets`.
    pub fn encode(&self, octets: Vec<u8>) -> Vec<u8> {
        let stored = match self {
            Under::None => Stored::None,
            Under::Sts { mode, text, failure } => {
                let told = failure.as_ref();
                let failure = told.map(|f| (f.result_type, f.failure_reason_code.as_deref().unwrap_or_default()));
                Stored::Sts { mode: *mode, text: text.octets(), failure }
            }
            Under::Dane(rows) => Stored::Dane(rows.iter().flat_map(|rows| rows.iter().cloned()).collect()),
        };
        // Invariant: postcard writes numbers, texts, lists and variants into a vector without fail.
        postcard::to_extend(&stored, octets).expect("a policy in force has a stored form")
    }

    /// Reads it back; nothing where it is not in that form.
    pub fn decode(octets: &[u8]) -> Option<Under> {
        Some(match postcard::from_bytes(octets).ok()? {
            Stored::None => Under::None,
            Stored::Sts { mode, text, failure } => {
                let told = |(result_type, reason): (ResultType, &str)| {
                    Arc::new(Failure::new(result_type, (!reason.is_empty()).then_some(reason)))
                };
                Under::Sts { mode, text: Text::packed(text), failure: failure.map(told) }
            }
            Stored::Dane(rows) => Under::Dane((!rows.is_empty()).then(|| rows.into())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_reads_back_and_says_the_same() {
        let sts = |mode, mx: &[&str], failure: Option<&str>| PolicyInForce::Sts {
            mode,
            policy: Arc::new(Policy {
                policy_type: PolicyType::Sts,
                policy_string: match mode {
                    Mode::None => vec!["<html>".into()],
                    mode => vec![
                        "version: STSv1".into(),
                        if mode == Mode::Enforce { "mode: enforce".into() } else { "mode: testing".into() },
                        "mx: *.Example.net".into(),
                        "max_age: 1".into(),
                    ],
                },
                policy_domain: "example.com".into(),
                mx_host: mx.iter().map(|mx| (*mx).to_owned()).collect(),
            }),
            failure: failure.map(|reason| Arc::new(Failure::new(ResultType::StsPolicyFetchError, Some(reason)))),
        };
        let tlsa = |base: &str| {
            Arc::new(Policy {
                policy_type: PolicyType::Tlsa,
                policy_string: vec!["3 1 1 ab".into(), "2 0 1 cd".into()],
                policy_domain: base.into(),
                mx_host: Vec::new(),
            })
        };
        for wanted in [
            PolicyInForce::None,
            sts(Mode::Enforce, &["*.example.net"], None),
            sts(Mode::Testing, &["*.example.net"], Some("timeout+fallback-to-cached-policy")),
            sts(Mode::None, &[], Some("malformed-line")),
            PolicyInForce::Dane { hosts: Vec::new() },
            PolicyInForce::Dane {
                hosts: vec![("mx.example".into(), tlsa("mx.example")), ("b.example".into(), tlsa("c"))],
            },
        ] {
            let under = Under::of("example.com", &wanted);
            assert_eq!(under.in_force("example.com"), wanted);
            assert_eq!(Under::decode(&under.encode(Vec::new())), Some(under));
        }
        assert_eq!(Under::decode(b"{}"), None);
    }
}
