//! The embedded store, in sled.
//!
//! Takes: a folder. Gives: a [`Store`] in it, and what had to be said while opening it.
//! Limits: one process at a time; keys of `format::MAX_KEY` octets; some three times [`CACHE_SIZE`] octets of memory and what was read since.
//! When it fails: a damaged recovery snapshot is moved aside and rebuilt from the log; a damaged log is moved aside
//! whole and the store starts empty; acknowledged commits that are missing are counted. All is said. After a write that failed it is
//! opened again, which tells what of it is on disk (`reopen.rs`).
//! Not here: what keys and values mean (`store/format.rs`).

mod changes;
mod copy;
mod open;
mod read_copy;
mod reopen;
mod restore;
mod rewrite;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use changes::{KeyChange, KeyChanges};
pub(crate) use open::BACKUP_PREFIX;
pub use open::OpenedStore;
pub(crate) use read_copy::ReadCopy;
use reopen::{ClosedReason, FailedCommit};
pub(crate) use restore::RestoredStore;

use crate::base::clock::Clock;
use crate::base::tlsrpt::{Day, Policy, TallyRow};
use crate::store::format::{
    self, CountKey, Digest, MalformedRecord, PolicyRef, SessionTotals, StoreChecksum, StoredValue,
};
use crate::store::{Batch, BatchItem, Store, StoreError, StoredRecord, Table};

/// The size of sled's page cache, in octets as they are on disk; in memory they take three times as much. sled
/// evicts a page only at every 64th look at one of the same 256th part of all, so that it has all that was read of a
/// store of less than some 16,000 pages, whatever is allowed here: see [`EmbeddedStore::drop_preloaded`].
pub(crate) const CACHE_SIZE: u64 = 256 * 1024;

/// The room that a store may take beyond twice what it holds, in bytes.
const SPARE_BYTES: u64 = 6 * 1024 * 1024;

/// The tables that are read whole when the daemon starts.
const PRELOADED: [Table; 3] = [Table::Sts, Table::Dane, Table::Decision];

/// The most policy texts that are remembered as stored, so that they are not looked up at each commit.
const MAX_KNOWN_POLICIES: usize = 65_536;

/// What an error of the disk ends with, where that is known.
const NOT_KEPT: &str = "; what was not acknowledged is not kept";

/// How many records are removed in one batch.
const REMOVED_AT_ONCE: usize = 10_000;

/// A store in a folder of this host.
pub struct EmbeddedStore {
    // In the order in which they are let go: sled's files before the lock on the folder.
    state: RwLock<State>,
    /// The number of the last commit that was acknowledged: without it, a log whose end is damaged looks like one
    /// whose last commit was under way when the host went down.
    acknowledged: File,
    store_folder: PathBuf,
    folder: PathBuf,
    clock: Clock,
    damage_found: Notify,
    _lock: File,
}

/// What only a writer changes. Readers share the lock, so that they never see half of a batch.
struct State {
    /// sled's files, or why they are closed.
    files: Result<SledFiles, ClosedReason>,
    /// The records of [`PRELOADED`] tables that were read when the store was opened, until they are visited or changed:
    /// reading them takes longer than everything else.
    preloaded: Mutex<HashMap<u8, KeyValues>>,
    /// Policy texts that are known to be in the store.
    known_policies: HashSet<(Day, Digest)>,
    /// The number of commits, and the sum of all records.
    checksum: StoreChecksum,
    /// When the last attempt was made to open the files again.
    last_reopen: Option<Instant>,
    /// A batch that turned out to be on disk after its writer was told that this is not known.
    already_stored: Option<Batch>,
    /// The size of sled's log, in bytes, over which it is looked whether to rewrite the store.
    rewrite_above: u64,
}

impl State {
    /// That of files which have just been opened, to be rewritten above a size in bytes.
    fn opened(
        files: SledFiles,
        preloaded: HashMap<u8, KeyValues>,
        checksum: StoreChecksum,
        rewrite_above: u64,
    ) -> State {
        State {
            files: Ok(files),
            preloaded: Mutex::new(preloaded),
            known_policies: HashSet::new(),
            checksum,
            last_reopen: None,
            already_stored: None,
            rewrite_above,
        }
    }
}

/// Keys and values as sled has them.
type KeyValues = Vec<(sled::IVec, sled::IVec)>;

/// sled's files, open.
struct SledFiles {
    db: sled::Db,
    log: File,
    folder: PathBuf,
}

