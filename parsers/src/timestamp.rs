//! Reads the time of a log line, in the forms that MTAs, syslog daemons, collectors and journalctl write.
//!
//! Takes: the bytes of a time, or a text that begins with one. Gives: a [`LogTimestamp`], and what follows it. A fraction
//! of a second is dropped.
//! Understood by [`split`]: `Nov 22 01:39:01[.123456]`, with the month in the abbreviations of [`month`] and in either
//! order (`22. Nov`), with a year before or behind it; RFC 3339, with a space or `_` in place of its `T`, without a zone,
//! or with the zone behind a space; all of these behind a weekday (`journalctl -o short-full`, OpenWrt's logread); seconds
//! since 1970 (`short-unix`); TAI64N (`@4000…`).
//! When it fails: `None`; no such date exists, or the text begins otherwise.
//! Not here: the year and the zone that a time leaves out (the reader's calendar resolves them).

use memchr::memchr;

use crate::event::LogTimestamp;
use crate::number::decimal;

/// Splits a time off the front of a text, and the spaces behind it.
pub(crate) fn split(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (timestamp, rest) = match text {
        [b'@', label @ ..] => tai64n(label)?,
        [a, b, c, d, b'-', ..] if [a, b, c, d].iter().all(|b| b.is_ascii_digit()) => iso(text)?,
        [b'0'..=b'9', ..] => full_date(text).or_else(|| unix(text)).or_else(|| civil(text))?,
        _ => after_weekday(text).or_else(|| civil(text))?,
    };
    let last = text.get(..text.len() - rest.len())?.last();
    let whole = rest.is_empty() || rest.first() == Some(&b' ') || last == Some(&b' ');
    whole.then(|| (timestamp, rest.trim_ascii_start()))
}

/// `Sun 2026-11-22 22:44:00 UTC` (journalctl's short-full) and `Sun Nov 22 22:44:00 2026` (ctime(3), as logread has it).
fn after_weekday(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    const DAYS: [&[u8]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];
    let (day, rest) = word(text);
    if !DAYS.contains(&day) {
        return None;
    }
    if let Some((timestamp, rest)) = iso(rest) {
        // A zone by name, such as CEST: the reader's own, for journalctl prints in that of its host.
        let (zone, after) = word(rest.trim_ascii_start());
        let named = (2..=5).contains(&zone.len()) && zone.iter().all(u8::is_ascii_uppercase);
        return Some((timestamp, if named && matches!(timestamp, LogTimestamp::Local(_)) { after } else { rest }));
    }
    let (timestamp, rest) = civil(rest)?;
    let (year, after) = word(rest.trim_ascii_start());
    Some((in_year(timestamp, year)?, after))
}

/// `2026 Nov 22 22:44:00`, syslog-ng's `ts-format(full)`.
fn full_date(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (year, rest) = word(text);
    let (timestamp, rest) = (year.len() == 4).then(|| civil(rest))??;
    Some((in_year(timestamp, year)?, rest))
}

/// `1795387440.123456`, journalctl's short-unix and syslog-ng's `ts-format(unix)`: ten digits until the year 2286.
fn unix(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (seconds, rest) = decimal(text)?;
    (text.len() - rest.len() == 10).then_some(())?;
    Some((LogTimestamp::Utc(i64::from(seconds)), strip_fraction(rest)?))
}

/// 24 hexadecimal digits behind an `@`: the TAI64 label of daemontools, runit and s6, and nanoseconds.
fn tai64n(label: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (digits, rest) = label.split_at_checked(24)?;
    let mut seconds = 0u64;
    for (at, digit) in digits.iter().enumerate() {
        let digit = char::from(*digit).to_digit(16)?;
        if at < 16 {
            seconds = seconds << 4 | u64::from(digit);
        }
    }
    // TAI was 10 s ahead of UTC in 1970; most of these programs leave the leap seconds since then out.
    let utc = i64::try_from(seconds.checked_sub(1 << 62)?).ok()?.checked_sub(10)?;
    // Beyond the year 9999 it is not the time of a log line.
    (utc < 253_402_300_800).then_some((LogTimestamp::Utc(utc), rest))
}

/// `2026-11-22T01:46:13`, with a space or `_` in place of the `T`; then a fraction behind a point or a comma; then a zone,
/// behind a space or not.
fn iso(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (local, rest) = local(text)?;
    let separator = *text.get(10)?;
    if !matches!(separator, b'T' | b' ' | b'_') {
        return None;
    }
    let after = strip_fraction(rest)?;
    let fraction = rest.len() - after.len();
    let end = memchr(b' ', after).unwrap_or(after.len());
    let (zone, rest) = after.split_at_checked(end)?;
    if !zone.is_empty() {
        return Some((LogTimestamp::Utc(local.checked_sub(offset(zone)?)?), rest));
    }
    let (zone, after) = word(rest.trim_ascii_start());
    if matches!(zone, b"UTC" | b"GMT") {
        return Some((LogTimestamp::Utc(local), after));
    }
    if let [b'+' | b'-', b'0'..=b'9', ..] = zone
        && let Some(offset) = offset(zone)
    {
        return Some((LogTimestamp::Utc(local.checked_sub(offset)?), after));
    }
    // runit's svlogd -tt and -ttt write UTC without saying so: `_`, or exactly five digits behind the point.
    let svlogd = separator == b'_' || separator == b'T' && fraction == 6;
    Some((if svlogd { LogTimestamp::Utc(local) } else { LogTimestamp::Local(local) }, rest))
}

