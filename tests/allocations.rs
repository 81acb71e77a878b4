//! What reading costs in memory, counted by the allocator: nothing for a line that says nothing we count.

#[path = "../parsers/benches/mix.rs"]
#[allow(dead_code)] // The benchmarks use the rest.
mod mix;

use std::sync::Arc;

use allocation_counter::measure;
use jiff::tz::TimeZone;
use mix::{MixedLog, TimestampForm};
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::PolicyInForce;
use tlswarden::counting::pipeline::Counter;
use tlswarden_parsers::{Dialect, parse};

struct NotAsked;

impl PolicyAt for NotAsked {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        None
    }
}

/// A log of which 70 % is other mail.
fn log(stamps: TimestampForm) -> Vec<u8> {
    let mut log = Vec::new();
    let mut mix = MixedLog::new(1, stamps);
    mix.write(&mut log, 4 << 20);
    mix.finish(&mut log);
    log
}

#[test]
fn a_line_that_is_not_used_costs_no_allocation() {
    for stamps in [TimestampForm::Traditional, TimestampForm::Rfc3339] {
        let log = log(stamps);
        let lines = || log.split(|b| *b == b'\n');
        let mut events = 0;
        let parsing = measure(|| {
            events = lines().filter(|line| matches!(parse(Dialect::Postfix, line), Ok(Some(_)))).count();
        });
        assert_eq!((parsing.count_total, events > 1000), (0, true), "the parsers allocate: {parsing:?}");

        let unused: Vec<&[u8]> = lines().filter(|line| matches!(parse(Dialect::Postfix, line), Ok(None))).collect();
        let unused = unused.join(&b'\n');
        let many = unused.split(|b| *b == b'\n').count();
        let mut counter = Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false));
        let counting = measure(|| counter.count_lines(&unused, 1_795_400_000, &NotAsked));
        assert_eq!((counting.count_total, many > 5_000), (0, true), "unused lines allocate: {counting:?}");

        // That it counts at all.
        let used = measure(|| counter.count_lines(&log, 1_795_400_000, &NotAsked));
        assert!(used.count_total > 1000, "{used:?}");
        println!(
            "{} lines, {events} used: {:.2} allocations a used line",
            lines().count(),
            used.count_total as f64 / events as f64
        );
    }
}
