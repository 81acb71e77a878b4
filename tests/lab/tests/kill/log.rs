//! The log file as a busy host treats it: appended to in bursts, now and then within a line, rotated and packed.
//!
//! Takes: orders, one after the other, on a thread of its own. Gives: the file and its rotated siblings, and in
//! [`Written`] what has been written so far, so that a mark of the daemon can be found in it.
//! As logrotate does it: rename + create (with the writer still at the old file for a while), copytruncate, gzip.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use tlswarden::counting::input::Position;
use tlswarden::counting::input::file_position::FilePosition;
use tokio::sync::oneshot;

use crate::random::SplitMix64;
use crate::script::{Ledger, Place, Script};

/// How many octets a file is known by, at most.
const HEAD: usize = 1024;

/// How long the writer waits between two pieces of a burst: less than the daemon waits between two looks, so that
/// nearly always something is unread or uncommitted.
const PIECE: Duration = Duration::from_millis(2);

/// What the writer does next.
pub(crate) enum Order {
    /// Writes lines, over about this time.
    Burst(u64, Duration),
    /// Writes lines until so many have been written in all, as fast as it goes.
    UpTo(u64),
    Rotate(Rotation),
    /// Packs the rotated files.
    Pack,
    /// Another phase begins.
    Phase(usize),
    /// Ends every story.
    Finish,
    /// Tells how many lines have been written in all.
    Tell(oneshot::Sender<u64>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Rotation {
    /// Renamed; so many lines more go into the old file before the new one is made.
    Rename(u64),
    /// Copied and truncated.
    CopyTruncate,
}

/// How rotated files are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    /// `mail.log.1`, which becomes `mail.log.2`.
    Numbered,
    /// `mail.log-20261122-1795305600`.
    Dated,
}

/// The test's time: that of the host, moved.
#[derive(Default)]
pub(crate) struct Time(AtomicI64);

impl Time {
    pub(crate) fn now(&self) -> i64 {
        host_seconds() + self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn set(&self, now: i64) {
        self.0.store(now - host_seconds(), Ordering::SeqCst);
    }
}

fn host_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the host's clock is past 1970");
    i64::try_from(since.as_secs()).expect("a time of this era")
}

/// What has been written.
#[derive(Default)]
pub(crate) struct Written {
    /// Octets in files.
    pub octets: AtomicU64,
    /// The whole log, as if it had never been rotated.
    pub text: Mutex<Vec<u8>>,
    pub ledger: Mutex<Ledger>,
    /// Where each file's content begins in the text.
    begins: Mutex<Vec<u64>>,
}

impl Written {
    /// How far into the text a mark of the daemon is.
    pub(crate) fn position(&self, position: &Position) -> Option<u64> {
        let Position::File(FilePosition { head: known, offset, .. }) = position else { return None };
        let (text, begins) = (self.text.lock().unwrap(), self.begins.lock().unwrap());
        let covers = usize::try_from(known.covers).ok().filter(|covers| (1..=HEAD).contains(covers))?;
        let ends = begins.iter().skip(1).copied().chain([text.len() as u64]);
        let mut found = begins.iter().copied().zip(ends).filter(|(begin, end)| {
            let head = text.get(*begin as usize..*begin as usize + covers);
            begin + offset <= *end && head.is_some_and(|head| known.matches(head))
        });
        let (begin, _) = found.next()?;
        assert!(found.next().is_none(), "two files begin with the same {covers} octets");
        Some(begin + offset)
    }

