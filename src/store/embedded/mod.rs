//! The embedded store, in sled.
//!
//! Takes: a folder. Gives: a [`Store`] in it, and what had to be said while opening it.
//! Limits: one process at a time; keys of `format::KEY_LIMIT` octets; some three times [`CACHE`] octets of memory and what was read since.
//! When it fails: a damaged recovery snapshot is moved aside and rebuilt from the log; a damaged log is moved aside
//! whole and the store starts empty; acknowledged commits that are missing are counted. All is said. After a write that failed it is
//! opened again, which tells what of it is on disk (`reopen.rs`).
//! Not here: what keys and values mean (`store/format.rs`).

mod changes;
mod copy;
mod open;
mod reopen;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Instant;

use parking_lot::{MappedRwLockReadGuard, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::Notify;

use changes::{Change, Changes};
pub use open::{BACKUP, Opened};
use reopen::{Failed, Trouble};

use crate::base::clock::Clock;
use crate::base::tlsrpt::{Day, Policy, Row};
use crate::store::format::{self, CountKey, Digest, Malformed, PolicyRef, Seal, Value};
use crate::store::{Batch, Family, Record, Store, StoreError};

/// What sled may keep of the store in memory, in octets as they are on disk; in memory they take three times as much. It
/// lets go of a page only at every 64th look at one of the same 256th part of all, so that it has all that was read of a
/// store of less than some 16,000 pages, whatever is allowed here: see [`Embedded::started`].
pub const CACHE: u64 = 256 * 1024;

/// The families that are read whole when the daemon starts.
const READ_AT_START: [Family; 3] = [Family::Sts, Family::Dane, Family::Decision];

/// How many policy texts are remembered as stored, so that they are not looked up at each commit.
const REMEMBERED: usize = 65_536;

/// What an error of the disk ends with, where that is known.
const NOT_KEPT: &str = "; what was not acknowledged is not kept";

/// How many records are removed in one batch.
const SWEEP: usize = 10_000;

/// A store in a folder of this host.
pub struct Embedded {
    // In the order in which they are let go: sled's files before the lock on the folder.
    state: RwLock<State>,
    /// The number of the last commit that was acknowledged: without it, a log whose end is damaged looks like one
    /// whose last commit was under way when the host went down.
    acknowledged: File,
    home: PathBuf,
    folder: PathBuf,
    clock: Clock,
    damage: Notify,
    _lock: File,
}

/// What only a writer changes. Readers share the lock, so that they never see half of a batch.
struct State {
    /// sled's files, or why they are closed.
    files: Result<Files, Trouble>,
    /// What was read while the store was opened, of families that are read whole at start, until it is visited or
    /// something is written: reading it takes longer than all else.
    opening: Mutex<HashMap<u8, Pairs>>,
    /// Policy texts that are known to be in the store.
    remembered: HashSet<(Day, Digest)>,
    /// How many commits the store has taken, and what they come to.
    seal: Seal,
    /// When it was last tried to open the files again.
    tried: Option<Instant>,
    /// A batch that turned out to be on disk after its writer was told that this is not known.
    kept: Option<Batch>,
}

/// Keys and values as sled has them.
type Pairs = Vec<(sled::IVec, sled::IVec)>;

/// sled's files, open.
struct Files {
    db: sled::Db,
    log: File,
    folder: PathBuf,
}

impl Embedded {
    /// Opens the store in `folder`, which is made if it does not exist (mode 0700). `clock` dates what is moved aside.
    pub fn open(folder: &Path, clock: Clock) -> Result<Opened, StoreError> {
        open::open(folder, clock)
    }

    /// Lets go of what was read while it was opened: whoever reads whole families at start has done so. sled's files are
    /// opened anew for it, a tenth of a second in which who reads or writes waits.
    pub fn started(&self) {
        let mut state = self.state.write();
        state.opening.get_mut().clear();
        self.forget_pages(&mut state);
    }

    /// The files for reading, opened again if need be.
    fn reading(&self) -> Result<MappedRwLockReadGuard<'_, Files>, StoreError> {
        let mut state = self.state.read();
        if state.files.is_err() {
            drop(state);
            state = RwLockWriteGuard::downgrade(self.writing()?);
        }
        RwLockReadGuard::try_map(state, |state| state.files.as_ref().ok()).map_err(|state| self.closed(&state))
    }

    /// The state for writing, its files opened again if need be.
    fn writing(&self) -> Result<RwLockWriteGuard<'_, State>, StoreError> {
        let mut state = self.state.write();
        self.settle(&mut state)?;
        Ok(state)
    }

    /// What was read of a family while the store was opened, once.
    fn opening(&self, family: Family) -> Option<Pairs> {
        let tag = format::record_key(family, b"")[0];
        self.state.read().opening.lock().remove(&tag)
    }

    /// Applies changes: all or none, and on disk when it returns. An error with the files open says that nothing was
    /// kept; with the files closed it is not known.
    fn commit(&self, state: &mut State, changes: Changes) -> Result<(), StoreError> {
        for key in changes.keys() {
            state.opening.get_mut().remove(key.first().unwrap_or(&0));
        }
        let seal = match &state.files {
            Ok(files) => match files.commit(&self.acknowledged, state.seal, changes) {
                Ok(seal) => seal,
                Err(failed) => return self.settle_failed(state, failed),
            },
            Err(_) => return Err(self.closed(state)),
        };
        state.seal = seal;
        Ok(())
    }

    fn remove_range(&self, state: &mut State, from: &[u8], to: &[u8]) -> Result<u64, StoreError> {
        let mut gone = 0;
        loop {
            let Ok(files) = &state.files else { return Err(self.closed(state)) };
            let mut changes = Changes::new();
            files.walk(from.to_vec(), Some(to.to_vec()), |key, value| {
                changes.insert(key.to_vec(), Change { old: Some(value.into()), new: None });
                if let (Some(b'p'), Ok(Value::Parts { parts, .. })) = (key.first(), Value::decode(value)) {
                    for number in 0..parts {
                        files.change(&mut changes, format::part_key(key, number), None)?;
                    }
                }
                Ok(changes.len() < SWEEP)
            })?;
            if changes.is_empty() {
                return Ok(gone);
            }
            gone += changes.len() as u64;
            self.commit(state, changes)?;
        }
    }
}

