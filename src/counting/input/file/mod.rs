//! Follows one log file over rotation and truncation.
//!
//! Takes: a path and a position. Gives: blocks of whole lines, in order, each line once, each block with the position after it.
//! Without a position it begins at the start of the file that is there: days that are too old are dropped by the counting.
//! Limits: `MAX_BLOCK` bytes a block, `MAX_LINE` bytes a line; longer lines are skipped and counted, NULs before a line
//! (the hole that truncation leaves under a writer that does not append) are skipped.
//! When it fails: a missing file is waited for, and said once; one that cannot be read is an error that names it.
//! What was rotated away while nobody looked is found by its bytes among the files beside it, beside the target of a
//! symlink and in the folders below (`mail.log.1`, `mail.log-20261122.gz`, …). A log that lost its end, and may have grown
//! again (power loss), a copy and an edited one continue after the newest counted line that is left. What is lost is logged.
//! Not here: files compressed otherwise than by gzip, which are named; what a line means (`parsers`).

pub mod file_system;
pub mod follow;
mod locate;
mod open_log;
mod rotated;
mod rotated_name;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linemux::MuxedEvents;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use self::file_system::{HostFileSystem, LogFileSystem};
use self::follow::{FollowStep, LogReader, POLL_INTERVAL};
use self::locate::Fit;
use self::open_log::OpenLog;
pub use self::rotated::InputPaths;
use crate::counting::input::file_position::FilePosition;
use crate::counting::input::{InputError, LineBlock, Position};

/// Whether `other` has the name of a rotated file of `log`, packed or not.
pub(crate) fn is_rotated(log: &Path, other: &Path) -> bool {
    rotated::is_rotated_name(log, other)
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

/// Follows one log file.
pub struct FileFollower {
    /// `None` during a poll.
    reader: Option<Box<LogReader>>,
    /// The running poll: stored here, so that nothing is lost if the future of `next` is dropped.
    poll: Option<JoinHandle<PollResult>>,
    /// When a poll found nothing, and how long to wait after it.
    backoff: Option<(Instant, Duration)>,
    path: PathBuf,
    changes: Option<ChangeNotifier>,
}

/// The reader, which returns from its thread with the result.
type PollResult = (Box<LogReader>, Result<FollowStep, InputError>);

impl FileFollower {
    /// Follows `path`, from `position` if there is one. Nothing is opened before [`FileFollower::next`].
    pub fn new(path: impl Into<PathBuf>, position: Option<Position>) -> FileFollower {
        FileFollower::among(InputPaths::default(), path, position, QUIET_PERIOD)
    }

    /// The same beside other inputs, whose files are never taken for rotated ones of this.
    pub(crate) fn beside(inputs: &InputPaths, path: impl Into<PathBuf>, position: Option<Position>) -> FileFollower {
        FileFollower::among(Arc::clone(inputs), path, position, QUIET_PERIOD)
    }

    /// The same, for writers that are known to close a rotated file within `quiet`.
    pub fn with_quiet_period(path: impl Into<PathBuf>, position: Option<Position>, quiet: Duration) -> FileFollower {
        FileFollower::among(InputPaths::default(), path, position, quiet)
    }

    fn among(
        inputs: InputPaths,
        path: impl Into<PathBuf>,
        position: Option<Position>,
        quiet: Duration,
    ) -> FileFollower {
        let path = path.into();
        let files = Arc::new(HostFileSystem);
        let reader = Some(Box::new(LogReader::new(files, path.clone(), position, quiet, inputs)));
        FileFollower { reader, poll: None, backoff: None, path, changes: None }
    }

    /// The next lines. At the end of what is there, one block says so (`at_end`; with lines or without), and the call
    /// after it waits until there is more.
    ///
    /// Nothing is lost where the future is dropped. An error is returned once for as long as it stands the same; the
    /// next call waits until that changes. Needs a tokio runtime with its timer.
    pub async fn next(&mut self) -> Result<LineBlock, InputError> {
        loop {
            if let Some((since, pause)) = self.backoff {
                let changes = self.changes.get_or_insert_with(|| ChangeNotifier::watch(self.path.clone()));
                tokio::time::sleep_until(since + MIN_POLL_INTERVAL).await;
                let _ = tokio::time::timeout_at(
                    since + pause.clamp(MIN_POLL_INTERVAL, POLL_INTERVAL),
                    changes.changed.notified(),
                )
                .await;
                self.backoff = None;
            }
            match self.poll_once().await? {
                FollowStep::Read(block) => return Ok(block),
                FollowStep::Wait(pause) => self.backoff = Some((Instant::now(), pause)),
            }
        }
    }

    /// Polls the file once, on a blocking thread.
    async fn poll_once(&mut self) -> Result<FollowStep, InputError> {
        if let Some(mut reader) = self.reader.take() {
            self.poll = Some(tokio::task::spawn_blocking(move || {
                let step = reader.step();
                (reader, step)
            }));
        }
        let stopped =
            || InputError::Stopped(format!("input: {}: not read any more: we are ending", self.path.display()));
        let poll = self.poll.as_mut().ok_or_else(stopped)?;
        let done = poll.await;
        self.poll = None;
        match done {
            Ok((reader, step)) => {
                self.reader = Some(reader);
                step
            }
            Err(e) => match e.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(stopped()),
            },
        }
    }
}

/// Notifies of changes to a file: linemux's events, reduced to one bit so that nothing piles up while the store is slow.
/// If they fail, the file is polled every [`POLL_INTERVAL`].
struct ChangeNotifier {
    changed: Arc<Notify>,
    _task: JoinSet<()>,
}

impl ChangeNotifier {
    fn watch(path: PathBuf) -> ChangeNotifier {
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let watched = async {
                let mut events = MuxedEvents::new()?;
                events.add_file(&path).await?;
                while events.next_event().await?.is_some() {
                    notify.notify_one();
                }
                Ok::<_, std::io::Error>(())
            };
            if let Err(e) = watched.await {
                let (path, pause) = (path.display(), POLL_INTERVAL.as_millis());
                tracing::warn!("input: {path}: no notice of changes: {e}; it is looked at every {pause} ms");
            }
        });
        ChangeNotifier { changed, _task: task }
    }
}
