//! What time it is: the host's clock, or one that tests set.
//!
//! Takes: nothing, a start time, or a counter that tests set. Gives: seconds since 1970-01-01T00:00:00Z. All copies show the same.
//! A [`CompactTime`] is such a second in four octets, for what is kept a hundred thousand times.
//! The clock can be wrong: [`holds`] says what is trusted of a time that was recorded earlier, and a [`SteadyClock`] when
//! something may be deleted because its time is over.
//! When it fails: a clock before 1970 shows 0.
//! Not here: how long something lives.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How far in the future a recorded time may be before it counts as the record of a wrong clock, in seconds: two threads
/// read the clock at the end of a second.
const MAX_SKEW: i64 = 2;

/// How long the clock must run evenly before anything is deleted as expired, in seconds: time synchronization starts
/// late, and an administrator notices later.
pub const EXPIRY_GRACE: i64 = 6 * 3600;

/// How far the clock may be from the pace of the monotonic clock and still run evenly, in seconds.
const MAX_DRIFT: i64 = 60;

/// Whether something that was found at `found` and holds until `until` is to be used at `now` without asking again. A
/// time in the future was recorded by a clock that was ahead: how old the thing is, is not known.
pub(crate) fn holds(found: i64, until: i64, now: i64) -> bool {
    !is_future(found, now) && now < until
}

/// Whether a recorded time is in the future.
pub(crate) fn is_future(recorded: i64, now: i64) -> bool {
    recorded > now + MAX_SKEW
}

/// A clock that runs at the host's pace, shifted by a fixed amount (zero but in closed networks), or one that stands
/// still until a test moves it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    shift: i64,
    manual: Option<&'static AtomicI64>,
}

/// How long a clock has run evenly: since the start, or since it was last set or the host was suspended.
#[derive(Debug)]
pub struct SteadyClock {
    clock: Clock,
    state: Mutex<SteadyState>,
}

#[derive(Clone, Copy, Debug)]
struct SteadyState {
    /// The two clocks when they were last compared.
    wall: i64,
    uptime: i64,
    /// The monotonic clock when the wall clock began to run evenly.
    since: i64,
}

impl Clock {
    /// A clock that shows `now` (seconds since 1970-01-01T00:00:00Z) at this moment.
    pub fn starting_at(now: i64) -> Clock {
        Clock { shift: now - Clock::default().seconds(), ..Clock::default() }
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

impl SteadyClock {
    /// A clock that begins to be watched now.
    pub fn new(clock: Clock) -> SteadyClock {
        let (wall, uptime) = (clock.seconds(), uptime());
        SteadyClock { clock, state: Mutex::new(SteadyState { wall, uptime, since: uptime }) }
    }

    /// A clock that has run evenly for long.
    #[cfg(test)]
    pub(crate) fn long_steady(clock: Clock) -> SteadyClock {
        let steady = SteadyClock::new(clock);
        steady.state.lock().since -= EXPIRY_GRACE;
        steady
    }

    /// Whether something may be deleted as expired: the clock has run evenly for [`EXPIRY_GRACE`]. Call it every few
    /// minutes: a jump between two calls is seen by the second.
    pub fn permits_expiry(&self) -> bool {
        self.state.lock().advance(self.clock.seconds(), uptime())
    }
}

impl SteadyState {
    fn advance(&mut self, wall: i64, uptime: i64) -> bool {
        if ((wall - self.wall) - (uptime - self.uptime)).abs() > MAX_DRIFT {
            self.since = uptime;
        }
        (self.wall, self.uptime) = (wall, uptime);
        uptime - self.since >= EXPIRY_GRACE
    }
}

/// Seconds of the monotonic clock, which nobody sets and which stands still while the host is suspended.
fn uptime() -> i64 {
    static START: OnceLock<Instant> = OnceLock::new();
    i64::try_from(START.get_or_init(Instant::now).elapsed().as_secs()).unwrap_or(i64::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_clock_that_was_ahead_recorded_does_not_hold() {
        const HOUR: i64 = 3600;
        let (now, day) = (1_700_000_000, 24 * HOUR);
        for (found, until, want) in [
            (now - 10, now + 50, true),
            (now, now + day, true),
            (now - 60, now, false),
            // Another thread read the clock a moment later.
            (now + 1, now + 61, true),
            (now + HOUR, now + HOUR + 60, false),
            (now + day, now + 2 * day, false),
            (now + 400 * day, now + 401 * day, false),
        ] {
            assert_eq!(holds(found, until, now), want, "found {} s, until {} s", found - now, until - now);
        }
    }

    #[test]
    fn nothing_is_deleted_before_the_clock_has_run_evenly_for_hours() {
        let start = SteadyState { wall: 1_700_000_000, uptime: 5, since: 5 };
        // (seconds on the wall clock, seconds on the monotonic one) since the last look; whether it may be deleted.
        type Step = (i64, i64, bool);
        let table: [(&str, &[Step]); 6] = [
            ("even", &[(600, 600, false), (20_999, 20_999, false), (1, 1, true), (30, 30, true)]),
            ("put right soon after the start", &[(-400 * 86_400, 1, false), (21_599, 21_599, false), (1, 1, true)]),
            ("set ahead by an hour later", &[(21_600, 21_600, true), (3630, 30, false), (21_600, 21_600, true)]),
            ("set back by a day later", &[(21_600, 21_600, true), (-86_370, 30, false), (21_599, 21_599, false)]),
            ("suspended for a week", &[(21_600, 21_600, true), (7 * 86_400 + 30, 30, false)]),
            ("slewed", &[(21_630, 21_600, true), (590, 600, true)]),
        ];
        for (name, steps) in table {
            let mut state = start;
            let (mut wall, mut uptime) = (start.wall, start.uptime);
            for (by_wall, by_uptime, want) in steps {
                (wall, uptime) = (wall + by_wall, uptime + by_uptime);
                assert_eq!(state.advance(wall, uptime), *want, "{name}: after {by_wall} s");
            }
        }
    }
}
