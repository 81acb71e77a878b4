//! Puts a backup in place of the store.
//!
//! Takes: a copy of the backup that lies in the store's own folder, and nobody else's store. Gives: the folder that now
//! holds the former store, if there was one.
//! Limits: both are on one file system, for sled's folders change places in one step: whenever the host goes down, one
//! of the two stores is complete and in place.
//! When it fails: before the stores change places, the store and the copy are left as they were; after that, the former
//! store has its new name already.
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

/// A store that has taken the place of another.
#[derive(Debug)]
pub(crate) struct RestoredStore {
    /// The folder of the former store, if there was one.
    pub(crate) former: Option<PathBuf>,
    /// Why it is not known to be on disk, if it is not.
    pub(crate) not_synced: Option<std::io::Error>,
}

impl EmbeddedStore {
    /// Reads every record of the copy, then lets it and the store change places.
    ///
    /// Fails where the copy is not a complete store of this format, or another process has the store open.
    pub(crate) fn restore(copy: &Path, store_folder: &Path, clock: Clock) -> Result<RestoredStore, StoreError> {
        let _lock = lock_folder(store_folder)?;
        if !copy.join(SLED_FOLDER).is_dir() {
            return Err(StoreError::Unusable("not a backup of a store: it has no folder `embedded`".to_owned()));
        }
        let opened = EmbeddedStore::open(copy, clock)?;
        if opened.lost_commits() {
            return Err(StoreError::Corrupt(format!("damaged: {}", opened.notices.join("; "))));
        }
        drop(opened);
        let failed = |e: std::io::Error| disk_error(store_folder, &e);
        let had_store = store_folder.join(SLED_FOLDER).exists();
        // Under its last name from the start: what is named as a copy goes at the next start.
        let former = free_name(store_folder, &format!("replaced-{}", clock.seconds()));
        fs::rename(copy, &former).map_err(failed)?;
        let exchange = match Exchange::begin(&former, store_folder) {
            Ok(exchange) => exchange,
            Err(error) => {
                let _ = fs::rename(&former, copy);
                return Err(failed(error));
            }
        };
        let not_synced = exchange.finish().err();
        if !had_store {
            // Where nothing was, nothing is kept; what cannot be removed takes room, and no more.
            let _ = fs::remove_dir_all(&former);
        }
        Ok(RestoredStore { former: had_store.then_some(former), not_synced })
    }
}

/// `name` in a folder, with a number behind it where that is there already.
fn free_name(folder: &Path, name: &str) -> PathBuf {
    let numbered = (1..).map(|number| folder.join(format!("{name}-{number}")));
    let mut names = std::iter::once(folder.join(name)).chain(numbered);
    names.find(|path| path.symlink_metadata().is_err()).expect("there are more numbers than entries in a folder")
}

/// Two stores that have changed places. The number of the last acknowledged commit must never be higher than the store in
/// place has: such a store looks as if it had lost commits. So the lower number is in place while they change.
struct Exchange<'a> {
    other: &'a Path,
    store_folder: &'a Path,
    number_is_due: bool,
}

impl<'a> Exchange<'a> {
    /// Lets sled's folders change places; where that fails, all is as it was.
    fn begin(other: &'a Path, store_folder: &'a Path) -> std::io::Result<Exchange<'a>> {
        let number = |folder: &Path| open_acknowledged(folder).map_or(0, |(_, number)| number);
        let ours = store_folder.join(SLED_FOLDER);
        if !ours.exists() {
            fs::DirBuilder::new().mode(0o700).create(&ours)?;
        }
        let is_older = number(other) <= number(store_folder);
        let exchange = Exchange { other, store_folder, number_is_due: !is_older };
        exchange.swap(FORMAT_FILE)?;
        let rest = || {
            if is_older {
                exchange.swap(ACKNOWLEDGED_FILE)?;
            }
            let swapped = File::open(store_folder)?.sync_all().and_then(|()| exchange.swap(SLED_FOLDER));
            if swapped.is_err() && is_older {
                let _ = exchange.swap(ACKNOWLEDGED_FILE);
            }
            swapped
        };
        if let Err(error) = rest() {
            let _ = exchange.swap(FORMAT_FILE);
            return Err(error);
        }
        Ok(exchange)
    }

    /// Brings the number of the last acknowledged commit in place, and all to the disk. Without it the store is usable.
    fn finish(self) -> std::io::Result<()> {
        if self.number_is_due {
            self.swap(ACKNOWLEDGED_FILE)?;
        }
        File::open(self.store_folder)?.sync_all()
    }

    fn swap(&self, name: &str) -> std::io::Result<()> {
        let (in_place, other) = (self.store_folder.join(name), self.other.join(name));
        if !in_place.exists() {
            return fs::rename(other, in_place);
        }
        Ok(renameat_with(CWD, other, CWD, in_place, RenameFlags::EXCHANGE)?)
    }
}
