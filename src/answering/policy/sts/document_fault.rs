//! Why an MTA-STS document is invalid, in words that its author can act on.
//!
//! Takes: the octets of a body, or a line or value that was refused. Gives: an [`InvalidDocument`], with the line and,
//! where that helps, the octet in it; both are counted from 1.
//! Limits: [`MAX_SHOWN_CHARS`] characters of a text that a stranger wrote, escaped.
//! Not here: what a valid document says (`document`), which RFC 8460 result a fault is (`fetch`).

use std::fmt;
use std::net::IpAddr;

use crate::base::domain_name::{self, NameFault};

/// How much of a strange text is shown, in characters.
const MAX_SHOWN_CHARS: usize = 60;

/// Why a document is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidDocument {
    /// The body is not a plain text at all.
    Body(BodyFault),
    /// A line has an octet or a character that no document may have.
    Text(usize, TextFault),
    /// A line is not `name: value`.
    Line(usize, LineFault, ShownText),
    /// A required field that is missing.
    Missing(&'static str),
    /// A field with a value that it cannot have.
    Value(usize, &'static str, ShownText),
    /// An `mx` that is not a host name or `*.` and one: mail to that host would be refused, so none is sent by the rest.
    Mx(usize, MxFault, ShownText),
}

/// What a body is in place of a plain text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFault {
    /// It begins with the byte order mark of UTF-8.
    ByteOrderMark,
    /// It is UTF-16.
    Utf16,
    /// It is compressed with this.
    Compressed(&'static str),
    /// It cannot be read, and its `Content-Encoding` says this.
    ContentEncoding(ShownText),
}

/// What a line must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextFault {
    /// The byte, and its position in the line, counted from 1, is not UTF-8; the charset that the media type names, if another.
    NotUtf8(u8, usize, Option<ShownText>),
    /// A carriage return that no line feed follows.
    CarriageReturn,
    /// It ends in two carriage returns and a line feed.
    TwoCarriageReturns,
    /// The end-of-file mark of DOS.
    ControlZ,
    /// Another control character.
    Control(char),
}

/// Why a line is not `name: value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// It begins with a blank.
    LeadingBlank,
    /// There is a blank before the colon.
    BlankBeforeColon,
    /// It is a comment.
    Comment,
    /// It is HTML.
    Html,
    /// It has no colon.
    NoColon,
    /// What stands before the colon cannot be the name of a field.
    FieldName,
}

/// Why an `mx` is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MxFault {
    /// There is nothing.
    Empty,
    /// Several hosts on one line.
    Several,
    /// A preference before the host.
    Preference,
    /// A port behind the host.
    Port,
    /// A URL.
    Url,
    /// An IP address.
    Address,
    /// `*` in another place than first, and followed by a dot; or a dot alone.
    Wildcard,
    /// A character that cannot be seen.
    Invisible(char),
    /// Another character that is not ASCII.
    NotAscii(char),
    /// Any other fault of a name.
    Name(NameFault),
}

/// A text of a stranger, cut, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownText(String);

impl ShownText {
    /// The beginning of a text.
    pub fn new(text: &str) -> ShownText {
        ShownText(text.chars().take(MAX_SHOWN_CHARS).collect())
    }
}

impl fmt::Display for ShownText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl InvalidDocument {
    /// What is wrong with a body as a whole, if anything.
    pub fn of_body(body: &[u8]) -> Option<InvalidDocument> {
        let fault = match body {
            [0xef, 0xbb, 0xbf, ..] => BodyFault::ByteOrderMark,
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [0, 1..=255, ..] | [1..=255, 0, ..] => BodyFault::Utf16,
            [0x1f, 0x8b, ..] => BodyFault::Compressed("gzip"),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => BodyFault::Compressed("zstd"),
            _ => return None,
        };
        Some(InvalidDocument::Body(fault))
    }

