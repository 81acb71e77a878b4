//! The MTA-STS policy document (RFC 8461 §3.2).
//!
//! Takes: the body as served. Gives: a [`PolicyDocument`]: mode, `mx` patterns, `max_age`, and its lines as served.
//! Lines end in CRLF or LF. Of a repeated field other than `mx` the first counts; unknown fields are left alone, whatever
//! their value. An `mx` that cannot be read makes the document invalid in every mode: enforced in part, it would stop the
//! mail to a host that its author allowed.
//! Limits: [`MAX_DOCUMENT`] octets; `max_age` is cut to [`MAX_AGE`].
//! When it fails: [`InvalidDocument`], which names the fault and its line.
//! Not here: fetching (`fetch`), which hosts a pattern allows (`tlsrpt::mx_matches`).

use crate::answering::policy::sts::document_fault::{InvalidDocument, LineFault, MxFault, ShownText, TextFault};
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

/// Reads a document.
pub fn parse(body: &[u8]) -> Result<PolicyDocument, InvalidDocument> {
    if let Some(fault) = InvalidDocument::of_body(body) {
        return Err(fault);
    }
    let text = std::str::from_utf8(body).map_err(|e| InvalidDocument::not_utf8(body, e.valid_up_to()))?;
    let (mut version, mut mode, mut max_age, mut mx) = (None, None, None, Vec::new());
    for (number, line) in (1..).zip(text.split('\n').map(|l| l.strip_suffix('\r').unwrap_or(l))) {
        if let Some(fault) = TextFault::of_line(line) {
            return Err(InvalidDocument::Text(number, fault));
        }
        let line = line.trim_end_matches(is_wsp);
        if line.is_empty() {
            continue;
        }
        let malformed = || InvalidDocument::Line(number, LineFault::of_line(line), ShownText::new(line));
        let (name, value) = line.split_once(':').ok_or_else(malformed)?;
        let value = value.trim_start_matches(is_wsp);
        match name {
            "version" => version = version.or(Some((number, value))),
            "mode" => mode = mode.or(Some((number, value))),
            "max_age" => max_age = max_age.or(Some((number, value))),
            "mx" => {
                let unreadable = || InvalidDocument::Mx(number, MxFault::of_value(value), ShownText::new(value));
                let pattern = parse_mx_pattern(value).ok_or_else(unreadable)?;
                if !mx.contains(&pattern) {
                    mx.push(pattern);
                }
            }
            _ if is_name(name) => {}
            _ => return Err(malformed()),
        }
    }
    let invalid = |(line, value), field| InvalidDocument::Value(line, field, ShownText::new(value));
    let version = version.ok_or(InvalidDocument::Missing("version"))?;
    if version.1 != "STSv1" {
        return Err(invalid(version, "version"));
    }
    let mode = mode.ok_or(InvalidDocument::Missing("mode"))?;
    let mode = match mode.1 {
        "enforce" => Mode::Enforce,
        "testing" => Mode::Testing,
        "none" => Mode::None,
        _ => return Err(invalid(mode, "mode")),
    };
    let max_age = max_age.ok_or(InvalidDocument::Missing("max_age"))?;
    let max_age = parse_seconds(max_age.1).ok_or_else(|| invalid(max_age, "max_age"))?;
    if mx.is_empty() && mode != Mode::None {
        return Err(InvalidDocument::Missing("mx"));
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
    fn bounds_and_what_is_left_alone() {
        let text = "version: STSv1\nmode: testing\nx-empty:\nx-full: a: b \u{fc}\nmx: *.test\nmx: r3---a.example.com.\n\
                    mx: xn--1ug.example\nmax_age: 9999999999\n";
        let found = parse(text.as_bytes()).unwrap();
        assert_eq!(found.mx, ["*.test", "r3---a.example.com", "xn--1ug.example"]);
        assert_eq!(found.max_age, MAX_AGE);
        assert_eq!(found.lines.len(), 8);
    }

    /// Enforced by the readable ones alone, it would stop the mail to the others.
    #[test]
    fn an_mx_that_cannot_be_read_makes_the_document_invalid() {
        for (value, want) in [
            ("", r#""": expected a host name"#),
            (
                "mx1.r.example, mx2.r.example",
                r#""mx1.r.example, mx2.r.example": several hosts: each needs an `mx` line of its own"#,
            ),
            ("a.example b.example", r#""a.example b.example": several hosts: each needs an `mx` line of its own"#),
            ("10 mx1.r.example", r#""10 mx1.r.example": a preference: expected the host name alone"#),
            ("mx.example:25", r#""mx.example:25": a port: expected the host name alone"#),
            ("https://mx.example/", r#""https://mx.example/": a URL: expected a host name"#),
            ("192.0.2.1", r#""192.0.2.1": an IP address: expected a host name"#),
            ("2001:db8::25", r#""2001:db8::25": an IP address: expected a host name"#),
            ("[192.0.2.1]", r#""[192.0.2.1]": an IP address: expected a host name"#),
            ("*", r#""*": a wildcard is `*.` and a domain name"#),
            ("mx*.example", r#""mx*.example": a wildcard is `*.` and a domain name"#),
            ("mx.*.example", r#""mx.*.example": a wildcard is `*.` and a domain name"#),
            ("*.*.example", r#""*.*.example": a wildcard is `*.` and a domain name"#),
            (".example", r#"".example": a wildcard is `*.` and a domain name"#),
            (
                "b\u{fc}cher.example",
                "\"b\u{fc}cher.example\": the character '\u{fc}' is not ASCII: an international name is written in A-labels (xn--…)",
            ),
            ("mx\u{200b}.example", r#""mx\u{200b}.example": the invisible character U+200B"#),
            ("mx.example\u{a0}", r#""mx.example\u{a0}": the invisible character U+00A0"#),
            ("mx-.example", r#""mx-.example": not a host name: the label "mx-" begins or ends with a hyphen"#),
            ("a..example", r#""a..example": not a host name: it has an empty label"#),
            ("*.", r#""*.": not a host name: it is empty"#),
            ("mx.example>", r#""mx.example>": not a host name: it has the character '>'"#),
            ("mx.123", r#""mx.123": not a host name: its last label is a number"#),
        ] {
            for mode in ["enforce", "testing", "none"] {
                let text = format!("version: STSv1\nmode: {mode}\nmx: {value}\nmx: mx3.r.example\nmax_age: 604800\n");
                let fault = parse(text.as_bytes()).unwrap_err();
                assert_eq!(fault.to_string(), format!("line 3: `mx` is {want}"), "{mode}");
                assert_eq!(fault.reason_code(), "invalid-mx");
            }
        }
        let long = format!("version: STSv1\nmode: enforce\nmx: {}.example\nmax_age: 1\n", "a".repeat(64));
        let text = parse(long.as_bytes()).unwrap_err().to_string();
        assert!(text.ends_with("not a host name: it has a label of more than 63 bytes") && text.len() < 140, "{text}");
    }

    #[test]
    fn each_fault_has_a_text_of_its_own() {
        let utf16 = |be: bool| -> Vec<u8> {
            let units = GOOD.encode_utf16();
            units.flat_map(|unit| if be { unit.to_be_bytes() } else { unit.to_le_bytes() }).collect()
        };
        let cases: [(&str, Vec<u8>, &str, &str); 24] = [
            (
                "BOM",
                [b"\xef\xbb\xbf", GOOD.as_bytes()].concat(),
                "byte-order-mark",
                "it begins with a byte order mark (the bytes EF BB BF): save it as UTF-8 without one",
            ),
            (
                "UTF-16 with a mark",
                [b"\xff\xfe".to_vec(), utf16(false)].concat(),
                "not-utf-8",
                "it is UTF-16: save it as UTF-8",
            ),
            ("UTF-16, big", utf16(true), "not-utf-8", "it is UTF-16: save it as UTF-8"),
            ("UTF-16, little", utf16(false), "not-utf-8", "it is UTF-16: save it as UTF-8"),
            (
                "gzip",
                b"\x1f\x8b\x08\0\0\0".to_vec(),
                "content-encoding",
                "it is compressed with gzip, which was not asked for: serve it as plain text",
            ),
            (
                "Latin-1",
                [GOOD.as_bytes(), b"x: gr\xfc\xdfe\r\n"].concat(),
                "not-utf-8",
                "line 6 is not UTF-8: byte 6 is 0xFC",
            ),
            ("cut", [GOOD.as_bytes(), b"x: \xe2\x80"].concat(), "not-utf-8", "line 6 is not UTF-8: byte 4 is 0xE2"),
            (
                "CR alone",
                GOOD.replace("\r\n", "\r").into(),
                "control-character",
                "line 1 has a carriage return (CR) without a line feed: lines end in LF or CR LF",
            ),
            (
                "one CR alone",
                GOOD.replace("\r\nmx: *", "\rmx: *").into(),
                "control-character",
                "line 3 has a carriage return (CR) without a line feed: lines end in LF or CR LF",
            ),
            (
                "CR CR LF",
                GOOD.replace("\r\n", "\r\r\n").into(),
                "control-character",
                "line 1 ends in CR CR LF: lines end in LF or CR LF",
            ),
            (
                "Ctrl-Z",
                format!("{GOOD}\u{1a}").into(),
                "control-character",
                "line 6 has a Ctrl-Z (0x1A), the end-of-file mark of DOS",
            ),
            (
                "NUL",
                GOOD.replace("604800", "604800\0").into(),
                "control-character",
                "line 5 has the control character U+0000",
            ),
            (
                "C1",
                GOOD.replace("604800", "604800\u{85}").into(),
                "control-character",
                "line 5 has the control character U+0085",
            ),
            ("HTML", "<html>\n".into(), "malformed-line", r#"line 1, "<html>": is HTML: expected `name: value`"#),
            (
                "comment",
                format!("# ours\n{GOOD}").into(),
                "malformed-line",
                r##"line 1, "# ours": is a comment, which MTA-STS does not have: expected `name: value`"##,
            ),
            (
                "no colon",
                GOOD.replace("max_age: ", "max_age ").into(),
                "malformed-line",
                r#"line 5, "max_age 604800": has no colon: expected `name: value`"#,
            ),
            (
                "indented",
                GOOD.replace("mode", " mode").into(),
                "malformed-line",
                r#"line 2, " mode: enforce": begins with a blank: expected `name: value`"#,
            ),
            (
                "blank",
                GOOD.replace("mode:", "mode :").into(),
                "malformed-line",
                r#"line 2, "mode : enforce": has a blank before the colon: expected `name: value`"#,
            ),
            (
                "quoted",
                GOOD.replace("mode: enforce", "\"mode: enforce\"").into(),
                "malformed-line",
                r#"line 2, "\"mode: enforce\"": the name before the colon is invalid: expected up to 32 letters, digits, `_`, `-` and `.`"#,
            ),
            (
                "version",
                GOOD.replace("STSv1", "STSv2").into(),
                "invalid-version",
                r#"line 1: `version` is "STSv2": expected STSv1"#,
            ),
            (
                "mode",
                GOOD.replace("enforce", "Enforce").into(),
                "invalid-mode",
                r#"line 2: `mode` is "Enforce": expected enforce, testing or none"#,
            ),
            (
                "mode with NBSP",
                GOOD.replace(": enforce", ":\u{a0}enforce").into(),
                "invalid-mode",
                r#"line 2: `mode` is "\u{a0}enforce": expected enforce, testing or none"#,
            ),
            (
                "max_age",
                GOOD.replace("604800", "7d").into(),
                "invalid-max_age",
                r#"line 5: `max_age` is "7d": expected a number of seconds of 1 to 10 digits"#,
            ),
            ("empty", Vec::new(), "missing-version", "no `version`"),
        ];
        for (name, body, reason, want) in cases {
            let fault = parse(&body).unwrap_err();
            assert_eq!((fault.to_string().as_str(), fault.reason_code().as_str()), (want, reason), "{name}");
        }
        for field in ["version", "mode", "max_age"] {
            let without: String = GOOD.split_inclusive('\n').filter(|line| !line.starts_with(field)).collect();
            assert_eq!(parse(without.as_bytes()), Err(InvalidDocument::Missing(field)));
        }
        let none = GOOD.replace("mx:", "nmx:");
        assert_eq!(parse(none.as_bytes()), Err(InvalidDocument::Missing("mx")));
        for value in ["12345678901", "-1", "86400.0", "604,800", ""] {
            let text = GOOD.replace("604800", value);
            assert!(matches!(parse(text.as_bytes()), Err(InvalidDocument::Value(5, "max_age", _))), "{value}");
        }
    }

    #[test]
    fn header_fields_explain_a_body_that_cannot_be_read() {
        let fault =
            |body: &[u8], encoding, charset| parse(body).unwrap_err().with_headers(encoding, charset).to_string();
        let latin = [GOOD.as_bytes(), b"x: \xfc"].concat();
        for (body, encoding, charset, want) in [
            (&latin[..], "", "utf-8", "line 6 is not UTF-8: byte 4 is 0xFC"),
            (&latin, "identity", "", "line 6 is not UTF-8: byte 4 is 0xFC"),
            (
                &latin,
                "",
                "iso-8859-1",
                r#"line 6 is not UTF-8: byte 4 is 0xFC (the media type names the charset "iso-8859-1")"#,
            ),
            (
                b"\x0b\x02\x80",
                "br",
                "utf-8",
                r#"its Content-Encoding is "br", which was not asked for: serve it as plain text"#,
            ),
            (
                b"\x1f\x8b\x08",
                "gzip",
                "",
                r#"its Content-Encoding is "gzip", which was not asked for: serve it as plain text"#,
            ),
            (b"", "gzip", "", "no `version`"),
        ] {
            assert_eq!(fault(body, encoding, charset), want);
        }
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
            let parsed = parse(&text);
            if let Err(fault) = &parsed {
                assert!(fault.to_string().chars().all(|c| !c.is_control()));
            }
            if let Ok(found) = parsed {
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
