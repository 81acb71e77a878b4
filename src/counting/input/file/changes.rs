//! Notices changes to followed logs: one watch for all of them, however many there are.
//!
//! Takes: paths, and logs whose files are closed. Gives: a notice for each change; several before it is taken are one.
//! The events are linemux's, of one inotify instance; a log whose file is closed is also looked at every [`SLEEPER_INTERVAL`],
//! because a folder on a network has no events.
//! Limits: none of its own; inotify's number of watches is the kernel's.
//! When it fails: a warning; the logs that have no events are polled.
//! Not here: what a change means (`follow`).

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use linemux::MuxedEvents;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::counting::input::file::follow::SleepingLog;

/// How often the logs whose files are closed are looked at.
const SLEEPER_INTERVAL: Duration = Duration::from_secs(1);

/// How long to wait before paths are watched anew of which no watch is left.
const REWATCH_DELAY: Duration = Duration::from_secs(5);

/// A path, and who is notified of its changes.
type WatchedPath = (PathBuf, Arc<Notify>);

/// The logs whose files are closed, each with who is notified of a change, by number.
type Sleepers = HashMap<u64, (SleepingLog, Arc<Notify>)>;

/// Watches the logs of all followers that share it.
#[derive(Default)]
pub(super) struct ChangeWatcher {
    sleepers: Arc<Mutex<Sleepers>>,
    state: Mutex<WatcherState>,
}

#[derive(Default)]
struct WatcherState {
    /// Where paths are added, once the tasks run.
    added: Option<mpsc::UnboundedSender<WatchedPath>>,
    next_sleeper: u64,
    tasks: JoinSet<()>,
}

/// A log that is looked at until this is dropped.
pub(super) struct Sleeper {
    number: u64,
    sleepers: Arc<Mutex<Sleepers>>,
}

impl ChangeWatcher {
    /// Watches a path, if it is one. Needs a tokio runtime with its timer.
    pub(super) fn watch(&self, path: Option<PathBuf>) -> Arc<Notify> {
        let changed = Arc::new(Notify::new());
        let mut state = self.state.lock();
        if state.added.is_none() {
            let (added, new) = mpsc::unbounded_channel();
            state.tasks.spawn(watch_paths(new));
            state.tasks.spawn(look_at_sleepers(Arc::clone(&self.sleepers)));
            state.added = Some(added);
        }
        if let Some((added, path)) = state.added.as_ref().zip(path) {
            // The task ends where events fail: the path is polled then.
            let _ = added.send((path, Arc::clone(&changed)));
        }
        changed
    }

    /// Looks at a log whose file is closed.
    pub(super) fn look_at(&self, log: SleepingLog, changed: &Arc<Notify>) -> Sleeper {
        let number = {
            let mut state = self.state.lock();
            state.next_sleeper += 1;
            state.next_sleeper
        };
        self.sleepers.lock().insert(number, (log, Arc::clone(changed)));
        Sleeper { number, sleepers: Arc::clone(&self.sleepers) }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.sleepers.lock().remove(&self.number);
    }
}

/// Passes the events of all paths on, reduced to one bit each, so that nothing piles up while the store is slow.
async fn watch_paths(mut new: mpsc::UnboundedReceiver<WatchedPath>) {
    if let Err(e) = pass_events(&mut new).await {
        tracing::warn!(error = %e, "input files: no notice of changes; the files are polled");
    }
}

async fn pass_events(new: &mut mpsc::UnboundedReceiver<WatchedPath>) -> io::Result<()> {
    let mut events = MuxedEvents::new()?;
    let mut watched: HashMap<PathBuf, Vec<Arc<Notify>>> = HashMap::new();
    loop {
        tokio::select! {
            added = new.recv() => {
                let Some((path, changed)) = added else { return Ok(()) };
                match events.add_file(&path).await {
                    Ok(path) => {
                        // Others may not be followed any more.
                        watched.retain(|_, all| {
                            all.retain(|changed| Arc::strong_count(changed) > 1);
                            !all.is_empty()
                        });
                        watched.entry(path).or_default().push(changed);
                    }
                    Err(e) => tracing::warn!(path = %path.display(), error = %e, "input file: no notice of changes; it is polled"),
                }
            }
            event = events.next_event(), if !watched.is_empty() => match event? {
                // Reading is one as well.
                Some(event) if event.kind.is_access() => {}
                Some(event) => {
                    let changed = event.paths.iter().filter_map(|path| watched.get(path)).flatten();
                    changed.for_each(|changed| changed.notify_one());
                }
                // All files are gone with their folder.
                None => {
                    tokio::time::sleep(REWATCH_DELAY).await;
                    for path in watched.keys() {
                        // What cannot be watched is polled.
                        let _ = events.add_file(path).await;
                    }
                }
            },
        }
    }
}

async fn look_at_sleepers(sleepers: Arc<Mutex<Sleepers>>) {
    loop {
        tokio::time::sleep(SLEEPER_INTERVAL).await;
        let sleepers = Arc::clone(&sleepers);
        let looked = tokio::task::spawn_blocking(move || {
            let all: Vec<(SleepingLog, Arc<Notify>)> = sleepers.lock().values().cloned().collect();
            all.iter().filter(|(log, _)| log.has_changed()).for_each(|(_, changed)| changed.notify_one());
        });
        // It fails only where the runtime ends.
        if looked.await.is_err() {
            return;
        }
    }
}