impl EmbeddedStore {
    /// Opens the store in `folder`, which is made if it does not exist (mode 0700). `clock` dates what is moved aside.
    pub fn open(folder: &Path, clock: Clock) -> Result<OpenedStore, StoreError> {
        open::open(folder, clock)
    }

    /// Frees the memory of the preloaded tables, once the start is over. sled's files are closed and opened again for it:
    /// readers and writers wait for a tenth of a second.
    pub(crate) fn drop_preloaded(&self) {
        let mut state = self.state.write();
        state.preloaded.get_mut().clear();
        self.reopen_to_free_memory(&mut state);
    }

    /// Locks the files for reading; opens them again if they are closed.
    fn lock_for_reading(&self) -> Result<MappedRwLockReadGuard<'_, SledFiles>, StoreError> {
        let mut state = self.state.read();
        if state.files.is_err() {
            drop(state);
            state = RwLockWriteGuard::downgrade(self.lock_for_writing()?);
        }
        RwLockReadGuard::try_map(state, |state| state.files.as_ref().ok()).map_err(|state| self.closed_error(&state))
    }

    /// Locks the state for writing; opens the files again if they are closed.
    fn lock_for_writing(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        let mut state = self.state.write();
        self.reopen_if_closed(&mut state)?;
        Ok(state)
    }

    /// Takes the records of a table that were read when the store was opened.
    fn take_preloaded(&self, table: Table) -> Option<KeyValues> {
        let tag = format::record_key(table, b"")[0];
        self.state.read().preloaded.lock().remove(&tag)
    }

    /// Applies changes: all or none, and on disk when it returns. An error with the files open says that nothing was
    /// kept; with the files closed it is not known.
    fn commit(&self, state: &mut State, changes: KeyChanges) -> Result<(), StoreError> {
        for key in changes.keys() {
            state.preloaded.get_mut().remove(key.first().unwrap_or(&0));
        }
        let checksum = match &state.files {
            Ok(files) => match files.commit(&self.acknowledged, state.checksum, changes) {
                Ok(checksum) => checksum,
                Err(failed) => return self.resolve_failed_commit(state, failed),
            },
            Err(_) => return Err(self.closed_error(state)),
        };
        state.checksum = checksum;
        self.rewrite_if_large(state);
        Ok(())
    }

    fn remove_range(&self, state: &mut State, from: &[u8], to: &[u8]) -> Result<u64, StoreError> {
        let mut gone = 0;
        loop {
            let Ok(files) = &state.files else { return Err(self.closed_error(state)) };
            let mut changes = KeyChanges::new();
            files.scan_range(from.to_vec(), Some(to.to_vec()), |key, value| {
                changes.insert(key.to_vec(), KeyChange { old: Some(value.into()), new: None });
                if let (Some(b'p'), Ok(StoredValue::Parts { parts, .. })) = (key.first(), StoredValue::decode(value)) {
                    for number in 0..parts {
                        files.add_change(&mut changes, format::part_key(key, number), None)?;
                    }
                }
                Ok(changes.len() < REMOVED_AT_ONCE)
            })?;
            if changes.is_empty() {
                return Ok(gone);
            }
            gone += changes.len() as u64;
            self.commit(state, changes)?;
        }
    }
}

impl SledFiles {
    fn get(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.catch_panic(|| self.db.get(key))
    }

