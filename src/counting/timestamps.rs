//! From the time in a line to UTC: the year and the zone that a syslog time stamp leaves out.
//!
//! Takes: time stamps in the order of the log, and the time of reading. Gives: seconds since 1970-01-01T00:00:00Z.
//! The year is the one that goes on from the line before; for the first line, the latest that is at most a day after
//! the time of reading. It only moves forward. An hour that daylight saving repeats is told apart by the order of lines.
//! Not here: reading the stamp (`parsers`).

use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, Offset, TimeZone};
use jiff::{Timestamp, ToSpan};
use tlswarden_parsers::event::LogTimestamp;

/// How far lines of different processes may be out of order, and how far a clock may be ahead, in seconds.
const MAX_DISORDER: i64 = 86_400;

/// How far back a line may lie within a repeated hour before it is taken for the second pass, in seconds.
const REPEATED_HOUR_SLACK: i64 = 60;

/// Turns one input's time stamps into UTC.
#[derive(Clone, Debug)]
pub(crate) struct TimestampResolver {
    zone: TimeZone,
    /// The year of the first line, if it was given.
    first_year: Option<i16>,
    newest: Option<i64>,
    /// The time of the last line of the far future, and when it was read.
    future: Option<(i64, i64)>,
    civil_hour: Option<CachedHour>,
    /// The same for stamps with a year: the hour, counted as if the zone were UTC, and its start in UTC.
    local_hour: Option<(i64, i64)>,
}

/// An hour without a change of offset: the common case, resolved once.
#[derive(Clone, Copy, Debug)]
struct CachedHour {
    month: u8,
    day: u8,
    hour: u8,
    start: i64,
}

impl TimestampResolver {
    /// A resolver for timestamps of a zone that continues after `newest`, the newest line that was read before.
    pub(crate) fn new(zone: TimeZone, newest: Option<i64>) -> TimestampResolver {
        TimestampResolver { zone, first_year: None, newest, future: None, civil_hour: None, local_hour: None }
    }

    /// Sets the year of the first line.
    pub(crate) fn with_first_year(mut self, year: Option<i16>) -> TimestampResolver {
        self.first_year = year;
        self
    }

    /// The time of the last line that is further in the future than any clock may be, and when it was read.
    pub(crate) fn future_line(&self) -> Option<(i64, i64)> {
        self.future
    }

    /// The newest time so far, which must be stored over a restart.
    pub(crate) fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// The time of a line that is read at `now`; `None` for a date that no calendar has (`Feb 30`).
    pub(crate) fn resolve(&mut self, stamp: LogTimestamp, now: i64) -> Option<i64> {
        let time = match stamp {
            LogTimestamp::Utc(seconds) => seconds,
            LogTimestamp::Local(seconds) => self.resolve_local(seconds)?,
            LogTimestamp::Civil { month, day, hour, minute, second } => {
                let within = i64::from(minute) * 60 + i64::from(second);
                match self.civil_hour {
                    // The hour before or at the newest line: a year later it would be ahead of `newest` by more than a day.
                    Some(h) if (h.month, h.day, h.hour) == (month, day, hour) => h.start + within,
                    _ => self.resolve_civil(month, day, hour, within, now)?,
                }
            }
        };
        let newest = self.newest.unwrap_or(i64::MIN);
        // A clock that is wrong by days, as of a device that logs to this host: its line is of now, as the ones beside it, and
        // does not end what is open. A host whose own clock went back has newer lines before it.
        if self.first_year.is_none() && time > newest.max(now).saturating_add(MAX_DISORDER) {
            self.future = Some((time, now));
            return Some(self.newest.unwrap_or(now));
        }
        self.newest = Some(newest.max(time));
        Some(time)
    }

    /// Resolves a time with a year in the input's zone. `seconds` are those that it would have in UTC.
    fn resolve_local(&mut self, seconds: i64) -> Option<i64> {
        let hour = seconds.div_euclid(3600);
        if let Some((_, start)) = self.local_hour.filter(|(known, _)| *known == hour) {
            return Some(start + seconds.rem_euclid(3600));
        }
        let civil = |seconds: i64| Some(Offset::UTC.to_datetime(Timestamp::from_second(seconds).ok()?));
        let ends =
            [hour * 3600, hour * 3600 + 3599].map(|end| match self.zone.to_ambiguous_timestamp(civil(end)?).offset() {
                AmbiguousOffset::Unambiguous { offset } => Some(end - i64::from(offset.seconds())),
                AmbiguousOffset::Gap { .. } | AmbiguousOffset::Fold { .. } => None,
            });
        match ends {
            [Some(start), Some(end)] if end - start == 3599 => {
                self.local_hour = Some((hour, start));
                Some(start + seconds.rem_euclid(3600))
            }
            _ => self.to_utc(civil(seconds)?),
        }
    }

