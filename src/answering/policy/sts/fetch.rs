//! Fetches an MTA-STS document (RFC 8461 §3.3).
//!
//! Takes: a policy domain. Gives: its [`PolicyDocument`] from `https://mta-sts.DOMAIN/.well-known/mta-sts.txt`.
//! Status 200 and `text/plain` alone count; redirects are not followed.
//! Limits: [`FETCH_TIMEOUT`], `document::MAX_DOCUMENT`.
//! When it fails: a [`FetchError`], which says which RFC 8460 result it is.
//! Not here: when to fetch, and what is kept (`cache`).

use std::fmt;
use std::time::Duration;

use crate::answering::policy::sts::document::{self, MAX_DOCUMENT, PolicyDocument};
use crate::answering::policy::sts::document_fault::InvalidDocument;
use crate::base::tlsrpt::ResultType;
use crate::net::https::{CertificateFault, HttpsClient, HttpsError, TlsLimit};

/// The longest that a fetch takes (RFC 8461 §3.3 suggests one minute).
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Where every policy host has its document.
const PATH: &str = ".well-known/mta-sts.txt";

/// Why a document could not be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// The policy host could not be asked.
    Https(HttpsError),
    /// It pointed elsewhere.
    Redirect(u16),
    /// It answered with another status than 200.
    Status(u16),
    /// What it served is not `text/plain`.
    MediaType(String),
    /// What it served is no policy; its lines, for the report.
    Invalid(InvalidDocument, Vec<String>),
}

/// Fetches the document of a policy domain, given in its one form.
pub async fn fetch(client: &HttpsClient, domain: &str) -> Result<PolicyDocument, FetchError> {
    let host = format!("mta-sts.{domain}");
    let response = client.get(&host, PATH, FETCH_TIMEOUT, MAX_DOCUMENT).await.map_err(FetchError::Https)?;
    match response.status {
        200 => {}
        status @ 300..=399 => return Err(FetchError::Redirect(status)),
        status => return Err(FetchError::Status(status)),
    }
    if response.media_type != "text/plain" {
        return Err(FetchError::MediaType(response.media_type));
    }
    document::parse(&response.body).map_err(|fault| {
        let fault = fault.with_headers(&response.content_encoding, &response.charset);
        FetchError::Invalid(fault, document::lines(&response.body))
    })
}

impl FetchError {
    /// The RFC 8460 §4.3.2.2 result type.
    pub fn result_type(&self) -> ResultType {
        match self {
            FetchError::Https(HttpsError::Certificate(_)) => ResultType::StsWebpkiInvalid,
            FetchError::Https(
                HttpsError::NoAddress(_)
                | HttpsError::PrivateAddress(_)
                | HttpsError::Connection(_)
                | HttpsError::Timeout(_)
                | HttpsError::NoRootCertificates
                | HttpsError::CannotConnect(_)
                | HttpsError::TlsLimit(_)
                | HttpsError::HeaderTooLarge
                | HttpsError::TooLarge(_),
            )
            | FetchError::Redirect(_)
            | FetchError::Status(_)
            | FetchError::MediaType(_) => ResultType::StsPolicyFetchError,
            FetchError::Invalid(..) => ResultType::StsPolicyInvalid,
        }
    }

    /// The cause as a `failure-reason-code`: one word, from a fixed list but for the status code.
    pub fn reason_code(&self) -> String {
        match self {
            FetchError::Https(HttpsError::NoAddress(_) | HttpsError::PrivateAddress(_)) => "no-address".into(),
            FetchError::Https(HttpsError::Connection(_)) => "connection-failed".into(),
            FetchError::Https(HttpsError::Timeout(_)) => "timeout".into(),
            FetchError::Https(HttpsError::NoRootCertificates) => "no-root-certificates".into(),
            FetchError::Https(HttpsError::CannotConnect(_)) => "cannot-connect".into(),
            FetchError::Https(HttpsError::TlsLimit(limit)) => match limit {
                TlsLimit::Handshake => "tls-handshake-failure".into(),
                TlsLimit::Version => "tls-version-not-supported".into(),
                TlsLimit::Signature => "tls-signature-not-supported".into(),
            },
            FetchError::Https(HttpsError::TooLarge(_)) => "too-large".into(),
            FetchError::Https(HttpsError::HeaderTooLarge) => "header-too-large".into(),
            FetchError::Https(HttpsError::Certificate(fault)) => match fault {
                CertificateFault::Expired => "certificate-expired".into(),
                CertificateFault::Name => "certificate-host-mismatch".into(),
                CertificateFault::Trust => "certificate-not-trusted".into(),
            },
            FetchError::Redirect(_) => "redirect".into(),
            FetchError::Status(status) => format!("http-status-{status}"),
            FetchError::MediaType(_) => "media-type".into(),
            FetchError::Invalid(fault, _) => fault.reason_code(),
        }
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchError::Https(error) => write!(f, "{error}"),
            FetchError::Redirect(status) => write!(f, "redirect (status {status}), which RFC 8461 forbids to follow"),
            FetchError::Status(status) => write!(f, "status {status}"),
            FetchError::MediaType(media) if media.is_empty() => f.write_str("no media type; text/plain is required"),
            FetchError::MediaType(media) => {
                let media: String = media.chars().take(64).collect();
                write!(f, "media type {}; text/plain is required", media.escape_debug())
            }
            FetchError::Invalid(fault, _) => write!(f, "invalid document: {fault}"),
        }
    }
}
