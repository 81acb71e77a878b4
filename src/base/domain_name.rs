//! Domain names in canonical form, in which they are compared, stored and reported: A-labels, lower case, no trailing dot.
//!
//! Takes: text from a log, a policy request or a record. Gives: the name, or nothing where it is none.
//! Limits: 253 octets, labels of 63 (RFC 1035 §2.3.4).

/// The name in canonical form; `None` where it is not a domain name (an address literal, an empty label, a path).
pub fn normalize(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let name = if text.is_ascii() { text.to_ascii_lowercase() } else { idna::domain_to_ascii(text).ok()? };
    is_hostname(&name).then_some(name)
}

/// Whether a lower-case A-label name is a host name: letters, digits, hyphens and underscores, a last label that is no number.
fn is_hostname(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
    };
    (1..=253).contains(&name.len())
        && name.split('.').all(label)
        && name.rsplit('.').next().is_some_and(|last| !last.bytes().all(|b| b.is_ascii_digit()))
}

/// Why a text is not a domain name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameFault {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// An IP address, with or without brackets.
    #[error("it is an IP address")]
    Address,
    /// Two dots follow each other, or one comes first.
    #[error("it has an empty label")]
    EmptyLabel,
    /// A label of more than 63 bytes.
    #[error("it has a label of more than 63 bytes")]
    LongLabel,
    /// More than 253 bytes.
    #[error("it is longer than 253 bytes")]
    TooLong,
    /// A label with a hyphen at an end.
    #[error("the label {0:?} begins or ends with a hyphen")]
    Hyphen(String),
    /// A character that no host name has.
    #[error("it has the character {0:?}")]
    Character(char),
    /// The last label is a number, as in an address.
    #[error("its last label is a number")]
    Number,
    /// It has letters that IDNA does not allow.
    #[error("it is not a valid international name")]
    International,
}

/// Why [`normalize`] refuses a text; `None` where it does not.
pub fn find_fault(text: &str) -> Option<NameFault> {
    if normalize(text).is_some() {
        return None;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let bare = if bare.get(..5).is_some_and(|tag| tag.eq_ignore_ascii_case("ipv6:")) { &bare[5..] } else { bare };
    if name.is_empty() {
        return Some(NameFault::Empty);
    }
    if name.starts_with('[') || bare.parse::<std::net::IpAddr>().is_ok() {
        return Some(NameFault::Address);
    }
    let Ok(name) = (if name.is_ascii() { Ok(name.to_ascii_lowercase()) } else { idna::domain_to_ascii(name) }) else {
        return Some(NameFault::International);
    };
    let strange = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')));
    let hyphen = name.split('.').find(|label| label.starts_with('-') || label.ends_with('-'));
    Some(match (strange, hyphen) {
        (Some(strange), _) => NameFault::Character(strange),
        _ if name.split('.').any(str::is_empty) => NameFault::EmptyLabel,
        _ if name.split('.').any(|label| label.len() > 63) => NameFault::LongLabel,
        (None, Some(label)) => NameFault::Hyphen(label.to_owned()),
        _ if name.len() > 253 => NameFault::TooLong,
        _ => NameFault::Number,
    })
}

#[cfg(test)]
mod tests {
    use super::{NameFault, find_fault, normalize};

    #[test]
    fn one_form() {
        assert_eq!(normalize("MX.Example.COM.").as_deref(), Some("mx.example.com"));
        assert_eq!(normalize("bücher.example").as_deref(), Some("xn--bcher-kva.example"));
        for no in
            ["", ".", ".example.com", "a..b", "[192.0.2.1]", "192.0.2.1", "/var/run/lmtp", "a b.example", "-a.example"]
        {
            assert_eq!(normalize(no), None, "{no}");
        }
        assert_eq!(normalize(&"a.".repeat(128)), None);
    }

    #[test]
    fn each_fault_is_named() {
        for (text, want) in [
            ("", NameFault::Empty),
            (".", NameFault::Empty),
            ("192.0.2.1", NameFault::Address),
            ("[192.0.2.1]", NameFault::Address),
            ("[IPv6:2001:db8::1]", NameFault::Address),
            ("IPv6:2001:db8::1", NameFault::Address),
            ("2001:db8::1", NameFault::Address),
            (".example.com", NameFault::EmptyLabel),
            ("a..b", NameFault::EmptyLabel),
            ("-a.example", NameFault::Hyphen("-a".into())),
            ("mail-.example", NameFault::Hyphen("mail-".into())),
            ("a.example-", NameFault::Hyphen("example-".into())),
            ("a b.example", NameFault::Character(' ')),
            ("/var/run/lmtp", NameFault::Character('/')),
            ("a.256", NameFault::Number),
            ("1.2.3.4.5", NameFault::Number),
        ] {
            assert_eq!(find_fault(text), Some(want), "{text}");
        }
        assert_eq!(find_fault(&format!("{}.example", "a".repeat(64))), Some(NameFault::LongLabel));
        assert_eq!(find_fault(&"a.".repeat(128)), Some(NameFault::TooLong));
        for name in ["example.com", "r3---a.example", "xn--a.example", "xn--1ug.example", "_a.example"] {
            assert_eq!(find_fault(name), None, "{name}");
        }
    }
}
