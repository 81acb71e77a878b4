//! Takes a line out of what collectors put around it: containers, syslog relays, log viewers.
//!
//! Takes: a line without its line end. Gives: its parts (see [`SyslogLine`]), of the innermost line where one holds
//! another; and where the last time in it begins, for an MTA that writes no more than its time before the text.
//! An envelope is a row of words, each known by its place and shape: a byte order mark, terminal colors, `name  |` (docker
//! compose), `[pod/…]` (kubectl), `stdout F` (CRI), times (see [`timestamp`]), priorities (`<22>`, `<mail.info>`,
//! `mail.info`, `INFO`), a host, a tag; or the header of RFC 5424 §6. Behind a tag comes the text, which may be a line again
//! (a container that logs to the journal).
//! Of several times the first one with a zone is taken, else the first one with a year, else the first.
//! Of several hosts the last one is taken: where the MTA runs.
//! Limits: [`MAX_WORDS`] words. When it fails: no line is found.
//! Not here: the plain forms (`syslog`).

use memchr::memchr;

use crate::Entry;
use crate::event::LogTimestamp;
use crate::number::decimal;
use crate::syslog::{PidForm, RawTimestamp, SyslogLine, is_priority, may_be_a_line, split_plain, strip_priority};
use crate::timestamp;

/// The longest envelope known has nine words; all lines in it together.
const MAX_WORDS: usize = 24;

/// RFC 5424 §6.4: says that the text is UTF-8. Some editors begin a file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What was found in an envelope.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Envelope<'a> {
    /// The innermost line that has a time and a tag.
    pub(crate) line: Option<SyslogLine<'a>>,
    /// The text from the last time on, where no tag follows.
    pub(crate) from_last_time: Option<&'a [u8]>,
    /// The best of the times before that.
    pub(crate) time_before: Option<LogTimestamp>,
    /// The best of all.
    pub(crate) time: Option<LogTimestamp>,
    /// The host, or the container that stands for one.
    pub(crate) host: &'a [u8],
}

/// Splits a line of any form: one of the plain forms, or what is in an envelope.
#[inline]
pub(crate) fn split(line: &[u8]) -> Option<SyslogLine<'_>> {
    match split_plain(line) {
        Some(plain) if !plain.may_hold_a_line() => Some(plain),
        _ => open(line).line,
    }
}

/// Opens the envelope of a line.
#[cold]
pub(crate) fn open(line: &[u8]) -> Envelope<'_> {
    open_within(None, b"", line)
}

/// Opens the envelope of a line that a collector handed over with a time and a host.
pub(crate) fn open_within<'a>(time: Option<LogTimestamp>, host: &'a [u8], line: &'a [u8]) -> Envelope<'a> {
    let mut found = Envelope { time, host, ..Envelope::default() };
    let mut rest = line;
    // A host's name and a tag can stand behind a time, the host's name once.
    let (mut behind_time, mut behind_host) = (time.is_some(), false);
    for _ in 0..MAX_WORDS {
        rest = strip_marks(rest);
        let unwrapped = if rest.first() == Some(&b'<') { strip_priority(rest) } else { None };
        let header = unwrapped.unwrap_or(rest).strip_prefix(b"1 ").filter(|_| unwrapped.is_some() || !behind_time);
        if let Some(header) = header {
            let Some(text) = found.header(header) else { break };
            (rest, behind_time) = (text, false);
            continue;
        }
        if let Some(after) = unwrapped {
            rest = after;
            continue;
        }
        if let Some((time, after)) = timestamp::split(rest) {
            (found.time_before, found.from_last_time) = (found.time, Some(rest));
            found.time = better(found.time, time);
            (rest, behind_time, behind_host) = (after, true, false);
            continue;
        }
        let (word, after) = word(rest);
        if is_priority(word) {
            rest = after;
        } else if let Some(after) = stream(word, after) {
            rest = after;
        } else if let Some(after) = container(word, after).filter(|_| found.line.is_none()) {
            (found.host, rest) = (word, after);
        } else if let Some((ident, pid, text)) = tag(word, after).filter(|_| behind_time) {
            found.take(ident, pid, text);
            if !may_be_a_line(ident, text) {
                break;
            }
            (rest, behind_time) = (text, false);
        } else if behind_time && !behind_host && !word.is_empty() {
            (found.host, rest, behind_host) = (word, after, true);
        } else {
            break;
        }
    }
    found
}

