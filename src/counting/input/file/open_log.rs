//! One file's content: whole lines from an offset on, and the bytes that it is recognized by.
//!
//! Takes: an open file, plain or gzip. Gives: lines, what was skipped, the position after them, and whether it still is the
//! same file.
//! Limits: `MAX_HEAD` bytes at its beginning; one block in memory; an over-long line is searched through, never held.
//! When it fails: an I/O error; nothing was consumed.
//! Not here: which file is read, and from where (`follow`, `locate`).

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use flate2::read::MultiGzDecoder;
use memchr::{memchr, memrchr};

use crate::counting::input::file::file_system::{LogFileHandle, LogFileKind, LogFileMetadata, LogFileSystem};
use crate::counting::input::file_position::{CHECKPOINT_BYTES, Checkpoint, FilePosition, HeadDigest, TailLines};
use crate::counting::input::file_position::{add_checkpoint, split_lines};
use crate::counting::input::{MAX_BLOCK, MAX_LINE};

/// The most bytes at the beginning of a file that identify it.
pub(super) const MAX_HEAD: usize = 1024;

/// The most bytes before the offset that are compared at each reading: more than one line.
const MAX_LAST_BYTES: usize = 256;

/// The most bytes before the place where reading continues that are read again, for the digests of their lines.
const MAX_TAIL_BYTES: u64 = 256 * 1024;

/// The least room for one read of a file that may have grown: a page.
const MIN_READ: usize = 4096;

/// An open log file, and how far it has been read.
pub(super) struct OpenLog {
    pub path: PathBuf,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    /// Where the next line begins.
    pub(crate) offset: u64,
    /// How far there is known to be no end of that line; not before `offset`.
    searched: u64,
    /// Where its content begins: behind the NULs of the hole that truncation leaves under a writer that does not append.
    head_offset: u64,
    /// The first bytes from there, up to [`MAX_HEAD`].
    pub(crate) head: Vec<u8>,
    /// Its length when last seen; for gzip, as far as it has been unpacked.
    pub(crate) length: u64,
    /// Whether the last read reached that length.
    reached_end: bool,
    /// When it last grew.
    grew_at: Instant,
    /// The last bytes before `offset`, as far as they are known: other ones there mean another content.
    last_bytes: Vec<u8>,
    tail: TailLines,
    checkpoints: Vec<Checkpoint>,
    pub(crate) earlier_files: Vec<HeadDigest>,
    content: LogContent,
    files: Arc<dyn LogFileSystem>,
}

enum LogContent {
    Plain(Arc<dyn LogFileHandle>),
    /// `unpacked` are the bytes before `position` that may be asked for again; nothing is unpacked behind damage.
    Gzip {
        decoder: Box<MultiGzDecoder<SequentialReader>>,
        position: u64,
        unpacked: Vec<u8>,
        damage: Option<io::Error>,
    },
}

/// In the place of a file that was closed.
struct ClosedFile;

impl LogFileHandle for ClosedFile {
    fn metadata(&self) -> io::Result<LogFileMetadata> {
        Err(io::Error::other("the file is closed"))
    }

    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        Err(io::Error::other("the file is closed"))
    }
}

/// Reads a file from its start to its end.
struct SequentialReader {
    file: Arc<dyn LogFileHandle>,
    offset: u64,
}

impl Read for SequentialReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.offset)?;
        self.offset += length as u64;
        Ok(length)
    }
}

/// The result of one read.
pub(super) enum ReadResult {
    /// Whole lines, perhaps none where only over-long ones were passed.
    Lines { lines: Vec<u8>, skipped: u64 },
    /// No whole line.
    Nothing,
    /// The content is another one: it was truncated.
    Replaced,
}

impl OpenLog {
    /// Opens a regular file at its start.
    pub(super) fn open(files: &Arc<dyn LogFileSystem>, path: &Path) -> io::Result<OpenLog> {
        // Looked at first: to open a FIFO would wait for its writer.
        require_regular_file(&files.metadata(path)?)?;
        OpenLog::at_start(files, path, files.open(path)?)
    }

