//! Reads the life of a message: cleanup(8), qmgr(8), master(8); and the queue id, with which such lines begin.
//!
//! Takes: the text behind the prefix. Gives: the event, or nothing.
//! When it fails: the family, for a line that was cut off before what we need.

use memchr::memchr;

use crate::event::EventKind;
use crate::family::{LineFamily, ParseResult};

/// The longest queue id, with room to spare: a long one of 64-bit seconds and inode has 29 characters.
const MAX_QUEUE_ID: usize = 32;

/// `QID: ` at the front, and what follows.
///
/// Short ids are upper-case hexadecimal, six digits and more; long ids (`enable_long_queue_ids`) are digits and letters
/// without vowels, at least six for the second, four for the microsecond, a `z` and the inode.
#[inline]
pub(super) fn split_queue_id(text: &[u8]) -> ParseResult<(&[u8], &[u8])> {
    let mut alphabets = SHORT | LONG;
    let mut length = 0;
    loop {
        match text.get(length) {
            Some(b':') => break,
            Some(b) => alphabets &= ALPHABETS[usize::from(*b)],
            None => return Ok(None),
        }
        length += 1;
        if alphabets == 0 {
            return Ok(None);
        }
    }
    let shortest = if alphabets & SHORT == 0 { 12 } else { 6 };
    let Some((id, [b':', b' ', rest @ ..])) = text.split_at_checked(length) else { return Ok(None) };
    if length > MAX_QUEUE_ID {
        return Err(LineFamily::QueueId);
    }
    Ok((length >= shortest).then_some((id, rest)))
}

const SHORT: u8 = 1;
const LONG: u8 = 2;

/// In which alphabets of queue ids an byte is.
static ALPHABETS: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let letter = byte as u8;
        if letter.is_ascii_digit() {
            table[byte] = SHORT | LONG;
        } else if matches!(letter, b'A'..=b'F') {
            table[byte] = SHORT;
        }
        if letter.is_ascii_alphabetic() && !matches!(letter.to_ascii_lowercase(), b'a' | b'e' | b'i' | b'o' | b'u') {
            table[byte] |= LONG;
        }
        byte += 1;
    }
    table
};

/// `QID: message-id=<…>`, `QID: resent-message-id=<…>`, `QID: removed[ (canceled)]`.
pub(super) fn cleanup(text: &[u8]) -> ParseResult<EventKind<'_>> {
    let Some((queue_id, text)) = split_queue_id(text)? else { return Ok(None) };
    let value = text.strip_prefix(b"message-id=").or_else(|| text.strip_prefix(b"resent-message-id="));
    Ok(match value {
        Some(value) => Some(EventKind::MessageId { queue_id, message_id: without_brackets(value) }),
        None if is_removed(text) => Some(EventKind::QueueRemoved { queue_id }),
        None => None,
    })
}

/// The header as it came, which need not have brackets; behind them can be a comment.
fn without_brackets(value: &[u8]) -> &[u8] {
    let Some(inside) = value.strip_prefix(b"<") else { return value };
    memchr(b'>', inside).and_then(|end| inside.get(..end)).unwrap_or(inside)
}

/// `removed`; of cleanup(8) since 3.10 also `removed (canceled)` and `removed (discarded)`.
fn is_removed(text: &[u8]) -> bool {
    matches!(text.strip_prefix(b"removed"), Some(rest) if rest.is_empty() || rest.starts_with(b" ("))
}

/// `QID: from=<…>, size=…, nrcpt=… (queue active)`, `QID: removed`.
pub(super) fn qmgr(text: &[u8]) -> ParseResult<EventKind<'_>> {
    let Some((queue_id, text)) = split_queue_id(text)? else { return Ok(None) };
    if is_removed(text) {
        return Ok(Some(EventKind::QueueRemoved { queue_id }));
    }
    if !text.starts_with(b"from=<") {
        return Ok(None);
    }
    // The sender's address is a stranger's text, what follows it is Postfix's own: read from the end.
    if text.ends_with(b" (queue active)") {
        // An address that begins so has its own end, `>`, behind it.
        let null_sender = text.strip_prefix(b"from=<>, size=").is_some_and(|rest| memchr(b'>', rest).is_none());
        Ok(Some(EventKind::QueueActive { queue_id, null_sender }))
    } else if text.ends_with(b", returned to sender") {
        Ok(None)
    } else {
        Err(LineFamily::QueueActive)
    }
}

