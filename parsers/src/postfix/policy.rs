//! Reads the warnings about hosts that TLS policy ruled out before any connection.
//!
//! Takes: the text behind `warning: `. Gives: next hop, host and why; `None` for all other warnings.
//! The next hop is as in the transport table (`example.com:25`, `[mx.example.com]`); the host is an MX host's name that
//! Postfix has checked, so that no slash or space is in it.
//! Not here: faults of the local configuration, which say nothing about the destination.

use memchr::{memchr, memmem, memrchr};

use crate::event::{RuledOut, What};

/// `TLS policy lookup for NEXTHOP/HOST: why`, or
/// `MX name 'HOST' does not match STS MX pattern for 'NEXTHOP'` (3.10.6).
pub(super) fn parse(text: &[u8]) -> Option<What<'_>> {
    if let Some(text) = text.strip_prefix(b"TLS policy lookup for ") {
        lookup(text)
    } else {
        sts_pattern(text.strip_prefix(b"MX name '")?)
    }
}

fn lookup(text: &[u8]) -> Option<What<'_>> {
    let (names, why) = text.split_at_checked(memmem::find(text, b": ")?)?;
    let slash = memrchr(b'/', names)?;
    let why = match why.strip_prefix(b": ")? {
        b"TLSA records unusable" => RuledOut::TlsaUnusable,
        b"no TLSA records found" => RuledOut::NoTlsa,
        b"non DNSSEC destination" => RuledOut::NotDnssec,
        why if why.starts_with(b"TLSA lookup error for ") => RuledOut::TlsaLookupError,
        _ => return None,
    };
    Some(What::HostRuledOut { next_hop: names.get(..slash)?, host: names.get(slash + 1..)?, why })
}

fn sts_pattern(text: &[u8]) -> Option<What<'_>> {
    let (host, rest) = text.split_at_checked(memchr(b'\'', text)?)?;
    let next_hop = rest.strip_prefix(b"' does not match STS MX pattern for '")?.strip_suffix(b"'")?;
    Some(What::HostRuledOut { next_hop, host, why: RuledOut::StsMxMismatch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_hosts_that_were_ruled_out() {
        for (text, next_hop, host, why) in [
            (
                "TLS policy lookup for dane-2mx.example/mx1.dane-2mx.example: TLSA lookup error for mx1.dane-2mx.example:25",
                "dane-2mx.example",
                "mx1.dane-2mx.example",
                RuledOut::TlsaLookupError,
            ),
            (
                "TLS policy lookup for a.test/mx.a.test: TLSA records unusable",
                "a.test",
                "mx.a.test",
                RuledOut::TlsaUnusable,
            ),
            (
                "TLS policy lookup for [mx.a.test]:587/mx.a.test: no TLSA records found",
                "[mx.a.test]:587",
                "mx.a.test",
                RuledOut::NoTlsa,
            ),
            (
                "TLS policy lookup for a.test:25/mx.a.test: non DNSSEC destination",
                "a.test:25",
                "mx.a.test",
                RuledOut::NotDnssec,
            ),
            (
                "MX name 'rogue.sts-mxmismatch.test' does not match STS MX pattern for 'sts-mxmismatch.test'",
                "sts-mxmismatch.test",
                "rogue.sts-mxmismatch.test",
                RuledOut::StsMxMismatch,
            ),
        ] {
            let want = What::HostRuledOut { next_hop: next_hop.as_bytes(), host: host.as_bytes(), why };
            assert_eq!(parse(text.as_bytes()), Some(want), "{text}");
        }
    }

    #[test]
    fn leaves_local_faults_and_other_warnings_alone() {
        for text in [
            "TLS policy lookup for a.test/mx.a.test: client TLS configuration problem",
            "TLS policy lookup for a.test: no TLSA records found",
            "TLS policy lookup error for a.test/mx.a.test: no TLSA records found",
            "MX name 'a.test' is fine",
            "no MX host for mxaddrbogus.example has a valid address record",
            "",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }
}
