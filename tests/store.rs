//! The embedded store over `kill -9` and damage on disk: what was acknowledged is there, whole, or its loss is said.
//!
//! `cargo test --release --test store -- --ignored --nocapture` measures it.

mod random;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tlswarden::base::clock::Clock;
use tlswarden::base::tlsrpt::{Day, Failure, Policy, PolicyType, ResultType, TallyKey, TallyResult};
use tlswarden::store::embedded::{EmbeddedStore, OpenedStore};
use tlswarden::store::format::{VERSION, VERSION_KEY};
use tlswarden::store::{Batch, Store, StoreError, Table};

use random::SplitMix64;

const DAY: Day = Day(20_779);
const DOMAINS: u64 = 20;
const WRITER: &str = "TLSWARDEN_TEST_WRITER";
const FULL_DISK: &str = "TLSWARDEN_TEST_FULL_DISK";
const ROUNDS: u32 = 6;

/// Batch number `n`: one more everywhere, and records that say `n`.
fn batch(n: u64) -> Batch {
    let mut add = Vec::new();
    for d in 0..DOMAINS {
        let domain: Arc<str> = format!("d{d}.example").into();
        let policy = Arc::new(Policy {
            policy_type: PolicyType::Sts,
            policy_string: vec![format!("of day {}", n / 50)],
            policy_domain: domain.to_string(),
            mx_host: vec![],
        });
        let failure = Failure::new(ResultType::CertificateExpired, Some("certificate has expired"));
        for counted in [TallyResult::Success, TallyResult::Failure, TallyResult::Detail(failure)] {
            add.push((
                TallyKey { day: DAY, domain: Arc::clone(&domain), policy: Arc::clone(&policy), result: counted },
                1,
            ));
        }
    }
    // Short, long, and longer than one piece, in turns.
    let open = [n.to_be_bytes()].iter().cycle().take(1 + 3_000 * (n % 3) as usize).flatten().copied().collect();
    let set = vec![
        (Table::Position, b"log".to_vec(), Some(n.to_string().into_bytes())),
        (Table::OpenState, b"log".to_vec(), Some(open)),
        (Table::Decision, format!("{:03}", n % 100).into_bytes(), Some(n.to_string().into_bytes())),
        (Table::Decision, format!("{:03}", (n + 50) % 100).into_bytes(), None),
    ];
    Batch { add, set }
}

/// Which batch the store stands at, after checking that it has all of it and nothing of the next.
fn stands_at(store: &EmbeddedStore) -> u64 {
    let number = |octets: Option<Vec<u8>>| octets.map_or(0, |o| String::from_utf8(o).unwrap().parse().unwrap());
    let n: u64 = number(store.read(Table::Position, b"log").unwrap());
    if n == 0 {
        assert_eq!(store.days().unwrap(), []);
        return 0;
    }
    assert_eq!(store.domains(DAY).unwrap().len() as u64, DOMAINS);
    for d in 0..DOMAINS {
        let rows = store.rows(DAY, &format!("d{d}.example")).unwrap();
        let successful: u64 = rows.iter().map(|row| row.successful).sum();
        let failed: u64 = rows.iter().map(|row| row.failed).sum();
        let details: u64 = rows.iter().flat_map(|row| &row.details).map(|(_, count)| count).sum();
        assert_eq!((successful, failed, details), (n, n, n), "d{d}.example at batch {n}");
    }
    let open = store.read(Table::OpenState, b"log").unwrap().unwrap();
    let same = Batch { add: vec![], ..batch(n) }.set[1].2.clone().unwrap();
    assert_eq!(open, same, "the open state of batch {n}");
    let decisions = store.scan(Table::Decision, b"").unwrap();
    assert_eq!(decisions.len() as u64, n.min(50));
    assert_eq!(decisions.iter().map(|(_, v)| number(Some(v.clone()))).max(), Some(n));
    n
}

fn open(home: &Path) -> OpenedStore {
    EmbeddedStore::open(home, Clock::default()).unwrap()
}

/// Not a test by itself: the process that is killed. Writes batches and acknowledges each on standard output.
#[test]
fn writer() {
    let Some(home) = std::env::var_os(WRITER) else { return };
    let store = open(Path::new(&home)).store;
    let mut n = stands_at(&store);
    let mut out = std::io::stdout().lock();
    loop {
        n += 1;
        store.write(batch(n)).unwrap();
        writeln!(out, "acknowledged {n}").unwrap();
        out.flush().unwrap();
    }
}

