//! Which file is read next: the one at the path, or what became of it.
//!
//! Takes: a path and a mark. Gives: a [`Step`] a call: a block, or that there is nothing yet. Blocks on the disk only.
//! The mark stays at the end of a file until a line of the next has been read: an empty file has nothing to be known by.
//! Where there was none at all but an empty one, every file with content is newer than the mark.
//! When it fails: an `InputError`, once for as long as it stands the same.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::counting::input::file::open_log::{Found, Source};
use crate::counting::input::file::rotated::{self, Sibling};
use crate::counting::input::{Block, InputError, Mark};

/// How often the file is looked at when nothing wakes us.
pub(super) const POLL: Duration = Duration::from_millis(250);

/// How long no name in the folder must have changed before what is read of it is believed: more than the grain of the
/// time stamps that the kernel gives it.
const AT_REST: Duration = Duration::from_millis(30);

/// What one look came to.
pub(super) enum Step {
    /// Lines, or the news that the end is reached.
    Read(Block),
    /// Nothing yet; look again when something has changed, or after this time.
    Wait(Duration),
}

pub(super) struct Reader {
    path: PathBuf,
    quiet: Duration,
    source: Option<Source>,
    /// Where reading goes on after a restart.
    mark: Option<Mark>,
    /// Octets in the files after this one.
    beyond: u64,
    /// Whether the end has been told since lines were read.
    told_end: bool,
    /// Since when the marked file is not found. Names change one by one while files are rotated: one look may miss it.
    missed: Option<Instant>,
    /// What has been said and still stands.
    said: HashSet<String>,
}

/// What comes after the end of a file.
enum Next {
    /// Nothing: this is the newest.
    None,
    /// Another file, but this one may still grow.
    Later,
    /// This file, now: its path, device and inode.
    File(PathBuf, (u64, u64)),
}

impl Reader {
    pub fn new(path: PathBuf, mark: Option<Mark>, quiet: Duration) -> Reader {
        // Any other mark is not of a file.
        let mark = mark.filter(|mark| matches!(mark, Mark::File { .. }));
        Reader { path, quiet, source: None, mark, beyond: 0, told_end: false, missed: None, said: HashSet::new() }
    }

    /// One look.
    pub fn step(&mut self) -> Result<Step, InputError> {
        let step = self.read();
        match step {
            Ok(step) => Ok(step),
            Err(e) if self.said.insert(e.to_string()) => Err(e),
            Err(_) => Ok(Step::Wait(POLL)),
        }
    }

    fn read(&mut self) -> Result<Step, InputError> {
        loop {
            if self.source.is_none() && !self.begin()? {
                return Ok(Step::Wait(POLL));
            }
            if self.mark.as_ref().is_some_and(|mark| !mark_is_sure(mark))
                && let Some(first) = self.oldest()?
            {
                self.mark = Some(first.mark());
                self.take(first)?;
            }
            let Some(source) = &mut self.source else { return Ok(Step::Wait(POLL)) };
            match source.read() {
                Ok(Found::Lines { lines, skipped }) => return self.hand_out(lines, skipped),
                Ok(Found::Nothing) => {}
                Ok(Found::Replaced) => {
                    // The rest of what it was may stand in a copy (logrotate's copytruncate).
                    let of_its_own = source.mark();
                    self.mark.get_or_insert(of_its_own);
                    self.source = None;
                    continue;
                }
                Err(e) => {
                    self.source = None;
                    return Err(self.unreadable(&e));
                }
            }
            match self.next()? {
                Next::None if self.told_end => return Ok(Step::Wait(POLL)),
                Next::None => return self.hand_out(Vec::new(), 0),
                Next::Later => return Ok(Step::Wait(self.quiet / 4)),
                Next::File(path, identity) => {
                    let Some(source) = &mut self.source else { return Ok(Step::Wait(POLL)) };
                    let last = source.last_line();
                    if let Some((lines, skipped)) = last.map_err(|e| unreadable(&self.path, &e))? {
                        return self.hand_out(lines, skipped);
                    }
                    if let Some(e) = source.damage() {
                        let what = format!("is damaged: {}: {e}; the rest of it is not counted", source.path.display());
                        self.say(what, true);
                    }
                    if !self.go_on(&path, identity)? {
                        return Ok(Step::Wait(AT_REST));
                    }
                }
            }
        }
    }

