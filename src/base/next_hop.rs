//! A next hop as the MTA writes it, in canonical form.
//!
//! Takes: a key of a policy look-up. Gives: [`NextHop`], or nothing for what can have no policy.
//! Limits: 1,024 octets.

use std::fmt;

/// A next hop that can have a policy, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The domain or host: A-labels, lower case, no trailing dot.
    pub domain: String,
    /// The port of the service.
    pub port: u16,
    /// Whether it is subject to MX resolution; `[host]` is not.
    pub mx: bool,
}

impl NextHop {
    /// Reads `domain`, `domain:port`, `[host]`, `[host]:port`. None for what can have no policy: address literals,
    /// paths, dot-keys, names that are none.
    pub fn parse(key: &[u8]) -> Option<NextHop> {
        let key = std::str::from_utf8(key).ok().filter(|key| key.len() <= 1024)?;
        let (host, port, mx) = match key.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) }, false)
            }
            None => match key.split_once(':') {
                Some((host, port)) => (host, Some(port), true),
                None => (key, None, true),
            },
        };
        let port = match port {
            None => 25,
            Some("smtp") => 25,
            Some("submission") => 587,
            Some("submissions" | "smtps") => 465,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                digits.parse().ok().filter(|port| *port > 0)?
            }
            Some(_) => return None,
        };
        Some(NextHop { domain: crate::base::domain_name::normalize(host)?, port, mx })
    }

    /// Its canonical form: port 25 is left out.
    pub fn key(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mx {
            true => f.write_str(&self.domain)?,
            false => write!(f, "[{}]", self.domain)?,
        }
        match self.port {
            25 => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_hops_in_canonical_form() {
        for (key, want) in [
            ("example.com", Some("example.com")),
            ("Example.COM.", Some("example.com")),
            ("bücher.example:25", Some("xn--bcher-kva.example")),
            ("example.com:2525", Some("example.com:2525")),
            ("example.com:submission", Some("example.com:587")),
            ("[mx.Example.com]", Some("[mx.example.com]")),
            ("[mx.example.com]:587", Some("[mx.example.com]:587")),
            ("[mx.example.com]:25", Some("[mx.example.com]")),
            (".example.com", None),
            ("[192.0.2.1]", None),
            ("[192.0.2.1]:25", None),
            ("[IPv6:2001:db8::1]", None),
            ("[2001:db8::1]:25", None),
            ("192.0.2.1", None),
            ("/var/run/lmtp", None),
            ("private/dovecot-lmtp", None),
            ("example.com:", None),
            ("example.com:0", None),
            ("example.com:65536", None),
            ("example.com:+25", None),
            ("[mx.example.com", None),
            ("[mx.example.com]x", None),
            ("[mx.example.com]:", None),
            ("", None),
            ("*", None),
        ] {
            assert_eq!(NextHop::parse(key.as_bytes()).map(|hop| hop.key()).as_deref(), want, "{key}");
        }
        assert_eq!(NextHop::parse(&[b'a'; 10_000]), None);
        assert_eq!(NextHop::parse(b"\xff.example"), None);
    }
}
