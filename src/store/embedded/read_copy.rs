//! Reads a store that cannot be written, from a copy of its files: sled writes into a store before it reads it.
//!
//! Takes: the store's folder, and folders that the copy may lie in. Gives: a [`ReadCopy`], as the store was at its last
//! commit; its folder is removed with it.
//! Limits: [`MAX_SIZE`] bytes, and half of what is free where the copy lies, which may be memory. The store's lock is
//! held while the files are copied.
//! When it fails: an error, and nothing stays in those folders. A damaged store is not read, and left as it is.
//! Not here: what is read from it (`daemon/store.rs`).

use std::fs::{self, File};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use rustix::fs::statvfs;
use tokio::sync::Notify;

use super::open::{
    SLED_FOLDER, VerifiedFiles, check_format_file, check_format_record, lock_folder, lock_unwritable_folder,
    open_acknowledged, open_from_log,
};
use super::{EmbeddedStore, State, disk_error, file_sizes};
use crate::base::clock::Clock;
use crate::store::format;
use crate::store::{Store, StoreError, Table};

/// The largest store that is copied, in bytes: systemd counts files in memory as memory of the daemon.
const MAX_SIZE: u64 = 256 * 1024 * 1024;

/// A store for reading only, in a folder that is removed with it.
pub(crate) struct ReadCopy {
    // In the order in which they are dropped: sled's files are closed before their folder goes.
    store: EmbeddedStore,
    _folder: TemporaryFolder,
}

impl ReadCopy {
    /// Copies the store into the first of these folders that has room for it. Nothing where there is no store.
    pub(crate) fn open(store_folder: &Path, folders: &[PathBuf], clock: Clock) -> Result<Option<ReadCopy>, StoreError> {
        if !store_folder.join(SLED_FOLDER).is_dir() {
            return Ok(None);
        }
        let lock = lock_unwritable_folder(store_folder)?;
        check_format_file(store_folder)?;
        let folder = copy_files(store_folder, folders)?;
        // Whoever opens the store as soon as it can be written need not wait for the copy to be read.
        drop(lock);
        let copy = &folder.0;
        let VerifiedFiles { files, preloaded, checksum } =
            open_from_log(copy, clock, |line| tracing::debug!("{line}"))?;
        check_format_record(store_folder, &files)?;
        // Nobody writes to it.
        let state = State::opened(files, preloaded, checksum, u64::MAX);
        let store = EmbeddedStore {
            state: RwLock::new(state),
            acknowledged: open_acknowledged(copy)?.0,
            store_folder: copy.clone(),
            folder: copy.join(SLED_FOLDER),
            clock,
            damage_found: Notify::new(),
            _lock: lock_folder(copy)?,
        };
        Ok(Some(ReadCopy { store, _folder: folder }))
    }

    /// Where it lies.
    pub(crate) fn folder(&self) -> &Path {
        &self._folder.0
    }

    /// As [`Store::visit`].
    pub(crate) fn visit(
        &self,
        table: Table,
        prefix: &[u8],
        each: &mut dyn FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        self.store.visit(table, prefix, each)
    }
}

/// A folder that is removed when this is dropped.
struct TemporaryFolder(PathBuf);

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "store: a copy that is not needed any more cannot be removed");
        }
    }
}

/// Copies sled's files into the first of these folders that has room for them.
fn copy_files(store_folder: &Path, folders: &[PathBuf]) -> Result<TemporaryFolder, StoreError> {
    let from = store_folder.join(SLED_FOLDER);
    let size = file_sizes(&from).map_err(|e| disk_error(&from, &e))?;
    // One name for each store: what a killed process has left there is found and removed.
    let digest = format::digest(store_folder.as_os_str().as_encoded_bytes());
    let name = format!("tlswarden-store-{}", data_encoding::HEXLOWER.encode(&digest[..8]));
    let mut problems = Vec::new();
    for folder in folders {
        let to = folder.join(&name);
        // What cannot be removed shows when the folder is made.
        let _ = fs::remove_dir_all(&to);
        let copied = check_room(folder, size).and_then(|()| fs::DirBuilder::new().mode(0o700).create(&to));
        let copied = copied.map(|()| TemporaryFolder(to.clone())).and_then(|copy| {
            copy_folder(&from, &to.join(SLED_FOLDER))?;
            Ok(copy)
        });
        match copied {
            Ok(copy) => return Ok(copy),
            Err(error) => problems.push(format!("{}: {error}", folder.display())),
        }
    }
    let problems = problems.join("; ");
    Err(StoreError::Io(Error::other(format!("store: {}: it cannot be copied: {problems}", store_folder.display()))))
}

