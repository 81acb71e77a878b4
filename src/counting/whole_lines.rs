//! Makes whole lines of what a container runtime has split, and takes the colors of a terminal out of them.
//!
//! Takes: lines as they stand in a log. Gives: the lines that a program wrote. Kubernetes' runtimes mark the parts of a line
//! (`P`, the last one `F`); Docker's json-file ends the last part alone with a line feed. Both split at 16 KiB.
//! Colors stand between the words of a prefix, as `docker compose logs` and `journalctl` write them; NULs before a line are
//! the hole that truncation left.
//! Limits: [`MAX_LINE`] bytes for a joined line; a longer one is left out and counted. The parts of a line that were read
//! before a restart are lost: what is left is a line of its own.
//! When it fails: never; what is in no such form is given as it is.
//! Not here: where the lines come from (`input`), the text of a line (`parsers`).

use std::borrow::Cow;
use std::collections::BTreeMap;

use memchr::{memchr, memmem};
use serde::Deserialize;
use tlswarden_parsers::is_log_line;

use crate::counting::input::MAX_LINE;

/// Where colors are looked for: the longest prefix is shorter.
const MAX_PREFIX: usize = 128;

/// The least length at which Docker splits a line; shorter entries without a line feed are of another writer.
const DOCKER_PART: usize = 16 * 1024;

/// After so many whole lines without a line feed it is known that this writer never ends them with one.
const MAX_LINES_WITHOUT_END: u32 = 3;

/// A line after it was joined, or cleaned of colors and NULs.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WholeLine<'a> {
    /// The line is whole as it was logged, as nearly all are.
    Same(&'a [u8]),
    /// The lines that take its place: none while the end of a line is missing.
    Changed(Vec<Vec<u8>>),
}

/// The parts of lines that are not complete, by stream.
#[derive(Debug, Default)]
pub(super) struct LineJoiner {
    parts: BTreeMap<Vec<u8>, LinePart>,
    lines_without_end: u32,
    too_long: u64,
}

#[derive(Debug)]
struct LinePart {
    /// The parts so far, as a line of Kubernetes.
    text: Vec<u8>,
    /// Only that the next part is missing tells it from a whole line.
    may_be_whole: bool,
    is_too_long: bool,
}

/// An entry of Docker's json-file.
#[derive(Deserialize)]
struct DockerEntry<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
}

