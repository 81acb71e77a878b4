//! One HTTPS client: GET and POST without redirects, capped in time and size; the only user of reqwest.
//!
//! Takes: a host name and a path, or a URI and a body. Gives: the status, and of a GET the media type and the body.
//! The server must show a certificate for the host name that leads to a root of the platform (or the extra one of a
//! closed network), TLS 1.2 or later; only a client for reports may be told to go on without. It is reached at the addresses that `dns` finds; private, loopback and
//! link-local ones are left out unless the configuration allows them.
//! Limits: the caller's time and size; 15 s to connect.
//! When it fails: an [`HttpsError`], by fault.
//! Not here: what a body means.

use std::convert::Infallible;
use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;
use tokio::sync::oneshot;

use crate::base::network::{HttpsCertificates, NetworkExceptions};
use crate::net::dns::{DnsError, Resolver};

/// The longest that connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The size of the parts that a body is sent in, in bytes.
const BODY_CHUNK: usize = 16 * 1024;

/// A client. Copies share it.
#[derive(Clone)]
pub struct HttpsClient(Arc<ClientInner>);

struct ClientInner {
    resolver: Resolver,
    closed: NetworkExceptions,
    fixed_address: Option<SocketAddr>,
    certificates: HttpsCertificates,
    /// Empty until the root certificates have been loaded.
    client: OnceLock<reqwest::Client>,
}

/// The response of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsResponse {
    /// The status code.
    pub status: u16,
    /// The media type in lower case, its parameters left out; empty where none is named.
    pub media_type: String,
    /// The charset that the media type names, in lower case; empty where it names none.
    pub charset: String,
    /// The `Content-Encoding`, in lower case; empty where there is none.
    pub content_encoding: String,
    /// The body, as sent.
    pub body: Vec<u8>,
}

/// The response of a server to a POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostReply {
    /// The status code.
    pub status: u16,
    /// After how many seconds the server wants to be asked again.
    pub retry_after: Option<i64>,
}

/// Why there is no response, by fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpsError {
    /// The host has no address.
    #[error("no address: {0}")]
    NoAddress(String),
    /// All its addresses are of networks that a stranger must not send us to.
    #[error("no address: {0} is not a public address")]
    PrivateAddress(IpAddr),
    /// No connection, or it broke, or what came was no HTTP.
    #[error("{0}")]
    Connection(String),
    /// The certificate did not pass.
    #[error("certificate: {0}")]
    Certificate(CertificateFault),
    /// Not done in time.
    #[error("not done within {} s", .0.as_secs())]
    Timeout(Duration),
    /// This host's own fault: no root certificate was loaded, so that no server can be authenticated.
    #[error("no root certificates on this host")]
    NoRootCertificates,
    /// The body is larger than the caller takes.
    #[error("larger than {0} octets")]
    TooLarge(usize),
}

/// Why a POST has no status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// No byte of a reply came.
    #[error(transparent)]
    NoReply(#[from] HttpsError),
    /// What came as a reply is not HTTP that can be understood.
    #[error("reply not understood: {0}")]
    BadReply(String),
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Its time is over, or has not begun.
    #[error("expired or not yet valid")]
    Expired,
    /// It is for another name.
    #[error("not for this host name")]
    Name,
    /// It leads to no trusted root, or is broken.
    #[error("not trusted")]
    Trust,
}

impl HttpsClient {
    /// A client. Fails where no root certificate can be loaded (the package ca-certificates) or the extra root is none.
    pub fn new(resolver: Resolver, closed: &NetworkExceptions) -> Result<HttpsClient, String> {
        let client = HttpsClient::unloaded(resolver, closed);
        client.load().map(|()| client)
    }

    /// A client for the receivers of reports; what it does about their certificates. Fails as [`HttpsClient::new`] does.
    pub fn for_reports(
        resolver: Resolver,
        closed: &NetworkExceptions,
        certificates: HttpsCertificates,
    ) -> Result<HttpsClient, String> {
        let client = HttpsClient::unloaded_for_reports(resolver, closed, certificates);
        client.load().map(|()| client)
    }

    /// A client that fails every request with [`HttpsError::NoRootCertificates`] until [`HttpsClient::load`] succeeds.
    pub fn unloaded(resolver: Resolver, closed: &NetworkExceptions) -> HttpsClient {
        HttpsClient::with_settings(resolver, closed, closed.policy_hosts, HttpsCertificates::Check)
    }