impl Files {
    fn value(&self, key: &[u8]) -> Result<Option<sled::IVec>, StoreError> {
        self.guarded(|| self.db.get(key))
    }

    /// Runs a call into sled, which panics over some damage that it reads; that is an error like another.
    fn guarded<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
        guarded(&self.folder, call)
    }

    fn corrupt(&self, what: &Malformed) -> StoreError {
        StoreError::Corrupt(format!("store: {}: {what}; it is not used", self.folder.display()))
    }

    /// The keys and values from `from` (inclusive) to `to` (exclusive), handed to `each` until it returns false.
    fn walk(
        &self,
        from: Vec<u8>,
        to: Option<Vec<u8>>,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let to = to.map_or(Bound::Unbounded, Bound::Excluded);
        let mut range = self.db.range((Bound::Included(from), to));
        while let Some(pair) = self.guarded(|| range.next().transpose())? {
            if !each(&pair.0, &pair.1)? {
                break;
            }
        }
        Ok(())
    }

    fn first_from(&self, from: Vec<u8>, to: Vec<u8>) -> Result<Option<CountKey>, StoreError> {
        let mut found = None;
        self.walk(from, Some(to), |key, _| {
            found = Some(CountKey::decode(key).map_err(|e| self.corrupt(&e))?);
            Ok(false)
        })?;
        Ok(found)
    }

    /// The octets of a record, put together again where they are in parts.
    fn assemble(&self, key: &[u8], value: &[u8]) -> Result<Vec<u8>, StoreError> {
        let (parts, length) = match Value::decode(value).map_err(|e| self.corrupt(&e))? {
            Value::Whole(octets) => return Ok(octets.to_vec()),
            Value::Parts { parts, length } => (parts, length),
        };
        let mut whole = Vec::new();
        for number in 0..parts {
            let Some(part) = self.value(&format::part_key(key, number))? else { break };
            whole.extend_from_slice(&part);
        }
        if u64::try_from(whole.len()).ok() == Some(length) {
            Ok(whole)
        } else {
            Err(self.corrupt(&Malformed(format!("a record of {length} octets has only {}", whole.len()))))
        }
    }

    /// Applies changes that follow upon `last`: all or none, and on disk when it returns their seal.
    fn commit(&self, acknowledged: &File, last: Seal, changes: Changes) -> Result<Seal, Failed> {
        let mut batch = sled::Batch::default();
        let mut seal = Seal { commits: last.commits + 1, sum: last.sum };
        for (key, change) in changes {
            if let Some(old) = change.old {
                seal.sum = seal.sum.wrapping_sub(format::checksum(&key, &old));
            }
            match change.new {
                Some(new) => {
                    seal.sum = seal.sum.wrapping_add(format::checksum(&key, &new));
                    batch.insert(key, new);
                }
                None => batch.remove(key),
            }
        }
        batch.insert(format::seal_key(), seal.encode().to_vec());
        let mut handed_over = false;
        let written = self
            .guarded(|| self.db.apply_batch(batch).and_then(|()| self.db.flush()))
            // sled's flush is sync_file_range(2), which does not make the disk keep what it has taken.
            .and_then(|_| {
                handed_over = true;
                self.log.sync_data().map_err(|e| io_fault(&self.folder, &e))
            })
            // Not synced: if it is lost, an older number stands there, and that is no false alarm.
            .and_then(|()| acknowledge(acknowledged, seal).map_err(|e| io_fault(&self.folder, &e)));
        written.map(|()| seal).map_err(|error| Failed { error, seal, handed_over })
    }
}

