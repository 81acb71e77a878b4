//! Reads what Exim and its TLS library say of one host: `H=…`, `DANE …`, `TLS session: …`, `[IP] SSL verify error: …`.
//!
//! Takes: the text behind the message id, or the message at the end of a recipient's line. Gives: the event, or why a
//! host was given up, in the words of 4.94 to 4.100 built with GnuTLS or OpenSSL.
//! When it fails: [`Family::EximHost`], [`Family::EximVerification`].

use memchr::{memchr, memmem};

use super::fields;
use crate::{
    event::{
        VerifyCause,
        exim::{Problem, Says},
    },
    family::{Family, Found},
};

/// A line without an arrow.
pub(super) fn parse(text: &[u8], cut: bool) -> Found<Says<'_>> {
    // What is not all there is not read.
    if cut {
        return Ok(None);
    }
    match text.first() {
        Some(b'H') => host(text),
        Some(b'T') => in_clear(text),
        Some(b'D') => dane(text),
        _ => verification(text),
    }
}

/// `H=HOST [IP][:PORT]: message` (smtp.c, `write_logs`); without the colon it is about the connection, or about the
/// errors of one that did its work.
fn host(text: &[u8]) -> Found<Says<'_>> {
    let Some((peer, rest)) = text.strip_prefix(b"H=").and_then(fields::peer) else { return Ok(None) };
    let Some(message) = rest.strip_prefix(b": ") else { return Ok(None) };
    let problem = parse_problem(message);
    let ours = problem.rules_out() || problem.fails_session();
    Ok(ours.then_some(Says::Host { peer, problem }))
}

/// `TLS session: …: delivering unencrypted to H=HOST [IP] (not in hosts_require_tls)`: read from its end, for the library's
/// words are of any form.
fn in_clear(text: &[u8]) -> Found<Says<'_>> {
    const TO: &[u8] = b": delivering unencrypted to H=";
    let Some(front) = text.strip_suffix(b" (not in hosts_require_tls)") else { return Ok(None) };
    let Some(at) = memmem::rfind(front, TO) else { return Ok(None) };
    let (said, to) = front.split_at(at);
    let peer = to.get(TO.len()..).and_then(fields::peer).filter(|(_, rest)| rest.is_empty());
    let (peer, _) = peer.ok_or(Family::EximHost)?;
    let problem = parse_problem(said);
    Ok(problem.fails_session().then_some(Says::Host { peer, problem }))
}

/// `DANE attempt failed; TLS connection to HOST [IP]: …`, `DANE error: No usable TLSA records`.
fn dane(text: &[u8]) -> Found<Says<'_>> {
    if text == b"DANE error: No usable TLSA records" {
        return Ok(Some(Says::NoUsableTlsa));
    }
    let Some(rest) = text.strip_prefix(b"DANE attempt failed; TLS connection to ") else { return Ok(None) };
    let (peer, rest) = fields::peer(rest).ok_or(Family::EximHost)?;
    let said = rest.strip_prefix(b": ").ok_or(Family::EximHost)?;
    let problem = session(said);
    Ok(problem.fails_session().then_some(Says::Host { peer, problem }))
}

/// `[IP] SSL verify error: depth=0 error=… cert=…` or `[IP] SSL verify error: certificate name mismatch: …`. One that
/// was met while a sender or a recipient was being verified says so, and is of no interest.
fn verification(text: &[u8]) -> Found<Says<'_>> {
    let Some(rest) = text.strip_prefix(b"[") else { return Ok(None) };
    let Some((address, rest)) = memchr(b']', rest).and_then(|end| rest.split_at_checked(end)) else { return Ok(None) };
    let Some(rest) = rest.strip_prefix(b"] SSL verify error: ") else { return Ok(None) };
    let ip = fields::ip(address).ok_or(Family::EximVerification)?;
    if let Some(words) = rest.get(..25).filter(|words| *words == b"certificate name mismatch") {
        return Ok(Some(Says::VerifyError { ip, cause: VerifyCause::Code(62, words) }));
    }
    if rest == b"internal error" {
        return Ok(None);
    }
    let read = || {
        let (_, rest) = crate::syslog::decimal(rest.strip_prefix(b"depth=")?)?;
        let rest = rest.strip_prefix(b" error=")?;
        // The certificate's own name follows, and it is a stranger's.
        let error = rest.get(..memmem::find(rest, b" cert=")?)?;
        Some(Says::VerifyError { ip, cause: cause(error) })
    };
    read().map(Some).ok_or(Family::EximVerification)
}