    /// The same for the receivers of reports.
    pub fn unloaded_for_reports(
        resolver: Resolver,
        closed: &NetworkExceptions,
        certificates: HttpsCertificates,
    ) -> HttpsClient {
        HttpsClient::with_settings(resolver, closed, None, certificates)
    }

    fn with_settings(
        resolver: Resolver,
        closed: &NetworkExceptions,
        fixed_address: Option<SocketAddr>,
        certificates: HttpsCertificates,
    ) -> HttpsClient {
        let (closed, client) = (closed.clone(), OnceLock::new());
        HttpsClient(Arc::new(ClientInner { resolver, closed, fixed_address, certificates, client }))
    }

    /// Loads the root certificates, unless they have been loaded before. Blocks while it reads files.
    pub fn load(&self) -> Result<(), String> {
        if self.0.client.get().is_none() {
            let client = self.0.build()?;
            // Another call may have loaded them meanwhile: either client will do.
            let _ = self.0.client.set(client);
        }
        Ok(())
    }

    fn client(&self) -> Result<&reqwest::Client, HttpsError> {
        self.0.client.get().ok_or(HttpsError::NoRootCertificates)
    }

    /// Asks for `https://HOST/PATH` (the path without its first slash) and reads the body of any status.
    pub async fn get(&self, host: &str, path: &str, time: Duration, size: usize) -> Result<HttpsResponse, HttpsError> {
        // `timeout` of reqwest covers the body too; ours is around all of it, the resolver included.
        tokio::time::timeout(time, self.send_get(host, path, size)).await.unwrap_or(Err(HttpsError::Timeout(time)))
    }

    /// Posts to a URI and gives the status; no body of an answer is read. `intent` is awaited once the connection waits for
    /// the body, before its first byte goes; where it fails, none goes. Waits for as long as the caller does.
    pub async fn post(
        &self,
        uri: &str,
        media_type: &'static str,
        body: &[u8],
        intent: impl Future<Output = Result<(), String>>,
    ) -> Result<PostReply, PostError> {
        let (asks, asked) = oneshot::channel();
        let (allow, allowed) = oneshot::channel();
        let body = HeldBody {
            asks: Some(asks),
            allowed: Mutex::new(allowed),
            held: true,
            remaining: Bytes::copy_from_slice(body),
        };
        let intent = async {
            if asked.await.is_ok() {
                intent.await.map_err(HttpsError::Connection)?;
                let _ = allow.send(());
            }
            std::future::pending::<Result<Infallible, HttpsError>>().await
        };
        let request = self
            .client()?
            .post(uri)
            .header(reqwest::header::CONTENT_TYPE, media_type)
            .body(reqwest::Body::wrap(body))
            .send();
        tokio::select! {
            sent = request => sent.map(|response| PostReply::from(&response)).map_err(|e| classify_post_error(&e)),
            Err(e) = intent => Err(e.into()),
        }
    }

    async fn send_get(&self, host: &str, path: &str, size: usize) -> Result<HttpsResponse, HttpsError> {
        let sent = self.client()?.get(format!("https://{host}/{path}")).send().await;
        let mut response = sent.map_err(|e| classify_error(&e))?;
        let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = field(reqwest::header::CONTENT_TYPE).to_ascii_lowercase();
        let content_encoding = field(reqwest::header::CONTENT_ENCODING).trim().to_ascii_lowercase();
        let (media_type, parameters) = content_type.split_once(';').unwrap_or((&content_type, ""));
        let (media_type, charset) = (media_type.trim().to_owned(), charset(parameters));
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| classify_error(&e))? {
            if body.len() + chunk.len() > size {
                return Err(HttpsError::TooLarge(size));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpsResponse { status, media_type, charset, content_encoding, body })
    }
}

impl ClientInner {
    fn build(&self) -> Result<reqwest::Client, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = platform_verifier(&self.closed)?;
        let verifier: Arc<dyn ServerCertVerifier> = match self.certificates {
            HttpsCertificates::Check => Arc::new(verifier),
            HttpsCertificates::Ignore => Arc::new(PermissiveVerifier(verifier)),
        };
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        // A policy host is asked once a day: what would be kept of a session is never used.
        tls.resumption = rustls::client::Resumption::disabled();
        let addresses = AddressResolver {
            resolver: self.resolver.clone(),
            fixed_address: self.fixed_address,
            allow_private: self.closed.private_addresses,
        };
        reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .http1_only()
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(0)
            .user_agent(concat!("tlswarden/", env!("CARGO_PKG_VERSION")))
            .dns_resolver(Arc::new(addresses))
            .build()
            .map_err(|e| root_cause(&e))
    }
}

