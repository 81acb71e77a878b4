//! Reads what syslog daemons log of the lines that they left out.
//!
//! Takes: the tag and the text of a line of another program, or a line without a tag. Gives: how many lines of an MTA's are
//! missing, at least. journald(8) names the unit; rsyslogd(8) names a process, or nothing: then the MTA's lines may be among
//! them. `last message repeated N times` of syslogd(8) (BSD, sysklogd, older rsyslogd) has no tag, and no text.
//! Not here: `message repeated N times: [ …]` of rsyslogd(8), whose text is read once (`syslog`); whose the last message was.

use memchr::memmem;

use crate::envelope;
use crate::event::{Event, EventKind, Process};
use crate::number::decimal;

/// The longest line of that kind: a time, a priority, a host (RFC 5424 §6), and the words.
const MAX_REPEATED: usize = 400;

/// Lines that were left out; `None` for every other line.
pub(crate) fn lines_lost(ident: &[u8], text: &[u8]) -> Option<u32> {
    if ident.starts_with(b"systemd-journal") {
        // `Suppressed 123 messages from postfix@-.service`
        let (number, rest) = decimal(text.strip_prefix(b"Suppressed ")?)?;
        let unit = rest.strip_prefix(b" messages from ")?;
        let of_mta = [&b"postfix"[..], b"exim", b"docker", b"containerd", b"podman"];
        return of_mta.iter().any(|name| memmem::find(unit, name).is_some()).then_some(number);
    }
    if !ident.starts_with(b"rsyslogd") || !contains(text, b"rate-limiting") {
        return None;
    }
    // `imuxsock lost 123 messages from pid 456 due to rate-limiting`,
    // `imjournal: 123 messages lost due to rate-limiting (20000 allowed within 600 seconds)`,
    // `imjournal: begin to drop messages due to rate-limiting`
    let counted = || {
        let at = memmem::find(text, b" messages ")?;
        let digits = text.get(..at)?;
        let digits = digits.get(digits.iter().rposition(|b| !b.is_ascii_digit()).map_or(0, |at| at + 1)..)?;
        decimal(digits).map(|(number, _)| number)
    };
    counted().or(contains(text, b"begin to drop messages").then_some(1))
}

/// `TIME HOST last message repeated N times`, with a priority before the host or not.
#[cold]
pub(crate) fn last_line_repeated(line: &[u8]) -> Option<Event<'_>> {
    // It is short: everything else is another program's line.
    let line = line.get(..MAX_REPEATED.min(line.len()))?;
    let at = memmem::find(line, b"last message repeated ")?;
    let (times, rest) = decimal(line.get(at + b"last message repeated ".len()..)?)?;
    let (before, rest) = (line.get(..at)?, rest.strip_prefix(b" time")?);
    if !matches!(rest, b"" | b"s" | b"s ---") {
        return None;
    }
    let found = envelope::open(before.trim_ascii_end());
    // What a program logs has a tag.
    if found.line.is_some() || before.ends_with(b": ") {
        return None;
    }
    let process = Process { host: found.host, instance: b"", name: b"", pid: 0 };
    Some(Event { timestamp: found.time?, process, kind: EventKind::LastLineRepeated { times } })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    memmem::find(text, part).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_how_many_lines_are_missing() {
        for (ident, text, want) in [
            ("systemd-journald", "Suppressed 123 messages from postfix@-.service", Some(123)),
            ("systemd-journal", "Suppressed 7 messages from /system.slice/exim4.service", Some(7)),
            ("systemd-journald", "Suppressed 123 messages from nginx.service", None),
            ("systemd-journald", "Journal started", None),
            ("rsyslogd", "imuxsock lost 1042 messages from pid 456 due to rate-limiting", Some(1042)),
            (
                "rsyslogd",
                "imjournal: 77 messages lost due to rate-limiting (20000 allowed within 600 seconds)",
                Some(77),
            ),
            ("rsyslogd", "imjournal: begin to drop messages due to rate-limiting", Some(1)),
            (
                "rsyslogd",
                "imuxsock[pid: 456, name: smtp] from <x>: begin to drop messages due to rate-limiting",
                Some(1),
            ),
            ("rsyslogd", "action 'action-8' resumed (module 'builtin:omfile')", None),
            ("postfix/smtp", "Suppressed 123 messages from postfix.service", None),
        ] {
            assert_eq!(lines_lost(ident.as_bytes(), text.as_bytes()), want, "{ident}: {text}");
        }
    }

    #[test]
    fn reads_how_often_the_last_line_is_repeated() {
        let times = |line: &str| match last_line_repeated(line.as_bytes())?.kind {
            EventKind::LastLineRepeated { times } => Some(times),
            other => panic!("{other:?}"),
        };
        for (line, want) in [
            ("Nov 22 01:39:01 mta last message repeated 2 times", Some(2)),
            ("Nov 22 01:39:01 last message repeated 1 time", Some(1)),
            ("Nov 22 01:39:01 <mail.info> mta last message repeated 12 times", Some(12)),
            ("2026-11-22T01:46:13.565141+00:00 mta last message repeated 3 times", Some(3)),
            ("Nov 22 01:39:01 mta --- last message repeated 3 times ---", Some(3)),
            ("<22>Nov 22 01:39:01 mta last message repeated 2 times", Some(2)),
            ("Nov 22 01:39:01 mta postfix/smtpd[1]: last message repeated 2 times", None),
            ("Nov 22 01:39:01 mta postfix/smtpd[1]: x last message repeated 2 times", None),
            ("Nov 22 01:39:01 mta last message repeated x times", None),
            ("last message repeated 2 times", None),
        ] {
            assert_eq!(times(line), want, "{line}");
        }
    }
}
