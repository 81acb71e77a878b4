//! Why a TLS handshake failed, as a reason code (RFC 8460 §4.4): in the words of a log line, of Postfix, of Exim and of the
//! TLS libraries under them.
//!
//! Takes: the cause that a line names. Gives: `tls-remote-alert-40-handshake-failure` for an alert of the server,
//! `tls-local-…` for what our side's library refused, `tls-record-header-error` for an answer that is not TLS,
//! `io-timeout-during-handshake`, `connection-closed-during-handshake`: the codes that mox reports too.
//! Limits: a code has at most [`MAX_CODE`] characters. The words are a library's, never a stranger's.
//! When it fails: `None` where the line says nothing, and the caller's general code stands.
//! Not here: certificates (`reason`).

use memchr::memmem;

/// The longest code, in characters.
const MAX_CODE: usize = 64;

const TIMEOUT: &str = "io-timeout-during-handshake";
const CLOSED: &str = "connection-closed-during-handshake";
const NOT_TLS: &str = "tls-record-header-error";

/// An alert of the server whose kind is not logged.
const REMOTE_ALERT: &str = "tls-remote-alert";

/// Alerts: number, name in the registry (RFC 8446 §6, RFC 5246 §7.2), and GnuTLS's words for it (`gnutls_alert_get_name`).
const ALERTS: [(u16, &str, &str); 34] = [
    (0, "close-notify", "Close notify"),
    (10, "unexpected-message", "Unexpected message"),
    (20, "bad-record-mac", "Bad record MAC"),
    (21, "decryption-failed", "Decryption failed"),
    (22, "record-overflow", "Record overflow"),
    (30, "decompression-failure", "Decompression failed"),
    (40, "handshake-failure", "Handshake failed"),
    (41, "no-certificate", "No certificate"),
    (42, "bad-certificate", "Certificate is bad"),
    (43, "unsupported-certificate", "Certificate is not supported"),
    (44, "certificate-revoked", "Certificate was revoked"),
    (45, "certificate-expired", "Certificate is expired"),
    (46, "certificate-unknown", "Unknown certificate"),
    (47, "illegal-parameter", "Illegal parameter"),
    (48, "unknown-ca", "CA is unknown"),
    (49, "access-denied", "Access was denied"),
    (50, "decode-error", "Decode error"),
    (51, "decrypt-error", "Decrypt error"),
    (60, "export-restriction", "Export restriction"),
    (70, "protocol-version", "Error in protocol version"),
    (71, "insufficient-security", "Insufficient security"),
    (80, "internal-error", "Internal error"),
    (86, "inappropriate-fallback", "Inappropriate fallback"),
    (90, "user-canceled", "User canceled"),
    (100, "no-renegotiation", "No renegotiation is allowed"),
    (109, "missing-extension", "An extension was expected but was not seen"),
    (110, "unsupported-extension", "An unsupported extension was sent"),
    (111, "certificate-unobtainable", "Could not retrieve the specified certificate"),
    (112, "unrecognized-name", "The server name sent was not recognized"),
    (113, "bad-certificate-status-response", ""),
    (114, "bad-certificate-hash-value", ""),
    (115, "unknown-psk-identity", "The SRP/PSK username is missing or not known"),
    (116, "certificate-required", "Certificate is required"),
    (120, "no-application-protocol", "No supported application protocol could be negotiated"),
];

/// The code of what follows `SSL_connect error to HOST[IP]:PORT: ` in Postfix's log: the text of an errno, or `lost
/// connection`. A bare number has no code: the lines of the TLS library follow it.
pub(super) fn connection_code(cause: &[u8]) -> Option<String> {
    let code = match cause {
        b"lost connection" | b"Connection reset by peer" | b"Broken pipe" => CLOSED,
        b"Connection timed out" => TIMEOUT,
        _ => return None,
    };
    Some(code.to_owned())
}

