//! Reads what Exim and its TLS library say of one host: `H=…`, `DANE …`, `TLS session: …`, `[IP] SSL verify error: …`.
//!
//! Takes: the text behind the message id, or the message at the end of a recipient's line. Gives: the event, or why a
//! host was given up, in the words of 4.94 to 4.100 built with GnuTLS or OpenSSL.
//! When it fails: [`LineFamily::EximHost`], [`LineFamily::EximVerification`].

use memchr::{memchr, memmem};

use super::fields;
use crate::{
    event::{
        VerificationError,
        exim::{HostProblem, LineKind},
    },
    family::{LineFamily, ParseResult},
    ip_address, unrecognized,
};

/// A line without an arrow.
pub(super) fn parse(text: &[u8], continues: bool) -> ParseResult<LineKind<'_>> {
    // What is not all there is not read.
    if continues {
        return Ok(None);
    }
    let found = match text.first() {
        Some(b'H') => host(text),
        Some(b'T') => cleartext_fallback(text),
        Some(b'D') => dane(text),
        _ => verification(text),
    };
    match found {
        Ok(None) if is_unknown_text(text) => Err(LineFamily::UnknownEximText),
        found => found,
    }
}

/// A line that begins like no known one.
pub(super) fn parse_other(text: &[u8], continues: bool) -> ParseResult<LineKind<'_>> {
    if !continues && unrecognized::is_exim_text(text) { Err(LineFamily::UnknownEximText) } else { Ok(None) }
}

/// Whether a line that is none of the known ones may be about a session.
fn is_unknown_text(text: &[u8]) -> bool {
    match text.strip_prefix(b"H=").and_then(fields::peer) {
        // Without the colon it is about a connection that did its work.
        Some((_, rest)) => {
            rest.strip_prefix(b": ").is_some_and(|message| is_unknown_problem(parse_problem(message), message))
        }
        // `H=` of a client, in a line about a message that comes in.
        None if text.starts_with(b"H=") => false,
        None if text.starts_with(b"[") => unrecognized::is_exim_text(text) && !is_verification_remark(text),
        None => match memmem::find(text, b": callout unencrypted to ") {
            Some(_) => false,
            None => unrecognized::is_exim_text(text),
        },
    }
}

/// `[IP] SSL verify error (during R-verify for [IP]): …`, `[IP] SSL verify error: internal error`.
fn is_verification_remark(text: &[u8]) -> bool {
    let rest = memchr(b']', text).and_then(|at| text.get(at..)).unwrap_or_default();
    rest.starts_with(b"] SSL verify error (during ")
        || rest == b"] SSL verify error: internal error"
        // Stapling: the handshake fails after it.
        || contains(rest, b" Received TLS cert (DN: '")
}

/// Whether a message is in unknown words, and may concern a session: also where it names a place in the TLS library that
/// is neither the handshake nor the settings of this host.
pub(super) fn is_unknown_problem(problem: HostProblem<'_>, message: &[u8]) -> bool {
    match problem {
        HostProblem::Other => unrecognized::is_exim_message(message),
        HostProblem::Local => message.strip_prefix(b"TLS session: ").is_some_and(|place| !is_local_place(place)),
        _ => false,
    }
}

/// Places that tell a fault of this host's settings (tls-gnu.c, tls-openssl.c).
fn is_local_place(message: &[u8]) -> bool {
    const PLACES: [&[u8]; 14] = [
        b"expansion of ",
        b"(cert/key setup",
        b"(SSL_CTX",
        b"(SSL_new",
        b"(SSL_set",
        b"(setup of",
        b"(setup)",
        b"(load ",
        b"(error loading",
        b"(gnutls_priority_",
        b"(gnutls_certificate_",
        b"(gnutls_init",
        b"(gnutls_global_init",
        b"(failed to ",
    ];
    PLACES.iter().any(|place| message.starts_with(place))
}

/// `H=HOST [IP][:PORT]: message` (smtp.c, `write_logs`); without the colon it is about the connection, or about the
/// errors of one that did its work.
fn host(text: &[u8]) -> ParseResult<LineKind<'_>> {
    let Some((peer, rest)) = text.strip_prefix(b"H=").and_then(fields::peer) else { return Ok(None) };
    let Some(message) = rest.strip_prefix(b": ") else { return Ok(None) };
    let problem = parse_problem(message);
    let ours = problem.excludes_host() || problem.is_session_failure();
    Ok(ours.then_some(LineKind::Host { peer, problem, clear_text_follows: false }))
}