#[test]
fn kill_9_loses_and_tears_nothing() {
    let began = Instant::now();
    let home = tempfile::tempdir().unwrap();
    let mut random = SplitMix64(1);
    let (mut acknowledged, mut one_more, mut rounds) = (0, 0, 0);
    while rounds < 50 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer", "--nocapture"])
            .env(WRITER, home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            lines.filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok()).last()
        });
        std::thread::sleep(Duration::from_millis(5 + random.below(250)));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = reader.join().unwrap().unwrap_or(acknowledged);
        let opened = open(home.path());
        assert_eq!(opened.notices, [""; 0]);
        let n = stands_at(&opened.store);
        // What was written when the kill came may be there, whole, though nobody was told.
        assert!(n == acknowledged || n == acknowledged + 1, "stands at {n}, {acknowledged} were acknowledged");
        one_more += n - acknowledged;
        acknowledged = n;
        rounds += 1;
    }
    assert!(acknowledged > rounds, "only {acknowledged} batches were written");
    println!(
        "{rounds} kills, {acknowledged} batches, {one_more} kept that were not acknowledged, {:?}",
        began.elapsed()
    );
}

fn written_once(batches: u64) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).store;
    (1..=batches).for_each(|n| store.write(batch(n)).unwrap());
    home
}

fn written(batches: u64) -> tempfile::TempDir {
    let home = written_once(batches);
    // Opened once more, so that sled's snapshot covers it.
    assert_eq!(stands_at(&open(home.path()).store), batches);
    home
}

fn sled_files(home: &Path, begin: &str) -> Vec<std::path::PathBuf> {
    let all = fs::read_dir(home.join("embedded")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(begin)).collect()
}

#[test]
fn a_cut_snapshot_is_rebuilt_and_said() {
    for cut in [0.0, 0.01, 0.5, 0.99] {
        let home = written(120);
        let [snapshot] = &sled_files(home.path(), "snap.")[..] else { panic!("one snapshot") };
        let length = fs::metadata(snapshot).unwrap().len();
        fs::OpenOptions::new().write(true).open(snapshot).unwrap().set_len((length as f64 * cut) as u64).unwrap();
        let opened = open(home.path());
        assert_eq!((opened.notices.len(), &opened.moved_aside), (1, &None), "{:?}", opened.notices);
        assert!(opened.notices[0].contains("snap.") && opened.notices[0].contains("aside-"), "{:?}", opened.notices);
        assert_eq!(stands_at(&opened.store), 120);
        opened.store.write(batch(121)).unwrap();
        drop(opened);
        let again = open(home.path());
        assert_eq!(again.notices, [""; 0]);
        assert_eq!(stands_at(&again.store), 121);
    }
}

#[test]
fn an_unfinished_snapshot_is_nothing_to_speak_of() {
    let home = written(10);
    let snapshot = sled_files(home.path(), "snap.").pop().unwrap();
    let mut unfinished = snapshot.into_os_string();
    unfinished.push("0.generating");
    fs::write(&unfinished, "cut").unwrap();
    let opened = open(home.path());
    assert_eq!((opened.notices, opened.moved_aside), (vec![], None));
    assert_eq!(stands_at(&opened.store), 10);
}

#[test]
fn a_second_opener_is_told_who_has_it() {
    let home = written(1);
    let first = open(home.path());
    let Err(StoreError::Locked(line)) = EmbeddedStore::open(home.path(), Clock::default()).map(|_| ()) else {
        panic!("opened twice")
    };
    assert!(line.contains(&format!("process {}", std::process::id())) && !line.contains('\n'), "{line}");
    drop(first);
    assert_eq!(stands_at(&open(home.path()).store), 1);
}

#[test]
fn a_look_of_a_moment_does_not_make_a_start_fail() {
    let home = written(1);
    let look = open(home.path());
    let ended = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        drop(look);
    });
    assert_eq!(stands_at(&open(home.path()).store), 1);
    ended.join().unwrap();
}

#[test]
fn a_folder_that_is_none_is_the_administrators() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below"), "/proc/self/below".into()] {
        let Err(StoreError::Unusable(line)) = EmbeddedStore::open(&path, Clock::default()).map(|_| ()) else {
            panic!("opened {}", path.display())
        };
        assert!(line.contains(path.to_str().unwrap()) && !line.contains('\n'), "{line}");
    }
}

