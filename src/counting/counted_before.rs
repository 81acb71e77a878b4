//! Lines that were counted before, and come again: recognized by their time where nothing else identifies them.
//!
//! Takes: the time of the newest line that was counted. Gives: whether a line may be one of those.
//! Limits: seconds, as syslog has them: of the lines of that very second that are new, none is counted; none is counted twice.
//! Stored with the open state until lines are a day newer.
//! Not here: when lines may come again (`input/file/locate`, `changed_inputs`).

use crate::counting::session::tracked_map::RecordChange;

/// How much newer lines must be before no counted line is expected any more, in seconds: those of several processes are not
/// in order.
const MAX_DISORDER: i64 = 86_400;

/// Up to when lines are left out.
#[derive(Debug, Default)]
pub(super) struct CountedBefore {
    until: Option<i64>,
    stored: Option<i64>,
}

impl CountedBefore {
    /// The key in the open state; keys of sessions begin with other letters.
    pub(super) const KEY: &'static [u8] = b"u";

    /// Leaves lines out up to `time` as well.
    pub(super) fn extend(&mut self, time: i64) {
        self.until = self.until.max(Some(time));
    }

    /// Whether a line of that time may have been counted.
    pub(super) fn includes(&self, time: i64) -> bool {
        self.until.is_some_and(|until| time <= until)
    }

    /// Restores it; false where the record cannot be read.
    pub(super) fn load(&mut self, value: &[u8]) -> bool {
        self.until = serde_json::from_slice(value).ok();
        self.stored = self.until;
        self.until.is_some()
    }

    /// The change since the last call, after lines up to `newest`.
    pub(super) fn take_change(&mut self, newest: Option<i64>) -> Option<RecordChange> {
        if self.until.zip(newest).is_some_and(|(until, newest)| newest > until + MAX_DISORDER) {
            self.until = None;
        }
        if self.until == self.stored {
            return None;
        }
        self.stored = self.until;
        Some((Self::KEY.to_vec(), self.until.map(|until| until.to_string().into_bytes())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_a_time_are_left_out_and_forgotten_a_day_later() {
        let mut before = CountedBefore::default();
        assert!(!before.includes(0) && before.take_change(Some(5)).is_none());
        before.extend(100);
        before.extend(50);
        assert!(before.includes(100) && !before.includes(101));
        let (key, value) = before.take_change(Some(100)).unwrap();
        assert_eq!((key.as_slice(), value.as_deref()), (CountedBefore::KEY, Some(&b"100"[..])));
        assert!(before.take_change(Some(200)).is_none());
        let mut again = CountedBefore::default();
        assert!(again.load(b"100") && again.includes(100) && !again.load(b"x"));
        let (_, value) = before.take_change(Some(101 + MAX_DISORDER)).unwrap();
        assert!(value.is_none() && !before.includes(100));
    }
}
