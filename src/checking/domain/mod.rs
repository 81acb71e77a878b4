//! A mail domain as a sender sees it: what it publishes, and whether its MX hosts keep to it.
//!
//! Takes: a domain. Gives: an [`Examination`]: MX hosts, TLSA records, certificates, the MTA-STS policy, where it wants
//! reports, what is wrong with that, and the records and the policy that would make it right. The rules are the daemon's own:
//! `policy::dane`, `policy::sts`, `report::recipients`.
//! Limits: `lookup::MAX_HOSTS` MX hosts, [`MAX_ADDRESSES`] addresses each, [`AT_ONCE`] connections. Addresses that are not public
//! are not connected to, unless the configuration is for a closed network.
//! When it fails: what could not be found out is said ([`Findings::not_looked_at`]); the rest stands.
//! Not here: how it is shown (`cli`), this host's own set-up (`doctor`).

mod advice;
pub mod certificate;
mod findings;
mod probe;
pub mod smtp;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::answering::policy::dane::lookup::{self, Verdict};
use crate::answering::policy::sts::document::Document;
use crate::answering::policy::sts::fetch::{FetchFault, fetch};
use crate::answering::policy::sts::record::{self, NoRecord};
use crate::base::clock::Clock;
use crate::base::next_hop::NextHop;
use crate::base::rua_record::{NoRecipients, Recipients};
use crate::checking::finding::Findings;
use crate::config::Config;
use crate::net::dns::{DnsError, Resolver, TlsaRecord};
use crate::net::https::{self, CertificateFault, HttpsClient};
use crate::net::tlsrpt_record::{TlsrptLookupError, look_up_recipients};
pub use advice::{Advice, Line, State};
use certificate::Facts;
use probe::{Probe, ProbeFault};

/// How many addresses of a host are connected to.
pub const MAX_ADDRESSES: usize = 8;

/// How many connections are under way at once.
const AT_ONCE: usize = 16;

/// The port that mail is delivered to.
const PORT: u16 = 25;

/// Everything about a domain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Examination {
    /// The domain in its one form.
    pub domain: String,
    /// Its MX records, or why there are none.
    pub mx: String,
    /// Whether DNSSEC proves them.
    pub mx_signed: bool,
    /// Its hosts.
    pub hosts: Vec<Host>,
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
pub struct Host {
    /// Its name.
    pub name: String,
    /// The preference; nothing where the domain has no MX records.
    pub preference: Option<u16>,
    /// Its TLSA records, each with why it is unusable.
    pub tlsa: Vec<String>,
    /// What was seen at each address.
    pub addresses: Vec<Seen>,
    #[serde(skip)]
    found: HostFacts,
}

/// What DNS says about a host.
#[derive(Clone, Debug, Default)]
struct HostFacts {
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

/// What was seen at one address.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Seen {
    /// The address.
    pub address: IpAddr,
    /// In words.
    pub found: String,
    /// What stands in the certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Facts>,
    /// The TLSA record that it fits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fits: Option<String>,
    #[serde(skip)]
    outcome: Outcome,
}

/// What became of a connection.
#[derive(Clone, Debug)]
enum Outcome {
    /// Nobody may be made to connect to addresses of the own network.
    Private,
    Fault(ProbeFault),
    /// TLS, and what a sender under MTA-STS has against the certificate.
    Tls(Vec<CertificateFault>),
}

/// What is published about MTA-STS.
#[derive(Clone, Debug)]
enum Sts {
    /// The record could not be asked for.
    Unknown(String),
    NoRecord(NoRecord),
    NoDocument(String, FetchFault),
    Policy(String, Document),
}

