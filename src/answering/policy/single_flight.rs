//! One piece of work per key, however many ask for it; it goes on when they have gone.
//!
//! Takes: a key, who asks, and the work. Gives: a [`Flight`] that every asker can wait for, each as long as it likes. Work
//! that knows its result before it ends publishes it ([`Publisher`]).
//! Limits: so many flights at once as are allowed, three quarters of them for one requester (`base::requester`), and a
//! number of its own for what the daemon begins by itself; beyond, no work is begun. Work belongs to who began it: who
//! joins it takes no more room.
//! When it fails: work that panics gives its askers nothing, and the key is free again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::base::requester::{Requester, share_of};

/// The work under way, at most one piece a key.
pub struct SingleFlight<T> {
    table: Arc<Mutex<FlightTable<T>>>,
    tasks: Mutex<JoinSet<()>>,
    limit: usize,
    background_limit: usize,
}

struct FlightTable<T> {
    flights: HashMap<String, Flight<T>>,
    /// How many of them each requester has begun.
    begun: HashMap<Requester, usize>,
}

/// One piece of work under way.
#[derive(Clone)]
pub struct Flight<T> {
    /// When it began.
    pub began: Instant,
    done: watch::Receiver<Option<T>>,
}

impl<T: Clone + Send + Sync + 'static> SingleFlight<T> {
    /// Nothing under way; at most `limit` pieces of work at once for all who ask, and besides `background_limit` for the
    /// daemon itself.
    pub fn new(limit: usize, background_limit: usize) -> SingleFlight<T> {
        let table = FlightTable { flights: HashMap::new(), begun: HashMap::new() };
        SingleFlight { table: Arc::new(Mutex::new(table)), tasks: Mutex::new(JoinSet::new()), limit, background_limit }
    }

    /// The work under way for `key`, or `work`, begun now for `requester`; nothing where there is no room for more.
    pub fn join<F>(&self, key: &str, requester: Requester, work: impl FnOnce() -> F) -> Option<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.join_publishing(key, requester, |_| work())
    }

    /// The same for work that may give its result before it ends.
    pub fn join_publishing<F>(
        &self,
        key: &str,
        requester: Requester,
        work: impl FnOnce(Publisher<T>) -> F,
    ) -> Option<Flight<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut table = self.table.lock();
        if let Some(flight) = table.flights.get(key) {
            return Some(flight.clone());
        }
        if !self.has_room(&table, requester) {
            return None;
        }
        let (sender, done) = watch::channel(None);
        let flight = Flight { began: Instant::now(), done };
        table.flights.insert(key.to_owned(), flight.clone());
        *table.begun.entry(requester).or_default() += 1;
        drop(table);
        let end = KeyGuard { table: Arc::clone(&self.table), key: key.to_owned(), requester };
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

    fn has_room(&self, table: &FlightTable<T>, requester: Requester) -> bool {
        let begun = |by| table.begun.get(&by).copied().unwrap_or(0);
        let own = begun(requester);
        match requester {
            Requester::Daemon => own < self.background_limit,
            Requester::User(_) | Requester::Address(_) | Requester::Administrator => {
                own < share_of(self.limit) && table.flights.len() - begun(Requester::Daemon) < self.limit
            }
        }
    }

    /// Whether the work for a key is under way.
    pub fn is_under_way(&self, key: &str) -> bool {
        self.table.lock().flights.contains_key(key)
    }

    /// How many pieces of work are under way.
    pub fn len(&self) -> usize {
        self.table.lock().flights.len()
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
    table: Arc<Mutex<FlightTable<T>>>,
    key: String,
    requester: Requester,
}

impl<T> Drop for KeyGuard<T> {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        table.flights.remove(&self.key);
        if let Entry::Occupied(mut begun) = table.begun.entry(self.requester) {
            *begun.get_mut() -= 1;
            if *begun.get() == 0 {
                begun.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    const ONE: Requester = Requester::User(1000);
    const OTHER: Requester = Requester::User(33);

    #[tokio::test]
    async fn one_work_for_all_and_it_outlives_the_impatient() {
        let flights = SingleFlight::new(1, 0);
        let runs = Arc::new(AtomicUsize::new(0));
        let work = || {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(flights.join("a", ONE, work).unwrap().wait(soon).await, None);
        let late = Instant::now() + Duration::from_secs(10);
        let (one, two) = tokio::join!(
            flights.join("a", ONE, work).unwrap().wait(late),
            flights.join("a", ONE, work).unwrap().wait(late)
        );
        assert_eq!((one, two), (Some(1), Some(1)));
        assert!(flights.is_empty());
        assert_eq!(flights.join("a", ONE, work).unwrap().wait(late).await, Some(2));
    }

    #[tokio::test]
    async fn a_result_that_is_published_early_is_waited_for_no_longer() {
        let flights: SingleFlight<u8> = SingleFlight::new(1, 0);
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
        assert_eq!(flights.join_publishing("a", ONE, work).unwrap().wait(late).await, Some(1));
        let joined = flights.join("a", ONE, || async { 3 }).unwrap();
        assert_eq!((flights.len(), joined.wait(late).await), (1, Some(1)));
        go_on.notify_one();
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let flights: SingleFlight<u8> = SingleFlight::new(1, 0);
        let late = Instant::now() + Duration::from_secs(10);
        let fails = || async { if true { panic!("as the test wants") } else { 1 } };
        assert_eq!(flights.join("a", ONE, fails).unwrap().wait(late).await, None);
        assert_eq!(flights.join("a", ONE, || async { 2 }).unwrap().wait(late).await, Some(2));
    }

    #[tokio::test]
    async fn beyond_the_limit_none_is_begun() {
        let flights = SingleFlight::new(2, 1);
        let late = Instant::now() + Duration::from_secs(60);
        let go_on = Arc::new(tokio::sync::Semaphore::new(0));
        let slow = || {
            let go_on = Arc::clone(&go_on);
            async move { drop(go_on.acquire().await) }
        };
        let one = flights.join("a", ONE, slow).unwrap();
        let other = flights.join("b", OTHER, slow).unwrap();
        assert!(flights.join("c", ONE, slow).is_none());
        assert!(flights.join("a", OTHER, slow).is_some(), "who asks for the same shares it");
        assert!(flights.join("c", Requester::Daemon, slow).is_some(), "what the daemon begins has a limit of its own");
        assert!(flights.join("d", Requester::Daemon, slow).is_none());
        go_on.close();
        assert!(one.wait(late).await.is_some() && other.wait(late).await.is_some());
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(flights.join("c", ONE, slow).is_some());
    }

    #[tokio::test]
    async fn one_requester_leaves_room_for_the_others() {
        let flights = SingleFlight::new(8, 0);
        let key = |n: usize| n.to_string();
        let endless = std::future::pending::<u8>;
        let begun = (0..20).filter(|n| flights.join(&key(*n), ONE, endless).is_some()).count();
        assert_eq!(begun, 6, "three quarters");
        assert!(flights.join(&key(5), ONE, endless).is_some(), "who joins takes no room");
        assert!(flights.join(&key(5), OTHER, endless).is_some());
        assert!(flights.join(&key(6), OTHER, endless).is_some() && flights.join(&key(7), OTHER, endless).is_some());
        assert!(flights.join(&key(8), OTHER, endless).is_none(), "all of it is taken");
        flights.abort();
        while !flights.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(flights.table.lock().begun.is_empty());
        assert_eq!((0..20).filter(|n| flights.join(&key(*n), ONE, endless).is_some()).count(), 6);
    }
}
