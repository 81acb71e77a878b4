//! TXT records that are almost what they should be: a sender ignores them, and their owner cannot see why.
//!
//! Takes: the TXT records of a name, and the version that a record there begins with. Gives: what is wrong with each that
//! begins almost so ([`NearMiss`]), and what is wrong in a record that begins as it should. Pure.
//! Limits: [`MAX_SHOWN`] characters of a record are shown; [`MAX_MISSES`] records.
//! When it fails: a record that is not recognized is left out, as one for another purpose is.
//! Not here: what a record means (`policy::sts::record`, `base::rua_record`).

use crate::base::printable::escape_and_cut;

/// How much of a record is shown, in characters.
const MAX_SHOWN: usize = 200;

/// How many records of a name are shown.
const MAX_MISSES: usize = 8;

/// How a record of MTA-STS begins (RFC 8461 §3.1).
pub(super) const STS: &str = "v=STSv1";

/// How a record of TLSRPT begins (RFC 8460 §3).
pub(super) const TLSRPT: &str = "v=TLSRPTv1";

/// A record that begins almost as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NearMiss {
    /// The record, escaped and cut.
    pub(super) record: String,
    /// What is wrong with it.
    pub(super) fault: String,
}

/// The records that begin almost with `version`, and what is wrong with each.
pub(super) fn find(records: &[String], version: &str) -> Vec<NearMiss> {
    let miss = |record: &String| {
        let fault = fault_at_beginning(record, version)?;
        Some(NearMiss { record: escape_and_cut(record, MAX_SHOWN), fault })
    };
    records.iter().filter_map(miss).take(MAX_MISSES).collect()
}

/// The records that begin with `version` and a semicolon, as senders look for them.
pub(super) fn of_version<'a>(records: &'a [String], version: &str) -> impl Iterator<Item = &'a str> {
    let begins = move |record: &&str| {
        record.strip_prefix(version).is_some_and(|rest| rest.trim_start_matches([' ', '\t']).starts_with(';'))
    };
    records.iter().map(String::as_str).filter(begins)
}

fn fault_at_beginning(record: &str, version: &str) -> Option<String> {
    let is_padding =
        |c: char| c.is_whitespace() || c.is_control() || "\"'\\\u{feff}\u{200b}\u{201c}\u{201d}`".contains(c);
    let text = record.trim_start_matches(is_padding);
    // `v = STSv1` is not of the grammar either.
    let spaced = text.split_once('=').filter(|(v, _)| v.trim_end().eq_ignore_ascii_case("v"));
    let value = spaced.map(|(_, value)| value.trim_start_matches(is_padding))?;
    let wanted = version.strip_prefix("v=").unwrap_or(version);
    // Without `v1`.
    let name_length = wanted.len().saturating_sub(2);
    let found = value.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').next().unwrap_or_default();
    if !found.get(..name_length).is_some_and(|name| name.eq_ignore_ascii_case(&wanted[..name_length])) {
        return None;
    }
    let after = value[found.len()..].trim_start_matches([' ', '\t']);
    let first = record.chars().next();
    let fault = match () {
        () if text.len() < record.len() => match first {
            Some(c) if c.is_whitespace() => "it begins with white space".to_owned(),
            Some(c) => format!("it begins with `{}`", c.escape_debug()),
            None => return None,
        },
        () if !found.eq_ignore_ascii_case(wanted) => {
            format!("its version is `{found}`, and the only one is `{wanted}`")
        }
        () if !text.starts_with("v=") || found != wanted || !value.starts_with(found) || spaced_value(text) => {
            format!("it must begin with exactly `{version};`, in this case of letters and without blanks")
        }
        () if after.starts_with('\\') => format!("there is a backslash before the semicolon after `{version}`"),
        () if !after.starts_with(';') => format!("there is no semicolon after `{version}`"),
        () => return None,
    };
    Some(fault)
}