/// `Nov 22 01:39:01`, `22. Nov 01:39:01`, and with the year before the hour.
fn civil(text: &[u8]) -> Option<(LogTimestamp, &[u8])> {
    let (first, rest) = word(text);
    let (second, rest) = word(rest);
    let (name, number) =
        if first.first()?.is_ascii_digit() && month(first).is_none() { (second, first) } else { (first, second) };
    let month = month(name)?;
    let day = match *number.strip_suffix(b".").unwrap_or(number) {
        [ones] => two_digits(b'0', ones)?,
        [tens, ones] => two_digits(tens, ones)?,
        _ => return None,
    };
    let (year, behind_year) = word(rest);
    let year = (year.len() == 4 && year.iter().all(u8::is_ascii_digit)).then_some(year);
    let &[h0, h1, b':', n0, n1, b':', s0, s1, ref rest @ ..] = year.map_or(rest, |_| behind_year) else { return None };
    let (hour, minute, second) = time_of_day(h0, h1, n0, n1, s0, s1)?;
    // Without a year, February has 29 days.
    (1..=days_in_month(2000, month)).contains(&day).then_some(())?;
    let timestamp = LogTimestamp::Civil { month, day, hour, minute, second };
    Some((year.map_or(Some(timestamp), |year| in_year(timestamp, year))?, strip_fraction(rest)?))
}

/// A time without a year, in the year that stands beside it.
fn in_year(timestamp: LogTimestamp, year: &[u8]) -> Option<LogTimestamp> {
    let LogTimestamp::Civil { month, day, hour, minute, second } = timestamp else { return None };
    let &[y0, y1, y2, y3] = year else { return None };
    let year = u16::from(two_digits(y0, y1)?) * 100 + u16::from(two_digits(y2, y3)?);
    let exists = day <= days_in_month(year, month);
    exists.then(|| LogTimestamp::Local(seconds(year, month, day, (hour, minute, second))))
}

/// The month that an abbreviation names: in English, and as glibc's locales print it in German, French, Spanish,
/// Italian, Portuguese, Dutch, Hungarian, Scandinavian languages, Polish, Russian and Ukrainian, with or without a point; or by its
/// number, as in Chinese, Japanese and Korean. In UTF-8, and in ISO 8859-1 where a name needs it.
fn month(name: &[u8]) -> Option<u8> {
    const NAMES: [&[&str]; 12] = [
        &["jan", "jän", "janv", "ene", "gen", "янв", "sty", "січ"],
        &["feb", "févr", "fév", "fev", "febr", "фев", "февр", "lut", "лют"],
        &["mar", "mär", "märz", "mars", "mrt", "márc", "мар", "марта", "бер"],
        &["apr", "avr", "avril", "abr", "ápr", "апр", "kwi", "кві"],
        &["may", "mai", "mei", "maj", "máj", "mag", "май", "мая", "тра"],
        &["jun", "juin", "juni", "giu", "jún", "июн", "июня", "cze", "чер"],
        &["jul", "juil", "juli", "lug", "júl", "июл", "июля", "lip", "лип"],
        &["aug", "août", "aoû", "ago", "авг", "sie", "сер"],
        &["sep", "sept", "szept", "set", "сен", "сент", "wrz", "вер"],
        &["oct", "okt", "ott", "out", "окт", "paź", "жов"],
        &["nov", "ноя", "нояб", "lis", "лис"],
        &["dec", "déc", "dez", "dic", "des", "дек", "gru", "гру"],
    ];
    const LATIN_1: [(&[u8], u8); 6] =
        [(b"j\xe4n", 1), (b"f\xe9vr", 2), (b"m\xe4r", 3), (b"m\xe4rz", 3), (b"ao\xfbt", 8), (b"d\xe9c", 12)];
    let name = name.strip_suffix(b".").unwrap_or(name);
    if let Some((number, "月" | "월")) =
        decimal(name).and_then(|(number, unit)| Some((number, core::str::from_utf8(unit).ok()?)))
    {
        return u8::try_from(number).ok().filter(|number| (1..=12).contains(number));
    }
    let known = |names: &&[&str]| names.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()));
    if let Some(at) = NAMES.iter().position(known) {
        return u8::try_from(at + 1).ok();
    }
    LATIN_1.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map(|(_, month)| *month)
}

/// The first word of a text, and what follows the spaces behind it.
fn word(text: &[u8]) -> (&[u8], &[u8]) {
    let (word, rest) = text.split_at(memchr(b' ', text).unwrap_or(text.len()));
    (word, rest.trim_ascii_start())
}

