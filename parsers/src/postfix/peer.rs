//! Reads the other end of a connection: `HOST[IP]`, `HOST[IP]:PORT`, `HOST[/path/of/a/socket]`.
//!
//! Takes: text that begins with it. Gives: the peer and what follows.
//! Postfix checks a host name before it connects, so that no bracket, space or comma is in it.
//! When it fails: `None`.

use memchr::{memchr, memchr3};

use crate::{event::Peer, ip_address, number::decimal};

/// Longest host name that is looked at: 255 bytes of DNS, with room for an escaped or a UTF-8 form.
const MAX_HOST_BYTES: usize = 512;

/// `HOST[IP]`, with `:PORT` if there is one.
pub(super) fn with_port(text: &[u8]) -> Option<(Peer<'_>, &[u8])> {
    let (peer, rest) = without_port(text)?;
    match rest {
        [b':', digits @ ..] if digits.first().is_some_and(u8::is_ascii_digit) => {
            let (port, rest) = decimal(digits)?;
            // Only an Internet address has a port.
            peer.ip?;
            Some((Peer { port: Some(u16::try_from(port).ok()?), ..peer }, rest))
        }
        _ => Some((peer, rest)),
    }
}

/// `HOST[IP]` alone: a colon after it belongs to what follows.
pub(super) fn without_port(text: &[u8]) -> Option<(Peer<'_>, &[u8])> {
    let bracket = memchr3(b'[', b' ', b',', text.get(..MAX_HOST_BYTES).unwrap_or(text))?;
    let (host, rest) = text.split_at_checked(bracket)?;
    let rest = rest.strip_prefix(b"[")?;
    let (address, rest) = rest.split_at_checked(memchr(b']', rest)?)?;
    if host.is_empty() || address.is_empty() {
        return None;
    }
    Some((Peer { host, ip: ip_address::parse(address), port: None }, rest.get(1..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_every_form_of_a_peer() {
        for (text, host, ip, port, rest) in [
            ("mx.a.test[192.0.2.1]:25: x", "mx.a.test", Some("192.0.2.1"), Some(25), ": x"),
            ("mx.a.test[2001:db8::1]:465, y", "mx.a.test", Some("2001:db8::1"), Some(465), ", y"),
            ("mx.a.test[fe80::1%eth0]:25", "mx.a.test", Some("fe80::1"), Some(25), ""),
            ("192.0.2.1[192.0.2.1]:2525:", "192.0.2.1", Some("192.0.2.1"), Some(2525), ":"),
            ("mta[private/dovecot-lmtp], x", "mta", None, None, ", x"),
            ("mta[/run/socket]: TLSv1.3", "mta", None, None, ": TLSv1.3"),
            ("mx.a.test[192.0.2.1]: TLSv1.3", "mx.a.test", Some("192.0.2.1"), None, ": TLSv1.3"),
        ] {
            let (peer, after) = with_port(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            let ip = ip.map(|ip| ip.parse().expect("an address"));
            assert_eq!((peer, after), (Peer { host: host.as_bytes(), ip, port }, rest.as_bytes()), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_peer() {
        for text in [
            "",
            "mx.a.test",
            "mx.a.test[192.0.2.1",
            "[192.0.2.1]:25",
            "mx.a.test[]:25",
            "mx a[192.0.2.1]:25",
            "mx,a[192.0.2.1]:25",
            "mx.a.test[192.0.2.1]:65536",
            "mx.a.test[not.an.address]:25",
        ] {
            assert_eq!(with_port(text.as_bytes()), None, "{text}");
        }
    }
}
