//! At most one log line per cause and minute: a broken resolver must not fill the disk.
//!
//! Takes: a cause from a fixed list. Gives: whether its line may be written now. What is kept back is counted by its metric.

use std::collections::HashMap;

use parking_lot::Mutex;

/// The shortest time between two lines about one cause, in seconds.
const MIN_INTERVAL: i64 = 60;

/// When each cause was last written of.
#[derive(Default)]
pub struct Throttle(Mutex<HashMap<&'static str, i64>>);

impl Throttle {
    /// Whether the cause may be written of at `now` (seconds).
    pub fn permits(&self, cause: &'static str, now: i64) -> bool {
        let mut last = self.0.lock();
        match last.get(cause) {
            Some(at) if (0..MIN_INTERVAL).contains(&(now - at)) => false,
            _ => {
                last.insert(cause, now);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_minute_and_cause() {
        let throttle = Throttle::default();
        assert!(throttle.permits("a", 100));
        assert!(!throttle.permits("a", 159));
        assert!(throttle.permits("b", 101));
        assert!(throttle.permits("a", 160));
    }
}
