//! Puts a backup in place of the store.
//!
//! Takes: a copy of the backup that lies in the store's own folder, and nobody else's store. Gives: the folder that now
//! holds the former store, if there was one.
//! Limits: both are on one file system, for sled's folders change places in one step: whenever the host goes down, one
//! of the two stores is whole and in place.
//! When it fails: the store is the one of before; the copy stays where it is.
//! Not here: where the copy comes from and who owns its files (`cli/backup.rs`).

use std::fs::{self, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::EmbeddedStore;
use super::disk_error;
use super::open::{ACKNOWLEDGED_FILE, FORMAT_FILE, SLED_FOLDER, lock_folder, open_acknowledged};
use crate::base::clock::Clock;
use crate::store::StoreError;

impl EmbeddedStore {
    /// Reads every record of the copy, then lets it and the store change places. Returns the folder of the former store.
    ///
    /// Fails where the copy is no whole store of this format, or another process has the store open.
    pub(crate) fn restore(copy: &Path, store_folder: &Path, clock: Clock) -> Result<Option<PathBuf>, StoreError> {
        let _lock = lock_folder(store_folder)?;
        if !copy.join(SLED_FOLDER).is_dir() {
            return Err(StoreError::Unusable("not a backup of a store: it has no folder `embedded`".to_owned()));
        }
        let opened = EmbeddedStore::open(copy, clock)?;
        if opened.lost_commits() {
            return Err(StoreError::Corrupt(format!("damaged: {}", opened.notices.join("; "))));
        }
        drop(opened);
        let former = free_name(store_folder, &format!("replaced-{}", clock.seconds()));
        exchange(copy, store_folder).map_err(|e| disk_error(store_folder, &e))?;
        match copy.join(SLED_FOLDER).exists() {
            true => fs::rename(copy, &former).map(|()| Some(former)),
            false => fs::remove_dir_all(copy).map(|()| None),
        }
        .map_err(|e| disk_error(store_folder, &e))
    }
}

/// `name` in a folder, with a number behind it where that is there already.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (1..).map(|number| folder.join(format!("{name}-{number}")));
    let mut names = std::iter::once(folder.join(name)).chain(numbered);
    names.find(|path| path.symlink_metadata().is_err()).expect("there are more numbers than entries in a folder")
}

/// Lets sled's folders change places. The number of the last acknowledged commit must never be higher than the store in
/// place has: such a store looks as if it had lost commits. So the lower number is in place while they change.
fn exchange(copy: &Path, store_folder: &Path) -> std::io::Result<()> {
    let number = |folder: &Path| open_acknowledged(folder).map_or(0, |(_, number)| number);
    let (ours, theirs) = (store_folder.join(SLED_FOLDER), copy.join(SLED_FOLDER));
    if !ours.exists() {
        fs::DirBuilder::new().mode(0o700).create(&ours)?;
    }
    let is_older = number(copy) <= number(store_folder);
    let exchange = |name: &str| -> std::io::Result<()> {
        let (in_place, other) = (store_folder.join(name), copy.join(name));
        if !in_place.exists() {
            return fs::rename(other, in_place);
        }
        Ok(renameat_with(CWD, other, CWD, in_place, RenameFlags::EXCHANGE)?)
    };
    exchange(FORMAT_FILE)?;
    if is_older {
        exchange(ACKNOWLEDGED_FILE)?;
    }
    File::open(store_folder)?.sync_all()?;
    renameat_with(CWD, &theirs, CWD, &ours, RenameFlags::EXCHANGE)?;
    if !is_older {
        exchange(ACKNOWLEDGED_FILE)?;
    }
    // Where there was no store, its empty folder has come into the copy.
    let _ = fs::remove_dir(&theirs);
    File::open(store_folder)?.sync_all()
}
