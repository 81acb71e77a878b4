//! How fast `parse` is, beside floors that run in the same process, in turn with it.
//!
//! `cargo bench -p tlswarden-parsers`. For each log: lines, bytes, then lines/s and MB/s (10^6 bytes) of
//! - `newlines`: counting `\n` with memchr: no reader of lines can be faster;
//! - `search`: looking for `TLS connection established` (Exim: ` X=TLS`) in the whole log, as `grep -c -F` does: finding one family;
//! - `lines`: cutting the log into lines and nothing else;
//! - `parse`: cutting it and reading every line.
//!
//! Median, and slowest to fastest, of `RUNS` runs. Ends with an error if a line is malformed or a log has no events.
//! Without `--bench` (`cargo test --benches`) the logs are short and run once: a test that this still works.

mod mix;

use std::{env, hint::black_box, process::ExitCode, time::Instant};

use memchr::{memchr_iter, memmem};
use mix::{MixedLog, TimestampForm};
use tlswarden_parsers::{Dialect, parse};

/// Octets of a log: more than the caches hold.
const OCTETS: usize = 64 << 20;
const RUNS: usize = 9;

/// Real lines of Exim 4.96 and 4.98 in several forms, three of each shape.
const EXIM: &[u8] = include_bytes!("exim.log");

/// Real lines of Postfix 3.10 (`maillog_file`) and 3.7 (RFC 3339), all of smtp(8) or tlsproxy(8).
const OUTBOUND: &[u8] = include_bytes!("outbound.log");

fn main() -> ExitCode {
    let (bytes, runs) = if env::args().any(|arg| arg == "--bench") { (OCTETS, RUNS) } else { (1 << 20, 1) };
    let traditional = mixed(TimestampForm::Traditional, bytes);
    let rfc3339 = mixed(TimestampForm::Rfc3339, bytes);
    let logs = [
        (
            "all lines about outbound TLS, real",
            Dialect::Postfix,
            "TLS connection established",
            OUTBOUND.repeat(bytes.div_ceil(OUTBOUND.len())),
        ),
        ("70 % other mail lines, traditional stamps", Dialect::Postfix, "TLS connection established", traditional),
        ("70 % other mail lines, RFC 3339 stamps", Dialect::Postfix, "TLS connection established", rfc3339),
        (
            "Exim's mainlog, all lines about deliveries, real",
            Dialect::Exim,
            " X=TLS",
            EXIM.repeat(bytes.div_ceil(EXIM.len())),
        ),
    ];
    let sound = logs
        .iter()
        .map(|(name, mta, sought, log)| compare(name, *mta, sought, log, runs))
        .fold(true, |all, one| all & one);
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn mixed(form: TimestampForm, bytes: usize) -> Vec<u8> {
    let mut log = Vec::with_capacity(bytes + 4096);
    let mut mix = MixedLog::new(1, form);
    mix.write(&mut log, bytes);
    mix.finish(&mut log);
    let share = mix.outbound_lines() * 100 / mix.lines();
    assert!((29..=31).contains(&share), "{share} % of the lines are about outbound TLS");
    assert!(mix.sessions() > 0, "a mix without sessions");
    log
}

/// What is timed: all of a log, to a number that depends on all of it.
type Measure<'a> = &'a dyn Fn(&[u8]) -> usize;

/// Measures one log; false if it was not read as it should be.
fn compare(name: &str, mta: Dialect, sought: &str, log: &[u8], runs: usize) -> bool {
    let lines = memchr_iter(b'\n', log).count();
    let read = read(mta, log);
    println!("{name}: {lines} lines, {} octets, {} events, {} malformed", log.len(), read.events, read.malformed);
    let measures: [(&str, Measure); 4] = [
        ("newlines", &|log| memchr_iter(b'\n', log).count()),
        ("search", &|log| memmem::find_iter(log, sought).count()),
        ("lines", &|log| each_line(log).map(|line| usize::from(black_box(line).is_empty())).sum()),
        ("parse", &|log| read_events(mta, log)),
    ];
    let mut seconds = [const { Vec::new() }; 4];
    for _ in 0..runs {
        for ((_, measure), seconds) in measures.iter().zip(&mut seconds) {
            let start = Instant::now();
            black_box(measure(black_box(log)));
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    for ((what, _), mut seconds) in measures.into_iter().zip(seconds) {
        seconds.sort_by(f64::total_cmp);
        let rate = |seconds: f64| (lines as f64 / seconds / 1e6, log.len() as f64 / seconds / 1e6);
        let (million_lines, megabytes) = rate(seconds[runs / 2]);
        let (slowest, fastest) = (rate(seconds[runs - 1]).1, rate(seconds[0]).1);
        println!("  {what:8} {million_lines:8.2} M lines/s {megabytes:8.0} MB/s   ({slowest:.0} to {fastest:.0})");
    }
    read.malformed == 0 && read.events > 0
}

#[derive(Default)]
struct Read {
    events: usize,
    malformed: usize,
}

fn read(mta: Dialect, log: &[u8]) -> Read {
    let mut read = Read::default();
    for line in each_line(log) {
        match parse(mta, line) {
            Ok(Some(_)) => read.events += 1,
            Ok(None) => {}
            Err(_) => read.malformed += 1,
        }
    }
    read
}

/// The whole event is made: `black_box` keeps the compiler from leaving out what is not looked at.
fn read_events(mta: Dialect, log: &[u8]) -> usize {
    each_line(log).filter(|line| matches!(black_box(parse(mta, line)), Ok(Some(_)))).count()
}

fn each_line(log: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut start = 0;
    memchr_iter(b'\n', log).map(move |end| {
        let line = &log[start..end];
        start = end + 1;
        line
    })
}
