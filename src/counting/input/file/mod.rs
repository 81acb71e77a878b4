//! Follows one log file over rotation and truncation.
//!
//! Takes: a path and a position. Gives: blocks of whole lines, in order, each line once, each block with the position after it.
//! Without a position it begins at the start of the file that is there: days that are too old are dropped by the counting.
//! Files that are named by their date are one log, which has the name of the series.
//! Limits: `MAX_BLOCK` bytes a block, [`MAX_READERS`] logs at a time, `MAX_LINE` bytes a line; longer lines are skipped and counted, NULs before a line
//! (the hole that truncation leaves under a writer that does not append) are skipped.
//! When it fails: a missing file is waited for, and said once; one that cannot be read is an error that names it.
//! What was rotated away while nobody looked is found by its bytes among the files beside it, beside the target of a
//! symlink and in the folders below (`mail.log.1`, `mail.log-20261122.gz`, …). A log that lost its end, and may have grown
//! again (power loss), a copy and an edited one continue after the newest counted line that is left. What is lost is logged.
//! Not here: files compressed otherwise than by gzip, which are named; what a line means (`parsers`).

mod changes;
pub mod file_system;
pub mod follow;
mod locate;
mod open_log;
mod rotated;
mod rotated_name;
mod series;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::changes::{ChangeWatcher, Sleeper};
use self::file_system::{HostFileSystem, LogFileSystem};
use self::follow::{FollowStep, LogReader, POLL_INTERVAL};
use self::locate::Fit;
use self::open_log::OpenLog;
pub use self::rotated::InputPaths;
pub(crate) use self::series::DatedSeries;
use crate::counting::input::file_position::FilePosition;
use crate::counting::input::{InputError, LineBlock, Position};

/// The logs of which a file of this name, packed or not, can be a rotated one.
pub(crate) fn possible_logs(path: &Path) -> Vec<PathBuf> {
    rotated::possible_logs(path)
}

/// Whether the log at `path` is the one of a position that is stored under another name.
pub(crate) fn is_log_of(path: &Path, position: &FilePosition) -> bool {
    let files: Arc<dyn LogFileSystem> = Arc::new(HostFileSystem);
    let Ok(mut log) = OpenLog::open(&files, path) else { return false };
    !position.head.is_empty()
        && position.head.matches(&log.head)
        && locate::locate(position, &mut log).is_ok_and(|fit| !matches!(fit, Fit::Before { .. }))
}

/// The log of which a file is a rotated one, where its name alone says so (`mail.log.1`).
pub(crate) fn log_of_rotated(path: &Path) -> Option<PathBuf> {
    rotated::log_of_numbered_name(path)
}

/// The shortest time between two polls at the end of a file: a busy log is read in blocks worth a commit.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a rotated file must not have grown before it is left for the next one. Its writer closes it when it is
/// told to, some time after the new file is there.
const QUIET_PERIOD: Duration = Duration::from_secs(1);

/// How long a log must have had no line before it is polled less often: its changes are noticed.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// How often an idle log is polled.
const IDLE_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The most logs that are read at the same time, each with a block in memory. Where there are more, the files of those
/// that were read to their end are closed.
const MAX_READERS: usize = 32;

/// What all followers share.
#[derive(Clone)]
pub struct FileInputs {
    /// The paths that are inputs of their own.
    pub(crate) paths: InputPaths,
    changes: Arc<ChangeWatcher>,
    readers: Arc<Semaphore>,
    /// How many wait until they may read.
    waiting: Arc<AtomicUsize>,
}

impl Default for FileInputs {
    fn default() -> FileInputs {
        FileInputs {
            paths: InputPaths::default(),
            changes: Arc::default(),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            waiting: Arc::default(),
        }
    }
}

/// Follows one log file.
pub struct FileFollower {
    /// `None` during a poll.
    reader: Option<Box<LogReader>>,
    /// The running poll: stored here, so that nothing is lost if the future of `next` is dropped.
    poll: Option<JoinHandle<PollResult>>,
    /// When a poll found nothing, and how long to wait after it.
    backoff: Option<(Instant, Duration)>,
    /// When lines were read last.
    active_at: Instant,
    path: PathBuf,
    shared: FileInputs,
    changed: Option<Arc<Notify>>,
    permit: Option<OwnedSemaphorePermit>,
    /// While the file is closed.
    sleeper: Option<Sleeper>,
}

/// The reader, which returns from its thread with the result.
type PollResult = (Box<LogReader>, Result<FollowStep, InputError>);