    /// Reads an open file from its start.
    fn at_start(files: &Arc<dyn LogFileSystem>, path: &Path, file: Arc<dyn LogFileHandle>) -> io::Result<OpenLog> {
        let meta = file.metadata()?;
        require_regular_file(&meta)?;
        let packed = path.extension().is_some_and(|end| end == "gz");
        let mut content = LogContent::of(Arc::clone(&file), packed);
        let (head_offset, head) = content.head(0)?;
        if packed {
            // From its start again: what was unpacked is gone.
            content = LogContent::of(file, packed);
        }
        let idle = files.time().duration_since(meta.modified).unwrap_or_default();
        let now = files.now();
        Ok(OpenLog {
            path: path.to_owned(),
            device: meta.device,
            inode: meta.inode,
            offset: 0,
            searched: 0,
            head_offset,
            head,
            length: if packed { 0 } else { meta.length },
            reached_end: false,
            grew_at: now.checked_sub(idle).unwrap_or(now),
            last_bytes: Vec::new(),
            tail: TailLines::default(),
            checkpoints: Vec::new(),
            earlier_files: Vec::new(),
            content,
            files: Arc::clone(files),
        })
    }

    /// Closes the file; what is known of it stays.
    pub(crate) fn close(mut self) -> OpenLog {
        self.content = LogContent::Plain(Arc::new(ClosedFile));
        self
    }

    /// Opens the file that was closed if it is the one at `path`.
    pub(crate) fn reopen(&mut self, path: &Path) -> io::Result<bool> {
        require_regular_file(&self.files.metadata(path)?)?;
        let file = self.files.open(path)?;
        let meta = file.metadata()?;
        if (meta.device, meta.inode) != (self.device, self.inode) {
            return Ok(false);
        }
        self.content = LogContent::Plain(file);
        self.path = path.to_owned();
        Ok(true)
    }

    /// The same file at its start, whatever stands at its path now.
    pub(crate) fn again(&self) -> io::Result<OpenLog> {
        OpenLog::at_start(&self.files, &self.path, self.content.handle())
    }

    /// Moves to `offset`, or to the end if that comes first.
    pub(crate) fn seek(&mut self, offset: u64) -> io::Result<()> {
        if let LogContent::Gzip { .. } = self.content {
            let mut passed = Vec::new();
            while self.length < offset {
                let limit = usize::try_from(offset - self.length).map_or(MAX_BLOCK, |n| n.min(MAX_BLOCK));
                passed.clear();
                self.content.read_at(self.length, limit, &mut passed)?;
                if passed.is_empty() {
                    break;
                }
                self.length += passed.len() as u64;
            }
        }
        let offset = offset.min(self.length);
        let mut tail = TailLines::default();
        let mut last_bytes = Vec::new();
        tail.restart(offset);
        if let LogContent::Plain(_) = self.content {
            let from = offset.saturating_sub(MAX_TAIL_BYTES);
            let mut bytes = Vec::new();
            self.content.read_at(from, usize::try_from(offset - from).unwrap_or(0), &mut bytes)?;
            // The first line may be cut.
            let begin = if from == 0 { Some(0) } else { memchr(b'\n', &bytes).map(|at| at + 1) };
            if let Some(begin) = begin.filter(|_| bytes.len() as u64 == offset - from) {
                tail.restart(from + begin as u64);
                tail.push_lines(&bytes[begin..]);
                last_bytes = last_of(&bytes);
            }
        }
        self.tail = tail;
        self.advance_to(offset);
        self.last_bytes = last_bytes;
        Ok(())
    }

    /// Continues at `offset` as the file of `position`.
    pub(crate) fn resume(&mut self, position: &FilePosition, offset: u64) -> io::Result<()> {
        self.seek(offset)?;
        self.checkpoints = position.checkpoints.iter().filter(|one| one.offset <= offset).cloned().collect();
        self.earlier_files = position.earlier_files.clone();
        Ok(())
    }

