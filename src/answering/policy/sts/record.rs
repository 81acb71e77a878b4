//! The `_mta-sts` TXT record (RFC 8461 §3.1).
//!
//! Takes: the TXT records of the name, the strings of each joined. Gives: the `id`, or why there is none.
//! Limits: those of the grammar: an id of 1 to 32 letters and digits.
//! Not here: the query (`dns`), what an id leads to (`cache`).

use std::fmt;

/// How a record begins that counts at all: others are no affair of MTA-STS and are left out.
const VERSION: &str = "v=STSv1";

/// Why the records lead to no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRecord {
    /// None of them begins `v=STSv1;`.
    Absent,
    /// More than one does.
    Multiple,
    /// The one that does is not as the grammar has it.
    Malformed,
}

/// The id of the one record that begins `v=STSv1;` (white space before the semicolon allowed, as in the grammar).
pub fn parse_id<S: AsRef<str>>(records: &[S]) -> Result<&str, NoRecord> {
    let mut ours = records.iter().map(AsRef::as_ref).filter_map(|text| {
        let rest = text.strip_prefix(VERSION)?;
        rest.trim_start_matches(is_wsp).starts_with(';').then_some(rest)
    });
    match (ours.next(), ours.next()) {
        (None, _) => Err(NoRecord::Absent),
        (Some(_), Some(_)) => Err(NoRecord::Multiple),
        (Some(fields), None) => parse_fields(fields).ok_or(NoRecord::Malformed),
    }
}

/// `1*(*WSP ";" *WSP field) [*WSP ";" *WSP]`: the value of the first `parse_id` among the fields.
fn parse_fields(fields: &str) -> Option<&str> {
    let mut parts = fields.split(';').map(|part| part.trim_matches(is_wsp));
    // Before the first delimiter there is nothing but white space.
    parts.next().filter(|before| before.is_empty())?;
    let mut found = None;
    let mut parts = parts.peekable();
    while let Some(field) = parts.next() {
        if field.is_empty() && parts.peek().is_none() {
            break;
        }
        let (name, value) = field.split_once('=')?;
        match name {
            "id" if is_id(value) => found = found.or(Some(value)),
            "id" if found.is_none() => return None,
            _ if is_name(name) && is_value(value) => {}
            _ => return None,
        }
    }
    found
}

fn is_wsp(c: char) -> bool {
    c == ' ' || c == '\t'
}

fn is_id(value: &str) -> bool {
    (1..=32).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn is_name(name: &str) -> bool {
    let rest = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    (1..=32).contains(&name.len()) && name.as_bytes()[0].is_ascii_alphanumeric() && name.bytes().all(rest)
}

fn is_value(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|b| (0x21..=0x7e).contains(&b) && b != b';' && b != b'=')
}

impl NoRecord {
    /// A description for people.
    pub fn description(self) -> &'static str {
        match self {
            NoRecord::Absent => "no record begins `v=STSv1;`",
            NoRecord::Multiple => "more than one record begins `v=STSv1;`",
            NoRecord::Malformed => "the record is not of the form `v=STSv1; id=...`",
        }
    }
}

impl fmt::Display for NoRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.description())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_and_nothing_else() {
        for (text, want) in [
            ("v=STSv1; id=20160831085700Z;", Some("20160831085700Z")),
            ("v=STSv1;id=1", Some("1")),
            ("v=STSv1 \t; \tid=a ; ", Some("a")),
            ("v=STSv1; x-1.y_z=a:b; id=7; other=!", Some("7")),
            ("v=STSv1; id=1; id=2;", Some("1")),
            ("v=STSv1; id=12345678901234567890123456789012", Some("12345678901234567890123456789012")),
            ("v=STSv1; id=123456789012345678901234567890123", None),
            ("v=STSv1; id=", None),
            ("v=STSv1; id=a-b", None),
            ("v=STSv1; ID=1", None),
            ("v=STSv1;", None),
            ("v=STSv1", None),
            ("v=stsv1; id=1", None),
            (" v=STSv1; id=1", None),
            ("id=1; v=STSv1;", None),
            ("v=STSv1; id=1;;", None),
            ("v=STSv1; ; id=1", None),
            ("v=STSv1; id=1; x", None),
            ("v=STSv1; id=1; x=", None),
            ("v=STSv1; id=1; x=a b", None),
            ("v=STSv1; id=1; x=a=b", None),
            ("v=STSv1; id=1; -x=a", None),
            ("v=STSv1x; id=1", None),
            ("v=STSv1; id=1\u{fffd}", None),
        ] {
            assert_eq!(parse_id(&[text]).ok(), want, "{text:?}");
        }
    }

    #[test]
    fn exactly_one_record() {
        assert_eq!(parse_id(&["v=spf1 -all", "v=STSv1; id=1", "v=STSv10; id=2"]), Ok("1"));
        assert_eq!(parse_id(&["v=STSv1; id=1", "v=STSv1;"]), Err(NoRecord::Multiple));
        assert_eq!(parse_id(&["v=STSv1; id=1", "v=STSv1; id=1"]), Err(NoRecord::Multiple));
        assert_eq!(parse_id::<&str>(&[]), Err(NoRecord::Absent));
        assert_eq!(parse_id(&["v=spf1"]), Err(NoRecord::Absent));
    }

    proptest::proptest! {
        #[test]
        fn whatever_the_text_an_id_is_an_id(text in "v=STSv1[ ;=a-z0-9\t\u{0}-\u{ff}]{0,60}") {
            if let Ok(found) = parse_id(&[&text]) {
                assert!(is_id(found) && text.contains(&format!("id={found}")));
            }
        }
    }
}