/// `daemon started -- version 3.7.11, configuration /etc/postfix`, or `reload -- version …` in its place.
pub(super) fn master(text: &[u8]) -> ParseResult<EventKind<'_>> {
    if text.starts_with(b"reload -- version ") {
        return Ok(Some(EventKind::DaemonReloaded));
    }
    let Some(rest) = text.strip_prefix(b"daemon started -- version ") else { return Ok(None) };
    let version = memchr(b',', rest).and_then(|end| rest.get(..end)).unwrap_or(rest);
    if version.is_empty() { Err(LineFamily::DaemonStarted) } else { Ok(Some(EventKind::DaemonStarted { version })) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_queue_ids_by_their_alphabet() {
        for (text, want) in [
            ("1818EA260B5: x", Some("1818EA260B5")),
            ("01234A: x", Some("01234A")),
            ("4jXBhc1f2vz1WkvY: x", Some("4jXBhc1f2vz1WkvY")),
            ("01234: x", None),
            ("01234a: x", None),
            ("4jXBhc1f2vz: x", None),
            ("4jXBhc1f2az1WkvY: x", None),
            ("NOQUEUE: x", None),
            ("warning: x", None),
            ("1818EA260B5:x", None),
            ("1818EA260B5", None),
            (": x", None),
            ("", None),
        ] {
            let want = want.map(|id| (id.as_bytes(), &b"x"[..]));
            assert_eq!(split_queue_id(text.as_bytes()), Ok(want), "{text}");
        }
    }

    #[test]
    fn reads_cleanup() {
        let queue_id = b"4jXBhc1f2vz1WkvY";
        for (text, message_id) in [
            ("message-id=<lab94.1795311655986@mta.lab.test>", "lab94.1795311655986@mta.lab.test"),
            ("resent-message-id=<a@b>", "a@b"),
            ("message-id=<>", ""),
            ("message-id=<a@b> (added by <relay>)", "a@b"),
            ("message-id=no brackets", "no brackets"),
            ("message-id=<cut.off@mta", "cut.off@mta"),
        ] {
            let line = format!("4jXBhc1f2vz1WkvY: {text}");
            let want = EventKind::MessageId { queue_id, message_id: message_id.as_bytes() };
            assert_eq!(cleanup(line.as_bytes()), Ok(Some(want)), "{text}");
        }
        for text in ["removed", "removed (canceled)", "removed (discarded)"] {
            let line = format!("4jXBhc1f2vz1WkvY: {text}");
            assert_eq!(cleanup(line.as_bytes()), Ok(Some(EventKind::QueueRemoved { queue_id })), "{text}");
        }
        for line in [
            "4jXBhc1f2vz1WkvY: reject: header Subject: message-id=<a@b> from x",
            "4jXBhc1f2vz1WkvY: removed yesterday",
            "warning: x",
        ] {
            assert_eq!(cleanup(line.as_bytes()), Ok(None), "{line}");
        }
    }

    #[test]
    fn reads_qmgr() {
        let queue_id = b"1818EA260B5";
        for (text, want) in [
            (
                "from=<tester@mta.lab.test>, size=275, nrcpt=1 (queue active)",
                Ok(Some(EventKind::QueueActive { queue_id, null_sender: false })),
            ),
            (
                "from=<>, size=2603, nrcpt=1 (queue active)",
                Ok(Some(EventKind::QueueActive { queue_id, null_sender: true })),
            ),
            (
                "from=<>, size=1, nrcpt=1 (queue active)@b>, size=275, nrcpt=1 (queue active)",
                Ok(Some(EventKind::QueueActive { queue_id, null_sender: false })),
            ),
            ("removed", Ok(Some(EventKind::QueueRemoved { queue_id }))),
            ("from=<a@b>, status=expired, returned to sender", Ok(None)),
            ("from=<a@b>, status=force-expired, returned to sender", Ok(None)),
            ("from=<\"x>, size=1, nrcpt=1 (queue active)\"@b>, status=expired, returned to sender", Ok(None)),
            ("skipped, still being delivered", Ok(None)),
            ("from=<cut", Err(LineFamily::QueueActive)),
        ] {
            let line = format!("1818EA260B5: {text}");
            assert_eq!(qmgr(line.as_bytes()), want, "{text}");
        }
        assert_eq!(qmgr(b"warning: from=<x>"), Ok(None));
    }

    #[test]
    fn reads_master() {
        let text = b"daemon started -- version 3.10.13, configuration /etc/postfix";
        assert_eq!(master(text), Ok(Some(EventKind::DaemonStarted { version: b"3.10.13" })));
        let snapshot = b"daemon started -- version 3.12-20260821, configuration /etc/postfix";
        assert_eq!(master(snapshot), Ok(Some(EventKind::DaemonStarted { version: b"3.12-20260821" })));
        assert_eq!(master(b"daemon started -- version "), Err(LineFamily::DaemonStarted));
        assert_eq!(
            master(b"reload -- version 3.10.13, configuration /etc/postfix"),
            Ok(Some(EventKind::DaemonReloaded))
        );
        assert_eq!(master(b"terminating on signal 15"), Ok(None));
    }
}