/// Fails where a copy of this size would take what others need.
fn check_room(folder: &Path, size: u64) -> std::io::Result<()> {
    let found = statvfs(folder)?;
    let most = most_for(found.f_bavail.saturating_mul(found.f_frsize));
    if size > most {
        let problem = format!("the store has {size} bytes; at most {most} may be copied here");
        return Err(Error::new(ErrorKind::StorageFull, problem));
    }
    Ok(())
}

/// The largest copy in a folder with so many bytes free.
fn most_for(free: u64) -> u64 {
    (free / 2).min(MAX_SIZE)
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            // Not fs::copy: a file that its owner may only read would stay so.
            std::io::copy(&mut File::open(entry.path())?, &mut File::create_new(&target)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Batch;

    const CLOCK: fn() -> Clock = Clock::default;

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    fn visited(copy: &ReadCopy, table: Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        copy.visit(table, b"", &mut |key, value| found.push((key.to_vec(), value.to_vec()))).unwrap();
        found
    }

    /// A store with a policy, closed.
    fn store(folder: &Path) {
        let store = EmbeddedStore::open(folder, CLOCK()).unwrap().store;
        let set = vec![(Table::Sts, b"a.example".to_vec(), Some(b"policy".to_vec()))];
        store.write(Batch { set, ..Batch::default() }).unwrap();
    }

    #[test]
    fn the_copy_holds_what_the_store_holds_and_goes_with_its_reader() {
        let folder = tempfile::tempdir().unwrap();
        let (at, small, to) = (folder.path().join("store"), folder.path().join("none"), folder.path().join("copies"));
        fs::create_dir(&to).unwrap();
        assert!(ReadCopy::open(&at, std::slice::from_ref(&to), CLOCK()).unwrap().is_none());
        store(&at);
        let before = fs::read(at.join("embedded/db")).unwrap();
        // What a killed process has left does not matter; a folder that is not there is passed over.
        std::mem::forget(ReadCopy::open(&at, std::slice::from_ref(&to), CLOCK()).unwrap());
        assert_eq!(names(&to), 1);
        let copy = ReadCopy::open(&at, &[small, to.clone()], CLOCK()).unwrap().unwrap();
        assert_eq!(visited(&copy, Table::Sts), [(b"a.example".to_vec(), b"policy".to_vec())]);
        assert_eq!(visited(&copy, Table::Dane), []);
        // The store itself can be opened while the copy is read, and was not changed for it.
        assert!(fs::read(at.join("embedded/db")).unwrap() == before);
        drop(EmbeddedStore::open(&at, CLOCK()).unwrap());
        drop(copy);
        assert_eq!(names(&to), 0);
    }

    #[test]
    fn what_cannot_be_read_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (at, to) = (folder.path().join("store"), folder.path().join("copies"));
        fs::create_dir(&to).unwrap();
        store(&at);
        let open = || ReadCopy::open(&at, std::slice::from_ref(&to), CLOCK()).map(|copy| copy.is_some());
        let held = EmbeddedStore::open(&at, CLOCK()).unwrap();
        assert!(matches!(open(), Err(StoreError::Locked(_))));
        drop(held);
        fs::write(at.join("format"), "99\n").unwrap();
        assert!(matches!(open(), Err(StoreError::Unusable(_))));
        fs::remove_file(at.join("format")).unwrap();
        let nowhere = ReadCopy::open(&at, &[folder.path().join("none")], CLOCK()).map(|copy| copy.is_some());
        let problem = nowhere.unwrap_err().to_string();
        assert!(problem.contains("it cannot be copied: ") && problem.contains("/none: "), "{problem}");
        // Damage to the one record that is read.
        let mut log = fs::read(at.join("embedded/db")).unwrap();
        let value = log.windows(6).position(|bytes| bytes == b"policy").unwrap();
        log[value] ^= 1;
        fs::write(at.join("embedded/db"), &log).unwrap();
        assert!(matches!(open(), Err(StoreError::Corrupt(_))));
        assert!(fs::read(at.join("embedded/db")).unwrap() == log);
        assert_eq!(names(&to), 0);
    }

    #[test]
    fn a_store_is_copied_only_where_it_takes_at_most_half_of_the_room() {
        let folder = tempfile::tempdir().unwrap();
        assert!(check_room(folder.path(), 1).is_ok());
        for size in [MAX_SIZE + 1, u64::MAX] {
            assert_eq!(check_room(folder.path(), size).unwrap_err().kind(), ErrorKind::StorageFull);
        }
        assert_eq!([0, 1, 1000].map(most_for), [0, 0, 500]);
        assert_eq!([2 * MAX_SIZE, 2 * MAX_SIZE + 2, u64::MAX].map(most_for), [MAX_SIZE; 3]);
    }
}
