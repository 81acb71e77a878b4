//! A deterministic simulation: the follower, its stored position and the commits, on a model of a disk and of a store.
//!
//! A seed makes a schedule of at least [`STEPS`] steps: lines are written, whole or in pieces, the log is rotated in every
//! style, packed, removed, cut, the disk is full in the middle of a line, the host loses its power (what was not written
//! back is gone, or zeros), the daemon is killed, the store does not write (ENOSPC), or writes and reports a failure (EIO of
//! fsync), and every call to the file system may fail with EIO, EACCES, ESTALE, ENFILE or EMFILE. Time is simulated.
//! What must hold: no line is committed twice, and each line that is left in any file in the end was committed; but for those
//! of one second, where a log was edited or replaced by a damaged copy and only times tell what was counted.
//! `TLSWARDEN_SCHEDULES=from..to` chooses the seeds (0..1000000 by hand); a failure names its seed and its steps.
//! Not here: what lines mean, and the thread and channels of the counting task.

mod random;
mod seeds;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use flate2::read::GzDecoder;
use flate2::{Compression, write::GzEncoder};
use tlswarden::counting::input::file::InputPaths;
use tlswarden::counting::input::file::file_system::{LogFileHandle, LogFileKind, LogFileMetadata, LogFileSystem};
use tlswarden::counting::input::file::follow::{FollowStep, LogReader};
use tlswarden::counting::input::{Position, RepeatedLines};

use random::SplitMix64;
use seeds::run_seeds;

/// The steps of a schedule, before the rest is read.
const STEPS: u64 = 200;

/// The schedules that each run of the tests makes: 30 ms of a processor each, without optimization.
const DEFAULT_SCHEDULES: u64 = 10_000;

/// The bytes at the beginning of a file that are written back first.
const FIRST_BLOCK: usize = 512;

/// How long a writer may keep on writing to a rotated file.
const QUIET: Duration = Duration::from_secs(1);

/// A file: its content, and how much of it has been written back.
#[derive(Clone, Default)]
struct ModelFile {
    content: Vec<u8>,
    written_back: usize,
    modified: Duration,
}

/// The disk.
struct Disk {
    names: BTreeMap<PathBuf, u64>,
    files: BTreeMap<u64, ModelFile>,
    next_inode: u64,
    folder_modified: Duration,
    /// Time since the schedule began.
    now: Duration,
    /// Of how many calls one fails; 0: none.
    faults: u64,
    random: SplitMix64,
}

/// The file system that the follower sees.
struct ModelFileSystem {
    disk: Arc<Mutex<Disk>>,
    start: Instant,
}

struct ModelHandle {
    disk: Arc<Mutex<Disk>>,
    inode: u64,
}

fn folder() -> &'static Path {
    Path::new("/log")
}

fn log() -> PathBuf {
    folder().join("mail.log")
}

/// Where logrotate's `olddir` puts rotated files.
fn old_folder() -> PathBuf {
    folder().join("old")
}

/// How rotated files are named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// `mail.log.1`, older ones further on.
    Numbered,
    /// `mail.log-20261101`.
    Dated,
    /// `mail-20261101.log`.
    DatedBeforeExtension,
}

impl Disk {
    fn time(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + self.now
    }

    fn metadata(&self, inode: u64) -> LogFileMetadata {
        let file = &self.files[&inode];
        let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + file.modified;
        LogFileMetadata { kind: LogFileKind::Regular, device: 1, inode, length: file.content.len() as u64, modified }
    }

