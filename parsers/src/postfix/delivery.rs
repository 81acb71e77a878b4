//! Reads what became of a recipient, and why a host was left: the lines of smtp(8) that begin with a queue id.
//!
//! Takes: the queue id and the text behind it. Gives: `Delivery` or `HostGivenUp`.
//! The form is that of `log_adhoc`: `to=<ADDR>[, orig_to=<ADDR>], relay=RELAY[, conn_use=N], delay=D, delays=A/B/C/D
//! [, tls=FEATURES], dsn=X.Y.Z, status=STATUS (REASON)`. Addresses and the reason are strangers' text.
//! Limits: Postfix cuts a line at 2000 bytes; the reason may end anywhere.
//! When it fails: [`LineFamily::Delivery`], for a line that ends before its status.

use memchr::{memchr, memchr_iter, memrchr};

use super::peer;
use crate::{
    event::{EventKind, Peer, TlsFeature, TlsFeatureStatus, TlsReason},
    family::{LineFamily, ParseResult},
    number::decimal,
    unrecognized,
};

pub(super) fn parse<'a>(queue_id: &'a [u8], text: &'a [u8]) -> ParseResult<EventKind<'a>> {
    match text.strip_prefix(b"to=<") {
        Some(text) => delivery(queue_id, text).map(Some).ok_or(LineFamily::Delivery),
        None if is_informational(text) => Ok(None),
        None => {
            let reason = tls_reason(text);
            Ok(Some(EventKind::HostGivenUp { queue_id, reason, recognized: is_recognized(reason, text) }))
        }
    }
}

/// Lines with a queue id that do not say that a host was left: work-arounds, `smtp_header_checks`, REQUIRETLS (3.11)
/// where it is only asked for.
fn is_informational(text: &[u8]) -> bool {
    const INFORMATIONAL: [&[u8]; 9] = [
        b"enabling PIX workarounds: ",
        b"breaking line > ",
        b"warning: ",
        b"info: ",
        b"replace: ",
        b"prepend: ",
        b"strip: ",
        b"Sender requested REQUIRETLS, but REQUIRETLS support was not offered by host ",
        b"Sender requested REQUIRETLS, but my configured TLS security level ",
    ];
    INFORMATIONAL.iter().any(|remark| text.starts_with(remark))
}

/// Longest `delays=`, in bytes: four times, each of at most ten digits for the seconds and a fraction.
const MAX_DELAYS_BYTES: usize = 64;

fn delivery<'a>(queue_id: &'a [u8], text: &'a [u8]) -> Option<EventKind<'a>> {
    let (recipient, mut text) = address(text)?;
    if let Some(original) = text.strip_prefix(b"orig_to=<") {
        (_, text) = address(original)?;
    }
    let (relay, mut text) = relay(text.strip_prefix(b"relay=")?)?;
    let mut cached_connection = false;
    let mut delays: &[u8] = b"";
    let mut tls = None;
    let mut all_known = true;
    // Between relay and status every value is Postfix's own, and none has a comma.
    let status = loop {
        if let Some(status) = text.strip_prefix(b"status=") {
            break status;
        }
        if let Some(uses) = text.strip_prefix(b"conn_use=") {
            cached_connection = decimal(uses)?.0 >= 2;
        } else if let Some(times) = text.strip_prefix(b"delays=") {
            let times = times.get(..memchr(b',', times)?).filter(|times| times.len() <= MAX_DELAYS_BYTES)?;
            delays = times.get(..memrchr(b'/', times)?)?;
        } else if let Some(features) = text.strip_prefix(b"tls=") {
            tls = tls_feature(features.get(..memchr(b',', features)?)?);
            all_known &= tls.is_some_and(|tls| is_known_level(tls.requested) && is_known_level(tls.effective));
        } else {
            all_known &= text.starts_with(b"delay=") || text.starts_with(b"dsn=");
        }
        text = text.get(memchr(b',', text)?..)?.strip_prefix(b", ")?;
    };
    let (status, reason_text) = status_and_reason(status)?;
    let sent = status == b"sent";
    let recipient_domain = memrchr(b'@', recipient).and_then(|at| recipient.get(at + 1..)).unwrap_or_default();
    let reason = tls_reason(reason_text);
    let recognized = all_known && (sent || is_recognized(reason, reason_text));
    Some(EventKind::Delivery {
        queue_id,
        recipient_domain,
        relay,
        cached_connection,
        delays,
        tls,
        sent,
        reason,
        recognized,
    })
}

