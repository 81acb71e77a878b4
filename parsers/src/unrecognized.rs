//! Recognizes lines that no parser reads but that may concern a TLS session, such as the wording of a newer MTA.
//!
//! Takes: a text that is certainly the MTA's, and that matched nothing. Gives: whether it may be about a session.
//! A word of TLS's speaks for it, and so does a peer with its port in a line of smtp(8). What the MTAs are known to log
//! beside, about keys, caches, details at higher log levels and the end of a connection, is let pass, and so are the replies
//! of servers, which are a stranger's text.
//! Limits: a new line without any of these words is not noticed.
//! Not here: lines that begin like known ones and cannot be read to their end (each reader's own family).

use memchr::memmem;

/// What smtp(8) logs of TLS beside (3.4 to 3.12, at any log level), from the front of the text.
const POSTFIX_REMARKS: [&[u8]; 21] = [
    b"CONNECT to [",
    b"fingerprint: digest as private-use TLSA record: ",
    b"DNSSEC-signed TLSA record: ",
    b"setting up TLS connection to ",
    b"initializing the ",
    b"SSL_connect:",
    b"SSL3 alert ",
    b"looking for session ",
    b"save session ",
    b"reloaded session ",
    b"removing session ",
    b"remove session ",
    b"delete smtp session ",
    b"Host offered STARTTLS: [",
    b"using ",
    b"connect to ",
    b"Untrusted TLS connection reused ",
    b"cannot load ",
    b"read from ",
    b"write to ",
    b"TLSRPT support: ",
];

/// The same behind `HOST[IP]:PORT: `.
const POSTFIX_PEER_REMARKS: [&[u8]; 15] = [
    b"TLS cipher list ",
    b"Reusing old session",
    b"depth=",
    b"subject_CN=",
    b"SNI hostname: ",
    b"Matched ",
    b"matched ",
    b"raw public key fingerprint=",
    b"unusable TLSA RR: ",
    b"certificate ",
    b"Issued by ",
    b"cert digest",
    b"all fingerprints unusable",
    b"all trust anchors unusable",
    b"peer certificate has no ",
];

/// Warnings about the settings of this host, and about TLSA records that others make of a session.
const POSTFIX_WARNINGS: [&[u8]; 12] = [
    b"TLSRPT support: ",
    b"DANE TLSA lookup problem: ",
    b"DNSSEC status lookup error for ",
    b"smtp_tls_policy_maps, ",
    b"no MX host for ",
    b"TLS has been ",
    b"TLS library problem: ",
    b"cannot ",
    b"problem talking to ",
    b"connect to ",
    b"dict_",
    b"socketmap:",
];

/// Parts of such warnings that have a name before them.
const POSTFIX_WARNING_PARTS: [&[u8]; 9] = [
    b": client TLS configuration problem",
    b" unsupported TLSA certificate",
    b" in RR: ",
    b" configured",
    b": unusable TLSA RR: ",
    b" unusable: ",
    b" as private-use TLSA",
    b" trust anchors unusable",
    b" fingerprints unusable",
];

/// Reasons of smtp(8) that say nothing of a session.
const POSTFIX_REASONS: [&[u8]; 18] = [
    b"Sender requested REQUIRETLS, but no server was found that supports REQUIRETLS",
    // A reply of the server's.
    b"host ",
    b"connect to ",
    b"lost connection with ",
    b"conversation with ",
    b"Host or domain name not found",
    b"SASL ",
    b"delivery temporarily suspended: ",
    b"server unavailable or unable to receive mail",
    // This host's settings.
    b"TLS is required, but our TLS engine is unavailable",
    b"TLS is required, but unavailable",
    b"Sender requires verified TLS, ",
    b"Sender requested REQUIRETLS, but my ",
    // Hosts that were excluded, each in a line of its own.
    b"TLSA lookup error for ",
    b"TLSA records unusable",
    b"no TLSA records found",
    b"non DNSSEC destination",
    b"MX name '",
];

