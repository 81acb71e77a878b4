//! Opens the embedded store's folder: claims it, heals what can be healed, says what was lost.
//!
//! Takes: a folder, and a clock to date what is moved aside. Gives: a store, and notices.
//! Limits: what is moved aside stays in `SLED_FOLDER/aside-DATE` until the administrator removes it.
//! When it fails: `Locked` for a second opener, `Unusable` for a folder that cannot be used or a store of another format.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::{
    CACHE_SIZE, EmbeddedStore, KeyChange, KeyValues, PRELOADED, SPARE_BYTES, SledFiles, State, catch_panic, disk_error,
    write_acknowledged,
};
use crate::base::clock::Clock;
use crate::store::format::{self, StoreChecksum, StoredValue, VERSION, VERSION_KEY};
use crate::store::{StoreError, Table};

/// sled's folder below ours, so that it can be moved aside where our parent is not writable.
pub(super) const SLED_FOLDER: &str = "embedded";

/// The lock file; it holds the number of the process that has the folder.
const LOCK_FILE: &str = "lock";

/// The file with the number of the last acknowledged commit.
pub(super) const ACKNOWLEDGED_FILE: &str = "acknowledged";

/// The file with the format of the store, read before anything else is: another format may not even add up for us.
pub(super) const FORMAT_FILE: &str = "format";

/// Copies for a backup are named so, followed by a number; one that still exists at start was not fetched.
pub(crate) const BACKUP_PREFIX: &str = "backup-";

/// How often a lock is tried: ours, which the command line holds for a moment where no daemon runs, and sled's own, which
/// only this process can still hold from a moment ago.
const LOCK_TRIES: u32 = 40;

/// The time between two attempts to lock.
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(50);

/// An open store.
pub struct OpenedStore {
    /// The store.
    pub store: EmbeddedStore,
    /// What had to be said while opening it, also logged: lines `subject: problem: cause; consequence`.
    pub notices: Vec<String>,
    /// The folder that a damaged store was moved to, if it was: then the store is empty, and it is not known what was sent.
    pub moved_aside: Option<PathBuf>,
    /// How many acknowledged commits a damaged log has lost at its end. The store is as it was before them: counts and
    /// positions agree, and what was sent since is not known.
    pub missing_commits: u64,
}

impl OpenedStore {
    /// Whether commits were lost: it is not known what was sent under them, and nothing may be sent twice.
    pub(crate) fn lost_commits(&self) -> bool {
        self.moved_aside.is_some() || self.missing_commits > 0
    }
}

pub(super) fn open(store_folder: &Path, clock: Clock) -> Result<OpenedStore, StoreError> {
    let lock = lock_folder(store_folder)?;
    check_format_file(store_folder)?;
    drop_unfetched_backups(store_folder);
    let (acknowledged, number) = open_acknowledged(store_folder)?;
    let RecoveredFiles { files, preloaded, checksum, notices, moved_aside, missing_commits } =
        open_or_set_aside(store_folder, clock, &acknowledged, number)?;
    let state = State::opened(files, preloaded, checksum, SPARE_BYTES);
    let store = EmbeddedStore {
        state: RwLock::new(state),
        acknowledged,
        store_folder: store_folder.to_owned(),
        folder: store_folder.join(SLED_FOLDER),
        clock,
        damage_found: Notify::new(),
        _lock: lock,
    };
    store.rewrite_if_large(&mut store.state.write());
    Ok(OpenedStore { store, notices, moved_aside, missing_commits })
}

/// sled's files of a locked folder, and what had to be done to open them.
pub(super) struct RecoveredFiles {
    pub(crate) files: SledFiles,
    pub(crate) preloaded: HashMap<u8, KeyValues>,
    pub(crate) checksum: StoreChecksum,
    notices: Vec<String>,
    pub moved_aside: Option<PathBuf>,
    pub missing_commits: u64,
}

/// sled's files, every record read and verified.
pub(super) struct VerifiedFiles {
    pub(crate) files: SledFiles,
    pub(crate) preloaded: HashMap<u8, KeyValues>,
    pub(crate) checksum: StoreChecksum,
}