/// What follows `status=` in a line behind its `to=<`.
pub(super) fn status_of(text: &[u8]) -> Option<&[u8]> {
    let (_, mut text) = address(text)?;
    if let Some(original) = text.strip_prefix(b"orig_to=<") {
        (_, text) = address(original)?;
    }
    text.starts_with(b"relay=").then_some(())?;
    // From the relay to the status every value is Postfix's own, and none has a comma.
    while !text.starts_with(b"status=") {
        text = text.get(memchr(b',', text)?..)?.strip_prefix(b", ")?;
    }
    text.strip_prefix(b"status=")
}

/// Whether a reason is known, or does not concern TLS.
fn is_recognized(reason: TlsReason<'_>, text: &[u8]) -> bool {
    reason != TlsReason::Other || !unrecognized::is_smtp_reason(text)
}

/// The security levels of `tls=` (tls_level_lookup, and `halfdane` and `unknown`).
fn is_known_level(level: &[u8]) -> bool {
    const LEVELS: [&[u8]; 10] = [
        b"none",
        b"may",
        b"encrypt",
        b"fingerprint",
        b"halfdane",
        b"dane",
        b"dane-only",
        b"verify",
        b"secure",
        b"unknown",
    ];
    LEVELS.contains(&level)
}

/// An address behind its `<`, and what follows `>, `.
///
/// Since 3.5 the local part is quoted where it has to be (`info_log_address_format = external`), so that the quoted string
/// is passed over and the next `>` is the end. Postfix 3.4 does not quote: there a `>` that no comma follows is passed
/// over. The first `>, ` must go on as Postfix does; beyond it, nothing is looked for.
fn address(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = quoted_string(text).unwrap_or(0);
    let end = memchr_iter(b'>', text).find(|&end| end >= start && text.get(end + 1..end + 3) == Some(b", "))?;
    let (address, rest) = text.split_at_checked(end)?;
    let rest = rest.get(b">, ".len()..)?;
    (rest.starts_with(b"relay=") || rest.starts_with(b"orig_to=<")).then_some((address, rest))
}

/// The length of a quoted string (RFC 5321 §4.1.2) at the front that ends before an `@` or the end of the address.
fn quoted_string(text: &[u8]) -> Option<usize> {
    if text.first() != Some(&b'"') {
        return None;
    }
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'\\' => at += 2,
            b'"' => break,
            _ => at += 1,
        }
    }
    matches!(text.get(at + 1)?, b'@' | b'>').then_some(at + 1)
}

/// `HOST[IP]:PORT`, `none` or another word; and what follows `, `.
fn relay(text: &[u8]) -> Option<(Option<Peer<'_>>, &[u8])> {
    if let Some((peer, rest)) = peer::with_port(text)
        && let Some(rest) = rest.strip_prefix(b", ")
    {
        return Some((Some(peer), rest));
    }
    let (word, rest) = text.split_at_checked(memchr(b',', text)?)?;
    // A bracket would be a peer that could not be read.
    (!word.is_empty() && !word.contains(&b'[')).then_some((None, rest.strip_prefix(b", ")?))
}

/// `may`, `!secure`, `dane:encrypt`, `may?`; behind a slash is what became of REQUIRETLS, of which nothing is counted.
fn tls_feature(text: &[u8]) -> Option<TlsFeature<'_>> {
    let text = memchr(b'/', text).map_or(Some(text), |slash| text.get(..slash))?;
    let (state, text) = match (text.strip_prefix(b"!"), text.strip_suffix(b"?")) {
        (Some(text), _) => (TlsFeatureStatus::Violated, text),
        (None, Some(text)) => (TlsFeatureStatus::Undecided, text),
        (None, None) => (TlsFeatureStatus::Met, text),
    };
    let (requested, effective) = match memchr(b':', text) {
        Some(colon) => (text.get(..colon)?, text.get(colon + 1..)?),
        None => (text, text),
    };
    (!requested.is_empty() && !effective.is_empty()).then_some(TlsFeature { requested, effective, status: state })
}

/// `sent (250 2.0.0 Ok)`: the status, and the reason without its parentheses.
pub(super) fn status_and_reason(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = text.iter().position(|b| !b.is_ascii_alphabetic() && *b != b'-').unwrap_or(text.len());
    let (status, rest) = text.split_at_checked(length)?;
    let reason = match rest.strip_prefix(b" (") {
        Some(reason) => reason.strip_suffix(b")").unwrap_or(reason),
        // The line was cut here. A status may go on behind the cut, but nothing goes on after `sent`.
        None if status == b"sent" && matches!(rest, b"" | b" ") => b"",
        None => return None,
    };
    (!status.is_empty()).then_some((status, reason))
}

