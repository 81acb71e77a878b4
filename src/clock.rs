//! What time it is: the host's clock, or one that a closed network's tests set.
//!
//! Takes: nothing, or a start. Gives: seconds since 1970-01-01T00:00:00Z. A copy goes on at the same pace.

use std::time::{SystemTime, UNIX_EPOCH};

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
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX) + self.shift
    }
}