    /// How many files there have been.
    pub(crate) fn files(&self) -> usize {
        self.begins.lock().unwrap().len()
    }
}

/// The writer's end of it.
pub(crate) struct Log {
    path: PathBuf,
    names: Names,
    file: File,
    rotations: u64,
    random: SplitMix64,
    script: Script,
    phase: usize,
    time: Arc<Time>,
    written: Arc<Written>,
}

/// Starts the writer. It ends when the orders' sender is dropped.
pub(crate) fn start(
    path: &Path,
    seed: u64,
    places: Arc<Vec<Place>>,
    time: Arc<Time>,
    written: Arc<Written>,
) -> (mpsc::Sender<Order>, std::thread::JoinHandle<()>) {
    let (orders, received) = mpsc::channel();
    written.begins.lock().unwrap().push(0);
    let mut log = Log {
        path: path.to_owned(),
        names: if seed.is_multiple_of(2) { Names::Numbered } else { Names::Dated },
        file: append(path),
        rotations: 0,
        random: SplitMix64(seed ^ 0x10F),
        script: Script::new(seed, places),
        phase: 0,
        time,
        written,
    };
    let thread = std::thread::spawn(move || {
        for order in received {
            log.obey(order);
        }
    });
    (orders, thread)
}

fn append(path: &Path) -> File {
    OpenOptions::new().create(true).append(true).open(path).expect("the log can be opened")
}

impl Log {
    fn obey(&mut self, order: Order) {
        match order {
            Order::Burst(lines, over) => {
                let pieces =
                    u64::try_from(over.as_millis() / PIECE.as_millis()).expect("a short time").clamp(1, lines + 1);
                let wait = over / u32::try_from(pieces).expect("a short time");
                let mut next = Instant::now();
                for _ in 0..pieces {
                    self.lines(lines / pieces);
                    next += wait;
                    std::thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
            Order::UpTo(lines) => self.lines(lines.saturating_sub(self.script.lines())),
            Order::Rotate(rotation) => self.rotate(rotation),
            Order::Pack => self.pack(),
            Order::Phase(phase) => self.phase = phase,
            Order::Finish => {
                let mut text = Vec::new();
                let (now, mut ledger) = (self.time.now(), self.written.ledger.lock().unwrap());
                self.script.finish(now, self.phase, &mut text, &mut ledger);
                drop(ledger);
                self.write(&text);
            }
            Order::Tell(answer) => {
                let _ = answer.send(self.script.lines());
            }
        }
    }

    fn lines(&mut self, count: u64) {
        let mut left = count;
        while left > 0 {
            // A second at most per piece of text: the stamps are those of the writing.
            let lines = left.min(2000);
            left -= lines;
            let mut text = Vec::new();
            let (now, mut ledger) = (self.time.now(), self.written.ledger.lock().unwrap());
            self.script.write(lines, now, self.phase, &mut text, &mut ledger);
            drop(ledger);
            self.write(&text);
        }
    }

    /// Appends, at times in two pieces with a line cut between them.
    fn write(&mut self, text: &[u8]) {
        let cut = match self.random.below(3) {
            0 => self.random.below(text.len() as u64 + 1) as usize,
            _ => 0,
        };
        self.written.text.lock().unwrap().extend_from_slice(text);
        for piece in [&text[..cut], &text[cut..]] {
            self.file.write_all(piece).expect("the log can be written");
            self.written.octets.fetch_add(piece.len() as u64, Ordering::SeqCst);
            if cut > 0 {
                std::thread::sleep(Duration::from_millis(self.random.below(8)));
            }
        }
    }

    fn rotate(&mut self, rotation: Rotation) {
        let octets = self.octets();
        if self.written.begins.lock().unwrap().last() == Some(&octets) {
            // logrotate's notifempty.
            return;
        }
        self.rotations += 1;
        let rotated = match self.names {
            Names::Numbered => {
                self.shift();
                self.beside(".1")
            }
            // One an hour: the digits are what counts.
            Names::Dated => self.beside(&format!("-20261122-{}", 1_795_305_600 + 3600 * self.rotations)),
        };
        match rotation {
            Rotation::Rename(late) => {
                fs::rename(&self.path, &rotated).expect("the log can be renamed");
                self.lines(late);
                std::thread::sleep(Duration::from_millis(self.random.below(100)));
                self.file = append(&self.path);
            }
            Rotation::CopyTruncate => {
                let content = fs::read(&self.path).expect("the log can be read");
                let (first, second) = content.split_at(content.len() / 2);
                let mut copy = append(&rotated);
                copy.write_all(first).expect("the copy can be written");
                std::thread::sleep(Duration::from_millis(self.random.below(60)));
                copy.write_all(second).expect("the copy can be written");
                self.file.set_len(0).expect("the log can be truncated");
            }
        }
        let octets = self.octets();
        self.written.begins.lock().unwrap().push(octets);
    }

    fn octets(&self) -> u64 {
        self.written.octets.load(Ordering::SeqCst)
    }

    /// `mail.log.1` becomes `mail.log.2`, the oldest first.
    fn shift(&self) {
        for number in (1..self.rotations).rev() {
            for end in ["", ".gz"] {
                let from = self.beside(&format!(".{number}{end}"));
                if from.exists() {
                    fs::rename(from, self.beside(&format!(".{}{end}", number + 1))).expect("it can be renamed");
                }
            }
        }
    }

    fn pack(&mut self) {
        let folder = self.path.parent().expect("the log is in a folder");
        let name = self.path.file_name().expect("the log has a name").to_string_lossy().into_owned();
        for entry in fs::read_dir(folder).expect("the folder can be read") {
            let path = entry.expect("the folder can be read").path();
            let other = path.file_name().expect("it has a name").to_string_lossy().into_owned();
            if !other.starts_with(&name) || other == name || other.ends_with(".gz") {
                continue;
            }
            let content = fs::read(&path).expect("it can be read");
            let mut packed = GzEncoder::new(append(&folder.join(format!("{other}.gz"))), Compression::fast());
            packed.write_all(&content).expect("it can be packed");
            packed.finish().expect("it can be packed");
            fs::remove_file(&path).expect("it can be removed");
        }
    }

    fn beside(&self, end: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(end);
        path.into()
    }
}
