//! Lines from standard input: a container's log driver, a pipe.
//!
//! Takes: nothing. Gives: blocks of whole lines. They have no mark: what was read and not committed when the process is
//! killed is lost, which the daemon says at start.
//! Limits: [`AHEAD`] blocks are read ahead; then the writer waits.
//! When it fails: the end of the input, or an error, which ends it; the daemon goes on without it.

use std::io::{self, Read};

use tokio::sync::mpsc;

use crate::counting::input::line_splitter::Cutter;
use crate::counting::input::{BLOCK, Block, MAX_LINE, Mark};

/// Blocks that are read ahead of the counting.
const AHEAD: usize = 4;

/// Octets that are asked for at once.
const PIECE: usize = 64 * 1024;

/// Standard input, read by a thread of its own for as long as the process lives: one reading that nobody waits for any
/// more would swallow what comes next.
pub struct Stdin {
    blocks: mpsc::Receiver<Result<Block, String>>,
}

impl Stdin {
    /// Begins to read.
    pub fn open() -> io::Result<Stdin> {
        let (sender, blocks) = mpsc::channel(AHEAD);
        std::thread::Builder::new().name("stdin".into()).spawn(move || read(io::stdin().lock(), &sender))?;
        Ok(Stdin { blocks })
    }

    /// The next lines; `None` after the end. Nothing is lost where the future is dropped.
    pub async fn next(&mut self) -> Option<Result<Block, String>> {
        self.blocks.recv().await
    }
}

fn read(mut from: impl Read, to: &mpsc::Sender<Result<Block, String>>) {
    let mut cutter = Cutter::new(MAX_LINE);
    let mut piece = vec![0; PIECE];
    loop {
        let ended = match from.read(&mut piece) {
            Ok(0) => true,
            Ok(length) => {
                cutter.push(&piece[..length]);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                let _ = to.blocking_send(Err(error.to_string()));
                true
            }
        };
        let (mut lines, skipped) = cutter.take();
        if ended {
            lines.extend(cutter.last());
        }
        debug_assert!(lines.len() <= BLOCK);
        // A pipe does not say whether it is empty: what is not there now may come at once.
        let block = Block { lines, mark: Mark::Nowhere, skipped, behind: 0, at_end: true };
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
        let (sender, mut blocks) = mpsc::channel(AHEAD);
        let long = "x".repeat(MAX_LINE + 1);
        let text = format!("one\n{long}\ntwo\nthree");
        read(text.as_bytes(), &sender);
        drop(sender);
        let mut lines = Vec::new();
        let mut skipped = 0;
        while let Some(block) = blocks.blocking_recv() {
            let block = block.unwrap();
            assert_eq!(block.mark, Mark::Nowhere);
            lines.extend(block.lines);
            skipped += block.skipped;
        }
        assert_eq!((lines, skipped), (b"one\ntwo\nthree\n".to_vec(), 1));
    }
}
