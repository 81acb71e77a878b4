//! The follower against a model: random sequences of writing, rotating, packing, stopping, killing and starting again.
//!
//! A writer and a rotating administrator work on real files while a follower reads them and commits at random blocks.
//! The model says which lines must have been counted: each once, in order, over-long ones left out and counted.
//! What copytruncate itself loses (lines written between its copy and its truncation) does not happen here.
//! `TLSWARDEN_SEEDS=from..to` chooses the sequences; a failure names its seed.

mod random;
mod seeds;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use flate2::{Compression, write::GzEncoder};
use tlswarden::counting::input::file::FileFollower;
use tlswarden::counting::input::{MAX_BLOCK, MAX_LINE, Position};

use random::SplitMix64;
use seeds::run_seeds;

/// How long a writer may keep on writing to a rotated file: here it does not at all once the new one has lines.
const QUIET: Duration = Duration::from_millis(20);

/// What was counted, and what of it has been committed.
#[derive(Default)]
struct Counted {
    lines: Vec<u8>,
    skipped: u64,
    committed: (usize, u64, Option<Position>),
}

/// The log, its writer, its rotation, and what must be counted of it.
struct World {
    home: tempfile::TempDir,
    random: SplitMix64,
    /// Names: numbered or dated.
    dated: bool,
    /// Whether the writer opens with O_APPEND; one that does not leaves a hole under copytruncate.
    appends: bool,
    out: File,
    position: u64,
    /// What the file that is written to holds after its last `\n`.
    partial: Vec<u8>,
    wanted: Vec<u8>,
    wanted_skipped: u64,
    written: u64,
    rotations: u64,
    /// The log has vanished when this much was wanted. What is rotated away before a line of the new one is committed has
    /// nothing left that it follows on: that it is lost is said, and does not happen here.
    vanished: Option<usize>,
    story: Vec<String>,
}

impl World {
    fn new(seed: u64) -> World {
        let home = tempfile::tempdir().unwrap();
        let mut random = SplitMix64(seed);
        let (dated, appends) = (random.below(2) == 0, random.below(4) > 0);
        let out = open(&home.path().join("mail.log"), appends);
        World {
            home,
            random,
            dated,
            appends,
            out,
            position: 0,
            partial: Vec::new(),
            wanted: Vec::new(),
            wanted_skipped: 0,
            written: 0,
            rotations: 0,
            vanished: None,
            story: Vec::new(),
        }
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("mail.log")
    }

    fn is_committed(&self, counted: &Counted) -> bool {
        let (lines, skipped, _) = counted.committed;
        (lines, skipped) == (self.wanted.len(), self.wanted_skipped) && self.partial.is_empty()
    }

    fn write(&mut self, octets: &[u8]) {
        match self.appends {
            true => self.out.write_all(octets).unwrap(),
            false => self.out.write_all_at(octets, self.position).unwrap(),
        }
        self.position += octets.len() as u64;
        self.partial.extend_from_slice(octets);
        if let Some(end) = memchr::memrchr(b'\n', &self.partial) {
            let rest = self.partial.split_off(end + 1);
            let whole = std::mem::replace(&mut self.partial, rest);
            for line in whole.split_inclusive(|octet| *octet == b'\n') {
                self.want(line);
            }
        }
    }

    fn want(&mut self, line: &[u8]) {
        // NULs before a line are a hole, not text.
        let nuls = line.iter().take_while(|octet| **octet == 0).count();
        match line.len() - nuls > MAX_LINE + 1 {
            true => self.wanted_skipped += 1,
            false => self.wanted.extend_from_slice(&line[nuls..]),
        }
    }

    /// What the file that is left ends with is a line, whatever follows elsewhere.
    fn leave_partial(&mut self) {
        let mut line = std::mem::take(&mut self.partial);
        if !line.is_empty() {
            line.push(b'\n');
            self.want(&line);
        }
    }