impl LineJoiner {
    /// Takes the next line.
    #[inline]
    pub(super) fn take<'a>(&mut self, line: &'a [u8]) -> WholeLine<'a> {
        if let Some(whole) = self.take_entry(line) {
            return whole;
        }
        let prefix = line.get(..MAX_PREFIX).unwrap_or(line);
        match line.first() == Some(&0) || memchr(0x1b, prefix).is_some() {
            true => self.take_plain(line),
            false => WholeLine::Same(line),
        }
    }

    /// A line in one of the forms of a container runtime.
    #[inline]
    fn take_entry<'a>(&mut self, line: &'a [u8]) -> Option<WholeLine<'a>> {
        match line {
            [b'{', b'"', b'l', b'o', b'g', b'"', ..] => Some(self.take_docker_entry(line)),
            [b'2', _, _, _, b'-', _, _, b'-', _, _, b'T', ..] if cri_parts(line).is_some() => {
                Some(self.take_cri_line(line))
            }
            _ => None,
        }
    }

    /// How many lines were too long since the last call.
    pub(super) fn take_too_long(&mut self) -> u64 {
        std::mem::take(&mut self.too_long)
    }

    /// Whether no line waits for its end.
    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// The line that is not complete and may be whole, at the end of a log.
    pub(super) fn finish(&mut self) -> Vec<Vec<u8>> {
        let whole = std::mem::take(&mut self.parts).into_values().filter(|part| part.may_be_whole && !part.is_too_long);
        whole.map(|part| part.text).collect()
    }

    /// A line with colors, or with NULs before it. Colors are removed once: what is left may look like one again, as often
    /// as a hostile writer likes.
    #[cold]
    fn take_plain<'a>(&mut self, line: &'a [u8]) -> WholeLine<'a> {
        let without_nuls = &line[line.iter().position(|byte| *byte != 0).unwrap_or(line.len())..];
        let plain = without_colors(without_nuls);
        if plain == line {
            return WholeLine::Same(line);
        }
        match self.take_entry(&plain) {
            Some(WholeLine::Changed(lines)) => WholeLine::Changed(lines),
            Some(WholeLine::Same(_)) | None => WholeLine::Changed(vec![plain]),
        }
    }

    #[cold]
    fn take_cri_line<'a>(&mut self, line: &'a [u8]) -> WholeLine<'a> {
        let Some(CriLine { stream, is_part, head, text }) = cri_parts(line) else { return WholeLine::Same(line) };
        match (is_part, self.parts.contains_key(stream)) {
            (false, false) => WholeLine::Same(line),
            (true, _) => {
                self.add(stream, || [head, b" F "].concat(), text, false);
                WholeLine::Changed(Vec::new())
            }
            (false, true) => {
                self.add(stream, Vec::new, text, false);
                WholeLine::Changed(self.end(stream))
            }
        }
    }

    fn take_docker_entry<'a>(&mut self, line: &'a [u8]) -> WholeLine<'a> {
        let is_ended = memmem::find(line, b"\\n\",\"stream\":\"").is_some();
        if is_ended && self.parts.is_empty() {
            return WholeLine::Same(line);
        }
        self.take_docker_part(line)
    }

    #[cold]
    fn take_docker_part<'a>(&mut self, line: &'a [u8]) -> WholeLine<'a> {
        let Ok(entry) = serde_json::from_slice::<DockerEntry<'_>>(line) else { return WholeLine::Same(line) };
        let (stream, text) = (entry.stream.as_bytes(), entry.log.as_bytes());
        // Docker has no others; each would wait for its end in memory.
        if !matches!(stream, b"stdout" | b"stderr") {
            return WholeLine::Same(line);
        }
        let mut whole = Vec::new();
        let waiting = self.parts.get(stream);
        if waiting.is_some_and(|part| part.may_be_whole && is_log_line(text)) {
            self.lines_without_end += 1;
            whole = self.end(stream);
        }
        let (text, is_ended) = text.strip_suffix(b"\n").map_or((text, false), |text| (text, true));
        let begins = !self.parts.contains_key(stream);
        if begins && (is_ended || self.lines_without_end >= MAX_LINES_WITHOUT_END && text.len() < DOCKER_PART) {
            whole.push(line.to_vec());
            return WholeLine::Changed(whole);
        }
        self.add(stream, || [entry.time.as_bytes(), b" ", stream, b" F "].concat(), text, true);
        if is_ended {
            whole.extend(self.end(stream));
        }
        WholeLine::Changed(whole)
    }

    /// Adds a part, after `begin` if it is the first.
    fn add(&mut self, stream: &[u8], begin: impl FnOnce() -> Vec<u8>, text: &[u8], may_be_whole: bool) {
        let new = || LinePart { text: begin(), may_be_whole, is_too_long: false };
        let part = self.parts.entry(stream.to_vec()).or_insert_with(new);
        part.may_be_whole &= text.len() < DOCKER_PART;
        if part.is_too_long || part.text.len() + text.len() > MAX_LINE {
            part.is_too_long = true;
            part.text = Vec::new();
        } else {
            part.text.extend_from_slice(text);
        }
    }

    /// The line of a stream, which is complete.
    fn end(&mut self, stream: &[u8]) -> Vec<Vec<u8>> {
        let Some(part) = self.parts.remove(stream) else { return Vec::new() };
        if part.is_too_long {
            self.too_long += 1;
            return Vec::new();
        }
        vec![part.text]
    }
}

/// `TIME stdout P text` of Kubernetes. The flag may have tags behind a colon.
struct CriLine<'a> {
    stream: &'a [u8],
    /// A part that is not the last one.
    is_part: bool,
    /// What stands before the flag.
    head: &'a [u8],
    text: &'a [u8],
}

#[inline]
fn cri_parts(line: &[u8]) -> Option<CriLine<'_>> {
    let space = memchr(b' ', line.get(..40.min(line.len()))?)?;
    let (stream, rest) = line.get(space + 1..)?.split_at_checked(6)?;
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let rest = rest.strip_prefix(b" ")?;
    let (flag, text) = rest.split_at_checked(memchr(b' ', rest)?)?;
    let is_part = match flag.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(CriLine { stream, is_part, head: line.get(..space + 7)?, text: text.get(1..)? })
}

