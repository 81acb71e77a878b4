//! Reads what Postfix's TLS library says of a handshake as a client.
//!
//! Takes: the text behind the prefix. Gives: `None` for text of another family, else what was found in it.
//! The wording is that of `tls_log_summary`, `tls_client_start` and `tls_log_verify_error`, the same since 3.4 but where
//! said. An issuer's name is a stranger's: it is last in its line, and not kept.
//! When it fails: the family, where a line begins like ours and cannot be read.

use super::peer;
use crate::{
    event::{EventKind, Peer, Trust, VerificationError},
    family::{LineFamily, ParseResult},
    number::decimal,
};

/// `Trusted TLS connection established to HOST[IP]:PORT: TLSv1.3 with cipher …`.
pub(super) fn summary(text: &[u8]) -> Option<ParseResult<EventKind<'_>>> {
    let (trust, rest) = match text {
        [b'U', b'n', b't', b'r', b'u', b's', b't', b'e', b'd', rest @ ..] => (Trust::Untrusted, rest),
        [b'T', b'r', b'u', b's', b't', b'e', b'd', rest @ ..] => (Trust::Trusted, rest),
        [b'V', b'e', b'r', b'i', b'f', b'i', b'e', b'd', rest @ ..] => (Trust::Verified, rest),
        [b'A', b'n', b'o', b'n', b'y', b'm', b'o', b'u', b's', rest @ ..] => (Trust::Anonymous, rest),
        _ => return None,
    };
    let rest = rest.strip_prefix(b" TLS connection ")?;
    // A server's line has `from` instead: tlsproxy(8) serves postscreen(8) too.
    let (reused, rest) = match rest.strip_prefix(b"established to ") {
        Some(rest) => (false, rest),
        None => (true, rest.strip_prefix(b"reused to ")?),
    };
    let peer = peer_and_colon(rest).map(|(peer, _)| peer);
    Some(peer.map(|peer| Some(EventKind::Established { peer, trust, reused })).ok_or(LineFamily::TlsSummary))
}

/// `[server |CA ]certificate verification failed for HOST[IP]:PORT: cause`.
pub(super) fn verification(text: &[u8]) -> Option<ParseResult<EventKind<'_>>> {
    let rest = text.strip_prefix(b"server ").or_else(|| text.strip_prefix(b"CA ")).unwrap_or(text);
    let rest = rest.strip_prefix(b"certificate verification failed for ")?;
    let found = peer_and_colon(rest).and_then(|(peer, text)| Some((peer, verification_error(text)?)));
    Some(
        found
            .map(|(peer, cause)| Some(EventKind::VerificationFailed { peer, cause }))
            .ok_or(LineFamily::CertificateVerification),
    )
}

/// `SSL_connect error to HOST[IP]:PORT: cause`.
pub(super) fn handshake(text: &[u8]) -> Option<ParseResult<EventKind<'_>>> {
    let rest = text.strip_prefix(b"SSL_connect error to ")?;
    let found = peer_and_colon(rest);
    Some(found.map(|(peer, cause)| Some(EventKind::HandshakeFailed { peer, cause })).ok_or(LineFamily::TlsHandshake))
}

/// `HOST[IP]:PORT: re-using session with untrusted certificate, look for details earlier in the log`;
/// `peer credential` in place of `certificate` since 3.9, where it may be a raw public key.
///
/// There is no family to name when it fails: other lines begin with a peer too.
pub(super) fn resumed_untrusted(text: &[u8]) -> Option<EventKind<'_>> {
    let (peer, rest) = peer_and_colon(text)?;
    rest.starts_with(b"re-using session with untrusted ").then_some(EventKind::ResumedUntrusted { peer })
}

/// `HOST[IP]:PORT: all TLSA records unusable[, fallback to unauthenticated TLS]` (3.6), a warning.
pub(super) fn tlsa_unusable(text: &[u8]) -> Option<EventKind<'_>> {
    let (peer, rest) = peer_and_colon(text)?;
    rest.starts_with(b"all TLSA records unusable").then_some(EventKind::TlsaUnusable { peer })
}

fn peer_and_colon(text: &[u8]) -> Option<(Peer<'_>, &[u8])> {
    let (peer, rest) = peer::with_port(text)?;
    Some((peer, rest.strip_prefix(b": ")?))
}