    /// Text of all kinds, each known by its first six octets: a file is known by how it begins.
    fn text(&mut self) -> Vec<u8> {
        self.written += 1;
        let mut line = format!("{:06} host postfix/smtp[{}]: text", self.written, self.random.below(9)).into_bytes();
        match self.random.below(40) {
            0 => line.resize(MAX_LINE + self.random.below(3) as usize - 1, b'x'),
            1 => line.resize(MAX_LINE * (1 + self.random.below(4) as usize), b'y'),
            2 => line.extend((0..50).map(|n| if n == 10 { 0xff } else { n })),
            3 => line.extend_from_slice(b"\n\n"),
            4 => line.splice(0..0, [0; 5]).for_each(drop),
            _ => {}
        }
        line
    }

    fn lines(&mut self, many: u64) {
        let mut octets = Vec::new();
        for _ in 0..many {
            octets.extend_from_slice(&self.text());
            octets.push(b'\n');
        }
        self.write(&octets);
    }

    /// The rotated files, newest first: (path, packed).
    fn rotated(&self) -> Vec<(PathBuf, bool)> {
        let names = fs::read_dir(self.home.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut found: Vec<(u64, PathBuf, bool)> = names
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.to_owned();
                let plain = name.strip_suffix(".gz").unwrap_or(&name);
                let number = plain.strip_prefix("mail.log")?.get(1..)?.parse().ok()?;
                Some((number, path, name.ends_with(".gz")))
            })
            .collect();
        found.sort();
        if self.dated {
            found.reverse();
        }
        found.into_iter().map(|(_, path, packed)| (path, packed)).collect()
    }

    /// Makes room for a newly rotated file and names it.
    fn next_name(&mut self) -> PathBuf {
        self.rotations += 1;
        if self.dated {
            return self.home.path().join(format!("mail.log-{}", 20_261_100 + self.rotations));
        }
        for (path, packed) in self.rotated().iter().rev() {
            let end = if *packed { ".gz" } else { "" };
            let name = path.file_name().unwrap().to_str().unwrap().trim_end_matches(".gz");
            let number: u64 = name["mail.log.".len()..].parse().unwrap();
            fs::rename(path, self.home.path().join(format!("mail.log.{}{end}", number + 1))).unwrap();
        }
        self.home.path().join("mail.log.1")
    }

    fn rename_rotate(&mut self) {
        let name = self.next_name();
        fs::rename(self.log(), name).unwrap();
        let created = self.random.below(2) == 0;
        if created {
            File::create(self.log()).unwrap();
        }
        // The writer goes on in the old file until it is told to open the new one.
        for _ in 0..self.random.below(3) {
            self.lines(1);
            self.pause(10);
        }
        if self.random.below(3) == 0 {
            let cut = self.text();
            self.write(&cut);
        }
        self.leave_partial();
        self.out = open(&self.log(), self.appends);
        self.position = 0;
    }

    fn copy_truncate(&mut self) {
        let name = self.next_name();
        fs::copy(self.log(), name).unwrap();
        // Its length goes, and with O_APPEND the writer's place.
        OpenOptions::new().write(true).open(self.log()).unwrap().set_len(0).unwrap();
        self.leave_partial();
    }

    /// Packs a rotated file as logrotate does: a new file, then the old one goes.
    fn pack(&mut self, spare_newest: bool) {
        let plain: Vec<PathBuf> =
            self.rotated().into_iter().filter(|(_, packed)| !packed).map(|(path, _)| path).collect();
        for path in plain.iter().skip(usize::from(spare_newest)) {
            let packed = PathBuf::from(format!("{}.gz", path.display()));
            let mut pack = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
            let content = fs::read(path).unwrap();
            let (head, tail) = content.split_at(content.len() / 2);
            pack.write_all(head).unwrap();
            pack.flush().unwrap();
            self.pause(3);
            pack.write_all(tail).unwrap();
            pack.finish().unwrap();
            fs::remove_file(path).unwrap();
        }
    }

    fn pause(&mut self, most: u64) {
        let pause = self.random.below(most + 1);
        if pause > 1 {
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// What stood there before anybody read: nothing of it is wanted.
    fn ancient(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            let name = self.next_name();
            let text = [self.text(), b"\n".to_vec()].concat();
            fs::write(&name, text).unwrap();
        }
        let spare = self.random.below(2) == 0;
        self.pack(spare);
    }

    /// The log is removed, perhaps with all that was rotated, and the writer makes a new one: on many file systems with
    /// the inode of the old one.
    fn vanish(&mut self) {
        if self.random.below(2) == 0 {
            self.rotated().iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
        }
        fs::remove_file(self.log()).unwrap();
        self.pause(30);
        // Closed before the new one is made: its inode is free.
        self.out = File::open("/dev/null").unwrap();
        self.out = open(&self.log(), self.appends);
        self.position = 0;
        self.vanished = Some(self.wanted.len());
    }

    /// The host's clock was wrong when names and contents last changed: by up to a day, either way.
    fn step_clock(&mut self) {
        let by = Duration::from_secs(self.random.below(86_400));
        let then = match self.random.below(2) {
            0 => SystemTime::now() + by,
            _ => SystemTime::now() - by,
        };
        for path in [self.log(), self.home.path().to_owned()] {
            File::open(path).unwrap().set_modified(then).unwrap();
        }
    }

    /// One random deed; `reading` says whether somebody follows meanwhile, `settled` that all is committed: only then
    /// does nothing get lost where a file vanishes.
    fn act(&mut self, reading: bool, settled: bool) {
        let deed = self.random.below(23);
        if settled && self.vanished.is_some_and(|then| self.wanted.len() > then) {
            self.vanished = None;
        }
        let (before, wanted) = (self.written, self.wanted.len());
        let name = match deed {
            0..=6 => {
                let many = 1 + self.random.below(30);
                self.lines(many);
                "lines"
            }
            7..=9 => {
                let text = self.text();
                let cut = 6 + self.random.below(text.len() as u64 - 5) as usize;
                self.write(&text[..cut]);
                self.pause(10);
                self.write(&text[cut..]);
                self.pause(10);
                if self.random.below(2) == 0 {
                    self.write(b"\n");
                }
                "pieces"
            }
            10 => {
                let most = self.random.below(3).saturating_sub(1) as usize * MAX_BLOCK;
                let mut many = Vec::new();
                while many.len() <= most {
                    self.written += 1;
                    writeln!(many, "{:06} of a long block", self.written).unwrap();
                }
                self.write(&many);
                "megabytes"
            }
            11..=17 if self.vanished.is_some() => "nothing",
            11..=13 => {
                self.rename_rotate();
                "rename"
            }
            14..=15 => {
                self.copy_truncate();
                "copytruncate"
            }
            16..=17 => {
                // While somebody writes to or reads the newest one, only the older ones are packed (delaycompress).
                let spare = reading || self.random.below(2) == 0;
                self.pack(spare);
                "pack"
            }
            18..=19 if settled && self.vanished.is_none() => {
                self.vanish();
                "vanish"
            }
            20 => {
                self.step_clock();
                "clock"
            }
            _ => {
                self.pause(40);
                "pause"
            }
        };
        let wrote = (self.written - before, self.wanted.len() - wanted);
        self.story.push(format!("{name}: {} lines, {} octets wanted", wrote.0, wrote.1));
    }
}

