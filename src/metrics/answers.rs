//! What an MTA was answered, by kind, and how long it waited.
//!
//! Takes: answers as they are given. Gives: their numbers, and a histogram of the waiting.
//! Limits: never waits; an answer that was ready is in the lowest class without a look at the clock.
//! Not here: what is answered (`policy`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The kind of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerKind {
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

impl AnswerKind {
    /// All kinds, with their labels, in their order.
    pub const ALL: [(AnswerKind, &'static str); 7] = [
        (AnswerKind::None, "none"),
        (AnswerKind::Testing, "sts-testing"),
        (AnswerKind::Enforce, "sts-enforce"),
        (AnswerKind::Dane, "dane"),
        (AnswerKind::DaneOnly, "dane-only"),
        (AnswerKind::Override, "override"),
        (AnswerKind::Temp, "temp"),
    ];
}

/// Numbers of answers by kind, in the order of [`AnswerKind::ALL`].
pub(crate) type CountsByKind = [u64; AnswerKind::ALL.len()];

/// The upper bounds of the waiting-time buckets, in seconds; one more bucket takes all longer times.
pub(crate) const WAIT_BOUNDS: [f64; 8] = [0.001, 0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0];

/// The numbers of answers given over one protocol.
#[derive(Debug, Default)]
pub struct AnswerMetrics {
    kinds: [AtomicU64; AnswerKind::ALL.len()],
    buckets: [AtomicU64; WAIT_BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// A snapshot of the numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerCounts {
    /// By kind, in the order of [`AnswerKind::ALL`].
    pub kinds: CountsByKind,
    /// Answers that took at most as long as each of [`WAIT_BOUNDS`], then all answers.
    pub cumulative: [u64; WAIT_BOUNDS.len() + 1],
    /// The total waiting time, in seconds.
    pub wait_seconds: f64,
}

impl AnswerMetrics {
    /// Adds answers that were ready when they were requested.
    pub(crate) fn add_ready(&self, answers: &CountsByKind) {
        let mut sum = 0;
        for (kind, n) in self.kinds.iter().zip(answers).filter(|(_, n)| **n > 0) {
            kind.fetch_add(*n, Ordering::Relaxed);
            sum += n;
        }
        self.buckets[0].fetch_add(sum, Ordering::Relaxed);
    }

    /// Adds an answer that the MTA waited for.
    pub(crate) fn add_waited(&self, kind: AnswerKind, waited: Duration) {
        let seconds = waited.as_secs_f64();
        let class = WAIT_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(WAIT_BOUNDS.len());
        self.kinds[kind as usize].fetch_add(1, Ordering::Relaxed);
        self.buckets[class].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(u64::try_from(waited.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The numbers since the daemon started.
    pub fn counts(&self) -> AnswerCounts {
        let mut within = [0; WAIT_BOUNDS.len() + 1];
        let mut sum = 0;
        for (within, class) in within.iter_mut().zip(&self.buckets) {
            sum += class.load(Ordering::Relaxed);
            *within = sum;
        }
        AnswerCounts {
            kinds: std::array::from_fn(|kind| self.kinds[kind].load(Ordering::Relaxed)),
            cumulative: within,
            wait_seconds: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_their_number() {
        for (n, (kind, _)) in AnswerKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, n);
        }
    }

    #[test]
    fn classes_hold_what_is_within_them() {
        let answers = AnswerMetrics::default();
        answers.add_ready(&[3, 0, 1, 0, 0, 0, 0]);
        answers.add_waited(AnswerKind::Enforce, Duration::from_millis(10));
        answers.add_waited(AnswerKind::Temp, Duration::from_secs(6));
        answers.add_waited(AnswerKind::None, Duration::from_secs(60));
        let counts = answers.counts();
        assert_eq!(counts.kinds, [4, 0, 2, 0, 0, 0, 1]);
        assert_eq!(counts.cumulative, [4, 5, 5, 5, 5, 5, 5, 6, 7]);
        assert!((counts.wait_seconds - 66.01).abs() < 1e-9);
    }
}