    /// Calls sled. sled panics over some kinds of damage; that is an error like any other.
    fn catch_panic<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        catch_panic(&self.folder, call)
    }

    fn corrupt_error(&self, what: &MalformedRecord) -> StoreError {
        StoreError::Corrupt(format!("store: {}: {what}; it is not used", self.folder.display()))
    }

    /// Hands the keys and values from `from` (inclusive) to `to` (exclusive) to `each`, until it returns false.
    fn scan_range(
        &self,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.db.range((Bound::Included(from), to));
        while let Some(pair) = self.catch_panic(|| range.next().transpose())? {
            if !each(&pair.0, &pair.1)? {
                break;
            }
        }
        Ok(())
    }

    fn first_count_key(&self, from: Vec<u8>, to: Vec<u8>) -> Result<Option<CountKey>, StoreError> {
        let mut found = None;
        self.scan_range(from, Some(to), |key, _| {
            found = Some(CountKey::decode(key).map_err(|e| self.corrupt_error(&e))?);
            Ok(false)
        })?;
        Ok(found)
    }

    /// The value of a record, joined from its parts if it has parts.
    fn join_parts(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (parts, length) = match StoredValue::decode(value).map_err(|e| self.corrupt_error(&e))? {
            StoredValue::Whole(bytes) => return Ok(bytes.to_vec()),
            StoredValue::Parts { parts, length } => (parts, length),
        };
        let mut whole = Vec::new();
        for number in 0..parts {
            let Some(part) = self.get(&format::part_key(key, number))? else { break };
            whole.extend_from_slice(&part);
        }
        if u64::try_from(whole.len()).ok() == Some(length) {
            Ok(whole)
        } else {
            Err(self.corrupt_error(&MalformedRecord(format!("a record of {length} bytes has only {}", whole.len()))))
        }
    }

    /// Applies changes that follow upon `last`: all or none, and on disk when it returns the new checksum.
    fn commit(
        &self,
        acknowledged: &File,
        last: StoreChecksum,
        changes: KeyChanges,
    ) -> Result<StoreChecksum, FailedCommit> {
        let mut batch = sled::Batch::default();
        let mut checksum = StoreChecksum { commits: last.commits + 1, sum: last.sum };
        for (key, change) in changes {
            if let Some(old) = change.old {
                checksum.sum = checksum.sum.wrapping_sub(format::record_checksum(&key, &old));
            }
            match change.new {
                Some(new) => {
                    checksum.sum = checksum.sum.wrapping_add(format::record_checksum(&key, &new));
                    batch.insert(key, new);
                }
                None => batch.remove(key),
            }
        }
        batch.insert(format::store_checksum_key(), checksum.encode().to_vec());
        let mut handed_over = false;
        let written = self
            .catch_panic(|| self.db.apply_batch(batch).and_then(|()| self.db.flush()))
            // sled's flush is sync_file_range(2), which does not make the disk keep what it has taken.
            .and_then(|_| {
                handed_over = true;
                self.log.sync_data().map_err(|e| disk_error(&self.folder, &e))
            })
            // Not synced: if it is lost, an older number stands there, and that is no false alarm.
            .and_then(|()| write_acknowledged(acknowledged, checksum).map_err(|e| disk_error(&self.folder, &e)));
        written.map(|()| checksum).map_err(|error| FailedCommit { error, checksum, handed_over })
    }
}