fn open(path: &Path, appends: bool) -> File {
    let mut options = OpenOptions::new();
    options.create(true).append(appends).write(true).truncate(false).open(path).unwrap()
}

/// Reads and commits at random, until it is killed.
async fn follow(path: PathBuf, counted: Arc<Mutex<Counted>>, seed: u64) {
    let mut random = SplitMix64(seed);
    let position = counted.lock().unwrap().committed.2.clone();
    let mut follower = FileFollower::with_quiet_period(path, position, QUIET);
    loop {
        // Dropped at any moment, it must lose nothing.
        let patience = Duration::from_micros(200 + random.below(50_000));
        let Ok(next) = tokio::time::timeout(patience, follower.next()).await else { continue };
        let block = next.unwrap();
        assert!(block.lines.len() <= MAX_BLOCK && block.lines.last().is_none_or(|octet| *octet == b'\n'));
        let mut counted = counted.lock().unwrap();
        counted.lines.extend_from_slice(&block.lines);
        counted.skipped += block.skipped;
        if random.below(3) == 0 {
            counted.committed = (counted.lines.len(), counted.skipped, Some(block.position));
        }
    }
}

/// One sequence. Says what went wrong.
fn sequence(seed: u64) -> Result<(u64, u64), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut world = World::new(seed);
    let counted = Arc::new(Mutex::new(Counted::default()));
    // What is promised begins with the first commit: at a line, or at an empty file, alone or with older ones beside it.
    match world.random.below(4) {
        0 => {}
        1 => world.ancient(),
        _ => world.lines(1),
    }
    runtime.block_on(async {
        let block = FileFollower::new(world.log(), None).next().await.unwrap();
        assert!(block.at_end && block.bytes_behind == 0, "{block:?}");
        world.story.push(format!("first commit: {} octets", block.lines.len()));
        let mut counted = counted.lock().unwrap();
        counted.lines = block.lines;
        counted.skipped = block.skipped;
        counted.committed = (counted.lines.len(), counted.skipped, Some(block.position));
    });
    let mut runs = 0;
    for _ in 0..1 + world.random.below(4) {
        for _ in 0..world.random.below(8) {
            let settled = world.is_committed(&counted.lock().unwrap());
            world.act(false, settled);
        }
        runs += 1;
        let task = runtime.spawn(follow(world.log(), Arc::clone(&counted), seed ^ runs));
        world.story.push("start".to_owned());
        for _ in 0..world.random.below(12) {
            let settled = world.is_committed(&counted.lock().unwrap());
            world.act(true, settled);
            world.pause(30);
        }
        task.abort();
        if let Err(e) = runtime.block_on(task)
            && e.is_panic()
        {
            return Err(format!("the follower panicked: {e}\n{}", world.story.join("\n")));
        }
        let mut counted = counted.lock().unwrap();
        let (lines, skipped, _) = counted.committed;
        counted.lines.truncate(lines);
        counted.skipped = skipped;
        world.story.push(format!("kill -9; committed are {lines} octets"));
    }
    // The last lines are written, and everything must be there in the end, and stay so.
    world.write(b"\n");
    world.lines(3);
    let task = runtime.spawn(follow(world.log(), Arc::clone(&counted), seed ^ 99));
    let began = Instant::now();
    let same = |counted: &Counted| (&counted.lines, counted.skipped) == (&world.wanted, world.wanted_skipped);
    while !same(&counted.lock().unwrap()) && began.elapsed() < Duration::from_secs(60) && !task.is_finished() {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(30));
    task.abort();
    let ended = runtime.block_on(task);
    let counted = counted.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if ended.is_err_and(|e| e.is_panic()) || !same(&counted) {
        let common = counted.lines.iter().zip(&world.wanted).take_while(|(a, b)| a == b).count();
        let show = |octets: &[u8]| octets[common..octets.len().min(common + 300)].escape_ascii().to_string();
        return Err(format!(
            "seed {seed} (dated {}, appends {}): counted {} octets and {} over-long lines, wanted {} and {}; equal up to \
             {common}\n  counted: …{}\n  wanted:  …{}\n{}",
            world.dated,
            world.appends,
            counted.lines.len(),
            counted.skipped,
            world.wanted.len(),
            world.wanted_skipped,
            show(&counted.lines),
            show(&world.wanted),
            world.story.join("\n")
        ));
    }
    Ok((world.written, world.rotations))
}

