//! Splits a syslog line: time, host, program, process id, text.
//!
//! Takes: a line without its line end. Gives: where its parts are; in the plain forms the time is read only when asked
//! for, because most lines are dropped for their program's name alone.
//! The plain forms are `Nov 22 01:39:01 host ident[pid]: text` (Postfix's own `maillog_file`, traditional syslog; the day
//! padded with a space or a zero) and `2026-11-22T01:46:13.565141+00:00 host ident[pid]: text` (RFC 3339; any offset),
//! both with or without `<PRI>` before them, with or without the host, with or without `[pid]`.
//! When it fails: a line of another shape is `None`.
//! Not here: the other forms, and lines within lines (`envelope`); the reading of a time (`timestamp`).

use memchr::{memchr, memchr2, memmem};

use crate::event::LogTimestamp;
use crate::number::decimal;
use crate::timestamp;

/// The longest host name that a line may have (RFC 5424 §6.2.4).
pub(crate) const MAX_HOST: usize = 255;

/// The longest tag: RFC 5424 allows 48 bytes, Postfix's `syslog_name` has no limit of its own.
pub(crate) const MAX_IDENT: usize = 256;

/// A line split into its parts by their position; the values are not checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyslogLine<'a> {
    pub(crate) timestamp: RawTimestamp<'a>,
    /// The host's name; in its place can stand a priority (see [`host`](Self::host)).
    pub(crate) host: &'a [u8],
    /// The program's tag, all before `[pid]`: `postfix/smtp`.
    pub(crate) ident: &'a [u8],
    pub(crate) pid: PidForm,
    /// `[pid]: text`, ` text`, or the text.
    pub(crate) tail: &'a [u8],
}

/// How the process id is written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PidForm {
    Bracketed,
    Missing,
    /// Read already; 0 where the line has none. The tail is the text.
    Read(u32),
}

/// A time that is read when somebody asks for it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RawTimestamp<'a> {
    /// Fifteen bytes, `Nov 22 01:39:01`.
    Traditional(&'a [u8]),
    Rfc3339(&'a [u8]),
    Read(LogTimestamp),
}

/// Splits a line of a plain form.
#[inline]
pub(crate) fn split_plain(line: &[u8]) -> Option<SyslogLine<'_>> {
    let line = if line.first() == Some(&b'<') { strip_priority(line)? } else { line };
    let (timestamp, rest) = split_timestamp(line)?;
    let (host, behind) = rest.split_at_checked(memchr(b' ', rest)?)?;
    // A tag in the place of the host's name: there is none (`2001:db8::` is one).
    let hostless = host.last() == Some(&b':') && !host.ends_with(b"::");
    let (host, rest) = if hostless { (&b""[..], rest) } else { (host, behind.get(1..)?) };
    let (ident, tail) = rest.split_at_checked(memchr2(b'[', b' ', rest)?)?;
    if tail.first() == Some(&b'[') {
        return Some(SyslogLine { timestamp, host, ident, pid: PidForm::Bracketed, tail });
    }
    Some(SyslogLine { timestamp, host, ident: ident.strip_suffix(b":")?, pid: PidForm::Missing, tail })
}

/// Unwraps rsyslog's `message repeated 3 times: [ text]` and syslog-ng's `Last message 'text' repeated 3 times, suppressed
/// by syslog-ng on host`. A repeated text about one session adds nothing, so it is read once.
#[inline]
pub(crate) fn unwrap_repeated(text: &[u8]) -> &[u8] {
    let inner = match text.first() {
        Some(b'm') => text
            .strip_prefix(b"message repeated ")
            .and_then(|rest| decimal(rest).and_then(|(_, rest)| rest.strip_prefix(b" times: [ ")?.strip_suffix(b"]"))),
        Some(b'L') => text.strip_prefix(b"Last message '").and_then(|rest| {
            let (inner, behind) = rest.split_at_checked(memmem::rfind(rest, b"' repeated ")?)?;
            let (_, behind) = decimal(behind.strip_prefix(b"' repeated ")?)?;
            behind.starts_with(b" times, suppressed by syslog-ng").then_some(inner)
        }),
        _ => None,
    };
    inner.unwrap_or(text)
}

