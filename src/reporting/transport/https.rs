//! A report by HTTPS POST (RFC 8460 §5.4).
//!
//! Takes: a gzipped report and a URI. Gives: a [`DeliveryOutcome`] from the HTTP status.
//! Limits: the `post` time of `transport`, for the whole.
//! When it fails: an outcome. Without a reply it is tried again, under the same report-id (RFC 8460 §5.3, §5.5); a reply that
//! cannot be understood leaves it open whether the report was taken. An address that may not be connected to is refused.
//! Not here: how a POST is made (`net::https`), how many at once (`schedule::https_hosts`).

use std::future::Future;

use super::{CANCELED, DeliveryOutcome, DeliveryTimeouts, MAX_REPLY_TEXT, TOO_LATE};
use crate::base::printable::escape_and_cut;
use crate::net::https::{HttpsClient, HttpsError, PostError, PostReply};

/// Posts a gzipped report to a URI (RFC 8460 §5.4). `intent` is awaited right before the body goes. When `cancel` resolves,
/// it returns at once.
pub async fn post_report(
    client: &HttpsClient,
    uri: &str,
    gzip: &[u8],
    intent: impl Future<Output = Result<(), String>>,
    limits: DeliveryTimeouts,
    cancel: impl Future<Output = ()>,
) -> DeliveryOutcome {
    let text = |e: PostError| escape_and_cut(&e.to_string(), MAX_REPLY_TEXT);
    let post = async {
        match client.post(uri, "application/tlsrpt+gzip", gzip, intent).await {
            Ok(reply) => reply_outcome(reply),
            // Nothing was connected to; it will not be another time either.
            Err(e @ PostError::NoReply(HttpsError::PrivateAddress(_))) => DeliveryOutcome::Refused(text(e)),
            Err(e @ PostError::BadReply(_)) => DeliveryOutcome::Unknown(text(e)),
            Err(e) => DeliveryOutcome::Retry(text(e)),
        }
    };
    tokio::select! {
        outcome = post => outcome,
        () = tokio::time::sleep(limits.post) => DeliveryOutcome::Retry(TOO_LATE.to_owned()),
        () = cancel => DeliveryOutcome::Retry(CANCELED.to_owned()),
    }
}

/// The outcome that an HTTP status means. 2xx is success (RFC 8460 §5.4). Temporary errors are retried (RFC 9110 §15.5.9,
/// §15.6; RFC 8470 §5.2; RFC 6585 §4), when the server says so (RFC 9110 §10.2.3). Redirects are not followed, because
/// DNS names the receiver.
fn reply_outcome(reply: PostReply) -> DeliveryOutcome {
    let PostReply { status, retry_after } = reply;
    match (status, retry_after) {
        (200..=299, _) => DeliveryOutcome::Accepted(format!("HTTP {status}")),
        (408 | 425 | 429 | 500..=599, None) => DeliveryOutcome::Retry(format!("HTTP {status}")),
        (408 | 425 | 429 | 500..=599, Some(seconds)) => {
            DeliveryOutcome::RetryAfter(format!("HTTP {status}, Retry-After {seconds} s"), seconds)
        }
        (300..=399, _) => DeliveryOutcome::Refused(format!("HTTP {status}: a redirect, which is not followed")),
        _ => DeliveryOutcome::Refused(format!("HTTP {status}")),
    }
}
