//! The MTA-STS policy document (RFC 8461 §3.2).
//!
//! Takes: the body as served. Gives: a [`PolicyDocument`]: mode, `mx` patterns, `max_age`, and its lines as served.
//! Lines end in CRLF or LF. Of a repeated field other than `mx` the first counts; unknown fields are left alone.
//! Limits: [`MAX_DOCUMENT`] octets; `max_age` is cut to [`MAX_AGE`].
//! When it fails: [`InvalidDocument`], which names the fault.
//! Not here: fetching (`fetch`), which hosts a pattern allows (`tlsrpt::mx_matches`).

use std::fmt;

use crate::base::domain_name;
use crate::base::tlsrpt::Mode;

/// The longest document that is read, in octets (RFC 8461 §3.3 suggests 64 KiB).
pub const MAX_DOCUMENT: usize = 64 * 1024;

/// The longest that a policy holds, in seconds (RFC 8461 §3.2).
pub const MAX_AGE: u64 = 31_557_600;

/// A parsed policy document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyDocument {
    /// What it asks of senders.
    pub mode: Mode,
    /// Allowed MX hosts, in order, without repeats: host names in their one form, or `*.` and one. Never empty but in mode `none`.
    pub mx: Vec<String>,
    /// How long it holds after it was fetched, in seconds.
    pub max_age: u64,
    /// Its lines as served, without their ends, empty ones left out: what reports show as `policy-string`.
    pub lines: Vec<String>,
}

/// Why a document is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidDocument {
    /// Not UTF-8, or control characters in it.
    NotText,
    /// A line that is no `name: value`; its number, from 1.
    Line(usize),
    /// A required field that is missing.
    Missing(&'static str),
    /// A field with a value that it cannot have.
    Value(&'static str),
    /// Modes `enforce` and `testing` need an `mx` that is a host name; there is none.
    NoMx,
}

/// Reads a document.
pub fn parse(body: &[u8]) -> Result<PolicyDocument, InvalidDocument> {
    let text = std::str::from_utf8(body).map_err(|_| InvalidDocument::NotText)?;
    let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
    let mut named_mx = false;
    for (number, line) in text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l)).enumerate() {
        if line.chars().any(|c| c.is_control() && c != '\t') {
            return Err(InvalidDocument::NotText);
        }
        let line = line.trim_end_matches(is_wsp);
        if line.is_empty() {
            continue;
        }
        let (name, value) = line.split_once(':').ok_or(InvalidDocument::Line(number + 1))?;
        let value = value.trim_start_matches(is_wsp);
        match name {
            "version" => version = version.or(Some(value)),
            "mode" => mode = mode.or(Some(value)),
            "max_age" => max_age = max_age.or(Some(value)),
            "mx" => {
                named_mx = true;
                mx.extend(parse_mx_pattern(value).filter(|p| !mx.contains(p)));
            }
            _ if is_name(name) => {}
            _ => return Err(InvalidDocument::Line(number + 1)),
        }
    }
    if version.ok_or(InvalidDocument::Missing("version"))? != "STSv1" {
        return Err(InvalidDocument::Value("version"));
    }
    let mode = match mode.ok_or(InvalidDocument::Missing("mode"))? {
        "enforce" => Mode::Enforce,
        "testing" => Mode::Testing,
        "none" => Mode::None,
        _ => return Err(InvalidDocument::Value("mode")),
    };
    let max_age =
        parse_seconds(max_age.ok_or(InvalidDocument::Missing("max_age"))?).ok_or(InvalidDocument::Value("max_age"))?;
    if mx.is_empty() && mode != Mode::None {
        return Err(if named_mx { InvalidDocument::NoMx } else { InvalidDocument::Missing("mx") });
    }
    Ok(PolicyDocument { mode, mx, max_age, lines: lines(body) })
}

/// The lines of whatever was served, for a report: as they are, but for what no report can carry (octets that are
/// not UTF-8). At most [`MAX_DOCUMENT`] octets are looked at.
pub fn lines(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(&body[..body.len().min(MAX_DOCUMENT)]);
    let lines = text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l));
    lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()
}

/// Parses an `mx` pattern into canonical form. Addresses, U-labels and other values that are not host names give
/// `None`: they can match no host.
fn parse_mx_pattern(value: &str) -> Option<String> {
    if !value.is_ascii() {
        return None;
    }
    match value.strip_prefix("*.") {
        Some(parent) => domain_name::normalize(parent).map(|name| format!("*.{name}")),
        None => domain_name::normalize(value),
    }
}

/// `1*10(DIGIT)`.
fn parse_seconds(value: &str) -> Option<u64> {
    let digits = (1..=10).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten().map(|s: u64| s.min(MAX_AGE))
}

