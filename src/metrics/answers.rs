//! What an MTA was answered, by kind, and how long it waited.
//!
//! Takes: answers as they are given. Gives: their numbers, and a histogram of the waiting.
//! Limits: never waits; an answer that was ready is in the lowest class without a look at the clock.
//! Not here: what is answered (`policy`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What kind of answer it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing was published.
    None,
    /// An MTA-STS policy in testing mode.
    Testing,
    /// An enforced MTA-STS policy.
    Enforce,
    /// DANE where a host has TLSA records.
    Dane,
    /// DANE on every host.
    DaneOnly,
    /// What the configuration says for this destination.
    Override,
    /// Not known: the mail is to wait.
    Temp,
}

impl Kind {
    /// All kinds, with their labels, in their order.
    pub const ALL: [(Kind, &'static str); 7] = [
        (Kind::None, "none"),
        (Kind::Testing, "sts-testing"),
        (Kind::Enforce, "sts-enforce"),
        (Kind::Dane, "dane"),
        (Kind::DaneOnly, "dane-only"),
        (Kind::Override, "override"),
        (Kind::Temp, "temp"),
    ];
}

/// Numbers of answers by kind, in the order of [`Kind::ALL`].
pub type ByKind = [u64; Kind::ALL.len()];

/// The upper bounds of the classes of waiting, in seconds; what is over the last is in one more.
pub const BOUNDS: [f64; 8] = [0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0];

/// The answers of one protocol.
#[derive(Debug, Default)]
pub struct Answers {
    kinds: [AtomicU64; Kind::ALL.len()],
    classes: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// A copy of the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    /// By kind, in the order of [`Kind::ALL`].
    pub kinds: ByKind,
    /// Answers that waited at most as long as each of [`BOUNDS`], and all of them.
    pub within: [u64; BOUNDS.len() + 1],
    /// The waiting of all together, in seconds.
    pub seconds: f64,
}

impl Answers {
    /// Adds answers that were ready when they were asked for.
    pub fn ready(&self, answers: &ByKind) {
        let mut sum = 0;
        for (kind, n) in self.kinds.iter().zip(answers).filter(|(_, n)| **n > 0) {
            kind.fetch_add(*n, Ordering::Relaxed);
            sum += n;
        }
        self.classes[0].fetch_add(sum, Ordering::Relaxed);
    }

    /// Adds an answer that was waited for.
    pub fn made(&self, kind: Kind, waited: Duration) {
        let seconds = waited.as_secs_f64();
        let class = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The numbers since the daemon started.
    pub fn counts(&self) -> Counts {
        let mut within = [0; BOUNDS.len() + 1];
        let mut sum = 0;
        for (within, class) in within.iter_mut().zip(&self.classes) {
            sum += class.load(Ordering::Relaxed);
            *within = sum;
        }
        Counts {
            kinds: std::array::from_fn(|kind| self.kinds[kind].load(Ordering::Relaxed)),
            within,
            seconds: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_their_number() {
        for (n, (kind, _)) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, n);
        }
    }

    #[test]
    fn classes_hold_what_is_within_them() {
        let answers = Answers::default();
        answers.ready(&[3, 0, 1, 0, 0, 0, 0]);
        answers.made(Kind::Enforce, Duration::from_millis(10));
        answers.made(Kind::Temp, Duration::from_secs(6));
        answers.made(Kind::None, Duration::from_secs(60));
        let counts = answers.counts();
        assert_eq!(counts.kinds, [4, 0, 2, 0, 0, 0, 1]);
        assert_eq!(counts.within, [4, 5, 5, 5, 5, 5, 5, 6, 7]);
        assert!((counts.seconds - 66.01).abs() < 1e-9);
    }
}
