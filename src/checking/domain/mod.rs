//! A mail domain as a sender sees it: what it publishes, and whether its MX hosts keep to it.
//!
//! Takes: a domain. Gives: a [`DomainCheck`]: MX hosts, TLSA records, certificates, the MTA-STS policy, where it wants
//! reports, what is wrong with that, and the records and the policy that would make it right. The rules are the daemon's own:
//! `policy::dane`, `policy::sts`, `report::recipients`.
//! Limits: `lookup::MAX_HOSTS` MX hosts, [`MAX_ADDRESSES`] addresses each, [`MAX_CONNECTIONS`] connections. Addresses that are not public
//! are not connected to, unless the configuration is for a closed network.
//! When it fails: what could not be found out is said ([`Findings::not_looked_at`]); the rest stands.
//! Not here: how it is shown (`cli`), this host's own set-up (`doctor`).

mod advice;
pub mod certificate;
mod findings;
mod near_miss;
mod probe;
pub mod smtp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::answering::policy::dane::lookup::{self, DaneVerdict};
use crate::answering::policy::sts::document::PolicyDocument;
use crate::answering::policy::sts::fetch::{FetchError, fetch};
use crate::answering::policy::sts::record::{self, NoRecord};
use crate::base::clock::Clock;
use crate::base::next_hop::{NextHop, Port};
use crate::base::rua_record::{NoRecipients, Recipients};
use crate::checking::finding::Findings;
use crate::config::Config;
use crate::net::dns::{DnsError, Resolver, TlsaRecord};
use crate::net::host_name::ehlo_name;
use crate::net::https::{self, CertificateFault, HttpsClient};
use crate::net::tlsrpt_record::{TlsrptLookupError, look_up_recipients};
pub(crate) use advice::{Advice, PublicationState};
use certificate::CertificateFacts;
use probe::{ProbeError, TlsProbe};

/// How many addresses of a host are connected to.
pub(crate) const MAX_ADDRESSES: usize = 8;

/// How many connections are under way at once.
const MAX_CONNECTIONS: usize = 16;

/// The port that mail is delivered to.
const SMTP_PORT: u16 = 25;

/// The result of the check of a domain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct DomainCheck {
    /// The domain in its one form.
    pub domain: String,
    /// Its MX records, or why there are none.
    pub mx: String,
    /// Whether DNSSEC proves them.
    pub mx_signed: bool,
    /// Its hosts.
    pub hosts: Vec<CheckedHost>,
    /// Its MTA-STS policy in words.
    pub mta_sts: String,
    /// Where it wants reports, in words.
    pub tlsrpt: String,
    /// What is wrong.
    #[serde(flatten)]
    pub findings: Findings,
    /// What would make it right.
    pub advice: Advice,
}

/// An MX host.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct CheckedHost {
    /// Its name.
    pub name: String,
    /// The preference; nothing where the domain has no MX records.
    pub preference: Option<u16>,
    /// Its TLSA records, each with why it is unusable.
    pub tlsa: Vec<String>,
    /// What was seen at each address.
    pub addresses: Vec<AddressResult>,
    #[serde(skip)]
    dns: HostDnsFacts,
}

/// What DNS says about a host.
#[derive(Clone, Debug, Default)]
struct HostDnsFacts {
    /// Whether its addresses, and so its TLSA records, can be signed.
    signed: bool,
    /// The name that its TLSA records are at.
    base: String,
    /// Those that are published, signed or not.
    records: Vec<TlsaRecord>,
    /// Whether those are signed.
    records_signed: bool,
    /// Why they are not known.
    failure: Option<String>,
    /// Its own TLSRPT record.
    reports: Option<Result<Recipients, TlsrptLookupError>>,
}

/// The result of the check of one address.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct AddressResult {
    /// The address.
    pub address: IpAddr,
    /// In words.
    pub found: String,
    /// What stands in the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<CertificateFacts>,
    /// The TLSA record that it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fits: Option<String>,
    #[serde(skip)]
    outcome: ConnectionOutcome,
}

