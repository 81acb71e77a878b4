//! What time it is: the host's clock, or one that tests set.
//!
//! Takes: nothing, a start, or a hand. Gives: seconds since 1970-01-01T00:00:00Z. All copies show the same.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// A clock that runs at the host's pace, shifted by a fixed amount (zero but in closed networks), or one that stands
/// until somebody moves its hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    shift: i64,
    hand: Option<&'static AtomicI64>,
}

impl Clock {
    /// A clock that shows `now` (seconds since 1970-01-01T00:00:00Z) at this moment.
    pub fn starting_at(now: i64) -> Clock {
        Clock { shift: now - Clock::default().seconds(), hand: None }
    }

    /// A clock that shows what its hand says: a week passes in a moment, and time goes back.
    pub fn by_hand(hand: &'static AtomicI64) -> Clock {
        Clock { shift: 0, hand: Some(hand) }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        if let Some(hand) = self.hand {
            return hand.load(Ordering::SeqCst);
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX) + self.shift
    }
}
