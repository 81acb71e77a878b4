//! The connections of clients: how many are open, what they hold in memory, and which is closed for the others.
//!
//! Takes: what each connection is at. Gives: room for the next connection, whatever the clients do.
//! Limits: as many connections as descriptors allow beside [`RESERVED_DESCRIPTORS`] for everything else, and
//! [`MAX_CONNECTIONS`]; then those close that wait longest for their client. Three quarters of them for one requester
//! (`base::requester`); then its own connections close. [`MAX_BUFFERED`] of what clients have not read, or not sent to the
//! end; then those close that hold some of it for longest. [`IDLE_LIMIT`] without a request.
//! A connection whose answer is being made is never closed.
//! When it fails: where each connection waits for its answer, a new one waits until others end; where that is so of one
//! requester's share, its new connection is closed at once.
//! Not here: accepting (`listener`), what is said on a connection (`socketmap`, `readsocket`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use crate::base::requester::{Requester, share_of};
use crate::metrics::Metrics;

/// How many connections are open at once. Each has 16 KiB of socket buffer and a task: some 400 MB for all of them, in a
/// unit that may have 1 GB.
const MAX_CONNECTIONS: usize = 16_384;

/// Descriptors that connections leave to queries, fetches, logs, reports and the store; half of all where there are few.
const RESERVED_DESCRIPTORS: u64 = 2048;

/// How many bytes of answers and of unfinished requests wait for their clients, on all connections.
const MAX_BUFFERED: usize = 64 * 1024 * 1024;

/// How long a connection is kept without a request. Postfix closes its own after 100 s at the latest.
pub const IDLE_LIMIT: Duration = Duration::from_secs(600);

/// One of so many connections is closed where there are too many, and so many where they hold too much: looking for them
/// is seldom.
const CLOSED_AT_ONCE: usize = 64;

/// All connections of all sockets that clients ask on. Copies are the same.
#[derive(Clone)]
pub struct ClientConnections(Arc<Table>);

struct Table {
    began: Instant,
    limit: usize,
    max_buffered: usize,
    open: Mutex<OpenConnections>,
    next_id: AtomicU64,
    buffered: AtomicUsize,
    metrics: Metrics,
}

#[derive(Default)]
struct OpenConnections {
    by_id: HashMap<u64, Open>,
    /// How many of them each requester has.
    counts: HashMap<Requester, usize>,
}

struct Open {
    requester: Requester,
    state: Arc<State>,
    /// None until the task has begun.
    task: Option<AbortHandle>,
}

#[derive(Default)]
struct State {
    /// Since when it waits for its client, in milliseconds since the table began, and one; 0 while it does not.
    waiting_since: AtomicU64,
    /// What it holds meanwhile, in bytes.
    held: AtomicUsize,
}

/// One connection, as long as it is open.
pub struct ClientConnection {
    table: Arc<Table>,
    id: u64,
    requester: Requester,
    state: Arc<State>,
}

