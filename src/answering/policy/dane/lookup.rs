//! DANE for SMTP (RFC 7672): which MX hosts of a next hop have TLSA records that the resolver validated.
//!
//! Takes: a next hop. Gives: a [`DaneVerdict`]: whether the MX records are signed, and what each host has, with its
//! preference. A host without an address is left out, and one whose address look-up failed is kept apart: delivery may
//! proceed by the others (RFC 7672 §2.1.2).
//! The most preferred hosts are asked about first. As soon as the hosts that are not known yet cannot change the row of
//! the table of decisions, what is known is given ([`look_up_in_parts`]); the rest is for counting.
//! Limits: [`MAX_HOSTS`] MX hosts, the most preferred; the rest count as hosts without TLSA records. [`MAX_HOSTS_AT_ONCE`]
//! at once, and for all of them [`MAX_TIME`].
//! When it fails: the part that could not be found out is marked so; what was found out stands.
//! Not here: what is answered to the MTA (`policy`), matching certificates (the MTA does).

use std::borrow::Cow;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::answering::policy::dane::coverage::{Coverage, HostClass};
use crate::answering::policy::dane::der;
use crate::answering::policy::dane::service_port::port_number;
use crate::answering::policy::decision::DatalessTlsa;
use crate::answering::policy::history::compact::{DestinationFault, TlsaHost};
use crate::base::next_hop::{NextHop, Port};
use crate::base::tlsrpt::{Policy, PolicyType, ResultType};
use crate::net::dns::{DnsAnswer, DnsError, DnsFailure, Resolver, TlsaRecord};

/// How many MX hosts are asked about. Large providers have about ten.
pub const MAX_HOSTS: usize = 32;

/// How many MX hosts are asked about at once: each needs two queries at first, and then one.
const MAX_HOSTS_AT_ONCE: usize = 8;

/// How long the MX hosts are asked about: a name with 32 hosts whose servers do not answer costs no more. The MTA does not
/// wait so long; the hosts that are left count as not known.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The longest that a verdict holds, in seconds, whatever the TTLs.
const MAX_TTL: Duration = Duration::from_secs(86_400);

/// The shortest: the MTA asks once per host and message, and TTLs of 0 exist.
const MIN_TTL: Duration = Duration::from_secs(10);

/// The longest that a verdict holds from which the answer may allow some of the hosts only: a new MX host is not refused
/// for longer.
pub const NARROWED_TTL: Duration = Duration::from_secs(300);

/// How long a verdict with a failed part holds before it is tried again.
const FAILED_TTL: Duration = Duration::from_secs(30);

/// The reason code of a TLSA record without data, which keeps mail waiting where it ends smtp(8).
const TLSA_WITHOUT_DATA: &str = "tlsa-record-without-data";

/// What is known of a next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaneVerdict {
    /// Its MX records.
    pub mx: MxStatus,
    /// Its hosts, in order of preference; those without an address are left out.
    pub hosts: Vec<MxHost>,
    /// Hosts whose address look-up failed, and why: they are left out too.
    pub unreachable: Vec<(String, String)>,
    /// What of the failures is the destination's own, of the most preferred host.
    pub dnssec_fault: Option<DestinationFault>,
    /// How long that holds.
    pub ttl: Duration,
}

/// What the MX records are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxStatus {
    /// Validated; or there are none, and the name's own addresses are; or none are wanted (`[host]`).
    Signed,
    /// There, and not validated.
    Unsigned,
    /// A null MX (RFC 7505): the domain takes no mail.
    Null,
    /// No such domain, or it has neither MX records nor an address.
    NoHost,
    /// Not known.
    Failed(String),
}

/// One MX host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MxHost {
    /// Its name, as in the MX record.
    pub name: String,
    /// Its preference number; the lowest is preferred.
    pub preference: u16,
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
        /// Whether one of them has no data.
        dataless: bool,
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

impl HostTlsa {
    /// Its class in the table of decisions.
    pub fn class(&self) -> HostClass {
        match self {
            HostTlsa::Records { usable: true, .. } => HostClass::Usable,
            HostTlsa::Records { usable: false, .. } => HostClass::Unusable,
            HostTlsa::None { .. } => HostClass::NoTlsa,
            HostTlsa::Failed { .. } => HostClass::Failed,
        }
    }
}

