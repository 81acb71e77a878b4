//! Where the counted lines end in a file: held against a position, by the bytes before it.
//!
//! Takes: a position, and a file that may be the one it is of. Gives: a [`Fit`]: where reading continues in that file, so that no
//! counted line is counted again. A log that lost its end, and may have grown again since (power loss, truncation), is
//! the same log; so is a copy of it, and one that was edited.
//! Limits: the last `MAX_TAIL_LINES` lines are compared one by one; before them checkpoints serve, and whether a line
//! between two of them was counted is decided by its time (`counter`).
//! When it fails: an I/O error; nothing was changed.
//! Not here: which files are looked at (`follow`).

use std::collections::{HashMap, VecDeque};
use std::io;

use crate::counting::digest::digest;
use crate::counting::input::file::open_log::OpenLog;
use crate::counting::input::file_position::{Checkpoint, FilePosition, line_digest, split_lines};

/// The least bytes of whole lines that must agree before a place is taken for the same: two lines of a log may be equal.
const MIN_AGREEING_BYTES: usize = 48;

/// Where reading continues in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fit {
    /// At a place before which everything was counted, as the file begins as it did; what stands between that place and
    /// the newest line counted may have been counted.
    Before {
        /// Bytes into the file.
        offset: u64,
    },
    /// After the newest counted line that is left in it.
    After {
        /// How many of the last lines are left; the more, the newer is the newest.
        lines: usize,
        /// Bytes into the file.
        offset: u64,
    },
    /// At the position: every line before it is where it was.
    Whole,
}

/// Where the lines that were counted up to `position` end in `log`, a file whose first bytes are those of the position.
pub(super) fn locate(position: &FilePosition, log: &mut OpenLog) -> io::Result<Fit> {
    if position.offset == 0 {
        return Ok(Fit::Whole);
    }
    if log.is_gzip() {
        return locate_in_gzip(position, log);
    }
    if is_whole(position, log)? {
        return Ok(Fit::Whole);
    }
    // Before the lines that are known one by one.
    let checkpoint = newest_checkpoint(position, log, position.tail_start)?;
    let from = checkpoint.map_or(0, |one| one.offset);
    if let Some(fit) = newest_line(position, log, from)? {
        return Ok(fit);
    }
    Ok(match from == position.tail_start && !position.tail.is_empty() {
        true => Fit::After { lines: 0, offset: from },
        false => Fit::Before { offset: from },
    })
}

/// The same for a gzip file, which is read from its start: it may have been packed after it lost its end.
fn locate_in_gzip(position: &FilePosition, log: &OpenLog) -> io::Result<Fit> {
    if position.tail.is_empty() {
        return Ok(Fit::Whole);
    }
    let found = newest_line(position, &mut log.again()?, 0)?;
    Ok(match found {
        Some(Fit::After { lines, offset }) if lines == position.tail.len() && offset == position.offset => Fit::Whole,
        Some(fit) => fit,
        // Every counted line is known, and none is left.
        None if position.tail_start == 0 => Fit::After { lines: 0, offset: 0 },
        // Few short lines are known: it is taken for what its beginning says.
        None => {
            let mut again = log.again()?;
            again.seek(position.offset)?;
            if again.offset == position.offset { Fit::Whole } else { Fit::Before { offset: 0 } }
        }
    })
}

/// The same for a file that begins otherwise: one that was edited has the last lines somewhere.
pub(super) fn locate_in_edited(position: &FilePosition, log: &mut OpenLog) -> io::Result<Option<Fit>> {
    if log.is_empty() {
        return Ok(None);
    }
    if log.is_gzip() {
        return newest_line(position, &mut log.again()?, 0);
    }
    newest_line(position, log, 0)
}

/// Whether the last lines before the position stand where they stood.
fn is_whole(position: &FilePosition, log: &mut OpenLog) -> io::Result<bool> {
    if !log.reaches(position.offset) {
        return Ok(false);
    }
    if position.tail.is_empty() {
        let known = position.checkpoints.iter().any(|one| one.offset == position.offset);
        let agreeing = newest_checkpoint(position, log, position.offset)?;
        return Ok(!known || agreeing.is_some_and(|one| one.offset == position.offset));
    }
    let length = usize::try_from(position.offset.saturating_sub(position.tail_start)).unwrap_or(usize::MAX);
    let text = log.bytes_at(position.tail_start, length)?;
    let lines: Vec<&[u8]> = split_lines(&text).collect();
    let mut agreeing = 0;
    for (line, digest) in lines.iter().rev().zip(position.tail.iter().rev()) {
        if line_digest(line) != *digest {
            return Ok(false);
        }
        agreeing += line.len();
        if agreeing >= MIN_AGREEING_BYTES {
            return Ok(text.len() == length);
        }
    }
    Ok(text.len() == length && lines.len() == position.tail.len())
}

