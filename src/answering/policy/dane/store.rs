//! The DANE verdicts in the store: what was known before a restart serves after it, while DNS is not asked or fails.
//!
//! Takes: each verdict that was found, by next hop. Gives: those that the store has; written behind within
//! [`WRITE_DELAY`].
//! Limits: one record a next hop. Whether one has ended for good is not decided at start, when the clock may be wrong.
//! When it fails: what cannot be written waits for the next attempt; verdicts serve from memory.
//! Not here: how long a verdict serves (`policy`), finding it (`dane`).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::answering::policy::dane::cached_verdict::CachedVerdict;
use crate::store::{Batch, MAX_BATCH_RECORDS, Store, StoreError, Table};

/// How long after it was found a verdict is in the store, while the disk keeps up: many go into one write.
pub const WRITE_DELAY: Duration = Duration::from_millis(250);

/// The store of DANE verdicts, and the changes that wait to be written.
pub struct VerdictStore {
    store: Arc<dyn Store>,
    /// How many verdicts are kept in memory.
    limit: usize,
    /// What to set, or to remove. At most `limit` removals are added while the store does not write: a record that stays
    /// is loaded at the next start, or removed then.
    dirty: Mutex<HashMap<String, Option<CachedVerdict>>>,
    /// One write at a time: of two at once the older values could land last.
    writing: tokio::sync::Mutex<()>,
    /// Something waits.
    pub wake: Notify,
}

impl VerdictStore {
    /// An empty list of changes for a store; `limit`: how many verdicts are kept in memory.
    pub fn new(store: Arc<dyn Store>, limit: usize) -> VerdictStore {
        VerdictStore {
            store,
            limit,
            dirty: Mutex::default(),
            writing: tokio::sync::Mutex::default(),
            wake: Notify::new(),
        }
    }

    /// The stored verdicts, at most `limit`; what is beyond, or cannot be read, is removed. Those that wait to be written are
    /// newer, and left out.
    pub fn load(&self, limit: usize) -> Result<Vec<(String, CachedVerdict)>, StoreError> {
        let (mut found, mut removed) = (Vec::new(), Vec::new());
        self.store.visit(Table::Dane, b"", &mut |key, value| {
            let Ok(key) = std::str::from_utf8(key) else { return };
            if self.dirty.lock().contains_key(key) {
                return;
            }
            match CachedVerdict::decode(value).filter(|_| found.len() < limit) {
                Some(verdict) => found.push((key.to_owned(), verdict)),
                None => removed.push(key.to_owned()),
            }
        })?;
        removed.into_iter().for_each(|key| self.remove(key));
        Ok(found)
    }

    /// Stores a verdict with the next write.
    pub fn insert(&self, key: String, verdict: CachedVerdict) {
        self.dirty.lock().insert(key, Some(verdict));
        self.wake.notify_one();
    }

    /// Removes a verdict with the next write.
    pub fn remove(&self, key: String) {
        let mut dirty = self.dirty.lock();
        if dirty.len() < self.limit || dirty.contains_key(&key) {
            dirty.insert(key, None);
        }
        drop(dirty);
        self.wake.notify_one();
    }

    /// Writes what has changed. Fails with the cause; it is tried again with the next call.
    pub async fn write(&self) -> Result<(), String> {
        let _turn = self.writing.lock().await;
        let changes = std::mem::take(&mut *self.dirty.lock());
        if changes.is_empty() {
            return Ok(());
        }
        let mut changes: Vec<_> = changes.into_iter().collect();
        while !changes.is_empty() {
            let remaining = changes.split_off(changes.len().min(MAX_BATCH_RECORDS));
            let mut batch = Batch::default();
            for (key, verdict) in &changes {
                let value = verdict.as_ref().map(|verdict| verdict.encode());
                batch.set.push((Table::Dane, key.clone().into_bytes(), value));
            }
            let store = Arc::clone(&self.store);
            let error = match tokio::task::spawn_blocking(move || store.write(batch)).await {
                Ok(Ok(())) => {
                    changes = remaining;
                    continue;
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            let mut dirty = self.dirty.lock();
            for (key, verdict) in changes.into_iter().chain(remaining) {
                // What came meanwhile is newer.
                dirty.entry(key).or_insert(verdict);
            }
            return Err(error);
        }
        Ok(())
    }
}