fn verification_error(text: &[u8]) -> Option<VerificationError<'_>> {
    Some(match text {
        b"not trusted by local or TLSA policy" => VerificationError::NotTrusted,
        b"self-signed certificate" => VerificationError::SelfSigned,
        b"certificate not yet valid" => VerificationError::NotYetValid,
        b"certificate has expired" => VerificationError::Expired,
        _ if text.starts_with(b"untrusted issuer") => VerificationError::UntrustedIssuer,
        _ if text.starts_with(b"not designated for use as a ") => VerificationError::WrongPurpose,
        _ if text.starts_with(b"certificate chain longer than limit(") => VerificationError::ChainTooLong,
        _ => return code(text).or_else(|| external_policy(text)),
    })
}

/// `num=62:hostname mismatch`: the number is OpenSSL's `X509_V_ERR_…`.
fn code(text: &[u8]) -> Option<VerificationError<'_>> {
    let (number, rest) = decimal(text.strip_prefix(b"num=")?)?;
    Some(VerificationError::Code(u16::try_from(number).ok()?, rest.strip_prefix(b":")?))
}

/// `external policy failure (sts-webpki-invalid)` (3.10).
fn external_policy(text: &[u8]) -> Option<VerificationError<'_>> {
    let failure = text.strip_prefix(b"external policy failure (")?;
    Some(VerificationError::ExternalPolicy(failure.strip_suffix(b")").unwrap_or(failure)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: &str) -> Peer<'_> {
        let (host, ip) = host.split_once(' ').expect("HOST IP");
        Peer { host: host.as_bytes(), ip: Some(ip.parse().expect("an address")), port: Some(25) }
    }

    #[test]
    fn reads_the_summary_in_every_form() {
        for (text, host, trust, reused) in [
            (
                "Trusted TLS connection established to mx.may-ok.test[203.0.113.10]:25: TLSv1.3 with cipher \
                 TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange x25519 server-signature RSA-PSS (2048 bits) \
                 server-digest SHA256",
                "mx.may-ok.test 203.0.113.10",
                Trust::Trusted,
                false,
            ),
            (
                "Anonymous TLS connection established to mx.may-anon.test[203.0.113.13]:25: TLSv1.2 with cipher \
                 AECDH-AES256-SHA (256/256 bits)",
                "mx.may-anon.test 203.0.113.13",
                Trust::Anonymous,
                false,
            ),
            (
                "Untrusted TLS connection reused to mx.reuse-selfsigned.test[203.0.113.118]:25: TLSv1.3 with cipher \
                 TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange x25519",
                "mx.reuse-selfsigned.test 203.0.113.118",
                Trust::Untrusted,
                true,
            ),
            (
                "Verified TLS connection established to mx.dane-v6.example[2001:db8:0:1::a1]:25: TLSv1.3 with cipher \
                 TLS_AES_256_GCM_SHA384 (256/256 bits) key-exchange X25519MLKEM768 server-signature ECDSA (prime256v1 \
                 raw public key) server-digest SHA256",
                "mx.dane-v6.example 2001:db8:0:1::a1",
                Trust::Verified,
                false,
            ),
        ] {
            let want = EventKind::Established { peer: peer(host), trust, reused };
            assert_eq!(summary(text.as_bytes()), Some(Ok(Some(want))), "{text}");
        }
    }

    #[test]
    fn a_servers_summary_is_not_ours() {
        let text = b"Anonymous TLS connection established from client.test[192.0.2.7]:4711 to mx.test: TLSv1.3 with x";
        assert_eq!(summary(text), None);
        assert_eq!(summary(b"Trusted friends"), None);
    }

    #[test]
    fn a_summary_without_its_peer_is_malformed() {
        for text in [
            "Trusted TLS connection established to ",
            "Trusted TLS connection established to mx.test[192.0.2.1]:25",
            "Trusted TLS connection established to mx.test[192.0.2.1]:99999: TLSv1.3 with cipher X",
            "Trusted TLS connection reused to unknown: TLSv1.3",
        ] {
            assert_eq!(summary(text.as_bytes()), Some(Err(LineFamily::TlsSummary)), "{text}");
        }
    }

    #[test]
    fn reads_every_cause_of_a_failed_verification() {
        for (front, text, cause) in [
            ("", "not trusted by local or TLSA policy", VerificationError::NotTrusted),
            ("", "self-signed certificate", VerificationError::SelfSigned),
            ("", "untrusted issuer /O=Elsewhere/CN=Unknown Root CA", VerificationError::UntrustedIssuer),
            ("", "untrusted issuer <unknown>", VerificationError::UntrustedIssuer),
            ("CA ", "certificate not yet valid", VerificationError::NotYetValid),
            ("server ", "certificate has expired", VerificationError::Expired),
            ("", "not designated for use as a server certificate", VerificationError::WrongPurpose),
            ("", "certificate chain longer than limit(9)", VerificationError::ChainTooLong),
            ("server ", "num=62:hostname mismatch", VerificationError::Code(62, b"hostname mismatch")),
            (
                "server ",
                "num=65:no matching DANE TLSA records",
                VerificationError::Code(65, b"no matching DANE TLSA records"),
            ),
            (
                "",
                "external policy failure (sts-webpki-invalid)",
                VerificationError::ExternalPolicy(b"sts-webpki-invalid"),
            ),
        ] {
            let line = format!("{front}certificate verification failed for mx.a.test[203.0.113.54]:25: {text}");
            let want = EventKind::VerificationFailed { peer: peer("mx.a.test 203.0.113.54"), cause };
            assert_eq!(verification(line.as_bytes()), Some(Ok(Some(want))), "{line}");
        }
    }

    #[test]
    fn an_unknown_cause_is_malformed() {
        for cause in ["num=x:y", "num=62", "num=65536:y", "something else", "self-signed certificate or so", ""] {
            let line = format!("certificate verification failed for mx.a.test[203.0.113.54]:25: {cause}");
            assert_eq!(verification(line.as_bytes()), Some(Err(LineFamily::CertificateVerification)), "{line}");
        }
        assert_eq!(verification(b"connect to mx.a.test[203.0.113.54]:25: Connection refused"), None);
        assert_eq!(verification(b"setting up TLS connection to mx.a.test[203.0.113.54]:25"), None);
    }

    #[test]
    fn reads_failed_handshakes() {
        for cause in ["lost connection", "-1", "Connection reset by peer"] {
            let line = format!("SSL_connect error to mx.a.test[203.0.113.20]:25: {cause}");
            let want = EventKind::HandshakeFailed { peer: peer("mx.a.test 203.0.113.20"), cause: cause.as_bytes() };
            assert_eq!(handshake(line.as_bytes()), Some(Ok(Some(want))), "{line}");
        }
        assert_eq!(handshake(b"SSL_connect:error in error"), None);
        assert_eq!(handshake(b"SSL_connect error to ?"), Some(Err(LineFamily::TlsHandshake)));
    }

    #[test]
    fn reads_lines_that_begin_with_the_peer() {
        let old = b"mx.a.test[203.0.113.79]:25: re-using session with untrusted certificate, look for details earlier in the log";
        let new = b"mx.a.test[203.0.113.79]:25: re-using session with untrusted peer credential, look for details earlier in the log";
        let want = EventKind::ResumedUntrusted { peer: peer("mx.a.test 203.0.113.79") };
        assert_eq!((resumed_untrusted(old), resumed_untrusted(new)), (Some(want.clone()), Some(want)));

        let fallback = b"mx.a.test[203.0.113.79]:25: all TLSA records unusable, fallback to unauthenticated TLS";
        let only = b"mx.a.test[203.0.113.79]:25: all TLSA records unusable";
        let want = EventKind::TlsaUnusable { peer: peer("mx.a.test 203.0.113.79") };
        assert_eq!((tlsa_unusable(fallback), tlsa_unusable(only)), (Some(want.clone()), Some(want)));
    }

    #[test]
    fn an_issuer_that_imitates_a_line_changes_nothing() {
        let issuer = "/CN=x: num=62:hostname mismatch]:25: re-using session with untrusted certificate";
        let line = format!("certificate verification failed for mx.a.test[203.0.113.54]:25: untrusted issuer {issuer}");
        let want = EventKind::VerificationFailed {
            peer: peer("mx.a.test 203.0.113.54"),
            cause: VerificationError::UntrustedIssuer,
        };
        assert_eq!(verification(line.as_bytes()), Some(Ok(Some(want))));
        let subject = format!("mx.a.test[203.0.113.54]:25: depth=0 verify=0 subject={issuer}");
        assert_eq!(resumed_untrusted(subject.as_bytes()), None);
    }
}