/// Asks about a next hop.
pub async fn look_up(resolver: &Resolver, hop: &NextHop) -> DaneVerdict {
    look_up_in_parts(resolver, hop, |_| {}).await
}

/// Asks about a next hop. Calls `settled` at most once, where the row is known before all hosts are, with what is known
/// by then.
pub async fn look_up_in_parts(resolver: &Resolver, hop: &NextHop, settled: impl FnOnce(DaneVerdict)) -> DaneVerdict {
    let resolver = &resolver.for_one_lookup();
    let verdict = if hop.mx {
        match resolver.mx(&hop.domain).await {
            Ok(answer) => look_up_mx_hosts(resolver, hop, answer, settled).await,
            Err(DnsError::NoRecords { ttl }) => look_up_single_host(resolver, hop, ttl).await,
            Err(DnsError::NoSuchDomain { ttl }) => DaneVerdict { mx: MxStatus::NoHost, ..DaneVerdict::empty(ttl) },
            Err(DnsError::Failed(cause)) => {
                DaneVerdict { dnssec_fault: dnssec_fault(&cause, None), ..DaneVerdict::failed(cause.to_string()) }
            }
        }
    } else {
        look_up_single_host(resolver, hop, MAX_TTL).await
    };
    verdict.with_lawful_ttl()
}

async fn look_up_mx_hosts(
    resolver: &Resolver,
    hop: &NextHop,
    answer: DnsAnswer<(u16, String)>,
    settled: impl FnOnce(DaneVerdict),
) -> DaneVerdict {
    let records: Vec<(u16, String)> = answer.records.into_iter().filter(|(_, host)| host != ".").collect();
    if records.is_empty() {
        return DaneVerdict { mx: MxStatus::Null, ..DaneVerdict::empty(answer.ttl) };
    }
    let mx = if answer.secure { MxStatus::Signed } else { MxStatus::Unsigned };
    let mut found = MxHostLookups { mx, records, lookups: Vec::new(), ttl: answer.ttl };
    let deadline = Instant::now() + MAX_TIME;
    let mut settled = Some(settled);
    let mut tasks = JoinSet::new();
    let mut waiting: VecDeque<usize> = (0..found.records.len().min(MAX_HOSTS)).collect();
    found.lookups.resize_with(waiting.len(), || None);
    loop {
        while tasks.len() < MAX_HOSTS_AT_ONCE
            && let Some(index) = waiting.pop_front()
        {
            let (resolver, name, port) = (resolver.clone(), found.records[index].1.clone(), hop.port.clone());
            tasks.spawn(async move { (index, look_up_host(&resolver, &name, &port).await) });
        }
        match tokio::time::timeout_at(deadline, tasks.join_next()).await {
            Ok(Some(Ok((index, lookup)))) => found.lookups[index] = Some(lookup),
            // The host of a look-up that broke is a host that is not known.
            Ok(Some(Err(_))) => {}
            Ok(None) | Err(_) => return found.verdict(),
        }
        if found.row_is_settled()
            && let Some(settled) = settled.take()
        {
            settled(found.verdict().with_lawful_ttl());
        }
    }
}

/// The MX hosts of a next hop, and what the look-ups that have ended found.
struct MxHostLookups {
    mx: MxStatus,
    /// In order of preference.
    records: Vec<(u16, String)>,
    /// Of the first of these hosts.
    lookups: Vec<Option<HostLookup>>,
    ttl: Duration,
}