/// How a connection ended.
#[derive(Clone, Debug)]
enum ConnectionOutcome {
    /// Nobody may be made to connect to addresses of the own network.
    Private,
    Fault(ProbeError),
    /// TLS, and what a sender under MTA-STS has against the certificate.
    Tls(Vec<CertificateFault>),
}

/// What is published about MTA-STS.
#[derive(Clone, Debug)]
enum PublishedSts {
    /// The record could not be asked for; the document that is served all the same.
    Unknown(String, Option<PolicyDocument>),
    /// There is no record that counts.
    NoRecord(MissingRecord),
    NoDocument(String, FetchError),
    Policy(String, PolicyDocument),
}

/// What is there in place of a record.
#[derive(Clone, Debug)]
struct MissingRecord {
    reason: NoRecord,
    /// The TXT records of the name.
    records: Vec<String>,
    /// The document that is served all the same.
    document: Option<PolicyDocument>,
}

/// Checks a domain. Fails with one line where this host lacks something that the check needs.
pub(crate) async fn check_domain(config: &Config, domain: &str) -> Result<DomainCheck, String> {
    let domain = crate::base::domain_name::normalize(domain)
        .ok_or_else(|| format!("`{}` is no domain name", domain.escape_debug()))?;
    let resolver = Resolver::new(config.resolver.address).map_err(|e| format!("resolver: {e}"))?;
    let client = HttpsClient::new(resolver.clone(), &config.closed_network.exceptions())?;
    let hop = NextHop { domain: domain.clone(), port: Port::SMTP, mx: true };
    let prober = Prober {
        verifier: https::certificate_verifier(&config.closed_network.exceptions())?,
        allow_private: config.closed_network.private_addresses,
        ehlo_name: ehlo_name(config.report.from.as_deref()),
        clock: config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second())),
        domain: domain.clone(),
        resolver: resolver.clone(),
    };
    let (mx, verdict, sts, reports) = tokio::join!(
        resolver.mx(&domain),
        lookup::look_up(&resolver, &hop),
        look_up_sts(&resolver, &client, &domain),
        look_up_recipients(&resolver, &domain),
    );
    let report_records = other_report_records(&resolver, &domain, &reports).await;
    let hosts = prober.probe_hosts(&mx, &domain).await;
    let mut findings = Findings::default();
    if !resolver.is_trusted() {
        findings.not_looked_at.push(format!("DNSSEC: the resolver {} is not on this host", resolver.server_names()));
    }
    let facts = DomainFacts {
        domain: &domain,
        mx: &mx,
        verdict: &verdict,
        hosts: &hosts,
        sts: &sts,
        reports: &reports,
        report_records: &report_records,
    };
    facts.add_findings(&mut findings);
    let advice = facts.advise(prober.clock.seconds());
    Ok(DomainCheck {
        mx: facts.describe_mx(),
        mx_signed: matches!(verdict.mx, lookup::MxStatus::Signed),
        mta_sts: facts.describe_sts(),
        tlsrpt: facts.describe_reports(),
        domain: domain.clone(),
        hosts,
        findings,
        advice,
    })
}

/// All facts about a domain, from which findings and advice are derived.
struct DomainFacts<'a> {
    domain: &'a str,
    mx: &'a Result<crate::net::dns::DnsAnswer<(u16, String)>, DnsError>,
    verdict: &'a DaneVerdict,
    hosts: &'a [CheckedHost],
    sts: &'a PublishedSts,
    reports: &'a Result<Recipients, TlsrptLookupError>,
    /// Where there is no TLSRPT record, the TXT records at its name.
    report_records: &'a [String],
}