    fn resolve_civil(&mut self, month: u8, day: u8, hour: u8, within: i64, now: i64) -> Option<i64> {
        let (month, day, hour) = (i8::try_from(month).ok()?, i8::try_from(day).ok()?, i8::try_from(hour).ok()?);
        let in_year = |year: i16| {
            let date = DateTime::new(year, month, day, hour, 0, 0, 0).ok()?;
            self.to_utc(date.checked_add(within.seconds()).ok()?)
        };
        let time = match (self.newest, self.first_year) {
            (None, Some(year)) => in_year(year)?,
            (None, None) => latest(year_of(now), in_year, now + MAX_DISORDER)?,
            (Some(newest), named) => {
                let year = year_of(newest);
                let forward = (year - 1..=year + 8).filter_map(in_year).find(|t| *t >= newest - MAX_DISORDER)?;
                // A year that was named is the past's: nothing is known of when it is read.
                if named.is_none() && forward > now + MAX_DISORDER {
                    latest(year_of(now), in_year, now + MAX_DISORDER)?
                } else {
                    forward
                }
            }
        };
        self.cache_hour(month, day, hour, time);
        Some(time)
    }

    /// Converts a civil time to UTC; one that occurs twice is the first, unless lines have passed it already.
    fn to_utc(&self, civil: DateTime) -> Option<i64> {
        let seconds = |offset: Offset| offset.to_timestamp(civil).ok().map(Timestamp::as_second);
        match self.zone.to_ambiguous_timestamp(civil).offset() {
            AmbiguousOffset::Unambiguous { offset } => seconds(offset),
            AmbiguousOffset::Gap { before, .. } => seconds(before),
            AmbiguousOffset::Fold { before, after } => {
                let first = seconds(before)?;
                let passed = self.newest.is_some_and(|newest| first < newest - REPEATED_HOUR_SLACK);
                if passed { seconds(after) } else { Some(first) }
            }
        }
    }

    fn cache_hour(&mut self, month: i8, day: i8, hour: i8, time: i64) {
        let whole = |minute: i8, second: i8| {
            let year = Timestamp::from_second(time).ok()?.to_zoned(self.zone.clone()).year();
            let civil = DateTime::new(year, month, day, hour, minute, second, 0).ok()?;
            match self.zone.to_ambiguous_timestamp(civil).offset() {
                AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(civil).ok().map(Timestamp::as_second),
                AmbiguousOffset::Gap { .. } | AmbiguousOffset::Fold { .. } => None,
            }
        };
        self.civil_hour = match (whole(0, 0), whole(59, 59)) {
            (Some(start), Some(end)) if end - start == 3599 => {
                Some(CachedHour { month: month as u8, day: day as u8, hour: hour as u8, start })
            }
            _ => None,
        };
    }
}

/// The latest candidate that is not after `limit`.
fn latest(year: i16, in_year: impl Fn(i16) -> Option<i64>, limit: i64) -> Option<i64> {
    // Eight years back is the longest that 29 February can be away.
    (year - 8..=year + 1).rev().filter_map(in_year).find(|t| *t <= limit)
}

