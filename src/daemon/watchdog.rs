//! Feeds systemd's watchdog while the tasks get on.
//!
//! Takes: the progress that the tasks record ([`Metrics::heartbeat`]). Gives: `WATCHDOG=1` at a third of the time that systemd
//! allows, unless a task stands still for longer than it may; then nothing, and systemd ends and restarts the daemon.
//! Limits: the counting and the scheduler wait for the disk, [`STORE_LIMIT`]; a listener waits for nothing,
//! [`LISTENER_LIMIT`].
//! Without `WATCHDOG_USEC` it does nothing.

use std::time::{Duration, Instant};

use crate::metrics::Metrics;

/// How long a task that writes to the store may make no progress: a disk may be slow, a store large.
pub(crate) const STORE_LIMIT: Duration = Duration::from_secs(300);

/// How long a task that accepts connections may make no progress.
pub(crate) const LISTENER_LIMIT: Duration = Duration::from_secs(30);

/// Feeds for ever.
pub(crate) async fn feed(metrics: Metrics) {
    let Some(allowed) = sd_notify::watchdog_enabled() else { return };
    feed_with(metrics, allowed / 3, || {
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
            tracing::warn!("watchdog: systemd not told: {error}; going on");
        }
    })
    .await;
}

async fn feed_with(metrics: Metrics, every: Duration, feed: impl Fn()) {
    let mut starving = false;
    loop {
        let stuck = metrics.stalled_tasks(Instant::now());
        if stuck.is_empty() {
            feed();
        } else if !starving {
            tracing::error!("watchdog: no progress: {}; systemd is not told that all is well", stuck.join(", "));
        }
        starving = !stuck.is_empty();
        tokio::time::sleep(every).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_task_that_stands_still_stops_it_and_one_that_gets_on_again_goes_on() {
        let (metrics, fed) = (Metrics::default(), Arc::new(AtomicUsize::new(0)));
        let limit = Duration::from_millis(400);
        metrics.expect_heartbeats([("counting".to_owned(), limit)]);
        let count = Arc::clone(&fed);
        let every = Duration::from_millis(20);
        let feed = move || {
            count.fetch_add(1, Ordering::Relaxed);
        };
        let task = tokio::spawn(feed_with(metrics.clone(), every, feed));
        let until = async |done: &dyn Fn(usize) -> bool| {
            let begin = Instant::now();
            while !done(fed.load(Ordering::Relaxed)) {
                assert!(begin.elapsed() < Duration::from_secs(20));
                tokio::time::sleep(every).await;
            }
        };
        until(&|fed| fed > 2).await;
        while metrics.stalled_tasks(Instant::now()).is_empty() {
            tokio::time::sleep(every).await;
        }
        // One that was under way may still come.
        tokio::time::sleep(4 * every).await;
        let starved = fed.load(Ordering::Relaxed);
        tokio::time::sleep(10 * every).await;
        assert_eq!(fed.load(Ordering::Relaxed), starved);
        metrics.heartbeat("counting");
        until(&|fed| fed > starved).await;
        task.abort();
    }
}
