//! The fields of a line that stand in a fixed order: addresses, names, `H=HOST [IP]`.
//!
//! Takes: text that begins with a field. Gives: the field and what follows it.
//! What a stranger chose is read by its own grammar: a quoted local part ends at its quote, a host at its bracket.
//! When it fails: `None`.

use memchr::memchr;

use crate::{event::Peer, ip_address, number::decimal};

/// Longest host name that is looked at: 255 bytes of DNS, four times that where it is escaped.
const MAX_HOST_BYTES: usize = 1024;

/// `local@domain`: the whole, and the domain. The local part may be a quoted string (RFC 5321 §4.1.2), in which anything
/// can stand; unquoted it has no space.
pub(super) fn address(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let at = if text.first() == Some(&b'"') {
        let mut from = 1;
        loop {
            match *text.get(from)? {
                b'\\' => from += 2,
                b'"' => break from + 1,
                _ => from += 1,
            }
        }
    } else {
        text.iter().position(|&b| matches!(b, b'@' | b' ' | b'<' | b'>'))?
    };
    let rest = text.get(at..)?.strip_prefix(b"@")?;
    let end = if rest.first() == Some(&b'[') {
        memchr(b']', rest)? + 1
    } else {
        rest.iter().position(|&b| matches!(b, b' ' | b'>' | b',' | b')' | b':')).unwrap_or(rest.len())
    };
    let (domain, after) = rest.split_at_checked(end)?;
    Some((text.get(..at + 1 + end)?, domain, after))
}

/// An address whose local part had to be quoted: Exim logs it without its quotes (deliver.c, `string_log_address`), and
/// with spaces in it. A pipe, a file and a mailbox are no addresses, and have no `@` before the original in angle brackets.
pub(super) fn dequoted_address(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let local = text.iter().position(|&b| matches!(b, b'@' | b'<' | b'>' | b'"'))?;
    let is_command = matches!(text.first(), Some(b'|' | b'/' | b':')) || text.starts_with(b"save ");
    let last_word = text.get(..local)?.iter().rposition(|&b| b == b' ')? + 1;
    let (_, domain, after) = address(text.get(last_word..)?).filter(|_| !is_command)?;
    Some((text.get(..text.len() - after.len())?, domain, after))
}

/// `HOST[ DS] [IP][:PORT]`: the peer and what follows.
pub(super) fn peer(text: &[u8]) -> Option<(Peer<'_>, &[u8])> {
    let space = text.iter().take(MAX_HOST_BYTES).position(|&b| b == b' ')?;
    let (host, rest) = text.split_at_checked(space)?;
    let rest = rest.strip_prefix(b" DS").unwrap_or(rest);
    let rest = rest.strip_prefix(b" [")?;
    let (address, rest) = rest.split_at_checked(memchr(b']', rest.get(..64.min(rest.len()))?)?)?;
    let ip = ip_address::parse(address)?;
    let rest = rest.get(1..)?;
    let (port, rest) = port(rest)?;
    (!host.is_empty()).then_some((Peer { host, ip: Some(ip), port }, rest))
}

/// `:25` where a digit follows the colon; else it belongs to what follows.
fn port(text: &[u8]) -> Option<(Option<u16>, &[u8])> {
    match text {
        [b':', digits @ ..] if digits.first().is_some_and(u8::is_ascii_digit) => {
            let (port, rest) = decimal(digits)?;
            Some((Some(u16::try_from(port).ok()?), rest))
        }
        _ => Some((None, text)),
    }
}

/// What follows `name` and a word without spaces; the text itself where it does not begin with `name`.
pub(super) fn skip_word<'a>(text: &'a [u8], name: &[u8]) -> &'a [u8] {
    match text.strip_prefix(name) {
        None => text,
        Some(rest) => rest.get(word_end(rest)..).unwrap_or_default(),
    }
}

/// The same, for a word that is wanted.
pub(super) fn word<'a>(text: &'a [u8], name: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let rest = text.strip_prefix(name)?;
    rest.split_at_checked(word_end(rest))
}

/// ` F=<address>` or ` P=<>`: what follows.
pub(super) fn skip_path<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let Some(rest) = text.strip_prefix(name) else { return Some(text) };
    if let Some(rest) = rest.strip_prefix(b">") {
        return Some(rest);
    }
    let after = address(rest).map_or_else(|| rest.get(memchr(b'>', rest)?..), |(_, _, after)| Some(after))?;
    after.strip_prefix(b">")
}

/// A word ends at a space, or at the colon and space that a message stands behind.
fn word_end(text: &[u8]) -> usize {
    let space = memchr(b' ', text).unwrap_or(text.len());
    match text.get(..space) {
        Some([.., b':']) if space < text.len() => space - 1,
        _ => space,
    }
}
