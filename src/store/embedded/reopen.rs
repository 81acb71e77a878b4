//! Opens the embedded store's files again after a write that failed, and settles what became of that write.
//!
//! Takes: a store whose commit has failed. Gives: the files open again, and whether that commit is on disk.
//! Limits: one try in [`PAUSE`], by whoever reads or writes next; one batch is remembered.
//! When it fails: the store stays closed, reads and writes are errors, and the next try comes; the host's disk may be
//! full for days. Damage is not mended while others work on the store: what they remember is ahead of what is stored.
//! Then it stays closed until [`Embedded::recover`].
//! Not here: what is done with damage (`open.rs`).

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::open::{Started, acknowledged, find, open_files, start_from_log};
use super::{Embedded, Files, NOT_KEPT, State, acknowledge, guarded, io_fault};
use parking_lot::Mutex;

use crate::store::format::Seal;
use crate::store::{Batch, StoreError};

/// The least time between two tries: each reads all that is stored.
const PAUSE: Duration = Duration::from_secs(5);

/// How much is written anew at once, in octets.
const CHUNK: usize = 1024 * 1024;

/// A commit that failed.
pub(super) struct Failed {
    pub error: StoreError,
    /// The seal of the store if the commit is on disk all the same.
    pub seal: Seal,
    /// The host had taken it; it is the sync that failed.
    pub handed_over: bool,
}

/// Why the files are closed.
pub(super) struct Trouble {
    cause: String,
    /// The seal of the commit that failed: if it is found, the commit is on disk.
    seal: Seal,
    /// Its batch, whose writer was told that this is not known.
    pub batch: Option<Batch>,
    /// The host may hold as written what the disk has refused.
    unwritten: bool,
    /// The last try found damage.
    damaged: bool,
    /// So did the one before: nothing more is tried.
    given_up: bool,
}

impl Embedded {
    /// Waits until damage was found that only [`Embedded::recover`] deals with.
    pub async fn damaged(&self) {
        self.damage.notified().await;
    }

    /// Deals with the damage as [`Embedded::open`] does, and says whether commits are gone. To be called when nobody is
    /// at work on the store any more; all that is remembered of it must be read anew.
    pub fn recover(&self) -> Result<bool, StoreError> {
        let mut state = self.state.write();
        if state.files.is_ok() {
            return Ok(false);
        }
        let (_, number) = acknowledged(&self.home)?;
        let found = find(&self.home, self.clock, &self.acknowledged, number.max(state.seal.commits))?;
        let went_back = found.lost.is_some() || found.missing_commits > 0;
        *state = State {
            files: Ok(found.files),
            opening: Mutex::new(found.opening),
            seal: found.seal,
            remembered: Default::default(),
            tried: None,
            kept: None,
        };
        Ok(went_back)
    }

    /// Closes the files after a commit that failed and opens them again at once. Nothing wrong if the commit is on disk;
    /// an error with the files open: it is not.
    pub(super) fn settle_failed(&self, state: &mut State, failed: Failed) -> Result<(), StoreError> {
        let Failed { error, seal, handed_over } = failed;
        let trouble = Trouble {
            cause: error.to_string().trim_end_matches(NOT_KEPT).to_owned(),
            seal,
            batch: None,
            unwritten: handed_over || !refused(&error),
            damaged: false,
            given_up: false,
        };
        if let Ok(files) = std::mem::replace(&mut state.files, Err(trouble)) {
            close(files);
        }
        match self.settle(state) {
            Ok(()) if state.seal == seal => Ok(()),
            Ok(()) => Err(error),
            Err(_) => {
                let error = error.to_string();
                let cause = error.trim_end_matches(NOT_KEPT);
                let error = format!("{cause}; whether this write is kept is known when the store can be opened again");
                Err(StoreError::Io(std::io::Error::other(error)))
            }
        }
    }

    /// Closes the files and opens them again, so that sled has no page in memory. If they cannot be opened, that is as after
    /// a write that failed.
    pub(super) fn forget_pages(&self, state: &mut State) {
        let closed = Trouble {
            cause: "it was closed to free memory".to_owned(),
            seal: state.seal,
            batch: None,
            unwritten: false,
            damaged: false,
            given_up: false,
        };
        match std::mem::replace(&mut state.files, Err(closed)) {
            Ok(files) => close(files),
            trouble => {
                state.files = trouble;
                return;
            }
        }
        match open_files(&self.folder) {
            Ok(files) => state.files = Ok(files),
            Err(error) => tracing::warn!("{error}; it is tried again with the next read or write"),
        }
    }

