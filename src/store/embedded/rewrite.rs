//! Writes the embedded store anew when it takes much more room than what it holds: sled frees the room of what was changed or
//! removed late.
//!
//! Takes: an open store after a commit, or when it was just opened. Gives: the same store in files that hold nothing else.
//! Limits: [`SPARE_BYTES`] and twice what it holds; then readers and writers wait for as long as a backup takes. Needs room
//! for a copy.
//! When it fails: the store stays as it was, and that is logged; it is tried again when it has grown by half. The old files
//! are removed only once the new ones are open. A host that goes down in the middle has the old files or the new ones,
//! whole: they change places in one step.
//! Not here: how a copy is made (`copy.rs`).

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::copy::write_copy;
use super::open::{BACKUP_PREFIX, SLED_FOLDER};
use super::{EmbeddedStore, SPARE_BYTES, State, disk_error, file_sizes};
use crate::store::StoreError;

impl EmbeddedStore {
    /// Writes the store anew if it is much larger than what it holds.
    pub(super) fn rewrite_if_large(&self, state: &mut State) {
        let Ok(files) = &state.files else { return };
        let length = files.log.metadata().map_or(0, |meta| meta.len());
        if length <= state.rewrite_above {
            return;
        }
        let mut held = 0;
        let read = files.scan_range(Vec::new(), None, |key, value| {
            held += (key.len() + value.len()) as u64;
            Ok(true)
        });
        state.rewrite_above = 2 * held + SPARE_BYTES;
        if read.is_err() || length <= state.rewrite_above {
            return;
        }
        let shown = self.folder.display();
        match self.rewrite(state) {
            Ok(()) => {
                let now = file_sizes(&self.folder).unwrap_or(held);
                state.rewrite_above = 2 * now + SPARE_BYTES;
                tracing::info!(store = %shown, before = length, after = now, "store: rewritten in fewer bytes");
            }
            Err(error) => {
                state.rewrite_above = length + (length / 2).max(SPARE_BYTES);
                tracing::warn!(store = %shown, bytes = length, %error, "store: cannot be rewritten; it stays as it is");
            }
        }
    }

    fn rewrite(&self, state: &mut State) -> Result<(), StoreError> {
        // What is left of one at a start is removed there, as a copy that nobody fetched.
        let rewritten = self.store_folder.join(format!("{BACKUP_PREFIX}rewritten"));
        let failed = |e: io::Error| disk_error(&rewritten, &e);
        let Ok(files) = &state.files else { return Err(self.closed_error(state)) };
        let _ = fs::remove_dir_all(&rewritten);
        fs::create_dir(&rewritten).map_err(failed)?;
        if let Err(error) = write_copy(files, &rewritten) {
            // What cannot be removed takes room, and no more.
            let _ = fs::remove_dir_all(&rewritten);
            return Err(error);
        }
        self.put_in_place(state, &rewritten)?;
        let _ = fs::remove_dir_all(&rewritten);
        Ok(())
    }

    /// Exchanges the store's files for those in `rewritten`, and opens them. If that fails, it exchanges them back: both
    /// are kept then.
    pub(super) fn put_in_place(&self, state: &mut State, rewritten: &Path) -> Result<(), StoreError> {
        let exchange = || -> io::Result<()> {
            renameat_with(CWD, rewritten.join(SLED_FOLDER), CWD, &self.folder, RenameFlags::EXCHANGE)?;
            Ok(())
        };
        let failed = |e: io::Error| disk_error(rewritten, &e);
        let synced = || fs::File::open(&self.store_folder)?.sync_all();
        self.close_while(state, "it is being rewritten", || {
            exchange()?;
            synced().or_else(|error| exchange().and(Err(error)))
        })
        .map_err(failed)?;
        if state.files.is_err() {
            exchange().and_then(|()| synced()).map_err(failed)?;
            state.last_reopen = None;
            self.reopen_if_closed(state)?;
            return Err(failed(io::Error::other("what was rewritten cannot be opened")));
        }
        Ok(())
    }
}
