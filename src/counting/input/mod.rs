//! Where lines come from: one task an input, each reading from its position and handing on blocks of whole lines.
//!
//! Takes: a source and the position of what has been counted. Gives: [`LineBlock`]s, in order, each line once.
//! Limits: `MAX_LINE` bytes a line; longer ones are skipped and counted. `MAX_BLOCK` bytes a block.
//! Not here: what a line means (`parsers`), when a position is stored (`pipeline`).

pub mod datagram;
pub mod file;
pub mod file_position;
pub mod journald;
pub mod json_entry;
mod line_splitter;
pub(crate) mod stdin;

use serde::{Deserialize, Serialize};

use self::file_position::FilePosition;

/// The longest line that is read, in bytes. Postfix cuts its text at 2,000; rsyslog's default is 8,192; a container runtime
/// splits at 16 KiB, and adds its envelope.
pub const MAX_LINE: usize = 32 * 1024;

/// The size of a block, in bytes: large enough that a commit for each block costs little.
pub const MAX_BLOCK: usize = 1024 * 1024;

/// Whole lines, and the position after them.
#[derive(Debug)]
pub struct LineBlock {
    /// Lines, each ended by `\n`. Empty where only the end was reached.
    pub lines: Vec<u8>,
    /// Where reading goes on once these lines are counted.
    pub position: Position,
    /// Over-long lines that were left out.
    pub skipped: u64,
    /// Bytes known to be unread behind this block.
    pub bytes_behind: u64,
    /// Whether this block reaches the end of what is there now.
    pub at_end: bool,
    /// Whether lines from here on may have been counted.
    pub repeated: RepeatedLines,
    /// Whether lines before these are known to be missing: nothing follows from a line that is not there.
    pub lines_missing: bool,
}

/// Whether lines of a log may have been counted before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RepeatedLines {
    /// As it was for the lines before.
    #[default]
    AsBefore,
    /// Those that are not newer than the newest one counted so far: they are left out.
    Possible,
    /// None: a new file begins.
    Excluded,
}

/// How far an input has been read and counted: reading continues there after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Position {
    /// In a file: which one, and how far.
    File(FilePosition),
    /// In a journal.
    Journal {
        /// The cursor of the last entry counted.
        cursor: String,
    },
    /// None: this input cannot be read again.
    Nowhere,
}

impl Position {
    /// As it is stored.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("plain structures always serialise")
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Position, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// Why an input cannot be read now, by whose fault it is. Asking again tries again.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// The administrator's: what the path names is no log file.
    #[error("{0}")]
    NotAFile(String),
    /// The administrator's or the disk's: it cannot be opened or read.
    #[error("{0}")]
    Unreadable(String),
    /// The daemon is ending.
    #[error("{0}")]
    Stopped(String),
}
