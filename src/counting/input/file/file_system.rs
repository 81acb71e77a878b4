//! What the follower asks of the operating system, behind one trait: files, folders and clocks.
//!
//! Takes: paths. Gives: metadata, open files that are read at an offset, names in a folder, the time.
//! Limits: none of its own. When it fails: the I/O error of the call; nothing is tried again here.
//! Not here: which file is read (`follow`). A model of a disk that fails takes the place of [`HostFileSystem`] in tests.

use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// What kind of file a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFileKind {
    /// A regular file: the only kind that can be a log file.
    Regular,
    /// A folder.
    Folder,
    /// Anything else, by its name in an error.
    Other(&'static str),
}

/// What the file system says of a file.
#[derive(Clone, Copy, Debug)]
pub struct LogFileMetadata {
    /// Its kind.
    pub kind: LogFileKind,
    /// The device that it is on.
    pub device: u64,
    /// Its inode number there.
    pub inode: u64,
    /// Its length in bytes.
    pub length: u64,
    /// When its content last changed.
    pub modified: SystemTime,
}

/// An open file.
pub trait LogFileHandle: Send + Sync {
    /// What the file system says of it now.
    fn metadata(&self) -> io::Result<LogFileMetadata>;
    /// Reads at an offset, as pread(2) does: 0 bytes only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// The calls that the follower makes.
pub trait LogFileSystem: Send + Sync + 'static {
    /// What stands at a path, behind symlinks.
    fn metadata(&self, path: &Path) -> io::Result<LogFileMetadata>;
    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFileHandle>>;
    /// The names in a folder.
    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>>;
    /// The path without symlinks.
    fn resolve(&self, path: &Path) -> io::Result<PathBuf>;
    /// A clock that only moves forward.
    fn now(&self) -> Instant;
    /// The time of day.
    fn time(&self) -> SystemTime;
}

/// The operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFileSystem;

impl LogFileSystem for HostFileSystem {
    fn metadata(&self, path: &Path) -> io::Result<LogFileMetadata> {
        std::fs::metadata(path).map(|meta| from_metadata(&meta))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn LogFileHandle>> {
        Ok(Arc::new(File::open(path)?))
    }

    fn names(&self, folder: &Path) -> io::Result<Vec<OsString>> {
        folder.read_dir()?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn resolve(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn time(&self) -> SystemTime {
        SystemTime::now()
    }
}

impl LogFileHandle for File {
    fn metadata(&self) -> io::Result<LogFileMetadata> {
        File::metadata(self).map(|meta| from_metadata(&meta))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

fn from_metadata(meta: &Metadata) -> LogFileMetadata {
    let kind = match meta.file_type() {
        kind if kind.is_file() => LogFileKind::Regular,
        kind if kind.is_dir() => LogFileKind::Folder,
        kind if kind.is_fifo() => LogFileKind::Other("a FIFO"),
        kind if kind.is_socket() => LogFileKind::Other("a socket"),
        _ => LogFileKind::Other("a device"),
    };
    let modified = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    LogFileMetadata { kind, device: meta.dev(), inode: meta.ino(), length: meta.len(), modified }
}
