//! A next hop as the MTA writes it, in canonical form.
//!
//! Takes: a key of a policy look-up. Gives: [`NextHop`], or nothing for what can have no policy.
//! The names of the mail services stand for their ports; any other name of a service is kept as it is: MTA-STS applies
//! whatever the port (RFC 8461 §3.4).
//! Limits: 1,024 bytes; [`MAX_SERVICE`] bytes for the name of a service.
//! Not here: the port of any other service (`answering::policy::dane::service_port`).

use std::fmt;

/// A next hop that can have a policy, in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The domain or host: A-labels, lower case, no trailing dot.
    pub domain: String,
    /// The service there.
    pub port: Port,
    /// Whether it is subject to MX resolution; `[host]` is not.
    pub mx: bool,
}

/// The service at a next hop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// A port number.
    Number(u16),
    /// The name of a service that is not one of [`MAIL_SERVICES`].
    Service(Box<str>),
}

impl Port {
    /// The port that mail is delivered to.
    pub const SMTP: Port = Port::Number(25);

    /// Reads the part after the colon; nothing for what can be neither a port nor the name of a service.
    fn parse(text: &str) -> Option<Port> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return text.parse().ok().filter(|number| *number > 0).map(Port::Number);
        }
        if let Some((_, number)) = MAIL_SERVICES.iter().find(|(name, _)| *name == text) {
            return Some(Port::Number(*number));
        }
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.+*".contains(&b);
        let is_name = text.len() <= MAX_SERVICE && text.bytes().all(is_allowed);
        (is_name && text.bytes().any(|b| b.is_ascii_alphabetic())).then(|| Port::Service(text.into()))
    }
}

/// The services that deliver mail, with their aliases (services(5) of Debian, and IANA's `submissions`).
const MAIL_SERVICES: [(&str, u16); 7] = [
    ("smtp", 25),
    ("mail", 25),
    ("submission", 587),
    ("submissions", 465),
    ("smtps", 465),
    ("ssmtp", 465),
    ("urd", 465),
];

/// The longest name of a service, in bytes: IANA's have at most 15 (RFC 6335 §5.1).
const MAX_SERVICE: usize = 63;

/// Prefixes of LMTP destinations, which look like a host with the name of a service (`lmtp(8)`).
const TRANSPORT_PREFIXES: [&str; 2] = ["inet", "unix"];

impl NextHop {
    /// Reads `domain`, `domain:port`, `[host]`, `[host]:port`, the port as a number or as the name of a service. None for
    /// what can have no policy: address literals, paths, dot-keys, invalid names.
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
        let port = port.map_or(Some(Port::SMTP), Port::parse)?;
        let domain = crate::base::domain_name::normalize(host)?;
        // By the canonical name: what `key` gives must read back.
        if mx && TRANSPORT_PREFIXES.contains(&domain.as_str()) && port != Port::SMTP {
            return None;
        }
        Some(NextHop { domain, port, mx })
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
        match &self.port {
            &Port::SMTP => Ok(()),
            port => write!(f, ":{port}"),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port::Number(number) => write!(f, "{number}"),
            Port::Service(name) => f.write_str(name),
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
            ("Unix.:mail.sock", None),
            ("unix:mail.sock", None),
            ("bücher.example:25", Some("xn--bcher-kva.example")),
            ("example.com:2525", Some("example.com:2525")),
            ("example.com:submission", Some("example.com:587")),
            ("example.com:mail", Some("example.com")),
            ("[smart.example]:mail", Some("[smart.example]")),
            ("[smart.example]:ssmtp", Some("[smart.example]:465")),
            ("[smart.example]:smtps", Some("[smart.example]:465")),
            ("[smart.example]:urd", Some("[smart.example]:465")),
            ("[smart.example]:submissions", Some("[smart.example]:465")),
            // Known to services(5) alone; the name is kept, in its case (getservbyname(3)).
            ("[smart.example]:mail-in_2", Some("[smart.example]:mail-in_2")),
            ("Example.com:Backup", Some("example.com:Backup")),
            ("example.com:a b", None),
            ("example.com:-", None),
            ("example.com:a/tcp", None),
            ("example.com:a:b", None),
            ("unix:private", None),
            ("inet:lmtp", None),
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
