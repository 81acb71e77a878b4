//! The policy hosts: one HTTPS listener that serves every domain's MTA-STS document.
//!
//! Takes: a site per domain, changeable while it runs. Gives: `/.well-known/mta-sts.txt` of `mta-sts.DOMAIN`, chosen by
//! SNI and `Host`, with a fault where one is set; how often each was asked.
//! Limits: HTTP/1.1, one request a connection, a head of `MAX_HEAD` octets.
//! When it fails: a name that is not served gets no certificate, and so no connection.
//! Not here: what a document means.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::ca::{self, Identity};

/// The longest request head that is read, in octets.
const MAX_HEAD: usize = 16 * 1024;

/// What a policy host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200 with `text/plain` and this body.
    Document(String),
    /// 200 with another media type.
    MediaType(String, String),
    /// A status and an empty body.
    Status(u16),
    /// 301 to this place.
    Redirect(String),
    /// 200 with so many octets, sent without a length.
    Flood(usize),
    /// The request is read and never answered.
    Hang,
    /// The connection is closed without an answer.
    Close,
    /// These octets as they are, and the end.
    Raw(Vec<u8>),
    /// `head`, and then `part` again and again without an end, this long apart.
    Endless {
        /// Sent once.
        head: String,
        /// Sent again and again.
        part: String,
        /// Between two parts.
        pause: Duration,
    },
}

/// One policy host.
#[derive(Clone, Debug)]
pub struct Site {
    /// What it presents.
    pub identity: Identity,
    /// What it does.
    pub answer: Answer,
}

#[derive(Debug, Default)]
struct Sites {
    /// By host name, `mta-sts.DOMAIN`.
    sites: Mutex<BTreeMap<String, Site>>,
    requests: Mutex<BTreeMap<String, u64>>,
    hellos: Mutex<BTreeMap<String, u64>>,
}

/// A running listener. It stops when it is dropped.
#[derive(Debug)]
pub struct PolicyHosts {
    address: SocketAddr,
    sites: Arc<Sites>,
    _tasks: JoinSet<()>,
}

