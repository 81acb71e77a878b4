//! Which file is read next: the one at the path, or what became of it.
//!
//! Takes: a path and a position. Gives: a [`FollowStep`] a call: a block, or that there is nothing yet. Blocks on the disk only.
//! The position stays at the end of a file until a line of the next has been read: an empty file has nothing to be known by.
//! Where there was none at all but an empty one, every file with content is newer than the position.
//! When it fails: an `InputError`, once for as long as it stands the same.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::counting::input::file::open_log::{OpenLog, ReadResult};
use crate::counting::input::file::rotated::{self, RotatedFile};
use crate::counting::input::{InputError, LineBlock, Position};

/// How often the file is polled if no event reports a change.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long no name in the folder must have changed before what is read of it is believed: more than the grain of the
/// time stamps that the kernel gives it.
const FOLDER_SETTLE_TIME: Duration = Duration::from_millis(30);

/// The result of one poll.
pub(super) enum FollowStep {
    /// Lines, or the end of the file.
    Read(LineBlock),
    /// Nothing yet; poll again after a change, or after this time.
    Wait(Duration),
}

pub(super) struct LogReader {
    path: PathBuf,
    quiet_period: Duration,
    log: Option<OpenLog>,
    /// Where reading goes on after a restart.
    position: Option<Position>,
    /// Bytes in the files after this one.
    bytes_in_later_files: u64,
    /// Whether the end has been reported since lines were read.
    reported_end: bool,
    /// Since when the file of the position is missing. A rotation renames one file after another, so one poll may miss it.
    missing_since: Option<Instant>,
    /// Messages that have been logged and still hold.
    logged: HashSet<String>,
}

/// What comes after the end of a file.
enum NextFile {
    /// Nothing: this is the newest.
    None,
    /// Another file, but this one may still grow.
    NotYet,
    /// This file, now: its path, device and inode.
    Ready(PathBuf, (u64, u64)),
}

impl LogReader {
    pub(super) fn new(path: PathBuf, position: Option<Position>, quiet_period: Duration) -> LogReader {
        // Any other position is not of a file.
        let position = position.filter(|position| matches!(position, Position::File { .. }));
        LogReader {
            path,
            quiet_period,
            log: None,
            position,
            bytes_in_later_files: 0,
            reported_end: false,
            missing_since: None,
            logged: HashSet::new(),
        }
    }

    /// Polls once.
    pub(crate) fn step(&mut self) -> Result<FollowStep, InputError> {
        let step = self.read();
        match step {
            Ok(step) => Ok(step),
            Err(e) if self.logged.insert(e.to_string()) => Err(e),
            Err(_) => Ok(FollowStep::Wait(POLL_INTERVAL)),
        }
    }

    fn read(&mut self) -> Result<FollowStep, InputError> {
        loop {
            if self.log.is_none() && !self.open_first()? {
                return Ok(FollowStep::Wait(POLL_INTERVAL));
            }
            if self.position.as_ref().is_some_and(|position| !has_fingerprint(position))
                && let Some(first) = self.oldest_rotated()?
            {
                self.position = Some(first.position());
                self.switch_to(first)?;
            }
            let Some(log) = &mut self.log else { return Ok(FollowStep::Wait(POLL_INTERVAL)) };
            match log.read() {
                Ok(ReadResult::Lines { lines, skipped }) => return self.next_block(lines, skipped),
                Ok(ReadResult::Nothing) => {}
                Ok(ReadResult::Replaced) => {
                    // The rest of what it was may stand in a copy (logrotate's copytruncate).
                    let of_its_own = log.position();
                    self.position.get_or_insert(of_its_own);
                    self.log = None;
                    continue;
                }
                Err(e) => {
                    self.log = None;
                    return Err(unreadable(&e));
                }
            }
            match self.next_file()? {
                NextFile::None if self.reported_end => return Ok(FollowStep::Wait(POLL_INTERVAL)),
                NextFile::None => return self.next_block(Vec::new(), 0),
                NextFile::NotYet => return Ok(FollowStep::Wait(self.quiet_period / 4)),
                NextFile::Ready(path, identity) => {
                    let Some(log) = &mut self.log else { return Ok(FollowStep::Wait(POLL_INTERVAL)) };
                    let last = log.take_last_line();
                    if let Some((lines, skipped)) = last.map_err(|e| unreadable(&e))? {
                        return self.next_block(lines, skipped);
                    }
                    if let Some(e) = log.damage() {
                        let what = format!("is damaged: {}: {e}; the rest of it is not counted", log.path.display());
                        self.log_once(what, true);
                    }
                    if !self.switch_to_next(&path, identity)? {
                        return Ok(FollowStep::Wait(FOLDER_SETTLE_TIME));
                    }
                }
            }
        }
    }