impl From<&reqwest::Response> for PostReply {
    fn from(response: &reqwest::Response) -> PostReply {
        let retry_after = response.headers().get(reqwest::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        PostReply {
            status: response.status().as_u16(),
            retry_after: retry_after.and_then(|value| parse_retry_after(value, jiff::Timestamp::now().as_second())),
        }
    }
}

/// The seconds that a `Retry-After` names, as a number or as a date (RFC 9110 §10.2.3).
fn parse_retry_after(value: &str, now: i64) -> Option<i64> {
    let value = value.trim();
    if value.bytes().all(|b| b.is_ascii_digit()) {
        return value.parse::<u32>().ok().map(i64::from);
    }
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
    Some(date.as_second().saturating_sub(now).max(0))
}

/// A body that is held back until it is allowed to go.
struct HeldBody {
    /// Tells that the connection waits for the body.
    asks: Option<oneshot::Sender<()>>,
    /// In a mutex only because a body must be `Sync`.
    allowed: Mutex<oneshot::Receiver<()>>,
    held: bool,
    remaining: Bytes,
}

impl Body for HeldBody {
    type Data = Bytes;
    type Error = oneshot::error::RecvError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(asks) = self.asks.take() {
            let _ = asks.send(());
        }
        if self.held {
            match Pin::new(self.allowed.get_mut()).poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(e)) => return Poll::Ready(Some(Err(e))),
                Poll::Ready(Ok(())) => self.held = false,
            }
        }
        if self.remaining.is_empty() {
            return Poll::Ready(None);
        }
        let part = self.remaining.len().min(BODY_CHUNK);
        Poll::Ready(Some(Ok(Frame::data(self.remaining.split_to(part)))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining.len() as u64)
    }
}

/// Logs a certificate that does not pass and continues (RFC 8460 §3, §7). The handshake's own signature must fit.
#[derive(Debug)]
struct PermissiveVerifier(Verifier);

impl ServerCertVerifier for PermissiveVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now).or_else(|e| {
            let name = name.to_str();
            tracing::info!("https: {name}: the certificate does not pass: {e}; the report is sent all the same");
            Ok(ServerCertVerified::assertion())
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// A verifier with the roots of the platform and the extra one of a closed network. Fails as [`HttpsClient::new`].
pub fn certificate_verifier(closed: &NetworkExceptions) -> Result<Arc<dyn ServerCertVerifier>, String> {
    Ok(Arc::new(platform_verifier(closed)?))
}

fn platform_verifier(closed: &NetworkExceptions) -> Result<Verifier, String> {
    let extra = match &closed.extra_root {
        None => Vec::new(),
        Some(path) => CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|e| format!("{}: no certificate: {e}", path.display()))?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Verifier::new_with_extra_roots(extra, provider).map_err(|e| format!("root certificates: {e}"))
}

/// Looks up addresses with our resolver.
struct AddressResolver {
    resolver: Resolver,
    fixed_address: Option<SocketAddr>,
    allow_private: bool,
}

impl Resolve for AddressResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, fixed, private) = (self.resolver.clone(), self.fixed_address, self.allow_private);
        Box::pin(async move {
            if let Some(address) = fixed {
                return Ok(Box::new(std::iter::once(address)) as Addrs);
            }
            let found = resolver.addresses_to_connect(name.as_str()).await.map_err(AddressError::Dns)?;
            let (public, other): (Vec<IpAddr>, _) = found.records.into_iter().partition(|ip| private || is_public(*ip));
            match other.first() {
                Some(ip) if public.is_empty() => Err(AddressError::PrivateAddress(*ip).into()),
                // Port 0 stands for the port of the URL.
                _ => Ok(Box::new(public.into_iter().map(|ip| SocketAddr::new(ip, 0))) as Addrs),
            }
        })
    }
}