/// An error of OpenSSL's, `error:HEX:LIBRARY:[FUNCTION]:REASON[:…]` (`ERR_error_string`), in versions 1.1.1 and 3.
pub(super) fn openssl_code(text: &[u8]) -> Option<String> {
    let mut fields = text.strip_prefix(b"error:")?.split(|byte| *byte == b':');
    let number = u32::from_str_radix(str::from_utf8(fields.next()?).ok()?, 16).ok()?;
    // The lowest 12 bits are the reason in both; reasons from 1000 on are alerts of the server (SSL_AD_REASON_OFFSET).
    let reason = u16::try_from(number & 0xfff).ok()?;
    let words = fields.nth(2)?;
    Some(match reason {
        // No error was queued: the connection ended.
        0 => CLOSED.to_owned(),
        1000.. => alert_code(reason - 1000),
        // `unexpected eof while reading`.
        294 => CLOSED.to_owned(),
        // `wrong version number`, `packet length too long`, `http request`.
        267 | 198 | 156 => NOT_TLS.to_owned(),
        _ => local_code(words),
    })
}

/// What Exim logs of a handshake: an error of OpenSSL's, or words of GnuTLS's or of its own.
pub(super) fn exim_code(words: &[u8]) -> Option<String> {
    // The recipient bounces.
    let words = memmem::find(words, b": retry timeout exceeded").map_or(words, |end| &words[..end]);
    if words.starts_with(b"error:") {
        return openssl_code(words);
    }
    let code = match words {
        b"" => return None,
        b"timed out" => TIMEOUT,
        b"The TLS connection was non-properly terminated." | b"Error in the pull function." => CLOSED,
        b"Error in the push function." => CLOSED,
        b"An unexpected TLS packet was received." | b"A record packet with illegal version was received." => NOT_TLS,
        b"A TLS fatal alert has been received." => REMOTE_ALERT,
        // Exim's own words: what the server thinks of the handshake, and data before it (smtp.c).
        b"error on first read" | b"bad first read from TLS conn" => "error-on-first-read",
        b"synch error before connect" => "data-before-handshake",
        // 4.96 and 4.97 leave `rxd alert: ` out.
        _ => match alert_by_words(words.strip_prefix(b"rxd alert: ").unwrap_or(words)) {
            Some(alert) => return Some(alert_code(alert)),
            None if words.starts_with(b"rxd alert: ") => REMOTE_ALERT,
            None => return Some(local_code(words)),
        },
    };
    Some(code.to_owned())
}

fn alert_by_words(words: &[u8]) -> Option<u16> {
    ALERTS.iter().find(|(.., known)| known.as_bytes() == words && !known.is_empty()).map(|(number, ..)| *number)
}

/// `tls-remote-alert-40-handshake-failure`.
fn alert_code(number: u16) -> String {
    match ALERTS.iter().find(|(known, ..)| *known == number) {
        Some((_, name, _)) => format!("{REMOTE_ALERT}-{number}-{name}"),
        None => format!("{REMOTE_ALERT}-{number}"),
    }
}

