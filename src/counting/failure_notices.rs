//! Which destinations have begun to fail: one line each for the log.
//!
//! Takes: counts, as they are committed. Gives: log lines for destinations that were not logged within the last day.
//! Limits: [`MAX_LINES_PER_MINUTE`], [`MAX_KNOWN_DOMAINS`]; lines beyond are counted, and their number is logged.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::tlsrpt::{Failure, TallyKey, TallyResult};

/// The most lines a minute: a fault of this host makes every destination fail.
const MAX_LINES_PER_MINUTE: u32 = 10;

/// How many destinations are known: beyond that, all are dropped and logged again.
const MAX_KNOWN_DOMAINS: usize = 10_000;

/// How long a destination is not logged again, in seconds: a day, like a report.
const REPEAT_INTERVAL: i64 = 86_400;

/// The destinations that have been logged as failing.
#[derive(Default)]
pub(crate) struct FailureNotices {
    known: HashMap<Arc<str>, i64>,
    minute: i64,
    lines_this_minute: u32,
    suppressed: u64,
}

impl FailureNotices {
    /// Takes the lines to log for these counts at `now`, in seconds.
    pub(crate) fn take_lines(&mut self, counts: &[(TallyKey, u64)], now: i64) -> Vec<String> {
        let mut lines = Vec::new();
        if now.div_euclid(60) != self.minute {
            if self.suppressed > 0 {
                lines.push(format!(
                    "{} more destinations fail: not each was said; see tlswarden reports preview",
                    self.suppressed
                ));
            }
            (self.minute, self.lines_this_minute, self.suppressed) = (now.div_euclid(60), 0, 0);
        }
        for (tally, _) in counts {
            let TallyResult::Detail(failure) = &tally.result else { continue };
            if self.known.get(&tally.domain).is_some_and(|since| now - since < REPEAT_INTERVAL) {
                continue;
            }
            if self.known.len() >= MAX_KNOWN_DOMAINS {
                self.known.clear();
            }
            self.known.insert(Arc::clone(&tally.domain), now);
            if self.lines_this_minute < MAX_LINES_PER_MINUTE {
                self.lines_this_minute += 1;
                lines.push(format_line(&tally.domain, failure));
            } else {
                self.suppressed += 1;
            }
        }
        lines
    }
}

fn format_line(domain: &str, failure: &Failure) -> String {
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
        let mut notices = FailureNotices::default();
        let line = "session: a.example: fails: certificate-expired (certificate has expired); more of today are \
                    counted, and not said";
        assert_eq!(notices.take_lines(&[fails("a.example"), fails("a.example")], 1000), [line]);
        assert!(notices.take_lines(&[fails("a.example")], 1000 + REPEAT_INTERVAL - 1).is_empty());
        assert_eq!(notices.take_lines(&[fails("a.example")], 1000 + REPEAT_INTERVAL), [line]);
    }

    #[test]
    fn too_many_are_counted() {
        let mut notices = FailureNotices::default();
        let many: Vec<_> = (0..25).map(|n| fails(&format!("d{n}.example"))).collect();
        assert_eq!(notices.take_lines(&many, 60).len(), MAX_LINES_PER_MINUTE as usize);
        let next = notices.take_lines(&[], 120);
        assert_eq!(next, ["15 more destinations fail: not each was said; see tlswarden reports preview"]);
        assert!(notices.take_lines(&[], 180).is_empty());
    }
}