#[test]
fn every_line_is_counted_once_and_in_order() {
    let began = Instant::now();
    // They mostly wait.
    let totals = run_seeds("TLSWARDEN_SEEDS", 200, 12, sequence);
    let (lines, rotations) = totals.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{} sequences, {lines} lines, {rotations} rotations, {:.1?}", totals.len(), began.elapsed());
}

/// The lines up to the end, and the mark there.
async fn to_the_end(follower: &mut FileFollower) -> (String, Position) {
    let mut text = Vec::new();
    loop {
        let block = follower.next().await.unwrap();
        text.extend_from_slice(&block.lines);
        if block.at_end {
            return (String::from_utf8(text).unwrap(), block.position);
        }
    }
}

async fn nothing_comes(follower: &mut FileFollower) {
    let next = tokio::time::timeout(Duration::from_millis(600), follower.next()).await;
    assert!(next.is_err(), "{next:?}");
}

fn append(path: &Path, text: &str) {
    OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[tokio::test]
async fn a_file_is_waited_for_and_its_end_told_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail.log");
    let mut follower = FileFollower::new(&path, None);
    nothing_comes(&mut follower).await;
    append(&path, "one\ntw");
    assert_eq!(to_the_end(&mut follower).await.0, "one\n");
    nothing_comes(&mut follower).await;
    append(&path, "o\n");
    let (text, position) = to_the_end(&mut follower).await;
    assert_eq!(text, "two\n");
    drop(follower);
    // After a restart the end is told again, with nothing before it.
    let mut follower = FileFollower::new(&path, Some(position.clone()));
    let block = follower.next().await.unwrap();
    assert_eq!((block.lines.len(), block.at_end, block.bytes_behind, block.position), (0, true, 0, position));
}