/// Looks at a domain. Fails with one line where this host itself has not what that takes.
pub async fn examine(config: &Config, domain: &str) -> Result<Examination, String> {
    let domain = crate::base::domain_name::normalize(domain)
        .ok_or_else(|| format!("`{}` is no domain name", domain.escape_debug()))?;
    let resolver = Resolver::new(config.resolver.address).map_err(|e| format!("resolver: {e}"))?;
    let client = HttpsClient::new(resolver.clone(), &config.closed_network.exceptions())?;
    let hop = NextHop { domain: domain.clone(), port: PORT, mx: true };
    let looker = Looker {
        verifier: https::certificate_verifier(&config.closed_network.exceptions())?,
        private: config.closed_network.private_addresses,
        name: our_name(config),
        clock: config.closed_network.clock.map_or_else(Clock::default, |t| Clock::starting_at(t.as_second())),
        domain: domain.clone(),
        resolver: resolver.clone(),
    };
    let (mx, verdict, sts, reports) = tokio::join!(
        resolver.mx(&domain),
        lookup::look(&resolver, &hop),
        find_sts(&resolver, &client, &domain),
        look_up_recipients(&resolver, &domain),
    );
    let hosts = looker.hosts(&mx, &domain).await;
    let mut findings = Findings::default();
    if !resolver.is_trusted() {
        findings.not_looked_at.push(format!("DNSSEC: the resolver {} is not on this host", resolver.server()));
    }
    let whole = Whole { domain: &domain, mx: &mx, verdict: &verdict, hosts: &hosts, sts: &sts, reports: &reports };
    whole.judge(&mut findings);
    let advice = whole.advise(looker.clock.seconds());
    Ok(Examination {
        mx: whole.mx_words(),
        mx_signed: matches!(verdict.mx, lookup::Mx::Signed),
        mta_sts: whole.sts_words(),
        tlsrpt: whole.reports_words(),
        domain: domain.clone(),
        hosts,
        findings,
        advice,
    })
}

/// All that was found, to be judged.
struct Whole<'a> {
    domain: &'a str,
    mx: &'a Result<crate::net::dns::DnsAnswer<(u16, String)>, DnsError>,
    verdict: &'a Verdict,
    hosts: &'a [Host],
    sts: &'a Sts,
    reports: &'a Result<Recipients, TlsrptLookupError>,
}

async fn find_sts(resolver: &Resolver, client: &HttpsClient, domain: &str) -> Sts {
    let records = match resolver.txt(&format!("_mta-sts.{domain}")).await {
        Ok(answer) => answer.records,
        Err(DnsError::Failed(cause)) => return Sts::Unknown(cause),
        Err(_) => Vec::new(),
    };
    match record::id(&records) {
        Err(none) => Sts::NoRecord(none),
        Ok(id) => match fetch(client, domain).await {
            Ok(document) => Sts::Policy(id.to_owned(), document),
            Err(fault) => Sts::NoDocument(id.to_owned(), fault),
        },
    }
}

/// The name in EHLO: this host's, or the domain that reports come from.
fn our_name(config: &Config) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = crate::base::domain_name::normalize(host.trim()).filter(|name| name.contains('.'));
    let from = || config.report.from.as_deref()?.rsplit_once('@').map(|(_, domain)| domain.to_owned());
    host.or_else(from).unwrap_or_else(|| "localhost.localdomain".to_owned())
}

/// What it takes to look at hosts.
#[derive(Clone)]
struct Looker {
    resolver: Resolver,
    verifier: Arc<dyn ServerCertVerifier>,
    private: bool,
    name: String,
    clock: Clock,
    domain: String,
}

impl Looker {
    async fn hosts(&self, mx: &Result<crate::net::dns::DnsAnswer<(u16, String)>, DnsError>, domain: &str) -> Vec<Host> {
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
        let permits = Arc::new(Semaphore::new(AT_ONCE));
        let mut tasks = JoinSet::new();
        for (number, (preference, name)) in names.into_iter().take(lookup::MAX_HOSTS).enumerate() {
            let (looker, permits) = (self.clone(), Arc::clone(&permits));
            tasks.spawn(async move { (number, looker.host(preference, name, permits).await) });
        }
        let mut hosts = tasks.join_all().await;
        hosts.sort_by_key(|(number, _)| *number);
        hosts.into_iter().map(|(_, host)| host).collect()
    }

