//! A report by HTTPS POST (RFC 8460 §5.4).
//!
//! Takes: a gzipped report and a URI. Gives: an [`Outcome`] from the HTTP status.
//! Limits: the deadlines of `transport`. The last octet of the POST is what the final dot is to SMTP.
//! When it fails: an outcome. An address that may not be connected to is refused.
//! Not here: how a POST is made (`net::https`).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{Limits, MAX_ANSWER, Outcome, bounded, unanswered};
use crate::base::printable::escape_and_cut;
use crate::net::https::{self, HttpsError};

/// Posts a gzipped report to a URI (RFC 8460 §5.4).
pub async fn post(
    client: &https::HttpsClient,
    uri: &str,
    gzip: &[u8],
    limits: Limits,
    cut: impl Future<Output = ()>,
) -> Outcome {
    let ended = Arc::new(AtomicBool::new(false));
    let handing = async {
        match client.post(uri, "application/tlsrpt+gzip", gzip, Arc::clone(&ended)).await {
            Ok(status) => by_status(status),
            // Nothing was connected to; it will not be another time either.
            Err(e @ HttpsError::PrivateAddress(_)) => Outcome::Refused(escape_and_cut(&e.to_string(), MAX_ANSWER)),
            Err(e) => unanswered(&ended, &e.to_string()),
        }
    };
    bounded(handing, &ended, limits, cut).await
}

/// What an HTTP status means: 2xx is a yes (RFC 8460 §5.4). Of the others those are tried again that may pass (RFC 9110
/// §15.5.9, §15.6; RFC 8470 §5.2; RFC 6585 §4); redirects are not followed, for who is asked is what DNS says.
fn by_status(status: u16) -> Outcome {
    match status {
        200..=299 => Outcome::Accepted(format!("HTTP {status}")),
        408 | 425 | 429 | 500..=599 => Outcome::Retry(format!("HTTP {status}")),
        300..=399 => Outcome::Refused(format!("HTTP {status}: a redirect, which is not followed")),
        _ => Outcome::Refused(format!("HTTP {status}")),
    }
}