/// What Exim logs of TLS beside, behind the message id.
const EXIM_REMARKS: [&[u8]; 13] = [
    b"TLS error ",
    b"DKIM: ",
    b"SPF",
    b"ARC: ",
    b"SMTP ",
    b"DANE: ",
    b"(during ",
    // Unsigned TLSA records are none (host.c, `tlsa_lookup`).
    b"DANE error: TLSA lookup for ",
    // What OpenSSL's stapling callback found, before the handshake fails, and the end of a connection (tls-openssl.c).
    b"Required TLS certificate status not received",
    b"Received TLS cert status response, ",
    b"Server certificate ",
    b"SSL channel closed on write",
    b"SSL_write",
];

/// Messages about a host that say nothing of a session: the replies of servers, and waiting.
const EXIM_MESSAGES: [&[u8]; 7] = [
    // The router of our example: the answer was that the policy cannot be known now.
    b"TLS policy of ",
    b"SMTP error from remote mail server",
    b"SMTP timeout",
    b"retry time not reached",
    b"all hosts for ",
    b"Remote host closed connection",
    b"host lookup did not complete",
];

/// Whether a text uses a word of TLS's, whole or as a part of one, for they are written in either case.
#[cold]
fn concerns_tls(text: &[u8]) -> bool {
    let begins_with_word = |at: usize, first: u8| {
        let words: &[&[u8]] = match first {
            b'T' => &[b"TLS"],
            b'S' => &[b"SSL", b"STS"],
            b'D' => &[b"DANE", b"DNSSEC"],
            b'd' => &[b"dnssec"],
            b'e' => &[b"ertificate", b"erified", b"erification"],
            b'a' => &[b"andshake"],
            b'c' => &[b"cipher"],
            b'r' => &[b"rusted"],
            b'n' => &[b"nencrypted"],
            b't' => &[b"tlsa "],
            b'g' => &[b"gnutls"],
            b' ' => &[b" is required, but"],
            _ => return false,
        };
        text.get(at..).is_some_and(|rest| begins_with_any(rest, words))
    };
    text.iter().enumerate().any(|(at, first)| begins_with_word(at, *first))
}

fn begins_with_any(text: &[u8], known: &[&[u8]]) -> bool {
    known.iter().any(|known| text.starts_with(known))
}

/// A line of smtp(8) without a queue id; `after_peer`: what follows `HOST[IP]:PORT: ` where it begins so.
pub(crate) fn is_smtp_text(text: &[u8], after_peer: Option<&[u8]>) -> bool {
    if let Some(warning) = text.strip_prefix(b"warning: ") {
        return !begins_with_any(warning, &POSTFIX_WARNINGS)
            && (concerns_tls(warning) || warning.starts_with(b"MX name '"))
            && !POSTFIX_WARNING_PARTS.iter().any(|part| memmem::find(warning, part).is_some());
    }
    match after_peer {
        Some(rest) => !begins_with_any(rest, &POSTFIX_PEER_REMARKS),
        None => {
            let names_peer =
                || memmem::find(text, b"]:").and_then(|at| text.get(at + 2)).is_some_and(u8::is_ascii_digit);
            // `HOST[IP]:PORT CommonName …` of Postfix 3.5.
            !begins_with_any(text, &POSTFIX_REMARKS)
                && (concerns_tls(text) || names_peer())
                && memmem::find(text, b" CommonName ").is_none()
        }
    }
}

/// The reason in a line of smtp(8) with a queue id.
pub(crate) fn is_smtp_reason(text: &[u8]) -> bool {
    !begins_with_any(text, &POSTFIX_REASONS) && concerns_tls(text)
}

/// A line of Exim's that has no arrow and names no host.
pub(crate) fn is_exim_text(text: &[u8]) -> bool {
    !begins_with_any(text, &EXIM_REMARKS) && concerns_tls(text)
}

/// What Exim says of a host.
pub(crate) fn is_exim_message(text: &[u8]) -> bool {
    !begins_with_any(text, &EXIM_MESSAGES) && concerns_tls(text)
}