/// Skips `[ID 197553 mail.info] `, which the syslog daemon of Solaris puts before a text.
#[cold]
fn strip_message_id(text: &[u8]) -> &[u8] {
    let text_behind = || {
        let (_, rest) = decimal(text.strip_prefix(b"[ID ")?)?;
        let rest = rest.strip_prefix(b" ")?;
        let (priority, rest) = rest.split_at_checked(memchr(b']', rest)?)?;
        is_priority(priority).then(|| rest.strip_prefix(b"] "))?
    };
    text_behind().unwrap_or(text)
}

/// The time at the front of a line, unread, and what follows its space.
#[inline]
fn split_timestamp(line: &[u8]) -> Option<(RawTimestamp<'_>, &[u8])> {
    match line {
        [_, _, _, b' ', _, _, b' ', _, _, b':', _, _, b':', _, _, b' ', rest @ ..] => {
            Some((RawTimestamp::Traditional(line.get(..15)?), rest))
        }
        [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, zone @ ..] => {
            let space = memchr(b' ', zone)?;
            Some((RawTimestamp::Rfc3339(line.get(..19 + space)?), zone.get(space + 1..)?))
        }
        _ => None,
    }
}

/// `<PRI>` of RFC 3164 §4.1.1: one to three digits.
pub(crate) fn strip_priority(line: &[u8]) -> Option<&[u8]> {
    let digits = line.get(1..5.min(line.len()))?;
    let end = digits.iter().position(|&b| b == b'>')?;
    (end > 0 && digits.iter().take(end).all(u8::is_ascii_digit)).then(|| line.get(end + 2..))?
}

/// Whether a word is a priority: a severity (`INFO`, `[info]`), or with the facility (`mail.info` of busybox, `mail.info:`
/// of socklog, `<mail.info>` and `<2.6>` of FreeBSD, `mail:info` of AIX).
#[inline]
pub(crate) fn is_priority(word: &[u8]) -> bool {
    // From `err` to `<authpriv.warning>:`.
    if !(3..=20).contains(&word.len()) {
        return false;
    }
    let bare = match word {
        [b'<', inner @ .., b'>'] | [b'[', inner @ .., b']'] => inner,
        _ => word.strip_suffix(b":").unwrap_or(word),
    };
    match bare.iter().position(|b| matches!(b, b'.' | b':')) {
        // `info:` is a program's tag.
        None => word.last() != Some(&b':') && is_severity(bare),
        Some(point) => is_facility_and_severity(word, bare, point),
    }
}

/// syslog(3)'s names, old and new, in either case.
#[inline]
fn is_severity(word: &[u8]) -> bool {
    let names: &[&[u8]] = match word.len() {
        3 => &[b"err"],
        4 => &[b"info", b"warn", b"crit"],
        5 => &[b"error", b"debug", b"alert", b"emerg", b"panic", b"fatal"],
        6 => &[b"notice"],
        7 => &[b"warning"],
        _ => &[],
    };
    names.iter().any(|name| word.eq_ignore_ascii_case(name))
}

fn is_facility_and_severity(word: &[u8], bare: &[u8], point: usize) -> bool {
    const FACILITIES: [&[u8]; 18] = [
        b"kern",
        b"user",
        b"mail",
        b"daemon",
        b"auth",
        b"syslog",
        b"lpr",
        b"news",
        b"uucp",
        b"cron",
        b"authpriv",
        b"ftp",
        b"ntp",
        b"security",
        b"console",
        b"audit",
        b"clock",
        b"alert",
    ];
    let (facility, severity) = bare.split_at(point);
    let severity = severity.get(1..).unwrap_or_default();
    let named = matches!(facility, [b'l', b'o', b'c', b'a', b'l', b'0'..=b'7']) || FACILITIES.contains(&facility);
    let number = |word: &[u8]| matches!(decimal(word), Some((0..=23, b"")));
    named && is_severity(severity) || word.first() == Some(&b'<') && number(facility) && number(severity)
}

