//! Reads the lines of Exim 4.94 to 4.100.
//!
//! Takes: a line without its line end: of `mainlog`, or the same text behind a syslog prefix. Gives: the event in it, or
//! nothing. The prefix is `2026-11-22 01:40:29[.567][ +0100] [[PID] ][ID ]`, each part in brackets if it is switched on.
//! In syslog the time may be missing, and a line of more than 870 octets comes in parts, `[1/2] …`: the first has all
//! that is read here, or it is malformed; the others are passed over.
//! When it fails: the name of the line family that could not be read.
//! Not here: the fields of a delivery (`delivery`), what a TLS library says (`tls`).

use memchr::memchr;

use crate::{
    Entry,
    envelope::{self, Envelope},
    event::{
        Event, EventKind, LogTimestamp, Process,
        exim::{EximLine, LineKind},
    },
    family::{LineFamily, ParseResult},
    gap,
    number::decimal,
    syslog::{self, MAX_HOST, MAX_IDENT, SyslogLine, may_be_a_line},
    timestamp::civil_and_zone,
};

mod delivery;
mod event_action;
mod fields;
pub(crate) mod status;
mod tls;

pub use event_action::parse_event_action;

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> ParseResult<Event<'_>> {
    if let Some((timestamp, text)) = timestamp(line) {
        let (pid, text) = pid(text).unwrap_or((0, text));
        let prefix = Prefix { timestamp: Some(timestamp), host: b"", ident: b"", pid, continues: false, text };
        if let Some((id, text)) = message_id(text) {
            return parse_message(&prefix, id, text);
        }
        if !may_begin_with_a_tag(text) {
            return Ok(None);
        }
    }
    match prefix_of(line) {
        Some(prefix) if !prefix.ident.is_empty() || message_id(prefix.text).is_some() => parse_prefixed(Some(prefix)),
        _ => Ok(gap::last_line_repeated(line)),
    }
}

/// What stands before the message id in a line that does not begin with Exim's own time and the id.
fn prefix_of(line: &[u8]) -> Option<Prefix<'_>> {
    match syslog::split_plain(line) {
        Some(plain) if !plain.may_hold_a_line() => behind_tag(&plain),
        _ => in_envelope(&envelope::open(line)),
    }
}

/// What follows Exim's own time and process id, where the line begins with them.
fn strip_own_time(line: &[u8]) -> Option<&[u8]> {
    let (_, text) = timestamp(line)?;
    Some(pid(text).map_or(text, |(_, text)| text))
}

/// Whether a line is about a message of Exim.
pub(crate) fn is_exim_line(line: &[u8]) -> bool {
    if strip_own_time(line).and_then(message_id).is_some() {
        return true;
    }
    in_envelope(&envelope::open(line)).is_some_and(|prefix| message_id(prefix.text).is_some())
}

/// Whether a text may begin with a host and a tag, so that the time before it was not Exim's: most lines without a message
/// are told apart by their first colon.
#[inline]
fn may_begin_with_a_tag(text: &[u8]) -> bool {
    let Some((front, rest)) = memchr(b':', text).and_then(|colon| text.split_at_checked(colon)) else { return false };
    front.last() == Some(&b']') && rest.starts_with(b": ") || front.iter().filter(|b| **b == b' ').count() < 2
}

/// Reads an entry whose parts are known.
pub(crate) fn parse_entry<'a>(entry: &Entry<'a>) -> ParseResult<Event<'a>> {
    parse_prefixed(prefix_of_entry(entry))
}

fn prefix_of_entry<'a>(entry: &Entry<'a>) -> Option<Prefix<'a>> {
    // A container's name says nothing of what runs in it: there Exim's own time does.
    let of_exim = entry.ident.starts_with(b"exim");
    if entry.ident.is_empty() || !of_exim && may_be_a_line(entry.ident, entry.text) {
        in_envelope(&envelope::open_within(entry.timestamp, entry.host, entry.text))
    } else if of_exim {
        envelope::entry_line(entry).as_ref().and_then(behind_tag)
    } else {
        None
    }
}