fn is_wsp(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=32).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(rest)
}

impl fmt::Display for InvalidDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidDocument::NotText => f.write_str("not plain text"),
            InvalidDocument::Line(number) => write!(f, "line {number} is no `name: value`"),
            InvalidDocument::Missing(field) => write!(f, "no `{field}`"),
            InvalidDocument::Value(field) => write!(f, "`{field}` has a value that it cannot have"),
            InvalidDocument::NoMx => f.write_str("no `mx` is a host name"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "version: STSv1\r\nmode: enforce\r\nmx: mx1.example.com\r\nmx: *.Example.NET\r\nmax_age: 604800\r\n";

    #[test]
    fn a_good_one() {
        let found = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(found.mode, Mode::Enforce);
        assert_eq!(found.mx, ["mx1.example.com", "*.example.net"]);
        assert_eq!(found.max_age, 604_800);
        assert_eq!(found.lines[3], "mx: *.Example.NET");
        assert_eq!(parse(GOOD.replace("\r\n", "\n").as_bytes()).unwrap(), found);
        assert_eq!(parse(GOOD.trim_end().as_bytes()).unwrap(), found);
        assert_eq!(parse(GOOD.replace(": ", ":").as_bytes()).unwrap().mx, found.mx);
    }

    #[test]
    fn the_first_of_a_repeated_field_counts() {
        let text = format!("{GOOD}mode: none\nmax_age: 1\nversion: STSv2\nmx: mx1.example.com\n");
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!((found.mode, found.max_age, found.mx.len()), (Mode::Enforce, 604_800, 2));
    }

    #[test]
    fn what_is_not_passed_on() {
        let text = "version: STSv1\nmode: testing\nmx: 192.0.2.1\nmx: [192.0.2.1]\nmx: bücher.example\nmx: *\n\
                    mx: *.*.example.com\nmx: mx.*.example.com\nmx: a b\nmx:\nmx: ok.example.com.\nmax_age: 9999999999\n";
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(found.mx, ["ok.example.com"]);
        assert_eq!(found.max_age, MAX_AGE);
        assert_eq!(found.lines.len(), 12);
    }

    #[test]
    fn faults_are_told_apart() {
        let with = |from: &str, to: &str| parse(GOOD.replace(from, to).as_bytes()).unwrap_err();
        assert_eq!(with("version: STSv1\r\n", ""), InvalidDocument::Missing("version"));
        assert_eq!(with("STSv1", "STSv2"), InvalidDocument::Value("version"));
        assert_eq!(with("mode: enforce\r\n", ""), InvalidDocument::Missing("mode"));
        assert_eq!(with("enforce", "Enforce"), InvalidDocument::Value("mode"));
        assert_eq!(with("604800", "12345678901"), InvalidDocument::Value("max_age"));
        assert_eq!(with("604800", "-1"), InvalidDocument::Value("max_age"));
        assert_eq!(with("604800", ""), InvalidDocument::Value("max_age"));
        assert_eq!(with("max_age: 604800", "max_age 604800"), InvalidDocument::Line(5));
        assert_eq!(with("mode", " mode"), InvalidDocument::Line(2));
        assert_eq!(with("\r\nmode", "\rmode"), InvalidDocument::NotText);
        assert_eq!(
            parse(b"version: STSv1\nmode: enforce\nnmx: a.example\nmax_age: 1\n"),
            Err(InvalidDocument::Missing("mx"))
        );
        assert_eq!(parse(b"version: STSv1\nmode: enforce\nmx: 192.0.2.1\nmax_age: 1\n"), Err(InvalidDocument::NoMx));
        assert_eq!(parse(b"\xff"), Err(InvalidDocument::NotText));
        assert_eq!(parse(b"<html>"), Err(InvalidDocument::Line(1)));
        assert_eq!(parse(b""), Err(InvalidDocument::Missing("version")));
    }

    #[test]
    fn mode_none_needs_no_mx() {
        let found = parse(b"version: STSv1\nmode: none\nmax_age: 86400\n").unwrap();
        assert_eq!((found.mode, found.mx.len()), (Mode::None, 0));
    }

    proptest::proptest! {
        #[test]
        fn what_is_read_is_safe_to_pass_on(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let text = [GOOD.as_bytes(), b"mx: ", &body, b"\n"].concat();
            if let Ok(found) = parse(&text) {
                for mx in &found.mx {
                    let name = mx.strip_prefix("*.").unwrap_or(mx);
                    assert_eq!(domain_name::normalize(name).as_deref(), Some(name));
                }
            }
            let _ = parse(&body);
            let _ = lines(&body);
        }
    }
}
