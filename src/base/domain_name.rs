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

#[cfg(test)]
mod tests {
    use super::normalize;

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
}