async fn look_up_sts(resolver: &Resolver, client: &HttpsClient, domain: &str) -> PublishedSts {
    let records = match resolver.txt(&format!("_mta-sts.{domain}")).await {
        Ok(answer) => answer.records,
        Err(DnsError::Failed(cause)) => {
            return PublishedSts::Unknown(cause.to_string(), fetch(client, domain).await.ok());
        }
        Err(_) => Vec::new(),
    };
    match record::parse_id(&records) {
        Err(reason) => {
            let document = fetch(client, domain).await.ok();
            PublishedSts::NoRecord(MissingRecord { reason, records, document })
        }
        Ok(id) => match fetch(client, domain).await {
            Ok(document) => PublishedSts::Policy(id.to_owned(), document),
            Err(fault) => PublishedSts::NoDocument(id.to_owned(), fault),
        },
    }
}

/// The TXT records of `_smtp._tls` that are not TLSRPT records, where there is none.
async fn other_report_records(
    resolver: &Resolver,
    name: &str,
    found: &Result<Recipients, TlsrptLookupError>,
) -> Vec<String> {
    match found {
        Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => {
            let answer = resolver.txt(&format!("_smtp._tls.{name}")).await;
            answer.map_or_else(|_| Vec::new(), |answer| answer.records)
        }
        _ => Vec::new(),
    }
}

/// What is needed to check hosts.
#[derive(Clone)]
struct Prober {
    resolver: Resolver,
    verifier: Arc<dyn ServerCertVerifier>,
    allow_private: bool,
    ehlo_name: String,
    clock: Clock,
    domain: String,
}

impl Prober {
    async fn probe_hosts(
        &self,
        mx: &Result<crate::net::dns::DnsAnswer<(u16, String)>, DnsError>,
        domain: &str,
    ) -> Vec<CheckedHost> {
        let names: Vec<(Option<u16>, String)> = match mx {
            Ok(answer) => answer
                .records
                .iter()
                .filter(|(_, host)| host != ".")
                .map(|(preference, host)| (Some(*preference), host.clone()))
                .collect(),
            // RFC 5321 §5.1: then the domain is its own host.
            Err(DnsError::NoRecords { .. }) => vec![(None, domain.to_owned())],
            Err(DnsError::NoSuchDomain { .. } | DnsError::Failed(_)) => Vec::new(),
        };
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for (number, (preference, name)) in names.into_iter().take(lookup::MAX_HOSTS).enumerate() {
            let (prober, permits) = (self.clone(), Arc::clone(&permits));
            tasks.spawn(async move { (number, prober.probe_host(preference, name, permits).await) });
        }
        let mut hosts = tasks.join_all().await;
        hosts.sort_by_key(|(number, _)| *number);
        hosts.into_iter().map(|(_, host)| host).collect()
    }

