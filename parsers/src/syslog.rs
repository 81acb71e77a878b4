//! Takes the prefix off a log line: time, host, program, process id.
//!
//! Takes: a line without its line end. Gives: where its parts are; the time is read only when asked for, because most
//! lines are dropped for their program's name alone.
//! Understood: `Nov 22 01:39:01 host ident[pid]: text` (Postfix's own `maillog_file`, traditional syslog; the day padded
//! with a space or a zero) and `2026-11-22T01:46:13.565141+00:00 host ident[pid]: text` (RFC 3339; any offset),
//! both with or without `<PRI>` before them, and `<PRI>1 stamp host ident pid msgid data text` (RFC 5424 §6).
//! When it fails: a line of another shape is `None`: some other program's.
//! Not here: the year of a stamp that has none.

use memchr::{memchr, memchr2};

use crate::event::LogTimestamp;
use crate::timestamp;

/// A line split into its parts by their position; the values are not checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SyslogLine<'a> {
    timestamp: RawTimestamp<'a>,
    /// The program's tag, all before `[pid]`: `postfix/smtp`.
    pub(crate) ident: &'a [u8],
    pid: PidForm,
    /// `[pid]: text`, ` text`, or `pid msgid data text`.
    tail: &'a [u8],
}

/// How the process id is written.
#[derive(Clone, Copy, Debug)]
enum PidForm {
    Bracketed,
    Missing,
    Word,
}

#[derive(Clone, Copy, Debug)]
enum RawTimestamp<'a> {
    /// Fifteen bytes, `Nov 22 01:39:01`.
    Traditional(&'a [u8]),
    Rfc3339(&'a [u8]),
}

/// Finds the parts of a line by their position.
#[inline]
pub(crate) fn split(line: &[u8]) -> Option<SyslogLine<'_>> {
    let line = if line.first() == Some(&b'<') { strip_priority(line)? } else { line };
    if let Some(line) = line.strip_prefix(b"1 ") {
        return split_5424(line);
    }
    let (timestamp, host) = split_timestamp(line)?;
    let ident = host.get(memchr(b' ', host)? + 1..)?;
    let bracket = memchr2(b'[', b' ', ident)?;
    let (ident, tail) = ident.split_at_checked(bracket)?;
    (tail.first() == Some(&b'[')).then_some(SyslogLine { timestamp, ident, pid: PidForm::Bracketed, tail })
}

/// RFC 5424 §6: `stamp host ident pid msgid data text`.
#[cold]
fn split_5424(line: &[u8]) -> Option<SyslogLine<'_>> {
    let word = |text: &'_ [u8]| -> Option<usize> { memchr(b' ', text) };
    let timestamp = line.get(..word(line)?)?;
    let rest = line.get(timestamp.len() + 1..)?;
    let rest = rest.get(word(rest)? + 1..)?;
    let ident = rest.get(..word(rest)?)?;
    let tail = rest.get(ident.len() + 1..)?;
    let shaped = matches!(timestamp, [_, _, _, _, b'-', _, _, b'-', _, _, b'T', _, _, b':', _, _, b':', _, _, ..]);
    shaped.then_some(SyslogLine { timestamp: RawTimestamp::Rfc3339(timestamp), ident, pid: PidForm::Word, tail })
}

/// What follows RFC 5424's structured data, a nil (`-`) or any number of `[…]`, and the space behind it.
fn strip_structured_data(text: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = text.strip_prefix(b"-") {
        return Some(rest.strip_prefix(b" ").unwrap_or(rest));
    }
    let (mut quoted, mut escaped, mut inside) = (false, false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' if inside => quoted = !quoted,
            b'[' if !inside => inside = true,
            b']' if !quoted => inside = false,
            b' ' if !inside => return text.get(at + 1..),
            _ if inside => {}
            _ => return None,
        }
    }
    None
}

/// Unwraps rsyslog's `message repeated 3 times: [ text]`. A repeated text about one session adds nothing, so it is read
/// once.
#[inline]
pub(crate) fn unwrap_repeated(text: &[u8]) -> &[u8] {
    let Some(rest) = text.strip_prefix(b"message repeated ") else { return text };
    let inner = decimal(rest).and_then(|(_, rest)| rest.strip_prefix(b" times: [ ")?.strip_suffix(b"]"));
    inner.unwrap_or(text)
}

