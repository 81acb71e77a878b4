//! The daemon's store, which may be off: its disk is full or read-only, or its folder cannot be used.
//!
//! Takes: the folder. Gives: a [`Store`] that fails while it is off, and an updated state in the list of parts.
//! While it is off answers come from memory and DNS, and what they learn waits in memory; nothing is counted, for counts
//! in memory could be lost: the logs are the queue. A store that cannot be written at the start is read from a copy, so
//! that the policies that it holds stay in force.
//! Limits: one try in each interval of [`DaemonStore::wait_for_retry`], and one as soon as the folder takes a file again.
//! When it fails: the part `store` is off, with the reason; where there is no copy either, the log says so. Only a store
//! that another process has open ends the start.
//! Not here: who waits for the store (`daemon`), how it keeps what it is given (`store/embedded`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::parts::PartOpener;
use crate::base::clock::Clock;
use crate::base::parts::STORE;
use crate::base::tlsrpt::{Day, TallyRow};
use crate::metrics::Metrics;
use crate::reporting::schedule::Scheduler;
use crate::store::embedded::{EmbeddedStore, ReadCopy};
use crate::store::{Batch, Store, StoreError, StoredRecord, Table};

/// The file that shows whether the folder takes one.
const PROBE_FILE: &str = "probe";

/// Its size, in bytes: enough that sled can go on for a while.
const PROBE_SIZE: usize = 1024 * 1024;

/// How often the folder is probed while the store is off.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be done with what is known in memory, once the store is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreReturn {
    /// Nothing: what is known is what it holds, or is ahead of it.
    Unchanged,
    /// It was opened for the first time: what it holds is to be added.
    Opened,
    /// It was damaged, and holds less than before: all is to be written again.
    WentBack,
}

/// The store, on disk or off.
pub(crate) struct DaemonStore {
    folder: PathBuf,
    clock: Clock,
    metrics: Metrics,
    opener: PartOpener,
    disk: RwLock<Option<Arc<EmbeddedStore>>>,
    /// What is read in its place during a start on which it could not be opened.
    copy: RwLock<Option<Arc<ReadCopy>>>,
    /// Whether the part has been turned off.
    off: AtomicBool,
    /// Whether the folder took the last probe.
    has_room: AtomicBool,
    /// Commits were lost, and that is not recorded in the store yet.
    unrecorded_loss: AtomicBool,
    /// Notified when the part is turned on.
    back: Notify,
    /// What is to be done still.
    returned: Mutex<StoreReturn>,
}

impl DaemonStore {
    /// Opens the store, or turns it off. Fails where another process has it open. `copy_folders`: where a store that
    /// cannot be written may be copied to.
    pub(crate) fn open(
        folder: &Path,
        copy_folders: &[PathBuf],
        clock: Clock,
        metrics: Metrics,
        opener: PartOpener,
    ) -> Result<DaemonStore, StoreError> {
        let store = DaemonStore {
            folder: folder.to_owned(),
            clock,
            metrics,
            opener,
            disk: RwLock::default(),
            copy: RwLock::default(),
            off: AtomicBool::new(false),
            has_room: AtomicBool::new(false),
            unrecorded_loss: AtomicBool::new(false),
            back: Notify::new(),
            returned: Mutex::new(StoreReturn::Unchanged),
        };
        match store.make_ready() {
            Ok(_) => {}
            Err(locked @ StoreError::Locked(_)) => return Err(locked),
            // What could be opened can be read.
            Err(_) if store.disk.read().is_some() => {}
            Err(_) => store.open_copy(copy_folders)?,
        }
        Ok(store)
    }

    /// Has the store read from a copy until [`DaemonStore::drop_preloaded`].
    fn open_copy(&self, folders: &[PathBuf]) -> Result<(), StoreError> {
        match ReadCopy::open(&self.folder, folders, self.clock) {
            Ok(None) => {}
            Ok(Some(copy)) => {
                let (store, copy_folder) = (self.folder.display(), copy.folder().display());
                tracing::warn!(%store, %copy_folder, "store: it cannot be written, and is read from a copy");
                *self.copy.write() = Some(Arc::new(copy));
            }
            Err(locked @ StoreError::Locked(_)) => return Err(locked),
            Err(error) => {
                let line = format!(
                    "{error}; the policies that it holds are not known until it can be opened: mail to their domains is \
                     answered by what can be looked up now"
                );
                self.metrics.log_error(self.clock, line);
            }
        }
        Ok(())
    }

