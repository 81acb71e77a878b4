//! Reads what Postfix itself reports of a session through libtlsrpt (3.10 and later, `smtp_tlsrpt_enable = yes`).
//!
//! Takes: the text behind `TLSRPT: `. Gives: domain, server, and the failure if it was one.
//! When it fails: [`LineFamily::TlsrptStatus`].
//! Not here: `TLSRPT support: …`, warnings about the library.

use memchr::memchr;

use super::peer;
use crate::{
    event::{EventKind, TlsrptFailure},
    family::{LineFamily, ParseResult},
};

/// `status=success, domain=D, receiving_mx=HOST[IP]`, or
/// `status=failure, domain=D, receiving_mx=HOST[IP], failure_type=T[, failure_reason=R]`.
pub(super) fn parse(text: &[u8]) -> ParseResult<EventKind<'_>> {
    let (failed, rest) = if let Some(rest) = text.strip_prefix(b"status=success, domain=") {
        (false, rest)
    } else if let Some(rest) = text.strip_prefix(b"status=failure, domain=") {
        (true, rest)
    } else {
        return Err(LineFamily::TlsrptStatus);
    };
    status(failed, rest).map(Some).ok_or(LineFamily::TlsrptStatus)
}

fn status(failed: bool, text: &[u8]) -> Option<EventKind<'_>> {
    let (domain, rest) = text.split_at_checked(memchr(b',', text)?)?;
    let (peer, rest) = peer::without_port(rest.strip_prefix(b", receiving_mx=")?)?;
    let failure = if failed { Some(failure(rest.strip_prefix(b", failure_type=")?)?) } else { None };
    (!domain.is_empty() && (failed || rest.is_empty())).then_some(EventKind::TlsrptResult { domain, peer, failure })
}

fn failure(text: &[u8]) -> Option<TlsrptFailure<'_>> {
    let (failure_type, reason) = match memchr(b',', text) {
        Some(comma) => {
            let (failure_type, rest) = text.split_at_checked(comma)?;
            (failure_type, Some(rest.strip_prefix(b", failure_reason=")?))
        }
        None => (text, None),
    };
    (!failure_type.is_empty()).then_some(TlsrptFailure { failure_type, reason })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Peer;

    #[test]
    fn reads_success_and_failure() {
        let peer = |host: &'static str| Peer {
            host: host.as_bytes(),
            ip: Some("203.0.113.20".parse().expect("an address")),
            port: None,
        };
        let text = b"status=success, domain=may-ok.test, receiving_mx=mx.may-ok.test[203.0.113.20]";
        let want = EventKind::TlsrptResult { domain: b"may-ok.test", peer: peer("mx.may-ok.test"), failure: None };
        assert_eq!(parse(text), Ok(Some(want)));

        let front = "status=failure, domain=a.test, receiving_mx=mx.a.test[203.0.113.20], failure_type=";
        for (end, failure_type, reason) in [
            ("starttls_not_supported", "starttls_not_supported", None),
            (
                "validation_failure, failure_reason=tls-handshake-failure",
                "validation_failure",
                Some("tls-handshake-failure"),
            ),
            ("tlsa_invalid, failure_reason=a, b", "tlsa_invalid", Some("a, b")),
        ] {
            let text = format!("{front}{end}");
            let failure = TlsrptFailure { failure_type: failure_type.as_bytes(), reason: reason.map(str::as_bytes) };
            let want = EventKind::TlsrptResult { domain: b"a.test", peer: peer("mx.a.test"), failure: Some(failure) };
            assert_eq!(parse(text.as_bytes()), Ok(Some(want)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        for text in [
            "",
            "status=unknown, domain=a.test, receiving_mx=mx.a.test[203.0.113.20]",
            "status=success, domain=a.test",
            "status=success, domain=, receiving_mx=mx.a.test[203.0.113.20]",
            "status=success, domain=a.test, receiving_mx=mx.a.test",
            "status=success, domain=a.test, receiving_mx=mx.a.test[203.0.113.20], failure_type=x",
            "status=failure, domain=a.test, receiving_mx=mx.a.test[203.0.113.20]",
            "status=failure, domain=a.test, receiving_mx=mx.a.test[203.0.113.20], failure_type=",
            "status=failure, domain=a.test, receiving_mx=mx.a.test[203.0.113.20], failure_type=x, y",
        ] {
            assert_eq!(parse(text.as_bytes()), Err(LineFamily::TlsrptStatus), "{text}");
        }
    }
}