/// Opens sled's files. `number` commits were acknowledged. A store that is damaged beyond use is moved aside.
pub(super) fn open_or_set_aside(
    store_folder: &Path,
    clock: Clock,
    acknowledged: &File,
    number: u64,
) -> Result<RecoveredFiles, StoreError> {
    let folder = store_folder.join(SLED_FOLDER);
    let mut notices = Vec::new();
    let mut moved_aside = None;
    let mut notice = |line: String| {
        tracing::warn!("{line}");
        notices.push(line);
    };
    let shown = store_folder.display();
    let mut opened = open_from_log(store_folder, clock, &mut notice);
    if let Err(StoreError::Corrupt(cause)) = &opened {
        let to = AsideFolder { store_folder, folder: &folder, clock }.move_all()?;
        let kept = to.display();
        notice(cause.clone());
        notice(format!("store: {shown}: LOST: damaged beyond use; it starts empty, the old one is kept in {kept}"));
        moved_aside = Some(to);
        opened = open_verified(&folder);
    }
    let VerifiedFiles { files, preloaded, checksum } = opened?;
    let checksum = check_format(store_folder, &files, acknowledged, checksum)?;
    let missing_commits = if moved_aside.is_some() { 0 } else { number.saturating_sub(checksum.commits) };
    if missing_commits > 0 {
        notice(format!(
            "store: {shown}: went back: {missing_commits} commits are missing at its damaged end; what they counted is \
             counted again from their marks, what was sent since may be sent again"
        ));
    }
    write_acknowledged(acknowledged, checksum).map_err(|e| disk_error(store_folder, &e))?;
    Ok(RecoveredFiles { files, preloaded, checksum, notices, moved_aside, missing_commits })
}

/// Opens sled's files. Moves a damaged snapshot aside, because the log holds everything; moves nothing else.
pub(super) fn open_from_log(
    store_folder: &Path,
    clock: Clock,
    mut notice: impl FnMut(String),
) -> Result<VerifiedFiles, StoreError> {
    let folder = store_folder.join(SLED_FOLDER);
    drop_unfinished_snapshots(&folder);
    if let Some((path, cause)) = damaged_snapshot(&folder) {
        let to = AsideFolder { store_folder, folder: &folder, clock }.move_snapshots()?;
        let (path, to) = (path.display(), to.display());
        notice(format!(
            "store: {path}: damaged: {cause}; it was moved to {to}, all is read from the log, nothing is lost"
        ));
    }
    open_verified(&folder)
}

/// Opens the file with the number of the last acknowledged commit, and reads that number; 0 if there is none.
pub(super) fn open_acknowledged(store_folder: &Path) -> Result<(File, u64), StoreError> {
    let path = store_folder.join(ACKNOWLEDGED_FILE);
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.map_err(|e| disk_error(store_folder, &e))?;
    let mut number = [0; 8];
    let whole = file.read_exact_at(&mut number, 0).is_ok();
    Ok((file, if whole { u64::from_be_bytes(number) } else { 0 }))
}

/// Creates the folder if need be, and locks it for this process.
pub(super) fn lock_folder(store_folder: &Path) -> Result<File, StoreError> {
    let shown = store_folder.display();
    let unusable = |cause: &dyn std::fmt::Display| {
        StoreError::Unusable(format!("store: {shown}: cannot be used: {cause}; nothing is counted or answered"))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(store_folder).map_err(|e| {
        match store_folder.is_file() {
            true => unusable(&"it is a file, not a folder"),
            false => unusable(&e),
        }
    })?;
    let path = store_folder.join(LOCK_FILE);
    let mut lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| unusable(&format_args!("{}: {e}", path.display())))?;
    lock_file(&lock, store_folder)?;
    // For whoever finds it locked. The lock itself does not depend on it, and a full disk does not take it.
    let _ = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    Ok(lock)
}

