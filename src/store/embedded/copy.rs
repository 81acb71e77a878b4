//! Copies of a store, for a backup.
//!
//! Takes: an open store and a folder that does not exist. Gives: a store in that folder, as it stood at one commit, closed
//! and on disk; it is put back by being put in place.
//! Limits: writing waits for as long as the copy takes; [`RECORDS_PER_BATCH`] records in memory.
//! When it fails: an error, and nothing stays in that folder.
//! Not here: where a backup goes in the end (`cli/backup.rs`).

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::open::{ACKNOWLEDGED_FILE, SLED_FOLDER, write_format};
use super::{CACHE_SIZE, EmbeddedStore, SledFiles, catch_panic, disk_error, write_acknowledged};
use crate::store::StoreError;
use crate::store::format::{self, StoreChecksum};

/// The most records in one batch of the copy.
const RECORDS_PER_BATCH: usize = 1000;

impl EmbeddedStore {
    /// Copies the store, as it stands now, into `to`.
    pub(crate) fn copy(&self, to: &Path) -> Result<(), StoreError> {
        // Who reads holds writers off, so that the copy is of one moment.
        let files = self.lock_for_reading()?;
        fs::DirBuilder::new().mode(0o700).create(to).map_err(|e| disk_error(to, &e))?;
        let copied = write_copy(&files, to);
        if copied.is_err() {
            // What is left of it is of no use, and a disk may be full.
            let _ = fs::remove_dir_all(to);
        }
        copied
    }
}

/// Writes the store into a folder that is there.
pub(super) fn write_copy(files: &SledFiles, to: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| disk_error(to, &e);
    let folder = to.join(SLED_FOLDER);
    let config = sled::Config::new().path(&folder).cache_capacity(CACHE_SIZE).flush_every_ms(None);
    let copy = catch_panic(&folder, || config.open())?;
    let copied = copy_records(files, &copy, &folder);
    // sled 0.34 syncs as it closes, and panics if the disk refuses that.
    let closed = catch_panic(&folder, || {
        drop(copy);
        Ok(())
    });
    let (checksum, sum) = copied?;
    closed?;
    if sum != checksum.sum {
        let shown = files.folder.display();
        return Err(StoreError::Corrupt(format!("store: {shown}: damaged: it does not add up; it is not copied")));
    }
    let acknowledged = File::create(to.join(ACKNOWLEDGED_FILE)).map_err(failed)?;
    write_acknowledged(&acknowledged, checksum).and_then(|()| acknowledged.sync_all()).map_err(failed)?;
    write_format(to)?;
    for folder in [folder.as_path(), to] {
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
        }
        File::open(folder).and_then(|dir| dir.sync_all()).map_err(failed)?;
    }
    Ok(())
}

/// Copies every record into `copy`. Returns the checksum that is stored and the sum of the records.
fn copy_records(files: &SledFiles, copy: &sled::Db, folder: &Path) -> Result<(StoreChecksum, u64), StoreError> {
    let (mut checksum, mut sum) = (StoreChecksum::default(), 0_u64);
    let (mut batch, mut waiting) = (sled::Batch::default(), 0);
    files.scan_range(Vec::new(), None, |key, value| {
        if *key == *format::store_checksum_key() {
            checksum = StoreChecksum::decode(value).map_err(|e| files.corrupt_error(&e))?;
        } else {
            sum = sum.wrapping_add(format::record_checksum(key, value));
        }
        batch.insert(key, value);
        waiting += 1;
        if waiting == RECORDS_PER_BATCH {
            waiting = 0;
            let full = std::mem::take(&mut batch);
            catch_panic(folder, || copy.apply_batch(full))?;
        }
        Ok(true)
    })?;
    catch_panic(folder, || copy.apply_batch(batch).and_then(|()| copy.flush()))?;
    Ok((checksum, sum))
}