#[test]
fn damage_is_said_never_a_panic_never_half_a_batch() {
    // With a snapshot of all of it, and with one of nothing: then all is read from the log when it is opened.
    let pristine = [written(400), written_once(400)];
    let files_of = |home| sled_files(home, "").into_iter().filter(|path| path.is_file()).collect();
    let files: [Vec<_>; 2] = pristine.each_ref().map(|home| files_of(home.path()));
    let mut random = SplitMix64(2);
    let (mut unharmed, mut earlier, mut lost, mut refused) = (0, 0, 0, 0);
    for round in 0..80 {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("embedded");
        fs::create_dir_all(folder.join("blobs")).unwrap();
        for file in &files[round % 2] {
            fs::copy(file, folder.join(file.file_name().unwrap())).unwrap();
        }
        fs::copy(pristine[round % 2].path().join("acknowledged"), home.path().join("acknowledged")).unwrap();
        let log = fs::OpenOptions::new().write(true).open(folder.join("db")).unwrap();
        let length = log.metadata().unwrap().len();
        match random.below(8) {
            0 => log.set_len(random.below(length)).unwrap(),
            _ => {
                let garbage: Vec<u8> = (0..1 + random.below(4096)).map(|_| random.below(256) as u8).collect();
                log.write_all_at(&garbage, random.below(length - garbage.len() as u64)).unwrap();
            }
        }
        let opened = match EmbeddedStore::open(home.path(), Clock::default()) {
            Ok(opened) => opened,
            Err(e) => {
                println!("refused: {e}");
                refused += 1;
                continue;
            }
        };
        let n = stands_at(&opened.store);
        match (&opened.moved_aside, n) {
            (Some(kept), 0) => {
                assert!(kept.join("db").is_file() && opened.notices.len() == 2, "{:?}", opened.notices);
                lost += 1;
            }
            (None, 400) => {
                assert_eq!((&opened.notices[..], opened.missing_commits), (&[][..], 0));
                unharmed += 1;
            }
            (None, _) => {
                assert_eq!((opened.notices.len(), opened.missing_commits), (1, 400 - n));
                earlier += 1;
            }
            (Some(_), n) => panic!("lost, but stands at {n}"),
        }
        opened.store.write(batch(n + 1)).unwrap();
        assert_eq!(stands_at(&opened.store), n + 1);
    }
    println!("unharmed {unharmed}, went back and said {earlier}, lost and said {lost}, refused {refused}");
    assert_eq!(refused, 0);
    assert!(lost > 0);
}

#[test]
fn damage_under_an_open_store_is_an_error() {
    let home = written(400);
    let opened = open(home.path());
    let log = fs::OpenOptions::new().write(true).open(home.path().join("embedded/db")).unwrap();
    let length = log.metadata().unwrap().len() as usize;
    log.write_all_at(&vec![0x55; length], 0).unwrap();
    // What is in sled's cache may still be read; nothing may panic.
    for d in 0..DOMAINS {
        if let Err(e) = opened.store.rows(DAY, &format!("d{d}.example")) {
            assert!(matches!(e, StoreError::Corrupt(_)), "{e}");
        }
    }
    let _ = opened.store.scan(Table::Decision, b"");
    let _ = opened.store.write(batch(401));
}

/// Writes batch `n` until the store takes it, once there is room again; says how often it was refused.
fn until_written(store: &EmbeddedStore, n: u64, limit: Duration) -> u32 {
    let began = Instant::now();
    let mut refused = 0;
    while let Err(e) = store.write(batch(n)) {
        assert!(matches!(e, StoreError::Io(_)), "batch {n}: {e:?}");
        assert!(began.elapsed() < limit, "batch {n} is refused for {limit:?}: {e}");
        refused += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    refused
}

/// Not a test by itself: has a small file system, fills and frees it in turns, and writes all the while. Others read.
#[test]
fn writer_on_a_full_disk() {
    let Some(room) = std::env::var_os(FULL_DISK) else { return };
    let (home, ballast) = (Path::new(&room).join("store"), Path::new(&room).join("ballast"));
    let store = open(&home).store;
    let (mut n, mut random, mut refused) = (0, SplitMix64(4), 0);
    for round in 0..ROUNDS {
        for _ in 0..random.below(20) {
            n += 1;
            store.write(batch(n)).unwrap();
        }
        let mut file = fs::File::create(&ballast).unwrap();
        // To the last octet, or but for some that sled gets through with for a while.
        while file.write(&[1; 4096]).is_ok_and(|octets| octets > 0) {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(random.below(40) * 4096)).unwrap();
        drop(file);
        let failed = loop {
            n += 1;
            let Err(e) = store.write(batch(n)) else { continue };
            break e;
        };
        println!("round {round}: batch {n}: {failed}");
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| {
                let (mut read, began) = (0, Instant::now());
                while began.elapsed() < Duration::from_secs(6) {
                    // An error, or what is right.
                    read += u64::from(store.days().is_ok_and(|days| days == [DAY]));
                    std::thread::sleep(Duration::from_millis(20));
                }
                read
            });
            // Some are tried again while there is no room yet.
            for _ in 0..random.below(3) {
                refused += u32::from(store.write(batch(n)).is_err());
                std::thread::sleep(Duration::from_millis(10));
            }
            fs::remove_file(&ballast).unwrap();
            refused += until_written(&store, n, Duration::from_secs(20));
            assert!(reader.join().unwrap() > 0);
        });
        assert_eq!(stands_at(&store), n);
    }
    drop(store);
    let opened = open(&home);
    assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
    assert_eq!(stands_at(&opened.store), n);
    println!("{ROUNDS} times full, {n} batches, refused {refused} times more");
}