    fn fail(&mut self) -> io::Result<()> {
        if self.faults > 0 && self.random.below(self.faults) == 0 {
            // EIO, EACCES, ESTALE, EMFILE, ENFILE.
            let errno = [5, 13, 116, 24, 23][self.random.below(5) as usize];
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    fn create(&mut self, path: PathBuf, content: Vec<u8>) -> u64 {
        let inode = self.next_inode;
        self.next_inode += 1;
        self.files.insert(inode, ModelFile { content, written_back: 0, modified: self.now });
        self.names.insert(path, inode);
        self.folder_modified = self.now;
        inode
    }

    fn rename(&mut self, from: &Path, to: PathBuf) {
        if let Some(inode) = self.names.remove(from) {
            self.names.insert(to, inode);
            self.folder_modified = self.now;
        }
    }
}

impl ModelFileSystem {
    fn disk(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk.lock().unwrap();
        disk.fail()?;
        Ok(disk)
    }
}

impl LogFileSystem for ModelFileSystem {
    fn metadata(&self, path: &Path) -> io::Result<LogFileMetadata> {
        let disk = self.disk()?;
        if path == folder() || path == old_folder() {
            let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + disk.folder_modified;
            return Ok(LogFileMetadata { kind: LogFileKind::Folder, device: 1, inode: 1, length: 0, modified });
        }
        let inode = disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(disk.metadata(*inode))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFileHandle>> {
        let disk = self.disk()?;
        let inode = *disk.names.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(ModelHandle { disk: Arc::clone(&self.disk), inode }))
    }

    fn names(&self, path: &Path) -> io::Result<Vec<OsString>> {
        // A folder below the log's that refuses is taken for one of others.
        let refused = |e: &io::Error| path != folder() && e.kind() == io::ErrorKind::PermissionDenied;
        let disk = self.disk().map_err(|e| if refused(&e) { io::ErrorKind::Interrupted.into() } else { e })?;
        if path != folder() && path != old_folder() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let inside = disk.names.keys().filter(|file| file.parent() == Some(path));
        let old = (path == folder()).then(|| OsString::from("old"));
        Ok(inside.filter_map(|file| file.file_name()).map(ToOwned::to_owned).chain(old).collect())
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }

    fn now(&self) -> Instant {
        self.start + self.disk.lock().unwrap().now
    }

    fn time(&self) -> SystemTime {
        self.disk.lock().unwrap().time()
    }
}

impl LogFileHandle for ModelHandle {
    fn metadata(&self) -> io::Result<LogFileMetadata> {
        let mut disk = self.disk.lock().unwrap();
        disk.fail()?;
        Ok(disk.metadata(self.inode))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.disk.lock().unwrap();
        disk.fail()?;
        let content = &disk.files[&self.inode].content;
        let rest = content.get(offset as usize..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// What is committed: lines and the position after them, together.
#[derive(Clone, Default)]
struct ModelStore {
    position: Option<Vec<u8>>,
    /// How often each line was counted.
    counted: HashMap<u32, u32>,
    newest: u64,
    left_out_until: Option<u64>,
    /// The lines of the last second of those that are left out: whether they were counted nothing tells.
    of_that_second: BTreeSet<u32>,
}

/// The host: disk, writer, rotation, daemon and store.
struct Host {
    seed: u64,
    disk: Arc<Mutex<Disk>>,
    start: Instant,
    random: SplitMix64,
    naming: Naming,
    /// Where rotated files go.
    rotated_to: PathBuf,
    rotations: u64,
    /// The file that the writer has open.
    out: u64,
    written: u32,
    /// The rest of a line of which a piece has been written.
    rest: Vec<u8>,
    reader: LogReader,
    store: ModelStore,
    /// What is counted and waits for its commit.
    pending: Option<ModelStore>,
    story: Vec<String>,
}

impl Host {
    fn new(seed: u64) -> Host {
        let mut random = SplitMix64(seed);
        let mut disk = Disk {
            names: BTreeMap::new(),
            files: BTreeMap::new(),
            next_inode: 10,
            folder_modified: Duration::ZERO,
            now: Duration::from_secs(1),
            faults: 0,
            random: SplitMix64(!seed),
        };
        let out = disk.create(log(), Vec::new());
        let disk = Arc::new(Mutex::new(disk));
        let start = Instant::now();
        let store = ModelStore::default();
        let reader = open_reader(&disk, start, &store);
        let naming =
            [Naming::Numbered, Naming::Numbered, Naming::Dated, Naming::DatedBeforeExtension][random.below(4) as usize];
        let rotated_to = if random.below(4) == 0 { old_folder() } else { folder().to_owned() };
        Host {
            seed,
            disk,
            start,
            random,
            naming,
            rotated_to,
            rotations: 0,
            out,
            written: 0,
            rest: Vec::new(),
            reader,
            store,
            pending: None,
            story: Vec::new(),
        }
    }

    fn pass(&mut self, time: Duration) {
        self.disk.lock().unwrap().now += time;
    }

    fn line(&mut self) -> Vec<u8> {
        self.written += 1;
        let seconds = self.disk.lock().unwrap().now.as_secs();
        let filler = &"of a message that was sent somewhere"[..self.random.below(36) as usize];
        format!("{:08} {seconds:08} mta postfix/smtp[7]: a line with a text {filler}.\n", self.written).into_bytes()
    }

    fn append(&mut self, bytes: &[u8]) {
        let mut disk = self.disk.lock().unwrap();
        let now = disk.now;
        let Some(file) = disk.files.get_mut(&self.out) else { return };
        file.content.extend_from_slice(bytes);
        file.modified = now;
    }

    fn finish_line(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        self.append(&rest);
    }

    fn write(&mut self, lines: u64) {
        self.finish_line();
        let text: Vec<u8> = (0..lines).flat_map(|_| self.line()).collect();
        self.append(&text);
    }

    /// The writer opens the log, and makes it where it is not there.
    fn reopen(&mut self) {
        self.finish_line();
        let mut disk = self.disk.lock().unwrap();
        let there = disk.names.get(&log()).copied();
        self.out = there.unwrap_or_else(|| disk.create(log(), Vec::new()));
    }

    fn rotated_name(&mut self) -> PathBuf {
        self.rotations += 1;
        let date = self.date();
        match self.naming {
            Naming::Dated => return self.rotated_to.join(format!("mail.log-{date}")),
            Naming::DatedBeforeExtension => return self.rotated_to.join(format!("mail-{date}.log")),
            Naming::Numbered => {}
        }
        let mut disk = self.disk.lock().unwrap();
        let mut numbered: Vec<(u64, PathBuf, &str)> = disk
            .names
            .keys()
            .filter_map(|path| {
                let suffix = path.file_name()?.to_str()?.strip_prefix("mail.log.")?;
                let (number, end) = match suffix.strip_suffix(".gz") {
                    Some(number) => (number, ".gz"),
                    None => (suffix, ""),
                };
                Some((number.parse().ok()?, path.clone(), end))
            })
            .collect();
        numbered.sort();
        for (number, path, end) in numbered.iter().rev() {
            disk.rename(path, self.rotated_to.join(format!("mail.log.{}{end}", number + 1)));
        }
        self.rotated_to.join("mail.log.1")
    }

    /// The date of the next rotated file: a day for each rotation.
    fn date(&self) -> String {
        let first = jiff::civil::date(2026, 11, 1);
        let day = first.checked_add(jiff::Span::new().days(self.rotations as i64)).unwrap();
        day.strftime("%Y%m%d").to_string()
    }

    /// Removes the oldest rotated file, as rotation does with those that are too old.
    fn remove_oldest(&mut self) {
        let mut disk = self.disk.lock().unwrap();
        let oldest = disk.names.iter().filter(|(path, _)| **path != log()).min_by_key(|(_, inode)| **inode);
        if let Some(path) = oldest.map(|(path, _)| path.clone()) {
            disk.names.remove(&path);
            disk.folder_modified = disk.now;
        }
    }

    /// The disk is full: the rest of a line is not written.
    fn write_without_room(&mut self) {
        self.finish_line();
        let line = self.line();
        let cut = self.random.below(line.len() as u64) as usize;
        self.append(&line[..cut]);
    }

    fn rename_rotate(&mut self) {
        if !self.disk.lock().unwrap().names.contains_key(&log()) {
            return self.reopen();
        }
        let name = self.rotated_name();
        let mut disk = self.disk.lock().unwrap();
        disk.rename(&log(), name);
        if self.random.below(2) == 0 {
            disk.create(log(), Vec::new());
        }
        drop(disk);
        for _ in 0..self.random.below(3) {
            self.write(1);
            self.read();
        }
        if self.random.below(4) > 0 {
            self.reopen();
        }
    }

    fn copy_truncate(&mut self) {
        // Lines between the copy and the truncation are lost by copytruncate itself, so that none is written there.
        let Some(inode) = self.disk.lock().unwrap().names.get(&log()).copied() else { return };
        if inode != self.out {
            return;
        }
        self.finish_line();
        let name = self.rotated_name();
        let mut disk = self.disk.lock().unwrap();
        let content = disk.files[&inode].content.clone();
        disk.create(name, content);
        drop(disk);
        if self.random.below(2) == 0 {
            self.read();
        }
        let mut disk = self.disk.lock().unwrap();
        let now = disk.now;
        if let Some(file) = disk.files.get_mut(&inode) {
            *file = ModelFile { modified: now, ..ModelFile::default() };
        }
    }

    /// Packs a rotated file that nobody writes to.
    fn pack(&mut self) {
        let mut disk = self.disk.lock().unwrap();
        let plain: Vec<PathBuf> = disk
            .names
            .iter()
            .filter(|(path, inode)| {
                **path != log() && **inode != self.out && path.extension().is_none_or(|e| e != "gz")
            })
            .map(|(path, _)| path.clone())
            .collect();
        let Some(path) = plain.get(self.random.below(plain.len().max(1) as u64) as usize) else { return };
        let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
        packer.write_all(&disk.files[&disk.names[path]].content).unwrap();
        let packed = packer.finish().unwrap();
        let length = packed.len();
        let inode = disk.create(PathBuf::from(format!("{}.gz", path.display())), packed);
        disk.files.get_mut(&inode).unwrap().written_back = length;
        drop(disk);
        if self.random.below(2) == 0 {
            self.read();
        }
        let mut disk = self.disk.lock().unwrap();
        disk.names.remove(path);
        disk.folder_modified = disk.now;
    }

    /// A copy takes the place of the log, as of an editor or rsync.
    fn replace_by_copy(&mut self) {
        self.finish_line();
        let mut disk = self.disk.lock().unwrap();
        let Some(inode) = disk.names.get(&log()).copied().filter(|inode| *inode == self.out) else { return };
        let content = disk.files[&inode].content.clone();
        self.out = disk.create(log(), content);
    }

    /// The log loses its end.
    fn cut(&mut self) {
        let mut disk = self.disk.lock().unwrap();
        if disk.names.get(&log()) != Some(&self.out) {
            return;
        }
        let now = disk.now;
        let Some(file) = disk.files.get_mut(&self.out) else { return };
        let length = file.content.len();
        file.content.truncate(length - self.random.below(length.min(2_000) as u64 + 1) as usize);
        file.written_back = file.written_back.min(file.content.len());
        file.modified = now;
        self.rest.clear();
        drop(disk);
        // Whoever does that takes a moment.
        self.pass(Duration::from_secs(2));
    }

    fn write_back(&mut self) {
        let mut disk = self.disk.lock().unwrap();
        let disk = &mut *disk;
        for file in disk.files.values_mut() {
            if disk.random.below(2) == 0 {
                file.written_back = file.content.len();
            }
        }
    }

    /// What was not written back is gone, from a random place on; some file systems leave zeros.
    fn lose_power(&mut self) {
        let shared = Arc::clone(&self.disk);
        let mut disk = shared.lock().unwrap();
        let inodes: Vec<u64> = disk.files.keys().copied().collect();
        for inode in inodes {
            let Some(file) = disk.files.get_mut(&inode) else { continue };
            let unsafe_bytes = (file.content.len() - file.written_back) as u64;
            let kept = file.written_back + self.random.below(unsafe_bytes + 1) as usize;
            file.content.truncate(kept);
            // The first block is there: a file of which it is not has nothing to be recognized by.
            let safe = file.written_back.max(FIRST_BLOCK);
            if kept > safe && self.random.below(3) == 0 {
                let from = safe + self.random.below((kept - safe) as u64) as usize;
                let to = from + self.random.below((kept - from) as u64 + 1) as usize;
                file.content[from..to].fill(0);
            }
            file.written_back = file.content.len();
        }
        self.rest.clear();
        disk.faults = 0;
        disk.now += Duration::from_secs(3 + self.random.below(60));
        drop(disk);
        self.kill();
        self.reopen();
    }

    fn kill(&mut self) {
        self.pending = None;
        self.reader = open_reader(&self.disk, self.start, &self.store);
    }

    /// One poll; what it gives waits for its commit. Returns whether the end was reached.
    fn read(&mut self) -> bool {
        let Ok(FollowStep::Read(block)) = self.reader.step() else {
            // As where there are many logs.
            if self.written.is_multiple_of(3) {
                self.reader.sleep();
            }
            return false;
        };
        let mut state = self.pending.take().unwrap_or_else(|| self.store.clone());
        match block.repeated {
            RepeatedLines::AsBefore => {}
            RepeatedLines::Possible => state.left_out_until = state.left_out_until.max(Some(state.newest)),
            RepeatedLines::Excluded => state.left_out_until = None,
        }
        let mut numbers = Vec::new();
        for line in block.lines.split(|byte| *byte == b'\n') {
            let Some((seconds, number)) = parse(line) else { continue };
            numbers.push(number);
            if let Some(until) = state.left_out_until.filter(|until| seconds <= *until) {
                if seconds == until {
                    state.of_that_second.insert(number);
                }
                continue;
            }
            state.newest = state.newest.max(seconds);
            *state.counted.entry(number).or_default() += 1;
        }
        let read = format!("lines {:?} to {:?}, {:?}", numbers.first(), numbers.last(), block.repeated);
        state.position = Some(block.position.encode());
        self.story.push(read);
        self.pending = Some(state);
        block.at_end
    }

    fn commit(&mut self) {
        if let Some(state) = self.pending.take() {
            self.store = state;
        }
    }

    fn step(&mut self) {
        let pause = [0, 10, 40, 300, 1_500][self.random.below(5) as usize];
        self.pass(Duration::from_millis(pause));
        let name = match self.random.below(100) {
            0..=29 => {
                let most = if self.random.below(40) == 0 { 1_500 } else { 12 };
                let many = 1 + self.random.below(most);
                self.write(many);
                "write"
            }
            30 => {
                self.write_without_room();
                "full disk"
            }
            31..=34 => {
                self.finish_line();
                let line = self.line();
                let cut = 1 + self.random.below(line.len() as u64 - 1) as usize;
                self.append(&line[..cut]);
                self.rest = line[cut..].to_vec();
                "piece"
            }
            35..=64 => {
                self.read();
                "read"
            }
            65..=78 => {
                match self.random.below(8) {
                    // ENOSPC: it is tried again, and reading waits.
                    0 | 1 => {}
                    // EIO: it is on disk, though nobody was told so.
                    2 => self.store = self.pending.clone().unwrap_or_else(|| self.store.clone()),
                    _ => self.commit(),
                }
                "commit"
            }
            79 => {
                self.remove_oldest();
                "remove"
            }
            80..=81 => {
                self.rename_rotate();
                "rename"
            }
            82..=83 => {
                self.copy_truncate();
                "copytruncate"
            }
            84..=85 => {
                self.pack();
                "pack"
            }
            86 => {
                self.replace_by_copy();
                "copy"
            }
            87 => {
                self.cut();
                "cut"
            }
            88..=89 => {
                self.lose_power();
                "power loss"
            }
            90..=91 => {
                self.kill();
                "kill"
            }
            92..=93 => {
                self.reopen();
                "reopen"
            }
            94..=96 => {
                let faults = [0, 0, 2, 5, 20][self.random.below(5) as usize];
                self.disk.lock().unwrap().faults = faults;
                "faults"
            }
            _ => {
                self.write_back();
                "write back"
            }
        };
        let now = self.disk.lock().unwrap().now;
        let (pending, stored) = (self.pending.as_ref().map(shown), shown(&self.store));
        let line = format!(
            "{now:.2?} {name}: {} lines written to {}, read {pending:?}, stored {stored}",
            self.written, self.out
        );
        self.story.push(line);
    }

    /// Reads the rest, without faults.
    fn drain(&mut self) {
        self.disk.lock().unwrap().faults = 0;
        self.pass(Duration::from_secs(3));
        self.reopen();
        self.write(1);
        let mut quiet = 0;
        for _ in 0..2_000 {
            self.pass(Duration::from_millis(400));
            let before = self.store.position.clone();
            self.read();
            self.commit();
            quiet = if self.store.position == before { quiet + 1 } else { 0 };
            // Longer than anything is waited for.
            if quiet > 12 {
                break;
            }
        }
    }

    /// The lines that are left whole in a file.
    fn left(&self) -> BTreeSet<u32> {
        let disk = self.disk.lock().unwrap();
        let mut left = BTreeSet::new();
        for (path, inode) in &disk.names {
            let text = unpacked(path, &disk.files[inode].content);
            let whole = memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1);
            left.extend(text[..whole].split(|byte| *byte == b'\n').filter_map(parse).map(|(_, number)| number));
        }
        left
    }

    fn check(&self) -> Result<(), String> {
        let mut twice: Vec<u32> = self.store.counted.iter().filter(|(_, times)| **times > 1).map(|(n, _)| *n).collect();
        twice.sort_unstable();
        let accounted =
            |number: &u32| self.store.counted.contains_key(number) || self.store.of_that_second.contains(number);
        let lost: Vec<u32> = self.left().into_iter().filter(|number| !accounted(number)).collect();
        if twice.is_empty() && lost.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            self.disk.lock().unwrap().names.iter().map(|(p, i)| format!("{} {i}", p.display())).collect();
        let place = lost.first().or(twice.first()).map(|number| self.place(*number)).unwrap_or_default();
        Err(format!(
            "seed {}: counted twice: {:?}, lost: {:?} of {}\n{}\n{}",
            self.seed,
            &twice[..twice.len().min(10)],
            &lost[..lost.len().min(10)],
            self.written,
            self.story.join("\n"),
            names.join("\n") + &place
        ))
    }

    /// Where a line stands.
    fn place(&self, number: u32) -> String {
        let disk = self.disk.lock().unwrap();
        let text = format!("{number:08} ");
        let mut places = String::new();
        for (path, inode) in &disk.names {
            let content = unpacked(path, &disk.files[inode].content);
            if let Some(at) = memchr::memmem::find(&content, text.as_bytes()) {
                let around = &content[at.saturating_sub(150)..content.len().min(at + 100)];
                places.push_str(&format!("\n{number} in {} at {at}: {}", path.display(), around.escape_ascii()));
            }
        }
        places
    }
}

/// The text of a file, packed or not.
fn unpacked(path: &Path, content: &[u8]) -> Vec<u8> {
    if path.extension().is_none_or(|end| end != "gz") {
        return content.to_vec();
    }
    let mut text = Vec::new();
    io::Read::read_to_end(&mut GzDecoder::new(content), &mut text).unwrap();
    text
}

/// How far a state is, by inode and offset.
fn shown(state: &ModelStore) -> String {
    match state.position.as_ref().map(|bytes| Position::decode(bytes).unwrap()) {
        Some(Position::File(position)) => format!("{}:{}", position.inode, position.offset),
        _ => "nothing".to_owned(),
    }
}

fn open_reader(disk: &Arc<Mutex<Disk>>, start: Instant, store: &ModelStore) -> LogReader {
    let files = Arc::new(ModelFileSystem { disk: Arc::clone(disk), start });
    let position = store.position.as_ref().map(|bytes| Position::decode(bytes).unwrap());
    LogReader::new(files, log(), position, QUIET, InputPaths::default())
}

/// The time and number of a line that is whole; NULs before it are a hole.
fn parse(line: &[u8]) -> Option<(u64, u32)> {
    let start = line.iter().position(|byte| *byte != 0)?;
    let line = str::from_utf8(&line[start..]).ok()?.strip_suffix('.')?;
    let (number, rest) = line.split_once(' ')?;
    let (seconds, text) = rest.split_once(" mta postfix/smtp[7]: a line with a text ")?;
    if number.len() != 8 || seconds.len() != 8 || text.contains("mta") || text.contains('\0') {
        return None;
    }
    Some((seconds.parse().ok()?, number.parse().ok()?))
}

fn schedule(seed: u64) -> Result<u32, String> {
    let mut host = Host::new(seed);
    // What is promised begins with the first commit.
    host.read();
    host.commit();
    for _ in 0..STEPS {
        host.step();
    }
    host.drain();
    host.check().map(|()| host.written)
}

#[test]
fn no_line_is_lost_and_none_is_counted_twice() {
    let began = Instant::now();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let lines = run_seeds("TLSWARDEN_SCHEDULES", DEFAULT_SCHEDULES, threads, schedule);
    println!("{} schedules, {} lines, {:.1?}", lines.len(), lines.iter().sum::<u32>(), began.elapsed());
}