    /// Goes on with the next file. False where names change just now: a folder that is read during a rotation may show
    /// a file twice, or not at all, so that only what a folder at rest shows is believed.
    fn go_on(&mut self, path: &Path, identity: (u64, u64)) -> Result<bool, InputError> {
        let next = match Source::open(path) {
            Ok(next) => next,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(unreadable(path, &e)),
        };
        let changed = rotated::changed(&self.path).map_err(|e| self.unreadable(&e))?;
        // Where the clock went back, only that nothing changed meanwhile can be told.
        let at_rest = changed.elapsed().map_or(true, |since| since >= AT_REST);
        let agreed = matches!(self.next()?, Next::File(_, again) if again == identity);
        let unchanged = rotated::changed(&self.path).is_ok_and(|again| again == changed);
        if at_rest && agreed && unchanged && (next.device, next.inode) == identity {
            self.take(next)?;
            return Ok(true);
        }
        Ok(false)
    }

    fn hand_out(&mut self, lines: Vec<u8>, skipped: u64) -> Result<Step, InputError> {
        let Some(source) = &self.source else { return Ok(Step::Wait(POLL)) };
        let moved = !lines.is_empty() || skipped > 0;
        let (own, behind) = (source.mark(), source.behind() + self.beyond);
        let at_end = !moved || (source.is_at_end() && matches!(self.next()?, Next::None));
        if moved || self.mark.is_none() {
            self.mark = Some(own.clone());
        }
        self.told_end = at_end;
        self.said.clear();
        let mark = self.mark.clone().unwrap_or(own);
        Ok(Step::Read(Block { lines, mark, skipped, behind, at_end }))
    }

    /// Goes on with another file.
    fn take(&mut self, source: Source) -> Result<(), InputError> {
        let rotated = rotated::of(&self.path).map_err(|e| self.unreadable(&e))?;
        let mut later: Vec<u64> = Vec::new();
        if !self.is_at_path(&source)? {
            let at = position(&rotated, &source).map_or(rotated.len(), |at| at + 1);
            later.extend(rotated[at..].iter().map(|sibling| sibling.length));
            later.extend(std::fs::metadata(&self.path).map(|meta| meta.len()));
        }
        self.beyond = later.iter().sum();
        self.missed = None;
        self.source = Some(source);
        Ok(())
    }

    /// Opens the file that the mark is of, or the one at the path. False where there is nothing to read yet.
    fn begin(&mut self) -> Result<bool, InputError> {
        let current = match Source::open(&self.path) {
            Ok(source) => Some(source),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(self.unreadable(&e)),
        };
        let Some(mark @ Mark::File { offset, inode, .. }) = self.mark.clone() else {
            let Some(source) = current else {
                self.say("does not exist; it is waited for".to_owned(), false);
                return Ok(false);
            };
            // An empty file has nothing to be known by; the end of the one before it has.
            let known = if source.is_empty() { self.end_of_newest()? } else { None };
            return self.take(known.unwrap_or(source)).map(|()| true);
        };
        let marked = match current {
            Some(source) if source.begins_as(&mark) && source.inode == inode && source.reaches(offset) => Some(source),
            current => {
                let moved = current.filter(|now| mark_is_sure(&mark) && now.begins_as(&mark) && now.reaches(offset));
                match self.rotated(&mark)? {
                    Some(found) if found.inode == inode || moved.is_none() => Some(found),
                    _ => moved,
                }
            }
        };
        if let Some(mut source) = marked {
            source.go_to(offset).map_err(|e| self.unreadable(&e))?;
            return self.take(source).map(|()| true);
        }
        if self.missed.get_or_insert_with(Instant::now).elapsed() < self.quiet {
            return Ok(false);
        }
        self.say(
            "the file read last is gone: it is not among the rotated ones; what was unread of it is lost".into(),
            true,
        );
        match Source::open(&self.path) {
            Ok(source) => self.take(source).map(|()| true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.unreadable(&e)),
        }
    }

    /// The oldest rotated file that has content, unless it is a copy of the one at the path that nobody needs yet.
    fn oldest(&self) -> Result<Option<Source>, InputError> {
        let rotated = rotated::of(&self.path).map_err(|e| self.unreadable(&e))?;
        let current = Source::open(&self.path).ok();
        let first = rotated.iter().find_map(with_content);
        Ok(first.filter(|first| !current.is_some_and(|now| now.inode != first.inode && first.is_copy_of(&now))))
    }

    /// The newest rotated file that has content, read to its end.
    fn end_of_newest(&self) -> Result<Option<Source>, InputError> {
        let rotated = rotated::of(&self.path).map_err(|e| self.unreadable(&e))?;
        let newest = rotated.iter().rev().find_map(with_content);
        Ok(newest.and_then(|mut source| source.go_to(u64::MAX).ok().map(|()| source)))
    }