impl MxHostLookups {
    /// What is known now. The hosts that are not known yet count as failed.
    fn verdict(&self) -> DaneVerdict {
        let not_asked = HostLookup::failed("no answer from the servers of so many MX hosts in time".into());
        let (mut hosts, mut unreachable, mut ttl) = (Vec::new(), Vec::new(), self.ttl);
        let mut fault = None;
        for ((preference, name), lookup) in self.records.iter().zip(&self.lookups) {
            let lookup = lookup.as_ref().unwrap_or(&not_asked);
            ttl = ttl.min(lookup.ttl);
            fault = fault.or_else(|| lookup.dnssec_fault.clone());
            match &lookup.host {
                HostFound::Address(tlsa) => {
                    hosts.push(MxHost { name: name.clone(), preference: *preference, tlsa: tlsa.clone() });
                }
                HostFound::AddressFailed(cause) => unreachable.push((name.clone(), cause.clone())),
                HostFound::NoAddress => {}
            }
        }
        let beyond = self.records.iter().skip(self.lookups.len());
        let tlsa = HostTlsa::None { reason: "too many MX hosts: not asked".into() };
        hosts.extend(beyond.map(|(preference, name)| MxHost {
            name: name.clone(),
            preference: *preference,
            tlsa: tlsa.clone(),
        }));
        DaneVerdict { mx: self.mx.clone(), hosts, unreachable, dnssec_fault: fault, ttl }
    }

    /// Whether some hosts are not known yet and the row of the table of decisions is.
    fn row_is_settled(&self) -> bool {
        let places = self.records.iter().zip(&self.lookups);
        let unknown: Vec<u16> = places.clone().filter(|(_, lookup)| lookup.is_none()).map(|((at, _), _)| *at).collect();
        let known = places.filter_map(|((at, _), lookup)| match &lookup.as_ref()?.host {
            HostFound::Address(tlsa) => Some((*at, tlsa.class())),
            HostFound::AddressFailed(_) | HostFound::NoAddress => None,
        });
        let beyond = self.records.iter().skip(self.lookups.len()).map(|(at, _)| (*at, HostClass::NoTlsa));
        let known: Vec<_> = known.chain(beyond).collect();
        !unknown.is_empty() && Coverage::is_settled(self.mx == MxStatus::Signed, &known, &unknown)
    }
}

/// A name that is its own host: `[host]`, or a domain without MX records (RFC 5321 §5.1). Whether that is signed is
/// the AD bit of its own addresses.
async fn look_up_single_host(resolver: &Resolver, hop: &NextHop, ttl: Duration) -> DaneVerdict {
    let found = look_up_host(resolver, &hop.domain, &hop.port).await;
    let ttl = ttl.min(found.ttl);
    let mx = if hop.mx && !found.signed { MxStatus::Unsigned } else { MxStatus::Signed };
    let name = hop.domain.clone();
    let nothing = DaneVerdict { dnssec_fault: found.dnssec_fault, ..DaneVerdict::empty(ttl) };
    match found.host {
        HostFound::Address(tlsa) => DaneVerdict { mx, hosts: vec![MxHost { name, preference: 0, tlsa }], ..nothing },
        HostFound::AddressFailed(cause) => DaneVerdict { mx, unreachable: vec![(name, cause)], ..nothing },
        HostFound::NoAddress => nothing,
    }
}

/// What is wrong at a destination whose look-up failed, if that is its DNSSEC; `host`: the MX host, and the TLSA base
/// domain.
fn dnssec_fault(failure: &DnsFailure, host: Option<(&str, &str)>) -> Option<DestinationFault> {
    Some(DestinationFault {
        result_type: ResultType::DnssecInvalid,
        reason: failure.dnssec()?.reason_code().into(),
        host: host.map(|(host, base)| TlsaHost::new(host, base, &[])),
    })
}

/// What a look-up for one host found.
struct HostLookup {
    host: HostFound,
    /// Whether its addresses, or the alias that leads to them, are validated.
    signed: bool,
    dnssec_fault: Option<DestinationFault>,
    ttl: Duration,
}

enum HostFound {
    /// It has an address, and this is what it has of TLSA.
    Address(HostTlsa),
    /// Whether it has an address is not known, for this cause.
    AddressFailed(String),
    NoAddress,
}

impl HostLookup {
    /// The address is known, and the TLSA records are not.
    fn failed(cause: String) -> HostLookup {
        let host = HostFound::Address(HostTlsa::Failed { cause });
        HostLookup { host, signed: false, dnssec_fault: None, ttl: FAILED_TTL }
    }

    fn without_tlsa(reason: &'static str, signed: bool, ttl: Duration) -> HostLookup {
        let host = HostFound::Address(HostTlsa::None { reason: reason.into() });
        HostLookup { host, signed, dnssec_fault: None, ttl }
    }
}