/// `TLS session: …: delivering unencrypted to H=HOST [IP] (not in hosts_require_tls)`: read from its end, for the library's
/// words are of any form.
fn cleartext_fallback(text: &[u8]) -> ParseResult<LineKind<'_>> {
    const TO: &[u8] = b": delivering unencrypted to H=";
    let Some(front) = text.strip_suffix(b" (not in hosts_require_tls)") else { return Ok(None) };
    let Some(at) = memmem::rfind(front, TO) else { return Ok(None) };
    let (message, to) = front.split_at(at);
    let peer = to.get(TO.len()..).and_then(fields::peer).filter(|(_, rest)| rest.is_empty());
    let (peer, _) = peer.ok_or(LineFamily::EximHost)?;
    let problem = parse_problem(message);
    Ok(problem.is_session_failure().then_some(LineKind::Host { peer, problem, clear_text_follows: true }))
}

/// `DANE attempt failed; TLS connection to HOST [IP]: …`, `DANE error: No usable TLSA records`.
fn dane(text: &[u8]) -> ParseResult<LineKind<'_>> {
    if text == b"DANE error: No usable TLSA records" {
        return Ok(Some(LineKind::NoUsableTlsa));
    }
    let Some(rest) = text.strip_prefix(b"DANE attempt failed; TLS connection to ") else { return Ok(None) };
    let (peer, rest) = fields::peer(rest).ok_or(LineFamily::EximHost)?;
    let message = rest.strip_prefix(b": ").ok_or(LineFamily::EximHost)?;
    let problem = tls_session_problem(message);
    Ok(problem.is_session_failure().then_some(LineKind::Host { peer, problem, clear_text_follows: false }))
}

/// `[IP] SSL verify error: depth=0 error=… cert=…` or `[IP] SSL verify error: certificate name mismatch: …`. One that
/// was met while a sender or a recipient was being verified says so, and is of no interest.
fn verification(text: &[u8]) -> ParseResult<LineKind<'_>> {
    let Some(rest) = text.strip_prefix(b"[") else { return Ok(None) };
    let Some((address, rest)) = memchr(b']', rest).and_then(|end| rest.split_at_checked(end)) else { return Ok(None) };
    let Some(rest) = rest.strip_prefix(b"] SSL verify error: ") else { return Ok(None) };
    let ip = ip_address::parse(address).ok_or(LineFamily::EximVerification)?;
    if let Some(words) = rest.get(..25).filter(|words| *words == b"certificate name mismatch") {
        return Ok(Some(LineKind::VerifyError { ip, cause: VerificationError::Code(62, words) }));
    }
    if rest == b"internal error" {
        return Ok(None);
    }
    let read = || {
        let (_, rest) = crate::number::decimal(rest.strip_prefix(b"depth=")?)?;
        let rest = rest.strip_prefix(b" error=")?;
        // The certificate's own name follows, and it is a stranger's.
        let error = rest.get(..memmem::find(rest, b" cert=")?)?;
        Some(LineKind::VerifyError { ip, cause: openssl_verification_error(error) })
    };
    read().map(Some).ok_or(LineFamily::EximVerification)
}

/// OpenSSL's words for a verification error (`X509_verify_cert_error_string`), of 1.1.1 or 3.
fn openssl_verification_error(error: &[u8]) -> VerificationError<'_> {
    match error {
        b"certificate has expired" => VerificationError::Expired,
        b"certificate is not yet valid" => VerificationError::NotYetValid,
        b"self-signed certificate" | b"self signed certificate" => VerificationError::SelfSigned,
        b"unable to get local issuer certificate" | b"unable to get issuer certificate" => {
            VerificationError::UntrustedIssuer
        }
        b"certificate not trusted" => VerificationError::NotTrusted,
        b"unsuitable certificate purpose" | b"unsupported certificate purpose" => VerificationError::WrongPurpose,
        b"certificate chain too long" => VerificationError::ChainTooLong,
        b"hostname mismatch" | b"Hostname mismatch" => VerificationError::Code(62, error),
        b"no matching DANE TLSA records" | b"No matching DANE TLSA records" => VerificationError::Code(65, error),
        _ => VerificationError::Code(0, error),
    }
}

