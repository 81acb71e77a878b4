//! Lines that were counted before, and come again: recognized by their time where nothing else identifies them.
//!
//! Takes: the time of the newest line that was counted. Gives: whether a line may be one of those.
//! Limits: seconds, as syslog has them: of the lines of that very second that are new, none is counted; none is counted twice.
//! Stored with the open state until lines are a day newer.
//! Not here: when lines may come again (`input/file/locate`, `changed_inputs`).

use serde::{Deserialize, Serialize};

use crate::counting::session::tracked_map::RecordChange;

/// How much newer lines must be before no counted line is expected any more, in seconds: those of several processes are not
/// in order.
const MAX_DISORDER: i64 = 86_400;

/// Up to when lines are left out.
#[derive(Debug, Default)]
pub(super) struct CountedBefore {
    limits: Limits,
    stored: Limits,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Limits {
    /// The newest line of the other input that had these lines.
    of_other_input: Option<i64>,
    /// The newest line counted of a file that lost some, or was edited: for the rest of that file.
    in_file: Option<i64>,
}

impl CountedBefore {
    /// The key in the open state; keys of sessions begin with other letters.
    pub(super) const KEY: &'static [u8] = b"u";

    /// Leaves lines out up to `time` as well: another input had them.
    pub(super) fn extend_of_other_input(&mut self, time: i64) {
        self.limits.of_other_input = self.limits.of_other_input.max(Some(time));
    }

    /// Leaves lines out up to `time` as well, until the file ends.
    pub(super) fn extend_in_file(&mut self, time: i64) {
        self.limits.in_file = self.limits.in_file.max(Some(time));
    }

    /// A file begins of which no line was counted.
    pub(super) fn end_file(&mut self) {
        self.limits.in_file = None;
    }

    /// Whether a line of that time may have been counted.
    pub(super) fn includes(&self, time: i64) -> bool {
        self.limits.newest().is_some_and(|until| time <= until)
    }

    /// Restores it; false where the record cannot be read.
    pub(super) fn load(&mut self, value: &[u8]) -> bool {
        let Ok(limits) = serde_json::from_slice(value) else { return false };
        (self.limits, self.stored) = (limits, limits);
        true
    }

    /// The change since the last call, after lines up to `newest`.
    pub(super) fn take_change(&mut self, newest: Option<i64>) -> Option<RecordChange> {
        if self.limits.newest().zip(newest).is_some_and(|(until, newest)| newest > until + MAX_DISORDER) {
            self.limits = Limits::default();
        }
        if self.limits == self.stored {
            return None;
        }
        self.stored = self.limits;
        let record = self.limits.newest().map(|_| serde_json::to_vec(&self.limits).expect("numbers always serialize"));
        Some((Self::KEY.to_vec(), record))
    }
}

impl Limits {
    fn newest(&self) -> Option<i64> {
        self.of_other_input.max(self.in_file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_a_time_are_left_out_and_forgotten_a_day_later() {
        let mut before = CountedBefore::default();
        assert!(!before.includes(0) && before.take_change(Some(5)).is_none());
        before.extend_of_other_input(100);
        before.extend_of_other_input(50);
        assert!(before.includes(100) && !before.includes(101));
        let (key, value) = before.take_change(Some(100)).unwrap();
        assert_eq!(key, CountedBefore::KEY);
        assert!(before.take_change(Some(200)).is_none());
        let mut again = CountedBefore::default();
        assert!(again.load(&value.unwrap()) && again.includes(100) && !again.load(b"x"));
        let (_, value) = before.take_change(Some(101 + MAX_DISORDER)).unwrap();
        assert!(value.is_none() && !before.includes(100));
    }

    #[test]
    fn what_a_file_may_repeat_ends_with_it_and_what_another_input_had_does_not() {
        let mut before = CountedBefore::default();
        before.extend_of_other_input(100);
        before.extend_in_file(200);
        assert!(before.includes(200));
        let mut again = CountedBefore::default();
        assert!(again.load(&before.take_change(Some(200)).unwrap().1.unwrap()));
        again.end_file();
        assert!(!again.includes(101) && again.includes(100));
        assert!(again.take_change(Some(200)).is_some());
    }
}
