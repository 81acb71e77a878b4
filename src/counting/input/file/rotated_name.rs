//! The names that rotation gives to a log file, and their order.
//!
//! Takes: the names of a log file and of another. Gives: how old the other is as a rotated file of the first.
//! Limits: numbered and dated names, as logrotate, savelog, newsyslog and rsyslog make them; before the extension a number
//! only behind a dot, because `postfix-1.log` is the log of another instance.
//! When it fails: a name that is none of these is not a rotated file.
//! Not here: which files are there (`rotated`).

use std::sync::LazyLock;

use jiff::civil::Date;
use regex::bytes::Regex;

/// The age of a rotated file by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RotationOrder {
    /// The higher, the older.
    Number(u32),
    /// The digits of a date, and of a time or a number behind it.
    Date(String),
}

/// How a file is compressed, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    /// It is not.
    None,
    /// gzip, which is read.
    Gzip,
    /// Another, which is not read.
    Unsupported,
}

/// The ends of names of files that are compressed otherwise than by gzip.
const UNSUPPORTED_ENDS: [&[u8]; 7] = [b".xz", b".zst", b".bz2", b".lz4", b".lzma", b".Z", b".7z"];

/// The name without the end that compression adds.
pub(super) fn split_compression(name: &[u8]) -> (&[u8], Compression) {
    if let Some(plain) = name.strip_suffix(b".gz") {
        return (plain, Compression::Gzip);
    }
    let plain = UNSUPPORTED_ENDS.iter().find_map(|end| name.strip_suffix(*end));
    plain.map_or((name, Compression::None), |plain| (plain, Compression::Unsupported))
}

/// The order of `name` as a rotated file of `log`, if it is one: from the suffix at the end or before the extension.
pub(super) fn parse_rotation_order(log: &[u8], name: &[u8]) -> Option<RotationOrder> {
    let at_end = name.strip_prefix(log).and_then(parse_suffix);
    at_end.or_else(|| {
        let dot = log.iter().rposition(|byte| *byte == b'.')?;
        let suffix = name.strip_prefix(&log[..dot])?.strip_suffix(&log[dot..])?;
        match parse_suffix(suffix)? {
            RotationOrder::Number(_) if suffix.first() != Some(&b'.') => None,
            order => Some(order),
        }
    })
}

/// The names of the logs of which a file of this name can be a rotated one.
pub(super) fn possible_logs(name: &[u8]) -> Vec<Vec<u8>> {
    let (plain, _) = split_compression(name);
    let mut logs = Vec::new();
    let dot = plain.iter().rposition(|byte| *byte == b'.').unwrap_or(0);
    for at in (1..plain.len()).filter(|at| matches!(plain[*at], b'.' | b'_' | b'-')) {
        let at_end = plain[..at].to_vec();
        let before_extension = [&plain[..at], &plain[dot.max(at)..]].concat();
        logs.extend([at_end, before_extension].into_iter().filter(|log| parse_rotation_order(log, plain).is_some()));
    }
    logs
}

/// The name of the log whose rotated file has the name `name`, where the name alone says so: by a number at its end.
pub(super) fn base_of_numbered(name: &[u8]) -> Option<&[u8]> {
    let (plain, _) = split_compression(name);
    let dot = plain.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0)?;
    matches!(parse_suffix(&plain[dot..])?, RotationOrder::Number(_)).then_some(&plain[..dot])
}

/// The suffix of a rotated file: `.1`, `-20261122`, `-20261122-1795305600`, `.2026-11-22_05:00`.
static ROTATION_SUFFIX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^[._-](?:(?<number>[0-9]{1,5})|(?<date>[0-9][0-9_:T.-]{7,40}))$")
        .expect("a constant that a test reads")
});

