//! What the sessions of a next hop are held to, as it is kept: texts packed, and each once however many hold it.
//!
//! Takes: what was decided. Gives: [`StoredPolicy`], small enough for half a million periods, the [`PolicyInForce`]
//! that counting and reports know, and a stored form.
//! Not here: deciding (`decision`), what stood when (`history`).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::answering::policy::sts::policy;
use crate::answering::policy::sts::text::PolicyText;
use crate::base::tlsrpt::{Failure, Mode, Policy, PolicyInForce, PolicyType, ResultType};

/// A policy in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoredPolicy {
    /// Nothing was published.
    #[default]
    None,
    /// An MTA-STS policy, or what was served of one that could not be had (mode `none`).
    Sts {
        /// What was asked of the MTA.
        mode: Mode,
        /// The lines.
        text: PolicyText,
        /// What went wrong with the document.
        failure: Option<Arc<Failure>>,
    },
    /// DANE.
    Dane(Option<TlsaHosts>),
    /// DANE behind MX records that are not signed.
    DaneUnsignedMx(TlsaHosts),
    /// DANE without a usable record.
    UnusableTlsa(TlsaHosts),
    /// DANE at some hosts, MTA-STS at the others. Seldom: apart, so that the common ones stay small.
    PerHost(Arc<PerHostPolicy>),
    /// Nothing that could be answered, through a fault of the destination.
    Deferred(Arc<DestinationFault>),
}

/// What is broken in the DNS of a destination, so that the mail has to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationFault {
    /// `dnssec-invalid` or `tlsa-invalid`.
    pub result_type: ResultType,
    /// The reason code of the report.
    pub reason: Box<str>,
    /// The MX host, with the TLSA records that it has; none where the MX records themselves are broken.
    pub host: Option<TlsaHost>,
}

/// DANE at some hosts, and another policy at the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerHostPolicy {
    /// The hosts with TLSA records.
    pub dane: Option<TlsaHosts>,
    /// [`StoredPolicy::Sts`].
    pub others: StoredPolicy,
    /// Where the MTA was told some hosts only, those.
    pub narrowed: Option<Box<[Box<str>]>>,
}

/// The MX hosts that have TLSA records.
pub type TlsaHosts = Arc<[TlsaHost]>;

/// An MX host with TLSA records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsaHost {
    /// Its name.
    pub host: Box<str>,
    /// The TLSA base domain, where it is another one.
    pub base: Option<Box<str>>,
    /// All records, as in a zone file, a line each.
    pub records: Box<str>,
}

