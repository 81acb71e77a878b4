//! The host's resolver, with its DNSSEC verdict.
//!
//! Takes: a name in its canonical form (`base::domain_name`), asked absolutely: no search list, no hosts file.
//! Gives: the records at the end of the CNAME chain, whether the resolver validated them (the AD bit, RFC 4035 §3.2.3),
//! and how long they hold. The AD bit is believed of a resolver that the administrator named or that is on loopback.
//! An answer that such a resolver gave only to a query without EDNS, and did not validate, is not known where the verdict
//! counts: it must not lower one.
//! Limits: [`QUERY_TIMEOUT`] a query, retries, TCP and CNAMEs included; so many at once as `query_slots` allows, the
//! others wait for their turn; [`MAX_CHAIN`] CNAMEs; [`MAX_RECORDS`] records an answer.
//! When it fails: a [`DnsError`]; what may be better next time is told apart from what is so.
//! Not here: caching (the resolver and `policy` do), what records mean.

mod alias_chain;
mod exchange;
mod health;
pub mod message;
mod query_slots;
mod resolv_conf;
mod resolver_status;
mod servers;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use alias_chain::{AliasChain, ChainEnd, ChainStep};
pub use alias_chain::{MAX_CHAIN, MAX_RECORDS};
use health::ResolverHealth;
pub use health::ResolverProbe;
pub use message::TlsaRecord;
use message::{Question, RecordData, RecordKind};
use query_slots::{LookupShare, QuerySlots};
pub use resolv_conf::nameservers;
use resolv_conf::{Nameservers, ResolvConf};
use resolver_status::placement_warning;
pub use resolver_status::{NOT_BELIEVED, ResolverStatus};
use servers::{ExtendedError, QueryFailure, Servers};

use crate::base::requester::Requester;

/// The longest that one query takes, its retries, TCP and CNAMEs included: three in a row must fit beside an HTTPS fetch
/// in nothing longer than Postfix's own patience of 100 s, one in `answer_budget`.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(4);

/// How long an answer without validation is waited for: a resolver that found DNSSEC broken has the records at hand.
const UNVALIDATED_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a negative answer without a SOA record holds (RFC 2308 §5 would not keep it at all).
const NEGATIVE_WITHOUT_SOA: Duration = Duration::from_secs(60);

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// How many failed queries of one explanation are noted.
const MAX_NOTED_FAILURES: usize = 16;

/// A way to the resolver. Copies share its memory and its limits.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<SharedResolver>,
    /// The queries of this copy that failed, if somebody wants to know.
    noted: Option<Arc<Mutex<Vec<FailedQuery>>>>,
    /// Of the look-up that the queries of this copy are for; none: each query is one.
    share: Option<Arc<LookupShare>>,
    /// Who they are made for.
    requester: Requester,
}

struct SharedResolver {
    current: RwLock<Arc<ServerSet>>,
    /// Where the servers are from, unless the configuration names one.
    resolv_conf: Option<ResolvConf>,
    slots: QuerySlots,
    health: ResolverHealth,
}

/// The servers that are asked, until resolv.conf names others.
struct ServerSet {
    servers: Servers,
    named: Nameservers,
}

/// A query that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedQuery {
    /// What was asked: `TLSA of _25._tcp.mx.example.com`.
    pub query: String,
    /// Why it failed; names the resolver.
    pub cause: String,
    /// A command that repeats it.
    pub command: String,
}

/// The records found for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsAnswer<T> {
    /// The name that the records are at, after its CNAMEs.
    pub name: String,
    /// The records, in the order of the answer.
    pub records: Vec<T>,
    /// Whether the resolver validated all of it, CNAMEs included.
    pub secure: bool,
    /// How long it holds: the shortest of all records.
    pub ttl: Duration,
}

/// Why there are no records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DnsError {
    /// NXDOMAIN.
    #[error("no such domain")]
    NoSuchDomain {
        /// How long that holds (RFC 2308 §5).
        ttl: Duration,
    },
    /// The name is there, the type is not (NODATA).
    #[error("no such records")]
    NoRecords {
        /// How long that holds (RFC 2308 §5).
        ttl: Duration,
    },
    /// It may be otherwise next time: SERVFAIL (bogus included), refused, no answer in time.
    #[error("{0}")]
    Failed(DnsFailure),
}

/// Why a query failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsFailure {
    cause: String,
    local: bool,
    servfail: Option<ExtendedError>,
    dnssec: Option<DnssecFailure>,
}

/// DNSSEC failed at a name: the resolver answers, as soon as it is not to validate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnssecFailure {
    /// The extended error that the resolver gave (RFC 8914).
    pub extended_error: Option<u16>,
}

