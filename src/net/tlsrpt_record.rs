//! Looks up where a domain wants its TLS reports: the TXT record `_smtp._tls.<domain>` (RFC 8460 §3).
//!
//! Takes: a recipient domain or MX host. Gives: the destinations that it published.
//! When it fails: a [`TlsrptLookupError`], which tells "none" from "ask again later".
//! Not here: what the record means (`base::rua_record`), which destinations are served (`reporting`).

use crate::base::rua_record::{NoRecipients, Recipients, parse_recipients};
use crate::net::dns::{DnsError, Resolver};

/// Why a domain's recipients are not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsrptLookupError {
    /// It wants no report, or none that can be sent.
    #[error("{0}")]
    None(#[from] NoRecipients),
    /// It may say otherwise next time.
    #[error("_smtp._tls look-up: {0}")]
    Temporary(String),
}

/// Where a domain or MX host wants its reports, as it published it.
pub async fn look_up_recipients(resolver: &Resolver, name: &str) -> Result<Recipients, TlsrptLookupError> {
    match resolver.txt(&format!("_smtp._tls.{name}")).await {
        Ok(answer) => Ok(parse_recipients(&answer.records)?),
        Err(DnsError::NoSuchDomain { .. } | DnsError::NoRecords { .. }) => Err(NoRecipients::NoRecord.into()),
        Err(DnsError::Failed(why)) => Err(TlsrptLookupError::Temporary(why.to_string())),
    }
}