/// `Nov 22 01:39:01`.
pub(crate) fn traditional(text: &[u8]) -> Option<LogTimestamp> {
    let &[m0, m1, m2, _, d0, d1, _, h0, h1, _, n0, n1, _, s0, s1] = text else { return None };
    let month = match &[m0, m1, m2] {
        b"Jan" => 1,
        b"Feb" => 2,
        b"Mar" => 3,
        b"Apr" => 4,
        b"May" => 5,
        b"Jun" => 6,
        b"Jul" => 7,
        b"Aug" => 8,
        b"Sep" => 9,
        b"Oct" => 10,
        b"Nov" => 11,
        b"Dec" => 12,
        name => month(name)?,
    };
    let day = two_digits(if d0 == b' ' { b'0' } else { d0 }, d1)?;
    let (hour, minute, second) = time_of_day(h0, h1, n0, n1, s0, s1)?;
    // Without a year, February has 29 days.
    (1..=days_in_month(2000, month)).contains(&day).then_some(LogTimestamp::Civil { month, day, hour, minute, second })
}

/// Exim's `2026-11-22 01:40:29`, and its `+0100` where it writes one.
pub(crate) fn civil_and_zone(civil: &[u8], zone: Option<&[u8]>) -> Option<LogTimestamp> {
    let (local, rest) = local(civil)?;
    match (rest, zone) {
        (b"", None) => Some(LogTimestamp::Local(local)),
        (b"", Some(zone)) => Some(LogTimestamp::Utc(local - offset(zone)?)),
        _ => None,
    }
}

/// `2026-11-22T01:46:13.565141+00:00` (RFC 3339 §5.6); the colon in the offset may be missing, as journalctl has it, and
/// so may all of the offset.
pub(crate) fn rfc3339(text: &[u8]) -> Option<LogTimestamp> {
    let (local, rest) = local(text)?;
    match offset(strip_fraction(rest)?) {
        Some(offset) => Some(LogTimestamp::Utc(local - offset)),
        None => iso(text).and_then(|(timestamp, rest)| rest.is_empty().then_some(timestamp)),
    }
}

/// `2026-11-22T01:46:13` as if it were UTC, and what follows.
fn local(text: &[u8]) -> Option<(i64, &[u8])> {
    let &[y0, y1, y2, y3, s0, m0, m1, s1, d0, d1, _, h0, h1, s2, n0, n1, s3, t0, t1, ref rest @ ..] = text else {
        return None;
    };
    if [s0, s1, s2, s3] != *b"--::" {
        return None;
    }
    let year = u16::from(two_digits(y0, y1)?) * 100 + u16::from(two_digits(y2, y3)?);
    let (month, day) = (two_digits(m0, m1)?, two_digits(d0, d1)?);
    let (hour, minute, second) = time_of_day(h0, h1, n0, n1, t0, t1)?;
    if !(1..=12).contains(&month) || !(1..=days_in_month(year, month)).contains(&day) {
        return None;
    }
    Some((seconds(year, month, day, (hour, minute, second)), rest))
}

/// Seconds since 1970 of a time as if it were UTC.
fn seconds(year: u16, month: u8, day: u8, (hour, minute, second): (u8, u8, u8)) -> i64 {
    days_since_1970(i64::from(year), i64::from(month), i64::from(day)) * 86_400
        + i64::from(hour) * 3600
        + i64::from(minute) * 60
        + i64::from(second)
}

/// Skips `.565141`, or `,565` as some write it; a point must have digits after it.
fn strip_fraction(text: &[u8]) -> Option<&[u8]> {
    let [b'.' | b',', rest @ ..] = text else { return Some(text) };
    let mut rest = rest;
    let whole = rest.len();
    while let [b'0'..=b'9', after @ ..] = rest {
        rest = after;
    }
    (rest.len() < whole).then_some(rest)
}

/// `Z`, `+01:00`, `-0330`, `+03`: seconds east of UTC.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, h0, h1, m0, m1) = match *text {
        [b'Z'] => return Some(0),
        [sign, h0, h1, b':', m0, m1] | [sign, h0, h1, m0, m1] => (sign, h0, h1, m0, m1),
        [sign, h0, h1] => (sign, h0, h1, b'0', b'0'),
        _ => return None,
    };
    let (hours, minutes) = (two_digits(h0, h1)?, two_digits(m0, m1)?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let seconds = i64::from(hours) * 3600 + i64::from(minutes) * 60;
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

fn time_of_day(h0: u8, h1: u8, m0: u8, m1: u8, s0: u8, s1: u8) -> Option<(u8, u8, u8)> {
    let (hour, minute, second) = (two_digits(h0, h1)?, two_digits(m0, m1)?, two_digits(s0, s1)?);
    // A leap second is 60.
    (hour <= 23 && minute <= 59 && second <= 60).then_some((hour, minute, second))
}

fn two_digits(tens: u8, ones: u8) -> Option<u8> {
    (tens.is_ascii_digit() && ones.is_ascii_digit()).then(|| (tens - b'0') * 10 + (ones - b'0'))
}

fn days_in_month(year: u16, month: u8) -> u8 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar; the year begins in March here, so that the leap day comes last.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 153 days are five months from March or August on; 719_468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}