/// RFC 7672 §2.2.2 for one host: addresses first, TLSA records only where those are validated, at the name that the
/// CNAMEs lead to and then at the name itself.
async fn look_up_host(resolver: &Resolver, name: &str, port: &Port) -> HostLookup {
    let addresses = match resolver.addresses(name).await {
        Ok(answer) => answer,
        Err(DnsError::Failed(cause)) => {
            let host = HostFound::AddressFailed(format!("addresses of {name}: {cause}"));
            let dnssec_fault = dnssec_fault(&cause, Some((name, name)));
            return HostLookup { host, signed: false, dnssec_fault, ttl: FAILED_TTL };
        }
        Err(none) => {
            let ttl = none.negative_ttl().unwrap_or(FAILED_TTL);
            return HostLookup { host: HostFound::NoAddress, signed: false, dnssec_fault: None, ttl };
        }
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
            // Whether it is signed is not known either.
            Err(error) => {
                let dnssec_fault = match &error {
                    DnsError::Failed(cause) => dnssec_fault(cause, Some((name, name))),
                    DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. } => None,
                };
                let failed = HostLookup::failed(format!("CNAME of {name}: {error}"));
                return HostLookup { signed: true, dnssec_fault, ..failed };
            }
        }
    }
    let mut ttl = addresses.ttl;
    if bases.is_empty() {
        return HostLookup::without_tlsa("its addresses are not signed", false, ttl);
    }
    let port = match port_number(port).await {
        Ok(port) => port,
        Err(cause) => return HostLookup { signed: true, ..HostLookup::failed(format!("TLSA of {name}: {cause}")) },
    };
    let mut reason = "there is none";
    for base in bases {
        match resolver.tlsa(port, &base).await {
            Ok(answer) if answer.secure => {
                let usable = answer.records.iter().any(|record| check_usability(record).is_ok());
                let dataless = answer.records.iter().any(|record| record.data.is_empty());
                let records = Arc::new(tlsa_policy(&base, &answer.records));
                let host = HostFound::Address(HostTlsa::Records { base, records, usable, dataless });
                return HostLookup { host, signed: true, dnssec_fault: None, ttl: ttl.min(answer.ttl) };
            }
            Ok(answer) => {
                reason = "it is not signed";
                ttl = ttl.min(answer.ttl);
            }
            Err(DnsError::Failed(cause)) => {
                let dnssec_fault = dnssec_fault(&cause, Some((name, &base)));
                let failed = HostLookup::failed(format!("TLSA at {base}: {cause}"));
                return HostLookup { signed: true, dnssec_fault, ..failed };
            }
            Err(none) => ttl = ttl.min(none.negative_ttl().unwrap_or(ttl)),
        }
    }
    HostLookup::without_tlsa(reason, true, ttl)
}

/// The row that sessions with a host are counted under.
fn tlsa_policy(base: &str, records: &[TlsaRecord]) -> Policy {
    let mut lines: Vec<String> = records.iter().map(TlsaRecord::to_string).collect();
    lines.sort();
    lines.dedup();
    Policy { policy_type: PolicyType::Tlsa, policy_string: lines, policy_domain: base.to_owned(), mx_host: Vec::new() }
}

/// Whether a record can match any certificate (RFC 7672 §3.1: usages 0 and 1 cannot); else why not.
pub fn check_usability(record: &TlsaRecord) -> Result<(), &'static str> {
    match record {
        TlsaRecord { usage: 0 | 1, .. } => Err("usages 0 and 1 are not for SMTP (RFC 7672 §3.1.3)"),
        TlsaRecord { usage: 4.., .. } => Err("unknown usage"),
        TlsaRecord { selector: 2.., .. } => Err("unknown selector"),
        TlsaRecord { matching: 3.., .. } => Err("unknown matching type"),
        TlsaRecord { matching: 1, data, .. } if data.len() != 32 => Err("a SHA-256 digest has 32 bytes"),
        TlsaRecord { matching: 2, data, .. } if data.len() != 64 => Err("a SHA-512 digest has 64 bytes"),
        TlsaRecord { matching: 0, selector: 0, data, .. } if !der::is_certificate(data) => {
            Err("not a certificate in DER")
        }
        TlsaRecord { matching: 0, selector: 1, data, .. } if !der::is_public_key(data) => {
            Err("not a public key in DER")
        }
        _ => Ok(()),
    }
}