impl ClientConnections {
    /// None yet, and as many as the descriptors of this process allow.
    pub fn new(metrics: Metrics) -> ClientConnections {
        let descriptors = rlimit::getrlimit(rlimit::Resource::NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let beside_others = descriptors - RESERVED_DESCRIPTORS.min(descriptors / 2);
        let limit = usize::try_from(beside_others).unwrap_or(usize::MAX).min(MAX_CONNECTIONS);
        ClientConnections::with_limits(limit, MAX_BUFFERED, metrics)
    }

    fn with_limits(limit: usize, max_buffered: usize, metrics: Metrics) -> ClientConnections {
        ClientConnections(Arc::new(Table {
            began: Instant::now(),
            limit: limit.max(1),
            max_buffered,
            open: Mutex::default(),
            next_id: AtomicU64::new(0),
            buffered: AtomicUsize::new(0),
            metrics,
        }))
    }

    /// Whether there is room for one more. At the limit, a 64th of the connections is closed in advance: those that have
    /// waited longest for their clients.
    pub(crate) fn make_room(&self) -> bool {
        let mut open = self.0.open.lock();
        let limit = self.0.limit;
        if open.by_id.len() < limit {
            return true;
        }
        let count = (open.by_id.len() + 1 - limit).max(limit / CLOSED_AT_ONCE);
        let closed = close_longest_waiting(&mut open, count, &self.0.buffered, |_| true);
        self.0.metrics.add("connections_closed_for_room", closed as u64);
        open.by_id.len() < limit
    }

    /// How many may be open.
    pub(crate) fn limit(&self) -> usize {
        self.0.limit
    }

    /// Closes those that have waited for a request for [`IDLE_LIMIT`].
    pub(crate) fn close_idle(&self) {
        let until = self.0.now().saturating_sub(IDLE_LIMIT.as_millis() as u64);
        let mut open = self.0.open.lock();
        let closed = close_longest_waiting(&mut open, usize::MAX, &self.0.buffered, |open| {
            open.state.waiting_since.load(Ordering::Relaxed) <= until
        });
        self.0.metrics.add("connections_closed_idle", closed as u64);
    }

    /// A connection that was accepted now and waits for its first request. Nothing where the requester has its share of
    /// connections, and each of them waits for its answer.
    pub(crate) fn open(&self, requester: Requester) -> Option<ClientConnection> {
        let table = &self.0;
        let share = share_of(table.limit);
        let mut open = table.open.lock();
        let own = open.counts.get(&requester).copied().unwrap_or(0);
        if own >= share {
            let count = (own + 1 - share).max(share / CLOSED_AT_ONCE);
            let closed = close_longest_waiting(&mut open, count, &table.buffered, |open| open.requester == requester);
            table.metrics.add("connections_closed_for_room", closed.max(1) as u64);
            if closed == 0 {
                return None;
            }
        }
        let id = table.next_id.fetch_add(1, Ordering::Relaxed);
        let state = Arc::<State>::default();
        state.waiting_since.store(table.now(), Ordering::Relaxed);
        open.by_id.insert(id, Open { requester, state: Arc::clone(&state), task: None });
        *open.counts.entry(requester).or_default() += 1;
        Some(ClientConnection { table: Arc::clone(table), id, requester, state })
    }

    /// The task that serves a connection: it is what is ended to close it.
    pub(crate) fn served_by(&self, id: u64, task: AbortHandle) {
        if let Some(open) = self.0.open.lock().by_id.get_mut(&id) {
            open.task = Some(task);
        }
    }
}

impl OpenConnections {
    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.by_id.remove(&id)?;
        if let Entry::Occupied(mut count) = self.counts.entry(open.requester) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        Some(open)
    }
}

impl Table {
    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    /// Closes connections until what all of them hold is within the limit.
    fn release_buffers(&self) {
        let mut open = self.open.lock();
        let mut closed = 0;
        while self.buffered.load(Ordering::Relaxed) > self.max_buffered {
            let count = close_longest_waiting(&mut open, CLOSED_AT_ONCE, &self.buffered, |open| {
                open.state.held.load(Ordering::Relaxed) > 0
            });
            closed += count;
            if count == 0 {
                break;
            }
        }
        self.metrics.add("connections_closed_for_memory", closed as u64);
    }
}

