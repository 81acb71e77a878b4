//! How far a log file has been counted, and how the file is recognized: by its inode, its first bytes, and the bytes before
//! the position.
//!
//! Takes: the lines that were read. Gives: digests of the last lines, and checkpoints spread over the hours before.
//! Limits: [`MAX_TAIL_LINES`] digests of lines, one checkpoint for each doubling of age, [`MAX_EARLIER_FILES`] files.
//! Not here: how a file is held against a position (`file/locate`).

use memchr::{memchr_iter, memrchr};
use serde::{Deserialize, Serialize};

use crate::counting::digest::digest;

/// The most digests of lines before the position: what a file that lost its tail is held against, line by line.
pub(crate) const MAX_TAIL_LINES: usize = 1024;

/// The most bytes that a checkpoint's digest covers: more than one line.
pub(crate) const CHECKPOINT_BYTES: usize = 512;

/// The fewest bytes that tell a file from others that are there at the same time: more than a time.
const MIN_DISTINCT_BYTES: u64 = 24;

/// The fewest bytes that a file that lost some is recognized by: a time, a host, a program, a process, and some of a text.
const BEGINNING_BYTES: usize = 48;

/// The bytes that tell a file that has as many from others that begin alike: more than one line.
const FIRST_LINES_BYTES: usize = 256;

/// The oldest checkpoint, in seconds: a file system that loses more than two days of a log is restored from a backup.
const MAX_CHECKPOINT_AGE: u64 = 2 * 86_400;

/// The most files read before this one that are remembered.
pub(crate) const MAX_EARLIER_FILES: usize = 16;

/// How far a log file has been counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePosition {
    /// The first bytes of the file; none while it is empty.
    pub head: HeadDigest,
    /// Its inode number.
    pub inode: u64,
    /// Bytes counted.
    pub offset: u64,
    /// Where the first line of `tail` begins.
    pub tail_start: u64,
    /// Digests of the last lines before `offset`, in order.
    pub tail: Vec<u32>,
    /// Places further back, oldest first.
    pub checkpoints: Vec<Checkpoint>,
    /// The files that were read, or passed over, before this one, oldest first.
    pub earlier_files: Vec<HeadDigest>,
}

/// The first bytes of a file, which tell it from another that got its inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadDigest {
    /// Their digest.
    pub digest: u64,
    /// How many bytes it covers.
    pub covers: u64,
    /// The digest of fewer, for a file that has lost the others.
    pub beginning: u64,
    /// The digest of the first lines, as far as it had them.
    pub first_lines: u64,
}

/// A place in a file that was the position at a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Bytes counted then.
    pub offset: u64,
    /// How many bytes before it the digest covers.
    pub covers: u64,
    /// Their digest.
    pub digest: u64,
    /// When, in seconds since 1970-01-01T00:00:00Z.
    pub at: i64,
}

impl HeadDigest {
    /// The digest of a file's first bytes.
    pub(crate) fn of(head: &[u8]) -> HeadDigest {
        let beginning = head.get(..BEGINNING_BYTES).map_or(0, digest);
        let first_lines = head.get(..FIRST_LINES_BYTES).map_or(0, digest);
        HeadDigest { digest: digest(head), covers: head.len() as u64, beginning, first_lines }
    }

    /// Whether these are the first bytes of the file of the digest, which may have lost some of them.
    pub fn matches(&self, head: &[u8]) -> bool {
        let covered = usize::try_from(self.covers).ok().and_then(|covers| head.get(..covers));
        let is_same = match head.get(..FIRST_LINES_BYTES) {
            Some(lines) if self.covers >= FIRST_LINES_BYTES as u64 => digest(lines) == self.first_lines,
            _ => self.may_be_truncated(head),
        };
        is_same || covered.is_some_and(|head| digest(head) == self.digest)
    }

    /// Whether these may be the first bytes of the file of the digest after it lost some of them, and grew again. Logs of
    /// one program begin alike, so that this alone does not tell a file from others.
    pub(crate) fn may_be_truncated(&self, head: &[u8]) -> bool {
        head.get(..BEGINNING_BYTES).is_some_and(|head| self.has_beginning() && digest(head) == self.beginning)
    }

    fn has_beginning(&self) -> bool {
        self.covers >= BEGINNING_BYTES as u64
    }

    /// Whether it tells a file from all others: a few bytes, as of a line that is being written, do not.
    pub(crate) fn is_distinct(&self) -> bool {
        self.covers >= MIN_DISTINCT_BYTES
    }

    /// Whether there was anything to recognize the file by.
    pub(crate) fn is_empty(&self) -> bool {
        self.covers == 0
    }
}

impl FilePosition {
    /// Adds the file that this position is of to the files that were read before the next one.
    pub(crate) fn earlier_files_of_next(&self) -> Vec<HeadDigest> {
        let mut earlier = self.earlier_files.clone();
        if self.head.is_distinct() && earlier.last() != Some(&self.head) {
            earlier.push(self.head);
        }
        earlier.drain(..earlier.len().saturating_sub(MAX_EARLIER_FILES));
        earlier
    }
}

impl Checkpoint {
    /// A checkpoint at `offset`, before which these bytes stand.
    pub(crate) fn new(offset: u64, before: &[u8], at: i64) -> Checkpoint {
        let covered = &before[before.len().saturating_sub(CHECKPOINT_BYTES)..];
        Checkpoint { offset, covers: covered.len() as u64, digest: digest(covered), at }
    }
}