/// How [`AddressResolver`] fails, found again in the chain of causes.
#[derive(Debug, thiserror::Error)]
enum AddressError {
    #[error("{0}")]
    Dns(DnsError),
    #[error("{0} is not a public address")]
    PrivateAddress(IpAddr),
}

/// Whether an address can be that of a server on the Internet: strangers must not make us ask hosts of our own network.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => match embedded_v4(ip) {
            Some(v4) => is_public_v4(v4),
            // Global unicast is 2000::/3 (RFC 4291 §2.4); 2001:db8::/32 is documentation.
            None => ip.segments()[0] & 0xe000 == 0x2000 && (ip.segments()[0], ip.segments()[1]) != (0x2001, 0xdb8),
        },
    }
}

/// The IPv4 address inside a mapped, NAT64 or 6to4 address.
fn embedded_v4(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let join = |a: u16, b: u16| Ipv4Addr::from((u32::from(a) << 16) | u32::from(b));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] | [0x2002, a, b, ..] => Some(join(a, b)),
        _ => ip.to_ipv4_mapped(),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, ..] = ip.octets();
    // Shared address space, RFC 6598; benchmarking, RFC 2544; reserved and multicast, RFC 1112.
    let other = (a == 100 && (64..128).contains(&b)) || (a == 198 && (b == 18 || b == 19)) || a >= 224 || a == 0;
    !(ip.is_private() || ip.is_loopback() || ip.is_link_local() || ip.is_documentation() || other)
}

fn classify_post_error(error: &reqwest::Error) -> PostError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if e.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return PostError::BadReply(e.to_string());
        }
        cause = e.source();
    }
    classify_error(error).into()
}

fn classify_error(error: &reqwest::Error) -> HttpsError {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(e) = cause {
        match e.downcast_ref::<AddressError>() {
            Some(AddressError::PrivateAddress(ip)) => return HttpsError::PrivateAddress(*ip),
            Some(none) => return HttpsError::NoAddress(none.to_string()),
            None => {}
        }
        if let Some(e) = e.downcast_ref::<rustls::Error>() {
            return classify_tls_error(e);
        }
        // An io::Error's `source` is that of the error inside it: step into it by hand.
        let inside = e.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match inside {
            Some(inside) => Some(inside as &(dyn Error + 'static)),
            None => e.source(),
        };
    }
    if error.is_timeout() { HttpsError::Timeout(CONNECT_TIMEOUT) } else { HttpsError::Connection(root_cause(error)) }
}

fn classify_tls_error(error: &rustls::Error) -> HttpsError {
    match certificate_fault(error) {
        Some(fault) => HttpsError::Certificate(fault),
        None => HttpsError::Connection(format!("TLS: {error}")),
    }
}

/// What is wrong with a certificate; nothing where the error is about something else.
pub fn certificate_fault(error: &rustls::Error) -> Option<CertificateFault> {
    use rustls::CertificateError as E;
    match error {
        rustls::Error::InvalidCertificate(
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. },
        ) => Some(CertificateFault::Expired),
        rustls::Error::InvalidCertificate(E::NotValidForName | E::NotValidForNameContext { .. }) => {
            Some(CertificateFault::Name)
        }
        rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented => Some(CertificateFault::Trust),
        _ => None,
    }
}

/// The charset among the parameters of a media type, in lower case.
fn charset(parameters: &str) -> String {
    let mut named = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let charset = named.find(|(name, _)| name.trim() == "charset").map(|(_, value)| value.trim().trim_matches('"'));
    charset.unwrap_or_default().to_owned()
}

/// The last cause in the chain, the most specific one.
fn root_cause(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_a_number_or_a_date() {
        let now = 1_795_400_000;
        for (value, wanted) in [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Mon, 23 Nov 2026 02:15:00 GMT", Some(1_795_400_100 - now)),
            ("Mon, 23 Nov 2020 02:15:00 GMT", Some(0)),
            ("soon", None),
            ("-5", None),
            ("99999999999", None),
        ] {
            assert_eq!(parse_retry_after(value, now), wanted, "{value}");
        }
    }

    #[test]
    fn only_public_addresses() {
        for no in [
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "::10.0.0.1",
        ] {
            assert!(!is_public(no.parse().unwrap()), "{no}");
        }
        for yes in ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2620:fe::fe", "64:ff9b::909:909", "::ffff:9.9.9.9"] {
            assert!(is_public(yes.parse().unwrap()), "{yes}");
        }
    }
}