    /// Switches to the next file. False while names change: a folder that is read during a rotation may show
    /// a file twice, or not at all, so that only what a folder at rest shows is believed.
    fn switch_to_next(&mut self, path: &Path, identity: (u64, u64)) -> Result<bool, InputError> {
        let next = match OpenLog::open(path) {
            Ok(next) => next,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(unreadable(&e)),
        };
        let changed = rotated::folder_changed_at(&self.path).map_err(|e| unreadable(&e))?;
        // Where the clock went back, only that nothing changed meanwhile can be told.
        let at_rest = changed.elapsed().map_or(true, |since| since >= FOLDER_SETTLE_TIME);
        let agreed = matches!(self.next_file()?, NextFile::Ready(_, again) if again == identity);
        let unchanged = rotated::folder_changed_at(&self.path).is_ok_and(|again| again == changed);
        if at_rest && agreed && unchanged && (next.device, next.inode) == identity {
            self.switch_to(next)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn next_block(&mut self, lines: Vec<u8>, skipped: u64) -> Result<FollowStep, InputError> {
        let Some(log) = &self.log else { return Ok(FollowStep::Wait(POLL_INTERVAL)) };
        let moved = !lines.is_empty() || skipped > 0;
        let (own, behind) = (log.position(), log.bytes_behind() + self.bytes_in_later_files);
        let at_end = !moved || (log.is_at_end() && matches!(self.next_file()?, NextFile::None));
        if moved || self.position.is_none() {
            self.position = Some(own.clone());
        }
        self.reported_end = at_end;
        self.logged.clear();
        let position = self.position.clone().unwrap_or(own);
        Ok(FollowStep::Read(LineBlock { lines, position, skipped, bytes_behind: behind, at_end }))
    }

    /// Switches to another file.
    fn switch_to(&mut self, log: OpenLog) -> Result<(), InputError> {
        let rotated = rotated::rotated_files(&self.path).map_err(|e| unreadable(&e))?;
        let mut later: Vec<u64> = Vec::new();
        if !self.is_at_path(&log)? {
            let at = index_among_rotated(&rotated, &log).map_or(rotated.len(), |at| at + 1);
            later.extend(rotated[at..].iter().map(|file| file.length));
            later.extend(std::fs::metadata(&self.path).map(|meta| meta.len()));
        }
        self.bytes_in_later_files = later.iter().sum();
        self.missing_since = None;
        self.log = Some(log);
        Ok(())
    }

    /// Opens the file of the position, or the one at the path. False if there is nothing to read yet.
    fn open_first(&mut self) -> Result<bool, InputError> {
        let current = match OpenLog::open(&self.path) {
            Ok(log) => Some(log),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(unreadable(&e)),
        };
        let Some(position @ Position::File { offset, inode, .. }) = self.position.clone() else {
            let Some(log) = current else {
                self.log_once("does not exist; it is waited for".to_owned(), false);
                return Ok(false);
            };
            // An empty file has nothing to be known by; the end of the one before it has.
            let known = if log.is_empty() { self.end_of_newest_rotated()? } else { None };
            return self.switch_to(known.unwrap_or(log)).map(|()| true);
        };
        let marked = match current {
            Some(log) if log.matches_fingerprint(&position) && log.inode == inode && log.reaches(offset) => Some(log),
            current => {
                let moved = current.filter(|now| {
                    has_fingerprint(&position) && now.matches_fingerprint(&position) && now.reaches(offset)
                });
                match self.find_rotated(&position)? {
                    Some(found) if found.inode == inode || moved.is_none() => Some(found),
                    _ => moved,
                }
            }
        };
        if let Some(mut log) = marked {
            log.seek(offset).map_err(|e| unreadable(&e))?;
            return self.switch_to(log).map(|()| true);
        }
        if self.missing_since.get_or_insert_with(Instant::now).elapsed() < self.quiet_period {
            return Ok(false);
        }
        self.log_once(
            "the file read last is gone: it is not among the rotated ones; what was unread of it is lost".into(),
            true,
        );
        match OpenLog::open(&self.path) {
            Ok(log) => self.switch_to(log).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(unreadable(&e)),
        }
    }

    /// The oldest rotated file that has content, unless it is a copy of the one at the path that nobody needs yet.
    fn oldest_rotated(&self) -> Result<Option<OpenLog>, InputError> {
        let rotated = rotated::rotated_files(&self.path).map_err(|e| unreadable(&e))?;
        let current = OpenLog::open(&self.path).ok();
        let first = rotated.iter().find_map(open_nonempty);
        Ok(first.filter(|first| !current.is_some_and(|now| now.inode != first.inode && first.is_copy_of(&now))))
    }

    /// The newest rotated file that has content, read to its end.
    fn end_of_newest_rotated(&self) -> Result<Option<OpenLog>, InputError> {
        let rotated = rotated::rotated_files(&self.path).map_err(|e| unreadable(&e))?;
        let newest = rotated.iter().rev().find_map(open_nonempty);
        Ok(newest.and_then(|mut log| log.seek(u64::MAX).ok().map(|()| log)))
    }

    /// The rotated file that the position is of.
    fn find_rotated(&mut self, position: &Position) -> Result<Option<OpenLog>, InputError> {
        let Position::File { inode, .. } = position else { return Ok(None) };
        let mut found = None;
        for file in rotated::rotated_files(&self.path).map_err(|e| unreadable(&e))? {
            let log = match OpenLog::open(&file.path) {
                Ok(log) => log,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.log_once(format!("cannot look into {}: {e}; it is passed over", file.path.display()), true);
                    continue;
                }
            };
            if !log.matches_fingerprint(position) {
                continue;
            }
            if log.inode == *inode {
                return Ok(Some(log));
            }
            if has_fingerprint(position) {
                found = Some(log);
            }
        }
        Ok(found)
    }

    /// What comes after the file that has been read to its end.
    fn next_file(&mut self) -> Result<NextFile, InputError> {
        let Some(log) = &self.log else { return Ok(NextFile::None) };
        if self.is_at_path(log)? {
            self.missing_since = None;
            return Ok(NextFile::None);
        }
        let rotated = rotated::rotated_files(&self.path).map_err(|e| unreadable(&e))?;
        let later = match index_among_rotated(&rotated, log) {
            Some(at) => &rotated[at + 1..],
            None => {
                // Removed, or renamed while we looked.
                if self.missing_since.get_or_insert_with(Instant::now).elapsed() < self.quiet_period {
                    return Ok(NextFile::NotYet);
                }
                &[]
            }
        };
        // A copy of the file at the path is not finished (copytruncate), or nobody needs it: the path is read, and what
        // is left of the copy once the path is truncated.
        let current = if later.is_empty() { None } else { OpenLog::open(&self.path).ok() };
        let is_copy = |file: &RotatedFile| {
            let current = current.as_ref().filter(|current| current.inode != file.inode);
            current.is_some_and(|current| OpenLog::open(&file.path).is_ok_and(|other| other.is_copy_of(current)))
        };
        let next = match later.iter().find(|file| file.length > 0 && !is_copy(file)) {
            Some(next) => Some((next.path.clone(), (next.device, next.inode))),
            None => match std::fs::metadata(&self.path) {
                Ok(meta) => (meta.len() > 0).then(|| (self.path.clone(), (meta.dev(), meta.ino()))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(unreadable(&e)),
            },
        };
        Ok(match next {
            None => NextFile::None,
            Some((path, identity)) if log.is_quiet(self.quiet_period) => NextFile::Ready(path, identity),
            Some(_) => NextFile::NotYet,
        })
    }

    fn is_at_path(&self, log: &OpenLog) -> Result<bool, InputError> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Ok((meta.dev(), meta.ino()) == (log.device, log.inode)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(unreadable(&e)),
        }
    }

    /// Logs `input: PATH: what`, once for as long as it holds.
    fn log_once(&mut self, what: String, warn: bool) {
        let line = format!("input: {}: {what}", self.path.display());
        if self.logged.contains(&line) {
            return;
        }
        match warn {
            true => tracing::warn!("{line}"),
            false => tracing::info!("{line}"),
        }
        self.logged.insert(line);
    }
}

/// Opens a rotated file, plain or gzip, unless it is empty.
fn open_nonempty(file: &RotatedFile) -> Option<OpenLog> {
    OpenLog::open(&file.path).ok().filter(|log| !log.is_empty())
}

/// The index of a log among the rotated files.
fn index_among_rotated(rotated: &[RotatedFile], log: &OpenLog) -> Option<usize> {
    let by_inode = rotated.iter().position(|s| (s.device, s.inode) == (log.device, log.inode));
    by_inode.or_else(|| {
        // Packed since it was opened.
        let position = log.position();
        let same = |s: &RotatedFile| OpenLog::open(&s.path).is_ok_and(|other| other.matches_fingerprint(&position));
        rotated.iter().position(|s| has_fingerprint(&position) && same(s))
    })
}

/// Whether the position identifies its file by more than the inode.
fn has_fingerprint(position: &Position) -> bool {
    matches!(position, Position::File { covers: 1.., .. })
}

fn unreadable(error: &io::Error) -> InputError {
    match error.kind() {
        io::ErrorKind::Unsupported => InputError::NotAFile(format!("no log file: it is {error}")),
        _ => InputError::Unreadable(format!("cannot be read: {error}")),
    }
}
