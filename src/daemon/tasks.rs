//! Tasks that are started and stopped together.
//!
//! Takes: tasks by name. Gives: word when one ends by itself, and their end in order.
//! Limits: the time that the caller gives them to end.
//! When it fails: a task that does not end well, or not in time, is logged by its name.
//! Not here: what the tasks do.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};

use crate::base::shutdown::wait_for_shutdown;

/// Everything of one kind that runs, until it is drained.
pub(crate) struct TaskGroup {
    stop: watch::Sender<bool>,
    set: JoinSet<Result<(), String>>,
    names: HashMap<Id, String>,
}

impl TaskGroup {
    /// No tasks yet.
    pub(crate) fn new() -> TaskGroup {
        TaskGroup { stop: watch::channel(false).0, set: JoinSet::new(), names: HashMap::new() }
    }

    /// Turns true when the tasks are to end.
    pub(crate) fn shutdown(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub(crate) fn spawn(&mut self, name: String, task: impl Future<Output = Result<(), String>> + Send + 'static) {
        let id = self.set.spawn(task).id();
        self.names.insert(id, name);
    }

    /// Starts a task that takes a thread of its own.
    pub(crate) fn spawn_blocking(&mut self, name: String, task: impl FnOnce() -> Result<(), String> + Send + 'static) {
        let id = self.set.spawn_blocking(task).id();
        self.names.insert(id, name);
    }

    /// Waits until a task has ended by itself; which one and why, in one line.
    pub(crate) async fn ended(&mut self) -> String {
        let Some(ended) = self.set.join_next_with_id().await else { return std::future::pending().await };
        let (name, why) = self.describe_end(ended);
        format!("{name}: ended by itself: {why}; the daemon ends")
    }

    fn describe_end(&mut self, ended: Result<(Id, Result<(), String>), JoinError>) -> (String, String) {
        let (id, why) = match ended {
            Ok((id, Ok(()))) => (id, "no reason given".to_owned()),
            Ok((id, Err(why))) => (id, why),
            Err(error) => (error.id(), error.to_string()),
        };
        (self.names.remove(&id).unwrap_or_default(), why)
    }

    /// Tells all tasks to stop, and waits until they have. Logs those that are still busy after each `limit`.
    pub(crate) async fn drain(&mut self, limit: Duration) {
        while !self.drain_within(limit).await {}
    }

    /// Tells all tasks to stop, and waits until they have, or until the limit; returns whether all have.
    pub(crate) async fn drain_within(&mut self, limit: Duration) -> bool {
        self.stop.send_replace(true);
        let all = async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let well = matches!(ended, Ok((_, Ok(()))));
                let (name, why) = self.describe_end(ended);
                if !well {
                    tracing::warn!("{name}: did not end well: {why}; going on with the others");
                }
            }
        };
        if tokio::time::timeout(limit, all).await.is_err() {
            let names: Vec<&str> = self.names.values().map(String::as_str).collect();
            tracing::warn!("{}: still busy after {} s", names.join(", "), limit.as_secs());
        }
        self.names.is_empty()
    }
}

/// A task that ends well whenever it ends.
pub(crate) async fn run_task(task: impl Future<Output = ()>) -> Result<(), String> {
    task.await;
    Ok(())
}

/// A task that is dropped at shutdown.
pub(crate) async fn run_until_shutdown(
    mut shutdown: watch::Receiver<bool>,
    task: impl Future<Output = ()>,
) -> Result<(), String> {
    tokio::select! {
        () = task => Ok(()),
        () = wait_for_shutdown(&mut shutdown) => Ok(()),
    }
}
