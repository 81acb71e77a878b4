//! Copies of a store, for a backup.
//!
//! Takes: an open store and a folder that does not exist. Gives: a store in that folder, as it stood at one commit, closed
//! and on disk; it is put back by being put in place.
//! Limits: writing waits for as long as the copy takes; [`AT_ONCE`] records in memory.
//! When it fails: an error, and nothing stays in that folder.
//! Not here: where a backup goes in the end (`cli/backup.rs`).

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use super::open::{ACKNOWLEDGED, FOLDER, write_format};
use super::{CACHE, Embedded, Files, acknowledge, guarded, io_fault};
use crate::store::StoreError;
use crate::store::format::{self, Seal};

/// Records that are written together.
const AT_ONCE: usize = 1000;

impl Embedded {
    /// Copies the store, as it stands now, into `to`.
    pub fn copy(&self, to: &Path) -> Result<(), StoreError> {
        // Who reads holds writers off, so that the copy is of one moment.
        let files = self.reading()?;
        fs::DirBuilder::new().mode(0o700).create(to).map_err(|e| io_fault(to, &e))?;
        let copied = write(&files, to);
        if copied.is_err() {
            // What is left of it is of no use, and a disk may be full.
            let _ = fs::remove_dir_all(to);
        }
        copied
    }
}

fn write(files: &Files, to: &Path) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| io_fault(to, &e);
    let folder = to.join(FOLDER);
    let (mut seal, mut sum) = (Seal::default(), 0_u64);
    {
        let config = sled::Config::new().path(&folder).cache_capacity(CACHE).flush_every_ms(None);
        let copy = guarded(&folder, || config.open())?;
        let (mut batch, mut waiting) = (sled::Batch::default(), 0);
        files.walk(Vec::new(), None, |key, value| {
            if *key == *format::seal_key() {
                seal = Seal::decode(value).map_err(|e| files.corrupt(&e))?;
            } else {
                sum = sum.wrapping_add(format::checksum(key, value));
            }
            batch.insert(key, value);
            waiting += 1;
            if waiting == AT_ONCE {
                waiting = 0;
                let full = std::mem::take(&mut batch);
                guarded(&folder, || copy.apply_batch(full))?;
            }
            Ok(true)
        })?;
        guarded(&folder, || copy.apply_batch(batch).and_then(|()| copy.flush()))?;
    }
    if sum != seal.sum {
        let shown = files.folder.display();
        return Err(StoreError::Corrupt(format!("store: {shown}: damaged: it does not add up; it is not copied")));
    }
    let acknowledged = File::create(to.join(ACKNOWLEDGED)).map_err(failed)?;
    acknowledge(&acknowledged, seal).and_then(|()| acknowledged.sync_all()).map_err(failed)?;
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
