//! The host's resolver, with its DNSSEC verdict; the only user of hickory.
//!
//! Takes: a name in its one form (`domain`), asked absolutely: no search list, no hosts file.
//! Gives: the records at the end of the CNAME chain, whether the resolver validated them (the AD bit, RFC 4035 §3.2.3),
//! and how long they hold. The AD bit is believed of a resolver that the administrator named or that is on loopback.
//! Limits: [`QUERY_TIMEOUT`] a query, retry and TCP included; [`MAX_QUERIES`] at once, the others wait for their turn;
//! [`MAX_CHAIN`] CNAMEs; [`MAX_RECORDS`] records an answer.
//! When it fails: a [`DnsError`]; what may be better next time is told apart from what is so.
//! Not here: caching (the resolver and `policy` do), what records mean.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer, RetryDnsHandle};
use hickory_resolver::net::{DnsError as Negative, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

/// The longest that one query takes, its retry and TCP included: three in a row must fit beside an HTTPS fetch
/// in nothing longer than Postfix's own patience of 100 s, one in `answer_budget`.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(4);

/// How many queries are under way at once: each has a socket of its own (a port that nobody can guess) and some 10 kB.
/// At 20 ms a query that is 50,000 a second.
pub const MAX_QUERIES: usize = 1024;

/// How many CNAMEs are followed within one answer, as resolvers do.
pub const MAX_CHAIN: usize = 16;

/// How many records of one answer are looked at: more than any honest answer has.
pub const MAX_RECORDS: usize = 256;

/// How long a negative answer without a SOA record holds (RFC 2308 §5 would not keep it at all).
const NEGATIVE_WITHOUT_SOA: Duration = Duration::from_secs(60);

/// Tries of one query by UDP after the first.
const RETRIES: usize = 1;

/// Queries that may be under way on one TCP connection.
const MAX_ACTIVE_REQUESTS: usize = 4096;

/// A way to the resolver. Copies share its connections.
#[derive(Clone)]
pub struct Resolver {
    handle: RetryDnsHandle<NameServerPool<TokioRuntimeProvider>>,
    query_permits: Arc<Semaphore>,
    server: SocketAddr,
    trusted: bool,
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

/// A TLSA record (RFC 6698 §2.1), as it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TlsaRecord {
    /// Certificate usage.
    pub usage: u8,
    /// Selector.
    pub selector: u8,
    /// Matching type.
    pub matching: u8,
    /// Certificate association data.
    pub data: Vec<u8>,
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
    Failed(String),
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

impl Resolver {
    /// The resolver that the configuration names, else the first `nameserver` on loopback in `/etc/resolv.conf`.
    /// Where that has none, its first `nameserver` serves, and is not believed about DNSSEC.
    /// Fails where `/etc/resolv.conf` cannot be read.
    pub fn new(address: Option<SocketAddr>) -> Result<Resolver, DnsError> {
        let (server, trusted) = match address {
            Some(address) => (address, true),
            None => {
                let path = "/etc/resolv.conf";
                let text = std::fs::read_to_string(path).map_err(|e| DnsError::Failed(format!("{path}: {e}")))?;
                let ip = choose_nameserver(&nameservers(&text));
                (SocketAddr::new(ip, 53), ip.is_loopback())
            }
        };
        Ok(Resolver { handle: connect(server)?, query_permits: Arc::new(Semaphore::new(MAX_QUERIES)), server, trusted })
    }

    /// Whether its AD bit is trusted; if not, no answer is ever secure.
    pub fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// Its address.
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// TXT records, the strings of each joined (RFC 8461 §3.1, RFC 8460 §3). Octets that are not UTF-8 become U+FFFD.
    pub async fn txt(&self, name: &str) -> Result<DnsAnswer<String>, DnsError> {
        self.query(name, RecordType::TXT, |data| match data {
            RData::TXT(txt) => Some(String::from_utf8_lossy(&txt.txt_data.concat()).into_owned()),
            _ => None,
        })
        .await
    }

    /// MX records: preference and host, sorted by preference. The host of a null MX (RFC 7505) is `.`.
    pub async fn mx(&self, name: &str) -> Result<DnsAnswer<(u16, String)>, DnsError> {
        let mut answer = self
            .query(name, RecordType::MX, |data| match data {
                RData::MX(mx) => Some((mx.preference, canonical_text(&mx.exchange))),
                _ => None,
            })
            .await?;
        answer.records.sort();
        answer.records.dedup();
        Ok(answer)
    }

    /// A and AAAA records. Secure if each of the two that has records is. Where one of the two fails, the other serves.
    pub async fn addresses(&self, name: &str) -> Result<DnsAnswer<IpAddr>, DnsError> {
        let address = |data: &RData| match data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        };
        let (four, six) =
            tokio::join!(self.query(name, RecordType::A, address), self.query(name, RecordType::AAAA, address));
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
        let found = self
            .query(name, RecordType::CNAME, |data| match data {
                RData::CNAME(target) => Some(canonical_text(&target.0)),
                _ => None,
            })
            .await;
        match found {
            Ok(answer) => Ok(answer.secure),
            Err(DnsError::Failed(e)) => Err(DnsError::Failed(e)),
            Err(_) => Ok(false),
        }
    }

    /// TLSA records of a TCP service at `_<port>._tcp.<base>` (RFC 6698 §3).
    pub async fn tlsa(&self, port: u16, base: &str) -> Result<DnsAnswer<TlsaRecord>, DnsError> {
        self.query(&format!("_{port}._tcp.{base}"), RecordType::TLSA, |data| match data {
            RData::TLSA(tlsa) => Some(TlsaRecord {
                usage: tlsa.cert_usage.into(),
                selector: tlsa.selector.into(),
                matching: tlsa.matching.into(),
                data: tlsa.cert_data.clone(),
            }),
            _ => None,
        })
        .await
    }

    /// Whether the resolver validates, by a query for the NS records of the root, which are signed
    /// (Postfix's `dnssec_probe` asks for the same). Whether it is to be believed is [`Resolver::is_trusted`].
    pub async fn probe_validation(&self) -> Result<bool, DnsError> {
        let found = self.query(".", RecordType::NS, |data| matches!(data, RData::NS(_)).then_some(())).await?;
        Ok(found.secure)
    }

    async fn query<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<DnsAnswer<T>, DnsError> {
        let asked = absolute_name(name)?;
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        options.edns_set_dnssec_ok = true;
        // The semaphore is never closed.
        let _permit = self.query_permits.acquire().await;
        let lookup = self.handle.lookup(Query::query(asked.clone(), kind), options).first_answer();
        match tokio::time::timeout(QUERY_TIMEOUT, lookup).await {
            Err(_) => Err(DnsError::Failed(format!("no answer within {} s", QUERY_TIMEOUT.as_secs()))),
            Ok(Err(error)) => Err(classify_error(error)),
            Ok(Ok(response)) => self.select_records(&asked, kind, response, read),
        }
    }

    /// The records that answer the question: those at the end of the CNAME chain, whatever else came along.
    fn select_records<T>(
        &self,
        asked: &Name,
        kind: RecordType,
        response: DnsResponse,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<DnsAnswer<T>, DnsError> {
        if !response.answers.is_empty() && !response.answers.iter().any(|r| r.name.eq_ignore_root(asked)) {
            // Not "there is none": nothing was said of this name.
            return Err(DnsError::Failed("the answer is about another name".into()));
        }
        let mut name = asked;
        let mut ttl = u32::MAX;
        let mut followed = 0;
        loop {
            let next = response.answers.iter().find_map(|r| match &r.data {
                RData::CNAME(target) if r.name.eq_ignore_root(name) => Some((&target.0, r.ttl)),
                _ => None,
            });
            let Some((target, its_ttl)) = next.filter(|_| kind != RecordType::CNAME) else { break };
            followed += 1;
            if followed > MAX_CHAIN {
                return Err(DnsError::Failed("the CNAMEs lead nowhere".into()));
            }
            (name, ttl) = (target, ttl.min(its_ttl));
        }
        let mut records = Vec::new();
        for record in response.answers.iter().filter(|r| r.name.eq_ignore_root(name)).take(MAX_RECORDS) {
            if let Some(value) = read(&record.data) {
                records.push(value);
                ttl = ttl.min(record.ttl);
            }
        }
        if records.is_empty() {
            let ttl = negative_ttl(response.negative_ttl());
            return Err(match response.metadata.response_code {
                ResponseCode::NXDomain => DnsError::NoSuchDomain { ttl },
                _ => DnsError::NoRecords { ttl },
            });
        }
        let secure = self.trusted && response.metadata.authentic_data;
        Ok(DnsAnswer { name: canonical_text(name), records, secure, ttl: Duration::from_secs(ttl.into()) })
    }
}

impl fmt::Display for TlsaRecord {
    /// `3 1 1 HEX`, as in a zone file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.usage, self.selector, self.matching)?;
        self.data.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

/// The first `nameserver` on loopback, else the first, else 127.0.0.1, as resolv.conf(5) has it.
fn choose_nameserver(servers: &[IpAddr]) -> IpAddr {
    let loopback = servers.iter().find(|ip| ip.is_loopback());
    loopback.or(servers.first()).copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// The `nameserver` lines of a resolv.conf(5).
pub fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    let values = lines.filter(|rest| rest.starts_with([' ', '\t']));
    values.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

fn connect(server: SocketAddr) -> Result<RetryDnsHandle<NameServerPool<TokioRuntimeProvider>>, DnsError> {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    connections.iter_mut().for_each(|c| c.port = server.port());
    let mut options = ResolverOpts::default();
    options.timeout = QUERY_TIMEOUT / u32::try_from(RETRIES + 1).unwrap_or(1);
    options.attempts = RETRIES;
    options.max_active_requests = MAX_ACTIVE_REQUESTS;
    // No TLS is spoken to the resolver; hickory wants a configuration all the same.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| DnsError::Failed(e.to_string()))?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let pool = NameServerPool::from_config(
        [NameServerConfig::new(server.ip(), true, connections)],
        Arc::new(PoolContext::new(options, TlsConfig { config })),
        TokioRuntimeProvider::default(),
    );
    Ok(RetryDnsHandle::new(pool, RETRIES))
}

fn absolute_name(name: &str) -> Result<Name, DnsError> {
    let mut name = Name::from_ascii(name).map_err(|_| DnsError::NoSuchDomain { ttl: NEGATIVE_WITHOUT_SOA })?;
    name.set_fqdn(true);
    Ok(name)
}

/// The canonical form (see `domain_name`); the root is `.`.
fn canonical_text(name: &Name) -> String {
    let text = name.to_ascii().to_ascii_lowercase();
    match text.strip_suffix('.') {
        Some("") | None => text,
        Some(name) => name.to_owned(),
    }
}

fn classify_error(error: NetError) -> DnsError {
    match error {
        NetError::Dns(Negative::NoRecordsFound(none)) => {
            let ttl = negative_ttl(none.negative_ttl);
            match none.response_code {
                ResponseCode::NXDomain => DnsError::NoSuchDomain { ttl },
                ResponseCode::NoError => DnsError::NoRecords { ttl },
                code => DnsError::Failed(format!("the resolver answered {code}")),
            }
        }
        NetError::Dns(Negative::ResponseCode(ResponseCode::ServFail)) => {
            DnsError::Failed("the resolver answered SERVFAIL (DNSSEC validation, or its servers, failed)".into())
        }
        NetError::Dns(Negative::ResponseCode(code)) => DnsError::Failed(format!("the resolver answered {code}")),
        NetError::Timeout => DnsError::Failed("no answer in time".into()),
        other => DnsError::Failed(other.to_string()),
    }
}

fn negative_ttl(ttl: Option<u32>) -> Duration {
    ttl.map_or(NEGATIVE_WITHOUT_SOA, |s| Duration::from_secs(s.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_resolver_is_preferred() {
        let ip = |text| choose_nameserver(&nameservers(text)).to_string();
        assert_eq!(ip("nameserver 192.0.2.1\nnameserver 127.0.0.1\n"), "127.0.0.1");
        assert_eq!(ip("# nameserver 127.0.0.1\nnameserver\t192.0.2.1 # x\n"), "192.0.2.1");
        assert_eq!(ip("nameserver 192.0.2.1\nnameserver ::1"), "::1");
        assert_eq!(ip("search example.com\nnameservers 192.0.2.1\n"), "127.0.0.1");
    }

    #[test]
    fn records_print_as_in_a_zone_file() {
        let tlsa = TlsaRecord { usage: 3, selector: 1, matching: 1, data: vec![0, 0xab] };
        assert_eq!(tlsa.to_string(), "3 1 1 00ab");
    }

    #[test]
    fn names_have_one_form() {
        assert_eq!(canonical_text(&absolute_name("MX.Example.COM").unwrap()), "mx.example.com");
        assert_eq!(canonical_text(&Name::root()), ".");
    }
}
