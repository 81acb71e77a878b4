//! What time it is: the host's clock, or one that tests set.
//!
//! Takes: nothing, a start time, or a counter that tests set. Gives: seconds since 1970-01-01T00:00:00Z. All copies show the same.
//! A [`CompactTime`] is such a second in four octets, for what is kept a hundred thousand times.

use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A clock that runs at the host's pace, shifted by a fixed amount (zero but in closed networks), or one that stands
/// still until a test moves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    shift: i64,
    manual: Option<&'static AtomicI64>,
}

impl Clock {
    /// A clock that shows `now` (seconds since 1970-01-01T00:00:00Z) at this moment.
    pub fn starting_at(now: i64) -> Clock {
        Clock { shift: now - Clock::default().seconds(), manual: None }
    }

    /// A clock that shows the value of `now`, for tests: a week passes in a moment, and time goes back.
    pub fn manual(now: &'static AtomicI64) -> Clock {
        Clock { shift: 0, manual: Some(now) }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        if let Some(now) = self.manual {
            return now.load(Ordering::SeqCst);
        }
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX) + self.shift
    }
}

/// A second from 1970-01-01T00:00:00Z to 2106-02-07T06:28:15Z; an earlier or later time becomes the first or the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CompactTime(u32);

impl CompactTime {
    /// Later than every other time: marks what has no end.
    pub(crate) const NEVER: CompactTime = CompactTime(u32::MAX);

    /// The time so many seconds after 1970-01-01T00:00:00Z.
    pub(crate) fn from_seconds(seconds: i64) -> CompactTime {
        CompactTime(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(self) -> i64 {
        self.0.into()
    }
}

/// A [`CompactTime`] that several tasks read and set.
#[derive(Debug)]
pub struct SharedCompactTime(AtomicU32);

impl SharedCompactTime {
    /// The time so many seconds after 1970-01-01T00:00:00Z.
    pub(crate) fn from_seconds(seconds: i64) -> SharedCompactTime {
        SharedCompactTime(AtomicU32::new(CompactTime::from_seconds(seconds).0))
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn seconds(&self) -> i64 {
        self.0.load(Ordering::Relaxed).into()
    }

    /// Sets it, in seconds since 1970-01-01T00:00:00Z.
    pub fn set(&self, seconds: i64) {
        self.0.store(CompactTime::from_seconds(seconds).0, Ordering::Relaxed);
    }

    /// Sets it, unless it is later already.
    pub(crate) fn advance_to(&self, seconds: i64) {
        self.0.fetch_max(CompactTime::from_seconds(seconds).0, Ordering::Relaxed);
    }
}