/// The newest checkpoint up to `limit` that the file agrees with.
fn newest_checkpoint(position: &FilePosition, log: &mut OpenLog, limit: u64) -> io::Result<Option<Checkpoint>> {
    let limit = limit.min(log.length);
    for one in position.checkpoints.iter().rev().filter(|one| one.offset <= limit && one.covers > 0) {
        let covered = usize::try_from(one.covers).unwrap_or(usize::MAX);
        let Some(from) = one.offset.checked_sub(one.covers) else { continue };
        let bytes = log.bytes_at(from, covered)?;
        if bytes.len() == covered && digest(&bytes) == one.digest {
            return Ok(Some(one.clone()));
        }
    }
    Ok(None)
}

/// The newest of the last lines that stands in the file at or after `from`, with those before it. Equal lines may stand
/// in several places: the one with the most lines before it that agree is taken, of several the one where the position
/// ends, or else the first.
fn newest_line(position: &FilePosition, log: &mut OpenLog, from: u64) -> io::Result<Option<Fit>> {
    let mut indexes: HashMap<u32, Vec<usize>> = HashMap::new();
    for (index, digest) in position.tail.iter().enumerate() {
        indexes.entry(*digest).or_default().push(index);
    }
    let mut found: Option<((usize, usize, bool), u64)> = None;
    let mut read = ReadLines { from, lines: VecDeque::new(), complete: true };
    log.visit_lines(from, &mut |line, end| {
        let digest = line_digest(line);
        read.push(digest, line.len());
        let Some(candidates) = indexes.get(&digest) else { return };
        for index in candidates.iter().rev() {
            let Some(agreeing) = read.agreeing(position, *index) else { continue };
            let in_place = index + 1 == position.tail.len() && end == position.offset;
            let rank = (*index, agreeing, in_place);
            if found.is_none_or(|(best, _)| rank > best) {
                found = Some((rank, end));
            }
        }
    })?;
    Ok(found.map(|((index, ..), offset)| Fit::After { lines: index + 1, offset }))
}

/// The lines of a file that were read last.
struct ReadLines {
    from: u64,
    /// Digest and length of each.
    lines: VecDeque<(u32, usize)>,
    /// Whether these are all from `from` on.
    complete: bool,
}

impl ReadLines {
    fn push(&mut self, digest: u32, length: usize) {
        // No line is empty, so that these are enough.
        if self.lines.len() == MIN_AGREEING_BYTES {
            self.lines.pop_front();
            self.complete = false;
        }
        self.lines.push_back((digest, length));
    }

    /// How many lines of the position, the last of them the one at `index`, are those that were read last; none if they
    /// are too few to tell.
    fn agreeing(&self, position: &FilePosition, index: usize) -> Option<usize> {
        let mut bytes = 0;
        let mut known = position.tail[..=index].iter().rev();
        for (count, (digest, length)) in self.lines.iter().rev().enumerate() {
            match known.next() {
                Some(line) if line == digest => bytes += length,
                _ => return (bytes >= MIN_AGREEING_BYTES).then_some(count),
            }
        }
        // Few short lines, which agree from the beginning of the file, or from a checkpoint.
        let from_start = self.complete && (self.from > 0 || (position.tail_start == 0 && known.next().is_none()));
        (bytes >= MIN_AGREEING_BYTES || from_start).then_some(self.lines.len())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::counting::input::file::file_system::{HostFileSystem, LogFileSystem};
    use crate::counting::input::file::open_log::ReadResult;
    use crate::counting::input::file_position::MAX_TAIL_LINES;

    fn open(path: &Path) -> OpenLog {
        let files: Arc<dyn LogFileSystem> = Arc::new(HostFileSystem);
        OpenLog::open(&files, path).unwrap()
    }

    fn line(number: usize) -> String {
        format!("Nov 22 01:02:03 mta postfix/smtp[{number}]: a line of a log, with the number {number}\n")
    }

    fn lines(numbers: impl IntoIterator<Item = usize>) -> String {
        numbers.into_iter().map(line).collect()
    }

    /// The position after `text`, read in blocks of `each` lines.
    fn read(path: &Path, text: &str, each: usize) -> FilePosition {
        fs::write(path, "").unwrap();
        let mut log = open(path);
        let all: Vec<&[u8]> = split_lines(text.as_bytes()).collect();
        for block in all.chunks(each) {
            let before = fs::read(path).unwrap();
            fs::write(path, [before, block.concat()].concat()).unwrap();
            while let ReadResult::Lines { .. } = log.read().unwrap() {}
        }
        log.position()
    }

    /// What is left to read of `now` by a position after lines 0 to `counted`: the fit, and the text.
    fn rest(counted: usize, each: usize, now: &str) -> (Fit, String) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        let position = read(&path, &lines(0..counted), each);
        fs::write(&path, now).unwrap();
        let mut log = open(&path);
        let fit = match position.head.matches(&log.head) {
            true => locate(&position, &mut log).unwrap(),
            false => match locate_in_edited(&position, &mut log).unwrap() {
                Some(fit) => fit,
                None => return (Fit::Before { offset: 0 }, "another file".to_owned()),
            },
        };
        let offset = match fit {
            Fit::Whole => position.offset,
            Fit::After { offset, .. } | Fit::Before { offset } => offset,
        };
        (fit, now[offset as usize..].to_owned())
    }