#[test]
fn a_full_disk_that_is_freed_is_written_again_and_each_batch_counts_once() {
    let room = tempfile::tempdir().unwrap();
    // Mounted in a namespace of its own: gone with the process.
    let mounted =
        "mount -t tmpfs -o size=6m tmpfs \"$1\" || exit 77; exec \"$0\" --exact writer_on_a_full_disk --nocapture";
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", mounted])
        .args([std::env::current_exe().unwrap().as_path(), room.path()])
        .env(FULL_DISK, room.path())
        .output()
        .unwrap_or_else(|e| panic!("this test needs unshare(1) of util-linux: {e}"));
    let said = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    let may = done.status.code() != Some(77) && !said.contains("unshare: ");
    assert!(may, "this test must be allowed to mount a tmpfs in a namespace of its own (or run as root): {said}");
    assert!(done.status.success() && said.contains("times full"), "{said}");
    println!("{said}");
}

/// What a commit costs, by how much is in it.
#[test]
#[ignore = "measures"]
fn measure() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).store;
    let mut random = SplitMix64(3);
    println!("{:>6} {:>9} {:>9} {:>9} {:>9}", "counts", "commits/s", "counts/s", "median", "99 %");
    for counts in [1, 100, 300, 1_000, 3_000, 10_000] {
        let mut times = Vec::new();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) {
            let add = (0..counts)
                .map(|_| {
                    let domain: Arc<str> = format!("d{}.example", random.below(20_000)).into();
                    let policy = Arc::new(Policy::none(&domain));
                    (TallyKey { day: DAY, domain, policy, result: TallyResult::Success }, 1)
                })
                .collect();
            let set = vec![
                (Table::Position, b"log".to_vec(), Some(vec![1; 60])),
                (Table::OpenState, b"log".to_vec(), Some(vec![2; 10_000])),
            ];
            let one = Instant::now();
            store.write(Batch { add, set }).unwrap();
            times.push(one.elapsed());
        }
        times.sort();
        let total: f64 = times.iter().map(Duration::as_secs_f64).sum();
        println!(
            "{counts:>6} {:>9.0} {:>9.0} {:>9.2?} {:>9.2?}",
            times.len() as f64 / total,
            (times.len() * counts) as f64 / total,
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    }
    let size = store.size().unwrap();
    let began = Instant::now();
    drop(store);
    let shut = began.elapsed();
    let began = Instant::now();
    let store = open(home.path()).store;
    println!("{} MiB on disk, closed in {shut:.0?}, opened in {:.0?}", size >> 20, began.elapsed());
    let began = Instant::now();
    let domains = store.domains(DAY).unwrap().len();
    println!("{domains} domains listed in {:.0?}", began.elapsed());
}

#[test]
fn a_copy_that_is_made_while_others_write_is_of_one_moment() {
    let home = written_once(5);
    let store = open(home.path()).store;
    let copies = tempfile::tempdir().unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let stopped = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = 5;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                n += 1;
                store.write(batch(n)).unwrap();
            }
            n
        });
        let mut last = 5;
        for number in 0..5 {
            let copy = copies.path().join(number.to_string());
            store.copy(&copy).unwrap();
            let opened = open(&copy);
            assert_eq!((opened.notices, opened.missing_commits), (vec![], 0));
            let at = stands_at(&opened.store);
            assert!(at >= last, "{at} after {last}");
            last = at;
            // It is a store like any other.
            opened.store.write(batch(at + 1)).unwrap();
            assert_eq!(stands_at(&opened.store), at + 1);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert_eq!(stands_at(&store), stopped);
    assert!(matches!(store.copy(copies.path()), Err(StoreError::Io(_))), "nothing is written over");
    assert!(copies.path().join("0").exists());
}