    /// The place of the first octet that is not UTF-8; `valid` are the octets before it.
    pub fn not_utf8(body: &[u8], valid: usize) -> InvalidDocument {
        let before = &body[..valid];
        let line = before.iter().filter(|octet| **octet == b'\n').count() + 1;
        let begin = before.iter().rposition(|octet| *octet == b'\n').map_or(0, |at| at + 1);
        let octet = body.get(valid).copied().unwrap_or_default();
        InvalidDocument::Text(line, TextFault::NotUtf8(octet, valid - begin + 1, None))
    }

    /// The same with what the header fields say of the body, where that explains it.
    pub fn with_headers(mut self, content_encoding: &str, charset: &str) -> InvalidDocument {
        let encoded = !content_encoding.is_empty() && content_encoding != "identity";
        if let InvalidDocument::Text(_, TextFault::NotUtf8(_, _, named)) = &mut self
            && !matches!(charset, "" | "utf-8" | "utf8" | "us-ascii")
        {
            *named = Some(ShownText::new(charset));
        }
        match self {
            InvalidDocument::Body(_) | InvalidDocument::Text(..) | InvalidDocument::Line(..) if encoded => {
                InvalidDocument::Body(BodyFault::ContentEncoding(ShownText::new(content_encoding)))
            }
            other => other,
        }
    }

    /// The `failure-reason-code`.
    pub fn reason_code(&self) -> String {
        match self {
            InvalidDocument::Body(BodyFault::ByteOrderMark) => "byte-order-mark".into(),
            InvalidDocument::Body(BodyFault::Utf16) | InvalidDocument::Text(_, TextFault::NotUtf8(..)) => {
                "not-utf-8".into()
            }
            InvalidDocument::Body(BodyFault::Compressed(_) | BodyFault::ContentEncoding(_)) => {
                "content-encoding".into()
            }
            InvalidDocument::Text(..) => "control-character".into(),
            InvalidDocument::Line(..) => "malformed-line".into(),
            InvalidDocument::Missing(field) => format!("missing-{field}"),
            InvalidDocument::Value(_, field, _) => format!("invalid-{field}"),
            InvalidDocument::Mx(..) => "invalid-mx".into(),
        }
    }
}

impl TextFault {
    /// What is wrong with the characters of a line (without its end), if anything.
    pub fn of_line(line: &str) -> Option<TextFault> {
        let found = line.chars().find(|c| c.is_control() && *c != '\t')?;
        Some(match found {
            '\r' if line.trim_end_matches('\r').chars().any(|c| c == '\r') => TextFault::CarriageReturn,
            '\r' => TextFault::TwoCarriageReturns,
            '\u{1a}' => TextFault::ControlZ,
            other => TextFault::Control(other),
        })
    }
}

impl LineFault {
    /// Why a line is not `name: value`.
    pub fn of_line(line: &str) -> LineFault {
        match (line.chars().next(), line.split_once(':')) {
            (Some(' ' | '\t'), _) => LineFault::LeadingBlank,
            (Some('#' | ';' | '/'), _) => LineFault::Comment,
            (Some('<'), _) => LineFault::Html,
            (_, None) => LineFault::NoColon,
            (_, Some((name, _))) if name.ends_with([' ', '\t']) => LineFault::BlankBeforeColon,
            (_, Some(_)) => LineFault::FieldName,
        }
    }
}

impl MxFault {
    /// Why a value is not a pattern.
    pub fn of_value(value: &str) -> MxFault {
        if let Some(strange) = value.chars().find(|c| !c.is_ascii()) {
            let invisible = strange.is_whitespace() || strange.escape_debug().len() > 1;
            return if invisible { MxFault::Invisible(strange) } else { MxFault::NotAscii(strange) };
        }
        let mut words = value.split([' ', '\t', ',', ';']).filter(|word| !word.is_empty());
        let (first, more) = (words.next().unwrap_or_default(), words.next().is_some());
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_digit());
        if value.is_empty() {
            MxFault::Empty
        } else if value.contains("://") {
            MxFault::Url
        } else if value.starts_with('[') || value.parse::<IpAddr>().is_ok() {
            MxFault::Address
        } else if more {
            if is_number(first) { MxFault::Preference } else { MxFault::Several }
        } else if value.rsplit_once(':').is_some_and(|(_, port)| is_number(port)) {
            MxFault::Port
        } else if value.starts_with('.') || value.strip_prefix("*.").unwrap_or(value).contains('*') {
            MxFault::Wildcard
        } else {
            let name = value.strip_prefix("*.").unwrap_or(value);
            // A name without any fault is a pattern, and was taken.
            MxFault::Name(domain_name::find_fault(name).unwrap_or(NameFault::Empty))
        }
    }
}

