//! Reads the warnings about hosts that TLS policy ruled out before any connection.
//!
//! Takes: the text behind `warning: `. Gives: next hop, host and why; `None` for all other warnings.
//! The next hop is as in the transport table (`example.com:25`, `[mx.example.com]`); the host is an MX host's name that
//! Postfix has checked, so that no slash or space is in it.
//! A policy that could not be looked up is read as well: the fault may be the destination's, and the answers that were given
//! tell. Not here: other faults of the local configuration, which say nothing about the destination.

use memchr::{memchr, memmem, memrchr};

use crate::event::{EventKind, ExclusionReason};

/// `TLS policy lookup for NEXTHOP/HOST: why`, `TLS policy lookup error for …` where a cached connection was looked for, or
/// `MX name 'HOST' does not match STS MX pattern for 'NEXTHOP'` (3.10.6).
pub(super) fn parse(text: &[u8]) -> Option<EventKind<'_>> {
    if let Some(text) = text.strip_prefix(b"TLS policy lookup ") {
        parse_lookup_warning(text.strip_prefix(b"error ").unwrap_or(text).strip_prefix(b"for ")?)
    } else {
        parse_sts_mismatch(text.strip_prefix(b"MX name '")?)
    }
}

fn parse_lookup_warning(text: &[u8]) -> Option<EventKind<'_>> {
    let (names, reason) = text.split_at_checked(memmem::find(text, b": ")?)?;
    let slash = memrchr(b'/', names)?;
    let reason = match reason.strip_prefix(b": ")? {
        b"TLSA records unusable" => ExclusionReason::TlsaUnusable,
        b"no TLSA records found" => ExclusionReason::NoTlsa,
        b"non DNSSEC destination" => ExclusionReason::NotDnssec,
        b"client TLS configuration problem" => ExclusionReason::PolicyUnknown,
        reason if reason.starts_with(b"TLSA lookup error for ") => ExclusionReason::TlsaLookupError,
        _ => return None,
    };
    Some(EventKind::HostExcluded { next_hop: names.get(..slash)?, host: names.get(slash + 1..)?, reason })
}

fn parse_sts_mismatch(text: &[u8]) -> Option<EventKind<'_>> {
    let (host, rest) = text.split_at_checked(memchr(b'\'', text)?)?;
    let next_hop = rest.strip_prefix(b"' does not match STS MX pattern for '")?.strip_suffix(b"'")?;
    Some(EventKind::HostExcluded { next_hop, host, reason: ExclusionReason::StsMxMismatch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hosts_that_were_ruled_out() {
        for (text, next_hop, host, reason) in [
            (
                "TLS policy lookup for dane-2mx.example/mx1.dane-2mx.example: TLSA lookup error for mx1.dane-2mx.example:25",
                "dane-2mx.example",
                "mx1.dane-2mx.example",
                ExclusionReason::TlsaLookupError,
            ),
            (
                "TLS policy lookup for a.test/mx.a.test: TLSA records unusable",
                "a.test",
                "mx.a.test",
                ExclusionReason::TlsaUnusable,
            ),
            (
                "TLS policy lookup for [mx.a.test]:587/mx.a.test: no TLSA records found",
                "[mx.a.test]:587",
                "mx.a.test",
                ExclusionReason::NoTlsa,
            ),
            (
                "TLS policy lookup for a.test:25/mx.a.test: non DNSSEC destination",
                "a.test:25",
                "mx.a.test",
                ExclusionReason::NotDnssec,
            ),
            (
                "TLS policy lookup for a.test/mx.a.test: client TLS configuration problem",
                "a.test",
                "mx.a.test",
                ExclusionReason::PolicyUnknown,
            ),
            (
                "TLS policy lookup error for a.test/mx.a.test: client TLS configuration problem",
                "a.test",
                "mx.a.test",
                ExclusionReason::PolicyUnknown,
            ),
            (
                "MX name 'rogue.sts-mxmismatch.test' does not match STS MX pattern for 'sts-mxmismatch.test'",
                "sts-mxmismatch.test",
                "rogue.sts-mxmismatch.test",
                ExclusionReason::StsMxMismatch,
            ),
        ] {
            let want = EventKind::HostExcluded { next_hop: next_hop.as_bytes(), host: host.as_bytes(), reason };
            assert_eq!(parse(text.as_bytes()), Some(want), "{text}");
        }
    }

    #[test]
    fn leaves_local_faults_and_other_warnings_alone() {
        for text in [
            "TLS policy lookup for a.test/mx.a.test: Temporary lookup error",
            "TLS policy lookup for a.test: no TLSA records found",
            "TLS policy lookup errors for a.test/mx.a.test: no TLSA records found",
            "MX name 'a.test' is fine",
            "no MX host for mxaddrbogus.example has a valid address record",
            "",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