impl DaneVerdict {
    /// The same, with a time that it may hold for.
    fn with_lawful_ttl(mut self) -> DaneVerdict {
        self.ttl = self.ttl.clamp(MIN_TTL, MAX_TTL);
        if self.first_failure().is_some() {
            self.ttl = self.ttl.min(FAILED_TTL);
        }
        if self.coverage() == Coverage::WorseHosts {
            self.ttl = self.ttl.min(NARROWED_TTL);
        }
        self
    }

    /// No MX host; nothing is there.
    fn empty(ttl: Duration) -> DaneVerdict {
        DaneVerdict { mx: MxStatus::NoHost, hosts: Vec::new(), unreachable: Vec::new(), dnssec_fault: None, ttl }
    }

    /// Nothing is known, for this cause.
    pub fn failed(cause: String) -> DaneVerdict {
        DaneVerdict { mx: MxStatus::Failed(cause), ..DaneVerdict::empty(FAILED_TTL) }
    }

    /// The row of the table of decisions.
    pub fn coverage(&self) -> Coverage {
        let signed = match &self.mx {
            MxStatus::Signed => true,
            MxStatus::Unsigned => false,
            MxStatus::Null | MxStatus::NoHost => return Coverage::NoTlsa,
            MxStatus::Failed(_) => return Coverage::MxFailed,
        };
        let hosts: Vec<_> = self.hosts.iter().map(|host| (host.preference, host.tlsa.class())).collect();
        Coverage::of(signed, &hosts)
    }

    /// Whether there are TLSA records without data.
    pub fn dataless(&self) -> DatalessTlsa {
        let any = |wanted: fn(&HostTlsa) -> bool| self.hosts.iter().any(|host| wanted(&host.tlsa));
        let dataless = any(|tlsa| matches!(tlsa, HostTlsa::Records { dataless: true, .. }));
        match (dataless, any(|tlsa| tlsa.class() == HostClass::Usable)) {
            (false, _) => DatalessTlsa::Absent,
            (true, false) => DatalessTlsa::Alone,
            (true, true) => DatalessTlsa::BesideUsable,
        }
    }

    /// All its MX hosts that may have an address.
    pub fn mx_hosts(&self) -> Vec<&str> {
        let unreachable = self.unreachable.iter().map(|(host, _)| host.as_str());
        self.hosts.iter().map(|host| host.name.as_str()).chain(unreachable).collect()
    }

    /// The hosts that are known to have no usable TLSA records.
    pub fn hosts_without_tlsa(&self) -> impl Iterator<Item = &str> {
        let without = |host: &&MxHost| matches!(host.tlsa.class(), HostClass::NoTlsa | HostClass::Unusable);
        self.hosts.iter().filter(without).map(|host| host.name.as_str())
    }

    /// The first cause of what is not known.
    pub fn first_failure(&self) -> Option<&str> {
        match &self.mx {
            MxStatus::Failed(cause) => Some(cause),
            _ => {
                let failed = self.hosts.iter().find_map(|host| match &host.tlsa {
                    HostTlsa::Failed { cause } => Some(cause.as_str()),
                    HostTlsa::Records { .. } | HostTlsa::None { .. } => None,
                });
                failed.or_else(|| self.unreachable.first().map(|(_, cause)| cause.as_str()))
            }
        }
    }

    /// What is broken at the destination itself, should the mail have to wait: its DNSSEC where something could not be looked
    /// up, else a TLSA record without data.
    pub fn destination_fault(&self) -> Option<DestinationFault> {
        if self.coverage().is_failure() {
            return self.dnssec_fault.clone();
        }
        let (host, base, records) = self.hosts.iter().find_map(|host| match &host.tlsa {
            HostTlsa::Records { base, records, dataless: true, .. } => Some((&host.name, base, records)),
            HostTlsa::Records { .. } | HostTlsa::None { .. } | HostTlsa::Failed { .. } => None,
        })?;
        Some(DestinationFault {
            result_type: ResultType::TlsaInvalid,
            reason: TLSA_WITHOUT_DATA.into(),
            host: Some(TlsaHost::new(host, base, &records.policy_string)),
        })
    }