impl Store for EmbeddedStore {
    fn copy(&self, to: &Path) -> Result<(), StoreError> {
        EmbeddedStore::copy(self, to)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.lock_for_writing()?;
        if state.already_stored.as_ref().is_some_and(|kept| kept.add == batch.add && kept.set == batch.set) {
            state.already_stored = None;
            return Ok(());
        }
        let Ok(files) = &state.files else { return Err(self.closed_error(&state)) };
        let mut changes = KeyChanges::new();
        let new = files.add_count_changes(&state.known_policies, &mut changes, &batch.add)?;
        let mut last = BTreeMap::new();
        for (index, (table, key, value)) in batch.set.iter().enumerate() {
            last.insert(format::record_key(*table, key), (BatchItem::Record(index), value.as_deref()));
        }
        for (key, (item, value)) in last {
            files.check_key(&key, item)?;
            files.add_record_change(&mut changes, key, value)?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commit(&mut state, changes) {
            // Records that are set twice are set; counts must not be added twice.
            if let Err(reason) = &mut state.files
                && !batch.add.is_empty()
            {
                reason.batch = Some(batch);
            }
            return Err(error);
        }
        if state.known_policies.len() + new.len() > MAX_KNOWN_POLICIES {
            state.known_policies.clear();
        }
        state.known_policies.extend(new.into_iter().take(MAX_KNOWN_POLICIES));
        Ok(())
    }

    fn read(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let files = self.lock_for_reading()?;
        let key = format::record_key(table, key);
        files.get(&key)?.map(|value| files.join_parts(&key, &value)).transpose()
    }

    fn scan(&self, table: Table, prefix: &[u8]) -> Result<Vec<StoredRecord>, StoreError> {
        let mut records = Vec::new();
        self.visit(table, prefix, &mut |key, value| records.push((key.to_vec(), value.to_vec())))?;
        Ok(records)
    }

    fn scan_page(
        &self,
        table: Table,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let files = self.lock_for_reading()?;
        let (prefix, from) = (format::record_key(table, prefix), format::record_key(table, from));
        let mut records = Vec::new();
        files.scan_range(from.max(prefix.clone()), None, |key, value| {
            if !key.starts_with(&prefix) || records.len() == limit {
                return Ok(false);
            }
            records.push((key[1..].to_vec(), files.join_parts(key, value)?));
            Ok(true)
        })?;
        Ok(records)
    }

    fn visit(&self, table: Table, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let preloaded = self.take_preloaded(table);
        let files = self.lock_for_reading()?;
        let prefix = format::record_key(table, prefix);
        let mut give = |key: &[u8], value: &[u8]| {
            match StoredValue::decode(value).map_err(|e| files.corrupt_error(&e))? {
                StoredValue::Whole(bytes) => each(&key[1..], bytes),
                StoredValue::Parts { .. } => each(&key[1..], &files.join_parts(key, value)?),
            }
            Ok(true)
        };
        match preloaded {
            Some(pairs) => {
                for (key, value) in pairs.into_iter().filter(|(key, _)| key.starts_with(&prefix)) {
                    give(&key, &value)?;
                }
                Ok(())
            }
            None => files.scan_range(prefix.clone(), None, |key, value| match key.starts_with(&prefix) {
                true => give(key, value),
                false => Ok(false),
            }),
        }
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        let files = self.lock_for_reading()?;
        let (mut from, to) = format::counts_range();
        let mut days = Vec::new();
        while let Some(key) = files.first_count_key(from, to.clone())? {
            days.push(key.day);
            let Some(next) = key.day.0.checked_add(1) else { break };
            from = format::day_prefix(Day(next));
        }
        Ok(days)
    }

    fn domains(&self, day: Day) -> Result<Vec<String>, StoreError> {
        let files = self.lock_for_reading()?;
        let (mut from, to) = (format::day_prefix(day), day_end(day));
        let mut domains = Vec::new();
        while let Some(key) = files.first_count_key(from, to.clone())? {
            from = format::domain_end(day, &key.domain);
            domains.push(key.domain);
        }
        Ok(domains)
    }

    fn domain_sums(&self, day: Day, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let files = self.lock_for_reading()?;
        let from = after.map_or_else(|| format::day_prefix(day), |domain| format::domain_end(day, domain));
        let mut sums: Vec<(String, u64)> = Vec::new();
        files.scan_range(from, Some(day_end(day)), |key, value| {
            let key = CountKey::decode(key).map_err(|e| files.corrupt_error(&e))?;
            let count = match key.failure {
                Some(_) => format::decode_detail(value).map(|(count, _)| count),
                None => SessionTotals::decode(value).map(|totals| totals.successful.saturating_add(totals.failed)),
            };
            let count = count.map_err(|e| files.corrupt_error(&e))?;
            if let Some((domain, sum)) = sums.last_mut()
                && *domain == key.domain
            {
                *sum = sum.saturating_add(count);
                return Ok(true);
            }
            let room = sums.len() < limit;
            if room {
                sums.push((key.domain, count));
            }
            Ok(room)
        })?;
        Ok(sums)
    }

    fn rows(&self, day: Day, domain: &str) -> Result<Vec<TallyRow>, StoreError> {
        let files = self.lock_for_reading()?;
        let mut rows: Vec<(PolicyRef, TallyRow)> = Vec::new();
        files.scan_range(format::domain_prefix(day, domain), Some(format::domain_end(day, domain)), |key, value| {
            let key_of = CountKey::decode(key).map_err(|e| files.corrupt_error(&e))?;
            if rows.last().is_none_or(|(policy, _)| *policy != key_of.policy) {
                let policy = files.read_policy(&key_of)?;
                let (domain, details) = (key_of.domain, Vec::new());
                let row = TallyRow { day, domain, policy, successful: 0, failed: 0, null_sender: 0, details };
                rows.push((key_of.policy, row));
            }
            let Some((_, row)) = rows.last_mut() else { return Ok(false) };
            if key_of.failure.is_some() {
                let (count, text) = format::decode_detail(value).map_err(|e| files.corrupt_error(&e))?;
                row.details.push((format::decode_failure(text).map_err(|e| files.corrupt_error(&e))?, count));
            } else {
                let totals = SessionTotals::decode(value).map_err(|e| files.corrupt_error(&e))?;
                (row.successful, row.failed, row.null_sender) = (totals.successful, totals.failed, totals.null_sender);
            }
            Ok(true)
        })?;
        let mut rows: Vec<TallyRow> = rows.into_iter().map(|(_, row)| row).collect();
        rows.sort_by(|a, b| a.policy.cmp(&b.policy));
        rows.iter_mut().for_each(|row| row.details.sort());
        Ok(rows)
    }

    fn drop_days_before(&self, day: Day) -> Result<u64, StoreError> {
        let mut state = self.lock_for_writing()?;
        let (from, to) = (format::counts_range().0, format::day_prefix(day));
        let counts = self.remove_range(&mut state, &from, &to)?;
        // After the counts, so that no count is ever without its policy.
        let (from, to) = format::policies_range_before(day);
        let policies = self.remove_range(&mut state, &from, &to)?;
        state.known_policies.retain(|(kept, _)| *kept >= day);
        if counts > 0 {
            state.rewrite_above = state.rewrite_above.min(SPARE_BYTES);
            self.rewrite_if_large(&mut state);
        }
        Ok(counts + policies)
    }

    fn size(&self) -> Result<u64, StoreError> {
        file_sizes(&self.folder).map_err(|e| disk_error(&self.folder, &e))
    }
}

impl SledFiles {
    fn read_policy(&self, of: &CountKey) -> Result<Policy, StoreError> {
        let PolicyRef::Digest(digest) = &of.policy else { return Ok(Policy::none(&of.domain)) };
        let key = format::policy_key(of.day, digest);
        let Some(value) = self.get(&key)? else {
            return Err(self.corrupt_error(&MalformedRecord("a count without the text of its policy".to_owned())));
        };
        let text = self.join_parts(&key, &value)?;
        if format::digest(&text) != *digest {
            return Err(self.corrupt_error(&MalformedRecord("a policy's text is not the one of its digest".to_owned())));
        }
        format::decode_policy(&text).map_err(|e| self.corrupt_error(&e))
    }
}

/// The size of all files below a folder, in bytes.
fn file_sizes(folder: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let known = match entry.file_type()?.is_dir() {
            true => file_sizes(&entry.path()),
            false => entry.metadata().map(|m| m.len()),
        };
        bytes += match known {
            Ok(bytes) => bytes,
            // sled removes files as it goes.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
    }
    Ok(bytes)
}

fn day_end(day: Day) -> Vec<u8> {
    day.0.checked_add(1).map_or_else(|| format::counts_range().1, |next| format::day_prefix(Day(next)))
}

fn catch_panic<T>(folder: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(sled_error(folder, e)),
        Err(panic) => {
            let cause = panic.downcast_ref::<String>().map(String::as_str);
            let cause = cause.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason");
            let cause: String = cause.chars().take(200).collect::<String>().escape_debug().to_string();
            Err(StoreError::Corrupt(format!("store: {}: sled gave up: {cause}; nothing is read", folder.display())))
        }
    }
}

