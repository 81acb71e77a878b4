//! DANE for SMTP (RFC 7672): which MX hosts of a next hop have TLSA records that the resolver validated.
//!
//! Takes: a next hop. Gives: a [`Verdict`]: whether the MX records are signed, and what each host has.
//! Limits: [`MAX_HOSTS`] MX hosts, the most preferred; the rest count as hosts without TLSA records.
//! When it fails: the part that could not be found out is marked so; what was found out stands.
//! Not here: what is answered to the MTA (`policy`), matching certificates (the MTA does).

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::answering::policy::history::compact::TlsaHost;
use crate::base::next_hop::NextHop;
use crate::base::tlsrpt::{Policy, PolicyType};
use crate::net::dns::{DnsError, Resolver, TlsaRecord};

/// How many MX hosts are asked about. Large providers have about ten.
pub const MAX_HOSTS: usize = 32;

/// The longest that a verdict holds, in seconds, whatever the TTLs.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// The shortest: the MTA asks once per host and message, and TTLs of 0 exist.
const MIN_TTL: Duration = Duration::from_secs(10);

/// How long a verdict with a failed part holds before it is tried again.
const FAILED_TTL: Duration = Duration::from_secs(30);

/// What is known of a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Its MX records.
    pub mx: Mx,
    /// Its hosts, in order of preference; those without an address are left out.
    pub hosts: Vec<Host>,
    /// How long that holds.
    pub ttl: Duration,
}

/// What the MX records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mx {
    /// Validated; or there are none, and the name's own addresses are; or none are wanted (`[host]`).
    Signed,
    /// There, and not validated.
    Unsigned,
    /// A null MX (RFC 7505): the domain takes no mail.
    Null,
    /// No such domain, or no host of it has an address.
    Nowhere,
    /// Not known.
    Failed(String),
}

/// One MX host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name, as in the MX record.
    pub name: String,
    /// What it has.
    pub tlsa: HostTlsa,
}

/// What TLSA records a host has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostTlsa {
    /// Validated ones, at this TLSA base domain; usable if one of them is.
    Records {
        /// The TLSA base domain (RFC 7672 §2.2.2).
        base: String,
        /// All of them, as in a zone file.
        records: Arc<Policy>,
        /// Whether at least one is usable.
        usable: bool,
    },
    /// None, or none that is validated; the reason for people.
    None {
        /// For people.
        reason: Cow<'static, str>,
    },
    /// Not known.
    Failed {
        /// Why.
        cause: String,
    },
}

/// A verdict in one word, which with MTA-STS gives the answer. It is stored by the place of each variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Coverage {
    /// Signed MX records, usable TLSA records on every host.
    Every,
    /// Signed MX records, usable TLSA records on some hosts.
    Some,
    /// Signed MX records, TLSA records, and none is usable.
    Unusable,
    /// Unsigned MX records, usable TLSA records on a host.
    Unsigned,
    /// No TLSA record that counts.
    Nothing,
    /// Some hosts are known and some are not.
    Partly {
        /// Whether the MX records are signed.
        signed: bool,
        /// Whether a known host has usable TLSA records.
        usable: bool,
    },
    /// Nothing is known.
    Unknown,
}

/// Asks about a next hop.
pub async fn look(resolver: &Resolver, hop: &NextHop) -> Verdict {
    let mut verdict = if hop.mx {
        match resolver.mx(&hop.domain).await {
            Ok(answer) => by_mx(resolver, hop, answer.records, answer.secure, answer.ttl).await,
            Err(DnsError::NoRecords { ttl }) => single(resolver, hop, ttl).await,
            Err(DnsError::NoSuchDomain { ttl }) => Verdict { mx: Mx::Nowhere, hosts: Vec::new(), ttl },
            Err(DnsError::Failed(cause)) => Verdict { mx: Mx::Failed(cause), hosts: Vec::new(), ttl: FAILED_TTL },
        }
    } else {
        single(resolver, hop, MAX_TTL).await
    };
    verdict.ttl = verdict.ttl.clamp(MIN_TTL, MAX_TTL);
    if matches!(verdict.coverage(), Coverage::Partly { .. } | Coverage::Unknown) {
        verdict.ttl = verdict.ttl.min(FAILED_TTL);
    }
    verdict
}

