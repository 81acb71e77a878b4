//! Carries the log of a real MTA over into other days: the same lines, written as they come, with other time stamps.
//!
//! Takes: the log that the MTA writes, with traditional stamps in UTC, and by how much they are shifted, at any moment.
//! Gives: a second log, whose stamps only go forward as long as the shift does, without the lines that are to be hidden.
//! When it fails: a line without a stamp is carried over as it is.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

/// How often the MTA's log is looked at.
const EVERY: Duration = Duration::from_millis(20);

/// Carries lines over until it is dropped.
#[derive(Debug)]
pub struct Timeshift {
    shift: Arc<AtomicI64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Timeshift {
    /// Carries what comes in `from` over to `to`, but for the lines in which `hidden` stands.
    pub fn start(from: &Path, to: &Path, hidden: Option<&'static str>) -> Timeshift {
        let (shift, end) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicBool::new(false)));
        let (by, ended) = (Arc::clone(&shift), Arc::clone(&end));
        let (from, to) = (from.to_owned(), to.to_owned());
        let thread = std::thread::spawn(move || {
            let (mut read, mut rest) = (None, Vec::new());
            while !ended.load(Ordering::SeqCst) {
                std::thread::sleep(EVERY);
                read = read.or_else(|| fs::File::open(&from).ok());
                let Some(file) = &mut read else { continue };
                let by = by.load(Ordering::SeqCst);
                if file.read_to_end(&mut rest).is_err() {
                    continue;
                }
                let whole = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = rest.drain(..whole).collect();
                let mut out = Vec::new();
                let shown = |line: &&[u8]| {
                    hidden.is_none_or(|hidden| !line.windows(hidden.len()).any(|part| part == hidden.as_bytes()))
                };
                let lines = lines.split_inclusive(|b| *b == b'\n').filter(shown);
                lines.for_each(|line| out.extend(shifted(line, by)));
                let mut log = fs::OpenOptions::new().create(true).append(true).open(&to).expect("a log");
                log.write_all(&out).expect("a log");
            }
        });
        Timeshift { shift, end, thread: Some(thread) }
    }

    /// Shifts the lines that are read from now on so that this moment is `then` (seconds since 1970).
    pub fn now_is(&self, then: i64) {
        // What was written before is carried over as it was.
        std::thread::sleep(4 * EVERY);
        self.shift.store(then - Timestamp::now().as_second(), Ordering::SeqCst);
    }
}

impl Drop for Timeshift {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A line with its stamp (`Nov 22 10:11:12`) shifted by so many seconds.
fn shifted(line: &[u8], by: i64) -> Vec<u8> {
    let stamp = line.get(..15).and_then(|stamp| std::str::from_utf8(stamp).ok());
    let year = Timestamp::now().to_zoned(TimeZone::UTC).year();
    let then = stamp.and_then(|stamp| DateTime::strptime("%Y %b %d %H:%M:%S", format!("{year} {stamp}")).ok());
    let then = then.and_then(|then| then.checked_add(by.seconds()).ok());
    match then {
        None => line.to_vec(),
        Some(then) => [then.strftime("%b %e %H:%M:%S").to_string().as_bytes(), &line[15..]].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::shifted;

    #[test]
    fn the_stamp_alone_moves() {
        assert_eq!(shifted(b"Nov 22 23:59:59 mta x: Nov 22\n", 2), b"Nov 23 00:00:01 mta x: Nov 22\n");
        assert_eq!(shifted(b"Nov 30 00:00:00 a\n", 86_400), b"Dec  1 00:00:00 a\n");
        assert_eq!(shifted(b"no stamp\n", 2), b"no stamp\n");
    }
}