/// What a message of Exim's says of a host: that of `H=…:`, `==`, `**`, or `$event_data`.
pub(super) fn parse_problem(message: &[u8]) -> HostProblem<'_> {
    if let Some(message) = message.strip_prefix(b"TLS session: ") {
        return tls_session_problem(message);
    }
    match message {
        // The first read over TLS 1.3 shows what the server thinks of the handshake (smtp.c, `check_response`).
        b"bad first read from TLS conn" => return HostProblem::Handshake(message),
        b"TLS support not available" => return HostProblem::Local,
        _ => {}
    }
    if let Some(rest) = message.strip_prefix(b"a TLS session is required, but ") {
        if rest.starts_with(b"the server did not offer TLS support") {
            return HostProblem::StarttlsNotOffered;
        }
        if rest.starts_with(b"an attempt to start TLS failed") {
            return HostProblem::StarttlsRefused;
        }
        return HostProblem::Other;
    }
    if let Some(rest) = message.strip_prefix(b"SMTP error from remote mail server after ") {
        let rest = rest.strip_prefix(b"pipelined ").unwrap_or(rest);
        return if rest.starts_with(b"STARTTLS: ") { HostProblem::StarttlsRefused } else { HostProblem::Other };
    }
    if let Some(rest) = message.strip_prefix(b"DANE error: ") {
        return match rest.strip_prefix(b"tlsa lookup ") {
            Some(found) if found.starts_with(b"DEFER") => HostProblem::TlsaLookup,
            Some(_) => HostProblem::DaneRequired,
            // `HOST lookup not DNSSEC`: a host name has no space.
            None => match memchr(b' ', rest).and_then(|space| rest.get(space..)) {
                Some(rest) if rest.starts_with(b" lookup not DNSSEC") => HostProblem::DaneRequired,
                _ => HostProblem::Other,
            },
        };
    }
    if let Some(rest) = message.strip_prefix(b"TLS policy of ") {
        let domain_ends = memchr(b' ', rest).and_then(|space| rest.get(space..));
        return match domain_ends {
            Some(rest) if rest.starts_with(b" is not known: ") => HostProblem::PolicyUnknown,
            _ => HostProblem::Other,
        };
    }
    match message.strip_prefix(b"deferred by smtp:connect event expansion: MX host ") {
        None => HostProblem::Other,
        Some(rest) => match memchr(b' ', rest).and_then(|space| rest.get(space..)) {
            Some(rest) => match rest.strip_prefix(b" is not in the MTA-STS policy of ") {
                Some(domain) => HostProblem::StsMxMismatch(domain),
                None if rest.starts_with(b" was found without DNSSEC, and ") => HostProblem::DaneRequired,
                None => HostProblem::Other,
            },
            None => HostProblem::Other,
        },
    }
}

/// What stands behind `TLS session: `: `(WHERE)[: WHAT]`, or words of Exim's own.
fn tls_session_problem(message: &[u8]) -> HostProblem<'_> {
    let Some((place, detail)) = split_place(message) else {
        // `error on first read`, `bad first read from TLS conn`, `synch error before connect`.
        return if message.starts_with(b"expansion of ") {
            HostProblem::Local
        } else {
            HostProblem::Handshake(message)
        };
    };
    match place {
        b"certificate verification failed" => gnutls_certificate_problem(detail),
        b"gnutls_handshake" | b"SSL_connect" | b"handshake" | b"certificate status check failed" | b"ocsp decode" => {
            if place == b"SSL_connect" && contains(detail, b"certificate verify failed") {
                HostProblem::CertificateRejected
            } else {
                HostProblem::Handshake(detail)
            }
        }
        b"tlsa load" => HostProblem::TlsaUnusable,
        // The peer's certificate, of a type that Exim cannot verify.
        place if place.starts_with(b"certificate verification not possible") => HostProblem::Handshake(place),
        b"recv" | b"send" => HostProblem::Handshake(detail),
        // Keys, ciphers, files and options that this host has set up wrongly.
        _ => HostProblem::Local,
    }
}

/// `(WHERE)`, and what stands behind it and a colon. A place can have parentheses of its own: it ends at `): ` or at the end.
fn split_place(message: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = message.strip_prefix(b"(")?;
    match memmem::find(rest, b"): ") {
        Some(end) => Some((rest.get(..end)?, rest.get(end + 3..)?)),
        None => Some((rest.strip_suffix(b")")?, b"")),
    }
}

/// GnuTLS's verification (tls-gnu.c, `verify_certificate`).
fn gnutls_certificate_problem(detail: &[u8]) -> HostProblem<'_> {
    // `: retry timeout exceeded` may follow where the recipient bounces.
    match detail {
        b"" => HostProblem::CertificateName,
        detail if detail.starts_with(b"certificate invalid") => HostProblem::CertificateInvalid,
        detail if detail.starts_with(b"certificate revoked") => HostProblem::CertificateRevoked,
        detail if detail.starts_with(b"certificate not supplied") => HostProblem::CertificateMissing,
        detail if detail.starts_with(b"TLSA record problem: ") => HostProblem::TlsaUnusable,
        detail if detail.starts_with(b"retry timeout exceeded") => HostProblem::CertificateName,
        detail => HostProblem::DaneMismatch(detail),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memmem::find(text, part).is_some()
}