    async fn host(&self, preference: Option<u16>, name: String, permits: Arc<Semaphore>) -> Host {
        let (addresses, reports) =
            tokio::join!(self.resolver.addresses(&name), look_up_recipients(&self.resolver, &name));
        let mut found = HostFacts { base: name.clone(), reports: Some(reports), ..HostFacts::default() };
        let addresses = match addresses {
            Ok(answer) => {
                // RFC 7672 §2.2.2: the records are at the end of a signed alias, else at the name itself.
                let bases = if answer.secure { vec![answer.name.clone(), name.clone()] } else { vec![name.clone()] };
                self.tlsa(bases, &mut found).await;
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
            let (looker, permits) = (self.clone(), Arc::clone(&permits));
            let (name, found) = (name.clone(), found.clone());
            tasks.spawn(async move {
                let _permit = permits.acquire_owned().await;
                looker.address(address, &name, &found).await
            });
        }
        let mut addresses = tasks.join_all().await;
        addresses.sort_by_key(|seen| seen.address);
        let word = |record: &TlsaRecord| match lookup::usability(record) {
            Ok(()) => record.to_string(),
            Err(why) => format!("{record}: unusable: {why}"),
        };
        Host { tlsa: found.records.iter().map(word).collect(), name, preference, addresses, found }
    }

    async fn tlsa(&self, bases: Vec<String>, found: &mut HostFacts) {
        for base in bases {
            match self.resolver.tlsa(PORT, &base).await {
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

    async fn address(&self, address: IpAddr, host: &str, found: &HostFacts) -> Seen {
        let seen = |text: String, outcome| Seen { address, found: text, certificate: None, fits: None, outcome };
        if !self.private && !https::is_public(address) {
            return seen("not a public address: not connected to".into(), Outcome::Private);
        }
        match probe::probe(SocketAddr::new(address, PORT), host, &self.name).await {
            Err(fault) => seen(fault.to_string(), Outcome::Fault(fault)),
            Ok(Probe { protocol, chain }) => self.judge(address, host, found, &protocol, &chain),
        }
    }

    fn judge(
        &self,
        address: IpAddr,
        host: &str,
        found: &HostFacts,
        protocol: &str,
        chain: &[CertificateDer<'_>],
    ) -> Seen {
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            u64::try_from(self.clock.seconds()).unwrap_or_default(),
        ));
        let faults = certificate::faults(&*self.verifier, chain, host, now);
        let fits = certificate::fitting(&found.records, chain, &[&found.base, host, &self.domain], now);
        let words: Vec<String> = faults.iter().map(ToString::to_string).collect();
        let words = if words.is_empty() { "trusted, for this name".to_owned() } else { words.join(", ") };
        Seen {
            address,
            found: format!("STARTTLS, {protocol}; certificate: {words}"),
            certificate: chain.first().and_then(|leaf| certificate::facts(leaf)),
            fits: fits.map(ToString::to_string),
            outcome: Outcome::Tls(faults),
        }
    }
}

impl Host {
    /// Whether it has TLSA records that a sender goes by.
    fn has_dane(&self) -> bool {
        self.found.records_signed && self.found.records.iter().any(|record| lookup::usability(record).is_ok())
    }
}

impl Whole<'_> {
    fn mx_words(&self) -> String {
        match (self.mx, &self.verdict.mx) {
            (Ok(_), lookup::Mx::Null) => "a null MX: it takes no mail (RFC 7505)".into(),
            (Ok(answer), _) => format!("{} MX records", answer.records.len()),
            (Err(DnsError::NoRecords { .. }), _) => "no MX records: the domain is its own host".into(),
            (Err(error), _) => error.to_string(),
        }
    }

    fn sts_words(&self) -> String {
        match self.sts {
            Sts::Unknown(cause) => format!("not known: {cause}"),
            Sts::NoRecord(none) => format!("none: {none}"),
            Sts::NoDocument(id, fault) => format!("id {id}; the document cannot be had: {fault}"),
            Sts::Policy(id, document) => {
                format!("id {id}, mode {}, max_age {}, mx {}", document.mode, document.max_age, document.mx.join(" "))
            }
        }
    }

    fn reports_words(&self) -> String {
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
