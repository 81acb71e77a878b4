//! How fast the counting river is, commits included, beside floors that run in the same process, in turn with it.
//!
//! `cargo bench --bench river`. A log of which 70 % is other mail, then lines/s of
//! - `newlines`: counting `\n`: no reader of lines can be faster;
//! - `counting`: parsers, sessions and tallies, without a store;
//! - `river`: all of it, with commits to the embedded store on this disk.
//!
//! `cargo bench --bench river -- memory`: a gigabyte of log through the river, made as it is read, and the resident memory
//! every 100 MB (Linux); ends with an error if it grows once the first 300 MB are counted.
//!
//! Median, and slowest to fastest, of `RUNS` runs; ends with an error if the river did not count what `counting` did.
//! Without `--bench` (`cargo test --benches`) the log is short and runs once.

#[path = "../parsers/benches/mix.rs"]
#[allow(dead_code)] // The parsers' own benchmark uses the rest.
mod mix;

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use jiff::tz::TimeZone;
use mix::{MixedLog, TimestampForm};
use tlswarden::base::allocator::Allocator;
use tlswarden::base::clock::Clock;
use tlswarden::base::policy_at::PolicyAt;
use tlswarden::base::tlsrpt::{PolicyInForce, sum_tallies};
use tlswarden::counting::input::file_position::FilePosition;
use tlswarden::counting::input::{LineBlock, MAX_BLOCK, Position, RepeatedLines};
use tlswarden::counting::pipeline::{CountedInput, Counter, CountingTask, InputEvent};
use tlswarden::metrics::Metrics;
use tlswarden::store::Store;
use tlswarden::store::embedded::EmbeddedStore;
use tlswarden_parsers::Dialect;
use tokio::sync::{mpsc, watch};

/// The programs' own, for the memory is as it lets go of it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Octets of the log: about a million lines.
const OCTETS: usize = 150 << 20;
const RUNS: usize = 5;

struct NoPolicy;

impl PolicyAt for NoPolicy {
    fn at(&self, _: &str, _: i64) -> Option<PolicyInForce> {
        Some(PolicyInForce::None)
    }
}

/// Octets of the log that shows the memory, and how often it is looked at.
const GIGABYTE: usize = 1_000_000_000;
const LOOK: usize = 100_000_000;
/// How much more memory than after the first 300 MB may be taken, in kB: by then all destinations have counts.
const GROWTH: u64 = 8 << 10;

