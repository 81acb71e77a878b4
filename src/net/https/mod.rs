//! One HTTPS client: GET and POST without redirects, capped in time and size; the only user of reqwest.
//!
//! Takes: a host name and a path, or a URI and a body. Gives: the status, and of a GET the media type and the body.
//! The server must show a certificate for the host name that leads to a root of the platform (or the extra one of a
//! closed network), TLS 1.2 or later; only a client for reports may be told to go on without. It is reached at the
//! addresses that `dns` finds; private, loopback and link-local ones are left out unless the configuration allows them.
//! Limits: the caller's time and size; 15 s to connect; those of `get` and `tls`.
//! When it fails: an [`HttpsError`], by fault.
//! Not here: what a body means.

mod address;
mod error;
mod get;
mod race;
mod tls;

use std::convert::Infallible;
use std::error::Error;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::oneshot;

pub use crate::net::https::address::is_public;
pub use crate::net::https::error::{CertificateFault, HttpsError, TlsLimit, certificate_fault};
pub use crate::net::https::tls::certificate_verifier;

use crate::base::network::{HttpsCertificates, NetworkExceptions};
use crate::base::requester::Requester;
use crate::net::dns::Resolver;
use crate::net::https::address::AddressLookup;
use crate::net::https::error::{classify, root_cause};
use crate::net::https::get::DocumentClient;

/// How the client names itself.
const USER_AGENT_NAME: &str = concat!("tlswarden/", env!("CARGO_PKG_VERSION"));

/// The longest that connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// The size of the parts that a body is sent in, in bytes.
const BODY_CHUNK: usize = 16 * 1024;

/// A client. Copies share it.
#[derive(Clone)]
pub struct HttpsClient {
    shared: Arc<ClientInner>,
    /// Who the documents of this copy are fetched for.
    requester: Requester,
}

struct ClientInner {
    resolver: Resolver,
    closed: NetworkExceptions,
    fixed_address: Option<SocketAddr>,
    certificates: HttpsCertificates,
    /// Empty until the root certificates have been loaded.
    clients: OnceLock<LoadedClients>,
}

struct LoadedClients {
    documents: DocumentClient,
    posts: reqwest::Client,
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
        let (closed, clients) = (closed.clone(), OnceLock::new());
        let shared = ClientInner { resolver, closed, fixed_address, certificates, clients };
        HttpsClient { shared: Arc::new(shared), requester: Requester::Daemon }
    }

    /// The same client for documents that somebody asks for: the look-ups of addresses count as theirs.
    pub fn for_requester(&self, requester: Requester) -> HttpsClient {
        HttpsClient { requester, ..self.clone() }
    }

    /// Loads the root certificates, unless they have been loaded before. Blocks while it reads files.
    pub fn load(&self) -> Result<(), String> {
        if self.shared.clients.get().is_none() {
            let clients = self.shared.build()?;
            // Another call may have loaded them meanwhile: either will do.
            let _ = self.shared.clients.set(clients);
        }
        Ok(())
    }

    fn clients(&self) -> Result<&LoadedClients, HttpsError> {
        self.shared.clients.get().ok_or(HttpsError::NoRootCertificates)
    }

    /// Asks for `https://HOST/PATH` (the path without its first slash) and reads the body of any status.
    pub async fn get(&self, host: &str, path: &str, time: Duration, size: usize) -> Result<HttpsResponse, HttpsError> {
        let response = self.clients()?.documents.get(host, path, size, self.requester);
        tokio::time::timeout(time, response).await.unwrap_or(Err(HttpsError::Timeout(time)))
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
            .clients()?
            .posts
            .post(uri)
            .header(reqwest::header::CONTENT_TYPE, media_type)
            .body(reqwest::Body::wrap(body))
            .send();
        tokio::select! {
            sent = request => sent.map(|response| PostReply::from(&response)).map_err(|e| classify_post_error(&e)),
            Err(e) = intent => Err(e.into()),
        }
    }
}

impl ClientInner {
    fn build(&self) -> Result<LoadedClients, String> {
        let tls = tls::client_config(&self.closed, self.certificates)?;
        let addresses = AddressLookup {
            resolver: self.resolver.clone(),
            fixed_address: self.fixed_address,
            allow_private: self.closed.private_addresses,
        };
        let posts = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .http1_only()
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(0)
            .user_agent(USER_AGENT_NAME)
            .dns_resolver(Arc::new(addresses.clone()))
            .build()
            .map_err(|e| root_cause(&e))?;
        Ok(LoadedClients { documents: DocumentClient::new(addresses, tls), posts })
    }
}

impl Resolve for AddressLookup {
    fn resolve(&self, name: Name) -> Resolving {
        let lookup = self.clone();
        Box::pin(async move {
            // Port 0 stands for the port of the URL.
            Ok(Box::new(lookup.look_up(name.as_str(), 0, Requester::Daemon).await?.into_iter()) as Addrs)
        })
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
    match classify(error) {
        HttpsError::Connection(_) if error.is_timeout() => HttpsError::Timeout(CONNECT_TIMEOUT),
        other => other,
    }
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
}
