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

/// A line that says why the store did not write.
pub(crate) type Unwritten = String;

/// What writes one batch; blocks until it is durable.
type Write = dyn Fn(Batch) -> Result<(), StoreError> + Send + Sync;

/// Writes batches of many tasks together.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Inner>);

struct Inner {
    write: Box<Write>,
    gathered: Mutex<Gathered>,
}

#[derive(Default)]
struct Gathered {
    batch: Batch,
    tell: Vec<oneshot::Sender<Result<(), Unwritten>>>,
    /// Somebody writes, and will take what has gathered by then.
    writing: bool,
}

impl Journal {
    pub(crate) fn new(write: impl Fn(Batch) -> Result<(), StoreError> + Send + Sync + 'static) -> Journal {
        Journal(Arc::new(Inner { write: Box::new(write), gathered: Mutex::default() }))
    }

    /// Writes a batch of records; it is durable on return. No two tasks may write the same key at one time.
    pub(crate) async fn write(&self, batch: Batch) -> Result<(), Unwritten> {
        let (tell, told) = oneshot::channel();
        let first = {
            let mut gathered = self.0.gathered.lock();
            gathered.batch.set.extend(batch.set);
            gathered.tell.push(tell);
            !std::mem::replace(&mut gathered.writing, true)
        };
        if first {
            let inner = Arc::clone(&self.0);
            // Not awaited: who came first may be told to stop, and the others still want their answer.
            drop(tokio::task::spawn_blocking(move || inner.write_all()));
        }
        told.await.unwrap_or_else(|_| Err("the writing ended early".to_owned()))
    }
}

impl Inner {
    fn write_all(&self) {
        loop {
            let (batch, tell) = {
                let mut gathered = self.gathered.lock();
                if gathered.tell.is_empty() {
                    gathered.writing = false;
                    return;
                }
                (std::mem::take(&mut gathered.batch), std::mem::take(&mut gathered.tell))
            };
            let written = match catch_unwind(AssertUnwindSafe(|| (self.write)(batch))) {
                Ok(written) => written.map_err(|e| e.to_string()),
                Err(_) => Err("the writing panicked; whether it was kept is not known".to_owned()),
            };
            // Who asked and went away does not mind.
            tell.into_iter().for_each(|tell| drop(tell.send(written.clone())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Clock;
    use crate::store::embedded::Embedded;
    use crate::store::{Family, Store};
    use tokio::task::JoinSet;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_are_few_commits_and_all_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(Embedded::open(folder.path(), Clock::default()).unwrap().store);
        let written = Arc::clone(&store);
        let journal = Journal::new(move |batch| written.write(batch));
        let mut tasks = JoinSet::new();
        for i in 0..500_u32 {
            let journal = journal.clone();
            tasks.spawn(async move {
                let set = vec![(Family::Delivery, i.to_be_bytes().to_vec(), Some(vec![1]))];
                journal.write(Batch { add: Vec::new(), set }).await
            });
        }
        while let Some(written) = tasks.join_next().await {
            written.unwrap().unwrap();
        }
        assert_eq!(store.scan(Family::Delivery, b"").unwrap().len(), 500);
        let set = vec![(Family::Delivery, vec![0; 5000], Some(vec![1]))];
        let too_long = journal.write(Batch { add: Vec::new(), set }).await.unwrap_err();
        assert!(too_long.contains("over the limit"), "{too_long}");
        journal.write(Batch::default()).await.unwrap();
    }
    #[tokio::test]
    async fn a_panic_is_an_error_and_the_next_one_is_written() {
        let journal = Journal::new(|batch| if batch.set.is_empty() { panic!("as a store may") } else { Ok(()) });
        for _ in 0..2 {
            let panicked = journal.write(Batch::default()).await.unwrap_err();
            assert!(panicked.contains("panicked"), "{panicked}");
        }
        journal.write(Batch { add: Vec::new(), set: vec![(Family::Delivery, vec![0], None)] }).await.unwrap();
    }
}