/// The same for a line that may have come without a host name, as a program hands it to `/dev/log`, or without a process
/// id: `ident: text`.
#[inline]
pub(crate) fn split_hostless(line: &[u8]) -> Option<SyslogLine<'_>> {
    let line = if line.first() == Some(&b'<') { strip_priority(line)? } else { line };
    let (timestamp, rest) = split_timestamp(line)?;
    let first = rest.get(..memchr(b' ', rest)?)?;
    let ident = if first.ends_with(b":") { rest } else { rest.get(first.len() + 1..)? };
    let (ident, tail) = ident.split_at_checked(memchr2(b'[', b' ', ident)?)?;
    if tail.first() == Some(&b'[') {
        return Some(SyslogLine { timestamp, ident, pid: PidForm::Bracketed, tail });
    }
    Some(SyslogLine { timestamp, ident: ident.strip_suffix(b":")?, pid: PidForm::Missing, tail })
}

/// Whether a line begins with a time.
pub(crate) fn starts_with_timestamp(line: &[u8]) -> bool {
    let line = if line.first() == Some(&b'<') { strip_priority(line) } else { Some(line) };
    line.is_some_and(|line| split_timestamp(line.strip_prefix(b"1 ").unwrap_or(line)).is_some())
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
fn strip_priority(line: &[u8]) -> Option<&[u8]> {
    let digits = line.get(1..5.min(line.len()))?;
    let end = digits.iter().position(|&b| b == b'>')?;
    (end > 0 && digits.iter().take(end).all(u8::is_ascii_digit)).then(|| line.get(end + 2..))?
}

impl<'a> SyslogLine<'a> {
    /// The process id, 0 where the line does not tell it, and the text behind the prefix.
    #[inline]
    pub(crate) fn pid_and_text(&self) -> Option<(u32, &'a [u8])> {
        if let PidForm::Missing = self.pid {
            return Some((0, self.tail.strip_prefix(b" ")?));
        }
        if let PidForm::Word = self.pid {
            let (pid, rest) = decimal(self.tail)?;
            let rest = rest.strip_prefix(b" ")?;
            let text = strip_structured_data(rest.get(memchr(b' ', rest)? + 1..)?)?;
            // RFC 5424 §6.4: a byte order mark says that it is UTF-8.
            return Some((pid, text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)));
        }
        let (pid, rest) = decimal(self.tail.get(1..)?)?;
        Some((pid, rest.strip_prefix(b"]: ")?))
    }

    /// Reads the time; `None` if it is none.
    pub(crate) fn timestamp(&self) -> Option<LogTimestamp> {
        match self.timestamp {
            RawTimestamp::Traditional(text) => timestamp::traditional(text),
            RawTimestamp::Rfc3339(text) => timestamp::rfc3339(text),
        }
    }
}

/// A run of at least one ASCII digit that fits in 32 bits, and what follows it.
#[inline]
pub(crate) fn decimal(text: &[u8]) -> Option<(u32, &[u8])> {
    let mut value = 0u32;
    let mut rest = text;
    while let [digit @ b'0'..=b'9', after @ ..] = rest {
        value = value.checked_mul(10)?.checked_add(u32::from(digit - b'0'))?;
        rest = after;
    }
    (rest.len() < text.len()).then_some((value, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            "Nov 22 01:39:01 mta kernel: [12.5] x",
            "Nov 22 01:39:01 mta dovecot: imap-login: Login: user=<a>, rip=192.0.2.1 [x]",
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
            "2026-11-22T01:46:13",
            "2026-11-22T01:46:13.Z",
            "2026-11-22T01:46:13+24:00",
            "2026-11-22T01:46:13*00:00",
            "20x6-11-22T01:46:13Z",
            "2026-11-22T25:46:13Z",
        ] {
            assert_eq!(utc(wrong), None, "{wrong}");
        }
    }
}
