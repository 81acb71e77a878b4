//! What time it is: the host's clock, or one that a closed network's tests set.
//!
//! Takes: nothing, or a start. Gives: seconds since 1970-01-01T00:00:00Z. A copy goes on at the same pace.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock that runs at the host's pace, shifted by a fixed amount (zero but in closed networks).
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    shift: i64,
}

impl Clock {
    /// A clock that shows `now` (seconds since 1970-01-01T00:00:00Z) at this moment.
    pub fn starting_at(now: i64) -> Clock {
        Clock { shift: now - Clock::default().seconds() }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        self.since_epoch().as_secs().try_into().unwrap_or(i64::MAX) + self.shift
    }

    /// The same, with the fraction, in milliseconds.
    pub fn millis(self) -> i64 {
        i64::try_from(self.since_epoch().as_millis()).unwrap_or(i64::MAX).saturating_add(self.shift * 1000)
    }

    fn since_epoch(self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}