/// `tls-local-unsupported-protocol`: the words in lower case, each run of other characters a hyphen.
fn local_code(words: &[u8]) -> String {
    let mut code = "tls-local".to_owned();
    for word in words.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        code.push('-');
        code.extend(word.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    code.truncate(MAX_CODE);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_openssl_by_number() {
        for (text, want) in [
            (
                "error:0A000410:SSL routines::ssl/tls alert handshake failure:../ssl/record/rec_layer_s3.c:918:SSL alert number 40:",
                "tls-remote-alert-40-handshake-failure",
            ),
            // As Exim has it, of 3 and of 1.1.1.
            ("error:0A000410:SSL routines::sslv3 alert handshake failure", "tls-remote-alert-40-handshake-failure"),
            (
                "error:14094410:SSL routines:ssl3_read_bytes:sslv3 alert handshake failure",
                "tls-remote-alert-40-handshake-failure",
            ),
            (
                "error:0A00042E:SSL routines::tlsv1 alert protocol version:../ssl/record/rec_layer_s3.c:918:SSL alert number 70:",
                "tls-remote-alert-70-protocol-version",
            ),
            (
                "error:0A00045C:SSL routines::tlsv13 alert certificate required:x.c:1:SSL alert number 116:",
                "tls-remote-alert-116-certificate-required",
            ),
            ("error:0A0004E7:SSL routines::reason(1255):x.c:1:", "tls-remote-alert-255"),
            ("error:0A00010B:SSL routines::wrong version number:../ssl/record/ssl3_record.c:350:", NOT_TLS),
            ("error:0A000126:SSL routines::unexpected eof while reading", CLOSED),
            ("error:00000000:lib(0)::reason(0)", CLOSED),
            ("error:00000000:lib(0):func(0):reason(0)", CLOSED),
            ("error:0A000102:SSL routines::unsupported protocol", "tls-local-unsupported-protocol"),
            (
                "error:0A00014D:SSL routines::legacy sigalg disallowed or unsupported:../ssl/statem/statem_clnt.c:2254:",
                "tls-local-legacy-sigalg-disallowed-or-unsupported",
            ),
            (
                "error:1414D172:SSL routines:tls12_check_peer_sigalg:wrong signature type",
                "tls-local-wrong-signature-type",
            ),
        ] {
            assert_eq!(openssl_code(text.as_bytes()).as_deref(), Some(want), "{text}");
        }
        for text in ["", "error:", "error:xyz:a:b:c", "error:0A000410", "error:0A000410:SSL routines", "warning"] {
            assert_eq!(openssl_code(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn words_of_exim_and_gnutls() {
        for (words, want) in [
            ("rxd alert: Handshake failed", "tls-remote-alert-40-handshake-failure"),
            ("Handshake failed", "tls-remote-alert-40-handshake-failure"),
            ("rxd alert: Error in protocol version", "tls-remote-alert-70-protocol-version"),
            ("rxd alert: something new", "tls-remote-alert"),
            ("A TLS fatal alert has been received.", "tls-remote-alert"),
            ("timed out", TIMEOUT),
            ("timed out: retry timeout exceeded", TIMEOUT),
            ("The TLS connection was non-properly terminated.", CLOSED),
            ("Error in the pull function.", CLOSED),
            ("An unexpected TLS packet was received.", NOT_TLS),
            ("Could not negotiate a supported cipher suite.", "tls-local-could-not-negotiate-a-supported-cipher-suite"),
            ("error on first read", "error-on-first-read"),
            ("bad first read from TLS conn", "error-on-first-read"),
            ("synch error before connect", "data-before-handshake"),
            ("ALPN required but not negotiated", "tls-local-alpn-required-but-not-negotiated"),
            ("error:0A000410:SSL routines::sslv3 alert handshake failure", "tls-remote-alert-40-handshake-failure"),
        ] {
            assert_eq!(exim_code(words.as_bytes()).as_deref(), Some(want), "{words}");
        }
        assert_eq!(exim_code(b""), None);
        assert_eq!(exim_code(&[b'x'; 500]).map(|code| code.len()), Some(MAX_CODE));
    }

    #[test]
    fn causes_of_postfix() {
        for (cause, want) in [
            ("lost connection", Some(CLOSED)),
            ("Connection reset by peer", Some(CLOSED)),
            ("Connection timed out", Some(TIMEOUT)),
            ("-1", None),
            ("No such file or directory", None),
        ] {
            assert_eq!(connection_code(cause.as_bytes()).as_deref(), want, "{cause}");
        }
    }

    #[test]
    fn alerts_are_in_order_and_told_apart() {
        assert!(ALERTS.is_sorted_by(|a, b| a.0 < b.0));
        for (number, name, words) in ALERTS {
            assert!(words.is_empty() || alert_by_words(words.as_bytes()) == Some(number), "{name}");
            assert!(alert_code(number).len() <= MAX_CODE);
        }
    }
}
