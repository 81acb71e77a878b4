//! Lines from standard input: a container's log driver, a pipe.
//!
//! Takes: nothing. Gives: blocks of whole lines. They have no position: what was read and not committed when the process is
//! killed is lost, which the daemon says at start.
//! Limits: [`MAX_BLOCKS_AHEAD`] blocks are read ahead; then the writer waits.
//! When it fails: the end of the input, or an error, which ends it; the daemon goes on without it.

use std::io::{self, Read};

use tokio::sync::mpsc;

use crate::counting::input::line_splitter::LineSplitter;
use crate::counting::input::{LineBlock, MAX_BLOCK, MAX_LINE, Position, RepeatedLines};

/// Blocks that are read ahead of the counting.
const MAX_BLOCKS_AHEAD: usize = 4;

/// The most bytes read at once.
const READ_CHUNK_BYTES: usize = 64 * 1024;

/// Standard input, read by a thread of its own for as long as the process lives: one reading that nobody waits for any
/// more would swallow what comes next.
pub(crate) struct StdinReader {
    blocks: mpsc::Receiver<Result<LineBlock, String>>,
}

impl StdinReader {
    /// Begins to read.
    pub(crate) fn open() -> io::Result<StdinReader> {
        let (sender, blocks) = mpsc::channel(MAX_BLOCKS_AHEAD);
        std::thread::Builder::new().name("stdin".into()).spawn(move || read_blocks(io::stdin().lock(), &sender))?;
        Ok(StdinReader { blocks })
    }

    /// The next lines; `None` after the end. Nothing is lost where the future is dropped.
    pub(crate) async fn next(&mut self) -> Option<Result<LineBlock, String>> {
        self.blocks.recv().await
    }
}

fn read_blocks(mut from: impl Read, to: &mpsc::Sender<Result<LineBlock, String>>) {
    let mut splitter = LineSplitter::new(MAX_LINE);
    let mut chunk = vec![0; READ_CHUNK_BYTES];
    loop {
        let ended = match from.read(&mut chunk) {
            Ok(0) => true,
            Ok(length) => {
                splitter.push(&chunk[..length]);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let _ = to.blocking_send(Err(error.to_string()));
                true
            }
        };
        let (mut lines, skipped) = splitter.take_lines();
        if ended {
            lines.extend(splitter.take_unterminated());
        }
        debug_assert!(lines.len() <= MAX_BLOCK);
        // A pipe does not say whether it is empty: what is not there now may come at once.
        let block = LineBlock {
            lines,
            position: Position::Nowhere,
            skipped,
            bytes_behind: 0,
            at_end: true,
            repeated: RepeatedLines::AsBefore,
            lines_missing: false,
        };
        let sent = block.lines.is_empty() && !ended || to.blocking_send(Ok(block)).is_ok();
        if ended || !sent {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_to_the_end_and_the_last_line_counts() {
        let (sender, mut blocks) = mpsc::channel(MAX_BLOCKS_AHEAD);
        let long = "x".repeat(MAX_LINE + 1);
        let text = format!("one\n{long}\ntwo\nthree");
        read_blocks(text.as_bytes(), &sender);
        drop(sender);
        let mut lines = Vec::new();
        let mut skipped = 0;
        while let Some(block) = blocks.blocking_recv() {
            let block = block.unwrap();
            assert_eq!(block.position, Position::Nowhere);
            lines.extend(block.lines);
            skipped += block.skipped;
        }
        assert_eq!((lines, skipped), (b"one\ntwo\nthree\n".to_vec(), 1));
    }
}