    /// Reads on: up to `MAX_BLOCK` bytes of whole lines.
    pub(super) fn read(&mut self) -> io::Result<ReadResult> {
        let mut skipped = 0;
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let from = self.searched;
            let Some(limit) = self.unread_bytes(from)? else { return Ok(ReadResult::Replaced) };
            self.content.read_at(from, limit, &mut bytes)?;
            // After the reading: content that has the same beginning now had it then.
            if !self.is_unchanged()? {
                return Ok(ReadResult::Replaced);
            }
            let end = from + bytes.len() as u64;
            match self.content {
                LogContent::Plain(_) => self.reached_end = end >= self.length,
                LogContent::Gzip { .. } => self.length = self.length.max(end),
            }
            if from > self.offset {
                // Within an over-long line.
                match memchr(b'\n', &bytes) {
                    Some(at) => {
                        self.advance_to(from + at as u64 + 1);
                        self.tail.restart(self.offset);
                        skipped += 1;
                        continue;
                    }
                    None if bytes.is_empty() => break,
                    None => self.searched = end,
                }
                continue;
            }
            let whole = memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
            let rest = &bytes[whole..];
            let nuls = rest.iter().take_while(|byte| **byte == 0).count();
            let last_bytes = std::mem::take(&mut self.last_bytes);
            self.advance_to(self.offset + (whole + nuls) as u64);
            match nuls {
                0 => {
                    self.tail.push_lines(&bytes[..whole]);
                    self.last_bytes = if whole > 0 { last_of(&bytes[..whole]) } else { last_bytes };
                }
                _ => self.tail.restart(self.offset),
            }
            if rest.len() - nuls > MAX_LINE {
                self.searched = end;
            }
            if whole > 0 {
                self.add_checkpoint(&bytes[..whole], self.offset - nuls as u64);
                bytes.truncate(whole);
                skipped += remove_unreadable_lines(&mut bytes);
                return Ok(ReadResult::Lines { lines: bytes, skipped });
            }
            if nuls == 0 && self.searched == from {
                break;
            }
        }
        match skipped {
            0 => Ok(ReadResult::Nothing),
            _ => Ok(ReadResult::Lines { lines: Vec::new(), skipped }),
        }
    }

    /// Takes the last line, which has no end, once nobody will write it any more: with `\n`, or skipped if it is too long.
    /// A line that damage has cut off is left out.
    pub(crate) fn take_last_line(&mut self) -> io::Result<Option<(Vec<u8>, u64)>> {
        if self.searched > self.offset {
            self.advance_to(self.searched);
            self.tail.restart(self.offset);
            return Ok(Some((Vec::new(), 1)));
        }
        let mut line = Vec::new();
        self.content.read_at(self.offset, MAX_LINE, &mut line)?;
        self.advance_to(self.offset + line.len() as u64);
        self.tail.push_lines(&line);
        if line.is_empty() || self.damage().is_some() {
            return Ok(None);
        }
        line.push(b'\n');
        Ok(Some((line, 0)))
    }

    /// Reads text from `from` on, in whole lines but for the last, and hands each to `each` with the offset behind it.
    pub(crate) fn visit_lines(&mut self, from: u64, each: &mut dyn FnMut(&[u8], u64)) -> io::Result<()> {
        let mut text = Vec::new();
        let mut offset = from;
        loop {
            let before = text.len();
            let at = offset + before as u64;
            let limit = usize::try_from(self.length.saturating_sub(at)).unwrap_or(MAX_BLOCK).clamp(MIN_READ, MAX_BLOCK);
            self.content.read_at(at, limit, &mut text)?;
            let ended = text.len() == before;
            let whole = match ended {
                true => text.len(),
                false => memrchr(b'\n', &text).map_or(0, |at| at + 1),
            };
            for line in split_lines(&text[..whole]) {
                offset += line.len() as u64;
                each(line, offset);
            }
            if ended {
                return Ok(());
            }
            text.drain(..whole);
            if text.len() > MAX_BLOCK {
                // One line of this length has no digest.
                offset += text.len() as u64;
                text.clear();
            }
        }
    }

    /// Reads bytes of a plain file.
    pub(crate) fn bytes_at(&mut self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content.read_at(offset, length, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether it is packed: such a file is complete, and never changes.
    pub(crate) fn is_gzip(&self) -> bool {
        matches!(self.content, LogContent::Gzip { .. })
    }

    /// Whether no whole line is left in what was last seen; of gzip nobody knows before the next reading.
    pub(crate) fn is_at_end(&self) -> bool {
        self.reached_end
    }

    /// Why a gzip file could not be unpacked to its end.
    pub(crate) fn damage(&self) -> Option<&io::Error> {
        match &self.content {
            LogContent::Plain(_) => None,
            LogContent::Gzip { damage, .. } => damage.as_ref(),
        }
    }

    /// Bytes seen and not yet read.
    pub(crate) fn bytes_behind(&self) -> u64 {
        self.length.saturating_sub(self.offset)
    }

    /// Whether it has not grown for `quiet`. A gzip file never does.
    pub(crate) fn is_quiet(&self, quiet: Duration) -> bool {
        match self.content {
            LogContent::Plain(_) => self.files.now().saturating_duration_since(self.grew_at) >= quiet,
            LogContent::Gzip { .. } => true,
        }
    }

    /// The position after the lines that were read.
    pub(crate) fn position(&self) -> FilePosition {
        let (tail_start, tail) = self.tail.digests();
        FilePosition {
            head: HeadDigest::of(&self.head),
            inode: self.inode,
            offset: self.offset,
            tail_start,
            tail,
            checkpoints: self.checkpoints.clone(),
            earlier_files: self.earlier_files.clone(),
        }
    }

    /// Whether nothing stands in it yet that it could be known by.
    pub(super) fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Whether its first bytes tell it from another file that takes its place: a whole line, or a good part of one.
    pub(super) fn is_recognizable(&self) -> bool {
        memchr(b'\n', &self.head).is_some() || HeadDigest::of(&self.head).is_distinct()
    }

    /// Whether it is a copy of `log`, perhaps an unfinished one: never longer, and as far as it is known the same.
    pub(crate) fn is_copy_of(&self, log: &OpenLog) -> bool {
        match self.content {
            LogContent::Plain(_) => {
                self.length <= log.length && !self.head.is_empty() && log.head.starts_with(&self.head)
            }
            LogContent::Gzip { .. } => self.head.len() == MAX_HEAD && self.head == log.head,
        }
    }

    /// Whether it can be as long as `offset`; of gzip nobody knows before it is unpacked.
    pub(crate) fn reaches(&self, offset: u64) -> bool {
        match self.content {
            LogContent::Plain(_) => self.length >= offset,
            LogContent::Gzip { .. } => true,
        }
    }

    fn add_checkpoint(&mut self, before: &[u8], offset: u64) {
        if let LogContent::Plain(_) = self.content {
            let at = self.files.time().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            let before = &before[before.len().saturating_sub(CHECKPOINT_BYTES)..];
            add_checkpoint(&mut self.checkpoints, Checkpoint::new(offset, before, i64::try_from(at).unwrap_or(0)));
        }
    }

    fn advance_to(&mut self, offset: u64) {
        self.last_bytes.clear();
        self.offset = offset;
        self.searched = offset;
    }

    /// How much to read from `from` on; `None` where the file has become shorter than it was.
    fn unread_bytes(&mut self, from: u64) -> io::Result<Option<usize>> {
        let LogContent::Plain(file) = &self.content else { return Ok(Some(MAX_BLOCK)) };
        let length = file.metadata()?.length;
        if length < self.length {
            return Ok(None);
        }
        if length > self.length {
            self.length = length;
            self.grew_at = self.files.now();
        }
        let unread = length.checked_sub(from);
        Ok(unread.map(|unread| usize::try_from(unread).map_or(MAX_BLOCK, |unread| unread.min(MAX_BLOCK))))
    }

    /// Whether its beginning and the bytes before the offset are unchanged; reads more of the beginning while it is short.
    fn is_unchanged(&mut self) -> io::Result<bool> {
        let LogContent::Plain(_) = &self.content else { return Ok(true) };
        let length = self.last_bytes.len();
        if length > 0 && self.bytes_at(self.offset - length as u64, length)? != self.last_bytes {
            return Ok(false);
        }
        let (head_offset, head) = self.content.head(self.head_offset)?;
        let same = self.head.is_empty() || (head_offset == self.head_offset && head.starts_with(&self.head));
        if same {
            (self.head_offset, self.head) = (head_offset, head);
        }
        Ok(same)
    }
}

impl LogContent {
    fn of(file: Arc<dyn LogFileHandle>, packed: bool) -> LogContent {
        match packed {
            false => LogContent::Plain(file),
            true => {
                let decoder = Box::new(MultiGzDecoder::new(SequentialReader { file, offset: 0 }));
                LogContent::Gzip { decoder, position: 0, unpacked: Vec::new(), damage: None }
            }
        }
    }

    fn handle(&self) -> Arc<dyn LogFileHandle> {
        match self {
            LogContent::Plain(file) => Arc::clone(file),
            LogContent::Gzip { decoder, .. } => Arc::clone(&decoder.get_ref().file),
        }
    }

    /// The first bytes that are not NUL from `at` on, up to [`MAX_HEAD`], and where they begin.
    fn head(&mut self, mut at: u64) -> io::Result<(u64, Vec<u8>)> {
        let mut limit = MAX_HEAD;
        loop {
            let mut head = Vec::new();
            self.read_at(at, limit, &mut head)?;
            match head.iter().position(|byte| *byte != 0) {
                Some(0) => {
                    head.truncate(MAX_HEAD);
                    return Ok((at, head));
                }
                Some(nuls) => (at, limit) = (at + nuls as u64, MAX_HEAD),
                None if head.is_empty() => return Ok((at, head)),
                None => (at, limit) = (at + head.len() as u64, MAX_BLOCK),
            }
        }
    }

    /// Appends up to `limit` bytes from `offset` on; fewer only at the end. For gzip, `offset` may go back only as
    /// far as the last call's.
    fn read_at(&mut self, offset: u64, limit: usize, into: &mut Vec<u8>) -> io::Result<()> {
        let before = into.len();
        match self {
            LogContent::Plain(file) => {
                into.resize(before + limit, 0);
                let mut filled = before;
                while filled < into.len() {
                    match file.read_at(&mut into[filled..], offset + (filled - before) as u64) {
                        Ok(0) => break,
                        Ok(n) => filled += n,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(e) => return Err(e),
                    }
                }
                into.truncate(filled);
            }
            LogContent::Gzip { decoder, position, unpacked, damage } => {
                let first = *position - unpacked.len() as u64;
                let passed = offset.checked_sub(first).and_then(|n| usize::try_from(n).ok());
                let passed = passed.filter(|n| *n <= unpacked.len()).ok_or(io::ErrorKind::InvalidInput)?;
                unpacked.drain(..passed);
                let had = unpacked.len();
                if damage.is_none() && had < limit {
                    let result = decoder.by_ref().take((limit - had) as u64).read_to_end(unpacked);
                    *position += (unpacked.len() - had) as u64;
                    match result {
                        Ok(_) => {}
                        Err(e) if is_damage(&e) => *damage = Some(e),
                        Err(e) => return Err(e),
                    }
                }
                into.extend_from_slice(&unpacked[..unpacked.len().min(limit)]);
            }
        }
        Ok(())
    }
}

/// What flate2 says of bytes that are no gzip, or of gzip that is cut.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

fn require_regular_file(meta: &LogFileMetadata) -> io::Result<()> {
    let what = match meta.kind {
        LogFileKind::Regular => return Ok(()),
        LogFileKind::Folder => "a directory",
        LogFileKind::Other(what) => what,
    };
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

/// The last bytes of what was read, enough to tell it from other content.
fn last_of(bytes: &[u8]) -> Vec<u8> {
    bytes[bytes.len().saturating_sub(MAX_LAST_BYTES)..].to_vec()
}

/// Removes over-long lines, and NULs before a line, from whole lines; returns how many over-long lines were removed.
fn remove_unreadable_lines(lines: &mut Vec<u8>) -> u64 {
    if memchr(0, lines).is_none() && !has_long_line(lines) {
        return 0;
    }
    let (mut read, mut kept, mut skipped) = (0, 0, 0);
    while read < lines.len() {
        read += lines[read..].iter().take_while(|byte| **byte == 0).count();
        let Some(end) = memchr(b'\n', &lines[read..]).map(|at| read + at + 1) else { break };
        if end - read - 1 > MAX_LINE {
            skipped += 1;
        } else {
            lines.copy_within(read..end, kept);
            kept += end - read;
        }
        read = end;
    }
    lines.truncate(kept);
    skipped
}

/// Whether a line is longer than `MAX_LINE`, by looking at a few bytes of each 32 KiB.
fn has_long_line(lines: &[u8]) -> bool {
    let mut begin = 0;
    while lines.len() - begin > MAX_LINE {
        match memrchr(b'\n', &lines[begin..=begin + MAX_LINE]) {
            Some(at) => begin += at + 1,
            None => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::counting::input::file::file_system::HostFileSystem;

    fn open(path: &Path) -> OpenLog {
        let files: Arc<dyn LogFileSystem> = Arc::new(HostFileSystem);
        OpenLog::open(&files, path).unwrap()
    }

    fn all(log: &mut OpenLog) -> (Vec<u8>, u64) {
        let (mut text, mut long) = (Vec::new(), 0);
        while let ReadResult::Lines { lines, skipped } = log.read().unwrap() {
            assert!(lines.len() <= MAX_BLOCK && lines.last().is_none_or(|byte| *byte == b'\n'));
            text.extend_from_slice(&lines);
            long += skipped;
        }
        (text, long)
    }

    /// Lines about the limits, over several blocks, an unfinished one at the end: (content, wanted lines, over-long).
    fn awkward() -> (Vec<u8>, Vec<u8>, u64) {
        let (mut content, mut wanted, mut long) = (vec![0; 3 * MAX_LINE], Vec::new(), 0);
        for n in 0..400 {
            let length = match n % 7 {
                0 => MAX_LINE,
                1 => MAX_LINE + 1,
                2 if n % 3 == 0 => 3 * MAX_BLOCK / 2,
                3 => 0,
                _ => n * 37 % 5_000,
            };
            let nuls = if n % 11 == 0 { n * 1_000 } else { 0 };
            let line = [vec![b'a' + (n % 26) as u8; length], b"\n".to_vec()].concat();
            content.extend_from_slice(&vec![0; nuls]);
            content.extend_from_slice(&line);
            match length > MAX_LINE {
                true => long += 1,
                false => wanted.extend_from_slice(&line),
            }
        }
        content.extend_from_slice(b"unfinished");
        (content, wanted, long)
    }

    #[test]
    fn lines_are_whole_short_and_without_nuls_plain_or_packed() {
        let (content, wanted, long) = awkward();
        let home = tempfile::tempdir().unwrap();
        let plain = home.path().join("mail.log");
        std::fs::write(&plain, &content).unwrap();
        let packed = home.path().join("mail.log.1.gz");
        let mut pack = GzEncoder::new(File::create(&packed).unwrap(), Compression::fast());
        pack.write_all(&content).unwrap();
        pack.finish().unwrap();
        for path in [plain, packed] {
            let mut log = open(&path);
            assert_eq!(all(&mut log), (wanted.clone(), long), "{}", path.display());
            assert_eq!(log.offset, content.len() as u64 - 10);
            let position = log.position();
            assert_eq!(log.take_last_line().unwrap().unwrap(), (b"unfinished\n".to_vec(), 0));
            assert!(log.take_last_line().unwrap().is_none());
            let mut again = open(&path);
            assert!(position.head.matches(&again.head));
            again.seek(content.len() as u64 - 13).unwrap();
            assert!(all(&mut again).0.ends_with(b"\n"));
            again.seek(u64::MAX).unwrap();
            assert_eq!(again.offset, content.len() as u64);
        }
    }

    #[test]
    fn an_over_long_line_is_passed_when_its_end_comes() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"one\n").unwrap();
        let mut log = open(&path);
        assert_eq!(all(&mut log), (b"one\n".to_vec(), 0));
        for _ in 0..3 {
            file.write_all(&vec![b'x'; MAX_LINE]).unwrap();
            assert_eq!(all(&mut log), (vec![], 0));
            assert_eq!(log.offset, 4, "the position stays before a line that is not over");
        }
        file.write_all(b"x\ntwo\nthr").unwrap();
        assert_eq!(all(&mut log), (b"two\n".to_vec(), 1));
        file.write_all(b"ee\n").unwrap();
        assert_eq!(all(&mut log), (b"three\n".to_vec(), 0));
    }

    #[test]
    fn another_content_under_the_same_inode_is_noticed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        for content in ["", "shorter\n", "o", "another line that is longer\n"] {
            std::fs::write(&path, "one line\n").unwrap();
            let mut log = open(&path);
            assert_eq!(all(&mut log).0, b"one line\n");
            std::fs::write(&path, content).unwrap();
            // "o" is a beginning of the old content, but shorter than what was read.
            assert!(matches!(log.read().unwrap(), ReadResult::Replaced), "{content}");
        }
    }

    #[test]
    fn content_that_was_cut_and_grew_again_is_noticed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("mail.log");
        let lines =
            |numbers: std::ops::Range<u32>| -> String { numbers.map(|n| format!("a line, {n:05}\n")).collect() };
        std::fs::write(&path, lines(0..1000)).unwrap();
        let mut log = open(&path);
        assert_eq!(all(&mut log).0.len(), lines(0..1000).len());
        std::fs::write(&path, [lines(0..900), lines(2000..3000)].concat()).unwrap();
        assert!(matches!(log.read().unwrap(), ReadResult::Replaced));
    }
}