fn year_of(seconds: i64) -> i16 {
    Timestamp::from_second(seconds).map_or(1970, |t| t.to_zoned(TimeZone::UTC).year())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().unwrap().as_second()
    }

    fn civil(month: u8, day: u8, hour: u8, minute: u8, second: u8) -> LogTimestamp {
        LogTimestamp::Civil { month, day, hour, minute, second }
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    #[test]
    fn first_line_lies_at_most_a_day_ahead_of_the_reading() {
        let now = at("2026-01-01T00:00:10Z");
        let first = |stamp| TimestampResolver::new(TimeZone::UTC, None).resolve(stamp, now);
        assert_eq!(first(civil(12, 31, 23, 59, 59)), Some(at("2025-12-31T23:59:59Z")));
        assert_eq!(first(civil(1, 1, 12, 0, 0)), Some(at("2026-01-01T12:00:00Z")));
        assert_eq!(first(civil(1, 3, 0, 0, 0)), Some(at("2025-01-03T00:00:00Z")));
        assert_eq!(first(civil(2, 29, 0, 0, 0)), Some(at("2024-02-29T00:00:00Z")));
        assert_eq!(first(civil(2, 30, 0, 0, 0)), None);
    }

    #[test]
    fn the_year_only_moves_forward() {
        let now = at("2026-09-01T00:00:00Z");
        let mut calendar = TimestampResolver::new(TimeZone::UTC, None).with_first_year(None);
        let mut newest = TimestampResolver::new(TimeZone::UTC, Some(at("2025-12-31T23:59:58Z")));
        assert_eq!(newest.resolve(civil(1, 1, 0, 0, 0), now), Some(at("2026-01-01T00:00:00Z")));
        assert_eq!(newest.resolve(civil(12, 31, 23, 59, 59), now), Some(at("2025-12-31T23:59:59Z")));
        assert_eq!(newest.resolve(civil(1, 1, 0, 0, 1), now), Some(at("2026-01-01T00:00:01Z")));
        // Eight silent months.
        assert_eq!(newest.resolve(civil(8, 31, 0, 0, 0), now), Some(at("2026-08-31T00:00:00Z")));
        assert_eq!(calendar.resolve(civil(8, 31, 0, 0, 0), now), Some(at("2026-08-31T00:00:00Z")));
        // A clock that was ahead: the line is not put into the next year.
        assert_eq!(calendar.resolve(civil(8, 20, 0, 0, 0), now), Some(at("2026-08-20T00:00:00Z")));
    }

    #[test]
    fn a_named_year_is_believed_and_goes_on() {
        let mut calendar = TimestampResolver::new(TimeZone::UTC, None).with_first_year(Some(2031));
        let now = at("2026-09-01T00:00:00Z");
        assert_eq!(calendar.resolve(civil(12, 31, 23, 0, 0), now), Some(at("2031-12-31T23:00:00Z")));
        assert_eq!(calendar.resolve(civil(1, 1, 0, 0, 0), now), Some(at("2032-01-01T00:00:00Z")));
    }

    #[test]
    fn a_repeated_hour_is_resolved_by_order() {
        let mut calendar = TimestampResolver::new(zone("Europe/Berlin"), None);
        let now = at("2026-10-25T12:00:00Z");
        let mut next = |minute| calendar.resolve(civil(10, 25, 2, minute, 0), now).unwrap();
        assert_eq!(next(0), at("2026-10-25T00:00:00Z"));
        assert_eq!(next(59), at("2026-10-25T00:59:00Z"));
        assert_eq!(next(0), at("2026-10-25T01:00:00Z"));
        assert_eq!(next(30), at("2026-10-25T01:30:00Z"));
        assert_eq!(calendar.resolve(civil(10, 25, 3, 0, 0), now), Some(at("2026-10-25T02:00:00Z")));
    }

    #[test]
    fn half_an_hour_repeated_is_not_taken_from_the_hour_that_is_remembered() {
        // Lord Howe Island goes from +11:00 to +10:30 at 02:00.
        let mut calendar = TimestampResolver::new(zone("Australia/Lord_Howe"), None);
        let now = at("2026-04-05T12:00:00Z");
        let mut next = |minute| calendar.resolve(civil(4, 5, 1, minute, 0), now).unwrap();
        assert_eq!(next(10), at("2026-04-04T14:10:00Z"));
        assert_eq!(next(50), at("2026-04-04T14:50:00Z"));
        assert_eq!(next(31), at("2026-04-04T15:01:00Z"));
    }

    #[test]
    fn a_line_of_the_far_future_is_of_now() {
        let now = at("2026-11-22T12:00:00Z");
        let mut resolver = TimestampResolver::new(TimeZone::UTC, None);
        let mut resolve = |text: &str| resolver.resolve(LogTimestamp::Utc(at(text)), now).unwrap();
        assert_eq!(resolve("2026-11-22T11:59:00Z"), at("2026-11-22T11:59:00Z"));
        assert_eq!(resolve("2031-01-01T00:00:00Z"), at("2026-11-22T11:59:00Z"));
        assert_eq!(resolve("2026-11-22T11:59:30Z"), at("2026-11-22T11:59:30Z"));
        assert_eq!(resolver.newest(), Some(at("2026-11-22T11:59:30Z")));
        // The first line of all is one.
        let mut first = TimestampResolver::new(TimeZone::UTC, None);
        assert_eq!(first.resolve(LogTimestamp::Utc(at("2031-01-01T00:00:00Z")), now), Some(now));
        assert_eq!((first.newest(), first.future_line()), (None, Some((at("2031-01-01T00:00:00Z"), now))));
        let right = at("2026-11-22T11:00:00Z");
        assert_eq!(first.resolve(LogTimestamp::Utc(right), now), Some(right));
        assert_eq!(first.newest(), Some(right));
        // This host's clock went back: the lines before are as far ahead of it.
        let then = at("1970-01-01T00:00:10Z");
        let next = resolver.resolve(LogTimestamp::Utc(at("2026-11-22T12:00:00Z")), then);
        assert_eq!(next, Some(at("2026-11-22T12:00:00Z")));
    }
}