/// Whether something stands between `v=` and its value.
fn spaced_value(text: &str) -> bool {
    !text[2..].starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// What is wrong in a record of MTA-STS that begins as it should (RFC 8461 §3.1).
pub(super) fn fault_of_sts_record(record: &str) -> String {
    let fields = record.split_once(';').map_or("", |(_, fields)| fields);
    let fields: Vec<&str> = fields.split(';').map(|field| field.trim_matches([' ', '\t'])).collect();
    let shown = |text: &str| escape_and_cut(text, 40);
    let mut ids = 0;
    for (n, field) in fields.iter().enumerate() {
        let is_last = n + 1 == fields.len();
        match field.split_once('=') {
            None if field.is_empty() && is_last => {}
            None if field.is_empty() => return "there are two semicolons in a row".to_owned(),
            None => return format!("`{}` is not of the form name=value", shown(field)),
            Some(("id", "")) => return "its id is empty".to_owned(),
            Some(("id", id)) => {
                ids += 1;
                if let Some(c) = id.chars().find(|c| !c.is_ascii_alphanumeric()) {
                    let found = c.escape_debug();
                    return format!("its id `{}` has `{found}` in it: only letters and digits are allowed", shown(id));
                }
                if id.len() > 32 {
                    return format!("its id has {} characters: at most 32 are allowed", id.len());
                }
            }
            Some((name, _)) if name.trim().eq_ignore_ascii_case("id") => {
                return format!("`{}=` must be written `id=`", shown(name));
            }
            Some(_) => {}
        }
    }
    if ids == 0 { "it has no id".to_owned() } else { "one of its fields is not of the form name=value".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(record: &str, version: &str) -> Option<String> {
        find(&[record.to_owned()], version).pop().map(|miss| miss.fault)
    }

    #[test]
    fn what_is_almost_a_record_is_named() {
        for (record, want) in [
            ("v=TLSRPTv1 rua=mailto:a@b.example", "there is no semicolon after `v=TLSRPTv1`"),
            ("v=TLSRPTv1", "there is no semicolon after `v=TLSRPTv1`"),
            ("v=TLSRPTv1, rua=mailto:a@b.example", "there is no semicolon after `v=TLSRPTv1`"),
            (" v=TLSRPTv1; rua=mailto:a@b.example", "it begins with white space"),
            ("\tv=TLSRPTv1; rua=mailto:a@b.example", "it begins with white space"),
            ("\"v=TLSRPTv1; rua=mailto:a@b.example\"", "it begins with `\\\"`"),
            ("\u{feff}v=TLSRPTv1; rua=mailto:a@b.example", "it begins with `\\u{feff}`"),
            ("v=TLSRPTv1\\; rua=mailto:a@b.example", "there is a backslash before the semicolon after `v=TLSRPTv1`"),
            ("v=TLSRPTv2; rua=mailto:a@b.example", "its version is `TLSRPTv2`, and the only one is `TLSRPTv1`"),
            ("v=TLSRPT1; rua=mailto:a@b.example", "its version is `TLSRPT1`, and the only one is `TLSRPTv1`"),
        ] {
            assert_eq!(faults(record, TLSRPT).as_deref(), Some(want), "{record}");
        }
        for record in
            ["v=TLSRPTV1; rua=mailto:a@b.example", "V=TLSRPTv1; rua=x", "v = TLSRPTv1; rua=x", "v= TLSRPTv1; rua=x"]
        {
            let fault = faults(record, TLSRPT).unwrap();
            assert_eq!(fault, "it must begin with exactly `v=TLSRPTv1;`, in this case of letters and without blanks");
        }
        for record in
            ["V=STSV1; id=1", "v=stsv1; id=1", "v=STSv1 id=1", " v=STSv1; id=1", "v=STSv1\\; id=1", "v=STSv2; id=1"]
        {
            assert!(faults(record, STS).is_some(), "{record}");
        }
    }

    #[test]
    fn other_records_are_left_alone() {
        for record in [
            "v=STSv1; id=1;",
            "v=STSv1 \t; id=1",
            "v=spf1 -all",
            "v=DMARC1; p=none",
            "",
            "=",
            "v=",
            "STSv1",
            "id=1; v=STSv1",
            "v=\u{e9}STSv1",
        ] {
            assert_eq!(faults(record, STS), None, "{record}");
        }
        assert_eq!(faults("v=STSv1; id=1", TLSRPT), None);
    }

    #[test]
    fn what_is_wrong_in_a_record() {
        for (record, want) in [
            ("v=STSv1; id=2026-01-01;", "its id `2026-01-01` has `-` in it: only letters and digits are allowed"),
            ("v=STSv1; id=;", "its id is empty"),
            ("v=STSv1;", "it has no id"),
            ("v=STSv1; ID=1;", "`ID=` must be written `id=`"),
            ("v=STSv1; id=1;;", "there are two semicolons in a row"),
            ("v=STSv1; id=1; mode", "`mode` is not of the form name=value"),
            ("v=STSv1; id=1; x=a b", "one of its fields is not of the form name=value"),
            ("v=STSv1; id=123456789012345678901234567890123", "its id has 33 characters: at most 32 are allowed"),
        ] {
            assert_eq!(fault_of_sts_record(record), want, "{record}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_judged(text in "[ \"\\\\]{0,2}[vV] ?= ?(STSv1|TLSRPTv1|\\PC{0,8})[\\\\;, ]{0,3}\\PC{0,40}") {
            faults(&text, STS);
            faults(&text, TLSRPT);
            fault_of_sts_record(&text);
        }
    }
}