/// Whether a text of a program may be a line of another program's, as where the program is a container. What the MTAs
/// themselves log never is: it would let strangers write it.
#[inline]
pub(crate) fn may_be_a_line(ident: &[u8], text: &[u8]) -> bool {
    if ident.starts_with(b"postfix/") {
        return false;
    }
    match text {
        [b'<', ..] => true,
        [_, _, _, _, b'-', _, _, b'-', _, _, separator, _, _, b':', _, _, b':', ..] => {
            // Exim's own time.
            *separator != b' ' || !ident.starts_with(b"exim")
        }
        [_, _, _, b' ', _, _, b' ', _, _, b':', _, _, b':', ..] => true,
        _ => false,
    }
}

impl<'a> SyslogLine<'a> {
    /// The process id, 0 where the line does not tell it, and the text behind the prefix.
    #[inline]
    pub(crate) fn pid_and_text(&self) -> Option<(u32, &'a [u8])> {
        let (pid, text) = match self.pid {
            PidForm::Read(pid) => (pid, self.tail),
            PidForm::Missing => (0, self.tail.strip_prefix(b" ")?),
            PidForm::Bracketed => {
                let (pid, rest) = decimal(self.tail.get(1..)?)?;
                (pid, rest.strip_prefix(b"]: ")?)
            }
        };
        // A template that puts a space between tag and message doubles the one that the message has.
        let text = text.strip_prefix(b" ").unwrap_or(text);
        Some((pid, if text.starts_with(b"[ID ") { strip_message_id(text) } else { text }))
    }

    /// Whether the line tells the process id.
    #[inline]
    pub(crate) fn has_pid(&self) -> bool {
        !matches!(self.pid, PidForm::Missing | PidForm::Read(0))
    }