#[derive(Serialize, Deserialize)]
enum EncodedPolicy<'a> {
    None,
    Sts { mode: Mode, text: &'a [u8], failure: Option<(ResultType, &'a str)> },
    Dane(Vec<TlsaHost>),
    DaneUnsignedMx(Vec<TlsaHost>),
    UnusableTlsa(Vec<TlsaHost>),
    PerHost { dane: Vec<TlsaHost>, others: Vec<u8>, narrowed: Option<Vec<&'a str>> },
    Deferred { result_type: ResultType, reason: &'a str, host: Option<TlsaHost> },
}

/// As counting and reports have them.
fn rows(hosts: Option<&TlsaHosts>) -> Vec<(String, Arc<Policy>)> {
    hosts.into_iter().flat_map(|hosts| hosts.iter()).map(|row| (row.host.to_string(), Arc::new(row.policy()))).collect()
}

fn tlsa_hosts(rows: &[(String, Arc<Policy>)]) -> TlsaHosts {
    rows.iter().map(|(host, policy)| TlsaHost::new(host, &policy.policy_domain, &policy.policy_string)).collect()
}

impl TlsaHost {
    /// A host and its records at a TLSA base domain.
    pub fn new(host: &str, base: &str, records: &[String]) -> TlsaHost {
        TlsaHost { host: host.into(), base: (base != host).then(|| base.into()), records: records.join("\n").into() }
    }

    /// The row that sessions with it are counted under.
    fn policy(&self) -> Policy {
        Policy {
            policy_type: PolicyType::Tlsa,
            policy_string: self.records.lines().map(str::to_owned).collect(),
            policy_domain: self.base.as_deref().unwrap_or(&self.host).to_owned(),
            mx_host: Vec::new(),
        }
    }
}

impl StoredPolicy {
    /// The policy as counting and reports use it.
    pub fn in_force(&self, domain: &str) -> PolicyInForce {
        match self {
            StoredPolicy::None => PolicyInForce::None,
            StoredPolicy::Sts { mode, text, failure } => {
                let policy = match mode {
                    Mode::Enforce | Mode::Testing => policy::report_policy(text, domain),
                    Mode::None => Policy {
                        policy_type: PolicyType::Sts,
                        policy_string: text.lines(domain),
                        policy_domain: domain.to_owned(),
                        mx_host: Vec::new(),
                    },
                };
                PolicyInForce::Sts { mode: *mode, policy: Arc::new(policy), failure: failure.clone() }
            }
            StoredPolicy::Dane(hosts) => PolicyInForce::Dane { hosts: rows(hosts.as_ref()), unsigned_mx: false },
            StoredPolicy::DaneUnsignedMx(hosts) => PolicyInForce::Dane { hosts: rows(Some(hosts)), unsigned_mx: true },
            StoredPolicy::UnusableTlsa(hosts) => PolicyInForce::UnusableTlsa { hosts: rows(Some(hosts)) },
            StoredPolicy::PerHost(policies) => PolicyInForce::PerHost {
                dane: rows(policies.dane.as_ref()),
                others: Box::new(policies.others.in_force(domain)),
                narrowed: policies.narrowed.as_ref().map(|hosts| hosts.iter().map(|host| host.to_string()).collect()),
            },
            StoredPolicy::Deferred(fault) => {
                let (policy, failure) = fault.row(domain);
                PolicyInForce::Deferred { policy: Arc::new(policy), failure: Arc::new(failure) }
            }
        }
    }

    /// The compact form of a policy in force.
    pub fn from_in_force(domain: &str, in_force: &PolicyInForce) -> StoredPolicy {
        match in_force {
            PolicyInForce::None => StoredPolicy::None,
            PolicyInForce::Sts { mode, policy, failure } => StoredPolicy::Sts {
                mode: *mode,
                text: PolicyText::new(domain, &policy.policy_string),
                failure: failure.clone(),
            },
            PolicyInForce::Dane { hosts, unsigned_mx: true } => StoredPolicy::DaneUnsignedMx(tlsa_hosts(hosts)),
            PolicyInForce::Dane { hosts, .. } => StoredPolicy::Dane((!hosts.is_empty()).then(|| tlsa_hosts(hosts))),
            PolicyInForce::UnusableTlsa { hosts } => StoredPolicy::UnusableTlsa(tlsa_hosts(hosts)),
            PolicyInForce::PerHost { dane, others, narrowed } => StoredPolicy::PerHost(Arc::new(PerHostPolicy {
                dane: (!dane.is_empty()).then(|| tlsa_hosts(dane)),
                others: StoredPolicy::from_in_force(domain, others),
                narrowed: narrowed.as_ref().map(|hosts| hosts.iter().map(|host| host.as_str().into()).collect()),
            })),
            PolicyInForce::Deferred { policy, failure } => {
                let host = failure.receiving_mx_hostname.as_deref();
                StoredPolicy::Deferred(Arc::new(DestinationFault {
                    result_type: failure.result_type,
                    reason: failure.failure_reason_code.as_deref().unwrap_or_default().into(),
                    host: host.map(|host| TlsaHost::new(host, &policy.policy_domain, &policy.policy_string)),
                }))
            }
        }
    }

    /// Shares the text of another policy if both are equal, so that it is stored once.
    pub fn share_text_with(&mut self, other: &StoredPolicy) {
        match (self, other) {
            (StoredPolicy::Sts { text, .. }, StoredPolicy::Sts { text: theirs, .. }) => drop(text.share_with(theirs)),
            (StoredPolicy::Dane(rows), StoredPolicy::Dane(theirs)) if rows == theirs => rows.clone_from(theirs),
            (StoredPolicy::DaneUnsignedMx(rows), StoredPolicy::DaneUnsignedMx(theirs)) if rows == theirs => {
                rows.clone_from(theirs);
            }
            (StoredPolicy::PerHost(policies), StoredPolicy::PerHost(theirs)) if policies == theirs => {
                policies.clone_from(theirs);
            }
            _ => {}
        }
    }

    /// The heap memory that it takes, in bytes.
    pub fn size(&self) -> usize {
        match self {
            StoredPolicy::None | StoredPolicy::Dane(None) => 0,
            StoredPolicy::Sts { text, .. } => text.packed_bytes().len(),
            StoredPolicy::Dane(Some(hosts))
            | StoredPolicy::DaneUnsignedMx(hosts)
            | StoredPolicy::UnusableTlsa(hosts) => size_of_hosts(hosts),
            StoredPolicy::PerHost(policies) => {
                let narrowed = policies.narrowed.iter().flatten().map(|host| host.len() + 16).sum::<usize>();
                policies.dane.as_ref().map_or(0, |hosts| size_of_hosts(hosts)) + policies.others.size() + narrowed
            }
            StoredPolicy::Deferred(fault) => {
                fault.reason.len() + fault.host.as_ref().map_or(0, |host| size_of_hosts(std::slice::from_ref(host)))
            }
        }
    }

    /// As it is stored, behind what is in `bytes`.
    pub fn encode(&self, bytes: Vec<u8>) -> Vec<u8> {
        let stored = match self {
            StoredPolicy::None => EncodedPolicy::None,
            StoredPolicy::Sts { mode, text, failure } => {
                let failure = failure.as_ref();
                let failure = failure.map(|f| (f.result_type, f.failure_reason_code.as_deref().unwrap_or_default()));
                EncodedPolicy::Sts { mode: *mode, text: text.packed_bytes(), failure }
            }
            StoredPolicy::Dane(hosts) => EncodedPolicy::Dane(hosts.iter().flat_map(|hosts| hosts.to_vec()).collect()),
            StoredPolicy::DaneUnsignedMx(hosts) => EncodedPolicy::DaneUnsignedMx(hosts.to_vec()),
            StoredPolicy::UnusableTlsa(hosts) => EncodedPolicy::UnusableTlsa(hosts.to_vec()),
            StoredPolicy::PerHost(policies) => EncodedPolicy::PerHost {
                dane: policies.dane.iter().flat_map(|hosts| hosts.to_vec()).collect(),
                others: policies.others.encode(Vec::new()),
                narrowed: policies.narrowed.as_ref().map(|hosts| hosts.iter().map(|host| &**host).collect()),
            },
            StoredPolicy::Deferred(fault) => {
                let DestinationFault { result_type, reason, host } = &**fault;
                EncodedPolicy::Deferred { result_type: *result_type, reason, host: host.clone() }
            }
        };
        // Invariant: postcard writes numbers, texts, lists and variants into a vector without fail.
        postcard::to_extend(&stored, bytes).expect("a policy in force has a stored form")
    }

    /// Reads the stored form; `None` if it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<StoredPolicy> {
        Some(match postcard::from_bytes(bytes).ok()? {
            EncodedPolicy::None => StoredPolicy::None,
            EncodedPolicy::Sts { mode, text, failure } => {
                let restored = |(result_type, reason): (ResultType, &str)| {
                    Arc::new(Failure::new(result_type, (!reason.is_empty()).then_some(reason)))
                };
                StoredPolicy::Sts { mode, text: PolicyText::from_packed(text), failure: failure.map(restored) }
            }
            EncodedPolicy::Dane(hosts) => StoredPolicy::Dane((!hosts.is_empty()).then(|| hosts.into())),
            EncodedPolicy::DaneUnsignedMx(hosts) => StoredPolicy::DaneUnsignedMx(hosts.into()),
            EncodedPolicy::UnusableTlsa(hosts) => StoredPolicy::UnusableTlsa(hosts.into()),
            EncodedPolicy::PerHost { dane, others, narrowed } => StoredPolicy::PerHost(Arc::new(PerHostPolicy {
                dane: (!dane.is_empty()).then(|| dane.into()),
                // MTA-STS alone stands there: no record makes this go deeper.
                others: StoredPolicy::decode(&others).filter(|others| matches!(others, StoredPolicy::Sts { .. }))?,
                narrowed: narrowed.map(|hosts| hosts.into_iter().map(Box::from).collect()),
            })),
            EncodedPolicy::Deferred { result_type, reason, host } => {
                StoredPolicy::Deferred(Arc::new(DestinationFault { result_type, reason: reason.into(), host }))
            }
        })
    }
}