fn parse_prefixed(prefix: Option<Prefix<'_>>) -> ParseResult<Event<'_>> {
    let Some(prefix) = prefix else { return Ok(None) };
    let Some((id, text)) = message_id(prefix.text) else { return Ok(lines_lost(&prefix)) };
    parse_message(&prefix, id, text)
}

/// A syslog daemon's line about lines that it left out.
fn lines_lost<'a>(prefix: &Prefix<'a>) -> Option<Event<'a>> {
    if !matches!(prefix.ident.first(), Some(b'r' | b's')) {
        return None;
    }
    let kind = EventKind::LinesLost { number: gap::lines_lost(prefix.ident, prefix.text)? };
    let process = Process { host: prefix.host, instance: b"", name: prefix.ident, pid: prefix.pid };
    Some(Event { timestamp: prefix.timestamp?, process, kind })
}

fn parse_message<'a>(prefix: &Prefix<'a>, id: &'a [u8], text: &'a [u8]) -> ParseResult<Event<'a>> {
    let found = match text.first() {
        Some(b'<' | b'=' | b'-' | b'>' | b'*') => delivery::parse(text, prefix.continues),
        Some(b'C') if text == b"Completed" || text.starts_with(b"Completed ") => Ok(Some(LineKind::Completed)),
        Some(b'H' | b'T' | b'D' | b'[' | b'(') => tls::parse(text, prefix.continues),
        _ => tls::parse_other(text, prefix.continues),
    };
    let Some(kind) = found? else { return Ok(None) };
    if prefix.host.len() > MAX_HOST || prefix.ident.len() > MAX_IDENT {
        return Err(LineFamily::Prefix);
    }
    let timestamp = prefix.timestamp.ok_or(LineFamily::Timestamp)?;
    let process = Process { host: prefix.host, instance: b"", name: prefix.ident, pid: prefix.pid };
    Ok(Some(Event { timestamp, process, kind: EventKind::Exim(EximLine { id, kind }) }))
}

/// The parts of a line before the message id.
struct Prefix<'a> {
    timestamp: Option<LogTimestamp>,
    host: &'a [u8],
    /// The syslog tag; empty in a file.
    ident: &'a [u8],
    /// 0 where the line does not tell it.
    pid: u32,
    /// The line continues in another one.
    continues: bool,
    text: &'a [u8],
}

/// A line behind a syslog tag.
#[inline]
fn behind_tag<'a>(line: &SyslogLine<'a>) -> Option<Prefix<'a>> {
    let (pid, text) = line.pid_and_text()?;
    let (continues, text) = strip_part_number(syslog::unwrap_repeated(text))?;
    Some(with_own_time(line.timestamp(), line.host(), line.ident, pid, continues, text))
}

/// A line in an envelope: behind a tag, or behind Exim's own time alone.
fn in_envelope<'a>(found: &Envelope<'a>) -> Option<Prefix<'a>> {
    if let Some(line) = &found.line {
        return behind_tag(line);
    }
    let text = found.from_last_time?;
    Some(with_own_time(found.time_before, b"", b"", 0, false, text))
}

/// Takes Exim's own time and process id from the front of a text, where it writes them.
#[inline]
fn with_own_time<'a>(
    outer: Option<LogTimestamp>,
    host: &'a [u8],
    ident: &'a [u8],
    pid: u32,
    continues: bool,
    text: &'a [u8],
) -> Prefix<'a> {
    // Exim's own time has the year; that of syslog may have the zone.
    let (own, text) = timestamp(text).map_or((None, text), |(own, rest)| (Some(own), rest));
    // And its own process id stands there in place of syslog's, where it has that left out.
    let (pid, text) = self::pid(text).unwrap_or((pid, text));
    let timestamp = match (outer, own) {
        (Some(LogTimestamp::Utc(_)), _) | (_, None) => outer,
        (_, own) => own,
    };
    Prefix { timestamp, host, ident, pid, continues, text }
}

