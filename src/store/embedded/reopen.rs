//! Opens the embedded store's files again after a write that failed, and settles what became of that write.
//!
//! Takes: a store whose commit has failed. Gives: the files open again, and whether that commit is on disk.
//! Limits: one try in [`REOPEN_INTERVAL`], by whoever reads or writes next; one batch is remembered.
//! When it fails: the store stays closed, reads and writes are errors, and the next try comes; the host's disk may be
//! full for days. Damage is not mended while others work on the store: what they remember is ahead of what is stored.
//! Then it stays closed until [`EmbeddedStore::recover`].
//! Not here: what is done with damage (`open.rs`).

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::open::{VerifiedFiles, open_acknowledged, open_files, open_from_log, open_or_set_aside};
use super::{EmbeddedStore, NOT_KEPT, SPARE_BYTES, SledFiles, State, catch_panic, disk_error, write_acknowledged};
use parking_lot::Mutex;

use crate::store::format::StoreChecksum;
use crate::store::{Batch, StoreError};

/// The least time between two attempts to open the files again: each reads all that is stored.
const REOPEN_INTERVAL: Duration = Duration::from_secs(5);

/// How much is written anew at once, in octets.
const CHUNK: usize = 1024 * 1024;

/// A commit that failed.
pub(super) struct FailedCommit {
    pub(crate) error: StoreError,
    /// The store's checksum if the commit is on disk all the same.
    pub(crate) checksum: StoreChecksum,
    /// The host had taken it; it is the sync that failed.
    pub(crate) handed_over: bool,
}

/// Why the files are closed.
pub(super) struct ClosedReason {
    cause: String,
    /// The checksum after the commit that failed: if it is found, the commit is on disk.
    checksum: StoreChecksum,
    /// Its batch, whose writer was told that this is not known.
    pub(crate) batch: Option<Batch>,
    /// The kernel may hold as written what the disk has refused: the log has to be written again.
    rewrite_needed: bool,
    /// The last try found damage.
    damaged: bool,
    /// So did the one before: nothing more is tried.
    given_up: bool,
}

impl EmbeddedStore {
    /// Waits until damage is found that only [`EmbeddedStore::recover`] can repair.
    pub(crate) async fn wait_for_damage(&self) {
        self.damage_found.notified().await;
    }

    /// Deals with the damage as [`EmbeddedStore::open`] does, and says whether commits are gone. To be called when nobody is
    /// at work on the store any more; all that is remembered of it must be read anew.
    pub(super) fn recover(&self) -> Result<bool, StoreError> {
        let mut state = self.state.write();
        if state.files.is_ok() {
            return Ok(false);
        }
        let (_, number) = open_acknowledged(&self.store_folder)?;
        let found =
            open_or_set_aside(&self.store_folder, self.clock, &self.acknowledged, number.max(state.checksum.commits))?;
        let went_back = found.moved_aside.is_some() || found.missing_commits > 0;
        *state = State {
            files: Ok(found.files),
            preloaded: Mutex::new(found.preloaded),
            checksum: found.checksum,
            known_policies: Default::default(),
            last_reopen: None,
            already_stored: None,
            rewrite_above: SPARE_BYTES,
        };
        Ok(went_back)
    }

    /// Opens the files again if they are closed, however soon after the last try, and repairs what is damaged; returns whether
    /// commits are gone. To be called when nobody counts or sends.
    pub(crate) fn reopen_now(&self) -> Result<bool, StoreError> {
        let mut state = self.state.write();
        if !matches!(&state.files, Err(reason) if reason.given_up) {
            state.last_reopen = None;
            return self.reopen_if_closed(&mut state).map(|()| false);
        }
        drop(state);
        self.recover()
    }

    /// Closes the files after a commit that failed and opens them again at once. `Ok` if the commit is on disk; an error
    /// if it is not. If the files stay closed it is not known.
    pub(super) fn resolve_failed_commit(&self, state: &mut State, failed: FailedCommit) -> Result<(), StoreError> {
        let FailedCommit { error, checksum, handed_over } = failed;
        let reason = ClosedReason {
            cause: error.to_string().trim_end_matches(NOT_KEPT).to_owned(),
            checksum,
            batch: None,
            rewrite_needed: handed_over || !is_disk_full(&error),
            damaged: false,
            given_up: false,
        };
        if let Ok(files) = std::mem::replace(&mut state.files, Err(reason)) {
            close_files(files);
        }
        match self.reopen_if_closed(state) {
            Ok(()) if state.checksum == checksum => Ok(()),
            Ok(()) => Err(error),
            Err(_) => {
                let error = error.to_string();
                let cause = error.trim_end_matches(NOT_KEPT);
                let error = format!("{cause}; whether this write is kept is known when the store can be opened again");
                Err(StoreError::Io(std::io::Error::other(error)))
            }
        }
    }

    /// Closes the files and opens them again, so that sled has no page in memory.
    pub(super) fn reopen_to_free_memory(&self, state: &mut State) {
        self.close_while(state, "it was closed to free memory", || ());
    }

