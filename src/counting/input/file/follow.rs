//! Which file is read next: the one at the path, or what became of it.
//!
//! Takes: a path and a position. Gives: a [`FollowStep`] a call: a block, or that there is nothing yet. Blocks on the disk only.
//! The position stays at the end of a file until a line of the next has been read: an empty file has nothing to be known by.
//! Where there was none at all but an empty one, every file with content is newer than the position.
//! Limits: a file that cannot be opened is waited for up to [`PATIENCE`], then passed over.
//! When it fails: an `InputError`, once for as long as it stands the same; nothing that was read is lost.
//! Not here: what one file holds (`open_log`), whether it is the one of the position (`locate`).

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::counting::input::file::file_system::{LogFileMetadata, LogFileSystem};
use crate::counting::input::file::locate::{self, Fit};
use crate::counting::input::file::open_log::{OpenLog, ReadResult};
use crate::counting::input::file::rotated::{self, InputPaths, RotatedError, RotatedFile, RotatedFiles};
use crate::counting::input::file::series::DatedSeries;
use crate::counting::input::file_position::{FilePosition, HeadDigest, MAX_EARLIER_FILES};
use crate::counting::input::{InputError, LineBlock, Position, RepeatedLines};

/// How often the file is polled if no event reports a change.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long no name in the folder must have changed before what is read of it is believed: more than the grain of the
/// time stamps that the kernel gives it.
const FOLDER_SETTLE_TIME: Duration = Duration::from_millis(30);

/// How long a rotated file that cannot be opened, or a folder that cannot be listed, is waited for before reading continues
/// without it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether a file of a later date is there.
const SERIES_INTERVAL: Duration = Duration::from_secs(1);

/// How old the files of a series may be that are read first, in place of the newest alone: as old as the days whose counts
/// may still be reported by default.
const MAX_FIRST_AGE: Duration = Duration::from_secs(3 * 86_400);

/// The result of one poll.
pub enum FollowStep {
    /// Lines, or the end of the file.
    Read(LineBlock),
    /// Nothing yet; poll again after a change, or after this time.
    Wait(Duration),
}

/// Reads one log over its rotations, without waiting.
pub struct LogReader {
    files: Arc<dyn LogFileSystem>,
    /// The log; of a series the newest file.
    path: PathBuf,
    /// The series, if its files are named by their date.
    series: Option<DatedSeries>,
    /// When the newest file of the series was looked for.
    series_checked: Option<Instant>,
    quiet_period: Duration,
    inputs: InputPaths,
    log: Option<OpenLog>,
    /// The log while its file is closed.
    closed: Option<OpenLog>,
    /// Where reading goes on after a restart.
    position: Option<FilePosition>,
    /// Whether lines from here on may have been counted, as [`LineBlock::repeated`] says.
    repeated: RepeatedLines,
    /// Whether lines before the next ones are missing, as [`LineBlock::lines_missing`] says.
    lines_missing: bool,
    /// Bytes in the files after this one.
    bytes_in_later_files: u64,
    /// Whether the end has been reported since lines were read.
    reported_end: bool,
    /// Since when the file of the position is missing. A rotation renames one file after another, so one poll may miss it.
    missing_since: Option<Instant>,
    /// Since when each file or folder beside the log cannot be read.
    unreadable_since: HashMap<PathBuf, Instant>,
    /// Messages that have been logged and still hold.
    logged: HashSet<String>,
}

/// A log that has been read to its end and whose file is closed.
#[derive(Clone)]
pub struct SleepingLog {
    files: Arc<dyn LogFileSystem>,
    path: PathBuf,
    series: Option<DatedSeries>,
    inputs: InputPaths,
    seen: FileState,
}

/// What a change of a file changes: device, inode, length, time of the last change.
type FileState = (u64, u64, u64, SystemTime);

impl SleepingLog {
    /// Whether there is more to read, or another file.
    pub(super) fn has_changed(&self) -> bool {
        let newest = |series| newest_of(&*self.files, series, &self.inputs).ok().flatten();
        self.files.metadata(&self.path).map(file_state).ok() != Some(self.seen)
            || self.series.as_ref().is_some_and(|series| newest(series).is_some_and(|path| path != self.path))
    }
}