impl FileFollower {
    /// Follows `path`, from `position` if there is one. Nothing is opened before [`FileFollower::next`].
    pub fn new(path: impl Into<PathBuf>, position: Option<Position>) -> FileFollower {
        FileFollower::beside(&FileInputs::default(), path, position)
    }

    /// The same beside other inputs, whose files are never taken for rotated ones of this.
    pub fn beside(shared: &FileInputs, path: impl Into<PathBuf>, position: Option<Position>) -> FileFollower {
        FileFollower::among(shared.clone(), path, position, QUIET_PERIOD)
    }

    /// The same, for writers that are known to close a rotated file within `quiet`.
    pub fn with_quiet_period(path: impl Into<PathBuf>, position: Option<Position>, quiet: Duration) -> FileFollower {
        FileFollower::among(FileInputs::default(), path, position, quiet)
    }

    fn among(
        shared: FileInputs,
        path: impl Into<PathBuf>,
        position: Option<Position>,
        quiet: Duration,
    ) -> FileFollower {
        let path = path.into();
        let files = Arc::new(HostFileSystem);
        let inputs = Arc::clone(&shared.paths);
        let reader = Some(Box::new(LogReader::new(files, path.clone(), position, quiet, inputs)));
        FileFollower {
            reader,
            poll: None,
            backoff: None,
            active_at: Instant::now(),
            path,
            shared,
            changed: None,
            permit: None,
            sleeper: None,
        }
    }

    /// The next lines. At the end of what is there, one block says so (`at_end`; with lines or without), and the call
    /// after it waits until there is more.
    ///
    /// Nothing is lost where the future is dropped. An error is returned once for as long as it stands the same; the
    /// next call waits until that changes. Needs a tokio runtime with its timer.
    pub async fn next(&mut self) -> Result<LineBlock, InputError> {
        loop {
            if self.sleeper.is_some() {
                self.changed().notified().await;
                self.sleeper = None;
            }
            if let Some((since, pause)) = self.backoff {
                let changed = self.changed();
                tokio::time::sleep_until(since + MIN_POLL_INTERVAL).await;
                let longest = match self.active_at.elapsed() < IDLE_AFTER {
                    true => POLL_INTERVAL,
                    false => IDLE_POLL_INTERVAL,
                };
                let pause = if pause >= POLL_INTERVAL { longest } else { pause.max(MIN_POLL_INTERVAL) };
                let _ = tokio::time::timeout_at(since + pause, changed.notified()).await;
                self.backoff = None;
            }
            if self.permit.is_none() {
                self.permit = Some(self.wait_for_turn().await.map_err(|_| stopped(&self.path))?);
            }
            match self.poll_once().await {
                Ok(FollowStep::Read(block)) => {
                    self.active_at = Instant::now();
                    return Ok(block);
                }
                Ok(FollowStep::Wait(pause)) => {
                    self.backoff = Some((Instant::now(), pause));
                    self.make_room();
                }
                Err(e) => {
                    self.make_room();
                    return Err(e);
                }
            }
        }
    }

    /// The notice of changes of this log.
    fn changed(&mut self) -> Arc<Notify> {
        // Of a series it is not known which file will be the next one: it is polled.
        let watched = || Some(&self.path).filter(|path| DatedSeries::from_name(path).is_none());
        Arc::clone(self.changed.get_or_insert_with(|| self.shared.changes.watch(watched().cloned())))
    }

    async fn wait_for_turn(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.shared.waiting);
        Arc::clone(&self.shared.readers).acquire_owned().await
    }

    /// Lets others read where nothing is to be read here: without a file at once, else if somebody waits.
    fn make_room(&mut self) {
        let changed = self.changed();
        let Some(reader) = &mut self.reader else { return };
        if reader.is_open() {
            if self.shared.waiting.load(Ordering::Relaxed) == 0 {
                return;
            }
            if let Some(log) = reader.sleep() {
                self.sleeper = Some(self.shared.changes.look_at(log, &changed));
            }
        }
        self.permit = None;
    }

    /// Polls the file once, on a blocking thread.
    async fn poll_once(&mut self) -> Result<FollowStep, InputError> {
        if let Some(mut reader) = self.reader.take() {
            self.poll = Some(tokio::task::spawn_blocking(move || {
                let step = reader.step();
                (reader, step)
            }));
        }
        let Some(poll) = &mut self.poll else { return Err(stopped(&self.path)) };
        let done = poll.await;
        self.poll = None;
        match done {
            Ok((reader, step)) => {
                self.reader = Some(reader);
                step
            }
            Err(e) => match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(stopped(&self.path)),
            },
        }
    }
}

fn stopped(path: &Path) -> InputError {
    InputError::Stopped(format!("input: {}: not read any more: we are ending", path.display()))
}