impl Store for Embedded {
    fn copy(&self, to: &Path) -> Result<(), StoreError> {
        Embedded::copy(self, to)
    }

    fn write(&self, batch: Batch) -> Result<(), StoreError> {
        let mut state = self.writing()?;
        if state.kept.as_ref().is_some_and(|kept| kept.add == batch.add && kept.set == batch.set) {
            state.kept = None;
            return Ok(());
        }
        let Ok(files) = &state.files else { return Err(self.closed(&state)) };
        let mut changes = Changes::new();
        let new = files.change_counts(&state.remembered, &mut changes, &batch.add)?;
        let mut last = BTreeMap::new();
        for (family, key, value) in &batch.set {
            last.insert(format::record_key(*family, key), value.as_deref());
        }
        for (key, value) in last {
            files.change_record(&mut changes, key, value)?;
        }
        if changes.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.commit(&mut state, changes) {
            // Records that are set twice are set; counts must not be added twice.
            if let Err(trouble) = &mut state.files
                && !batch.add.is_empty()
            {
                trouble.batch = Some(batch);
            }
            return Err(error);
        }
        if state.remembered.len() + new.len() > REMEMBERED {
            state.remembered.clear();
        }
        state.remembered.extend(new.into_iter().take(REMEMBERED));
        Ok(())
    }

    fn read(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let files = self.reading()?;
        let key = format::record_key(family, key);
        files.value(&key)?.map(|value| files.assemble(&key, &value)).transpose()
    }

    fn scan(&self, family: Family, prefix: &[u8]) -> Result<Vec<Record>, StoreError> {
        let mut records = Vec::new();
        self.visit(family, prefix, &mut |key, value| records.push((key.to_vec(), value.to_vec())))?;
        Ok(records)
    }