    /// Opens the files again if they are closed and the last try is long enough ago.
    pub(super) fn settle(&self, state: &mut State) -> Result<(), StoreError> {
        let Err(trouble) = &mut state.files else { return Ok(()) };
        if trouble.given_up || state.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return Err(self.closed(state));
        }
        let opened = self.reopen(trouble, state.seal);
        state.tried = Some(Instant::now());
        match opened {
            Ok((files, seal)) => {
                let shown = self.folder.display();
                tracing::warn!("store: {shown}: opened again: {}; it goes on, nothing is lost", trouble.cause);
                if seal == trouble.seal {
                    // A batch that was there before and was not asked for again stays known.
                    state.kept = trouble.batch.take().or(state.kept.take());
                }
                // What is remembered of the batch that failed may not be there.
                state.remembered.clear();
                (state.files, state.seal) = (Ok(files), seal);
                Ok(())
            }
            Err(error) => {
                let found = matches!(error, StoreError::Corrupt(_));
                // Once may be the disk's trouble that shows as damage.
                trouble.given_up = found && trouble.damaged;
                trouble.damaged = found;
                trouble.cause = error.to_string().trim_end_matches(NOT_KEPT).to_owned();
                if trouble.given_up {
                    self.damage.notify_one();
                }
                Err(self.closed(state))
            }
        }
    }

    /// Opens the files, which must stand at `last` or at the commit that failed.
    fn reopen(&self, trouble: &mut Trouble, last: Seal) -> Result<(Files, Seal), StoreError> {
        if trouble.unwritten {
            write_anew(&self.folder.join("db")).map_err(|e| io_fault(&self.folder, &e))?;
            trouble.unwritten = false;
        }
        let Started { files, seal, .. } = start_from_log(&self.home, self.clock, |line| tracing::warn!("{line}"))?;
        if seal != last && seal != trouble.seal {
            close(files);
            return Err(StoreError::Corrupt(format!(
                "store: {}: damaged: it stands at commit {}, {} were acknowledged; nothing is read",
                self.folder.display(),
                seal.commits,
                last.commits
            )));
        }
        if let Err(e) = acknowledge(&self.acknowledged, seal) {
            close(files);
            return Err(io_fault(&self.folder, &e));
        }
        Ok((files, seal))
    }

    /// What whoever comes while the files are closed is told.
    pub(super) fn closed(&self, state: &State) -> StoreError {
        let shown = self.folder.display();
        match &state.files {
            Err(trouble) if trouble.given_up => StoreError::Corrupt(trouble.cause.clone()),
            Err(trouble) => {
                let (cause, every) = (&trouble.cause, PAUSE.as_secs());
                StoreError::Io(std::io::Error::other(format!(
                    "store: {shown}: closed after a write that failed: {cause}; nothing is read or written until it \
                     can be opened again, which is tried every {every} s"
                )))
            }
            Ok(_) => StoreError::Io(std::io::Error::other(format!(
                "store: {shown}: was closed: it is open again; try again"
            ))),
        }
    }
}

/// Lets go of sled's files. sled writes what it still holds, and panics where it cannot.
fn close(files: Files) {
    let folder = files.folder.clone();
    if let Err(e) = guarded(&folder, || {
        drop(files);
        Ok(())
    }) {
        tracing::debug!("{e}");
    }
}

/// Whether the disk took nothing: then all that the host holds as written is.
fn refused(error: &StoreError) -> bool {
    let full = |e: &std::io::Error| {
        matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    };
    matches!(error, StoreError::Io(e) if full(e))
}

/// Writes a file's octets over themselves and syncs it. After a sync that failed, Linux holds in memory, as written,
/// what the disk has not: it would be read, and gone after the next loss of power.
fn write_anew(path: &Path) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut chunk, at)?;
        if read == 0 {
            return file.sync_all();
        }
        file.write_all_at(&chunk[..read], at)?;
        at += read as u64;
    }
}
