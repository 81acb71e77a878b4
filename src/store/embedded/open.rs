//! Opens the embedded store's folder: claims it, heals what can be healed, says what was lost.
//!
//! Takes: a folder, and a clock to date what is moved aside. Gives: a store, and notices.
//! Limits: what is moved aside stays in `FOLDER/aside-DATE` until the administrator removes it.
//! When it fails: `Locked` for a second opener, `Unusable` for a folder that cannot be used or a store of another format.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::ops::Bound;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::{CACHE, Change, Embedded, Files, Pairs, READ_AT_START, State, acknowledge, guarded, io_fault};
use crate::base::clock::Clock;
use crate::store::format::{self, Seal, VERSION, VERSION_KEY, Value};
use crate::store::{Family, StoreError};

/// sled's folder below ours, so that it can be moved aside where our parent is not writable.
pub(super) const FOLDER: &str = "embedded";

/// The file that says who has the folder.
const LOCK: &str = "lock";

/// The file with the number of the last acknowledged commit.
pub(super) const ACKNOWLEDGED: &str = "acknowledged";

/// The file with the format of the store, read before anything else is: another format may not even add up for us.
const FORMAT: &str = "format";

/// What copies for a backup are named, with a number behind it: one that is still there was not fetched.
pub const BACKUP: &str = "backup-";

/// How often a lock is tried: ours, which the command line has for a moment where no daemon answers; sled's own, which only
/// what this process let go a moment ago can hold.
const TRIES: u32 = 40;

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// An open store.
pub struct Opened {
    /// The store.
    pub store: Embedded,
    /// What had to be said while opening it, also logged: lines `subject: problem: cause; consequence`.
    pub notices: Vec<String>,
    /// Where a damaged store was moved whole, if that was so: the store is empty, what was sent is not known.
    pub lost: Option<PathBuf>,
    /// How many acknowledged commits a damaged log has lost at its end. The store is as it was before them: counts and
    /// marks agree, and what was sent since is not known.
    pub missing_commits: u64,
}

impl Opened {
    /// Whether commits are gone: what was sent under them is not known, and nothing is sent twice.
    pub fn went_back(&self) -> bool {
        self.lost.is_some() || self.missing_commits > 0
    }
}

pub(super) fn open(home: &Path, clock: Clock) -> Result<Opened, StoreError> {
    let lock = claim(home)?;
    check_format_file(home)?;
    drop_unfetched_backups(home);
    let (acknowledged, number) = acknowledged(home)?;
    let Found { files, opening, seal, notices, lost, missing_commits } = find(home, clock, &acknowledged, number)?;
    let state = State {
        files: Ok(files),
        opening: Mutex::new(opening),
        remembered: HashSet::new(),
        seal,
        tried: None,
        kept: None,
    };
    let store = Embedded {
        state: RwLock::new(state),
        acknowledged,
        home: home.to_owned(),
        folder: home.join(FOLDER),
        clock,
        damage: Notify::new(),
        _lock: lock,
    };
    Ok(Opened { store, notices, lost, missing_commits })
}

/// What a folder that is claimed holds.
pub(super) struct Found {
    pub files: Files,
    pub opening: HashMap<u8, Pairs>,
    pub seal: Seal,
    notices: Vec<String>,
    pub lost: Option<PathBuf>,
    pub missing_commits: u64,
}

/// sled's files as they were opened, and what was read meanwhile.
pub(super) struct Started {
    pub files: Files,
    pub opening: HashMap<u8, Pairs>,
    pub seal: Seal,
}

/// Opens what the folder holds, where `number` commits were acknowledged; what is damaged beyond use is moved aside.
pub(super) fn find(home: &Path, clock: Clock, acknowledged: &File, number: u64) -> Result<Found, StoreError> {
    let folder = home.join(FOLDER);
    let mut notices = Vec::new();
    let mut lost = None;
    let mut say = |line: String| {
        tracing::warn!("{line}");
        notices.push(line);
    };
    let shown = home.display();
    let mut opened = start_from_log(home, clock, &mut say);
    if let Err(StoreError::Corrupt(cause)) = &opened {
        let to = Aside { home, folder: &folder, clock }.all()?;
        let kept = to.display();
        say(cause.clone());
        say(format!("store: {shown}: LOST: damaged beyond use; it starts empty, the old one is kept in {kept}"));
        lost = Some(to);
        opened = start(&folder);
    }
    let Started { files, opening, seal } = opened?;
    let seal = check_format(home, &files, acknowledged, seal)?;
    let missing_commits = if lost.is_some() { 0 } else { number.saturating_sub(seal.commits) };
    if missing_commits > 0 {
        say(format!(
            "store: {shown}: went back: {missing_commits} commits are missing at its damaged end; what they counted is \
             counted again from their marks, what was sent since may be sent again"
        ));
    }
    acknowledge(acknowledged, seal).map_err(|e| io_fault(home, &e))?;
    Ok(Found { files, opening, seal, notices, lost, missing_commits })
}