impl PolicyHosts {
    /// Serves nothing yet on `address`; port 0 takes a free one.
    pub async fn start(address: SocketAddr) -> io::Result<PolicyHosts> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let sites = Arc::new(Sites::default());
        let config = ca::server_config().map_err(io::Error::other)?.with_cert_resolver(sites.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), sites.clone()));
        Ok(PolicyHosts { address, sites, _tasks: tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets what the policy host of a domain presents and does.
    pub fn set(&self, domain: &str, site: Site) {
        lock(&self.sites.sites).insert(format!("mta-sts.{domain}"), site);
    }

    /// Changes what it does, and keeps the certificate.
    pub fn answer(&self, domain: &str, answer: Answer) {
        if let Some(site) = lock(&self.sites.sites).get_mut(&format!("mta-sts.{domain}")) {
            site.answer = answer;
        }
    }

    /// How many requests for the document of a domain came in whole.
    pub fn requests(&self, domain: &str) -> u64 {
        lock(&self.sites.requests).get(&format!("mta-sts.{domain}")).copied().unwrap_or(0)
    }

    /// How many TLS handshakes were begun for a domain's policy host.
    pub fn handshakes(&self, domain: &str) -> u64 {
        lock(&self.sites.hellos).get(&format!("mta-sts.{domain}")).copied().unwrap_or(0)
    }
}

impl ResolvesServerCert for Sites {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name()?.to_ascii_lowercase();
        let key = lock(&self.sites).get(&host).map(|site| site.identity.certified_key())?;
        *lock(&self.hellos).entry(host).or_default() += 1;
        Some(key)
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, sites: Arc<Sites>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            let (acceptor, sites) = (acceptor.clone(), sites.clone());
            // What a client breaks off is its own affair.
            connections.spawn(async move {
                let _ = connection(stream, acceptor, sites).await;
            });
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, sites: Arc<Sites>) -> io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Ok(());
        }
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let host = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(field, _)| field.eq_ignore_ascii_case("host"))
        .map(|(_, value)| value.trim().split(':').next().unwrap_or_default().to_ascii_lowercase())
        .unwrap_or_default();
    let is_document = head.starts_with("GET /.well-known/mta-sts.txt HTTP/1.");
    let answer = lock(&sites.sites).get(&host).map(|site| site.answer.clone()).filter(|_| is_document);
    if answer.is_some() {
        *lock(&sites.requests).entry(host).or_default() += 1;
    }
    let response = match answer {
        None => head_of(404, "text/plain", Some(0), ""),
        Some(Answer::Document(body)) => head_of(200, "text/plain", Some(body.len()), "") + &body,
        Some(Answer::MediaType(kind, body)) => head_of(200, &kind, Some(body.len()), "") + &body,
        Some(Answer::Status(status)) => head_of(status, "text/plain", Some(0), ""),
        Some(Answer::Redirect(to)) => head_of(301, "text/plain", Some(0), &format!("Location: {to}\r\n")),
        Some(Answer::Flood(octets)) => {
            head_of(200, "text/plain", None, "") + &"version: STSv1\n".repeat(octets / 15 + 1)
        }
        Some(Answer::Hang) => std::future::pending().await,
        Some(Answer::Close) => return Ok(()),
        Some(Answer::Raw(octets)) => {
            stream.write_all(&octets).await?;
            return stream.shutdown().await;
        }
        Some(Answer::Endless { head, part, pause }) => {
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(part.as_bytes()).await?;
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// A response's head, with the length where one is told.
fn head_of(status: u16, media_type: &str, length: Option<usize>, more: &str) -> String {
    let length = length.map(|n| format!("Content-Length: {n}\r\n")).unwrap_or_default();
    format!("HTTP/1.1 {status} Closed World\r\nContent-Type: {media_type}\r\n{length}{more}Connection: close\r\n\r\n")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::{Authority, Fault, client_config};
    use rustls::pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    async fn get(hosts: &PolicyHosts, authority: &Authority, host: &str, path: &str) -> io::Result<String> {
        let connector = TlsConnector::from(client_config(authority).unwrap());
        let stream = TcpStream::connect(hosts.address()).await?;
        let mut stream = connector.connect(ServerName::try_from(host.to_owned()).unwrap(), stream).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        Ok(response)
    }

    const PATH: &str = "/.well-known/mta-sts.txt";

    #[tokio::test]
    async fn each_domain_has_its_own_document_and_faults() {
        let authority = Authority::generate().unwrap();
        let hosts = PolicyHosts::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        for domain in ["a.test", "b.test"] {
            let identity = authority.certify(&format!("mta-sts.{domain}"), None).unwrap();
            hosts.set(domain, Site { identity, answer: Answer::Document(format!("mx: mx.{domain}\n")) });
        }
        let a = get(&hosts, &authority, "mta-sts.a.test", PATH).await.unwrap();
        assert!(a.starts_with("HTTP/1.1 200 ") && a.ends_with("\r\n\r\nmx: mx.a.test\n"), "{a}");
        assert!(get(&hosts, &authority, "mta-sts.b.test", PATH).await.unwrap().ends_with("mx: mx.b.test\n"));
        assert!(get(&hosts, &authority, "mta-sts.a.test", "/").await.unwrap().starts_with("HTTP/1.1 404 "));
        assert!(get(&hosts, &authority, "mta-sts.absent.test", PATH).await.is_err());
        hosts.answer("a.test", Answer::Redirect("https://mta-sts.b.test/".into()));
        assert!(get(&hosts, &authority, "mta-sts.a.test", PATH).await.unwrap().contains("Location: https://mta-sts.b"));
        hosts.answer("a.test", Answer::Flood(70_000));
        assert!(get(&hosts, &authority, "mta-sts.a.test", PATH).await.unwrap().len() > 70_000);
        hosts.answer("a.test", Answer::Hang);
        let hung = tokio::time::timeout(Duration::from_millis(200), get(&hosts, &authority, "mta-sts.a.test", PATH));
        assert!(hung.await.is_err());
        assert_eq!((hosts.requests("a.test"), hosts.requests("b.test")), (4, 1));
    }

    #[tokio::test]
    async fn a_bad_certificate_is_presented() {
        let authority = Authority::generate().unwrap();
        let hosts = PolicyHosts::start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let identity = authority.certify("mta-sts.a.test", Some(Fault::Expired)).unwrap();
        hosts.set("a.test", Site { identity, answer: Answer::Document(String::new()) });
        assert!(get(&hosts, &authority, "mta-sts.a.test", PATH).await.is_err());
        assert_eq!((hosts.handshakes("a.test"), hosts.requests("a.test")), (1, 0));
    }
}