/// What TLS has to do with it, told from the front of the text.
fn tls_reason(text: &[u8]) -> TlsReason<'_> {
    match text {
        b"Cannot start TLS: handshake failure" => TlsReason::HandshakeFailure,
        b"Server certificate not verified" => TlsReason::NotVerified,
        b"Server certificate not trusted" => TlsReason::NotTrusted,
        b"client TLS configuration problem" => TlsReason::PolicyUnknown,
        _ => text
            .strip_prefix(b"TLS is required, but ")
            .or_else(|| text.strip_prefix(b"Sender requested REQUIRETLS, but "))
            .and_then(tls_required_reason)
            .unwrap_or(TlsReason::Other),
    }
}

/// `host HOST[IP] refused to start TLS: …`, `was not offered by host HOST[IP]`; REQUIRETLS (3.11) has words of its own
/// for the certificate. The rest are faults of our own side.
fn tls_required_reason(text: &[u8]) -> Option<TlsReason<'_>> {
    if let Some(text) = text.strip_prefix(b"host ") {
        let (peer, rest) = peer::without_port(text)?;
        return rest.starts_with(b" refused to start TLS: ").then_some(TlsReason::StarttlsRefused(peer));
    }
    let text = match text.strip_prefix(b"no ") {
        Some(text) if text.starts_with(b"matching server certificate was found. ") => {
            return Some(TlsReason::NotVerified);
        }
        Some(text) if text.starts_with(b"trusted server certificate was found. ") => {
            return Some(TlsReason::NotTrusted);
        }
        _ => text.strip_prefix(b"TLS service ").unwrap_or(text),
    };
    let (peer, _) = peer::without_port(text.strip_prefix(b"was not offered by host ")?)?;
    Some(TlsReason::StarttlsNotOffered(peer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(host: &'static str, ip: &str, port: Option<u16>) -> Peer<'static> {
        Peer { host: host.as_bytes(), ip: Some(ip.parse().expect("an address")), port }
    }

    fn read(text: &str) -> ParseResult<EventKind<'_>> {
        parse(b"1818EA260B5", text.as_bytes())
    }

    /// What most tests are about: the domain, the relay's host, whether it was sent.
    fn gist(text: &str) -> Option<(&str, Option<&str>, bool)> {
        let str = |bytes| str::from_utf8(bytes).expect("UTF-8");
        match read(text) {
            Ok(Some(EventKind::Delivery { recipient_domain, relay, sent, .. })) => {
                Some((str(recipient_domain), relay.map(|relay| str(relay.host)), sent))
            }
            Ok(_) => panic!("no delivery: {text}"),
            Err(family) => {
                assert_eq!(family, LineFamily::Delivery);
                None
            }
        }
    }

    #[test]
    fn reads_a_delivery() {
        let text = "to=<user@dane-reuse.example>, relay=mx.dane-reuse.example[203.0.113.161]:25, conn_use=2, delay=0.05, \
                    delays=0/0/0/0.04, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as LAB11735429)";
        let want = EventKind::Delivery {
            queue_id: b"1818EA260B5",
            recipient_domain: b"dane-reuse.example",
            relay: Some(peer("mx.dane-reuse.example", "203.0.113.161", Some(25))),
            cached_connection: true,
            delays: b"0/0/0",
            tls: None,
            sent: true,
            reason: TlsReason::Other,
            recognized: true,
        };
        assert_eq!(read(text), Ok(Some(want)));
    }

    #[test]
    fn a_connection_is_cached_from_its_second_use() {
        for (uses, want) in [("", false), ("conn_use=1, ", false), ("conn_use=2, ", true), ("conn_use=99, ", true)] {
            let text = format!(
                "to=<a@b.test>, relay=mx.b.test[192.0.2.1]:25, {uses}delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)"
            );
            let Ok(Some(EventKind::Delivery { cached_connection, .. })) = read(&text) else { panic!("{text}") };
            assert_eq!(cached_connection, want, "{text}");
        }
    }

    #[test]
    fn reads_the_relay_in_every_form() {
        for (relay, want) in [
            ("mx.a.test[2001:db8::1]:25", Some(("mx.a.test", "2001:db8::1", 25))),
            ("mx.a.test[192.0.2.1]:10025", Some(("mx.a.test", "192.0.2.1", 10025))),
            ("none", None),
            ("local", None),
        ] {
            let text = format!("to=<a@b.test>, relay={relay}, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (x)");
            let Ok(Some(EventKind::Delivery { relay, .. })) = read(&text) else { panic!("{text}") };
            assert_eq!(relay, want.map(|(host, ip, port)| peer(host, ip, Some(port))), "{text}");
        }
        let text = "to=<a@b.test>, relay=b.test[private/lmtp], delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (x)";
        assert_eq!(gist(text), Some(("b.test", Some("b.test"), true)));
    }

    #[test]
    fn reads_addresses_of_every_form() {
        let end = "relay=mx.b.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)";
        for (address, domain) in [
            ("a@b.test", "b.test"),
            ("root", ""),
            ("", ""),
            ("\u{fc}ser@b\u{fc}cher.test", "b\u{fc}cher.test"),
            ("\"a b\"@b.test", "b.test"),
            ("\"a@evil.test\"@b.test", "b.test"),
            ("\"\"@b.test", "b.test"),
            ("\"x\\\">, relay=none, y\"@b.test", "b.test"),
            ("\"x>, relay=mx.evil.test[192.0.2.9]:25, delay=1, status=bounced (x)\"@b.test", "b.test"),
            ("\"only quoted\"", ""),
            // Postfix 3.4 does not quote.
            ("a b@b.test", "b.test"),
            ("a>b@b.test", "b.test"),
            ("a\"b@b.test", "b.test"),
            ("\"a@b.test", "b.test"),
            ("\"a\"b@b.test", "b.test"),
            ("user@[192.0.2.1]", "[192.0.2.1]"),
        ] {
            let text = format!("to=<{address}>, {end}");
            assert_eq!(gist(&text), Some((domain, Some("mx.b.test"), true)), "{text}");
            let text = format!("to=<{address}>, orig_to=<{address}>, {end}");
            assert_eq!(gist(&text), Some((domain, Some("mx.b.test"), true)), "{text}");
        }
    }

    #[test]
    fn what_follows_an_address_is_not_searched_for() {
        for address in ["a>, b@b.test", "a@b.test>, new=field"] {
            let text = format!(
                "to=<{address}>, relay=none, delay=1, delays=0/0/0/1, dsn=4.2.0, status=deferred (said <x>, relay=none, \
                 status=sent (x))"
            );
            assert_eq!(gist(&text), None, "{text}");
        }
    }

    #[test]
    fn a_tls_feature_stands_between_delays_and_dsn() {
        for tls in ["may", "!secure", "dane:halfdane", "may?", "verify/requiretls:nocertmatch", "may/!requiretls?"] {
            let text = format!(
                "to=<a@b.test>, relay=none, delay=1, delays=0/0/0/1, tls={tls}, dsn=4.7.5, status=deferred (Server certificate not verified)"
            );
            let Ok(Some(EventKind::Delivery { reason, sent, .. })) = read(&text) else { panic!("{text}") };
            assert_eq!((reason, sent), (TlsReason::NotVerified, false), "{text}");
        }
    }

    #[test]
    fn reads_the_tls_feature() {
        let feature = |requested: &'static str, effective: &'static str, state| {
            Some(TlsFeature { requested: requested.as_bytes(), effective: effective.as_bytes(), status: state })
        };
        for (text, want) in [
            ("may", feature("may", "may", TlsFeatureStatus::Met)),
            ("may?", feature("may", "may", TlsFeatureStatus::Undecided)),
            ("may:none", feature("may", "none", TlsFeatureStatus::Met)),
            ("!secure", feature("secure", "secure", TlsFeatureStatus::Violated)),
            ("dane:halfdane", feature("dane", "halfdane", TlsFeatureStatus::Met)),
            ("unknown?/!requiretls:nocertmatch", feature("unknown", "unknown", TlsFeatureStatus::Undecided)),
            ("may/!requiretls?", feature("may", "may", TlsFeatureStatus::Met)),
            ("", None),
            ("!", None),
            ("may:", None),
        ] {
            assert_eq!(tls_feature(text.as_bytes()), want, "{text}");
            let line = format!(
                "to=<a@b.test>, relay=mx.b.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, tls={text}, dsn=2.0.0, status=sent (250 Ok)"
            );
            let Ok(Some(EventKind::Delivery { tls, .. })) = read(&line) else { panic!("{line}") };
            assert_eq!(tls, want, "{line}");
        }
    }

    #[test]
    fn tells_the_reasons_that_are_tls() {
        let refused = peer("mx.a.test", "203.0.113.149", None);
        for (text, want) in [
            ("Cannot start TLS: handshake failure", TlsReason::HandshakeFailure),
            ("Server certificate not verified", TlsReason::NotVerified),
            ("Server certificate not trusted", TlsReason::NotTrusted),
            (
                "TLS is required, but host mx.a.test[203.0.113.149] refused to start TLS: 454 4.7.0 TLS not available",
                TlsReason::StarttlsRefused(refused),
            ),
            (
                "TLS is required, but was not offered by host mx.a.test[203.0.113.149]",
                TlsReason::StarttlsNotOffered(refused),
            ),
            ("TLS is required, but our TLS engine is unavailable", TlsReason::Other),
            (
                "Sender requested REQUIRETLS, but host mx.a.test[203.0.113.149] refused to start TLS: 454 4.7.0 x",
                TlsReason::StarttlsRefused(refused),
            ),
            (
                "Sender requested REQUIRETLS, but TLS service was not offered by host mx.a.test[203.0.113.149]",
                TlsReason::StarttlsNotOffered(refused),
            ),
            (
                "Sender requested REQUIRETLS, but no matching server certificate was found. The last attempted server \
                 was mx.a.test[203.0.113.149]",
                TlsReason::NotVerified,
            ),
            (
                "Sender requested REQUIRETLS, but no trusted server certificate was found. The last attempted server \
                 was mx.a.test[203.0.113.149]",
                TlsReason::NotTrusted,
            ),
            (
                "Sender requested REQUIRETLS, but no server was found that supports REQUIRETLS. The last attempted \
                 server was mx.a.test[203.0.113.149]",
                TlsReason::Other,
            ),
            ("host mx.a.test[203.0.113.149] said: 450 Cannot start TLS: handshake failure", TlsReason::Other),
            ("lost connection with mx.a.test[203.0.113.149] while performing the EHLO handshake", TlsReason::Other),
        ] {
            assert_eq!(
                read(text),
                Ok(Some(EventKind::HostGivenUp { queue_id: b"1818EA260B5", reason: want, recognized: true })),
                "{text}"
            );
            let line = format!(
                "to=<a@b.test>, relay=mx.a.test[203.0.113.149]:25, delay=1, delays=0/0/0/1, dsn=4.7.5, status=deferred ({text})"
            );
            let Ok(Some(EventKind::Delivery { reason, sent: false, .. })) = read(&line) else { panic!("{line}") };
            assert_eq!(reason, want, "{line}");
        }
    }

    #[test]
    fn remarks_with_a_queue_id_leave_no_host() {
        for text in [
            "enabling PIX workarounds: disable_esmtp delay_dotcrlf for mx.a.test[192.0.2.1]:25",
            "breaking line > 998 bytes with <CR><LF>SPACE",
            "replace: header X: Server certificate not verified: Y: z",
            "Sender requested REQUIRETLS, but REQUIRETLS support was not offered by host mx.a.test[192.0.2.1]",
        ] {
            assert_eq!(read(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn a_cut_line_counts_if_its_status_is_there() {
        let whole =
            "to=<a@b.test>, relay=mx.b.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)";
        let status = whole.find("sent (").expect("a status") + "sent".len();
        for end in 0..whole.len() {
            let want = (end >= status).then_some(("b.test", Some("mx.b.test"), true));
            let cut = &whole[..end];
            if cut.starts_with("to=<") {
                assert_eq!(gist(cut), want, "{cut}");
            }
        }
        let cut = "to=<a@b.test>, relay=none, delay=1, delays=0/0/0/1, dsn=4.0.0, status=deferred";
        assert_eq!(gist(cut), None);
    }

    #[test]
    fn a_reply_that_imitates_a_line_changes_nothing() {
        let text = "to=<user@inject-4xx.test>, relay=mx.inject-4xx.test[203.0.113.106]:25, delay=0.11, \
                    delays=0/0/0.05/0.05, dsn=4.2.0, status=deferred (host mx.inject-4xx.test[203.0.113.106] said: 450 \
                    4.2.0 busy), status=sent (250 ok?[31m?? AAAAAAAAAAA: to=<x@victim.test>, \
                    relay=mx.victim.test[192.0.2.1]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 2.0.0 Ok) \
                    (in reply to RCPT TO command))";
        assert_eq!(gist(text), Some(("inject-4xx.test", Some("mx.inject-4xx.test"), false)));
    }
}