    /// Its folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens it where it is closed, and says what is to be done with it before [`DaemonStore::settle`] is called; else it is
    /// off. To be called while nobody counts or reports, for what is damaged is repaired. Blocks for as long as the disk
    /// does.
    pub(crate) fn make_ready(&self) -> Result<StoreReturn, StoreError> {
        let opened = self.open_disk().and_then(|()| match self.unrecorded_loss.load(Ordering::Relaxed) {
            true => Scheduler::record_store_loss(self, self.clock, &self.metrics)
                .inspect(|()| self.unrecorded_loss.store(false, Ordering::Relaxed)),
            false => Ok(()),
        });
        match &opened {
            Ok(()) => self.turn_on(),
            Err(error) => self.turn_off(error),
        }
        opened.map(|()| *self.returned.lock())
    }

    fn open_disk(&self) -> Result<(), StoreError> {
        let known = self.disk.read().clone();
        let lost = match known {
            Some(disk) => {
                let went_back = disk.reopen_now()?;
                if went_back {
                    *self.returned.lock() = StoreReturn::WentBack;
                }
                went_back
            }
            None => {
                let opened = EmbeddedStore::open(&self.folder, self.clock)?;
                let lost = opened.lost_commits();
                *self.disk.write() = Some(Arc::new(opened.store));
                *self.returned.lock() = StoreReturn::Opened;
                lost
            }
        };
        self.unrecorded_loss.fetch_or(lost, Ordering::Relaxed);
        Ok(())
    }

    /// What it held has been taken in, or what is known is on its way to it.
    pub(crate) fn settle(&self) {
        *self.returned.lock() = StoreReturn::Unchanged;
    }

    /// Waits until another try is worth it: the interval has passed, somebody else's write has succeeded, or the folder
    /// takes a file again.
    pub(crate) async fn wait_for_retry(self: &Arc<Self>, interval: Duration) {
        let limit = Instant::now() + interval;
        while Instant::now() < limit {
            tokio::time::sleep(PROBE_INTERVAL.min(interval)).await;
            let store = Arc::clone(self);
            let probe = tokio::task::spawn_blocking(move || store.is_back());
            // A probe that panicked says nothing.
            if probe.await.unwrap_or(false) {
                return;
            }
        }
    }

    fn is_back(&self) -> bool {
        if !self.off.load(Ordering::Relaxed) {
            return true;
        }
        let path = self.folder.join(PROBE_FILE);
        let written = fs::write(&path, vec![0; PROBE_SIZE]).is_ok();
        // It is made anew with the next probe, and removed then.
        let _ = fs::remove_file(&path);
        // Room that did not suffice is not tried at once again.
        let had_room = self.has_room.swap(written, Ordering::Relaxed);
        written && !had_room
    }

    /// Waits until damage is found that only [`DaemonStore::make_ready`] repairs.
    pub(crate) async fn wait_for_damage(&self) {
        let disk = self.disk.read().clone();
        match disk {
            Some(disk) => disk.wait_for_damage().await,
            None => std::future::pending().await,
        }
    }

    /// Frees what was needed to read all of the store at the start: memory, and the copy. Blocks.
    pub(crate) fn drop_preloaded(&self) {
        *self.copy.write() = None;
        if let Some(disk) = self.disk.read().clone() {
            disk.drop_preloaded();
        }
    }

    fn turn_on(&self) {
        if self.off.swap(false, Ordering::Relaxed) {
            self.opener.turn_on(STORE);
            self.back.notify_one();
        }
    }

    /// Waits until it is written again after it was off.
    pub(crate) async fn wait_until_back(&self) {
        self.back.notified().await;
    }