impl fmt::Display for InvalidDocument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            InvalidDocument::Body(fault) => write!(f, "{fault}"),
            InvalidDocument::Text(line, fault) => write!(f, "line {line} {fault}"),
            InvalidDocument::Line(line, fault, text) => write!(f, "line {line}, {text}: {fault}"),
            InvalidDocument::Missing(field) => write!(f, "no `{field}`"),
            InvalidDocument::Value(line, field, value) => {
                let expected = match *field {
                    "version" => "STSv1",
                    "mode" => "enforce, testing or none",
                    _ => "a number of seconds of 1 to 10 digits",
                };
                write!(f, "line {line}: `{field}` is {value}: expected {expected}")
            }
            InvalidDocument::Mx(line, fault, value) => write!(f, "line {line}: `mx` is {value}: {fault}"),
        }
    }
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BodyFault::ByteOrderMark => {
                f.write_str("it begins with a byte order mark (the bytes EF BB BF): save it as UTF-8 without one")
            }
            BodyFault::Utf16 => f.write_str("it is UTF-16: save it as UTF-8"),
            BodyFault::Compressed(with) => {
                write!(f, "it is compressed with {with}, which was not asked for: serve it as plain text")
            }
            BodyFault::ContentEncoding(encoding) => {
                write!(f, "its Content-Encoding is {encoding}, which was not asked for: serve it as plain text")
            }
        }
    }
}

impl fmt::Display for TextFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TextFault::NotUtf8(octet, at, None) => write!(f, "is not UTF-8: byte {at} is 0x{octet:02X}"),
            TextFault::NotUtf8(octet, at, Some(charset)) => {
                write!(f, "is not UTF-8: byte {at} is 0x{octet:02X} (the media type names the charset {charset})")
            }
            TextFault::CarriageReturn => {
                f.write_str("has a carriage return (CR) without a line feed: lines end in LF or CR LF")
            }
            TextFault::TwoCarriageReturns => f.write_str("ends in CR CR LF: lines end in LF or CR LF"),
            TextFault::ControlZ => f.write_str("has a Ctrl-Z (0x1A), the end-of-file mark of DOS"),
            TextFault::Control(c) => write!(f, "has the control character U+{:04X}", u32::from(*c)),
        }
    }
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LineFault::LeadingBlank => "begins with a blank: expected `name: value`",
            LineFault::BlankBeforeColon => "has a blank before the colon: expected `name: value`",
            LineFault::Comment => "is a comment, which MTA-STS does not have: expected `name: value`",
            LineFault::Html => "is HTML: expected `name: value`",
            LineFault::NoColon => "has no colon: expected `name: value`",
            LineFault::FieldName => {
                "the name before the colon is invalid: expected up to 32 letters, digits, `_`, `-` and `.`"
            }
        })
    }
}

impl fmt::Display for MxFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MxFault::Empty => f.write_str("expected a host name"),
            MxFault::Several => f.write_str("several hosts: each needs an `mx` line of its own"),
            MxFault::Preference => f.write_str("a preference: expected the host name alone"),
            MxFault::Port => f.write_str("a port: expected the host name alone"),
            MxFault::Url => f.write_str("a URL: expected a host name"),
            MxFault::Address => f.write_str("an IP address: expected a host name"),
            MxFault::Wildcard => f.write_str("a wildcard is `*.` and a domain name"),
            MxFault::Invisible(c) => write!(f, "the invisible character U+{:04X}", u32::from(*c)),
            MxFault::NotAscii(c) => {
                write!(f, "the character {c:?} is not ASCII: an international name is written in A-labels (xn--…)")
            }
            MxFault::Name(fault) => write!(f, "not a host name: {fault}"),
        }
    }
}