impl DestinationFault {
    /// The row that attempts to deliver to a domain are counted under, and the failure.
    fn row(&self, domain: &str) -> (Policy, Failure) {
        let policy = self.host.as_ref().map(TlsaHost::policy);
        let policy = policy.unwrap_or_else(|| Policy { policy_type: PolicyType::Tlsa, ..Policy::none(domain) });
        let reason = (!self.reason.is_empty()).then_some(&*self.reason);
        let receiving_mx_hostname = self.host.as_ref().map(|host| host.host.to_string());
        (policy, Failure { receiving_mx_hostname, ..Failure::new(self.result_type, reason) })
    }
}

fn size_of_hosts(hosts: &[TlsaHost]) -> usize {
    hosts.iter().map(|row| row.host.len() + row.records.len() + 64).sum()
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
            PolicyInForce::Dane { hosts: Vec::new(), unsigned_mx: false },
            PolicyInForce::Dane {
                hosts: vec![("mx.example".into(), tlsa("mx.example")), ("b.example".into(), tlsa("c"))],
                unsigned_mx: false,
            },
            PolicyInForce::Dane { hosts: vec![("mx.example".into(), tlsa("mx.example"))], unsigned_mx: true },
            PolicyInForce::UnusableTlsa { hosts: vec![("mx.example".into(), tlsa("mx.example"))] },
            PolicyInForce::PerHost {
                dane: vec![("mx.example".into(), tlsa("mx.example"))],
                others: Box::new(sts(Mode::Testing, &["*.example.net"], None)),
                narrowed: None,
            },
            PolicyInForce::PerHost {
                dane: Vec::new(),
                others: Box::new(sts(Mode::Enforce, &["*.example.net"], None)),
                narrowed: Some(vec!["mx1.example.net".into(), "mx2.example.net".into()]),
            },
            PolicyInForce::Deferred {
                policy: tlsa("mx.example"),
                failure: Arc::new(Failure {
                    receiving_mx_hostname: Some("mx.example".into()),
                    ..Failure::new(ResultType::TlsaInvalid, Some("tlsa-record-without-data"))
                }),
            },
            PolicyInForce::Deferred {
                policy: Arc::new(Policy { policy_type: PolicyType::Tlsa, ..Policy::none("example.com") }),
                failure: Arc::new(Failure::new(ResultType::DnssecInvalid, Some("dnssec-bogus"))),
            },
        ] {
            let policy = StoredPolicy::from_in_force("example.com", &wanted);
            assert_eq!(policy.in_force("example.com"), wanted);
            assert_eq!(StoredPolicy::decode(&policy.encode(Vec::new())), Some(policy));
        }
        assert_eq!(StoredPolicy::decode(b"{}"), None);
    }
}