/// Locks a folder that cannot be written. Nothing where its file for the lock is missing: then nobody has the store open.
pub(super) fn lock_unwritable_folder(store_folder: &Path) -> Result<Option<File>, StoreError> {
    match File::open(store_folder.join(LOCK_FILE)) {
        Ok(lock) => lock_file(&lock, store_folder).map(|()| Some(lock)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(disk_error(store_folder, &e)),
    }
}

/// Locks a file, or says who holds the lock.
fn lock_file(lock: &File, store_folder: &Path) -> Result<(), StoreError> {
    let shown = store_folder.display();
    let mut tries = 0;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_RETRY_DELAY);
            }
            Err(TryLockError::WouldBlock) => {
                let (mut file, mut holder) = (lock, String::new());
                let holder = match (&mut file).take(20).read_to_string(&mut holder) {
                    Ok(1..) => format!("process {}", holder.trim().escape_debug()),
                    _ => "another process".to_owned(),
                };
                return Err(StoreError::Locked(format!(
                    "store: {shown}: in use: {holder} has it open; it is not opened a second time"
                )));
            }
            Err(TryLockError::Error(e)) => return Err(disk_error(store_folder, &e)),
        }
    }
}

/// Opens sled's files and reads every record once: damage shows now, while it can be dealt with. sled itself may put
/// pages of several commits together where part of its log is gone; then the checksum does not match.
fn open_verified(folder: &Path) -> Result<VerifiedFiles, StoreError> {
    let db = open_db(folder)?;
    let FullScan { checksum, sum, preloaded } = read_all(&db, folder)?;
    if sum != checksum.sum {
        let shown = folder.display();
        return Err(StoreError::Corrupt(format!(
            "store: {shown}: damaged: what it holds does not add up; nothing is read"
        )));
    }
    let log = open_log(folder)?;
    // What was read may be in the host's memory only.
    log.sync_data().map_err(|e| disk_error(folder, &e))?;
    for entry in [Some(folder), folder.parent()].into_iter().flatten() {
        File::open(entry).and_then(|dir| dir.sync_all()).map_err(|e| disk_error(folder, &e))?;
    }
    Ok(VerifiedFiles { files: SledFiles { db, log, folder: folder.to_owned() }, preloaded, checksum })
}

/// Opens sled's files and reads nothing.
pub(super) fn open_files(folder: &Path) -> Result<SledFiles, StoreError> {
    Ok(SledFiles { db: open_db(folder)?, log: open_log(folder)?, folder: folder.to_owned() })
}

fn open_log(folder: &Path) -> Result<File, StoreError> {
    File::open(folder.join("db")).map_err(|e| disk_error(folder, &e))
}

fn open_db(folder: &Path) -> Result<sled::Db, StoreError> {
    let mut tries = 0;
    loop {
        let config = sled::Config::new().path(folder).cache_capacity(CACHE_SIZE).flush_every_ms(None);
        match catch_panic(folder, || config.open()) {
            Err(StoreError::Io(e)) if e.to_string().contains("could not acquire lock") => {
                tries += 1;
                if tries == LOCK_TRIES {
                    return Err(StoreError::Locked(format!(
                        "store: {}: in use: {e}; it is not opened a second time",
                        folder.display()
                    )));
                }
                std::thread::sleep(LOCK_RETRY_DELAY);
            }
            other => return other,
        }
    }
}

/// The result of reading all records.
#[derive(Default)]
struct FullScan {
    checksum: StoreChecksum,
    sum: u64,
    preloaded: HashMap<u8, KeyValues>,
}

/// Reads every record: the tables that are read whole at start on a thread each, for that is where most are.
fn read_all(db: &sled::Db, folder: &Path) -> Result<FullScan, StoreError> {
    let mut tags = PRELOADED.map(|table| format::record_key(table, b"")[0]);
    tags.sort_unstable();
    let mut parts = vec![(None, Some(tags[0]))];
    parts.extend(tags.windows(2).map(|pair| (Some(pair[0]), Some(pair[1]))));
    parts.push((tags.last().copied(), None));
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> =
            parts.into_iter().map(|(from, to)| scope.spawn(move || read_part(db, folder, from, to))).collect();
        // `read_part` catches what sled panics over.
        readers.into_iter().map(|reader| reader.join().expect("a reader does not panic")).collect::<Vec<_>>()
    });
    let mut all = FullScan::default();
    for part in read {
        let part = part?;
        if part.checksum != StoreChecksum::default() {
            all.checksum = part.checksum;
        }
        all.sum = all.sum.wrapping_add(part.sum);
        all.preloaded.extend(part.preloaded);
    }
    Ok(all)
}