    async fn probe_host(&self, preference: Option<u16>, name: String, permits: Arc<Semaphore>) -> CheckedHost {
        let (addresses, reports) =
            tokio::join!(self.resolver.addresses(&name), look_up_recipients(&self.resolver, &name));
        let mut found = HostDnsFacts { base: name.clone(), reports: Some(reports), ..HostDnsFacts::default() };
        let addresses = match addresses {
            Ok(answer) => {
                // RFC 7672 §2.2.2: the records are at the end of a signed alias, else at the name itself.
                let bases = if answer.secure { vec![answer.name.clone(), name.clone()] } else { vec![name.clone()] };
                self.look_up_tlsa(bases, &mut found).await;
                found.signed = answer.secure;
                answer.records
            }
            Err(error) => {
                found.failure = matches!(error, DnsError::Failed(_)).then(|| format!("addresses: {error}"));
                Vec::new()
            }
        };
        let mut tasks = JoinSet::new();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            let (prober, permits) = (self.clone(), Arc::clone(&permits));
            let (name, found) = (name.clone(), found.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                prober.probe_address(address, &name, &found).await
            });
        }
        let mut addresses = tasks.join_all().await;
        addresses.sort_by_key(|seen| seen.address);
        let word = |record: &TlsaRecord| match lookup::check_usability(record) {
            Ok(()) => record.to_string(),
            Err(impact) => format!("{record}: unusable: {impact}"),
        };
        CheckedHost { tlsa: found.records.iter().map(word).collect(), name, preference, addresses, dns: found }
    }

    async fn look_up_tlsa(&self, bases: Vec<String>, found: &mut HostDnsFacts) {
        for base in bases {
            match self.resolver.tlsa(SMTP_PORT, &base).await {
                Ok(answer) => {
                    (found.base, found.records_signed, found.records) = (base, answer.secure, answer.records);
                    return;
                }
                Err(DnsError::Failed(cause)) => {
                    found.failure = Some(format!("TLSA records: {cause}"));
                    return;
                }
                Err(_) => {}
            }
        }
    }

    async fn probe_address(&self, address: IpAddr, host: &str, found: &HostDnsFacts) -> AddressResult {
        let seen =
            |text: String, outcome| AddressResult { address, found: text, certificate: None, fits: None, outcome };
        if !self.allow_private && !https::is_public(address) {
            return seen("not a public address: not connected to".into(), ConnectionOutcome::Private);
        }
        match probe::probe(SocketAddr::new(address, SMTP_PORT), host, &self.ehlo_name).await {
            Err(fault) => seen(fault.to_string(), ConnectionOutcome::Fault(fault)),
            Ok(TlsProbe { protocol, chain }) => self.check_certificate(address, host, found, &protocol, &chain),
        }
    }

    fn check_certificate(
        &self,
        address: IpAddr,
        host: &str,
        found: &HostDnsFacts,
        protocol: &str,
        chain: &[CertificateDer<'_>],
    ) -> AddressResult {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(self.clock.seconds()).unwrap_or_default(),
        ));
        let faults = certificate::find_faults(&*self.verifier, chain, host, now);
        let fits = certificate::matching_record(&found.records, chain, &[&found.base, host, &self.domain], now);
        let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let words = if words.is_empty() { "trusted, for this name".to_owned() } else { words.join(", ") };
        AddressResult {
            address,
            found: format!("STARTTLS, {protocol}; certificate: {words}"),
            certificate: chain.first().and_then(|leaf| certificate::read_facts(leaf)),
            fits: fits.map(ToString::to_string),
            outcome: ConnectionOutcome::Tls(faults),
        }
    }
}

impl CheckedHost {
    /// Whether it has TLSA records that a sender goes by.
    fn has_dane(&self) -> bool {
        self.dns.records_signed && self.dns.records.iter().any(|record| lookup::check_usability(record).is_ok())
    }
}

impl DomainFacts<'_> {
    fn describe_mx(&self) -> String {
        match (self.mx, &self.verdict.mx) {
            (Ok(_), lookup::MxStatus::Null) => "a null MX: it takes no mail (RFC 7505)".into(),
            (Ok(answer), _) => format!("{} MX records", answer.records.len()),
            (Err(DnsError::NoRecords { .. }), _) => "no MX records: the domain is its own host".into(),
            (Err(error), _) => error.to_string(),
        }
    }

    fn describe_sts(&self) -> String {
        match self.sts {
            PublishedSts::Unknown(cause, _) => format!("not known: {cause}"),
            PublishedSts::NoRecord(missing) => format!("none: {}", missing.reason),
            PublishedSts::NoDocument(id, fault) => format!("id {id}; the document cannot be had: {fault}"),
            PublishedSts::Policy(id, document) => {
                format!("id {id}, mode {}, max_age {}, mx {}", document.mode, document.max_age, document.mx.join(" "))
            }
        }
    }

    fn describe_reports(&self) -> String {
        match self.reports {
            Err(TlsrptLookupError::None(NoRecipients::NoRecord)) => "none".into(),
            Err(error) => error.to_string(),
            Ok(recipients) => {
                let to: Vec<String> = recipients.destinations.iter().map(ToString::to_string).collect();
                format!("to {}", to.join(", "))
            }
        }
    }
}