fn file_state(meta: LogFileMetadata) -> FileState {
    (meta.device, meta.inode, meta.length, meta.modified)
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

/// A file that may be the one of the position.
struct Candidate {
    fit: Fit,
    same_inode: bool,
    log: OpenLog,
}

impl LogReader {
    /// A reader of the log at `path`, or of the series of that name.
    pub fn new(
        files: Arc<dyn LogFileSystem>,
        path: PathBuf,
        position: Option<Position>,
        quiet_period: Duration,
        inputs: InputPaths,
    ) -> LogReader {
        let position = match position {
            Some(Position::File(position)) => Some(position),
            // Any other position is not of a file.
            _ => None,
        };
        LogReader {
            files,
            series: DatedSeries::from_name(&path),
            path,
            series_checked: None,
            quiet_period,
            inputs,
            log: None,
            closed: None,
            position,
            repeated: RepeatedLines::AsBefore,
            lines_missing: false,
            bytes_in_later_files: 0,
            reported_end: false,
            missing_since: None,
            unreadable_since: HashMap::new(),
            logged: HashSet::new(),
        }
    }

    /// Polls once.
    pub fn step(&mut self) -> Result<FollowStep, InputError> {
        let step = self.read();
        match step {
            Ok(step) => Ok(step),
            Err(e) if self.logged.insert(e.to_string()) => Err(e),
            Err(_) => Ok(FollowStep::Wait(POLL_INTERVAL)),
        }
    }

    /// Whether a file is open between two polls.
    pub(super) fn is_open(&self) -> bool {
        self.log.is_some()
    }

    /// Closes the file if all of it has been read and no other follows. The result tells when the next poll is worth it.
    pub fn sleep(&mut self) -> Option<SleepingLog> {
        let log = self.log.take_if(|log| self.reported_end && !log.is_gzip())?;
        let meta = self.files.metadata(&self.path).ok();
        // Another length was not read yet.
        let is_read =
            |meta: &LogFileMetadata| (meta.device, meta.inode, meta.length) == (log.device, log.inode, log.length);
        let Some(meta) = meta.filter(is_read) else {
            self.log = Some(log);
            return None;
        };
        self.closed = Some(log.close());
        self.series_checked = None;
        let (files, inputs) = (Arc::clone(&self.files), Arc::clone(&self.inputs));
        Some(SleepingLog {
            files,
            path: self.path.clone(),
            series: self.series.clone(),
            inputs,
            seen: file_state(meta),
        })
    }

    /// Opens the file that was closed, under its name of now. One that is gone or packed is searched for as after a restart.
    fn wake(&mut self) -> Result<(), InputError> {
        let Some(mut log) = self.closed.take() else { return Ok(()) };
        let woken = self.reopen(&mut log);
        match woken {
            Ok(true) => self.log = Some(log),
            Ok(false) => {}
            Err(_) => self.closed = Some(log),
        }
        woken.map(|_| ())
    }

    fn reopen(&mut self, log: &mut OpenLog) -> Result<bool, InputError> {
        match log.reopen(&self.path) {
            Ok(true) => return Ok(true),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unreadable(&e)),
            Ok(false) | Err(_) => {}
        }
        let identity = (log.device, log.inode);
        for file in self.rotated()?.iter().filter(|file| (file.device, file.inode) == identity) {
            match log.reopen(&file.path) {
                Ok(true) => return Ok(true),
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unreadable_file(&file.path, &e)),
                Ok(false) | Err(_) => {}
            }
        }
        Ok(false)
    }

    /// Goes on to the newest file of a series. Never back to an older one: those were read.
    fn find_newest(&mut self) -> Result<(), InputError> {
        let Some(series) = &self.series else { return Ok(()) };
        let now = self.files.now();
        if self.series_checked.is_some_and(|at| now.saturating_duration_since(at) < SERIES_INTERVAL) {
            return Ok(());
        }
        let newest = newest_of(&*self.files, series, &self.inputs);
        let newest = newest.map_err(|RotatedError { path, error }| unreadable_file(&path, &error))?;
        self.series_checked = Some(now);
        let is_there = |path: &Path| self.files.metadata(path).is_ok();
        if let Some(newest) = newest.filter(|_| self.path == series.name() || is_there(&self.path)) {
            self.path = newest;
        }
        Ok(())
    }

    fn read(&mut self) -> Result<FollowStep, InputError> {
        self.find_newest()?;
        self.wake()?;
        loop {
            if self.log.is_none() && !self.open_first()? {
                return Ok(FollowStep::Wait(POLL_INTERVAL));
            }
            if self.position.as_ref().is_some_and(|position| position.head.is_empty())
                && let Some(first) = self.oldest_unread()?
            {
                self.begin_unread(first)?;
                self.position = self.log.as_ref().map(OpenLog::position);
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
        let next = match self.open(path) {
            Ok(next) => next,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(unreadable_file(path, &e)),
        };
        let changed = rotated::folder_changed_at(&*self.files, &self.path).map_err(|e| unreadable(&e))?;
        // Where the clock went back, only that nothing changed meanwhile can be told.
        let at_rest = self.files.time().duration_since(changed).map_or(true, |since| since >= FOLDER_SETTLE_TIME);
        let agreed = matches!(self.next_file()?, NextFile::Ready(_, again) if again == identity);
        let unchanged = rotated::folder_changed_at(&*self.files, &self.path).is_ok_and(|again| again == changed);
        if at_rest && agreed && unchanged && (next.device, next.inode) == identity {
            self.continue_with(next)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Reads `next` after the end of the open file: from its start, unless it is a copy of that file, or that file edited.
    fn continue_with(&mut self, mut next: OpenLog) -> Result<(), InputError> {
        let Some(position) = self.log.as_ref().map(OpenLog::position) else { return self.switch_to(next) };
        let path = next.path.clone();
        let failed = |e: io::Error| unreadable_file(&path, &e);
        let is_copy = position.head.is_distinct() && position.head.matches(&next.head);
        let fit = match is_copy {
            true => Some(locate::locate(&position, &mut next).map_err(failed)?),
            // Of a file that was rotated nothing stands in the next one.
            false if next.path == self.path && !self.is_open_log_rotated()? => {
                locate::locate_in_edited(&position, &mut next).map_err(failed)?
            }
            false => None,
        };
        match fit {
            Some(fit) => self.resume(&position, Candidate { fit, same_inode: false, log: next }),
            None => {
                next.earlier_files = position.earlier_files_of_next();
                self.begin_unread(next)
            }
        }
    }

    fn next_block(&mut self, lines: Vec<u8>, skipped: u64) -> Result<FollowStep, InputError> {
        let Some(log) = &self.log else { return Ok(FollowStep::Wait(POLL_INTERVAL)) };
        let moved = !lines.is_empty() || skipped > 0;
        let (own, behind) = (log.position(), log.bytes_behind() + self.bytes_in_later_files);
        // What was read is handed out, whatever the disk says of the file after it.
        let at_end = !moved || (log.is_at_end() && matches!(self.next_file(), Ok(NextFile::None)));
        if moved || self.position.is_none() {
            self.position = Some(own.clone());
        }
        self.reported_end = at_end;
        self.logged.clear();
        let position = Position::File(self.position.clone().unwrap_or(own));
        let (repeated, lines_missing) = (self.repeated, self.lines_missing);
        if moved {
            (self.repeated, self.lines_missing) = (RepeatedLines::AsBefore, false);
        }
        let bytes_behind = behind;
        let block = LineBlock { lines, position, skipped, bytes_behind, at_end, repeated, lines_missing };
        Ok(FollowStep::Read(block))
    }

    /// Switches to a file of which no line has been counted.
    fn begin_unread(&mut self, log: OpenLog) -> Result<(), InputError> {
        self.switch_to(log)?;
        self.repeated = RepeatedLines::Excluded;
        Ok(())
    }

    /// Switches to another file.
    fn switch_to(&mut self, log: OpenLog) -> Result<(), InputError> {
        let mut later: Vec<u64> = Vec::new();
        if !self.is_at_path(&log)? {
            let rotated = self.rotated()?;
            let at = self.index_among_rotated(&rotated, &log)?.map_or(rotated.len(), |at| at + 1);
            later.extend(rotated[at..].iter().map(|file| file.length));
            later.extend(self.files.metadata(&self.path).map(|meta| meta.length));
        }
        self.bytes_in_later_files = later.iter().sum();
        self.missing_since = None;
        self.unreadable_since.clear();
        self.log = Some(log);
        Ok(())
    }

    /// Opens the file of the position, or the one at the path. False if there is nothing to read yet.
    fn open_first(&mut self) -> Result<bool, InputError> {
        let current = self.open_if_there(&self.path.clone())?;
        let Some(position) = self.position.clone() else { return self.begin(current) };
        let found = self.find(&position, current)?;
        if let Some(found) = found.filter(|found| found.fit == Fit::Whole || self.has_been_missing()) {
            return self.resume(&position, found).map(|()| true);
        }
        if !self.has_been_missing() {
            return Ok(false);
        }
        let next = match self.unread_after(&position)?.into_iter().next() {
            Some(next) => Some(next),
            None => {
                let newest = self.recognizable_at_path()?;
                let earlier = position.earlier_files_of_next();
                // Where the newest file of a series is gone, the one before it was read.
                newest.filter(|log| self.series.is_none() || !is_among(&earlier, log))
            }
        };
        let mut what =
            "the file that was read last is gone, and is not among the rotated ones: what was not read of it \
                        is lost"
                .to_owned();
        let unsupported = self.unsupported_names();
        if !unsupported.is_empty() {
            what = format!("{what}; not read, because only gzip is: {unsupported}");
        }
        if let Some(next) = &next {
            what = format!("{what}; reading continues at the beginning of {}", next.path.display());
        }
        self.lines_missing = true;
        self.log_once(what, true);
        let Some(mut next) = next else { return Ok(false) };
        next.earlier_files = position.earlier_files_of_next();
        self.begin_unread(next).map(|()| true)
    }

    /// Opens the log for the first time.
    fn begin(&mut self, current: Option<OpenLog>) -> Result<bool, InputError> {
        let Some(mut log) = current else {
            self.log_once("does not exist; it is waited for".to_owned(), false);
            return Ok(false);
        };
        let mut older = Vec::new();
        // A folder that cannot be listed keeps nobody from reading the log.
        let mut rotated = self.rotated().unwrap_or_default();
        if self.series.is_some() {
            let now = self.files.time();
            let is_recent = |file: &RotatedFile| now.duration_since(file.modified).unwrap_or_default() <= MAX_FIRST_AGE;
            let first = rotated.iter().position(|file| file.length > 0 && is_recent(file));
            if let Some(first) = first
                && let Some(recent) = self.open_rotated(&rotated[first].path)?
            {
                log = recent;
                rotated.truncate(first);
            }
        }
        for file in rotated.iter().rev().take(MAX_EARLIER_FILES) {
            // What cannot be read is not taken for unread later: it is older by its name.
            let Ok(Some(other)) = self.open_if_there(&file.path) else { continue };
            let head = HeadDigest::of(&other.head);
            if head.is_distinct() && other.head != log.head {
                older.insert(0, head);
            }
        }
        // An empty file has nothing to be known by; the end of the one before it has.
        if log.is_empty()
            && let Some(mut newest) = self.newest_rotated()?
        {
            newest.seek(u64::MAX).map_err(|e| unreadable(&e))?;
            older.pop();
            log = newest;
        }
        log.earlier_files = older;
        self.switch_to(log).map(|()| true)
    }

    /// Continues in a file where the counted lines end in it, and logs what is not there any more.
    fn resume(&mut self, position: &FilePosition, found: Candidate) -> Result<(), InputError> {
        let Candidate { fit, same_inode, mut log } = found;
        let (offset, lost) = match fit {
            Fit::Whole => (position.offset, None),
            Fit::After { lines, offset } => {
                // Of an edited file the lines after that may be counted ones that were changed; a rotated one is not edited.
                if !same_inode && log.path == self.path && lines < position.tail.len() {
                    self.repeated = RepeatedLines::Possible;
                }
                (offset, Some("the lines after it that were counted are gone"))
            }
            Fit::Before { offset } => {
                self.repeated = RepeatedLines::Possible;
                (offset, Some("lines after it that are not newer than the newest one counted are not counted again"))
            }
        };
        log.resume(position, offset).map_err(|e| unreadable(&e))?;
        if let Some(then) = lost.filter(|_| offset != position.offset) {
            self.lines_missing = true;
            let bytes = position.offset.saturating_sub(offset);
            let since = position.checkpoints.iter().rev().find(|one| one.offset <= offset).map(|one| one.at);
            let until = position.checkpoints.last().map(|one| one.at);
            let minutes = since.zip(until).map_or(0, |(since, until)| (until - since + 59) / 60);
            let name = log.path.display();
            self.log_once(
                format!(
                    "{name} is not as it was read: {bytes} bytes that were read within {minutes} minutes are missing or \
                     changed (power loss, truncation or editing); reading continues at byte {offset}: {then}"
                ),
                true,
            );
        }
        self.switch_to(log)
    }

    /// The file in which reading continues after `position`, if there is one.
    fn find(&mut self, position: &FilePosition, current: Option<OpenLog>) -> Result<Option<Candidate>, InputError> {
        let mut best: Option<Candidate> = None;
        let mut other = None;
        if let Some(log) = current {
            match self.candidate(position, log)? {
                Ok(candidate) if candidate.fit == Fit::Whole && candidate.same_inode => return Ok(Some(candidate)),
                Ok(candidate) => best = Some(candidate),
                Err(log) => other = Some(log),
            }
        }
        for file in self.rotated()?.iter().rev() {
            let Some(log) = self.open_rotated(&file.path)? else { continue };
            let Ok(candidate) = self.candidate(position, log)? else { continue };
            let rank = |one: &Candidate| (one.fit, one.same_inode);
            if best.as_ref().is_none_or(|best| rank(best) < rank(&candidate)) {
                best = Some(candidate);
            }
        }
        if best.is_some() {
            return Ok(best);
        }
        // It begins otherwise: edited, or its beginning was lost.
        let unread = self.unread_after(position)?;
        for mut log in other.into_iter().chain(unread.into_iter().rev()) {
            let fit = locate::locate_in_edited(position, &mut log).map_err(|e| unreadable_file(&log.path, &e))?;
            let same_inode = log.inode == position.inode;
            if let Some(fit) = fit {
                return Ok(Some(Candidate { fit, same_inode, log }));
            }
        }
        Ok(None)
    }

    /// Holds a file against the position; `Err` gives it back where it is another.
    fn candidate(
        &mut self,
        position: &FilePosition,
        mut log: OpenLog,
    ) -> Result<Result<Candidate, OpenLog>, InputError> {
        let same_inode = log.inode == position.inode;
        let same = match &position.head {
            head if head.is_empty() => same_inode,
            head if same_inode => head.matches(&log.head) || head.may_be_truncated(&log.head),
            head => head.matches(&log.head) && (head.is_distinct() || is_line_end(&log, position.offset)),
        };
        if !same {
            return Ok(Err(log));
        }
        let fit = locate::locate(position, &mut log).map_err(|e| unreadable_file(&log.path, &e))?;
        Ok(Ok(Candidate { fit, same_inode, log }))
    }

    /// Whether the file of the position has been missing for so long that no rotation explains it.
    fn has_been_missing(&mut self) -> bool {
        let now = self.files.now();
        let since = *self.missing_since.get_or_insert(now);
        now.saturating_duration_since(since) >= self.quiet_period
    }

    /// The oldest rotated file that has content, unless it is a copy of the one at the path that nobody needs yet.
    fn oldest_unread(&mut self) -> Result<Option<OpenLog>, InputError> {
        let current = self.open_if_there(&self.path.clone())?;
        let earlier = self.position.as_ref().map(|position| position.earlier_files.clone()).unwrap_or_default();
        for file in self.rotated()? {
            let Some(mut log) = self.open_rotated(&file.path)?.filter(|log| !log.is_empty()) else { continue };
            let is_copy = current.as_ref().is_some_and(|now| now.inode != log.inode && log.is_copy_of(now));
            if !is_copy && !is_among(&earlier, &log) {
                log.earlier_files = earlier;
                return Ok(Some(log));
            }
        }
        Ok(None)
    }

    /// The newest rotated file that has content.
    fn newest_rotated(&mut self) -> Result<Option<OpenLog>, InputError> {
        for file in self.rotated()?.iter().rev() {
            if let Some(log) = self.open_rotated(&file.path)?.filter(|log| !log.is_empty()) {
                return Ok(Some(log));
            }
        }
        Ok(None)
    }

    /// The rotated files with content that came after that of the position, which is gone, oldest first.
    fn unread_after(&mut self, position: &FilePosition) -> Result<Vec<OpenLog>, InputError> {
        let rotated = self.rotated()?;
        let earlier = position.earlier_files_of_next();
        let current = self.open_if_there(&self.path.clone())?;
        let mut unread = Vec::new();
        for file in self.after_earlier_files(&rotated, &earlier)? {
            let Some(log) = self.open_rotated(&file.path)?.filter(|log| !log.is_empty()) else { continue };
            if !current.as_ref().is_some_and(|now| now.inode != log.inode && log.is_copy_of(now)) {
                unread.push(log);
            }
        }
        Ok(unread)
    }

    /// The rotated files after the newest one that was read.
    fn after_earlier_files<'a>(
        &mut self,
        rotated: &'a [RotatedFile],
        earlier: &[HeadDigest],
    ) -> Result<&'a [RotatedFile], InputError> {
        for (index, file) in rotated.iter().enumerate().rev() {
            if self.open_rotated(&file.path)?.is_some_and(|log| is_among(earlier, &log)) {
                return Ok(&rotated[index + 1..]);
            }
        }
        Ok(rotated)
    }

    /// What comes after the file that has been read to its end.
    fn next_file(&mut self) -> Result<NextFile, InputError> {
        let Some(log) = &self.log else { return Ok(NextFile::None) };
        if self.is_at_path(log)? {
            self.missing_since = None;
            return Ok(NextFile::None);
        }
        let (position, identity) = (log.position(), (log.device, log.inode));
        let rotated = self.rotated()?;
        let later = match self.index_of_open_log(&rotated)? {
            Some(at) => {
                let file = rotated.get(at).filter(|file| (file.device, file.inode) != identity);
                if let Some(copy) = file {
                    // Packed, or copied, and the file itself is gone: the copy may have more lines.
                    return Ok(NextFile::Ready(copy.path.clone(), (copy.device, copy.inode)));
                }
                &rotated[at + 1..]
            }
            // Removed, or renamed while we looked.
            None if !self.has_been_missing() => return Ok(NextFile::NotYet),
            // Replaced by a copy, which may have more lines.
            None if let Some(copy) = self.copy_at_path(&position)? => {
                return Ok(NextFile::Ready(copy.path.clone(), (copy.device, copy.inode)));
            }
            None => self.after_earlier_files(&rotated, &position.earlier_files_of_next())?,
        };
        // A copy of the file at the path is not finished (copytruncate), or nobody needs it: the path is read, and what
        // is left of the copy once the path is truncated.
        let current = if later.is_empty() { None } else { self.open_if_there(&self.path.clone())? };
        let mut next = None;
        for file in later.iter().filter(|file| file.length > 0) {
            let Some(other) = self.open_rotated(&file.path)? else { continue };
            let is_copy = current.as_ref().is_some_and(|now| now.inode != file.inode && other.is_copy_of(now));
            if !is_copy && !other.is_empty() && !is_among(&position.earlier_files, &other) {
                next = Some((file.path.clone(), (file.device, file.inode)));
                break;
            }
        }
        let next = match next {
            Some(next) => Some(next),
            None => self.recognizable_at_path()?.map(|log| (log.path.clone(), (log.device, log.inode))),
        };
        let is_quiet = self.log.as_ref().is_some_and(|log| log.is_quiet(self.quiet_period));
        Ok(match next {
            None => NextFile::None,
            Some((path, identity)) if is_quiet => NextFile::Ready(path, identity),
            Some(_) => NextFile::NotYet,
        })
    }

    /// The file at the path, where it begins as that of the position did.
    fn copy_at_path(&self, position: &FilePosition) -> Result<Option<OpenLog>, InputError> {
        let current = self.open_if_there(&self.path)?;
        Ok(current.filter(|log| position.head.is_distinct() && position.head.matches(&log.head)))
    }

    /// The file at the path, once it can be told from another: one with a piece of a line may be gone before the rest of
    /// that line comes.
    fn recognizable_at_path(&self) -> Result<Option<OpenLog>, InputError> {
        Ok(self.open_if_there(&self.path)?.filter(OpenLog::is_recognizable))
    }

    fn is_at_path(&self, log: &OpenLog) -> Result<bool, InputError> {
        match self.files.metadata(&self.path) {
            Ok(meta) => Ok((meta.device, meta.inode) == (log.device, log.inode)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(unreadable(&e)),
        }
    }

    fn is_open_log_rotated(&mut self) -> Result<bool, InputError> {
        let rotated = self.rotated()?;
        Ok(self.index_of_open_log(&rotated)?.is_some())
    }

    fn index_of_open_log(&mut self, rotated: &[RotatedFile]) -> Result<Option<usize>, InputError> {
        let Some(log) = self.log.take() else { return Ok(None) };
        let index = self.index_among_rotated(rotated, &log);
        self.log = Some(log);
        index
    }

    /// The index of a log among the rotated files.
    fn index_among_rotated(&mut self, rotated: &[RotatedFile], log: &OpenLog) -> Result<Option<usize>, InputError> {
        let by_inode = rotated.iter().position(|file| (file.device, file.inode) == (log.device, log.inode));
        if by_inode.is_some() || log.is_empty() {
            return Ok(by_inode);
        }
        // Packed since it was opened.
        let head = HeadDigest::of(&log.head);
        for (index, file) in rotated.iter().enumerate() {
            if self.open_rotated(&file.path)?.is_some_and(|other| head.matches(&other.head)) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// The rotated files, oldest first. A folder that cannot be listed has none, after a while.
    fn rotated(&mut self) -> Result<Vec<RotatedFile>, InputError> {
        match self.list_rotated() {
            Ok(found) => Ok(found.readable),
            Err(RotatedError { path, error }) => self.wait_for_readable(&path, &error).map(|()| Vec::new()),
        }
    }

    /// The rotated files; of a series those of earlier dates.
    fn list_rotated(&self) -> Result<RotatedFiles, RotatedError> {
        let Some(series) = &self.series else {
            return rotated::rotated_files(&*self.files, &self.path, &self.inputs);
        };
        let mut found = rotated::series_files(&*self.files, series, &self.inputs)?;
        if let Some(at) = found.readable.iter().position(|file| file.path == self.path) {
            found.readable.truncate(at);
        }
        Ok(found)
    }

    /// The names of the rotated files that are compressed otherwise than by gzip.
    fn unsupported_names(&self) -> String {
        let found = self.list_rotated();
        let paths = found.map(|found| found.unsupported).unwrap_or_default();
        let names: Vec<String> = paths.iter().take(5).map(|path| path.display().to_string()).collect();
        names.join(", ")
    }

    /// An error about a file or folder beside the log, until it has lasted for so long that reading continues without.
    fn wait_for_readable(&mut self, path: &Path, error: &io::Error) -> Result<(), InputError> {
        let now = self.files.now();
        let since = *self.unreadable_since.entry(path.to_owned()).or_insert(now);
        let problem = unreadable_file(path, error);
        if now.saturating_duration_since(since) < PATIENCE {
            return Err(problem);
        }
        self.log_once(format!("{}: {error}; what it holds is not counted", path.display()), true);
        Ok(())
    }

    /// A rotated file; `None` if it is gone, or has been unreadable for [`PATIENCE`].
    fn open_rotated(&mut self, path: &Path) -> Result<Option<OpenLog>, InputError> {
        match self.open(path) {
            Ok(log) => {
                self.unreadable_since.remove(path);
                Ok(Some(log))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => self.wait_for_readable(path, &e).map(|()| None),
        }
    }

    fn open(&self, path: &Path) -> io::Result<OpenLog> {
        OpenLog::open(&self.files, path)
    }

    fn open_if_there(&self, path: &Path) -> Result<Option<OpenLog>, InputError> {
        match self.open(path) {
            Ok(log) => Ok(Some(log)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) if path == self.path => Err(unreadable(&e)),
            Err(e) => Err(unreadable_file(path, &e)),
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

/// The newest file of a series that a writer may add to.
fn newest_of(
    files: &dyn LogFileSystem,
    series: &DatedSeries,
    inputs: &InputPaths,
) -> Result<Option<PathBuf>, RotatedError> {
    let found = rotated::series_files(files, series, inputs)?;
    Ok(found.readable.into_iter().rfind(RotatedFile::is_plain).map(|file| file.path))
}

/// Whether a line ends `offset` bytes into a file, or the file does: what few bytes begin a line of another one do not tell.
fn is_line_end(log: &OpenLog, offset: u64) -> bool {
    let before = usize::try_from(offset).ok().and_then(|offset| log.head.get(..offset));
    before.is_some_and(|before| before.len() == log.head.len() || before.last() == Some(&b'\n'))
}

/// Whether the file is one of those.
fn is_among(files: &[HeadDigest], log: &OpenLog) -> bool {
    files.iter().any(|file| !file.is_empty() && file.matches(&log.head))
}

fn unreadable(error: &io::Error) -> InputError {
    match error.kind() {
        io::ErrorKind::Unsupported => InputError::NotAFile(format!("not a log file: it is {error}")),
        _ => InputError::Unreadable(format!("cannot be read: {error}")),
    }
}

/// An error on a rotated file.
fn unreadable_file(path: &Path, error: &io::Error) -> InputError {
    InputError::Unreadable(format!("{} cannot be read: {error}; reading waits", path.display()))
}