/// Opens sled's files. A damaged snapshot is moved aside, for the log says all; nothing else is.
pub(super) fn start_from_log(home: &Path, clock: Clock, mut say: impl FnMut(String)) -> Result<Started, StoreError> {
    let folder = home.join(FOLDER);
    drop_unfinished_snapshots(&folder);
    if let Some((path, cause)) = damaged_snapshot(&folder) {
        let to = Aside { home, folder: &folder, clock }.snapshots()?;
        let (path, to) = (path.display(), to.display());
        say(format!(
            "store: {path}: damaged: {cause}; it was moved to {to}, all is read from the log, nothing is lost"
        ));
    }
    start(&folder)
}

/// The file with the number of the last acknowledged commit, and that number; none counts as 0.
pub(super) fn acknowledged(home: &Path) -> Result<(File, u64), StoreError> {
    let path = home.join(ACKNOWLEDGED);
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = file.map_err(|e| io_fault(home, &e))?;
    let mut number = [0; 8];
    let whole = file.read_exact_at(&mut number, 0).is_ok();
    Ok((file, if whole { u64::from_be_bytes(number) } else { 0 }))
}

/// Makes the folder and takes it for this process.
fn claim(home: &Path) -> Result<File, StoreError> {
    let shown = home.display();
    let unusable = |cause: &dyn std::fmt::Display| {
        StoreError::Unusable(format!("store: {shown}: cannot be used: {cause}; nothing is counted or answered"))
    };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(home).map_err(|e| match home.is_file() {
        true => unusable(&"it is a file, not a folder"),
        false => unusable(&e),
    })?;
    let path = home.join(LOCK);
    let mut lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|e| unusable(&format_args!("{}: {e}", path.display())))?;
    let mut tries = 0;
    let locked = loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            locked => break locked,
        }
    };
    match locked {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let holder = match (&lock).take(20).read_to_string(&mut holder) {
                Ok(1..) => format!("process {}", holder.trim().escape_debug()),
                _ => "another process".to_owned(),
            };
            return Err(StoreError::Locked(format!(
                "store: {shown}: in use: {holder} has it open; it is not opened a second time"
            )));
        }
        Err(TryLockError::Error(e)) => return Err(unusable(&e)),
    }
    // For whoever finds it locked; the lock itself does not depend on it.
    if let Err(e) = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())) {
        return Err(unusable(&format_args!("{}: {e}", path.display())));
    }
    Ok(lock)
}

/// Opens sled's files and reads every record once: damage shows now, while it can be dealt with. sled itself may put
/// pages of several commits together where part of its log is gone; then the seal does not add up.
fn start(folder: &Path) -> Result<Started, StoreError> {
    let db = open_db(folder)?;
    let All { seal, sum, opening } = read_all(&db, folder)?;
    if sum != seal.sum {
        let shown = folder.display();
        return Err(StoreError::Corrupt(format!(
            "store: {shown}: damaged: what it holds does not add up; nothing is read"
        )));
    }
    let log = open_log(folder)?;
    // What was read may be in the host's memory only.
    log.sync_data().map_err(|e| io_fault(folder, &e))?;
    for entry in [Some(folder), folder.parent()].into_iter().flatten() {
        File::open(entry).and_then(|dir| dir.sync_all()).map_err(|e| io_fault(folder, &e))?;
    }
    Ok(Started { files: Files { db, log, folder: folder.to_owned() }, opening, seal })
}

/// Opens sled's files and reads nothing.
pub(super) fn open_files(folder: &Path) -> Result<Files, StoreError> {
    Ok(Files { db: open_db(folder)?, log: open_log(folder)?, folder: folder.to_owned() })
}

fn open_log(folder: &Path) -> Result<File, StoreError> {
    File::open(folder.join("db")).map_err(|e| io_fault(folder, &e))
}

fn open_db(folder: &Path) -> Result<sled::Db, StoreError> {
    let mut tries = 0;
    loop {
        let config = sled::Config::new().path(folder).cache_capacity(CACHE).flush_every_ms(None);
        match guarded(folder, || config.open()) {
            Err(StoreError::Io(e)) if e.to_string().contains("could not acquire lock") => {
                tries += 1;
                if tries == TRIES {
                    return Err(StoreError::Locked(format!(
                        "store: {}: in use: {e}; it is not opened a second time",
                        folder.display()
                    )));
                }
                std::thread::sleep(PAUSE);
            }
            other => return other,
        }
    }
}

/// What all records come to.
#[derive(Default)]
struct All {
    seal: Seal,
    sum: u64,
    opening: HashMap<u8, Pairs>,
}

/// Reads every record: the families that are read whole at start on a thread each, for that is where most are.
fn read_all(db: &sled::Db, folder: &Path) -> Result<All, StoreError> {
    let mut tags = READ_AT_START.map(|family| format::record_key(family, b"")[0]);
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
    let mut all = All::default();
    for part in read {
        let part = part?;
        if part.seal != Seal::default() {
            all.seal = part.seal;
        }
        all.sum = all.sum.wrapping_add(part.sum);
        all.opening.extend(part.opening);
    }
    Ok(all)
}