async fn by_mx(
    resolver: &Resolver,
    hop: &NextHop,
    records: Vec<(u16, String)>,
    secure: bool,
    mut ttl: Duration,
) -> Verdict {
    let names: Vec<String> = records.into_iter().map(|(_, host)| host).filter(|host| host != ".").collect();
    if names.is_empty() {
        return Verdict { mx: Mx::Null, hosts: Vec::new(), ttl };
    }
    let mut tasks = JoinSet::new();
    for (index, name) in names.iter().take(MAX_HOSTS).enumerate() {
        let (resolver, name, port) = (resolver.clone(), name.clone(), hop.port);
        tasks.spawn(async move { (index, host(&resolver, &name, port).await) });
    }
    let mut found: Vec<(usize, Found)> = Vec::new();
    while let Some(done) = tasks.join_next().await {
        // A host whose task broke is a host that is not known.
        found.push(done.unwrap_or_else(|e| (usize::MAX, Found::failed(e.to_string()))));
    }
    found.sort_by_key(|(index, _)| *index);
    let mut hosts = Vec::new();
    for (index, one) in found {
        ttl = ttl.min(one.ttl);
        let name = names.get(index).cloned().unwrap_or_default();
        hosts.extend(one.tlsa.map(|tlsa| Host { name, tlsa }));
    }
    let beyond = names.into_iter().skip(MAX_HOSTS);
    hosts.extend(
        beyond.map(|name| Host { name, tlsa: HostTlsa::None { reason: "too many MX hosts: not asked".into() } }),
    );
    let mx = match (hosts.is_empty(), secure) {
        (true, _) => Mx::Nowhere,
        (_, true) => Mx::Signed,
        (_, false) => Mx::Unsigned,
    };
    Verdict { mx, hosts, ttl }
}

/// A name that is its own host: `[host]`, or a domain without MX records (RFC 5321 §5.1). Whether that is signed is
/// the AD bit of its own addresses.
async fn single(resolver: &Resolver, hop: &NextHop, ttl: Duration) -> Verdict {
    let found = host(resolver, &hop.domain, hop.port).await;
    let ttl = ttl.min(found.ttl);
    match found.tlsa {
        None => Verdict { mx: Mx::Nowhere, hosts: Vec::new(), ttl },
        Some(tlsa) => {
            let mx = match (hop.mx, found.signed) {
                (true, false) => Mx::Unsigned,
                _ => Mx::Signed,
            };
            Verdict { mx, hosts: vec![Host { name: hop.domain.clone(), tlsa }], ttl }
        }
    }
}

struct Found {
    /// Nothing where the host has no address.
    tlsa: Option<HostTlsa>,
    /// Whether its addresses, or the alias that leads to them, are validated.
    signed: bool,
    ttl: Duration,
}

impl Found {
    fn failed(cause: String) -> Found {
        Found { tlsa: Some(HostTlsa::Failed { cause }), signed: false, ttl: FAILED_TTL }
    }
}

/// RFC 7672 §2.2.2 for one host: addresses first, TLSA records only where those are validated, at the name that the
/// CNAMEs lead to and then at the name itself.
async fn host(resolver: &Resolver, name: &str, port: u16) -> Found {
    let addresses = match resolver.addresses(name).await {
        Ok(answer) => answer,
        Err(DnsError::Failed(cause)) => return Found::failed(format!("addresses: {cause}")),
        Err(none) => return Found { tlsa: None, signed: false, ttl: none.negative_ttl().unwrap_or(FAILED_TTL) },
    };
    let mut bases = Vec::new();
    if addresses.secure {
        bases.push(addresses.name.clone());
    }
    if addresses.name != name {
        let alias_signed = if addresses.secure { Ok(true) } else { resolver.is_alias_secure(name).await };
        match alias_signed {
            Ok(true) => bases.push(name.to_owned()),
            Ok(false) => {}
            Err(error) => return Found::failed(format!("CNAME: {error}")),
        }
    }
    let mut ttl = addresses.ttl;
    if bases.is_empty() {
        return Found {
            tlsa: Some(HostTlsa::None { reason: "its addresses are not signed".into() }),
            signed: false,
            ttl,
        };
    }
    let mut reason = "there is none";
    for base in bases {
        match resolver.tlsa(port, &base).await {
            Ok(answer) if answer.secure => {
                let usable = answer.records.iter().any(|record| usability(record).is_ok());
                let records = Arc::new(row(&base, &answer.records));
                ttl = ttl.min(answer.ttl);
                return Found { tlsa: Some(HostTlsa::Records { base, records, usable }), signed: true, ttl };
            }
            Ok(answer) => {
                reason = "it is not signed";
                ttl = ttl.min(answer.ttl);
            }
            Err(DnsError::Failed(cause)) => {
                return Found { signed: true, ..Found::failed(format!("TLSA at {base}: {cause}")) };
            }
            Err(none) => ttl = ttl.min(none.negative_ttl().unwrap_or(ttl)),
        }
    }
    Found { tlsa: Some(HostTlsa::None { reason: reason.into() }), signed: true, ttl }
}

