//! What was probably meant by a name, a number or an address that is wrong.
//!
//! Takes: what was written. Gives: `; did you mean "…"?`, or nothing where no proposal is likely.
//! Limits: names with a similarity of [`SIMILAR`] or more; a proposal is always one that the configuration accepts.
//! Not here: what is wrong with it (`toml_errors`, `values`, `validate`).

use std::net::{IpAddr, SocketAddr};

use crate::base::domain_name;

/// The least similarity (0 to 1) of two names for one to be proposed in place of the other.
const SIMILAR: f64 = 0.75;

/// What people call some values that have another name here.
const ALIASES: [(&str, &str); 6] = [
    ("opportunistic", "may"),
    ("mandatory", "encrypt"),
    ("required", "encrypt"),
    ("disabled", "off"),
    ("mta-sts", "sts"),
    ("tlsa", "dane"),
];

/// The units of durations that are proposed.
const UNITS: [&str; 10] = ["ms", "s", "sec", "seconds", "min", "minutes", "h", "hours", "days", "weeks"];

/// The question that is added to an error.
pub(super) fn meant(proposal: Option<impl AsRef<str>>) -> String {
    proposal.map_or_else(String::new, |proposal| format!("; did you mean \"{}\"?", proposal.as_ref()))
}

/// The name that is most like one that does not exist.
pub(super) fn nearest<'a>(name: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let name = name.to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name).map(|(_, value)| *value);
    if let Some(known) = allowed.iter().find(|known| Some(**known) == alias) {
        return Some(known);
    }
    let scored = allowed.iter().map(|other| (strsim::jaro_winkler(&name, other), *other));
    scored.filter(|(score, _)| *score >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

/// `4h` for `-4h`, `3 days` for `3 dayz`.
pub(super) fn duration(text: &str) -> Option<String> {
    let text = text.trim().trim_start_matches('-').trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let space = if unit.starts_with(' ') { " " } else { "" };
    let unit = unit.trim();
    let unit = if humantime::parse_duration(&format!("1{unit}")).is_ok() { unit } else { nearest(unit, &UNITS)? };
    let proposal = format!("{number}{space}{unit}");
    humantime::parse_duration(&proposal).is_ok().then_some(proposal)
}

/// A domain for a URL, an address, or a pattern with `*.`; one with a dot before it means all domains below.
pub(super) fn domain(text: &str) -> Option<String> {
    let text = text.trim();
    let name = text.split_once("://").map_or(text, |(_, rest)| rest);
    let name = name.split(['/', '?']).next().unwrap_or_default();
    let name = name.rsplit('@').next().unwrap_or_default();
    let name = name.trim_matches(['[', ']', '<', '>']);
    let (dot, name) = match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
        Some(parent) => (".", parent),
        None => ("", name),
    };
    let proposal = format!("{dot}{}", domain_name::normalize(name)?);
    (proposal != text && name.contains('.')).then_some(proposal)
}

/// An address with a port, where `localhost` stands for the host, or the brackets of IPv6 or the host are missing.
pub(super) fn socket_address(text: &str) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let ip = match host.trim_matches(['[', ']']) {
        "" | "localhost" => IpAddr::from([127, 0, 0, 1]),
        "*" => IpAddr::from([0, 0, 0, 0]),
        other => other.parse().ok()?,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_probably_meant() {
        assert_eq!(nearest("organisation", &["organization", "contact"]), Some("organization"));
        assert_eq!(nearest("opportunistic", &["none", "may"]), Some("may"));
        assert_eq!(nearest("opportunistic", &["none"]), None);
        for (text, want) in [
            ("-4h", Some("4h")),
            ("3 dayz", Some("3 days")),
            ("5 minuts", Some("5 minutes")),
            ("10 secnds", Some("10 seconds")),
            ("4", None),
            ("soon", None),
        ] {
            assert_eq!(duration(text).as_deref(), want, "{text}");
        }
        for (text, want) in [
            ("https://example.com", Some("example.com")),
            ("https://mta-sts.example.com/.well-known/mta-sts.txt", Some("mta-sts.example.com")),
            ("*.example.com", Some(".example.com")),
            ("@example.com", Some("example.com")),
            ("user@Example.com", Some("example.com")),
            ("example.com", None),
            ("a b", None),
        ] {
            assert_eq!(domain(text).as_deref(), want, "{text}");
        }
        for (text, want) in [
            ("localhost:53", Some("127.0.0.1:53")),
            ("9845", Some("127.0.0.1:9845")),
            ("::1:53", Some("[::1]:53")),
            ("mx.example.com:25", None),
        ] {
            assert_eq!(socket_address(text).map(|address| address.to_string()).as_deref(), want, "{text}");
        }
    }
}
