//! Follows one log file over rotation and truncation.
//!
//! Takes: a path and a mark. Gives: blocks of whole lines, in order, each line once, each block with the mark after it.
//! Without a mark it begins at the start of the file that is there: days that are too old are dropped by the counting.
//! Limits: `BLOCK` octets a block, `MAX_LINE` octets a line; longer lines are skipped and counted, NULs before a line
//! (the hole that truncation leaves under a writer that does not append) are skipped.
//! When it fails: a missing file is waited for, and said once; one that cannot be read is an error that names it.
//! What was rotated away while nobody looked is found by inode or by its first octets among the files beside it
//! (`mail.log.1`, `mail.log-20261122.gz`, …); what is not found is said, and the file that is there is read.
//! A file of which no more is there than how each line begins is not told from another one in its place.
//! Not here: files rotated into another folder or packed otherwise than by gzip; what a line means (`parsers`).

mod follow;
mod open_log;
mod rotated;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use linemux::MuxedEvents;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use self::follow::{POLL, Reader, Step};
use crate::counting::input::{Block, InputError, Mark};

/// Whether `other` has the name of a rotated file of `log`, packed or not.
pub fn is_rotated(log: &Path, other: &Path) -> bool {
    rotated::is_of(log, other)
}

/// The shortest time between two looks at the end of a file: a busy log is read in pieces worth a commit.
const PACE: Duration = Duration::from_millis(20);

/// How long a rotated file must not have grown before it is left for the next one. Its writer closes it when it is
/// told to, some time after the new file is there.
const QUIET: Duration = Duration::from_secs(1);

/// One log file, followed.
pub struct Follower {
    /// `None` while a look is under way.
    reader: Option<Box<Reader>>,
    /// The look under way: kept here, so that nothing is lost where `next` is dropped.
    look: Option<JoinHandle<Looked>>,
    /// When the last look was that found nothing, and how long to wait after it.
    rests: Option<(Instant, Duration)>,
    path: PathBuf,
    wake: Option<Wake>,
}

/// The reader comes back from its thread with what it found.
type Looked = (Box<Reader>, Result<Step, InputError>);

impl Follower {
    /// Follows `path`, from `mark` if there is one. Nothing is opened before [`Follower::next`].
    pub fn new(path: impl Into<PathBuf>, mark: Option<Mark>) -> Follower {
        Follower::with_quiet(path, mark, QUIET)
    }

    /// The same, for writers that are known to close a rotated file within `quiet`.
    pub fn with_quiet(path: impl Into<PathBuf>, mark: Option<Mark>, quiet: Duration) -> Follower {
        let path = path.into();
        let reader = Some(Box::new(Reader::new(path.clone(), mark, quiet)));
        Follower { reader, look: None, rests: None, path, wake: None }
    }

    /// The next lines. At the end of what is there, one block says so (`at_end`; with lines or without), and the call
    /// after it waits until there is more.
    ///
    /// Nothing is lost where the future is dropped. An error is returned once for as long as it stands the same; the
    /// next call waits until that changes. Needs a tokio runtime with its timer.
    pub async fn next(&mut self) -> Result<Block, InputError> {
        loop {
            if let Some((since, pause)) = self.rests {
                let wake = self.wake.get_or_insert_with(|| Wake::on(self.path.clone()));
                tokio::time::sleep_until(since + PACE).await;
                let _ = tokio::time::timeout_at(since + pause.clamp(PACE, POLL), wake.changed.notified()).await;
                self.rests = None;
            }
            match self.look().await? {
                Step::Read(block) => return Ok(block),
                Step::Wait(pause) => self.rests = Some((Instant::now(), pause)),
            }
        }
    }

    /// One look at the file, off the threads that answer.
    async fn look(&mut self) -> Result<Step, InputError> {
        if let Some(mut reader) = self.reader.take() {
            self.look = Some(tokio::task::spawn_blocking(move || {
                let step = reader.step();
                (reader, step)
            }));
        }
        let stopped =
            || InputError::Stopped(format!("input: {}: not read any more: we are ending", self.path.display()));
        let look = self.look.as_mut().ok_or_else(stopped)?;
        let done = look.await;
        self.look = None;
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

/// What tells us that a file has changed: linemux's events, boiled down to one bit so that nothing piles up while the
/// store is slow. Where they fail, [`POLL`] is all there is.
struct Wake {
    changed: Arc<Notify>,
    _task: JoinSet<()>,
}

impl Wake {
    fn on(path: PathBuf) -> Wake {
        let changed = Arc::new(Notify::new());
        let tell = Arc::clone(&changed);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let watched = async {
                let mut events = MuxedEvents::new()?;
                events.add_file(&path).await?;
                while events.next_event().await?.is_some() {
                    tell.notify_one();
                }
                Ok::<_, std::io::Error>(())
            };
            if let Err(e) = watched.await {
                let (path, pause) = (path.display(), POLL.as_millis());
                tracing::warn!("input: {path}: no notice of changes: {e}; it is looked at every {pause} ms");
            }
        });
        Wake { changed, _task: task }
    }
}