#[tokio::test]
async fn what_cannot_be_read_is_one_error_that_says_why() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let fifo = home.path().join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let file = home.path().join("file");
    append(&file, "");
    let below = file.join("below");
    for (path, cause) in [(&folder, "a directory"), (&fifo, "a FIFO"), (&below, "Not a directory")] {
        let mut follower = FileFollower::new(path, None);
        let line = follower.next().await.unwrap_err().to_string();
        assert!(line.contains(cause) && !line.contains('\n'), "{}: {line}", path.display());
        nothing_comes(&mut follower).await;
    }
    // And it is read as soon as it can be.
    let mut follower = FileFollower::new(&folder, None);
    follower.next().await.unwrap_err();
    fs::remove_dir(&folder).unwrap();
    append(&folder, "one\n");
    assert_eq!(to_the_end(&mut follower).await.0, "one\n");
}

#[tokio::test]
async fn a_writer_that_closes_the_old_file_late_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let (path, rotated) = (home.path().join("mail.log"), home.path().join("mail.log.1"));
    append(&path, "one\n");
    let mut follower = FileFollower::new(&path, None);
    assert_eq!(to_the_end(&mut follower).await.0, "one\n");
    fs::rename(&path, &rotated).unwrap();
    append(&path, "four\n");
    append(&rotated, "two\n");
    let mut text = String::from_utf8(follower.next().await.unwrap().lines).unwrap();
    // Well after the new file has lines.
    tokio::time::sleep(Duration::from_millis(500)).await;
    append(&rotated, "three");
    while !text.ends_with("four\n") {
        text.push_str(&String::from_utf8(follower.next().await.unwrap().lines).unwrap());
    }
    assert_eq!(text, "two\nthree\nfour\n");
}

#[tokio::test]
async fn a_file_that_is_gone_is_given_up_for_the_one_that_is_there() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail.log");
    append(&path, "one\n");
    let (_, position) = to_the_end(&mut FileFollower::new(&path, None)).await;
    fs::remove_file(&path).unwrap();
    append(&path, "two, longer than the first\n");
    let mut follower = FileFollower::new(&path, Some(position));
    assert_eq!(to_the_end(&mut follower).await.0, "two, longer than the first\n");
}

#[tokio::test]
async fn a_cut_gzip_file_gives_what_is_left_of_it() {
    let home = tempfile::tempdir().unwrap();
    let (path, packed) = (home.path().join("mail.log"), home.path().join("mail.log.1.gz"));
    append(&path, "line 0\n");
    let (_, position) = to_the_end(&mut FileFollower::new(&path, None)).await;
    let content: String = (0..200_000).map(|n| format!("line {n}\n")).collect();
    let mut pack = GzEncoder::new(Vec::new(), Compression::fast());
    pack.write_all(content.as_bytes()).unwrap();
    let mut octets = pack.finish().unwrap();
    octets.truncate(octets.len() / 2);
    fs::write(&packed, octets).unwrap();
    fs::write(&path, "the next day\n").unwrap();
    let (text, _) = to_the_end(&mut FileFollower::new(&path, Some(position))).await;
    let rest = text.strip_suffix("the next day\n").unwrap();
    assert!(
        rest.len() > 100_000 && rest.ends_with('\n') && content["line 0\n".len()..].starts_with(rest),
        "{} octets",
        rest.len()
    );
}

