//! Reads an IP address, as the MTAs print it.
//!
//! Takes: the text between the brackets. Gives: the address; the zone of a link-local one is of no use to others and is
//! dropped.
//! When it fails: `None`, for a socket's path.
//! Not here: the brackets, and what stands around them (`postfix::peer`, `exim::fields`).

use core::{
    net::{IpAddr, Ipv4Addr},
    str,
};

use crate::number::decimal;

/// Reads an address.
pub(crate) fn parse(address: &[u8]) -> Option<IpAddr> {
    if let Some(ip) = ipv4(address) {
        return Some(IpAddr::V4(ip));
    }
    let end = address.iter().position(|&b| b == b'%').unwrap_or(address.len());
    str::from_utf8(address.get(..end)?).ok()?.parse().ok()
}

/// Four numbers without leading zeros, as `Ipv4Addr` reads them: most lines have one, and this is three times as fast.
fn ipv4(address: &[u8]) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut rest = address;
    for (at, byte) in bytes.iter_mut().enumerate() {
        if at > 0 {
            rest = rest.strip_prefix(b".")?;
        }
        let (number, after) = decimal(rest)?;
        if rest.first() == Some(&b'0') && rest.len() - after.len() > 1 {
            return None;
        }
        *byte = u8::try_from(number).ok()?;
        rest = after;
    }
    rest.is_empty().then(|| Ipv4Addr::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_standard_library_reads() {
        for text in [
            "192.0.2.1",
            "0.0.0.0",
            "255.255.255.255",
            "256.0.0.1",
            "01.2.3.4",
            "1.2.3.04",
            "1.2.3",
            "1.2.3.4.",
            "1.2.3.4.5",
            "1..2.3",
            "",
            "-1.2.3.4",
            "4294967297.0.0.1",
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "private/socket",
        ] {
            assert_eq!(parse(text.as_bytes()), text.parse().ok(), "{text}");
        }
        assert_eq!(parse(b"fe80::1%eth0"), "fe80::1".parse().ok());
        assert_eq!(parse(b"192.0.2.1\xff"), None);
    }
}