/// Reads the records from one tag (inclusive) to another (exclusive); the first, if there is one, is that of a table that
/// is read whole at start.
fn read_part(db: &sled::Db, folder: &Path, from: Option<u8>, to: Option<u8>) -> Result<FullScan, StoreError> {
    let (mut all, mut pairs) = (FullScan::default(), KeyValues::new());
    let after =
        |tag: Option<u8>, bound: fn(Vec<u8>) -> Bound<Vec<u8>>| tag.map_or(Bound::Unbounded, |tag| bound(vec![tag]));
    let mut records = db.range((after(from, Bound::Included), after(to, Bound::Excluded)));
    while let Some((key, value)) = catch_panic(folder, || records.next().transpose())? {
        if *key == *format::store_checksum_key() {
            let wrong = |e| StoreError::Corrupt(format!("store: {}: {e}; nothing is read", folder.display()));
            all.checksum = StoreChecksum::decode(&value).map_err(wrong)?;
            continue;
        }
        all.sum = all.sum.wrapping_add(format::record_checksum(&key, &value));
        if from.is_some() && key.first().copied() == from {
            pairs.push((key, value));
        }
    }
    all.preloaded.extend(from.map(|tag| (tag, pairs)));
    Ok(all)
}

/// Checks the record of the format, or writes it into a new store. Returns the checksum that is in force then.
fn check_format(
    store_folder: &Path,
    files: &SledFiles,
    acknowledged: &File,
    checksum: StoreChecksum,
) -> Result<StoreChecksum, StoreError> {
    let key = format::record_key(Table::NamedValue, VERSION_KEY);
    let checksum = match files.get(&key)? {
        None => {
            let new = Some(StoredValue::Whole(VERSION.to_string().as_bytes()).encode());
            let written = files.commit(acknowledged, checksum, [(key, KeyChange { old: None, new })].into());
            written.map_err(|failed| failed.error)?
        }
        Some(value) => check_format_value(store_folder, &value).map(|()| checksum)?,
    };
    write_format(store_folder)?;
    Ok(checksum)
}

/// Refuses a store whose record of the format names another one.
pub(super) fn check_format_record(store_folder: &Path, files: &SledFiles) -> Result<(), StoreError> {
    let value = files.get(&format::record_key(Table::NamedValue, VERSION_KEY))?;
    value.map_or(Ok(()), |value| check_format_value(store_folder, &value))
}

fn check_format_value(store_folder: &Path, value: &[u8]) -> Result<(), StoreError> {
    let found = decode_format(value).ok_or_else(|| {
        StoreError::Corrupt(format!(
            "store: {}: damaged: its format is not a number: `{}`; it is left unchanged",
            store_folder.display(),
            value.escape_ascii()
        ))
    })?;
    refuse_other_format(store_folder, found)
}

