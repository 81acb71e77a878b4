//! What strangers write into a log: any bytes, damaged lines, imitations of our own lines.
//!
//! Takes: the real lines of `benches/outbound.log`. Gives: for any of them, however damaged, no panic and nothing borrowed
//! from outside the line; and an imitation in a reply, an issuer's name, an address or a header never changes the event.

use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::FileFailurePersistence,
};
use tlswarden_parsers::{
    Dialect, MalformedLine,
    event::{Event, EventKind, TlsReason, Trust, VerificationError},
    parse,
};

mod borrowed;

const OUTBOUND: &str = include_str!("../benches/outbound.log");

fn read(line: &[u8]) -> Result<Option<Event<'_>>, MalformedLine> {
    let read = parse(Dialect::Postfix, line);
    if let Ok(Some(event)) = &read {
        for text in borrowed::texts(event) {
            assert!(borrowed::lies_in(text, line), "{event:?}");
        }
    }
    read
}

/// The event in a line that must have one.
fn event(line: &str) -> EventKind<'_> {
    match read(line.as_bytes()) {
        Ok(Some(event)) => event.kind,
        other => panic!("{other:?}: {line}"),
    }
}

fn real_line() -> impl Strategy<Value = &'static str> {
    select(OUTBOUND.lines().collect::<Vec<_>>())
}

/// A real line, or its text without the prefix, or some of our words; with something before and behind it, so that it
/// tries to close what it stands in. Postfix prints what cannot be printed as `?`, so that there are no control characters.
fn imitation() -> impl Strategy<Value = String> {
    let words = select(vec![
        "), status=sent (250 Ok",
        ">, relay=mx.evil.test[192.0.2.66]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 Ok)",
        ">, orig_to=<a@evil.test>, relay=none, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (x)",
        " (queue active)",
        ", returned to sender",
        "num=62:hostname mismatch",
        ": re-using session with untrusted certificate, look for details earlier in the log",
        "Server certificate not verified",
        "removed",
        "\u{2028}Nov 22 01:39:01 mta postfix/smtp[7]: ",
    ]);
    let text = real_line().prop_map(|line| line.split_once("]: ").map_or(line, |(_, text)| text));
    let middle = prop_oneof![real_line(), text, words];
    ("[ -~]{0,12}", middle, "[ -~]{0,12}").prop_map(|(before, middle, behind)| format!("{before}{middle}{behind}"))
}

/// As Postfix writes a local part that needs it (RFC 5321 §4.1.2).
fn quoted(local_part: &str) -> String {
    format!("\"{}\"", local_part.replace('\\', "\\\\").replace('"', "\\\""))
}

fn delivery(address: &str, reason: &str) -> String {
    format!(
        "Nov 22 01:40:56 mta postfix/smtp[25764]: 8DD6EA26044: to=<{address}>, relay=mx.a.test[203.0.113.106]:25, delay=0.11, \
         delays=0/0/0.05/0.05, dsn=4.2.0, status=deferred ({reason})"
    )
}

