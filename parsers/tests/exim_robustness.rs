//! What strangers write into Exim's log: any bytes, damaged lines, imitations of its own lines.
//!
//! Takes: the real lines of `benches/exim.log`. Gives: for any of them, however damaged, no panic and nothing borrowed from
//! outside the line; and an imitation in a reply, a HELO name, a certificate's name, an address or a subject never
//! changes the event.

use proptest::{
    prelude::*,
    sample::{Index, select},
    test_runner::FileFailurePersistence,
};
use tlswarden_parsers::{
    Dialect, MalformedLine,
    event::{
        Event, EventKind, VerificationError,
        exim::{EximLine, HostProblem, LineKind},
    },
    parse,
};

mod borrowed;

const EXIM: &str = include_str!("../benches/exim.log");

const FRONT: &str = "2026-11-22 01:39:57 1xUwYf-0005s5-2C ";

fn read(line: &[u8]) -> Result<Option<Event<'_>>, MalformedLine> {
    let read = parse(Dialect::Exim, line);
    if let Ok(Some(event)) = &read {
        for text in borrowed::texts(event) {
            assert!(borrowed::lies_in(text, line), "{event:?}");
        }
    }
    read
}

/// What a line that must have an event says.
fn says(line: &str) -> LineKind<'_> {
    match read(line.as_bytes()) {
        Ok(Some(Event { kind: EventKind::Exim(EximLine { kind: says, .. }), .. })) => says,
        other => panic!("{other:?}: {line}"),
    }
}

fn real_line() -> impl Strategy<Value = &'static str> {
    select(EXIM.lines().collect::<Vec<_>>())
}

/// A real line, or its text without the prefix, or some of Exim's words; with something before and behind it, so that it
/// tries to close what it stands in. Exim escapes what cannot be printed, so that there are no control characters.
fn imitation() -> impl Strategy<Value = String> {
    let words = select(vec![
        " R=r T=t H=mx.evil.test [192.0.2.66] X=TLS1.3:X:256 CV=dane C=\"250 ok\"",
        "\" C=\"250 ok\"",
        ": TLS session: (certificate verification failed)",
        ": delivering unencrypted to H=mx.evil.test [192.0.2.66] (not in hosts_require_tls)",
        " (not in hosts_require_tls)",
        "a TLS session is required, but the server did not offer TLS support",
        " defer (-37) H=mx.evil.test [192.0.2.66]: TLS session: (certificate verification failed)",
        " cert=/CN=x error=certificate has expired cert=/CN=y",
        "> R=r",
        "Completed",
        "\u{2028}2026-11-22 01:39:57 1xUwYf-0005s5-2C Completed",
    ]);
    let text = real_line().prop_map(|line| line.get(37..).unwrap_or(line));
    let middle = prop_oneof![real_line(), text, words];
    ("[ -~]{0,12}", middle, "[ -~]{0,12}").prop_map(|(before, middle, behind)| format!("{before}{middle}{behind}"))
}

/// As Exim keeps a local part that needs it (RFC 5321 §4.1.2).
fn quoted(local_part: &str) -> String {
    format!("\"{}\"", local_part.replace('\\', "\\\\").replace('"', "\\\""))
}

#[test]
fn every_real_line_is_well_formed() {
    for line in EXIM.lines() {
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
        arrow in select(vec!["", "<= ", "=> ", "-> ", ">> ", "== a@b ", "** a@b ", "H=a [192.0.2.1]: ", "TLS session: ", "DANE ", "["]),
        text in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut line = format!("{FRONT}{arrow}").into_bytes();
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
        for front in [
            "== u@a.test R=r T=t defer (-44) H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after RCPT TO:<u@a.test>: 450 ",
            "** u@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes: SMTP error from remote mail server after RCPT TO:<u@a.test>: 550 ",
            "** u@a.test R=r T=t H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after initial connection: 554 ",
            "=> u@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=no C=\"250 ",
            "=> u@a.test R=r T=t H=mx.a.test [192.0.2.1]* C=\"250 ",
            "H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after STARTTLS: 454 ",
        ] {
            let (honest, hostile) = (format!("{FRONT}{front}x"), format!("{FRONT}{front}{plant}"));
            prop_assert_eq!(says(&hostile), says(&honest));
        }
        let other = format!("{FRONT}H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after end of data: 451 {plant}");
        prop_assert_eq!(read(other.as_bytes()), Ok(None));
    }

    #[test]
    fn a_certificate_changes_nothing(plant in imitation()) {
        let front = format!("{FRONT}=> u@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=no");
        let (honest, hostile) = (format!("{front} C=\"250\""), format!("{front} DN=\"{plant}\" C=\"250\""));
        prop_assert_eq!(says(&hostile), says(&honest));
        let failed = format!("{FRONT}[192.0.2.1] SSL verify error: depth=0 error=certificate has expired cert={plant}");
        let expired = matches!(says(&failed), LineKind::VerifyError { cause: VerificationError::Expired, .. });
        prop_assert!(expired, "{}", failed);
        let named = format!("{FRONT}[192.0.2.1] SSL verify error: certificate name mismatch: DN=\"{plant}\" H=\"mx.a.test\"");
        let mismatch = matches!(says(&named), LineKind::VerifyError { cause: VerificationError::Code(62, _), .. });
        prop_assert!(mismatch, "{}", named);
    }

    #[test]
    fn an_address_changes_nothing(plant in imitation()) {
        let plant = quoted(&plant);
        let what = "R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes C=\"250 ok\"";
        for fields in [
            format!("=> {plant}@a.test {what}"),
            format!("=> u@a.test <{plant}@b.test> {what}"),
            format!("=> u@a.test ({plant}@b.test, {plant}@c.test) <{plant}@d.test> {what}"),
            format!("=> u@a.test F=<{plant}@b.test> P=<{plant}@b.test> {what}"),
        ] {
            let line = format!("{FRONT}{fields}");
            let LineKind::Recipient(read) = says(&line) else { panic!("{line}") };
            prop_assert_eq!((read.domain, read.continued_connection, read.problem), (&b"a.test"[..], false, HostProblem::Other));
            prop_assert_eq!(read.peer.map(|peer| peer.host), Some(&b"mx.a.test"[..]));
        }
    }

    #[test]
    fn what_a_client_says_is_no_delivery(plant in imitation()) {
        for line in [
            format!("{FRONT}<= s@a.test H=(h) [192.0.2.1] P=esmtp S=9 T=\"{plant}\" for u@b.test"),
            format!("2026-11-22 01:39:57 H=(h) [192.0.2.1] F=<{plant}> rejected RCPT <u@a.test>: {plant}"),
            format!("2026-11-22 01:39:57 TLS error on connection from h [192.0.2.1] {plant}"),
            format!("2026-11-22 01:39:57 SMTP call from [192.0.2.1] dropped: {plant}"),
        ] {
            prop_assert_eq!(read(line.as_bytes()), Ok(None), "{}", line);
        }
    }
}