impl DnssecFailure {
    /// The reason code of a report (RFC 8460 §4.4): the extended error by number and name (RFC 8914 §4), as mox writes it.
    pub fn reason_code(self) -> String {
        match self.extended_error {
            Some(code) => extended_error_code(code),
            None => "dnssec-bogus".to_owned(),
        }
    }
}

impl DnsError {
    /// How long "there is nothing" holds; nothing where that is not what was said.
    pub fn negative_ttl(&self) -> Option<Duration> {
        match self {
            DnsError::NoSuchDomain { ttl } | DnsError::NoRecords { ttl } => Some(*ttl),
            DnsError::Failed(_) => None,
        }
    }
}

impl DnsFailure {
    /// Whether it is this host that could not ask: no descriptors, no route.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// What is wrong with the DNSSEC of the name, if that is why. Known of queries only whose verdict counts.
    pub fn dnssec(&self) -> Option<DnssecFailure> {
        self.dnssec
    }
}

impl fmt::Display for DnsFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl From<String> for DnsFailure {
    fn from(cause: String) -> DnsFailure {
        DnsFailure { cause, local: false, servfail: None, dnssec: None }
    }
}

impl From<&str> for DnsFailure {
    fn from(cause: &str) -> DnsFailure {
        cause.to_owned().into()
    }
}

impl From<QueryFailure> for DnsFailure {
    fn from(failure: QueryFailure) -> DnsFailure {
        DnsFailure { cause: failure.cause, local: failure.local, servfail: failure.servfail, dnssec: None }
    }
}

impl Resolver {
    /// The resolver that the configuration names, else the first `nameserver` on loopback in `/etc/resolv.conf`.
    /// Where that has none, all its nameservers serve, and are not believed about DNSSEC. The file is read again when it
    /// changes.
    /// Fails where `/etc/resolv.conf` is there and cannot be read.
    pub fn new(address: Option<SocketAddr>) -> Result<Resolver, DnsError> {
        if let Some(address) = address {
            return Ok(Resolver::with_servers([address], true));
        }
        let path = Path::new(RESOLV_CONF);
        let failed = |error| DnsError::Failed(format!("{}: {error}", path.display()).into());
        let (file, named) = ResolvConf::open(path).map_err(failed)?;
        Ok(Resolver::asking(named, Some(file)))
    }

    /// These servers, in the order in which they are asked. `trusted`: their AD bit is believed.
    pub(crate) fn with_servers(servers: impl IntoIterator<Item = SocketAddr>, trusted: bool) -> Resolver {
        Resolver::asking(Nameservers { addresses: servers.into_iter().collect(), trusted }, None)
    }

    fn asking(named: Nameservers, resolv_conf: Option<ResolvConf>) -> Resolver {
        let current = RwLock::new(Arc::new(ServerSet::new(named)));
        let shared =
            SharedResolver { current, resolv_conf, slots: QuerySlots::new(), health: ResolverHealth::default() };
        Resolver { shared: Arc::new(shared), noted: None, share: None, requester: Requester::Daemon }
    }

    /// The servers to ask now.
    fn server_set(&self) -> Arc<ServerSet> {
        let shared = &self.shared;
        let named = shared.resolv_conf.as_ref().and_then(|file| file.read_again(Instant::now()));
        let current = Arc::clone(&shared.current.read());
        match named {
            Some(named) if named != current.named => {
                let changed = Arc::new(ServerSet::new(named));
                *shared.current.write() = Arc::clone(&changed);
                // What the others did says nothing of these.
                shared.health.forget();
                let resolver = join_addresses(changed.servers.addresses());
                tracing::info!(resolver, "resolver: the nameservers in {RESOLV_CONF} have changed");
                changed
            }
            Some(_) | None => current,
        }
    }

    /// Whether its AD bit is trusted; if not, no answer is ever secure.
    pub fn is_trusted(&self) -> bool {
        self.server_set().named.trusted
    }