/// Reads the records from one tag (inclusive) to another (exclusive); the first, if there is one, is that of a family that
/// is read whole at start.
fn read_part(db: &sled::Db, folder: &Path, from: Option<u8>, to: Option<u8>) -> Result<All, StoreError> {
    let (mut all, mut pairs) = (All::default(), Pairs::new());
    let after =
        |tag: Option<u8>, bound: fn(Vec<u8>) -> Bound<Vec<u8>>| tag.map_or(Bound::Unbounded, |tag| bound(vec![tag]));
    let mut records = db.range((after(from, Bound::Included), after(to, Bound::Excluded)));
    while let Some((key, value)) = guarded(folder, || records.next().transpose())? {
        if *key == *format::seal_key() {
            let wrong = |e| StoreError::Corrupt(format!("store: {}: {e}; nothing is read", folder.display()));
            all.seal = Seal::decode(&value).map_err(wrong)?;
            continue;
        }
        all.sum = all.sum.wrapping_add(format::checksum(&key, &value));
        if from.is_some() && key.first().copied() == from {
            pairs.push((key, value));
        }
    }
    all.opening.extend(from.map(|tag| (tag, pairs)));
    Ok(all)
}

/// Checks the record of the format, or writes it into a new store. Gives the seal that stands then.
fn check_format(home: &Path, files: &Files, acknowledged: &File, seal: Seal) -> Result<Seal, StoreError> {
    let key = format::record_key(Family::Single, VERSION_KEY);
    let seal = match files.value(&key)? {
        None => {
            let new = Some(Value::Whole(VERSION.to_string().as_bytes()).encode());
            let written = files.commit(acknowledged, seal, [(key, Change { old: None, new })].into());
            written.map_err(|failed| failed.error)?
        }
        Some(value) => {
            let Some(found) = number_in(&value) else {
                return Err(StoreError::Corrupt(format!(
                    "store: {}: damaged: its format is not a number: `{}`; it is left unchanged",
                    home.display(),
                    value.escape_ascii()
                )));
            };
            refuse_others(home, found)?;
            seal
        }
    };
    write_format(home)?;
    Ok(seal)
}

/// The number in the record of the format.
fn number_in(record: &[u8]) -> Option<u32> {
    let Ok(Value::Whole(text)) = Value::decode(record) else { return None };
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Refuses a folder whose file of the format names another one.
fn check_format_file(home: &Path) -> Result<(), StoreError> {
    // One that is missing or makes no sense decides nothing: the record of the format does.
    let text = fs::read_to_string(home.join(FORMAT)).unwrap_or_default();
    text.trim().parse().map_or(Ok(()), |found| refuse_others(home, found))
}

/// Refuses every format but ours, with what to do and what is lost.
fn refuse_others(home: &Path, found: u32) -> Result<(), StoreError> {
    let shown = home.display();
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
pub(super) fn write_format(home: &Path) -> Result<(), StoreError> {
    let (path, text) = (home.join(FORMAT), format!("{VERSION}\n"));
    if fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    fs::write(&path, text).and_then(|()| File::open(&path)?.sync_all()).map_err(|e| io_fault(home, &e))
}

fn drop_unfetched_backups(home: &Path) {
    let Ok(entries) = fs::read_dir(home) else { return };
    let is_one = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(BACKUP.as_bytes());
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
    let octets = fs::read(&newest).ok()?;
    let Some((rest, checksum)) = octets.split_last_chunk::<4>() else { return Some((newest, "empty or cut")) };
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

/// Where damaged files go.
struct Aside<'a> {
    home: &'a Path,
    folder: &'a Path,
    clock: Clock,
}

impl Aside<'_> {
    /// Moves the snapshots aside.
    fn snapshots(&self) -> Result<PathBuf, StoreError> {
        let to = self.place()?;
        for path in snapshots(self.folder) {
            let Some(name) = path.file_name() else { continue };
            fs::rename(&path, to.join(name)).map_err(|e| io_fault(self.folder, &e))?;
        }
        Ok(to)
    }

    /// Moves sled's whole folder aside.
    fn all(&self) -> Result<PathBuf, StoreError> {
        let to = self.place()?.join(FOLDER);
        fs::rename(self.folder, &to).map_err(|e| io_fault(self.folder, &e))?;
        Ok(to)
    }

    /// A new folder for it.
    fn place(&self) -> Result<PathBuf, StoreError> {
        let date = jiff::Timestamp::from_second(self.clock.seconds()).unwrap_or_default();
        let date = date.strftime("%Y%m%dT%H%M%SZ").to_string();
        let mut to = self.home.join(format!("aside-{date}"));
        let mut number = 1;
        loop {
            match fs::create_dir(&to) {
                Ok(()) => return Ok(to),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    number += 1;
                    to = self.home.join(format!("aside-{date}-{number}"));
                }
                Err(e) => return Err(io_fault(self.folder, &e)),
            }
        }
    }
}