/// The line that an entry is or holds.
pub(crate) fn entry_line<'a>(entry: &Entry<'a>) -> Option<SyslogLine<'a>> {
    let Entry { timestamp, host, ident, pid, text } = *entry;
    if ident.is_empty() || may_be_a_line(ident, text) {
        let held = open_within(timestamp, host, text).line;
        if held.is_some() || ident.is_empty() {
            return held;
        }
    }
    Some(SyslogLine { timestamp: RawTimestamp::Read(timestamp?), host, ident, pid: PidForm::Read(pid), tail: text })
}

impl<'a> Envelope<'a> {
    /// Reads RFC 5424's header behind its version: `timestamp host app pid msgid data text`. Gives the text, if it may be a
    /// line again.
    fn header(&mut self, header: &'a [u8]) -> Option<&'a [u8]> {
        let mut next = header;
        let mut field = || {
            let (field, after) = next.split_at_checked(memchr(b' ', next)?)?;
            next = after.get(1..)?;
            Some(field)
        };
        let (time, host, ident, pid, _) = (field()?, field()?, field()?, field()?, field()?);
        let text = strip_structured_data(next)?;
        if let Some(time) = timestamp::rfc3339(time) {
            self.time = better(self.time, time);
        }
        if host != b"-" {
            self.host = host;
        }
        // rsyslog keeps the space that RFC 3164 has before the text.
        let text = text.trim_ascii_start();
        let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text).trim_ascii_start();
        let pid = match decimal(pid) {
            Some((pid, b"")) => pid,
            _ => 0,
        };
        self.take(ident, pid, text);
        may_be_a_line(ident, text).then_some(text)
    }

    /// Takes a line that has a tag, in place of the one around it.
    fn take(&mut self, ident: &'a [u8], pid: u32, text: &'a [u8]) {
        if let Some(time) = self.time {
            let (timestamp, pid) = (RawTimestamp::Read(time), PidForm::Read(pid));
            self.line = Some(SyslogLine { timestamp, host: self.host, ident, pid, tail: text });
            self.from_last_time = None;
        }
    }
}

/// The time that is known better: with a zone, with a year; the first of two that are the same.
fn better(outer: Option<LogTimestamp>, inner: LogTimestamp) -> Option<LogTimestamp> {
    let rank = |time: LogTimestamp| match time {
        LogTimestamp::Civil { .. } => 0,
        LogTimestamp::Local(_) => 1,
        LogTimestamp::Utc(_) => 2,
    };
    outer.filter(|outer| rank(*outer) >= rank(inner)).or(Some(inner))
}

/// The first word of a text, and what follows the spaces behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let (word, rest) = text.split_at(memchr(b' ', text).unwrap_or(text.len()));
    (word, rest.trim_ascii_start())
}

/// Skips spaces, byte order marks, and what colors a terminal (`ESC[…m`).
fn strip_marks(text: &[u8]) -> &[u8] {
    let mut rest = text.trim_ascii_start();
    loop {
        let after = rest.strip_prefix(BYTE_ORDER_MARK).or_else(|| {
            let color = rest.strip_prefix(b"\x1b[")?;
            let end = color.iter().position(|b| !matches!(b, b'0'..=b'9' | b';'))?;
            color.get(end..)?.strip_prefix(b"m")
        });
        let Some(after) = after else { return rest };
        rest = after.trim_ascii_start();
    }
}

/// `stdout F` and kin, of Kubernetes' container runtimes: `F` a full line, `P` a part of one.
fn stream<'a>(word: &[u8], after: &'a [u8]) -> Option<&'a [u8]> {
    if !matches!(word, b"stdout" | b"stderr") {
        return None;
    }
    after.strip_prefix(b"F ").or_else(|| after.strip_prefix(b"P "))
}

/// `name  | ` of docker compose, `[pod/name/container] ` of kubectl.
fn container<'a>(word: &[u8], after: &'a [u8]) -> Option<&'a [u8]> {
    let of_pod = word.starts_with(b"[pod/") && word.ends_with(b"]");
    after.strip_prefix(b"| ").or(of_pod.then_some(after))
}

/// `ident[pid]:` or `ident:` as a word, and the text behind it.
fn tag<'a>(word: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], u32, &'a [u8])> {
    let tag = word.strip_suffix(b":").filter(|tag| !tag.is_empty())?;
    match memchr(b'[', tag) {
        Some(0) => None,
        Some(bracket) => {
            let (ident, pid) = tag.split_at_checked(bracket)?;
            match decimal(pid.get(1..)?)? {
                (pid, b"]") => Some((ident, pid, text)),
                _ => None,
            }
        }
        // `2001:db8::` is an address.
        None => (!tag.ends_with(b":")).then_some((tag, 0, text)),
    }
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