    /// Closes the files, calls `work`, and opens them again. If they cannot be opened, they stay closed as after a write that
    /// failed.
    pub(super) fn close_while<T>(&self, state: &mut State, cause: &str, work: impl FnOnce() -> T) -> T {
        let closed = ClosedReason {
            cause: cause.to_owned(),
            checksum: state.checksum,
            batch: None,
            rewrite_needed: false,
            damaged: false,
            given_up: false,
        };
        match std::mem::replace(&mut state.files, Err(closed)) {
            Ok(files) => close_files(files),
            reason => {
                state.files = reason;
                return work();
            }
        }
        let done = work();
        match open_files(&self.folder) {
            Ok(files) => state.files = Ok(files),
            Err(error) => tracing::warn!("{error}; it is tried again with the next read or write"),
        }
        done
    }

    /// Opens the files again if they are closed and the last attempt was at least [`REOPEN_INTERVAL`] ago.
    pub(super) fn reopen_if_closed(&self, state: &mut State) -> Result<(), StoreError> {
        let Err(reason) = &mut state.files else { return Ok(()) };
        if reason.given_up || state.last_reopen.is_some_and(|tried| tried.elapsed() < REOPEN_INTERVAL) {
            return Err(self.closed_error(state));
        }
        let opened = self.reopen(reason, state.checksum);
        state.last_reopen = Some(Instant::now());
        match opened {
            Ok((files, checksum)) => {
                let shown = self.folder.display();
                tracing::warn!("store: {shown}: opened again: {}; it goes on, nothing is lost", reason.cause);
                if checksum == reason.checksum {
                    // A batch that was there before and was not asked for again stays known.
                    state.already_stored = reason.batch.take().or(state.already_stored.take());
                }
                // What is remembered of the batch that failed may not be there.
                state.known_policies.clear();
                (state.files, state.checksum) = (Ok(files), checksum);
                Ok(())
            }
            Err(error) => {
                let found = matches!(error, StoreError::Corrupt(_));
                // Once may be the disk's trouble that shows as damage.
                reason.given_up = found && reason.damaged;
                reason.damaged = found;
                reason.cause = error.to_string().trim_end_matches(NOT_KEPT).to_owned();
                if reason.given_up {
                    self.damage_found.notify_one();
                }
                Err(self.closed_error(state))
            }
        }
    }

    /// Opens the files, which must stand at `last` or at the commit that failed.
    fn reopen(&self, reason: &mut ClosedReason, last: StoreChecksum) -> Result<(SledFiles, StoreChecksum), StoreError> {
        if reason.rewrite_needed {
            rewrite_file(&self.folder.join("db")).map_err(|e| disk_error(&self.folder, &e))?;
            reason.rewrite_needed = false;
        }
        let VerifiedFiles { files, checksum, .. } =
            open_from_log(&self.store_folder, self.clock, |line| tracing::warn!("{line}"))?;
        if checksum != last && checksum != reason.checksum {
            close_files(files);
            return Err(StoreError::Corrupt(format!(
                "store: {}: damaged: it stands at commit {}, {} were acknowledged; nothing is read",
                self.folder.display(),
                checksum.commits,
                last.commits
            )));
        }
        if let Err(e) = write_acknowledged(&self.acknowledged, checksum) {
            close_files(files);
            return Err(disk_error(&self.folder, &e));
        }
        Ok((files, checksum))
    }

    /// The error of reads and writes while the files are closed.
    pub(super) fn closed_error(&self, state: &State) -> StoreError {
        let shown = self.folder.display();
        match &state.files {
            Err(reason) if reason.given_up => StoreError::Corrupt(reason.cause.clone()),
            Err(reason) => {
                let (cause, every) = (&reason.cause, REOPEN_INTERVAL.as_secs());
                StoreError::Io(std::io::Error::other(format!(
                    "store: {shown}: closed: {cause}; nothing is read or written until it \
                     can be opened again, which is tried every {every} s"
                )))
            }
            Ok(_) => StoreError::Io(std::io::Error::other(format!(
                "store: {shown}: was closed: it is open again; try again"
            ))),
        }
    }
}

/// Closes sled's files. sled writes what it still holds, and panics if it cannot.
fn close_files(files: SledFiles) {
    let folder = files.folder.clone();
    if let Err(e) = catch_panic(&folder, || {
        drop(files);
        Ok(())
    }) {
        tracing::debug!("{e}");
    }
}

/// Whether the disk refused the write because it is full: then everything that the kernel holds as written is on disk.
fn is_disk_full(error: &StoreError) -> bool {
    let full = |e: &std::io::Error| {
        matches!(e.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
    };
    matches!(error, StoreError::Io(e) if full(e))
}

/// Writes a file's content over itself and syncs it. After a sync that failed, Linux holds in memory, as written,
/// what the disk has not: it would be read, and gone after the next loss of power.
fn rewrite_file(path: &Path) -> std::io::Result<()> {
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