/// Decodes the number of the format from its record.
fn decode_format(record: &[u8]) -> Option<u32> {
    let Ok(StoredValue::Whole(text)) = StoredValue::decode(record) else { return None };
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Refuses a folder whose file of the format names another one.
pub(super) fn check_format_file(store_folder: &Path) -> Result<(), StoreError> {
    // One that is missing or makes no sense decides nothing: the record of the format does.
    let text = fs::read_to_string(store_folder.join(FORMAT_FILE)).unwrap_or_default();
    text.trim().parse().map_or(Ok(()), |found| refuse_other_format(store_folder, found))
}

/// Refuses every format but ours, with what to do and what is lost.
fn refuse_other_format(store_folder: &Path, found: u32) -> Result<(), StoreError> {
    let shown = store_folder.display();
    let line = match found.cmp(&VERSION) {
        Ordering::Equal => return Ok(()),
        Ordering::Less => format!(
            "store: {shown}: unsupported format {found}: written by an older version, this one needs format {VERSION}; \
             move or remove the folder to start with an empty store. Lost with it: counts not yet reported, cached \
             policies, the positions in the inputs and which reports were sent. What the inputs still hold is counted \
             again, and may be reported a second time"
        ),
        Ordering::Greater => format!(
            "store: {shown}: unsupported format {found}: written by a newer version, this one needs format {VERSION}; \
             install the newer version, or put back a backup of format {VERSION}. The store is left unchanged"
        ),
    };
    Err(StoreError::Unusable(line))
}

/// Writes the file of the format, if it does not say so already.
pub(super) fn write_format(store_folder: &Path) -> Result<(), StoreError> {
    let (path, text) = (store_folder.join(FORMAT_FILE), format!("{VERSION}\n"));
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(&path, text).and_then(|()| File::open(&path)?.sync_all()).map_err(|e| disk_error(store_folder, &e))
}

fn drop_unfetched_backups(store_folder: &Path) {
    let Ok(entries) = fs::read_dir(store_folder) else { return };
    let is_one = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(BACKUP_PREFIX.as_bytes());
    for entry in entries.filter_map(Result::ok).filter(|entry| is_one(&entry.file_name())) {
        // What cannot be removed takes room, and no more.
        let _ = fs::remove_dir_all(entry.path());
    }
}

/// A kill while sled writes a snapshot leaves a file that sled would take for the newest one.
fn drop_unfinished_snapshots(folder: &Path) {
    for path in snapshots(folder) {
        if path.extension().is_some_and(|end| end == "generating") {
            // What cannot be removed shows when sled opens.
            let _ = fs::remove_file(path);
        }
    }
}

/// The snapshot that sled would read, if its checksum is wrong, with the reason. sled keeps in it where the pages
/// are, to start sooner; the log alone says the same.
fn damaged_snapshot(folder: &Path) -> Option<(PathBuf, &'static str)> {
    let newest = snapshots(folder).into_iter().max()?;
    // One that cannot be read at all shows when sled opens.
    let bytes = fs::read(&newest).ok()?;
    let Some((rest, checksum)) = bytes.split_last_chunk::<4>() else { return Some((newest, "empty or cut")) };
    let Some((body, _length)) = rest.split_last_chunk::<8>() else { return Some((newest, "empty or cut")) };
    let mut crc = flate2::Crc::new();
    crc.update(body);
    match !body.is_empty() && crc.sum() == u32::from_le_bytes(*checksum) {
        true => None,
        false => Some((newest, "cut or overwritten")),
    }
}

fn snapshots(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let is_one = |path: &PathBuf| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"snap."));
    entries.filter_map(Result::ok).map(|entry| entry.path()).filter(is_one).collect()
}

/// The folder that damaged files are moved to.
struct AsideFolder<'a> {
    store_folder: &'a Path,
    folder: &'a Path,
    clock: Clock,
}

impl AsideFolder<'_> {
    /// Moves the snapshots aside.
    fn move_snapshots(&self) -> Result<PathBuf, StoreError> {
        let to = self.create()?;
        for path in snapshots(self.folder) {
            let Some(name) = path.file_name() else { continue };
            fs::rename(&path, to.join(name)).map_err(|e| disk_error(self.folder, &e))?;
        }
        Ok(to)
    }

    /// Moves sled's whole folder aside.
    fn move_all(&self) -> Result<PathBuf, StoreError> {
        let to = self.create()?.join(SLED_FOLDER);
        fs::rename(self.folder, &to).map_err(|e| disk_error(self.folder, &e))?;
        Ok(to)
    }

    /// Creates the folder.
    fn create(&self) -> Result<PathBuf, StoreError> {
        let date = jiff::Timestamp::from_second(self.clock.seconds()).unwrap_or_default();
        let date = date.strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut to = self.store_folder.join(format!("aside-{date}"));
        let mut number = 1;
        loop {
            match fs::create_dir(&to) {
                Ok(()) => return Ok(to),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    number += 1;
                    to = self.store_folder.join(format!("aside-{date}-{number}"));
                }
                Err(e) => return Err(disk_error(self.folder, &e)),
            }
        }
    }
}
