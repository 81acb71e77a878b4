//! One piece of work per key, however many ask for it; it goes on when they have gone.
//!
//! Takes: a key and the work. Gives: a [`Flight`] that every asker can wait for, each as long as it likes. Work that knows
//! its result before it ends publishes it ([`Publisher`]).
//! Limits: so many flights as are allowed at once; beyond, no work is begun.
//! When it fails: work that panics gives its askers nothing, and the key is free again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

type FlightTable<T> = Arc<Mutex<HashMap<String, Flight<T>>>>;

/// The work under way, at most one piece a key.
pub struct SingleFlight<T> {
    table: FlightTable<T>,
    tasks: Mutex<JoinSet<()>>,
    limit: usize,
}

/// One piece of work under way.
#[derive(Clone)]
pub struct Flight<T> {
    /// When it began.
    pub began: Instant,
    done: watch::Receiver<Option<T>>,
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// Nothing under way, and at most `limit` pieces of work at once.
    pub fn new(limit: usize) -> SingleFlight<T> {
        SingleFlight { table: Arc::default(), tasks: Mutex::new(JoinSet::new()), limit }
    }

    /// The work under way for `key`, or `work`, begun now; nothing where there is no room for more.
    pub fn join<F>(&self, key: &str, work: impl FnOnce() -> F) -> Option<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.join_publishing(key, |_| work())
    }

    /// The same for work that may give its result before it ends.
    pub fn join_publishing<F>(&self, key: &str, work: impl FnOnce(Publisher<T>) -> F) -> Option<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.table.lock();
        if let Some(flight) = table.get(key) {
            return Some(flight.clone());
        }
        if table.len() >= self.limit {
            return None;
        }
        let (sender, done) = watch::channel(None);
        let flight = Flight { began: Instant::now(), done };
        table.insert(key.to_owned(), flight.clone());
        drop(table);
        let end = KeyGuard { table: Arc::clone(&self.table), key: key.to_owned() };
        let sender = Arc::new(sender);
        let work = work(Publisher(Arc::clone(&sender)));
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let value = work.await;
            drop(end);
            sender.send_replace(Some(value));
        });
        Some(flight)
    }

    /// Whether the work for a key is under way.
    pub fn is_under_way(&self, key: &str) -> bool {
        self.table.lock().contains_key(key)
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

impl<T: Clone> Flight<T> {
    /// Waits for the result; `None` if it is not there by `deadline` or the work was aborted.
    pub async fn wait(mut self, deadline: Instant) -> Option<T> {
        let done = tokio::time::timeout_at(deadline, self.done.wait_for(Option::is_some)).await;
        done.ok()?.ok()?.clone()
    }
}

/// How work gives its result before it ends.
pub struct Publisher<T>(Arc<watch::Sender<Option<T>>>);

impl<T> Publisher<T> {
    /// Gives a result to who waits, and to who joins from now on.
    pub fn publish(&self, result: T) {
        self.0.send_replace(Some(result));
    }
}

/// Frees the key when the work ends, however it ends.
struct KeyGuard<T> {
    table: FlightTable<T>,
    key: String,
}

impl<T> Drop for KeyGuard<T> {
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
        let flights = SingleFlight::new(1);
        let runs = Arc::new(AtomicUsize::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(flights.join("a", work).unwrap().wait(soon).await, None);
        let late = Instant::now() + Duration::from_secs(10);
        let (one, two) =
            tokio::join!(flights.join("a", work).unwrap().wait(late), flights.join("a", work).unwrap().wait(late));
        assert_eq!((one, two), (Some(1), Some(1)));
        assert!(flights.is_empty());
        assert_eq!(flights.join("a", work).unwrap().wait(late).await, Some(2));
    }

    #[tokio::test]
    async fn a_result_that_is_published_early_is_waited_for_no_longer() {
        let flights: SingleFlight<u8> = SingleFlight::new(1);
        let late = Instant::now() + Duration::from_secs(60);
        let go_on = Arc::new(tokio::sync::Notify::new());
        let work = |publisher: Publisher<u8>| {
            let go_on = Arc::clone(&go_on);
            async move {
                publisher.publish(1);
                go_on.notified().await;
                2
            }
        };
        assert_eq!(flights.join_publishing("a", work).unwrap().wait(late).await, Some(1));
        let joined = flights.join("a", || async { 3 }).unwrap();
        assert_eq!((flights.len(), joined.wait(late).await), (1, Some(1)));
        go_on.notify_one();
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let flights: SingleFlight<u8> = SingleFlight::new(1);
        let late = Instant::now() + Duration::from_secs(10);
        let fails = || async { if true { panic!("as the test wants") } else { 1 } };
        assert_eq!(flights.join("a", fails).unwrap().wait(late).await, None);
        assert_eq!(flights.join("a", || async { 2 }).unwrap().wait(late).await, Some(2));
    }

    #[tokio::test]
    async fn beyond_the_limit_none_is_begun() {
        let flights = SingleFlight::new(2);
        let late = Instant::now() + Duration::from_secs(10);
        let slow = || async { tokio::time::sleep(Duration::from_millis(50)).await };
        let (one, two) = (flights.join("a", slow).unwrap(), flights.join("b", slow).unwrap());
        assert!(flights.join("c", slow).is_none());
        assert!(flights.join("a", slow).is_some(), "who asks for the same shares it");
        assert!(one.wait(late).await.is_some() && two.wait(late).await.is_some());
        assert!(flights.join("c", slow).is_some());
    }
}