/// `2026-11-22 01:40:29[.567][ +0100] `, and what follows.
fn timestamp(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (civil, rest) = text.split_at_checked(19)?;
    if civil.get(10) != Some(&b' ') {
        return None;
    }
    let rest = match rest {
        [b'.', a, b, c, rest @ ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => rest,
        rest => rest,
    };
    let rest = rest.strip_prefix(b" ")?;
    let (zone, rest) = match rest {
        [b'+' | b'-', a, b, c, d, b' ', after @ ..] if [a, b, c, d].iter().all(|d| d.is_ascii_digit()) => {
            (rest.get(..5), after)
        }
        rest => (None, rest),
    };
    Some((civil_and_zone(civil, zone)?, rest))
}

/// `[26096] `.
fn pid(text: &[u8]) -> Option<(u32, &[u8])> {
    let (pid, rest) = decimal(text.strip_prefix(b"[")?)?;
    Some((pid, rest.strip_prefix(b"] ")?))
}

/// `[1/2] ` of a line that syslog would not take whole (log.c, `write_syslog`): whether it goes on, and its text. The
/// parts behind the first have neither time nor message.
fn strip_part_number(text: &[u8]) -> Option<(bool, &[u8])> {
    let Some(rest) = text.strip_prefix(b"[") else { return Some((false, text)) };
    let Some((number, rest)) = decimal(rest) else { return Some((false, text)) };
    match rest {
        [b'/' | b'\\', rest @ ..] => {
            let (_, rest) = decimal(rest)?;
            (number == 1).then_some((true, rest.strip_prefix(b"] ")?))
        }
        // A process id.
        _ => Some((false, text)),
    }
}

/// `1xUwZB-0006OQ-0w ` (6-6-2) or, from 4.97 on, `1xUwgo-000000005mC-2Ih7 ` (6-11-4).
#[inline]
fn message_id(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr(b' ', text.get(..24.min(text.len()))?)?;
    let (id, rest) = text.split_at_checked(space)?;
    let shaped = match *id {
        [ref a @ .., b'-', _, _] if a.len() == 13 => id.get(6) == Some(&b'-'),
        [ref a @ .., b'-', _, _, _, _] if a.len() == 18 => id.get(6) == Some(&b'-'),
        _ => false,
    };
    let dashes = id.iter().filter(|&&b| b == b'-').count();
    let letters = id.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-');
    (shaped && dashes == 2 && letters).then_some((id, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::exim::{CertificateCheck, HostProblem, RecipientLine, RecipientStatus};
    use crate::event::{Peer, VerificationError};

    fn read(line: &str) -> Event<'_> {
        match parse(line.as_bytes()) {
            Ok(Some(event)) => event,
            other => panic!("{other:?}: {line}"),
        }
    }

    fn recipient(line: &str) -> RecipientLine<'_> {
        match read(line).kind {
            EventKind::Exim(EximLine { kind: LineKind::Recipient(recipient), .. }) => recipient,
            other => panic!("{other:?}: {line}"),
        }
    }

    /// 2026-11-22T01:40:29Z.
    const TIME: i64 = 1_795_311_629;

    #[test]
    fn reads_every_prefix() {
        let completed = |id: &str| format!("{id} Completed");
        let (old, new) = (completed("1xUwZB-0006OQ-0w"), completed("1xUwgo-000000005mC-2Ih7"));
        for (prefix, timestamp, pid) in [
            ("2026-11-22 01:40:29 ", LogTimestamp::Local(TIME), 0),
            ("2026-11-22 01:40:29.567 ", LogTimestamp::Local(TIME), 0),
            ("2026-11-22 01:40:29 +0100 ", LogTimestamp::Utc(TIME - 3600), 0),
            ("2026-11-22 01:40:29.567 -0330 [30606] ", LogTimestamp::Utc(TIME + 12_600), 30606),
            ("2026-11-22 01:40:29 [30606] ", LogTimestamp::Local(TIME), 30606),
            ("<22>Nov 22 01:45:25 exim[9743]: 2026-11-22 01:40:29 ", LogTimestamp::Local(TIME), 9743),
            ("Nov 22 01:45:25 mta exim[9743]: 2026-11-22 01:40:29 [9743] ", LogTimestamp::Local(TIME), 9743),
            ("2026-11-22T02:40:29.1+01:00 mta exim4[9743]: 2026-11-22 02:40:29 ", LogTimestamp::Utc(TIME), 9743),
            // syslog_pid = no
            ("Nov 22 01:45:25 mta exim: 2026-11-22 01:40:29 ", LogTimestamp::Local(TIME), 0),
            ("<22>Nov 22 01:45:25 exim: 2026-11-22 01:40:29 ", LogTimestamp::Local(TIME), 0),
            ("Nov 22 01:45:25 mta exim: 2026-11-22 01:40:29 [9743] ", LogTimestamp::Local(TIME), 9743),
            // syslog_timestamp = no
            ("2026-11-22T02:40:29+01:00 mta mail-out[9743]: ", LogTimestamp::Utc(TIME), 9743),
            ("2026-11-22T02:40:29+01:00 mta exim[9743]: [9743] ", LogTimestamp::Utc(TIME), 9743),
            ("2026-11-22T02:40:29+01:00 mta exim: ", LogTimestamp::Utc(TIME), 0),
        ] {
            for text in [&old, &new] {
                let line = format!("{prefix}{text}");
                let event = read(&line);
                assert_eq!((event.timestamp, event.process.pid), (timestamp, pid), "{line}");
                let want = text.strip_suffix(" Completed").map(str::as_bytes);
                let EventKind::Exim(EximLine { id, kind: LineKind::Completed }) = event.kind else {
                    panic!("{event:?}")
                };
                assert_eq!(Some(id), want, "{line}");
            }
        }
    }

    #[test]
    fn other_lines_are_none_of_ours() {
        for line in [
            "",
            "2026-11-22 01:40:29 Start queue run: pid=1",
            "2026-11-22 01:40:29 exim 4.98.2 daemon started: pid=1, -q30m",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0 Completed",
            "2026-11-22 01:40:29 1xUwZB_0006OQ_0w Completed",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w Message is frozen",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w => tester <tester@a.test> R=local T=mail_spool",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w => /var/mail/x <x@a.test> R=r T=address_file",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w *> x@a.test R=r T=t H=mx.a.test [192.0.2.1]",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w [192.0.2.1] SSL verify error (during R-verify for [192.0.2.9]): depth=0 error=x cert=y",
            "2026-11-22 01:40:29 1xUwZB-0006OQ-0w TLS session: (SSL_connect): timed out: callout unencrypted to H=a [192.0.2.1] (not in hosts_require_tls)",
            "Nov 22 01:45:25 mta exim[9743]: [2/2] 2.1] X=TLS1.3:X:256 CV=yes",
            "Nov 22 01:45:25 mta postfix/smtp[7]: 8DD6EA26044: to=<u@a.test>, relay=none, delay=1, delays=0/0/0/1, dsn=4.4.3, status=deferred (x)",
        ] {
            assert_eq!(parse(line.as_bytes()), Ok(None), "{line}");
        }
    }

    #[test]
    fn reads_the_fields_of_every_selector() {
        let front = "2026-11-22 01:40:29 1xUwZB-0006OQ-0w =>";
        for (fields, continued, tls) in [
            (
                "u@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes C=\"250 ok\"",
                false,
                Some(CertificateCheck::Pkix),
            ),
            ("u@a.test R=r T=t H=mx.a.test [192.0.2.1]:25* X=TLS1.3:X:256* CV=no", true, Some(CertificateCheck::No)),
            (
                "u@a.test R=r T=t H=mx.a.test DS [192.0.2.1] X=TLS1.3:X:256 CV=dane DN=\"CN=a\" L K",
                false,
                Some(CertificateCheck::Dane),
            ),
            (
                "u@a.test R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 A=plain",
                false,
                Some(CertificateCheck::NotLogged),
            ),
            ("u@a.test R=r T=t H=mx.a.test [192.0.2.1] C=\"X=TLS1.3:X:256 CV=yes\"", false, None),
            (
                "u@a.test (p@b.test, \"q) R=x\"@c.test) <\"o> H=x\"@d.test> F=<\"s> \"@e.test> Q=q P=<> R=r T=t S=9 H=mx.a.test \
                 [192.0.2.1]:25 PRX=[192.0.2.8]:1 I=[192.0.2.9]:2 TFO* PS=EsEmrdq X=TLS1.3:X:256 CV=yes",
                false,
                Some(CertificateCheck::Pkix),
            ),
        ] {
            let line = format!("{front} {fields}");
            let read = recipient(&line);
            let host = read.peer.map(|peer| (peer.host, peer.ip));
            assert_eq!(host, Some((&b"mx.a.test"[..], "192.0.2.1".parse().ok())), "{line}");
            assert_eq!((read.status, read.domain), (RecipientStatus::Delivered, &b"a.test"[..]), "{line}");
            assert_eq!((read.continued_connection, read.tls), (continued, tls), "{line}");
        }
    }

    #[test]
    fn reads_an_address_that_exim_logs_without_its_quotes() {
        let behind = "R=r T=t H=mx.a.test [192.0.2.1] X=TLS1.3:X:256 CV=yes";
        for (to, whole) in [
            (" foo@a.test <\" foo\"@a.test>", " foo@a.test"),
            ("foo bar@a.test <\"foo bar\"@a.test>", "foo bar@a.test"),
            ("foo bar @a.test (p@b.test) <p@b.test>", "foo bar @a.test"),
        ] {
            for arrow in ["=>", "->"] {
                let line = format!("2026-11-22 01:40:29 1xUwZB-0006OQ-0w {arrow} {to} {behind}");
                let read = recipient(&line);
                assert_eq!((read.address, read.domain), (whole.as_bytes(), &b"a.test"[..]), "{line}");
                assert_eq!(read.tls, Some(CertificateCheck::Pkix), "{line}");
            }
        }
        for local in
            ["|/bin/notify u@b.test <u@a.test>", "/var/mail/a b@c.test <u@a.test>", "save x y@c.test <u@a.test>"]
        {
            let line = format!("2026-11-22 01:40:29 1xUwZB-0006OQ-0w => {local} R=r T=address_pipe");
            assert_eq!(parse(line.as_bytes()), Ok(None), "{line}");
        }
    }

    #[test]
    fn a_line_that_syslog_cut_is_read_or_malformed() {
        let front = "<22>Nov 22 01:44:51 exim[7930]: [1/2] 2026-11-22 01:40:29 1xUwZB-0006OQ-0w => u@a.test R=r T=t H=mx.a.test";
        let whole = format!("{front} [192.0.2.1] X=TLS1.3:X:256 CV=yes C=\"250 o");
        assert_eq!(recipient(&whole).tls, Some(CertificateCheck::Pkix));
        for continues in ["", " [192.0.2", " [192.0.2.1]", " [192.0.2.1] X=TLS1.3:X:256"] {
            assert_eq!(parse(format!("{front}{continues}").as_bytes()), Err(LineFamily::EximRecipient), "{continues}");
        }
    }

    /// What Exim's own test suite has of an Exim with OpenSSL (`test/log/2112`, `5840`, `5820`), addresses filled in.
    #[test]
    fn reads_the_lines_of_an_exim_with_openssl() {
        let peer = Peer { host: b"mx.a.test", ip: "192.0.2.1".parse().ok(), port: None };
        let verify = |cause| LineKind::VerifyError { ip: "192.0.2.1".parse().unwrap(), cause };
        for (text, kind) in [
            (
                "[192.0.2.1] SSL verify error: depth=0 error=unable to get local issuer certificate cert=/CN=server1.example.com",
                verify(VerificationError::UntrustedIssuer),
            ),
            (
                "[192.0.2.1] SSL verify error: depth=0 error=unable to verify the first certificate cert=/CN=server1.example.com",
                verify(VerificationError::Code(0, b"unable to verify the first certificate")),
            ),
            (
                "[192.0.2.1] SSL verify error: depth=0 error=self signed certificate \
                 cert=/C=UK/O=The Exim Maintainers/OU=Test Suite/CN=Phil Pennock",
                verify(VerificationError::SelfSigned),
            ),
            (
                "[192.0.2.1] SSL verify error: depth=1 error=certificate has expired cert=/CN=ca",
                verify(VerificationError::Expired),
            ),
            (
                "[192.0.2.1] SSL verify error: certificate name mismatch: DN=\"/CN=server1.example.com\" H=\"mx.a.test\"",
                verify(VerificationError::Code(62, b"certificate name mismatch")),
            ),
            // 4.99 quotes the name by itself.
            (
                "[192.0.2.1] SSL verify error: certificate name mismatch: \"/C=UK/O=The Exim Maintainers/OU=Test Suite\"",
                verify(VerificationError::Code(62, b"certificate name mismatch")),
            ),
            (
                "DANE attempt failed; TLS connection to mx.a.test [192.0.2.1]: (SSL_connect): error:0A000086:SSL \
                 routines::certificate verify failed",
                LineKind::Host { peer, problem: HostProblem::CertificateRejected, clear_text_follows: false },
            ),
            (
                "TLS session: (SSL_connect): error:0A00010B:SSL routines::wrong version number: delivering unencrypted to \
                 H=mx.a.test [192.0.2.1] (not in hosts_require_tls)",
                LineKind::Host {
                    peer,
                    problem: HostProblem::Handshake(b"error:0A00010B:SSL routines::wrong version number"),
                    clear_text_follows: true,
                },
            ),
            ("DANE error: No usable TLSA records", LineKind::NoUsableTlsa),
            (
                "H=mx.a.test [192.0.2.1]: DANE error: tlsa lookup DEFER",
                LineKind::Host { peer, problem: HostProblem::TlsaLookup, clear_text_follows: false },
            ),
        ] {
            let line = format!("1999-03-02 09:44:33 10HmaX-0005vi-00 {text}");
            let EventKind::Exim(read) = read(&line).kind else { panic!("{line}") };
            assert_eq!(read.kind, kind, "{line}");
        }
        for (text, problem) in [
            (": DANE error: tlsa lookup FAIL", HostProblem::DaneRequired),
            (": DANE error: danebroken6.test.ex lookup not DNSSEC", HostProblem::DaneRequired),
            (" H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): timed out", HostProblem::Handshake(b"timed out")),
        ] {
            let line = format!("1999-03-02 09:44:33 10HmaX-0005vi-00 ** u@a.test R=client T=send_to_server{text}");
            assert_eq!(recipient(&line).problem, problem, "{line}");
        }
    }

    #[test]
    fn reads_why_in_the_words_of_every_version() {
        let invalid = "(certificate verification failed): certificate invalid";
        for (text, problem) in [
            (format!("defer (-37) H=mx.a.test [192.0.2.1]: TLS session: {invalid}"), HostProblem::CertificateInvalid),
            (format!("defer (-37) H=mx.a.test [192.0.2.1]:25 DT=0.003s: TLS session: {invalid}"), HostProblem::CertificateInvalid),
            ("defer (-36): DANE error: tlsa lookup DEFER".into(), HostProblem::TlsaLookup),
            ("defer (0) H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after STARTTLS: 454 x".into(), HostProblem::StarttlsRefused),
            ("defer (104): Connection reset by peer H=mx.a.test [192.0.2.1]: smtp send to x failed".into(), HostProblem::Other),
            ("defer (111): Connection refused".into(), HostProblem::Other),
            ("defer (-54): retry time not reached for any host for 'a.test'".into(), HostProblem::Other),
            (
                "defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (SSL_connect): error:0A000086:SSL routines::certificate verify failed".into(),
                HostProblem::CertificateRejected,
            ),
            // 4.100 has no number.
            (format!("defer H=mx.a.test [192.0.2.1]: TLS session: {invalid}"), HostProblem::CertificateInvalid),
            (format!("defer H=mx.a.test [192.0.2.1]:25 DT=0.003s: TLS session: {invalid}"), HostProblem::CertificateInvalid),
            ("defer: DANE error: tlsa lookup DEFER".into(), HostProblem::TlsaLookup),
            ("defer H=mx.a.test [192.0.2.1]: a TLS session is required, but the server did not offer TLS support".into(), HostProblem::StarttlsNotOffered),
            ("defer H=mx.a.test [192.0.2.1]: SMTP error from remote mail server after STARTTLS: 454 x".into(), HostProblem::StarttlsRefused),
            ("defer (Connection refused)".into(), HostProblem::Other),
            ("defer (Connection reset by peer) H=mx.a.test [192.0.2.1]: smtp send to x failed".into(), HostProblem::Other),
            ("defer: retry time not reached for any host for 'a.test'".into(), HostProblem::Other),
            ("defer".into(), HostProblem::Other),
            (
                "defer (-37) H=mx.a.test [192.0.2.1]: TLS session: (cert/key setup: cert=/x key=/y): Error while reading file.".into(),
                HostProblem::Local,
            ),
        ] {
            let line = format!("2026-11-22 01:40:29 1xUwZB-0006OQ-0w == u@a.test R=r T=t {text}");
            assert_eq!(recipient(&line).problem, problem, "{line}");
        }
        for colon in [":", " :"] {
            let line = format!(
                "2026-11-22 01:40:29 1xUwZB-0006OQ-0w ** u@a.test R=r T=t H=mx.a.test [192.0.2.1]{colon} TLS session: {invalid}: retry timeout exceeded"
            );
            assert_eq!(recipient(&line).problem, HostProblem::CertificateInvalid, "{line}");
        }
    }
}
