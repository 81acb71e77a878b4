//! How far each input is counted: what `status`, metrics, alerts and the closing of days know of it is what is stored.
//!
//! Takes: the blocks that were counted, and that they are committed. Gives: each input's progress, published after the commit.
//! Until then what was read is still behind: a store that does not write is lag, and no day closes on such lines.
//! Not here: when a commit is made (`pipeline`), who looks at the progress (`metrics`).

use std::collections::BTreeMap;

use crate::counting::input::LineBlock;
use crate::metrics::Metrics;

/// What will be published of the inputs once their lines are committed.
#[derive(Debug, Default)]
pub(super) struct UncommittedProgress {
    /// What was counted since the last commit began.
    by_name: BTreeMap<String, InputReading>,
    /// What is being written.
    under_way: BTreeMap<String, InputReading>,
}

#[derive(Debug, Default)]
struct InputReading {
    newest: Option<i64>,
    at_end: bool,
    behind: u64,
    /// Bytes that were read and wait for their commit.
    waiting: u64,
}

impl UncommittedProgress {
    /// Adds a block that was counted, up to a line of the time `newest`.
    pub(super) fn add_block(&mut self, metrics: &Metrics, name: &str, block: &LineBlock, newest: Option<i64>) {
        let written = self.under_way.get(name).map_or(0, |reading| reading.waiting);
        let reading = self.by_name.entry(name.to_owned()).or_default();
        reading.newest = newest;
        reading.at_end = block.at_end;
        reading.behind = block.bytes_behind;
        reading.waiting += block.lines.len() as u64;
        let behind = reading.behind + reading.waiting + written;
        metrics.update_input(name, |p| {
            // Without lines nothing waits.
            if reading.waiting > 0 || !block.at_end {
                p.at_end_since = None;
            }
            p.behind = behind;
        });
    }

    /// Adds datagrams that were counted.
    pub(super) fn add_datagrams(&mut self, metrics: &Metrics, name: &str, newest: Option<i64>) {
        let reading = self.by_name.entry(name.to_owned()).or_default();
        (reading.newest, reading.at_end) = (newest, true);
        metrics.update_input(name, |p| p.at_end_since = None);
    }

    /// A commit begins, with all that was counted so far. The one before has ended.
    pub(super) fn begin_commit(&mut self) {
        self.under_way = std::mem::take(&mut self.by_name);
    }

    /// Publishes the commit that was under way, at `now`.
    pub(super) fn publish(&mut self, metrics: &Metrics, now: i64) {
        for (name, reading) in std::mem::take(&mut self.under_way) {
            let since = self.by_name.get(&name);
            metrics.update_input(&name, |p| {
                p.newest = reading.newest;
                p.behind = since.map_or(reading.behind, |since| since.behind + since.waiting);
                // With newer lines, the end is reached when they are written.
                p.at_end_since = (since.is_none() && reading.at_end).then_some(now);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counting::input::{Position, RepeatedLines};

    #[test]
    fn lines_that_wait_for_their_commit_are_behind() {
        let (metrics, mut progress) = (Metrics::default(), UncommittedProgress::default());
        let block = |lines: &str, at_end| LineBlock {
            lines: lines.as_bytes().to_vec(),
            position: Position::Nowhere,
            skipped: 0,
            bytes_behind: 7,
            at_end,
            repeated: RepeatedLines::AsBefore,
            lines_missing: false,
        };
        let shown = || metrics.inputs().remove("log").map(|p| (p.newest, p.at_end_since, p.behind)).unwrap();
        progress.add_block(&metrics, "log", &block("one\n", true), Some(100));
        assert_eq!(shown(), (None, None, 11));
        progress.begin_commit();
        assert_eq!(shown(), (None, None, 11));
        progress.publish(&metrics, 200);
        assert_eq!(shown(), (Some(100), Some(200), 7));
        progress.add_block(&metrics, "log", &block("two\n", false), Some(201));
        progress.add_block(&metrics, "log", &block("three\n", true), Some(202));
        assert_eq!(shown(), (Some(100), None, 17));
        progress.begin_commit();
        // Counted while the commit is written.
        progress.add_block(&metrics, "log", &block("four\n", true), Some(203));
        assert_eq!(shown(), (Some(100), None, 22));
        progress.publish(&metrics, 300);
        assert_eq!(shown(), (Some(202), None, 12));
        progress.begin_commit();
        progress.publish(&metrics, 400);
        assert_eq!(shown(), (Some(203), Some(400), 7));
    }
}
