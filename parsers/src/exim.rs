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
    Family,
    event::{
        Event, Process, Stamp, What,
        exim::{Line, Says},
    },
    syslog::{self, decimal},
};

mod delivery;
mod fields;
mod tls;

pub(crate) use tls::problem;

/// What the reader of one line family found: nothing of ours, an event, or a line that it should have understood.
type Found<'a> = Result<Option<Says<'a>>, Family>;

/// Reads one line.
pub(crate) fn parse(line: &[u8]) -> Result<Option<Event<'_>>, Family> {
    let Some(prefix) = prefix(line) else { return Ok(None) };
    let Some((id, text)) = message_id(prefix.text) else { return Ok(None) };
    let found = match text.first() {
        Some(b'<' | b'=' | b'-' | b'>' | b'*') => delivery::parse(text, prefix.cut),
        Some(b'C') if text == b"Completed" || text.starts_with(b"Completed ") => Ok(Some(Says::Completed)),
        Some(b'H' | b'T' | b'D' | b'[' | b'(') => tls::parse(text, prefix.cut),
        _ => Ok(None),
    };
    let Some(says) = found? else { return Ok(None) };
    let stamp = prefix.stamp.ok_or(Family::Stamp)?;
    let process = Process { instance: b"", name: prefix.ident, pid: prefix.pid };
    Ok(Some(Event { stamp, process, what: What::Exim(Line { id, says }) }))
}

/// What stands before the message id.
struct Prefix<'a> {
    stamp: Option<Stamp>,
    /// The syslog tag; empty in a file.
    ident: &'a [u8],
    /// 0 where the line does not tell it.
    pid: u32,
    /// The line goes on in another one.
    cut: bool,
    text: &'a [u8],
}

#[inline]
fn prefix(line: &[u8]) -> Option<Prefix<'_>> {
    if let Some((stamp, text)) = stamp(line) {
        let (pid, text) = pid(text).unwrap_or((0, text));
        return Some(Prefix { stamp: Some(stamp), ident: b"", pid, cut: false, text });
    }
    let entry = syslog::split_hostless(line)?;
    let (pid, text) = entry.body()?;
    let (cut, text) = part(text)?;
    // Exim's own time has the year; that of syslog may have the zone.
    let (own, text) = stamp(text).map_or((None, text), |(own, rest)| (Some(own), rest));
    let text = self::pid(text).map_or(text, |(_, rest)| rest);
    let outer = entry.stamp();
    let stamp = match (outer, own) {
        (Some(Stamp::Utc(_)), _) | (_, None) => outer,
        (_, own) => own,
    };
    Some(Prefix { stamp, ident: entry.ident, pid, cut, text })
}

/// `2026-11-22 01:40:29[.567][ +0100] `, and what follows.
fn stamp(text: &[u8]) -> Option<(Stamp, &[u8])> {
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
    Some((syslog::civil_and_zone(civil, zone)?, rest))
}

/// `[26096] `.
fn pid(text: &[u8]) -> Option<(u32, &[u8])> {
    let (pid, rest) = decimal(text.strip_prefix(b"[")?)?;
    Some((pid, rest.strip_prefix(b"] ")?))
}

/// `[1/2] ` of a line that syslog would not take whole (log.c, `write_syslog`): whether it goes on, and its text. The
/// parts behind the first have neither time nor message.
fn part(text: &[u8]) -> Option<(bool, &[u8])> {
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