/// How fast a file in the page cache is read, beside reading it alone.
#[tokio::test]
#[ignore = "measures"]
async fn measure() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail.log");
    let line = "Nov 22 01:02:03 host postfix/smtp[1234]: 4XyZ12AbCd: to=<someone@example.com>, relay=mx.example.com[192.0.2.1]:25, delay=1.2, status=sent (250 2.0.0 Ok)\n";
    fs::write(&path, line.repeat((1 << 30) / line.len())).unwrap();
    for _ in 0..3 {
        let mut alone = File::open(&path).unwrap();
        let mut buffer = vec![0; MAX_BLOCK];
        let began = Instant::now();
        let mut read = 0;
        while let Ok(n @ 1..) = std::io::Read::read(&mut alone, &mut buffer) {
            read += n;
        }
        let alone = began.elapsed();
        let mut follower = FileFollower::new(&path, None);
        let began = Instant::now();
        let mut octets = 0;
        loop {
            let block = follower.next().await.unwrap();
            octets += block.lines.len();
            if block.at_end {
                break;
            }
        }
        let speed = |octets: usize, took: Duration| octets as f64 / took.as_secs_f64() / 1e6;
        println!("read(2) {:.0} MB/s, followed {:.0} MB/s", speed(read, alone), speed(octets, began.elapsed()));
    }
    let mut follower = FileFollower::new(&path, None);
    while !follower.next().await.unwrap().at_end {}
    let mut times = Vec::new();
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(40)).await;
        append(&path, line);
        let began = Instant::now();
        assert!(!follower.next().await.unwrap().lines.is_empty());
        times.push(began.elapsed());
    }
    times.sort();
    println!("a line is seen after {:.1?} (median), {:.1?} (most)", times[25], times[49]);
}

fn lines(numbers: impl IntoIterator<Item = u32>) -> String {
    numbers
        .into_iter()
        .map(|n| format!("Nov 22 01:02:03 mta postfix/smtp[{n}]: a line with the number {n:06}\n"))
        .collect()
}

/// What is read of a log that is changed while nobody reads, and of the same while it is read.
async fn after_a_change(change: impl Fn(&Path)) -> [String; 2] {
    let mut found = [String::new(), String::new()];
    for (running, found) in [false, true].into_iter().zip(&mut found) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        append(&path, &lines(0..100));
        let mut follower = FileFollower::new(&path, None);
        let (text, position) = to_the_end(&mut follower).await;
        assert_eq!(text, lines(0..100));
        if !running {
            follower = FileFollower::new(&path, Some(position));
        }
        change(&path);
        loop {
            let next = tokio::time::timeout(Duration::from_secs(5), follower.next()).await;
            let Ok(block) = next else { break };
            found.push_str(&String::from_utf8(block.unwrap().lines).unwrap());
        }
    }
    found
}

/// Loses the last lines after the first `kept`.
fn cut(path: &Path, kept: u32) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(lines(0..kept).len() as u64).unwrap();
}

#[tokio::test]
async fn a_log_that_lost_its_end_continues_with_what_is_new() {
    let shorter = after_a_change(|path| cut(path, 60));
    let grown = after_a_change(|path| {
        cut(path, 60);
        append(path, &lines(200..210));
    });
    let longer = after_a_change(|path| {
        cut(path, 60);
        append(path, &lines(200..300));
    });
    let nearly_all = after_a_change(|path| {
        cut(path, 2);
        append(path, &lines(200..300));
    });
    let (shorter, grown, longer, nearly_all) = tokio::join!(shorter, grown, longer, nearly_all);
    assert_eq!(shorter, ["", ""]);
    assert_eq!(grown, [lines(200..210), lines(200..210)]);
    assert_eq!(longer, [lines(200..300), lines(200..300)]);
    assert_eq!(nearly_all, [lines(200..300), lines(200..300)]);
}

