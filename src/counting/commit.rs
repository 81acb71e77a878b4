//! Writes the commits of the counting task, one at a time, on another thread.
//!
//! Takes: a batch. Gives: the batch as it was written, once it is on disk.
//! When it fails: a store that does not write is tried again until it does, or until shutdown; an item that the store
//! refuses is left out of the batch, counted and logged.
//! Not here: what is in a batch and when it is due (`pipeline`), what the store does with it (`store`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::base::clock::Clock;
use crate::base::printable::escape_and_cut;
use crate::base::shutdown::wait_for_shutdown;
use crate::metrics::Metrics;
use crate::store::{Batch, BatchItem, Store, StoreError, Table};

/// The most blocks that are counted while a commit is written: some three seconds of lines, and their counts in memory.
pub(super) const MAX_PENDING_BLOCKS: usize = 64;

/// How long to wait before a commit that failed is tried again; twice as long each time, up to the second figure.
const MIN_RETRY_DELAY: Duration = Duration::from_secs(1);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(5);

/// How often a commit that fails is logged.
const RETRY_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// How much is logged of a name that the store refuses, in characters.
const MAX_SAMPLE: usize = 120;

/// Writes batches to the store.
#[derive(Clone)]
pub(super) struct CommitWriter {
    store: Arc<dyn Store>,
    metrics: Metrics,
    clock: Clock,
    shutdown: watch::Receiver<bool>,
}

impl CommitWriter {
    /// A writer that gives up a commit that fails once `shutdown` is true.
    pub(super) fn new(
        store: Arc<dyn Store>,
        metrics: Metrics,
        clock: Clock,
        shutdown: watch::Receiver<bool>,
    ) -> CommitWriter {
        CommitWriter { store, metrics, clock, shutdown }
    }

    /// Writes a batch on another thread. The next one may be started when this one has ended.
    pub(super) fn start(&self, runtime: &Handle, batch: Batch) -> JoinHandle<Result<Batch, StoreError>> {
        let (writer, handle) = (self.clone(), runtime.clone());
        runtime.spawn_blocking(move || writer.write(&handle, batch))
    }

    fn write(mut self, runtime: &Handle, mut batch: Batch) -> Result<Batch, StoreError> {
        let (mut wait, mut logged) = (MIN_RETRY_DELAY, None::<Instant>);
        loop {
            self.metrics.heartbeat("counting");
            let written = self.store.write(batch.clone());
            // What the disk refuses is written again as it is; what the store refuses is left out, and the rest written.
            if let Err(StoreError::Refused { item, problem }) = &written
                && self.leave_out(&mut batch, *item, problem)
            {
                continue;
            }
            let Err(error) = written else { return Ok(batch) };
            if *self.shutdown.borrow() {
                return Err(error);
            }
            if logged.is_none_or(|at| at.elapsed() >= RETRY_LOG_INTERVAL) {
                logged = Some(Instant::now());
                let line = format!(
                    "store: cannot write counts: {error}; trying again; reading waits once {MAX_PENDING_BLOCKS} blocks are \
                     pending"
                );
                self.metrics.log_error(self.clock, line);
            }
            let _ = runtime.block_on(async { tokio::time::timeout(wait, wait_for_shutdown(&mut self.shutdown)).await });
            wait = (wait * 2).min(MAX_RETRY_DELAY);
        }
    }

    /// Takes an item that the store refuses out of the batch. False for a position: without it, lines would be counted again.
    fn leave_out(&self, batch: &mut Batch, item: BatchItem, problem: &str) -> bool {
        let left_out = match item {
            BatchItem::Count(index) if index < batch.add.len() => {
                let (tally, count) = batch.add.remove(index);
                self.metrics.add("sessions-refused", count);
                format!("{count} sessions of `{}` are not counted", escape_and_cut(&tally.domain, MAX_SAMPLE))
            }
            BatchItem::Record(index) if batch.set.get(index).is_some_and(|(table, ..)| *table != Table::Position) => {
                let (_, key, _) = batch.set.remove(index);
                self.metrics.add("records-refused", 1);
                let sample = escape_and_cut(&String::from_utf8_lossy(&key), MAX_SAMPLE);
                format!("open state \"{sample}\" is not stored and will be lost at the next restart")
            }
            BatchItem::Count(_) | BatchItem::Record(_) => return false,
        };
        self.metrics.log_error(self.clock, format!("{problem}; {left_out}; the rest of the commit continues"));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tlsrpt::{Day, Policy, PolicyType, TallyKey, TallyResult};
    use crate::store::embedded::EmbeddedStore;

    const DAY: Day = Day(20_779);

    #[test]
    fn counts_that_the_store_refuses_are_left_out_and_counted_and_a_position_never_is() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store);
        let metrics = Metrics::default();
        let writer = CommitWriter::new(Arc::clone(&store), metrics.clone(), Clock::default(), watch::channel(false).1);
        let mut batch = Batch::default();
        let policy = Arc::new(Policy {
            policy_type: PolicyType::Sts,
            policy_string: Vec::new(),
            policy_domain: "a.test".to_owned(),
            mx_host: Vec::new(),
        });
        for (domain, count) in [("a.test", 1), (&*"d".repeat(1100), 2), ("b.test", 3)] {
            let key =
                TallyKey { day: DAY, domain: domain.into(), policy: Arc::clone(&policy), result: TallyResult::Success };
            batch.add.push((key, count));
        }
        let Err(StoreError::Refused { item, problem }) = store.write(batch.clone()) else { panic!() };
        assert_eq!(item, BatchItem::Count(1));
        assert!(writer.leave_out(&mut batch, item, &problem));
        store.write(batch).unwrap();
        assert_eq!(store.domains(DAY).unwrap(), ["a.test", "b.test"]);
        assert_eq!(metrics.counters()["sessions-refused"], 2);
        let mut batch = Batch { add: Vec::new(), set: vec![(Table::Position, vec![b'x'; 1100], Some(vec![1]))] };
        let Err(StoreError::Refused { item, problem }) = store.write(batch.clone()) else { panic!() };
        assert!(!writer.leave_out(&mut batch, item, &problem));
    }
}