/// The row that sessions with a host are counted under.
fn row(base: &str, records: &[TlsaRecord]) -> Policy {
    let mut lines: Vec<String> = records.iter().map(TlsaRecord::to_string).collect();
    lines.sort();
    lines.dedup();
    Policy { policy_type: PolicyType::Tlsa, policy_string: lines, policy_domain: base.to_owned(), mx_host: Vec::new() }
}

/// Whether a record can match any certificate (RFC 7672 §3.1: usages 0 and 1 cannot); else why not.
pub fn usability(record: &TlsaRecord) -> Result<(), &'static str> {
    match record {
        TlsaRecord { usage: 0 | 1, .. } => Err("usages 0 and 1 are not for SMTP (RFC 7672 §3.1.3)"),
        TlsaRecord { usage: 4.., .. } => Err("unknown usage"),
        TlsaRecord { selector: 2.., .. } => Err("unknown selector"),
        TlsaRecord { matching: 3.., .. } => Err("unknown matching type"),
        TlsaRecord { matching: 1, data, .. } if data.len() != 32 => Err("a SHA-256 digest has 32 octets"),
        TlsaRecord { matching: 2, data, .. } if data.len() != 64 => Err("a SHA-512 digest has 64 octets"),
        TlsaRecord { matching: 0, data, .. } if !is_der_sequence(data) => Err("no certificate or key in DER"),
        _ => Ok(()),
    }
}

/// Whether the octets are one DER SEQUENCE, as certificates and public keys are, from end to end.
fn is_der_sequence(data: &[u8]) -> bool {
    let (length, header) = match data {
        [0x30, short @ 0..=0x7f, ..] => (usize::from(*short), 2),
        [0x30, 0x81, a, ..] => (usize::from(*a), 3),
        [0x30, 0x82, a, b, ..] => (usize::from(u16::from_be_bytes([*a, *b])), 4),
        _ => return false,
    };
    length > 0 && data.len() == header + length
}

impl Verdict {
    /// In one word.
    pub fn coverage(&self) -> Coverage {
        let signed = match &self.mx {
            Mx::Signed => true,
            Mx::Unsigned => false,
            Mx::Null | Mx::Nowhere => return Coverage::Nothing,
            Mx::Failed(_) => return Coverage::Unknown,
        };
        let (mut usable, mut unusable, mut failed) = (0, 0, 0);
        for host in &self.hosts {
            match &host.tlsa {
                HostTlsa::Records { usable: true, .. } => usable += 1,
                HostTlsa::Records { usable: false, .. } => unusable += 1,
                HostTlsa::None { .. } => {}
                HostTlsa::Failed { .. } => failed += 1,
            }
        }
        match (signed, usable, failed) {
            (_, _, failed) if failed == self.hosts.len() => Coverage::Unknown,
            (signed, usable, 1..) => Coverage::Partly { signed, usable: usable > 0 },
            (true, usable, 0) if usable == self.hosts.len() => Coverage::Every,
            (true, 1.., 0) => Coverage::Some,
            (true, 0, 0) if unusable > 0 => Coverage::Unusable,
            (false, 1.., 0) => Coverage::Unsigned,
            _ => Coverage::Nothing,
        }
    }

    /// The first cause of what is not known.
    pub fn failure(&self) -> Option<&str> {
        match &self.mx {
            Mx::Failed(cause) => Some(cause),
            _ => self.hosts.iter().find_map(|host| match &host.tlsa {
                HostTlsa::Failed { cause } => Some(cause.as_str()),
                _ => None,
            }),
        }
    }