/// A line without `ESC[…m`.
fn without_colors(line: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = memmem::find(rest, b"\x1b[") {
        let behind = &rest[at + 2..];
        let end = behind.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b';')).unwrap_or(behind.len());
        plain.extend_from_slice(&rest[..at]);
        if behind.get(end) == Some(&b'm') {
            rest = &behind[end + 1..];
        } else {
            plain.extend_from_slice(&rest[at..at + 2]);
            rest = behind;
        }
    }
    plain.extend_from_slice(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "Nov 22 22:44:00 mta postfix/smtp[1]: a text";

    /// What becomes of several lines.
    fn joined(lines: &[&str]) -> Vec<String> {
        let mut joiner = LineJoiner::default();
        let mut whole: Vec<Vec<u8>> = Vec::new();
        for line in lines {
            match joiner.take(line.as_bytes()) {
                WholeLine::Same(line) => whole.push(line.to_vec()),
                WholeLine::Changed(lines) => whole.extend(lines),
            }
        }
        whole.extend(joiner.finish());
        whole.into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    fn docker(stream: &str, text: &str) -> String {
        serde_json::json!({ "log": text }).to_string().replace('}', "")
            + &format!(",\"stream\":\"{stream}\",\"time\":\"2026-11-22T22:44:00.1Z\"}}")
    }

    #[test]
    fn parts_of_a_line_are_joined() {
        let time = "2026-11-22T22:44:00.1Z";
        let cri = |stream: &str, flag: &str, text: &str| format!("{time} {stream} {flag} {text}");
        assert_eq!(
            joined(&[
                &cri("stdout", "P", "Nov 22 22:44:00 mta "),
                &cri("stderr", "F", "another"),
                &cri("stdout", "P:tag", "postfix/smtp[1]:"),
                &cri("stdout", "F", " a text"),
                &cri("stdout", "F", "Nov 22 22:44:00 x: y"),
            ]),
            [cri("stderr", "F", "another"), cri("stdout", "F", LINE), cri("stdout", "F", "Nov 22 22:44:00 x: y")]
        );
        let whole = docker("stdout", &format!("{LINE}\n"));
        assert_eq!(
            joined(&[
                &whole,
                &docker("stdout", "Nov 22 22:44:00 mta "),
                &docker("stderr", "another\n"),
                &docker("stdout", "postfix/smtp[1]: a "),
                &docker("stdout", "text\n"),
                &whole
            ]),
            [whole.clone(), docker("stderr", "another\n"), cri("stdout", "F", LINE), whole.clone()]
        );
    }

    #[test]
    fn a_writer_that_never_ends_a_line_has_whole_lines() {
        let entry = docker("stdout", LINE);
        let as_line = format!("2026-11-22T22:44:00.1Z stdout F {LINE}");
        let all = joined(&[&entry, &entry, &entry, &entry, &entry, &entry]);
        assert_eq!(all, [&as_line, &as_line, &as_line, &entry, &entry, &entry].map(String::clone));
        assert_eq!(joined(&[&entry]), [as_line]);
    }

    /// What follows a part of 16 KiB is never a line of its own, whatever it looks like.
    #[test]
    fn the_rest_of_a_long_line_is_not_a_line() {
        let long = "x".repeat(DOCKER_PART);
        let mut joiner = LineJoiner::default();
        for line in [docker("stdout", &long), docker("stdout", LINE), docker("stdout", &format!("{long}\n"))] {
            assert_eq!(joiner.take(line.as_bytes()), WholeLine::Changed(Vec::new()));
        }
        assert_eq!((joiner.take_too_long(), joiner.take_too_long()), (1, 0));
        let whole = docker("stdout", &format!("{LINE}\n"));
        assert_eq!(joiner.take(whole.as_bytes()), WholeLine::Same(whole.as_bytes()));
    }

    #[test]
    fn colors_and_nuls_are_taken_out_and_other_lines_stay() {
        for (line, want) in [
            ("\x1b[32mNov 22 22:44:00\x1b[0m mta \x1b[1;36mpostfix/smtp[1]\x1b[m: a text", LINE),
            ("\0\0Nov 22 22:44:00 mta postfix/smtp[1]: a text", LINE),
            ("\x1b[36mmail-1  |\x1b[0m Nov 22", "mail-1  | Nov 22"),
            ("\x1b[2Jx", "\x1b[2Jx"),
            ("\x1b\x1b[m[mNov 22", "\x1b[mNov 22"),
            (LINE, LINE),
            ("{\"log\":1}", "{\"log\":1}"),
            ("2026-11-22T22:44:00Z stdout X y", "2026-11-22T22:44:00Z stdout X y"),
            ("", ""),
        ] {
            assert_eq!(joined(&[line]), [want], "{line:?}");
        }
    }
    #[test]
    fn entries_of_unknown_streams_are_not_joined() {
        let mut joiner = LineJoiner::default();
        for stream in 0..1000 {
            let entry = docker(&format!("stream {stream}"), "a part");
            assert_eq!(joiner.take(entry.as_bytes()), WholeLine::Same(entry.as_bytes()));
        }
        assert!(joiner.is_empty());
    }

    /// Each color that is removed makes a new one of the bytes beside it.
    #[test]
    fn nested_colors_are_removed_once() {
        let colors = |count: usize| "\x1b".repeat(count) + &"[m".repeat(count);
        for before in ["", "Nov 22 22:44:00 mta x: "] {
            let want = format!("{before}{}", colors(9_999));
            assert_eq!(joined(&[&format!("{before}{}", colors(10_000))]), [want]);
        }
    }
}
