//! One piece of work per key, however many ask for it; it goes on when they have gone.
//!
//! Takes: a key and the work. Gives: a [`Flight`] that every asker can wait for, each as long as it likes.
//! Limits: as many flights as keys that are asked for at once.
//! When it fails: work that panics gives its askers nothing, and the key is free again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

type Table<T> = Arc<Mutex<HashMap<String, Flight<T>>>>;

/// Work under way, by key.
pub struct Flights<T> {
    table: Table<T>,
    tasks: Mutex<JoinSet<()>>,
}

/// One piece of work under way.
#[derive(Clone)]
pub struct Flight<T> {
    /// When it began.
    pub began: Instant,
    done: watch::Receiver<Option<T>>,
}

impl<T: Clone + Send + Sync + 'static> Flights<T> {
    /// Nothing under way.
    pub fn new() -> Flights<T> {
        Flights { table: Arc::default(), tasks: Mutex::new(JoinSet::new()) }
    }

    /// The work under way for `key`, or `work`, begun now.
    pub fn join<F>(&self, key: &str, work: impl FnOnce() -> F) -> Flight<T>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.table.lock();
        if let Some(flight) = table.get(key) {
            return flight.clone();
        }
        let (tell, done) = watch::channel(None);
        let flight = Flight { began: Instant::now(), done };
        table.insert(key.to_owned(), flight.clone());
        drop(table);
        let end = End { table: Arc::clone(&self.table), key: key.to_owned() };
        let work = work();
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let value = work.await;
            drop(end);
            tell.send_replace(Some(value));
        });
        flight
    }

    /// How many pieces of work are under way.
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends all of it.
    pub fn abort(&self) {
        self.tasks.lock().abort_all();
    }
}

impl<T: Clone + Send + Sync + 'static> Default for Flights<T> {
    fn default() -> Self {
        Flights::new()
    }
}

impl<T: Clone> Flight<T> {
    /// What came of it; nothing where it is not done at `deadline`, or was ended.
    pub async fn landed(mut self, deadline: Instant) -> Option<T> {
        let done = tokio::time::timeout_at(deadline, self.done.wait_for(Option::is_some)).await;
        done.ok()?.ok()?.clone()
    }
}

/// Frees the key when the work ends, however it ends.
struct End<T> {
    table: Table<T>,
    key: String,
}

impl<T> Drop for End<T> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_work_for_all_and_it_outlives_the_impatient() {
        let flights = Flights::new();
        let runs = Arc::new(AtomicUsize::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(flights.join("a", work).landed(soon).await, None);
        let late = Instant::now() + Duration::from_secs(10);
        let (one, two) = tokio::join!(flights.join("a", work).landed(late), flights.join("a", work).landed(late));
        assert_eq!((one, two), (Some(1), Some(1)));
        assert!(flights.is_empty());
        assert_eq!(flights.join("a", work).landed(late).await, Some(2));
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let flights: Flights<u8> = Flights::new();
        let late = Instant::now() + Duration::from_secs(10);
        let fails = || async { if true { panic!("as the test wants") } else { 1 } };
        assert_eq!(flights.join("a", fails).landed(late).await, None);
        assert_eq!(flights.join("a", || async { 2 }).landed(late).await, Some(2));
    }
}