    /// Per host that has TLSA records, the row that its sessions are counted under.
    pub fn rows(&self) -> Arc<[TlsaHost]> {
        let row = |host: &Host| match &host.tlsa {
            HostTlsa::Records { base, records, .. } => Some(TlsaHost::new(&host.name, base, &records.policy_string)),
            HostTlsa::None { .. } | HostTlsa::Failed { .. } => None,
        };
        self.hosts.iter().filter_map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlsa(usage: u8, selector: u8, matching: u8, length: usize) -> TlsaRecord {
        TlsaRecord { usage, selector, matching, data: vec![7; length] }
    }

    #[test]
    fn usability_as_rfc_7672_has_it() {
        for good in [tlsa(3, 1, 1, 32), tlsa(2, 0, 1, 32), tlsa(3, 0, 2, 64), tlsa(2, 1, 2, 64)] {
            assert_eq!(usability(&good), Ok(()), "{good}");
        }
        for bad in [
            tlsa(0, 0, 1, 32),
            tlsa(1, 1, 1, 32),
            tlsa(4, 1, 1, 32),
            tlsa(255, 1, 1, 32),
            tlsa(3, 2, 1, 32),
            tlsa(3, 1, 3, 32),
            tlsa(3, 1, 1, 31),
            tlsa(3, 1, 1, 0),
            tlsa(3, 1, 2, 32),
            tlsa(3, 0, 0, 40),
        ] {
            assert!(usability(&bad).is_err(), "{bad}");
        }
        let mut full = tlsa(3, 0, 0, 0);
        full.data = vec![0x30, 0x02, 0x05, 0x00];
        assert_eq!(usability(&full), Ok(()));
        full.data.push(0);
        assert!(usability(&full).is_err());
    }

    fn verdict(mx: Mx, hosts: &str) -> Verdict {
        let host = |kind: char| match kind {
            'u' => HostTlsa::Records { base: "a".into(), records: Arc::new(Policy::none("a")), usable: true },
            'x' => HostTlsa::Records { base: "a".into(), records: Arc::new(Policy::none("a")), usable: false },
            'n' => HostTlsa::None { reason: "".into() },
            _ => HostTlsa::Failed { cause: "SERVFAIL".into() },
        };
        let hosts = hosts.chars().map(|kind| Host { name: "mx.example".into(), tlsa: host(kind) }).collect();
        Verdict { mx, hosts, ttl: MIN_TTL }
    }

    #[test]
    fn coverage_of_each_kind() {
        for (mx, hosts, want) in [
            (Mx::Signed, "u", Coverage::Every),
            (Mx::Signed, "uu", Coverage::Every),
            (Mx::Signed, "un", Coverage::Some),
            (Mx::Signed, "ux", Coverage::Some),
            (Mx::Signed, "x", Coverage::Unusable),
            (Mx::Signed, "xn", Coverage::Unusable),
            (Mx::Signed, "n", Coverage::Nothing),
            (Mx::Unsigned, "u", Coverage::Unsigned),
            (Mx::Unsigned, "un", Coverage::Unsigned),
            (Mx::Unsigned, "x", Coverage::Nothing),
            (Mx::Unsigned, "nn", Coverage::Nothing),
            (Mx::Signed, "uf", Coverage::Partly { signed: true, usable: true }),
            (Mx::Signed, "nf", Coverage::Partly { signed: true, usable: false }),
            (Mx::Unsigned, "uf", Coverage::Partly { signed: false, usable: true }),
            (Mx::Signed, "ff", Coverage::Unknown),
            (Mx::Unsigned, "f", Coverage::Unknown),
            (Mx::Failed("x".into()), "", Coverage::Unknown),
            (Mx::Null, "", Coverage::Nothing),
            (Mx::Nowhere, "", Coverage::Nothing),
        ] {
            assert_eq!(verdict(mx.clone(), hosts).coverage(), want, "{mx:?} {hosts}");
        }
    }

    #[test]
    fn hosts_with_records_have_rows_usable_or_not() {
        let found = verdict(Mx::Signed, "uxnf");
        assert_eq!(found.rows().len(), 2);
        assert_eq!(found.failure(), Some("SERVFAIL"));
    }
}
