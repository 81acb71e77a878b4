//! A report by HTTPS POST (RFC 8460 §5.4).
//!
//! Takes: a gzipped report and a URI. Gives: an [`DeliveryOutcome`] from the HTTP status.
//! Limits: the deadlines of `transport`. The last octet of the POST is what the final dot is to SMTP.
//! When it fails: an outcome. An address that may not be connected to is refused.
//! Not here: how a POST is made (`net::https`).

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::{DeliveryOutcome, DeliveryTimeouts, MAX_REPLY_TEXT, outcome_without_reply, with_timeouts};
use crate::base::printable::escape_and_cut;
use crate::net::https::{self, HttpsError};

/// Posts a gzipped report to a URI (RFC 8460 §5.4).
pub async fn post_report(
    client: &https::HttpsClient,
    uri: &str,
    gzip: &[u8],
    limits: DeliveryTimeouts,
    cancel: impl Future<Output = ()>,
) -> DeliveryOutcome {
    let dot_sent = Arc::new(AtomicBool::new(false));
    let delivery = async {
        match client.post(uri, "application/tlsrpt+gzip", gzip, Arc::clone(&dot_sent)).await {
            Ok(status) => status_outcome(status),
            // Nothing was connected to; it will not be another time either.
            Err(e @ HttpsError::PrivateAddress(_)) => {
                DeliveryOutcome::Refused(escape_and_cut(&e.to_string(), MAX_REPLY_TEXT))
            }
            Err(e) => outcome_without_reply(&dot_sent, &e.to_string()),
        }
    };
    with_timeouts(delivery, &dot_sent, limits, cancel).await
}

/// The outcome that an HTTP status means. 2xx is success (RFC 8460 §5.4). Temporary errors are retried (RFC 9110 §15.5.9,
/// §15.6; RFC 8470 §5.2; RFC 6585 §4). Redirects are not followed, because DNS names the receiver.
fn status_outcome(status: u16) -> DeliveryOutcome {
    match status {
        200..=299 => DeliveryOutcome::Accepted(format!("HTTP {status}")),
        408 | 425 | 429 | 500..=599 => DeliveryOutcome::Retry(format!("HTTP {status}")),
        300..=399 => DeliveryOutcome::Refused(format!("HTTP {status}: a redirect, which is not followed")),
        _ => DeliveryOutcome::Refused(format!("HTTP {status}")),
    }
}