    /// The addresses of its servers, in the order in which they are asked.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.server_set().servers.addresses().collect()
    }

    /// The addresses of its servers, for people.
    pub fn server_names(&self) -> String {
        join_addresses(self.servers().into_iter())
    }

    /// The same resolver for the queries of one look-up, which share its part of the queries under way.
    pub fn for_one_lookup(&self) -> Resolver {
        Resolver { share: Some(LookupShare::new(self.requester)), ..self.clone() }
    }

    /// The same resolver for the queries that are made for somebody, who may have a part of all queries under way.
    pub fn for_requester(&self, requester: Requester) -> Resolver {
        Resolver { requester, ..self.clone() }
    }

    /// The same resolver, which notes the queries of this copy that fail.
    pub fn noting_failures(&self) -> Resolver {
        Resolver { noted: Some(Arc::default()), ..self.clone() }
    }

    /// The queries of this copy that failed, if it notes them.
    pub fn failed_queries(&self) -> Vec<FailedQuery> {
        self.noted.as_ref().map_or_else(Vec::new, |noted| noted.lock().clone())
    }

    /// Why nothing can be asked, if every query has failed for some time, the root's among them.
    pub fn outage(&self) -> Option<String> {
        self.shared.health.outage()
    }

    /// Whether the last query failed.
    pub fn is_failing(&self) -> bool {
        self.shared.health.is_failing()
    }

    /// Waits until a query fails.
    pub async fn query_failure(&self) {
        self.shared.health.failed_query.notified().await;
    }

    /// How many queries there were, and how many of them failed.
    pub fn query_counts(&self) -> (u64, u64) {
        self.shared.health.counts()
    }

    /// How it stands, as the last probe showed.
    pub fn status(&self) -> ResolverStatus {
        let current = self.server_set();
        let (health, trusted) = (&self.shared.health, current.named.trusted);
        let probe = health.probe();
        let ago = |at: Instant| at.elapsed().as_secs();
        let mut warnings = current.servers.addresses().filter(|_| trusted).filter_map(placement_warning);
        ResolverStatus {
            servers: current.servers.addresses().collect(),
            trusted,
            probed_seconds_ago: probe.as_ref().map(|probe| ago(probe.asked)),
            answered_seconds_ago: health.last_answer().map(ago),
            validates: trusted && probe.as_ref().is_some_and(|probe| probe.validates),
            edns: probe.as_ref().is_some_and(|probe| probe.edns),
            refuses_bogus: probe.as_ref().and_then(|probe| probe.refuses_bogus),
            failure: probe.and_then(|probe| probe.failure),
            warning: warnings.next().map(str::to_owned),
        }
    }

    /// Whether it is believed and validates, as the last probe showed; it is asked now if it never was. One that does not
    /// answer is not known to validate nothing.
    pub async fn validates(&self) -> bool {
        let probe = match self.shared.health.probe() {
            Some(probe) => probe,
            None => self.probe("").await,
        };
        self.is_trusted() && (probe.validates || probe.failure.is_some())
    }

    /// TXT records, the strings of each joined (RFC 8461 §3.1, RFC 8460 §3). Octets that are not UTF-8 become U+FFFD.
    pub async fn txt(&self, name: &str) -> Result<DnsAnswer<String>, DnsError> {
        self.query(name, RecordKind::Txt, VerdictUse::Ignored, |data| match data {
            RecordData::Text(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            _ => None,
        })
        .await
    }

    /// MX records: preference and host, sorted by preference. The host of a null MX (RFC 7505) is `.`.
    pub async fn mx(&self, name: &str) -> Result<DnsAnswer<(u16, String)>, DnsError> {
        let mut answer = self
            .query(name, RecordKind::Mx, VerdictUse::Counts, |data| match data {
                RecordData::Exchange(preference, host) => Some((preference, host)),
                _ => None,
            })
            .await?;
        answer.records.sort();
        answer.records.dedup();
        Ok(answer)
    }

    /// A and AAAA records. Secure if each of the two that has records is. Where one of the two fails, the other serves.
    pub async fn addresses(&self, name: &str) -> Result<DnsAnswer<IpAddr>, DnsError> {
        self.both_addresses(name, VerdictUse::Counts).await
    }

    /// The same, to connect to: whether they are signed does not count.
    pub async fn addresses_to_connect(&self, name: &str) -> Result<DnsAnswer<IpAddr>, DnsError> {
        self.both_addresses(name, VerdictUse::Ignored).await
    }

    async fn both_addresses(&self, name: &str, verdict: VerdictUse) -> Result<DnsAnswer<IpAddr>, DnsError> {
        let address = |data| match data {
            RecordData::Address(ip) => Some(ip),
            _ => None,
        };
        let (four, six) = tokio::join!(
            self.query(name, RecordKind::A, verdict, address),
            self.query(name, RecordKind::Aaaa, verdict, address)
        );
        match (four, six) {
            (Ok(mut four), Ok(six)) => {
                four.records.extend(six.records);
                four.secure &= six.secure && four.name == six.name;
                four.ttl = four.ttl.min(six.ttl);
                Ok(four)
            }
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            (Err(e @ DnsError::Failed(_)), _) | (_, Err(e @ DnsError::Failed(_))) => Err(e),
            (Err(DnsError::NoSuchDomain { ttl }), Err(_)) => Err(DnsError::NoSuchDomain { ttl }),
            (Err(e), Err(_)) => Err(e),
        }
    }

    /// Whether the name itself is an alias whose CNAME record is validated, wherever that leads (RFC 7672 §2.2.2).
    pub async fn is_alias_secure(&self, name: &str) -> Result<bool, DnsError> {
        let alias = |data| matches!(data, RecordData::Alias(_)).then_some(());
        match self.query(name, RecordKind::Cname, VerdictUse::Counts, alias).await {
            Ok(answer) => Ok(answer.secure),
            Err(DnsError::Failed(e)) => Err(DnsError::Failed(e)),
            Err(_) => Ok(false),
        }
    }

    /// TLSA records of a TCP service at `_<port>._tcp.<base>` (RFC 6698 §3).
    pub async fn tlsa(&self, port: u16, base: &str) -> Result<DnsAnswer<TlsaRecord>, DnsError> {
        self.query(&format!("_{port}._tcp.{base}"), RecordKind::Tlsa, VerdictUse::Counts, |data| match data {
            RecordData::Tlsa(tlsa) => Some(tlsa),
            _ => None,
        })
        .await
    }

    /// Asks for the NS records of the root, which are signed (Postfix's `dnssec_probe` asks for the same), and for the
    /// addresses of `bogus`, whose signatures are broken on purpose, unless that is empty; remembers what was said.
    pub async fn probe(&self, bogus: &str) -> ResolverProbe {
        let asked = Instant::now();
        let root = Question { name: ".".into(), kind: RecordKind::Ns, checking_disabled: false };
        let found = self.resolve(&self.server_set(), root, VerdictUse::Ignored).await;
        let refuses_bogus = match &found {
            Ok((chain, _)) if chain.authentic && !bogus.is_empty() => match self.addresses_to_connect(bogus).await {
                Ok(_) => Some(false),
                Err(DnsError::Failed(_)) => Some(true),
                Err(DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. }) => None,
            },
            _ => None,
        };
        let probe = ResolverProbe {
            asked,
            validates: found.as_ref().is_ok_and(|(chain, _)| chain.authentic),
            edns: found.as_ref().is_ok_and(|(chain, _)| chain.with_edns),
            refuses_bogus,
            failure: found.err().map(|failure| failure.to_string()),
        };
        self.shared.health.set_probe(probe.clone());
        probe
    }

    async fn query<T>(
        &self,
        name: &str,
        kind: RecordKind,
        verdict: VerdictUse,
        read: impl Fn(RecordData) -> Option<T>,
    ) -> Result<DnsAnswer<T>, DnsError> {
        let Some(question) = Question::new(name, kind) else {
            return Err(DnsError::NoSuchDomain { ttl: NEGATIVE_WITHOUT_SOA });
        };
        let asked = self.server_set();
        let found = self.resolve(&asked, question.clone(), verdict).await.and_then(|(chain, end)| {
            if verdict == VerdictUse::Counts && asked.named.trusted && !chain.with_edns {
                let cause = format!(
                    "the resolver {} answers queries without EDNS only, so that DNSSEC is not known",
                    join_addresses(asked.servers.addresses())
                );
                return Err(cause.into());
            }
            Ok((chain, end))
        });
        let failure = found.as_ref().err().map(ToString::to_string);
        let records = match &found {
            Ok((_, ChainEnd::Records(records))) => records.len(),
            Ok((_, ChainEnd::NoRecords { .. })) | Err(_) => 0,
        };
        tracing::debug!(name, ?kind, records, failure, "DNS answered");
        let (chain, end) = match found {
            Ok(found) => found,
            Err(failure) => {
                self.note_failed_query(&question, &failure);
                return Err(DnsError::Failed(failure));
            }
        };
        let negative_ttl = |ttl: Option<u32>| ttl.map_or(NEGATIVE_WITHOUT_SOA, |s| Duration::from_secs(s.into()));
        let records = match end {
            ChainEnd::Records(records) => records.into_iter().filter_map(read).collect(),
            ChainEnd::NoRecords { ttl, no_such_domain: true } => {
                return Err(DnsError::NoSuchDomain { ttl: negative_ttl(ttl) });
            }
            ChainEnd::NoRecords { ttl, .. } => return Err(DnsError::NoRecords { ttl: negative_ttl(ttl) }),
        };
        let secure = asked.named.trusted && chain.authentic;
        let ttl = Duration::from_secs(chain.ttl.into());
        Ok(DnsAnswer { name: chain.question.name, records, secure, ttl })
    }

    /// Asks, and asks on for the targets of aliases that came alone. If that fails and the verdict counts, finds out whether
    /// DNSSEC is why, within the same limits.
    async fn resolve(
        &self,
        asked: &ServerSet,
        question: Question,
        verdict: VerdictUse,
    ) -> Result<(AliasChain, ChainEnd), DnsFailure> {
        let root = question.name == ".";
        let shared = &self.shared;
        let share = self.share.clone().unwrap_or_else(|| LookupShare::new(self.requester));
        let _slot = shared.slots.acquire(&share).await;
        let deadline = Instant::now() + QUERY_TIMEOUT;
        let mut chain = AliasChain::new(question);
        loop {
            let answer = match asked.servers.ask(&chain.question, deadline).await {
                Ok(answer) => answer,
                Err(failure) => {
                    shared.health.note_failure(&failure, root);
                    let mut failure = DnsFailure::from(failure);
                    if verdict == VerdictUse::Counts {
                        failure.dnssec = self.find_dnssec_failure(asked, &chain.question, &failure, deadline).await;
                    }
                    return Err(failure);
                }
            };
            shared.health.note_answer();
            match chain.follow(&answer)? {
                ChainStep::AskNext => {}
                ChainStep::End(end) => return Ok((chain, end)),
            }
        }
    }

    /// Whether DNSSEC is why a query failed: then the resolver answers the same query with the CD bit. One that does not
    /// validate even the root is at fault itself.
    async fn find_dnssec_failure(
        &self,
        asked: &ServerSet,
        question: &Question,
        failure: &DnsFailure,
        deadline: Instant,
    ) -> Option<DnssecFailure> {
        let extended_error = failure.servfail?;
        if !asked.named.trusted || self.shared.health.probe().is_some_and(|probe| !probe.validates) {
            return None;
        }
        let deadline = deadline.min(Instant::now() + UNVALIDATED_TIMEOUT);
        let found = asked.servers.ask(&question.without_validation(), deadline).await;
        found.is_ok().then_some(DnssecFailure { extended_error })
    }

    fn note_failed_query(&self, question: &Question, failure: &DnsFailure) {
        let Some(noted) = &self.noted else { return };
        let mut noted = noted.lock();
        let failed = FailedQuery {
            query: format!("{} of {}", question.kind, question.name),
            cause: failure.to_string(),
            command: self.dig_command(question),
        };
        if noted.len() < MAX_NOTED_FAILURES && !noted.contains(&failed) {
            noted.push(failed);
        }
    }

    /// A command of BIND's dig(1) that asks the first server the same.
    fn dig_command(&self, question: &Question) -> String {
        let server = self.servers().into_iter().next();
        let at = server.map_or_else(String::new, |server| match server.port() {
            53 => format!("@{} ", server.ip()),
            port => format!("@{} -p {port} ", server.ip()),
        });
        let name = question.name.trim_end_matches('.');
        format!("dig {at}+dnssec {name}. {}", question.kind)
    }
}