    fn page(&self, family: Family, prefix: &[u8], from: &[u8], limit: usize) -> Result<Vec<Record>, StoreError> {
        let files = self.reading()?;
        let (prefix, from) = (format::record_key(family, prefix), format::record_key(family, from));
        let mut records = Vec::new();
        files.walk(from.max(prefix.clone()), None, |key, value| {
            if !key.starts_with(&prefix) || records.len() == limit {
                return Ok(false);
            }
            records.push((key[1..].to_vec(), files.assemble(key, value)?));
            Ok(true)
        })?;
        Ok(records)
    }

    fn visit(&self, family: Family, prefix: &[u8], each: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), StoreError> {
        let opening = self.opening(family);
        let files = self.reading()?;
        let prefix = format::record_key(family, prefix);
        let mut give = |key: &[u8], value: &[u8]| {
            match Value::decode(value).map_err(|e| files.corrupt(&e))? {
                Value::Whole(octets) => each(&key[1..], octets),
                Value::Parts { .. } => each(&key[1..], &files.assemble(key, value)?),
            }
            Ok(true)
        };
        match opening {
            Some(pairs) => {
                for (key, value) in pairs.into_iter().filter(|(key, _)| key.starts_with(&prefix)) {
                    give(&key, &value)?;
                }
                Ok(())
            }
            None => files.walk(prefix.clone(), None, |key, value| match key.starts_with(&prefix) {
                true => give(key, value),
                false => Ok(false),
            }),
        }
    }

    fn days(&self) -> Result<Vec<Day>, StoreError> {
        let files = self.reading()?;
        let (mut from, to) = format::all_counts();
        let mut days = Vec::new();
        while let Some(key) = files.first_from(from, to.clone())? {
            days.push(key.day);
            let Some(next) = key.day.0.checked_add(1) else { break };
            from = format::day_prefix(Day(next));
        }
        Ok(days)
    }

    fn domains(&self, day: Day) -> Result<Vec<String>, StoreError> {
        let files = self.reading()?;
        let (mut from, to) = (format::day_prefix(day), day_end(day));
        let mut domains = Vec::new();
        while let Some(key) = files.first_from(from, to.clone())? {
            from = format::domain_end(day, &key.domain);
            domains.push(key.domain);
        }
        Ok(domains)
    }

