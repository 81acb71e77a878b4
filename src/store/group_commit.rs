//! Group commit: what many tasks have to write at one moment is one batch of the store, and one wait for the disk.
//!
//! Takes: a [`Batch`] from each of any number of tasks. Gives: each its answer once its batch is durable.
//! While one batch is being written, those that come gather for the next; one that comes alone waits for nobody.
//! When it fails: all whose batch was part of it learn the same line; none of it was kept. A panic in the writing is a
//! failure like another: nobody is left waiting.
//! Not here: what is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::store::{Batch, StoreError};

/// The reason why the store did not write, as one line.
pub(crate) type WriteFailure = String;

/// Writes one batch; blocks until it is durable.
type WriteFn = dyn Fn(Batch) -> Result<(), StoreError> + Send + Sync;

/// Writes batches of many tasks together.
#[derive(Clone)]
pub(crate) struct GroupCommit(Arc<Inner>);

struct Inner {
    write: Box<WriteFn>,
    pending: Mutex<PendingBatch>,
}

#[derive(Default)]
struct PendingBatch {
    batch: Batch,
    waiters: Vec<oneshot::Sender<Result<(), WriteFailure>>>,
    /// A write is under way; it takes the pending batch next.
    writing: bool,
}

impl GroupCommit {
    pub(crate) fn new(write: impl Fn(Batch) -> Result<(), StoreError> + Send + Sync + 'static) -> GroupCommit {
        GroupCommit(Arc::new(Inner { write: Box::new(write), pending: Mutex::default() }))
    }

    /// Writes a batch of records; it is durable on return. No two tasks may write the same key at one time.
    pub(crate) async fn write(&self, batch: Batch) -> Result<(), WriteFailure> {
        let (waiter, written) = oneshot::channel();
        let first = {
            let mut pending = self.0.pending.lock();
            pending.batch.set.extend(batch.set);
            pending.waiters.push(waiter);
            !std::mem::replace(&mut pending.writing, true)
        };
        if first {
            let inner = Arc::clone(&self.0);
            // Not awaited: who came first may be told to stop, and the others still want their answer.
            drop(tokio::task::spawn_blocking(move || inner.write_all()));
        }
        written.await.unwrap_or_else(|_| Err("the writing ended early".to_owned()))
    }
}

impl Inner {
    fn write_all(&self) {
        loop {
            let (batch, waiters) = {
                let mut pending = self.pending.lock();
                if pending.waiters.is_empty() {
                    pending.writing = false;
                    return;
                }
                (std::mem::take(&mut pending.batch), std::mem::take(&mut pending.waiters))
            };
            let written = match catch_unwind(AssertUnwindSafe(|| (self.write)(batch))) {
                Ok(written) => written.map_err(|e| e.to_string()),
                Err(_) => Err("the writing panicked; whether it was kept is not known".to_owned()),
            };
            // Who asked and went away does not mind.
            waiters.into_iter().for_each(|waiter| drop(waiter.send(written.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::store::embedded::EmbeddedStore;
    use crate::store::{Store, Table};
    use tokio::task::JoinSet;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_are_few_commits_and_all_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store);
        let written = Arc::clone(&store);
        let journal = GroupCommit::new(move |batch| written.write(batch));
        let mut tasks = JoinSet::new();
        for i in 0..500_u32 {
            let journal = journal.clone();
            tasks.spawn(async move {
                let set = vec![(Table::Delivery, i.to_be_bytes().to_vec(), Some(vec![1]))];
                journal.write(Batch { add: Vec::new(), set }).await
            });
        }
        while let Some(written) = tasks.join_next().await {
            written.unwrap().unwrap();
        }
        assert_eq!(store.scan(Table::Delivery, b"").unwrap().len(), 500);
        let set = vec![(Table::Delivery, vec![0; 5000], Some(vec![1]))];
        let too_long = journal.write(Batch { add: Vec::new(), set }).await.unwrap_err();
        assert!(too_long.contains("over the limit"), "{too_long}");
        journal.write(Batch::default()).await.unwrap();
    }
    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_one_is_written() {
        let journal = GroupCommit::new(|batch| if batch.set.is_empty() { panic!("as a store may") } else { Ok(()) });
        for _ in 0..2 {
            let panicked = journal.write(Batch::default()).await.unwrap_err();
            assert!(panicked.contains("panicked"), "{panicked}");
        }
        journal.write(Batch { add: Vec::new(), set: vec![(Table::Delivery, vec![0], None)] }).await.unwrap();
    }
}