/// `extended-dns-error-7-signature-expired`: the names that IANA has registered.
fn extended_error_code(code: u16) -> String {
    const NAMES: [&str; 31] = [
        "other",
        "unsupported-dnskey-algorithm",
        "unsupported-ds-digest-type",
        "stale-answer",
        "forged-answer",
        "dnssec-indeterminate",
        "dnssec-bogus",
        "signature-expired",
        "signature-not-yet-valid",
        "dnskey-missing",
        "rrsigs-missing",
        "no-zone-key-bit-set",
        "nsec-missing",
        "cached-error",
        "not-ready",
        "blocked",
        "censored",
        "filtered",
        "prohibited",
        "stale-nxdomain-answer",
        "not-authoritative",
        "not-supported",
        "no-reachable-authority",
        "network-error",
        "invalid-data",
        "signature-expired-before-valid",
        "too-early",
        "unsupported-nsec3-iterations-value",
        "unable-to-conform-to-policy",
        "synthesized",
        "invalid-query-type",
    ];
    match NAMES.get(usize::from(code)) {
        Some(name) => format!("extended-dns-error-{code}-{name}"),
        None => format!("extended-dns-error-{code}"),
    }
}

/// Whether it counts that an answer is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VerdictUse {
    Counts,
    Ignored,
}

impl ServerSet {
    fn new(named: Nameservers) -> ServerSet {
        ServerSet { servers: Servers::new(named.addresses.iter().copied()), named }
    }
}

fn join_addresses(servers: impl Iterator<Item = SocketAddr>) -> String {
    servers.map(|server| server.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
