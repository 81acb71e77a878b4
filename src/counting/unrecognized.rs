//! How many lines of an input look like the MTA's and match no known wording: a new version's, perhaps.
//!
//! Takes: each such line with its family, and the number of recipients' lines. Gives: one sample a day and family in the
//! daemon's log, and whether so many lines are not recognized that sessions must be missing.
//! A wording that changes concerns either the successes, nearly all deliveries, or one kind of failure. One line in
//! [`MAX_SHARE`] recipients' lines, at least [`MIN_LINES`] a day, is more than the settings of single hosts account for, and
//! less than a kind of failure that matters in a report.
//! Limits: the families are those of the parsers.
//! Not here: which line is not recognized (`parsers`).

use std::collections::HashMap;

use crate::base::tlsrpt::Day;

/// The least number of lines of one day that are an error.
const MIN_LINES: u64 = 20;

/// One line in so many recipients' lines is an error.
const MAX_SHARE: u64 = 50;

/// The longest sample, in bytes.
const MAX_SAMPLE: usize = 300;

/// The lines of one input that are not recognized.
#[derive(Debug, Default)]
pub(crate) struct UnrecognizedLines {
    /// The day on which each family was last sampled.
    sampled: HashMap<&'static str, Day>,
    day: Option<Day>,
    recipients: u64,
    lines: u64,
}

impl UnrecognizedLines {
    /// Adds a line, read at `now`.
    pub(crate) fn add(&mut self, family: &'static str, line: &[u8], now: i64) {
        self.begin_day(now);
        self.lines += 1;
        if self.is_first_of_day(family, now) {
            let sample = line.get(..MAX_SAMPLE).unwrap_or(line).escape_ascii();
            tracing::warn!(
                family,
                %sample,
                "log line: not recognized: it may be about a TLS session, in the words of another version; not counted"
            );
        }
    }

    /// Adds a recipient's line, read at `now`.
    pub(crate) fn add_recipient(&mut self, now: i64) {
        self.begin_day(now);
        self.recipients += 1;
    }

    /// What to say where too many lines of the day are not recognized.
    pub(crate) fn advice(&self) -> Option<String> {
        let too_many = self.lines >= MIN_LINES && self.lines * MAX_SHARE >= self.recipients;
        too_many.then(|| {
            format!(
                "{} lines that may be about TLS sessions were not recognized today, beside {} about recipients: reports \
                 miss sessions; `journalctl -u tlswarden | grep 'not recognized'` shows samples, please report one",
                self.lines, self.recipients
            )
        })
    }

    fn is_first_of_day(&mut self, family: &'static str, now: i64) -> bool {
        let today = Day::of(now);
        self.sampled.insert(family, today) != Some(today)
    }

    fn begin_day(&mut self, now: i64) {
        let today = Some(Day::of(now));
        if self.day != today {
            (self.day, self.recipients, self.lines) = (today, 0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_lines_of_a_day_are_an_error() {
        let counted = |recipients: u64, lines: u64| {
            let mut unrecognized = UnrecognizedLines::default();
            (0..recipients).for_each(|_| unrecognized.add_recipient(1));
            (0..lines).for_each(|_| unrecognized.add("unknown smtp text", b"x", 1));
            unrecognized
        };
        for (recipients, lines, want) in [
            (0, 19, false),
            (0, 20, true),
            (1000, 20, true),
            (1001, 20, false),
            (10_000, 199, false),
            (10_000, 200, true),
        ] {
            assert_eq!(counted(recipients, lines).advice().is_some(), want, "{recipients} {lines}");
        }
        // Another day begins anew.
        let mut unrecognized = counted(0, 20);
        unrecognized.add_recipient(86_400);
        assert_eq!(unrecognized.advice(), None);
    }

    #[test]
    fn each_family_is_sampled_once_a_day() {
        let mut unrecognized = UnrecognizedLines::default();
        let seen = [("a", 1), ("a", 2), ("b", 2), ("a", 86_400), ("a", 86_401)];
        let sampled = seen.map(|(family, now)| unrecognized.is_first_of_day(family, now));
        assert_eq!(sampled, [true, false, true, true, false]);
    }
}