/// Converts an error of sled, by whose fault it is.
fn sled_error(folder: &Path, error: sled::Error) -> StoreError {
    let shown = folder.display();
    match error {
        sled::Error::Io(e) => match e.kind() {
            // sled reads only what it wrote: what is not there has been taken away.
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => {
                StoreError::Corrupt(format!("store: {shown}: part of it is missing: {e}; nothing is read"))
            }
            _ => disk_error(folder, &e),
        },
        sled::Error::Corruption { at: Some(at), .. } => {
            StoreError::Corrupt(format!("store: {shown}: damaged at {at}: not what was written; nothing is read"))
        }
        sled::Error::Corruption { at: None, .. } => {
            StoreError::Corrupt(format!("store: {shown}: damaged: a file is not what was written; nothing is read"))
        }
        sled::Error::ReportableBug(what) => {
            StoreError::Corrupt(format!("store: {shown}: sled gave up: {what}; nothing is read"))
        }
        e @ (sled::Error::Unsupported(_) | sled::Error::CollectionNotFound(_)) => {
            StoreError::Unusable(format!("store: {shown}: not usable by this version: {e}; it is left as it is"))
        }
    }
}

/// Writes the number of the last acknowledged commit.
fn write_acknowledged(file: &File, checksum: StoreChecksum) -> std::io::Result<()> {
    file.write_all_at(&checksum.commits.to_be_bytes(), 0)
}

fn disk_error(folder: &Path, error: &std::io::Error) -> StoreError {
    let text = format!("store: {}: disk error: {error}{NOT_KEPT}", folder.display());
    StoreError::Io(std::io::Error::new(error.kind(), text))
}

#[cfg(test)]
mod tests;