/// OpenSSL's words for a verification error (`X509_verify_cert_error_string`), of 1.1.1 or 3.
fn cause(error: &[u8]) -> VerifyCause<'_> {
    match error {
        b"certificate has expired" => VerifyCause::Expired,
        b"certificate is not yet valid" => VerifyCause::NotYetValid,
        b"self-signed certificate" | b"self signed certificate" => VerifyCause::SelfSigned,
        b"unable to get local issuer certificate" | b"unable to get issuer certificate" => VerifyCause::UntrustedIssuer,
        b"certificate not trusted" => VerifyCause::NotTrusted,
        b"unsuitable certificate purpose" | b"unsupported certificate purpose" => VerifyCause::WrongPurpose,
        b"certificate chain too long" => VerifyCause::ChainTooLong,
        b"hostname mismatch" | b"Hostname mismatch" => VerifyCause::Code(62, error),
        b"no matching DANE TLSA records" | b"No matching DANE TLSA records" => VerifyCause::Code(65, error),
        _ => VerifyCause::Code(0, error),
    }
}

/// What a message of Exim's says of a host: that of `H=…:`, `==`, `**`, or `$event_data`.
pub(super) fn parse_problem(message: &[u8]) -> Problem<'_> {
    if let Some(said) = message.strip_prefix(b"TLS session: ") {
        return session(said);
    }
    if let Some(rest) = message.strip_prefix(b"a TLS session is required, but ") {
        if rest.starts_with(b"the server did not offer TLS support") {
            return Problem::StarttlsNotOffered;
        }
        if rest.starts_with(b"an attempt to start TLS failed") {
            return Problem::StarttlsRefused;
        }
        return Problem::Other;
    }
    if let Some(rest) = message.strip_prefix(b"SMTP error from remote mail server after ") {
        let rest = rest.strip_prefix(b"pipelined ").unwrap_or(rest);
        return if rest.starts_with(b"STARTTLS: ") { Problem::StarttlsRefused } else { Problem::Other };
    }
    if let Some(rest) = message.strip_prefix(b"DANE error: ") {
        return match rest.strip_prefix(b"tlsa lookup ") {
            Some(found) if found.starts_with(b"DEFER") => Problem::TlsaLookup,
            Some(_) => Problem::DaneRequired,
            // `HOST lookup not DNSSEC`: a host name has no space.
            None => match memchr(b' ', rest).and_then(|space| rest.get(space..)) {
                Some(rest) if rest.starts_with(b" lookup not DNSSEC") => Problem::DaneRequired,
                _ => Problem::Other,
            },
        };
    }
    match message.strip_prefix(b"deferred by smtp:connect event expansion: MX host ") {
        None => Problem::Other,
        Some(rest) => match memchr(b' ', rest).and_then(|space| rest.get(space..)) {
            Some(rest) if rest.starts_with(b" is not in the MTA-STS policy of ") => Problem::StsMxMismatch,
            Some(rest) if rest.starts_with(b" was found without DNSSEC, and ") => Problem::DaneRequired,
            _ => Problem::Other,
        },
    }
}

/// What stands behind `TLS session: `: `(WHERE)[: WHAT]`, or words of Exim's own.
fn session(said: &[u8]) -> Problem<'_> {
    let Some((place, what)) = place(said) else {
        // `error on first read`, `bad first read from TLS conn`, `synch error before connect`.
        return if said.starts_with(b"expansion of ") { Problem::Local } else { Problem::Handshake(said) };
    };
    match place {
        b"certificate verification failed" => certificate(what),
        b"gnutls_handshake" | b"SSL_connect" | b"handshake" | b"certificate status check failed" | b"ocsp decode" => {
            if place == b"SSL_connect" && contains(what, b"certificate verify failed") {
                Problem::CertificateRejected
            } else {
                Problem::Handshake(what)
            }
        }
        b"tlsa load" => Problem::TlsaUnusable,
        // The peer's certificate, of a type that Exim cannot verify.
        place if place.starts_with(b"certificate verification not possible") => Problem::Handshake(place),
        b"recv" | b"send" => Problem::Handshake(what),
        // Keys, ciphers, files and options that this host has set up wrongly.
        _ => Problem::Local,
    }
}

/// `(WHERE)`, and what stands behind it and a colon. A place can have parentheses of its own: it ends at `): ` or at the end.
fn place(said: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = said.strip_prefix(b"(")?;
    match memmem::find(rest, b"): ") {
        Some(end) => Some((rest.get(..end)?, rest.get(end + 3..)?)),
        None => Some((rest.strip_suffix(b")")?, b"")),
    }
}

/// GnuTLS's verification (tls-gnu.c, `verify_certificate`).
fn certificate(what: &[u8]) -> Problem<'_> {
    // `: retry timeout exceeded` may follow where the recipient bounces.
    match what {
        b"" => Problem::CertificateName,
        what if what.starts_with(b"certificate invalid") => Problem::CertificateInvalid,
        what if what.starts_with(b"certificate revoked") => Problem::CertificateRevoked,
        what if what.starts_with(b"certificate not supplied") => Problem::CertificateMissing,
        what if what.starts_with(b"TLSA record problem: ") => Problem::TlsaUnusable,
        what if what.starts_with(b"retry timeout exceeded") => Problem::CertificateName,
        what => Problem::DaneMismatch(what),
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memmem::find(text, part).is_some()
}