    /// Per host that has TLSA records, the row that its sessions are counted under.
    pub fn tlsa_hosts(&self) -> Arc<[TlsaHost]> {
        let row = |host: &MxHost| match &host.tlsa {
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
            assert_eq!(check_usability(&good), Ok(()), "{good}");
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
            assert!(check_usability(&bad).is_err(), "{bad}");
        }
        let full = |selector, data: &[u8]| TlsaRecord { data: data.to_vec(), ..tlsa(3, selector, 0, 0) };
        // An Ed25519 key; DER that is neither a key nor a certificate.
        let key = [b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00".as_slice(), &[7; 32]].concat();
        assert_eq!(check_usability(&full(1, &key)), Ok(()));
        assert_eq!(check_usability(&full(0, &key)), Err("not a certificate in DER"));
        assert_eq!(check_usability(&full(1, &[0x30, 0x02, 0x05, 0x00])), Err("not a public key in DER"));
    }

    /// `d`: records of which one has no data; a `|` separates preferences.
    fn verdict(mx: MxStatus, hosts: &str) -> DaneVerdict {
        let host = |preference, kind: char| {
            let records = |usable, dataless| HostTlsa::Records {
                base: "a".into(),
                records: Arc::new(Policy::none("a")),
                usable,
                dataless,
            };
            let tlsa = match kind {
                'u' => records(true, false),
                'b' => records(false, false),
                'd' => records(false, true),
                'n' => HostTlsa::None { reason: "".into() },
                _ => HostTlsa::Failed { cause: "SERVFAIL".into() },
            };
            MxHost { name: format!("{kind}.example"), preference, tlsa }
        };
        let groups = (0..).zip(hosts.split('|'));
        let hosts =
            groups.flat_map(|(preference, group)| group.chars().map(move |kind| host(preference, kind))).collect();
        DaneVerdict { mx, hosts, ..DaneVerdict::empty(MIN_TTL) }
    }

    #[test]
    fn the_row_of_a_verdict() {
        for (mx, hosts, want) in [
            (MxStatus::Signed, "u|u", Coverage::AllHosts),
            (MxStatus::Signed, "u|n", Coverage::BestHosts),
            (MxStatus::Signed, "n|u", Coverage::WorseHosts),
            (MxStatus::Signed, "n|x", Coverage::SomeFailed),
            (MxStatus::Unsigned, "x", Coverage::UnsignedFailed),
            (MxStatus::Failed("x".into()), "", Coverage::MxFailed),
            (MxStatus::Null, "", Coverage::NoTlsa),
            (MxStatus::NoHost, "", Coverage::NoTlsa),
            (MxStatus::Signed, "", Coverage::NoAddress),
        ] {
            assert_eq!(verdict(mx.clone(), hosts).coverage(), want, "{mx:?} {hosts}");
        }
    }

    #[test]
    fn records_without_data_are_noticed() {
        for (hosts, want) in [
            ("ub", DatalessTlsa::Absent),
            ("d", DatalessTlsa::Alone),
            ("bd|x", DatalessTlsa::Alone),
            ("u|d", DatalessTlsa::BesideUsable),
        ] {
            assert_eq!(verdict(MxStatus::Signed, hosts).dataless(), want, "{hosts}");
        }
    }

    #[test]
    fn hosts_with_records_have_rows_usable_or_not() {
        let found = verdict(MxStatus::Signed, "ubnx");
        assert_eq!(found.tlsa_hosts().len(), 2);
        assert_eq!(found.first_failure(), Some("SERVFAIL"));
        assert_eq!(found.hosts_without_tlsa().collect::<Vec<_>>(), ["b.example", "n.example"]);
        let unreachable = vec![("mx.example".to_owned(), "REFUSED".to_owned())];
        let found = DaneVerdict { unreachable, ..verdict(MxStatus::Signed, "u") };
        assert_eq!((found.coverage(), found.first_failure()), (Coverage::AllHosts, Some("REFUSED")));
    }
}
