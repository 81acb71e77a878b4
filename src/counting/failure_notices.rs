//! Which destinations have begun to fail: one line each for the log.
//!
//! Takes: counts, as they are committed. Gives: lines for destinations that were not said to fail within a day.
//! Limits: [`LINES`] a minute, [`KNOWN`] destinations remembered; what is over is counted and said.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::tlsrpt::{Failure, TallyKey, TallyResult};

/// How many lines a minute: a broken host of ours makes every destination fail.
const LINES: u32 = 10;

/// How many destinations are remembered: past that all are forgotten, and said again.
const KNOWN: usize = 10_000;

/// How long a destination is known to fail, in seconds: a day, like a report.
const DAY: i64 = 86_400;

/// What was said.
#[derive(Default)]
pub struct Failing {
    known: HashMap<Arc<str>, i64>,
    minute: i64,
    said: u32,
    unsaid: u64,
}

impl Failing {
    /// The lines that these counts are worth at `now`, in seconds.
    pub fn lines(&mut self, counts: &[(TallyKey, u64)], now: i64) -> Vec<String> {
        let mut lines = Vec::new();
        if now.div_euclid(60) != self.minute {
            if self.unsaid > 0 {
                lines.push(format!(
                    "{} more destinations fail: not each was said; see tlswarden reports preview",
                    self.unsaid
                ));
            }
            (self.minute, self.said, self.unsaid) = (now.div_euclid(60), 0, 0);
        }
        for (tally, _) in counts {
            let TallyResult::Detail(failure) = &tally.result else { continue };
            if self.known.get(&tally.domain).is_some_and(|since| now - since < DAY) {
                continue;
            }
            if self.known.len() >= KNOWN {
                self.known.clear();
            }
            self.known.insert(Arc::clone(&tally.domain), now);
            if self.said < LINES {
                self.said += 1;
                lines.push(line(&tally.domain, failure));
            } else {
                self.unsaid += 1;
            }
        }
        lines
    }
}

fn line(domain: &str, failure: &Failure) -> String {
    let what = serde_json::to_value(failure.result_type).ok();
    let what = what.as_ref().and_then(|name| name.as_str()).unwrap_or("failed");
    let reason = failure.failure_reason_code.as_deref().map(|code| format!(" ({code})")).unwrap_or_default();
    let host = failure.receiving_mx_hostname.as_deref().map(|host| format!(" at {host}")).unwrap_or_default();
    format!("session: {domain}: fails: {what}{reason}{host}; more of today are counted, and not said")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::{Day, Policy, ResultType};

    fn fails(domain: &str) -> (TallyKey, u64) {
        let failure = Failure::new(ResultType::CertificateExpired, Some("certificate has expired"));
        let policy = Arc::new(Policy::none(domain));
        (TallyKey { day: Day(1), domain: domain.into(), policy, result: TallyResult::Detail(failure) }, 1)
    }

    #[test]
    fn each_is_said_once_a_day() {
        let mut failing = Failing::default();
        let line = "session: a.example: fails: certificate-expired (certificate has expired); more of today are \
                    counted, and not said";
        assert_eq!(failing.lines(&[fails("a.example"), fails("a.example")], 1000), [line]);
        assert!(failing.lines(&[fails("a.example")], 1000 + DAY - 1).is_empty());
        assert_eq!(failing.lines(&[fails("a.example")], 1000 + DAY), [line]);
    }

    #[test]
    fn too_many_are_counted() {
        let mut failing = Failing::default();
        let many: Vec<_> = (0..25).map(|n| fails(&format!("d{n}.example"))).collect();
        assert_eq!(failing.lines(&many, 60).len(), LINES as usize);
        let next = failing.lines(&[], 120);
        assert_eq!(next, ["15 more destinations fail: not each was said; see tlswarden reports preview"]);
        assert!(failing.lines(&[], 180).is_empty());
    }
}