fn parse_suffix(text: &[u8]) -> Option<RotationOrder> {
    let found = ROTATION_SUFFIX.captures(text)?;
    if let Some(number) = found.name("number") {
        return str::from_utf8(number.as_bytes()).ok()?.parse().ok().map(RotationOrder::Number);
    }
    let date = found.name("date")?.as_bytes();
    let digits: String = date.iter().filter(|byte| byte.is_ascii_digit()).map(|byte| char::from(*byte)).collect();
    (8..=24).contains(&digits.len()).then_some(RotationOrder::Date(digits))
}

/// Which part of a date stands where in the first eight digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DateForm {
    /// 20261122.
    YearMonthDay,
    /// 22112026.
    DayMonthYear,
    /// 11222026.
    MonthDayYear,
}

impl DateForm {
    /// All of them.
    pub(super) const ALL: [DateForm; 3] = [DateForm::YearMonthDay, DateForm::DayMonthYear, DateForm::MonthDayYear];

    /// What sorts the digits of a date by time, if they are one of this form.
    pub(super) fn sort_key(self, digits: &str) -> Option<(Date, &str)> {
        let (date, rest) = digits.split_at_checked(8)?;
        let number = |from: usize, to: usize| date.get(from..to)?.parse::<i16>().ok();
        let (year, month, day) = match self {
            DateForm::YearMonthDay => (number(0, 4)?, number(4, 6)?, number(6, 8)?),
            DateForm::DayMonthYear => (number(4, 8)?, number(2, 4)?, number(0, 2)?),
            DateForm::MonthDayYear => (number(4, 8)?, number(0, 2)?, number(2, 4)?),
        };
        let plausible = (1990..=2100).contains(&year);
        let date = Date::new(year, i8::try_from(month).ok()?, i8::try_from(day).ok()?).ok().filter(|_| plausible)?;
        Some((date, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_rotated_files_are_known() {
        let date = |digits: &str| Some(RotationOrder::Date(digits.into()));
        for (name, want) in [
            ("mail.log.1", Some(RotationOrder::Number(1))),
            ("mail.1.log", Some(RotationOrder::Number(1))),
            ("mail.log.12", Some(RotationOrder::Number(12))),
            ("mail.log-20261122", date("20261122")),
            ("mail-20261122.log", date("20261122")),
            ("mail.log-2026-11-22_05", date("2026112205")),
            ("mail.log-20261122-1795305600", date("202611221795305600")),
            ("mail.log", None),
            ("mail-1.log", None),
            ("mail_2.log", None),
            ("mail.log.old", None),
            ("mail.log.1.save", None),
            ("mail.log.", None),
            ("mail.log.1.2", None),
            ("mail.logs.1", None),
            ("xmail.log.1", None),
            ("mail.err.1", None),
        ] {
            assert_eq!(parse_rotation_order(b"mail.log", name.as_bytes()), want, "{name}");
            assert_eq!(possible_logs(name.as_bytes()).contains(&b"mail.log".to_vec()), want.is_some(), "{name}");
        }
    }

    #[test]
    fn a_number_at_the_end_names_the_log() {
        for (name, want) in [
            ("mail.log.1", Some("mail.log")),
            ("mail.log.12.gz", Some("mail.log")),
            ("mail.log.2.xz", Some("mail.log")),
            ("maillog.0", Some("maillog")),
            ("mail.log", None),
            ("mail-1.log", None),
            ("mail.log-20261122", None),
            (".1", None),
        ] {
            assert_eq!(base_of_numbered(name.as_bytes()), want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn the_form_of_a_date_is_found_by_its_values() {
        let forms = |digits: &str| -> Vec<DateForm> {
            DateForm::ALL.into_iter().filter(|form| form.sort_key(digits).is_some()).collect()
        };
        assert_eq!(forms("20261122"), [DateForm::YearMonthDay]);
        assert_eq!(forms("22112026"), [DateForm::DayMonthYear]);
        assert_eq!(forms("11222026"), [DateForm::MonthDayYear]);
        assert_eq!(forms("01022026"), [DateForm::DayMonthYear, DateForm::MonthDayYear]);
        // Seconds since 1970.
        assert_eq!(forms("1795305600"), []);
    }
}