    #[test]
    fn a_file_that_lost_its_end_and_grew_again_continues_with_the_new_lines() {
        for each in [1, 7, 1000] {
            for kept in [1, 20, 99, 100] {
                for new in [0, 1, 50, 200] {
                    let now = lines((0..kept).chain(5000..5000 + new));
                    let short = now.len() < 1024;
                    assert!(short || rest(100, each, &now).1 == lines(5000..5000 + new), "{each} {kept} {new}");
                    // The last line that is left is cut, and goes on with a new one.
                    let cut = [&lines(0..kept), &line(kept)[..30], &lines(5000..5000 + new)].concat();
                    let want = [&line(kept)[..30], &lines(5000..5000 + new)].concat();
                    assert!(short || rest(100, each, &cut).1 == want, "{each} {kept} {new}");
                }
            }
        }
    }

    #[test]
    fn more_than_the_lines_that_are_known_one_by_one_is_found_by_a_checkpoint() {
        let all = 4 * MAX_TAIL_LINES;
        let now = lines((0..all / 2).chain(50_000..50_010));
        let (fit, left) = rest(all, 100, &now);
        let Fit::Before { offset } = fit else { panic!("{fit:?}") };
        assert!(offset > 0 && left.ends_with(&lines(50_000..50_010)) && left.len() < now.len(), "{offset}");
    }

    #[test]
    fn an_edited_file_continues_after_its_last_counted_line() {
        let new = || 200..210;
        let without_first = lines((1..100).chain(new()));
        let without_some = lines((0..100).filter(|n| n % 7 > 0).chain(new()));
        let changed = lines((0..100).chain(new())).replace("number 50", "number x");
        let longer = lines((0..100).chain(new())).replace("number 98", "another number");
        for now in [without_first, without_some, changed, longer] {
            assert_eq!(rest(100, 3, &now).1, lines(new()), "{now}");
        }
    }

    #[test]
    fn of_equal_lines_the_one_is_found_where_the_position_ends() {
        // The last counted line stands once more behind the position, and the same twice in a row.
        for (counted, now) in [
            (lines([0, 1, 2, 3]), lines([0, 1, 2, 3, 4, 3, 5])),
            (lines([0, 1, 3, 3]), lines([0, 1, 3, 3, 4, 3, 5])),
            (lines([0, 1, 3]), lines([0, 1, 3, 3, 4])),
        ] {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join("mail.log");
            let position = read(&path, &counted, 1);
            let packed = home.path().join("mail.log.1.gz");
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            io::Write::write_all(&mut gzip, now.as_bytes()).unwrap();
            fs::write(&packed, gzip.finish().unwrap()).unwrap();
            assert_eq!(locate(&position, &mut open(&packed)).unwrap(), Fit::Whole, "{now}");
            // The same in a file that begins otherwise.
            let edited = lines([9]) + &now;
            fs::write(&path, &edited).unwrap();
            let fit = locate_in_edited(&position, &mut open(&path)).unwrap();
            let offset = (lines([9]) + &counted).len() as u64;
            let tail = position.tail.len();
            assert_eq!(fit, Some(Fit::After { lines: tail, offset }), "{now}");
        }
    }

    #[test]
    fn another_file_does_not_fit() {
        assert_eq!(rest(100, 10, &lines(200..400)).1, "another file");
        // Nor one that shares short lines with it.
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        let position = read(&path, &["one\n\n", &line(1), "\n"].concat(), 1);
        fs::write(&path, "another\n\nand another\n\n").unwrap();
        assert_eq!(locate_in_edited(&position, &mut open(&path)).unwrap(), None);
    }
}
