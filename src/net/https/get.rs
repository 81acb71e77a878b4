//! GET of a small document over HTTP/1.1, one connection a request; the only user of hyper's client.
//!
//! Takes: a host name and a path. Gives: the response of any status.
//! Limits: the caller's size of the body; [`MAX_HEADER`] bytes and [`MAX_HEADER_FIELDS`] fields of header, which is why
//! this is not done with reqwest.
//! When it fails: an [`HttpsError`].
//! Not here: the time that it may take (`HttpsClient`), which address is used (`race`).

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Body;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_ENCODING, CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::base::requester::Requester;
use crate::net::https::address::AddressLookup;
use crate::net::https::error::{HttpsError, MAX_HEADER, MAX_HEADER_FIELDS, classify};
use crate::net::https::race;
use crate::net::https::{HttpsResponse, USER_AGENT_NAME};

/// A client for documents.
pub(super) struct DocumentClient {
    addresses: AddressLookup,
    tls: TlsConnector,
}

impl DocumentClient {
    /// A client with this TLS.
    pub(super) fn new(addresses: AddressLookup, mut tls: rustls::ClientConfig) -> DocumentClient {
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        DocumentClient { addresses, tls: TlsConnector::from(Arc::new(tls)) }
    }

    /// Asks for `https://HOST/PATH` (the path without its first slash).
    pub(super) async fn get(
        &self,
        host: &str,
        path: &str,
        size: usize,
        requester: Requester,
    ) -> Result<HttpsResponse, HttpsError> {
        // The name goes out as it is: an A-label that IDNA refuses is a label like any other.
        let name = ServerName::try_from(host.to_owned()).map_err(|e| HttpsError::NoAddress(e.to_string()))?;
        let stream = race::connect(self.addresses.look_up(host, 443, requester).await?, &self.tls, &name).await?;
        let connected = http1::Builder::new()
            .max_header_size(MAX_HEADER)
            .max_headers(MAX_HEADER_FIELDS)
            .max_buf_size(MAX_HEADER)
            .handshake(TokioIo::new(stream));
        let (mut sender, connection) = connected.await.map_err(|e| classify(&e))?;
        // Its errors come with the response too; it ends when this ends.
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let request = Request::get(format!("/{path}"))
            .header(HOST, host)
            .header(USER_AGENT, USER_AGENT_NAME)
            .header(ACCEPT, "*/*")
            .body(Empty::<Bytes>::new())
            .map_err(|e| HttpsError::Connection(e.to_string()))?;
        let response = sender.send_request(request).await.map_err(|e| classify(&e))?;
        read(response, size).await
    }
}

async fn read<B>(response: hyper::Response<B>, size: usize) -> Result<HttpsResponse, HttpsError>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    let field = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = field(CONTENT_TYPE).to_ascii_lowercase();
    let content_encoding = field(CONTENT_ENCODING).trim().to_ascii_lowercase();
    let (media_type, parameters) = content_type.split_once(';').unwrap_or((&content_type, ""));
    let (media_type, charset) = (media_type.trim().to_owned(), charset(parameters));
    let status = response.status().as_u16();
    let (mut received, mut body) = (Vec::new(), response.into_body());
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| classify(&e))?.into_data() else { continue };
        if received.len() + data.len() > size {
            return Err(HttpsError::TooLarge(size));
        }
        received.extend_from_slice(&data);
    }
    Ok(HttpsResponse { status, media_type, charset, content_encoding, body: received })
}

/// The charset among the parameters of a media type, in lower case.
fn charset(parameters: &str) -> String {
    let mut named = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let charset = named.find(|(name, _)| name.trim() == "charset").map(|(_, value)| value.trim().trim_matches('"'));
    charset.unwrap_or_default().to_owned()
}