#[test]
fn every_real_line_is_well_formed() {
    for line in OUTBOUND.lines() {
        assert!(read(line.as_bytes()).is_ok(), "{line}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1024,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_bytes_pass(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(&line);
    }

    #[test]
    fn any_text_behind_a_prefix_passes(
        program in select(vec!["smtp", "tlsproxy", "cleanup", "qmgr", "master"]),
        text in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut line = format!("Nov 22 01:40:56 mta postfix/{program}[25764]: ").into_bytes();
        line.extend(text);
        let _ = read(&line);
    }

    #[test]
    fn a_damaged_line_passes(
        line in real_line(),
        other in real_line(),
        damage in proptest::collection::vec((any::<Index>(), any::<u8>()), 0..8),
        cut in any::<Index>(),
        splice in any::<Option<Index>>(),
    ) {
        let mut line = line.as_bytes().to_vec();
        for (at, byte) in damage {
            let at = at.index(line.len());
            line[at] = byte;
        }
        if let Some(splice) = splice {
            line.truncate(cut.index(line.len()));
            line.extend_from_slice(&other.as_bytes()[splice.index(other.len())..]);
        }
        let _ = read(&line);
        let _ = read(&line[..cut.index(line.len() + 1)]);
    }

    #[test]
    fn a_reply_changes_nothing(plant in imitation()) {
        let front = "host mx.a.test[203.0.113.106] said: 450 4.2.0 ";
        let (honest, hostile) = (delivery("u@a.test", front), delivery("u@a.test", &format!("{front}{plant}")));
        prop_assert_eq!(event(&hostile), event(&honest));

        let refused = "TLS is required, but host mx.a.test[203.0.113.106] refused to start TLS: 454 ";
        let hostile = delivery("u@a.test", &format!("{refused}{plant}"));
        let EventKind::Delivery { reason: TlsReason::StarttlsRefused(peer), sent: false, .. } = event(&hostile) else {
            panic!("{hostile}")
        };
        prop_assert_eq!(peer.host, b"mx.a.test");

        let left = format!("Nov 22 01:40:56 mta postfix/smtp[2]: 8DD6EA26044: {front}{plant}");
        prop_assert_eq!(event(&left), EventKind::HostGivenUp { queue_id: b"8DD6EA26044", reason: TlsReason::Other, recognized: true });
    }

    #[test]
    fn a_certificate_changes_nothing(plant in imitation()) {
        let front = "Nov 22 01:40:56 mta postfix/smtp[25764]: ";
        let failed = format!("{front}certificate verification failed for mx.a.test[203.0.113.54]:25: untrusted issuer {plant}");
        let EventKind::VerificationFailed { peer, cause: VerificationError::UntrustedIssuer } = event(&failed) else {
            panic!("{failed}")
        };
        prop_assert_eq!(peer.host, b"mx.a.test");
        for of in ["subject_CN=", "depth=0 verify=0 subject=", "Matched subjectAltName: ", "subject_CN=x, issuer_CN="] {
            let context = format!("{front}mx.a.test[203.0.113.54]:25: {of}{plant}");
            prop_assert_eq!(read(context.as_bytes()), Ok(None), "{}", context);
        }
    }

    #[test]
    fn an_address_changes_nothing(plant in imitation()) {
        let plant = quoted(&plant);
        let reason = "host mx.a.test[203.0.113.106] said: 450 4.2.0 x";
        let honest = delivery("u@a.test", reason);
        let hostile = delivery(&format!("{plant}@a.test"), reason);
        let aliased = delivery(&format!("{plant}@a.test>, orig_to=<{plant}@a.test"), reason);
        prop_assert_eq!(event(&hostile), event(&honest));
        prop_assert_eq!(event(&aliased), event(&honest));

        let front = "Nov 22 01:40:56 mta postfix/qmgr[1]: 8DD6EA26044: from=";
        let active = format!("{front}<{plant}@a.test>, size=1, nrcpt=1 (queue active)");
        prop_assert_eq!(event(&active), EventKind::QueueActive { queue_id: b"8DD6EA26044", null_sender: false });
        let expired = format!("{front}<{plant}@a.test>, status=expired, returned to sender");
        prop_assert_eq!(read(expired.as_bytes()), Ok(None));
    }

    #[test]
    fn a_header_changes_nothing(plant in imitation()) {
        let front = "Nov 22 01:40:56 mta postfix/cleanup[1]: 8DD6EA26044: ";
        let message_id = format!("{front}message-id={plant}");
        let read_as = event(&message_id);
        prop_assert!(matches!(read_as, EventKind::MessageId { queue_id: b"8DD6EA26044", .. }), "{:?}", read_as);
        for of in ["reject: header ", "warning: header ", "replace: header "] {
            let line = format!("{front}{of}Subject: {plant}");
            prop_assert_eq!(read(line.as_bytes()), Ok(None), "{}", line);
        }
        // smtp_header_checks
        for of in ["warning: header ", "info: header ", "replace: header ", "prepend: header ", "strip: header "] {
            let line = format!("Nov 22 01:40:56 mta postfix/smtp[1]: 8DD6EA26044: {of}Subject: {plant}");
            prop_assert_eq!(read(line.as_bytes()), Ok(None), "{}", line);
        }
    }

    #[test]
    fn another_program_says_nothing(
        plant in imitation(),
        ident in select(vec!["postfix/smtpd", "postfix/lmtp", "postfix/smtp/smtpd"]),
    ) {
        for line in [
            format!("Nov 22 01:40:56 mta {ident}[1]: {plant}"),
            format!("2026-11-22T01:46:13+00:00 mta {ident}: {plant}"),
            format!("Nov 22 01:40:56 mta {ident}[1]: connect from mta postfix/smtp[2]: {plant}"),
        ] {
            prop_assert_eq!(read(line.as_bytes()), Ok(None), "{}", line);
        }
    }

    /// A program that is not Postfix's may be a container, whose text is a line; but what stands behind a word is none.
    #[test]
    fn another_program_says_nothing_behind_its_own_words(
        plant in imitation(),
        ident in select(vec!["dovecot", "spamd", "smtp", "x-smtp", "docker/mail"]),
        words in select(vec!["imap-login: user=<", "x ", "1 ", "<", "[", "1818EA260B5: "]),
    ) {
        for line in [
            format!("Nov 22 01:40:56 mta {ident}[1]: {words}{plant}"),
            format!("2026-11-22T01:46:13+00:00 mta {ident}: {words}{plant}"),
            format!("<30>1 2026-11-22T01:46:13+00:00 mta {ident} 1 - - {words}{plant}"),
            format!("mail-1  | Nov 22 01:40:56 mta {ident}[1]: connect from mta postfix/smtp[2]: {plant}"),
        ] {
            prop_assert_eq!(read(line.as_bytes()), Ok(None), "{}", line);
        }
    }

    #[test]
    fn a_cipher_changes_nothing(plant in imitation(), trust in select(vec!["Trusted", "Untrusted", "Verified", "Anonymous"])) {
        let line = format!("Nov 22 01:40:56 mta postfix/smtp[1]: {trust} TLS connection established to mx.a.test[192.0.2.1]:25: {plant}");
        let EventKind::Established { peer, trust: read_as, reused: false } = event(&line) else { panic!("{line}") };
        let want = match trust {
            "Trusted" => Trust::Trusted,
            "Untrusted" => Trust::Untrusted,
            "Verified" => Trust::Verified,
            _ => Trust::Anonymous,
        };
        prop_assert_eq!((peer.host, read_as), (&b"mx.a.test"[..], want));
    }
}