#[tokio::test]
async fn a_log_replaced_by_a_copy_of_itself_is_the_same_log() {
    let copied = after_a_change(|path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        append(&copy, &lines(200..210));
        fs::rename(&copy, path).unwrap();
    });
    let moved = after_a_change(|path| {
        let target = path.with_file_name("elsewhere");
        fs::create_dir(&target).unwrap();
        fs::copy(path, target.join("mail.log")).unwrap();
        fs::remove_file(path).unwrap();
        std::os::unix::fs::symlink(target.join("mail.log"), path).unwrap();
        append(path, &lines(200..210));
    });
    let rotated = after_a_change(|path| {
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        fs::rename(path, path.with_extension("log.1")).unwrap();
        fs::rename(&copy, path).unwrap();
        append(path, &lines(200..210));
    });
    let (copied, moved, rotated) = tokio::join!(copied, moved, rotated);
    let want = [lines(200..210), lines(200..210)];
    assert_eq!([&copied, &moved, &rotated], [&want; 3]);
}

#[tokio::test]
async fn an_edited_log_continues_after_its_last_counted_line() {
    let edit = |text: String| {
        after_a_change(move |path| {
            let edited = path.with_extension("edited");
            fs::write(&edited, &text).unwrap();
            fs::rename(&edited, path).unwrap();
        })
    };
    let in_place = |text: String| after_a_change(move |path| fs::write(path, &text).unwrap());
    let all = lines((0..100).chain(200..210));
    let (first, middle, other) = (
        lines((1..100).chain(200..210)),
        lines((0..100).filter(|n| *n != 50).chain(200..210)),
        all.replace("mta", "host"),
    );
    let (first_again, middle_again) = (first.clone(), middle.clone());
    let (first, middle, first_again, middle_again, other) = tokio::join!(
        edit(first),
        edit(middle),
        in_place(first_again),
        in_place(middle_again),
        // Of this one nothing is as it was.
        edit(other)
    );
    let want = [lines(200..210), lines(200..210)];
    assert_eq!([&first, &middle, &first_again, &middle_again], [&want; 4]);
    assert_eq!(other, [all.replace("mta", "host"), all.replace("mta", "host")]);
}

#[tokio::test]
async fn after_a_file_that_is_gone_the_oldest_one_that_is_left_is_read() {
    let change = |path: &Path, dated: bool| {
        let rotated = |number: u32| match dated {
            true => path.with_file_name(format!("mail.log-202611{:02}", 30 - number)),
            false => path.with_extension(format!("log.{number}")),
        };
        fs::remove_file(path).unwrap();
        append(&rotated(3), &lines(300..310));
        append(&rotated(2), &lines(400..410));
        append(&rotated(1), &lines(500..510));
        append(path, &lines(600..610));
    };
    let (numbered, dated) =
        tokio::join!(after_a_change(move |path| change(path, false)), after_a_change(move |path| change(path, true)));
    let want = lines((300..310).chain(400..410).chain(500..510).chain(600..610));
    assert_eq!(numbered, [want.clone(), want.clone()]);
    assert_eq!(dated, [want.clone(), want]);
}

#[tokio::test]
async fn what_was_rotated_before_the_first_reading_stays_unread() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail.log");
    append(&path.with_extension("log.2"), &lines(0..10));
    append(&path.with_extension("log.1"), &lines(10..20));
    append(&path, &lines(20..30));
    let (text, position) = to_the_end(&mut FileFollower::new(&path, None)).await;
    assert_eq!(text, lines(20..30));
    fs::remove_file(&path).unwrap();
    append(&path, &lines(30..40));
    assert_eq!(to_the_end(&mut FileFollower::new(&path, Some(position))).await.0, lines(30..40));
}

#[tokio::test]
async fn another_instance_s_log_is_not_a_rotated_file() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("mail.log");
    append(&path, &lines(0..10));
    append(&home.path().join("mail-1.log"), &lines(10..20));
    let mut follower = FileFollower::new(&path, None);
    assert_eq!(to_the_end(&mut follower).await.0, lines(0..10));
    fs::rename(&path, home.path().join("mail.log.1")).unwrap();
    append(&path, &lines(20..30));
    assert_eq!(to_the_end(&mut follower).await.0, lines(20..30));
}