    /// Logged once, until it is on again: while it is off the same cause has many texts.
    pub(crate) fn turn_off(&self, error: &StoreError) {
        if !self.off.swap(true, Ordering::Relaxed) {
            self.has_room.store(false, Ordering::Relaxed);
            let reason = error.to_string();
            let reason = reason.strip_prefix("store: ").unwrap_or(&reason);
            self.opener.turn_off(STORE, &format!("{reason}; answers come from memory and DNS, counting waits"));
        }
    }

    /// Calls the store on disk, or what stands in for it, and notes how that went.
    fn call<T>(&self, call: impl FnOnce(&dyn Store) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let Some(disk) = self.disk.read().clone() else {
            let copy = self.copy.read().clone();
            return call(&OffStore { copy });
        };
        let done = call(&*disk);
        match &done {
            Ok(_) => {}
            Err(error @ (StoreError::Io(_) | StoreError::Corrupt(_))) => self.turn_off(error),
            // The caller's fault.
            Err(StoreError::Unusable(_) | StoreError::Locked(_) | StoreError::Refused { .. }) => {}
        }
        done
    }
}

impl Store for DaemonStore {
    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        // That it can be read says nothing of the disk's room.
        self.call(|store| store.write(batch)).inspect(|()| self.turn_on())
    }

    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.call(|store| store.read(table, key))
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<StoredRecord>, StoreError> {
        self.call(|store| store.scan(table, prefix))
    }

    fn scan_page(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        self.call(|store| store.scan_page(table, prefix, from, limit))
    }

    fn visit(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        self.call(|store| store.visit(table, prefix, each))
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        self.call(|store| store.days())
    }

    fn domains(&self, day: Day) -> Result<Vec<String>, StoreError> {
        self.call(|store| store.domains(day))
    }

    fn domain_sums(&self, day: Day, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        self.call(|store| store.domain_sums(day, after, limit))
    }

    fn rows(&self, day: Day, domain: &str) -> Result<Vec<TallyRow>, StoreError> {
        self.call(|store| store.rows(day, domain))
    }

    fn drop_days_before(&self, day: Day) -> Result<u64, StoreError> {
        self.call(|store| store.drop_days_before(day))
    }

    fn copy(&self, to: &Path) -> Result<(), StoreError> {
        self.call(|store| store.copy(to))
    }

    fn size(&self) -> Result<u64, StoreError> {
        self.call(|store| store.size())
    }
}

/// What stands in for a store that has not been opened: it has the policies, verdicts and decisions of its copy, if there
/// is one, and no reports; counts and what is written are errors.
#[derive(Default)]
pub(crate) struct OffStore {
    copy: Option<Arc<ReadCopy>>,
}

fn off<T>() -> Result<T, StoreError> {
    Err(StoreError::Io(std::io::Error::other("store: off: it cannot be opened; `tlswarden status` shows why")))
}

impl Store for OffStore {
    fn write(&self, _: Batch) -> Result<(), StoreError> {
        off()
    }

    fn read(&self, _: Table, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn scan(&self, _: Table, _: &[u8]) -> Result<Vec<StoredRecord>, StoreError> {
        Ok(Vec::new())
    }

    fn scan_page(&self, _: Table, _: &[u8], _: &[u8], _: usize) -> Result<Vec<StoredRecord>, StoreError> {
        Ok(Vec::new())
    }

    fn visit(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        match (table, &self.copy) {
            (Table::Sts | Table::Dane | Table::Decision, Some(copy)) => copy.visit(table, prefix, each),
            _ => Ok(()),
        }
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        off()
    }

    fn domains(&self, _: Day) -> Result<Vec<String>, StoreError> {
        off()
    }

    fn domain_sums(&self, _: Day, _: Option<&str>, _: usize) -> Result<Vec<(String, u64)>, StoreError> {
        off()
    }

    fn rows(&self, _: Day, _: &str) -> Result<Vec<TallyRow>, StoreError> {
        off()
    }

    fn drop_days_before(&self, _: Day) -> Result<u64, StoreError> {
        off()
    }

    fn copy(&self, _: &Path) -> Result<(), StoreError> {
        off()
    }

    fn size(&self) -> Result<u64, StoreError> {
        Ok(0)
    }
}