    /// The rotated file that the mark is of.
    fn rotated(&mut self, mark: &Mark) -> Result<Option<Source>, InputError> {
        let Mark::File { inode, .. } = mark else { return Ok(None) };
        let mut found = None;
        for sibling in rotated::of(&self.path).map_err(|e| self.unreadable(&e))? {
            let source = match Source::open(&sibling.path) {
                Ok(source) => source,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    self.say(format!("cannot look into {}: {e}; it is passed over", sibling.path.display()), true);
                    continue;
                }
            };
            if !source.begins_as(mark) {
                continue;
            }
            if source.inode == *inode {
                return Ok(Some(source));
            }
            if mark_is_sure(mark) {
                found = Some(source);
            }
        }
        Ok(found)
    }

    /// What comes after the file that has been read to its end.
    fn next(&mut self) -> Result<Next, InputError> {
        let Some(source) = &self.source else { return Ok(Next::None) };
        if self.is_at_path(source)? {
            self.missed = None;
            return Ok(Next::None);
        }
        let rotated = rotated::of(&self.path).map_err(|e| self.unreadable(&e))?;
        let later = match position(&rotated, source) {
            Some(at) => &rotated[at + 1..],
            None => {
                // Removed, or renamed while we looked.
                if self.missed.get_or_insert_with(Instant::now).elapsed() < self.quiet {
                    return Ok(Next::Later);
                }
                &[]
            }
        };
        // A copy of the file at the path is not finished (copytruncate), or nobody needs it: the path is read, and what
        // is left of the copy once the path is truncated.
        let current = if later.is_empty() { None } else { Source::open(&self.path).ok() };
        let is_copy = |sibling: &Sibling| {
            let current = current.as_ref().filter(|current| current.inode != sibling.inode);
            current.is_some_and(|current| Source::open(&sibling.path).is_ok_and(|other| other.is_copy_of(current)))
        };
        let next = match later.iter().find(|sibling| sibling.length > 0 && !is_copy(sibling)) {
            Some(next) => Some((next.path.clone(), (next.device, next.inode))),
            None => match std::fs::metadata(&self.path) {
                Ok(meta) => (meta.len() > 0).then(|| (self.path.clone(), (meta.dev(), meta.ino()))),
                Err(e) if e.kind() == io::ErrorKind::NotFound => None,
                Err(e) => return Err(self.unreadable(&e)),
            },
        };
        Ok(match next {
            None => Next::None,
            Some((path, identity)) if source.is_quiet(self.quiet) => Next::File(path, identity),
            Some(_) => Next::Later,
        })
    }

    fn is_at_path(&self, source: &Source) -> Result<bool, InputError> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Ok((meta.dev(), meta.ino()) == (source.device, source.inode)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.unreadable(&e)),
        }
    }

    fn unreadable(&self, error: &io::Error) -> InputError {
        unreadable(&self.path, error)
    }

    /// Logs `input: PATH: what`, once for as long as it stands.
    fn say(&mut self, what: String, loud: bool) {
        let line = format!("input: {}: {what}", self.path.display());
        if self.said.contains(&line) {
            return;
        }
        match loud {
            true => tracing::warn!("{line}"),
            false => tracing::info!("{line}"),
        }
        self.said.insert(line);
    }
}

/// A rotated file, opened, unless it is empty: plain or as gzip.
fn with_content(sibling: &Sibling) -> Option<Source> {
    Source::open(&sibling.path).ok().filter(|source| !source.is_empty())
}

/// Which of the rotated files this is.
fn position(rotated: &[Sibling], source: &Source) -> Option<usize> {
    let by_inode = rotated.iter().position(|s| (s.device, s.inode) == (source.device, source.inode));
    by_inode.or_else(|| {
        // Packed since it was opened.
        let mark = source.mark();
        let same = |s: &Sibling| Source::open(&s.path).is_ok_and(|other| other.begins_as(&mark));
        rotated.iter().position(|s| mark_is_sure(&mark) && same(s))
    })
}

/// Whether the mark knows its file by more than the inode.
fn mark_is_sure(mark: &Mark) -> bool {
    matches!(mark, Mark::File { covers: 1.., .. })
}

fn unreadable(path: &Path, error: &io::Error) -> InputError {
    let shown = path.display();
    match error.kind() {
        io::ErrorKind::Unsupported => {
            InputError::NotAFile(format!("input: {shown}: no log file: it is {error}; nothing is counted from it"))
        }
        _ => InputError::Unreadable(format!("input: {shown}: cannot be read: {error}; nothing is counted from it")),
    }
}