/// Closes up to `count` of those that wait for their client and are `eligible`, the longest waiting first.
fn close_longest_waiting(
    open: &mut OpenConnections,
    count: usize,
    buffered: &AtomicUsize,
    eligible: impl Fn(&Open) -> bool,
) -> usize {
    let waiting = open.by_id.iter().filter(|(_, open)| open.task.is_some() && eligible(open));
    let mut waiting: Vec<(u64, u64)> = waiting
        .map(|(id, open)| (open.state.waiting_since.load(Ordering::Relaxed), *id))
        .filter(|(since, _)| *since > 0)
        .collect();
    if count < waiting.len() {
        waiting.select_nth_unstable(count);
        waiting.truncate(count);
    }
    let mut closed = 0;
    for (since, id) in waiting {
        // A request may have come meanwhile: a connection whose answer is being made is never closed.
        if open.by_id.get(&id).is_none_or(|open| open.state.waiting_since.load(Ordering::Relaxed) != since) {
            continue;
        }
        if let Some(Open { state, task: Some(task), .. }) = open.remove(id) {
            buffered.fetch_sub(state.held.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            task.abort();
            closed += 1;
        }
    }
    closed
}

impl ClientConnection {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Who asks on it.
    pub(crate) fn requester(&self) -> Requester {
        self.requester
    }

    /// From now on it waits for its client, and holds so many bytes meanwhile.
    pub(crate) fn wait_for_client(&self, held: usize) {
        self.state.waiting_since.store(self.table.now(), Ordering::Relaxed);
        self.hold(held);
    }

    /// The client has done what it was waited for.
    pub(crate) fn go_on(&self) {
        self.state.waiting_since.store(0, Ordering::Relaxed);
        self.hold(0);
    }

    fn hold(&self, held: usize) {
        let before = self.state.held.load(Ordering::Relaxed);
        if before == held {
            return;
        }
        let buffered = &self.table.buffered;
        // Closing it for the others may take away at the same time what it held.
        buffered.fetch_add(held, Ordering::Relaxed);
        buffered.fetch_sub(self.state.held.swap(held, Ordering::Relaxed), Ordering::Relaxed);
        if buffered.load(Ordering::Relaxed) > self.table.max_buffered {
            self.table.release_buffers();
        }
    }
}

impl Drop for ClientConnection {
    fn drop(&mut self) {
        self.table.open.lock().remove(self.id);
        self.table.buffered.fetch_sub(self.state.held.swap(0, Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::{JoinHandle, yield_now};

    use super::*;

    /// A connection of a requester of its own, whose task does nothing; its place in the order of waiting.
    fn client(connections: &ClientConnections, since: u64, held: usize) -> JoinHandle<()> {
        let requester = Requester::User(connections.0.next_id.load(Ordering::Relaxed) as u32);
        client_of(connections, requester, since, held)
    }

    fn client_of(connections: &ClientConnections, requester: Requester, since: u64, held: usize) -> JoinHandle<()> {
        let connection = connections.open(requester).unwrap();
        let id = connection.id();
        connection.wait_for_client(held);
        connection.state.waiting_since.store(since, Ordering::Relaxed);
        let task = tokio::spawn(async move {
            let _connection = connection;
            std::future::pending::<()>().await;
        });
        connections.served_by(id, task.abort_handle());
        task
    }

    async fn open(clients: &[JoinHandle<()>]) -> Vec<usize> {
        for _ in 0..10 {
            yield_now().await;
        }
        (0..clients.len()).filter(|n| !clients[*n].is_finished()).collect()
    }

    #[tokio::test]
    async fn those_that_wait_longest_are_closed_for_a_new_one() {
        let connections = ClientConnections::with_limits(4, 1000, Metrics::default());
        let clients: Vec<_> = [30, 0, 10, 20].map(|since| client(&connections, since, 0)).into();
        // The second one waits for its answer.
        for want in [vec![0, 1, 3], vec![0, 1], vec![1]] {
            assert!(connections.make_room());
            assert_eq!(open(&clients).await, want);
            std::mem::forget(client(&connections, 0, 0));
        }
        assert!(!connections.make_room());
        assert_eq!(open(&clients).await, [1]);
        assert_eq!(connections.0.metrics.counters()["connections_closed_for_room"], 3);
    }

    #[tokio::test]
    async fn what_is_held_for_longest_is_let_go() {
        let connections = ClientConnections::with_limits(1000, 1000, Metrics::default());
        let clients: Vec<_> =
            (1..=100).map(|since| client(&connections, since, usize::from(since % 10 == 0) * 100)).collect();
        assert_eq!(open(&clients).await.len(), 100);
        assert_eq!(connections.0.buffered.load(Ordering::Relaxed), 1000);
        let one_more = client(&connections, 101, 0);
        let last = connections.open(Requester::Daemon).unwrap();
        last.wait_for_client(1);
        let kept = open(&clients).await;
        assert!(!kept.contains(&9) && kept.contains(&0) && kept.contains(&98) && !one_more.is_finished());
        assert!(connections.0.buffered.load(Ordering::Relaxed) <= 1000);
        clients.iter().for_each(JoinHandle::abort);
        assert!(open(&clients).await.is_empty());
        last.go_on();
        assert_eq!(connections.0.buffered.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn an_idle_one_is_closed_in_the_end() {
        let mut connections = ClientConnections::with_limits(4, 1000, Metrics::default());
        let age = IDLE_LIMIT + Duration::from_secs(60);
        Arc::get_mut(&mut connections.0).unwrap().began = Instant::now() - age;
        let now = connections.0.now();
        // Idle for long, its answer being made, idle since a moment ago.
        let clients = [1, 0, now].map(|since| client(&connections, since, 0));
        connections.close_idle();
        assert_eq!(open(&clients).await, [1, 2]);
    }

    #[tokio::test]
    async fn one_requester_leaves_connections_to_the_others() {
        let (one, other) = (Requester::User(1000), Requester::User(33));
        let connections = ClientConnections::with_limits(8, 1000, Metrics::default());
        let mut clients: Vec<_> = [0, 20, 10, 0, 0, 0].map(|since| client_of(&connections, one, since, 0)).into();
        // At its share its own connection that waits longest for its client is closed.
        clients.push(client_of(&connections, one, 0, 0));
        assert_eq!(open(&clients).await, [0, 1, 3, 4, 5, 6]);
        clients.push(client_of(&connections, one, 0, 0));
        assert_eq!(open(&clients).await, [0, 3, 4, 5, 6, 7]);
        assert!(connections.open(one).is_none(), "each of its connections waits for its answer");
        assert_eq!(connections.0.metrics.counters()["connections_closed_for_room"], 3);
        let others: Vec<_> = (0..2).map(|_| client_of(&connections, other, 30, 0)).collect();
        assert_eq!((open(&others).await.len(), open(&clients).await.len()), (2, 6));
        clients.iter().chain(&others).for_each(JoinHandle::abort);
        assert!(open(&clients).await.is_empty() && connections.0.open.lock().counts.is_empty());
    }
}
