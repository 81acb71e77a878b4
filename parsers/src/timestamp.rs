//! Reads the time of a log line.
//!
//! Takes: the bytes of a time. Gives: a [`LogTimestamp`]; a fraction of a second is dropped.
//! Understood: `Nov 22 01:39:01`, RFC 3339, and Exim's `2026-11-22 01:40:29` with its zone.
//! When it fails: `None`; no such date exists, or it is written otherwise.
//! Not here: the year and the zone that a time leaves out.

use crate::event::LogTimestamp;

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
        _ => return None,
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

/// `2026-11-22T01:46:13.565141+00:00` (RFC 3339 §5.6); the colon in the offset may be missing, as journalctl has it.
pub(crate) fn rfc3339(text: &[u8]) -> Option<LogTimestamp> {
    let (local, rest) = local(text)?;
    Some(LogTimestamp::Utc(local - offset(strip_fraction(rest)?)?))
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
    let local = days_since_1970(i64::from(year), i64::from(month), i64::from(day)) * 86_400
        + i64::from(hour) * 3600
        + i64::from(minute) * 60
        + i64::from(second);
    Some((local, rest))
}

/// Skips `.565141`; a point must have digits after it.
fn strip_fraction(text: &[u8]) -> Option<&[u8]> {
    let Some(mut rest) = text.strip_prefix(b".") else { return Some(text) };
    let whole = rest.len();
    while let [b'0'..=b'9', after @ ..] = rest {
        rest = after;
    }
    (rest.len() < whole).then_some(rest)
}

/// `Z`, `+01:00`, `-0330`: seconds east of UTC.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, h0, h1, m0, m1) = match *text {
        [b'Z'] => return Some(0),
        [sign, h0, h1, b':', m0, m1] | [sign, h0, h1, m0, m1] => (sign, h0, h1, m0, m1),
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