fn main() -> ExitCode {
    if std::env::args().any(|arg| arg == "memory") {
        return memory();
    }
    let whole = std::env::args().any(|arg| arg == "--bench");
    let (octets, runs) = if whole { (OCTETS, RUNS) } else { (2 << 20, 1) };
    let octets = std::env::var("TLSWARDEN_OCTETS").map_or(octets, |text| text.parse().unwrap());
    let mut log = Vec::with_capacity(octets + 4096);
    let mut mix = MixedLog::new(1, TimestampForm::Traditional);
    mix.write(&mut log, octets);
    mix.finish(&mut log);
    let lines = mix.lines();
    println!("{lines} lines, {} octets, {} outbound TLS sessions", log.len(), mix.sessions());
    let (mut floor, mut counting, mut river) = (Vec::new(), Vec::new(), Vec::new());
    let mut same = true;
    for _ in 0..runs {
        floor.push(timed(|| black_box(black_box(&log).iter().filter(|b| **b == b'\n').count())).0);
        let (seconds, without) = timed(|| count(&log));
        counting.push(seconds);
        let (seconds, with) = timed(|| flow(&log));
        river.push(seconds);
        same &= with == without;
    }
    let base = median(&mut floor);
    for (what, mut seconds) in [("newlines", floor), ("counting", counting), ("river", river)] {
        let rate = |seconds: f64| lines as f64 / seconds / 1e6;
        let middle = median(&mut seconds);
        let (slowest, fastest) = (rate(seconds[seconds.len() - 1]), rate(seconds[0]));
        println!(
            "  {what:8} {:8.2} M lines/s   ({slowest:.2} to {fastest:.2})   {:.3} of the floor",
            rate(middle),
            base / middle
        );
    }
    if !same {
        println!("the river did not count what counting without a store did");
    }
    if same { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn timed<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64(), result)
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn counter() -> Counter {
    Counter::new(Dialect::Postfix, TimeZone::UTC, Arc::new(|_| false))
}

/// Sessions counted: (successful, failed).
type Sessions = (u64, u64);

fn count(log: &[u8]) -> Sessions {
    let mut counter = counter();
    counter.count_lines(log, Clock::default().seconds(), &NoPolicy);
    sum_tallies(counter.take_counts()).iter().fold((0, 0), |sum, row| (sum.0 + row.successful, sum.1 + row.failed))
}

/// What the kernel says that we have in memory, in kB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

fn memory() -> ExitCode {
    let mut taken = Vec::new();
    let began = Instant::now();
    let mut mix = MixedLog::new(1, TimestampForm::Traditional);
    let mut written = 0;
    let counted = through_the_river(|| {
        if written >= GIGABYTE {
            return None;
        }
        if written >= taken.len() * LOOK {
            taken.push(resident());
        }
        let mut lines = Vec::with_capacity(MAX_BLOCK);
        mix.write(&mut lines, MAX_BLOCK - 4096);
        written += lines.len();
        if written >= GIGABYTE {
            mix.finish(&mut lines);
        }
        Some((lines, GIGABYTE.saturating_sub(written)))
    });
    taken.push(resident());
    let shown: Vec<String> = taken.iter().map(|kb| format!("{:.1}", *kb as f64 / 1024.0)).collect();
    println!(
        "{written} octets, {counted:?} sessions, in {:.1?}; resident MB every 100 MB: {}",
        began.elapsed(),
        shown.join(" ")
    );
    let flat = taken[4..].iter().all(|kb| *kb <= taken[3] + GROWTH);
    if flat && counted.0 > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn flow(log: &[u8]) -> Sessions {
    let mut rest = log;
    through_the_river(|| {
        if rest.is_empty() {
            return None;
        }
        let reach = rest.len().min(MAX_BLOCK);
        let end = rest[..reach].iter().rposition(|b| *b == b'\n').unwrap() + 1;
        let (lines, after) = rest.split_at(end);
        rest = after;
        Some((lines.to_vec(), after.len()))
    })
}

/// Blocks of whole lines, each with how much is behind it.
fn through_the_river(mut next: impl FnMut() -> Option<(Vec<u8>, usize)> + Send) -> Sessions {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(folder.path(), Clock::default()).unwrap().store);
    let river = CountingTask {
        store: Arc::clone(&store),
        policies: Box::new(NoPolicy),
        hints: mpsc::channel(1).0,
        datagrams: Arc::default(),
        own_queue_ids: tlswarden::base::own_reports::OwnQueueIds::default(),
        own_report_statuses: tlswarden::base::own_reports::OwnReportStatuses::default(),
        metrics: Metrics::default(),
        clock: Clock::default(),
    };
    let source = CountedInput { name: "log".into(), counter: counter() };
    let (sender, blocks) = mpsc::channel(2);
    let (_stop, shutdown) = watch::channel(false);
    std::thread::scope(|threads| {
        threads.spawn(move || {
            sender.blocking_send(InputEvent::LogInput(0, Box::new(source))).unwrap();
            let mut offset = 0;
            while let Some((lines, behind)) = next() {
                offset += lines.len() as u64;
                let position = Position::File(FilePosition { inode: 1, offset, ..FilePosition::default() });
                let (bytes_behind, at_end) = (behind as u64, behind == 0);
                let (repeated, lines_missing) = (RepeatedLines::AsBefore, false);
                let block = LineBlock { lines, position, skipped: 0, bytes_behind, at_end, repeated, lines_missing };
                sender.blocking_send(InputEvent::Block(0, block)).unwrap();
            }
        });
        river.run(runtime.handle(), blocks, mpsc::channel(1).1, shutdown).unwrap();
    });
    let mut sum = (0, 0);
    for day in store.days().unwrap() {
        for domain in store.domains(day).unwrap() {
            for row in store.rows(day, &domain).unwrap() {
                sum = (sum.0 + row.successful, sum.1 + row.failed);
            }
        }
    }
    sum
}