/// Opens a store whose format is not this program's; gives the line that refuses it.
fn refused(home: &Path) -> String {
    match EmbeddedStore::open(home, Clock::default()).map(|_| ()) {
        Err(StoreError::Unusable(line)) => line,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_older_or_newer_format_is_refused_with_what_to_do_and_what_is_lost() {
    for found in [VERSION - 1, VERSION + 1] {
        let home = written_once(5);
        let set = vec![(Table::NamedValue, VERSION_KEY.to_vec(), Some(found.to_string().into_bytes()))];
        open(home.path()).store.write(Batch { add: vec![], set }).unwrap();
        let path = home.path().display();
        let wanted = match found < VERSION {
            true => format!(
                "store: {path}: unsupported format {found}: written by an older version, this one needs format {VERSION}; \
                 move or remove the folder to start with an empty store. Lost with it: counts not yet reported, cached \
                 policies, the positions in the inputs and which reports were sent. What the inputs still hold is counted \
                 again, and may be reported a second time"
            ),
            false => format!(
                "store: {path}: unsupported format {found}: written by a newer version, this one needs format {VERSION}; \
                 install the newer version, or put back a backup of format {VERSION}. The store is left unchanged"
            ),
        };
        // By the record, then by the file, which is read before anything else is.
        assert_eq!(refused(home.path()), wanted);
        let embedded = home.path().join("embedded");
        fs::rename(&embedded, home.path().join("elsewhere")).unwrap();
        fs::write(home.path().join("format"), format!("{found}\n")).unwrap();
        assert_eq!(refused(home.path()), wanted);
        assert!(!embedded.exists(), "nothing is made in it");

        let folder = tempfile::tempdir().unwrap();
        let (at, config) = (folder.path().display(), folder.path().join("config.toml"));
        let text = format!(
            "[store]\npath = \"{path}\"\n[control]\nsocket = \"{at}/control\"\n[socketmap]\nlisten = [\"unix:{at}/ask\"]\n\
             [resolver]\naddress = \"127.0.0.1:9\"\n"
        );
        fs::write(&config, text).unwrap();
        let program = |command: &str| {
            let mut program = Command::new(env!("CARGO_BIN_EXE_tlswarden"));
            program.arg(command).arg("--config").arg(&config);
            program
        };
        let output = program("results").output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said), (Some(74), format!("tlswarden: {wanted}\n")));
        // The daemon answers without it, and logs why.
        let reason = format!("store: off: {}", wanted.strip_prefix("store: ").unwrap());
        let mut daemon = program("serve").stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(daemon.stderr.take().unwrap()).lines().map_while(Result::ok);
        let logged = lines.any(|line| line.contains("ERROR") && line.contains(&reason));
        let answers = lines.any(|line| line.contains(": answering at socketmap "));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(logged && answers, "{logged} {answers}");
    }
}

#[test]
fn a_store_of_an_older_format_that_is_moved_away_makes_room_for_an_empty_one() {
    let home = written_once(5);
    let (store, away) = (home.path().join("store"), home.path().join("away"));
    fs::create_dir(&store).unwrap();
    fs::write(store.join("format"), format!("{}\n", VERSION - 1)).unwrap();
    refused(&store);
    fs::rename(&store, &away).unwrap();
    assert_eq!(stands_at(&open(&store).store), 0);
    assert_eq!(fs::read_to_string(store.join("format")).unwrap(), format!("{VERSION}\n"));
}

#[test]
fn a_format_that_is_not_a_number_is_damage() {
    let home = written_once(5);
    let set = vec![(Table::NamedValue, VERSION_KEY.to_vec(), Some(b"x".to_vec()))];
    open(home.path()).store.write(Batch { add: vec![], set }).unwrap();
    let Err(StoreError::Corrupt(line)) = EmbeddedStore::open(home.path(), Clock::default()).map(|_| ()) else {
        panic!("it was opened")
    };
    let path = home.path().display();
    assert_eq!(line, format!("store: {path}: damaged: its format is not a number: `\\x01x`; it is left unchanged"));
}
