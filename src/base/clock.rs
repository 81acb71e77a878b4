//! What time it is: the host's clock, or one that tests set.
//!
//! Takes: nothing, a start, or a hand. Gives: seconds since 1970-01-01T00:00:00Z. All copies show the same.
//! A [`Moment`] is such a second in four octets, for what is kept a hundred thousand times.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

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

/// A second from 1970-01-01T00:00:00Z to 2106-02-07T06:28:15Z; what lies before or after becomes the first or the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Moment(u32);

impl Moment {
    /// After all others: what stands under it stands for good.
    pub const LAST: Moment = Moment(u32::MAX);

    /// The moment so many seconds after 1970-01-01T00:00:00Z.
    pub fn at(seconds: i64) -> Moment {
        Moment(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        self.0.into()
    }
}

/// A [`Moment`] that several tasks read and set.
#[derive(Debug)]
pub struct SharedMoment(AtomicU32);

impl SharedMoment {
    /// The moment so many seconds after 1970-01-01T00:00:00Z.
    pub fn at(seconds: i64) -> SharedMoment {
        SharedMoment(AtomicU32::new(Moment::at(seconds).0))
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed).into()
    }

    /// Sets it, in seconds since 1970-01-01T00:00:00Z.
    pub fn set(&self, seconds: i64) {
        self.0.store(Moment::at(seconds).0, Ordering::Relaxed);
    }

    /// Sets it, unless a later moment stands there.
    pub fn set_later(&self, seconds: i64) {
        self.0.fetch_max(Moment::at(seconds).0, Ordering::Relaxed);
    }
}