    /// The host's name; empty where the line has none, or a priority in its place.
    #[inline]
    pub(crate) fn host(&self) -> &'a [u8] {
        if self.host == b"-" || is_priority(self.host) { b"" } else { self.host }
    }

    /// Reads the time; `None` if it is none.
    pub(crate) fn timestamp(&self) -> Option<LogTimestamp> {
        match self.timestamp {
            RawTimestamp::Traditional(text) => timestamp::traditional(text),
            RawTimestamp::Rfc3339(text) => timestamp::rfc3339(text),
            RawTimestamp::Read(timestamp) => Some(timestamp),
        }
    }

    /// Whether the text may be a line of its own, as where the program is a container.
    #[inline]
    pub(crate) fn may_hold_a_line(&self) -> bool {
        if self.ident.starts_with(b"postfix/") {
            return false;
        }
        let text = match self.pid {
            PidForm::Bracketed => {
                // At most ten digits.
                let start = self.tail.get(..12.min(self.tail.len())).unwrap_or_default();
                start.iter().position(|b| *b == b']').and_then(|end| self.tail.get(end + 3..))
            }
            PidForm::Missing | PidForm::Read(_) => self.tail.get(1..),
        };
        text.is_some_and(|text| may_be_a_line(self.ident, text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::split;

    fn stamp(line: &str) -> Option<LogTimestamp> {
        split(line.as_bytes()).expect("a prefix").timestamp()
    }

    fn utc(stamp_text: &str) -> Option<i64> {
        match stamp(&format!("{stamp_text} mta postfix/smtp[7]: x")) {
            Some(LogTimestamp::Utc(seconds)) => Some(seconds),
            Some(LogTimestamp::Civil { .. } | LogTimestamp::Local(_)) => panic!("not a civil stamp: {stamp_text}"),
            None => None,
        }
    }

    #[test]
    fn splits_the_forms_that_real_systems_write() {
        for (line, ident, pid, text) in [
            ("Nov 22 01:39:01 mta postfix/smtp[26096]: x y", "postfix/smtp", 26096, "x y"),
            ("Nov  2 01:39:01 mta.example postfix-out/smtp[1]: x", "postfix-out/smtp", 1, "x"),
            ("<22>Nov 22 01:39:01 mta postfix/relay/smtp[1]: ", "postfix/relay/smtp", 1, ""),
            ("2026-11-22T01:46:13.565141+00:00 mta postfix/smtp[4294967295]: x", "postfix/smtp", u32::MAX, "x"),
            ("<1>2026-11-22T01:46:13Z mta a/b[2]: x [y]: z", "a/b", 2, "x [y]: z"),
        ] {
            let entry = split(line.as_bytes()).unwrap_or_else(|| panic!("{line}"));
            assert_eq!(entry.ident, ident.as_bytes(), "{line}");
            assert_eq!(entry.pid_and_text(), Some((pid, text.as_bytes())), "{line}");
            assert!(entry.timestamp().is_some(), "{line}");
        }
    }

    #[test]
    fn leaves_other_shapes_alone() {
        for line in [
            "",
            "\r",
            "Nov 22 01:39:01 mta",
            "Nov 22 01:39:01 mta -- MARK --",
            "Nov 22 01:39:01 mta last message repeated 2 times",
            "<>Nov 22 01:39:01 mta a/b[1]: x",
            "<1234>Nov 22 01:39:01 mta a/b[1]: x",
            "<2x>Nov 22 01:39:01 mta a/b[1]: x",
            "<22",
            "2026-11-22T01:46:13",
            " mta postfix/smtp[1]: x",
        ] {
            assert!(split(line.as_bytes()).is_none(), "{line}");
        }
    }

    #[test]
    fn a_process_id_is_a_32_bit_number() {
        for line in ["[]: x", "[x]: y", "[1", "[1]", "[1]:x", "[4294967296]: x", "[-1]: x"] {
            let line = format!("Nov 22 01:39:01 mta postfix/smtp{line}");
            assert_eq!(split(line.as_bytes()).and_then(|entry| entry.pid_and_text()), None, "{line}");
        }
    }

    #[test]
    fn reads_traditional_stamps() {
        let want = |month, day, hour, minute, second| Some(LogTimestamp::Civil { month, day, hour, minute, second });
        assert_eq!(stamp("Nov 22 01:39:01 h a/b[1]: x"), want(11, 22, 1, 39, 1));
        assert_eq!(stamp("Jan  2 23:59:60 h a/b[1]: x"), want(1, 2, 23, 59, 60));
        assert_eq!(stamp("Feb 29 00:00:00 h a/b[1]: x"), want(2, 29, 0, 0, 0));
        for wrong in ["Nov 00 01:39:01", "Nov 31 01:39:01", "Now 22 01:39:01", "Nov 22 24:39:01", "Nov 22 01:60:01"] {
            assert_eq!(stamp(&format!("{wrong} h a/b[1]: x")), None, "{wrong}");
        }
    }

    #[test]
    fn turns_rfc_3339_into_utc() {
        assert_eq!(utc("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(utc("2026-11-22T01:46:13.565141+00:00"), Some(1_795_311_973));
        assert_eq!(utc("2026-11-22T02:46:13.565141+01:00"), Some(1_795_311_973));
        assert_eq!(utc("2026-11-21T22:16:13-0330"), Some(1_795_311_973));
        assert_eq!(utc("2000-02-29T12:00:00Z"), Some(951_825_600));
        assert_eq!(utc("2100-03-01T00:00:00Z"), Some(4_107_542_400));
        assert_eq!(utc("1969-12-31T23:59:59Z"), Some(-1));
        assert_eq!(utc("0000-01-01T00:00:00Z"), Some(-62_167_219_200));
        for wrong in [
            "2026-02-29T01:46:13Z",
            "2100-02-29T01:46:13Z",
            "2026-13-22T01:46:13Z",
            "2026-00-22T01:46:13Z",
            "2026-11-22T01:46:13.Z",
            "2026-11-22T01:46:13.",
            "2026-11-22T01:46:13+24:00",
            "2026-11-22T01:46:13*00:00",
            "20x6-11-22T01:46:13Z",
            "2026-11-22T25:46:13Z",
        ] {
            assert_eq!(utc(wrong), None, "{wrong}");
        }
    }
}
