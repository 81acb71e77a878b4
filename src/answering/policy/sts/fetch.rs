//! Fetches an MTA-STS document (RFC 8461 §3.3).
//!
//! Takes: a policy domain. Gives: its [`Document`] from `https://mta-sts.DOMAIN/.well-known/mta-sts.txt`.
//! Status 200 and `text/plain` alone count; redirects are not followed.
//! Limits: [`FETCH_TIME`], `document::MAX_DOCUMENT`.
//! When it fails: a [`FetchFault`], which says which RFC 8460 result it is.
//! Not here: when to fetch, and what is kept (`cache`).

use std::fmt;
use std::time::Duration;

use crate::answering::policy::sts::document::{self, Document, Invalid, MAX_DOCUMENT};
use crate::base::tlsrpt::ResultType;
use crate::net::https::{CertificateFault, HttpsClient, HttpsError};

/// The longest that a fetch takes (RFC 8461 §3.3 suggests one minute).
pub const FETCH_TIME: Duration = Duration::from_secs(60);

/// Where every policy host has its document.
const PATH: &str = ".well-known/mta-sts.txt";

/// Why there is no document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchFault {
    /// The policy host could not be asked.
    Https(HttpsError),
    /// It pointed elsewhere.
    Redirect(u16),
    /// It answered with another status than 200.
    Status(u16),
    /// What it served is not `text/plain`.
    MediaType(String),
    /// What it served is no policy; its lines, for the report.
    Invalid(Invalid, Vec<String>),
}

/// Fetches the document of a policy domain, given in its one form.
pub async fn fetch(client: &HttpsClient, domain: &str) -> Result<Document, FetchFault> {
    let host = format!("mta-sts.{domain}");
    let response = client.get(&host, PATH, FETCH_TIME, MAX_DOCUMENT).await.map_err(FetchFault::Https)?;
    match response.status {
        200 => {}
        status @ 300..=399 => return Err(FetchFault::Redirect(status)),
        status => return Err(FetchFault::Status(status)),
    }
    if response.media_type != "text/plain" {
        return Err(FetchFault::MediaType(response.media_type));
    }
    document::parse(&response.body).map_err(|fault| FetchFault::Invalid(fault, document::lines(&response.body)))
}

impl FetchFault {
    /// The RFC 8460 §4.3.2.2 result type.
    pub fn result_type(&self) -> ResultType {
        match self {
            FetchFault::Https(HttpsError::Certificate(_)) => ResultType::StsWebpkiInvalid,
            FetchFault::Https(
                HttpsError::NoAddress(_)
                | HttpsError::PrivateAddress(_)
                | HttpsError::Connection(_)
                | HttpsError::Timeout(_)
                | HttpsError::TooLarge(_),
            )
            | FetchFault::Redirect(_)
            | FetchFault::Status(_)
            | FetchFault::MediaType(_) => ResultType::StsPolicyFetchError,
            FetchFault::Invalid(..) => ResultType::StsPolicyInvalid,
        }
    }

    /// The cause as a `failure-reason-code`: one word, from a fixed list but for the status code.
    pub fn reason(&self) -> String {
        match self {
            FetchFault::Https(HttpsError::NoAddress(_) | HttpsError::PrivateAddress(_)) => "no-address".into(),
            FetchFault::Https(HttpsError::Connection(_)) => "connection-failed".into(),
            FetchFault::Https(HttpsError::Timeout(_)) => "timeout".into(),
            FetchFault::Https(HttpsError::TooLarge(_)) => "too-large".into(),
            FetchFault::Https(HttpsError::Certificate(fault)) => match fault {
                CertificateFault::Expired => "certificate-expired".into(),
                CertificateFault::Name => "certificate-host-mismatch".into(),
                CertificateFault::Trust => "certificate-not-trusted".into(),
            },
            FetchFault::Redirect(_) => "redirect".into(),
            FetchFault::Status(status) => format!("http-status-{status}"),
            FetchFault::MediaType(_) => "media-type".into(),
            FetchFault::Invalid(fault, _) => match fault {
                Invalid::NotText => "not-text".into(),
                Invalid::Line(_) => "malformed-line".into(),
                Invalid::Missing(field) => format!("missing-{field}"),
                Invalid::Value(field) => format!("invalid-{field}"),
                Invalid::NoMx => "invalid-mx".into(),
            },
        }
    }
}

impl fmt::Display for FetchFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FetchFault::Https(error) => write!(f, "{error}"),
            FetchFault::Redirect(status) => write!(f, "redirect (status {status}), which RFC 8461 forbids to follow"),
            FetchFault::Status(status) => write!(f, "status {status}"),
            FetchFault::MediaType(media) if media.is_empty() => f.write_str("no media type; text/plain is required"),
            FetchFault::MediaType(media) => {
                let media: String = media.chars().take(64).collect();
                write!(f, "media type {}; text/plain is required", media.escape_debug())
            }
            FetchFault::Invalid(fault, _) => write!(f, "invalid document: {fault}"),
        }
    }
}