    fn sums(&self, day: Day, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let files = self.reading()?;
        let from = after.map_or_else(|| format::day_prefix(day), |domain| format::domain_end(day, domain));
        let mut sums: Vec<(String, u64)> = Vec::new();
        files.walk(from, Some(day_end(day)), |key, value| {
            let key = CountKey::decode(key).map_err(|e| files.corrupt(&e))?;
            let count = match key.failure {
                Some(_) => format::detail_from(value).map(|(count, _)| count),
                None => format::totals_from(value).map(|(successful, failed)| successful.saturating_add(failed)),
            };
            let count = count.map_err(|e| files.corrupt(&e))?;
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

    fn rows(&self, day: Day, domain: &str) -> Result<Vec<Row>, StoreError> {
        let files = self.reading()?;
        let mut rows: Vec<(PolicyRef, Row)> = Vec::new();
        files.walk(format::domain_prefix(day, domain), Some(format::domain_end(day, domain)), |key, value| {
            let key_of = CountKey::decode(key).map_err(|e| files.corrupt(&e))?;
            if rows.last().is_none_or(|(policy, _)| *policy != key_of.policy) {
                let policy = files.policy(&key_of)?;
                let row = Row { day, domain: key_of.domain, policy, successful: 0, failed: 0, details: Vec::new() };
                rows.push((key_of.policy, row));
            }
            let Some((_, row)) = rows.last_mut() else { return Ok(false) };
            if key_of.failure.is_some() {
                let (count, text) = format::detail_from(value).map_err(|e| files.corrupt(&e))?;
                row.details.push((format::failure_from(text).map_err(|e| files.corrupt(&e))?, count));
            } else {
                (row.successful, row.failed) = format::totals_from(value).map_err(|e| files.corrupt(&e))?;
            }
            Ok(true)
        })?;
        let mut rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
        rows.sort_by(|a, b| a.policy.cmp(&b.policy));
        rows.iter_mut().for_each(|row| row.details.sort());
        Ok(rows)
    }

    fn drop_days_before(&self, day: Day) -> Result<u64, StoreError> {
        let mut state = self.writing()?;
        let (from, to) = (format::all_counts().0, format::day_prefix(day));
        let counts = self.remove_range(&mut state, &from, &to)?;
        // After the counts, so that no count is ever without its policy.
        let (from, to) = format::policies_before(day);
        let policies = self.remove_range(&mut state, &from, &to)?;
        state.remembered.retain(|(kept, _)| *kept >= day);
        Ok(counts + policies)
    }

    fn size(&self) -> Result<u64, StoreError> {
        fn below(folder: &Path) -> std::io::Result<u64> {
            let mut octets = 0;
            for entry in std::fs::read_dir(folder)? {
                let entry = entry?;
                let known = match entry.file_type()?.is_dir() {
                    true => below(&entry.path()),
                    false => entry.metadata().map(|m| m.len()),
                };
                octets += match known {
                    Ok(octets) => octets,
                    // sled removes files as it goes.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
                    Err(e) => return Err(e),
                };
            }
            Ok(octets)
        }
        below(&self.folder).map_err(|e| io_fault(&self.folder, &e))
    }
}

impl Files {
    fn policy(&self, of: &CountKey) -> Result<Policy, StoreError> {
        let PolicyRef::Digest(digest) = &of.policy else { return Ok(Policy::none(&of.domain)) };
        let key = format::policy_key(of.day, digest);
        let Some(value) = self.value(&key)? else {
            return Err(self.corrupt(&Malformed("a count without the text of its policy".to_owned())));
        };
        let text = self.assemble(&key, &value)?;
        if format::digest(&text) != *digest {
            return Err(self.corrupt(&Malformed("a policy's text is not the one of its digest".to_owned())));
        }
        format::policy_from(&text).map_err(|e| self.corrupt(&e))
    }
}

fn day_end(day: Day) -> Vec<u8> {
    day.0.checked_add(1).map_or_else(|| format::all_counts().1, |next| format::day_prefix(Day(next)))
}

fn guarded<T>(folder: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(e)) => Err(fault(folder, e)),
        Err(panic) => {
            let cause = panic.downcast_ref::<String>().map(String::as_str);
            let cause = cause.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason");
            let cause: String = cause.chars().take(200).collect::<String>().escape_debug().to_string();
            Err(StoreError::Corrupt(format!("store: {}: sled gave up: {cause}; nothing is read", folder.display())))
        }
    }
}

/// Sorts sled's errors by fault.
fn fault(folder: &Path, error: sled::Error) -> StoreError {
    let shown = folder.display();
    match error {
        sled::Error::Io(e) => match e.kind() {
            // sled reads only what it wrote: what is not there has been taken away.
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::NotFound | std::io::ErrorKind::InvalidData => {
                StoreError::Corrupt(format!("store: {shown}: part of it is missing: {e}; nothing is read"))
            }
            _ => io_fault(folder, &e),
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

/// Notes that a commit was acknowledged.
fn acknowledge(file: &File, seal: Seal) -> std::io::Result<()> {
    file.write_all_at(&seal.commits.to_be_bytes(), 0)
}

fn io_fault(folder: &Path, error: &std::io::Error) -> StoreError {
    let text = format!("store: {}: disk error: {error}{NOT_KEPT}", folder.display());
    StoreError::Io(std::io::Error::new(error.kind(), text))
}

#[cfg(test)]
mod tests;