/// Adds a checkpoint, and drops those that are too dense for their age: for each doubling of age the oldest stays.
pub(crate) fn add_checkpoint(checkpoints: &mut Vec<Checkpoint>, new: Checkpoint) {
    let now = new.at;
    checkpoints.retain(|old| old.offset < new.offset);
    let mut bucket_before = None;
    checkpoints.retain(|old| {
        let age = u64::try_from(now.saturating_sub(old.at)).unwrap_or(0);
        let bucket = (age + 1).ilog2();
        let keeps = age <= MAX_CHECKPOINT_AGE && bucket_before != Some(bucket);
        if keeps {
            bucket_before = Some(bucket);
        }
        keeps
    });
    checkpoints.push(new);
}

/// The lines before the position, while they are read.
#[derive(Debug, Default)]
pub(crate) struct TailLines {
    start: u64,
    /// Digest and length of each line.
    lines: std::collections::VecDeque<(u32, u32)>,
}

impl TailLines {
    /// Begins anew at `offset`: the lines before it are not known.
    pub(crate) fn restart(&mut self, offset: u64) {
        self.start = offset;
        self.lines.clear();
    }

    /// Adds lines, each ended by `\n` but perhaps the last.
    pub(crate) fn push_lines(&mut self, lines: &[u8]) {
        let skipped = start_of_last_lines(lines, MAX_TAIL_LINES);
        if skipped > 0 {
            self.start += self.lines.iter().map(|(_, length)| u64::from(*length)).sum::<u64>() + skipped as u64;
            self.lines.clear();
        }
        for line in split_lines(&lines[skipped..]) {
            if self.lines.len() == MAX_TAIL_LINES
                && let Some((_, length)) = self.lines.pop_front()
            {
                self.start += u64::from(length);
            }
            self.lines.push_back((line_digest(line), u32::try_from(line.len()).unwrap_or(u32::MAX)));
        }
    }

    /// Where its first line begins, and the digests.
    pub(crate) fn digests(&self) -> (u64, Vec<u32>) {
        (self.start, self.lines.iter().map(|(digest, _)| *digest).collect())
    }
}

/// Where the last `most` lines begin.
fn start_of_last_lines(lines: &[u8], most: usize) -> usize {
    let mut end = lines.strip_suffix(b"\n").unwrap_or(lines).len();
    for _ in 0..most {
        match memrchr(b'\n', &lines[..end]) {
            Some(at) => end = at,
            None => return 0,
        }
    }
    end + 1
}

/// The lines of a text, each with its `\n`; the last may have none.
pub(crate) fn split_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut from = 0;
    let ends = memchr_iter(b'\n', text).map(|at| at + 1);
    let rest = text.last().is_some_and(|byte| *byte != b'\n').then_some(text.len());
    ends.chain(rest).map(move |end| {
        let line = &text[from..end];
        from = end;
        line
    })
}

/// The digest of a line, with or without its end, which a file may have lost, and without NULs before it, which may stand
/// where another line was.
pub(crate) fn line_digest(line: &[u8]) -> u32 {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let start = line.iter().position(|byte| *byte != 0).unwrap_or(line.len());
    (digest(&line[start..]) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_knows_where_its_first_line_begins() {
        let text: Vec<u8> = (0..3_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        let start = start_of_last_lines(&text, MAX_TAIL_LINES);
        assert!(text[start..].starts_with(b"line 1976\n"));
        let want: Vec<u32> = split_lines(&text[start..]).map(line_digest).collect();
        let mut at_once = TailLines::default();
        at_once.push_lines(&text);
        assert_eq!(at_once.digests(), (start as u64, want.clone()));
        let mut one_by_one = TailLines::default();
        split_lines(&text).for_each(|line| one_by_one.push_lines(line));
        assert_eq!(one_by_one.digests(), (start as u64, want.clone()));
        let mut halves = TailLines::default();
        let (first, second) = text.split_at(start_of_last_lines(&text, 500));
        halves.push_lines(first);
        halves.push_lines(second);
        assert_eq!(halves.digests(), (start as u64, want));
    }

    #[test]
    fn checkpoints_are_spread_in_time() {
        let mut kept = Vec::new();
        for second in 0..200_000 {
            add_checkpoint(&mut kept, Checkpoint::new(100 * (second + 1), b"x", second as i64));
            assert!(kept.len() <= 20, "{}", kept.len());
        }
        // For any loss there is one that is less than about four times as old.
        for lost in [1, 5, 30, 300, 3_600, 40_000] {
            assert!(kept.iter().any(|one| (lost..=4 * lost + 4).contains(&(199_999 - one.at))), "{lost}: {kept:?}");
        }
    }

    /// Two JSON logs of one program share more than the shortest beginning that is compared.
    #[test]
    fn an_equal_beginning_does_not_make_a_file_the_same() {
        let log = |id: u32| -> Vec<u8> {
            format!("{{\"PROGRAM\":\"postfix/smtp\",\"PRIORITY\":\"info\",\"PID\":\"{id}\",\"MESSAGE\":\"a text\"}}\n")
                .repeat(20)
                .into_bytes()
        };
        let (first, second) = (log(101), log(102));
        assert_eq!(first[..BEGINNING_BYTES], second[..BEGINNING_BYTES]);
        let head = HeadDigest::of(&first[..1024]);
        assert!(head.matches(&first));
        assert!(!head.matches(&second));
        assert!(head.may_be_truncated(&second), "the same file may have lost its end and grown again");
        assert!(head.matches(&first[..100]), "the rest was lost");
    }
}
